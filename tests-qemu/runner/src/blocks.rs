//! Which blocks of the kernel's image a session at the monitor executes, by QEMU's plugin `tests-qemu/plugin/blocks.c`.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::qemu::{Qemu, Reset, Serial};
use crate::script;
use crate::serial::Limit;

/// Instructions that were executed in sequence, as offsets in bytes from the image's start. Each range is of one entry.
pub type Executed = Vec<Range<u64>>;

/// A session of which blocks were recorded.
#[derive(Debug)]
pub struct Played {
    /// The failures, as [`script::run`] reports them; nothing: success.
    pub wrong: Vec<String>,
    /// The output of the machine.
    pub session: String,
    /// The instructions of the boot, then of each line: fewer than there are lines where the machine ended early.
    pub records: Vec<Executed>,
}

/// A machine whose runs repeat: one CPU, instructions counted, a device tree without random bytes, and programs at the
/// same addresses. Its memory is little, so that programs may use it up.
pub fn repeatable(machine: &Machine) -> Machine {
    Machine {
        smp: 1,
        icount: true,
        memory: "128M".into(),
        machine: format!("{},dtb-randomness=off", machine.machine),
        bootargs: format!("{} nokaslr norandmaps", machine.bootargs),
        ..machine.clone()
    }
}

/// Types the lines at the monitor of `image`; the plugin and the file that it writes are beside the image. `initrd` is
/// given to the machine in place of the image's own.
///
/// # Errors
/// When QEMU cannot be run, or the plugin's file is not of its form.
pub fn play(machine: &Machine, image: &Path, initrd: Option<&Path>, lines: &[String], limit: Limit) -> Result<Played> {
    // Sessions run side by side: a file for each.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let file = image.with_file_name(format!("blocks-{}-{run}", std::process::id()));
    let plugin = format!("{},out={}", image.with_file_name("blocks.so").display(), file.display());
    // The clock of the day begins at the same second in each run.
    let clock = ["-rtc", "base=2024-01-01T00:00:00,clock=vm"].map(Into::into);
    let mut extra = [&["-plugin".into(), plugin.into()], &clock[..]].concat();
    if let Some(initrd) = initrd {
        extra.extend(["-initrd".into(), initrd.into()]);
    }
    let qemu = Qemu::new(machine, image, Serial::Pipes, Reset::Ends, script::BOOTARGS, &extra);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(&lines.join("\n")), limit, &mut session);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
    // It is not there where QEMU did not start, which `wrong` has then.
    let _ = fs::remove_file(&file);
    let (wrong, text) = (wrong?, text?);
    let session = String::from_utf8_lossy(&session).replace(['\r', '\0'], "");
    let mut records = parse(&text)?;
    // The last record is that of `poweroff`, which never returns to the prompt.
    records.truncate(lines.len() + 1);
    Ok(Played { wrong, session, records })
}

/// The records of the plugin's file: blocks are lines of an offset and a number of instructions, an empty line ends one.
fn parse(text: &str) -> Result<Vec<Executed>> {
    let mut records = vec![Executed::new()];
    for line in text.lines() {
        if line.is_empty() {
            records.push(Executed::new());
            continue;
        }
        let number = |word: &str| u64::from_str_radix(word, 16).ok();
        let block = line.split_once(' ').and_then(|(offset, length)| Some((number(offset)?, number(length)?)));
        // A machine that was ended may have left half a line, the last.
        let Some((offset, length)) = block else { break };
        records.last_mut().context("there is one")?.push(offset..offset + 4 * length);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn records_are_divided_by_empty_lines() {
        let records = parse("1000 4\n30 1\n\n20 1\n1000 2\n\n\n4").unwrap();
        assert_eq!(records, [vec![0x1000..0x1010, 0x30..0x34], vec![0x20..0x24, 0x1000..0x1008], vec![], vec![]]);
    }
}
