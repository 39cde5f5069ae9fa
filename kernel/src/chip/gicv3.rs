//! Arm GICv3 and later (IHI 0069): distributor and redistributors in memory, CPU interface in system registers.
//!
//! The registers are those of the crate `arm-gic`. The distributor is shared, so a lock protects it; a redistributor
//! belongs to its CPU, which finds it by the affinity in GICR_TYPER; the CPU interface needs neither.
//! All interrupts are in group 1 of the non-secure state, with one priority.
//!
//! An earlier stage may have used all of it, and have left interrupts enabled, pending or active: each register that
//! matters is written, and no bit of it is kept.

#![allow(unsafe_code, reason = "registers of the interrupt controller")]

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use arm_gic::gicv3::registers::{Gicd, GicdCtlr, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup};
use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::{barrier, wait};
use heapless::Vec;
use safe_mmio::{UniqueMmioPointer, field};
use spin::Once;

use super::interrupt::{Acknowledged, InterruptController, InterruptError};
use super::its::ItsError;
use super::order;
use crate::mmio;
use crate::platform::{Interrupt, MAX_REDISTRIBUTOR_REGIONS, Redistributors, Trigger};
use crate::smp::cpu::{Cpu, MAX_CPUS};
use crate::sync::{IrqLock, rank};
use crate::trap::probe;

/// Bytes of a redistributor: RD and SGI frames.
const FRAMES: u64 = 0x2_0000;
/// With the two frames for virtual LPIs.
const FRAMES_VIRTUAL: u64 = 0x4_0000;
/// GICD_PIDR2 and GICR_PIDR2, whose ArchRev is 3 or 4 in a GICv3 and GICv4: the first thing that Linux reads, too.
const PIDR2: u64 = 0xffe8;
/// Bytes up to their end.
const PIDR2_END: u64 = PIDR2 + 4;
/// Reads of a register until what was written to it should have taken effect. Of a GIC it takes less than a thousand.
const PATIENCE: u32 = 1_000_000;
/// GICR_TYPER.
const TYPER: u64 = 8;
/// GICR_TYPER.PLPIS: it has LPIs.
const TYPER_PLPIS: u64 = 1 << 0;
/// GICR_CTLR, and its bit that enables the ITS's LPIs.
const CTLR: u64 = 0;
const CTLR_ENABLE_LPIS: u32 = 1 << 0;
/// GICR_PROPBASER and GICR_PENDBASER: where the tables for LPIs are, and that they are written back, inner shareable.
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
const TABLE_SHAREABILITY: u64 = 0b11 << 10;
const TABLE_INNER_SHAREABLE: u64 = 0b01 << 10;
const TABLE_ATTRIBUTES: u64 = TABLE_INNER_SHAREABLE | 0b111 << 7;
/// GICR_CTLR: what was written to it has not taken effect everywhere.
const CTLR_RWP: u32 = 1 << 3;
/// GICR_PENDBASER: the table is all zeros.
const PENDBASER_ZEROED: u64 = 1 << 62;
/// GICR_TYPER.VLPIS: the redistributor has four frames.
const TYPER_VLPIS: u64 = 1 << 1;
/// GICR_TYPER.Last: no redistributor follows in this region.
const TYPER_LAST: u64 = 1 << 4;

/// Redistributors one after the other.
struct Region {
    start: VirtAddr,
    physical: PhysAddr,
    size: u64,
}

/// Clears the active priorities of a group, ICC_AP0Rn_EL1 or ICC_AP1Rn_EL1, of which there are as many as bits of a
/// priority make necessary: one left over would keep this CPU from interrupts that are not more urgent.
macro_rules! clear_active {
    ($crm:literal, $bits:expr, $first:literal, $second:literal, $third:literal, $fourth:literal) => {{
        // SAFETY: registers of this CPU's own interface; no interrupt is being handled.
        unsafe {
            asm!(concat!("msr s3_0_c12_c", $crm, "_", $first, ", xzr"), options(nostack, preserves_flags));
            if $bits >= 6 {
                asm!(concat!("msr s3_0_c12_c", $crm, "_", $second, ", xzr"), options(nostack, preserves_flags));
            }
            if $bits >= 7 {
                asm!(
                    concat!("msr s3_0_c12_c", $crm, "_", $third, ", xzr"),
                    concat!("msr s3_0_c12_c", $crm, "_", $fourth, ", xzr"),
                    options(nostack, preserves_flags)
                );
            }
        }
    }};
}

