//! The tables: what a console needs to know of each kind of UART. Sources are the manuals of the parts, and Linux's drivers
//! for what these do not have.

use super::{By, Damage, Enable, Family, Flag, Packet, Register, Step, UartKind};

/// The table of a kind; `None` for the one that has a crate.
pub(super) const fn of(kind: UartKind) -> Option<&'static Family> {
    match kind {
        UartKind::Pl011 => None,
        UartKind::Sbsa => Some(&SBSA),
        UartKind::Ns16550 => Some(&NS16550),
        UartKind::Omap => Some(&OMAP),
        UartKind::DesignWare => Some(&DESIGN_WARE),
        UartKind::BcmMini => Some(&BCM_MINI),
        UartKind::Imx => Some(&IMX),
        UartKind::Lpuart => Some(&LPUART),
        UartKind::Meson => Some(&MESON),
        UartKind::Cadence => Some(&CADENCE),
        UartKind::Exynos => Some(&EXYNOS),
        UartKind::Armada3700 => Some(&ARMADA_3700),
        UartKind::Geni => Some(&GENI),
        UartKind::UartDm => Some(&UART_DM),
        UartKind::Scif => Some(&SCIF),
    }
}

const fn bits(from: u32, to: u32) -> u32 {
    u32::MAX >> (31 - to) & u32::MAX << from
}

/// SBSA 1.x, appendix B: UARTDR, UARTFR, UARTIMSC, UARTICR as in a PL011. All else is the firmware's.
static SBSA: Family = {
    const DATA: Register = Register::word(0);
    const FLAGS: Register = Register::word(0x18);
    const MASK: Register = Register::word(0x38);
    const CLEAR: Register = Register::word(0x44);
    Family {
        probe: FLAGS,
        // Of received characters the interrupt stays.
        take_over: &[Step::Write(MASK, 0), Step::Write(CLEAR, 0x7ff & !(1 << 4 | 1 << 6))],
        transmit: DATA,
        receive: DATA,
        room: Flag::Clear(FLAGS, 1 << 5),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Clear(FLAGS, 1 << 3)],
        received: Flag::Clear(FLAGS, 1 << 4),
        // Framing, parity, break.
        damage: Damage::InData(bits(8, 10)),
        overrun: None,
        clear: &[],
        written: &[],
        read: &[],
        acknowledge: &[],
        receive_interrupt: Enable { register: MASK, bits: 1 << 4 | 1 << 6, by: By::Setting },
        transmit_interrupt: Enable { register: MASK, bits: 1 << 5, by: By::Setting },
    }
};

/// National PC16550D, 8; the manuals of the compatible ones. By number: they differ by the distance.
static NS16550: Family = {
    const DATA: Register = Register::by_layout(0);
    const INTERRUPT_ENABLE: Register = Register::by_layout(1);
    /// Read: IIR. Written: FCR.
    const INTERRUPT_ID: Register = Register::by_layout(2);
    const FIFO_CONTROL: Register = INTERRUPT_ID;
    const LINE_CONTROL: Register = Register::by_layout(3);
    const MODEM_CONTROL: Register = Register::by_layout(4);
    const LINE_STATUS: Register = Register::by_layout(5);
    const RECEIVED: u32 = 1;
    const BREAK: u32 = 1 << 4;
    Family {
        probe: LINE_CONTROL,
        take_over: &[
            // The format stays; the divisor latch, which hides data and interrupts, and a break do not.
            Step::Change { register: LINE_CONTROL, keep: bits(0, 5), set: 0 },
            Step::Write(INTERRUPT_ENABLE, 0),
            // FIFO on, and an interrupt at the first byte. Of one that is on, nothing is lost.
            Step::Write(FIFO_CONTROL, 1),
            // DTR, RTS, and OUT2, which lets interrupts through; no loopback and no flow control. Bit 7 is, where there is
            // one, the clock's.
            Step::Change { register: MODEM_CONTROL, keep: 1 << 7, set: 1 | 1 << 1 | 1 << 3 },
        ],
        transmit: DATA,
        receive: DATA,
        room: Flag::Set(LINE_STATUS, 1 << 5),
        // With a FIFO, that is room for all that it holds.
        has_fifo: &[Flag::Set(INTERRUPT_ID, 1 << 7), Flag::Set(INTERRUPT_ID, 1 << 6)],
        burst: 16,
        packet: None,
        idle: &[Flag::Set(LINE_STATUS, 1 << 6)],
        received: Flag::Set(LINE_STATUS, RECEIVED),
        // Parity, framing, break.
        damage: Damage::InStatus(bits(2, 4)),
        overrun: None,
        clear: &[],
        written: &[],
        read: &[],
        // A receive timeout that has no byte (errata of DesignWare's and TI's) stands until one is read all the same.
        acknowledge: &[Step::ReadIf(
            &[Flag::Set(INTERRUPT_ID, 1 << 3), Flag::Clear(LINE_STATUS, RECEIVED | BREAK)],
            DATA,
        )],
        // Data, and errors, which are read with it.
        receive_interrupt: Enable { register: INTERRUPT_ENABLE, bits: 1 | 1 << 2, by: By::Setting },
        transmit_interrupt: Enable { register: INTERRUPT_ENABLE, bits: 1 << 1, by: By::Setting },
    }
};

