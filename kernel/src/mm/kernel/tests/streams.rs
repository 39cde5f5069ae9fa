//! Streams are compared whole: nothing can be missing, too much, or in another order. Switches of the lab whose fix no
//! emulated CPU needs are caught so here.

use std::vec;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::tlbi::Granule;
use granule_arch::tlbi::{AddressOperand, Instruction, Operation as Planned, Plan, RangeOperand, RangeSupport};
use granule_pgtable::host::{CacheOperation, Operation};

use super::super::record::record;
use super::super::set_memory::Validity;
use super::{KernelSpace, PAGE, space};
use crate::lab;
use crate::platform::features::branch;
use crate::smp::Cpu;

/// The stream of `call` without its writes, which come all before the first DSB ISHST.
#[track_caller]
fn beside_writes(call: impl FnOnce()) -> Vec<Operation> {
    let stream = record(call);
    let last_write = stream.iter().rposition(|operation| matches!(operation, Operation::Write { .. }));
    let first_barrier = stream.iter().position(|operation| matches!(operation, Operation::DsbIshst));
    if let (Some(write), Some(barrier)) = (last_write, first_barrier) {
        assert!(write < barrier, "a write behind the barrier: {stream:?}");
    }
    stream.into_iter().filter(|operation| !matches!(operation, Operation::Write { .. })).collect()
}

/// DSB ISHST; the TLBIs of `pages` pages from `start` on; DSB ISH; ISB.
fn invalidation(start: VirtAddr, pages: u64) -> Vec<Operation> {
    let single = |page| Operation::Tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
    let mut stream = vec![Operation::DsbIshst];
    stream.extend((0..pages).map(|page| single(start + page * PAGE)));
    stream.extend([Operation::DsbIsh, Operation::Isb]);
    stream
}

/// An area of `pages` pages, and what making it read-only does with these switches of the lab.
fn read_only_in_the_lab(sites: &[u16], pages: u64) -> (VirtAddr, Vec<Operation>) {
    let (space, _, cpu) = space(4);
    let start = space.vmalloc(&cpu, pages).unwrap().into_start();
    (start, host::with(sites, || beside_writes(|| space.set_memory_ro(start, pages).unwrap())))
}

#[test]
fn a_change_is_two_dsb_one_isb_and_its_invalidations() {
    let (start, stream) = read_only_in_the_lab(&[], 3);
    assert_eq!(stream, invalidation(start, 3));
}

#[test]
fn without_the_dsb_before_the_tlbi_the_stream_is_short_of_it() {
    let (start, stream) = read_only_in_the_lab(&lab::SKIP_DSB_BEFORE_TLBI.sites(), 1);
    assert_eq!(stream, invalidation(start, 1)[1..]);
}

#[test]
fn without_the_dsb_after_the_tlbi_the_stream_is_short_of_it() {
    let (start, stream) = read_only_in_the_lab(&lab::SKIP_DSB_AFTER_TLBI.sites(), 1);
    let mut expected = invalidation(start, 1);
    expected.remove(2);
    assert_eq!(stream, expected);
}

#[test]
fn without_the_isb_the_stream_is_short_of_it() {
    let (start, stream) = read_only_in_the_lab(&lab::SKIP_ISB.sites(), 1);
    assert_eq!(stream, invalidation(start, 1)[..3]);
}

#[test]
fn an_invalidation_that_ends_early_leaves_out_the_last_page() {
    let (start, stream) = read_only_in_the_lab(&lab::SHORT_TLBI.sites(), 3);
    assert_eq!(stream, invalidation(start, 2));
}

#[test]
fn making_valid_is_one_dsb_and_one_isb() {
    let (space, _, cpu) = space(4);
    let start = space.vmalloc(&cpu, 3).unwrap().into_start();
    space.set_memory_valid(start, 3, Validity::Invalid).unwrap();
    let stream = host::with(&[], || beside_writes(|| space.set_memory_valid(start, 3, Validity::Valid).unwrap()));
    assert_eq!(stream, [Operation::DsbIshst, Operation::Isb]);
}

