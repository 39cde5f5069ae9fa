//! Files that refer to a process (`pidfd_open(2)`): a number that another process has by now is not taken for it.
//!
//! A process has one [`Pidfd`] at most, made when a file is wanted first; each file of it is an open file of its own.
//! The process tells it of its end; so a poller needs no process.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use granule_abi::file::{POLLHUP, POLLIN, POLLRDNORM};
use spin::Once;

use super::open::PollState;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::sched::{PollNode, PollQueue, Woken, poll_until};

static POOL: Once<Pool<Inner<Pidfd>>> = Once::new();
static SERIALS: AtomicU64 = AtomicU64::new(1);

/// The process that a pidfd refers to.
pub struct Pidfd {
    /// Its number.
    pub id: u32,
    /// No two have the same.
    pub serial: u64,
    stage: AtomicU8,
    pollers: PollQueue,
}

/// How far a process is, for its pollers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stage {
    /// It has threads.
    Running,
    /// It has none any more, and its status was not collected.
    Ended,
    /// It is gone.
    Collected,
}

impl Pidfd {
    /// Of the process with this number, which has none yet.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(id: u32) -> Result<Counted<Self>, OutOfMemory> {
        let pool = POOL.call_once(|| Pool::new(kernel().frames));
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        let stage = AtomicU8::new(Stage::Running as u8);
        Counted::try_new(pool, Self { id, serial, stage, pollers: PollQueue::new() })
    }

    /// The process is so far. Its pollers are [woken](Self::wake) after that.
    pub fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// Wakes its pollers. For threads, without a lock.
    pub fn wake(&self) {
        self.pollers.wake(PollQueue::ANY);
    }

    /// Waits until the process has ended, and has left its space.
    ///
    /// # Errors
    /// `ERESTARTSYS`: a signal came first.
    pub fn wait(&self) -> Result<(), Errno> {
        let has_ended = &mut || self.poll().events != 0;
        let is_done =
            has_ended() || poll_until(&mut [PollNode::new(&self.pollers)], None, has_ended) == Woken::ByAnother;
        if is_done { Ok(()) } else { Err(Errno::ERESTARTSYS) }
    }

    /// The events that a poller finds.
    pub fn poll(&self) -> PollState<'_> {
        const ENDED: u16 = POLLIN | POLLRDNORM;
        let events = match self.stage.load(Ordering::Relaxed) {
            stage if stage == Stage::Running as u8 => 0,
            stage if stage == Stage::Ended as u8 => ENDED,
            _ => ENDED | POLLHUP,
        };
        PollState { events, queue: Some(&self.pollers) }
    }
}

/// The processes that pidfds refer to.
pub fn pool_stats() -> PoolStats {
    POOL.get().map_or_else(PoolStats::default, Pool::stats)
}