/// Synopsys DW_apb_uart databook: a write of LCR while the port is busy is refused with an interrupt, which a read of USR
/// ends.
static DESIGN_WARE: Family = {
    const STATUS: Register = Register::by_layout(31);
    let [timeout] = *NS16550.acknowledge else { unreachable!() };
    Family { acknowledge: &[Step::Read(STATUS), timeout], ..NS16550 }
};

/// AM62x Technical Reference Manual, UART: the transmit interrupt is for a FIFO that has room for a level, and stands until
/// it is filled above that. With TX_EMPTY_CTL_IT of UART_SCR it is for one that is empty, as LSR's bit 5.
static OMAP: Family = {
    const SUPPLEMENTARY_CONTROL: Register = Register::by_layout(16);
    let [line, interrupts, fifo, modem] = *NS16550.take_over else { unreachable!() };
    let when_empty = Step::Change { register: SUPPLEMENTARY_CONTROL, keep: u32::MAX, set: 1 << 3 };
    Family { take_over: &[line, interrupts, when_empty, fifo, modem], ..NS16550 }
};

/// BCM2835 ARM Peripherals, 2.2: LSR's bit 5 is room for one byte.
static BCM_MINI: Family = Family { burst: 1, ..NS16550 };

/// i.MX 8M Plus Reference Manual, UART.
static IMX: Family = {
    const RECEIVE: Register = Register::word(0);
    const TRANSMIT: Register = Register::word(0x40);
    const CONTROL_1: Register = Register::word(0x80);
    const CONTROL_2: Register = Register::word(0x84);
    const CONTROL_3: Register = Register::word(0x88);
    const CONTROL_4: Register = Register::word(0x8c);
    const FIFO_CONTROL: Register = Register::word(0x90);
    const STATUS_2: Register = Register::word(0x98);
    const TEST: Register = Register::word(0xb4);
    Family {
        probe: STATUS_2,
        take_over: &[
            // On, with no interrupt, DMA, infrared or break.
            Step::Change { register: CONTROL_1, keep: 0, set: 1 },
            // The format stays; RTS is ignored, CTS asserted, transmitter and receiver on, no reset.
            Step::Change { register: CONTROL_2, keep: bits(5, 8), set: 1 << 14 | 1 << 12 | bits(0, 2) },
            // Bits that select pins and polarity stay.
            Step::Change { register: CONTROL_3, keep: !(bits(11, 13) | bits(3, 6) | 1), set: 0 },
            Step::Change { register: CONTROL_4, keep: bits(9, 15) | bits(4, 5), set: 0 },
            // The clock's divider stays; interrupts at one byte received, and with two left to send.
            Step::Change { register: FIFO_CONTROL, keep: bits(6, 9), set: 2 << 10 | 1 },
            // No loopback.
            Step::Change { register: TEST, keep: bits(3, 6), set: 0 },
        ],
        transmit: TRANSMIT,
        receive: RECEIVE,
        room: Flag::Clear(TEST, 1 << 4),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS_2, 1 << 3)],
        received: Flag::Set(STATUS_2, 1),
        // Framing, break, parity; an overrun damages no byte.
        damage: Damage::InData(bits(10, 12)),
        overrun: None,
        clear: &[],
        written: &[],
        read: &[],
        acknowledge: &[],
        receive_interrupt: Enable { register: CONTROL_1, bits: 1 << 9, by: By::Setting },
        transmit_interrupt: Enable { register: CONTROL_1, bits: 1 << 13, by: By::Setting },
    }
};

