//! `/proc/PID/smaps`, `smaps_rollup`, `status`, `statm`, `stat` and `limits`: the text that they have of a process;
//! and `clear_refs`, as `smaps` shows what it does.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, advise, unmap, protect);

/// The files, all but `smaps_rollup` also those of a process that has ended.
const FILES: [&str; 6] = ["smaps", "smaps_rollup", "status", "statm", "stat", "limits"];
/// Bytes of the largest text.
const ROOM: usize = 64 << 10;

/// The names of lines, in their order.
const COUNTS: &str = "Rss Pss Pss_Dirty Shared_Clean Shared_Dirty Private_Clean Private_Dirty Referenced Anonymous KSM \
    LazyFree AnonHugePages ShmemPmdMapped FilePmdMapped Shared_Hugetlb Private_Hugetlb Swap SwapPss Locked";
const FIRST: &str = "Name Umask State Tgid Ngid Pid PPid TracerPid Uid Gid FDSize Groups NStgid NSpid NSpgid NSsid \
    Kthread";
const MEMORY: &str = "VmPeak VmSize VmLck VmPin VmHWM VmRSS RssAnon RssFile RssShmem VmData VmStk VmExe VmLib VmPTE \
    VmSwap HugetlbPages CoreDumping THP_enabled untag_mask";
const LAST: &str = "Threads SigQ SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs \
    Seccomp Seccomp_filters Speculation_Store_Bypass SpeculationIndirectBranch Cpus_allowed Cpus_allowed_list \
    Mems_allowed Mems_allowed_list voluntary_ctxt_switches nonvoluntary_ctxt_switches";

fn run(_: Start) -> u8 {
    let room = map(2 * ROOM as u64, RW).expect("room") as *mut u8;
    // SAFETY: mapped for texts alone.
    let room = unsafe { core::slice::from_raw_parts_mut(room, 2 * ROOM) };
    // No page of it comes while a text is read.
    room.fill(1);
    for file in FILES {
        text(file, room);
    }
    parts! { (room)
        forms areas copies sums signals names limits pieces positions others many_areas large_areas
        divided_blocks without_a_first_thread beside_changes orders old_pages old_blocks old_pages_of_others
    }
    status("accounts")
}

fn text<'r>(file: &str, room: &'r mut [u8]) -> &'r str {
    of(process::id(), file, room)
}

/// As [`text`], of a process or a thread.
fn of<'r>(id: u32, file: &str, room: &'r mut [u8]) -> &'r str {
    proc::text(&proc::open(id, file).expect(file), room, ROOM)
}

/// Its number, in KiB where it is of memory.
fn number(text: &str, name: &str) -> u64 {
    let first = proc::value(text, name).and_then(|value| value.split_whitespace().next()?.parse().ok());
    first.unwrap_or_else(|| panic!("{name}: no number"))
}

/// The records of a text of `smaps`, each with the range of its area.
fn records(text: &str) -> impl Iterator<Item = (u64, u64, &str)> {
    let mut rest = text;
    core::iter::from_fn(move || {
        let flags = rest.find("VmFlags: ")?;
        let (record, more) = rest.split_at(flags + rest[flags..].find('\n')? + 1);
        rest = more;
        let (start, end) = record.split_once(' ')?.0.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some((number(start)?, number(end)?, record))
    })
}

fn record_at(text: &str, at: u64) -> &str {
    records(text).find(|(start, end, _)| (*start..*end).contains(&at)).expect("an area").2
}

fn touch(at: u64, pages: u64) {
    // SAFETY: mapped writable, for this alone.
    (0..pages).for_each(|page| unsafe { ((at + page * PAGE) as *mut u8).write_volatile(1) });
}

fn names_are(text: &str, expected: [&str; 3]) {
    let names = text.lines().map(|line| line.split(':').next().unwrap_or_default());
    let expected = expected.into_iter().flat_map(str::split_whitespace);
    holds(("the lines", expected.clone().count()), names.eq(expected));
}

