//! Models of boards that have neither firmware nor a device tree, where Debian's packages have none either: the tests
//! give them both.
//!
//! The device tree has names and addresses as Linux's trees have them, as far as a boot needs them. All CPUs of such a
//! model run at once, and QEMU puts only the first into a kernel; it answers no PSCI. The others are put into a spin
//! table in the memory within the chip, or in a page of memory, which the kernel leaves alone as it has release addresses.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use granule_runner::machine::Machine;

use crate::own_file;

/// Hardware that QEMU's documents and sources give.
struct Hardware {
    memory: [u64; 2],
    cpu: &'static str,
    /// Of the memory that has the spin table.
    start: u64,
    gic: (&'static str, &'static [u64]),
    uart: (&'static [&'static str], u64),
    /// The binary logarithm of the bytes between its registers, where its kind does not have that.
    shift: Option<u32>,
    /// The port's shared interrupt, where a driven interrupt controller has it.
    interrupt: Option<u32>,
    /// Further options of QEMU's.
    options: &'static [&'static str],
}

/// Linux's `nuvoton/nuvoton-npcm845-evb.dts`.
const NPCM845: Hardware = Hardware {
    memory: [0, 1 << 30],
    cpu: "arm,cortex-a35",
    start: 0xfffb_0000,
    gic: ("arm,gic-400", &[0xdfff_9000, 0x1000, 0xdfff_a000, 0x2000]),
    uart: (&["nuvoton,npcm845-uart", "nuvoton,npcm750-uart"], 0xf000_0000),
    shift: Some(2),
    interrupt: Some(192),
    options: &[],
};

/// Linux's `aspeed/ast2700-evb.dts`. The interrupt of the port comes by a controller of Aspeed's.
const AST2700: Hardware = Hardware {
    memory: [0x4_0000_0000, 1 << 30],
    cpu: "arm,cortex-a35",
    start: 0x1000_0000,
    gic: ("arm,gic-v3", &[0x1220_0000, 0x1_0000, 0x1228_0000, 0x8_0000]),
    uart: (&["ns16550a"], 0x14c3_3b00),
    shift: Some(2),
    interrupt: None,
    options: &[],
};

/// QEMU's `hw/arm/sbsa-ref.c`: the tree that QEMU makes is for firmware, and has neither console nor interrupt controller
/// in the words of a kernel's. Its display wants a ROM that distributions package apart.
const SBSA_REF: Hardware = Hardware {
    memory: [0x100_0000_0000, 1 << 30],
    cpu: "arm,neoverse-n1",
    start: 0x100_3fff_f000,
    gic: ("arm,gic-v3", &[0x4006_0000, 0x1_0000, 0x4008_0000, 0x400_0000]),
    uart: (&["arm,sbsa-uart"], 0x6000_0000),
    shift: None,
    interrupt: Some(1),
    options: &["-global", "bochs-display.romfile="],
};

/// A CPU waits for its word of those at the end. At EL3 it goes to EL2 first: non-secure AArch64, HVC enabled, and the
/// GIC's system registers.
const SPIN_TABLE: [u32; 20] = [
    0xd538_4240, // mrs  x0, CurrentEL
    0xf100_301f, // cmp  x0, #3 << 2
    0x5400_0141, // b.ne 2f
    0xd280_a621, // mov  x1, #SCR_EL3: RW | HCE | NS, and what is 1
    0xd51e_1101, // msr  SCR_EL3, x1
    0xd280_01e1, // mov  x1, #ICC_SRE_EL3: Enable | DIB | DFB | SRE
    0xd51e_cca1, // msr  ICC_SRE_EL3, x1
    0xd280_7921, // mov  x1, #SPSR_EL3: EL2h, all masked
    0xd51e_4001, // msr  SPSR_EL3, x1
    0x1000_0061, // adr  x1, 2f
    0xd51e_4021, // msr  ELR_EL3, x1
    0xd69f_03e0, // eret
    0xd538_00a0, // 2: mrs x0, MPIDR_EL1
    0x9240_0400, // and  x0, x0, #3
    0x1000_00c1, // adr  x1, the words
    0xd503_205f, // 3: wfe
    0xf860_7822, // ldr  x2, [x1, x0, lsl #3]
    0xb4ff_ffc2, // cbz  x2, 3b
    0xd61f_0040, // br   x2
    0xd503_201f, // nop
];

