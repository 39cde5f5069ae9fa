//! Long sequences of calls on several spaces against plain maps of page → what it is, and everything compared after
//! each: areas, entries, contents, and the holders of each frame.
//!
//! One byte stands for a page. The model has no frames: private pages have a value of their own, shared ones
//! that of their object.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use std::collections::BTreeMap;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_pgtable::PageRange;
use proptest::prelude::*;

use super::*;
use crate::mm::space::{FaultError, SpaceError};

/// Fixed addresses are here: the end of one table and the beginning of the next.
const BASE: u64 = 0x10_0000_0000 - 12 * PAGE;
/// Pages for them.
const PAGES: u64 = 24;
const PROTECTIONS: [Protection; 6] = [
    Protection::NONE,
    Protection::READ,
    READ_WRITE,
    READ_EXECUTE,
    READ_WRITE.and(Protection::EXECUTE),
    Protection::WRITE,
];

/// What an object holds: page → byte.
type Contents = Rc<core::cell::RefCell<BTreeMap<u64, u8>>>;

#[derive(Clone)]
enum Backing {
    Private(u8),
    Shared(Contents, u64),
}

#[derive(Clone)]
struct Page {
    protection: Protection,
    backing: Backing,
}

impl Page {
    fn value(&self) -> u8 {
        match &self.backing {
            Backing::Private(value) => *value,
            Backing::Shared(contents, page) => contents.borrow().get(page).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, value: u8) {
        match &mut self.backing {
            Backing::Private(own) => *own = value,
            Backing::Shared(contents, page) => drop(contents.borrow_mut().insert(*page, value)),
        }
    }
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
        6 => (at(), 1..=255_u8).prop_map(|(at, value)| Step::Write { at, value }),
        2 => (at(), access).prop_map(|(at, access)| Step::Fault { at, access }),
        1 => (at(), pages()).prop_map(|(at, pages)| Step::Mincore { at, pages }),
        1 => Just(Step::Fork),
        1 => Just(Step::Drop),
        3 => (1..PAGES).prop_map(|at| Step::Divide { at }),
    ];
    prop::collection::vec((0..4_usize, step), 1..60)
}

