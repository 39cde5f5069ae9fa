//! The description of the machine, by its device tree or by ACPI's tables.
//!
//! [`Platform::read`] goes through the flattened device tree once, copies out what the kernel needs and forgets the
//! rest; nothing refers to the tree afterwards. It allocates nothing, since it runs before there is memory to allocate,
//! and it **never panics**: the tree is input. [`structure`] checks the flattened form before `dtoolkit` reads it, and every
//! number that comes out of a property is checked here before it is used.
//!
//! Devicetree Specification v0.4: 2.3 (standard properties), 3 (device node requirements), 5 (flattened format).
//!
//! - [`structure`]: whether the flattened form is sound
//! - [`tree`]: a node with its place on the buses above it, so that `reg` can be read as the CPU sees it
//! - [`memory`]: banks, reservations, `/chosen`
//! - [`tag_storage`]: reservations that hold allocation tags
//! - [`features`]: what the CPUs can do; from their own registers, not from the tree
//! - [`errata`]: what is wrong with some of them, by [`design`]
//! - [`devices`]: CPUs, PSCI, interrupt controller, timer, SMMU
//! - [`uart`]: the serial port that is the console
//! - [`interrupts`]: which line of the interrupt controller a node's interrupt is
//! - [`power`]: registers that end or reset the machine
//! - [`pcie`]: the PCIe host bridge, and its maps of requester IDs
//! - [`acpi`]: the machine by ACPI's tables instead

mod acpi;
pub mod design;
mod devices;
pub mod errata;
pub mod features;
mod interrupts;
pub mod kernel_tag_check;
mod memory;
mod pcie;
mod power;
pub mod size_change;
pub mod speculation;
mod structure;
mod tag_storage;
mod tree;
mod uart;

#[cfg(test)]
mod mutated;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_builder;

use core::fmt;

use dtoolkit::fdt::Fdt;
use granule_arch::addr::{PhysAddr, PhysRange};
use heapless::{String, Vec};
use thiserror::Error;

use crate::smp::cpu::MAX_CPUS;

pub use acpi::{PhysicalMemory, TableError};
pub use devices::{
    Conduit, ControllerDescription, CpuNode, EnableMethod, Interrupt, Its, MAX_REDISTRIBUTOR_REGIONS, Psci,
    PsciFunctions, Redistributors, Smmu, Trigger,
};
pub use features::SystemFeatures;
pub use pcie::{IdMap, InterruptLines, MappedId, Pcie, Window, WindowKind};
pub use power::{Bcm2835Pm, PowerRegisters, SysconWrite};
pub use size_change::SizeChange;
pub use structure::StructureError;
pub use tag_storage::{MAX_TAG_STORAGE, TagStorageRegion};
pub use tree::{DmaRange, DmaRanges};
pub use uart::{RegisterWidth, Uart, UartKind, UartLayout};

/// Banks of memory that are kept apart; adjacent ones are one.
pub const MAX_BANKS: usize = 32;
/// Reservations, of both kinds together.
pub const MAX_RESERVED: usize = 64;
/// Bytes of `rng-seed` that are taken.
pub const MAX_RNG_SEED: usize = 64;
/// SMMUs that are driven. Devices behind others are refused.
pub const MAX_SMMUS: usize = 8;
/// Bytes of boot arguments, as in Linux (`COMMAND_LINE_SIZE`).
pub const MAX_BOOTARGS: usize = 2048;

