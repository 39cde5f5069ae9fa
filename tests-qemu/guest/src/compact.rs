//! Page blocks that become whole again where a program finds none.

use alloc::vec::Vec;

use granule::kernel;
use granule::mm::space::{MapRequest, Placement, Populate, Sharing};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::harness::{TakenFrames, Test, frames_in_use, target_test, wait_until};

const START: VirtAddr = VirtAddr(0x1000_0000);
/// 32 MiB: what is left of them is more than the compactor leaves to others.
const PAGES: u64 = 16 * 512;

target_test!(blocks_are_made_where_a_program_finds_none, limit(90));
fn blocks_are_made_where_a_program_finds_none(t: &mut Test) {
    let (cpu, frames) = (this_cpu(), kernel().frames);
    let Some(space) = t.ok("a space", kernel().spaces.create(cpu)) else { return };
    let protection = Protection::READ.and(Protection::WRITE);
    let (placement, populate) = (Placement::Fixed(START), Populate::Now);
    let request = MapRequest { placement, bytes: PAGES * PAGE, protection, sharing: Sharing::Private, populate };
    t.ok("pages", space.mmap(cpu, &request));
    let kept = || (0..PAGES).step_by(4);
    for page in kept() {
        t.ok("written", space.write_bytes(cpu, START + page * PAGE, &page.to_le_bytes()));
    }
    let mut blocks = TakenFrames::default();
    blocks.take_blocks(|| true);
    for page in kept() {
        t.ok("given up", space.madvise_dontneed(cpu, START + (page + 1) * PAGE, 3 * PAGE));
    }
    frames.drain_cpu(cpu);
    // The compactor may be at work already, for an earlier test that found none.
    let mut early = Vec::new();
    while let Ok(block) = frames.alloc_splittable(cpu) {
        early.push(block);
    }
    // The compactor has frames in its hands in a pass.
    let (in_use, mut others) = (frames_in_use(), 0);
    // Longer than its longest pause.
    wait_until(|| {
        others += u64::from(frames_in_use() != in_use);
        frames.stats().free_blocks != 0
    });
    t.equal("accounts of frames that differ while it works", others, 0);
    t.check("one was made", frames.stats().free_blocks != 0);
    let mut lost = 0;
    for page in kept() {
        let mut bytes = [0; 8];
        let read = space.read_bytes(cpu, START + page * PAGE, &mut bytes);
        lost += u64::from(read.is_err() || u64::from_le_bytes(bytes) != page);
    }
    t.equal("pages with other contents", lost, 0);
    let block = frames.alloc_splittable(cpu);
    t.check("a block can be had", block.is_ok());
    early.into_iter().chain(block.ok()).for_each(|block| frames.free_splittable(cpu, block));
    drop(blocks);
}
