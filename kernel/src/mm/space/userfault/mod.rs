//! userfaultfd: a pager, which may be another process, serves the faults of a space.
//!
//! Areas are registered with a [`Userfaultfd`]. A first access where a page is *missing*, or is *minor* since the area's
//! object has it, or a store to a page that is *write-protected*, becomes a message, and the thread that has faulted
//! waits ([`fault`]). The pager reads the message ([`queue`]), brings a page ([`fill`]), moves one ([`transfer`]) or clears
//! the protection ([`protect`]), and wakes the thread, which makes its access again. Changes that the space makes to its own mappings
//! become events ([`events`]).
//!
//! ```text
//!   thread                                     pager
//!     fault: missing, or write-protected
//!     lock the table, look again
//!       queue the message ────────────────────►  read
//!     unlock, sleep                              COPY, ZEROPAGE, WRITEPROTECT: under the table's lock
//!     retry  ◄──────────────────────────────────  wake
//! ```
//! **A message is queued under the table's lock, when the entry needs the pager still.** So a pager never reads a message
//! for a page that it has served, and a wake that follows the change of the entry finds the thread: the change comes
//! first, and the thread sees it; or the message does, and the wake finds it.
//!
//! # Marks and markers
//! A leaf has userfaultfd's mark in a bit of its own, in each form that an entry has (`granule_arch::descriptor::user`); it
//! is never writable. Where no page is mapped, a [marker](granule_arch::descriptor::Markers::UFFD_WP) remembers it: areas
//! of objects always have them, anonymous ones with [`Features::WP_UNPOPULATED`]. A page that is installed replaces the
//! marker, and has the mark; [`zap`](super::zap) leaves one. A block that was zapped leaves one at its level.
//!
//! An area has marks and markers only while it is registered for write-protection: what ends that clears them.
//!
//! Its locks are [`USERFAULTFDS`](rank::USERFAULTFDS) and that of the queue of messages, events and threads that wait
//! for them ([`WAIT`](rank::WAIT)).

mod changes;
pub(super) mod events;
pub(super) mod fault;
pub(super) mod fill;
pub(super) mod protect;
pub(super) mod queue;
pub(super) mod transfer;

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use granule_arch::addr::VirtAddr;
use granule_pgtable::PageRange;
use thiserror::Error;

use super::address_space::{Space, SpaceHandle, SpaceRef};
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::error::SpaceError;
use super::parts::Divisible as _;
use super::range::{USER_END, USER_START, pages};
use super::tally::LastTally;
use super::userfault::queue::{ReadError, Reading};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::frame::FrameAllocator;
use crate::mm::paged::PagedList;
use crate::sched::{IfNotReady, PollQueue, RwSem, relax};
use crate::smp::{Cpu, this_cpu};
use crate::sync::rank;
use changes::Changes;
use queue::Queue;

/// The features of a userfaultfd: bits, of which each is Linux's `UFFD_FEATURE_` of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features(pub u64);

impl Features {
    /// Messages say whether a page is write-protected.
    pub const PAGEFAULT_FLAG_WP: u64 = 1;
    /// A fork is an event, and the child is registered too.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// `mremap` is an event, and what has moved stays registered.
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// Advice that discards pages is an event.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// Shared memory may be registered.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// `munmap` is an event.
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// Faults are SIGBUS, and no messages.
    pub const SIGBUS: u64 = 1 << 7;
    /// Messages have the number of the thread.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Shared memory may be registered for first accesses to pages that its object has.
    pub const MINOR_SHMEM: u64 = 1 << 10;
    /// Messages have the address, and not that of its page.
    pub const EXACT_ADDRESS: u64 = 1 << 11;
    /// Shared memory may be write-protected.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Anonymous pages that were never accessed may be write-protected.
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// Pages may be poisoned.
    pub const POISON: u64 = 1 << 14;
    /// A store to a page that is write-protected ends that, and is no message. Implies [`Self::WP_UNPOPULATED`].
    pub const WP_ASYNC: u64 = 1 << 15;
    /// Pages may be moved.
    pub const MOVE: u64 = 1 << 16;
    /// All of them.
    pub const ALL: Self = Self(
        Self::PAGEFAULT_FLAG_WP
            | Self::EVENT_FORK
            | Self::EVENT_REMAP
            | Self::EVENT_REMOVE
            | Self::MISSING_SHMEM
            | Self::EVENT_UNMAP
            | Self::SIGBUS
            | Self::THREAD_ID
            | Self::MINOR_SHMEM
            | Self::EXACT_ADDRESS
            | Self::WP_HUGETLBFS_SHMEM
            | Self::WP_UNPOPULATED
            | Self::POISON
            | Self::WP_ASYNC
            | Self::MOVE,
    );

