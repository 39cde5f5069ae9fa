//! Measurements: two boots of the bench image under `-icount`, and one of the kernel.
//!
//! The first boot measures. The second does the same once more while QEMU logs the barriers, and must take exactly as
//! many instructions: a bench that is not repeatable fails at once.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use granule_protocol::{Event, Frame, Nonce, NotAFrame};

use super::bars::Bar;
use super::list::{Bench, NULL};
use super::trace::Sites;
use super::{BOOT, Measured, Row, net};
use crate::machine::Machine;
use crate::qemu::{Qemu, Reset, Serial};
use crate::script;
use crate::serial::{Guest, Limit, Line, Lines, Received};
use crate::session::fresh_nonce;

/// Boots that run at one time: each keeps one CPU of the host busy.
const AT_ONCE: usize = 2;
/// For a boot and all its rows: 200 s on the machines that we know, and several times as much on a host that lends its
/// CPUs.
const LIMIT: Limit = Limit::work(1800);
/// Memory of the machine whose boot is measured.
const BOOT_MEMORY: &str = "1G";
/// Instructions that row `null` may take besides its loop: the branch over it.
const NULL_FIXED: u32 = 1;

/// A point as the guest measured it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Point {
    size: u32,
    instructions: u32,
    /// Which of the boot's windows.
    window: u32,
}

/// The rows of one boot, by their indices.
type Points = Vec<(u32, Vec<Point>)>;

/// The rows to measure.
#[derive(Clone, Debug)]
pub struct Chosen<'a> {
    /// The row [`NULL`].
    pub null: &'a Bench,
    /// Rows of the bench image, in the order in which they are measured.
    pub rows: Vec<&'a Bench>,
    /// The row [`BOOT`].
    pub boot: bool,
}

impl<'a> Chosen<'a> {
    /// The rows of `all` for which `is` holds; [`BOOT`] too if `boot`. Rows that are subtracted from one of them come
    /// along, where `may` lets them.
    ///
    /// # Errors
    /// When there is no [`NULL`] among all.
    pub fn new(
        all: &'a [Bench],
        is: impl Fn(&Bench) -> bool,
        may: impl Fn(&Bench) -> bool,
        boot: bool,
    ) -> Result<Self> {
        let null = all.iter().find(|row| row.name == NULL).context("an image of benches has a row `null`")?;
        let is_chosen = |row: &Bench| is(row) && may(row);
        let is_needed = |row: &Bench| may(row) && net::is_subtracted(&row.name, all, is_chosen);
        let rows = all.iter().filter(|row| row.name != NULL);
        let mut rows: Vec<&Bench> = rows.filter(|row| is_chosen(row) || is_needed(row)).collect();
        // The linker's order means nothing and changes with the compiler.
        rows.sort_by_key(|row| (Bar::place(&row.name), &row.name));
        Ok(Self { null, rows, boot })
    }

    /// Whether there is nothing to measure.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.boot
    }
}

/// The images that are measured.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The bench image as ELF.
    pub elf: &'a Path,
    /// The program of the initrd that measures at EL0, as ELF.
    pub program: &'a Path,
    /// The bench image as it boots.
    pub image: &'a Path,
    /// The kernel as it boots.
    pub kernel: &'a Path,
    /// Where QEMU may write its log.
    pub scratch: &'a Path,
}

