//! The parts of the kernel that mutants are drawn from, and the tests that can see them.

/// One part.
#[derive(Debug)]
pub(super) struct Area {
    /// Where its files are, from the root of the tree.
    pub(super) path: &'static str,
    /// Packages with tests on the host that can see it: its own, then those that depend on it.
    pub(super) host: &'static [&'static str],
    /// Tests on machine `default` that can see it, by a part of the name, in the order in which they run.
    pub(super) target: &'static [&'static str],
}

/// Those that call the kernel.
const KERNEL: &[&str] = &["granule", "granule-model", "granule-loom"];

/// All parts. A path is that of a folder, so that none begins with another's.
pub(super) const AREAS: [Area; 8] = [
    Area {
        path: "arch/src/",
        host: &["granule-arch", "granule-smmuv3", "granule-pgtable", "granule-model", "granule", "granule-loom"],
        target: &[""],
    },
    Area {
        path: "kernel/pgtable/src/",
        host: &["granule-pgtable", "granule-model", "granule", "granule-loom"],
        target: &["::set_memory::", "::vmalloc::", "::split::", ""],
    },
    Area {
        path: "kernel/smmuv3/src/",
        host: &["granule-smmuv3", "granule-model", "granule", "granule-loom"],
        target: &["smmu::", "iommu::", "devices"],
    },
    Area { path: "kernel/src/mm/", host: KERNEL, target: &["process::", ""] },
    Area { path: "kernel/src/iommu/", host: KERNEL, target: &["smmu::", "iommu::", "devices", "notifier::"] },
    Area { path: "kernel/src/devices/", host: KERNEL, target: &["devices", "pci::", "smmu::"] },
    Area { path: "kernel/src/sched/", host: KERNEL, target: &["sched::", "process::", ""] },
    Area { path: "kernel/src/linux/process/", host: KERNEL, target: &["process::", "limits::", "user::"] },
];

/// The tests of the rest of the kernel, from which no mutant is drawn.
pub(super) const OTHERS: Area = Area { path: "kernel/src/", host: KERNEL, target: &["process::", ""] };

/// The part that a file is in.
pub(super) fn area_of(path: &str) -> Option<&'static Area> {
    AREAS.iter().find(|area| path.starts_with(area.path))
}
