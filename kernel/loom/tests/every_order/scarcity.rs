//! Page blocks, the kernel's own source: exactly as many frames stay free as are to, whichever CPU takes the others and in
//! whatever order; a frame that is free is found; and an isolated block serves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule_loom::mm::free_frames::FreeFrames;
use granule_loom::mm::page_block::BLOCK_FRAMES;
use granule_loom::sync::rank;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads_with};

/// The frames that stay.
const LEFT: usize = 1;

/// A CPU beside the first, which leaves a step out.
fn spawn<T: 'static>(
    frames: &Arc<FreeFrames>,
    omitted: Omitted,
    work: impl FnOnce(&FreeFrames) -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    let frames = Arc::clone(frames);
    loom::thread::spawn(move || {
        omit(omitted);
        let result = work(&frames);
        omit(Omitted::Nothing);
        result
    })
}

/// Two CPUs each take frames until they get no more: the way is open at first.
fn take_all(omitted: Omitted) {
    threads_with(2, move || {
        let frames = Arc::new(FreeFrames::new(3));
        let take = |frames: &FreeFrames, number| while frames.take(number, BLOCK_FRAMES, LEFT).is_some() {};
        let other = spawn(&frames, omitted, move |frames| take(frames, 1));
        omit(omitted);
        take(&frames, 0);
        omit(Omitted::Nothing);
        other.join().unwrap();
        assert_eq!(frames.free(), LEFT, "not as many stay as are to");
    });
}

#[test]
fn as_many_stay_as_are_to() {
    take_all(Omitted::Nothing);
}

#[test]
fn cpus_that_take_frames_alone_without_a_lock_are_caught() {
    assert_caught("", || take_all(Omitted::Lock(rank::SCARCE)));
    assert_caught("", || take_all(Omitted::Lock(rank::PAGE_BLOCK)));
}

/// A CPU takes a frame while a block, which is all that is free, goes from the other's list to the buddy.
fn take_beside_a_join(omitted: Omitted) {
    threads_with(3, move || {
        let frames = Arc::new(FreeFrames::new(1));
        let first = frames.take(1, BLOCK_FRAMES, 0).expect("all are free");
        frames.put(1, first, BLOCK_FRAMES);
        let other = spawn(&frames, omitted, |frames| frames.give_back(1));
        omit(omitted);
        assert!(frames.take(0, 1, 0).is_some(), "a free frame was not found");
        omit(Omitted::Nothing);
        other.join().unwrap();
        assert_eq!(frames.free(), BLOCK_FRAMES - 1);
    });
}

#[test]
fn a_frame_that_is_free_all_the_time_is_found() {
    take_beside_a_join(Omitted::Nothing);
}

#[test]
fn a_block_that_is_in_no_count_for_a_moment_is_caught() {
    // One of both changes of a count is lost, or a free frame is not found.
    assert_caught("", || take_beside_a_join(Omitted::Lock(rank::BUDDY)));
}

/// A block of which two frames are in use is isolated, both come back, and it becomes whole, while a CPU takes a frame.
///
/// Returns in how many orders it was.
fn isolated(omitted: Omitted) -> usize {
    let times = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&times);
    threads_with(3, move || {
        let frames = Arc::new(FreeFrames::new(2));
        let [first, second] = [(); 2].map(|()| frames.take(0, BLOCK_FRAMES, 0).expect("both are free"));
        frames.put(0, first, BLOCK_FRAMES - 2);
        frames.put(0, second, 8);
        // Not loom's: it orders nothing.
        let isolated = Arc::new(AtomicUsize::new(0));
        let block = Arc::clone(&isolated);
        let isolates = spawn(&frames, omitted, move |frames| {
            if !frames.isolate(1, first) {
                return false;
            }
            block.store(first, Ordering::Relaxed);
            frames.put(1, first + BLOCK_FRAMES - 2, 2);
            block.store(0, Ordering::Relaxed);
            frames.end_isolation(1, first)
        });
        omit(omitted);
        let before = isolated.load(Ordering::Relaxed);
        let taken = frames.take(0, 1, 0).expect("there are others");
        let is_isolated = before != 0 && before == isolated.load(Ordering::Relaxed);
        omit(Omitted::Nothing);
        assert!(!is_isolated || taken / BLOCK_FRAMES != first / BLOCK_FRAMES, "a frame of an isolated block was taken");
        if isolates.join().unwrap() {
            assert_eq!((frames.free_blocks(), frames.free()), (1, BLOCK_FRAMES + 8 - 1));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    times.load(Ordering::Relaxed)
}

#[test]
fn an_isolated_block_serves_nothing_and_becomes_whole() {
    assert_ne!(isolated(Omitted::Nothing), 0, "in no order it was isolated");
}

#[test]
fn a_block_that_is_isolated_without_its_lock_is_caught() {
    // A count is wrong, or a frame is lost.
    assert_caught("", || _ = isolated(Omitted::Lock(rank::PAGE_BLOCK)));
}
