//! Calls for memory: the checks that Linux makes before it reads the space are here, the others are the space's.
//!
//! Addresses of existing mappings lose their tag, even if the thread has not enabled that. Addresses for new mappings
//! of mmap and brk keep it, and are refused with it (Documentation/arch/arm64/tagged-address-abi.rst).

use core::cell::Cell;

use granule_abi::memory::{
    MADV_COLD, MADV_COLLAPSE, MADV_DODUMP, MADV_DOFORK, MADV_DONTDUMP, MADV_DONTFORK, MADV_DONTNEED,
    MADV_DONTNEED_LOCKED, MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_HUGEPAGE, MADV_KEEPONFORK,
    MADV_NOHUGEPAGE, MADV_NORMAL, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_RANDOM, MADV_REMOVE,
    MADV_SEQUENTIAL, MADV_WILLNEED, MADV_WIPEONFORK, MAP_ANONYMOUS, MAP_DENYWRITE, MAP_DROPPABLE, MAP_EXECUTABLE,
    MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_GROWSDOWN, MAP_HUGETLB, MAP_LOCKED, MAP_NONBLOCK, MAP_NORESERVE, MAP_POPULATE,
    MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_STACK, MAP_TYPE, MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT,
    MLOCK_ONFAULT, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, MS_ASYNC, MS_INVALIDATE, MS_SYNC, PROT_BTI,
    PROT_EXEC, PROT_MTE, PROT_READ, PROT_WRITE,
};
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_arch::patched_branch;

use super::io::{self, UserBytes, read_piece};
use super::{Answer, MOST_AT_ONCE, Syscall, pidfd};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::device::{self, KernelDevice};
use crate::linux::file::open::OpenFile;
use crate::mm::counted::Counted;
use crate::mm::space::{
    Access, AreaAdvice, Commitment, Discard, LARGEST_OBJECT, Locking, MapRequest, MappedFile, Move, Object, Placement,
    Populate, Remap, Seals, Sharing, Space, SpaceError, Terms, Unneeded,
};
use crate::platform::features::branch;
use crate::sched::relax;
use crate::smp::this_cpu;
use crate::uaccess;

/// Ignored here.
const PROT_SEM: u64 = 8;
/// `PROT_GROWSDOWN` and `PROT_GROWSUP`: both together are refused before all else.
const PROT_GROWS: u64 = 0x0300_0000;

/// The protection of `bits`, of which those that are unknown are ignored.
#[inline(always)]
fn protection(bits: u64) -> Protection {
    /// These have the same numbers.
    const SAME: u64 = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_BTI;
    const TAGS_BELOW: u32 = PROT_MTE.trailing_zeros() - Protection::TAGGED.bits().trailing_zeros();
    const _: () = {
        let same = Protection::READ.and(Protection::WRITE).and(Protection::EXECUTE).and(Protection::GUARDED);
        assert!(Protection::READ.bits() as u64 == PROT_READ && Protection::WRITE.bits() as u64 == PROT_WRITE);
        assert!(Protection::GUARDED.bits() as u64 == PROT_BTI && same.bits() as u64 == SAME);
    };
    let bits = bits & SAME | (bits & PROT_MTE) >> TAGS_BELOW;
    Protection::from_bits(bits as u8).unwrap_or(Protection::NONE)
}

/// `bits` as they count for mmap: `PROT_MTE` where memory has tags, `PROT_BTI` where branches can be guarded.
fn that_count(bits: u64) -> u64 {
    let tags = if wants_tags(bits) { 0 } else { PROT_MTE };
    bits & !tags & !if wants_guards(bits) { 0 } else { PROT_BTI }
}

/// Whether a protection has `PROT_MTE`, and memory has tags.
#[inline(always)]
fn wants_tags(bits: u64) -> bool {
    bits & PROT_MTE != 0 && patched_branch!(branch::MTE)
}

/// Whether a protection has `PROT_BTI`, and the CPUs have FEAT_BTI.
#[inline(always)]
fn wants_guards(bits: u64) -> bool {
    bits & PROT_BTI != 0 && patched_branch!(branch::BTI)
}

