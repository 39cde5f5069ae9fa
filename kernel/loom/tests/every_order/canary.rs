//! The machine's bookkeeping hides nothing: weak outcomes that the architecture allows are seen here too.
//!
//! Were the free list or the walk of the test itself to order the CPUs, the checks of the other files would pass
//! whatever was left out. So the two classic shapes are run through the same machine, with its bookkeeping between the
//! accesses, and each outcome must appear; with the barriers, those that they forbid must not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_loom::{Cpu, Machine, Watched, Without};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Invalidation, Mmu, Stores, TableSource, Tlb};

use crate::{assert_caught, threads};

const DATA: usize = 1;
const FLAG: usize = 2;

/// The pairs of values that two CPUs have read, over all orders.
fn outcomes(machine: fn() -> Machine, cpus: [fn(Cpu<'_>) -> u64; 2]) -> BTreeSet<[u64; 2]> {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let all = Arc::clone(&seen);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let machine = Arc::new(machine());
        let other = Arc::clone(&machine);
        let second = loom::thread::spawn(move || cpus[1](other.cpu(1)));
        let first = cpus[0](machine.cpu(0));
        seen.lock().unwrap().insert([first, second.join().unwrap()]);
    });
    all.lock().unwrap().clone()
}

/// The machine's bookkeeping, all of it: frames, what TLBs hold, invalidations.
fn keep_books(mut cpu: Cpu<'_>) {
    let table: PhysAddr = cpu.take().expect("each CPU has a frame");
    // SAFETY: it was just taken.
    #[allow(unsafe_code, reason = "gives back what it has taken")]
    unsafe {
        cpu.give_back(table);
    }
    cpu.access(&[0]);
    KernelTlb.issue(&cpu, &Invalidation::page(VirtAddr(0)));
}

/// A machine that lacks a step, in which a page is mapped.
fn mapped(without: Without) -> Machine {
    let machine = Machine::new(3, without);
    machine.cpu(0).map(0);
    machine
}

fn write(cpu: Cpu<'_>, entry: usize) {
    cpu.store(&cpu.table(cpu.tables().root())[entry], Descriptor(2));
}

fn read(cpu: Cpu<'_>, entry: usize) -> u64 {
    cpu.load(&cpu.table(cpu.tables().root())[entry]).0
}

/// Message passing: the data, then the flag; the flag, then the data.
const MESSAGE: [fn(Cpu<'_>) -> u64; 2] = [
    |cpu| {
        write(cpu, DATA);
        keep_books(cpu);
        cpu.dmb_ishst();
        write(cpu, FLAG);
        0
    },
    |cpu| {
        let flag = read(cpu, FLAG);
        keep_books(cpu);
        10 * flag + read(cpu, DATA)
    },
];

/// Store buffering: each writes its own entry, then reads the other's.
const BUFFER: [fn(Cpu<'_>) -> u64; 2] = [
    |cpu| {
        write(cpu, DATA);
        keep_books(cpu);
        cpu.dsb_ish();
        read(cpu, FLAG)
    },
    |cpu| {
        write(cpu, FLAG);
        keep_books(cpu);
        cpu.dsb_ish();
        read(cpu, DATA)
    },
];

#[test]
fn canary_a_flag_may_be_seen_before_its_data_unless_a_barrier_forbids_it() {
    let [weak, strong] = [(|| mapped(Without::DmbIshst)) as fn() -> Machine, || mapped(Without::Nothing)];
    assert_eq!(outcomes(weak, MESSAGE), BTreeSet::from([[0, 0], [0, 2], [0, 20], [0, 22]]));
    assert_eq!(outcomes(strong, MESSAGE), BTreeSet::from([[0, 0], [0, 2], [0, 22]]));
}

#[test]
fn canary_two_cpus_may_both_miss_the_others_store_unless_barriers_forbid_it() {
    let [weak, strong] = [(|| mapped(Without::DsbIsh)) as fn() -> Machine, || mapped(Without::Nothing)];
    assert_eq!(outcomes(weak, BUFFER), BTreeSet::from([[0, 0], [0, 2], [2, 0], [2, 2]]));
    assert_eq!(outcomes(strong, BUFFER), BTreeSet::from([[0, 2], [2, 0], [2, 2]]));
}

/// One CPU reads; the other reads the same entry and then writes it, as a check before a change does. loom by
/// itself does not try the order in which the write comes first: see [`granule_loom::sync::atomic`].
#[test]
fn canary_a_write_behind_a_read_of_the_same_entry_is_tried_in_every_order() {
    let reads = |cpu: Cpu<'_>| read(cpu, DATA);
    let reads_and_writes = |cpu: Cpu<'_>| {
        let before = read(cpu, DATA);
        write(cpu, DATA);
        before
    };
    assert_eq!(
        outcomes(|| Machine::new(0, Without::Nothing), [reads, reads_and_writes]),
        BTreeSet::from([[0, 0], [2, 0]])
    );
}

/// Data that one CPU writes and the other reads, with nothing but the books in between: a race, which loom must see.
#[test]
fn canary_data_is_not_protected_by_the_books() {
    let race = || {
        threads(|| {
            let shared = Arc::new((mapped(Without::Nothing), Watched::default()));
            let other = Arc::clone(&shared);
            let writes = loom::thread::spawn(move || {
                other.1.write(1);
                keep_books(other.0.cpu(1));
            });
            let (machine, data) = &*shared;
            keep_books(machine.cpu(0));
            data.read();
            writes.join().unwrap();
        });
    };
    assert_caught("Causality violation", race);
}
