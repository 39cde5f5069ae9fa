//! The serial console: what the kernel prints, and what a person types.
//!
//! Output is buffered ([`Output`]). One [`print`] adds its text under one hold of the lock, so that lines of two CPUs
//! never mix; the lock, which masks interrupts, is then held for a few bytes at a time until the port has taken them or
//! its FIFO is full: the transmit interrupt sends what is left. A print waits for room before it begins, not while it
//! holds the lock; one that is longer than that room waits at the end of a line, where output of others may come in
//! between. A caller that has interrupts masked cannot wait like that: where the buffer is full it polls the port.
//! After a panic, and before there are interrupts, all output is polled. The lock has the last rank, so anything may
//! print; formatting must not print in turn. `\n` becomes `\r\n` on the line.
//!
//! Input is driven by interrupts into a queue. When there is no room, the bytes stay in the device and its interrupt
//! is off until a reader has made some: nothing is dropped, and a sender that watches the device's FIFO, as QEMU does
//! with a pipe, waits.
//!
//! Of programs only those of the [`Foreground`] read: the others' reads find nothing, and wait until they are in it.
//! While there is one, Ctrl-C is no input but interrupts the thread that has it. A program that reads nothing must not
//! hide it: so as long as there is a foreground, what does not fit into the queue is taken from the device too, and
//! waits behind the queue, up to a bound, beyond which Ctrl-C stays in the device with all else. Linux's line
//! discipline takes 4,095 bytes of whole lines and stops there, Ctrl-C or not; what it drops of a longer line a script
//! here would lack.
//!
//! While there is an [`EditedLine`], others' output erases that line first, and the thread that edits it draws it again
//! below.
//!
//! No address is written before the device tree is read: on another machine there is memory, another device or nothing
//! where a serial port was expected. Then the port that the tree names, or the boot argument `earlycon=`, is the
//! *early* console ([`init_early`]), mapped by a fixed slot; [`init`] replaces it when there are kernel mappings.

#![allow(unsafe_code, reason = "the terminal in its static, for a panic that found its lock held")]

mod person;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use granule_arch::addr::PhysAddr;
use granule_arch::{interrupts, wait};
use heapless::Deque;
use linkme::distributed_slice;
use spin::Once;

use super::interrupt::{self, InterruptError};
use super::output::{LINE_ROOM, Output, ROOM, with_line_ends};
use super::timer::Deadline;
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::mm::OutOfMemory;
use crate::platform::{Interrupt, Uart, UartKind};
use crate::sched::{PollNode, PollQueue, ThreadRef, Woken, poll_until};
use crate::smp::cpu::Cpu;
use crate::sync::{IrqGuard, IrqLock, rank};

use person::wake_foreground;
pub use person::{EditedLine, Foreground};

#[distributed_slice(PARAMETERS)]
static EARLYCON: Parameter = Parameter {
    name: "earlycon",
    help: "the console until memory is set up: KIND,0xADDRESS[,STRIDE]; alone: the device tree's",
    check: |value| parse_earlycon(value).map(drop),
};

/// The byte that Ctrl-C sends.
const INTERRUPT: u8 = 0x03;
/// To the start of the line, and erase it to its end (ECMA-48).
const ERASE_LINE: &[u8] = b"\r\x1b[K";
/// Between two polls: of a port without interrupts, before its FIFO overflows; of the room for output.
const POLL: core::time::Duration = core::time::Duration::from_millis(1);

/// Bytes typed ahead. The device gives at most as many while interrupts are masked; its interrupt stands for the rest.
const QUEUE: usize = 256;
/// Bytes typed ahead beyond these while there is a [`Foreground`].
const BEHIND: usize = 1 << 16;

/// A serial port. All calls come with the console's lock held, or from the one CPU that is left after a panic.
pub trait Console: Sync {
    /// Sends the first of `bytes`, as many as the transmitter has room for now; returns how many.
    fn write(&self, bytes: &[u8]) -> usize;
    /// Whether bytes that the transmitter has taken are not on the line yet.
    fn is_busy(&self) -> bool;
    /// The next byte that the device has received, if any. Bytes that arrived damaged are skipped.
    fn read(&self) -> Option<u8>;
    /// Ends what an interrupt left standing in the device, in front of reading and writing: what comes after it
    /// interrupts again. Only from the handler of the interrupt, which then does both.
    fn acknowledge(&self);
    /// Makes the device interrupt when there is something to [`read`](Self::read), or stop doing so.
    fn set_receive_interrupt(&self, on: bool);
    /// Makes the device interrupt when its FIFO, which was full, has room again, or stop doing so.
    fn set_transmit_interrupt(&self, on: bool);
}

