//! Sessions that run before the inputs, each in a boot of its own.
//!
//! A session is lines of the monitor on one machine. Those of the programs run on three: the code for CPUs that set no
//! access and dirty flags runs on `a53` alone, and what threads do at once needs two CPUs. Files that are no programs and
//! archives that are none are in initrds of their own.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use granule_runner::blocks::{play, repeatable};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu;
use granule_runner::serial::Limit;

use super::{SESSION_LIMIT, files};

/// Programs of target tests, as they run at the monitor.
const PROGRAMS: [&str; 47] = [
    "run accounts",
    "run scan",
    "run names",
    "run settings",
    "run nodes",
    "run bti exec",
    "run calls",
    "run mappings",
    "run refusals",
    "run tags",
    "run lifecycle",
    "run pidfds",
    "run rseq",
    "run locks",
    "run timers",
    "run lifecycle rounds 10",
    "run threads",
    "run transfers",
    "run signals",
    "run frames",
    "run tasks",
    "run tasks losers 20",
    "run epoll",
    "run futexes",
    "run signalfd",
    "run affinity",
    "run exec",
    "run answers",
    "run files",
    "run memfd",
    "run memfd race",
    "! run memfd full",
    "run advice",
    "run advice race",
    "run remap",
    "run remap race",
    "run collapse",
    "run collapse race",
    "run huge",
    "run huge race",
    "run limits",
    "run maps",
    "run peek",
    "run pie",
    "run random",
    "run stops",
    "run stress 1 4",
];

/// Programs that take all that they can get, beside one that works, and large numbers of everything.
const SHORTAGE: [&str; 20] = [
    "run hog beside &",
    "! run hog pages",
    "run hog droppable",
    "run hog forks",
    "run hog tables",
    "run hog moves",
    "run hog threads",
    "run hog areas",
    "run hog signals",
    "run hog zombies",
    "kill 1 15",
    "wait 1",
    "run long sleepers 300",
    "run long waiters 300",
    "run long readers 100",
    "run long processes 200",
    "run long memory 32",
    "run long fork 32",
    "run long random 2",
    "run long killed 32",
];

/// After a boot, numbers of tasks as they begin again; then as many tasks as there may be, and one more.
const CROWD: [&str; 8] = [
    "run tasks numbers 33000",
    "run console crowd &",
    "ps",
    "run hello",
    "run hello",
    "run hello",
    "run hello",
    "run hello",
];

/// Commands of the monitor that read the state of processes, and that change it.
const MONITOR: [&str; 50] = [
    "ls",
    "ps",
    "run spin computes &",
    "run lifecycle ask &",
    "run tasks handlers &",
    "run spin family &",
    "run console named &",
    "run hello one two",
    "run console crowd &",
    "ps",
    "maps 1",
    "ptdump 1",
    "walk 1 0x400000",
    "notify trace 1",
    "notify trace 1",
    "bind 3 edu",
    "unbind edu",
    "bind 3 edu",
    "! dma copy 0x10 0x700000000000 64",
    "! dma copy 0x400000 0x400100 64",
    "unbind edu",
    "kill 3 10",
    "kill 3",
    "! wait 3",
    "! kill 3",
    "bind 2 rng",
    "rng 0x700000000000 64",
    "unbind rng",
    "bind 2 nvme",
    "blk nvme read 0 0x700000000000",
    "unbind nvme",
    "bind 2 blk",
    "blk read 0 0x700000000000",
    "kill 2 15",
    "! wait 2",
    "! blk read 0 0x700000000000",
    "unbind blk",
    "kill 1 40",
    "ps",
    "! wait 1",
    "kill 4",
    "! wait 4",
    "ps",
    "run console reads",
    "typed by pieces",
    "! wait 99",
    "! maps 99",
    "! run nosuch",
    "! run plain",
    "! run plain/x",
];

/// Threads at once, on several CPUs; and a device that uses the tables of one of the programs.
const RACES: [&str; 12] = [
    "run stress 1 4 &",
    "bind 1 edu",
    "wait 1",
    "unbind edu",
    "run stress 2 8",
    "run threads",
    "run signals",
    "run signals long",
    "run tasks",
    "run tasks losers 20",
    "run stress 1 4",
    "run fuzz 1 2000 together",
];

/// Lines to be typed at the monitor of a machine.
pub(super) struct Session {
    pub(super) machine: Machine,
    /// In place of the image's own.
    pub(super) initrd: Option<PathBuf>,
    pub(super) lines: Vec<String>,
    /// Lines may fail.
    pub(super) may_fail: bool,
}

impl Session {
    /// The reported failures that are wrong: all but those that the session may have.
    pub(super) fn wrong(&self, reported: Vec<String>) -> Vec<String> {
        let is_line = |wrong: &str| wrong.starts_with("error: ") || wrong.ends_with("exit status: 1 in `poweroff`");
        reported.into_iter().filter(|wrong| !(self.may_fail && is_line(wrong))).collect()
    }
}

