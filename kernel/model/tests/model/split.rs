//! Leaves that pgtable splits while they are in use: what it promises, and what is reported where a step is missing.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_model::{Access, Event, Fault, Features, Model, Operation, Rule, Sabotage, Step};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{
    Change, Error, Geometry, Granule4K, Granule16K, Granule64K, Lazy, Lockless, PageRange, RefuseSplits, Split, Splits,
    Tiny, WholeLeaves,
};

use crate::{DATA, FRAME, LARGEST, map, range, rules};

/// One leaf of `size` bytes, which both CPUs have seen; where it is.
fn leaf<G: Geometry>(size: u64) -> (Model<G>, VirtAddr) {
    let model = Model::new(2, 16, Features::ALL);
    let start = model.base() + size;
    let frame = PhysAddr(FRAME.0.next_multiple_of(size));
    map(&model, range(start, size), frame, DATA, LARGEST);
    model.assert_clean();
    (model, start)
}

/// Makes `pages` read-only on CPU 0, with `tables` for what has to be split; the invalidation follows.
fn read_only<G: Geometry>(model: &Model<G>, pages: PageRange<G>, tables: usize) -> Result<Splits, Error> {
    let cpu = model.cpu(0);
    let lazy = Lazy::new(&cpu);
    let mut frames = model.frames_limited(tables);
    let mut splitter = Split::new(&Lockless, &mut frames);
    let flush = cpu.page_tables().update(&lazy, pages, Change::READ_ONLY, &mut splitter)?;
    let splits = splitter.splits();
    lazy.invalidate(&KernelTlb, [flush]);
    model.audit(0, pages);
    Ok(splits)
}

/// Every page of the leaf is what it was, but for `changed`: for each CPU, and whatever TLBs hold.
fn assert_only<G: Geometry>(model: &Model<G>, leaf: PageRange<G>, changed: PageRange<G>) {
    model.synchronise();
    let first = model.cpu(0).page_tables().translate(leaf.start()).unwrap().physical;
    let step = (leaf.size() / 64).max(G::PAGE_SIZE) + G::PAGE_SIZE;
    let (before, behind) = (VirtAddr(changed.start().0.wrapping_sub(1)), VirtAddr(changed.last().0.wrapping_add(1)));
    let edges = [changed.start(), changed.last(), before, behind, leaf.start(), leaf.last()];
    let inner = (0..leaf.size()).step_by(step as usize).map(|offset| leaf.start() + offset);
    for address in edges.into_iter().chain(inner).filter(|&address| leaf.contains(address)) {
        let physical = first + (address - leaf.start());
        let write = if changed.contains(address) { Err(Fault::Permission) } else { Ok(physical) };
        for cpu in model.cpus() {
            assert_eq!(cpu.may(address, Access::Read), [Ok(physical)], "{address} by CPU {}", cpu.index());
            assert_eq!(cpu.may(address, Access::Write), [write], "{address} by CPU {}", cpu.index());
        }
    }
}

/// Whether a store to `cell` changes what a walk for `address` may read.
fn is_on_the_way<G: Geometry>(model: &Model<G>, address: VirtAddr, cell: PhysAddr) -> bool {
    let table = cell.align_down(G::PAGE_SIZE);
    model.cpu(0).page_tables().walk(address).any(|step| step.table == table)
}

/// `changed` of a leaf of `size` bytes becomes read-only, after all numbers of tables that are too small.
#[track_caller]
fn change_of_a_leaf<G: Geometry>(size: u64, changed: impl Fn(VirtAddr) -> PageRange<G>, needed: usize) -> Splits {
    let (model, start) = leaf::<G>(size);
    let pages = changed(start);
    for available in 0..needed {
        let refused = || assert_eq!(read_only(&model, pages, available), Err(Error::OutOfTables { needed, available }));
        let events = model.record(refused);
        let changes = |event: &Event| match event.operation {
            Operation::Write { cell, .. } => is_on_the_way(&model, pages.start(), cell),
            _ => false,
        };
        assert!(!events.iter().any(changes), "with {available} tables: {events:?}");
    }
    let splits = read_only(&model, pages, needed).unwrap();
    model.assert_clean();
    assert_only(&model, range(start, size), pages);
    splits
}