/// The state that the console's lock protects. All zeros at first: the image does not contain it.
pub(super) struct Terminal {
    received: Deque<u8, QUEUE>,
    /// Bytes behind `received`, which is full then. They came while there was a foreground, so none is Ctrl-C.
    behind: Deque<u8, BEHIND>,
    /// There was no room: the rest is in the device, whose interrupt is off.
    held_back: bool,
    /// Output that the port has not taken yet.
    pub(super) output: Output,
    /// The transmit interrupt is on: it sends what is in `output`.
    transmits: bool,
    /// The programs of the [`Foreground`], if there is one.
    foreground: Option<Family>,
    /// How often Ctrl-C was received and not taken yet ([`Foreground::take_interrupt`]).
    interrupts: u32,
    line: Edited,
    /// The last line of the output has not ended.
    in_line: bool,
    /// The last line of others' output, before which the edited line was erased, has not ended.
    others_in_line: bool,
}

/// A program that the kernel started, and its descendants: its serial number.
pub type Family = u64;

/// A reader of the console's input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// A thread of the kernel, at any time.
    Kernel,
    /// A program of this family, while that has the [`Foreground`].
    Program(Family),
}

/// The line of an [`EditedLine`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edited {
    /// There is none.
    None,
    /// It is the last line of the output.
    Shown,
    /// It was erased before others' output.
    Erased,
}

type Guard = IrqGuard<'static, Terminal, { rank::CONSOLE }>;

static TERMINAL: IrqLock<Terminal, { rank::CONSOLE }> = IrqLock::new(Terminal::new());
static EARLY: Once<&'static dyn Console> = Once::new();
static PORT: Once<&'static dyn Console> = Once::new();
/// The device's interrupts arrive; until then it is polled.
static RECEIVING: AtomicBool = AtomicBool::new(false);
/// Threads that wait for input.
static POLLERS: PollQueue = PollQueue::new();
/// The thread that wakes them: a program chooses how many there are, and an interrupt has not the time.
static WAKER: Once<ThreadRef> = Once::new();
/// See [`take_over`].
static TAKEN_OVER: AtomicBool = AtomicBool::new(false);

/// The port of `earlycon=`. `None` where there is no such argument, it stands alone, or its value is bad, of which
/// [`bootargs::check`] warns.
pub fn earlycon() -> Option<Uart> {
    parse_earlycon(bootargs::get("earlycon")?).ok().flatten()
}

/// `KIND,0xADDRESS[,STRIDE]`. Linux's words for the width of accesses may stand in front of the address of a PL011,
/// which has one width; its stride, in bytes, is that width too where a kind has both.
fn parse_earlycon(value: &str) -> Result<Option<Uart>, Refused> {
    const FORM: &str = "KIND,0xADDRESS[,STRIDE], with the address of its registers in hexadecimal";
    const KINDS: &str =
        "pl011 sbsa ns16550 omap dw bcm2835aux imx lpuart meson cadence exynos armada3700 geni uartdm scif";
    const STRIDE: &str = "STRIDE is 1, 2 or 4 bytes, and for ns16550, omap, dw, bcm2835aux and scif alone";
    if value.is_empty() {
        return Ok(None);
    }
    let (name, rest) = value.split_once(',').ok_or_else(|| Refused::because(FORM))?;
    let kind = UartKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Refused::because(KINDS))?;
    let rest = if kind == UartKind::Pl011 { rest.strip_prefix("mmio32,").unwrap_or(rest) } else { rest };
    let (digits, stride) = rest.split_once(',').map_or((rest, None), |(digits, stride)| (digits, Some(stride)));
    let digits = digits.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
    let address = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let address = address.map(PhysAddr).ok_or_else(|| Refused::because(FORM))?;
    let layout = match stride {
        None => kind.usual_layout(),
        Some(stride) => kind.layout_of_stride(stride).ok_or_else(|| Refused::because(STRIDE))?,
    };
    let uart = Uart::at(kind, address, layout);
    uart.map(Some).ok_or_else(|| Refused::because("the address of registers, aligned to their width"))
}

