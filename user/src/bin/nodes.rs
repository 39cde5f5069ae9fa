//! Policies for nodes, and the places of pages, of a machine with one node.
//!
//! Each answer is Linux's. `nodes inherited` is the program that another one executes.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, number, unmap, protect, advise);

const AT: u64 = 0x6000_0000_0000;
/// A node that is not there, of a number that may be.
const OTHER: u64 = 2;
const STATIC: u32 = MPOL_F_STATIC_NODES;
const RELATIVE: u32 = MPOL_F_RELATIVE_NODES;
const BALANCING: u32 = MPOL_F_NUMA_BALANCING;

fn run(start: Start) -> u8 {
    probe::prepare();
    if start.arguments().nth(1) == Some("inherited") {
        return policy().map_or(0xff, |(mode, _)| mode as u8);
    }
    parts! { ()
        policies_of_threads sets_are_read sets_are_stored flags_of_get policies_of_areas policies_in_children homes
        migrations places
    }
    equal("set", set(MPOL_INTERLEAVE, 1), Ok(0));
    apart(|| equal("a child's", policy(), Ok((MPOL_INTERLEAVE, 1))));
    let path = start.path();
    let child = process::spawn(|| {
        process::execute(path, &[path, c"inherited"]);
        0xff_u8
    });
    equal("another program's", process::wait(child), exited(MPOL_INTERLEAVE as u8));
    status("nodes")
}

fn set(mode: u32, nodes: u64) -> Result<u64, Errno> {
    call(SET_MEMPOLICY, [mode.into(), &raw const nodes as u64, 64])
}

fn bind(at: u64, pages: u64, mode: u32, nodes: u64) -> Result<u64, Errno> {
    call(MBIND, [at, pages * PAGE, mode.into(), &raw const nodes as u64, 64, 0])
}

fn get(at: u64, flags: u64) -> Result<(u32, u64), Errno> {
    let (mut mode, mut nodes) = (0_u32, [u64::MAX; 4]);
    call(GET_MEMPOLICY, [&raw mut mode as u64, nodes.as_mut_ptr() as u64, 256, at, flags])?;
    equal("the rest of the nodes", nodes[1..] == [0; 3], true);
    Ok((mode, nodes[0]))
}

/// The thread's policy.
fn policy() -> Result<(u32, u64), Errno> {
    get(0, 0)
}

fn of(at: u64) -> Result<(u32, u64), Errno> {
    get(at, MPOL_F_ADDR)
}

/// Each mode with each set of nodes: what is refused, and else what it becomes.
fn policies_of_threads() {
    const LOCAL: Result<(u32, u64), Errno> = Ok((MPOL_LOCAL, 0));
    let some = |mode: u32| Ok((mode, 1));
    for mode in (0..9).chain([u32::MAX, 1 << 12]) {
        let wanted = match mode {
            0 => [Ok((0, 0)), Err(EINVAL), Err(EINVAL), Err(EINVAL)],
            1 => [LOCAL, some(mode), Err(EINVAL), some(mode)],
            4 => [LOCAL, Err(EINVAL), Err(EINVAL), Err(EINVAL)],
            2 | 3 | 5 | 6 => [Err(EINVAL), some(mode), Err(EINVAL), some(mode)],
            _ => [Err(EINVAL); 4],
        };
        for (nodes, wanted) in (0..).zip(wanted) {
            equal("nothing", set(MPOL_DEFAULT, 0), Ok(0));
            equal(("set", mode, nodes), set(mode, nodes).and_then(|_| policy()), wanted);
        }
    }
    for (flags, mode, nodes, wanted) in [
        (STATIC | RELATIVE, 2, 1, Err(EINVAL)),
        (STATIC, 0, 0, Ok((0, 0))),
        (STATIC, 1, 0, Err(EINVAL)),
        (STATIC, 4, 0, Err(EINVAL)),
        (STATIC, 2, 1, Ok((STATIC | 2, 1))),
        (STATIC, 2, 3, Ok((STATIC | 2, 3))),
        (STATIC, 2, OTHER, Err(EINVAL)),
        (STATIC, 1, 3, Ok((STATIC | 1, 3))),
        (RELATIVE, 2, OTHER, Ok((RELATIVE | 2, OTHER))),
        (RELATIVE, 6, 3, Ok((RELATIVE | 6, 3))),
        (BALANCING, 0, 0, Err(EINVAL)),
        (BALANCING, 1, 1, Err(EINVAL)),
        (BALANCING, 2, 1, Ok((BALANCING | 2, 1))),
        (BALANCING, 3, 1, Err(EINVAL)),
        (BALANCING, 5, 3, Ok((BALANCING | 5, 1))),
        (BALANCING | STATIC, 5, 3, Ok((BALANCING | STATIC | 5, 3))),
    ] {
        equal("nothing", set(MPOL_DEFAULT, 0), Ok(0));
        equal(("set", flags, mode, nodes), set(flags | mode, nodes).and_then(|_| policy()), wanted);
    }
    equal("nothing", set(MPOL_DEFAULT, 0), Ok(0));
}

