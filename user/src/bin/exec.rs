//! execve: argument lists up to Linux's limits, empty ones, the errors for bad paths and pointers, scripts, and programs
//! that ask for a dynamic linker.
//!
//! The program executes itself: an environment of one variable selects the checks of the copy. `exec FILE` executes
//! another, and exits with the error's number.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::ffi::c_char;
use core::ptr::null;

use granule_user::prelude::*;

entry!(run);
own!(call);

/// Bytes that argv, envp and their strings may have together: a quarter of the 8 MiB that a stack may have by default.
const LIMIT: usize = 2 << 20;
/// Bytes that one string may have, its final zero included.
const STRING: usize = 128 << 10;
/// The status of a copy whose arguments are the expected ones.
const FOUND: u8 = 42;

fn run(start: Start) -> u8 {
    let variable = start.environment().next();
    if let Some(what) = variable.and_then(|word| word.strip_prefix("FIND=")) {
        return look(&start, what);
    }
    if let Some(words) = variable.and_then(|word| word.strip_prefix("WORDS=")) {
        return look_for(&start, words);
    }
    if variable == Some("LINKS") {
        return links(&start);
    }
    if let Some(file) = start.arguments().nth(1) {
        // A zero follows each argument.
        let list = [file.as_ptr(), null()];
        return answer(file.as_ptr() as u64, list.as_ptr() as u64, 0);
    }
    let path = start.path();
    parts! { (path)
        empty_lists long_lists long_strings the_limit bad_pointers paths scripts linkers
    }
    status("exec")
}

/// In the copy: whether it has the arguments that it was to get.
fn look(start: &Start, what: &str) -> u8 {
    let mut words = what.split(':').map(|word| word.parse::<usize>().unwrap_or(usize::MAX));
    let (count, length) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut found = 0;
    let mut right = start.count() == count;
    for (index, word) in start.arguments().enumerate() {
        found += 1;
        right &= word.len() == length && word.bytes().all(|byte| byte == letter(index));
    }
    if right && found == count { FOUND } else { 1 }
}

/// In the copy: whether it was executed by the first of these words, and has the others as arguments.
fn look_for(start: &Start, words: &str) -> u8 {
    let mut words = words.split('|');
    let path = start.path();
    let is_called = words.next().is_some_and(|word| word.as_bytes() == path.to_bytes());
    if is_called && start.arguments().eq(words) { FOUND } else { 1 }
}

/// The letter that fills argument number `index`.
const fn letter(index: usize) -> u8 {
    b'a' + (index % 26) as u8
}

/// Executes this program in a child, with an environment of one variable: how the child ended, or the error's number.
fn execute(path: &CStr, arguments: u64, find: &CStr) -> u32 {
    let environment = [find.as_ptr(), null()];
    process::run(|| answer(path.as_ptr() as u64, arguments, environment.as_ptr() as u64))
}

/// The error of a call to execve.
fn answer(path: u64, arguments: u64, environment: u64) -> u8 {
    call(EXECVE, [path, arguments, environment]).map_or_else(|error| error as u8, |_| 0)
}

/// An argument list in memory of its own.
struct List {
    start: u64,
    bytes: u64,
    count: usize,
}

impl List {
    /// `count` arguments of `length` letters each.
    fn new(count: usize, length: usize) -> Self {
        let bytes = ((count + 1) * 8 + count * (length + 1)) as u64;
        let bytes = bytes.next_multiple_of(PAGE);
        let start = map(bytes, RW).expect("memory");
        let mut string = start + (count as u64 + 1) * 8;
        for index in 0..count {
            // SAFETY: fresh memory with room for all of it.
            unsafe {
                (start as *mut u64).add(index).write(string);
                core::ptr::write_bytes(string as *mut u8, letter(index), length);
            }
            string += length as u64 + 1;
        }
        Self { start, bytes, count }
    }

    fn set(&self, index: usize, pointer: u64) {
        assert!(index <= self.count);
        // SAFETY: an entry of the list.
        unsafe { (self.start as *mut u64).add(index).write(pointer) };
    }
}

impl Drop for List {
    fn drop(&mut self) {
        call(MUNMAP, [self.start, self.bytes]).expect("memory to unmap");
    }
}

/// How a child ended that got `count` arguments of `length` letters.
fn with(path: &CStr, count: usize, length: usize, find: &CStr) -> u32 {
    let list = List::new(count, length);
    execute(path, list.start, find)
}

const TOO_BIG: u32 = exited(E2BIG as u8);
const BAD: u32 = exited(EFAULT as u8);

