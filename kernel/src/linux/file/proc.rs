//! The files of `/proc`: names, and what each of them is.
//!
//! They are the kernel's own, in no archive. A file of a process has a row in [`FILES`]; what it holds is a kind of open
//! file ([`super::open::Kind`]), which the calls for files read.
//!
//! - `/proc/self/pagemap`, `/proc/PID/pagemap`: a word for each page of a space
//! - `/proc/self/maps`, `/proc/PID/maps`: a line for each area of a space ([`records`](super::records))

#[cfg(target_os = "none")]
pub use target::{Pagemap, ProcContents};

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
}

/// The files of each process.
const FILES: [(&[u8], ProcFile); 2] = [(b"pagemap", ProcFile::Pagemap), (b"maps", ProcFile::Maps)];

impl ProcEntry {
    /// The entry at a path from the root on, without `.` and `..`.
    pub fn find(path: &[u8]) -> Option<Self> {
        let mut names = path.split(|&byte| byte == b'/');
        if names.next() != Some(b"proc") {
            return None;
        }
        let Some(process) = names.next() else { return Some(Self::Root) };
        let process = if process == b"self" { ProcId::Own } else { ProcId::Number(number(process)?) };
        let Some(name) = names.next() else { return Some(Self::Process(process)) };
        let (_, file) = FILES.iter().find(|(known, _)| *known == name)?;
        names.next().is_none().then_some(Self::File(process, *file))
    }
}

/// A number as Linux has it in names: without zeros in front.
fn number(name: &[u8]) -> Option<u32> {
    let is_number = name.iter().all(u8::is_ascii_digit) && !name.starts_with(b"0");
    str::from_utf8(name).ok()?.parse().ok().filter(|_| is_number)
}

#[cfg(target_os = "none")]
mod target {
    use granule_abi::memory::{PM_FILE, PM_GUARD_REGION, PM_MMAP_EXCLUSIVE, PM_PRESENT, PM_SWAP, PM_UFFD_WP};
    use granule_arch::addr::{PAGE, VirtAddr};

    use super::ProcFile;
    use crate::linux::errno::Errno;
    use crate::linux::file::records::Maps;
    use crate::mm::space::{SpaceHandle, SpaceRef, pagemap};
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

    impl ProcFile {
        /// Opens this file of the process with this space; of one that has ended there is none.
        ///
        /// # Errors
        /// `ESRCH`: it has ended, and the file is none of records.
        pub fn open(self, space: Option<&SpaceRef>) -> Result<ProcContents, Errno> {
            let space = space.map(SpaceHandle::new);
            Ok(match self {
                Self::Pagemap => ProcContents::Pagemap(Pagemap(space.ok_or(Errno::ESRCH)?)),
                Self::Maps => ProcContents::Maps(Maps::new(space)),
            })
        }
    }

    /// The contents of an open file of a process.
    pub enum ProcContents {
        /// A word for each page.
        Pagemap(Pagemap),
        /// A line for each area.
        Maps(Maps),
    }

    impl ProcContents {
        /// Has `store` store what there is from `position` on, up to `bytes` bytes, until it stores less than it is
        /// given; returns how many bytes there were.
        ///
        /// # Errors
        /// `EINVAL` (not whole words), `EFAULT`.
        pub fn read(&self, position: u64, bytes: u64, store: &mut dyn FnMut(&[u8]) -> usize) -> Result<u64, Errno> {
            match self {
                Self::Pagemap(pages) => pages.read(position, bytes, store),
                Self::Maps(maps) => maps.read(position, bytes, store),
            }
        }

        /// The permissions that Linux shows.
        pub const fn mode(&self) -> u32 {
            if matches!(self, Self::Pagemap(_)) { 0o400 } else { 0o444 }
        }
    }

    /// A word for each page of a space, as [`pagemap`](crate::mm::space::Space::pagemap) has it. The space may end
    /// concurrently: then nothing is left to read.
    pub struct Pagemap(SpaceHandle);

    impl Pagemap {
        /// As [`ProcContents::read`]. `EFAULT` also after words that were stored, as on Linux.
        #[inline(never)]
        fn read(&self, position: u64, bytes: u64, store: &mut dyn FnMut(&[u8]) -> usize) -> Result<u64, Errno> {
            let Some(space) = self.0.upgrade() else { return Ok(0) };
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
    use super::{ProcEntry, ProcFile, ProcId};

    #[test]
    fn names_are_of_processes_and_of_their_files() {
        let find = |path: &str| ProcEntry::find(path.as_bytes());
        assert_eq!(find("proc"), Some(ProcEntry::Root));
        assert_eq!(find("proc/self"), Some(ProcEntry::Process(ProcId::Own)));
        assert_eq!(find("proc/12"), Some(ProcEntry::Process(ProcId::Number(12))));
        assert_eq!(find("proc/self/pagemap"), Some(ProcEntry::File(ProcId::Own, ProcFile::Pagemap)));
        assert_eq!(find("proc/7/pagemap"), Some(ProcEntry::File(ProcId::Number(7), ProcFile::Pagemap)));
        assert_eq!(find("proc/7/maps"), Some(ProcEntry::File(ProcId::Number(7), ProcFile::Maps)));
        for path in ["", "pro", "procs", "proc/", "proc/07", "proc/0", "proc/+1", "proc/1x", "proc/4294967296"] {
            assert_eq!(find(path), None, "{path}");
        }
        for path in ["proc/self/page", "proc/self/pagemap/x", "proc/self/self", "x/proc"] {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
