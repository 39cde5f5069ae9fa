//! The order of the steps of each call: what another CPU, or the device, finds at each barrier in front of a command.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_pgtable::host::Operation;

use super::super::{BindError, Direction, NotifyMode, Resolution};
use super::{Outcome, PAGE, Rig, STREAM, UNMAPPED, at, entry};
use crate::mm::kernel::record::record;
use crate::mm::notifier::{Range, Subscriber, Subscription};
use crate::mm::space::{Access, SpaceHandle};

const MEMORY: PhysAddr = PhysAddr(0x4000_0000);

/// CMD_TLBI_NH_VA, and Leaf in its second word.
const TLBI_VA: u64 = 0x12;
const LEAF: u64 = 1;

/// Opcode, ASID, and whether leaves alone are meant, of the invalidations by address since the last call.
fn by_address(rig: &Rig) -> Vec<(u64, u16, bool)> {
    let commands = rig.smmu.take_commands();
    let by_address = commands.iter().filter(|[low, _]| low & 0xff == TLBI_VA);
    by_address.map(|[low, high]| (low & 0xff, (low >> 48) as u16, high & LEAF != 0)).collect()
}

fn bound_asid(rig: &Rig) -> u16 {
    let mut asid = None;
    rig.iommu.for_each_device(|device| asid = device.bound);
    asid.expect("it is bound")
}

/// Map: the entries, then DSB ISHST, and no command. Unmap: the entries, DSB ISHST, and leaves alone under the domain's
/// number.
#[test]
fn an_entry_is_complete_before_the_device_or_a_command_relies_on_it() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        // The tables are there, and stay.
        device.map(&rig.cpu, MEMORY, 8, Direction::Both).unwrap();
        let mut asid = 0;
        rig.iommu.for_each_device(|device| asid = device.asid);
        rig.smmu.take_commands();
        let is_write = |operation: &Operation| matches!(operation, Operation::Write { .. });
        let mut address = None;
        let mapped = record(|| address = device.map(&rig.cpu, MEMORY, 2 * PAGE as usize, Direction::Both).ok());
        assert!(
            mapped.len() == 3 && mapped[..2].iter().all(is_write) && mapped[2] == Operation::DsbIshst,
            "{mapped:?}"
        );
        assert!(rig.smmu.take_commands().is_empty());
        let unmapped = record(|| device.unmap(&rig.cpu, address.unwrap(), 2 * PAGE as usize));
        assert_eq!(unmapped.last(), Some(&Operation::DsbIshst), "{unmapped:?}");
        assert_eq!(unmapped.iter().filter(|operation| is_write(operation)).count(), 2);
        assert_eq!(by_address(&rig), [(TLBI_VA, asid, true)]);
    });
}

/// Tables may have gone with the pages of a space, so the SMMU's walk caches go too.
#[test]
fn a_change_of_a_bound_space_is_an_invalidation_of_tables_too() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(2));
        device.bind(&rig.cpu, &space).unwrap();
        let asid = bound_asid(&rig);
        rig.smmu.take_commands();
        space.munmap(&rig.cpu, at(0), 2 * PAGE).unwrap();
        assert_eq!(by_address(&rig), [(TLBI_VA, asid, false)]);
    });
}

/// The ASIDs are the SMMU's own: it takes part in no broadcast of a CPU (CR2.PTM), and refuses streams that it has no
/// entry for aloud (CR2.RECINVSID).
#[test]
fn the_smmu_takes_no_part_in_the_cpus_broadcasts() {
    let rig = Rig::new(NotifyMode::Tlb);
    assert_eq!(rig.smmu.register(0x2c), 1 << 2 | 1 << 1);
}

