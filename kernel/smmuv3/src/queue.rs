//! The command queue (IHI 0070, 3.5 and 4.7): several CPUs insert at once.
//!
//! A call takes its slots by one compare-exchange, fills them, waits for its turn, writes PROD, and passes the turn on;
//! then it waits for its own CMD_SYNC, which does not delay other calls:
//!
//! ```text
//! reserved:  start -> end   compare-exchange, if end - consumed fits
//!            write the commands and CMD_SYNC to the slots
//!            DMB OSHST
//! published: == start?      wait: those with earlier slots write PROD first, and each is a few stores away from it
//!            CMDQ_PROD = end
//! published  = end          release
//!            CMDQ_CONS      until it has passed end
//!            DMB OSHLD
//! ```
//!
//! There is no mark in each slot, and no CPU that publishes for others: PROD never passes a slot that is not filled,
//! because turns are taken in the order of the slots. The cost: a virtual CPU that does not run when its turn has
//! come keeps those behind it waiting, where one that published for it would go on.
//!
//! All positions are counts since the beginning, in 64 bits, so none is ambiguous; registers have their lowest bits,
//! the wrap bit included. `consumed` is a count that the SMMU has reached for certain, raised when room is needed. From
//! it and CMDQ_CONS follows another: the smallest that is not below it and has the register's bits. **It is never more
//! than what was consumed** when the register was read, since `consumed` was read before it; it is less only where
//! others have gone a whole round concurrently, and then `consumed` has been raised, so that a second look is exact.
//!
//! Generic over the platform's words: `granule-loom` runs this source in every order.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use thiserror::Error;

use crate::gerror::GlobalErrors;
use crate::registers::offset::{CMDQ_CONS, CMDQ_PROD};
use crate::{Command, DmaMemory, LIMIT_MS, Platform, Step, Word};

/// Bytes of a command.
pub(crate) const COMMAND_BYTES: usize = 16;
/// log2 of the commands that the queue holds. 256 are a page of memory: room for the longest call of each of a few
/// CPUs, since a call has at most 65, and little to clear at boot.
pub const COMMAND_QUEUE_BITS: u32 = 8;

/// Why commands are not known to be complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CommandError {
    /// One of them was illegal, and was not executed; the others were. Where more than a few of several CPUs are illegal
    /// at once, this may be the answer to a call of which none was.
    #[error("a command was illegal")]
    Illegal,
    /// The SMMU takes no commands any more.
    #[error("the SMMU did not complete them within {LIMIT_MS} ms")]
    Timeout,
}

/// The slots of a call.
#[derive(Clone, Copy)]
pub(crate) struct Inserted {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The count that was consumed for certain before they were filled.
    consumed: u64,
}

/// Commands are issued.
const IN_USE: u64 = 0;
/// A CPU is closing the SMMU: it may still translate.
const CLOSING: u64 = 1;
/// The SMMU lets nothing pass, and no CPU waits for it.
const CLOSED: u64 = 2;

/// A cache line of its own, for a word that CPUs write all the time while others write other words.
#[repr(align(64))]
struct CacheLine<T>(T);

/// The queue of one SMMU, with `2^BITS` slots.
pub struct CommandQueue<P: Platform, const BITS: u32 = COMMAND_QUEUE_BITS> {
    pub(crate) slots: DmaMemory,
    /// The SMMU has consumed so many, at least.
    consumed: P::Word,
    /// One more than the position of the last illegal command; 0 before there was one.
    pub(crate) illegal: P::Word,
    /// Whether the SMMU is in use: [`IN_USE`], [`CLOSING`] or [`CLOSED`].
    life: P::Word,
    /// Waits for room.
    full: P::Word,
    /// Where the next call's slots begin.
    reserved: CacheLine<P::Word>,
    /// Up to where PROD was written, and how often.
    published: CacheLine<[P::Word; 2]>,
    pub(crate) errors: GlobalErrors<P>,
    platform: PhantomData<fn(P)>,
}

