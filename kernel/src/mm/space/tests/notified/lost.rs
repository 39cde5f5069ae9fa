//! Fixes that are taken away: the order of events shows each.

use super::*;

#[test]
fn without_its_event_an_upgrade_is_not_notified_late() {
    let stage = Stage::new(1);
    drop(stage.fork());
    let expected = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh";
    assert_caught(&lab::NO_UPGRADE_EVENT, &stage, || stage.fault(0, Access::Write), expected);
}

#[test]
fn an_upgrade_event_before_the_unlock_comes_under_the_lock() {
    for old in [false, true] {
        let stage = Stage::new(1);
        if old {
            stage.make_old(0);
        } else {
            drop(stage.fork());
        }
        let expected = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh, start upgrade 0..1 (locked), \
                        end upgrade 0..1 (locked)";
        assert_caught(&lab::NOTIFY_BEFORE_UNLOCK, &stage, || stage.fault(0, Access::Write), expected);
    }
}

#[test]
fn a_copy_without_its_invalidation_leaves_the_old_page_in_use() {
    let stage = Stage::new(1);
    let _child = stage.fork();
    let expected = "start clear 0..1, write, end clear 0..1";
    assert_caught(&lab::STALE_COW, &stage, || stage.fault(0, Access::Write), expected);
}
