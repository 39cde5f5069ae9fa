//! A PCIe host bridge with its configuration space in memory (the bindings `host-generic-pci`, `pci-iommu`, `pci-msi`;
//! Devicetree Specification v0.4, 2.4.3 for `interrupt-map`; IEEE 1275 PCI BusNode Binding for addresses of three
//! cells).
//!
//! A function is named by its *requester ID*, bus, device and function in 16 bits. The maps here define the function's
//! IDs at the SMMU and at what takes messages. They refer to other nodes, which the tree may have after the bridge; so
//! it is read in two steps.

use granule_arch::addr::PhysRange;
use heapless::Vec;

use super::error::{PlatformError, dispensable};
use super::interrupts::{ControllerNode, Interrupt, interrupt_of};
use super::tree::{self, DmaRange, DmaRanges, cell, number};

/// Bytes of the configuration space of one bus.
pub(super) const BUS: u64 = 1 << 20;
/// Cells of a PCI address, and of a size on its bus.
const ADDRESS: usize = 3;
const SIZE: usize = 2;

/// The windows of a host bridge. Those of a known board are at most seven.
pub type Windows = Vec<Window, 8>;

/// A PCIe host bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pcie {
    /// Configuration space, 1 MiB for each bus. Holds that of all of `buses`.
    pub ecam: PhysRange,
    /// First and last bus number.
    pub buses: (u8, u8),
    /// Where the CPU reaches memory and ports of its devices. `None`: ACPI has them in AML alone, so bus numbers and
    /// addresses stay as firmware set them, and addresses on the bus are those of the CPU.
    pub windows: Option<Windows>,
    /// From requester IDs to StreamIDs, and the SMMUs that they are of. **Also of SMMUs that there is no driver for**:
    /// such a function is not one that no SMMU is in front of.
    pub streams: IdMap,
    /// From requester IDs to those at what takes messages: an ITS's DeviceIDs.
    pub devices: IdMap,
    /// Where the interrupt pins of its devices lead.
    pub lines: InterruptLines,
    /// Whether its devices see what is in the CPUs' caches.
    pub coherent: bool,
    /// Where accesses of its devices go, by the addresses that they put on the bus; others go nowhere.
    pub dma: DmaRanges,
}

/// The address space that a [`Window`] leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WindowKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB on the bus.
    Memory32,
    /// Memory anywhere on the bus.
    Memory64,
}

/// Addresses that the host bridge forwards to its bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The address space behind it.
    pub kind: WindowKind,
    /// Whether reading has no effect there.
    pub prefetchable: bool,
    /// The first address as the bus has it.
    pub bus: u64,
    /// The addresses as the CPU has them.
    pub cpu: PhysRange,
}

/// The ID by which another device knows a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedId {
    /// The other device.
    pub phandle: u32,
    /// Its number for the function.
    pub id: u32,
}

/// The IDs by which other devices know the functions of this host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdMap {
    mask: u32,
    ranges: Vec<IdRange, 16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct IdRange {
    first: u32,
    length: u32,
    phandle: u32,
    output: u32,
}

/// Where interrupt pins lead: `interrupt-map`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterruptLines {
    /// The bits that count of a function's address, and of its pin.
    mask: (u32, u32),
    lines: Vec<(u32, u32, Interrupt), 32>,
}

impl Pcie {
    /// The configuration space of a bus; `None` for one that is not behind this host.
    pub fn bus(&self, number: u8) -> Option<PhysRange> {
        let offset = u64::from(number.checked_sub(self.buses.0)?) * BUS;
        let range = PhysRange::from_size(self.ecam.start().checked_add(offset)?, BUS)?;
        (number <= self.buses.1 && range.end() <= self.ecam.end()).then_some(range)
    }
}

impl Pcie {
    /// [`tree::dma_reach`] of its devices.
    pub fn dma_reach(&self, first: u64, unchanged: bool) -> Option<u64> {
        tree::dma_reach(&self.dma, first, unchanged)
    }
}

impl IdMap {
    /// A map of each requester ID to itself.
    pub(super) fn of_all(phandle: u32) -> Self {
        let mut all = Self::new(!0);
        // It is the first.
        let _ = all.add(0, 1 << 16, phandle, 0);
        all
    }

