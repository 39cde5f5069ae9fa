//! A device on the model SMMU, which may have cached all that the architecture permits, while its space changes at
//! random: after each call a transaction may reach what the entry of its page maps, and nothing else. The exception is
//! what a CPU's hardware makes writable, which may be read-only to the SMMU until its device has faulted once.
//!
//! QEMU keeps what was used, and does each command at once. The model keeps all that could have been used, until a
//! CMD_SYNC has been taken: so a missing one, or a wait left out, is seen here.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::vec::Vec;

use core::ops::Range;
use core::ptr::NonNull;

use granule_arch::addr::PhysAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_model::smmu::{Access as Wants, Hardware as Kind, ModelPlatform, Outcome, Pace, SmmuModel};
use granule_pgtable::{Mmu, Stores};
use granule_smmuv3::{DmaMemory, Platform, Report};

use super::super::Resolution;
use super::super::host::Hardware;
use super::emulated::Emulated;
use super::{DmaDevice, Iommu, NotifyMode, PAGE, READ_WRITE, START, STREAM, at, entry};
use crate::lab::{self, Lab};
use crate::mm::frame::tests::leaked;
use crate::mm::kernel::Machine;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::space::{Access, MapRequest, Placement, Populate, Sharing, SpaceRef, Spaces, handle_fault};
use crate::smp::{Cpu, CpuId};

/// Pages of a space that are looked at.
const PAGES: u64 = 8;
/// Memory of a machine.
const MIB: u64 = 16;
const MEMORY: u64 = 0x4000_0000;

/// The model, with memory from the allocator.
struct Registers {
    platform: ModelPlatform,
    memory: Emulated,
}

impl Hardware for Registers {
    fn read32(&self, offset: usize) -> u32 {
        self.platform.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        self.platform.write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        self.platform.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.platform.write64(offset, value);
    }
    fn dmb_oshst(&self) {
        self.platform.dmb_oshst();
    }
    fn dmb_oshld(&self) {
        self.platform.dmb_oshld();
    }
    fn is_coherent(&self) -> bool {
        self.platform.is_coherent()
    }
    fn clean(&self, start: PhysAddr, bytes: u64) {
        self.platform.clean(start, bytes);
    }
    fn relax(&self) {
        self.platform.relax();
    }
    fn microseconds(&self) -> u64 {
        self.platform.microseconds()
    }
    fn report(&self, report: &Report) {
        self.platform.report(report);
    }
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let memory = self.memory.allocate(bytes, align)?;
        self.platform.map_uncached(&memory);
        Some(memory)
    }
}

/// A machine with a model of an SMMU in it, for ever.
pub(super) struct Modelled {
    pub(super) cpu: Cpu,
    pub(super) spaces: &'static Spaces,
    pub(super) model: Arc<SmmuModel>,
    pub(super) iommu: &'static Iommu,
    mmu: Machine,
}

impl Modelled {
    pub(super) fn new(notify_mode: NotifyMode, kind: Kind) -> Self {
        let (frames, cpu) = (leaked(MIB), Cpu::new(CpuId(0)));
        let mmu = Metal(LinearView { offset: frames.linear().address(PhysAddr(0)).0 });
        let spaces = Box::leak(Box::new(Spaces::new(&cpu, mmu, frames).unwrap()));
        let linear = frames.linear();
        let find = move |address: u64| {
            let is_memory = (MEMORY..MEMORY + (MIB << 20)).contains(&address);
            is_memory.then(|| NonNull::new(linear.address(PhysAddr(address)).as_ptr()).unwrap())
        };
        // SAFETY: the machine's memory is never given back. Frames of tables and of the SMMU are used by atomics, and
        // zeroed while this, the only thread, is not in the model.
        let model = Arc::new(unsafe { SmmuModel::over(kind, Box::new(find)) });
        let hardware = Registers { platform: model.platform(), memory: Emulated::new(frames) };
        let iommu = Iommu::on_host(Box::new(hardware), mmu, frames, notify_mode).unwrap();
        Self { cpu, spaces, model, iommu, mmu }
    }
}

pub(super) struct Story {
    pub(super) cpu: Cpu,
    spaces: &'static Spaces,
    pub(super) model: Arc<SmmuModel>,
    pub(super) device: DmaDevice,
    pub(super) space: SpaceRef,
    children: Vec<SpaceRef>,
    mmu: Machine,
    random: u64,
    /// A fault was served, and the retry may fault again.
    is_stuck: bool,
}

