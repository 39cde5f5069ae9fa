//! Marks and markers: what keeps them, what takes them away, and what they cost.

use std::sync::{Arc, Mutex};
use std::vec;

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::host::Operation;

use super::*;
use crate::lab;
use crate::mm::kernel::record::record;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::entry::uffd_wp_marker;
use crate::mm::space::scan::{PRESENT, Scan, WRITTEN};
use crate::mm::space::{AreaAdvice, MappedFile, Object, Seals, Terms, Used, WriteAt};

const BLOCK_PAGES: u64 = BLOCK_FRAMES as u64;

fn at(page: u64) -> VirtAddr {
    START + page * PAGE
}

/// A space with an area, registered for write-protection.
struct Stage {
    rig: &'static Rig,
    space: SpaceRef,
    file: Option<Counted<Object>>,
    pager: Counted<Userfaultfd>,
}

impl Stage {
    /// With pages of `file`, or anonymous ones, that were not touched.
    fn new(rig: &'static Rig, file: Option<Counted<Object>>, sharing: Sharing, pages: u64, features: u64) -> Self {
        let space = rig.space();
        let request = MapRequest { placement: Placement::Fixed(START), sharing, ..private(pages) };
        let mapped = file.as_ref().map(|object| MappedFile { object, first_page: 0, may_write: true });
        let terms = Terms { file: mapped, ..Terms::NONE };
        space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
        let pager = pager(&space, features);
        Userfaultfd::register(&pager, &rig.cpu, START, pages * PAGE, WP).unwrap();
        Self { rig, space, file, pager }
    }

    fn anonymous(pages: u64) -> Self {
        Self::new(rig(8), None, Sharing::Private, pages, Features::WP_UNPOPULATED)
    }

    /// Of memory that can be shared.
    fn of_file(sharing: Sharing, pages: u64) -> Self {
        let rig = rig(2);
        let file = rig.spaces.create_object(&rig.cpu, pages * PAGE, Some(&[]), Seals(0)).unwrap();
        Self::new(rig, Some(file), sharing, pages, 0)
    }

    /// Private pages of a file of the initrd.
    fn of_initrd(pages: u64) -> Self {
        let rig = rig(2);
        let contents = vec![1; (pages * PAGE) as usize].leak();
        let file = rig.spaces.create_object(&rig.cpu, pages * PAGE, Some(contents), Seals(0)).unwrap();
        Self::new(rig, Some(file), Sharing::Private, pages, 0)
    }

    /// Shared blocks.
    fn of_blocks(blocks: u64) -> Self {
        let rig = rig(16);
        let file = rig.spaces.create_object(&rig.cpu, blocks * BLOCK_SIZE, Some(&[]), Seals(0)).unwrap();
        let stage = Self::new(rig, Some(file), Sharing::Shared, blocks * BLOCK_PAGES, 0);
        stage.space.madvise_areas(&rig.cpu, START, blocks * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
        stage
    }

    fn mark(&self, page: u64, pages: u64, mark: Mark) {
        self.pager.write_protect(&self.rig.cpu, None, at(page), pages * PAGE, mark).unwrap();
    }

    fn store(&self, page: u64) -> Result<(), FaultError> {
        store(&self.space, &self.rig.cpu, at(page))
    }

    fn discard(&self, page: u64, pages: u64) {
        self.space.madvise_dontneed(&self.rig.cpu, at(page), pages * PAGE).unwrap();
    }

    fn entry(&self, page: u64) -> Descriptor {
        let cell = self.space.page_tables().cell(at(page));
        cell.map_or(Descriptor::EMPTY, |(_, cell)| self.space.mmu().load(cell))
    }

    fn is_block_marker(&self) -> bool {
        self.space.is_block_or_marker(START) && self.space.block_entry(START).is_none()
    }

    fn reclaim(&self) -> usize {
        self.rig.spaces.reclaim(&self.rig.cpu, usize::MAX, Used::Age, &|| false)
    }

    /// Drops all; nothing is left.
    #[track_caller]
    fn end(self) {
        let Self { rig, space, file, pager } = self;
        pager.close();
        drop((space, file, pager));
        assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
        assert_eq!(rig.frames.stats().refused, 0, "a frame is freed twice");
    }
}

fn rig(mib: u64) -> &'static Rig {
    Box::leak(Box::new(Rig::new(mib)))
}

