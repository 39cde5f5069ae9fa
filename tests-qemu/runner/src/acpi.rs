//! ACPI's tables of a machine like QEMU's `virt`, for tests of their reader and for boots without a device tree (ACPI 6.5,
//! 5.2; Arm DEN 0049, IORT; PCI Firmware Specification 3.2, 4.1.2, MCFG).
//!
//! A table is a vector of bytes whose checksum is right; a test changes it, and [`seal`]s it again if that is not what is
//! tested.

use anyhow::{Context, Result};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// Bytes of the header of each table.
pub const HEADER: usize = 36;

/// The interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gic {
    /// GICv2.
    V2,
    /// GICv3, its redistributors in one region, with an ITS.
    V3,
    /// GICv3, each CPU with its redistributor's address.
    V3ByCpu,
}

/// An SMMUv3 in front of PCI Express.
#[derive(Clone, Copy, Debug)]
pub struct Smmu {
    /// Its registers.
    pub registers: u64,
    /// Its first interrupt line: event queue, page requests, global error, CMD_SYNC in this order.
    pub lines: u32,
    /// The first requester ID after it, and the last.
    pub requesters: (u16, u16),
}

/// Properties in which the machine differs from test to test.
#[derive(Clone, Debug)]
pub struct Virt {
    /// CPUs, with MPIDR from 0 on.
    pub cpus: u32,
    /// The interrupt controller.
    pub gic: Gic,
    /// SMMUs; what is behind none reaches the ITS directly.
    pub smmus: Vec<Smmu>,
}

/// A tree as a UEFI loader leaves it where firmware has tables alone: memory from an address on, of so many bytes, boot
/// arguments, and the address of the RSDP.
///
/// # Errors
/// A string is none of a device tree's.
pub fn loaders_tree(memory: (u64, u64), bootargs: &str, rsdp: u64) -> Result<Vec<u8>> {
    let mut tree = DeviceTree::new();
    for cells in ["#address-cells", "#size-cells"] {
        tree.root.add_property(DeviceTreeProperty::new(cells, 2_u32)?);
    }
    let mut bank = DeviceTreeNode::new(format!("memory@{:x}", memory.0))?;
    bank.add_property(DeviceTreeProperty::new("device_type", "memory")?);
    bank.add_property(DeviceTreeProperty::new("reg", [memory.0, memory.1].map(u64::to_be_bytes).concat())?);
    tree.root.add_child(bank);
    let mut chosen = DeviceTreeNode::new("chosen")?;
    chosen.add_property(DeviceTreeProperty::new("bootargs", bootargs)?);
    tree.root.add_child(chosen);
    with_tables(&tree.to_dtb(), rsdp)
}

/// The tree with the address of the RSDP as well.
///
/// # Errors
/// It is no tree, or has no `/chosen`.
pub fn with_tables(tree: &[u8], rsdp: u64) -> Result<Vec<u8>> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(tree)?);
    let chosen = tree.find_node_mut("/chosen").context("the tree has no /chosen")?;
    chosen.add_property(DeviceTreeProperty::new("granule,acpi-rsdp", rsdp)?);
    Ok(tree.to_dtb())
}

/// Numbers, each with its bytes, in the order of memory.
pub fn fields(numbers: &[(u64, usize)]) -> Vec<u8> {
    numbers.iter().flat_map(|&(number, bytes)| number.to_le_bytes().into_iter().take(bytes)).collect()
}

/// A table with this body.
pub fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend(fields(&[((HEADER + body.len()) as u64, 4), (revision.into(), 1), (0, 1)]));
    table.extend(b"GRANULTESTABLE");
    table.extend(fields(&[(1, 4), (0, 4), (1, 4)]));
    table.extend(body);
    seal(&mut table);
    table
}

/// Makes a table's checksum right.
pub fn seal(table: &mut [u8]) {
    table[9] = 0;
    table[9] = complement(table);
}

