//! From whatever state the SMMU is in to one in which every stream aborts and both queues work (IHI 0070, 3.11, 6.3).
//!
//! The order, and what each step is in time for:
//!
//! 1. GBPA.ABORT, before anything else: out of reset it lets every transaction pass while SMMUEN = 0.
//! 2. CR0 = 0: the use of the SMMU before is over, queues included, and what follows may be written.
//! 3. Interrupts off, and how memory is reached: CR1, CR2.
//! 4. The stream table. Nothing uses it yet.
//! 5. Errors of the past are acknowledged, one of which would stop the command queue.
//! 6. The command queue, and by it: everything cached of streams, contexts and translations goes, which may be the
//!    previous user's or what reset left.
//! 7. The event queue, before anything can leave an event; interrupts.
//! 8. ATSCHK, where devices may translate by themselves: what they call translated is looked up in the stream table,
//!    which permits it to none. Without it such transactions pass both the table and the page tables.
//! 9. SMMUEN: from here on the stream table decides.
//!
//! Each write of a control register takes effect when its acknowledge register has the value, and is waited for.

#![allow(unsafe_code, reason = "frees DMA memory of an SMMU that was not started")]

use tock_registers::LocalRegisterCopy;

use crate::queue::{COMMAND_BYTES, COMMAND_QUEUE_BITS};
use crate::registers::{AIDR, CR0, CR1, CR2, GBPA, IRQ_CTRL, QUEUE_BASE, offset};
use crate::{
    Asids, Command, CommandQueue, DmaMemory, Events, Features, Memory, Platform, ProbeError, RECORD_BYTES, Smmu, Stall,
    Streams,
};

/// How long a register may take to answer, and the command queue to go on.
pub const LIMIT_MS: u64 = 1000;

/// log2 of the events that the queue holds: 128 are a page of memory. A device of today's that faults has a few
/// transactions under way; what does not fit is lost, and known to be.
pub const EVENT_QUEUE_BITS: u32 = 7;

/// An SMMU in use: the part that all CPUs share, and those that have one user at a time.
pub struct Probed<P: Platform + Memory> {
    /// Commands and invalidation.
    pub smmu: Smmu<P>,
    /// The stream table, in which all streams abort.
    pub streams: Streams<P>,
    /// The event queue.
    pub events: Events,
    /// Numbers for address spaces.
    pub asids: Asids,
}

/// Takes the SMMU of `platform` into use: all streams abort, nothing is cached, its interrupts are on. With interrupts
/// masked.
///
/// Errors from before its interrupts were handled are found by [`Smmu::acknowledge_errors`].
///
/// # Errors
/// It cannot be used. It lets nothing pass, unless it is no SMMUv3 or did not take even that.
pub fn probe<P: Platform + Memory>(platform: P) -> Result<Probed<P>, ProbeError> {
    let version = LocalRegisterCopy::<u32, AIDR::Register>::new(platform.read32(offset::AIDR)).read(AIDR::MAJOR);
    if version != 0 {
        return Err(ProbeError::Version(3 + version as u8));
    }
    shut(&platform)?;
    let features = Features::read(&platform);
    check(&features)?;

    let Memories { streams, commands, events } = allocate(&features, &platform)?;

    set_acknowledged(&platform, (offset::IRQ_CTRL, "IRQ_CTRLACK"), 0)?;
    platform.write32(offset::CR1, attributes(features.coherent));
    // Numbers of address spaces are the SMMU's own, so what CPUs broadcast of theirs would hit the wrong ones.
    platform.write32(offset::CR2, (CR2::PTM::SET + CR2::RECINVSID::SET).value);
    platform.write64(offset::STRTAB_BASE, streams.base());
    platform.write32(offset::STRTAB_BASE_CFG, streams.configuration());

    platform.write64(offset::CMDQ_BASE, base(&commands, COMMAND_QUEUE_BITS));
    platform.write32(offset::CMDQ_PROD, 0);
    platform.write32(offset::CMDQ_CONS, 0);
    // An error of the past would stop the queue at once.
    platform.write32(offset::GERRORN, platform.read32(offset::GERROR));
    // The tables and queues are in memory, not on their way, when the SMMU begins to read them.
    platform.dmb_oshst();
    let on = CR0::CMDQEN::SET;
    set_acknowledged(&platform, (offset::CR0, "CR0ACK"), on.value)?;
    let commands = CommandQueue::new(commands);
    commands.issue(&platform, &[Command::CFGI_ALL, Command::TLBI_NSNH_ALL])?;

    let events = Events::new(events);
    platform.write64(offset::EVENTQ_BASE, events.base());
    platform.write32(offset::EVENTQ_PROD, 0);
    platform.write32(offset::EVENTQ_CONS, 0);
    let on = on + CR0::EVENTQEN::SET;
    set_acknowledged(&platform, (offset::CR0, "CR0ACK"), on.value)?;

    if features.msi {
        // No address: they are wired.
        platform.write64(offset::GERROR_IRQ_CFG0, 0);
        platform.write64(offset::EVENTQ_IRQ_CFG0, 0);
    }
    let interrupts = IRQ_CTRL::GERROR::SET + IRQ_CTRL::EVENTQ::SET;
    set_acknowledged(&platform, (offset::IRQ_CTRL, "IRQ_CTRLACK"), interrupts.value)?;
    let mut on = on;
    if features.ats {
        // It must not change while SMMUEN is set.
        on += CR0::ATSCHK::SET;
        set_acknowledged(&platform, (offset::CR0, "CR0ACK"), on.value)?;
    }
    set_acknowledged(&platform, (offset::CR0, "CR0ACK"), (on + CR0::SMMUEN::SET).value)?;

    let asids = Asids::new(features.asid_bits);
    Ok(Probed { smmu: Smmu::new(platform, features, commands), streams, events, asids })
}

