//! Blocks of 2 MiB: a device that brings them, and sees what becomes of them.

#![allow(unsafe_code, reason = "looks at a block of its own by the linear map")]

use granule::iommu::DmaAddress;
use granule::kernel;
use granule::mm::space::{AreaAdvice, FaultError, Sharing};
use granule::smp::this_cpu;
use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;

use super::{DELIVERED, PAGE, READ_WRITE, Rig, START, refused, space};
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

// Canaries in what the device had: it reaches none of those frames.
target_test!(a_device_that_stores_while_a_block_goes_writes_to_nothing_else, needs("smmuv3 virtio-blk"), limit(60));
fn a_device_that_stores_while_a_block_goes_writes_to_nothing_else(t: &mut Test) {
    const CANARY: u64 = 0x1234_5678;
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
        // The same frames for another use.
        let frames = kernel().frames;
        frames.drain_cpu(cpu);
        let mut others = alloc::vec::Vec::new();
        let taken = loop {
            match frames.alloc_blocks(cpu, 0) {
                Ok(found) if found == block => break Some(found),
                Ok(found) => others.push(found),
                Err(_) => break None,
            }
        };
        t.check("the frames are free", taken.is_some());
        let Some(taken) = taken else { return };
        let words = frames.linear().address(taken).as_ptr::<u64>();
        let word = |page: u64| words.wrapping_add((page * PAGE / 8) as usize);
        // SAFETY: the block is this test's alone.
        (0..BLOCK / PAGE).for_each(|page| unsafe { word(page).write_volatile(CANARY) });
        let gone = rig.device_store(MIDDLE, DELIVERED);
        // SAFETY: as above.
        let is_whole = (0..BLOCK / PAGE).all(|page| unsafe { word(page).read_volatile() } == CANARY);
        t.check("nothing was written", is_whole);
        t.equal("gone", gone, refused(FaultError::NotMapped));
        others.iter().chain([&taken]).for_each(|&block| frames.free_blocks(cpu, block, 0));
        t.ok("the disk works", rig.disk.read(DELIVERED, DmaAddress(super::ANSWER.0), super::SECTOR).map(drop));
    }
}
