//! Files of `/proc` that are records of text (Linux: `fs/seq_file.c`, `fs/proc/task_mmu.c`): one for each area of a space,
//! or one for the whole file.
//!
//! A reader that goes on where it stopped gets the rest of the record that it stopped in as that was then: no record is
//! made of parts of two. Records after it are those of the time of the call.

use core::fmt::Write;

use granule_arch::addr::{PAGE, VirtAddr};

use crate::linux::errno::Errno;
use crate::mm::space::{Area, AreaShown, ProgramHeap, Resident, SHARE_SHIFT};

/// The text of a record. None is longer than one of `limits`, of 1,323 bytes, and one of `status`, of 1,130 where numbers
/// have up to 8 digits.
pub type Record = heapless::Vec<u8, 1664>;

/// Makes the first record from an address on, and returns the address after it; `None` after the last.
type Following<'f> = &'f mut dyn FnMut(VirtAddr, &mut Record) -> Result<Option<VirtAddr>, Errno>;

/// The column of a name.
const NAME_COLUMN: usize = 73;

/// How far a reader is.
struct Cursor {
    /// Where its last read ended.
    reached: u64,
    /// The record that it ended in or after, and where this begins.
    record: Record,
    begin: u64,
    /// The address from which on the next record is sought.
    next: VirtAddr,
}

impl Cursor {
    const fn new() -> Self {
        Self { reached: 0, record: Record::new(), begin: 0, next: VirtAddr(0) }
    }

    /// Begins again for a read at `position`, unless the read before ended there.
    fn seek(&mut self, position: u64) {
        if position == 0 || position != self.reached {
            (self.begin, self.next) = (0, VirtAddr(0));
            self.record.clear();
        }
    }

