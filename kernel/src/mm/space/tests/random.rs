//! Long sequences of calls on several spaces against plain maps of page → what it is, and everything compared after
//! each: areas, entries, contents, and the holders of each frame.
//!
//! One byte stands for a page, and one tag. The model has no frames: private pages have a value of their own, shared ones
//! that of their object, and private ones of a file that of the file until they are written.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

mod expected;

use std::collections::BTreeMap;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Markers, bits};
use granule_arch::mte::{self, Tag};
use granule_pgtable::{Mmu as _, PageRange};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use expected::{Remapped, check_entries, expected_areas, refusal};

use super::groups::check_groups;
use super::*;
use crate::mm::counted::Counted;
use crate::mm::space::{
    AreaAdvice, FaultError, MappedFile, Move, Object, Remap, Seals, SpaceError, SpaceLimits, Terms, WriteAt,
};
use crate::platform::features::branch;

/// Fixed addresses are here: the end of one table and the beginning of the next.
const BASE: u64 = 0x10_0000_0000 - 12 * PAGE;
/// Pages for them: a contiguous group is among them.
const PAGES: u64 = 32;
const PROTECTIONS: [Protection; 11] = [
    Protection::NONE,
    Protection::READ,
    READ_WRITE,
    READ_EXECUTE,
    READ_WRITE.and(Protection::EXECUTE),
    Protection::WRITE,
    Protection::TAGGED,
    Protection::READ.and(Protection::TAGGED),
    READ_WRITE.and(Protection::TAGGED),
    READ_WRITE.and(Protection::GUARDED),
    READ_EXECUTE.and(Protection::GUARDED),
];

/// The contents of a page: its byte, and above it the tag of that.
type Value = u16;

/// The contents of an object: page → value.
type Contents = Rc<core::cell::RefCell<BTreeMap<u64, Value>>>;

#[derive(Clone)]
enum Backing {
    Private(Value),
    /// Of an object, that of a file if it has a number.
    Shared(Contents, u64, Option<usize>),
    /// Of a file, with a value of its own once it was written.
    Copy(Contents, u64, usize, Option<Value>),
}

/// Files that can be mapped.
const FILES: usize = 2;
/// Pages that a file has at most.
const FILE_PAGES: u64 = 16;

#[derive(Clone)]
struct Page {
    protection: Protection,
    backing: Backing,
    is_guard: bool,
    /// Whether a child has it, and whether with its contents.
    in_children: [bool; 2],
    /// Whether blocks, or else groups, are wanted.
    is_wanted: bool,
}

impl Page {
    fn new(protection: Protection, backing: Backing) -> Self {
        Self { protection, backing, is_guard: false, in_children: [true; 2], is_wanted: false }
    }

    /// Tags stay.
    fn protect(&mut self, protection: Protection) {
        self.protection = protection.and(self.protection.common(Protection::TAGGED));
    }

    /// Without contents of its own.
    fn discard(&mut self) {
        match &mut self.backing {
            Backing::Private(value) => *value = 0,
            Backing::Copy(.., own) => *own = None,
            Backing::Shared(..) => {}
        }
    }

    /// A page of the same area so many pages on, that was not touched.
    fn at_distance(&self, pages: u64) -> Self {
        let backing = match &self.backing {
            Backing::Private(_) => Backing::Private(0),
            Backing::Shared(contents, page, file) => Backing::Shared(contents.clone(), page + pages, *file),
            Backing::Copy(contents, page, file, _) => Backing::Copy(contents.clone(), page + pages, *file, None),
        };
        Self { backing, is_guard: false, ..self.clone() }
    }

    fn value(&self) -> Value {
        match &self.backing {
            Backing::Private(value) | Backing::Copy(.., Some(value)) => *value,
            Backing::Shared(contents, page, _) | Backing::Copy(contents, page, ..) => {
                contents.borrow().get(page).copied().unwrap_or(0)
            }
        }
    }

    /// Stores a byte, and its tag where accesses are checked.
    fn write(&mut self, value: u8) {
        let tags = if self.protection.contains(Protection::TAGGED) { tag_for(value) } else { self.value() & !0xff };
        self.set(tags | Value::from(value));
    }

