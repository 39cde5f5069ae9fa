//! A machine for sessions on the host: real page tables, bytes behind them, and accesses that obey them.

use std::collections::BTreeMap;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Kind, MemoryType, Protection};
use granule_arch::esr::Syndrome;
use granule_pgtable::host::HostMachine;
use granule_pgtable::{Change, Granule4K, Lazy, LeafTotals, PageRange, Shape, Step, WholeLeaves};

use crate::memory::{AccessWidth, Permission};
use crate::{Half, Refusal, Row, Subject};
use granule::chip::power::Status;
use granule::linux::errno::Errno;
use granule::linux::process::signal::Signal;
use granule::linux::process::stack::Words;
use granule::linux::process::status::{ExecError, Life, Name, ProcessEnd, Summary};
use granule::mm::kernel::area::AreaKind;
use granule::mm::kernel::set_memory::SetMemoryError;
use granule::mm::kernel::vmalloc::VmallocError;
use granule::mm::layout::VMALLOC_START;
use granule::mm::space::{Area, Moved, Unmovable};
use granule::mm::tag_storage::TagStorageStats;
use granule::trap::probe::ProbeFault;

/// The model of a machine.
pub(super) struct ModelMachine {
    pub(super) tables: HostMachine<Granule4K>,
    /// Pages and kind of each area, by its first address.
    areas: BTreeMap<u64, (u64, AreaKind)>,
    next_address: VirtAddr,
    next_frame: PhysAddr,
    /// By physical address; what was never written is 0.
    bytes: BTreeMap<u64, u8>,
    /// How its process will end, if it has one.
    process: Option<ProcessEnd>,
    /// Whether that one's notifiers are traced.
    traced: bool,
    /// The cost of its tag storage, if it has some.
    pub(super) tag_storage: Option<TagStorageStats>,
    /// How it was ended.
    pub(super) ended: Option<Status>,
    /// How often it was started anew.
    pub(super) resets: usize,
}

impl Default for ModelMachine {
    fn default() -> Self {
        Self {
            tables: HostMachine::new(64),
            areas: BTreeMap::new(),
            next_address: VMALLOC_START + PAGE,
            next_frame: PhysAddr(0x4800_0000),
            bytes: BTreeMap::new(),
            process: None,
            traced: false,
            tag_storage: None,
            ended: None,
            resets: 0,
        }
    }
}

/// The kind of an access, as the syndrome of its fault has it.
#[derive(Clone, Copy)]
#[repr(u64)]
enum ModelAccess {
    Read = 0x9600_0000,
    Write = 0x9600_0040,
    Fetch = 0x8600_0000,
}

impl ModelMachine {
    /// Where the access goes, or the fault that it takes.
    fn access(&self, address: VirtAddr, access: ModelAccess) -> Result<PhysAddr, ProbeFault> {
        const TRANSLATION: u64 = 0b00_0100;
        const PERMISSION: u64 = 0b00_1100;
        let fault = |status: u64, level: u8| {
            Err(ProbeFault { syndrome: Syndrome(access as u64 | status | u64::from(level)), address })
        };
        let last = self.tables.page_tables().walk(address).last().expect("a walk reads the root");
        let descriptor = last.descriptor;
        if last.kind != Kind::Leaf || !descriptor.is_valid() {
            return fault(TRANSLATION, last.level);
        }
        let allowed = match access {
            ModelAccess::Read => true,
            ModelAccess::Write => descriptor.is_writable(),
            ModelAccess::Fetch => descriptor.is_executable(),
        };
        if allowed { Ok(descriptor.address() + (address.0 & (PAGE - 1))) } else { fault(PERMISSION, last.level) }
    }

    fn area_of(&self, address: VirtAddr) -> Option<(u64, u64, AreaKind)> {
        let (&start, &(pages, kind)) = self.areas.range(..=address.0).next_back()?;
        (address.0 < start + pages * PAGE).then_some((start, pages, kind))
    }

