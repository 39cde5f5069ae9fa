//! Each thread of the host has tags of its own, by the address of their granule; each function records its name.

#![allow(unsafe_code, reason = "the contracts of the machine's functions")]

extern crate std;

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::mte::{GRANULE, Tag};
use crate::recorded;

std::thread_local! {
    /// Those that are not zero, by the number of the granule.
    static TAGS: RefCell<BTreeMap<u64, Tag>> = const { RefCell::new(BTreeMap::new()) };
}

const fn granule(address: VirtAddr) -> u64 {
    address.canonical().0 / GRANULE
}

fn get(granule: u64) -> Tag {
    TAGS.with_borrow(|tags| tags.get(&granule).copied().unwrap_or(Tag::ZERO))
}

fn set(start: VirtAddr, bytes: u64, tag: impl Fn(u64) -> Tag) {
    for index in 0..bytes / GRANULE {
        let (granule, tag) = (granule(start) + index, tag(index));
        TAGS.with_borrow_mut(|tags| match tag {
            Tag::ZERO => tags.remove(&granule),
            other => tags.insert(granule, other),
        });
    }
}

pub(crate) unsafe fn zero_page_tags(page: VirtAddr) {
    set(page, PAGE_SIZE as u64, |_| Tag::ZERO);
    recorded::note("stgm");
}

pub(crate) unsafe fn copy_page_tags(to: VirtAddr, from: VirtAddr) {
    set(to, PAGE_SIZE as u64, |index| get(granule(from) + index));
    recorded::note("ldgm, stgm");
}

pub(crate) unsafe fn zero_page_and_tags(page: VirtAddr) {
    // SAFETY: the page is the caller's.
    unsafe { crate::memory::zero_page(page) };
    set(page, PAGE_SIZE as u64, |_| Tag::ZERO);
    recorded::note("dc gzva");
}

pub(crate) unsafe fn set_tags(start: VirtAddr, bytes: u64) {
    set(start, bytes, |_| Tag::of(start));
    recorded::note("stg");
}

pub(crate) unsafe fn load_tag(address: VirtAddr) -> VirtAddr {
    address.with_tag(get(granule(address)))
}
