//! Areas by themselves: which gap a mapping gets, and that no record is lost whatever is cut, merged and taken out.

use std::collections::BTreeSet;

use granule_pgtable::PageRange;
use proptest::prelude::*;

use super::*;
use crate::mm::space::Commitment;
use crate::mm::space::area::SEARCH_START;
use crate::mm::space::area::pools::Spares;
use crate::mm::space::area::tree::Areas;
use crate::mm::space::limits::{MOST_STACK_GAP, STACK_GAP, SpaceLimits, Terms};
use crate::mm::space::range::STACK_GUARD;

/// The pages that the kernel may choose: 64. Below are as many for requests by address.
const WINDOW: u64 = 64;

fn page(number: u64) -> VirtAddr {
    SEARCH_START + number * PAGE - WINDOW * PAGE
}

fn range(first: u64, pages: u64) -> PageRange {
    PageRange::from_pages(page(first), pages as usize).unwrap()
}

/// The free pages in runs of neighbours, as first page and count, from the first that the kernel may choose on.
fn free_runs(taken: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for free in (WINDOW..2 * WINDOW).filter(|page| !taken.contains(page)) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == free => *count += 1,
            _ => runs.push((free, 1)),
        }
    }
    runs
}

/// At the top of the smallest gap that has `pages` pages; of several, the lowest. The one after the last area is only
/// used where no other will do.
fn expected_gap(taken: &BTreeSet<u64>, pages: u64) -> Option<VirtAddr> {
    let runs = free_runs(taken);
    let is_last = |run: &&(u64, u64)| run.0 + run.1 == 2 * WINDOW;
    let inner = runs.iter().filter(|run| run.1 >= pages && !is_last(run)).min_by_key(|run| (run.1, run.0));
    let (first, count) = inner.or_else(|| runs.iter().find(is_last).filter(|run| run.1 >= pages))?;
    Some(page(first + count - pages))
}

#[test]
fn below_a_stack_the_kernel_leaves_its_guard_free() {
    let rig = Rig::new(2);
    let space = rig.space();
    let stack = VirtAddr(0x10_0000_0000);
    let request = MapRequest { placement: Placement::Stack(stack), ..private(4) };
    assert_eq!(space.mmap(&rig.cpu, &request), Ok(stack));
    let chosen = space.mmap(&rig.cpu, &private(1)).unwrap();
    assert_eq!(chosen + PAGE, stack + 4 * PAGE - STACK_GAP, "the only gap that is not behind the last area");
    // A child's stack is one as well, and nothing becomes a part of it.
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(child.mmap(&rig.cpu, &private(1)), Ok(chosen - PAGE));
    let beside = MapRequest { placement: Placement::Fixed(stack - PAGE), ..private(1) };
    assert_eq!(space.mmap(&rig.cpu, &beside), Ok(stack - PAGE));
    let mut starts = Vec::new();
    space.for_each_area(|area| starts.push(area.start()));
    assert_eq!(starts, [chosen, stack - PAGE, stack]);
}

/// As Linux's `mmap_base` stays where it is, and `stack_guard_gap` goes with an area that grows.
#[test]
fn the_room_below_a_stack_ends_where_it_did_when_the_stack_begins_elsewhere() {
    for stack in [0, STACK_GAP, 3 * STACK_GAP] {
        let rig = Rig::new(2);
        let space = rig.space();
        let start = VirtAddr(0x10_0000_0000);
        let request = MapRequest { placement: Placement::Stack(start), ..private(16) };
        let limits = SpaceLimits { stack, ..SpaceLimits::NONE };
        space.mmap_within(&rig.cpu, &request, &Terms { limits, ..Terms::NONE }, &|| false).unwrap();
        let chosen = || {
            let address = space.mmap(&rig.cpu, &private(1)).unwrap();
            space.munmap(&rig.cpu, address, PAGE).unwrap();
            space.read_all_areas().check();
            address
        };
        let base = chosen();
        space.munmap(&rig.cpu, start, 4 * PAGE).unwrap();
        assert_eq!(chosen(), base, "without its first pages");
        space.munmap(&rig.cpu, start + 6 * PAGE, PAGE).unwrap();
        space.munmap(&rig.cpu, start + 4 * PAGE, 2 * PAGE).unwrap();
        assert_eq!(chosen(), base, "without those below a hole");
        space.grow_stack(start + 2 * PAGE, &SpaceLimits::NONE).unwrap();
        assert_eq!(chosen(), base, "and longer again");
        let child = space.fork(&rig.cpu).unwrap();
        assert_eq!(child.mmap(&rig.cpu, &private(1)), Ok(base));
    }
}

