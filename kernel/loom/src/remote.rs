//! CPUs that interrupt each other: the kernel's calls and parking, compiled here once more, and what stands in the place
//! of the rest of `smp`.
//!
//! A thread is a CPU from [`run_on`] on. It takes interrupts where the kernel waits for another CPU, and at
//! [`take_interrupts`], unless they are masked: not at each access, which would be too many orders.

use std::cell::Cell;

use crate::Omitted;
use crate::smp::{CpuId, CpuSet, MAX_CPUS};
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, omits};
use crate::sync::{NoRanks, interrupts};

#[path = "../../src/smp/call.rs"]
mod call;
#[path = "../../src/smp/park.rs"]
mod park;
pub use call::{CallFunction, call};
use park::Parking;
pub use park::{OthersParked, may_park_others, park_others};

/// Interrupts that CPUs send each other.
#[derive(Clone, Copy)]
enum Ipi {
    Call = 0,
    Park = 2,
}

/// A CPU.
pub struct Cpu {
    /// Which it is.
    pub id: CpuId,
    walk: Walks,
    trap: Handlers,
    call: call::PerCpu,
    /// The interrupts that were sent to it, a bit each.
    pending: AtomicU32,
}

/// A CPU's walk word.
#[derive(Default)]
pub struct Walks(AtomicU64);

impl Walks {
    /// Whether the CPU is inside a walk.
    pub fn is_open(&self) -> bool {
        !omits(Omitted::WalkWord) && !self.0.load(Ordering::Relaxed).is_multiple_of(2)
    }

    /// Runs `walk` as one.
    pub fn during(&self, walk: impl FnOnce()) {
        self.0.fetch_or(1, Ordering::Relaxed);
        walk();
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The interrupt handlers that a CPU runs.
#[derive(Default)]
struct Handlers(std::sync::atomic::AtomicBool);

impl Handlers {
    fn is_in_handler(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Cpu {
    fn new(id: usize) -> Self {
        Self {
            id: CpuId(id as u32),
            walk: Walks::default(),
            trap: Handlers::default(),
            call: call::PerCpu {
                outgoing: call::Outgoing {
                    function: AtomicUsize::new(unposted as *const () as usize),
                    argument: AtomicUsize::new(0),
                    pending: AtomicU32::new(0),
                },
                incoming: AtomicU32::new(0),
                served: AtomicU64::new(0),
            },
            pending: AtomicU32::new(0),
        }
    }

    /// Its walks.
    pub fn walk(&self) -> &Walks {
        &self.walk
    }

    fn held_ranks(&self) -> NoRanks {
        NoRanks
    }

    fn trap(&self) -> &Handlers {
        &self.trap
    }

    fn call(&self) -> &call::PerCpu {
        &self.call
    }
}

/// Found in the place of a call that is not seen yet.
fn unposted(_: &Cpu, _: usize) {
    panic!("a call is run before it is there");
}

/// All of them, as the kernel's table of CPUs.
struct CpuTable;

static CPUS: CpuTable = CpuTable;

impl CpuTable {
    fn get(&self, id: CpuId) -> Option<&'static Cpu> {
        TABLE.get(id.0 as usize)
    }
}

loom::lazy_static! {
    static ref TABLE: [Cpu; MAX_CPUS] = std::array::from_fn(Cpu::new);
    static ref PARKING: Parking = Parking {
        turn: AtomicU32::new(0),
        round: AtomicU32::new(0),
        answers: Default::default(),
    };
    static ref ONLINE: AtomicU32 = AtomicU32::new(0);
}

loom::thread_local! {
    static HERE: Cell<u32> = Cell::new(0);
}

/// The running thread is this CPU from now on, without being online.
pub fn run_on(id: u32) -> &'static Cpu {
    HERE.with(|here| here.set(id));
    this_cpu()
}

/// It comes online, as a CPU that is brought up does: from now on others may interrupt it.
pub fn come_online() {
    let this = this_cpu();
    let masked = interrupts::mask();
    ONLINE.fetch_or(1 << this.id.0, Ordering::Release);
    park::join(this);
    interrupts::restore(masked);
}

/// Those that are online.
pub fn online() -> CpuSet {
    CpuSet::from_bits(ONLINE.load(Ordering::Acquire))
}

/// A CPU.
pub fn cpu(id: CpuId) -> Option<&'static Cpu> {
    CPUS.get(id)
}

/// The CPU of the running thread.
fn this_cpu() -> &'static Cpu {
    cpu(CpuId(HERE.with(Cell::get))).expect("a CPU of the table")
}

/// Interrupts `target` for a call. It orders nothing: what the call is, is found by its own words.
fn notify(target: &Cpu) {
    target.pending.fetch_or(1 << Ipi::Call as u32, Ordering::Relaxed);
}

/// Interrupts `target`. The handler sees all that this CPU has stored before.
pub(crate) fn send(target: &Cpu, number: u32) {
    loom::sync::atomic::fence(Ordering::Release);
    target.pending.fetch_or(1 << number, Ordering::Relaxed);
}

/// Takes the interrupts that were sent to this CPU, unless they are masked. Whether there were any.
pub fn take_interrupts() -> bool {
    let this = this_cpu();
    if !interrupts::state().irqs_enabled() || this.pending.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let masked = interrupts::mask();
    this.trap.0.store(true, std::sync::atomic::Ordering::Relaxed);
    let pending = this.pending.swap(0, Ordering::Relaxed);
    if pending & 1 << Ipi::Call as u32 != 0 {
        call::serve(this, &CPUS);
    }
    if pending & 1 << Ipi::Park as u32 != 0 {
        loom::sync::atomic::fence(Ordering::Acquire);
        park::answer(this);
    }
    this.trap.0.store(false, std::sync::atomic::Ordering::Relaxed);
    interrupts::restore(masked);
    true
}
