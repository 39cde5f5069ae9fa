//! Files of `/proc` that are records of text: a line for each area of a space (Linux: `fs/seq_file.c`,
//! `fs/proc/task_mmu.c`).
//!
//! A reader that goes on where it stopped gets the rest of the record that it stopped in as that was then: no record is
//! made of parts of two. Records after it are those of the time of the call.

use core::fmt::Write;

use granule_arch::addr::{PAGE, VirtAddr};

use crate::linux::errno::Errno;
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
        if position != 0 && position == self.reached { self.clone() } else { Self::new() }
    }

    /// Has `store` store up to `bytes` bytes of the text from `position` on, which the cursor is [for](Self::at), until it
    /// stores fewer than it is given; returns how many were stored. `following` is the first record from an address on, with
    /// the address after it; `None` after the last.
    ///
    /// # Errors
    /// `EFAULT`: none could be stored.
    fn read(
        &mut self,
        position: u64,
        bytes: u64,
        following: impl Fn(VirtAddr) -> Option<(Record, VirtAddr)>,
        store: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<u64, Errno> {
        let mut done = 0;
        while done < bytes {
            // No record begins after the position: a new one begins where the last ended, which had no byte of it.
            let rest = self.record.as_bytes().get((position + done - self.begin) as usize..).unwrap_or_default();
            if rest.is_empty() {
                let Some((record, next)) = following(self.next) else { break };
                self.begin += self.record.len() as u64;
                (self.record, self.next) = (record, next);
                continue;
            }
            let piece = rest.get(..(bytes - done) as usize).unwrap_or(rest);
            let stored = store(piece);
            done += stored as u64;
            if stored < piece.len() {
                if done == 0 {
                    return Err(Errno::EFAULT);
                }
                break;
            }
        }
        self.reached = position + done;
        Ok(done)
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
        None if start.0 < heap.end && end.0 > heap.start => "[heap]",
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
    use crate::sched::{is_killed, relax};
    use crate::sync::IrqLock;
    use crate::sync::rank;

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
            if bytes == 0 {
                return Ok(0);
            }
            let space = self.space.as_ref().and_then(SpaceHandle::upgrade);
            let mut cursor = self.cursor.lock().at(position);
            let following = |from| {
                relax();
                let space = space.as_ref().filter(|_| !is_killed())?;
                let (heap, stack_top) = (*space.heap().read(), space.trampoline());
                space.with_next_area(from, |area| (line(area, heap, stack_top), area.end()))
            };
            let read = cursor.read(position, bytes, following, store);
            if read.is_ok() {
                *self.cursor.lock() = cursor;
            }
            read
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use granule_arch::addr::{PAGE, VirtAddr};
    use granule_arch::descriptor::Protection;
    use granule_pgtable::PageRange;

    use super::{Cursor, line};
    use crate::linux::errno::Errno;
    use crate::mm::space::{Area, ProgramHeap};

    /// Reads up to `bytes` bytes, from records of so many bytes, each of its letter, one for each address, of which memory
    /// takes `room`.
    fn read(cursor: &mut Cursor, bytes: u64, room: usize, records: &[(char, usize)]) -> Result<String, Errno> {
        let mut text = Vec::new();
        let following = |from: VirtAddr| {
            let &(letter, bytes) = records.get(from.0 as usize)?;
            Some((core::iter::repeat_n(letter, bytes).collect(), from + 1))
        };
        let count = cursor.read(cursor.reached, bytes, following, &mut |piece| {
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
                cursor = cursor.at(text.len() as u64);
            }
            assert_eq!(text, "aaabcccccccddeeeee", "{size} {room}");
        }
    }

    #[test]
    fn a_record_is_of_one_time_however_it_is_read() {
        for (bytes, room) in [(6, 6), (100, 6)] {
            let mut cursor = Cursor::new();
            assert_eq!(read(&mut cursor, bytes, room, &RECORDS).unwrap(), "aaabcc");
            let mut cursor = cursor.at(6);
            assert_eq!(read(&mut cursor, 10, 0, &CHANGED), Err(Errno::EFAULT));
            assert_eq!(read(&mut cursor, 10, 10, &CHANGED).unwrap(), "cccccyyyzz");
            // From the start all is as it is now.
            assert_eq!(read(&mut cursor.at(0), 10, 10, &CHANGED).unwrap(), "vvvvvvvvvw");
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
            String::from(line(&area, heap, stack_top).as_str())
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
}
