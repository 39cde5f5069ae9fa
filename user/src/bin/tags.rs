//! Addresses with a tag in the top byte: the hardware ignores it at EL0, calls take it where Linux's tagged address ABI
//! allows it, and a handler gets it where it asks for it.
//!
//! After Documentation/arch/arm64/tagged-pointers.rst and tagged-address-abi.rst, and Linux's own answers.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::seen::{SEEN, go_on};
use granule_user::tags::load;

entry!(run);
own!(call);

const TAG: u64 = 0x5a << 56;

fn run(start: Start) -> u8 {
    if start.arguments().nth(1) == Some("again") {
        return (control() != Ok(0)).into();
    }
    parts! { ()
        tags_are_ignored_at_el0 faults_hide_tags_unless_they_are_asked_for handlers_and_stacks_may_be_tagged
        calls_that_name_mappings_ignore_tags calls_refuse_tagged_pointers_at_first calls_take_tagged_pointers_when_asked
    }
    the_mode_is_inherited_until_an_exec(start.path());
    println!("tags: ok");
    0
}

fn control() -> Result<u64, Errno> {
    call(PRCTL, [PR_GET_TAGGED_ADDR_CTRL])
}

fn tags_are_ignored_at_el0() {
    let page = memory::map(PAGE, RW).expect("memory");
    for tag in [1 << 56, TAG, 0xff << 56] {
        let value = (tag >> 56) as u8;
        // The first one is the page's first access, too.
        // SAFETY: the page is the test's own.
        unsafe { probe::write(page | tag, value) }.expect("a page");
        assert_eq!([load(page), load(page | tag)], [value; 2]);
    }
    assert_eq!(call(MUNMAP, [page, PAGE]), Ok(0));
}

/// The code, the address, and the frame's `fault_address` of the fault that was just taken, the first one since.
fn taken() -> (i32, u64, u64) {
    let (count, _, code) = SEEN.take();
    assert_eq!(count, 1, "faults");
    (code, SEEN.address.load(Ordering::Relaxed), SEEN.far.load(Ordering::Relaxed))
}

fn handle(flags: u64) {
    for signal in [SIGSEGV, SIGBUS] {
        // SAFETY: the handler touches atomics and its own frame.
        unsafe { signal::handle(signal, go_on, flags, 0) }.expect("a handler");
    }
}

fn faults_hide_tags_unless_they_are_asked_for() {
    for (flags, tag) in [(0, 0), (SA_EXPOSE_TAGBITS, TAG)] {
        handle(flags);
        load(FAR | TAG);
        assert_eq!(taken(), (SEGV_MAPERR, FAR | tag, FAR), "flags {flags:#x}");
        load(FAR);
        assert_eq!(taken(), (SEGV_MAPERR, FAR, FAR));
        // An address of the upper half has no tag.
        load(u64::MAX << 48);
        assert_eq!(taken(), (SEGV_MAPERR, u64::MAX << 48, u64::MAX << 48));
        // SAFETY: nothing is there. PC has no tag, whatever was branched to.
        unsafe { probe::call(FAR | TAG) }.expect("no handler of `probe`");
        assert_eq!(taken(), (SEGV_MAPERR, FAR, FAR), "a branch");
        let odd = function as *const () as u64 | 2;
        // SAFETY: nothing is executed where PC is not aligned.
        unsafe { probe::call(odd | TAG) }.expect("no handler of `probe`");
        assert_eq!(taken(), (BUS_ADRALN, odd, 0), "a branch between instructions");
    }
    handle(0);
}

static CALLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn called(_: u32, _: &SigInfo, _: &mut UContext) {
    CALLED.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn function() {
    CALLED.fetch_add(1, Ordering::Relaxed);
}

fn handlers_and_stacks_may_be_tagged() {
    // SAFETY: a function.
    unsafe { probe::call(function as *const () as u64 | TAG) }.expect("no handler of `probe`");
    assert_eq!(CALLED.swap(0, Ordering::Relaxed), 1);
    // SAFETY: the handler touches an atomic.
    let before = unsafe { signal::handle(SIGUSR1, called, 0, 0) }.expect("a handler");
    // SAFETY: nothing was set before.
    let set = unsafe { signal::set_action(SIGUSR1, &before) }.expect("set");
    let tagged = granule_user::abi::signal::SigAction { handler: set.handler | TAG, ..set };
    // SAFETY: as before.
    unsafe { signal::set_action(SIGUSR1, &tagged) }.expect("set");
    signal::raise(SIGUSR1);
    assert_eq!(CALLED.swap(0, Ordering::Relaxed), 1, "a tagged handler");
    let value = on_a_tagged_stack(0);
    assert_eq!(value, 0x77);
}

/// Stores and loads by a tagged SP, and then loads from `address`, if it is not 0; returns what was stored.
fn on_a_tagged_stack(address: u64) -> u64 {
    #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut))]
    let mut value = 0x77_u64;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: SP is the same but for its tag, and as before at the end; a fault is noted and passed over.
    unsafe {
        core::arch::asm!(
            "mov {before}, sp", "orr {tagged}, {before}, {tag}",
            "mov sp, {tagged}", "str {value}, [sp, #-16]!", "mov {value}, #0",
            "cbz {address}, 1f", "ldrb {value:w}, [{address}]",
            "1: ldr {value}, [sp], #16", "mov sp, {before}",
            before = out(reg) _, tagged = out(reg) _, tag = in(reg) TAG, value = inout(reg) value,
            address = in(reg) address,
        );
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = address;
    value
}

fn calls_that_name_mappings_ignore_tags() {
    let start = memory::map(4 * PAGE, RW).expect("memory");
    // SAFETY: the pages are the test's own.
    unsafe { probe::write(start, 7) }.expect("a page");
    let mut present = [9_u8; 2];
    let vector = present.as_mut_ptr().expose_provenance() as u64;
    assert_eq!(call(MINCORE, [start | TAG, 2 * PAGE, vector]), Ok(0));
    assert_eq!(present, [1, 0]);
    assert_eq!(call(MPROTECT, [start | TAG, PAGE, PROT_READ | PROT_EXEC]), Ok(0));
    assert_eq!(call(MPROTECT, [start | TAG, PAGE, RW]), Ok(0));
    assert_eq!(call(MADVISE, [start | TAG, PAGE, MADV_DONTNEED]), Ok(0));
    assert_eq!(load(start), 0);
    assert_eq!(call(MUNMAP, [start | TAG, PAGE]), Ok(0));
    load(start);
    assert_eq!(taken(), (SEGV_MAPERR, start, start), "it was unmapped");
    // In the address of a new mapping a tag is a part of the address.
    let anonymous = PRIVATE;
    assert_eq!(call(MMAP, [start | TAG, PAGE, RW, anonymous | MAP_FIXED, u64::MAX, 0]), Err(ENOMEM));
    let elsewhere = call(MMAP, [start | TAG, PAGE, RW, anonymous, u64::MAX, 0]).expect("memory");
    assert_eq!(elsewhere >> 56, 0);
    assert_eq!(call(MUNMAP, [elsewhere, PAGE]), Ok(0));
    let heap = call(BRK, [0]);
    assert_eq!(call(BRK, [(heap.expect("the heap") + PAGE) | TAG]), heap);
    assert_eq!(call(MUNMAP, [start, 4 * PAGE]), Ok(0));
}

/// The results of four calls that are given a pointer with a tag.
fn with_tagged_pointers() -> [Result<u64, Errno>; 4] {
    let page = memory::map(PAGE, RW).expect("memory");
    let at = page | TAG;
    let answers = [
        call(UNAME, [at]),
        call(RT_SIGPROCMASK, [0, 0, at, 8]),
        call(MINCORE, [page, PAGE, at]),
        call(FUTEX, [at, FUTEX_WAIT, 6, 0]),
    ];
    assert_eq!(call(MUNMAP, [page, PAGE]), Ok(0));
    answers
}

fn calls_refuse_tagged_pointers_at_first() {
    assert_eq!(control(), Ok(0));
    assert_eq!(with_tagged_pointers(), [Err(EFAULT); 4]);
    let refused = |arguments: [u64; 5]| assert_eq!(call(PRCTL, arguments), Err(EINVAL), "{arguments:x?}");
    refused([PR_SET_TAGGED_ADDR_CTRL, 1 << 40, 0, 0, 0]);
    for unused in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        let [second, third, fourth] = unused;
        refused([PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, second, third, fourth]);
        refused([PR_GET_TAGGED_ADDR_CTRL, 0, second, third, fourth]);
    }
    refused([PR_GET_TAGGED_ADDR_CTRL, 1, 0, 0, 0]);
    assert_eq!(control(), Ok(0), "nothing was set");
}

fn calls_take_tagged_pointers_when_asked() {
    assert_eq!(call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE]), Ok(0));
    assert_eq!(control(), Ok(PR_TAGGED_ADDR_ENABLE));
    assert_eq!(with_tagged_pointers(), [Ok(0), Ok(0), Ok(0), Err(EAGAIN)]);
    // An unmapped address is unmapped with a tag too, and the kernel's half is out of range.
    for address in [FAR | TAG, FAR, u64::MAX << 48, u64::MAX << 55, u64::MAX - PAGE + 1] {
        assert_eq!(call(UNAME, [address]), Err(EFAULT), "{address:#x}");
    }
    pieces_end_below_the_end();
    // A signal's frame goes to the stack, whose address has a tag.
    assert_eq!(on_a_tagged_stack(FAR), 0x77);
    assert_eq!(taken(), (SEGV_MAPERR, FAR, FAR));
}

/// Bytes from a tagged pointer are taken, unless they go on behind the last address.
fn pieces_end_below_the_end() {
    let mut bytes = [b'\n'; 8];
    let there = (&raw mut bytes).expose_provenance() as u64 | TAG;
    let last = ((1 << 48) - 8) | TAG;
    assert_eq!(call(GETRANDOM, [there, 8, 0]), Ok(8));
    assert_eq!(call(GETRANDOM, [last, 9, 0]), Err(EFAULT));
    assert_eq!(call(READ, [0, last, 9]), Err(EFAULT));
    assert_eq!(call(MINCORE, [0, 9 * PAGE, last]), Err(EFAULT));
    bytes.fill(b'\n');
    for (pieces, count, answer) in [
        ([(there, 1), (there, 1)], 1, Ok(1)),
        ([(there, 1), (there, 1)], 2, Ok(2)),
        ([(last, 9), (there, 1)], 1, Err(EFAULT)),
        ([(there, 1), (last, 9)], 2, Err(EFAULT)),
    ] {
        let pieces = pieces.map(|(base, length)| IoVec { base, length });
        assert_eq!(call(WRITEV, [1, pieces.as_ptr().expose_provenance() as u64, count]), answer);
    }
}

fn the_mode_is_inherited_until_an_exec(path: &CStr) {
    assert_eq!(process::run(|| u8::from(control() != Ok(PR_TAGGED_ADDR_ENABLE))), exited(0));
    let again = process::run(|| {
        process::execute(path, &[path, c"again"]);
        2
    });
    assert_eq!(again, exited(0), "an exec of {path:?}");
    assert_eq!(call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, 0]), Ok(0));
    assert_eq!(control(), Ok(0));
}
