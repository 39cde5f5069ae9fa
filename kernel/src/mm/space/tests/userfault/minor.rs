//! Pages that an object has, and a space not: they are asked for, and mapped by the pager.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::*;
use crate::mm::space::{
    AreaAdvice, FaultMode, MappedFile, Message, Object, ReadError, Seals, Terms, UserfaultError, WriteAt,
};
use crate::sched::IfNotReady;

const MINOR: Enrolment = Enrolment { missing: false, minor: true, write_protected: false };
const ALL: Enrolment = Enrolment { missing: true, minor: true, write_protected: true };
const PRESENT: Content = Content::Present(false);

/// An object of so many pages.
fn object(rig: &Rig, pages: u64) -> Counted<Object> {
    rig.spaces.create_object(&rig.cpu, pages * PAGE, None, Seals(0)).unwrap()
}

/// Stores a byte to a page of `object`, by no mapping.
fn write(rig: &Rig, object: &Object, page: u64, byte: u8) {
    object.write(&rig.cpu, WriteAt::Byte(page * PAGE), &[byte], 1, u64::MAX).unwrap();
}

/// Maps all of `object`, of so many pages, to `at`.
fn map_at(rig: &Rig, space: &Space, object: &Counted<Object>, at: VirtAddr, pages: u64) {
    let request = MapRequest { placement: Placement::Fixed(at), sharing: Sharing::Shared, ..private(pages) };
    let terms = Terms { file: Some(MappedFile { object, first_page: 0, may_write: true }), ..Terms::NONE };
    space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
}

/// Fills one page; the error.
fn fill(rig: &Rig, pager: &Userfaultfd, page: VirtAddr, content: Content) -> Result<(), FillError> {
    pager.fill(&rig.cpu, None, page, PAGE, content).1
}

#[test]
fn a_page_that_an_object_has_is_asked_for_and_mapped() {
    let rig = Rig::new(4);
    let (space, file) = (rig.space(), object(&rig, 4));
    map_at(&rig, &space, &file, START, 4);
    write(&rig, &file, 0, 7);
    let pager = pager(&space, Features::ALL.0);
    Userfaultfd::register(&pager, &rig.cpu, START, 4 * PAGE, MINOR).unwrap();
    assert_eq!(handle_fault(&space, &rig.cpu, START, Access::Read), Err(FaultError::Userfault));
    assert_eq!(fill(&rig, &pager, START, PRESENT), Ok(()));
    assert_eq!(fill(&rig, &pager, START, PRESENT), Err(FillError::Exists));
    assert_eq!(rig.read(&space, START), 7);
    // A page that the object has not comes by the first access, and by no call.
    assert_eq!(fill(&rig, &pager, START + PAGE, PRESENT), Err(FillError::Fault));
    assert_eq!(access(&space, &rig.cpu, START + PAGE, Access::Read), Ok(()));
    file.truncate(&rig.cpu, PAGE).unwrap();
    assert_eq!(fill(&rig, &pager, START + PAGE, PRESENT), Err(FillError::Fault));
    let anonymous = rig.map(&space, 1);
    let refused = Err(UserfaultError::Invalid);
    assert_eq!(Userfaultfd::register(&pager, &rig.cpu, anonymous, PAGE, MINOR), refused);
    pager.close();
    assert_eq!(access(&space, &rig.cpu, START, Access::Write), Ok(()));
}

/// Blocks are wanted: neither an access nor a call brings more than its page.
#[test]
fn neighbours_stay_with_the_pager() {
    let rig = Rig::new(8);
    let (space, file) = (rig.space(), object(&rig, 512));
    map_at(&rig, &space, &file, START, 512);
    space.madvise_areas(&rig.cpu, START, 512 * PAGE, AreaAdvice::HugePage).unwrap();
    (0..16).for_each(|page| write(&rig, &file, page, 1));
    let pager = pager(&space, Features::ALL.0);
    Userfaultfd::register(&pager, &rig.cpu, START, 512 * PAGE, MINOR).unwrap();
    assert_eq!(fill(&rig, &pager, START + PAGE, PRESENT), Ok(()));
    for page in 0..16 {
        let expected = if page == 1 { Ok(()) } else { Err(FaultError::Userfault) };
        assert_eq!(handle_fault(&space, &rig.cpu, START + page * PAGE, Access::Read), expected, "{page}");
    }
    assert_eq!(access(&space, &rig.cpu, START + 100 * PAGE, Access::Write), Ok(()));
    write(&rig, &file, 101, 1);
    assert_eq!(handle_fault(&space, &rig.cpu, START + 101 * PAGE, Access::Read), Err(FaultError::Userfault));
    pager.close();
}

/// A page that a pager brings to the object is minor at no moment: the message that it has served does not come again.
#[test]
fn a_copy_is_mapped_before_it_is_minor() {
    const PAGES: u64 = 64;
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(4)));
    let (space, file) = (rig.space(), object(rig, PAGES));
    map_at(rig, &space, &file, START, PAGES);
    let pager = pager(&space, 0);
    Userfaultfd::register(&pager, &rig.cpu, START, PAGES * PAGE, ALL).unwrap();
    let (next, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let cpu = &Cpu::new(CpuId(2));
            while !is_done.load(Ordering::Relaxed) {
                let at = START + next.load(Ordering::Relaxed).min(PAGES - 1) * PAGE;
                if handle_fault(&space, cpu, at, Access::Read) == Err(FaultError::Userfault) {
                    space.userfault(cpu, at, Access::Read, FaultMode::El0).unwrap();
                }
            }
            rig.frames.drain_cpu(cpu);
        });
        for page in 0..PAGES {
            next.store(page, Ordering::Relaxed);
            thread::yield_now();
            assert_eq!(fill(rig, &pager, START + page * PAGE, Content::Zeros), Ok(()));
            pager.wake(START, PAGES * PAGE).unwrap();
            while let Ok(reading) = pager.read(IfNotReady::Fail) {
                let Message::Fault(fault) = reading.message().clone() else { panic!("an event") };
                assert_eq!(fault.reason, Reason::Missing, "{fault:?}");
                reading.done();
            }
        }
        is_done.store(true, Ordering::Relaxed);
        pager.close();
    });
    assert!(matches!(pager.read(IfNotReady::Fail).map(drop), Err(ReadError::Nothing)));
}
