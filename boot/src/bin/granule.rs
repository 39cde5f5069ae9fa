//! placeholder: until the panic handler, the heap and the monitor are here.

#![cfg_attr(target_os = "none", no_std, no_main)]

granule_boot::entry!(|| loop {
    granule_arch::wait::wfi();
});

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
