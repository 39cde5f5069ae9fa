//! Settings of a program for its memory: pages that the kernel may lose, what may be executed, and blocks.
//!
//! Each answer is Linux's. `settings inherited` is the program that another one executes.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, advise, number, unmap, protect);

const DROPPABLE: u64 = MAP_ANONYMOUS | MAP_DROPPABLE;
const AT: u64 = 0x6000_0000_0000;
const RX: u64 = PROT_READ | PROT_EXEC;
const RWX: u64 = RW | PROT_EXEC;

fn run(start: Start) -> u8 {
    probe::prepare();
    if start.arguments().nth(1) == Some("inherited") {
        return inherited();
    }
    parts! { ()
        droppable_memory_is_refused droppable_memory_is_of_one_process droppable_memory_goes_on_advice
        droppable_memory_is_not_locked settings_are_refused nothing_becomes_code
        nothing_becomes_code_of_several blocks_are_not_wanted
    }
    others_inherit(start.path());
    status("settings")
}

fn map_at(at: u64, pages: u64, protection: u64, flags: u64) -> Result<u64, Errno> {
    call(MMAP, [at, pages * PAGE, protection, flags, u64::MAX, 0])
}

fn control<const N: usize>(what: u64, some: [u64; N]) -> Result<u64, Errno> {
    let mut arguments = [0; 5];
    arguments[0] = what;
    arguments[1..=N].copy_from_slice(&some);
    call(PRCTL, arguments)
}

/// Whether `smaps` has a word for the area that begins at an address: `THPeligible: 1`, or one of its flags.
fn shows(at: u64, name: &str, word: &str) -> bool {
    let mut room = [0; 16 << 10];
    let text = proc::text(&proc::open(process::id(), "smaps").expect("smaps"), &mut room, 4096);
    let mut lines = text.lines();
    let begins = |line: &str| u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16) == Ok(at);
    lines.find(|line| begins(line)).expect("the area");
    let values = lines.find_map(|line| line.strip_prefix(name)).expect("its line");
    values.split_whitespace().any(|value| value == word)
}

fn droppable_memory_is_refused() {
    let file = file(1);
    for (flags, wanted) in [
        (DROPPABLE, Ok(AT)),
        (DROPPABLE | MAP_NORESERVE | MAP_POPULATE, Ok(AT)),
        (DROPPABLE | MAP_FIXED_NOREPLACE, Ok(AT)),
        (DROPPABLE | MAP_LOCKED, Err(EINVAL)),
        (DROPPABLE | MAP_HUGETLB, Err(EINVAL)),
        (DROPPABLE | MAP_GROWSDOWN, Err(EINVAL)),
        (DROPPABLE | MAP_PRIVATE, Err(EINVAL)),
        (DROPPABLE | MAP_SHARED, Err(EINVAL)),
    ] {
        equal(("flags", flags), map_at(AT, 4, RW, flags), wanted);
        if wanted.is_ok() {
            equal("populated", present(AT, 4) == 15, flags & MAP_POPULATE != 0);
            unmap(AT, 4);
        }
    }
    equal("of a file", call(MMAP, [AT, PAGE, RW, MAP_DROPPABLE, file, 0]), Err(EINVAL));
    equal("more than all memory", map_at(AT, 1 << 28, RW, DROPPABLE), Ok(AT));
    unmap(AT, 1 << 28);
}

