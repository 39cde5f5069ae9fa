//! The initrd: the files that there are at first, and that programs are started from.
//!
//! cpio archives in the "new ASCII" form, as for Linux (Documentation/driver-api/early-userspace/buffer-format.rst):
//! for each file a header of `070701` and thirteen fields of eight hexadecimal digits, the name with a final zero,
//! padding to a multiple of four, the contents, padding. In an archive of `070702` the last field is the sum of the
//! contents' bytes. `TRAILER!!!` ends an archive, and others may follow after zeros; none may be compressed.
//!
//! Of entries with one name the last counts, since each would have replaced the one before. Entries of one archive with
//! one inode are one file, which has the contents of the last of them that has any.
//!
//! The archives come from outside, so every number in them is checked; errors have their position. Entries before an
//! error are there.
//!
//! [`unpack`] makes nodes of the entries, whose contents stay where they are.

#![allow(unsafe_code, reason = "the initrd as bytes, mapped for the whole boot")]

use granule_abi::file::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use granule_arch::addr::PhysRange;
use thiserror::Error;

use super::tree::{self, Moment, NameIn, NodeKind, NodeRef, Removal, Tree};
use crate::linux::errno::Errno;
use crate::mm::layout;
use crate::sched::relax;

/// Bytes of a header.
const HEADER: usize = 110;
/// The offsets of the fields that are used, each eight digits.
const INODE: usize = 6;
const MODE: usize = 14;
const USER: usize = 22;
const GROUP: usize = 30;
const LINKS: usize = 38;
const MODIFIED: usize = 46;
const SIZE: usize = 54;
const MAJOR: usize = 62;
const MINOR: usize = 70;
const NAME_SIZE: usize = 94;
const CHECKSUM: usize = 102;
/// Bytes that are looked at or added up between two scheduling points.
const CHUNK: usize = 1 << 14;
/// Mode bits that allow execution: by owner, group or others. One is enough, since every program is root's.
const EXECUTABLE: u32 = 0o111;
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
    /// Contents whose bytes have another sum than the header.
    #[error("the contents of the entry at byte {0} of the initrd are not those that its checksum is of")]
    Checksum(usize),
}

/// The fields of a file's header beside its name and contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// The kind of file, and its permissions.
    pub mode: u32,
    /// The owner.
    pub user: u32,
    /// The owner's group.
    pub group: u32,
    /// When it was changed, in seconds since 1970.
    pub modified: u32,
}

impl Attributes {
    const fn of_node(self) -> tree::Attributes {
        let moment = Moment { seconds: self.modified as i64, nanoseconds: 0 };
        let attributes = tree::Attributes::new(self.mode, moment);
        tree::Attributes { user: self.user, group: self.group, ..attributes }
    }
}

/// The regular files of an archive, in its order. An error is the last item.
pub fn files(archive: &[u8]) -> Files<'_> {
    Files { archive, position: Some(0), first: 0 }
}

/// The executable files of an archive as they are there afterwards, in its order. An error is the last item.
pub fn programs(archive: &[u8]) -> impl Iterator<Item = Result<File<'_>, ArchiveError>> {
    let mut entries = files(archive);
    core::iter::from_fn(move || {
        loop {
            let entry = match entries.next_entry()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let is_same = |other: Entry<'_>| names(other.file.name).eq(names(entry.file.name));
            let mut rest = entries.clone();
            let mut is_last = true;
            while let Some(Ok(other)) = rest.next_entry() {
                relax();
                is_last &= !is_same(other);
            }
            if entry.attributes.mode & S_IFMT != S_IFREG || !is_last {
                continue;
            }
            let (file, attributes, _) = linked(archive, entry);
            if attributes.mode & EXECUTABLE != 0 {
                return Some(Ok(file));
            }
        }
    })
}

/// An entry of an archive.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    /// Where its header is, and the first one of its archive.
    at: usize,
    first: usize,
    file: File<'a>,
    attributes: Attributes,
    /// Device and inode, of a file that may have other names.
    inode: Option<[u32; 3]>,
    /// The sum of its contents' bytes, where the header has it.
    checksum: Option<u32>,
}

