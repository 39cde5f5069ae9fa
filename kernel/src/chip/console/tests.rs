//! The terminal with a port that is none: output, input, and what a person sees of both.

use granule_arch::addr::PhysAddr;

use super::{BEHIND, Edited, QUEUE, Reader, Terminal, parse_earlycon};
use crate::chip::output::tests::Fake;
use crate::platform::{RegisterWidth, UartKind};

/// Adds output, as a print does; the position after it.
fn print(terminal: &mut Terminal, port: &Fake, bytes: &[u8]) -> u64 {
    terminal.output.push(port, bytes);
    terminal.output.end()
}

#[test]
fn no_hold_of_the_lock_waits_for_a_slow_port_and_its_interrupt_sends_what_is_left() {
    for (depth, masked) in [(1, false), (16, false), (32, false), (16, true), (32, true), (4096, true)] {
        let port = Fake::new(depth, 0);
        let mut terminal = Terminal::new();
        let mut printed = Vec::new();
        for letter in b'a'..=b'd' {
            let text = [letter; 256];
            printed.extend(text);
            let end = print(&mut terminal, &port, &text);
            // Each of these is one hold of the lock.
            let mut holds = 1;
            while !terminal.transmit(&port, end, true, masked) {
                assert_eq!(port.ticks(), 1);
                holds += 1;
                assert!(holds < 20 && !masked, "neither waits; a caller with interrupts masked does it once");
            }
            assert_eq!((port.ticks(), port.transmit_interrupt()), (1, Some(true)));
        }
        while port.transmit_interrupt() == Some(true) {
            port.transmit();
            terminal.handle_transmit(&port);
            assert_eq!(port.ticks(), 1);
        }
        assert_eq!(port.sent(), printed);
    }
}

#[test]
fn where_no_interrupt_arrives_a_print_is_sent_by_its_own_caller() {
    let port = Fake::new(16, 5);
    let mut terminal = Terminal::new();
    let first = print(&mut terminal, &port, &[1; 100]);
    let second = print(&mut terminal, &port, &[2; 100]);
    let mut holds = 0;
    while !terminal.transmit(&port, second, false, false) {
        holds += 1;
        assert_eq!(port.ticks(), 1);
    }
    assert!(holds > 30, "{holds}");
    assert!(terminal.transmit(&port, first, false, false));
    assert_eq!(port.sent(), [[1; 100], [2; 100]].concat());
    assert_eq!(port.transmit_interrupt(), None);
}

#[test]
fn a_full_queue_leaves_the_rest_in_the_device_and_loses_nothing() {
    let port = Fake::default();
    let sent: Vec<u8> = (0..QUEUE + 40).map(|index| index as u8).collect();
    port.receive(&sent);
    let mut terminal = Terminal::new();
    terminal.receive(&port);
    assert!(terminal.held_back);
    assert_eq!(port.receive_interrupt(), Some(false));

    let mut got = Vec::new();
    while let Some(byte) = terminal.received.pop_front() {
        got.extend([byte]);
        if terminal.held_back {
            terminal.receive(&port);
        }
    }
    assert_eq!(got, sent);
    assert!(!terminal.held_back);
    assert_eq!(port.receive_interrupt(), Some(true), "the interrupt is on again");
}

#[test]
fn ctrl_c_is_input_only_where_nothing_is_in_the_foreground() {
    let port = Fake::default();
    let mut terminal = Terminal::new();
    port.receive(b"a\x03b\x03");
    terminal.receive(&port);
    terminal.begin_foreground(1);
    assert_eq!(terminal.interrupts, 2, "typed ahead");
    terminal.interrupts = 0;
    port.receive(b"c\x03d");
    terminal.receive(&port);
    assert_eq!(terminal.interrupts, 1);
    terminal.end_foreground();
    port.receive(b"\x03");
    terminal.receive(&port);
    assert_eq!(terminal.interrupts, 0);
    assert_eq!(terminal.received.iter().copied().collect::<Vec<_>>(), b"abcd\x03");
}

