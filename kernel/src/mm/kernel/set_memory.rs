//! `set_memory_*`: the permissions of pages, changed in place by their owner.
//!
//! Linux's contracts (`arch/arm64/mm/pageattr.c`), and more: a range is checked whole before the first store, so
//! that an error leaves every page as it was; the check sees holes; `rox` is one call that fails as a whole.
//!
//! No lock is taken, nothing sleeps, and an interrupt handler may call it: the caller owns the range, and that is all
//! that serialises. With `split=stop-machine`, a change that cuts a leaf parks all other CPUs for a moment, and is refused
//! where that cannot be, in a handler above all. Whether pages may be changed at all is written in their descriptors
//! (`bits::VM_ALLOC`), so asking costs nothing, and since an unmapped page lies between any two areas, a range without
//! holes is inside one.
//!
//! Areas that do not own their frames, from `vmap` and of registers, have `bits::VM_MAP` in its place, and are looked at
//! when the change was refused for want of the first ([`KernelSpace::change_mapped`]): all but execution may change
//! there. (Linux refuses all with `EINVAL`.)
//!
//! Writability changes in their alias in the linear map, too, unless `rodata=` excludes it: see
//! [`super::alias`].

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_arch::patched_branch;
use granule_pgtable::{Change, Error, Lazy, PageRange};
use thiserror::Error;

use super::alias::{ReadOnly, ReadWrite, Writability};
use super::area::AreaKind;
use super::owners::RangeOwnerCheck;
use super::split::LeafSplitter;
use super::{KernelSpace, alias};
use crate::lab;
use crate::mm::layout::{self, VMALLOC_END, VMALLOC_START};
use crate::platform::features::branch;

/// Why a change was refused. Every page is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SetMemoryError {
    /// Not page aligned, or wrapping, or not canonical.
    #[error("{0}")]
    Range(Error),
    /// Not where areas are.
    #[error("{0} is outside the vmalloc window ({VMALLOC_START} to {VMALLOC_END})")]
    OutsideWindow(VirtAddr),
    /// A page that belongs to no area.
    #[error("nothing is mapped at {0}")]
    Hole(VirtAddr),
    /// The page after the last of an area.
    #[error("{guard} is the guard page of the area at {area}")]
    GuardPage {
        /// The guard page.
        guard: VirtAddr,
        /// First address of the area in front of it.
        area: VirtAddr,
    },
    /// A page whose permissions are fixed: a stack.
    #[error("the page at {0} is not from vmalloc; its permissions are fixed")]
    NotVmalloc(VirtAddr),
    /// A page of an area that does not own its frames: given to `vmap`, or registers.
    #[error("the frame at {0} is not the area's own and never becomes executable there")]
    NeverExecutable(VirtAddr),
    /// A read-only page of the linear map: of an area or of the image, where its frame may be executable.
    #[error(
        "the page at {0} is read-only, and only the owner of the area or image that its frame is of makes it writable"
    )]
    ReadOnly(VirtAddr),
    /// The page would be writable and executable.
    #[error("{0} would be writable and executable: make it read-only, or not executable, first")]
    WritableAndExecutable(VirtAddr),
    /// A block or contiguous group that the range cuts, where live leaves are not split.
    #[error(
        "the leaf of {size:#x} bytes at {leaf} is only partly in the range, and live leaves are not split here: \
         change all of it, or none"
    )]
    Partial {
        /// The first address that the leaf translates.
        leaf: VirtAddr,
        /// Its bytes.
        size: u64,
    },
    /// A block or contiguous group that the range cuts, which takes all other CPUs parked, from where they cannot be.
    #[error(
        "the leaf of {size:#x} bytes at {leaf} is only partly in the range, and it is split with all other CPUs parked: \
         change all of it, or change it from a thread, with interrupts on and no lock held that masks them"
    )]
    CannotStop {
        /// The first address that the leaf translates.
        leaf: VirtAddr,
        /// Its bytes.
        size: u64,
    },
    /// No memory for the tables that a split takes. In an interrupt handler that is what its CPU has in reserve.
    #[error("to split leaves takes {needed} tables, and there are frames for {available}")]
    OutOfTables {
        /// Tables that are needed.
        needed: usize,
        /// Frames that were available.
        available: usize,
    },
    /// The tables refused for another reason.
    #[error("{0}")]
    Tables(Error),
}

impl KernelSpace {
    /// Makes `pages` pages from `address` on read-only.
    ///
    /// # Errors
    /// [`SetMemoryError`], for this function and the others of its family. 0 pages are no error where `address` is in
    /// an area.
    pub fn set_memory_ro(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.set_writability::<ReadOnly>(address, pages)
    }

    /// Makes pages writable again.
    ///
    /// # Errors
    /// As [`Self::set_memory_ro`]; pages that are executable are refused.
    pub fn set_memory_rw(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.set_writability::<ReadWrite>(address, pages)
    }