/// See [`files`].
#[derive(Clone, Debug)]
pub struct Files<'a> {
    archive: &'a [u8],
    /// Where the next header is; `None` at the end.
    position: Option<usize>,
    /// Where the first one of the archive is: zeros may be in front of that one alone.
    first: usize,
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_entry()? {
                Ok(entry) if entry.attributes.mode & S_IFMT == S_IFREG => return Some(Ok(entry.file)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl<'a> Files<'a> {
    /// The next entry of any kind.
    fn next_entry(&mut self) -> Option<Result<Entry<'a>, ArchiveError>> {
        loop {
            let position = self.position.take()?;
            // Nothing but zeros is the end, after an entry too.
            let zeros = zeros(self.archive.get(position..)?)?;
            let at = if position == self.first { position + zeros } else { position };
            if position == self.first {
                self.first = at;
            }
            let (entry, next) = match entry(self.archive, at, self.first) {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            self.position = Some(next);
            if entry.file.name != END {
                return Some(Ok(entry));
            }
            self.first = next;
        }
    }
}

/// How many zeros are in front of the first other byte; `None` where there is none.
fn zeros(bytes: &[u8]) -> Option<usize> {
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        if let Some(at) = chunk.iter().position(|&byte| byte != 0) {
            return Some(index * CHUNK + at);
        }
        relax();
    }
    None
}

/// The entry whose header is at `at`, in the archive from `first` on; and where the next header is.
fn entry(archive: &[u8], at: usize, first: usize) -> Result<(Entry<'_>, usize), ArchiveError> {
    let header = archive.get(at..).and_then(|rest| rest.get(..HEADER)).ok_or(ArchiveError::NoHeader(at))?;
    let has_sums = header.starts_with(b"070702");
    if !at.is_multiple_of(4) || !header.starts_with(b"070701") && !has_sums {
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
    let attributes = Attributes { mode, user, group, modified };
    let inode = if field(LINKS)? > 1 { Some([field(MAJOR)?, field(MINOR)?, field(INODE)?]) } else { None };
    let checksum = if has_sums { Some(field(CHECKSUM)?) } else { None };
    let entry = Entry { at, first, file: File { name, contents }, attributes, inode, checksum };
    Ok((entry, (start + size).next_multiple_of(4)))
}

/// The file of an entry: with the contents that another of its names may carry, and with what the last of them has
/// beside; and the first of its names, if that is another's.
fn linked<'a>(archive: &'a [u8], entry: Entry<'a>) -> (File<'a>, Attributes, &'a str) {
    let (mut file, mut attributes, mut first) = (entry.file, entry.attributes, None);
    if entry.inode.is_none() || entry.attributes.mode & S_IFMT != S_IFREG {
        return (file, attributes, "");
    }
    let is_same = |other: &Entry<'_>| {
        (other.first, other.inode) == (entry.first, entry.inode) && other.attributes.mode & S_IFMT == S_IFREG
    };
    let mut names = files(archive);
    while let Some(Ok(other)) = names.next_entry() {
        relax();
        if is_same(&other) {
            first.get_or_insert(if other.at == entry.at { "" } else { other.file.name });
            attributes = other.attributes;
            if !other.file.contents.is_empty() {
                file.contents = other.file.contents;
            }
        }
    }
    (file, attributes, first.unwrap_or_default())
}

/// Compares contents with their checksum, where there is one.
fn check_sum(entry: &Entry<'_>) -> Result<(), ArchiveError> {
    let Some(expected) = entry.checksum else { return Ok(()) };
    let sum = entry.file.contents.chunks(CHUNK).fold(0_u32, |sum, chunk| {
        relax();
        chunk.iter().fold(sum, |sum, &byte| sum.wrapping_add(byte.into()))
    });
    if sum == expected { Ok(()) } else { Err(ArchiveError::Checksum(entry.at)) }
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

/// The names that lead to an entry.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

/// Gives a tree what the archives have; returns their error, if they have one.
///
/// An entry below something that is no directory, or that would replace a directory that is not empty, is left out. A
/// directory that has no entry of its own, or a later one, is made for what is in it.
///
/// # Errors
/// `ENOMEM`, `ENOSPC`.
pub fn unpack<C: From<&'static [u8]>>(
    tree: &Tree<C>,
    archive: &'static [u8],
) -> Result<Result<(), ArchiveError>, Errno> {
    let mut entries = files(archive);
    while let Some(entry) = entries.next_entry() {
        relax();
        let entry = match entry.and_then(|entry| check_sum(&entry).map(|()| entry)) {
            Ok(entry) => entry,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error @ (Errno::ENOMEM | Errno::ENOSPC)) = unpack_entry(tree, archive, entry) {
            return Err(error);
        }
    }
    Ok(Ok(()))
}