    /// Whether it has all of `bits`.
    #[inline(always)]
    const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// Why a call on a userfaultfd failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum UserfaultError {
    /// The range is none, nothing is mapped there, or what is mapped cannot be registered; or the features are not
    /// agreed upon yet, or a second time.
    #[error("the range cannot be registered, or the features are not agreed upon once")]
    Invalid,
    /// An area may never be written.
    #[error("an area may never be written")]
    NotPermitted,
    /// An area is registered with another userfaultfd.
    #[error("an area is registered with another userfaultfd")]
    Busy,
    /// An area is not registered for that.
    #[error("an area is not registered for that")]
    NotRegistered,
    /// An event is not read yet: the mappings are changing.
    #[error("an event is not read yet")]
    Changing,
    /// The space has ended.
    #[error("the space has ended")]
    Ended,
    /// There is no memory for records or tables.
    #[error("out of memory")]
    OutOfMemory,
}

impl From<OutOfMemory> for UserfaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<SpaceError> for UserfaultError {
    fn from(_: SpaceError) -> Self {
        // Of a change of flags, that of records and of their number.
        Self::OutOfMemory
    }
}

/// Why a page is not filled, or not moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FillError {
    /// As every call of a userfaultfd.
    #[error(transparent)]
    Call(#[from] UserfaultError),
    /// Something is there.
    #[error("a page is there")]
    Exists,
    /// The bytes cannot be read, or the object ends before; or a marker is there, which does not move.
    #[error("the bytes cannot be read, or the object ends before")]
    Fault,
    /// There is no page to move.
    #[error("there is no page to move")]
    Hole,
    /// The page to move is not the space's alone.
    #[error("the page to move is not the space's alone")]
    Shared,
    /// A signal ends the program.
    #[error("a signal ends the program")]
    Interrupted,
}

impl From<OutOfMemory> for FillError {
    fn from(_: OutOfMemory) -> Self {
        Self::Call(UserfaultError::OutOfMemory)
    }
}

/// Whether a range becomes write-protected, or is so no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The next store is a message.
    Set,
    /// Stores are served.
    Clear,
}

/// A message that a pager reads.
#[derive(Clone, Debug)]
pub enum Message {
    /// A fault.
    Fault(PageFault),
    /// A fork: what serves the child's faults.
    Fork(Counted<Userfaultfd>),
    /// Mappings have moved.
    Remap {
        /// From there.
        from: VirtAddr,
        /// There.
        to: VirtAddr,
        /// So many bytes.
        bytes: u64,
    },
    /// Pages are about to be discarded.
    Remove(PageRange),
    /// Mappings are gone.
    Unmap(PageRange),
}

/// The reason for a pager to serve a fault. Only a `LockedEntry` gives one, so neither a message nor SIGBUS comes from a
/// look without the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// No page is there.
    Missing,
    /// The object has the page, and the space not.
    Minor,
    /// The page is there, and write-protected.
    WriteProtected,
}

/// A fault as a pager reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// Its address, or that of its page.
    pub address: VirtAddr,
    /// It is a store.
    pub is_write: bool,
    /// The reason for the pager to serve it.
    pub reason: Reason,
    /// The number of the thread, where that was asked for.
    pub thread: Option<u32>,
}

/// The accesses that an area is registered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Enrolment {
    /// First accesses to pages that are nowhere.
    pub missing: bool,
    /// First accesses to pages that the object has.
    pub minor: bool,
    /// Stores to what is write-protected.
    pub write_protected: bool,
}

