//! Files of `/proc` that are records of text: a line for each area of a space (Linux: `fs/seq_file.c`,
//! `fs/proc/task_mmu.c`).
//!
//! A reader that goes on where it stopped gets the rest of the record that it stopped in as that was then: no record is
//! made of parts of two. Records after it are those of the time of the call.

use core::fmt::Write;

use granule_arch::addr::{PAGE, VirtAddr};

use crate::mm::space::{Area, ProgramHeap};

/// The text of a record: at most two addresses of 13 digits, an offset of 13, a number of 20, and a name of 10 from column
/// [`NAME_COLUMN`] on.
type Record = heapless::String<128>;

/// The column of a name.
const NAME_COLUMN: usize = 73;

/// How far a reader is.
#[derive(Clone)]
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

    /// A cursor for a read at `position`: this one, if the read before ended there.
    fn at(&self, position: u64) -> Self {
        let goes_on = position != 0 && position == self.reached && self.begin <= position;
        if goes_on { self.clone() } else { Self::new() }
    }

    /// Fills `buffer` with the text from `position` on, where its record begins or after that; returns how many bytes there
    /// are. `records` calls its second argument with each record from an address on, and the address after it, until that
    /// returns `false`.
    fn fill(
        &mut self,
        position: u64,
        buffer: &mut [u8],
        records: impl FnOnce(VirtAddr, &mut dyn FnMut(Record, VirtAddr) -> bool),
    ) -> usize {
        let mut filled = self.copy(position, buffer);
        if filled < buffer.len() {
            records(self.next, &mut |record, next| {
                self.begin += self.record.len() as u64;
                (self.record, self.next) = (record, next);
                let rest = buffer.get_mut(filled..).unwrap_or_default();
                filled += self.copy(position + filled as u64, rest);
                filled < buffer.len()
            });
        }
        filled
    }

    /// Copies the record's bytes from `position` on; returns how many.
    fn copy(&self, position: u64, buffer: &mut [u8]) -> usize {
        let rest = self.record.as_bytes().get((position - self.begin) as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        count
    }
}

/// The line of an area: `start-end rwxs offset device number`, and the name of a part of the program. `stack_top` is where the
/// program's stack ends, and the page of its return from handlers begins.
fn line(area: &Area, heap: ProgramHeap, stack_top: VirtAddr) -> Record {
    let (start, end) = (area.start(), area.end());
    let object = area.object();
    let offset = object.map_or(0, |_| area.page_at(start) * PAGE);
    let (device, number) = object.map_or((0, 0), |object| (1, object.identity()));
    let [read, write, execute, sharing] = area.letters();
    let mut line = Record::new();
    // There is room for the largest numbers.
    let _ = write!(line, "{:08x}-{:08x} {read}{write}{execute}{sharing} ", start.0, end.0);
    let _ = write!(line, "{offset:08x} 00:{device:02x} {number} ");
    let name = match object {
        Some(_) => "",
        None if start.0 <= heap.end && end.0 >= heap.start && heap.start != heap.end => "[heap]",
        None if start < stack_top && stack_top <= end => "[stack]",
        None if start == stack_top => "[sigpage]",
        None => "",
    };
    if !name.is_empty() {
        let _ = write!(line, "{:1$}{name}", "", NAME_COLUMN.saturating_sub(line.len()));
    }
    let _ = line.push('\n');
    line
}

#[cfg(target_os = "none")]
pub use target::Maps;

#[cfg(target_os = "none")]
mod target {
    use super::{Cursor, line};
    use crate::linux::errno::Errno;
    use crate::mm::space::SpaceHandle;
    use crate::sched::relax;
    use crate::sync::IrqLock;
    use crate::sync::rank;

    /// Bytes that are stored at once.
    const AT_ONCE: usize = 1024;

    /// A line for each area of a space, by address. The space may end concurrently: then no more follow.
    pub struct Maps {
        space: Option<SpaceHandle>,
        cursor: IrqLock<Cursor, { rank::RECORDS }>,
    }

    impl Maps {
        /// Those of `space`.
        pub const fn new(space: Option<SpaceHandle>) -> Self {
            Self { space, cursor: IrqLock::new(Cursor::new()) }
        }

