//! vmalloc areas and the linear map as the hardware sees them.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

mod lazy;

use core::sync::atomic::{AtomicU64, Ordering};

use granule::mm::kernel::area::AreaKind;
use granule::mm::kernel::policy::Wishes;
use granule::mm::kernel::set_memory::SetMemoryError;
use granule::mm::kernel::vmalloc::{KernelArea, VmallocError};
use granule::mm::kernel::{KernelSpace, image};
use granule::mm::layout;
use granule::platform::ControllerDescription;
use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe;
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_pgtable::Leaves;

use crate::harness::{Test, frames_in_use, target_test};

const BLOCK_PAGES: u64 = 512;
const GROUP_PAGES: u64 = 16;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// The largest leaf of an area, where memory is not in pieces.
const fn largest(pages: u64) -> u64 {
    match pages {
        BLOCK_PAGES.. => BLOCK_PAGES * PAGE,
        GROUP_PAGES.. => GROUP_PAGES * PAGE,
        _ => PAGE,
    }
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
        let leaf = if space().policy().area_leaves == Leaves::Pages { PAGE } else { largest(pages) };
        t.equal("its first leaf", space().tables().translate(start).map(|found| found.leaf_size), Some(leaf));
        let _ = areas.push(area);
    }
    for area in &areas {
        t.equal("its own memory", probe::read::<u64>(area.start()), Ok(area.start().0));
    }
    for area in areas {
        let start = area.start();
        space().vfree(this_cpu(), area);
        space().purge(this_cpu());
        t.check("gone", probe::read::<u64>(start).is_err());
    }
}

target_test!(huge_areas_are_blocks_of_memory_of_their_own);
fn huge_areas_are_blocks_of_memory_of_their_own(t: &mut Test) {
    let used = frames_in_use();
    let Some(area) = t.ok("vmalloc_huge", space().vmalloc_huge(this_cpu(), BLOCK_PAGES + 1)) else { return };
    let (start, pages) = (area.start(), area.pages());
    t.equal("whole blocks", pages, 2 * BLOCK_PAGES);
    for page in 0..pages {
        let address = start + page * PAGE;
        // SAFETY: the first word of a page of the test's own area.
        t.equal("writable", unsafe { probe::write(address, address.0) }, Ok(()));
    }
    t.check("nothing above", probe::read::<u64>(start + pages * PAGE).is_err());
    t.ok("read-only, all of one", space().set_memory_ro(start, BLOCK_PAGES));
    for page in 0..pages {
        let address = start + page * PAGE;
        t.equal("what was written", probe::read::<u64>(address), Ok(address.0));
        // SAFETY: as above.
        t.equal("writable", unsafe { probe::write(address, address.0) }.is_ok(), page >= BLOCK_PAGES);
    }
    let leaf = |page: u64| space().tables().translate(start + page * PAGE).map(|found| found.leaf_size);
    t.check("blocks still", [0, BLOCK_PAGES].into_iter().all(|page| leaf(page) == Some(BLOCK_PAGES * PAGE)));
    space().vfree(this_cpu(), area);
    t.check("gone", probe::read::<u64>(start).is_err());
    space().reclaim(this_cpu());
    t.equal("frames in use", frames_in_use(), used);
}

