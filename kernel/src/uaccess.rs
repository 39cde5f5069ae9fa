//! The kernel's access to memory of EL0.
//!
//! By LDTR and STTR, or their like of FEAT_MOPS: the hardware allows what it would allow EL0 itself, whatever the
//! address, and PAN stays on. A fault goes to the thread's [`resolve`](crate::sched::UserEntry::resolve), which may
//! sleep; what it cannot resolve is [`AccessError::Fault`]. Where interrupts are masked, as under a spinning lock,
//! nothing is resolved: then a page that is merely not there yet is a fault, too, and the caller tries again without
//! the lock.
//!
//! Tags are checked as the thread has its own accesses checked (`crate::sched::TagChecks`): a mismatch that faults is
//! [`AccessError::Fault`], and one that is recorded is none.
//!
//! An access that fails may have been made in part.

#![allow(unsafe_code, reason = "accesses to memory of EL0 that may fault, in assembly")]

#[cfg_attr(not(target_os = "none"), path = "uaccess/host.rs")]
mod machine;
#[cfg(test)]
pub(crate) use machine::with_contents;

use granule_arch::addr::VirtAddr;
use granule_arch::mte::GRANULE;

use thiserror::Error;

/// Why an access to memory of EL0 was not made, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AccessError {
    /// EL0 itself may not access the address.
    #[error("bad address")]
    Fault,
    /// An access of a word is not aligned to its size.
    #[error("the address of a word is not aligned")]
    Unaligned,
}

/// Whether a fault that continues at `pc` is of an access here, on either side of it: with FEAT_MOPS one instruction
/// reads one side and writes the other. Only EL0's side may fault.
pub(crate) fn is_fixup(pc: u64) -> bool {
    machine::is_fixup(pc)
}

/// The first address that is not EL0's.
pub const END: VirtAddr = VirtAddr(1 << 48);

/// Whether these bytes are at addresses of EL0. A tag in the top byte, which the hardware ignores, is accepted where
/// the running thread has asked for that.
pub fn is_user_range(start: VirtAddr, bytes: usize) -> bool {
    is_range(start, bytes) || start.untagged() != start && accepts_tags() && is_range(start.untagged(), bytes)
}

fn is_range(start: VirtAddr, bytes: usize) -> bool {
    start.0.checked_add(bytes as u64).is_some_and(|end| end <= END.0)
}

#[cold]
fn accepts_tags() -> bool {
    machine::accepts_tags()
}

/// Copies from memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
#[inline]
pub fn copy_from_user(to: &mut [u8], from: VirtAddr) -> Result<(), AccessError> {
    checked(from, to.len())?;
    // SAFETY: the slice is the caller's, and the other side is EL0's or faults.
    outcome(unsafe { machine::copy_from(to.as_mut_ptr(), from.0, to.len()) })
}

/// Copies words from memory of EL0, of any alignment.
///
/// # Errors
/// [`AccessError::Fault`].
#[inline(always)]
pub fn read_quads<const N: usize>(from: VirtAddr) -> Result<[u64; N], AccessError> {
    let mut quads = [[0; 8]; N];
    copy_from_user(quads.as_flattened_mut(), from)?;
    Ok(quads.map(u64::from_le_bytes))
}

/// Copies from memory of EL0 up to the first granule of tags that cannot be read, or the first page; returns how many
/// bytes were copied.
pub fn copy_from_user_up_to(to: &mut [u8], from: VirtAddr) -> usize {
    if copy_from_user(to, from).is_ok() {
        return to.len();
    }
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = from.0.wrapping_add(done as u64);
        let bytes = rest.len().min((GRANULE - at % GRANULE) as usize);
        let Some(granule) = rest.get_mut(..bytes) else { break };
        if copy_from_user(granule, VirtAddr(at)).is_err() {
            break;
        }
        done += bytes;
    }
    done
}

/// Copies to memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
pub fn copy_to_user(to: VirtAddr, from: &[u8]) -> Result<(), AccessError> {
    checked(to, from.len())?;
    // SAFETY: as above.
    outcome(unsafe { machine::copy_to(to.0, from.as_ptr(), from.len()) })
}

/// Copies to memory of EL0 up to the first byte that cannot be written; returns how many bytes were copied.
pub fn copy_to_user_up_to(to: VirtAddr, from: &[u8]) -> usize {
    if copy_to_user(to, from).is_ok() {
        return from.len();
    }
    // Somewhere in it: byte by byte, because a fault of a larger access only means that not all of it can be made.
    let byte = |(offset, byte): &(usize, &u8)| {
        let at = VirtAddr(to.0.wrapping_add(*offset as u64));
        copy_to_user(at, core::slice::from_ref(byte)).is_ok()
    };
    from.iter().enumerate().take_while(byte).count()
}

/// Zeroes memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
pub fn clear_user(to: VirtAddr, bytes: usize) -> Result<(), AccessError> {
    checked(to, bytes)?;
    // SAFETY: what is written is EL0's, or faults.
    outcome(unsafe { machine::clear(to.0, bytes) })
}

/// A word of EL0, by a single load.
///
/// # Errors
/// [`AccessError::Fault`]; [`AccessError::Unaligned`] where it is not aligned.
pub fn get_u32(from: VirtAddr) -> Result<u32, AccessError> {
    checked_word::<u32>(from)?;
    let mut value = 0;
    // SAFETY: the value is this function's, and the other side is EL0's or faults.
    outcome(unsafe { machine::get_word(&mut value, from.0) }).map(|()| value)
}

/// Stores a word of EL0, by a single store.
///
/// # Errors
/// [`AccessError::Fault`]; [`AccessError::Unaligned`] where it is not aligned.
pub fn put_u32(to: VirtAddr, value: u32) -> Result<(), AccessError> {
    checked_word::<u32>(to)?;
    // SAFETY: what is written is EL0's, or faults.
    outcome(unsafe { machine::put_word(to.0, value) })
}

fn checked(start: VirtAddr, bytes: usize) -> Result<(), AccessError> {
    if is_user_range(start, bytes) { Ok(()) } else { Err(AccessError::Fault) }
}

fn checked_word<T>(at: VirtAddr) -> Result<(), AccessError> {
    checked(at, size_of::<T>())?;
    if at.0.is_multiple_of(align_of::<T>() as u64) { Ok(()) } else { Err(AccessError::Unaligned) }
}

fn outcome(faulted: u64) -> Result<(), AccessError> {
    if faulted == 0 { Ok(()) } else { Err(AccessError::Fault) }
}
