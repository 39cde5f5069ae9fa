//! A device that uses the addresses of a process: the SMMU walks the process's own tables (SVA).
//!
//! ```text
//! bind      number of its own → [ claim → own pages into the space → subscribe → the stream's context ]
//! the end   nothing is translated any more, quietly → the number is flushed → the space's memory goes
//! unbind    the stream's context is its domain's → the number is flushed → unsubscribe → own pages out → number back
//! ```
//! **Rule: a binding is in force before the space may change or end.** The steps in brackets happen between two
//! changes of a space that has not ended. So no change is missed, and none is received from its middle on. The end
//! comes before all of the steps, which are refused then, or after all, and finds the context to be cut off. A binding
//! that ends is out of force before: the stream's context goes first.
//!
//! The number is given back last: its next owner finds nothing of this space under it. A binding keeps the space's
//! record and not the space, so a process that ends while a device is bound to it ends at once; its device is cut off,
//! and `unbind` may come at any time after.
//!
//! This SMMU has no substreams: the binding has the whole stream, messages included. So what a device shares with its
//! driver is in the tables of the process, within reach of every device that uses them: a space has one binding.

#![allow(unsafe_code, reason = "vouches for what devices reach")]

use granule_arch::addr::PhysAddr;
use granule_arch::tlbi::Granule;
use granule_smmuv3::{ContextDescriptor, Features, OutputSize, Privilege, Stream, StreamError, Translation};
use thiserror::Error;

use super::domain::with_interrupts_masked;
use super::error::BindError;
use super::notify::Notify;
use super::window::OwnPage;
use super::{Iommu, lab};
use crate::mm::notifier::Subscription;
use crate::mm::space::{ReservedPages, SpaceHandle, SpaceRef};
use crate::smp::Cpu;

/// The properties that a walker must have for tables of this kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs {
    /// Bits of the addresses that programs have.
    pub address_bits: u8,
    /// Bits of the largest address of memory.
    pub output_bits: u8,
    /// The CPUs change the size of live leaves (FEAT_BBM level 2).
    pub size_changes: bool,
    /// The memory types that leaves name.
    pub memory_types: u64,
}

/// Why an SMMU cannot walk the tables of processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unfit {
    /// It does not see the CPUs' stores to tables.
    #[error("the SMMU does not see what is in the CPUs' caches")]
    NotCoherent,
    /// It has other pages.
    #[error("the SMMU does not walk tables of 4 KiB pages")]
    Granule,
    /// It cannot put out the addresses of all memory.
    #[error("the SMMU puts out {has} bits of address, and memory needs {needs}")]
    Output {
        /// The bits that it has.
        has: u8,
        /// The bits that memory needs.
        needs: u8,
    },
    /// A device cannot reach its own pages, which EL0 must not.
    #[error(
        "the SMMU cannot make accesses privileged (IDR1.ATTR_PERMS_OVR is 0), so a device would not reach its rings"
    )]
    Privilege,
    /// It does not bear what the CPUs do to live tables.
    #[error("the CPUs change the size of live mappings, which the SMMU bears at level {0} of BBM only, not 2")]
    SizeChanges(u8),
}

impl Needs {
    /// Whether an SMMU with `features` will do.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self, features: &Features) -> Result<(), Unfit> {
        if !features.coherent {
            return Err(Unfit::NotCoherent);
        }
        if !features.has_granule(Granule::Size4K) {
            return Err(Unfit::Granule);
        }
        if features.output_bits < self.output_bits {
            return Err(Unfit::Output { has: features.output_bits, needs: self.output_bits });
        }
        if !features.privilege_override && !features.ignores_privilege() {
            return Err(Unfit::Privilege);
        }
        if self.size_changes && features.bbm_level < 2 {
            return Err(Unfit::SizeChanges(features.bbm_level));
        }
        Ok(())
    }
}

type SpaceSubscription = Subscription<Notify, SpaceHandle>;

/// A stream's use of a space.
pub(super) struct Binding {
    asid: u16,
    space: SpaceHandle,
    subscription: SpaceSubscription,
}

impl Binding {
    /// The space, if it has not ended.
    pub(super) fn space(&self) -> Option<SpaceRef> {
        self.space.upgrade()
    }

    /// Its number in the SMMU's TLB.
    pub(super) fn asid(&self) -> u16 {
        self.asid
    }
}

impl Iommu {
    /// A context of tables at `root`, under `asid`.
    pub(super) fn context(&self, root: PhysAddr, asid: u16) -> ContextDescriptor {
        ContextDescriptor::new(&Translation {
            root,
            address_bits: self.needs.address_bits,
            granule: Granule::Size4K,
            output: OutputSize::of_4k_pages(self.smmu.features().output_bits),
            memory_types: self.needs.memory_types,
            asid,
            coherent: self.smmu.features().coherent,
        })
    }

    /// Has `stream` translated by the tables at `root`. The device's own pages are the kernel's, which it reaches as
    /// one that is privileged.
    pub(super) fn translate(&self, stream: u32, root: PhysAddr, asid: u16) -> Result<(), StreamError> {
        let context = self.context(root, asid);
        self.set_stream(stream, Stream::Translate { context: &context, privilege: Privilege::Privileged })
    }

