//! The description of the machine by ACPI's tables: the one that a device tree gives.
//!
//! The tables are used where the loader names them and the tree describes no CPUs, or by `acpi=force`. Memory, boot
//! arguments and the initrd come from the tree in both cases. Only tables of fixed layout are read, no AML: so the
//! windows of a PCIe host bridge and its interrupt lines are not known.
//!
//! A table lies anywhere in physical memory and may have any length, so [`PhysicalMemory`] shows one at a time. **Tables
//! are input**: [`table`] checks lengths before a field is read, and each number is checked where it is used. The layouts
//! are those of the crate `acpi`, which has none for GTDT and IORT.
//!
//! ACPI 6.5, 5.2 (tables); Arm DEN 0049E (IORT); PCI Firmware Specification 3.2 (MCFG); "Serial Port Console Redirection Table" by Microsoft.
//!
//! - [`table`]: signatures, lengths and checksums; fields
//! - [`madt`]: CPUs and the GIC
//! - [`fixed`]: PSCI and the reset register; the timer; the console
//! - [`mcfg`]: the PCIe host bridge
//! - [`iort`]: SMMUs, and the maps of requester IDs

mod fixed;
mod iort;
mod madt;
mod mcfg;
mod table;

use granule_arch::addr::PhysAddr;
use linkme::distributed_slice;

use super::description::Platform;
use super::error::{PlatformError, dispensable};
use super::pcie::IdMap;
use super::tree::Node;
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
pub use table::PhysicalMemory;
use table::Tables;

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static ACPI: Parameter = Parameter {
    name: "acpi",
    help: "force: by ACPI's tables, whatever the device tree has; off: never by them",
    check: |value| match value {
        "force" | "off" => Ok(()),
        _ => Err(Refused::because("force or off")),
    },
};

/// Where the tables are, if they and not the tree describe the machine: the RSDP, whose address a loader leaves in
/// `/chosen` `granule,acpi-rsdp`. A tree without `/cpus` describes none. Out of line, and without an error: the frame of
/// the caller lies under the longest chain of the boot.
#[inline(never)]
pub(super) fn choose(chosen: Option<&Node<'_, '_>>, has_cpus: bool) -> Option<PhysAddr> {
    let chosen = chosen?;
    let wish = chosen.string("bootargs").and_then(|arguments| bootargs::find(arguments, "acpi"));
    if wish == Some("off") || wish != Some("force") && has_cpus {
        return None;
    }
    let rsdp = dispensable(chosen.number("granule,acpi-rsdp")).flatten().map(PhysAddr);
    if rsdp.is_none() && wish == Some("force") {
        crate::log::warn!("acpi=force: the loader names no ACPI tables (/chosen granule,acpi-rsdp)");
    }
    rsdp
}

impl Platform {
    /// Reads ACPI's tables, if they describe the machine: see [`rsdp`](Self::rsdp). `boot` is the boot CPU's
    /// MPIDR_EL1, or its affinity alone: that CPU has a place among the CPUs wherever the table has it.
    ///
    /// # Errors
    /// A table makes no sense that no kernel can do without: RSDP, XSDT, MADT, GTDT. `self` may be partly filled then,
    /// with the console if there is one.
    #[inline(never)]
    pub fn read_tables<M: PhysicalMemory>(&mut self, memory: &mut M, boot: u64) -> Result<(), PlatformError> {
        let Some(rsdp) = self.rsdp else { return Ok(()) };
        let tables = Tables::find(memory, rsdp)?;
        // First: an error in what follows is printed there. Without a table there is none.
        if tables.has(table::SPCR) {
            self.uart = dispensable(tables.read(memory, table::SPCR, fixed::console)).flatten();
        }
        let (psci, reset) = dispensable(tables.read(memory, table::FADT, fixed::power)).unwrap_or_default();
        (self.psci, self.power.reset) = (psci, reset);
        let its = tables.read(memory, table::MADT, |madt| madt::read(self, madt, boot))?;
        self.timer = tables.read(memory, table::GTDT, fixed::timer)?;
        self.read_host(memory, &tables, its);
        Ok(())
    }

    /// The host bridge, and the SMMUs. A bridge that an unsound table may have behind an SMMU is left out.
    #[inline(never)]
    fn read_host<M: PhysicalMemory>(&mut self, memory: &mut M, tables: &Tables, its: Option<u32>) {
        let mut host = None;
        if tables.has(table::MCFG) {
            host = dispensable(tables.read(memory, table::MCFG, mcfg::host));
        }
        if tables.has(table::IORT) {
            let its_host = host.as_mut().map(|(host, segment)| (host, *segment));
            let read = tables.read(memory, table::IORT, |iort| iort::read(self, iort, its_host, its));
            if dispensable(read).is_none() {
                host = None;
            }
        }
        self.pcie = host.map(|(host, _)| host);
        // No table says whose messages the frame takes: it takes all.
        if let (Some(host), Some(_)) = (&mut self.pcie, self.message_frame) {
            host.devices = IdMap::of_all(0);
        }
    }
}