    /// Has `store` store up to `bytes` bytes of the text from `position` on, where the cursor [is](Self::seek), until it
    /// stores fewer than it is given; returns how many were stored. `following` makes the first record from an address on, and
    /// returns the address after it; `None` after the last.
    ///
    /// # Errors
    /// `EFAULT`: none could be stored. Those of `following`, likewise.
    fn read(
        &mut self,
        position: u64,
        bytes: u64,
        following: Following<'_>,
        store: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<u64, Errno> {
        let (mut done, mut error) = (0, None);
        while done < bytes {
            // No record begins after the position: a new one begins where the last ended, which had no byte of it.
            let rest = self.record.get((position + done - self.begin) as usize..).unwrap_or_default();
            if rest.is_empty() {
                self.begin += self.record.len() as u64;
                self.record.clear();
                match following(self.next, &mut self.record) {
                    Ok(Some(next)) => self.next = next,
                    end => {
                        error = end.err();
                        break;
                    }
                }
                continue;
            }
            let piece = rest.get(..(bytes - done) as usize).unwrap_or(rest);
            let stored = store(piece);
            done += stored as u64;
            if stored < piece.len() {
                error = Some(Errno::EFAULT);
                break;
            }
        }
        self.reached = position + done;
        error.filter(|_| done == 0).map_or(Ok(done), Err)
    }
}

/// Adds the line of an area: `start-end rwxs offset device number`, and the name of a part of the program. `stack_top` is
/// where the program's stack ends, and the page of its return from handlers begins.
pub fn line(record: &mut Record, area: &Area, heap: ProgramHeap, stack_top: VirtAddr) {
    let (start, end) = (area.start(), area.end());
    let object = area.object();
    let offset = object.map_or(0, |_| area.page_at(start) * PAGE);
    let number = object.map_or((0, 0), |object| (1, object.identity()));
    let name = match object {
        Some(_) => "",
        None if start.0 < heap.end && end.0 > heap.start => "[heap]",
        None if start < stack_top && stack_top <= end => "[stack]",
        None if start == stack_top => "[sigpage]",
        None => "",
    };
    line_of(record, (start, end), area.letters(), offset, number, name);
}

/// As [`line()`], of what it shows.
fn line_of(
    record: &mut Record,
    (start, end): (VirtAddr, VirtAddr),
    [read, write, execute, sharing]: [char; 4],
    offset: u64,
    (device, number): (u32, usize),
    name: &str,
) {
    // There is room for the largest numbers.
    let _ = write!(record, "{:08x}-{:08x} {read}{write}{execute}{sharing} ", start.0, end.0);
    let _ = write!(record, "{offset:08x} 00:{device:02x} {number} ");
    if !name.is_empty() {
        let _ = write!(record, "{:1$}{name}", "", NAME_COLUMN.saturating_sub(record.len()));
    }
    let _ = record.push(b'\n');
}

/// Adds a row of `smaps`: bytes, in KiB.
fn row(record: &mut Record, name: &str, bytes: u64) {
    let _ = writeln!(record, "{name:<16}{:>8} kB", bytes >> 10);
}

/// Adds to the line of an area what `smaps` has of it.
pub fn smaps(record: &mut Record, area: &AreaShown, pages: &Resident) {
    for (name, bytes) in [("Size:", area.size), ("KernelPageSize:", PAGE), ("MMUPageSize:", PAGE)] {
        row(record, name, bytes);
    }
    counts(record, pages, &[]);
    let _ = write!(record, "THPeligible:    {:8}\nVmFlags: ", u8::from(area.may_have_blocks));
    for (name, has) in &area.properties {
        if *has || pages.has_guards && name == b"gu" {
            let _ = record.extend_from_slice(name);
            let _ = record.push(b' ');
        }
    }
    let _ = record.push(b'\n');
}

/// The one record of `smaps_rollup`: areas from `start` to `end`.
pub fn rollup(record: &mut Record, start: VirtAddr, end: VirtAddr, pages: &Resident) {
    line_of(record, (start, end), ['-', '-', '-', 'p'], 0, (0, 0), "[rollup]");
    let [anonymous, of_files, of_shared_memory] = pages.shares.map(|share| share >> SHARE_SHIFT);
    counts(record, pages, &[("Pss_Anon:", anonymous), ("Pss_File:", of_files), ("Pss_Shmem:", of_shared_memory)]);
}

/// Adds the counts of pages. There is no swap, no merging, and no page of other sizes than those of blocks; what may be
/// freed lazily is freed at once.
fn counts(record: &mut Record, pages: &Resident, kinds: &[(&str, u64)]) {
    let [shared_clean, shared_dirty, private_clean, private_dirty] = pages.by_use;
    let [in_anonymous_blocks, in_blocks_of_objects] = pages.in_blocks;
    let first = [
        ("Rss:", pages.bytes.iter().sum()),
        ("Pss:", pages.shares.iter().sum::<u64>() >> SHARE_SHIFT),
        ("Pss_Dirty:", pages.dirty_share >> SHARE_SHIFT),
    ];
    let rest = [
        ("Shared_Clean:", shared_clean),
        ("Shared_Dirty:", shared_dirty),
        ("Private_Clean:", private_clean),
        ("Private_Dirty:", private_dirty),
        ("Referenced:", pages.referenced),
        ("Anonymous:", pages.bytes[0]),
        ("KSM:", 0),
        ("LazyFree:", 0),
        ("AnonHugePages:", in_anonymous_blocks),
        ("ShmemPmdMapped:", in_blocks_of_objects),
        ("FilePmdMapped:", 0),
        ("Shared_Hugetlb:", 0),
        ("Private_Hugetlb:", 0),
        ("Swap:", 0),
        ("SwapPss:", 0),
        ("Locked:", pages.locked_share >> SHARE_SHIFT),
    ];
    first.iter().chain(kinds).chain(&rest).for_each(|&(name, bytes)| row(record, name, bytes));
}

#[cfg(target_os = "none")]
pub use target::{Records, pool_stats};

#[cfg(target_os = "none")]
mod target {
    use spin::Once;

    use super::{Cursor, Following};
    use crate::kernel;
    use crate::linux::errno::Errno;
    use crate::mm::pool::{Pool, PoolBox, PoolStats};
    use crate::sync::IrqLock;
    use crate::sync::rank;

    static POOL: Once<Pool<Cursor>> = Once::new();

    /// How far the readers of an open file of records are: nothing before the first, and while one reads. Of readers at once
    /// each begins a text of its own.
    pub struct Records(IrqLock<Option<PoolBox<Cursor>>, { rank::RECORDS }>);