#[test]
fn below_an_area_that_grows_a_guard_stays_free_wherever_it_begins() {
    let rig = Rig::new(2);
    let space = rig.space();
    let start = VirtAddr(0x10_0000_0000);
    let request = MapRequest { placement: Placement::Fixed(start), ..private(16) };
    space.mmap_within(&rig.cpu, &request, &Terms { grows: true, ..Terms::NONE }, &|| false).unwrap();
    let below = |from: VirtAddr| {
        let address = space.mmap(&rig.cpu, &private(1)).unwrap();
        assert_eq!(address + PAGE, from - STACK_GUARD);
        space.munmap(&rig.cpu, address, PAGE).unwrap();
        space.read_all_areas().check();
    };
    below(start);
    space.grow_stack(start - 300 * PAGE, &SpaceLimits::NONE).unwrap();
    below(start - 300 * PAGE);
    space.munmap(&rig.cpu, start - 300 * PAGE, 301 * PAGE).unwrap();
    below(start + PAGE);
}

/// By the limit of the stack, and by more for a program whose addresses are random: the least, the most, and beyond.
#[test]
fn below_a_stack_the_kernel_leaves_room_by_its_limit() {
    const SIZE: u64 = 8 << 20;
    const GIB: u64 = 1 << 30;
    let end = USER_END - 0x2000;
    for (stack, room) in [
        (0, STACK_GAP),
        (SIZE, STACK_GAP),
        (STACK_GAP - STACK_GUARD, STACK_GAP),
        (STACK_GAP, STACK_GAP + STACK_GUARD),
        (STACK_GAP + 1, STACK_GAP + STACK_GUARD),
        (GIB - 1, GIB + STACK_GUARD - PAGE),
        (u64::MAX, MOST_STACK_GAP - MOST_STACK_GAP % PAGE),
    ] {
        for more in [0, PAGE, GIB - PAGE] {
            let rig = Rig::new(2);
            let space = rig.space();
            let request = MapRequest { placement: Placement::Stack(end - SIZE), bytes: SIZE, ..private(1) };
            let limits = SpaceLimits { stack, ..SpaceLimits::NONE };
            let terms = Terms { limits, commitment: Commitment::ANY, ..Terms::NONE };
            space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
            space.widen_guard(end - SIZE, more);
            space.read_all_areas().check();
            assert_eq!(space.mmap(&rig.cpu, &private(1)), Ok(end - room - more - PAGE), "{stack:#x} {more:#x}");
            // The stack grows in it, which changes nothing.
            space.grow_stack(end - SIZE - PAGE, &SpaceLimits::NONE).unwrap();
            let child = space.fork(&rig.cpu).unwrap();
            assert_eq!(child.mmap(&rig.cpu, &private(1)), Ok(end - room - more - 2 * PAGE), "{stack:#x} {more:#x}");
        }
    }
}

proptest! {
    #[test]
    fn a_mapping_gets_the_smallest_gap_that_is_large_enough(
        steps in prop::collection::vec((any::<bool>(), 0..2 * WINDOW, 1..9_u64, 0..3_usize), 1..60)
    ) {
        let rig = Rig::new(2);
                let mut areas = Areas::new(page(0), page(2 * WINDOW));
        let mut taken = BTreeSet::new();
        for (take, first, pages, protection) in steps {
            let pages = pages.min(2 * WINDOW - first);
            let range = range(first, pages);
            let mut spares = Spares::take(&rig.cpu, &rig.spaces.areas, 2, false).unwrap();
            if let Some(first) = areas.first_touching(range) {
                areas.remove(first, range, &mut spares);
            }
            if take {
                let protection = [Protection::NONE, Protection::READ, READ_WRITE][protection];
                let held = areas.insert(spares.make(Area::new(range, protection, None)));
                areas.merge(held);
                taken.extend(first..first + pages);
            } else {
                taken.retain(|page| !(first..first + pages).contains(page));
            }
            drop(spares);
            prop_assert_eq!(rig.spaces.counts()[1], areas.iter().count());
            areas.check();
            for pages in [1, 2, 3, 7, 20, WINDOW, WINDOW + 1] {
                prop_assert_eq!(areas.gap(pages * PAGE), expected_gap(&taken, pages), "{} pages", pages);
            }
        }
        drop(areas);
        prop_assert_eq!(rig.spaces.counts()[1], 0);
    }
}
