//! The initrd: the files that there are, and that programs are started from.
//!
//! A cpio archive in the "new ASCII" form, as for Linux (Documentation/driver-api/early-userspace/buffer-format.rst):
//! for each file a header of `070701` and thirteen fields of eight hexadecimal digits, the name with a final zero,
//! padding to a multiple of four, the contents, padding. `TRAILER!!!` is the last one. The archive comes from outside,
//! so every number in it is checked; errors have their position.

#![allow(unsafe_code, reason = "the initrd as bytes, mapped for the whole boot")]

use alloc::vec::Vec;

use granule_abi::file::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use granule_arch::addr::PhysRange;
use thiserror::Error;

use super::device::DeviceNumber;
use super::proc::ProcEntry;
use crate::bytes;
use crate::linux::errno::Errno;
use crate::mm::layout;
use crate::sched::relax;

/// Bytes of a header.
const HEADER: usize = 110;
/// The offsets of the fields that are used, each eight digits.
const MODE: usize = 14;
const SIZE: usize = 54;
const NAME_SIZE: usize = 94;
const USER: usize = 22;
const GROUP: usize = 30;
const MODIFIED: usize = 46;
/// Mode bits that allow execution: by owner, group or others. One is enough, since every program is root's.
const EXECUTABLE: u32 = 0o111;
/// Bytes of the longest name between two slashes (`NAME_MAX`).
const NAME: usize = 255;
/// The name that ends an archive.
const END: &str = "TRAILER!!!";

/// A file of the archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// Its name, without a `/` or `./` before it.
    pub name: &'a str,
    /// Its contents.
    pub contents: &'a [u8],
}

/// An error of an archive, and at which byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ArchiveError {
    /// No header where one must be.
    #[error("the initrd has no cpio header (new ASCII) at byte {0}")]
    NoHeader(usize),
    /// A field with other characters than digits.
    #[error("the initrd's header at byte {0} has a field that is no number")]
    NotANumber(usize),
    /// A name that is empty or has no end, or no text.
    #[error("the initrd's header at byte {0} has a name that is none")]
    BadName(usize),
    /// A file that exceeds the archive.
    #[error("the initrd ends inside the entry at byte {0}")]
    CutOff(usize),
}

/// What a file's header has beside its name and contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// A number that no other file has: where its header is.
    pub number: usize,
    /// The kind of file, and its permissions.
    pub mode: u32,
    /// The owner.
    pub user: u32,
    /// The owner's group.
    pub group: u32,
    /// When it was changed, in seconds since 1970.
    pub modified: u32,
}

/// Why a path leads to no file, or no program, with Linux's error for each step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PathError {
    /// A name that is not in its directory; an empty path.
    #[error("the initrd has no such file")]
    NotFound,
    /// A name that is followed by others, and is a file.
    #[error("a part of the path is no directory")]
    NotDirectory,
    /// A name of more than 255 bytes.
    #[error("a name in the path is too long")]
    NameTooLong,
    /// A symbolic link, which is not followed.
    #[error("symbolic links are not followed")]
    Link,
    /// A directory, a file whose mode allows no execution, or something else.
    #[error("not a file that may be executed")]
    NotExecutable,
    /// No memory for the path.
    #[error("out of memory")]
    OutOfMemory,
    /// The archive is broken before the name was found.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl PathError {
    /// The error of execve.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::Link => Errno::ELOOP,
            Self::NotExecutable => Errno::EACCES,
            Self::OutOfMemory => Errno::ENOMEM,
            Self::Archive(_) => Errno::EIO,
        }
    }
}

/// The regular files of an archive, in its order. An error is the last item.
pub fn files(archive: &[u8]) -> Files<'_> {
    Files { archive, position: Some(0) }
}