fn droppable_memory_is_of_one_process() {
    equal("mapped", map_at(AT, 4, RW, DROPPABLE), Ok(AT));
    number(AT, 4);
    holds("it shows", shows(AT, "VmFlags:", "dp") && shows(AT, "VmFlags:", "nr") && shows(AT, "VmFlags:", "dd"));
    for (advice, wanted) in [
        (MADV_KEEPONFORK, Err(EINVAL)),
        (MADV_DODUMP, Err(EINVAL)),
        (MADV_WIPEONFORK, Ok(0)),
        (MADV_DONTDUMP, Ok(0)),
        (MADV_WILLNEED, Ok(0)),
        (MADV_POPULATE_READ, Ok(0)),
    ] {
        equal(("advice", advice), advise(AT, 4, advice), wanted);
    }
    apart(|| {
        equal("zeros in a child", bytes(AT), [0; 4]);
        holds("droppable there", shows(AT, "VmFlags:", "dp"));
    });
    equal("as they were", bytes(AT), [1, 2, 3, 4]);
    equal("beside others", map_at(AT + 4 * PAGE, 1, RW, PRIVATE | MAP_NORESERVE | MAP_FIXED), Ok(AT + 4 * PAGE));
    equal("they differ", advise(AT + 4 * PAGE, 1, MADV_WIPEONFORK), Ok(0));
    holds("an area of its own", shows(AT + 4 * PAGE, "VmFlags:", "wf"));
    equal("moved", call(MREMAP, [AT, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 8 * PAGE]), Ok(AT + 8 * PAGE));
    holds("it stays so", shows(AT + 8 * PAGE, "VmFlags:", "dp"));
    equal("its contents", bytes(AT + 8 * PAGE), [1, 0]);
    equal("given up", advise(AT + 8 * PAGE, 1, MADV_FREE), Ok(0));
    unmap(AT, 10);
}

fn droppable_memory_goes_on_advice() {
    equal("mapped", map_at(AT, 4, RW, DROPPABLE), Ok(AT));
    number(AT, 4);
    equal("cold", (advise(AT, 4, MADV_COLD), bytes(AT)), (Ok(0), [1, 2, 3, 4]));
    // Linux leaves pages that something else looks at just then.
    let is_out = (0..100).any(|_| advise(AT + PAGE, 2, MADV_PAGEOUT) == Ok(0) && bytes(AT) == [1, 0, 0, 4]);
    holds("out of memory", is_out);
    equal("locked", (call(MLOCK, [AT, PAGE]), advise(AT, 4, MADV_PAGEOUT)), (Ok(0), Ok(0)));
    unmap(AT, 4);
}

fn droppable_memory_is_not_locked() {
    equal("mapped", map_at(AT, 2, RW, DROPPABLE), Ok(AT));
    equal("mlock", call(MLOCK, [AT, PAGE]), Ok(0));
    equal("mlock2", call(MLOCK2, [AT, PAGE, MLOCK_ONFAULT.into()]), Ok(0));
    equal("not locked", (locks(AT), present(AT, 2)), ([false; 2], 1));
    equal("munlock", call(MUNLOCK, [AT, PAGE]), Ok(0));
    apart(|| {
        equal("mlockall", call(MLOCKALL, [u64::from(MCL_FUTURE)]), Ok(0));
        equal("mapped", map_at(AT, 2, RW, DROPPABLE | MAP_FIXED), Ok(AT));
        equal("brought, and not locked", (present(AT, 2), locks(AT)), (3, [false; 2]));
        equal("mlockall", call(MLOCKALL, [u64::from(MCL_CURRENT)]), Ok(0));
        equal("not locked", locks(AT), [false; 2]);
    });
    unmap(AT, 2);
}

