//! Interrupt controllers of a BCM2836 or BCM2837, as on a Raspberry Pi 2 and 3 ("QA7 rev3.4: ARM quad A7 core",
//! and chapter 7 of "BCM2835 ARM Peripherals").
//!
//! Each of the four cores has a register of the interrupts that are pending for it: its timers, its mailboxes, and one
//! that stands for all of the second controller, which is BCM2835's and whose lines all go to one core. Neither has
//! priorities, and nothing is acknowledged: a line is pending until its device lowers it, a mailbox until its bits are
//! cleared.
//!
//! | INTID | |
//! |---|---|
//! | 0–15 | the bits of mailbox 0 |
//! | 16–27 | the sources of a core, in the order of its register |
//! | 32–63 | the second controller's bank 0, the basic interrupts, of which there are eight |
//! | 64–127 | its banks 1 and 2 |

#![allow(unsafe_code, reason = "registers of the interrupt controllers")]

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::PhysRange;
use granule_arch::addr::VirtAddr;
use granule_arch::barrier;
use spin::Once;

use super::interrupt::{Acknowledged, InterruptController, InterruptError, SHARED};
use super::order;
use crate::mmio;
use crate::platform::Interrupt;
use crate::smp::cpu::{Cpu, this_cpu};
use crate::sync::{IrqLock, rank};
use crate::trap::probe;

/// The first number that is private to each CPU, and no SGI's.
const PRIVATE_BASE: u32 = 16;

/// Registers of the cores' controller. The timer's clock is the crystal, undivided, for which CNTFRQ_EL0 stands.
const CONTROL: u64 = 0x00;
const PRESCALER: u64 = 0x08;
const PRESCALER_UNDIVIDED: u32 = 1 << 31;
/// The core that takes the second controller's interrupts: IRQ in bits 1:0, FIQ in 3:2.
const SHARED_ROUTING: u64 = 0x0c;
/// A bit for each core that takes its PMU's interrupt, as IRQ and above as FIQ.
const PMU_SET: u64 = 0x10;
const PMU_CLEAR: u64 = 0x14;
/// The interrupt of the bus, when nothing is outstanding on it.
const AXI_OUTSTANDING: u64 = 0x30;
const LOCAL_TIMER_CONTROL: u64 = 0x34;
/// Four bytes for each core: bits 3:0 are sources that are IRQs, 7:4 those that are FIQs.
const TIMER_CONTROL: u64 = 0x40;
const MAILBOX_CONTROL: u64 = 0x50;
/// Pending sources, four bytes for each core.
const SOURCE: u64 = 0x60;
/// Sixteen bytes for each core, four for each of its mailboxes.
const MAILBOX_SET: u64 = 0x80;
const MAILBOX_CLEAR: u64 = 0xc0;
const MAILBOXES: u64 = 4;
const CORES: u64 = 4;

/// Bits of [`SOURCE`].
const SOURCE_TIMERS: u32 = 0xf;
const SOURCE_MAILBOX: u32 = 1 << 4;
const SOURCE_SHARED: u32 = 1 << 8;
const PMU: u32 = 9;
const SOURCE_PMU: u32 = 1 << PMU;

/// Registers of the second controller, for its banks in the order of their numbers.
const PENDING: [u64; BANKS] = [0x00, 0x04, 0x08];
const FIQ_CONTROL: u64 = 0x0c;
const ENABLE: [u64; BANKS] = [0x18, 0x10, 0x14];
const DISABLE: [u64; BANKS] = [0x24, 0x1c, 0x20];
const BANKS: usize = 3;
/// The INTID of each bank's first line.
const FIRST: [u32; BANKS] = [SHARED, SHARED + 32, SHARED + 64];

struct Bcm2836 {
    cores: VirtAddr,
    shared: Option<VirtAddr>,
    /// The lines that are enabled here in each bank of the second controller. Pending bits are not masked by that.
    enabled: [AtomicU32; BANKS],
    /// Held while a register is read, changed and written back.
    configuration: IrqLock<(), { rank::INTERRUPT }>,
}

static CONTROLLER: Once<Bcm2836> = Once::new();