/// Refusals in Linux's order: the file, then the address, then the kind of memory.
pub(super) fn mmap(call: &mut Syscall<'_>) -> Answer {
    let (address, bytes, bits, flags) =
        (call.address::<0>(), call.argument::<1>(), call.argument::<2>(), call.argument::<3>());
    let offset = call.argument::<5>();
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let file = if flags & MAP_ANONYMOUS == 0 { Some(io::file(call, call.argument::<4>())?) } else { None };
    let bytes = if flags & MAP_HUGETLB != 0 { large_bytes(bytes, flags)? } else { bytes };
    let placement = placement(address, flags);
    let space = call.task.space();
    let backed = match &file {
        Some(file) => backed_by(space, file, bits, flags, bytes, offset),
        None => anonymous(flags).map(|sharing| (sharing, None)),
    };
    let (sharing, backing) = match backed {
        Ok(backed) => backed,
        Err(errno) => {
            space.check_placement(this_cpu(), placement, bytes)?;
            return Err(errno);
        }
    };
    let locking = space.locking_of_new(flags & MAP_LOCKED != 0);
    let populate = match locking {
        Locking::None => flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE,
        Locking::Now => true,
        Locking::OnFault => false,
    };
    let request = MapRequest {
        placement,
        bytes,
        protection: protection(that_count(bits)),
        sharing,
        populate: if populate { Populate::Now } else { Populate::OnDemand },
    };
    let private = sharing == Sharing::Private;
    let terms = Terms {
        limits: call.task.process().limits.of_space(),
        commitment: commitment(flags),
        grows: private && flags & MAP_GROWSDOWN != 0,
        locking,
        file: backing.as_ref().map(|backing| MappedFile {
            object: &backing.object,
            first_page: offset / PAGE,
            may_write: backing.may_write,
        }),
    };
    let is_killed = || call.is_killed();
    let address = space.mmap_within(this_cpu(), &request, &terms, &is_killed)?;
    if populate {
        populate_when_relieved(call, address, bytes);
    }
    Ok(address.0)
}

/// Where `MAP_*` of `mmap` has a mapping placed.
const fn placement(address: VirtAddr, flags: u64) -> Placement {
    if flags & MAP_FIXED_NOREPLACE != 0 {
        Placement::FixedNoReplace(address)
    } else if flags & MAP_FIXED != 0 {
        Placement::Fixed(address)
    } else {
        Placement::Hint(address)
    }
}

/// How much memory a mapping with these flags of `mmap` may take.
const fn commitment(flags: u64) -> Commitment {
    if flags & (MAP_NORESERVE | MAP_DROPPABLE) == 0 {
        Commitment::WITHIN_MEMORY
    } else if flags & MAP_DROPPABLE != 0 {
        Commitment::DROPPABLE
    } else {
        Commitment::ANY
    }
}