fn settings_are_refused() {
    for (what, arguments, wanted) in [
        (PR_GET_MDWE, [1, 0, 0, 0], Err(EINVAL)),
        (PR_GET_MDWE, [0, 0, 0, 1], Err(EINVAL)),
        (PR_GET_MDWE, [0; 4], Ok(0)),
        (PR_SET_MDWE, [4, 0, 0, 0], Err(EINVAL)),
        (PR_SET_MDWE, [1 << 32, 0, 0, 0], Err(EINVAL)),
        (PR_SET_MDWE, [PR_MDWE_NO_INHERIT, 0, 0, 0], Err(EINVAL)),
        (PR_SET_MDWE, [1, 1, 0, 0], Err(EINVAL)),
        (PR_SET_MDWE, [1, 0, 0, 1], Err(EINVAL)),
        (PR_SET_MDWE, [0; 4], Ok(0)),
        (PR_GET_THP_DISABLE, [1, 0, 0, 0], Err(EINVAL)),
        (PR_GET_THP_DISABLE, [0, 1, 0, 0], Err(EINVAL)),
        (PR_GET_THP_DISABLE, [0, 0, 0, 1], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [1, 0, 1, 0], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [1, 0, 0, 1], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [1, 1, 0, 0], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [1, 4, 0, 0], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [1, 1 << 32, 0, 0], Err(EINVAL)),
        (PR_SET_THP_DISABLE, [0, PR_THP_DISABLE_EXCEPT_ADVISED, 0, 0], Err(EINVAL)),
        (PR_GET_THP_DISABLE, [0; 4], Ok(0)),
        // Names of areas are not compiled in.
        (0x5356_4d41, [0, AT, PAGE, c"name".as_ptr() as u64], Err(EINVAL)),
    ] {
        equal((what, arguments), control(what, arguments), wanted);
    }
}

fn nothing_becomes_code() {
    let [data, code, none, both] = [RW, RX, PROT_NONE, RWX].map(|protection| map(PAGE, protection).expect("memory"));
    apart(|| {
        equal("set", control(PR_SET_MDWE, [PR_MDWE_REFUSE_EXEC_GAIN]), Ok(0));
        equal("get", control(PR_GET_MDWE, [0]), Ok(PR_MDWE_REFUSE_EXEC_GAIN));
        equal("again", control(PR_SET_MDWE, [PR_MDWE_REFUSE_EXEC_GAIN]), Ok(0));
        equal("nothing", control(PR_SET_MDWE, [0]), Err(EPERM));
        equal("both", control(PR_SET_MDWE, [3]), Err(EPERM));
        for protection in 0..8 {
            let [gains, both] = [protection & PROT_EXEC != 0, protection & (PROT_EXEC | PROT_WRITE) == 6];
            let or = |refused: bool| if refused { Err(EACCES) } else { Ok(()) };
            equal(("mmap", protection), map(PAGE, protection).map(drop), or(both));
            for at in [data, none] {
                // SAFETY: the program's own pages, which are not accessed.
                equal(("mprotect", protection), unsafe { mprotect(at, PAGE, protection) }, or(gains));
            }
        }
        for (at, protection, wanted) in [
            (code, RWX, Err(EACCES)),
            (code, RX, Ok(())),
            (code, PROT_EXEC, Ok(())),
            (code, PROT_READ, Ok(())),
            (code, RX, Err(EACCES)),
            (both, RWX, Err(EACCES)),
            (both, RX, Ok(())),
            (both, RW, Ok(())),
            (both, RX, Err(EACCES)),
        ] {
            // SAFETY: as above.
            equal(("mprotect", protection), unsafe { mprotect(at, PAGE, protection) }, wanted);
        }
        let file = file(1);
        equal("a file's", call(MMAP, [0, PAGE, RWX, MAP_SHARED, file, 0]), Err(EACCES));
        equal("in place of others", map_at(data, 1, RWX, PRIVATE | MAP_FIXED), Err(EACCES));
        equal("which stay", put(data, 1), Ok(()));
        equal("more than all memory", map_at(0, 1 << 34, RWX, PRIVATE), Err(EACCES));
        equal("no page's address", map_at(1, 1, RWX, PRIVATE | MAP_FIXED), Err(EINVAL));
        equal("sealed", call(MSEAL, [data, PAGE, 0]), Ok(0));
        // SAFETY: as above.
        equal("sealed data", unsafe { mprotect(data, PAGE, RX) }, Err(EACCES));
        apart(|| equal("a child's", control(PR_GET_MDWE, [0]), Ok(1)));
    });
    apart(|| {
        equal("not inherited", control(PR_SET_MDWE, [3]), Ok(0));
        equal("get", control(PR_GET_MDWE, [0]), Ok(3));
        equal("less", control(PR_SET_MDWE, [1]), Err(EPERM));
        equal("refused", map(PAGE, RWX).map(drop), Err(EACCES));
        apart(|| {
            equal("a child's", control(PR_GET_MDWE, [0]), Ok(0));
            equal("permitted", map(PAGE, RWX).map(drop), Ok(()));
        });
    });
}

