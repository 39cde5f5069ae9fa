//! The walk word with an interrupt on the walker's own CPU, at each point where one can come.
//!
//! The handler walks too. An interrupt runs to its end on the CPU that it stops, so it is a call in the middle of the
//! announcement; the other CPU runs in any order with both.

use std::cell::Cell;

use granule_loom::{Cpu, CpuWord, Machine};
use granule_pgtable::{Announced, WalkWord};

use crate::{assert_caught, every_order, without};

/// Where in a walk the interrupt comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// The word has been read, and not written.
    Read,
    /// The word is odd, and no barrier makes others see it.
    Odd,
    /// The walk is over, and the word still odd.
    End,
}

/// What the handler's own announcement does.
#[derive(Clone, Copy)]
enum Handler {
    /// What the kernel's does.
    Whole,
    /// It finds the word odd and thinks that all is done.
    WithoutBarrier,
    /// It takes the word for its own, odd or not.
    EndsTheOuterWalk,
}

/// The word of a CPU that is interrupted once.
struct Interrupted<'m> {
    cpu: Cpu<'m>,
    at: Cell<Option<At>>,
    handler: Handler,
}

impl Interrupted<'_> {
    fn point(&self, here: At) {
        if self.at.get() == Some(here) {
            self.at.set(None);
            let nested = Nested { word: self.cpu.word(), handler: self.handler };
            let _walk = Announced::begin(&nested);
            self.cpu.look_quietly(1);
        }
    }
}

impl WalkWord for Interrupted<'_> {
    fn load(&self) -> u64 {
        let value = self.cpu.word().load();
        self.point(At::Read);
        value
    }

    fn load_acquire(&self) -> u64 {
        self.cpu.word().load_acquire()
    }

    fn store(&self, value: u64) {
        self.cpu.word().store(value);
        self.point(At::Odd);
    }

    fn store_release(&self, value: u64) {
        self.point(At::End);
        self.cpu.word().store_release(value);
    }

    fn full_barrier(&self) {
        self.cpu.word().full_barrier();
    }
}

/// The same word as the handler uses it.
struct Nested<'m> {
    word: &'m CpuWord,
    handler: Handler,
}

impl WalkWord for Nested<'_> {
    fn load(&self) -> u64 {
        let value = self.word.load();
        if matches!(self.handler, Handler::EndsTheOuterWalk) { value & !1 } else { value }
    }

    fn load_acquire(&self) -> u64 {
        self.word.load_acquire()
    }

    fn store(&self, value: u64) {
        self.word.store(value);
    }

    fn store_release(&self, value: u64) {
        self.word.store_release(value);
    }

    fn full_barrier(&self) {
        if !matches!(self.handler, Handler::WithoutBarrier) {
            self.word.full_barrier();
        }
    }
}

/// Two walks through an empty table, the second by an interrupt of the first, while another CPU takes the table away.
fn interrupted_walk(walk: fn(Cpu<'_>)) {
    let empty_table = |cpu: Cpu<'_>| {
        cpu.map(0);
        cpu.unmap(0);
    };
    let machine: fn() -> Machine = without!(Nothing, 1);
    every_order(machine, empty_table, [|cpu| _ = cpu.reclaim(), walk], |_| {});
}

fn walk(cpu: Cpu<'_>, at: At, handler: Handler) {
    let word = Interrupted { cpu, at: Cell::new(Some(at)), handler };
    let _walk = Announced::begin(&word);
    cpu.look_quietly(2);
}

#[test]
fn an_interrupt_that_finds_the_word_read() {
    interrupted_walk(|cpu| walk(cpu, At::Read, Handler::Whole));
}

#[test]
fn an_interrupt_that_finds_the_word_odd() {
    interrupted_walk(|cpu| walk(cpu, At::Odd, Handler::Whole));
}

#[test]
fn an_interrupt_at_the_end_of_the_walk() {
    interrupted_walk(|cpu| walk(cpu, At::End, Handler::Whole));
}

#[test]
fn a_nested_walk_without_a_barrier_of_its_own_is_caught() {
    assert_caught("in a table that is none", || {
        interrupted_walk(|cpu| walk(cpu, At::Odd, Handler::WithoutBarrier));
    });
}

#[test]
fn a_nested_walk_that_ends_the_one_around_it_is_caught() {
    assert_caught("in a table that is none", || {
        interrupted_walk(|cpu| walk(cpu, At::Odd, Handler::EndsTheOuterWalk));
    });
}