/// One page at the ends of a leaf, at the ends of the smaller leaves in it, and in the middle of them.
fn pages_of_a_leaf<G: Geometry>(size: u64, needed: usize) {
    let inner = [0, G::group_size(3), G::entry_size(2), size / 2, size - G::PAGE_SIZE];
    for offset in inner.map(|offset| offset % size) {
        for page in [offset, (offset + 5 * G::PAGE_SIZE) % size] {
            let splits = change_of_a_leaf::<G>(size, |start| range(start + page, G::PAGE_SIZE), needed);
            let tables: usize = splits.blocks.iter().map(|&blocks| usize::from(blocks)).sum();
            assert_eq!(tables, needed, "a page {page:#x} into a leaf of {size:#x} bytes");
        }
    }
}

#[test]
fn one_page_of_every_leaf() {
    pages_of_a_leaf::<Granule4K>(1 << 30, 2);
    pages_of_a_leaf::<Granule4K>(32 << 20, 1);
    pages_of_a_leaf::<Granule4K>(2 << 20, 1);
    pages_of_a_leaf::<Granule4K>(64 << 10, 0);
    pages_of_a_leaf::<Granule16K>(32 << 20, 1);
    pages_of_a_leaf::<Granule16K>(2 << 20, 0);
    pages_of_a_leaf::<Granule64K>(2 << 20, 0);
    pages_of_a_leaf::<Tiny>(32 << 10, 1);
    pages_of_a_leaf::<Tiny>(16 << 10, 1);
    pages_of_a_leaf::<Tiny>(8 << 10, 0);
}

#[test]
fn a_range_with_both_ends_in_the_middle_of_blocks() {
    let from = |first: u64, size: u64| move |start: VirtAddr| range::<Granule4K>(start + first, size);
    // Pages on both sides of one block of 2 MiB, which changes whole; and the same group of blocks lost once.
    let splits = change_of_a_leaf(1 << 30, from(0x1f_f000, 0x20_2000), 3);
    assert_eq!((splits.blocks, splits.groups), ([0, 1, 2, 0], [0, 0, 1, 2]));
    // Blocks only, in two groups.
    let splits = change_of_a_leaf(1 << 30, from(30 << 20, 4 << 20), 1);
    assert_eq!((splits.blocks, splits.groups), ([0, 1, 0, 0], [0, 0, 2, 0]));
    // Groups only.
    let splits = change_of_a_leaf(1 << 30, from(32 << 20, 64 << 20), 1);
    assert_eq!((splits.blocks, splits.groups), ([0, 1, 0, 0], [0; 4]));
    // The whole leaf.
    assert!(change_of_a_leaf(1 << 30, from(0, 1 << 30), 0).is_none());
}

/// A page of a block becomes read-only, with the `nth` operation of its kind sabotaged; what is reported then.
fn story(step: Step, nth: usize, sabotage: Sabotage) -> String {
    let (model, start) = leaf::<Granule4K>(2 << 20);
    model.inject(step, nth, sabotage);
    read_only(&model, range(start + 0x7000, 0x1000), 1).unwrap();
    assert!(model.all_struck());
    let story = model.expect_violation().to_string();
    model.violations();
    story
}

#[test]
fn a_step_that_is_missing_is_told() {
    for sabotage in [Sabotage::Lost, Sabotage::Becomes(Step::Isb)] {
        let story = story(Step::DmbIshst, 0, sabotage);
        assert!(story.contains("is linked while a walk may find in it what was there before"), "{story}");
    }
    // The table and the bits are not drained either, so that any walk may go by the block.
    assert!(story(Step::DsbIshst, 0, Sabotage::Lost).contains("came before a DSB ISHST made"));
    assert!(story(Step::Tlbi, 0, Sabotage::Lost).contains("missing: TLBI"));
    assert!(story(Step::DsbIsh, 0, Sabotage::Lost).contains("missing: DSB ISH on CPU 0"));
}

