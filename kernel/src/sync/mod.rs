//! Locks that interrupts may take, in one order; and one whose waiters sleep.

mod lock;
pub mod rank;
mod rwsem;

pub use lock::{IrqGuard, IrqLock};
pub use rwsem::{ReadGuard, RwSem, WriteGuard};
