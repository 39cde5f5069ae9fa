//! Address space identifiers that run out while another CPU switches, the kernel's own source: no number has two spaces,
//! no TLB knows a number by another space, and no invalidation misses a space that changes its number.
//!
//! Plain books record the space that each CPU runs and the entries of its TLB: each use of them is one step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use granule_arch::descriptor::Descriptor;
use granule_loom::mm::asid::{AsidSlot, Asids};
use granule_loom::smp::{Cpu, MAX_CPUS};
use granule_loom::{Machine, Omitted, Without, omit};
use granule_pgtable::{Mmu, Stores};
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{assert_caught, threads};

/// The fewest numbers that do: one that no space has, one for each CPU to keep, and one to give out.
const NUMBERS: usize = MAX_CPUS + 2;
const SPACES: usize = NUMBERS;

/// The books' record of a CPU.
#[derive(Default)]
struct Book {
    /// The space that it runs, and its number.
    running: Option<(usize, u16)>,
    /// Which space its TLB may know each number by.
    known: BTreeMap<u16, usize>,
}

impl Book {
    fn know(&mut self, space: usize, number: u16) {
        let before = self.known.insert(number, space);
        assert!(before.is_none_or(|before| before == space), "{number} is known by another space");
    }
}

struct Rig {
    asids: Asids,
    machine: Machine,
    cpus: [Cpu; MAX_CPUS],
    slots: [AsidSlot; SPACES],
    books: Mutex<[Book; MAX_CPUS]>,
}

impl Rig {
    fn new() -> Self {
        Self {
            asids: Asids::with(NUMBERS),
            machine: Machine::new(0, Without::Nothing),
            cpus: std::array::from_fn(|cpu| Cpu::new(cpu as u32)),
            slots: Default::default(),
            books: Default::default(),
        }
    }

    fn activate(&self, cpu: usize, space: usize) {
        let mmu = self.machine.cpu(cpu);
        let emptied = mmu.emptied();
        // Until the next table is installed it may run the old one, under a number that is not its own any more.
        let old = self.books.lock().unwrap()[cpu].running.take();
        let number = self.asids.activate(&self.cpus[cpu], &mmu, &self.slots[space]);
        let books = &mut *self.books.lock().unwrap();
        if mmu.emptied() != emptied {
            books[cpu].known.clear();
        }
        if let Some((before, old)) = old {
            books[cpu].know(before, old);
        }
        books[cpu].know(space, number);
        books[cpu].running = Some((space, number));
        for (other, at) in books.iter().filter_map(|book| book.running) {
            assert_eq!(other == space, at == number, "spaces {space} and {other} run under {number} and {at}");
        }
    }
}

/// Runs `model` in a thread whose stack has room for all numbers that there may be, several times.
fn large(model: impl Fn() + Clone + Send + Sync + 'static) {
    const BYTES: usize = 1 << 20;
    threads(move || {
        let thread = loom::thread::Builder::new().stack_size(BYTES).spawn(model.clone());
        thread.unwrap().join().unwrap();
    });
}

/// All numbers are given out, and CPU 1 runs space 1. Then CPU 0 runs `first` and CPU 1 `second`.
fn switches(omitted: Omitted, first: &'static [usize], second: &'static [usize]) {
    large(move || {
        let rig = Arc::new(Rig::new());
        for (cpu, space) in [(0, 0), (1, 1), (1, 2), (1, 1)] {
            rig.activate(cpu, space);
        }
        let other = Arc::clone(&rig);
        let switches = loom::thread::spawn(move || {
            omit(omitted);
            second.iter().for_each(|&space| other.activate(1, space));
        });
        omit(omitted);
        first.iter().for_each(|&space| rig.activate(0, space));
        omit(Omitted::Nothing);
        switches.join().unwrap();
    });
}

#[test]
fn a_generation_that_begins_keeps_what_another_cpu_switches_to() {
    switches(Omitted::Nothing, &[3], &[2]);
    switches(Omitted::Nothing, &[3], &[2, 1]);
}

#[test]
fn two_generations_at_once_give_each_space_one_number() {
    switches(Omitted::Nothing, &[3, 0], &[3, 2]);
    switches(Omitted::Nothing, &[2, 3], &[3]);
}

#[test]
fn a_switch_that_does_not_see_the_generation_begin_is_caught() {
    assert_caught("run under", || switches(Omitted::AtomicExchange, &[3], &[2]));
}

const OLD: u64 = 2;
const NEW: u64 = 4;

fn store_entry(machine: &Machine, value: u64) {
    let cpu = machine.cpu(0);
    cpu.store(&cpu.table(cpu.tables().root())[0], Descriptor(value));
}

fn load_entry(machine: &Machine) -> u64 {
    let cpu = machine.cpu(0);
    cpu.load(&cpu.table(cpu.tables().root())[0]).0
}

/// CPU 0 changes an entry of a space and invalidates it, while the space gets its number on CPU 1, which then walks.
fn invalidated_while_numbered(without: Without) {
    large(move || {
        let (rig, kernel) = (Arc::new(Rig::new()), Arc::new(Machine::new(0, without)));
        store_entry(&rig.machine, OLD);
        // The entries in CPU 1's TLB of the page, by number, and the numbers that were invalidated.
        let books = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        // The order between a TLBI and the walks after it: see `granule_loom::Cpu::access`.
        let issued = Arc::new(AtomicU64::new(0));
        let walker = {
            let (rig, kernel, books, issued) =
                (Arc::clone(&rig), Arc::clone(&kernel), Arc::clone(&books), Arc::clone(&issued));
            loom::thread::spawn(move || {
                let number = rig.asids.activate(&rig.cpus[1], &kernel.cpu(1), &rig.slots[0]);
                // The ISB after the store to TTBR0_EL1.
                fence(Ordering::Acquire);
                issued.fetch_add(0, Ordering::Acquire);
                let before = books.lock().unwrap().1.len();
                let value = load_entry(&rig.machine);
                let (held, invalidated) = &mut *books.lock().unwrap();
                if !invalidated[before..].contains(&number) {
                    held.push((number, value));
                }
            })
        };
        store_entry(&rig.machine, NEW);
        rig.machine.cpu(0).dsb_ish();
        let number = rig.slots[0].number();
        issued.fetch_add(1, Ordering::Relaxed);
        {
            let (held, invalidated) = &mut *books.lock().unwrap();
            held.retain(|&(at, _)| at != number);
            invalidated.push(number);
        }
        walker.join().unwrap();
        assert!(books.lock().unwrap().0.iter().all(|&(_, value)| value == NEW), "the TLB holds what was invalidated");
    });
}

#[test]
fn an_invalidation_finds_the_number_or_the_walk_the_new_entry() {
    invalidated_while_numbered(Without::Nothing);
}

#[test]
fn a_number_that_is_walked_under_before_it_is_seen_is_caught() {
    assert_caught("holds what was invalidated", || invalidated_while_numbered(Without::DsbIsh));
}
