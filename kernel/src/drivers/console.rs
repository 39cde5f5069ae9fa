//! The serial console: what the kernel prints, and what a person types.
//!
//! Output is polled and goes out whole: one [`print`] holds the lock, with interrupts masked, until its last byte is in
//! the transmitter, so that lines of two CPUs never mix. The lock has the last rank, so anything may print; formatting
//! must not print in turn. `\n` becomes `\r\n` on the line.
//!
//! Input is driven by interrupts into a queue. When the queue is full, the bytes stay in the device and its interrupt
//! is off until a reader has made room: nothing is dropped, and a sender that watches the device's FIFO, as QEMU does
//! with a pipe, waits.
//!
//! No address is written before the device tree is read: on another machine there is memory, another device or nothing
//! where a serial port was expected. Then the port that the tree names, or the boot argument `earlycon=`, is the *early*
//! console ([`init_early`]), mapped by a fixed slot; [`init`] replaces it when there are kernel mappings.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use granule_arch::addr::PhysAddr;
use heapless::Deque;
use linkme::distributed_slice;
use spin::Once;

use super::interrupt::{self, InterruptError};
use super::log::Ring;
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::platform::Interrupt;
use crate::sched::WaitQueue;
use crate::smp::Cpu;
use crate::sync::{IrqLock, rank};

#[distributed_slice(PARAMETERS)]
static EARLYCON: Parameter = Parameter {
    name: "earlycon",
    help: "the console until memory is set up: pl011,0xADDRESS; alone: the device tree's",
    check: |value| parse_earlycon(value).map(drop),
};

/// Bytes typed ahead.
const QUEUE: usize = 256;

/// A serial port. All calls come with the console's lock held, or from the one CPU that is left after a panic.
pub trait Console: Sync {
    /// Sends `byte`, waiting until the device can take it.
    fn write(&self, byte: u8);
    /// The next byte that the device has received, if any. Bytes that arrived damaged are skipped.
    fn read(&self) -> Option<u8>;
    /// Makes the device interrupt when there is something to [`read`](Self::read), or stop doing so.
    fn set_receive_interrupt(&self, on: bool);
}

/// What the console's lock protects.
pub(super) struct Terminal {
    received: Deque<u8, QUEUE>,
    /// The queue was full: the rest is in the device, whose interrupt is off.
    held_back: bool,
    /// The last lines of the log.
    pub(super) ring: Ring,
}

static TERMINAL: IrqLock<Terminal, { rank::CONSOLE }> = IrqLock::new(Terminal::new());
static EARLY: Once<&'static dyn Console> = Once::new();
static PORT: Once<&'static dyn Console> = Once::new();
/// Input comes by interrupts; until then it is polled.
static RECEIVING: AtomicBool = AtomicBool::new(false);
/// Threads that wait for input.
static READERS: WaitQueue<()> = WaitQueue::new();
/// See [`take_over`].
static TAKEN_OVER: AtomicBool = AtomicBool::new(false);

/// What `earlycon=` names: the physical address of a PL011's registers. `None` where there is no such argument, it stands
/// alone, or its value is bad, of which [`bootargs::check`] warns.
pub fn earlycon() -> Option<PhysAddr> {
    parse_earlycon(bootargs::get("earlycon")?).ok().flatten()
}

fn parse_earlycon(value: &str) -> Result<Option<PhysAddr>, Refused> {
    if value.is_empty() {
        return Ok(None);
    }
    let digits = value.strip_prefix("pl011,").map(|rest| rest.strip_prefix("mmio32,").unwrap_or(rest));
    let digits = digits.and_then(|digits| digits.strip_prefix("0x"));
    let address = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let aligned = address.filter(|address| address.is_multiple_of(4)).map(PhysAddr);
    aligned.map(Some).ok_or_else(|| Refused::because("pl011,0x and the address of its registers in hexadecimal"))
}

/// Whether there is a port that [`print`] prints on.
pub fn is_connected() -> bool {
    port().is_some()
}

