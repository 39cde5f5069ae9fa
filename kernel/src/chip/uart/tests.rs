//! Each kind against the numbers of its manual, written a second time here, by a page of memory in place of registers.

use std::cell::RefCell;
use std::rc::Rc;

use granule_arch::addr::{PhysAddr, VirtAddr};

use super::{Port, RegisterUart};
use crate::chip::console::Console;
use crate::mmio::watched::{MmioAccess, at_each_access};
use crate::platform::{RegisterWidth, Uart, UartKind, UartLayout};

/// A register by its offset in bytes, and a value of it.
type Value = (u16, u32);

/// How a damaged byte is reported.
#[derive(Clone, Copy)]
enum Report {
    /// By this value of the status register.
    Status(u32),
    /// By these bits with the byte.
    Data(u32),
    /// By another register.
    Other(u16, u32),
}

/// A kind, as its manual has it.
struct Manual {
    kind: UartKind,
    /// Values that a firmware may leave, and what becomes of them.
    left: &'static [Value],
    taken: &'static [Value],
    transmit: u16,
    /// The status register, when there is no room, and when there is.
    full: Value,
    free: Value,
    /// When there is room, and nothing was sent yet; and after it.
    busy: &'static [Value],
    idle: &'static [Value],
    receive: u16,
    /// The status register, when no byte is here, and when one is.
    none: Value,
    some: Value,
    damaged: Report,
    /// Interrupts of received bytes enabled, then of room as well, then the first disabled, then both.
    interrupts: [Value; 4],
}

const WORDS: UartLayout = UartLayout { shift: 2, width: RegisterWidth::Word };

