//! machines.toml and boards.toml: which machines and boards there are, and what each has.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The file, as it is in the source tree: the runner and the machines are of one revision.
const MACHINES: &str = include_str!("../../machines.toml");
/// The boards, which have a line in place of QEMU's options.
const BOARDS: &str = include_str!("../../boards.toml");

/// A board of boards.toml.
#[derive(Clone, Debug)]
pub struct Board {
    /// The hardware that it has. QEMU's options are those of its model, empty where there is none.
    pub machine: Machine,
    /// CPUs that run the kernel.
    pub cpus: u32,
    /// Bits per second of its console.
    pub baud: u32,
    /// QEMU's model of it.
    pub model: Option<Model>,
}

/// QEMU's model of a board.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    machine: String,
    cpu: String,
    memory: String,
    /// CPUs of the model, where others than those that run the kernel count.
    smp: Option<u32>,
    /// The end of the path of its device tree in Debian's package; without it QEMU makes one.
    pub tree: Option<String>,
    /// The serial port that is the board's console, from 1.
    #[serde(default = "first_port")]
    pub port: u32,
}

fn first_port() -> u32 {
    1
}

/// One machine. Most fields are QEMU's options of those names.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name in machines.toml.
    pub name: String,
    /// Its purpose, in a line.
    pub description: String,
    /// `-machine`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`, 1 to 16.
    pub smp: u32,
    /// `-m`.
    pub memory: String,
    /// The memory that its tests touch, where that is not all: no more is taken from the host.
    pub touched: Option<String>,
    /// Its devices, most on its PCI Express: see [`device`](crate::device).
    pub devices: Vec<String>,
    /// The features that a test may ask for and find here.
    pub features: Vec<String>,
    /// Boot arguments that belong to it.
    pub bootargs: String,
    /// Whether its CPUs take turns and their instructions are counted ([`ICOUNT`]), so that each boot is like the last.
    pub icount: bool,
    /// The region of tag storage in its device tree, which QEMU's own tree does not have.
    pub tag_storage: Option<TagStorage>,
    /// Of a variant, how the names of its tests begin; `None`: it is a machine of its own and runs all.
    pub tests: Option<Vec<String>>,
}

/// A region of tag storage at the end of memory, with the tags of all of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TagStorage {
    /// `block-size` of its node.
    pub block_size: u32,
}

/// One instruction is one nanosecond of virtual time, and idle time is skipped: the guest's clock and counts depend on
/// nothing else.
pub const ICOUNT: [&str; 4] = ["-icount", "shift=0,sleep=off", "-seed", "1"];

/// The tests that compare machines.toml with what the guest finds: each machine runs them.
const OF_EVERY_MACHINE: &str = "machine::";

impl Machine {
    /// Whether the machine has a feature, by machines.toml's account.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }

    /// Its memory in MiB, as far as its tests touch it.
    pub fn touched_mib(&self) -> u64 {
        let number = |text: &str| text.parse::<u64>().ok();
        let mib = |text: &String| {
            let gib = text.strip_suffix('G').and_then(number).map(|gib| gib << 10);
            gib.or_else(|| text.strip_suffix('M').and_then(number)).unwrap_or(0)
        };
        let all = mib(&self.memory);
        self.touched.as_ref().map_or(all, |touched| mib(touched).min(all))
    }

    /// Whether it is another machine again, with something changed.
    pub fn is_variant(&self) -> bool {
        self.tests.is_some()
    }

    /// Whether a test of that name is one for it: a variant runs its own only.
    pub fn is_for(&self, test: &str) -> bool {
        test.starts_with(OF_EVERY_MACHINE)
            || self.tests.as_ref().is_none_or(|tests| tests.iter().any(|begin| test.starts_with(begin.as_str())))
    }
}

/// A table of the file. A key that a variant leaves out is as in the machine that it is like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    description: String,
    like: Option<String>,
    machine: Option<String>,
    cpu: Option<String>,
    smp: Option<u32>,
    memory: Option<String>,
    touched: Option<String>,
    devices: Option<Vec<String>>,
    features: Option<Vec<String>>,
    #[serde(default)]
    bootargs: String,
    #[serde(default)]
    icount: bool,
    #[serde(rename = "tag-storage")]
    tag_storage: Option<TagStorage>,
    tests: Option<Vec<String>>,
}

