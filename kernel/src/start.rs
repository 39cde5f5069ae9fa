//! From the first Rust instruction to a running kernel, in the order in which things can be had.
//!
//! Exceptions come first, so that whatever goes wrong is seen; then the device tree, which describes the machine and
//! its console: no address is written before; then memory, from the linear map up to vmalloc; then what needs memory:
//! interrupts, time, the other CPUs. A boot that lacks what it needs ends with a one-line error (`BootError`); what it
//! can do without is a warning.

#![allow(unsafe_code, reason = "the boot vouches for what the entry code and the device tree hand over")]

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::cache;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_arch::features::{CpuFeatures, Mte};
use granule_arch::interrupts;
use granule_arch::random::Rndr;
use granule_arch::tag_check::{Registers, TagCheck};
use granule_pgtable::{Change, Granule4K, Lazy, Leaves, PageRange, PageTables, Shape, Table};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use thiserror::Error;

use crate::boot_info::BootInfo;
use crate::chip::power::{self, Status};
use crate::chip::timer::UnknownFrequency;
use crate::chip::uart::Port;
use crate::chip::{console, interrupt, log as kernel_log, timer};
use crate::devices::edu::Edu;
use crate::devices::pci;
use crate::devices::slot::{self, Driver};
use crate::devices::virtio::mmio;
use crate::devices::virtio_rng::{self, VirtioRng};
use crate::linux::file::device::{self, DeviceKind};
use crate::linux::process::limits;
use crate::mm::early::{MemoryMap, MemoryMapError};
use crate::mm::frame::{FrameAllocator, FrameRecords, LinearMap, usual_reserve};
use crate::mm::heap::guarded;
use crate::mm::kernel::fixmap::{self, FixmapSlot};
use crate::mm::kernel::linear::{self, BankSource, LinearMapError};
use crate::mm::kernel::mmu::{LinearView, Metal, note_code_caches};
use crate::mm::kernel::policy::{Policy, Rodata, Wishes};
use crate::mm::kernel::set_memory::SetMemoryError;
use crate::mm::kernel::vmalloc::VmallocError;
use crate::mm::kernel::{KernelSpace, image};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::{HasRegisters, Spaces};
use crate::mm::tag_storage::TagStorage;
use crate::mm::tlb::KernelTlb;
use crate::mm::{OutOfMemory, heap, layout, maintenance};
use crate::platform::errata::RepeatTlbi;
use crate::platform::features::SystemFeatures;
use crate::platform::kernel_tag_check;
use crate::platform::size_change::SizeChange;
use crate::platform::{KaslrSeed, PhysicalMemory, Platform, PlatformError, Psci, TagStorageRegion, Uart, kaslr_seed};
use crate::sched::{Stacks, Surroundings};
use crate::smp::bring_up::{self, Secondaries, SecondaryMemory};
use crate::smp::{self, BOOT_CPU, Cpu, CpuSet, this_cpu};
use crate::trap::{self, probe};
use crate::{KERNEL, Kernel, bootargs, branches, iommu, lab, random, sched, services};

// The steps stay functions of their own (`inline(never)`): together their frames would not fit the 16 KiB boot stack.

