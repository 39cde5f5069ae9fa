//! CPUs that are threads, and take turns: every operation on the machine waits for its own, in an order that a test
//! draws.
//!
//! So two CPUs are interleaved operation by operation, and the same draw gives the same run, but for what is no
//! operation on the machine: walk words and the pool of frames.
//!
//! A CPU may stop the other, and has all turns then. **Rule: no CPU runs while a break is open**: from the store that
//! empties the first live entry until all that were emptied are made again and a DSB has completed that, the other CPU
//! has no turn.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;
use granule_model::{Features, Model, ModelCpu};
use granule_pgtable::{Feature, Geometry, Mmu, PageTables, Stores, Table};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// A machine of three CPUs with so many frames for tables. With `late`, which store each load finds is drawn from that
/// seed.
pub(crate) fn machine<G: Geometry>(frames: usize, features: Features, late: Option<u64>) -> Model<G> {
    let model = Model::new(3, frames, features);
    if let Some(mut state) = late {
        model.late_loads(move |count| {
            // Knuth's MMIX generator; its upper bits are good.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % count
        });
    }
    model
}

/// Whether `test` fails for one of so many draws, which are the same in each run.
pub(crate) fn is_seen<S: Strategy>(cases: u32, draws: &S, test: impl Fn(S::Value)) -> bool {
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::with_cases(cases) };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let run = runner.run(draws, |drawn| {
        test(drawn);
        Ok(())
    });
    matches!(run, Err(TestError::Fail(..)))
}

/// The turns of two CPUs.
pub(crate) struct Turns {
    /// How many operations in a row each time: of CPU 0, of CPU 1, of CPU 0, and over again.
    lengths: Vec<u8>,
    now: Mutex<Now>,
    changed: Condvar,
    /// It changes in operations only.
    stop: Mutex<Stop>,
}

struct Now {
    turn: usize,
    /// Operations left in this turn.
    left: u8,
    /// CPUs that have nothing more to do.
    done: [bool; 2],
}

/// A CPU that stops the other.
#[derive(Default)]
struct Stop {
    /// The one that does, or waits for the other to be parked.
    by: Option<usize>,
    /// The other has no turn.
    is_parked: bool,
    /// The addresses of live entries that it has emptied and not made again.
    emptied: Vec<usize>,
    /// A break is open.
    is_open: bool,
}

impl Turns {
    pub(crate) fn new(lengths: Vec<u8>) -> Self {
        let now = Now { turn: 0, left: lengths[0], done: [false; 2] };
        Self { lengths, now: Mutex::new(now), changed: Condvar::new(), stop: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) -> MutexGuard<'_, Stop> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` as one operation of `cpu`, in its turn.
    pub(crate) fn step<R>(&self, cpu: usize, work: impl FnOnce() -> R) -> R {
        let waits = |now: &mut Now| match *self.stop() {
            Stop { is_parked: true, by, .. } => by != Some(cpu),
            _ => now.turn % 2 != cpu && !now.done[1 - cpu],
        };
        let mut now = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let is_broken = matches!(*self.stop(), Stop { is_open: true, by, .. } if by != Some(cpu));
        // A panic drops what the CPU holds, which may take more operations.
        assert!(!is_broken || std::thread::panicking(), "CPU {cpu} runs while a break of CPU {} is open", 1 - cpu);
        let result = work();
        now.left = now.left.saturating_sub(1);
        if now.left == 0 {
            now.turn += 1;
            now.left = self.lengths[now.turn % self.lengths.len()];
            self.changed.notify_all();
        }
        result
    }

    /// `cpu` is the one that stops the other: where both want to, one waits, and may be parked while it waits.
    pub(crate) fn begin_stop(&self, cpu: usize) {
        while !self.step(cpu, || *self.stop().by.get_or_insert(cpu) == cpu) {}
    }

    /// The other is parked as soon as it `may_be`, and has its turns until then.
    pub(crate) fn park(&self, cpu: usize, may_be: impl Fn() -> bool) {
        while !self.step(cpu, || {
            self.stop().is_parked = may_be();
            self.stop().is_parked
        }) {}
    }

    /// The other gets turns again.
    pub(crate) fn end_stop(&self, cpu: usize) {
        self.step(cpu, || *self.stop() = Stop::default());
        self.changed.notify_all();
    }

    /// `cpu` is about to store `new`: that may open a break, where it stops the other.
    fn stores(&self, cpu: usize, cell: &AtomicU64, new: Descriptor) {
        let (mut stop, address) = (self.stop(), cell.as_ptr().addr());
        if new != Descriptor::EMPTY {
            stop.emptied.retain(|&emptied| emptied != address);
        } else if stop.by == Some(cpu) && Descriptor(cell.load(Ordering::Relaxed)).is_valid() {
            stop.emptied.push(address);
            stop.is_open = true;
        }
    }

    /// A DSB of `cpu` ends a break that has made all entries again.
    fn completes(&self, cpu: usize) {
        let mut stop = self.stop();
        stop.is_open &= stop.by != Some(cpu) || !stop.emptied.is_empty();
    }

    /// `cpu` is a thread until what is returned is dropped, also by a panic: then the other has all turns.
    pub(crate) fn thread(&self, cpu: usize) -> impl Drop + '_ {
        struct Thread<'a>(&'a Turns, usize);
        impl Drop for Thread<'_> {
            fn drop(&mut self) {
                self.0.lock().done[self.1] = true;
                self.0.changed.notify_all();
            }
        }
        Thread(self, cpu)
    }
}

