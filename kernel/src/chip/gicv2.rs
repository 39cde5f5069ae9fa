//! Arm GICv2 (IHI 0048): distributor and CPU interface in memory, at most eight CPUs.
//!
//! The register blocks are those of the crate `arm-gic`. Its driver is not used: it cannot route a shared interrupt to
//! a CPU, sets the priority of four interrupts at once, and wants exclusive access to registers that every CPU has its
//! own copy of.
//!
//! The registers below number 32 are banked, as is the CPU interface: a CPU that touches them touches its own.

#![allow(unsafe_code, reason = "registers of the interrupt controller")]

use core::mem::offset_of;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use arm_gic::gicv2::registers::{Gicc, Gicd, GicdCtlr};
use granule_arch::addr::{PhysRange, VirtAddr};
use granule_arch::barrier;
use safe_mmio::{UniqueMmioPointer, field, field_shared};
use spin::Once;

use super::interrupt::{Acknowledged, InterruptController, InterruptError, SHARED};
use super::order;
use crate::mmio;
use crate::platform::{Interrupt, Trigger};
use crate::smp::cpu::{Cpu, MAX_CPUS};
use crate::sync::{IrqLock, rank};
use crate::trap::probe;

/// Of all interrupts: in the middle, so that it is above the mask with and without the Security Extensions' shift.
const PRIORITY: u8 = 0x80;
/// GICD_SGIR: the CPUs to send to, a bit each.
const SGIR_TARGETS: u32 = 16;
/// GICD_CPENDSGIR: a bit for each SGI and CPU that has sent it.
const CPENDSGIR: usize = 0xf10;
const CPENDSGIR_END: usize = 0xf20;
/// GICC_APR and GICC_NSAPR: the priorities of interrupts that are active, of either group. One left over would keep the
/// CPU from those that are not more urgent.
const APR: usize = 0xd0;
const NSAPR_END: usize = 0xf0;
/// GICC_IAR: the interrupt's number; above it is the CPU that sent an SGI.
const IAR_INTID: u32 = 0x3ff;

struct GicV2 {
    distributor: NonNull<Gicd>,
    /// Held while registers of the distributor that CPUs share are read, changed and written back.
    configuration: IrqLock<(), { rank::INTERRUPT }>,
    cpu_interface: NonNull<Gicc>,
    /// For each CPU the bit that the distributor knows it by; 0 until it has started.
    targets: [AtomicU8; MAX_CPUS],
}

// SAFETY: what CPUs share of the distributor is changed under the lock, and the CPU interface is banked by CPU.
unsafe impl Sync for GicV2 {}
// SAFETY: as above; nothing in it belongs to the CPU that made it.
unsafe impl Send for GicV2 {}

static GIC: Once<GicV2> = Once::new();

pub(super) fn init(
    distributor: PhysRange,
    cpu_interface: PhysRange,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<&'static dyn InterruptController, InterruptError> {
    let mut mapped = |range| map(range).ok_or(InterruptError::NotMapped(range));
    let (gicd, gicc) = (mapped(distributor)?, mapped(cpu_interface)?);
    for (registers, range) in [(gicd, distributor), (gicc, cpu_interface)] {
        probe::read::<u32>(registers).map_err(|fault| InterruptError::NoAnswer(range.start(), fault))?;
    }
    let gicd = NonNull::new(gicd.as_ptr::<Gicd>()).ok_or(InterruptError::NotMapped(distributor))?;
    let gicc = NonNull::new(gicc.as_ptr::<Gicc>()).ok_or(InterruptError::NotMapped(cpu_interface))?;

    // SAFETY: by the device tree a GICv2 distributor is there, `map` has mapped it for ever as device memory, and the
    // lock that guards it from now on does not exist yet.
    let mut registers = unsafe { UniqueMmioPointer::new(gicd) };
    // The firmware's use of the distributor ends here.
    field!(registers, ctlr).write(GicdCtlr::empty());
    let lines = field_shared!(registers, typer).read().num_irqs() as usize / 32;
    clear(&mut registers, 1..lines);
    // Level-sensitive; two bits each. The first are the private ones', which `enable` sets.
    mmio::fill(field!(registers, icfgr), 2..2 * lines, 0);
    // Bit 0 is group 0 without the Security Extensions, and group 1 as the non-secure state sees it with them: ours
    // in both cases.
    field!(registers, ctlr).write(GicdCtlr::EnableGrp0);
    Ok(GIC.call_once(|| GicV2 {
        distributor: gicd,
        configuration: IrqLock::new(()),
        cpu_interface: gicc,
        targets: [const { AtomicU8::new(0) }; MAX_CPUS],
    }))
}

/// Ends what an earlier stage had interrupts do, 32 of them in each of `words`: none is enabled, pending or active, and
/// all are in group 0, where that can be chosen.
fn clear(mut registers: &mut UniqueMmioPointer<'_, Gicd>, words: Range<usize>) {
    mmio::fill(field!(registers, icenabler), words.clone(), !0);
    mmio::fill(field!(registers, icpendr), words.clone(), !0);
    mmio::fill(field!(registers, icactiver), words.clone(), !0);
    mmio::fill(field!(registers, igroupr), words, 0);
}

/// The byte of `intid` in the registers at `offset`: GICD_IPRIORITYR and GICD_ITARGETSR are byte-accessible.
fn byte(gicd: NonNull<Gicd>, offset: usize, intid: u32) -> VirtAddr {
    VirtAddr::from_ptr(gicd.as_ptr()) + (offset as u64 + u64::from(intid))
}

impl GicV2 {
    fn cpu_interface(&self) -> UniqueMmioPointer<'_, Gicc> {
        // SAFETY: mapped for ever (`init`), and banked: no other CPU reaches these registers. On this CPU they are
        // used at start and with interrupts masked, one access at a time.
        unsafe { UniqueMmioPointer::new(self.cpu_interface) }
    }
}

