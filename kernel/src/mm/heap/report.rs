//! The heap's knowledge of an address where the tag of a pointer was not that of the memory.
//!
//! It is read when something is broken, from anywhere, so no lock is taken and each read is one that may fault. Records
//! are searched for around the address: memory that is tagged as free memory is, and holds what a record there would.

#![allow(unsafe_code, reason = "reads records by address")]

use granule_arch::addr::VirtAddr;
use granule_arch::mte::{GRANULE, MATCH_ALL, Tag};

use super::tags::{ObjectState, RECORD, Record};

/// Granules that are searched in either direction: 1 MiB.
const REACH: u64 = 65_536;

/// An object by its record.
#[derive(Clone, Copy)]
struct Object {
    start: VirtAddr,
    record: Record,
    state: ObjectState,
}

/// Where an address lies, seen from an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// So many bytes before its first.
    Before(u64),
    /// At this offset.
    Inside(u64),
    /// So many bytes after its end.
    After(u64),
}

impl Object {
    /// The object whose record is at `at`, `read` there with the tag of the memory; `None` where none is.
    fn of((record, tag): (Record, Tag), at: VirtAddr) -> Option<Self> {
        let state = record.state(at).filter(|_| tag == MATCH_ALL)?;
        Some(Self { start: VirtAddr(at.0.checked_sub(record.bytes())?), record, state })
    }

    fn place(&self, address: VirtAddr) -> Place {
        Place::of(address, self.start, self.record.bytes())
    }

    /// Whether it was freed and the other is in use in a part of its memory, so is the newer one.
    fn is_older_than(&self, other: &Self) -> bool {
        let [end, other_end] = [self, other].map(|object| object.start + object.record.bytes());
        let overlap = self.start < other_end && other.start < end;
        overlap && self.state == ObjectState::Freed && other.state == ObjectState::InUse
    }
}

impl Place {
    /// Bytes from the address to the object: of one inside, none.
    fn distance(self) -> u64 {
        match self {
            Self::Before(distance) | Self::After(distance) => distance,
            Self::Inside(_) => 0,
        }
    }

    /// Seen from the object of so many bytes at `start`.
    pub(super) fn of(address: VirtAddr, start: VirtAddr, bytes: u64) -> Self {
        let end = start + bytes;
        match address {
            address if address < start => Self::Before(start - address),
            address if address < end => Self::Inside(address - start),
            address => Self::After(address - end),
        }
    }
}

/// The object that an access to `address` by a pointer with `tag` was probably meant for, and whether it has that tag: of
/// the one at or after the address, the one before, and the next, the nearest of those that have it; else the nearest.
/// Tags are few, so that of two that have it the farther one has it by chance, and so has a freed one whose memory the
/// other is in.
///
/// `read` returns what is at an address, were it a record, and the tag of the memory; `None` where nothing is mapped.
fn meant(address: VirtAddr, tag: Tag, read: &dyn Fn(VirtAddr) -> Option<(Record, Tag)>) -> Option<(Object, bool)> {
    // From the first record that the address may lie in, if that is not below the window.
    let granule = address.align_down(GRANULE).0;
    let mut lowest = (granule - (RECORD as u64 - GRANULE)..=granule).step_by(GRANULE as usize);
    let after = lowest.find(|at| read(VirtAddr(*at)).is_some())?;
    let mut from = [after, after - GRANULE];
    let ways = [(0, GRANULE), (1, GRANULE.wrapping_neg()), (0, GRANULE)];
    let near = ways.map(|(way, step)| nearest(&mut from[way], step, read));
    let judged = || near.iter().flatten().map(|object| (*object, object.record.tag() == tag));
    judged().min_by_key(|(object, same_tag)| {
        let older = judged().any(|(other, same_tag)| same_tag && object.is_older_than(&other));
        (!same_tag, older, object.place(address).distance())
    })
}