/// Why the kernel cannot run on this machine.
#[derive(Debug, Error)]
enum BootError {
    #[error("no device tree: x0 was {given:#x}, and none is at the start of memory ({looked:?}) either")]
    NoDeviceTree { given: u64, looked: PhysAddr },
    #[error("the device tree at {0:?} has {1} bytes by its header: more than there is room for")]
    TreeTooLarge(PhysAddr, usize),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Timer(#[from] UnknownFrequency),
    #[error("{0}")]
    MemoryMap(#[from] MemoryMapError),
    #[error("{0}")]
    LinearMap(#[from] LinearMapError),
    #[error("{0}")]
    Tables(#[from] granule_pgtable::Error),
    #[error("the kernel's own mappings: {0}")]
    Mappings(#[from] SetMemoryError),
    #[error("{0} while the kernel set itself up")]
    OutOfMemory(#[from] OutOfMemory),
}

/// Makes the kernel run on this machine, on all of its CPUs. Returns on the boot CPU, with interrupts on.
pub fn start(boot: &'static BootInfo) {
    let (kernel, _) = start_alone(boot);
    if let Err(error) = run(boot, kernel) {
        fail(&error);
    }
}

/// Of [`start`], all that one CPU needs to use the memory and to poll the console: interrupts stay masked, and the
/// other CPUs and all devices as the firmware left them. Returns where the device tree lies, too.
pub fn start_alone(boot: &'static BootInfo) -> (&'static Kernel, PhysRange) {
    trap::init_cpu(&BOOT_CPU);
    // SAFETY: the entry code wrote `boot` and linked the fixmap's table.
    unsafe { fixmap::init(boot) };
    kernel_log::init();
    timer::init(boot.entry_count);
    run_alone(boot).unwrap_or_else(|error| fail(&error))
}

#[inline(never)]
fn run(boot: &'static BootInfo, kernel: &'static Kernel) -> Result<(), BootError> {
    let cpu = &BOOT_CPU;
    set_up_devices(cpu, kernel);
    start_cpus(boot, cpu, kernel)?;
    iommu::init(cpu, kernel);
    find_devices(cpu, kernel);
    Ok(())
}

#[inline(never)]
fn run_alone(boot: &'static BootInfo) -> Result<(&'static Kernel, PhysRange), BootError> {
    let cpu = &BOOT_CPU;
    bring_up::init(cpu);
    let (platform, device_tree) = read_platform(boot)?;
    bootargs::init(&platform.bootargs);
    kernel_log::set_level_from_bootargs();
    early_console(platform);
    let device_tree = device_tree?;
    timer::init_frequency(platform.timer_frequency)?;
    for TagStorageRegion { storage, block_bytes, tagged } in &platform.tag_storage {
        crate::log::debug!("tag storage: {storage:?}, in blocks of {} KiB, of {tagged:?}", block_bytes >> 10);
    }
    power::init(platform.psci.and_then(Psci::system_calls));
    bootargs::check(|warning| crate::log::warn!("{warning}"));

    Ok((set_up_memory(boot, cpu, platform, device_tree)?, device_tree))
}

/// The console until there are kernel mappings: what `earlycon=` names, else what the device tree names.
fn early_console(platform: &Platform) {
    static EARLY: Once<Port> = Once::new();
    let named = [console::earlycon(), platform.uart];
    // A port there would write into memory, for good: later its registers are refused.
    let named = named.map(|uart| uart.filter(|uart| !is_memory(platform, uart.registers.start())));
    // SAFETY: by the boot arguments or the device tree such a port is at each.
    let Some(port) = named.iter().flatten().find_map(|uart| unsafe { early_port(uart) }) else { return };
    console::init_early(EARLY.call_once(|| port).console());
    kernel_log::print_backlog();
}

/// Whether `registers` are in memory, with a warning.
fn is_memory(platform: &Platform, registers: PhysAddr) -> bool {
    let is_memory = platform.memory.iter().any(|bank| bank.contains(registers));
    if is_memory {
        crate::log::warn!("console: {registers} is memory, where no registers can be");
    }
    is_memory
}

/// The port, mapped by the fixmap; `None`, with a warning, where nothing answers there.
///
/// # Safety
/// The registers of `uart` are such a port's, or nothing is there.
unsafe fn early_port(uart: &Uart) -> Option<Port> {
    let registers = uart.registers.start();
    // One page is mapped, and no more.
    if registers.0 % PAGE > PAGE - uart.used_bytes() {
        crate::log::warn!("console: its registers at {registers} cross the end of a page");
        return None;
    }
    // SAFETY: the caller's.
    let Some(mapped) = (unsafe { fixmap::map_device(FixmapSlot::Console, registers) }) else {
        crate::log::warn!("console: its registers at {registers} are at no address that tables can hold");
        return None;
    };
    // SAFETY: mapped for ever as device memory, and the caller's word for what it is.
    unsafe { port_at(mapped, uart) }
}

/// The port whose registers are mapped at `mapped`; `None`, after a warning, where nothing answers.
///
/// # Safety
/// As for [`Port::new`], if anything answers.
unsafe fn port_at(mapped: VirtAddr, uart: &Uart) -> Option<Port> {
    if let Err(fault) = Port::probe(uart, mapped) {
        crate::log::warn!("console: no registers at {}: {fault}", uart.registers.start());
        return None;
    }
    // SAFETY: the caller's.
    unsafe { Port::new(uart, mapped) }
}

/// Reports why the boot ends, in the log and on the console where there is one, and ends it.
fn fail(error: &BootError) -> ! {
    kernel_log::keep(format_args!("boot failed: {error}\n"));
    if !console::is_connected() {
        power::fail_without_console(format_args!("boot failed: {error}"));
    }
    crate::println!("boot failed: {error}");
    smp::stop_others();
    power::off(Status::Failure)
}

/// Where the device tree lies; why it cannot be used.
type TreeResult = Result<PhysRange, PlatformError>;

/// The distance from where the image is linked to where it is to run, by the seed that the loader left for that, which
/// is zeroed. The header of the image has it on return, for the other CPUs. 0: the image stays.
///
/// The entry code calls it on the boot stack, before the image is relocated: no address of the image may outlast it.
/// The device tree is checked here and not again, as that is a good part of the boot.
pub fn slide(boot: &mut BootInfo) -> u64 {
    // SAFETY: the entry code wrote `boot` and linked the fixmap's table.
    unsafe { fixmap::init(boot) };
    // SAFETY: the bytes are used here alone.
    let Ok((tree, blob)) = (unsafe { map_tree(boot) }) else { return 0 };
    let Ok(seed) = kaslr_seed(blob) else { return 0 };
    boot.is_tree_sound = 1;
    let Some(KaslrSeed { value, offset }) = seed.filter(|_| tree.start().is_aligned(4)) else { return 0 };
    // The other half is for the place in memory: the EFI stub's.
    let slide = layout::image_slide(boot.image_end - boot.image_start, value & u64::from(u32::MAX));
    for word in [offset, offset + 4] {
        // SAFETY: in the tree, which is memory by its magic number and no other's.
        unsafe { fixmap::write_word(tree.start() + word as u64, 0) };
    }
    let header = image::start() + image::SLIDE;
    // SAFETY: the header's word is read by the entry of the other CPUs alone, past the caches.
    unsafe {
        fixmap::patch_word(boot, header, slide as u32);
        cache::clean_to_memory(header, size_of::<u64>() as u64);
    }
    slide
}

/// Maps the device tree that the loader gave, or else the one at the start of memory, where QEMU puts it for an ELF,
/// and returns where it lies, and its bytes.
///
/// # Safety
/// The bytes are used no more once the mapping is gone (`fixmap::unmap_device_tree`), nor when the tree has changed.
unsafe fn map_tree<'t>(boot: &BootInfo) -> Result<(PhysRange, &'t [u8]), BootError> {
    const GIB: u64 = 1 << 30;
    let looked = PhysAddr(boot.image_start).align_down(GIB);
    let start = if boot.device_tree != 0 { PhysAddr(boot.device_tree) } else { looked };
    // SAFETY: the first of the mappings, or the same one again: of that of `slide` nothing is used any more.
    let header = unsafe { fixmap::map_device_tree(start, size_of::<u64>()) };
    // A probing read: where a loader has left something else in x0, there may be nothing at all.
    let header = header.and_then(|header| probe::read::<u64>(header).ok());
    let Some(size) = header.and_then(|header| crate::platform::tree_size(&header.to_le_bytes())) else {
        return Err(BootError::NoDeviceTree { given: boot.device_tree, looked });
    };
    // SAFETY: of the header a copy was made.
    let mapped = unsafe { fixmap::map_device_tree(start, size) }.ok_or(BootError::TreeTooLarge(start, size))?;
    // SAFETY: mapped, for as long as the caller has it, over a device tree by its magic number, which a loader put
    // into ordinary memory for this kernel alone.
    let blob = unsafe { core::slice::from_raw_parts(mapped.as_ptr::<u8>(), size) };
    Ok((PhysRange::from_size(start, size as u64).ok_or(BootError::TreeTooLarge(start, size))?, blob))
}

/// Reads the device tree. Of one that cannot be used the platform has what could be read: the console, mostly.
#[inline(never)]
fn read_platform(boot: &BootInfo) -> Result<(&'static Platform, TreeResult), BootError> {
    // Made here, as in the image it would be 8 KiB of nothing.
    static PLATFORM: Once<SpinMutex<Platform>> = Once::new();

    // SAFETY: the bytes are used until the mapping goes below.
    let (tree, blob) = unsafe { map_tree(boot) }?;
    let mut platform = PLATFORM.call_once(|| SpinMutex::new(Platform::new())).lock();
    let read = if boot.is_tree_sound == 0 { platform.read(blob) } else { platform.read_sound(blob) };
    // SAFETY: the platform is all copies.
    unsafe { fixmap::unmap_device_tree() };
    let own = BOOT_CPU.mpidr.load(Ordering::Relaxed);
    let read = read.and_then(|()| platform.read_tables(&mut FirmwareTables { is_mapped: false }, own)).map(|()| tree);
    platform.leave_out_tag_storage(image::physical_range(boot), "the kernel's image");
    platform.leave_out_tag_storage(tree, "the device tree");
    Ok((SpinMutexGuard::leak(platform), read))
}

/// ACPI's tables, one at a time where the device tree was.
struct FirmwareTables {
    is_mapped: bool,
}

impl PhysicalMemory for FirmwareTables {
    fn bytes(&mut self, range: PhysRange) -> Option<&[u8]> {
        self.unmap();
        // SAFETY: nothing is mapped there.
        let start = unsafe { fixmap::map_device_tree(range.start(), range.size() as usize) }?;
        self.is_mapped = true;
        let pages = (start.align_down(PAGE).0..start.0 + range.size()).step_by(PAGE_SIZE);
        // Probing reads: an address that firmware got wrong may be one where nothing answers.
        if pages.map(VirtAddr).any(|page| probe::read::<u8>(page).is_err()) {
            return None;
        }
        // SAFETY: mapped until the next call, which the borrow ends before; memory of the firmware's, which writes it
        // no more, and which the loader has kept out of the kernel's.
        Some(unsafe { core::slice::from_raw_parts(start.as_ptr::<u8>(), range.size() as usize) })
    }
}

impl FirmwareTables {
    fn unmap(&mut self) {
        if core::mem::take(&mut self.is_mapped) {
            // SAFETY: what was mapped was borrowed, and no more.
            unsafe { fixmap::unmap_device_tree() };
        }
    }
}

impl Drop for FirmwareTables {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// The linear map, the frames, the kernel's space: in this order, each on top of the one before.
#[inline(never)]
fn set_up_memory(
    boot: &'static BootInfo,
    cpu: &Cpu,
    platform: &'static Platform,
    device_tree: PhysRange,
) -> Result<&'static Kernel, BootError> {
    static FRAMES: Once<FrameAllocator> = Once::new();

    let image = image::physical_range(boot);
    // Without tags their storage is memory like any other.
    let has_tags = cpu.features.call_once(CpuFeatures::read).mte() >= Mte::Tags;
    let is_memory =
        |range: &&PhysRange| !has_tags && platform.tag_storage.iter().any(|region| region.storage == **range);
    let reserved = platform.reserved.iter().filter(|range| !is_memory(range)).copied();
    let taken = reserved.chain([image, device_tree]).chain(platform.initrd);
    // Used where it was made: a copy is 2.5 KiB more of the boot stack.
    let mut map = MemoryMap::new(platform.memory.iter().copied(), taken);
    let memory = map.as_mut().map_err(|error| *error)?;
    // SAFETY: the entry code's root table, used by this kernel alone, in the image for ever.
    let root = unsafe { Table::<Granule4K>::root(PhysAddr(boot.root_table)) };
    let wishes = Wishes::read();
    let leaves = wishes.linear_leaves(is_trusted_at_first(cpu.features.call_once(CpuFeatures::read)));
    let read_only = image::read_only_range(boot, wishes.rodata);
    let guarded = guarded::take_memory(memory);
    let plan = linear::Plan { no_map: &platform.no_map, read_only, leaves, pages: guarded };
    linear::map(boot, root, memory, plan)?;
    if let Some(pool) = guarded {
        // SAFETY: it was taken for this, and mapped by pages.
        unsafe { guarded::init(pool) };
    }
    map_frame_records(root, memory)?;

    let pages = FrameAllocator::required_bytes(memory) / PAGE_SIZE;
    let storage = layout::linear(memory.take(pages, PAGE)?);
    let linear = LinearMap::new(layout::LINEAR_BASE);
    let records = FrameRecords::new(layout::FRAMES_BASE);
    // SAFETY: the storage was just taken and the linear map shows it; the records are mapped; all memory is in the
    // linear map, and what is free in the map is not in use.
    let frames = FRAMES.call_once(|| unsafe { FrameAllocator::new(cpu, memory, storage, records, linear) });
    let kernel = set_up_spaces(boot, cpu, platform, root, frames)?;
    let grow = |start, pages| crate::kernel().space.map_heap(this_cpu(), start, pages);
    let shrink = |start, pages| crate::kernel().space.unmap_heap(this_cpu(), start, pages);
    // SAFETY: the window in the layout is the heap's alone, and nothing else unmaps what it maps.
    unsafe { heap::kernel_heap().start(grow, shrink) };
    Ok(kernel)
}

/// The kernel's space and what others are made from. Out of line: the boot stack has no room for these beside the map
/// of memory and the allocator.
#[inline(never)]
fn set_up_spaces(
    boot: &'static BootInfo,
    cpu: &Cpu,
    platform: &'static Platform,
    root: Table,
    frames: &'static FrameAllocator,
) -> Result<&'static Kernel, BootError> {
    let space = KernelSpace::new(cpu, Metal(LinearView {}), KernelTlb, root, frames)?;
    let spaces = Spaces::new(cpu, Metal(LinearView {}), frames)?;
    Ok(KERNEL.call_once(|| Kernel { boot, platform, features: Once::new(), frames, space, spaces }))
}

/// Gives each frame of memory its record, in an array with holes where there is no memory.
#[inline(never)]
fn map_frame_records(root: Table, memory: &mut MemoryMap) -> Result<(), BootError> {
    let mmu = Metal(LinearView {});
    let tables = PageTables::new(&mmu, root);
    let lazy = Lazy::new(&mmu);
    let spans: heapless::Vec<(usize, usize), { crate::mm::early::MAX_BANKS }> =
        FrameAllocator::required_records(memory).collect();
    for (first, frames) in spans {
        let bytes = FrameRecords::bytes(frames);
        // At a block boundary if there is such a run: then blocks map it, and not a page table for every 2 MiB.
        let start = memory.take(bytes / PAGE_SIZE, BLOCK_SIZE).or_else(|_| memory.take(bytes / PAGE_SIZE, PAGE))?;
        let range = PageRange::new(FrameRecords::new(layout::FRAMES_BASE).address(first), bytes as u64)?;
        let attributes = Attributes::kernel_data(MemoryType::NormalTagged);
        let mut source = BankSource::anywhere(memory);
        tables.map(&lazy, range, start, attributes, Shape::LARGEST_DATA, &mut source)?;
    }
    Ok(())
}

/// Interrupts, time, the console's input. A machine that lacks one of them still has a kernel: it prints a warning and
/// goes on.
#[inline(never)]
fn set_up_devices(cpu: &'static Cpu, kernel: &'static Kernel) {
    let platform = kernel.platform;
    let mut map = |registers: PhysRange| match kernel.space.map_device(cpu, registers) {
        Ok(address) => Some(address),
        Err(error) => {
            crate::log::error!("registers at {registers:?}: {error}");
            None
        }
    };
    let uart = platform.uart.and_then(|uart| Some((uart, map(uart.registers)?)));
    if let Some((uart, mapped)) = uart {
        use_console(mapped, &uart);
    }
    power::map(&platform.power, &mut map);
    // Redistributors of CPUs that are not used may lie before those that are.
    let cpus = platform.cpus.len() + platform.cpus_left_out + platform.cpus_unused;
    if let Err(error) = interrupt::init(&platform.interrupt_controller, cpus, cpu, &mut map) {
        crate::log::error!("interrupt controller: {error}");
        return;
    }
    if let Err(error) = timer::start(platform.timer, cpu) {
        crate::log::error!("timer: {error}");
    }
    if let Some(line) = uart.and_then(|(uart, _)| uart.interrupt)
        && let Err(error) = console::start_receiving(line, cpu)
    {
        crate::log::warn!("console: {error}; its input is polled");
    }
}

/// Enumerates PCI Express and the virtio devices of the device tree, and registers the drivers that use it. The kernel
/// runs without any of it.
#[inline(never)]
fn find_devices(cpu: &'static Cpu, kernel: &'static Kernel) {
    let mut map = |registers: PhysRange| {
        let mapped = kernel.space.map_device(cpu, registers);
        mapped.inspect_err(|error| crate::log::error!("devices: registers at {registers:?}: {error}")).ok()
    };
    if let Err(error) = pci::init(kernel.platform, &mut map) {
        crate::log::error!("PCI: {error}");
    }
    if let Err(error) = mmio::init(kernel.platform, &mut map) {
        crate::log::error!("virtio: {error}");
    }
    if slot::count::<VirtioRng>() > 0 {
        random::set_device(virtio_rng::seed);
    }
    device::set_kinds(&DEVICE_FILES);
}

/// The devices whose registers a process may map.
static DEVICE_FILES: [DeviceKind; 1] =
    [DeviceKind { name: Edu::NAME, count: slot::count::<Edu>, started: started::<Edu> }];

fn started<D: Driver + HasRegisters>(index: usize) -> Option<&'static dyn HasRegisters> {
    let device: &D = slot::started(index)?;
    Some(device)
}

/// Starts the other CPUs, decides by all of them what the kernel may use, and releases them.
///
/// Text is patched while they wait, so that no CPU ever sees half a decision; the identity map, which they came in by,
/// ends on each CPU when it is released.
#[inline(never)]
fn start_cpus(boot: &BootInfo, cpu: &'static Cpu, kernel: &'static Kernel) -> Result<(), BootError> {
    let own = cpu.features.call_once(CpuFeatures::read);
    let steps = Secondaries { entry: PhysAddr(boot.secondary_entry), arrive };
    let mut stack = || kernel.space.alloc_stack(cpu).inspect_err(|error| crate::log::error!("a stack: {error}")).ok();
    let mut release_word = |word| release_word(cpu, kernel, word);
    let mut memory =
        SecondaryMemory { stack: &mut stack, release_word: &mut release_word, image: image::physical_range(boot) };
    let cpus = bring_up::bring_up(cpu, kernel.platform, steps, &mut memory).unwrap_or_else(|error| {
        crate::log::error!("other CPUs: {error}");
        CpuSet::EMPTY.with(cpu.id)
    });

    kernel.frames.set_cpus(cpus.iter().count());
    let features = features_of(cpus, own);
    let wishes = Wishes::read();
    let is_split = decide_policy(kernel, wishes, &features, own);
    if wishes.rodata == Rodata::Off {
        open_constants(kernel)?;
    }
    crate::log::info!("speculation: {}", features.weaknesses);
    note_code_caches(features.cpus.code_caches());
    kernel.features.call_once(|| features);
    lab::init();
    maintenance::init();
    if !kernel.platform.tag_storage.is_empty() && own.mte() >= Mte::Tags {
        start_tag_storage(kernel);
    }
    let patched = branches::patch(kernel);
    crate::log::debug!("{patched} branches patched");
    if kernel.features().has_tags() {
        kernel.spaces.start_tags().map_err(|_| OutOfMemory)?;
    }
    if kernel.space.policy().debug_pagealloc {
        kernel.frames.hide_free_frames(cpu, &kernel.space);
    }

    // SAFETY: all CPUs have FEAT_RNG.
    let rndr = kernel.features().cpus.rng().then(|| unsafe { Rndr::new() });
    random::init(&kernel.platform.rng_seed, rndr);
    start_tags(kernel, kernel.features().kernel_tag_check);
    let empty = kernel.frames.alloc_zeroed(cpu)?;
    kernel.features().dirty_state.enable();
    bring_up::leave_identity_map(empty);
    sched::init(cpu, surroundings(kernel))?;
    sched::init_cpu(cpu);
    let frames = kernel.frames.total();
    kernel.frames.set_reserve(usual_reserve(frames));
    limits::init(frames);
    interrupts::enable();
    bring_up::release(cpus, empty);
    if is_split {
        kernel.space.split_linear_to_pages(kernel.platform.memory.iter().copied())?;
    }
    guarded::start(cpu);
    console::start_waker(cpu)?;
    services::start(cpu)?;
    crate::linux::process::timer::start(cpu)?;
    Ok(())
}

/// The features that all CPUs have, and those that boot arguments ask for.
fn features_of(cpus: CpuSet, own: &CpuFeatures) -> SystemFeatures {
    let mut features = SystemFeatures::new(own);
    for other in cpus.iter().filter_map(smp::cpu).filter_map(|other| other.features.get()) {
        features.add(other);
    }
    if bootargs::is_set("repeat-tlbi") {
        features.repeat_tlbi = RepeatTlbi::Forced;
    }
    features.size_change = features.size_change.or_as_told();
    features.kernel_tag_check = kernel_tag_check::decide(features.cpus.mte());
    features
}

/// The parts of the kernel that the scheduler does not import.
fn surroundings(kernel: &'static Kernel) -> Surroundings {
    Surroundings {
        frames: kernel.frames,
        stacks: &kernel.space,
        asid_bits: kernel.features().cpus.asid_bits(),
        check_tags: trap::tags::on_the_way_out,
    }
}

impl Stacks for KernelSpace {
    fn alloc(&self, cpu: &Cpu) -> Result<VirtAddr, OutOfMemory> {
        self.alloc_stack(cpu).map_err(|_| OutOfMemory)
    }

    fn free(&self, cpu: &Cpu, top: VirtAddr) {
        self.free_stack(cpu, top);
    }
}

/// Where the word at a release address is mapped: by the linear map, which a loader's reservation does not keep from
/// it, or by an area of its own.
#[inline(never)]
fn release_word(cpu: &Cpu, kernel: &Kernel, word: PhysRange) -> Option<VirtAddr> {
    match kernel.space.map_device(cpu, word) {
        Err(VmallocError::NotRegisters(_)) => Some(layout::linear(word.start())),
        mapped => mapped.inspect_err(|error| crate::log::error!("a release address: {error}")).ok(),
    }
}

/// The frames of tag storage, which are lent from now on. Where not all CPUs have tags they are never anything else.
#[inline(never)]
fn start_tag_storage(kernel: &Kernel) {
    if let Some(storage) = TagStorage::new(&kernel.platform.tag_storage, kernel.frames.linear()) {
        kernel.frames.set_tag_storage(storage);
    }
}

/// The heap's tags, and the checks of this CPU; the other CPUs begin theirs when they are released.
#[inline(never)]
fn start_tags(kernel: &Kernel, checks: TagCheck) {
    if checks != TagCheck::Off {
        let (start, bytes) = heap::kernel_heap().mapped();
        if let Err(error) = kernel.space.reserve_heap_tags(start, bytes) {
            crate::log::error!("heap.tags: {error}; the heap has no tags");
            return;
        }
        // SAFETY: all CPUs have tags, and the heap is mapped as Normal-Tagged. Nothing has given pointers a tag so far.
        let registers = unsafe {
            heap::kernel_heap().start_tags(random::number());
            Registers::new()
        };
        registers.set_el1(checks);
        registers.resume();
    }
}

/// Sets the policy for live mappings, by the features of all CPUs and the linear map as made for `boot_cpu`. Returns
/// whether it is still to be split to pages, for the CPUs that have come up.
fn decide_policy(kernel: &Kernel, wishes: Wishes, all: &SystemFeatures, boot_cpu: &CpuFeatures) -> bool {
    let (trusted, at_first) = (all.size_change.is_trusted(), is_trusted_at_first(boot_cpu));
    let is_split = wishes.splits_to_pages(at_first, trusted) && kernel.space.can_split_linear_to_pages();
    let linear = if is_split { Leaves::Pages } else { wishes.linear_leaves(at_first) };
    let (policy, denied) = Policy::decide(wishes, trusted, linear, kernel.frames.total());
    if let Some(denied) = denied {
        crate::log::warn!("{denied}");
    }
    kernel.space.set_policy(policy);
    is_split
}

/// `rodata=off`: the image's constants become writable. Their alias was made so.
fn open_constants(kernel: &Kernel) -> Result<(), BootError> {
    let mmu = Metal(LinearView {});
    let lazy = Lazy::new(&mmu);
    let flush = kernel.space.update_linear(&lazy, image::constants(), Change::READ_WRITE)?;
    lazy.invalidate(&KernelTlb, [flush]);
    Ok(())
}

/// Whether live leaves may change size, on a machine of which only the boot CPU is known.
fn is_trusted_at_first(boot_cpu: &CpuFeatures) -> bool {
    SizeChange::of(boot_cpu).or_as_told().is_trusted_at_first()
}

fn arrive(cpu: &'static Cpu) {
    trap::init_cpu(cpu);
    cpu.features.call_once(CpuFeatures::read);
}

fn use_console(mapped: VirtAddr, uart: &Uart) {
    static PORT: Once<Port> = Once::new();
    console::keep_early_input();
    // SAFETY: by the device tree such a port is there, and it is mapped for ever.
    if let Some(port) = unsafe { port_at(mapped, uart) } {
        let first = !console::is_connected();
        console::init(PORT.call_once(|| port).console());
        if first {
            kernel_log::print_backlog();
        }
    }
}
