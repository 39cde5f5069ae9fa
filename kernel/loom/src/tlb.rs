//! The TLBs of the CPUs: each translation that a CPU has looked up, until an invalidation takes it.
//!
//! Nothing is ever evicted. The DSB that completes a TLBI waits for the walks that are under way; a walk after a TLBI
//! reads what was stored before the barrier that precedes it.

use std::sync::Mutex;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::tlbi::Instruction;
use granule_pgtable::{Geometry, PageRange, Tiny, Translation};

use crate::Cpu;
use crate::sync::atomic::{AtomicU64, Ordering};

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
    /// The entry that a TLB may keep of `found` at `address`, as `size` bytes.
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

/// The entries of all TLBs together: every invalidation is for all.
///
/// The books are in `std`'s types, so that they make no order between the CPUs. Each use of them is one step, without an
/// access that loom schedules in between.
#[derive(Default)]
pub(crate) struct Tlbs {
    books: Mutex<Books>,
    /// Changed by each invalidation: all that orders a walk after it, and no more than the barrier before it does.
    issued: AtomicU64,
}

#[derive(Default)]
struct Books {
    held: Vec<Held>,
    /// Invalidations so far.
    invalidated: Vec<Taken>,
}

/// Translations that an instruction takes from all TLBs.
#[derive(Clone, Copy)]
struct Taken {
    /// `None`: everything.
    range: Option<PageRange<Tiny>>,
    /// The level that its hint names: translations of other levels are left.
    level: Option<u8>,
}

impl Taken {
    /// By the fields of its operand (Arm ARM C5.5), not by what its issuer meant; `None` for one that this CPU issues for
    /// itself alone.
    fn by(instruction: Instruction) -> Option<Self> {
        let pages = |first: u64, count: u64| PageRange::from_pages(VirtAddr(first << Tiny::PAGE_SHIFT), count as usize);
        let level = |hint: u64| (hint & 3 != 0).then_some((hint & 3) as u8);
        match instruction {
            Instruction::Vmalle1is => Some(Self { range: None, level: None }),
            Instruction::Vaae1is(operand) | Instruction::Vaale1is(operand) => {
                let bits = operand.bits();
                let range = pages(bits & ((1 << 44) - 1), 1);
                Some(Self { range: Some(range.expect("a page of the tree")), level: level(bits >> 44) })
            }
            Instruction::Rvaae1is(operand) | Instruction::Rvaale1is(operand) => {
                let bits = operand.bits();
                let count = ((bits >> 39 & 0x1f) + 1) << (5 * (bits >> 44 & 3) + 1);
                let range = pages(bits & ((1 << 37) - 1), count);
                Some(Self { range: Some(range.expect("pages of the tree")), level: level(bits >> 37) })
            }
            _ => None,
        }
    }

    fn takes(&self, held: &Held) -> bool {
        self.range.is_none_or(|range| held.overlaps(range)) && self.level.is_none_or(|level| level == held.level)
    }
}

impl Tlbs {
    /// Takes from all of them what `instruction` says.
    pub(crate) fn invalidate(&self, instruction: Instruction) {
        let Some(taken) = Taken::by(instruction) else { return };
        self.issued.fetch_add(1, Ordering::Relaxed);
        let books = &mut *self.books.lock().unwrap();
        books.held.retain(|held| !taken.takes(held));
        books.invalidated.push(taken);
    }
}

impl Cpu<'_> {
    /// The hardware looks `pages` up, and the TLB keeps what it finds, beside whatever else it holds.
    pub fn access(&self, pages: &[u64]) {
        let tlbs = &self.machine.tlbs;
        for address in pages.iter().map(|page| VirtAddr(page << Tiny::PAGE_SHIFT)) {
            // The last value, as an addition of nothing reads it: a walk after an invalidation finds what was stored
            // before the barrier that was before it.
            tlbs.issued.fetch_add(0, Ordering::Acquire);
            let before = tlbs.books.lock().unwrap().invalidated.len();
            let Some(found) = self.tables().translate(address).filter(|found| found.valid) else { continue };
            let Books { held, invalidated } = &mut *tlbs.books.lock().unwrap();
            for size in [Tiny::entry_size(found.level), found.leaf_size] {
                let new = Held::new(address, &found, size);
                // An invalidation that came during the walk has waited for it, and taken what it found.
                if !held.contains(&new) && !invalidated[before..].iter().any(|what| what.takes(&new)) {
                    held.push(new);
                }
            }
        }
    }

    /// Asserts that no TLB has `page`, whose memory gets another owner.
    pub(crate) fn assert_not_held(&self, page: u64) {
        let books = self.machine.tlbs.books.lock().unwrap();
        let held = books.held.iter().find(|held| held.overlaps(crate::pages(page, 1)));
        assert!(held.is_none(), "page {page} is free and may be translated by {held:?}");
    }

    /// Asserts that no TLB has anything for `range`, whose owner this is, but what the tables hold.
    pub fn assert_nothing_stale(&self, range: PageRange<Tiny>) {
        let held = self.machine.tlbs.books.lock().unwrap().held.clone();
        let mut page = range.start();
        while range.contains(page) {
            let found = self.tables().translate(page);
            let next = page + found.map_or(Tiny::PAGE_SIZE, |found| found.leaf_size);
            for held in held.iter().filter(|held| held.overlaps(PageRange::new(page, next.0 - page.0).expect("pages")))
            {
                assert!(held.agrees(page, found), "{page} may be translated by {held:?}, not by {found:?}");
            }
            page = next;
        }
    }
}
