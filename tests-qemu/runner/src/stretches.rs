//! How long the kernel keeps interrupts masked, and a CPU to itself: commands of the monitor with the plugin of QEMU that
//! counts each CPU's instructions (`tests-qemu/plugin/stretches.c`), on the image that ships.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::machine::{self, Machine};
use crate::qemu::{Qemu, Reset, Serial};
use crate::script;
use crate::serial::Limit;

/// The most instructions with interrupts masked.
pub const MOST_MASKED: u64 = 20_000;
/// The most instructions in the kernel without a scheduling point.
pub const MOST_IN_KERNEL: u64 = 200_000;

/// The kind of stretch that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// With interrupts masked.
    Masked,
    /// In the kernel, from one scheduling point to the next.
    Kernel,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Masked, Self::Kernel];

    /// As reports have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masked => "masked",
            Self::Kernel => "unscheduled",
        }
    }

    /// The most instructions that a stretch has.
    pub const fn most(self) -> u64 {
        match self {
            Self::Masked => MOST_MASKED,
            Self::Kernel => MOST_IN_KERNEL,
        }
    }
}

/// The longest stretch of a kind on a CPU while a command ran.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The CPU.
    pub cpu: usize,
    /// The kind.
    pub kind: Kind,
    /// Instructions, without those of loops that waited for another CPU or a device.
    pub own: u64,
    /// Instructions of such loops.
    pub waits: u64,
    /// Addresses of its first and its last block of code.
    pub ends: [u64; 2],
    /// Where a stretch that breaks its bound was in the middle of that: an address, and those to which its calls return.
    pub chain: Vec<u64>,
    /// All of it as the plugin has it.
    pub text: String,
}

impl Stretch {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [cpu, kind, own, waits, first, last, _yield, chain @ ..] = words.as_slice() else { return None };
        let address = |word: &&str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
        let kind = match kind.strip_suffix("-waits").unwrap_or(kind) {
            "masked" => Kind::Masked,
            "kernel" => Kind::Kernel,
            _ => return None,
        };
        Some(Self {
            cpu: cpu.parse().ok()?,
            kind,
            own: own.parse().ok()?,
            waits: waits.parse().ok()?,
            ends: [address(first)?, address(last)?],
            chain: chain.iter().map(address).collect::<Option<_>>()?,
            text: text.into(),
        })
    }

    /// The instructions that the bound is for: with one CPU those of waits as well, since no other CPU delays it.
    pub const fn length(&self, machine: &Machine) -> u64 {
        if machine.smp == 1 { self.own + self.waits } else { self.own }
    }
}

/// Machine `default` with one CPU, whose instructions QEMU's clock counts too (`-icount`): each run is like the last.
///
/// # Errors
/// When machines.toml cannot be read.
pub fn one_cpu(memory: &str) -> Result<Machine> {
    Ok(Machine { smp: 1, icount: true, memory: memory.into(), ..machine::named("default")? })
}

/// The results of a session.
#[derive(Debug)]
pub struct Counted {
    /// The failures, as [`script::run`] reports them.
    pub wrong: Vec<String>,
    /// The session.
    pub session: String,
    /// For each line the longest stretches.
    pub records: Vec<Vec<Stretch>>,
}

/// Runs each line at the monitor of `image`, with `plugin`, which writes in the folder `scratch`.
///
/// # Errors
/// When QEMU cannot be run, or the plugin has not written a record for each line.
pub fn count(machine: &Machine, [image, plugin, scratch]: [&Path; 3], lines: &[&str], limit: Limit) -> Result<Counted> {
    // Tests run side by side: a file for each run.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let name = format!("stretches-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let file = scratch.join(name);
    let bounds = format!("masked={MOST_MASKED},kernel={MOST_IN_KERNEL}");
    let plugin = format!("{},{bounds},out={}", plugin.display(), file.display());
    let extra = ["-plugin".into(), plugin.into()];
    let bootargs = format!("{} nokaslr norandmaps", script::BOOTARGS);
    let qemu = Qemu::new(machine, image, Serial::Pipes, Reset::Ends, &bootargs, &extra);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(&lines.join("\n")), limit, &mut session)?;
    let session = String::from_utf8_lossy(&session).replace(['\r', '\0'], "");
    let text = fs::read_to_string(&file);
    // It is not there where QEMU did not start.
    let _ = fs::remove_file(&file);
    let of_line = |text: &str| Stretch::parse(text).with_context(|| format!("not a line of the plugin: {text}"));
    let of_record = |text: &str| text.lines().map(of_line).collect::<Result<Vec<_>>>();
    let records = text?.split_terminator("\n\n").map(of_record).collect::<Result<Vec<_>>>()?;
    ensure!(records.len() == lines.len(), "{} records of {} lines: {wrong:?}\n{session}", records.len(), lines.len());
    Ok(Counted { wrong, session, records })
}
