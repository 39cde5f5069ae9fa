//! Signal frames: what a fault's frame has, and what rt_sigreturn makes of frames that a program wrote.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::seen::{SEEN, come_back, skip, word};
use granule_user::signal::set_stack;

entry!(run);

fn run(_start: Start) -> u8 {
    parts! { ()
        faults refused_frames frames_with_more_records frames_that_are_not_there stacks_that_are_not_there
    }
    status("frames")
}

fn put(bytes: &mut [u8], at: usize, words: &[u32]) {
    for (place, word) in bytes[at..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

fn set(signal: u32, handler: Handler, flags: u64, mask: u64) {
    // SAFETY: the handlers here touch atomics and their own frame.
    unsafe { handle(signal, handler, flags, mask) }.expect("a handler");
}

/// Signal and code; whether `si_addr` is the PC; `si_addr` if not; `fault_address`; the syndrome.
fn seen() -> (u32, i32, bool, u64, u64, u64) {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let at_pc = load(&SEEN.address) == load(&SEEN.pc);
    let address = if at_pc { 0 } else { load(&SEEN.address) };
    let (_, signal, code) = SEEN.take();
    (signal, code, at_pc, address, load(&SEEN.far), load(&SEEN.syndrome))
}

/// Calls an address that cannot be executed.
fn jump(address: u64) {
    // SAFETY: the call faults at its target, and the handler continues where it would have returned to.
    unsafe { probe::call(address) }.expect("no handler of `probe`");
}

fn faults() {
    const DATA: u64 = 0x24 << 26 | 1 << 25;
    const FETCH: u64 = 0x20 << 26 | 1 << 25;
    for signal in [SIGILL, SIGTRAP, SIGSEGV, SIGBUS] {
        set(signal, skip, 0, 0);
    }
    let abort = || {
        offend!("ldr x9, [x10]", FAR);
        let (signal, code, at_pc, address, far, syndrome) = seen();
        equal("abort", (signal, code, at_pc, address, far), (SIGSEGV, SEGV_MAPERR, false, FAR, FAR));
        equal("its syndrome", syndrome & !0x3, DATA | 0x4);
    };
    abort();
    offend!("udf #7", 0);
    equal("udf", seen(), (SIGILL, ILL_ILLOPC, true, 0, 0, 0));
    offend!("brk #7", 0);
    equal("brk", seen(), (SIGTRAP, TRAP_BRKPT, true, 0, 0, 0));
    abort();
    offend!("hlt #7", 0);
    equal("hlt", seen(), (SIGILL, ILL_ILLOPC, true, 0, 0, 0));
    // SVE, which is not there, and a register that EL0 may not read.
    offend!(".inst 0x04a0e3e9", 0);
    equal("cntw", seen(), (SIGILL, ILL_ILLOPC, true, 0, 0, 0));
    offend!("mrs x9, sctlr_el1", 0);
    equal("mrs", seen(), (SIGILL, ILL_ILLOPC, true, 0, 0, 0));

    offend!("ldr x9, [x10]", KERNEL);
    equal("a load of the kernel's", seen(), (SIGSEGV, SEGV_MAPERR, false, KERNEL, KERNEL, DATA | 0x4));
    offend!("str x9, [x10]", KERNEL);
    equal("a store to the kernel's", seen(), (SIGSEGV, SEGV_MAPERR, false, KERNEL, KERNEL, DATA | 0x44));
    let page = map(PAGE, RW).expect("a page");
    offend!("ldaxr x9, [x10]", page + 13);
    let mut unaligned = seen();
    // QEMU calls it a store.
    unaligned.5 &= !0x40;
    equal("an unaligned exclusive", unaligned, (SIGBUS, BUS_ADRALN, false, page + 13, page + 13, DATA | 0x21));
    for signal in [SIGSEGV, SIGBUS] {
        set(signal, come_back, 0, 0);
    }
    jump(come_back as Handler as usize as u64 + 2);
    equal("an odd PC", seen(), (SIGBUS, BUS_ADRALN, true, 0, 0, 0x22 << 26 | 1 << 25));
    jump(KERNEL);
    equal("a jump to the kernel", seen(), (SIGSEGV, SEGV_MAPERR, true, 0, KERNEL, FETCH | 0x4));
    // SAFETY: nothing uses it any more.
    unsafe { munmap(page, PAGE) }.expect("a page to unmap");
}

/// How a refused frame changed what it was to restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused {
    signal: u32,
    code: i32,
    /// Whether `si_addr` is SP.
    at_sp: bool,
    far: u64,
    /// x20, which the frame sets to [`MARK`].
    x20: u64,
    /// v9, likewise.
    v9: u32,
    mask: u64,
    /// Mode and masks of PSTATE.
    mode: u64,
    flags: u64,
}

const MARK: u64 = 0x1234_5678;

/// The number of the refused frame, by which the handler for SIGSEGV names it.
static EXPECTED: AtomicU64 = AtomicU64::new(0);

/// Ends the child; its status is the number of the check that differs from Linux.
extern "C" fn refused(signal: u32, info: &SigInfo, context: &mut UContext) {
    let registers = &context.context;
    let at = core::mem::offset_of!(FpsimdContext, registers) + 9 * 16;
    let found = Refused {
        signal,
        code: info.code,
        at_sp: info.address() == registers.sp,
        far: registers.fault_address,
        x20: registers.registers[20],
        v9: word(&registers.records.0, at),
        mask: context.mask,
        mode: registers.pstate & 0x3ff,
        flags: registers.pstate >> 28,
    };
    let restored = Refused {
        signal: SIGSEGV,
        code: SEGV_ACCERR,
        at_sp: true,
        far: 0,
        x20: MARK,
        v9: 0,
        mask: set_of(SIGUSR2),
        mode: 0,
        flags: 0b1010,
    };
    equal(("refused", EXPECTED.load(Ordering::Relaxed)), found, restored);
    process::exit_group(wrong() + 7);
}

/// Sets what a refused frame restores all the same, and what it does not.
fn mark(context: &mut UContext) {
    context.mask = set_of(SIGUSR2);
    context.context.registers[20] = MARK;
    context.context.pstate = 0b1010 << 28;
    let at = core::mem::offset_of!(FpsimdContext, registers) + 9 * 16;
    put(&mut context.context.records.0, at, &[MARK as u32]);
}

/// Runs `main` in a child that has a stack for its handler of SIGSEGV; its status.
fn in_child(on_fault: Handler, main: impl FnOnce()) -> u32 {
    process::run(|| {
        const SIZE: u64 = 16 * PAGE;
        let base = map(SIZE, RW).expect("a stack");
        // SAFETY: the stack is for handlers alone, until the child ends.
        unsafe { set_stack(&SigStack { base, flags: 0, padding: 0, size: SIZE }) }.expect("a stack to set");
        set(SIGSEGV, on_fault, SA_ONSTACK, 0);
        main();
    })
}

/// Raises SIGUSR1 with known values in v9 and x20; returns both as they are afterwards.
fn raise() -> (u64, u64) {
    #[cfg(target_arch = "aarch64")]
    {
        let (x20, v9): (u64, u64);
        // SAFETY: registers that this code does not use; the call is tgkill.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp", ".arch_extension simd",
                "movi v9.2d, #0", "mov x20, #0", "svc #0", "mov x9, x20", "fmov x10, d9",
                in("x8") TGKILL, inlateout("x0") u64::from(process::id()) => _,
                in("x1") u64::from(process::thread_id()), in("x2") u64::from(SIGUSR1),
                out("x20") _, out("x9") x20, out("x10") v9,
            );
        }
        (x20, v9)
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("{TGKILL}: these programs run on arm64 alone")
}

