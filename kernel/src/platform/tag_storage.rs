//! Tag storage: memory that holds the allocation tags of other memory (FEAT_MTE2), and data while no tag is needed.
//!
//! Tags take 1/32 of the memory that they are of. Each region is a child of `/reserved-memory`, as in the series "Add
//! support for arm64 MTE dynamic tag storage reuse" for Linux:
//!
//! | property | meaning |
//! |---|---|
//! | `compatible` | `arm,mte-tag-storage` |
//! | `reg` | the storage, one range |
//! | `block-size` | bytes of the smallest part that is used for tags as a whole, in one cell |
//! | `tagged-memory` | phandle of the memory node that the tags are of |
//! | `reusable` | the storage may hold data |
//!
//! The tags of the first byte of tagged memory are at the start of the storage, and both go up together. Of a memory
//! node with several ranges the first is meant. Without `tagged-memory` it is the range that holds the storage: QEMU
//! makes the memory node of a tree anew that it is given, and leaves the phandle out.
//!
//! **A refused region stays reserved**, as all of `/reserved-memory` is.

use core::num::NonZeroU32;

use granule_arch::addr::{PAGE, PAGE_SHIFT, PhysRange};
use thiserror::Error;

use super::description::{MAX_TAG_STORAGE, Platform, TagStorageRegion};
use super::error::{NodeName, PlatformError};
use super::memory;
use super::tree::{Node, Root, cell};
use crate::mm::layout::LINEAR_SIZE;

const COMPATIBLE: &str = "arm,mte-tag-storage";
/// Bytes of memory that have their tags in one byte.
const BYTES_PER_TAG_BYTE: u64 = 32;
/// Largest block.
const MAX_BLOCK: u64 = 2 << 20;

/// Why a node is no region of tag storage.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) enum TagStorageError {
    #[error("its status is not `okay`")]
    Status,
    #[error("`reusable` is missing, without which it may hold nothing but tags")]
    NotReusable,
    #[error("`no-map` is not allowed, since it is to hold data")]
    NoMap,
    #[error("`reg` must be one range that is not empty")]
    Registers,
    #[error("`block-size` must be one cell, of 1 to 0x200000 bytes")]
    BlockSize,
    #[error("blocks of {0:#x} bytes (`block-size` in whole pages) are larger than 2 MiB")]
    LargeBlocks(u64),
    #[error("{0:?} must begin at a page, of 4096 bytes")]
    Start(PhysRange),
    #[error("{0:?} is not a multiple of its blocks, of {1:#x} bytes")]
    Size(PhysRange, u64),
    #[error("{0:?} is not in memory that is mapped")]
    NotInMemory(PhysRange),
    #[error("{0:?} must not overlap another node of `/reserved-memory`, or the memory reservation block")]
    Reserved(PhysRange),
    #[error("`tagged-memory` must be the phandle of a memory node")]
    TaggedMemory,
    #[error("no memory node has all of {0:?}, and `tagged-memory` is missing")]
    NoMemoryNode(PhysRange),
    #[error("the tagged memory, {0:?}, does not begin and end at a page, of 4096 bytes")]
    TaggedPages(PhysRange),
    #[error("{0:?} is smaller than 1/32 of the memory that it tags, {1:?}")]
    TooSmall(PhysRange, PhysRange),
    #[error("it must not share memory with the region at {0:?}, which tags {1:?}")]
    Shared(PhysRange, PhysRange),
    #[error("at most {MAX_TAG_STORAGE} regions are used")]
    TooMany,
}

/// Reads the regions from `/reserved-memory`. Memory and its reservations are known by now.
#[inline(never)]
pub(super) fn regions(platform: &mut Platform, root: &Root<'_>, reserved: &Node<'_, '_>) -> Result<(), PlatformError> {
    each_region(platform, root, reserved, &mut |node, error| {
        crate::log::warn!("device tree: tag storage {}: {error}; it stays reserved", NodeName::from(node));
    })
}

/// As [`regions`]; `refused` gets the name of each node that is none, and the reason.
fn each_region(
    platform: &mut Platform,
    root: &Root<'_>,
    reserved: &Node<'_, '_>,
    refused: &mut impl FnMut(&str, TagStorageError),
) -> Result<(), PlatformError> {
    reserved.each_child(|node| {
        if node.compatible().any(|name| name == COMPATIBLE) {
            let region = region(platform, root, node);
            let added =
                region.and_then(|region| platform.tag_storage.push(region).map_err(|_| TagStorageError::TooMany));
            added.unwrap_or_else(|error| refused(node.name(), error));
        }
        Ok(())
    })
}