fn forms(room: &mut [u8]) {
    names_are(text("status", room), [FIRST, MEMORY, LAST]);
    let of_memory = |line: &str| {
        let (name, bytes) = line.split_once(':').expect("a line");
        let number = bytes.trim().strip_suffix(" kB").is_some_and(|number| number.trim().parse::<u64>().is_ok());
        // The numbers end in one column.
        holds(("a row of smaps", line), name.len() < 16 && line.len() == 27 && number);
    };
    let rollup = text("smaps_rollup", room);
    let (first, rest) = rollup.split_once('\n').expect("lines");
    equal("a name in its column", first.get(73..), Some("[rollup]"));
    rest.lines().for_each(of_memory);
    let all = "Rss Pss Pss_Dirty Pss_Anon Pss_File Pss_Shmem Shared_Clean";
    names_are(rest, [all, COUNTS.split_once("Shared_Clean").expect("a name").1, ""]);
    for (.., record) in records(text("smaps", room)) {
        let lines = record.split_once('\n').expect("lines").1;
        names_are(lines, ["Size KernelPageSize MMUPageSize", COUNTS, "THPeligible VmFlags"]);
        lines.lines().take(22).for_each(of_memory);
        holds("eligible", matches!(proc::value(lines, "THPeligible"), Some("           0" | "           1")));
        holds("each property has a space after it", lines.ends_with(" \n"));
    }
    equal("words of statm", text("statm", room).split(' ').count(), 7);
    equal("words of stat", text("stat", room).split(' ').count(), 52);
    for file in FILES {
        let file = proc::open(process::id(), file).expect("a file");
        equal("what it is", (file.stat().st_mode, file.stat().st_size), (S_IFREG | 0o444, 0));
    }
}

/// Where the pages of [`areas`] are.
const fn place(page: u64) -> u64 {
    FAR + page * PAGE
}

/// Maps areas, and gives them properties and pages.
fn make_areas() {
    let memfd = File::memory(c"accounts", 0).expect("a file");
    equal("its size", memfd.resize(4 * PAGE), Ok(0));
    for (page, protection, flags, file) in [
        (0, RW, PRIVATE, 0),
        (20, RW, PRIVATE, 0),
        (30, RW, PRIVATE | MAP_NORESERVE, 0),
        (40, PROT_NONE, PRIVATE, 0),
        (50, RW, PRIVATE, 0),
        (60, RW, SHARED, 0),
        (70, RW, MAP_SHARED, *memfd),
        (80, RW, MAP_PRIVATE, *memfd),
        (90, PROT_READ, SHARED, 0),
        (100, RW, PRIVATE, 0),
        (110, RW, PRIVATE | MAP_GROWSDOWN, 0),
        (120, RW, PRIVATE, 0),
        (130, RW, PRIVATE, 0),
        (140, PROT_READ | PROT_EXEC, PRIVATE, 0),
    ] {
        let answer = call(MMAP, [place(page), 4 * PAGE, protection, flags | MAP_FIXED, file, 0]);
        equal(("mapped", page), answer, Ok(place(page)));
    }
    touch(place(0), 3);
    equal("locked", call(MLOCK, [place(20), 4 * PAGE]), Ok(0));
    touch(place(50), 2);
    equal("a guard", advise(place(51), 1, MADV_GUARD_INSTALL), Ok(0));
    touch(place(60), 2);
    touch(place(70), 2);
    equal("a copy", probe::read(place(80)), Ok(1));
    touch(place(81), 1);
    equal("locked later", call(MLOCK2, [place(100), 4 * PAGE, MLOCK_ONFAULT.into()]), Ok(0));
    touch(place(100), 1);
    equal("wiped", advise(place(120), 4, MADV_WIPEONFORK), Ok(0));
    equal("not for children", advise(place(130), 4, MADV_DONTFORK), Ok(0));
}

fn areas(room: &mut [u8]) {
    make_areas();
    let text = text("smaps", room);
    for (page, [present, share, shared, anonymous, locked], properties) in [
        (0, [12, 12, 0, 12, 0], "rd wr mr mw me ac"),
        (20, [16, 16, 0, 16, 16], "rd wr mr mw me lo ac"),
        (30, [0; 5], "rd wr mr mw me nr"),
        (40, [0; 5], "mr mw me"),
        (50, [4, 4, 0, 4, 0], "rd wr mr mw me gu ac"),
        (60, [8, 8, 0, 0, 0], "rd wr sh mr mw me ms"),
        (70, [8, 6, 4, 0, 0], "rd wr sh mr mw me ms"),
        (80, [8, 6, 4, 4, 0], "rd wr mr mw me ac"),
        (90, [0; 5], "rd sh mr mw me ms"),
        (100, [4, 4, 0, 4, 4], "rd wr mr mw me lo lf ac"),
        (110, [0; 5], "rd wr mr mw me gd ac"),
        (120, [0; 5], "rd wr mr mw me ac wf"),
        (130, [0; 5], "rd wr mr mw me dc ac"),
        (140, [0; 5], "rd ex mr mw me"),
    ] {
        let of = |name| number(record_at(text, place(page)), name);
        equal(
            ("the area at", page),
            ["Rss", "Pss", "Anonymous", "Locked"].map(of),
            [present, share, anonymous, locked],
        );
        equal(("shared at", page), of("Shared_Clean") + of("Shared_Dirty"), shared);
        equal(("private at", page), of("Private_Clean") + of("Private_Dirty"), present - shared);
        equal(("anonymous pages are written", page), of("Private_Dirty") + of("Shared_Dirty") >= anonymous, true);
        equal(("its size", page), of("Size"), 16);
        let shown = proc::value(record_at(text, place(page)), "VmFlags").map(str::trim);
        equal(("properties at", page), shown, Some(properties));
    }
    unmap(FAR, 150);
}

