//! Tag checks as Linux has them for a program: `mte [PART...]`. After Linux's own tests of them
//! (selftests/arm64/mte): modes and sizes of accesses, the tags of IRG, forks and mappings, buffers and strings of
//! calls, threads with modes of their own.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::seen::{self, SEEN};
use granule_user::tags::{GRANULE, TAG_BITS, irg, ldg, load, set_tags, stg, store, store_unchecked, tag};

entry!(run);
own!(call, file);

/// The contents of memory before an access; a store stores another value.
const BEFORE: u8 = 0x11;
const MODES: [u64; 4] = [0, PR_MTE_TCF_SYNC, PR_MTE_TCF_ASYNC, PR_MTE_TCF_MASK];

/// A part's name, and itself, with the program's path.
type Part = (&'static str, fn(&CStr));

/// The parts, all of which run where none is named.
const PARTS: [Part; 14] = [
    ("control", |_| control_is_what_was_set()),
    ("irg", |_| irg_finds_the_tags_that_are_included()),
    ("modes", |_| each_access_is_checked_in_each_mode()),
    ("fill", |_| a_fill_stops_at_the_first_byte_of_another_tag()),
    ("addresses", |_| addresses_keep_the_tag_that_is_asked_for()),
    ("handlers", |_| handlers_are_checked_and_override_nothing()),
    ("late", |_| late_faults_wait_like_other_signals()),
    ("mappings", |_| mappings_are_checked_by_their_protection()),
    ("zero", |_| new_memory_has_tags_of_zero()),
    ("children", |_| children_have_tags_of_their_own()),
    ("buffers", |_| buffers_of_calls_are_checked()),
    ("strings", strings_of_calls_are_checked_to_their_end),
    ("threads", |_| threads_keep_their_own_modes()),
    ("exec", an_exec_resets_the_mode),
];

fn run(start: Start) -> u8 {
    let is_asked = |word| start.arguments().skip(1).any(|argument| argument == word);
    if is_asked("again") {
        return after_an_exec();
    }
    holds("HWCAP2_MTE", start.auxiliary(AT_HWCAP2).is_some_and(|bits| bits & HWCAP2_MTE != 0));
    handle(SIGSEGV, 0);
    let all = !PARTS.iter().any(|(name, _)| is_asked(name));
    PARTS.iter().filter(|(name, _)| all || is_asked(name)).for_each(|(_, part)| part(start.path()));
    status("mte")
}

fn set_control(control: u64) -> Result<u64, Errno> {
    call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, control])
}

fn control() -> Result<u64, Errno> {
    call(PRCTL, [PR_GET_TAGGED_ADDR_CTRL])
}

/// A mode, with all tags but zero for IRG, and calls that accept tagged addresses.
fn set_mode(mode: u64) {
    equal(("a mode", mode), set_control(PR_TAGGED_ADDR_ENABLE | mode | 0xfffe << PR_MTE_TAG_SHIFT), Ok(0));
}

/// New memory of the program, not touched yet.
fn map_private(protection: u64) -> Pages {
    Pages::map(1, protection, MAP_PRIVATE).expect("memory")
}

/// An address that the handler of SIGUSR1 stores to.
static TARGET: AtomicU64 = AtomicU64::new(0);

/// Notes its arguments. A fault at an access goes on behind it.
extern "C" fn note(signal: u32, info: &SigInfo, context: &mut UContext) {
    seen::note(signal, info, context);
    if info.code == SEGV_MTESERR {
        context.context.pc += 4;
    }
}

extern "C" fn store_to_target(_: u32, _: &SigInfo, _: &mut UContext) {
    store(TARGET.load(Ordering::Relaxed));
}

fn handle(number: u32, flags: u64) {
    let handler = if number == SIGSEGV { note } else { store_to_target };
    // SAFETY: the handlers touch atomics, their frame, and the test's page.
    unsafe { signal::handle(number, handler, flags, 0) }.expect("a handler");
}

/// The code and address of the fault since the last time, after a call, by which late ones come; `None`: there was
/// none.
fn taken() -> Option<(i32, u64)> {
    process::sched_yield();
    match SEEN.take() {
        (0, ..) => None,
        (1, _, code) => Some((code, SEEN.address.load(Ordering::Relaxed))),
        (many, ..) => panic!("{many} faults at once"),
    }
}

