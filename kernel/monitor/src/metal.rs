//! The session on the machine that the kernel runs on: its console, and the kernel's own functions.

#![allow(unsafe_code, reason = "the operator may read, write and call any address")]

use alloc::vec::Vec;
use core::fmt::{self, Write};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::cache;
use granule_arch::descriptor::MemoryType;
use granule_pgtable::{LeafTotals, PageRange, PageTables, Step};

use super::memory::{AccessWidth, Permission};
use super::{Half, Refusal, Row, Subject};
use granule::chip::console;
use granule::chip::power::{self, Status};
use granule::kernel;
use granule::linux::errno::Errno;
use granule::linux::file::initrd;
use granule::linux::process;
use granule::linux::process::signal::Signal;
use granule::linux::process::stack::Words;
use granule::linux::process::status::{ExecError, ProcessEnd, Summary};
use granule::mm::OutOfMemory;
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::kernel::vmalloc::{KernelArea, VmallocError};
use granule::mm::kernel::{self, Machine};
use granule::mm::notifier::Subscription;
use granule::mm::notifier::trace::{self, Trace};
use granule::mm::space::{Area, Moved, SpaceHandle};
use granule::mm::tag_storage::{TagStorage, TagStorageStats};
use granule::smp::{self, this_cpu};
use granule::trap::probe::{self, ProbeFault};

/// The console as a place to write to.
pub(super) struct Screen;

impl Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_fmt(format_args!("{text}"))
    }

    /// One call, however many pieces: other CPUs print before it or after it, not in between.
    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> fmt::Result {
        console::print_by_editor(arguments);
        Ok(())
    }
}

/// Processes whose notifiers can be traced at a time.
const TRACES: usize = 8;
/// Areas of `vmap` at a time.
const MAPPED: usize = 8;

/// This machine.
#[derive(Default)]
pub(super) struct Metal {
    /// By handles: a trace keeps neither a program's memory nor a device's way to it.
    traces: heapless::Vec<Subscription<Trace, SpaceHandle>, TRACES>,
    /// Areas of `vmap`, each with its frames.
    mapped: heapless::Vec<(VirtAddr, Vec<PhysAddr>), MAPPED>,
}

/// Frees frames that are mapped nowhere any more.
fn free(frames: &[PhysAddr]) {
    let mut freeing = kernel().frames.freeing(this_cpu());
    frames.iter().for_each(|&frame| freeing.add(frame));
}

/// The rows of `tables`, which stay linked as they are during the call.
fn dump(tables: &PageTables<'_, Machine>, range: PageRange, row: &mut dyn FnMut(Row<'_>)) -> LeafTotals {
    let totals = kernel::dump(tables, range, &mut |extent| row(Row::Extent(extent)));
    kernel::findings(tables, range, &mut |finding| row(Row::Finding(finding)));
    totals
}

impl Subject for Metal {
    fn vmalloc(&mut self, pages: u64) -> Result<VirtAddr, VmallocError> {
        kernel().space.vmalloc(this_cpu(), pages).map(KernelArea::into_start)
    }

    fn vfree(&mut self, start: VirtAddr) -> Result<(), VmallocError> {
        let space = &kernel().space;
        space.vfree_at(this_cpu(), start)?;
        // A person who frees an area by hand wants to see it gone.
        space.purge(this_cpu());
        Ok(())
    }

    fn vmap(&mut self, pages: u64, copies: u64) -> Result<VirtAddr, Refusal> {
        if self.mapped.is_full() {
            return Err(Refusal::ManyAreas(MAPPED));
        }
        let (kernel, cpu, count) = (kernel(), this_cpu(), pages as usize);
        let mut frames = Vec::new();
        frames.try_reserve_exact(count * copies as usize).map_err(|_| VmallocError::OutOfMemory(OutOfMemory))?;
        let mut list = kernel.frames.alloc_list_in_groups(cpu, count).map_err(VmallocError::from)?;
        while let Some(frame) = list.pop() {
            frames.push(frame);
        }
        // There is room for all of them.
        for at in 0..count * (copies as usize - 1) {
            frames.push(frames[at]);
        }
        // SAFETY: fresh frames, which stay here until `vunmap`.
        let mapped = unsafe { kernel.space.vmap(cpu, &frames) };
        frames.truncate(count);
        let start = mapped.inspect_err(|_| free(&frames))?;
        // There is room, by the check above.
        let _ = self.mapped.push((start, frames));
        Ok(start)
    }

    fn vunmap(&mut self, start: VirtAddr) -> Result<(), VmallocError> {
        kernel().space.vunmap(this_cpu(), start)?;
        if let Some(place) = self.mapped.iter().position(|(mapped, _)| *mapped == start) {
            free(&self.mapped.swap_remove(place).1);
        }
        Ok(())
    }

    fn set_memory(&mut self, permission: Permission, start: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        let space = &kernel().space;
        // The kernel uses its registers as they were mapped.
        let leaf = space.tables().translate(start);
        if leaf.is_some_and(|leaf| leaf.descriptor.memory_index() == MemoryType::DeviceNGnRE as u8) {
            return Err(SetMemoryError::NotVmalloc(start));
        }
        match permission {
            Permission::ReadOnly => space.set_memory_ro(start, pages),
            Permission::ReadWrite => space.set_memory_rw(start, pages),
            Permission::Executable => space.set_memory_x(start, pages),
            Permission::NeverExecutable => space.set_memory_nx(start, pages),
            Permission::ReadOnlyExecutable => space.set_memory_rox(start, pages),
            Permission::Valid => space.set_memory_valid(start, pages, Validity::Valid),
            Permission::Invalid => space.set_memory_valid(start, pages, Validity::Invalid),
        }
    }