/// The first object by the records at `from` and, every `step` bytes, what follows; `from` is then where to go on.
#[inline(never)]
fn nearest(from: &mut u64, step: u64, read: &dyn Fn(VirtAddr) -> Option<(Record, Tag)>) -> Option<Object> {
    for _ in 0..REACH {
        let at = VirtAddr(*from);
        let found = Object::of(read(at)?, at);
        *from = from.wrapping_add(step);
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(target_os = "none")]
pub(crate) use target::describe_tags;
#[cfg(target_os = "none")]
pub(super) use target::{bad_free, end};

#[cfg(target_os = "none")]
mod target {
    use core::fmt::{self, Write};

    use granule_arch::addr::VirtAddr;
    use granule_arch::mte::{self, Tag};

    use super::super::{BadFree, kernel_heap};
    use super::{ObjectState, Place, Record, meant};
    use crate::panic::die;
    use crate::trap::backtrace::backtrace_here;
    use crate::trap::probe;

    /// The record that would lie at `at`, and the memory's tag; `None` where nothing is mapped, or memory has no tags.
    fn read(at: VirtAddr) -> Option<(Record, Tag)> {
        // Its page may go back at any time: a CPU that gives it back stops when it is done.
        let mut words = [0_u64; size_of::<Record>() / size_of::<u64>()];
        for (word, at) in words.iter_mut().zip((at.0..).step_by(size_of::<u64>())) {
            *word = probe::read(VirtAddr(at)).ok()?;
        }
        let tag = probe::load_tag(at).ok()?;
        // SAFETY: a record is numbers, for which any will do. An object that is written then is not tagged as free
        // memory.
        Some((unsafe { core::mem::transmute::<[u64; 6], Record>(words) }, tag))
    }

    /// Two tags, and the object that an access through `pointer` was meant for, if it is near.
    pub(crate) fn describe_tags(out: &mut dyn Write, pointer: VirtAddr) -> fmt::Result {
        let (address, tag) = (pointer.canonical(), Tag::of(pointer));
        let granule = address.align_down(mte::GRANULE);
        if probe::read::<u64>(granule).is_err() {
            return writeln!(out, "  nothing is mapped at {address}");
        }
        let Some((_, memory)) = read(granule) else { return Ok(()) };
        writeln!(out, "tags: pointer {:#x}, memory {:#x}", tag.number(), memory.number())?;
        if !kernel_heap().contains(address.as_ptr()) {
            return writeln!(out, "  {address} is not the heap's");
        }
        let Some((object, same_tag)) = meant(address, tag, &read) else {
            return writeln!(out, "  no object is near {address}");
        };
        let (bytes, start) = (object.record.bytes(), object.start);
        match object.place(address) {
            _ if !same_tag => write!(out, "  no object near has the pointer's tag; the nearest")?,
            Place::Inside(offset) if object.state == ObjectState::InUse => write!(out, "  {offset} bytes into")?,
            Place::Inside(offset) => write!(out, "  use after free: {offset} bytes into")?,
            Place::After(distance) => write!(out, "  overflow: {distance} bytes behind")?,
            Place::Before(distance) => write!(out, "  underflow: {distance} bytes before")?,
        }
        let state = if object.state == ObjectState::Freed { "freed" } else { "in use" };
        writeln!(out, " {start}, {bytes} bytes, tag {:#x}, {state}", object.record.tag().number())?;
        write!(out, "  allocated by:\n{}", object.record.allocated)?;
        if object.state == ObjectState::Freed {
            write!(out, "  freed by:\n{}", object.record.freed)?;
        }
        Ok(())
    }

    /// Reports a free that does not match an object in use, and ends the kernel.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn bad_free(bad: &BadFree) -> ! {
        let BadFree { pointer, bytes } = *bad;
        let headline = format_args!("free of {pointer}, {bytes} bytes, which does not match an object in use");
        end(headline, pointer, describe_tags)
    }

    /// Ends the kernel after a bad free, whose caller has lost track of its memory. The report has what `describe` prints
    /// about `pointer`.
    pub(in super::super) fn end(
        headline: fmt::Arguments<'_>,
        pointer: VirtAddr,
        describe: fn(&mut dyn Write, VirtAddr) -> fmt::Result,
    ) -> ! {
        let calls = backtrace_here();
        die(headline, &|out| {
            describe(out, pointer)?;
            write!(out, "backtrace:\n{calls}")
        })
    }
}

#[cfg(test)]
mod tests {
    use core::alloc::Layout;
    use std::vec;
    use std::vec::Vec;

    use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
    use granule_arch::mte::{self, Tag};

    use super::super::Heap;
    use super::{ObjectState, Place, Record, meant};

    const PAGES: usize = 4;

    fn three() -> (Heap, [VirtAddr; 3], Vec<u128>) {
        drawn(9)
    }

    /// Three objects of 64 bytes, one after the other, each with its tag by `seed`, and the memory that they are in.
    fn drawn(seed: u64) -> (Heap, [VirtAddr; 3], Vec<u128>) {
        let memory = vec![0_u128; (PAGES + 1) * PAGE_SIZE / 16];
        let base = VirtAddr::from_ptr(memory.as_ptr()).align_up(PAGE).unwrap();
        let heap = Heap::new(base, (PAGES * PAGE_SIZE) as u64);
        // SAFETY: the window lies in `memory`; tags are simulated.
        unsafe {
            heap.start(|_, _| Ok(()), |_, _| {});
            heap.start_tags(seed);
        }
        let objects = [(); 3].map(|()| VirtAddr(heap.alloc(layout()).addr() as u64));
        (heap, objects, memory)
    }

    fn layout() -> Layout {
        Layout::from_size_align(64, 16).unwrap()
    }