/// The byte that makes the sum zero.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// A structure of MADT: kind, length, fields.
pub fn structure(kind: u8, numbers: &[(u64, usize)]) -> Vec<u8> {
    let fields = fields(numbers);
    [&[kind, fields.len() as u8 + 2][..], &fields].concat()
}

/// All tables.
pub fn virt(machine: &Virt) -> Vec<Vec<u8>> {
    vec![fadt(), madt(machine), gtdt(), spcr(), mcfg(), iort(machine)]
}

/// The RSDP, the list and these tables as they lie in memory from `at` on.
pub fn laid_out(tables: &[Vec<u8>], at: u64) -> Vec<u8> {
    const XSDT: u64 = 64;
    let mut next = at + XSDT + (HEADER + tables.len() * 8) as u64;
    let mut places = Vec::new();
    for table in tables {
        next = next.next_multiple_of(8);
        places.push(next);
        next += table.len() as u64;
    }
    let addresses: Vec<(u64, usize)> = places.iter().map(|&place| (place, 8)).collect();
    let mut memory = rsdp(at + XSDT);
    let xsdt = table(*b"XSDT", 1, &fields(&addresses));
    for (place, table) in std::iter::once((at + XSDT, &xsdt)).chain(places.into_iter().zip(tables)) {
        memory.resize((place - at) as usize, 0);
        memory.extend(table);
    }
    memory
}

/// The Root System Description Pointer.
pub fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = b"RSD PTR \0GRANUL\x02\0\0\0\0".to_vec();
    rsdp.extend(fields(&[(36, 4), (xsdt, 8), (0, 4)]));
    rsdp[8] = complement(&rsdp[..20]);
    rsdp[32] = complement(&rsdp);
    rsdp
}

/// PSCI by HVC, and a reset register, at that of a GPIO's.
fn fadt() -> Vec<u8> {
    let mut body = vec![0; 276 - HEADER];
    let mut set = |at: usize, bytes: &[u8]| body[at - HEADER..][..bytes.len()].copy_from_slice(bytes);
    // A machine without fixed hardware, and with the reset register.
    set(112, &fields(&[(1 << 20 | 1 << 10, 4)]));
    set(116, &fields(&[(0, 1), (8, 1), (0, 1), (1, 1), (0x903_0400, 8), (0x42, 1)]));
    set(129, &fields(&[(0b11, 2), (3, 1)]));
    table(*b"FACP", 6, &body)
}

fn madt(machine: &Virt) -> Vec<u8> {
    let is_v2 = machine.gic == Gic::V2;
    let mut body = vec![0; 8];
    body.extend(structure(0xc, &[(0, 2), (0, 4), (0x800_0000, 8), (0, 4), (if is_v2 { 2 } else { 3 }, 1), (0, 3)]));
    for cpu in 0..u64::from(machine.cpus) {
        let interface = if is_v2 { 0x801_0000 } else { 0 };
        let frames = if machine.gic == Gic::V3ByCpu { 0x80a_0000 + cpu * 0x2_0000 } else { 0 };
        let numbers = [(0, 2), (cpu, 4), (cpu, 4), (1, 4), (0, 4), (23, 4), (0, 8), (interface, 8), (0, 8), (0, 8)];
        body.extend(structure(0xb, &[&numbers[..], &[(25, 4), (frames, 8), (cpu, 8), (0, 4)]].concat()));
    }
    if machine.gic == Gic::V3 {
        body.extend(structure(0xe, &[(0, 2), (0x80a_0000, 8), (0xf6_0000, 4)]));
    }
    if is_v2 {
        body.extend(structure(0xd, &[(0, 2), (0, 4), (0x802_0000, 8), (1, 4), (64, 2), (80, 2)]));
    } else {
        body.extend(structure(0xf, &[(0, 2), (0, 4), (0x808_0000, 8), (0, 4)]));
    }
    table(*b"APIC", 4, &body)
}

