//! A device that uses the addresses of a space: it reaches what the space's entries map, and never what they mapped
//! before.

use std::vec::Vec;

use granule_arch::alternative::host;
use granule_arch::descriptor::{MemoryType, Protection};

use super::super::{BindError, DmaDevice, DmaError, NotifyMode, Resolution};
use super::{Outcome, PAGE, READ_ONLY, READ_WRITE, Rig, STREAM, UNMAPPED, at, entry};
use crate::lab::{self, Lab};
use crate::mm::space::{Access, FaultError, RESERVED_START, Space, SpaceRef, handle_fault};

/// Where page `page` of `space` is.
fn frame(space: &Space, page: u64) -> Outcome {
    Outcome::Reaches(entry(space, at(page)).address())
}

/// Runs with all switches of the lab off, and no other test that switches one on concurrently.
fn in_order<T>(work: impl FnOnce() -> T) -> T {
    host::with(&[], work)
}

#[test]
fn a_bound_device_uses_the_addresses_of_the_space_and_an_unbound_one_its_own() {
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let used = rig.used();
        let (device, space) = (rig.attach(), rig.space(2));
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        let own = page.address();
        let before = rig.smmu.access(STREAM, own.0, true);
        assert_eq!(rig.read(at(0)), UNMAPPED);

        device.bind(&rig.cpu, &space).unwrap();
        assert!(device.is_bound());
        assert!(matches!(device.bind(&rig.cpu, &space), Err(BindError::Bound)));
        let mapped = device.map(&rig.cpu, entry(&space, at(0)).address(), 8, super::super::Direction::Both);
        assert_eq!(mapped, Err(DmaError::Bound));
        assert_eq!([rig.read(at(0)), rig.write(at(1))], [frame(&space, 0), frame(&space, 1)]);
        assert_eq!(rig.smmu.access(STREAM, own.0, true), before, "its own pages are where they were");
        let shown = entry(&space, RESERVED_START);
        assert!(shown.is_valid() && shown.is_special(), "{shown:?}");
        // Memory that it gets while it is bound is in both as well.
        let second = device.alloc_coherent(&rig.cpu, 8).unwrap();
        let doorbell = device.message_address(&rig.cpu, granule_arch::addr::PhysAddr(0x0809_0040)).unwrap();
        assert_eq!(
            entry(&space, granule_arch::addr::VirtAddr(doorbell.0 & !(PAGE - 1))).memory_index(),
            MemoryType::DeviceNGnRE as u8
        );
        assert!(matches!(rig.smmu.access(STREAM, second.address().0, true), Outcome::Reaches(_)));

        device.unbind(&rig.cpu);
        assert!(!device.is_bound());
        assert_eq!(rig.read(at(0)), UNMAPPED);
        assert_eq!(rig.smmu.access(STREAM, own.0, true), before);
        assert!(matches!(rig.smmu.access(STREAM, second.address().0, true), Outcome::Reaches(_)));
        assert_eq!(entry(&space, RESERVED_START), granule_arch::descriptor::Descriptor::EMPTY);
        device.free_coherent(&rig.cpu, second);
        device.free_coherent(&rig.cpu, page);
        drop(space);
        drop(device);
        assert_eq!(rig.used(), used);
    });
}

#[test]
fn a_child_is_not_bound_and_each_device_hears_of_its_own_space() {
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let (first, spaces) = (rig.attach(), [rig.space(1), rig.space(1)]);
        let second = rig.iommu.attach(&rig.cpu, STREAM + 8).unwrap();
        let children = [&first, &second].into_iter().zip(&spaces).map(|(device, space)| {
            drop(device.alloc_coherent(&rig.cpu, 8).unwrap());
            device.bind(&rig.cpu, space).unwrap();
            space.fork(&rig.cpu).unwrap()
        });
        let children: Vec<_> = children.collect();
        for (child, space) in children.iter().zip(&spaces) {
            assert!(child.notifiers().is_empty() && !space.notifiers().is_empty());
            assert_eq!(entry(child, RESERVED_START), granule_arch::descriptor::Descriptor::EMPTY);
        }
        let streams = [STREAM, STREAM + 8];
        for (stream, space) in streams.into_iter().zip(&spaces) {
            assert_eq!(rig.smmu.access(stream, at(0).0, false), frame(space, 0));
        }
        spaces.iter().for_each(|space| space.munmap(&rig.cpu, at(0), PAGE).unwrap());
        for stream in streams {
            assert_eq!(rig.smmu.access(stream, at(0).0, false), UNMAPPED);
        }
    });
}

