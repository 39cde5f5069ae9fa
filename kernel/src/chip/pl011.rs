//! Arm PrimeCell UART (PL011, DDI 0183): the console of QEMU's virt machine and of most Arm boards.
//!
//! Of what the firmware left, the port keeps the baud rate and the format of its characters alone: both depend on a
//! clock that the kernel does not know, and the firmware has printed with them. Where no firmware has run, as under
//! QEMU's `-kernel`, the format is made eight bits, with whatever divisor there is. All else is written: interrupts,
//! DMA and modem control that a driver before used would stop the kernel or lose characters, and in loopback it would
//! read its own output.
//!
//! QEMU's model receives while the port is off, too: one character, until it is read. It is the first one of a script,
//! and goes with the FIFO's contents where the FIFO is turned on, so it is read before.

#![allow(unsafe_code, reason = "registers of the UART")]

use core::cell::Cell;
use core::ptr::NonNull;

use arm_pl011_uart::{FifoLevel, Interrupts, PL011Registers, Uart};
use granule_arch::addr::VirtAddr;
use safe_mmio::UniqueMmioPointer;

use super::console::Console;
use super::uart::MOST_SKIPPED;
use crate::mmio;

/// UARTDR, at this offset.
const DATA: usize = 0;
/// UARTFR, at this offset, and in it that a character is being sent, and that none has been received.
const FLAGS: usize = 0x18;
const FLAGS_BUSY: u32 = 1 << 3;
const FLAGS_RECEIVE_EMPTY: u32 = 1 << 4;
/// UARTLCR_H, at this offset, and in it a break that is sent, the FIFO, eight bits, and all of the characters' format.
const LINE_CONTROL: usize = 0x2c;
const LINE_CONTROL_BREAK: u32 = 1;
const LINE_CONTROL_FIFO: u32 = 1 << 4;
const LINE_CONTROL_8_BITS: u32 = 3 << 5;
const LINE_CONTROL_FORMAT: u32 = 1 << 7 | 3 << 5 | 1 << 3 | 1 << 2 | 1 << 1;
/// UARTCR, at this offset, and in it the port itself, its transmitter and its receiver.
const CONTROL: usize = 0x30;
const CONTROL_ENABLE: u32 = 1 | 1 << 8 | 1 << 9;
/// The port in use: the other side sees that it is ready (DTR and RTS), and no hardware looks whether that one is.
const CONTROL_READY: u32 = CONTROL_ENABLE | 1 << 10 | 1 << 11;
/// With these a port is no serial line: infrared, and loopback.
const CONTROL_ELSEWHERE: u32 = 1 << 1 | 1 << 2 | 1 << 7;
/// UARTIMSC, at this offset.
const INTERRUPT_MASK: usize = 0x38;
/// UARTICR, at this offset, and all eleven interrupts in it.
const INTERRUPT_CLEAR: usize = 0x44;
const INTERRUPT_CLEAR_ALL: u32 = (1 << 11) - 1;
/// Of these the ones of received characters, which stand as long as the characters do.
const INTERRUPT_CLEAR_RECEIVE: u32 = 1 << 4 | 1 << 6;
/// UARTDMACR, at this offset.
const DMA_CONTROL: usize = 0x48;
/// Looks at a port that is to have sent its last character: longer than any takes.
const PATIENCE: u32 = 1_000_000;

/// A PL011 whose registers are mapped.
pub struct Pl011 {
    registers: NonNull<PL011Registers>,
    /// The byte that was received before the port was turned on.
    first: Cell<Option<u8>>,
}

