//! Why a description of the machine cannot be used.

use core::fmt;

use granule_arch::addr::{PhysAddr, PhysRange};
use heapless::String;
use thiserror::Error;

use super::structure::StructureError;

/// Why a device tree, or a table of ACPI's, cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlatformError {
    /// The blob ends before the size in its header.
    #[error("device tree cut off: {have} bytes of {expected}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that there should be.
        expected: usize,
    },
    /// The blob is not a flattened device tree that is sound throughout.
    #[error("device tree corrupt: {0}")]
    Corrupt(#[from] StructureError),
    /// Without this the kernel cannot run.
    #[error("device tree: {node} has no {property}")]
    Missing {
        /// The node, or what kind of node.
        node: NodeName,
        /// The property, or the kind of child, that it lacks.
        property: &'static str,
    },
    /// A property is there, and its value makes no sense.
    #[error("device tree: {node}: bad {property}")]
    Bad {
        /// The node.
        node: NodeName,
        /// The property.
        property: &'static str,
    },
    /// More of something than there is room for.
    #[error("device tree: more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most that there may be.
        limit: usize,
    },
    /// The console is a UART of another kind than those that have a driver.
    #[error("device tree: no driver for the console, a {compatible}")]
    NoDriver {
        /// Its kind, from the most particular.
        compatible: NodeName,
    },
    /// The line of the console is another device's.
    #[error("device tree: {device} is on the line of the console")]
    LineInUse {
        /// The node below the console's.
        device: NodeName,
    },
    /// A table of ACPI's.
    #[error("ACPI: {table}: {error}")]
    Table {
        /// Its name.
        table: &'static str,
        /// The reason.
        error: TableError,
    },
}

/// The name of a node, in an error. Longer ones are cut off (the specification allows 31 characters and an address).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeName(pub(super) String<48>);

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        let mut cut = String::new();
        for character in name.chars() {
            if cut.push(character).is_err() {
                break;
            }
        }
        Self(cut)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// Why a table cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TableError {
    /// The list has none with the signature, or none that is sound.
    #[error("there is none")]
    Missing,
    /// Its place holds no memory, or is more than can be shown at a time.
    #[error("no memory answers at {0:?}")]
    NoMemory(PhysRange),
    /// The addresses wrap.
    #[error("{1} bytes from {0} on are no addresses")]
    Wraps(PhysAddr, u64),
    /// Another structure lies there.
    #[error("it does not lie at {0}")]
    Signature(PhysAddr),
    /// Its length is smaller than its fields take.
    #[error("{0} bytes are too few")]
    Length(usize),
    /// The sum of its bytes is not zero.
    #[error("its checksum is wrong")]
    Checksum,
    /// A field makes no sense.
    #[error("bad {0}")]
    Bad(&'static str),
    /// The console is a UART that has no driver, by the numbers of the Debug Port Table 2.
    #[error("no driver for a UART of the kind {0:#x}")]
    NoDriver(u8),
    /// More of something than there is room for.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most that there may be.
        limit: usize,
    },
}

impl TableError {
    /// The error as the platform's, of the table that is called `table`.
    pub(super) fn of(table: &'static str) -> impl Fn(Self) -> PlatformError {
        move |error| PlatformError::Table { table, error }
    }
}

/// A device that the kernel can do without: if its node makes no sense, that is a warning and not the end of the boot.
/// Inlined: a device is large, and this is called on top of a frame for each level.
#[inline(always)]
pub(super) fn dispensable<T>(device: Result<T, PlatformError>) -> Option<T> {
    match device {
        Ok(device) => Some(device),
        Err(error) => {
            warn_left_out(&error);
            None
        }
    }
}

#[inline(never)]
fn warn_left_out(error: &PlatformError) {
    crate::log::warn!("{error}; it is left out");
}
