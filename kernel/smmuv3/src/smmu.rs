//! The part of an SMMU that all CPUs share: invalidation, errors, counters.

use core::sync::atomic::Ordering::Relaxed;

use granule_arch::addr::{PhysAddr, VirtAddr};

use crate::invalidate::{By, Plan, Spans};
use crate::{Command, CommandError, CommandQueue, Features, Platform, Report, Scope, Step, Word, gerror, reset};

/// How often a command is issued whose verdict is that it was illegal: the verdict may be wrong where many are at once.
const ATTEMPTS: usize = 4;

/// One SMMU.
pub struct Smmu<P: Platform> {
    pub(crate) platform: P,
    by: By,
    pub(crate) commands: CommandQueue<P>,
    features: Features,
}

/// Counters of the SMMU's use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Commands, CMD_SYNC included.
    pub commands: u64,
    /// Calls: each is some commands and one CMD_SYNC.
    pub calls: u64,
    /// Waits for room in the queue.
    pub full: u64,
    /// Times that global errors were served.
    pub errors: u64,
    /// Commands that the SMMU found illegal.
    pub illegal: u64,
}

impl<P: Platform> Smmu<P> {
    pub(crate) fn new(platform: P, features: Features, commands: CommandQueue<P>) -> Self {
        Self { platform, by: By::of(&features), commands, features }
    }

