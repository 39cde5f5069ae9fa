//! The text of a process in the files of `/proc` (Linux: `fs/proc/array.c`, `fs/proc/base.c`).
//!
//! A number that is not counted here is 0, as on a Linux where nothing of the kind has happened; addresses are as a reader
//! without permission to trace finds them there. `docs/ref/linux.md` lists both.

use core::array;
use core::fmt::Write;

use granule_abi::limits::{RLIM_INFINITY, RLIM_NLIMITS, RLIMIT_RSS, RLIMIT_SIGPENDING, RLimit};
use granule_arch::addr::{PAGE, VirtAddr};

use super::task::Task;
use super::tree::{PROCESSES, Process, Tree, unreleased};
use crate::chip::timer::uptime_at;
use crate::linux::errno::Errno;
use crate::linux::file::proc::{ProcFile, ProcSubject};
use crate::linux::file::records::{self, Record};
use crate::linux::process::clocks::Clock;
use crate::linux::process::signal::Set;
use crate::linux::process::status::{Life, Name};
use crate::mm::space::{Aged, Resident, Settings, SpaceHandle, SpaceRef, Totals};
use crate::sched::{is_killed, relax};
use crate::smp::{self, CpuId, CpuSet};

/// Of `/proc`'s ticks, nanoseconds.
const TICK: u64 = 10_000_000;

/// A limit's name and unit.
const LIMITS: [(&str, &str); RLIM_NLIMITS] = [
    ("cpu time", "seconds"),
    ("file size", "bytes"),
    ("data size", "bytes"),
    ("stack size", "bytes"),
    ("core file size", "bytes"),
    ("resident set", "bytes"),
    ("processes", "processes"),
    ("open files", "files"),
    ("locked memory", "bytes"),
    ("address space", "bytes"),
    ("file locks", "locks"),
    ("pending signals", "signals"),
    ("msgqueue size", "bytes"),
    ("nice priority", ""),
    ("realtime priority", ""),
    ("realtime timeout", "us"),
];

/// The state that the locks guard, at one moment.
struct Snapshot {
    process: u32,
    parent: u32,
    group: u32,
    session: u32,
    name: Name,
    state: &'static str,
    threads: usize,
    own_pending: Set,
    pending: Set,
    blocked: Set,
    ignored: Set,
    handled: Set,
    /// -1 of a thread that is not the first, 0 where there is none.
    exit_signal: i32,
    /// As `wait4` stores it, once it has ended.
    end: u32,
    created: u64,
    cpu: u32,
    cpus: CpuSet,
    most_pending: u64,
    most_present: u64,
    /// None once the thread has left it.
    space: Option<SpaceRef>,
}

/// The process that has this number, or a thread with it. A first thread that has exited has no space, though others
/// of its process have one.
pub fn find(id: u32) -> Option<ProcSubject> {
    let (serial, space) = {
        let tree = PROCESSES.lock();
        let process = tree.find_of_thread(id)?;
        (process.serial(), space_of_its(process, id))
    };
    Some(ProcSubject { id, serial, space: unreleased(space).as_ref().map(SpaceHandle::new) })
}

/// The space that the thread `id` of a process has.
fn space_of_its(process: &Process, id: u32) -> Option<SpaceRef> {
    let state = process.lock();
    state.find(id).and_then(|_| state.space.clone())
}

/// Makes pages of the space that the process has now old; of one that has ended there are none.
///
/// # Errors
/// `ESRCH`: its end was collected, or the thread has ended.
pub fn age(of: &ProcSubject, aged: Option<Aged>) -> Result<(), Errno> {
    let space = with(&PROCESSES.lock(), of, |process| space_of_its(process, of.id))?;
    if let (Some(space), Some(aged)) = (unreleased(space), aged) {
        space.age(aged, is_killed);
    }
    Ok(())
}

