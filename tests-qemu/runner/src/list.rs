//! Which tests there are: read from the test image's ELF, before anything boots.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use granule_protocol::{FLAG_LONG, FLAG_SELFTEST, RECORD_BYTES, RECORD_MAGIC, Record, SECTION, text};
use object::{Object, ObjectSection};

use crate::machine::{self, Machine};

/// A test on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Its record's place in the image; what frames call it.
    pub index: u32,
    /// The area, `::` and what is true.
    pub name: String,
    /// Features that it needs.
    pub needs: Vec<String>,
    /// The only machines that it runs on; empty: all.
    pub machines: Vec<String>,
    /// Seconds from its begin to its verdict.
    pub limit: u32,
    /// Runs only where `--long` was asked for.
    pub long: bool,
    /// Misbehaves on purpose, for the runner's own tests.
    pub selftest: bool,
}

/// Why a test does not run on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The machine lacks this, by machines.toml.
    Lacks(String),
    /// It is for another machine, or others.
    OtherMachine(String),
    /// It is long, and `--long` was not asked for.
    Long,
}

impl Test {
    /// Why the test does not run on that machine; `None`: it must run.
    pub fn skipped_on(&self, machine: &Machine, long: bool) -> Option<Skip> {
        if !self.machines.is_empty() && !self.machines.contains(&machine.name) {
            return Some(Skip::OtherMachine(self.machines.join(" and ")));
        }
        if let Some(lacks) = self.needs.iter().find(|need| !machine.has(need)) {
            return Some(Skip::Lacks(lacks.clone()));
        }
        (self.long && !long).then_some(Skip::Long)
    }
}

/// All tests of an image, in the order of their records.
///
/// # Errors
/// When the ELF cannot be read, a record is damaged, two tests have one name, a test asks for a feature or a machine
/// that machines.toml does not know, or a variant of a machine names tests that there are none of: such a test would be
/// skipped everywhere, unseen.
pub fn read(elf: &Path) -> Result<Vec<Test>> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
    let section = file
        .section_by_name(SECTION)
        .with_context(|| format!("{} has no section {SECTION}: not a test image", elf.display()))?;
    let tests = parse(section.data()?).with_context(|| elf.display().to_string())?;
    check(&tests, &machine::all()?, &machine::known_features()?)?;
    Ok(tests)
}

/// Checks that no test is skipped everywhere unseen, and that machines choose tests that there are.
fn check(tests: &[Test], machines: &[Machine], features: &[String]) -> Result<()> {
    for (i, test) in tests.iter().enumerate() {
        ensure!(!tests[..i].iter().any(|other| other.name == test.name), "two tests are called {}", test.name);
        if let Some(need) = test.needs.iter().find(|need| !features.contains(need)) {
            bail!("{} needs `{need}`, which no machine in machines.toml has", test.name);
        }
        for name in &test.machines {
            let Some(machine) = machines.iter().find(|machine| machine.name == *name) else {
                bail!("{} is for machine `{name}`, which is not in machines.toml", test.name);
            };
            ensure!(machine.is_for(&test.name), "{} is for {name}, which does not run it", test.name);
        }
        let runs = |machine: &Machine| machine.is_for(&test.name) && test.skipped_on(machine, true).is_none();
        ensure!(machines.iter().any(runs), "{} needs what no machine has that runs it: {:?}", test.name, test.needs);
    }
    for machine in machines {
        let idle = |begin: &&String| !tests.iter().any(|test| test.name.starts_with(begin.as_str()));
        if let Some(begin) = machine.tests.iter().flatten().find(idle) {
            bail!("machine {} is to run `{begin}`, with which no test's name begins", machine.name);
        }
    }
    Ok(())
}

fn parse(section: &[u8]) -> Result<Vec<Test>> {
    ensure!(section.len().is_multiple_of(RECORD_BYTES), "{SECTION} is {} bytes, not whole records", section.len());
    section.chunks_exact(RECORD_BYTES).enumerate().map(|(i, record)| one(i as u32, record)).collect()
}

