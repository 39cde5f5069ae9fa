//! Ranges that are unmapped and wait, many at a time, for one invalidation: as the kernel's `vfree` and purge do it.
//!
//! Each CPU maps areas in what it owns, changes parts of them and frees them as a whole. An area that is writable and not
//! executable is unmapped by its entries alone, and waits; a purge of either CPU takes what waits of both, invalidates
//! from the first to the last, and then empties the entries and gives the frames up. Until then TLBs may hold what was
//! there, and nothing else; from the invalidation on nothing at all. Nothing comes to an address that waits: its owner's
//! maps keep away from it, as those of the kernel's tree of areas do, and changes find no mark. Tables are reclaimed
//! and collapsed in between.

use granule::mm::tlb::KernelTlb;
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::bits;
use granule_model::{Access, Fault, Features, Model, Outcome, Sabotage, Step};
use granule_pgtable::{
    Announced, Change, Geometry, Granule4K, Granule16K, Granule64K, Invalidation, Leaf, Mmu, PageRange, Tables, Tiny,
    Tlb, metal,
};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::calls::{CHANGES, Call, Place, place};
use crate::plain::Piece;
use crate::rig::{self, Kernel, Patience, Rig, Splits, Waiting};
use crate::stop::Stop;
use crate::turns::{Gated, Turns, is_seen, machine};
use crate::{Interleaving, both_in_turns, kernel, split, switches, turns};

/// A call of a CPU.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// A map or a change.
    Call(Call),
    /// Frees one of its areas.
    Free(usize),
    Purge,
}

/// A deed, the other CPU's deed in the middle of it, and what comes after it.
#[derive(Clone, Copy, Debug)]
struct Action {
    by_first: bool,
    deed: Deed,
    meanwhile: Option<Deed>,
    reclaim: bool,
    collapse: bool,
}

fn deed() -> impl Strategy<Value = Deed> {
    let tables = prop_oneof![1 => 0_usize..4, 4 => Just(usize::MAX)];
    let attributes = prop_oneof![8 => Just(0_usize), 1 => Just(1), 1 => Just(2)];
    let map = (place(), 0_u64..64, attributes, any::<bool>(), tables).prop_map(
        |(place, physical, attributes, pages, tables)| {
            Deed::Call(Call::Map { place, physical, attributes, pages, tables })
        },
    );
    prop_oneof![
        5 => map,
        1 => (place(), 0..CHANGES.len()).prop_map(|(place, change)| Deed::Call(Call::Update(place, change))),
        4 => (0_usize..8).prop_map(Deed::Free),
        1 => Just(Deed::Purge),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = (any::<bool>(), deed(), proptest::option::of(deed()), any::<bool>(), any::<bool>()).prop_map(
        |(by_first, deed, meanwhile, reclaim, collapse)| Action { by_first, deed, meanwhile, reclaim, collapse },
    );
    proptest::collection::vec(action, 1..24)
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    proptest::collection::vec(deed(), 1..12)
}

/// How the invalidation of what waits is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purge {
    /// As the kernel makes it.
    Whole,
    /// Not at all: `lab=purge-no-flush`.
    NoFlush,
    /// With a DSB ISHST in front of the TLBI, which orders this CPU's stores alone.
    OwnStores,
    /// Of what came to wait first.
    FirstOnly,
    /// When the frames have been given up.
    Late,
    /// Without one operation: so many of its kind come first.
    Lost(Step, usize),
}

/// A TLB that can be invalidated for what other CPUs have stored.
trait ForOthers<G: Geometry>: for<'c> Tlb<Gated<'c, G>> {
    fn invalidate_for_others(&self, mmu: &Gated<'_, G>, what: &Invalidation<G>) {
        mmu.dsb_ish();
        self.issue(mmu, what);
        mmu.dsb_ish();
        mmu.isb();
    }
}

impl<G: Geometry> ForOthers<G> for metal::KernelTlb {}

impl ForOthers<Granule4K> for KernelTlb {
    fn invalidate_for_others(&self, mmu: &Gated<'_, Granule4K>, what: &Invalidation) {
        KernelTlb::invalidate_for_others(self, mmu, what);
    }
}