struct GicV3 {
    distributor: IrqLock<GicDistributor<'static>, { rank::INTERRUPT }>,
    regions: Vec<Region, MAX_REDISTRIBUTOR_REGIONS>,
    stride: Option<u64>,
    /// For each CPU its redistributor, once it has found it.
    redistributors: [AtomicPtr<GicrSgi>; MAX_CPUS],
}

// SAFETY: the distributor is used under its lock; the redistributors' registers are touched by their own CPUs alone,
// and GICR_TYPER, which all read while they look for theirs, does not change.
unsafe impl Sync for GicV3 {}
// SAFETY: as above; nothing in it belongs to the CPU that made it.
unsafe impl Send for GicV3 {}

static GIC: Once<GicV3> = Once::new();

pub(super) fn init(
    distributor: PhysRange,
    redistributors: &Redistributors,
    cpus: usize,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<&'static dyn InterruptController, InterruptError> {
    let registers = map(distributor).ok_or(InterruptError::NotMapped(distributor))?;
    let gicd = NonNull::new(registers.as_ptr::<Gicd>()).ok_or(InterruptError::NotMapped(distributor))?;
    probe::read::<u32>(registers).map_err(|fault| InterruptError::NoAnswer(distributor.start(), fault))?;
    if !is_gic(registers, distributor) {
        return Err(InterruptError::NoController);
    }
    // SAFETY: by the device tree a GICv3 distributor is there, `map` has mapped it for ever as device memory, and this
    // is the only place that makes a pointer to it.
    let mut gicd = unsafe { UniqueMmioPointer::new(gicd) };
    // Affinity routing may be changed only while no group is enabled.
    let routing = field!(gicd, ctlr).read() & GicdCtlr::ARE_S;
    set_control(&mut gicd, routing);
    set_control(&mut gicd, GicdCtlr::ARE_S);
    clear_shared(&mut gicd);
    // An interrupt that was being disabled is not configured before it is.
    await_writes(&mut gicd);
    let mut gicd = GicDistributor::new(gicd);
    gicd.configure_default_settings();

    let mut regions = Vec::new();
    for &region in &redistributors.regions {
        // A region may have room for hundreds of CPUs. There are as many redistributors as CPUs.
        let used = (cpus as u64).saturating_mul(redistributors.stride.unwrap_or(FRAMES_VIRTUAL)).min(region.size());
        let used = PhysRange::from_size(region.start(), used).unwrap_or(region);
        let registers = map(used).ok_or(InterruptError::NotMapped(used))?;
        if let Err(fault) = probe::read::<u32>(registers) {
            crate::log::warn!("interrupt controller: no redistributors at {}: {fault}", used.start());
            continue;
        }
        if !is_gic(registers, used) {
            continue;
        }
        // As many as in the description, which has the same room.
        let _ = regions.push(Region { start: registers, physical: used.start(), size: used.size() });
    }
    let stride = redistributors.stride;
    Ok(GIC.call_once(|| GicV3 {
        distributor: IrqLock::new(gicd),
        regions,
        stride,
        redistributors: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS],
    }))
}

/// Writes the distributor's control register, and waits until that has taken effect.
fn set_control(mut gicd: &mut UniqueMmioPointer<'_, Gicd>, control: GicdCtlr) {
    field!(gicd, ctlr).write(control);
    await_writes(gicd);
}

/// Waits until what was written to the distributor has taken effect; not for ever, where that is none.
fn await_writes(mut gicd: &mut UniqueMmioPointer<'_, Gicd>) {
    if !is_over(|| !field!(gicd, ctlr).read().contains(GicdCtlr::RWP)) {
        crate::log::warn!("interrupt controller: what was written to the distributor does not take effect");
    }
}