/// A CPU of the model whose operations wait for their turn.
pub(crate) struct Gated<'a, G: Geometry> {
    cpu: ModelCpu<'a, G>,
    turns: Option<&'a Turns>,
}

impl<'a, G: Geometry> Gated<'a, G> {
    pub(crate) fn new(cpu: ModelCpu<'a, G>, turns: Option<&'a Turns>) -> Self {
        Self { cpu, turns }
    }

    pub(crate) fn page_tables(&self) -> PageTables<'_, Self> {
        PageTables::new(self, self.cpu.model().root())
    }

    fn step<R>(&self, work: impl FnOnce() -> R) -> R {
        match self.turns {
            Some(turns) => turns.step(self.cpu.index(), work),
            None => work(),
        }
    }
}

// SAFETY: each method is the model's own, in its turn.
unsafe impl<G: Geometry> Mmu for Gated<'_, G> {
    type Geometry = G;
    type Cell = AtomicU64;

    fn table(&self, table: Table<G>) -> &[AtomicU64] {
        self.cpu.table(table)
    }

    fn load(&self, cell: &AtomicU64) -> Descriptor {
        self.step(|| self.cpu.load(cell))
    }

    unsafe fn write(&self, cell: &AtomicU64, descriptor: Descriptor) {
        self.step(|| {
            self.turns.into_iter().for_each(|turns| turns.stores(self.cpu.index(), cell, descriptor));
            self.cpu.store(cell, descriptor);
        });
    }

    unsafe fn exchange(&self, cell: &AtomicU64, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        self.step(|| self.cpu.compare_exchange(cell, current, new))
    }

    unsafe fn clear(&self, cell: &AtomicU64, mask: u64) -> Descriptor {
        self.step(|| self.cpu.clear_bits(cell, mask))
    }

    fn tlbi(&self, instruction: Instruction) {
        self.step(|| self.cpu.tlbi(instruction));
    }

    fn dmb_ishst(&self) {
        self.step(|| self.cpu.dmb_ishst());
    }

    fn dsb_ishst(&self) {
        self.step(|| {
            self.cpu.dsb_ishst();
            self.turns.into_iter().for_each(|turns| turns.completes(self.cpu.index()));
        });
    }

    fn dsb_ish(&self) {
        self.step(|| self.cpu.dsb_ish());
    }

    fn isb(&self) {
        self.step(|| self.cpu.isb());
    }

    fn has(&self, feature: Feature) -> bool {
        self.cpu.has(feature)
    }
}

// SAFETY: the tests change what they own; entries map no memory.
#[allow(unsafe_code, reason = "keeps the contract of `Stores`")]
unsafe impl<G: Geometry> Stores for Gated<'_, G> {}
