//! Calls for memory: the checks that Linux makes before it reads the space are here, the others are the space's.
//!
//! Addresses of existing mappings lose their tag, even if the thread has not enabled that. Addresses for new mappings
//! of mmap and brk keep it, and are refused with it (Documentation/arch/arm64/tagged-address-abi.rst).

use granule_abi::memory::{
    MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MAP_ANONYMOUS, MAP_FIXED,
    MAP_FIXED_NOREPLACE, MAP_GROWSDOWN, MAP_HUGETLB, MAP_LOCKED, MAP_NONBLOCK, MAP_NORESERVE, MAP_POPULATE,
    MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;

use super::{Answer, Syscall};
use crate::linux::errno::Errno;
use crate::linux::process::oom::{self, Relief};
use crate::mm::space::{MapRequest, Placement, Populate, Sharing, SpaceLimits, Terms};
use crate::sched::{Work, relax};
use crate::smp::this_cpu;
use crate::uaccess;

const PAGE: u64 = PAGE_SIZE as u64;
/// Ignored here.
const PROT_SEM: u64 = 8;
/// `PROT_GROWSDOWN` and `PROT_GROWSUP`: both together are refused before all else.
const PROT_GROWS: u64 = 0x0300_0000;

fn protection(bits: u64) -> Protection {
    let one = |bit: u64, what: Protection| if bits & bit != 0 { what } else { Protection::NONE };
    one(PROT_READ, Protection::READ).and(one(PROT_WRITE, Protection::WRITE)).and(one(PROT_EXEC, Protection::EXECUTE))
}

/// Refusals in Linux's order: the file, then the address, then the kind of memory.
pub(super) fn mmap(call: &mut Syscall<'_>) -> Answer {
    let (address, bytes, bits, flags) =
        (call.address::<0>(), call.argument::<1>(), call.argument::<2>(), call.argument::<3>());
    let offset = call.argument::<5>();
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    // There are no files but the console.
    if flags & MAP_ANONYMOUS == 0 && call.argument::<4>() as u32 > 2 {
        return Err(Errno::EBADF);
    }
    let bytes = if flags & MAP_HUGETLB != 0 { large_bytes(bytes, flags)? } else { bytes };
    let placement = if flags & MAP_FIXED_NOREPLACE != 0 {
        Placement::FixedNoReplace(address)
    } else if flags & MAP_FIXED != 0 {
        Placement::Fixed(address)
    } else {
        Placement::Hint(address)
    };
    let space = call.task.space();
    let sharing = match backing(flags, bytes, offset) {
        Ok(sharing) => sharing,
        Err(errno) => {
            space.check_placement(this_cpu(), placement, bytes)?;
            return Err(errno);
        }
    };
    let populate = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE || flags & MAP_LOCKED != 0;
    let request = MapRequest {
        placement,
        bytes,
        protection: protection(bits),
        sharing,
        populate: if populate { Populate::Now } else { Populate::OnDemand },
    };
    let private = sharing == Sharing::Private;
    let terms = Terms {
        limits: call.task.process().limits.of_space(),
        fits_in_memory: flags & MAP_NORESERVE == 0,
        grows: private && flags & MAP_GROWSDOWN != 0,
    };
    let is_killed = || call.thread.has(Work::SIGNAL) && call.task.is_called_off();
    let address = space.mmap_within(this_cpu(), &request, &terms, &is_killed)?;
    if populate {
        while oom::relieve(call.task, call.thread) == Relief::Retry {
            space.populate_again(this_cpu(), address, bytes, &is_killed);
        }
    }
    Ok(address.0)
}

/// The bytes of a mapping of large pages. There are none, so the mapping is refused; this makes the checks that come
/// first on Linux.
fn large_bytes(bytes: u64, flags: u64) -> Result<u64, Errno> {
    /// log2 of the sizes that the architecture has with pages of 4 KiB; 0 is the default, 2 MiB.
    const SIZES: [(u64, u64); 5] = [(0, 21), (16, 16), (21, 21), (25, 25), (30, 30)];
    let asked = flags >> 26 & 0x3f;
    let (_, shift) = SIZES.iter().find(|(number, _)| *number == asked).ok_or(Errno::EINVAL)?;
    if flags & MAP_ANONYMOUS == 0 {
        return Err(Errno::EINVAL);
    }
    bytes.checked_next_multiple_of(1 << shift).ok_or(Errno::EINVAL)
}

/// The kind of memory that mmap's flags request. Checked after the address.
fn backing(flags: u64, bytes: u64, offset: u64) -> Result<Sharing, Errno> {
    let kind = flags & MAP_TYPE;
    if flags & MAP_ANONYMOUS == 0 {
        // The console, which cannot be mapped.
        let last = bytes.checked_next_multiple_of(PAGE).map_or(0, |bytes| u64::MAX - bytes);
        return Err(match kind {
            _ if offset / PAGE > last / PAGE => Errno::EOVERFLOW,
            MAP_SHARED_VALIDATE if flags & MAP_FIXED_NOREPLACE != 0 => Errno::ENOTSUP,
            MAP_SHARED | MAP_SHARED_VALIDATE | MAP_PRIVATE => Errno::ENODEV,
            _ => Errno::EINVAL,
        });
    }
    match kind {
        MAP_PRIVATE | MAP_SHARED if flags & MAP_HUGETLB != 0 => Err(Errno::ENOMEM),
        MAP_PRIVATE => Ok(Sharing::Private),
        MAP_SHARED if flags & MAP_GROWSDOWN == 0 => Ok(Sharing::Shared),
        // MAP_SHARED_VALIDATE is for files only.
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn munmap(call: &mut Syscall<'_>) -> Answer {
    call.task.space().munmap(this_cpu(), call.address::<0>().untagged(), call.argument::<1>())?;
    Ok(0)
}

pub(super) fn mprotect(call: &mut Syscall<'_>) -> Answer {
    let (start, bytes, bits) = (call.address::<0>().untagged(), call.argument::<1>(), call.argument::<2>());
    if bits & PROT_GROWS == PROT_GROWS {
        return Err(Errno::EINVAL);
    }
    if bits & !(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0 {
        // As on Linux the range is checked first: no bytes are a success, a range that wraps is ENOMEM.
        let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| start.0.checked_add(bytes));
        if end.is_some_and(|end| end != start.0) {
            return Err(Errno::EINVAL);
        }
    }
    let writes = bits & PROT_WRITE != 0;
    let limits = if writes { call.task.process().limits.of_space() } else { SpaceLimits::NONE };
    call.task.space().mprotect_within(start, bytes, protection(bits), &limits)?;
    Ok(0)
}

pub(super) fn madvise(call: &mut Syscall<'_>) -> Answer {
    let (start, bytes) = (call.address::<0>().untagged(), call.argument::<1>());
    // An `int` on Linux.
    match u64::from(call.argument::<2>() as u32) {
        MADV_DONTNEED => call.task.space().madvise_dontneed(this_cpu(), start, bytes)?,
        MADV_NORMAL | MADV_RANDOM | MADV_SEQUENTIAL | MADV_WILLNEED => {
            call.task.space().madvise_nothing(start, bytes)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub(super) fn mincore(call: &mut Syscall<'_>) -> Answer {
    /// Pages for each call of the space.
    const CHUNK: u64 = 256;
    let (start, bytes, vector) = (call.address::<0>().untagged(), call.argument::<1>(), call.address::<2>());
    if !start.is_aligned(PAGE) {
        return Err(Errno::EINVAL);
    }
    let pages = bytes.div_ceil(PAGE);
    if start.0.checked_add(bytes).is_none_or(|end| end > uaccess::END.0) {
        return Err(Errno::ENOMEM);
    }
    if !uaccess::is_user_range(vector, pages as usize) {
        return Err(Errno::EFAULT);
    }
    let mut present = [0; CHUNK as usize];
    let mut done = 0;
    while done < pages {
        let count = (pages - done).min(CHUNK);
        let present = &mut present[..count as usize];
        let answered = call.task.space().mincore(VirtAddr(start.0 + done * PAGE), present)?;
        uaccess::copy_to_user(VirtAddr(vector.0 + done), present.get(..answered).ok_or(Errno::EFAULT)?)?;
        done += answered as u64;
        relax();
    }
    Ok(0)
}

/// Moves the heap's end, and returns where it is afterwards, moved or not. Never an error: a C library would take that
/// for an address.
pub(super) fn brk(call: &mut Syscall<'_>) -> Answer {
    loop {
        let end = move_heap_end(call);
        // A shortage on the way, or in a call before, but the memory is there.
        let is_there = end == call.argument::<0>() || call.argument::<0>() == 0;
        if is_there || !call.thread.is_short() || oom::relieve(call.task, call.thread) != Relief::Retry {
            return Ok(end);
        }
    }
}

/// Moves the end if possible; returns where it is afterwards. A shortage of memory is noted in the thread.
fn move_heap_end(call: &Syscall<'_>) -> u64 {
    let wanted = call.argument::<0>();
    let space = call.task.space();
    let mut heap = space.heap().write();
    if wanted < heap.start || wanted > uaccess::END.0 {
        return heap.end;
    }
    let limits = call.task.process().limits.of_space();
    if wanted - heap.start > limits.data {
        return heap.end;
    }
    let (before, after) = (heap.end.next_multiple_of(PAGE), wanted.next_multiple_of(PAGE));
    let moved = if after > before {
        let request = MapRequest {
            placement: Placement::Heap(VirtAddr(before)),
            bytes: after - before,
            protection: Protection::READ.and(Protection::WRITE),
            sharing: Sharing::Private,
            populate: Populate::OnDemand,
        };
        space.mmap_within(this_cpu(), &request, &Terms { limits, ..Terms::NONE }, &|| false).map(drop)
    } else if after < before {
        // If nothing of the heap is mapped there, its end stays.
        if !space.is_mapped_within(VirtAddr(after), before - after) {
            return heap.end;
        }
        space.munmap(this_cpu(), VirtAddr(after), before - after)
    } else {
        Ok(())
    };
    if moved.is_ok() {
        heap.end = wanted;
    }
    heap.end
}