/// Waits for `is_done`, but not for ever; whether it came.
fn is_over(mut is_done: impl FnMut() -> bool) -> bool {
    (0..PATIENCE).any(|_| {
        let done = is_done();
        if !done {
            wait::relax();
        }
        done
    })
}

/// Whether the frame of a GICv3 or GICv4 is mapped at `registers`, with a warning if not. A description of fewer bytes
/// than up to the register that has it is believed.
fn is_gic(registers: VirtAddr, range: PhysRange) -> bool {
    if range.size() < PIDR2_END {
        return true;
    }
    let revision = probe::read::<u32>(registers + PIDR2).map(|identity| identity >> 4 & 0xf);
    let is_gic = matches!(revision, Ok(3 | 4));
    if !is_gic {
        crate::log::warn!("interrupt controller: no GICv3 or GICv4 is at {}", range.start());
    }
    is_gic
}

/// Ends what an earlier stage had shared interrupts do: none is enabled, pending, active or unmaskable.
fn clear_shared(mut gicd: &mut UniqueMmioPointer<'_, Gicd>) {
    let kind = field!(gicd, typer).read();
    let (shared, extended) = (1..1 + kind.num_spis() as usize / 32, 0..kind.num_espis() as usize / 32);
    mmio::fill(field!(gicd, icenabler), shared.clone(), !0);
    mmio::fill(field!(gicd, icpendr), shared.clone(), !0);
    mmio::fill(field!(gicd, icactiver), shared.clone(), !0);
    mmio::fill(field!(gicd, icenabler_e), extended.clone(), !0);
    mmio::fill(field!(gicd, icpendr_e), extended.clone(), !0);
    mmio::fill(field!(gicd, icactive_e), extended.clone(), !0);
    if kind.nmi_supported() {
        mmio::fill(field!(gicd, inmir), shared, 0);
        mmio::fill(field!(gicd, inmr_e), extended, 0);
    }
}

/// As [`clear_shared`], for a CPU's private interrupts, SGIs among them; they were just disabled.
fn clear_private(mut frames: &mut UniqueMmioPointer<'_, GicrSgi>, has_unmaskable: bool) {
    // Of extended ones as well; where there are none, writes have no effect.
    let words = 0..3;
    let mut sgi = field!(frames, sgi);
    mmio::fill(field!(sgi, icpendr), words.clone(), !0);
    mmio::fill(field!(sgi, icactiver), words.clone(), !0);
    if has_unmaskable {
        mmio::fill(field!(sgi, inmir), words, 0);
    }
}

impl GicV3 {
    /// The redistributor of the CPU with this affinity.
    fn find(&self, mpidr: u64) -> Option<NonNull<GicrSgi>> {
        for &Region { start, size, .. } in &self.regions {
            let mut offset = 0;
            while offset + FRAMES <= size {
                let frame = start + offset;
                // A region may have room for more than there are.
                let Ok(typer) = probe::read::<u64>(frame + TYPER) else { break };
                // Aff3.Aff2.Aff1.Aff0 in one word; MPIDR_EL1 has a gap before Aff3.
                let affinity = (typer >> 32 & 0xff_ffff) | (typer >> 56 << 32);
                if affinity == mpidr {
                    return NonNull::new(frame.as_ptr());
                }
                if typer & TYPER_LAST != 0 {
                    break;
                }
                let frames = if typer & TYPER_VLPIS != 0 { FRAMES_VIRTUAL } else { FRAMES };
                offset += self.stride.unwrap_or(frames);
            }
        }
        None
    }

    /// This CPU's redistributor. `cpu` is this CPU.
    fn redistributor(&self, cpu: &Cpu) -> Option<GicRedistributor<'_>> {
        let frames = NonNull::new(self.redistributors.get(cpu.id.0 as usize)?.load(Ordering::Relaxed))?;
        // SAFETY: `find` saw a mapped redistributor there; it is this CPU's, and interrupts are masked or the CPU is
        // starting, so no other CPU uses it now.
        Some(GicRedistributor::new(unsafe { UniqueMmioPointer::new(frames) }))
    }
}

