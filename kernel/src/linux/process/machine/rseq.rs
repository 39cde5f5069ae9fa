//! Restartable sequences (rseq): memory of a thread in which the kernel keeps the number of its CPU, and where the thread
//! names the sequence of instructions that it is in. A thread that has left its CPU in a sequence, or gets a signal there,
//! goes on at the sequence's abort instead.
//!
//! Nothing looks at it but the return to EL0 of a thread that has come to a CPU ([`UserEntry::moved`]), and the entry to a
//! handler. An address that can neither be read nor stored then is SIGSEGV, as on Linux (`kernel/rseq.c`). Restarts without need are
//! allowed: each time that a thread comes counts, also to the CPU that it was on.
//!
//! [`UserEntry::moved`]: crate::sched::UserEntry::moved

use core::mem::offset_of;

use granule_abi::process::{RSEQ_CPU_ID_UNINITIALIZED, Rseq, RseqCs};
use granule_arch::addr::VirtAddr;

use super::task::Task;
use crate::linux::errno::Errno;
use crate::linux::process::registration::Registration;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::mm::space::USER_END;
use crate::sched::Thread;
use crate::smp::this_cpu;
use crate::trap::TrapFrame;
use crate::uaccess::{self, read_quads};

impl Registration {
    /// Makes it that of `task`, whose own thread runs or which has not run.
    pub fn set(self, task: &Task) {
        task.rseq.set(self);
        task.thread().set_reports_moves(self.at != 0);
    }

    /// A new process has its parent's, at the same address of its own memory.
    pub fn inherit(self, child: &Task) {
        if self.at != 0 {
            self.set(child);
        }
    }

    /// Registers it.
    ///
    /// # Errors
    /// `EINVAL`: too small, or not aligned. `EFAULT`.
    pub fn begin(self, task: &Task) -> Result<(), Errno> {
        if u64::from(self.bytes) < Self::SIZE || !self.at.is_multiple_of(Self::SIZE) {
            return Err(Errno::EINVAL);
        }
        if !uaccess::is_user_range(VirtAddr(self.at), self.bytes as usize) {
            return Err(Errno::EFAULT);
        }
        self.store_sequence()?;
        self.store(offset_of!(Rseq, flags), [0; 3])?;
        self.store(offset_of!(Rseq, cpu_id_start), [RSEQ_CPU_ID_UNINITIALIZED; 2])?;
        self.set(task);
        Ok(())
    }

    /// Ends the registration.
    ///
    /// # Errors
    /// `EFAULT`, and SIGSEGV: the registration stays.
    pub fn end(self, task: &Task) -> Result<(), Errno> {
        let reset = self.store(offset_of!(Rseq, cpu_id_start), [0, RSEQ_CPU_ID_UNINITIALIZED]);
        reset.and_then(|()| self.store(offset_of!(Rseq, node_id), [0; 2])).inspect_err(|_| refuse(task))?;
        Self::NONE.set(task);
        Ok(())
    }

    fn store<const N: usize>(self, field: usize, words: [u32; N]) -> Result<(), Errno> {
        let to = VirtAddr(self.at.wrapping_add(field as u64));
        Ok(uaccess::copy_to_user(to, words.map(u32::to_le_bytes).as_flattened())?)
    }

    /// Stores that the thread is in no sequence.
    fn store_sequence(self) -> Result<(), Errno> {
        self.store(offset_of!(Rseq, rseq_cs), [0; 2])
    }

    /// Has a thread that is at `pc` in a sequence go on at its abort; returns where it goes on.
    fn restarted(self, pc: u64) -> Result<u64, Errno> {
        let [sequence] = read_quads(VirtAddr(self.at.wrapping_add(offset_of!(Rseq, rseq_cs) as u64)))?;
        if sequence == 0 {
            return Ok(pc);
        }
        let start_ip = VirtAddr(sequence.wrapping_add(offset_of!(RseqCs, start_ip) as u64));
        let [start, bytes, abort] = read_quads(start_ip)?;
        let is_inside = pc.wrapping_sub(start) < bytes;
        if is_inside {
            let before = abort.checked_sub(4).filter(|_| abort < USER_END.0).ok_or(Errno::EFAULT)?;
            let mut word = [0; 4];
            uaccess::copy_from_user(&mut word, VirtAddr(before))?;
            if u32::from_le_bytes(word) != self.signature {
                return Err(Errno::EFAULT);
            }
        }
        self.store_sequence()?;
        Ok(if is_inside { abort } else { pc })
    }
}

fn refuse(task: &Task) {
    task.force(Signal::SEGV, SignalCause::KERNEL, None);
}

/// Has the running thread, which has memory registered, go on at its sequence's abort, if it is in one.
///
/// # Errors
/// `EFAULT`: whether it is cannot be seen, or the abort is none.
#[inline(never)]
pub fn restart(task: &Task, frame: &mut TrapFrame) -> Result<(), Errno> {
    frame.elr = task.rseq.get().restarted(frame.elr)?;
    Ok(())
}

/// The running thread has come to this CPU.
#[allow(unsafe_code, reason = "the task that a program's thread belongs to")]
pub fn moved(frame: &mut TrapFrame, thread: &Thread) {
    // SAFETY: the thread returns to EL0, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    // Where the thread moves from here on, this is done again.
    let (own, cpu) = (task.rseq.get(), this_cpu().id.0);
    if own.at == 0 {
        return;
    }
    let stored = restart(task, frame).and_then(|()| own.store(offset_of!(Rseq, cpu_id_start), [cpu; 2]));
    if stored.and_then(|()| own.store(offset_of!(Rseq, node_id), [0, cpu])).is_err() {
        refuse(task);
    }
}
