//! The kernel's own address space identifiers.

use crate::sync::IrqLock;
use crate::sync::atomic::AtomicU64;

#[path = "../../../src/mm/asid/generation.rs"]
mod generation;

pub use generation::{AsidSlot, Asids};
use generation::{AsidState, GENERATION};

impl Asids {
    /// With so many numbers, the one that no space has among them.
    pub fn with(numbers: usize) -> Self {
        let mut state = AsidState::NONE;
        state.begin_with(numbers);
        Self { generation: AtomicU64::new(GENERATION), active: Default::default(), state: IrqLock::new(state) }
    }
}
