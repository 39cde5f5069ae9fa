//! Threads that wait for a pager, and events that wait to be read.

use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use super::*;
use crate::mm::space::{FaultMode, Locking, Message, Move, ReadError, Remap, SpaceError, SpaceLimits, UserfaultError};
use crate::sched::IfNotReady;
use crate::smp::MAX_CPUS;

/// Each on a CPU of its own.
const THREADS: u64 = MAX_CPUS as u64 - 2;

/// As many pages, of which nothing is there.
fn missing(rig: &Rig, features: u64) -> (SpaceRef, Counted<Userfaultfd>) {
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(START), ..private(THREADS) };
    space.mmap(&rig.cpu, &request).unwrap();
    let pager = pager(&space, features);
    Userfaultfd::register(&pager, &rig.cpu, START, THREADS * PAGE, BOTH).unwrap();
    (space, pager)
}

/// Stores to `page` as a program does, until that is done.
fn store_and_wait(space: &Space, number: u64, page: VirtAddr) {
    let cpu = &Cpu::new(CpuId(number as u32 + 2));
    loop {
        match store(space, cpu, page) {
            Ok(()) => return space.common.frames.drain_cpu(cpu),
            Err(FaultError::Userfault) => space.userfault(cpu, page, Access::Write, FaultMode::El0).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads so many faults; their pages, in ascending order.
fn read_faults(pager: &Userfaultfd, count: u64) -> Vec<u64> {
    let page = |_| {
        let reading = pager.read(IfNotReady::Wait).unwrap();
        let Message::Fault(fault) = reading.message().clone() else { panic!("{:?}", reading.message()) };
        assert!(fault.is_write && fault.reason == Reason::Missing && fault.thread.is_none(), "{fault:?}");
        reading.done();
        (fault.address - START) / PAGE
    };
    let mut pages: Vec<u64> = (0..count).map(page).collect();
    pages.sort_unstable();
    pages
}

#[track_caller]
fn all_gone(rig: &Rig) {
    assert_eq!((rig.used(), rig.spaces.counts(), rig.frames.stats().refused), (0, [0; 3], 0));
}

#[test]
fn a_pager_that_closes_has_all_threads_go_on() {
    let rig = Rig::new(4);
    for is_read in [false, true] {
        let (space, pager) = missing(&rig, 0);
        thread::scope(|scope| {
            for page in 0..THREADS {
                let space = &space;
                scope.spawn(move || store_and_wait(space, page, START + page * PAGE));
            }
            if is_read {
                assert_eq!(read_faults(&pager, THREADS), Vec::from_iter(0..THREADS));
            } else {
                while !pager.has_message() {
                    thread::yield_now();
                }
            }
            pager.close();
        });
        drop((space, pager));
        all_gone(&rig);
    }
}

#[test]
fn a_wake_ends_the_waits_of_its_range_and_no_others() {
    let rig = Rig::new(4);
    for woken in [0..THREADS, 3..THREADS - 2, 5..6] {
        let (space, pager) = missing(&rig, 0);
        let done = AtomicUsize::new(0);
        // Half of them wait for one page.
        let pages: Vec<u64> = (0..THREADS).map(|thread| if thread % 2 == 0 { thread } else { 5 }).collect();
        let mut expected = pages.clone();
        expected.sort_unstable();
        let again: Vec<u64> = expected.iter().copied().filter(|page| woken.contains(page)).collect();
        thread::scope(|scope| {
            for (number, &page) in (0..).zip(&pages) {
                let (space, done) = (&space, &done);
                scope.spawn(move || {
                    store_and_wait(space, number, START + page * PAGE);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            let (start, bytes) = (START + woken.start * PAGE, (woken.end - woken.start) * PAGE);
            assert_eq!(read_faults(&pager, THREADS), expected);
            // Woken too soon, they fault again, and the others do not.
            pager.wake(start, bytes).unwrap();
            assert_eq!(read_faults(&pager, again.len() as u64), again);
            assert_eq!(pager.read(IfNotReady::Fail).err(), Some(ReadError::Nothing));
            assert_eq!(done.load(Ordering::Relaxed), 0);
            assert_eq!(pager.fill(&rig.cpu, None, start, bytes, Content::Zeros), (bytes, Ok(())));
            // Without a wake they sleep on.
            thread::sleep(Duration::from_millis(2));
            assert_eq!(done.load(Ordering::Relaxed), 0);
            pager.wake(start, bytes).unwrap();
            while done.load(Ordering::Relaxed) < again.len() {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(2));
            assert_eq!(done.load(Ordering::Relaxed), again.len());
            assert_eq!(pager.unregister(&rig.cpu, START, THREADS * PAGE), Ok(()));
        });
        assert_eq!(done.load(Ordering::Relaxed) as u64, THREADS);
        pager.close();
        drop((space, pager));
        all_gone(&rig);
    }
}

#[test]
fn a_message_that_is_served_before_it_is_queued_is_none() {
    let rig = Rig::new(4);
    let (space, pager) = missing(&rig, 0);
    assert_eq!(handle_fault(&space, &rig.cpu, START, Access::Read), Err(FaultError::Userfault));
    assert_eq!(pager.fill(&rig.cpu, None, START, PAGE, Content::Zeros), (PAGE, Ok(())));
    // Returns at once.
    assert_eq!(space.userfault(&rig.cpu, START, Access::Read, FaultMode::El0), Ok(()));
    assert_eq!(pager.read(IfNotReady::Fail).err(), Some(ReadError::Nothing));
    pager.close();
    drop((space, pager));
    all_gone(&rig);
}

/// A call that brings pages.
type Bring = fn(&Space, &Cpu) -> Result<(), SpaceError>;

const BYTES: u64 = THREADS * PAGE;

/// The answer of each where the pager wants SIGBUS, as Linux 7.2 does.
const BRINGS: [(Bring, Result<(), SpaceError>); 4] = [
    (|space, cpu| space.mlock(cpu, START, BYTES, Locking::Now, &|| false), Err(SpaceError::NoMemory)),
    (
        |space, cpu| {
            space.mlock_all(cpu, Locking::Now, &|| false);
            Ok(())
        },
        Ok(()),
    ),
    (|space, cpu| space.madvise_populate(cpu, START, BYTES, Access::Read, &|| false), Err(SpaceError::Unusable)),
    (|space, cpu| space.madvise_populate(cpu, START, BYTES, Access::Write, &|| false), Err(SpaceError::Unusable)),
];

/// As `mremap` of a program: to the double size, and the new part is brought.
const LONGER: Bring = |space, cpu| {
    let mut request = Remap::new(START, BYTES, 2 * BYTES, Move::Not, false)?;
    space.mremap(cpu, &mut request, &SpaceLimits::NONE)?;
    let longer = request.longer().expect("the area is locked");
    space.populate_again(cpu, longer.start(), longer.end() - longer.start(), &|| false);
    Ok(())
};

/// The answer of `call`, and the pages that the pager is asked for concurrently, which it serves.
fn served(rig: &Rig, space: &SpaceRef, pager: &Userfaultfd, call: Bring) -> (Result<(), SpaceError>, Vec<u64>) {
    let mut asked = Vec::new();
    let answer = thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let cpu = Cpu::new(CpuId(1));
            let answer = call(space, &cpu);
            rig.frames.drain_cpu(&cpu);
            answer
        });
        while !caller.is_finished() {
            let Ok(reading) = pager.read(IfNotReady::Fail) else {
                thread::yield_now();
                continue;
            };
            let Message::Fault(fault) = reading.message().clone() else { panic!("{:?}", reading.message()) };
            reading.done();
            asked.push((fault.address - START) / PAGE);
            let page = fault.address.align_down(PAGE);
            assert_eq!(pager.fill(&rig.cpu, None, page, PAGE, Content::Zeros), (PAGE, Ok(())));
            pager.wake(page, PAGE).unwrap();
        }
        caller.join().unwrap()
    });
    (answer, asked)
}

/// Where no table is yet, too.
#[test]
fn a_call_that_brings_pages_asks_for_each() {
    let rig = Rig::new(4);
    for (call, refused) in BRINGS {
        let (space, pager) = missing(&rig, 0);
        assert_eq!(served(&rig, &space, &pager, call), (Ok(()), Vec::from_iter(0..THREADS)));
        let mut present = [0; THREADS as usize];
        space.mincore(START, &mut present).unwrap();
        assert_eq!(present, [1; THREADS as usize]);
        pager.close();
        drop((space, pager));
        let (space, pager) = missing(&rig, Features::SIGBUS);
        assert_eq!(served(&rig, &space, &pager, call), (refused, Vec::new()));
        pager.close();
        drop((space, pager));
        all_gone(&rig);
    }
}

#[test]
fn what_mremap_makes_longer_is_asked_for_where_it_is_locked() {
    let rig = Rig::new(4);
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(START), ..private(THREADS) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.mlock(&rig.cpu, START, BYTES, Locking::Now, &|| false).unwrap();
    let pager = pager(&space, 0);
    Userfaultfd::register(&pager, &rig.cpu, START, BYTES, BOTH).unwrap();
    assert_eq!(served(&rig, &space, &pager, LONGER), (Ok(()), Vec::from_iter(THREADS..2 * THREADS)));
    pager.close();
    drop((space, pager));
    all_gone(&rig);
}

/// A call that changes mappings, its feature, and its messages.
type Change = (u64, fn(&Space, &Cpu), &'static [&'static str]);

const CHANGES: [Change; 4] = [
    (Features::EVENT_UNMAP, |space, cpu| space.munmap(cpu, START, 4 * PAGE).unwrap(), &["unmap 0..4"]),
    (
        Features::EVENT_REMOVE,
        |space, cpu| space.madvise_dontneed(cpu, START + PAGE, 2 * PAGE).unwrap(),
        &["remove 1..3"],
    ),
    (Features::EVENT_REMAP, remap, &["remap 0..4 to 1000"]),
    (Features::EVENT_REMAP | Features::EVENT_UNMAP, remap, &["remap 0..4 to 1000", "unmap 0..4"]),
];

fn remap(space: &Space, cpu: &Cpu) {
    let mut request = Remap::new(START, 4 * PAGE, 4 * PAGE, Move::To(START + 1000 * PAGE), false).unwrap();
    space.mremap(cpu, &mut request, &SpaceLimits::NONE).unwrap();
}

fn text(message: &Message) -> std::string::String {
    let page = |address: VirtAddr| (address - START) / PAGE;
    match message {
        Message::Unmap(range) => std::format!("unmap {}..{}", page(range.start()), page(range.end())),
        Message::Remove(range) => std::format!("remove {}..{}", page(range.start()), page(range.end())),
        Message::Remap { from, to, bytes } => {
            std::format!("remap {}..{} to {}", page(*from), page(*from + *bytes), page(*to))
        }
        other => std::format!("{other:?}"),
    }
}

#[test]
fn a_change_waits_until_its_event_is_read_and_calls_fail_meanwhile() {
    for (features, change, expected) in CHANGES {
        let rig = Rig::new(4);
        let (space, pager) = missing(&rig, features);
        let is_done = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let cpu = Cpu::new(CpuId(1));
                change(&space, &cpu);
                is_done.store(1, Ordering::Release);
                rig.frames.drain_cpu(&cpu);
            });
            for (index, &expected) in expected.iter().enumerate() {
                if index == 0 {
                    // A reader that drops it has it read again.
                    drop(pager.read(IfNotReady::Wait).unwrap());
                }
                let reading = pager.read(IfNotReady::Wait).unwrap();
                assert_eq!(text(reading.message()), expected);
                let last = START + (THREADS - 1) * PAGE;
                let filled = pager.fill(&rig.cpu, None, last, PAGE, Content::Zeros);
                assert_eq!(filled, (0, Err(FillError::Call(UserfaultError::Changing))));
                let marked = pager.write_protect(&rig.cpu, None, last, PAGE, Mark::Set);
                assert_eq!(marked, Err(UserfaultError::Changing));
                assert_eq!((is_done.load(Ordering::Acquire), pager.is_changing()), (0, true));
                reading.done();
            }
        });
        assert!(!pager.is_changing() && !pager.has_message());
        assert_eq!(pager.write_protect(&rig.cpu, None, START + 8 * PAGE, PAGE, Mark::Set), Ok(()));
        pager.close();
        drop((space, pager));
        all_gone(&rig);
    }
}