/// Prints on `port` until [`init`] has the mapping that stays.
pub fn init_early(port: &'static dyn Console) {
    EARLY.call_once(|| port);
}

/// Prints on `port` from now on.
pub fn init(port: &'static dyn Console) {
    PORT.call_once(|| port);
}

/// Has input come by interrupts, which `cpu`, this one, takes.
///
/// # Errors
/// Those of [`interrupt::register`]; input is polled then, as before.
pub fn start_receiving(line: Interrupt, cpu: &Cpu) -> Result<(), InterruptError> {
    interrupt::register(line, cpu, handle_interrupt)?;
    let mut terminal = TERMINAL.lock();
    if let Some(port) = port() {
        RECEIVING.store(true, Ordering::Relaxed);
        port.set_receive_interrupt(true);
        // What came before may have no interrupt to tell of it.
        terminal.receive(port);
    }
    Ok(())
}

fn handle_interrupt(_: &Cpu) {
    if let Some(port) = port() {
        TERMINAL.lock().receive(port);
    }
    READERS.lock().wake_all();
}

/// Prints, whole and in one piece.
pub fn print(arguments: fmt::Arguments<'_>) {
    with_terminal(|_| {
        // Writing to the port does not fail; an error could only come from a `Display` that gives up.
        let _ = Line.write_fmt(arguments);
    });
}

/// Prints bytes as they are: no `\r` is added. For what has framing of its own.
pub fn write_raw(bytes: &[u8]) {
    with_terminal(|_| {
        if let Some(port) = port() {
            bytes.iter().for_each(|&byte| port.write(byte));
        }
    });
}

/// Prints bytes that need not be text, whole and in one piece, with the line ends that a terminal wants.
pub fn write_text(bytes: &[u8]) {
    with_terminal(|_| Line.write_bytes(bytes));
}

/// Waits for a byte of input. The thread sleeps meanwhile: others run.
pub fn read_byte() -> u8 {
    loop {
        if let Some(byte) = wait_for_byte() {
            return byte;
        }
    }
}

/// Waits for a byte of input; `None` where the thread has a signal to see to first.
#[cfg(target_os = "none")]
pub fn wait_for_byte() -> Option<u8> {
    /// How often input is looked for where no interrupt tells of it: before a device's FIFO is full.
    const POLL: core::time::Duration = core::time::Duration::from_millis(1);
    loop {
        let mut byte = try_read_byte();
        if byte.is_some() {
            return byte;
        }
        let woken = if RECEIVING.load(Ordering::Relaxed) {
            let look = || {
                byte = try_read_byte();
                byte.is_some()
            };
            READERS.lock().wait_unless((), None, look)
        } else {
            Some(crate::sched::sleep_until(super::timer::Deadline::after(POLL)))
        };
        if byte.is_some() || woken == Some(crate::sched::Woken::Interrupted) {
            return byte;
        }
    }
}

/// Waits for a byte of input; on the host there is none.
#[cfg(not(target_os = "none"))]
fn wait_for_byte() -> Option<u8> {
    std::thread::yield_now();
    try_read_byte()
}

/// The next byte of input, if there is one.
pub fn try_read_byte() -> Option<u8> {
    let mut terminal = TERMINAL.lock();
    let port = port()?;
    if terminal.received.is_empty() && !RECEIVING.load(Ordering::Relaxed) {
        return port.read();
    }
    let byte = terminal.received.pop_front();
    if terminal.held_back {
        terminal.receive(port);
    }
    byte
}

/// From now on prints without the lock, whose holder will never let go of it. Returns whether this is the first call.
///
/// For a panic only, when every other CPU has been stopped, possibly in the middle of a line.
pub fn take_over() -> bool {
    !TAKEN_OVER.swap(true, Ordering::Relaxed)
}

