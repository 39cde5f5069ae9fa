//! An SMMU as far as its command queue goes: the queue's words and registers, and its consumer: a thread, or each read
//! of CMDQ_CONS, which is one thread less to put in order.
//!
//! The queue is the driver's own source, generic over its [`Platform`]. loom watches each slot: the CPU that fills it
//! and the SMMU that reads it must be ordered one way or the other, each time. So is the right to write CMDQ_PROD. DMB
//! OSHST is a release fence, DMB OSHLD an acquire fence, for the CPUs and the SMMU alike.

#![allow(unsafe_code, reason = "keeps the contracts of the kernel's unsafe traits on loom's types")]

use std::ptr::NonNull;
use std::sync::Mutex;

use granule_arch::addr::PhysAddr;
use granule_smmuv3::registers::offset;
use granule_smmuv3::{Command, CommandError, CommandQueue, DmaMemory, LIMIT_MS, Platform, Report, Step, Word};
use loom::sync::atomic::fence;

use crate::Watched;
use crate::sync::atomic::{AtomicU64, Omitted, Ordering, omits};

/// A word of the driver, or half a slot, which is watched.
struct SmmuWord {
    cell: AtomicU64,
    slot: Option<Watched<u64>>,
}

impl Word for SmmuWord {
    fn load(&self, order: Ordering) -> u64 {
        match &self.slot {
            Some(slot) => slot.read(),
            None => self.cell.load(order),
        }
    }

    fn store(&self, value: u64, order: Ordering) {
        match &self.slot {
            Some(slot) => slot.write(value),
            None => self.cell.store(value, order),
        }
    }

    fn exchange(&self, current: u64, new: u64, order: Ordering) -> bool {
        self.cell.compare_exchange(current, new, order, Ordering::Relaxed).is_ok()
    }
}

/// The registers, and what is behind them.
#[derive(Default)]
struct Port {
    /// Whether a look at CMDQ_CONS makes the SMMU go on.
    consumes_when_seen: bool,
    /// Whether there can be errors. A register that never changes is not worth an order.
    errors: bool,
    prod: AtomicU64,
    cons: AtomicU64,
    gerror: AtomicU64,
    gerrorn: AtomicU64,
    /// The PROD that a CPU wrote last: loom reports writers of PROD that are not ordered.
    turn: Watched<u64>,
    slots: Box<[SmmuWord]>,
    /// The pages that devices reach through it.
    pages: [Watched<u64>; PAGES],
    /// Whether the SMMU does not answer, and the clock shows that it does not.
    is_dead: bool,
    clock: std::sync::atomic::AtomicU64,
    /// The SMMU's own state. Not one of loom's types: it orders no thread.
    device: Mutex<Device>,
    /// Illegal commands that were reported.
    reports: Mutex<usize>,
}

/// The state of the SMMU.
#[derive(Default)]
struct Device {
    /// So many commands are consumed.
    position: u64,
    /// GERROR.
    error: u64,
    /// Pages that devices use no more.
    forgotten: [bool; PAGES],
}

/// How many pages devices use, each by an ASID of its own.
const PAGES: usize = 4;

impl Port {
    /// The SMMU advances by one command; whether there was one. Until a CMD_SYNC after the invalidation of a page,
    /// the page's device may use it.
    fn consume_one(&self, device: &mut Device) -> bool {
        let entries = self.slots.len() as u64 / 2;
        let Device { position, error, forgotten } = device;
        // It has stopped, and the error is not acknowledged.
        if self.errors && self.gerrorn.fetch_add(0, Ordering::Relaxed) != *error {
            return false;
        }
        // As one observer would, whichever thread this is: never an older value than before.
        let prod = self.prod.fetch_add(0, Ordering::Relaxed);
        fence(Ordering::Acquire);
        let waiting = prod.wrapping_sub(*position) & (2 * entries - 1);
        assert!(waiting <= entries, "PROD is {prod}, and position {position} was consumed");
        if waiting == 0 {
            return false;
        }
        let index = 2 * (*position % entries) as usize;
        let [low, high] = [index, index + 1].map(|word| self.slots[word].load(Ordering::Relaxed));
        // SAFETY: what a queue held, which nothing issues again.
        let command = unsafe { Command::from_words([low, high]) };
        if low == BLUNDER.words()[0] {
            fence(Ordering::Release);
            self.cons.store(*position & (2 * entries - 1) | 1 << 24, Ordering::Relaxed);
            *error ^= 1;
            self.gerror.store(*error, Ordering::Relaxed);
            return false;
        }
        *position += 1;
        fence(Ordering::Release);
        self.cons.store(*position & (2 * entries - 1), Ordering::Relaxed);
        if command != Command::SYNC {
            let page = (0..PAGES).find(|&page| command == Command::tlbi_nh_asid(page as u16));
            let page = page.unwrap_or_else(|| panic!("{command} was never issued"));
            assert!(!forgotten[page], "{command} came twice");
            forgotten[page] = true;
            // Consumed, and not complete.
            self.pages[page].read();
        }
        true
    }
}

/// An illegal command.
// SAFETY: no SMMU knows it.
const BLUNDER: Command = unsafe { Command::from_words([0xff, 0]) };

// SAFETY: one SMMU's registers, as words that loom knows; the barriers are fences; the words are those of the queue's
// memory, which is as many as the driver may use.
unsafe impl Platform for Port {
    type Word = SmmuWord;

    /// So that the clock is looked at in few turns.
    const TURNS_PER_LOOK: u64 = 2;

    fn word(value: u64) -> SmmuWord {
        SmmuWord { cell: AtomicU64::new(value), slot: None }
    }

