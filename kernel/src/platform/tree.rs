//! A node of the tree together with the buses above it.
//!
//! Addresses in `reg` are those of the parent's bus, with as many cells as the parent defines; each bus on the way up
//! may move them by its `ranges`. A [`Node`] carries the way up, so that [`Node::registers`] gives what the CPU must
//! use. `ranges` missing means that the CPU cannot reach what is below; `ranges` empty means the same address (2.3.8).
//!
//! A node's properties are found by one pass over them ([`Properties`]): each lookup in the flattened form starts at
//! the first property again, and the boot has a budget in instructions.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};
use granule_arch::addr::{PhysAddr, PhysRange};

use heapless::Vec;

use super::error::{NodeName, PlatformError};
use super::interrupts::Interrupts;

/// Nodes nested deeper than this are not looked at: no device that a kernel starts with is, and the stack is finite.
const MAX_DEPTH: u32 = 8;

/// Pieces of addresses that a bus passes on; others it does not.
pub type DmaRanges = Vec<DmaRange, 8>;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaRange {
    /// The first as the bus has it.
    pub bus: u64,
    /// The first as the CPU has it.
    pub cpu: u64,
    /// How many.
    pub size: u64,
}

/// All addresses, unchanged.
pub(super) const EVERYTHING: DmaRange = DmaRange { bus: 0, cpu: 0, size: u64::MAX };

/// [`EVERYTHING`], as a list.
pub(super) fn everything() -> DmaRanges {
    Vec::from_iter([EVERYTHING])
}

/// The last of the addresses from `first` on, without a gap, that devices reach memory by; `None` where they do not by
/// `first`. With `unchanged` only where the memory has the same address.
pub fn dma_reach(ranges: &[DmaRange], first: u64, unchanged: bool) -> Option<u64> {
    let mut last = None;
    let mut next = first;
    loop {
        let holds = |range: &&DmaRange| next.checked_sub(range.bus).is_some_and(|offset| offset < range.size);
        let fits = |range: &&DmaRange| !unchanged || range.bus == range.cpu;
        let Some(range) = ranges.iter().filter(fits).find(holds) else { return last };
        last = Some(range.bus.saturating_add(range.size - 1));
        match last.and_then(|last| last.checked_add(1)) {
            Some(behind) => next = behind,
            None => return last,
        }
    }
}

/// One piece more, if it is one: it is not empty, and does not run over the last address.
pub(super) fn add(ranges: &mut DmaRanges, range: DmaRange) -> Result<(), PlatformError> {
    let full = PlatformError::TooMany { what: "pieces of dma-ranges", limit: ranges.capacity() };
    let last = range.size.checked_sub(1).and_then(|size| range.bus.checked_add(size));
    if last.is_none() { Ok(()) } else { ranges.push(range).map_err(|_| full) }
}

/// The addresses of `found` that a bus with `entries` passes on.
fn compose(found: &DmaRanges, entries: impl Iterator<Item = DmaRange> + Clone) -> Result<DmaRanges, PlatformError> {
    let mut passed = DmaRanges::new();
    for piece in found {
        for entry in entries.clone() {
            let start = piece.cpu.max(entry.bus);
            let end = piece.cpu.saturating_add(piece.size).min(entry.bus.saturating_add(entry.size));
            if let Some(size) = end.checked_sub(start) {
                let (bus, cpu) = (piece.bus + (start - piece.cpu), entry.cpu.wrapping_add(start - entry.bus));
                add(&mut passed, DmaRange { bus, cpu, size })?;
            }
        }
    }
    Ok(passed)
}

/// A visitor of nodes: see [`Root::visit`].
pub(super) type VisitNode<'v, 't, 'p> =
    dyn for<'n> FnMut(&Node<'t, 'n>, Option<&'p str>) -> Result<(), PlatformError> + 'v;

