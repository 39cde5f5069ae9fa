//! On the host there are no programs.

use super::initrd::PathError;
use super::signal::Signal;
use super::stack::Words;
use super::status::{End, ExecError, Summary};
use crate::errno::Errno;
use crate::mm::space::SpaceRef;

/// Starts nothing.
///
/// # Errors
/// Always.
pub fn start(_path: &str, _words: Words) -> Result<u32, ExecError> {
    Err(ExecError::Path(PathError::NotFound))
}

/// Waits for nothing.
pub fn wait(_id: u32) -> Option<End> {
    None
}

/// Finds nobody to send a signal to.
///
/// # Errors
/// Always.
pub fn kill(_id: u32, _signal: Signal) -> Result<(), Errno> {
    Err(Errno::ESRCH)
}

/// Finds none.
pub fn for_each(_each: &mut dyn FnMut(&Summary)) {}

/// Finds none.
pub fn space_of(_id: u32) -> Option<SpaceRef> {
    None
}
