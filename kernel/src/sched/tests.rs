//! The sleeping lock with the host's threads. `granule-loom` has every order.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::RwSem;
use super::rwsem::{WRITER, Want};

/// Whether the lock can be taken without waiting.
fn is_free_for<T>(sem: &RwSem<T>, want: Want) -> bool {
    let taken = sem.try_take(want, 0).is_some();
    if taken {
        sem.release(if want == Want::Read { 1 } else { WRITER });
    }
    taken
}

#[test]
fn readers_share_and_a_writer_does_not() {
    let sem = RwSem::new(7);
    {
        let (first, second) = (sem.read(), sem.read());
        assert_eq!((*first, *second), (7, 7));
        assert!(!is_free_for(&sem, Want::Write) && is_free_for(&sem, Want::Read));
    }
    {
        *sem.write() = 8;
        let writer = sem.write();
        assert!(!is_free_for(&sem, Want::Read) && !is_free_for(&sem, Want::Write));
        let reader = writer.downgrade();
        assert_eq!(*reader, 8);
        assert!(is_free_for(&sem, Want::Read) && !is_free_for(&sem, Want::Write));
    }
    assert!(is_free_for(&sem, Want::Write));
}

/// Two words that only writers change, always together.
#[test]
fn writers_and_readers_in_any_order_see_whole_values() {
    const ROUNDS: u64 = 2000;
    let sem = RwSem::new((0u64, 0u64));
    let inside = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (sem, inside) = (&sem, &inside);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut writer = sem.write();
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two inside");
                    writer.0 += 1;
                    if round % 3 == number {
                        std::thread::yield_now();
                    }
                    writer.1 += 1;
                    inside.fetch_sub(1, Ordering::Relaxed);
                    if round % 5 == 0 {
                        let reader = writer.downgrade();
                        assert_eq!(reader.0, reader.1);
                    }
                }
            });
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let reader = sem.read();
                    assert_eq!(reader.0, reader.1);
                    if reader.0 % 7 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(*sem.read(), (3 * ROUNDS, 3 * ROUNDS));
    assert!(is_free_for(&sem, Want::Write), "nothing is left of those that waited");
}

#[test]
fn a_reader_does_not_pass_a_writer_that_waits() {
    let sem = RwSem::new(());
    let order = AtomicU32::new(0);
    let first = sem.read();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _writer = sem.write();
            order.fetch_add(1, Ordering::Relaxed)
        });
        while is_free_for(&sem, Want::Read) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let reader = scope.spawn(|| {
            let _reader = sem.read();
            order.fetch_add(1, Ordering::Relaxed)
        });
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(order.load(Ordering::Relaxed), 0, "neither has it while the first reader does");
        drop(first);
        assert_eq!((writer.join().unwrap(), reader.join().unwrap()), (0, 1));
    });
}
