//! Serial ports by tables: one driver for every UART that is not a PL011.
//!
//! As a console uses them, UARTs differ by their registers alone: where a byte is written and read, which bit tells that
//! there is room, that a byte is here, that it is damaged, and which enables an interrupt. A [`Family`] is that in a table
//! ([`families`]), with the steps that take the port over from the firmware.
//!
//! Of what the firmware left, baud rate, clocks and the format of characters stay, as for a [`Pl011`]. Interrupts are
//! masked; loopback, a break, flow control and DMA are switched off.
//!
//! The PL011 has the crate `arm-pl011-uart`. For the 8250 family no crate fits: `uart_16550` makes accesses of bytes
//! alone, where more than half of the boards have words, and gives a port to its caller only once it has programmed
//! divisor and format; `synopsys-dw-uart` has words at one distance, and neither interrupts nor a take-over. Accesses are
//! those of [`mmio`], by `safe-mmio`.

#![allow(unsafe_code, reason = "registers of the UART")]

mod families;

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::VirtAddr;

use super::console::Console;
use super::pl011::Pl011;
use crate::mmio;
use crate::platform::{RegisterWidth, Uart, UartKind, UartLayout};
use crate::trap::probe::{self, ProbeFault};

/// Looks at a port that is to have sent its last byte, or to have stopped: longer than any takes.
const PATIENCE: u32 = if cfg!(test) { 100 } else { 1_000_000 };
/// Damaged bytes that are skipped at once: a port that reports nothing else is not waited for.
pub(super) const MOST_SKIPPED: u32 = 256;

/// A serial port whose registers are mapped.
pub enum Port {
    /// By its crate.
    Pl011(Pl011),
    /// By a table.
    Registers(RegisterUart),
}

impl Port {
    /// Reads a register of `uart`, whose registers are mapped at `mapped`, that a read does not change.
    ///
    /// # Errors
    /// Nothing answers there.
    pub fn probe(uart: &Uart, mapped: VirtAddr) -> Result<(), ProbeFault> {
        /// UARTFR.
        const PL011_FLAGS: Register = Register::word(0x18);
        let register = families::of(uart.kind).map_or(PL011_FLAGS, |family| family.probe);
        let address = mapped + register.offset(uart.layout);
        match register.width(uart.layout) {
            RegisterWidth::Byte => probe::read::<u8>(address).map(drop),
            RegisterWidth::Half => probe::read::<u16>(address).map(drop),
            RegisterWidth::Word => probe::read::<u32>(address).map(drop),
        }
    }

    /// Takes `uart` over, without interrupts; `None` for address zero.
    ///
    /// # Safety
    /// Its registers are mapped at `mapped` as device memory, for as long as the kernel runs.
    pub unsafe fn new(uart: &Uart, mapped: VirtAddr) -> Option<Self> {
        match families::of(uart.kind) {
            // SAFETY: the caller's.
            None => unsafe { Pl011::new(mapped) }.map(Self::Pl011),
            Some(_) if mapped.0 == 0 => None,
            // SAFETY: the caller's.
            Some(family) => Some(Self::Registers(unsafe { RegisterUart::new(family, uart.layout, mapped) })),
        }
    }

    /// The console that prints on it.
    pub fn console(&self) -> &dyn Console {
        match self {
            Self::Pl011(port) => port,
            Self::Registers(port) => port,
        }
    }
}

/// A register: its place, and how it is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Register {
    /// Bytes from the first register; registers, where the kind has a distance between them.
    offset: u16,
    /// `None` as the tree has it.
    width: Option<RegisterWidth>,
}

impl Register {
    const fn word(offset: u16) -> Self {
        Self { offset, width: Some(RegisterWidth::Word) }
    }

    const fn half(offset: u16) -> Self {
        Self { offset, width: Some(RegisterWidth::Half) }
    }

    const fn byte(offset: u16) -> Self {
        Self { offset, width: Some(RegisterWidth::Byte) }
    }

    const fn by_layout(offset: u16) -> Self {
        Self { offset, width: None }
    }

    fn offset(self, layout: UartLayout) -> u64 {
        u64::from(self.offset) << layout.shift
    }

    fn width(self, layout: UartLayout) -> RegisterWidth {
        self.width.unwrap_or(layout.width)
    }
}

