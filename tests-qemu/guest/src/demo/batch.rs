//! Memory runs short, and a program, then a kernel thread, takes a page of a file from a process whose addresses a
//! device uses.
//!
//! The runner boots it with the fix away first: there the devices are notified at the end of the batch, for the space
//! that runs. The program's is not the one that the page was in, and the thread has none. Each demo compares what the
//! device reads with the page.
//!
//! The program comes first: nothing has woken the thread by then. Once awake it makes passes for a while, and would take
//! the page before a program now and then.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::mm::layout;
use granule::sched::sleep_until;
use granule::{kernel, lab, println};

use crate::harness::{TakenFrames, Test};
use crate::smmu::shortage::{OTHERS, read_after_a_program_took_the_page};
use crate::smmu::{FILE_WORD, START, rig_with_a_file_of_the_initrd};

/// Frames that are left for memory to run short of.
const LEFT: usize = 4096;

pub(super) fn show(t: &mut Test) {
    a_program_with_another_space(t);
    println!();
    a_thread_without_a_space(t);
}

fn a_thread_without_a_space(t: &mut Test) {
    let Some((rig, _file)) = rig_with_a_file_of_the_initrd(t) else { return };
    let (frame, frames) = (rig.physical(START), kernel().frames);
    println!("The same page again, and the disk has read it. This time a thread of the kernel finds memory short:");
    let (mut rest, mut taken) = (TakenFrames::default(), TakenFrames::default());
    rest.fill_but(LEFT);
    // The limit of the test ends this, and counts CPU time.
    while rig.entry(START).is_valid() {
        // Nothing is taken of the kernel's reserve.
        if !frames.has_room_for(64) || taken.take().is_none() {
            sleep_until(Deadline::after(Duration::from_millis(1)));
            // On a busy host the thread may rest by now, after passes that freed nothing: what is taken again wakes it.
            taken.give_back(64);
        }
    }
    t.check("the thread has taken the page", !rig.entry(START).is_valid());
    // The frame is somewhere among those that are free, and another's from now on.
    drop(taken);
    let mut taken = TakenFrames::default();
    let found = taken.find(frame, |taken| if frames.has_room_for(64) { taken.take_movable() } else { None });
    t.check("its frame is free", found);
    // SAFETY: the last frame that the taken has taken, whose first word is the taken's.
    unsafe { layout::linear(frame).as_ptr::<u64>().add(1).write(OTHERS) };
    drop(rest);
    println!("The thread that frees pages of files has taken it, and its frame is another's. The disk reads it again:");
    let read = rig.device_word(START, 1);
    if lab::active().contains(&lab::NOTIFY_AT_BATCH_FLUSH) {
        t.equal("what it reads", read, Ok(OTHERS));
        println!("it reads the other's data: the thread has no space whose devices could be notified at the end.");
    } else {
        t.equal("what it reads", read, Ok(FILE_WORD));
        println!("it faults, gets a page of the file, and reads what is in the file.");
    }
}

fn a_program_with_another_space(t: &mut Test) {
    println!("A disk reads a page of a file by a process's addresses: the SMMU has the entry.");
    println!("Then a program finds no memory, and takes the page:");
    let is_away = lab::active().contains(&lab::NOTIFY_AT_BATCH_FLUSH);
    let Some((rig, _file)) = rig_with_a_file_of_the_initrd(t) else { return };
    let Some((read, notified)) = read_after_a_program_took_the_page(t, &rig) else { return };
    if is_away {
        t.check("the program's space is notified", notified > 0);
        t.equal("what it reads", read, Ok(OTHERS));
        println!(
            "the disk reads the other's data: the program's space was notified, and not the one that lost the page."
        );
    } else {
        t.equal("times that the program's space is notified", notified, 0);
        t.equal("what it reads", read, Ok(FILE_WORD));
        println!("the disk faults and reads what is in the file. The program's space was not notified.");
    }
}
