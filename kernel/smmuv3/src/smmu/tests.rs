//! Calls whose commands fail, on an SMMU that does each command at once, in the thread of the caller.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

extern crate std;

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, VirtAddr};

use super::Smmu;
use crate::queue::COMMAND_QUEUE_BITS;
use crate::registers::offset::{CMDQ_CONS, CMDQ_PROD, CR0, CR0ACK, GBPA, GERROR, GERRORN};
use crate::{Command, CommandError, CommandQueue, DmaMemory, Features, Platform, Report, Scope};

const TLBI_NH_ASID: u8 = 0x11;
const TLBI_NH_VA: u8 = 0x12;
const TLBI_NSNH_ALL: u8 = 0x30;
const SYNC: u8 = 0x46;
/// GBPA.ABORT and GBPA.UPDATE.
const ABORT: u32 = 1 << 20;
const UPDATE: u32 = 1 << 31;
/// IDR3.RIL.
const RANGES: u32 = 1 << 10;

struct Hardware {
    registers: BTreeMap<usize, u32>,
    slots: &'static [AtomicU64],
    /// Opcodes that it executed.
    executed: Vec<u8>,
    /// How often each opcode is still found illegal.
    illegal: BTreeMap<u8, u32>,
    /// It takes commands, and writes of GBPA.
    runs: bool,
    takes_gbpa: bool,
    microseconds: u64,
    reports: Vec<Report>,
}

impl Hardware {
    fn get(&self, offset: usize) -> u32 {
        self.registers.get(&offset).copied().unwrap_or_default()
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.registers.insert(offset, value);
    }

    /// Executes what the queue has, up to an illegal command.
    fn execute(&mut self) {
        let positions = (2 << COMMAND_QUEUE_BITS) - 1;
        let mut at = self.get(CMDQ_CONS) & positions;
        while self.runs && at != self.get(CMDQ_PROD) && self.get(GERROR) == self.get(GERRORN) {
            let slot = at as usize & ((1 << COMMAND_QUEUE_BITS) - 1);
            let opcode = self.slots[2 * slot].load(core::sync::atomic::Ordering::Relaxed) as u8;
            if let Some(times) = self.illegal.get_mut(&opcode).filter(|times| **times != 0) {
                *times -= 1;
                self.set(CMDQ_CONS, at | 1 << 24);
                self.set(GERROR, self.get(GERROR) ^ 1);
                return;
            }
            self.executed.push(opcode);
            at = (at + 1) & positions;
            self.set(CMDQ_CONS, at);
        }
    }
}

struct Port(Mutex<Hardware>);

