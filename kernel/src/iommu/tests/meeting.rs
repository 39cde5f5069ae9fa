//! Every pair of calls that change what a stream is translated by, the second from each moment of the first on. Just
//! before it the devices read and write, and the SMMU keeps the translations.
//!
//! Afterwards results, and what devices reach, are those of one of the two serial orders; no stream is translated by
//! the tables of a space that has ended; and nothing stays: no frame, no number, no claim.

use std::format;
use std::string::String;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use granule_arch::addr::PhysAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::Protection;

use super::super::{Coherent, NotifyMode};
use super::{DmaDevice, Outcome, PAGE, Rig, STREAM, at, entry};
use crate::lab;
use crate::mm::space::{SpaceHandle, SpaceRef, SpaceUser};
use crate::smp::{Cpu, this_cpu};
use crate::sync::meeting::meet;

const OTHER: u32 = STREAM + 8;

/// An operation of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    /// The device is bound.
    Bind,
    /// Another device is.
    BindOther,
    /// The device is unbound.
    Unbind,
    /// The last user leaves the space, to which there are more references: exec.
    Exec,
    /// The last reference goes: exit.
    Exit,
    /// The driver gives the device back.
    Detach,
    /// The driver allocates a page that the device has too.
    Share,
    /// The driver frees one.
    Unshare,
    /// The space's page goes.
    Unmap,
    /// It becomes read-only.
    Protect,
    /// It is copied on write from now on.
    Fork,
}

use Deed::{Bind, BindOther, Detach, Exec, Exit, Fork, Protect, Share, Unbind, Unmap, Unshare};

const DEEDS: [Deed; 11] = [Bind, BindOther, Unbind, Exec, Exit, Detach, Share, Unshare, Unmap, Protect, Fork];

/// How a deed ended; the error in words.
type Result<T = ()> = core::result::Result<T, String>;

fn in_words(error: impl core::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Whether two CPUs can do both at once: a driver that gives its device back does nothing else with it, and the last
/// user leaves once.
fn may_meet(first: Deed, second: Deed) -> bool {
    let uses_device = |deed| matches!(deed, Bind | Unbind | Detach | Share | Unshare);
    let pair = [first, second];
    !(pair.contains(&Detach) && pair.into_iter().all(uses_device)) && pair != [Exec; 2]
}

fn uses_space(deed: Deed) -> bool {
    !matches!(deed, Unbind | Detach | Share | Unshare)
}

/// The page that a device reaches at the first page of the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reached {
    /// The space's page.
    Page,
    /// Something else: how it ended.
    Else(Outcome),
}

/// The state after both deeds.
#[derive(Clone, PartialEq, Eq, Debug)]
struct After {
    results: [Result; 2],
    are_bound: [bool; 2],
    /// By the reads of the two devices, and by their writes.
    reached: [[Reached; 2]; 2],
}

struct Stage<'a> {
    rig: &'a Rig,
    /// Until the driver gives it back.
    device: Mutex<Option<Arc<DmaDevice>>>,
    other: DmaDevice,
    own: Mutex<Vec<Coherent>>,
    /// A reference for each of the two deeds.
    spaces: [Mutex<Option<SpaceRef>>; 2],
    /// The others, unless the last one goes.
    kept: Option<SpaceRef>,
    children: Mutex<Vec<SpaceRef>>,
    handle: SpaceHandle,
    root: PhysAddr,
    page: Outcome,
}

impl<'a> Stage<'a> {
    fn new(rig: &'a Rig, is_bound: bool, deeds: [Deed; 2]) -> Self {
        let (device, other) = (rig.attach(), rig.iommu.attach(&rig.cpu, OTHER).unwrap());
        let own = [(); 2].map(|()| device.alloc_coherent(&rig.cpu, 8).unwrap());
        let space = rig.space(1);
        let page = Outcome::Reaches(entry(&space, at(0)).address());
        if is_bound {
            device.bind(&rig.cpu, &space).unwrap();
            assert_eq!(rig.read(at(0)), page);
        }
        let spaces = deeds.map(|deed| uses_space(deed).then(|| space.clone()).into());
        let (handle, root) = (SpaceHandle::new(&space), space.root());
        let kept = (!deeds.contains(&Exit)).then_some(space);
        Self {
            rig,
            device: Some(Arc::new(device)).into(),
            other,
            own: own.into_iter().collect::<Vec<_>>().into(),
            spaces,
            kept,
            children: Mutex::default(),
            handle,
            root,
            page,
        }
    }