    /// Maps new frames so many times in a row.
    fn map(&mut self, kind: AreaKind, pages: u64, copies: u64) -> Result<VirtAddr, VmallocError> {
        let start = self.next_address;
        let lazy = Lazy::new(self.tables.mmu());
        let attributes = Attributes::kernel_data(MemoryType::NormalTagged);
        let mut frames = self.tables.frames();
        for copy in 0..copies {
            let range = PageRange::from_pages(start + copy * pages * PAGE, pages as usize)?;
            self.tables.page_tables().map(&lazy, range, self.next_frame, attributes, Shape::PAGES, &mut frames)?;
        }
        drop(lazy);
        self.areas.insert(start.0, (pages * copies, kind));
        self.next_address = start + (pages * copies + 1) * PAGE;
        self.next_frame = self.next_frame + pages * PAGE;
        Ok(start)
    }

    fn unmap(&mut self, kind: AreaKind, start: VirtAddr) -> Result<(), VmallocError> {
        let &(pages, found) = self.areas.get(&start.0).ok_or(VmallocError::NotAnArea(start))?;
        if found != kind {
            return Err(VmallocError::WrongKind(start, found));
        }
        self.areas.remove(&start.0);
        let range = PageRange::from_pages(start, pages as usize)?;
        let lazy = Lazy::new(self.tables.mmu());
        Ok(self.tables.page_tables().unmap(&lazy, self.tables.tlb(), range, WholeLeaves, |_| {})?)
    }
}

impl Subject for ModelMachine {
    fn vmalloc(&mut self, pages: u64) -> Result<VirtAddr, VmallocError> {
        self.map(AreaKind::Vmalloc, pages, 1)
    }

    fn vfree(&mut self, start: VirtAddr) -> Result<(), VmallocError> {
        self.unmap(AreaKind::Vmalloc, start)
    }

    fn vmap(&mut self, pages: u64, copies: u64) -> Result<VirtAddr, Refusal> {
        if self.areas.values().filter(|(_, kind)| *kind == AreaKind::Mapped).count() == 8 {
            return Err(Refusal::ManyAreas(8));
        }
        Ok(self.map(AreaKind::Mapped, pages, copies)?)
    }

    fn vunmap(&mut self, start: VirtAddr) -> Result<(), VmallocError> {
        self.unmap(AreaKind::Mapped, start)
    }

    fn set_memory(&mut self, permission: Permission, start: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        let (area, size, kind) = self.area_of(start).ok_or(SetMemoryError::Hole(start))?;
        if pages == 0 {
            return Ok(());
        }
        let range = PageRange::<Granule4K>::from_pages(start, pages as usize).map_err(SetMemoryError::Range)?;
        if range.last().0 >= area + size * PAGE {
            let area = VirtAddr(area);
            return Err(SetMemoryError::GuardPage { guard: area + size * PAGE, area });
        }
        let change = match permission {
            Permission::Executable | Permission::ReadOnlyExecutable if kind == AreaKind::Mapped => {
                return Err(SetMemoryError::NeverExecutable(start));
            }
            Permission::ReadOnly => Change::READ_ONLY,
            Permission::ReadWrite => Change::READ_WRITE,
            Permission::Executable => Change::EXECUTABLE,
            Permission::NeverExecutable => Change::NO_EXECUTE,
            Permission::ReadOnlyExecutable => {
                let (lazy, tables) = (Lazy::new(self.tables.mmu()), self.tables.page_tables());
                let read_only = |change, splitter: &mut WholeLeaves| {
                    lazy.invalidate(self.tables.tlb(), [tables.update(&lazy, range, change, splitter)?]);
                    Ok(())
                };
                let tlb = self.tables.tlb();
                let changed = tables.update_to_code(&lazy, tlb, range, 0, &mut WholeLeaves, read_only);
                return changed.map_err(SetMemoryError::Tables);
            }
            Permission::Valid => Change::VALID,
            Permission::Invalid => Change::INVALID,
        };
        let lazy = Lazy::new(self.tables.mmu());
        let flush =
            self.tables.page_tables().update(&lazy, range, change, WholeLeaves).map_err(SetMemoryError::Tables)?;
        lazy.invalidate(self.tables.tlb(), [flush]);
        Ok(())
    }

