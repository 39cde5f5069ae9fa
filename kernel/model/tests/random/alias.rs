//! Pages and their alias, of two CPUs whose frames lie in the same leaves of the linear map.
//!
//! Each owns some pages of one area, and so the alias of their frames, wherever these lie: among those of the other, in
//! one block, one contiguous group. After each change what every CPU may do to the caller's pages, here and by their
//! alias, is what a plain list has; and a frame that is given back can be written by its alias at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule::mm::kernel::alias::{Alias, ReadOnly, ReadWrite, update};
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_model::{Access, Fault, Features, Frames, Model, Rule, Sabotage, Step};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{
    Change, Cut, Error, Geometry, Granule4K, Lazy, Leaf, Leaves, Lockless, PageRange, RefuseSplits, Splitter, Tiny,
};
use proptest::prelude::{Just, Strategy, any, proptest};
use proptest::test_runner::Config;

use crate::rig::Unserialised;
use crate::split::features;
use crate::turns::{Gated, Turns, is_seen, machine};
use crate::{DATA, Interleaving, LARGEST, turns};

/// Pages in the area.
const PAGES: usize = 8;
/// Where the memory of the linear map begins: aligned for every leaf.
const MEMORY: u64 = 0x10_0000_0000;

/// A call on pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Change(Change),
    /// Read-only and executable in one call.
    Code,
}

const CHANGES: [What; 5] = [
    What::Change(Change::READ_ONLY),
    What::Change(Change::READ_WRITE),
    What::Code,
    What::Change(Change::NO_EXECUTE),
    What::Change(Change::EXECUTABLE),
];

/// [`What::Code`] in it.
const CODE: usize = 2;

/// The protection that a page of the area should have.
#[derive(Clone, Copy, Default)]
struct Page {
    read_only: bool,
    executable: bool,
    /// Whether its alias is read-only.
    alias: bool,
    unmapped: bool,
}

/// Some of a CPU's pages, and what is done to them.
type Call = (usize, usize, usize);

struct Scene<'m, G: Geometry> {
    model: &'m Model<G>,
    /// The frame of each page of the area, by its number in the linear map.
    frames: Vec<u64>,
    /// CPU 0 owns the pages in front of this one, CPU 1 the rest.
    border: usize,
    pages: Mutex<[Page; PAGES]>,
    turns: Turns,
    forgets: Forgets,
    /// Tables that unmapping may take: none where each owner has changed its part alone.
    to_unmap: usize,
}

/// A step that is left out, to see that it is missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Forgets {
    Nothing,
    /// Changes leave the alias alone.
    Alias,
    /// Nothing keeps two splits of one leaf of it apart.
    Order,
    /// It stays read-only when the pages are unmapped.
    Restoring,
}

/// The linear map, with some frames for tables.
struct Linear<'m, G: Geometry> {
    start: VirtAddr,
    frames: Frames<'m, G>,
    forgets: Forgets,
}

impl<'a, G: Geometry> Splitter<Gated<'a, G>> for Linear<'_, G> {
    const LIVE_SPLITS: bool = true;

    fn split(&mut self, cut: &Cut<'_, Gated<'a, G>>) -> Result<(), Error> {
        match self.forgets {
            Forgets::Order => cut.split(&Unserialised, &mut self.frames).map(drop),
            _ => cut.split(&Lockless, &mut self.frames).map(drop),
        }
    }
}

impl<'a, G: Geometry> Alias<Gated<'a, G>> for Linear<'_, G> {
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        assert!((MEMORY..MEMORY + memory::<G>()).contains(&frame.0), "{frame} is not in the linear map");
        self.start + (frame.0 - MEMORY)
    }
}

