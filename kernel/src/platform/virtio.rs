//! Virtio devices whose registers are in memory (the bindings `virtio,mmio` and `iommu`; Virtual I/O Device, version
//! 1.2, 4.2.1). A node has the place of a device, which may be empty: only the registers show that.

use granule_arch::addr::PhysRange;
use heapless::Vec;

use super::description::{MAX_VIRTIO, Platform};
use super::error::{PlatformError, dispensable};
use super::interrupts::{ControllerNode, Interrupt, Interrupts};
use super::memory::outwards;
use super::pcie::MappedId;
use super::tree::{self, DmaRange, Node, cell};

/// Bytes of registers that each such device has; those of its own kind follow.
pub const VIRTIO_REGISTERS: u64 = 0x100;
/// The name of a place in errors of its interrupt.
const KIND: &str = "virtio,mmio";
/// The first interrupt that CPUs share: no device has a private one.
const FIRST_SHARED: u32 = 32;

/// The place of a virtio device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioMmio {
    /// Its registers, aligned to a word.
    pub registers: PhysRange,
    /// Its interrupt; `None`: it is polled.
    pub interrupt: Option<Interrupt>,
    /// The SMMU in front of it and its StreamID there (`iommus`); `None` where no SMMU sees its accesses.
    pub stream: Option<MappedId>,
    /// Whether it sees what is in the CPUs' caches.
    pub coherent: bool,
    /// Where its accesses go, by the addresses that it puts on the bus; others go nowhere.
    pub dma: DmaRange,
}

/// The start of the list of a place's interrupts, as the tree has it: all that the first one takes. It is kept beside the
/// place until the controller is known, as another pass over the properties of 32 nodes is a twentieth of the boot.
#[derive(Clone, Debug)]
pub(super) struct FirstLine {
    parent: Option<u32>,
    is_extended: bool,
    /// Bytes of the whole list.
    length: u32,
    start: Vec<u8, MOST_BYTES>,
}

/// A phandle, and as many cells as a line of a known controller has.
const MOST_BYTES: usize = 4 + 3 * 4;

impl FirstLine {
    #[inline(never)]
    fn of(node: &Node<'_, '_>) -> Self {
        let Interrupts { parent, list, extended, .. } = node.interrupts_of(KIND);
        let whole = extended.or(list).unwrap_or_default();
        let start = Vec::from_slice(whole.get(..MOST_BYTES).unwrap_or(whole)).unwrap_or_default();
        Self { parent, is_extended: extended.is_some(), length: whole.len() as u32, start }
    }

    fn read(&self, controller: &ControllerNode) -> Result<Option<Interrupt>, PlatformError> {
        let line = controller.line_size();
        // A list that is no whole number of lines stays none.
        let bytes = match self.is_extended {
            true => 4 + line,
            false if (self.length as usize).is_multiple_of(line) => line,
            false => self.length as usize,
        };
        let list = Some(self.start.get(..bytes).unwrap_or(&self.start));
        let (list, extended) = if self.is_extended { (None, list) } else { (list, None) };
        Interrupts { node: KIND, parent: self.parent, list, extended }.get(0, controller)
    }
}

/// Adds the place that `node` describes; one that makes no sense is left out. Out of line, as its parts are large.
#[inline(never)]
pub(super) fn add(platform: &mut Platform, node: &Node<'_, '_>) {
    if let Some(place) = dispensable(read(platform, node)) {
        // There is room in both.
        let _ = platform.virtio.push(place);
        let _ = platform.virtio_lines.push(FirstLine::of(node));
    }
}

#[inline(never)]
fn read(platform: &Platform, node: &Node<'_, '_>) -> Result<VirtioMmio, PlatformError> {
    if platform.virtio.is_full() {
        return Err(PlatformError::TooMany { what: "virtio,mmio nodes", limit: MAX_VIRTIO });
    }
    let registers = node.first_registers()?;
    let is_taken = platform.virtio.iter().any(|other| other.registers.overlaps(registers));
    if registers.size() < VIRTIO_REGISTERS || !registers.start().is_aligned(4) || is_taken {
        return Err(node.bad("reg"));
    }
    Ok(VirtioMmio { registers, interrupt: None, stream: stream(node)?, coherent: node.is_coherent(), dma: dma(node)? })
}

/// The addresses that the buses pass on, in one piece: those that split them are above no such device that is known.
fn dma(node: &Node<'_, '_>) -> Result<DmaRange, PlatformError> {
    if node.passes_everything_on() {
        return Ok(tree::EVERYTHING);
    }
    let [dma] = node.passed_on(tree::everything())?.into_array().map_err(|_| node.bad("dma-ranges"))?;
    Ok(dma)
}

/// `iommus`: a phandle and a StreamID, as an SMMUv3 has one cell (`#iommu-cells`). A device with several streams has no
/// driver, nor has one behind an IOMMU of another kind: an error, since such a device is not one without an IOMMU.
fn stream(node: &Node<'_, '_>) -> Result<Option<MappedId>, PlatformError> {
    let Some(list) = node.properties.iommus else { return Ok(None) };
    let entry = list.split_at_checked(4).and_then(|(phandle, id)| Some((cell(phandle)?, cell(id)?)));
    entry.map(|(phandle, id)| Some(MappedId { phandle, id })).ok_or_else(|| node.bad("iommus"))
}

/// Reads the interrupts, now that their controller is known. Each may make no sense without harm: its device is polled.
#[inline(never)]
pub(super) fn resolve(platform: &mut Platform, controller: &ControllerNode) {
    for (place, line) in platform.virtio.iter_mut().zip(&platform.virtio_lines) {
        let interrupt = dispensable(line.read(controller)).flatten();
        place.interrupt = interrupt.filter(|interrupt| interrupt.intid >= FIRST_SHARED);
    }
}

impl Platform {
    /// The registers of virtio devices in whole pages, adjacent ones in one piece: QEMU has eight in a page.
    pub fn virtio_registers(&self) -> Vec<PhysRange, MAX_VIRTIO> {
        let mut pieces: Vec<PhysRange, MAX_VIRTIO> = Vec::new();
        for mut pages in self.virtio.iter().filter_map(|place| outwards(place.registers)) {
            // It may close the gap between others.
            while let Some(index) =
                pieces.iter().position(|piece| piece.start() <= pages.end() && pages.start() <= piece.end())
            {
                let piece = pieces.swap_remove(index);
                pages = PhysRange::new(piece.start().min(pages.start()), piece.end().max(pages.end())).unwrap_or(pages);
            }
            // There are no more pieces than places.
            let _ = pieces.push(pages);
        }
        pieces
    }
}
