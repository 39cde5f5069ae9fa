//! Blocks of 2 MiB, and contiguous groups: a device that brings them, and sees what becomes of them.

#![allow(unsafe_code, reason = "looks at a block of its own by the linear map")]

use alloc::vec::Vec;

use granule::devices::edu::edu;
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::kernel;
use granule::mm::counted::Counted;
use granule::mm::space::{AreaAdvice, FaultError, MapRequest, MappedFile, Object, Seals, Sharing, SpaceRef, Terms};
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;

use super::{DELIVERED, PAGE, READ_WRITE, Rig, START, pages, refused, space};
use crate::harness::{Test, target_test};

const BLOCK: u64 = 2 << 20;
/// A page in the middle of the block.
const MIDDLE: VirtAddr = VirtAddr(START.0 + 300 * PAGE);

/// A rig with memory for a block, which is wanted.
fn rig_for_a_block(t: &mut Test) -> Option<Rig> {
    let space = space(t, BLOCK / PAGE, Sharing::Private)?;
    t.ok("advised", space.madvise_areas(this_cpu(), START, BLOCK, AreaAdvice::HugePage))?;
    Rig::bound_to(t, space)
}

/// A rig with a block whose middle holds `value`, as the device has read.
fn rig_with_a_block(t: &mut Test, value: u64) -> Option<Rig> {
    let rig = rig_for_a_block(t)?;
    rig.store(t, MIDDLE, value);
    t.equal("a block", leaf(&rig), BLOCK);
    t.equal("the device reads it", rig.device_load(MIDDLE), Ok(value));
    Some(rig)
}

/// The size of the leaf that translates the middle.
fn leaf(rig: &Rig) -> u64 {
    rig.space.tables().translate(MIDDLE).map_or(0, |found| found.leaf_size)
}

target_test!(a_device_brings_a_block, needs("smmuv3 virtio-blk"));
fn a_device_brings_a_block(t: &mut Test) {
    let Some(rig) = rig_for_a_block(t) else { return };
    t.equal("it writes, once it has a block", rig.device_store(MIDDLE, DELIVERED), Ok(2));
    t.equal("a block", leaf(&rig), BLOCK);
    t.equal("what is there", rig.load(MIDDLE), DELIVERED);
    t.equal("the rest, at once", rig.device_store(START, DELIVERED + 1), Ok(1));
    t.equal("what is there", rig.load(START), DELIVERED + 1);
    t.equal("zeros", rig.device_load(START + BLOCK - PAGE), Ok(0));
}

target_test!(a_device_sees_the_copy_of_a_block_after_a_fork, needs("smmuv3 virtio-blk"));
fn a_device_sees_the_copy_of_a_block_after_a_fork(t: &mut Test) {
    let Some(rig) = rig_with_a_block(t, 1) else { return };
    let cpu = this_cpu();
    let Some(child) = t.ok("a child", rig.space.fork(cpu)) else { return };
    t.equal("the device reads what both have", rig.device_load(MIDDLE), Ok(1));
    let before = rig.physical(MIDDLE);
    rig.store(t, MIDDLE, 2);
    t.check("a copy", leaf(&rig) == BLOCK && rig.physical(MIDDLE) != before);
    t.equal("the device reads the copy of the block", rig.device_load(MIDDLE), Ok(2));
    let Some(second) = t.ok("another child", rig.space.fork(cpu)) else { return };
    t.equal("the device reads what both have", rig.device_load(MIDDLE), Ok(2));
    t.check("it writes, once it has a copy", rig.device_store(MIDDLE, DELIVERED).is_ok_and(|tries| tries > 1));
    t.equal("the parent's", rig.load(MIDDLE), DELIVERED);
    for (child, value) in [(&child, 1), (&second, 2)] {
        let mut bytes = [0; 8];
        t.ok("a child's page", child.read_bytes(cpu, MIDDLE, &mut bytes));
        t.equal("is as it was", u64::from_le_bytes(bytes), value);
    }
    // Alone again: all of it becomes writable, and the device is notified of all.
    drop((child, second));
    let Some(third) = t.ok("a third", rig.space.fork(cpu)) else { return };
    t.equal("the device reads both", [rig.device_load(MIDDLE), rig.device_load(START)], [Ok(DELIVERED), Ok(0)]);
    drop(third);
    rig.store(t, MIDDLE, 3);
    t.equal("upgraded by the CPU, it writes elsewhere at once", rig.device_store(START, DELIVERED), Ok(1));
}

