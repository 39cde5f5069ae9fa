//! Memory that a process has beyond its address space: its files, its descriptors' tables, its threads, and the lists of
//! its calls. The killer for want of memory adds it to the space's [`Footprint`](crate::mm::space::Footprint).
//!
//! Nothing is counted as it comes and goes, but for lists of calls: files are found by the descriptors. So a file is
//! charged to each process that has it, once, whichever made it and wrote to it, and no call pays for the count.

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_arch::addr::PAGE_SIZE;

use super::task::Task;
use super::tree::{PROCESSES, Process};
use crate::linux::file::open::{FileRef, OpenFile};
use crate::linux::file::table::{Files, LEAF, Leaf, Peek};
use crate::mm::counted::Counted;
use crate::mm::layout::STACK_SIZE;
use crate::mm::space::{Object, Tally, Userfaultfd};
use crate::sched::{Thread, relax};

/// Frames of lists that calls of a process work with.
#[derive(Debug, Default)]
pub struct Charges(AtomicUsize);

/// Frames that are charged to a process until this is dropped.
#[derive(Debug)]
pub struct Charge<'p> {
    charges: &'p Charges,
    frames: usize,
}

impl Charges {
    /// For a call that takes frames.
    pub const fn begin(&self) -> Charge<'_> {
        Charge { charges: self, frames: 0 }
    }
}

impl Charge<'_> {
    /// How many are charged.
    pub const fn frames(&self) -> usize {
        self.frames
    }

    /// Charges `frames` more.
    pub fn add(&mut self, frames: usize) {
        self.frames += frames;
        self.charges.0.fetch_add(frames, Ordering::Relaxed);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.charges.0.fetch_sub(self.frames, Ordering::Relaxed);
    }
}

/// Bytes of a thread beside what it has open.
const OF_THREAD: usize = STACK_SIZE as usize + size_of::<Thread>() + size_of::<Task>();
/// Bytes of an open file: of one without pages that has most.
const OF_FILE: usize = size_of::<OpenFile>() + size_of::<Userfaultfd>();
/// How often a leaf of a table that a thread changes is looked at again.
const ATTEMPTS: usize = 1000;

/// The owner of the descriptors that are looked at.
#[derive(Clone, Copy)]
enum Owner {
    Process,
    /// The thread with the next larger number.
    After(u32),
}

/// Frames that the process with this number and serial number has beyond its space. Those of files that were met in
/// `tally` already count as none. Sleeps; no lock is held. The count is of no one moment: threads run concurrently.
pub fn footprint(id: u32, serial: u64, tally: Tally) -> usize {
    let (mut frames, mut bytes) = (0, 0);
    let mut owner = with(id, serial, |process| {
        frames = process.charges.0.load(Ordering::Relaxed);
        bytes = process.lock().threads() * OF_THREAD;
        Owner::Process
    });
    while let Some(looked_at) = owner {
        bytes += size_of::<Files<FileRef>>();
        let (mut next, mut attempts) = (0, 0);
        loop {
            let mut memory = heapless::Vec::<Counted<Object>, LEAF>::new();
            let mut look = |file: &FileRef| {
                bytes += file.footprint(tally);
                if let Some(object) = file.unnamed() {
                    // A leaf has no more.
                    let _ = memory.push(object.clone());
                }
            };
            let peeked = with(id, serial, |process| match looked_at {
                Owner::Process => {
                    owner = Some(Owner::After(0));
                    process.files.peek(next, &mut look)
                }
                Owner::After(task) => {
                    let state = process.lock();
                    let task = state.task_after(task);
                    owner = task.map(|task| Owner::After(task.id()));
                    task.and_then(|task| task.own_files.get()).map_or(Peek::End, |files| files.peek(next, &mut look))
                }
            });
            frames += memory.iter().map(|object| object.footprint(tally).frames()).sum::<usize>();
            relax();
            match peeked {
                Some(Peek::Leaf { files, locks, next: number }) => {
                    bytes += size_of::<Leaf<FileRef>>() + files * OF_FILE + locks;
                    (next, attempts) = (number, 0);
                }
                Some(Peek::Busy) if attempts < ATTEMPTS => attempts += 1,
                Some(Peek::Busy | Peek::End) => break,
                None => return frames + bytes.div_ceil(PAGE_SIZE),
            }
        }
    }
    frames + bytes.div_ceil(PAGE_SIZE)
}

/// Calls `look` with the process of these numbers, if it is there still, under the lock of all processes.
fn with<R>(id: u32, serial: u64, look: impl FnOnce(&Process) -> R) -> Option<R> {
    let tree = PROCESSES.lock();
    tree.find(id).filter(|process| process.serial() == serial).map(look)
}
