//! Exceptions of a program that are no calls: faults are served, or become signals as on Linux.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use granule_abi::signal::{
    BUS_ADRALN, BUS_ADRERR, BUS_MCEERR_AR, BUS_OBJERR, ILL_ILLOPC, SEGV_ACCERR, SEGV_MAPERR, SEGV_MTEAERR,
    SEGV_MTESERR, SI_KERNEL, SIGSEGV, TRAP_BRKPT,
};
use granule_arch::addr::VirtAddr;
use granule_arch::esr::{self, Class, FaultStatus, Syndrome};

use super::oom::{self, Relief};
use super::send::{self, Asked};
use super::task::Task;
use crate::linux::process::signal::frame::FaultRecord;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::mm::space::{self, FaultError, FaultMode, USER_END};
use crate::sched::{Thread, current};
use crate::smp::this_cpu;
use crate::trap::TrapFrame;

/// An exception that becomes a signal.
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
    const POISONED: Self = Self { signal: Signal::BUS, code: BUS_MCEERR_AR };
    const OTHER_TAG: Self = Self { signal: Signal::SEGV, code: SEGV_MTESERR };
    const HARDWARE_ERROR: Self = Self { signal: Signal::BUS, code: BUS_OBJERR };
    /// An exception that no program survives.
    const FATAL: Self = Self { signal: Signal::KILL, code: SI_KERNEL };
    const NO_INSTRUCTION: Self = Self { signal: Signal::ILL, code: ILL_ILLOPC };
    const BREAKPOINT: Self = Self { signal: Signal::TRAP, code: TRAP_BRKPT };
}

impl From<FaultError> for Offence {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::NotMapped | FaultError::Guard => Self::NOT_MAPPED,
            FaultError::NotAllowed => Self::NOT_ALLOWED,
            FaultError::OutOfMemory | FaultError::Unusable | FaultError::Userfault => Self::NO_MEMORY,
            FaultError::Poisoned => Self::POISONED,
        }
    }
}

/// Handles an abort of EL0. Returns whether it was served; if not, [`exception`] comes next.
pub(super) extern "C" fn fault(frame: &mut TrapFrame, thread: &Thread) -> bool {
    // Without its tag an address of the upper half is still outside every space, by bit 55.
    const TAG: u64 = 0xff << 56;
    let Some(access) = frame.syndrome().page_fault_of_el0() else { return false };
    // SAFETY: the exception is from EL0, so the thread has not left its process.
    let task = unsafe { Task::of(thread) };
    let address = VirtAddr(frame.fault_address().0 & !TAG);
    let access = of_space(access);
    match space::handle_fault(task.space(), this_cpu(), address, access) {
        Ok(()) => true,
        Err(FaultError::Userfault) => task.space().userfault(this_cpu(), address, access, FaultMode::El0).is_ok(),
        Err(_) => false,
    }
}

/// Handles a synchronous exception of EL0 that is no call, and that was not served as a fault: it is retried once, and
/// then becomes a signal.
#[cold]
pub(super) fn exception(frame: &mut TrapFrame, thread: &Thread) {
    // SAFETY: the exception is from EL0, so the thread has not left its process.
    let task = unsafe { Task::of(thread) };
    let syndrome = frame.syndrome();
    if let Err(offence) = serve(task, syndrome, frame.fault_address().untagged()) {
        let (at, record) = report(frame, offence);
        let cause = SignalCause::fault(offence.code, at);
        let cause = if offence == Offence::POISONED { cause.of_page() } else { cause };
        task.fault.set(record);
        task.force(offence.signal, cause, None);
    }
}

/// Reports a mismatch of tags that the hardware recorded at some access before. As on Linux the signal has no address,
/// and may be blocked or ignored.
#[cold]
pub(super) fn late_tag_fault(thread: &Thread) {
    // SAFETY: the thread returns to EL0, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    let cause = SignalCause::fault(SEGV_MTEAERR, 0);
    // It has its own number, and SIGSEGV is a signal.
    let _ = send::to_thread(task, Some(task.process().id()), task.id(), Asked(SIGSEGV), cause);
}