/// The bus that a node makes for its children.
pub(super) struct BusNode<'t, 'b> {
    /// The bus that the node itself is on; `None` for the root.
    parent: Option<&'b BusNode<'t, 'b>>,
    address_cells: u32,
    size_cells: u32,
    /// `ranges`, raw; `None` where there is none.
    ranges: Option<&'t [u8]>,
    /// `dma-ranges`, raw.
    dma_ranges: Option<&'t [u8]>,
    /// The phandle of the controller of the interrupts below, where a node on the way up names one (2.4.1).
    interrupt_parent: Option<u32>,
    /// Devices below see the CPUs' caches, unless their own nodes have it otherwise.
    coherent: bool,
    depth: u32,
}

/// The properties that the kernel reads of any node, from one pass over them. Raw values.
#[derive(Clone, Copy, Default)]
pub(super) struct Properties<'t> {
    address_cells: Option<&'t [u8]>,
    size_cells: Option<&'t [u8]>,
    ranges: Option<&'t [u8]>,
    dma_ranges: Option<&'t [u8]>,
    dma_coherent: Option<&'t [u8]>,
    dma_noncoherent: Option<&'t [u8]>,
    reg: Option<&'t [u8]>,
    pub(super) iommus: Option<&'t [u8]>,
    status: Option<&'t [u8]>,
    compatible: Option<&'t [u8]>,
    pub(super) device_type: Option<&'t [u8]>,
    interrupts: Option<&'t [u8]>,
    interrupts_extended: Option<&'t [u8]>,
    interrupt_parent: Option<&'t [u8]>,
    pub(super) interrupt_names: Option<&'t [u8]>,
}

impl<'t> Properties<'t> {
    fn of(node: &FdtNode<'t>) -> Self {
        let mut found = Self::default();
        for property in node.properties() {
            let slot = match property.name() {
                "#address-cells" => &mut found.address_cells,
                "#size-cells" => &mut found.size_cells,
                "ranges" => &mut found.ranges,
                "dma-ranges" => &mut found.dma_ranges,
                "dma-coherent" => &mut found.dma_coherent,
                "dma-noncoherent" => &mut found.dma_noncoherent,
                "reg" => &mut found.reg,
                "iommus" => &mut found.iommus,
                "status" => &mut found.status,
                "compatible" => &mut found.compatible,
                "device_type" => &mut found.device_type,
                "interrupts" => &mut found.interrupts,
                "interrupts-extended" => &mut found.interrupts_extended,
                "interrupt-parent" => &mut found.interrupt_parent,
                "interrupt-names" => &mut found.interrupt_names,
                _ => continue,
            };
            // Of two of one name the first, as dtoolkit finds it.
            *slot = slot.or(property.value_as().ok());
        }
        found
    }
}

/// A node, and the bus it is on.
pub(super) struct Node<'t, 'b> {
    node: FdtNode<'t>,
    bus: &'b BusNode<'t, 'b>,
    pub(super) properties: Properties<'t>,
}

/// A node without its bus.
pub(super) struct Detached<'t>(FdtNode<'t>);

impl<'t> Detached<'t> {
    /// Any property's raw value.
    pub(super) fn property(&self, name: &str) -> Option<&'t [u8]> {
        self.0.property(name).and_then(|property| property.value_as().ok())
    }

    /// The raw values of several properties, from one pass over all.
    pub(super) fn properties<const COUNT: usize>(&self, names: [&str; COUNT]) -> [Option<&'t [u8]>; COUNT] {
        let mut found = [None; COUNT];
        for property in self.0.properties() {
            if let Some(place) = names.iter().zip(&mut found).find(|(name, _)| **name == property.name()) {
                *place.1 = place.1.or(property.value_as().ok());
            }
        }
        found
    }

    /// Its name, with the unit address.
    pub(super) fn name(&self) -> &'t str {
        self.0.name()
    }

    /// The error that `property` makes no sense.
    pub(super) fn bad(&self, property: &'static str) -> PlatformError {
        PlatformError::Bad { node: NodeName::from(self.0.name()), property }
    }

    /// The error that `property` is missing.
    pub(super) fn missing(&self, property: &'static str) -> PlatformError {
        PlatformError::Missing { node: NodeName::from(self.0.name()), property }
    }
}

