//! A page of shared memory is write-protected for a pager, leaves the process's table, and is written.
//!
//! The runner boots it with the fix away first: there nothing remembers the protection, and the pager misses the store.

use granule::mm::space::Reason;
use granule::{lab, println};
use granule_arch::descriptor::{Descriptor, bits};

use crate::harness::Test;
use crate::userfault::{Memory, START, Watched};

pub(super) fn show(t: &mut Test) {
    let is_away = lab::active().contains(&lab::DROP_MARKER_ALWAYS);
    let Some(watched) = Watched::new(t, Memory::Shared) else { return };
    let message = watched.store(t, 1);
    t.equal("a message for a store before", message, None);
    println!("A process writes 1 to a page of shared memory. Its entry, but for the address of the frame:");
    print_entry(watched.entry());
    watched.protect(t);
    println!("A pager write-protects the page, to read a message before the next store changes it:");
    print_entry(watched.entry());
    watched.discard(t);
    t.equal("the marker", watched.has_marker(), !is_away);
    println!("MADV_DONTNEED takes the page out of the table, while the object keeps it. What is left:");
    print_entry(watched.entry());
    let message = watched.store(t, 2);
    match message {
        Some(fault) => {
            t.equal("where", fault.address, START);
            t.check("a store to what is protected", fault.is_write && fault.reason == Reason::WriteProtected);
            println!("The process stores 2: it faults, the page comes back with its mark, and the store waits.");
            println!("The pager reads: a store to {:#x}, which is write-protected. It ends that.", fault.address.0);
        }
        None => println!("The process stores 2: it faults, and the page comes back writable. The pager reads nothing."),
    }
    t.equal("the message", message.is_some(), !is_away);
    print_entry(watched.entry());
    let lost = u32::from(message.is_none());
    println!("The page holds {}. Stores that the pager has missed: {lost}.", watched.load());
}

/// An entry without the address of a frame, which differs from boot to boot.
fn print_entry(entry: Descriptor) {
    if !entry.is_valid() {
        let what =
            if entry == Descriptor::EMPTY { "empty" } else { "no page; a marker: write-protected by userfaultfd" };
        println!("    {:#018x}  {what}", entry.0);
        return;
    }
    let access = if entry.may_be_written() { "writable" } else { "read-only" };
    let mark = if entry.is_uffd_wp() { ", marked: write-protected by userfaultfd" } else { "" };
    println!("    {:#018x}  {access}{mark}", entry.0 & !bits::ADDRESS);
}
