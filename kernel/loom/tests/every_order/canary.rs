//! The machine's bookkeeping hides nothing: weak outcomes that the architecture allows are seen here too.
//!
//! Were the free list or the walk of the test itself to order the CPUs, the checks of the other files would pass
//! whatever was left out. So the two classic shapes are run through the same machine, with its bookkeeping between the
//! accesses, and each outcome must appear; with the barriers, those that they forbid must not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_loom::{Cpu, Machine, Without};
use granule_pgtable::{Mmu, TableSource};

const DATA: usize = 1;
const FLAG: usize = 2;

/// What two CPUs have read, over all orders.
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

/// The machine's bookkeeping, all of it.
fn keep_books(mut cpu: Cpu<'_>) {
    let table: PhysAddr = cpu.take().expect("each CPU has a frame");
    cpu.give_back(table);
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
    let [weak, strong] =
        [(|| Machine::new(2, Without::DmbIshst)) as fn() -> Machine, || Machine::new(2, Without::Nothing)];
    assert_eq!(outcomes(weak, MESSAGE), BTreeSet::from([[0, 0], [0, 2], [0, 20], [0, 22]]));
    assert_eq!(outcomes(strong, MESSAGE), BTreeSet::from([[0, 0], [0, 2], [0, 22]]));
}

#[test]
fn canary_two_cpus_may_both_miss_the_others_store_unless_barriers_forbid_it() {
    let [weak, strong] =
        [(|| Machine::new(2, Without::DsbIsh)) as fn() -> Machine, || Machine::new(2, Without::Nothing)];
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