/// The description of the machine by the device tree, or by ACPI. About 5 KiB: keep it in a static.
#[derive(Clone, Debug)]
pub struct Platform {
    /// ACPI's Root System Description Pointer, where the tables and not the tree describe CPUs and devices.
    pub rsdp: Option<PhysAddr>,
    /// The machine's own name, cut off after 48 bytes; empty where it has none.
    pub model: String<48>,
    /// Memory, ascending, page aligned (partial pages at a bank's ends are left out), neither overlapping nor adjacent.
    pub memory: Vec<PhysRange, MAX_BANKS>,
    /// Memory that is not free: `/reserved-memory` and the memory reservation block, rounded outwards to pages. May
    /// overlap.
    pub reserved: Vec<PhysRange, MAX_RESERVED>,
    /// Those of `reserved` that may not even be mapped (`no-map`).
    pub no_map: Vec<PhysRange, MAX_RESERVED>,
    /// Those of `reserved` that hold allocation tags, in the order of the tree; those whose nodes make no sense are
    /// missing.
    pub tag_storage: Vec<TagStorageRegion, MAX_TAG_STORAGE>,
    /// `/chosen` `bootargs`; empty where there are none.
    pub bootargs: String<MAX_BOOTARGS>,
    /// The initial RAM disk, where the loader placed one; all of it in one bank of memory that is mapped.
    pub initrd: Option<PhysRange>,
    /// `/chosen` `kaslr-seed`.
    pub kaslr_seed: Option<u64>,
    /// `/chosen` `rng-seed`: random bytes of the loader's, cut off after 64; empty where there are none.
    pub rng_seed: Vec<u8, MAX_RNG_SEED>,
    /// The CPUs, in the order of the tree. At most [`MAX_CPUS`]; `cpus_left_out` counts the rest.
    pub cpus: Vec<CpuNode, MAX_CPUS>,
    /// CPUs in the tree for which there was no room.
    pub cpus_left_out: usize,
    /// CPUs that ACPI has and firmware has not enabled, or that make no sense: they may have redistributors.
    pub cpus_unused: usize,
    /// PSCI, where the machine has it.
    pub psci: Option<Psci>,
    /// Registers that end or reset the machine where PSCI does not.
    pub power: PowerRegisters,
    /// The interrupt controller.
    pub interrupt_controller: ControllerDescription,
    /// The interrupt of the EL1 virtual timer.
    pub timer: Interrupt,
    /// The timer's `clock-frequency`, in Hz, for firmware that left CNTFRQ_EL0 at zero.
    pub timer_frequency: Option<u64>,
    /// The console: what `stdout-path` names, in a tree without it the alias `serial0`; `None` where there is no driver
    /// for that one, or it is not free.
    pub uart: Option<Uart>,
    /// The first PCIe host with ECAM configuration space.
    pub pcie: Option<Pcie>,
    /// The first Interrupt Translation Service.
    pub its: Option<Its>,
    /// The SMMUv3s, in the order of the tree; those whose nodes make no sense are missing.
    pub smmus: Vec<Smmu, MAX_SMMUS>,
}

/// Why a device tree, or a table of ACPI's, cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlatformError {
    /// The blob ends before the size in its header.
    #[error("device tree cut off: {have} bytes of {expected}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that there should be.
        expected: usize,
    },
    /// The blob is not a flattened device tree that is sound throughout.
    #[error("device tree corrupt: {0}")]
    Corrupt(#[from] StructureError),
    /// Without this the kernel cannot run.
    #[error("device tree: {node} has no {property}")]
    Missing {
        /// The node, or what kind of node.
        node: NodeName,
        /// The property, or the kind of child, that it lacks.
        property: &'static str,
    },
    /// A property is there, and its value makes no sense.
    #[error("device tree: {node}: bad {property}")]
    Bad {
        /// The node.
        node: NodeName,
        /// The property.
        property: &'static str,
    },
    /// More of something than there is room for.
    #[error("device tree: more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most that there may be.
        limit: usize,
    },
    /// The console is a UART of another kind than those that have a driver.
    #[error("device tree: no driver for the console, a {compatible}")]
    NoDriver {
        /// Its kind, from the most particular.
        compatible: NodeName,
    },
    /// The line of the console is another device's.
    #[error("device tree: {device} is on the line of the console")]
    LineInUse {
        /// The node below the console's.
        device: NodeName,
    },
    /// A table of ACPI's.
    #[error("ACPI: {table}: {error}")]
    Table {
        /// Its name.
        table: &'static str,
        /// The reason.
        error: TableError,
    },
}

/// The name of a node, in an error. Longer ones are cut off (the specification allows 31 characters and an address).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeName(String<48>);

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        let mut cut = String::new();
        for character in name.chars() {
            if cut.push(character).is_err() {
                break;
            }
        }
        Self(cut)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

impl Platform {
    /// A machine with nothing in it, to be filled by [`read`](Self::read).
    pub(crate) fn new() -> Self {
        Self {
            rsdp: None,
            model: String::new(),
            memory: Vec::new(),
            reserved: Vec::new(),
            no_map: Vec::new(),
            tag_storage: Vec::new(),
            bootargs: String::new(),
            initrd: None,
            kaslr_seed: None,
            rng_seed: Vec::new(),
            cpus: Vec::new(),
            cpus_left_out: 0,
            cpus_unused: 0,
            psci: None,
            power: PowerRegisters { off: None, reset: None, watchdog: None },
            interrupt_controller: ControllerDescription::NONE,
            timer: Interrupt { intid: 0, trigger: Trigger::Level },
            timer_frequency: None,
            uart: None,
            pcie: None,
            its: None,
            smmus: Vec::new(),
        }
    }

