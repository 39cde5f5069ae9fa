//! Where the parts of a program lie: at addresses of their own in each process, or at the same ones where its
//! personality says so; and the answers of `personality`.
//!
//! The program executes itself: with the argument `report` it writes where it lies. `layout fixed` is for a kernel that
//! was booted with `norandmaps`, `layout 64-bit` for one that runs no programs of 32 bits.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::print;

entry!(run);
own!(call);

/// Processes that are compared: that one of many bits is alike in all of them by chance does not happen.
const PROCESSES: usize = 64;
/// Addresses and distances that are compared.
const PARTS: usize = 7;
/// The bits of an address that are random: 18 of its page's number.
const OF_PAGES: u64 = 0x3fff_f000;
/// The bits of SP that are random in its page.
const IN_A_PAGE: u64 = 0xff0;
/// Asks for a personality, and changes nothing.
const GET: u64 = 0xffff_ffff;

fn run(start: Start) -> u8 {
    let word = start.arguments().nth(1).unwrap_or_default();
    if word == "report" {
        report(&start);
        return 0;
    }
    let path = start.path();
    if word == "fixed" {
        alike(path);
        return status("layout");
    }
    answers(word == "64-bit");
    own_of_each_thread();
    differ(path);
    apart(|| {
        equal("set", personality(ADDR_NO_RANDOMIZE.into()), Ok(0));
        // By a fork and an exec.
        alike(path);
        equal("and taken back", personality(0), Ok(ADDR_NO_RANDOMIZE.into()));
        differ(path);
    });
    apart(|| {
        let asked = 0x0800_0000 | READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE;
        equal("set", personality(asked.into()), Ok(0));
        let after = u64::from(asked & !READ_IMPLIES_EXEC);
        equal("after an exec", look(path).personality, after);
    });
    for limit in [256 << 10, (200 << 20) + 1, RLIM_INFINITY] {
        apart(|| {
            equal("a limit", process::limit(RLIMIT_STACK, limit, RLIM_INFINITY).map(drop), Ok(()));
            let below = look(path);
            // Linux draws both, each from its end of a room of 1 GiB: a small limit may be all that lies between them.
            let room = limit.min(128 << 20);
            holds(("a mapping below a stack of", limit), below.mapping != 0 && below.stack - below.mapping >= room);
        });
    }
    status("layout")
}

fn personality(asked: u64) -> Result<u64, Errno> {
    call(PERSONALITY, [asked])
}

/// Every value is kept, but for the domain of 32 bits where there is none.
fn answers(only_64_bits: bool) {
    let no_randomize = u64::from(ADDR_NO_RANDOMIZE);
    let steps = [
        [(GET, 0), (0, 0), (no_randomize, 0), (GET, no_randomize)],
        [(u64::MAX, no_randomize), (1 << 32, no_randomize), (7, 0), (0x80, 7)],
        [
            (0x1234_5600, 0x80),
            (0xffff_fff7, 0x1234_5600),
            (0xffff_fffe, 0xffff_fff7),
            (0xdead_0000_8000_0000, 0xffff_fffe),
        ],
        [(0, 0x8000_0000), (0, 0), (0, 0), (0, 0)],
    ];
    for &(asked, before) in steps.as_flattened() {
        equal(("personality", asked), personality(asked), Ok(before));
    }
    for more in [0, 0xffff_ff00, no_randomize] {
        let answer = personality(u64::from(PER_LINUX32) | more);
        let kept = if answer == Ok(0) && !only_64_bits { u64::from(PER_LINUX32) | more } else { 0 };
        holds(("32 bits", answer), kept != 0 || answer == Err(EINVAL));
        equal(("32 bits", more), personality(0), Ok(kept));
    }
}

/// A thread begins with that of the thread that made it.
fn own_of_each_thread() {
    equal("set", personality(0x1_0000), Ok(0));
    let other = || {
        equal("in a new thread", personality(0x2_0000), Ok(0x1_0000));
        equal("changed there", personality(GET), Ok(0x2_0000));
    };
    Thread::spawn(other).join();
    equal("and not here", personality(0), Ok(0x1_0000));
}

/// Where a program lies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Report {
    program: u64,
    heap: u64,
    mapping: u64,
    /// The path at the end of the stack.
    stack: u64,
    /// SP.
    pointer: u64,
    personality: u64,
}

impl Report {
    /// The parts, and how far they are apart, each with the bits that are random in it.
    fn parts(&self) -> [(&'static str, u64, u64); PARTS] {
        [
            ("the program", self.program, OF_PAGES),
            ("the heap", self.heap, OF_PAGES),
            ("from the program to the heap", self.heap.wrapping_sub(self.program), OF_PAGES),
            ("a mapping", self.mapping, OF_PAGES),
            ("the stack", self.stack, OF_PAGES),
            ("from a mapping to the stack", self.stack.wrapping_sub(self.mapping), OF_PAGES),
            ("SP", self.pointer, OF_PAGES | IN_A_PAGE),
        ]
    }
}

fn report(start: &Start) {
    let report = Report {
        program: start.auxiliary(AT_PHDR).expect("program headers"),
        heap: call(BRK, [0]).expect("the heap's end"),
        mapping: map(PAGE, RW).expect("a page"),
        stack: start.auxiliary(AT_EXECFN).expect("a path"),
        pointer: start.stack_pointer(),
        personality: personality(GET).expect("a personality"),
    };
    // SAFETY: six words.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const report).cast(), size_of::<Report>()) };
    print::write(1, bytes);
}

/// Executes this program in a child: where it lies.
fn look(path: &CStr) -> Report {
    let ([read, write], mut bytes) = (File::pipe(0).expect("a pipe"), [0; size_of::<Report>()]);
    let status = process::run(|| {
        equal("a descriptor", call(DUP3, [*write, 1, 0]), Ok(1));
        process::execute(path, &[path, c"report"]) as u8
    });
    equal("a program of its own", status, exited(0));
    equal("a report", read.read(&mut bytes), Ok(bytes.len() as u64));
    // SAFETY: six words, which may have any bits.
    unsafe { core::mem::transmute::<[u8; size_of::<Report>()], Report>(bytes) }
}

/// Each random bit of each part is 0 in some processes and 1 in others.
fn differ(path: &CStr) {
    let first = look(path);
    let mut changed = [0; PARTS];
    for _ in 1..PROCESSES {
        let now = look(path);
        for (changed, (now, first)) in changed.iter_mut().zip(now.parts().iter().zip(first.parts())) {
            *changed |= now.1 ^ first.1;
        }
    }
    for (changed, (part, _, random)) in changed.iter().zip(first.parts()) {
        equal(part, changed & random, random);
    }
}

fn alike(path: &CStr) {
    let first = look(path);
    for _ in 0..4 {
        equal("the same addresses", look(path), first);
    }
}