fn empty_lists(path: &CStr) {
    equal("argv is a null pointer", execute(path, 0, c"FIND=1:0"), exited(FOUND));
    let empty = [0_u64];
    equal("argv is empty", execute(path, empty.as_ptr() as u64, c"FIND=1:0"), exited(FOUND));
}

fn long_lists(path: &CStr) {
    equal("4097 arguments", with(path, 4097, 3, c"FIND=4097:3"), exited(FOUND));
    equal("60000 arguments", with(path, 60_000, 20, c"FIND=60000:20"), exited(FOUND));
    equal("200000 empty ones", with(path, 200_000, 0, c"FIND=200000:0"), exited(FOUND));
    equal("262144 empty ones", with(path, LIMIT / 8, 0, c"FIND=262144:0"), TOO_BIG);
}

fn long_strings(path: &CStr) {
    // With less than 256 bytes left of 128 KiB for the environment.
    equal("one of 130971", with(path, 1, 130_971, c"FIND=1:130971"), exited(FOUND));
    equal("one of 128 KiB less the zero", with(path, 1, STRING - 1, c"FIND=1:131071"), exited(FOUND));
    equal("one of 128 KiB", with(path, 1, STRING, c"FIND=1:131072"), TOO_BIG);
    equal("fifteen of them", with(path, 15, STRING - 1, c"FIND=15:131071"), exited(FOUND));
    equal("sixteen of them", with(path, 16, STRING - 1, c"FIND=16:131071"), TOO_BIG);
}

/// Exactly as much as there may be, and one byte more.
fn the_limit(path: &CStr) {
    let find = c"FIND=?";
    // Fifteen long ones and one that fills up: pointers, strings, the variable, and the path.
    let used = 17 * 8 + 15 * STRING + find.to_bytes_with_nul().len() + path.to_bytes_with_nul().len();
    for (more, end) in [(0, exited(1)), (1, TOO_BIG)] {
        let list = List::new(16, STRING - 1);
        let last = List::new(1, LIMIT - used - 1 + more);
        // SAFETY: the only string of the other list.
        list.set(15, unsafe { *(last.start as *const u64) });
        equal(("the limit and", more), execute(path, list.start, find), end);
    }
}

fn bad_pointers(path: &CStr) {
    let at = |pointer: u64| execute(path, pointer, c"FIND=0:0");
    for bad in [NOWHERE, KERNEL, u64::MAX - 7] {
        equal(("argv", bad), at(bad), BAD);
        let list = [bad, 0];
        equal(("argv[0]", bad), at(list.as_ptr() as u64), BAD);
        equal(("envp", bad), process::run(|| answer(path.as_ptr() as u64, 0, bad)), BAD);
    }
    // Strings are copied from the last one to the first.
    let list = List::new(2, STRING);
    list.set(0, NOWHERE);
    equal("a bad one before one that is too long", at(list.start), TOO_BIG);
    let list = List::new(2, STRING);
    list.set(1, NOWHERE);
    equal("a bad one behind one that is too long", at(list.start), BAD);
    // An array without an end, up to a page that is not mapped; and strings at the end of a page.
    let pages = map(2 * PAGE, RW).expect("pages");
    // SAFETY: this function's pages.
    unsafe {
        call(MUNMAP, [pages + PAGE, PAGE]).expect("a hole");
        core::ptr::write_bytes(pages as *mut u8, 1, PAGE as usize);
        ((pages + PAGE - 8) as *mut u64).write(path.as_ptr() as u64);
    }
    equal("argv has no end", at(pages + PAGE - 8), BAD);
    // SAFETY: as above.
    unsafe { core::ptr::write_bytes((pages + PAGE - 8) as *mut u8, b'a', 8) };
    let list = [pages + PAGE - 1, 0];
    equal("a string has no end", at(list.as_ptr() as u64), BAD);
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(c"aaaaaaa".as_ptr(), (pages + PAGE - 8) as *mut c_char, 8) };
    let list = [pages + PAGE - 8, 0];
    let end = execute(path, list.as_ptr() as u64, c"FIND=1:7");
    equal("a string ends with its page", end, exited(FOUND));
    call(MUNMAP, [pages, PAGE]).expect("a page to unmap");
}

/// A regular file that is there and may not be executed. A kernel that can write files has it made.
const PLAIN: &CStr = c"/plain";

fn make_plain() {
    // Where no file can be made it is in the initrd.
    let _ = call(OPENAT, [HERE, PLAIN.as_ptr() as u64, O_CREAT.into(), 0o644]);
}

