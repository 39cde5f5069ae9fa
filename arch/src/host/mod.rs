//! The double of `machine` on the host: nothing is done but what [`recorded`](crate::recorded) notes.

pub(crate) mod alternative;
pub(crate) mod cache;
pub(crate) mod interrupts;
pub(crate) mod mte;
pub(crate) mod psci;
pub(crate) mod random;
pub(crate) mod speculation;
pub(crate) mod tag_check;
pub(crate) mod timer;
pub(crate) mod translate;
pub(crate) mod wait;