/// A program's pointer has a tag that the CPU ignores, and that is no part of the address that its device is given.
#[test]
fn a_tagged_pointer_is_an_address_without_its_tag() {
    use super::super::DmaAddress;
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(1));
        device.bind(&rig.cpu, &space).unwrap();
        let tagged = granule_arch::addr::VirtAddr(at(0).0 | 0xa5 << 56);
        assert_eq!(rig.smmu.access(STREAM, DmaAddress::of_pointer(tagged).unwrap().0, true), frame(&space, 0));
        assert_eq!(rig.write(tagged), UNMAPPED, "as it is, it is no address of the program's");
        let resolution = device.resolve(&rig.cpu, tagged.0..tagged.0 + 8, Access::Write, &|_| true);
        assert_eq!(resolution, Resolution::Failed(FaultError::NotMapped));
        let kernel = granule_arch::addr::VirtAddr(0xffff_8000_0000_1000);
        assert_eq!(DmaAddress::of_pointer(kernel), Some(DmaAddress(kernel.0)), "no pointer of a program's becomes one");
    });
}

/// Without substreams the tables of a space have the rings of the device that is bound to it.
#[test]
fn a_space_is_bound_to_one_device_at_a_time() {
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let (first, space) = (rig.attach(), rig.space(1));
        let second = rig.iommu.attach(&rig.cpu, STREAM + 8).unwrap();
        let page = first.alloc_coherent(&rig.cpu, 8).unwrap();
        first.bind(&rig.cpu, &space).unwrap();
        assert!(matches!(second.bind(&rig.cpu, &space), Err(BindError::SpaceInUse)));
        assert!(!second.is_bound());
        assert_eq!(rig.smmu.access(STREAM + 8, at(0).0, false), UNMAPPED);
        assert_eq!(rig.smmu.access(STREAM + 8, page.address().0, true), UNMAPPED, "the first one's ring");
        assert!(matches!(rig.smmu.access(STREAM, page.address().0, true), Outcome::Reaches(_)));
        first.unbind(&rig.cpu);
        second.bind(&rig.cpu, &space).unwrap();
        assert_eq!(rig.smmu.access(STREAM + 8, page.address().0, true), UNMAPPED);
        assert!(matches!(first.bind(&rig.cpu, &space), Err(BindError::SpaceInUse)));
        first.free_coherent(&rig.cpu, page);
    });
}

/// The last reference of a space is gone, and its device is not cut off yet.
#[test]
fn a_page_that_is_freed_while_the_space_ends_is_out_of_reach() {
    struct Frees {
        device: DmaDevice,
        page: std::sync::Mutex<Option<super::super::Coherent>>,
        smmu: super::Emulated,
    }
    impl crate::mm::notifier::Subscriber for Frees {
        fn release(&self) {
            let page = self.page.lock().unwrap().take().unwrap();
            let at = page.address().0;
            crate::sched::as_another_thread(|| {
                assert!(self.device.space().is_none(), "it is ending");
                assert!(matches!(self.smmu.access(STREAM, at, true), Outcome::Reaches(_)), "not cut off yet");
                self.device.free_coherent(&crate::smp::Cpu::new(crate::smp::CpuId(0)), page);
                assert_eq!(self.smmu.access(STREAM, at, true), Outcome::Nothing);
            });
        }
    }
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let used = rig.used();
        let (device, space) = (rig.attach(), rig.space(1));
        let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
        device.bind(&rig.cpu, &space).unwrap();
        let frees = Frees { device, page: Some(page).into(), smmu: rig.smmu.clone() };
        let handle = crate::mm::space::SpaceHandle::new(&space);
        // Of a higher priority than the binding: called before it.
        let frees = crate::mm::notifier::Subscription::<_, _>::new(handle, frees, 1).unwrap();
        drop(space);
        assert!(frees.page.lock().unwrap().is_none(), "it was called");
        drop(frees);
        assert_eq!(rig.used(), used);
    });
}