fn copies(room: &mut [u8]) {
    let (ready, at) = (shared::<AtomicU32>(), map(16 * PAGE, RW).expect("pages"));
    touch(at, 16);
    let child = process::spawn::<()>(|| {
        touch(at, 1);
        ready.store(1, Ordering::Release);
        time::sleep_for_ever();
    });
    asleep_until(|| ready.load(Ordering::Acquire) == 1);
    let names = ["Rss", "Pss", "Shared_Dirty", "Private_Dirty", "Anonymous"];
    let mut shown = || names.map(|name| number(record_at(text("smaps", room), at), name));
    equal("beside a copy", shown(), [64, 34, 60, 4, 64]);
    process::end(child);
    equal("alone", shown(), [64, 64, 0, 64, 64]);
    unmap(at, 16);
}

/// The words of `statm`.
fn pages(room: &mut [u8]) -> [u64; 7] {
    let mut words = text("statm", room).split_whitespace().map(|word| word.parse().expect("a number"));
    core::array::from_fn(|_| words.next().expect("a word"))
}

fn sums(room: &mut [u8]) {
    let before = pages(room);
    let own = map(8 * PAGE, RW).expect("pages");
    touch(own, 5);
    // SAFETY: not at a fixed address.
    let with_others = unsafe { mmap(0, 4 * PAGE, RW, SHARED) }.expect("pages");
    touch(with_others, 3);
    equal("two locked", call(MLOCK, [own, 2 * PAGE]), Ok(0));
    let after = pages(room);
    let more: [u64; 7] = core::array::from_fn(|word| after[word] - before[word]);
    equal("pages more", more, [12, 8, 3, 0, 0, 8, 0]);
    let (room, other) = room.split_at_mut(ROOM);
    let status = text("status", room);
    let of = |name| number(status, name);
    equal("the size", of("VmSize"), 4 * after[0]);
    equal("what is there", of("VmRSS"), 4 * after[1]);
    equal("of what", of("RssAnon") + of("RssFile") + of("RssShmem"), of("VmRSS"));
    equal("not anonymous", of("RssFile") + of("RssShmem"), 4 * after[2]);
    equal("data", of("VmData") + of("VmStk"), 4 * after[5]);
    equal("code", of("VmExe").div_ceil(4), after[3]);
    equal("locked", of("VmLck"), 8);
    holds("the most", of("VmPeak") >= of("VmSize") && of("VmHWM") >= of("VmRSS"));
    equal("there is none", (of("VmPin"), of("VmSwap"), of("HugetlbPages")), (0, 0, 0));
    holds("tables", of("VmPTE") >= 12);
    equal("in bytes", text("stat", other).split(' ').nth(22).and_then(|size| size.parse().ok()), Some(PAGE * after[0]));
    let rollup = text("smaps_rollup", other);
    equal("together", number(rollup, "Rss"), of("VmRSS"));
    let smaps = text("smaps", room);
    for name in COUNTS.split_whitespace().filter(|name| !name.contains("Pss")) {
        equal(name, records(smaps).map(|(.., record)| number(record, name)).sum::<u64>(), number(rollup, name));
    }
    let range = rollup.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let shown = range.map(|range| <[&str; 2]>::from(range).map(|digits| u64::from_str_radix(digits, 16).ok()));
    let ends = [records(smaps).next().map(|first| first.0), records(smaps).last().map(|last| last.1)];
    equal("from the first area to the last", shown, Some(ends));
    unmap(own, 8);
    unmap(with_others, 4);
}

/// The words of `stat` after the name, from the state on.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.rsplit_once(") ").expect("a name").1.split_whitespace()
}

fn signals(room: &mut [u8]) {
    apart(|| {
        let before = mask(SIG_SETMASK, set_of(SIGUSR1)).expect("a mask");
        set_without_handler(SIGUSR2, SIG_IGN);
        interrupt_by(SIGHUP, 0);
        equal("to the process", process::kill(process::id() as i32, SIGUSR1), Ok(()));
        equal("to the thread", process::tgkill(process::id(), process::thread_id(), SIGUSR1), Ok(()));
        let status = text("status", room);
        let set =
            |name| proc::value(status, name).and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(77);
        let (usr1, usr2, hup) = (set_of(SIGUSR1), set_of(SIGUSR2), set_of(SIGHUP));
        equal("pending and blocked", ["SigPnd", "ShdPnd", "SigBlk"].map(set), [usr1; 3]);
        equal("ignored", set("SigIgn") & (usr1 | usr2 | hup), usr2);
        equal("with a handler", set("SigCgt") & (usr1 | usr2 | hup), hup);
        equal("a number for each", proc::value(status, "SigCgt").map(str::len), Some(17));
        let mut masks = words(text("stat", room)).skip(28).map(|word| word.parse().unwrap_or(77));
        equal("in decimals", [masks.next(), masks.next()], [Some(usr1); 2]);
        set_without_handler(SIGUSR1, SIG_IGN);
        mask(SIG_SETMASK, before).expect("a mask");
    });
}