fn sets_are_read() {
    let set = |nodes: &[u64], most: u64| call(SET_MEMPOLICY, [MPOL_BIND.into(), nodes.as_ptr() as u64, most]);
    let mut many = [0; 513];
    many[0] = 1;
    for (what, nodes, most, wanted) in [
        ("no bits", [1, 0], 1, Err(EINVAL)),
        ("one bit", [3, 0], 2, Ok(0)),
        ("bits that are not looked at", [1 | 1 << 16, 0], 17, Ok(0)),
        ("a node that cannot be", [1 | 1 << 16, 0], 18, Err(EINVAL)),
        ("the last that may be", [1 | 1 << 15, 0], 17, Ok(0)),
        ("far bits", [1, 1 << 16], 66, Err(EINVAL)),
        ("far bits that are not looked at", [1 | 1 << 16, 1], 66, Ok(0)),
        ("far bits that are", [1, 1], 81, Err(EINVAL)),
        ("a word that is not looked at", [1, 1], 65, Ok(0)),
        ("bits that wrap", [1, 0], 0, Err(EINVAL)),
    ] {
        equal(what, set(&nodes, most), wanted);
    }
    equal("a page of bits", set(&many, 8 * PAGE + 1), Ok(0));
    equal("more", set(&many, 8 * PAGE + 2), Err(EINVAL));
    equal("nothing there", call(SET_MEMPOLICY, [MPOL_BIND.into(), 8, 64]), Err(EFAULT));
    equal("the mode first", call(SET_MEMPOLICY, [9, 8, 64]), Err(EINVAL));
    equal("no set", call(SET_MEMPOLICY, [MPOL_BIND.into(), 0, 64]), Err(EINVAL));
    equal("an int", call(SET_MEMPOLICY, [1 << 32, 0, 0]), Ok(0));
}

fn sets_are_stored() {
    let get = |most: u64| {
        let mut nodes = [u64::MAX; 4];
        call(GET_MEMPOLICY, [0, nodes.as_mut_ptr() as u64, most, 0, 0]).map(|_| nodes.map(|word| word == 0))
    };
    equal("no room", get(0), Err(EINVAL));
    for (most, words) in [(1, 0), (2, 1), (65, 1), (66, 2), (129, 2), (130, 3), (u64::MAX, 0)] {
        equal(("bits", most), get(most), Ok(core::array::from_fn(|word| word < words)));
    }
    equal("more than a page", get(8 * PAGE + 66), Err(EINVAL));
    equal("nowhere", call(GET_MEMPOLICY, [0; 5]), Ok(0));
    equal("nothing there", call(GET_MEMPOLICY, [8, 0, 0, 0, 0]), Err(EFAULT));
    equal("nothing there", call(GET_MEMPOLICY, [0, 8, 64, 0, 0]), Err(EFAULT));
}

fn flags_of_get() {
    let four = Pages::map(4, RW, MAP_PRIVATE).expect("memory");
    let at = *four;
    for (at, flags, wanted) in [
        (0, MPOL_F_MEMS_ALLOWED, Ok((0, 1))),
        (at, MPOL_F_MEMS_ALLOWED, Ok((0, 1))),
        (at, MPOL_F_MEMS_ALLOWED | MPOL_F_ADDR, Err(EINVAL)),
        (0, MPOL_F_MEMS_ALLOWED | MPOL_F_NODE, Err(EINVAL)),
        (0, 8, Err(EINVAL)),
        (at, 0, Err(EINVAL)),
        (0, MPOL_F_NODE, Err(EINVAL)),
        (NOWHERE, MPOL_F_ADDR, Err(EFAULT)),
        (KERNEL, MPOL_F_ADDR, Err(EFAULT)),
        (u64::MAX, MPOL_F_ADDR, Err(EFAULT)),
        (NOWHERE, MPOL_F_ADDR | MPOL_F_NODE, Err(EFAULT)),
    ] {
        equal(("get", flags), get(at, flags), wanted);
    }
    let two = Pages::map(2, RW, MAP_PRIVATE).expect("memory");
    let at = *two;
    equal("its node", get(at + PAGE, MPOL_F_ADDR | MPOL_F_NODE), Ok((0, 0)));
    equal("the page is brought", present(at, 2), 2);
    protect(at, 1, PROT_NONE);
    equal("no access", get(at, MPOL_F_ADDR | MPOL_F_NODE), Err(EFAULT));
    for (mode, wanted) in
        [(MPOL_INTERLEAVE, Ok((0, 1))), (MPOL_WEIGHTED_INTERLEAVE, Ok((0, 1))), (MPOL_BIND, Err(EINVAL))]
    {
        equal("set", set(mode, 1), Ok(0));
        equal(("the next node", mode), get(0, MPOL_F_NODE), wanted);
    }
    equal("nothing", set(MPOL_DEFAULT, 0), Ok(0));
}

