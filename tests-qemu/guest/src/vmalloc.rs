//! vmalloc areas and the linear map as the hardware sees them.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use granule::mm::kernel::policy::Wishes;
use granule::mm::kernel::vmalloc::{KernelArea, VmallocError};
use granule::mm::kernel::{KernelSpace, image};
use granule::mm::layout;
use granule::smp::this_cpu;
use granule::trap::probe;
use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use granule_pgtable::Leaves;

use crate::harness::{Test, target_test};

const PAGE: u64 = PAGE_SIZE as u64;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

target_test!(areas_have_unmapped_pages_on_both_sides);
fn areas_have_unmapped_pages_on_both_sides(t: &mut Test) {
    let mut areas: heapless::Vec<KernelArea, 4> = heapless::Vec::new();
    for pages in [1, 7, 64, 513] {
        let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), pages)) else { continue };
        let (start, end) = (area.start(), area.start() + pages * PAGE);
        for address in [start, end - 8] {
            // SAFETY: the first and last word of the test's own area.
            t.equal("writable", unsafe { probe::write(address, address.0) }, Ok(()));
        }
        t.check("nothing below", probe::read::<u64>(start - 8).is_err());
        t.check("nothing above", probe::read::<u64>(end).is_err());
        t.check(
            "not executable",
            space().tables().translate(start).is_some_and(|leaf| !leaf.descriptor.is_executable()),
        );
        t.check("by pages", space().tables().translate(start).is_some_and(|leaf| leaf.leaf_size == PAGE));
        let _ = areas.push(area);
    }
    for area in &areas {
        t.equal("its own memory", probe::read::<u64>(area.start()), Ok(area.start().0));
    }
    for area in areas {
        let start = area.start();
        space().vfree(this_cpu(), area);
        t.check("gone", probe::read::<u64>(start).is_err());
    }
}

target_test!(what_cannot_be_had_is_an_error_and_takes_nothing);
fn what_cannot_be_had_is_an_error_and_takes_nothing(t: &mut Test) {
    let kernel = granule::kernel();
    // Or else running out would bring empty tables back.
    space().reclaim_tables(this_cpu());
    let free = kernel.frames.stats().free as u64;
    t.equal("no pages", space().vmalloc(this_cpu(), 0).err(), Some(VmallocError::NoPages));
    let more = space().vmalloc(this_cpu(), free + 1).err();
    t.check("more frames than are free", matches!(more, Some(VmallocError::OutOfMemory(_))));
    let window = (layout::VMALLOC_END - layout::VMALLOC_START) / PAGE;
    for pages in [window, u64::MAX, u64::MAX / PAGE] {
        t.equal("more addresses", space().vmalloc(this_cpu(), pages).err(), Some(VmallocError::NoAddresses { pages }));
    }
    let Some(area) = t.ok("and then an ordinary one", space().vmalloc(this_cpu(), 3)) else { return };
    let inside = area.start() + PAGE;
    t.equal("not its start", space().vfree_at(this_cpu(), inside), Err(VmallocError::NotAnArea(inside)));
    let start = area.into_start();
    t.equal("freed by address", space().vfree_at(this_cpu(), start), Ok(3));
    t.equal("and only once", space().vfree_at(this_cpu(), start), Err(VmallocError::NotAnArea(start)));
}

// Fails as late as it can, and so has the most to undo. On the machine with the least memory, since it touches all of
// it.
target_test!(frames_without_tables_are_given_back, machine("a53"));
fn frames_without_tables_are_given_back(t: &mut Test) {
    space().reclaim_tables(this_cpu());
    let free = granule::kernel().frames.stats().free as u64;
    // The node of the area may take a frame as well, so a few less than all: too few for a table for each 512 pages.
    let tight = space().vmalloc(this_cpu(), free - 8).err();
    t.check("no tables", matches!(tight, Some(VmallocError::Tables(granule_pgtable::Error::OutOfTables { .. }))));
    t.equal("frames that are free", granule::kernel().frames.stats().free as u64, free);
}

