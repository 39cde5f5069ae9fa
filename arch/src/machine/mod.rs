//! The part of this crate that is done by instructions; its double, which the host compiles in its place, is in `host`.

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