static MANUALS: [Manual; 14] = [
    Manual {
        kind: UartKind::Sbsa,
        left: &[(0x38, 0x7ff), (0x2c, 0x70), (0x30, 0x301), (0x44, 0)],
        // The registers of a whole PL011 are not there.
        taken: &[(0x38, 0), (0x2c, 0x70), (0x30, 0x301), (0x44, 0x7af)],
        transmit: 0,
        full: (0x18, 1 << 5),
        free: (0x18, 0),
        busy: &[(0x18, 1 << 3)],
        idle: &[(0x18, 0)],
        receive: 0,
        none: (0x18, 1 << 4),
        some: (0x18, 0),
        damaged: Report::Data(0x100),
        interrupts: [(0x38, 0x50), (0x38, 0x70), (0x38, 0x20), (0x38, 0)],
    },
    NS16550,
    Manual {
        kind: UartKind::Omap,
        left: &[(0xc, 0xdb), (4, 0xff), (0x10, 0xf4), (0x40, 0x80)],
        taken: &[(0xc, 0x1b), (4, 0), (8, 1), (0x10, 0x8b), (0x40, 0x88)],
        ..NS16550
    },
    Manual { kind: UartKind::DesignWare, ..NS16550 },
    Manual { kind: UartKind::BcmMini, ..NS16550 },
    Manual {
        kind: UartKind::Imx,
        // An escape, aging, RTS, seven bits with parity; loopback, infrared; DMA of both directions.
        left: &[
            (0x80, 0xffff),
            (0x84, 0xffdf),
            (0x88, 0xffff),
            (0x8c, 0xffff),
            (0x90, 0x28ff),
            (0xb4, 0x1600),
            (0xa4, 15),
            (0xa8, 71),
        ],
        taken: &[
            (0x80, 1),
            (0x84, 0x51c7),
            (0x88, 0xc786),
            (0x8c, 0xfe30),
            (0x90, 0x8c1),
            (0xb4, 0),
            (0xa4, 15),
            (0xa8, 71),
        ],
        transmit: 0x40,
        full: (0xb4, 1 << 4),
        free: (0xb4, 0),
        busy: &[(0x98, 0)],
        idle: &[(0x98, 1 << 3)],
        receive: 0,
        none: (0x98, 0),
        some: (0x98, 1),
        damaged: Report::Data(0xd000),
        interrupts: [(0x80, 0x201), (0x80, 0x2201), (0x80, 0x2001), (0x80, 1)],
    },
    Manual {
        kind: UartKind::Lpuart,
        left: &[(0x10, 0x0fb0_e0d0), (0x14, 0xe3df_c000), (0x18, 0x1fff_88ff), (0x24, 0x2_000f), (0x2c, 0x3_0002)],
        taken: &[(0x10, 0x0f00_20d0), (0x14, 0xe21f_c000), (0x18, 0x100c_081f), (0x24, 0), (0x2c, 0)],
        transmit: 0x1c,
        full: (0x14, 0),
        free: (0x14, 1 << 23),
        busy: &[(0x14, 1 << 23)],
        idle: &[(0x14, 3 << 22)],
        receive: 0x1c,
        none: (0x14, 0),
        some: (0x14, 1 << 21),
        damaged: Report::Data(0x2000),
        interrupts: [(0x18, 0x2c_0000), (0x18, 0xac_0000), (0x18, 0x8c_0000), (0x18, 0xc_0000)],
    },
    Manual {
        kind: UartKind::Meson,
        left: &[(8, 0x19c9_0000), (0x10, 0), (0x14, 0x80_0045)],
        taken: &[(8, 0x9_b000), (0x10, 0x1001), (0x14, 0x80_0045)],
        transmit: 0,
        full: (0xc, 1 << 21),
        free: (0xc, 0),
        busy: &[(0xc, 3 << 24 | 1 << 22)],
        idle: &[(0xc, 1 << 22)],
        receive: 4,
        none: (0xc, 1 << 20),
        some: (0xc, 0),
        damaged: Report::Status(1 << 17),
        interrupts: [(8, 0x800_b000), (8, 0x1800_b000), (8, 0x1000_b000), (8, 0xb000)],
    },
    Manual {
        kind: UartKind::Cadence,
        left: &[(0, 0x1a8), (4, 0x220), (0x20, 8), (0x24, 0x20), (0x18, 0x8f), (0x34, 6)],
        taken: &[(0, 0x114), (4, 0x20), (0xc, 0x3fff), (0x14, 0x3fff), (0x20, 1), (0x24, 3), (0x18, 0x8f), (0x34, 6)],
        transmit: 0x30,
        full: (0x2c, 1 << 4),
        free: (0x2c, 0),
        busy: &[(0x2c, 1 << 11 | 1 << 3)],
        idle: &[(0x2c, 1 << 3)],
        receive: 0x30,
        none: (0x2c, 1 << 1),
        some: (0x2c, 0),
        damaged: Report::Other(0x14, 1 << 6),
        interrupts: [(8, 1), (8, 8), (0xc, 1), (0xc, 8)],
    },
    Manual {
        kind: UartKind::Exynos,
        left: &[(0, 0x43), (4, 0x1_0470), (8, 0x777), (0xc, 0x10), (0x38, 0), (0x28, 53), (0x2c, 4)],
        taken: &[(0, 3), (4, 0x1_0785), (8, 1), (0xc, 1), (0x38, 0xf), (0x30, 0xf), (0x28, 53), (0x2c, 4)],
        transmit: 0x20,
        full: (0x18, 1 << 24),
        free: (0x18, 0),
        busy: &[(0x10, 0)],
        idle: &[(0x10, 1 << 2)],
        receive: 0x24,
        none: (0x18, 0),
        some: (0x18, 1 << 8),
        damaged: Report::Other(0x14, 1 << 2),
        interrupts: [(0x38, 0xe), (0x38, 0xa), (0x38, 0xb), (0x38, 0xf)],
    },
    Manual {
        kind: UartKind::Armada3700,
        left: &[(8, 0xffff), (0x10, 0x36)],
        taken: &[(8, 0x600), (0x10, 0x36)],
        transmit: 4,
        full: (0xc, 1 << 11),
        free: (0xc, 0),
        busy: &[(0xc, 0)],
        idle: &[(0xc, 1 << 6)],
        receive: 0,
        none: (0xc, 0),
        some: (0xc, 1 << 4),
        damaged: Report::Status(1 << 4 | 1 << 2),
        interrupts: [(8, 0x10), (8, 0x30), (8, 0x20), (8, 0)],
    },
    Manual {
        kind: UartKind::Geni,
        left: &[
            (0x614, 1 << 30),
            (0x644, 1 << 26),
            (0x258, 1),
            (0x22c, 1),
            (0x25c, 0),
            (0xe1c, 0),
            (0x260, 0x4_380e),
            (0x284, 0x4_380e),
        ],
        taken: &[
            (0x614, 0),
            (0x644, 0),
            (0x258, 0),
            (0x22c, 0),
            (0x25c, 2),
            (0xe1c, 0xc),
            (0x260, 0xf),
            (0x264, 0),
            (0x284, 0xf),
            (0x288, 0),
            (0x630, 1 << 27),
        ],
        transmit: 0x700,
        full: (0x40, 1),
        free: (0x40, 0),
        busy: &[(0x40, 1)],
        idle: &[(0x40, 0)],
        receive: 0x780,
        none: (0x804, 0),
        some: (0x804, 1),
        damaged: Report::Other(0x640, 1 << 10),
        interrupts: [(0x644, 3 << 26), (0x614, 1), (0x644, 0), (0x614, 0)],
    },
    Manual {
        kind: UartKind::UartDm,
        left: &[(0, 0xff), (4, 0xb4), (0x3c, 0xf), (0xa4, 1 << 3)],
        taken: &[(0, 0xbf), (4, 0x34), (0x3c, 0x30), (0xb0, 0)],
        transmit: 0x100,
        full: (0xa4, 0),
        free: (0xa4, 1 << 2),
        busy: &[(0xa4, 1 << 2)],
        idle: &[(0xa4, 3 << 2)],
        receive: 0x140,
        none: (0xa4, 0),
        some: (0xa4, 1),
        damaged: Report::Status(1 << 5 | 1),
        interrupts: [(0xb0, 0x10), (0xb0, 0x11), (0xb0, 1), (0xb0, 0)],
    },
    Manual {
        kind: UartKind::Scif,
        left: &[(8, 0xfb), (0x10, 0xf3), (0x18, 0x7ff), (0x24, 1), (4, 17)],
        taken: &[(8, 0x33), (0x10, 0x63), (0x18, 0), (0x24, 0), (4, 17)],
        transmit: 0xc,
        full: (0x1c, 0x1000),
        free: (0x1c, 0xf00),
        busy: &[(0x10, 0)],
        idle: &[(0x10, 1 << 6)],
        receive: 0x14,
        none: (0x1c, 0xf00),
        some: (0x1c, 0xf01),
        damaged: Report::Other(0x10, 1 << 3),
        interrupts: [(8, 0x70), (8, 0xf0), (8, 0xb0), (8, 0x30)],
    },
];

