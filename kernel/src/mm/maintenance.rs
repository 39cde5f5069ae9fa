//! How many barriers and TLB invalidations the page tables have cost, by kind and CPU.
//!
//! They are counted where they are issued, in [`super::kernel::mmu`], and only while counting is on: the site is a
//! patched branch, so that what a call costs is measured without what counting costs. `count` among the boot arguments
//! switches it on from the boot on, `branches::set_counting` at any time.

use core::fmt;
use core::ops::Sub;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule_arch::patched_branch;
use granule_arch::tlbi::Instruction;
use linkme::distributed_slice;

use crate::bootargs::{self, PARAMETERS, Parameter};
use crate::platform::features::branch;
use crate::smp::{Cpu, this_cpu};

/// The kinds of maintenance that are counted separately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum MaintenanceOp {
    /// A DSB, whatever it waits for.
    Dsb,
    /// An ISB.
    Isb,
    /// A TLBI of one page, on all CPUs.
    TlbiPage,
    /// A TLBI of a range, on all CPUs.
    TlbiRange,
    /// A TLBI of everything, or of a whole ASID, on all CPUs.
    TlbiAll,
    /// A TLBI on this CPU only.
    TlbiLocal,
}

const KINDS: usize = 6;
const _: () = assert!(MaintenanceOp::TlbiLocal as usize + 1 == KINDS);

impl MaintenanceOp {
    /// The kind of `instruction`.
    #[inline(always)]
    pub const fn of(instruction: Instruction) -> Self {
        match instruction {
            Instruction::Vmalle1is | Instruction::Aside1is(_) => Self::TlbiAll,
            Instruction::Vaae1is(_) | Instruction::Vaale1is(_) | Instruction::Vae1is(_) | Instruction::Vale1is(_) => {
                Self::TlbiPage
            }
            Instruction::Rvaae1is(_)
            | Instruction::Rvaale1is(_)
            | Instruction::Rvae1is(_)
            | Instruction::Rvale1is(_) => Self::TlbiRange,
            Instruction::Vmalle1 | Instruction::Vaae1(_) | Instruction::Vaale1(_) | Instruction::Vale1(_) => {
                Self::TlbiLocal
            }
        }
    }
}

/// One CPU's counters.
#[derive(Debug)]
pub struct Counters([AtomicU64; KINDS]);

impl Counters {
    /// Nothing was issued yet.
    #[expect(clippy::new_without_default, reason = "a static's initialiser, which Default cannot be")]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }
}

/// Counts one, if counting is on.
#[inline(always)]
pub fn count(kind: MaintenanceOp) {
    if patched_branch!(branch::COUNT) {
        // Atomic for an interrupt in the middle, whose handler may change permissions too.
        this_cpu().maintenance().0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts of a CPU's maintenance while counting was on. The difference of two is the maintenance between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts([u64; KINDS]);

/// The counts of `cpu`.
pub fn counts(cpu: &Cpu) -> Counts {
    Counts(cpu.maintenance().0.each_ref().map(|counter| counter.load(Ordering::Relaxed)))
}

impl Counts {
    /// How many of one kind.
    pub const fn of(&self, kind: MaintenanceOp) -> u64 {
        self.0[kind as usize]
    }

    /// TLBIs of any kind.
    pub const fn tlbi(&self) -> u64 {
        self.of(MaintenanceOp::TlbiPage)
            + self.of(MaintenanceOp::TlbiRange)
            + self.of(MaintenanceOp::TlbiAll)
            + self.of(MaintenanceOp::TlbiLocal)
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self(core::array::from_fn(|kind| self.0[kind] - before.0[kind]))
    }
}

/// The columns of [`Counts`] as it is printed.
pub const HEADING: &str = "         dsb          isb    tlbi page   tlbi range     tlbi all   tlbi local";

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [dsb, isb, page, range, all, local] = self.0;
        write!(f, "{dsb:>12} {isb:>12} {page:>12} {range:>12} {all:>12} {local:>12}")
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static COUNT: Parameter = Parameter {
    name: "count",
    help: "count barriers and TLB invalidations by kind, for `stats`",
    check: bootargs::flag,
};

static COUNTING: AtomicBool = AtomicBool::new(false);

/// Reads `count`. It is in force once the branch sites are patched by [`takes`].
pub fn init() {
    COUNTING.store(bootargs::is_set("count"), Ordering::Relaxed);
}

/// Whether counting is on.
pub fn is_counting() -> bool {
    COUNTING.load(Ordering::Relaxed)
}

/// Whether the branch sites with this identifier are to be taken for counting.
pub fn takes(identifier: u16) -> bool {
    identifier == branch::COUNT && is_counting()
}

/// Switches counting on or off, for `branches::patch` to put in force. Not from two CPUs at once.
pub(crate) fn note_counting(on: bool) {
    COUNTING.store(on, Ordering::Relaxed);
}