    fn read(&self, address: VirtAddr, width: AccessWidth) -> Result<u64, ProbeFault> {
        let physical = self.access(address, ModelAccess::Read)?;
        let byte = |index: u32| u64::from(self.bytes.get(&(physical.0 + u64::from(index))).copied().unwrap_or(0));
        Ok((0..width.bytes()).map(|index| byte(index) << (8 * index)).sum())
    }

    fn write(&mut self, address: VirtAddr, width: AccessWidth, value: u64) -> Result<(), ProbeFault> {
        let physical = self.access(address, ModelAccess::Write)?;
        let bytes = value.to_le_bytes();
        self.bytes.extend((physical.0..).zip(bytes).take(width.bytes() as usize));
        Ok(())
    }

    fn execute(&mut self, address: VirtAddr) -> Result<(), ProbeFault> {
        self.access(address, ModelAccess::Fetch).map(drop)
    }

    fn walk(&self, whose: Half, address: VirtAddr, step: &mut dyn FnMut(&Step)) -> Option<()> {
        if whose == Half::Kernel {
            self.tables.page_tables().walk(address).for_each(|taken| step(&taken));
        }
        (whose == Half::Kernel).then_some(())
    }

    fn dump(&self, whose: Half, range: PageRange, row: &mut dyn FnMut(Row<'_>)) -> Option<LeafTotals> {
        let tables = self.tables.page_tables();
        (whose == Half::Kernel).then(|| {
            let totals = tables.dump(range, |extent| row(Row::Extent(extent)));
            tables.findings(range, |finding| row(Row::Finding(finding)));
            totals
        })
    }

    /// There is one file, `exits`, whose only process has the number 7 and exits with as many as it has words.
    fn start(&mut self, file: &str, words: Words) -> Result<u32, ExecError> {
        if file != "exits" {
            return Err(ExecError::Path(granule::linux::process::status::PathError::NotFound));
        }
        self.process = Some(ProcessEnd::Exited(words.counts().arguments as u8));
        Ok(7)
    }

    fn programs(&self) -> &'static [u8] {
        super::archive().leak()
    }

    fn wait(&mut self, process: u32) -> Option<ProcessEnd> {
        if process == 7 { self.process.take() } else { None }
    }

    fn kill(&mut self, process: u32, signal: Signal) -> Result<(), Errno> {
        if process != 7 || self.process.is_none() {
            return Err(Errno::ESRCH);
        }
        self.process = Some(ProcessEnd::Killed(signal));
        Ok(())
    }

    fn processes(&self, each: &mut dyn FnMut(&Summary)) {
        if self.process.is_some() {
            each(&Summary { id: 7, parent: 0, life: Life::Running, threads: 1, name: Name::of(b"exits") });
        }
    }

    fn areas(&self, process: u32, each: &mut dyn FnMut(&Area)) -> Option<()> {
        self.process.filter(|_| process == 7)?;
        let range = PageRange::from_pages(VirtAddr(0x40_0000), 3).expect("three pages");
        each(&Area::sample(range, Protection::READ.and(Protection::EXECUTE)));
        Some(())
    }

    fn migrate(&mut self, process: u32, address: VirtAddr) -> Result<Moved, Refusal> {
        self.process.filter(|_| process == 7).ok_or(Refusal::NoProcess(process))?;
        let is_mapped = address < VirtAddr(0x40_3000);
        let moved = Moved { from: PhysAddr(0x4100_0000), to: PhysAddr(0x4200_0000), bytes: 4096 };
        is_mapped.then_some(moved).ok_or(Refusal::Unmovable(Unmovable::NotMapped))
    }

    fn trace(&mut self, process: u32) -> Result<bool, Refusal> {
        self.process.filter(|_| process == 7).ok_or(Refusal::NoProcess(process))?;
        self.traced = !self.traced;
        Ok(self.traced)
    }

    fn tag_storage(&self) -> Result<TagStorageStats, Refusal> {
        self.tag_storage.ok_or(Refusal::NoTagStorage)
    }

    fn power_off(&mut self, status: Status) {
        self.ended = Some(status);
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}
