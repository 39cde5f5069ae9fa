//! Changes of the linear map: pages and blocks that nothing has to be split for, and what a split costs.

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::set_memory::Validity;
use granule::mm::layout;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_pgtable::PageRange;

use crate::harness::{Bench, PAGES, bench};

/// Pages of a block of 2 MiB.
pub(crate) const BLOCK_PAGES: u64 = 512;
/// Pages of a contiguous group.
pub(crate) const GROUP_PAGES: u64 = 16;
/// Blocks of a contiguous group.
const GROUP_BLOCKS: u64 = 16;
/// Sizes of rows whose unit is the block.
const BLOCKS: [u64; 5] = [1, 8, 16, 64, 128];

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// 2^order page blocks, as the linear map shows them.
pub(crate) struct Blocks {
    physical: PhysAddr,
    order: u32,
}

impl Blocks {
    pub(crate) fn take(order: u32) -> Self {
        let physical = granule::kernel().frames.alloc_blocks(this_cpu(), order).expect("memory for the row");
        Self { physical, order }
    }

    /// Blocks of which no row before has changed a part: what is split stays so.
    pub(crate) fn untouched(order: u32) -> Self {
        let blocks = Self::take(order);
        let leaf = |block| space().tables().translate(blocks.page(block * BLOCK_PAGES)).map(|found| found.leaf_size);
        if (0..1 << order).all(|block| leaf(block) >= Some(BLOCK_PAGES * PAGE)) {
            return blocks;
        }
        let others = Self::untouched(order);
        blocks.give_back();
        others
    }

    /// Blocks of which every page has been changed alone.
    pub(crate) fn by_pages(order: u32) -> Self {
        let blocks = Self::take(order);
        for page in 0..BLOCK_PAGES << order {
            blocks.set(page, 1, Validity::Invalid);
            blocks.set(page, 1, Validity::Valid);
        }
        blocks
    }

    pub(crate) fn frame(&self, page: u64) -> PhysAddr {
        self.physical + page * PAGE
    }

    pub(crate) fn page(&self, page: u64) -> VirtAddr {
        layout::linear(self.frame(page))
    }

    /// Dissolves the contiguous groups of blocks; the blocks stay.
    pub(crate) fn without_groups(self) -> Self {
        for block in 0..1 << self.order {
            self.set(block * BLOCK_PAGES, BLOCK_PAGES, Validity::Invalid);
            self.set(block * BLOCK_PAGES, BLOCK_PAGES, Validity::Valid);
        }
        self
    }

    fn set(&self, first: u64, pages: u64, validity: Validity) {
        space().set_memory_valid(self.page(first), pages, validity).expect("memory of the bench's own");
    }

    pub(crate) fn give_back(self) {
        self.set(0, BLOCK_PAGES << self.order, Validity::Valid);
        granule::kernel().frames.free_blocks(this_cpu(), self.physical, self.order);
    }
}

/// Measures how the first `size` units of `blocks` become `to`, `pages` of them each, and puts them back.
fn row(bench: &mut Bench<'_>, blocks: &Blocks, sizes: &[u64], pages: u64, to: Validity) {
    let from = if to == Validity::Valid { Validity::Invalid } else { Validity::Valid };
    for &size in sizes {
        bench.point(
            size,
            || blocks.set(0, size * pages, from),
            |()| space().set_memory_valid(blocks.page(0), size * pages, to),
            |result| {
                result.expect("memory of the bench's own");
                blocks.set(0, size * pages, Validity::Valid);
            },
        );
    }
}

fn by_page(bench: &mut Bench<'_>, to: Validity) {
    let blocks = Blocks::by_pages(PAGES[PAGES.len() - 1].div_ceil(BLOCK_PAGES).ilog2());
    row(bench, &blocks, &PAGES, 1, to);
    blocks.give_back();
}

bench!(valid_off, "linear_valid/off", "page");
fn valid_off(bench: &mut Bench<'_>) {
    by_page(bench, Validity::Invalid);
}

