//! The machine under test, what should be mapped in it, and the comparison.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_model::{Access, Fault, Model, Outcome};
use granule_pgtable::{
    Announced, Change, Collapse, Collapser, Entries, Error, Flush, Geometry, Handshake, Invalidation, Lazy, Leaf,
    Lockless, PageRange, Progress, Reclaimer, RefuseSplits, Serialise, Shape, Split, TableSource, Tables, Tlb,
    WalkWord, WholeLeaves,
};

use crate::calls::{ATTRIBUTES, CHANGES, Call, Place, units, window};
use crate::plain::{Piece, Plain};
use crate::stop::{Stop, Stopping};
use crate::turns::{Gated, Turns};
use crate::{DATA, LARGEST};

/// Frames for tables: enough for most sequences, and some run out.
pub(crate) const FRAMES: usize = 40;

/// The tables that the two ends of a range may need: one of blocks and one of pages each.
const MOST_TABLES: usize = 4;

/// Physical memory that is mapped begins here; no table is in it.
const MEMORY: u64 = 0x10_0000_0000;

/// How valid kernel entries are marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kernel {
    /// As they are.
    Global,
    /// With nG, as a kernel that unmaps itself from user space has it.
    NotGlobal,
}

/// Whether reclaim waits for walks that are under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// It looks at the walk words.
    Waits,
    /// It looks at them without acquire: to see that it takes one.
    Unordered,
    /// It does not: to see that it has to.
    None,
}

/// How far the hole reaches whose tables an unmapping takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// To the border.
    Part,
    /// Over it: to see that it must not.
    Everything,
}

/// Whether leaves that both CPUs have a part of are split, and what keeps two splits apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Splits {
    /// There are none, and changes give the level of the leaves that they find.
    NotShared,
    /// A change that would cut one is refused.
    Refused,
    /// A lock around each split.
    Locked,
    /// Atomic steps.
    Lockless,
    /// Nothing, to see that something has to.
    Unserialised,
    /// Atomic steps, but changes give the level of the leaves that they find, to see that they must not.
    Hinted,
    /// Break-before-make, with all other CPUs stopped.
    Stopped(Stop),
}

pub(crate) struct Rig<'m, G: Geometry, T> {
    pub(crate) model: &'m Model<G>,
    tlb: T,
    kernel: Kernel,
    splits: Splits,
    /// The lock around splits: the CPU that had it last, and whether it has it now.
    split_lock: Mutex<(usize, bool)>,
    /// Where what CPU 0 owns ends and what CPU 1 owns begins.
    border: u64,
    plain: Mutex<Plain>,
    /// How many mappings there were: each has memory of its own.
    mappings: AtomicU64,
    /// The walk words of the CPUs.
    pub(crate) words: [AtomicU64; 3],
    /// How often others were stopped.
    pub(crate) stops: AtomicU64,
    /// The turns of the CPUs, where they are threads.
    turns: Option<Turns>,
    patience: Patience,
    /// The mark of leaves that changes may be made to: those that wait have lost it.
    mark: u64,
    /// The ranges that are unmapped and wait for their invalidation. It changes in operations only.
    pub(crate) waiting: Mutex<Vec<Waiting>>,
}

/// A range whose leaves are invalid, and may be in TLBs: the frames are still its.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Waiting {
    /// The CPU that owns it, and has made it so.
    pub(crate) by: usize,
    pub(crate) start: VirtAddr,
    pub(crate) size: u64,
    /// The pieces that were mapped there.
    pub(crate) was: Vec<(u64, Piece)>,
}

impl Waiting {
    pub(crate) fn range<G: Geometry>(&self) -> PageRange<G> {
        PageRange::new(self.start, self.size).expect("it was a range")
    }

    fn contains(&self, address: VirtAddr) -> bool {
        address.0.wrapping_sub(self.start.0) < self.size
    }
}

