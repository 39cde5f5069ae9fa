//! The SMMU's command queue on the metal: several CPUs at once, and an illegal command.

#![allow(unsafe_code, reason = "a command that no SMMU knows")]

use core::sync::atomic::{AtomicU32, Ordering};

use granule::iommu::iommu;
use granule::smp::{self, Cpu, this_cpu};
use granule_arch::{interrupts, wait};
use granule_smmuv3::{Command, CommandError, Scope};

use super::{PAGE, START};
use crate::harness::{Test, target_test};
use crate::work;

/// Calls of each CPU: some times round the queue. Not more, because CPUs publish their commands to the SMMU in turn:
/// where the host has fewer CPUs than this machine, the next CPU may be one that does not run.
const ROUNDS: u16 = 150;
/// Pages that are one command each: the second of three calls takes two.
const RANGES: [(u64, u64); 3] = [(1, 1), (33, 2), (512, 1)];

/// CPUs that have begun.
static BEGUN: AtomicU32 = AtomicU32::new(0);

fn invalidate_all_the_time(_: &Cpu, cpus: usize) {
    let Some(iommu) = iommu() else { return };
    // Together, as far as that goes.
    BEGUN.fetch_add(1, Ordering::AcqRel);
    while (BEGUN.load(Ordering::Acquire) as usize) < cpus {
        wait::relax();
    }
    for round in 0..ROUNDS {
        let (pages, _) = RANGES[usize::from(round) % RANGES.len()];
        let masked = interrupts::mask();
        // A free number: what counts is that the call comes back, and what it took.
        iommu.smmu().invalidate(u16::MAX - round, START, START + pages * PAGE, Scope::Tables);
        interrupts::restore(masked);
    }
}

target_test!(several_cpus_insert_commands_at_once, needs("smmuv3 smp"), limit(60));
fn several_cpus_insert_commands_at_once(t: &mut Test) {
    let Some(smmu) = iommu().map(|iommu| iommu.smmu()) else { return };
    let (others, cpus) = (smp::online().without(this_cpu().id), smp::online().len());
    let before = smmu.stats();
    BEGUN.store(0, Ordering::Release);
    for id in others.iter() {
        t.equal("work", work::run_on(id, invalidate_all_the_time, cpus), Ok(()));
    }
    invalidate_all_the_time(this_cpu(), cpus);
    work::wait_for(others);
    let after = smmu.stats();
    t.equal("calls", after.calls - before.calls, cpus as u64 * u64::from(ROUNDS));
    let each: u64 = (0..usize::from(ROUNDS)).map(|round| RANGES[round % RANGES.len()].1 + 1).sum();
    t.equal("commands", after.commands - before.commands, cpus as u64 * each);
    t.equal("errors", (after.errors, after.illegal), (before.errors, before.illegal));
}

target_test!(an_illegal_command_is_shown_and_the_queue_goes_on, needs("smmuv3"), logs_errors());
fn an_illegal_command_is_shown_and_the_queue_goes_on(t: &mut Test) {
    let Some(smmu) = iommu().map(|iommu| iommu.smmu()) else { return };
    let before = smmu.stats();
    let masked = interrupts::mask();
    let asid = Command::tlbi_nh_asid(u16::MAX);
    // Not a command, with a command before and after it.
    // SAFETY: no SMMU knows it.
    let unknown = unsafe { Command::from_words([0xff, 0x1234]) };
    let illegal = smmu.issue(&[asid, unknown, asid]);
    let next = smmu.issue(&[asid]);
    interrupts::restore(masked);
    t.equal("its issuer gets an error", illegal, Err(CommandError::Illegal));
    t.equal("the next call", next, Ok(()));
    let after = smmu.stats();
    t.equal("illegal commands", after.illegal - before.illegal, 1);
    t.equal("commands", after.commands - before.commands, 6);
}
