//! machines.toml: which machines there are, and what each has.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The file, as it is in the source tree: the runner and the machines are of one revision.
const MACHINES: &str = include_str!("../../machines.toml");

/// One machine. The fields are QEMU's options of those names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name in machines.toml.
    #[serde(skip)]
    pub name: String,
    /// What it is for, in a line.
    pub description: String,
    /// `-machine`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-smp`, 1 to 16.
    pub smp: u32,
    /// `-m`.
    pub memory: String,
    /// What a test may ask for and find here.
    pub features: Vec<String>,
}

impl Machine {
    /// Whether the machine has a feature, by machines.toml's account.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// All machines, `default` first, the others by name.
///
/// # Errors
/// When machines.toml does not say what it should.
pub fn all() -> Result<Vec<Machine>> {
    let table: BTreeMap<String, Machine> = toml::from_str(MACHINES).context("tests-qemu/machines.toml")?;
    let mut machines: Vec<Machine> = table.into_iter().map(|(name, machine)| Machine { name, ..machine }).collect();
    machines.sort_by_key(|machine| (machine.name != "default", machine.name.clone()));
    if machines.first().is_none_or(|machine| machine.name != "default") {
        bail!("tests-qemu/machines.toml has no machine `default`");
    }
    Ok(machines)
}

/// The machine of that name.
///
/// # Errors
/// When there is none: the message names the nearest.
pub fn named(name: &str) -> Result<Machine> {
    let machines = all()?;
    let names: Vec<String> = machines.iter().map(|machine| machine.name.clone()).collect();
    match machines.into_iter().find(|machine| machine.name == name) {
        Some(machine) => Ok(machine),
        None => bail!("there is no machine `{name}`{}; there are: {}", nearest(name, &names), names.join(", ")),
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
fn nearest(wrong: &str, names: &[String]) -> String {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(similar, _)| *similar > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, name)| format!(", did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_file_is_sound() {
        let machines = super::all().unwrap();
        assert_eq!(machines[0].name, "default");
        for machine in &machines {
            assert!((1..=16).contains(&machine.smp), "{}", machine.name);
            assert_eq!(machine.has("smp"), machine.smp > 1, "{}", machine.name);
            assert!(machine.has("gicv2") != machine.has("gicv3"), "{}", machine.name);
        }
    }

    #[test]
    fn an_unknown_machine_gets_the_nearest_name() {
        let message = super::named("defautl").unwrap_err().to_string();
        assert!(message.contains("did you mean `default`?"), "{message}");
    }
}
