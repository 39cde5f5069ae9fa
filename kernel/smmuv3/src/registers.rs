//! The registers (IHI 0070, chapter 6): their offsets and fields.
//!
//! They are accessed by offset through the [`Platform`](crate::Platform), each once where it is needed; what was read
//! is a copy, whose fields have names.

#![allow(missing_docs, reason = "the names are the specification's, and the macro writes items that take no comment")]

use tock_registers::register_bitfields;

use crate::platform::PAGE1;

/// Offsets. 32 bits wide but for those named so.
pub mod offset {
    use super::PAGE1;

    pub const IDR0: usize = 0x00;
    pub const IDR1: usize = 0x04;
    pub const IDR2: usize = 0x08;
    pub const IDR3: usize = 0x0c;
    pub const IDR4: usize = 0x10;
    pub const IDR5: usize = 0x14;
    pub const IIDR: usize = 0x18;
    pub const AIDR: usize = 0x1c;
    pub const CR0: usize = 0x20;
    pub const CR0ACK: usize = 0x24;
    pub const CR1: usize = 0x28;
    pub const CR2: usize = 0x2c;
    pub const GBPA: usize = 0x44;
    pub const IRQ_CTRL: usize = 0x50;
    pub const IRQ_CTRLACK: usize = 0x54;
    pub const GERROR: usize = 0x60;
    pub const GERRORN: usize = 0x64;
    /// 64 bits.
    pub const GERROR_IRQ_CFG0: usize = 0x68;
    /// 64 bits.
    pub const STRTAB_BASE: usize = 0x80;
    pub const STRTAB_BASE_CFG: usize = 0x88;
    /// 64 bits.
    pub const CMDQ_BASE: usize = 0x90;
    pub const CMDQ_PROD: usize = 0x98;
    pub const CMDQ_CONS: usize = 0x9c;
    /// 64 bits.
    pub const EVENTQ_BASE: usize = 0xa0;
    /// 64 bits.
    pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
    pub const EVENTQ_PROD: usize = PAGE1 + 0xa8;
    pub const EVENTQ_CONS: usize = PAGE1 + 0xac;
}

