//! Trees like those that QEMU gives, trees like those of boards, and broken trees.

mod console;
mod kaslr;
mod pcie;
mod structure;
mod virtio;

use granule_arch::addr::{PhysAddr, PhysRange};
use proptest::prelude::*;

use super::tree_builder::{TreeBuilder, cells, text};
use super::{
    Bcm2835Pm, Conduit, ControllerDescription, CpuNode, EnableMethod, Interrupt, Its, MAX_SMMUS, MappedId, Pcie,
    Platform, PlatformError, PowerRegisters, Psci, PsciFunctions, Redistributors, RegisterWidth, Smmu, SysconWrite,
    Trigger, Uart, UartKind, Window, WindowKind, tree_size,
};
use crate::smp::cpu::MAX_CPUS;

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

fn standard(conduit: Conduit) -> Psci {
    Psci { conduit, functions: PsciFunctions::Standard }
}

/// The properties of the machine that a test may change.
pub(super) struct Machine {
    pub(super) gic: fn(&mut TreeBuilder),
    pub(super) memory: Vec<u8>,
    pub(super) cpus: u32,
    pub(super) psci: &'static str,
    pub(super) chosen: fn(&mut TreeBuilder),
    pub(super) more: fn(&mut TreeBuilder),
    /// A property of the PCIe host bridge that has this value instead.
    pub(super) broken: (&'static str, Vec<u8>),
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            gic: gic_v3,
            memory: cells(&[0, 0x4000_0000, 0, 0x8000_0000]),
            cpus: 4,
            psci: "hvc",
            chosen,
            more: |_| {},
            broken: ("", Vec::new()),
        }
    }
}

fn gic_v3(tree: &mut TreeBuilder) {
    tree.node("intc@8000000", |tree| {
        tree.property("reg", &cells(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]));
        tree.property("#redistributor-regions", &cells(&[1]));
        tree.property("compatible", &text(&["arm,gic-v3"]));
        tree.property("#interrupt-cells", &cells(&[3]));
        tree.property("phandle", &cells(&[0x8002]));
        tree.property("#address-cells", &cells(&[2]));
        tree.property("#size-cells", &cells(&[2]));
        tree.property("ranges", &[]);
        tree.node("its@8080000", |tree| {
            tree.property("phandle", &cells(&[0x8003]));
            tree.property("reg", &cells(&[0, 0x808_0000, 0, 0x2_0000]));
            tree.property("compatible", &text(&["arm,gic-v3-its"]));
        });
    });
}

pub(super) fn gic_v2(tree: &mut TreeBuilder) {
    tree.node("intc@8000000", |tree| {
        tree.property("reg", &cells(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x801_0000, 0, 0x1_0000]));
        tree.property("compatible", &text(&["arm,cortex-a15-gic"]));
    });
}

fn chosen(tree: &mut TreeBuilder) {
    tree.node("chosen", |tree| {
        tree.property("bootargs", &text(&["loglevel=info script"]));
        tree.property("stdout-path", &text(&["/pl011@9000000"]));
        tree.property("kaslr-seed", &cells(&[0x1122_3344, 0x5566_7788]));
        tree.property("linux,initrd-start", &cells(&[0x4800_0000]));
        tree.property("linux,initrd-end", &cells(&[0, 0x4810_0000]));
    });
}

/// Adds nodes of a test to a tree.
pub(super) type Nodes<'a> = &'a dyn Fn(&mut TreeBuilder);

/// The tree of QEMU's virt machine, without its virtio transports.
pub(super) fn virt(machine: &Machine) -> Vec<u8> {
    virt_with(machine, &|_| {}, &machine.more)
}