// All CPUs have the block in their TLBs while a part of it is made read-only and executable, and when it is gone.
target_test!(a_part_of_a_block_changes_on_all_cpus, needs("areas smp"));
fn a_part_of_a_block_changes_on_all_cpus(t: &mut Test) {
    static WRONG: AtomicU64 = AtomicU64::new(0);
    fn see_all(cpu: &Cpu, start: usize) {
        let page = VirtAddr(start as u64) + u64::from(cpu.id.0) * 8;
        // So that this CPU's TLB has the block.
        WRONG.fetch_add(u64::from(probe::read::<u64>(page).is_err()), Ordering::Relaxed);
    }
    fn see(cpu: &Cpu, start: usize) {
        let start = VirtAddr(start as u64);
        for page in 0..BLOCK_PAGES {
            let address = start + page * PAGE + u64::from(cpu.id.0) * 8;
            // SAFETY: a word of this CPU's in a page of the test's own area, which stays while this runs.
            let is_written = unsafe { probe::write(address, 1_u64) }.is_ok();
            WRONG.fetch_add(u64::from(is_written == is_code(page)), Ordering::Relaxed);
        }
    }
    const fn is_code(page: u64) -> bool {
        page >= 37 && page < 44
    }
    let Some(area) = t.ok("vmalloc_huge", space().vmalloc_huge(this_cpu(), BLOCK_PAGES)) else { return };
    let start = area.start();
    let on_all = || smp::call(smp::online(), see_all, start.0 as usize);
    on_all();
    let before = space().split_counts();
    t.ok("code", space().set_memory_rox(start + 37 * PAGE, 7));
    t.equal("blocks that were split", space().split_counts().of_areas - before.of_areas, 1);
    WRONG.store(0, Ordering::Relaxed);
    smp::call(smp::online(), see, start.0 as usize);
    t.equal("pages that are not what they should be, on any CPU", WRONG.load(Ordering::Relaxed), 0);
    for page in 0..BLOCK_PAGES {
        let leaf = space().tables().translate(start + page * PAGE).map(|found| found.descriptor.is_executable());
        t.equal("executable", leaf, Some(is_code(page)));
    }
    space().vfree(this_cpu(), area);
    WRONG.store(0, Ordering::Relaxed);
    on_all();
    t.equal("CPUs that cannot reach it any more", WRONG.load(Ordering::Relaxed), smp::online().len() as u64);
}

target_test!(a_part_of_a_block_is_refused_where_nothing_is_split, machines("refuse"));
fn a_part_of_a_block_is_refused_where_nothing_is_split(t: &mut Test) {
    let Some(area) = t.ok("vmalloc_huge", space().vmalloc_huge(this_cpu(), BLOCK_PAGES)) else { return };
    let (start, refused) = (area.start(), space().split_counts().refused);
    let partial = Err(SetMemoryError::Partial { leaf: start, size: BLOCK_PAGES * PAGE });
    t.equal("one page", space().set_memory_ro(start + PAGE, 1), partial);
    t.equal("all but one", space().set_memory_rox(start, BLOCK_PAGES - 1), partial);
    t.equal("counted", space().split_counts().refused - refused, 2);
    // SAFETY: a word of the test's own area.
    t.equal("and nothing has changed", unsafe { probe::write(start + PAGE, 1_u64) }, Ok(()));
    t.ok("all of it", space().set_memory_ro(start, BLOCK_PAGES));
    space().vfree(this_cpu(), area);
}

target_test!(what_cannot_be_had_is_an_error_and_takes_nothing);
fn what_cannot_be_had_is_an_error_and_takes_nothing(t: &mut Test) {
    let kernel = granule::kernel();
    // Or else running out would bring empty tables back.
    space().reclaim(this_cpu());
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
// it, and with areas of pages, which take the most tables.
target_test!(frames_without_tables_are_given_back, machines("pages"));
fn frames_without_tables_are_given_back(t: &mut Test) {
    let used = frames_in_use();
    let free = granule::kernel().frames.stats().free as u64;
    // The node of the area may take a frame as well, so a few less than all: too few for a table for each 512 pages.
    let tight = space().vmalloc(this_cpu(), free - 8).err();
    t.check("no tables", matches!(tight, Some(VmallocError::Tables(granule_pgtable::Error::OutOfTables { .. }))));
    t.equal("frames in use", frames_in_use(), used);
}

target_test!(freed_areas_give_their_frames_and_addresses_back);
fn freed_areas_give_their_frames_and_addresses_back(t: &mut Test) {
    let Some(first) = t.ok("vmalloc", space().vmalloc(this_cpu(), 40)) else { return };
    let start = first.start();
    space().vfree(this_cpu(), first);
    space().purge(this_cpu());
    let used = frames_in_use();
    for _ in 0..200 {
        let pages = 1 + t.random() % 40;
        let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), pages)) else { return };
        t.check("addresses that were free, not new ones", area.start() <= start);
        space().vfree(this_cpu(), area);
        space().purge(this_cpu());
    }
    t.equal("frames in use", frames_in_use(), used);
}

