//! Numbers that run out: no two spaces under one number, no TLB that knows a number by another space.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use granule_arch::tlbi::Instruction;
use granule_pgtable::host::Operation;
use proptest::prelude::{any, proptest};

use super::{AsidSlot, Asids, FEWEST, parse};
use crate::mm::kernel::Machine;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::kernel::record::record;
use crate::smp::{Cpu, CpuId, MAX_CPUS};

fn machine() -> Machine {
    Metal(LinearView { offset: 0 })
}

/// As few numbers as there may be.
fn few() -> Asids {
    let asids = Asids::new();
    asids.state.lock().numbers = FEWEST;
    asids
}

/// Some CPUs, what each runs, and which spaces its TLB may know by which number.
struct Rig {
    asids: Asids,
    cpus: Vec<Cpu>,
    slots: Vec<AsidSlot>,
    running: Vec<Option<(usize, u16)>>,
    known: Vec<BTreeMap<u16, usize>>,
}

impl Rig {
    fn new(cpus: usize, spaces: usize) -> Self {
        Self {
            asids: few(),
            cpus: (0..cpus as u32).map(|cpu| Cpu::new(CpuId(cpu))).collect(),
            slots: (0..spaces).map(|_| AsidSlot::new()).collect(),
            running: std::vec![None; cpus],
            known: std::vec![BTreeMap::new(); cpus],
        }
    }

    fn activate(&mut self, cpu: usize, space: usize) {
        let mut number = 0;
        let slot = &self.slots[space];
        let stream = record(|| number = self.asids.activate(&self.cpus[cpu], &machine(), slot));
        if stream.contains(&Operation::Tlbi(Instruction::Vmalle1)) {
            assert_eq!(stream.last(), Some(&Operation::DsbNsh), "the flush is not completed");
            self.known[cpu].clear();
        }
        assert!(number != 0 && usize::from(number) < FEWEST);
        assert_eq!(slot.number(), number, "an invalidation would name another number");
        // Until another table is installed, the CPU keeps filling its TLB for what it ran before.
        if let Some((before, old)) = self.running[cpu] {
            self.know(cpu, before, old);
        }
        self.running[cpu] = Some((space, number));
        self.know(cpu, space, number);
        for &(other, at) in self.running.iter().flatten() {
            assert_eq!(other == space, at == number, "spaces {space} and {other} run under {number} and {at}");
        }
    }

    fn know(&mut self, cpu: usize, space: usize, number: u16) {
        let before = self.known[cpu].insert(number, space);
        assert!(before.is_none_or(|before| before == space), "CPU {cpu} knows {number} by another space");
    }
}

proptest! {
    #[test]
    fn no_two_spaces_share_a_number(turns: Vec<(u8, u8)>, cpus in 1_usize..=MAX_CPUS, spaces in 1_usize..64) {
        let mut rig = Rig::new(cpus, spaces);
        for (cpu, space) in turns {
            rig.activate(usize::from(cpu) % cpus, usize::from(space) % spaces);
        }
    }

    /// Every CPU keeps what it runs under through any number of generations.
    #[test]
    fn who_runs_on_keeps_its_number(start in any::<u8>()) {
        let mut rig = Rig::new(MAX_CPUS, 256);
        for cpu in 0..MAX_CPUS {
            rig.activate(cpu, cpu);
        }
        let numbers = rig.running.clone();
        for turn in 0..200 {
            rig.activate(0, MAX_CPUS + usize::from(start).wrapping_add(turn) % (256 - MAX_CPUS));
        }
        assert!(rig.asids.generation() > 50, "only {} generations", rig.asids.generation());
        for (cpu, &before) in numbers.iter().enumerate().skip(1) {
            assert_eq!(rig.running[cpu], before);
            // A second thread of its space, elsewhere, has the same number.
            rig.activate(0, cpu);
            assert_eq!(rig.running[0], before);
        }
    }
}

#[test]
fn a_switch_inside_a_generation_takes_no_lock_and_no_barrier() {
    let mut rig = Rig::new(1, 2);
    (0..4).for_each(|turn| rig.activate(0, turn % 2));
    let _held = rig.asids.state.lock();
    let stream = record(|| _ = rig.asids.activate(&rig.cpus[0], &machine(), &rig.slots[0]));
    assert_eq!(stream, []);
}

#[test]
fn each_cpu_forgets_everything_once_in_a_generation() {
    let asids = few();
    let cpus = [0, 1].map(|cpu| Cpu::new(CpuId(cpu)));
    let slots: Vec<_> = (0..FEWEST).map(|_| AsidSlot::new()).collect();
    let flushes = |cpu: usize, slot: usize| {
        let stream = record(|| _ = asids.activate(&cpus[cpu], &machine(), &slots[slot]));
        stream.iter().filter(|&&operation| operation == Operation::Tlbi(Instruction::Vmalle1)).count()
    };
    // Numbers 1 to FEWEST - 1 are there: the last space begins the next generation.
    assert!((0..FEWEST - 1).all(|slot| flushes(0, slot) == 0));
    assert_eq!(flushes(1, 0), 0);
    assert_eq!(asids.generation(), 1);
    assert_eq!(flushes(0, FEWEST - 1), 1);
    assert_eq!(asids.generation(), 2);
    assert_eq!((flushes(0, FEWEST - 1), flushes(0, 0)), (0, 0));
    assert_eq!((flushes(1, 0), flushes(1, FEWEST - 1)), (1, 0));
}

/// The fast path against generations that begin on other CPUs: threads, and a claim on each number that is run under.
#[test]
fn spaces_on_several_cpus_at_once_never_share_a_number() {
    const THREADS: usize = 4;
    const SPACES: usize = 3 * FEWEST;
    let asids = few();
    let slots: Vec<_> = (0..SPACES).map(|_| AsidSlot::new()).collect();
    // The space that runs under each number, and on how many CPUs.
    let claims = Mutex::new(BTreeMap::<u16, (usize, usize)>::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (asids, slots, claims) = (&asids, &slots, &claims);
            scope.spawn(move || {
                let cpu = Cpu::new(CpuId(thread as u32));
                let mut random = thread as u64 + 1;
                for _ in 0..20_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let space = (random >> 33) as usize % SPACES;
                    // The claim goes before the next one is made, as the old space is left before the new one runs.
                    let number = asids.activate(&cpu, &machine(), &slots[space]);
                    let mut held = claims.lock().unwrap();
                    let claim = held.entry(number).or_insert((space, 0));
                    assert_eq!(claim.0, space, "number {number} has two spaces");
                    claim.1 += 1;
                    drop(held);
                    std::thread::yield_now();
                    let mut held = claims.lock().unwrap();
                    let claim = held.get_mut(&number).unwrap();
                    claim.1 -= 1;
                    if claim.1 == 0 {
                        held.remove(&number);
                    }
                }
            });
        }
    });
    assert!(asids.generation() > 100, "only {} generations", asids.generation());
}

#[test]
fn fewer_numbers_than_the_cpus_may_keep_are_refused() {
    assert_eq!(parse("18"), Ok(FEWEST));
    assert_eq!(parse("65536"), Ok(1 << 16));
    for bad in ["17", "65537", "", "many"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