/// As [`virt`], with these nodes in front of the root's others, and after them.
pub(super) fn virt_with(machine: &Machine, front: Nodes<'_>, more: Nodes<'_>) -> Vec<u8> {
    let mut tree = TreeBuilder::default();
    tree.reserve(0x4000_0000, 0x1234);
    tree.node("", |tree| {
        tree.property("#address-cells", &cells(&[2]));
        tree.property("#size-cells", &cells(&[2]));
        tree.property("model", &text(&["linux,dummy-virt"]));
        tree.property("compatible", &text(&["linux,dummy-virt"]));
        front(tree);
        tree.node("psci", |tree| {
            tree.property("method", &text(&[machine.psci]));
            tree.property("compatible", &text(&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]));
        });
        tree.node("memory@40000000", |tree| {
            tree.property("reg", &machine.memory);
            tree.property("device_type", &text(&["memory"]));
        });
        tree.node("cpus", |tree| {
            tree.property("#address-cells", &cells(&[1]));
            tree.property("#size-cells", &cells(&[0]));
            for cpu in 0..machine.cpus {
                tree.node(&format!("cpu@{cpu:x}"), |tree| {
                    tree.property("reg", &cells(&[cpu]));
                    tree.property("enable-method", &text(&["psci"]));
                });
            }
        });
        tree.node("timer", |tree| {
            tree.property("interrupts", &cells(&[1, 13, 0x104, 1, 14, 0x104, 1, 11, 0x104, 1, 10, 0x104]));
            tree.property("compatible", &text(&["arm,armv8-timer", "arm,armv7-timer"]));
        });
        (machine.gic)(tree);
        tree.node("pl011@9000000", |tree| {
            tree.property("interrupts", &cells(&[0, 1, 4]));
            tree.property("reg", &cells(&[0, 0x900_0000, 0, 0x1000]));
            tree.property("compatible", &text(&["arm,pl011", "arm,primecell"]));
        });
        tree.node("smmuv3@9050000", |tree| {
            tree.property("phandle", &cells(&[0x8004]));
            tree.property("interrupt-names", &text(&["eventq", "priq", "cmdq-sync", "gerror"]));
            tree.property("interrupts", &cells(&[0, 74, 1, 0, 75, 1, 0, 76, 1, 0, 77, 1]));
            tree.property("reg", &cells(&[0, 0x905_0000, 0, 0x2_0000]));
            tree.property("dma-coherent", &[]);
            tree.property("compatible", &text(&["arm,smmu-v3"]));
        });
        tree.node("pcie@10000000", |tree| {
            for (name, value) in virt_pcie() {
                let value = if name == machine.broken.0 { machine.broken.1.clone() } else { value };
                tree.property(name, &value);
            }
            if machine.broken.0 == "dma-ranges" {
                tree.property("dma-ranges", &machine.broken.1);
            }
        });
        more(tree);
        (machine.chosen)(tree);
    });
    tree.finish()
}

/// The properties of its PCIe host bridge, with the two devices of `interrupt-map` that show the turn.
fn virt_pcie() -> Vec<(&'static str, Vec<u8>)> {
    let line = |device: u32, pin: u32, spi: u32| [device << 11, 0, 0, pin, 0x8002, 0, 0, 0, spi, 4];
    let lines = [line(0, 1, 3), line(0, 2, 4), line(1, 1, 4), line(1, 2, 5)];
    let ports = [0x100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000];
    let low = [0x200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000];
    let high = [0x300_0000, 0x80, 0, 0x80, 0, 0x80, 0];
    vec![
        ("iommu-map", cells(&[0, 0x8004, 0, 0x1_0000])),
        ("interrupt-map-mask", cells(&[0x1800, 0, 0, 7])),
        ("interrupt-map", cells(&lines.concat())),
        ("ranges", cells(&[ports, low, high].concat())),
        ("reg", cells(&[0x40, 0x1000_0000, 0, 0x1000_0000])),
        ("msi-map", cells(&[0, 0x8003, 0, 0x1_0000])),
        ("dma-coherent", Vec::new()),
        ("bus-range", cells(&[0, 255])),
        ("#address-cells", cells(&[3])),
        ("#size-cells", cells(&[2])),
        ("compatible", text(&["pci-host-ecam-generic"])),
    ]
}

fn parse(machine: &Machine) -> Platform {
    Platform::parse(&virt(machine)).unwrap()
}

#[test]
fn qemu_virt_with_gic_v3() {
    let platform = parse(&Machine::default());
    assert_eq!(platform.model, "linux,dummy-virt");
    assert_eq!(platform.memory, [range(0x4000_0000, 0xc000_0000)]);
    assert_eq!(platform.reserved, [range(0x4000_0000, 0x4000_2000)], "rounded outwards to pages");
    assert_eq!(platform.bootargs, "loglevel=info script");
    assert_eq!(platform.initrd, Some(range(0x4800_0000, 0x4810_0000)), "one cell and two cells");
    assert_eq!(platform.cpus.len(), 4);
    assert_eq!(platform.cpus[3], CpuNode { mpidr: 3, enable_method: EnableMethod::Psci });
    assert_eq!(platform.psci, Some(standard(Conduit::Hvc)));
    let regions = heapless::Vec::from_slice(&[range(0x80a_0000, 0x900_0000)]).unwrap();
    let redistributors = Redistributors { regions, stride: None };
    assert_eq!(
        platform.interrupt_controller,
        ControllerDescription::V3 { distributor: range(0x800_0000, 0x801_0000), redistributors }
    );
    assert_eq!(platform.timer, Interrupt { intid: 27, trigger: Trigger::Level });
    let uart = platform.uart.unwrap();
    assert_eq!((uart.kind, uart.registers), (UartKind::Pl011, range(0x900_0000, 0x900_1000)));
    assert_eq!(uart.interrupt, Some(Interrupt { intid: 33, trigger: Trigger::Level }));
    assert_eq!(platform.pcie.unwrap().ecam.start(), PhysAddr(0x40_1000_0000));
    let [smmu] = &platform.smmus[..] else { panic!("there is one") };
    assert!(smmu.coherent);
    assert_eq!(smmu.event_queue, Some(Interrupt { intid: 106, trigger: Trigger::Edge }));
    assert_eq!(smmu.global_error, Some(Interrupt { intid: 109, trigger: Trigger::Edge }));
}

