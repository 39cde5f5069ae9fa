//! On the host there is no EL0: every access faults, but for reads of what a test has there.

#![allow(unsafe_code, reason = "the contracts of the machine's functions")]

/// No fault is of an access.
pub(super) const fn is_fixup(_: u64) -> bool {
    false
}

/// No thread has asked for tags.
pub(super) const fn accepts_tags() -> bool {
    false
}

#[cfg(test)]
std::thread_local! {
    /// All bytes of the program that runs on this thread, if it has any.
    static CONTENTS: core::cell::Cell<Option<u8>> = const { core::cell::Cell::new(None) };
}

/// Runs `work` for a program of which every byte that can be read is `byte`.
#[cfg(test)]
pub(crate) fn with_contents<T>(byte: u8, work: impl FnOnce() -> T) -> T {
    CONTENTS.set(Some(byte));
    let result = work();
    CONTENTS.set(None);
    result
}

/// # Safety
/// `to` is the caller's, of so many bytes.
#[cfg(test)]
pub(super) unsafe fn copy_from(to: *mut u8, _: u64, bytes: usize) -> u64 {
    let Some(byte) = CONTENTS.get() else { return 1 };
    // SAFETY: the caller's promise.
    unsafe { to.write_bytes(byte, bytes) };
    0
}

macro_rules! faults {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        /// # Safety
        /// None: nothing is accessed.
        pub(super) unsafe fn $name($(_: $type),*) -> u64 {
            1
        }
    )*};
}

#[cfg(not(test))]
faults! {
    copy_from(to: *mut u8, from: u64, bytes: usize);
}

faults! {
    copy_to(to: u64, from: *const u8, bytes: usize);
    clear(to: u64, bytes: usize);
    get_word(to: &mut u32, from: u64);
    put_word(to: u64, value: u32);
}
