//! Which commands invalidate a range of addresses: the fewest that cover its pages and no other.
//!
//! With range invalidation (IDR3.RIL) a command covers `(NUM + 1) << SCALE` pages, NUM up to 31, from any page on: each
//! number of pages whose one bits lie within five places. The largest such number that a range has room for is
//! more than half of it: so two commands of that length, one that begins where the range begins and one that ends where
//! it ends, cover it. **No range needs more than two.** Without, there is a command for each page, and beyond
//! [`MOST_PAGES`] one for the whole ASID.

use granule_arch::addr::{PAGE_SHIFT, VirtAddr};
use granule_arch::tlbi::Granule;

use crate::{Command, Features, Scope, Span};

/// Without range invalidation: the most pages that are invalidated one by one; for more, the whole ASID is. A command
/// costs this CPU some 25 instructions and the SMMU a fetch; what is lost by the whole ASID are walks, of which a
/// device that uses few pages makes few.
pub const MOST_PAGES: u64 = 64;

/// Pages that are more than any table maps: everything.
const EVERYTHING: u64 = 1 << 35;

/// How the SMMU invalidates ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// By range commands.
    Ranges,
    /// By one command for each page.
    Pages,
}

impl By {
    /// The kind of commands that `features` allow.
    pub(crate) const fn of(features: &Features) -> Self {
        if features.range_invalidation { Self::Ranges } else { Self::Pages }
    }
}

/// A range as range commands have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spans {
    span: Span,
    first: VirtAddr,
    /// Where the second command begins; the same as `first` where there is one.
    second: VirtAddr,
}

impl Spans {
    /// The pages that have a byte in `start..end`; `None` where that is nothing, or everything.
    #[inline(always)]
    pub(crate) fn new(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        let (first, pages) = pages(start, end)?;
        let span = Span::largest(pages);
        // The pages that one command leaves: the bits that it has no room for.
        let rest = pages & ((1 << span.scale()) - 1);
        Some(Self { span, first, second: first + (rest << PAGE_SHIFT) })
    }

    /// How many commands it is, the CMD_SYNC not counted.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        1 + usize::from(self.first != self.second)
    }

    /// Each of them.
    #[inline(always)]
    pub(crate) fn command(&self, index: usize, asid: u16, scope: Scope) -> Command {
        let at = if index == 0 { self.first } else { self.second };
        Command::tlbi_nh_va_range(asid, at, self.span, Granule::Size4K, None, scope)
    }
}

/// Where the first of the pages is that have a byte in `start..end`, and how many there are; `None` where that is
/// nothing, or everything.
#[inline(always)]
fn pages(start: VirtAddr, end: VirtAddr) -> Option<(VirtAddr, u64)> {
    let pages = (end.0.wrapping_sub(1) >> PAGE_SHIFT).wrapping_sub(start.0 >> PAGE_SHIFT).wrapping_add(1);
    (start < end && pages < EVERYTHING).then_some((start.align_down(1 << PAGE_SHIFT), pages))
}

/// The invalidation of any range by any SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// No page is in the range.
    Nothing,
    /// Everything in the ASID.
    Asid,
    /// By range commands.
    Spans(Spans),
    /// So many pages one by one.
    Pages {
        /// The first.
        first: VirtAddr,
        /// How many.
        count: usize,
    },
}

impl Plan {
    /// For the pages that have a byte in `start..end`.
    pub(crate) fn new(by: By, start: VirtAddr, end: VirtAddr) -> Self {
        match (by, pages(start, end)) {
            (_, None) if start >= end => Self::Nothing,
            (By::Pages, Some((first, count))) if count <= MOST_PAGES => Self::Pages { first, count: count as usize },
            (By::Ranges, Some(_)) => Spans::new(start, end).map_or(Self::Asid, Self::Spans),
            _ => Self::Asid,
        }
    }