/// Where the record behind the one of floating point begins. Linux may have put others there; they are overwritten.
const NEXT: usize = size_of::<FpsimdContext>();

/// The faults of frames, each by its index.
static REFUSED: [fn(&mut UContext); 11] = [
    // For EL1, and with interrupts masked.
    |context| context.context.pstate |= 0x5,
    |context| context.context.pstate |= 0x3c0,
    // An unknown record, and one of the SVE.
    |context| next(context, &[0x1234_5678, 16, 0, 0, 0, 0]),
    |context| next(context, &[SVE_MAGIC, 16, 0, 0, 0, 0]),
    // An odd size, none, one that goes beyond, and an end with a size.
    |context| next(context, &[ESR_MAGIC, 24, 0, 0, 0, 0, 0, 0]),
    |context| next(context, &[ESR_MAGIC, 0, 0, 0]),
    |context| next(context, &[ESR_MAGIC, 4096, 0, 0]),
    |context| next(context, &[0, 16]),
    // No floating point, twice, and of another size.
    |context| put(&mut context.context.records.0, 0, &[0, 0]),
    |context| {
        let records = &mut context.context.records.0;
        records.copy_within(..NEXT, NEXT);
        put(records, 2 * NEXT, &[0, 0]);
    },
    |context| {
        put(&mut context.context.records.0, 4, &[NEXT as u32 - 16]);
        put(&mut context.context.records.0, NEXT - 16, &[0, 0]);
    },
];

