//! A pager: it watches another process's memory by write-protection, while that process goes on writing.
//!
//! ```text
//! pager snapshot PROCESS USERFAULTFD START PAGES FILE
//! pager track PROCESS USERFAULTFD START PAGES FILE BEGUN ENOUGH
//! ```
//! `PAGES` pages from `START` on are registered with the userfaultfd for write-protection; the process has made it, and this
//! program has inherited its descriptor, as all others.
//!
//! **A snapshot** goes to `FILE`: the pages as they are when the one call that protects all of them returns. From there on
//! no page changes before it is copied: a store to it faults, waits, and becomes a message. Pages are copied one by one,
//! and a page with a message comes first. Each may be written as soon as it is copied.
//!
//! **Tracking** notes in `FILE`, a byte for each page, which pages are written between a count in eventfd `BEGUN`, which
//! the pager adds, and one in `ENOUGH`.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "pages of a file that it maps")]

use granule_user::prelude::*;

entry!(run);
own!(call);

/// The status where the arguments are none.
const USAGE: u8 = 2;

fn run(start: Start) -> u8 {
    let mut arguments = start.arguments().skip(1);
    let task = arguments.next();
    let mut numbers = arguments.map(|argument| argument.parse().expect("a number"));
    let mut next = || numbers.next().expect("more arguments");
    match task {
        Some("snapshot") => snapshot(&Target::new(&mut next)),
        Some("track") => track(&Target::new(&mut next), next(), next()),
        _ => return USAGE,
    }
    0
}

/// Memory of a process, and the file for what becomes of it.
struct Target {
    process: u64,
    pager: Pager,
    start: u64,
    pages: u64,
    /// Where the file is mapped.
    result: u64,
}

impl Target {
    /// From the numbers of the command line.
    fn new(next: &mut impl FnMut() -> u64) -> Self {
        let (process, pager, start, pages, file) = (next(), Pager(next() as u32), next(), next(), next());
        let mapped = call(MMAP, [0, pages * PAGE, RW, MAP_SHARED, file, 0]);
        Self { process, pager, start, pages, result: mapped.expect("the file") }
    }

    fn protect_all(&self) {
        self.pager.protect(self.start, self.pages * PAGE).expect("write-protected");
    }

    /// Lets the process write `page`, and wakes its threads that wait for that.
    fn unprotect(&self, page: u64) {
        self.pager.unprotect(self.start + page * PAGE, PAGE).expect("not write-protected");
    }

    /// The page that a thread waits to write, if one does.
    fn written(&self) -> Option<u64> {
        match self.pager.read_one() {
            Ok(Message { event: UFFD_EVENT_PAGEFAULT, words: [flags, address, _], .. }) => {
                assert!(flags & UFFD_PAGEFAULT_FLAG_WP != 0, "a fault of another kind: {flags:#x}");
                Some((address - self.start) / PAGE)
            }
            Err(EAGAIN) => None,
            other => panic!("{other:x?}"),
        }
    }

    /// Copies `page` to the file.
    fn save(&self, page: u64) {
        let to = IoVec { base: self.result + page * PAGE, length: PAGE };
        let from = IoVec { base: self.start + page * PAGE, length: PAGE };
        let (to, from) = (&raw const to as u64, &raw const from as u64);
        assert_eq!(call(PROCESS_VM_READV, [self.process, to, 1, from, 1, 0]), Ok(PAGE), "page {page}");
    }
}

/// The most pages of a snapshot.
const MOST: usize = 4096;

fn snapshot(target: &Target) {
    let mut is_saved = [false; MOST];
    let is_saved = &mut is_saved[..target.pages as usize];
    let (mut in_turn, mut before_a_write) = (0, 0);
    target.protect_all();
    // The snapshot is of this moment.
    for page in 0..target.pages {
        while let Some(written) = target.written() {
            before_a_write += save_once(target, is_saved, written);
        }
        in_turn += save_once(target, is_saved, page);
        // In the background.
        process::sched_yield();
    }
    println!("pager: {in_turn} pages copied in turn, {before_a_write} before a write to them");
}

/// Copies a page if it is not yet, and lets the process write it; how many were copied.
fn save_once(target: &Target, is_saved: &mut [bool], page: u64) -> u64 {
    let is_saved = &mut is_saved[page as usize];
    let is_new = !core::mem::replace(is_saved, true);
    if is_new {
        target.save(page);
    }
    target.unprotect(page);
    u64::from(is_new)
}

fn track(target: &Target, begun: u64, enough: u64) {
    let one = 1_u64;
    let mut dirty = 0;
    target.protect_all();
    call(WRITE, [begun, &raw const one as u64, 8]).expect("a count");
    loop {
        let wanted = [u64::from(target.pager.0), enough];
        let mut files = wanted.map(|file| PollFd { fd: file as i32, events: POLLIN, revents: 0 });
        call(PPOLL, [files.as_mut_ptr() as u64, 2, 0, 0, 0]).expect("something to come");
        while let Some(page) = target.written() {
            // SAFETY: the page's byte of the file, to which there are no references.
            unsafe { (target.result as *mut u8).add(page as usize).write_volatile(1) };
            target.unprotect(page);
            dirty += 1;
        }
        // The message of each write before the count in `enough` has been read: its writer waited for that.
        if files[1].revents != 0 {
            break;
        }
    }
    target.pager.unprotect(target.start, target.pages * PAGE).expect("not write-protected");
    println!("pager: {dirty} pages written");
}