impl<'m, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Rig<'m, G, T> {
    /// CPU 0 owns what is in front of the page `border` after the middle of the window, CPU 1 the rest: two tables at
    /// least are shared, and the last level's as well where the border is inside it.
    pub(crate) fn new(model: &'m Model<G>, tlb: T, kernel: Kernel, border: u64) -> Self {
        let window = based::<G>(model, window::<G>());
        let border = window.start().0 + window.size() / 2 + border * G::PAGE_SIZE;
        let (plain, mappings, words) = (Mutex::default(), AtomicU64::default(), Default::default());
        let (splits, split_lock) = (Splits::NotShared, Mutex::default());
        let (stops, turns, patience) = (AtomicU64::default(), None, Patience::Waits);
        let (mark, waiting) = (0, Mutex::default());
        Self {
            model,
            tlb,
            kernel,
            splits,
            split_lock,
            border,
            plain,
            mappings,
            words,
            stops,
            turns,
            patience,
            mark,
            waiting,
        }
    }

    /// As [`Self::new`], with leaves that are marked, for [`Self::unmap_lazily`]; a change splits leaves of its caller.
    pub(crate) fn lazily(self, splits: Splits) -> Self {
        Self { splits, mark: bits::VM_ALLOC, ..self }
    }

    /// Maps the whole window by the largest leaves: both CPUs own a part of those at the border.
    pub(crate) fn sharing(self, splits: Splits) -> Self {
        let window = based::<G>(self.model, window::<G>());
        let block = G::entry_size(1);
        let range = if G::has_leaves(1) {
            PageRange::new(VirtAddr(self.border & !(block - 1)) - block, 2 * block)
        } else {
            Ok(window)
        };
        self.map(0, range.expect("the window is around a boundary"), PhysAddr(MEMORY), DATA, LARGEST, FRAMES, &|| ());
        self.model.synchronise();
        self.model.hand_over(0, 1);
        Self { splits, ..self }
    }

    /// Has the CPUs take turns: each of their operations waits for its own.
    pub(crate) fn in_turns(self, turns: Turns, patience: Patience) -> Self {
        Self { turns: Some(turns), patience, ..self }
    }

    pub(crate) fn turns(&self) -> Option<&Turns> {
        self.turns.as_ref()
    }

    /// `work` as one operation of `cpu`.
    pub(crate) fn step<R>(&self, cpu: usize, work: impl FnOnce() -> R) -> R {
        match self.turns() {
            Some(turns) => turns.step(cpu, work),
            None => work(),
        }
    }