    /// At the start.
    impl Default for Records {
        fn default() -> Self {
            Self(IrqLock::new(None))
        }
    }

    impl Records {
        /// Bytes that go with it.
        pub const BYTES: usize = size_of::<Cursor>();

        /// As [`ProcContents::read`](crate::linux::file::proc::ProcContents::read).
        ///
        /// # Errors
        /// `EFAULT`, `ENOMEM`, and those of `following`.
        #[inline(never)]
        pub fn read(
            &self,
            position: u64,
            bytes: u64,
            following: Following<'_>,
            store: &mut dyn FnMut(&[u8]) -> usize,
        ) -> Result<u64, Errno> {
            if bytes == 0 {
                return Ok(0);
            }
            let mut cursor = self.take()?;
            cursor.seek(position);
            let read = cursor.read(position, bytes, following, store);
            // Dropped without the lock.
            let other = self.0.lock().replace(cursor);
            drop(other);
            read
        }

        #[inline(never)]
        fn take(&self) -> Result<PoolBox<Cursor>, Errno> {
            let kept = self.0.lock().take();
            match kept {
                Some(cursor) => Ok(cursor),
                None => Ok(POOL.call_once(|| Pool::new(kernel().frames)).try_new_with(Cursor::new)?),
            }
        }
    }