    /// Configures `stream` as `to`. An SMMU that does not confirm it is shut by its driver: the stream's configuration
    /// no longer matters then.
    pub(super) fn set_stream(&self, stream: u32, to: Stream<'_>) -> Result<(), StreamError> {
        // SAFETY: 1. They are of one SMMU. 2. Only a device that was claimed for it bypasses: `iommu=bypass`, or a test.
        // 3. The tables are the stream's domain, which stays, or a space's, whose end cuts the stream off first; what a
        // leaf maps is the device's until it is unmapped and invalidated. 4. `invalidate_asid` comes before a number is
        // free again.
        unsafe { self.streams.lock().set(&self.smmu, stream, to) }
    }

    /// Binds `stream`, whose own pages are `own`, to `space`.
    pub(super) fn bind(
        &'static self,
        cpu: &Cpu,
        stream: u32,
        own: &[OwnPage],
        space: &SpaceRef,
    ) -> Result<Binding, BindError> {
        self.needs.check(self.smmu.features())?;
        let asid = self.asids.lock().allocate().ok_or(BindError::NoNumber)?;
        let notify = Notify { iommu: self, stream, asid, notify_mode: self.notify_mode };
        // A subscription waits for callbacks when it is dropped: that of a binding that fails outlives the areas' lock.
        let (mut left, mut root) = (None, None);
        let bound = space.between_changes(|pages| {
            if !pages.claim() {
                return Err(BindError::SpaceInUse);
            }
            root = Some(pages.root());
            let bound = self.join(cpu, pages, own, SpaceHandle::new(space), notify, &mut left);
            bound.inspect_err(|_| pages.disclaim())
        });
        drop(left);
        if let (Some(Ok(_)), Some(root)) = (&bound, root)
            && lab::is_on!(BIND_IN_TWO)
        {
            _ = self.translate(stream, root, asid);
        }
        bound.unwrap_or(Err(BindError::Ended)).inspect_err(|_| self.asids.lock().free(asid))
    }

    /// Shows `own` in `pages`, subscribes, and has the stream translated by the space's tables. The end of the space
    /// finds nothing of it, or all: `pages` holds it off. Where it fails `left` is the subscription.
    fn join(
        &self,
        cpu: &Cpu,
        pages: &mut ReservedPages<'_>,
        own: &[OwnPage],
        space: SpaceHandle,
        notify: Notify,
        left: &mut Option<SpaceSubscription>,
    ) -> Result<Binding, BindError> {
        // Only the first may lack memory: they are in one table, which stays while one of them is shown.
        own.iter().try_for_each(|page| pages.show(cpu, page.at, page.physical, page.memory))?;
        let (stream, asid) = (notify.stream, notify.asid);
        let bound = Subscription::new(space.clone(), notify, 0).map_err(BindError::from).and_then(|subscription| {
            let translated = if lab::is_on!(BIND_IN_TWO) { Ok(()) } else { self.translate(stream, pages.root(), asid) };
            match translated {
                Ok(()) => Ok(Binding { asid, space, subscription }),
                Err(error) => {
                    *left = Some(subscription);
                    Err(error.into())
                }
            }
        });
        bound.inspect_err(|_| hide(cpu, pages, own))
    }

    /// Ends `binding` of `stream`, which is translated by its own tables again, or by none.
    pub(super) fn unbind(&self, cpu: &Cpu, stream: u32, own: &[OwnPage], binding: Binding) {
        let Binding { asid, space, subscription } = binding;
        if !lab::is_on!(BIND_WITHOUT_FLUSH) {
            with_interrupts_masked(|| self.smmu.invalidate_asid(asid));
        }
        // Waits for callbacks that are running, which may still issue commands under the number.
        drop(subscription);
        if let Some(space) = space.upgrade() {
            // None where the space has ended concurrently, with its tables.
            let _ = space.between_changes(|pages| {
                hide(cpu, pages, own);
                pages.disclaim();
            });
        }
        self.asids.lock().free(asid);
        crate::log::debug!("smmu: stream {stream:#x} is bound no more");
    }

    /// Cuts `stream` off, if it is still translated under `asid`: its binding may be ending at the same time, and then
    /// the stream has other tables already.
    pub(super) fn cut_off(&self, stream: u32, asid: u16) {
        let mut streams = self.streams.lock();
        if let Some(context) = streams.context(stream).filter(|context| context.asid() == asid)
            // SAFETY: nothing is translated by it.
            && let Err(error) = unsafe { streams.update_context(&self.smmu, stream, &context.disabled()) }
        {
            // The memory of the space goes in any case, so nothing may reach it.
            crate::log::error!("smmu: stream {stream:#x} could not be cut off: {error}");
            self.smmu.shut();
        }
        drop(streams);
        with_interrupts_masked(|| self.smmu.invalidate_asid(asid));
    }
}

fn hide(cpu: &Cpu, pages: &mut ReservedPages<'_>, own: &[OwnPage]) {
    own.iter().for_each(|page| pages.hide(cpu, page.at));
}
