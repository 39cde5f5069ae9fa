//! The I/O Remapping Table: SMMUs, and from a function's requester ID to the StreamID and to the ITS's DeviceID (Arm DEN
//! 0049E).
//!
//! A node lists ranges of IDs and the node that takes each: a root complex gives requester IDs to SMMUs or to groups of
//! ITSs, an SMMU gives StreamIDs to groups of ITSs. A node's offset is its name here, as a phandle is in a tree.

use super::fixed::line;
use super::table::{HEADER, long, registers, word};
use crate::platform::description::{MAX_SMMUS, Platform, Smmu};
use crate::platform::error::TableError;
use crate::platform::interrupts::{Interrupt, Trigger};
use crate::platform::pcie::Pcie;
use crate::platform::tree::{self, DmaRange};

/// Kinds of nodes.
const ITS_GROUP: u8 = 0;
const ROOT_COMPLEX: u8 = 2;
const SMMUV1_OR_2: u8 = 3;
const SMMUV3: u8 = 4;

/// Bytes that all nodes begin with.
const NODE: usize = 16;
/// Bytes of an ID mapping.
const MAPPING: usize = 20;
/// The output is one for all IDs: of an SMMU that is the ID of its own messages, of a root complex that of all its
/// functions.
const SINGLE: u32 = 1 << 0;
/// Mappings that a node may have, and ITSs that a group may: what more would take to read is the boot's time.
const MAX_MAPPINGS: usize = 256;
const MAX_ITS: usize = 256;
/// Both pages of an SMMUv3's registers.
const SMMUV3_BYTES: u64 = 0x2_0000;
/// The table has no node that lies there.
const BAD_NODE: TableError = TableError::Bad("node");

/// A node.
#[derive(Clone, Copy)]
struct Node<'t> {
    /// Where it lies in the table.
    offset: u32,
    kind: u8,
    bytes: &'t [u8],
}

/// IDs, and the node that takes them.
#[derive(Clone, Copy)]
struct Mapping {
    first: u32,
    count: u64,
    output: u32,
    node: u32,
    is_single: bool,
}

/// Reads the SMMUs; completes the host bridge of this segment.
///
/// # Errors
/// A node or a mapping makes no sense: the host bridge cannot be used.
#[inline(never)]
pub(super) fn read(
    platform: &mut Platform,
    iort: &[u8],
    host: Option<(&mut Pcie, u16)>,
    its: Option<u32>,
) -> Result<(), TableError> {
    for node in nodes(iort)? {
        let node = node?;
        if node.kind == SMMUV3 {
            add_smmu(platform, node)?;
        }
    }
    let Some((host, segment)) = host else { return Ok(()) };
    for node in nodes(iort)? {
        let node = node?;
        if node.kind == ROOT_COMPLEX && node.word(28)? == segment.into() {
            complete(host, iort, node, its)?;
        }
    }
    Ok(())
}

/// The nodes, as many as there should be, up to the first that makes no sense.
fn nodes(iort: &[u8]) -> Result<impl Iterator<Item = Result<Node<'_>, TableError>>, TableError> {
    let field = |at| word(iort, at).ok_or(TableError::Length(iort.len()));
    let (count, mut next) = (field(HEADER)?, Some(field(HEADER + 4)?));
    Ok((0..count).map_while(move |_| {
        let node = node(iort, next?);
        next = node.ok().and_then(|node| node.offset.checked_add(node.bytes.len() as u32));
        Some(node)
    }))
}

/// The node at this offset.
fn node(iort: &[u8], offset: u32) -> Result<Node<'_>, TableError> {
    let rest = iort.get(offset as usize..).filter(|_| offset as usize >= HEADER).ok_or(BAD_NODE)?;
    let &[kind, low, high, ..] = rest else { return Err(BAD_NODE) };
    let length = usize::from(u16::from_le_bytes([low, high]));
    let bytes = rest.get(..length).filter(|_| length >= NODE).ok_or(BAD_NODE)?;
    Ok(Node { offset, kind, bytes })
}

impl<'t> Node<'t> {
    fn word(&self, at: usize) -> Result<u32, TableError> {
        word(self.bytes, at).ok_or(BAD_NODE)
    }

    fn revision(&self) -> u8 {
        self.bytes.get(3).copied().unwrap_or_default()
    }