// SAFETY: the registers and the cell are used under the console's lock, or by the one CPU left after a panic: see `Console`.
unsafe impl Sync for Pl011 {}
// SAFETY: nothing in it belongs to one CPU.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// The PL011 at `registers`, turned on, without interrupts; `None` for address zero. Characters that have arrived
    /// stay, unless the port is to be used otherwise than before; of one that was off the first.
    ///
    /// # Safety
    /// A PL011's register page is mapped there as device memory for as long as the kernel runs.
    pub unsafe fn new(registers: VirtAddr) -> Option<Self> {
        let port = Self { registers: NonNull::new(registers.as_ptr())?, first: Cell::new(None) };
        let register = |offset: usize| registers + offset as u64;
        // The crate cannot turn a port on without setting its divisor from a clock rate.
        // SAFETY: registers of the page that the caller has mapped.
        let read = |offset| unsafe { mmio::read::<u32>(register(offset)) };
        // SAFETY: as above.
        let write = |offset, value: u32| unsafe { mmio::write(register(offset), value) };
        write(INTERRUPT_MASK, 0);
        write(DMA_CONTROL, 0);
        let (control, line) = (read(CONTROL), read(LINE_CONTROL));
        let is_on = control & (CONTROL_ENABLE | CONTROL_ELSEWHERE) == CONTROL_ENABLE;
        let is_set_up = control & CONTROL_ENABLE == CONTROL_ENABLE;
        // In a port that is off only QEMU's model has a byte.
        let has_byte = !is_set_up && read(FLAGS) & FLAGS_RECEIVE_EMPTY == 0;
        if is_on && line & (LINE_CONTROL_FIFO | LINE_CONTROL_BREAK) == LINE_CONTROL_FIFO {
            write(INTERRUPT_CLEAR, INTERRUPT_CLEAR_ALL & !INTERRUPT_CLEAR_RECEIVE);
        } else {
            if is_set_up {
                // A character that the firmware is sending is not cut off, if the port ever sends it.
                let _ = (0..PATIENCE).any(|_| read(FLAGS) & FLAGS_BUSY == 0);
            }
            write(CONTROL, 0);
            let format = if is_set_up { line & LINE_CONTROL_FORMAT } else { LINE_CONTROL_8_BITS };
            // This empties the FIFO and leaves the receive interrupt of what was in it: no read would ever end that.
            write(LINE_CONTROL, format);
            write(LINE_CONTROL, format | LINE_CONTROL_FIFO);
            write(INTERRUPT_CLEAR, INTERRUPT_CLEAR_ALL);
        }
        write(CONTROL, CONTROL_READY);
        if !is_on {
            // The model, which was full with the one byte, sends no more until one is read: that one, though it went with
            // the FIFO. Read in front of that, the next would have gone.
            let byte = read(DATA) as u8;
            port.first.set(has_byte.then_some(byte));
        }
        Some(port)
    }

    fn uart(&self) -> Uart<'_> {
        // SAFETY: mapped for ever (`new`); there is no other one now, since all calls come under one lock (`Console`).
        Uart::new(unsafe { UniqueMmioPointer::new(self.registers) })
    }
}