const REPORTED: Result<(), FaultError> = Err(FaultError::Userfault);

#[test]
fn a_mark_outlives_that_nothing_is_permitted() {
    host::with(&[], || {
        for stage in [Stage::anonymous(3), Stage::of_file(Sharing::Shared, 3), Stage::of_file(Sharing::Private, 3)] {
            assert_eq!(stage.store(0), Ok(()));
            // A page, and pages that are not there.
            stage.mark(0, 3, Mark::Set);
            for protection in [Protection::NONE, Protection::READ, READ_WRITE] {
                stage.space.mprotect(START, 3 * PAGE, protection).unwrap();
            }
            assert_eq!([0, 1].map(|page| stage.store(page)), [REPORTED; 2]);
            // Set and cleared where nothing is permitted.
            stage.space.mprotect(START, 3 * PAGE, Protection::NONE).unwrap();
            stage.mark(0, 2, Mark::Clear);
            stage.mark(1, 1, Mark::Set);
            stage.space.mprotect(START, 3 * PAGE, READ_WRITE).unwrap();
            assert_eq!([0, 1, 2].map(|page| stage.store(page)), [Ok(()), REPORTED, REPORTED]);
            stage.end();
        }
    });
}

#[test]
fn a_child_that_is_not_registered_has_no_marks_and_copies_the_page() {
    host::with(&[], || {
        let stage = Stage::anonymous(2);
        stage.rig.write(&stage.space, START, 7);
        stage.mark(0, 2, Mark::Set);
        let child = stage.space.fork(&stage.rig.cpu).unwrap();
        assert_eq!(stage.store(0), REPORTED);
        for page in 0..2 {
            assert_eq!(store(&child, &stage.rig.cpu, at(page)), Ok(()));
        }
        stage.rig.write(&child, START, 8);
        assert_eq!((stage.rig.read(&stage.space, START), stage.store(0), stage.store(1)), (7, REPORTED, REPORTED));
        // A page that is no longer protected is still copied, where a child has it.
        drop(child);
        let child = stage.space.fork(&stage.rig.cpu).unwrap();
        stage.mark(0, 2, Mark::Clear);
        stage.rig.write(&stage.space, START, 9);
        assert_eq!(stage.rig.read(&child, START), 7);
        drop(child);
        stage.end();
    });
}

#[test]
fn a_page_that_is_discarded_stays_protected_in_areas_of_files_alone() {
    host::with(&[], || {
        for (stage, reported) in [
            (Stage::anonymous(1), Ok(())),
            (Stage::of_file(Sharing::Shared, 1), REPORTED),
            // The private copy too: that is a property of the area.
            (Stage::of_file(Sharing::Private, 1), REPORTED),
        ] {
            assert_eq!(stage.store(0), Ok(()));
            stage.mark(0, 1, Mark::Set);
            stage.discard(0, 1);
            let expected = if reported == REPORTED { uffd_wp_marker() } else { Descriptor::EMPTY };
            assert_eq!(stage.entry(0), expected);
            assert_eq!(stage.store(0), reported);
            stage.mark(0, 1, Mark::Clear);
            assert_eq!(stage.store(0), Ok(()));
            stage.end();
        }
    });
}

