//! Calls for memory: what Linux refuses before it looks at the space is refused here, the rest is the space's.

use granule_abi::memory::{
    MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MAP_ANONYMOUS, MAP_FIXED,
    MAP_FIXED_NOREPLACE, MAP_GROWSDOWN, MAP_HUGETLB, MAP_LOCKED, MAP_NONBLOCK, MAP_NORESERVE, MAP_POPULATE,
    MAP_PRIVATE, MAP_SHARED, MAP_TYPE, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;

use super::{Answer, Call};
use crate::errno::Errno;
use crate::mm::space::{MapRequest, Placement, Populate, Sharing, Terms};
use crate::process::oom::{self, Relief};
use crate::smp::this_cpu;
use crate::uaccess;

const PAGE: u64 = PAGE_SIZE as u64;
/// Without effect here.
const PROT_SEM: u64 = 8;

fn protection(bits: u64) -> Protection {
    let one = |bit: u64, what: Protection| if bits & bit != 0 { what } else { Protection::NONE };
    one(PROT_READ, Protection::READ).and(one(PROT_WRITE, Protection::WRITE)).and(one(PROT_EXEC, Protection::EXECUTE))
}

pub(super) fn mmap(call: &mut Call<'_>) -> Answer {
    let (address, bytes, bits, flags) =
        (call.address::<0>(), call.argument::<1>(), call.argument::<2>(), call.argument::<3>());
    if !call.argument::<5>().is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if flags & MAP_ANONYMOUS == 0 {
        // The console cannot be mapped, and there are no other files.
        return Err(if call.argument::<4>() as u32 <= 2 { Errno::ENODEV } else { Errno::EBADF });
    }
    let sharing = match flags & MAP_TYPE {
        MAP_PRIVATE => Sharing::Private,
        MAP_SHARED if flags & MAP_GROWSDOWN == 0 => Sharing::Shared,
        // MAP_SHARED_VALIDATE is for files alone.
        _ => return Err(Errno::EINVAL),
    };
    if flags & MAP_HUGETLB != 0 {
        return Err(Errno::ENOMEM);
    }
    let populate = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE || flags & MAP_LOCKED != 0;
    let request = MapRequest {
        placement: if flags & MAP_FIXED_NOREPLACE != 0 {
            Placement::FixedNoReplace(address)
        } else if flags & MAP_FIXED != 0 {
            Placement::Fixed(address)
        } else {
            Placement::Hint(address)
        },
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
    let address = call.task.space().mmap_within(this_cpu(), &request, &terms)?;
    if populate {
        while oom::relieve(call.task, call.thread) == Relief::Retry {
            call.task.space().populate_again(this_cpu(), address, bytes);
        }
    }
    Ok(address.0)
}

pub(super) fn munmap(call: &mut Call<'_>) -> Answer {
    call.task.space().munmap(this_cpu(), call.address::<0>(), call.argument::<1>()).map(|()| 0)
}

pub(super) fn mprotect(call: &mut Call<'_>) -> Answer {
    let (start, bytes, bits) = (call.address::<0>(), call.argument::<1>(), call.argument::<2>());
    if bits & !(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0 {
        // As on Linux the range comes first: what has no bytes is well, what wraps is no memory.
        let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| start.0.checked_add(bytes));
        if end.is_some_and(|end| end != start.0) {
            return Err(Errno::EINVAL);
        }
    }
    let limits = call.task.process().limits.of_space();
    call.task.space().mprotect_within(start, bytes, protection(bits), &limits).map(|()| 0)
}

pub(super) fn madvise(call: &mut Call<'_>) -> Answer {
    let (start, bytes) = (call.address::<0>(), call.argument::<1>());
    // An `int` on Linux.
    match u64::from(call.argument::<2>() as u32) {
        MADV_DONTNEED => call.task.space().madvise_dontneed(this_cpu(), start, bytes).map(|()| 0),
        MADV_NORMAL | MADV_RANDOM | MADV_SEQUENTIAL | MADV_WILLNEED => {
            call.task.space().madvise_nothing(start, bytes).map(|()| 0)
        }
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn mincore(call: &mut Call<'_>) -> Answer {
    /// Pages that are asked for at once.
    const CHUNK: u64 = 256;
    let (start, bytes, vector) = (call.address::<0>(), call.argument::<1>(), call.address::<2>());
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
        call.task.space().mincore(VirtAddr(start.0 + done * PAGE), present)?;
        uaccess::copy_to_user(VirtAddr(vector.0 + done), present)?;
        done += count;
    }
    Ok(0)
}

/// Moves the heap's end; the answer is where it is then, moved or not.
pub(super) fn brk(call: &mut Call<'_>) -> Answer {
    let wanted = call.argument::<0>();
    let space = call.task.space();
    let mut heap = call.task.process().heap.write();
    if wanted < heap.start || wanted > uaccess::END.0 {
        return Ok(heap.end);
    }
    let limits = call.task.process().limits.of_space();
    if wanted - heap.start > limits.data {
        return Ok(heap.end);
    }
    let (before, after) = (heap.end.next_multiple_of(PAGE), wanted.next_multiple_of(PAGE));
    let moved = if after > before {
        let request = MapRequest {
            placement: Placement::FixedNoReplace(VirtAddr(before)),
            bytes: after - before,
            protection: Protection::READ.and(Protection::WRITE),
            sharing: Sharing::Private,
            populate: Populate::OnDemand,
        };
        space.mmap_within(this_cpu(), &request, &Terms { limits, ..Terms::NONE }).map(drop)
    } else if after < before {
        space.munmap(this_cpu(), VirtAddr(after), before - after)
    } else {
        Ok(())
    };
    if moved == Err(Errno::ENOMEM) && call.thread.is_short() {
        // Made again when there is memory.
        return Err(Errno::ENOMEM);
    }
    if moved.is_ok() {
        heap.end = wanted;
    }
    Ok(heap.end)
}
