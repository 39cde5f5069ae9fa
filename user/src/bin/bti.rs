//! Guarded pages (`PROT_BTI`) as Linux has them: branches and where they end, changes of protection on each kind of
//! memory, handlers, and the branch's type in a signal's frame. `bti exec` executes the program `guarded` as well, `bti
//! without` is for CPUs without FEAT_BTI.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "code that the program writes and calls on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put_word, unmap);

const AT: u64 = 0x5000_0000_0000;
const BLOCK: u64 = 2 * MIB;
const RX: u64 = PROT_READ | PROT_EXEC;
const GUARDED: u64 = RX | PROT_BTI;

const NOP: u32 = 0xd503_201f;
const BTI: u32 = 0xd503_241f;
const BTI_C: u32 = 0xd503_245f;
const BTI_J: u32 = 0xd503_249f;
const BTI_JC: u32 = 0xd503_24df;
const PACIASP: u32 = 0xd503_233f;
const AUTIASP: u32 = 0xd503_23bf;
const RETURN: u32 = 0xd65f_03c0;

/// Instructions at which branches end, and the types of branches (PSTATE.BTYPE, a bit for each) that each accepts in a
/// guarded page (Arm ARM C6.2.41, D8.5.4; SCTLR_EL1.BT0 is set).
const TARGETS: [(u32, u8); 6] =
    [(NOP, 0b0001), (BTI, 0b0001), (BTI_C, 0b0111), (BTI_J, 0b1011), (BTI_JC, 0b1111), (PACIASP, 0b0111)];
/// Bytes of each of them with the code that follows, and of each way to branch.
const STEP: u64 = 16;

/// Ways to get to a target, whose address is in x0: their code, and the branch's type where the branch's page is not
/// guarded, and where it is.
const WAYS: [([u32; 2], [u8; 2]); 4] = [
    // BR x0.
    ([NOP, 0xd61f_0000], [0b01, 0b11]),
    // MOV x16, x0; BR x16.
    ([0xaa00_03f0, 0xd61f_0200], [0b01, 0b01]),
    // MOV x17, x0; BR x17.
    ([0xaa00_03f1, 0xd61f_0220], [0b01, 0b01]),
    // RET x0.
    ([NOP, 0xd65f_0000], [0b00, 0b00]),
];
/// BLR's type.
const CALL: u8 = 0b10;

fn run(start: Start) -> u8 {
    probe::prepare_for(&[SIGSEGV, SIGBUS, SIGILL]);
    let is_asked = |word| start.arguments().nth(1) == Some(word);
    let has_it = !is_asked("without");
    equal("HWCAP2_BTI", start.auxiliary(AT_HWCAP2).is_some_and(|bits| bits & HWCAP2_BTI != 0), has_it);
    if !has_it {
        nothing_is_guarded();
        return status("bti");
    }
    parts! { ()
        branches_end_at_landing_pads each_change_of_protection_counts each_kind_of_memory_is_guarded
        no_access_is_none parts_of_blocks_are_guarded children_and_moves_keep_it handlers_begin_as_if_called
        frames_have_the_branch_type
    }
    if is_asked("exec") {
        a_property_guards_a_program(killed(SIGILL));
    }
    status("bti")
}

fn map_at(at: u64, pages: u64, protection: u64, flags: u64, file: u64) {
    equal(("mapped", at, protection), call(MMAP, [at, pages * PAGE, protection, MAP_FIXED | flags, file, 0]), Ok(at));
}

fn protect(at: u64, pages: u64, protection: u64) {
    equal(("protected", at, protection), call(MPROTECT, [at, pages * PAGE, protection]), Ok(0));
}

/// Writes the code of a target, or of a way to branch.
fn write(at: u64, code: [u32; 4]) {
    put_word(at, u64::from(code[0]) | u64::from(code[1]) << 32);
    put_word(at + 8, u64::from(code[2]) | u64::from(code[3]) << 32);
}

/// Writes all targets to the page.
fn write_targets(page: u64) {
    for (place, (instruction, _)) in (0..).zip(TARGETS) {
        let then = if instruction == PACIASP { AUTIASP } else { NOP };
        write(page + place * STEP, [instruction, then, RETURN, RETURN]);
    }
}

/// Writes all ways to branch to the page.
fn write_ways(page: u64) {
    for (place, ([first, second], _)) in (0..).zip(WAYS) {
        write(page + place * STEP, [BTI_C, first, second, RETURN]);
    }
}

/// New memory of the process's own with all targets in each page, and this protection.
fn map_targets(at: u64, pages: u64, protection: u64) {
    map_at(at, pages, RW, PRIVATE, u64::MAX);
    (0..pages).for_each(|page| write_targets(at + page * PAGE));
    protect(at, pages, protection);
}

/// Branches to a target by a call, or by the way whose code is at an address.
fn branch(way: Option<u64>, target: u64) -> Result<(), Fault> {
    match way {
        // SAFETY: a function that does nothing, or a fault.
        None => unsafe { probe::call(target) },
        Some(way) => {
            // SAFETY: code of this program, which has such a function there.
            let way: extern "C" fn(u64) = unsafe { core::mem::transmute(way as usize) };
            way(target);
            probe::outcome()
        }
    }
}

