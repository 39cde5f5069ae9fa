//! A program that finds no memory takes a page of a file out of another process, whose device has read it.
//!
//! The thread that ends the batch has a space here, and it is not the one that the page was in.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

use core::sync::atomic::{AtomicU32, Ordering};

use granule::devices::virtio_blk::BlkError;
use granule::linux::process;
use granule::linux::process::signal::Signal;
use granule::linux::process::status::ProcessEnd;
use granule::mm::layout;
use granule::mm::notifier::{Subscriber, Subscription};
use granule::mm::space::Used;
use granule::smp::this_cpu;
use granule::{kernel, sched};
use granule_arch::addr::VirtAddr;
use log::LevelFilter;

use super::{FILE_WORD, PAGE, Rig, START, rig_with_a_file_of_the_initrd};
use crate::harness::{TakenFrames, Test, target_test, wait_until};
use crate::process::{settle, start, terminate};

/// The word that another user of the frame keeps in it.
pub(crate) const OTHERS: u64 = 0x5ec2_e7da_7a00_0002;
/// Where `hog later` maps a page once SIGTERM does not end it.
const READY: VirtAddr = VirtAddr(0x1000_0000);
/// Frames that the program may take before it finds none.
const LEFT: usize = 1024;
/// So few that the thread that frees pages of files is never woken: the program takes them itself.
const RESERVE: usize = 3;

/// Counts how often the address of the file's page was invalidated, because its frame is replaced.
struct Counting(AtomicU32);

impl Subscriber for Counting {
    fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        self.0.fetch_add(u32::from(start == START && end == START + PAGE), Ordering::Relaxed);
    }
}

/// The word that the device of the process reads in the page after a program took the page, and its frame's next user
/// stored [`OTHERS`] there; and how often the program's own space was notified of the page.
pub(crate) fn read_after_a_program_took_the_page(t: &mut Test, rig: &Rig) -> Option<(Result<u64, BlkError>, u32)> {
    let (cpu, frames, frame) = (this_cpu(), kernel().frames, rig.physical(START));
    let (threads, reserve) = (sched::thread_count(), frames.reserve());
    let id = t.ok("a program", start("hog later"))?;
    let space = t.ok("its space", process::space_of(id).ok_or("none"))?;
    wait_until(|| space.tables().translate(READY).is_some());
    let counting = t.ok("a subscriber", Subscription::new(space, Counting(AtomicU32::new(0)), 0))?;
    // Old by now: the next pass takes it, whatever thread makes it.
    kernel().spaces.reclaim(cpu, usize::MAX, Used::Age, &|| false);
    t.check("the page is there, and old", rig.entry(START).is_valid() && !rig.entry(START).is_young());
    frames.set_reserve(RESERVE);
    // Not all for a moment: that would wake the thread, which takes the page where it comes before the program.
    let mut rest = TakenFrames::default();
    rest.fill_but(LEFT);
    // The log level hides the report of the program's end, which has a time: each boot prints the same lines.
    let level = log::max_level();
    log::set_max_level(LevelFilter::Error);
    t.ok("the program takes all memory", terminate(id));
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Killed(Signal::KILL)));
    log::set_max_level(level);
    frames.set_reserve(reserve);
    let notified = counting.0.load(Ordering::Relaxed);
    drop(counting);
    settle(t, threads);
    t.check("it has taken the page", !rig.entry(START).is_valid());
    // Another user takes the frames that the program had.
    let mut others = TakenFrames::default();
    let found = others.find(frame, TakenFrames::take);
    drop(rest);
    t.check("its frame was given to others", found);
    // SAFETY: the last frame that the taken has taken, whose first word is the taken's.
    unsafe { layout::linear(frame).as_ptr::<u64>().add(1).write(OTHERS) };
    let read = rig.device_word(START, 1);
    drop(others);
    Some((read, notified))
}

target_test!(a_device_reads_a_file_whose_page_a_program_took, needs("smmuv3 virtio-blk"), limit(60));
fn a_device_reads_a_file_whose_page_a_program_took(t: &mut Test) {
    let Some((rig, _file)) = rig_with_a_file_of_the_initrd(t) else { return };
    let Some((read, notified)) = read_after_a_program_took_the_page(t, &rig) else { return };
    t.equal("the device reads the file", read, Ok(FILE_WORD));
    t.equal("a space without the page is notified", notified, 0);
}
