//! The queue with threads of the host for CPUs and for the SMMU: many rounds, more than any checker of orders can try.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::boxed::Box;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use granule_arch::addr::PhysAddr;

use super::*;
use crate::Report;
use crate::registers::offset::{GERROR, GERRORN};

const BITS: u32 = 4;
const CPUS: usize = 4;
/// Calls of each CPU.
const CALLS: u64 = 5_000;
/// The opcode of an illegal command.
const NONE: u64 = 0xff;

/// Registers, and what the SMMU has been seen to do.
struct Port {
    registers: [AtomicU32; 4],
    reports: Mutex<Vec<Command>>,
    since: Instant,
    /// The last command of each CPU that a CMD_SYNC has completed.
    completed: [AtomicU64; CPUS],
    stop: AtomicBool,
    /// Looks at CONS, and barriers, once it is a record.
    stream: Mutex<Option<Vec<&'static str>>>,
}

impl Port {
    fn note(&self, step: &'static str) {
        if let Some(stream) = &mut *self.stream.lock().unwrap() {
            stream.push(step);
        }
    }

    fn register(&self, offset: usize) -> &AtomicU32 {
        let index = [CMDQ_PROD, CMDQ_CONS, GERROR, GERRORN].iter().position(|&known| known == offset);
        &self.registers[index.expect("a register of the command queue")]
    }
}

// SAFETY: registers of a queue that this test plays the SMMU of; barriers are fences that are as strong.
unsafe impl Platform for Port {
    type Word = AtomicU64;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    fn read32(&self, offset: usize) -> u32 {
        if offset == CMDQ_CONS {
            self.note("read CONS");
        }
        self.register(offset).load(Relaxed)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.register(offset).store(value, Relaxed);
    }

    fn read64(&self, offset: usize) -> u64 {
        panic!("no register {offset:#x}")
    }

    fn write64(&self, offset: usize, _: u64) {
        panic!("no register {offset:#x}")
    }

    fn dmb_oshst(&self) {
        self.note("dmb oshst");
        fence(Ordering::SeqCst);
    }

    fn dmb_oshld(&self) {
        self.note("dmb oshld");
        fence(Ordering::SeqCst);
    }

    fn clean(&self, _: PhysAddr, _: u64) {
        unreachable!("the command queue is no page table")
    }

    fn relax(&self) {
        thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        // A clock that is slow: a busy host stops a thread for longer than an SMMU may take.
        self.since.elapsed().as_millis() as u64
    }

    fn report(&self, report: &Report) {
        match report {
            Report::IllegalCommand(command) => self.reports.lock().unwrap().push(*command),
            other => panic!("{other}"),
        }
    }
}

/// The `call`th command of `cpu`; every 64th is none.
fn command(cpu: usize, call: u64) -> Command {
    Command([if call % 64 == 63 { NONE } else { 0x11 } | (cpu as u64) << 48, call])
}

/// The SMMU: executes what comes, in order, and stops at what is no command until that is acknowledged.
fn consume(port: &Port, slots: &[AtomicU64]) {
    let mut position = 0u32;
    let mut executed = [0u64; CPUS];
    while !port.stop.load(Relaxed) {
        let mask = (2 << BITS) - 1;
        let prod = port.read32(CMDQ_PROD);
        port.dmb_oshld();
        assert!(prod.wrapping_sub(position) & mask <= 1 << BITS, "PROD {prod} at position {position}");
        if prod == position & mask {
            thread::yield_now();
            continue;
        }
        let index = 2 * (position as usize % (1 << BITS));
        let [low, high] = [slots[index].load(Relaxed), slots[index + 1].load(Relaxed)];
        match low as u8 {
            0xff => {
                port.dmb_oshst();
                port.write32(CMDQ_CONS, position & mask | 1 << 24);
                port.write32(GERROR, port.read32(GERROR) ^ 1);
                while port.read32(GERRORN) != port.read32(GERROR) && !port.stop.load(Relaxed) {
                    thread::yield_now();
                }
                port.dmb_oshld();
                continue;
            }
            0x11 => {
                let cpu = (low >> 48) as usize;
                assert!(high >= executed[cpu], "call {high} of CPU {cpu} behind {}", executed[cpu]);
                executed[cpu] = high;
            }
            0x46 => (0..CPUS).for_each(|cpu| port.completed[cpu].store(executed[cpu], Relaxed)),
            _ => panic!("an empty slot: {low:#x} {high:#x}"),
        }
        position += 1;
        port.dmb_oshst();
        port.write32(CMDQ_CONS, position & mask);
    }
}