/// The outcome of a branch that a guarded page does not accept.
const fn refused(target: u64) -> Result<(), Fault> {
    Err(Fault { signal: SIGILL, code: ILL_ILLOPC, address: target })
}

/// Asks whether calls to each target in a page end as in a page that is guarded, or not.
fn ask(what: &str, page: u64, is_guarded: bool) {
    for (place, (_, accepts)) in (0..).zip(TARGETS) {
        let target = page + place * STEP;
        let wanted = if is_guarded && accepts & 1 << CALL == 0 { refused(target) } else { Ok(()) };
        equal((what, target, is_guarded), branch(None, target), wanted);
    }
}

fn branches_end_at_landing_pads() {
    const FROM: u64 = AT + PAGE;
    map_at(FROM, 1, RW, PRIVATE, u64::MAX);
    write_ways(FROM);
    for (to, from) in [(RX, RX), (RX, GUARDED), (GUARDED, RX), (GUARDED, GUARDED)] {
        map_targets(AT, 1, to);
        protect(FROM, 1, from);
        for (place, (instruction, accepts)) in (0..).zip(TARGETS) {
            let target = AT + place * STEP;
            let wanted = |kind: u8| if to == RX || accepts & 1 << kind != 0 { Ok(()) } else { refused(target) };
            for (way, (_, kinds)) in (0..).zip(WAYS) {
                let kind = kinds[usize::from(from == GUARDED)];
                equal((to, from, way, instruction), branch(Some(FROM + way * STEP), target), wanted(kind));
            }
        }
        ask("a call", AT, to == GUARDED);
    }
    a_wait_ends_a_branch(FROM);
    unmap(AT, 2);
}

/// The last instruction of a page that is not guarded is the target, and passed by the kernel where it is trapped; the next
/// page is guarded.
fn a_wait_ends_a_branch(ways: u64) {
    const WFI: u64 = 0xd503_207f;
    let next = ways + PAGE;
    map_targets(next, 2, RW);
    put_word(next + PAGE - 8, WFI << 32 | u64::from(RETURN));
    protect(next, 1, RX);
    protect(next + PAGE, 1, GUARDED);
    equal("a wait", branch(Some(ways), next + PAGE - 4), Ok(()));
    unmap(next, 2);
}