/// i.MX 8QuadXPlus and i.MX 93 Reference Manuals, LPUART.
static LPUART: Family = {
    const BAUD: Register = Register::word(0x10);
    const STATUS: Register = Register::word(0x14);
    const CONTROL: Register = Register::word(0x18);
    const DATA: Register = Register::word(0x1c);
    const MODEM: Register = Register::word(0x24);
    const WATERMARK: Register = Register::word(0x2c);
    const OVERRUN: u32 = 1 << 19;
    /// Configuration, and flags that a one clears.
    const KEPT: u32 = bits(25, 29);
    Family {
        probe: STATUS,
        take_over: &[
            // No DMA, no interrupts of edges and breaks; the divisor stays.
            Step::Change { register: BAUD, keep: !(1 << 23 | bits(20, 21) | bits(14, 15)), set: 0 },
            // No flow control, no infrared.
            Step::Change { register: MODEM, keep: 0, set: 0 },
            // Interrupts at the first byte received, and with none left to send.
            Step::Write(WATERMARK, 0),
            // Format and polarity stay; transmitter and receiver on.
            Step::Change { register: CONTROL, keep: 1 << 28 | 1 << 11 | bits(0, 4), set: bits(18, 19) },
            Step::Copy { from: STATUS, to: STATUS, bits: KEPT | bits(30, 31) | bits(14, 20) },
        ],
        transmit: DATA,
        receive: DATA,
        room: Flag::Set(STATUS, 1 << 23),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS, 1 << 22)],
        received: Flag::Set(STATUS, 1 << 21),
        // Parity, framing.
        damage: Damage::InData(bits(13, 14)),
        overrun: Some(Flag::Set(STATUS, OVERRUN)),
        clear: &[Step::Copy { from: STATUS, to: STATUS, bits: KEPT | bits(16, 19) }],
        written: &[],
        read: &[],
        acknowledge: &[],
        receive_interrupt: Enable { register: CONTROL, bits: 1 << 21, by: By::Setting },
        transmit_interrupt: Enable { register: CONTROL, bits: 1 << 23, by: By::Setting },
    }
};

/// Amlogic S905X3 datasheet, UART.
static MESON: Family = {
    const TRANSMIT: Register = Register::word(0);
    const RECEIVE: Register = Register::word(4);
    const CONTROL: Register = Register::word(8);
    const STATUS: Register = Register::word(0xc);
    const LEVELS: Register = Register::word(0x10);
    const CLEAR_ERROR: u32 = 1 << 24;
    const BEGIN_CLEAR: Step = Step::Change { register: CONTROL, keep: u32::MAX, set: CLEAR_ERROR };
    const END_CLEAR: Step = Step::Change { register: CONTROL, keep: !CLEAR_ERROR, set: 0 };
    Family {
        probe: STATUS,
        take_over: &[
            // No interrupts, no resets; transmitter and receiver on, and only these two wires.
            Step::Change { register: CONTROL, keep: !(bits(27, 28) | bits(22, 24)), set: 1 << 15 | bits(12, 13) },
            BEGIN_CLEAR,
            END_CLEAR,
            // Interrupts at one byte received, and with fewer than 16 of 64 left to send: less than is written at once, since
            // the line is an edge.
            Step::Write(LEVELS, 16 << 8 | 1),
        ],
        transmit: TRANSMIT,
        receive: RECEIVE,
        room: Flag::Clear(STATUS, 1 << 21),
        has_fifo: &[],
        burst: 1,
        packet: None,
        // Nothing in the FIFO, and nothing being sent.
        idle: &[Flag::Set(STATUS, 1 << 22), Flag::Clear(STATUS, 1 << 25)],
        received: Flag::Clear(STATUS, 1 << 20),
        // Parity, framing.
        damage: Damage::InStatus(bits(16, 17)),
        overrun: None,
        clear: &[BEGIN_CLEAR, END_CLEAR],
        written: &[],
        read: &[],
        acknowledge: &[],
        receive_interrupt: Enable { register: CONTROL, bits: 1 << 27, by: By::Setting },
        transmit_interrupt: Enable { register: CONTROL, bits: 1 << 28, by: By::Setting },
    }
};