#[test]
fn a_hole_leaves_a_private_copy_with_its_mark_and_a_truncation_a_marker() {
    host::with(&[], || {
        let stage = Stage::of_file(Sharing::Private, 3);
        let file = stage.file.clone().unwrap();
        let cpu = &stage.rig.cpu;
        stage.rig.write(&stage.space, START, 7);
        stage.rig.read(&stage.space, at(1));
        stage.mark(0, 3, Mark::Set);
        file.punch_hole(cpu, 0, 3 * PAGE).unwrap();
        assert!(stage.entry(0).is_uffd_wp_in_any_form());
        assert_eq!([1, 2].map(|page| stage.entry(page)), [uffd_wp_marker(); 2]);
        assert_eq!((stage.store(0), stage.store(1), stage.rig.read(&stage.space, START)), (REPORTED, REPORTED, 7));
        file.truncate(cpu, 0).unwrap();
        assert!((0..3).all(|page| stage.entry(page) == uffd_wp_marker()));
        // After the end no pager is asked.
        assert_eq!(stage.store(0), Err(FaultError::Unusable));
        file.truncate(cpu, 3 * PAGE).unwrap();
        assert_eq!(stage.store(0), REPORTED);
        assert_eq!(stage.rig.read(&stage.space, at(1)), 0);
        assert_eq!(stage.store(1), REPORTED);
        drop(file);
        stage.end();
    });
}

#[test]
fn a_hole_where_the_object_has_no_page_leaves_markers_too() {
    host::with(&[], || {
        let stage = Stage::of_file(Sharing::Shared, 2);
        let file = stage.file.clone().unwrap();
        stage.mark(0, 2, Mark::Set);
        assert_eq!([0, 1].map(|page| stage.entry(page)), [uffd_wp_marker(); 2]);
        file.punch_hole(&stage.rig.cpu, 0, PAGE).unwrap();
        assert_eq!([0, 1].map(|page| stage.entry(page)), [uffd_wp_marker(); 2]);
        assert_eq!([0, 1].map(|page| stage.store(page)), [REPORTED; 2]);
        drop(file);
        stage.end();
    });
}

#[test]
fn reclaim_leaves_a_marker_behind_the_invalidation_which_a_fault_elsewhere_completes_first() {
    host::with(&[], || {
        let stage = Stage::of_initrd(2);
        (0..2).for_each(|page| assert_eq!(stage.rig.read(&stage.space, at(page)), 1));
        stage.mark(0, 1, Mark::Set);
        assert_eq!((stage.reclaim(), stage.reclaim()), (0, 2));
        let stale = Descriptor::from(Markers::STALE.and(Markers::UFFD_WP));
        assert_eq!([0, 1].map(|page| stage.entry(page)), [stale, Descriptor::from(Markers::STALE)]);
        let other = Cpu::new(CpuId(1));
        let stream = record(|| assert_eq!(handle_fault(&stage.space, &other, START, Access::Read), Ok(())));
        let position = |is_such: fn(&Operation) -> bool| stream.iter().position(is_such).unwrap();
        let write = position(|operation| matches!(operation, Operation::Write { .. }));
        assert!(write < position(|operation| matches!(operation, Operation::Tlbi(..))), "{stream:?}");
        // The next fault is at the marker.
        assert_eq!(stage.entry(0), uffd_wp_marker());
        assert_eq!(stage.store(0), REPORTED);
        assert_eq!((stage.store(1), stage.rig.read(&stage.space, START)), (Ok(()), 1));
        stage.rig.frames.drain_cpu(&other);
        stage.end();
    });
}

