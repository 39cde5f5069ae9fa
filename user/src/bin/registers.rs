//! Registers of a device in a process: what it may do with them, and what each call on them answers.
//!
//! `registers` waits until a device is bound to it, `/dev/edu0`, uses it, waits until it is unbound, and bound again. At
//! [`STAGE`] it says how far it has come, for what binds it. Where there is no such file, as on Linux, `/dev/mem` stands for
//! it, and the answers of calls are compared alone.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, put, unmap, protect);

/// Where the program says how far it has come: a byte.
const STAGE: u64 = 0x7000_0000_0000;

/// Offsets in the registers of `edu` (QEMU's docs/specs/edu.rst).
const IDENTIFICATION: u64 = 0;
const LIVENESS: u64 = 4;
const FACTORIAL: u64 = 8;
const FACTORIAL_STATUS: u64 = 0x20;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const DMA_START: u32 = 1;
const DMA_FROM_DEVICE: u32 = 2;
/// Where the device's own memory is, for its transfers.
const DEVICE_MEMORY: u64 = 0x4_0000;
/// Memory that the device reaches, whatever bits of an address it has.
const REACHED: u64 = 0x800_0000;

/// The registers' file and the offset that is mapped.
#[derive(Clone, Copy)]
struct File {
    descriptor: u64,
    offset: u64,
    is_edu: bool,
}

fn run(start: Start) -> u8 {
    probe::prepare();
    let file = File::open();
    if !file.is_edu {
        answers(file);
        return status("registers of memory");
    }
    // SAFETY: nothing else is there.
    let stage = unsafe { mmap(STAGE, PAGE, RW, PRIVATE | MAP_FIXED) };
    equal("a page", stage, Ok(STAGE));
    if start.arguments().nth(1) == Some("again") {
        // The device stays bound to the space that the exec replaced.
        equal("behind an exec", file.map(RW, MAP_SHARED), Err(ENXIO));
        return status("registers again");
    }
    equal("not bound", file.map(RW, MAP_SHARED), Err(ENXIO));
    file_calls(file);
    let hidden = Hidden::page();
    say(1);
    hidden.is_not_beside(file);
    let at = wait_until_bound(file);
    hidden.stays_readable();
    used(at);
    answers(file);
    refused(file);
    let transferred = transfer(at);
    say(2);
    until(|| probe::read_word(at).is_err());
    equal("unbound", probe::read_word(at), Err(behind_the_end(at)));
    // It ends before the device has other memory. QEMU's takes a tenth of a second for one.
    for _ in 0..2_000 {
        if probe::read(transferred) == Ok(TRANSFERRED) {
            break;
        }
        equal("slept", time::sleep(1_000_000), Ok(()));
    }
    equal("a transfer that was under way", probe::read(transferred), Ok(TRANSFERRED));
    equal("unbound, once more", put_word(at + LIVENESS, 1), Err(behind_the_end(at + LIVENESS)));
    equal("not bound any more", file.map(RW, MAP_SHARED), Err(ENXIO));
    say(3);
    let new = wait_until_bound(file);
    used(new);
    equal("of the first binding", probe::read_word(at), Err(behind_the_end(at)));
    unmap(at, 1);
    let result = status("registers");
    if result == 0 {
        again();
    }
    result
}

/// Stores a word, or returns the fault.
fn put_word(at: u64, value: u32) -> Result<(), Fault> {
    // SAFETY: where it may be written, it is the device's.
    unsafe { probe::write_word(at, value) }
}

/// Says how far the program has come.
fn say(stage: u8) {
    equal("said", put(STAGE, stage), Ok(()));
}

impl File {
    fn open() -> Self {
        /// QEMU's clock, on Linux.
        const CLOCK: u64 = 0x901_0000;
        match open(c"/dev/edu0", O_RDWR) {
            Ok(descriptor) => Self { descriptor, offset: 0, is_edu: true },
            Err(_) => {
                const MKNODAT: usize = 33;
                let path = c"/dev/mem";
                let made = call(MKNODAT, [HERE, path.as_ptr().addr() as u64, u64::from(S_IFCHR | 0o600), 1 << 8 | 1]);
                equal("a node", made, Ok(0));
                let descriptor = open(path, O_RDWR).expect("a file");
                Self { descriptor, offset: CLOCK, is_edu: false }
            }
        }
    }

