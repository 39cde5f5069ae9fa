//! The kernel's accesses to memory of EL0, by exhaustion: each size up to 64 bytes at each offset across a border
//! beyond which EL0 has nothing, may not write, or has no addresses.
//!
//! An access that fails may have been made in part, from its start on and never beyond the border. The threads of this
//! image are the kernel's, which resolve no faults.

#![allow(unsafe_code, reason = "memory that is gone")]

use granule::kernel;
use granule::mm::kernel::set_memory::Validity;
use granule::mm::space::{MapRequest, Placement, Populate, Sharing, SpaceRef};
use granule::sched;
use granule::smp::this_cpu;
use granule::uaccess::{self, AccessError};
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::harness::{Test, target_test};

/// The first border, to nothing.
const FIRST: VirtAddr = VirtAddr(0x40_0000);
/// The largest access: two turns of the loops over 32 bytes.
const LARGEST: usize = 64;
/// Bytes on each side of a border that are compared: an access that begins a little before its furthest, and ends a
/// little after.
const SIDE: usize = LARGEST + 8;

/// The page on the far side of a border.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Beyond {
    Nothing,
    ReadOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    From,
    To,
    ToUpTo,
    Clear,
}

/// A border, the bytes on both sides of it, and which of them EL0 may access.
struct Border<'a> {
    space: &'a SpaceRef,
    at: VirtAddr,
    beyond: Beyond,
    /// The page that EL0 may write is after the border, not before it.
    reversed: bool,
}

/// One access: `bytes` from `offset` on, of the compared bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Case {
    access: Access,
    offset: usize,
    bytes: usize,
}

/// The value of user byte `index` before an access; never 0, nor one of [`kernels`].
fn users(index: usize, salt: usize) -> u8 {
    0x80 | (index * 5 + salt) as u8
}

/// The value of byte `index` of the kernel's buffer before an access.
fn kernels(index: usize, salt: usize) -> u8 {
    0x7f & (index * 3 + salt) as u8 | 1
}

/// A buffer of the kernel with bytes around the part that is used.
struct Buffer {
    bytes: [u8; LARGEST + 24],
    start: usize,
}

impl Border<'_> {
    fn is_readable(&self, index: usize) -> bool {
        self.is_writable(index) || self.beyond == Beyond::ReadOnly
    }

    fn is_writable(&self, index: usize) -> bool {
        (index < SIDE) != self.reversed
    }

    /// The compared bytes that are there, as a range of their indices.
    fn there(&self) -> core::ops::Range<usize> {
        match (self.beyond, self.reversed) {
            (Beyond::ReadOnly, _) => 0..2 * SIDE,
            (_, false) => 0..SIDE,
            (_, true) => SIDE..2 * SIDE,
        }
    }

    fn address(&self, index: usize) -> VirtAddr {
        VirtAddr(self.at.0 - SIDE as u64 + index as u64)
    }

    /// Writes the bytes anew that are there, by the linear map.
    fn dirty(&self, salt: usize) -> bool {
        let mut bytes = [0; 2 * SIDE];
        bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = users(index, salt));
        let there = if self.reversed { SIDE..2 * SIDE } else { 0..SIDE };
        self.space.write_bytes(this_cpu(), self.address(there.start), &bytes[there]).is_ok()
    }

    /// Makes one access and checks it; returns the failure, `None` without one.
    fn judge(&self, case: Case) -> Option<&'static str> {
        let Case { access, offset, bytes } = case;
        // The read-only page was written once, before it became so.
        let salt = |index| if self.is_writable(index) { offset * LARGEST + bytes } else { 0 };
        if !self.dirty(salt(if self.reversed { SIDE } else { 0 })) {
            return Some("the bytes cannot be made dirty");
        }
        let mut buffer = Buffer { bytes: [0; LARGEST + 24], start: 8 + offset % 8 };
        buffer.bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = kernels(index, bytes));
        let before = buffer.bytes;
        let start = self.address(offset);
        let used = &mut buffer.bytes[buffer.start..buffer.start + bytes];
        let may = |index| if access == Access::From { self.is_readable(index) } else { self.is_writable(index) };
        let allowed = (offset..offset + bytes).take_while(|&index| may(index)).count();
        let done = match access {
            Access::From => whole(uaccess::copy_from_user(used, start), bytes),
            Access::To => whole(uaccess::copy_to_user(start, used), bytes),
            Access::Clear => whole(uaccess::clear_user(start, bytes), bytes),
            Access::ToUpTo => Some(uaccess::copy_to_user_up_to(start, used)),
        };
        let exact = match access {
            Access::ToUpTo if done != Some(allowed) => return Some("another number of bytes was copied"),
            Access::ToUpTo => Some(allowed),
            _ if done.is_some() != (allowed == bytes) => return Some("it has another outcome"),
            _ => done,
        };
        // The bytes that were copied or cleared are a beginning of the access.
        let mut found = [0; 2 * SIDE];
        let there = self.there();
        if self.space.read_bytes(this_cpu(), self.address(there.start), &mut found[there.clone()]).is_err() {
            return Some("the bytes cannot be read");
        }
        let user = |index: usize| users(index, salt(index));
        let made = (0..bytes).take_while(|&index| match access {
            Access::From => buffer.bytes[buffer.start + index] == user(offset + index),
            Access::Clear => may(offset + index) && found[offset + index] == 0,
            _ => may(offset + index) && found[offset + index] == before[buffer.start + index],
        });
        let made = made.count();
        if made > allowed || exact.is_some_and(|exact| made != exact) {
            return Some("other bytes were copied or cleared");
        }
        let is_made = |index: usize| index.checked_sub(offset).is_some_and(|index| index < made);
        let untouched = |index: usize| access != Access::From && is_made(index) || found[index] == user(index);
        if !there.clone().all(untouched) {
            return Some("EL0's bytes beside those were touched");
        }
        let copied = |index: usize| access == Access::From && is_made((index + offset).wrapping_sub(buffer.start));
        if !(0..before.len()).all(|index| copied(index) || buffer.bytes[index] == before[index]) {
            return Some("the kernel's bytes beside those were touched");
        }
        None
    }
}