impl Story {
    /// A device that is not bound yet.
    pub(super) fn attached(notify_mode: NotifyMode, kind: Kind, seed: u64) -> Self {
        let Modelled { cpu, spaces, model, iommu, mmu } = Modelled::new(notify_mode, kind);
        let device = iommu.attach(&cpu, STREAM).unwrap();
        model.add_device(STREAM);
        // Translations that the SMMU may have kept count against a transaction.
        model.prefer_old();
        let space = spaces.create(&cpu).unwrap();
        let mut story =
            Self { cpu, spaces, model, device, space, children: Vec::new(), mmu, random: seed, is_stuck: false };
        story.map(0, PAGES, Sharing::Private);
        story
    }

    pub(super) fn new(notify_mode: NotifyMode, kind: Kind, seed: u64) -> Self {
        let story = Self::attached(notify_mode, kind, seed);
        story.device.bind(&story.cpu, &story.space).unwrap();
        story
    }

    /// A number below `below`.
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Private pages are written, shared ones read: those are writable and clean.
    fn map(&mut self, first: u64, count: u64, sharing: Sharing) {
        let request = MapRequest {
            placement: Placement::Fixed(at(first)),
            bytes: count * PAGE,
            protection: READ_WRITE,
            sharing,
            populate: Populate::OnDemand,
        };
        self.space.mmap(&self.cpu, &request).unwrap();
        let access = if sharing == Sharing::Shared { Access::Read } else { Access::Write };
        (first..first + count).for_each(|page| handle_fault(&self.space, &self.cpu, at(page), access).unwrap());
    }

    /// A store of a CPU with FEAT_HAFDBS: a writable-clean entry becomes writable, and nothing is invalidated.
    fn store_by_hardware(&mut self, page: u64) {
        let tables = self.space.tables();
        let Some((_, cell)) = tables.cell(at(page)) else { return };
        let found = self.mmu.load(cell);
        if found.is_valid() && found.is_young() && found.may_be_written() {
            self.mmu.store(cell, Descriptor(found.0 & !bits::RDONLY));
        }
    }

    /// One call of mm's, or one transaction, on some pages.
    fn act(&mut self) {
        let first = self.draw(PAGES);
        let count = 1 + self.draw(3).min(PAGES - first - 1);
        let (start, bytes) = (at(first), count * PAGE);
        match self.draw(20) {
            0 | 1 => self.space.munmap(&self.cpu, start, bytes).unwrap(),
            2..=4 => self.map(first, count, Sharing::Private),
            // A range that is not mapped cannot be changed.
            5 => _ = self.space.mprotect(start, bytes, Protection::READ),
            6 | 7 => _ = self.space.mprotect(start, bytes, READ_WRITE),
            8 => _ = self.space.madvise_dontneed(&self.cpu, start, bytes),
            9 => {
                let child = self.space.fork(&self.cpu).unwrap();
                self.children.push(child);
            }
            10 => self.children.clear(),
            11 => _ = handle_fault(&self.space, &self.cpu, start, Access::Write),
            12 | 13 => self.transact(first),
            15 | 16 => self.map(first, count, Sharing::Shared),
            17 | 18 => self.store_by_hardware(first),
            14 => {
                self.device.unbind(&self.cpu);
                self.device.bind(&self.cpu, &self.space).unwrap();
            }
            _ if self.draw(4) == 0 => self.exit(),
            _ => _ = handle_fault(&self.space, &self.cpu, start, Access::Read),
        }
    }

    /// The device writes; what is refused is resolved, and comes again.
    fn transact(&mut self, page: u64) {
        let address = at(page).0;
        if let Outcome::Refused { .. } = self.model.transact(STREAM, address, Wants::WRITE) {
            let resolution = self.device.resolve(&self.cpu, address..address + 8, Access::Write, &|_| true);
            let reaches = Outcome::Reaches(entry(&self.space, at(page)).address().0);
            self.is_stuck |= resolution == Resolution::Resolved
                && self.model.outcomes(STREAM, address, Wants::WRITE) != BTreeSet::from([reaches]);
        }
    }