#[test]
fn a_split_itself_issues_nothing_but_the_barrier_in_front_of_a_link_and_of_the_last_entry() {
    let (model, start) = leaf::<Granule4K>(1 << 30);
    let cpu = model.cpu(0);
    let events = model.record(|| {
        let pages = range(start + 0x20_7000, 0x1000);
        cpu.page_tables().split(pages, &Lockless, &mut model.frames()).unwrap();
    });
    let stores = |event: &&Event| matches!(event.operation, Operation::Write { .. } | Operation::FrameTaken(_));
    let others: Vec<_> = events.iter().filter(|event| !stores(event)).map(|event| event.operation).collect();
    // Two tables and two groups.
    assert_eq!(others, [Operation::DmbIshst; 4]);
    model.audit(0, range(start, 1 << 30));
}

/// A page of a block that was split becomes read-only by a call that gives the level of the page; before that, some
/// pages of the block may have been invalidated. Returns the reports.
fn hinted_change(before: Option<(u64, u64)>) -> Vec<String> {
    let (model, start) = leaf::<Granule4K>(2 << 20);
    let (cpu, page) = (model.cpu(0), range(start + 0x7000, 0x1000));
    cpu.page_tables().split(page, &Lockless, &mut model.frames()).unwrap();
    let (lazy, tlb) = (Lazy::new(&cpu), KernelTlb);
    if let Some((offset, size)) = before {
        let range = range(start + offset, size);
        let flush = cpu.page_tables().update(&lazy, range, Change::INVALID, RefuseSplits).unwrap();
        lazy.invalidate(&tlb, [flush]);
        let flush = cpu.page_tables().update(&lazy, range, Change::VALID, RefuseSplits).unwrap();
        assert!(flush.is_none());
        lazy.flush_barriers();
        model.synchronise();
    }
    let flush = cpu.page_tables().update(&lazy, page, Change::READ_ONLY, WholeLeaves).unwrap();
    lazy.invalidate(&tlb, [flush]);
    model.audit(0, page);
    model.violations().iter().map(ToString::to_string).collect()
}

#[test]
fn a_level_hint_comes_too_early_until_the_leaf_that_was_split_is_invalidated() {
    let stories = hinted_change(None);
    assert!(stories[0].contains("may hold block"), "{stories:?}");
    assert!(stories[0].contains("says that the leaf is at level 3"), "{stories:?}");
    // Any address of the block takes it away, and then no walk brings it back.
    for before in [(0x7000, 0x1000), (0x1_0000, 0x1_0000)] {
        assert_eq!(hinted_change(Some(before)), [""; 0]);
    }
}

#[test]
fn a_split_by_cpus_that_may_not_change_a_size_is_told() {
    for size in [2 << 20, 64 << 10] {
        let model = Model::<Granule4K>::new(2, 16, Features { bbml2: false, ..Features::ALL });
        let start = model.base() + size;
        map(&model, range(start, size), FRAME, DATA, LARGEST);
        // As the kernel calls it there: refused, and nothing changed.
        let (cpu, page) = (model.cpu(0), range(start + 0x1000, 0x1000));
        let lazy = Lazy::new(&cpu);
        let events = model.record(|| {
            let refused = cpu.page_tables().update(&lazy, page, Change::READ_ONLY, RefuseSplits);
            assert_eq!(refused, Err(Error::Straddles { leaf: start, size }));
        });
        assert!(events.is_empty());
        model.assert_clean();
        cpu.page_tables().split(page, &Lockless, &mut model.frames()).unwrap();
        let rules = rules(&model);
        assert!(!rules.is_empty() && rules.iter().all(|&rule| rule == Rule::BreakBeforeMake), "{rules:?}");
    }
}
