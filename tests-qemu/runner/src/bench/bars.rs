//! The bounds of rows, and the costs of others for the same.

use std::fmt;

use super::fit::Fit;
use super::list::DEFAULT;
use super::trace::Barriers;
use super::{BOOT, Row};

/// A bound for a row with one CPU: `fixed + slope * size` instructions at every size.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// The row.
    pub name: &'static str,
    /// Instructions of a call.
    pub fixed: u32,
    /// Instructions for each unit.
    pub slope: u32,
    /// Barriers and TLBIs that a call may issue.
    pub barriers: Option<Barriers>,
    /// The largest size for which that holds: beyond it a call has more to do than the row measures.
    barriers_up_to: u32,
    /// Linux 7.2.13 on the same machine, see [`Self::linux`].
    linux: (f64, f64),
}

/// A change that revokes something: stores, DSB, TLBI, DSB, ISB.
const REVOKES: Option<Barriers> = Some(Barriers { dsb: 2, isb: 1, tlbi: 1 });
/// As [`REVOKES`], for pages and their alias.
const REVOKES_WITH_ALIAS: Option<Barriers> = Some(Barriers { dsb: 2, isb: 1, tlbi: 2 });
/// As [`REVOKES`], for aliases that are no neighbours: as many invalidations as there are.
const REVOKES_ONE_BY_ONE: Option<Barriers> = Some(Barriers { dsb: 2, isb: 1, tlbi: u32::MAX });
/// No barriers and no TLBI: others will invalidate.
const NOTHING: Option<Barriers> = Some(Barriers { dsb: 0, isb: 0, tlbi: 0 });
/// The CPUs' TLBs have nothing to do with it: what is before it is made visible, at most.
const NO_TLBI: Option<Barriers> = Some(Barriers { dsb: 1, isb: 0, tlbi: 0 });
/// Entries that were invalid become valid: nothing can be stale.
const MAKES_VALID: Option<Barriers> = Some(Barriers { dsb: 1, isb: 1, tlbi: 0 });

/// `250 + 7 N`, or less where one of the two is nothing.
impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.fixed, self.slope) {
            (fixed, 0) => write!(f, "{fixed}"),
            (0, slope) => write!(f, "{slope} N"),
            (_, slope) => write!(f, "{} + {slope} N", self.fixed),
        }
    }
}

/// A tag check fault that a program handles.
const TAG_FAULT_SIGNAL: Bar = bar("tag_fault_signal", 1_500, 0, None, (4668.0, 0.0));
/// Objects of the kernel's heap.
const HEAP: [Bar; 2] =
    [bar("heap_alloc_free/64", 400, 0, None, (422.0, 0.0)), bar("heap_alloc_free/4096", 900, 0, None, (930.0, 0.0))];

