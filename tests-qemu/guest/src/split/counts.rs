//! Resources that a split takes, and nothing else takes: locks, tables, barriers.

use granule::mm::kernel::policy::SplitMode;
use granule::mm::kernel::split::SplitCounts;

use super::{BLOCK_PAGES, Block, GROUP_PAGES, make_invalid, make_valid, space};
use crate::harness::{Test, target_test};

/// The splits that `call` has done, and how often it took the lock.
pub(crate) fn split_by(call: impl FnOnce()) -> SplitCounts {
    let before = space().split_counts();
    call();
    let after = space().split_counts();
    SplitCounts {
        locked: after.locked - before.locked,
        contended: after.contended - before.contended,
        retries: after.retries - before.retries,
        blocks: core::array::from_fn(|level| after.blocks[level] - before.blocks[level]),
        groups: core::array::from_fn(|level| after.groups[level] - before.groups[level]),
        of_areas: after.of_areas - before.of_areas,
        stops: after.stops - before.stops,
        refused: after.refused - before.refused,
    }
}

/// Those that a call splits once each, with the lock if there is one.
fn once(blocks: [u64; 4], groups: [u64; 4]) -> SplitCounts {
    let locked = u64::from(space().policy().split == SplitMode::Lock);
    SplitCounts { locked, blocks, groups, ..SplitCounts::default() }
}

target_test!(a_split_takes_the_lock_once_and_nothing_else_takes_it, needs("split"));
fn a_split_takes_the_lock_once_and_nothing_else_takes_it(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let group_of_blocks = u64::from(block.translation(0).is_some_and(|found| found.leaf_size > BLOCK_PAGES << 12));
    let off = |first, pages| assert_eq!(make_invalid(block.page(first), pages), Ok(()));
    let on = |first, pages| assert_eq!(make_valid(block.page(first), pages), Ok(()));
    let of_blocks = if group_of_blocks != 0 { once([0; 4], [0, 0, 1, 0]) } else { SplitCounts::default() };
    t.equal("a whole block", split_by(|| off(0, BLOCK_PAGES)), of_blocks);
    t.equal("again", split_by(|| on(0, BLOCK_PAGES)), SplitCounts::default());
    t.equal("its first page", split_by(|| off(0, 1)), once([0, 0, 1, 0], [0, 0, 0, 1]));
    t.equal("again", split_by(|| on(0, 1)), SplitCounts::default());
    t.equal("another of the group", split_by(|| off(5, 1)), SplitCounts::default());
    t.equal("a whole group", split_by(|| off(GROUP_PAGES, GROUP_PAGES)), SplitCounts::default());
    t.equal("over two ends", split_by(|| off(3 * GROUP_PAGES - 1, GROUP_PAGES)), once([0; 4], [0, 0, 0, 2]));
    t.equal("what is as it shall be", split_by(|| off(GROUP_PAGES + 1, 1)), SplitCounts::default());
    t.equal("all", split_by(|| on(0, BLOCK_PAGES)), SplitCounts::default());
    block.free(t);
}

target_test!(a_part_of_a_leaf_is_refused_and_counted, needs("refuse"));
fn a_part_of_a_leaf_is_refused_and_counted(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let before = block.translation(0);
    let refused = SplitCounts { refused: 3, ..SplitCounts::default() };
    let calls = || {
        for (first, pages) in [(0, 1), (GROUP_PAGES, GROUP_PAGES), (1, BLOCK_PAGES - 1)] {
            assert!(make_invalid(block.page(first), pages).is_err());
        }
    };
    t.equal("parts", split_by(calls), refused);
    t.equal("the leaf is as it was", block.translation(0), before);
    block.free(t);
}
