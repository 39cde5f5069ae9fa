//! Counters that wake their readers (`eventfd2(2)`).

use granule_abi::file::{EFD_SEMAPHORE, POLLIN, POLLOUT};

use super::open::PollState;
use crate::linux::errno::Errno;
use crate::sched::{IfNotReady, PollNode, PollQueue, Woken, poll_until};
use crate::sync::{IrqLock, rank};

/// Makes an attempt, and again when the queue is woken, until one succeeds.
///
/// # Errors
/// `EAGAIN`: the first did not, and the caller does not wait. `ERESTARTSYS`: a signal came first.
pub fn attempt_until(
    queue: &PollQueue,
    if_not_ready: IfNotReady,
    attempt: &mut dyn FnMut() -> bool,
) -> Result<(), Errno> {
    if attempt() {
        return Ok(());
    }
    if if_not_ready == IfNotReady::Fail {
        return Err(Errno::EAGAIN);
    }
    match poll_until(&mut [PollNode::new(queue)], None, attempt) {
        Woken::ByAnother => Ok(()),
        _ => Err(Errno::ERESTARTSYS),
    }
}

/// A counter below `u64::MAX`.
pub struct EventCounter {
    count: IrqLock<u64, { rank::WAIT }>,
    queue: PollQueue,
    /// Whether each read takes 1.
    is_semaphore: bool,
}

impl EventCounter {
    /// With this count, and the flags of `eventfd2`.
    pub const fn new(count: u64, flags: u32) -> Self {
        Self { count: IrqLock::new(count), queue: PollQueue::new(), is_semaphore: flags & EFD_SEMAPHORE != 0 }
    }

    /// Changes the count, as soon as `change` has a new count and a result for it, after which these events may hold.
    fn change(
        &self,
        events: u16,
        if_not_ready: IfNotReady,
        change: &mut dyn FnMut(u64) -> Option<(u64, u64)>,
    ) -> Result<u64, Errno> {
        let mut result = Err(Errno::EAGAIN);
        let mut attempt = || {
            let mut count = self.count.lock();
            if let Some((new, taken)) = change(*count) {
                *count = new;
                result = Ok(taken);
            }
            result.is_ok()
        };
        attempt_until(&self.queue, if_not_ready, &mut attempt)?;
        self.queue.wake(events);
        result
    }

    /// Takes the count, or 1 of it, when it is not 0.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`.
    pub fn read(&self, if_not_ready: IfNotReady) -> Result<u64, Errno> {
        let is_semaphore = self.is_semaphore;
        self.change(POLLOUT, if_not_ready, &mut |count| match count {
            0 => None,
            _ if is_semaphore => Some((count - 1, 1)),
            _ => Some((0, count)),
        })
    }

    /// Adds to the count, when the sum is below `u64::MAX`.
    ///
    /// # Errors
    /// `EINVAL` (more than can ever be added), `EAGAIN`, `ERESTARTSYS`.
    pub fn write(&self, more: u64, if_not_ready: IfNotReady) -> Result<(), Errno> {
        if more == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let add = &mut |count: u64| count.checked_add(more).filter(|&sum| sum != u64::MAX).map(|sum| (sum, 0));
        self.change(POLLIN, if_not_ready, add).map(drop)
    }

    /// The events that a poller finds.
    pub fn poll(&self) -> PollState<'_> {
        let count = *self.count.lock();
        let has_room = count < u64::MAX - 1;
        let events = if count != 0 { POLLIN } else { 0 } | if has_room { POLLOUT } else { 0 };
        PollState { events, queue: Some(&self.queue) }
    }
}
