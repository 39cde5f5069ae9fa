//! Threads of one space, on CPUs of their own, while another forks it, protects it and takes it apart.
//!
//! Each page belongs to one thread, which records its contents. The others may do anything concurrently (faults on the
//! same table, a fork that makes it read-only, a child that writes to its copy): the contents are there, until the
//! thread itself gives them up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use granule_arch::addr::VirtAddr;

use super::*;
use crate::mm::space::FaultError;

/// Pages, over the boundary of two tables.
const PAGES: u64 = 24;
const START: VirtAddr = VirtAddr(0x10_0000_0000 - 12 * PAGE);
const THREADS: u32 = 3;
/// The least rounds of each thread, and the changes of the space.
const ROUNDS: u64 = 400;
const CHANGES: u64 = 80;

/// Numbers that repeat.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Does until it is allowed: another thread makes pages read-only now and then.
fn until_allowed(mut access: impl FnMut() -> Result<(), FaultError>) {
    loop {
        match access() {
            Ok(()) => return,
            Err(FaultError::NotAllowed) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes its pages, reads them back, and gives some up, until nothing else is done to the space.
fn touch(space: &Space, number: u32, done: &AtomicBool) {
    let cpu = Cpu::new(CpuId(number + 1));
    let mut random = Random(u64::from(number));
    let mut values = [0u64; PAGES as usize];
    for round in (1..).take_while(|&round| round <= ROUNDS || !done.load(Ordering::Relaxed)) {
        let page = random.next(PAGES / u64::from(THREADS)) * u64::from(THREADS) + u64::from(number);
        let (at, value) = (START + page * PAGE, &mut values[page as usize]);
        match random.next(8) {
            0 => {
                space.madvise_dontneed(&cpu, at, PAGE).unwrap();
                *value = 0;
            }
            1..=4 => {
                *value = round << 8 | u64::from(number);
                // At both ends, so that half a copy shows.
                for offset in [8, PAGE - 8] {
                    until_allowed(|| space.write_bytes(&cpu, at + offset, &value.to_le_bytes()));
                }
            }
            _ => {
                for offset in [8, PAGE - 8] {
                    let mut bytes = [0; 8];
                    until_allowed(|| space.read_bytes(&cpu, at + offset, &mut bytes));
                    assert_eq!(u64::from_le_bytes(bytes), *value, "page {page} in round {round}");
                }
            }
        }
    }
}

/// Forks, and makes the child write to every page; protects pages and makes them writable again.
fn meddle(rig: &Rig, space: &Space) {
    let mut random = Random(99);
    let mut children: Vec<SpaceRef> = Vec::new();
    for _ in 0..CHANGES {
        match random.next(4) {
            0 => {
                let child = space.fork(&rig.cpu).unwrap();
                for page in 0..PAGES {
                    // The parent's words are each a round and its thread.
                    let mut bytes = [0; 8];
                    child.read_bytes(&rig.cpu, START + page * PAGE + 8, &mut bytes).unwrap();
                    let value = u64::from_le_bytes(bytes);
                    assert!(value == 0 || value & 0xff == page % u64::from(THREADS), "page {page} is {value:#x}");
                    child.write_bytes(&rig.cpu, START + page * PAGE + 8, &[0xee; 8]).unwrap();
                }
                children.push(child);
            }
            1 if !children.is_empty() => drop(children.swap_remove(random.next(children.len() as u64) as usize)),
            _ => {
                let (page, pages) = (random.next(PAGES - 4), 1 + random.next(4));
                for protection in [Protection::READ, READ_WRITE] {
                    space.mprotect(START + page * PAGE, pages * PAGE, protection).unwrap();
                }
            }
        }
    }
}

/// Counts when it is dropped, by whichever way.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_a_thread_has_written_stays_whatever_the_others_do() {
    let rig = Rig::new(8);
    let empty = rig.used();
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(START), ..private(PAGES) }).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (space, done) = (&space, &done);
            scope.spawn(move || touch(space, number, done));
        }
        // Records of areas and spaces come and go on one CPU: on the host each thread is CPU 0 to their pools.
        let _done = Done(&done);
        meddle(&rig, &space);
    });
    drop(space);
    assert_eq!(rig.spaces.counts(), [0; 3]);
    (1..=THREADS).for_each(|number| rig.frames.drain_cpu(&Cpu::new(CpuId(number))));
    assert_eq!(rig.used(), empty);
}
