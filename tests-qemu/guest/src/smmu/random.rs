//! Random changes and random accesses of a device, held against what it must see.
//!
//! The oracle is a few lines: for each page whether it is mapped, whether it is writable, and its contents. The device
//! writes sectors that contain their number; what it reads goes to a sector of its own, and those are read back
//! together. So each access is one request, and each is checked by data.

use granule::devices::disk::SECTOR;
use granule::iommu::{DmaAddress, iommu};
use granule::mm::space::{FaultError, MapRequest, Sharing, SpaceRef};
use granule::smp::this_cpu;
use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;

use super::{ANSWER, DELIVERED, PAGE, READ_WRITE, Rig, START, WRITTEN, pages, refused};
use crate::harness::{Test, target_test};

/// Pages that are changed.
const PAGES: usize = 24;
/// Sectors that are read back together: a page of them.
const BATCH: usize = (PAGE / SECTOR as u64) as usize;

/// The state that a page must have.
#[derive(Clone, Copy)]
struct Page {
    protection: Option<Protection>,
    word: u64,
}

struct Story {
    rig: Rig,
    pages: [Page; PAGES],
    /// A copy of the space, so that stores copy pages, and that it keeps what it had.
    child: Option<(SpaceRef, [Page; PAGES])>,
    /// The words that the device must have read, and written to the sectors from [`WRITTEN`] on.
    read: heapless::Vec<u64, BATCH>,
    accesses: u64,
    stale: u64,
}

fn address(page: usize) -> VirtAddr {
    START + page as u64 * PAGE
}

impl Story {
    fn new(t: &mut Test) -> Option<Self> {
        let rig = Rig::new(t, PAGES as u64, Sharing::Private)?;
        let pages = [Page { protection: Some(READ_WRITE), word: 0 }; PAGES];
        Some(Self { rig, pages, child: None, read: heapless::Vec::new(), accesses: 0, stale: 0 })
    }

    fn round(&mut self, t: &mut Test) {
        let (what, page) = (t.random() % 32, t.random() as usize % PAGES);
        let count = (t.random() as usize % 4 + 1).min(PAGES - page);
        let (at, bytes, cpu) = (address(page), count as u64 * PAGE, this_cpu());
        let some = page..page + count;
        match what {
            0..=8 => self.device_reads(page),
            9..=17 => self.device_writes(page, DELIVERED + t.random() % 4096),
            18..=22 => self.cpu_writes(page, t.random()),
            23 | 24 => self.protect(some, Protection::READ),
            25..=27 => self.protect(some, READ_WRITE),
            28 => {
                self.stale += u64::from(self.rig.space.munmap(cpu, at, bytes).is_err());
                self.pages[some].fill(Page { protection: None, word: 0 });
            }
            29 => {
                let there = self.pages[some.clone()].iter().all(|page| page.protection.is_some());
                let done = self.rig.space.madvise_dontneed(cpu, at, bytes);
                self.stale += u64::from(done.is_ok() != there);
                self.pages[some].iter_mut().for_each(|page| page.word = 0);
            }
            30 => {
                let request = MapRequest { ..pages(at, count as u64) };
                self.stale += u64::from(self.rig.space.mmap(cpu, &request).is_err());
                self.pages[some].fill(Page { protection: Some(READ_WRITE), word: 0 });
            }
            _ => self.fork(),
        }
    }

    fn device_reads(&mut self, page: usize) {
        self.accesses += 1;
        let sector = WRITTEN + self.read.len() as u64;
        let done = self.rig.disk.write(sector, DmaAddress(address(page).0), SECTOR);
        match self.pages[page] {
            Page { protection: Some(_), word } => {
                self.stale += u64::from(done.is_err());
                if done.is_ok() {
                    let _ = self.read.push(word);
                }
            }
            Page { protection: None, .. } => {
                self.stale += u64::from(done.map(drop) != refused(FaultError::NotMapped));
            }
        }
        if self.read.is_full() {
            self.compare();
        }
    }

