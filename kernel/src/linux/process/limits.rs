//! The limits of a process: `prlimit64`, and the number of tasks.
//!
//! All of Linux's resources can be read and set, with Linux's defaults. Those of existing resources are enforced: the
//! address space, its data, the stack, tasks, and open files. The only user is root: it may raise hard limits, but, unlike
//! Linux's root, is bound by `RLIMIT_NPROC`.
//!
//! A task counts from its creation until its record is freed, so a process that has ended counts until its status is
//! collected. Everything else that a program leaves in the kernel is bounded too: a signal is pending once, and areas
//! have [a limit](crate::mm::space) of their own.

#![allow(unsafe_code, reason = "words that are copied under the lock of their changes")]

use core::array;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule_abi::Errno;
use granule_abi::limits::{
    RLIM_INFINITY, RLIM_NLIMITS, RLIMIT_AS, RLIMIT_CORE, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_NICE,
    RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_RTPRIO, RLIMIT_SIGPENDING, RLIMIT_STACK, RLimit,
};
use granule_arch::speculation::get_nospec;

use super::quota::Quota;
use crate::linux::file::table;
use crate::mm::space::SpaceLimits;
use crate::sync::{IrqLock, rank};

/// The frames that a task takes at least (its kernel stack), and the part of all frames that tasks may take: together
/// the limit of all tasks, as on Linux (`set_max_threads`).
const TASK_FRAMES: usize = 4;
const TASKS_PART: usize = 8;

/// The most tasks on a machine with `frames` frames: at least 20, as on Linux.
pub const fn most_tasks(frames: usize) -> usize {
    let tasks = frames / (TASK_FRAMES * TASKS_PART);
    if tasks < 20 { 20 } else { tasks }
}

/// See [`init`].
static MOST_TASKS: AtomicUsize = AtomicUsize::new(0);

/// Sets the limit of all tasks. Once, at boot, with the number of all frames.
pub fn init(frames: usize) {
    MOST_TASKS.store(most_tasks(frames), Ordering::Relaxed);
}

/// The limits of one process: soft and hard, by resource.
pub struct Limits {
    soft: [AtomicU64; RLIM_NLIMITS],
    hard: [AtomicU64; RLIM_NLIMITS],
    /// Held while soft and hard limit of a resource are read or changed together.
    changing: IrqLock<(), { rank::LIMITS }>,
}

impl Limits {
    /// The limits of a process that the kernel starts.
    pub fn initial() -> Self {
        Self::of_machine(MOST_TASKS.load(Ordering::Relaxed))
    }

    /// As [`Self::initial`], for a machine with this limit of all tasks.
    fn of_machine(most_tasks: usize) -> Self {
        let tasks = (most_tasks / 2) as u64;
        Self::with(|resource| match resource {
            RLIMIT_STACK => RLimit { soft: 8 << 20, hard: RLIM_INFINITY },
            RLIMIT_CORE => RLimit { soft: 0, hard: RLIM_INFINITY },
            RLIMIT_NPROC | RLIMIT_SIGPENDING => RLimit { soft: tasks, hard: tasks },
            RLIMIT_NOFILE => RLimit { soft: 1024, hard: 4096 },
            RLIMIT_MEMLOCK => RLimit { soft: 8 << 20, hard: 8 << 20 },
            RLIMIT_MSGQUEUE => RLimit { soft: 819_200, hard: 819_200 },
            RLIMIT_NICE | RLIMIT_RTPRIO => RLimit { soft: 0, hard: 0 },
            _ => RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY },
        })
    }

    /// A copy of the limits, for a child.
    pub fn copy(&self) -> Self {
        let _changing = self.changing.lock();
        // SAFETY: the words are stored only under the lock, so none changes now; other threads only load them.
        let (soft, hard) = unsafe { ((&raw const self.soft).read(), (&raw const self.hard).read()) };
        Self { soft, hard, changing: IrqLock::new(()) }
    }

    fn with(limit: impl Fn(usize) -> RLimit) -> Self {
        Self {
            soft: array::from_fn(|resource| AtomicU64::new(limit(resource).soft)),
            hard: array::from_fn(|resource| AtomicU64::new(limit(resource).hard)),
            changing: IrqLock::new(()),
        }
    }

    /// The current limit for a resource, one of the `RLIMIT_` numbers.
    pub fn soft(&self, resource: usize) -> u64 {
        self.soft.get(resource).map_or(RLIM_INFINITY, |limit| limit.load(Ordering::Relaxed))
    }

    /// The value up to which the limit for a resource may be raised.
    pub fn hard(&self, resource: usize) -> u64 {
        self.hard.get(resource).map_or(RLIM_INFINITY, |limit| limit.load(Ordering::Relaxed))
    }

    /// The limits for an address space.
    pub fn of_space(&self) -> SpaceLimits {
        SpaceLimits {
            space: self.soft(RLIMIT_AS),
            data: self.soft(RLIMIT_DATA),
            data_hard: self.hard(RLIMIT_DATA),
            stack: self.soft(RLIMIT_STACK),
        }
    }

    /// The limits for a resource, and new ones in their place if given, as `prlimit64`.
    ///
    /// # Errors
    /// `EINVAL` (no such resource, or soft above hard), `EPERM` (more files than any process may have). Nothing was
    /// changed.
    pub fn exchange(&self, resource: u32, new: Option<RLimit>) -> Result<RLimit, Errno> {
        let resource = resource as usize;
        let (Some(soft), Some(hard)) = (get_nospec(&self.soft, resource), get_nospec(&self.hard, resource)) else {
            return Err(Errno::EINVAL);
        };
        if let Some(new) = new {
            if new.soft > new.hard {
                return Err(Errno::EINVAL);
            }
            if resource == RLIMIT_NOFILE && new.hard > table::MOST as u64 {
                return Err(Errno::EPERM);
            }
        }
        let _changing = self.changing.lock();
        let old = RLimit { soft: soft.load(Ordering::Relaxed), hard: hard.load(Ordering::Relaxed) };
        if let Some(new) = new {
            soft.store(new.soft, Ordering::Relaxed);
            hard.store(new.hard, Ordering::Relaxed);
        }
        Ok(old)
    }
}

