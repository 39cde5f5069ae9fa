//! Tables without lists: PSCI and the reset register by FADT (ACPI 6.5, 5.2.9), the timer by GTDT (5.2.25), the console by
//! SPCR (revision 4, and the kinds of the Debug Port Table 2).

use acpi::address::RawGenericAddress;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::spcr::Spcr;
use granule_arch::addr::{PhysAddr, PhysRange};
use granule_arch::psci::Conduit;

use super::table::{fields, word};
use crate::platform::description::{Psci, PsciFunctions};
use crate::platform::error::TableError;
use crate::platform::interrupts::{Interrupt, Trigger};
use crate::platform::power::SysconWrite;
use crate::platform::uart::{RegisterWidth, Uart, UartKind, UartLayout};

/// Interrupts that are neither a CPU's messages to others nor messages of devices.
const LINES: core::ops::Range<u32> = 16..1020;
/// Those of one CPU.
const PRIVATE_LINES: core::ops::Range<u32> = 16..32;
/// The kind of address that memory has.
const SYSTEM_MEMORY: u8 = 0;

/// Bytes of FADT up to the boot flags of Arm.
const FADT_BYTES: usize = 131;

/// PSCI, and the register that resets the machine.
pub(super) fn power(fadt: &[u8]) -> Result<(Option<Psci>, Option<SysconWrite>), TableError> {
    let fadt = fields::<Fadt>(fadt, FADT_BYTES)?;
    let (arm, flags) = (fadt.arm_boot_arch, fadt.flags);
    let conduit = if arm.use_hvc_as_psci_conduit() { Conduit::Hvc } else { Conduit::Smc };
    let psci = arm.implements_psci().then_some(Psci { conduit, functions: PsciFunctions::Standard });
    let reset = flags.supports_system_reset_via_fadt().then(|| reset(fadt.reset_reg, fadt.reset_value)).flatten();
    Ok((psci, reset))
}

/// A write of one byte (4.8.3.6); `None` where it is not one of memory.
fn reset(register: RawGenericAddress, value: u8) -> Option<SysconWrite> {
    let is_memory = register.address_space == SYSTEM_MEMORY && register.address != 0;
    let register = PhysRange::from_size(PhysAddr(register.address), 1).filter(|_| is_memory)?;
    Some(SysconWrite { register, is_big_endian: false, mask: 0xff, value: value.into() })
}

/// GTDT: the EL1 virtual timer's interrupt, and its flags.
const VIRTUAL_TIMER: usize = 64;
const VIRTUAL_TIMER_FLAGS: usize = 68;

/// The interrupt of the EL1 virtual timer.
pub(super) fn timer(gtdt: &[u8]) -> Result<Interrupt, TableError> {
    let field = |at| word(gtdt, at).ok_or(TableError::Length(gtdt.len()));
    let trigger = if field(VIRTUAL_TIMER_FLAGS)? & 1 != 0 { Trigger::Edge } else { Trigger::Level };
    let timer = line(field(VIRTUAL_TIMER)?, trigger).filter(|timer| PRIVATE_LINES.contains(&timer.intid));
    timer.ok_or(TableError::Bad("interrupt of the EL1 virtual timer"))
}

/// An interrupt line; `None` where the GIC has none of that number.
pub(super) fn line(intid: u32, trigger: Trigger) -> Option<Interrupt> {
    LINES.contains(&intid).then_some(Interrupt { intid, trigger })
}

/// Bytes of SPCR up to the number of its interrupt.
const SPCR_BYTES: usize = 58;
/// SPCR: the vendor of the PCI function that it is.
const PCI_VENDOR: usize = 66;
/// SPCR: its interrupt is one of the GIC.
const BY_GIC: u8 = 1 << 3;

/// The console; `None` where firmware has redirected it to none.
pub(super) fn console(spcr: &[u8]) -> Result<Option<Uart>, TableError> {
    // Zero is no vendor, and the end of an earlier version of the table.
    let is_pci = word(spcr, PCI_VENDOR - 2).is_some_and(|ids| !matches!(ids >> 16, 0 | 0xffff));
    let spcr = fields::<Spcr>(spcr, SPCR_BYTES)?;
    let RawGenericAddress { address_space, access_size, address, .. } = spcr.base_address;
    if address == 0 {
        return Ok(None);
    }
    if is_pci {
        return Err(TableError::Bad("console: it is a PCI function, which decodes nothing while PCI is enumerated"));
    }
    let kind = match spcr.interface_type {
        0x00 | 0x01 | 0x05 | 0x12 => UartKind::Ns16550,
        0x03 => UartKind::Pl011,
        0x06 => UartKind::Omap,
        0x09 => UartKind::UartDm,
        0x0c => UartKind::Imx,
        0x0d | 0x0e => UartKind::Sbsa,
        0x11 | 0x13 => UartKind::Geni,
        other => return Err(TableError::NoDriver(other)),
    };
    // Where registers have a distance, it is the width of an access, as Linux has it.
    let layout = match access_size {
        2 => UartLayout { shift: 1, width: RegisterWidth::Half },
        3 => UartLayout { shift: 2, width: RegisterWidth::Word },
        _ => UartLayout { shift: 0, width: RegisterWidth::Byte },
    };
    let layout = if kind.has_stride() { layout } else { kind.usual_layout() };
    let uart = Uart::at(kind, PhysAddr(address), layout).filter(|_| address_space == SYSTEM_MEMORY);
    let uart = uart.ok_or(TableError::Bad("address of the console"))?;
    let by_gic = spcr.interrupt_type & BY_GIC != 0;
    let interrupt = by_gic.then(|| line(spcr.global_system_interrupt, Trigger::Level)).flatten();
    Ok(Some(Uart { interrupt, ..uart }))
}