// SAFETY: an SMMU that this file plays, in order; it and its caller are one thread.
unsafe impl Platform for Port {
    type Word = AtomicU64;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    fn read32(&self, offset: usize) -> u32 {
        self.0.lock().unwrap().get(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut hardware = self.0.lock().unwrap();
        let value = if offset == GBPA && hardware.takes_gbpa { value & !UPDATE } else { value };
        hardware.set(offset, value);
        match offset {
            CMDQ_PROD | GERRORN => hardware.execute(),
            CR0 => hardware.set(CR0ACK, value),
            _ => {}
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        panic!("no register {offset:#x}")
    }

    fn write64(&self, offset: usize, _: u64) {
        panic!("no register {offset:#x}")
    }

    fn dmb_oshst(&self) {}

    fn dmb_oshld(&self) {}

    fn clean(&self, _: PhysAddr, _: u64) {
        unreachable!("there are no page tables")
    }

    fn relax(&self) {}

    fn microseconds(&self) -> u64 {
        let mut hardware = self.0.lock().unwrap();
        hardware.microseconds += 100_000;
        hardware.microseconds
    }

    fn report(&self, report: &Report) {
        self.0.lock().unwrap().reports.push(*report);
    }
}

/// An SMMU in use, which has IDR3 as given.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a queue")]
fn smmu(idr3: u32, prepare: impl FnOnce(&mut Hardware)) -> Smmu<Port> {
    let slots: &[AtomicU64] = Box::leak((0..2 << COMMAND_QUEUE_BITS).map(|_| AtomicU64::new(0)).collect());
    let mut hardware = Hardware {
        registers: BTreeMap::from([(CR0, 1), (CR0ACK, 1)]),
        slots,
        executed: Vec::new(),
        illegal: BTreeMap::new(),
        runs: true,
        takes_gbpa: true,
        microseconds: 0,
        reports: Vec::new(),
    };
    prepare(&mut hardware);
    // SAFETY: the words live as long as the SMMU, and nothing else writes them.
    let memory = unsafe { DmaMemory::new(PhysAddr(0), NonNull::from(slots).cast(), 16 << COMMAND_QUEUE_BITS) };
    let features = Features::decode([0, 0, 0, idr3, 0, 0, 0, 0]);
    Smmu::new(Port(Mutex::new(hardware)), features, CommandQueue::new(memory))
}

fn invalidate(smmu: &Smmu<Port>) {
    smmu.invalidate(7, VirtAddr(0x1000), VirtAddr(0x4000), Scope::Leaves);
}

fn invalidate_everything(smmu: &Smmu<Port>) {
    smmu.invalidate(7, VirtAddr(0), VirtAddr(u64::MAX), Scope::Tables);
}

fn invalidate_asid(smmu: &Smmu<Port>) {
    smmu.invalidate_asid(7);
}

/// A way to invalidate: IDR3, call, the opcode of its commands, and how many there are at most.
type Way = (u32, fn(&Smmu<Port>), u8, usize);

const WAYS: [Way; 4] = [
    (RANGES, invalidate, TLBI_NH_VA, 2),
    (0, invalidate, TLBI_NH_VA, 3),
    (0, invalidate_asid, TLBI_NH_ASID, 1),
    (0, invalidate_everything, TLBI_NH_ASID, 1),
];

fn is_shut(smmu: &Smmu<Port>) -> bool {
    let hardware = smmu.platform.0.lock().unwrap();
    hardware.get(GBPA) & ABORT != 0 && hardware.get(CR0) == 0
}

fn illegal_commands(reports: &[Report]) -> usize {
    reports.iter().filter(|report| matches!(report, Report::IllegalCommand(_))).count()
}

#[test]
fn each_way_to_invalidate_is_its_commands_and_a_sync() {
    for (idr3, call, opcode, most) in WAYS {
        let smmu = smmu(idr3, |_| ());
        call(&smmu);
        let hardware = smmu.platform.0.lock().unwrap();
        let (sync, commands) = hardware.executed.split_last().unwrap();
        assert!(*sync == SYNC && !commands.is_empty() && commands.len() <= most, "{:x?}", hardware.executed);
        assert!(commands.iter().all(|command| *command == opcode), "{:x?}", hardware.executed);
        assert_eq!(hardware.reports, []);
    }
}

#[test]
fn what_was_illegal_is_made_up_for_by_everything() {
    for (idr3, call, opcode, _) in WAYS {
        let smmu = smmu(idr3, |hardware| _ = hardware.illegal.insert(opcode, 1));
        call(&smmu);
        assert!(!is_shut(&smmu));
        let hardware = smmu.platform.0.lock().unwrap();
        assert!(hardware.executed.ends_with(&[SYNC, TLBI_NSNH_ALL, SYNC]), "{:x?}", hardware.executed);
        assert_eq!((hardware.reports.len(), illegal_commands(&hardware.reports)), (1, 1));
    }
}

/// A command that must be executed is tried four times; then the SMMU is shut.
#[test]
fn an_smmu_that_does_not_invalidate_everything_is_shut() {
    for (refusals, tries, shut) in [(0, 0, false), (1, 1, false), (3, 3, false), (4, 4, true), (9, 4, true)] {
        let smmu = smmu(0, |hardware| {
            hardware.illegal.extend([(TLBI_NH_ASID, 1), (TLBI_NSNH_ALL, refusals)]);
        });
        invalidate_asid(&smmu);
        assert_eq!(is_shut(&smmu), shut, "{refusals} refusals");
        let hardware = smmu.platform.0.lock().unwrap();
        assert_eq!(illegal_commands(&hardware.reports), 1 + tries);
        assert_eq!(hardware.reports.contains(&Report::Dead), shut);
        assert_eq!(hardware.executed.contains(&TLBI_NSNH_ALL), !shut);
    }
}

#[test]
fn an_smmu_that_stops_is_shut_once_and_not_waited_for_again() {
    for (takes_gbpa, report) in [(true, Report::Dead), (false, Report::DeadAndOpen)] {
        for (idr3, call, ..) in WAYS {
            let smmu = smmu(idr3, |hardware| (hardware.runs, hardware.takes_gbpa) = (false, takes_gbpa));
            assert_eq!(smmu.issue(&[Command::CFGI_ALL]), Err(CommandError::Timeout));
            call(&smmu);
            assert_eq!(is_shut(&smmu), takes_gbpa);
            let time = smmu.platform.microseconds();
            call(&smmu);
            smmu.shut();
            assert_eq!(smmu.issue(&[Command::CFGI_ALL]), Err(CommandError::Timeout));
            assert_eq!(smmu.platform.microseconds(), time + 100_000, "no CPU waits for it");
            assert_eq!(smmu.platform.0.lock().unwrap().reports, [report]);
        }
    }
}

/// Each bit of GERROR: it is acknowledged, and reported or counted.
#[test]
fn each_global_error_is_acknowledged() {
    for bit in 0..9 {
        let smmu = smmu(0, |hardware| hardware.set(GERROR, 1 << bit));
        let (mut known, is_error) = (0, bit != 1);
        assert_eq!(smmu.lost_events(&mut known), bit == 2, "before it is acknowledged");
        assert_eq!(smmu.acknowledge_errors(), is_error, "bit {bit}");
        assert_eq!(smmu.platform.read32(GERRORN), if is_error { 1 << bit } else { 0 });
        let reports = smmu.platform.0.lock().unwrap().reports.clone();
        // CMDQ_ERR without a reason, and EVENTQ_ABT_ERR, are no report.
        assert_eq!(reports, if bit > 2 { [Report::GlobalErrors(1 << bit)].to_vec() } else { Vec::new() });
        assert_eq!((smmu.lost_events(&mut known), smmu.lost_events(&mut known)), (bit == 2, false));
        assert_eq!(smmu.stats().errors, u64::from(is_error));
        assert!(!smmu.acknowledge_errors());
    }
}

/// CMDQ_CONS.ERR: 1 an illegal command, 2 a fetch that was aborted, 3 a device that did not answer.
#[test]
fn each_reason_why_the_queue_stops_is_served() {
    for (reason, report) in [(0, None), (2, Some(Report::CommandFetchAborted)), (3, Some(Report::AtcTimeout))] {
        let smmu = smmu(0, |hardware| {
            hardware.set(GERROR, 1);
            hardware.set(CMDQ_CONS, reason << 24);
        });
        assert!(smmu.acknowledge_errors());
        assert_eq!(smmu.platform.0.lock().unwrap().reports, report.into_iter().collect::<Vec<_>>(), "{reason}");
        assert_eq!(smmu.stats().illegal, 0);
    }
    // 4 is none of today's: the command is taken for illegal.
    for reason in [1, 4] {
        let smmu = smmu(0, |hardware| {
            hardware.set(GERROR, 1);
            hardware.set(CMDQ_CONS, reason << 24);
        });
        assert!(smmu.acknowledge_errors());
        assert_eq!((illegal_commands(&smmu.platform.0.lock().unwrap().reports), smmu.stats().illegal), (1, 1));
    }
}
