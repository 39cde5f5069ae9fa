//! The Multiple APIC Description Table: CPUs and the GIC (ACPI 6.5, 5.2.12).
//!
//! CPUs that firmware has not enabled are left out: it could enable them later, by AML.

use acpi::sdt::madt::{
    GicInterruptTranslationServiceEntry, GicMsiFrameEntry, GicRedistributorEntry, GiccEntry, GicdEntry, Madt,
};
use granule_arch::addr::PhysRange;
use heapless::Vec;

use super::table::{Entries, fields, registers};
use crate::platform::description::{
    ControllerDescription, CpuNode, EnableMethod, Its, MAX_REDISTRIBUTOR_REGIONS, MessageFrame, Platform,
    Redistributors,
};
use crate::platform::error::TableError;
use crate::smp::cpu::{AFFINITY, MAX_CPUS};

/// Kinds of structures: of a CPU, the distributor, the frame of a GICv2m, redistributors, an ITS.
const GICC: u8 = 0xb;
const GICD: u8 = 0xc;
const MESSAGE_FRAME: u8 = 0xd;
const GICR: u8 = 0xe;
const ITS: u8 = 0xf;

/// Bytes up to MPIDR, which all versions of the structure have.
const GICC_BYTES: usize = 76;
/// A CPU's flag: it may be used.
const ENABLED: u32 = 1 << 0;
/// A flag of a frame: its interrupts are in the table.
const HAS_INTERRUPTS: u32 = 1 << 0;

/// Structures that are left out with a message each; the others are counted.
const MESSAGES: usize = 4;

/// Bytes of registers, which the table does not have.
const GICV2_DISTRIBUTOR: u64 = 0x1000;
const GICV2_CPU_INTERFACE: u64 = 0x2000;
const GICV3_DISTRIBUTOR: u64 = 0x1_0000;
const GICV3_FRAMES: u64 = 0x2_0000;
const GICV4_FRAMES: u64 = 0x4_0000;
const ITS_FRAMES: u64 = 0x2_0000;
const GICV2M_FRAME: u64 = 0x1000;

/// The GIC, as far as the table was read.
#[derive(Default)]
struct Gic {
    /// MPIDR of the boot CPU.
    boot: u64,
    /// CPUs, whether they are used or not: each has its place among the redistributors.
    cpus: usize,
    /// The distributor's address and the GIC's version, zero where it is not stated.
    distributor: Option<(u64, u8)>,
    cpu_interface: Option<u64>,
    redistributors: Vec<PhysRange, MAX_REDISTRIBUTOR_REGIONS>,
    /// Those of single CPUs, in a table without regions.
    frames: Vec<u64, MAX_REDISTRIBUTOR_REGIONS>,
}

/// Reads CPUs, of which `boot` is the boot CPU's MPIDR, interrupt controller and what takes messages; returns the ITS's
/// number.
///
/// # Errors
/// The table has no CPU or no distributor, or one that makes no sense.
#[inline(never)]
pub(super) fn read(platform: &mut Platform, madt: &[u8], boot: u64) -> Result<Option<u32>, TableError> {
    let mut gic = Gic { boot, ..Gic::default() };
    let (mut its_number, mut left_out) = (None, 0_usize);
    for (kind, entry) in Entries::behind(madt, size_of::<Madt>()) {
        let read = match kind {
            GICC => cpu(platform, &mut gic, entry),
            GICD => distributor(&mut gic, entry),
            GICR => redistributors(&mut gic, entry),
            MESSAGE_FRAME => message_frame(platform, entry),
            ITS => its(platform, entry).map(|number| its_number = its_number.or(number)),
            _ => Ok(()),
        };
        if let Err(error) = read {
            left_out += 1;
            if left_out <= MESSAGES {
                crate::log::warn!("ACPI: MADT: a structure of the kind {kind:#x}: {error}; it is left out");
            }
        }
    }
    if left_out > MESSAGES {
        crate::log::warn!("ACPI: MADT: {left_out} structures are left out");
    }
    if platform.cpus.is_empty() {
        return Err(TableError::Bad("list of CPUs: none is enabled"));
    }
    platform.cpus_unused = gic.cpus - platform.cpus.len() - platform.cpus_left_out;
    platform.interrupt_controller = gic.description()?;
    platform.choose_receiver();
    Ok(its_number.filter(|_| platform.its.is_some()))
}

