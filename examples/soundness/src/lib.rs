//! What code that forbids `unsafe` cannot do with `granule-arch`, `granule-pgtable` and `granule-smmuv3`, however it is
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
//! A table, a root and frames for tables are vouched for:
//! ```compile_fail,E0133
//! # use granule_arch::addr::PhysAddr;
//! granule_pgtable::Table::root::<granule_pgtable::Granule4K>(PhysAddr(0x4008_0000));
//! ```
//! ```compile_fail,E0133
//! granule_pgtable::metal::DirectMap::<granule_pgtable::Granule4K>::new(0);
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