fn each_change_of_protection_counts() {
    map_targets(AT, 3, GUARDED);
    ask("from the start", AT, true);
    for (name, protection, is_guarded) in [
        ("taken away", RX, false),
        ("again", GUARDED, true),
        ("with stores", GUARDED | PROT_WRITE, true),
        ("and without it", RX | PROT_WRITE, false),
        ("execution alone", PROT_EXEC | PROT_BTI, true),
        ("that without it", PROT_EXEC, false),
    ] {
        protect(AT, 3, protection);
        (0..3).for_each(|page| ask(name, AT + page * PAGE, is_guarded));
    }
    for (hidden, shown) in [(0, GUARDED), (PROT_BTI, GUARDED), (PROT_READ | PROT_BTI, RX), (RW | PROT_BTI, GUARDED)] {
        protect(AT, 3, hidden);
        equal(("no code", hidden), branch(None, AT), Err(not_allowed(AT)));
        protect(AT, 3, shown);
        ask("code again", AT + PAGE, shown == GUARDED);
    }
    protect(AT + PAGE, 1, RX);
    (0..3).for_each(|page| ask("one of three", AT + page * PAGE, page != 1));
    for (bits, answer) in [(0x40, Err(EINVAL)), (PROT_BTI | 0x40, Err(EINVAL)), (PROT_BTI, Ok(0))] {
        equal(("mprotect", bits), call(MPROTECT, [AT, PAGE, RX | bits]), answer);
    }
    equal("mmap", call(MMAP, [AT, PAGE, RX | PROT_BTI | 0x40, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(AT));
    unmap(AT, 3);
}

fn each_kind_of_memory_is_guarded() {
    let file = file(1);
    map_at(AT, 1, RW, MAP_SHARED, file);
    write_targets(AT);
    for protection in [GUARDED, RX] {
        for (name, flags) in [("a file", MAP_SHARED), ("a copy of one", MAP_PRIVATE)] {
            map_at(AT, 1, protection, flags, file);
            ask(name, AT, protection == GUARDED);
        }
        map_at(AT, 1, RW, SHARED, u64::MAX);
        write_targets(AT);
        protect(AT, 1, protection);
        ask("shared", AT, protection == GUARDED);
    }
    map_targets(AT, 1, GUARDED | PROT_MTE);
    ask("with tags", AT, true);
    protect(AT, 1, RX);
    ask("which stay", AT, false);
    unmap(AT, 1);
}

/// Without an access neither `PROT_BTI` nor `PROT_MTE` makes a difference.
fn no_access_is_none() {
    for (protection, is_access) in [(0, false), (PROT_BTI, false), (PROT_MTE, false), (PROT_READ, true)] {
        map_at(AT, 4, protection, SHARED | MAP_POPULATE, u64::MAX);
        equal(("brought", protection), present(AT, 4), if is_access { 15 } else { 0 });
        // Near below a stack.
        map_at(AT, 1, protection, PRIVATE, u64::MAX);
        map_at(AT + 3 * PAGE, 1, RW, PRIVATE | MAP_GROWSDOWN, u64::MAX);
        unmap(AT + PAGE, 2);
        let grows = if is_access { Err(not_mapped(AT + 2 * PAGE)) } else { Ok(0) };
        equal(("a stack above it grows", protection), probe::read(AT + 2 * PAGE), grows);
        unmap(AT, 4);
    }
}

fn parts_of_blocks_are_guarded() {
    let at = AT + BLOCK - AT % BLOCK;
    map_at(at, 512, RW, PRIVATE, u64::MAX);
    let _ = call(MADVISE, [at, BLOCK, MADV_HUGEPAGE]);
    (0..512).for_each(|page| write_targets(at + page * PAGE));
    protect(at, 512, GUARDED);
    [0, 15, 16, 300, 511].into_iter().for_each(|page| ask("a block", at + page * PAGE, true));
    protect(at, 512, RX);
    [0, 511].into_iter().for_each(|page| ask("the block without it", at + page * PAGE, false));
    protect(at + 16 * PAGE, 17, GUARDED);
    for page in [0, 15, 16, 31, 32, 33, 511] {
        ask("a part of it", at + page * PAGE, (16..33).contains(&page));
    }
    unmap(at, 512);
}

fn children_and_moves_keep_it() {
    map_targets(AT, 2, GUARDED);
    apart(|| {
        ask("in a child", AT, true);
        protect(AT, 1, RX);
        ask("not any more", AT, false);
        ask("but there", AT + PAGE, true);
    });
    ask("in the parent", AT, true);
    let to = AT + 64 * PAGE;
    equal("moved", call(MREMAP, [AT, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to]), Ok(to));
    ask("in the new place", to + PAGE, true);
    let mut room = [0; 16 << 10];
    let text = proc::text(&proc::open(process::id(), "smaps").expect("smaps"), &mut room, 4096);
    let mut lines = text.lines();
    lines.find(|line| line.starts_with("500000040000-")).expect("the area");
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).expect("its flags");
    holds("smaps has it", flags.split_whitespace().any(|flag| flag == "bt"));
    unmap(to, 2);
}

/// PSTATE of the last SIGILL, and how many there were.
static PSTATE: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn handlers_begin_as_if_called() {
    map_targets(AT, 1, GUARDED);
    for (place, (instruction, accepts)) in (0..).zip(TARGETS) {
        let handler = AT + place * STEP;
        // SAFETY: code that does nothing, and returns.
        let handler: Handler = unsafe { core::mem::transmute(handler as usize) };
        // SAFETY: as above.
        unsafe { signal::handle(SIGUSR1, handler, 0, 0) }.expect("a handler");
        signal::raise(SIGUSR1);
        let wanted = if accepts & 1 << CALL != 0 { Ok(()) } else { refused(AT + place * STEP) };
        equal(("a handler", instruction), probe::outcome(), wanted);
    }
    unmap(AT, 1);
}

/// The first time, goes on at the next target as the branch did to the one before; the second time, as if there had been
/// no branch.
extern "C" fn once_more(_: u32, _: &SigInfo, context: &mut UContext) {
    let registers = &mut context.context;
    PSTATE.store(registers.pstate, Ordering::Relaxed);
    if REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
        registers.pc += STEP;
    } else {
        registers.pstate &= !(0b11 << 10);
    }
}

fn frames_have_the_branch_type() {
    // SAFETY: the handler touches atomics and its own frame.
    unsafe { handle(SIGILL, once_more, 0, 0) }.expect("a handler");
    map_targets(AT, 2, RW);
    write_ways(AT + PAGE);
    protect(AT, 2, GUARDED);
    for (way, kind) in [(None, CALL), (Some(AT + PAGE), 0b11), (Some(AT + PAGE + STEP), 0b01)] {
        equal("no fault is left", branch(way, AT), Ok(()));
        equal(("a branch's type", way), PSTATE.load(Ordering::Relaxed) >> 10 & 0b11, kind.into());
        equal("both targets refused it", REFUSED.swap(0, Ordering::Relaxed), 2);
    }
    unmap(AT, 2);
    probe::prepare_for(&[SIGILL]);
}

fn nothing_is_guarded() {
    map_targets(AT, 1, RX);
    equal("mprotect", call(MPROTECT, [AT, PAGE, GUARDED]), Err(EINVAL));
    ask("as before", AT, false);
    equal("mmap", call(MMAP, [AT, PAGE, GUARDED, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(AT));
    unmap(AT, 1);
    a_property_guards_a_program(exited(1));
}

/// Executes the program, whose end tells whether its pages are guarded.
fn a_property_guards_a_program(end: u32) {
    let child = process::spawn(|| {
        set_without_handler(SIGILL, SIG_DFL);
        process::execute(c"/guarded", &[c"guarded"]);
        2
    });
    equal("a program with the property", process::wait(child), end);
}
