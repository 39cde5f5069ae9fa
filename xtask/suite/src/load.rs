//! A busy host: a thread for each CPU that only computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The load; dropping it ends it, and so does the end of this process, in whatever way.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicBool>);

/// Starts it.
pub(super) fn start() -> Load {
    let enough = Arc::new(AtomicBool::new(false));
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        let enough = Arc::clone(&enough);
        std::thread::spawn(move || while !enough.load(Ordering::Relaxed) {});
    }
    Load(enough)
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use granule_runner::usage;

    #[test]
    fn the_load_takes_cpu_time_until_it_is_dropped() {
        let work = || usage::work(std::process::id()).unwrap();
        let (before, load) = (work(), super::start());
        while work() - before < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        let flag = std::sync::Arc::downgrade(&load.0);
        drop(load);
        // Each thread has its end of the flag.
        while flag.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}