fn names(room: &mut [u8]) {
    apart(|| {
        equal("a name", call(PRCTL, [PR_SET_NAME, c"a\nb\\ )(c".as_ptr() as u64]), Ok(0));
        equal("in one line", proc::value(text("status", room), "Name"), Some("\ta\\nb\\\\ )(c"));
        let (id, parent) = (process::id(), process::parent_id());
        let status = text("status", room);
        equal("numbers", ["Tgid", "Pid", "PPid"].map(|name| number(status, name)), [id, id, parent].map(u64::from));
        equal(
            "one thread, which runs",
            (number(status, "Threads"), proc::value(status, "State")),
            (1, Some("\tR (running)")),
        );
        let text = text("stat", room);
        let name = text.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") "));
        equal("as it is", name.map(|(name, _)| name), Some("a\nb\\ )(c"));
        let at = |word: usize| words(text).nth(word - 3).and_then(|word| word.parse::<i64>().ok());
        equal("its parent", at(4), Some(parent.into()));
        equal("no terminal", (at(7), at(8)), (Some(0), Some(-1)));
        equal("priority and threads", [18, 19, 20, 21].map(at), [20, 0, 1, 0].map(Some));
        equal("it runs, and SIGCHLD comes at its end", [35, 38, 52].map(at), [0, 17, 0].map(Some));
    });
}

fn limits(room: &mut [u8]) {
    apart(|| {
        equal("open files", process::limit(RLIMIT_NOFILE, 123, 456).map(drop), Ok(()));
        equal("addresses", process::limit(RLIMIT_AS, 1 << 40, 2 << 40).map(drop), Ok(()));
        let text = text("limits", room);
        for line in [
            "Limit                     Soft Limit           Hard Limit           Units     ",
            "Max cpu time              unlimited            unlimited            seconds   ",
            "Max stack size            8388608              unlimited            bytes     ",
            "Max open files            123                  456                  files     ",
            "Max address space         1099511627776        2199023255552        bytes     ",
            "Max nice priority         0                    0                    ",
            "Max realtime timeout      unlimited            unlimited            us        ",
        ] {
            holds(line, text.lines().any(|other| other == line));
        }
        equal("all lines", (text.lines().count(), text.len()), (17, 1323));
    });
}

fn pieces(room: &mut [u8]) {
    let (room, other) = room.split_at_mut(ROOM);
    for piece in [1, 7, 1000] {
        for file in ["smaps", "smaps_rollup", "statm", "limits"] {
            let (whole, file) = (text(file, room), proc::open(process::id(), file).expect("a file"));
            holds(("in pieces of", piece), proc::text(&file, other, piece) == whole);
        }
        let file = proc::open(process::id(), "status").expect("a file");
        names_are(proc::text(&file, other, piece), [FIRST, MEMORY, LAST]);
    }
}

fn positions(room: &mut [u8]) {
    for name in FILES {
        let file = proc::open(process::id(), name).expect("a file");
        let mut piece = [0; 8];
        equal((name, "pread"), call(PREAD64, [*file, piece.as_mut_ptr() as u64, 8, 3]), Ok(8));
        equal((name, "moves nothing"), file.seek(0, SEEK_CUR), Ok(0));
        let whole = file.read(&mut room[..ROOM]).expect("bytes");
        holds((name, "no end"), whole < 4096 || name == "smaps");
        equal((name, "of one text"), &piece[..], &room[3..11]);
        equal((name, "the start"), file.seek(0, SEEK_SET), Ok(0));
        equal((name, "to nowhere"), call(READ, [*file, NOWHERE, 100]), Err(EFAULT));
        let huge = call(READ, [*file, room.as_mut_ptr() as u64, 2 * ROOM as u64]);
        holds((name, "as many as there are"), huge.is_ok_and(|count| count != 0 && count <= whole + 64));
        equal((name, "far"), file.seek(1 << 40, SEEK_SET), Ok(1 << 40));
        equal((name, "nothing there"), file.read(&mut piece), Ok(0));
        equal((name, "the end"), file.seek(0, SEEK_END), Err(EINVAL));
        equal((name, "written"), call(PWRITE64, [*file, NOWHERE, 1, 0]), Err(ESPIPE));
    }
}

/// The text of one read from the start.
fn again<'r>(file: &File, room: &'r mut [u8]) -> Result<&'r str, Errno> {
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    file.read(room).map(|count| core::str::from_utf8(&room[..count as usize]).expect("text"))
}