/// The executable files of an archive, in its order. An error is the last item.
pub fn programs(archive: &[u8]) -> impl Iterator<Item = Result<File<'_>, ArchiveError>> {
    let mut entries = files(archive);
    core::iter::from_fn(move || {
        loop {
            match entries.next_entry()? {
                Ok((file, has)) if has.mode & S_IFMT == S_IFREG && has.mode & EXECUTABLE != 0 => return Some(Ok(file)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    })
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
            match self.next_entry()? {
                Ok((file, has)) if has.mode & S_IFMT == S_IFREG => return Some(Ok(file)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl<'a> Files<'a> {
    /// The next entry of any kind.
    fn next_entry(&mut self) -> Option<Result<(File<'a>, Attributes), ArchiveError>> {
        let (file, attributes, next) = match entry(self.archive, self.position.take()?) {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        if file.name == END {
            return None;
        }
        self.position = Some(next);
        Some(Ok((file, attributes)))
    }
}

/// The entry whose header is at `at`: the file, and where the next header is.
fn entry(archive: &[u8], at: usize) -> Result<(File<'_>, Attributes, usize), ArchiveError> {
    let header = archive.get(at..).and_then(|rest| rest.get(..HEADER)).ok_or(ArchiveError::NoHeader(at))?;
    if !header.starts_with(b"070701") {
        return Err(ArchiveError::NoHeader(at));
    }
    let field = |offset: usize| {
        let mut digits = header.iter().skip(offset).take(8).map(|&byte| char::from(byte).to_digit(16));
        let number = digits.try_fold(0, |number: u32, digit| Some(number << 4 | digit?));
        number.ok_or(ArchiveError::NotANumber(at))
    };
    let (size, name_size) = (field(SIZE)? as usize, field(NAME_SIZE)? as usize);
    let (mode, user, group, modified) = (field(MODE)?, field(USER)?, field(GROUP)?, field(MODIFIED)?);

    // Sums of a position in memory and a few 32-bit numbers: they cannot wrap.
    let name_start = at + HEADER;
    let name = archive.get(name_start..name_start + name_size).ok_or(ArchiveError::CutOff(at))?;
    let name = name.strip_suffix(&[0]).and_then(|name| str::from_utf8(name).ok()).filter(|name| !name.is_empty());
    let name = bare(name.ok_or(ArchiveError::BadName(at))?);
    let start = (name_start + name_size).next_multiple_of(4);
    let contents = archive.get(start..start + size).ok_or(ArchiveError::CutOff(at))?;
    let attributes = Attributes { number: at, mode, user, group, modified };
    Ok((File { name, contents }, attributes, (start + size).next_multiple_of(4)))
}

/// A path without a leading `/` or `./`.
fn bare(mut path: &str) -> &str {
    while let Some(rest) = path.strip_prefix("./").or_else(|| path.strip_prefix('/')) {
        path = rest;
    }
    path
}

/// The archive from the boot loader; empty if there is none.
pub fn archive() -> &'static [u8] {
    let range = crate::try_kernel().and_then(|kernel| kernel.platform.initrd);
    range.map_or(&[], |range: PhysRange| {
        // SAFETY: the memory map reserves the range, it is in the linear map as all memory is, and it is never written.
        unsafe { core::slice::from_raw_parts(layout::linear(range.start()).as_ptr(), range.size() as usize) }
    })
}

/// The file at a path, for execution.
///
/// # Errors
/// [`PathError`].
pub fn find(path: &[u8]) -> Result<File<'static>, PathError> {
    find_in(archive(), path)
}

fn find_in<'a>(archive: &'a [u8], path: &[u8]) -> Result<File<'a>, PathError> {
    match look_in(archive, path)? {
        PathEntry::File(file, attributes) if attributes.mode & EXECUTABLE != 0 => Ok(file),
        PathEntry::Link(..) => Err(PathError::Link),
        _ => Err(PathError::NotExecutable),
    }
}

/// What is at a path.
///
/// Names are looked up one by one from the root, as on Linux: there is no other working directory. A directory exists
/// if it has an entry or if a file is in it.
///
/// # Errors
/// [`PathError`].
pub fn look(path: &[u8]) -> Result<PathEntry<'static>, PathError> {
    look_in(archive(), path)
}

fn look_in<'a>(archive: &'a [u8], path: &[u8]) -> Result<PathEntry<'a>, PathError> {
    if path.is_empty() {
        return Err(PathError::NotFound);
    }
    // The names that lead to `found`, without `.` and `..`.
    let mut way = Vec::new();
    way.try_reserve(path.len()).map_err(|_| PathError::OutOfMemory)?;
    let (mut found, mut is_above) = (PathEntry::Directory("", ROOT), false);
    for name in path.split(|&byte| byte == b'/') {
        match found {
            PathEntry::Directory(..) | PathEntry::Proc(ProcEntry::Root | ProcEntry::Process(_)) => {}
            PathEntry::Link(..) => return Err(PathError::Link),
            _ => return Err(PathError::NotDirectory),
        }
        match name {
            b"" | b"." => {}
            b".." => {
                let parent = way.iter().rposition(|&byte| byte == b'/');
                way.truncate(parent.unwrap_or(0));
                is_above = true;
            }
            name if name.len() > NAME => return Err(PathError::NameTooLong),
            name => {
                if !way.is_empty() {
                    bytes::append(&mut way, b"/").map_err(|_| PathError::OutOfMemory)?;
                }
                bytes::append(&mut way, name).map_err(|_| PathError::OutOfMemory)?;
                (found, is_above) = (look_up(archive, &way)?, false);
            }
        }
    }
    match way.as_slice() {
        [] => Ok(PathEntry::Directory("", ROOT)),
        // Which directory it is was not looked at on the way.
        _ if is_above => look_up(archive, &way),
        _ => Ok(found),
    }
}