fn paths(path: &CStr) {
    make_plain();
    let ask = |path: &[u8]| {
        let bytes = (path.len() as u64 + 1).next_multiple_of(PAGE);
        let copy = map(bytes, RW).expect("memory");
        // SAFETY: fresh memory with room for it.
        unsafe { core::ptr::copy_nonoverlapping(path.as_ptr(), copy as *mut u8, path.len()) };
        // A path that is refused is refused before the arguments are looked at.
        let end = process::run(|| answer(copy, NOWHERE, NOWHERE));
        call(MUNMAP, [copy, bytes]).expect("memory to unmap");
        Errno::from_number((end >> 8) as i32)
    };
    let answers: [(Errno, &[&[u8]]); 4] = [
        (ENOENT, &[b"", b"nosuch", b"nosuch/file", b"nosuch/", b"\xff\xfe", b"nosuch/../plain", &[b'x'; 255]]),
        (EACCES, &[b"plain", b"/./plain", b"/", b".", b"..", b"//..//.//", b"/../plain"]),
        (ENOTDIR, &[b"plain/", b"plain/.", b"plain/..", b"plain/file"]),
        (ENAMETOOLONG, &[&[b'x'; 256]]),
    ];
    for (linux, paths) in answers {
        paths.iter().for_each(|path| equal(path.escape_ascii(), ask(path), Some(linux)));
    }
    let mut long = [b'/'; 4096];
    equal("4096 slashes", ask(&long), Some(ENAMETOOLONG));
    equal("4095 slashes", ask(&long[1..]), Some(EACCES));
    long[..7].copy_from_slice(b"nosuch/");
    long[7..].fill(b'x');
    equal("a long name behind one that is not there", ask(&long[..1000]), Some(ENOENT));
    long[..7].copy_from_slice(b"//plain");
    equal("a long name in the root", ask(&long[..1000]), Some(ENAMETOOLONG));
    long[..7].copy_from_slice(b"/plain/");
    equal("a long name behind a file", ask(&long[..1000]), Some(ENOTDIR));
    for bad in [NOWHERE, KERNEL, u64::MAX, 0] {
        equal(("path", bad), process::run(|| answer(bad, 0, 0)), BAD);
    }
    let dotted = joined(b"/.././/", path.to_bytes());
    let dotted = CStr::from_bytes_until_nul(&dotted).expect("a short path");
    equal("another way to the program", execute(dotted, 0, c"FIND=1:0"), exited(FOUND));
}

/// The scripts, by their names. A kernel that can write files has them made, and this program where they look for it.
const SCRIPTS: [(&CStr, &[u8]); 7] = [
    (c"/script-blanks", include_bytes!("../../scripts/script-blanks")),
    (c"/script-open-end", include_bytes!("../../scripts/script-open-end")),
    (c"/script-cut", include_bytes!("../../scripts/script-cut")),
    (c"/script-nested", include_bytes!("../../scripts/script-nested")),
    (c"/script-loop", include_bytes!("../../scripts/script-loop")),
    (c"/script-missing", include_bytes!("../../scripts/script-missing")),
    (c"/script-nothing", include_bytes!("../../scripts/script-nothing")),
];

fn make_scripts(path: &CStr) {
    const SYMLINKAT: usize = 36;
    // SAFETY: it changes no memory. Where there is no such call, all of it is in the initrd.
    unsafe { sys::raw(SYMLINKAT, [path.as_ptr() as u64, HERE, c"/exec".as_ptr() as u64, 0, 0, 0]) };
    for (name, contents) in SCRIPTS {
        let made = call(OPENAT, [HERE, name.as_ptr() as u64, (O_CREAT | O_WRONLY).into(), 0o755]);
        let _ = made.map(|file| File(file).write(contents));
    }
}

/// Scripts, with no arguments and with some: their interpreter has its own path, its argument, the path of the script in
/// place of its name, and the rest; in the auxiliary vector is the script's path.
fn scripts(path: &CStr) {
    make_scripts(path);
    const { assert!(SCRIPTS[2].1.len() > 256) };
    for (path, words) in [
        (c"/script-blanks", c"WORDS=/script-blanks|/exec|a b|/script-blanks"),
        (c"./script-blanks", c"WORDS=./script-blanks|/exec|a b|./script-blanks"),
        (c"/script-open-end", c"WORDS=/script-open-end|/exec|/script-open-end"),
        (c"/script-nested", c"WORDS=/script-nested|/exec|a b|/script-blanks|more|/script-nested"),
    ] {
        let more = joined(words.to_bytes(), b"|one|two three");
        let more = CStr::from_bytes_until_nul(&more).expect("a variable");
        equal((path, "without arguments"), execute(path, 0, words), exited(FOUND));
        let list = [c"zero".as_ptr(), null()];
        equal((path, "with its name"), execute(path, list.as_ptr() as u64, words), exited(FOUND));
        let list = [c"zero".as_ptr(), c"one".as_ptr(), c"two three".as_ptr(), null()];
        equal((path, "with more"), execute(path, list.as_ptr() as u64, more), exited(FOUND));
    }
    // As much as is looked at.
    let mut words = [b'x'; 300];
    let (before, behind) = (b"WORDS=/script-cut|/exec|", b"|/script-cut\0");
    words[..before.len()].copy_from_slice(before);
    words[before.len() + 247..][..behind.len()].copy_from_slice(behind);
    let words = CStr::from_bytes_until_nul(&words).expect("a variable");
    equal("an argument that is cut off", execute(c"/script-cut", 0, words), exited(FOUND));
    for (path, error) in [(c"/script-loop", ELOOP), (c"/script-missing", ENOENT), (c"/script-nothing", ENOEXEC)] {
        equal(path, execute(path, 0, c"WORDS="), exited(error as u8));
    }
}

