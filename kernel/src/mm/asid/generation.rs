//! Address space identifiers: which number a space's translations carry in the TLBs, and when numbers are used again.
//!
//! Arm ARM D8.16.1. There are 2^8 or 2^16 numbers and any number of spaces, so a number is good for one *generation*.
//! When none is left the next generation begins: every CPU keeps the number that it runs under, all others are free
//! again, and each CPU empties its TLB before it runs under a number of the new generation. No CPU is interrupted for
//! that, and a switch between two spaces of the current generation takes no lock.
//!
//! # Why an invalidation never misses a space that changes its number
//! A change of a table stores the entry, issues a DSB, and only then reads the number to name in the TLBI. The
//! assignment of a new number to a space stores that, issues a DSB, and only then can its CPU walk under it. So either
//! the first sees the new number, or the walk sees the new entry.
//!
//! # With CNP
//! Where CPUs share TLB entries, a CPU that is still in its old space must not fill them under a number that a new
//! generation gives to another: [`Asids::activate`] comes after the switch to the empty table, before that to the
//! space's own.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use granule_arch::tlbi::Instruction;
use granule_pgtable::Mmu;

use crate::smp::{Cpu, CpuSet, MAX_CPUS};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{IrqLock, rank};

/// log2 of the most numbers that an architecture has.
pub(super) const MAX_BITS: u32 = 16;
/// One generation: what stands above the number in a slot.
pub(super) const GENERATION: u64 = 1 << MAX_BITS;

/// A space's number with its generation; all zero before it first runs.
#[derive(Debug, Default)]
pub struct AsidSlot(pub(super) AtomicU64);

impl AsidSlot {
    /// The number that TLBs may know the space by; 0, which no space has, before it first runs.
    ///
    /// To be read after a DSB that completes the change of a table: see the head of this file.
    #[inline(always)]
    pub fn number(&self) -> u16 {
        self.0.load(Ordering::Relaxed) as u16
    }
}

/// The number that a CPU runs under, in a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Active(pub(super) AtomicU64);

/// The numbers of all spaces, and which CPU runs under which.
pub struct Asids {
    pub(super) generation: AtomicU64,
    /// The slot that each CPU activated last; 0 since the generation began.
    pub(super) active: [Active; MAX_CPUS],
    pub(super) state: IrqLock<AsidState, { rank::ASID }>,
}

pub(super) struct AsidState {
    /// The numbers of this generation that are given out or kept, a bit each.
    used: [u64; 1 << (MAX_BITS - 6)],
    /// The slot that each CPU ran under when the generation began.
    kept: [u64; MAX_CPUS],
    /// The CPUs whose TLBs may hold translations of generations before.
    stale: CpuSet,
    /// Where to look for the next free number.
    next: usize,
    /// How many numbers there are.
    pub(super) numbers: usize,
}

impl Asids {
    /// The generation, from 1: how often numbers ran out, and one.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed) / GENERATION
    }

    /// Makes sure that the space of `slot` may run on `cpu`, which is this one, and returns the number to run it under.
    /// To be installed with its table by one store to TTBR0_EL1 and an ISB.
    #[inline]
    pub fn activate<M: Mmu>(&self, cpu: &Cpu, mmu: &M, slot: &AsidSlot) -> u16 {
        let wanted = slot.0.load(Ordering::Relaxed);
        let Active(active) = cpu.id.of(&self.active);
        let before = active.load(Ordering::Relaxed);
        // In one step, so that a generation that begins now either finds the new number here, and keeps it, or has
        // taken the old one away, and this fails. Relaxed, because both are changes of one word.
        if before != 0
            && self.is_current(wanted)
            && active.compare_exchange(before, wanted, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            return wanted as u16;
        }
        self.activate_slowly(cpu, mmu, slot)
    }

    fn is_current(&self, value: u64) -> bool {
        (value ^ self.generation.load(Ordering::Relaxed)) < GENERATION
    }

    #[cold]
    fn activate_slowly<M: Mmu>(&self, cpu: &Cpu, mmu: &M, slot: &AsidSlot) -> u16 {
        let mut state = self.state.lock();
        let mut value = slot.0.load(Ordering::Relaxed);
        if !self.is_current(value) {
            value = self.number_for(&mut state, value);
            slot.0.store(value, Ordering::Relaxed);
        }
        // The changes of a CPU that read the old number from the slot are visible to what follows here.
        mmu.dsb_ish();
        if state.stale.contains(cpu.id) {
            state.stale = state.stale.without(cpu.id);
            mmu.tlbi(Instruction::Vmalle1);
            // The ISB comes with the table.
            mmu.dsb_nsh();
        }
        cpu.id.of(&self.active).0.store(value, Ordering::Relaxed);
        value as u16
    }

    /// A number of this generation for a space that had `old`, in whichever generation: the same one, if it can be.
    fn number_for(&self, state: &mut AsidState, old: u64) -> u64 {
        let generation = self.generation.load(Ordering::Relaxed);
        let number = old as u16;
        if number != 0 {
            let renewed = generation | u64::from(number);
            // On every CPU that kept it, or the next generation would give it away from under those that run there.
            let mut kept = false;
            for value in state.kept.iter_mut().filter(|value| **value == old) {
                *value = renewed;
                kept = true;
            }
            if kept || state.take(number.into()) {
                return renewed;
            }
        }
        if let Some(number) = state.take_next() {
            return generation | number as u64;
        }
        let generation = self.generation.fetch_add(GENERATION, Ordering::Relaxed) + GENERATION;
        self.begin(state);
        generation | state.take_next().expect("there are more numbers than CPUs to keep one each") as u64
    }

    /// Begins a generation: only what a CPU runs under is not free.
    fn begin(&self, state: &mut AsidState) {
        state.used.fill(0);
        state.take(0);
        for (cpu, Active(active)) in self.active.iter().enumerate() {
            // A CPU that has activated nothing since the last time still runs under what it kept then.
            let value = match active.swap(0, Ordering::Relaxed) {
                0 => state.kept[cpu],
                value => value,
            };
            state.kept[cpu] = value;
            state.take(value as u16 as usize);
        }
        state.stale = CpuSet::from_bits(u32::MAX);
        state.next = 1;
    }
}

impl AsidState {
    /// No numbers, before [`Self::begin_with`].
    pub(super) const NONE: Self =
        Self { used: [0; 1 << (MAX_BITS - 6)], kept: [0; MAX_CPUS], stale: CpuSet::EMPTY, next: 0, numbers: 0 };

    /// All of `numbers` are free but the one that no space has.
    pub(super) fn begin_with(&mut self, numbers: usize) {
        self.take(0);
        (self.next, self.numbers) = (1, numbers);
    }

    /// Takes `number`, if it is free.
    fn take(&mut self, number: usize) -> bool {
        let (word, bit) = (&mut self.used[number / 64], 1 << (number % 64));
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    /// Takes the next number that is free, from where the last search ended.
    fn take_next(&mut self) -> Option<usize> {
        let number = (self.next..self.numbers).find(|&number| self.take(number))?;
        self.next = number + 1;
        Some(number)
    }
}
