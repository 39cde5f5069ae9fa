//! Fixed virtual addresses for what must be reachable before, or outside, everything else.
//!
//! One level 3 table inside the image covers 2 MiB at [`FIXMAP_BASE`]; the entry code links it. A slot is
//! written through the image's own mapping of that table, so nothing here needs the linear map.
//!
//! A slot goes from empty to valid (no TLBI: an invalid entry is never cached), and where it is reused, from
//! valid to empty with an invalidation before anything else may appear there (break-before-make, Arm ARM D8.16.1).

#![allow(unsafe_code, reason = "maps addresses that its caller vouches for")]

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::barrier;
use granule_arch::descriptor::{Attributes, MemoryType, bits};
use granule_arch::tlbi::{AddressOperand, Instruction};

use crate::boot_info::BootInfo;
use crate::mm::layout::FIXMAP_BASE;
use crate::sync::{IrqLock, rank};

const ENTRIES: usize = 512;
/// Descriptors hold output addresses of 48 bits.
const ADDRESS_END: u64 = 1 << 48;
/// Pages for the device tree: all that the other slots leave. The boot protocol allows a tree 2 MiB, which is 16 KiB
/// more.
const DEVICE_TREE_PAGES: usize = ENTRIES - FixmapSlot::DeviceTree.first();

/// The slots of the fixmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FixmapSlot {
    /// The console's registers, before anything is known of the machine.
    Console,
    /// One page that is read-only elsewhere, of kernel text or constants mostly, writable for the moment of a patch.
    Patch,
    /// The page of table entries that are replaced break-before-make. Nothing runs over its end.
    Entries,
    /// The device tree, read-only, until the platform has been read from it.
    DeviceTree,
}

impl FixmapSlot {
    const fn first(self) -> usize {
        match self {
            Self::Console => 0,
            Self::Patch => 2,
            Self::Entries => 3,
            Self::DeviceTree => 4,
        }
    }

    const fn address(self) -> VirtAddr {
        VirtAddr(FIXMAP_BASE.0 + (self.first() * PAGE_SIZE) as u64)
    }
}

static TABLE: AtomicPtr<[AtomicU64; ENTRIES]> = AtomicPtr::new(ptr::null_mut());
/// Held from the moment that the patch slot becomes writable until it is gone again.
static PATCH: IrqLock<(), { rank::PATCH }> = IrqLock::new(());

unsafe extern "C" {
    static __image_start: u8;
}

/// Finds the fixmap's table in the image. Before this, no slot can be used. It is found again after the image was moved.
///
/// # Safety
/// `boot` is what the entry code wrote, and its fixmap table is linked at [`FIXMAP_BASE`].
pub unsafe fn init(boot: &BootInfo) {
    let offset = boot.fixmap_table - boot.image_start;
    let table = (&raw const __image_start).wrapping_byte_add(offset as usize).cast::<[AtomicU64; ENTRIES]>();
    TABLE.store(table.cast_mut(), Ordering::Relaxed);
}

fn table() -> &'static [AtomicU64; ENTRIES] {
    // SAFETY: a page of the image, mapped read-write for ever, and only accessed as atomics.
    unsafe { TABLE.load(Ordering::Relaxed).as_ref() }.expect("the fixmap is found first of all")
}

/// Maps the page of device registers that holds `registers`, for ever. Returns where they are; `None` where that is no
/// address that tables can hold.
///
/// # Safety
/// The page is registers, or nothing answers there: it is no memory, which another mapping may execute.
pub unsafe fn map_device(slot: FixmapSlot, registers: PhysAddr) -> Option<VirtAddr> {
    let page = registers.align_down(PAGE);
    if page.0 >= ADDRESS_END {
        return None;
    }
    set_valid(slot.first(), page, Attributes::device());
    Some(slot.address() + (registers - page))
}

/// Maps `bytes` of memory from `start` on, read-only, in place of the device tree's slot, and returns where they are.
/// `None` where that is more than the slot has room for, or no address that tables can hold.
///
/// No more is mapped than asked for: after a device tree there may be no memory, and what is mapped may be fetched
/// ahead. So a caller maps the header first, and then the whole by the size that the header gives.
///
/// # Safety
/// The earlier mapping of this slot is used no more, unless it began at the same `start`.
pub unsafe fn map_device_tree(start: PhysAddr, bytes: usize) -> Option<VirtAddr> {
    let range = PhysRange::from_size(start, bytes as u64).filter(|range| range.end().0 <= ADDRESS_END)?;
    let first = start.align_down(PAGE);
    let pages = (range.end().align_up(PAGE)? - first) as usize / PAGE_SIZE;
    if pages > DEVICE_TREE_PAGES {
        return None;
    }
    for index in 0..pages {
        let page = first + (index * PAGE_SIZE) as u64;
        let attributes = Attributes::kernel_rodata(MemoryType::NormalTagged);
        store(FixmapSlot::DeviceTree.first() + index, page.0 | bits::TABLE | attributes.bits());
    }
    publish();
    Some(FixmapSlot::DeviceTree.address() + (start - first))
}