impl<'m, G: Geometry> Scene<'m, G> {
    /// Maps the linear map by the largest leaves, and the area.
    fn new(model: &'m Model<G>, frames: Vec<u64>, border: usize, turns: Vec<u8>, forgets: Forgets) -> Self {
        let (pages, turns) = (Mutex::default(), Turns::new(turns));
        let scene = Self { model, frames, border, pages, turns, forgets, to_unmap: 0 };
        let cpu = model.cpu(0);
        let (lazy, tables) = (Lazy::new(&cpu), cpu.page_tables());
        let linear = PageRange::new(model.base(), memory::<G>()).unwrap();
        model.shows_all(linear.start()..=linear.last());
        tables.map(&lazy, linear, PhysAddr(MEMORY), DATA, LARGEST, &mut model.frames()).unwrap();
        let area = scene.area(0, PAGES);
        let frame = |page: usize| PhysAddr(MEMORY + scene.frames[page] * G::PAGE_SIZE);
        // How many from a page on follow one another.
        let run = |page: usize| {
            (page..PAGES).take_while(|&next| frame(next) == frame(page) + (next - page) as u64 * G::PAGE_SIZE).count()
        };
        if run(0) == PAGES {
            tables.map(&lazy, area, frame(0), DATA, LARGEST, &mut model.frames()).unwrap();
        } else {
            let frames = |address: VirtAddr, most: usize| {
                let page = ((address - area.start()) / G::PAGE_SIZE) as usize;
                (frame(page), run(page).min(most))
            };
            tables.map_frames(&lazy, area, frames, DATA, Leaves::Largest, &mut model.frames()).unwrap();
        }
        drop(lazy);
        model.synchronise();
        model.hand_over(0, 1);
        scene
    }

    /// Makes all of the area read-only, before its owners begin.
    fn make_read_only(&mut self) {
        let mmu = Gated::new(self.model.cpu(0), None);
        let (tables, whole) = (mmu.page_tables(), self.area(0, PAGES));
        update::update::<ReadOnly, _, _>(tables, &KernelTlb, whole, 0, &mut self.linear(usize::MAX)).unwrap();
        self.pages().fill(Page { read_only: true, alias: true, ..Page::default() });
        self.model.synchronise();
        self.model.hand_over(0, 1);
        self.to_unmap = usize::MAX;
    }

    fn area(&self, first: usize, count: usize) -> PageRange<G> {
        let start = self.model.base() + memory::<G>();
        PageRange::from_pages(start + first as u64 * G::PAGE_SIZE, count).unwrap()
    }

    fn pages(&self) -> MutexGuard<'_, [Page; PAGES]> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages of `cpu`.
    fn owned(&self, cpu: usize) -> std::ops::Range<usize> {
        if cpu == 0 { 0..self.border } else { self.border..PAGES }
    }

