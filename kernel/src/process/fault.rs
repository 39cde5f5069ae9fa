//! Exceptions of a program that are no calls: faults are served, or become signals as on Linux.

use granule_abi::signal::{BUS_ADRALN, BUS_ADRERR, ILL_ILLOPC, SEGV_ACCERR, SEGV_MAPERR, TRAP_BRKPT};
use granule_arch::addr::VirtAddr;
use granule_arch::esr::{self, Class, FaultStatus, Syndrome};

use super::oom::{self, Relief};
use super::signal::frame::FaultRecord;
use super::signal::{Cause, Signal};
use super::task::Task;
use super::tree::PROCESSES;
use crate::mm::space::{self, FaultError, USER_END};
use crate::sched::{Thread, Work, current};
use crate::smp::this_cpu;
use crate::trap::TrapFrame;

/// What a program did that it may not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offence {
    signal: Signal,
    code: i32,
}

impl Offence {
    const NOT_MAPPED: Self = Self { signal: Signal::SEGV, code: SEGV_MAPERR };
    const NOT_ALLOWED: Self = Self { signal: Signal::SEGV, code: SEGV_ACCERR };
    const MISALIGNED: Self = Self { signal: Signal::BUS, code: BUS_ADRALN };
    const NO_MEMORY: Self = Self { signal: Signal::BUS, code: BUS_ADRERR };
    const NO_INSTRUCTION: Self = Self { signal: Signal::ILL, code: ILL_ILLOPC };
    const BREAKPOINT: Self = Self { signal: Signal::TRAP, code: TRAP_BRKPT };
}

impl From<FaultError> for Offence {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::NotMapped => Self::NOT_MAPPED,
            FaultError::NotAllowed => Self::NOT_ALLOWED,
            FaultError::OutOfMemory => Self::NO_MEMORY,
        }
    }
}

/// An abort of EL0.
pub(super) extern "C" fn fault(frame: &mut TrapFrame, thread: &Thread) {
    if let Some(access) = frame.syndrome().page_fault_of_el0() {
        // SAFETY: it came from EL0, so it has not left its process.
        let task = unsafe { Task::of(thread) };
        if resolve_access(task, frame.fault_address(), access).is_ok() {
            return;
        }
    }
    exception(frame, thread);
}

/// A synchronous exception of EL0 that is no call, and that could not be served as a fault: it is tried once more, and
/// then is an offence.
#[cold]
pub(super) fn exception(frame: &mut TrapFrame, thread: &Thread) {
    // SAFETY: it came from EL0, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    let syndrome = frame.syndrome();
    let address = frame.fault_address();
    if let Err(offence) = serve(task, syndrome, address) {
        let at = match offence {
            Offence::NO_INSTRUCTION | Offence::BREAKPOINT => frame.elr,
            _ => address.0,
        };
        task.fault.set(FaultRecord { address: address.0, esr: told(syndrome, address).0 });
        let mut tree = PROCESSES.lock();
        let state = task.process().state(&mut tree.key);
        state.force(task, offence.signal, Cause::fault(offence.code, at));
    }
}

/// Serves a fault, or says what the program is to be told.
fn serve(task: &Task, syndrome: Syndrome, address: VirtAddr) -> Result<(), Offence> {
    if let Some(abort) = syndrome.abort() {
        return match abort.status {
            FaultStatus::Translation | FaultStatus::AccessFlag | FaultStatus::Permission => {
                Ok(resolve_access(task, address, abort.access)?)
            }
            FaultStatus::Alignment => Err(Offence::MISALIGNED),
            FaultStatus::AddressSize => Err(Offence::NOT_MAPPED),
            _ => Err(Offence::NO_MEMORY),
        };
    }
    Err(match syndrome.class() {
        Some(Class::PCAlignmentFault | Class::SPAlignmentFault) => Offence::MISALIGNED,
        Some(Class::Brk64 | Class::BreakpointLowerEL | Class::SoftwareStepLowerEL | Class::WatchpointLowerEL) => {
            Offence::BREAKPOINT
        }
        _ => Offence::NO_INSTRUCTION,
    })
}

/// The kernel's addresses need no question of their own: no area lies there.
fn resolve_access(task: &Task, address: VirtAddr, access: esr::Access) -> Result<(), FaultError> {
    let access = match access {
        esr::Access::Fetch => space::Access::Execute,
        esr::Access::Write => space::Access::Write,
        // Maintenance by address asks for the right to read (Arm ARM D7.5.9.3).
        esr::Access::Read | esr::Access::Maintenance => space::Access::Read,
    };
    space::handle_fault(task.space(), this_cpu(), address, access)
        .or_else(|error| try_again(task, address, access, error))
}

/// Serves a fault once more that has failed for `error`, where that can be helped.
#[cold]
fn try_again(task: &Task, address: VirtAddr, access: space::Access, mut error: FaultError) -> Result<(), FaultError> {
    loop {
        match error {
            FaultError::OutOfMemory => match oom::relieve(task, &current()) {
                Relief::Retry => {}
                // It does not come to the access: the signal is first.
                Relief::Ending => return Ok(()),
                Relief::None => return Err(error),
            },
            FaultError::NotMapped | FaultError::NotAllowed => return Err(error),
        }
        match space::handle_fault(task.space(), this_cpu(), address, access) {
            Ok(()) => return Ok(()),
            Err(next) => error = next,
        }
    }
}

/// The kernel could not access memory of the program that it works for.
///
/// A page may be taken away again before the access is repeated, and again: so that such a call comes to an end, one
/// that nobody will see the answer of is given up, as Linux does (`fatal_signal_pending`).
pub(super) fn resolve(thread: &Thread, address: VirtAddr, access: esr::Access) -> bool {
    // SAFETY: it works for a program, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    if thread.has(Work::SIGNAL) && task.is_called_off() {
        return false;
    }
    resolve_access(task, address, access).is_ok()
}

/// The syndrome as a program may see it: of the kernel's addresses it learns nothing, not even what is mapped.
fn told(syndrome: Syndrome, address: VirtAddr) -> Syndrome {
    /// Fault status code of a translation fault at level 0, and where the code is.
    const TRANSLATION_0: u64 = 0b00_0100;
    const STATUS: u64 = 0x3f;
    if syndrome.abort().is_some() && address >= USER_END {
        return Syndrome(syndrome.0 & !STATUS | TRANSLATION_0);
    }
    syndrome
}