target_test!(the_linear_map_shows_all_memory_by_the_leaves_that_fit);
fn the_linear_map_shows_all_memory_by_the_leaves_that_fit(t: &mut Test) {
    let kernel = granule::kernel();
    let hidden = |address: PhysAddr| kernel.platform.no_map.iter().any(|range| range.contains(address));
    let (mut in_blocks, mut in_pages, mut in_larger) = (0, 0, 0);
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
            in_larger += if found.leaf_size > PAGE { found.leaf_size } else { 0 };
            at = PhysAddr(at.0 & !(found.leaf_size - 1)) + found.leaf_size;
        }
    }
    // Pages are for the image's edges, and for what other tests have split.
    match Wishes::read().linear_leaves(kernel.features().size_change.is_trusted()) {
        Leaves::Largest => t.check("nearly all by blocks", in_blocks > 2 * in_pages),
        Leaves::Pages => t.equal("bytes in larger leaves where none can be split", in_larger, 0),
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

/// Given frames, each mapped twice in a row: whole blocks of them, groups, or pages. The frames are the test's.
fn ring(t: &mut Test, frames: &[PhysAddr]) -> Option<VirtAddr> {
    let twice: heapless::Vec<PhysAddr, 128> = frames.iter().chain(frames).copied().collect();
    // SAFETY: the test's own frames, which it keeps until it has unmapped them; of no area.
    t.ok("vmap", unsafe { space().vmap(this_cpu(), &twice) })
}

/// The frames of the ring of a test, in whose linear map they stay writable.
fn ring_frames(t: &mut Test, pages: usize) -> Option<heapless::Vec<PhysAddr, 64>> {
    let mut list = t.ok("frames", granule::kernel().frames.alloc_list_in_groups(this_cpu(), pages))?;
    Some(core::iter::from_fn(|| list.pop()).collect())
}

/// Pages of a ring that CPUs in [`see_ring`] found other than they should be, and whether one copy may be written.
static WRONG_IN_RING: AtomicU64 = AtomicU64::new(0);
static RING_IS_WRITABLE: AtomicU64 = AtomicU64::new(0);
const RING_PAGES: u64 = 40;

/// Writes to each page by one copy, reads by the other, and compares what stores are refused.
fn see_ring(cpu: &Cpu, start: usize) {
    let word = VirtAddr(start as u64) + 64 + u64::from(cpu.id.0) * 8;
    let is_writable = RING_IS_WRITABLE.load(Ordering::Relaxed) != 0;
    for page in 0..RING_PAGES {
        let (first, second) = (word + page * PAGE, word + (RING_PAGES + page) * PAGE);
        // SAFETY: words of this CPU's in frames of the test, which stay while this runs.
        let written = unsafe { (probe::write(first, first.0).is_ok(), probe::write(second, second.0)) };
        let is_right = written == (is_writable, Ok(())) && probe::read::<u64>(first) == Ok(second.0);
        WRONG_IN_RING.fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }
}

/// Counts the pages that a CPU still reaches.
fn see_no_ring(_: &Cpu, start: usize) {
    let reached = (0..2 * RING_PAGES).filter(|page| probe::read::<u64>(VirtAddr(start as u64) + page * PAGE).is_ok());
    WRONG_IN_RING.fetch_add(reached.count() as u64, Ordering::Relaxed);
}

target_test!(given_frames_are_seen_by_each_copy_on_each_cpu_until_they_are_unmapped);
fn given_frames_are_seen_by_each_copy_on_each_cpu_until_they_are_unmapped(t: &mut Test) {
    let Some(frames) = ring_frames(t, RING_PAGES as usize) else { return };
    let Some(start) = ring(t, &frames) else { return };
    let wrong = |seen: fn(&Cpu, usize), is_writable: bool| {
        RING_IS_WRITABLE.store(is_writable.into(), Ordering::Relaxed);
        WRONG_IN_RING.store(0, Ordering::Relaxed);
        smp::call(smp::online(), seen, start.0 as usize);
        WRONG_IN_RING.load(Ordering::Relaxed)
    };
    t.equal("wrong, both copies writable", wrong(see_ring, true), 0);
    let leaf = if space().policy().area_leaves == Leaves::Pages { PAGE } else { largest(GROUP_PAGES) };
    let first_is_in_group = frames.first().is_some_and(|frame| frame.is_aligned(GROUP_PAGES * PAGE));
    if first_is_in_group {
        t.equal("its first leaf", space().tables().translate(start).map(|found| found.leaf_size), Some(leaf));
    }
    t.ok("the first copy read-only", space().set_memory_ro(start, RING_PAGES));
    t.equal("wrong, one copy read-only", wrong(see_ring, false), 0);
    for &frame in &frames {
        let alias = layout::linear(frame);
        // SAFETY: the first word of a frame of the test's.
        t.equal("the linear map still writes", unsafe { probe::write(alias, alias.0) }, Ok(()));
    }
    t.equal("and each copy shows it", probe::read::<u64>(start + RING_PAGES * PAGE), Ok(layout::linear(frames[0]).0));
    t.equal("no code", space().set_memory_x(start, 1), Err(SetMemoryError::NeverExecutable(start)));
    t.equal("nor at once", space().set_memory_rox(start, 1), Err(SetMemoryError::NeverExecutable(start)));
    // SAFETY: the fetch is refused, so nothing is called.
    t.check("it faults when it is called", unsafe { probe::execute(start) }.is_err());
    t.ok("writable", space().set_memory_rw(start, RING_PAGES));
    // A part of a leaf, where these are split.
    t.ok("one page read-only", space().set_memory_ro(start + 3 * PAGE, 1));
    t.ok("and writable", space().set_memory_rw(start + 3 * PAGE, 1));
    t.equal("wrong, both copies writable again", wrong(see_ring, true), 0);
    t.equal("not by vfree", space().vfree_at(this_cpu(), start), Err(VmallocError::WrongKind(start, AreaKind::Mapped)));
    let used = frames_in_use();
    t.equal("unmapped", space().vunmap(this_cpu(), start), Ok(2 * RING_PAGES));
    t.equal("pages that a CPU still reaches", wrong(see_no_ring, true), 0);
    t.equal("frames in use", frames_in_use(), used);
    for frame in frames {
        let alias = layout::linear(frame) + 64;
        t.equal("the frame has what was written", probe::read::<u64>(alias).map(|word| word >= start.0), Ok(true));
        granule::kernel().frames.free(this_cpu(), frame);
    }
}

target_test!(what_is_no_memory_is_not_mapped_by_vmap);
fn what_is_no_memory_is_not_mapped_by_vmap(t: &mut Test) {
    let text = image::physical_range(granule::kernel().boot).start();
    let (ControllerDescription::V2 { distributor: registers, .. }
    | ControllerDescription::V3 { distributor: registers, .. }
    | ControllerDescription::Bcm2836 { cores: registers, .. }) = &granule::kernel().platform.interrupt_controller;
    // The image's alias is read-only, as that of code in an area is; registers have none.
    for wrong in [text, registers.start(), PhysAddr(u64::MAX - PAGE + 1), text + 8] {
        // SAFETY: refused, so nothing is mapped.
        let mapped = unsafe { space().vmap(this_cpu(), &[wrong]) };
        t.equal("refused", mapped, Err(VmallocError::NotMemory(wrong)));
    }
    // SAFETY: no frame.
    t.equal("none", unsafe { space().vmap(this_cpu(), &[]) }, Err(VmallocError::NoPages));
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
