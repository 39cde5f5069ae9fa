//! Registers of a device: what they are in a space, what each call answers, and that nothing has them once they are
//! revoked.

use granule_arch::descriptor::{Attributes, Descriptor, MemoryType};
use granule_pgtable::Stores;

use super::*;
use crate::mm::counted::Counted;
use crate::mm::notifier::recording::{Notified, Recording};
use crate::mm::notifier::{Event, Subscription};
use crate::mm::space::{
    AreaAdvice, Discard, FaultError, Locking, MappedFile, Move, Object, Remap, SpaceError, SpaceLimits, Terms, Unneeded,
};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
/// Where the device is: far from all memory.
const DEVICE: PhysAddr = PhysAddr(0x10_0800_0000);

fn map(rig: &Rig, space: &Space, registers: &Counted<Object>, at: VirtAddr) -> Result<VirtAddr, SpaceError> {
    let request = MapRequest { placement: Placement::Fixed(at), sharing: Sharing::Shared, ..private(1) };
    let file = Some(MappedFile { object: registers, first_page: 0, may_write: true });
    space.mmap_within(&rig.cpu, &request, &Terms { file, ..Terms::NONE }, &|| false)
}

/// A space that has mapped registers, and their object.
fn mapped(rig: &Rig) -> (SpaceRef, Counted<Object>) {
    let (space, registers) = (rig.space(), rig.spaces.create_registers(&rig.cpu, DEVICE).unwrap());
    map(rig, &space, &registers, START).unwrap();
    (space, registers)
}