    /// A map of nothing, where these bits of a requester ID count.
    pub(crate) fn new(mask: u32) -> Self {
        Self { mask, ranges: Vec::new() }
    }

    /// Adds `length` requester IDs from `first` on; `None` where there is no room, or a number would run over.
    pub(crate) fn add(&mut self, first: u32, length: u64, phandle: u32, output: u32) -> Option<()> {
        let length = u32::try_from(length).ok()?;
        first.checked_add(length)?;
        output.checked_add(length)?;
        self.ranges.push(IdRange { first, length, phandle, output }).ok()
    }

    /// The first of each range of requester IDs.
    pub fn firsts(&self) -> impl Iterator<Item = u32> {
        self.ranges.iter().map(|range| range.first)
    }

    /// The ID of the function with this requester ID at the other device; `None` where it has none.
    pub fn find(&self, requester: u16) -> Option<MappedId> {
        let requester = u32::from(requester) & self.mask;
        let inside = |range: &&IdRange| requester.checked_sub(range.first).is_some_and(|offset| offset < range.length);
        let range = self.ranges.iter().find(inside)?;
        Some(MappedId { phandle: range.phandle, id: range.output + (requester - range.first) })
    }
}

impl InterruptLines {
    /// The interrupt for pin 1 to 4 (INTA to INTD) of a device on the host's own bus.
    pub fn find(&self, requester: u16, pin: u8) -> Option<Interrupt> {
        let function = u32::from(requester) << 8 & self.mask.0;
        let pin = u32::from(pin) & self.mask.1;
        self.lines.iter().find(|line| (line.0, line.1) == (function, pin)).map(|line| line.2)
    }
}

/// The nodes that others refer to, as far as the tree was read.
#[derive(Default)]
pub(super) struct References {
    pub(super) gic: ControllerNode,
    pub(super) its: Option<u32>,
    pub(super) message_frame: Option<u32>,
}

impl References {
    /// The node that takes messages.
    fn messages(&self) -> Option<u32> {
        self.its.or(self.message_frame)
    }
}

/// A host bridge as its own node describes it.
pub(super) struct HostBridgeNode<'t> {
    node: tree::Detached<'t>,
    ecam: PhysRange,
    buses: (u8, u8),
    windows: Windows,
    /// How many windows it has besides.
    left_out: usize,
    coherent: bool,
    dma: DmaRanges,
}

impl<'t> HostBridgeNode<'t> {
    /// Reads the host bridge into `place` by the node alone: no other node is read. In place, since it is large, and this is
    /// called on top of a frame for each level of the tree; for the same reason its parts are read out of line.
    #[inline(never)]
    pub(super) fn read(node: &tree::Node<'t, '_>, place: &mut Option<Self>) -> Result<(), PlatformError> {
        let ecam = node.first_registers()?;
        let buses = match node.property("bus-range") {
            Some(range) => bus_range(range).ok_or_else(|| node.bad("bus-range"))?,
            None => (0, 255),
        };
        // The first bus of the range is at the start of configuration space.
        let room = (ecam.size() / BUS).checked_sub(1).ok_or_else(|| node.bad("reg"))?;
        let last = u64::from(buses.0).saturating_add(room).min(u64::from(buses.1));
        let buses = (buses.0, u8::try_from(last).unwrap_or(buses.1));
        let (windows, coherent, dma) = (Windows::new(), node.is_coherent(), DmaRanges::new());
        let bridge = Self { node: node.detached(), ecam, buses, windows, left_out: 0, coherent, dma };
        let read = place.insert(bridge).add_ranges(node);
        if read.is_err() {
            *place = None;
        }
        read
    }

    fn add_ranges(&mut self, node: &tree::Node<'_, '_>) -> Result<(), PlatformError> {
        self.add_windows(node)?;
        self.add_dma_ranges(node)
    }

    #[inline(never)]
    fn add_dma_ranges(&mut self, node: &tree::Node<'_, '_>) -> Result<(), PlatformError> {
        self.dma = dma(node)?;
        Ok(())
    }

