//! Every legal entry, through everything that may happen to it: what it remembers survives.
//!
//! An entry remembers that its page was used, that it was written, that its frame is not counted, that userfaultfd
//! protects it, that an access is waited for. None of these may be lost, and none may come from nowhere, when its area
//! gets another protection, when it is forked, when an access faults; and when it is zapped one reference to its frame
//! is dropped.

use granule_arch::addr::PhysAddr;
use granule_arch::alternative;
use granule_arch::descriptor::{Attributes, Descriptor, Markers, MemoryType, Migration, MigrationAccess, bits};
use granule_pgtable::{Mmu, Stores};

use super::*;
use crate::mm::space::entry::{attributes, written};
use crate::mm::space::{FaultError, SpaceError};
use crate::platform::features::branch;

const PROTECTIONS: [Protection; 5] =
    [Protection::NONE, Protection::READ, READ_WRITE, READ_EXECUTE, READ_WRITE.and(Protection::EXECUTE)];

#[test]
fn pages_are_created_with_what_their_protection_permits() {
    let frame = PhysAddr(0x4_5678_9000);
    for protection in (0..8).chain(16..24).filter_map(Protection::from_bits) {
        assert_eq!(attributes(protection), Attributes::user(MemoryType::Normal, protection));
        if protection.contains(Protection::WRITE) {
            assert_eq!(written(frame, protection), Descriptor::page(frame, attributes(protection)).dirty());
        }
    }
}

#[test]
fn code_that_is_executed_alone_is_guarded_too() {
    alternative::host::with(&[branch::EXECUTE_ONLY], || {
        for protection in [Protection::EXECUTE, Protection::EXECUTE.and(Protection::GUARDED)] {
            let page = Descriptor::page(PhysAddr(0), attributes(protection));
            assert!(page.0 & bits::USER == 0 && page.is_user_executable());
            assert_eq!(page.0 & bits::GP != 0, protection.contains(Protection::GUARDED));
        }
    });
}

/// A step on the way to an entry.
type Step = fn(Descriptor) -> Descriptor;

/// The state that an entry remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Memory {
    frame: PhysAddr,
    young: bool,
    dirty: bool,
    special: bool,
    uffd_wp: bool,
}

impl Memory {
    fn of(entry: Descriptor) -> Self {
        Self {
            frame: entry.address(),
            young: entry.is_young(),
            dirty: entry.is_dirty(),
            special: entry.is_special(),
            uffd_wp: entry.is_uffd_wp(),
        }
    }
}

/// A space with one page, whose entry the test stores.
pub(super) struct Stage {
    pub(super) rig: Rig,
    pub(super) space: SpaceRef,
    pub(super) start: VirtAddr,
    pub(super) frame: PhysAddr,
}

impl Stage {
    /// With a frame that the entry has, or that of zeros.
    pub(super) fn new(protection: Protection, special: bool) -> Self {
        let rig = Rig::new(2);
        let space = rig.space();
        let start = space.mmap(&rig.cpu, &MapRequest { protection, ..private(1) }).unwrap();
        space.ensure_table(&rig.cpu, start).unwrap();
        let frame = if special { rig.spaces.zeros } else { rig.frames.alloc_zeroed(&rig.cpu).unwrap() };
        Self { rig, space, start, frame }
    }

    pub(super) fn set(&self, entry: Descriptor) {
        let (table, cell) = self.space.page_tables().cell(self.start).unwrap();
        self.space.lock_table(table).note_used(self.start);
        self.space.mmu().store(cell, entry);
    }

    /// Where the entry is.
    pub(super) fn cell_address(&self) -> usize {
        let (_, cell) = self.space.page_tables().cell(self.start).unwrap();
        core::ptr::from_ref(cell).addr()
    }

    pub(super) fn entry_in(&self, space: &Space) -> Descriptor {
        let (_, cell) = space.page_tables().cell(self.start).unwrap();
        space.mmu().load(cell)
    }

    pub(super) fn entry(&self) -> Descriptor {
        self.entry_in(&self.space)
    }
}

/// Calls `check` with every legal entry of a private page of an area, in a space of its own each time.
fn each_entry(mut check: impl FnMut(&Stage, Protection, Descriptor)) {
    for protection in PROTECTIONS {
        for bits in 0..32_u32 {
            let [young, dirty, special, uffd_wp, writable] = core::array::from_fn(|bit| bits >> bit & 1 != 0);
            // The page of zeros was never written; what may be written is in an area where that is so, and neither
            // watched nor special. (Entries that wait for an access: `tag_storage`.)
            let may_be_written = protection.contains(Protection::WRITE) && !special && !uffd_wp;
            if special && dirty || writable && !may_be_written {
                continue;
            }
            let stage = Stage::new(protection, special);
            let mut entry = Descriptor::page(stage.frame, attributes(protection.read_only()));
            let steps: [(bool, Step); 5] = [
                (writable, Descriptor::writable),
                (dirty, Descriptor::dirty),
                (special, Descriptor::special),
                (!young, Descriptor::old),
                (uffd_wp, Descriptor::uffd_wp),
            ];
            for (_, step) in steps.iter().filter(|(is_so, _)| *is_so) {
                entry = step(entry);
            }
            assert_eq!(Memory::of(entry), Memory { frame: stage.frame, young, dirty, special, uffd_wp });
            stage.set(entry);
            check(&stage, protection, entry);
            let Stage { rig, space, .. } = stage;
            drop(space);
            assert_eq!(rig.used(), 0, "{entry:?}: one reference to its frame is dropped");
        }
    }
}

