//! The log of a machine without a console, as a debugger reads it: docs/BOARDS.md, "No console".

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use granule_runner::gdb::{Gdb, Socket};

/// Where QEMU's `-kernel` loads an Image on `virt`.
pub const IMAGE: u64 = 0x4020_0000;
/// The header's magic number, and the word with the distance to the log.
const MAGIC_AT: usize = 56;
const DISTANCE_AT: usize = 32;
/// Bytes before those of the log, and bytes of the log.
const POSITIONS: usize = 16;
const SIZE: usize = 16 * 1024;
/// How long a boot may take, on a host that is busy.
const LIMIT: Duration = Duration::from_secs(600);

/// The log of the image at `image`, once `text` is in it. The machine goes on.
///
/// # Errors
/// When it does not come, with what is there; when no debugger can read it.
pub fn wait_for(socket: &Socket, image: u64, text: &str) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut debugger = Gdb::connect(socket)?;
        let log = read(&mut debugger, image)?;
        debugger.detach()?;
        if log.contains(text) {
            return Ok(log);
        }
        if Instant::now() >= deadline {
            bail!("no {text:?} in the log in memory: {log:?}");
        }
        sleep(Duration::from_millis(100));
    }
}

fn read(debugger: &mut Gdb, image: u64) -> Result<String> {
    let header = debugger.physical(image, 64)?;
    ensure!(header[MAGIC_AT..][..4] == *b"ARM\x64", "no Image at {image:#x}");
    let log = image + word(&header, DISTANCE_AT)?;
    let all = debugger.physical(log, POSITIONS + SIZE)?;
    let (oldest, newest) = (word(&all, 0)?, word(&all, 8)?);
    ensure!(newest.wrapping_sub(oldest) <= SIZE as u64, "positions {oldest} and {newest} of the log");
    let bytes = (oldest..newest).map(|position| all[POSITIONS + position as usize % SIZE]).collect();
    String::from_utf8(bytes).context("the log is no text")
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map(|word| u64::from_le_bytes(*word)).context("too short")
}