/// All bounds of `default`. Linux: `rodata=noalias` where the row has no alias, a linear map of pages, but for rows of
/// the linear map, where it is of the leaves that Granule has; a lean configuration, a boot that prints nothing.
const BARS: [Bar; 66] = [
    bar("set_memory_x", 250, 7, REVOKES, (3744.0, 40.3)),
    bar("set_memory_nx", 250, 7, REVOKES, (3744.0, 40.3)),
    bar("set_memory_ro/no_alias", 250, 7, REVOKES, (3740.0, 40.3)),
    bar("set_memory_rw/no_alias", 250, 7, REVOKES, (3740.0, 40.3)),
    bar("set_memory_valid/off", 220, 7, REVOKES, (440.0, 30.4)),
    bar("set_memory_valid/on", 220, 7, MAKES_VALID, (389.0, 40.2)),
    // With the alias. Only some sizes lie in one run of frames; each run has an invalidation of its own.
    Bar { barriers_up_to: 512, ..bar("set_memory_ro", 500, 16, REVOKES_WITH_ALIAS, (3727.0, 507.0)) },
    Bar { barriers_up_to: 512, ..bar("set_memory_rw", 500, 16, REVOKES_WITH_ALIAS, (3727.0, 507.0)) },
    bar("set_memory_ro/scattered", 500, 60, REVOKES_ONE_BY_ONE, (3727.0, 507.0)),
    bar("linear_valid/off", 240, 7, REVOKES, (579.0, 30.0)),
    bar("linear_valid/on", 240, 7, MAKES_VALID, (525.0, 40.0)),
    bar("linear_block/off", 220, 30, REVOKES, (509.0, 46.0)),
    bar("linear_block/on", 220, 30, MAKES_VALID, (439.0, 56.0)),
    bar("direct_map_invalid", 90, 0, NOTHING, (415.0, 0.0)),
    bar("split_block", 2_000, 0, REVOKES, (10_834.0, 0.0)),
    bar("split_block/stop_machine", 4_000, 0, None, (0.0, 0.0)),
    bar("split_group", 400, 0, REVOKES, (879.0, 0.0)),
    bar("collapse_block", 3_500, 0, None, (0.0, 0.0)),
    bar("vmalloc", 900, 35, MAKES_VALID, (1499.0, 95.9)),
    // A larger area has whole tables of its own. Giving those back takes an unlinking with barriers and TLBIs of its
    // own.
    Bar { barriers_up_to: 512, ..bar("vfree", 620, 45, REVOKES, (966.0, 186.4)) },
    // N counts blocks of 2 MiB.
    bar("vmalloc_huge", 900, 300, MAKES_VALID, (3012.0, 4651.0)),
    bar("set_memory_ro/huge", 600, 80, REVOKES_WITH_ALIAS, (0.0, 0.0)),
    // 4 % above what it took when this was set.
    bar(BOOT, 900_000, 0, None, (40_790_000.0, 0.0)),
    // Of the suite `mm`, at EL0. Each page that is touched is a fault.
    bar("null_syscall", 90, 0, None, (261.0, 0.0)),
    bar("anon_write_fault", 0, 400, None, (0.0, 1828.0)),
    bar("zero_page_read_fault", 0, 300, None, (0.0, 876.0)),
    bar("cow_copy_fault", 0, 550, None, (0.0, 1922.0)),
    bar("cow_reuse_fault", 0, 310, None, (0.0, 921.0)),
    bar("mprotect_ro", 600, 16, None, (2019.0, 156.0)),
    bar("mprotect_rw", 600, 28, None, (2098.0, 180.0)),
    bar("munmap", 950, 70, None, (2926.0, 670.0)),
    bar("madvise_dontneed", 520, 78, None, (786.0, 670.0)),
    bar("fork", 6_100, 40, None, (23_300.0, 164.0)),
    bar("mmap_populate", 1_500, 250, None, (5405.0, 1832.0)),
    bar("memfd_first_write_fault", 0, 800, None, (0.0, 3310.0)),
    bar("memfd_map_fault", 0, 400, None, (0.0, 1624.0)),
    bar("memfd_punch_hole", 1_200, 150, None, (3095.0, 1787.0)),
    bar("memfd_truncate", 1_200, 150, None, (4068.0, 1809.0)),
    bar("huge_write_fault", 1_500, 0, None, (12_770.0, 0.0)),
    bar("huge_mprotect", 700, 0, None, (3510.0, 0.0)),
    bar("huge_mprotect_split", 2_500, 0, None, (18_234.0, 0.0)),
    bar("migrate_page", 0, 2_000, None, (0.0, 0.0)),
    // Of 16 pages.
    bar("mmap_munmap/touched", 9_000, 0, None, (45_000.0, 0.0)),
    // Of the suite `uffd`; a round trip is between two threads of a process.
    bar("wp_set", 600, 14, None, (1394.0, 169.0)),
    bar("wp_clear", 600, 28, None, (1347.0, 193.0)),
    bar("wp_set/unpopulated", 600, 8, None, (1286.0, 33.0)),
    bar("wp_fault_roundtrip", 3_200, 0, None, (9060.0, 0.0)),
    bar("missing_fault_roundtrip", 3_600, 0, None, (10_569.0, 0.0)),
    bar("marker_write_roundtrip", 3_900, 0, None, (11_194.0, 0.0)),
    // Registered as plain, and write-protected at most 12 more.
    bar("shared_dontneed", 1_000, 54, None, (0.0, 391.0)),
    bar("shared_dontneed/registered", 1_000, 54, None, (0.0, 392.0)),
    bar("shared_dontneed/protected", 1_000, 66, None, (0.0, 418.0)),
    // Of the suite `mte`.
    bar("null_syscall/sync", 100, 0, None, (270.0, 0.0)),
    bar("null_syscall/async", 110, 0, None, (272.0, 0.0)),
    TAG_FAULT_SIGNAL,
    bar("late_tag_fault_signal", 2_000, 0, None, (4900.0, 0.0)),
    HEAP[0],
    HEAP[1],
    // Of the suite `smmu`. QEMU's SMMU executes a command as soon as PROD is written: there is no wait.
    bar("notify_secondary_tlbs", 200, 0, NO_TLBI, (788.0, 0.0)),
    bar("notify_secondary_tlbs/two_commands", 225, 0, NO_TLBI, (855.0, 0.0)),
    bar("notify_secondary_tlbs/none", 5, 0, NOTHING, (2.0, 0.0)),
    bar("smmu_probe", 100_000, 0, None, (287_528.0, 0.0)),
    bar("dma_map", 300, 0, NO_TLBI, (849.0, 0.0)),
    bar("dma_unmap", 500, 0, NO_TLBI, (1871.0, 0.0)),
    bar("domain_map", 250, 8, NO_TLBI, (507.0, 24.0)),
    bar("domain_unmap", 500, 12, NO_TLBI, (1146.0, 59.0)),
];

/// The machine whose CPU zeroes and copies by plain loads and stores.
const WITHOUT_MOPS: &str = "a72";