/// Whether there is a port that [`print`] prints on.
pub fn is_connected() -> bool {
    port().is_some()
}

/// Prints on `port` until [`init`] has the mapping that stays.
pub fn init_early(port: &'static dyn Console) {
    EARLY.call_once(|| port);
}

/// Takes what the early console received as input, before another driver takes the port over.
pub fn keep_early_input() {
    if let Some(early) = EARLY.get() {
        TERMINAL.lock().fill(*early);
    }
}

/// Prints on `port` from now on.
pub fn init(port: &'static dyn Console) {
    PORT.call_once(|| port);
}

/// Has input come, and output go, by interrupts, which `cpu`, this one, takes.
///
/// # Errors
/// Those of [`interrupt::register`]; both are polled then, as before.
pub fn start_receiving(line: Interrupt, cpu: &Cpu) -> Result<(), InterruptError> {
    interrupt::register(line, cpu, handle_interrupt)?;
    let mut terminal = TERMINAL.lock();
    if let Some(port) = port() {
        RECEIVING.store(true, Ordering::Relaxed);
        port.set_receive_interrupt(true);
        // Input that came before may have raised no interrupt.
        terminal.receive(port);
    }
    Ok(())
}

/// Starts the thread that wakes those that wait for input. No thread waits before.
///
/// # Errors
/// [`OutOfMemory`].
pub fn start_waker(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
    let waker = crate::sched::spawn_service(cpu, "console", wake_readers)?;
    WAKER.call_once(|| waker);
    Ok(())
}

extern "C" fn wake_readers(_: usize) -> ! {
    loop {
        crate::sched::park();
        POLLERS.wake(PollQueue::ANY);
    }
}

fn handle_interrupt(_: &Cpu) {
    let Some(port) = port() else { return };
    let (received, interrupted) = {
        let mut terminal = TERMINAL.lock();
        terminal.handle_interrupt(port);
        (!terminal.received.is_empty(), terminal.interrupts != 0)
    };
    if received && let Some(waker) = WAKER.get() {
        waker.unpark();
    }
    if interrupted {
        wake_foreground();
    }
}

/// Prints, in one piece; see the module's documentation for what is longer than [`ROOM`].
pub fn print(arguments: fmt::Arguments<'_>) {
    add_output(|print| {
        // Writing to the port does not fail; an error could only come from a `Display` that gives up.
        let _ = print.write_fmt(arguments);
    });
}

/// Prints for the thread that edits a line: an [`EditedLine`] is not erased. Else as [`print`].
pub fn print_by_editor(arguments: fmt::Arguments<'_>) {
    add_output_by(Author::Editor, |print| {
        let _ = print.write_fmt(arguments);
    });
}

/// Prints bytes that need not be text, in one piece, with the line ends that a terminal wants.
pub fn write_text(bytes: &[u8]) {
    add_output(|print| print.write_bytes(bytes));
}

/// Sleeps until there is room for a print of [`ROOM`] bytes; returns false where the thread has a signal to handle
/// first.
pub fn wait_for_room() -> bool {
    while !has_room() {
        if crate::sched::sleep_until(Deadline::after(POLL)) == crate::sched::Woken::Interrupted {
            return false;
        }
    }
    true
}

/// Bytes that were printed and that the port has not taken yet.
pub fn unsent() -> usize {
    TERMINAL.lock().output.len()
}

/// Whether there is input for `reader`.
pub fn has_input(reader: Reader) -> bool {
    let Some(port) = port() else { return false };
    let mut terminal = TERMINAL.lock();
    if !RECEIVING.load(Ordering::Relaxed) {
        terminal.fill(port);
    }
    terminal.may_read(reader) && !terminal.received.is_empty()
}

/// The pollers to wake when there is input, and when other programs may read it; none where the port is polled.
pub fn pollers() -> &'static PollQueue {
    &POLLERS
}

/// Waits for a byte of input. The thread sleeps until then: others run.
pub fn read_byte() -> u8 {
    loop {
        if let Some(byte) = wait_for_byte(Reader::Kernel) {
            return byte;
        }
    }
}