pub(super) fn init(
    cores: PhysRange,
    shared: Option<PhysRange>,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<&'static dyn InterruptController, InterruptError> {
    let mut mapped = |range: PhysRange| {
        let registers = map(range).ok_or(InterruptError::NotMapped(range))?;
        let read = probe::read::<u32>(registers);
        read.map(|_| registers).map_err(|fault| InterruptError::NoAnswer(range.start(), fault))
    };
    let (cores, shared) = (mapped(cores)?, shared.map(mapped).transpose()?);
    Ok(CONTROLLER.call_once(|| Bcm2836::new(cores, shared)))
}

/// The core with this affinity, 0 to 3.
fn core(mpidr: u64) -> Option<u64> {
    (mpidr < CORES).then_some(mpidr)
}

/// The bank of the second controller that a shared line is in, and its bit there; `None` where there is no such line.
fn bank_of(intid: u32) -> Option<(usize, u32)> {
    let bank = intid.checked_sub(SHARED)? as usize / 32;
    (bank < BANKS).then_some((bank, 1 << (intid % 32)))
}

impl Bcm2836 {
    /// Ends all that firmware was doing: nothing is enabled.
    fn new(cores: VirtAddr, shared: Option<VirtAddr>) -> Self {
        let enabled = [const { AtomicU32::new(0) }; BANKS];
        let controller = Self { cores, shared, enabled, configuration: IrqLock::new(()) };
        controller.write(CONTROL, 0);
        controller.write(PRESCALER, PRESCALER_UNDIVIDED);
        controller.write(LOCAL_TIMER_CONTROL, 0);
        controller.write(AXI_OUTSTANDING, 0);
        if let Some(shared) = shared {
            // SAFETY: a register of the second controller, which `shared` maps.
            unsafe { mmio::write(shared + FIQ_CONTROL, 0_u32) };
            for bank in DISABLE {
                // SAFETY: as above.
                unsafe { mmio::write(shared + bank, !0_u32) };
            }
        }
        controller
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: a register of the cores' controller, mapped for ever; no read of one changes anything.
        unsafe { mmio::read(self.cores + offset) }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: a register of the cores' controller, mapped for ever. Those of one core are written by that core,
        // with interrupts masked, or in one piece; those of all with the lock held, or at start.
        unsafe { mmio::write(self.cores + offset, value) };
    }

    /// Writes a bit of a register of the second controller, where there is one.
    fn write_shared(&self, offset: u64, bit: u32) {
        if let Some(shared) = self.shared {
            // SAFETY: a register of the second controller, mapped for ever; zeros change nothing.
            unsafe { mmio::write(shared + offset, bit) };
        }
    }

    /// The first line of the second controller that is pending and enabled.
    fn pending_shared(&self) -> Option<u32> {
        let shared = self.shared?;
        FIRST.into_iter().zip(PENDING).zip(&self.enabled).find_map(|((first, pending), enabled)| {
            // SAFETY: a register of the second controller, mapped for ever; reads change nothing.
            let pending = unsafe { mmio::read::<u32>(shared + pending) } & enabled.load(Ordering::Relaxed);
            (pending != 0).then(|| first + pending.trailing_zeros())
        })
    }

    /// The interrupt that `core` is to handle next; of its mailbox it takes the bit.
    fn take(&self, core: u64) -> Option<u32> {
        let source = self.read(SOURCE + 4 * core);
        if source & SOURCE_MAILBOX != 0 {
            let mailbox = MAILBOX_CLEAR + 16 * core;
            let bits = self.read(mailbox) & 0xffff;
            if bits != 0 {
                let number = bits.trailing_zeros();
                self.write(mailbox, 1 << number);
                // A write may be complete before it has arrived: a read after it is not. The next call's bit is set
                // after that.
                let _ = self.read(mailbox);
                return Some(number);
            }
        }
        let private = source & (SOURCE_TIMERS | SOURCE_PMU);
        if private != 0 {
            return Some(PRIVATE_BASE + private.trailing_zeros());
        }
        if source & SOURCE_SHARED != 0 { self.pending_shared() } else { None }
    }
}

impl InterruptController for Bcm2836 {
    fn init_cpu(&self, cpu: &Cpu) -> Result<(), InterruptError> {
        let mpidr = cpu.mpidr.load(Ordering::Relaxed);
        let core = core(mpidr).ok_or(InterruptError::NoInterface(mpidr))?;
        self.write(TIMER_CONTROL + 4 * core, 0);
        self.write(MAILBOX_CONTROL + 4 * core, 0);
        // As IRQ and as FIQ.
        self.write(PMU_CLEAR, 0b1_0001 << core);
        for mailbox in 0..MAILBOXES {
            self.write(MAILBOX_CLEAR + 16 * core + 4 * mailbox, !0);
        }
        Ok(())
    }