/// In memory that is full: it takes nothing from the allocator.
#[test]
fn a_block_that_is_discarded_leaves_one_marker_which_a_hole_in_it_leaves_too() {
    host::with(&[], || {
        let stage = Stage::of_blocks(1);
        stage.rig.write(&stage.space, at(3), 7);
        assert!(stage.space.block_entry(START).is_some());
        stage.mark(0, BLOCK_PAGES, Mark::Set);
        assert_eq!((stage.store(5), stage.space.block_entry(START).is_some()), (REPORTED, true));
        let taken: Vec<_> = core::iter::from_fn(|| stage.rig.frames.alloc(&stage.rig.cpu).ok()).collect();
        let used = stage.rig.frames.stats().used;
        stage.discard(0, BLOCK_PAGES);
        assert!(stage.is_block_marker());
        assert_eq!(stage.space.with_area(START, |area| stage.space.own_pages(area)), Some(0));
        // Again.
        stage.discard(0, BLOCK_PAGES);
        assert!(stage.is_block_marker());
        assert_eq!(stage.rig.frames.stats().used, used);
        let file = stage.file.clone().unwrap();
        file.punch_hole(&stage.rig.cpu, 9 * PAGE, 10 * PAGE).unwrap();
        assert_eq!(stage.rig.frames.stats().used, used - 1);
        taken.into_iter().for_each(|frame| stage.rig.frames.free(&stage.rig.cpu, frame));
        assert_eq!([3, 9].map(|page| stage.store(page)), [REPORTED; 2]);
        assert_eq!(stage.rig.read(&stage.space, at(3)), 7);
        drop(file);
        stage.end();
    });
}

#[test]
fn the_marker_of_a_block_goes_with_its_protection_and_a_fault_makes_markers_of_pages() {
    host::with(&[], || {
        for (other, reported) in [(false, REPORTED), (true, Ok(()))] {
            let stage = Stage::of_blocks(1);
            assert_eq!(stage.store(3), Ok(()));
            stage.mark(0, BLOCK_PAGES, Mark::Set);
            stage.discard(0, BLOCK_PAGES);
            if other {
                stage.mark(0, BLOCK_PAGES, Mark::Clear);
            }
            assert_eq!((stage.store(3), stage.is_block_marker()), (reported, false));
            assert_eq!(stage.entry(4) == uffd_wp_marker(), !other);
            stage.end();
        }
    });
}

#[test]
fn populating_passes_over_the_marker_of_no_block() {
    host::with(&[], || {
        let stage = Stage::of_blocks(1);
        assert_eq!(stage.store(3), Ok(()));
        stage.mark(0, BLOCK_PAGES, Mark::Set);
        stage.discard(0, BLOCK_PAGES);
        let cpu = &stage.rig.cpu;
        assert_eq!(stage.space.madvise_populate(cpu, START, 8 * PAGE, Access::Read, &|| false), Ok(()));
        let mut present = [0; 8];
        stage.space.mincore(START, &mut present).unwrap();
        assert!((0..8).all(|page| stage.entry(page).is_present() && stage.entry(page).is_uffd_wp()));
        assert_eq!(stage.store(3), REPORTED);
        stage.end();
    });
}

#[test]
fn tables_that_hold_markers_alone_are_freed_with_the_area() {
    host::with(&[], || {
        // As many are left as of pages.
        let left = [false, true].map(|has_pages| {
            let stage = Stage::anonymous(2 * BLOCK_PAGES);
            let used = stage.rig.used();
            if has_pages {
                [0, 2 * BLOCK_PAGES - 1].iter().for_each(|page| assert_eq!(stage.store(*page), Ok(())));
            } else {
                stage.mark(0, 2 * BLOCK_PAGES, Mark::Set);
                assert_eq!([0, 2 * BLOCK_PAGES - 1].map(|page| stage.entry(page)), [uffd_wp_marker(); 2]);
            }
            assert!(stage.rig.used() > used + 2);
            stage.space.munmap(&stage.rig.cpu, START, BLOCK_SIZE).unwrap();
            stage.space.munmap(&stage.rig.cpu, START + BLOCK_SIZE, BLOCK_SIZE).unwrap();
            let left = (stage.rig.used(), stage.space.table_frames());
            stage.end();
            left
        });
        assert_eq!(left[0], left[1]);
        // The table of a block marker, with the one that is deposited for it.
        let left = [false, true].map(|is_discarded| {
            let stage = Stage::of_blocks(1);
            assert_eq!(stage.store(3), Ok(()));
            if is_discarded {
                stage.mark(0, BLOCK_PAGES, Mark::Set);
                stage.discard(0, BLOCK_PAGES);
            }
            stage.space.munmap(&stage.rig.cpu, START, BLOCK_SIZE).unwrap();
            let left = (stage.rig.used(), stage.space.table_frames());
            stage.end();
            left
        });
        assert_eq!(left[0], left[1]);
        // And with the space.
        let stage = Stage::of_blocks(1);
        assert_eq!(stage.store(3), Ok(()));
        stage.mark(0, BLOCK_PAGES, Mark::Set);
        stage.discard(0, BLOCK_PAGES);
        let Stage { rig, space, file, pager } = stage;
        drop((space, file));
        pager.close();
        drop(pager);
        assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
    });
}

