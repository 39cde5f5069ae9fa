//! Files of `/proc`.

use core::ffi::CStr;
use core::fmt::{self, Write};

use granule_abi::Errno;
use granule_abi::file::O_RDONLY;

use crate::owned::File;

/// A path.
struct Path([u8; 32], usize);

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays zero.
        self.0[self.1..31][..text.len()].copy_from_slice(text.as_bytes());
        self.1 += text.len();
        Ok(())
    }
}

/// A file of a process.
///
/// # Errors
/// The kernel's.
///
/// # Panics
/// The name is too long.
pub fn open(process: u32, name: &str) -> Result<File, Errno> {
    open_with(process, name, O_RDONLY)
}

/// As [`open`], with these flags.
///
/// # Errors
/// As [`open`].
///
/// # Panics
/// As [`open`].
pub fn open_with(process: u32, name: &str, flags: u32) -> Result<File, Errno> {
    let mut path = Path([0; 32], 0);
    write!(path, "/proc/{process}/{name}").expect("a short path");
    File::open(CStr::from_bytes_until_nul(&path.0).expect("a path"), flags)
}

/// The text from the file's position on, as far as there is room, in pieces of so many bytes.
///
/// # Panics
/// It cannot be read, or is no text.
pub fn text<'r>(file: &File, room: &'r mut [u8], piece: usize) -> &'r str {
    let mut length = 0;
    loop {
        let end = room.len().min(length + piece);
        let count = file.read(&mut room[length..end]).expect("a piece");
        if count == 0 {
            return core::str::from_utf8(&room[..length]).expect("text");
        }
        length += count as usize;
    }
}

/// The rest of a line of `status` or the like after its name.
pub fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
