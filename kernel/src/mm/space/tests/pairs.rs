//! Each call and access ([`calls`]), on each kind of memory ([`kinds`]), at each load, store and barrier of every other
//! ([`turns`]).
//!
//! The outcome of one of the two orders, in which one comes after the other, is right: for each answer and each page by
//! itself, since a call about several pages takes them one by one. Of a call that is [several steps](Call::in_steps)
//! each step may come before the other call, or after it. Nothing is leaked or freed twice, groups are uniform, and
//! two devices keep nothing that they were notified of: one that shares the tables is notified with the TLBs, and one
//! that mirrors them by events. Alone each call has a barrier between the contents of a page, or a table, and its entry.
//!
//! Each run tries some meetings, which its seed draws; `--long` tries each two calls, and every moment of a share of them:
//! as many seeds in a row as there are shares have all. Of a call that has very many moments each seed draws
//! some.

#![allow(unsafe_code, reason = "bytes of frames by their linear addresses")]

mod calls;
mod found;
mod kinds;
mod turns;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::sync::{Arc, Mutex};

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::host::Operation;

use super::groups::check_groups;
use super::*;
use crate::lab;
use crate::mm::counted::Counted;
use crate::mm::frame::tests::leaked_with_tag_storage;
use crate::mm::kernel::record::{at_each, unseen};
use crate::mm::notifier::{EventSet, Range, SubscribeError, Subscriber, Subscription};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::{
    AreaAdvice, FaultError, FaultMode, Features, Locking, Mark, Object, SpaceHandle, Userfaultfd, WriteAt,
};
use crate::platform::features::branch;
use crate::sched;
use crate::smp::this_cpu;
use calls::{Answer, CALLS, Call, ENDED, said, shown};
use kinds::{KINDS, Kind, Of};
use turns::{BreaksIn, Grain, Second, When, meet};

/// A block's and a group's first page.
const START: VirtAddr = VirtAddr(0x10_0020_0000);
/// Where a device's registers are: far from all memory.
const REGISTERS: PhysAddr = PhysAddr(0x10_0800_0000);
const TAGGED: Protection = READ_WRITE.and(Protection::TAGGED);
/// The bytes of a page that are looked at: at both ends, so that half a copy shows.
const LOOK: [u64; 2] = [8, PAGE - 8];
/// Meetings of each kind that each run draws, and of each pair of calls that a long one tries.
const DRAWN: usize = 1000;
const OF_A_PAIR: usize = 12;
/// The shares of all meetings, of which a long test tries one: each seed's is another one. A prime, so that each test
/// comes to each share, by whatever number of tests CI takes turns.
const SHARES: u64 = 127;
/// Moments of a call that a share tries, at most about this many.
const OF_A_SHARE: usize = 500;
/// How the devices are.
const NOTIFIED: [Notified; 2] = [Notified::WithTlbs, Notified::ByEvents];
/// Faults of one access, at most.
const FAULTS: usize = 50;

/// Where `mremap` moves a page.
fn there(at: VirtAddr) -> VirtAddr {
    at + (1 << 30)
}

/// The entry that translates `page`, by a walk as hardware makes it, with the frame of the page.
fn walk(space: &Space, page: VirtAddr) -> Descriptor {
    unseen(|| {
        if let Some(block) = space.block_entry(page) {
            return Descriptor(block.0 + page.0 % BLOCK_SIZE);
        }
        space.page_tables().cell(page).map_or(Descriptor::EMPTY, |(_, cell)| space.mmu().load(cell))
    })
}

/// Whether hardware that sets no flags makes `access` by `entry`.
fn permits(entry: Descriptor, access: Access) -> bool {
    let refused = match access {
        Access::Read => 0,
        Access::Write => bits::RDONLY,
        Access::Execute => bits::UXN,
    };
    entry.is_valid() && entry.is_young() && entry.0 & refused == 0
}

/// How a device is notified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Notified {
    WithTlbs,
    ByEvents,
    /// Not at all, nor of the end.
    Nothing,
}

