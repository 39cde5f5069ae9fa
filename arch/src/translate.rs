//! Asks the hardware to translate an address (AT S1E1R, Arm ARM C5.4), without accessing it.

pub use crate::machine::translate::read_at_el1;