/// Makes the first record of `file` from an address on, for a reader whose thread is `reader`, and returns the address after
/// it; `None` after the last.
///
/// # Errors
/// `ESRCH`: the process's end was collected, or the thread has ended; or it has no memory, and the file is of that alone.
pub fn following(
    reader: &Task,
    of: &ProcSubject,
    file: ProcFile,
    from: VirtAddr,
    record: &mut Record,
) -> Result<Option<VirtAddr>, Errno> {
    relax();
    let is_of_areas = matches!(file, ProcFile::Maps | ProcFile::Smaps);
    if is_killed() || from.0 != 0 && !is_of_areas {
        return Ok(None);
    }
    let space = of.space.as_ref().and_then(SpaceHandle::upgrade);
    match file {
        ProcFile::Maps | ProcFile::Smaps => {
            with(&PROCESSES.lock(), of, |_| ())?;
            return Ok(whole(space.and_then(|space| area(&space, file, from, record)), record));
        }
        ProcFile::SmapsRollup => {
            let totals = totals(Some(&space.ok_or(Errno::ESRCH)?));
            records::rollup(record, totals.start, totals.end, &totals.resident);
        }
        ProcFile::Status => status(record, of, &snapshot(of)?),
        ProcFile::Statm => statm(record, &totals(snapshot(of)?.space.as_ref())),
        ProcFile::Stat => {
            let seen = snapshot(of)?;
            let time = Clock::Process(seen.process).now(reader).unwrap_or_default();
            // Another may have its number by now.
            with(&PROCESSES.lock(), of, |_| ())?;
            stat(record, of, &seen, time);
        }
        ProcFile::Limits => {
            let read = |process: &Process| array::from_fn(|number| process.limits.exchange(number as u32, None));
            let found = with(&PROCESSES.lock(), of, read)?;
            limits(record, &found)?;
        }
        ProcFile::Pagemap | ProcFile::Mem | ProcFile::ClearRefs => {}
    }
    Ok(whole(Some(VirtAddr(1)), record))
}

/// The address after a record, unless its counts are cut short: then nothing stays of it for other readers.
fn whole(next: Option<VirtAddr>, record: &mut Record) -> Option<VirtAddr> {
    if is_killed() {
        record.clear();
        return None;
    }
    next
}

/// The record of the first area from an address on.
#[inline(never)]
fn area(space: &SpaceRef, file: ProcFile, from: VirtAddr, record: &mut Record) -> Option<VirtAddr> {
    let (heap, stack_top) = (*space.heap().read(), space.trampoline());
    if file == ProcFile::Maps {
        return space.with_next_area(from, |area| {
            records::line(record, area, heap, stack_top);
            area.end()
        });
    }
    let (mut pages, mut shown) = (Resident::default(), None);
    let range = space.add_resident(from, &mut pages, is_killed, |area| {
        records::line(record, area, heap, stack_top);
        let mut of_area = area.shown();
        of_area.may_have_blocks &= !space.settings().has(Settings::NO_BLOCKS);
        shown = Some(of_area);
        area.range()
    })?;
    records::smaps(record, &shown?, &pages);
    Some(range.end())
}

fn totals(space: Option<&SpaceRef>) -> Totals {
    space.map_or_else(Totals::default, |space| space.totals(is_killed))
}

fn with<R>(tree: &Tree, of: &ProcSubject, look: impl FnOnce(&Process) -> R) -> Result<R, Errno> {
    tree.find_of_thread(of.id).filter(|process| process.serial() == of.serial).map(look).ok_or(Errno::ESRCH)
}

