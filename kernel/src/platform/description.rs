//! The machine as the kernel sees it, wherever its description comes from.

use granule_arch::addr::{PhysAddr, PhysRange};
use granule_arch::psci::Conduit;
use heapless::{String, Vec};

use super::interrupts::{Interrupt, Trigger};
use super::pcie::Pcie;
use super::power::PowerRegisters;
use super::uart::Uart;
use super::virtio::{FirstLine, VirtioMmio};
use crate::smp::cpu::MAX_CPUS;

/// Banks of memory that are kept apart; adjacent ones are one.
pub const MAX_BANKS: usize = 32;
/// Reservations, of both kinds together.
pub const MAX_RESERVED: usize = 64;
/// Bytes of `rng-seed` that are taken.
pub const MAX_RNG_SEED: usize = 64;
/// SMMUs that are driven. Devices behind others are refused.
pub const MAX_SMMUS: usize = 8;
/// Places of virtio devices with their registers in memory: as many as QEMU's virt has.
pub const MAX_VIRTIO: usize = 32;
/// Bytes of boot arguments, as in Linux (`COMMAND_LINE_SIZE`).
pub const MAX_BOOTARGS: usize = 2048;
/// Regions of tag storage that are used.
pub const MAX_TAG_STORAGE: usize = 4;

/// The description of the machine by the device tree, or by ACPI. About 7 KiB: keep it in a static.
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
    /// The first Interrupt Translation Service, of a GICv3.
    pub its: Option<Its>,
    /// The first frame of a GICv2m, beside a GICv2.
    pub message_frame: Option<MessageFrame>,
    /// The SMMUv3s, in the order of the tree; those whose nodes make no sense are missing.
    pub smmus: Vec<Smmu, MAX_SMMUS>,
    /// Places of virtio devices that are no PCI functions, in the order of the tree; those whose nodes make no sense
    /// are missing.
    pub virtio: Vec<VirtioMmio, MAX_VIRTIO>,
    /// The interrupts of those places, until their controller is known.
    pub(super) virtio_lines: Vec<FirstLine, MAX_VIRTIO>,
}

impl Platform {
    /// Leaves out what takes messages for another kind of controller than there is.
    pub(super) fn choose_receiver(&mut self) {
        let controller = &self.interrupt_controller;
        self.its = self.its.filter(|_| matches!(controller, ControllerDescription::V3 { .. }));
        self.message_frame = self.message_frame.filter(|_| matches!(controller, ControllerDescription::V2 { .. }));
    }

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
            message_frame: None,
            smmus: Vec::new(),
            virtio: Vec::new(),
            virtio_lines: Vec::new(),
        }
    }
}

/// A CPU in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuNode {
    /// The affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// How it is started.
    pub enable_method: EnableMethod,
}

/// How a CPU that is not running yet is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableMethod {
    /// PSCI CPU_ON.
    Psci,
    /// It spins until an address is written here; zero where the tree has none that makes sense.
    SpinTable(PhysAddr),
    /// The tree has no method, or another one: it cannot be started.
    Unknown,
}

/// The firmware's PSCI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    /// How it is called.
    pub conduit: Conduit,
    /// Its functions.
    pub functions: PsciFunctions,
}

/// PSCI's functions, by its version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciFunctions {
    /// Version 0.2 and later: functions with the numbers of DEN 0022.
    Standard,
    /// Version 0.1: functions with the tree's numbers, none of which turns the machine off.
    Listed {
        /// CPU_ON, where the tree has it.
        cpu_on: Option<u32>,
    },
}

impl Psci {
    /// How SYSTEM_OFF and SYSTEM_RESET are called, where there are any.
    pub fn system_calls(self) -> Option<Conduit> {
        (self.functions == PsciFunctions::Standard).then_some(self.conduit)
    }
}

/// Regions of redistributors that a GICv3 may have, CPUs that are not used included.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 32;

/// The redistributors of a GICv3: regions, each with frames one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redistributors {
    /// The regions (`#redistributor-regions`); some machines have one for each CPU.
    pub regions: Vec<PhysRange, MAX_REDISTRIBUTOR_REGIONS>,
    /// Bytes from one CPU's frames to the next, where the tree has it; else it follows from GICR_TYPER.
    pub stride: Option<u64>,
}

/// The interrupt controller.
#[expect(clippy::large_enum_variant, reason = "there is one, in the platform")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControllerDescription {
    /// GICv2: both by memory-mapped registers, at most eight CPUs.
    V2 {
        /// GICD.
        distributor: PhysRange,
        /// GICC.
        cpu_interface: PhysRange,
    },
    /// GICv3 or later: the CPU interface is in system registers.
    V3 {
        /// GICD.
        distributor: PhysRange,
        /// GICR.
        redistributors: Redistributors,
    },
    /// The controllers of a BCM2836 or BCM2837.
    Bcm2836 {
        /// The registers of each core.
        cores: PhysRange,
        /// The controller that they share, BCM2835's.
        shared: Option<PhysRange>,
    },
}

impl ControllerDescription {
    /// Its registers.
    pub(crate) fn registers(&self) -> impl Iterator<Item = PhysRange> {
        let (single, regions): (_, &[PhysRange]) = match self {
            Self::V2 { distributor, cpu_interface } => ([Some(*distributor), Some(*cpu_interface)], &[]),
            Self::V3 { distributor, redistributors } => ([Some(*distributor), None], &redistributors.regions),
            Self::Bcm2836 { cores, shared } => ([Some(*cores), *shared], &[]),
        };
        single.into_iter().flatten().chain(regions.iter().copied())
    }

    /// No controller: what a [`Platform`] has before it is read.
    pub(super) const NONE: Self = Self::V2 { distributor: NOWHERE, cpu_interface: NOWHERE };
}

const NOWHERE: PhysRange = match PhysRange::new(PhysAddr(0), PhysAddr(0)) {
    Some(range) => range,
    None => unreachable!(),
};

/// The Interrupt Translation Service of a GICv3: it makes interrupts of what devices write (IHI 0069, 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Its {
    /// Both register frames: what the CPU controls it by, and what devices write to.
    pub registers: PhysRange,
}

/// The frame of a GICv2m, by which devices send messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageFrame {
    /// Its registers.
    pub registers: PhysRange,
    /// Its first interrupt and how many there are, where the tree has both; else a register has them.
    pub interrupts: Option<(u32, u32)>,
}

/// An SMMUv3. Its interrupts are edges, and each may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Smmu {
    /// The handle by which other nodes refer to it.
    pub phandle: Option<u32>,
    /// Both register pages.
    pub registers: PhysRange,
    /// Its own accesses to memory see the CPUs' caches, if its registers agree (IDR0.COHACC).
    pub coherent: bool,
    /// Event queue not empty.
    pub event_queue: Option<Interrupt>,
    /// Page request queue not empty.
    pub priority_queue: Option<Interrupt>,
    /// CMD_SYNC complete.
    pub command_sync: Option<Interrupt>,
    /// Global error.
    pub global_error: Option<Interrupt>,
}

/// A region of tag storage. Its storage is a whole number of blocks of mapped memory in no other reservation, and large
/// enough for the tags of all of `tagged`. No two regions share tagged memory, and none lies in what another tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagStorageRegion {
    /// Where the tags are. Page aligned, and a multiple of `block_bytes`. It may lie in `tagged` itself.
    pub storage: PhysRange,
    /// Bytes of a block, a multiple of a page; at most 2 MiB.
    pub block_bytes: u64,
    /// The memory that the tags are of, page aligned.
    pub tagged: PhysRange,
}
