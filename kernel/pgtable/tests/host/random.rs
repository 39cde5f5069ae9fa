//! Long sequences of calls against a plain map of page → attributes.
//!
//! The map knows nothing of tables, leaves or barriers. After each call: the tables hold what the map holds; a refusal
//! had a reason and changed nothing; contiguous groups are whole, aligned and alike; the stream of operations is in
//! order and as short as it can be; frames for tables are neither lost nor made.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{
    Change, Error, Geometry, Granule4K, Granule4KVa39, Granule16K, Granule64K, Lazy, PageRange, Shape, Tiny,
    WholeLeaves,
};
use proptest::prelude::{Strategy, any, proptest};
use proptest::test_runner::Config;

use crate::barriers::{Counts, check, count};
use crate::calls::{ATTRIBUTES, CHANGES, Call, call, place, units, window};
use crate::plain::{Piece, Plain};
use crate::{LARGEST, vouched};

const FRAMES: usize = 48;

impl Plain {
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

    /// This map in as few pieces as possible.
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

/// The content of the tables, as a map of pieces.
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

/// The machine, and what should be mapped in it.
struct Pair<G: Geometry> {
    machine: HostMachine<G>,
    plain: Plain,
    tables: usize,
    way: Way,
}

/// How ranges are unmapped.
#[derive(Clone, Copy)]
enum Way {
    AtOnce,
    /// In two halves, which leave the invalidation between them to the caller.
    Lazily,
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
            Call::Unmap(place) => place.range().into_iter().for_each(|range| match self.way {
                Way::AtOnce => self.unmap(range),
                Way::Lazily => self.unmap_lazily(range),
            }),
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
            result = self.machine.page_tables().unmap(&lazy, self.machine.tlb(), range, WholeLeaves, |leaf| {
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
        // Those that are not valid as well: a call may have left their invalidation to its caller.
        let leaves = hull::<G>(&expected, |_| true);
        expected.0.values_mut().for_each(|piece| piece.attributes = 0);
        assert_eq!(released.normal(), expected.normal());
        self.plain.remove(start, end);
        self.invalidated(&stream, leaves);
    }

    /// Both halves, and between them what the map has after a change to [`Change::INVALID`].
    fn unmap_lazily(&mut self, range: PageRange<G>) {
        let (start, end) = bounds(range);
        let cut = self.cut_leaves(range);
        let pieces = Plain(self.plain.pieces(start, end).into_iter().collect());
        let is_left = |piece: &Piece| piece.attributes & bits::RDONLY != 0 || piece.attributes & bits::PXN == 0;
        let is_left = self.plain.first_hole(start, end).is_some() || pieces.0.values().any(is_left);
        let mut result = Ok(false);
        let stream = self.machine.record(|| {
            result = self.machine.page_tables().unmap_lazily(range, bits::RDONLY, 0);
        });
        if result != Ok(true) {
            match result {
                Err(error) => assert!(cut.contains(&error), "{error}"),
                Ok(_) => assert!(is_left),
            }
            assert_eq!(stream, []);
            return;
        }
        assert!(cut.is_empty() && !is_left);
        assert_eq!(count(&stream), Counts::default());
        self.plain.change(start, end, Change::INVALID);
        assert_eq!(read_back(&self.machine, window()), self.plain.normal());
        let (mut released, mut last) = (Plain::default(), None);
        let stream = self.machine.record(|| {
            vouched::release_unmapped(&self.machine.page_tables(), range, |leaf| {
                assert!(last < Some(leaf.address));
                last = Some(leaf.address);
                let piece = Piece { size: leaf.size, physical: leaf.physical.0, attributes: 0 };
                released.0.insert(leaf.address.0, piece);
            });
        });
        assert_eq!(count(&stream), Counts::default());
        let mut expected = pieces;
        expected.0.values_mut().for_each(|piece| piece.attributes = 0);
        assert_eq!(released.normal(), expected.normal());
        self.plain.remove(start, end);
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
            result = self.machine.page_tables().update(&lazy, range, change, WholeLeaves).map(|flush| {
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
            // A page that is only made valid was in no TLB; one to be gone may be in one although it is not valid.
            let changes = change.apply(Descriptor(attributes)).0 != attributes;
            change != Change::VALID && (changes || change == Change::INVALID)
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
    run_in::<G>(Way::AtOnce, calls);
}

fn run_in<G: Geometry>(way: Way, calls: &[Call]) {
    let mut pair = Pair::<G> { machine: HostMachine::new(FRAMES), plain: Plain::default(), tables: 0, way };
    for &call in calls {
        pair.call(call);
    }
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec(call(), 1..24)
}

/// Data that is mapped and unmapped at one place, and any calls in between: holes are seldom.
fn calls_to_unmap() -> impl Strategy<Value = Vec<Call>> {
    let both = (place(), any::<bool>(), call()).prop_map(|(place, pages, between)| {
        [Call::Map { place, physical: 0, attributes: 0, pages, tables: usize::MAX }, between, Call::Unmap(place)]
    });
    proptest::collection::vec(both, 1..8).prop_map(|calls| calls.concat())
}

proptest! {
    #![proptest_config(Config::with_cases(192))]

    #[test]
    fn with_4_kib_pages(calls in calls()) {
        run::<Granule4K>(&calls);
    }

    #[test]
    fn with_39_bit_addresses(calls in calls()) {
        run::<Granule4KVa39>(&calls);
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

    #[test]
    fn with_4_kib_pages_lazily(calls in calls_to_unmap()) {
        run_in::<Granule4K>(Way::Lazily, &calls);
    }

    #[test]
    fn with_39_bit_addresses_lazily(calls in calls_to_unmap()) {
        run_in::<Granule4KVa39>(Way::Lazily, &calls);
    }

    #[test]
    fn with_16_kib_pages_lazily(calls in calls_to_unmap()) {
        run_in::<Granule16K>(Way::Lazily, &calls);
    }

    #[test]
    fn with_64_kib_pages_lazily(calls in calls_to_unmap()) {
        run_in::<Granule64K>(Way::Lazily, &calls);
    }

    #[test]
    fn tiny_lazily(calls in calls_to_unmap()) {
        run_in::<Tiny>(Way::Lazily, &calls);
    }
}