    fn map(self, protection: u64, flags: u64) -> Result<u64, Errno> {
        self.map_at(0, PAGE, protection, flags)
    }

    fn map_at(self, at: u64, bytes: u64, protection: u64, flags: u64) -> Result<u64, Errno> {
        call(MMAP, [at, bytes, protection, flags, self.descriptor, self.offset])
    }
}

fn open(path: &CStr, flags: u32) -> Result<u64, Errno> {
    call(OPENAT, [HERE, path.as_ptr().addr() as u64, u64::from(flags)])
}

fn map_when_bound(file: File) -> Result<u64, Errno> {
    loop {
        match file.map(RW, MAP_SHARED) {
            Err(ENXIO) => process::sched_yield(),
            mapped => return mapped,
        }
    }
}

fn wait_until_bound(file: File) -> u64 {
    map_when_bound(file).expect("registers")
}

/// A page that may only be executed. The device would read it for a program that has its registers.
struct Hidden {
    at: u64,
    /// The CPUs have such pages.
    is_hidden: bool,
}

impl Hidden {
    fn page() -> Self {
        // SAFETY: new memory.
        let at = unsafe { mmap(0, PAGE, RW, PRIVATE) }.expect("a page");
        equal("only executed", call(MPROTECT, [at, PAGE, PROT_EXEC]), Ok(0));
        Self { at, is_hidden: probe::read(at).is_err() }
    }

    fn refusal(&self) -> Option<Errno> {
        self.is_hidden.then_some(EACCES)
    }

    /// No registers are mapped beside it, until it may be read.
    fn is_not_beside(&self, file: File) {
        let mapped = map_when_bound(file);
        equal("registers beside it", mapped.err(), self.refusal());
        if let Ok(at) = mapped {
            unmap(at, 1);
        }
        equal("readable", call(MPROTECT, [self.at, PAGE, PROT_READ | PROT_EXEC]), Ok(0));
    }

    /// Nor is it, or another, execute-only beside them.
    fn stays_readable(&self) {
        equal("only executed again", call(MPROTECT, [self.at, PAGE, PROT_EXEC]).err(), self.refusal());
        let other = call(MMAP, [0, PAGE, PROT_EXEC, PRIVATE, u64::MAX, 0]);
        equal("another", other.err(), self.refusal());
        holds("still read", probe::read(self.at).is_ok());
    }
}

/// Calls on the file of a device, which is neither read nor written, nor has a size.
fn file_calls(file: File) {
    let mut byte = [0_u8];
    let byte = byte.as_mut_ptr().addr() as u64;
    let descriptor = file.descriptor;
    equal("read", call(READ, [descriptor, byte, 1]), Err(EINVAL));
    equal("read to nowhere", call(READ, [descriptor, 1 << 63, 1]), Err(EINVAL));
    equal("readv from nowhere", call(READV, [descriptor, 1 << 63, 1]), Err(EINVAL));
    equal("writev from nowhere", call(WRITEV, [descriptor, 1 << 63, 1]), Err(EINVAL));
    equal("read of nothing", call(READ, [descriptor, byte, 0]), Err(EINVAL));
    equal("write", call(WRITE, [descriptor, byte, 1]), Err(EINVAL));
    equal("pread", call(PREAD64, [descriptor, byte, 1, 0]), Err(EINVAL));
    equal("pwrite", call(PWRITE64, [descriptor, byte, 1, 0]), Err(EINVAL));
    equal("lseek", call(LSEEK, [descriptor, 0, 0]), Err(ESPIPE));
    equal("ftruncate", call(FTRUNCATE, [descriptor, 0]), Err(EINVAL));
    equal("fallocate", call(FALLOCATE, [descriptor, 0, 0, 1]), Err(ENODEV));
    equal("fsync", call(FSYNC, [descriptor]), Err(EINVAL));
    let mut stat = Stat::default();
    equal("fstat", call(FSTAT, [descriptor, (&raw mut stat).addr() as u64]), Ok(0));
    equal("the kind", stat.st_mode & S_IFMT, S_IFCHR);
    equal("a name of none", open(c"/dev/edu9", O_RDWR), Err(ENOENT));
    equal("a name with zeros", open(c"/dev/edu00", O_RDWR), Err(ENOENT));
    equal("behind it", open(c"/dev/edu0/x", O_RDWR), Err(ENOTDIR));
}