impl<P: Platform, const BITS: u32> CommandQueue<P, BITS> {
    /// Slots.
    pub const ENTRIES: u64 = 1 << BITS;
    /// A position as registers have it: with the wrap bit.
    const POSITION: u64 = 2 * Self::ENTRIES - 1;

    /// A queue in `slots`, aligned to their size, none of which is filled for the SMMU.
    ///
    /// # Panics
    /// Where `slots` is not as large as the queue, or the queue is larger than any SMMU's.
    pub fn new(slots: DmaMemory) -> Self {
        const { assert!(BITS >= 1 && BITS < 20) }
        assert!(slots.bytes() == COMMAND_BYTES << BITS, "{} bytes for 2^{BITS} commands", slots.bytes());
        Self {
            slots,
            consumed: P::word(0),
            illegal: P::word(0),
            life: P::word(IN_USE),
            full: P::word(0),
            reserved: CacheLine(P::word(0)),
            published: CacheLine([P::word(0), P::word(0)]),
            errors: GlobalErrors::new(),
            platform: PhantomData,
        }
    }

    /// Inserts `commands` and a CMD_SYNC, and waits until they are complete. With interrupts masked: a handler on this
    /// CPU that came in between and issued commands would wait for the turn of the slots that it interrupted.
    ///
    /// # Errors
    /// They may not be complete.
    ///
    /// # Panics
    /// Where they do not fit the queue.
    #[inline]
    pub fn issue(&self, platform: &P, commands: &[Command]) -> Result<(), CommandError> {
        self.issue_with(platform, commands.len(), |index| commands[index])
    }

    /// As [`Self::issue`], for `count` commands that `command` makes.
    ///
    /// # Errors
    /// See [`Self::issue`].
    ///
    /// # Panics
    /// See [`Self::issue`].
    #[inline(always)]
    pub fn issue_with(
        &self,
        platform: &P,
        count: usize,
        command: impl Fn(usize) -> Command,
    ) -> Result<(), CommandError> {
        let inserted = loop {
            let inserted = match platform.leaves_out(Step::Sync) {
                false => self.insert::<true>(platform, count, &command),
                true => self.insert::<false>(platform, count, &command),
            };
            match inserted {
                Some(inserted) => break inserted,
                None => self.make_room(platform, count as u64 + 1)?,
            }
        };
        if !self.is_complete(platform, inserted) {
            self.wait(platform, inserted.end)?;
        }
        self.verdict(platform, inserted)
    }

    /// Inserts `count` commands that `command` makes, and a CMD_SYNC if `SYNC` is set; `None` where there is no room.
    #[inline(always)]
    pub(crate) fn insert<const SYNC: bool>(
        &self,
        platform: &P,
        count: usize,
        command: impl Fn(usize) -> Command,
    ) -> Option<Inserted> {
        let slots = count as u64 + u64::from(SYNC);
        let (start, consumed) = self.reserve(platform, slots)?;
        for index in 0..count {
            self.write(start + index as u64, command(index));
        }
        let end = start + slots;
        if SYNC {
            self.write(end - 1, Command::SYNC);
        }
        self.publish(platform, start, end);
        Some(Inserted { start, end, consumed })
    }

    /// Whether what a call has inserted is found to be complete at once.
    #[inline(always)]
    pub(crate) fn is_complete(&self, platform: &P, inserted: Inserted) -> bool {
        platform.leaves_out(Step::Wait) || self.position(platform, inserted.consumed) >= inserted.end
    }

    /// How a call has ended whose commands are complete.
    #[inline(always)]
    pub(crate) fn verdict(&self, platform: &P, inserted: Inserted) -> Result<(), CommandError> {
        match self.may_be_illegal(platform, inserted.start) {
            true => self.verdict_of_log(platform, inserted.start, inserted.end),
            false => Ok(()),
        }
    }

