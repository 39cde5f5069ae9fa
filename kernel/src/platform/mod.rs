//! The description of the machine, by its device tree or by ACPI's tables.
//!
//! [`Platform::read`] goes through the flattened device tree once, copies out what the kernel needs and forgets the
//! rest; nothing refers to the tree afterwards. It allocates nothing, since it runs before there is memory to allocate,
//! and it **never panics**: the tree is input. [`structure`] checks the flattened form before `dtoolkit` reads it, and
//! every number that comes out of a property is checked here before it is used.
//!
//! Devicetree Specification v0.4: 2.3 (standard properties), 3 (device node requirements), 5 (flattened format).
//!
//! - [`structure`]: whether the flattened form is sound
//! - [`tree`]: a node with its place on the buses above it, so that `reg` can be read as the CPU sees it
//! - [`memory`]: banks, reservations, `/chosen`
//! - [`tag_storage`]: reservations that hold allocation tags
//! - [`features`]: what the CPUs can do; from their own registers, not from the tree
//! - [`errata`]: what is wrong with some of them, by [`design`]
//! - [`description`]: what is known of a machine, by either; [`error`]: why it is not
//! - [`devices`]: CPUs, PSCI, interrupt controller, timer, SMMU
//! - [`uart`]: the serial port that is the console
//! - [`interrupts`]: which line of the interrupt controller a node's interrupt is
//! - [`power`]: registers that end or reset the machine
//! - [`pcie`]: the PCIe host bridge, and its maps of requester IDs
//! - [`virtio`]: virtio devices with their registers in memory
//! - [`acpi`]: the machine by ACPI's tables instead

mod acpi;
mod description;
pub mod design;
mod devices;
pub mod errata;
mod error;
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
mod virtio;

#[cfg(test)]
mod mutated;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_builder;

use dtoolkit::fdt::Fdt;
use granule_arch::addr::PhysRange;
pub use granule_arch::psci::Conduit;

pub use acpi::PhysicalMemory;
pub use description::{
    ControllerDescription, CpuNode, EnableMethod, Its, MAX_BANKS, MAX_BOOTARGS, MAX_REDISTRIBUTOR_REGIONS,
    MAX_RESERVED, MAX_RNG_SEED, MAX_SMMUS, MAX_TAG_STORAGE, MAX_VIRTIO, MessageFrame, Platform, Psci, PsciFunctions,
    Redistributors, Smmu, TagStorageRegion,
};
pub use error::{NodeName, PlatformError, TableError};
pub use features::SystemFeatures;
pub use interrupts::{Interrupt, Trigger};
pub use memory::{KaslrSeed, kaslr_seed};
pub use pcie::{IdMap, InterruptLines, MappedId, Pcie, Window, WindowKind, Windows};
pub use power::{Bcm2835Pm, PowerRegisters, SysconWrite};
pub use size_change::SizeChange;
pub use structure::StructureError;
pub use tree::{DmaRange, DmaRanges, dma_reach};
pub use uart::{RegisterWidth, Uart, UartKind, UartLayout};
pub use virtio::{VIRTIO_REGISTERS, VirtioMmio};

impl Platform {
    /// Reads the tree at the start of `blob`, which may be longer than the tree.
    ///
    /// # Errors
    /// The tree is cut off, corrupt, or lacks what no kernel can do without: memory, and, if ACPI's tables do not
    /// describe them, a CPU, an interrupt controller with a driver, the timer. `self` may be partly filled then, with
    /// the console if the tree is sound.
    pub fn read(&mut self, blob: &[u8]) -> Result<(), PlatformError> {
        self.read_tree(structure::check(trim(blob)?)?)
    }

    /// As [`Self::read`], of the tree in `blob` and nothing after it, which [`kaslr_seed`] has found sound.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Panics
    /// If the tree is not sound.
    pub fn read_sound(&mut self, blob: &[u8]) -> Result<(), PlatformError> {
        self.read_tree(Fdt::new_unchecked(blob))
    }

    fn read_tree(&mut self, fdt: Fdt<'_>) -> Result<(), PlatformError> {
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

    /// Reads all that each node says by itself; returns those that refer to system controllers. Out of line: what is
    /// found has left the stack when these, and tag storage, have the tree looked at once more.
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
            if is_described { found.look_at(self, node, left == Some("")) } else { Ok(()) }
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
        let PowerRegisters { off, reset, watchdog } = self.power;
        let single = [
            self.its.map(|its| its.registers),
            self.message_frame.map(|frame| frame.registers),
            self.uart.map(|uart| uart.registers),
            self.pcie.as_ref().map(|host| host.ecam),
            off.map(|off| off.register),
            reset.map(|reset| reset.register),
            watchdog.map(|watchdog| watchdog.registers),
        ];
        let lists = self.memory.iter().chain(&self.reserved).chain(&self.no_map).copied();
        let controller = self.interrupt_controller.registers();
        let smmus = self.smmus.iter().map(|smmu| smmu.registers);
        let virtio = self.virtio_registers();
        lists
            .chain(smmus)
            .chain(controller)
            .chain(virtio)
            .chain(single.into_iter().flatten())
            .filter_map(memory::outwards)
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
