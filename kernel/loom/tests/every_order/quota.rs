//! Tasks that begin and end on several CPUs, by the kernel's own count: never more than may be, none refused while there
//! is room, and none that counts after its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_loom::linux::Tasks;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads};

/// Two CPUs begin a task each and end it, where there may be `most`.
fn begin_and_end(most: u64, omitted: Omitted) {
    threads(move || {
        // Beside them what is there is counted by words that loom does not know.
        let (tasks, there, refused) = (Tasks::new(most), AtomicU64::new(0), AtomicU64::new(0));
        let all = Arc::new((tasks, there, refused));
        let run = move |(tasks, there, refused): &(Tasks, AtomicU64, AtomicU64)| {
            omit(omitted);
            if tasks.begin() {
                assert!(there.fetch_add(1, Ordering::Relaxed) < most, "quota: a task more than may be");
                assert_ne!(tasks.count(), 0, "quota: a task that does not count");
                there.fetch_sub(1, Ordering::Relaxed);
                tasks.end();
            } else {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            omit(Omitted::Nothing);
        };
        let other = Arc::clone(&all);
        let ends = loom::thread::spawn(move || run(&other));
        run(&all);
        ends.join().unwrap();
        assert_eq!(all.0.count(), 0, "quota: a task that has ended counts");
        assert!(most == 1 || all.2.load(Ordering::Relaxed) == 0, "quota: refused with room left");
    });
}

#[test]
fn tasks_are_never_more_than_may_be() {
    begin_and_end(1, Omitted::Nothing);
}

#[test]
fn tasks_with_room_left_are_not_refused() {
    begin_and_end(2, Omitted::Nothing);
}

#[test]
fn a_look_and_a_count_in_two_steps_are_caught() {
    assert_caught("quota: a task", || begin_and_end(1, Omitted::AtomicExchange));
}

#[test]
fn tasks_that_count_in_two_steps_are_caught() {
    assert_caught("quota: a task", || begin_and_end(2, Omitted::AtomicExchange));
}