    pub(crate) fn cpu(&self, cpu: usize) -> Gated<'_, G> {
        Gated::new(self.model.cpu(cpu), self.turns())
    }

    pub(crate) fn tlb(&self) -> &T {
        &self.tlb
    }

    pub(crate) fn plain(&self) -> MutexGuard<'_, Plain> {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The range that `cpu` owns.
    fn owned(&self, cpu: usize) -> PageRange<G> {
        let window = based::<G>(self.model, window::<G>());
        let before = self.border - window.start().0;
        let (start, size) = match cpu {
            0 => (window.start(), before),
            _ => (VirtAddr(self.border), window.size() - before),
        };
        PageRange::new(start, size).expect("the border is inside the window")
    }

    /// The bits of an address that the tree translates: what the map counts in, so that no end is past the last
    /// address.
    pub(crate) fn low(&self, address: VirtAddr) -> u64 {
        address.0 - self.model.base().0
    }

    /// The part of `place` that `cpu` owns.
    pub(crate) fn range(&self, cpu: usize, place: Place) -> Option<PageRange<G>> {
        let (asked, owned) = (based(self.model, place.range::<G>()?), self.owned(cpu));
        let (first, last) = (asked.start().max(owned.start()), asked.last().min(owned.last()));
        if first < last { PageRange::new(first, last.0 - first.0 + 1).ok() } else { None }
    }

    /// `cpu` makes a call, in the middle of which `meanwhile` happens; then what it owns is compared.
    pub(crate) fn perform(&self, cpu: usize, call: Call, meanwhile: &dyn Fn()) {
        self.perform_unchecked(cpu, call, meanwhile);
        self.check(cpu);
    }

    pub(crate) fn perform_unchecked(&self, cpu: usize, call: Call, meanwhile: &dyn Fn()) {
        match call {
            Call::Map { place, .. } => match self.range(cpu, place) {
                Some(range) => _ = self.map_range(cpu, range, call, meanwhile),
                None => meanwhile(),
            },
            Call::Unmap(place) => match self.range(cpu, place) {
                Some(range) => _ = self.unmap(cpu, range, meanwhile),
                None => meanwhile(),
            },
            Call::Update(place, change) => match self.range(cpu, place) {
                Some(range) => self.update(cpu, range, self.change(CHANGES[change]), meanwhile),
                None => meanwhile(),
            },
        }
    }

    /// The mapping that `call` asks for, of `range`. Returns whether it was done.
    pub(crate) fn map_range(&self, cpu: usize, range: PageRange<G>, call: Call, meanwhile: &dyn Fn()) -> bool {
        let Call::Map { place, physical, attributes, pages, tables } = call else { panic!("{call:?} maps nothing") };
        let small = range.pages() <= 512;
        let off = if small { physical / 56 } else { 0 };
        let unit = units::<G>()[place.unit];
        // No two mappings share memory, so that a frame is out of use when its one mapping is.
        let mapping = self.mappings.fetch_add(1, Ordering::Relaxed);
        let home = MEMORY + mapping * (2 * window::<G>().size()).next_multiple_of(unit);
        let physical = PhysAddr(home + range.start().0 % unit + off * G::PAGE_SIZE);
        let shape = if pages && small { Shape::PAGES } else { LARGEST };
        let first_try = if tables == usize::MAX { FRAMES } else { 0 };
        let attributes = ATTRIBUTES[attributes];
        let attributes = if self.mark == 0 { attributes } else { attributes.vm_alloc() };
        self.map(cpu, range, physical, attributes, shape, first_try, meanwhile)
    }

    /// Whether `call` of `cpu` changes no page that is valid, and leaves those that are invalid so. It cannot know that
    /// they have been invalidated since they became so, and does it again.
    pub(crate) fn is_for_invalid_pages(&self, cpu: usize, call: Call) -> bool {
        let place = match call {
            Call::Unmap(place) => place,
            Call::Update(place, change) if CHANGES[change] != Change::VALID => place,
            Call::Update(..) | Call::Map { .. } => return false,
        };
        let pieces = |range: PageRange<G>| self.plain().pieces(self.low(range.start()), self.low(range.last()) + 1);
        let pieces = self.range(cpu, place).map(pieces).unwrap_or_default();
        let is_left = |attributes: u64| match call {
            Call::Update(_, change) => self.change(CHANGES[change]).apply(Descriptor(attributes)).0 == attributes,
            Call::Unmap(_) | Call::Map { .. } => false,
        };
        pieces.iter().all(|(_, piece)| piece.attributes & bits::VALID == 0 || is_left(piece.attributes))
    }

    fn change(&self, change: Change) -> Change {
        let change = match (change, self.kernel) {
            (Change::VALID, Kernel::NotGlobal) => Change::VALID_NON_GLOBAL,
            _ => change,
        };
        change.require_bits(self.mark)
    }

    /// With ever more tables, from `tables` on, until they suffice; each time that they do not, nothing has changed. Returns
    /// whether it was done.
    #[allow(clippy::too_many_arguments, reason = "those of `PageTables::map`, the CPU, and what else happens")]
    fn map(
        &self,
        cpu: usize,
        range: PageRange<G>,
        physical: PhysAddr,
        attributes: Attributes,
        shape: Shape,
        mut tables: usize,
        meanwhile: &dyn Fn(),
    ) -> bool {
        let mmu = self.cpu(cpu);
        let lazy = Lazy::new(&mmu);
        let result = loop {
            let mut frames = self.model.frames_limited(tables);
            let _walk = Announced::begin(&self.words[cpu]);
            let result = mmu.page_tables().map(&lazy, range, physical, attributes, shape, &mut frames);
            match result {
                Err(Error::OutOfTables { .. }) if tables < FRAMES => {
                    self.audit(cpu);
                    tables += 1;
                }
                Err(Error::AlreadyMapped(at)) => {
                    let low = self.low(at);
                    let pieces = self.plain().pieces(low, low + G::PAGE_SIZE);
                    assert!(!pieces.is_empty(), "{at} is mapped, and should not be");
                    break result;
                }
                result => break result,
            }
        };
        meanwhile();
        drop(lazy);
        if result.is_ok() {
            let piece = Piece { size: range.size(), physical: physical.0, attributes: attributes.bits() };
            self.plain().0.insert(self.low(range.start()), piece);
            if self.kernel == Kernel::NotGlobal {
                // The only way: nG must not change under a live entry.
                self.update(cpu, range, Change::INVALID, &|| ());
                self.update(cpu, range, Change::VALID_NON_GLOBAL, &|| ());
            }
        }
        result.is_ok()
    }

    /// Returns whether it was done.
    pub(crate) fn unmap(&self, cpu: usize, range: PageRange<G>, meanwhile: &dyn Fn()) -> bool {
        let mmu = self.cpu(cpu);
        let (lazy, tables) = (Lazy::new(&mmu), mmu.page_tables());
        let mut released = 0;
        let walk = Announced::begin(&self.words[cpu]);
        let release = |leaf: Leaf| {
            if released == 0 {
                meanwhile();
            }
            // Looking through all TLBs for each of many frames takes long.
            if released < 8 {
                self.model.frame_freed(cpu, leaf.physical);
                self.model.frame_freed(cpu, leaf.physical + (leaf.size - G::PAGE_SIZE));
            }
            released += 1;
        };
        let result = match self.splits {
            Splits::NotShared => tables.unmap(&lazy, &self.tlb, range, WholeLeaves, release),
            _ => tables.unmap(&lazy, &self.tlb, range, RefuseSplits, release),
        };
        drop(walk);
        if result.is_ok() {
            self.plain().remove(self.low(range.start()), self.low(range.last()) + 1);
        }
        result.is_ok()
    }

    /// `cpu` makes a call as a space does whose areas are divided at the border: what is unmapped takes with it the
    /// tables that translate nothing but the hole around it, within `reach`.
    pub(crate) fn perform_in_part(&self, cpu: usize, call: Call, reach: Reach) {
        let Call::Unmap(place) = call else { return self.perform_unchecked(cpu, call, &|| ()) };
        let Some(range) = self.range(cpu, place) else { return };
        if self.unmap(cpu, range, &|| ()) {
            let within = match reach {
                Reach::Part => self.owned(cpu),
                Reach::Everything => based::<G>(self.model, window::<G>()),
            };
            self.unlink(cpu, range, self.hole(cpu, range, within));
        }
    }

    /// The free range around `range`, as far as `cpu` knows, which has locked its own part.
    fn hole(&self, cpu: usize, range: PageRange<G>, within: PageRange<G>) -> PageRange<G> {
        let owned = self.owned(cpu);
        let (first, last) = (self.low(owned.start()), self.low(owned.last()));
        let pieces = self.plain().pieces(first, last + 1);
        let (start, end) = (self.low(range.start()), self.low(range.last()) + 1);
        let below = pieces.iter().filter(|&&(at, _)| at < start).map(|&(at, piece)| at + piece.size).max();
        let above = pieces.iter().map(|&(at, _)| at).find(|&at| at >= end);
        let below = below.unwrap_or(self.low(within.start()));
        let size = above.unwrap_or(self.low(within.last()) + 1) - below;
        PageRange::new(VirtAddr(self.model.base().0 + below), size).expect("a hole around a range")
    }

    #[allow(unsafe_code, reason = "tables that a test may take too many of")]
    fn unlink(&self, cpu: usize, range: PageRange<G>, hole: PageRange<G>) {
        let mmu = self.cpu(cpu);
        let mut gone = Vec::new();
        // SAFETY: a table of the model is memory of the host's for ever: a table too many is a violation that it finds.
        unsafe { mmu.page_tables().unlink_tables(range, hole, |table| gone.push(table)) };
        if !gone.is_empty() {
            let stale = Invalidation { range, tables: Tables::Unlinked, level: None };
            self.tlb.invalidate(&mmu, core::iter::once(stale));
            let mut frames = self.model.frames();
            // SAFETY: as above.
            gone.into_iter().for_each(|table| unsafe { frames.give_back(table) });
        }
    }

    fn update(&self, cpu: usize, range: PageRange<G>, change: Change, meanwhile: &dyn Fn()) {
        let mmu = self.cpu(cpu);
        let lazy = Lazy::new(&mmu);
        let walk = || Announced::begin(&self.words[cpu]);
        let walk = (!matches!(self.splits, Splits::Stopped(_))).then(walk);
        let updated = match self.splits {
            Splits::Stopped(how) => self.split_stopped(&lazy, range, change, &Stopping::new(self, cpu, how), meanwhile),
            Splits::NotShared => mmu.page_tables().update(&lazy, range, change, WholeLeaves),
            Splits::Refused => mmu.page_tables().update(&lazy, range, change, RefuseSplits),
            Splits::Lockless => self.split(cpu, &lazy, range, change, &Lockless),
            Splits::Locked => self.split(cpu, &lazy, range, change, &Locked { rig: self, cpu }),
            Splits::Unserialised => self.split(cpu, &lazy, range, change, &Unserialised),
            Splits::Hinted => {
                let tables = mmu.page_tables();
                let split = tables.split(range, &Lockless, &mut self.model.frames());
                split.and_then(|_| tables.update(&lazy, range, change, WholeLeaves))
            }
        };
        drop(walk);
        let Ok(flush) = updated else { return meanwhile() };
        self.plain().change(self.low(range.start()), self.low(range.last()) + 1, change);
        meanwhile();
        lazy.invalidate(&self.tlb, [flush]);
    }

    /// A change with ever more tables for what it has to split, until they suffice; each time that they do not, nothing
    /// has changed.
    fn split<S: Serialise>(
        &self,
        cpu: usize,
        lazy: &Lazy<'_, Gated<'_, G>>,
        range: PageRange<G>,
        change: Change,
        how: &S,
    ) -> Result<Flush<G>, Error> {
        let mut tables = 0;
        loop {
            let mut frames = self.model.frames_limited(tables);
            match lazy.mmu().page_tables().update(lazy, range, change, Split::new(how, &mut frames)) {
                Err(Error::OutOfTables { needed, available }) => {
                    assert!(available == tables && needed <= MOST_TABLES, "{needed} tables for {range:?}");
                    self.audit(cpu);
                    tables += 1;
                }
                result => break result,
            }
        }
    }

    /// A change as the kernel makes it where CPUs are stopped for splits: refused where it cuts a leaf, and made again
    /// once that is split, outside of its walk, a table at a time. With ever more tables, too; `meanwhile` happens between
    /// the refusal and each stop.
    fn split_stopped(
        &self,
        lazy: &Lazy<'_, Gated<'_, G>>,
        range: PageRange<G>,
        change: Change,
        how: &Stopping<'_, 'm, G, T>,
        meanwhile: &dyn Fn(),
    ) -> Result<Flush<G>, Error> {
        let (page_tables, word, mut tables, mut taken) = (lazy.mmu().page_tables(), &self.words[how.cpu], 0, 0);
        loop {
            let walk = Announced::begin(word);
            let updated = page_tables.update(lazy, range, change, RefuseSplits);
            drop(walk);
            let Err(Error::Straddles { .. }) = updated else { return updated };
            meanwhile();
            match page_tables.split_stopped(range, taken, how, &mut self.model.frames_limited(tables)) {
                Err(Error::OutOfTables { needed, available }) => {
                    assert!(available == tables && needed <= MOST_TABLES, "{needed} tables for {range:?}");
                    self.step(how.cpu, || self.audit(how.cpu));
                    tables += 1;
                }
                // Where that is not all it takes a table.
                split => taken = usize::from(!split?.1),
            }
        }
    }

    /// Takes away what tables are empty in what `cpu` owns.
    #[allow(unsafe_code, reason = "tables that a test may free too early")]
    pub(crate) fn reclaim(&self, cpu: usize) {
        let mmu = self.cpu(cpu);
        let mut reclaimer = Reclaimer::<G, 3>::new();
        reclaimer.start(self.owned(cpu));
        let mut frames = self.model.frames();
        let seen: [_; 3] = core::array::from_fn(|owner| SeenWord { rig: self, owner, reader: cpu });
        let words = |cpu| seen.get(cpu).filter(|_| self.patience != Patience::None);
        self.to_the_end(cpu, || {
            // SAFETY: tables are words of the model: what a contract that is broken loses is a violation that it finds.
            let free = |table| unsafe { frames.give_back(table) };
            // SAFETY: as above.
            unsafe { reclaimer.advance(&mmu.page_tables(), &self.tlb, words, free) }
        });
    }

    /// Calls `advance` until it waits for no walk.
    fn to_the_end(&self, cpu: usize, mut advance: impl FnMut() -> Progress) {
        while advance() == Progress::Waiting {
            // A thread is in a walk, and gets its turn.
            self.turns().expect("where all is one thread no other walk is open").step(cpu, || ());
        }
    }

    /// Collapses what is alike, of what both CPUs own; `meanwhile` happens before walk caches are invalidated, or other
    /// CPUs stopped. With [`Patience::None`] nothing is marked, and no walk is waited for.
    #[allow(unsafe_code, reason = "tables that a test may free too early")]
    pub(crate) fn collapse(&self, cpu: usize, meanwhile: &dyn Fn()) {
        let mmu = self.cpu(cpu);
        let mut collapser = Collapser::<G, 3>::new();
        let handshake = match self.splits {
            Splits::Stopped(_) => Handshake::Stopped,
            _ if self.patience == Patience::None => Handshake::None,
            _ => Handshake::Marks,
        };
        let range = based::<G>(self.model, window::<G>());
        collapser.start(Collapse { range, never_blocks: 0, handshake });
        let seen: [_; 3] = core::array::from_fn(|owner| SeenWord { rig: self, owner, reader: cpu });
        let words = |cpu| seen.get(cpu).filter(|_| self.patience != Patience::None);
        let mut frames = self.model.frames();
        while !collapser.is_idle() {
            // SAFETY: tables are words of the model: what a contract that is broken loses is a violation that it finds.
            unsafe { collapser.mark(&mmu.page_tables(), words) };
            if let (Splits::Stopped(how), false) = (self.splits, collapser.is_idle()) {
                meanwhile();
                let stopping = Stopping::new(self, cpu, how);
                let _others = stopping.begin();
                // SAFETY: as above.
                unsafe { collapser.replace_stopped(&mmu.page_tables()) };
            }
            let tlb = Late { tlb: &self.tlb, before: meanwhile };
            let free = |table| self.model.frames().free(cpu, table);
            // SAFETY: as above.
            let advance = || unsafe { collapser.advance(&mmu.page_tables(), &tlb, words, &mut frames, free) };
            self.to_the_end(cpu, advance);
        }
    }

    /// The model's own question, over everything that `cpu` owns and that does not wait for an invalidation.
    pub(crate) fn audit(&self, cpu: usize) {
        let owned = self.owned(cpu);
        let of_cpu = |waiting: &&Waiting| waiting.by == cpu;
        let mut waiting: Vec<_> = self.waiting().iter().filter(of_cpu).map(|it| (it.start, it.size)).collect();
        waiting.sort_unstable();
        let mut from = owned.start();
        for (start, size) in waiting {
            PageRange::new(from, start - from).into_iter().for_each(|part| self.model.audit(cpu, part));
            from = VirtAddr(start.0.wrapping_add(size));
        }
        let left = owned.last().0.wrapping_add(1).wrapping_sub(from.0);
        PageRange::new(from, left).into_iter().for_each(|part| self.model.audit(cpu, part));
    }

    /// The range of `cpu` is what the map has, for every CPU.
    pub(crate) fn check(&self, cpu: usize) {
        self.audit(cpu);
        self.model.assert_clean();
        let samples = self.samples(cpu);
        self.compare(&samples, |who| who == cpu);
        for &page in &samples {
            for other in self.model.cpus().filter(|other| other.index() != cpu) {
                for access in Access::ALL {
                    let expected = self.expected(page, access);
                    let strange = |&outcome: &Outcome| outcome != expected && outcome != Err(Fault::Translation);
                    let found: Vec<Outcome> = other.may(page, access).into_iter().filter(strange).collect();
                    assert!(found.is_empty(), "{page}: CPU {} may see {found:?}, not {expected:?}", other.index());
                }
            }
        }
    }

    /// [`Self::check`], as an operation of `cpu`.
    pub(crate) fn check_in_turn(&self, cpu: usize) {
        self.turns().expect("a rig in turns").step(cpu, || self.check(cpu));
    }

    /// After an exception on each CPU, all of them agree on everything that `owner` owns.
    pub(crate) fn check_agreement(&self, owner: usize) {
        self.model.synchronise();
        self.compare(&self.samples(owner), |_| true);
    }

    fn compare(&self, pages: &[VirtAddr], who: impl Fn(usize) -> bool) {
        for cpu in self.model.cpus().filter(|cpu| who(cpu.index())) {
            for &page in pages {
                for access in Access::ALL {
                    let expected = self.expected(page, access);
                    assert_eq!(cpu.may(page, access), [expected], "CPU {}: {access:?} of {page}", cpu.index());
                }
            }
        }
    }

    /// The first, second and last page of everything that is mapped in what `cpu` owns, and the pages around it.
    pub(crate) fn samples(&self, cpu: usize) -> Vec<VirtAddr> {
        let owned = self.owned(cpu);
        let pieces = self.plain().pieces(self.low(owned.start()), self.low(owned.last()) + 1);
        let edges = pieces.iter().flat_map(|&(start, piece)| {
            let end = start + piece.size;
            [start.wrapping_sub(G::PAGE_SIZE), start, start + G::PAGE_SIZE, end - G::PAGE_SIZE, end]
        });
        let base = self.model.base().0;
        let mut pages: Vec<VirtAddr> =
            edges.map(|low| VirtAddr(base.wrapping_add(low))).filter(|&page| owned.contains(page)).collect();
        pages.push(owned.start());
        pages.dedup();
        let waiting = self.waiting();
        pages.retain(|&page| !waiting.iter().any(|waiting| waiting.contains(page)));
        drop(waiting);
        pages
    }

    fn expected(&self, page: VirtAddr, access: Access) -> Outcome {
        let low = self.low(page);
        let pieces = self.plain().pieces(low, low + G::PAGE_SIZE);
        let Some((_, piece)) = pieces.first() else { return Err(Fault::Translation) };
        let forbidden = match access {
            Access::Read => 0,
            Access::Write => bits::RDONLY,
            Access::Execute => bits::PXN,
        };
        if piece.attributes & bits::VALID == 0 {
            Err(Fault::Translation)
        } else if piece.attributes & forbidden != 0 {
            Err(Fault::Permission)
        } else {
            Ok(PhysAddr(piece.physical))
        }
    }
}