fn port() -> Port {
    Port {
        registers: Default::default(),
        reports: Mutex::default(),
        since: Instant::now(),
        completed: Default::default(),
        stop: AtomicBool::new(false),
        stream: Mutex::default(),
    }
}

fn queue(slots: &[AtomicU64]) -> CommandQueue<Port, BITS> {
    // SAFETY: the words live as long as the queue, and nothing else writes them.
    CommandQueue::new(unsafe { DmaMemory::new(PhysAddr(0), NonNull::from(slots).cast(), 16 << BITS) })
}

/// Slots are written anew, the stopped command is read and pages are reused after the look at CONS: by a DMB OSHLD
/// each, which no run on a host misses.
#[test]
fn what_the_smmu_has_consumed_is_used_behind_a_barrier() {
    let slots: Box<[AtomicU64]> = (0..2 << BITS).map(|_| AtomicU64::new(0)).collect();
    let (port, queue) = (port(), queue(&slots));
    let room = 1 << BITS;
    queue.insert::<true>(&port, room - 1, |_| command(0, 1)).unwrap();
    port.write32(CMDQ_CONS, 4);
    *port.stream.lock().unwrap() = Some(Vec::new());
    let recorded = || port.stream.lock().unwrap().replace(Vec::new()).unwrap();
    queue.make_room(&port, 4).unwrap();
    assert_eq!(recorded(), ["read CONS", "dmb oshld"], "a slot is free");
    assert_eq!(queue.stopped_at(&port), 4);
    assert_eq!(recorded(), ["read CONS", "dmb oshld"], "a command is looked at");
    let call = queue.insert::<true>(&port, 2, |_| command(0, 1)).unwrap();
    assert_eq!(recorded(), ["dmb oshst"], "the slots before PROD");
    port.write32(CMDQ_CONS, port.read32(CMDQ_PROD));
    recorded();
    assert!(queue.is_complete(&port, call) && queue.verdict(&port, call).is_ok());
    assert_eq!(recorded(), ["read CONS", "dmb oshld"], "a page is reused");
}

/// However often it looks, a call that waits for room has found the queue full once.
#[test]
fn a_wait_for_room_is_counted_once() {
    let slots: Box<[AtomicU64]> = (0..2 << BITS).map(|_| AtomicU64::new(0)).collect();
    let (port, queue) = (port(), queue(&slots));
    queue.insert::<true>(&port, (1 << BITS) - 1, |_| command(0, 1)).unwrap();
    let full = || queue.full.load(Relaxed);
    assert_eq!(full(), 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // After its first look.
            while full() == 0 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(5));
            port.write32(CMDQ_CONS, port.read32(CMDQ_PROD));
        });
        queue.make_room(&port, 4).unwrap();
    });
    assert_eq!(full(), 1);
    queue.make_room(&port, 4).unwrap();
    assert_eq!(full(), 1);
}