/// A condition that a register reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flag {
    /// One of these bits is one.
    Set(Register, u32),
    /// All of these bits are zero.
    Clear(Register, u32),
}

impl Flag {
    const fn register(self) -> Register {
        match self {
            Self::Set(register, _) | Self::Clear(register, _) => register,
        }
    }

    const fn is_in(self, value: u32) -> bool {
        match self {
            Self::Set(_, bits) => value & bits != 0,
            Self::Clear(_, bits) => value & bits == 0,
        }
    }
}

/// Where a damaged byte is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Damage {
    /// By these bits of the register that reports that a byte is here. Some have their read end the report.
    InStatus(u32),
    /// By these bits of what is read with the byte.
    InData(u32),
    /// By another register, read before the byte.
    Elsewhere(Flag),
}

/// One access, or a few.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The register gets this value.
    Write(Register, u32),
    /// Of the register, `keep` stays and `set` is set. Not written where that changes nothing.
    Change { register: Register, keep: u32, set: u32 },
    /// These bits of the first register, as they are read, are written to the second: flags are cleared by a one.
    Copy { from: Register, to: Register, bits: u32 },
    /// The register is read: that clears flags.
    Read(Register),
    /// As [`Self::Read`], where all of these are so.
    ReadIf(&'static [Flag], Register),
    /// Until this is so, or longer than it takes.
    Wait(Flag),
}

/// How an interrupt is enabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Enable {
    register: Register,
    bits: u32,
    by: By,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The bits are set in the register, and cleared to disable it.
    Setting,
    /// The other way round: the register masks.
    Clearing,
    /// A one enables; a one in this other register disables.
    Pair(Register),
    /// As `Setting`, but the register cannot be read.
    WritingAll,
}

/// Registers that are written before bytes: a port that takes them as a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packet {
    /// Gets the count of bytes.
    length: Register,
    /// Gets the command.
    start: Register,
    command: u32,
}

/// All that a console needs to know of a UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Family {
    /// A register that a read does not change.
    probe: Register,
    /// Steps that take a port over from the firmware.
    take_over: &'static [Step],
    transmit: Register,
    receive: Register,
    /// There is room for a byte; for `burst`, where `has_fifo`.
    room: Flag,
    has_fifo: &'static [Flag],
    burst: usize,
    packet: Option<Packet>,
    /// All that was written is on the line: all of these.
    idle: &'static [Flag],
    received: Flag,
    damage: Damage,
    /// Bytes were lost, and until `clear` no more are received.
    overrun: Option<Flag>,
    /// Ends the report of a damaged byte and of an overrun.
    clear: &'static [Step],
    /// After bytes were written, and after one was read.
    written: &'static [Step],
    read: &'static [Step],
    /// Steps that end what an interrupt left standing. In front of reading and writing: later causes interrupt again.
    acknowledge: &'static [Step],
    receive_interrupt: Enable,
    transmit_interrupt: Enable,
}

/// A port of a [`Family`].
pub struct RegisterUart {
    family: &'static Family,
    layout: UartLayout,
    registers: VirtAddr,
    /// Bytes that are written where there is room.
    burst: usize,
    /// Damage that was read with the register that reports room, which may be the same. Used under the console's lock.
    damage: AtomicU32,
    /// Interrupts that are enabled, where their register cannot be read. Under the same lock.
    enabled: AtomicU32,
}

impl RegisterUart {
    /// # Safety
    /// The registers of such a port are mapped there as device memory, for as long as the kernel runs.
    unsafe fn new(family: &'static Family, layout: UartLayout, registers: VirtAddr) -> Self {
        let (damage, enabled) = (AtomicU32::new(0), AtomicU32::new(0));
        let port = Self { family, layout, registers, burst: 1, damage, enabled };
        port.run(family.take_over);
        let burst = if port.holds_all(family.has_fifo) { family.burst } else { 1 };
        Self { burst, ..port }
    }

