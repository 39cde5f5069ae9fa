//! The table of configuration space in memory: a host bridge, as far as ACPI describes it without AML (PCI Firmware
//! Specification 3.2, 4.1.2).

use acpi::sdt::mcfg::{Mcfg, McfgEntry};
use granule_arch::addr::{PhysAddr, PhysRange};

use super::table::fields;
use crate::platform::error::TableError;
use crate::platform::pcie::{BUS, IdMap, InterruptLines, Pcie};
use crate::platform::tree;

/// The first host bridge, and its segment. Devices may reach all memory, and no SMMU is in front of them, as long as IORT
/// does not say otherwise.
///
/// # Errors
/// There is none, or its addresses make no sense.
#[inline(never)]
pub(super) fn host(mcfg: &[u8]) -> Result<(Pcie, u16), TableError> {
    let list = mcfg.get(size_of::<Mcfg>()..).unwrap_or_default();
    let entry = fields::<McfgEntry>(list, size_of::<McfgEntry>())?;
    if list.len() >= 2 * size_of::<McfgEntry>() {
        crate::log::warn!("ACPI: MCFG: more than one host bridge; all but the first are left out");
    }
    let buses = (entry.bus_number_start, entry.bus_number_end);
    let count = buses.1.checked_sub(buses.0).ok_or(TableError::Bad("bus numbers"))?;
    // The address is that of bus 0, whether it is there or not.
    let start = entry.base_address.checked_add(u64::from(buses.0) * BUS).map(PhysAddr);
    let ecam = start.filter(|start| start.0 != 0 && start.is_aligned(BUS));
    let ecam = ecam.and_then(|start| PhysRange::from_size(start, (u64::from(count) + 1) * BUS));
    let host = Pcie {
        ecam: ecam.ok_or(TableError::Bad("address of configuration space"))?,
        buses,
        windows: None,
        streams: IdMap::new(!0),
        devices: IdMap::new(!0),
        lines: InterruptLines::default(),
        coherent: true,
        dma: tree::everything(),
    };
    Ok((host, entry.pci_segment_group))
}
