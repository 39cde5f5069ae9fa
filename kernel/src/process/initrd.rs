//! The initrd: the files that programs are started from.
//!
//! A cpio archive in the "new ASCII" form, as for Linux (Documentation/driver-api/early-userspace/buffer-format.rst): for
//! each file a header of `070701` and thirteen fields of eight hexadecimal digits, the name with a final zero, padding to
//! a multiple of four, the contents, padding. `TRAILER!!!` is the last one. The archive comes from outside, so every
//! number in it is doubted; what is wrong is said in words, and where.

use granule_arch::addr::PhysRange;
use thiserror::Error;

use crate::mm::layout;

/// Bytes of a header.
const HEADER: usize = 110;
/// Where the fields are that count here, each eight digits.
const MODE: usize = 14;
const SIZE: usize = 54;
const NAME_SIZE: usize = 94;
/// Mode bits that say what kind of file it is, and their value for a regular one.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
/// The name that ends an archive.
const END: &str = "TRAILER!!!";

/// A file of the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// Its name, without a `/` or `./` before it.
    pub name: &'a str,
    /// What is in it.
    pub contents: &'a [u8],
}

/// What is wrong with an archive, and at which byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ArchiveError {
    /// No header where there should be one.
    #[error("the initrd has no cpio header (new ASCII) at byte {0}")]
    NoHeader(usize),
    /// A field with something else than digits.
    #[error("the initrd's header at byte {0} has a field that is no number")]
    NotANumber(usize),
    /// A name that is empty or has no end, or no text.
    #[error("the initrd's header at byte {0} has a name that is none")]
    BadName(usize),
    /// A file that would go on behind the archive.
    #[error("the initrd ends inside the entry at byte {0}")]
    CutOff(usize),
}

/// The regular files of an archive, in its order. An error is the last thing that it gives.
pub fn files(archive: &[u8]) -> Files<'_> {
    Files { archive, position: Some(0) }
}

/// See [`files`].
#[derive(Clone, Debug)]
pub struct Files<'a> {
    archive: &'a [u8],
    /// Where the next header is; `None` at the end.
    position: Option<usize>,
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (file, mode, next) = match entry(self.archive, self.position.take()?) {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            if file.name == END {
                return None;
            }
            self.position = Some(next);
            if mode & KIND == REGULAR {
                return Some(Ok(file));
            }
        }
    }
}

/// The entry whose header is at `at`: the file, its mode, and where the next header is.
fn entry(archive: &[u8], at: usize) -> Result<(File<'_>, u32, usize), ArchiveError> {
    let header = archive.get(at..).and_then(|rest| rest.get(..HEADER)).ok_or(ArchiveError::NoHeader(at))?;
    if !header.starts_with(b"070701") {
        return Err(ArchiveError::NoHeader(at));
    }
    let field = |offset: usize| {
        // Unlike `from_str_radix` alone, no sign.
        let digits = Some(&header[offset..offset + 8]).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or(ArchiveError::NotANumber(at))
    };
    let (mode, size, name_size) = (field(MODE)?, field(SIZE)? as usize, field(NAME_SIZE)? as usize);

    // Sums of a position in memory and a few 32-bit numbers: they cannot wrap.
    let name_start = at + HEADER;
    let name = archive.get(name_start..name_start + name_size).ok_or(ArchiveError::CutOff(at))?;
    let name = name.strip_suffix(&[0]).and_then(|name| str::from_utf8(name).ok()).filter(|name| !name.is_empty());
    let name = bare(name.ok_or(ArchiveError::BadName(at))?);
    let start = (name_start + name_size).next_multiple_of(4);
    let contents = archive.get(start..start + size).ok_or(ArchiveError::CutOff(at))?;
    Ok((File { name, contents }, mode, (start + size).next_multiple_of(4)))
}

/// A path without what may stand before it.
fn bare(mut path: &str) -> &str {
    while let Some(rest) = path.strip_prefix("./").or_else(|| path.strip_prefix('/')) {
        path = rest;
    }
    path
}