/// The root, and each directory that has no entry of its own.
const ROOT: Attributes = Attributes { number: usize::MAX, mode: S_IFDIR | 0o755, user: 0, group: 0, modified: 0 };

/// What a path leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathEntry<'a> {
    /// A directory: its path from the root, without `.` and `..`.
    Directory(&'a str, Attributes),
    /// A regular file.
    File(File<'a>, Attributes),
    /// A symbolic link, whose contents are its target.
    Link(File<'a>, Attributes),
    /// The console.
    Console,
    /// A device.
    Device(DeviceNumber),
    /// A name in `/proc`.
    Proc(ProcEntry),
    /// Another device, a pipe, ...
    Other(Attributes),
}

/// The first entry with this name; a directory too if it has none and a name begins with it.
fn look_up<'a>(archive: &'a [u8], wanted: &[u8]) -> Result<PathEntry<'a>, PathError> {
    // The kernel's own: no archive needs them.
    if wanted == CONSOLE.as_bytes() {
        return Ok(PathEntry::Console);
    }
    if let Some(entry) = ProcEntry::find(wanted) {
        return Ok(PathEntry::Proc(entry));
    }
    if let Some(device) = wanted.strip_prefix(b"dev/").and_then(DeviceNumber::find) {
        return Ok(PathEntry::Device(device));
    }
    if archive.is_empty() {
        return missing(wanted);
    }
    let mut entries = files(archive);
    while let Some(entry) = entries.next_entry() {
        let (file, attributes) = entry?;
        relax();
        let Some(rest) = file.name.as_bytes().strip_prefix(wanted) else { continue };
        match (rest.first(), attributes.mode & S_IFMT) {
            (None, S_IFREG) => return Ok(PathEntry::File(file, attributes)),
            (None, S_IFDIR) => return Ok(PathEntry::Directory(file.name, attributes)),
            (None, S_IFLNK) => return Ok(PathEntry::Link(file, attributes)),
            (None, _) => return Ok(PathEntry::Other(attributes)),
            (Some(b'/'), _) => {
                // Inside the entry, whose name has as many slashes; and odd, as no header's position is.
                let slashes = wanted.iter().filter(|&&byte| byte == b'/').count();
                let number = attributes.number + 1 + 2 * slashes;
                let path = file.name.get(..wanted.len()).unwrap_or_default();
                return Ok(PathEntry::Directory(path, Attributes { number, ..ROOT }));
            }
            (Some(_), _) => {}
        }
    }
    missing(wanted)
}

/// Where the console is, and its directory.
const CONSOLE: &str = "dev/console";
const DEVICES: &str = "dev";