const NS16550: Manual = Manual {
    kind: UartKind::Ns16550,
    // The divisor latch, a break, even parity; loopback, infrared and flow control; a clock divided by four.
    left: &[(0xc, 0xdb), (4, 0xff), (0x10, 0xf4)],
    taken: &[(0xc, 0x1b), (4, 0), (8, 1), (0x10, 0x8b)],
    transmit: 0,
    full: (0x14, 0),
    free: (0x14, 1 << 5),
    busy: &[(0x14, 1 << 5)],
    idle: &[(0x14, 3 << 5)],
    receive: 0,
    none: (0x14, 0),
    some: (0x14, 1),
    damaged: Report::Status(1 << 3 | 1),
    interrupts: [(4, 5), (4, 7), (4, 2), (4, 0)],
};

/// A page of registers, all words, and what was done to it.
struct Page {
    registers: *mut u32,
    accesses: Rc<RefCell<Vec<MmioAccess>>>,
}

impl Page {
    fn new(values: &[Value]) -> Self {
        let page = Self { registers: Box::leak(Box::new([0_u32; 1024])).as_mut_ptr(), accesses: Rc::default() };
        values.iter().for_each(|&value| page.set(value));
        page
    }

    fn address(&self) -> VirtAddr {
        VirtAddr::from_ptr(self.registers)
    }

    fn register(&self, offset: u16) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096);
        self.registers.wrapping_add(usize::from(offset) / 4)
    }

    fn set(&self, (offset, value): Value) {
        // SAFETY: in the page, which was leaked; used by this thread alone.
        unsafe { self.register(offset).write_volatile(value) };
    }

    fn get(&self, offset: u16) -> u32 {
        // SAFETY: as above.
        unsafe { self.register(offset).read_volatile() }
    }

    /// Runs `work`, and `device` at each access.
    fn run<R>(&self, mut device: impl FnMut(MmioAccess) + 'static, work: impl FnOnce() -> R) -> R {
        let accesses = self.accesses.clone();
        let note = move |access| {
            accesses.borrow_mut().push(access);
            device(access);
        };
        at_each_access(note, work)
    }

    /// The values that were written to a register since the last call.
    fn written(&self, offset: u16) -> Vec<u64> {
        let at = self.address() + u64::from(offset);
        let values = self.accesses.take().into_iter().filter_map(move |access| match access {
            MmioAccess::Write(address, value) if address == at => Some(value),
            MmioAccess::Write(..) | MmioAccess::Read(_) => None,
        });
        values.collect()
    }
}