/// Whether this driver can use an SMMU that has `features`.
fn check(features: &Features) -> Result<(), ProbeError> {
    if !features.stage1 || !features.aarch64 {
        return Err(ProbeError::NoStage1);
    }
    if !features.little_endian {
        return Err(ProbeError::BigEndian);
    }
    if features.stall == Stall::Always {
        return Err(ProbeError::AlwaysStalls);
    }
    for (is_set, name) in [
        (features.queues_preset, "QUEUES_PRESET"),
        (features.tables_preset, "TABLES_PRESET"),
        (features.relative, "REL"),
    ] {
        if is_set {
            return Err(ProbeError::Preset(name));
        }
    }
    for (what, bits, needed) in [
        ("command queue", features.command_queue_bits, COMMAND_QUEUE_BITS as u8),
        ("event queue", features.event_queue_bits, EVENT_QUEUE_BITS as u8),
    ] {
        if bits < needed {
            return Err(ProbeError::ShortQueue { what, bits, needed });
        }
    }
    Ok(())
}

/// The value for CR1: tables and queues are accessed as the CPUs have them mapped.
fn attributes(coherent: bool) -> u32 {
    let (queues, tables) = match coherent {
        true => (
            CR1::QUEUE_IC::WriteBack + CR1::QUEUE_OC::WriteBack + CR1::QUEUE_SH::InnerShareable,
            CR1::TABLE_IC::WriteBack + CR1::TABLE_OC::WriteBack + CR1::TABLE_SH::InnerShareable,
        ),
        false => (
            CR1::QUEUE_IC::NonCacheable + CR1::QUEUE_OC::NonCacheable + CR1::QUEUE_SH::OuterShareable,
            CR1::TABLE_IC::NonCacheable + CR1::TABLE_OC::NonCacheable + CR1::TABLE_SH::OuterShareable,
        ),
    };
    (queues + tables).value
}

/// The structures in memory. They stay when an SMMU does not answer, which may know of them by then.
struct Memories<P: Platform + Memory> {
    streams: Streams<P>,
    commands: DmaMemory,
    events: DmaMemory,
}

/// All of it or nothing.
fn allocate<P: Platform + Memory>(features: &Features, memory: &P) -> Result<Memories<P>, ProbeError> {
    // Aligned to its size: the SMMU takes the lower bits of a queue's address for zero.
    let queue = |bytes| memory.allocate(bytes, bytes);
    // SAFETY: it is from this source, and no SMMU has its address.
    let free = |memories| unsafe { memory.free(memories) };
    let commands = queue(COMMAND_BYTES << COMMAND_QUEUE_BITS).ok_or(ProbeError::OutOfMemory("command queue"))?;
    let Some(events) = queue(RECORD_BYTES << EVENT_QUEUE_BITS) else {
        free(commands);
        return Err(ProbeError::OutOfMemory("event queue"));
    };
    match Streams::new(features, memory) {
        Some(streams) => Ok(Memories { streams, commands, events }),
        None => {
            free(commands);
            free(events);
            Err(ProbeError::OutOfMemory("stream table"))
        }
    }
}

/// The value for CMDQ_BASE.
fn base(slots: &DmaMemory, bits: u32) -> u64 {
    (QUEUE_BASE::ALLOCATE::SET + QUEUE_BASE::ADDRESS.val(slots.phys().0 >> 5) + QUEUE_BASE::LOG2SIZE.val(bits.into()))
        .value
}

/// Lets nothing pass: aborts what comes while it does not translate, and then does not translate.
pub(crate) fn shut<P: Platform>(platform: &P) -> Result<(), ProbeError> {
    let gbpa = LocalRegisterCopy::<u32, GBPA::Register>::new(platform.read32(offset::GBPA));
    if !gbpa.is_set(GBPA::ABORT) {
        // An earlier update comes to its end first.
        let was = wait_for(platform, (offset::GBPA, "GBPA.UPDATE"), GBPA::UPDATE::SET.mask(), 0)?;
        let mut gbpa = LocalRegisterCopy::<u32, GBPA::Register>::new(was);
        gbpa.modify(GBPA::ABORT::SET + GBPA::UPDATE::SET);
        platform.write32(offset::GBPA, gbpa.get());
        wait_for(platform, (offset::GBPA, "GBPA.UPDATE"), GBPA::UPDATE::SET.mask(), 0)?;
    }
    set_acknowledged(platform, (offset::CR0, "CR0ACK"), 0)
}

/// Writes a control register, and waits until the one after it, which acknowledges it, has the same value.
fn set_acknowledged<P: Platform>(platform: &P, register: (usize, &'static str), value: u32) -> Result<(), ProbeError> {
    const { assert!(offset::CR0ACK == offset::CR0 + 4 && offset::IRQ_CTRLACK == offset::IRQ_CTRL + 4) }
    let (offset, acknowledgement) = register;
    platform.write32(offset, value);
    wait_for(platform, (offset + 4, acknowledgement), u32::MAX, value).map(drop)
}

/// Waits until the bits of `mask` of a register are `wanted`; the register's value.
fn wait_for<P: Platform>(
    platform: &P,
    (offset, register): (usize, &'static str),
    mask: u32,
    wanted: u32,
) -> Result<u32, ProbeError> {
    let mut found = platform.read32(offset);
    if found & mask == wanted {
        return Ok(found);
    }
    let since = platform.microseconds();
    while found & mask != wanted {
        if platform.microseconds().saturating_sub(since) > 1000 * LIMIT_MS {
            return Err(ProbeError::NoAnswer { register, wanted, found });
        }
        platform.relax();
        found = platform.read32(offset);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