#[test]
fn mprotect_changes_what_is_allowed_and_nothing_that_is_remembered() {
    for to in PROTECTIONS {
        each_entry(|stage, from, before| {
            if from == to {
                return;
            }
            stage.space.mprotect(stage.start, PAGE, to).unwrap();
            let after = stage.entry();
            assert_eq!(Memory::of(after), Memory::of(before), "{before:?} {from:?} to {to:?}: {after:?}");
            assert_eq!(after.is_valid(), to != Protection::NONE);
            let writable = to.contains(Protection::WRITE) && !before.is_special() && !before.is_uffd_wp();
            assert_eq!(after.may_be_written(), writable, "{before:?} {from:?} to {to:?}: {after:?}");
            assert!(!after.is_valid() || after.is_user_executable() == to.contains(Protection::EXECUTE));
        });
    }
}

#[test]
fn a_fork_protects_both_from_writing_and_makes_the_childs_page_old() {
    each_entry(|stage, _, before| {
        let child = stage.space.fork(&stage.rig.cpu).unwrap();
        for (space, young) in [(&stage.space, before.is_young()), (&child, false)] {
            let after = stage.entry_in(space);
            assert_eq!(Memory::of(after), Memory { young, ..Memory::of(before) }, "{before:?}: {after:?}");
            assert_eq!((after.is_valid(), after.may_be_written()), (before.is_valid(), false));
        }
        let held = stage.rig.spaces.record(stage.frame).references();
        assert_eq!(held, if before.is_special() { 1 } else { 2 });
    });
}

#[test]
fn an_access_makes_a_page_young_and_a_store_makes_it_dirty() {
    each_entry(|stage, protection, before| {
        if protection == Protection::NONE {
            return;
        }
        let read = || handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Read).unwrap();
        read();
        let after = stage.entry();
        let expected = Memory { young: true, ..Memory::of(before) };
        assert_eq!(Memory::of(after), expected, "{before:?}: {after:?}");
        assert!(after.is_valid() && after.may_be_written() == before.may_be_written());
        read();
        assert_eq!(stage.entry(), after, "a fault that nothing explains changes nothing");
    });
    each_entry(|stage, protection, before| {
        if !protection.contains(Protection::WRITE) {
            return;
        }
        // The mark is of a userfaultfd that no longer exists: a fault takes it away, and the next one serves the store.
        for _ in 0..if before.is_uffd_wp() { 2 } else { 1 } {
            handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Write).unwrap();
        }
        let after = stage.entry();
        let frame = if before.is_special() { after.address() } else { stage.frame };
        let expected = Memory { frame, young: true, dirty: true, special: false, uffd_wp: false };
        assert_eq!(Memory::of(after), expected, "{before:?}: {after:?}");
        assert!(after.is_valid() && after.is_writable() && frame != stage.rig.spaces.zeros);
    });
}

#[test]
fn what_is_remembered_of_a_page_that_is_not_there_is_no_page() {
    let stage = Stage::new(READ_WRITE, true);
    let marker = Descriptor::from(Markers::UFFD_WP);
    stage.set(marker);
    stage.space.mprotect(stage.start, PAGE, Protection::READ).unwrap();
    let child = stage.space.fork(&stage.rig.cpu).unwrap();
    assert_eq!([stage.entry(), stage.entry_in(&child)], [marker; 2]);
    child.madvise_dontneed(&stage.rig.cpu, stage.start, PAGE).unwrap();
    assert_eq!(stage.entry_in(&child), Descriptor::EMPTY);
    let Stage { rig, space, .. } = stage;
    drop((space, child));
    assert_eq!(rig.used(), 0);
}

const MOVING: Migration =
    Migration { from: PhysAddr(0x4000_0000), access: MigrationAccess::Write, young: true, dirty: true, uffd_wp: false };