fn unpack_entry<C: From<&'static [u8]>>(
    tree: &Tree<C>,
    archive: &'static [u8],
    entry: Entry<'static>,
) -> Result<(), Errno> {
    let directory = |mode| Attributes { mode: S_IFDIR | mode, ..entry.attributes };
    let mut here = tree.root().clone();
    let mut way = names(entry.file.name).peekable();
    let Some(mut name) = way.next() else {
        here.change(|attributes| *attributes = entry.attributes.of_node());
        return Ok(());
    };
    let goes_on = |here: &NodeRef<C>, name: &str| here.is_directory() && name != "..";
    for next in way {
        if !goes_on(&here, name) {
            return Err(Errno::ENOTDIR);
        }
        here = match tree.find(&here, name.as_bytes()) {
            Some(found) => found,
            None => put(tree, &here, name.as_bytes(), NodeKind::Directory, directory(0o755).of_node())?,
        };
        name = next;
    }
    if !goes_on(&here, name) {
        return Err(Errno::ENOTDIR);
    }
    let (file, attributes, first) = linked(archive, entry);
    let kind = match entry.attributes.mode & S_IFMT {
        S_IFREG => {
            let other = names(first).try_fold(tree.root().clone(), |here, name| tree.find(&here, name.as_bytes()));
            if let Some(node) = other.filter(|node| !first.is_empty() && matches!(node.kind, NodeKind::File(_))) {
                return replace(tree, &here, name.as_bytes(), &node);
            }
            NodeKind::File(C::from(file.contents))
        }
        S_IFDIR => NodeKind::Directory,
        S_IFLNK => {
            let node = tree.symbolic_link(file.contents, attributes.of_node())?;
            return replace(tree, &here, name.as_bytes(), &node);
        }
        _ => NodeKind::Other,
    };
    put(tree, &here, name.as_bytes(), kind, attributes.of_node()).map(drop)
}

/// Gives a new node a name, which another loses; a directory stays where one is to be.
///
/// # Errors
/// `ENOMEM`, `ENOSPC`, `ENAMETOOLONG`; `ENOTEMPTY`, `ENOENT`: there is a directory that is not empty, or none.
pub fn put<C>(
    tree: &Tree<C>,
    directory: &NodeRef<C>,
    name: &[u8],
    kind: NodeKind<C>,
    attributes: tree::Attributes,
) -> Result<NodeRef<C>, Errno> {
    let found = tree.find(directory, name);
    if let Some(found) = found.filter(|found| found.is_directory() && matches!(kind, NodeKind::Directory)) {
        found.change(|before| *before = attributes);
        return Ok(found);
    }
    let node = tree.node(kind, attributes)?;
    replace(tree, directory, name, &node)?;
    Ok(node)
}