    /// The texts of open files of records.
    pub fn pool_stats() -> PoolStats {
        POOL.get().map_or_else(PoolStats::default, Pool::stats)
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use granule_arch::addr::{PAGE, VirtAddr};
    use granule_arch::descriptor::Protection;
    use granule_pgtable::PageRange;

    use super::{Cursor, Record, line, rollup, smaps};
    use crate::linux::errno::Errno;
    use crate::mm::space::{Area, ProgramHeap, Resident, SHARE_SHIFT};

    /// Reads up to `bytes` bytes, from records of so many bytes, each of its letter, one for each address, of which memory
    /// takes `room`.
    fn read(cursor: &mut Cursor, bytes: u64, room: usize, records: &[(char, usize)]) -> Result<String, Errno> {
        let mut text = Vec::new();
        let mut following = |from: VirtAddr, record: &mut Record| {
            let found = records.get(from.0 as usize);
            Ok(found.map(|&(letter, bytes)| {
                record.resize(bytes, letter as u8).unwrap();
                from + 1
            }))
        };
        let count = cursor.read(cursor.reached, bytes, &mut following, &mut |piece| {
            let stored = piece.len().min(room - text.len());
            text.extend_from_slice(&piece[..stored]);
            stored
        })?;
        assert_eq!(count, text.len() as u64);
        Ok(String::from_utf8(text).unwrap())
    }

    const RECORDS: [(char, usize); 5] = [('a', 3), ('b', 1), ('c', 7), ('d', 2), ('e', 5)];
    const CHANGED: [(char, usize); 5] = [('v', 9), ('w', 9), ('x', 9), ('y', 3), ('z', 9)];

    #[test]
    fn pieces_of_any_size_make_the_text() {
        for (size, room) in (1..20).flat_map(|size| [(size, size), (20, size)]) {
            let (mut cursor, mut text) = (Cursor::new(), String::new());
            loop {
                let piece = read(&mut cursor, size as u64, room, &RECORDS).unwrap();
                assert_eq!(piece.len(), room.min(18 - text.len()), "{size} {room}");
                if piece.is_empty() {
                    break;
                }
                text.push_str(&piece);
                cursor.seek(text.len() as u64);
            }
            assert_eq!(text, "aaabcccccccddeeeee", "{size} {room}");
        }
    }

    #[test]
    fn a_record_is_of_one_time_however_it_is_read() {
        for (bytes, room) in [(6, 6), (100, 6)] {
            let mut cursor = Cursor::new();
            assert_eq!(read(&mut cursor, bytes, room, &RECORDS).unwrap(), "aaabcc");
            cursor.seek(6);
            assert_eq!(read(&mut cursor, 10, 0, &CHANGED), Err(Errno::EFAULT));
            assert_eq!(read(&mut cursor, 10, 10, &CHANGED).unwrap(), "cccccyyyzz");
            // From the start all is as it is now.
            cursor.seek(0);
            cursor.reached = 0;
            assert_eq!(read(&mut cursor, 10, 10, &CHANGED).unwrap(), "vvvvvvvvvw");
        }
        // From elsewhere too.
        for (position, expected) in [(15, "wwwxxxxxxx"), (1 << 40, "")] {
            let mut cursor = Cursor { reached: position, ..Cursor::new() };
            assert_eq!(read(&mut cursor, 10, 10, &CHANGED).unwrap(), expected);
        }
    }

    #[test]
    fn lines_are_those_of_linux() {
        let heap = ProgramHeap { start: 0x1387_6000, end: 0x1389_d008 };
        let stack_top = VirtAddr(0xffff_d97e_5000);
        let shown = |start: u64, pages: u64, protection| {
            let area = Area::sample(PageRange::new(VirtAddr(start), pages * PAGE).unwrap(), protection);
            let mut record = Record::new();
            line(&mut record, &area, heap, stack_top);
            String::from_utf8(record.to_vec()).unwrap()
        };
        let writable = Protection::READ.and(Protection::WRITE);
        assert_eq!(shown(0x1_0000, 1, writable), "00010000-00011000 rw-p 00000000 00:00 0 \n");
        assert_eq!(shown(0x100_0004_0000, 3, Protection::NONE), "10000040000-10000043000 ---p 00000000 00:00 0 \n");
        let named = |line: &str, name| std::format!("{line:73}{name}\n");
        let of_heap = named("13876000-1389e000 rw-p 00000000 00:00 0", "[heap]");
        assert_eq!(shown(0x1387_6000, 0x28, writable), of_heap);
        // Others only touch it.
        assert_eq!(shown(0x1389_e000, 1, writable), "1389e000-1389f000 rw-p 00000000 00:00 0 \n");
        assert_eq!(shown(0x1387_5000, 1, writable), "13875000-13876000 rw-p 00000000 00:00 0 \n");
        let of_stack = named("ffffd97c4000-ffffd97e5000 rw-p 00000000 00:00 0", "[stack]");
        assert_eq!(shown(0xffff_d97c_4000, 0x21, writable), of_stack);
        let of_trampoline = named("ffffd97e5000-ffffd97e6000 r-xp 00000000 00:00 0", "[sigpage]");
        assert_eq!(shown(0xffff_d97e_5000, 1, Protection::READ.and(Protection::EXECUTE)), of_trampoline);
        let highest = shown(0xffff_ffff_f000, 1, Protection::EXECUTE);
        assert_eq!(highest, "fffffffff000-1000000000000 --xp 00000000 00:00 0 \n");
    }

    #[test]
    fn rows_of_smaps_are_those_of_linux() {
        let pages = Resident {
            bytes: [16 * PAGE, PAGE, 0],
            shares: [(8 * PAGE + PAGE / 2) << SHARE_SHIFT, PAGE << SHARE_SHIFT, 1],
            by_use: [0, 15 * PAGE, PAGE, PAGE],
            locked_share: 1 << 60,
            has_guards: true,
            ..Resident::default()
        };
        let writable = Protection::READ.and(Protection::WRITE);
        let area = Area::sample(PageRange::new(VirtAddr(0x1_0000), 16 * PAGE).unwrap(), writable);
        let mut record = Record::new();
        smaps(&mut record, &area.shown(), &pages);
        let text = str::from_utf8(&record).unwrap();
        let start = "Size:                 64 kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\n\
            Rss:                  68 kB\nPss:                  38 kB\nPss_Dirty:             0 kB\n\
            Shared_Clean:          0 kB\nShared_Dirty:         60 kB\n";
        assert!(text.starts_with(start), "{text}");
        let end = "Locked:         274877906944 kB\nTHPeligible:           0\nVmFlags: rd wr mr mw me gu ac \n";
        assert!(text.ends_with(end), "{text}");
        record.clear();
        rollup(&mut record, VirtAddr(0x40_0000), VirtAddr(0xffff_ee64_3000), &pages);
        let start = std::format!("{:73}[rollup]\nRss:   ", "00400000-ffffee643000 ---p 00000000 00:00 0");
        assert!(str::from_utf8(&record).unwrap().starts_with(&start));
    }
}