    fn set(&mut self, value: Value) {
        match &mut self.backing {
            Backing::Private(own) => *own = value,
            Backing::Shared(contents, page, _) => drop(contents.borrow_mut().insert(*page, value)),
            Backing::Copy(.., own) => *own = Some(value),
        }
    }

    /// Whether its file, if it is of one, ends before it.
    fn is_behind_the_end(&self, ends: [u64; FILES]) -> bool {
        match self.backing {
            Backing::Shared(_, page, Some(file)) | Backing::Copy(_, page, file, _) => page >= ends[file],
            _ => false,
        }
    }
}

/// The tag that a program gives what it stores.
fn tag_for(value: u8) -> Value {
    Value::from(value & 0xf) << 8
}

/// Sets the tag of the first byte of a page that is mapped writable.
fn set_tag(rig: &Rig, space: &Space, page: VirtAddr, value: Value) {
    let found = space.page_tables().translate(page).unwrap();
    let at = rig.frames.linear().address(found.physical).with_tag(Tag::new((value >> 8) as u8));
    // SAFETY: the host keeps tags beside the memory.
    unsafe { mte::set_tags(at, mte::GRANULE) };
}

/// Address → page.
type Model = BTreeMap<u64, Page>;

#[derive(Clone, Debug)]
enum Step {
    /// At a fixed page, or anywhere.
    Map {
        at: Option<u64>,
        pages: u64,
        protection: usize,
        shared: bool,
        populate: bool,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    Protect {
        at: u64,
        pages: u64,
        protection: usize,
    },
    DontNeed {
        at: u64,
        pages: u64,
    },
    /// Of each page that is there.
    Migrate {
        at: u64,
        pages: u64,
    },
    Write {
        at: u64,
        value: u8,
    },
    Fault {
        at: u64,
        access: Access,
    },
    Mincore {
        at: u64,
        pages: u64,
    },
    Fork,
    Drop,
    /// Into parts, where that may be.
    Divide {
        at: u64,
    },
    MapFile {
        at: u64,
        pages: u64,
        protection: usize,
        shared: bool,
        populate: bool,
        file: usize,
        first: u64,
    },
    Truncate {
        file: usize,
        pages: u64,
    },
    Punch {
        file: usize,
        first: u64,
        pages: u64,
    },
    WriteFile {
        file: usize,
        page: u64,
        value: u8,
    },
    Remove {
        at: u64,
        pages: u64,
    },
    /// Guards, or pages again.
    Guard {
        at: u64,
        pages: u64,
        is_guard: bool,
    },
    /// Whether a child has it: 0, the area; 1, its contents.
    Advise {
        at: u64,
        pages: u64,
        part: usize,
        stays: bool,
    },
    Populate {
        at: u64,
        pages: u64,
        access: Access,
    },
    /// Fresh memory for which blocks are wanted; groups are brought.
    Want {
        at: u64,
        pages: u64,
    },
    /// To a fixed page, near none or, if it `may`, where it has to.
    Remap {
        at: u64,
        pages: u64,
        new_pages: u64,
        to: Option<u64>,
        may: bool,
        keeps: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let at = || 0..PAGES;
    let pages = || prop_oneof![4 => 1..6_u64, 1 => 6..PAGES];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Execute)];
    let step = prop_oneof![
        3 => (proptest::option::weighted(0.8, at()), pages(), 0..PROTECTIONS.len(), any::<bool>(), any::<bool>()).prop_map(
            |(at, pages, protection, shared, populate)| Step::Map { at, pages, protection, shared, populate }
        ),
        2 => (at(), pages()).prop_map(|(at, pages)| Step::Unmap { at, pages }),
        3 => (at(), pages(), 0..PROTECTIONS.len()).prop_map(|(at, pages, protection)| Step::Protect { at, pages, protection }),
        1 => (at(), pages()).prop_map(|(at, pages)| Step::DontNeed { at, pages }),
        3 => (at(), pages()).prop_map(|(at, pages)| Step::Migrate { at, pages }),
        6 => (at(), 1..=255_u8).prop_map(|(at, value)| Step::Write { at, value }),
        2 => (at(), access).prop_map(|(at, access)| Step::Fault { at, access }),
        1 => (at(), pages()).prop_map(|(at, pages)| Step::Mincore { at, pages }),
        1 => Just(Step::Fork),
        1 => Just(Step::Drop),
        3 => (1..PAGES).prop_map(|at| Step::Divide { at }),
        4 => (at(), pages(), 0..PROTECTIONS.len(), any::<bool>(), any::<bool>(), 0..FILES, 0..FILE_PAGES).prop_map(
            |(at, pages, protection, shared, populate, file, first)| {
                Step::MapFile { at, pages, protection, shared, populate, file, first }
            }
        ),
        2 => (0..FILES, 0..=FILE_PAGES).prop_map(|(file, pages)| Step::Truncate { file, pages }),
        2 => (0..FILES, 0..FILE_PAGES, 1..6_u64).prop_map(|(file, first, pages)| Step::Punch { file, first, pages }),
        2 => (0..FILES, 0..FILE_PAGES, 1..=255_u8).prop_map(|(file, page, value)| Step::WriteFile { file, page, value }),
        1 => (at(), pages()).prop_map(|(at, pages)| Step::Remove { at, pages }),
        2 => (at(), pages(), any::<bool>()).prop_map(|(at, pages, is_guard)| Step::Guard { at, pages, is_guard }),
        2 => (at(), pages(), 0..2_usize, any::<bool>()).prop_map(|(at, pages, part, stays)| {
            Step::Advise { at, pages, part, stays }
        }),
        3 => (0..16_u64, 28..=PAGES).prop_map(|(at, end)| Step::Want { at, pages: end - at }),
        2 => (at(), pages(), prop_oneof![Just(Access::Read), Just(Access::Write)]).prop_map(|(at, pages, access)| {
            Step::Populate { at, pages, access }
        }),
        4 => (at(), 0..8_u64, 1..8_u64, proptest::option::weighted(0.6, at()), any::<bool>(), any::<bool>()).prop_map(
            |(at, pages, new_pages, to, may, keeps)| {
                // An equal size half of the time: nothing else moves several areas or is kept.
                let new_pages = if may || keeps { pages.max(1) } else { new_pages };
                Step::Remap { at, pages, new_pages, to, may, keeps }
            }
        ),
    ];
    prop::collection::vec((0..4_usize, step), 1..60)
}

