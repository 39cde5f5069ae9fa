//! Long sequences of calls against a plain map of page → permissions, and every leaf compared after each.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_pgtable::{Leaves, PageRange};
use proptest::prelude::*;

use super::super::policy::{Policy, SplitMode};
use super::super::set_memory::{SetMemoryError, Validity};
use super::{PAGE, space};
use crate::mm::layout;

/// The permissions of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    writable: bool,
    executable: bool,
    valid: bool,
}

const FRESH: Page = Page { writable: true, executable: false, valid: true };

#[derive(Clone, Copy, Debug)]
enum Call {
    Ro,
    Rw,
    X,
    Nx,
    Rox,
    Valid,
    Invalid,
}

impl Call {
    /// The page after the call; `None` where it would be writable and executable.
    fn apply(self, page: Page) -> Option<Page> {
        let after = match self {
            Self::Ro => Page { writable: false, ..page },
            Self::Rw => Page { writable: true, ..page },
            Self::X => Page { executable: true, ..page },
            Self::Nx => Page { executable: false, ..page },
            Self::Rox => Page { writable: false, executable: true, ..page },
            Self::Valid => Page { valid: true, ..page },
            Self::Invalid => Page { valid: false, ..page },
        };
        (!(after.writable && after.executable)).then_some(after)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Vmalloc(u64),
    /// Frees the n-th area, modulo how many there are.
    Vfree(usize),
    /// Changes pages of the n-th area, from an offset before its start to one after its end.
    Change(Call, usize, u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let call = prop_oneof![
        3 => Just(Call::Ro),
        1 => Just(Call::Rw),
        2 => Just(Call::X),
        1 => Just(Call::Nx),
        1 => Just(Call::Rox),
        1 => Just(Call::Valid),
        1 => Just(Call::Invalid),
    ];
    let pages = || prop_oneof![4 => 1..8_u64, 2 => 10..50_u64, 1 => 500..530_u64];
    let step = prop_oneof![
        2 => pages().prop_map(Step::Vmalloc),
        1 => any::<usize>().prop_map(Step::Vfree),
        6 => (call, any::<usize>(), 0..8_u64, pages())
            .prop_map(|(call, area, skip, pages)| Step::Change(call, area, skip, pages)),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_space_is_what_a_map_of_its_pages_says(steps in steps(), large in any::<bool>()) {
        let (space, frames, cpu) = space(if large { 48 } else { 16 });
        if large {
            let (split, area_leaves) = (SplitMode::Lock, Leaves::Largest);
            space.set_policy(Policy { split, area_leaves, ..Policy::UNDECIDED });
        }
        let empty = frames.stats().used - space.kept_frames();
        let mut areas: Vec<(VirtAddr, u64)> = Vec::new();
        let mut pages: BTreeMap<u64, Page> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Vmalloc(count) => {
                    if let Ok(area) = space.vmalloc(&cpu, count) {
                        areas.push((area.start(), count));
                        let own = (0..count).map(|page| (area.start() + page * PAGE).0);
                        // A hole at either side, and nothing of it taken.
                        for page in own.clone().chain([area.start().0 - PAGE, area.start().0 + count * PAGE]) {
                            prop_assert!(!pages.contains_key(&page));
                        }
                        pages.extend(own.map(|page| (page, FRESH)));
                    }
                }
                Step::Vfree(which) if !areas.is_empty() => {
                    let (start, count) = areas.swap_remove(which % areas.len());
                    prop_assert_eq!(space.vfree_at(&cpu, start), Ok(count));
                    pages.retain(|&page, _| page < start.0 || page >= start.0 + count * PAGE);
                }
                Step::Change(call, which, skip, count) if !areas.is_empty() => {
                    let (area, area_pages) = areas[which % areas.len()];
                    let start = area + skip.min(area_pages) * PAGE;
                    let range = (0..count).map(|page| (start + page * PAGE).0);
                    let changed: Result<Vec<_>, _> = range
                        .map(|page| match pages.get(&page) {
                            None => Err(SetMemoryError::GuardPage { guard: VirtAddr(page), area }),
                            Some(old) => call
                                .apply(*old)
                                .map(|new| (page, new))
                                .ok_or(SetMemoryError::WritableAndExecutable(VirtAddr(page))),
                        })
                        .collect();
                    let result = match call {
                        Call::Ro => space.set_memory_ro(start, count),
                        Call::Rw => space.set_memory_rw(start, count),
                        Call::X => space.set_memory_x(start, count),
                        Call::Nx => space.set_memory_nx(start, count),
                        Call::Rox => space.set_memory_rox(start, count),
                        Call::Valid => space.set_memory_valid(start, count, Validity::Valid),
                        Call::Invalid => space.set_memory_valid(start, count, Validity::Invalid),
                    };
                    match changed {
                        Ok(changed) => {
                            prop_assert_eq!(result, Ok(()));
                            pages.extend(changed);
                        }
                        Err(refusal) => prop_assert_eq!(result, Err(refusal)),
                    }
                }
                Step::Vfree(_) | Step::Change(..) => {}
            }
            let mut used = BTreeSet::new();
            for (&address, page) in &pages {
                let Some(found) = space.tables().translate(VirtAddr(address)) else {
                    return Err(TestCaseError::fail("a page of an area is not mapped"));
                };
                let leaf = found.descriptor;
                let found_page =
                    Page { writable: leaf.is_writable(), executable: leaf.is_executable(), valid: found.valid };
                prop_assert_eq!(found_page, *page);
                prop_assert!(used.insert(found.physical), "a frame with two addresses");
            }
            let window = PageRange::new(layout::VMALLOC_START, layout::VMALLOC_END - layout::VMALLOC_START).unwrap();
            prop_assert_eq!(space.tables().dump(window, |_| ()).bytes(), pages.len() as u64 * PAGE);
            prop_assert_eq!(frames.stats().used - space.kept_frames(), empty + pages.len());
        }
    }
}
