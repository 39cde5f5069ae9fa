//! The model machine watches all that spaces do: each store, barrier and TLBI of the calls that ship, with CPUs that
//! run several spaces under ASIDs and hold all that they may of each, in TLBs and walk caches, also when they run it no
//! more.
//!
//! Between any two operations: break-before-make; an emptied entry is filled when its invalidation is complete; no
//! frame is free that a TLB or a walk may lead to; no ASID is given on while its entries are left. After each call no
//! CPU reaches what the space does not map.

#![allow(unsafe_code, reason = "the model reads the tables of the machine that it watches")]

use core::sync::atomic::Ordering;
use std::cell::Cell;
use std::rc::Rc;
use std::string::{String, ToString};
use std::sync::Arc;
use std::{format, thread, vec};

use granule_arch::addr::PhysRange;
use granule_arch::alternative::host;
use granule_arch::descriptor::bits;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_model::{Access as Wants, Features, Model, Rule, Sabotage, Step};
use granule_pgtable::host::Operation;
use proptest::prelude::*;

use super::groups::check_groups;
use super::*;
use crate::mm::asid::Asids;
use crate::mm::kernel::record::at_each;
use crate::mm::space::{AreaAdvice, Move, Remap, SpaceLimits};
use crate::platform::features::branch;

/// Two tables' pages: the boundary is in the middle.
const PAGES: u64 = 8;
const START: VirtAddr = VirtAddr(0x10_0000_0000 - PAGES / 2 * PAGE);
const CPUS: usize = 2;
/// Two bits of ASIDs: one number that no space has, and three.
const ASID_BITS: u32 = 2;
const MOST_SPACES: usize = 5;

/// A call of a CPU on a space.
#[derive(Clone, Copy, Debug)]
enum Call {
    Map {
        sharing: Sharing,
        protection: Protection,
    },
    Unmap,
    /// So many pages up or down.
    Move(i64),
    Protect(Protection),
    Discard,
    /// Out of the objects, too.
    Remove,
    /// Of the first page.
    Migrate,
    Touch(Access),
    Fork,
    Exit,
    /// The CPU runs the space from now on.
    Run,
    /// It runs none.
    Idle,
}

/// By which CPU, in which space, from which page on, and how many.
#[derive(Clone, Copy, Debug)]
struct Action {
    cpu: usize,
    space: usize,
    page: u64,
    count: u64,
    call: Call,
}

/// The place of the pages of an [`Action`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Neighbours, of two tables.
    Pages,
    /// Some of a block, which is wanted: from each to the next there are pages that go with it.
    Block,
    /// Some of contiguous groups, as for [`Self::Block`].
    Groups,
}

impl Place {
    fn at(self, index: u64) -> VirtAddr {
        const START_OF_BLOCK: VirtAddr = VirtAddr(0x10_0020_0000);
        const START_OF_GROUPS: VirtAddr = VirtAddr(0x10_0010_0000);
        const PAGES_OF_GROUPS: [u64; PAGES as usize + 1] = [0, 1, 7, 15, 16, 17, 31, 32, 40];
        const PAGES_OF_BLOCK: [u64; PAGES as usize + 1] = [0, 1, 2, 255, 256, 509, 510, 511, 512];
        match self {
            Self::Pages => START + index * PAGE,
            Self::Groups => START_OF_GROUPS + PAGES_OF_GROUPS[index as usize] * PAGE,
            Self::Block => START_OF_BLOCK + PAGES_OF_BLOCK[index as usize] * PAGE,
        }
    }

    /// Memory for what is done there.
    const fn mib(self) -> u64 {
        match self {
            Self::Pages => 4,
            Self::Groups => 8,
            Self::Block => 14,
        }
    }
}

struct Watched {
    place: Place,
    rig: Rig,
    cpus: [Cpu; CPUS],
    model: Arc<Model>,
    asids: Asids,
    spaces: Vec<SpaceRef>,
}

/// The check at each moment.
fn check_held(model: &Model, frames: &FrameAllocator) {
    model.check_held(|frame| frames.frame(frame).is_some_and(|(_, record)| record.references() != 0));
}

