//! Code that forbids `unsafe` cannot do this with `granule-arch`, `granule-pgtable` and `granule-smmuv3`, however it is
//! given their values: reach memory that it does not own, itself or by way of a CPU, a page table or an SMMU. Each
//! example must not compile, for the reason that it names.
//!
//! # `granule-arch`
//! PSCI starts a CPU at any physical address:
//! ```compile_fail,E0133
//! granule_arch::psci::cpu_on(granule_arch::psci::Conduit::Hvc, 1, 0xdead_0000, 0);
//! ```
//! RNDR is UNDEFINED where a CPU does not have it, and so are the registers of tag checks; the values that prove that
//! they are there are not made without a contract:
//! ```compile_fail,E0133
//! granule_arch::random::Rndr::new().number();
//! ```
//! ```compile_fail,E0603
//! granule_arch::random::Rndr(()).number();
//! ```
//! ```compile_fail,E0133
//! granule_arch::tag_check::Registers::new().suspend();
//! ```
//!
//! # `granule-pgtable`
//! The entries of a live tree are given out, to be read: safe code stores to none, neither to the word nor by a machine
//! that is for any code:
//! ```compile_fail,E0599
//! use core::sync::atomic::Ordering::Relaxed;
//! use granule_pgtable::{Mmu, PageTables, metal::{DirectMap, Metal}};
//! fn link(tables: PageTables<'_, Metal<DirectMap>>, target: u64) {
//!     let root = tables.mmu().table(tables.root());
//!     root[1].store(target | 3, Relaxed);
//! }
//! ```
//! ```compile_fail,E0616
//! # use granule_arch::addr::VirtAddr;
//! use core::sync::atomic::Ordering::Relaxed;
//! use granule_pgtable::{PageTables, metal::{DirectMap, Metal}};
//! fn map_anything(tables: PageTables<'_, Metal<DirectMap>>, address: VirtAddr) {
//!     let (_, cell) = tables.cell(address).unwrap();
//!     cell.0.store(0x4008_0703, Relaxed);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_arch::descriptor::Descriptor;
//! use granule_pgtable::{Mmu, PageTables, Stores, metal::{DirectMap, Metal}};
//! fn link(tables: PageTables<'_, Metal<DirectMap>>, target: u64) {
//!     let root = tables.mmu().table(tables.root());
//!     tables.mmu().store(&root[1], Descriptor(target | 3));
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::descriptor::Descriptor;
//! use granule_pgtable::{Mmu, PageTables};
//! fn link<M: Mmu>(tables: PageTables<'_, M>, target: u64) {
//!     let root = tables.mmu().table(tables.root());
//!     tables.mmu().write(&root[1], Descriptor(target | 3));
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::descriptor::Descriptor;
//! use granule_pgtable::{Mmu, PageTables};
//! fn link<M: Mmu>(tables: PageTables<'_, M>, target: u64) {
//!     let root = tables.mmu().table(tables.root());
//!     tables.mmu().write_run(root, Descriptor(target | 3), 0x1000);
//!     tables.mmu().remake_run(root, Descriptor(target | 3), 0x1000);
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::descriptor::Descriptor;
//! use granule_pgtable::{Mmu, PageTables};
//! fn change<M: Mmu>(tables: PageTables<'_, M>, cell: &M::Cell, target: u64) {
//!     let _ = tables.mmu().exchange(cell, Descriptor::EMPTY, Descriptor(target | 3));
//! }
//! ```
//! ```compile_fail,E0133
//! use granule_arch::descriptor::bits;
//! use granule_pgtable::{Mmu, PageTables};
//! fn change<M: Mmu>(tables: PageTables<'_, M>, run: &[M::Cell]) {
//!     tables.mmu().clear(&run[0], bits::RDONLY);
//!     tables.mmu().flip_run(run, bits::RDONLY);
//! }
//! ```
//! A tree that is given to be looked at is looked at, and no more: what maps, unmaps, changes, splits or links takes a
//! machine that `Stores`.
//! ```compile_fail,E0599
//! # use granule_arch::{addr::PhysAddr, descriptor::{Attributes, MemoryType}};
//! # use granule_pgtable::{Lazy, Mmu, PageRange, PageTables, Shape, TableSource};
//! fn map<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, source: &mut impl TableSource) {
//!     let (lazy, data) = (Lazy::new(tables.mmu()), Attributes::kernel_data(MemoryType::Normal));
//!     let _ = tables.map(&lazy, range, PhysAddr(0x4008_0000), data, Shape::PAGES, source);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_arch::{addr::PhysAddr, descriptor::{Attributes, MemoryType}};
//! # use granule_pgtable::{Lazy, Mmu, PageRange, PageTables};
//! fn map<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let (lazy, data) = (Lazy::new(tables.mmu()), Attributes::kernel_data(MemoryType::Normal));
//!     let _ = tables.map_at_once(&lazy, range, PhysAddr(0x4008_0000), data);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_arch::{addr::PhysAddr, descriptor::{Attributes, MemoryType}};
//! # use granule_pgtable::{Lazy, Leaves, Mmu, PageRange, PageTables, TableSource};
//! fn map<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, source: &mut impl TableSource) {
//!     let (lazy, data) = (Lazy::new(tables.mmu()), Attributes::kernel_data(MemoryType::Normal));
//!     let anything = |_, most| (PhysAddr(0x4008_0000), most);
//!     let _ = tables.map_frames(&lazy, range, anything, data, Leaves::Pages, source);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Lazy, Mmu, PageRange, PageTables, RefuseSplits, Tlb};
//! fn unmap<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, tlb: &impl Tlb<M>) {
//!     let _ = tables.unmap(&Lazy::new(tables.mmu()), tlb, range, RefuseSplits, |_| {});
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Lazy, Mmu, PageRange, PageTables, RefuseSplits, Tlb};
//! fn unmap<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, tlb: &impl Tlb<M>) {
//!     let _ = tables.unmap_at_once(&Lazy::new(tables.mmu()), tlb, range, 0, &RefuseSplits, |_| {});
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Mmu, PageRange, PageTables};
//! fn unmap<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let _ = tables.unmap_lazily(range, 0, 0);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Mmu, PageRange, PageTables};
//! fn unmap<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let _ = tables.begin_unmap(range);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Change, Lazy, Mmu, PageRange, PageTables, RefuseSplits};
//! fn update<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let _ = tables.update(&Lazy::new(tables.mmu()), range, Change::READ_WRITE, RefuseSplits);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Change, Mmu, PageRange, PageTables, RefuseSplits};
//! fn update<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let _ = tables.look(range, &Change::READ_WRITE, &mut RefuseSplits);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Change, Mmu, PageRange, PageTables, RefuseSplits};
//! fn update<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let _ = tables.check(range, &Change::READ_WRITE, &mut RefuseSplits);
//! }
//! ```
//! ```compile_fail,E0277
//! # use granule_pgtable::{LastTable, Mmu, PageRange, PageTables};
//! fn update<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     let mut table = LastTable::none(tables.mmu());
//!     let _ = table.find(tables, range.start());
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Lockless, Mmu, PageRange, PageTables, TableSource};
//! fn split<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, source: &mut impl TableSource) {
//!     let _ = tables.split(range, &Lockless, source);
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{EnsureError, Mmu, PageRange, PageTables, TableSource};
//! fn link<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, source: &mut impl TableSource) {
//!     let _ = tables.ensure_cell(range.start(), source, || Ok::<(), EnsureError>(()));
//! }
//! ```
//! ```compile_fail,E0599
//! # use granule_pgtable::{Mmu, PageRange, PageTables, TableSource};
//! fn link<M: Mmu>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>, source: &mut impl TableSource) {
//!     let _ = tables.ensure_block_cell(range.start(), source);
//! }
//! ```
//! Each of them compiles where the machine does store, so it is for the machine alone that they do not:
//! ```
//! # use granule_arch::{addr::PhysAddr, descriptor::{Attributes, MemoryType}};
//! # use granule_pgtable::{Change, EnsureError, Lazy, Leaves, Lockless, PageRange, PageTables, RefuseSplits, Shape};
//! # use granule_pgtable::{LastTable, Stores, TableSource, Tlb};
//! fn change<M: Stores>(
//!     tables: PageTables<'_, M>,
//!     range: PageRange<M::Geometry>,
//!     source: &mut impl TableSource,
//!     tlb: &impl Tlb<M>,
//! ) {
//!     let (lazy, anything) = (Lazy::new(tables.mmu()), PhysAddr(0x4008_0000));
//!     let data = Attributes::kernel_data(MemoryType::Normal);
//!     let _ = tables.map(&lazy, range, anything, data, Shape::PAGES, source);
//!     let _ = tables.map_at_once(&lazy, range, anything, data);
//!     let _ = tables.map_frames(&lazy, range, |_, most| (anything, most), data, Leaves::Pages, source);
//!     let _ = tables.unmap(&lazy, tlb, range, RefuseSplits, |_| {});
//!     let _ = tables.unmap_at_once(&lazy, tlb, range, 0, &RefuseSplits, |_| {});
//!     let _ = tables.unmap_lazily(range, 0, 0);
//!     let _ = tables.begin_unmap(range);
//!     let _ = tables.update(&lazy, range, Change::READ_WRITE, RefuseSplits);
//!     let _ = tables.look(range, &Change::READ_WRITE, &mut RefuseSplits);
//!     let _ = tables.check(range, &Change::READ_WRITE, &mut RefuseSplits);
//!     let mut table = LastTable::none(tables.mmu());
//!     let _ = (table.find(tables, range.start()), table.update_page(range.start(), &Change::READ_WRITE));
//!     let _ = tables.split(range, &Lockless, source);
//!     let _ = tables.ensure_cell(range.start(), source, || Ok::<(), EnsureError>(()));
//!     let _ = tables.ensure_block_cell(range.start(), source);
//! }
//! ```
//! Tables in memory that a value owns, which nothing translates by, change without a contract:
//! ```
//! use granule_arch::{addr::{PhysAddr, VirtAddr}, descriptor::{Attributes, MemoryType}};
//! use granule_pgtable::{Change, Granule4K, Lazy, PageRange, Shape, WholeLeaves, host::HostMachine};
//! let machine = HostMachine::<Granule4K>::new(16);
//! let (tables, lazy) = (machine.page_tables(), Lazy::new(machine.mmu()));
//! let range = PageRange::from_pages(VirtAddr(0x1000), 3)?;
//! let data = Attributes::kernel_data(MemoryType::Normal);
//! tables.map(&lazy, range, PhysAddr(0x4000_0000), data, Shape::PAGES, &mut machine.frames())?;
//! let flush = tables.update(&lazy, range, Change::READ_ONLY, WholeLeaves)?;
//! lazy.invalidate(machine.tlb(), [flush]);
//! assert!(!tables.translate(VirtAddr(0x2000)).unwrap().descriptor.is_writable());
//! # Ok::<(), granule_pgtable::Error>(())
//! ```
//! Where the machine does store, what frees or hands out memory that a walk, or a TLB, may still have takes a contract
//! of its own:
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysAddr;
//! fn link_any(source: &mut impl granule_pgtable::TableSource) {
//!     source.give_back(PhysAddr(0x4008_0000));
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_pgtable::{PageRange, PageTables, Stores};
//! fn reuse<M: Stores>(tables: PageTables<'_, M>, range: PageRange<M::Geometry>) {
//!     tables.release_unmapped(range, |_| {});
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_pgtable::{PageTables, Stores, Unmapping};
//! fn reuse<M: Stores>(tables: PageTables<'_, M>, unmapping: Unmapping<M::Geometry>) {
//!     unmapping.release(&tables, |_| {});
//! }
//! ```
//! ```compile_fail,E0133
//! # use core::sync::atomic::AtomicU64;
//! # use granule_pgtable::{PageTables, Reclaimer, Stores, Tlb};
//! fn free<M: Stores>(tables: PageTables<'_, M>, tlb: &impl Tlb<M>, reclaimer: &mut Reclaimer<M::Geometry, 2>) {
//!     let _ = reclaimer.advance(&tables, tlb, |_| None::<&AtomicU64>, |_| {});
//! }
//! ```
//! ```compile_fail,E0133
//! # use core::sync::atomic::AtomicU64;
//! # use granule_pgtable::{Collapser, PageTables, Stores};
//! fn mark<M: Stores>(tables: PageTables<'_, M>, collapser: &mut Collapser<M::Geometry, 2>) {
//!     collapser.mark(&tables, |_| None::<&AtomicU64>);
//! }
//! ```
//! ```compile_fail,E0133
//! # use granule_pgtable::{Collapser, PageTables, Stores};
//! fn replace<M: Stores>(tables: PageTables<'_, M>, collapser: &mut Collapser<M::Geometry, 2>) {
//!     collapser.replace_stopped(&tables);
//! }
//! ```
//! ```compile_fail,E0133
//! # use core::sync::atomic::AtomicU64;
//! # use granule_pgtable::{Collapser, PageTables, Stores, TableSource, Tlb};
//! fn free<M: Stores>(
//!     tables: PageTables<'_, M>,
//!     tlb: &impl Tlb<M>,
//!     source: &mut impl TableSource,
//!     collapser: &mut Collapser<M::Geometry, 2>,
//! ) {
//!     let _ = collapser.advance(&tables, tlb, |_| None::<&AtomicU64>, source, |_| {});
//! }
//! ```
//! So does what keeps splits apart, or stops other CPUs for them:
//! ```compile_fail,E0200
//! struct NoLock;
//! impl granule_pgtable::Serialise for NoLock {
//!     type Section<'a> = ();
//!     fn entries(&self) -> granule_pgtable::Entries {
//!         granule_pgtable::Entries::Alone
//!     }
//!     fn begin(&self) {}
//! }
//! ```
//! A table of one geometry is none of another, whose pages would be tables here:
//! ```compile_fail,E0308
//! use granule_pgtable::{Granule4K, PageTables, Tiny, host::HostMachine};
//! let (tiny, machine) = (HostMachine::<Tiny>::new(1), HostMachine::<Granule4K>::new(1));
//! let _ = PageTables::new(machine.mmu(), tiny.page_tables().root());
//! ```
//! ```compile_fail,E0308
//! # use granule_pgtable::{Granule4K, Granule64K, Mmu};
//! # use granule_pgtable::metal::{DirectMap, Metal};
//! fn cells(mmu: &Metal<DirectMap<Granule4K>>, other: &granule_pgtable::host::HostMachine<Granule64K>) {
//!     mmu.table(other.page_tables().root());
//! }
//! ```
//! The caches are maintained by addresses that are mapped:
//! ```compile_fail,E0133
//! # use granule_arch::addr::VirtAddr;
//! # use granule_pgtable::{Granule4K, Mmu, host::HostMachine};
//! HostMachine::<Granule4K>::new(1).mmu().clean_code(VirtAddr(0x4008_0000), 64);
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::addr::VirtAddr;
//! # use granule_pgtable::{Granule4K, Mmu, host::HostMachine};
//! HostMachine::<Granule4K>::new(1).mmu().invalidate_code(VirtAddr(0x4008_0000), 64);
//! ```
//! A table, a root and frames for tables are vouched for, and so is a machine by which tables change:
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysAddr;
//! granule_pgtable::Table::<granule_pgtable::Granule4K>::root(PhysAddr(0x4008_0000));
//! ```
//! ```compile_fail,E0133
//! granule_pgtable::metal::DirectMap::<granule_pgtable::Granule4K>::new(0);
//! ```
//! ```compile_fail,E0133
//! use granule_pgtable::metal::{DirectMap, Owner};
//! fn own(memory: DirectMap) -> DirectMap<granule_pgtable::Granule4K, Owner> {
//!     memory.for_owner()
//! }
//! ```
//! ```compile_fail,E0133
//! granule_pgtable::metal::MmuOff::<granule_pgtable::Granule4K>::new();
//! ```
//! ```compile_fail,E0200
//! struct Mine;
//! impl granule_pgtable::metal::Trusted for Mine {}
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysRange;
//! use granule_pgtable::{Stores, metal::FrameRange};
//! fn take_any<M: Stores>(mmu: &M, memory: PhysRange) -> FrameRange<'_, M> {
//!     FrameRange::new(mmu, memory)
//! }
//! ```
//!
//! # `granule-smmuv3`
//! Memory of the driver's own is read and written by it alone, and is not made of a number:
//! ```compile_fail,E0451
//! # use granule_arch::addr::PhysAddr;
//! let memory =
//!     granule_smmuv3::DmaMemory { phys: PhysAddr(0), virt: core::ptr::NonNull::dangling(), bytes: 4096 };
//! ```
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysAddr;
//! granule_smmuv3::DmaMemory::new(PhysAddr(0), core::ptr::NonNull::dangling(), 4096);
//! ```
//! ```compile_fail,E0624
//! fn read<P: granule_smmuv3::Platform>(memory: &granule_smmuv3::DmaMemory) -> &[P::Word] {
//!     memory.words::<P>()
//! }
//! ```
//! CMD_SYNC stores a word of the caller's anywhere (IDR0.MSI):
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysAddr;
//! granule_smmuv3::Command::sync_with_store(PhysAddr(0x4008_0000), 0xdead_beef);
//! ```
//! ```compile_fail,E0603
//! granule_smmuv3::Command([0x46 | 1 << 12 | 0xdead_beef << 32, 0x4008_0000]);
//! ```
//! ```compile_fail,E0133
//! granule_smmuv3::Command::from_words([0x46 | 1 << 12 | 0xdead_beef << 32, 0x4008_0000]);
//! ```
//! A device reaches all of memory, or what any tables map:
//! ```compile_fail,E0133
//! use granule_smmuv3::{Memory, Platform, Smmu, Stream, Streams};
//! fn bypass<P: Platform + Memory>(smmu: &Smmu<P>, streams: &mut Streams<P>) {
//!     let _ = streams.set(smmu, 8, Stream::Bypass);
//! }
//! ```
//! ```compile_fail,E0133
//! use granule_smmuv3::{ContextDescriptor, Memory, Platform, Smmu, Streams};
//! fn point_at<P: Platform + Memory>(smmu: &Smmu<P>, streams: &mut Streams<P>) {
//!     let _ = streams.update_context(smmu, 8, &ContextDescriptor([0; 8]));
//! }
//! ```
//! The registers say where the tables and queues are:
//! ```compile_fail,E0133
//! use granule_smmuv3::{Platform, Smmu, registers::offset::STRTAB_BASE};
//! fn program<P: Platform>(smmu: &Smmu<P>) {
//!     smmu.platform().write64(STRTAB_BASE, 0x4008_0000);
//! }
//! ```

#![no_std]
#![forbid(unsafe_code)]
#![doc(test(attr(forbid(unsafe_code))))]
