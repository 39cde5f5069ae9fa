//! Allocation tags: zeros before a page is checked, and from then on a part of it.

#![allow(unsafe_code, reason = "tags by address")]

use core::cell::RefCell;

use granule_arch::descriptor::{Descriptor, MemoryType};
use granule_arch::mte::{self, Tag};
use granule_arch::recorded;

use super::*;
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::{AreaAdvice, MappedFile, Seals, SpaceError, SpaceLimits, Terms};

const TAGGED: Protection = READ_WRITE.and(Protection::TAGGED);
/// Where the block of a space is.
const BLOCK: VirtAddr = VirtAddr(0x10_0020_0000);

fn tagged(pages: u64) -> MapRequest {
    MapRequest { protection: TAGGED, ..private(pages) }
}

fn entry(space: &Space, page: VirtAddr) -> Descriptor {
    let block = space.block_entry(page);
    block
        .unwrap_or_else(|| space.page_tables().cell(page).map_or(Descriptor::EMPTY, |(_, cell)| space.mmu().load(cell)))
}

/// The linear address of what is at `at`, which is mapped.
fn linear(rig: &Rig, space: &Space, at: VirtAddr) -> VirtAddr {
    let entry = entry(space, at);
    let size = if entry.is_table() { PAGE } else { BLOCK_SIZE };
    rig.frames.linear().address(entry.address()) + at.0 % size
}

/// Sets a tag as a program does.
fn set(rig: &Rig, space: &Space, at: VirtAddr, tag: u8) {
    let at = linear(rig, space, at);
    // SAFETY: the host keeps tags beside the memory.
    unsafe { mte::set_tags(at.with_tag(Tag::new(tag)), mte::GRANULE) };
}

fn tag(rig: &Rig, space: &Space, at: VirtAddr) -> u8 {
    // SAFETY: as above.
    unsafe { mte::load_tag(linear(rig, space, at)) }.number()
}

/// Whether its entry checks accesses.
fn is_checked(space: &Space, page: VirtAddr) -> bool {
    let entry = entry(space, page);
    entry.is_valid() && entry.memory_index() == MemoryType::NormalTagged as u8
}

/// Leaves tags in all frames that are free.
fn dirty_free_frames(rig: &Rig) {
    let space = rig.space();
    let start = space.mmap(&rig.cpu, &tagged(16)).unwrap();
    for page in (0..16).map(|page| start + page * PAGE) {
        rig.write(&space, page, 1);
        (0..PAGE / mte::GRANULE).for_each(|granule| set(rig, &space, page + granule * mte::GRANULE, 7));
    }
}

fn assert_untagged(rig: &Rig, space: &Space, page: VirtAddr) {
    assert!((0..PAGE / mte::GRANULE).all(|granule| tag(rig, space, page + granule * mte::GRANULE) == 0));
}

#[test]
fn a_new_page_has_tags_of_zero_whatever_its_frame_had() {
    let rig = Rig::new(4);
    dirty_free_frames(&rig);
    let space = rig.space();
    let start = space.mmap(&rig.cpu, &tagged(5)).unwrap();
    rig.write(&space, start, 1);
    // Read first, the page of zeros is copied.
    rig.read(&space, start + PAGE);
    assert!(is_checked(&space, start + PAGE));
    rig.write(&space, start + PAGE, 1);
    space
        .mmap(
            &rig.cpu,
            &MapRequest { placement: Placement::Fixed(start + 2 * PAGE), populate: Populate::Now, ..tagged(1) },
        )
        .unwrap();
    // Of an object, and of one's own copy of it.
    let shared = MapRequest { placement: Placement::Fixed(start + 3 * PAGE), sharing: Sharing::Shared, ..tagged(1) };
    space.mmap(&rig.cpu, &shared).unwrap();
    rig.read(&space, start + 3 * PAGE);
    let plain = rig.map(&space, 1);
    rig.write(&space, plain, 1);
    space.mprotect(plain, PAGE, TAGGED).unwrap();
    for page in [start, start + PAGE, start + 2 * PAGE, start + 3 * PAGE, plain] {
        assert!(is_checked(&space, page), "{page}");
        assert_untagged(&rig, &space, page);
    }
}

/// A frame that is no longer a program's is anything's, and its next page is untagged.
#[test]
fn tags_end_with_the_page() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = space.mmap(&rig.cpu, &tagged(1)).unwrap();
    rig.write(&space, start, 1);
    set(&rig, &space, start, 3);
    space.madvise_dontneed(&rig.cpu, start, PAGE).unwrap();
    rig.write(&space, start, 1);
    assert_untagged(&rig, &space, start);
}