    /// Whether a command was illegal at or after `start`, where a call's slots begin whose commands are complete:
    /// [`Self::verdict_of_log`] knows whether it was one of that call's.
    #[inline(always)]
    pub(crate) fn may_be_illegal(&self, platform: &P, start: u64) -> bool {
        // The caller's next access, the reuse of a page, comes after the SMMU has completed the call.
        platform.dmb_oshld();
        self.illegal.load(Relaxed) > start
    }

    /// How the call in `start..end` has ended, by the log of illegal commands.
    #[cold]
    #[inline(never)]
    pub(crate) fn verdict_of_log(&self, platform: &P, start: u64, end: u64) -> Result<(), CommandError> {
        // Each is one more than its position.
        let log = self.logged_illegal(platform);
        let own = log.iter().any(|&at| start < at && at <= end);
        // The oldest is overwritten first: unless one is left from before this call, one of its own may be missing.
        let overwritten = log.iter().all(|&at| at > start);
        if own || overwritten { Err(CommandError::Illegal) } else { Ok(()) }
    }

    /// Takes `count` slots: the first one's position, and what was consumed for certain. `None` where there is no room.
    #[inline(always)]
    fn reserve(&self, platform: &P, count: u64) -> Option<(u64, u64)> {
        let mut start = self.reserved.0.load_to_change();
        loop {
            // Acquire: what the SMMU has read it has read before this CPU writes there.
            let consumed = self.consumed.load(Acquire);
            // Also where `start` is old and `consumed` has passed it: then the exchange would fail.
            if (start + count).wrapping_sub(consumed) > Self::ENTRIES && !platform.leaves_out(Step::Room) {
                return None;
            }
            if self.reserved.0.exchange(start, start + count, Relaxed) {
                return Some((start, consumed));
            }
            // A plain load: two CPUs that each stored here again could clear each other's exclusive monitor for ever.
            start = self.reserved.0.load(Relaxed);
        }
    }

    /// Fills a slot that this call has reserved.
    #[inline(always)]
    fn write(&self, position: u64, command: Command) {
        let [low, high] = self.slot(position);
        low.store(command.0[0], Relaxed);
        high.store(command.0[1], Relaxed);
    }

    /// The slot of a position.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the two words of a slot in DMA memory")]
    pub(crate) fn slot(&self, position: u64) -> &[P::Word; 2] {
        let index = (position & (Self::ENTRIES - 1)) as usize;
        // SAFETY: `slots` holds `ENTRIES` commands, as `new` has checked, of two words each (`DmaMemory::words`).
        unsafe { &*self.slots.words::<P>().as_ptr().cast::<[P::Word; 2]>().add(index) }
    }

    /// Publishes the slots up to `end` to the SMMU, after those before `start`.
    #[inline(always)]
    fn publish(&self, platform: &P, start: u64, end: u64) {
        if !platform.leaves_out(Step::DmbBeforeProd) {
            platform.dmb_oshst();
        }
        let [published, calls] = &self.published.0;
        // Acquire, and release below: PROD is written in the order of turns.
        while published.load(Acquire) != start && !platform.leaves_out(Step::Turn) {
            platform.relax();
        }
        platform.write32(CMDQ_PROD, (end & Self::POSITION) as u32);
        calls.store(calls.load(Relaxed) + 1, Relaxed);
        published.store(end, Release);
    }

    /// The count that the SMMU has consumed now, or less; see the head of this file. `consumed` was read before.
    #[inline(always)]
    fn position(&self, platform: &P, consumed: u64) -> u64 {
        let register = u64::from(platform.read32(CMDQ_CONS));
        consumed + (register.wrapping_sub(consumed) & Self::POSITION)
    }

