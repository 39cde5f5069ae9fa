//! A plain map of page → attributes, which knows nothing of tables, leaves or barriers.
//!
//! The tests of the model machine compare with the same map.

use std::collections::BTreeMap;

use granule_arch::descriptor::Descriptor;
use granule_pgtable::Change;

/// A stretch of pages that translate to consecutive physical pages with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) size: u64,
    pub(crate) physical: u64,
    /// The attributes, without address, type and contiguity.
    pub(crate) attributes: u64,
}

/// Start → piece; pieces do not overlap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plain(pub(crate) BTreeMap<u64, Piece>);

impl Plain {
    /// Cuts the piece around `address`, if there is one, so that none crosses it.
    pub(crate) fn cut(&mut self, address: u64) {
        if let Some((&start, &piece)) = self.0.range(..address).next_back()
            && address < start + piece.size
        {
            let offset = address - start;
            self.0.insert(start, Piece { size: offset, ..piece });
            let rest = Piece { size: piece.size - offset, physical: piece.physical + offset, ..piece };
            self.0.insert(address, rest);
        }
    }

    /// The pieces of `start..end`, cut to it.
    pub(crate) fn pieces(&self, start: u64, end: u64) -> Vec<(u64, Piece)> {
        let mut cut = self.clone();
        cut.cut(start);
        cut.cut(end);
        cut.0.range(start..end).map(|(&start, &piece)| (start, piece)).collect()
    }

    pub(crate) fn change(&mut self, start: u64, end: u64, change: Change) {
        self.cut(start);
        self.cut(end);
        for (_, piece) in self.0.range_mut(start..end) {
            piece.attributes = change.apply(Descriptor(piece.attributes)).0;
        }
    }

    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        self.0.retain(|&piece, _| piece < start || piece >= end);
    }
}
