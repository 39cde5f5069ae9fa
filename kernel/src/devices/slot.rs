//! A place for a device of one kind, from before it is found until the machine is turned off.
//!
//! Devices are started when they are asked for first. Their places are statics, so that an interrupt finds its device
//! without a lock.

use spin::Once;
use thiserror::Error;

pub use super::arrivals::Arrivals;
use super::nvme::ControllerError;
use super::pci::{self, Claim, Class, Function, Id, NotIsolated, PciError};
use super::virtio::mmio::NodeClaimed;
use super::virtio::transport::TransportError;
use crate::chip::interrupt::InterruptHandler;
use crate::chip::timer::Deadline;
use crate::iommu::{AttachError, BindError, DmaDevice, DmaError};
use crate::mm::space::SpaceRef;
use crate::sched::RwSem;
#[cfg(target_os = "none")]
use crate::sched::Woken;
use crate::sched::{WaitQueue, Waiters};
use crate::smp::Cpu;
use crate::sync::atomic::AtomicU64;
use crate::sync::rank;

/// Why there is no such device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StartError {
    /// The machine has fewer of them.
    #[error("the machine has no {0} of number {1}")]
    None(&'static str, usize),
    /// There are no places for so many.
    #[error("no more than {1} devices of the kind {0} are driven")]
    TooMany(&'static str, usize),
    /// The function is unavailable.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The device is unavailable, which is no function.
    #[error(transparent)]
    Claimed(#[from] NodeClaimed),
    /// It has no way to memory.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It has no page in common with its driver.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// It is no virtio device that this driver drives.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its registers end too early.
    #[error("the device has {0:#x} bytes of registers, and {1:#x} are needed")]
    Short(u64, u64),
    /// It is no NVMe controller that this driver drives.
    #[error(transparent)]
    Nvme(#[from] ControllerError),
    /// Its identity is not that of such a device.
    #[error("the device's identity is {0:#x}: it is another device")]
    Unknown(u32),
}

/// Why a device was not bound, or not unbound. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BindRefused {
    /// It is at work: its requests mean addresses of the space that it has now.
    #[error("the device has {0} requests in flight")]
    InFlight(usize),
    /// Its accesses may be another function's, or reach one past the SMMU.
    #[error(transparent)]
    NotIsolated(#[from] NotIsolated),
    /// The SMMU cannot tell it from another device.
    #[error("another device has stream {0:#x} as well")]
    SharedStream(u32),
    /// It did not come out of a reset, so its SMMU keeps it from memory.
    #[error("the device did not come out of its reset, and is kept from memory")]
    CutOff,
    /// The SMMU, or the want of one.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It is not bound.
    #[error("the device is not bound")]
    NotBound,
}

/// The devices that a driver knows.
pub struct Known {
    ids: &'static [Id],
    class: Option<Class>,
}

impl Known {
    const fn of<T: Driver>() -> Self {
        Self { ids: T::IDS, class: T::CLASS }
    }

    /// Whether devices with this identity are known.
    pub fn has(&self, id: Id) -> bool {
        self.ids.contains(&id)
    }

    fn has_function(&self, function: &Function) -> bool {
        self.has(function.id()) || self.class == Some(function.class())
    }
}

/// A device that belongs to a driver.
pub trait DeviceClaim: Sized {
    /// How many devices the machine has of those that are known.
    fn count(known: &Known) -> usize;

    /// Claims the `index`-th of them for the driver `name`; `None` where there are fewer.
    fn claim(known: &Known, index: usize, name: &'static str) -> Option<Result<Self, StartError>>;
}

impl DeviceClaim for Claim {
    fn count(known: &Known) -> usize {
        pci::functions().iter().filter(|function| known.has_function(function)).count()
    }

    fn claim(known: &Known, index: usize, name: &'static str) -> Option<Result<Self, StartError>> {
        let function = pci::functions().iter().filter(|function| known.has_function(function)).nth(index)?;
        Some(function.claim(name).map_err(StartError::from))
    }
}

/// A driver of one kind of device.
pub trait Driver: Sized + Send + Sync + 'static {
    /// The state that a device needs besides, too large to be on a stack on its way to its place.
    type Fixed: Sync;
    /// How it has a device.
    type Claim: DeviceClaim;
    /// The monitor's name for such a device.
    const NAME: &'static str;
    /// Vendor and device number of those that the driver knows.
    const IDS: &'static [Id];
    /// The class whose devices it drives as well, whatever their numbers.
    const CLASS: Option<Class> = None;
    /// The places for them.
    const SLOTS: &'static [Slot<Self>];

    /// Starts the device of `claim`, in whose place, `slot`, its interrupts arrive. `cpu` is this CPU.
    ///
    /// # Errors
    /// [`StartError`]: the device is left alone.
    fn start(cpu: &Cpu, claim: Self::Claim, slot: &'static Slot<Self>) -> Result<Self, StartError>;

    /// Whether the machine sees all that it accesses, and knows it from every other device: what translating for it
    /// alone stands on.
    ///
    /// # Errors
    /// [`BindRefused`].
    fn isolation(&self) -> Result<(), BindRefused>;

    /// Acknowledges the interrupt at the device, where that is its driver's; whether it was its interrupt. From the
    /// interrupt.
    fn acknowledge(&self) -> bool;

    /// Runs `change` on the device's way to memory, with nothing in flight.
    ///
    /// # Errors
    /// [`BindRefused::InFlight`], and what `change` refuses.
    fn while_idle(&self, change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused>;

    /// Has the device use the addresses of `space`.
    ///
    /// # Errors
    /// [`BindRefused`].
    fn bind(&self, cpu: &Cpu, space: &SpaceRef) -> Result<(), BindRefused> {
        self.isolation()?;
        self.while_idle(&mut |dma| Ok(dma.bind(cpu, space)?))
    }

    /// Ends [`Self::bind`].
    ///
    /// # Errors
    /// [`BindRefused`].
    fn unbind(&self, cpu: &Cpu) -> Result<(), BindRefused> {
        self.while_idle(&mut |dma| {
            if !dma.is_bound() {
                return Err(BindRefused::NotBound);
            }
            dma.unbind(cpu);
            Ok(())
        })
    }
}

/// A place for a device.
pub struct Slot<T: Driver> {
    device: Once<T>,
    /// The state that the device needs besides.
    pub fixed: T::Fixed,
    /// Its interrupts.
    pub arrivals: Arrivals,
}

impl<T: Driver> Slot<T> {
    /// A place without a device.
    pub const fn new(fixed: T::Fixed) -> Self {
        Self { device: Once::new(), fixed, arrivals: Arrivals::new() }
    }
}

impl<T: Driver> InterruptHandler for Slot<T> {
    fn interrupt(&self, _: &Cpu, _: u16) {
        // Before the driver is there the device was not started: what arrives is a neighbour's at the same pin.
        if self.device.get().is_some_and(Driver::acknowledge) {
            self.arrivals.arrive();
        }
    }
}

/// How many devices of a kind the machine has, that there are places for.
pub fn count<T: Driver>() -> usize {
    T::Claim::count(&Known::of::<T>()).min(T::SLOTS.len())
}

/// The `index`-th device of a kind, if it was started.
pub fn started<T: Driver>(index: usize) -> Option<&'static T> {
    T::SLOTS.get(index)?.device.get()
}

/// The `index`-th device of a kind, started if it was not.
///
/// # Errors
/// [`StartError`].
pub fn device<T: Driver>(cpu: &Cpu, index: usize) -> Result<&'static T, StartError> {
    /// One start at a time. It may sleep.
    static STARTING: RwSem<()> = RwSem::new(rank::DEVICE_START, ());
    let slot = T::SLOTS.get(index).ok_or(StartError::TooMany(T::NAME, T::SLOTS.len()))?;
    if let Some(device) = slot.device.get() {
        return Ok(device);
    }
    let _alone = STARTING.write();
    if let Some(device) = slot.device.get() {
        return Ok(device);
    }
    let claim = T::Claim::claim(&Known::of::<T>(), index, T::NAME).ok_or(StartError::None(T::NAME, index))?;
    let device = T::start(cpu, claim?, slot)?;
    Ok(slot.device.call_once(|| device))
}

impl Arrivals {
    /// None yet. Here, because loom's atomics are not made at compile time.
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), waiters: WaitQueue::new(), missed: AtomicU64::new(0) }
    }
}

