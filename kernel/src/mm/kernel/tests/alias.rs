//! A range and its alias: both become read-only and writable together, in one invalidation, or neither does.

use core::cell::{Cell, RefCell};
use core::sync::atomic::AtomicU64;
use std::vec;
use std::vec::Vec;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType, bits};
use granule_pgtable::host::{HostFrames, HostMachine, HostMmu, Operation};
use granule_pgtable::{
    Change, Collapse, Collapser, Cut, Error, Execution, Granule4K, Handshake, Invalidation, Lazy, Leaf, Leaves,
    Lockless, PageRange, RefuseSplits, Serialise, Shape, Split, Splitter, Tlb, WholeLeaves,
};
use proptest::prelude::{any, proptest};
use proptest::sample::Index;

use crate::mm::kernel::alias::{Alias, ReadOnly, ReadWrite, update};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the area is.
const BASE: VirtAddr = VirtAddr(0xffff_8000_0000_0000);
const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };
/// Where physical address 0 is in the linear map.
const LINEAR: VirtAddr = VirtAddr(0xffff_0000_0000_0000);
/// Memory: 1 GiB, 38 MiB, 64 KiB and a page, so that the linear map has a leaf of every size.
const MEMORY: u64 = GIB + 38 * MIB + 68 * KIB;

/// How many of each were issued.
struct Counts {
    dsb: usize,
    isb: usize,
    tlbi: usize,
}

fn count(stream: &[Operation]) -> Counts {
    let of = |is: fn(&Operation) -> bool| stream.iter().filter(|operation| is(operation)).count();
    Counts {
        dsb: of(|operation| matches!(operation, Operation::DsbIshst | Operation::DsbIsh | Operation::DsbNsh)),
        isb: of(|operation| *operation == Operation::Isb),
        tlbi: of(|operation| matches!(operation, Operation::Invalidate(_) | Operation::Tlbi(_))),
    }
}

fn range(start: VirtAddr, size: u64) -> PageRange {
    PageRange::new(start, size).unwrap()
}

/// Maps in a section of its own.
fn map(
    machine: &HostMachine,
    range: PageRange,
    physical: u64,
    attributes: Attributes,
    shape: Shape,
) -> Result<(), Error> {
    let lazy = Lazy::new(machine.mmu());
    machine.page_tables().map(&lazy, range, PhysAddr(physical), attributes, shape, &mut machine.frames())
}

/// The linear map, with tables from `source`.
struct Linear<'a, S> {
    source: HostFrames<'a>,
    how: S,
}

impl<S: Serialise> Splitter<HostMmu> for Linear<'_, S> {
    const LIVE_SPLITS: bool = true;

    fn split(&mut self, cut: &Cut<'_, HostMmu>) -> Result<(), Error> {
        cut.split(&self.how, &mut self.source).map(drop)
    }
}

impl<S: Serialise> Alias<HostMmu> for Linear<'_, S> {
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        LINEAR + frame.0
    }
}

fn linear(machine: &HostMachine, tables: usize) -> Linear<'_, Lockless> {
    Linear { source: machine.frames_limited(tables), how: Lockless }
}

/// A machine whose linear map has the largest leaves, with these frames mapped from `BASE` on.
fn machine(frames: &[u64]) -> (HostMachine, PageRange) {
    let machine = HostMachine::new(64);
    map(&machine, range(LINEAR, MEMORY), 0, DATA, LARGEST).unwrap();
    let area = range(BASE, frames.len() as u64 * PAGE);
    let mut next = frames.iter();
    let lazy = Lazy::new(machine.mmu());
    let frame = |_, _| (PhysAddr(next.next().unwrap() * PAGE), 1);
    machine.page_tables().map_frames(&lazy, area, frame, DATA, Leaves::Pages, &mut machine.frames()).unwrap();
    drop(lazy);
    (machine, area)
}

fn change(machine: &HostMachine, range: PageRange, change: Change, tables: usize) -> Result<(), Error> {
    let (trees, tlb, required) = (machine.page_tables(), machine.tlb(), change.required_bits());
    let alias = &mut linear(machine, tables);
    match change.require_bits(0) {
        Change::READ_ONLY => update::update::<ReadOnly, _, _>(trees, tlb, range, required, alias),
        Change::READ_WRITE => update::update::<ReadWrite, _, _>(trees, tlb, range, required, alias),
        // Not about writing: the alias stays as it is.
        _ => {
            let lazy = Lazy::new(machine.mmu());
            trees.update(&lazy, range, change, WholeLeaves).map(|flush| lazy.invalidate(tlb, [flush]))
        }
    }
}

