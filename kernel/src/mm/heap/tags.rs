//! The tags of objects (Arm ARM D10), and the record after each.
//!
//! ```text
//! ├── object, tag 5 ──┤ record ├── object, tag 11 ──┤ record ├── hole ...
//!                      tag 0xf                       tag 0xf   tag 0xf
//! ```
//!
//! An object's pointer has the tag of its memory, 1 to 14. All else in the window has tag 0xf, which no pointer to an
//! object has, so an access just outside of an object, or after its end of life, never matches. The list of holes and
//! the records are accessed through untagged addresses, which match any memory.
//!
//! Finding a hole costs more than all of this. So a small object that is freed stays as it is, one of each size, and is
//! the next object of that size; they become holes when the heap would have to grow.
//!
//! Memory that becomes another object gets a tag that neither neighbour has, nor the object of the same size that was
//! there last. An access further out, or after another reuse of the memory, is found by chance: at most one in eleven
//! is not.

use core::alloc::Layout;
use core::ptr::NonNull;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::mte::{self, GRANULE, MATCH_ALL, Tag};

use super::PagesOut;
use super::calls::Calls;

/// Bytes of a record.
pub(super) const RECORD: usize = size_of::<Record>();
/// [`Record::mark`] of an object in use, but for the record's address.
const IN_USE: u32 = 0xa110_0000;
/// [`Record::mark`] of a freed object, but for the record's address.
const FREED: u32 = 0xf4ee_0000;
/// Granules of the largest object that stays when it is freed.
const SMALL: usize = 16;

/// The record of an object, after its end. It stays when the object is freed, until its memory is used again.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub(super) struct Record {
    /// [`IN_USE`] or [`FREED`], exclusive-or the record's address: a copy elsewhere is no record.
    mark: u32,
    /// Of the object.
    granules: u32,
    tag: u32,
    reserved: u32,
    pub(super) allocated: Calls,
    pub(super) freed: Calls,
}

const _: () = assert!(RECORD.is_multiple_of(GRANULE as usize));

/// Whether an object has been freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ObjectState {
    InUse,
    Freed,
}

impl Record {
    /// The state of the object whose record is at `at`; `None` where none is.
    pub(super) fn state(&self, at: VirtAddr) -> Option<ObjectState> {
        match self.mark ^ at.0 as u32 {
            IN_USE => Some(ObjectState::InUse),
            FREED => Some(ObjectState::Freed),
            _ => None,
        }
    }

    /// Bytes of the object.
    pub(super) const fn bytes(&self) -> u64 {
        self.granules as u64 * GRANULE
    }

    /// The tag of the object's pointer.
    pub(super) const fn tag(&self) -> Tag {
        Tag::new(self.tag as u8)
    }
}

/// Why an object cannot be freed: none that is in use begins at `pointer`, with its tag and of `bytes` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadFree {
    /// As it was given, with its tag.
    pub pointer: VirtAddr,
    /// The size that the caller named, in whole granules.
    pub bytes: u64,
}

/// The source of tags, and the small objects that were freed last.
pub(super) struct Tagger {
    /// xorshift64: not zero. It is the kernel's own, since RGSR_EL1, which IRG draws from, is EL0's.
    random: u64,
    /// By their granules, less one; 0 where there is none. They are the list's no more than objects in use are.
    kept: [u64; SMALL],
}

impl Tagger {
    pub(super) const fn new(seed: u64) -> Self {
        Self { random: seed | 1, kept: [0; SMALL] }
    }

    /// Where an object of `layout` stays when it is freed; `None` for one that becomes a hole at once.
    fn place(&mut self, layout: Layout) -> Option<&mut u64> {
        let aligned = layout.align() == GRANULE as usize;
        self.kept.get_mut((layout.size() / GRANULE as usize).wrapping_sub(1)).filter(|_| aligned)
    }

    /// Bytes that are kept, with their records.
    pub(super) fn kept_bytes(&self) -> usize {
        let sizes = (1..).map(|granules| granules * GRANULE as usize + RECORD);
        self.kept.iter().zip(sizes).filter(|(start, _)| **start != 0).map(|(_, bytes)| bytes).sum()
    }

    /// Makes holes of all that is kept.
    pub(super) fn give_up(&mut self, holes: &mut linked_list_allocator::Heap) {
        for (start, granules) in self.kept.iter_mut().zip(1..) {
            let bytes = granules * GRANULE as usize + RECORD;
            let kept = NonNull::new(VirtAddr(core::mem::take(start)).as_ptr());
            if let (Some(object), Ok(whole)) = (kept, Layout::from_size_align(bytes, GRANULE as usize)) {
                // SAFETY: the list gave it out with this layout, and nothing else has it.
                unsafe { holes.deallocate(object, whole) };
            }
        }
    }

    /// A tag that is not in `excluded`, a bit for each, of which some are clear; each of these is as likely.
    fn draw(&mut self, excluded: u16) -> Tag {
        loop {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let number = self.random >> 60;
            if excluded >> number & 1 == 0 {
                return Tag::new(number as u8);
            }
        }
    }
}