register_bitfields! {u32,
    pub IDR0 [
        S2P OFFSET(0) NUMBITS(1) [],
        S1P OFFSET(1) NUMBITS(1) [],
        TTF OFFSET(2) NUMBITS(2) [
            Aarch32 = 1,
            Aarch64 = 2,
            Both = 3
        ],
        COHACC OFFSET(4) NUMBITS(1) [],
        BTM OFFSET(5) NUMBITS(1) [],
        HTTU OFFSET(6) NUMBITS(2) [
            None = 0,
            Access = 1,
            AccessAndDirty = 2
        ],
        HYP OFFSET(9) NUMBITS(1) [],
        ATS OFFSET(10) NUMBITS(1) [],
        ASID16 OFFSET(12) NUMBITS(1) [],
        MSI OFFSET(13) NUMBITS(1) [],
        SEV OFFSET(14) NUMBITS(1) [],
        PRI OFFSET(16) NUMBITS(1) [],
        VMID16 OFFSET(18) NUMBITS(1) [],
        CD2L OFFSET(19) NUMBITS(1) [],
        TTENDIAN OFFSET(21) NUMBITS(2) [
            Mixed = 0,
            Little = 2,
            Big = 3
        ],
        STALL_MODEL OFFSET(24) NUMBITS(2) [
            Both = 0,
            Terminate = 1,
            Force = 2
        ],
        TERM_MODEL OFFSET(26) NUMBITS(1) [],
        ST_LEVEL OFFSET(27) NUMBITS(2) [
            Linear = 0,
            TwoLevels = 1
        ]
    ],
    pub IDR1 [
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        SSIDSIZE OFFSET(6) NUMBITS(5) [],
        PRIQS OFFSET(11) NUMBITS(5) [],
        EVENTQS OFFSET(16) NUMBITS(5) [],
        CMDQS OFFSET(21) NUMBITS(5) [],
        ATTR_PERMS_OVR OFFSET(26) NUMBITS(1) [],
        ATTR_TYPES_OVR OFFSET(27) NUMBITS(1) [],
        REL OFFSET(28) NUMBITS(1) [],
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        TABLES_PRESET OFFSET(30) NUMBITS(1) []
    ],
    pub IDR3 [
        HAD OFFSET(2) NUMBITS(1) [],
        XNX OFFSET(4) NUMBITS(1) [],
        RIL OFFSET(10) NUMBITS(1) [],
        BBML OFFSET(11) NUMBITS(2) []
    ],
    pub IDR5 [
        OAS OFFSET(0) NUMBITS(3) [],
        GRAN4K OFFSET(4) NUMBITS(1) [],
        GRAN16K OFFSET(5) NUMBITS(1) [],
        GRAN64K OFFSET(6) NUMBITS(1) [],
        VAX OFFSET(10) NUMBITS(2) [],
        STALL_MAX OFFSET(16) NUMBITS(16) []
    ],
    pub AIDR [
        MINOR OFFSET(0) NUMBITS(4) [],
        MAJOR OFFSET(4) NUMBITS(4) []
    ],
    pub IIDR [
        IMPLEMENTER OFFSET(0) NUMBITS(12) [],
        REVISION OFFSET(12) NUMBITS(4) [],
        VARIANT OFFSET(16) NUMBITS(4) [],
        PRODUCT OFFSET(20) NUMBITS(12) []
    ],
    /// CR0ACK has the same fields.
    pub CR0 [
        SMMUEN OFFSET(0) NUMBITS(1) [],
        PRIQEN OFFSET(1) NUMBITS(1) [],
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        CMDQEN OFFSET(3) NUMBITS(1) [],
        ATSCHK OFFSET(4) NUMBITS(1) []
    ],
    /// How the SMMU reaches its tables and queues.
    pub CR1 [
        QUEUE_IC OFFSET(0) NUMBITS(2) [
            NonCacheable = 0,
            WriteBack = 1
        ],
        QUEUE_OC OFFSET(2) NUMBITS(2) [
            NonCacheable = 0,
            WriteBack = 1
        ],
        QUEUE_SH OFFSET(4) NUMBITS(2) [
            OuterShareable = 2,
            InnerShareable = 3
        ],
        TABLE_IC OFFSET(6) NUMBITS(2) [
            NonCacheable = 0,
            WriteBack = 1
        ],
        TABLE_OC OFFSET(8) NUMBITS(2) [
            NonCacheable = 0,
            WriteBack = 1
        ],
        TABLE_SH OFFSET(10) NUMBITS(2) [
            OuterShareable = 2,
            InnerShareable = 3
        ]
    ],
    pub CR2 [
        E2H OFFSET(0) NUMBITS(1) [],
        /// A transaction of a stream that cannot exist leaves an event.
        RECINVSID OFFSET(1) NUMBITS(1) [],
        /// TLB maintenance that CPUs broadcast is ignored.
        PTM OFFSET(2) NUMBITS(1) []
    ],
    /// The treatment of transactions while SMMUEN = 0.
    pub GBPA [
        ABORT OFFSET(20) NUMBITS(1) [],
        UPDATE OFFSET(31) NUMBITS(1) []
    ],
    /// IRQ_CTRLACK has the same fields.
    pub IRQ_CTRL [
        GERROR OFFSET(0) NUMBITS(1) [],
        PRIQ OFFSET(1) NUMBITS(1) [],
        EVENTQ OFFSET(2) NUMBITS(1) []
    ],
    /// An error is active where GERROR and GERRORN differ.
    pub GERROR [
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
        EVENTQ_ABT_ERR OFFSET(2) NUMBITS(1) [],
        PRIQ_ABT_ERR OFFSET(3) NUMBITS(1) [],
        MSI_CMDQ_ABT_ERR OFFSET(4) NUMBITS(1) [],
        MSI_EVENTQ_ABT_ERR OFFSET(5) NUMBITS(1) [],
        MSI_PRIQ_ABT_ERR OFFSET(6) NUMBITS(1) [],
        MSI_GERROR_ABT_ERR OFFSET(7) NUMBITS(1) [],
        SFM_ERR OFFSET(8) NUMBITS(1) []
    ],
    pub STRTAB_BASE_CFG [
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        SPLIT OFFSET(6) NUMBITS(5) [],
        FMT OFFSET(16) NUMBITS(2) [
            Linear = 0,
            TwoLevels = 1
        ]
    ],
    pub CMDQ_CONS [
        RD OFFSET(0) NUMBITS(20) [],
        ERR OFFSET(24) NUMBITS(7) [
            None = 0,
            Illegal = 1,
            Abort = 2,
            AtcTimeout = 3
        ]
    ],
    pub EVENTQ_PROD [
        WR OFFSET(0) NUMBITS(20) [],
        OVFLG OFFSET(31) NUMBITS(1) []
    ],
    pub EVENTQ_CONS [
        RD OFFSET(0) NUMBITS(20) [],
        OVACKFLG OFFSET(31) NUMBITS(1) []
    ]
}

register_bitfields! {u64,
    pub STRTAB_BASE [
        /// Bits 51:6.
        ADDRESS OFFSET(6) NUMBITS(46) [],
        /// Read-allocate hint.
        RA OFFSET(62) NUMBITS(1) []
    ],
    /// CMDQ_BASE and EVENTQ_BASE.
    pub QUEUE_BASE [
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        /// Bits 51:5.
        ADDRESS OFFSET(5) NUMBITS(47) [],
        /// Read-allocate hint, for the command queue; write-allocate for the event queue.
        ALLOCATE OFFSET(62) NUMBITS(1) []
    ]
}