    /// Waits until the SMMU has consumed everything before `end`.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait(&self, platform: &P, end: u64) -> Result<(), CommandError> {
        let mut patience = TimeLimit::default();
        loop {
            let now = self.position(platform, self.consumed.load(Acquire));
            if now >= end {
                return Ok(());
            }
            patience.turn(self, platform, now)?;
        }
    }

    /// Waits until there is room for `count` commands, which others may take first.
    #[cold]
    #[inline(never)]
    fn make_room(&self, platform: &P, count: u64) -> Result<(), CommandError> {
        assert!(count <= Self::ENTRIES, "{count} commands for a queue of {}", Self::ENTRIES);
        let end = self.reserved.0.load(Relaxed) + count;
        let mut patience = TimeLimit::default();
        loop {
            let consumed = self.consumed.load(Acquire);
            let now = self.position(platform, consumed);
            // The SMMU has read its commands before any CPU that finds this count writes there.
            platform.dmb_oshld();
            self.raise_consumed(now);
            if now + Self::ENTRIES >= end {
                return Ok(());
            }
            if patience.is_new() {
                // May miss one where two CPUs find it full at once: it is for people to read.
                self.full.store(self.full.load(Relaxed) + 1, Relaxed);
            }
            patience.turn(self, platform, now)?;
        }
    }

    /// Makes `consumed` `now`, unless it is past that: if it went back, others would have gone more than a round ahead.
    fn raise_consumed(&self, now: u64) {
        loop {
            let consumed = self.consumed.load(Relaxed);
            if consumed >= now || self.consumed.exchange(consumed, now, Release) {
                return;
            }
        }
    }

    /// The position at which the SMMU has stopped.
    pub(crate) fn stopped_at(&self, platform: &P) -> u64 {
        loop {
            let consumed = self.consumed.load(Acquire);
            let position = self.position(platform, consumed);
            platform.dmb_oshld();
            // No call has gone a round ahead in between.
            if self.consumed.load(Acquire) == consumed {
                return position;
            }
        }
    }

    /// Ends the use of the SMMU by `shut`, after which it lets nothing pass. Of calls at the same time one runs its
    /// `shut`, and the others return after that: what the SMMU could reach up to then is any caller's to reuse.
    ///
    /// With interrupts masked: another CPU may wait for this one.
    pub fn give_up(&self, platform: &P, shut: impl FnOnce()) {
        loop {
            match self.life.load(Acquire) {
                CLOSED => return,
                IN_USE if self.life.exchange(IN_USE, CLOSING, Relaxed) => break,
                _ => platform.relax(),
            }
        }
        shut();
        // Not before: a call that finds it closed returns to a caller that reuses memory.
        self.life.store(CLOSED, Release);
    }

    /// Whether [`Self::give_up`] has ended.
    pub(crate) fn is_given_up(&self) -> bool {
        self.life.load(Acquire) == CLOSED
    }

    /// Commands inserted, calls, and waits for room.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [self.reserved.0.load(Relaxed), self.published.0[1].load(Relaxed), self.full.load(Relaxed)]
    }
}

/// How long a CPU has been waiting while nothing moved: others may be first, and many.
#[derive(Default)]
struct TimeLimit {
    turns: u64,
    since: u64,
    /// Where the SMMU was at the last look.
    position: u64,
}

impl TimeLimit {
    fn is_new(&self) -> bool {
        self.turns == 0
    }

    /// Once per turn of a waiting loop, which has found the SMMU at `position`.
    fn turn<P: Platform, const BITS: u32>(
        &mut self,
        queue: &CommandQueue<P, BITS>,
        platform: &P,
        position: u64,
    ) -> Result<(), CommandError> {
        if queue.life.load(Acquire) == CLOSED {
            return Err(CommandError::Timeout);
        }
        self.turns += 1;
        if self.turns % P::TURNS_PER_LOOK == 1 {
            let now = platform.microseconds();
            if self.turns == 1 || self.position != position {
                (self.since, self.position) = (now, position);
            } else if now.saturating_sub(self.since) > 1000 * LIMIT_MS {
                return Err(CommandError::Timeout);
            }
            queue.serve_errors(platform);
        }
        platform.relax();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