/// Two CPUs, and the areas that they have.
struct Scene<'m, G: Geometry, T> {
    rig: Rig<'m, G, T>,
    /// The first address and the size of each.
    areas: [Mutex<Vec<(VirtAddr, u64)>>; 2],
    purge: Purge,
    /// Whether a CPU purges, and which was the last that did.
    purging: Mutex<(bool, usize)>,
}

impl<'m, G: Geometry, T: ForOthers<G>> Scene<'m, G, T> {
    fn new(rig: Rig<'m, G, T>, purge: Purge) -> Self {
        Self { rig, areas: Default::default(), purge, purging: Mutex::default() }
    }

    fn areas(&self, cpu: usize) -> MutexGuard<'_, Vec<(VirtAddr, u64)>> {
        self.areas[cpu].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(&self, cpu: usize, deed: Deed, meanwhile: &dyn Fn()) {
        match deed {
            Deed::Call(Call::Map { place, .. }) => {
                let Deed::Call(call) = deed else { return };
                let Some(range) = self.rig.range(cpu, place) else { return meanwhile() };
                if self.waits(cpu, range) {
                    return meanwhile();
                }
                if self.rig.map_range(cpu, range, call, meanwhile) {
                    self.areas(cpu).push((range.start(), range.size()));
                }
            }
            Deed::Call(call) => self.rig.perform_unchecked(cpu, call, meanwhile),
            Deed::Free(number) => self.free(cpu, number, meanwhile),
            Deed::Purge => self.purge(cpu, meanwhile),
        }
    }

    /// Whether some of `range` waits, so that its addresses are taken.
    fn waits(&self, cpu: usize, range: PageRange<G>) -> bool {
        let meets = |waiting: &Waiting| waiting.start <= range.last() && range.start() <= waiting.range::<G>().last();
        self.rig.step(cpu, || self.rig.waiting().iter().any(meets))
    }

    /// Frees an area: lazily, where that may be.
    fn free(&self, cpu: usize, number: usize, meanwhile: &dyn Fn()) {
        let range = {
            let mut areas = self.areas(cpu);
            match areas.len() {
                0 => None,
                count => Some(areas.swap_remove(number % count)),
            }
        };
        let Some((first, size)) = range else { return meanwhile() };
        let (rig, range) = (&self.rig, PageRange::new(first, size).expect("an area"));
        let (start, end) = (rig.low(range.start()), rig.low(range.last()) + 1);
        let was = rig.plain().pieces(start, end);
        let may_wait = was.iter().all(|(_, piece)| piece.attributes & (bits::RDONLY | bits::PXN) == bits::PXN);
        let mmu = rig.cpu(cpu);
        let walk = Announced::begin(&rig.words[cpu]);
        let is_unmapped = mmu.page_tables().unmap_lazily(range, bits::RDONLY, bits::VM_ALLOC);
        drop(walk);
        assert_eq!(is_unmapped, Ok(may_wait), "{range:?}: {was:?}");
        if may_wait {
            rig.plain().change(start, end, Change::INVALID);
            rig.step(cpu, || rig.waiting().push(Waiting { by: cpu, start: first, size, was }));
            rig.step(cpu, || self.check_waiting());
            meanwhile();
        } else {
            assert!(rig.unmap(cpu, range, meanwhile), "{range:?} is all of an area");
        }
    }

    /// The ranges that wait, for `cpu` to invalidate and release; `None` while another CPU does that.
    fn begin_purge(&self, cpu: usize) -> Option<Vec<Waiting>> {
        let (rig, mut purging) = (&self.rig, self.purging.lock().unwrap_or_else(PoisonError::into_inner));
        if core::mem::replace(&mut purging.0, true) {
            return None;
        }
        let waiting = rig.waiting().clone();
        // The lock of what waits, and of what was given back.
        let others = waiting.iter().map(|waiting| waiting.by).chain([purging.1]).filter(|&by| by != cpu);
        others.for_each(|by| rig.model.hand_over(by, cpu));
        Some(waiting)
    }

    fn end_purge(&self, cpu: usize) {
        *self.purging.lock().unwrap_or_else(PoisonError::into_inner) = (false, cpu);
    }