/// What is where the archive has nothing.
fn missing<'a>(wanted: &[u8]) -> Result<PathEntry<'a>, PathError> {
    let directory = PathEntry::Directory(DEVICES, Attributes { number: usize::MAX - 1, ..ROOT });
    if wanted == DEVICES.as_bytes() { Ok(directory) } else { Err(PathError::NotFound) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::super::proc::{ProcEntry, ProcFile, ProcId};
    use super::{ArchiveError, END, File, PathEntry, PathError, bare, files, find_in, look_in, programs};
    use granule_abi::file::{S_IFDIR, S_IFREG};

    pub(crate) fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
        let fields = [1, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    pub(crate) fn sample() -> Vec<u8> {
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
        let names: Vec<_> = programs(&archive).map(|file| file.unwrap().name).collect();
        assert_eq!(names, ["bin/one"]);
        assert!(programs(b"ustar").eq([Err(ArchiveError::NoHeader(0))]));
        let file = File { name: "bin/one", contents: b"first" };
        for path in ["bin/one", "/bin/one", "./bin/one", "bin/../two/../bin/one", "..//.//bin/./one"] {
            assert_eq!(find_in(&archive, path.as_bytes()), if path.contains("two") { NOT_DIRECTORY } else { Ok(file) });
        }
        assert_eq!(bare("//././x/"), "x/");
    }

    const NOT_DIRECTORY: Result<File<'static>, PathError> = Err(PathError::NotDirectory);

    #[test]
    fn paths_are_refused_as_on_linux() {
        let archive = sample();
        let find = |path: &[u8]| find_in(&archive, path).map(drop);
        for path in ["two", "dev", "dev/console", "bin", "/", ".", "..", "bin/", "bin/.", "bin/..", "/..//"] {
            assert_eq!(find(path.as_bytes()), Err(PathError::NotExecutable), "{path}");
        }
        for path in ["", "TRAILER!!!", "tw", "bin/on", "bi/one", "nosuch/../bin/one", "\u{ff}", "bin/one2"] {
            assert_eq!(find(path.as_bytes()), Err(PathError::NotFound), "{path}");
        }
        for path in ["two/", "bin/one/", "bin/one/.", "bin/one/..", "bin/one/x", "dev/console/x"] {
            assert_eq!(find(path.as_bytes()), Err(PathError::NotDirectory), "{path}");
        }
        for path in ["link", "link/x", "link/"] {
            assert_eq!(find(path.as_bytes()), Err(PathError::Link), "{path}");
        }
        assert_eq!(find(&[b'x'; 255]), Err(PathError::NotFound));
        assert_eq!(find(&[b'x'; 256]), Err(PathError::NameTooLong));
        assert_eq!(find(&[b"two/".as_slice(), &[b'x'; 256]].concat()), Err(PathError::NotDirectory));
        assert_eq!(find(&[b"x/".as_slice(), &[b'x'; 256]].concat()), Err(PathError::NotFound));
        assert_eq!(find_in(&[], b"two"), Err(PathError::NotFound), "no initrd at all");
        assert_eq!(find_in(&[], b"/"), Err(PathError::NotExecutable));
    }

    #[test]
    fn directories_have_paths_and_numbers_of_their_own() {
        let mut archive = Vec::new();
        add(&mut archive, "one/two/file", S_IFREG | 0o644, b"contents");
        add(&mut archive, "three", S_IFDIR | 0o700, b"");
        add(&mut archive, END, 0, b"");
        let directory = |path: &str| match look_in(&archive, path.as_bytes()) {
            Ok(PathEntry::Directory(path, attributes)) => (path, attributes.number, attributes.mode),
            other => panic!("{path}: {other:?}"),
        };
        let default = S_IFDIR | 0o755;
        for (path, (expected, _, mode)) in [
            ("/", ("", 0, default)),
            ("one/..", ("", 0, default)),
            ("/one/", ("one", 0, default)),
            ("one/two/../../three/../one/./two", ("one/two", 0, default)),
            ("one/two/..", ("one", 0, default)),
            ("three/.", ("three", 0, S_IFDIR | 0o700)),
            ("dev", ("dev", 0, default)),
        ] {
            let (found, number, found_mode) = directory(path);
            assert_eq!((found, found_mode), (expected, mode), "{path}");
            assert_eq!(number, directory(if expected.is_empty() { "/" } else { expected }).1, "{path}");
        }
        let mut numbers = ["/", "one", "one/two", "three", "dev"].map(|path| directory(path).1);
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        let Ok(PathEntry::File(_, attributes)) = look_in(&archive, b"one/two/file") else { panic!("no file") };
        assert!(!numbers.contains(&attributes.number));
        assert_eq!(look_in(&archive, b"/dev/./console"), Ok(PathEntry::Console));
        let proc = |path: &str| look_in(&archive, path.as_bytes());
        let pagemap = PathEntry::Proc(ProcEntry::File(ProcId::Own, ProcFile::Pagemap));
        assert_eq!(proc("/proc//./self/../self/pagemap"), Ok(pagemap));
        assert_eq!(proc("proc/self/pagemap/.."), Err(PathError::NotDirectory));
        assert_eq!(proc("proc/self/nothing"), Err(PathError::NotFound));
        assert_eq!(look_in(&archive, b"dev/null"), Err(PathError::NotFound));
        assert_eq!(look_in(&archive, b"one/two/file/.."), Err(PathError::NotDirectory));
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
        assert_eq!(find_in(b"ustar", b"two"), Err(PathError::Archive(ArchiveError::NoHeader(0))));
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
