//! The files of `/proc`: names, and what each of them is.
//!
//! They are the kernel's own, in no archive. A file of a process has a row in [`FILES`]; what it holds is a kind of open
//! file ([`super::open::Kind`]), which the calls for files read.
//!
//! - `/proc/self/pagemap`, `/proc/PID/pagemap`: a word for each page of a space
//! - `mem`: the bytes of a space, which is that of the process when it is opened
//! - `clear_refs`: a number that is written makes pages of the process [old](Aged), of the space that it has then
//! - the others: [`records`](super::records) of text, for each area of a space or of the whole process

#[cfg(target_os = "none")]
pub use target::{Pagemap, ProcContents, ProcSubject};

use granule_abi::file::{S_IFDIR, S_IFREG};

use super::walk::IsProcess;
use crate::linux::errno::Errno;
use crate::mm::space::Aged;

/// A name in `/proc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcEntry {
    /// `/proc`.
    Root,
    /// A process's directory.
    Process(ProcId),
    /// A file in it.
    File(ProcId, ProcFile),
}

/// Which process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcId {
    /// The caller's.
    Own,
    /// The one with this number, or with a thread with it.
    Number(u32),
}

/// A file of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcFile {
    /// A word for each page.
    Pagemap,
    /// A line for each area.
    Maps,
    /// The line of each area, the pages of it that are there, and its properties.
    Smaps,
    /// The pages of all areas together.
    SmapsRollup,
    /// The process in lines: name, state, numbers, memory, signals, CPUs.
    Status,
    /// Its memory, in pages.
    Statm,
    /// Most of that in one line.
    Stat,
    /// Its limits.
    Limits,
    /// The bytes of its memory.
    Mem,
    /// Takes orders to make pages old.
    ClearRefs,
}

/// The files of each process.
const FILES: [(&[u8], ProcFile); 10] = [
    (b"pagemap", ProcFile::Pagemap),
    (b"maps", ProcFile::Maps),
    (b"smaps", ProcFile::Smaps),
    (b"smaps_rollup", ProcFile::SmapsRollup),
    (b"status", ProcFile::Status),
    (b"statm", ProcFile::Statm),
    (b"stat", ProcFile::Stat),
    (b"limits", ProcFile::Limits),
    (b"mem", ProcFile::Mem),
    (b"clear_refs", ProcFile::ClearRefs),
];

/// Bytes of an order to `clear_refs`: of a longer one these are read.
pub const ORDER: usize = 12;

impl ProcEntry {
    /// The entry with a name in this one.
    pub fn find(self, name: &[u8]) -> Option<Self> {
        match self {
            Self::Root if name == b"self" => Some(Self::Process(ProcId::Own)),
            Self::Root => Some(Self::Process(ProcId::Number(number(name)?))),
            Self::Process(process) => {
                let (_, file) = FILES.iter().find(|(known, _)| *known == name)?;
                Some(Self::File(process, *file))
            }
            Self::File(..) => None,
        }
    }

    /// Whether there is what it is of.
    pub fn is_there(self, is_process: IsProcess) -> bool {
        if let Self::Process(ProcId::Number(id)) = self { is_process(id) } else { true }
    }

    /// The directory above it; `None`: that is none of `/proc`.
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::Root => None,
            Self::Process(_) => Some(Self::Root),
            Self::File(process, _) => Some(Self::Process(process)),
        }
    }

    /// The names in a directory, but those of processes, and the bits of their kind.
    pub fn name(self, index: usize) -> Option<(&'static [u8], u32)> {
        match self {
            Self::Root => (index == 0).then_some((b"self", S_IFDIR)),
            Self::Process(_) => FILES.get(index).map(|(name, _)| (*name, S_IFREG)),
            Self::File(..) => None,
        }
    }
}

/// A number as Linux has it in names: without zeros in front.
fn number(name: &[u8]) -> Option<u32> {
    let is_number = name.iter().all(u8::is_ascii_digit) && !name.starts_with(b"0");
    str::from_utf8(name).ok()?.parse().ok().filter(|_| is_number)
}

/// The pages that become old by an order to `clear_refs` (Linux: `clear_refs_write`). None do by 4, which is for CPUs with
/// soft-dirty pages, and 5, as the most pages that were there are not counted.
///
/// # Errors
/// `EINVAL`: no number, or of no order. `ERANGE`: of more than 32 bits.
pub fn order(text: &[u8]) -> Result<Option<Aged>, Errno> {
    let is_space = |byte: &u8| matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0);
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    let digits = str::from_utf8(text.get(start..end).unwrap_or_default()).map_err(|_| Errno::EINVAL)?;
    let number: i64 = digits.parse().map_err(|_| Errno::EINVAL)?;
    match i32::try_from(number).map_err(|_| Errno::ERANGE)? {
        1 => Ok(Some(Aged::All)),
        2 => Ok(Some(Aged::Anonymous)),
        3 => Ok(Some(Aged::OfObjects)),
        4 | 5 => Ok(None),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(target_os = "none")]