/// How many areas there are in a range.
fn areas(start: u64, end: u64) -> usize {
    let mut room = [0; 16 << 10];
    let text = proc::text(&proc::open(process::id(), "maps").expect("maps"), &mut room, 4096);
    let first = |line: &str| u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16).unwrap_or_default();
    text.lines().map(first).filter(|at| (start..end).contains(at)).count()
}

fn map_at(at: u64, pages: u64) {
    equal("mapped", call(MMAP, [at, pages * PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(at));
}

fn policies_of_areas() {
    map_at(AT, 8);
    let count = || areas(AT, AT + 8 * PAGE);
    equal("bound", bind(AT + 2 * PAGE, 2, MPOL_BIND, 1), Ok(0));
    equal("an area of its own", (count(), of(AT), of(AT + 2 * PAGE)), (3, Ok((0, 0)), Ok((MPOL_BIND, 1))));
    equal("the same", bind(AT + PAGE, 1, MPOL_BIND, 1), Ok(0));
    equal("joined", count(), 3);
    equal("another", bind(AT + PAGE, 1, MPOL_BIND | STATIC, 1), Ok(0));
    equal("two", count(), 4);
    equal("of other nodes", bind(AT, 1, MPOL_BIND | STATIC, 3), Ok(0));
    equal("two", (count(), of(AT)), (4, Ok((MPOL_BIND | STATIC, 3))));
    equal("none", bind(AT, 8, MPOL_DEFAULT, 0), Ok(0));
    equal("one", count(), 1);
    for (what, arguments, wanted) in [
        ("no page's address", [AT + 1, PAGE, 2, 64, 0], Err(EINVAL)),
        ("a byte", [AT, 1, 2, 64, 0], Ok(0)),
        ("no bytes", [AT, 0, 2, 64, 0], Ok(0)),
        ("no bytes, no nodes", [AT, 0, 2, 1, 0], Ok(0)),
        ("no nodes", [AT, PAGE, 2, 1, 0], Err(EINVAL)),
        ("a range that wraps", [AT, AT.wrapping_neg(), 2, 64, 0], Err(EINVAL)),
        ("all bytes", [AT, u64::MAX, 2, 64, 0], Ok(0)),
        ("a hole", [AT + 6 * PAGE, 4 * PAGE, 2, 64, 0], Err(EFAULT)),
        ("a hole first", [AT - PAGE, 2 * PAGE, 2, 64, 0], Err(EFAULT)),
        ("nothing there", [NOWHERE, PAGE, 2, 64, 0], Err(EFAULT)),
        ("no nodes, nothing there", [NOWHERE, PAGE, 2, 1, 0], Err(EINVAL)),
        ("no mode", [AT, PAGE, 9, 64, 0], Err(EINVAL)),
        ("all flags", [AT, PAGE, 2, 64, 7], Ok(0)),
        ("no flag", [AT, PAGE, 2, 64, 8], Err(EINVAL)),
        ("an int", [AT, PAGE, 1 << 32 | 2, 64, 0], Ok(0)),
        ("a tag", [(0x5a << 56 | AT) + PAGE, PAGE, 2, 64, 0], Ok(0)),
    ] {
        let (nodes, [at, bytes, mode, most, flags]) = ([1_u64, 0], arguments);
        equal(what, call(MBIND, [at, bytes, mode, nodes.as_ptr() as u64, most, flags]), wanted);
    }
    equal("bound", (of(AT), of(AT + PAGE), of(AT + 6 * PAGE)), (Ok((2, 1)), Ok((2, 1)), Ok((0, 0))));
    equal("the set is read first", call(MBIND, [AT + 1, PAGE, 2, 8, 64, 8]), Err(EFAULT));
    equal("a tag", get(0x5a << 56 | AT, MPOL_F_ADDR), Ok((2, 1)));
    equal("none over holes", bind(AT - PAGE, 16, MPOL_DEFAULT, 0), Ok(0));
    equal("none where nothing is", bind(NOWHERE, 1, MPOL_DEFAULT, 0), Err(EFAULT));
    equal("bound", bind(AT, 1, MPOL_PREFERRED, 0), Ok(0));
    let to = AT + 16 * PAGE;
    equal("moved", call(MREMAP, [AT, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to]), Ok(to));
    equal("with its policy", of(to), Ok((MPOL_LOCAL, 0)));
    let four = Pages::map(4, RW, SHARED).expect("memory");
    let shared = *four;
    equal("shared", bind(shared, 2, MPOL_BIND, 1), Ok(0));
    equal("its first pages", (of(shared), of(shared + 2 * PAGE)), (Ok((2, 1)), Ok((0, 0))));
    unmap(AT, 17);
}

fn policies_in_children() {
    map_at(AT, 2);
    equal("bound", bind(AT, 1, MPOL_BIND, 1), Ok(0));
    apart(|| {
        equal("a child's", (of(AT), of(AT + PAGE)), (Ok((2, 1)), Ok((0, 0))));
        equal("none", bind(AT, 2, MPOL_DEFAULT, 0), Ok(0));
    });
    equal("the parent's", of(AT), Ok((2, 1)));
    equal("the thread's", set(MPOL_BIND, 1), Ok(0));
    equal("is of no area", of(AT + PAGE), Ok((0, 0)));
    equal("nothing", set(MPOL_DEFAULT, 0), Ok(0));
    unmap(AT, 2);
}

fn homes() {
    map_at(AT, 8);
    equal("bound", bind(AT, 2, MPOL_BIND, 1), Ok(0));
    equal("in turn", bind(AT + 2 * PAGE, 1, MPOL_INTERLEAVE, 1), Ok(0));
    equal("preferred", bind(AT + 4 * PAGE, 1, MPOL_PREFERRED_MANY, 1), Ok(0));
    for (what, arguments, wanted) in [
        ("bound", [AT, PAGE, 0, 0], Ok(0)),
        ("no policy", [AT + 3 * PAGE, PAGE, 0, 0], Err(ENOENT)),
        ("in turn", [AT + 2 * PAGE, PAGE, 0, 0], Err(ENOTSUP)),
        ("preferred, beside others", [AT + 3 * PAGE, 3 * PAGE, 0, 0], Ok(0)),
        ("bound, and in turn", [AT, 3 * PAGE, 0, 0], Err(ENOTSUP)),
        ("another node", [AT, PAGE, 1, 0], Err(EINVAL)),
        ("no node", [AT, PAGE, u64::MAX, 0], Err(EINVAL)),
        ("flags", [AT, PAGE, 0, 1], Err(EINVAL)),
        ("no page's address", [AT + 1, 0, 0, 0], Err(EINVAL)),
        ("no bytes", [AT, 0, 0, 0], Ok(0)),
        ("all bytes", [AT, u64::MAX, 0, 0], Ok(0)),
        ("a range that wraps", [AT, AT.wrapping_neg(), 0, 0], Err(EINVAL)),
        ("nothing there", [NOWHERE, PAGE, 0, 0], Err(ENOENT)),
        ("a hole", [AT + 4 * PAGE, 8 * PAGE, 0, 0], Ok(0)),
        ("a tag", [0x5a << 56 | AT, PAGE, 0, 0], Err(ENOENT)),
    ] {
        equal(what, call(SET_MEMPOLICY_HOME_NODE, arguments), wanted);
    }
    equal("with a home and without", bind(AT + 5 * PAGE, 1, MPOL_PREFERRED_MANY, 1), Ok(0));
    equal("they differ", areas(AT + 4 * PAGE, AT + 6 * PAGE), 2);
    unmap(AT, 8);
}

fn migrations() {
    let own = u64::from(process::id());
    let gone = process::spawn(|| ());
    equal("ended", call(WAITID, [P_PID, gone.into(), 0, WEXITED | WNOWAIT, 0]), Ok(0));
    for (what, process, from, to, wanted) in [
        ("to itself", 0, 1, 1, Ok(0)),
        ("of itself", own, 1, 1, Ok(0)),
        ("nothing", 0, 0, 1, Ok(0)),
        ("of another node", 0, OTHER, 1, Ok(0)),
        ("to another", 0, 1, OTHER, Err(EINVAL)),
        ("to both", 0, 1, 3, Ok(0)),
        ("to nothing", 0, 1, 0, Err(EINVAL)),
        ("no process", 1 << 22, 1, 1, Err(ESRCH)),
        ("no number", u64::MAX, 1, 1, Err(ESRCH)),
        ("no process, to another", 1 << 22, 1, OTHER, Err(ESRCH)),
        ("one that has ended", gone.into(), 1, 1, Err(EINVAL)),
    ] {
        let sets = [from, to];
        let [from, to] = [&raw const sets[0] as u64, &raw const sets[1] as u64];
        equal(what, call(MIGRATE_PAGES, [process, 64, from, to]), wanted);
    }
    let set = 1_u64;
    let at = &raw const set as u64;
    equal("no sets", call(MIGRATE_PAGES, [0; 4]), Err(EINVAL));
    equal("from nowhere", call(MIGRATE_PAGES, [1 << 22, 64, 8, at]), Err(EFAULT));
    equal("to nowhere", call(MIGRATE_PAGES, [1 << 22, 64, at, 8]), Err(EFAULT));
    equal("waited", process::wait(gone), exited(0));
}

fn places() {
    const HERE: i32 = 0;
    const ABSENT: i32 = -(ENOENT as i32);
    const NOT: i32 = -(EFAULT as i32);
    map_at(AT, 8);
    equal("stored", put(AT, 1), Ok(()));
    equal("stored", put(AT + PAGE, 1), Ok(()));
    equal("read", bytes(AT + 2 * PAGE), [0]);
    equal("a guard", advise(AT + 3 * PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    protect(AT + PAGE, 1, PROT_NONE);
    let one = Pages::map(1, RW, SHARED).expect("memory");
    let shared = *one;
    equal("stored", put(shared, 1), Ok(()));
    let pages =
        [AT + 5, AT + PAGE, AT + 2 * PAGE, AT + 3 * PAGE, AT + 4 * PAGE, shared, NOWHERE, KERNEL, 0x5a << 56 | AT];
    let mut nodes = [0_i32; 9];
    let (at, to) = (pages.as_ptr() as u64, &raw mut nodes);
    let ask = |process: u64, count: u64, nodes: u64, flags: u64| {
        let mut found = [77_i32; 9];
        let answer = call(MOVE_PAGES, [process, count, at, nodes, found.as_mut_ptr() as u64, flags]);
        (answer, found)
    };
    let to = to as u64;
    let found = [HERE, HERE, NOT, ABSENT, ABSENT, HERE, NOT, NOT];
    let with = |last: i32| core::array::from_fn(|index| found.get(index).copied().unwrap_or(last));
    equal("where they are", ask(0, 9, 0, 0), (Ok(0), with(NOT)));
    equal("by number", ask(process::id().into(), 9, 0, 0), (Ok(0), with(NOT)));
    equal("moved", ask(0, 9, to, MPOL_MF_MOVE.into()), (Ok(0), with(HERE)));
    nodes[1] = 1;
    let first = core::array::from_fn(|index| if index == 0 { HERE } else { 77 });
    equal("to another node", ask(0, 9, &raw const nodes as u64, 6), (Err(ENODEV), first));
    nodes[1] = -1;
    equal("to none", ask(0, 9, &raw const nodes as u64, 2), (Err(ENODEV), first));
    for (what, arguments, wanted) in [
        ("no flag", [0, 1, at, 0, to, 1], Err(EINVAL)),
        ("no flag, no process", [1 << 22, 1, at, 0, to, 8], Err(EINVAL)),
        ("no process", [1 << 22, 1, at, 0, to, 0], Err(ESRCH)),
        ("no number", [u64::MAX, 1, at, 0, to, 0], Err(ESRCH)),
        ("no pages", [0, 0, 0, 0, 0, 0], Ok(0)),
        ("from nowhere", [0, 1, 8, 0, to, 0], Err(EFAULT)),
        ("to nowhere", [0, 1, at, 0, 8, 0], Err(EFAULT)),
        ("nodes of nowhere", [0, 1, at, 8, to, 2], Err(EFAULT)),
    ] {
        equal(what, call(MOVE_PAGES, arguments), wanted);
    }
    unmap(AT, 8);
}
