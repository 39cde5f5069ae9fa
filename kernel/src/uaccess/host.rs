//! On the host there is no EL0: every access faults.

#![allow(unsafe_code, reason = "the contracts of the machine's functions")]

/// No fault is of an access.
pub(super) const fn is_fixup(_: u64) -> bool {
    false
}

/// No thread has asked for tags.
pub(super) const fn accepts_tags() -> bool {
    false
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

faults! {
    copy_from(to: *mut u8, from: u64, bytes: usize);
    copy_to(to: u64, from: *const u8, bytes: usize);
    clear(to: u64, bytes: usize);
    get_word(to: &mut u32, from: u64);
    put_word(to: u64, value: u32);
}