    /// Makes pages executable at EL1.
    ///
    /// # Errors
    /// As [`Self::set_memory_ro`]; pages that are writable are refused.
    pub fn set_memory_x(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.set_memory(address, pages, Change::EXECUTABLE)
    }

    /// Forbids execution.
    ///
    /// # Errors
    /// As [`Self::set_memory_ro`].
    pub fn set_memory_nx(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.set_memory(address, pages, Change::NO_EXECUTE)
    }

    /// Makes pages read-only, and executable when no CPU can write them any more: an invalidation for each step that
    /// changes something. Both are checked before the first.
    ///
    /// # Errors
    /// As [`Self::set_memory_ro`].
    pub fn set_memory_rox(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        let range = window_range(address, pages)?;
        if pages == 0 {
            return self.check_owned(address);
        }
        let (changed, change) = (self.change_to_code(range), &Change::EXECUTABLE);
        changed.or_else(|error| self.retry_or_explain(error, range, change, Self::set_memory_rox))
    }

    fn change_to_code(&self, range: PageRange) -> Result<(), Error> {
        let (walk, lazy) = (self.tables(), Lazy::new(&self.mmu));
        let tables = walk.get();
        let with_alias = patched_branch!(branch::ALIAS) && !lab::is_on!(NO_ALIAS);
        let _owner = if with_alias { self.check_owner_with_alias(range) } else { RangeOwnerCheck::new(range) };
        let read_only = |change, splitter: &mut LeafSplitter<'_>| {
            if with_alias {
                return alias::update::update::<ReadOnly, _, _>(tables, &self.tlb, range, bits::VM_ALLOC, splitter);
            }
            lazy.invalidate(&self.tlb, [tables.update(&lazy, range, change, splitter)?]);
            Ok(())
        };
        tables.update_to_code(&lazy, &self.tlb, range, bits::VM_ALLOC, &mut LeafSplitter(self), read_only)
    }

    /// Lets the hardware use pages, or has it fault on them; all else that is known of them stays.
    ///
    /// In the linear map as well, where there are no areas: the caller owns the memory. Leaves are split there if
    /// need be.
    ///
    /// # Errors
    /// As [`Self::set_memory_ro`].
    pub fn set_memory_valid(&self, address: VirtAddr, pages: u64, validity: Validity) -> Result<(), SetMemoryError> {
        match (layout::is_linear(address), validity) {
            (true, Validity::Valid) => self.set_linear_valid(address, pages),
            (true, Validity::Invalid) => self.set_linear_invalid(address, pages),
            (false, _) => self.set_memory(address, pages, validity.change()),
        }
    }

    // Out of line, each with a change that the compiler knows, so that the path of areas keeps a small frame.

    #[inline(never)]
    fn set_linear_valid(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.change_owned(page_range(address, pages)?, pages, 0, Change::VALID)
    }

    #[inline(never)]
    fn set_linear_invalid(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        self.change_owned(page_range(address, pages)?, pages, 0, Change::INVALID)
    }

    #[inline(always)]
    fn set_writability<W: Writability>(&self, address: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
        if patched_branch!(branch::ALIAS) && !lab::is_on!(NO_ALIAS) {
            self.set_memory_and_alias::<W>(address, pages)
        } else {
            self.set_memory(address, pages, W::CHANGE)
        }
    }

    #[inline(never)]
    fn set_memory(&self, address: VirtAddr, pages: u64, change: Change) -> Result<(), SetMemoryError> {
        self.change_owned(window_range(address, pages)?, pages, bits::VM_ALLOC, change)
    }

    /// Changes the leaves of `range`, which is `pages` pages, if these have the software bits `marks`.
    #[inline(always)]
    fn change_owned(&self, range: PageRange, pages: u64, marks: u64, change: Change) -> Result<(), SetMemoryError> {
        if pages == 0 {
            return if marks == 0 { Ok(()) } else { self.check_owned(range.start()) };
        }
        let change = change.require_bits(marks);
        let lazy = Lazy::new(&self.mmu);
        let _owner = RangeOwnerCheck::new(range);
        let tables = self.tables();
        let changed = tables.get().look(range, &change, &mut LeafSplitter(self)).map(|ready| ready.commit(&lazy));
        // The stores are made. A table with them that is replaced concurrently is copied with them.
        drop(tables);
        match changed {
            Some(flush) => {
                lazy.invalidate(&self.tlb, Some(flush));
                Ok(())
            }
            None => self.change_in_steps(range, change),
        }
    }

    /// With a section and a walk of its own, so that those above need not lie in memory.
    #[inline(never)]
    fn change_in_steps(&self, range: PageRange, change: Change) -> Result<(), SetMemoryError> {
        let lazy = Lazy::new(&self.mmu);
        match self.update_in_steps(&lazy, range, change) {
            Ok(flush) => lazy.invalidate(&self.tlb, [flush]),
            Err(SetMemoryError::NotVmalloc(page)) if change.required_bits() == bits::VM_ALLOC => {
                return self.change_mapped(page, range, &change);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes `change` of a range whose page at `page` is not from `vmalloc`, if all its pages are of an area that does not
    /// own its frames: they may not become executable, and their alias stays as it is. The range is on record.
    ///
    /// # Errors
    /// [`SetMemoryError`]: every page is as it was.
    #[cold]
    #[inline(never)]
    pub(super) fn change_mapped(
        &self,
        page: VirtAddr,
        range: PageRange,
        change: &Change,
    ) -> Result<(), SetMemoryError> {
        if !change.makes_executable() {
            return self.change_in_steps(range, change.require_bits(bits::VM_MAP));
        }
        let found = self.tables().translate(page);
        let is_mapped = found.is_some_and(|found| found.descriptor.0 & bits::VM_MAP != 0);
        Err(if is_mapped { SetMemoryError::NeverExecutable(page) } else { self.explain(Error::NotMarked(page)) })
    }

    /// No pages in an area is success, as in Linux; anywhere else it is not.
    #[cold]
    pub(super) fn check_owned(&self, address: VirtAddr) -> Result<(), SetMemoryError> {
        match self.tables().translate(address) {
            None => Err(self.explain(Error::NotMapped(address))),
            Some(found) if found.descriptor.0 & (bits::VM_ALLOC | bits::VM_MAP) == 0 => {
                Err(self.explain(Error::NotMarked(address)))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether the area of `page` was freed and waits for its invalidation, as far as that is known without waiting.
    fn is_freed(&self, page: VirtAddr) -> bool {
        let areas = self.areas.try_lock(page);
        areas.is_some_and(|areas| areas.find(page).is_some_and(|area| area.kind() == AreaKind::Freeing))
    }

    /// Finds which kind of hole a hole is. The lock of areas is only tried, so that this may run anywhere.
    #[cold]
    pub(super) fn explain(&self, error: Error) -> SetMemoryError {
        match error {
            Error::NotMapped(hole) => {
                let below = VirtAddr(hole.0.wrapping_sub(1));
                let area = self
                    .areas
                    .try_lock(below)
                    .and_then(|areas| areas.find(below).filter(|area| area.end() == hole).map(|area| area.start()));
                area.map_or(SetMemoryError::Hole(hole), |area| SetMemoryError::GuardPage { guard: hole, area })
            }
            Error::NotMarked(page) if self.is_freed(page) => SetMemoryError::Hole(page),
            Error::NotMarked(page) => SetMemoryError::NotVmalloc(page),
            Error::WritableAndExecutable(page) => SetMemoryError::WritableAndExecutable(page),
            Error::ReadOnly(page) => SetMemoryError::ReadOnly(page),
            Error::Straddles { leaf, size } => SetMemoryError::Partial { leaf, size },
            Error::OutOfTables { needed, available } => SetMemoryError::OutOfTables { needed, available },
            other => SetMemoryError::Tables(other),
        }
    }
}

/// The pages of a call; one where it has none, so that a bad address is refused all the same.
#[inline(always)]
pub(super) fn page_range(address: VirtAddr, pages: u64) -> Result<PageRange, SetMemoryError> {
    PageRange::from_pages(address, pages.max(1) as usize).map_err(SetMemoryError::Range)
}

/// As [`page_range`], and an error where a page is outside the vmalloc window.
#[inline(always)]
pub(super) fn window_range(address: VirtAddr, pages: u64) -> Result<PageRange, SetMemoryError> {
    let window = PageRange::new(VMALLOC_START, VMALLOC_END - VMALLOC_START).map_err(SetMemoryError::Range)?;
    window.part(address, pages).map_or_else(|| no_part_of_window(address, pages), Ok)
}

/// Why those pages are not in the window, if there are any. One page where there are none.
#[cold]
#[inline(never)]
fn no_part_of_window(address: VirtAddr, pages: u64) -> Result<PageRange, SetMemoryError> {
    let range = page_range(address, pages)?;
    if range.start() < VMALLOC_START || range.last() >= VMALLOC_END {
        let outside =
            if range.start() < VMALLOC_START || range.start() >= VMALLOC_END { range.start() } else { VMALLOC_END };
        return Err(SetMemoryError::OutsideWindow(outside));
    }
    Ok(range)
}

/// Whether the hardware may use a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Validity {
    /// It translates.
    Valid,
    /// It faults, and is remembered.
    Invalid,
}

impl Validity {
    /// The change of entries that makes it so.
    pub(super) const fn change(self) -> Change {
        match self {
            Self::Valid => Change::VALID,
            Self::Invalid => Change::INVALID,
        }
    }
}