#[test]
fn vfree_frees_no_frame_before_the_invalidation_is_complete() {
    let (space, frames, cpu) = space(4);
    let area = space.vmalloc(&cpu, 3).unwrap();
    let start = area.start();
    let used = frames.stats().used;
    let stream = host::with(&[], || record(|| space.vfree(&cpu, area)));
    assert_eq!(frames.stats().used, used - 3);
    // Made invalid, with the frame's address kept; invalidated; emptied, and only then is the frame freed.
    let is_write = |operation: &&Operation| matches!(operation, Operation::Write { .. });
    assert_eq!(stream.iter().take_while(is_write).count(), 3);
    assert_eq!(stream[3..8], invalidation(start, 3)[..5]);
    for write in &stream[..3] {
        assert!(
            matches!(write, Operation::Write { old, new, .. } if new.address() == old.address() && !new.is_valid())
        );
    }
    for write in stream.iter().skip(3).filter(is_write) {
        assert!(matches!(write, Operation::Write { old, new, .. } if new.0 == 0 && !old.is_valid()));
    }
}

/// The operations that make a read-only page of an area executable, and then valid code of an invalid page.
fn code_in_the_lab(sites: &[u16]) -> (VirtAddr, Vec<Operation>, Vec<Operation>) {
    let (space, _, cpu) = space(4);
    let start = space.vmalloc(&cpu, 1).unwrap().into_start();
    space.set_memory_ro(start, 1).unwrap();
    host::with(sites, || {
        let executable = beside_writes(|| space.set_memory_x(start, 1).unwrap());
        space.set_memory_valid(start, 1, Validity::Invalid).unwrap();
        let valid = record(|| space.set_memory_valid(start, 1, Validity::Valid).unwrap());
        (start, executable, valid)
    })
}

#[test]
fn new_code_is_cleaned_and_dropped_before_its_entry_is_written() {
    let (space, _, cpu) = space(4);
    let start = space.vmalloc(&cpu, 2).unwrap().into_start();
    let expected: Vec<Operation> = [0, 1]
        .map(|page| Operation::Cache(CacheOperation::Clean { start: start + page * PAGE, bytes: PAGE }))
        .into_iter()
        .chain([
            Operation::DsbIsh,
            Operation::Cache(CacheOperation::Invalidate { start, bytes: 2 * PAGE }),
            Operation::DsbIsh,
        ])
        .collect();
    let stream = host::with(&[], || record(|| space.set_memory_rox(start, 2).unwrap()));
    // Read-only for every CPU first: while one may still write, no other may execute.
    assert!(matches!(stream[..2], [Operation::Write { .. }, Operation::Write { .. }]));
    assert_eq!(stream[2..7], invalidation(start, 2)[..]);
    assert_eq!(stream[7..12], expected);
    assert!(matches!(stream[12..14], [Operation::Write { .. }, Operation::Write { .. }]));
    assert_eq!(stream[14..], invalidation(start, 2));

    space.set_memory_valid(start, 1, Validity::Invalid).unwrap();
    let stream = host::with(&[], || record(|| space.set_memory_valid(start, 1, Validity::Valid).unwrap()));
    // By its own address: no other mapping of the frame need be valid.
    assert!(matches!(stream[0], Operation::Write { new, .. } if new.is_valid() && !new.is_executable()));
    let clean = Operation::Cache(CacheOperation::Clean { start, bytes: PAGE });
    assert_eq!(stream[1..4], [Operation::DsbIshst, Operation::Isb, clean]);
    assert!(matches!(stream[4], Operation::Write { new, .. } if !new.is_valid()));
    assert_eq!(stream[5..8], invalidation(start, 1)[..3]);
    let drop_all = Operation::Cache(CacheOperation::InvalidateAll);
    assert_eq!(stream[8..11], [Operation::DsbIsh, drop_all, Operation::DsbIsh]);
    assert!(matches!(stream[11..], [Operation::Write { .. }, Operation::DsbIshst, Operation::Isb]));
}