/// Read-only and executable, with the alias.
fn to_code(machine: &HostMachine, range: PageRange, tables: usize) -> Result<(), Error> {
    let (trees, tlb, lazy) = (machine.page_tables(), machine.tlb(), Lazy::new(machine.mmu()));
    trees.update_to_code(&lazy, tlb, range, 0, &mut linear(machine, tables), |_, alias| {
        update::update::<ReadOnly, _, _>(trees, tlb, range, 0, alias)
    })
}

/// Attributes of every page, of the area and of the linear map: what a refusal must leave alone.
fn everything(machine: &HostMachine) -> Vec<(VirtAddr, u64, u64)> {
    let mut pages = Vec::new();
    for all in [range(LINEAR, MEMORY), range(BASE, GIB)] {
        machine.page_tables().dump(all, |extent| {
            let attributes = extent.attributes.0 & !(bits::CONTIGUOUS | bits::TABLE);
            match pages.last_mut() {
                Some((start, size, before)) if *start + *size == extent.start && *before == attributes => {
                    *size += extent.size;
                }
                _ => pages.push((extent.start, extent.size, attributes)),
            }
        });
    }
    pages
}

fn is_writable(machine: &HostMachine, address: VirtAddr) -> bool {
    machine.page_tables().translate(address).unwrap().descriptor.is_writable()
}

/// Frames of the linear map that cannot be written.
fn read_only_frames(machine: &HostMachine) -> Vec<u64> {
    let mut found = Vec::new();
    machine.page_tables().dump(range(LINEAR, MEMORY), |extent| {
        assert!(extent.attributes.0 & bits::PXN != 0 && extent.physical.0 == extent.start - LINEAR);
        if !extent.is_writable() {
            let first = extent.physical.0 / PAGE;
            found.extend(first..first + extent.size / PAGE);
        }
    });
    found
}

/// The pages that the invalidations of `stream` cover.
fn invalidated(stream: &[Operation]) -> Vec<VirtAddr> {
    let ranges = stream.iter().filter_map(|operation| match operation {
        Operation::Invalidate(what) => Some(what),
        _ => None,
    });
    let mut pages: Vec<VirtAddr> =
        ranges.flat_map(|what| (0..what.range.pages() as u64).map(|page| what.range.start() + page * PAGE)).collect();
    pages.sort_unstable();
    pages
}

/// Frames in few runs, in many, in blocks and groups, in steps of two, downwards, twice around.
fn layouts() -> Vec<Vec<u64>> {
    let block = (GIB + 32 * MIB) / PAGE;
    vec![
        vec![5],
        (0..20).collect(),
        (block + 3..block + 600).collect(),
        (block - 700..block + 100).collect(),
        (block..block + 1024).collect(),
        (0..64).map(|page| block + 1 + 2 * page).collect(),
        (0..64).rev().collect(),
        (0..48).map(|page| (page % 3) * 70_000 + page / 3).collect(),
        (10..14).chain(100..101).chain(512..530).chain([block, 3]).collect(),
    ]
}

#[test]
fn the_alias_follows_and_nothing_else_changes() {
    for frames in layouts() {
        let (machine, area) = machine(&frames);
        let before = everything(&machine);
        for (to, writable) in [(Change::READ_ONLY, false), (Change::READ_WRITE, true)] {
            change(&machine, area, to, 64).unwrap();
            for (page, frame) in frames.iter().enumerate() {
                assert_eq!(is_writable(&machine, BASE + page as u64 * PAGE), writable);
                assert_eq!(is_writable(&machine, LINEAR + frame * PAGE), writable, "{frame} of {frames:?}");
            }
            let mut expected = if writable { vec![] } else { frames.clone() };
            expected.sort_unstable();
            assert_eq!(read_only_frames(&machine), expected);
        }
        assert_eq!(everything(&machine), before);
    }
}

