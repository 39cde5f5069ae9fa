//! Tables as bytes: where they are, whether they are sound, and their fields (ACPI 6.5, 5.2.5 to 5.2.8).

#![allow(unsafe_code, reason = "bytes of a table become the structures of the crate `acpi`")]

use core::mem::MaybeUninit;

use acpi::rsdp::Rsdp;
use acpi::sdt::SdtHeader;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{
    GicInterruptTranslationServiceEntry, GicMsiFrameEntry, GicRedistributorEntry, GiccEntry, GicdEntry,
};
use acpi::sdt::mcfg::McfgEntry;
use acpi::sdt::spcr::Spcr;
use granule_arch::addr::{PAGE, PhysAddr, PhysRange};

use crate::platform::error::{PlatformError, TableError};

/// Memory by its physical addresses, before the kernel has mapped any.
pub trait PhysicalMemory {
    /// The bytes of `range`, which is not empty, until the next call. `None` where nothing answers, or that is more
    /// than can be shown at a time.
    fn bytes(&mut self, range: PhysRange) -> Option<&[u8]>;
}

/// A table: its place in [`Tables`], and its name in messages.
#[derive(Clone, Copy)]
pub(super) struct TableKind {
    index: usize,
    name: &'static str,
}

/// The Serial Port Console Redirection Table.
pub(super) const SPCR: TableKind = TableKind { index: 0, name: "SPCR" };
/// The Fixed ACPI Description Table.
pub(super) const FADT: TableKind = TableKind { index: 1, name: "FADT" };
/// The Multiple APIC Description Table.
pub(super) const MADT: TableKind = TableKind { index: 2, name: "MADT" };
/// The Generic Timer Description Table.
pub(super) const GTDT: TableKind = TableKind { index: 3, name: "GTDT" };

/// The table of configuration space in memory.
pub(super) const MCFG: TableKind = TableKind { index: 4, name: "MCFG" };
/// The I/O Remapping Table.
pub(super) const IORT: TableKind = TableKind { index: 5, name: "IORT" };

/// Their signatures, by index.
const SIGNATURES: [[u8; 4]; 6] = [*b"SPCR", *b"FACP", *b"APIC", *b"GTDT", *b"MCFG", *b"IORT"];

/// Tables that the list may have; those after them are not looked at.
const MAX_TABLES: usize = 128;
/// Bytes of the header of each table.
pub(super) const HEADER: usize = size_of::<SdtHeader>();
/// Bytes of the RSDP, up to the last that its second checksum covers.
const RSDP_BYTES: usize = 36;
/// Of these the first checksum covers this many.
const RSDP_FIRST_BYTES: usize = 20;
/// Bytes of an address in the XSDT.
const ENTRY: usize = size_of::<u64>();

/// Where the tables are that the kernel reads: the first of each kind.
pub(super) struct Tables([Option<PhysAddr>; SIGNATURES.len()]);

impl Tables {
    /// Finds them by the list that the RSDP at `rsdp` leads to, the XSDT.
    ///
    /// # Errors
    /// There is no RSDP or XSDT, or it is not sound.
    #[inline(never)]
    pub(super) fn find<M: PhysicalMemory>(memory: &mut M, rsdp: PhysAddr) -> Result<Self, PlatformError> {
        let xsdt = list(memory, rsdp).map_err(TableError::of("RSDP"))?;
        let not_sound = TableError::of("XSDT");
        let xsdt = whole(memory, xsdt, *b"XSDT").map_err(&not_sound)?;
        let count = (xsdt.size() as usize - HEADER) / ENTRY;
        if count > MAX_TABLES {
            crate::log::warn!("ACPI: XSDT: {count} tables; those behind the first {MAX_TABLES} are left out");
        }
        let mut found = [None; SIGNATURES.len()];
        for index in 0..count.min(MAX_TABLES) {
            // Each anew: only one range is shown at a time.
            let bytes = show(memory, xsdt).map_err(&not_sound)?;
            let Some(table) = long(bytes, HEADER + index * ENTRY).map(PhysAddr) else { break };
            match header(memory, table) {
                Ok(header) => {
                    let kind = SIGNATURES.iter().position(|signature| header.starts_with(signature));
                    if let Some(place) = kind.and_then(|kind| found.get_mut(kind)) {
                        place.get_or_insert(table);
                    }
                }
                Err(error) => crate::log::warn!("ACPI: table {index} of the XSDT: {error}; it is left out"),
            }
        }
        Ok(Self(found))
    }

    /// Whether there is one of this kind.
    pub(super) fn has(&self, kind: TableKind) -> bool {
        self.0.get(kind.index).is_some_and(Option::is_some)
    }

    /// Has `read` read the table of this kind.
    ///
    /// # Errors
    /// There is none, it is not sound, or `read` fails.
    pub(super) fn read<M: PhysicalMemory, R>(
        &self,
        memory: &mut M,
        kind: TableKind,
        read: impl FnOnce(&[u8]) -> Result<R, TableError>,
    ) -> Result<R, PlatformError> {
        let table = || {
            let start = self.0.get(kind.index).copied().flatten().ok_or(TableError::Missing)?;
            let signature = SIGNATURES.get(kind.index).copied().unwrap_or_default();
            let place = whole(memory, start, signature)?;
            read(show(memory, place)?)
        };
        table().map_err(TableError::of(kind.name))
    }
}