#[test]
fn what_is_registered_no_more_has_neither_marks_nor_markers() {
    host::with(&[], || {
        for is_closed in [false, true] {
            let stage = Stage::of_file(Sharing::Shared, 4);
            assert_eq!(stage.store(0), Ok(()));
            stage.mark(0, 4, Mark::Set);
            if is_closed {
                stage.pager.close();
            } else {
                stage.pager.unregister(&stage.rig.cpu, at(0), 2 * PAGE).unwrap();
                assert_eq!(stage.store(2), REPORTED);
            }
            assert_eq!(stage.entry(1), Descriptor::EMPTY);
            assert_eq!([0, 1].map(|page| stage.store(page)), [Ok(()); 2]);
            stage.end();
        }
    });
}

#[test]
fn a_store_is_reported_whichever_way_the_mark_meets_a_fault() {
    host::with(&[], || {
        let rig = rig(2);
        let mut moments = 0;
        for is_written in [false, true] {
            for is_fault_first in [false, true] {
                for nth in 0.. {
                    let stage = Stage::new(rig, None, Sharing::Private, 2, Features::WP_UNPOPULATED);
                    if is_written {
                        assert_eq!(stage.store(0), Ok(()));
                        // Read-only again.
                        drop(stage.space.fork(&rig.cpu).unwrap());
                    }
                    let (space, pager) = (stage.space.clone(), stage.pager.clone());
                    let mark = move |cpu: &Cpu| pager.write_protect(cpu, None, START, PAGE, Mark::Set).unwrap();
                    let fault = move |cpu: &Cpu| _ = handle_fault(&space, cpu, START, Access::Write);
                    // Dropped with what they have of the space.
                    let met = match is_fault_first {
                        true => meet(&[&stage.space], START, move || fault(&rig.cpu), mark, nth),
                        false => meet(&[&stage.space], START, move || mark(&rig.cpu), fault, nth),
                    };
                    if met {
                        assert_eq!(stage.store(0), REPORTED, "moment {nth}");
                    }
                    stage.end();
                    moments += 1;
                    if !met {
                        break;
                    }
                }
            }
        }
        assert!(moments > 16, "{moments} moments");
    });
}