/// Takes the device tree's mapping away.
///
/// # Safety
/// Nothing that [`map_device_tree`] returned is used again.
pub unsafe fn unmap_device_tree() {
    let slot = FixmapSlot::DeviceTree.first()..ENTRIES;
    for index in slot.take_while(|&index| table()[index].load(Ordering::Relaxed) != 0) {
        store(index, 0);
    }
    // The stores must be seen by every walk before the invalidation, or a walk could bring the old entry back.
    barrier::dsb_ishst();
    // Once per boot, so one instruction for everything and not a page-exact range.
    Instruction::Vmalle1is.execute();
    complete_tlbi();
}

/// Writes one 32-bit word to a read-only page of the image at `target`, by a second, short-lived mapping.
///
/// The mapping is never executable and is gone on return. Cache maintenance for changed code is the caller's.
///
/// # Safety
/// `target` is in the image, word-aligned, and CPUs that execute or read it work with either value.
pub unsafe fn patch_word(boot: &BootInfo, target: VirtAddr, word: u32) {
    let offset = target - VirtAddr::from_ptr(&raw const __image_start);
    // SAFETY: the caller's.
    unsafe { write_word(PhysAddr(boot.image_start + offset), word) };
}

/// Writes one 32-bit word of memory that has no mapping, or only one that is read-only, as [`patch_word`] does.
///
/// # Safety
/// `physical` is memory, word-aligned, and its readers work with either value.
pub unsafe fn write_word(physical: PhysAddr, word: u32) {
    let page = physical.align_down(PAGE);

    let _only_one = PATCH.lock();
    let index = FixmapSlot::Patch.first();
    set_valid(index, page, Attributes::kernel_data(MemoryType::NormalTagged));
    let alias = FixmapSlot::Patch.address() + (physical - page);
    // SAFETY: mapped writable just above; alignment is the caller's promise.
    unsafe { ptr::write_volatile(alias.as_ptr::<u32>(), word) };
    unmap(FixmapSlot::Patch);
}

/// Runs `work` with where the table entries at `entries` are seen by a short-lived mapping of their own, on the one CPU
/// that is not parked ([`crate::smp::park_others`]).
pub(super) fn with_entries(entries: PhysAddr, work: impl FnOnce(*mut u64)) {
    let page = entries.align_down(PAGE);
    set_valid(FixmapSlot::Entries.first(), page, Attributes::kernel_data(MemoryType::NormalTagged));
    work((FixmapSlot::Entries.address() + (entries - page)).as_ptr());
    unmap(FixmapSlot::Entries);
}

/// Takes away a slot of one page.
fn unmap(slot: FixmapSlot) {
    store(slot.first(), 0);
    barrier::dsb_ishst();
    Instruction::Vaale1is(AddressOperand::new(slot.address(), None)).execute();
    complete_tlbi();
}

/// Completes an invalidation on all CPUs; what this one fetched or translated ahead is thrown away.
///
/// With the workaround for CPUs that a completed invalidation may have left out (`platform::errata`), always: whether
/// one is here is not known before the branches are patched, and patching is what this is for.
fn complete_tlbi() {
    barrier::dsb_ish();
    Instruction::Vaale1is(AddressOperand::new(FixmapSlot::Patch.address(), None)).execute();
    barrier::dsb_ish();
    barrier::isb();
}

fn set_valid(index: usize, page: PhysAddr, attributes: Attributes) {
    store(index, page.0 | bits::TABLE | attributes.bits());
    publish();
}

fn store(index: usize, value: u64) {
    table()[index].store(value, Ordering::Relaxed);
}

/// Invalid to valid, own use: DSB ISHST so that the walker sees the store, ISB so that nothing fetched or
/// started earlier uses the old "no translation" (`docs/ARCHITECTURE.md`, barriers).
fn publish() {
    barrier::dsb_ishst();
    barrier::isb();
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::{AtomicU64, Ordering};
    use std::boxed::Box;

    use granule_arch::recorded::record;

    use super::{ENTRIES, FixmapSlot, TABLE, unmap, unmap_device_tree};

    /// Both invalidations are made twice, each time with a DSB (`platform::errata`): the first may have been completed
    /// with another CPU left out, and which CPUs there are is not known yet.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the host has memory for a table")]
    fn what_is_unmapped_is_invalidated_twice_whatever_the_cpus_are() {
        let table: &[AtomicU64; ENTRIES] = Box::leak(Box::new([const { AtomicU64::new(0) }; ENTRIES]));
        TABLE.store(core::ptr::from_ref(table).cast_mut(), Ordering::Relaxed);
        let repeated = ["dsb_ish", "vaale1is", "dsb_ish", "isb"];
        let valid = |slot: FixmapSlot| table[slot.first()].store(3, Ordering::Relaxed);

        valid(FixmapSlot::Patch);
        let stream = record(|| unmap(FixmapSlot::Patch));
        assert_eq!(stream[..2], ["dsb_ishst", "vaale1is"]);
        assert_eq!(stream[2..], repeated);

        valid(FixmapSlot::DeviceTree);
        // SAFETY: nothing is mapped by this table.
        let stream = record(|| unsafe { unmap_device_tree() });
        assert_eq!(stream[..2], ["dsb_ishst", "vmalle1is"]);
        assert_eq!(stream[2..], repeated);
        assert!(table.iter().all(|entry| entry.load(Ordering::Relaxed) == 0));
    }
}
