//! The ID registers (IHI 0070, 6.3.1 to 6.3.6 and 6.3.8), decoded once, and printed at boot.

use core::fmt;

use granule_arch::tlbi::Granule;
use tock_registers::LocalRegisterCopy;

use crate::registers::{AIDR, IDR0, IDR1, IDR3, IDR5, IIDR, offset};
use crate::{OutputSize, Platform};

/// The features of an SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// The registers that the rest was decoded from: IDR0, IDR1, IDR2, IDR3, IDR4, IDR5, IIDR, AIDR.
    pub raw: [u32; 8],
    /// Minor number of the architecture: 1 for SMMUv3.1.
    pub minor: u8,
    /// Stage 1.
    pub stage1: bool,
    /// Stage 2.
    pub stage2: bool,
    /// It walks VMSAv8-64 tables.
    pub aarch64: bool,
    /// It reads little-endian tables.
    pub little_endian: bool,
    /// Its walks and queue accesses see the CPUs' caches, and the other way round: IDR0.COHACC, and
    /// [`Platform::is_coherent`].
    pub coherent: bool,
    /// It takes part in the CPUs' broadcast TLB maintenance.
    pub broadcast: bool,
    /// It sets access flags by itself.
    pub access_flag: bool,
    /// It sets dirty state by itself.
    pub dirty: bool,
    /// Bits of an ASID: 8 or 16.
    pub asid_bits: u8,
    /// Bits of a VMID: 8 or 16.
    pub vmid_bits: u8,
    /// Address translation service.
    pub ats: bool,
    /// Page requests.
    pub pri: bool,
    /// Its own interrupts can be MSIs.
    pub msi: bool,
    /// It can wake CPUs from WFE.
    pub event: bool,
    /// Its treatment of a transaction that faults.
    pub stall: Stall,
    /// A stream table may have two levels.
    pub two_levels: bool,
    /// Bits of a stream number.
    pub stream_bits: u8,
    /// Bits of a substream number (PASID); 0 where there are none.
    pub substream_bits: u8,
    /// log2 of the most commands that a queue may hold.
    pub command_queue_bits: u8,
    /// log2 of the most events that a queue may hold.
    pub event_queue_bits: u8,
    /// It overrides whether a transaction is privileged ([`Privilege`](crate::Privilege)). Where it cannot, a device
    /// reaches what is EL1's only if its transactions are privileged themselves.
    pub privilege_override: bool,
    /// Queues at an address that cannot be changed.
    pub queues_preset: bool,
    /// A stream table at an address that cannot be changed.
    pub tables_preset: bool,
    /// Base addresses are relative to its registers.
    pub relative: bool,
    /// Range invalidation.
    pub range_invalidation: bool,
    /// The effect of a change of a leaf's size, as in the CPU's FEAT_BBM: 0, 1 or 2.
    pub bbm_level: u8,
    /// Bits of a physical address that it puts out.
    pub output_bits: u8,
    /// 4 KiB pages.
    pub granule_4k: bool,
    /// 16 KiB pages.
    pub granule_16k: bool,
    /// 64 KiB pages.
    pub granule_64k: bool,
    /// Input addresses of 52 bits, with 64 KiB pages.
    pub large_va: bool,
}

/// Whether a transaction that faults can wait for its fault to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stall {
    /// By its stream and context.
    ByContext,
    /// Never: it ends.
    Never,
    /// Always.
    Always,
}

impl Features {
    /// Reads the registers.
    pub fn read<P: Platform>(platform: &P) -> Self {
        use offset as at;
        let raw = [at::IDR0, at::IDR1, at::IDR2, at::IDR3, at::IDR4, at::IDR5, at::IIDR, at::AIDR];
        let mut features = Self::decode(raw.map(|offset| platform.read32(offset)));
        features.coherent &= platform.is_coherent();
        features
    }

