//! How the kernel takes frames where few are left: its own file, over parts of what is free that are only counts.

#[allow(unreachable_pub, reason = "the kernel's other modules alone use it")]
#[path = "../../../src/mm/page_block/scarcity.rs"]
mod scarcity;

use scarcity::Scarcity;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{IrqLock, rank};

/// CPUs that take frames.
const CPUS: usize = 2;

/// A step that is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// None.
    Nothing,
    /// A CPU that takes alone acquires every other's lock first.
    Pass,
    /// Plenty is a frame for each CPU: for one of them here.
    Margin,
    /// Both counts of a block that goes to the buddy change under the buddy's lock.
    OneStep,
    /// A CPU that takes alone looks at the buddy once more behind all lists.
    LastLook,
}

/// Free frames: some in a part of each CPU, the others in one that all share, a frame to each of its blocks.
pub struct FreeFrames {
    scarcity: Scarcity,
    /// By CPU; the count is written under the lock, and read without.
    own: [(IrqLock<(), { rank::PAGE_BLOCK }>, AtomicUsize); CPUS],
    shared: (IrqLock<(), { rank::BUDDY }>, AtomicUsize),
    /// How many stay free.
    left: usize,
    without: Without,
}

/// Takes one of what a lock guards that is held; whether there was one.
fn take(count: &AtomicUsize) -> bool {
    let free = count.load(Ordering::Relaxed);
    if free > 0 {
        count.store(free - 1, Ordering::Relaxed);
    }
    free > 0
}

impl FreeFrames {
    /// So many free frames, of which `left` stay.
    pub fn new(own: [usize; CPUS], shared: usize, left: usize, without: Without) -> Self {
        let own = own.map(|free| (IrqLock::new(()), AtomicUsize::new(free)));
        let shared = (IrqLock::new(()), AtomicUsize::new(shared));
        Self { scarcity: Scarcity::new(), own, shared, left, without }
    }

    /// `PageBlocks::totals`.
    pub fn total(&self) -> usize {
        let _guard = self.shared.0.lock();
        let shared = self.shared.1.load(Ordering::Relaxed);
        shared + self.own.iter().map(|(_, free)| free.load(Ordering::Relaxed)).sum::<usize>()
    }

    fn has_plenty(&self) -> bool {
        let margin = if self.without == Without::Margin { 1 } else { CPUS };
        self.shared.1.load(Ordering::Relaxed) >= self.left + margin
    }

    /// `PageBlocks::take_runs` of one frame, on CPU `cpu`.
    pub fn take(&self, cpu: usize) -> bool {
        let (lock, own) = &self.own[cpu];
        if let Some(_guard) = self.scarcity.open(lock, || self.has_plenty()) {
            return take(own) || self.take_shared();
        }
        let pass = || {
            if self.without != Without::Pass {
                self.own.iter().for_each(|(lock, _)| drop(lock.lock()));
            }
        };
        let work = || {
            let locked = |(lock, free): &(IrqLock<_, _>, _)| {
                let _guard = lock.lock();
                take(free)
            };
            self.total() > self.left
                && (locked(&self.own[cpu])
                    || self.take_shared()
                    || self.own.iter().any(locked)
                    || self.without != Without::LastLook && self.take_shared())
        };
        self.scarcity.alone(pass, work, || self.has_plenty())
    }

    /// `PageBlocks::join` of a block of CPU `cpu`, unless its frame is taken before.
    pub fn join(&self, cpu: usize) {
        let (lock, own) = &self.own[cpu];
        let _guard = lock.lock();
        let is_whole = self.without == Without::OneStep && take(own);
        let _buddy = self.shared.0.lock();
        if is_whole || take(own) {
            self.shared.1.store(self.shared.1.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    fn take_shared(&self) -> bool {
        let _guard = self.shared.0.lock();
        take(&self.shared.1)
    }
}
