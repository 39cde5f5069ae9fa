//! Random calls on a space whose tables a device shares: it keeps what it has walked until it is invalidated.
//!
//! A CPU with a stale TLB entry faults and drops it; a device may just fail. So after every call each translation that
//! the device has must match the entry, in both directions: nothing that is gone, nothing that is less than what is
//! allowed now.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::iter::once;
use std::sync::Mutex;
use std::vec::Vec;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection, bits};
use granule_pgtable::{Invalidation, Mmu, PageRange, Stores, Tables, Tlb};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use super::super::{Access, SpaceRef, handle_fault};
use super::groups::check_groups;
use super::{READ_WRITE, Rig, private};
use crate::mm::notifier::{Event, Range, Subscriber, Subscription};
use crate::mm::space::group::GROUP_SIZE;
use crate::mm::space::{AreaAdvice, MapRequest, Move, Placement, Remap, Sharing, SpaceLimits};
use crate::platform::features::branch;
use crate::smp::{Cpu, CpuId};

/// Pages that calls are about, over the boundary of two tables; those from the fifth on may be a contiguous group.
const PAGES: u64 = 22;
const START: VirtAddr = VirtAddr(0x40_0000 - 4 * PAGE);

/// Which call a device ignores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deaf {
    Never,
    /// To the invalidation of its TLB where entries lose something.
    ToInvalidations,
    /// To upgrades, of both kinds.
    ToUpgrades,
    /// To the end of the space.
    ToRelease,
    /// It takes all calls, and an upgrade as permission to write through its own entry.
    InstallsFromUpgrades,
}

/// The entry of a device for an upgrade that must not make anything of it.
const UPGRADED: Descriptor = Descriptor::page(PhysAddr(0), Attributes::user(MemoryType::Normal, READ_WRITE)).dirty();

/// Keeps what it has read.
struct Device {
    deaf: Deaf,
    kept: Mutex<BTreeMap<u64, Descriptor>>,
    /// Whether the call that is going on is an upgrade; where there is none, only the entries count.
    upgrades: Mutex<bool>,
}

impl Device {
    fn forget(&self, start: VirtAddr, end: VirtAddr) {
        self.kept.lock().unwrap().retain(|&page, _| page < start.0 || page >= end.0);
    }
}

impl Subscriber for Device {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event != Event::ProtectionUpgrade {
            return;
        }
        match self.deaf {
            Deaf::ToUpgrades => {}
            Deaf::InstallsFromUpgrades => _ = self.kept.lock().unwrap().insert(range.start.0, UPGRADED),
            _ => self.forget(range.start, range.end),
        }
    }

    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        let deaf = match self.deaf {
            Deaf::ToInvalidations => !*self.upgrades.lock().unwrap(),
            Deaf::ToUpgrades => *self.upgrades.lock().unwrap(),
            Deaf::Never | Deaf::ToRelease | Deaf::InstallsFromUpgrades => false,
        };
        if !deaf {
            self.forget(start, end);
        }
    }

    fn release(&self) {
        if self.deaf != Deaf::ToRelease {
            self.kept.lock().unwrap().clear();
        }
    }
}

/// One thing that is done to the space.
#[derive(Clone, Copy, Debug)]
enum Call {
    Map {
        page: u64,
        pages: u64,
        writable: bool,
        shared: bool,
    },
    Unmap {
        page: u64,
        pages: u64,
    },
    Move {
        page: u64,
        pages: u64,
        to: u64,
    },
    Protect {
        page: u64,
        pages: u64,
        protection: u8,
    },
    Discard {
        page: u64,
        pages: u64,
    },
    Migrate {
        page: u64,
    },
    Fault {
        page: u64,
        access: Access,
    },
    /// Fresh memory for which blocks are wanted, or else a group.
    Want {
        page: u64,
    },
    /// The access flag is cleared, and the TLBs are invalidated, as reclaim does.
    Age {
        page: u64,
    },
    Fork,
    /// Drop the child of the last fork.
    ChildExits,
    /// The device reads, and keeps what it has read.
    DeviceReads {
        page: u64,
    },
    /// The space ends.
    Exit,
}

fn call() -> impl Strategy<Value = Call> {
    let range = || (0..PAGES, 1..=PAGES).prop_map(|(page, pages)| (page, pages.min(PAGES - page)));
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Execute)];
    prop_oneof![
        2 => (range(), any::<[bool; 2]>()).prop_map(|((page, pages), [writable, shared])| {
            Call::Map { page, pages, writable, shared }
        }),
        1 => range().prop_map(|(page, pages)| Call::Unmap { page, pages }),
        2 => (range(), 0..PAGES).prop_map(|((page, pages), to)| Call::Move { page, pages, to }),
        2 => (range(), 0_u8..8).prop_map(|((page, pages), protection)| Call::Protect { page, pages, protection }),
        1 => range().prop_map(|(page, pages)| Call::Discard { page, pages }),
        3 => (0..PAGES).prop_map(|page| Call::Migrate { page }),
        6 => (0..PAGES, access).prop_map(|(page, access)| Call::Fault { page, access }),
        2 => (0..5_u64).prop_map(|page| Call::Want { page }),
        2 => (0..PAGES).prop_map(|page| Call::Age { page }),
        1 => Just(Call::Fork),
        1 => Just(Call::ChildExits),
        8 => (0..PAGES).prop_map(|page| Call::DeviceReads { page }),
    ]
}