#[test]
fn one_call_is_one_pair_of_barriers_and_covers_exactly_what_changed() {
    for frames in layouts() {
        let (machine, area) = machine(&frames);
        // The first call splits; the second has nothing to split.
        for to in [Change::READ_ONLY, Change::READ_WRITE] {
            let stream = machine.record(|| change(&machine, area, to, 64).unwrap());
            let Counts { dsb, isb, .. } = count(&stream);
            assert_eq!((dsb, isb), (2, 1), "{frames:?}");
            let alias = frames.iter().map(|frame| LINEAR + frame * PAGE);
            let mut expected: Vec<_> = alias.chain((0..frames.len() as u64).map(|page| BASE + page * PAGE)).collect();
            expected.sort_unstable();
            assert_eq!(invalidated(&stream), expected);
            for operation in &stream {
                if let Operation::Invalidate(what) = operation {
                    assert!(what.level.is_none() || what.range == area, "a level for what may have been split");
                }
            }
            let last_write = stream.iter().rposition(|operation| matches!(operation, Operation::Write { .. }));
            let first_dsb = stream.iter().position(|operation| *operation == Operation::DsbIshst);
            assert!(last_write < first_dsb);
        }
        let again = machine.record(|| change(&machine, area, Change::READ_WRITE, 64).unwrap());
        assert_eq!(again, [], "nothing changes, so nothing is owed");
    }
}

#[test]
fn runs_of_frames_are_invalidated_as_one_until_there_are_too_many() {
    let invalidations = |frames: &[u64]| {
        let (machine, area) = machine(frames);
        let stream = machine.record(|| change(&machine, area, Change::READ_ONLY, 64).unwrap());
        (count(&stream).tlbi, invalidated(&stream).len())
    };
    assert_eq!(invalidations(&(7..1007).collect::<Vec<_>>()), (2, 2000));
    assert_eq!(invalidations(&(0..512).map(|page| 2 * page).collect::<Vec<_>>()), (513, 1024));
    // From the first frame to the last.
    assert_eq!(invalidations(&(0..513).map(|page| 2 * page).collect::<Vec<_>>()), (2, 513 + 1025));
}

#[test]
fn running_out_of_tables_at_each_split_changes_nothing() {
    let far = (GIB + 32 * MIB) / PAGE;
    // Ends in the 1 GiB block, in the group of blocks, in the block: one after the other, and one by one.
    let frames: Vec<u64> =
        (3..9).chain([70_000, 70_002]).chain(far - 20..far + 20).chain([far + 40, 100_000]).collect();
    let mut failures = 0;
    for tables in 0.. {
        let (machine, area) = machine(&frames);
        let before = everything(&machine);
        match change(&machine, area, Change::READ_ONLY, tables) {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, Error::OutOfTables { .. }), "{error}"),
        }
        assert_eq!(everything(&machine), before, "with {tables} tables");
        failures += 1;
        // Split leaves stay split, and the next attempt continues from there.
        change(&machine, area, Change::READ_ONLY, 64).unwrap();
    }
    assert!(failures > 5, "{failures}");
}

#[test]
fn what_the_range_itself_refuses_leaves_the_alias_alone() {
    let (machine, area) = machine(&(30..50).collect::<Vec<_>>());
    change(&machine, range(BASE + 4 * PAGE, PAGE), Change::READ_ONLY, 64).unwrap();
    change(&machine, range(BASE + 4 * PAGE, PAGE), Change::EXECUTABLE, 64).unwrap();
    let before = everything(&machine);
    let refused = change(&machine, area, Change::READ_WRITE, 64);
    assert_eq!(refused, Err(Error::WritableAndExecutable(BASE + 4 * PAGE)));
    let hole = change(&machine, range(BASE, 21 * PAGE), Change::READ_ONLY, 64);
    assert_eq!(hole, Err(Error::NotMapped(BASE + 20 * PAGE)));
    let unmarked = change(&machine, area, Change::READ_ONLY.require_bits(bits::VM_ALLOC), 64);
    assert_eq!(unmarked, Err(Error::NotMarked(BASE)));
    assert_eq!(everything(&machine), before);
}

#[test]
fn only_changes_of_writability_go_to_the_alias() {
    let frames = [7, 9];
    let (machine, area) = machine(&frames);
    to_code(&machine, area, 64).unwrap();
    assert_eq!(read_only_frames(&machine), frames);
    let alias = everything(&machine);
    for other in [Change::NO_EXECUTE, Change::INVALID, Change::VALID] {
        change(&machine, area, other, 0).unwrap();
        assert_eq!(everything(&machine)[..alias.len() - 1], alias[..alias.len() - 1]);
    }
}