bench!(valid_on, "linear_valid/on", "page");
fn valid_on(bench: &mut Bench<'_>) {
    by_page(bench, Validity::Valid);
}

fn by_block(bench: &mut Bench<'_>, to: Validity) {
    let blocks = Blocks::take(BLOCKS[BLOCKS.len() - 1].ilog2()).without_groups();
    row(bench, &blocks, &BLOCKS, BLOCK_PAGES, to);
    blocks.give_back();
}

bench!(block_off, "linear_block/off", "block");
fn block_off(bench: &mut Bench<'_>) {
    by_block(bench, Validity::Invalid);
}

bench!(block_on, "linear_block/on", "block");
fn block_on(bench: &mut Bench<'_>) {
    by_block(bench, Validity::Valid);
}

/// Measures the change of one page by `set`: in `blocks`, a page that was never changed before each time, as `page`
/// counts them.
fn first_changes(bench: &mut Bench<'_>, blocks: &Blocks, page: impl Fn(u64) -> u64) {
    let mut next = 0;
    bench.point(
        1,
        || {
            next += 1;
            blocks.page(page(next - 1))
        },
        |page| space().set_memory_valid(page, 1, Validity::Invalid),
        |result| result.expect("memory of the bench's own"),
    );
}

// The first page of a block that was never changed, the first of its contiguous group of blocks: both are split.
bench!(split_block, "split_block", "page");
fn split_block(bench: &mut Bench<'_>) {
    let blocks = Blocks::untouched((4 * GROUP_BLOCKS).ilog2());
    first_changes(bench, &blocks, |nth| nth * GROUP_BLOCKS * BLOCK_PAGES);
    blocks.give_back();
}

// The first page of the next contiguous group of pages in such a block.
bench!(split_group, "split_group", "page");
fn split_group(bench: &mut Bench<'_>) {
    let blocks = Blocks::untouched(0);
    blocks.set(0, 1, Validity::Invalid);
    first_changes(bench, &blocks, |nth| GROUP_PAGES * (nth + 1));
    blocks.give_back();
}

bench!(split_block_lockless, "split_block/lockless", "page", bootargs("split=lockless"));
fn split_block_lockless(bench: &mut Bench<'_>) {
    split_block(bench);
}

bench!(split_group_lockless, "split_group/lockless", "page", bootargs("split=lockless"));
fn split_group_lockless(bench: &mut Bench<'_>) {
    split_group(bench);
}

// On one CPU: what it costs without the wait for others.
bench!(split_block_stopped, "split_block/stop_machine", "page", bootargs("split=stop-machine rodata=off"));
fn split_block_stopped(bench: &mut Bench<'_>) {
    split_block(bench);
}

// A block whose pages are alike, each a leaf of its own. Its neighbour stays pages, so that no group of blocks follows.
bench!(collapse_block, "collapse_block", "block");
fn collapse_block(bench: &mut Bench<'_>) {
    let blocks = Blocks::by_pages(1);
    let range = PageRange::from_pages(blocks.page(0), BLOCK_PAGES as usize).expect("a block's pages");
    bench.point(
        1,
        || {
            for page in 0..BLOCK_PAGES {
                blocks.set(page, 1, Validity::Invalid);
                blocks.set(page, 1, Validity::Valid);
            }
        },
        |()| space().collapse(this_cpu(), range),
        |done| assert_eq!(done.map(|done| done.blocks), Ok([0, 0, 1, 0])),
    );
    blocks.give_back();
}

// One page that others have changed alone before. Nothing is invalidated.
bench!(invalid, "direct_map_invalid", "page");
fn invalid(bench: &mut Bench<'_>) {
    let blocks = Blocks::take(0);
    let frame = blocks.frame(7);
    bench.point(
        1,
        || space().set_direct_map_default_noflush(frame),
        |_| space().set_direct_map_invalid_noflush(frame),
        |result| result.expect("memory of the bench's own"),
    );
    blocks.give_back();
}