#[test]
fn without_cache_maintenance_the_stream_has_none() {
    let has_any = |stream: &[Operation]| stream.iter().any(|operation| matches!(operation, Operation::Cache(_)));
    let (start, executable, valid) = code_in_the_lab(&[]);
    assert!(has_any(&executable) && has_any(&valid));
    assert_eq!(executable[executable.len() - 4..], invalidation(start, 1));
    let (_, executable, valid) = code_in_the_lab(&lab::SKIP_ICACHE.sites());
    assert!(!has_any(&executable) && !has_any(&valid));
}

#[test]
fn every_switch_with_the_stream_for_a_witness_has_its_test_here() {
    let names = lab::all().iter().filter(|lab| lab.witness == lab::Witness::Stream).map(|lab| lab.name);
    // Or, for user spaces, in `mm::space::tests::notified`; for the SMMU, in `iommu::tests::bound`.
    let told = ["no-upgrade-event", "notify-before-unlock", "stale-cow", "skip-icache-user"];
    let bound = ["skip-sync", "free-before-sync", "no-dmb-before-prod"];
    let here = names.filter(|name| !told.contains(name) && !bound.contains(name));
    assert_eq!(here.collect::<Vec<_>>(), ["skip-icache"]);
}

fn read_only(space: &KernelSpace, start: VirtAddr, pages: u64, features: &[u16]) -> Vec<Operation> {
    space.set_memory_rw(start, pages).unwrap();
    host::with(features, || beside_writes(|| space.set_memory_ro(start, pages).unwrap()))
}

fn area(pages: u64) -> (&'static KernelSpace, VirtAddr, Cpu) {
    let (space, _, cpu) = space(8);
    let start = space.vmalloc(&cpu, pages).unwrap().into_start();
    space.set_memory_ro(start, pages).unwrap();
    (space, start, cpu)
}

#[test]
fn with_range_operations_there_are_as_few_as_the_plan_has() {
    let (space, start, _) = area(600);
    for (pages, count) in [(1, 1), (2, 1), (3, 2), (63, 2), (64, 1), (67, 3), (600, 2)] {
        let stream = read_only(space, start, pages, &[branch::TLB_RANGE]);
        let planned: Vec<Operation> = Plan::new(start, pages, Granule::Size4K, RangeSupport::Yes)
            .map(|operation| match operation {
                Planned::Page(page) => Instruction::Vaale1is(AddressOperand::new(page, None)),
                Planned::Pages(first, span) => {
                    Instruction::Rvaale1is(RangeOperand::new(first, Granule::Size4K, span, None))
                }
                Planned::Everything => panic!("{pages} pages are not everything"),
            })
            .map(Operation::Tlbi)
            .collect();
        assert_eq!(planned.len(), count);
        assert_eq!(stream[1..stream.len() - 2], planned, "{pages} pages");
    }
}

#[test]
fn past_the_threshold_everything_is_invalidated_at_once() {
    let (space, start, _) = area(600);
    let tlbis = |pages| read_only(space, start, pages, &[]).len() - 3;
    assert_eq!(tlbis(511), 511);
    assert_eq!(tlbis(512), 1);
    let stream = read_only(space, start, 600, &[]);
    let all = Operation::Tlbi(Instruction::Vmalle1is);
    assert_eq!(stream, [Operation::DsbIshst, all, Operation::DsbIsh, Operation::Isb]);
}

