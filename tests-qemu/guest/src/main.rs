//! The tests on the target: the kernel's own image, with a list of tests in place of the monitor.
//!
//! [`harness`] runs what the boot arguments choose and tells the runner on the host how it went; docs/TESTING.md is the
//! whole story. The other modules are the tests, by the part of the kernel that they test; [`misbehaving`] holds guests
//! that lie, for the runner's own tests.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod harness;
#[cfg(target_os = "none")]
mod misbehaving;
#[cfg(target_os = "none")]
mod trap;

granule_boot::entry!(crate::harness::run);

// Until the kernel's heap is here.
#[cfg(target_os = "none")]
mod no_heap {
    use core::alloc::{GlobalAlloc, Layout};
    struct NoHeap;
    // SAFETY: never hands out memory.
    unsafe impl GlobalAlloc for NoHeap {
        unsafe fn alloc(&self, _: Layout) -> *mut u8 {
            core::ptr::null_mut()
        }
        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }
    #[global_allocator]
    static NO_HEAP: NoHeap = NoHeap;
}