fn snapshot(of: &ProcSubject) -> Result<Snapshot, Errno> {
    let mut tree = PROCESSES.lock();
    let mut seen = with(&tree, of, |process| {
        let state = process.lock();
        // Without it its end has not been collected.
        let task = state.find(of.id);
        let (ignored, handled) = state.handlers.with(|actions| actions.sets());
        Snapshot {
            process: process.id(),
            parent: process.parent_id(),
            group: process.group(),
            session: process.session(),
            name: state.name,
            state: match task {
                None => "Z (zombie)",
                // From before its parent is notified, like on Linux.
                Some(task) if state.stop.has(task) => "T (stopped)",
                Some(task) if task.thread().is_parked() => match task.thread().is_uninterruptible() {
                    true => "D (disk sleep)",
                    false => "S (sleeping)",
                },
                Some(_) => "R (running)",
            },
            // The first one counts until its end is collected.
            threads: state.threads() + usize::from(state.find(process.id()).is_none()),
            own_pending: task.map_or(Set::EMPTY, |task| task.pending(&state).set()),
            pending: state.pending.set(),
            blocked: task.map_or(Set::EMPTY, Task::blocked),
            ignored,
            handled,
            exit_signal: 0,
            end: if let Life::Ended(end) = state.life { end.word() } else { 0 },
            created: uptime_at(process.created).as_nanos() as u64,
            cpu: task.map_or(0, |task| task.thread().home().0),
            cpus: task.map_or(smp::online(), |task| task.thread().online_cpus()),
            most_pending: process.limits.soft(RLIMIT_SIGPENDING),
            most_present: process.limits.soft(RLIMIT_RSS),
            space: task.and(state.space.clone()),
        }
    })?;
    let exit_signal = tree.exit_signal(seen.process).map_or(0, |signal| signal.number() as i32);
    drop(tree);
    seen.exit_signal = if of.id == seen.process { exit_signal } else { -1 };
    seen.space = unreleased(seen.space.take());
    Ok(seen)
}

/// The name without the zeros after it.
fn name(name: &Name) -> &[u8] {
    name.bytes().split(|&byte| byte == 0).next().unwrap_or_default()
}

fn status(record: &mut Record, of: &ProcSubject, seen: &Snapshot) {
    let _ = record.extend_from_slice(b"Name:\t");
    for byte in name(&seen.name) {
        let _ = match byte {
            b'\n' => record.extend_from_slice(b"\\n"),
            b'\\' => record.extend_from_slice(b"\\\\"),
            _ => record.extend_from_slice(&[*byte]),
        };
    }
    // A thread that has ended has no table of descriptors either, and no mask of modes.
    let (slots, mask) = if seen.space.is_some() { (64, "Umask:\t0022\n") } else { (0, "") };
    let (id, process) = (of.id, seen.process);
    let _ = write!(
        record,
        "\n{mask}State:\t{}\nTgid:\t{process}\nNgid:\t0\nPid:\t{id}\nPPid:\t{}\nTracerPid:\t0\n\
        Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t{slots}\nGroups:\t \n\
        NStgid:\t{process}\nNSpid:\t{id}\nNSpgid:\t{}\nNSsid:\t{}\nKthread:\t0\n",
        seen.state, seen.parent, seen.group, seen.session,
    );
    if let Some(space) = &seen.space {
        memory(record, space);
    }
    let queued = seen.own_pending.0.count_ones() + seen.pending.0.count_ones();
    let _ = write!(
        record,
        "Threads:\t{}\nSigQ:\t{queued}/{}\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\n\
        SigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
        seen.threads,
        seen.most_pending,
        seen.own_pending.0,
        seen.pending.0,
        seen.blocked.0,
        seen.ignored.0,
        seen.handled.0,
    );
    let _ = write!(
        record,
        "CapInh:\t{none}\nCapPrm:\t{all}\nCapEff:\t{all}\nCapBnd:\t{all}\nCapAmb:\t{none}\n\
        NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n\
        Speculation_Store_Bypass:\tthread vulnerable\nSpeculationIndirectBranch:\tunknown\nCpus_allowed:\t",
        none = "0000000000000000",
        all = "000001ffffffffff",
    );
    // As many digits as there are for all CPUs.
    for digit in (0..u32::BITS / 4).rev().filter(|&digit| smp::online().bits() >> (4 * digit) != 0) {
        let _ = write!(record, "{:x}", seen.cpus.bits() >> (4 * digit) & 0xf);
    }
    let _ = record.extend_from_slice(b"\nCpus_allowed_list:\t");
    list(record, seen.cpus);
    let _ = write!(
        record,
        "\nMems_allowed:\t0001\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
    );
}

/// CPUs as Linux lists them: `0-2,5`.
fn list(record: &mut Record, cpus: CpuSet) {
    let mut before = "";
    for first in cpus.iter().filter(|first| first.0 == 0 || !cpus.contains(CpuId(first.0 - 1))) {
        let _ = write!(record, "{before}{}", first.0);
        let length = (cpus.bits() >> first.0).trailing_ones();
        if length > 1 {
            let _ = write!(record, "-{}", first.0 + length - 1);
        }
        before = ",";
    }
}