    fn enable(&self, interrupt: Interrupt, cpu: &Cpu) {
        let Some(core) = core(cpu.mpidr.load(Ordering::Relaxed)) else { return };
        let _alone = self.configuration.lock();
        let intid = interrupt.intid;
        if intid < PRIVATE_BASE {
            self.write(MAILBOX_CONTROL + 4 * core, 1);
        } else if intid < SHARED {
            match intid - PRIVATE_BASE {
                timer @ 0..4 => {
                    let control = TIMER_CONTROL + 4 * core;
                    self.write(control, self.read(control) & SOURCE_TIMERS | 1 << timer);
                }
                PMU => self.write(PMU_SET, 1 << core),
                _ => {}
            }
        } else if let Some((bank, bit)) = bank_of(intid).filter(|_| self.shared.is_some()) {
            // All of them go to the core of the last one: there is one choice.
            self.write(SHARED_ROUTING, core as u32);
            self.enabled[bank].fetch_or(bit, Ordering::Relaxed);
            self.write_shared(ENABLE[bank], bit);
        }
    }

    fn disable(&self, intid: u32) {
        let _alone = self.configuration.lock();
        if let Some((bank, bit)) = bank_of(intid) {
            self.enabled[bank].fetch_and(!bit, Ordering::Relaxed);
            self.write_shared(DISABLE[bank], bit);
        }
    }

    fn send(&self, cpu: &Cpu, number: u32) {
        if let Some(core) = core(cpu.mpidr.load(Ordering::Relaxed)) {
            order::send(|| self.write(MAILBOX_SET + 16 * core, 1 << (number & 15)));
        }
    }

    fn acknowledge(&self) -> Option<Acknowledged> {
        let core = core(this_cpu().mpidr.load(Ordering::Relaxed))?;
        order::acknowledge(|| self.take(core).map(|intid| Acknowledged { intid, token: intid }))
    }

    fn end(&self, _: Acknowledged) {
        // The handler's accesses to the device, and so the fall of its line, come before the next look.
        barrier::dsb_sy();
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::sync::atomic::{AtomicU32, Ordering};

    use granule_arch::addr::VirtAddr;

    use super::{Bcm2836, InterruptController, InterruptError};
    use crate::platform::{Interrupt, Trigger};
    use crate::smp::cpu::{Cpu, CpuId, this_cpu};

    /// Registers that keep what is written to them, all ones at first.
    fn registers() -> &'static [AtomicU32; 128] {
        Box::leak(Box::new([const { AtomicU32::new(!0) }; 128]))
    }

    struct Machine {
        cores: &'static [AtomicU32; 128],
        shared: &'static [AtomicU32; 128],
        controller: Bcm2836,
    }

    impl Machine {
        fn new() -> Self {
            let (cores, shared) = (registers(), registers());
            let controller = Bcm2836::new(VirtAddr::from_ptr(cores), Some(VirtAddr::from_ptr(shared)));
            Self { cores, shared, controller }
        }

        fn core(&self, offset: usize) -> u32 {
            self.cores[offset / 4].load(Ordering::Relaxed)
        }

        fn set_core(&self, offset: usize, value: u32) {
            self.cores[offset / 4].store(value, Ordering::Relaxed);
        }

        fn shared(&self, offset: usize) -> u32 {
            self.shared[offset / 4].load(Ordering::Relaxed)
        }

        fn set_shared(&self, offset: usize, value: u32) {
            self.shared[offset / 4].store(value, Ordering::Relaxed);
        }

        fn enable(&self, intid: u32, cpu: &Cpu) {
            self.controller.enable(Interrupt { intid, trigger: Trigger::Level }, cpu);
        }

        fn take(&self) -> Option<u32> {
            self.controller.acknowledge().map(|interrupt| interrupt.intid)
        }
    }

    fn cpu(core: u64) -> Cpu {
        let cpu = Cpu::new(CpuId(1));
        cpu.mpidr.store(core, Ordering::Relaxed);
        cpu
    }