#[test]
fn a_pager_that_closes_ends_the_wait_of_a_change() {
    for (features, change, _) in CHANGES {
        let rig = Rig::new(4);
        let (space, pager) = missing(&rig, features);
        thread::scope(|scope| {
            scope.spawn(|| {
                let cpu = Cpu::new(CpuId(1));
                change(&space, &cpu);
                rig.frames.drain_cpu(&cpu);
            });
            while !pager.has_message() {
                thread::yield_now();
            }
            pager.close();
        });
        assert!(!pager.is_changing());
        drop((space, pager));
        all_gone(&rig);
    }
}

#[test]
fn a_fork_that_no_pager_reads_leaves_a_child_that_none_serves() {
    let rig = Rig::new(4);
    for is_read in [false, true] {
        let (space, pager) = missing(&rig, Features::EVENT_FORK);
        let mut own = None;
        let child = thread::scope(|scope| {
            let forks = scope.spawn(|| {
                let cpu = Cpu::new(CpuId(1));
                let child = space.fork(&cpu).unwrap();
                rig.frames.drain_cpu(&cpu);
                child
            });
            if is_read {
                let reading = pager.read(IfNotReady::Wait).unwrap();
                let Message::Fork(child) = reading.message().clone() else { panic!("{:?}", reading.message()) };
                own = Some(child);
                reading.done();
            } else {
                while !pager.has_message() {
                    thread::yield_now();
                }
                pager.close();
            }
            forks.join().unwrap()
        });
        let expected = if is_read { Err(FaultError::Userfault) } else { Ok(()) };
        assert_eq!(store(&child, &rig.cpu, START), expected);
        if let Some(own) = own {
            assert_eq!(own.fill(&rig.cpu, None, START, PAGE, Content::Zeros), (PAGE, Ok(())));
            assert_eq!(store(&child, &rig.cpu, START), Ok(()));
            // The parent's is its own.
            assert_eq!(store(&space, &rig.cpu, START), Err(FaultError::Userfault));
            own.close();
            assert_eq!(store(&child, &rig.cpu, START + PAGE), Ok(()));
        }
        pager.close();
        drop((space, child, pager));
        all_gone(&rig);
    }
}