#[test]
fn input_is_the_foregrounds_and_the_kernels() {
    let port = Fake::default();
    let mut terminal = Terminal::new();
    let next = |terminal: &mut Terminal, reader| terminal.next_byte(&port, reader);
    port.receive(b"abcd");
    terminal.receive(&port);
    assert_eq!(next(&mut terminal, Reader::Program(1)), None, "there is no foreground");
    assert_eq!(next(&mut terminal, Reader::Kernel), Some(b'a'));
    terminal.begin_foreground(1);
    assert_eq!(next(&mut terminal, Reader::Program(2)), None, "in the background");
    assert_eq!(next(&mut terminal, Reader::Program(1)), Some(b'b'));
    terminal.begin_foreground(2);
    assert_eq!([1, 2].map(|family| next(&mut terminal, Reader::Program(family))), [None, Some(b'c')]);
    terminal.end_foreground();
    assert_eq!([1, 2].map(|family| next(&mut terminal, Reader::Program(family))), [None, None]);
    assert_eq!(next(&mut terminal, Reader::Kernel), Some(b'd'));
}

#[test]
fn ctrl_c_takes_no_place_in_the_queue() {
    let port = Fake::default();
    let mut terminal = Terminal::new();
    terminal.begin_foreground(1);
    port.receive(&[b'x'; QUEUE - 1]);
    port.receive(b"\x03\x03\x03y");
    while port.holds() > 0 {
        terminal.receive(&port);
    }
    assert_eq!(terminal.interrupts, 3);
    assert_eq!(terminal.received.back(), Some(&b'y'));
}

#[test]
fn ctrl_c_is_found_behind_input_that_the_foreground_does_not_read_and_nothing_of_that_is_lost() {
    let port = Fake::default();
    let mut terminal = Terminal::new();
    let ahead: Vec<u8> = (0..2 * QUEUE + 40).map(|index| index as u8 | 0x80).collect();
    port.receive(&ahead);
    terminal.receive(&port);
    assert!(terminal.held_back, "the monitor reads: no byte is looked for behind the queue");
    terminal.begin_foreground(1);
    port.receive(b"\x03last\x03");
    // As many interrupts as the device makes.
    let mut rounds = 0;
    while port.holds() > 0 {
        let held = port.holds();
        terminal.receive(&port);
        assert!(held - port.holds() <= QUEUE, "with interrupts masked");
        rounds += 1;
    }
    assert!(rounds > 1 && !terminal.held_back);
    assert_eq!(terminal.interrupts, 2);
    terminal.end_foreground();

    // The rest comes in order; what is typed after the foreground comes after it, with Ctrl-C as input again.
    port.receive(b"\x03after");
    terminal.receive(&port);
    assert!(terminal.held_back, "there is no room for others");
    let mut got = Vec::new();
    while let Some(byte) = terminal.next_byte(&port, Reader::Kernel) {
        got.extend([byte]);
    }
    assert_eq!(got, [&ahead[..], b"last\x03after"].concat());
    assert_eq!((terminal.interrupts, terminal.held_back, port.receive_interrupt()), (0, false, Some(true)));
}

#[test]
fn the_room_behind_the_queue_is_bounded_and_beyond_it_the_device_keeps_what_comes() {
    let port = Fake::default();
    let mut terminal = Terminal::new();
    terminal.begin_foreground(1);
    let sent: Vec<u8> = (0..QUEUE + BEHIND + 10).map(|index| (index % 251) as u8 | 4).collect();
    port.receive(&sent);
    while !terminal.held_back {
        terminal.receive(&port);
    }
    assert_eq!((port.holds(), port.receive_interrupt()), (10, Some(false)));
    // A program that reads after all has everything, and so has a later one.
    let mut got = Vec::new();
    for family in [1, 2] {
        terminal.begin_foreground(family);
        for _ in 0..sent.len() / 2 {
            got.extend(terminal.next_byte(&port, Reader::Program(family)));
        }
        terminal.end_foreground();
    }
    assert_eq!(got, sent);
    assert_eq!(port.receive_interrupt(), Some(true));
}

