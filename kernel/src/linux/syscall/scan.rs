//! `PAGEMAP_SCAN`, the call of `/proc/PID/pagemap`: its structure, and where its regions go. [`Space::scan`] does the work.
//!
//! [`Space::scan`]: crate::mm::space::Space::scan

use core::mem::offset_of;

use granule_abi::memory::{
    PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_HUGE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WPALLOWED,
    PAGE_IS_WRITTEN, PAGEMAP_SCAN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, PageRegion, PmScanArg,
};
use granule_arch::addr::{PAGE, VirtAddr};

use super::{Answer, Syscall, read_quads, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::proc::Pagemap;
use crate::mm::space::SpaceHandle;
use crate::mm::space::scan::{self, Region, Scan, ScanError, ScanRequest};
use crate::sched::relax;
use crate::smp::this_cpu;

const _: () = assert!(
    scan::WP_ALLOWED == PAGE_IS_WPALLOWED
        && scan::WRITTEN == PAGE_IS_WRITTEN
        && scan::OF_FILE == PAGE_IS_FILE
        && scan::PRESENT == PAGE_IS_PRESENT
        && scan::SWAPPED == PAGE_IS_SWAPPED
        && scan::ZEROS == PAGE_IS_PFNZERO
        && scan::OF_BLOCK == PAGE_IS_HUGE
        && scan::GUARD == PAGE_IS_GUARD
);

/// All categories.
const CATEGORIES: u64 = (PAGE_IS_GUARD << 1) - 1;
/// Where the structure has its end of the walk.
const WALK_END: u64 = offset_of!(PmScanArg, walk_end) as u64;
/// Linux's `TASK_SIZE_MAX` for 52-bit addresses: a range may end there, however many of them tables translate.
const LARGEST_END: u64 = 1 << 52;
/// Bytes of a region.
const REGION: usize = size_of::<PageRegion>();

impl From<ScanError> for Errno {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::NotPermitted => Self::EPERM,
            ScanError::OutOfMemory => Self::ENOMEM,
        }
    }
}

/// The calls on a file of pages.
#[cold]
#[inline(never)]
pub(super) fn ioctl(call: &Syscall<'_>, of: &Pagemap, command: u32, at: VirtAddr) -> Answer {
    if command != PAGEMAP_SCAN {
        return Err(Errno::EINVAL);
    }
    let arg = read_quads(at)?;
    let (mut scan, end, mut to) = begin(&arg)?;
    let (mut found, mut walk_end, start) = (0, end, scan.next());
    let done = loop {
        // A space that has ended has nothing.
        let Some(space) = of.space().and_then(SpaceHandle::upgrade).filter(|_| !scan.is_done()) else { break Ok(()) };
        let scanned =
            if call.is_killed() { Err(Errno::EINTR) } else { space.scan(this_cpu(), &mut scan).map_err(Errno::from) };
        drop(space);
        relax();
        if scanned.is_ok() && !scan.is_full() && !scan.is_done() {
            continue;
        }
        let bytes = store(to, scan.regions());
        (walk_end, found) = (scan.next(), found + scan.regions().len() as u64);
        match (bytes, scanned) {
            (Err(error), _) => break Err(error),
            (_, Err(error)) => {
                walk_end = end;
                break Err(error);
            }
            (Ok(bytes), Ok(())) => to = VirtAddr(to.0.wrapping_add(bytes)),
        }
        if !scan.stored() {
            break Ok(());
        }
    };
    if scan.next() != start {
        // The missing frames are not this call's any more: made again, it would find what it has protected not written.
        call.thread.take_shortage();
    }
    write_quads(VirtAddr(at.0.wrapping_add(WALK_END)), [walk_end.0])?;
    done.map(|()| found)
}

/// Checks the structure in Linux's order (`pagemap_scan_get_args`); returns the scan that it asks for, its end,
/// and where its regions go.
fn begin(arg: &[u64; size_of::<PmScanArg>() / 8]) -> Result<(Scan, VirtAddr, VirtAddr), Errno> {
    let [size, flags, start, end, _, vector, room, most_pages, inverted, required, any, returned] = *arg;
    let is_known = flags & !(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC) == 0;
    if size != size_of_val(arg) as u64 || !is_known || (inverted | required | any | returned) & !CATEGORIES != 0 {
        return Err(Errno::EINVAL);
    }
    let [start, end, vector] = [start, end, vector].map(|address| VirtAddr(address).untagged());
    if !start.is_aligned(PAGE) {
        return Err(Errno::EINVAL);
    }
    let is_users = |from: VirtAddr, bytes| LARGEST_END.checked_sub(from.0).is_some_and(|most| bytes <= most);
    if !is_users(start, end.0.wrapping_sub(start.0)) {
        return Err(Errno::EFAULT);
    }
    if vector.0 == 0 && room != 0 {
        return Err(Errno::EINVAL);
    }
    if !is_users(vector, room.saturating_mul(REGION as u64)) {
        return Err(Errno::EFAULT);
    }
    let request = ScanRequest {
        inverted,
        required,
        any,
        returned,
        protects: flags & PM_SCAN_WP_MATCHING != 0,
        is_strict: flags & PM_SCAN_CHECK_WPASYNC != 0,
        has_regions: room != 0,
    };
    let end = VirtAddr(end.0.next_multiple_of(PAGE));
    let most_pages = if most_pages == 0 { u64::MAX } else { most_pages };
    Ok((Scan::new(request, start, end, most_pages, room), end, vector))
}

/// Stores regions at the address `to`; returns how many bytes they are.
fn store(to: VirtAddr, regions: &[Region]) -> Result<u64, Errno> {
    let mut bytes = 0;
    for region in regions {
        write_quads(VirtAddr(to.0.wrapping_add(bytes)), [region.start.0, region.end.0, region.categories])?;
        bytes += REGION as u64;
    }
    Ok(bytes)
}