target_test!(a_device_meets_a_block_that_is_split, needs("smmuv3 virtio-blk"));
fn a_device_meets_a_block_that_is_split(t: &mut Test) {
    let Some(rig) = rig_with_a_block(t, 1) else { return };
    t.ok("a part is read-only", rig.space.mprotect(MIDDLE, PAGE, Protection::READ));
    t.equal("pages", leaf(&rig), PAGE);
    t.equal("it does not write there", rig.device_store(MIDDLE, DELIVERED), refused(FaultError::NotAllowed));
    t.equal("it reads there", rig.device_load(MIDDLE), Ok(1));
    t.equal("beside it, it writes at once", rig.device_store(MIDDLE + PAGE, DELIVERED), Ok(1));
    t.ok("writable again", rig.space.mprotect(MIDDLE, PAGE, READ_WRITE));
    t.equal("it writes at once", rig.device_store(MIDDLE, DELIVERED), Ok(1));
    t.ok("a part is unmapped", rig.space.munmap(this_cpu(), START, PAGE));
    t.equal("gone", rig.device_load(START), refused(FaultError::NotMapped));
    t.equal("what is beside it is there", rig.device_load(MIDDLE), Ok(DELIVERED));
}

target_test!(a_device_does_not_reach_a_block_that_was_taken_away, needs("smmuv3 virtio-blk"));
fn a_device_does_not_reach_a_block_that_was_taken_away(t: &mut Test) {
    let Some(rig) = rig_with_a_block(t, 1) else { return };
    let cpu = this_cpu();
    t.ok("read-only", rig.space.mprotect(START, BLOCK, Protection::READ));
    t.equal("it does not write", rig.device_store(MIDDLE, DELIVERED), refused(FaultError::NotAllowed));
    t.equal("it reads", rig.device_load(MIDDLE), Ok(1));
    t.ok("writable again", rig.space.mprotect(START, BLOCK, READ_WRITE));
    t.equal("it writes, at once", rig.device_store(MIDDLE, DELIVERED), Ok(1));
    t.ok("given up", rig.space.madvise_dontneed(cpu, START, BLOCK));
    t.equal("zeros", rig.device_load(MIDDLE), Ok(0));
    t.equal("a block again", leaf(&rig), BLOCK);
    t.ok("unmapped", rig.space.munmap(cpu, START, BLOCK));
    t.equal("gone", rig.device_load(MIDDLE), refused(FaultError::NotMapped));
}

/// Bytes of a contiguous group of pages.
const GROUP: u64 = 16 * PAGE;

target_test!(a_device_meets_a_group_that_is_unfolded, needs("smmuv3 virtio-blk"));
fn a_device_meets_a_group_that_is_unfolded(t: &mut Test) {
    // Too small for a block.
    let pages = 2 * GROUP / PAGE;
    let Some(space) = space(t, pages, Sharing::Private) else { return };
    let cpu = this_cpu();
    t.ok("advised", space.madvise_areas(cpu, START, 2 * GROUP, AreaAdvice::HugePage));
    let Some(rig) = Rig::bound_to(t, space) else { return };
    let leaf = |page: u64| rig.space.tables().translate(START + page * PAGE).map_or(0, |found| found.leaf_size);
    let at = |page: u64| START + page * PAGE;
    t.equal("it writes, once it has a group", rig.device_store(at(3), DELIVERED), Ok(2));
    t.equal("a group", (leaf(3), leaf(15), leaf(16)), (GROUP, GROUP, 0));
    t.equal("the rest, at once", rig.device_store(at(15), DELIVERED + 1), Ok(1));
    t.ok("a part is read-only", rig.space.mprotect(at(9), PAGE, Protection::READ));
    t.equal("pages", leaf(3), PAGE);
    t.equal("it does not write there", rig.device_store(at(9), DELIVERED), refused(FaultError::NotAllowed));
    t.equal("it reads there", rig.device_load(at(9)), Ok(0));
    t.equal("beside it, it writes at once", rig.device_store(at(10), DELIVERED + 2), Ok(1));
    t.ok("writable again", rig.space.mprotect(at(9), PAGE, READ_WRITE));
    t.equal("a group again", leaf(3), GROUP);
    t.equal("it writes at once", rig.device_store(at(9), DELIVERED + 3), Ok(1));
    let found = [3, 15, 10, 9].map(|page| rig.load(at(page)));
    t.equal("what is there", found, [0, 1, 2, 3].map(|more| DELIVERED + more));
    let Some(child) = t.ok("a child", rig.space.fork(cpu)) else { return };
    t.check("it writes, once it has a copy", rig.device_store(at(4), DELIVERED).is_ok_and(|tries| tries > 1));
    t.equal("the copy", (leaf(4), rig.load(at(4))), (PAGE, DELIVERED));
    drop(child);
    t.ok("a part is given up", rig.space.madvise_dontneed(cpu, at(15), PAGE));
    t.equal("zeros", rig.device_load(at(15)), Ok(0));
    t.equal("what is beside it is there", rig.device_load(at(10)), Ok(DELIVERED + 2));
    t.ok("unmapped", rig.space.munmap(cpu, START, 2 * GROUP));
    t.equal("gone", rig.device_load(at(3)), refused(FaultError::NotMapped));
}