    fn read_register(&self, register: Register) -> u32 {
        let address = self.registers + register.offset(self.layout);
        // SAFETY: mapped for ever (`new`); the tables name registers of the port alone, none of which a read harms.
        unsafe {
            match register.width(self.layout) {
                RegisterWidth::Byte => mmio::read::<u8>(address).into(),
                RegisterWidth::Half => mmio::read::<u16>(address).into(),
                RegisterWidth::Word => mmio::read::<u32>(address),
            }
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        let address = self.registers + register.offset(self.layout);
        // SAFETY: as above; the tables write what a console needs.
        unsafe {
            match register.width(self.layout) {
                RegisterWidth::Byte => mmio::write(address, value as u8),
                RegisterWidth::Half => mmio::write(address, value as u16),
                RegisterWidth::Word => mmio::write(address, value),
            }
        }
    }

    fn holds(&self, flag: Flag) -> bool {
        let value = self.read_register(flag.register());
        if let Damage::InStatus(bits) = self.family.damage
            && flag.register() == self.family.received.register()
        {
            self.damage.fetch_or(value & bits, Ordering::Relaxed);
        }
        flag.is_in(value)
    }

    fn holds_all(&self, flags: &[Flag]) -> bool {
        flags.iter().all(|&flag| self.holds(flag))
    }

    fn run(&self, steps: &[Step]) {
        for &step in steps {
            match step {
                Step::Write(register, value) => self.write_register(register, value),
                Step::Change { register, keep, set } => {
                    let value = self.read_register(register);
                    if value & keep | set != value {
                        self.write_register(register, value & keep | set);
                    }
                }
                Step::Copy { from, to, bits } => self.write_register(to, self.read_register(from) & bits),
                Step::Read(register) => drop(self.read_register(register)),
                Step::ReadIf(flags, register) => {
                    if self.holds_all(flags) {
                        self.read_register(register);
                    }
                }
                Step::Wait(flag) => drop((0..PATIENCE).any(|_| self.holds(flag))),
            }
        }
    }

    fn enable(&self, Enable { register, bits, by }: Enable, on: bool) {
        match by {
            By::Setting | By::Clearing => {
                let set = if on == (by == By::Setting) { bits } else { 0 };
                self.run(&[Step::Change { register, keep: !bits, set }]);
            }
            By::Pair(off) => self.write_register(if on { register } else { off }, bits),
            By::WritingAll => {
                let enabled = self.enabled.load(Ordering::Relaxed) & !bits | if on { bits } else { 0 };
                self.enabled.store(enabled, Ordering::Relaxed);
                self.write_register(register, enabled);
            }
        }
    }
}

impl Console for RegisterUart {
    fn write(&self, bytes: &[u8]) -> usize {
        let family = self.family;
        let mut taken = 0;
        for now in bytes.chunks(self.burst.max(1)) {
            if !self.holds(family.room) {
                break;
            }
            if let Some(Packet { length, start, command }) = family.packet {
                self.write_register(length, now.len() as u32);
                self.write_register(start, command);
            }
            now.iter().for_each(|&byte| self.write_register(family.transmit, byte.into()));
            self.run(family.written);
            taken += now.len();
        }
        taken
    }

    fn is_busy(&self) -> bool {
        !self.holds_all(self.family.idle)
    }

    fn read(&self) -> Option<u8> {
        let family = self.family;
        for _ in 0..MOST_SKIPPED {
            let status = self.read_register(family.received.register());
            if !family.received.is_in(status) {
                if family.overrun.is_some_and(|overrun| self.holds(overrun)) {
                    self.run(family.clear);
                }
                return None;
            }
            let noted = self.damage.swap(0, Ordering::Relaxed);
            let is_reported = match family.damage {
                Damage::InStatus(bits) => (status | noted) & bits != 0,
                Damage::InData(_) => false,
                Damage::Elsewhere(flag) => self.holds(flag),
            };
            let data = self.read_register(family.receive);
            self.run(family.read);
            if !is_reported && !matches!(family.damage, Damage::InData(bits) if data & bits != 0) {
                return Some(data as u8);
            }
            self.run(family.clear);
        }
        None
    }

    fn acknowledge(&self) {
        self.run(self.family.acknowledge);
    }

    fn set_receive_interrupt(&self, on: bool) {
        self.enable(self.family.receive_interrupt, on);
    }

    fn set_transmit_interrupt(&self, on: bool) {
        self.enable(self.family.transmit_interrupt, on);
    }
}

#[cfg(test)]
mod tests;
