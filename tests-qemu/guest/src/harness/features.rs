//! The names of machines.toml, as questions to the kernel.

use granule::drivers::its;
use granule::mm::kernel::policy::{Policy, SplitMode};
use granule::mm::layout;
use granule::platform::GicDescription;
use granule::smp;
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::features::{BreakBeforeMake, CpuFeatures, HardwareUpdates, Mte, Pan};

/// A feature's name, and whether this machine has it.
type Feature = (&'static str, fn(&CpuFeatures) -> bool);

/// Every name that machines.toml may use.
pub(crate) const KNOWN: [Feature; 20] = [
    ("gicv2", |_| matches!(granule::kernel().platform.gic, GicDescription::V2 { .. })),
    ("gicv3", |_| matches!(granule::kernel().platform.gic, GicDescription::V3 { .. })),
    ("smmuv3", |_| granule::kernel().platform.smmu.is_some()),
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
    ("split", |_| linear_map_has_large_leaves() && policy().split != SplitMode::Refuse),
    ("refuse", |_| linear_map_has_large_leaves() && policy().split == SplitMode::Refuse),
    ("alias", |_| policy().alias),
    ("pagealloc", |_| policy().debug_pagealloc),
    ("pcie", |_| granule::kernel().platform.pcie.is_some()),
    ("its", |_| its::doorbell(granule::kernel().platform).is_some()),
];

fn policy() -> Policy {
    granule::kernel().space.policy()
}

/// Tests split a few of them, never all.
fn linear_map_has_large_leaves() -> bool {
    const STEP: usize = 16 << 20;
    let kernel = granule::kernel();
    let is_large = |address| {
        let found = kernel.space.tables().translate(layout::linear(PhysAddr(address)));
        found.is_some_and(|found| found.leaf_size > PAGE_SIZE as u64)
    };
    kernel.platform.memory.iter().any(|bank| (bank.start().0..bank.end().0).step_by(STEP).any(is_large))
}

/// Whether this machine has the feature of that name; `None` where there is no such name.
pub(crate) fn has(name: &str) -> Option<bool> {
    let cpus = &granule::kernel().features().cpus;
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, asks)| asks(cpus))
}