fn one(index: u32, record: &[u8]) -> Result<Test> {
    type Layout = Record<u64>;
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let field = |at: usize, bytes: usize| {
        text(&record[at..at + bytes]).map(str::to_owned).with_context(|| format!("record {index} has a damaged text"))
    };
    ensure!(word(std::mem::offset_of!(Layout, magic)) == RECORD_MAGIC, "record {index} has no magic number");
    let flags = word(std::mem::offset_of!(Layout, flags));
    let words = |at: usize, bytes: usize| {
        field(at, bytes).map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    Ok(Test {
        index,
        name: field(std::mem::offset_of!(Layout, name), granule_protocol::NAME_BYTES)?,
        needs: words(std::mem::offset_of!(Layout, needs), granule_protocol::NEEDS_BYTES)?,
        machines: words(std::mem::offset_of!(Layout, machines), granule_protocol::MACHINES_BYTES)?,
        limit: word(std::mem::offset_of!(Layout, limit)),
        long: flags & FLAG_LONG != 0,
        selftest: flags & FLAG_SELFTEST != 0,
    })
}

/// Indices as boot argument `test.run=` takes them: `0-3,7`.
pub fn ranges(indices: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let words: Vec<String> =
        runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::{Skip, Test, ranges};
    use crate::machine;

    fn test(needs: &[&str], machine: Option<&str>, long: bool) -> Test {
        Test {
            index: 0,
            name: "a::b".into(),
            needs: needs.iter().map(|need| (*need).into()).collect(),
            machines: machine.map(Into::into).into_iter().collect(),
            limit: 1,
            long,
            selftest: false,
        }
    }

    #[test]
    fn ranges_are_compact() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn a_skip_has_its_reason_in_machines_toml() {
        let a53 = machine::named("a53").unwrap();
        assert_eq!(test(&["gicv2"], None, false).skipped_on(&a53, false), None);
        assert_eq!(test(&["mte"], None, false).skipped_on(&a53, false), Some(Skip::Lacks("mte".into())));
        assert_eq!(test(&[], Some("el2"), false).skipped_on(&a53, true), Some(Skip::OtherMachine("el2".into())));
        assert_eq!(test(&[], None, true).skipped_on(&a53, false), Some(Skip::Long));
        assert_eq!(test(&[], None, true).skipped_on(&a53, true), None);
    }

    #[test]
    fn a_test_that_would_run_nowhere_is_an_error() {
        let (machines, features) = (machine::all().unwrap(), machine::known_features().unwrap());
        let mut begins: Vec<&String> = machines.iter().flat_map(|machine| machine.tests.iter().flatten()).collect();
        begins.sort_unstable();
        begins.dedup();
        let of_variants = begins.iter().map(|begin| Test { name: format!("{begin}x"), ..test(&[], None, false) });
        let of_variants: Vec<Test> = of_variants.collect();
        let error = |more: &[Test]| {
            let tests = [&of_variants[..], more].concat();
            super::check(&tests, &machines, &features).err().map(|error| error.to_string())
        };
        assert_eq!(error(&[]), None);
        let idle = super::check(&of_variants[1..], &machines, &features).unwrap_err().to_string();
        assert!(idle.contains("with which no test's name begins"), "{idle}");
        for (more, why) in [
            (vec![test(&["warp"], None, false)], "which no machine in machines.toml has"),
            (vec![test(&["gicv2", "mte"], None, false)], "needs what no machine has that runs it"),
            (vec![test(&["mte"], Some("a53"), false)], "needs what no machine has that runs it"),
            (vec![test(&[], Some("pdp11"), false)], "which is not in machines.toml"),
            (vec![test(&[], Some("icount"), false)], "which does not run it"),
            (vec![test(&[], None, false), test(&[], None, true)], "two tests are called a::b"),
        ] {
            assert!(error(&more).is_some_and(|error| error.contains(why)), "{why}");
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        assert!(super::parse(&[0; 100]).is_err());
        assert!(super::parse(&[0; 256]).is_err());
    }
}
