//! Leaves that are split while others use them: by two owners at once, with the TLBs full of the large leaf.
//!
//! As soon as a call has returned, a walker may go through all that belonged together, and finds nothing old for the
//! pages of the caller: neither a permission of before nor, in the end, another owner's page changed. Each scenario
//! runs with the lock around splits and without it, by atomic steps: with at most two preemptions, and with one where a
//! walk and a change take many steps.

use granule_arch::addr::VirtAddr;
use granule_loom::{Cpu, Machine, SplitLock, pages};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Change, Entries, Geometry, Lazy, Lockless, RefuseSplits, Serialise, Split, Tiny, WholeLeaves};

use crate::{assert_caught, orders, without};

/// How splits are kept apart.
trait How {
    type Serialise<'m>: Serialise;
    fn on(cpu: Cpu<'_>) -> Self::Serialise<'_>;
}

/// A lock around them.
struct Lock;

impl How for Lock {
    type Serialise<'m> = SplitLock<'m>;
    fn on(cpu: Cpu<'_>) -> SplitLock<'_> {
        cpu.split_lock()
    }
}

/// Atomic steps.
struct Steps;

impl How for Steps {
    type Serialise<'m> = Lockless;
    fn on(_: Cpu<'_>) -> Lockless {
        Lockless
    }
}

/// Neither: what `lab=plain-split` does on the target.
struct Nothing;

impl How for Nothing {
    type Serialise<'m> = Self;
    fn on(_: Cpu<'_>) -> Self {
        Self
    }
}

// SAFETY: `Unguarded` promises nothing.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Nothing {
    type Section<'a> = ();