/// Puts words behind the record of floating point.
fn next(context: &mut UContext, words: &[u32]) {
    put(&mut context.context.records.0, NEXT, words);
}

/// Returns through a frame that is wrong in the way that [`EXPECTED`] says.
extern "C" fn spoil(_: u32, _: &SigInfo, context: &mut UContext) {
    mark(context);
    REFUSED[EXPECTED.load(Ordering::Relaxed) as usize](context);
}

/// A child returns through the frame that `spoil` makes wrong in this way.
fn is_refused(way: u64, spoil: Handler) {
    EXPECTED.store(way, Ordering::Relaxed);
    let end = in_child(refused, || {
        set(SIGUSR1, spoil, 0, 0);
        raise();
    });
    equal(("frame", way), end, exited(7));
}

fn refused_frames() {
    (0..REFUSED.len()).for_each(|index| is_refused(index as u64, spoil));
}

/// Moves the record of floating point behind a record that points to it. `change` changes the latter's address and
/// size.
fn extra(context: &mut UContext, change: (u64, u32)) {
    const HEAD: usize = 32;
    const START: usize = HEAD + 16;
    mark(context);
    let start = (&raw const context.context.records).addr() as u64 + START as u64;
    let records = &mut context.context.records.0;
    records.copy_within(..NEXT, START);
    let (address, size) = (start.wrapping_add(change.0), (NEXT as u32 + 16).wrapping_add(change.1));
    put(records, 0, &[EXTRA_MAGIC, HEAD as u32, address as u32, (address >> 32) as u32, size, 0, 0, 0, 0, 0, 0, 0]);
    put(records, START + NEXT, &[0, 0]);
}

extern "C" fn records_behind(_: u32, _: &SigInfo, context: &mut UContext) {
    extra(context, (0, 0));
}

/// The faults of a record that points, and of the records there, by the index of their frame above 100.
static EXTRAS: [fn(&mut UContext); 6] = [
    // Records elsewhere, too short, too long, and of an odd size.
    |context| extra(context, (16, 0)),
    |context| extra(context, (0, 0u32.wrapping_sub(16))),
    |context| extra(context, (0, 256 << 10)),
    |context| extra(context, (0, 8)),
    // No end before them.
    |context| {
        extra(context, (0, 0));
        put(&mut context.context.records.0, 32, &[0, 16]);
    },
    // Behind twice.
    |context| {
        extra(context, (0, 64));
        put(&mut context.context.records.0, 48 + NEXT, &[EXTRA_MAGIC, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    },
];

extern "C" fn spoil_extra(_: u32, _: &SigInfo, context: &mut UContext) {
    EXTRAS[EXPECTED.load(Ordering::Relaxed) as usize - 100](context);
}

fn frames_with_more_records() {
    let end = in_child(refused, || {
        set(SIGUSR1, records_behind, 0, 0);
        equal("records behind the frame", raise(), (MARK, MARK));
        // The mask is the frame's; the child ends with it.
        process::exit_group(wrong() + 8);
    });
    equal("records behind the frame", end, exited(8));
    (0..EXTRAS.len()).for_each(|index| is_refused(100 + index as u64, spoil_extra));
}

/// Values that the handler for SIGSEGV finds when there is no frame: `si_code`, `si_addr`, SP, PC and x20.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Nowhere {
    code: i32,
    address: u64,
    sp: u64,
    pc: u64,
    x20: u64,
}

static WANTED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

extern "C" fn nowhere(_: u32, info: &SigInfo, context: &mut UContext) {
    let registers = &context.context;
    let pc = u64::from(registers.pc != 0);
    let found =
        Nowhere { code: info.code, address: info.address(), sp: registers.sp, pc, x20: registers.registers[20] };
    let [code, address, sp, pc, x20] = [0, 1, 2, 3, 4].map(|index| WANTED[index].load(Ordering::Relaxed));
    equal("no frame", found, Nowhere { code: code as i32, address, sp, pc, x20 });
    process::exit_group(wrong() + 9);
}

fn want(wanted: Nowhere) {
    let words = [wanted.code as u64, wanted.address, wanted.sp, wanted.pc, wanted.x20];
    WANTED.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
}

/// Calls rt_sigreturn, or sends this thread SIGUSR1, with this SP and a mark in x20.
fn with_stack(sp: u64, number: usize) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the handler of SIGSEGV ends the process.
    unsafe {
        core::arch::asm!("mov sp, {sp}", "svc #0", "udf #0", sp = in(reg) sp, in("x8") number, in("x20") MARK,
            in("x0") u64::from(process::id()), in("x1") u64::from(process::thread_id()), in("x2") u64::from(SIGUSR1));
    }
    let _ = (sp, number);
}

