//! The driver of SMMUv3 on the model SMMU, and the model's rules, each by what keeps it and by what does not.
//!
//! - `probe`: from any state to translating; orders that let something through; machines that do not answer
//! - `entries`: every pair of stream table entries and of context descriptors, store by store
//! - `streams`: the same by the driver; leaves, contexts, what is not cached
//! - `invalidation`: what a device may still reach, with each step taken away

mod entries;
mod invalidation;
mod probe;
mod rig;
mod streams;