/// A TLB whose invalidations come after something else has happened.
struct Late<'r, T> {
    tlb: &'r T,
    before: &'r dyn Fn(),
}

impl<'c, G: Geometry, T: Tlb<Gated<'c, G>>> Tlb<Gated<'c, G>> for Late<'_, T> {
    fn issue(&self, mmu: &Gated<'c, G>, what: &Invalidation<G>) {
        self.tlb.issue(mmu, what);
    }

    fn invalidate(&self, mmu: &Gated<'c, G>, whats: impl Iterator<Item = Invalidation<G>>) {
        (self.before)();
        self.tlb.invalidate(mmu, whats);
    }
}

/// The walk word of CPU `owner`, as CPU `reader` reads it: with acquire, so what `owner` has released becomes known.
struct SeenWord<'r, 'm, G: Geometry, T> {
    rig: &'r Rig<'m, G, T>,
    owner: usize,
    reader: usize,
}

impl<G: Geometry, T> WalkWord for SeenWord<'_, '_, G, T> {
    fn make_odd(&self) -> u64 {
        unreachable!("only its own CPU writes it");
    }

    fn load_acquire(&self) -> u64 {
        let value = self.rig.words[self.owner].load_acquire();
        if self.owner != self.reader && self.rig.patience == Patience::Waits {
            self.rig.model.hand_over(self.owner, self.reader);
        }
        value
    }