/// By events alone a device's TLB is invalidated at the end of a change. A device that binds in the middle, with the
/// old entry in its TLB, did not get the start.
#[test]
fn a_device_that_binds_in_the_middle_of_a_change_does_not_miss_it() {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Duration;

    /// Another subscriber, at work when the change has been announced and not made.
    struct Waits {
        begun: SyncSender<()>,
        bound: std::sync::Mutex<Receiver<()>>,
    }
    impl crate::mm::notifier::Subscriber for Waits {
        fn invalidate_range_start(&self, _: &crate::mm::notifier::Range) {
            let _ = self.begun.try_send(());
            // The binding waits for the change, if all is well: this ends without it.
            let _ = self.bound.lock().unwrap().recv_timeout(Duration::from_millis(200));
        }
    }
    in_order(|| {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            let rig = Rig::new(mode);
            let (device, space) = (rig.attach(), rig.space(1));
            let ((begun, begins), (bound, binds)) = (sync_channel(1), sync_channel(1));
            let waits = Waits { begun, bound: binds.into() };
            let _waits = crate::mm::notifier::Subscription::<_, SpaceRef>::new(space.clone(), waits, 0).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| space.mprotect(at(0), PAGE, Protection::READ).unwrap());
                begins.recv().unwrap();
                device.bind(&rig.cpu, &space).unwrap();
                // Its TLB keeps the translations that it finds, from now on.
                let _ = (rig.read(at(0)), rig.write(at(0)));
                let _ = bound.try_send(());
            });
            assert!(is_as_the_entry_says(&rig, &space, 0), "{mode:?}");
            assert_eq!(rig.write(at(0)), READ_ONLY, "{mode:?}");
        }
    });
}

/// A process ends while a device is at work: its memory goes at once, faults of the device are ignored, and the driver
/// may unbind at any time.
#[test]
fn a_space_ends_under_a_device_quietly_and_at_once() {
    in_order(|| {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            let rig = Rig::new(mode);
            let used = rig.used();
            let (device, space) = (rig.attach(), rig.space(2));
            let with_device = rig.used() - used;
            device.bind(&rig.cpu, &space).unwrap();
            assert_eq!(rig.write(at(0)), frame(&space, 0));
            drop(space);
            assert!(rig.used() - used < with_device, "its pages are free");
            assert_eq!([rig.write(at(0)), rig.read(at(1))], [Outcome::Nothing; 2], "without events");
            assert_eq!(rig.iommu.fault_stats().events, 0);
            assert!(rig.smmu.cached_asids().is_empty());
            assert!(device.is_bound() && device.space().is_none());
            let resolution = device.resolve(&rig.cpu, at(0).0..at(1).0, Access::Write, &|_| true);
            assert_eq!(resolution, Resolution::Failed(FaultError::NotMapped));
            device.unbind(&rig.cpu);
            assert_eq!(rig.read(at(0)), UNMAPPED, "by its own tables");
            drop(device);
            assert_eq!((rig.used(), rig.spaces.counts()[0]), (used, 0));
        }
    });
}

/// A change of a bound space, and what the device must not reach or be refused afterwards.
struct Case {
    name: &'static str,
    /// Prepares; the device's translations are cached after it.
    prepare: fn(&Rig, &SpaceRef),
    change: fn(&Rig, &SpaceRef),
}

