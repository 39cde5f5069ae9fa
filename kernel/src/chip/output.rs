//! The console's output buffer.
//!
//! A serial port at 115,200 baud takes 87 µs for a byte, and interrupts are masked while the console's lock is held. So a
//! print adds its text here under one hold of the lock, and the port is given a few bytes per hold: pending interrupts are
//! taken in between. The port gets the bytes in the order in which they were added.

use granule_arch::wait;

use super::console::Console;

/// Bytes that the buffer holds.
const SIZE: usize = 4096;
/// Bytes that are free when a print begins, unless its caller has interrupts masked: such a caller cannot wait for them.
pub(super) const ROOM: usize = 1024;
/// Bytes that are free when a line of a longer print begins.
pub(super) const LINE_ROOM: usize = 512;
/// Bytes that the port is given under one hold of the lock: as many as the FIFO of a PL011 has, so that it is filled past
/// the level at which it interrupts.
pub(super) const AT_ONCE: usize = 32;

/// Bytes that the port has not taken yet. Positions count bytes since the boot.
pub(super) struct Output {
    bytes: [u8; SIZE],
    /// Position of the first byte that the port has not taken.
    start: u64,
    /// Position after the last byte.
    end: u64,
}

impl Output {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; SIZE], start: 0, end: 0 }
    }

    /// The position after the last byte.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Whether the port has taken every byte before `position`.
    pub(super) const fn is_sent(&self, position: u64) -> bool {
        self.start >= position
    }

    /// Bytes that the port has not taken.
    pub(super) const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Bytes that may be added before the buffer is full.
    pub(super) const fn room(&self) -> usize {
        SIZE - self.len()
    }

    /// Adds bytes, as they are. Polls the port while the buffer is full.
    pub(super) fn push(&mut self, port: &dyn Console, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.end as usize % SIZE;
            let length = bytes.len().min(self.room()).min(SIZE - at);
            let (Some(now), Some(rest)) = (bytes.get(..length), bytes.get(length..)) else { return };
            if length == 0 {
                self.send(port);
                wait::relax();
            }
            self.bytes.iter_mut().skip(at).zip(now).for_each(|(place, byte)| *place = *byte);
            self.end += length as u64;
            bytes = rest;
        }
    }

    /// Gives the port what it takes without waiting, [`AT_ONCE`] bytes at most. Returns whether it took all of these.
    pub(super) fn send(&mut self, port: &dyn Console) -> bool {
        let mut left = self.len().min(AT_ONCE);
        while left > 0 {
            let at = self.start as usize % SIZE;
            let Some(bytes) = self.bytes.get(at..(at + left).min(SIZE)) else { return false };
            let taken = port.write(bytes);
            self.start += taken as u64;
            if taken < bytes.len() {
                return false;
            }
            left -= taken;
        }
        true
    }

    /// Gives the port everything, polling it.
    pub(super) fn send_all(&mut self, port: &dyn Console) {
        while self.len() > 0 {
            if !self.send(port) {
                wait::relax();
            }
        }
    }
}