/// Measures what is `chosen` on each machine, and the kernel's boot where [`BOOT`] is to be a row; `bootargs` are more
/// boot arguments for the bench image. Boots run two at a time: instructions do not depend on what else the host does.
///
/// # Errors
/// When a boot does not end as it should, another one does not repeat it, or something ran that was not measured.
pub fn measure(chosen: &[(Machine, Chosen<'_>)], images: Images<'_>, bootargs: &str) -> Result<Vec<Measured>> {
    let mut parts: Vec<Part<'_>> = chosen.iter().enumerate().flat_map(parts).collect();
    // Those that take longest begin first, so that none is left alone at the end.
    parts.sort_by_key(|part| Reverse(part.chosen.rows.len()));
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Row)>> {
        let mut rows = Vec::new();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            match part.measure(images, bootargs) {
                Ok(measured) => rows.extend(measured.into_iter().map(|row| (part.of, row))),
                Err(error) => {
                    next.store(parts.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(rows)
    };
    let rows = std::thread::scope(|scope| {
        let workers = [0; AT_ONCE].map(|_| scope.spawn(work));
        let rows = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        rows.collect::<Result<Vec<_>>>()
    })?;
    let mut measured: Vec<Measured> =
        chosen.iter().map(|(machine, _)| Measured { machine: machine.name.clone(), rows: Vec::new() }).collect();
    rows.into_iter().flatten().for_each(|(of, row)| measured[of].rows.push(row));
    for (measured, (_, chosen)) in measured.iter_mut().zip(chosen) {
        // The boot is none of the image's rows, and stands last.
        let place = |row: &Row| chosen.rows.iter().position(|bench| bench.name == row.name).unwrap_or(usize::MAX);
        measured.rows.sort_by_key(place);
        let boot = measured.rows.pop_if(|row| row.name == BOOT);
        net::add(&mut measured.rows);
        measured.rows.extend(boot);
    }
    Ok(measured)
}

/// The share of one boot, which another repeats.
struct Part<'a> {
    /// The place of its machine in the list.
    of: usize,
    machine: Machine,
    bootargs: &'a str,
    /// Rows of these boot arguments, or the kernel's boot.
    chosen: Chosen<'a>,
}

/// The parts of a machine's rows: one for each kind of boot arguments, and one for the kernel's boot.
fn parts<'a>((of, (machine, chosen)): (usize, &'a (Machine, Chosen<'a>))) -> Vec<Part<'a>> {
    let machine = Machine { smp: 1, icount: true, ..machine.clone() };
    let mut kinds: Vec<&str> = chosen.rows.iter().map(|row| row.bootargs.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let part = |bootargs, rows, boot| Part {
        of,
        machine: machine.clone(),
        bootargs,
        chosen: Chosen { rows, boot, null: chosen.null },
    };
    let rows = |kind| chosen.rows.iter().copied().filter(|row| row.bootargs == kind).collect();
    let boot = chosen.boot.then(|| part("", Vec::new(), true));
    kinds.into_iter().map(|kind| part(kind, rows(kind), false)).chain(boot).collect()
}

impl Part<'_> {
    fn measure(&self, images: Images<'_>, bootargs: &str) -> Result<Vec<Row>> {
        if self.chosen.boot {
            let taken = boot_to_prompt(&self.machine, images.kernel)?;
            return Ok(vec![Row::new(BOOT, "boot", vec![(1, taken)], Vec::new())]);
        }
        measure_rows(&self.machine, images, &self.chosen, format!("{} {bootargs}", self.bootargs).trim())
    }
}

/// Measures rows that are booted alike, in two boots.
fn measure_rows(machine: &Machine, images: Images<'_>, chosen: &Chosen<'_>, bootargs: &str) -> Result<Vec<Row>> {
    let boot = |extra: &[OsString]| one_boot(machine, images.image, chosen, bootargs, extra);
    let points = boot(&[])?;
    let sites = Sites::read(&[images.elf, images.program])?;
    // One for each of this process: tests measure at the same time.
    static LOGS: AtomicU32 = AtomicU32::new(0);
    let number = LOGS.fetch_add(1, Ordering::Relaxed);
    let log = images.scratch.join(format!("bench-{}-{number}.trace", std::process::id()));
    let mut extra: Vec<OsString> =
        ["-accel", "tcg,one-insn-per-tb=on", "-d", "exec,nochain", "-dfilter"].map(Into::into).into();
    extra.extend([sites.filter().into(), "-D".into(), log.clone().into()]);
    let again = boot(&extra);
    let text = std::fs::read_to_string(&log);
    // There is none where QEMU did not start.
    let _ = std::fs::remove_file(&log);
    ensure!(points == again?, "two boots of {} took different numbers of instructions", machine.name);
    let windows = sites.windows(&text.with_context(|| format!("cannot read {}", log.display()))?)?;
    let mut rows = Vec::new();
    for (bench, (_, points)) in chosen.rows.iter().zip(points) {
        let barriers = points
            .iter()
            .map(|point| windows.get(point.window as usize).copied().context("the log ends before the boot"))
            .collect::<Result<_>>()?;
        let points = points.iter().map(|point| (point.size, point.instructions)).collect();
        rows.push(Row::new(&bench.name, &bench.unit, points, barriers));
    }
    Ok(rows)
}

/// The points of the chosen rows, in their order.
fn one_boot(
    machine: &Machine,
    image: &Path,
    chosen: &Chosen<'_>,
    bootargs: &str,
    extra: &[OsString],
) -> Result<Points> {
    let nonce = fresh_nonce();
    let rows: Vec<String> = chosen.rows.iter().map(|row| row.index.to_string()).collect();
    let mut append = format!("semihosting nokaslr norandmaps bench.nonce={nonce} bench.rows={}", rows.join(","));
    if !bootargs.is_empty() {
        append.push_str(&format!(" {bootargs}"));
    }
    let mut guest = Guest::start(&Qemu::new(machine, image, Serial::Pipes, Reset::Ends, &append, extra))?;
    let deadline = guest.deadline(LIMIT);
    let mut lines = Lines::default();
    let mut transcript = Vec::new();
    loop {
        match guest.receive(deadline) {
            Received::Bytes(bytes) => transcript.extend(lines.feed(&bytes)),
            Received::Closed => break,
            Received::Silence => bail!("the benches on {} took longer than {} s", machine.name, LIMIT.seconds()),
        }
    }
    let status = guest.status(Duration::from_secs(60))?.and_then(|status| status.code());
    let received = || format!("the benches on {}, of which was received:\n{}", machine.name, transcript.join("\n"));
    ensure!(status == Some(0), "status {status:?} of {}", received());
    let rows = chosen.rows.iter().map(|row| row.index);
    let expected: Vec<u32> = [chosen.null.index].into_iter().chain(rows).chain([chosen.null.index]).collect();
    let mut points = read(&transcript, nonce, &expected).with_context(received)?;
    let (first, last) = (points.remove(0).1, points.pop().unwrap_or_default().1);
    check_null(&first).with_context(|| format!("on {}, before the first row", machine.name))?;
    check_null(&last).with_context(|| format!("on {}, after the last row", machine.name))?;
    Ok(points)
}

/// Reads the frames of a boot that was to measure the rows `expected`, in this order.
fn read(transcript: &[String], nonce: Nonce, expected: &[u32]) -> Result<Points> {
    let mut frames = Vec::new();
    for line in transcript {
        match Frame::decode(line, nonce) {
            Ok(frame) => {
                ensure!(frame.sequence as usize == frames.len(), "a frame is out of sequence: {line}");
                frames.push(frame.event);
            }
            Err(NotAFrame::Output) => {}
            Err(why) => bail!("a line is no frame of this boot ({why:?}): {line}"),
        }
    }
    let mut frames = frames.into_iter();
    let total = expected.len() as u32;
    ensure!(frames.next() == Some(Event::Hello { tests: total }), "the guest measures other rows than it was asked to");
    let mut rows = Points::new();
    for &row in expected {
        ensure!(frames.next() == Some(Event::Begin { index: row }), "another row begins than the next, {row}");
        let mut points = Vec::new();
        loop {
            match frames.next() {
                Some(Event::Point { index, size, instructions, window }) if index == row => {
                    points.push(Point { size, instructions, window });
                }
                Some(Event::Pass { index, checks }) if index == row && checks as usize == points.len() => break,
                other => bail!("{other:?} in row {row}, after {} points", points.len()),
            }
        }
        ensure!(!points.is_empty(), "row {row} has no points");
        rows.push((row, points));
    }
    ensure!(frames.next() == Some(Event::End { passed: total, failed: 0, skipped: 0 }), "the guest did not end well");
    ensure!(frames.next().is_none(), "frames after the last");
    Ok(rows)
}

/// Row `null` is a branch and a loop of two instructions a turn: anything else that ran during it shows.
fn check_null(points: &[Point]) -> Result<()> {
    ensure!(points.iter().any(|point| point.size > 0), "row `{NULL}` has no loop");
    for &Point { size, instructions, .. } in points {
        let expected = NULL_FIXED + 2 * size;
        ensure!(
            instructions == expected,
            "{size} turns of an empty loop took {instructions} instructions, not {expected}: something else ran"
        );
    }
    Ok(())
}

/// Instructions from the kernel's first to its prompt, on a machine with 1 GiB.
fn boot_to_prompt(machine: &Machine, kernel: &Path) -> Result<u32> {
    let machine = Machine { memory: BOOT_MEMORY.into(), ..machine.clone() };
    let qemu = Qemu::new(&machine, kernel, Serial::Pipes, Reset::Ends, script::BOOTARGS, &[]);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands("uptime"), LIMIT, &mut session)?;
    let session = String::from_utf8_lossy(&session);
    ensure!(wrong.is_empty(), "the boot went wrong: {}\n{session}", wrong.join("; "));
    let counted = session
        .lines()
        .find_map(|line| line.trim_end().strip_prefix("boot to prompt: ")?.strip_suffix(" instructions")?.parse().ok());
    counted.with_context(|| format!("`uptime` does not print what the boot took:\n{session}"))
}

#[cfg(test)]
mod tests {
    use granule_protocol::{Event, Frame, Nonce};

    use super::{Point, check_null, read};

    const NONCE: Nonce = Nonce(7);

    /// An honest boot that measured rows 1 and 2, with `null` as row 0.
    fn boot() -> Vec<Event> {
        let mut events = vec![Event::Hello { tests: 4 }];
        for index in [0, 1, 2, 0] {
            events.push(Event::Begin { index });
            events.extend([1, 8].map(|size| Event::Point { index, size, instructions: 10 * size, window: size }));
            events.push(Event::Pass { index, checks: 2 });
        }
        events.push(Event::End { passed: 4, failed: 0, skipped: 0 });
        events
    }

    fn lines(events: &[Event]) -> Vec<String> {
        let mut lines = vec!["Granule boots".to_owned()];
        for (sequence, &event) in (0..).zip(events) {
            let mut line = String::new();
            Frame { sequence, event }.encode(NONCE, &mut line).unwrap();
            lines.extend([String::new(), line]);
        }
        lines
    }

    fn is_read(events: &[Event]) -> bool {
        read(&lines(events), NONCE, &[0, 1, 2, 0]).is_ok()
    }

    #[test]
    fn an_honest_boot_is_read() {
        let rows = read(&lines(&boot()), NONCE, &[0, 1, 2, 0]).unwrap();
        assert_eq!(rows.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2, 0]);
        assert_eq!(rows[1].1[1], Point { size: 8, instructions: 80, window: 8 });
    }

    #[test]
    fn a_boot_with_a_frame_too_few_or_too_many_is_refused() {
        assert!(is_read(&boot()));
        for at in 0..boot().len() {
            let mut events = boot();
            let event = events.remove(at);
            assert!(!is_read(&events), "without {event:?}");
            let mut events = boot();
            events.insert(at, event);
            assert!(!is_read(&events), "with another {event:?}");
        }
        assert!(read(&lines(&boot()), Nonce(8), &[0, 1, 2, 0]).is_err());
        assert!(read(&lines(&boot()), NONCE, &[0, 2, 1, 0]).is_err());
    }

    fn null(long: [u32; 2]) -> [Point; 3] {
        [(0, 1), (1000, long[0]), (1000, long[1])].map(|(size, instructions)| Point { size, instructions, window: 0 })
    }

    #[test]
    fn whatever_else_ran_is_noticed() {
        assert!(check_null(&null([2001, 2001])).is_ok());
        for one_of_them in [[2001, 2002], [2030, 2001], [2000, 2001]] {
            assert!(check_null(&null(one_of_them)).unwrap_err().to_string().contains("something else ran"));
        }
        assert!(check_null(&null([2001, 2001])[..1]).is_err());
    }
}
