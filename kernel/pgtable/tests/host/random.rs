//! Long sequences of calls against a plain map of page → attributes.
//!
//! The map knows nothing of tables, leaves or barriers. After each call: the tables say what the map says; a refusal
//! had a reason and changed nothing; contiguous groups are whole, aligned and alike; the stream of operations is in
//! order and as short as it can be; frames for tables are neither lost nor made.

use std::collections::BTreeMap;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{Change, Error, Geometry, Granule4K, Granule16K, Granule64K, Lazy, PageRange, Shape, Tiny};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

use crate::barriers::{check, count};
use crate::{DATA, LARGEST, RODATA, TEXT};

const FRAMES: usize = 48;

/// A stretch of pages that translate to consecutive physical pages with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    size: u64,
    physical: u64,
    /// The attributes, without address, type and contiguity.
    attributes: u64,
}

/// Start → piece; pieces do not overlap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Plain(BTreeMap<u64, Piece>);

impl Plain {
    /// Cuts the piece around `address`, if there is one, so that none crosses it.
    fn cut(&mut self, address: u64) {
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
    fn pieces(&self, start: u64, end: u64) -> Vec<(u64, Piece)> {
        let mut cut = self.clone();
        cut.cut(start);
        cut.cut(end);
        cut.0.range(start..end).map(|(&start, &piece)| (start, piece)).collect()
    }

    fn change(&mut self, start: u64, end: u64, change: Change) {
        self.cut(start);
        self.cut(end);
        for (_, piece) in self.0.range_mut(start..end) {
            piece.attributes = change.apply(Descriptor(piece.attributes)).0;
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        self.0.retain(|&piece, _| piece < start || piece >= end);
    }

    fn first_hole(&self, start: u64, end: u64) -> Option<u64> {
        let mut next = start;
        for (piece, Piece { size, .. }) in self.pieces(start, end) {
            if piece != next {
                break;
            }
            next = piece + size;
        }
        (next < end).then_some(next)
    }

    /// The same map in as few pieces as possible.
    fn normal(&self) -> Vec<(u64, Piece)> {
        let mut normal: Vec<(u64, Piece)> = Vec::new();
        for (&start, &piece) in &self.0 {
            match normal.last_mut() {
                Some((before, last))
                    if *before + last.size == start
                        && last.physical + last.size == piece.physical
                        && last.attributes == piece.attributes =>
                {
                    last.size += piece.size;
                }
                _ => normal.push((start, piece)),
            }
        }
        normal
    }
}

const KIND: u64 = bits::TABLE | bits::CONTIGUOUS;

/// What the tables say, in the same form.
fn read_back<G: Geometry>(machine: &HostMachine<G>, window: PageRange<G>) -> Vec<(u64, Piece)> {
    let mut plain = Plain::default();
    let tables = machine.page_tables();
    tables.dump(window, |extent| {
        let attributes = extent.attributes.0 & !KIND;
        // An extent may be scattered physically: ask leaf by leaf.
        for offset in (0..extent.size).step_by(usize::try_from(extent.leaf_size).unwrap()) {
            let start = extent.start + offset;
            let leaf = tables.translate(start).unwrap();
            assert_eq!(leaf.leaf_size, extent.leaf_size);
            assert!(start.is_aligned(leaf.leaf_size) && leaf.physical.is_aligned(leaf.leaf_size), "unaligned leaf");
            group_is_whole(machine, start, leaf.level);
            let piece = Piece { size: leaf.leaf_size, physical: leaf.physical.0, attributes };
            plain.0.insert(start.0, piece);
        }
    });
    plain.normal()
}

/// Entries of a contiguous group are alike but for their address, which goes up entry by entry.
#[track_caller]
fn group_is_whole<G: Geometry>(machine: &HostMachine<G>, start: VirtAddr, level: u8) {
    let tables = machine.page_tables();
    let first = tables.translate(start).unwrap().descriptor;
    let entries = if first.is_contiguous() { G::group_entries(level) } else { 1 };
    for entry in 0..entries as u64 {
        let offset = entry * G::entry_size(level);
        assert_eq!(tables.translate(start + offset).unwrap().descriptor, Descriptor(first.0 + offset), "mixed group");
    }
}

/// One call. Places and sizes are in units of a leaf size, so that alignment happens as often as misalignment.
#[derive(Clone, Copy, Debug)]
enum Call {
    Map { place: Place, physical: u64, attributes: usize, pages: bool, tables: usize },
    Unmap(Place),
    Update(Place, usize),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    unit: usize,
    start: u64,
    count: u64,
    /// Pages added at the start, and at the end.
    ragged: (u64, u64),
}

const ATTRIBUTES: [Attributes; 3] = [DATA, RODATA, TEXT];
const CHANGES: [Change; 7] = [
    Change::READ_ONLY,
    Change::READ_WRITE,
    Change::EXECUTABLE,
    Change::NO_EXECUTE,
    Change::READ_ONLY_EXECUTABLE,
    Change::VALID,
    Change::INVALID,
];

fn units<G: Geometry>() -> [u64; 4] {
    [G::PAGE_SIZE, G::group_size(3), G::entry_size(2), G::group_size(2)]
}

/// Twice the largest group, across the boundary of a table of level 2 where there is one.
fn window<G: Geometry>() -> PageRange<G> {
    let size = (2 * G::group_size(2)).min(1 << G::VA_BITS);
    let boundary = if G::FIRST_LEVEL < 2 { G::entry_size(1) } else { size / 2 };
    PageRange::new(VirtAddr(boundary - size / 2), size).unwrap()
}

impl Place {
    fn range<G: Geometry>(self) -> Option<PageRange<G>> {
        let window = window::<G>();
        let unit = units::<G>()[self.unit];
        let places = window.size() / unit;
        // Small units near the middle of the window, where the others meet.
        let start = (places / 2).saturating_sub(4) + self.start % places.min(8);
        let start = window.start().0 + start * unit + self.ragged.0 * G::PAGE_SIZE;
        let size = (self.count * unit + self.ragged.1 * G::PAGE_SIZE).saturating_sub(self.ragged.0 * G::PAGE_SIZE);
        let size = size.min((window.start().0 + window.size()).saturating_sub(start));
        PageRange::new(VirtAddr(start), size).ok()
    }
}

fn place() -> impl Strategy<Value = Place> {
    let ragged = prop_oneof![3 => Just((0, 0)), 1 => (0_u64..3, 0_u64..3)];
    (0_usize..4, 0_u64..8, 1_u64..4, ragged).prop_map(|(unit, start, count, ragged)| Place {
        unit,
        start,
        count,
        ragged,
    })
}

fn call() -> impl Strategy<Value = Call> {
    let tables = prop_oneof![1 => 0_usize..4, 4 => Just(usize::MAX)];
    let map = (place(), 0_u64..64, 0_usize..3, any::<bool>(), tables).prop_map(
        |(place, physical, attributes, pages, tables)| Call::Map { place, physical, attributes, pages, tables },
    );
    prop_oneof![
        3 => map,
        1 => place().prop_map(Call::Unmap),
        4 => (place(), 0..CHANGES.len()).prop_map(|(place, change)| Call::Update(place, change)),
    ]
}

/// The machine, and what should be mapped in it.
struct Pair<G: Geometry> {
    machine: HostMachine<G>,
    plain: Plain,
    tables: usize,
}

impl<G: Geometry> Pair<G> {
    fn call(&mut self, call: Call) {
        match call {
            Call::Map { place, physical, attributes, pages, tables } => {
                if let Some(range) = place.range() {
                    // Aligned alike in most cases, off by a page in some; never so scattered that it takes long.
                    let unit = units::<G>()[place.unit];
                    let small = range.pages() <= 1024;
                    let off = if small { physical / 56 } else { 0 };
                    let physical = range.start().0 % unit + (physical % 8) * unit + off * G::PAGE_SIZE;
                    let shape = if pages && small { Shape::PAGES } else { LARGEST };
                    self.map(range, physical, ATTRIBUTES[attributes], shape, tables);
                }
            }
            Call::Unmap(place) => place.range().into_iter().for_each(|range| self.unmap(range)),
            Call::Update(place, change) => {
                place.range().into_iter().for_each(|range| self.update(range, CHANGES[change]));
            }
        }
        assert_eq!(read_back(&self.machine, window()), self.plain.normal());
        assert_eq!(self.machine.free_frames() + self.tables, FRAMES);
    }

    fn map(&mut self, range: PageRange<G>, physical: u64, attributes: Attributes, shape: Shape, tables: usize) {
        let (start, end) = bounds(range);
        let mapped = self.plain.pieces(start, end).first().map(|&(start, _)| VirtAddr(start));
        let free = self.machine.free_frames();
        let mut result = Ok(());
        let stream = self.machine.record(|| {
            let lazy = Lazy::new(self.machine.mmu());
            let mut source = self.machine.frames_limited(tables);
            let tables = self.machine.page_tables();
            result = tables.map(&lazy, range, PhysAddr(physical), attributes, shape, &mut source);
        });
        match (result, mapped) {
            (Err(Error::AlreadyMapped(found)), Some(first)) => assert_eq!(found, first),
            (Err(Error::OutOfTables { needed, available }), None) => {
                assert!(available < needed && available == tables.min(free));
                assert_eq!(count(&stream).dmb, 0);
            }
            (Ok(()), None) => {
                let piece = Piece { size: range.size(), physical, attributes: attributes.bits() };
                self.plain.0.insert(start, piece);
                let counts = count(&stream);
                assert_eq!((counts.dsb, counts.isb, counts.tlbi), (1, 1, 0));
                assert_eq!(counts.dmb, free - self.machine.free_frames());
                self.tables += counts.dmb;
            }
            other => panic!("map: {other:?}"),
        }
        assert_eq!(check(&stream), Ok(()));
    }

    fn unmap(&mut self, range: PageRange<G>) {
        let (start, end) = bounds(range);
        let cut = self.cut_leaves(range);
        let mut released = Plain::default();
        let mut result = Ok(());
        let stream = self.machine.record(|| {
            let lazy = Lazy::new(self.machine.mmu());
            result = self.machine.page_tables().unmap(&lazy, self.machine.tlb(), range, |leaf| {
                let piece = Piece { size: leaf.size, physical: leaf.physical.0, attributes: 0 };
                released.0.insert(leaf.address.0, piece);
            });
        });
        if let Err(error) = result {
            assert!(cut.contains(&error), "{error}");
            assert_eq!(stream, []);
            return;
        }
        assert_eq!(cut, []);
        let mut expected = Plain(self.plain.pieces(start, end).into_iter().collect());
        let valid = hull::<G>(&expected, |attributes| attributes & bits::VALID != 0);
        expected.0.values_mut().for_each(|piece| piece.attributes = 0);
        assert_eq!(released.normal(), expected.normal());
        self.plain.remove(start, end);
        self.invalidated(&stream, valid);
    }

    fn update(&mut self, range: PageRange<G>, change: Change) {
        let (start, end) = bounds(range);
        let mut reasons = self.cut_leaves(range);
        reasons.extend(self.plain.first_hole(start, end).map(|hole| Error::NotMapped(VirtAddr(hole))));
        let pieces = Plain(self.plain.pieces(start, end).into_iter().collect());
        let both = |attributes| change.apply(Descriptor(attributes)).0 & (bits::RDONLY | bits::PXN) == 0;
        let first = pieces.0.iter().find(|(_, piece)| both(piece.attributes));
        reasons.extend(first.map(|(&start, _)| Error::WritableAndExecutable(VirtAddr(start))));

        let mut result = Ok(());
        let stream = self.machine.record(|| {
            let lazy = Lazy::new(self.machine.mmu());
            result = self.machine.page_tables().update(&lazy, range, change).map(|flush| {
                lazy.invalidate(self.machine.tlb(), [flush]);
            });
        });
        if let Err(error) = result {
            assert!(reasons.contains(&error), "{error}");
            assert_eq!(stream, []);
            return;
        }
        assert_eq!(reasons, []);
        let stale = hull::<G>(&pieces, |attributes| {
            attributes & bits::VALID != 0 && change.apply(Descriptor(attributes)).0 != attributes
        });
        self.plain.change(start, end, change);
        self.invalidated(&stream, stale);
    }

    /// The leaves that `range` cuts, as the errors that say so.
    fn cut_leaves(&self, range: PageRange<G>) -> Vec<Error> {
        let mut cut = Vec::new();
        for address in [range.start(), range.last()] {
            if let Some(leaf) = self.machine.page_tables().translate(address) {
                let start = address.align_down(leaf.leaf_size);
                if !range.contains(start) || !range.contains(start + (leaf.leaf_size - 1)) {
                    cut.push(Error::Straddles { leaf: start, size: leaf.leaf_size });
                }
            }
        }
        cut
    }

    /// One invalidation of exactly `stale` with two DSB and one ISB, or none where nothing is stale.
    fn invalidated(&self, stream: &[Operation<G>], stale: Option<PageRange<G>>) {
        assert_eq!(check(stream), Ok(()));
        let mut told = stream.iter().filter_map(|operation| match operation {
            Operation::Invalidate(what) => Some(what.range),
            _ => None,
        });
        assert_eq!(told.next(), stale);
        assert_eq!(told.next(), None);
        let counts = count(stream);
        match stale {
            Some(_) => assert_eq!((counts.dsb, counts.isb), (2, 1)),
            None => assert!(counts.dsb <= 1 && counts.isb == counts.dsb),
        }
    }
}

fn bounds<G: Geometry>(range: PageRange<G>) -> (u64, u64) {
    (range.start().0, range.start().0 + range.size())
}

/// From the first to the last page whose attributes satisfy `test`.
fn hull<G: Geometry>(plain: &Plain, test: impl Fn(u64) -> bool) -> Option<PageRange<G>> {
    let mut found = plain.0.iter().filter(|(_, piece)| test(piece.attributes));
    let (&start, first) = found.next()?;
    let end = found.next_back().map_or(start + first.size, |(&start, piece)| start + piece.size);
    PageRange::new(VirtAddr(start), end - start).ok()
}

fn run<G: Geometry>(calls: &[Call]) {
    let mut pair = Pair::<G> { machine: HostMachine::new(FRAMES), plain: Plain::default(), tables: 0 };
    for &call in calls {
        pair.call(call);
    }
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec(call(), 1..24)
}

proptest! {
    #![proptest_config(Config::with_cases(192))]

    #[test]
    fn with_4_kib_pages(calls in calls()) {
        run::<Granule4K>(&calls);
    }

    #[test]
    fn with_16_kib_pages(calls in calls()) {
        run::<Granule16K>(&calls);
    }

    #[test]
    fn with_64_kib_pages(calls in calls()) {
        run::<Granule64K>(&calls);
    }

    #[test]
    fn tiny(calls in calls()) {
        run::<Tiny>(&calls);
    }
}