/// Zynq UltraScale+ registers (UG1087), UART.
static CADENCE: Family = {
    const CONTROL: Register = Register::word(0);
    const MODE: Register = Register::word(4);
    const ENABLE: Register = Register::word(8);
    const DISABLE: Register = Register::word(0xc);
    const EVENTS: Register = Register::word(0x14);
    const RECEIVE_LEVEL: Register = Register::word(0x20);
    const MODEM: Register = Register::word(0x24);
    const STATUS: Register = Register::word(0x2c);
    const DATA: Register = Register::word(0x30);
    const ALL: u32 = bits(0, 13);
    /// Parity, framing, break.
    const DAMAGE: u32 = 1 << 13 | bits(6, 7);
    Family {
        probe: STATUS,
        take_over: &[
            Step::Write(DISABLE, ALL),
            // Channel mode: neither loopback nor echo.
            Step::Change { register: MODE, keep: !bits(8, 9), set: 0 },
            // DTR and RTS; no flow control.
            Step::Change { register: MODEM, keep: 0, set: bits(0, 1) },
            Step::Write(RECEIVE_LEVEL, 1),
            // Break off, transmitter and receiver on, and neither disabled.
            Step::Write(CONTROL, 1 << 8 | 1 << 4 | 1 << 2),
            Step::Write(EVENTS, ALL),
        ],
        transmit: DATA,
        receive: DATA,
        room: Flag::Clear(STATUS, 1 << 4),
        has_fifo: &[],
        burst: 1,
        packet: None,
        // Nothing in the FIFO, and nothing being sent.
        idle: &[Flag::Set(STATUS, 1 << 3), Flag::Clear(STATUS, 1 << 11)],
        received: Flag::Clear(STATUS, 1 << 1),
        damage: Damage::Elsewhere(Flag::Set(EVENTS, DAMAGE)),
        overrun: None,
        clear: &[Step::Write(EVENTS, DAMAGE)],
        written: &[],
        read: &[],
        acknowledge: &[Step::Copy { from: EVENTS, to: EVENTS, bits: ALL & !DAMAGE }],
        // At the level.
        receive_interrupt: Enable { register: ENABLE, bits: 1, by: By::Pair(DISABLE) },
        // The FIFO is empty.
        transmit_interrupt: Enable { register: ENABLE, bits: 1 << 3, by: By::Pair(DISABLE) },
    }
};