fn frames_that_are_not_there() {
    let near_the_end = u64::MAX - 15;
    let hole = map(2 * PAGE, RW).expect("pages") + PAGE;
    // SAFETY: this function's pages.
    unsafe { munmap(hole, PAGE) }.expect("a hole");
    let tagged = (hole - 8) | 3 << 56;
    // The kernel reads no frame that is not aligned or not EL0's. Of one that is unmapped each register is zero.
    let cases = [
        (hole - 8, Nowhere { code: SEGV_ACCERR, address: hole - 8, sp: hole - 8, pc: 1, x20: MARK }),
        (tagged, Nowhere { code: SEGV_ACCERR, address: hole - 8, sp: tagged, pc: 1, x20: MARK }),
        (near_the_end, Nowhere { code: SEGV_MAPERR, address: near_the_end, sp: near_the_end, pc: 1, x20: MARK }),
        (KERNEL, Nowhere { code: SEGV_MAPERR, address: KERNEL, sp: KERNEL, pc: 1, x20: MARK }),
        (hole, Nowhere { code: SEGV_ACCERR, address: 0, sp: 0, pc: 0, x20: 0 }),
        (0, Nowhere { code: SEGV_ACCERR, address: 0, sp: 0, pc: 0, x20: 0 }),
        // As far as the registers, and not all of them: x20 is there, and zero as the rest of the page.
        (hole - 512, Nowhere { code: SEGV_ACCERR, address: 0, sp: 0, pc: 0, x20: 0x77 }),
    ];
    // SAFETY: the page before the hole; x20's place in a frame.
    unsafe { ((hole - 512 + 128 + 176 + 8 + 8 * 20) as *mut u64).write(0x77) };
    for (sp, wanted) in cases {
        want(wanted);
        let end = in_child(nowhere, || with_stack(sp, RT_SIGRETURN));
        equal(("no frame at", sp), end, exited(9));
    }
    // SAFETY: nothing uses it any more.
    unsafe { munmap(hole - PAGE, PAGE) }.expect("a page to unmap");
}

extern "C" fn never(_: u32, _: &SigInfo, _: &mut UContext) {
    process::exit_group(1);
}

fn stacks_that_are_not_there() {
    for sp in [u64::MAX - 15, KERNEL, FAR, 4000, 0] {
        want(Nowhere { code: SI_KERNEL, address: 0, sp, pc: 1, x20: MARK });
        let end = in_child(nowhere, || {
            set(SIGUSR1, never, 0, 0);
            with_stack(sp, TGKILL);
        });
        equal(("a handler at", sp), end, exited(9));
    }
    // A stack for handlers that ends behind the last address, and behind the end of EL0's.
    for (base, size) in [(u64::MAX - 0xffff, 0x1_0000), (u64::MAX - 0xffff, 0x2_0000), ((1 << 48) - 0x1_0000, 0x2_0000)]
    {
        let end = process::run(|| {
            // SAFETY: a missing call has no effect.
            let old = unsafe { set_stack(&SigStack { base, flags: 0, padding: 0, size }) };
            holds("any stack can be set", old.is_ok());
            set(SIGUSR1, never, SA_ONSTACK, 0);
            set(SIGSEGV, ends_well, 0, 0);
            raise();
        });
        equal(("a stack at", base, size), end, exited(10));
    }
}

extern "C" fn ends_well(_: u32, info: &SigInfo, _: &mut UContext) {
    equal("no stack", (info.code, info.address()), (SI_KERNEL, 0));
    process::exit_group(wrong() + 10);
}