const CASES: [Case; 8] = [
    Case { name: "munmap", prepare: |_, _| {}, change: |rig, space| space.munmap(&rig.cpu, at(0), 4 * PAGE).unwrap() },
    Case {
        name: "madvise",
        prepare: |_, _| {},
        change: |rig, space| space.madvise_dontneed(&rig.cpu, at(1), PAGE).unwrap(),
    },
    Case {
        name: "mprotect to read-only",
        prepare: |_, _| {},
        change: |_, space| space.mprotect(at(0), 4 * PAGE, Protection::READ).unwrap(),
    },
    Case {
        name: "mprotect to writable",
        prepare: |_, space| space.mprotect(at(0), 4 * PAGE, Protection::READ).unwrap(),
        change: |_, space| space.mprotect(at(0), 4 * PAGE, READ_WRITE).unwrap(),
    },
    Case { name: "fork", prepare: |_, _| {}, change: |rig, space| core::mem::forget(space.fork(&rig.cpu).unwrap()) },
    Case {
        name: "copy on write",
        prepare: |rig, space| core::mem::forget(space.fork(&rig.cpu).unwrap()),
        change: |rig, space| handle_fault(space, &rig.cpu, at(0), Access::Write).unwrap(),
    },
    Case {
        name: "migration",
        prepare: |_, _| {},
        change: |rig, space| {
            let to = rig.frames.alloc_movable(&rig.cpu).unwrap();
            rig.spaces.migrate_page(&rig.cpu, entry(space, at(0)).address(), to).unwrap();
        },
    },
    Case {
        name: "upgrade",
        prepare: |rig, space| drop(space.fork(&rig.cpu).unwrap()),
        change: |rig, space| handle_fault(space, &rig.cpu, at(0), Access::Write).unwrap(),
    },
];

/// The names of the changes after which the device disagrees with the entries, with `lab` on while they are made.
fn stale(notify_mode: NotifyMode, lab: Option<&Lab>) -> Vec<&'static str> {
    let mut stale = Vec::new();
    for case in &CASES {
        let rig = Rig::new(notify_mode);
        let (device, space) = (rig.attach(), rig.space(4));
        device.bind(&rig.cpu, &space).unwrap();
        (case.prepare)(&rig, &space);
        let cache = |rig: &Rig| (0..4).for_each(|page| _ = (rig.read(at(page)), rig.write(at(page))));
        cache(&rig);
        let sites = lab.map(|lab| lab.sites());
        sites.iter().flatten().for_each(|&site| host::set(site, true));
        (case.change)(&rig, &space);
        sites.iter().flatten().for_each(|&site| host::set(site, false));
        if (0..4).any(|page| !is_as_the_entry_says(&rig, &space, page)) {
            stale.push(case.name);
        }
    }
    stale
}

fn is_as_the_entry_says(rig: &Rig, space: &Space, page: u64) -> bool {
    let found = entry(space, at(page));
    let reaches = Outcome::Reaches(found.address());
    let [read, write] = match (found.is_valid(), found.is_writable()) {
        (false, _) => [UNMAPPED; 2],
        (true, false) => [reaches, READ_ONLY],
        (true, true) => [reaches; 2],
    };
    rig.read(at(page)) == read && rig.write(at(page)) == write
}

#[test]
fn a_device_is_never_where_the_entries_were_before() {
    in_order(|| {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            assert_eq!(stale(mode, None), [""; 0], "{mode:?}");
        }
    });
}