target_test!(freed_areas_give_their_frames_and_addresses_back);
fn freed_areas_give_their_frames_and_addresses_back(t: &mut Test) {
    let Some(first) = t.ok("vmalloc", space().vmalloc(this_cpu(), 40)) else { return };
    let start = first.start();
    space().vfree(this_cpu(), first);
    let used = granule::kernel().frames.stats().used;
    for _ in 0..200 {
        let pages = 1 + t.random() % 40;
        let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), pages)) else { return };
        t.check("addresses that were free, not new ones", area.start() <= start);
        space().vfree(this_cpu(), area);
    }
    t.equal("frames in use", granule::kernel().frames.stats().used, used);
}

target_test!(the_linear_map_shows_all_memory_by_the_leaves_that_fit);
fn the_linear_map_shows_all_memory_by_the_leaves_that_fit(t: &mut Test) {
    let kernel = granule::kernel();
    let hidden = |address: PhysAddr| kernel.platform.no_map.iter().any(|range| range.contains(address));
    let (mut in_blocks, mut in_pages) = (0, 0);
    for bank in &kernel.platform.memory {
        let mut at = bank.start();
        while at < bank.end() {
            let Some(found) = space().tables().translate(layout::linear(at)) else {
                t.check("all memory is shown", hidden(at));
                at = at + PAGE;
                continue;
            };
            if found.physical != at {
                t.equal("at its offset", found.physical, at);
                return;
            }
            *(if found.leaf_size >= 2 << 20 { &mut in_blocks } else { &mut in_pages }) += found.leaf_size;
            at = PhysAddr(at.0 & !(found.leaf_size - 1)) + found.leaf_size;
        }
    }
    // Pages are for the image's edges, and for what other tests have split.
    match Wishes::read().linear_leaves(kernel.features().size_change.is_trusted()) {
        Leaves::Largest => t.check("nearly all by blocks", in_blocks > 2 * in_pages),
        Leaves::Pages => t.equal("bytes in blocks where nothing can be split", in_blocks, 0),
    };
}

target_test!(the_images_alias_is_never_writable_where_the_image_is_not);
fn the_images_alias_is_never_writable_where_the_image_is_not(t: &mut Test) {
    let kernel = granule::kernel();
    let range = image::physical_range(kernel.boot);
    let pages = (range.start().0..range.end().0).step_by(PAGE_SIZE).map(PhysAddr);
    let wrong = pages.filter(|&page| {
        let leaf = space().tables().translate(layout::linear(page));
        let own = space().tables().translate(image::start() + (page - range.start()));
        let own_writable = own.is_none_or(|own| own.descriptor.is_writable());
        leaf.is_none_or(|leaf| leaf.descriptor.is_writable() != own_writable || leaf.descriptor.is_executable())
    });
    t.equal("pages with the wrong permission", wrong.count(), 0);
    let text = layout::linear(range.start());
    // SAFETY: the alias of the kernel's own text; the write must be refused, and would write what is there.
    let same = probe::read::<u32>(text).and_then(|word| unsafe { probe::write(text, word) });
    // A checked image may fill a block.
    let level = space().tables().translate(text).and_then(|leaf| i8::try_from(leaf.level).ok());
    t.check("and the hardware agrees", level.is_some() && same.is_err_and(|fault| fault.level() == level));
}

target_test!(registers_are_mapped_as_device_memory);
fn registers_are_mapped_as_device_memory(t: &mut Test) {
    use granule_arch::descriptor::MemoryType;
    let mut devices = heapless::Vec::<VirtAddr, 16>::new();
    space().for_each_area(|area| {
        if area.kind() == granule::mm::kernel::area::AreaKind::Device {
            let _ = devices.push(area.start());
        }
    });
    t.check("there are some", !devices.is_empty());
    for device in devices {
        let leaf = space().tables().translate(device).map_or(0, |leaf| leaf.descriptor.0);
        t.equal("nGnRE", leaf >> 2 & 7, MemoryType::DeviceNGnRE as u64);
        t.check("never executable", leaf & granule_arch::descriptor::bits::PXN != 0);
    }
}