    /// Reads back what the device has read.
    fn compare(&mut self) {
        let read = self.rig.disk.read(WRITTEN, DmaAddress(ANSWER.0), BATCH as u32 * SECTOR);
        self.stale += u64::from(read.is_err());
        for (index, wanted) in self.read.iter().enumerate() {
            let found = self.rig.load(ANSWER + index as u64 * u64::from(SECTOR));
            self.stale += u64::from(found != *wanted);
        }
        self.read.clear();
    }

    fn device_writes(&mut self, page: usize, number: u64) {
        self.accesses += 1;
        let done = self.rig.device_store(address(page), number).map(drop);
        let wanted = match self.pages[page].protection {
            Some(READ_WRITE) => {
                self.pages[page].word = number;
                Ok(())
            }
            Some(_) => refused(FaultError::NotAllowed),
            None => refused(FaultError::NotMapped),
        };
        self.stale += u64::from(done != wanted);
        self.look(page);
    }

    fn cpu_writes(&mut self, page: usize, word: u64) {
        let done = self.rig.space.write_bytes(this_cpu(), address(page), &word.to_le_bytes());
        let may = self.pages[page].protection == Some(READ_WRITE);
        self.stale += u64::from(done.is_ok() != may);
        if may {
            self.pages[page].word = word;
        }
        self.look(page);
    }

    /// Compares the page, as the CPU sees it, with the state that it must have.
    fn look(&mut self, page: usize) {
        let wanted = self.pages[page];
        self.stale += u64::from(wanted.protection.is_some() && self.rig.load(address(page)) != wanted.word);
    }

    fn protect(&mut self, some: core::ops::Range<usize>, protection: Protection) {
        let (at, bytes) = (address(some.start), some.len() as u64 * PAGE);
        let done = self.rig.space.mprotect(at, bytes, protection);
        // mprotect changes the pages before the first hole.
        let mut whole = true;
        for page in &mut self.pages[some] {
            whole &= page.protection.is_some();
            if whole {
                page.protection = Some(protection);
            }
        }
        self.stale += u64::from(done.is_ok() != whole);
    }

    fn fork(&mut self) {
        if let Some((child, pages)) = self.child.take() {
            for (index, page) in pages.iter().enumerate().filter(|(_, page)| page.protection.is_some()) {
                let mut bytes = [0; 8];
                let read = child.read_bytes(this_cpu(), address(index), &mut bytes);
                self.stale += u64::from(read.is_err() || u64::from_le_bytes(bytes) != page.word);
            }
        } else {
            self.child = self.rig.space.fork(this_cpu()).ok().map(|child| (child, self.pages));
        }
    }
}

/// Plays so many rounds; accesses that were not what they must be.
fn play(t: &mut Test, rounds: u32) {
    let Some(mut story) = Story::new(t) else { return };
    let Some(before) = iommu().map(|iommu| (iommu.smmu().stats(), iommu.fault_stats())) else { return };
    for _ in 0..rounds {
        story.round(t);
        if story.stale != 0 {
            break;
        }
    }
    story.compare();
    t.equal("accesses that were not what they must be", story.stale, 0);
    t.check("half of the rounds are accesses of the device", story.accesses > u64::from(rounds) / 2);
    if let Some(iommu) = iommu() {
        let (commands, faults) =
            (iommu.smmu().stats().calls - before.0.calls, iommu.fault_stats().events - before.1.events);
        t.check("the SMMU was notified of changes", commands > u64::from(rounds) / 20);
        t.check("the device met faults", faults > u64::from(rounds) / 20);
    }
}

target_test!(random_changes_and_accesses_agree, needs("smmuv3 virtio-blk"), limit(200));
fn random_changes_and_accesses_agree(t: &mut Test) {
    play(t, 12_000);
}

target_test!(many_random_changes_and_accesses_agree, needs("smmuv3 virtio-blk"), limit(2000), long());
fn many_random_changes_and_accesses_agree(t: &mut Test) {
    play(t, 1_000_000);
}