    /// The object that an access through `pointer` was meant for: its start, its state, where, and whether by its tag.
    fn found(heap: &Heap, pointer: VirtAddr) -> Option<(VirtAddr, ObjectState, Place, bool)> {
        let window = heap.base.0..heap.base.0 + heap.stats().total as u64;
        let read = |at: VirtAddr| {
            let inside = window.contains(&at.0) && window.contains(&(at.0 + size_of::<Record>() as u64 - 1));
            // SAFETY: in the test's memory.
            inside.then(|| unsafe { (at.as_ptr::<Record>().read(), mte::load_tag(at)) })
        };
        let address = pointer.canonical();
        let (object, same_tag) = meant(address, Tag::of(pointer), &read)?;
        Some((object.start, object.state, object.place(address), same_tag))
    }

    #[test]
    fn an_access_beyond_an_object_is_known_by_its_tag() {
        let (heap, [first, second, third], _memory) = three();
        let in_use = |object: VirtAddr, place| Some((object.canonical(), ObjectState::InUse, place, true));
        for beyond in [0, 15, 47] {
            assert_eq!(found(&heap, second + 64 + beyond), in_use(second, Place::After(beyond)), "{beyond}");
        }
        // Beyond the records, so in the other object.
        assert_eq!(found(&heap, second + 64 + 50), in_use(second, Place::After(50)));
        assert_eq!(found(&heap, second - 1), in_use(second, Place::Before(1)));
        assert_eq!(found(&heap, second - 50), in_use(second, Place::Before(50)));
        assert_eq!(found(&heap, first), in_use(first, Place::Inside(0)));
        assert_eq!(found(&heap, third + 500), in_use(third, Place::After(436)), "in a hole");
    }

    #[test]
    fn an_access_after_the_end_of_life_is_known_until_the_memory_is_used_again() {
        let (heap, [first, second, third], _memory) = three();
        for object in [first, second] {
            // SAFETY: allocated with this layout.
            unsafe { heap.dealloc(object.as_ptr(), layout()) }.unwrap();
            let expected = (object.canonical(), ObjectState::Freed, Place::Inside(8), true);
            assert_eq!(found(&heap, object + 8), Some(expected));
        }
        let again = VirtAddr(heap.alloc(layout()).addr() as u64);
        assert_eq!(again.canonical(), first.canonical());
        let stray = (1..15).map(Tag::new).find(|tag| ![again, second, third].map(Tag::of).contains(tag)).unwrap();
        let nearest = (first.canonical(), ObjectState::InUse, Place::Inside(8), false);
        assert_eq!(found(&heap, first.with_tag(stray) + 8), Some(nearest));
    }

    #[test]
    fn of_two_objects_with_the_tag_the_nearer_is_meant() {
        let with_one_tag =
            |(_, [first, _, third], _): &(Heap, [VirtAddr; 3], Vec<u128>)| Tag::of(*first) == Tag::of(*third);
        let (heap, [_, second, third], _memory) = (1..).map(drawn).find(with_one_tag).unwrap();
        // SAFETY: allocated with this layout.
        unsafe { heap.dealloc(second.as_ptr(), layout()) }.unwrap();
        let expected = (third.canonical(), ObjectState::InUse, Place::Before(2), true);
        assert_eq!(found(&heap, third - 2), Some(expected));
    }

    #[test]
    fn of_two_objects_with_the_tag_the_one_in_the_memory_of_the_other_is_meant() {
        let large = Layout::from_size_align(1664, 16).unwrap();
        let drawn_again = |seed| {
            let (heap, objects, memory) = drawn(seed);
            let old = VirtAddr(heap.alloc(large).addr() as u64);
            // SAFETY: allocated with this layout.
            unsafe { heap.dealloc(old.as_ptr(), large) }.unwrap();
            let new = VirtAddr(heap.alloc(layout()).addr() as u64);
            assert_eq!(new.canonical(), old.canonical(), "other memory");
            (heap, objects, memory, old, new)
        };
        for (same_tag, state, place) in
            [(true, ObjectState::InUse, Place::After(3)), (false, ObjectState::Freed, Place::Inside(67))]
        {
            let wanted = |(.., old, new): &(_, _, _, VirtAddr, VirtAddr)| (old == new) == same_tag;
            let (heap, _, _memory, old, _) = (1..).map(drawn_again).find(wanted).unwrap();
            assert_eq!(found(&heap, old + 67), Some((old.canonical(), state, place, true)));
        }
    }

    #[test]
    fn a_record_that_a_program_copies_into_an_object_is_none() {
        let (heap, [first, second, _], _memory) = three();
        let (from, to) = (first.canonical() + 64, second.canonical());
        // SAFETY: in the test's memory; they do not overlap.
        unsafe { to.as_ptr::<Record>().copy_from_nonoverlapping(from.as_ptr(), 1) };
        let expected = (second.canonical(), ObjectState::InUse, Place::Inside(0), true);
        assert_eq!(found(&heap, second), Some(expected));
        assert_eq!(found(&heap, VirtAddr(heap.base.0 + (PAGES * PAGE_SIZE) as u64 + 4096)), None);
    }
}