    /// `cpu` invalidates what waits, of both CPUs, and gives it up; `meanwhile` happens between the two.
    fn purge(&self, cpu: usize, meanwhile: &dyn Fn()) {
        let Some(waiting) = self.rig.step(cpu, || self.begin_purge(cpu)) else { return meanwhile() };
        if let Some(hull) = hull(waiting.iter().map(Waiting::range)) {
            if self.purge != Purge::Late {
                self.invalidate(cpu, hull, &waiting);
            }
            meanwhile();
            for waiting in &waiting {
                self.release(cpu, waiting);
            }
            if self.purge == Purge::Late {
                self.invalidate(cpu, hull, &waiting);
            }
        } else {
            meanwhile();
        }
        self.rig.step(cpu, || self.end_purge(cpu));
    }

    /// One invalidation, from the first of what waits to the last.
    fn invalidate(&self, cpu: usize, hull: PageRange<G>, waiting: &[Waiting]) {
        let (rig, mmu) = (&self.rig, self.rig.cpu(cpu));
        let what = |range| Invalidation { range, tables: Tables::Kept, level: None };
        match self.purge {
            Purge::Whole | Purge::Late => rig.tlb().invalidate_for_others(&mmu, &what(hull)),
            Purge::OwnStores => rig.tlb().invalidate(&mmu, core::iter::once(what(hull))),
            Purge::FirstOnly => rig.tlb().invalidate_for_others(&mmu, &what(waiting[0].range())),
            Purge::Lost(step, nth) => {
                rig.model.inject(step, nth, Sabotage::Lost);
                rig.tlb().invalidate_for_others(&mmu, &what(hull));
            }
            Purge::NoFlush => {}
        }
        if self.purge == Purge::Whole {
            rig.step(cpu, || self.check_gone(waiting));
        }
    }

    /// Empties the entries, gives the frames up, all that was mapped there and in this order, and then the addresses.
    #[allow(unsafe_code, reason = "frames that a test may release too early")]
    fn release(&self, cpu: usize, waiting: &Waiting) {
        let (rig, range) = (&self.rig, waiting.range::<G>());
        let mmu = rig.cpu(cpu);
        let (mut next, mut count, mut last) = (range.start(), 0, None);
        let free = |frame| rig.step(cpu, || rig.model.frame_freed(cpu, frame));
        let walk = Announced::begin(&rig.words[cpu]);
        let released = |leaf: Leaf| {
            assert_eq!(leaf.address, next, "a leaf is lost, or out of order");
            let low = rig.low(leaf.address);
            let is_of = |&&(start, piece): &&(u64, Piece)| (start..start + piece.size).contains(&low);
            let (start, piece) = waiting.was.iter().find(is_of).expect("it was mapped");
            assert_eq!(leaf.physical, PhysAddr(piece.physical + (low - start)), "{low:#x} has another's frame");
            next = VirtAddr(next.0.wrapping_add(leaf.size));
            // Looking through all TLBs for each of many frames takes long.
            if count < 4 {
                free(leaf.physical);
            }
            (count, last) = (count + 1, Some(leaf.physical + (leaf.size - G::PAGE_SIZE)));
        };
        // SAFETY: frames are numbers of the model: what is released too early is a violation that it finds.
        unsafe { mmu.page_tables().release_unmapped(range, released) };
        last.into_iter().for_each(free);
        drop(walk);
        assert_eq!(next.0, range.last().0.wrapping_add(1), "not all of {range:?} came out");
        rig.step(cpu, || {
            rig.plain().remove(rig.low(range.start()), rig.low(range.last()) + 1);
            rig.waiting().retain(|other| other != waiting);
            if waiting.by != cpu {
                rig.model.hand_over(cpu, waiting.by);
            }
        });
    }

    /// The first and last pages of what waits, and what an access came to when it was mapped.
    fn outcomes(&self, waiting: &[Waiting]) -> Vec<(VirtAddr, Access, Outcome)> {
        let base = self.rig.model.base().0;
        let mut outcomes = Vec::new();
        for (start, piece) in waiting.iter().flat_map(|waiting| &waiting.was) {
            for offset in [0, piece.size - G::PAGE_SIZE] {
                let to = Ok(PhysAddr(piece.physical + offset));
                for (access, outcome) in
                    [(Access::Read, to), (Access::Write, to), (Access::Execute, Err(Fault::Permission))]
                {
                    outcomes.push((VirtAddr(base + start + offset), access, outcome));
                }
            }
        }
        outcomes
    }