/// Populates a mapping again where that came to a want of memory, as often as there is some.
#[inline(always)]
fn populate_when_relieved(call: &Syscall<'_>, start: VirtAddr, bytes: u64) {
    while call.is_relieved() {
        call.task.space().populate_again(this_cpu(), start, bytes, &|| call.is_killed());
    }
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

/// The kind of anonymous memory that mmap's flags request. Checked after the address.
fn anonymous(flags: u64) -> Result<Sharing, Errno> {
    match flags & MAP_TYPE {
        MAP_PRIVATE | MAP_SHARED if flags & MAP_HUGETLB != 0 => Err(Errno::ENOMEM),
        MAP_DROPPABLE if flags & (MAP_LOCKED | MAP_HUGETLB | MAP_GROWSDOWN) != 0 => Err(Errno::EINVAL),
        MAP_PRIVATE | MAP_DROPPABLE => Ok(Sharing::Private),
        MAP_SHARED if flags & MAP_GROWSDOWN == 0 => Ok(Sharing::Shared),
        // MAP_SHARED_VALIDATE is for files only.
        _ => Err(Errno::EINVAL),
    }
}

/// The flags that a kernel before MAP_SHARED_VALIDATE knew, or did not look at.
const BEFORE_VALIDATE: u64 = MAP_TYPE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_GROWSDOWN
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_NONBLOCK
    | MAP_HUGETLB
    | MAP_STACK
    | MAP_DENYWRITE
    | MAP_EXECUTABLE
    // Sizes of large pages: 2 MiB and 1 GiB.
    | 21 << 26
    | 30 << 26;

/// A file that is mapped.
struct Backing {
    object: Counted<Object>,
    /// Whether the mapping may ever be written.
    may_write: bool,
}

/// The kind of memory that mmap's flags request of a file, and the file's pages: Linux's `do_mmap` checks, in order.
fn backed_by(
    space: &Space,
    file: &OpenFile,
    protection: u64,
    flags: u64,
    bytes: u64,
    offset: u64,
) -> Result<(Sharing, Option<Backing>), Errno> {
    let bytes = bytes.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
    // Of a device each page has a number.
    let is_private_of_device = flags & MAP_TYPE == MAP_PRIVATE && file.kernel_device().is_some();
    let last = if file.device().is_some() || is_private_of_device { u64::MAX } else { i64::MAX as u64 };
    let most = last.checked_sub(bytes);
    if most.is_none_or(|most| offset / PAGE > most / PAGE) {
        return Err(Errno::EOVERFLOW);
    }
    let kind = flags & MAP_TYPE;
    let (sharing, is_writable) = match kind {
        MAP_SHARED_VALIDATE if flags & !BEFORE_VALIDATE != 0 => return Err(Errno::ENOTSUP),
        MAP_SHARED | MAP_SHARED_VALIDATE => (Sharing::Shared, file.check_writable().is_ok()),
        MAP_PRIVATE => (Sharing::Private, true),
        _ => return Err(Errno::EINVAL),
    };
    let writes = protection & PROT_WRITE != 0;
    if writes && !is_writable || file.check_readable().is_err() {
        return Err(Errno::EACCES);
    }
    let is_zero = file.kernel_device() == Some(KernelDevice::Zero);
    let object = match file.device() {
        None => match pages(file, sharing, bytes, flags)? {
            _ if is_zero && (flags & MAP_GROWSDOWN != 0 || wants_tags(protection)) => return Err(Errno::EINVAL),
            None => return Ok((sharing, None)),
            Some(object) => object,
        },
        Some(_) if flags & MAP_GROWSDOWN != 0 => return Err(Errno::EINVAL),
        Some(device) => {
            let (is_shared, is_executable) = (sharing == Sharing::Shared, protection & PROT_EXEC != 0);
            let object = device::registers(device, space, is_shared, bytes / PAGE, offset / PAGE, is_executable)?;
            if wants_tags(protection) {
                return Err(Errno::EINVAL);
            }
            object
        }
    };
    if flags & MAP_GROWSDOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let is_sealed = sharing == Sharing::Shared && object.seals().refuse_writes();
    if is_sealed && writes && is_writable {
        return Err(Errno::EPERM);
    }
    Ok((sharing, Some(Backing { object, may_write: is_writable && !is_sealed })))
}

/// The pages of a file that is mapped; `None` for a private mapping of `/dev/zero`, which is anonymous memory.
fn pages(file: &OpenFile, sharing: Sharing, bytes: u64, flags: u64) -> Result<Option<Counted<Object>>, Errno> {
    if file.kernel_device() != Some(KernelDevice::Zero) {
        return file.pages().map(Some);
    }
    if sharing == Sharing::Private {
        return Ok(None);
    }
    // As on Linux, zeros without an end where it may never be written, and else as long as the mapping.
    let is_writable = file.check_writable().is_ok();
    if is_writable && flags & MAP_NORESERVE == 0 && bytes > kernel().frames.total() as u64 * PAGE {
        return Err(Errno::ENOMEM);
    }
    let size = if is_writable { bytes.min(LARGEST_OBJECT) } else { LARGEST_OBJECT };
    Ok(Some(kernel().spaces.create_object(this_cpu(), size, None, Seals(0))?))
}

pub(super) fn munmap(call: &mut Syscall<'_>) -> Answer {
    call.task.space().munmap(this_cpu(), call.address::<0>().untagged(), call.argument::<1>())?;
    Ok(0)
}

pub(super) fn mprotect(call: &mut Syscall<'_>) -> Answer {
    let (start, bytes, bits) = (call.address::<0>().untagged(), call.argument::<1>(), call.argument::<2>());
    const KNOWN: u64 = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM;
    const { assert!(KNOWN & PROT_GROWS == 0) };
    let lacks_tags = bits & PROT_MTE != 0 && !wants_tags(bits);
    if bits & !(KNOWN | PROT_MTE | PROT_BTI) != 0 || lacks_tags || bits & PROT_BTI != 0 && !wants_guards(bits) {
        if bits & PROT_GROWS == PROT_GROWS {
            return Err(Errno::EINVAL);
        }
        // As on Linux the range is checked first: no bytes are a success, a range that wraps is ENOMEM.
        let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| start.0.checked_add(bytes));
        if end.is_some_and(|end| end != start.0) {
            return Err(Errno::EINVAL);
        }
    }
    let writes = bits & PROT_WRITE != 0;
    let space = call.task.space();
    let locked = if writes { space.locked_without_writes(start, bytes) } else { None };
    let result = space.mprotect_within(start, bytes, protection(bits), || call.task.process().limits.of_space());
    if let Some(locked) = locked {
        space.bring_written(this_cpu(), locked, &|| call.is_killed());
        call.thread.take_shortage();
    }
    result?;
    Ok(0)
}