impl Entry {
    /// The machine that it describes, `base` being the one that it is like.
    fn resolve(self, name: &str, base: Option<&Self>) -> Result<Machine> {
        ensure!(self.like.is_some() == self.tests.is_some(), "{name}: a variant, and only one, has `like` and `tests`");
        ensure!(base.is_none_or(|base| base.like.is_none()), "{name} is like a machine that is a variant itself");
        let base = base.cloned();
        let missing = || format!("{name} lacks an entry, and is like no other machine");
        let of_base = |field: fn(Self) -> Option<String>| base.clone().and_then(field);
        Ok(Machine {
            name: name.to_owned(),
            description: self.description,
            machine: self.machine.or_else(|| of_base(|base| base.machine)).with_context(missing)?,
            cpu: self.cpu.or_else(|| of_base(|base| base.cpu)).with_context(missing)?,
            smp: self.smp.or_else(|| base.as_ref()?.smp).with_context(missing)?,
            memory: self.memory.or_else(|| of_base(|base| base.memory)).with_context(missing)?,
            touched: self.touched.or_else(|| of_base(|base| base.touched)),
            devices: self.devices.or_else(|| base.clone()?.devices).unwrap_or_default(),
            features: self.features.or_else(|| base.clone()?.features).with_context(missing)?,
            bootargs: self.bootargs,
            icount: self.icount,
            tag_storage: self.tag_storage.or_else(|| base.as_ref()?.tag_storage),
            tests: self.tests,
        })
    }
}

/// A table of boards.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BoardEntry {
    description: String,
    smp: u32,
    baud: u32,
    #[serde(default)]
    devices: Vec<String>,
    features: Vec<String>,
    model: Option<Model>,
}

impl BoardEntry {
    fn resolve(self, name: &str) -> Board {
        let of_model = |field: fn(&Model) -> &String| self.model.as_ref().map(field).cloned().unwrap_or_default();
        let machine = Machine {
            name: name.to_owned(),
            machine: of_model(|model| &model.machine),
            cpu: of_model(|model| &model.cpu),
            memory: of_model(|model| &model.memory),
            touched: None,
            description: self.description,
            smp: self.model.as_ref().and_then(|model| model.smp).unwrap_or(self.smp),
            devices: self.devices,
            features: self.features,
            bootargs: String::new(),
            icount: false,
            tag_storage: None,
            tests: None,
        };
        Board { machine, cpus: self.smp, baud: self.baud, model: self.model }
    }
}

/// All boards, by name.
///
/// # Errors
/// When boards.toml lacks something or cannot be parsed, or promises a feature that machines.toml does not know.
pub fn boards() -> Result<Vec<Board>> {
    let known = known_features()?;
    let table: BTreeMap<String, BoardEntry> = toml::from_str(BOARDS).context("tests-qemu/boards.toml")?;
    let boards: Vec<Board> = table.into_iter().map(|(name, entry)| entry.resolve(&name)).collect();
    for Board { machine, .. } in &boards {
        let unknown = machine.features.iter().find(|name| !known.contains(name));
        ensure!(unknown.is_none(), "board {} has {unknown:?}, which machines.toml does not know", machine.name);
    }
    Ok(boards)
}

/// The board of that name.
///
/// # Errors
/// When there is none: the message names the nearest.
pub fn board(name: &str) -> Result<Board> {
    pick(name, "board", boards()?, |board| &board.machine.name)
}

/// All machines and variants, `default` first, then the other machines and the variants, by name.
///
/// # Errors
/// When machines.toml lacks something or cannot be parsed.
pub fn all() -> Result<Vec<Machine>> {
    parse(MACHINES).context("tests-qemu/machines.toml")
}

fn parse(text: &str) -> Result<Vec<Machine>> {
    let table: BTreeMap<String, Entry> = toml::from_str(text)?;
    let resolve = |(name, entry): (&String, &Entry)| {
        let base = match &entry.like {
            Some(like) => {
                Some(table.get(like).with_context(|| format!("{name} is like `{like}`, which there is not"))?)
            }
            None => None,
        };
        entry.clone().resolve(name, base)
    };
    let mut machines: Vec<Machine> = table.iter().map(resolve).collect::<Result<_>>()?;
    machines.sort_by_key(|machine| (machine.name != "default", machine.is_variant(), machine.name.clone()));
    ensure!(machines.first().is_some_and(|machine| machine.name == "default"), "there is no machine `default`");
    Ok(machines)
}

/// The machine of that name.
///
/// # Errors
/// When there is none: the message names the nearest.
pub fn named(name: &str) -> Result<Machine> {
    pick(name, "machine", all()?, |machine| &machine.name)
}