    /// Pages that wait may be reached as they were, or not at all.
    fn check_waiting(&self) {
        let waiting = self.rig.waiting().clone();
        for (page, access, was) in self.outcomes(&waiting) {
            for cpu in self.rig.model.cpus() {
                let found = cpu.may(page, access);
                let is_known = |outcome: &Outcome| *outcome == was || *outcome == Err(Fault::Translation);
                assert!(found.iter().all(is_known), "{page}: CPU {}, {access:?}: {found:?}", cpu.index());
            }
        }
    }

    /// It may not be reached.
    fn check_gone(&self, waiting: &[Waiting]) {
        for (page, access, _) in self.outcomes(waiting) {
            for cpu in self.rig.model.cpus() {
                let found = cpu.may(page, access);
                assert_eq!(found, [Err(Fault::Translation)], "{page}: CPU {}, {access:?}", cpu.index());
            }
        }
    }

    /// Each CPU acquires what the other has done.
    fn join(&self) {
        [(0, 1), (1, 0)].into_iter().for_each(|(from, to)| self.rig.model.hand_over(from, to));
    }

    /// All is purged, and all CPUs agree; when all areas are freed as well, no table is left.
    fn end(&self) {
        for last in [false, true] {
            let areas = |cpu| if last { self.areas(cpu).len() } else { 0 };
            self.join();
            (0..areas(0)).for_each(|_| self.free(0, 0, &|| ()));
            (0..areas(1)).for_each(|_| self.free(1, 0, &|| ()));
            self.purge(0, &|| ());
            assert!(self.rig.waiting().is_empty());
            for cpu in [0, 1] {
                self.rig.check(cpu);
                self.rig.check_agreement(cpu);
            }
        }
        self.join();
        [0, 1].into_iter().for_each(|cpu| self.rig.reclaim(cpu));
        assert_eq!(self.rig.model.free_frames(), rig::FRAMES, "a table is not empty, where all areas are freed");
        self.rig.model.assert_clean();
    }
}

/// From the first address of all `ranges` to the last.
fn hull<G: Geometry>(ranges: impl Iterator<Item = PageRange<G>>) -> Option<PageRange<G>> {
    let join = |one: PageRange<G>, other: PageRange<G>| {
        let (start, last) = (one.start().min(other.start()), one.last().max(other.last()));
        PageRange::new(start, last - start + 1).expect("both are in one window")
    };
    ranges.reduce(join)
}

/// CPUs one after the other, each of which may come in the middle of the other's deed.
fn run<G: Geometry>(
    tlb: impl ForOthers<G>,
    features: Features,
    kernel: Kernel,
    splits: Splits,
    border: u64,
    actions: &[Action],
) {
    let model = Model::<G>::new(3, rig::FRAMES, features);
    let scene = Scene::new(Rig::new(&model, tlb, kernel, border).lazily(splits), Purge::Whole);
    for action in actions {
        let (first, second) = if action.by_first { (0, 1) } else { (1, 0) };
        let meanwhile = || {
            action.meanwhile.into_iter().for_each(|deed| {
                scene.perform(second, deed, &|| ());
                scene.rig.check(second);
            });
        };
        scene.perform(first, action.deed, &meanwhile);
        scene.rig.check(first);
        if action.collapse && splits != Splits::NotShared {
            scene.rig.collapse(first, &meanwhile);
        }
        if action.reclaim {
            scene.rig.reclaim(first);
        }
        scene.rig.check_agreement(first);
        scene.check_waiting();
    }
    scene.end();
}

/// Both CPUs at the same time, operation by operation in `turns`; CPU 0 reclaims tables as well, and collapses what is
/// alike where leaves may be split.
fn run_in_turns<G: Geometry>(
    features: Features,
    splits: Splits,
    purge: Purge,
    border: u64,
    (turns, late): Interleaving,
    deeds: [&[Deed]; 2],
) {
    let model = machine::<G>(rig::FRAMES, features, late);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, border).lazily(splits);
    let scene = Scene::new(rig.in_turns(Turns::new(turns), Patience::Waits), purge);
    both_in_turns(&scene.rig, deeds, |cpu, deed| {
        scene.perform(cpu, deed, &|| ());
        scene.rig.check_in_turn(cpu);
        if cpu == 0 {
            if splits != Splits::NotShared {
                scene.rig.collapse(cpu, &|| ());
            }
            scene.rig.reclaim(cpu);
        }
    });
    scene.end();
}