fn place(start: PhysAddr, bytes: u64) -> Result<PhysRange, TableError> {
    PhysRange::from_size(start, bytes).ok_or(TableError::Wraps(start, bytes))
}

fn show<M: PhysicalMemory>(memory: &mut M, place: PhysRange) -> Result<&[u8], TableError> {
    memory.bytes(place).ok_or(TableError::NoMemory(place))
}

/// Where the RSDP at this address has the XSDT.
fn list<M: PhysicalMemory>(memory: &mut M, start: PhysAddr) -> Result<PhysAddr, TableError> {
    let bytes = show(memory, place(start, RSDP_BYTES as u64)?)?;
    let rsdp = fields::<Rsdp>(bytes, RSDP_BYTES)?;
    if rsdp.signature != *b"RSD PTR " {
        return Err(TableError::Signature(start));
    }
    let first = bytes.get(..RSDP_FIRST_BYTES).unwrap_or_default();
    // Of version 1 it has no XSDT, and 32 bits for the other list.
    if rsdp.revision < 2 {
        return Err(TableError::Bad("revision"));
    }
    if sum(first) != 0 || sum(bytes) != 0 {
        return Err(TableError::Checksum);
    }
    Ok(PhysAddr(rsdp.xsdt_address))
}

/// The header of the table at `start`.
fn header<M: PhysicalMemory>(memory: &mut M, start: PhysAddr) -> Result<[u8; HEADER], TableError> {
    let bytes = show(memory, place(start, HEADER as u64)?)?;
    bytes.first_chunk().copied().ok_or(TableError::Length(bytes.len()))
}

/// The whole table at `start`, once its signature, its length and its checksum are right.
fn whole<M: PhysicalMemory>(memory: &mut M, start: PhysAddr, signature: [u8; 4]) -> Result<PhysRange, TableError> {
    let header = header(memory, start)?;
    if !header.starts_with(&signature) {
        return Err(TableError::Signature(start));
    }
    let length = word(&header, 4).unwrap_or_default();
    if (length as usize) < HEADER {
        return Err(TableError::Length(length as usize));
    }
    let table = place(start, length.into())?;
    if sum(show(memory, table)?) != 0 {
        return Err(TableError::Checksum);
    }
    Ok(table)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The number of 32 bits at this offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The number of 64 bits at this offset.
pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// A structure that its bytes define.
///
/// # Safety
/// Any bytes are one of these.
pub(super) unsafe trait Fields {}

// SAFETY: as all below: numbers, and structures and arrays of numbers, without padding.
unsafe impl Fields for Rsdp {}
// SAFETY: see above; its later fields may be uninitialised, too.
unsafe impl Fields for Fadt {}
// SAFETY: see above.
unsafe impl Fields for Spcr {}
// SAFETY: see above.
unsafe impl Fields for McfgEntry {}
// SAFETY: see above.
unsafe impl Fields for GiccEntry {}
// SAFETY: see above.
unsafe impl Fields for GicdEntry {}
// SAFETY: see above.
unsafe impl Fields for GicRedistributorEntry {}
// SAFETY: see above.
unsafe impl Fields for GicInterruptTranslationServiceEntry {}
// SAFETY: see above.
unsafe impl Fields for GicMsiFrameEntry {}

/// The structure that begins with these bytes. Fields that it lacks after the first `least` bytes are zero: an
/// earlier version of the structure ends before.
///
/// # Errors
/// There are fewer than `least` bytes.
pub(super) fn fields<T: Fields>(bytes: &[u8], least: usize) -> Result<T, TableError> {
    if bytes.len() < least {
        return Err(TableError::Length(bytes.len()));
    }
    let mut structure = MaybeUninit::<T>::zeroed();
    let known = bytes.len().min(size_of::<T>());
    // SAFETY: as many bytes are there on both sides, which are apart; any bytes are a `T`.
    Ok(unsafe {
        structure.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), known);
        structure.assume_init()
    })
}

/// The structures of a list, each with its kind and its length in its first two bytes.
pub(super) struct Entries<'t>(&'t [u8]);

impl<'t> Entries<'t> {
    /// The list after the first `offset` bytes of a table.
    pub(super) fn behind(table: &'t [u8], offset: usize) -> Self {
        Self(table.get(offset..).unwrap_or_default())
    }
}

impl<'t> Iterator for Entries<'t> {
    type Item = (u8, &'t [u8]);

    /// The next one; none after one whose length makes no sense.
    fn next(&mut self) -> Option<Self::Item> {
        let &[kind, length, ..] = self.0 else { return None };
        let Some((entry, rest)) = self.0.split_at_checked(length.into()).filter(|_| length >= 2) else {
            crate::log::warn!("ACPI: a structure of {length} bytes; it is left out, with all behind it");
            self.0 = &[];
            return None;
        };
        self.0 = rest;
        Some((kind, entry))
    }
}

/// Registers of `bytes` bytes, which begin with a page; `what` names an address that is none.
pub(super) fn registers(start: u64, bytes: u64, what: &'static str) -> Result<PhysRange, TableError> {
    let start = PhysAddr(start);
    let registers = PhysRange::from_size(start, bytes).filter(|_| start.0 != 0 && start.is_aligned(PAGE));
    registers.ok_or(TableError::Bad(what))
}
