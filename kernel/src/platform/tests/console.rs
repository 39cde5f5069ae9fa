//! Consoles that trees name, and the layouts of their registers.

use super::*;

#[test]
fn stdout_path_takes_an_alias_with_options_and_ranges_move_the_uart() {
    let platform = parse(&Machine {
        more: |tree| {
            tree.node("aliases", |tree| tree.property("serial0", &text(&["/soc/bus@1000/serial@200"])));
            tree.node("soc", |tree| {
                tree.property("#address-cells", &cells(&[1]));
                tree.property("#size-cells", &cells(&[1]));
                tree.property("ranges", &cells(&[0x7c00_0000, 0, 0xfc00_0000, 0x380_0000, 0, 0x10, 0, 0x10_0000]));
                tree.node("bus@1000", |tree| {
                    tree.property("#address-cells", &cells(&[1]));
                    tree.property("#size-cells", &cells(&[1]));
                    tree.property("ranges", &cells(&[0, 0x7c00_1000, 0x1000]));
                    tree.node("serial@200", |tree| {
                        tree.property("reg", &cells(&[0x200, 0x100]));
                        tree.property("compatible", &text(&["arm,pl011"]));
                    });
                });
            });
        },
        chosen: |tree| tree.node("chosen", |tree| tree.property("stdout-path", &text(&["serial0:115200n8"]))),
        ..Machine::default()
    });
    let uart = platform.uart.unwrap();
    assert_eq!(uart.registers, range(0xfc00_1200, 0xfc00_1300));
    assert_eq!(uart.interrupt, None);
}

#[test]
fn a_bus_without_ranges_leads_nowhere_and_what_is_on_it_is_left_out() {
    let platform = parse(&Machine {
        more: |tree| {
            tree.node("spi", |tree| {
                tree.property("#address-cells", &cells(&[1]));
                tree.property("#size-cells", &cells(&[1]));
                tree.node("serial@0", |tree| {
                    tree.property("reg", &cells(&[0, 1]));
                    tree.property("compatible", &text(&["arm,pl011"]));
                });
            });
        },
        chosen: |tree| tree.node("chosen", |tree| tree.property("stdout-path", &text(&["/spi/serial@0"]))),
        ..Machine::default()
    });
    assert_eq!(platform.uart, None);
}

#[test]
fn an_interrupt_that_makes_no_sense_leaves_a_console_that_is_polled() {
    let platform = parse(&Machine {
        more: |tree| {
            tree.node("pl011@9040000", |tree| {
                tree.property("reg", &cells(&[0, 0x904_0000, 0, 0x1000]));
                tree.property("interrupts", &cells(&[0, 8]));
                tree.property("compatible", &text(&["arm,pl011"]));
            });
        },
        chosen: |tree| tree.node("chosen", |tree| tree.property("stdout-path", &text(&["/pl011@9040000"]))),
        ..Machine::default()
    });
    let uart = platform.uart.unwrap();
    assert_eq!((uart.registers.start(), uart.interrupt), (PhysAddr(0x904_0000), None));
}

/// A tree with another UART beside the PL011, which has its own properties; the alias `serial0` for it, and `chosen`.
fn with_serial(properties: fn(&mut TreeBuilder), chosen: fn(&mut TreeBuilder)) -> Option<Uart> {
    let front = |tree: &mut TreeBuilder| {
        tree.node("aliases", |tree| {
            tree.property("serial0", &text(&["/serial@a000000"]));
            tree.property("serial1", &text(&["/pl011@9000000"]));
        });
        tree.node("serial@a000000", |tree| {
            tree.property("reg", &cells(&[0, 0xa00_0000, 0, 0x1000]));
            tree.property("interrupts", &cells(&[0, 8, 4]));
            properties(tree);
        });
    };
    Platform::parse(&virt_with(&Machine { chosen, ..Machine::default() }, &front, &|_| {})).unwrap().uart
}

fn stdout(tree: &mut TreeBuilder, path: &str) {
    tree.node("chosen", |tree| tree.property("stdout-path", &text(&[path])));
}

/// No other UART is the console: what is on its line is not known.
#[test]
fn the_console_is_the_uart_that_is_named_or_none() {
    let start = |uart: Option<Uart>| uart.map(|uart| uart.registers.start().0);
    let driven: fn(&mut TreeBuilder) = |tree| tree.property("compatible", &text(&["ns16550a"]));
    let unknown: fn(&mut TreeBuilder) = |tree| tree.property("compatible", &text(&["acme,uart"]));
    let by_path: fn(&mut TreeBuilder) = |tree| stdout(tree, "/serial@a000000");
    let by_alias: fn(&mut TreeBuilder) = |tree| stdout(tree, "serial1:115200n8");
    let no_chosen: fn(&mut TreeBuilder) = |_| {};
    let unnamed: fn(&mut TreeBuilder) = |tree| tree.node("chosen", |_| {});
    let missing: fn(&mut TreeBuilder) = |tree| stdout(tree, "serial7:115200n8");
    let empty: fn(&mut TreeBuilder) = |tree| stdout(tree, "");
    for (properties, chosen, expected) in [
        (driven, by_path, Some(0xa00_0000)),
        (driven, by_alias, Some(0x900_0000)),
        // Without a path the alias `serial0`, also in a tree without `/chosen`.
        (driven, unnamed, Some(0xa00_0000)),
        (driven, no_chosen, Some(0xa00_0000)),
        // A path that leads nowhere is no missing path.
        (driven, missing, None),
        (driven, empty, None),
        // One without a driver, by each way.
        (unknown, by_path, None),
        (unknown, unnamed, None),
        (unknown, by_alias, Some(0x900_0000)),
    ] {
        assert_eq!(start(with_serial(properties, chosen)), expected);
    }
    let machine = Machine { chosen: |tree| tree.node("chosen", |_| {}), ..Machine::default() };
    assert_eq!(parse(&machine).uart, None, "neither a path nor the alias");
}