mod target {
    use granule_abi::memory::{PM_FILE, PM_GUARD_REGION, PM_MMAP_EXCLUSIVE, PM_PRESENT, PM_SWAP, PM_UFFD_WP};
    use granule_arch::addr::{PAGE, VirtAddr};

    use super::ProcFile;
    use crate::linux::errno::Errno;
    use crate::linux::file::open;
    use crate::linux::file::records::{Record, Records};
    use crate::mm::space::{SpaceHandle, pagemap};
    use crate::sched::relax;
    use crate::uaccess;

    const _: () = assert!(
        pagemap::PRESENT == PM_PRESENT
            && pagemap::SWAPPED == PM_SWAP
            && pagemap::OF_FILE == PM_FILE
            && pagemap::GUARD == PM_GUARD_REGION
            && pagemap::UFFD_WP == PM_UFFD_WP
            && pagemap::EXCLUSIVE == PM_MMAP_EXCLUSIVE
    );

    /// Bytes of a word.
    const WORD: u64 = size_of::<u64>() as u64;
    /// Words that are stored at once.
    const AT_ONCE: usize = 256;

    /// The process, or one of its threads, whose file is open.
    pub struct ProcSubject {
        /// Its number.
        pub id: u32,
        /// The process's serial number, which no other has.
        pub serial: u64,
        /// The space that the process had; of one that has ended there is none.
        pub space: Option<SpaceHandle>,
    }

    impl ProcFile {
        /// The contents of this file of a process.
        pub fn of(self, of: ProcSubject) -> ProcContents {
            match self {
                Self::Pagemap => ProcContents::Pagemap(Pagemap(of.space)),
                Self::Mem => ProcContents::Memory(of.space),
                Self::ClearRefs => ProcContents::ClearRefs(of),
                _ => ProcContents::Records(self, of, Records::default()),
            }
        }
    }

    /// The contents of an open file of a process.
    pub enum ProcContents {
        /// A word for each page.
        Pagemap(Pagemap),
        /// The bytes of a space, which are not copied here.
        Memory(Option<SpaceHandle>),
        /// Of this process pages become old, by what is written.
        ClearRefs(ProcSubject),
        /// Text of the process.
        Records(ProcFile, ProcSubject, Records),
    }

    impl ProcContents {
        /// Has `store` store what there is from `position` on, up to `bytes` bytes, until it stores less than it is
        /// given; returns how many bytes there were. `following` makes the first record of a file from an address on, and
        /// returns the address after it; `None` after the last.
        ///
        /// # Errors
        /// `EINVAL` (not whole words), `EFAULT`, `ENOMEM`, those of `following`.
        pub fn read(
            &self,
            position: u64,
            bytes: u64,
            following: &impl Fn(&ProcSubject, ProcFile, VirtAddr, &mut Record) -> Result<Option<VirtAddr>, Errno>,
            store: &mut dyn FnMut(&[u8]) -> usize,
        ) -> Result<u64, Errno> {
            match self {
                Self::Pagemap(pages) => pages.read(position, bytes, store),
                Self::Records(file, of, records) => {
                    let following = &mut |from, record: &mut Record| following(of, *file, from, record);
                    records.read(position, bytes, following, store)
                }
                Self::Memory(_) | Self::ClearRefs(_) => Err(Errno::EINVAL),
            }
        }

        /// Checks that the `bytes` bytes from `position` on have positions; those of memory have 64 bits.
        ///
        /// # Errors
        /// `EINVAL`; `EOVERFLOW`, of memory.
        pub fn check_end(&self, position: u64, bytes: u64) -> Result<(), Errno> {
            match self {
                // Linux looks at those that are negative alone (`rw_verify_area`).
                Self::Memory(_) if position <= i64::MAX as u64 || bytes < position.wrapping_neg() => Ok(()),
                Self::Memory(_) => Err(Errno::EOVERFLOW),
                _ => open::check_end(position, bytes),
            }
        }

        /// Bytes of memory that go with it.
        pub const fn footprint(&self) -> usize {
            if matches!(self, Self::Records(..)) { Records::BYTES } else { 0 }
        }

        /// Whether it is of memory alone, and the process had none: then only its place can be opened (`ESRCH`).
        pub const fn is_of_nothing(&self) -> bool {
            match self {
                Self::Pagemap(Pagemap(space)) | Self::Memory(space) => space.is_none(),
                Self::ClearRefs(_) => false,
                Self::Records(file, of, _) => matches!(file, ProcFile::SmapsRollup) && of.space.is_none(),
            }
        }

        /// The permissions that Linux shows.
        pub const fn mode(&self) -> u32 {
            match self {
                Self::Pagemap(_) => 0o400,
                Self::Memory(_) => 0o600,
                Self::ClearRefs(_) => 0o200,
                Self::Records(..) => 0o444,
            }
        }
    }