std::thread_local! {
    /// Groups that were met.
    static GROUPS: Cell<usize> = const { Cell::new(0) };
}

/// Spaces with their models.
struct World {
    rig: Rig,
    spaces: Vec<(SpaceRef, Model)>,
    files: [(Counted<Object>, Contents); FILES],
}

fn address(page: u64) -> VirtAddr {
    VirtAddr(BASE + page * PAGE)
}

fn each(start: VirtAddr, pages: u64) -> impl Iterator<Item = u64> + Clone {
    (0..pages).map(move |page| start.0 + page * PAGE)
}

impl World {
    fn new() -> Self {
        let rig = Rig::new(8);
        let space = rig.space();
        let file = |_| (rig.spaces.create_object(&rig.cpu, 0, Some(&[]), Seals(0)).unwrap(), Contents::default());
        Self { files: core::array::from_fn(file), spaces: vec![(space, Model::new())], rig }
    }

    /// Pages of each file.
    fn ends(&self) -> [u64; FILES] {
        core::array::from_fn(|file| self.files[file].0.size().div_ceil(PAGE))
    }

    fn take(&mut self, which: usize, step: Step) -> Result<(), TestCaseError> {
        let cpu = &self.rig.cpu;
        let count = self.spaces.len();
        let (which, ends) = (which % count, self.ends());
        let (space, model) = &mut self.spaces[which];
        match step {
            Step::Map { at, pages, protection, shared, populate } => {
                let request = MapRequest {
                    placement: at.map_or(Placement::Hint(VirtAddr(0)), |at| Placement::Fixed(address(at))),
                    protection: PROTECTIONS[protection],
                    sharing: if shared { Sharing::Shared } else { Sharing::Private },
                    populate: if populate { Populate::Now } else { Populate::OnDemand },
                    ..private(pages)
                };
                let start = space.mmap(cpu, &request).unwrap();
                match at {
                    Some(at) => prop_assert_eq!(start, address(at)),
                    None => prop_assert!(each(start, pages).all(|page| !model.contains_key(&page))),
                }
                let contents = Contents::default();
                for (index, page) in each(start, pages).enumerate() {
                    let backing = if shared {
                        Backing::Shared(contents.clone(), index as u64, None)
                    } else {
                        Backing::Private(0)
                    };
                    model.insert(page, Page::new(PROTECTIONS[protection], backing));
                }
            }
            Step::Unmap { at, pages } => {
                prop_assert_eq!(space.munmap(cpu, address(at), pages * PAGE), Ok(()));
                model.retain(|&page, _| !each(address(at), pages).any(|gone| gone == page));
            }
            Step::Protect { at, pages, protection } => {
                let covered = each(address(at), pages).all(|page| model.contains_key(&page));
                let result = space.mprotect(address(at), pages * PAGE, PROTECTIONS[protection]);
                prop_assert_eq!(result, if covered { Ok(()) } else { Err(SpaceError::NoMemory) });
                // Up to the first hole.
                each(address(at), pages)
                    .all(|page| model.get_mut(&page).map(|page| page.protect(PROTECTIONS[protection])).is_some());
            }
            Step::Migrate { at, pages } => {
                // The model does not change.
                for page in each(address(at), pages) {
                    _ = self.rig.migrate(cpu, space, VirtAddr(page));
                }
            }
            Step::DontNeed { at, pages } => {
                let covered = each(address(at), pages).all(|page| model.contains_key(&page));
                let result = space.madvise_dontneed(cpu, address(at), pages * PAGE);
                prop_assert_eq!(result, if covered { Ok(()) } else { Err(SpaceError::NoMemory) });
                each(address(at), pages).for_each(|page| _ = model.get_mut(&page).map(Page::discard));
            }
            Step::Guard { at, pages, is_guard } => {
                let result = if is_guard {
                    space.madvise_guard(cpu, address(at), pages * PAGE, &|| false)
                } else {
                    space.madvise_unguard(address(at), pages * PAGE)
                };
                let mut expected = Ok(());
                for page in each(address(at), pages) {
                    match model.get_mut(&page) {
                        None => expected = Err(SpaceError::NoMemory),
                        Some(page) => {
                            page.is_guard = is_guard;
                            if is_guard {
                                page.discard();
                            }
                        }
                    }
                }
                prop_assert_eq!(result, expected);
            }
            Step::Advise { at, pages, part, stays } => {
                let advice =
                    [[AreaAdvice::DontFork, AreaAdvice::DoFork], [AreaAdvice::WipeOnFork, AreaAdvice::KeepOnFork]];
                let advice = advice[part][usize::from(stays)];
                let result = space.madvise_areas(cpu, address(at), pages * PAGE, advice);
                let mut expected = Ok(());
                for page in each(address(at), pages) {
                    match model.get_mut(&page) {
                        None => expected = Err(SpaceError::NoMemory),
                        Some(page)
                            if advice == AreaAdvice::WipeOnFork && !matches!(page.backing, Backing::Private(_)) =>
                        {
                            expected = Err(SpaceError::Invalid);
                            break;
                        }
                        Some(page) => page.in_children[part] = stays,
                    }
                }
                prop_assert_eq!(result, expected);
            }
            Step::Want { at, pages } => {
                let request = MapRequest { placement: Placement::Fixed(address(at)), ..private(pages) };
                prop_assert_eq!(space.mmap(cpu, &request), Ok(address(at)));
                prop_assert_eq!(space.madvise_areas(cpu, address(at), pages * PAGE, AreaAdvice::HugePage), Ok(()));
                for page in each(address(at), pages) {
                    model.insert(page, Page { is_wanted: true, ..Page::new(READ_WRITE, Backing::Private(0)) });
                }
            }
            Step::Populate { at, pages, access } => {
                let result = space.madvise_populate(cpu, address(at), pages * PAGE, access, &|| false);
                let mut expected = Ok(());
                let needed = if access == Access::Write { Protection::WRITE } else { Protection::READ };
                for page in each(address(at), pages) {
                    expected = match model.get_mut(&page) {
                        None => Err(SpaceError::NoMemory),
                        Some(page) if !page.protection.contains(needed) => Err(SpaceError::Invalid),
                        Some(page) if page.is_guard || page.is_behind_the_end(ends) => Err(SpaceError::Unusable),
                        Some(page) => {
                            let value = page.value();
                            if let (Backing::Copy(.., own @ None), Access::Write) = (&mut page.backing, access) {
                                *own = Some(value);
                            }
                            Ok(())
                        }
                    };
                    if expected.is_err() {
                        break;
                    }
                }
                prop_assert_eq!(result, expected);
            }
            Step::Remap { at, pages, new_pages, to, may, keeps } => {
                let to = match to {
                    Some(to) => Move::To(address(to)),
                    None if keeps => Move::Near(VirtAddr(0)),
                    None if may => Move::IfNeeded,
                    None => Move::Not,
                };
                let keeps = keeps && !matches!(to, Move::Not | Move::IfNeeded);
                // The model does not know where anonymous shared memory ends.
                let is_anonymous =
                    |page| matches!(model.get(&page).map(|page| &page.backing), Some(Backing::Shared(_, _, None)));
                if pages >= new_pages || !is_anonymous(address(at).0) {
                    let request = Remap::new(address(at), pages * PAGE, new_pages * PAGE, to, keeps);
                    let result = request.and_then(|mut request| space.mremap(cpu, &mut request, &SpaceLimits::NONE));
                    let expected = Remapped { at, pages, new_pages, to, keeps }.model(model, result.ok());
                    prop_assert_eq!(result.map(drop), expected);
                }
            }
            Step::Write { at, value } => {
                let result = space.write_bytes(cpu, address(at), &[value]);
                prop_assert_eq!(result, refusal(model, ends, at, Access::Write));
                if result.is_ok() {
                    let page = model.get_mut(&address(at).0).unwrap();
                    page.write(value);
                    if page.protection.contains(Protection::TAGGED) {
                        set_tag(&self.rig, space, address(at), page.value());
                    }
                }
            }
            Step::Fault { at, access } => {
                prop_assert_eq!(handle_fault(space, cpu, address(at), access), refusal(model, ends, at, access));
                // A store to a page of a file copies it, if not at the first fault.
                if let Some(page) = model.get_mut(&address(at).0)
                    && let value = page.value()
                    && let Backing::Copy(_, number, file, own @ None) = &mut page.backing
                    && let Some(found) = space.page_tables().translate(address(at))
                    && self.files[*file].0.frame(cpu, *number).ok().map(|frame| frame.frame()) != Some(found.physical)
                {
                    *own = Some(value);
                }
            }
            Step::Mincore { at, pages } => {
                let mut present = vec![7; pages as usize];
                let covered = each(address(at), pages).take_while(|page| model.contains_key(page)).count();
                let result = space.mincore(address(at), &mut present);
                prop_assert_eq!(
                    result,
                    if covered == 0 && pages != 0 { Err(SpaceError::NoMemory) } else { Ok(covered) }
                );
                for (page, present) in each(address(at), pages).zip(&present).take(covered) {
                    // Written pages are present; present pages may be zeros.
                    prop_assert!(*present == 1 || *present == 0 && model[&page].value() == 0);
                }
                prop_assert!(present.iter().skip(covered).all(|byte| *byte == 7));
            }
            Step::Fork => {
                if count < 4 {
                    let mut pages = model.clone();
                    pages.retain(|_, page| page.in_children[0]);
                    for page in pages.values_mut().filter(|page| !page.in_children[1]) {
                        page.discard();
                        page.is_guard = false;
                    }
                    let child = (space.fork(cpu).unwrap(), pages);
                    self.spaces.push(child);
                }
            }
            Step::Drop => {
                if count > 1 {
                    drop(self.spaces.swap_remove(which));
                }
            }
            Step::Divide { at } => {
                let is_free = [at - 1, at].map(|page| !model.contains_key(&address(page).0));
                let divided = divide(space, address(at));
                prop_assert!(divided || !is_free[0]);
            }
            Step::MapFile { at, pages, protection, shared, populate, file, first } => {
                let sharing = if shared { Sharing::Shared } else { Sharing::Private };
                let request = MapRequest {
                    placement: Placement::Fixed(address(at)),
                    protection: PROTECTIONS[protection],
                    sharing,
                    populate: if populate { Populate::Now } else { Populate::OnDemand },
                    ..private(pages)
                };
                let (object, contents) = &self.files[file];
                let mapped = MappedFile { object, first_page: first, may_write: true };
                let terms = Terms { file: Some(mapped), ..Terms::NONE };
                prop_assert_eq!(space.mmap_within(cpu, &request, &terms, &|| false), Ok(address(at)));
                let writes = PROTECTIONS[protection].contains(Protection::WRITE);
                for (page, of_file) in each(address(at), pages).zip(first..) {
                    let contents = contents.clone();
                    let backing = if shared {
                        Backing::Shared(contents, of_file, Some(file))
                    } else {
                        // As far as the file goes, from the first page on, each page is copied.
                        let is_copied = populate && writes && of_file < ends[file];
                        let own = is_copied.then(|| contents.borrow().get(&of_file).copied().unwrap_or(0));
                        Backing::Copy(contents, of_file, file, own)
                    };
                    model.insert(page, Page::new(PROTECTIONS[protection], backing));
                }
            }
            Step::Truncate { file, pages } => {
                prop_assert_eq!(self.files[file].0.truncate(cpu, pages * PAGE), Ok(()));
                self.files[file].1.borrow_mut().retain(|&page, _| page < pages);
                for page in self.spaces.iter_mut().flat_map(|(_, model)| model.values_mut()) {
                    if let Backing::Copy(_, of_file, other, own) = &mut page.backing
                        && (*other, *of_file >= pages) == (file, true)
                        && pages <= ends[file]
                    {
                        *own = None;
                    }
                }
            }
            Step::Punch { file, first, pages } => {
                let end = first + pages;
                prop_assert_eq!(self.files[file].0.punch_hole(cpu, first * PAGE, end * PAGE), Ok(()));
                self.files[file].1.borrow_mut().retain(|page, _| !(first..end).contains(page));
            }
            Step::WriteFile { file, page, value } => {
                let written = self.files[file].0.write(cpu, WriteAt::Byte(page * PAGE), &[value], 1, u64::MAX);
                prop_assert_eq!(written, Ok((page * PAGE, 1)));
                let mut contents = self.files[file].1.borrow_mut();
                let before = contents.get(&page).copied().unwrap_or(0);
                contents.insert(page, before & !0xff | Value::from(value));
            }
            Step::Remove { at, pages } => {
                let result = space.madvise_remove(cpu, address(at), pages * PAGE);
                let (mut expected, mut covered) = (Ok(()), true);
                for page in each(address(at), pages) {
                    match model.get(&page).map(|page| &page.backing) {
                        None => covered = false,
                        Some(Backing::Private(_)) => expected = Err(SpaceError::Invalid),
                        Some(Backing::Copy(..)) => expected = Err(SpaceError::NotAllowed),
                        Some(Backing::Shared(contents, page, _)) => drop(contents.borrow_mut().remove(page)),
                    }
                    if expected.is_err() {
                        break;
                    }
                }
                let hole = if covered { Ok(()) } else { Err(SpaceError::NoMemory) };
                prop_assert_eq!(result, expected.and(hole));
            }
        }
        Ok(())
    }