// Canaries in what the device had: it reaches none of those frames.
target_test!(a_device_that_stores_while_a_block_goes_writes_to_nothing_else, needs("smmuv3 virtio-blk"), limit(60));
fn a_device_that_stores_while_a_block_goes_writes_to_nothing_else(t: &mut Test) {
    let cpu = this_cpu();
    for split in [false, true] {
        let Some(rig) = rig_with_a_block(t, 1) else { return };
        t.equal("it writes", rig.device_store(MIDDLE, DELIVERED), Ok(1));
        let block = rig.physical(MIDDLE);
        if split {
            t.ok("split", rig.space.mprotect(START, PAGE, Protection::READ));
            t.equal("it writes", rig.device_store(MIDDLE, DELIVERED), Ok(1));
        }
        t.ok("unmapped", rig.space.munmap(cpu, START, BLOCK));
        let Some(taken) = Canaries::in_block(t, block) else { return };
        let gone = rig.device_store(MIDDLE, DELIVERED);
        t.check("nothing was written", taken.are_whole());
        t.equal("gone", gone, refused(FaultError::NotMapped));
        drop(taken);
        t.ok("the disk works", rig.disk.read(DELIVERED, DmaAddress(super::ANSWER.0), super::SECTOR).map(drop));
    }
}

/// A page block that was just freed, taken for another use, and those that were taken beside it.
struct Canaries {
    block: PhysAddr,
    others: Vec<PhysAddr>,
}

impl Canaries {
    const CANARY: u64 = 0x1234_5678;

    /// Takes `block`, and puts a canary in each page.
    fn in_block(t: &mut Test, block: PhysAddr) -> Option<Self> {
        let (cpu, frames) = (this_cpu(), kernel().frames);
        frames.drain_cpu(cpu);
        let mut others = Vec::new();
        let is_taken = loop {
            match frames.alloc_blocks(cpu, 0) {
                Ok(found) if found == block => break true,
                Ok(found) => others.push(found),
                Err(_) => break false,
            }
        };
        t.check("the frames are free", is_taken);
        if !is_taken {
            others.iter().for_each(|&block| frames.free_blocks(cpu, block, 0));
            return None;
        }
        let canaries = Self { block, others };
        // SAFETY: the block is this test's alone.
        canaries.words().for_each(|word| unsafe { word.write_volatile(Self::CANARY) });
        Some(canaries)
    }

    /// The first word of each page.
    fn words(&self) -> impl Iterator<Item = *mut u64> {
        let first = kernel().frames.linear().address(self.block).as_ptr::<u64>();
        (0..BLOCK / PAGE).map(move |page| first.wrapping_add((page * PAGE / 8) as usize))
    }

    fn are_whole(&self) -> bool {
        // SAFETY: as above.
        self.words().all(|word| unsafe { word.read_volatile() } == Self::CANARY)
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        let (cpu, frames) = (this_cpu(), kernel().frames);
        self.others.iter().chain([&self.block]).for_each(|&block| frames.free_blocks(cpu, block, 0));
    }
}

