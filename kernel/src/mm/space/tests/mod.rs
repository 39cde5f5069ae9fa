//! Spaces on the host: their own frames and tables, on a metal that records and does nothing else.
//!
//! - `answers`: SIGBUS, errors and "absent", beside a copy that is under way on another CPU
//! - `advice`: what a child has of areas, pages before the first access, guards
//! - `areas`: the gap that a mapping gets
//! - `blocks`: what brings, changes and divides blocks
//! - `calls`: the effects and the errors of each call
//! - `device`: random calls, and a device that shares the tables and must follow every change
//! - `divided`: areas in parts, between CPUs that change them in turn
//! - `entries`: every legal entry, through everything that may happen to it
//! - `groups`: what brings, changes and unfolds contiguous groups
//! - `handles`: references keep a space, handles only its record
//! - `hardware`: the hardware's access flag and dirt, between each load of an entry and its store
//! - `meeting`: another CPU at each step of a fault and of populate
//! - `migrate`: pages that move to other frames
//! - `model`: entries on the model machine, whose hardware sets flags between a load and a store
//! - `objects`: pages that an object loses, at each step of everything else
//! - `order`: other CPUs while an invalidation is under way
//! - `pairs`: each call and access at each moment of every other
//! - `random`: long sequences of calls against maps of pages
//! - `reclaim`: pages of files that are given back, and other CPUs at each step of that
//! - `registers`: pages of a device, until they are revoked
//! - `reserved`: pages of the kernel above all that programs may map
//! - `shortage`: memory running out at every allocation
//! - `tag_storage`: entries that wait until storage for the tags of their pages is reserved
//! - `tags`: allocation tags, which follow the page through all that happens to it
//! - `threads`: threads of one space, on several CPUs
//! - `userfault`: pages that a pager serves, and what stays write-protected
//! - `watched`: the model machine holds all that CPUs may of several spaces, while they change
//! - `notified`: the invalidations and events of each path, their order and the lock that is held

mod advice;
mod answers;
mod areas;
mod blocks;
mod calls;
mod device;
mod divided;
mod entries;
mod groups;
mod handles;
mod hardware;
mod meeting;
mod migrate;
mod model;
mod notified;
mod objects;
mod order;
mod pairs;
mod random;
mod reclaim;
mod registers;
mod reserved;
mod shortage;
mod tag_storage;
mod tags;
mod threads;
mod userfault;
mod watched;

use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;
use std::vec::Vec;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::{Mmu as _, Stores as _};

use super::cells::EntryCell;
use super::range::{USER_END, USER_START, pages};
use super::{Access, Area, MapRequest, Placement, Populate, Sharing, Space, SpaceRef, Spaces, Unmovable, handle_fault};
use crate::mm::frame::FrameAllocator;
use crate::mm::frame::tests::leaked;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::kernel::record::{Moment, at_each_moment};
use crate::smp::{Cpu, CpuId};

/// The entry for what stands for the hardware, which no machine records.
#[allow(unsafe_code, reason = "an entry of a table that stays")]
fn as_hardware(cell: &EntryCell) -> &core::sync::atomic::AtomicU64 {
    // SAFETY: the cell is an atomic word, and the reference keeps it.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(cell.as_ptr()) }
}

/// Frames, a CPU and spaces, for ever.
struct Rig {
    spaces: &'static Spaces,
    frames: &'static FrameAllocator,
    cpu: Cpu,
}

const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);
const READ_EXECUTE: Protection = Protection::READ.and(Protection::EXECUTE);

impl Rig {
    fn new(mib: u64) -> Self {
        Self::with(leaked(mib))
    }

    fn with(frames: &'static FrameAllocator) -> Self {
        let cpu = Cpu::new(CpuId(0));
        let view = LinearView { offset: frames.linear().address(PhysAddr(0)).0 };
        let spaces = Box::leak(Box::new(Spaces::new(&cpu, Metal(view), frames).unwrap()));
        Self { spaces, frames, cpu }
    }

    fn space(&self) -> SpaceRef {
        self.spaces.create(&self.cpu).unwrap()
    }

    /// Frames that something other than the pools and the page of zeros has.
    fn used(&self) -> usize {
        self.frames.stats().used - self.spaces.kept_frames()
    }

    fn map(&self, space: &Space, pages: u64) -> VirtAddr {
        space.mmap(&self.cpu, &private(pages)).unwrap()
    }

    fn write(&self, space: &Space, at: VirtAddr, value: u8) {
        space.write_bytes(&self.cpu, at, &[value]).unwrap();
    }

    /// Migrates the block or the page at `page` as `cpu`; `None` where there is neither, or no memory.
    fn migrate(&self, cpu: &Cpu, space: &Space, page: VirtAddr) -> Option<Result<(), Unmovable>> {
        match self.spaces.migrate_at(cpu, space, page) {
            Err(Unmovable::NotMapped | Unmovable::OutOfMemory) => None,
            moved => Some(moved.map(drop)),
        }
    }

    fn read(&self, space: &Space, at: VirtAddr) -> u8 {
        let mut byte = [0];
        space.read_bytes(&self.cpu, at, &mut byte).unwrap();
        byte[0]
    }
}

/// The footprint of `space`, counted alone.
fn footprint(space: &Space) -> super::Footprint {
    space.footprint(super::Tally::begin())
}

/// Private memory, anywhere, writable, on demand.
fn private(pages: u64) -> MapRequest {
    MapRequest {
        placement: Placement::Hint(VirtAddr(0)),
        bytes: pages * PAGE,
        protection: READ_WRITE,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    }
}