    /// Compares everything.
    fn check(&self) -> Result<(), String> {
        // Frame → how many private entries have it.
        let mut holders: BTreeMap<PhysAddr, u32> = BTreeMap::new();
        for (number, (space, model)) in self.spaces.iter().enumerate() {
            if areas(space) != expected_areas(model) {
                return Err(format!(
                    "space {number}: areas {:x?}, expected {:x?}",
                    areas(space),
                    expected_areas(model)
                ));
            }
            check_entries(self, space, model, &mut holders).map_err(|error| format!("space {number}: {error}"))?;
            let groups = check_groups(space).map_err(|error| format!("space {number}: {error}"))?;
            GROUPS.set(GROUPS.get() + groups);
        }
        for (frame, count) in holders {
            let held = self.rig.spaces.record(frame).references();
            if held != count {
                return Err(format!("{count} entries have {frame}, whose count is {held}"));
            }
        }
        Ok(())
    }
}

/// Random steps, with everything compared after each.
fn play(steps: Vec<(usize, Step)>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    let empty = world.rig.used() - 1 - FILES;
    for (which, step) in steps {
        world.take(which, step)?;
        prop_assert_eq!(world.check(), Ok(()));
    }
    let World { rig, spaces, files } = world;
    drop((spaces, files));
    prop_assert_eq!(rig.spaces.counts(), [0; 3]);
    prop_assert_eq!(rig.used(), empty);
    Ok(())
}

