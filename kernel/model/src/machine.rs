//! The machine as code under test sees it: CPUs that are [`Mmu`]s, memory for tables, and questions to ask.

use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;
use granule_pgtable::{Feature, Geometry, Granule4K, Mmu, PageRange, PageTables, Stores, Table, host};

use crate::arena::Arena;
use crate::event::{Event, Operation};
use crate::features::Features;
use crate::frames::Frames;
use crate::inject::{Injection, Sabotage, Step, struck};
use crate::outcome::{Access, Outcome};
use crate::rules::Use;
use crate::state::{CpuState, State};
use crate::stores::{MAX_CPUS, Memory};
use crate::story::Violation;

/// A machine with some CPUs, one tree of tables in the upper half of the address space, and memory for more.
///
/// Violations are noted and wait to be taken ([`Model::violations`]); a model that is dropped with violations that
/// were not taken panics, so no test passes by not looking.
pub struct Model<G: Geometry = Granule4K> {
    arena: Arc<Arena>,
    /// Its own tree; none where it watches another machine.
    root: Option<Table<G>>,
    features: Features,
    cpus: usize,
    state: Mutex<State<G>>,
    pub(crate) free_tables: Mutex<Vec<PhysAddr>>,
}

impl<G: Geometry> Model<G> {
    /// A machine of `cpus` CPUs with an empty root table, and `frames` frames for more.
    pub fn new(cpus: usize, frames: usize, features: Features) -> Self {
        let arena = Arc::new(Arena::new((frames as u64 + 1) * G::PAGE_SIZE));
        let first = arena.range().start();
        // SAFETY: the arena's first frame is zero, in no free list, and lives as long as the model, which lends
        // its trees.
        #[allow(unsafe_code, reason = "vouching for the root")]
        let root = unsafe { Table::root(first) };
        let free = (1..=frames as u64).rev().map(|frame| first + frame * G::PAGE_SIZE).collect();
        let model = Self::with(arena, Some(root), cpus, features, free);
        model.run_under(0);
        model
    }

    /// A machine that has no tables of its own and watches another's, whose memory is `memory` and found on the host at
    /// addresses that are `offset` higher: what the other does goes to [`Self::watch`], in order.
    ///
    /// # Safety
    /// All of `memory` stays mapped as long as the model exists, and tables in it are accessed as atomics.
    #[allow(unsafe_code, reason = "passes on the contract of the memory")]
    pub unsafe fn watching(memory: PhysRange, offset: u64, cpus: usize, features: Features) -> Self {
        // SAFETY: the caller keeps the contract.
        let arena = unsafe { Arena::foreign(memory, offset) };
        Self::with(Arc::new(arena), None, cpus, features, Vec::new())
    }

    fn with(
        arena: Arc<Arena>,
        root: Option<Table<G>>,
        cpus: usize,
        features: Features,
        free_tables: Vec<PhysAddr>,
    ) -> Self {
        assert!((1..=MAX_CPUS).contains(&cpus), "a model has 1 to {MAX_CPUS} CPUs");
        let state = State {
            features,
            arena: Arc::clone(&arena),
            trees: Vec::new(),
            memory: Memory::new(G::PAGE_SHIFT, cpus, features),
            cpus: std::iter::repeat_with(CpuState::default).take(cpus).collect(),
            stream: Vec::new(),
            injections: Vec::new(),
            late_loads: None,
            violations: Vec::new(),
            shows_all: Vec::new(),
            free: std::collections::BTreeSet::new(),
            geometry: PhantomData,
        };
        Self { arena, root, features, cpus, state: Mutex::new(state), free_tables: Mutex::new(free_tables) }
    }