/// `/firmware` has no addresses, and so need have no cells for them.
#[test]
fn psci_is_found_below_a_node_without_cells() {
    let tree = |psci: Nodes<'_>| {
        let mut tree = TreeBuilder::default();
        tree.node("", |tree| {
            tree.property("#address-cells", &cells(&[2]));
            tree.property("#size-cells", &cells(&[2]));
            tree.node("firmware", |tree| tree.node("any", |tree| tree.node("psci", psci)));
            tree.node("memory@40000000", |tree| {
                tree.property("reg", &cells(&[0, 0x4000_0000, 0, 0x8000_0000]));
                tree.property("device_type", &text(&["memory"]));
            });
            tree.node("cpus", |tree| {
                tree.property("#address-cells", &cells(&[1]));
                tree.property("#size-cells", &cells(&[0]));
                tree.node("cpu@0", |tree| tree.property("reg", &cells(&[0])));
            });
            tree.node("timer", |tree| {
                tree.property("interrupts", &cells(&[1, 13, 0x104, 1, 14, 0x104, 1, 11, 0x104, 1, 10, 0x104]));
                tree.property("compatible", &text(&["arm,armv8-timer"]));
            });
            gic_v3(tree);
        });
        Platform::parse(&tree.finish()).unwrap().psci
    };
    let psci = |tree: &mut TreeBuilder| {
        tree.property("method", &text(&["smc"]));
        tree.property("compatible", &text(&["arm,psci-1.0"]));
    };
    assert_eq!(tree(&psci), Some(standard(Conduit::Smc)));
    assert_eq!(tree(&|_| {}), None);
}

#[test]
fn psci_of_version_0_1_has_the_trees_number_and_turns_nothing_off() {
    let psci = |compatible: &[&str], cpu_on: Option<Vec<u8>>| {
        let node = |tree: &mut TreeBuilder| {
            tree.node("psci", |tree| {
                tree.property("method", &text(&["smc"]));
                tree.property("compatible", &text(compatible));
                tree.property("cpu_off", &cells(&[0x8400_0002]));
                cpu_on.iter().for_each(|value| tree.property("cpu_on", value));
            });
        };
        Platform::parse(&virt_with(&Machine::default(), &node, &|_| {})).unwrap().psci.unwrap()
    };
    let listed = |cpu_on| Psci { conduit: Conduit::Smc, functions: PsciFunctions::Listed { cpu_on } };
    let number = || Some(cells(&[0xc400_0003]));
    assert_eq!(psci(&["arm,psci"], number()), listed(Some(0xc400_0003)));
    assert_eq!(psci(&["arm,psci"], None), listed(None));
    assert_eq!(psci(&["arm,psci"], Some(vec![1, 2])), listed(None), "no number");
    assert_eq!(psci(&["arm,psci-0.2", "arm,psci"], number()), standard(Conduit::Smc));
    assert_eq!(listed(Some(1)).system_calls(), None);
    assert_eq!(standard(Conduit::Smc).system_calls(), Some(Conduit::Smc));
}

/// A system controller at 0x1000 with these properties, and in it a node, if it has any; in front of it, another node.
fn power(controller: &[(&str, Vec<u8>)], outside: &[(&str, Vec<u8>)], inside: &[(&str, Vec<u8>)]) -> PowerRegisters {
    let fill = |tree: &mut TreeBuilder, properties: &[(&str, Vec<u8>)]| {
        properties.iter().for_each(|(name, value)| tree.property(name, value));
    };
    let more = |tree: &mut TreeBuilder| {
        tree.node("power-key", |tree| fill(tree, outside));
        tree.node("bus", |tree| {
            tree.property("#address-cells", &cells(&[1]));
            tree.property("#size-cells", &cells(&[1]));
            tree.property("ranges", &cells(&[0, 0, 0x7000_0000, 0x1_0000]));
            tree.node("other@0", |tree| tree.property("reg", &cells(&[0, 0x1000])));
            tree.node("controller@1000", |tree| {
                tree.property("reg", &cells(&[0x1000, 0x100]));
                fill(tree, controller);
                tree.node("reboot", |tree| fill(tree, inside));
            });
        });
    };
    Platform::parse(&virt_with(&Machine::default(), &|_| {}, &more)).unwrap().power
}