fn layout(kind: UartKind) -> UartLayout {
    if kind == UartKind::Ns16550 { WORDS } else { kind.usual_layout() }
}

fn uart(kind: UartKind) -> Uart {
    Uart::at(kind, PhysAddr(0x1000), layout(kind)).unwrap()
}

fn port(page: &Page, kind: UartKind) -> RegisterUart {
    // SAFETY: memory of the test in place of registers.
    let port = page.run(|_| (), || unsafe { Port::new(&uart(kind), page.address()) });
    let Some(Port::Registers(port)) = port else { panic!("{kind:?} has a crate") };
    port
}

#[test]
fn each_kind_has_a_table_or_a_crate() {
    assert_eq!(MANUALS.len() + 1, UartKind::ALL.len());
    let known = |kind| MANUALS.iter().any(|manual| manual.kind == kind) || kind == UartKind::Pl011;
    assert!(UartKind::ALL.into_iter().all(known));
    let page = Page::new(&[]);
    // SAFETY: memory of the test in place of registers.
    assert!(matches!(unsafe { Port::new(&uart(UartKind::Pl011), page.address()) }, Some(Port::Pl011(_))));
    // SAFETY: address zero is refused.
    assert!(UartKind::ALL.into_iter().all(|kind| unsafe { Port::new(&uart(kind), VirtAddr(0)) }.is_none()));
}

#[test]
fn a_port_keeps_rate_and_format_and_nothing_else_that_the_firmware_left() {
    for manual in &MANUALS {
        let page = Page::new(manual.left);
        // A receiver that is to stop does so.
        let control = page.register(0x634);
        let stop = move |access| {
            if access == MmioAccess::Write(VirtAddr::from_ptr(control), 2) {
                // SAFETY: in the page.
                unsafe { control.write_volatile(0) };
            }
        };
        // SAFETY: memory of the test in place of registers.
        page.run(stop, || unsafe { Port::new(&uart(manual.kind), page.address()) });
        for &(offset, value) in manual.taken {
            assert_eq!(page.get(offset), value, "{:?}: {offset:#x}", manual.kind);
        }
    }
}

/// A DesignWare refuses a write of its format while it sends.
#[test]
fn a_format_that_stays_is_not_written() {
    let page = Page::new(&[(0xc, 0x1b), (0x10, 0xb)]);
    let _ = port(&page, UartKind::DesignWare);
    let is_write = |access: &MmioAccess| match access {
        MmioAccess::Write(address, _) => [0xc, 0x10].contains(&(*address - page.address())),
        MmioAccess::Read(_) => false,
    };
    assert!(!page.accesses.borrow().iter().any(is_write));
}

/// A SCIF's flags stay until they are cleared, and without that there is no further interrupt.
#[test]
fn what_was_sent_and_received_is_acknowledged_byte_by_byte() {
    let page = Page::new(&[]);
    let port = port(&page, UartKind::Scif);
    page.set((0x10, 0x63));
    assert_eq!(page.run(|_| (), || port.write(b"a")), 1);
    assert_eq!(page.get(0x10), 3);
    [(0x10, 0x63), (0x1c, 1)].into_iter().for_each(|value| page.set(value));
    assert_eq!(page.run(|_| (), || port.read()), Some(0));
    assert_eq!(page.get(0x10), 0x60);
}