fn entry(space: &Space, at: VirtAddr) -> Descriptor {
    space.tables().translate(at).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

fn page(protection: Protection) -> Descriptor {
    Descriptor::page(DEVICE, Attributes::user(MemoryType::DeviceNGnRE, protection)).special()
}

/// Drops all; nothing is left.
fn end(rig: &Rig, space: SpaceRef, registers: Counted<Object>) {
    drop((space, registers));
    assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
    assert_eq!(rig.frames.stats().refused, 0);
}

#[test]
fn the_first_access_maps_them_read_only_and_a_store_makes_them_writable() {
    let rig = Rig::new(2);
    let (space, registers) = mapped(&rig);
    let fault = |access| handle_fault(&space, &rig.cpu, START, access);
    for _ in 0..2 {
        assert_eq!(fault(Access::Write), Ok(()));
        assert_eq!(entry(&space, START), page(Protection::READ), "whatever the access is");
        assert_eq!(fault(Access::Write), Ok(()));
        assert_eq!(entry(&space, START), page(READ_WRITE).dirty());
        assert_eq!(space.madvise_dontneed(&rig.cpu, START, PAGE), Err(SpaceError::Invalid));
        space.munmap(&rig.cpu, START, PAGE).unwrap();
        assert_eq!(entry(&space, START), Descriptor::EMPTY);
        map(&rig, &space, &registers, START).unwrap();
    }
    assert_eq!(fault(Access::Execute), Err(FaultError::NotAllowed));
    space.populate_again(&rig.cpu, START, PAGE, &|| false);
    assert_eq!(entry(&space, START), Descriptor::EMPTY, "populate brings memory alone");
    // The kernel's own accesses go by the linear map, which has no registers.
    for _ in 0..2 {
        assert_eq!(space.read_bytes(&rig.cpu, START, &mut [0]), Err(FaultError::Unusable));
        assert_eq!(space.write_bytes(&rig.cpu, START, &[0]), Err(FaultError::Unusable));
        assert_eq!(fault(Access::Read), Ok(()));
    }
    end(&rig, space, registers);
}

/// The device reads as EL1 does whatever the program makes it read.
#[test]
fn no_page_is_execute_only_beside_registers_where_the_cpus_have_such_pages() {
    use granule_arch::alternative::host;

    use crate::platform::features::branch;

    for (sites, answer) in [(&[][..], Ok(())), (&[branch::EXECUTE_ONLY][..], Err(SpaceError::NotAllowed))] {
        host::with(sites, || {
            let rig = Rig::new(2);
            let (space, registers) = (rig.space(), rig.spaces.create_registers(&rig.cpu, DEVICE).unwrap());
            let start = rig.map(&space, 3);
            rig.write(&space, start, 1);
            let protect = |pages, protection| space.mprotect(start, pages * PAGE, protection);
            let map = || map(&rig, &space, &registers, START).map(drop);
            for tags in [Protection::NONE, Protection::TAGGED] {
                protect(1, Protection::EXECUTE.and(tags)).unwrap();
                assert_eq!(map(), answer);
                if answer.is_ok() {
                    space.munmap(&rig.cpu, START, PAGE).unwrap();
                }
            }
            protect(1, READ_EXECUTE).unwrap();
            map().unwrap();
            // In one area, cut, and over two; also when the registers are there no more, but the device may be at it.
            for _ in 0..2 {
                for pages in [1, 3] {
                    assert_eq!(protect(pages, Protection::EXECUTE), answer);
                    protect(pages, READ_EXECUTE).unwrap();
                }
                let request = MapRequest { protection: Protection::EXECUTE, ..private(1) };
                assert_eq!(space.mmap(&rig.cpu, &request).map(drop), answer);
                let _ = space.munmap(&rig.cpu, START, PAGE);
            }
            // A child has no registers.
            let child = space.fork(&rig.cpu).unwrap();
            drop((space, registers));
            child.mprotect(start, PAGE, Protection::EXECUTE).unwrap();
        });
    }
}

#[test]
fn they_stay_registers_under_every_protection() {
    let rig = Rig::new(2);
    let (space, registers) = mapped(&rig);
    let fault = |access| handle_fault(&space, &rig.cpu, START, access);
    let protect = |protection| space.mprotect(START, PAGE, protection);
    for first in [Access::Read, Access::Write] {
        fault(first).unwrap();
        fault(first).unwrap();
        let is_dirty = entry(&space, START).is_dirty();
        protect(Protection::READ).unwrap();
        let with_dirt = |entry: Descriptor| if is_dirty { entry.dirty() } else { entry };
        assert_eq!(entry(&space, START), with_dirt(page(Protection::READ)));
        assert_eq!(fault(Access::Write), Err(FaultError::NotAllowed));
        protect(Protection::NONE).unwrap();
        assert!(!entry(&space, START).is_valid());
        assert_eq!(fault(Access::Read), Err(FaultError::NotAllowed));
        for protection in [READ_EXECUTE, Protection::EXECUTE, READ_WRITE.and(Protection::EXECUTE)] {
            assert_eq!(protect(protection), Err(SpaceError::NotAllowed));
        }
        protect(READ_WRITE).unwrap();
        assert!(!entry(&space, START).may_be_written(), "a store is announced by its fault");
        fault(Access::Read).unwrap();
        assert_eq!(entry(&space, START), with_dirt(page(Protection::READ)));
        // As of a page that waits for an access.
        let (_, cell) = space.page_tables().cell(START).unwrap();
        let attributes = Attributes::user(MemoryType::DeviceNGnRE, Protection::NONE);
        space.mmu().store(cell, page(Protection::READ).modified(attributes));
        fault(Access::Read).unwrap();
        assert_eq!(entry(&space, START), page(Protection::READ));
        while !entry(&space, START).is_writable() {
            fault(Access::Write).unwrap();
        }
        assert_eq!(entry(&space, START), page(READ_WRITE).dirty());
    }
    end(&rig, space, registers);
}

#[test]
fn calls_leave_them_alone_as_linux_does() {
    let rig = Rig::new(2);
    let (space, registers) = mapped(&rig);
    let cpu = &rig.cpu;
    let is_killed = || false;
    let memory = START + PAGE;
    let fixed = MapRequest { placement: Placement::Fixed(memory), ..private(1) };
    space.mmap(cpu, &fixed).unwrap();
    handle_fault(&space, cpu, START, Access::Read).unwrap();
    let before = entry(&space, START);
    let child = space.fork(cpu).unwrap();
    assert_eq!(handle_fault(&child, cpu, START, Access::Read), Err(FaultError::NotMapped), "a child has none");
    drop(child);
    let invalid = Err(SpaceError::Invalid);
    assert_eq!(space.madvise_dontneed(cpu, START, PAGE), invalid);
    for what in [Discard::All, Discard::Unlocked, Discard::Anonymous] {
        assert_eq!(space.madvise_discard(cpu, START, PAGE, what), invalid);
    }
    assert_eq!(space.madvise_unneeded(&rig.cpu, START, PAGE, Unneeded::Out), invalid);
    assert_eq!(space.madvise_guard(cpu, START, PAGE, &is_killed), invalid);
    for access in [Access::Read, Access::Write] {
        assert_eq!(space.madvise_populate(cpu, START, PAGE, access, &is_killed), invalid);
    }
    assert_eq!(space.madvise_remove(cpu, START, PAGE), Err(SpaceError::NoMemoryFile));
    for advice in [AreaAdvice::DoFork, AreaAdvice::DoDump, AreaAdvice::WipeOnFork] {
        assert_eq!(space.madvise_areas(cpu, START, PAGE, advice), invalid, "{advice:?}");
    }
    for advice in [AreaAdvice::DontFork, AreaAdvice::KeepOnFork, AreaAdvice::HugePage, AreaAdvice::NoHugePage] {
        assert_eq!(space.madvise_areas(cpu, START, PAGE, advice), Ok(()), "{advice:?}");
    }
    // Locks of what lies beside; nothing is brought here, nor locked.
    space.mlock(cpu, START, 2 * PAGE, Locking::Now, &is_killed).unwrap();
    assert_eq!(space.msync(START, PAGE, true, false), Ok(()));
    assert_eq!(space.madvise_dontneed(cpu, memory, PAGE), invalid, "it is locked");
    space.mlock_all(cpu, Locking::None, &is_killed);
    assert_eq!(space.madvise_dontneed(cpu, memory, PAGE), Ok(()));
    let mut present = [9; 2];
    assert_eq!(space.mincore(START, &mut present), Ok(2));
    assert_eq!(present, [0, 0], "they are no memory");
    assert_eq!(space.madvise_unguard(START, PAGE), invalid);
    assert_eq!(space.msync(START, PAGE, true, false), Ok(()));
    assert_eq!(space.msync(START, PAGE, false, true), invalid);
    assert_eq!(space.msync(memory, PAGE, true, true), Ok(()));
    assert_eq!(entry(&space, START), before);

    let to = START + 8 * PAGE;
    let remap = |from, bytes, new, to, keeps| {
        space.mremap(cpu, &mut Remap::new(from, bytes, new, to, keeps).unwrap(), &SpaceLimits::NONE)
    };
    assert_eq!(remap(START, PAGE, PAGE, Move::To(to), true), Err(SpaceError::Invalid));
    assert_eq!(remap(START, PAGE, 2 * PAGE, Move::IfNeeded, false), Err(SpaceError::NoArea));
    assert_eq!(remap(START, 0, PAGE, Move::IfNeeded, false), Err(SpaceError::NoArea));
    assert_eq!(remap(START, PAGE, PAGE, Move::To(to), false), Ok(to));
    assert_eq!((entry(&space, START), entry(&space, to)), (Descriptor::EMPTY, before));

    registers.revoke(cpu);
    assert_eq!(entry(&space, to), Descriptor::EMPTY, "wherever they have moved");
    end(&rig, space, registers);
}

/// Announced and invalidated by each space, before the call is over; and again by nothing.
#[test]
fn what_is_revoked_is_told_and_comes_never_again() {
    let rig = Rig::new(2);
    let (space, registers) = mapped(&rig);
    let listener = Subscription::<Recording, SpaceRef>::new(space.clone(), Recording::default(), 0).unwrap();
    (0..2).for_each(|_| handle_fault(&space, &rig.cpu, START, Access::Write).unwrap());
    let told = |listener: &Subscription<Recording, SpaceRef>| -> Vec<Notified> {
        listener.take().into_iter().map(|call| call.notified).collect()
    };
    let upgrade = told(&listener);
    assert!(upgrade.contains(&Notified::Start(Event::ProtectionUpgrade)), "{upgrade:?}");
    registers.revoke(&rig.cpu);
    assert_eq!(entry(&space, START), Descriptor::EMPTY);
    let gone = told(&listener);
    assert_eq!((gone.first(), gone.last()), (Some(&Notified::Start(Event::Clear)), Some(&Notified::End(Event::Clear))));
    assert!(gone.contains(&Notified::SecondaryTlbs), "{gone:?}");
    for access in [Access::Read, Access::Write] {
        assert_eq!(handle_fault(&space, &rig.cpu, START, access), Err(FaultError::Unusable));
    }
    // Another mapping of the same, as a call makes it that was under way.
    map(&rig, &space, &registers, START + PAGE).unwrap();
    assert_eq!(handle_fault(&space, &rig.cpu, START + PAGE, Access::Read), Err(FaultError::Unusable));
    drop(listener);
    end(&rig, space, registers);
}

/// A space that ends: they are unmapped while its subscribers still listen.
#[test]
fn a_space_that_ends_tells_of_them_before_it_releases() {
    let rig = Rig::new(2);
    let (space, registers) = mapped(&rig);
    map(&rig, &space, &registers, START + 4 * PAGE).unwrap();
    let pages = [START, START + 4 * PAGE];
    pages.iter().for_each(|&at| handle_fault(&space, &rig.cpu, at, Access::Read).unwrap());
    let listener = Subscription::<Recording, SpaceRef>::new(space.clone(), Recording::default(), 0).unwrap();
    space.release(&rig.cpu);
    let calls = listener.take();
    let unmapped: Vec<_> =
        calls.iter().filter(|call| call.notified == Notified::Start(Event::Unmap)).map(|call| call.range).collect();
    assert_eq!(unmapped, pages.map(|at| (at.0, at.0 + PAGE)));
    let place = |wanted: Notified| calls.iter().rposition(|call| call.notified == wanted).expect("a call");
    assert!(place(Notified::End(Event::Unmap)) < place(Notified::Release), "{calls:?}");
    drop(listener);
    end(&rig, space, registers);
}

/// The work of a CPU, or of another one at each step of it.
type Work = fn(&Space, &Object, &Cpu);

#[test]
fn what_is_revoked_at_any_step_is_in_no_entry() {
    const READ: Work = |space, _, cpu| _ = handle_fault(space, cpu, START, Access::Read);
    const WRITE: Work = |space, _, cpu| _ = handle_fault(space, cpu, START, Access::Write);
    const PROTECT: Work = |space, _, _| {
        space.mprotect(START, PAGE, Protection::NONE).unwrap();
        space.mprotect(START, PAGE, READ_WRITE).unwrap();
    };
    const UNMAP: Work = |space, _, cpu| space.munmap(cpu, START, PAGE).unwrap();
    const END: Work = |space, _, cpu| space.release(cpu);
    const REVOKE: Work = |_, registers, cpu| registers.revoke(cpu);
    let rig = Rig::new(2);
    let mut moments = 0;
    let pairs = [(READ, REVOKE), (WRITE, REVOKE), (PROTECT, REVOKE), (UNMAP, REVOKE), (END, REVOKE)];
    for (work, other) in pairs.into_iter().chain([(REVOKE, READ), (REVOKE, WRITE)]) {
        for touches in 0..3 {
            for nth in 0.. {
                let (space, registers) = mapped(&rig);
                // Not the only page of its table, which may be freed else.
                (0..touches).for_each(|_| handle_fault(&space, &rig.cpu, START, Access::Write).unwrap());
                let (there, object) = (space.clone(), registers.clone());
                let other = move |cpu: &Cpu| other(&there, &object, cpu);
                let met = meet(&[&space], START, || work(&space, &registers, &rig.cpu), other, nth);
                let is_present = entry(&space, START).is_present();
                assert!(!is_present || !met, "{touches} touches, moment {nth}");
                registers.revoke(&rig.cpu);
                assert!(!entry(&space, START).is_present());
                end(&rig, space, registers);
                moments += 1;
                if !met {
                    break;
                }
            }
        }
    }
    assert!(moments > 60, "{moments} moments");
}