pub(super) fn madvise(call: &mut Syscall<'_>) -> Answer {
    advise(call, call.task.space(), call.address::<0>(), call.argument::<1>(), call.argument::<2>()).map(|()| 0)
}

/// Advice about several ranges of this process or another one; returns the bytes of those that took it.
pub(super) fn process_madvise(call: &mut Syscall<'_>) -> Answer {
    if call.argument::<4>() as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut left = UserBytes::of_pieces(call).check()?.min(MOST_AT_ONCE);
    let (array, advice) = (call.address::<1>(), call.argument::<3>());
    let space = pidfd::space(call)?;
    let is_own = core::ptr::eq(&raw const *space, call.task.space());
    // Another program would be surprised by the others.
    if !is_own && !matches!(u64::from(advice as u32), MADV_COLD | MADV_COLLAPSE | MADV_PAGEOUT | MADV_WILLNEED) {
        return Err(Errno::EINVAL);
    }
    // One that does not exist is refused where there are no pieces too.
    let advise = |start, bytes| advise(call, &space, start, bytes, advice);
    advise(VirtAddr(0), 0)?;
    let mut done = 0;
    for index in 0..u64::from(call.argument::<2>() as u32) {
        call.pause_at(index as usize)?;
        // It was checked, and may have changed since.
        let taken = read_piece(array, index).and_then(|[start, bytes]| {
            let bytes = bytes.min(left);
            advise(VirtAddr(start), bytes).map(|()| bytes)
        });
        match taken {
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
            Ok(bytes) => (done, left) = (done + bytes, left - bytes),
        }
    }
    Ok(done)
}

