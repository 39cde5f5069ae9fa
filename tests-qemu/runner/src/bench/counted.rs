//! A boot of the bench image with a plugin of QEMU that counts.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::machine::Machine;
use crate::qemu::{Qemu, Reset, Serial};
use crate::serial::{Guest, Limit, Line, Lines, Received};

/// For a boot and all its operations, for each CPU.
const LIMIT: Limit = Limit::work(300);
/// Memory of the machines: what they do depends on nothing beyond.
const MEMORY: &str = "1G";

/// A machine, an image and a plugin, to boot with several numbers of CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// The machine, whose number of CPUs changes.
    pub machine: &'a Machine,
    /// The bench image.
    pub image: &'a Path,
    /// The plugin.
    pub plugin: &'a Path,
    /// Where the plugin may write.
    pub scratch: &'a Path,
}

impl Counted<'_> {
    /// Boots with so many CPUs, which take turns by instructions, with the boot arguments `append` and QEMU's arguments
    /// `extra`, and returns what the plugin has written, a text for each of `files`: it is given those by its arguments
    /// of these names, after `arguments`.
    ///
    /// # Errors
    /// When the boot does not end as it should, or a file is not there.
    pub(super) fn boot(
        &self,
        cpus: u32,
        append: &str,
        extra: &[&str],
        arguments: &str,
        files: &[&str],
    ) -> Result<Vec<String>> {
        // One for each of this process: tests measure at the same time.
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.scratch.join(format!("counted-{}-{number}.{kind}", std::process::id()));
        let mut plugin = OsString::from(self.plugin);
        plugin.push(arguments);
        for kind in files {
            plugin.push(format!(",{kind}={}", file(kind).display()));
        }
        let machine = Machine {
            smp: cpus,
            icount: true,
            memory: MEMORY.into(),
            devices: Vec::new(),
            machine: format!("{},dtb-randomness=off", self.machine.machine),
            ..self.machine.clone()
        };
        let mut all = vec!["-plugin".into(), plugin];
        all.extend(extra.iter().map(Into::into));
        // Where a plugin sees accesses, QEMU (10.0) loads and stores no tags: LDG is 0 in code that it watches.
        let append = format!("semihosting nokaslr norandmaps heap.tags=off {append}");
        let ended = run(&Qemu::new(&machine, self.image, Serial::Pipes, Reset::Ends, &append, &all));
        let read = |kind: &&str| {
            let text = fs::read_to_string(file(kind));
            // It is not there where QEMU did not start.
            let _ = fs::remove_file(file(kind));
            text
        };
        let texts = files.iter().map(read).collect::<Result<_, _>>();
        ended.with_context(|| format!("{append} with {cpus} CPUs"))?;
        Ok(texts?)
    }
}

/// The numbers of a line of a plugin.
///
/// # Errors
/// When there are more or fewer, or other words.
pub(super) fn numbers<const N: usize>(line: &str) -> Result<[u64; N]> {
    let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.with_context(|| format!("not a line of the plugin: {line}"))
}

/// Runs a machine to its end.
fn run(qemu: &Qemu) -> Result<()> {
    let mut guest = Guest::start(qemu)?;
    let deadline = guest.deadline(LIMIT);
    let (mut lines, mut transcript) = (Lines::default(), Vec::new());
    loop {
        match guest.receive(deadline) {
            Received::Bytes(bytes) => transcript.extend(lines.feed(&bytes)),
            Received::Closed => break,
            Received::Silence => bail!("it took longer than {} s:\n{}", LIMIT.seconds(), transcript.join("\n")),
        }
    }
    let status = guest.status(Duration::from_secs(60))?.and_then(|status| status.code());
    transcript.push(lines.partial());
    ensure!(status == Some(0), "status {status:?}:\n{}", transcript.join("\n"));
    Ok(())
}