/// A TLB may hold the block that a page was a part of, and need not drop it by an invalidation for the level of pages.
#[test]
fn no_level_goes_along_because_leaves_may_have_been_split() {
    let (space, start, cpu) = area(3);
    let level = &[branch::TLB_LEVEL];
    let one_by_one = [0, 1, 2].map(|page| AddressOperand::new(start + page * PAGE, None));
    let one_by_one = one_by_one.map(|operand| Operation::Tlbi(Instruction::Vaale1is(operand)));
    assert_eq!(read_only(space, start, 3, level)[1..4], one_by_one);
    let stream = read_only(space, start, 2, &[branch::TLB_LEVEL, branch::TLB_RANGE]);
    let Some(Planned::Pages(_, span)) = Plan::new(start, 2, Granule::Size4K, RangeSupport::Yes).next() else {
        panic!("two pages are a range");
    };
    let operand = RangeOperand::new(start, Granule::Size4K, span, None);
    assert_eq!(stream[1], Operation::Tlbi(Instruction::Rvaale1is(operand)));
    let stream = host::with(level, || record(|| _ = space.vfree_at(&cpu, start).unwrap()));
    let tlbis: Vec<_> = stream.into_iter().filter(|operation| matches!(operation, Operation::Tlbi(_))).collect();
    assert_eq!(tlbis, one_by_one);
}

#[test]
fn an_erratum_adds_one_invalidation_with_a_dsb_of_its_own() {
    let (space, start, _) = area(1);
    let stream = read_only(space, start, 1, &[branch::REPEAT_TLBI]);
    let mut expected = invalidation(start, 1);
    let repeated = Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None));
    expected.splice(3..3, [Operation::Tlbi(repeated), Operation::DsbIsh]);
    assert_eq!(stream, expected);
}

#[test]
fn where_the_caches_keep_themselves_coherent_the_order_of_stores_is_enough() {
    let (space, start, _) = area(1);
    let stream = host::with(&[branch::IDC, branch::DIC], || beside_writes(|| space.set_memory_x(start, 1).unwrap()));
    assert_eq!(stream[0], Operation::DmbIshst);
    assert_eq!(stream[1..], invalidation(start, 1));
}

/// DSBs and ISBs of `nx`, `x`, `rox` and of code that becomes valid, of two pages: what docs/ARCHITECTURE.md states.
#[test]
fn the_barriers_of_a_call_are_as_stated() {
    const IDC: u16 = branch::IDC;
    const DIC: u16 = branch::DIC;
    const ERRATUM: u16 = branch::REPEAT_TLBI;
    for (features, expected) in [
        (&[IDC, DIC][..], [(2, 1), (2, 1), (4, 2), (1, 1)]),
        (&[IDC, DIC, ERRATUM], [(3, 1), (3, 1), (6, 2), (1, 1)]),
        (&[], [(2, 1), (4, 1), (6, 2), (9, 3)]),
        (&[ERRATUM], [(3, 1), (5, 1), (8, 2), (11, 3)]),
        (&[IDC], [(2, 1), (4, 1), (6, 2), (3, 1)]),
        (&[DIC], [(2, 1), (3, 1), (5, 2), (8, 3)]),
    ] {
        let (space, start, _) = area(2);
        let barriers = |call: &dyn Fn()| {
            let stream = host::with(features, || record(call));
            let is_dsb = |operation: &&Operation| matches!(operation, Operation::DsbIshst | Operation::DsbIsh);
            let isbs = stream.iter().filter(|operation| matches!(operation, Operation::Isb)).count();
            (stream.iter().filter(is_dsb).count(), isbs)
        };
        let x = barriers(&|| space.set_memory_x(start, 2).unwrap());
        let nx = barriers(&|| space.set_memory_nx(start, 2).unwrap());
        space.set_memory_rw(start, 2).unwrap();
        let rox = barriers(&|| space.set_memory_rox(start, 2).unwrap());
        space.set_memory_valid(start, 2, Validity::Invalid).unwrap();
        let valid = barriers(&|| space.set_memory_valid(start, 2, Validity::Valid).unwrap());
        assert_eq!([nx, x, rox, valid], expected, "{features:?}");
    }
}