impl Enrolment {
    /// The flags of an area with this enrolment at a userfaultfd of `features`.
    const fn flags(self, features: Features) -> AreaFlags {
        let missing = if self.missing { AreaFlags::UFFD_MISSING } else { AreaFlags::NONE };
        let minor = if self.minor { AreaFlags::UFFD_MINOR } else { AreaFlags::NONE };
        let protected = match self.write_protected {
            true if features.has(Features::WP_ASYNC) => AreaFlags::UFFD_WP.with(AreaFlags::UFFD_WP_ASYNC),
            true => AreaFlags::UFFD_WP,
            false => AreaFlags::NONE,
        };
        missing.with(minor).with(protected)
    }
}

/// The number of a userfaultfd among those of a space, in the flags of its areas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UserfaultfdNumber(pub(super) u16);

impl UserfaultfdNumber {
    /// Of a userfaultfd with which nothing was ever registered.
    const NONE: Self = Self(u16::MAX);
}

/// A file by which a pager serves the faults of a space (Linux: `userfaultfd_ctx`). Dropping the file
/// [closes](Self::close) it.
pub struct Userfaultfd {
    space: SpaceHandle,
    /// 0 before they are agreed upon; then with [`AGREED`].
    features: AtomicU64,
    /// Accesses of the kernel fail.
    user_mode_only: bool,
    /// See [`Userfaultfd::open_flags`].
    open_flags: u32,
    /// Changes of the mappings whose events are not read yet.
    changing: Changes,
    /// Its number among those of its space; [`UserfaultfdNumber::NONE`] while nothing was ever registered. Changed with
    /// the list of them locked for writing.
    number: AtomicU16,
    /// By the unmapping that adds events.
    met: LastTally,
    queue: Queue,
}

/// A space that lives while this does.
enum LivingSpace<'a> {
    /// The running program's.
    Own(&'a Space),
    Kept(SpaceRef),
}

impl Deref for LivingSpace<'_> {
    type Target = Space;
    #[inline(always)]
    fn deref(&self) -> &Space {
        match self {
            Self::Own(space) => space,
            Self::Kept(space) => space,
        }
    }
}

/// In [`Userfaultfd::features`].
const AGREED: u64 = 1 << 63;

