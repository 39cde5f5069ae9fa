//! Memory: the banks, what in them is taken, and the properties of `/chosen` (3.4, 3.5, 3.6, 5.3).

use dtoolkit::fdt::Fdt;
use granule_arch::addr::{PAGE, PhysAddr, PhysRange};

use super::description::{MAX_BANKS, MAX_BOOTARGS, MAX_RESERVED, MAX_RNG_SEED, Platform};
use super::error::{NodeName, PlatformError};
use super::structure::{self, StructureError};
use super::tree::{Node, string};
use crate::bootargs;
use crate::mm::layout::LINEAR_SIZE;

/// The memory reservation block.
#[inline(never)]
pub(super) fn reservations(platform: &mut Platform, fdt: Fdt<'_>) -> Result<(), PlatformError> {
    for entry in fdt.memory_reservations() {
        let range = PhysRange::from_size(PhysAddr(entry.address()), entry.size());
        let range = range.and_then(outwards).ok_or_else(|| PlatformError::Bad {
            node: NodeName::from("memory reservation block"),
            property: "entry",
        })?;
        reserve(platform, range)?;
    }
    Ok(())
}

/// Whether the node is memory. It is known to be available: QEMU's secure RAM is a memory node that is not.
pub(super) fn is_bank(node: &Node<'_, '_>) -> bool {
    node.properties.device_type.and_then(string) == Some("memory") && node.is_below_root()
}

/// A node that may be memory.
pub(super) fn banks(platform: &mut Platform, node: &Node<'_, '_>) -> Result<(), PlatformError> {
    if !is_bank(node) {
        return Ok(());
    }
    let mut index = 0;
    while let Some(bank) = node.registers(index)? {
        index += 1;
        if let Some(bank) = inwards(bank) {
            let full = PlatformError::TooMany { what: "banks of memory", limit: MAX_BANKS };
            platform.memory.push(bank).map_err(|_| full)?;
        }
    }
    Ok(())
}

/// Ascending, and what overlaps or touches is one bank, so that no frame is counted twice.
#[inline(never)]
pub(super) fn join_banks(platform: &mut Platform) -> Result<(), PlatformError> {
    platform.memory.sort_unstable_by_key(|bank| bank.start());
    let mut joined = heapless::Vec::<PhysRange, MAX_BANKS>::new();
    for &bank in &platform.memory {
        match joined.last_mut() {
            Some(last) if bank.start() <= last.end() => {
                if let Some(both) = PhysRange::new(last.start(), last.end().max(bank.end())) {
                    *last = both;
                }
            }
            // It has as much room as what it is made from.
            _ => drop(joined.push(bank)),
        }
    }
    platform.memory = joined;
    if platform.memory.is_empty() {
        return Err(PlatformError::Missing { node: NodeName::from("/memory"), property: "reg" });
    }
    Ok(())
}

/// Leaves out an initial RAM disk that the linear map does not show: reading it would fault.
#[inline(never)]
pub(super) fn check_initrd(platform: &mut Platform) {
    let Some(initrd) = platform.initrd else { return };
    let is_in = |bank: &PhysRange| bank.start() <= initrd.start() && initrd.end() <= bank.end();
    let is_shown = initrd.end().0 <= LINEAR_SIZE
        && platform.memory.iter().any(is_in)
        && !platform.no_map.iter().any(|range| range.overlaps(initrd));
    if !is_shown {
        crate::log::warn!("device tree: the initrd at {initrd:?} is not in memory; it is left out");
        platform.initrd = None;
    }
}

/// `/reserved-memory`.
#[inline(never)]
pub(super) fn reserved_memory(platform: &mut Platform, node: &Node<'_, '_>) -> Result<(), PlatformError> {
    node.each_child(|child| {
        // A child with `size` alone asks the kernel to choose a place. Nothing here asks for one.
        let mut index = 0;
        while let Some(range) = child.registers(index)? {
            index += 1;
            let range = outwards(range).ok_or_else(|| child.bad("reg"))?;
            // The status does not count: a reservation that is not in use is still not free.
            reserve(platform, range)?;
            if child.property("no-map").is_some() {
                // As large as `reserved`, which has just taken it.
                let _ = platform.no_map.push(range);
            }
        }
        Ok(())
    })
}

