//! Frames on the metal: each is memory of its own, seen through the linear map.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use granule::mm::layout;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE_SIZE, PhysAddr};

use crate::harness::{Test, target_test};

/// Frames that are out at the same time: more than a magazine holds.
const FRAMES: usize = 300;

target_test!(are_each_memory_of_their_own);
fn are_each_memory_of_their_own(t: &mut Test) {
    let frames = &granule::kernel().frames;
    let mut taken: heapless::Vec<(PhysAddr, u64), FRAMES> = heapless::Vec::new();
    while !taken.is_full() {
        let Some(frame) = t.ok("a frame", frames.alloc(this_cpu())) else { break };
        let mark = t.random();
        // The first and the last word: a frame that overlaps another, or ends early, loses one of them.
        for offset in [0, PAGE_SIZE - 8] {
            // SAFETY: the frame is this test's, and the linear map shows it.
            unsafe { word(frame, offset).write_volatile(mark ^ offset as u64) };
        }
        let _ = taken.push((frame, mark));
    }
    let mut intact = true;
    for &(frame, mark) in &taken {
        for offset in [0, PAGE_SIZE - 8] {
            // SAFETY: as above.
            intact &= unsafe { word(frame, offset).read_volatile() } == mark ^ offset as u64;
        }
        frames.free(this_cpu(), frame);
    }
    t.check("every frame kept its marks", intact);
}

fn word(frame: PhysAddr, offset: usize) -> *mut u64 {
    (layout::linear(frame).0 as usize + offset) as *mut u64
}
