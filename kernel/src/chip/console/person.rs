//! The console while a person waits for a program, or edits a line.

use core::sync::atomic::Ordering;

use super::{
    Author, Deadline, Edited, Family, POLL, POLLERS, Print, RECEIVING, Reader, TERMINAL, WAKER, add_output_by, port,
    try_read_byte,
};
use crate::sched::ThreadRef;
use crate::sync::{IrqLock, rank};

/// The thread of the [`Foreground`].
static FOREGROUND: IrqLock<Option<ThreadRef>, { rank::WAIT }> = IrqLock::new(None);

/// Ends the pause of the thread that has the [`Foreground`].
pub(super) fn wake_foreground() {
    if let Some(thread) = FOREGROUND.lock().as_ref() {
        thread.unpark();
    }
}

/// As long as it exists, programs of its family read the console's input, and Ctrl-C is none, but interrupts the thread
/// that made it. One at a time: a second one takes both over from the first.
#[derive(Debug)]
pub struct Foreground(());

impl Foreground {
    /// For the running thread, which waits for a program of `family`. A Ctrl-C that was typed ahead interrupts it too.
    pub fn begin(family: Family) -> Self {
        let before = FOREGROUND.lock().replace(crate::sched::current().to_ref());
        // Without the lock: the last reference to a thread frees it.
        drop(before);
        let mut terminal = TERMINAL.lock();
        terminal.begin_foreground(family);
        // A Ctrl-C that leaves the queue makes room in it.
        if terminal.held_back
            && let Some(port) = port()
        {
            terminal.receive(port);
        }
        drop(terminal);
        // Those of the family that wait look again.
        if let Some(waker) = WAKER.get() {
            waker.unpark();
        }
        Self(())
    }

    /// Takes one Ctrl-C that was typed; whether there was one.
    pub fn take_interrupt(&self) -> bool {
        let mut terminal = TERMINAL.lock();
        if let Some(port) = port()
            && !RECEIVING.load(Ordering::Relaxed)
        {
            terminal.fill(port);
        }
        let left = terminal.interrupts.checked_sub(1);
        terminal.interrupts = left.unwrap_or(0);
        left.is_some()
    }

    /// Sleeps until the thread is unparked, which Ctrl-C does too. It may return for no reason.
    pub fn pause(&self) {
        if RECEIVING.load(Ordering::Relaxed) {
            crate::sched::park();
        } else {
            crate::sched::sleep_until(Deadline::after(POLL));
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        TERMINAL.lock().end_foreground();
        let thread = FOREGROUND.lock().take();
        drop(thread);
    }
}

/// A line that the running thread edits, the last one on the screen: output of others erases it and stands above it.
/// The thread prints with [`super::print_by_editor`], and redraws it where [`Self::read_byte`] asks. One at a time.
#[derive(Debug)]
pub struct EditedLine(());

impl EditedLine {
    /// Below the output so far. The caller draws the line next.
    pub fn begin() -> Self {
        add_output_by(Author::Editor, Print::begin_line);
        Self(())
    }

    /// Waits for a byte of input. `None`: the line was erased for others' output, and the cursor is at the start of an
    /// empty line; the caller draws it again.
    pub fn read_byte(&self) -> Option<u8> {
        loop {
            if TERMINAL.lock().line != Edited::Shown {
                add_output_by(Author::Editor, Print::begin_line);
                return None;
            }
            if let Some(byte) = try_read_byte(Reader::Kernel) {
                return Some(byte);
            }
            wait_for_input();
        }
    }
}

impl Drop for EditedLine {
    fn drop(&mut self) {
        TERMINAL.lock().line = Edited::None;
    }
}

/// Waits until there may be input, or others' output.
fn wait_for_input() {
    if RECEIVING.load(Ordering::Relaxed) {
        /// How soon a line that was erased is drawn again. A print may hold any lock, and so wakes no thread.
        const ERASED_AT_MOST: core::time::Duration = core::time::Duration::from_millis(50);
        let mut is_received = || !TERMINAL.lock().received.is_empty();
        let until = Some(Deadline::after(ERASED_AT_MOST));
        crate::sched::poll_until(&mut [crate::sched::PollNode::new(&POLLERS)], until, &mut is_received);
        return;
    }
    crate::sched::sleep_until(Deadline::after(POLL));
}