    /// Its ranges of IDs.
    fn mappings(self) -> Result<impl Iterator<Item = Mapping> + 't, TableError> {
        let (count, offset) = (self.word(8)? as usize, self.word(12)? as usize);
        if count > MAX_MAPPINGS {
            return Err(TableError::TooMany { what: "ID mappings of a node", limit: MAX_MAPPINGS });
        }
        let list = count.checked_mul(MAPPING).and_then(|bytes| self.bytes.get(offset..)?.get(..bytes));
        let list = list.ok_or(TableError::Bad("list of ID mappings"))?;
        Ok(list.chunks_exact(MAPPING).filter_map(|mapping| {
            let field = |index: usize| word(mapping, index * 4);
            let (first, less_one, output) = (field(0)?, field(1)?, field(2)?);
            let count = u64::from(less_one) + 1;
            Some(Mapping { first, count, output, node: field(3)?, is_single: field(4)? & SINGLE != 0 })
        }))
    }

    /// Of a group of ITSs: whether the one with this number is in it.
    fn has_its(&self, its: u32) -> Result<bool, TableError> {
        let count = self.word(NODE)? as usize;
        if count > MAX_ITS {
            return Err(TableError::TooMany { what: "ITSs of a group", limit: MAX_ITS });
        }
        Ok((0..count).map_while(|index| word(self.bytes, NODE + 4 + index * 4)).any(|number| number == its))
    }
}

fn add_smmu(platform: &mut Platform, node: Node<'_>) -> Result<(), TableError> {
    let start = long(node.bytes, 16).ok_or(BAD_NODE)?;
    let interrupt = |at| -> Result<Option<Interrupt>, TableError> { Ok(line(node.word(at)?, Trigger::Edge)) };
    let registers = registers(start, SMMUV3_BYTES, "address of an SMMU")?;
    let start = registers.start();
    if platform.smmus.iter().any(|other| other.registers.overlaps(registers)) {
        crate::log::warn!(
            "ACPI: IORT: another SMMU has registers at {start} too; devices behind the second are refused"
        );
        return Ok(());
    }
    let smmu = Smmu {
        phandle: Some(node.offset),
        registers,
        // COHACC Override.
        coherent: node.word(24)? & 1 != 0,
        event_queue: interrupt(44)?,
        priority_queue: interrupt(48)?,
        global_error: interrupt(52)?,
        command_sync: interrupt(56)?,
    };
    if platform.smmus.push(smmu).is_err() {
        crate::log::warn!("ACPI: IORT: more than {MAX_SMMUS} SMMUs; devices behind the one at {start} are refused");
    }
    Ok(())
}

/// Completes `host` from a root complex of its segment: coherence, addresses for DMA, IDs at the SMMU and the ITS. Of
/// several the least counts.
fn complete(host: &mut Pcie, iort: &[u8], root: Node<'_>, its: Option<u32>) -> Result<(), TableError> {
    host.coherent &= root.word(16)? & 1 != 0;
    // From revision 1 on: how many bits of an address its functions have.
    let bits = root.bytes.get(32).filter(|_| root.revision() >= 1).copied();
    if let Some(bits @ 1..64) = bits.filter(|&bits| host.dma_reach(0, true) >= 1_u64.checked_shl(bits.into())) {
        host.dma.clear();
        // There is room for one.
        let _ = tree::add(&mut host.dma, DmaRange { bus: 0, cpu: 0, size: 1 << bits });
    }
    for mapping in root.mappings()? {
        if mapping.is_single {
            return Err(TableError::Bad("ID mapping: all functions have one ID"));
        }
        let taker = node(iort, mapping.node)?;
        match taker.kind {
            ITS_GROUP => add_messages(host, mapping, &taker, its)?,
            // Of one without a driver too: devices behind it are refused.
            SMMUV1_OR_2 | SMMUV3 => {
                let Mapping { first, count, output, .. } = mapping;
                host.streams.add(first, count, taker.offset, output).ok_or(TableError::Bad("ID mapping"))?;
                for behind in taker.mappings()?.filter(|behind| !behind.is_single) {
                    let group = node(iort, behind.node)?;
                    if group.kind == ITS_GROUP
                        && let Some(both) = compose(mapping, behind)
                    {
                        add_messages(host, both, &group, its)?;
                    }
                }
            }
            _ => return Err(TableError::Bad("ID mapping: neither an SMMU nor a group of ITSs takes it")),
        }
    }
    Ok(())
}

/// The IDs by which the ITS knows the functions, if it is in the group.
fn add_messages(host: &mut Pcie, mapping: Mapping, group: &Node<'_>, its: Option<u32>) -> Result<(), TableError> {
    let Some(its) = its else { return Ok(()) };
    if group.has_its(its)? {
        let Mapping { first, count, output, .. } = mapping;
        host.devices.add(first, count, group.offset, output).ok_or(TableError::Bad("ID mapping"))?;
    }
    Ok(())
}

/// One mapping and then another, for IDs that both have.
fn compose(one: Mapping, other: Mapping) -> Option<Mapping> {
    let end = |first: u32, count: u64| u64::from(first) + count;
    let first = one.output.max(other.first);
    let last = end(one.output, one.count).min(end(other.first, other.count));
    let count = last.checked_sub(first.into()).filter(|&count| count != 0)?;
    let output = other.output.checked_add(first - other.first)?;
    Some(Mapping {
        first: one.first.checked_add(first - one.output)?,
        count,
        output,
        node: other.node,
        is_single: false,
    })
}