/// A space that shares a file at [`START`], of a block, which is wanted.
fn space_with_a_file(t: &mut Test) -> Option<(SpaceRef, Counted<Object>)> {
    let cpu = this_cpu();
    let file = t.ok("a file", kernel().spaces.create_object(cpu, BLOCK, Some(&[]), Seals(0)))?;
    let space = space(t, 1, Sharing::Private)?;
    let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
    let request = MapRequest { sharing: Sharing::Shared, ..pages(START, BLOCK / PAGE) };
    t.ok("mapped", space.mmap_within(cpu, &request, &terms, &|| false))?;
    t.ok("advised", space.madvise_areas(cpu, START, BLOCK, AreaAdvice::HugePage))?;
    Some((space, file))
}

target_test!(a_device_and_processes_share_a_block_of_a_file, needs("smmuv3 virtio-blk"));
fn a_device_and_processes_share_a_block_of_a_file(t: &mut Test) {
    let Some((space, file)) = space_with_a_file(t) else { return };
    let Some(rig) = Rig::bound_to(t, space) else { return };
    let cpu = this_cpu();
    t.equal("it writes, once it has a block", rig.device_store(MIDDLE, DELIVERED), Ok(2));
    t.equal("a block", leaf(&rig), BLOCK);
    t.equal("the rest, at once", rig.device_store(START, DELIVERED + 1), Ok(1));
    let Some(child) = t.ok("a child", rig.space.fork(cpu)) else { return };
    t.ok("its store", child.write_bytes(cpu, MIDDLE, &7_u64.to_le_bytes()));
    let [own, its] = [&rig.space, &child].map(|space| space.tables().translate(MIDDLE).map(|found| found.physical));
    t.check("in the same block", own.is_some() && own == its);
    t.equal("the device reads it", rig.device_load(MIDDLE), Ok(7));
    t.ok("a page is taken away", file.punch_hole(cpu, 300 * PAGE, 301 * PAGE));
    t.equal("zeros, where a hole is", rig.device_load(MIDDLE), Ok(0));
    t.equal("a page", leaf(&rig), PAGE);
    t.equal("what is beside it stays", rig.device_load(START), Ok(DELIVERED + 1));
    t.ok("shorter", file.truncate(cpu, PAGE));
    t.equal("behind the end", rig.device_load(MIDDLE), refused(FaultError::Unusable));
    t.equal("what is before it stays", rig.device_load(START), Ok(DELIVERED + 1));
}

// Canaries in what the device had, as above.
target_test!(a_device_stores_to_no_block_that_its_file_has_lost, needs("smmuv3 edu"), limit(60));
fn a_device_stores_to_no_block_that_its_file_has_lost(t: &mut Test) {
    let cpu = this_cpu();
    for is_split in [false, true] {
        let Some((space, file)) = space_with_a_file(t) else { return };
        let Some(device) = t.ok("edu", edu(cpu, 0)) else { return };
        t.ok("bound", device.bind(cpu, &space));
        let put = |value: u64| space.write_bytes(cpu, START, &value.to_le_bytes());
        let translate = |page| space.tables().translate(page);
        t.ok("a store", put(8));
        t.equal("the device reads", device.copy_in(DmaAddress(START.0), 0, 8), Ok(1));
        t.equal("it writes", device.copy_out(0, DmaAddress(MIDDLE.0), 8), Ok(1));
        t.equal("a block", translate(MIDDLE).map(|found| found.leaf_size), Some(BLOCK));
        let block = translate(START).map_or(PhysAddr(0), |found| found.physical);
        if is_split {
            t.ok("a page", file.punch_hole(cpu, PAGE, 2 * PAGE));
            t.equal("it writes", device.copy_out(0, DmaAddress(MIDDLE.0), 8), Ok(1));
        }
        t.ok("all of it", file.punch_hole(cpu, 0, BLOCK));
        let Some(taken) = Canaries::in_block(t, block) else { return };
        t.check("the device writes", device.copy_out(0, DmaAddress(MIDDLE.0), 8).is_ok());
        t.check("not to what the file had", taken.are_whole());
        let mut bytes = [0; 8];
        t.ok("read", space.read_bytes(cpu, MIDDLE, &mut bytes));
        t.equal("it has arrived", u64::from_le_bytes(bytes), 8);
        drop(taken);
        t.ok("unbound", device.unbind(cpu));
    }
}
