//! The event queue: the SMMU writes records, this driver takes them (IHI 0070, 3.5.2 and 7.2).
//!
//! The order, and what breaks without it:
//! - PROD is read, *then* the records: a record read ahead of its index may be the one of the round before;
//! - the records are read, *then* CONS is written: the SMMU may write into a slot as soon as it is given back.
//!
//! A queue that overflows loses events, and a flag in PROD then differs from its acknowledgement in CONS; some SMMUs
//! report it by the global error EVENTQ_ABT_ERR alone, which stands too for a queue that could not be written. Lost
//! events are not known, so a driver that waits for a transaction must treat each as failed.

use core::sync::atomic::Ordering;

use crate::event::{RECORD_BYTES, Record};
use crate::registers::{EVENTQ_PROD, QUEUE_BASE, offset};
use crate::{DmaMemory, Event, Platform, Smmu, Word};

/// The result of a look at the event queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Drained {
    /// Events.
    pub events: usize,
    /// Some were lost since the last look, because the queue was full or could not be written.
    pub lost: bool,
}

/// The event queue of one SMMU.
#[derive(Debug)]
pub struct Events {
    slots: DmaMemory,
    /// The next record to take: its slot, above it one bit that changes with each round; and the acknowledgement of
    /// overflows. It is what CONS is.
    consumed: u32,
    /// For [`Smmu::lost_events`].
    lost: u64,
}

const OVERFLOW: u32 = EVENTQ_PROD::OVFLG.mask << EVENTQ_PROD::OVFLG.shift;
const RECORD_WORDS: usize = RECORD_BYTES / 8;

impl Events {
    /// The queue in `slots`, zeroed memory of a power of two of events, aligned to its size.
    pub fn new(slots: DmaMemory) -> Self {
        debug_assert!(slots.bytes().is_power_of_two() && slots.phys().is_aligned(slots.bytes() as u64));
        Self { slots, consumed: 0, lost: 0 }
    }

    /// How many events it holds.
    pub const fn capacity(&self) -> usize {
        self.slots.bytes() / RECORD_BYTES
    }

    /// The value for EVENTQ_BASE. EVENTQ_PROD and EVENTQ_CONS start as 0.
    pub fn base(&self) -> u64 {
        let bits = QUEUE_BASE::LOG2SIZE.val(self.capacity().trailing_zeros().into());
        (QUEUE_BASE::ALLOCATE::SET + QUEUE_BASE::ADDRESS.val(self.slots.phys().0 >> 5) + bits).value
    }

    /// Hands every event that is there to `each`, oldest first, and makes room. Those that come during the call too, up
    /// to as many as the queue holds: a device that never stops does not keep a CPU for ever.
    pub fn drain<P: Platform>(&mut self, smmu: &Smmu<P>, mut each: impl FnMut(&Event)) -> Drained {
        let platform = &smmu.platform;
        let mut drained = Drained::default();
        while drained.events < self.capacity() {
            let produced = platform.read32(offset::EVENTQ_PROD);
            let overflowed = (produced ^ self.consumed) & OVERFLOW != 0;
            let waiting = (produced.wrapping_sub(self.consumed) & self.index_mask()) as usize;
            if waiting == 0 && !overflowed {
                break;
            }
            platform.dmb_oshld();
            // No queue of this size has more: such an index is no index, and what the slots hold no events.
            let credible = waiting <= self.capacity();
            for passed in 0..if credible { waiting } else { 0 } {
                each(&Event::decode(self.record::<P>(self.consumed.wrapping_add(passed as u32))));
                drained.events += 1;
            }
            drained.lost |= overflowed || !credible;
            self.consumed = produced & (self.index_mask() | OVERFLOW);
            // A load barrier is enough: it keeps later stores after earlier loads, and nothing else was done to the
            // slots.
            platform.dmb_oshld();
            platform.write32(offset::EVENTQ_CONS, self.consumed);
        }
        // Read last, so that it covers all that was lost before the queue was found empty.
        drained.lost |= smmu.lost_events(&mut self.lost);
        drained
    }

    fn record<P: Platform>(&self, index: u32) -> Record {
        let (records, _) = self.slots.words::<P>().as_chunks::<RECORD_WORDS>();
        // The capacity is a power of two.
        let record = &records[index as usize & (self.capacity() - 1)];
        record.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// Slot and round.
    const fn index_mask(&self) -> u32 {
        2 * self.capacity() as u32 - 1
    }
}