impl Userfaultfd {
    /// One for the faults of `space`; with `user_mode_only` not for those of the kernel. `open_flags` are kept for
    /// the descriptor of a child.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(space: &SpaceRef, user_mode_only: bool, open_flags: u32) -> Result<Counted<Self>, OutOfMemory> {
        Self::with_features(space, user_mode_only, open_flags, 0)
    }

    fn with_features(
        space: &SpaceRef,
        user_mode_only: bool,
        open_flags: u32,
        features: u64,
    ) -> Result<Counted<Self>, OutOfMemory> {
        let make = || Self {
            space: SpaceHandle::new(space),
            features: AtomicU64::new(features),
            user_mode_only,
            open_flags,
            changing: Changes::default(),
            number: AtomicU16::new(UserfaultfdNumber::NONE.0),
            met: LastTally::default(),
            queue: Queue::new(),
        };
        Counted::try_new_with(&space.common.userfaultfds, make)
    }

    /// Its number in its space, once something was registered with it.
    fn number(&self) -> Option<UserfaultfdNumber> {
        let number = UserfaultfdNumber(self.number.load(Ordering::Relaxed));
        (number != UserfaultfdNumber::NONE).then_some(number)
    }

    /// The flags with which it was opened: that of a fork's child is opened with its parent's.
    pub const fn open_flags(&self) -> u32 {
        self.open_flags
    }

    /// Agrees upon the features, once.
    ///
    /// # Errors
    /// [`UserfaultError::Invalid`]: they were agreed upon before, or there are not all of them.
    pub fn agree(&self, features: Features) -> Result<(), UserfaultError> {
        if !Features::ALL.has(features.0) {
            return Err(UserfaultError::Invalid);
        }
        let implied = if features.has(Features::WP_ASYNC) { Features::WP_UNPOPULATED } else { 0 };
        let features = features.0 | implied;
        let agreed = self.features.compare_exchange(0, features | AGREED, Ordering::Relaxed, Ordering::Relaxed);
        agreed.map(drop).map_err(|_| UserfaultError::Invalid)
    }

    /// Whether the features are agreed upon: before that it serves nothing.
    #[inline(always)]
    pub fn is_agreed(&self) -> bool {
        self.features.load(Ordering::Relaxed) & AGREED != 0
    }

    #[inline(always)]
    fn features(&self) -> Features {
        Features(self.features.load(Ordering::Relaxed))
    }

    /// The space, as long as it lives.
    #[inline(always)]
    fn living_space(&self) -> Result<SpaceRef, UserfaultError> {
        self.space.upgrade().ok_or(UserfaultError::Ended)
    }

    /// As [`Self::living_space`]; for a pager of that space, which is its `own`, without a count.
    #[inline(always)]
    fn living_or_own<'a>(&self, own: Option<&'a Space>) -> Result<LivingSpace<'a>, UserfaultError> {
        match own {
            Some(own) if self.space.is_of(own) => Ok(LivingSpace::Own(own)),
            _ => self.living_space().map(LivingSpace::Kept),
        }
    }

    /// Registers the areas of the `bytes` bytes from `start` on for `enrolment`, in place of what they were registered
    /// for with `this`.
    ///
    /// # Errors
    /// [`UserfaultError::Invalid`] (no range of pages, nothing is mapped in it, or registers are, or for minor faults private
    /// anonymous memory),
    /// [`UserfaultError::NotPermitted`], [`UserfaultError::Busy`], [`UserfaultError::OutOfMemory`] (also where the space has
    /// ended, as on Linux).
    pub fn register(
        this: &Counted<Self>,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        enrolment: Enrolment,
    ) -> Result<(), UserfaultError> {
        let range = range_of_call(start, bytes).ok_or(UserfaultError::Invalid)?;
        let space = this.living_space().map_err(|_| UserfaultError::OutOfMemory)?;
        let number = space.userfaultfds.number_of(this)?;
        space.note_userfaultfds();
        space.change_registration(cpu, range, number, Registration::Begin(enrolment.flags(this.features())))
    }

    /// Ends the registration of what the `bytes` bytes from `start` on have of it. The threads that wait for a page
    /// there are woken.
    ///
    /// # Errors
    /// [`UserfaultError::Invalid`] (no range of pages, nothing is mapped in it, registers are, or an area is another
    /// userfaultfd's), [`UserfaultError::OutOfMemory`].
    pub fn unregister(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Result<(), UserfaultError> {
        let range = range_of_call(start, bytes).ok_or(UserfaultError::Invalid)?;
        let space = self.living_space().map_err(|_| UserfaultError::OutOfMemory)?;
        let number = self.number().unwrap_or(UserfaultfdNumber::NONE);
        space.change_registration(cpu, range, number, Registration::End)?;
        self.queue.wake(range.start()..range.end());
        Ok(())
    }

    /// Ends it: no area is registered with it any more, and all threads that wait for it go on. Sleeps. Called by the
    /// drop of its file.
    pub fn close(&self) {
        // No fault waits from here on.
        self.queue.close();
        if let Some(space) = self.space.upgrade()
            && let Some(number) = self.number()
        {
            // Drop has no argument for the CPU. Whole areas are not cut, so nothing is refused.
            let _ = space.change_registration(this_cpu(), pages(USER_START, USER_END), number, Registration::EndAll);
            space.userfaultfds.forget(self);
        }
        self.queue.wake(VirtAddr(0)..VirtAddr(u64::MAX));
    }

    /// Wakes the threads that wait for pages of the `bytes` bytes from `start` on: they make their accesses again.
    ///
    /// # Errors
    /// [`UserfaultError::Invalid`]: no range of pages.
    pub fn wake(&self, start: VirtAddr, bytes: u64) -> Result<(), UserfaultError> {
        let range = range_of_call(start, bytes).ok_or(UserfaultError::Invalid)?;
        self.queue.wake(range.start()..range.end());
        Ok(())
    }

    /// Whether a message or an event can be read at once.
    pub fn has_message(&self) -> bool {
        self.queue.has_message()
    }

    /// The threads that wait for that.
    pub const fn pollers(&self) -> &PollQueue {
        self.queue.pollers()
    }

    /// The next message: a fault, else an event. Sleeps until there is one, or a signal, if it may wait.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, if_not_ready: IfNotReady) -> Result<Reading<'_>, ReadError> {
        if self.is_agreed() { self.queue.read(if_not_ready) } else { Err(ReadError::NotAgreed) }
    }
}

