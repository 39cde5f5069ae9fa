//! The kernel with its monitor.

#![cfg_attr(target_os = "none", no_std, no_main)]

granule_boot::entry!(granule::monitor::run);

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