/// Exynos 5 Dual User's Manual, UART. Data are of the width that the tree has.
static EXYNOS: Family = {
    const LINE: Register = Register::word(0);
    const CONTROL: Register = Register::word(4);
    const FIFO_CONTROL: Register = Register::word(8);
    const MODEM: Register = Register::word(0xc);
    const STATUS: Register = Register::word(0x10);
    const ERRORS: Register = Register::word(0x14);
    const FIFO_STATUS: Register = Register::word(0x18);
    const TRANSMIT: Register = Register::by_layout(0x20);
    const RECEIVE: Register = Register::by_layout(0x24);
    const PENDING: Register = Register::word(0x30);
    const MASK: Register = Register::word(0x38);
    Family {
        probe: FIFO_STATUS,
        take_over: &[
            Step::Write(MASK, bits(0, 3)),
            // No infrared.
            Step::Change { register: LINE, keep: bits(0, 5), set: 0 },
            // Both directions by interrupt or polled, whose lines are levels, and a timeout of what is below the FIFO's
            // trigger; no break, no loopback. The clock's source stays.
            Step::Change { register: CONTROL, keep: !bits(0, 9), set: bits(7, 9) | 1 << 2 | 1 },
            // FIFO on, with the lowest triggers.
            Step::Change { register: FIFO_CONTROL, keep: 0, set: 1 },
            // RTS; no flow control.
            Step::Change { register: MODEM, keep: !(1 << 4), set: 1 },
            Step::Write(PENDING, bits(0, 3)),
        ],
        transmit: TRANSMIT,
        receive: RECEIVE,
        room: Flag::Clear(FIFO_STATUS, 1 << 24),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS, 1 << 2)],
        // A count, or that it is full.
        received: Flag::Set(FIFO_STATUS, bits(0, 8)),
        // Parity, framing, break: those of the byte that is next.
        damage: Damage::Elsewhere(Flag::Set(ERRORS, bits(1, 3))),
        overrun: None,
        clear: &[],
        written: &[],
        read: &[],
        acknowledge: &[Step::Copy { from: PENDING, to: PENDING, bits: bits(0, 3) }],
        receive_interrupt: Enable { register: MASK, bits: 1, by: By::Clearing },
        transmit_interrupt: Enable { register: MASK, bits: 1 << 2, by: By::Clearing },
    }
};

/// Armada 3720 Functional Specifications, UART 1.
static ARMADA_3700: Family = {
    const RECEIVE: Register = Register::word(0);
    const TRANSMIT: Register = Register::word(4);
    const CONTROL: Register = Register::word(8);
    const STATUS: Register = Register::word(0xc);
    Family {
        probe: CONTROL,
        // No interrupts, break, loopback, mirror or reset; parity and stop bits stay.
        take_over: &[Step::Change { register: CONTROL, keep: bits(16, 30) | bits(9, 10), set: 0 }],
        transmit: TRANSMIT,
        receive: RECEIVE,
        room: Flag::Clear(STATUS, 1 << 11),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS, 1 << 6)],
        received: Flag::Set(STATUS, 1 << 4),
        // Parity, framing, break.
        damage: Damage::InStatus(bits(1, 3)),
        overrun: Some(Flag::Set(STATUS, 1)),
        clear: &[Step::Copy { from: STATUS, to: STATUS, bits: bits(0, 3) }],
        written: &[],
        read: &[],
        acknowledge: &[],
        receive_interrupt: Enable { register: CONTROL, bits: 1 << 4, by: By::Setting },
        transmit_interrupt: Enable { register: CONTROL, bits: 1 << 5, by: By::Setting },
    }
};