/// Runs `work`, and `other` on another CPU at its `nth` moment at which no table with an entry for `page`, or for a
/// block, in `spaces` is locked, so that it can go on; whether there was one.
fn meet(spaces: &[&SpaceRef], page: VirtAddr, work: impl FnOnce(), other: impl Fn(&Cpu) + 'static, nth: usize) -> bool {
    let places: Vec<_> = spaces.iter().map(|&space| (space, page)).collect();
    meet_at(&places, work, other, nth)
}

/// As [`meet`], for a page of each space.
fn meet_at(places: &[(&SpaceRef, VirtAddr)], work: impl FnOnce(), other: impl Fn(&Cpu) + 'static, nth: usize) -> bool {
    let left = Rc::new(Cell::new(Some(nth)));
    let hook = {
        let (left, other_cpu) = (left.clone(), Cpu::new(CpuId(1)));
        let places: Vec<(SpaceRef, VirtAddr)> = places.iter().map(|&(space, page)| (space.clone(), page)).collect();
        let is_unlocked = move |(space, page): &(SpaceRef, VirtAddr)| {
            let page = *page;
            let tables = space.page_tables();
            let tables = [tables.cell(page).map(|(table, _)| table), tables.block_cell(page).map(|found| found.table)];
            let is_free = |table| space.common.record(table).table_lock.load(Ordering::Relaxed) == 0;
            tables.into_iter().flatten().all(is_free)
        };
        move |_: Moment<'_>| {
            let Some(now) = left.get() else { return };
            if places.iter().all(is_unlocked) {
                left.set(now.checked_sub(1));
                if now == 0 {
                    other(&other_cpu);
                    places[0].0.common.frames.drain_cpu(&other_cpu);
                }
            }
        }
    };
    at_each_moment(hook, work);
    left.get().is_none()
}

/// Runs `first` on another CPU up to its `nth` moment, then `second` here up to its `mth`, then the first to its end,
/// and then the rest of the second; where one waits for a lock that the other has, the other continues. Returns what
/// `second` returned, and whether both came so far.
fn interleave<T>(
    space: &SpaceRef,
    (first, nth): (impl FnOnce(&Space, &Cpu) + Send, usize),
    (second, mth): (impl FnOnce() -> T, usize),
) -> (T, bool, bool) {
    let (pause, paused) = channel();
    let (resume, resumed) = channel();
    let (end, ended) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let cpu = Cpu::new(CpuId(1));
            let (mut left, hook_pause, waits) = (Some(nth), pause.clone(), end.clone());
            let hook = move |moment: Moment<'_>| match (left, moment) {
                // The second has it, and continues; where it has ended, it has no receiver.
                (None, Moment::Wait) => _ = waits.send(()),
                (Some(0), _) => {
                    left = None;
                    hook_pause.send(true).expect("the second waits for it");
                    resumed.recv().expect("the second resumes it");
                }
                (Some(count), _) => left = Some(count - 1),
                (None, _) => {}
            };
            at_each_moment(hook, || first(space, &cpu));
            space.common.frames.drain_cpu(&cpu);
            // The receivers are gone where the second has ended.
            let _ = pause.send(false);
            let _ = end.send(());
        });
        let is_first_paused = paused.recv().expect("a pause, or the end");
        let is_second_paused = Rc::new(Cell::new(false));
        let (mut left, resume_last, reached) = (Some(mth), resume.clone(), is_second_paused.clone());
        let hook = move |moment: Moment<'_>| match (left, moment) {
            (Some(_), Moment::Wait) => {
                left = None;
                let _ = resume.send(());
            }
            (Some(0), _) => {
                left = None;
                reached.set(true);
                let _ = resume.send(());
                ended.recv().expect("it ends, or waits");
            }
            (Some(count), _) => left = Some(count - 1),
            (None, _) => {}
        };
        let mut returned = None;
        at_each_moment(hook, || returned = Some(second()));
        let _ = resume_last.send(());
        (returned.expect("it has run"), is_first_paused, is_second_paused.get())
    })
}

/// [`interleave`] for every pair of moments, each on what `prepare` makes; then `check` gets what `second` returned.
#[track_caller]
fn at_each_pair<T, S>(
    prepare: impl Fn() -> (SpaceRef, S),
    first: fn(&Space, &Cpu),
    second: impl Fn(&SpaceRef, &S) -> T,
    check: impl Fn(T, &SpaceRef, &S),
) {
    let (mut pairs, mut nth, mut is_there) = (0, 0, true);
    while is_there {
        let (mut mth, mut goes_on) = (0, true);
        while goes_on {
            let (space, more) = prepare();
            let (returned, first, second) = interleave(&space, (first, nth), (|| second(&space, &more), mth));
            check(returned, &space, &more);
            pairs += 1;
            (is_there, goes_on) = (first, first && second);
            mth += 1;
        }
        nth += 1;
    }
    assert!(pairs > 20, "{pairs} pairs of moments");
}

/// Divides the areas at `at`, if nothing but a free page is there; returns whether it did.
fn divide(space: &Space, at: VirtAddr) -> bool {
    let mut part = space.write_areas(pages(at - PAGE, at + PAGE));
    let is_free = part.may_begin_at(at);
    is_free && space.areas.split(&mut part, at, &space.common.parts).is_some()
}

fn areas(space: &Space) -> Vec<(u64, u64, u8)> {
    space.areas.for_each(pages(USER_START, USER_END), &mut |part, _| {
        part.check();
        true
    });
    let mut areas = Vec::new();
    space.for_each_area(|area| areas.push((area.start().0, area.end().0, area.protection().bits())));
    areas
}
