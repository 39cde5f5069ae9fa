//! A boot of the bench image with the plugin that counts lines.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use granule_protocol::ScaleWindow as Window;

use crate::bench::counted::{Counted, numbers};

/// A timer of the emulator that ends the turn of a vCPU after 1000 instructions, divided by the CPUs: a network without
/// a card, whose packets would be held back for a microsecond.
const TURNS: [&str; 4] =
    ["-netdev", "hubport,id=hub,hubid=0", "-object", "filter-buffer,id=turns,netdev=hub,interval=1"];

/// The part of the suite that a boot runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Calls of the kernel, in turn.
    Kernel,
    /// Calls and faults of a program's threads, then of processes, in turn.
    Program,
    /// Those of threads, all at once.
    Loose,
    /// Splits of leaves, in turn, under the split lock.
    SplitLock,
    /// As [`Self::SplitLock`], without a lock.
    SplitLockless,
    /// Splits by all CPUs at once, under the lock.
    LooseSplitLock,
    /// As [`Self::LooseSplitLock`], without a lock.
    LooseSplitLockless,
}

impl Part {
    /// Those in which CPUs take turns, in the order in which they run.
    pub const IN_TURN: [Self; 4] = [Self::Kernel, Self::Program, Self::SplitLock, Self::SplitLockless];
    /// Those in which all CPUs make their operations at once.
    pub const LOOSE: [Self; 3] = [Self::Loose, Self::LooseSplitLock, Self::LooseSplitLockless];

    /// Whether all CPUs make their operations at once, and locks are contended.
    pub(super) fn is_loose(self) -> bool {
        Self::LOOSE.contains(&self)
    }

    /// The boot arguments that ask for it.
    fn argument(self) -> &'static str {
        match self {
            Self::Kernel => "bench.scale=kernel",
            Self::Program => "bench.scale=program",
            Self::Loose => "bench.scale=loose",
            Self::SplitLock => "bench.scale=split split=lock",
            Self::SplitLockless => "bench.scale=split split=lockless",
            Self::LooseSplitLock => "bench.scale=loose-split split=lock",
            Self::LooseSplitLockless => "bench.scale=loose-split split=lockless",
        }
    }

    /// The checks that it makes: the kernel has no atomic of its own for the first.
    fn checks(self) -> &'static [(Window, u64)] {
        if matches!(self, Self::Program | Self::Loose) { &Window::CHECKS } else { &Window::CHECKS[1..] }
    }
}

/// The plugin's counts of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// How often it was there.
    pub operations: u64,
    /// Instructions of all of them.
    pub instructions: u64,
    /// Lines that loads moved.
    pub loads: u64,
    /// Lines that stores moved.
    pub stores: u64,
    /// Lines of pages that are zeroed.
    pub contents: u64,
    /// Lines that the cheapest moved, without contents.
    least: u64,
    /// Lines that the dearest moved.
    most: u64,
    /// Events that the guest counted in all of them.
    pub events: u64,
}

/// The counts of a boot, by window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts(BTreeMap<u64, Count>);

impl Counts {
    /// Of a window that was there.
    pub fn get(&self, window: Window) -> Option<&Count> {
        self.0.get(&(window as u64))
    }

    /// Reads what the plugin wrote: a line for each window.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let [window, operations, instructions, loads, stores, contents, least, most, events] = numbers(line)?;
            ensure!(operations > 0, "a window that was never there: {line}");
            counts.insert(window, Count { operations, instructions, loads, stores, contents, least, most, events });
        }
        Ok(Self(counts))
    }

    /// Holds accesses against what they are known to move: with one CPU nothing.
    fn check(&self, part: Part, cpus: u32) -> Result<()> {
        for &(window, moved) in part.checks() {
            let wanted = if cpus == 1 { 0 } else { moved };
            let count = self.get(window).with_context(|| format!("{window:?} is not there"))?;
            let (least, most) = (count.least, count.most);
            ensure!(
                (least, most) == (wanted, wanted) && count.loads + count.stores == wanted * count.operations,
                "{window:?} moves {least} to {most} lines by the plugin, and must move {wanted}: it counts wrongly"
            );
        }
        Ok(())
    }
}

impl Counted<'_> {
    /// Counts what the windows of a part cost with so many CPUs, in two boots.
    ///
    /// # Errors
    /// When a boot does not end as it should or does not repeat the other, or the plugin miscounts what is known.
    pub fn measure(&self, part: Part, cpus: u32) -> Result<Counts> {
        let (counts, again) = (self.boot_part(part, cpus, &[])?.0, self.boot_part(part, cpus, &[])?.0);
        ensure!(counts == again, "two boots of {part:?} with {cpus} CPUs counted different lines");
        Ok(counts)
    }

    /// Counts in one boot, with which instructions moved which lines: the plugin's own file, a line for each.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub fn sources(&self, part: Part, cpus: u32) -> Result<(Counts, String)> {
        let (counts, moves) = self.boot_part(part, cpus, &["moves"])?;
        Ok((counts, moves.into_iter().next().unwrap_or_default()))
    }

    /// Boots, with files of the plugin for each of `more` beside its counts.
    fn boot_part(&self, part: Part, cpus: u32, more: &[&str]) -> Result<(Counts, Vec<String>)> {
        let extra: &[&str] = if part.is_loose() { &TURNS } else { &[] };
        let mut texts = self.boot(cpus, part.argument(), extra, "", &[&["out"], more].concat())?;
        let counts = Counts::parse(&texts.remove(0))?;
        counts.check(part, cpus)?;
        Ok((counts, texts))
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Part, Window};

    /// The output of an honest plugin for the checks with several CPUs.
    fn honest() -> String {
        let line = |(window, moved): &(Window, u64)| {
            format!("{} 48 480 {} {} 0 {moved} {moved} 0\n", *window as u8, 48 * (moved / 2), 48 * (moved - moved / 2))
        };
        Window::CHECKS.iter().map(line).collect()
    }

    #[test]
    fn a_plugin_that_miscounts_is_found() {
        let checked = |text: &str, cpus| Counts::parse(text).unwrap().check(Part::Program, cpus);
        assert!(checked(&honest(), 8).is_ok());
        let error = checked(&honest(), 1).unwrap_err().to_string();
        assert!(error.contains("CheckAtomic moves 1 to 1 lines by the plugin, and must move 0"), "{error}");
        for (right, wrong) in [(" 48 0 1 1", " 49 0 1 1"), (" 48 0 1 1", " 48 0 0 2"), (" 0 0 0 0 0 0", " 1 0 0 0 1 0")]
        {
            assert!(honest().contains(right));
            assert!(checked(&honest().replacen(right, wrong, 1), 8).is_err(), "{wrong}");
        }
        let short = honest().lines().skip(1).collect::<Vec<_>>().join("\n");
        assert!(checked(&short, 8).unwrap_err().to_string().contains("CheckAtomic is not there"));
        assert!(Counts::parse(&short).unwrap().check(Part::Kernel, 8).is_ok());
    }

    #[test]
    fn what_is_no_count_is_refused() {
        for text in ["1 2 3", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8 x", "1 0 0 0 0 0 0 0 0", "\n"] {
            assert!(Counts::parse(text).is_err(), "{text}");
        }
    }
}