fn control_is_what_was_set() {
    equal("no control at first", control(), Ok(0));
    for mode in MODES {
        for bits in [0, PR_TAGGED_ADDR_ENABLE] {
            for included in [0, 1, 0x8000, 0xa5a5, 0xffff] {
                let wanted = mode | bits | included << PR_MTE_TAG_SHIFT;
                equal(("set", wanted), set_control(wanted), Ok(0));
                equal("get", control(), Ok(wanted));
            }
        }
    }
    let last = control();
    for bad in [1 << 19, 1 << 20, 1 << 63, PR_MTE_TAG_MASK << 1] {
        equal(("a bit that does not exist", bad), set_control(bad), Err(EINVAL));
    }
    for place in 2..5 {
        let mut arguments = [PR_SET_TAGGED_ADDR_CTRL, PR_MTE_TCF_SYNC, 0, 0, 0];
        arguments[place] = 1;
        equal(("argument", place), call(PRCTL, arguments), Err(EINVAL));
    }
    equal("nothing has changed", control(), last);
    equal("no more control", set_control(0), Ok(0));
}

/// The tags that IRG finds in a number of turns, a bit for each.
fn found() -> u64 {
    (0..200).fold(0, |tags, _| tags | 1 << (irg(0) >> 56 & 0xf))
}

fn irg_finds_the_tags_that_are_included() {
    for number in 0..16 {
        equal(("one tag", number), set_control(1 << (number + PR_MTE_TAG_SHIFT)), Ok(0));
        equal("is found", found(), 1 << number);
    }
    for included in [0xfffe_u64, 0x00f0, 0x8001, 0xffff] {
        equal("tags", set_control(included << PR_MTE_TAG_SHIFT), Ok(0));
        let found = found();
        holds(("no other", included), found & !included == 0 && found.count_ones() >= 2);
    }
    equal("no tags", set_control(0), Ok(0));
    equal("but zero", found(), 1);
}