impl fmt::Debug for Userfaultfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Userfaultfd({:#x})", self.features().0)
    }
}

/// The pages of a call (Linux: `validate_range`): at least one, and whole. Above [`USER_END`] they are in no area.
#[inline(always)]
fn range_of_call(start: VirtAddr, bytes: u64) -> Option<PageRange> {
    PageRange::lower(start, VirtAddr(start.0.checked_add(bytes)?))
}

/// A change of what areas are registered for.
#[derive(Clone, Copy)]
enum Registration {
    /// These flags of [`AreaFlags::REGISTERED`].
    Begin(AreaFlags),
    /// Nothing.
    End,
    /// Nothing, of those among others that are registered with the same userfaultfd.
    EndAll,
}

impl Registration {
    /// Checks an area with these flags against it.
    fn check(self, area: &Area, is_own: bool) -> Result<(), UserfaultError> {
        let is_others = area.flags().has_any(AreaFlags::REGISTERED) && !is_own;
        match self {
            Self::EndAll => Ok(()),
            Self::Begin(modes) if modes.has_any(AreaFlags::UFFD_MINOR) && area.object().is_none() => {
                Err(UserfaultError::Invalid)
            }
            _ if area.is_of_device() || area.is_droppable() => Err(UserfaultError::Invalid),
            Self::Begin(_) if !area.may_write() => Err(UserfaultError::NotPermitted),
            Self::Begin(_) if is_others => Err(UserfaultError::Busy),
            Self::End if is_others => Err(UserfaultError::Invalid),
            Self::Begin(_) | Self::End => Ok(()),
        }
    }

    /// The flags of an area after the change.
    fn applied(self, flags: AreaFlags, number: UserfaultfdNumber, is_own: bool) -> AreaFlags {
        match self {
            // As on Linux, what is registered for as much stays as it is.
            Self::Begin(modes) if is_own && flags.with(modes) == flags => flags,
            Self::Begin(modes) => flags.registered(number, modes),
            Self::End | Self::EndAll if is_own => flags.unregistered(),
            Self::End | Self::EndAll => flags,
        }
    }
}

impl Space {
    /// Changes what the areas in `range` are registered for with the userfaultfd that has `number`. Those that are not
    /// registered for write-protection any more lose their marks and markers, but for those of guards and poison.
    ///
    /// # Errors
    /// As [`Userfaultfd::register`].
    #[inline(never)]
    fn change_registration(
        &self,
        cpu: &Cpu,
        range: PageRange,
        number: UserfaultfdNumber,
        change: Registration,
    ) -> Result<(), UserfaultError> {
        let is_own = |flags: AreaFlags| flags.has_any(AreaFlags::REGISTERED) && flags.userfaultfd() == number;
        let applied = |flags: AreaFlags| change.applied(flags, number, is_own(flags));
        let (areas, checked) = self.change_areas(self.write_areas(range), |areas| {
            let mut checked = Err(UserfaultError::Invalid);
            for area in areas.walk(range) {
                checked = change.check(area, is_own(area.flags()));
                if checked.is_err() {
                    return Ok(checked);
                }
            }
            let is_marked = |flags: AreaFlags| is_own(flags) && flags.has_any(AreaFlags::UFFD_WP);
            for area in areas.walk(range).filter(|area| is_marked(area.flags()) && !is_marked(applied(area.flags()))) {
                // Nothing is installed, so nothing is allocated.
                let cleared = self.mark_area(cpu, area, area.part_in(range), Mark::Clear, false);
                debug_assert_eq!(cleared, Ok(()));
            }
            self.change_flags(cpu, areas, range, |area| Ok(applied(area.flags())))?;
            Ok(checked)
        })?;
        drop(areas);
        checked
    }
}