/// Entries that are neither empty nor pages: what an access comes to, and what mincore answers.
fn others(stage: &Stage) -> [(Descriptor, Result<(), FaultError>, u8); 10] {
    let page = Descriptor::page(stage.frame, attributes(READ_WRITE));
    let inaccessible = page.modified(attributes(Protection::NONE));
    let unusable = Err(FaultError::Unusable);
    [
        // There is no tag storage.
        (page.fault_on_access(), unusable, 1),
        (inaccessible, Ok(()), 1),
        (Markers::UFFD_WP.into(), Ok(()), 0),
        (Markers::POISONED.into(), Err(FaultError::Poisoned), 0),
        (Markers::GUARD.into(), Err(FaultError::Guard), 0),
        (MOVING.into(), unusable, 1),
        (Migration { access: MigrationAccess::Read, ..MOVING }.into(), unusable, 1),
        // No such type; a reserved encoding; a leaf that is invalid without a reason.
        (Descriptor(7 << 6), unusable, 0),
        (Descriptor(page.0 & !bits::TABLE), unusable, 0),
        (Descriptor(page.0 & !bits::VALID), unusable, 0),
    ]
}

/// With any entry, an access ends, in a page or an error, after a few faults, by EL0 and by the kernel.
#[test]
fn no_entry_makes_an_access_fault_for_ever() {
    let count = others(&Stage::new(READ_WRITE, true)).len();
    for (access, which) in
        [Access::Read, Access::Write].into_iter().flat_map(|access| (0..count).map(move |which| (access, which)))
    {
        let stage = Stage::new(READ_WRITE, true);
        let (entry, wanted, present) = others(&stage)[which];
        let fault = || handle_fault(&stage.space, &stage.rig.cpu, stage.start, access);
        // The page of zeros, which nothing counts, stands for any.
        let is_leaf = entry.address() == stage.frame;
        let entry = if is_leaf { entry.special() } else { entry };
        stage.set(entry);
        let mut byte = [7];
        assert_eq!(stage.space.mincore(stage.start, &mut byte), Ok(1));
        assert_eq!(byte, [present], "{entry:?}");
        let answers = [fault(), fault(), fault()];
        assert_eq!(answers, [wanted; 3], "{entry:?} {access:?}");
        let now = stage.entry();
        let served = now.is_valid() && now.0 & bits::TABLE != 0 && (access == Access::Read || now.is_writable());
        assert_eq!(served, wanted.is_ok(), "{entry:?} {access:?}: {now:?}");
        let kernel = stage.space.write_bytes(&stage.rig.cpu, stage.start, &[1]);
        assert_eq!(kernel, wanted, "{entry:?}");
        stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, PAGE).unwrap();
        // A guard is there for the addresses, and not for what was in them.
        let is_guard = entry == Descriptor::from(Markers::GUARD);
        assert_eq!(stage.entry(), if is_guard { entry } else { Descriptor::EMPTY });
        assert_eq!(stage.space.mincore(stage.start + PAGE, &mut byte), Err(SpaceError::NoMemory));
        let Stage { rig, space, .. } = stage;
        drop(space);
        assert_eq!(rig.used(), 0, "{entry:?}");
    }
}

/// A frame that moves may be written by neither after a fork, nor where its area may not.
#[test]
fn a_page_that_is_moving_is_protected_like_one_that_is_there() {
    let access = |entry: Descriptor| match entry.non_present() {
        granule_arch::descriptor::NonPresent::Migration(moving) => moving.access,
        other => panic!("{other:?}"),
    };
    let stage = Stage::new(READ_WRITE, true);
    stage.set(MOVING.into());
    stage.space.mprotect(stage.start, PAGE, Protection::READ).unwrap();
    assert_eq!(access(stage.entry()), MigrationAccess::ReadExclusive);
    stage.space.mprotect(stage.start, PAGE, READ_WRITE).unwrap();
    stage.set(MOVING.into());
    let child = stage.space.fork(&stage.rig.cpu).unwrap();
    assert_eq!([access(stage.entry()), access(stage.entry_in(&child))], [MigrationAccess::Read; 2]);
}

/// Where the CPUs have pages that may only be executed, EL0 and the kernel may not read them.
#[test]
fn what_may_be_executed_alone_is_not_read_where_the_cpus_have_that() {
    use granule_arch::alternative::host;

    use crate::platform::features::branch;

    for (sites, reads) in [(&[][..], Ok(())), (&[branch::EXECUTE_ONLY][..], Err(FaultError::NotAllowed))] {
        host::with(sites, || {
            let rig = Rig::new(2);
            let space = rig.space();
            let start = rig.map(&space, 2);
            rig.write(&space, start, 1);
            space.mprotect(start, 2 * PAGE, Protection::EXECUTE).unwrap();
            for page in [start, start + PAGE] {
                assert_eq!(handle_fault(&space, &rig.cpu, page, Access::Execute), Ok(()));
                let entry = space.tables().translate(page).unwrap().descriptor;
                assert_eq!(entry.0 & bits::USER != 0, reads.is_ok());
                assert!(entry.is_user_executable() && !entry.may_be_written());
                assert_eq!(handle_fault(&space, &rig.cpu, page, Access::Read), reads);
                assert_eq!(handle_fault(&space, &rig.cpu, page, Access::Write), Err(FaultError::NotAllowed));
                // Another process asks the area, as on Linux.
                assert_eq!(space.read_bytes(&rig.cpu, page, &mut [0]), Err(FaultError::NotAllowed));
            }
        });
    }
}
