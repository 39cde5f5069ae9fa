//! Locks that interrupts may take, in one order. The lock whose waiters sleep is `crate::sched::RwSem`.

mod lock;
pub mod rank;

pub use lock::{IrqGuard, IrqLock};