    /// One of its CPUs.
    pub fn cpu(&self, index: usize) -> ModelCpu<'_, G> {
        assert!(index < self.cpus, "there are {} CPUs", self.cpus);
        ModelCpu { model: self, index }
    }

    /// All of its CPUs.
    pub fn cpus(&self) -> impl Iterator<Item = ModelCpu<'_, G>> {
        (0..self.cpus).map(|index| self.cpu(index))
    }

    /// The features of its CPUs.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// All CPUs run the machine's own tree under `asid`; it is 0 otherwise.
    pub fn run_under(&self, asid: u16) {
        (0..self.cpus).for_each(|cpu| self.run(cpu, self.base(), Some((self.root().address(), asid))));
    }

    /// `cpu` writes TTBR0 or TTBR1, for the addresses from `start` on, and does an ISB: it walks the tree of this root
    /// under this ASID from now on, or none. It keeps what it holds of others.
    pub fn run(&self, cpu: usize, start: VirtAddr, tree: Option<(PhysAddr, u16)>) {
        self.state().run(cpu, start.0, tree);
    }

    /// `cpu` is off, and out of reset with its MMU off, until it runs a tree: invalidations of others do not reach it, and
    /// what its TLB holds for the addresses from `start` on is unknown. It has to invalidate that itself.
    pub fn turn_off(&self, cpu: usize, start: VirtAddr) {
        self.state().turn_off(cpu, start.0);
    }

    /// Whether `cpu` runs the tree of `root`.
    pub fn runs(&self, cpu: usize, root: PhysAddr) -> bool {
        self.state().asid_of(cpu, root).is_some()
    }

    /// The tree of `root` is no more: no CPU runs it, nor will again.
    pub fn forget(&self, root: PhysAddr) {
        let mut state = self.state();
        state.check_unreachable(root, "is a root and freed");
        state.trees.retain(|tree| tree.root != root);
        state.memory.frame_mut(root).place = None;
    }

    /// An operation of `cpu` of the machine that this one watches: a store that is done, or is about to be.
    pub fn watch(&self, cpu: usize, operation: &host::Operation<G>) {
        let mut state = self.state();
        let operation = match *operation {
            host::Operation::Write { cell, old, new } => return state.store(cpu, cell, old, new),
            host::Operation::DmbIshst => Operation::DmbIshst,
            host::Operation::DsbIshst => Operation::DsbIshst,
            host::Operation::DsbIsh => Operation::DsbIsh,
            host::Operation::DsbNsh => Operation::DsbNsh,
            host::Operation::Isb => Operation::Isb,
            host::Operation::Tlbi(instruction) => Operation::Tlbi(instruction),
            host::Operation::Invalidate(_) | host::Operation::Cache(_) => return,
        };
        state.execute(cpu, operation);
    }

    /// Asks `is_held` of each frame that some CPU may reach by what it may hold, now or when it runs a tree again, as a
    /// page or as a table: one that is free is a violation.
    pub fn check_held(&self, is_held: impl Fn(PhysAddr) -> bool) {
        self.state().check_held(&is_held);
    }

    /// The root of its own tree.
    ///
    /// # Panics
    /// Where it watches another machine.
    pub const fn root(&self) -> Table<G> {
        self.root.expect("a model that watches another has no tree of its own")
    }

    /// The first address of the tree: the upper half.
    pub fn base(&self) -> VirtAddr {
        VirtAddr(base::<G>())
    }

    /// Frames for tables, each noted by the model when it is taken and given back.
    pub const fn frames(&self) -> Frames<'_, G> {
        Frames::new(self, usize::MAX)
    }

    /// As [`Self::frames`], of which only `count` will be given.
    pub const fn frames_limited(&self, count: usize) -> Frames<'_, G> {
        Frames::new(self, count)
    }

    /// How many frames for tables are free.
    pub fn free_frames(&self) -> usize {
        lock(&self.free_tables).len()
    }

    /// The physical memory that tables can be in, the root in the first frame of it.
    pub fn memory(&self) -> PhysRange {
        self.arena.range()
    }

    /// The cell at `address`, as [`Mmu`] takes it.
    pub fn cell(&self, address: PhysAddr) -> &AtomicU64 {
        &self.arena.cells(address, 1)[0]
    }

    /// The difference from a physical address to a pointer of the host, to be added with wrapping: for code that
    /// touches frames by plain memory accesses.
    pub fn offset(&self) -> u64 {
        self.arena.offset()
    }

    /// Addresses that map all frames, free or not: a linear map. A translation there to a free frame is no violation.
    pub fn shows_all(&self, addresses: RangeInclusive<VirtAddr>) {
        self.state().shows_all.push(addresses.start().0..=addresses.end().0);
    }

    /// The frame at `frame` was taken by `cpu`, and zeroed by plain stores. Stores of earlier owners come before: a
    /// frame goes from one to the next by locks, and the acquire orders what was released before the new owner's
    /// stores.
    pub fn frame_taken(&self, cpu: usize, frame: PhysAddr) {
        let mut state = self.state();
        let now = state.note(cpu, Operation::FrameTaken(frame));
        state.free.remove(&frame.0);
        state.memory.frame_mut(frame).forget_past();
        state.memory.was_zeroed(frame, now);
    }

    /// The frame at `frame` is given up: no TLB may translate to it and no walk come to it any more. If it was a table
    /// it is overwritten, so that a walk that follows it anyway does not get far.
    pub fn frame_freed(&self, cpu: usize, frame: PhysAddr) {
        let mut state = self.state();
        state.note(cpu, Operation::FrameFreed(frame));
        state.check_untranslated(frame, Use::Freed);
        state.check_unreachable(frame, "is freed");
        if state.memory.place(frame).is_some() {
            state.memory.frame_mut(frame).place = None;
            state.memory.frame_mut(frame).forget_past();
            self.arena.fill(frame, G::PAGE_SIZE, POISON);
        }
        state.free.insert(frame.0);
    }

    /// The frame at `frame` is copied, to be used elsewhere: no CPU may store to it any more.
    pub fn frame_copied(&self, cpu: usize, frame: PhysAddr) {
        let mut state = self.state();
        state.note(cpu, Operation::FrameCopied(frame));
        state.check_untranslated(frame, Use::Copied);
    }

    /// `from` releases what it did, and `to` acquires it: a lock that goes from one to the other, or a flag.
    pub fn hand_over(&self, from: usize, to: usize) {
        self.state().execute(from, Operation::HandOver(to));
    }

    /// Every CPU takes an exception and comes back, as it does all the time: what it had looked up ahead is thrown
    /// away. No injected fault strikes here.
    pub fn synchronise(&self) {
        (0..self.cpus).for_each(|cpu| self.state().execute_unharmed(cpu, Operation::Isb));
    }

    /// Breaks the `nth` (from 0, from now on) operation of kind `step`.
    pub fn inject(&self, step: Step, nth: usize, sabotage: Sabotage) {
        self.state().injections.push(Injection { step, nth, sabotage });
    }

    /// From now on loads by software, too, may find what was there before. `draw` takes the number of stores that a load
    /// may find and returns the index of the one that it finds, 0 for the oldest. Without this each finds the newest.
    pub fn late_loads(&self, draw: impl FnMut(usize) -> usize + Send + 'static) {
        self.state().late_loads = Some(Box::new(draw));
    }

    /// Whether every injected fault has struck.
    pub fn all_struck(&self) -> bool {
        self.state().injections.is_empty()
    }

    /// Asks what a call that returned on `caller` promises of `range`: no CPU may use a translation that the tables
    /// do not hold, and `caller` can use all that is valid.
    pub fn audit(&self, caller: usize, range: PageRange<G>) {
        self.state().audit(caller, range.start().0, range.last().0);
    }

    /// The events of `work`, in order.
    pub fn record(&self, work: impl FnOnce()) -> Vec<Event> {
        let before = self.state().stream.len();
        work();
        self.state().stream[before..].to_vec()
    }

    /// Takes what went wrong so far.
    pub fn violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.state().violations)
    }

    /// Asserts that nothing went wrong so far.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{}", texts(&violations));
    }

    /// Asserts that something did, takes it and returns the first.
    #[track_caller]
    pub fn expect_violation(&self) -> Violation {
        self.violations().into_iter().next().expect("the model saw nothing wrong")
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    fn state(&self) -> MutexGuard<'_, State<G>> {
        lock(&self.state)
    }
}