/// The root of the tree, with the bus that it makes.
pub(super) struct Root<'t> {
    node: FdtNode<'t>,
    bus: BusNode<'t, 't>,
}

impl<'t> Root<'t> {
    pub(super) fn new(fdt: Fdt<'t>) -> Self {
        let node = fdt.root();
        let bus = bus_of(&Properties::of(&node), None);
        Self { node, bus }
    }

    /// The machine's own name: `model` (2.3.2).
    pub(super) fn model(&self) -> Option<&'t str> {
        Detached(self.node).property("model").and_then(string)
    }

    /// The children of the root with these names, whatever their unit addresses; the first of each name.
    #[inline(never)]
    pub(super) fn named<const N: usize>(&self, names: [&str; N]) -> [Option<Node<'t, '_>>; N] {
        let mut found = [const { None }; N];
        for child in self.node.children() {
            let base = base_name(child.name());
            if let Some(index) = names.iter().position(|&name| name == base) {
                found[index].get_or_insert_with(|| Node::new(child, &self.bus));
            }
        }
        found
    }

    /// Calls `visit` for every node that is available, parents before children. It gets the node and, where the node
    /// lies on `path`, what of the path is left below it: `Some("")` for the node that the path names.
    ///
    /// # Errors
    /// The first that `visit` returns.
    pub(super) fn visit<'p>(
        &self,
        path: Option<&'p str>,
        visit: &mut VisitNode<'_, 't, 'p>,
    ) -> Result<(), PlatformError> {
        visit_below(self.node, &self.bus, path, visit)
    }
}

/// [`Root::visit`] of what is below `parent`, which makes `bus`. The stack has a frame of this for each level, so a
/// [`Node`], which is large, is not in it.
fn visit_below<'t, 'p>(
    parent: FdtNode<'t>,
    bus: &BusNode<'t, '_>,
    path: Option<&'p str>,
    visit: &mut VisitNode<'_, 't, 'p>,
) -> Result<(), PlatformError> {
    for child in parent.children() {
        if let Some((below, left)) = visit_node(child, bus, path, visit)? {
            visit_below(child, &below, left, visit)?;
        }
    }
    Ok(())
}

/// Visits one node; returns the bus that it makes, and what is left of `path` below it, if its children are to be
/// visited.
#[inline(never)]
fn visit_node<'t, 'b, 'p>(
    node: FdtNode<'t>,
    bus: &'b BusNode<'t, 'b>,
    path: Option<&'p str>,
    visit: &mut VisitNode<'_, 't, 'p>,
) -> Result<Option<(BusNode<'t, 'b>, Option<&'p str>)>, PlatformError> {
    let node = Node::new(node, bus);
    if !node.is_available() {
        return Ok(None);
    }
    let left = path.and_then(|path| node.step(path));
    visit(&node, left)?;
    // Below a node without cells for addresses too: `/firmware` need not have any, and PSCI is below it.
    let below = bus_of(&node.properties, Some(bus));
    Ok((below.depth < MAX_DEPTH).then_some((below, left)))
}

fn bus_of<'t, 'b>(properties: &Properties<'t>, parent: Option<&'b BusNode<'t, 'b>>) -> BusNode<'t, 'b> {
    BusNode {
        parent,
        // The defaults are the specification's (2.3.5).
        address_cells: properties.address_cells.and_then(cell).unwrap_or(2),
        size_cells: properties.size_cells.and_then(cell).unwrap_or(1),
        ranges: properties.ranges,
        dma_ranges: properties.dma_ranges,
        interrupt_parent: interrupt_parent_of(properties, parent),
        coherent: is_coherent(properties, parent),
        depth: parent.map_or(0, |parent| parent.depth + 1),
    }
}