/// Waits for a byte of input that `reader` may read; `None` where the thread has a signal to see to first.
pub fn wait_for_byte(reader: Reader) -> Option<u8> {
    loop {
        let mut byte = try_read_byte(reader);
        if byte.is_some() {
            return byte;
        }
        let woken = if RECEIVING.load(Ordering::Relaxed) {
            let mut look = || {
                byte = try_read_byte(reader);
                byte.is_some()
            };
            poll_until(&mut [PollNode::new(&POLLERS)], None, &mut look)
        } else {
            crate::sched::sleep_until(Deadline::after(POLL))
        };
        if byte.is_some() || woken == Woken::Interrupted {
            return byte;
        }
    }
}

/// The next byte of input, if there is one that `reader` may read.
pub fn try_read_byte(reader: Reader) -> Option<u8> {
    let port = port()?;
    let mut terminal = TERMINAL.lock();
    let byte = terminal.next_byte(port, reader);
    let interrupted = terminal.interrupts != 0;
    drop(terminal);
    if interrupted {
        wake_foreground();
    }
    byte
}

/// Polls for a byte of input, for the kernel; `None` once none has come for `patience`.
pub fn poll_byte(patience: core::time::Duration) -> Option<u8> {
    /// Between two looks: a bus or an emulator that serves the port has its time, and no FIFO overflows, of 16 bytes up
    /// to 3 million bits per second.
    const PAUSE: core::time::Duration = core::time::Duration::from_micros(20);
    let patience = Deadline::after(patience);
    while !patience.has_passed() {
        let byte = try_read_byte(Reader::Kernel);
        if byte.is_some() {
            return byte;
        }
        let pause = Deadline::after(PAUSE);
        while !pause.has_passed() {
            wait::relax();
        }
    }
    None
}

/// Sends what has been printed, and from now on prints without the lock, whose holder will never release it. Returns
/// whether this is the first call.
///
/// For a panic only, when every other CPU has been stopped, possibly in the middle of a line.
pub fn take_over() -> bool {
    let first = !TAKEN_OVER.swap(true, Ordering::Relaxed);
    if first && let Some(port) = port() {
        // SAFETY: the other CPUs have been stopped, and this one does not return to code that holds the lock. Wherever
        // its holder was interrupted, the buffer's positions are counts and its bytes are bytes.
        unsafe { &mut (*TERMINAL.as_mut_ptr()).output }.send_all(port);
    }
    first
}

/// Sends what has been printed, and returns when it is on the line. For the machine's end: interrupts are masked.
pub fn flush() {
    /// Tries for the lock. A CPU that was stopped while it held it never releases it.
    const TRIES: usize = 1 << 20;
    /// Longest time that the FIFO is waited for: 32 bytes at 9,600 baud take 33 ms.
    const LONGEST: core::time::Duration = core::time::Duration::from_millis(100);
    let Some(port) = port() else { return };
    if !TAKEN_OVER.load(Ordering::Relaxed)
        && let Some(mut terminal) = (0..TRIES).find_map(|_| TERMINAL.try_lock().or_else(none_yet))
    {
        terminal.output.send_all(port);
    }
    let deadline = Deadline::after(LONGEST);
    while port.is_busy() && !deadline.has_passed() {
        wait::relax();
    }
}

fn none_yet() -> Option<Guard> {
    wait::relax();
    None
}

/// Runs `use_it` with the lock held; without the terminal where a panic has taken the console over.
pub(super) fn with_terminal<R>(use_it: impl FnOnce(Option<&mut Terminal>) -> R) -> R {
    if TAKEN_OVER.load(Ordering::Relaxed) {
        return use_it(None);
    }
    use_it(Some(&mut TERMINAL.lock()))
}

/// Runs `add_it`, which adds output, and starts to send that.
pub(super) fn add_output(add_it: impl FnOnce(&mut Print)) {
    add_output_by(Author::Other, add_it);
}