impl Console for Pl011 {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        let mut taken = 0;
        for &byte in bytes {
            if uart.is_tx_fifo_full() {
                break;
            }
            uart.write_word(byte);
            taken += 1;
        }
        taken
    }

    fn is_busy(&self) -> bool {
        self.uart().is_busy()
    }

    fn read(&self) -> Option<u8> {
        let first = self.first.take();
        if first.is_some() {
            return first;
        }
        let mut uart = self.uart();
        // An error belongs to the one byte that it came with: go on with the next.
        (0..MOST_SKIPPED).find_map(|_| uart.read_word().ok()).flatten()
    }

    /// Its interrupts stand as long as what they report.
    fn acknowledge(&self) {}

    fn set_receive_interrupt(&self, on: bool) {
        let mut uart = self.uart();
        // The timeout interrupt is for what stays below the FIFO's level: without it a single key would wait.
        let receive = Interrupts::RXI | Interrupts::RTI;
        if on {
            // The lowest level: QEMU's model raises RXI at it, so that a key is seen at once.
            uart.set_interrupt_fifo_levels(FifoLevel::Bytes4, FifoLevel::Bytes16);
            uart.set_interrupt_masks(uart.interrupt_masks() | receive);
        } else {
            uart.set_interrupt_masks(uart.interrupt_masks() - receive);
        }
    }

    fn set_transmit_interrupt(&self, on: bool) {
        let mut uart = self.uart();
        let masks = uart.interrupt_masks();
        uart.set_interrupt_masks(if on { masks | Interrupts::TXI } else { masks - Interrupts::TXI });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers of a port that begins with these, once the driver has set it up.
    fn taken(set: &[(usize, u32)]) -> [u32; 32] {
        let mut page = [0_u32; 1024];
        set.iter().for_each(|&(offset, value)| page[offset / 4] = value);
        // SAFETY: memory of the test in place of registers; the port is used here alone.
        unsafe { Pl011::new(VirtAddr::from_ptr(page.as_mut_ptr())) }.unwrap();
        *page.first_chunk().unwrap()
    }

    #[test]
    fn a_port_keeps_its_format_and_nothing_else_that_the_firmware_left() {
        let even = 1 << 1 | 1 << 2 | 2 << 5;
        for (control, line, expected) in [
            (0, 0, LINE_CONTROL_8_BITS | LINE_CONTROL_FIFO),
            (0x301, 0x70, 0x70),
            // Loopback, flow control, infrared, a break, without a FIFO.
            (0x381, 0x70, 0x70),
            (0xc301, 0x70, 0x70),
            (0x307, 0x70, 0x70),
            (0x301, 0x71, 0x70),
            (0x301, even, even | LINE_CONTROL_FIFO),
        ] {
            let page = taken(&[
                (CONTROL, control),
                (LINE_CONTROL, line),
                (INTERRUPT_MASK, 0x7ff),
                (DMA_CONTROL, 7),
                (0x24, 13),
                (0x28, 2),
            ]);
            let [mask, dma, now, format] =
                [INTERRUPT_MASK, DMA_CONTROL, CONTROL, LINE_CONTROL].map(|offset| page[offset / 4]);
            assert_eq!([mask, dma, now, format], [0, 0, CONTROL_READY, expected], "{control:#x} {line:#x}");
            assert_eq!([page[0x24 / 4], page[0x28 / 4]], [13, 2], "the divisor");
        }
    }

    #[test]
    fn what_was_received_while_the_port_was_off_is_read_once() {
        for (control, flags, expected) in
            [(0x300, 0, Some(b'v')), (0x300, FLAGS_RECEIVE_EMPTY, None), (0x381, 0, None), (0x301, 0, None)]
        {
            let mut page = [0_u32; 1024];
            (page[DATA / 4], page[FLAGS / 4]) = (b'v'.into(), flags);
            (page[CONTROL / 4], page[LINE_CONTROL / 4]) = (control, 0x70);
            let at = page.as_mut_ptr();
            // SAFETY: memory of the test in place of registers; the port is used here alone.
            let port = unsafe { Pl011::new(VirtAddr::from_ptr(at)) }.unwrap();
            // SAFETY: as above. There is nothing more to read.
            unsafe { mmio::write(VirtAddr::from_ptr(at) + FLAGS as u64, FLAGS_RECEIVE_EMPTY) };
            assert_eq!([port.read(), port.read()], [expected, None], "{control:#x} {flags:#x}");
        }
    }

    #[test]
    fn what_was_typed_before_keeps_its_interrupt() {
        let page = taken(&[(CONTROL, 0x301), (LINE_CONTROL, 0x70)]);
        assert_eq!(page[INTERRUPT_CLEAR / 4] & INTERRUPT_CLEAR_RECEIVE, 0);
        let page = taken(&[(CONTROL, 0x381), (LINE_CONTROL, 0x70)]);
        assert_eq!(page[INTERRUPT_CLEAR / 4], INTERRUPT_CLEAR_ALL);
    }
}