#[test]
fn no_change_of_protection_takes_the_tags_away() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 4);
    (0..4).for_each(|page| rig.write(&space, start + page * PAGE, 1));
    assert!(!is_checked(&space, start));
    space.mprotect(start + PAGE, 2 * PAGE, TAGGED).unwrap();
    set(&rig, &space, start + PAGE, 9);
    for protection in [Protection::READ, Protection::NONE, READ_WRITE, TAGGED, READ_WRITE] {
        // Across the areas: only those with tags keep them.
        space.mprotect(start, 4 * PAGE, protection).unwrap();
        let is_accessible = protection != Protection::NONE;
        let checked = [0, 1, 2, 3].map(|page| is_checked(&space, start + page * PAGE));
        let with_all = protection.contains(Protection::TAGGED);
        if with_all {
            assert_eq!(checked, [true; 4]);
            break;
        }
        assert_eq!(checked, [false, is_accessible, is_accessible, false], "{protection:?}");
    }
    assert_eq!(tag(&rig, &space, start + PAGE), 9);
}

/// A page that may not be accessed has no tags yet: they are zeroed when it may.
#[test]
fn a_page_gets_tags_when_it_may_be_accessed() {
    let rig = Rig::new(4);
    dirty_free_frames(&rig);
    let space = rig.space();
    let start = rig.map(&space, 1);
    rig.write(&space, start, 1);
    space.mprotect(start, PAGE, Protection::TAGGED).unwrap();
    assert!(!is_checked(&space, start));
    assert!(!rig.spaces.record(entry(&space, start).address()).has_tags());
    space.mprotect(start, PAGE, READ_WRITE).unwrap();
    assert!(is_checked(&space, start));
    assert_untagged(&rig, &space, start);
}

#[test]
fn tags_follow_the_page() {
    let rig = Rig::new(4);
    dirty_free_frames(&rig);
    let space = rig.space();
    let start = space.mmap(&rig.cpu, &tagged(1)).unwrap();
    rig.write(&space, start, 1);
    set(&rig, &space, start + 64, 5);
    let child = space.fork(&rig.cpu).unwrap();
    let before = entry(&child, start).address();
    rig.migrate(&rig.cpu, &space, start).unwrap().unwrap();
    assert_ne!(entry(&child, start).address(), before);
    assert_eq!([&space, &child].map(|space| tag(&rig, space, start + 64)), [5, 5]);
    // The copy has them, and from then on its own.
    rig.write(&child, start, 2);
    set(&rig, &child, start + 64, 6);
    rig.write(&space, start, 3);
    assert_eq!([&space, &child].map(|space| tag(&rig, space, start + 64)), [5, 6]);
    assert!(is_checked(&space, start) && is_checked(&child, start));
}

/// The tags of shared memory are shared, also with what does not check them; a copy of its page has them.
#[test]
fn all_that_map_a_page_share_its_tags() {
    let rig = Rig::new(4);
    dirty_free_frames(&rig);
    let (space, other) = (rig.space(), rig.space());
    let object = rig.spaces.create_object(&rig.cpu, PAGE, None, Seals(0)).unwrap();
    let map = |space: &Space, protection, sharing| {
        let file = Some(MappedFile { object: &object, first_page: 0, may_write: true });
        let terms = Terms { file, ..Terms::NONE };
        space.mmap_within(&rig.cpu, &MapRequest { protection, sharing, ..private(1) }, &terms, &|| false).unwrap()
    };
    let plain = map(&other, READ_WRITE, Sharing::Shared);
    rig.write(&other, plain, 1);
    let checked = map(&space, TAGGED, Sharing::Shared);
    rig.read(&space, checked);
    assert_untagged(&rig, &space, checked);
    set(&rig, &space, checked, 4);
    let again = map(&other, TAGGED, Sharing::Shared);
    rig.read(&other, again);
    assert_eq!(tag(&rig, &other, again), 4);
    let copy = map(&other, READ_WRITE, Sharing::Private);
    rig.write(&other, copy, 2);
    assert_eq!(tag(&rig, &other, copy), 4);
    rig.spaces.migrate_at(&rig.cpu, &space, checked).unwrap();
    rig.read(&space, checked);
    assert_eq!(tag(&rig, &space, checked), 4);
}

#[test]
fn a_block_has_tags_as_a_whole() {
    let rig = Rig::new(16);
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(BLOCK), protection: TAGGED, ..private(512) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, BLOCK, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, BLOCK, 1);
    assert!(space.block_entry(BLOCK).is_some() && is_checked(&space, BLOCK));
    let at = BLOCK + 300 * PAGE;
    assert_untagged(&rig, &space, at);
    set(&rig, &space, at, 8);
    let child = space.fork(&rig.cpu).unwrap();
    rig.write(&child, BLOCK, 2);
    assert!(child.block_entry(BLOCK).is_some());
    assert_ne!(entry(&child, BLOCK).address(), entry(&space, BLOCK).address());
    assert_eq!(tag(&rig, &child, at), 8);
    rig.migrate(&rig.cpu, &child, BLOCK).unwrap().unwrap();
    assert_eq!(tag(&rig, &child, at), 8);
    // Divided, each page has its own.
    child.mprotect(BLOCK, PAGE, Protection::READ).unwrap();
    assert!(child.block_entry(BLOCK).is_none());
    let grandchild = child.fork(&rig.cpu).unwrap();
    rig.write(&grandchild, at, 1);
    assert_eq!([&child, &grandchild].map(|space| tag(&rig, space, at)), [8, 8]);
}

