//! The parts of a value over all addresses, the kernel's own source, with a value of a few pages.

use std::vec::Vec;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_pgtable::PageRange;

use crate::Watched;
use crate::smp::{self, CpuId};

pub use granule::mm::space::{Access, FaultError, FaultMode};

pub(crate) use crate::iommu::space::{RESERVED_END, RESERVED_START, ReservedPages, SpaceHandle, handle_fault};
pub use crate::iommu::space::{Space, SpaceRef};

#[allow(dead_code, reason = "the notifiers' readers and arenas are the kernel's alone")]
#[path = "../../../src/mm/space/parts.rs"]
mod parts;

#[allow(dead_code, unreachable_pub, reason = "few calls fail here")]
#[path = "../../../src/mm/space/error.rs"]
mod error;

/// The kernel's folder.
#[allow(dead_code, unreachable_pub, reason = "what calls and faults know of areas is the kernel's alone")]
#[path = "../../../src/mm/space"]
mod shipped {
    pub(super) mod area;
    pub(super) mod node_policy;

    /// The contents of an area.
    pub(super) mod shmem {
        pub(super) mod mappers;
        #[allow(
            dead_code,
            clippy::duplicate_mod,
            reason = "no page migrates here, and none is a block; another has both"
        )]
        mod pages;
        #[path = "../../../../loom/src/mm/space/reverse_map.rs"]
        pub(in super::super) mod reverse_map;

        pub(super) use reverse_map::Object;
    }

    pub(super) mod address_space {
        pub(in super::super) use super::shmem::reverse_map::Space;
    }

    /// A replacement for userfaultfds: there are none.
    mod userfault {
        #[derive(Clone, Copy)]
        pub(super) struct UserfaultfdNumber(pub(super) u16);
    }

    use super::range;
    use crate::mm::look;
}
pub use shipped::shmem::reverse_map::{Shared, Steps};
use shipped::{address_space, area};

mod range {
    use granule_arch::addr::{PAGE, VirtAddr};
    use granule_pgtable::PageRange;

    pub(super) const STACK_GUARD: u64 = 256 * PAGE;

    pub(super) fn pages(start: VirtAddr, end: VirtAddr) -> PageRange {
        PageRange::new(start, end - start).expect("page aligned, and in order")
    }
}

/// A replacement for the kernel's pools.
mod part_pools {
    use std::ptr::NonNull;

    use granule_arch::addr::PhysAddr;

    use super::parts::{Index, Part};

    /// So that a part is used again, and few words are watched.
    pub(super) const MOST: usize = 4;

    pub(super) struct PartPools<A>(std::marker::PhantomData<fn(A)>);

    #[allow(unsafe_code, reason = "keeps the signatures, and gives back what it has leaked")]
    impl<A> PartPools<A> {
        pub(super) const NEW: Self = Self(std::marker::PhantomData);

        pub(super) fn new_part(&self, part: Part<A>) -> Option<NonNull<Part<A>>> {
            Some(NonNull::from(Box::leak(Box::new(part))))
        }

        pub(super) unsafe fn free_part(&self, part: NonNull<Part<A>>) {
            // SAFETY: leaked above, and nothing refers to it.
            drop(unsafe { Box::from_raw(part.as_ptr()) });
        }

        pub(super) fn new_index(&self, make: impl FnOnce(PhysAddr) -> Index<A>) -> Option<NonNull<Index<A>>> {
            Some(NonNull::from(Box::leak(Box::new(make(PhysAddr(0))))))
        }

        pub(super) unsafe fn free_index(&self, index: NonNull<Index<A>>) {
            // SAFETY: leaked above, and nothing refers to it.
            drop(unsafe { Box::from_raw(index.as_ptr()) });
        }
    }
}

use part_pools::PartPools;
use parts::{Divisible, Parts};
use range::pages;

/// A number for each page from one address to another, which loom watches.
struct Numbers {
    from: u64,
    to: u64,
    numbers: Vec<(u64, Watched<u32>)>,
}

impl Numbers {
    fn of(&self, page: u64) -> &Watched<u32> {
        &self.numbers.iter().find(|(number, _)| *number == page).expect("the part that owns the page has its number").1
    }
}

fn address(page: u64) -> VirtAddr {
    VirtAddr(page * PAGE)
}

impl Divisible for Numbers {
    const NOTHING: Self = Self { from: u64::MAX, to: 0, numbers: Vec::new() };

    fn owns(&self, page: VirtAddr) -> bool {
        (self.from..self.to).contains(&page.0)
    }

    fn has(&self, range: PageRange) -> bool {
        self.owns(range.start()) && range.last().0 < self.to
    }

    fn next(&self) -> Option<VirtAddr> {
        (self.to != u64::MAX).then_some(VirtAddr(self.to))
    }

    fn join(&mut self, above: &mut Self) {
        assert_eq!(self.to, above.from, "the part that follows");
        self.to = above.to;
        (above.from, above.to) = (u64::MAX, 0);
        self.numbers.append(&mut above.numbers);
    }

    fn split(&mut self, at: VirtAddr, above: &mut Self) {
        assert!(above.numbers.is_empty() && self.from < at.0 && at.0 < self.to);
        (above.from, above.to) = (at.0, self.to);
        self.to = at.0;
        let (low, high) = std::mem::take(&mut self.numbers).into_iter().partition(|(page, _)| address(*page) < at);
        (self.numbers, above.numbers) = (low, high);
    }
}

/// Numbers of pages, in parts.
pub struct Pages(Parts<Numbers>);

static POOLS: PartPools<Numbers> = PartPools::NEW;

impl Pages {
    /// So many, all 0, in one part.
    pub fn new(pages: u64) -> Self {
        let numbers = (0..pages).map(|page| (page, Watched::default())).collect();
        Self(Parts::new(Numbers { from: 0, to: u64::MAX, numbers }))
    }

    /// Adds 1 to the number of `page`.
    pub fn add(&self, page: u64) {
        let part = self.0.write(pages(address(page), address(page + 1)), |_, _| ());
        let number = part.of(page);
        number.write(number.read() + 1);
    }

    /// The number of `page`.
    pub fn read(&self, page: u64) -> u32 {
        self.0.read(address(page)).of(page).read()
    }

    /// As [`Self::read`], by a brief reader of a CPU of its own, as a fault finds its area.
    #[allow(unsafe_code, reason = "a guard by the slot of a CPU")]
    pub fn look(&self, page: u64) -> u32 {
        loop {
            // SAFETY: no other thread reads so on that CPU, and this one does not sleep before the guard is dropped.
            let part = unsafe { self.0.look_briefly(smp::cpu(CpuId(1)).expect("a second CPU"), address(page)) };
            if part.owns(address(page)) {
                return part.of(page).read();
            }
            drop(part);
            self.0.wait_for_index();
        }
    }

    /// Adds 1 to the numbers of the pages from `first` to `last`, in one part.
    pub fn add_to_all(&self, first: u64, last: u64) {
        let part = self.0.write(pages(address(first), address(last + 1)), |_, _| ());
        for page in first..=last {
            part.of(page).write(part.of(page).read() + 1);
        }
    }

    /// Divides the part that owns `page` there, unless it begins there.
    pub fn divide(&self, page: u64) {
        let mut part = self.0.write(pages(address(page), address(page + 1)), |_, _| ());
        if part.from != address(page).0 {
            drop(self.0.split(&mut part, address(page), &POOLS));
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.0.end(&POOLS);
    }
}
