//! Blocks of tag storage, the kernel's own source: a block is claimed by one CPU at a time, is never given back under a
//! user, and is never lent and reserved at once.

use std::sync::Arc;

use granule_loom::mm::tag_storage::{Block, Without};
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// Reserves the storage of a frame, however often another CPU has claimed the block.
fn reserve(block: &Block) {
    while !block.reserve() {
        loom::thread::yield_now();
    }
}

/// Another CPU, which leaves a step out.
fn spawn<T: 'static>(
    block: &Arc<Block>,
    omitted: Omitted,
    work: impl FnOnce(&Block) -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    let block = Arc::clone(block);
    loom::thread::spawn(move || {
        omit(omitted);
        work(&block)
    })
}

/// Two CPUs reserve the storage of frames that share a block, the second of them without a step.
fn shared_by_two(omitted: Omitted) {
    threads(move || {
        let block = Arc::new(Block::new(Without::Nothing));
        let other = spawn(&block, omitted, reserve);
        reserve(&block);
        other.join().unwrap();
        assert_eq!(block.counts(), (Some(2), 1, 0), "not claimed once for two users");
    });
}

#[test]
fn a_block_that_two_frames_share_is_claimed_once() {
    shared_by_two(Omitted::Nothing);
}

#[test]
fn a_claim_that_is_not_one_step_is_caught() {
    assert_caught("claimed while it was reserved", || shared_by_two(Omitted::AtomicExchange));
}

/// The CPU that claims a block has invalidated its lines before another adds a user, and writes tags.
#[test]
fn a_reservation_that_does_not_publish_the_emptied_block_is_caught() {
    assert_caught(RACE, || shared_by_two(Omitted::Release));
}

#[test]
fn a_user_that_is_added_without_an_order_is_caught() {
    assert_caught(RACE, || shared_by_two(Omitted::Order));
}

/// A block's only user leaves, without a step, and another CPU reserves.
fn last_user_leaves(omitted: Omitted, without: Without) {
    threads(move || {
        let block = Arc::new(Block::new(without));
        reserve(&block);
        let other = spawn(&block, omitted, Block::leave);
        reserve(&block);
        other.join().unwrap();
        let (users, reserved, returned) = block.counts();
        assert_eq!(users, Some(1), "given back under its user");
        assert_eq!(reserved, returned + 1, "not emptied once for each time that it was given back");
        assert!(!block.lend(), "lent under its user");
    });
}

#[test]
fn a_block_is_not_given_back_under_a_user_that_comes_as_the_last_leaves() {
    last_user_leaves(Omitted::Nothing, Without::Nothing);
}

#[test]
fn a_last_user_that_does_not_leave_in_one_step_is_caught() {
    // Given back under its user.
    assert_caught(RACE, || last_user_leaves(Omitted::AtomicExchange, Without::Nothing));
}

#[test]
fn a_last_user_that_is_not_done_when_its_claim_ends_is_caught() {
    assert_caught(RACE, || last_user_leaves(Omitted::Nothing, Without::LastClaim));
}

/// Both users of a block leave, the second without a step: the last comes after the maintenance of the first.
fn both_users_leave(omitted: Omitted) {
    threads(move || {
        let block = Arc::new(Block::new(Without::Nothing));
        reserve(&block);
        reserve(&block);
        let other = spawn(&block, omitted, Block::leave);
        block.leave();
        other.join().unwrap();
        assert_eq!(block.counts(), (None, 1, 1), "not given back once");
        assert!(block.lend(), "not lendable behind its last user");
    });
}

#[test]
fn a_block_is_given_back_once_behind_all_its_users() {
    both_users_leave(Omitted::Nothing);
}

#[test]
fn users_that_leave_without_an_order_or_a_step_are_caught() {
    assert_caught(RACE, || both_users_leave(Omitted::Order));
    assert_caught("not given back once", || both_users_leave(Omitted::AtomicExchange));
}

/// A CPU lends a frame of a block that another claims.
fn lent_beside_a_claim(without: Without) {
    threads(move || {
        let block = Arc::new(Block::new(without));
        let lender = spawn(&block, Omitted::Nothing, Block::lend);
        let is_reserved = block.reserve();
        let is_lent = lender.join().unwrap();
        assert!(!(is_lent && is_reserved), "lent and reserved");
        assert!(is_lent || is_reserved, "neither lent nor reserved");
    });
}

#[test]
fn a_block_is_lent_or_reserved_and_never_both() {
    lent_beside_a_claim(Without::Nothing);
}

#[test]
fn a_claimer_that_looks_at_what_is_lent_without_the_lock_or_before_its_claim_is_caught() {
    assert_caught("lent and reserved", || lent_beside_a_claim(Without::Lock));
    assert_caught("lent and reserved", || lent_beside_a_claim(Without::LookBehindClaim));
}

/// The contents of a claimed block move away while another CPU looks for a frame to lend.
fn emptied_beside_a_lender(without: Without) {
    threads(move || {
        let block = Arc::new(Block::new(without));
        assert!(block.lend());
        let lender = spawn(&block, Omitted::Nothing, Block::lend);
        let is_reserved = block.reserve_occupied();
        assert!(!lender.join().unwrap(), "lent while it was emptied");
        assert!(is_reserved, "what was emptied did not stay so");
    });
}

#[test]
fn a_block_that_is_being_emptied_is_not_lent() {
    emptied_beside_a_lender(Without::Nothing);
}

#[test]
fn a_lender_that_does_not_look_at_the_use_of_the_block_is_caught() {
    assert_caught("lent while it was emptied", || emptied_beside_a_lender(Without::LookOfLender));
}

/// The last user leaves, and another CPU lends the frame and writes to it.
fn lent_after_the_last_user(without: Without) {
    threads(move || {
        let block = Arc::new(Block::new(without));
        reserve(&block);
        let other = spawn(&block, Omitted::Nothing, Block::leave);
        if block.lend() {
            block.borrow();
        }
        other.join().unwrap();
        assert_eq!(block.counts(), (None, 1, 1));
    });
}

#[test]
fn a_borrower_writes_behind_all_that_the_last_user_did() {
    lent_after_the_last_user(Without::Nothing);
}

#[test]
fn a_borrower_beside_a_last_user_that_is_not_done_is_caught() {
    assert_caught(RACE, || lent_after_the_last_user(Without::LastClaim));
}