/// A CPU. One place is kept for the boot CPU, wherever the table has it.
fn cpu(platform: &mut Platform, gic: &mut Gic, entry: &[u8]) -> Result<(), TableError> {
    gic.cpus += 1;
    let cpu = fields::<GiccEntry>(entry, GICC_BYTES)?;
    if cpu.flags & ENABLED == 0 {
        return Ok(());
    }
    let mpidr = cpu.mpidr & AFFINITY;
    if platform.cpus.iter().any(|other| other.mpidr == mpidr) {
        return Err(TableError::Bad("MPIDR: another CPU has it"));
    }
    let boot = gic.boot & AFFINITY;
    let has_boot = mpidr == boot || platform.cpus.iter().any(|other| other.mpidr == boot);
    let enable_method = if platform.psci.is_some() { EnableMethod::Psci } else { EnableMethod::Unknown };
    if platform.cpus.len() + usize::from(!has_boot) >= MAX_CPUS {
        platform.cpus_left_out += 1;
        return Ok(());
    }
    // There is room.
    let _ = platform.cpus.push(CpuNode { mpidr, enable_method });
    // In a GICv2 all have the same.
    gic.cpu_interface = gic.cpu_interface.or(Some(cpu.gic_registers_address).filter(|&address| address != 0));
    if cpu.gicr_base_address != 0 {
        // As many as CPUs.
        let _ = gic.frames.push(cpu.gicr_base_address);
    }
    Ok(())
}

fn distributor(gic: &mut Gic, entry: &[u8]) -> Result<(), TableError> {
    let distributor = fields::<GicdEntry>(entry, size_of::<GicdEntry>())?;
    gic.distributor.get_or_insert((distributor.physical_base_address, distributor.gic_version));
    Ok(())
}

fn redistributors(gic: &mut Gic, entry: &[u8]) -> Result<(), TableError> {
    let region = fields::<GicRedistributorEntry>(entry, size_of::<GicRedistributorEntry>())?;
    let length = u64::from(region.discovery_range_length);
    if length < GICV3_FRAMES {
        return Err(TableError::Bad("length of redistributors"));
    }
    let region = registers(region.discovery_range_base_address, length, "address of redistributors")?;
    let full = TableError::TooMany { what: "redistributor regions", limit: MAX_REDISTRIBUTOR_REGIONS };
    gic.redistributors.push(region).map_err(|_| full)
}

/// The first ITS; returns its number.
fn its(platform: &mut Platform, entry: &[u8]) -> Result<Option<u32>, TableError> {
    let its = fields::<GicInterruptTranslationServiceEntry>(entry, size_of::<GicInterruptTranslationServiceEntry>())?;
    if platform.its.is_some() {
        return Ok(None);
    }
    platform.its = Some(Its { registers: registers(its.physical_base_address, ITS_FRAMES, "address of the ITS")? });
    Ok(Some(its.id))
}

/// The first frame of a GICv2m.
fn message_frame(platform: &mut Platform, entry: &[u8]) -> Result<(), TableError> {
    let frame = fields::<GicMsiFrameEntry>(entry, size_of::<GicMsiFrameEntry>())?;
    let registers = registers(frame.physical_base_address, GICV2M_FRAME, "address of the GICv2m")?;
    let has_interrupts = frame.flags & HAS_INTERRUPTS != 0 && frame.spi_base != 0 && frame.spi_count != 0;
    let interrupts = has_interrupts.then(|| (frame.spi_base.into(), frame.spi_count.into()));
    platform.message_frame.get_or_insert(MessageFrame { registers, interrupts });
    Ok(())
}

impl Gic {
    #[inline(never)]
    fn description(mut self) -> Result<ControllerDescription, TableError> {
        let (distributor, version) = self.distributor.ok_or(TableError::Bad("GIC: no distributor"))?;
        if self.redistributors.is_empty() {
            let bytes = if version == 4 { GICV4_FRAMES } else { GICV3_FRAMES };
            for &frames in &self.frames {
                // It has the same room.
                let _ = self.redistributors.push(registers(frames, bytes, "address of redistributors")?);
            }
        }
        let is_v3 = match version {
            0 => !self.redistributors.is_empty(),
            1 | 2 => false,
            3 | 4 => true,
            _ => return Err(TableError::Bad("version of the GIC")),
        };
        if !is_v3 {
            let cpu_interface = self.cpu_interface.ok_or(TableError::Bad("GIC: no CPU interface"))?;
            return Ok(ControllerDescription::V2 {
                distributor: registers(distributor, GICV2_DISTRIBUTOR, "address of the distributor")?,
                cpu_interface: registers(cpu_interface, GICV2_CPU_INTERFACE, "address of the CPU interface")?,
            });
        }
        if self.redistributors.is_empty() {
            return Err(TableError::Bad("GIC: no redistributors"));
        }
        Ok(ControllerDescription::V3 {
            distributor: registers(distributor, GICV3_DISTRIBUTOR, "address of the distributor")?,
            redistributors: Redistributors { regions: self.redistributors, stride: None },
        })
    }
}