/// Calls of four CPUs, all in the queue when the SMMU begins: the illegal command of the third is the third's alone.
#[test]
fn an_illegal_command_fails_the_call_that_it_is_of_and_no_other() {
    let slots: Box<[AtomicU64]> = (0..2 << BITS).map(|_| AtomicU64::new(0)).collect();
    let (port, queue) = (port(), queue(&slots));
    let call = |cpu: usize| queue.insert::<true>(&port, 2, |_| command(cpu, if cpu == 2 { 63 } else { 1 })).unwrap();
    let calls: [Inserted; CPUS] = core::array::from_fn(call);
    thread::scope(|scope| {
        scope.spawn(|| consume(&port, &slots));
        let waited = queue.wait(&port, calls[CPUS - 1].end);
        port.stop.store(true, Relaxed);
        waited.unwrap();
    });
    let verdicts = calls.map(|call| queue.verdict(&port, call));
    assert_eq!(verdicts, [Ok(()), Ok(()), Err(CommandError::Illegal), Ok(())]);
    assert_eq!(port.reports.lock().unwrap().len(), 2);
}

/// More illegal commands than are remembered, after a call that has not looked yet: it may be one of them.
#[test]
fn what_the_log_has_lost_is_taken_for_illegal() {
    let slots: Box<[AtomicU64]> = (0..2 << BITS).map(|_| AtomicU64::new(0)).collect();
    let (port, queue) = (port(), queue(&slots));
    let blunder = || _ = queue.issue(&port, &[command(0, 63)]);
    let verdict_behind = |illegal: usize| {
        // As many as are remembered: of before the call.
        (0..8).for_each(|_| blunder());
        queue.make_room(&port, 2).ok()?;
        let call = queue.insert::<true>(&port, 1, |_| command(1, 1))?;
        (0..illegal).for_each(|_| blunder());
        Some(queue.verdict(&port, call))
    };
    let verdicts = thread::scope(|scope| {
        scope.spawn(|| consume(&port, &slots));
        let verdicts = [7, 8, 20].map(verdict_behind);
        port.stop.store(true, Relaxed);
        verdicts
    });
    assert_eq!(verdicts, [Some(Ok(())), Some(Err(CommandError::Illegal)), Some(Err(CommandError::Illegal))]);
}

#[test]
fn many_calls_of_several_cpus_are_complete_when_they_return() {
    let slots: Box<[AtomicU64]> = (0..2 << BITS).map(|_| AtomicU64::new(0)).collect();
    let (port, queue) = (port(), queue(&slots));
    let insert = |cpu: usize| {
        for call in 1..=CALLS {
            // From one to four commands, of which the last has this CPU's progress.
            let count = 1 + call as usize % 4;
            let illegal = call % 64 == 63;
            let result = queue.issue_with(&port, count, |_| command(cpu, call));
            // Another's may be taken for one's own where there are many, but not the other way round.
            assert!(!illegal || result == Err(CommandError::Illegal), "call {call} of CPU {cpu}: {result:?}");
            assert!(result != Err(CommandError::Timeout));
            let completed = port.completed[cpu].load(Relaxed);
            assert!(illegal || completed == call, "call {call} of CPU {cpu} returned at {completed}");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| consume(&port, &slots));
        let cpus: Vec<_> = (0..CPUS).map(|cpu| scope.spawn(move || insert(cpu))).collect();
        let results: Vec<_> = cpus.into_iter().map(thread::ScopedJoinHandle::join).collect();
        port.stop.store(true, Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let commands_of_a_call = |call: u64| 1 + call % 4;
    let all: u64 = (1..=CALLS).map(|call| commands_of_a_call(call) + 1).sum();
    assert_eq!(queue.counts()[..2], [CPUS as u64 * all, CPUS as u64 * CALLS]);
    // Each was shown, once, as it was.
    let illegal: u64 = (1..=CALLS).filter(|call| call % 64 == 63).map(commands_of_a_call).sum();
    let reports = port.reports.lock().unwrap();
    assert_eq!(reports.len() as u64, CPUS as u64 * illegal);
    assert!(reports.iter().all(|report| report.0[0] as u8 == 0xff && report.0[1] % 64 == 63));
}