/// Adds `\r` before each `\n`: calls `add` with the pieces.
pub(super) fn with_line_ends(mut text: &[u8], mut add: impl FnMut(&[u8])) {
    while let Some(length) = text.iter().position(|byte| *byte == b'\n')
        && let (Some(line), Some(rest)) = (text.get(..length), text.get(length + 1..))
    {
        add(line);
        add(b"\r\n");
        text = rest;
    }
    add(text);
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::{AT_ONCE, Output, SIZE, with_line_ends};
    use crate::chip::console::Console;

    /// A port whose transmitter sends some bytes of its FIFO in each tick. Looking whether there is room is a tick: so
    /// waiting for the port takes time here.
    #[derive(Default)]
    pub(in crate::chip) struct Fake {
        state: Mutex<FakeState>,
    }

    #[derive(Default)]
    struct FakeState {
        depth: usize,
        per_tick: usize,
        fifo: usize,
        sent: Vec<u8>,
        ticks: usize,
        transmit_interrupt: Option<bool>,
        received: VecDeque<u8>,
        receive_interrupt: Option<bool>,
        acknowledged: Option<(usize, usize)>,
    }

    impl Console for Fake {
        fn write(&self, bytes: &[u8]) -> usize {
            let mut state = self.state.lock().unwrap();
            let state = &mut *state;
            state.ticks += 1;
            state.fifo = state.fifo.saturating_sub(state.per_tick);
            let taken = bytes.len().min(state.depth - state.fifo);
            state.fifo += taken;
            state.sent.extend(&bytes[..taken]);
            taken
        }
        fn is_busy(&self) -> bool {
            self.state.lock().unwrap().fifo > 0
        }
        fn read(&self) -> Option<u8> {
            self.state.lock().unwrap().received.pop_front()
        }
        fn acknowledge(&self) {
            let mut state = self.state.lock().unwrap();
            state.acknowledged = Some((state.received.len(), state.fifo));
        }
        fn set_receive_interrupt(&self, on: bool) {
            self.state.lock().unwrap().receive_interrupt = Some(on);
        }
        fn set_transmit_interrupt(&self, on: bool) {
            self.state.lock().unwrap().transmit_interrupt = Some(on);
        }
    }

    impl Fake {
        /// One whose FIFO has room for `depth` bytes.
        pub(in crate::chip) fn new(depth: usize, per_tick: usize) -> Self {
            Self { state: Mutex::new(FakeState { depth, per_tick, ..FakeState::default() }) }
        }
        pub(in crate::chip) fn receive(&self, bytes: &[u8]) {
            self.state.lock().unwrap().received.extend(bytes);
        }
        /// Received bytes that were not read yet.
        pub(in crate::chip) fn holds(&self) -> usize {
            self.state.lock().unwrap().received.len()
        }
        /// The last setting of the receive interrupt.
        pub(in crate::chip) fn receive_interrupt(&self) -> Option<bool> {
            self.state.lock().unwrap().receive_interrupt
        }
        /// The last setting of the transmit interrupt.
        pub(in crate::chip) fn transmit_interrupt(&self) -> Option<bool> {
            self.state.lock().unwrap().transmit_interrupt
        }
        /// Bytes that were received, and that were to be sent, when the interrupt was last acknowledged.
        pub(in crate::chip) fn acknowledged(&self) -> Option<(usize, usize)> {
            self.state.lock().unwrap().acknowledged
        }
        pub(in crate::chip) fn sent(&self) -> Vec<u8> {
            self.state.lock().unwrap().sent.clone()
        }
        /// Ticks since the last call.
        pub(in crate::chip) fn ticks(&self) -> usize {
            std::mem::take(&mut self.state.lock().unwrap().ticks)
        }
        /// The FIFO runs empty.
        pub(in crate::chip) fn transmit(&self) {
            self.state.lock().unwrap().fifo = 0;
        }
    }

    #[test]
    fn the_port_is_given_few_bytes_at_once_and_is_not_waited_for() {
        let port = Fake::new(AT_ONCE + 4, 0);
        let mut output = Output::new();
        output.push(&port, &[7; 40]);
        assert_eq!(port.ticks(), 0, "nothing is sent while a print is formatted");
        for (sent, all) in [(AT_ONCE, true), (AT_ONCE + 4, false), (AT_ONCE + 4, false)] {
            assert_eq!(output.send(&port), all);
            assert_eq!(port.sent().len(), sent);
            assert!(output.is_sent(sent as u64) && !output.is_sent(sent as u64 + 1));
        }
        assert_eq!(port.ticks(), 3);
    }

    #[test]
    fn more_than_the_buffer_holds_arrives_whole_and_in_order() {
        let port = Fake::new(16, 3);
        let mut output = Output::new();
        let printed: Vec<u8> = (0..3 * SIZE + 77).map(|index| index as u8).collect();
        printed.chunks(100).for_each(|chunk| output.push(&port, chunk));
        assert_eq!(output.room(), 0);
        output.send_all(&port);
        assert_eq!(output.len(), 0);
        assert_eq!(port.sent(), printed);
    }

    #[test]
    fn line_ends_become_those_of_a_terminal() {
        for (text, line) in [("", ""), ("a", "a"), ("a\nb", "a\r\nb"), ("\n\na\n", "\r\n\r\na\r\n")] {
            let mut added = Vec::<u8>::new();
            with_line_ends(text.as_bytes(), |bytes| added.extend(bytes));
            assert_eq!(added, line.as_bytes());
        }
    }
}