/// The archive that the boot loader gave; empty if it gave none.
pub fn archive() -> &'static [u8] {
    let range = crate::try_kernel().and_then(|kernel| kernel.platform.initrd);
    range.map_or(&[], |range: PhysRange| {
        // SAFETY: the memory map keeps the range from everybody else, it is in the linear map as all memory is, and
        // nobody writes it.
        unsafe { core::slice::from_raw_parts(layout::linear(range.start()).as_ptr(), range.size() as usize) }
    })
}

/// The file with this path, the first of them.
///
/// # Errors
/// The archive is broken before the file was found.
pub fn find(path: &str) -> Result<Option<File<'static>>, ArchiveError> {
    find_in(archive(), path)
}

fn find_in<'a>(archive: &'a [u8], path: &str) -> Result<Option<File<'a>>, ArchiveError> {
    if archive.is_empty() {
        return Ok(None);
    }
    let wanted = bare(path);
    files(archive).find(|file| file.is_err() || file.is_ok_and(|file| file.name == wanted)).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::{ArchiveError, File, bare, files, find_in};

    fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
        let fields = [1, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut archive = Vec::new();
        add(&mut archive, ".", 0o040_755, b"");
        add(&mut archive, "./bin/one", 0o100_755, b"first");
        add(&mut archive, "two", 0o100_644, b"");
        add(&mut archive, "link", 0o120_777, b"two");
        add(&mut archive, "two", 0o100_644, b"another of the same name");
        add(&mut archive, "TRAILER!!!", 0, b"");
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive
    }

    #[test]
    fn regular_files_are_found_by_their_paths() {
        let archive = sample();
        let names: Vec<_> = files(&archive).map(|file| file.unwrap().name).collect();
        assert_eq!(names, ["bin/one", "two", "two"]);
        let file = File { name: "bin/one", contents: b"first" };
        for path in ["bin/one", "/bin/one", "./bin/one"] {
            assert_eq!(find_in(&archive, path), Ok(Some(file)));
        }
        assert_eq!(find_in(&archive, "two").unwrap().unwrap().contents, b"");
        assert_eq!(find_in(&archive, "link"), Ok(None), "no regular file");
        assert_eq!(find_in(&archive, "TRAILER!!!"), Ok(None));
        assert_eq!(find_in(&[], "two"), Ok(None), "no initrd at all");
        assert_eq!(bare("//././x/"), "x/");
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let good = sample();
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut archive = good.clone();
            change(&mut archive);
            let error = files(&archive).find_map(Result::err).expect("an error");
            assert!(files(&archive).skip_while(Result::is_ok).nth(1).is_none(), "the error is the last thing");
            error
        };
        let second = 112;
        assert_eq!(broken(&|archive| archive[0] = b'1'), ArchiveError::NoHeader(0));
        assert_eq!(broken(&|archive| archive[second + 5] = b'2'), ArchiveError::NoHeader(second), "with checksums");
        assert_eq!(broken(&|archive| archive[second + 54] = b'+'), ArchiveError::NotANumber(second));
        assert_eq!(broken(&|archive| archive[second + 54] = b'f'), ArchiveError::CutOff(second));
        assert_eq!(broken(&|archive| archive[second + 94] = b'f'), ArchiveError::CutOff(second));
        assert_eq!(broken(&|archive| archive[second + 110] = 0xff), ArchiveError::BadName(second));
        assert_eq!(broken(&|archive| archive[second + 101] = b'0'), ArchiveError::BadName(second));
        let end = good.len() - 512;
        assert_eq!(broken(&|archive| archive.truncate(end)).to_string().split_whitespace().next(), Some("the"));
        assert_eq!(find_in(b"ustar", "two"), Err(ArchiveError::NoHeader(0)));
    }

    proptest! {
        #[test]
        fn no_archive_is_read_beyond_its_end(
            changes in prop::collection::vec((0..600_usize, any::<u8>()), 0..8),
            end in 0..700_usize,
        ) {
            let mut archive = sample();
            for (at, value) in changes {
                archive[at] = value;
            }
            archive.truncate(end);
            prop_assert!(files(&archive).count() <= 6);
        }
    }
}