fn add_output_by(author: Author, add_it: impl FnOnce(&mut Print)) {
    if TAKEN_OVER.load(Ordering::Relaxed) {
        return add_it(&mut Print { terminal: None, author });
    }
    let mut print = Print { terminal: None, author };
    print.begin_piece();
    add_it(&mut print);
    print.end_piece();
    let (Some(mut terminal), Some(port)) = (print.terminal.take(), port()) else { return };
    let end = terminal.output.end();
    let by_interrupt = RECEIVING.load(Ordering::Relaxed);
    // Where the caller has interrupts masked, they stay so for the time that it needs, not for the port's.
    let once = by_interrupt && !terminal.irqs_were_enabled();
    while !terminal.transmit(port, end, by_interrupt, once) {
        drop(terminal);
        wait::relax();
        terminal = TERMINAL.lock();
    }
}

/// The terminal, with room for a print unless the caller has interrupts masked.
fn lock_with_room() -> Guard {
    let waits = interrupts::state().irqs_enabled();
    loop {
        let mut terminal = TERMINAL.lock();
        let Some(port) = port() else { return terminal };
        if terminal.output.room() >= ROOM || !waits {
            return terminal;
        }
        terminal.output.send(port);
        drop(terminal);
        wait::relax();
    }
}

/// Whether there is room for a print; if not, the port is given some bytes, should no interrupt do that.
fn has_room() -> bool {
    let mut terminal = TERMINAL.lock();
    let Some(port) = port() else { return true };
    let room = terminal.output.room() >= ROOM;
    if !room {
        terminal.output.send(port);
    }
    room
}

fn port() -> Option<&'static dyn Console> {
    PORT.get().or_else(|| EARLY.get()).copied()
}

impl Terminal {
    const fn new() -> Self {
        Self {
            received: Deque::new(),
            behind: Deque::new(),
            held_back: false,
            output: Output::new(),
            transmits: false,
            foreground: None,
            interrupts: 0,
            line: Edited::None,
            in_line: false,
            others_in_line: false,
        }
    }

    fn may_read(&self, reader: Reader) -> bool {
        match reader {
            Reader::Kernel => true,
            Reader::Program(family) => self.foreground == Some(family),
        }
    }

    /// The next byte of input, from the port too, if `reader` may read it.
    fn next_byte(&mut self, port: &dyn Console, reader: Reader) -> Option<u8> {
        if !RECEIVING.load(Ordering::Relaxed) {
            self.fill(port);
        }
        if !self.may_read(reader) {
            return None;
        }
        let byte = self.received.pop_front();
        self.advance();
        if self.held_back {
            self.receive(port);
        }
        byte
    }

    /// Moves bytes from behind the queue to the end of it, as many as there is room for.
    fn advance(&mut self) {
        while !self.received.is_full()
            && let Some(byte) = self.behind.pop_front()
        {
            // There is room.
            let _ = self.received.push_back(byte);
        }
    }

    fn begin_foreground(&mut self, family: Family) {
        self.foreground = Some(family);
        for _ in 0..self.received.len() {
            if let Some(byte) = self.received.pop_front() {
                self.keep(byte);
            }
        }
    }

    fn end_foreground(&mut self) {
        (self.foreground, self.interrupts) = (None, 0);
    }

    /// Whether there is room for a byte.
    fn has_room(&self) -> bool {
        !self.received.is_full() || self.foreground.is_some() && !self.behind.is_full()
    }

    /// Adds a byte to the input, for which there is room.
    fn keep(&mut self, byte: u8) {
        if self.foreground.is_some() && byte == INTERRUPT {
            self.interrupts = self.interrupts.saturating_add(1);
        } else if let Err(byte) = self.received.push_back(byte) {
            // There is room.
            let _ = self.behind.push_back(byte);
        }
    }

    /// Others' output begins: it takes the place of an [`EditedLine`].
    fn erase_line(&mut self, port: &dyn Console) {
        if self.line == Edited::Shown {
            self.output.push(port, ERASE_LINE);
            (self.line, self.others_in_line) = (Edited::Erased, false);
        }
    }

    /// Others' output has ended, perhaps in the middle of a line.
    fn end_output(&mut self) {
        if self.line == Edited::Erased {
            self.others_in_line = self.in_line;
        }
    }