/// The rows of memory in `status`.
#[inline(never)]
fn memory(record: &mut Record, space: &SpaceRef) {
    let totals = totals(Some(space));
    let [anonymous, of_files, of_shared_memory] = totals.resident.bytes;
    let present = anonymous + of_files + of_shared_memory;
    let [code, libraries] = totals.code;
    let tables = (space.table_frames() as u64 - 1) * PAGE;
    for (name, bytes) in [
        ("VmPeak", totals.size),
        ("VmSize", totals.size),
        ("VmLck", totals.locked),
        ("VmPin", 0),
        ("VmHWM", present),
        ("VmRSS", present),
        ("RssAnon", anonymous),
        ("RssFile", of_files),
        ("RssShmem", of_shared_memory),
        ("VmData", totals.data),
        ("VmStk", totals.stacks),
        ("VmExe", code),
        ("VmLib", libraries),
        ("VmPTE", tables),
        ("VmSwap", 0),
        ("HugetlbPages", 0),
    ] {
        let _ = writeln!(record, "{name}:\t{:8} kB", bytes >> 10);
    }
    let _ = record.extend_from_slice(b"CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffff\n");
}

fn statm(record: &mut Record, totals: &Totals) {
    let [anonymous, of_files, of_shared_memory] = totals.resident.bytes;
    let shared = of_files + of_shared_memory;
    let [size, present, shared, code, data] =
        [totals.size, anonymous + shared, shared, totals.code[0], totals.data + totals.stacks]
            .map(|bytes| bytes / PAGE);
    let _ = writeln!(record, "{size} {present} {shared} {code} 0 {data} 0");
}

fn stat(record: &mut Record, of: &ProcSubject, seen: &Snapshot, time: u64) {
    let totals = totals(seen.space.as_ref());
    let present = totals.resident.bytes.iter().sum::<u64>() / PAGE;
    let has_code = u8::from(seen.space.is_some());
    let heap = seen.space.as_ref().map_or(0, |space| space.heap().read().start);
    let state = seen.state.split(' ').next().unwrap_or_default();
    let signals = [seen.own_pending, seen.blocked, seen.ignored, seen.handled].map(|set| set.0 & 0x7fff_ffff);
    let [pending, blocked, ignored, handled] = signals;
    let _ = write!(record, "{} (", of.id);
    let _ = record.extend_from_slice(name(&seen.name));
    let _ = write!(record, ") {state} {} {} {} 0 -1 0 0 0 0 0 ", seen.parent, seen.group, seen.session);
    let _ = write!(record, "{} 0 0 0 20 0 ", time / TICK);
    let _ =
        write!(record, "{} 0 {} {} {present} {} ", seen.threads, seen.created / TICK, totals.size, seen.most_present);
    let _ = write!(record, "{has_code} {has_code} 0 0 0 {pending} {blocked} {ignored} {handled} ");
    // Of several threads Linux says of none.
    let sleeps = u8::from(seen.threads == 1 && state != "R");
    let _ = write!(record, "{sleeps} 0 0 {} {} 0 0 0 0 0 ", seen.exit_signal, seen.cpu);
    let _ = writeln!(record, "0 0 {heap} 0 0 0 0 {}", seen.end);
}

fn limits(record: &mut Record, limits: &[Result<RLimit, Errno>; RLIM_NLIMITS]) -> Result<(), Errno> {
    let _ = writeln!(record, "{:25} {:20} {:20} {:10}", "Limit", "Soft Limit", "Hard Limit", "Units");
    for ((name, unit), limit) in LIMITS.iter().zip(limits) {
        let limit = (*limit)?;
        let _ = write!(record, "Max {name:21} ");
        for value in [limit.soft, limit.hard] {
            let _ = if value == RLIM_INFINITY {
                write!(record, "{:20} ", "unlimited")
            } else {
                write!(record, "{value:<20} ")
            };
        }
        let _ = if unit.is_empty() { writeln!(record) } else { writeln!(record, "{unit:10}") };
    }
    Ok(())
}