/// The one of `among` that has this name.
fn pick<T>(name: &str, kind: &str, among: Vec<T>, called: fn(&T) -> &String) -> Result<T> {
    let names: Vec<String> = among.iter().map(called).cloned().collect();
    match among.into_iter().find(|one| called(one) == name) {
        Some(one) => Ok(one),
        None => bail!("there is no {kind} `{name}`{}; there are: {}", suggest(name, &names), names.join(", ")),
    }
}

/// Every feature that some machine has.
///
/// # Errors
/// As [`all`].
pub fn known_features() -> Result<Vec<String>> {
    let mut features: Vec<String> = all()?.into_iter().flat_map(|machine| machine.features).collect();
    features.sort();
    features.dedup();
    Ok(features)
}

/// `, did you mean ...?` if one of the names is near.
fn suggest(wrong: &str, names: &[String]) -> String {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(similar, _)| *similar > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, name)| format!(", did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::TagStorage;
    use crate::device;

    #[test]
    fn the_file_is_sound() {
        let machines = super::all().unwrap();
        assert_eq!(machines[0].name, "default");
        assert!(machines.iter().is_sorted_by_key(|machine| machine.is_variant()));
        for machine in &machines {
            assert!((1..=16).contains(&machine.smp), "{}", machine.name);
            assert_eq!(machine.has("smp"), machine.smp > 1, "{}", machine.name);
            assert!(machine.has("gicv2") != machine.has("gicv3"), "{}", machine.name);
            for device in ["edu", "virtio-rng", "virtio-blk", "nvme"] {
                let there = machine.devices.iter().any(|name| device::kind(name) == device);
                assert_eq!(machine.has(device), there, "{} and {device}", machine.name);
            }
            let in_memory = machine.devices.iter().any(|name| device::is_in_memory(name));
            assert_eq!(machine.has("virtio-mmio"), in_memory, "{}", machine.name);
            assert_eq!(machine.has("tag-storage"), machine.tag_storage.is_some(), "{}", machine.name);
        }
    }

    #[test]
    fn the_boards_are_sound() {
        let machines = super::all().unwrap();
        for super::Board { machine, cpus, baud, model } in super::boards().unwrap() {
            assert!(machines.iter().all(|other| other.name != machine.name), "{}", machine.name);
            assert_eq!(machine.has("smp"), cpus > 1, "{}", machine.name);
            assert!((9600..=4_000_000).contains(&baud), "{}", machine.name);
            assert!(model.is_none_or(|model| (1..=2).contains(&model.port)), "{}", machine.name);
        }
        let message = super::board("raspi4").unwrap_err().to_string();
        assert!(message.contains("did you mean `raspi4b`?"), "{message}");
    }

    #[test]
    fn an_unknown_machine_gets_the_nearest_name() {
        let message = super::named("defautl").unwrap_err().to_string();
        assert!(message.contains("did you mean `default`?"), "{message}");
    }
    const BASE: &str = "[default]\ndescription = 'd'\nmachine = 'virt'\ncpu = 'max'\nsmp = 4\nmemory = '1G'\ntouched = '900M'\n\
                        features = ['smp']\n";

    #[test]
    fn a_variant_is_its_base_with_something_changed() {
        let text = format!(
            "{BASE}[x]\ndescription = 'x'\nlike = 'default'\nsmp = 2\nmemory = '128M'\nbootargs = 'a=b'\ntests = ['m::']\n\
                    tag-storage = {{ block-size = 4096 }}"
        );
        let machines = super::parse(&text).unwrap();
        let (base, variant) = (&machines[0], &machines[1]);
        assert_eq!((variant.cpu.as_str(), variant.smp, variant.bootargs.as_str()), ("max", 2, "a=b"));
        assert_eq!([base, variant].map(|machine| machine.tag_storage), [None, Some(TagStorage { block_size: 4096 })]);
        assert_eq!([base, variant].map(|machine| machine.touched_mib()), [900, 128]);
        assert!(base.is_for("vmalloc::x") && !variant.is_for("vmalloc::x"));
        assert!(variant.is_for("m::x") && variant.is_for("machine::has_what_machines_toml_lists"));
    }

    #[test]
    fn half_a_machine_is_refused() {
        for (table, why) in [
            ("[x]\ndescription = 'x'\ncpu = 'max'", "lacks an entry"),
            ("[x]\ndescription = 'x'\nlike = 'default'", "has `like` and `tests`"),
            ("[x]\ndescription = 'x'\nlike = 'y'\ntests = []", "which there is not"),
        ] {
            let error = super::parse(&format!("{BASE}{table}")).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