/// Until the command is complete a device may reach what the addresses were, so none of them is another transfer's.
#[test]
fn addresses_are_given_back_when_they_are_invalidated() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = Arc::new(rig.attach());
        let address = device.map(&rig.cpu, MEMORY, 8, Direction::Both).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let take = {
            let (seen, device) = (seen.clone(), device.clone());
            let cpu = crate::smp::Cpu::new(crate::smp::CpuId(1));
            move || seen.lock().unwrap().push(device.map(&cpu, MEMORY, 8, Direction::Both).unwrap())
        };
        rig.smmu.at_each_barrier(take, || device.unmap(&rig.cpu, address, 8));
        let seen = core::mem::take(&mut *seen.lock().unwrap());
        assert!(!seen.is_empty() && !seen.contains(&address), "{seen:?}");
        assert_eq!(device.map(&rig.cpu, MEMORY, 8, Direction::Both), Ok(address), "it is free now");

        // The window's, of a page that driver and device have in common.
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        let at = page.address().0;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let take = {
            let (seen, iommu) = (seen.clone(), rig.iommu);
            move || {
                let taken = iommu.window.lock().take().unwrap();
                iommu.window.lock().give_back(taken);
                seen.lock().unwrap().push(taken.0);
            }
        };
        let used = rig.frames.stats().used;
        rig.smmu.at_each_barrier(take, || device.free_coherent(&rig.cpu, page));
        assert!(rig.frames.stats().used < used);
        let seen = core::mem::take(&mut *seen.lock().unwrap());
        assert!(!seen.is_empty() && !seen.contains(&at), "{seen:x?}");
    });
}

/// A fault that a device meets until its stream is aborted is drained: it is no fault of the stream's next owner.
#[test]
fn what_a_device_meets_while_it_is_detached_is_not_its_successors() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        let met = Arc::new(Mutex::new(Vec::new()));
        let meet = {
            let (met, smmu) = (met.clone(), rig.smmu.clone());
            move || met.lock().unwrap().push(smmu.access(STREAM, at(20).0, true))
        };
        rig.smmu.at_each_barrier(meet, || drop(device));
        assert!(met.lock().unwrap().contains(&UNMAPPED), "{met:?}");
        let resolution = rig.attach().resolve(&rig.cpu, at(20).0..at(21).0, Access::Write, &|_| true);
        assert_eq!(resolution, Resolution::NoFault);
    });
}

/// The SMMU's entries under the number of a device's tables go when the tables do, since the number is another's
/// then; and the tables are free no earlier.
#[test]
fn what_is_cached_of_a_device_goes_before_its_tables() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        let address = device.map(&rig.cpu, MEMORY, 8, Direction::Both).unwrap();
        let before = rig.smmu.cached_asids();
        assert_eq!(rig.smmu.access(STREAM, address.0, true), Outcome::Reaches(MEMORY));
        assert!(rig.smmu.cached_asids().len() > before.len());
        let (used, seen) = (rig.frames.stats().used, Arc::new(Mutex::new(Vec::new())));
        let look = {
            let (seen, frames) = (seen.clone(), rig.frames);
            move || seen.lock().unwrap().push(frames.stats().used)
        };
        rig.smmu.at_each_barrier(look, || drop(device));
        let seen = core::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.len() >= 2 && seen.iter().all(|&now| now == used), "{used}: {seen:?}");
        assert!(rig.frames.stats().used < used);
        assert_eq!(rig.smmu.cached_asids(), before);
    });
}

/// The number of a binding is its own until its subscriber has gone and its pages are hidden.
#[test]
fn a_number_is_free_when_nothing_issues_commands_under_it() {
    /// Takes all numbers that are free when the pages of a binding are hidden.
    struct Takes(&'static super::Iommu, Mutex<Vec<u16>>);
    impl Subscriber for Takes {
        fn invalidate_range_start(&self, _: &Range) {
            let mut asids = self.0.asids.lock();
            let taken: Vec<u16> = core::iter::from_fn(|| asids.allocate()).collect();
            taken.iter().for_each(|&asid| asids.free(asid));
            *self.1.lock().unwrap() = taken;
        }
    }
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(1));
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        device.bind(&rig.cpu, &space).unwrap();
        let asid = bound_asid(&rig);
        let takes = Subscription::new(SpaceHandle::new(&space), Takes(rig.iommu, Mutex::default()), 0).unwrap();
        rig.smmu.take_commands();
        device.unbind(&rig.cpu);
        let taken = core::mem::take(&mut *takes.1.lock().unwrap());
        assert!(taken.len() > 100 && !taken.contains(&asid));
        assert_eq!(by_address(&rig), [], "the subscriber has gone before the pages");
        assert!(core::iter::from_fn(|| rig.iommu.asids.lock().allocate()).any(|other| other == asid), "it is free now");
        device.free_coherent(&rig.cpu, page);
    });
}

/// A space whose end comes after its unbinding cuts nothing off: the stream has other tables already.
#[test]
fn the_late_end_of_a_space_leaves_the_devices_own_tables() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(1));
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        let own = rig.smmu.access(STREAM, page.address().0, true);
        device.bind(&rig.cpu, &space).unwrap();
        let asid = bound_asid(&rig);
        device.unbind(&rig.cpu);
        rig.iommu.cut_off(STREAM, asid);
        assert_eq!(rig.smmu.access(STREAM, page.address().0, true), own);
        device.free_coherent(&rig.cpu, page);
    });
}

