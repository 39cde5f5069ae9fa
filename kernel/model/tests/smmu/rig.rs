//! A probed SMMU, tables that a test writes by hand, and shorthands.

use std::collections::BTreeSet;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::tlbi::Granule;
use granule_model::smmu::{Access, Hardware, ModelPlatform, Outcome, SmmuModel};
use granule_smmuv3::{
    Command, ContextDescriptor, DmaMemory, OutputSize, Platform, Privilege, Probed, Scope, Smmu, Stream, StreamError,
    Streams, Translation, Word, probe,
};
use std::sync::atomic::Ordering::Relaxed;

/// Bus 0, device 1, function 0.
pub(crate) const STREAM: u32 = 8;
pub(crate) const ASID: u16 = 5;

pub(crate) const F_TRANSLATION: Outcome = Outcome::Refused { event: Some(0x10) };
pub(crate) const F_PERMISSION: Outcome = Outcome::Refused { event: Some(0x13) };
pub(crate) const SILENT: Outcome = Outcome::Refused { event: None };

/// A page of user memory: valid, page, EL0, inner shareable, young, nG.
pub(crate) const PAGE_RW: u64 = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;
/// [`PAGE_RW`], read-only.
pub(crate) const PAGE_RO: u64 = PAGE_RW | 1 << 7;
/// [`PAGE_RO`], writable and clean: DBM set, AP[2] set.
pub(crate) const PAGE_CLEAN: u64 = PAGE_RO | 1 << 51;

/// [`Streams::set`]: the model has no memory that a device must not reach, and reports what it must not do.
#[allow(unsafe_code, reason = "the model's memory is words of an arena")]
pub(crate) fn set(
    streams: &mut Streams<ModelPlatform>,
    smmu: &Smmu<ModelPlatform>,
    stream: u32,
    to: Stream<'_>,
) -> Result<(), StreamError> {
    // SAFETY: see above.
    unsafe { streams.set(smmu, stream, to) }
}

/// [`Streams::update_context`], likewise.
#[allow(unsafe_code, reason = "the model's memory is words of an arena")]
pub(crate) fn update_context(
    streams: &mut Streams<ModelPlatform>,
    smmu: &Smmu<ModelPlatform>,
    stream: u32,
    to: &ContextDescriptor,
) -> Result<(), StreamError> {
    // SAFETY: see above.
    unsafe { streams.update_context(smmu, stream, to) }
}

/// The command of these words.
#[allow(unsafe_code, reason = "the model's memory is words of an arena")]
pub(crate) const fn command(words: [u64; 2]) -> Command {
    // SAFETY: see above.
    unsafe { Command::from_words(words) }
}

/// An SMMU in use.
pub(crate) struct Rig {
    pub(crate) model: SmmuModel,
    pub(crate) platform: ModelPlatform,
    pub(crate) parts: Probed<ModelPlatform>,
}

impl Rig {
    pub(crate) fn new(hardware: Hardware) -> Self {
        Self::of(SmmuModel::new(hardware))
    }

    pub(crate) fn of(model: SmmuModel) -> Self {
        let parts = probe(model.platform()).expect("the model answers");
        model.assert_clean();
        let platform = model.platform();
        Self { model, platform, parts }
    }

    /// A device is translated by `tables` from now on.
    pub(crate) fn translate(&mut self, stream: u32, context: &ContextDescriptor) {
        let to = Stream::Translate { context, privilege: Privilege::Incoming };
        set(&mut self.parts.streams, &self.parts.smmu, stream, to).expect("the model does what it is told");
    }

    pub(crate) fn set(&mut self, stream: u32, to: Stream<'_>) {
        set(&mut self.parts.streams, &self.parts.smmu, stream, to).expect("the model does what it is told");
    }

    /// Writes an entry of a table, and makes it visible.
    fn store(&self, at: PhysAddr, entry: u64) {
        self.model.word(at).store(entry, Relaxed);
        self.platform.dmb_oshst();
        self.parts.smmu.clean(at, 8);
    }

    /// Both ends of one page.
    pub(crate) fn invalidate_page(&self, address: u64) {
        let page = VirtAddr(address);
        self.parts.smmu.invalidate(ASID, page, page + 0x1000, Scope::Leaves);
    }

    pub(crate) fn outcomes(&self, address: u64, access: Access) -> BTreeSet<Outcome> {
        self.model.outcomes(STREAM, address, access)
    }
}

/// Tables of 39 bits, written by hand: three levels of 4 KiB.
pub(crate) struct Tables {
    root: DmaMemory,
    middle: DmaMemory,
    last: DmaMemory,
    coherent: bool,
}

impl Tables {
    /// Empty but for the way to one table of the last level, for the first 2 MiB.
    pub(crate) fn new(rig: &Rig) -> Self {
        let tables = Self {
            root: rig.model.allocate(0x1000),
            middle: rig.model.allocate(0x1000),
            last: rig.model.allocate(0x1000),
            coherent: rig.parts.smmu.features().coherent,
        };
        rig.store(tables.root.phys(), tables.middle.phys().0 | 0b11);
        rig.store(tables.middle.phys(), tables.last.phys().0 | 0b11);
        tables
    }

    pub(crate) fn context(&self, asid: u16) -> ContextDescriptor {
        ContextDescriptor::new(&Translation {
            root: self.root.phys(),
            address_bits: 39,
            granule: Granule::Size4K,
            output: OutputSize::Bits44,
            memory_types: 0xff44_0400,
            asid,
            coherent: self.coherent,
        })
    }

    /// Writes the entry of page `page`, and makes it visible.
    pub(crate) fn write(&self, rig: &Rig, page: u64, entry: u64) {
        rig.store(self.last.phys() + page * 8, entry);
    }

    /// Maps page `page` to `frame`.
    pub(crate) fn map(&self, rig: &Rig, page: u64, frame: u64, attributes: u64) {
        self.write(rig, page, frame | attributes);
    }

    /// The first table.
    pub(crate) fn root(&self) -> PhysAddr {
        self.root.phys()
    }

    /// The table of the last level.
    pub(crate) fn last(&self) -> PhysAddr {
        self.last.phys()
    }

    /// Writes the entry that leads there.
    pub(crate) fn write_middle(&self, rig: &Rig, entry: u64) {
        rig.store(self.middle.phys(), entry);
    }
}
