//! The interrupt masks of this CPU (PSTATE.DAIF, Arm ARM C5.2.2).

pub use crate::machine::interrupts::{enable, mask, restore, state};

/// PSTATE.DAIF as it was, to be put back by [`restore`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Daif(pub(crate) u64);

impl Daif {
    /// Whether IRQs were taken under this state.
    pub const fn irqs_enabled(self) -> bool {
        self.0 & (1 << 7) == 0
    }
}
