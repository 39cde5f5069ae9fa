//! Global errors (IHI 0070, 7.5): the bits in which GERROR differs from GERRORN are active, and GERRORN acknowledges.
//!
//! They are served where they are seen: in the interrupt of that name, and on each CPU that waits for the command queue
//! too long. One at a time, because an acknowledgement is a write of all bits at once; and in a loop, because an error
//! that comes while another is served gives no second interrupt.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use tock_registers::LocalRegisterCopy;

use crate::registers::offset::{GERROR, GERRORN};
use crate::registers::{CMDQ_CONS, GERROR as FIELDS, offset};
use crate::{Command, CommandQueue, Platform, Report, Step, Word};

/// The errors that there are.
const ALL: u32 = 0x1fd;
/// The event queue could not be written.
pub(crate) const EVENTQ_ABT: u32 = FIELDS::EVENTQ_ABT_ERR.mask << FIELDS::EVENTQ_ABT_ERR.shift;
/// The command queue has stopped.
const CMDQ: u32 = FIELDS::CMDQ_ERR.mask << FIELDS::CMDQ_ERR.shift;

/// How often the same call serves errors: more come by another interrupt.
const PASSES: usize = 4;

/// How many illegal commands are remembered: each belongs to one call, which looks as soon as it is complete.
const LOGGED: usize = 8;

/// The record of an SMMU's global errors.
pub(crate) struct GlobalErrors<P: Platform> {
    /// 1 while a CPU serves them.
    serving: P::Word,
    /// How many there were.
    pub(crate) count: P::Word,
    /// How many commands were illegal.
    pub(crate) illegal: P::Word,
    /// Where the last of them were: one more than the position, the `n`th at index `n % LOGGED`. Written and read while
    /// `serving` is held.
    log: [P::Word; LOGGED],
    /// How often the command queue could not be read.
    fetches: P::Word,
    /// How often the event queue could not be written, so that events were lost.
    pub(crate) events_lost: P::Word,
}

impl<P: Platform> GlobalErrors<P> {
    pub(crate) fn new() -> Self {
        Self {
            serving: P::word(0),
            count: P::word(0),
            illegal: P::word(0),
            log: core::array::from_fn(|_| P::word(0)),
            fetches: P::word(0),
            events_lost: P::word(0),
        }
    }
}

/// Adds 1; only the CPU that serves calls it.
fn count<W: Word>(word: &W) -> u64 {
    let now = word.load(Relaxed) + 1;
    word.store(now, Relaxed);
    now
}

/// Those that are active.
pub(crate) fn active<P: Platform>(platform: &P) -> u32 {
    (platform.read32(GERROR) ^ platform.read32(GERRORN)) & ALL
}

impl<P: Platform, const BITS: u32> CommandQueue<P, BITS> {
    /// Serves what errors there are; which they were. With interrupts masked.
    pub(crate) fn serve_errors(&self, platform: &P) -> u32 {
        let mut all = 0;
        for _ in 0..PASSES {
            if active(platform) == 0 {
                break;
            }
            // Another CPU may have served them concurrently.
            let (errors, reports) = self.alone(platform, || match active(platform) {
                0 => (0, [None, None]),
                errors => (errors, self.serve(platform, errors)),
            });
            all |= errors;
            // Reported after `serving` is released: a console is slow.
            reports.iter().flatten().for_each(|report| platform.report(report));
        }
        all
    }

    /// Runs `work` while no other CPU serves errors.
    fn alone<T>(&self, platform: &P, work: impl FnOnce() -> T) -> T {
        while !self.errors.serving.exchange(0, 1, Acquire) && !platform.leaves_out(Step::Serving) {
            platform.relax();
        }
        let result = work();
        self.errors.serving.store(0, Release);
        result
    }

    /// The positions of the last illegal commands, each plus one; 0 where there were fewer. With interrupts masked.
    pub(crate) fn logged_illegal(&self, platform: &P) -> [u64; LOGGED] {
        self.alone(platform, || core::array::from_fn(|index| self.errors.log[index].load(Relaxed)))
    }

    fn serve(&self, platform: &P, errors: u32) -> [Option<Report>; 2] {
        // Everything that the SMMU did before it raised them.
        platform.dmb_oshld();
        let mut rest = errors;
        count(&self.errors.count);
        let mut of_queue = None;
        if errors & CMDQ != 0 {
            of_queue = self.serve_queue(platform);
            rest &= !CMDQ;
        }
        if errors & EVENTQ_ABT != 0 {
            count(&self.errors.events_lost);
            rest &= !EVENTQ_ABT;
        }
        // The CMD_SYNC in the queue is there before the SMMU continues, and the counters before a CPU sees it continue.
        platform.dmb_oshst();
        platform.write32(GERRORN, platform.read32(GERRORN) ^ errors);
        [of_queue, (rest != 0).then_some(Report::GlobalErrors(rest))]
    }

    /// The SMMU has stopped at a command.
    fn serve_queue(&self, platform: &P) -> Option<Report> {
        let cons = LocalRegisterCopy::<u32, CMDQ_CONS::Register>::new(platform.read32(offset::CMDQ_CONS));
        match cons.read_as_enum(CMDQ_CONS::ERR) {
            // It tries again. Once per power of two: this may go on as long as a CPU waits.
            Some(CMDQ_CONS::ERR::Value::Abort) => {
                count(&self.errors.fetches).is_power_of_two().then_some(Report::CommandFetchAborted)
            }
            // It stands at the CMD_SYNC, which it executes again.
            Some(CMDQ_CONS::ERR::Value::AtcTimeout) => Some(Report::AtcTimeout),
            Some(CMDQ_CONS::ERR::Value::None) => None,
            Some(CMDQ_CONS::ERR::Value::Illegal) | None => {
                let position = self.stopped_at(platform);
                let [low, high] = self.slot(position);
                let command = Command([low.load(Relaxed), high.load(Relaxed)]);
                low.store(Command::SYNC.0[0], Relaxed);
                high.store(Command::SYNC.0[1], Relaxed);
                // Both before the SMMU continues, so that the call finds them that its CMD_SYNC completes.
                let number = count(&self.errors.illegal);
                self.errors.log[(number % LOGGED as u64) as usize].store(position + 1, Relaxed);
                self.illegal.store(position + 1, Relaxed);
                Some(Report::IllegalCommand(command))
            }
        }
    }
}