/// Reads the files of a process that ends, and has ended.
fn others(room: &mut [u8]) {
    let child = process::spawn::<()>(|| time::sleep_for_ever());
    let files = FILES.map(|file| proc::open(child, file).expect("a child's"));
    asleep_until(|| again(&files[2], room).is_ok_and(|text| proc::value(text, "State") == Some("\tS (sleeping)")));
    until_zombie(SIGCHLD, || process::kill(child as i32, SIGKILL).expect("a signal"));
    equal("no areas", again(&files[0], room), Ok(""));
    equal("nor all of them", again(&files[1], room).map(drop), Err(ESRCH));
    let status = again(&files[2], room).expect("a status");
    equal("its state", proc::value(status, "State"), Some("\tZ (zombie)"));
    equal("no descriptors", number(status, "FDSize"), 0);
    names_are(status, [FIRST.split_once(' ').expect("names").0, FIRST.split_once("Umask ").expect("names").1, LAST]);
    equal("no pages", again(&files[3], room), Ok("0 0 0 0 0 0 0\n"));
    let stat = again(&files[4], room).expect("a line");
    let at = |word: usize| words(stat).nth(word - 3);
    equal("how it ended", (at(3), at(23), at(24), at(52)), (Some("Z"), Some("0"), Some("0"), Some("9")));
    equal("its limits", again(&files[5], room).map(|text| text.lines().count()), Ok(17));
    let opened = FILES.map(|file| proc::open(child, file).map(drop));
    equal("opened", opened, core::array::from_fn(|file| if file == 1 { Err(ESRCH) } else { Ok(()) }));
    for (name, mode) in [("smaps_rollup", 0o444), ("pagemap", 0o400)] {
        equal((name, "is of memory"), proc::open(child, name).map(drop), Err(ESRCH));
        let place = proc::open_with(child, name, O_PATH).map(|file| file.stat().st_mode);
        equal((name, "its place"), place, Ok(S_IFREG | mode));
    }
    equal("its end", process::wait(child), SIGKILL);
    equal("it is gone", [0, 1, 2, 3, 4, 5].map(|file| again(&files[file], room).map(drop)), [Err(ESRCH); 6]);
    equal("no name either", FILES.map(|file| proc::open(child, file).map(drop)), [Err(ENOENT); 6]);
}

fn many_areas(room: &mut [u8]) {
    const AREAS: u64 = 2000;
    let before = pages(room);
    let at = map(AREAS * PAGE, RW).expect("pages");
    equal("no blocks", advise(at, AREAS, MADV_NOHUGEPAGE), Ok(0));
    for page in (0..AREAS).step_by(2) {
        let protected = call(MPROTECT, [at + page * PAGE, PAGE, PROT_READ]);
        equal("protected", protected, Ok(0));
        touch(at + (page + 1) * PAGE, 1);
    }
    let after = pages(room);
    equal("areas and pages", [after[0] - before[0], after[1] - before[1]], [AREAS, AREAS / 2]);
    equal("together", number(text("smaps_rollup", room), "Rss"), 4 * after[1]);
    let child = process::spawn::<()>(|| time::sleep_for_ever());
    let file = proc::open(child, "smaps").expect("a child's");
    // It ends while it is read.
    for piece in 0.. {
        if piece == 5 {
            process::kill(child as i32, SIGKILL).expect("a signal");
        }
        match file.read(&mut room[..1000]) {
            Ok(0) | Err(ESRCH) => break,
            read => holds("a piece", read.is_ok()),
        }
    }
    equal("its end", process::wait(child), SIGKILL);
    unmap(at, AREAS);
}

/// An area whose pages have more tables than are looked at at once, and more addresses than have tables.
fn large_areas(room: &mut [u8]) {
    const SIZE: u64 = 64 << 30;
    const STEP: u64 = 128 << 20;
    let before = pages(room);
    let at = call(MMAP, [0, SIZE, RW, PRIVATE | MAP_NORESERVE, u64::MAX, 0]).expect("addresses");
    equal("no blocks", advise(at, SIZE / PAGE, MADV_NOHUGEPAGE), Ok(0));
    (0..SIZE / STEP).for_each(|step| touch(at + step * STEP, 1));
    let pages_there = SIZE / STEP;
    let record = record_at(text("smaps", room), at);
    equal(
        "there",
        ["Size", "Rss", "Pss"].map(|name| number(record, name)),
        [SIZE >> 10, 4 * pages_there, 4 * pages_there],
    );
    let after = pages(room);
    equal("together", [after[0] - before[0], after[1] - before[1]], [SIZE / PAGE, pages_there]);
    unmap(at, SIZE / PAGE);
}