    /// Reads the tree at the start of `blob`, which may be longer than the tree.
    ///
    /// # Errors
    /// The tree is cut off, corrupt, or lacks what no kernel can do without: memory, and, if ACPI's tables do not describe
    /// them, a CPU, an interrupt controller with a driver, the timer. `self` may be partly filled then, with the console if the tree is sound.
    pub fn read(&mut self, blob: &[u8]) -> Result<(), PlatformError> {
        let fdt = structure::check(trim(blob)?)?;
        let root = tree::Root::new(fdt);
        self.model = NodeName::from(root.model().unwrap_or_default()).0;

        let named = root.named(["chosen", "aliases", "cpus", "reserved-memory"]);
        let [chosen, _, cpus, _] = &named;
        self.rsdp = acpi::choose(chosen.as_ref(), cpus.is_some());
        self.power = self.read_nodes(fdt, &root, &named)?.resolve(&root);
        // Last: the one thing that boot loaders put into a tree that lacks it.
        memory::join_banks(self)?;
        memory::check_initrd(self);
        if let [.., Some(reserved)] = &named {
            tag_storage::regions(self, &root, reserved)?;
            if let Some(initrd) = self.initrd {
                self.leave_out_tag_storage(initrd, "the initrd");
            }
        }
        Ok(())
    }

    /// Reads all that each node says by itself; returns those that refer to system controllers. Out of line: what is found
    /// has left the stack when these, and tag storage, have the tree looked at once more.
    #[inline(never)]
    fn read_nodes<'t>(
        &mut self,
        fdt: Fdt<'t>,
        root: &tree::Root<'t>,
        [chosen, aliases, cpus, reserved]: &[Option<tree::Node<'t, '_>>; 4],
    ) -> Result<power::PowerNodes<'t>, PlatformError> {
        let console = uart::console_path(chosen.as_ref(), aliases.as_ref());
        let mut found = devices::Found::default();
        let is_described = self.rsdp.is_none();
        let visited = root.visit(console, &mut |node, left| {
            memory::banks(self, node)?;
            if is_described { found.look_at(node, left == Some("")) } else { Ok(()) }
        });
        found.choose_controller();
        // First: an error in what follows is printed there.
        found.store_console(self);
        if let Some(chosen) = chosen {
            memory::chosen(self, chosen)?;
        }
        if let Some(reserved) = reserved {
            memory::reserved_memory(self, reserved)?;
        }
        memory::reservations(self, fdt)?;
        if is_described {
            devices::cpus(self, cpus.as_ref())?;
        }
        visited?;
        if is_described {
            found.store(self)?;
        }
        Ok(found.power)
    }

    /// Addresses at which no PCI device can be: memory, reserved or not, and the registers of all devices that are
    /// known, in whole pages.
    pub fn memory_and_registers(&self) -> impl Iterator<Item = PhysRange> {
        let gic = match &self.interrupt_controller {
            ControllerDescription::V2 { distributor, cpu_interface } => [Some(*distributor), Some(*cpu_interface)],
            ControllerDescription::V3 { distributor, .. } => [Some(*distributor), None],
            ControllerDescription::Bcm2836 { cores, shared } => [Some(*cores), *shared],
        };
        let redistributors = match &self.interrupt_controller {
            ControllerDescription::V3 { redistributors, .. } => redistributors.regions.as_slice(),
            _ => &[],
        };
        let PowerRegisters { off, reset, watchdog } = self.power;
        let single = [
            self.its.map(|its| its.registers),
            self.uart.map(|uart| uart.registers),
            self.pcie.as_ref().map(|host| host.ecam),
            off.map(|off| off.register),
            reset.map(|reset| reset.register),
            watchdog.map(|watchdog| watchdog.registers),
        ];
        let lists = self.memory.iter().chain(&self.reserved).chain(&self.no_map).chain(redistributors).copied();
        let smmus = self.smmus.iter().map(|smmu| smmu.registers);
        lists.chain(smmus).chain(gic.into_iter().chain(single).flatten()).filter_map(memory::outwards)
    }

    /// [`read`](Self::read) into a new value. It goes over the stack: for places that have a large one.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn parse(blob: &[u8]) -> Result<Self, PlatformError> {
        let mut platform = Self::new();
        platform.read(blob)?;
        Ok(platform)
    }
}

/// Bytes in the tree that starts with `header`, so that a caller with an address alone knows how much to map.
/// `None` where it does not start with the magic number 0xd00dfeed.
pub fn tree_size(header: &[u8; 8]) -> Option<usize> {
    let [magic, size] =
        [0, 4].map(|at| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    (magic == 0xd00d_feed).then_some(size as usize)
}

/// The tree without what follows it.
fn trim(blob: &[u8]) -> Result<&[u8], PlatformError> {
    match blob.first_chunk().and_then(tree_size) {
        Some(expected) => blob.get(..expected).ok_or(PlatformError::Truncated { have: blob.len(), expected }),
        // Too short, or no magic number: the check's error.
        None => Ok(blob),
    }
}