/// Qualcomm's generic interface with the firmware of a UART. It has two sequencers: the main one sends packets, the
/// secondary one receives. A word of a FIFO has one byte here.
static GENI: Family = {
    const STATUS: Register = Register::word(0x40);
    const LOOPBACK: Register = Register::word(0x22c);
    const DMA_MODE: Register = Register::word(0x258);
    const TX_TRANSFER: Register = Register::word(0x25c);
    const TX_PACKING: [Register; 2] = [Register::word(0x260), Register::word(0x264)];
    const TX_LENGTH: Register = Register::word(0x270);
    const RX_PACKING: [Register; 2] = [Register::word(0x284), Register::word(0x288)];
    const RX_STALE: Register = Register::word(0x294);
    const M_COMMAND: Register = Register::word(0x600);
    const M_EVENTS: Register = Register::word(0x610);
    const M_ENABLE: Register = Register::word(0x614);
    const M_CLEAR: Register = Register::word(0x618);
    const S_COMMAND: Register = Register::word(0x630);
    const S_CONTROL: Register = Register::word(0x634);
    const S_EVENTS: Register = Register::word(0x640);
    const S_ENABLE: Register = Register::word(0x644);
    const S_CLEAR: Register = Register::word(0x648);
    const TX_FIFO: Register = Register::word(0x700);
    const RX_FIFO: Register = Register::word(0x780);
    const RX_FIFO_STATUS: Register = Register::word(0x804);
    const RX_LEVEL: Register = Register::word(0x810);
    const DMA_EVENTS: Register = Register::word(0xe18);
    const LINES: Register = Register::word(0xe1c);
    /// START_TX and START_READ.
    const START: u32 = 1 << 27;
    const ABORT: u32 = 1 << 1;
    /// Eight bits from bit 0 on, and no more in a word.
    const ONE_BYTE: u32 = 7 << 1 | 1;
    /// Parity, framing, and the two ends of a break.
    const DAMAGE: u32 = bits(9, 12);
    Family {
        probe: STATUS,
        take_over: &[
            // Bytes that the firmware is sending are not cut off.
            Step::Wait(Flag::Clear(STATUS, 1)),
            Step::Write(M_ENABLE, 0),
            Step::Write(S_ENABLE, 0),
            Step::Write(DMA_MODE, 0),
            Step::Write(DMA_EVENTS, 0),
            Step::Write(LOOPBACK, 0),
            // Of the FIFOs both sequencers interrupt.
            Step::Change { register: LINES, keep: u32::MAX, set: bits(2, 3) },
            Step::Write(TX_PACKING[0], ONE_BYTE),
            Step::Write(TX_PACKING[1], 0),
            // A receiver that runs keeps its packing: it is stopped, with what it has received.
            Step::Write(S_CONTROL, ABORT),
            Step::Wait(Flag::Clear(S_CONTROL, ABORT)),
            Step::Write(S_CLEAR, u32::MAX),
            Step::Write(M_CLEAR, u32::MAX),
            Step::Write(RX_PACKING[0], ONE_BYTE),
            Step::Write(RX_PACKING[1], 0),
            // CTS is not looked at: there may be none.
            Step::Change { register: TX_TRANSFER, keep: u32::MAX, set: 1 << 1 },
            // In bits on the line: 16 characters of ten.
            Step::Write(RX_STALE, 160),
            Step::Write(RX_LEVEL, 1),
            Step::Write(S_COMMAND, START),
        ],
        transmit: TX_FIFO,
        receive: RX_FIFO,
        // No packet is being sent.
        room: Flag::Clear(STATUS, 1),
        has_fifo: &[],
        burst: 16,
        packet: Some(Packet { length: TX_LENGTH, start: M_COMMAND, command: START }),
        idle: &[Flag::Clear(STATUS, 1)],
        received: Flag::Set(RX_FIFO_STATUS, bits(0, 24)),
        damage: Damage::Elsewhere(Flag::Set(S_EVENTS, DAMAGE)),
        overrun: None,
        clear: &[Step::Write(S_CLEAR, DAMAGE)],
        written: &[],
        read: &[],
        acknowledge: &[
            Step::Copy { from: M_EVENTS, to: M_CLEAR, bits: u32::MAX },
            Step::Copy { from: S_EVENTS, to: S_CLEAR, bits: !DAMAGE },
        ],
        // The FIFO is at its level, or nothing has followed for the time above.
        receive_interrupt: Enable { register: S_ENABLE, bits: bits(26, 27), by: By::Setting },
        // The packet is sent.
        transmit_interrupt: Enable { register: M_ENABLE, bits: 1, by: By::Setting },
    }
};

