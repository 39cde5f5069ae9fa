//! What the TLBs of the CPUs hold: each translation that a CPU has looked up, until an invalidation takes it.
//!
//! Nothing is ever evicted. A walk and an invalidation exclude each other, since the DSB that completes a TLBI waits
//! for the walks that are under way; so a walk behind an invalidation reads what was stored before it. That a barrier
//! between store and invalidation is needed for that is the model machine's to show, not loom's.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_pgtable::{Geometry, Invalidation, PageRange, Tiny, Tlb, Translation};
use loom::sync::Mutex;

use crate::Cpu;

/// The bits of an entry that are permissions.
const PERMISSIONS: u64 = bits::VALID | bits::RDONLY | bits::PXN;

/// A translation that a CPU holds: of one entry, or of a whole contiguous group, made from one entry of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    start: VirtAddr,
    size: u64,
    level: u8,
    target: PhysAddr,
    permissions: u64,
}

impl Held {
    /// What may be kept of `found` at `address`, as `size` bytes.
    fn new(address: VirtAddr, found: &Translation, size: u64) -> Self {
        let start = address.align_down(size);
        Self {
            start,
            size,
            level: found.level,
            target: PhysAddr(found.physical.0 - (address.0 - start.0)),
            permissions: found.descriptor.0 & PERMISSIONS,
        }
    }

    fn overlaps(&self, range: PageRange<Tiny>) -> bool {
        range.contains(self.start) || range.start().0.wrapping_sub(self.start.0) < self.size
    }

    /// Whether the tables, which have `found` at `address`, hold the same.
    fn agrees(&self, address: VirtAddr, found: Option<Translation>) -> bool {
        let same = |found: Translation| {
            found.physical.0 - address.0 == self.target.0 - self.start.0
                && found.descriptor.0 & PERMISSIONS == self.permissions
        };
        found.is_some_and(same)
    }
}

/// What all of them hold together: every invalidation is for all.
pub(crate) struct Tlbs(Mutex<Vec<Held>>);

impl Tlbs {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl Cpu<'_> {
    /// The hardware looks `pages` up, and the TLB keeps what it finds, beside whatever else it holds.
    pub fn access(&self, pages: &[u64]) {
        let mut tlbs = self.machine.tlbs.0.lock().unwrap();
        for address in pages.iter().map(|page| VirtAddr(page << Tiny::PAGE_SHIFT)) {
            let Some(found) = self.tables().translate(address).filter(|found| found.valid) else { continue };
            for size in [Tiny::entry_size(found.level), found.leaf_size] {
                let held = Held::new(address, &found, size);
                if !tlbs.contains(&held) {
                    tlbs.push(held);
                }
            }
        }
    }

    /// Asserts that no TLB has anything for `range`, whose owner this is, but what the tables hold.
    pub fn assert_nothing_stale(&self, range: PageRange<Tiny>) {
        let tlbs = self.machine.tlbs.0.lock().unwrap();
        let mut page = range.start();
        while range.contains(page) {
            let found = self.tables().translate(page);
            let next = page + found.map_or(Tiny::PAGE_SIZE, |found| found.leaf_size);
            for held in tlbs.iter().filter(|held| held.overlaps(PageRange::new(page, next.0 - page.0).expect("pages")))
            {
                assert!(held.agrees(page, found), "{page} may be translated by {held:?}, not by {found:?}");
            }
            page = next;
        }
    }
}

/// Invalidates them. Only with a level hint are translations of other levels left.
pub struct Broadcast;

impl Tlb<Cpu<'_>> for Broadcast {
    fn issue(&self, cpu: &Cpu<'_>, what: &Invalidation<Tiny>) {
        let hinted = |held: &Held| what.level.is_none_or(|hint| hint.level() == held.level);
        cpu.machine.tlbs.0.lock().unwrap().retain(|held| !(held.overlaps(what.range) && hinted(held)));
    }
}
