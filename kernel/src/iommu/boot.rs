//! Taking the machine's SMMUs into use, at boot: each that the device tree describes, used or not, aborts all streams. A
//! machine without one, or with one that cannot be used, still has a kernel: that is logged, and devices behind one that
//! cannot be used are refused.

#![allow(unsafe_code, reason = "registers of the SMMU, and memory that devices access")]

use core::fmt;

use aarch64_cpu::registers::{MAIR_EL1, Readable as _, TCR_EL1};
use granule_smmuv3::registers::{IDR0, offset};
use granule_smmuv3::{PAGE1, ProbeError, Probed};
use spin::Once;

use super::domain::with_interrupts_masked;
use super::{IOMMUS, Iommu, Needs, NotifyMode, Port, Setup, fault, iommus, iova};
use crate::Kernel;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::platform::Smmu;
use crate::smp::Cpu;
use crate::trap;

/// Takes them into use: from here on no device behind one reaches memory that its driver has not attached.
#[inline(never)]
pub fn init(cpu: &'static Cpu, kernel: &'static Kernel) {
    let smmus = &kernel.platform.smmus;
    if smmus.is_empty() && kernel.platform.pcie.is_some() {
        crate::log::info!("no SMMU: devices reach all memory");
    }
    for (smmu, place) in smmus.iter().zip(&IOMMUS) {
        _ = start(cpu, kernel, smmu, place);
    }
    if iommus().next().is_some()
        && let Err(error) = fault::start_thread(cpu, smmus)
    {
        crate::log::error!("smmu: {error}: faults of devices are served when transfers end");
    }
}

/// Takes one into use, at its place; `None`, after a message, where it cannot be. It is made where it stays: a copy takes a
/// quarter of the stack.
#[inline(never)]
fn start(cpu: &'static Cpu, kernel: &'static Kernel, smmu: &Smmu, place: &Once<Iommu>) -> Option<()> {
    let failed = |why: fmt::Arguments<'_>| {
        crate::log::error!("smmu: {why}; devices behind the SMMU at {} are refused", smmu.registers.start());
    };
    if smmu.registers.size() < PAGE1 as u64 * 2 {
        failed(format_args!("{:?} are not both pages of its registers, 64 KiB each", smmu.registers));
        return None;
    }
    let registers = kernel.space.map_device(cpu, smmu.registers);
    let registers = registers.inspect_err(|error| failed(format_args!("its registers: {error}"))).ok()?;
    let read = |register: usize| {
        let answer = trap::probe::read::<u32>(registers + register as u64);
        answer.inspect_err(|fault| failed(format_args!("nothing answers at its registers: {fault}"))).ok()
    };
    let (features, _) = (read(offset::IDR0)?, read(offset::EVENTQ_PROD)?);
    // SAFETY: both pages of the SMMU by the device tree, just mapped, for ever; it has no other user.
    let mut port = unsafe { Port::new(registers, kernel.frames) };
    if !(smmu.coherent && IDR0::COHACC.is_set(features)) {
        // With an error it is shut by `probe`, which finds no memory then.
        let mapped = port.make_uncached(cpu, &kernel.space);
        _ = mapped.inspect_err(|error| crate::log::warn!("smmu: memory that no cache has: {error}"));
    }
    let probed = probe(port);
    let probed = probed.inspect_err(|error| failed(format_args!("{error}"))).ok()?;
    crate::log::info!("{}", probed.smmu.features());
    let Some(transfers) = iova::place(kernel.platform.pcie.as_ref(), &kernel.platform.memory) else {
        failed(format_args!("the host bridge's windows leave no addresses for transfers"));
        return None;
    };
    let setup =
        Setup { phandle: smmu.phandle, needs: needs(kernel), notify_mode: NotifyMode::from_bootargs(), transfers };
    if let Err(unfit) = setup.needs.check(probed.smmu.features()) {
        crate::log::warn!("smmu: devices cannot be bound to processes: {unfit}");
    }
    place.call_once(|| Iommu::new(probed, Metal(LinearView {}), kernel.frames, setup));
    Some(())
}

/// Takes the SMMU of `port` into use, from whatever state it is in.
///
/// # Errors
/// [`ProbeError`]: it lets nothing pass.
pub fn probe(port: Port) -> Result<Probed<Port>, ProbeError> {
    with_interrupts_masked(|| granule_smmuv3::probe(port))
}

/// The properties of the tables of this machine's CPUs.
fn needs(kernel: &Kernel) -> Needs {
    let end = kernel.platform.memory.iter().map(|bank| bank.end().0).max().unwrap_or(0);
    Needs {
        address_bits: 64 - TCR_EL1.read(TCR_EL1::T0SZ) as u8,
        output_bits: (u64::BITS - end.saturating_sub(1).leading_zeros()) as u8,
        size_changes: kernel.features().size_change.is_trusted(),
        memory_types: MAIR_EL1.get(),
    }
}