/// Gives this CPU's redistributor its tables for LPIs, of configurations and of what is pending, for numbers of
/// `id_bits` bits. Returns what the ITS calls it: bits 51:16 of its address, or its number. `cpu` is this CPU.
///
/// # Errors
/// It has no LPIs, has other tables, or does not see what is in the caches.
pub(super) fn enable_lpis(
    cpu: &Cpu,
    [configurations, pending]: [PhysAddr; 2],
    id_bits: u32,
    by_address: bool,
) -> Result<u64, ItsError> {
    let frame = GIC.get().and_then(|gic| Some(gic.redistributors.get(cpu.id.0 as usize)?.load(Ordering::Relaxed)));
    let frame =
        frame.filter(|frame| !frame.is_null()).map(|frame| VirtAddr::from_ptr(frame)).ok_or(ItsError::NoLpis)?;
    // SAFETY: a register of this CPU's redistributor, which is mapped for ever; these have no side effects.
    let read = |offset| unsafe { mmio::read::<u64>(frame + offset) };
    // SAFETY: as above. No other code writes them, and the tables that they name are this redistributor's alone.
    let write = |offset, value| unsafe { mmio::write::<u64>(frame + offset, value) };
    let control = frame + CTLR;
    let typer = read(TYPER);
    if typer & TYPER_PLPIS == 0 {
        return Err(ItsError::NoLpis);
    }
    // An earlier stage's tables are out of use, where the redistributor lets LPIs be disabled again.
    // SAFETY: as above.
    unsafe { mmio::write(control, 0_u32) };
    // SAFETY: as above.
    let is_written = is_over(|| unsafe { mmio::read::<u32>(control) } & CTLR_RWP == 0);
    // SAFETY: as above.
    if !is_written || unsafe { mmio::read::<u32>(control) } & CTLR_ENABLE_LPIS != 0 {
        return Err(ItsError::HasTables);
    }
    write(PROPBASER, configurations.0 | TABLE_ATTRIBUTES | u64::from(id_bits - 1));
    write(PENDBASER, pending.0 | TABLE_ATTRIBUTES | PENDBASER_ZEROED);
    if [PROPBASER, PENDBASER].iter().any(|&offset| read(offset) & TABLE_SHAREABILITY != TABLE_INNER_SHAREABLE) {
        return Err(ItsError::NotCoherent);
    }
    barrier::dsb_sy();
    // SAFETY: as above.
    unsafe { mmio::write(control, CTLR_ENABLE_LPIS) };
    barrier::dsb_sy();
    if !by_address {
        return Ok(typer >> 8 & 0xffff);
    }
    let inside = |region: &&Region| frame >= region.start && frame - region.start < region.size;
    let region = GIC.get().and_then(|gic| gic.regions.iter().find(inside)).ok_or(ItsError::NoLpis)?;
    Ok((region.physical.0 + (frame - region.start)) >> 16)
}

/// Makes this CPU's interface take interrupts of group 1, with none active.
fn init_interface() {
    // SAFETY: ICC_SRE_EL1 = 7 (S3_0_C12_C12_5): the interface is in system registers, and no interrupt bypasses it.
    // ICC_CTLR_EL1 = 0 (S3_0_C12_C12_4): ending an interrupt deactivates it too. ICC_BPR1_EL1 = 0 (S3_0_C12_C12_3):
    // nothing is split off for preemption. All are this CPU's own, and interrupts are masked.
    unsafe {
        asm!(
            "msr s3_0_c12_c12_5, {sre}",
            "isb",
            "msr s3_0_c12_c12_4, xzr",
            "msr s3_0_c12_c12_3, xzr",
            sre = in(reg) 0b111_u64,
            options(nostack, preserves_flags)
        );
    }
    let control: u64;
    // SAFETY: ICC_CTLR_EL1 is read.
    unsafe { asm!("mrs {}, s3_0_c12_c12_4", out(reg) control, options(nomem, nostack, preserves_flags)) };
    let priority_bits = (control >> 8 & 0b111) + 1;
    if has_group0(priority_bits) {
        GicCpuInterface::enable_group0(false);
        clear_active!("8", priority_bits, "4", "5", "6", "7");
    }
    clear_active!("9", priority_bits, "0", "1", "2", "3");
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    barrier::isb();
}