impl InterruptController for GicV2 {
    fn init_cpu(&self, cpu: &Cpu) -> Result<(), InterruptError> {
        let mpidr = cpu.mpidr.load(Ordering::Relaxed);
        let slot = self.targets.get(cpu.id.0 as usize).ok_or(InterruptError::NoInterface(mpidr))?;
        {
            let _alone = self.configuration.lock();
            // SAFETY: mapped for ever (`init`), and the lock is held.
            let mut registers = unsafe { UniqueMmioPointer::new(self.distributor) };
            clear(&mut registers, 0..1);
            for offset in (CPENDSGIR..CPENDSGIR_END).step_by(4) {
                // SAFETY: every distributor has these banked registers, in its first page; the lock is held.
                unsafe { mmio::write(byte(self.distributor, offset, 0), !0_u32) };
            }
            for intid in 0..SHARED {
                // SAFETY: every distributor has the banked registers of the first 32 interrupts; the lock is held.
                unsafe { mmio::write(byte(self.distributor, offset_of!(Gicd, ipriorityr), intid), PRIORITY) };
            }
            // SAFETY: as above. The targets of a private interrupt read as the one CPU that it is private to; a
            // distributor for one CPU reads as zero.
            let own = unsafe { mmio::read::<u8>(byte(self.distributor, offset_of!(Gicd, itargetsr), 0)) };
            slot.store(if own == 0 { 1 } else { own }, Ordering::Relaxed);
        }
        let mut registers = self.cpu_interface();
        let interface = VirtAddr::from_ptr(self.cpu_interface.as_ptr());
        // Off until it is as it is to be.
        field!(registers, ctlr).write(0);
        for offset in (APR..NSAPR_END).step_by(4).chain([offset_of!(Gicc, bpr)]) {
            // SAFETY: registers of the CPU interface, this CPU's own, which takes no interrupts yet.
            unsafe { mmio::write(interface + offset as u64, 0_u32) };
        }
        field!(registers, pmr).write(0xff);
        field!(registers, ctlr).write(1);
        Ok(())
    }

    fn enable(&self, interrupt: Interrupt, cpu: &Cpu) {
        let _alone = self.configuration.lock();
        // SAFETY: mapped for ever (`init`), and the lock is held.
        let mut registers = unsafe { UniqueMmioPointer::new(self.distributor) };
        let intid = interrupt.intid;
        if intid >= field_shared!(registers, typer).read().num_irqs() {
            return;
        }
        if intid >= SHARED {
            let target = self.targets.get(cpu.id.0 as usize).map_or(1, |target| target.load(Ordering::Relaxed));
            // SAFETY: the distributor has this interrupt (above), and the lock is held.
            unsafe {
                mmio::write(byte(self.distributor, offset_of!(Gicd, ipriorityr), intid), PRIORITY);
                mmio::write(byte(self.distributor, offset_of!(Gicd, itargetsr), intid), target);
            }
        }
        // Two bits each, the upper one being edge; those of SGIs are read-only.
        if let Some(mut config) = field!(registers, icfgr).get(intid as usize / 16) {
            let bit = 2 << (intid % 16 * 2);
            let others = config.read() & !bit;
            config.write(if interrupt.trigger == Trigger::Edge { others | bit } else { others });
        }
        if let Some(mut enable) = field!(registers, isenabler).get(intid as usize / 32) {
            enable.write(1 << (intid % 32));
        }
    }

    fn disable(&self, intid: u32) {
        let word = intid as usize / 32;
        let _alone = self.configuration.lock();
        // SAFETY: mapped for ever (`init`), and the lock is held.
        let mut registers = unsafe { UniqueMmioPointer::new(self.distributor) };
        mmio::fill(field!(registers, icenabler), word..word + 1, 1 << (intid % 32));
    }

    fn set_message(&self, intid: u32, cpu: Option<&Cpu>) -> bool {
        match cpu {
            Some(cpu) => self.enable(Interrupt { intid, trigger: Trigger::Edge }, cpu),
            None => self.disable(intid),
        }
        let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
        let _alone = self.configuration.lock();
        // SAFETY: mapped for ever (`init`), and the lock is held.
        let mut registers = unsafe { UniqueMmioPointer::new(self.distributor) };
        if cpu.is_none() {
            mmio::fill(field!(registers, icpendr), word..word + 1, bit);
        }
        // The read completes the writes, before the device may send.
        field_shared!(registers, isenabler).get(word).is_some_and(|enabled| enabled.read() & bit != 0)
    }

    fn send(&self, cpu: &Cpu, number: u32) {
        let target = self.targets.get(cpu.id.0 as usize).map_or(0, |target| target.load(Ordering::Relaxed));
        // SAFETY: mapped for ever (`init`). No lock: the register is only written, in one piece, and CPUs that waited
        // for each other here would be the slowest part of a call.
        let mut registers = unsafe { UniqueMmioPointer::new(self.distributor) };
        order::send(|| field!(registers, sgir).write(u32::from(target) << SGIR_TARGETS | (number & 15)));
    }

    fn acknowledge(&self) -> Option<Acknowledged> {
        let mut registers = self.cpu_interface();
        order::acknowledge(|| {
            let token = field!(registers, iar).read();
            let intid = token & IAR_INTID;
            // 1020–1023 are the reason why there is none.
            (intid < 1020).then_some(Acknowledged { intid, token })
        })
    }

    fn end(&self, interrupt: Acknowledged) {
        // The handler's accesses to the device, and so the fall of its line, come before.
        barrier::dsb_sy();
        let mut registers = self.cpu_interface();
        field!(registers, eoir).write(interrupt.token);
    }
}
