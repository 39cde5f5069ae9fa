//! A handle keeps the record of a space and not the space.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{SpaceHandle, SpaceUser};
use super::Rig;
use crate::mm::notifier::recording::{Notified, Recording};
use crate::mm::notifier::{SubscribeError, Subscription};

type Listener = Subscription<Recording, SpaceHandle>;

#[test]
fn a_subscriber_by_a_handle_does_not_keep_the_programs_memory() {
    let rig = Rig::new(4);
    let used = rig.used();
    let space = rig.space();
    let start = rig.map(&space, 4);
    (0..4).for_each(|page| rig.write(&space, start + page * super::PAGE, 1));
    let handle = SpaceHandle::new(&space);
    let listener = Listener::new(SpaceHandle::new(&space), Recording::default(), 0).unwrap();
    assert!(handle.upgrade().is_some_and(|upgraded| upgraded.is(&space)));

    drop(space);
    assert_eq!(rig.used(), used, "its pages, its tables and its root are free");
    let notified: Vec<_> = listener.take().iter().map(|call| call.notified).collect();
    assert!(notified.contains(&Notified::Release), "{notified:?}");
    assert!(handle.upgrade().is_none(), "it has ended, and does not come back");
    let late = Listener::new(handle, Recording::default(), 0);
    assert!(matches!(late, Err(SubscribeError::Released)));

    assert_eq!(rig.spaces.counts()[0], 1, "the record stays while a subscriber may leave the chain");
    drop(late);
    drop(listener);
    assert_eq!(rig.spaces.counts()[0], 0);
}

/// A reference that only looks at a space does not make it one that a device may use.
#[test]
fn a_released_space_has_ended_though_a_reference_is_left() {
    let rig = Rig::new(4);
    let space = rig.space();
    let handle = SpaceHandle::new(&space);
    space.release(&rig.cpu);
    assert!(handle.upgrade().is_none());
}

/// The holder of a reference that is left frees a root and a record: the choice of a process that ends for want of
/// memory looks at spaces whose last thread may leave them concurrently.
#[test]
fn the_last_thread_frees_a_space_though_a_reference_is_left() {
    let rig = Rig::new(4);
    let used = rig.used();
    let space = rig.space();
    let with_root = rig.used();
    let users = [(); 2].map(|()| SpaceUser::new(space.clone()));
    let start = rig.map(&space, 4);
    (0..4).for_each(|page| rig.write(&space, start + page * super::PAGE, 1));
    let [first, last] = users;
    drop(first);
    assert!(rig.used() > with_root + 4, "a thread is left");
    drop(last);
    assert_eq!((rig.used(), rig.spaces.counts()), (with_root, [1, 0, 0]));
    drop(space);
    assert_eq!((rig.used(), rig.spaces.counts()[0]), (used, 0));
}

/// An upgrade gets the space or fails, while the last reference goes.
#[test]
fn a_space_ends_once_while_handles_are_upgraded() {
    let rig = Rig::new(4);
    for _ in 0..200 {
        let space = rig.space();
        let handle = SpaceHandle::new(&space);
        let upgraded = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(space));
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(space) = handle.upgrade() {
                        upgraded.fetch_add(1, Ordering::Relaxed);
                        assert!(space.read_all_areas().iter().next().is_none());
                    }
                });
            }
        });
        assert!(handle.upgrade().is_none());
        drop(handle);
        assert_eq!(rig.spaces.counts()[0], 0);
    }
}