    fn store_release(&self, _: u64) {
        unreachable!("only its own CPU writes it");
    }

    fn full_barrier(&self) {
        unreachable!("the reclaimer has a DSB ISH");
    }
}

/// The rig's lock around splits, for one CPU.
struct Locked<'r, 'm, G: Geometry, T> {
    rig: &'r Rig<'m, G, T>,
    cpu: usize,
}

impl<G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Locked<'_, '_, G, T> {
    /// Does `work` with the lock's state, in this CPU's turn.
    fn step<R>(&self, work: impl FnOnce(&mut (usize, bool)) -> R) -> R {
        self.rig.step(self.cpu, || work(&mut self.rig.split_lock.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

// SAFETY: there is one lock.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl<'r, 'm, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Serialise for Locked<'r, 'm, G, T> {
    type Section<'a>
        = Section<'a, 'r, 'm, G, T>
    where
        Self: 'a;

    fn entries(&self) -> Entries {
        Entries::Alone
    }

    fn begin(&self) -> Self::Section<'_> {
        let try_lock = |(last, held): &mut (usize, bool)| {
            let free = !std::mem::replace(held, true);
            if free && *last != self.cpu {
                self.rig.model.hand_over(*last, self.cpu);
                *last = self.cpu;
            }
            free
        };
        while !self.step(try_lock) {
            assert!(self.rig.turns.is_some(), "nobody else splits where all is one thread");
        }
        Section(self)
    }
}

/// Has the lock.
struct Section<'a, 'r, 'm, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>>(&'a Locked<'r, 'm, G, T>);

impl<G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Drop for Section<'_, '_, '_, G, T> {
    fn drop(&mut self) {
        self.0.step(|(_, held)| *held = false);
    }
}

/// Neither a lock nor atomic steps.
pub(crate) struct Unserialised;

// SAFETY: it breaks the contract, to show what is lost; tables are words of the model.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Unserialised {
    type Section<'a> = ();

    fn entries(&self) -> Entries {
        Entries::Alone
    }

    fn begin(&self) {}
}

/// `range` in the half of the address space that the model's tree translates.
pub(crate) fn based<G: Geometry>(model: &Model<G>, range: PageRange<G>) -> PageRange<G> {
    PageRange::new(VirtAddr(model.base().0 | range.start().0), range.size()).expect("the window is inside one half")
}
