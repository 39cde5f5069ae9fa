//! How many frames stay free: exactly as many as are to, whichever thread takes the others, and in whatever order.

use std::sync::Arc;

use granule_loom::mm::page_block::{FreeFrames, Without};

use crate::{assert_caught, threads};

/// The frames that stay.
const LEFT: usize = 1;

/// Two CPUs that have `own` frames each take frames until they get no more.
fn take_all(own: usize, without: Without) {
    threads(move || {
        let frames = Arc::new(FreeFrames::new([own; 2], LEFT + 2, LEFT, without));
        let other = Arc::clone(&frames);
        let other = loom::thread::spawn(move || while other.take(1) {});
        while frames.take(0) {}
        other.join().unwrap();
        assert_eq!(frames.total(), LEFT, "not as many stay as are to");
    });
}

/// A CPU takes a frame while a block, which is all that is free, goes from the other's list to the buddy.
fn take_beside_a_join(without: Without) {
    threads(move || {
        let frames = Arc::new(FreeFrames::new([0, 1], 0, 0, without));
        let other = Arc::clone(&frames);
        let other = loom::thread::spawn(move || other.join(1));
        assert!(frames.take(0), "a free frame was not found");
        other.join().unwrap();
        assert_eq!(frames.total(), 0);
    });
}

#[test]
fn a_frame_that_is_free_all_the_time_is_found() {
    take_beside_a_join(Without::Nothing);
}

#[test]
fn a_block_that_is_in_no_count_for_a_moment_is_caught() {
    assert_caught("was not found", || take_beside_a_join(Without::OneStep));
}

#[test]
fn a_buddy_that_is_looked_at_before_the_lists_alone_is_caught() {
    assert_caught("was not found", || take_beside_a_join(Without::LastLook));
}

#[test]
fn as_many_stay_as_are_to() {
    take_all(1, Without::Nothing);
}

#[test]
fn a_cpu_that_found_the_way_open_and_is_not_waited_for_is_caught() {
    assert_caught("not as many stay", || take_all(1, Without::Pass));
}

#[test]
fn two_cpus_that_both_find_plenty_for_one_are_caught() {
    assert_caught("not as many stay", || take_all(0, Without::Margin));
}
