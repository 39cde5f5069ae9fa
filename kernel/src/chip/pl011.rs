//! Arm PrimeCell UART (PL011, DDI 0183): the console of QEMU's virt machine and of most Arm boards.
//!
//! The port is used as the firmware left it: line format and baud rate depend on a clock that the kernel does not
//! know, and the firmware has printed with them. Where no firmware has run, as under QEMU's `-kernel`, the port is off,
//! and is turned on with eight bits, a FIFO, and whatever divisor it has.

#![allow(unsafe_code, reason = "registers of the UART")]

use core::ptr::NonNull;

use arm_pl011_uart::{FifoLevel, Interrupts, PL011Registers, Uart};
use granule_arch::addr::VirtAddr;
use safe_mmio::UniqueMmioPointer;

use super::console::Console;
use crate::mmio;

/// UARTDR, at this offset.
const DATA: usize = 0;
/// UARTLCR_H, at this offset, and in it eight bits and the FIFO.
const LINE_CONTROL: usize = 0x2c;
const LINE_CONTROL_8_BITS_FIFO: u32 = 3 << 5 | 1 << 4;
/// UARTCR, at this offset, and in it the port itself, its transmitter and its receiver.
const CONTROL: usize = 0x30;
const CONTROL_ENABLE: u32 = 1 | 1 << 8 | 1 << 9;
/// UARTICR, at this offset, and all eleven interrupts in it.
const INTERRUPT_CLEAR: usize = 0x44;
const INTERRUPT_CLEAR_ALL: u32 = (1 << 11) - 1;

/// A PL011 whose registers are mapped.
pub struct Pl011 {
    registers: NonNull<PL011Registers>,
}

// SAFETY: the registers are used under the console's lock, or by the one CPU left after a panic: see `Console`.
unsafe impl Sync for Pl011 {}
// SAFETY: nothing in it belongs to one CPU.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// The PL011 at `registers`, turned on if it is not; `None` for address zero.
    ///
    /// # Safety
    /// A PL011's register page is mapped there as device memory for as long as the kernel runs.
    pub unsafe fn new(registers: VirtAddr) -> Option<Self> {
        let port = Self { registers: NonNull::new(registers.as_ptr())? };
        let register = |offset: usize| registers + offset as u64;
        // SAFETY: registers of the page that the caller has mapped. The crate cannot turn a port on without setting
        // its divisor from a clock rate.
        unsafe {
            if mmio::read::<u32>(register(CONTROL)) & CONTROL_ENABLE != CONTROL_ENABLE {
                // This empties the FIFO and leaves the receive interrupt of what was in it: no read would ever end
                // that.
                mmio::write(register(LINE_CONTROL), LINE_CONTROL_8_BITS_FIFO);
                mmio::write(register(INTERRUPT_CLEAR), INTERRUPT_CLEAR_ALL);
                mmio::write(register(CONTROL), CONTROL_ENABLE);
                // QEMU, whose model was full with the one byte that went with the FIFO, sends no more until one is
                // read.
                let _ = mmio::read::<u32>(register(DATA));
            }
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
        let mut uart = self.uart();
        loop {
            // An error belongs to the one byte that it came with: go on with the next.
            if let Ok(byte) = uart.read_word() {
                return byte;
            }
        }
    }

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