/// Splits, and CPUs for them, with which tables are collapsed too.
fn collapsed() -> impl Strategy<Value = (Splits, Features)> {
    let live = (prop_oneof![Just(Splits::Locked), Just(Splits::Lockless)], split::features());
    let stopped =
        split::features().prop_map(|features| (Splits::Stopped(Stop::Outside), Features { bbml2: false, ..features }));
    prop_oneof![2 => live, 1 => stopped]
}

proptest! {
    #![proptest_config(Config::with_cases(256))]

    #[test]
    fn tiny_lazily(
        features in crate::features(), kernel in kernel(), border in 0_u64..8, actions in actions(),
    ) {
        run::<Tiny>(metal::KernelTlb, features, kernel, Splits::NotShared, border, &actions);
    }

    #[test]
    fn tiny_lazily_and_collapsed(how in collapsed(), kernel in kernel(), border in 0_u64..8, actions in actions()) {
        run::<Tiny>(metal::KernelTlb, how.1, kernel, how.0, border, &actions);
    }

    #[test]
    fn tiny_lazily_in_turns(
        features in crate::features(), border in 0_u64..8, turns in turns(), first in deeds(), second in deeds(),
    ) {
        run_in_turns::<Tiny>(features, Splits::NotShared, Purge::Whole, border, turns, [&first, &second]);
    }

    #[test]
    fn tiny_lazily_and_collapsed_in_turns(
        how in collapsed(), border in 0_u64..8, turns in turns(), first in deeds(), second in deeds(),
    ) {
        run_in_turns::<Tiny>(how.1, how.0, Purge::Whole, border, turns, [&first, &second]);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(16))]

    #[test]
    fn with_4_kib_pages_lazily(
        features in crate::features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule4K>(metal::KernelTlb, features, kernel, Splits::NotShared, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_lazily_and_the_kernels_tlb(
        features in crate::features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        let run = || run::<Granule4K>(KernelTlb, features, kernel, Splits::NotShared, border, &actions);
        host::with(&switches(features), run);
    }
}

proptest! {
    // Large tables take their time.
    #![proptest_config(Config::with_cases(2))]

    #[test]
    fn with_16_kib_pages_lazily(
        features in crate::features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule16K>(metal::KernelTlb, features, kernel, Splits::NotShared, border, &actions);
    }

    #[test]
    fn with_64_kib_pages_lazily(
        features in crate::features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule64K>(metal::KernelTlb, features, kernel, Splits::NotShared, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_lazily_and_collapsed(
        how in collapsed(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule4K>(metal::KernelTlb, how.1, kernel, how.0, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_lazily_and_collapsed_in_turns(
        how in collapsed(), border in 0_u64..40, turns in turns(), first in deeds(), second in deeds(),
    ) {
        run_in_turns::<Granule4K>(how.1, how.0, Purge::Whole, border, turns, [&first, &second]);
    }
}

/// An area of one page of each CPU, at this place beside the border.
fn area(start: u64) -> Deed {
    let place = Place { unit: 0, start, count: 1, ragged: (0, 0) };
    Deed::Call(Call::Map { place, physical: 0, attributes: 0, pages: true, tables: usize::MAX })
}

/// Both CPUs free areas, and `purger` purges, again and again.
fn both_free(purge: Purge, purger: usize, turns: Interleaving) {
    let round = |start, purges| [area(start), Deed::Free(0), if purges { Deed::Purge } else { Deed::Free(0) }];
    let deeds = |start, purges| [round(start, purges), round(start, purges), round(start, purges)].concat();
    let (first, second) = (deeds(5, purger == 0), deeds(6, purger == 1));
    run_in_turns::<Tiny>(Features::BASE, Splits::NotShared, purge, 2, turns, [&first, &second]);
}

/// Whether one of some draws of turns shows what is wrong with `purge`.
fn are_seen(purge: Purge, purger: usize) -> bool {
    is_seen(256, &turns(), |turns| both_free(purge, purger, turns))
}

#[test]
fn turns_show_frames_that_are_freed_before_one_invalidation_of_all_is_complete() {
    for purger in [0, 1] {
        for purge in [Purge::NoFlush, Purge::FirstOnly, Purge::Late] {
            assert!(are_seen(purge, purger), "{purge:?}");
        }
        assert!(!are_seen(Purge::Whole, purger));
    }
}

/// A walk after the TLBI may read what another CPU has overwritten, where the DSB in front of it orders this CPU's
/// stores alone.
#[test]
fn turns_show_a_purge_that_completes_its_own_stores_alone() {
    assert!(are_seen(Purge::OwnStores, 0) && are_seen(Purge::OwnStores, 1));
}

/// One area of CPU 0 after the other comes to wait, of a page each, and one CPU purges; the CPUs are not threads.
fn purged_by(purger: usize, purge: Purge) {
    let model = Model::<Tiny>::new(3, rig::FRAMES, Features::BASE);
    let scene = Scene::new(Rig::new(&model, metal::KernelTlb, Kernel::Global, 2).lazily(Splits::NotShared), purge);
    [2, 5].into_iter().for_each(|start| scene.perform(0, area(start), &|| ()));
    scene.rig.check(0);
    [(); 2].into_iter().for_each(|()| scene.perform(0, Deed::Free(0), &|| ()));
    let waiting = scene.rig.waiting().clone();
    assert_eq!(waiting.len(), 2);
    // It is seen where it is still in a TLB, so that it can be seen to be gone.
    for (page, access, was) in scene.outcomes(&waiting) {
        assert!(model.cpu(1).may(page, access).contains(&was), "{access:?} of {page}");
    }
    scene.perform(purger, Deed::Purge, &|| ());
    scene.end();
}

/// The frames are freed while a CPU may reach them.
#[track_caller]
fn assert_missed(purge: Purge, purger: usize) {
    let failed = std::panic::catch_unwind(|| purged_by(purger, purge)).expect_err("something is missed");
    let failed = failed.downcast_ref::<String>().expect("a message");
    assert!(failed.contains("is freed while CPU"), "{purge:?} by CPU {purger}: {failed}");
}

/// A step that a purge leaves out is missed, whichever CPU purges; but a DSB ISHST completes the purger's own stores.
#[test]
fn each_step_of_a_purge_is_needed() {
    for purge in [Purge::NoFlush, Purge::FirstOnly, Purge::Late] {
        [0, 1].into_iter().for_each(|purger| assert_missed(purge, purger));
    }
    assert_missed(Purge::OwnStores, 1);
    for (purge, purger) in [(Purge::Whole, 0), (Purge::Whole, 1), (Purge::OwnStores, 0)] {
        purged_by(purger, purge);
    }
}

/// No barrier of a purge can be taken away, nor a TLBI, also where the purger has made all of the stores.
#[test]
fn no_operation_of_a_purge_can_be_taken_away() {
    for purger in [0, 1] {
        // The first page and the last: two that no one has lie between them.
        for (step, nth) in [(Step::DsbIsh, 0), (Step::Tlbi, 0), (Step::Tlbi, 3), (Step::DsbIsh, 1)] {
            assert_missed(Purge::Lost(step, nth), purger);
        }
    }
}

/// CPU 0 has two pages that become a group again each time that it has changed one, in another table; in the same table
/// CPU 1 frees its page and purges, again and again.
fn beside_a_collapse(splits: Splits, features: Features, turns: Interleaving) {
    let change = |change| Deed::Call(Call::Update(Place { unit: 0, start: 4, count: 1, ragged: (0, 0) }, change));
    let place = Place { unit: 1, start: 4, count: 1, ragged: (0, 0) };
    let pages = Deed::Call(Call::Map { place, physical: 0, attributes: 0, pages: true, tables: usize::MAX });
    let first: Vec<_> = core::iter::once(pages).chain((0..6).map(|number| change(number % 2))).collect();
    let second = [area(6), Deed::Free(0), Deed::Purge].repeat(4);
    run_in_turns::<Tiny>(features, splits, Purge::Whole, 2, turns, [&first, &second]);
}

proptest! {
    #![proptest_config(Config::with_cases(256))]

    #[test]
    fn beside_a_collapse_in_turns(how in collapsed(), turns in turns()) {
        beside_a_collapse(how.0, how.1, turns);
    }
}