/// A block that the process has whole, and its copy in part.
fn divided_blocks(room: &mut [u8]) {
    const BLOCK: u64 = 2 << 20;
    let ready = shared::<AtomicU32>();
    let whole = map(2 * BLOCK, RW).expect("pages");
    let at = whole.next_multiple_of(BLOCK);
    equal("blocks", advise(at, BLOCK / PAGE, MADV_HUGEPAGE), Ok(0));
    touch(at, BLOCK / PAGE);
    let child = process::spawn::<()>(|| {
        unmap(at, 1);
        ready.store(1, Ordering::Release);
        time::sleep_for_ever();
    });
    asleep_until(|| ready.load(Ordering::Acquire) == 1);
    let names = ["Rss", "Pss", "Pss_Dirty", "Shared_Dirty", "Private_Dirty", "Referenced", "AnonHugePages"];
    let record = record_at(text("smaps", room), at);
    equal("whole", names.map(|name| number(record, name)), [2048, 1026, 1026, 2044, 4, 2048, 2048]);
    process::end(child);
    unmap(whole, 2 * BLOCK / PAGE);
}

/// Threads, size, sleep, and the signal of the end, as `stat` has them.
fn some_words(text: &str) -> [Option<&str>; 4] {
    [20, 23, 35, 38].map(|word| words(text).nth(word - 3))
}

/// Reads the files of a process whose first thread has exited, and those of its other thread.
fn without_a_first_thread(room: &mut [u8]) {
    let other = shared::<AtomicU32>();
    let child = process::spawn::<()>(|| {
        let _thread = Thread::spawn(|| {
            other.store(process::thread_id(), Ordering::Release);
            time::sleep_for_ever();
        });
        process::exit(0)
    });
    asleep_until(|| proc::value(of(child, "status", room), "State") == Some("\tZ (zombie)"));
    asleep_until(|| {
        let thread = other.load(Ordering::Acquire);
        thread != 0 && proc::value(of(thread, "status", room), "State") == Some("\tS (sleeping)")
    });
    equal("no areas", ["maps", "smaps"].map(|file| of(child, file, room).len()), [0; 2]);
    let opened = ["smaps_rollup", "pagemap"].map(|file| proc::open(child, file).map(drop));
    equal("nor pages", opened, [Err(ESRCH); 2]);
    let status = of(child, "status", room);
    names_are(status, [FIRST.split_once(' ').expect("names").0, FIRST.split_once("Umask ").expect("names").1, LAST]);
    equal("two threads", number(status, "Threads"), 2);
    equal("no pages", of(child, "statm", room), "0 0 0 0 0 0 0\n");
    equal("threads, size, sleep, signal", some_words(of(child, "stat", room)), ["2", "0", "0", "17"].map(Some));
    let thread = other.load(Ordering::Acquire);
    let [threads, size, sleep, signal] = some_words(of(thread, "stat", room));
    equal("those of the other thread", [threads, sleep, signal], ["2", "0", "-1"].map(Some));
    holds("it has memory", size != Some("0"));
    holds("and areas", records(of(thread, "smaps", room)).count() > 2);
    equal("its threads", number(of(thread, "status", room), "Threads"), 2);
    process::end(child);
}

/// Each record is of one time, however areas change between pieces.
fn beside_changes(room: &mut [u8]) {
    static DONE: AtomicBool = AtomicBool::new(false);
    let changes = || {
        let mut random = Random(1);
        while !DONE.load(Ordering::Relaxed) {
            let place = FAR + random.below(8) as u64 * 4 * PAGE;
            equal("mapped", call(MMAP, [place, 2 * PAGE, RW, PRIVATE | MAP_FIXED, 0, 0]), Ok(place));
            touch(place, random.below(3) as u64);
            unmap(FAR, random.below(32) as u64 + 1);
        }
    };
    let looks = || {
        for round in 0..40 {
            let file = proc::open(process::id(), "smaps").expect("a file");
            for (start, end, record) in records(proc::text(&file, room, 100 + round)) {
                let of = |name| number(record, name);
                let parts = ["Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty"].map(of);
                holds(("one area", record), start < end && end - start == of("Size") << 10);
                holds(("one count", record), of("Rss") == parts.iter().sum() && of("Rss") <= of("Size"));
            }
            names_are(text("status", room), [FIRST, MEMORY, LAST]);
            let [size, present, shared, ..] = pages(room);
            holds(("of one space", size, present, shared), shared <= present && present <= size);
        }
        DONE.store(true, Ordering::Relaxed);
    };
    beside(changes, looks);
    unmap(FAR, 40);
}

fn orders_of(process: u32, flags: u32) -> File {
    proc::open_with(process, "clear_refs", flags).expect("clear_refs")
}

fn order(text: &[u8]) {
    equal("an order", orders_of(process::id(), O_WRONLY).write(text), Ok(text.len() as u64));
}

