//! The use of a run of tests: CPU time and memory by suite, and the most memory at one moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use granule_runner::usage;

/// A suite that took less is not in the list.
const LEAST: Duration = Duration::from_secs(1);

/// Prints it, for a run that began at `begin`.
pub(super) fn report(begin: Instant) {
    let spans = usage::spans();
    let mut suites: BTreeMap<&str, (Duration, u64)> = BTreeMap::new();
    for span in &spans {
        let (work, memory) = suites.entry(&span.suite).or_default();
        *work += span.work;
        *memory = span.memory.max(*memory);
    }
    let mut rows: Vec<_> = suites.into_iter().filter(|(_, (work, _))| *work >= LEAST).collect();
    rows.sort_by_key(|(_, (work, _))| std::cmp::Reverse(*work));
    println!("CPU time   memory   suite");
    for (suite, (work, memory)) in rows {
        println!("{:>6} s {:>6} MiB   {suite}", work.as_secs(), memory >> 20);
    }
    let work: Duration = spans.iter().map(|span| span.work).sum();
    println!(
        "at most {} MiB of memory at one moment; {} s of CPU time in {} s",
        usage::peak(&spans) >> 20,
        work.as_secs(),
        begin.elapsed().as_secs(),
    );
}