/// Runs `work` as CPU `cpu`, with the model looking at each operation.
fn watch(model: &Arc<Model>, frames: &'static FrameAllocator, cpu: usize, work: impl FnOnce()) {
    let hook = {
        let model = model.clone();
        move |operation: &Operation| {
            check_held(&model, frames);
            model.watch(cpu, operation);
        }
    };
    at_each(hook, work);
    check_held(model, frames);
}

impl Watched {
    /// One space, which no CPU runs.
    fn new(place: Place, features: Features) -> Self {
        let rig = Rig::new(place.mib());
        let memory = PhysRange::from_size(PhysAddr(0x4000_0000), place.mib() << 20).unwrap();
        let offset = rig.frames.linear().address(PhysAddr(0)).0;
        // SAFETY: the rig's memory is leaked, and its tables are atomics.
        let model = Arc::new(unsafe { Model::watching(memory, offset, CPUS, features) });
        let asids = Asids::new();
        asids.set_numbers(ASID_BITS);
        let spaces = vec![rig.space()];
        Self { place, rig, cpus: core::array::from_fn(|cpu| Cpu::new(CpuId(cpu as u32))), model, asids, spaces }
    }

    /// Runs `work` on `cpu`, with the model looking at each operation.
    fn watch(&self, cpu: usize, work: impl FnOnce(&Cpu)) {
        watch(&self.model, self.rig.frames, cpu, || work(&self.cpus[cpu]));
    }

    /// `cpu` runs `space` from now on, as the scheduler has it: a number, then TTBR0_EL1 and an ISB.
    fn run(&self, cpu: usize, space: &Space) {
        let number = Cell::new(0);
        self.watch(cpu, |cpu| number.set(self.asids.activate(cpu, space.mmu(), space.asid())));
        self.model.run(cpu, VirtAddr(0), Some((space.root(), number.get())));
    }

    fn idle(&self, cpu: usize) {
        self.model.run(cpu, VirtAddr(0), None);
    }

    fn perform(&mut self, Action { cpu, space, page, count, call }: Action) {
        let index = space % self.spaces.len();
        let space = self.spaces[index].clone();
        let start = self.place.at(page);
        let bytes = self.place.at((page + count).min(PAGES)) - start;
        match call {
            Call::Map { sharing, protection } => {
                let placement = Placement::Fixed(start);
                let request = MapRequest { placement, bytes, sharing, protection, populate: Populate::OnDemand };
                self.watch(cpu, |cpu| _ = space.mmap(cpu, &request));
                if self.place != Place::Pages {
                    self.watch(cpu, |cpu| space.madvise_areas(cpu, start, bytes, AreaAdvice::HugePage).unwrap());
                }
            }
            Call::Unmap => self.watch(cpu, |cpu| _ = space.munmap(cpu, start, bytes)),
            Call::Move(by) => self.watch(cpu, |cpu| {
                let to = Move::To(VirtAddr(start.0.wrapping_add_signed(by * PAGE.cast_signed())));
                if let Ok(mut there) = Remap::new(start, bytes, bytes, to, false) {
                    _ = space.mremap(cpu, &mut there, &SpaceLimits::NONE);
                }
            }),
            Call::Protect(protection) => self.watch(cpu, |_| _ = space.mprotect(start, bytes, protection)),
            Call::Discard => self.watch(cpu, |cpu| _ = space.madvise_dontneed(cpu, start, bytes)),
            Call::Remove => self.watch(cpu, |cpu| _ = space.madvise_remove(cpu, start, bytes)),
            Call::Migrate => self.watch(cpu, |cpu| _ = self.rig.migrate(cpu, &space, start)),
            Call::Touch(access) => self.watch(cpu, |cpu| _ = handle_fault(&space, cpu, start, access)),
            Call::Fork if self.spaces.len() < MOST_SPACES => {
                let child = Rc::new(Cell::new(None));
                self.watch(cpu, |cpu| child.set(space.fork(cpu).ok()));
                self.spaces.extend(child.take());
            }
            Call::Exit if self.spaces.len() > 1 => {
                let root = space.root();
                (0..CPUS).filter(|&cpu| self.model.runs(cpu, root)).for_each(|cpu| self.idle(cpu));
                self.spaces.remove(index);
                self.watch(cpu, |_| drop(space));
                self.model.forget(root);
            }
            Call::Fork | Call::Exit => {}
            Call::Run => self.run(cpu, &space),
            Call::Idle => self.idle(cpu),
        }
        // On the way back to EL0.
        self.model.synchronise();
    }

