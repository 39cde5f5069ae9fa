//! A client of QEMU's gdb stub: registers by name, and memory by physical address.
//!
//! The least of the remote serial protocol (GDB manual, appendix E) that an outside look at a machine needs. The stub
//! stops the machine when a client connects, and `Qqemu.PhyMemMode` turns memory packets into physical ones.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Bytes asked for by one memory packet: their hexadecimal form fits in any stub's packet.
const MEMORY_CHUNK: usize = 1024;
/// How long the stub may take to answer.
const LIMIT: Duration = Duration::from_secs(200);

/// A stub's socket; the file goes with the value.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Socket {
    /// A path that no other machine of this process or another uses.
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("granule-{}-{number}.gdb", std::process::id())))
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> [std::ffi::OsString; 2] {
        ["-gdb".into(), format!("unix:{},server=on,wait=off", self.0.display()).into()]
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // QEMU may have removed it, or never made it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A connection. The machine stands still as long as it is open, unless it is continued.
#[derive(Debug)]
pub struct Gdb {
    input: BufReader<UnixStream>,
    output: UnixStream,
    /// Register numbers by name, from the target description.
    registers: BTreeMap<String, u32>,
}

impl Gdb {
    /// Connects, which stops the machine, and reads the target description.
    ///
    /// # Errors
    /// When there is no stub, or its answers are not the protocol's.
    pub fn connect(socket: &Socket) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let output = loop {
            match UnixStream::connect(socket.path()) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).context("QEMU's gdb stub"),
            }
        };
        output.set_read_timeout(Some(LIMIT))?;
        let mut gdb = Self { input: BufReader::new(output.try_clone()?), output, registers: BTreeMap::new() };
        let features = gdb.ask("qSupported:xmlRegisters=aarch64")?;
        ensure!(features.contains("qXfer:features:read+"), "the stub has no target description: {features}");
        gdb.ask("?")?;
        gdb.read_description()?;
        Ok(gdb)
    }

    /// Reads a register of the first CPU by its name in the target description, such as `TTBR1_EL1`.
    ///
    /// # Errors
    /// When there is no such register.
    pub fn register(&mut self, name: &str) -> Result<u64> {
        let number = *self.registers.get(name).with_context(|| format!("the stub knows no register {name}"))?;
        let bytes = hex(&self.ask(&format!("p{number:x}"))?)?;
        ensure!(!bytes.is_empty() && bytes.len() <= 8, "register {name} has {} bytes", bytes.len());
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Reads physical memory.
    ///
    /// # Errors
    /// When there is none at some of the addresses.
    pub fn physical(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        ensure!(self.ask("Qqemu.PhyMemMode:1")? == "OK", "the stub reads no physical memory");
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let chunk = MEMORY_CHUNK.min(length - bytes.len());
            let at = address + bytes.len() as u64;
            let part = hex(&self.ask(&format!("m{at:x},{chunk:x}"))?)
                .with_context(|| format!("physical memory at {at:#x}"))?;
            ensure!(part.len() == chunk, "physical memory at {at:#x}: {} bytes of {chunk}", part.len());
            bytes.extend(part);
        }
        Ok(bytes)
    }

    /// Writes physical memory.
    ///
    /// # Errors
    /// When there is none at some of the addresses.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        ensure!(self.ask("Qqemu.PhyMemMode:1")? == "OK", "the stub writes no physical memory");
        for (i, chunk) in bytes.chunks(MEMORY_CHUNK).enumerate() {
            let at = address + (i * MEMORY_CHUNK) as u64;
            let digits: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let answer = self.ask(&format!("M{at:x},{:x}:{digits}", chunk.len()))?;
            ensure!(answer == "OK", "physical memory at {at:#x}: {answer}");
        }
        Ok(())
    }

    /// Lets the machine go on and closes the connection. QEMU takes the packet, lets the machine go on and then answers:
    /// the answer is not waited for, because a machine that ends at once takes the connection with it.
    ///
    /// # Errors
    /// When the stub does not take the packet.
    pub fn detach(mut self) -> Result<()> {
        self.send("D")
    }

    /// Fills the map of registers. The description is a few XML files, each a list of `<reg name=".." regnum="..">`;
    /// a register without a number has its predecessor's plus one.
    fn read_description(&mut self) -> Result<()> {
        let mut next = 0;
        let mut files = vec!["target.xml".to_owned()];
        let mut at = 0;
        while at < files.len() {
            let text = self.transfer(&files[at])?;
            at += 1;
            for tag in text.split('<').skip(1) {
                if tag.starts_with("xi:include") {
                    files.extend(attribute(tag, "href"));
                } else if tag.starts_with("reg ") {
                    let number = attribute(tag, "regnum").and_then(|number| number.parse().ok()).unwrap_or(next);
                    next = number + 1;
                    self.registers.extend(attribute(tag, "name").map(|name| (name, number)));
                }
            }
        }
        ensure!(!self.registers.is_empty(), "the stub's target description names no registers");
        Ok(())
    }

    /// Reads one file of the target description.
    fn transfer(&mut self, file: &str) -> Result<String> {
        let mut text = String::new();
        loop {
            let answer = self.ask(&format!("qXfer:features:read:{file}:{:x},400", text.len()))?;
            ensure!(answer.starts_with(['l', 'm']), "no {file} in the target description: {answer}");
            text.push_str(&answer[1..]);
            if answer.starts_with('l') {
                return Ok(text);
            }
        }
    }

    /// Sends a packet and returns the answer to it.
    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.answer().with_context(|| format!("the stub's answer to `{packet}`"))
    }

    /// Sends a packet. The stub acknowledges it before it carries it out.
    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.output.write_all(format!("${packet}#{sum:02x}").as_bytes())?;
        ensure!(self.byte()? == b'+', "the stub did not take `{packet}`");
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        while self.byte()? != b'$' {}
        let mut bytes = Vec::new();
        let mut sum = 0u8;
        loop {
            let byte = self.byte()?;
            if byte == b'#' {
                break;
            }
            sum = sum.wrapping_add(byte);
            match byte {
                b'}' => {
                    let escaped = self.byte()?;
                    sum = sum.wrapping_add(escaped);
                    bytes.push(escaped ^ 0x20);
                }
                b'*' => {
                    let repeats = self.byte()?;
                    sum = sum.wrapping_add(repeats);
                    let Some(&last) = bytes.last() else { bail!("a repetition of nothing") };
                    bytes.extend(std::iter::repeat_n(last, usize::from(repeats.saturating_sub(29))));
                }
                _ => bytes.push(byte),
            }
        }
        let said = [self.byte()?, self.byte()?];
        ensure!(hex(std::str::from_utf8(&said)?)? == [sum], "a wrong checksum");
        self.output.write_all(b"+")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

/// The value of an XML attribute.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let value = tag.split_once(&format!("{name}=\""))?.1;
    Some(value.split_once('"')?.0.to_owned())
}

fn hex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "not hexadecimal: {text}");
    (0..text.len()).step_by(2).map(|i| Ok(u8::from_str_radix(&text[i..i + 2], 16)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::{attribute, hex};

    #[test]
    fn attributes_are_found() {
        assert_eq!(attribute(r#"reg name="TCR_EL1" bitsize="64" regnum="200"/>"#, "regnum").as_deref(), Some("200"));
        assert_eq!(attribute(r#"reg name="x0""#, "regnum"), None);
    }

    #[test]
    fn hexadecimal_is_read() {
        assert_eq!(hex("00ff").unwrap(), [0, 255]);
        assert!(hex("E01").is_err());
    }
}