fn whole(result: Result<(), AccessError>, bytes: usize) -> Option<usize> {
    result.ok().map(|()| bytes)
}

/// Maps two pages with a border between them, and sets up the second one.
fn map(t: &mut Test, space: &SpaceRef, at: VirtAddr, beyond: Beyond, reversed: bool) {
    let cpu = this_cpu();
    let (near, far) = if reversed { (at, at.0 - PAGE) } else { (VirtAddr(at.0 - PAGE), at.0) };
    let mut page = |at, protection| {
        let request = MapRequest {
            placement: Placement::Fixed(at),
            bytes: PAGE,
            protection,
            sharing: Sharing::Private,
            populate: Populate::Now,
        };
        t.ok("a page", space.mmap(cpu, &request));
    };
    let writable = Protection::READ.and(Protection::WRITE);
    page(near, writable);
    if beyond == Beyond::ReadOnly {
        page(VirtAddr(far), writable);
        let mut bytes = [0; 2 * SIDE];
        bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = users(index, 0));
        t.ok("its bytes", space.write_bytes(cpu, VirtAddr(at.0 - SIDE as u64), &bytes));
        t.ok("read-only", space.mprotect(VirtAddr(far), PAGE, Protection::READ));
    }
}

/// Each access across one border.
fn cross(t: &mut Test, space: &SpaceRef, at: VirtAddr, beyond: Beyond, reversed: bool) {
    map(t, space, at, beyond, reversed);
    let border = Border { space, at, beyond, reversed };
    for access in [Access::From, Access::To, Access::ToUpTo, Access::Clear] {
        let cases = (SIDE - LARGEST..=SIDE + 1)
            .flat_map(|offset| (1..=LARGEST).map(move |bytes| Case { access, offset, bytes }));
        let wrong = cases.map(|case| (case, border.judge(case))).find_map(|(case, why)| Some((case, why?)));
        t.equal("accesses that went wrong", wrong.map(|(case, why)| (why, beyond, reversed, case)), None);
    }
}

target_test!(each_access_stops_at_its_border, limit(60));
fn each_access_stops_at_its_border(t: &mut Test) {
    let Some(space) = t.ok("a space", kernel().spaces.create(this_cpu())) else { return };
    drop(sched::set_space(Some(space.clone().into())));
    let mut at = FIRST;
    for beyond in [Beyond::Nothing, Beyond::ReadOnly] {
        for reversed in [false, true] {
            cross(t, &space, at, beyond, reversed);
            at.0 += 4 * PAGE;
        }
    }
    words(t, &space);
    drop(sched::set_space(None));
}