/// Whether group 0 is this exception level's, and not EL3's: then the lowest priority mask that is not zero can be set.
/// Else the written value is shifted into the non-secure half, and reads as zero (IHI 0069, 4.8.1).
fn has_group0(priority_bits: u64) -> bool {
    GicCpuInterface::set_priority_mask(1 << (8 - priority_bits.min(8)));
    GicCpuInterface::get_priority_mask() != 0
}

impl InterruptController for GicV3 {
    fn init_cpu(&self, cpu: &Cpu) -> Result<(), InterruptError> {
        let mpidr = cpu.mpidr.load(Ordering::Relaxed);
        // An SGI names at most 16 CPUs of a cluster without the range selector, which few GICs have.
        let reachable = mpidr & 0xff < 16;
        let frames = self.find(mpidr).filter(|_| reachable).ok_or(InterruptError::NoInterface(mpidr))?;
        if let Some(slot) = self.redistributors.get(cpu.id.0 as usize) {
            slot.store(frames.as_ptr(), Ordering::Relaxed);
        }
        let mut redistributor = self.redistributor(cpu).ok_or(InterruptError::NoInterface(mpidr))?;
        redistributor.power_on();
        // It fails where the firmware has woken it, which is just as well.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        let has_unmaskable = self.distributor.lock().typer().nmi_supported();
        // SAFETY: as for `redistributor`, whose use is over.
        clear_private(&mut unsafe { UniqueMmioPointer::new(frames) }, has_unmaskable);
        init_interface();
        Ok(())
    }

    fn enable(&self, interrupt: Interrupt, cpu: &Cpu) {
        let Ok(intid) = IntId::try_from(interrupt.intid) else { return };
        let trigger = match interrupt.trigger {
            Trigger::Edge => arm_gic::Trigger::Edge,
            Trigger::Level => arm_gic::Trigger::Level,
        };
        // The calls fail for numbers of the other kind only. The lock also masks interrupts, which a redistributor's
        // read-modify-writes need.
        let mut distributor = self.distributor.lock();
        if intid.is_private() {
            if let Some(mut redistributor) = self.redistributor(cpu) {
                // SGIs are edges, and their configuration is read-only.
                if !intid.is_sgi() {
                    let _ = redistributor.set_trigger(intid, trigger);
                }
                let _ = redistributor.enable_interrupt(intid, true);
            }
        } else {
            let _ = distributor.set_trigger(intid, trigger);
            let _ = distributor.set_routing(intid, Some(cpu.mpidr.load(Ordering::Relaxed)));
            let _ = distributor.enable_interrupt(intid, true);
        }
    }

    fn disable(&self, intid: u32) {
        if let Ok(intid) = IntId::try_from(intid) {
            // It fails for private ones.
            let _ = self.distributor.lock().enable_interrupt(intid, false);
        }
    }

    fn send(&self, cpu: &Cpu, number: u32) {
        let [affinity0, affinity1, affinity2, _, affinity3, ..] = cpu.mpidr.load(Ordering::Relaxed).to_le_bytes();
        let target = SgiTarget::List { affinity3, affinity2, affinity1, target_list: 1 << (affinity0 & 15) };
        // It fails for numbers above 15.
        let _ =
            order::send(|| GicCpuInterface::send_sgi(IntId::sgi(number & 15), target, SgiTargetGroup::CurrentGroup1));
        barrier::isb();
    }

    fn acknowledge(&self) -> Option<Acknowledged> {
        let intid = order::acknowledge(|| GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1))?;
        let number = u32::from(intid);
        // 1020–1023 are the reason why there is none.
        (!(1020..1024).contains(&number)).then_some(Acknowledged { intid: number, token: number })
    }

    fn end(&self, interrupt: Acknowledged) {
        if let Ok(intid) = IntId::try_from(interrupt.token) {
            GicCpuInterface::end_interrupt(intid, InterruptGroup::Group1);
        }
        barrier::isb();
    }
}

const _: () = assert!(size_of::<GicrSgi>() as u64 == FRAMES);