        /// As [`ProcContents::read`](crate::linux::file::proc::ProcContents::read).
        #[inline(never)]
        pub fn read(&self, position: u64, bytes: u64, store: &mut dyn FnMut(&[u8]) -> usize) -> Result<u64, Errno> {
            let space = self.space.as_ref().and_then(SpaceHandle::upgrade);
            let mut cursor = self.cursor.lock().at(position);
            let (mut buffer, mut done, mut is_whole) = ([0; AT_ONCE], 0, true);
            while is_whole && done < bytes {
                let wanted = buffer.get_mut(..(bytes - done).min(AT_ONCE as u64) as usize).unwrap_or_default();
                let count = cursor.fill(position + done, wanted, |from, each| {
                    let Some(space) = &space else { return };
                    let (heap, stack_top) = (*space.heap().read(), space.trampoline());
                    space.for_each_area_from(from, |area| each(line(area, heap, stack_top), area.end()));
                });
                if count == 0 {
                    break;
                }
                let stored = store(wanted.get(..count).unwrap_or_default());
                (done, is_whole) = (done + stored as u64, stored == count);
                relax();
            }
            cursor.reached = position + done;
            *self.cursor.lock() = cursor;
            if done == 0 && !is_whole { Err(Errno::EFAULT) } else { Ok(done) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    use granule_arch::addr::{PAGE, VirtAddr};
    use granule_arch::descriptor::Protection;
    use granule_pgtable::PageRange;

    use super::{Cursor, Record, line};
    use crate::mm::space::{Area, ProgramHeap};

    /// Fills `buffer` from records of so many bytes, each of its letter, one for each address.
    fn fill(cursor: &mut Cursor, position: u64, buffer: &mut [u8], records: &[(char, usize)]) -> usize {
        cursor.fill(position, buffer, |from, each| {
            for (&(letter, bytes), next) in records.iter().zip(1..).skip(from.0 as usize) {
                let record: Record = core::iter::repeat_n(letter, bytes).collect();
                if !each(record, VirtAddr(next)) {
                    break;
                }
            }
        })
    }

    const RECORDS: [(char, usize); 5] = [('a', 3), ('b', 1), ('c', 7), ('d', 2), ('e', 5)];

    #[test]
    fn pieces_of_any_size_make_the_text() {
        for size in 1..20 {
            let (mut cursor, mut text) = (Cursor::new(), Vec::new());
            loop {
                let mut piece = vec![0; size];
                let position = text.len() as u64;
                cursor = cursor.at(position);
                let count = fill(&mut cursor, position, &mut piece, &RECORDS);
                assert!(count == size || count == (18 - text.len()).min(size), "{size}");
                cursor.reached = position + count as u64;
                text.extend_from_slice(&piece[..count]);
                if count == 0 {
                    break;
                }
            }
            assert_eq!(String::from_utf8(text).unwrap(), "aaabcccccccddeeeee", "{size}");
        }
    }

    #[test]
    fn a_record_is_of_one_time_however_it_is_read() {
        let (mut cursor, mut piece) = (Cursor::new(), [0; 6]);
        assert_eq!(fill(&mut cursor, 0, &mut piece, &RECORDS), 6);
        cursor.reached = 6;
        assert_eq!(&piece, b"aaabcc");
        let changed = [('v', 9), ('w', 9), ('x', 9), ('y', 3), ('z', 9)];
        let mut rest = [0; 10];
        let mut cursor = cursor.at(6);
        assert_eq!(fill(&mut cursor, 6, &mut rest, &changed), 10);
        assert_eq!(&rest, b"cccccyyyzz");
        cursor.reached = 16;
        // From the start, and from elsewhere, all is as it is now.
        for (position, expected) in [(0, b"vvvvvvvvvw"), (15, b"wwwxxxxxxx")] {
            let count = fill(&mut cursor.at(position), position, &mut rest, &changed);
            assert_eq!((count, &rest), (10, expected));
        }
        assert_eq!(fill(&mut cursor.at(1 << 40), 1 << 40, &mut rest, &changed), 0);
    }

    #[test]
    fn lines_are_those_of_linux() {
        let heap = ProgramHeap { start: 0x1387_6000, end: 0x1389_d008 };
        let stack_top = VirtAddr(0xffff_d97e_5000);
        let shown = |start: u64, pages: u64, protection| {
            let area = Area::sample(PageRange::new(VirtAddr(start), pages * PAGE).unwrap(), protection);
            String::from(line(&area, heap, stack_top).as_str())
        };
        let writable = Protection::READ.and(Protection::WRITE);
        assert_eq!(shown(0x1_0000, 1, writable), "00010000-00011000 rw-p 00000000 00:00 0 \n");
        assert_eq!(shown(0x100_0004_0000, 3, Protection::NONE), "10000040000-10000043000 ---p 00000000 00:00 0 \n");
        let named = |line: &str, name| std::format!("{line:73}{name}\n");
        let of_heap = named("13876000-1389e000 rw-p 00000000 00:00 0", "[heap]");
        assert_eq!(shown(0x1387_6000, 0x28, writable), of_heap);
        let of_stack = named("ffffd97c4000-ffffd97e5000 rw-p 00000000 00:00 0", "[stack]");
        assert_eq!(shown(0xffff_d97c_4000, 0x21, writable), of_stack);
        let of_trampoline = named("ffffd97e5000-ffffd97e6000 r-xp 00000000 00:00 0", "[sigpage]");
        assert_eq!(shown(0xffff_d97e_5000, 1, Protection::READ.and(Protection::EXECUTE)), of_trampoline);
        let highest = shown(0xffff_ffff_f000, 1, Protection::EXECUTE);
        assert_eq!(highest, "fffffffff000-1000000000000 --xp 00000000 00:00 0 \n");
    }
}