#[test]
fn a_uart_with_a_device_on_its_line_is_no_console() {
    fn bluetooth(tree: &mut TreeBuilder, status: &str) {
        tree.property("compatible", &text(&["snps,dw-apb-uart"]));
        tree.node("bluetooth", |tree| {
            tree.property("compatible", &text(&["brcm,bcm43438-bt"]));
            tree.property("status", &text(&[status]));
        });
    }
    let path = |tree: &mut TreeBuilder| stdout(tree, "/serial@a000000");
    assert_eq!(with_serial(|tree| bluetooth(tree, "okay"), path), None);
    assert!(with_serial(|tree| bluetooth(tree, "disabled"), path).is_some());
}

#[test]
fn a_uart_has_the_layout_of_its_kind_and_of_its_tree() {
    use RegisterWidth::{Byte, Half, Word};
    use UartKind::{DesignWare, Exynos, Imx, Ns16550, Scif};

    fn uart(tree: &mut TreeBuilder, compatible: &[&str], shift: Option<u32>, width: Option<u32>) {
        tree.property("compatible", &text(compatible));
        for (name, value) in [("reg-shift", shift), ("reg-io-width", width)] {
            if let Some(value) = value {
                tree.property(name, &cells(&[value]));
            }
        }
    }
    let path = |tree: &mut TreeBuilder| stdout(tree, "/serial@a000000");
    let layout =
        |properties| with_serial(properties, path).map(|uart| (uart.kind, uart.layout.shift, uart.layout.width));
    let rows: [(fn(&mut TreeBuilder), _); 14] = [
        (|tree| uart(tree, &["ns16550a"], None, None), Some((Ns16550, 0, Byte))),
        (|tree| uart(tree, &["ns16550a"], Some(2), Some(4)), Some((Ns16550, 2, Word))),
        (|tree| uart(tree, &["ns16550a"], Some(2), None), Some((Ns16550, 2, Byte))),
        (|tree| uart(tree, &["nuvoton,npcm845-uart", "nuvoton,npcm750-uart"], Some(2), None), Some((Ns16550, 2, Byte))),
        // The more particular name counts.
        (
            |tree| uart(tree, &["acme,uart", "snps,dw-apb-uart", "ns16550a"], Some(2), Some(1)),
            Some((DesignWare, 2, Byte)),
        ),
        (|tree| uart(tree, &["mediatek,mt6577-uart"], None, None), Some((Ns16550, 2, Word))),
        (|tree| uart(tree, &["fsl,imx8mp-uart", "fsl,imx6q-uart"], Some(2), None), Some((Imx, 0, Byte))),
        (|tree| uart(tree, &["renesas,scif"], None, None), Some((Scif, 2, Half))),
        (|tree| uart(tree, &["renesas,scif-r9a07g044"], None, Some(4)), Some((Scif, 1, Half))),
        (|tree| uart(tree, &["google,gs101-uart"], None, None), Some((Exynos, 0, Word))),
        (|tree| uart(tree, &["samsung,exynos850-uart"], None, Some(4)), Some((Exynos, 0, Word))),
        // A node that is no console leaves none, and the machine as it is.
        (|tree| uart(tree, &["ns16550a"], Some(3), None), None),
        (|tree| uart(tree, &["ns16550a"], Some(256), None), None),
        (|tree| uart(tree, &["ns16550a"], None, Some(3)), None),
    ];
    for (index, (properties, expected)) in rows.into_iter().enumerate() {
        assert_eq!(layout(properties), expected, "row {index}");
    }
}

#[test]
fn a_uart_whose_registers_do_not_fit_or_are_not_aligned_is_left_out() {
    fn at(tree: &mut TreeBuilder, start: u32, size: u32, shift: u32) {
        tree.node("serial@b000000", |tree| {
            tree.property("compatible", &text(&["ns16550a"]));
            tree.property("reg-shift", &cells(&[shift]));
            tree.property("reg-io-width", &cells(&[1 << shift]));
            tree.property("reg", &cells(&[0, start, 0, size]));
        });
    }
    let more: [(fn(&mut TreeBuilder), _); 5] = [
        (|tree| at(tree, 0xb00_0001, 6, 0), true),
        (|tree| at(tree, 0xb00_0001, 5, 0), false),
        (|tree| at(tree, 0xb00_0000, 0x18, 2), true),
        (|tree| at(tree, 0xb00_0000, 0x17, 2), false),
        (|tree| at(tree, 0xb00_0002, 0x18, 2), false),
    ];
    for (more, expected) in more {
        let chosen: fn(&mut TreeBuilder) = |tree| stdout(tree, "/serial@b000000");
        assert_eq!(parse(&Machine { more, chosen, ..Machine::default() }).uart.is_some(), expected);
    }
}

/// A SCIF with a line for each event is polled: one of them does not tell of the others.
#[test]
fn a_uart_with_a_line_for_each_event_is_polled() {
    fn scif(tree: &mut TreeBuilder, names: &[&str]) {
        tree.property("compatible", &text(&["renesas,scif-r9a07g044"]));
        tree.property("interrupt-names", &text(names));
    }
    let path = |tree: &mut TreeBuilder| stdout(tree, "/serial@a000000");
    assert_eq!(with_serial(|tree| scif(tree, &["eri", "rxi", "txi"]), path).unwrap().interrupt, None);
    let line = Interrupt { intid: 40, trigger: Trigger::Level };
    assert_eq!(with_serial(|tree| scif(tree, &["mux"]), path).unwrap().interrupt, Some(line));
}
