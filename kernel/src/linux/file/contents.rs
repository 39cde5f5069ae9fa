//! The contents of regular files: bytes of the initrd, pages, or one after the other.
//!
//! A file of the initrd is read from there. Its first mapping makes an [`Object`] of it, whose pages may be given back;
//! what opens it for writing makes all of them its own, and from then on it is as any other file. Files of the tree and
//! memory files (`memfd_create(2)`), which have no name, are the same but for their seals.

use granule_abi::file::{
    F_SEAL_EXEC, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, MFD_ALLOW_SEALING,
    MFD_CLOEXEC, MFD_EXEC, MFD_HUGETLB, MFD_NOEXEC_SEAL, O_LARGEFILE, O_RDWR, S_IFREG,
};
use spin::Once;

use super::files::{self, FileNode};
use super::open::{FileRef, Kind, OpenFile};
use super::tree::{self, Attributes, Moment, NodeKind};
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::counted::Counted;
use crate::mm::space::{LARGEST_OBJECT, Object, ObjectError, Seals, SizeChoice, WriteAt};
use crate::random::{self, Stream};
use crate::smp::this_cpu;

const _: () = assert!(
    Seals::SEAL == F_SEAL_SEAL
        && Seals::SHRINK == F_SEAL_SHRINK
        && Seals::GROW == F_SEAL_GROW
        && Seals::WRITE == F_SEAL_WRITE
        && Seals::FUTURE_WRITE == F_SEAL_FUTURE_WRITE
        && Seals::EXEC == F_SEAL_EXEC
);

/// The contents of a file.
pub struct FileContents {
    bytes: &'static [u8],
    object: Once<Counted<Object>>,
}

impl From<&'static [u8]> for FileContents {
    fn from(bytes: &'static [u8]) -> Self {
        Self { bytes, object: Once::new() }
    }
}

impl FileContents {
    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.object.get().map_or(self.bytes.len() as u64, |object| object.size())
    }

    /// Pages of memory that hold it.
    pub fn pages(&self) -> u64 {
        self.written()
            .map_or((self.bytes.len() as u64).div_ceil(granule_arch::addr::PAGE), |object| object.pages() as u64)
    }

    /// Its object, if it has one that nothing else uses.
    pub fn kept(&self) -> Option<&Object> {
        self.object.get().filter(|object| Counted::is_alone(object)).map(|object| &**object)
    }

    /// The pages, if the bytes are not those of the initrd.
    pub fn written(&self) -> Option<&Counted<Object>> {
        self.object.get().filter(|object| !object.can_be_had_again())
    }

    /// The bytes of the initrd, if it was not written.
    pub fn bytes(&self) -> Option<&'static [u8]> {
        if self.written().is_some() { None } else { Some(self.bytes) }
    }

    /// The pages, for a mapping.
    ///
    /// # Errors
    /// `ENOMEM`, `ENOSPC`.
    pub fn object(&self) -> Result<&Counted<Object>, Errno> {
        if let Some(object) = self.object.get() {
            return Ok(object);
        }
        let new = kernel().spaces.create_limited(this_cpu(), self.bytes, Seals(F_SEAL_SEAL), files::limit());
        let new = new.map_err(errno)?;
        // Where another thread was faster, its object stays.
        Ok(self.object.call_once(|| new))
    }

    /// The pages, for writing: none of them can be had again.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`; `EINTR`: the program ends.
    #[inline]
    pub fn to_write(&self) -> Result<&Counted<Object>, Errno> {
        if let Some(object) = self.written() { Ok(object) } else { self.keep_to_write() }
    }

    #[cold]
    #[inline(never)]
    fn keep_to_write(&self) -> Result<&Counted<Object>, Errno> {
        let object = self.object()?;
        object.keep_all(this_cpu()).map_err(errno)?;
        Ok(object)
    }
}

/// The source of a read from a position on.
pub enum Contents<'f> {
    /// So many zeros.
    Zeros(u64),
    /// So many bytes of random numbers. Their stream was begun before the call has a buffer on its stack.
    Random(Stream, u64),
    /// Bytes that nothing changes.
    Bytes(&'static [u8]),
    /// So many bytes of an object from a position on, as far as it has them.
    Object(&'f Object, u64, u64),
}

impl Contents<'_> {
    /// So many bytes of random numbers. For a thread that may sleep, without a lock.
    pub fn random(bytes: u64) -> Self {
        Self::Random(random::stream(this_cpu()), bytes)
    }

    /// How many bytes there are, at most.
    pub const fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(bytes) | Self::Random(_, bytes) | Self::Object(_, _, bytes) => *bytes,
        }
    }

    /// Whether more would be there for a longer read, whatever its length.
    pub const fn is_endless(&self) -> bool {
        matches!(self, Self::Zeros(_) | Self::Random(..))
    }

    /// Takes the first bytes, as many as `buffer` has or fewer; empty at the end. It need not hold them.
    pub fn next<'b>(&mut self, buffer: &'b mut [u8]) -> &'b [u8] {
        match self {
            Self::Bytes(bytes) => {
                let (first, rest) = bytes.split_at_checked(buffer.len().min(bytes.len())).unwrap_or_default();
                *bytes = rest;
                first
            }
            Self::Zeros(left) => {
                let piece = first(buffer, left);
                piece.fill(0);
                piece
            }
            Self::Random(stream, left) => {
                let piece = first(buffer, left);
                stream.fill(piece);
                piece
            }
            Self::Object(object, at, left) => {
                let piece = first(buffer, left);
                let read = object.read(*at, piece);
                *at += read as u64;
                if read < piece.len() {
                    *left = 0;
                }
                piece.get(..read).unwrap_or_default()
            }
        }
    }

    /// Copies the first bytes; returns how many.
    pub fn copy(&mut self, to: &mut [u8]) -> usize {
        let Self::Bytes(bytes) = *self else { return self.next(to).len() };
        let count = self.next(to).len();
        to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
        count
    }
}

