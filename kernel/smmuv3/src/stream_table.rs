//! The stream table (IHI 0070, 3.3.1 and 5.2): what becomes of each stream.

use core::marker::PhantomData;

use crate::{ContextDescriptor, Memory, Platform, Smmu, StreamError};

/// With which privilege a device's accesses are checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// The one that comes with the access: PCI's are unprivileged.
    Incoming,
    /// Privileged: pages that EL0 must not see can be mapped for the device.
    Privileged,
}

/// What becomes of a stream's transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream<'a> {
    /// They end, and leave no event.
    Abort,
    /// They pass untranslated.
    Bypass,
    /// They are translated.
    Translate {
        /// By which tables.
        context: &'a ContextDescriptor,
        /// As whom.
        privilege: Privilege,
    },
}

/// All streams of an SMMU.
pub struct Streams<P: Platform + Memory> {
    platform: PhantomData<fn(P)>,
}

impl<P: Platform + Memory> Streams<P> {
    /// Makes `stream` what `to` says. When this returns the SMMU uses nothing of what it was before.
    ///
    /// # Errors
    /// It is as it was, but for a command that failed.
    pub fn set(&mut self, smmu: &Smmu<P>, stream: u32, to: Stream<'_>) -> Result<(), StreamError> {
        let _ = (smmu, stream, to, self.platform);
        unimplemented!()
    }

    /// Changes the context of `stream`, which is translated.
    ///
    /// # Errors
    /// It is as it was, but for a command that failed.
    pub fn update_context(&mut self, smmu: &Smmu<P>, stream: u32, to: &ContextDescriptor) -> Result<(), StreamError> {
        let _ = (smmu, stream, to);
        unimplemented!()
    }
}