/// Whether `pointer` is to an object with a tag: one from before there were tags has none, nor has one in the lower
/// half with tag 0.
pub(super) fn is_tagged(pointer: VirtAddr) -> bool {
    pointer != pointer.canonical()
}

/// Whether the memory at `pointer` is an object's that has a tag.
///
/// # Safety
/// It is mapped.
pub(super) unsafe fn has_tag(pointer: VirtAddr) -> bool {
    // SAFETY: the caller's contract.
    unsafe { mte::load_tag(pointer) != MATCH_ALL }
}

/// Gives `bytes` bytes that no object has from `start` on the tag of free memory.
///
/// # Safety
/// They are mapped, whole granules, and accessed through untagged addresses alone.
#[inline(never)]
pub(super) unsafe fn set_free(start: VirtAddr, bytes: u64) {
    // SAFETY: the caller's contract.
    unsafe { mte::set_tags(start.with_tag(MATCH_ALL), bytes) };
}

/// `layout`, in whole granules, with its record; `None` where that is more than an address space.
fn with_record(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(RECORD)?, layout.align()).ok()
}

/// Takes memory for `layout`, in whole granules, from `holes`, and returns its pointer with a tag.
#[inline(always)]
pub(super) fn take(
    holes: &mut linked_list_allocator::Heap,
    tagger: &mut Tagger,
    layout: Layout,
    out: &PagesOut,
) -> Option<NonNull<u8>> {
    let start = match tagger.place(layout).map(core::mem::take) {
        Some(kept) if kept != 0 => VirtAddr(kept),
        _ => VirtAddr::from_ptr(holes.allocate_first_fit(with_record(layout)?).ok()?.as_ptr()),
    };
    let at = start + layout.size() as u64;
    let end = at + RECORD as u64;
    let bit = |tag: Tag| 1 << tag.number();
    let mut excluded = bit(Tag::ZERO) | bit(MATCH_ALL);
    // The neighbour in front ends before its record; the neighbour after begins at `end`.
    let before = RECORD as u64 + GRANULE;
    // Pages that are out have no tags. They may be a neighbour where that is in another page.
    let is_mapped = |at: VirtAddr| at.align_down(PAGE) == start.align_down(PAGE) || !out.has(at);
    if start.0 - holes.bottom().addr() as u64 >= before && is_mapped(start - before) {
        // SAFETY: in the list's memory, which is mapped but for pages that are out.
        excluded |= bit(unsafe { mte::load_tag(start - before) });
    }
    if end.0 < holes.top().addr() as u64 && (!end.is_aligned(PAGE) || !out.has(end)) {
        // SAFETY: the same.
        excluded |= bit(unsafe { mte::load_tag(end) });
    }
    // SAFETY: the memory was just taken, and has room for a record after the object. Its old contents are numbers, of
    // which any will do.
    let record = unsafe { &mut *at.as_ptr::<Record>() };
    let granules = (layout.size() / GRANULE as usize) as u32;
    if record.mark == FREED ^ at.0 as u32 && record.granules == granules {
        excluded |= 1 << (record.tag & 15);
    }
    let tag = tagger.draw(excluded);
    let tagged = start.with_tag(tag);
    // SAFETY: as above. There is no other pointer to it yet.
    unsafe { mte::set_tags(tagged, layout.size() as u64) };
    record.mark = IN_USE ^ at.0 as u32;
    record.granules = granules;
    record.tag = tag.number().into();
    record.allocated.note();
    NonNull::new(tagged.as_ptr())
}

/// Takes back the object that `pointer` is to, which has a tag.
///
/// # Errors
/// [`BadFree`]: nothing is changed.
///
/// # Safety
/// 1. As many bytes as `layout` has from `pointer` on, and a record's after them, are the list's memory, and mapped.
/// 2. If the object is in use, it is not used any more.
#[inline(always)]
pub(super) unsafe fn give_back(
    holes: &mut linked_list_allocator::Heap,
    tagger: &mut Tagger,
    pointer: VirtAddr,
    layout: Layout,
) -> Result<(), BadFree> {
    let start = pointer.canonical();
    let bad = BadFree { pointer, bytes: layout.size() as u64 };
    if !start.is_aligned(GRANULE) {
        return Err(bad);
    }
    let at = start + layout.size() as u64;
    // SAFETY: by the caller's contract in mapped memory of the list; any numbers will do.
    let record = unsafe { &mut *at.as_ptr::<Record>() };
    // SAFETY: the same.
    let tag = unsafe { mte::load_tag(start) };
    if tag != Tag::of(pointer) || record.mark != IN_USE ^ at.0 as u32 || record.bytes() != layout.size() as u64 {
        return Err(bad);
    }
    record.mark = FREED ^ at.0 as u32;
    record.freed.note();
    // SAFETY: the object is in use, as its record has it, and by the caller's contract not used any more.
    unsafe { set_free(start, layout.size() as u64) };
    match tagger.place(layout) {
        Some(kept) if *kept == 0 => *kept = start.0,
        _ => {
            let whole = with_record(layout).ok_or(bad)?;
            // SAFETY: the list gave it out with this layout, which so cannot be too large. Not null: it has a tag.
            unsafe { holes.deallocate(NonNull::new_unchecked(start.as_ptr()), whole) };
        }
    }
    Ok(())
}