    /// Does what the deed of that number is.
    fn perform(&self, deed: Deed, number: usize, cpu: &Cpu) -> Result {
        let space = self.spaces[number].lock().unwrap().take();
        if deed == Detach {
            self.give_back(cpu);
            return Ok(());
        }
        match (deed, self.device(), space) {
            (Bind, Some(device), Some(space)) => device.bind(cpu, &space).map_err(in_words)?,
            (BindOther, _, Some(space)) => self.other.bind(cpu, &space).map_err(in_words)?,
            (Unbind, Some(device), _) => device.unbind(cpu),
            (Exec, _, Some(space)) => drop(SpaceUser::new(space)),
            (Exit, _, Some(space)) => drop(space),
            (Unmap, _, Some(space)) => space.munmap(cpu, at(0), PAGE).map_err(in_words)?,
            (Protect, _, Some(space)) => space.mprotect(at(0), PAGE, Protection::READ).map_err(in_words)?,
            (Fork, _, Some(space)) => {
                let child = space.fork(cpu).map_err(in_words)?;
                self.children.lock().unwrap().push(child);
            }
            (Share, Some(device), _) => {
                let page = device.alloc_coherent(cpu, 8).unwrap();
                self.own.lock().unwrap().push(page);
            }
            (Unshare, Some(device), _) => {
                let page = self.own.lock().unwrap().pop().unwrap();
                device.free_coherent(cpu, page);
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    fn device(&self) -> Option<Arc<DmaDevice>> {
        self.device.lock().unwrap().clone()
    }

    fn give_back(&self, cpu: &Cpu) {
        let device = self.device.lock().unwrap().take();
        if let Some(device) = device {
            self.own.lock().unwrap().drain(..).for_each(|page| device.free_coherent(cpu, page));
        }
    }

    /// The addresses that devices reach by reads and by writes. The SMMU keeps the translations.
    fn accesses(&self) -> [[Reached; 2]; 2] {
        [false, true].map(|write| {
            [STREAM, OTHER].map(|stream| match self.rig.smmu.access(stream, at(0).0, write) {
                reached if reached == self.page => Reached::Page,
                other => Reached::Else(other),
            })
        })
    }

    /// The state after both deeds.
    ///
    /// # Errors
    /// A device reaches what it must not.
    fn after(&self, results: [Result; 2]) -> Result<After> {
        let has_ended = self.handle.upgrade().is_none();
        let reached = self.accesses();
        let mut walked = false;
        self.rig.iommu.for_each_stream(|_, _, context| {
            walked |= context.is_some_and(|context| *context == self.rig.iommu.context(self.root, context.asid()));
        });
        let reaches = reached.as_flattened().contains(&Reached::Page);
        if has_ended && (walked || reaches) {
            return Err(format!("a device reaches what is freed: {results:?}, {reached:?}"));
        }
        if let Some(space) = self.handle.upgrade() {
            let entry = entry(&space, at(0));
            let permitted = [entry.is_valid(), entry.is_valid() && entry.may_be_written()];
            let is_stale = |(reached, may): (&[Reached; 2], bool)| reached.contains(&Reached::Page) && !may;
            if reached.iter().zip(permitted).any(is_stale) {
                return Err(format!("a device keeps what {entry:?} does not permit: {results:?}, {reached:?}"));
            }
        }
        Ok(After {
            results,
            are_bound: [self.device().is_some_and(|device| device.is_bound()), self.other.is_bound()],
            reached,
        })
    }

    /// All goes; what is claimed of the space is free then.
    fn end(self) {
        let cpu = &self.rig.cpu;
        self.other.unbind(cpu);
        if let Some(device) = self.device() {
            device.unbind(cpu);
        }
        if let Some(space) = self.handle.upgrade() {
            self.other.bind(cpu, &space).unwrap();
            self.other.unbind(cpu);
            assert!(space.notifiers().is_empty());
        }
        self.give_back(cpu);
        drop((self.kept, self.children));
    }
}

/// A stage, on which `play` does both deeds; what has become of it. Nothing stays.
fn on_stage(
    rig: &Rig,
    is_bound: bool,
    deeds: [Deed; 2],
    play: impl FnOnce(&Stage<'_>) -> [Result; 2],
) -> Result<After> {
    let accounts = || (rig.used(), rig.iommu.asids.lock().in_use(), rig.spaces.counts()[0], rig.smmu.cached_asids());
    let before = accounts();
    let stage = Stage::new(rig, is_bound, deeds);
    let results = play(&stage);
    let after = stage.after(results)?;
    stage.end();
    drop((rig.smmu.take_commands(), rig.smmu.take_stream()));
    assert_eq!(accounts(), before, "frames, numbers, spaces, cached: {after:?}");
    Ok(after)
}

/// The second deed from each moment of the first on; how many there are.
///
/// # Errors
/// The first outcome that is none of a serial order.
fn all_moments(rig: &Rig, is_bound: bool, deeds: [Deed; 2]) -> Result<usize> {
    let serial = |is_swapped| {
        on_stage(rig, is_bound, deeds, |stage| {
            let perform = |number: usize| stage.perform(deeds[number], number, &rig.cpu);
            if is_swapped {
                let second = perform(1);
                [perform(0), second]
            } else {
                [perform(0), perform(1)]
            }
        })
    };
    let serial = [serial(false)?, serial(true)?];
    for nth in 0.. {
        let mut met = false;
        let after = on_stage(rig, is_bound, deeds, |stage| {
            let second = || {
                stage.accesses();
                let result = stage.perform(deeds[1], 1, this_cpu());
                rig.frames.drain_cpu(this_cpu());
                result
            };
            let (first, second, has_met) = meet(nth, || stage.perform(deeds[0], 0, &rig.cpu), second);
            met = has_met;
            [first, second]
        });
        let after = after.map_err(|wrong| format!("bound: {is_bound}, moment {nth} of {deeds:?}: {wrong}"))?;
        if !serial.contains(&after) {
            return Err(format!("bound: {is_bound}, moment {nth} of {deeds:?}: {after:?}, not of {serial:?}"));
        }
        if !met {
            return Ok(nth);
        }
    }
    Ok(0)
}

#[test]
fn calls_that_meet_are_as_one_after_the_other() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        for first in DEEDS {
            let mut moments = 0;
            for (second, is_bound) in DEEDS.into_iter().flat_map(|second| [(second, false), (second, true)]) {
                if may_meet(first, second) {
                    moments += all_moments(&rig, is_bound, [first, second]).unwrap();
                }
            }
            assert!(moments > 50, "{first:?} has {moments}");
        }
    });
}

/// Each takes a fix away: a switch of the lab, and whether the device is bound before the two deeds that show it.
pub(crate) const WITHOUT_A_FIX: [(lab::Lab, bool, [Deed; 2]); 4] = [
    (lab::BIND_IN_TWO, false, [Bind, Exec]),
    (lab::NO_SECONDARY_TLB, true, [Unmap, Share]),
    (lab::NO_SECONDARY_TLB, true, [Protect, Share]),
    (lab::NO_SECONDARY_TLB, true, [Fork, Share]),
];

#[test]
fn a_switch_of_the_lab_is_found() {
    for (lab, is_bound, deeds) in WITHOUT_A_FIX {
        let found = || all_moments(&Rig::new(NotifyMode::Tlb), is_bound, deeds);
        let wrong = host::with(&lab.sites(), found);
        assert!(wrong.is_err(), "lab={}", lab.name);
        assert_eq!(host::with(&[], found).map(|_| ()), Ok(()));
    }
}