/// The first bytes of a buffer, at most as many as are `left`, which are fewer then.
fn first<'b>(buffer: &'b mut [u8], left: &mut u64) -> &'b mut [u8] {
    let wanted = buffer.len().min(*left as usize);
    *left -= wanted as u64;
    buffer.get_mut(..wanted).unwrap_or_default()
}

/// A regular file, to be written.
pub struct Regular<'n> {
    node: &'n FileNode,
    contents: &'n FileContents,
}

/// The error of a call on a file.
pub const fn errno(error: ObjectError) -> Errno {
    match error {
        ObjectError::Sealed => Errno::EPERM,
        ObjectError::TooLarge => Errno::EFBIG,
        ObjectError::Busy => Errno::EBUSY,
        ObjectError::Interrupted => Errno::EINTR,
        ObjectError::NoRoom => Errno::ENOSPC,
        ObjectError::OutOfMemory => Errno::ENOMEM,
    }
}

impl<'n> Regular<'n> {
    /// The file that a node is, if it is one.
    pub const fn of(node: &'n FileNode) -> Option<Self> {
        if let NodeKind::File(contents) = &node.kind { Some(Self { node, contents }) } else { None }
    }

    /// Its contents.
    pub const fn contents(&self) -> &'n FileContents {
        self.contents
    }

    fn note_change(&self) {
        self.node.note_change(files::now());
    }

    /// Writes bytes, the first of `all`, and none of them at `limit` or after it; returns where, and how many.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`, `ENOSPC`, `ENOMEM`.
    pub fn write(&self, at: WriteAt, bytes: &[u8], all: u64, limit: u64) -> Result<(u64, usize), Errno> {
        let written = self.contents.to_write()?.write(this_cpu(), at, bytes, all, limit).map_err(errno)?;
        self.note_change();
        Ok(written)
    }

    /// `ftruncate`.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`, `ENOSPC`, `ENOMEM`.
    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        // Nothing is kept of what becomes empty.
        let object = if size == 0 { self.contents.object()? } else { self.contents.to_write()? };
        object.truncate(this_cpu(), size).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `fallocate` without a mode.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`, `ENOSPC`, `ENOMEM`, `EINTR`.
    pub fn allocate(&self, start: u64, end: u64, size: SizeChoice, is_killed: &dyn Fn() -> bool) -> Result<(), Errno> {
        self.contents.to_write()?.allocate(this_cpu(), start, end, size, is_killed).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE`.
    ///
    /// # Errors
    /// `EPERM`, `ENOMEM`.
    pub fn punch_hole(&self, start: u64, end: u64) -> Result<(), Errno> {
        let most = LARGEST_OBJECT;
        self.contents.to_write()?.punch_hole(this_cpu(), start.min(most), end.min(most)).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `F_ADD_SEALS`.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`, `EBUSY`.
    pub fn add_seals(&self, seals: u32) -> Result<(), Errno> {
        const ALL: u32 = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
        if seals & !ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let is_executable = || self.node.attributes().0.mode & 0o111 != 0;
        self.contents.object()?.add_seals(seals, is_executable).map_err(errno)
    }

    /// Has `change` change the mode, with whether a seal keeps whether it may be executed.
    pub fn with_mode<T>(&self, change: impl FnOnce(bool) -> T) -> T {
        match self.contents.object.get() {
            Some(object) => object.with_seals(|seals| change(seals.0 & F_SEAL_EXEC != 0)),
            None => change(false),
        }
    }

    /// `F_GET_SEALS`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn seals(&self) -> Result<Seals, Errno> {
        Ok(self.contents.object()?.seals())
    }
}

/// Makes a memory file, open for reading and writing. `flags` are [`checked`].
///
/// # Errors
/// `ENOMEM`.
pub fn create_memory_file(flags: u32) -> Result<FileRef, Errno> {
    /// The device of memory files.
    const DEVICE: u64 = 1;
    let is_executable = flags & MFD_NOEXEC_SEAL == 0;
    let seals = match flags & (MFD_NOEXEC_SEAL | MFD_ALLOW_SEALING) {
        0 => F_SEAL_SEAL,
        MFD_ALLOW_SEALING => 0,
        _ => F_SEAL_EXEC,
    };
    let object = kernel().spaces.create_object(this_cpu(), 0, Some(&[]), Seals(seals))?;
    let mode = S_IFREG | if is_executable { 0o777 } else { 0o666 };
    let number = object.identity() as u64;
    let contents = FileContents { bytes: &[], object: Once::initialized(object) };
    let attributes = Attributes::new(mode, Moment::at(uptime_nanoseconds()));
    let node = tree::node(files::memory_files(), (DEVICE, number), NodeKind::File(contents), attributes)?;
    Ok(OpenFile::new(Kind::Node(node), O_RDWR | O_LARGEFILE)?)
}

/// The flags of `memfd_create`.
///
/// # Errors
/// `EINVAL`. Of large pages there are none: `ENOSYS`, as on a Linux without them.
pub fn checked(flags: u32) -> Result<u32, Errno> {
    /// log2 of the size of large pages.
    const HUGE: u32 = 0x3f << 26;
    const ALL: u32 = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_NOEXEC_SEAL | MFD_EXEC;
    let known = if flags & MFD_HUGETLB != 0 { ALL | HUGE } else { ALL };
    if flags & !known != 0 || flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}
