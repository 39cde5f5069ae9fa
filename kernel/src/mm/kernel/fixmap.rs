//! Fixed virtual addresses for what must be reachable before, or outside, everything else.
//!
//! One level 3 table inside the image covers 2 MiB at [`FIXMAP_BASE`]; the entry code links it. A slot is
//! written through the image's own mapping of that table, so nothing here needs the linear map.
//!
//! A slot goes from empty to valid (no TLBI: an invalid entry is never cached), and where it is reused, from
//! valid to empty with an invalidation before anything else may appear there (break-before-make, Arm ARM D8.16.1).

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::barrier;
use granule_arch::descriptor::{Attributes, MemoryType, bits};
use granule_arch::tlbi::{self, AddressOperand};
use spin::Once;

use crate::boot_info::BootInfo;
use crate::mm::layout::FIXMAP_BASE;
use crate::sync::{IrqLock, rank};

/// Pages for the device tree: 1 MiB, which is what QEMU makes it, and one for an unaligned start.
const DEVICE_TREE_PAGES: usize = 257;
const ENTRIES: usize = 512;

/// What lies where in the fixmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FixmapSlot {
    /// The console's registers, before anything is known of the machine.
    Console,
    /// One page of kernel text or constants, writable for the moment of a patch.
    Patch,
    /// The device tree, read-only, until the platform has been read from it.
    DeviceTree,
}

impl FixmapSlot {
    const fn first(self) -> usize {
        match self {
            Self::Console => 0,
            Self::Patch => 2,
            Self::DeviceTree => 4,
        }
    }

    const fn address(self) -> VirtAddr {
        VirtAddr(FIXMAP_BASE.0 + (self.first() * PAGE_SIZE) as u64)
    }
}

const _: () = assert!(FixmapSlot::DeviceTree.first() + DEVICE_TREE_PAGES <= ENTRIES);

static TABLE: Once<&'static [AtomicU64; ENTRIES]> = Once::new();
/// Held from the moment that the patch slot becomes writable until it is gone again.
static PATCH: IrqLock<(), { rank::PATCH }> = IrqLock::new(());

unsafe extern "C" {
    static __image_start: u8;
}

/// Finds the fixmap's table in the image. Before this, no slot can be used.
///
/// # Safety
/// `boot` is what the entry code wrote, and its fixmap table is linked at [`FIXMAP_BASE`].
pub unsafe fn init(boot: &BootInfo) {
    let offset = boot.fixmap_table - boot.image_start;
    let table = (&raw const __image_start).wrapping_byte_add(offset as usize).cast::<[AtomicU64; ENTRIES]>();
    // SAFETY: the table is a page of the image, mapped read-write for ever, and only accessed as atomics.
    TABLE.call_once(|| unsafe { &*table });
}

fn table() -> &'static [AtomicU64; ENTRIES] {
    TABLE.get().expect("the fixmap is found first of all")
}

/// Maps the page of device registers that holds `registers`, for ever. Returns where they are.
pub fn map_device(slot: FixmapSlot, registers: PhysAddr) -> VirtAddr {
    let page = registers.align_down(PAGE_SIZE as u64);
    set_valid(slot.first(), page, Attributes::device());
    slot.address() + (registers - page)
}

/// Maps the device tree at `start`, read-only, and returns all of it that the fixmap has room for (at least 1 MiB).
///
/// The bytes stay what they are for as long as nobody calls [`unmap_device_tree`].
///
/// # Safety
/// `start` is in ordinary memory, and so is what follows, or reading it harms nobody.
pub unsafe fn map_device_tree(start: PhysAddr) -> &'static [u8] {
    let page = start.align_down(PAGE_SIZE as u64);
    for index in 0..DEVICE_TREE_PAGES {
        let address = page + (index * PAGE_SIZE) as u64;
        store(
            FixmapSlot::DeviceTree.first() + index,
            address.0 | bits::TABLE | Attributes::kernel_rodata(MemoryType::NormalTagged).bits(),
        );
    }
    publish();
    let skip = start - page;
    let bytes = DEVICE_TREE_PAGES * PAGE_SIZE - skip as usize;
    // SAFETY: mapped just above, readable; the caller says that it is memory that nothing else changes.
    unsafe { core::slice::from_raw_parts((FixmapSlot::DeviceTree.address() + skip).as_ptr(), bytes) }
}

/// Takes the device tree's mapping away.
///
/// # Safety
/// No reference from [`map_device_tree`] is used again.
pub unsafe fn unmap_device_tree() {
    for index in 0..DEVICE_TREE_PAGES {
        store(FixmapSlot::DeviceTree.first() + index, 0);
    }
    // The stores must be seen by every walk before the invalidation, or a walk could bring the old entry back.
    barrier::dsb_ishst();
    // Once per boot, so one instruction for everything and not a page-exact range.
    tlbi::vmalle1is();
    barrier::dsb_ish();
    barrier::isb();
}

/// Writes one 32-bit word to a read-only page of the image at `target`, by a second, short-lived mapping.
///
/// The mapping is never executable and is gone on return. Cache maintenance for changed code is the caller's.
///
/// # Safety
/// `target` is in the image, word-aligned, and whoever executes or reads it can stand either value.
pub unsafe fn patch_word(boot: &BootInfo, target: VirtAddr, word: u32) {
    let offset = target - VirtAddr::from_ptr(&raw const __image_start);
    let physical = PhysAddr(boot.image_start + offset);
    let page = physical.align_down(PAGE_SIZE as u64);

    let _only_one = PATCH.lock();
    let index = FixmapSlot::Patch.first();
    set_valid(index, page, Attributes::kernel_data(MemoryType::NormalTagged));
    let alias = FixmapSlot::Patch.address() + (physical - page);
    // SAFETY: mapped writable just above; alignment is the caller's promise.
    unsafe { ptr::write_volatile(alias.as_ptr::<u32>(), word) };
    store(index, 0);
    barrier::dsb_ishst();
    tlbi::vaale1is(AddressOperand::new(FixmapSlot::Patch.address(), None));
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