/// APQ8016E Technical Reference Manual, UART_DM. In its single character mode a word of a FIFO has one byte, and no count
/// of them goes ahead.
static UART_DM: Family = {
    const MODE_1: Register = Register::word(0);
    const MODE_2: Register = Register::word(4);
    const TX_LEVEL: Register = Register::word(0x1c);
    const RX_LEVEL: Register = Register::word(0x20);
    const DMA: Register = Register::word(0x3c);
    const STATUS: Register = Register::word(0xa4);
    const COMMAND: Register = Register::word(0xa8);
    const MASK: Register = Register::word(0xb0);
    const TX_FIFO: Register = Register::word(0x100);
    const RX_FIFO: Register = Register::word(0x140);
    const RESET_ERRORS: Step = Step::Write(COMMAND, 3 << 4);
    Family {
        probe: STATUS,
        take_over: &[
            // Bytes that the firmware is sending are not cut off by the resets that another mode of the FIFOs needs.
            Step::Wait(Flag::Set(STATUS, 1 << 3)),
            Step::Write(MASK, 0),
            // No flow control but that the receiver shows that it is ready; no loopback.
            Step::Change { register: MODE_1, keep: !(1 << 6), set: 1 << 7 },
            Step::Change { register: MODE_2, keep: !(1 << 7), set: 0 },
            Step::Write(TX_LEVEL, 0),
            Step::Write(RX_LEVEL, 0),
            Step::Write(DMA, bits(4, 5)),
            // Reset the receiver, and the transmitter; both on.
            Step::Write(COMMAND, 1 << 4),
            Step::Write(COMMAND, 2 << 4),
            RESET_ERRORS,
            Step::Write(COMMAND, 1),
            Step::Write(COMMAND, 1 << 2),
        ],
        transmit: TX_FIFO,
        receive: RX_FIFO,
        room: Flag::Set(STATUS, 1 << 2),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS, 1 << 3)],
        received: Flag::Set(STATUS, 1),
        // Parity or framing, break.
        damage: Damage::InStatus(bits(5, 6)),
        overrun: Some(Flag::Set(STATUS, 1 << 4)),
        clear: &[RESET_ERRORS],
        written: &[],
        read: &[],
        acknowledge: &[],
        // Above, and down at, the level of the FIFO.
        receive_interrupt: Enable { register: MASK, bits: 1 << 4, by: By::WritingAll },
        transmit_interrupt: Enable { register: MASK, bits: 1, by: By::WritingAll },
    }
};

/// R-Car Series, 3rd Generation, User's Manual: Hardware, SCIF and HSCIF. By number: the RZ series has them closer together.
/// A flag of the status register is cleared by a zero once it was read as one.
static SCIF: Family = {
    const CONTROL: Register = Register::half(2);
    const TRANSMIT: Register = Register::byte(3);
    const STATUS: Register = Register::half(4);
    const RECEIVE: Register = Register::byte(5);
    const FIFO_CONTROL: Register = Register::half(6);
    const COUNTS: Register = Register::half(7);
    const LINE_STATUS: Register = Register::half(9);
    /// An error, and a break.
    const ERRORS: u32 = 1 << 7 | 1 << 4;
    const SENT: u32 = bits(5, 6);
    const RECEIVED: u32 = bits(0, 1);
    const CLEAR_ERRORS: Step = Step::Change { register: STATUS, keep: !ERRORS, set: 0 };
    const CLEAR_OVERRUN: Step = Step::Change { register: LINE_STATUS, keep: !1, set: 0 };
    Family {
        probe: CONTROL,
        take_over: &[
            // No interrupts; transmitter and receiver on. The clock's source stays.
            Step::Change { register: CONTROL, keep: bits(0, 1), set: bits(4, 5) },
            // No loopback, no flow control, no resets, and interrupts at the first byte received.
            Step::Change { register: FIFO_CONTROL, keep: 0, set: 0 },
            CLEAR_ERRORS,
            CLEAR_OVERRUN,
        ],
        transmit: TRANSMIT,
        receive: RECEIVE,
        // Fewer than 16 to send.
        room: Flag::Clear(COUNTS, bits(12, 15)),
        has_fifo: &[],
        burst: 1,
        packet: None,
        idle: &[Flag::Set(STATUS, 1 << 6)],
        received: Flag::Set(COUNTS, bits(0, 7)),
        // Framing and parity of the byte that is next.
        damage: Damage::Elsewhere(Flag::Set(STATUS, bits(2, 3))),
        overrun: Some(Flag::Set(LINE_STATUS, 1)),
        clear: &[CLEAR_ERRORS, CLEAR_OVERRUN],
        written: &[Step::Change { register: STATUS, keep: !SENT, set: 0 }],
        read: &[Step::Change { register: STATUS, keep: !RECEIVED, set: 0 }],
        acknowledge: &[CLEAR_ERRORS, CLEAR_OVERRUN],
        receive_interrupt: Enable { register: CONTROL, bits: 1 << 6, by: By::Setting },
        transmit_interrupt: Enable { register: CONTROL, bits: 1 << 7, by: By::Setting },
    }
};