/// Bounds there, of rows that zero or copy.
const BARS_WITHOUT_MOPS: [Bar; 5] = [
    bar("anon_write_fault", 0, 750, None, (0.0, 2137.0)),
    bar("cow_copy_fault", 0, 1_500, None, (0.0, 2606.0)),
    bar("huge_write_fault", 75_000, 0, None, (144_757.0, 0.0)),
    bar("migrate_page", 0, 2_600, None, (0.0, 0.0)),
    // There is no number of Linux without MOPS: this one is with them.
    bar("mmap_populate", 1_500, 250, None, (5405.0, 1832.0)),
];

/// The machine of rows that need tag storage.
const TAG_STORAGE: &str = "mte";

/// A new page with tags, what reserves its storage included.
const MTE_WRITE_FAULT: Bar = bar("mte_write_fault", 0, 750, None, (0.0, 2210.0));

/// Bounds with tag storage. Linux has none: there mprotect clears the tags of all pages.
const BARS_TAG_STORAGE: [Bar; 7] = [
    bar("mprotect_mte", 610, 16, None, (2128.0, 306.0)),
    MTE_WRITE_FAULT,
    bar("fault_on_access/reserved/net", 0, 500, None, (0.0, 0.0)),
    bar("fault_on_access/free_block/net", 0, 1_500, None, (0.0, 0.0)),
    TAG_FAULT_SIGNAL,
    HEAP[0],
    HEAP[1],
];

/// The machine of such rows whose CPU zeroes tags line by line.
const TAG_STORAGE_WITHOUT_MOPS: &str = "mte-n2";

const fn bar(name: &'static str, fixed: u32, slope: u32, barriers: Option<Barriers>, linux: (f64, f64)) -> Bar {
    Bar { name, fixed, slope, barriers, barriers_up_to: u32::MAX, linux }
}

impl Bar {
    /// The bound of that row on that machine, if it has one there.
    pub fn on(machine: &str, name: &str) -> Option<&'static Self> {
        let bars: &[Self] = match machine {
            DEFAULT => &BARS,
            WITHOUT_MOPS => &BARS_WITHOUT_MOPS,
            TAG_STORAGE => &BARS_TAG_STORAGE,
            TAG_STORAGE_WITHOUT_MOPS => &[MTE_WRITE_FAULT],
            _ => &[],
        };
        bars.iter().find(|bar| bar.name == name)
    }

    /// Where a row stands in a report: those with bounds come first, in their order here.
    pub fn place(name: &str) -> usize {
        let bars = BARS.iter().chain(&BARS_TAG_STORAGE);
        bars.clone().position(|bar| bar.name == name).unwrap_or(bars.count())
    }

    /// Whether the row keeps it at every size, barriers included where they were counted.
    pub fn is_met(&self, row: &Row) -> bool {
        let within = |&(size, taken): &(u32, u32)| {
            u64::from(taken) <= u64::from(self.fixed) + u64::from(self.slope) * u64::from(size)
        };
        let few = |had: &Barriers| {
            self.barriers.is_none_or(|may| had.dsb <= may.dsb && had.isb <= may.isb && had.tlbi <= may.tlbi)
        };
        let judged = row.points.iter().zip(&row.barriers).filter(|((size, _), _)| *size <= self.barriers_up_to);
        row.points.iter().all(within) && judged.map(|(_, had)| had).all(few)
    }

    /// The instructions that Linux takes, where they are known.
    pub fn linux(&self) -> Option<Fit> {
        let (fixed, slope) = self.linux;
        (fixed != 0.0 || slope != 0.0).then_some(Fit { fixed, slope, max_error: 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, Barriers, Row};

    fn row(points: &[(u32, u32)], barriers: Barriers) -> Row {
        Row::new("set_memory_x", "page", points.to_vec(), vec![barriers; points.len()])
    }

    #[test]
    fn one_point_or_barrier_too_many_misses() {
        let bar = Bar::on("default", "set_memory_x").unwrap();
        let two = Barriers { dsb: 2, isb: 1, tlbi: 1 };
        assert!(bar.is_met(&row(&[(1, 257), (512, 3834)], two)));
        assert!(!bar.is_met(&row(&[(1, 258), (512, 3834)], two)));
        assert!(!bar.is_met(&row(&[(1, 257), (512, 3835)], two)));
        for more in [Barriers { dsb: 3, ..two }, Barriers { isb: 2, ..two }, Barriers { tlbi: 2, ..two }] {
            assert!(!bar.is_met(&row(&[(1, 257), (512, 3834)], more)), "{more:?}");
        }
        assert!(Bar::on("default", "memory/zero").is_none());
    }

    #[test]
    fn rows_that_zero_may_take_more_without_an_instruction_for_it() {
        let of = |machine| Bar::on(machine, "anon_write_fault").map(ToString::to_string);
        assert_eq!((of("default").as_deref(), of("a72").as_deref(), of("n2")), (Some("400 N"), Some("750 N"), None));
        assert!(Bar::on("a72", "fork").is_none());
        let of = |machine| Bar::on(machine, "fault_on_access/free_block/net").map(ToString::to_string);
        assert_eq!((of("mte").as_deref(), of("default")), (Some("1500 N"), None));
    }
}
