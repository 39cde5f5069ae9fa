//! Why a call on a space or an object failed, or a fault.

use thiserror::Error;

use crate::mm::OutOfMemory;

/// Why a call on an object failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ObjectError {
    /// A seal forbids it.
    #[error("a seal of the file forbids it")]
    Sealed,
    /// The file would be larger than files may be.
    #[error("the file would be too large")]
    TooLarge,
    /// It is mapped such that it may be written.
    #[error("the file is mapped for writing")]
    Busy,
    /// A signal ends the program.
    #[error("a signal ends the program")]
    Interrupted,
    /// It is counted with others, which have as many pages as they may.
    #[error("the files have all the pages that they may have")]
    NoRoom,
    /// There is no memory.
    #[error("out of memory")]
    OutOfMemory,
}

impl From<OutOfMemory> for ObjectError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Why a call on a space failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SpaceError {
    /// An argument is no page address, no length, or a range that no space has.
    #[error("the range is no range of pages of a space")]
    Invalid,
    /// Memory, addresses or a limit ran out; or the range has pages that are in no area.
    #[error("no memory, no addresses, or pages that are not mapped")]
    NoMemory,
    /// The range lies where a program may map nothing, or the file may not be mapped so.
    #[error("a program may map nothing there, or not so")]
    NotPermitted,
    /// The file that is mapped there may not be accessed so; or execute-only pages and registers of a device would be in
    /// one space.
    #[error("the file may not be accessed so, or execute-only pages would be beside registers of a device")]
    NotAllowed,
    /// The mapping is of registers, and not of memory.
    #[error("what is mapped there is no memory")]
    NoMemoryFile,
    /// The range is not free.
    #[error("the range is in use")]
    InUse,
    /// Pages are locked.
    #[error("pages are locked")]
    Locked,
    /// A page is missing that a userfaultfd is asked for.
    #[error("a page is missing that a userfaultfd is asked for")]
    Missing,
    /// There are too many areas: advice that needs more is not taken.
    #[error("too many areas")]
    NoRecords,
    /// A page is a guard, or after the end of its file.
    #[error("a page is a guard, or behind the end of its file")]
    Unusable,
    /// The memory of a page is gone.
    #[error("the memory of a page is gone")]
    Poisoned,
    /// The program is about to end.
    #[error("interrupted")]
    Interrupted,
    /// The address is in no area, and no stack can grow to it.
    #[error("the address is in no area")]
    NoArea,
}

impl From<OutOfMemory> for SpaceError {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

/// Why the areas of a part refuse a change, before anything is changed.
pub(super) enum Refusal {
    /// The part has no room for it: all parts together decide.
    ByPart,
    /// All of them would refuse it too.
    Final(SpaceError),
}

impl From<SpaceError> for Refusal {
    fn from(error: SpaceError) -> Self {
        Self::Final(error)
    }
}

impl From<OutOfMemory> for Refusal {
    fn from(error: OutOfMemory) -> Self {
        Self::Final(error.into())
    }
}

impl From<Refusal> for SpaceError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::ByPart => Self::NoMemory,
            Refusal::Final(error) => error,
        }
    }
}

/// Why a fault cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FaultError {
    /// Nothing is mapped there: SIGSEGV with `SEGV_MAPERR`.
    #[error("nothing is mapped there")]
    NotMapped,
    /// A guard is there: the same signal, and no stack grows over it.
    #[error("a guard is there")]
    Guard,
    /// The area does not allow it: SIGSEGV with `SEGV_ACCERR`.
    #[error("not allowed there")]
    NotAllowed,
    /// There is no memory for the page.
    #[error("out of memory")]
    OutOfMemory,
    /// The entry cannot serve an access, or the object ends before the page: SIGBUS.
    #[error("the page cannot be used")]
    Unusable,
    /// Its memory is gone: SIGBUS with `BUS_MCEERR_AR`.
    #[error("the memory of the page is gone")]
    Poisoned,
    /// A pager may have to serve it. The caller [waits](super::Space::userfault) for that, where it can: that looks at
    /// the entry under the lock of its table first.
    #[error("a pager has to serve it")]
    Userfault,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