    fn linear(&self, tables: usize) -> Linear<'m, G> {
        Linear { start: self.model.base(), frames: self.model.frames_limited(tables), forgets: self.forgets }
    }

    /// Changes some pages of `cpu`, with ever more tables for what has to be split.
    fn change(&self, cpu: usize, (first, count, change): Call) {
        let owned = self.owned(cpu);
        let first = owned.start + first % owned.len();
        let pages = first..owned.end.min(first + count);
        let (range, what) = (self.area(first, pages.len()), CHANGES[change]);
        let mmu = Gated::new(self.model.cpu(cpu), Some(&self.turns));
        let (lazy, tlb) = (Lazy::new(&mmu), KernelTlb);
        if let (Forgets::Alias, What::Change(change)) = (self.forgets, what) {
            let flush = mmu.page_tables().update(&lazy, range, change, self.linear(usize::MAX));
            flush.into_iter().for_each(|flush| lazy.invalidate(&tlb, [flush]));
        } else {
            for tables in 0.. {
                let mut linear = self.linear(tables);
                let tables = mmu.page_tables();
                let linear = &mut linear;
                let changed = match what {
                    What::Change(Change::READ_ONLY) => update::update::<ReadOnly, _, _>(tables, &tlb, range, 0, linear),
                    What::Change(Change::READ_WRITE) => {
                        update::update::<ReadWrite, _, _>(tables, &tlb, range, 0, linear)
                    }
                    // Not about writing: the alias stays as it is.
                    What::Change(change) => {
                        tables.update(&lazy, range, change, linear).map(|flush| lazy.invalidate(&tlb, [flush]))
                    }
                    What::Code => tables.update_to_code(&lazy, &tlb, range, 0, linear, |_, linear| {
                        update::update::<ReadOnly, _, _>(tables, &tlb, range, 0, linear)
                    }),
                };
                match changed {
                    Err(Error::OutOfTables { .. }) => self.turns.step(cpu, || self.check(cpu)),
                    Err(Error::WritableAndExecutable(_)) => return,
                    result => {
                        result.expect("nothing else speaks against it");
                        break;
                    }
                }
            }
        }
        for page in &mut self.pages()[pages] {
            let before = *page;
            page.executable = match what {
                What::Code | What::Change(Change::EXECUTABLE) => true,
                What::Change(Change::NO_EXECUTE) => false,
                What::Change(_) => before.executable,
            };
            page.read_only = match what {
                What::Code | What::Change(Change::READ_ONLY) => true,
                What::Change(Change::READ_WRITE) => false,
                What::Change(_) => before.read_only,
            };
            page.alias = page.read_only;
        }
    }

    /// Unmaps all pages of `cpu`.
    fn unmap(&self, cpu: usize) {
        let owned = self.owned(cpu);
        let mmu = Gated::new(self.model.cpu(cpu), Some(&self.turns));
        let (lazy, tlb) = (Lazy::new(&mmu), KernelTlb);
        let range = self.area(owned.start, owned.len());
        // An area goes as a whole; of this one each CPU has a part.
        let (tables, mut frames) = (mmu.page_tables(), self.model.frames());
        match self.forgets {
            Forgets::Order => tables.split(range, &Unserialised, &mut frames).unwrap(),
            _ => tables.split(range, &Lockless, &mut frames).unwrap(),
        };
        let mut linear = self.linear(self.to_unmap);
        let released = |leaf: Leaf| {
            self.turns.step(cpu, || {
                self.assert_may(leaf.physical, leaf.physical, Access::Write, true);
                self.model.frame_freed(cpu, leaf.physical);
            });
        };
        let unmapped = match self.forgets {
            Forgets::Restoring => mmu.page_tables().unmap(&lazy, &tlb, range, RefuseSplits, released),
            _ => update::unmap(mmu.page_tables(), &tlb, range, &mut linear, released),
        };
        unmapped.expect("what was changed with its alias needs no table");
        for page in &mut self.pages()[owned] {
            *page = Page { unmapped: true, ..Page::default() };
        }
    }

    /// Asserts what every CPU may do by the alias of `frame`.
    fn assert_may(&self, frame: PhysAddr, physical: PhysAddr, access: Access, allowed: bool) {
        self.assert_outcome(self.model.base() + (frame.0 - MEMORY), physical, access, allowed);
    }

    fn assert_outcome(&self, address: VirtAddr, physical: PhysAddr, access: Access, allowed: bool) {
        let expected = if allowed { Ok(physical) } else { Err(Fault::Permission) };
        for cpu in self.model.cpus() {
            assert_eq!(cpu.may(address, access), [expected], "{access:?} of {address} by CPU {}", cpu.index());
        }
    }

    /// The pages of `cpu`, here and by their alias, are what the list has, for every CPU.
    fn check(&self, cpu: usize) {
        self.model.assert_clean();
        let pages = *self.pages();
        for index in self.owned(cpu) {
            let page = pages[index];
            let frame = PhysAddr(MEMORY + self.frames[index] * G::PAGE_SIZE);
            self.assert_may(frame, frame, Access::Write, !page.alias);
            self.assert_may(frame, frame, Access::Execute, false);
            if !page.unmapped {
                let address = self.area(index, 1).start();
                self.assert_outcome(address, frame, Access::Write, !page.read_only);
                self.assert_outcome(address, frame, Access::Execute, page.executable);
            }
        }
    }

    /// Frames beside those of the area have no owner here, and can be written.
    fn check_neighbours(&self) {
        let last = memory::<G>() / G::PAGE_SIZE - 1;
        let beside = self.frames.iter().flat_map(|&frame| [frame.saturating_sub(1), (frame + 1).min(last)]);
        for frame in beside.chain([0, last]).filter(|frame| !self.frames.contains(frame)) {
            let frame = PhysAddr(MEMORY + frame * G::PAGE_SIZE);
            self.assert_may(frame, frame, Access::Write, true);
        }
    }
}

/// Bytes of the linear map: one leaf of each size; half of what there is where that is not much.
fn memory<G: Geometry>() -> u64 {
    if G::has_leaves(1) { G::entry_size(1) + G::group_size(2) + G::entry_size(2) } else { G::group_size(2) }
}

fn run<G: Geometry>(
    features: Features,
    frames: Vec<u64>,
    border: usize,
    interleaving: Interleaving,
    calls: [&[Call]; 2],
    forgets: Forgets,
) {
    run_from::<G>(features, frames, border, interleaving, calls, forgets, false);
}

/// As [`run`], with all of it read-only at first or not.
fn run_from<G: Geometry>(
    features: Features,
    frames: Vec<u64>,
    border: usize,
    (turns, late): Interleaving,
    calls: [&[Call]; 2],
    forgets: Forgets,
    read_only: bool,
) {
    let model = machine::<G>(24, features, late);
    let mut scene = Scene::new(&model, frames, border, turns, forgets);
    if read_only {
        scene.make_read_only();
    }
    std::thread::scope(|scope| {
        for (cpu, calls) in calls.into_iter().enumerate() {
            let scene = &scene;
            scope.spawn(move || {
                let _thread = scene.turns.thread(cpu);
                for &call in calls {
                    scene.change(cpu, call);
                    scene.turns.step(cpu, || scene.check(cpu));
                }
                scene.unmap(cpu);
                scene.turns.step(cpu, || scene.check(cpu));
            });
        }
    });
    scene.check_neighbours();
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec((0..PAGES, 1..=PAGES, 0..CHANGES.len()), 1..5)
}