/// Lines that leave a program less memory each time: the first allocation that fails is an earlier one. `free` frames are
/// free at the prompt.
fn steps(free: usize) -> Vec<String> {
    /// Frames that the first area leaves, with its tables.
    const ROOM: usize = 1000;
    /// Frames of a second area, so that a program's calls fail; and its start, which may use the kernel's reserve.
    const CALLS: Range<usize> = 430..590;
    const START: Range<usize> = 830..950;
    let mut lines = vec![format!("vmalloc {}", free.saturating_sub(ROOM))];
    for (range, program) in [(CALLS, "lifecycle rounds 1"), (CALLS, "lifecycle"), (START, "hello")] {
        for taken in range {
            lines.extend([format!("vmalloc {taken}"), format!("run {program}"), "vfree $".to_owned()]);
        }
    }
    lines
}

/// Lines that leave programs little memory, in which they take what there is: where it ends depends on how little.
fn little(free: usize) -> Vec<String> {
    /// Frames that the first area leaves, with its tables.
    const ROOM: usize = 1000;
    /// The programs: `TAKEN` frames are a second area's, and the rest is for the program.
    const HOGS: [&str; 11] =
        ["vforks", "threads", "forks", "zombies", "areas", "tables", "moves", "heap", "shared", "populated", "signals"];
    const TAKEN: Range<usize> = 400..416;
    /// Objects of shared memory share their frames with few others.
    const SHARED: Range<usize> = 416..500;
    let mut lines = vec![format!("vmalloc {}", free.saturating_sub(ROOM))];
    for taken in TAKEN {
        for hog in HOGS {
            lines.extend([format!("vmalloc {taken}"), format!("run hog {hog}"), "vfree $".to_owned()]);
        }
    }
    for taken in SHARED {
        lines.extend([format!("vmalloc {taken}"), "run hog shared".to_owned(), "vfree $".to_owned()]);
    }
    lines
}

/// The free frames that `mem` printed.
fn free_frames(session: &str) -> Option<usize> {
    let words: Vec<&str> = session.lines().find(|line| line.starts_with("frames "))?.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "free")?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

/// All sessions: `machine` is that of the inputs. Initrds are written to `directory`; the others' is beside `image`.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn all(machine: &Machine, image: &Path, directory: &Path) -> Result<Vec<Session>> {
    let default = machine::named("default")?;
    let one_cpu = repeatable(&default);
    // Several CPUs that set no access and dirty flags, beside an SMMU.
    let machine_without_tags = format!("{},mte=off", default.machine);
    let older = Machine { cpu: "cortex-a72".into(), machine: machine_without_tags, ..default.clone() };
    let on = |machine: &Machine, lines: &[&str]| Session {
        machine: machine.clone(),
        initrd: None,
        lines: lines.iter().map(|&line| line.to_owned()).collect(),
        may_fail: false,
    };
    // Where the CPU has FEAT_PAN3, which of QEMU's have only these, pages may be executable and not readable.
    let programs = |machine: &Machine| {
        let mut session = on(machine, &PROGRAMS);
        if machine.cpu == "max" {
            session.lines.push("run mappings execute-only".to_owned());
            session.lines.retain(|line| line != "run mappings");
        }
        // FEAT_BTI.
        if !["max", "neoverse-n2"].contains(&machine.cpu.as_str()) {
            session.lines.retain(|line| line != "run bti exec");
            session.lines.push("run bti without".to_owned());
        }
        session
    };
    let mut sessions = vec![
        programs(machine),
        programs(&repeatable(&machine::named("a53")?)),
        on(&default, &RACES),
        on(&older, &RACES),
        on(&one_cpu, &SHORTAGE),
        on(&one_cpu, &MONITOR),
    ];
    let asked = play(&one_cpu, image, None, &["mem".to_owned()], Limit::work(SESSION_LIMIT))?;
    let free = free_frames(&asked.session).with_context(|| format!("no free frames in\n{}", asked.session))?;
    let crowd = CROWD.map(str::to_owned).to_vec();
    for lines in [steps(free), little(free), crowd] {
        sessions.push(Session { machine: one_cpu.clone(), initrd: None, lines, may_fail: true });
    }
    let own = qemu::initrd_of(image);
    let own = fs::read(&own).with_context(|| format!("cannot read {}", own.display()))?;
    for (index, (initrd, lines)) in files::initrds(&own).into_iter().enumerate() {
        let path = directory.join(format!("initrd-{index}.cpio"));
        fs::write(&path, initrd).with_context(|| format!("cannot write {}", path.display()))?;
        sessions.push(Session { machine: one_cpu.clone(), initrd: Some(path), lines, may_fail: false });
    }
    Ok(sessions)
}