    /// The space ends under its device, and another comes.
    fn exit(&mut self) {
        self.space = self.spaces.create(&self.cpu).unwrap();
        self.children.clear();
        // The outcome for a space that has ended does not matter.
        let after = self.model.outcomes(STREAM, START.0, Wants::READ);
        assert_eq!(after, BTreeSet::from([Outcome::Refused { event: None }]));
        self.device.unbind(&self.cpu);
        self.map(0, PAGES, Sharing::Private);
        self.device.bind(&self.cpu, &self.space).unwrap();
    }

    /// Whether transactions may reach what the entries map, and nothing else.
    pub(super) fn is_right(&self, mut pages: Range<u64>) -> bool {
        if self.is_stuck {
            return false;
        }
        pages.all(|page| {
            let page = at(page);
            let descriptor = entry(&self.space, page);
            let refused = |event| Outcome::Refused { event: Some(event) };
            let [read, write] = match descriptor {
                _ if !descriptor.is_valid() => [refused(0x10); 2],
                _ if !descriptor.is_young() => [refused(0x12); 2],
                _ => {
                    let reaches = Outcome::Reaches(descriptor.address().0);
                    [reaches, if descriptor.0 >> 7 & 1 == 0 { reaches } else { refused(0x13) }]
                }
            };
            let only = |wants, outcome| self.model.outcomes(STREAM, page.0, wants) == BTreeSet::from([outcome]);
            let is_hardwares = descriptor.is_writable() && descriptor.0 & bits::DIRTY == 0;
            let mut writes = self.model.outcomes(STREAM, page.0, Wants::WRITE);
            if is_hardwares {
                writes.remove(&refused(0x13));
            }
            only(Wants::READ, read) && writes == BTreeSet::from([write])
        })
    }
}

/// Rounds until something is wrong, at most `rounds`.
fn wrong_after(notify_mode: NotifyMode, pace: Pace, rounds: usize, lab: Option<&Lab>) -> Option<usize> {
    let mut story = Story::new(notify_mode, Kind { pace, ..Kind::QEMU }, 0x2545_f491_4f6c_dd1d);
    assert!(story.is_right(0..PAGES));
    let sites = lab.map(|lab| lab.sites());
    sites.iter().flatten().for_each(|&site| host::set(site, true));
    let wrong = (0..rounds).find(|_| {
        story.act();
        story.model.forget();
        !story.is_right(0..PAGES)
    });
    sites.iter().flatten().for_each(|&site| host::set(site, false));
    match lab {
        // Some switches are found by the model as well, before a transaction shows them.
        Some(_) => drop(story.model.violations()),
        None => story.model.assert_clean(),
    }
    wrong
}

#[test]
fn a_device_may_reach_what_the_entries_say_and_nothing_else() {
    host::with(&[], || {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            for pace in [Pace::AtOnce, Pace::PerLook(1)] {
                assert_eq!(wrong_after(mode, pace, 400, None), None, "{mode:?}, {pace:?}");
            }
        }
    });
}

#[test]
fn each_switch_of_the_lab_is_seen() {
    host::with(&[], || {
        for (mode, pace, lab) in [
            (NotifyMode::Tlb, Pace::AtOnce, &lab::NO_SECONDARY_TLB),
            (NotifyMode::Tlb, Pace::AtOnce, &lab::TRUST_HW_DIRTY),
            (NotifyMode::Events, Pace::AtOnce, &lab::TRUST_HW_DIRTY),
            (NotifyMode::Tlb, Pace::AtOnce, &lab::WRONG_ASID),
            (NotifyMode::Tlb, Pace::AtOnce, &lab::SKIP_SYNC),
            (NotifyMode::Tlb, Pace::PerLook(1), &lab::FREE_BEFORE_SYNC),
            (NotifyMode::Tlb, Pace::AtOnce, &lab::NO_CFGI),
            (NotifyMode::Events, Pace::AtOnce, &lab::NO_UPGRADE_EVENT),
            (NotifyMode::Events, Pace::AtOnce, &lab::WRONG_ASID),
            (NotifyMode::Events, Pace::AtOnce, &lab::SKIP_SYNC),
        ] {
            assert!(wrong_after(mode, pace, 400, Some(lab)).is_some(), "{mode:?} with {lab:?}");
        }
    });
}