/// Frames of the linear map, near the middle of it, in any order.
fn frames<G: Geometry>() -> impl Strategy<Value = Vec<u64>> {
    let pages = memory::<G>() / G::PAGE_SIZE;
    // In the smallest linear map all there are; else around the end of the largest leaf, and in the others.
    let first = if pages <= PAGES as u64 { 0 } else { G::entry_size(1) / G::PAGE_SIZE - 6 };
    let near: Vec<u64> = (first..pages.min(first + 20)).collect();
    let ordered = near.clone();
    (any::<bool>(), Just(near).prop_shuffle()).prop_map(move |(in_order, shuffled)| {
        let from = if in_order { &ordered } else { &shuffled };
        from[..PAGES].to_vec()
    })
}

proptest! {
    #![proptest_config(Config::with_cases(96))]

    #[test]
    fn tiny_with_alias_in_turns(
        features in features(),
        frames in frames::<Tiny>(),
        border in 1..PAGES,
        turns in turns(),
        first in calls(),
        second in calls(),
    ) {
        run::<Tiny>(features, frames, border, turns, [&first, &second], Forgets::Nothing);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(12))]

    #[test]
    fn with_4_kib_pages_and_alias_in_turns(
        features in features(),
        frames in frames::<Granule4K>(),
        border in 1..PAGES,
        turns in turns(),
        first in calls(),
        second in calls(),
    ) {
        run::<Granule4K>(features, frames, border, turns, [&first, &second], Forgets::Nothing);
    }
}

/// The rule that the model reports first when pages of CPU 0 become code, or code of it is unmapped, without a step.
fn first_broken(unmaps: bool, step: Step) -> Option<Rule> {
    let model = Model::<Tiny>::new(2, 24, Features::ALL);
    let scene = Scene::new(&model, (0..PAGES as u64).collect(), 3, vec![1], Forgets::Nothing);
    drop(scene.turns.thread(1));
    if unmaps {
        scene.change(0, (0, PAGES, CODE));
        model.assert_clean();
    }
    model.inject(step, 0, Sabotage::Lost);
    if unmaps {
        scene.unmap(0)
    } else {
        scene.change(0, (0, PAGES, CODE))
    }
    assert!(model.all_struck(), "there is no {step:?}");
    model.violations().first().map(|violation| violation.rule)
}

/// The alias is no longer writable when its frames become code, and becomes so when they are none any more: for every
/// CPU, in what its TLB may hold, between any two steps.
#[test]
fn code_and_a_writable_alias_are_two_completed_steps_apart() {
    for unmaps in [false, true] {
        for step in [Step::DsbIshst, Step::Tlbi, Step::DsbIsh] {
            assert_eq!(first_broken(unmaps, step), Some(Rule::WriteXorExecute), "{step:?}, unmapped: {unmaps}");
        }
    }
}

/// Each of two owners of parts of one block changes its own, where the whole block is read-only: one of them nothing.
#[test]
fn parts_of_a_read_only_block_change_beside_each_other() {
    let in_order: Vec<u64> = (0..PAGES as u64).collect();
    let failed = is_seen(96, &turns(), |turns| {
        let calls: [&[Call]; 2] = [&[(0, 2, 0)], &[(0, 2, 1)]];
        run_from::<Tiny>(Features::ALL, in_order.clone(), 2, turns, calls, Forgets::Nothing, true);
    });
    assert!(!failed);
}

#[test]
fn what_is_forgotten_of_an_alias_is_seen() {
    for (forgets, cases) in [(Forgets::Alias, 1), (Forgets::Restoring, 1), (Forgets::Order, 64), (Forgets::Nothing, 64)]
    {
        let seen = is_seen(cases, &(frames::<Tiny>(), turns()), |(frames, turns)| {
            let read_only = &[(0, 1, 0)];
            run::<Tiny>(Features::ALL, frames, 3, turns, [read_only, read_only], forgets);
        });
        assert_eq!(seen, forgets != Forgets::Nothing, "without {forgets:?}");
    }
}