fn orders(room: &mut [u8]) {
    let file = orders_of(process::id(), O_RDWR);
    equal("what it is", (file.stat().st_mode, file.stat().st_size), (S_IFREG | 0o200, 0));
    for text in ["1", "2", "3", "4", "5", "1\n", " 1", " 1 \n", "+1", "01", "\t2\t", "1\0x", "1          \n"] {
        equal(("an order", text), file.write(text.as_bytes()), Ok(text.len() as u64));
    }
    for text in ["", "\n", "0", "6", "-1", "1 2", "1x", "0x1", "+", "x", "            1"] {
        equal(("no order", text), file.write(text.as_bytes()), Err(EINVAL));
    }
    equal("too large", file.write(b"4294967297"), Err(ERANGE));
    equal("too long", file.write(b"12345678901234"), Err(ERANGE));
    equal("12 bytes are read", file.write(b"1            2"), Ok(12));
    equal("from nowhere", call(WRITE, [*file, NOWHERE, 1]), Err(EFAULT));
    equal("nothing from nowhere", call(WRITE, [*file, NOWHERE, 0]), Err(EINVAL));
    for (offset, whence) in [(0, SEEK_CUR), (7, SEEK_SET), (7, SEEK_END), (-1, SEEK_CUR), (0, SEEK_DATA)] {
        equal(("the position", offset, whence), file.seek(offset, whence), Ok(0));
    }
    equal("at a place", file.write_at(b"1", 5), Ok(1));
    equal("at no place", file.write_at(b"1", -5_i64 as u64), Err(EINVAL));
    let piece = |text: &[u8]| IoVec { base: text.as_ptr() as u64, length: text.len() as u64 };
    let list = [piece(b"1"), piece(b"2"), piece(b"x")];
    let written = |list: &[IoVec]| call(WRITEV, [*file, list.as_ptr() as u64, list.len() as u64]);
    equal("each piece is one", [0, 1, 2].map(|from| written(&list[from..])), [Ok(2), Ok(1), Err(EINVAL)]);
    equal("no pieces", written(&[]), Ok(0));
    equal("pieces without bytes", written(&[piece(b""), piece(b"")]), Ok(0));
    equal("one first", written(&[piece(b""), piece(b"1")]), Err(EINVAL));
    equal("others", written(&[piece(b"1"), piece(b""), piece(b"1"), piece(b"")]), Ok(2));
    equal("it is not read", file.read(room), Err(EINVAL));
    equal("nor to the kernel", call(READ, [*file, KERNEL, 8]), Err(EINVAL));
    equal("nor at a place", file_at(&file, room), Err(EINVAL));
    equal("mmap", call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, *file, 0]), Err(ENODEV));
    equal("ftruncate", file.resize(0), Ok(0));
    let file = orders_of(process::id(), O_RDONLY);
    equal("opened to read", (file.read(room), file.write(b"1")), (Err(EINVAL), Err(EBADF)));
    equal("past the cache", proc::open_with(process::id(), "clear_refs", O_WRONLY | O_DIRECT), Err(EINVAL));
}

fn file_at(file: &File, room: &mut [u8]) -> Result<u64, Errno> {
    call(PREAD64, [**file, room.as_mut_ptr() as u64, 8, 0])
}

/// Pages that are used again; where TLBs have them as used, that shows in no entry before these are invalidated.
fn use_again(at: u64, pages: u64) {
    protect(at, pages, PROT_NONE);
    protect(at, pages, RW);
    touch(at, pages);
}

