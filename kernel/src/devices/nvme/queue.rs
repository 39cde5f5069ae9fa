//! A pair of queues (NVM Express Base Specification 2.0, 3.3): commands of 64 bytes to the controller, completions of
//! 16 bytes back.
//!
//! The controller has one command at a time, so a queue is as short as the specification allows. Each command has a new
//! identifier: a completion of another one, of another queue or from beyond it is the controller's mistake, and an
//! error. A completion's status is passed on, not relied on.

#![allow(missing_docs, reason = "the names are the specification's, and the macro writes items that take no comment")]
#![allow(unsafe_code, reason = "queues that the device reads and writes")]

use granule_arch::addr::VirtAddr;
use granule_arch::barrier;
use thiserror::Error;
use tock_registers::LocalRegisterCopy;
use tock_registers::register_bitfields;

use crate::iommu::DmaAddress;

/// Entries of a queue, of which one stays free: the least that a controller takes (CAP.MQES).
pub(super) const ENTRIES: u16 = 2;

const COMMAND_WORDS: usize = 16;
const COMPLETION_WORDS: usize = 4;

register_bitfields! { u32,
    /// Word 0 of a command.
    COMMAND [
        OPCODE OFFSET(0) NUMBITS(8) [],
        IDENTIFIER OFFSET(16) NUMBITS(16) []
    ],
    /// Word 2 of a completion.
    PLACE [
        HEAD OFFSET(0) NUMBITS(16) [],
        QUEUE OFFSET(16) NUMBITS(16) []
    ],
    /// Word 3 of a completion.
    END [
        IDENTIFIER OFFSET(0) NUMBITS(16) [],
        PHASE OFFSET(16) NUMBITS(1) [],
        /// Without the bits for a retry, and for more in a log.
        STATUS OFFSET(17) NUMBITS(11) []
    ],
}

/// A page that driver and controller have in common.
#[derive(Clone, Copy)]
pub(super) struct SharedPage {
    pub(super) memory: VirtAddr,
    pub(super) address: DmaAddress,
}

/// A command for a controller.
#[derive(Clone, Copy)]
pub(super) struct NvmeCommand {
    pub(super) opcode: u8,
    pub(super) namespace: u32,
    /// PRP1 and PRP2: the data, in two pages at most.
    pub(super) data: [u64; 2],
    /// Words 10 to 12.
    pub(super) words: [u32; 3],
}

/// The rules that a controller has broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Violation {
    /// It has no such command.
    #[error("the controller completes command {0}, which it does not have")]
    Identifier(u16),
    /// It was given none there.
    #[error("the controller completes a command of queue {0}, which has none")]
    Queue(u16),
    /// The queue has fewer entries.
    #[error("the controller is at entry {0} of a queue of {ENTRIES}")]
    Head(u16),
}

/// A pair of queues of one number.
pub(super) struct QueuePair {
    number: u16,
    submission: SharedPage,
    completion: SharedPage,
    tail: u16,
    head: u16,
    /// The phase of the next completion: it changes with each round.
    phase: bool,
    /// Of the command that was handed over last.
    identifier: u16,
}

impl QueuePair {
    /// # Safety
    /// The pages are these queues' alone, for as long as they are used.
    pub(super) unsafe fn new(number: u16, submission: SharedPage, completion: SharedPage) -> Self {
        Self { number, submission, completion, tail: 0, head: 0, phase: true, identifier: 0 }
    }

    /// Empties both, for a controller that knows of none.
    pub(super) fn begin(&mut self) {
        (self.tail, self.head, self.phase) = (0, 0, true);
        for index in 0..ENTRIES {
            self.write_command(index, [0; COMMAND_WORDS]);
            (0..COMPLETION_WORDS).for_each(|word| self.write_completion(index, word, 0));
        }
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Where the controller finds commands, and puts completions.
    pub(super) fn addresses(&self) -> [u64; 2] {
        [self.submission.address.0, self.completion.address.0]
    }

    /// Writes a command; returns the tail for the doorbell. The controller has none of this pair.
    pub(super) fn submit(&mut self, command: &NvmeCommand) -> u16 {
        self.identifier = self.identifier.wrapping_add(1);
        let first = COMMAND::OPCODE.val(command.opcode.into()) + COMMAND::IDENTIFIER.val(self.identifier.into());
        let mut words = [0; COMMAND_WORDS];
        (words[0], words[1]) = (first.value, command.namespace);
        for (pointer, words) in command.data.iter().zip(words[6..10].chunks_exact_mut(2)) {
            (words[0], words[1]) = (*pointer as u32, (*pointer >> 32) as u32);
        }
        words[10..13].copy_from_slice(&command.words);
        self.write_command(self.tail, words);
        self.tail = (self.tail + 1) % ENTRIES;
        // The command, and what was stored for it, is visible to the controller before the doorbell is.
        barrier::dmb_oshst();
        self.tail
    }

    /// Whether a completion is there.
    pub(super) fn has_some(&self) -> bool {
        self.end().is_set(END::PHASE) == self.phase
    }

    /// Takes the completion that is there, if one is: the status, and the head for the doorbell.
    ///
    /// # Errors
    /// [`Violation`]: the controller is to be reset.
    pub(super) fn take(&mut self) -> Result<Option<(u16, u16)>, Violation> {
        let end = self.end();
        if end.is_set(END::PHASE) != self.phase {
            return Ok(None);
        }
        // The rest of it, and the data, is read after the phase.
        barrier::dmb_oshld();
        let place = LocalRegisterCopy::<u32, PLACE::Register>::new(self.read_completion(2));
        let (identifier, queue) = (end.read(END::IDENTIFIER) as u16, place.read(PLACE::QUEUE) as u16);
        let head = place.read(PLACE::HEAD) as u16;
        if queue != self.number {
            return Err(Violation::Queue(queue));
        }
        if identifier != self.identifier {
            return Err(Violation::Identifier(identifier));
        }
        if head >= ENTRIES {
            return Err(Violation::Head(head));
        }
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        Ok(Some((end.read(END::STATUS) as u16, self.head)))
    }

    fn end(&self) -> LocalRegisterCopy<u32, END::Register> {
        LocalRegisterCopy::new(self.read_completion(3))
    }

    fn write_command(&self, index: u16, words: [u32; COMMAND_WORDS]) {
        let at = self.submission.memory.as_ptr::<[u32; COMMAND_WORDS]>();
        // SAFETY: an entry of the queue's page, which is this pair's (`new`) and the controller does not have now.
        unsafe { at.add(index.into()).write_volatile(words) };
    }

    fn write_completion(&self, index: u16, word: usize, value: u32) {
        let at = self.completion.memory.as_ptr::<u32>();
        // SAFETY: as for `write_command`, of the other page.
        unsafe { at.add(usize::from(index) * COMPLETION_WORDS + word).write_volatile(value) };
    }

    /// A word of the next completion.
    fn read_completion(&self, word: usize) -> u32 {
        let at = self.completion.memory.as_ptr::<u32>();
        // SAFETY: inside the page (`new`); the controller may store to it concurrently, a word at a time at least.
        unsafe { at.add(usize::from(self.head) * COMPLETION_WORDS + word).read_volatile() }
    }
}