/// Takes an advice about the `bytes` bytes from `address` on.
#[inline(always)]
fn advise(call: &Syscall<'_>, space: &Space, address: VirtAddr, bytes: u64, advice: u64) -> Result<(), Errno> {
    let start = address.untagged();
    // The end is computed before the tag goes.
    let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| address.0.checked_add(bytes));
    end.ok_or(Errno::EINVAL)?;
    let cpu = this_cpu();
    let is_killed = || call.is_killed();
    // An `int` on Linux.
    match u64::from(advice as u32) {
        MADV_DONTNEED => space.madvise_dontneed(cpu, start, bytes)?,
        MADV_DONTNEED_LOCKED => space.madvise_discard(cpu, start, bytes, Discard::All)?,
        MADV_FREE => space.madvise_discard(cpu, start, bytes, Discard::Anonymous)?,
        MADV_COLD => space.madvise_unneeded(cpu, start, bytes, Unneeded::Cold)?,
        MADV_PAGEOUT => space.madvise_unneeded(cpu, start, bytes, Unneeded::Out)?,
        MADV_REMOVE => space.madvise_remove(cpu, start, bytes)?,
        MADV_DONTFORK => space.madvise_areas(cpu, start, bytes, AreaAdvice::DontFork)?,
        MADV_DODUMP => space.madvise_areas(cpu, start, bytes, AreaAdvice::DoDump)?,
        MADV_DOFORK => space.madvise_areas(cpu, start, bytes, AreaAdvice::DoFork)?,
        MADV_WIPEONFORK => space.madvise_areas(cpu, start, bytes, AreaAdvice::WipeOnFork)?,
        MADV_KEEPONFORK => space.madvise_areas(cpu, start, bytes, AreaAdvice::KeepOnFork)?,
        MADV_HUGEPAGE => space.madvise_areas(cpu, start, bytes, AreaAdvice::HugePage)?,
        MADV_NOHUGEPAGE => space.madvise_areas(cpu, start, bytes, AreaAdvice::NoHugePage)?,
        MADV_COLLAPSE => space.madvise_collapse(cpu, start, bytes, &is_killed)?,
        MADV_POPULATE_READ => space.madvise_populate(cpu, start, bytes, Access::Read, &is_killed)?,
        MADV_POPULATE_WRITE => space.madvise_populate(cpu, start, bytes, Access::Write, &is_killed)?,
        MADV_GUARD_INSTALL => space.madvise_guard(cpu, start, bytes, &is_killed)?,
        MADV_GUARD_REMOVE => space.madvise_unguard(start, bytes)?,
        // There are no core dumps.
        MADV_NORMAL | MADV_RANDOM | MADV_SEQUENTIAL | MADV_WILLNEED | MADV_DONTDUMP => {
            space.madvise_nothing(start, bytes)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// There are no flags.
pub(super) fn mseal(call: &mut Syscall<'_>) -> Answer {
    if call.argument::<2>() != 0 {
        return Err(Errno::EINVAL);
    }
    call.task.space().mseal(this_cpu(), call.address::<0>().untagged(), call.argument::<1>())?;
    Ok(0)
}

/// Checks the range: what is mapped is in memory alone.
pub(super) fn msync(call: &mut Syscall<'_>) -> Answer {
    let (start, bytes, flags) = (call.address::<0>().untagged(), call.argument::<1>(), call.argument::<2>() as u32);
    let is_both = flags & (MS_ASYNC | MS_SYNC) == MS_ASYNC | MS_SYNC;
    if flags & !(MS_ASYNC | MS_INVALIDATE | MS_SYNC) != 0 || is_both || !start.is_aligned(PAGE) {
        return Err(Errno::EINVAL);
    }
    let (_, bytes) = whole_pages(start, bytes);
    start.0.checked_add(bytes).ok_or(Errno::ENOMEM)?;
    call.task.space().msync(start, bytes, flags & MS_INVALIDATE != 0, flags & MS_SYNC != 0)?;
    Ok(0)
}

pub(super) fn mremap(call: &mut Syscall<'_>) -> Answer {
    let (flags, target) = (call.argument::<3>(), call.address::<4>());
    let has = |flag| flags & flag != 0;
    if flags & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 {
        return Err(Errno::EINVAL);
    }
    let to = match (has(MREMAP_MAYMOVE), has(MREMAP_FIXED), has(MREMAP_DONTUNMAP)) {
        (false, false, false) => Move::Not,
        (false, ..) => return Err(Errno::EINVAL),
        (true, false, false) => Move::IfNeeded,
        (true, false, true) => Move::Near(target),
        (true, true, _) => Move::To(target),
    };
    let (start, bytes, new_bytes) = (call.address::<0>().untagged(), call.argument::<1>(), call.argument::<2>());
    let mut remap = Remap::new(start, bytes, new_bytes, to, has(MREMAP_DONTUNMAP))?;
    let (space, limits) = (call.task.space(), call.task.process().limits.of_space());
    let address = loop {
        match space.mremap(this_cpu(), &mut remap, &limits) {
            // Not from the start: some areas may have moved.
            Err(SpaceError::NoMemory) if !call.is_killed() && call.is_relieved() => {}
            answer => break answer?,
        }
    };
    if let Some(longer) = remap.longer() {
        let (start, bytes) = (longer.start(), longer.end() - longer.start());
        space.populate_again(this_cpu(), start, bytes, &|| call.is_killed());
        populate_when_relieved(call, start, bytes);
    }
    Ok(address.0)
}

/// Maps other pages of the file of a shared mapping, in its place: as Linux emulates it, by `mmap`.
pub(super) fn remap_file_pages(call: &mut Syscall<'_>) -> Answer {
    let [start, bytes] = [call.argument::<0>(), call.argument::<1>()].map(|bytes| bytes & !(PAGE - 1));
    let (first_page, flags) = (call.argument::<3>(), call.argument::<4>());
    let wraps = start.wrapping_add(bytes) <= start || first_page.checked_add(bytes / PAGE).is_none();
    if wraps || call.argument::<2>() != 0 {
        return Err(Errno::EINVAL);
    }
    let space = call.task.space();
    let mapped = space.shared_mapping(VirtAddr(start), bytes).ok_or(Errno::EINVAL)?;
    if first_page > (i64::MAX as u64 - bytes) / PAGE {
        return Err(Errno::EOVERFLOW);
    }
    let is_sealed = mapped.object.seals().refuse_writes();
    if is_sealed && mapped.protection.contains(Protection::WRITE) {
        return Err(Errno::EPERM);
    }
    let populate = flags & MAP_NONBLOCK == 0;
    let request = MapRequest {
        placement: Placement::Fixed(VirtAddr(start)),
        bytes,
        protection: mapped.protection,
        sharing: Sharing::Shared,
        populate: if populate { Populate::Now } else { Populate::OnDemand },
    };
    let terms = Terms {
        limits: call.task.process().limits.of_space(),
        locking: space.locking_of_new(mapped.is_locked),
        file: Some(MappedFile { object: &mapped.object, first_page, may_write: !is_sealed }),
        ..Terms::NONE
    };
    space.mmap_within(this_cpu(), &request, &terms, &|| call.is_killed())?;
    if populate {
        populate_when_relieved(call, VirtAddr(start), bytes);
    }
    Ok(0)
}

/// Rounds a range to pages as Linux does for locks and `msync`: a size that wraps is no bytes.
fn whole_pages(start: VirtAddr, bytes: u64) -> (VirtAddr, u64) {
    let first = start.align_down(PAGE);
    (first, bytes.wrapping_add(start.0 - first.0).wrapping_add(PAGE - 1) & !(PAGE - 1))
}

fn lock(call: &Syscall<'_>, locking: Locking) -> Answer {
    let (start, bytes) = whole_pages(call.address::<0>().untagged(), call.argument::<1>());
    let is_killed = || call.is_killed();
    call.task.space().mlock(this_cpu(), start, bytes, locking, &is_killed)?;
    Ok(0)
}

pub(super) fn mlock(call: &mut Syscall<'_>) -> Answer {
    lock(call, Locking::Now)
}

pub(super) fn mlock2(call: &mut Syscall<'_>) -> Answer {
    match call.argument::<2>() as u32 {
        0 => lock(call, Locking::Now),
        MLOCK_ONFAULT => lock(call, Locking::OnFault),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn munlock(call: &mut Syscall<'_>) -> Answer {
    lock(call, Locking::None)
}

pub(super) fn mlockall(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<0>() as u32;
    let has = |flag| flags & flag != 0;
    if flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0 || !has(MCL_CURRENT | MCL_FUTURE) {
        return Err(Errno::EINVAL);
    }
    let (space, locking) = (call.task.space(), if has(MCL_ONFAULT) { Locking::OnFault } else { Locking::Now });
    space.set_future_locking(if has(MCL_FUTURE) { locking } else { Locking::None });
    if has(MCL_CURRENT) {
        let is_killed = || call.is_killed();
        space.mlock_all(this_cpu(), locking, &is_killed);
    }
    Ok(0)
}

pub(super) fn munlockall(call: &mut Syscall<'_>) -> Answer {
    call.task.space().set_future_locking(Locking::None);
    call.task.space().mlock_all(this_cpu(), Locking::None, &|| false);
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
        if is_there || !call.thread.is_short() || !call.is_relieved() {
            return Ok(end);
        }
    }
}

/// Moves the end if possible; returns where it is afterwards. A shortage of memory is noted in the thread.
fn move_heap_end(call: &Syscall<'_>) -> u64 {
    let wanted = call.argument::<0>();
    let space = call.task.space();
    // Sent when the heap is not locked any more.
    let events = Cell::new(None);
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
        let locking = space.locking_of_new(false);
        let request = MapRequest {
            placement: Placement::Heap(VirtAddr(before)),
            bytes: after - before,
            protection: Protection::READ.and(Protection::WRITE),
            sharing: Sharing::Private,
            populate: if locking == Locking::Now { Populate::Now } else { Populate::OnDemand },
        };
        space.mmap_within(this_cpu(), &request, &Terms { limits, locking, ..Terms::NONE }, &|| false).map(drop)
    } else if after < before {
        // If nothing of the heap is mapped there, its end stays.
        if !space.is_mapped_within(VirtAddr(after), before - after) {
            return heap.end;
        }
        space.munmap_unannounced(this_cpu(), VirtAddr(after), before - after, &events)
    } else {
        Ok(())
    };
    if moved.is_ok() {
        heap.end = wanted;
    }
    let end = heap.end;
    drop(heap);
    if let Some(events) = events.into_inner() {
        events.send();
    }
    end
}