fn old_pages(room: &mut [u8]) {
    let memfd = File::memory(c"accounts", 0).expect("a file");
    equal("its size", memfd.resize(4 * PAGE), Ok(0));
    for (page, flags, file) in [(0, PRIVATE, 0), (20, MAP_SHARED, *memfd), (40, MAP_PRIVATE, *memfd), (60, SHARED, 0)] {
        let mapped = call(MMAP, [place(page), 4 * PAGE, RW, flags | MAP_FIXED, file, 0]);
        equal(("mapped", page), mapped, Ok(place(page)));
        equal("no blocks", advise(place(page), 4, MADV_NOHUGEPAGE), Ok(0));
    }
    let places = [0, 20, 40, 60].map(place);
    let use_all = || places.iter().for_each(|&at| use_again(at, 4));
    let of = |name, room: &mut [u8]| {
        let text = text("smaps", room);
        places.map(|at| number(record_at(text, at), name))
    };
    let words = || {
        let (file, mut words) = (proc::open(process::id(), "pagemap").expect("a file"), [0_u64; 4]);
        let read = call(PREAD64, [*file, words.as_mut_ptr() as u64, 32, place(0) / PAGE * 8]);
        equal("words of pages", read, Ok(32));
        words
    };
    use_all();
    let before = (words(), of("Private_Dirty", room), of("Rss", room));
    equal("used", of("Referenced", room), [16; 4]);
    for (text, referenced) in
        [("2", [0, 16, 16, 16]), ("3", [16, 0, 0, 0]), ("1", [0; 4]), ("4", [16; 4]), ("5", [16; 4])]
    {
        use_all();
        order(text.as_bytes());
        equal(("used since the order", text), of("Referenced", room), referenced);
    }
    use_all();
    order(b"1");
    equal("nothing else changes", (words(), of("Private_Dirty", room), of("Rss", room)), before);
    use_again(place(1), 1);
    equal("one page is used", of("Referenced", room), [4, 0, 0, 0]);
    use_all();
    order(b"1");
    let (mut byte, memory) = (0_u8, proc::open(process::id(), "mem").expect("a file"));
    for at in places {
        equal("read", call(PREAD64, [*memory, (&raw mut byte) as u64, 1, at + PAGE]), Ok(1));
    }
    equal("the kernel uses pages too", of("Referenced", room), [4; 4]);
    use_all();
    protect(place(1), 2, PROT_NONE);
    order(b"1");
    protect(place(1), 2, RW);
    equal("also pages without access", of("Referenced", room), [0; 4]);
    equal("what is there", places.map(probe::read), [Ok(1); 4]);
    places.iter().for_each(|&at| unmap(at, 4));
}

fn old_blocks(room: &mut [u8]) {
    const BLOCK: u64 = 2 << 20;
    let whole = map(4 * BLOCK, RW).expect("pages");
    let at = whole.next_multiple_of(BLOCK);
    equal("blocks", advise(at, 2 * BLOCK / PAGE, MADV_HUGEPAGE), Ok(0));
    touch(at, 2 * BLOCK / PAGE);
    // The second becomes groups of pages.
    protect(at + BLOCK + 64 * PAGE, 1, PROT_READ);
    protect(at + BLOCK + 64 * PAGE, 1, RW);
    let of = |room: &mut [u8]| {
        let text = text("smaps", room);
        let records = records(text).filter(|(start, end, _)| *start < at + 2 * BLOCK && at < *end);
        records.fold([0; 2], |[used, blocks], (.., record)| {
            [used + number(record, "Referenced"), blocks + number(record, "AnonHugePages")]
        })
    };
    let [used, blocks] = of(room);
    holds(("used", used), used >= 4096);
    holds(("blocks", blocks), blocks >= 2048);
    order(b"1");
    equal("old", of(room), [0, blocks]);
    use_again(at + BLOCK, BLOCK / PAGE);
    let used = of(room)[0];
    holds(("used again", used), (2048..=used.max(2048)).contains(&used) && used < 4096);
    unmap(whole, 4 * BLOCK / PAGE);
    // More tables than become old at once.
    let at = call(MMAP, [0, 64 << 30, RW, PRIVATE | MAP_NORESERVE, u64::MAX, 0]).expect("addresses");
    equal("no blocks", advise(at, (64 << 30) / PAGE, MADV_NOHUGEPAGE), Ok(0));
    (0..512).for_each(|step| touch(at + step * (128 << 20), 1));
    equal("all of it", number(record_at(text("smaps", room), at), "Referenced"), 2048);
    order(b"1");
    equal("is old", number(record_at(text("smaps", room), at), "Referenced"), 0);
    unmap(at, (64 << 30) / PAGE);
}

fn old_pages_of_others(room: &mut [u8]) {
    let ready = shared::<AtomicU32>();
    let at = map(4 * PAGE, RW).expect("pages");
    equal("no children's", advise(at, 4, MADV_NOHUGEPAGE), Ok(0));
    let child = process::spawn::<()>(|| {
        touch(at, 4);
        ready.store(1, Ordering::Release);
        time::sleep_for_ever();
    });
    asleep_until(|| ready.load(Ordering::Acquire) == 1);
    touch(at, 4);
    let file = orders_of(child, O_WRONLY);
    equal("an order", file.write(b"1"), Ok(1));
    equal("of the child's", number(record_at(of(child, "smaps", room), at), "Referenced"), 0);
    holds("and not of its own", number(record_at(text("smaps", room), at), "Referenced") >= 16);
    until_zombie(SIGCHLD, || process::kill(child as i32, SIGKILL).expect("a signal"));
    equal("of nothing", [file.write(b"1"), file.write(b"9")], [Ok(1), Err(EINVAL)]);
    equal("it can be opened", proc::open_with(child, "clear_refs", O_WRONLY).map(drop), Ok(()));
    equal("its end", process::wait(child), SIGKILL);
    equal("it is gone", [file.write(b"4"), file.write(b"9")], [Err(ESRCH), Err(EINVAL)]);
    unmap(at, 4);
}