/// Where a program with a dynamic linker lies, and its first instruction, which is never executed.
const DYNAMIC: u64 = 0x5000_0000;
const ENTRY: u64 = DYNAMIC + 0x40;
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Bytes of the program: the headers, and the path.
const PROGRAM: usize = 0x200;
const PATH: usize = FILE_HEADER + 2 * PROGRAM_HEADER;

/// As the dynamic linker of another program: whether it finds that.
fn links(start: &Start) -> u8 {
    let found = [AT_BASE, AT_ENTRY, AT_PHDR, AT_PHNUM].map(|key| start.auxiliary(key).unwrap_or(u64::MAX));
    // This program has addresses of its own.
    if found == [0, ENTRY, DYNAMIC + FILE_HEADER as u64, 2] { FOUND } else { 1 }
}

/// Executes a program whose dynamic linker's path is the `bytes` that lie at `offset` of its file.
fn execute_linked(path: &[u8], offset: usize, bytes: usize) -> u32 {
    let mut program = [0; PROGRAM];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        program[at..][..bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put([2_u16, 183, 1, 0].map(u16::to_le_bytes).as_flattened());
    put([ENTRY, FILE_HEADER as u64, 0].map(u64::to_le_bytes).as_flattened());
    put([0_u16, 0, FILE_HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0].map(u16::to_le_bytes).as_flattened());
    let (load, interpreter) =
        ([1 | 5 << 32, 0, DYNAMIC, DYNAMIC, PROGRAM as u64], [3, offset as u64, 0, 0, bytes as u64]);
    for header in [load, interpreter] {
        put(header.map(u64::to_le_bytes).as_flattened());
        put([header[4], PAGE].map(u64::to_le_bytes).as_flattened());
    }
    put(path);
    let name = c"/dynamic";
    let made = call(OPENAT, [HERE, name.as_ptr() as u64, (O_CREAT | O_TRUNC | O_WRONLY).into(), 0o755]);
    File(made.expect("a file")).write(&program).expect("to write it");
    execute(name, 0, c"LINKS")
}

fn linkers(_: &CStr) {
    let whole = |path: &[u8]| execute_linked(path, PATH, path.len());
    equal("by its path", whole(b"/exec\0"), exited(FOUND));
    equal("from here", whole(b"exec\0"), exited(FOUND));
    equal("a path before the end", whole(b"/exec\0/nosuch\0"), exited(FOUND));
    equal("one that lies anywhere", whole(b"/pie\0"), exited(0));
    for (path, error) in [
        (&b"/nosuch\0"[..], ENOENT),
        (b"\0\0", EACCES),
        (b"/plain\0", EACCES),
        (b"/plain/file\0", ENOTDIR),
        (b"/script-cut\0", ELIBBAD),
        (b"/script-nothing\0", EIO),
        (b"/exec", ENOEXEC),
        (b"\0", ENOEXEC),
    ] {
        equal(path.escape_ascii(), whole(path), exited(error as u8));
    }
    equal("a long path", execute_linked(b"/exec\0", PATH, 4097), exited(ENOEXEC as u8));
    equal("one behind the file", execute_linked(b"/exec\0", PROGRAM, 16), exited(EIO as u8));
    equal("one that ends behind it", execute_linked(b"/exec\0", PROGRAM - 8, 16), exited(EIO as u8));
}

/// Both, one behind the other, with zeros behind them.
fn joined(first: &[u8], second: &[u8]) -> [u8; 256] {
    let mut bytes = [0; 256];
    bytes.iter_mut().zip(first.iter().chain(second)).for_each(|(to, from)| *to = *from);
    bytes
}