/// The device answers.
fn used(at: u64) {
    equal("who it is", probe::read_word(at + IDENTIFICATION).map(|word| word & 0xffff), Ok(0xed));
    for value in [0x1234_5678, 0] {
        equal("stored", put_word(at + LIVENESS, value), Ok(()));
        equal("it lives", probe::read_word(at + LIVENESS), Ok(!value));
    }
    equal("5", put_word(at + FACTORIAL, 5), Ok(()));
    until(|| !probe::read_word(at + FACTORIAL_STATUS).is_ok_and(|status| status & 1 != 0));
    equal("5!", probe::read_word(at + FACTORIAL), Ok(120));
}

/// The byte that is transferred.
const TRANSFERRED: u8 = 0x5a;

/// Has the device copy a byte to its own memory, and begins a copy of that to the address that is returned.
fn transfer(at: u64) -> u64 {
    // SAFETY: nothing else is there.
    let memory = unsafe { mmap(REACHED, 2 * PAGE, RW, PRIVATE | MAP_FIXED) };
    equal("memory", memory, Ok(REACHED));
    let (from, to) = (REACHED, REACHED + PAGE);
    equal("from", put(from, TRANSFERRED), Ok(()));
    equal("to", put(to, 1), Ok(()));
    begin(at, from, DEVICE_MEMORY, DMA_START);
    until(|| !probe::read_word(at + DMA_COMMAND).is_ok_and(|command| command & DMA_START != 0));
    begin(at, DEVICE_MEMORY, to, DMA_START | DMA_FROM_DEVICE);
    to
}

/// Begins a transfer of 8 bytes.
fn begin(at: u64, from: u64, to: u64, command: u32) {
    // Addresses of 32 bits are a word.
    for (register, value) in [(DMA_SOURCE, from), (DMA_DESTINATION, to), (DMA_COUNT, 8)] {
        equal("stored", put_word(at + register, value as u32), Ok(()));
    }
    equal("begun", put_word(at + DMA_COMMAND, command), Ok(()));
}

fn advise(at: u64, advice: u64) -> Result<u64, Errno> {
    call(MADVISE, [at, PAGE, advice])
}