    /// How many commands it is, the CMD_SYNC not counted.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Asid => 1,
            Self::Spans(spans) => spans.count(),
            Self::Pages { count, .. } => *count,
        }
    }

    /// Each of them.
    pub(crate) fn command(&self, index: usize, asid: u16, scope: Scope) -> Command {
        match self {
            Self::Nothing => Command::SYNC,
            Self::Asid => Command::tlbi_nh_asid(asid),
            Self::Spans(spans) => spans.command(index, asid, scope),
            Self::Pages { first, .. } => Command::tlbi_nh_va(asid, *first + ((index as u64) << PAGE_SHIFT), scope),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const ASID: u16 = 5;

    /// The pages that a command is for, read from its bits by the words of the specification; `None` for all.
    fn pages(command: Command) -> Option<Vec<u64>> {
        let [low, high] = command.0;
        assert_eq!(low >> 48, u64::from(ASID));
        match low as u8 {
            0x11 => None,
            0x12 if high >> 10 & 3 == 0 => {
                assert_eq!((low >> 12 & 31, low >> 20 & 31, high >> 8 & 3), (0, 0, 0), "{command}");
                Some([high >> 12].into())
            }
            0x12 => {
                let (num, scale, ttl) = (low >> 12 & 31, low >> 20 & 31, high >> 8 & 3);
                assert!((num, scale, ttl) != (0, 0, 0), "{command} is reserved");
                assert_eq!(high >> 10 & 3, 1, "{command} is not of 4 KiB pages");
                Some((high >> 12..).take(((num + 1) << scale) as usize).collect())
            }
            _ => panic!("{command}"),
        }
    }

    fn commands(by: By, start: u64, end: u64, scope: Scope) -> Vec<Command> {
        let plan = Plan::new(by, VirtAddr(start), VirtAddr(end));
        (0..plan.count()).map(|index| plan.command(index, ASID, scope)).collect()
    }

    /// The pages of all commands; `None` for everything.
    fn covered(commands: &[Command]) -> Option<BTreeSet<u64>> {
        commands
            .iter()
            .map(|&command| pages(command))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.concat().into_iter().collect())
    }

    /// Whether so many pages are one command's, by trying all that there are.
    fn is_one(pages: u64) -> bool {
        (0..20).any(|scale| (1..=32).any(|count| count << scale == pages))
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![Just(Scope::Leaves), Just(Scope::Tables)]
    }

    proptest! {
        #[test]
        fn the_fewest_commands_cover_exactly_the_range(
            first in 0u64..1 << 36, count in 1u64..5000, cut in 0u64..4096, scope in scope(),
        ) {
            // Any byte of a page is the whole page.
            let (start, end) = ((first << 12) + cut, ((first + count) << 12) - (4095 - cut) / 2);
            prop_assume!(start < end);
            let by_ranges = commands(By::Ranges, start, end, scope);
            prop_assert_eq!(by_ranges.len(), if is_one(count) { 1 } else { 2 });
            let expected: BTreeSet<u64> = (first..first + count).collect();
            prop_assert_eq!(covered(&by_ranges), Some(expected.clone()));

            let by_pages = commands(By::Pages, start, end, scope);
            if count > MOST_PAGES {
                prop_assert_eq!(by_pages.as_slice(), [Command::tlbi_nh_asid(ASID)]);
            } else {
                prop_assert_eq!(by_pages.len() as u64, count);
                prop_assert_eq!(covered(&by_pages), Some(expected));
            }
            let leaf = u64::from(scope == Scope::Leaves);
            for command in by_ranges.iter().chain(&by_pages).filter(|command| command.0[0] as u8 == 0x12) {
                prop_assert_eq!(command.0[1] & 1, leaf);
            }
        }

        #[test]
        fn long_ranges_are_covered_by_their_ends(first in 0u64..1 << 36, count in 5000u64..EVERYTHING) {
            let found = commands(By::Ranges, first << 12, (first + count) << 12, Scope::Leaves);
            let ends: Vec<(u64, u64)> = found
                .iter()
                .map(|command| {
                    let [low, high] = command.0;
                    (high >> 12, (high >> 12) + (((low >> 12 & 31) + 1) << (low >> 20 & 31)))
                })
                .collect();
            prop_assert_eq!((ends[0].0, ends[ends.len() - 1].1), (first, first + count));
            prop_assert!(ends.len() == 1 || (ends.len() == 2 && ends[1].0 <= ends[0].1 && ends[1].0 >= first));
        }
    }

    #[test]
    fn nothing_and_everything() {
        for by in [By::Ranges, By::Pages] {
            assert!(commands(by, 0x5000, 0x5000, Scope::Tables).is_empty());
            assert!(commands(by, 0x5000, 0x4000, Scope::Tables).is_empty());
            assert_eq!(commands(by, 0, u64::MAX, Scope::Tables), [Command::tlbi_nh_asid(ASID)]);
            assert_eq!(
                commands(by, 0x5000, 0x5001, Scope::Tables),
                [Command::tlbi_nh_va(ASID, VirtAddr(0x5000), Scope::Tables)]
            );
        }
    }

    #[test]
    fn a_longest_call_fits_the_queue() {
        const { assert!(MOST_PAGES < 1 << crate::COMMAND_QUEUE_BITS) };
    }
}
