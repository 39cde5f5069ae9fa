//! The guarded heap, the kernel's own source: its gate, and pages whose validity loom watches.

#![allow(unsafe_code, reason = "a pool in the host's memory")]

/// The kernel's folder.
#[allow(dead_code, unreachable_pub, reason = "the report is the kernel's alone")]
#[path = "../../../src/mm/heap"]
mod shipped {
    pub(super) mod guarded;

    /// A replacement for return addresses.
    mod calls {
        #[derive(Clone, Copy)]
        pub(super) struct Calls<const DEPTH: usize>;

        impl<const DEPTH: usize> Calls<DEPTH> {
            pub(super) const NONE: Self = Self;

            pub(super) fn note(&mut self) {}
        }
    }
}

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};

use shipped::guarded::GuardedHeap;

use crate::Watched;
use crate::mm::kernel::set_memory::Validity;

/// The most objects of a pool.
const MOST: u16 = 2;

loom::lazy_static! {
    /// Whether the page of each object is valid.
    static ref VALID: [Watched<bool>; MOST as usize] = Default::default();
}

/// Of each object by its number, the only ones that change.
fn validity(page: VirtAddr) -> &'static Watched<bool> {
    &VALID[(page.0 / PAGE / 2) as usize % usize::from(MOST)]
}

/// Each change is by an invalidation, and for one page.
fn set_valid(page: VirtAddr, _: u64, to: Validity) -> bool {
    validity(page).write(to == Validity::Valid);
    true
}

/// A guarded heap.
pub struct Guarded {
    heap: GuardedHeap,
    memory: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is the pool's, which may be used from each CPU.
unsafe impl Send for Guarded {}
// SAFETY: as above.
unsafe impl Sync for Guarded {}

/// An object in use.
pub struct Guest(NonNull<u8>);

impl Guarded {
    const OBJECT: Layout = Layout::new::<u64>();

    /// So many objects, all free: 1 or 2.
    ///
    /// # Panics
    /// There is no memory.
    pub fn new(objects: u16) -> Self {
        let bytes = GuardedHeap::required_pages(objects) * PAGE_SIZE;
        let layout = Layout::from_size_align(bytes, PAGE_SIZE).expect("whole pages");
        // SAFETY: not empty.
        let memory = unsafe { alloc(layout) };
        let heap = GuardedHeap::new();
        // The gate becomes one of loom's.
        assert_eq!(heap.alloc(Self::OBJECT), Ok(None));
        // SAFETY: the pool's until the heap is dropped.
        unsafe { heap.init(VirtAddr(memory.expose_provenance() as u64), objects, set_valid) };
        Self { heap, memory, layout }
    }

    /// The timer's interrupt.
    pub fn open_gate(&self) -> bool {
        self.heap.open_gate()
    }

    /// An allocation, which gets an object if the gate is open.
    ///
    /// # Panics
    /// The object's page is not valid, or was written.
    pub fn alloc(&self) -> Option<Guest> {
        let object = self.heap.alloc(Self::OBJECT).expect("nothing writes to a free object")?;
        let page = VirtAddr(object.addr().get() as u64).align_down(PAGE);
        assert!(validity(page).read(), "an object in a page that is not valid");
        Some(Guest(object))
    }

    /// Its user frees it.
    ///
    /// # Panics
    /// It is not in use.
    pub fn free(&self, guest: Guest) {
        // SAFETY: not used any more.
        unsafe { self.heap.dealloc(guest.0.as_ptr(), Self::OBJECT) }.expect("the object is in use once");
    }

    /// Objects that are in use.
    pub fn in_use(&self) -> u16 {
        self.heap.stats().in_use
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, and not used any more.
        unsafe { dealloc(self.memory, self.layout) };
    }
}