/// Serves a fault, or returns its signal.
fn serve(task: &Task, syndrome: Syndrome, address: VirtAddr) -> Result<(), Offence> {
    if let Some(abort) = syndrome.abort() {
        return match abort.status {
            FaultStatus::Translation | FaultStatus::AccessFlag | FaultStatus::Permission => {
                Ok(resolve_access(task, address, abort.access, FaultMode::El0)?)
            }
            FaultStatus::Alignment => Err(Offence::MISALIGNED),
            FaultStatus::TagCheck => Err(Offence::OTHER_TAG),
            FaultStatus::SynchronousExternal | FaultStatus::ParityOrEcc | FaultStatus::UnsupportedExclusive => {
                Err(Offence::HARDWARE_ERROR)
            }
            // A fault on the walk itself, or an unknown one: Linux's `fault_info` has SIGKILL.
            _ => Err(Offence::FATAL),
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

/// The `si_addr` of a signal, and the fault record of its frame.
///
/// FAR_EL1 is valid for aborts, PC alignment faults and watchpoints only (Arm ARM D24.2.42); after others it holds the
/// value of an earlier exception of this CPU, perhaps of another program. Linux has the address in the frame for memory
/// faults only, and the syndrome for these and for misaligned PC and SP; for the rest all is zero.
fn report(frame: &TrapFrame, offence: Offence) -> (u64, FaultRecord) {
    const ALLOCATION_TAG: u64 = 0xf << 56;
    let syndrome = frame.syndrome();
    // With its tag, which is removed later unless the handler asked for it; but without the bits that the hardware
    // leaves UNKNOWN (Arm ARM D24.2.42): all after an external abort, the upper half after a tag check fault.
    let tagged = frame.fault_address();
    let address = tagged.untagged();
    let without_address = FaultRecord { address: 0, esr: syndrome.0 };
    if let Some(abort) = syndrome.abort() {
        return match offence {
            Offence::HARDWARE_ERROR | Offence::FATAL if !abort.address_valid => (0, without_address),
            Offence::HARDWARE_ERROR | Offence::FATAL => (address.0, without_address),
            _ => {
                let kept = if offence == Offence::OTHER_TAG { ALLOCATION_TAG } else { u64::MAX };
                (address.0 | tagged.0 & kept, FaultRecord { address: address.0, esr: visible(syndrome, address).0 })
            }
        };
    }
    match syndrome.class() {
        Some(Class::PCAlignmentFault) => (tagged.0, without_address),
        Some(Class::SPAlignmentFault) => (frame.sp, without_address),
        Some(Class::WatchpointLowerEL) => (tagged.0, FaultRecord::default()),
        _ => (frame.elr, FaultRecord::default()),
    }
}

/// The kind of access for the space.
#[inline(always)]
fn of_space(access: esr::Access) -> space::Access {
    match access {
        esr::Access::Fetch => space::Access::Execute,
        esr::Access::Write => space::Access::Write,
        // Maintenance by address needs read permission (Arm ARM D7.5.9.3).
        esr::Access::Read | esr::Access::Maintenance => space::Access::Read,
    }
}

/// The kernel's addresses need no check of their own: no area is there.
#[inline]
fn resolve_access(task: &Task, address: VirtAddr, access: esr::Access, mode: FaultMode) -> Result<(), FaultError> {
    let access = of_space(access);
    space::handle_fault(task.space(), this_cpu(), address, access)
        .or_else(|error| try_again(task, address, access, mode, error))
}

/// Handles a fault that failed with `error`: grows a stack, relieves a shortage, or waits for a pager, and retries.
#[cold]
fn try_again(
    task: &Task,
    address: VirtAddr,
    access: space::Access,
    mode: FaultMode,
    mut error: FaultError,
) -> Result<(), FaultError> {
    loop {
        match error {
            FaultError::OutOfMemory => match oom::relieve(task, &current(), [address.0, 0]) {
                Relief::Retry => {}
                // The signal is delivered before the access is retried.
                Relief::Ending => return Ok(()),
                Relief::None => return Err(error),
            },
            FaultError::NotMapped => {
                let limits = task.process().limits.of_space();
                task.space().grow_stack(address, &limits).map_err(|_| error)?;
            }
            // The access is made again, after the signal that has ended the wait, if one has.
            FaultError::Userfault => match task.space().userfault(this_cpu(), address, access, mode) {
                Err(FaultError::OutOfMemory) => {
                    error = FaultError::OutOfMemory;
                    continue;
                }
                waited => return waited,
            },
            FaultError::Guard | FaultError::NotAllowed | FaultError::Unusable | FaultError::Poisoned => {
                return Err(error);
            }
        }
        match space::handle_fault(task.space(), this_cpu(), address, access) {
            Ok(()) => return Ok(()),
            Err(next) => error = next,
        }
    }
}

/// Handles a fault of the kernel on memory of the program that it works for.
///
/// A page may be unmapped again before the access is repeated, and again. So that such a call ends, it fails once a
/// fatal signal is pending, as on Linux.
pub(super) fn resolve(thread: &Thread, address: VirtAddr, access: esr::Access) -> bool {
    // SAFETY: the thread works for a program, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    if task.is_killed(thread) {
        return false;
    }
    resolve_access(task, address, access, FaultMode::Kernel).is_ok()
}

/// Whether the program of a thread ends, or the thread leaves it: see [`UserEntry::is_killed`](crate::sched::UserEntry).
pub(super) fn is_killed(thread: &Thread) -> bool {
    // SAFETY: the thread works for a program, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    task.is_leaving() || task.is_killed(thread)
}

/// The number of a thread.
pub(super) fn number(thread: &Thread) -> u32 {
    // SAFETY: as above.
    unsafe { Task::of(thread) }.id()
}

/// The syndrome of an abort as a program may see it. For the kernel's addresses it does not show what is mapped
/// (Linux's `set_thread_esr`).
fn visible(syndrome: Syndrome, address: VirtAddr) -> Syndrome {
    /// Fault status code of a translation fault at level 0.
    const TRANSLATION_0: u64 = 0b00_0100;
    /// Class, length of the instruction; and for data, cache maintenance and direction.
    const FETCH: u64 = 0x3f << 26 | 1 << 25;
    const DATA: u64 = FETCH | 1 << 8 | 1 << 6;
    if address < USER_END {
        return syndrome;
    }
    let kept = if syndrome.class() == Some(Class::InstrAbortLowerEL) { FETCH } else { DATA };
    Syndrome(syndrome.0 & kept | TRANSLATION_0)
}