    fn entries(&self) -> Entries {
        Entries::Unguarded
    }
    fn begin(&self) {}
}

/// The owner of `count` pages from `first` on makes them read-only; then the pages of `around` are looked up, for which
/// a TLB might keep what these were.
fn change<H: How>(cpu: Cpu<'_>, first: u64, count: usize, around: &[u64]) {
    let (lazy, range) = (Lazy::new(&cpu), pages(first, count));
    let flush = cpu
        .tables()
        .update(&lazy, range, Change::READ_ONLY, Split::new(&H::on(cpu), &mut { cpu }))
        .expect("the pages are mapped, and there are tables");
    lazy.invalidate(&KernelTlb, [flush]);
    cpu.access(around);
    cpu.assert_nothing_stale(range);
}

/// Maps pages by the largest leaf, which all CPUs have looked up.
fn leaf(cpu: Cpu<'_>, count: usize) {
    cpu.map_largest(0, count);
    cpu.access(&[0]);
}

/// Asserts that of the `count` pages from 0 on those of `read_only` are that, and no other, in leaves of `sizes` pages,
/// and that the TLBs know.
fn assert_changed(machine: &Machine, count: usize, read_only: &[u64], sizes: &[u64]) {
    let cpu = machine.cpu(0);
    for page in 0..count as u64 {
        assert!(cpu.look(page), "page {page} was lost");
        let found = cpu.tables().translate(VirtAddr(page << Tiny::PAGE_SHIFT)).expect("just seen");
        assert_eq!(found.descriptor.is_writable(), !read_only.contains(&page), "the change of page {page} was lost");
        assert_eq!(found.leaf_size >> Tiny::PAGE_SHIFT, sizes[page as usize], "the leaf of page {page}");
    }
    cpu.assert_nothing_stale(pages(0, count));
}

/// Two owners of a page each of one contiguous group.
fn two_owners_of_a_group<H: How>(machine: fn() -> Machine) {
    orders(
        2,
        machine,
        |cpu| leaf(cpu, 2),
        [|cpu| change::<H>(cpu, 0, 1, &[0, 1]), |cpu| change::<H>(cpu, 1, 1, &[0, 1])],
        |machine| assert_changed(machine, 2, &[0, 1], &[1, 1]),
    );
}

#[test]
fn two_owners_split_a_group_by_atomic_steps() {
    two_owners_of_a_group::<Steps>(without!(Nothing, 1));
}

#[test]
fn two_owners_split_a_group_under_the_lock() {
    two_owners_of_a_group::<Lock>(without!(Nothing, 1));
}

/// The lock is what keeps them apart.
#[test]
fn two_owners_who_split_a_group_plainly_are_caught() {
    assert_caught("the change of page", || two_owners_of_a_group::<Nothing>(without!(Nothing, 1)));
}

#[test]
fn a_bit_cleared_in_two_steps_is_caught() {
    assert_caught("the change of page", || two_owners_of_a_group::<Steps>(without!(AtomicClear, 1)));
}

/// The last entry was seen clear, the one before it not.
#[test]
fn a_last_entry_cleared_without_a_barrier_is_caught() {
    for group in [two_owners_of_a_group::<Steps>, two_owners_of_a_group::<Lock>] {
        assert_caught("may be translated by", || group(without!(DmbIshst, 1)));
    }
}

/// As [`two_owners_of_a_group`], one level up, where the group is one of blocks.
fn two_owners_of_a_group_of_blocks<H: How>(machine: fn() -> Machine) {
    orders(
        1,
        machine,
        |cpu| leaf(cpu, 8),
        [|cpu| change::<H>(cpu, 0, 4, &[0, 4]), |cpu| change::<H>(cpu, 4, 4, &[0, 4])],
        |machine| assert_changed(machine, 8, &[0, 1, 2, 3, 4, 5, 6, 7], &[4; 8]),
    );
}

#[test]
fn two_owners_split_a_group_of_blocks() {
    two_owners_of_a_group_of_blocks::<Steps>(without!(Nothing, 0));
    two_owners_of_a_group_of_blocks::<Lock>(without!(Nothing, 0));
}

#[test]
fn two_owners_who_split_a_group_of_blocks_plainly_are_caught() {
    assert_caught("the change of page", || two_owners_of_a_group_of_blocks::<Nothing>(without!(Nothing, 0)));
}

/// Two owners of half a block each.
fn two_owners_of_a_block<H: How>(machine: fn() -> Machine) {
    orders(
        2,
        machine,
        |cpu| leaf(cpu, 4),
        [|cpu| change::<H>(cpu, 0, 2, &[0, 2]), |cpu| change::<H>(cpu, 2, 2, &[0, 2])],
        |machine| {
            assert_changed(machine, 4, &[0, 1, 2, 3], &[2; 4]);
            assert_eq!(machine.tables(), 1, "one table serves both, and the other was given back");
        },
    );
}

#[test]
fn two_owners_split_a_block_by_compare_exchange() {
    two_owners_of_a_block::<Steps>(without!(Nothing, 2));
}

#[test]
fn two_owners_split_a_block_under_the_lock() {
    two_owners_of_a_block::<Lock>(without!(Nothing, 2));
}

/// The second link takes the first table away, with what was changed in it.
#[test]
fn a_block_linked_plainly_or_in_two_steps_is_caught() {
    assert_caught("the change of page", || two_owners_of_a_block::<Nothing>(without!(Nothing, 2)));
    assert_caught("the change of page", || two_owners_of_a_block::<Steps>(without!(AtomicExchange, 2)));
}

#[test]
fn a_table_linked_before_it_is_filled_is_caught() {
    for block in [two_owners_of_a_block::<Steps>, two_owners_of_a_block::<Lock>] {
        assert_caught("in a table that is none", || block(without!(DmbIshst, 2)));
    }
}

/// From the group of blocks down to a page on one side; the whole block beside it changes in place on the other.
fn a_page_and_a_block_of_a_group<H: How>(machine: fn() -> Machine) {
    orders(
        1,
        machine,
        |cpu| leaf(cpu, 8),
        [|cpu| change::<H>(cpu, 3, 1, &[2, 4]), |cpu| change::<H>(cpu, 4, 4, &[0, 4])],
        |machine| assert_changed(machine, 8, &[3, 4, 5, 6, 7], &[2, 2, 1, 1, 4, 4, 4, 4]),
    );
}

#[test]
fn a_page_is_split_off_while_the_block_beside_it_changes_in_place() {
    a_page_and_a_block_of_a_group::<Steps>(without!(Nothing, 1));
    a_page_and_a_block_of_a_group::<Lock>(without!(Nothing, 1));
}

/// One CPU only splits; the neighbour changes its page, and changes it again when nothing is left to split.
fn a_split_beside_a_neighbours_changes<H: How>(machine: fn() -> Machine) {
    let splits =
        |cpu: Cpu<'_>| _ = cpu.tables().split(pages(0, 1), &H::on(cpu), &mut { cpu }).expect("no table is needed");
    let changes = |cpu: Cpu<'_>| {
        change::<H>(cpu, 1, 1, &[0, 1]);
        let lazy = Lazy::new(&cpu);
        let flush = cpu.tables().update(&lazy, pages(1, 1), Change::INVALID, RefuseSplits).expect("the group is split");
        lazy.invalidate(&KernelTlb, [flush]);
        cpu.access(&[0]);
        cpu.assert_nothing_stale(pages(1, 1));
    };
    orders(
        2,
        machine,
        |cpu| leaf(cpu, 2),
        [splits, changes],
        |machine| {
            let cpu = machine.cpu(0);
            let at = |page: u64| cpu.tables().translate(VirtAddr(page << Tiny::PAGE_SHIFT)).expect("still described");
            assert!(at(0).valid && at(0).descriptor.is_writable() && at(0).leaf_size == Tiny::PAGE_SIZE);
            assert!(!at(1).valid && !at(1).descriptor.is_writable(), "the change of page 1 was lost");
            cpu.assert_nothing_stale(pages(0, 2));
        },
    );
}