/// In order: secure, non-secure, virtual, hypervisor; all by level.
fn gtdt() -> Vec<u8> {
    let timers = [29, 30, 27, 26].map(|line| [(line, 4), (0, 4)]).concat();
    let control = [(u64::MAX, 8), (0, 4)];
    table(*b"GTDT", 3, &fields(&[&control[..], &timers, &[(u64::MAX, 8), (0, 8), (0, 8)]].concat()))
}

/// A PL011 with the line 33.
fn spcr() -> Vec<u8> {
    let port = [(3, 1), (0, 3), (0, 1), (32, 1), (0, 1), (3, 1), (0x900_0000, 8)];
    let interrupt = [(8, 1), (0, 1), (33, 4)];
    let rest =
        [(3, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (0xffff, 2), (0xffff, 2), (0, 3), (0, 4), (0, 1), (0, 4)];
    table(*b"SPCR", 2, &fields(&[&port[..], &interrupt, &rest].concat()))
}

fn mcfg() -> Vec<u8> {
    table(*b"MCFG", 1, &fields(&[(0, 8), (0x40_1000_0000, 8), (0, 2), (0, 1), (255, 1), (0, 4)]))
}

/// A node of IORT: its kind, its fields, and its ID mappings, each of input base, number, output base, the node that
/// takes them by its offset, and flags.
pub fn node(kind: u8, own: &[(u64, usize)], mappings: &[[u64; 5]]) -> Vec<u8> {
    const FIXED: usize = 16;
    let own = fields(own);
    let length = FIXED + own.len() + mappings.len() * 20;
    let count = mappings.len() as u64;
    let mut node = fields(&[(kind.into(), 1), (length as u64, 2), (1, 1), (0, 4), (count, 4)]);
    node.extend(fields(&[(if count == 0 { 0 } else { FIXED + own.len() } as u64, 4)]));
    node.extend(own);
    // The field holds the number less one.
    node.extend(mappings.iter().flat_map(|&[first, number, output, node, flags]| {
        fields(&[(first, 4), (number - 1, 4), (output, 4), (node, 4), (flags, 4)])
    }));
    node
}

/// IORT of these nodes; the first has the offset 48.
pub fn iort_of(nodes: &[Vec<u8>]) -> Vec<u8> {
    let head = fields(&[(nodes.len() as u64, 4), (FIRST_NODE, 4), (0, 4)]);
    table(*b"IORT", 1, &[head, nodes.concat()].concat())
}

/// The offset of IORT's first node.
const FIRST_NODE: u64 = 48;

/// An ITS group, the SMMUs, and one root complex.
fn iort(machine: &Virt) -> Vec<u8> {
    let mut nodes = vec![node(0, &[(1, 4), (0, 4)], &[])];
    let mut at = FIRST_NODE + nodes[0].len() as u64;
    let (mut mappings, mut direct) = (Vec::new(), 0);
    for smmu in &machine.smmus {
        let [event, page_request, error, sync] = [0, 1, 2, 3].map(|line| (u64::from(smmu.lines + line), 4));
        let registers = [(smmu.registers, 8), (1, 4), (0, 4), (0, 8), (0, 4)];
        let own = [&registers[..], &[event, page_request, error, sync], &[(0, 4), (0, 4)]].concat();
        let node = node(4, &own, &[[0, 0x1_0000, 0, FIRST_NODE, 0]]);
        let (first, last) = (u64::from(smmu.requesters.0), u64::from(smmu.requesters.1));
        if direct < first {
            mappings.push([direct, first - direct, direct, FIRST_NODE, 0]);
        }
        mappings.push([first, last - first + 1, first, at, 0]);
        (at, direct) = (at + node.len() as u64, last + 1);
        nodes.push(node);
    }
    if direct < 0x1_0000 {
        mappings.push([direct, 0x1_0000 - direct, direct, FIRST_NODE, 0]);
    }
    // Coherent; of segment 0; 64 bits of addresses.
    nodes.push(node(2, &[(1, 4), (0, 1), (0, 2), (3, 1), (0, 4), (0, 4), (64, 1), (0, 3)], &mappings));
    iort_of(&nodes)
}