    /// `ranges`: the windows of the bus in the CPU's addresses. One that makes no sense, or that there is no room for, is
    /// left out alone: devices have the others. No message is written here, on top of a frame for each level of the tree.
    #[inline(never)]
    fn add_windows(&mut self, node: &tree::Node<'_, '_>) -> Result<(), PlatformError> {
        let Some(ranges) = node.ranges() else { return Ok(()) };
        for range in translations(node, ranges).ok_or_else(|| node.bad("ranges"))? {
            if range.is_some_and(|(space, ..)| space >> 24 & 3 == CONFIGURATION) {
                continue;
            }
            let window = range.and_then(|range| window(node, range));
            let is_kept = window.is_some_and(|window| self.windows.push(window).is_ok());
            self.left_out += usize::from(!is_kept);
        }
        Ok(())
    }

    /// The host bridge, now that the nodes are known that it refers to.
    pub(super) fn resolve(self, references: &References) -> Result<Pcie, PlatformError> {
        let Self { node, ecam, buses, windows, left_out, coherent, dma } = self;
        if left_out != 0 {
            let (name, most) = (node.name(), windows.capacity());
            crate::log::warn!(
                "device tree: {name}: {left_out} windows make no sense, or are more than {most}: left out"
            );
        }
        let [stream_map, stream_mask, message_map, message_mask, parent, line_map, line_mask] = node.properties([
            "iommu-map",
            "iommu-map-mask",
            "msi-map",
            "msi-map-mask",
            "msi-parent",
            "interrupt-map",
            "interrupt-map-mask",
        ]);
        let streams = id_map(stream_map, stream_mask, &|_| true).ok_or_else(|| node.bad("iommu-map"))?;
        // A device without messages and lines is polled; without its StreamID it would not be kept from memory.
        let messages = references.messages();
        let takes = |phandle| messages == Some(phandle);
        let devices = match (message_map, parent.and_then(|parent| cell(parent.get(..4)?))) {
            (None, Some(phandle)) if takes(phandle) => IdMap::of_all(phandle),
            _ if messages.is_none() => IdMap::default(),
            _ => or_none(id_map(message_map, message_mask, &takes).ok_or_else(|| node.bad("msi-map"))),
        };
        let lines = line_map.map(|map| interrupt_lines(map, line_mask, &references.gic));
        let lines = lines.map(|lines| or_none(lines.ok_or_else(|| node.bad("interrupt-map")))).unwrap_or_default();
        Ok(Pcie { ecam, buses, windows: Some(windows), streams, devices, lines, coherent, dma })
    }
}

/// An empty map in place of one that makes no sense.
fn or_none<T: Default>(map: Result<T, PlatformError>) -> T {
    dispensable(map).unwrap_or_default()
}

fn bus_range(value: &[u8]) -> Option<(u8, u8)> {
    let (first, last) = value.split_at_checked(4)?;
    let number = |value| cell(value).and_then(|bus| u8::try_from(bus).ok());
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// An entry of `ranges` or `dma-ranges`: the first cell of its address, which names the space; that address on the
/// bus; the one on the CPU's side; how much.
type Translation = (u32, u64, u64, u64);

/// The entries of `ranges` or `dma-ranges`, of which one that is too large for 64 bits is `None`; `None` where the
/// property cannot be cut into entries.
fn translations<'a>(
    node: &tree::Node<'_, '_>,
    property: &'a [u8],
) -> Option<impl Iterator<Item = Option<Translation>> + use<'a>> {
    let up = node.parent_address_cells() as usize;
    let entry = (ADDRESS + up + SIZE) * 4;
    let is_whole = node.address_cells() == Some(ADDRESS as u32) && up <= 2 && property.len().is_multiple_of(entry);
    is_whole.then(|| {
        property.chunks_exact(entry).map(move |entry| {
            let (child, rest) = entry.split_at(ADDRESS * 4);
            let (cpu, size) = rest.split_at(up * 4);
            let (space, bus) = child.split_at(4);
            Some((cell(space)?, number(bus)?, number(cpu)?, number(size)?))
        })
    })
}

/// Spaces of a PCI address, bits 25:24 of its first cell (npt000ss in the first byte; IEEE 1275 PCI, 2.2.1.1).
const CONFIGURATION: u32 = 0;
const IO: u32 = 1;
const MEMORY_64: u32 = 3;

