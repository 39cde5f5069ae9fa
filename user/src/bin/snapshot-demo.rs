//! A program that `pager` watches: `snapshot-demo`, or `snapshot-demo PATH` with the pager's path.
//!
//! One thread writes all the time: versions 1, 2, 3, ... to the pages in turn, each at both ends of its page. So the pages
//! of one moment hold the last versions, in order, and pages that were copied one after the other, without protection, do
//! not. The pager takes a snapshot concurrently. Then the program writes some pages, and the pager finds out which.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that two processes use")]

use core::fmt::Write as _;
use core::ptr::null;

use granule_user::prelude::*;

entry!(run);
own!(call, file, word, put_word);

/// Pages that are watched.
const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE;
/// The pages that the pager has to find.
const WRITTEN: [u64; 6] = [3, 17, 18, 40, 41, 63];

fn run(start: Start) -> u8 {
    let path = start.arguments().nth(1).unwrap_or("/pager");
    let buffer = memory::map(BYTES, RW).expect("memory");
    (1..=PAGES).for_each(|version| write_version(buffer, version));
    // A child gets it.
    let pager = Pager::new(O_NONBLOCK, UFFD_FEATURE_PAGEFAULT_FLAG_WP).expect("a userfaultfd");
    pager.register(buffer, BYTES, UFFDIO_REGISTER_MODE_WP).expect("registered");
    let watched = Watched { path, pager, buffer };
    if snapshot(&watched) && track(&watched) { 0 } else { 1 }
}

/// The buffer that the pager serves, and its program file.
struct Watched {
    path: &'static str,
    pager: Pager,
    buffer: u64,
}

impl Watched {
    /// Starts the pager: its process, and where its result will be.
    fn start_pager(&self, task: &str, more: &[u64]) -> (u32, u64) {
        let file = file(PAGES);
        let mut line = Line { text: [0; 256], used: 0 };
        [self.path, task].iter().for_each(|word| line.add(word));
        let numbers = [process::id().into(), self.pager.0.into(), self.buffer, PAGES, file];
        numbers.iter().chain(more).for_each(|number| line.add(number));
        let child = process::spawn(|| line.execute() as u8);
        (child, call(MMAP, [0, BYTES, RW, MAP_SHARED, file, 0]).expect("the file"))
    }
}

// The snapshot.

/// The last version that was written.
static VERSION: AtomicU64 = AtomicU64::new(PAGES);
static IS_OVER: AtomicBool = AtomicBool::new(false);

fn write_version(buffer: u64, version: u64) {
    let page = buffer + version % PAGES * PAGE;
    put_word(page, version);
    put_word(page + PAGE - 8, version);
}

fn write_on(buffer: usize) {
    while !IS_OVER.load(Ordering::Relaxed) {
        let version = VERSION.load(Ordering::Relaxed) + 1;
        write_version(buffer as u64, version);
        VERSION.store(version, Ordering::Relaxed);
    }
}

fn snapshot(watched: &Watched) -> bool {
    let buffer = watched.buffer as usize;
    let writer = Thread::spawn(move || write_on(buffer));
    wait_for_version(PAGES + 1);
    let (child, pages) = watched.start_pager("snapshot", &[]);
    let status = process::wait(child);
    if status != exited(0) {
        // The writer may wait for ever.
        println!("the pager failed: {status:#x}");
        return false;
    }
    let newest = (0..PAGES).map(|page| word(pages + page * PAGE)).max().unwrap_or(0);
    wait_for_version(newest + 1);
    IS_OVER.store(true, Ordering::Relaxed);
    writer.join();
    let others = |from| (0..PAGES).filter(|&page| !is_as_of(newest, from, page)).count();
    let (torn, changed) = (others(pages), others(watched.buffer));
    println!("the snapshot is of version {newest}, the program is at {}", VERSION.load(Ordering::Relaxed));
    println!("pages of another version: {torn} of the snapshot, {changed} of the program");
    println!("snapshot {}", if torn == 0 { "consistent" } else { "torn" });
    torn == 0 && changed > 0
}

fn wait_for_version(version: u64) {
    until(|| VERSION.load(Ordering::Relaxed) >= version);
}

/// Whether `page` of the pages at `from` is as it was while version `newest` was being written.
fn is_as_of(newest: u64, from: u64, page: u64) -> bool {
    let version = newest - (newest - page) % PAGES;
    let at = from + page * PAGE;
    let (first, last) = (word(at), word(at + PAGE - 8));
    // Of the newest, the first end alone may have been written.
    first == version && (last == version || version == newest && last == version - PAGES)
}

// Pages that are written.

fn track(watched: &Watched) -> bool {
    let [begun, enough] = [(); 2].map(|()| call(EVENTFD2, [0, 0]).expect("an eventfd"));
    let (child, found) = watched.start_pager("track", &[begun, enough]);
    let mut count = 0_u64;
    call(READ, [begun, &raw mut count as u64, 8]).expect("it has begun");
    for page in WRITTEN {
        // The second store faults no more.
        put_word(watched.buffer + page * PAGE, page);
        put_word(watched.buffer + page * PAGE + 8, page);
    }
    call(WRITE, [enough, &raw const count as u64, 8]).expect("a count");
    let status = process::wait(child);
    // SAFETY: the file, which only the pager has written, and has as many bytes.
    let found = unsafe { core::slice::from_raw_parts(found as *const u8, PAGES as usize) };
    let is_right = (0..PAGES).all(|page| found[page as usize] == u8::from(WRITTEN.contains(&page)));
    println!("written: pages {WRITTEN:?}; found: {}", if is_right { "the same" } else { "others" });
    status == exited(0) && is_right
}

/// A command line: its words, each with a final zero.
struct Line {
    text: [u8; 256],
    used: usize,
}

impl Line {
    fn add(&mut self, word: impl core::fmt::Display) {
        write!(self, "{word}\0").expect("a short word");
    }

    /// Runs its program in place of this one.
    fn execute(&self) -> Errno {
        let mut words = [null(); 12];
        let starts = self.text[..self.used].split_inclusive(|&byte| byte == 0).map(<[u8]>::as_ptr);
        words.iter_mut().zip(starts).for_each(|(word, start)| *word = start);
        let path = CStr::from_bytes_until_nul(&self.text).expect("a path");
        process::execve(path, &words, &[null()])
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let to = self.text.get_mut(self.used..self.used + text.len()).ok_or(core::fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}
