//! The driver of SMMUv3 on the model SMMU, and the model's rules, each by what keeps it and by what does not.
//!
//! - `probe`: from any state to translating; orders that let something through; machines that do not answer
//! - `commands`: the queue around its end, full, in error
//! - `barriers`: each barrier, by what it stands between
//! - `entries`: every pair of stream table entries and of context descriptors, store by store
//! - `streams`: the same by the driver; leaves, contexts, what is not cached
//! - `invalidation`: what a device may still reach, with each step taken away
//! - `ats`: what devices translate ahead, and the command that takes it from them
//! - `limits`: runs without end
//! - `uncached`: an SMMU that does not see the CPUs' caches
//! - `events`: what records mean, their order, what is lost
//! - `random`: tables changed at random under a device that uses them, against an oracle

mod ats;
mod barriers;
mod commands;
mod entries;
mod events;
mod invalidation;
mod limits;
mod probe;
mod random;
mod rig;
mod streams;
mod uncached;