fn reserve(platform: &mut Platform, range: PhysRange) -> Result<(), PlatformError> {
    if range.is_empty() {
        return Ok(());
    }
    platform.reserved.push(range).map_err(|_| PlatformError::TooMany { what: "reservations", limit: MAX_RESERVED })
}

/// Keeps the page of a release address from everyone: CPUs may go on looking at it after the boot, and a loader need not
/// have reserved it. Several CPUs may have one.
pub(super) fn reserve_page(platform: &mut Platform, address: PhysAddr) -> Result<(), PlatformError> {
    let page = PhysRange::from_size(address.align_down(PAGE), PAGE);
    match page.filter(|_| address.0 != 0 && !platform.reserved.iter().any(|range| range.contains(address))) {
        Some(page) => reserve(platform, page),
        None => Ok(()),
    }
}

/// `/chosen`, but for the console.
#[inline(never)]
pub(super) fn chosen(platform: &mut Platform, node: &Node<'_, '_>) -> Result<(), PlatformError> {
    if let Some(arguments) = node.property("bootargs") {
        let arguments = string(arguments).ok_or_else(|| node.bad("bootargs"))?;
        platform.bootargs.clear();
        let full = PlatformError::TooMany { what: "bytes of bootargs", limit: MAX_BOOTARGS };
        platform.bootargs.push_str(arguments).map_err(|_| full)?;
    }
    if let Some(start) = node.number("linux,initrd-start")? {
        let end = node.number("linux,initrd-end")?.ok_or_else(|| node.missing("linux,initrd-end"))?;
        let range = PhysRange::new(PhysAddr(start), PhysAddr(end));
        platform.initrd = Some(range.ok_or_else(|| node.bad("linux,initrd-end"))?).filter(|range| !range.is_empty());
    }
    if let Some(seed) = node.property("rng-seed") {
        platform.rng_seed = seed.iter().copied().take(MAX_RNG_SEED).collect();
    }
    Ok(())
}

/// The seed for the place of the kernel in its address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KaslrSeed {
    /// Not zero, which a firmware without entropy leaves.
    pub value: u64,
    /// Where its 8 bytes are, from the start of the tree.
    pub offset: usize,
}

/// `/chosen` `kaslr-seed` of the tree in `blob`, which is checked; `None` where there is none, or the boot argument
/// `nokaslr`. A seed of another length is none, as in Linux, nor is one that another block of the tree has a part of: the
/// tree is sound when the seed has been zeroed, too.
///
/// # Errors
/// The tree is not sound.
pub fn kaslr_seed(blob: &[u8]) -> Result<Option<KaslrSeed>, StructureError> {
    let (_, [seed, arguments]) = structure::check_and_find(blob, b"chosen", [c"kaslr-seed", c"bootargs"])?;
    let arguments = arguments.and_then(|arguments| string(blob.get(arguments.range)?)).unwrap_or_default();
    let may_slide = bootargs::find(arguments, "nokaslr").is_none();
    let seed = seed.filter(|seed| seed.is_alone && may_slide).and_then(|seed| {
        let offset = seed.range.start;
        let value = u64::from_be_bytes(blob.get(seed.range)?.try_into().ok()?);
        (value != 0).then_some(KaslrSeed { value, offset })
    });
    Ok(seed)
}

/// The whole pages in `range`; `None` where there are none.
fn inwards(range: PhysRange) -> Option<PhysRange> {
    let start = range.start().align_up(PAGE)?;
    let whole = PhysRange::new(start, range.end().align_down(PAGE))?;
    (!whole.is_empty()).then_some(whole)
}

/// The pages that `range` touches; `None` where they run past the last address.
pub(super) fn outwards(range: PhysRange) -> Option<PhysRange> {
    if range.is_empty() {
        return Some(range);
    }
    PhysRange::new(range.start().align_down(PAGE), range.end().align_up(PAGE)?)
}