    fn read(&self, address: VirtAddr, width: AccessWidth) -> Result<u64, ProbeFault> {
        match width {
            AccessWidth::Byte => probe::read::<u8>(address).map(u64::from),
            AccessWidth::Half => probe::read::<u16>(address).map(u64::from),
            AccessWidth::Word => probe::read::<u32>(address).map(u64::from),
            AccessWidth::Quad => probe::read(address),
        }
    }

    fn write(&mut self, address: VirtAddr, width: AccessWidth, value: u64) -> Result<(), ProbeFault> {
        // SAFETY: none can be given, and that is the command's purpose: the person at the console owns the machine, and
        // pages that are mapped writable may be broken by a store there. The probe returns a fault for all others.
        unsafe {
            match width {
                AccessWidth::Byte => probe::write(address, value as u8),
                AccessWidth::Half => probe::write(address, value as u16),
                AccessWidth::Word => probe::write(address, value as u32),
                AccessWidth::Quad => probe::write(address, value),
            }?;
            // Written through, so it is mapped and readable: nothing here faults.
            cache::sync_code(address, u64::from(width.bytes()), kernel().features().cpus.code_caches());
        }
        Ok(())
    }

    fn execute(&mut self, address: VirtAddr) -> Result<(), ProbeFault> {
        // SAFETY: as for `write`: the person who types the address vouches for code there that may be called.
        unsafe { probe::execute(address) }
    }

    fn walk(&self, whose: Half, address: VirtAddr, step: &mut dyn FnMut(&Step)) -> Option<()> {
        match whose {
            Half::Kernel => kernel().space.tables().walk(address).for_each(|taken| step(&taken)),
            Half::Process(id) => process::space_of(id)?.tables().walk(address).for_each(|taken| step(&taken)),
        }
        Some(())
    }

    fn dump(&self, whose: Half, range: PageRange, row: &mut dyn FnMut(Row<'_>)) -> Option<LeafTotals> {
        Some(match whose {
            Half::Kernel => dump(&kernel().space.tables().get(), range, row),
            Half::Process(id) => dump(&process::space_of(id)?.tables(), range, row),
        })
    }

    fn programs(&self) -> &'static [u8] {
        initrd::archive()
    }

    fn start(&mut self, file: &str, words: Words) -> Result<u32, ExecError> {
        process::start(file, words)
    }

    fn wait(&mut self, process: u32) -> Option<ProcessEnd> {
        let family = process::family_of(process)?;
        let foreground = console::Foreground::begin(family);
        // The second Ctrl-C ends what handles or ignores the first.
        let mut signal = Signal::INT;
        process::wait_with(process, || {
            if foreground.take_interrupt() {
                granule::println!("^C");
                // It may have ended concurrently.
                let _ = process::kill_family(family, core::mem::replace(&mut signal, Signal::KILL));
            } else {
                foreground.pause();
            }
        })
    }

    fn kill(&mut self, process: u32, signal: Signal) -> Result<(), Errno> {
        process::kill(process, signal)
    }

    fn processes(&self, each: &mut dyn FnMut(&Summary)) {
        process::for_each(each);
    }

    fn areas(&self, process: u32, each: &mut dyn FnMut(&Area)) -> Option<()> {
        process::space_of(process)?.for_each_area(each);
        Some(())
    }

    fn migrate(&mut self, process: u32, address: VirtAddr) -> Result<Moved, Refusal> {
        let space = process::space_of(process).ok_or(Refusal::NoProcess(process))?;
        Ok(kernel().spaces.migrate_at(this_cpu(), &space, address)?)
    }

    fn trace(&mut self, process: u32) -> Result<bool, Refusal> {
        // Those of processes that have ended go on this occasion.
        self.traces.retain(|trace| process::space_of(trace.name).is_some());
        if let Some(place) = self.traces.iter().position(|trace| trace.name == process) {
            self.traces.swap_remove(place);
            return Ok(false);
        }
        if self.traces.is_full() {
            return Err(Refusal::ManyTraces(TRACES));
        }
        let space = process::space_of(process).ok_or(Refusal::NoProcess(process))?;
        let subscription = Subscription::new(SpaceHandle::new(&space), Trace { name: process }, trace::PRIORITY)?;
        // There is room, by the check above.
        let _ = self.traces.push(subscription);
        Ok(true)
    }

    fn tag_storage(&self) -> Result<TagStorageStats, Refusal> {
        let why = if kernel().features().has_tags() { Refusal::NoTagStorage } else { Refusal::NoTags };
        kernel().frames.tag_storage().map(TagStorage::stats).ok_or(why)
    }

    fn power_off(&mut self, status: Status) {
        smp::stop_others();
        power::off(status)
    }

    fn reset(&mut self) {
        smp::stop_others();
        power::reset()
    }
}
