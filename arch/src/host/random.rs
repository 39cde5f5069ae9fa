//! The host has no generator.

/// None.
pub(crate) fn number() -> Option<u64> {
    None
}