#[test]
fn an_alias_that_is_invalid_keeps_its_permission_for_later() {
    let (machine, area) = machine(&[8, 9, 10, 20]);
    let invalid = range(LINEAR + 9 * PAGE, PAGE);
    let lazy = Lazy::new(machine.mmu());
    let tables = machine.page_tables();
    let update = |change| {
        let flush = tables.update(&lazy, invalid, change, Split::new(&Lockless, &mut machine.frames())).unwrap();
        lazy.invalidate(machine.tlb(), [flush]);
    };
    update(Change::INVALID);
    change(&machine, area, Change::READ_ONLY, 64).unwrap();
    assert!(!tables.translate(invalid.start()).unwrap().valid);
    update(Change::VALID);
    assert_eq!(read_only_frames(&machine), [8, 9, 10, 20]);
}

/// Says when its invalidation is complete, and of what.
struct Watched(Cell<usize>);

impl Tlb<HostMmu> for Watched {
    fn issue(&self, mmu: &HostMmu, what: &Invalidation) {
        self.0.set(self.0.get() + what.range.pages());
        HostMachine::<granule_pgtable::Granule4K>::new(0).tlb().issue(mmu, what);
    }
}

#[test]
fn unmapping_makes_the_alias_writable_before_the_frames_are_handed_out() {
    for frames in layouts() {
        let (machine, area) = machine(&frames);
        let before = everything(&machine);
        // Every third page, so that read-only pages lie beside others in the area and in memory.
        let read_only: Vec<u64> = (0..frames.len() as u64).filter(|page| page % 3 == 0).collect();
        for page in &read_only {
            change(&machine, range(BASE + page * PAGE, PAGE), Change::READ_ONLY, 64).unwrap();
        }
        let (tables, tlb) = (machine.page_tables(), Watched(Cell::new(0)));
        let mut released = Vec::new();
        let stream = machine.record(|| {
            let unmapped = update::unmap(tables, &tlb, area, &mut linear(&machine, 0), |leaf| {
                assert!(tlb.0.get() >= frames.len() + read_only.len());
                assert!(is_writable(&machine, LINEAR + leaf.physical.0));
                released.push(leaf.physical.0 / PAGE);
            });
            assert_eq!(unmapped, Ok(()));
        });
        assert_eq!(released, frames);
        assert_eq!((count(&stream).dsb, count(&stream).isb), (2, 1));
        assert_eq!(everything(&machine), before[..before.len() - 1]);
    }
}

/// The steps of a call: which kind of pages its stores made, and the invalidations.
fn moments(stream: &[Operation]) -> Vec<&'static str> {
    let mut moments: Vec<&str> = Vec::new();
    for operation in stream {
        let moment = match operation {
            Operation::Write { new, .. } if new.0 == 0 => "empty",
            Operation::Write { new, .. } if !new.is_valid() => "invalid",
            Operation::Write { new, .. } if new.is_writable() => "writable",
            Operation::Write { new, .. } if new.is_executable() => "executable",
            Operation::Write { .. } => "read-only",
            Operation::Invalidate(_) => "invalidated",
            _ => continue,
        };
        if moments.last() != Some(&moment) {
            moments.push(moment);
        }
    }
    moments
}

/// One CPU may use the old translation until the invalidation, another the new one from the store on: so nothing may be
/// writable by one of the two, and executable by the other.
#[test]
fn what_may_be_executed_is_writable_nowhere_until_it_is_gone_from_every_tlb() {
    for frames in layouts() {
        let (machine, area) = machine(&frames);
        let before = everything(&machine);
        let stream = machine.record(|| to_code(&machine, area, 64).unwrap());
        // A split writes the leaves that it replaces as they were: writable.
        let steps: Vec<_> = moments(&stream).into_iter().skip_while(|step| *step == "writable").collect();
        assert_eq!(steps[steps.len() - 4..], ["read-only", "invalidated", "executable", "invalidated"], "{steps:?}");
        let mut released = Vec::new();
        let stream = machine.record(|| {
            let out = |leaf: Leaf| {
                assert!(is_writable(&machine, LINEAR + leaf.physical.0));
                released.push(leaf.physical.0 / PAGE);
            };
            let mut alias = linear(&machine, 0);
            update::unmap(machine.page_tables(), machine.tlb(), area, &mut alias, out).unwrap();
        });
        assert_eq!(moments(&stream), ["invalid", "invalidated", "writable", "invalidated", "empty"], "{frames:?}");
        assert_eq!((count(&stream).dsb, count(&stream).isb), (4, 2));
        assert_eq!(released, frames);
        assert_eq!(everything(&machine), before[..before.len() - 1]);
    }
}

