//! The ready machine, on the host's memory: the same tables with the MMU off and on, and the TLBIs of both TLBs.

#![allow(unsafe_code, reason = "vouches for memory of the test")]

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::features::CpuFeatures;
use granule_arch::recorded;
use granule_arch::tlbi::{Asid, UserTlbToken};
use granule_pgtable::metal::{AsidTlb, DirectMap, FrameRange, KernelTlb, Metal, MmuOff};
use granule_pgtable::{
    Change, Geometry, Granule4K, Granule4KVa39, Granule16K, Granule64K, Invalidation, Lazy, Lockless, Mmu, PageTables,
    Split, Stores, Table, TableSource, Tables, Tlb,
};

use crate::{DATA, LARGEST, TEXT, range};

/// Room for 24 tables, at the host's addresses.
struct Memory<G: Geometry>(Vec<u64>, std::marker::PhantomData<G>);

impl<G: Geometry> Memory<G> {
    fn new() -> Self {
        // Not zero: a source zeroes what it gives.
        Self(vec![u64::MAX; 25 * G::PAGE_SIZE as usize / 8], std::marker::PhantomData)
    }

    fn range(&self) -> PhysRange {
        PhysRange::from_size(PhysAddr(VirtAddr::from_ptr(self.0.as_ptr()).0), 8 * self.0.len() as u64).unwrap()
    }
}

/// A mapping: its address, its bytes, where it leads, and its attributes.
type Mapped = (VirtAddr, u64, PhysAddr, u64);

/// Maps, splits and changes; returns what a dump then shows. Tables are at `offset` from where they are seen.
fn build<M: Stores>(mmu: &M, memory: PhysRange) -> (Table<M::Geometry>, Vec<Mapped>) {
    // SAFETY: memory of the caller's, which the host sees at the machine's addresses.
    let mut frames = unsafe { FrameRange::new(mmu, memory) };
    let root = frames.take().unwrap();
    // SAFETY: just taken, and zeroed.
    let root = unsafe { Table::root(root) };
    let tables = PageTables::new(mmu, root);
    let lazy = Lazy::new(mmu);
    let pages = M::Geometry::PAGE_SIZE;
    let large = range(VirtAddr(M::Geometry::entry_size(2)), 2 * M::Geometry::entry_size(2));
    tables.map(&lazy, large, PhysAddr(M::Geometry::entry_size(2)), DATA, LARGEST, &mut frames).unwrap();
    let few = range(VirtAddr(4 * M::Geometry::entry_size(2)), 3 * pages);
    tables.map(&lazy, few, PhysAddr(pages), TEXT, LARGEST, &mut frames).unwrap();
    let page = range(large.start() + pages, pages);
    let mut splitter = Split::new(&Lockless, &mut frames);
    tables.update(&lazy, page, Change::READ_ONLY, &mut splitter).unwrap().defer();
    (root, contents(&tables))
}

fn contents<M: Mmu>(tables: &PageTables<'_, M>) -> Vec<(VirtAddr, u64, PhysAddr, u64)> {
    let mut contents = Vec::new();
    tables.dump(range(VirtAddr(0), 1 << (M::Geometry::VA_BITS - 1)), |extent| {
        contents.push((extent.start, extent.size, extent.physical, extent.attributes.0));
    });
    contents
}

fn with_the_mmu_off_and_on<G: Geometry>() {
    let (off, on) = (Memory::<G>::new(), Memory::<G>::new());
    // SAFETY: one thread; the host's addresses serve as physical ones.
    let mmu_off = unsafe { MmuOff::<G>::new() };
    let (root, built) = build(&mmu_off, off.range());
    // With the MMU on the same tree is seen at an offset.
    const OFFSET: u64 = 0x10_0000_0000;
    // SAFETY: the memory below, at this offset, which `build` alone changes.
    let mmu = Metal(unsafe { DirectMap::<G>::new(OFFSET).for_owner() });
    let moved = |range: PhysRange| PhysRange::from_size(range.start() - OFFSET, range.size()).unwrap();
    assert_eq!(build(&mmu, moved(on.range())).1, built);
    assert!(built.len() >= 4, "{built:x?}");
    // SAFETY: the tree above, which stays at the addresses that it was built at.
    let root = unsafe { Table::<G>::root(root.address()) };
    // SAFETY: the host's addresses.
    let mmu = Metal(unsafe { DirectMap::<G>::new(0) });
    assert_eq!(contents(&PageTables::new(&mmu, root)), built);
}

#[test]
fn tables_are_the_same_with_the_mmu_off_and_on() {
    with_the_mmu_off_and_on::<Granule4K>();
    with_the_mmu_off_and_on::<Granule4KVa39>();
    with_the_mmu_off_and_on::<Granule16K>();
    with_the_mmu_off_and_on::<Granule64K>();
}