#[test]
fn output_of_others_erases_the_edited_line_once() {
    let port = Fake::new(4096, 4096);
    let mut terminal = Terminal::new();
    let others = |terminal: &mut Terminal, text: &[u8]| {
        terminal.erase_line(&port);
        super::add_to(terminal, &port, text);
        terminal.end_output();
        terminal.output.send_all(&port);
    };
    others(&mut terminal, b"before\n");
    terminal.line = Edited::Shown;
    others(&mut terminal, b"a");
    assert_eq!((terminal.line, terminal.others_in_line), (Edited::Erased, true));
    others(&mut terminal, b"b\n");
    assert_eq!((terminal.line, terminal.others_in_line), (Edited::Erased, false));
    assert_eq!(port.sent(), b"before\n\r\x1b[Kab\n");
}

#[test]
fn an_interrupt_is_acknowledged_in_front_of_reading_and_writing() {
    let port = Fake::new(4, 0);
    let mut terminal = Terminal::new();
    let end = print(&mut terminal, &port, b"output");
    assert!(terminal.transmit(&port, end, true, false), "the FIFO is full");
    port.transmit();
    port.receive(b"in");
    assert_eq!(port.acknowledged(), None);
    terminal.handle_interrupt(&port);
    assert_eq!(port.acknowledged(), Some((2, 0)));
    assert_eq!((terminal.received.len(), port.sent().len()), (2, 6));
}

#[test]
fn earlycon_names_a_kind_an_address_and_a_stride() {
    use RegisterWidth::{Byte, Half, Word};

    let parse = |value: &str| parse_earlycon(value).ok();
    let is = |value: &str, kind, address, shift, width| {
        let uart = parse(value).unwrap().unwrap();
        let found = (uart.kind, uart.registers.start(), uart.layout.shift, uart.layout.width, uart.interrupt);
        assert_eq!(found, (kind, PhysAddr(address), shift, width, None), "{value}");
    };
    assert_eq!(parse(""), Some(None));
    is("pl011,0x9000000", UartKind::Pl011, 0x900_0000, 0, Byte);
    is("pl011,mmio32,0xfe201000", UartKind::Pl011, 0xfe20_1000, 0, Byte);
    is("ns16550,0x9000001", UartKind::Ns16550, 0x900_0001, 0, Byte);
    is("ns16550,0x9000002,2", UartKind::Ns16550, 0x900_0002, 1, Half);
    is("ns16550,0x9000000,4", UartKind::Ns16550, 0x900_0000, 2, Word);
    is("dw,0x9000000", UartKind::DesignWare, 0x900_0000, 2, Word);
    is("scif,0x9000000", UartKind::Scif, 0x900_0000, 2, Half);
    is("scif,0x9000000,2", UartKind::Scif, 0x900_0000, 1, Half);
    for kind in UartKind::ALL {
        is(
            &format!("{},0x9000000", kind.name()),
            kind,
            0x900_0000,
            kind.usual_layout().shift,
            kind.usual_layout().width,
        );
        let refused = parse_earlycon("no,0x9000000").unwrap_err().to_string();
        assert!(refused.contains(kind.name()), "{refused}");
    }
    for bad in [
        "pl011",
        "pl011,",
        "pl011,9000000",
        "pl011,0x+9000000",
        "uart8250,0x9000000",
        "pl011,0x9000002",
        "pl011,0x1ffffffffffffffff",
        "pl011,0xffffffffffffffc4",
        "pl011,0x9000000,4",
        "ns16550,mmio32,0x9000000",
        "ns16550,0x9000000,3",
        "ns16550,0x9000000,",
        "ns16550,0x9000001,4",
        "ns16550,0x9000000,4,115200",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn the_interrupt_is_left_alone_while_there_is_room() {
    let port = Fake::default();
    port.receive(b"help\n");
    let mut terminal = Terminal::new();
    terminal.receive(&port);
    assert_eq!(port.receive_interrupt(), None);
    assert_eq!(terminal.received.len(), 5);
}