/// The window of an entry of `ranges`; `None` where it is empty, runs over, or the CPU does not reach it.
///
/// Memory is of the kind that its addresses have, as on Linux: trees call windows above 4 GiB memory of 32 bits
/// (LS1028A, Juno), and windows below of 64 (RK3399). Only a prefetchable one below stays of 64 bits, so that there may
/// be another in which reads have effects.
fn window(node: &tree::Node<'_, '_>, (space, bus, cpu, size): Translation) -> Option<Window> {
    let end = bus.checked_add(size).filter(|_| size != 0)?;
    let prefetchable = space & 1 << 30 != 0;
    let kind = match space >> 24 & 3 {
        IO => WindowKind::Io,
        MEMORY_64 if prefetchable => WindowKind::Memory64,
        _ if end <= 1 << 32 => WindowKind::Memory32,
        _ => WindowKind::Memory64,
    };
    Some(Window { kind, prefetchable, bus, cpu: node.to_cpu(cpu, size)? })
}

/// `dma-ranges`: as `ranges`, for accesses in the other direction. Without it devices reach all addresses.
fn dma(node: &tree::Node<'_, '_>) -> Result<DmaRanges, PlatformError> {
    let bad = || node.bad("dma-ranges");
    let mut own = tree::everything();
    if let Some(ranges) = node.dma_ranges().filter(|ranges| !ranges.is_empty()) {
        own.clear();
        for range in translations(node, ranges).ok_or_else(bad)? {
            let (space, bus, cpu, size) = range.ok_or_else(bad)?;
            // Memory below 4 GiB, or anywhere.
            if space >> 25 & 1 == 1 {
                tree::add(&mut own, DmaRange { bus, cpu, size })?;
            }
        }
    }
    node.passed_on(own)
}

/// `iommu-map` or `msi-map`, as far as it refers to phandles that are `wanted`. Missing is an empty map.
fn id_map(map: Option<&[u8]>, mask: Option<&[u8]>, wanted: &dyn Fn(u32) -> bool) -> Option<IdMap> {
    const ENTRY: usize = 16;
    let Some(map) = map else { return Some(IdMap::default()) };
    let mask = mask.map_or(Some(!0), cell)?;
    let mut ids = IdMap::new(mask);
    if !map.len().is_multiple_of(ENTRY) {
        return None;
    }
    for entry in map.chunks_exact(ENTRY) {
        let field = |at: usize| entry.get(at * 4..at * 4 + 4).and_then(cell);
        let (first, phandle, output, length) = (field(0)?, field(1)?, field(2)?, field(3)?);
        if wanted(phandle) {
            ids.add(first, length.into(), phandle, output)?;
        }
    }
    Some(ids)
}

/// `interrupt-map`: an address of the PCI bus and a pin; the controller, an address of its bus, and its interrupt.
fn interrupt_lines(map: &[u8], mask: Option<&[u8]>, gic: &ControllerNode) -> Option<InterruptLines> {
    const PIN: usize = 1;
    let field = |of: &[u8], at: usize| of.get(at * 4..at * 4 + 4).and_then(cell);
    let mask = match mask {
        Some(mask) => (field(mask, 0)?, field(mask, ADDRESS)?),
        None => (!0, !0),
    };
    let after = (ADDRESS + PIN + 1).checked_add(gic.address_cells as usize)?;
    let entry = after.checked_add(gic.interrupt_cells as usize)?.checked_mul(4)?;
    let mut lines = Vec::<_, 32>::new();
    for line in map.chunks(entry) {
        // Only another controller itself could define how long its entry is.
        if Some(field(line, ADDRESS + PIN)?) != gic.phandle {
            crate::log::warn!("device tree: interrupt-map leads past the GIC; interrupt pins behind that are left out");
            break;
        }
        let interrupt = interrupt_of(gic.kind, line.get(after * 4..)?)?;
        if lines.push((field(line, 0)? & mask.0, field(line, ADDRESS)? & mask.1, interrupt)).is_err() {
            crate::log::warn!("device tree: more than {} lines of interrupt-map; others are left out", lines.len());
            break;
        }
    }
    Some(InterruptLines { mask, lines })
}