impl<G: Geometry> Drop for Model<G> {
    fn drop(&mut self) {
        let violations = self.violations();
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("the model was dropped with violations that were not taken:\n{}", texts(&violations));
        }
    }
}

/// The value that fills a freed table: not valid, and no address that anything has.
const POISON: u64 = 0xdead_7ab1_e000_0000;

fn texts(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn base<G: Geometry>() -> u64 {
    u64::MAX << G::VA_BITS
}

/// A panic in one test must not hide behind a poisoned lock in another.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One CPU of a [`Model`].
pub struct ModelCpu<'m, G: Geometry = Granule4K> {
    model: &'m Model<G>,
    index: usize,
}

impl<G: Geometry> Clone for ModelCpu<'_, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G: Geometry> Copy for ModelCpu<'_, G> {}

impl<'m, G: Geometry> ModelCpu<'m, G> {
    /// Which it is, from 0.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// The machine that it belongs to.
    pub const fn model(&self) -> &'m Model<G> {
        self.model
    }

    /// The machine's tree, as this CPU sees it.
    pub const fn page_tables(&self) -> PageTables<'_, Self> {
        PageTables::new(self, self.model.root())
    }

    /// The entry in which the walk for `address` ends: for tests that write entries themselves.
    ///
    /// # Panics
    /// Never: a walk has at least one step.
    pub fn entry(&self, address: VirtAddr) -> &'m AtomicU64 {
        let step = self.page_tables().walk(address).last().expect("a walk reads the root");
        self.model.cell(step.table + step.index as u64 * 8)
    }

    /// Accesses `address`. Where it may come to more than one thing, that is a violation.
    ///
    /// # Errors
    /// The fault, where every store and invalidation so far has taken effect.
    pub fn access(&self, address: VirtAddr, access: Access) -> Outcome {
        self.model.state().access(self.index, address.0, access)
    }

    /// Everything that an access may come to, in order and each once. Nothing happens.
    pub fn may(&self, address: VirtAddr, access: Access) -> Vec<Outcome> {
        self.model.state().outcomes(self.index, address.0, access)
    }

    fn execute(&self, operation: Operation) {
        self.model.state().execute(self.index, operation);
    }
}