/// Keeps what it has walked.
struct Device {
    notified: Notified,
    /// `None` once the space is released: its context translates nothing.
    kept: Mutex<Option<BTreeMap<u64, Descriptor>>>,
    /// Ranges that are about to change: nothing there is walked.
    changing: Mutex<Vec<(VirtAddr, VirtAddr)>>,
}

impl Device {
    fn join(space: &SpaceHandle, notified: Notified) -> Result<Bound, SubscribeError> {
        let space = space.upgrade().ok_or(SubscribeError::Released)?;
        let device = Self { notified, kept: Mutex::new(Some(BTreeMap::new())), changing: Mutex::default() };
        // As a binding does.
        let joined = space.between_changes(|_| Subscription::new(SpaceHandle::new(&space), device, 0));
        joined.unwrap_or(Err(SubscribeError::Released))
    }

    fn forget(&self, start: VirtAddr, end: VirtAddr) {
        let mut kept = self.kept.lock().unwrap();
        kept.iter_mut().for_each(|kept| kept.retain(|&page, _| page < start.0 || page >= end.0));
    }

    fn is_changing(&self, page: VirtAddr) -> bool {
        self.changing.lock().unwrap().iter().any(|&(start, end)| (start..end).contains(&page))
    }

    /// Keeps what `page` is translated by, if it has nothing for it.
    fn walk(&self, space: &Space, page: VirtAddr) {
        let entry = walk(space, page);
        if permits(entry, Access::Read) && !self.is_changing(page) {
            self.kept.lock().unwrap().iter_mut().for_each(|kept| _ = kept.entry(page.0).or_insert(entry));
        }
    }

    fn access(&self, world: &World, space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> Answer {
        for _ in 0..FAULTS {
            while self.is_changing(page) {
                sched::sleep_briefly();
            }
            self.walk(space, page);
            let Some(kept) = self.kept.lock().unwrap().as_ref().map(|kept| kept.get(&page.0).copied()) else {
                return ENDED.into();
            };
            if let Some(kept) = kept.filter(|&kept| permits(kept, access)) {
                return format!("{:?}", world.bytes_of(kept, (access == Access::Write).then_some(0xd0)));
            }
            if let Err(error) = world.fault(space, cpu, page, access) {
                // Of a space that ends, whose areas go before its devices.
                let has_ended = world.main.lock().unwrap().is_none();
                return if has_ended { ENDED.into() } else { said(error) };
            }
        }
        panic!("a device's {access:?} faults for ever");
    }

    /// The first page of which it has something else than its entry.
    fn stale(&self, space: Option<&Space>) -> Option<String> {
        const HARDWARE: u64 = bits::VALID | bits::ADDRESS | bits::AF | bits::RDONLY | bits::USER | bits::UXN;
        let kept = self.kept.lock().unwrap();
        let entry = |page| space.map_or(Descriptor::EMPTY, |space| walk(space, VirtAddr(page)));
        // An entry that becomes old is no event.
        let old = if self.notified == Notified::ByEvents { bits::AF } else { 0 };
        let mut kept = kept.iter().flatten().map(|(&page, &kept)| (page, kept, entry(page)));
        let (page, kept, entry) = kept.find(|(_, kept, entry)| (kept.0 ^ entry.0) & HARDWARE & !old != 0)?;
        Some(format!("a device notified {:?} has {kept:?} for {page:#x}, whose entry is {entry:?}", self.notified))
    }
}

impl Subscriber for Device {
    fn events(&self) -> EventSet {
        if self.notified == Notified::ByEvents { EventSet::ALL } else { EventSet::NONE }
    }

    fn invalidate_range_start(&self, range: &Range) {
        self.changing.lock().unwrap().push((range.start, range.end));
        self.forget(range.start, range.end);
    }

