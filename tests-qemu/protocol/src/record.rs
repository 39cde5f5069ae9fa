//! The record of one test, 256 bytes in section `linkme_TESTS` of the image.
//!
//! Fixed size and inline text, so that the runner reads it from the ELF without relocating anything: the one pointer
//! in it is only for the guest. A record that does not fit does not compile.

/// The section that holds the records, one after the other, in the order in which they run.
pub const SECTION: &str = "linkme_TESTS";
/// `GTST`, as it lies in memory.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"GTST");
/// Runs only where `--long` was asked for.
pub const FLAG_LONG: u32 = 1 << 0;
/// Misbehaves on purpose: run by the runner's own tests alone.
pub const FLAG_SELFTEST: u32 = 1 << 1;
/// [`Record::flags`]: the test has the kernel log an error.
pub const FLAG_LOGS_ERRORS: u32 = 1 << 2;

/// Room for a name, NUL included.
pub const NAME_BYTES: usize = 120;
/// Room for the features that a test needs, blank separated, NUL included.
pub const NEEDS_BYTES: usize = 64;
/// Room for the machines that a test is for, blank separated, NUL included.
pub const MACHINES_BYTES: usize = 48;
/// The size of a record.
pub const RECORD_BYTES: usize = 256;

/// One test. `F` is a function pointer in the guest and eight bytes without meaning on the host.
#[repr(C)]
#[derive(Debug)]
pub struct Record<F> {
    /// [`RECORD_MAGIC`].
    pub magic: u32,
    /// [`FLAG_LONG`], [`FLAG_SELFTEST`], [`FLAG_LOGS_ERRORS`].
    pub flags: u32,
    /// Seconds of CPU time, for each CPU, from the begin frame to the verdict, at the end of which the runner stops the machine. Not 0.
    pub limit: u32,
    /// 0.
    pub reserved: u32,
    /// The test itself.
    pub function: F,
    /// The area, `::` and what is true, NUL padded.
    pub name: [u8; NAME_BYTES],
    /// Features that the machine must have, by their names in machines.toml; empty: none.
    pub needs: [u8; NEEDS_BYTES],
    /// The only machines that it runs on; empty: all.
    pub machines: [u8; MACHINES_BYTES],
}

const _: () = assert!(size_of::<Record<u64>>() == RECORD_BYTES);

/// The limit of a test that names none.
const DEFAULT_LIMIT: u32 = 10;

/// A record is made in a constant, so a panic here is an error of compilation.
impl<F> Record<F> {
    /// A record for the function `name` in `module` (a `module_path!()`, whose first two parts, the crate and its
    /// `tests`, are left out), with ten seconds to run on every machine.
    ///
    /// # Panics
    /// When the names have no room.
    pub const fn new(function: F, module: &str, name: &str) -> Self {
        Self {
            magic: RECORD_MAGIC,
            flags: 0,
            limit: DEFAULT_LIMIT,
            reserved: 0,
            function,
            name: path(module, name),
            needs: [0; NEEDS_BYTES],
            machines: [0; MACHINES_BYTES],
        }
    }

    /// The test needs these features, blank separated, by their names in machines.toml.
    ///
    /// # Panics
    /// When they have no room.
    pub const fn needs(mut self, features: &str) -> Self {
        self.needs = padded(features);
        self
    }

    /// The test is for these machines, blank separated.
    ///
    /// # Panics
    /// When their names have no room.
    pub const fn machines(mut self, machines: &str) -> Self {
        self.machines = padded(machines);
        self
    }

    /// The test may take that many seconds of CPU time, for each CPU; 1 or more.
    ///
    /// # Panics
    /// On 0.
    pub const fn limit(mut self, seconds: u32) -> Self {
        assert!(seconds > 0, "a test needs time to run");
        self.limit = seconds;
        self
    }

    /// The test runs only where `--long` was asked for.
    pub const fn long(mut self) -> Self {
        self.flags |= FLAG_LONG;
        self
    }

    /// The test has the kernel log an error on purpose, which fails any other.
    pub const fn logs_errors(mut self) -> Self {
        self.flags |= FLAG_LOGS_ERRORS;
        self
    }

    /// The test misbehaves on purpose: only the runner's own tests run it.
    pub const fn selftest(mut self) -> Self {
        self.flags |= FLAG_SELFTEST;
        self
    }
}

/// The text of an inline field: up to its first NUL. `None` if it is not UTF-8 or has no NUL.
pub fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(&field[..end]).ok()
}

/// `module` without its first two parts, `::`, `name`.
const fn path(module: &str, name: &str) -> [u8; NAME_BYTES] {
    let module = module.as_bytes();
    let (mut start, mut left_out) = (0, 0);
    while start < module.len() && left_out < 2 {
        left_out += (module[start] == b':' && start != 0 && module[start - 1] == b':') as usize;
        start += 1;
    }
    let mut out = [0; NAME_BYTES];
    let mut at = 0;
    if start < module.len() {
        at = append(&mut out, at, module, start);
        at = append(&mut out, at, b"::", 0);
    }
    append(&mut out, at, name.as_bytes(), 0);
    out
}

pub(crate) const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    append(&mut out, 0, text.as_bytes(), 0);
    out
}

/// Copies `from[start..]` to `out[at..]` and returns where it ended; the last byte of `out` stays NUL.
const fn append<const N: usize>(out: &mut [u8; N], mut at: usize, from: &[u8], start: usize) -> usize {
    let mut i = start;
    while i < from.len() {
        assert!(at + 1 < N, "a text of this test record is too long");
        out[at] = from[i];
        at += 1;
        i += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::{FLAG_LONG, Record, text};

    #[test]
    fn name_is_the_path_without_the_crate() {
        let record = Record::new(0u64, "granule_tests::tests::set_memory", "ro_refuses_writes")
            .needs("mte smp")
            .machines("a53 el2")
            .limit(5)
            .long();
        assert_eq!((record.limit, record.flags), (5, FLAG_LONG));
        assert_eq!(text(&record.name), Some("set_memory::ro_refuses_writes"));
        assert_eq!(text(&record.needs), Some("mte smp"));
        assert_eq!(text(&record.machines), Some("a53 el2"));
    }

    #[test]
    fn name_at_the_root_has_no_path() {
        let record = Record::new(0u64, "granule_tests::tests", "boots");
        assert_eq!(text(&record.name), Some("boots"));
    }

    #[test]
    fn text_without_an_end_is_refused() {
        assert_eq!(text(b"abc"), None);
        assert_eq!(text(b"\xff\0"), None);
    }
}