impl Platform {
    /// Leaves out each region of tag storage that overlaps `taken`, where `what` is: the loader has put it there.
    #[inline(never)]
    pub(crate) fn leave_out_tag_storage(&mut self, taken: PhysRange, what: &str) {
        self.tag_storage.retain(|TagStorageRegion { storage, .. }| {
            let overlaps = storage.overlaps(taken);
            if overlaps {
                crate::log::warn!(
                    "device tree: tag storage {storage:?} must not overlap {what}, {taken:?}; it stays reserved"
                );
            }
            !overlaps
        });
    }
}

/// The region that the node describes.
fn region(platform: &Platform, root: &Root<'_>, node: &Node<'_, '_>) -> Result<TagStorageRegion, TagStorageError> {
    if !node.is_available() {
        return Err(TagStorageError::Status);
    }
    if node.property("no-map").is_some() {
        return Err(TagStorageError::NoMap);
    }
    if node.property("reusable").is_none() {
        return Err(TagStorageError::NotReusable);
    }
    let storage = only_range(node).ok_or(TagStorageError::Registers)?;
    let block_bytes = block_bytes(node)?;
    check_storage(platform, storage, block_bytes)?;
    let tagged = tagged_memory(root, node, storage)?;
    if ![tagged.start(), tagged.end()].into_iter().all(|end| end.is_aligned(PAGE)) {
        return Err(TagStorageError::TaggedPages(tagged));
    }
    if storage.size() < tagged.size().div_ceil(BYTES_PER_TAG_BYTE) {
        return Err(TagStorageError::TooSmall(storage, tagged));
    }
    let shares = |other: &&TagStorageRegion| {
        [other.tagged, other.storage].iter().any(|range| range.overlaps(tagged)) || other.tagged.overlaps(storage)
    };
    match platform.tag_storage.iter().find(shares) {
        Some(other) => Err(TagStorageError::Shared(other.storage, other.tagged)),
        None => Ok(TagStorageRegion { storage, block_bytes, tagged }),
    }
}

/// `reg`, if it is one range.
fn only_range(node: &Node<'_, '_>) -> Option<PhysRange> {
    let more = node.registers(1).ok()?;
    node.first_registers().ok().filter(|_| more.is_none())
}

/// The least common multiple of `block-size` and a page.
fn block_bytes(node: &Node<'_, '_>) -> Result<u64, TagStorageError> {
    let given =
        node.property("block-size").and_then(cell).and_then(NonZeroU32::new).ok_or(TagStorageError::BlockSize)?;
    // A page's factors are twos: the block's own are taken off.
    let bytes = u64::from(given.get()) << PAGE_SHIFT.saturating_sub(given.trailing_zeros());
    if bytes > MAX_BLOCK { Err(TagStorageError::LargeBlocks(bytes)) } else { Ok(bytes) }
}

/// Whether `storage` may be used: whole blocks of memory that nothing else has.
fn check_storage(platform: &Platform, storage: PhysRange, block_bytes: u64) -> Result<(), TagStorageError> {
    if !storage.start().is_aligned(PAGE) {
        return Err(TagStorageError::Start(storage));
    }
    if !storage.size().is_multiple_of(block_bytes) {
        return Err(TagStorageError::Size(storage, block_bytes));
    }
    if !platform.memory.iter().any(|bank| is_within(storage, *bank)) || storage.end().0 > LINEAR_SIZE {
        return Err(TagStorageError::NotInMemory(storage));
    }
    // The node itself is a reservation.
    if platform.reserved.iter().filter(|range| range.overlaps(storage)).count() > 1 {
        return Err(TagStorageError::Reserved(storage));
    }
    Ok(())
}

/// The memory that `storage` has the tags of.
fn tagged_memory(root: &Root<'_>, node: &Node<'_, '_>, storage: PhysRange) -> Result<PhysRange, TagStorageError> {
    let named = node.property("tagged-memory");
    let phandle = named.map(|value| cell(value).ok_or(TagStorageError::TaggedMemory)).transpose()?;
    let is_meant = |memory: &Node<'_, '_>, range| match phandle {
        Some(_) => memory.phandle() == phandle,
        None => is_within(storage, range),
    };
    let mut found = None;
    // No error: the callback returns none.
    let _ = root.visit(None, &mut |node, _| {
        if found.is_none() && memory::is_bank(node) {
            let ranges = (0..).map_while(|index| node.registers(index).ok().flatten());
            found = ranges.filter(|range| !range.is_empty()).find(|range| is_meant(node, *range));
        }
        Ok(())
    });
    found.ok_or(if phandle.is_some() { TagStorageError::TaggedMemory } else { TagStorageError::NoMemoryNode(storage) })
}

fn is_within(inner: PhysRange, outer: PhysRange) -> bool {
    outer.start() <= inner.start() && inner.end() <= outer.end()
}

#[cfg(test)]
mod tests;