    fn read32(&self, offset: usize) -> u32 {
        let register = match offset {
            offset::CMDQ_CONS => {
                // Not while it runs in another thread.
                if let (true, Ok(mut device)) = (self.consumes_when_seen, self.device.try_lock()) {
                    while self.consume_one(&mut device) {}
                }
                &self.cons
            }
            offset::GERROR | offset::GERRORN if !self.errors => return 0,
            offset::GERROR => &self.gerror,
            offset::GERRORN => &self.gerrorn,
            _ => panic!("the command queue has no register {offset:#x}"),
        };
        register.load(Ordering::Relaxed) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            offset::CMDQ_PROD => {
                self.turn.write(u64::from(value));
                self.prod.store(u64::from(value), Ordering::Relaxed);
            }
            offset::GERRORN => self.gerrorn.store(u64::from(value), Ordering::Relaxed),
            _ => panic!("the command queue writes no register {offset:#x}"),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        panic!("the command queue reads no register {offset:#x}")
    }

    fn write64(&self, offset: usize, _: u64) {
        panic!("the command queue writes no register {offset:#x}")
    }

    fn dmb_oshst(&self) {
        fence(Ordering::Release);
    }

    fn dmb_oshld(&self) {
        if !omits(Omitted::DmbOshld) {
            fence(Ordering::Acquire);
        }
    }

    fn clean(&self, _: PhysAddr, _: u64) {
        unreachable!("the command queue is no page table")
    }

    fn relax(&self) {
        loom::thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        if !self.is_dead {
            return 0;
        }
        // Each look finds that the limit has passed since the last one.
        self.clock.fetch_add(2000 * LIMIT_MS, std::sync::atomic::Ordering::Relaxed)
    }

    fn report(&self, report: &Report) {
        assert_eq!(*report, Report::IllegalCommand(BLUNDER));
        *self.reports.lock().unwrap() += 1;
    }

    fn leaves_out(&self, step: Step) -> bool {
        omits(Omitted::Smmu(step))
    }
}

/// The consumer of the commands of an [`Smmu`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consumer {
    /// A thread, by [`Smmu::consume`].
    Thread,
    /// Each read of CMDQ_CONS.
    Looks,
    /// Each read of CMDQ_CONS, and commands may be illegal.
    LooksAndStops,
    /// Nothing, and the clock runs out.
    Dead,
    /// Nothing, and the clock stands still: only the end of the SMMU's use ends a wait.
    Silent,
}

/// An SMMU with a command queue of `2^BITS` slots.
pub struct Smmu<const BITS: u32> {
    port: Port,
    queue: CommandQueue<Port, BITS>,
}

impl<const BITS: u32> Smmu<BITS> {
    /// With an empty queue.
    pub fn new(consumer: Consumer) -> Self {
        let slot = || SmmuWord { cell: AtomicU64::default(), slot: Some(Watched::default()) };
        let port = Port {
            consumes_when_seen: matches!(consumer, Consumer::Looks | Consumer::LooksAndStops),
            is_dead: consumer == Consumer::Dead,
            errors: consumer == Consumer::LooksAndStops,
            slots: (0..2 << BITS).map(|_| slot()).collect(),
            ..Port::default()
        };
        // As many words as the bytes hold on the metal; these words are larger: see `Platform`.
        // SAFETY: the port lives as long as the queue, and only the queue writes its slots.
        let memory = unsafe { DmaMemory::new(PhysAddr(0), NonNull::from(&*port.slots).cast(), 16 << BITS) };
        Self { port, queue: CommandQueue::new(memory) }
    }

    /// A CPU takes `page` from a device: it invalidates, and uses the page. Whether the call succeeded.
    pub fn take(&self, page: usize) -> bool {
        let taken = self.queue.issue(&self.port, &[Command::tlbi_nh_asid(page as u16)]).is_ok();
        self.port.pages[page].write(1);
        taken
    }

    /// A CPU takes `page` from a device by a call that fails, since the SMMU does not answer.
    ///
    /// # Panics
    /// The call did not fail.
    pub fn take_in_vain(&self, page: usize) {
        let result = self.queue.issue(&self.port, &[Command::tlbi_nh_asid(page as u16)]);
        assert_eq!(result, Err(CommandError::Timeout));
        self.shut(page);
    }

    /// As [`Self::take_in_vain`], by a CPU that relies on the call's word that the SMMU is shut, and does not shut it.
    ///
    /// # Panics
    /// The call did not fail.
    pub fn take_when_shut(&self, page: usize) {
        let result = self.queue.issue(&self.port, &[Command::tlbi_nh_asid(page as u16)]);
        assert_eq!(result, Err(CommandError::Timeout));
        self.port.pages[page].write(1);
    }

    /// A CPU issues an illegal command; whether the call succeeded.
    pub fn blunder(&self) -> bool {
        self.queue.issue(&self.port, &[BLUNDER]).is_ok()
    }

    /// A CPU shuts the SMMU, by which devices use all pages until then, and uses `page`.
    pub fn shut(&self, page: usize) {
        self.queue.give_up(&self.port, || self.port.pages.iter().for_each(|page| _ = page.read()));
        self.port.pages[page].write(1);
    }

    /// So many illegal commands were reported.
    ///
    /// # Panics
    /// Where they were not.
    pub fn assert_reported(&self, count: usize) {
        assert_eq!(*self.port.reports.lock().unwrap(), count);
    }

    /// The SMMU: consumes `count` commands.
    ///
    /// # Panics
    /// Where PROD points beyond the issued commands, or a command comes twice.
    pub fn consume(&self, count: u64) {
        let mut device = Device::default();
        while device.position < count {
            if !self.port.consume_one(&mut device) {
                loom::thread::yield_now();
            }
        }
    }
}