/// Spaces with their models.
struct World {
    rig: Rig,
    spaces: Vec<(SpaceRef, Model)>,
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
        Self { rig, spaces: vec![(space, Model::new())] }
    }

    fn take(&mut self, which: usize, step: Step) -> Result<(), TestCaseError> {
        let cpu = &self.rig.cpu;
        let count = self.spaces.len();
        let which = which % count;
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
                    let backing =
                        if shared { Backing::Shared(contents.clone(), index as u64) } else { Backing::Private(0) };
                    model.insert(page, Page { protection: PROTECTIONS[protection], backing });
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
                    .all(|page| model.get_mut(&page).map(|page| page.protection = PROTECTIONS[protection]).is_some());
            }
            Step::DontNeed { at, pages } => {
                let covered = each(address(at), pages).all(|page| model.contains_key(&page));
                let result = space.madvise_dontneed(cpu, address(at), pages * PAGE);
                prop_assert_eq!(result, if covered { Ok(()) } else { Err(SpaceError::NoMemory) });
                for page in each(address(at), pages) {
                    if let Some(Page { backing: Backing::Private(value), .. }) = model.get_mut(&page) {
                        *value = 0;
                    }
                }
            }
            Step::Write { at, value } => {
                let result = space.write_bytes(cpu, address(at), &[value]);
                prop_assert_eq!(result, refusal(model, at, Access::Write));
                if result.is_ok() {
                    model.get_mut(&address(at).0).unwrap().set(value);
                }
            }
            Step::Fault { at, access } => {
                prop_assert_eq!(handle_fault(space, cpu, address(at), access), refusal(model, at, access));
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
                    // What was written is there; what is there may be zeros.
                    prop_assert!(*present == 1 || *present == 0 && model[&page].value() == 0);
                }
                prop_assert!(present.iter().skip(covered).all(|byte| *byte == 7));
            }
            Step::Fork => {
                if count < 4 {
                    let child = (space.fork(cpu).unwrap(), model.clone());
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
            check_entries(&self.rig, space, model, &mut holders).map_err(|error| format!("space {number}: {error}"))?;
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

/// What an access at a page of the window comes to.
fn refusal(model: &Model, at: u64, access: Access) -> Result<(), FaultError> {
    let page = model.get(&address(at).0).ok_or(FaultError::NotMapped)?;
    let allowed = match access {
        Access::Read => page.protection != Protection::NONE,
        Access::Write => page.protection.contains(Protection::WRITE),
        Access::Execute => page.protection.contains(Protection::EXECUTE),
    };
    if allowed { Ok(()) } else { Err(FaultError::NotAllowed) }
}

/// As few areas as can be.
fn expected_areas(model: &Model) -> Vec<(u64, u64, u8)> {
    let mut areas: Vec<(u64, u64, u8)> = Vec::new();
    let mut before: Option<(u64, &Page)> = None;
    for (&start, page) in model {
        let goes_on = before.is_some_and(|(address, before)| {
            let same = match (&before.backing, &page.backing) {
                (Backing::Private(_), Backing::Private(_)) => true,
                (Backing::Shared(one, index), Backing::Shared(other, next)) => {
                    Rc::ptr_eq(one, other) && index + 1 == *next
                }
                _ => false,
            };
            address + PAGE == start && before.protection == page.protection && same
        });
        match areas.last_mut() {
            Some(area) if goes_on => area.1 = start + PAGE,
            _ => areas.push((start, start + PAGE, page.protection.bits())),
        }
        before = Some((start, page));
    }
    areas
}

fn check_entries(rig: &Rig, space: &Space, model: &Model, holders: &mut BTreeMap<PhysAddr, u32>) -> Result<(), String> {
    // Not by `Space::tables`, which joins the parts.
    let tables = space.page_tables();
    let mut leaves = Vec::new();
    let whole = PageRange::new(USER_START, USER_END - USER_START).unwrap();
    tables.dump(whole, |extent| {
        leaves.extend((0..extent.size).step_by(PAGE as usize).map(|offset| extent.start + offset))
    });
    for &at in &leaves {
        let page = model.get(&at.0).ok_or_else(|| format!("{at} has an entry and no area"))?;
        let found = tables.translate(at).unwrap();
        let (leaf, frame) = (found.descriptor, found.physical);
        // SAFETY: a frame that an entry has; its first byte is the page's.
        let value = unsafe { rig.frames.linear().address(frame).as_ptr::<u8>().read() };
        if value != page.value() {
            return Err(format!("{at} holds {value} instead of {}", page.value()));
        }
        let (protection, private) = (page.protection, matches!(page.backing, Backing::Private(_)));
        let may = |what| protection.contains(what);
        if leaf.is_valid() != (protection != Protection::NONE)
            || leaf.may_be_written() && !may(Protection::WRITE)
            || leaf.is_valid() && leaf.is_user_executable() != may(Protection::EXECUTE)
            || leaf.is_writable() && !leaf.may_be_written()
            || leaf.0 & (bits::PXN | bits::NG) != bits::PXN | bits::NG
        {
            return Err(format!("{at} has {leaf:?}, its area {protection:?}"));
        }
        if leaf.is_special() {
            if frame != rig.spaces.zeros || leaf.may_be_written() {
                return Err(format!("{at} is special, with {leaf:?}"));
            }
        } else if private {
            *holders.entry(frame).or_default() += 1;
            if leaf.may_be_written() && rig.spaces.record(frame).references() != 1 {
                return Err(format!("{at} may be written, and others have its frame"));
            }
        }
    }
    // What is nowhere is zero.
    let lost = model.iter().find(|(at, page)| {
        matches!(page.backing, Backing::Private(value) if value != 0) && !leaves.contains(&VirtAddr(**at))
    });
    lost.map_or(Ok(()), |(at, _)| Err(format!("{at:#x} was written and has no entry")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn spaces_are_what_maps_of_their_pages_say(steps in steps()) {
        let mut world = World::new();
        let empty = world.rig.used() - 1;
        for (which, step) in steps {
            world.take(which, step)?;
            prop_assert_eq!(world.check(), Ok(()));
        }
        let World { rig, spaces } = world;
        drop(spaces);
        prop_assert_eq!(rig.spaces.counts(), [0; 3]);
        prop_assert_eq!(rig.used(), empty);
    }
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
    cell.fetch_xor(bits, core::sync::atomic::Ordering::Relaxed);
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
    assert!(!world.rig.spaces.record(frame).let_go());

    let mut world = forked();
    world.spaces[0].1.get_mut(&address(2).0).unwrap().protection = Protection::READ;
    assert!(world.check().unwrap_err().contains("areas"));
    world.spaces[0].1.get_mut(&address(2).0).unwrap().protection = READ_WRITE;
    world.spaces[0].1.get_mut(&address(1).0).unwrap().set(9);
    assert!(world.check().unwrap_err().contains("instead of 9"));
}