/// Words before the border to nothing: one access, aligned.
fn words(t: &mut Test, space: &SpaceRef) {
    const OLD: u32 = 0x8182_8384;
    let old = [OLD; 4].map(u32::to_le_bytes);
    let around = VirtAddr(FIRST.0 - 16);
    for before in 0..16 {
        let start = VirtAddr(FIRST.0 - before);
        let outcome = match before {
            0 => Err(AccessError::Fault),
            _ if before % 4 != 0 => Err(AccessError::Unaligned),
            _ => Ok(()),
        };
        t.ok("dirty", space.write_bytes(this_cpu(), around, old.as_flattened()));
        t.equal("a word's load", uaccess::get_u32(start), outcome.map(|()| OLD));
        t.equal("a word's store", uaccess::put_u32(start, 7), outcome);
        let mut wanted = [OLD; 4];
        if outcome.is_ok() {
            wanted[4 - before as usize / 4] = 7;
        }
        let mut found = [0; 16];
        t.ok("what is there", space.read_bytes(this_cpu(), around, &mut found));
        t.equal("the words", &found[..], wanted.map(u32::to_le_bytes).as_flattened());
    }
}

target_test!(the_kernels_own_memory_is_none_of_el0s);
fn the_kernels_own_memory_is_none_of_el0s(t: &mut Test) {
    const OLD: [u32; 20] = [0x8182_8384; 20];
    let own = OLD;
    let at = VirtAddr((&raw const own).addr() as u64);
    for bytes in 1..=LARGEST {
        for start in [at, uaccess::END, VirtAddr(u64::MAX - bytes as u64 / 2), VirtAddr(uaccess::END.0 - 1)] {
            let mut buffer = [7; LARGEST];
            t.equal("from it", uaccess::copy_from_user(&mut buffer[..bytes], start), Err(AccessError::Fault));
            t.check("nothing came", buffer == [7; LARGEST]);
            t.equal("to it", uaccess::copy_to_user(start, &buffer[..bytes]), Err(AccessError::Fault));
            t.equal("to it, up to", uaccess::copy_to_user_up_to(start, &buffer[..bytes]), 0);
            t.equal("cleared", uaccess::clear_user(start, bytes), Err(AccessError::Fault));
        }
    }
    t.equal("a word's load", uaccess::get_u32(at), Err(AccessError::Fault));
    t.equal("a word's store", uaccess::put_u32(at, 7), Err(AccessError::Fault));
    t.check("nothing was changed", *core::hint::black_box(&own) == OLD);
}

target_test!(copies_from_memory_of_the_kernel_that_is_gone, selftest());
fn copies_from_memory_of_the_kernel_that_is_gone(t: &mut Test) {
    let Some(space) = t.ok("a space", kernel().spaces.create(this_cpu())) else { return };
    drop(sched::set_space(Some(space.clone().into())));
    map(t, &space, FIRST, Beyond::Nothing, false);
    let Some(area) = t.ok("an area", kernel().space.vmalloc(this_cpu(), 1)) else { return };
    t.ok("gone", kernel().space.set_memory_valid(area.start(), 1, Validity::Invalid));
    // SAFETY: not sound at all; that is the test.
    let gone = unsafe { core::slice::from_raw_parts(area.start().as_ptr::<u8>(), LARGEST) };
    let copied = uaccess::copy_to_user(VirtAddr(FIRST.0 - PAGE), gone);
    t.equal("it comes back", copied, Ok(()));
}

// An access at either end faults by itself; but `write` takes what is a range for one whose bytes need not be read.
target_test!(a_range_of_el0_ends_where_its_addresses_do);
fn a_range_of_el0_ends_where_its_addresses_do(t: &mut Test) {
    for before in 0..=LARGEST {
        for bytes in 0..=LARGEST + 1 {
            let start = VirtAddr(uaccess::END.0 - before as u64);
            t.equal("a range", uaccess::is_user_range(start, bytes), bytes <= before);
        }
        let wraps = VirtAddr(u64::MAX - before as u64);
        t.check("no range", !uaccess::is_user_range(wraps, before + 1) && !uaccess::is_user_range(wraps, before + 2));
    }
}