/// Its pages get their tags one by one.
#[test]
fn a_block_without_tags_is_divided_where_it_gets_some() {
    let rig = Rig::new(16);
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(BLOCK), ..private(512) }).unwrap();
    space.madvise_areas(&rig.cpu, BLOCK, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, BLOCK, 1);
    assert!(space.block_entry(BLOCK).is_some());
    space.mprotect(BLOCK, BLOCK_SIZE, TAGGED).unwrap();
    assert!(space.block_entry(BLOCK).is_none());
    let pages = || (0..512).map(|page| BLOCK + page * PAGE);
    assert!(pages().all(|page| is_checked(&space, page)));
    set(&rig, &space, BLOCK + PAGE, 2);
    space.mprotect(BLOCK, BLOCK_SIZE, Protection::READ).unwrap();
    space.mprotect(BLOCK, BLOCK_SIZE, READ_WRITE).unwrap();
    assert_eq!([0, 1, 2].map(|page| tag(&rig, &space, BLOCK + page * PAGE)), [0, 2, 0]);
}

/// A walk to the entry finds the tags: they are written, and ordered, before it is stored.
#[test]
fn tags_are_written_before_the_entry() {
    let rig = Rig::new(4);
    let space: &'static Space = Box::leak(Box::new(rig.space()));
    let start = rig.map(space, 3);
    (0..3).for_each(|page| rig.write(space, start + page * PAGE, 1));
    let checked: Rc<RefCell<Vec<bool>>> = Rc::default();
    let notes = checked.clone();
    let note = move |name| {
        if name == "stgm" {
            notes.borrow_mut().push((0..3).any(|page| is_checked(space, start + page * PAGE)));
        }
    };
    recorded::at_each(note, || space.mprotect(start, 3 * PAGE, TAGGED)).unwrap();
    assert_eq!(*checked.borrow(), [false; 3]);
}

#[test]
fn registers_have_no_tags() {
    let rig = Rig::new(4);
    let space = rig.space();
    let object = rig.spaces.create_registers(&rig.cpu, PhysAddr(0x900_0000)).unwrap();
    let file = Some(MappedFile { object: &object, first_page: 0, may_write: true });
    let request = MapRequest { sharing: Sharing::Shared, ..private(1) };
    let at = space.mmap_within(&rig.cpu, &request, &Terms { file, ..Terms::NONE }, &|| false).unwrap();
    assert_eq!(space.mprotect_within(at, PAGE, TAGGED, || SpaceLimits::NONE), Err(SpaceError::Invalid));
    let executable = TAGGED.and(Protection::EXECUTE);
    assert_eq!(space.mprotect_within(at, PAGE, executable, || SpaceLimits::NONE), Err(SpaceError::NotAllowed));
}

/// In a block all pages have tags, those of zero too that were not there.
#[test]
fn pages_that_become_a_block_keep_their_tags() {
    let rig = Rig::new(16);
    dirty_free_frames(&rig);
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(BLOCK), protection: TAGGED, ..private(512) };
    space.mmap(&rig.cpu, &request).unwrap();
    for page in [0, 7, 511] {
        rig.write(&space, BLOCK + page * PAGE, 1);
        set(&rig, &space, BLOCK + page * PAGE + 16, 5);
    }
    let child = space.fork(&rig.cpu).unwrap();
    space.madvise_collapse(&rig.cpu, BLOCK, BLOCK_SIZE, &|| false).unwrap();
    assert!(space.block_entry(BLOCK).is_some() && is_checked(&space, BLOCK));
    for page in [0, 7, 511] {
        let tags = [0, 16, 32].map(|offset| tag(&rig, &space, BLOCK + page * PAGE + offset));
        assert_eq!((page, tags), (page, [0, 5, 0]));
        assert_eq!(tag(&rig, &child, BLOCK + page * PAGE + 16), 5);
    }
    [1, 8, 510].into_iter().for_each(|page| assert_untagged(&rig, &space, BLOCK + page * PAGE));
    // Divided, each page has its own.
    space.munmap(&rig.cpu, BLOCK + 7 * PAGE, PAGE).unwrap();
    assert_eq!([0, 511].map(|page| tag(&rig, &space, BLOCK + page * PAGE + 16)), [5, 5]);
}