    fn invalidate_range_end(&self, range: &Range) {
        let mut changing = self.changing.lock().unwrap();
        let ended = changing.iter().position(|&change| change == (range.start, range.end));
        changing.swap_remove(ended.unwrap());
    }

    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        if self.notified == Notified::WithTlbs {
            self.forget(start, end);
        }
    }

    fn release(&self) {
        if self.notified != Notified::Nothing {
            *self.kept.lock().unwrap() = None;
        }
    }
}

type Bound = Subscription<Device, SpaceHandle>;

/// A pager's file: a call about it has a reference, so that it is closed after the last one.
struct PagerFile(Counted<Userfaultfd>);

impl Drop for PagerFile {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Memory of a kind, in a space.
struct World {
    rig: &'static Rig,
    kind: &'static Kind,
    handle: SpaceHandle,
    /// Until it ends.
    main: Mutex<Option<SpaceRef>>,
    /// It, once its last user leaves it: calls that have a reference find it without memory.
    left: Mutex<Option<SpaceRef>>,
    family: Mutex<Vec<SpaceRef>>,
    file: Option<Counted<Object>>,
    /// Until it is closed.
    pager: Mutex<Option<Arc<PagerFile>>>,
    devices: Vec<Bound>,
    bound: Mutex<Option<Bound>>,
}

/// A page that is looked at: of which space, which one, and whether where it is moved to.
type Place = (usize, usize, bool);

impl World {
    fn at(&self, page: usize) -> VirtAddr {
        let pages = self.kind.pages().0;
        START + pages[page % pages.len()] * PAGE
    }

    fn bytes(&self) -> u64 {
        self.kind.pages().1 * PAGE
    }

    /// Reads the bytes that are looked at, by `entry`; stores `new` before.
    fn bytes_of(&self, entry: Descriptor, new: Option<u8>) -> [u8; 2] {
        if entry.address() == REGISTERS {
            return [0; 2];
        }
        let page = self.rig.frames.linear().address(entry.address());
        LOOK.map(|offset| {
            let byte = (page + offset).as_ptr::<u8>();
            // SAFETY: in the linear map; of the threads that use it one runs at a time.
            unsafe {
                new.into_iter().for_each(|new| byte.write(new));
                byte.read()
            }
        })
    }

