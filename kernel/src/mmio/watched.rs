//! In tests: a test's code at each access of this thread to a register. It records them, or is the device.

use std::boxed::Box;
use std::cell::RefCell;

use granule_arch::addr::VirtAddr;

/// An access to a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioAccess {
    /// It is about to be read.
    Read(VirtAddr),
    /// It was written.
    Write(VirtAddr, u64),
}

type Hook = Box<dyn FnMut(MmioAccess)>;

std::thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Runs `work`, and `hook` in front of each read and after each write of a register on this thread.
pub fn at_each_access<T>(hook: impl FnMut(MmioAccess) + 'static, work: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = work();
    HOOK.set(None);
    result
}

pub(super) fn note(access: MmioAccess) {
    if let Some(mut hook) = HOOK.take() {
        hook(access);
        HOOK.set(Some(hook));
    }
}