#[test]
fn a_split_leaves_the_neighbours_plain_changes_alone() {
    a_split_beside_a_neighbours_changes::<Steps>(without!(Nothing, 1));
    a_split_beside_a_neighbours_changes::<Lock>(without!(Nothing, 1));
}

#[test]
fn a_plain_split_beside_a_neighbours_change_is_caught() {
    assert_caught("the change of page 1", || a_split_beside_a_neighbours_changes::<Nothing>(without!(Nothing, 1)));
}

/// A CPU walks through what another splits: it finds every page, in the one leaf or the other.
fn a_walker_beside_a_split<H: How>(machine: fn() -> Machine) {
    let walks = |cpu: Cpu<'_>| {
        for page in [0, 3] {
            assert!(cpu.look(page), "page {page} was lost");
            cpu.access(&[page]);
        }
    };
    orders(
        2,
        machine,
        |cpu| leaf(cpu, 4),
        [|cpu| change::<H>(cpu, 0, 1, &[1]), walks],
        |machine| {
            assert_changed(machine, 4, &[0], &[1, 1, 2, 2]);
        },
    );
}

#[test]
fn a_walker_finds_every_page_while_a_block_is_split() {
    a_walker_beside_a_split::<Steps>(without!(Nothing, 1));
    a_walker_beside_a_split::<Lock>(without!(Nothing, 1));
}

#[test]
fn a_walker_that_comes_to_a_table_before_its_entries_is_caught() {
    for walk in [a_walker_beside_a_split::<Steps>, a_walker_beside_a_split::<Lock>] {
        assert_caught("in a table that is none", || walk(without!(DmbIshst, 1)));
    }
}

/// The objection that x86 answers by `cpa_lock`: a CPU whose TLB has the large leaf changes a part of it, while another
/// splits and changes the rest. Here the block has become a table already, without an invalidation.
fn a_stale_large_leaf<H: How>(owner: fn(Cpu<'_>)) {
    let before = |cpu: Cpu<'_>| {
        leaf(cpu, 4);
        cpu.tables().split(pages(0, 2), &H::on(cpu), &mut { cpu }).expect("there is a table");
    };
    orders(2, without!(Nothing, 1), before, [owner, |cpu| change::<H>(cpu, 2, 1, &[0, 2, 3])], |machine| {
        assert_changed(machine, 4, &[0, 1, 2], &[2, 2, 1, 1]);
    });
}

#[test]
fn a_cpu_with_a_stale_large_leaf_changes_its_part_while_another_splits() {
    // The part is a whole group, so there is nothing to split, and no lock to take.
    a_stale_large_leaf::<Steps>(|cpu| change::<Steps>(cpu, 0, 2, &[0, 2, 3]));
    a_stale_large_leaf::<Lock>(|cpu| change::<Lock>(cpu, 0, 2, &[0, 2, 3]));
}

/// The entries are pages now, but a TLB may have the block: an invalidation of pages leaves that.
#[test]
fn a_level_hint_for_what_was_split_is_caught() {
    assert_caught("may be translated by", || {
        a_stale_large_leaf::<Steps>(|cpu| {
            let lazy = Lazy::new(&cpu);
            let flush = cpu.tables().update(&lazy, pages(0, 2), Change::READ_ONLY, WholeLeaves).expect("a whole group");
            lazy.invalidate(&KernelTlb, [flush]);
            cpu.assert_nothing_stale(pages(0, 2));
        });
    });
}

/// So does a change of a part without an invalidation: the small leaf is read-only, the large one is not.
#[test]
fn a_change_of_a_part_without_invalidation_is_caught() {
    assert_caught("may be translated by", || {
        a_stale_large_leaf::<Steps>(|cpu| {
            let lazy = Lazy::new(&cpu);
            let flush =
                cpu.tables().update(&lazy, pages(0, 2), Change::READ_ONLY, RefuseSplits).expect("a whole group");
            flush.defer();
            cpu.assert_nothing_stale(pages(0, 2));
        });
    });
}