    /// Serves a fault as its caller does: where a pager has to, the entry is looked at again when the lock of its table
    /// was free.
    fn fault(&self, space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> Result<(), FaultError> {
        match handle_fault(space, cpu, page, access) {
            Err(FaultError::Userfault) if self.kind.is_sigbus() => space.userfault(cpu, page, access, FaultMode::El0),
            Err(FaultError::Userfault) => {
                let areas = space.areas.read(page);
                drop(space.page_tables().cell(page).map(|(table, _)| space.lock_table(table)));
                drop(areas);
                unseen(|| handle_fault(space, cpu, page, access))
            }
            served => served,
        }
    }

    /// An access of a CPU.
    fn access(
        &self,
        space: &Space,
        cpu: &Cpu,
        page: VirtAddr,
        access: Access,
        new: Option<u8>,
    ) -> Result<[u8; 2], FaultError> {
        for _ in 0..FAULTS {
            let entry = walk(space, page);
            if permits(entry, access) && (access != Access::Write || entry.is_dirty()) {
                return Ok(self.bytes_of(entry, new));
            }
            self.fault(space, cpu, page, access)?;
        }
        panic!("an access faults for ever");
    }

    /// A store of a tag, which is not compared: on the host each thread has tags of its own.
    fn store_tag(&self, space: &Space, cpu: &Cpu, page: VirtAddr) -> Answer {
        for _ in 0..FAULTS {
            let entry = walk(space, page);
            if permits(entry, Access::Write) && entry.is_dirty() {
                return if entry.is_tagged() { "tagged" } else { "untagged" }.into();
            }
            if let Err(error) = self.fault(space, cpu, page, Access::Write) {
                return format!("{error:?}");
            }
        }
        panic!("a store of a tag faults for ever");
    }

    fn device(&self, index: usize, space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> Answer {
        let device = self.devices.get(index);
        device.map_or_else(|| "no device".into(), |device| device.access(self, space, cpu, page, access))
    }

    /// Releases the locks of the tables of what is looked at, which another thread holds; returns whether there was one.
    fn unlock_tables(&self) -> bool {
        let spaces = self.handle.upgrade().into_iter();
        let held = unseen(|| {
            let tables = spaces.flat_map(|space| {
                let table = |page| space.page_tables().cell(self.at(page)).map(|(table, _)| table);
                (0..self.kind.pages().0.len()).filter_map(table).collect::<Vec<_>>()
            });
            tables.filter(|&table| self.rig.spaces.record(table).table_lock.swap(0, Ordering::Release) != 0).count()
        });
        held != 0
    }

    /// The devices walk all pages, and keep what they find.
    fn devices_walk(&self) {
        let Some(space) = self.main.lock().unwrap().clone() else { return };
        for device in &self.devices {
            (0..self.kind.pages().0.len()).for_each(|page| device.walk(&space, self.at(page)));
        }
    }

    /// The states of all pages, in words. Nothing else runs.
    fn look(&self) -> BTreeMap<Place, String> {
        let (mut seen, cpu) = (BTreeMap::new(), &self.rig.cpu);
        let family = self.family.lock().unwrap();
        let main = self.main.lock().unwrap();
        let places = || {
            let spaces = main.iter().map(|main| (0, main)).chain((1..).zip(family.iter()));
            let pages = 0..self.kind.pages().0.len();
            spaces.flat_map(move |(number, space)| {
                pages.clone().flat_map(move |page| {
                    [(self.at(page), false), (there(self.at(page)), true)]
                        .map(|(at, moved)| ((number, page, moved), space, at))
                })
            })
        };
        for (place, space, at) in places() {
            let area = space.with_area(at, |area| (area.protection(), area.flags()));
            // An object may lose pages that were locked concurrently.
            let is_locked =
                space.with_area(at, |area| area.locking() == Locking::Now && !area.is_shared()) == Some(true);
            let is_there = walk(space, at) != Descriptor::EMPTY;
            let locked = if is_locked { format!(", locked and there: {is_there}") } else { String::new() };
            seen.insert(place, format!("{area:?}, pagemap {:#x}{locked}", shown(space, at)));
        }
        for access in [Access::Read, Access::Write] {
            for (place, space, at) in places() {
                let answer = self.access(space, cpu, at, access, None);
                seen.entry(place).or_default().push_str(&format!(", {access:?} {answer:x?}"));
            }
        }
        seen
    }

    /// Other faults of the state: stale entries of devices, and groups that are not uniform.
    fn wrong(&self) -> Option<String> {
        let main = self.main.lock().unwrap();
        let bound = self.bound.lock().unwrap();
        let stale = self.devices.iter().chain(&*bound).find_map(|device| device.stale(main.as_deref()));
        stale.or_else(|| {
            let family = self.family.lock().unwrap();
            main.iter().chain(&*family).find_map(|space| check_groups(space).err())
        })
    }
}

/// The answers of two calls, and the pages then.
#[derive(Clone, Debug)]
struct Outcome {
    answers: [Answer; 2],
    pages: BTreeMap<Place, String>,
    /// How many operations the first one had, where it came first.
    moments: usize,
    /// When they met, in words.
    at: String,
}

/// How two calls are made.
#[derive(Clone, Copy)]
enum Order {
    /// One after the other, of which this one is the first.
    Alone(usize),
    /// This one is the first of a meeting.
    Met(usize, When),
}

/// Two calls about a page, and whether there are devices.
type Pair = (usize, usize, usize, bool);

/// A kind's machine, and the thread of the second calls.
struct Harness {
    kind: &'static Kind,
    rig: &'static Rig,
    second: Second,
    notified: [Notified; 2],
    seed: u64,
    /// Locks of tables exclude nothing: what has to wait for one continues.
    breaks_in: bool,
    /// The outcomes of the two orders.
    orders: BTreeMap<Pair, [Outcome; 2]>,
    met: usize,
}

/// Work that makes the call of this number of two, on its CPU, and notes the answer.
fn job(
    (call, number, page): (&'static Call, usize, usize),
    in_steps: bool,
    world: &Arc<World>,
    answers: &Arc<Mutex<[Answer; 2]>>,
) -> impl FnOnce() + Send + 'static {
    let (world, answers) = (world.clone(), answers.clone());
    move || {
        let second = Cpu::new(CpuId(1));
        let cpu = if number == 0 { &world.rig.cpu } else { &second };
        let answer = call.make(&world, cpu, page, in_steps);
        answers.lock().unwrap()[number] = answer;
        [cpu, this_cpu()].into_iter().for_each(|cpu| world.rig.frames.drain_cpu(cpu));
    }
}

impl Harness {
    fn new(kind: &'static Kind, seed: u64) -> Self {
        Self {
            kind,
            rig: kind.rig(),
            second: Second::new(),
            notified: NOTIFIED,
            seed,
            breaks_in: false,
            orders: BTreeMap::new(),
            met: 0,
        }
    }

    /// Runs two calls on fresh memory, in an order or as a meeting; what is wrong with it at once.
    fn run(&self, pair: Pair, order: Order) -> Result<Outcome, String> {
        let (first, second, page, with_devices) = pair;
        let (rig, calls): (_, [&'static Call; 2]) = (self.rig, [&CALLS[first], &CALLS[second]]);
        let used = rig.used();
        let world = self.kind.world(rig, if with_devices { &self.notified } else { &[] });
        let answers = Arc::new(Mutex::new([const { String::new() }; 2]));
        let jobs = |first: usize, in_steps| {
            [first, 1 - first].map(|number| job((calls[number], number, page), in_steps, &world, &answers))
        };
        let (mut moments, mut at) = (0, String::new());
        match order {
            Order::Alone(number) => {
                let [first, second] = jobs(number, false);
                moments = turns::moments(first);
                second();
            }
            Order::Met(number, when) => {
                let what = format!("{}, {when:?}", self.name(pair));
                let (walker, theirs) = (world.clone(), Arc::downgrade(&world));
                let unlock = move || theirs.upgrade().is_some_and(|world| world.unlock_tables());
                let breaks_in = self.breaks_in.then(|| -> BreaksIn { Box::new(unlock) });
                let [first, second] = jobs(number, when.grain == Grain::Steps);
                let met = meet(&self.second, (when, what, breaks_in), first, second, move || walker.devices_walk());
                at = format!("{when:?}, {}: ", met.at);
                if let Some(panic) = met.panics.iter().flatten().next() {
                    // Locks may be held for ever.
                    core::mem::forget(world);
                    return Err(format!("{at}panicked: {panic}"));
                }
            }
        }
        let wrong = world.wrong();
        let pages = match turns::caught(|| world.look()) {
            Ok(pages) => pages,
            Err(panic) => {
                core::mem::forget(world);
                return Err(format!("{at}the look behind it panicked: {panic}"));
            }
        };
        let wrong = wrong.or_else(|| world.wrong());
        let pager = world.pager.lock().unwrap().take();
        drop(pager);
        assert_eq!(Arc::strong_count(&world), 1);
        drop(world);
        [&rig.cpu, this_cpu()].into_iter().for_each(|cpu| rig.frames.drain_cpu(cpu));
        let left = (rig.used(), rig.spaces.counts(), rig.frames.stats().refused);
        let wrong = wrong.or_else(|| {
            (left != (used, [0; 3], 0)).then(|| {
                format!("{used} frames were in use before, and now frames, objects and frames freed twice are {left:?}")
            })
        });
        let answers = answers.lock().unwrap().clone();
        wrong.map_or(Ok(Outcome { answers, pages, moments, at: at.clone() }), |wrong| Err(format!("{at}{wrong}")))
    }

    /// The outcomes of one order, and the other.
    fn orders(&mut self, pair: Pair) -> Result<[Outcome; 2], String> {
        if let Some(orders) = self.orders.get(&pair) {
            return Ok(orders.clone());
        }
        let orders = [self.run(pair, Order::Alone(0))?, self.run(pair, Order::Alone(1))?];
        self.orders.insert(pair, orders.clone());
        Ok(orders)
    }

    /// The outcomes where the steps of one come between those of the other.
    fn between_steps(&self, pair: Pair) -> Result<Vec<Outcome>, String> {
        let (mut outcomes, pauses) = (Vec::new(), [pair.0, pair.1].map(|call| CALLS[call].pauses()));
        for number in [0, 1] {
            for first in 0..pauses[number] {
                for second in (0..pauses[1 - number]).map(Some).chain([None]) {
                    let when = When { grain: Grain::Steps, first, second };
                    outcomes.push(self.run(pair, Order::Met(number, when))?);
                }
            }
        }
        Ok(outcomes)
    }

    /// Tries one meeting; what was wrong.
    fn try_one(&mut self, pair: Pair, when: When) -> Result<(), String> {
        let calls = [pair.0, pair.1].map(|call| &CALLS[call]);
        let result = self.orders(pair).and_then(|orders| {
            let met = self.run(pair, Order::Met(0, when))?;
            self.met += 1;
            let Some(wrong) = difference(&met, &orders, calls) else { return Ok(()) };
            let more = self.between_steps(pair)?;
            let all: Vec<Outcome> = orders.iter().cloned().chain(more).collect();
            let wrong = difference(&met, &all, calls).map(|_| wrong);
            wrong.map_or(Ok(()), |wrong| Err(format!("of {}, {}{wrong}", orders[0].moments, met.at)))
        });
        result.map_err(|wrong| format!("{}, {wrong}", self.name(pair)))
    }

    fn name(&self, (first, second, page, devices): Pair) -> String {
        let [first, second] = [first, second].map(|call| CALLS[call].name);
        let with = if devices { ", with devices" } else { "" };
        format!("{} memory, page {page}{with}: {first:?}, and {second:?}", self.kind.name)
    }

    /// Tries so many meetings of calls that are drawn.
    fn try_some(&mut self, meetings: usize) {
        let mut random = self.random();
        while self.met < meetings {
            let pair = [(); 2].map(|()| random.below(CALLS.len()));
            self.try_pair(pair, 8, &mut random, "");
        }
    }

    /// Makes each call by itself, about a page that is drawn: what a new entry shows is as it was at the last barrier.
    fn check_contents(&self) {
        let mut random = self.random();
        for call in CALLS {
            let page = random.below(4);
            let early = self.incomplete(call, page, |operation| {
                matches!(operation, Operation::DmbIshst | Operation::DsbIshst | Operation::DsbIsh)
            });
            assert_eq!(
                early, None,
                "{} memory, page {page}, {}: an entry, and what it shows",
                self.kind.name, call.name
            );
        }
    }

    /// The first new entry of a call, alone, that shows a frame which has changed since the last barrier.
    fn incomplete(
        &self,
        call: &Call,
        page: usize,
        is_barrier: fn(&Operation) -> bool,
    ) -> Option<(Descriptor, PhysAddr)> {
        let rig = self.rig;
        let world = self.kind.world(rig, &[]);
        let (fresh, early) = (RefCell::new(spoil(rig)), Rc::new(Cell::new(None)));
        let noted = Rc::clone(&early);
        let look = move |operation: &Operation| match *operation {
            // Valid or not: those of objects never are.
            Operation::Write { new, .. } if new.is_present() => {
                let bytes = if new.is_valid() && !new.is_table() { BLOCK_SIZE } else { PAGE };
                let shown = new.address()..new.address() + bytes;
                let changed = |&(&frame, &word): &(&PhysAddr, &u64)| word_of(rig, frame) != word;
                let changed = fresh.borrow().range(shown).find(changed).map(|(&frame, _)| (new, frame));
                noted.set(noted.get().or(changed));
            }
            _ if is_barrier(operation) => {
                fresh.borrow_mut().iter_mut().for_each(|(&frame, word)| *word = word_of(rig, frame));
            }
            _ => {}
        };
        at_each(look, || _ = call.make(&world, &rig.cpu, page, false));
        let pager = world.pager.lock().unwrap().take();
        drop((pager, world));
        [&rig.cpu, this_cpu()].into_iter().for_each(|cpu| rig.frames.drain_cpu(cpu));
        early.get()
    }

    /// Tries some meetings of each call with each.
    fn try_all(&mut self) {
        let mut random = self.random();
        for first in 0..CALLS.len() {
            for second in 0..CALLS.len() {
                self.try_pair([first, second], OF_A_PAIR, &mut random, "--long ");
            }
            self.orders.clear();
        }
    }

    /// Tries every moment of each two calls whose number is in the share, for each page, with devices and without.
    fn try_every_moment(&mut self) {
        let share = (self.seed % SHARES) as usize;
        for index in (share..CALLS.len() * CALLS.len()).step_by(SHARES as usize) {
            for (page, with_devices) in (0..self.kind.pages().0.len()).flat_map(|page| [(page, true), (page, false)]) {
                let pair = (index / CALLS.len(), index % CALLS.len(), page, with_devices);
                if !self.is_compared([pair.0, pair.1]) {
                    continue;
                }
                let moments = self.orders(pair).map_or(1, |orders| orders[0].moments);
                let step = moments.div_ceil(OF_A_SHARE).max(1);
                for first in (self.random().below(step)..moments).step_by(step) {
                    let when = When { grain: Grain::Operations, first, second: None };
                    if let Err(wrong) = self.try_one(pair, when) {
                        self.fail(&wrong, "--long ");
                    }
                }
            }
            self.orders.clear();
        }
    }

    /// Numbers of the seed, for each kind others.
    fn random(&self) -> Random {
        let mut random = Random(self.seed);
        self.kind.name.bytes().for_each(|byte| random.0 ^= random.below(1 << 31) as u64 ^ u64::from(byte) << 32);
        random
    }

    /// Fails with the command that repeats it.
    fn fail(&self, wrong: &str, option: &str) -> ! {
        panic!("{wrong}\nagain: ./x test --host --seed {} {option}pairs::{}::", self.seed, self.kind.name);
    }

    /// Whether a meeting of two calls ends as in an order. A call that moves a page concerns two: what takes pages one by
    /// one, or a page by a fault and an access, may find it at both or at neither, and a child that ends concerns both.
    fn is_compared(&self, calls: [usize; 2]) -> bool {
        let names = calls.map(|call| CALLS[call].name);
        let moves = names.iter().any(|name| name.starts_with("UFFDIO_MOVE"));
        let is_one_by_one = !["protected", "groups_protected"].contains(&self.kind.name);
        !moves || !is_one_by_one && !names.contains(&"fork, and the child ends")
    }

    /// Tries meetings of two calls at moments that are drawn, or all where there are no more.
    fn try_pair(&mut self, [first, second]: [usize; 2], most: usize, random: &mut Random, option: &str) {
        if !self.is_compared([first, second]) {
            return;
        }
        let pair = (first, second, random.below(4), random.below(2) == 0);
        let moments = self.orders(pair).map_or(1, |orders| orders[0].moments);
        for index in 0..moments.min(most) {
            let moment = if moments <= most { index } else { random.below(moments) };
            let stop = (random.below(3) == 0).then(|| random.below(40));
            let when = When { grain: Grain::Operations, first: moment, second: stop };
            if let Err(wrong) = self.try_one(pair, when) {
                self.fail(&wrong, option);
            }
        }
    }
}

/// Frames that are free, with a word that no call leaves there.
fn spoil(rig: &Rig) -> BTreeMap<PhysAddr, u64> {
    const STALE: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let free: Vec<PhysAddr> = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
    for &frame in &free {
        // SAFETY: a frame of this function's, in the linear map.
        unsafe { middle(rig, frame).write_volatile(STALE) };
        rig.frames.free(&rig.cpu, frame);
    }
    rig.frames.drain_cpu(&rig.cpu);
    free.into_iter().map(|frame| (frame, STALE)).collect()
}

/// The word in the middle of a frame. Lists of free frames use the first ones.
fn middle(rig: &Rig, frame: PhysAddr) -> *mut u64 {
    rig.frames.linear().address(frame + PAGE / 2).as_ptr()
}

fn word_of(rig: &Rig, frame: PhysAddr) -> u64 {
    // SAFETY: in the linear map; of the threads that use it one runs at a time.
    unsafe { middle(rig, frame).read_volatile() }
}

/// Numbers that repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// The seed of the run, which has other meetings each time; where `./x test` does not run this, always one.
fn seed() -> u64 {
    let seed = std::env::var("PROPTEST_RNG_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(2)
}

/// The first answer or page that none of `orders` gives.
fn difference(met: &Outcome, orders: &[Outcome], calls: [&Call; 2]) -> Option<String> {
    for (index, which) in ["first", "second"].into_iter().enumerate() {
        let answer = &met.answers[index];
        let mut expected = orders.iter().map(|order| &order.answers[index]);
        // The access is to be tried again, and fails then.
        let is_tried_again = calls[index].name.starts_with("fault for") && *answer == "Ok(())";
        if !is_tried_again && expected.all(|expected| expected != answer) {
            let [one, other] = [0, 1].map(|order| &orders[order].answers[index]);
            return Some(format!("the {which} answers {answer}, in order {one}, the other way round {other}"));
        }
    }
    let places = met.pages.keys().chain(orders.iter().flat_map(|order| order.pages.keys()));
    places.into_iter().find_map(|place| {
        let page = met.pages.get(place);
        orders.iter().all(|order| order.pages.get(place) != page).then(|| {
            let [one, other] = [0, 1].map(|order| orders[order].pages.get(place));
            format!(
                "(space, page, moved) {place:?}\n is     {page:?},\n in order {one:?},\n the other way round {other:?}"
            )
        })
    })
}

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap()
}

fn with_harness(name: &str, work: impl FnOnce(&mut Harness)) {
    let kind = kind(name);
    host::with(kind.branches, || work(&mut Harness::new(kind, seed())));
}

/// Has each kind met by so many meetings that the seed draws, and where there is time by some of each two calls, and at
/// every moment of a share of them.
macro_rules! meetings {
    ($($kind:ident)*) => {
        #[test]
        fn every_kind_has_its_tests() {
            assert!(KINDS.iter().map(|kind| kind.name).eq([$(stringify!($kind)),*]));
        }

        $(
            mod $kind {
                #[test]
                fn drawn_meetings_end_as_in_an_order() {
                    super::with_harness(stringify!($kind), |harness| harness.try_some(super::DRAWN));
                }

                #[test]
                fn a_page_is_complete_before_its_entry() {
                    super::with_harness(stringify!($kind), |harness| harness.check_contents());
                }

                #[test]
                #[ignore = "takes minutes: ./x test --long"]
                fn every_moment_of_a_share_ends_as_in_an_order() {
                    super::with_harness(stringify!($kind), |harness| harness.try_every_moment());
                }

                #[test]
                #[ignore = "takes minutes: ./x test --long"]
                fn all_meetings_end_as_in_an_order() {
                    super::with_harness(stringify!($kind), |harness| harness.try_all());
                }
            }
        )*
    };
}

meetings! {
    private forked shared file private_file rom guarded locked droppable stack registers tagged
    missing protected protected_file minor_file tracked sigbus
    groups groups_live groups_forked groups_protected
    many many_forked many_protected many_missing
    blocks blocks_live blocks_forked blocks_shared blocks_shared_live blocks_protected blocks_tracked
}