/// Gives a node a name, which another loses.
fn replace<C>(tree: &Tree<C>, directory: &NodeRef<C>, name: &[u8], node: &NodeRef<C>) -> Result<(), Errno> {
    if let Some(found) = tree.find(directory, name) {
        let removal = if found.is_directory() { Removal::Directory } else { Removal::File };
        tree.unlink(NameIn { directory, name, slash: false }, removal)?;
    }
    tree.link(directory, name, node)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::string::String;
    use std::vec::Vec;

    use super::super::proc::{ProcEntry, ProcFile, ProcId};
    use super::super::tree::{Moment, Pools};
    use super::super::walk::{Follow, Found, Place, walk};
    use super::{ArchiveError, END, Errno, NameIn, NodeKind, Removal, Tree, bare, files, programs, put, tree, unpack};
    use crate::mm::frame::tests::leaked;
    use crate::mm::frame_limit::FrameLimit;
    use granule_abi::file::{S_IFDIR, S_IFMT, S_IFREG};

    pub(crate) type Bytes = &'static [u8];

    static LIMIT: FrameLimit = FrameLimit::new(1000);

    pub(crate) fn tree() -> Tree<Bytes> {
        let pools = Box::leak(Box::new(Pools::new(leaked(2))));
        Tree::new(pools, 1000, &LIMIT, || Moment::at(5)).unwrap()
    }

    /// The tree of an archive, and its error.
    fn unpacked(archive: &[u8]) -> (Tree<Bytes>, Result<(), ArchiveError>) {
        let tree = tree();
        let error = unpack(&tree, Box::leak(Box::<[u8]>::from(archive))).unwrap();
        (tree, error)
    }

    fn find(tree: &Tree<Bytes>, path: &[u8]) -> Result<Place<Bytes>, Errno> {
        walk(tree, Place::Node(tree.root().clone()), path, Follow::Always, |id| id < 1000).and_then(Found::existing)
    }

    fn contents(archive: &[u8], path: &str) -> Result<Bytes, Errno> {
        let (tree, _) = unpacked(archive);
        match find(&tree, path.as_bytes())? {
            Place::Node(node) => match &node.kind {
                NodeKind::File(contents) => Ok(contents),
                _ => Err(Errno::EACCES),
            },
            Place::Proc(_) => Err(Errno::EACCES),
        }
    }

    pub(crate) fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
        add_with(archive, name, mode, contents, (1, 1, None));
    }

    /// As [`add`], with an inode, the number of its names, and a checksum.
    fn add_with(
        archive: &mut Vec<u8>,
        name: &str,
        mode: u32,
        contents: &[u8],
        (inode, links, checksum): (u32, u32, Option<u32>),
    ) {
        let size = contents.len() as u32;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, checksum.unwrap_or(0)];
        archive.extend_from_slice(if checksum.is_some() { b"070702" } else { b"070701" });
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
        for path in ["bin/one", "/bin/one", "./bin/one", "..//.//bin/./one", "bin/../bin/one"] {
            assert_eq!(contents(&archive, path), Ok(b"first".as_slice()), "{path}");
        }
        assert_eq!(contents(&archive, "bin/../two/../bin/one"), Err(Errno::ENOTDIR));
        assert_eq!(contents(&archive, "link"), Ok(b"another of the same name".as_slice()));
        assert_eq!(bare("//././x/"), "x/");
    }

    #[test]
    fn paths_are_refused_as_on_linux() {
        let archive = sample();
        let find = |path: &[u8]| contents(&archive, str::from_utf8(path).unwrap());
        for path in ["bin", "/", ".", "..", "bin/", "bin/.", "bin/..", "/..//"] {
            assert_eq!(find(path.as_bytes()), Err(Errno::EACCES), "{path}");
        }
        for path in ["", "TRAILER!!!", "tw", "bin/on", "bi/one", "nosuch/../bin/one", "\u{ff}", "bin/one2"] {
            assert_eq!(find(path.as_bytes()), Err(Errno::ENOENT), "{path}");
        }
        for path in ["two/", "bin/one/", "bin/one/.", "bin/one/..", "bin/one/x", "link/x", "link/"] {
            assert_eq!(find(path.as_bytes()), Err(Errno::ENOTDIR), "{path}");
        }
        assert_eq!(find(&[b'x'; 255]), Err(Errno::ENOENT));
        assert_eq!(find(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(find(&[b"two/".as_slice(), &[b'x'; 256]].concat()), Err(Errno::ENOTDIR));
        assert_eq!(find(&[b"x/".as_slice(), &[b'x'; 256]].concat()), Err(Errno::ENOENT));
        assert_eq!(contents(&[], "two"), Err(Errno::ENOENT), "no initrd at all");
        assert_eq!(contents(&[], "/"), Err(Errno::EACCES));
    }

    #[test]
    fn links_are_followed_up_to_forty_times() {
        let mut archive = Vec::new();
        add(&mut archive, "d/file", S_IFREG | 0o644, b"contents");
        add(&mut archive, "up", 0o120_777, b"d/../d//");
        add(&mut archive, "all", 0o120_777, b"up/file");
        add(&mut archive, "root", 0o120_777, b"///");
        add(&mut archive, "loop", 0o120_777, b"./loop");
        add(&mut archive, "0", 0o120_777, b"d");
        for number in 1..42 {
            add(&mut archive, &number.to_string(), 0o120_777, (number - 1).to_string().as_bytes());
        }
        for path in ["all", "up/file", "d/../all", "root/root/up/../root/all", "39/file"] {
            assert_eq!(contents(&archive, path), Ok(b"contents".as_slice()), "{path}");
        }
        for path in ["loop", "loop/", "loop/x", "40/file", "39/../39/file"] {
            assert_eq!(contents(&archive, path), Err(Errno::ELOOP), "{path}");
        }
        assert_eq!(contents(&archive, "all/"), Err(Errno::ENOTDIR));
        assert_eq!(contents(&archive, "up/nothing"), Err(Errno::ENOENT));
    }

    #[test]
    fn directories_are_made_where_archives_have_none() {
        let mut archive = Vec::new();
        add(&mut archive, "one/two/file", S_IFREG | 0o644, b"contents");
        add(&mut archive, "three", S_IFDIR | 0o700, b"");
        add(&mut archive, "one/two/file/below", S_IFREG | 0o644, b"");
        add(&mut archive, "one", S_IFREG | 0o644, b"in place of a directory");
        add(&mut archive, END, 0, b"");
        let (tree, error) = unpacked(&archive);
        assert_eq!(error, Ok(()));
        let number = |path: &str| match find(&tree, path.as_bytes()) {
            Ok(Place::Node(node)) => (node.number, node.attributes().0.mode),
            _ => panic!("{path}"),
        };
        let default = S_IFDIR | 0o755;
        for (path, same, mode) in [
            ("/", "/", default),
            ("one/..", "/", default),
            ("/one/", "one", default),
            ("one/two/../../three/../one/./two", "one/two", default),
            ("one/two/..", "one", default),
            ("three/.", "three", S_IFDIR | 0o700),
        ] {
            assert_eq!(number(path), (number(same).0, mode), "{path}");
        }
        assert_eq!(number("one/two/file").1 & S_IFMT, S_IFREG);
        let attributes = tree::Attributes::new(S_IFDIR | 0o555, Moment::default());
        put(&tree, tree.root(), b"proc", NodeKind::Proc, attributes).unwrap();
        let pagemap = ProcEntry::File(ProcId::Own, ProcFile::Pagemap);
        let found = find(&tree, b"/proc//./self/../self/pagemap");
        assert!(matches!(found, Ok(Place::Proc(entry)) if entry == pagemap));
        for (path, is_there) in
            [("999", true), ("999/..", true), ("1000", false), ("1000/..", false), ("1000/maps", false)]
        {
            assert_eq!(find(&tree, format!("proc/{path}").as_bytes()).is_ok(), is_there, "{path}");
        }
        assert_eq!(find(&tree, b"proc/self/pagemap/..").err(), Some(Errno::ENOTDIR));
        assert_eq!(find(&tree, b"proc/self/nothing").err(), Some(Errno::ENOENT));
        assert!(matches!(find(&tree, b"proc/.."), Ok(Place::Node(node)) if node.is(tree.root())));
    }

    const PROGRAM: u32 = S_IFREG | 0o755;

    #[test]
    fn archives_follow_one_another_behind_zeros() {
        let mut archive = vec![0; 8];
        add(&mut archive, "first", PROGRAM, b"1");
        add(&mut archive, "both", PROGRAM, b"old");
        add(&mut archive, END, 0, b"");
        archive.resize(archive.len().next_multiple_of(512), 0);
        add(&mut archive, "both", PROGRAM, b"new");
        add(&mut archive, END, 0, b"");
        // One directly after, and without an end.
        add(&mut archive, "third", PROGRAM, b"3");
        for (path, expected) in [("first", b"1".as_slice()), ("both", b"new"), ("third", b"3")] {
            assert_eq!(contents(&archive, path), Ok(expected), "{path}");
        }
        let names: Vec<_> = programs(&archive).map(|file| file.unwrap().name).collect();
        assert_eq!(names, ["first", "both", "third"]);
        // An archive after zeros begins at a multiple of four.
        let mut shifted = archive.clone();
        shifted.extend([0; 6]);
        add(&mut shifted, "fourth", PROGRAM, b"4");
        assert_eq!(contents(&shifted, "fourth"), Err(Errno::ENOENT));
        assert_eq!(contents(&shifted, "third"), Ok(b"3".as_slice()), "before the error");
    }

    #[test]
    fn of_equal_names_the_last_counts_whatever_it_is() {
        let mut archive = Vec::new();
        add(&mut archive, "file", PROGRAM, b"old, and longer");
        add(&mut archive, "link", 0o120_777, b"file");
        add(&mut archive, "a//b/./c", PROGRAM, b"c");
        add(&mut archive, "./file", PROGRAM, b"new");
        add(&mut archive, "/link", PROGRAM, b"no link");
        add(&mut archive, END, 0, b"");
        for (path, expected) in [("file", b"new".as_slice()), ("link", b"no link"), ("a/b/c", b"c")] {
            assert_eq!(contents(&archive, path), Ok(expected), "{path}");
        }
        assert_eq!(programs(&archive).count(), 3);
    }

    #[test]
    fn names_of_one_inode_are_one_file() {
        let add_name = |archive: &mut Vec<u8>, name, inode, contents: &[u8]| {
            add_with(archive, name, PROGRAM, contents, (inode, 2, None));
        };
        let mut archive = Vec::new();
        add_name(&mut archive, "one", 7, b"");
        add_name(&mut archive, "two", 7, b"contents");
        add_name(&mut archive, "first", 8, b"contents of its own");
        add_name(&mut archive, "second", 8, b"");
        add(&mut archive, END, 0, b"");
        // Another archive's inodes are others.
        add_name(&mut archive, "other", 7, b"");
        add(&mut archive, END, 0, b"");
        let (tree, _) = unpacked(&archive);
        let found = |path: &str| match find(&tree, path.as_bytes()) {
            Ok(Place::Node(node)) => {
                let NodeKind::File(contents) = &node.kind else { panic!("{path}") };
                (*contents, node.number, node.attributes().1)
            }
            _ => panic!("{path}"),
        };
        assert_eq!((found("one"), found("one").0, found("one").2), (found("two"), b"contents".as_slice(), 2));
        assert_eq!((found("first"), found("first").0), (found("second"), b"contents of its own".as_slice()));
        assert_eq!(found("other").0, b"");
    }

    #[test]
    fn contents_have_the_sum_that_their_header_has() {
        let mut archive = Vec::new();
        add_with(&mut archive, "good", PROGRAM, b"\x01\x02\xff", (1, 1, Some(0x102)));
        let bad = archive.len();
        add_with(&mut archive, "bad", PROGRAM, b"\x01\x02\xff", (1, 1, Some(0x103)));
        add(&mut archive, END, 0, b"");
        assert_eq!(contents(&archive, "good"), Ok(b"\x01\x02\xff".as_slice()));
        assert_eq!(contents(&archive, "bad"), Err(Errno::ENOENT));
        assert_eq!(unpacked(&archive).1, Err(ArchiveError::Checksum(bad)));
    }

    #[test]
    fn nothing_is_below_a_file_or_above_the_root() {
        let mut archive = Vec::new();
        for name in ["f", "f/x/y", "f/x", "d/../up", "..", "d/e"] {
            add(&mut archive, name, 0o100_644, b"one");
        }
        let long = "t".repeat(4096);
        add(&mut archive, "long", 0o120_777, long.as_bytes());
        add(&mut archive, "link", 0o120_777, &long.as_bytes()[..4095]);
        let (tree, error) = unpacked(&archive);
        assert_eq!(error, Ok(()));
        let names = core::iter::successors(tree.next(tree.root(), 0), |found| tree.next(tree.root(), found.place));
        let names: Vec<_> = names.map(|found| String::from_utf8(found.name.to_vec()).unwrap()).collect();
        assert_eq!(names, ["f", "d", "link"]);
        assert_eq!(contents(&archive, "d/e"), Ok(b"one".as_slice()));
        let name = NameIn { directory: tree.root(), name: b"f", slash: false };
        assert_eq!(tree.unlink(name, Removal::File), Ok(()));
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
        assert_eq!(broken(&|archive| archive[second + 5] = b'3'), ArchiveError::NoHeader(second));
        assert_eq!(broken(&|archive| archive[second + 54] = b'+'), ArchiveError::NotANumber(second));
        assert_eq!(broken(&|archive| archive[second + 54] = b'f'), ArchiveError::CutOff(second));
        assert_eq!(broken(&|archive| archive[second + 94] = b'f'), ArchiveError::CutOff(second));
        assert_eq!(broken(&|archive| archive[second + 110] = 0xff), ArchiveError::BadName(second));
        assert_eq!(broken(&|archive| archive[second + 101] = b'0'), ArchiveError::BadName(second));
        let end = good.len() - 512;
        assert_eq!(broken(&|archive| archive.truncate(end)).to_string().split_whitespace().next(), Some("the"));
        assert_eq!(unpacked(b"ustar").1, Err(ArchiveError::NoHeader(0)));
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