#[test]
fn what_speaks_against_code_is_found_before_anything_is_read_only() {
    let machine = HostMachine::new(64);
    map(&machine, range(LINEAR, MEMORY), 0, DATA, LARGEST).unwrap();
    let forbidding = Shape { leaves: Leaves::Pages, execution: Execution::Forbidden };
    let area = range(BASE, 4 * PAGE);
    map(&machine, area, 0, DATA, forbidding).unwrap();
    let before = everything(&machine);
    assert_eq!(to_code(&machine, area, 64), Err(Error::ExecutionForbidden(BASE)));
    assert_eq!(to_code(&machine, range(BASE, 5 * PAGE), 64), Err(Error::NotMapped(BASE + 4 * PAGE)));
    assert_eq!(everything(&machine), before);
}

#[test]
fn unmapping_writable_pages_costs_what_it_does_without_an_alias() {
    let streams = [true, false].map(|alias| {
        let (machine, area) = machine(&[3, 4, 9]);
        machine.record(|| {
            let lazy = Lazy::new(machine.mmu());
            let tables = machine.page_tables();
            if alias {
                update::unmap(tables, machine.tlb(), area, &mut linear(&machine, 0), |_| ()).unwrap();
            } else {
                tables.unmap(&lazy, machine.tlb(), area, RefuseSplits, |_| ()).unwrap();
            }
        })
    });
    assert_eq!(streams[0], streams[1]);
}

#[test]
fn areas_of_blocks_have_an_alias_too() {
    let machine = HostMachine::new(64);
    map(&machine, range(LINEAR, MEMORY), 0, DATA, LARGEST).unwrap();
    map(&machine, range(BASE, 4 * MIB + 8 * KIB), 6 * MIB, DATA, LARGEST).unwrap();
    let stream = machine.record(|| change(&machine, range(BASE, 4 * MIB + 8 * KIB), Change::READ_ONLY, 64).unwrap());
    assert_eq!(read_only_frames(&machine), (6 * MIB / PAGE..10 * MIB / PAGE + 2).collect::<Vec<_>>());
    assert_eq!(count(&stream).tlbi, 2);
    let mut linear = linear(&machine, 0);
    let whole = range(BASE, 4 * MIB + 8 * KIB);
    update::unmap(machine.page_tables(), machine.tlb(), whole, &mut linear, |_| ()).unwrap();
    assert_eq!(read_only_frames(&machine), []);
}

proptest! {
    /// The alias is read-only exactly where a page of the area is, whatever was called before.
    #[test]
    fn the_alias_is_what_the_area_is(
        steps in proptest::collection::vec((any::<Index>(), 1_usize..40, 0_u8..3, 0_usize..6), 1..40),
        stride in 1_u64..4,
        pages in 1_u64..80,
    ) {
        let frames: Vec<u64> = (0..pages).map(|page| 500 + page * stride + page / 7 * 5).collect();
        let (machine, area) = machine(&frames);
        for (first, count, what, tables) in steps {
            let first = first.index(frames.len());
            let count = count.min(frames.len() - first);
            let part = range(area.start() + first as u64 * PAGE, count as u64 * PAGE);
            let _ = match what {
                0 => change(&machine, part, Change::READ_ONLY, tables),
                1 => change(&machine, part, Change::READ_WRITE, tables),
                _ => to_code(&machine, part, tables),
            };
            let area_read_only = frames
                .iter()
                .enumerate()
                .filter(|(page, _)| !is_writable(&machine, area.start() + *page as u64 * PAGE))
                .map(|(_, frame)| *frame);
            assert_eq!(read_only_frames(&machine), area_read_only.collect::<Vec<_>>());
        }
    }
}

/// A block of an area, with a table that has it.
fn block_area(block: u64) -> (HostMachine, PageRange) {
    let (machine, _) = machine(&[3]);
    let area = range(BASE + 2 * MIB, 2 * MIB);
    let lazy = Lazy::new(machine.mmu());
    assert!(machine.page_tables().map_at_once(&lazy, area, PhysAddr(block), DATA));
    drop(lazy);
    (machine, area)
}

#[test]
fn a_part_of_a_block_and_its_alias_change_alone() {
    let block = GIB + 32 * MIB;
    for (first, count) in [(0, 1), (0, 512), (7, 3), (16, 32), (500, 12)] {
        let (machine, area) = block_area(block);
        let before = everything(&machine);
        let part = range(area.start() + first * PAGE, count * PAGE);
        change(&machine, part, Change::READ_ONLY, 64).unwrap();
        let frames: Vec<u64> = (first..first + count).map(|page| block / PAGE + page).collect();
        assert_eq!(read_only_frames(&machine), frames);
        for page in 0..512 {
            let writable = !(first..first + count).contains(&page);
            assert_eq!(is_writable(&machine, area.start() + page * PAGE), writable, "page {page}");
        }
        to_code(&machine, part, 64).unwrap();
        change(&machine, part, Change::NO_EXECUTE, 64).unwrap();
        change(&machine, part, Change::READ_WRITE, 64).unwrap();
        assert_eq!(everything(&machine), before);
    }
}