/// Tasks that count.
static TASKS: Quota = Quota(AtomicUsize::new(0));

/// One of the tasks that may exist. Dropping it returns it.
#[derive(Debug)]
pub struct ProcessSlot(());

impl ProcessSlot {
    /// Reserves a task for a process with these limits.
    ///
    /// # Errors
    /// `EAGAIN`: the process, or all processes together, may have no more tasks.
    pub fn take(limits: &Limits) -> Result<Self, Errno> {
        let most = limits.soft(RLIMIT_NPROC).min(MOST_TASKS.load(Ordering::Relaxed) as u64);
        if TASKS.take(most) { Ok(Self(())) } else { Err(Errno::EAGAIN) }
    }
}

impl Drop for ProcessSlot {
    fn drop(&mut self) {
        TASKS.give_back();
    }
}

/// Tasks that count: processes whose record exists, and the other threads of those that run.
pub fn tasks() -> usize {
    TASKS.taken()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_linuxs_and_tasks_go_by_memory() {
        // Linux 7.2.13 with 1 GiB has `threads-max` near 8192 frames' worth: an eighth of memory in stacks of 16 KiB.
        assert_eq!(most_tasks(1 << 18), 8192);
        assert_eq!(most_tasks(1), 20);
        let limits = Limits::of_machine(most_tasks(1 << 18));
        let limited = [
            (RLIMIT_STACK, 8 << 20, RLIM_INFINITY),
            (RLIMIT_CORE, 0, RLIM_INFINITY),
            (RLIMIT_NPROC, 4096, 4096),
            (RLIMIT_NOFILE, 1024, 4096),
            (RLIMIT_MEMLOCK, 8 << 20, 8 << 20),
            (RLIMIT_SIGPENDING, 4096, 4096),
            (RLIMIT_MSGQUEUE, 819_200, 819_200),
            (RLIMIT_NICE, 0, 0),
            (RLIMIT_RTPRIO, 0, 0),
        ];
        for resource in 0..RLIM_NLIMITS {
            let found = limited.iter().find(|&&(limited, ..)| limited == resource);
            let (soft, hard) = found.map_or((RLIM_INFINITY, RLIM_INFINITY), |&(_, soft, hard)| (soft, hard));
            assert_eq!(limits.exchange(resource as u32, None), Ok(RLimit { soft, hard }), "resource {resource}");
        }
    }

    #[test]
    fn what_is_refused_changes_nothing_and_a_copy_is_apart() {
        let limits = Limits::of_machine(most_tasks(1 << 15));
        let (resource, unlimited) = (RLIMIT_AS as u32, RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY });
        assert_eq!(limits.exchange(16, None), Err(Errno::EINVAL));
        assert_eq!(limits.exchange(u32::MAX, Some(unlimited)), Err(Errno::EINVAL));
        assert_eq!(limits.exchange(resource, Some(RLimit { soft: 2, hard: 1 })), Err(Errno::EINVAL));
        let files = RLimit { soft: 1, hard: (1 << 20) + 1 };
        assert_eq!(limits.exchange(RLIMIT_NOFILE as u32, Some(files)), Err(Errno::EPERM));
        assert_eq!(limits.exchange(resource, None), Ok(unlimited));
        let child = limits.copy();
        let less = RLimit { soft: 1, hard: 2 };
        assert_eq!(limits.exchange(resource, Some(less)), Ok(unlimited));
        assert_eq!((limits.exchange(resource, Some(unlimited)), child.soft(RLIMIT_AS)), (Ok(less), RLIM_INFINITY));
    }
}