/// The check above sees each fix that is taken away.
#[test]
fn each_switch_of_the_lab_leaves_the_device_behind() {
    in_order(|| {
        let all: Vec<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(stale(NotifyMode::Tlb, Some(&lab::NO_SECONDARY_TLB)), all);
        assert_eq!(stale(NotifyMode::Tlb, Some(&lab::WRONG_ASID)), all);
        assert_eq!(stale(NotifyMode::Events, Some(&lab::WRONG_ASID)), all);
        assert_eq!(stale(NotifyMode::Events, Some(&lab::NO_UPGRADE_EVENT)), ["upgrade"]);
        // The other mode does not depend on these.
        assert_eq!(stale(NotifyMode::Tlb, Some(&lab::NO_UPGRADE_EVENT)), [""; 0]);
        assert_eq!(stale(NotifyMode::Events, Some(&lab::NO_SECONDARY_TLB)), [""; 0]);
    });
}

/// By events alone a replaced page is invalidated too late: another CPU sees the new page while the device still reads
/// the old one.
#[test]
fn without_the_call_under_the_lock_a_replaced_page_is_told_too_late() {
    /// Whether the device reads the old page in the moment in which the entry names the new one.
    fn reads_the_old_page(lab: Option<&Lab>) -> bool {
        let rig = Rig::new(NotifyMode::Events);
        let (device, space) = (rig.attach(), rig.space(1));
        device.bind(&rig.cpu, &space).unwrap();
        let _child = space.fork(&rig.cpu).unwrap();
        let old = rig.read(at(0));
        let looks = Look { smmu: rig.smmu.clone(), old, space: space.clone(), stale: Default::default() };
        // Called before the binding: the entry is new and the device has not got the end yet.
        let looks = crate::mm::notifier::Subscription::<_, SpaceRef>::new(space.clone(), looks, 1).unwrap();
        let sites = lab.map(|lab| lab.sites());
        sites.iter().flatten().for_each(|&site| host::set(site, true));
        handle_fault(&space, &rig.cpu, at(0), Access::Write).unwrap();
        sites.iter().flatten().for_each(|&site| host::set(site, false));
        looks.stale.load(core::sync::atomic::Ordering::Relaxed)
    }

    struct Look {
        smmu: super::Emulated,
        old: Outcome,
        space: SpaceRef,
        stale: core::sync::atomic::AtomicBool,
    }

    impl crate::mm::notifier::Subscriber for Look {
        fn invalidate_range_end(&self, _: &crate::mm::notifier::Range) {
            assert_ne!(Outcome::Reaches(entry(&self.space, at(0)).address()), self.old, "the entry is new");
            let stale = self.smmu.access(STREAM, at(0).0, false) == self.old;
            self.stale.fetch_or(stale, core::sync::atomic::Ordering::Relaxed);
        }
    }

    in_order(|| {
        assert!(!reads_the_old_page(None));
        assert!(reads_the_old_page(Some(&lab::START_END_ONLY)));
    });
}

/// A number that is bound again reaches nothing of its last owner.
#[test]
fn a_number_is_flushed_before_somebody_else_has_it() {
    /// How many pages of an earlier binding a later one reaches.
    fn reached(lab: Option<&Lab>) -> usize {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        let bind = |device: &DmaDevice, space: &SpaceRef| device.bind(&rig.cpu, space).unwrap();
        let before = rig.space(2);
        bind(&device, &before);
        let old = [rig.read(at(0)), rig.read(at(1))];
        let sites = lab.map(|lab| lab.sites());
        sites.iter().flatten().for_each(|&site| host::set(site, true));
        device.unbind(&rig.cpu);
        // Once round all numbers.
        let after = rig.space(2);
        let mut stale = 0;
        for _ in 0..1024 {
            bind(&device, &after);
            stale = stale.max((0..2).filter(|&page| rig.read(at(page)) == old[page as usize]).count());
            device.unbind(&rig.cpu);
        }
        sites.iter().flatten().for_each(|&site| host::set(site, false));
        stale
    }
    in_order(|| {
        assert_eq!(reached(None), 0);
        assert_eq!(reached(Some(&lab::BIND_WITHOUT_FLUSH)), 2);
    });
}