    #[test]
    fn nothing_that_firmware_left_enabled_or_pending_stays() {
        let machine = Machine::new();
        assert_eq!([machine.core(0), machine.core(8), machine.core(0x34)], [0, 1 << 31, 0]);
        assert_eq!([0x0c, 0x1c, 0x20, 0x24].map(|at| machine.shared(at)), [0, !0, !0, !0]);
        machine.set_core(0xec, 0);
        machine.controller.init_cpu(&cpu(2)).unwrap();
        assert_eq!([machine.core(0x48), machine.core(0x58), machine.core(0x14)], [0, 0, 0x44]);
        assert_eq!([0xe0, 0xe4, 0xe8, 0xec].map(|at| machine.core(at)), [!0; 4]);
        // The others' are theirs.
        assert_eq!([machine.core(0x44), machine.core(0x4c)], [!0; 2]);
        assert_eq!(machine.controller.init_cpu(&cpu(4)), Err(InterruptError::NoInterface(4)));
        assert_eq!(machine.controller.init_cpu(&cpu(0x102)), Err(InterruptError::NoInterface(0x102)));
    }

    #[test]
    fn each_kind_is_enabled_where_it_is() {
        let (machine, cpu) = (Machine::new(), cpu(3));
        machine.controller.init_cpu(&cpu).unwrap();
        machine.enable(2, &cpu);
        assert_eq!(machine.core(0x5c), 1, "mailbox 0, as IRQ");
        machine.enable(16 + 3, &cpu);
        machine.enable(16 + 1, &cpu);
        assert_eq!(machine.core(0x4c), 0b1010, "two timers, as IRQs");
        machine.enable(16 + 9, &cpu);
        assert_eq!(machine.core(0x10), 1 << 3);
        for (intid, register, bit) in [(32 + 7, 0x18, 7), (64 + 29, 0x10, 29), (96 + 25, 0x14, 25)] {
            machine.set_core(0x0c, 0);
            machine.enable(intid, &cpu);
            assert_eq!((machine.shared(register), machine.core(0x0c)), (1 << bit, 3), "{intid}");
        }
        let before = machine.shared.each_ref().map(|word| word.load(Ordering::Relaxed));
        machine.enable(128, &cpu);
        assert_eq!(machine.shared.each_ref().map(|word| word.load(Ordering::Relaxed)), before, "there is none");
    }

    #[test]
    fn ipis_are_bits_of_a_mailbox_taken_one_by_one() {
        let machine = Machine::new();
        machine.controller.send(&cpu(1), 2);
        assert_eq!(machine.core(0x90), 1 << 2, "mailbox 0 of core 1");
        // This thread's CPU is core 0.
        assert_eq!(this_cpu().mpidr.load(Ordering::Relaxed), 0);
        machine.set_core(0x60, 1 << 4);
        machine.set_core(0xc0, 0b110);
        assert_eq!(machine.take(), Some(1));
        assert_eq!(machine.core(0xc0), 1 << 1, "written to clear this bit alone");
        machine.set_core(0xc0, 0);
        assert_eq!(machine.take(), None, "gone meanwhile");
    }

    #[test]
    fn what_is_pending_and_enabled_is_taken() {
        let machine = Machine::new();
        machine.set_core(0x60, 0);
        assert_eq!(machine.take(), None);
        machine.set_core(0x60, 0b1000 | 1 << 8);
        assert_eq!(machine.take(), Some(19), "a timer, before the others");
        machine.set_core(0x60, 1 << 9);
        assert_eq!(machine.take(), Some(25));
        machine.set_core(0x60, 1 << 8);
        assert_eq!(machine.take(), None, "all is pending, nothing enabled");
        for intid in [96 + 25, 64 + 29, 32 + 6] {
            machine.enable(intid, this_cpu());
            assert_eq!(machine.take(), Some(intid));
        }
        machine.set_shared(0x00, !(1 << 6));
        assert_eq!(machine.take(), Some(64 + 29));
        machine.set_shared(0x04, 0);
        assert_eq!(machine.take(), Some(96 + 25));
        machine.controller.disable(96 + 25);
        assert_eq!((machine.take(), machine.shared(0x20)), (None, 1 << 25), "pending still, and disabled");
        machine.controller.disable(128);
        machine.controller.disable(27);
        machine.set_core(0x60, 1 << 5 | 1 << 10);
        assert_eq!(machine.take(), None, "what has no number");
    }
}