/// Compare-exchange and bit-clear of the CPU that runs alone.
#[test]
fn steps_of_two_accesses_have_the_effect_of_one() {
    use granule_arch::descriptor::Descriptor;
    let memory = Memory::<Granule4K>::new();
    // SAFETY: as above.
    let mmu = unsafe { MmuOff::<Granule4K>::new() };
    // SAFETY: as above.
    let table = unsafe { FrameRange::new(&mmu, memory.range()) }.take().unwrap();
    // SAFETY: a zeroed table.
    let cell = &mmu.table(unsafe { Table::<Granule4K>::root(table) })[7];
    // SAFETY: the table is the test's, and nothing walks it.
    unsafe {
        assert_eq!(mmu.exchange(cell, Descriptor(1), Descriptor(2)), Err(Descriptor(0)));
        assert_eq!(mmu.exchange(cell, Descriptor(0), Descriptor(6)), Ok(()));
        assert_eq!(mmu.clear(cell, 2), Descriptor(6));
    }
    assert_eq!(mmu.load(cell), Descriptor(4));
}

#[test]
fn frames_are_whole_zeroed_and_given_once() {
    let memory = Memory::<Granule4K>::new();
    // SAFETY: the host's addresses, and no tree.
    let mmu = Metal(unsafe { DirectMap::<Granule4K>::new(0).for_owner() });
    // From an address that is no frame's.
    let odd = PhysRange::new(memory.range().start().align_up(4096).unwrap() + 8, memory.range().end()).unwrap();
    // SAFETY: the test's memory.
    let mut frames = unsafe { FrameRange::new(&mmu, odd) };
    let mut taken = Vec::from_iter(std::iter::from_fn(|| frames.take()));
    assert!((22..=24).contains(&taken.len()) && taken.iter().all(|frame| frame.is_aligned(4096)), "{taken:?}");
    assert!(taken.is_sorted() && taken[0] > odd.start() && *taken.last().unwrap() + 4096 <= odd.end());
    // A frame given back is taken again, and no other.
    // SAFETY: taken above, zeroed, and linked nowhere.
    unsafe {
        frames.give_back(taken[3]);
        frames.give_back(taken[5]);
    }
    taken = Vec::from_iter(std::iter::from_fn(|| frames.take()));
    assert_eq!(taken.len(), 2);
    // SAFETY: a frame that was taken.
    let cells = mmu.table(unsafe { Table::<Granule4K>::root(taken[0]) });
    assert!(cells.iter().all(|cell| mmu.load(cell).0 == 0));
}

/// The names of the instructions for 100 pages, and for one of a table that was unlinked.
fn issued(mmu: &Metal<DirectMap>, tlb: &impl Tlb<Metal<DirectMap>>) -> Vec<&'static str> {
    let pages = Invalidation { range: range(VirtAddr(0), 100 << 12), tables: Tables::Kept, level: None };
    let table = Invalidation { range: range(VirtAddr(0), 1 << 12), tables: Tables::Unlinked, level: None };
    recorded::record(|| tlb.invalidate(mmu, [pages, table].into_iter()))
}

#[test]
fn each_tlb_issues_the_fewest_operations_of_its_own() {
    // SAFETY: there is no device.
    let token = unsafe { UserTlbToken::new() };
    let user = AsidTlb(Asid::new(3, token));
    // SAFETY: there are no tables.
    let plain = unsafe { DirectMap::<Granule4K>::new(0) };
    // ID_AA64ISAR0_EL1.TLB = 2.
    let ranges = CpuFeatures { isar0: 2 << 56, ..CpuFeatures::default() };
    // SAFETY: there is no CPU.
    let with_ranges = Metal(unsafe { plain.with_features(&ranges) });
    let plain = Metal(plain);
    for (stream, page, pages, table) in [
        (issued(&plain, &KernelTlb), "vaale1is", None, "vaae1is"),
        (issued(&with_ranges, &KernelTlb), "vaale1is", Some("rvaale1is"), "vaae1is"),
        (issued(&plain, &user), "vale1is", None, "vae1is"),
        (issued(&with_ranges, &user), "vale1is", Some("rvale1is"), "vae1is"),
    ] {
        let operations = pages.map_or_else(|| vec![page; 100], |pages| vec![pages; 2]);
        let expected = [&["dsb_ishst"], &operations[..], &[table, "dsb_ish", "isb"]].concat();
        assert_eq!(stream, expected);
    }
    let repeated = issued(&Metal(plain.0.repeating_tlbi()), &KernelTlb);
    assert!(repeated.ends_with(&["vaae1is", "dsb_ish", "vale1is", "dsb_ish", "isb"]), "{repeated:?}");
}