/// No use of a port accesses more than the registers that the tree must have for it.
#[test]
fn a_port_uses_its_own_registers_alone() {
    for kind in UartKind::ALL.into_iter().filter(|&kind| kind != UartKind::Pl011) {
        let uart = uart(kind);
        let mut last = 0;
        for ones in [0, u32::MAX] {
            let page = Page::new(&[]);
            (0..1024).for_each(|register| page.set((4 * register, ones)));
            let port = port(&page, kind);
            page.run(
                |_| (),
                || {
                    for on in [true, false] {
                        port.set_receive_interrupt(on);
                        port.set_transmit_interrupt(on);
                        let _ = (port.write(b"Granule"), port.is_busy(), port.read());
                        port.acknowledge();
                    }
                },
            );
            // On the host a probe finds nothing, and tells where.
            let probed = Port::probe(&uart, page.address()).unwrap_err().address;
            assert!(probed - page.address() < uart.used_bytes(), "{kind:?}");
            for access in page.accesses.take() {
                let (MmioAccess::Read(address) | MmioAccess::Write(address, _)) = access;
                last = last.max(address - page.address());
            }
        }
        let bytes = uart.used_bytes();
        assert!((bytes - 4..bytes).contains(&last), "{kind:?}: {last:#x} of {bytes:#x}");
    }
}

#[test]
fn a_byte_is_written_where_there_is_room() {
    for manual in &MANUALS {
        let page = Page::new(&[]);
        page.set(manual.free);
        let port = port(&page, manual.kind);
        page.set(manual.full);
        let taken = page.run(|_| (), || port.write(b"no"));
        assert_eq!((taken, page.written(manual.transmit)), (0, vec![]), "{:?}", manual.kind);
        page.set(manual.free);
        let taken = page.run(|_| (), || port.write(b"yes"));
        assert_eq!((taken, page.written(manual.transmit)), (3, b"yes".map(u64::from).to_vec()), "{:?}", manual.kind);

        manual.busy.iter().for_each(|&value| page.set(value));
        assert!(page.run(|_| (), || port.is_busy()), "{:?}", manual.kind);
        manual.idle.iter().for_each(|&value| page.set(value));
        assert!(!page.run(|_| (), || port.is_busy()), "{:?}", manual.kind);
    }
}

/// A 16550 that has a FIFO gets what this holds at once, and one by one where it has none.
#[test]
fn a_fifo_is_filled_without_a_look_at_each_byte() {
    for (kind, has_fifo, at_once) in [
        (UartKind::Ns16550, true, 16),
        (UartKind::Ns16550, false, 1),
        (UartKind::DesignWare, true, 16),
        (UartKind::BcmMini, true, 1),
    ] {
        let page = Page::new(&[NS16550.free]);
        let (line_status, id) = (page.register(0x14), page.register(8));
        let data = page.address();
        let mut left = at_once;
        let device = move |access| {
            // SAFETY: in the page.
            unsafe {
                id.write_volatile(if has_fifo { 0xc1 } else { 1 });
                if matches!(access, MmioAccess::Write(address, _) if address == data) {
                    left -= 1;
                    line_status.write_volatile(if left > 0 { 1 << 5 } else { 0 });
                }
            }
        };
        let uart = uart(kind);
        let (taken, looks) = page.run(device, || {
            // SAFETY: memory of the test in place of registers.
            let port = unsafe { Port::new(&uart, page.address()) }.unwrap();
            page.accesses.borrow_mut().clear();
            let taken = port.console().write(&[7; 40]);
            let is_look = |access: &&MmioAccess| **access == MmioAccess::Read(page.address() + 0x14);
            (taken, page.accesses.borrow().iter().filter(is_look).count())
        });
        assert_eq!((taken, looks), (at_once, 2), "{kind:?}");
    }
}

/// Values that a packet's length register and command were given.
#[test]
fn geni_sends_packets() {
    let page = Page::new(&[]);
    let port = port(&page, UartKind::Geni);
    let status = page.register(0x40);
    let command = page.address() + 0x600;
    let device = move |access| {
        if matches!(access, MmioAccess::Write(address, _) if address == command) {
            // SAFETY: in the page.
            unsafe { status.write_volatile(1) };
        }
    };
    assert_eq!(page.run(device, || port.write(&[7; 40])), 16);
    let accesses = page.accesses.take();
    let written = |offset| {
        let at = page.address() + offset;
        let is = move |access: &MmioAccess| matches!(access, MmioAccess::Write(address, _) if *address == at);
        accesses.iter().copied().filter(is).collect::<Vec<_>>()
    };
    assert_eq!(written(0x270), [MmioAccess::Write(page.address() + 0x270, 16)]);
    assert_eq!(written(0x600), [MmioAccess::Write(command, 1 << 27)]);
    assert_eq!(written(0x700).len(), 16);
}

