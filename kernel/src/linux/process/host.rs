//! On the host there are no programs.

use super::signal::Signal;
use super::stack::Words;
use super::status::{ExecError, PathError, ProcessEnd, Summary};
use crate::chip::console::Family;
use crate::linux::errno::Errno;
use crate::mm::space::SpaceRef;

/// Starts nothing.
///
/// # Errors
/// Always.
pub fn start(_path: &str, _words: Words) -> Result<u32, ExecError> {
    Err(ExecError::Path(PathError::NotFound))
}

/// Waits for nothing.
pub fn wait_with(_id: u32, _pause: impl FnMut()) -> Option<ProcessEnd> {
    None
}

/// Finds no process to send a signal to.
///
/// # Errors
/// Always.
pub fn kill(_id: u32, _signal: Signal) -> Result<(), Errno> {
    Err(Errno::ESRCH)
}

/// Finds no process.
pub fn family_of(_id: u32) -> Option<Family> {
    None
}

/// Finds no process to send a signal to.
///
/// # Errors
/// Always.
pub fn kill_family(_family: Family, _signal: Signal) -> Result<(), Errno> {
    Err(Errno::ESRCH)
}

/// Finds none.
pub fn for_each(_each: &mut dyn FnMut(&Summary)) {}

/// Finds none.
pub fn space_of(_id: u32) -> Option<SpaceRef> {
    None
}