// SAFETY: (1) a table's cells are a fixed part of the arena, atomics all; (2) they are loaded with acquire, and changed
// and noted under one lock; (3) barriers order what walkers, and late loads, may see, which is what the model models;
// (4) the bulk methods are the defaults.
#[allow(unsafe_code, reason = "implementing the contract of `Mmu`")]
unsafe impl<G: Geometry> Mmu for ModelCpu<'_, G> {
    type Geometry = G;
    type Cell = AtomicU64;

    fn table(&self, table: Table<G>) -> &[AtomicU64] {
        self.model.arena.cells(table.address(), G::entries(table.level()))
    }

    fn load(&self, cell: &AtomicU64) -> Descriptor {
        let mut state = self.model.state();
        let newest = Descriptor(cell.load(Ordering::Acquire));
        state.load(self.index, self.model.arena.address(cell), newest)
    }

    unsafe fn write(&self, cell: &AtomicU64, descriptor: Descriptor) {
        let mut state = self.model.state();
        let address = self.model.arena.address(cell);
        state.check_flags_kept(self.index, address, Descriptor(cell.load(Ordering::Acquire)), descriptor);
        let old = Descriptor(cell.swap(descriptor.0, Ordering::AcqRel));
        state.store(self.index, address, old, descriptor);
    }

    unsafe fn exchange(&self, cell: &AtomicU64, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        let mut state = self.model.state();
        let (now, address) = (state.now(), self.model.arena.address(cell));
        match struck(&mut state.injections, Step::CompareExchange) {
            // Between its comparison and its store is what must be kept.
            Some(_) => state.check_flags_kept(self.index, address, current, new),
            None => state.use_leaf(self.index, address),
        }
        state.memory.observe(address, self.index, now);
        cell.compare_exchange(current.0, new.0, Ordering::AcqRel, Ordering::Acquire).map_err(Descriptor)?;
        state.store(self.index, address, current, new);
        Ok(())
    }

    unsafe fn clear(&self, cell: &AtomicU64, mask: u64) -> Descriptor {
        let mut state = self.model.state();
        let old = Descriptor(cell.fetch_and(!mask, Ordering::AcqRel));
        state.store(self.index, self.model.arena.address(cell), old, Descriptor(old.0 & !mask));
        old
    }

    fn tlbi(&self, instruction: Instruction) {
        self.execute(Operation::Tlbi(instruction));
    }

    fn dmb_ishst(&self) {
        self.execute(Operation::DmbIshst);
    }

    fn dsb_ishst(&self) {
        self.execute(Operation::DsbIshst);
    }

    fn dsb_ish(&self) {
        self.execute(Operation::DsbIsh);
    }

    fn dsb_nsh(&self) {
        self.execute(Operation::DsbNsh);
    }

    fn isb(&self) {
        self.execute(Operation::Isb);
    }

    fn has(&self, feature: Feature) -> bool {
        let features = self.model.features;
        match feature {
            Feature::TlbRange => features.tlb_range,
            Feature::Ttl => features.ttl,
            Feature::Ets2 => features.ets2,
            Feature::Idc | Feature::Dic => true,
        }
    }
}

// SAFETY: the tests change what they own; entries map no memory.
#[allow(unsafe_code, reason = "keeps the contract of `Stores`")]
unsafe impl<G: Geometry> Stores for ModelCpu<'_, G> {}