/// The bits that a device without updates of its own uses, the address among them.
const HARDWARE: u64 = bits::VALID | bits::ADDRESS | bits::AF | bits::RDONLY | bits::USER | bits::UXN;

/// A space, its children, and a device that shares its tables.
struct Stage<'r> {
    rig: &'r Rig,
    space: SpaceRef,
    child: Option<SpaceRef>,
    device: Subscription<Device, SpaceRef>,
}

impl<'r> Stage<'r> {
    fn new(rig: &'r Rig, deaf: Deaf) -> Self {
        let space = rig.space();
        let device = Device { deaf, kept: Mutex::default(), upgrades: Mutex::new(false) };
        let device = Subscription::new(space.clone(), device, 0).unwrap();
        Self { rig, space, child: None, device }
    }

    fn entry(&self, page: VirtAddr) -> Descriptor {
        self.space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
    }

    fn apply(&mut self, call: Call) {
        let (space, cpu) = (&self.space, &self.rig.cpu);
        let at = |page: u64| START + page * PAGE;
        *self.device.upgrades.lock().unwrap() = matches!(call, Call::Fault { .. });
        // The test does not check whether a call is refused.
        match call {
            Call::Map { page, pages, writable, shared } => {
                let write = if writable { Protection::WRITE } else { Protection::NONE };
                let request = MapRequest {
                    placement: Placement::Fixed(at(page)),
                    protection: Protection::READ.and(write),
                    sharing: if shared { Sharing::Shared } else { Sharing::Private },
                    ..private(pages)
                };
                space.mmap(cpu, &request).unwrap();
            }
            Call::Unmap { page, pages } => space.munmap(cpu, at(page), pages * PAGE).unwrap(),
            Call::Move { page, pages, to } => {
                if let Ok(mut there) = Remap::new(at(page), pages * PAGE, pages * PAGE, Move::To(at(to)), false) {
                    _ = space.mremap(cpu, &mut there, &SpaceLimits::NONE);
                }
            }
            Call::Protect { page, pages, protection } => {
                let protection = Protection::from_bits(protection).unwrap();
                _ = space.mprotect(at(page), pages * PAGE, protection);
            }
            Call::Discard { page, pages } => _ = space.madvise_dontneed(cpu, at(page), pages * PAGE),
            Call::Migrate { page } => _ = self.rig.migrate(cpu, space, at(page)),
            Call::Fault { page, access } => _ = handle_fault(space, cpu, at(page), access),
            Call::Age { page } => {
                if let Some((_, cell)) = space.page_tables().cell(at(page)) {
                    let mmu = space.mmu();
                    let entry = mmu.load(cell);
                    if entry.is_valid() {
                        // A group as one.
                        let is_group = entry.is_contiguous();
                        let bytes = if is_group { GROUP_SIZE } else { PAGE };
                        let first = at(page).align_down(bytes);
                        let found = space.page_tables().cells(first, (bytes / PAGE) as usize).unwrap();
                        found.cells.iter().for_each(|cell| mmu.store(cell, mmu.load(cell).old()));
                        let range = PageRange::new(first, bytes).unwrap();
                        space.tlb().invalidate(mmu, once(Invalidation { range, tables: Tables::Kept, level: None }));
                    }
                }
            }
            Call::Want { page } => {
                let request = MapRequest { placement: Placement::Fixed(at(page)), ..private(PAGES - page) };
                space.mmap(cpu, &request).unwrap();
                space.madvise_areas(cpu, at(page), (PAGES - page) * PAGE, AreaAdvice::HugePage).unwrap();
            }
            Call::Fork => self.child = Some(space.fork(cpu).unwrap()),
            Call::ChildExits => self.child = None,
            Call::DeviceReads { page } => {
                let entry = self.entry(at(page));
                if entry.is_valid() && entry.is_young() {
                    // Of a group it may keep all, by any of its entries.
                    let mut kept = self.device.kept.lock().unwrap();
                    let (bytes, at) = (if entry.is_contiguous() { GROUP_SIZE } else { PAGE }, at(page));
                    for start in (at.align_down(bytes).0..).step_by(PAGE as usize).take((bytes / PAGE) as usize) {
                        let entry = Descriptor(entry.0.wrapping_add(start.wrapping_sub(at.0)));
                        kept.entry(start).or_insert(entry);
                    }
                }
            }
            Call::Exit => space.release(cpu),
        }
    }