#[test]
fn spaces_are_what_maps_of_their_pages_say() {
    // The seed decides how many groups there are.
    let groups = (0..20).any(|_| {
        for live in [&[][..], &[branch::SIZE_CHANGE]] {
            host::with(live, || {
                let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) };
                TestRunner::new(config).run(&steps(), play).unwrap();
            });
        }
        GROUPS.get() > 100
    });
    assert!(groups, "{}", GROUPS.get());
}

/// A world with a page that was written, forked, and one that only the parent has.
fn forked() -> World {
    let mut world = World::new();
    let map = Step::Map { at: Some(0), pages: 4, protection: 2, shared: false, populate: false };
    for step in [map, Step::Write { at: 0, value: 1 }, Step::Fork, Step::Write { at: 1, value: 2 }] {
        world.take(0, step).unwrap();
    }
    assert_eq!(world.check(), Ok(()));
    world
}

fn flip(world: &World, page: u64, bits: u64) {
    let space = &world.spaces[0].0;
    let (_, cell) = space.page_tables().cell(address(page)).unwrap();
    as_hardware(cell).fetch_xor(bits, core::sync::atomic::Ordering::Relaxed);
}

#[test]
fn the_check_sees_what_is_wrong_with_an_entry() {
    let bits_that_matter =
        [(0, bits::WRITE), (0, bits::UXN), (0, bits::PXN), (0, bits::VALID), (0, bits::SPECIAL), (1, 1 << 12)];
    for (page, bit) in bits_that_matter {
        let world = forked();
        flip(&world, page, bit);
        assert!(world.check().is_err(), "bit {bit:#x} of page {page}");
        flip(&world, page, bit);
        assert_eq!(world.check(), Ok(()));
    }
}

#[test]
fn the_check_sees_a_frame_too_many_holders_and_areas_that_are_not_merged() {
    let world = forked();
    let frame = world.spaces[0].0.tables().translate(address(1)).unwrap().physical;
    world.rig.spaces.record(frame).share();
    assert!(world.check().unwrap_err().contains("others have its frame"));
    assert!(!world.rig.spaces.record(frame).put());

    let mut world = forked();
    world.spaces[0].1.get_mut(&address(2).0).unwrap().protection = Protection::READ;
    assert!(world.check().unwrap_err().contains("areas"));
    world.spaces[0].1.get_mut(&address(2).0).unwrap().protection = READ_WRITE;
    world.spaces[0].1.get_mut(&address(1).0).unwrap().set(9);
    assert!(world.check().unwrap_err().contains("instead of 0x9"));
    world.spaces[0].1.get_mut(&address(1).0).unwrap().set(0x102);
    assert!(world.check().unwrap_err().contains("has the tag 0"));
}