/// The userfaultfds that areas of a space are registered with, each by its number.
pub(super) struct Userfaultfds(RwSem<Places>);

/// By their numbers.
struct Places {
    places: PagedList<Option<Registered>>,
    /// No place below it is free.
    next: usize,
}

/// One of them.
struct Registered {
    userfaultfd: Counted<Userfaultfd>,
    /// Until the fork that has made it is announced: the parent's.
    forked_from: Option<Counted<Userfaultfd>>,
}

impl Places {
    /// The most that a space has: what the flags of an area can hold.
    const MOST: usize = UserfaultfdNumber::NONE.0 as usize;

    const fn new(frames: &'static FrameAllocator) -> Self {
        Self { places: PagedList::new(frames), next: 0 }
    }

    fn get(&self, number: UserfaultfdNumber) -> Option<&Registered> {
        self.places.get(usize::from(number.0))?.as_ref()
    }

    /// The lowest number that none has.
    fn free(&mut self) -> Option<UserfaultfdNumber> {
        while let Some(Some(_)) = self.places.get(self.next) {
            self.next += 1;
            relax();
        }
        (self.next < Self::MOST).then_some(UserfaultfdNumber(self.next as u16))
    }

    /// Gives `registered` a number that none has.
    fn put(&mut self, number: UserfaultfdNumber, registered: Registered) -> Result<(), OutOfMemory> {
        let place = usize::from(number.0);
        while self.places.count() <= place {
            self.places.push(None)?;
            relax();
        }
        registered.userfaultfd.number.store(number.0, Ordering::Relaxed);
        if let Some(place) = self.places.get_mut(place) {
            *place = Some(registered);
        }
        Ok(())
    }

    fn take(&mut self, number: UserfaultfdNumber) -> Option<Registered> {
        let place = usize::from(number.0);
        let taken = self.places.get_mut(place)?.take()?;
        self.next = self.next.min(place);
        Some(taken)
    }
}

impl Userfaultfds {
    /// No registrations.
    pub(super) const fn new(frames: &'static FrameAllocator) -> Self {
        Self(RwSem::new(rank::USERFAULTFDS, Places::new(frames)))
    }

    /// The number of `userfaultfd`, which is one of this space; a new one if it had none.
    fn number_of(&self, userfaultfd: &Counted<Userfaultfd>) -> Result<UserfaultfdNumber, OutOfMemory> {
        let mut all = self.0.write();
        if let Some(number) = userfaultfd.number() {
            return Ok(number);
        }
        let free = all.free().ok_or(OutOfMemory)?;
        all.put(free, Registered { userfaultfd: userfaultfd.clone(), forked_from: None })?;
        Ok(free)
    }

    /// The one with this number.
    fn get(&self, number: UserfaultfdNumber) -> Option<Counted<Userfaultfd>> {
        self.0.read().get(number).map(|registered| registered.userfaultfd.clone())
    }

    /// Ends the use of the number of `userfaultfd`, which is one of this space, and which no area has any more.
    fn forget(&self, userfaultfd: &Userfaultfd) {
        let mut all = self.0.write();
        let registered = userfaultfd.number().and_then(|number| all.take(number));
        userfaultfd.number.store(UserfaultfdNumber::NONE.0, Ordering::Relaxed);
        drop(all);
        drop(registered);
    }

    /// Forgets all: the space ends.
    pub(super) fn clear(&self) {
        let mut all = self.0.write();
        let none = Places::new(all.places.frames());
        let before = core::mem::replace(&mut *all, none);
        drop(all);
        drop(before);
    }
}

/// Where the part of `range` ends that `areas`, which have its start, own.
fn part_end(areas: &Areas, range: PageRange) -> VirtAddr {
    areas.next().map_or(range.end(), |next| next.min(range.end()))
}