    /// The first page of which the device has something else than its entry.
    fn stale(&self) -> Option<(u64, Descriptor, Descriptor)> {
        let kept = self.device.kept.lock().unwrap();
        let mut pairs = kept.iter().map(|(&page, &kept)| (page, kept, self.entry(VirtAddr(page))));
        pairs.find(|(_, kept, entry)| (kept.0 ^ entry.0) & HARDWARE != 0)
    }
}

std::thread_local! {
    /// Groups that were met.
    static GROUPS: Cell<usize> = const { Cell::new(0) };
}

fn check(rig: &Rig, deaf: Deaf, calls: &[Call]) -> Result<(), TestCaseError> {
    let mut stage = Stage::new(rig, deaf);
    for (index, &call) in calls.iter().chain([&Call::Exit]).enumerate() {
        stage.apply(call);
        GROUPS.set(GROUPS.get() + check_groups(&stage.space).map_err(TestCaseError::fail)?);
        if let Some((page, kept, entry)) = stage.stale() {
            let page = (page - START.0) / PAGE;
            return Err(TestCaseError::fail(std::format!(
                "after call {index}, {call:?}, the device has {kept:?} for page {page}, and its entry is {entry:?}"
            )));
        }
    }
    Ok(())
}

fn sequences() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec(call(), 1..120)
}

fn run(deaf: Deaf, cases: u32) -> Result<(), TestError<Vec<Call>>> {
    let rig = Rig::new(4);
    let used = rig.used();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
    runner.run(&sequences(), |calls| {
        check(&rig, deaf, &calls)?;
        assert_eq!(rig.used(), used, "frames that are not given back");
        Ok(())
    })
}

#[test]
fn a_device_never_has_what_the_entry_does_not_say() {
    // The seed decides how many groups there are.
    let groups = (0..20).any(|_| {
        for live in [&[][..], &[branch::SIZE_CHANGE]] {
            host::with(live, || run(Deaf::Never, 150).unwrap());
        }
        GROUPS.get() > 100
    });
    assert!(groups, "{}", GROUPS.get());
}

/// The check above sees each kind of call that is ignored.
#[test]
fn a_device_that_does_not_hear_is_caught() {
    for (deaf, reason) in
        [(Deaf::ToInvalidations, "the device has"), (Deaf::ToUpgrades, "Fault"), (Deaf::ToRelease, "Exit")]
    {
        match run(deaf, 2_000) {
            Err(TestError::Fail(why, calls)) => {
                assert!(why.message().contains(reason), "{deaf:?}: {why}, by {calls:?}");
            }
            other => panic!("{deaf:?}: nothing was noticed: {other:?}"),
        }
    }
}

/// Changes the space in its upgrade event: between the unlock and the calls to those after it in the chain.
struct Meddler {
    space: SpaceRef,
    change: fn(&SpaceRef),
}

impl Subscriber for Meddler {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::ProtectionUpgrade {
            (self.change)(&self.space);
        }
    }
}

/// Whether `deaf` keeps something stale when `mprotect`, `munmap` or `madvise` come before its upgrade event.
fn stale_after_a_late_event(deaf: Deaf) -> [bool; 3] {
    let changes: [fn(&SpaceRef); 3] = [
        |space| space.mprotect(START, PAGE, Protection::READ).unwrap(),
        |space| space.munmap(&Cpu::new(CpuId(0)), START, PAGE).unwrap(),
        |space| space.madvise_dontneed(&Cpu::new(CpuId(0)), START, PAGE).unwrap(),
    ];
    changes.map(|change| {
        let rig = Rig::new(4);
        let mut stage = Stage::new(&rig, deaf);
        stage.apply(Call::Map { page: 0, pages: 1, writable: true, shared: false });
        stage.apply(Call::Fault { page: 0, access: Access::Write });
        stage.apply(Call::Fork);
        stage.apply(Call::ChildExits);
        stage.apply(Call::DeviceReads { page: 0 });
        let before = stage.entry(START);
        assert!(!before.may_be_written());
        let meddler = Meddler { space: stage.space.clone(), change };
        let meddler = Subscription::<_, SpaceRef>::new(stage.space.clone(), meddler, 1).unwrap();
        stage.apply(Call::Fault { page: 0, access: Access::Write });
        assert!(!stage.entry(START).may_be_written(), "the change came after the upgrade");
        let stale = stage.stale().is_some();
        drop(meddler);
        stage.apply(Call::Exit);
        stale
    })
}

/// No lock is held at an upgrade event, so the page may be protected or gone by then. The event invalidates, and does
/// no more.
#[test]
fn an_upgrade_event_may_come_when_the_page_is_protected_or_gone() {
    assert_eq!(stale_after_a_late_event(Deaf::Never), [false; 3]);
}

#[test]
fn a_device_that_installs_from_an_upgrade_is_caught() {
    assert_eq!(stale_after_a_late_event(Deaf::InstallsFromUpgrades), [true; 3]);
}