#[test]
fn a_changed_stream_is_told_to_the_smmu() {
    in_order(|| {
        let reaches = |lab: Option<&Lab>| {
            let rig = Rig::new(NotifyMode::Tlb);
            let (device, space) = (rig.attach(), rig.space(1));
            // The SMMU has the stream's own tables cached.
            assert_eq!(rig.read(at(0)), UNMAPPED);
            let sites = lab.map(|lab| lab.sites());
            sites.iter().flatten().for_each(|&site| host::set(site, true));
            device.bind(&rig.cpu, &space).unwrap();
            let outcome = rig.read(at(0));
            sites.iter().flatten().for_each(|&site| host::set(site, false));
            outcome == frame(&space, 0)
        };
        assert!(reaches(None));
        assert!(!reaches(Some(&lab::NO_CFGI)));
    });
}

/// Each call is the fewest commands, and one CMD_SYNC; a space that no device shares costs none.
#[test]
fn a_change_is_one_command_and_a_sync_and_none_without_a_device() {
    in_order(|| {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, space) = (rig.attach(), rig.space(4));
        let opcodes = |rig: &Rig| rig.smmu.take_commands().iter().map(|[low, _]| low & 0xff).collect::<Vec<_>>();
        rig.smmu.take_commands();
        space.mprotect(at(0), PAGE, Protection::READ).unwrap();
        assert_eq!(opcodes(&rig), [0; 0], "no device shares it");
        device.bind(&rig.cpu, &space).unwrap();
        rig.smmu.take_commands();
        space.mprotect(at(0), PAGE, READ_WRITE).unwrap();
        assert_eq!(opcodes(&rig), [0x12, 0x46], "a page");
        space.munmap(&rig.cpu, at(0), 4 * PAGE).unwrap();
        assert_eq!(opcodes(&rig), [0x12, 0x46], "a range");
        drop(space.fork(&rig.cpu));
        assert_eq!(opcodes(&rig), [0; 0], "nothing is left to be protected");
        assert_eq!(rig.iommu.smmu().stats().illegal, 0);
    });
}

/// The steps of one invalidation, in order, and the opcodes of its commands; with `lab` on.
fn stream(lab: Option<&Lab>) -> (Vec<&'static str>, Vec<u64>) {
    let rig = Rig::new(NotifyMode::Tlb);
    let (device, space) = (rig.attach(), rig.space(1));
    device.bind(&rig.cpu, &space).unwrap();
    drop((rig.smmu.take_stream(), rig.smmu.take_commands()));
    let sites = lab.map(|lab| lab.sites());
    sites.iter().flatten().for_each(|&site| host::set(site, true));
    space.mprotect(at(0), PAGE, Protection::READ).unwrap();
    sites.iter().flatten().for_each(|&site| host::set(site, false));
    (rig.smmu.take_stream(), rig.smmu.take_commands().iter().map(|[low, _]| low & 0xff).collect())
}

/// The stream of operations shows the steps that an SMMU that does everything at once hides.
#[test]
fn each_step_of_an_invalidation_is_there_and_in_order() {
    in_order(|| {
        let whole = ["dmb oshst", "write PROD", "read CONS", "dmb oshld"];
        assert_eq!(stream(None), (whole.to_vec(), [0x12, 0x46].to_vec()));
        let (_, commands) = stream(Some(&lab::SKIP_SYNC));
        assert_eq!(commands, [0x12], "{}", lab::SKIP_SYNC.name);
        let (steps, commands) = stream(Some(&lab::FREE_BEFORE_SYNC));
        // The SMMU's progress is not read.
        let blind = [whole[0], whole[1], whole[3]];
        assert_eq!((&steps[..], &commands[..]), (&blind[..], &[0x12, 0x46][..]), "{}", lab::FREE_BEFORE_SYNC.name);
        let (steps, _) = stream(Some(&lab::NO_DMB_BEFORE_PROD));
        assert_eq!(steps, whole[1..], "{}", lab::NO_DMB_BEFORE_PROD.name);
    });
}
