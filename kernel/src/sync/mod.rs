//! Locks that interrupts may take, in one order.

mod lock;
pub mod rank;

pub use lock::{IrqGuard, IrqLock};
