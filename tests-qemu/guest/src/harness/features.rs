//! The names of machines.toml, as questions to the kernel.

use granule::chip::message;
use granule::devices::pci::{self, Function, Id};
use granule::devices::virtio::mmio::{self, Node};
use granule::mm::heap::guarded::guarded_heap;
use granule::mm::kernel::policy::{Policy, SplitMode};
use granule::mm::layout;
use granule::platform::ControllerDescription;
use granule::smp;
use granule_arch::addr::{PAGE, PhysAddr};
use granule_arch::features::{BreakBeforeMake, CpuFeatures, HardwareUpdates, Mte, Pan};
use granule_pgtable::Leaves;

/// A feature's name, and whether this machine has it.
type Feature = (&'static str, fn(&CpuFeatures) -> bool);

/// Every name that machines.toml may use.
pub(crate) const KNOWN: [Feature; 30] = [
    ("gicv2", |_| matches!(granule::kernel().platform.interrupt_controller, ControllerDescription::V2 { .. })),
    ("gicv3", |_| matches!(granule::kernel().platform.interrupt_controller, ControllerDescription::V3 { .. })),
    ("smmuv3", |_| !granule::kernel().platform.smmus.is_empty()),
    ("smp", |_| smp::online().iter().count() > 1),
    ("el2", |_| granule::kernel().boot.entry_level == 2),
    ("pan", |cpus| cpus.pan() != Pan::None),
    ("e0pd", CpuFeatures::e0pd),
    ("hafdbs", |cpus| cpus.hafdbs() != HardwareUpdates::None),
    ("lse", CpuFeatures::lse),
    ("bbm2", |cpus| cpus.bbm() >= BreakBeforeMake::NotRequired),
    ("tlbirange", CpuFeatures::tlb_range),
    ("ttl", CpuFeatures::ttl),
    ("mops", CpuFeatures::mops),
    ("mte", |cpus| matches!(cpus.mte(), Mte::Tags | Mte::Asymmetric)),
    ("tag-storage", |_| !granule::kernel().platform.tag_storage.is_empty()),
    ("split", |_| linear_map_has_large_leaves() && policy().split.is_live()),
    ("stop", |_| linear_map_has_large_leaves() && policy().split == SplitMode::StopMachine),
    ("refuse", |_| linear_map_has_large_leaves() && policy().split == SplitMode::Refuse),
    ("areas", |_| policy().area_leaves == Leaves::Largest),
    ("alias", |_| policy().alias),
    ("pagealloc", |_| policy().debug_pagealloc),
    ("kfence", |_| guarded_heap().is_on()),
    ("pcie", |_| granule::kernel().platform.pcie.is_some()),
    ("its", |_| granule::kernel().platform.its.is_some()),
    ("msi", |_| message::doorbell(granule::kernel().platform).is_some() && pci::messages_are_allowed()),
    ("edu", |_| has_device("edu")),
    ("virtio-rng", |_| has_device("virtio-rng")),
    ("virtio-blk", |_| has_device("virtio-blk")),
    ("virtio-mmio", |_| !mmio::nodes().is_empty()),
    ("nvme", |_| has_device("nvme")),
];

/// The IDs of these devices, by their names in machines.toml.
const DEVICES: [(&str, Id); 8] = [
    ("edu", Id { vendor: 0x1234, device: 0x11e8 }),
    ("virtio-rng", Id { vendor: 0x1af4, device: 0x1044 }),
    ("virtio-blk", Id { vendor: 0x1af4, device: 0x1042 }),
    ("nvme", Id { vendor: 0x1b36, device: 0x0010 }),
    // With `use-intel-id=on`: drivers recognise it by its class only.
    ("nvme", Id { vendor: 0x8086, device: 0x5845 }),
    ("pcie-root-port", Id { vendor: 0x1b36, device: 0x000c }),
    ("pci-bridge", Id { vendor: 0x1b36, device: 0x0001 }),
    ("pcie-pci-bridge", Id { vendor: 0x1b36, device: 0x000e }),
];

/// The ID of the devices with that name in machines.toml.
pub(crate) fn device(name: &str) -> Option<Id> {
    DEVICES.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
}

/// Whether a function is of the devices with this name in machines.toml.
pub(crate) fn is_device(name: &str, function: &Function) -> bool {
    DEVICES.contains(&(name, function.id()))
}

fn has_device(name: &str) -> bool {
    let is_one = |id: Id| DEVICES.contains(&(name, id));
    pci::functions().iter().map(Function::id).chain(mmio::nodes().iter().map(Node::id)).any(is_one)
}

fn policy() -> Policy {
    granule::kernel().space.policy()
}

/// Tests split a few of them, never all.
fn linear_map_has_large_leaves() -> bool {
    const STEP: usize = 16 << 20;
    let kernel = granule::kernel();
    let is_large = |address| {
        let found = kernel.space.tables().translate(layout::linear(PhysAddr(address)));
        found.is_some_and(|found| found.leaf_size > PAGE)
    };
    kernel.platform.memory.iter().any(|bank| (bank.start().0..bank.end().0).step_by(STEP).any(is_large))
}

/// Whether this machine has the feature of that name; `None` where there is no such name.
pub(crate) fn has(name: &str) -> Option<bool> {
    let cpus = &granule::kernel().features().cpus;
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, asks)| asks(cpus))
}