/// QEMU's options for such a model: `None` where it is none of these. The files are in `scratch`.
pub(crate) fn options(machine: &Machine, scratch: &Path) -> Option<Vec<OsString>> {
    let hardware = match machine.name.as_str() {
        "npcm845-evb" => &NPCM845,
        "ast2700-evb" => &AST2700,
        "sbsa-ref" => &SBSA_REF,
        _ => return None,
    };
    let [tree, table] = ["dtb", "spin-table"].map(|end| own_file(scratch, &format!("{}.{end}", machine.name)));
    let words = SPIN_TABLE.iter().flat_map(|word| word.to_le_bytes()).chain([0; 8 * CPUS as usize]);
    let write = |file: &PathBuf, bytes: Vec<u8>| fs::write(file, bytes).expect("the folder can be written");
    write(&tree, hardware.tree(&machine.name));
    write(&table, words.collect());
    let mut options: Vec<OsString> = vec!["-dtb".into(), tree.into()];
    options.extend(hardware.options.iter().map(Into::into));
    let start = hardware.start;
    let loads = (1..CPUS).map(|cpu| format!("loader,cpu-num={cpu},addr={start:#x}"));
    for load in [format!("loader,file={},addr={start:#x},force-raw=on", table.display())].into_iter().chain(loads) {
        options.extend(["-device".into(), load.into()]);
    }
    Some(options)
}

/// Each of them has four.
const CPUS: u32 = 4;

impl Hardware {
    fn tree(&self, model: &str) -> Vec<u8> {
        let (gic, registers) = self.gic;
        let (compatible, uart) = self.uart;
        let mut port = vec![
            ("compatible", compatible.iter().flat_map(|name| text(name)).collect()),
            ("reg", wide(&[uart, 0x100])),
        ];
        port.extend(self.shift.map(|shift| ("reg-shift", cells(&[shift]))));
        port.extend(self.interrupt.map(|number| ("interrupts", cells(&[0, number, 4]))));
        // Secure and non-secure EL1, the virtual timer, EL2.
        let timers = [13, 14, 11, 10].map(|number| [1, number, 0xf08]);
        let words = self.start + size_of_val(&SPIN_TABLE) as u64;
        let cpu = |number: u32| {
            let properties = vec![
                ("device_type", text("cpu")),
                ("compatible", text(self.cpu)),
                ("reg", cells(&[number])),
                ("enable-method", text("spin-table")),
                ("cpu-release-addr", wide(&[words + 8 * u64::from(number)])),
            ];
            node(&format!("cpu@{number}"), properties, vec![])
        };
        let mut tree = DeviceTree::new();
        tree.root = node(
            "",
            vec![
                ("model", text(model)),
                ("#address-cells", cells(&[2])),
                ("#size-cells", cells(&[2])),
                ("interrupt-parent", cells(&[1])),
            ],
            vec![
                node("chosen", vec![("stdout-path", text("/serial"))], vec![]),
                node("memory", vec![("device_type", text("memory")), ("reg", wide(&self.memory))], vec![]),
                node("serial", port, vec![]),
                node(
                    "interrupt-controller",
                    vec![
                        ("compatible", text(gic)),
                        ("reg", wide(registers)),
                        ("#interrupt-cells", cells(&[3])),
                        ("interrupt-controller", vec![]),
                        ("phandle", cells(&[1])),
                    ],
                    vec![],
                ),
                node(
                    "timer",
                    vec![("compatible", text("arm,armv8-timer")), ("interrupts", cells(timers.as_flattened()))],
                    vec![],
                ),
                node(
                    "cpus",
                    vec![("#address-cells", cells(&[1])), ("#size-cells", cells(&[0]))],
                    (0..CPUS).map(cpu).collect(),
                ),
            ],
        );
        tree.to_dtb()
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn cells(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn wide(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn node(name: &str, properties: Vec<(&str, Vec<u8>)>, children: Vec<DeviceTreeNode>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    for (name, value) in properties {
        node.add_property(DeviceTreeProperty::new_unchecked(name, value));
    }
    children.into_iter().for_each(|child| node.add_child(child));
    node
}