    /// A word for each page of a space, as [`pagemap`](crate::mm::space::Space::pagemap) has it. The space may end
    /// concurrently: then nothing is left to read.
    pub struct Pagemap(Option<SpaceHandle>);

    impl Pagemap {
        /// The space, if the process had one.
        pub const fn space(&self) -> Option<&SpaceHandle> {
            self.0.as_ref()
        }

        /// As [`ProcContents::read`]. `EFAULT` also after words that were stored, as on Linux.
        #[inline(never)]
        fn read(&self, position: u64, bytes: u64, store: &mut dyn FnMut(&[u8]) -> usize) -> Result<u64, Errno> {
            let Some(space) = self.0.as_ref().and_then(SpaceHandle::upgrade) else { return Ok(0) };
            if !position.is_multiple_of(WORD) || !bytes.is_multiple_of(WORD) {
                return Err(Errno::EINVAL);
            }
            let first = (position / WORD).checked_mul(PAGE).map_or(uaccess::END, VirtAddr).untagged();
            let pages = uaccess::END.0.saturating_sub(first.0) / PAGE;
            let words = pages.min(bytes / WORD);
            let (mut shown, mut done) = ([0; AT_ONCE], 0);
            while done < words {
                let count = (words - done).min(AT_ONCE as u64) as usize;
                let shown = shown.get_mut(..count).unwrap_or_default();
                space.pagemap(first + done * PAGE, shown);
                let bytes = to_bytes(shown);
                if store(bytes) < bytes.len() {
                    return Err(Errno::EFAULT);
                }
                done += count as u64;
                relax();
            }
            Ok(done * WORD)
        }
    }

    /// Words as the bytes that they are in memory.
    #[allow(unsafe_code, reason = "words as bytes")]
    fn to_bytes(words: &[u64]) -> &[u8] {
        // SAFETY: the same memory, of which each byte is initialised.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Errno, ORDER, ProcEntry, ProcFile, ProcId, order};
    use crate::mm::space::Aged;

    #[test]
    fn an_order_is_a_number_among_spaces() {
        for text in ["1", "1\n", " 1", " 1 \n", "\n1", "+1", "01", "1\x002", "\t1\r\n", "\x0b1\x0c"] {
            assert_eq!(order(text.as_bytes()), Ok(Some(Aged::All)), "{text:?}");
        }
        assert_eq!(order(b"\xa02"), Ok(Some(Aged::Anonymous)));
        assert_eq!([order(b"3"), order(b"4"), order(b"5")], [Ok(Some(Aged::OfObjects)), Ok(None), Ok(None)]);
        for text in ["", " ", "\n", "\0", "0", "6", "-1", "--1", "+-1", "+", "1 2", "1x", "0x1", "x"] {
            assert_eq!(order(text.as_bytes()), Err(Errno::EINVAL), "{text:?}");
        }
        assert_eq!(order(b"\xff"), Err(Errno::EINVAL));
        for text in ["2147483648", "-2147483649", "4294967297", "999999999999"] {
            assert!(text.len() <= ORDER);
            assert_eq!(order(text.as_bytes()), Err(Errno::ERANGE), "{text:?}");
        }
    }

    #[test]
    fn names_are_of_processes_and_of_their_files() {
        let find = |path: &str| {
            let mut names = path.split('/');
            let found = (names.next() == Some("proc")).then_some(ProcEntry::Root);
            names.fold(found, |found, name| found?.find(name.as_bytes()))
        };
        assert_eq!(find("proc"), Some(ProcEntry::Root));
        assert_eq!(find("proc/self"), Some(ProcEntry::Process(ProcId::Own)));
        assert_eq!(find("proc/12"), Some(ProcEntry::Process(ProcId::Number(12))));
        assert_eq!(find("proc/self/pagemap"), Some(ProcEntry::File(ProcId::Own, ProcFile::Pagemap)));
        assert_eq!(find("proc/7/pagemap"), Some(ProcEntry::File(ProcId::Number(7), ProcFile::Pagemap)));
        assert_eq!(find("proc/7/maps"), Some(ProcEntry::File(ProcId::Number(7), ProcFile::Maps)));
        assert_eq!(find("proc/7/stat"), Some(ProcEntry::File(ProcId::Number(7), ProcFile::Stat)));
        assert_eq!(find("proc/self/smaps_rollup"), Some(ProcEntry::File(ProcId::Own, ProcFile::SmapsRollup)));
        for path in ["", "pro", "procs", "proc/", "proc/07", "proc/0", "proc/+1", "proc/1x", "proc/4294967296"] {
            assert_eq!(find(path), None, "{path}");
        }
        for path in ["proc/self/page", "proc/self/pagemap/x", "proc/self/self", "x/proc"] {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