/// A device that has received some bytes, of which some are damaged.
fn receiving(page: &Page, manual: &Manual, bytes: &'static [(u8, bool)]) -> impl FnMut(MmioAccess) + use<> {
    let (none, some, damaged) = (manual.none, manual.some, manual.damaged);
    let (status, data) = (page.address() + u64::from(none.0), page.address() + u64::from(manual.receive));
    let register = {
        let registers = page.registers;
        move |offset: u16| registers.wrapping_add(usize::from(offset) / 4)
    };
    let receive = manual.receive;
    let mut left = bytes.iter();
    move |access| {
        let next = left.as_slice().first();
        // SAFETY: registers of the page, which was leaked.
        let set = |offset, value| unsafe { register(offset).write_volatile(value) };
        if let (Some(&(_, true)), Report::Other(offset, value)) = (next, damaged) {
            set(offset, value);
        } else if let Report::Other(offset, _) = damaged {
            set(offset, 0);
        }
        if access == MmioAccess::Read(status) {
            set(
                none.0,
                match (next, damaged) {
                    (None, _) => none.1,
                    (Some((_, true)), Report::Status(value)) => value,
                    (Some(_), _) => some.1,
                },
            );
        }
        if access == MmioAccess::Read(data) {
            let &(byte, is_damaged) = left.next().expect("nothing is read that is not there");
            set(
                receive,
                match damaged {
                    Report::Data(bits) if is_damaged => bits | u32::from(byte),
                    Report::Data(_) | Report::Status(_) | Report::Other(..) => byte.into(),
                },
            );
        }
    }
}

#[test]
fn bytes_are_read_and_damaged_ones_skipped() {
    for manual in &MANUALS {
        let page = Page::new(&[]);
        let port = port(&page, manual.kind);
        let device =
            receiving(&page, manual, &[(b'a', false), (b'x', true), (b'y', true), (b'b', false), (0xff, false)]);
        let read = page.run(device, || [(); 5].map(|()| port.read()));
        assert_eq!(read, [Some(b'a'), Some(b'b'), Some(0xff), None, None], "{:?}", manual.kind);
    }
}

/// A read of LSR ends the report of an error, also one that looks for room.
#[test]
fn an_error_that_a_look_for_room_has_read_counts() {
    let page = Page::new(&[]);
    let port = port(&page, UartKind::Ns16550);
    page.set((0x14, 1 << 3 | 1));
    assert_eq!(page.run(|_| (), || port.write(b"a")), 0);
    let device = receiving(&page, &NS16550, &[(b'x', false), (b'b', false)]);
    assert_eq!(page.run(device, || port.read()), Some(b'b'));
}

/// A device that is gone reads as ones, for ever.
#[test]
fn a_port_that_has_nothing_but_damaged_bytes_is_not_waited_for() {
    let page = Page::new(&[(0x14, u32::MAX)]);
    let port = port(&page, UartKind::Ns16550);
    page.set((0x14, u32::MAX));
    assert_eq!(page.run(|_| (), || port.read()), None);
}

/// Until then the next byte would have the report as well.
#[test]
fn the_report_of_damage_is_ended() {
    for (kind, offset, expected) in [
        (UartKind::Lpuart, 0x14, &[0][..]),
        (UartKind::Meson, 8, &[0x100_b000, 0xb000]),
        (UartKind::Cadence, 0x14, &[0x20c0]),
        (UartKind::Armada3700, 0xc, &[0]),
        (UartKind::Geni, 0x648, &[0x1e00]),
        (UartKind::UartDm, 0xa8, &[0x30]),
    ] {
        let manual = MANUALS.iter().find(|manual| manual.kind == kind).unwrap();
        let page = Page::new(&[]);
        let port = port(&page, kind);
        page.accesses.take();
        let device = receiving(&page, manual, &[(b'x', true), (b'y', false)]);
        assert_eq!(page.run(device, || port.read()), Some(b'y'), "{kind:?}");
        assert_eq!(page.written(offset), expected, "{kind:?}");
    }
}