/// Sleeps until this thread is woken, at most until `until`; returns whether it was.
#[cfg(target_os = "none")]
pub(super) fn sleep(waiters: Waiters<'_, ()>, until: Deadline) -> bool {
    waiters.wait_until((), Some(until)) == Woken::ByAnother
}

/// On the host there are no devices to wait for.
#[cfg(not(target_os = "none"))]
pub(super) fn sleep(_: Waiters<'_, ()>, _: Deadline) -> bool {
    false
}

/// The address by which a device with this way to memory reaches the doorbell of its messages; `None` where it sends
/// none: others are not shown the doorbell.
pub(super) fn doorbell(cpu: &Cpu, claim: &Claim, dma: &DmaDevice) -> Result<Option<u64>, DmaError> {
    let doorbell = crate::chip::message::doorbell(crate::kernel().platform).filter(|_| claim.may_send());
    let address = doorbell.map(|doorbell| dma.message_address(cpu, doorbell)).transpose()?;
    Ok(address.map(|address| address.0))
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::{BindRefused, DeviceClaim, Driver, Known, Slot, StartError, device, started};
    use crate::devices::pci::Id;
    use crate::iommu::DmaDevice;
    use crate::sched::order;
    use crate::smp::cpu::{Cpu, this_cpu};
    use crate::sync::rank;

    /// A device that has to be started twice, as its first start fails.
    struct Late;

    struct Place;

    static SLOTS: [Slot<Late>; 2] = [const { Slot::new(()) }; 2];
    static STARTS: AtomicUsize = AtomicUsize::new(0);

    impl DeviceClaim for Place {
        fn count(_: &Known) -> usize {
            1
        }

        fn claim(_: &Known, index: usize, _: &'static str) -> Option<Result<Self, StartError>> {
            (index == 0).then_some(Ok(Self))
        }
    }

    impl Driver for Late {
        type Fixed = ();
        type Claim = Place;
        const NAME: &'static str = "late";
        const IDS: &'static [Id] = &[];
        const SLOTS: &'static [Slot<Self>] = &SLOTS;

        fn start(_: &Cpu, _: Place, _: &'static Slot<Self>) -> Result<Self, StartError> {
            assert!(order::holds(rank::DEVICE_START), "another thread may start it too");
            if STARTS.fetch_add(1, Ordering::Relaxed) == 0 { Err(StartError::Unknown(1)) } else { Ok(Self) }
        }

        fn isolation(&self) -> Result<(), BindRefused> {
            Ok(())
        }

        fn acknowledge(&self) -> bool {
            true
        }

        fn while_idle(&self, _: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused> {
            Ok(())
        }
    }

    #[test]
    fn a_device_is_started_once_by_one_thread_at_a_time() {
        let start = |index| device::<Late>(this_cpu(), index).map(|_| ());
        assert_eq!(start(0), Err(StartError::Unknown(1)));
        assert!(started::<Late>(0).is_none());
        assert_eq!((start(0), start(0)), (Ok(()), Ok(())));
        assert_eq!(STARTS.load(Ordering::Relaxed), 2);
        assert_eq!(start(1), Err(StartError::None("late", 1)));
        assert_eq!(start(2), Err(StartError::TooMany("late", 2)));
        assert!(!order::holds(rank::DEVICE_START));
    }
}
