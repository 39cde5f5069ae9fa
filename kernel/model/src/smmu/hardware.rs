//! Which SMMU the model is: the values of its ID registers, and what it does where the architecture leaves a choice.

/// When commands are taken from the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// All of them within the write of PROD, as QEMU does.
    AtOnce,
    /// So many whenever CONS is read.
    PerLook(u32),
    /// Those that the test asks for ([`SmmuModel::consume`](super::SmmuModel::consume)).
    ByHand,
}

/// How a full event queue is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// By OVFLG in PROD, as in the architecture.
    Flag,
    /// By the global error EVENTQ_ABT_ERR, as QEMU does.
    GlobalError,
}

/// An SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hardware {
    /// Its walks are coherent (IDR0.COHACC).
    pub coherent: bool,
    /// The machine's description has them so (`dma-coherent`).
    pub dma_coherent: bool,
    /// Its stream table may have two levels.
    pub two_levels: bool,
    /// It has range invalidation.
    pub range_invalidation: bool,
    /// A leaf may change its size while the TLB has it. IDR3.BBML permits that in any case: false is for tests of
    /// software that does not rely on it.
    pub size_changes: bool,
    /// Bits of a stream's number.
    pub stream_bits: u8,
    /// Devices may translate by themselves, and call their transactions translated (IDR0.ATS).
    pub ats: bool,
    /// IDR0.STALL_MODEL.
    pub stall_model: u8,
    /// A terminated transaction is always aborted to the device: a context without CD.A is illegal.
    pub term_model: bool,
    /// It can override a transaction's privilege (IDR1.ATTR_PERMS_OVR). Else PRIVCFG does not count.
    pub overrides_privilege: bool,
    /// Pages of EL1 can be reached by transactions that are not privileged, as on QEMU's. Its IIDR is 0.
    pub ignores_privilege: bool,
    /// IDR5.OAS.
    pub output: u8,
    /// log2 of the longest command queue.
    pub command_bits: u8,
    /// log2 of the longest event queue.
    pub event_bits: u8,
    /// The architecture's minor number.
    pub minor: u8,
    /// How often a register that answers a write (CR0ACK, GBPA, IRQ_CTRLACK) is read before it does.
    pub lag: u32,
    /// When it takes commands.
    pub pace: Pace,
    /// How it reports lost events.
    pub overflow: Overflow,
}

impl Hardware {
    /// QEMU 10.0's, as far as its registers show; each acknowledgement takes a few looks.
    pub const QEMU: Self = Self {
        coherent: true,
        dma_coherent: true,
        two_levels: true,
        range_invalidation: true,
        size_changes: true,
        stream_bits: 16,
        ats: false,
        stall_model: 1,
        term_model: true,
        overrides_privilege: false,
        ignores_privilege: true,
        output: 4,
        command_bits: 19,
        event_bits: 19,
        minor: 1,
        lag: 3,
        pace: Pace::AtOnce,
        overflow: Overflow::GlobalError,
    };

    /// An older and poorer one that behaves to the letter of the architecture: one level, no ranges, commands when it
    /// gets round to them, transactions that could stall.
    pub const PLAIN: Self = Self {
        two_levels: false,
        range_invalidation: false,
        stream_bits: 8,
        stall_model: 0,
        term_model: false,
        overrides_privilege: true,
        ignores_privilege: false,
        minor: 0,
        pace: Pace::PerLook(1),
        overflow: Overflow::Flag,
        ..Self::QEMU
    };

    /// Whether it reads what the CPUs' caches have; else what is in memory.
    pub(crate) const fn sees_caches(&self) -> bool {
        self.coherent && self.dma_coherent
    }

    /// IDR0 to IDR5, IIDR, AIDR.
    pub(crate) const fn id_registers(&self) -> [u32; 8] {
        // S1P, S2P, TTF = AArch64; ASID16, VMID16; little-endian.
        let idr0 = 0b1011
            | flag(self.coherent, 4)
            | flag(self.ats, 10)
            | flag(true, 12)
            | flag(true, 18)
            | 0b10 << 21
            | (self.stall_model as u32) << 24
            | flag(self.term_model, 26)
            | flag(self.two_levels, 27);
        let idr1 = self.stream_bits as u32
            | (self.event_bits as u32) << 16
            | (self.command_bits as u32) << 21
            | flag(self.overrides_privilege, 26);
        let idr3 = 1 << 2 | 1 << 4 | flag(self.range_invalidation, 10) | 0b10 << 11;
        let idr5 = self.output as u32 | 0b111 << 4;
        // Arm's number for implementers.
        let iidr = if self.ignores_privilege { 0 } else { 0x43b };
        [idr0, idr1, 0, idr3, 0, idr5, iidr, self.minor as u32]
    }

    /// Bits of a physical address.
    pub(crate) const fn output_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 48][self.output as usize & 7]
    }
}

const fn flag(set: bool, bit: u32) -> u32 {
    (set as u32) << bit
}