    /// An access that some CPU may make and that the space that it runs does not permit.
    fn stale(&self) -> Option<String> {
        for space in &self.spaces {
            for page in (0..PAGES).map(|index| self.place.at(index)) {
                let found = space.tables().translate(page).filter(|found| found.descriptor.is_valid());
                for cpu in (0..CPUS).filter(|&cpu| self.model.runs(cpu, space.root())) {
                    for access in [Wants::Read, Wants::Write] {
                        let refused = if access == Wants::Write { bits::RDONLY } else { 0 };
                        let permitted = found.filter(|found| found.descriptor.0 & refused == 0);
                        let permitted = permitted.map(|found| found.physical);
                        let mut reached = self.model.cpu(cpu).may(page, access).into_iter().flatten();
                        if let Some(strange) = reached.find(|&reached| Some(reached) != permitted) {
                            return Some(format!(
                                "CPU {cpu}: {access:?} of {page} reaches {strange}, not {permitted:?}"
                            ));
                        }
                    }
                }
            }
        }
        None
    }

    fn check(&self) {
        self.model.assert_clean();
        assert_eq!(self.stale(), None);
        self.spaces.iter().for_each(|space| _ = check_groups(space).unwrap());
    }
}

fn protection() -> impl Strategy<Value = Protection> {
    prop_oneof![1 => Just(Protection::NONE), 1 => Just(Protection::READ), 3 => Just(READ_WRITE)]
}