/// An access: its name, whether it stores, and itself.
type Access = (&'static str, bool, fn(u64));

/// One of one instruction each.
macro_rules! accesses {
    ($($text:literal $stores:literal,)*) => {
        [$(($text, $stores, |address| { instruction!($text, address); })),*]
    };
}

const ACCESSES: [Access; 21] = accesses! {
    "ldrb w9, [x10]" false, "ldrh w9, [x10]" false, "ldr w9, [x10]" false, "ldr x9, [x10]" false,
    "ldp x9, x11, [x10]" false, "ldar x9, [x10]" false, "ldxr x9, [x10]" false, "ldrsb x9, [x10]" false,
    "ldtr x9, [x10]" false,
    "strb w9, [x10]" true, "strh w9, [x10]" true, "str w9, [x10]" true, "str x9, [x10]" true,
    "stp x9, x11, [x10]" true, "stlr x9, [x10]" true, "sttr x9, [x10]" true,
    "ldadd x9, x11, [x10]" true, "swpb w9, w11, [x10]" true, "cas x11, x9, [x10]" true, "stset x9, [x10]" true,
    "dc zva, x10" true,
};

fn each_access_is_checked_in_each_mode() {
    let page = map_private(TAGGED);
    // SAFETY: the test's own page, which has no references.
    let fill = || unsafe { (*page as *mut u8).write_bytes(BEFORE, 64) };
    // The page's own tags are zero for now, so that the program may look at it.
    let stored = || (0..64).any(|byte| load(*page + byte) != BEFORE);
    let wrong = *page | tag(5);
    for mode in MODES {
        set_mode(mode);
        for (name, stores, access) in ACCESSES {
            fill();
            access(*page);
            equal((name, "in mode", mode, "with the right tag"), taken(), None);
            fill();
            access(wrong);
            let fault = taken();
            let (at_once, late) = (Some((SEGV_MTESERR, *page)), Some((SEGV_MTEAERR, 0)));
            match mode {
                0 => equal((name, "without checks"), (fault, stored()), (None, stores)),
                PR_MTE_TCF_SYNC => equal((name, "at once"), (fault, stored()), (at_once, false)),
                PR_MTE_TCF_ASYNC => equal((name, "late"), (fault, stored()), (late, stores)),
                _ if fault == late => equal((name, "late, for either"), stored(), stores),
                _ => equal((name, "for either"), (fault, stored()), (at_once, false)),
            }
        }
    }
    set_mode(PR_MTE_TCF_SYNC);
    store_unchecked(wrong);
    equal("PSTATE.TCO", taken(), None);
}

fn a_fill_stops_at_the_first_byte_of_another_tag() {
    let page = map_private(TAGGED);
    set_mode(PR_MTE_TCF_SYNC);
    for bytes in [1_u64, 15, 16, 17, 100, 555, 1033, 1340] {
        let rounded = bytes.next_multiple_of(GRANULE);
        let buffer = irg(*page + 1024);
        holds("a tag but zero", buffer & TAG_BITS != 0);
        set_tags(buffer, rounded);
        (0..rounded).for_each(|index| store(buffer + index));
        equal(("inside", bytes), taken(), None);
        store(buffer + rounded);
        equal(("behind", bytes), taken(), Some((SEGV_MTESERR, *page + 1024 + rounded)));
        store(buffer - 1);
        equal(("before", bytes), taken(), Some((SEGV_MTESERR, *page + 1023)));
        holds("all stored", (0..rounded).all(|index| load(buffer + index) == 0x5a));
        set_tags(*page + 1024, rounded);
    }
    // A word over the border of two tags.
    stg((*page + GRANULE) | tag(3));
    instruction!("str x9, [x10]", *page + GRANULE - 4);
    equal("across", taken().map(|(code, at)| (code, at & !0xf)), Some((SEGV_MTESERR, *page + GRANULE)));
}

fn addresses_keep_the_tag_that_is_asked_for() {
    let page = map_private(TAGGED);
    set_mode(PR_MTE_TCF_SYNC);
    handle(SIGSEGV, SA_EXPOSE_TAGBITS);
    store(*page | tag(9));
    equal("exposed", taken(), Some((SEGV_MTESERR, *page | tag(9))));
    // The upper bits are none of the tag that is checked.
    store(*page | tag(0x79));
    equal("the upper half is not", taken(), Some((SEGV_MTESERR, *page | tag(9))));
    store(*page | tag(0x70));
    equal("nor checked", taken(), None);
    handle(SIGSEGV, 0);
}

fn handlers_are_checked_and_override_nothing() {
    let page = map_private(TAGGED);
    set_mode(PR_MTE_TCF_SYNC);
    handle(SIGUSR1, 0);
    TARGET.store(*page | tag(2), Ordering::Relaxed);
    instruction!("msr tco, #1", 0);
    process::kill(process::id() as i32, SIGUSR1).expect("sent");
    store(*page | tag(3));
    instruction!("msr tco, #0", 0);
    // The handler's own store, and not the one after it, which the program left unchecked.
    equal("checked in the handler", taken(), Some((SEGV_MTESERR, *page)));
}

fn late_faults_wait_like_other_signals() {
    let page = map_private(TAGGED);
    let blocked = |how| equal("masked", signal::mask(how, signal::set_of(SIGSEGV)).map(|_| ()), Ok(()));
    set_mode(PR_MTE_TCF_ASYNC);
    blocked(SIG_BLOCK);
    store(*page | tag(3));
    equal("blocked", taken(), None);
    blocked(SIG_UNBLOCK);
    equal("and then not", taken(), Some((SEGV_MTEAERR, 0)));
    let without_handler = |handler| {
        signal::set_without_handler(SIGSEGV, handler);
    };
    let end_behind = |before: &dyn Fn()| {
        process::run(|| {
            before();
            store(*page | tag(3));
        })
    };
    equal("ignored", end_behind(&|| without_handler(SIG_IGN)), exited(0));
    equal("before the exit", end_behind(&|| without_handler(0)), killed(SIGSEGV));
    set_mode(PR_MTE_TCF_SYNC);
    equal("at once: not ignored", end_behind(&|| without_handler(SIG_IGN)), killed(SIGSEGV));
    equal("at once: not blocked", end_behind(&|| blocked(SIG_BLOCK)), killed(SIGSEGV));
}

fn mappings_are_checked_by_their_protection() {
    set_mode(PR_MTE_TCF_SYNC);
    let page = map_private(RW);
    store(*page | tag(3));
    equal("without PROT_MTE", (taken(), ldg(*page | tag(3))), (None, *page));
    let protect = |protection| call(MPROTECT, [*page, PAGE, protection]);
    equal("with it", protect(TAGGED), Ok(0));
    equal("tags are zero", (ldg(*page | tag(3)), load(*page), taken()), (*page, 0x5a, None));
    store(*page | tag(3));
    equal("from now on", taken(), Some((SEGV_MTESERR, *page)));
    stg(*page | tag(4));
    for protection in [RW, PROT_READ, 0, PROT_READ | PROT_MTE, RW] {
        equal(("protected", protection), protect(protection), Ok(0));
    }
    equal("and it stays", (ldg(*page), load(*page | tag(4))), (*page | tag(4), 0x5a));
    store(*page);
    equal("checked", taken(), Some((SEGV_MTESERR, *page)));
    for mode in MODES {
        set_mode(mode);
        store(*page | tag(4));
        equal(("its own tag in mode", mode), taken(), None);
    }
    equal("given up", call(MADVISE, [*page, PAGE, MADV_DONTNEED]), Ok(0));
    equal("tags of zero again", (ldg(*page | tag(4)), load(*page)), (*page, 0));
}

fn new_memory_has_tags_of_zero() {
    set_mode(PR_MTE_TCF_SYNC);
    let anonymous = [MAP_PRIVATE, MAP_SHARED].map(|sharing| (sharing | MAP_ANONYMOUS, u64::MAX));
    let of_files = [MAP_PRIVATE, MAP_SHARED].map(|sharing| (sharing, file(1)));
    for (flags, file) in anonymous.into_iter().chain(of_files) {
        for stores_first in [false, true] {
            let page = Pages::of(file, 0, 1, TAGGED, flags).expect("memory");
            if stores_first {
                store(*page + 100);
            }
            let zero = (0..PAGE / GRANULE).all(|granule| ldg((*page + granule * GRANULE) | TAG_BITS) & TAG_BITS == 0);
            holds(("zero", flags, stores_first), zero && taken().is_none());
            set_tags(*page | tag(7), PAGE);
            store(*page | tag(7));
            equal("and then not", taken(), None);
            // The next frame of new memory is likely this one; a file keeps its page.
            if file != u64::MAX {
                set_tags(*page, PAGE);
            }
        }
    }
}

fn children_have_tags_of_their_own() {
    for mode in [PR_MTE_TCF_SYNC, PR_MTE_TCF_ASYNC] {
        set_mode(mode);
        let code = if mode == PR_MTE_TCF_SYNC { SEGV_MTESERR } else { SEGV_MTEAERR };
        let pages = [MAP_PRIVATE, MAP_SHARED].map(|kind| Pages::map(1, TAGGED, kind).expect("memory"));
        let [private, shared] = pages.each_ref().map(|page| **page | tag(6));
        for page in [private, shared] {
            set_tags(page, 2 * GRANULE);
            store(page);
        }
        apart(|| {
            equal("the mode", control(), Ok(PR_TAGGED_ADDR_ENABLE | mode | 0xfffe << PR_MTE_TAG_SHIFT));
            for page in [private, shared] {
                equal("inherited", (ldg(page), load(page)), (page, 0x5a));
                // The first store copies the private page, with its tags.
                store(page + 1);
                equal("and kept", (ldg(page + GRANULE), taken()), (page + GRANULE, None));
                store(page ^ TAG_BITS);
                equal("checked", taken().map(|(code, _)| code), Some(code));
                stg(page & !TAG_BITS);
            }
        });
        equal("a private page's own", (ldg(private), load(private)), (private, 0x5a));
        equal("a shared one's", ldg(shared), shared & !TAG_BITS);
    }
}

fn buffers_of_calls_are_checked() {
    const BYTES: u64 = 512;
    let page = map_private(TAGGED);
    let file = file(1);
    let offset = |at: u64| equal("the position", call(LSEEK, [file, at, 0]), Ok(at));
    for (name, number) in [("read", READ), ("write", WRITE), ("readv", READV), ("writev", WRITEV)] {
        for start in [0, 5, 250] {
            for bad in [0, 16, 32, 208, 496] {
                let buffer = *page + 16 + start;
                let from = (buffer & !(GRANULE - 1)) + bad;
                let before = from.saturating_sub(buffer);
                set_tags(from | tag(8), PAGE - (from - *page));
                let pieces = [IoVec { base: buffer, length: 100 }, IoVec { base: buffer + 100, length: BYTES - 100 }];
                let (at, length) =
                    if number == READV || number == WRITEV { (pieces.as_ptr() as u64, 2) } else { (buffer, BYTES) };
                for mode in [PR_MTE_TCF_SYNC, PR_MTE_TCF_ASYNC, 0] {
                    set_mode(mode);
                    offset(0);
                    let moved = match (mode, before) {
                        (PR_MTE_TCF_SYNC, 0) => Err(EFAULT),
                        (PR_MTE_TCF_SYNC, _) => Ok(before),
                        _ => Ok(BYTES),
                    };
                    let question = (name, start, bad, "in mode", mode);
                    equal(question, (call(number, [file, at, length]), taken()), (moved, None));
                }
                set_mode(0);
                set_tags(*page, PAGE);
            }
        }
    }
    set_mode(PR_MTE_TCF_SYNC);
    let word = *page | tag(1);
    equal("a word", call(FUTEX, [word, FUTEX_WAIT, 1, 0]), Err(EFAULT));
    equal("that is not read", call(FUTEX, [word, FUTEX_WAKE, 1]), Ok(0));
    equal("random bytes", call(GETRANDOM, [word, 16, 0]), Err(EFAULT));
    set_mode(PR_MTE_TCF_ASYNC);
    equal("random bytes, late", (call(GETRANDOM, [word, 16, 0]), taken()), (Ok(16), None));
}

/// The tag of strings, and that of the granules behind them.
const OF_STRINGS: u64 = tag(5);
const BEHIND: u64 = tag(8);

/// Puts `text`, with a final zero or without, right in front of a granule at `end` with another tag; returns its
/// address with its tag. No access is checked afterwards.
fn place(text: &[u8], end: u64) -> u64 {
    set_mode(0);
    let start = end - text.len() as u64;
    let first = start & !(GRANULE - 1);
    for (byte, at) in text.iter().zip(start..) {
        // SAFETY: in the test's own page, which has no references.
        unsafe { (at as *mut u8).write_volatile(*byte) };
    }
    set_tags(first | OF_STRINGS, end - first);
    stg(end | BEHIND);
    start | OF_STRINGS
}

/// The bytes of `text` and a final zero.
fn with_zero<const N: usize>(text: &[u8]) -> [u8; N] {
    core::array::from_fn(|index| text.get(index).copied().unwrap_or(0))
}

fn strings_of_calls_are_checked_to_their_end(path: &CStr) {
    const CHECKED: [u64; 3] = [PR_MTE_TCF_SYNC, PR_MTE_TCF_ASYNC, PR_MTE_TCF_MASK];
    let page = map_private(TAGGED);
    // No multiple of what the kernel reads at once, which would then end with the string.
    let end = *page + 2048 + 5 * GRANULE;
    let open = |at| call(OPENAT, [HERE, at, O_RDONLY.into()]);
    // Through several pieces of what the kernel reads at once, and within one granule.
    let missing: [u8; 601] = with_zero(&[b'x'; 600]);
    for mode in CHECKED {
        for bytes in [2, 16, 17, 256, 257, 601] {
            let at = place(&missing[601 - bytes..], end);
            set_mode(mode);
            let found = if bytes > 256 { ENAMETOOLONG } else { ENOENT };
            equal(("a path of", bytes, "in mode", mode), (open(at), taken()), (Err(found), None));
        }
        let at = place(path.to_bytes_with_nul(), end);
        set_mode(mode);
        let file = open(at);
        holds(("the program's own path in mode", mode), file.is_ok() && taken().is_none());
        equal("closed", call(CLOSE, [file.unwrap_or_default()]), Ok(0));

        for bytes in [2, 100, 250] {
            let at = place(&missing[601 - bytes..], end);
            set_mode(mode);
            let file = call(MEMFD_CREATE, [at, 0]);
            holds(("a file's name of", bytes, "in mode", mode), file.is_ok() && taken().is_none());
            equal("closed", call(CLOSE, [file.unwrap_or_default()]), Ok(0));
        }

        // One that is shorter than what a name holds, and one that is cut off.
        for text in [&b"short\0"[..], b"of fifteen char", b"1\0"] {
            let at = place(text, end);
            set_mode(mode);
            let mut name = [0; 64];
            equal(("a name in mode", mode), call(PRCTL, [PR_SET_NAME, at]), Ok(0));
            equal("to read", call(PRCTL, [PR_GET_NAME, name.as_mut_ptr() as u64]), Ok(0));
            equal("it is", (name, taken()), (with_zero(text), None));
        }
        an_exec_reads_its_strings(mode, path, *page);
    }
    for without_end in [&b"x"[..], &[b'x'; 16], &[b'x'; 300]] {
        let at = place(without_end, end);
        set_mode(PR_MTE_TCF_SYNC);
        let error = Err(EFAULT);
        equal("a path that goes on", open(at), error);
        let (is_name, is_cut_off) = (without_end.len() < 250, without_end.len() >= 15);
        equal("a name of a file", call(MEMFD_CREATE, [at, 0]), if is_name { error } else { Err(EINVAL) });
        equal("a name", call(PRCTL, [PR_SET_NAME, at]), if is_cut_off { Ok(0) } else { error });
        equal("a program", call(EXECVE, [at, 0, 0]), error);
        set_mode(PR_MTE_TCF_ASYNC);
        // The string goes on in the next granule, whose bytes are zero.
        equal("late", (call(PRCTL, [PR_SET_NAME, at]), taken()), (Ok(0), None));
    }
}

/// Runs this program again, with its path, arguments and environment in front of granules with other tags.
fn an_exec_reads_its_strings(mode: u64, path: &CStr, page: u64) {
    let path = place(path.to_bytes_with_nul(), page + 10 * GRANULE);
    let [again, variable] =
        [(&b"again\0"[..], 20), (b"A=1\0", 30)].map(|(text, end)| place(text, page + end * GRANULE));
    let (arguments, environment) = ([path, again, 0], [variable, 0]);
    set_mode(mode);
    let execs = || u8::from(call(EXECVE, [path, arguments.as_ptr() as u64, environment.as_ptr() as u64]).is_err());
    equal(("an exec in mode", mode), process::run(execs), exited(0));
    equal("no fault", taken(), None);
}

/// For a thread of its own mode and tags: faults, and tags of IRG, while others run.
fn keeps_its_own_mode(number: usize) {
    const TURNS: u32 = 60;
    let included = 0b11 << number;
    let mode = [0, PR_MTE_TCF_SYNC][number % 2];
    let wanted = PR_TAGGED_ADDR_ENABLE | mode | included << PR_MTE_TAG_SHIFT;
    equal("set", set_control(wanted), Ok(0));
    let page = map_private(TAGGED);
    for _ in 0..TURNS {
        holds(("tags of thread", number), found() & !included == 0);
        process::sched_yield();
        let before = OWN_FAULTS[number].load(Ordering::Relaxed);
        ADDRESSES[number].store(*page, Ordering::Relaxed);
        store(*page | tag(1));
        let faulted = OWN_FAULTS[number].load(Ordering::Relaxed) != before;
        equal(("faults of thread", number), faulted, mode == PR_MTE_TCF_SYNC);
    }
    equal("kept", control(), Ok(wanted));
}

const THREADS: usize = 12;
static OWN_FAULTS: [AtomicU32; THREADS] = [const { AtomicU32::new(0) }; THREADS];
static ADDRESSES: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

/// Counts for the thread whose page it was.
extern "C" fn count_own(_: u32, info: &SigInfo, context: &mut UContext) {
    for (address, faults) in ADDRESSES.iter().zip(&OWN_FAULTS) {
        if info.code == SEGV_MTESERR && address.load(Ordering::Relaxed) == info.address() {
            faults.fetch_add(1, Ordering::Relaxed);
        }
    }
    context.context.pc += 4;
}

fn threads_keep_their_own_modes() {
    // SAFETY: the handler touches atomics and its frame.
    unsafe { signal::handle(SIGSEGV, count_own, 0, 0) }.expect("a handler");
    thread::all_at_once(THREADS, keeps_its_own_mode);
    handle(SIGSEGV, 0);
}

fn an_exec_resets_the_mode(path: &CStr) {
    set_mode(PR_MTE_TCF_SYNC);
    equal("an exec", process::run(|| process::execute(path, &[path, c"again"]) as u8), exited(0));
}

fn after_an_exec() -> u8 {
    let page = map_private(TAGGED);
    equal("no control", control(), Ok(0));
    equal("no tags", found(), 1);
    store(*page | tag(3));
    status("again")
}