/// The node's own `interrupt-parent`, else that of the bus that it is on.
fn interrupt_parent_of(properties: &Properties<'_>, bus: Option<&BusNode<'_, '_>>) -> Option<u32> {
    properties.interrupt_parent.and_then(cell).or_else(|| bus?.interrupt_parent)
}

/// Whether the node's accesses to memory see the CPUs' caches: by its own `dma-coherent` or `dma-noncoherent`, else by
/// those of the bus that it is on (Linux's `of_dma_is_coherent`).
fn is_coherent(properties: &Properties<'_>, bus: Option<&BusNode<'_, '_>>) -> bool {
    let inherited = || properties.dma_noncoherent.is_none() && bus.is_some_and(|bus| bus.coherent);
    properties.dma_coherent.is_some() || inherited()
}

/// A node's name without the unit address.
fn base_name(name: &str) -> &str {
    name.split_once('@').map_or(name, |(base, _)| base)
}

impl<'t, 'b> Node<'t, 'b> {
    fn new(node: FdtNode<'t>, bus: &'b BusNode<'t, 'b>) -> Self {
        Self { node, bus, properties: Properties::of(&node) }
    }

    pub(super) fn name(&self) -> &'t str {
        self.node.name()
    }

    /// The name without the unit address.
    pub(super) fn base_name(&self) -> &'t str {
        base_name(self.name())
    }

    /// Any property's raw value.
    pub(super) fn property(&self, name: &str) -> Option<&'t [u8]> {
        self.detached().property(name)
    }

    /// A property that is one number, where it is there.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, PlatformError> {
        self.property(name).map(|value| number(value).ok_or_else(|| self.bad(name))).transpose()
    }

    /// The node without its bus, for what is read later.
    pub(super) fn detached(&self) -> Detached<'t> {
        Detached(self.node)
    }

    /// The handle by which other nodes refer to it (2.3.3).
    pub(super) fn phandle(&self) -> Option<u32> {
        self.property("phandle").and_then(cell)
    }

    /// `#address-cells`, where it is there.
    pub(super) fn address_cells(&self) -> Option<u32> {
        self.properties.address_cells.and_then(cell)
    }

    /// `ranges`, raw.
    pub(super) fn ranges(&self) -> Option<&'t [u8]> {
        self.properties.ranges
    }

    /// Whether its accesses to memory see the CPUs' caches.
    pub(super) fn is_coherent(&self) -> bool {
        is_coherent(&self.properties, Some(self.bus))
    }

    /// `dma-ranges`, raw.
    pub(super) fn dma_ranges(&self) -> Option<&'t [u8]> {
        self.properties.dma_ranges
    }

    /// Where what is in `found` is once each bus on the way up has passed it on by its `dma-ranges` (2.3.9). A bus
    /// without any, or with an empty one, changes nothing.
    ///
    /// # Errors
    /// A list of one of them makes no sense, or there are too many pieces.
    pub(super) fn passed_on(&self, mut found: DmaRanges) -> Result<DmaRanges, PlatformError> {
        let mut bus = self.bus;
        while let Some(parent) = bus.parent {
            if let Some(ranges) = bus.dma_ranges.filter(|ranges| !ranges.is_empty()) {
                let entries = bus.entries(parent, ranges).ok_or_else(|| self.bad("dma-ranges"))?;
                found = compose(&found, entries)?;
            }
            bus = parent;
        }
        Ok(found)
    }

    /// Whether no bus on the way up changes where accesses go: [`Self::passed_on`] would change nothing.
    pub(super) fn passes_everything_on(&self) -> bool {
        let mut buses = core::iter::successors(Some(self.bus), |bus| bus.parent);
        buses.all(|bus| bus.dma_ranges.is_none_or(<[u8]>::is_empty))
    }

    /// Cells of an address on the bus that the node is on.
    pub(super) fn parent_address_cells(&self) -> u32 {
        self.bus.address_cells
    }

    /// Where the CPU sees the `size` bytes at `address` of the bus that the node is on; `None` where it does not.
    pub(super) fn to_cpu(&self, address: u64, size: u64) -> Option<PhysRange> {
        PhysRange::from_size(PhysAddr(self.bus.to_cpu(address, size)?), size)
    }

    /// Any property's value as a string.
    pub(super) fn string(&self, name: &str) -> Option<&'t str> {
        self.property(name).and_then(string)
    }

    /// The entries of `compatible`, from the most particular to the most general.
    pub(super) fn compatible(&self) -> impl Iterator<Item = &'t str> {
        self.properties.compatible.into_iter().flat_map(strings)
    }

    /// Its interrupts, to be read when their controller is known.
    pub(super) fn interrupts(&self) -> Interrupts<'t> {
        self.interrupts_of(self.name())
    }

    /// As [`interrupts`](Self::interrupts), of a node that errors are to call `name`: its own name is found in a hundred
    /// steps.
    pub(super) fn interrupts_of(&self, name: &'t str) -> Interrupts<'t> {
        Interrupts {
            node: name,
            parent: interrupt_parent_of(&self.properties, Some(self.bus)),
            list: self.properties.interrupts,
            extended: self.properties.interrupts_extended,
        }
    }

    /// `status`, where it is there.
    pub(super) fn status(&self) -> Option<&'t str> {
        self.properties.status.and_then(string)
    }

    /// Whether the node's parent is the root.
    pub(super) fn is_below_root(&self) -> bool {
        self.bus.parent.is_none()
    }

    /// Whether the device may be used: `status` is missing, `okay`, or the `ok` of old trees.
    pub(super) fn is_available(&self) -> bool {
        self.properties.status.is_none() || matches!(self.status(), Some("okay" | "ok"))
    }

    /// The children, on the bus that this node makes; `visit` gets each.
    pub(super) fn each_child(
        &self,
        mut visit: impl FnMut(&Node<'t, '_>) -> Result<(), PlatformError>,
    ) -> Result<(), PlatformError> {
        let bus = bus_of(&self.properties, Some(self.bus));
        for child in self.node.children() {
            visit(&Node::new(child, &bus))?;
        }
        Ok(())
    }

    /// Whether `child` is one of the node's children.
    pub(super) fn is_parent_of(&self, child: &Detached<'t>) -> bool {
        // Each node has its name in a place of its own.
        self.node.children().any(|node| core::ptr::eq(node.name(), child.0.name()))
    }

    /// The rest of `path` below this node, if its next component names it (with or without the unit address).
    fn step<'p>(&self, path: &'p str) -> Option<&'p str> {
        let path = path.trim_start_matches('/');
        let (component, rest) = path.split_once('/').unwrap_or((path, ""));
        let name = if component.contains('@') { self.name() } else { self.base_name() };
        (component == name && !component.is_empty()).then_some(rest)
    }

    /// The `index`-th range of `reg` as the CPU addresses it. `None` where `reg` has fewer.
    ///
    /// # Errors
    /// `reg` is no list of address and size, a range wraps, or no bus on the way up leads to it.
    pub(super) fn registers(&self, index: usize) -> Result<Option<PhysRange>, PlatformError> {
        let Some(reg) = self.properties.reg else { return Ok(None) };
        let bad = || self.bad("reg");
        let [address_cells, size_cells] = [self.bus.address_cells, self.bus.size_cells].map(|cells| cells as usize);
        if address_cells == 0 || address_cells > 2 || size_cells > 2 {
            return Err(bad());
        }
        let entry = (address_cells + size_cells) * 4;
        if !reg.len().is_multiple_of(entry) {
            return Err(bad());
        }
        let Some(entry) = reg.chunks_exact(entry).nth(index) else { return Ok(None) };
        let (address, size) = entry.split_at(address_cells * 4);
        let (address, size) = (number(address).ok_or_else(bad)?, number(size).ok_or_else(bad)?);
        let address = self.bus.to_cpu(address, size).ok_or_else(bad)?;
        PhysRange::from_size(PhysAddr(address), size).map(Some).ok_or_else(bad)
    }

    /// The first range of `reg`, which must be there.
    ///
    /// # Errors
    /// Those of [`registers`](Self::registers), and that there is none or that it is empty.
    pub(super) fn first_registers(&self) -> Result<PhysRange, PlatformError> {
        self.nth_registers(0)
    }

    /// As [`first_registers`](Self::first_registers), for the range number `index`.
    pub(super) fn nth_registers(&self, index: usize) -> Result<PhysRange, PlatformError> {
        match self.registers(index)? {
            Some(range) if !range.is_empty() => Ok(range),
            Some(_) => Err(self.bad("reg")),
            None => Err(self.missing("reg")),
        }
    }

    /// `reg` as one number, for nodes on buses that are not memory (`/cpus`).
    pub(super) fn unit(&self) -> Result<u64, PlatformError> {
        let reg = self.properties.reg.ok_or_else(|| self.missing("reg"))?;
        let cells = reg.get(..self.bus.address_cells as usize * 4);
        cells.and_then(number).ok_or_else(|| self.bad("reg"))
    }

    /// The error that `property` makes no sense.
    pub(super) fn bad(&self, property: &'static str) -> PlatformError {
        self.detached().bad(property)
    }

    /// The error that `property` is missing.
    pub(super) fn missing(&self, property: &'static str) -> PlatformError {
        self.detached().missing(property)
    }
}