fn call() -> impl Strategy<Value = Call> {
    let sharing = prop_oneof![3 => Just(Sharing::Private), 1 => Just(Sharing::Shared)];
    let access = prop_oneof![1 => Just(Access::Read), 2 => Just(Access::Write)];
    prop_oneof![
        3 => (sharing, protection()).prop_map(|(sharing, protection)| Call::Map { sharing, protection }),
        2 => Just(Call::Unmap),
        3 => (-PAGES.cast_signed()..PAGES.cast_signed()).prop_map(Call::Move),
        2 => protection().prop_map(Call::Protect),
        3 => Just(Call::Discard),
        2 => Just(Call::Remove),
        4 => Just(Call::Migrate),
        10 => access.prop_map(Call::Touch),
        2 => Just(Call::Fork),
        1 => Just(Call::Exit),
        6 => Just(Call::Run),
        1 => Just(Call::Idle),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = (0..CPUS, 0..MOST_SPACES, 0..PAGES, 1..=PAGES, call());
    let action = action.prop_map(|(cpu, space, page, count, call)| Action { cpu, space, page, count, call });
    proptest::collection::vec(action, 1..40)
}

/// A space with all pages written, which both CPUs run.
fn written() -> Watched {
    written_at(Place::Pages, Features::BASE, Sharing::Private)
}

fn written_at(place: Place, features: Features, sharing: Sharing) -> Watched {
    let mut watched = Watched::new(place, features);
    let all = |cpu, call| Action { cpu, space: 0, page: 0, count: PAGES, call };
    watched.perform(all(0, Call::Map { sharing, protection: READ_WRITE }));
    (0..CPUS).for_each(|cpu| watched.perform(all(cpu, Call::Run)));
    (0..PAGES).for_each(|page| watched.perform(Action { page, ..all(0, Call::Touch(Access::Write)) }));
    watched.check();
    watched
}

fn play(mut watched: Watched, actions: Vec<Action>) {
    for action in actions {
        watched.perform(action);
        watched.check();
    }
    (0..CPUS).for_each(|cpu| watched.idle(cpu));
}

/// Large leaves are split in use, or broken first. The branch is for all threads, and nothing else asks for it.
fn play_on(place: Place, actions: Vec<Action>, [is_live, is_shared]: [bool; 2]) {
    let sharing = if is_shared { Sharing::Shared } else { Sharing::Private };
    let branches: &[u16] = if is_live { &[branch::SIZE_CHANGE] } else { &[] };
    let features = Features { bbml2: is_live, ..Features::BASE };
    host::with(branches, || play(written_at(place, features, sharing), actions));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_cpu_holds_what_a_space_has_given_up(actions in actions()) {
        play(written(), actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn no_cpu_holds_what_a_space_has_given_up_of_a_block(actions in actions(), how in any::<[bool; 2]>()) {
        play_on(Place::Block, actions, how);
    }

    #[test]
    fn no_cpu_holds_what_a_space_has_given_up_of_groups(actions in actions(), is_live in any::<bool>()) {
        play_on(Place::Groups, actions, [is_live, false]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    #[ignore = "takes minutes: ./x test --long"]
    fn no_cpu_holds_what_a_space_has_given_up_at_length(actions in actions()) {
        play(written(), actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    #[ignore = "takes minutes: ./x test --long"]
    fn no_cpu_holds_what_a_space_has_given_up_of_a_block_at_length(
        place in prop_oneof![Just(Place::Block), Just(Place::Groups)],
        actions in actions(),
        [is_live, is_shared] in any::<[bool; 2]>(),
    ) {
        play_on(place, actions, [is_live, is_shared && place == Place::Block]);
    }
}

/// The rules broken after `call` on `count` [`written`] pages, with a step taken away, and whether a TLB is stale.
fn wrong(
    (place, count, sharing): (Place, u64, Sharing),
    call: Call,
    step: Step,
    sabotage: Option<Sabotage>,
) -> (Vec<Rule>, bool) {
    // No other test changes sizes of live entries concurrently.
    host::with(&[], || {
        let mut watched = written_at(place, Features::BASE, sharing);
        sabotage.into_iter().for_each(|sabotage| watched.model.inject(step, 0, sabotage));
        watched.perform(Action { cpu: 0, space: 0, page: 0, count, call });
        assert!(watched.model.all_struck(), "there is no {step:?} in {call:?}");
        let stale = watched.stale().is_some();
        (watched.model.violations().iter().map(|violation| violation.rule).collect(), stale)
    })
}

#[test]
fn each_step_of_a_call_is_missed_when_it_is_not_there() {
    // The fault that is found: a page that is free and in a TLB, or nothing but a permission that is left.
    let rows = [
        (Call::Discard, Some(Rule::FrameInUse)),
        (Call::Unmap, Some(Rule::FrameInUse)),
        (Call::Protect(Protection::READ), None),
        (Call::Fork, None),
    ];
    let sabotages = [
        (Step::DsbIshst, Sabotage::Lost),
        (Step::DsbIshst, Sabotage::Becomes(Step::DmbIshst)),
        (Step::DsbIshst, Sabotage::OnCpu(1)),
        (Step::Tlbi, Sabotage::Lost),
        (Step::DsbIsh, Sabotage::Lost),
        (Step::DsbIsh, Sabotage::Becomes(Step::DsbNsh)),
        (Step::DsbIsh, Sabotage::OnCpu(1)),
    ];
    // Pages of one table; and a block.
    // Of a block's, those that are not the same functions.
    for (place, sabotages) in [
        ((Place::Pages, PAGES / 2, Sharing::Private), &sabotages[..]),
        ((Place::Block, PAGES, Sharing::Private), &sabotages[3..5]),
        ((Place::Groups, PAGES, Sharing::Private), &sabotages[3..5]),
    ] {
        for (call, expected) in rows {
            assert_eq!(wrong(place, call, Step::Tlbi, None), (vec![], false), "{place:?}: {call:?}");
            for &(step, sabotage) in sabotages {
                let (rules, stale) = wrong(place, call, step, Some(sabotage));
                let is_seen = expected.map_or(stale, |rule| rules.contains(&rule));
                assert!(is_seen, "{place:?}: {call:?} with {sabotage:?} of {step:?}: {rules:?}, {stale}");
            }
        }
    }
}

/// Frames that an object loses are freed when no TLB has them: of all of a block, and of a page of it.
#[test]
fn each_step_of_a_hole_in_a_block_is_missed_when_it_is_not_there() {
    for count in [1, PAGES] {
        let place = (Place::Block, count, Sharing::Shared);
        assert_eq!(wrong(place, Call::Remove, Step::Tlbi, None), (vec![], false), "{count}");
        for (step, sabotage) in [
            (Step::Tlbi, Sabotage::Lost),
            (Step::DsbIsh, Sabotage::Lost),
            (Step::DsbIsh, Sabotage::Becomes(Step::DsbNsh)),
        ] {
            let (rules, _) = wrong(place, Call::Remove, step, Some(sabotage));
            let expected = if count == 1 { Rule::BreakBeforeMake } else { Rule::FrameInUse };
            assert!(rules.contains(&expected), "{count}: {sabotage:?}: {rules:?}");
        }
    }
}

/// A group is broken before its entries are pages', and before they are one; trusted size changes take no break.
#[test]
fn each_step_of_a_change_of_a_group_is_missed_when_it_is_not_there() {
    let all = |call| Action { cpu: 0, space: 0, page: 0, count: PAGES, call };
    for (is_folded, call) in [
        (false, Call::Protect(Protection::READ)),
        (false, Call::Discard),
        (false, Call::Migrate),
        (true, Call::Protect(READ_WRITE)),
    ] {
        // The first and the last of the 16, whose neighbours' invalidations take what a TLB has of the group.
        for (step, nth, sabotage) in [
            (Step::Tlbi, 0, None),
            (Step::DsbIshst, 0, Some(Sabotage::Lost)),
            (Step::Tlbi, 0, Some(Sabotage::Lost)),
            (Step::Tlbi, 15, Some(Sabotage::Lost)),
            (Step::DsbIsh, 0, Some(Sabotage::Lost)),
            (Step::DsbIsh, 0, Some(Sabotage::Becomes(Step::DsbNsh))),
        ] {
            let mut watched = written_at(Place::Groups, Features::BASE, Sharing::Private);
            if is_folded {
                watched.perform(Action { page: 1, count: 1, ..all(Call::Protect(Protection::READ)) });
            }
            sabotage.into_iter().for_each(|sabotage| watched.model.inject(step, nth, sabotage));
            watched.perform(Action { page: 1, count: 1, ..all(call) });
            assert!(watched.model.all_struck(), "there is no {step:?}");
            let groups = check_groups(&watched.spaces[0]).unwrap();
            assert_eq!(groups, 1 + usize::from(is_folded), "{call:?}");
            let violations = watched.model.violations();
            let is_broken = violations.iter().any(|violation| violation.rule == Rule::BreakBeforeMake);
            assert_eq!(is_broken, sabotage.is_some(), "{call:?}: {sabotage:?} of {step:?}: {violations:?}");
        }
        for bbml2 in [true, false] {
            let mut watched = written_at(Place::Groups, Features { bbml2, ..Features::BASE }, Sharing::Private);
            host::with(&[branch::SIZE_CHANGE], || {
                watched.perform(Action { page: 1, count: 1, ..all(Call::Protect(Protection::READ)) });
                watched.perform(Action { page: 1, count: 1, ..all(call) });
            });
            let violations = watched.model.violations();
            let is_broken = violations.iter().any(|violation| violation.rule == Rule::BreakBeforeMake);
            assert_eq!(is_broken, !bbml2, "{call:?}: {violations:?}");
        }
    }
}

/// A block is broken before pages are in its place, and before another is.
#[test]
fn each_step_of_a_change_of_a_block_is_missed_when_it_is_not_there() {
    for is_copied in [false, true] {
        for (step, sabotage) in [
            (Step::Tlbi, None),
            (Step::DsbIshst, Some(Sabotage::Lost)),
            (Step::Tlbi, Some(Sabotage::Lost)),
            (Step::DsbIsh, Some(Sabotage::Lost)),
            (Step::DsbIsh, Some(Sabotage::Becomes(Step::DsbNsh))),
        ] {
            let mut watched = written_at(Place::Block, Features::BASE, Sharing::Private);
            let all = |call| Action { cpu: 0, space: 0, page: 0, count: PAGES, call };
            if is_copied {
                watched.perform(all(Call::Fork));
                watched.perform(all(Call::Touch(Access::Read)));
            }
            sabotage.into_iter().for_each(|sabotage| watched.model.inject(step, 0, sabotage));
            let call = if is_copied { Call::Touch(Access::Write) } else { Call::Protect(Protection::READ) };
            watched.perform(Action { count: 1, ..all(call) });
            assert!(watched.model.all_struck(), "there is no {step:?}");
            let violations = watched.model.violations();
            let is_broken = violations.iter().any(|violation| violation.rule == Rule::BreakBeforeMake);
            assert_eq!(is_broken, sabotage.is_some(), "{is_copied}: {sabotage:?} of {step:?}: {violations:?}");
        }
    }
}

/// The leaves alone, where tables are freed.
#[test]
fn a_table_that_walk_caches_keep_is_not_freed() {
    fn leaves(instruction: Instruction) -> Instruction {
        match instruction {
            Instruction::Vae1is(operand) => Instruction::Vale1is(operand),
            Instruction::Rvae1is(operand) => Instruction::Rvale1is(operand),
            other => other,
        }
    }
    let mut watched = written();
    // Each TLBI of it.
    (0..PAGES as usize).for_each(|nth| watched.model.inject(Step::Tlbi, nth, Sabotage::Rewritten(leaves)));
    watched.perform(Action { cpu: 0, space: 0, page: 0, count: PAGES, call: Call::Unmap });
    let violations = watched.model.violations();
    let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.iter().any(|violation| violation.rule == Rule::TableInUse), "{told:#?}");
    assert!(told.iter().any(|story| story.contains("takes leaves only, no tables")), "{told:#?}");
}

/// CPU 0 discards all pages; at the `nth` operation at which nothing has the table of page 1 locked CPU 1 writes to
/// that page. Whether there was such an operation, and what is wrong.
fn filled_meanwhile(nth: usize, sabotage: Option<Sabotage>) -> (bool, Vec<Rule>) {
    let watched = written();
    sabotage.into_iter().for_each(|sabotage| watched.model.inject(Step::DsbIsh, 0, sabotage));
    let (page, left) = (START + PAGE, Rc::new(Cell::new(Some(nth))));
    let hook = {
        let (model, frames, space, left) =
            (watched.model.clone(), watched.rig.frames, watched.spaces[0].clone(), left.clone());
        move |operation: &Operation| {
            check_held(&model, frames);
            model.watch(0, operation);
            let (table, _) = space.page_tables().cell(page).expect("tables stay");
            let is_locked = space.common.record(table).table_lock.load(Ordering::Relaxed) != 0;
            if let Some(now) = left.get().filter(|_| !is_locked) {
                left.set(now.checked_sub(1));
                if now == 0 {
                    let fault = || handle_fault(&space, &Cpu::new(CpuId(1)), page, Access::Write).unwrap();
                    // A thread, since locks have an order in each.
                    thread::scope(|scope| scope.spawn(|| watch(&model, frames, 1, fault)).join().unwrap());
                }
            }
        }
    };
    at_each(hook, || watched.spaces[0].madvise_dontneed(&watched.cpus[0], START, PAGES * PAGE).unwrap());
    (left.get().is_none(), watched.model.violations().iter().map(|violation| violation.rule).collect())
}

/// Also when a call has not returned, and is at another table.
#[test]
fn a_page_is_filled_again_when_its_invalidation_is_complete() {
    let mut seen = [0; 2];
    for sabotage in [None, Some(Sabotage::Lost)] {
        for nth in 0.. {
            let (met, rules) = filled_meanwhile(nth, sabotage);
            if !met {
                assert!(nth > 2, "there are such moments");
                break;
            }
            seen[usize::from(sabotage.is_some())] += usize::from(rules.contains(&Rule::BreakBeforeMake));
            assert!(sabotage.is_some() || rules.is_empty(), "at {nth}: {rules:?}");
        }
    }
    assert!(seen[0] == 0 && seen[1] > 2, "{seen:?}");
}

/// CPU 1 runs the parent no more, and keeps what it had of it, when CPU 0 takes pages away.
#[test]
fn a_cpu_that_comes_back_late_holds_nothing_old() {
    for sabotage in [
        None,
        Some(Sabotage::Lost),
        Some(Sabotage::Rewritten(|instruction| match instruction {
            Instruction::Vale1is(operand) => Instruction::Vale1(operand),
            Instruction::Aside1is(_) => Instruction::Vmalle1,
            other => other,
        })),
    ] {
        let mut watched = written();
        let one = |cpu, call| Action { cpu, space: 0, page: 1, count: 1, call };
        watched.perform(one(1, Call::Idle));
        if let Some(sabotage) = sabotage {
            watched.model.inject(Step::Tlbi, 0, sabotage);
        }
        watched.perform(one(0, Call::Protect(Protection::READ)));
        assert!(watched.model.all_struck());
        assert_eq!(watched.stale().is_some(), matches!(sabotage, Some(Sabotage::Lost)), "{sabotage:?}: CPU 0");
        watched.perform(one(1, Call::Run));
        assert_eq!(watched.stale().is_some(), sabotage.is_some(), "{sabotage:?}: CPU 1");
        watched.model.violations();
    }
}

/// More spaces than there are numbers: a CPU forgets those of the generation before.
#[test]
fn an_asid_is_given_on_when_its_entries_are_forgotten() {
    for sabotage in [None, Some(Sabotage::Lost)] {
        let mut watched = written();
        let all = |cpu, space, call| Action { cpu, space, page: 0, count: PAGES, call };
        for _ in 1..MOST_SPACES {
            watched.perform(all(0, 0, Call::Fork));
        }
        // The first number is the first space's; two more are left, then a generation begins.
        let mut rules = Vec::new();
        for space in 1..MOST_SPACES {
            if space == 3
                && let Some(sabotage) = sabotage
            {
                watched.model.inject(Step::Tlbi, 0, sabotage);
            }
            watched.perform(all(0, space, Call::Run));
            watched.perform(all(0, space, Call::Touch(Access::Read)));
            rules.extend(watched.model.violations().iter().map(|violation| violation.rule));
        }
        assert!(watched.model.all_struck() && watched.asids.generation() > 1, "numbers ran out");
        assert_eq!(rules.contains(&Rule::AsidInUse), sabotage.is_some(), "{rules:?}");
    }
}

/// The operand of another ASID takes nothing.
#[test]
fn an_invalidation_of_another_asid_is_none() {
    fn other(instruction: Instruction) -> Instruction {
        match instruction {
            Instruction::Vale1is(operand) => {
                let page = VirtAddr(operand.bits() << 20 >> 8);
                let number = (operand.bits() >> 48) as u16 + 1;
                // SAFETY: no device translates by the model.
                let token = unsafe { granule_arch::tlbi::UserTlbToken::new() };
                Instruction::Vale1is(AddressOperand::with_asid(
                    page,
                    granule_arch::tlbi::Asid::new(number, token),
                    None,
                ))
            }
            other => panic!("{other:?} for one page"),
        }
    }
    let mut watched = written();
    watched.model.inject(Step::Tlbi, 0, Sabotage::Rewritten(other));
    watched.perform(Action { cpu: 0, space: 0, page: 2, count: 1, call: Call::Discard });
    let violations = watched.model.violations();
    let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|story| story.contains("is for another ASID")), "{told:#?}");
}
