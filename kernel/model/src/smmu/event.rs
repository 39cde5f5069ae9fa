//! The event queue, from the SMMU's side.

use super::hardware::Overflow;
use super::registers::{EVENTQ_ABT_ERR, EVENTQEN};
use super::state::State;
use super::violation::SmmuRule;
use super::{Access, Operation};

/// OVFLG in PROD, OVACKFLG in CONS.
const OVERFLOW: u32 = 1 << 31;

impl State {
    /// Index and round.
    const fn event_mask(&self) -> u32 {
        (2 << (self.registers.event_base & 0x1f)) - 1
    }

    const fn events_waiting(&self) -> u32 {
        self.registers.event_prod.wrapping_sub(self.registers.event_cons) & self.event_mask()
    }

    /// An event of `kind` about a transaction.
    pub(crate) fn record_event(&mut self, kind: u8, stream: u32, address: u64, access: Access) {
        let describes = (0x10..0x14).contains(&kind) || kind == 0x0b;
        let flags = u64::from(access.privileged) << 33
            | u64::from(access.execute) << 34
            | u64::from(!access.write) << 35
            | 0b10 << 40;
        let (second, third) = if describes { (flags, address) } else { (0, 0) };
        let record = [u64::from(kind) | u64::from(stream) << 32, second, third, 0];
        if self.delays_events { self.delayed.push(record) } else { self.record(record) }
    }

    /// Puts `record` into the queue.
    pub(crate) fn record(&mut self, record: [u64; 4]) {
        if !self.registers.is_on(EVENTQEN) {
            return;
        }
        let slots = (self.event_mask() >> 1) + 1;
        if self.events_waiting() >= slots {
            match self.hardware.overflow {
                Overflow::GlobalError => self.registers.raise(EVENTQ_ABT_ERR),
                Overflow::Flag => {
                    if (self.registers.event_prod ^ self.registers.event_cons) & OVERFLOW == 0 {
                        self.registers.event_prod ^= OVERFLOW;
                    }
                }
            }
            return;
        }
        let prod = self.registers.event_prod;
        let base = self.registers.event_base & ((1 << 52) - 1) & !0x1f;
        let first = self.arena.index(base).expect("the queue was checked to be memory");
        self.late_records.push((first + (prod & (slots - 1)) as usize * 4, record));
        self.registers.event_prod = prod & OVERFLOW | prod.wrapping_add(1) & self.event_mask();
        self.note(Operation::Event(record));
    }

    /// A CPU reads PROD: what it reads of the records before a barrier is not ordered.
    pub(crate) const fn looked_at_event_prod(&mut self) {
        self.load_barriers = 0;
    }

    /// CONS was written.
    pub(crate) fn events_taken(&mut self, cons: u32) {
        let (before, mask) = (self.registers.event_cons, self.event_mask());
        let taken = cons.wrapping_sub(before) & mask;
        if cons & !(mask | OVERFLOW) != 0 || taken > self.events_waiting() {
            let text = format!("EVENTQ_CONS goes from {before:#x} to {cons:#x}, and {} wait", self.events_waiting());
            self.report(SmmuRule::Index, text);
        }
        if taken != 0 && self.load_barriers < 2 {
            let text = match self.load_barriers {
                0 => "events are given back, and no barrier keeps their records from being read before PROD",
                _ => "events are given back before their records are certain to have been read: a barrier is missing",
            };
            self.report(SmmuRule::UnorderedEvent, text.into());
        }
        self.registers.event_cons = cons;
    }
}