/// A store that no pager is asked about and a scan, at each moment of each other: the scan finds the store, or the next
/// one does.
#[test]
fn a_store_is_found_by_the_scan_that_it_meets_or_by_the_next() {
    host::with(&[], || {
        let mut moments = 0;
        for (is_there, by_blocks) in [(true, false), (false, false), (true, true)] {
            let rig = rig(16);
            for (required, is_scan_first) in [(WRITTEN, false), (0, false), (WRITTEN, true), (0, true)] {
                for nth in 0.. {
                    let pages = if by_blocks { BLOCK_PAGES } else { 2 };
                    let stage = Stage::new(rig, None, Sharing::Private, pages, Features::WP_ASYNC);
                    if by_blocks {
                        stage.space.madvise_areas(&rig.cpu, START, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
                    }
                    if is_there {
                        assert_eq!(stage.store(0), Ok(()));
                    }
                    stage.mark(0, pages, Mark::Set);
                    let found = Arc::new(Mutex::new(Vec::new()));
                    let scan = |space: SpaceRef, found: &Arc<Mutex<Vec<_>>>| {
                        let found = found.clone();
                        move |cpu: &Cpu| found.lock().unwrap().extend(scanned(&space, cpu, (START, pages), required))
                    };
                    let (scan, space) = (scan(stage.space.clone(), &found), stage.space.clone());
                    let write = move |cpu: &Cpu| assert_eq!(store(&space, cpu, START), Ok(()));
                    let met = match is_scan_first {
                        true => meet(&[&stage.space], START, move || scan(&rig.cpu), write, nth),
                        false => meet(&[&stage.space], START, move || write(&rig.cpu), scan, nth),
                    };
                    if met {
                        found.lock().unwrap().extend(scanned(&stage.space, &rig.cpu, (START, pages), WRITTEN));
                        let found = found.lock().unwrap();
                        let stored: Vec<_> = found.iter().filter(|(_, found)| found & WRITTEN != 0).collect();
                        assert!(stored.iter().any(|(page, _)| *page == START), "moment {nth}: {found:?}");
                        assert!(stored.iter().all(|(page, _)| *page == START), "moment {nth}: {found:?}");
                    }
                    stage.end();
                    moments += 1;
                    if !met {
                        break;
                    }
                }
            }
        }
        assert!(moments > 60, "{moments} moments");
    });
}

#[test]
fn a_scan_protects_what_it_finds_written_and_no_more_by_one_invalidation() {
    host::with(&[], || {
        let stage = Stage::new(rig(2), None, Sharing::Private, 40, Features::WP_ASYNC);
        // Pages that follow one another, and others.
        let pages = || (0..8).chain((9..40).step_by(3));
        pages().for_each(|page| assert_eq!(stage.store(page), Ok(())));
        let scan = |stage: &Stage, pages, required| {
            let mut found = 0;
            let stream = record(|| found = scanned(&stage.space, &stage.rig.cpu, (START, pages), required).len());
            (found, stream.iter().filter(|operation| matches!(operation, Operation::DsbIsh)).count())
        };
        let stored = pages().count();
        assert_eq!(scan(&stage, 40, PRESENT | WRITTEN), (stored, 1));
        assert_eq!(scan(&stage, 40, PRESENT | WRITTEN), (0, 0));
        assert_eq!(scan(&stage, 40, WRITTEN), (40 - stored, 0), "the others were not protected, and markers need none");
        assert_eq!(scan(&stage, 40, WRITTEN), (0, 0));
        assert_eq!(stage.store(3), Ok(()));
        assert_eq!(scan(&stage, 40, WRITTEN), (1, 1));
        stage.end();
        let stage = Stage::new(rig(16), None, Sharing::Private, BLOCK_PAGES, Features::WP_ASYNC);
        stage.space.madvise_areas(&stage.rig.cpu, START, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
        assert_eq!(stage.store(3), Ok(()));
        assert_eq!([0, 1].map(|_| scan(&stage, BLOCK_PAGES, WRITTEN)), [(BLOCK_FRAMES, 1), (0, 0)]);
        assert!(stage.space.block_entry(START).is_some());
        stage.end();
    });
}

#[test]
fn a_scan_protects_no_more_than_it_has_room_for() {
    host::with(&[], || {
        let stage = Stage::new(rig(2), None, Sharing::Private, 10, Features::WP_ASYNC);
        (0..3).chain(5..8).for_each(|page| assert_eq!(stage.store(page), Ok(())));
        let full = |next, regions| (START + next * PAGE, true, false, regions);
        for (most_pages, room, expected) in [
            (2, u64::MAX, full(2, vec![(0, 2)])),
            (u64::MAX, 1, full(5, vec![(2, 3)])),
            (u64::MAX, 1, (START + 10 * PAGE, false, false, vec![(5, 8)])),
        ] {
            let mut scan = Scan::new(wanted(PRESENT | WRITTEN), START, START + 10 * PAGE, most_pages, room);
            stage.space.scan(&stage.rig.cpu, &mut scan).unwrap();
            let page = |at: VirtAddr| (at - START) / PAGE;
            let regions = scan.regions().iter().map(|region| (page(region.start), page(region.end))).collect();
            assert_eq!((scan.next(), scan.is_full(), scan.stored(), regions), expected);
        }
        stage.end();
        // A block that is not wanted is passed alone.
        let stage = Stage::new(rig(16), None, Sharing::Private, 2 * BLOCK_PAGES, Features::WP_ASYNC);
        stage.space.madvise_areas(&stage.rig.cpu, START, 2 * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
        for page in [0, BLOCK_PAGES] {
            assert_eq!(stage.store(page), Ok(()));
        }
        let found = || scanned(&stage.space, &stage.rig.cpu, (START, 2 * BLOCK_PAGES), WRITTEN);
        assert_eq!(found().len(), 2 * BLOCK_FRAMES);
        assert_eq!(stage.store(BLOCK_PAGES + 3), Ok(()));
        assert_eq!(found().iter().map(|(page, _)| *page).collect::<vec::Vec<_>>(), [START + BLOCK_SIZE + 3 * PAGE]);
        stage.end();
        // Without room no block is divided, and no table linked.
        let stage = Stage::new(rig(16), None, Sharing::Private, 3 * BLOCK_PAGES, Features::WP_ASYNC);
        stage.space.madvise_areas(&stage.rig.cpu, START, 2 * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
        for page in [0, BLOCK_PAGES] {
            assert_eq!(stage.store(page), Ok(()));
        }
        let tables = stage.space.table_frames();
        for (most_pages, room, blocks) in [(BLOCK_PAGES, 9, 1), (2 * BLOCK_PAGES, 1, 1), (2 * BLOCK_PAGES, 9, 2)] {
            let mut scan = Scan::new(wanted(0), START, START + 3 * BLOCK_SIZE, most_pages, room);
            while !scan.is_full() && !scan.is_done() {
                stage.space.scan(&stage.rig.cpu, &mut scan).unwrap();
            }
            assert_eq!((scan.next(), scan.is_full()), (START + blocks * BLOCK_SIZE, true));
            let of_blocks = [0, 1].map(|block| stage.space.block_entry(START + block * BLOCK_SIZE).is_some());
            assert_eq!((of_blocks, stage.space.table_frames()), ([true; 2], tables), "{blocks}");
        }
        stage.end();
    });
}

#[test]
fn a_mark_that_meets_a_migration_arrives_with_the_page() {
    host::with(&[], || {
        let rig = rig(2);
        let mut moments = 0;
        for mark in [Mark::Set, Mark::Clear] {
            for nth in 0.. {
                let stage = Stage::new(rig, None, Sharing::Private, 2, 0);
                rig.write(&stage.space, START, 7);
                if mark == Mark::Clear {
                    stage.mark(0, 1, Mark::Set);
                }
                let pager = stage.pager.clone();
                let other = move |cpu: &Cpu| pager.write_protect(cpu, None, START, PAGE, mark).unwrap();
                let met = meet(&[&stage.space], START, || _ = rig.migrate(&rig.cpu, &stage.space, START), other, nth);
                let is_set = if met { mark == Mark::Set } else { mark != Mark::Set };
                assert_eq!(stage.store(0), if is_set { REPORTED } else { Ok(()) }, "{mark:?}, moment {nth}");
                assert_eq!(rig.read(&stage.space, START), 7);
                stage.end();
                moments += 1;
                if !met {
                    break;
                }
            }
        }
        assert!(moments > 8, "{moments} moments");
    });
}

#[test]
fn a_page_of_an_object_that_migrates_stays_protected() {
    host::with(&[], || {
        for stage in [Stage::of_file(Sharing::Shared, 2), Stage::of_blocks(1)] {
            stage.rig.write(&stage.space, START, 7);
            stage.mark(0, 1, Mark::Set);
            assert_eq!(stage.rig.migrate(&stage.rig.cpu, &stage.space, START), Some(Ok(())));
            assert_eq!((stage.store(0), stage.store(1)), (REPORTED, Ok(())));
            assert_eq!(stage.rig.read(&stage.space, START), 7);
            stage.end();
        }
    });
}

#[test]
fn what_becomes_protected_is_invalidated_and_what_is_so_already_is_not() {
    host::with(&[], || {
        let stage = Stage::anonymous(2);
        // One page of two, and then both, which are alike.
        for pages in [1, 2] {
            assert_eq!((stage.store(0), stage.store(pages - 1)), (Ok(()), Ok(())));
            let counts = [Mark::Set, Mark::Set, Mark::Clear].map(|mark| {
                let stream = record(|| stage.mark(0, 2, mark));
                stream.iter().filter(|operation| matches!(operation, Operation::Tlbi(..))).count()
            });
            assert!(counts[0] != 0 && counts[1] == 0, "{counts:?}");
        }
        stage.end();
    });
}

#[test]
fn a_block_that_a_child_has_is_not_copied_once_it_is_protected() {
    host::with(&[], || {
        let rig = rig(16);
        for nth in 0.. {
            let stage = Stage::new(rig, None, Sharing::Private, BLOCK_PAGES, 0);
            stage.space.madvise_areas(&rig.cpu, START, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
            rig.write(&stage.space, START, 7);
            let child = stage.space.fork(&rig.cpu).unwrap();
            let pager = stage.pager.clone();
            let mark = move |cpu: &Cpu| pager.write_protect(cpu, None, START, BLOCK_SIZE, Mark::Set).unwrap();
            let fault = || _ = handle_fault(&stage.space, &rig.cpu, START, Access::Write);
            let met = meet(&[&stage.space], START, fault, mark, nth);
            if met {
                assert_eq!((stage.store(0), stage.store(9)), (REPORTED, REPORTED), "moment {nth}");
            }
            assert_eq!(rig.read(&child, START), 7);
            drop(child);
            stage.end();
            if !met {
                assert!(nth > 2, "{nth} moments");
                break;
            }
        }
    });
}

/// Whether the store after `work` is reported, with this switch of the lab and without it.
fn reported(switch: &lab::Lab, stage: fn() -> Stage, work: fn(&Stage)) -> [bool; 2] {
    let with = |sites: &[u16]| {
        host::with(sites, || {
            let stage = stage();
            assert!(stage.rig.read(&stage.space, START) < 2);
            stage.mark(0, 1, Mark::Set);
            work(&stage);
            let is_reported = stage.store(0) == REPORTED;
            stage.end();
            is_reported
        })
    };
    [with(&switch.sites()), with(&[])]
}

#[test]
fn the_lab_loses_a_report_or_makes_one_up() {
    let shared = || Stage::of_file(Sharing::Shared, 1);
    let works: [fn(&Stage); 3] = [
        |stage| stage.discard(0, 1),
        |stage| stage.file.clone().unwrap().punch_hole(&stage.rig.cpu, 0, PAGE).unwrap(),
        |stage| {
            let file = stage.file.clone().unwrap();
            [0, PAGE].into_iter().for_each(|size| file.truncate(&stage.rig.cpu, size).unwrap());
        },
    ];
    for work in works {
        assert_eq!(reported(&lab::DROP_MARKER_ALWAYS, shared, work), [false, true]);
    }
    let of_initrd = || Stage::of_initrd(1);
    let reclaim: fn(&Stage) = |stage| assert_eq!((stage.reclaim(), stage.reclaim()), (0, 1));
    assert_eq!(reported(&lab::NO_MARKER_ON_RECLAIM, of_initrd, reclaim), [false, true]);
    let anonymous = || Stage::anonymous(1);
    assert_eq!(reported(&lab::MARKER_ON_ANON, anonymous, |stage| stage.discard(0, 1)), [true, false]);
    // In no other form is the page lost.
    let stage = host::with(&[], shared);
    let file = stage.file.clone().unwrap();
    file.write(&stage.rig.cpu, WriteAt::Byte(0), &[1], 1, u64::MAX).unwrap();
    assert_eq!(stage.rig.read(&stage.space, START), 1);
    drop(file);
    stage.end();
}