/// All of the block is read-only already, but for what a neighbour is in the middle of: its alias comes first.
#[test]
fn where_nothing_changes_in_a_part_of_a_block_the_alias_of_the_rest_is_left_alone() {
    let block = GIB + 32 * MIB;
    let (machine, area) = block_area(block);
    change(&machine, area, Change::READ_ONLY, 64).unwrap();
    let neighbours = range(LINEAR + block, 4 * PAGE);
    let (lazy, splitter) = (Lazy::new(machine.mmu()), &mut linear(&machine, 64));
    let flush = machine.page_tables().update(&lazy, neighbours, Change::READ_WRITE, splitter).unwrap();
    lazy.invalidate(machine.tlb(), [flush]);
    change(&machine, range(area.start() + 100 * PAGE, 4 * PAGE), Change::READ_ONLY, 64).unwrap();
    assert!((0..4).all(|page| is_writable(&machine, LINEAR + block + page * PAGE)));
    assert_eq!(read_only_frames(&machine).len(), 508);
}

/// A linear map whose marked tables are collapsed when an address is asked for the `at`-th time.
struct Collapsed<'a> {
    linear: Linear<'a, Lockless>,
    machine: &'a HostMachine,
    collapser: RefCell<Collapser<Granule4K, 1>>,
    asked: Cell<usize>,
    at: usize,
}

impl Splitter<HostMmu> for Collapsed<'_> {
    const LIVE_SPLITS: bool = true;

    fn split(&mut self, cut: &Cut<'_, HostMmu>) -> Result<(), Error> {
        self.linear.split(cut)
    }
}

impl Alias<HostMmu> for Collapsed<'_> {
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        if self.asked.replace(self.asked.get() + 1) == self.at {
            let (tables, mut frames) = (self.machine.page_tables(), self.machine.frames());
            // The marks are older than the walk that asks, which is not waited for.
            let words = |_| None::<&AtomicU64>;
            let free = |table| self.machine.free_table(table);
            // SAFETY: tables are words of the host machine's arena, and there is one CPU.
            #[allow(unsafe_code, reason = "keeps the contract of a collapser")]
            unsafe {
                self.collapser.borrow_mut().advance(&tables, self.machine.tlb(), words, &mut frames, free);
            }
        }
        self.linear.address(frame)
    }
}

/// A run of frames ends in a table of the linear map that is marked. The alias keeps what the change has found there
/// until it is made, whenever the collapser continues, and it needs no table that is not there.
#[test]
fn a_table_where_a_run_ends_is_no_block_before_the_change_is_made() {
    let frames: Vec<u64> = (1024..1024 + 512 + 256).collect();
    for at in 0.. {
        let (machine, area) = machine(&frames);
        let last = range(area.last().align_down(PAGE), PAGE);
        change(&machine, last, Change::READ_ONLY, 4).unwrap();
        change(&machine, last, Change::READ_WRITE, 0).unwrap();
        let collapser = RefCell::new(Collapser::new());
        let marked = range(LINEAR + (1024 + 512) * PAGE, 2 * MIB);
        collapser.borrow_mut().start(Collapse { range: marked, never_blocks: 0, handshake: Handshake::Marks });
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "keeps the contract of a collapser")]
        unsafe {
            collapser.borrow_mut().mark(&machine.page_tables(), |_| None::<&AtomicU64>);
        }
        let (linear, asked) = (linear(&machine, 0), Cell::new(0));
        let alias = &mut Collapsed { linear, machine: &machine, collapser, asked, at };
        let changed = update::update::<ReadOnly, _, _>(machine.page_tables(), machine.tlb(), area, 0, alias);
        assert!(matches!(changed, Ok(()) | Err(Error::OutOfTables { .. })), "{changed:?}");
        for address in [area.start(), last.start(), LINEAR + 1024 * PAGE, LINEAR + (1024 + 767) * PAGE] {
            assert_eq!(is_writable(&machine, address), changed.is_err(), "{address}, collapsed at {at}");
        }
        if alias.asked.get() <= at {
            assert!(at > 2);
            break;
        }
    }
}
