//! The resources that processes take: CPU time, memory, and how much memory all of them have at one moment.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One process from its begin to its end, with the children that it waited for.
#[derive(Clone, Debug)]
pub struct Span {
    /// The suite that it belongs to: a machine, a program of tests, the builds.
    pub suite: String,
    /// When it began.
    pub begin: Instant,
    /// When it ended.
    pub end: Instant,
    /// Its CPU time.
    pub work: Duration,
    /// The most memory that it had, in bytes.
    pub memory: u64,
}

static SPANS: Mutex<Vec<Span>> = Mutex::new(Vec::new());

/// Notes a process that has ended now.
pub fn add(suite: &str, begin: Instant, work: Duration, memory: u64) {
    let span = Span { suite: suite.to_owned(), begin, end: Instant::now(), work, memory };
    SPANS.lock().unwrap_or_else(PoisonError::into_inner).push(span);
}

/// The processes that were noted.
pub fn spans() -> Vec<Span> {
    SPANS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The most memory at any moment, in bytes, if each process had its most all the time.
pub fn peak(spans: &[Span]) -> u64 {
    let at = |moment: Instant| spans.iter().filter(move |span| span.begin <= moment && moment < span.end);
    spans.iter().map(|span| at(span.begin).map(|other| other.memory).sum()).max().unwrap_or(0)
}

/// The CPU time of a process until now, of all its threads; `None` if it is gone.
pub fn work(process: u32) -> Option<Duration> {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => of_stat(&stat),
        // A host without Linux's /proc.
        Err(_) => of_clock(&ps("time=", process)?),
    }
}

/// The most memory that a process had until now, in bytes, or what it has where the host does not tell; `None` if it is
/// gone.
pub fn memory(process: u32) -> Option<u64> {
    let kib = match std::fs::read_to_string(format!("/proc/{process}/status")) {
        Ok(status) => {
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok())
        }
        Err(_) => ps("rss=", process)?.parse::<u64>().ok(),
    };
    Some(kib? * 1024)
}

/// A column of `ps`, as POSIX has it.
fn ps(column: &str, process: u32) -> Option<String> {
    let output = Command::new("ps").args(["-o", column, "-p", &process.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// utime and stime of `/proc/PID/stat`.
fn of_stat(stat: &str) -> Option<Duration> {
    // The name may have blanks, but ends at the last parenthesis; the two are fields 14 and 15, in units of 1/100 s.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

/// `[[dd-]hh:]mm:ss`, where the seconds of some systems have a fraction.
fn of_clock(text: &str) -> Option<Duration> {
    let (days, time) = text.split_once('-').unwrap_or(("0", text));
    let seconds = time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    Duration::try_from_secs_f64(days.parse::<f64>().ok()? * 86_400.0 + seconds).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Span, memory, of_clock, of_stat, peak, ps, work};

    #[test]
    fn memory_is_added_while_processes_overlap() {
        let start = Instant::now();
        let span = |begin, end, memory| {
            let at = |seconds| start + Duration::from_secs(seconds);
            Span { suite: String::new(), begin: at(begin), end: at(end), work: Duration::ZERO, memory }
        };
        assert_eq!(peak(&[]), 0);
        assert_eq!(peak(&[span(0, 2, 5), span(2, 4, 7)]), 7);
        assert_eq!(peak(&[span(0, 9, 1), span(1, 3, 10), span(2, 5, 100), span(4, 6, 20)]), 121);
    }

    #[test]
    fn times_are_read_in_each_form() {
        assert_eq!(of_stat("7 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20"), Some(Duration::from_secs(2)));
        let clock = |text| of_clock(text).map(|time| time.as_millis());
        assert_eq!(clock("00:01:02"), Some(62_000));
        assert_eq!(clock("1-02:00:00"), Some(26 * 3_600_000));
        assert_eq!(clock("0:01.25"), Some(1250));
        assert_eq!(clock("x"), None);
    }

    /// `ps` gives what `/proc` does, in whole seconds.
    #[test]
    fn this_process_is_measured_either_way() {
        let this = std::process::id();
        assert!(memory(this).is_some_and(|bytes| bytes > 1 << 20));
        let before = work(this).unwrap();
        let mut rounds = 0_u64;
        while work(this).unwrap() < before + Duration::from_millis(50) {
            rounds = std::hint::black_box(rounds + 1);
        }
        if let Some(text) = ps("time=", this) {
            assert!(of_clock(&text).unwrap() <= work(this).unwrap());
            assert!(ps("rss=", this).unwrap().parse::<u64>().unwrap() > 1 << 10);
        }
    }
}