/// The end of a space and `unbind` of its device, each begun at each step of the other: the device has its own tables
/// afterwards, and nothing stays.
#[test]
fn a_space_may_end_at_each_step_of_its_devices_unbinding() {
    /// Time for the other thread to come as far as it can.
    const MEETING: Duration = Duration::from_millis(3);
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        let own = rig.smmu.access(STREAM, page.address().0, true);
        for unbind_first in [true, false] {
            for step in 0.. {
                let space = rig.space(1);
                device.bind(&rig.cpu, &space).unwrap();
                let (begin, begun) = channel();
                let mut steps = 0;
                let hook = move || {
                    if steps == step {
                        let _ = begin.send(());
                        std::thread::sleep(MEETING);
                    }
                    steps += 1;
                };
                let (end, unbind) = (|| drop(space), || device.unbind(&rig.cpu));
                let met = std::thread::scope(|scope| {
                    // In vain where the first has fewer steps: its end drops the sender.
                    if unbind_first {
                        let other = scope.spawn(move || (begun.recv().is_ok(), end()).0);
                        rig.smmu.at_each_barrier(hook, unbind);
                        other.join().unwrap()
                    } else {
                        let other = scope.spawn(move || (begun.recv().is_ok(), unbind()).0);
                        rig.smmu.at_each_barrier(hook, end);
                        other.join().unwrap()
                    }
                });
                assert_eq!(rig.smmu.access(STREAM, page.address().0, true), own, "step {step}");
                assert_eq!(rig.read(at(0)), UNMAPPED, "step {step}");
                assert_eq!(rig.spaces.counts()[0], 0, "step {step}");
                if !met {
                    assert!(step > 1, "they met");
                    break;
                }
            }
        }
        device.free_coherent(&rig.cpu, page);
    });
}

/// After it has shown its pages: they are hidden again, and the space may be bound by another.
#[test]
fn a_bind_that_fails_late_hides_its_pages() {
    host::with(&[], || {
        for deaf in [true, false] {
            let rig = Rig::new(NotifyMode::Tlb);
            let (device, space) = (rig.attach(), rig.space(1));
            let pages = [(); 2].map(|()| device.alloc_coherent(&rig.cpu, 8).unwrap());
            let (frames, numbers) = (space.table_frames(), rig.iommu.asids.lock().in_use());
            if deaf {
                rig.smmu.grow_deaf();
                assert!(matches!(device.bind(&rig.cpu, &space), Err(BindError::Stream(_))));
            } else {
                space.release(&rig.cpu);
                assert!(matches!(device.bind(&rig.cpu, &space), Err(BindError::Ended)));
            }
            for page in &pages {
                let shown = entry(&space, VirtAddr(page.address().0));
                assert_eq!(shown, granule_arch::descriptor::Descriptor::EMPTY, "deaf: {deaf}");
            }
            assert!(space.table_frames() <= frames && space.notifiers().is_empty());
            let is_free = space.between_changes(|pages| {
                let claimed = pages.claim();
                pages.disclaim();
                claimed
            });
            assert_eq!(is_free, deaf.then_some(true), "one that has ended is refused");
            assert_eq!(rig.iommu.asids.lock().in_use(), numbers, "deaf: {deaf}");
            pages.into_iter().for_each(|page| device.free_coherent(&rig.cpu, page));
        }
    });
}

/// A fault is the transfer's whose range it lies in: one in the page at its very end is another's.
#[test]
fn a_fault_behind_a_range_is_not_its_transfers() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(1));
        device.bind(&rig.cpu, &space).unwrap();
        assert_eq!([rig.write(at(20)), rig.write(at(22))], [UNMAPPED; 2]);
        let resolve = |range| device.resolve(&rig.cpu, range, Access::Write, &|_| true);
        assert_eq!(resolve(at(21).0..at(22).0), Resolution::NoFault);
        assert!(matches!(resolve(at(20).0 + PAGE - 1..at(21).0), Resolution::Failed(_)));
        assert!(matches!(resolve(at(21).0..at(22).0 + 1), Resolution::Failed(_)));
        assert!(matches!(rig.read(at(0)), Outcome::Reaches(_)));
    });
}
