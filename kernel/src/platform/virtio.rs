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
/// What errors of a place's interrupt call it.
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

/// The interrupts of the places that the platform has, in their order, to be read when the controller is known. From the
/// pass that finds the places: another one over the properties of 32 nodes is a twentieth of the boot.
pub(super) type VirtioLines<'t> = Vec<Interrupts<'t>, MAX_VIRTIO>;

/// Adds the place that `node` describes; one that makes no sense is left out. Out of line, as its parts are large.
#[inline(never)]
pub(super) fn add<'t>(platform: &mut Platform, lines: &mut VirtioLines<'t>, node: &Node<'t, '_>) {
    let place = match lines.is_full() {
        true => Err(PlatformError::TooMany { what: "virtio,mmio nodes", limit: MAX_VIRTIO }),
        false => read(node).and_then(|place| {
            let overlaps = |other: &VirtioMmio| other.registers.overlaps(place.registers);
            if platform.virtio.iter().any(overlaps) { Err(node.bad("reg")) } else { Ok(place) }
        }),
    };
    if let Some(place) = dispensable(place) {
        // There is room in both.
        let _ = platform.virtio.push(place);
        let _ = lines.push(node.interrupts_of(KIND));
    }
}

fn read(node: &Node<'_, '_>) -> Result<VirtioMmio, PlatformError> {
    let registers = node.first_registers()?;
    if registers.size() < VIRTIO_REGISTERS || !registers.start().is_aligned(4) {
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
pub(super) fn resolve(platform: &mut Platform, lines: &VirtioLines<'_>, gic: &ControllerNode) {
    for (place, line) in platform.virtio.iter_mut().zip(lines) {
        let interrupt = dispensable(line.get(0, gic)).flatten();
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