/// The areas before the one that is refused have changed.
fn nothing_becomes_code_of_several() {
    apart(|| {
        equal("code", map_at(AT, 2, RX, PRIVATE), Ok(AT));
        equal("data", map_at(AT + 2 * PAGE, 2, RW, PRIVATE | MAP_FIXED), Ok(AT + 2 * PAGE));
        equal("set", control(PR_SET_MDWE, [1]), Ok(0));
        // SAFETY: the program's own pages.
        equal("to code", unsafe { mprotect(AT, 4 * PAGE, PROT_EXEC) }, Err(EACCES));
        equal("the rest is as it was", put(AT + 2 * PAGE, 1), Ok(()));
        // SAFETY: as above.
        equal("a part", unsafe { mprotect(AT + 3 * PAGE, PAGE, RX) }, Err(EACCES));
        equal("no code", map_at(AT + PAGE, 1, PROT_READ, PRIVATE | MAP_FIXED), Ok(AT + PAGE));
        // SAFETY: as above.
        equal("up to it", unsafe { mprotect(AT, 2 * PAGE, RX) }, Err(EACCES));
    });
}

fn blocks_are_not_wanted() {
    const LARGE: u64 = 4 << 20;
    let blocks = || {
        let at = Pages::map(LARGE / PAGE, RW, MAP_PRIVATE).expect("memory");
        let start = at.next_multiple_of(LARGE / 2);
        equal("wanted", advise(start, LARGE / 2 / PAGE, MADV_HUGEPAGE), Ok(0));
        equal("stored", put(start, 1), Ok(()));
        (shows(start, "THPeligible:", "1"), present(start + 64 * PAGE, 1) == 1)
    };
    equal("blocks", blocks(), (true, true));
    apart(|| {
        equal("set", control(PR_SET_THP_DISABLE, [5]), Ok(0));
        equal("get", control(PR_GET_THP_DISABLE, [0]), Ok(1));
        equal("pages", blocks(), (false, false));
        apart(|| equal("a child's", (control(PR_GET_THP_DISABLE, [0]), blocks()), (Ok(1), (false, false))));
        equal("but those", control(PR_SET_THP_DISABLE, [1, PR_THP_DISABLE_EXCEPT_ADVISED]), Ok(0));
        equal("get", control(PR_GET_THP_DISABLE, [0]), Ok(3));
        equal("blocks", blocks(), (true, true));
        equal("a word", control(PR_SET_THP_DISABLE, [1 << 32]), Ok(0));
        equal("get", control(PR_GET_THP_DISABLE, [0]), Ok(1));
        equal("again", control(PR_SET_THP_DISABLE, [0]), Ok(0));
        equal("blocks", blocks(), (true, true));
    });
}

/// Executes itself with each of the settings, which it exits with.
fn others_inherit(path: &CStr) {
    for (execution, blocks, wanted) in [([1], [1, 0], 0b1_01), ([3], [1, 2], 0b11_00), ([0], [0, 0], 0)] {
        let child = process::spawn(|| {
            equal("execution", control(PR_SET_MDWE, execution), Ok(0));
            equal("blocks", control(PR_SET_THP_DISABLE, blocks), Ok(0));
            process::execute(path, &[path, c"inherited"]);
            0xff_u8
        });
        equal(("inherited", execution), process::wait(child), exited(wanted));
    }
}

fn inherited() -> u8 {
    let [execution, blocks] = [PR_GET_MDWE, PR_GET_THP_DISABLE].map(|what| control(what, [0]).unwrap_or(15) as u8);
    blocks << 2 | execution
}