impl BusNode<'_, '_> {
    /// Where the CPU sees the `size` bytes at `address` of this bus; `None` where it does not.
    fn to_cpu(&self, mut address: u64, size: u64) -> Option<u64> {
        let mut bus = self;
        while let Some(parent) = bus.parent {
            address = bus.to_parent(parent, address, size)?;
            bus = parent;
        }
        Some(address)
    }

    fn to_parent(&self, parent: &BusNode<'_, '_>, address: u64, size: u64) -> Option<u64> {
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return Some(address);
        }
        let last = address.checked_add(size.saturating_sub(1))?;
        self.entries(parent, ranges)?.find_map(|DmaRange { bus: from, cpu: to, size: length }| {
            let inside = address >= from && last - from < length;
            if inside { to.checked_add(address - from) } else { None }
        })
    }

    /// The entries of a list of ranges of this bus, as addresses of this one and of the parent; `None` where it is
    /// none.
    fn entries<'r>(&self, parent: &Self, ranges: &'r [u8]) -> Option<impl Iterator<Item = DmaRange> + Clone + 'r> {
        let [child, up, length] =
            [self.address_cells, parent.address_cells, self.size_cells].map(|cells| cells as usize);
        // Three cells are PCI, whose addresses are not numbers; more are nothing.
        if child > 2 || up > 2 || length > 2 {
            return None;
        }
        let entry = (child + up + length) * 4;
        if entry == 0 || !ranges.len().is_multiple_of(entry) {
            return None;
        }
        Some(ranges.chunks_exact(entry).filter_map(move |range| {
            let (bus, rest) = range.split_at(child * 4);
            let (cpu, size) = rest.split_at(up * 4);
            Some(DmaRange { bus: number(bus)?, cpu: number(cpu)?, size: number(size)? })
        }))
    }
}

/// A value of one cell.
pub(super) fn cell(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A value of no, one or two cells, as a number: what an address, a size or a pointer in `/chosen` is.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        0 => Some(0),
        4 => cell(value).map(u64::from),
        8 => value.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

/// A value that is one string; what follows the first NUL is not looked at.
pub(super) fn string(value: &[u8]) -> Option<&str> {
    strings(value).next()
}

/// A value that is a list of strings, up to the first that is not UTF-8.
pub(super) fn strings(value: &[u8]) -> impl Iterator<Item = &str> {
    let list = value.strip_suffix(b"\0").unwrap_or(value);
    let empty = value.is_empty();
    list.split(|&byte| byte == 0).take(if empty { 0 } else { usize::MAX }).map_while(|entry| str::from_utf8(entry).ok())
}
