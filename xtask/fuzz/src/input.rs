//! Inputs of the fuzzer: steps of calls, and the setting in which they are made.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use granule_user::random::Random;

/// Which calls `user/src/bin/fuzz.rs` makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Arguments of any kind.
    Raw,
    /// Arguments that are the structures that a call expects.
    Structured,
}

/// The calls `first..=last` of a seed. Each follows from the seed and its number alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) seed: u16,
    pub(crate) kind: Kind,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Step {
    fn calls(&self) -> u32 {
        self.last - self.first + 1
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Raw { 'r' } else { 's' };
        write!(f, "{}{kind}{}-{}", self.seed, self.first, self.last)
    }
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let at = text.find(['r', 's']).with_context(|| format!("`{text}` is no step"))?;
        let (seed, rest) = text.split_at(at);
        let kind = if rest.starts_with('r') { Kind::Raw } else { Kind::Structured };
        let (first, last) = rest[1..].split_once('-').with_context(|| format!("`{text}` has no range"))?;
        let step = Self { seed: seed.parse()?, kind, first: first.parse()?, last: last.parse()? };
        ensure!(step.first <= step.last, "`{text}` is empty");
        Ok(step)
    }
}

/// The setting of the calls: their threads, and the programs and devices beside them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Setting {
    /// One thread makes them.
    Alone,
    /// Three threads of one process do.
    Together,
    /// One thread, beside programs that take the last free pages: frames run out at any call.
    Short,
    /// Three threads of a process that a device is bound to.
    Bound,
}

const SETTINGS: [(Setting, &str); 4] =
    [(Setting::Alone, "alone"), (Setting::Together, "together"), (Setting::Short, "short"), (Setting::Bound, "bound")];

/// One input: a line of a corpus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Input {
    pub(crate) setting: Setting,
    /// At least one.
    pub(crate) steps: Vec<Step>,
}

/// As many steps as fit in a line of the monitor.
const STEPS: usize = 8;
/// As many calls as a step has.
const CALLS: u32 = 64;
/// As many as a seed has that steps begin at.
const FIRST: u32 = 1 << 10;

impl Input {
    /// The commands that play it in a machine whose next process has the number `next`.
    pub(crate) fn commands(&self, next: u32) -> Vec<String> {
        let steps = self.steps.iter().map(Step::to_string).collect::<Vec<_>>().join(" ");
        match self.setting {
            Setting::Alone => vec![format!("run fuzz play {steps}")],
            Setting::Together => vec![format!("run fuzz play together {steps}")],
            Setting::Short => vec![format!("run fuzz play short {steps}")],
            Setting::Bound => vec![
                format!("run fuzz play together {steps} &"),
                format!("bind {next} edu"),
                format!("wait {next}"),
                "unbind edu".into(),
            ],
        }
    }

    /// Whether [`Self::commands`] depend on the number of the next process.
    pub(crate) fn needs_number(&self) -> bool {
        self.setting == Setting::Bound
    }

    pub(crate) fn calls(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.calls())).sum()
    }

    /// A new one.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let setting = SETTINGS[[0, 0, 0, 0, 1, 1, 2, 3][random.below(8)]].0;
        let count = 1 + random.below(STEPS / 2);
        Self { setting, steps: (0..count).map(|_| Step::draw(random)).collect() }
    }

    /// One that differs from it in a step or its setting, or has steps of another.
    pub(crate) fn mutate(&self, other: &Self, random: &mut Random) -> Self {
        let mut new = self.clone();
        let at = random.below(new.steps.len());
        match random.below(6) {
            0 => new.steps[at] = Step::draw(random),
            1 => new.steps.insert(at, Step::draw(random)),
            2 => new.steps[at].first = (random.below(new.steps[at].last as usize + 1)) as u32,
            3 => new.setting = Self::draw(random).setting,
            4 => new.steps.swap(at, 0),
            _ => new.steps.extend_from_slice(&other.steps[random.below(other.steps.len())..]),
        }
        // Ranges that became long are cut.
        new.steps.iter_mut().for_each(|step| step.first = step.first.max(step.last.saturating_sub(CALLS - 1)));
        new.steps.truncate(STEPS);
        new
    }

    /// Inputs that do less, the least first.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut found = Vec::new();
        for at in 0..self.steps.len() {
            let with = |steps: &[Step]| {
                let steps = [&self.steps[..at], steps, &self.steps[at + 1..]].concat();
                Self { setting: self.setting, steps }
            };
            let step = &self.steps[at];
            if self.steps.len() > 1 {
                found.push(with(&[]));
            }
            if step.first < step.last {
                let middle = step.first.midpoint(step.last);
                found.push(with(&[Step { last: middle, ..step.clone() }]));
                found.push(with(&[Step { first: middle + 1, ..step.clone() }]));
                found.push(with(&[Step { first: step.first + 1, ..step.clone() }]));
                found.push(with(&[Step { last: step.last - 1, ..step.clone() }]));
            }
        }
        found.sort_by_key(Self::calls);
        if self.setting != Setting::Alone {
            found.push(Self { setting: Setting::Alone, ..self.clone() });
        }
        found
    }
}

impl Step {
    fn draw(random: &mut Random) -> Self {
        let first = random.below(FIRST as usize) as u32;
        Self {
            seed: random.below(1 << 16) as u16,
            kind: if random.below(2) == 0 { Kind::Raw } else { Kind::Structured },
            first,
            last: first + random.below(CALLS as usize) as u32,
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SETTINGS.iter().find(|(setting, _)| *setting == self.setting).map_or("", |(_, name)| name);
        write!(f, "{name}")?;
        self.steps.iter().try_for_each(|step| write!(f, " {step}"))
    }
}

impl FromStr for Input {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let setting = words.next().and_then(|word| SETTINGS.iter().find(|(_, name)| *name == word));
        let Some((setting, _)) = setting else { bail!("`{text}` begins with no setting") };
        let steps = words.map(str::parse).collect::<Result<Vec<Step>>>()?;
        ensure!(!steps.is_empty() && steps.len() <= STEPS, "`{text}` has no steps, or too many");
        Ok(Self { setting: *setting, steps })
    }
}