    /// Its features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Its registers.
    ///
    /// # Safety
    /// 1. No register is written through it that says where the SMMU's tables and queues are, what it does with
    ///    transactions, or how far a queue is filled.
    /// 2. Memory that it allocates is for nothing that this driver has.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn platform(&self) -> &P {
        &self.platform
    }

    /// Issues `commands` and one CMD_SYNC, and returns when they are complete. With interrupts masked.
    ///
    /// # Errors
    /// They may not be complete.
    pub fn issue(&self, commands: &[Command]) -> Result<(), CommandError> {
        self.commands.issue(&self.platform, commands)
    }

    /// When this returns no TLB of the SMMU has what the 4 KiB pages of `start..end` were in `asid`, and no walk that
    /// began before uses it. The caller has completed its stores to the tables (DSB ISHST), and has interrupts masked.
    ///
    /// Everything, where `end` is the last address. It does not fail: an SMMU that takes no commands is shut, so that
    /// its cached entries are out of use.
    #[inline]
    pub fn invalidate(&self, asid: u16, start: VirtAddr, end: VirtAddr, scope: Scope) {
        // The usual case. No call in it comes back, so it has no registers to save.
        if self.by == By::Ranges
            && !self.platform.leaves_out(Step::Sync)
            && let Some(spans) = Spans::new(start, end)
            && let Some(inserted) =
                self.commands.insert::<true>(&self.platform, spans.count(), |index| spans.command(index, asid, scope))
        {
            if !self.commands.is_complete(&self.platform, inserted) {
                return self.finish(inserted.start, inserted.end);
            }
            if self.commands.may_be_illegal(&self.platform, inserted.start) {
                self.finish_by_log(inserted.start, inserted.end);
            }
            return;
        }
        self.invalidate_as_planned(asid, start, end, scope);
    }

    /// The slow path of a call whose slots are filled.
    #[cold]
    #[inline(never)]
    fn finish(&self, start: u64, end: u64) {
        if self.commands.wait(&self.platform, end).is_err() {
            self.invalidate_more();
        } else if self.commands.may_be_illegal(&self.platform, start) {
            self.finish_by_log(start, end);
        }
    }

    /// The call in `start..end` is complete, and a command was illegal, of this call or of a later one.
    #[cold]
    #[inline(never)]
    fn finish_by_log(&self, start: u64, end: u64) {
        if self.commands.verdict_of_log(&self.platform, start, end).is_err() {
            self.invalidate_more();
        }
    }

    /// The general path: no range, invalidation page by page, or a full queue.
    #[cold]
    #[inline(never)]
    fn invalidate_as_planned(&self, asid: u16, start: VirtAddr, end: VirtAddr, scope: Scope) {
        let plan = Plan::new(self.by, start, end);
        let command = |index| plan.command(index, asid, scope);
        if plan != Plan::Nothing && self.commands.issue_with(&self.platform, plan.count(), command).is_err() {
            self.invalidate_more();
        }
    }

    /// When this returns walks find what this CPU has stored in the `bytes` from `start` on, of page tables. An SMMU
    /// that sees the caches needs nothing but the caller's DSB ISHST. For another one the lines are cleaned: a new table
    /// before an entry links it, a new entry before a transaction uses it, a cleared one before [`Self::invalidate`].
    #[inline]
    pub fn clean(&self, start: PhysAddr, bytes: u64) {
        if !self.features.coherent {
            self.platform.clean(start, bytes);
        }
    }

    /// As [`Self::invalidate`], for everything in `asid`.
    pub fn invalidate_asid(&self, asid: u16) {
        if self.issue(&[Command::tlbi_nh_asid(asid)]).is_err() {
            self.invalidate_more();
        }
    }

    /// The range may not be invalidated: everything is, or nothing passes any more.
    #[cold]
    #[inline(never)]
    fn invalidate_more(&self) {
        // An SMMU that does not execute it has been shut.
        let _ = self.issue_or_shut(Command::TLBI_NSNH_ALL);
    }

    /// Issues a command that must be executed: an SMMU that does not is shut, since what it has cached may be the way to
    /// memory that has another owner soon. With interrupts masked.
    ///
    /// # Errors
    /// It was not executed; nothing passes any more.
    pub(crate) fn issue_or_shut(&self, command: Command) -> Result<(), CommandError> {
        for _ in 0..ATTEMPTS {
            match self.issue(&[command]) {
                Ok(()) => return Ok(()),
                Err(CommandError::Illegal) => {}
                Err(CommandError::Timeout) => break,
            }
        }
        self.shut();
        Err(CommandError::Timeout)
    }

    /// Lets nothing pass any more; on return nothing does, whichever CPU has done it. For an SMMU that does not execute
    /// commands. With interrupts masked.
    pub fn shut(&self) {
        self.commands.give_up(&self.platform, || {
            // Should it not take this either, there is nothing left to do; the report has it.
            let taken = reset::shut(&self.platform);
            self.platform.report(&if taken.is_ok() { Report::Dead } else { Report::DeadAndOpen });
        });
    }

    /// Whether nothing passes any more: [`Self::shut`], or a command that had to be executed was not. DMA accesses are
    /// aborted then, without an event.
    pub fn is_shut(&self) -> bool {
        self.commands.is_given_up()
    }

    /// Serves and acknowledges global errors; whether there were any. From the interrupt of that name, or at any time,
    /// with interrupts masked.
    pub fn acknowledge_errors(&self) -> bool {
        self.commands.serve_errors(&self.platform) != 0
    }

    /// Whether the event queue could not be written, full or not there, since the call before this one with the same
    /// `known`, which begins as 0: then events were lost. Maybe once too often.
    pub fn lost_events(&self, known: &mut u64) -> bool {
        // Until it is acknowledged it stands for any number of times; from then on it is counted.
        let unacknowledged = gerror::active(&self.platform) & gerror::EVENTQ_ABT != 0;
        let before = core::mem::replace(known, self.commands.errors.events_lost.load(Relaxed));
        unacknowledged || *known != before
    }

    /// The counters so far.
    pub fn stats(&self) -> Stats {
        let [commands, calls, full] = self.commands.counts();
        let errors = &self.commands.errors;
        Stats { commands, calls, full, errors: errors.count.load(Relaxed), illegal: errors.illegal.load(Relaxed) }
    }
}

#[cfg(test)]
mod tests;