/// Runs `use_it` with the lock held; without the terminal where a panic has taken the console over.
pub(super) fn with_terminal<R>(use_it: impl FnOnce(Option<&mut Terminal>) -> R) -> R {
    if TAKEN_OVER.load(Ordering::Relaxed) {
        return use_it(None);
    }
    use_it(Some(&mut TERMINAL.lock()))
}

fn port() -> Option<&'static dyn Console> {
    PORT.get().or_else(|| EARLY.get()).copied()
}

impl Terminal {
    const fn new() -> Self {
        Self { received: Deque::new(), held_back: false, ring: Ring::new() }
    }

    /// Moves bytes from the device to the queue, as many as there is room for.
    fn receive(&mut self, port: &dyn Console) {
        let was_held_back = core::mem::take(&mut self.held_back);
        while !self.received.is_full() {
            let Some(byte) = port.read() else { break };
            // There is room: that is the loop's condition.
            let _ = self.received.push_back(byte);
        }
        self.held_back = self.received.is_full();
        if self.held_back != was_held_back {
            port.set_receive_interrupt(!self.held_back);
        }
    }
}

/// Text to the port, with the line ends that a terminal wants. Whoever has one holds the console's lock.
pub(super) struct Line;

impl Line {
    fn write_bytes(&self, bytes: &[u8]) {
        if let Some(port) = port() {
            for &byte in bytes {
                if byte == b'\n' {
                    port.write(b'\r');
                }
                port.write(byte);
            }
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::drivers::console::print(::core::format_args!($($argument)*)) };
}

/// Prints to the console, and ends the line.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::drivers::console::print(::core::format_args!("{}\n", ::core::format_args!($($argument)*))) };
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use granule_arch::addr::PhysAddr;

    use super::{Console, QUEUE, Terminal, parse_earlycon};

    /// A port with a FIFO of its own.
    #[derive(Default)]
    struct Fake {
        fifo: Mutex<VecDeque<u8>>,
        interrupt: Mutex<Option<bool>>,
    }

    impl Console for Fake {
        fn write(&self, _byte: u8) {}
        fn read(&self) -> Option<u8> {
            self.fifo.lock().unwrap().pop_front()
        }
        fn set_receive_interrupt(&self, on: bool) {
            *self.interrupt.lock().unwrap() = Some(on);
        }
    }

    #[test]
    fn a_full_queue_leaves_the_rest_in_the_device_and_loses_nothing() {
        let port = Fake::default();
        let sent: Vec<u8> = (0..QUEUE + 40).map(|index| index as u8).collect();
        port.fifo.lock().unwrap().extend(&sent);
        let mut terminal = Terminal::new();
        terminal.receive(&port);
        assert!(terminal.held_back);
        assert_eq!(*port.interrupt.lock().unwrap(), Some(false));

        let mut got = Vec::new();
        while let Some(byte) = terminal.received.pop_front() {
            got.extend([byte]);
            if terminal.held_back {
                terminal.receive(&port);
            }
        }
        assert_eq!(got, sent);
        assert!(!terminal.held_back);
        assert_eq!(*port.interrupt.lock().unwrap(), Some(true), "the interrupt is on again");
    }

    #[test]
    fn earlycon_names_a_pl011_by_its_address() {
        let parse = |value| parse_earlycon(value).ok();
        assert_eq!(parse(""), Some(None));
        assert_eq!(parse("pl011,0x9000000"), Some(Some(PhysAddr(0x900_0000))));
        assert_eq!(parse("pl011,mmio32,0xfe201000"), Some(Some(PhysAddr(0xfe20_1000))));
        for bad in
            ["pl011", "pl011,", "pl011,9000000", "uart8250,0x9000000", "pl011,0x9000002", "pl011,0x1ffffffffffffffff"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_interrupt_is_left_alone_while_there_is_room() {
        let port = Fake::default();
        port.fifo.lock().unwrap().extend(b"help\n");
        let mut terminal = Terminal::new();
        terminal.receive(&port);
        assert_eq!(*port.interrupt.lock().unwrap(), None);
        assert_eq!(terminal.received.len(), 5);
    }
}