    /// Gives the port a few bytes. Returns whether the caller has nothing more to do for the bytes before `end`: the
    /// port has taken them, or, where interrupts arrive (`by_interrupt`), its FIFO is full, or this was to be done
    /// `once`, and the transmit interrupt sends the rest.
    fn transmit(&mut self, port: &dyn Console, end: u64, by_interrupt: bool, once: bool) -> bool {
        let full = !self.output.send(port);
        if self.output.is_sent(end) {
            return true;
        }
        let leave = by_interrupt && (full || once);
        if leave && !self.transmits {
            self.transmits = true;
            port.set_transmit_interrupt(true);
        }
        leave
    }

    /// Bytes that come while others are moved interrupt again: so the causes are ended first.
    fn handle_interrupt(&mut self, port: &dyn Console) {
        port.acknowledge();
        self.receive(port);
        self.handle_transmit(port);
    }

    /// Gives the port what its FIFO has room for, if the transmit interrupt is on; turns it off after the last byte.
    fn handle_transmit(&mut self, port: &dyn Console) {
        if self.transmits {
            self.output.send(port);
            self.transmits = self.output.len() > 0;
            if !self.transmits {
                port.set_transmit_interrupt(false);
            }
        }
    }

    /// Moves bytes from the device to the queue, as many as there is room for.
    fn receive(&mut self, port: &dyn Console) {
        let was_held_back = core::mem::take(&mut self.held_back);
        self.fill(port);
        self.held_back = !self.has_room();
        if self.held_back != was_held_back {
            port.set_receive_interrupt(!self.held_back);
        }
    }

    fn fill(&mut self, port: &dyn Console) {
        for _ in 0..QUEUE {
            let Some(byte) = self.has_room().then(|| port.read()).flatten() else { break };
            self.keep(byte);
        }
    }
}

/// The origin of output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Author {
    /// The thread that edits the [`EditedLine`], if there is one.
    Editor,
    /// Any other code.
    Other,
}

/// A print under way: text is added to the output, with the line ends that a terminal wants.
pub(super) struct Print {
    /// `None` after a panic: bytes go to the port directly.
    pub(super) terminal: Option<Guard>,
    author: Author,
}

impl Print {
    /// Locks the terminal, for output that others do not interrupt.
    fn begin_piece(&mut self) {
        let mut terminal = lock_with_room();
        if let (Author::Other, Some(port)) = (self.author, port()) {
            terminal.erase_line(port);
        }
        self.terminal = Some(terminal);
    }

    fn end_piece(&mut self) {
        if let (Author::Other, Some(terminal)) = (self.author, &mut self.terminal) {
            terminal.end_output();
        }
    }

    /// Begins an [`EditedLine`], below the output before it.
    fn begin_line(&mut self) {
        let Some(terminal) = self.terminal.as_deref_mut() else { return };
        let in_line = match core::mem::replace(&mut terminal.line, Edited::Shown) {
            // The editor may have printed after it, which drawing the line overwrites.
            Edited::Erased => terminal.others_in_line,
            Edited::None | Edited::Shown => terminal.in_line,
        };
        if in_line {
            add(Some(terminal), b"\r\n");
        }
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        with_line_ends(bytes, |bytes| {
            add(self.terminal.as_deref_mut(), bytes);
            let low = |terminal: &Guard| terminal.output.room() < LINE_ROOM && terminal.irqs_were_enabled();
            if bytes.ends_with(b"\n") && self.terminal.as_ref().is_some_and(low) {
                self.end_piece();
                self.terminal = None;
                self.begin_piece();
            }
        });
    }
}

impl Write for Print {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}

/// Adds bytes to the output, as they are; without the terminal they go to the port directly.
fn add(terminal: Option<&mut Terminal>, mut bytes: &[u8]) {
    let Some(port) = port() else { return };
    if let Some(terminal) = terminal {
        return add_to(terminal, port, bytes);
    }
    while let Some(rest) = bytes.get(port.write(bytes)..).filter(|rest| !rest.is_empty()) {
        bytes = rest;
        wait::relax();
    }
}

fn add_to(terminal: &mut Terminal, port: &dyn Console, bytes: &[u8]) {
    terminal.in_line = bytes.last().map_or(terminal.in_line, |&last| last != b'\n');
    terminal.output.push(port, bytes);
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::chip::console::print(::core::format_args!($($argument)*)) };
}

/// Prints to the console, and ends the line.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::chip::console::print(::core::format_args!("{}\n", ::core::format_args!($($argument)*))) };
}

#[cfg(test)]
mod tests;