fn syscon(compatible: &str, numbers: &[(&'static str, u32)]) -> Vec<(&'static str, Vec<u8>)> {
    let numbers = numbers.iter().map(|&(name, value)| (name, cells(&[value])));
    [("compatible", text(&[compatible]))].into_iter().chain(numbers).collect()
}

#[test]
fn a_system_controller_is_named_or_the_parent() {
    let write = |start, bytes, mask, value| {
        let register = PhysRange::from_size(PhysAddr(start), bytes).unwrap();
        Some(SysconWrite { register, is_big_endian: false, mask, value })
    };
    let named = [("phandle", cells(&[0x77]))];
    let off = syscon("syscon-poweroff", &[("regmap", 0x77), ("offset", 0xfc), ("mask", 0x5200)]);
    let reset = syscon("syscon-reboot", &[("reg", 8), ("value", 3), ("mask", 7)]);
    let found = power(&named, &off, &reset);
    // A mask without a value is the value.
    assert_eq!(found.off, write(0x7000_10fc, 4, !0, 0x5200));
    assert_eq!(found.reset, write(0x7000_1008, 4, 7, 3));
    assert_eq!(found.watchdog, None);

    let swapped = [("phandle", cells(&[0x77])), ("big-endian", vec![]), ("reg-io-width", cells(&[2]))];
    let off = syscon("syscon-poweroff", &[("regmap", 0x77), ("reg", 9), ("offset", 2), ("value", 0)]);
    let expected = write(0x7000_1002, 2, !0, 0).map(|write| SysconWrite { is_big_endian: true, ..write });
    assert_eq!(power(&swapped, &off, &[]).off, expected);
}

#[test]
fn a_system_controllers_change_that_makes_no_sense_is_left_out() {
    let off = |regmap, offset, more: &[(&'static str, u32)]| {
        let numbers = [&[("regmap", regmap), ("offset", offset)][..], more].concat();
        power(&[("phandle", cells(&[0x77]))], &syscon("syscon-poweroff", &numbers), &[]).off
    };
    assert!(off(0x77, 0, &[("value", 1)]).is_some());
    assert_eq!(off(0x78, 0, &[("value", 1)]), None, "no such controller");
    assert_eq!(off(0x77, 0x100, &[("value", 1)]), None, "behind the registers");
    assert_eq!(off(0x77, 2, &[("value", 1)]), None, "across two registers");
    assert_eq!(off(0x77, !3, &[("value", 1)]), None);
    assert_eq!(off(0x77, 0, &[]), None, "neither value nor mask");
    let wide = [("phandle", cells(&[0x77])), ("reg-io-width", cells(&[8]))];
    let numbers = [("regmap", 0x77), ("offset", 0), ("value", 1)];
    assert_eq!(power(&wide, &syscon("syscon-poweroff", &numbers), &[]).off, None);
    let alone = syscon("syscon-poweroff", &numbers[1..]);
    assert_eq!(power(&[], &alone, &[]).off, None, "the parent is the root");
}

#[test]
fn a_watchdog_turns_the_machine_off_where_the_tree_says_so() {
    let watchdog = |compatible: &[&str], reg: &[u32], turns_off: bool| {
        let pm = |tree: &mut TreeBuilder| {
            tree.node("watchdog@fe100000", |tree| {
                tree.property("compatible", &text(compatible));
                tree.property("reg", &cells(reg));
                if turns_off {
                    tree.property("system-power-controller", &[]);
                }
            });
        };
        Platform::parse(&virt_with(&Machine::default(), &pm, &|_| {})).unwrap().power.watchdog
    };
    let registers = range(0xfe10_0000, 0xfe10_0114);
    const REG: [u32; 4] = [0, 0xfe10_0000, 0, 0x114];
    let both = ["brcm,bcm2711-pm", "brcm,bcm2835-pm-wdt"];
    assert_eq!(watchdog(&both, &REG, true), Some(Bcm2835Pm { registers, turns_off: true }));
    for one in ["brcm,bcm2835-pm", "brcm,bcm2835-pm-wdt", "brcm,bcm2711-pm", "brcm,bcm2712-pm"] {
        assert_eq!(watchdog(&[one], &REG, false), Some(Bcm2835Pm { registers, turns_off: false }), "{one}");
    }
    assert_eq!(watchdog(&both, &[0, 0xfe10_0000, 0, 0x24], true), None, "too few registers");
    assert_eq!(watchdog(&both, &[0, 0xfe10_0002, 0, 0x114], true), None);
}

#[test]
fn the_timer_has_a_frequency_where_its_node_has() {
    let frequency = |value: Option<&[u8]>| {
        let timer = |tree: &mut TreeBuilder| {
            tree.node("timer", |tree| {
                tree.property("interrupts", &cells(&[1, 13, 8, 1, 14, 8, 1, 12, 8, 1, 10, 8]));
                tree.property("compatible", &text(&["arm,armv8-timer"]));
                value.iter().for_each(|value| tree.property("clock-frequency", value));
            });
        };
        let platform = Platform::parse(&virt_with(&Machine::default(), &timer, &|_| {})).unwrap();
        assert_eq!(platform.timer.intid, 28);
        platform.timer_frequency
    };
    assert_eq!(frequency(None), None);
    assert_eq!(frequency(Some(&cells(&[24_000_000]))), Some(24_000_000));
    assert_eq!(frequency(Some(&[1, 2, 3])), None, "no number: the CPUs may have one");
}

#[test]
fn the_timers_interrupt_is_private() {
    let timer = |tree: &mut TreeBuilder| {
        tree.node("timer", |tree| {
            tree.property("interrupts", &cells(&[1, 13, 8, 1, 14, 8, 0, 11, 8, 1, 10, 8]));
            tree.property("compatible", &text(&["arm,armv8-timer"]));
        });
    };
    let shared = Platform::parse(&virt_with(&Machine::default(), &timer, &|_| {})).map(drop);
    assert_eq!(shared, Err(PlatformError::Missing { node: "timer".into(), property: "interrupts" }));
}

/// BCM2837's interrupt controllers, the second in front of the first, and a port after it.
fn bcm2837(tree: &mut TreeBuilder) {
    let controller = |tree: &mut TreeBuilder, name, compatible, reg: [u32; 4], phandle| {
        tree.node(name, |tree| {
            tree.property("compatible", &text(&[compatible]));
            tree.property("reg", &cells(&reg));
            tree.property("interrupt-controller", &[]);
            tree.property("#interrupt-cells", &cells(&[2]));
            tree.property("phandle", &cells(&[phandle]));
        });
    };
    tree.node("serial@3f201000", |tree| {
        tree.property("compatible", &text(&["arm,pl011"]));
        tree.property("reg", &cells(&[0, 0x3f20_1000, 0, 0x200]));
        tree.property("interrupt-parent", &cells(&[0x90]));
        tree.property("interrupts", &cells(&[2, 25]));
    });
    controller(tree, "shared", "brcm,bcm2836-armctrl-ic", [0, 0x3f00_b200, 0, 0x200], 0x90);
    controller(tree, "cores", "brcm,bcm2836-l1-intc", [0, 0x4000_0000, 0, 0x100], 0x91);
    tree.node("timer", |tree| {
        tree.property("compatible", &text(&["arm,armv7-timer"]));
        tree.property("interrupt-parent", &cells(&[0x91]));
        tree.property("interrupts", &cells(&[0, 4, 1, 4, 3, 4, 2, 4]));
    });
}

#[test]
fn a_bcm2837_has_two_interrupt_controllers() {
    let without = Machine { gic: |_| {}, ..Machine::default() };
    let platform = Platform::parse(&virt_with(&without, &bcm2837, &|_| {})).unwrap();
    let (cores, shared) = (range(0x4000_0000, 0x4000_0100), Some(range(0x3f00_b200, 0x3f00_b400)));
    assert_eq!(platform.interrupt_controller, ControllerDescription::Bcm2836 { cores, shared });
    assert_eq!(platform.timer, Interrupt { intid: 19, trigger: Trigger::Level });
    assert!(platform.pcie.is_some_and(|host| host.lines.find(0, 1).is_none()));
}

/// A BCM2711 has that of the cores as well, without the property that makes it one that is used.
#[test]
fn a_gic_counts_before_what_a_bcm2836_has() {
    let cores = |tree: &mut TreeBuilder| {
        tree.node("cores", |tree| {
            tree.property("compatible", &text(&["brcm,bcm2836-l1-intc"]));
            tree.property("reg", &cells(&[0, 0x4000_0000, 0, 0x100]));
        });
    };
    let without = Machine { gic: |_| {}, ..Machine::default() };
    let error = Platform::parse(&virt_with(&without, &cores, &|_| {})).unwrap_err().to_string();
    assert!(error.contains("interrupt controller"), "{error}");
    let used = |tree: &mut TreeBuilder| {
        tree.node("cores", |tree| {
            tree.property("compatible", &text(&["brcm,bcm2836-l1-intc"]));
            tree.property("reg", &cells(&[0, 0x4000_0000, 0, 0x100]));
            tree.property("interrupt-controller", &[]);
            tree.property("phandle", &cells(&[0x91]));
        });
    };
    for nodes in [virt_with(&Machine::default(), &used, &|_| {}), virt_with(&Machine::default(), &|_| {}, &used)] {
        let platform = Platform::parse(&nodes).unwrap();
        assert!(matches!(platform.interrupt_controller, ControllerDescription::V3 { .. }));
        assert_eq!(platform.timer.intid, 27);
    }
}

/// The CPUs of a tree, and what it has reserved, where `fill` says how each of four is started.
fn started_by(fill: &dyn Fn(&mut TreeBuilder, u32)) -> (Vec<EnableMethod>, Vec<PhysRange>) {
    let cpus = |tree: &mut TreeBuilder| {
        tree.node("cpus", |tree| {
            tree.property("#address-cells", &cells(&[1]));
            tree.property("#size-cells", &cells(&[0]));
            for cpu in 0..4 {
                tree.node(&format!("cpu@{cpu:x}"), |tree| {
                    tree.property("reg", &cells(&[cpu]));
                    fill(tree, cpu);
                });
            }
        });
    };
    let platform = Platform::parse(&virt_with(&Machine::default(), &cpus, &|_| {})).unwrap();
    (platform.cpus.iter().map(|cpu| cpu.enable_method).collect(), platform.reserved.to_vec())
}

#[test]
fn the_page_of_a_release_address_is_reserved_once() {
    let spin = |addresses: [Vec<u8>; 4]| {
        started_by(&|tree, cpu| {
            tree.property("enable-method", &text(&["spin-table"]));
            tree.property("cpu-release-addr", &addresses[cpu as usize]);
        })
    };
    let at = |address| EnableMethod::SpinTable(PhysAddr(address));
    let tree = range(0x4000_0000, 0x4000_2000);
    // Each its own, as on a Raspberry Pi; one of them in what is reserved already, and one in a single cell.
    let (methods, reserved) =
        spin([cells(&[1, 0xd8]), cells(&[1, 0xe0]), cells(&[0, 0x4000_0ff8]), cells(&[0x5000_0008])]);
    assert_eq!(methods, [at(0x1_0000_00d8), at(0x1_0000_00e0), at(0x4000_0ff8), at(0x5000_0008)]);
    assert_eq!(reserved, [tree, range(0x1_0000_0000, 0x1_0000_1000), range(0x5000_0000, 0x5000_1000)]);
    // One for all.
    let (methods, reserved) = spin([(); 4].map(|()| cells(&[0, 0x8000_fff8])));
    assert_eq!(methods, [at(0x8000_fff8); 4]);
    assert_eq!(reserved, [tree, range(0x8000_f000, 0x8001_0000)]);
    // None, none that is one, and the last byte of all.
    let (methods, reserved) = spin([cells(&[0, 0]), vec![1, 2, 3], vec![], cells(&[!0, !7])]);
    assert_eq!(methods, [at(0), at(0), at(0), at(!7)]);
    assert_eq!(reserved, [tree]);
}

#[test]
fn a_cpu_without_a_method_that_is_known_leaves_the_others_theirs() {
    let (methods, reserved) = started_by(&|tree, cpu| match cpu {
        0 => {}
        1 => tree.property("enable-method", &text(&["psci"])),
        2 => tree.property("enable-method", &text(&["spin-table"])),
        _ => tree.property("enable-method", &text(&["vendor,smp"])),
    });
    let without = EnableMethod::SpinTable(PhysAddr(0));
    assert_eq!(methods, [EnableMethod::Unknown, EnableMethod::Psci, without, EnableMethod::Unknown]);
    assert_eq!(reserved, [range(0x4000_0000, 0x4000_2000)]);
}

#[test]
fn qemu_virt_with_gic_v2_and_smc() {
    let platform = parse(&Machine { gic: gic_v2, psci: "smc", cpus: 1, ..Machine::default() });
    let (distributor, cpu_interface) = (range(0x800_0000, 0x801_0000), range(0x801_0000, 0x802_0000));
    assert_eq!(platform.interrupt_controller, ControllerDescription::V2 { distributor, cpu_interface });
    assert_eq!(platform.psci, Some(standard(Conduit::Smc)));
}

#[test]
fn banks_are_sorted_joined_and_trimmed_to_pages() {
    let memory = cells(&[
        8,
        0x8000_0000,
        0,
        0x1000_0000,
        0,
        0x4000_0800,
        0,
        0x2800,
        0,
        0x4000_3000,
        0,
        0x1000,
        0,
        0x5000_0000,
        0,
        0x800,
    ]);
    let platform = parse(&Machine { memory, ..Machine::default() });
    assert_eq!(platform.memory, [range(0x4000_1000, 0x4000_4000), range(0x8_8000_0000, 0x8_9000_0000)]);
}

#[test]
fn reserved_memory_counts_whether_mapped_or_not() {
    let platform = parse(&Machine {
        more: |tree| {
            tree.node("reserved-memory", |tree| {
                tree.property("#address-cells", &cells(&[2]));
                tree.property("#size-cells", &cells(&[1]));
                tree.property("ranges", &[]);
                tree.node("firmware@50000000", |tree| {
                    tree.property("reg", &cells(&[0, 0x5000_0000, 0x1000]));
                    tree.property("no-map", &[]);
                });
                tree.node("pool", |tree| tree.property("size", &cells(&[0x10_0000])));
                tree.node("log@60000800", |tree| tree.property("reg", &cells(&[0, 0x6000_0800, 0x1000])));
            });
        },
        ..Machine::default()
    });
    let firmware = range(0x5000_0000, 0x5000_1000);
    assert!(platform.reserved.contains(&firmware));
    assert!(platform.reserved.contains(&range(0x6000_0000, 0x6000_2000)));
    assert_eq!(platform.no_map, [firmware]);
}

#[test]
fn a_disabled_device_is_not_used() {
    let platform = parse(&Machine {
        more: |tree| {
            tree.node("pl011@9040000", |tree| {
                tree.property("status", &text(&["disabled"]));
                tree.property("reg", &cells(&[0, 0x904_0000, 0, 0x1000]));
                tree.property("compatible", &text(&["arm,pl011"]));
            });
        },
        chosen: |tree| tree.node("chosen", |tree| tree.property("stdout-path", &text(&["/pl011@9040000"]))),
        ..Machine::default()
    });
    assert_eq!(platform.uart, None);
}

#[test]
fn more_cpus_than_there_is_room_for_are_counted() {
    let platform = parse(&Machine { cpus: 20, ..Machine::default() });
    assert_eq!((platform.cpus.len(), platform.cpus_left_out), (MAX_CPUS, 20 - MAX_CPUS));
}

#[test]
fn what_no_kernel_can_do_without_is_named() {
    let error = |machine: &Machine| Platform::parse(&virt(machine)).unwrap_err().to_string();
    assert_eq!(error(&Machine { memory: Vec::new(), ..Machine::default() }), "device tree: /memory has no reg");
    assert_eq!(error(&Machine { cpus: 0, ..Machine::default() }), "device tree: /cpus has no cpu");
    assert!(error(&Machine { gic: |_| {}, ..Machine::default() }).contains("interrupt controller"));
    let memory = cells(&[0, 0x4000_0000, 0]);
    assert_eq!(error(&Machine { memory, ..Machine::default() }), "device tree: memory@40000000: bad reg");
    let wraps = cells(&[!0, !0, 0, 0x1000]);
    assert_eq!(error(&Machine { memory: wraps, ..Machine::default() }), "device tree: memory@40000000: bad reg");
}

#[test]
fn psci_without_a_way_to_call_it_is_left_out() {
    let platform = parse(&Machine { psci: "call", ..Machine::default() });
    assert_eq!((platform.psci, platform.cpus.len()), (None, parse(&Machine::default()).cpus.len()));
}

#[test]
fn a_tree_may_be_followed_by_anything_but_not_cut_off() {
    let mut blob = virt(&Machine::default());
    assert_eq!(tree_size(blob.first_chunk().unwrap()), Some(blob.len()));
    for length in 0..blob.len() {
        assert!(Platform::parse(&blob[..length]).is_err(), "{length} bytes");
    }
    let expected = blob.len();
    assert_eq!(
        Platform::parse(&blob[..expected - 1]).unwrap_err(),
        PlatformError::Truncated { have: expected - 1, expected }
    );
    blob.extend([0xa5; 100]);
    assert!(Platform::parse(&blob).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Reading a tree returns, whatever is written over it.
    #[test]
    fn a_corrupt_tree_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut blob = virt(&Machine::default());
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        let _ = Platform::parse(&blob);
    }

    /// Reading also returns after changes of whole words of the tree, where lengths, tokens and offsets are.
    #[test]
    fn a_corrupt_word_never_panics(at in any::<prop::sample::Index>(), value in prop_oneof![0_u32..16, any::<u32>(), !16_u32..=!0]) {
        let mut blob = virt(&Machine::default());
        let at = at.index(blob.len() / 4) * 4;
        blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        let _ = Platform::parse(&blob);
    }

    /// A tree whose header has too short a length.
    #[test]
    fn a_shortened_tree_never_panics(length in any::<prop::sample::Index>()) {
        let mut blob = virt(&Machine::default());
        let length = length.index(blob.len());
        blob[4..8].copy_from_slice(&(length as u32).to_be_bytes());
        let _ = Platform::parse(&blob);
        let _ = Platform::parse(&blob[..length.max(8).min(blob.len())]);
    }
}

#[test]
fn an_initrd_that_is_not_in_memory_is_left_out() {
    let initrd = |start: u64, end: u64, more: fn(&mut TreeBuilder)| {
        let mut tree = TreeBuilder::default();
        tree.node("", |tree| {
            tree.property("#address-cells", &cells(&[2]));
            tree.property("#size-cells", &cells(&[2]));
            tree.node("memory@40000000", |tree| {
                tree.property("reg", &cells(&[0, 0x4000_0000, 0, 0x8000_0000]));
                tree.property("device_type", &text(&["memory"]));
            });
            more(tree);
            tree.node("chosen", |tree| {
                tree.property("linux,initrd-start", &start.to_be_bytes());
                tree.property("linux,initrd-end", &end.to_be_bytes());
            });
            gic_v3(tree);
            tree.node("timer", |tree| {
                tree.property("interrupts", &cells(&[1, 13, 0x104, 1, 14, 0x104, 1, 11, 0x104]));
                tree.property("compatible", &text(&["arm,armv8-timer"]));
            });
            tree.node("cpus", |tree| {
                tree.property("#address-cells", &cells(&[1]));
                tree.property("#size-cells", &cells(&[0]));
                tree.node("cpu@0", |tree| tree.property("reg", &cells(&[0])));
            });
        });
        Platform::parse(&tree.finish()).unwrap().initrd
    };
    assert_eq!(initrd(0x4000_0000, 0xc000_0000, |_| {}), Some(range(0x4000_0000, 0xc000_0000)));
    for (start, end) in [(0x3fff_f000, 0x4100_0000), (0xbfff_f000, 0xc000_0001), (0x1000, 0x2000), (1 << 60, 1 << 61)] {
        assert_eq!(initrd(start, end, |_| {}), None, "{start:#x} to {end:#x}");
    }
    let hidden = |tree: &mut TreeBuilder| {
        tree.node("reserved-memory", |tree| {
            tree.property("#address-cells", &cells(&[2]));
            tree.property("#size-cells", &cells(&[2]));
            tree.property("ranges", &[]);
            tree.node("firmware@48000000", |tree| {
                tree.property("reg", &cells(&[0, 0x4800_0000, 0, 0x1000]));
                tree.property("no-map", &[]);
            });
        });
    };
    assert_eq!(initrd(0x4800_0800, 0x4900_0000, hidden), None);
    assert_eq!(initrd(0x4800_1000, 0x4900_0000, hidden), Some(range(0x4800_1000, 0x4900_0000)));
}

/// The tree of `virt` with these boot arguments, and with the address of ACPI's tables, as a loader leaves it.
fn with_tables(arguments: &'static str) -> Platform {
    let chosen = |tree: &mut TreeBuilder| {
        tree.node("chosen", |tree| {
            tree.property("bootargs", &text(&[arguments]));
            tree.property("granule,acpi-rsdp", &cells(&[0xf, 0x1234]));
        });
    };
    let machine = Machine { chosen: |_| {}, ..Machine::default() };
    Platform::parse(&virt_with(&machine, &|_| {}, &chosen)).unwrap()
}

#[test]
fn a_tree_with_cpus_is_preferred_to_acpis_tables_unless_they_are_asked_for() {
    let preferred = with_tables("");
    assert_eq!((preferred.rsdp, preferred.cpus.len()), (None, 4));
    assert_eq!(with_tables("acpi=off").rsdp, None);
    let forced = with_tables("acpi=force");
    assert_eq!((forced.rsdp, forced.memory.len()), (Some(PhysAddr(0xf_0000_1234)), 1));
    assert_eq!((forced.cpus.len(), forced.pcie, forced.smmus.len(), forced.psci), (0, None, 0, None));
    let force = |tree: &mut TreeBuilder| {
        tree.node("chosen", |tree| tree.property("bootargs", &text(&["acpi=force"])));
    };
    assert_eq!(parse(&Machine { chosen: force, ..Machine::default() }).rsdp, None, "there are none");
}