/// Linux's answers for a mapping of device registers, which are no memory.
fn answers(file: File) {
    let at = file.map(RW, MAP_SHARED).expect("registers");
    holds("read", probe::read_word(at).is_ok());
    equal("present", present(at, 1), 0);
    let refused = [
        [MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_GUARD_INSTALL],
        [MADV_GUARD_REMOVE, MADV_DOFORK, MADV_DODUMP, MADV_WIPEONFORK, MADV_POPULATE_READ, MADV_POPULATE_WRITE],
    ];
    for &advice in refused.as_flattened() {
        equal(("advice", advice), advise(at, advice), Err(EINVAL));
    }
    for advice in [MADV_KEEPONFORK, MADV_DONTDUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTFORK] {
        equal(("advice", advice), advise(at, advice), Ok(0));
    }
    equal("remove", advise(at, MADV_REMOVE), Err(ENODEV));
    equal("mlock", call(MLOCK, [at, PAGE]), Ok(0));
    for (flags, answer) in [(MS_INVALIDATE, Ok(0)), (MS_ASYNC, Ok(0)), (MS_SYNC, Err(EINVAL))] {
        equal(("msync", flags), call(MSYNC, [at, PAGE, u64::from(flags)]), answer);
    }
    equal("munlock", call(MUNLOCK, [at, PAGE]), Ok(0));
    equal("a word of it", call(FUTEX, [at, FUTEX_WAIT, 0, 0]), Err(EFAULT));

    protect(at, 1, PROT_READ);
    holds("read only", probe::read_word(at).is_ok());
    equal("not written", put_word(at + 8, 0), Err(not_allowed(at + 8)));
    protect(at, 1, PROT_NONE);
    equal("not read", probe::read_word(at), Err(not_allowed(at)));
    protect(at, 1, RW);
    holds("read again", probe::read_word(at).is_ok());

    let mremap = |old: u64, new: u64, flags: u64, to: u64| call(MREMAP, [at, old, new, flags, to]);
    equal("larger", mremap(PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0), Err(EFAULT));
    equal("twice", mremap(0, PAGE, MREMAP_MAYMOVE, 0), Err(EFAULT));
    equal("kept", mremap(PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0), Err(EINVAL));
    let to = at - 64 * PAGE;
    equal("moved", mremap(PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), Ok(to));
    holds("read there", probe::read_word(to).is_ok());
    equal("nothing there", probe::read_word(at), Err(not_mapped(at)));
    apart(|| equal("not in a child", probe::read_word(to), Err(not_mapped(to))));
    unmap(to, 1);

    for flags in [MAP_SHARED | MAP_POPULATE, MAP_SHARED | MAP_LOCKED] {
        let at = file.map(PROT_READ, flags).expect("registers");
        equal(("brought by none", flags), advise(at, MADV_DODUMP), Err(EINVAL));
        holds("read", probe::read_word(at).is_ok());
        unmap(at, 1);
    }
    equal("a stack", file.map(RW, MAP_SHARED | MAP_GROWSDOWN), Err(EINVAL));
    let read_only = if file.is_edu { c"/dev/edu0" } else { c"/dev/mem" };
    let read_only = File { descriptor: open(read_only, O_RDONLY).expect("a file"), ..file };
    equal("without permission", read_only.map(RW, MAP_SHARED), Err(EACCES));
    let at = read_only.map(PROT_READ, MAP_SHARED).expect("registers");
    equal("msync of what is never written", call(MSYNC, [at, PAGE, u64::from(MS_SYNC)]), Ok(0));
    equal("never written", call(MPROTECT, [at, PAGE, RW]), Err(EACCES));
    unmap(at, 1);
}

/// Mappings that the file of a device refuses, and calls with its registers, which are no memory of the kernel's.
fn refused(file: File) {
    let twice = file.map_at(0, 2 * PAGE, RW, MAP_SHARED);
    equal("more than it has", twice, Err(EINVAL));
    for offset in [PAGE, 1 << 63, PAGE.wrapping_neg() - PAGE] {
        equal(("behind it", offset), File { offset, ..file }.map(RW, MAP_SHARED), Err(EINVAL));
    }
    equal("no page", File { offset: PAGE.wrapping_neg(), ..file }.map(RW, MAP_SHARED), Err(EOVERFLOW));
    equal("a copy", file.map(RW, MAP_PRIVATE), Err(EINVAL));
    equal("code", file.map(RW | PROT_EXEC, MAP_SHARED), Err(EPERM));
    let at = file.map(RW, MAP_SHARED).expect("registers");
    equal("code later", call(MPROTECT, [at, PAGE, PROT_READ | PROT_EXEC]), Err(EACCES));
    // A device has words. An access of another size is the hardware's error, or none.
    for offset in [1, 2, 5, 0x1f, PAGE - 1] {
        if let Err(fault) = probe::read(at + offset) {
            equal("a byte", fault.signal, SIGBUS);
        }
    }
    // The result of the kernel's own accesses is the hardware's, too; the kernel goes on in either case.
    let path = c"/registers".as_ptr().addr() as u64;
    for offset in [IDENTIFICATION, 1, FACTORIAL, PAGE - 4] {
        for bytes in [1, 3, 4, 8, 64] {
            let _ = call(WRITE, [file.descriptor, at + offset, bytes]);
            let _ = call(FSTAT, [file.descriptor, at + offset]);
        }
        equal("arguments", call(EXECVE, [path, at + offset, 0]), Err(EFAULT));
        equal("a path", call(OPENAT, [HERE, at + offset, 0]).is_ok(), false);
    }
    unmap(at, 1);
}

/// Goes on as the same program with other memory, without registers.
fn again() {
    let arguments = [c"registers".as_ptr(), c"again".as_ptr(), core::ptr::null()];
    let path = c"/registers".as_ptr().addr() as u64;
    equal("exec", call(EXECVE, [path, arguments.as_ptr().addr() as u64, 0]), Ok(0));
}