#[test]
fn an_overrun_is_ended() {
    for (kind, flag, cleared) in [
        (UartKind::Lpuart, (0x14, 1 << 19), (0x14_u16, 1_u32 << 19)),
        (UartKind::Armada3700, (0xc, 1), (0xc, 1)),
        (UartKind::UartDm, (0xa4, 1 << 4), (0xa8, 3 << 4)),
        (UartKind::Scif, (0x24, 1), (0x24, 0)),
    ] {
        let page = Page::new(&[]);
        let port = port(&page, kind);
        page.set(flag);
        page.accesses.take();
        assert_eq!(page.run(|_| (), || port.read()), None);
        assert_eq!(page.written(cleared.0), [u64::from(cleared.1)], "{kind:?}");
    }
}

#[test]
fn interrupts_are_enabled_and_disabled_one_by_one() {
    for manual in &MANUALS {
        let page = Page::new(&[]);
        let port = port(&page, manual.kind);
        let is_pair = manual.kind == UartKind::Cadence;
        for (step, &(offset, value)) in manual.interrupts.iter().enumerate() {
            page.run(
                |_| (),
                || match step {
                    0 => port.set_receive_interrupt(true),
                    1 => port.set_transmit_interrupt(true),
                    2 => port.set_receive_interrupt(false),
                    _ => port.set_transmit_interrupt(false),
                },
            );
            assert_eq!(page.get(offset), value, "{:?}, step {step}", manual.kind);
            if is_pair {
                page.set((offset, 0));
            }
        }
    }
}

/// A flag that stood is ended by a write to a register, or a read.
#[test]
fn what_an_interrupt_left_standing_is_ended() {
    for (kind, standing, expected) in [
        (UartKind::Cadence, &[(0x14, 0x49)][..], &[(0x14, 9)][..]),
        (UartKind::Exynos, &[(0x30, 5)], &[(0x30, 5)]),
        (UartKind::Geni, &[(0x610, 1), (0x640, 1 << 26 | 1 << 9)], &[(0x618, 1), (0x648, 1 << 26)]),
        (UartKind::Scif, &[(0x10, 0xf3), (0x24, 1)], &[(0x10, 0x63), (0x24, 0)]),
    ] {
        let page = Page::new(&[]);
        let port = port(&page, kind);
        standing.iter().for_each(|&value| page.set(value));
        page.run(|_| (), || port.acknowledge());
        expected.iter().for_each(|&(offset, value)| assert_eq!(page.get(offset), value, "{kind:?}: {offset:#x}"));
    }
    // A timeout that has no byte; one that has; the write of LCR that was refused.
    for (kind, id, line_status, reads_data) in [
        (UartKind::Ns16550, 0xcc, 0x60, true),
        (UartKind::Ns16550, 0xcc, 0x61, false),
        (UartKind::Ns16550, 0xc4, 0x60, false),
        (UartKind::DesignWare, 0xcc, 0x60, true),
    ] {
        let page = Page::new(&[]);
        let port = port(&page, kind);
        [(8, id), (0x14, line_status)].into_iter().for_each(|value| page.set(value));
        page.accesses.take();
        page.run(|_| (), || port.acknowledge());
        let accesses = page.accesses.take();
        let reads = |offset| accesses.contains(&MmioAccess::Read(page.address() + offset));
        assert_eq!((reads(0), reads(0x7c)), (reads_data, kind == UartKind::DesignWare), "{kind:?} {id:#x}");
    }
}

/// Registers one, two or four bytes apart, and accesses of the width that the tree has: another would write a neighbour.
#[test]
fn registers_are_as_far_apart_and_as_wide_as_the_tree_has_them() {
    use RegisterWidth::{Byte, Half, Word};

    for (shift, width, expected) in
        [(0, Byte, 0xffff_ff00_u32), (1, Half, 0xffff_0000), (2, Byte, 0xffff_ff00), (2, Word, 0)]
    {
        let page = Page::new(&[]);
        let uart = Uart::at(UartKind::Ns16550, PhysAddr(0x1000), UartLayout { shift, width }).unwrap();
        // SAFETY: memory of the test in place of registers.
        let port = page.run(|_| (), || unsafe { Port::new(&uart, page.address()) }).unwrap();
        let status = (5_u16 << shift) & !3;
        page.set((status, 1 << 5 << (8 * ((5 << shift) & 3))));
        page.set((0, u32::MAX));
        assert_eq!(page.run(|_| (), || port.console().write(&[0])), 1);
        assert_eq!(page.get(0), expected, "{shift} {width:?}");
    }
}