    /// Decodes the values of the registers: IDR0 to IDR5, IIDR, AIDR.
    pub fn decode(raw: [u32; 8]) -> Self {
        let idr0 = LocalRegisterCopy::<u32, IDR0::Register>::new(raw[0]);
        let idr1 = LocalRegisterCopy::<u32, IDR1::Register>::new(raw[1]);
        let idr3 = LocalRegisterCopy::<u32, IDR3::Register>::new(raw[3]);
        let idr5 = LocalRegisterCopy::<u32, IDR5::Register>::new(raw[5]);
        let aidr = LocalRegisterCopy::<u32, AIDR::Register>::new(raw[7]);
        let httu = idr0.read(IDR0::HTTU);
        let bits = |large: bool| if large { 16 } else { 8 };
        Self {
            raw,
            minor: aidr.read(AIDR::MINOR) as u8,
            stage1: idr0.is_set(IDR0::S1P),
            stage2: idr0.is_set(IDR0::S2P),
            aarch64: idr0.read(IDR0::TTF) & 2 != 0,
            little_endian: matches!(idr0.read(IDR0::TTENDIAN), 0 | 2),
            coherent: idr0.is_set(IDR0::COHACC),
            broadcast: idr0.is_set(IDR0::BTM),
            access_flag: matches!(httu, 1..=3),
            dirty: matches!(httu, 2..=3),
            asid_bits: bits(idr0.is_set(IDR0::ASID16)),
            vmid_bits: bits(idr0.is_set(IDR0::VMID16)),
            ats: idr0.is_set(IDR0::ATS),
            pri: idr0.is_set(IDR0::PRI),
            msi: idr0.is_set(IDR0::MSI),
            event: idr0.is_set(IDR0::SEV),
            stall: match idr0.read(IDR0::STALL_MODEL) {
                0 => Stall::ByContext,
                2 => Stall::Always,
                _ => Stall::Never,
            },
            two_levels: idr0.matches_all(IDR0::ST_LEVEL::TwoLevels),
            stream_bits: idr1.read(IDR1::SIDSIZE) as u8,
            substream_bits: idr1.read(IDR1::SSIDSIZE) as u8,
            command_queue_bits: idr1.read(IDR1::CMDQS) as u8,
            event_queue_bits: idr1.read(IDR1::EVENTQS) as u8,
            privilege_override: idr1.is_set(IDR1::ATTR_PERMS_OVR),
            queues_preset: idr1.is_set(IDR1::QUEUES_PRESET),
            tables_preset: idr1.is_set(IDR1::TABLES_PRESET),
            relative: idr1.is_set(IDR1::REL),
            range_invalidation: idr3.is_set(IDR3::RIL),
            bbm_level: idr3.read(IDR3::BBML).min(2) as u8,
            // A reserved value is of an SMMU of later: it has at least what those of today have with 4 KiB pages.
            output_bits: OutputSize::from_field(idr5.read(IDR5::OAS)).unwrap_or(OutputSize::Bits48).bits(),
            granule_4k: idr5.is_set(IDR5::GRAN4K),
            granule_16k: idr5.is_set(IDR5::GRAN16K),
            granule_64k: idr5.is_set(IDR5::GRAN64K),
            large_va: idr5.read(IDR5::VAX) == 1,
        }
    }

    /// Whether it lets unprivileged accesses through to what is EL1's only. QEMU's does, which has no privilege
    /// override either, and has an IIDR of 0: no implementer has that number.
    pub fn ignores_privilege(&self) -> bool {
        !self.privilege_override && self.raw[6] == 0
    }

    /// Whether tables with pages of `granule` can be walked.
    pub fn has_granule(&self, granule: Granule) -> bool {
        match granule {
            Granule::Size4K => self.granule_4k,
            Granule::Size16K => self.granule_16k,
            Granule::Size64K => self.granule_64k,
        }
    }
}

/// The description: `SMMUv3.1 of Arm, ...` in three lines.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iidr = LocalRegisterCopy::<u32, IIDR::Register>::new(self.raw[6]);
        let have = |has: bool, word: &'static str| if has { word } else { "" };
        write!(f, "SMMUv3.{}", self.minor)?;
        if self.raw[6] != 0 {
            let (implementer, product) = (iidr.read(IIDR::IMPLEMENTER), iidr.read(IIDR::PRODUCT));
            let (variant, revision) = (iidr.read(IIDR::VARIANT), iidr.read(IIDR::REVISION));
            write!(f, " (implementer {implementer:#x}, product {product:#x} r{variant}p{revision})")?;
        }
        write!(f, ": {} bits of stream, {} of substream, ", self.stream_bits, self.substream_bits)?;
        write!(f, "{} of ASID, {} of output address;", self.asid_bits, self.output_bits)?;
        for (has, word) in [
            (self.stage1, " stage1"),
            (self.stage2, " stage2"),
            (self.granule_4k, " 4K"),
            (self.granule_16k, " 16K"),
            (self.granule_64k, " 64K"),
            (self.coherent, " coherent"),
            (self.two_levels, " 2-level"),
            (self.privilege_override, " privilege-override"),
            (self.range_invalidation, " range-invalidation"),
            (self.broadcast, " broadcast"),
            (self.access_flag, " access-flag"),
            (self.dirty, " dirty"),
            (self.ats, " ats"),
            (self.pri, " pri"),
            (self.msi, " msi"),
            (self.event, " event"),
        ] {
            f.write_str(have(has, word))?;
        }
        let stall = match self.stall {
            Stall::ByContext => "faults may stall",
            Stall::Never => "faults end the transaction",
            Stall::Always => "faults stall",
        };
        write!(f, " bbm{}; {stall}", self.bbm_level)
    }
}

#[cfg(test)]
mod tests;
