//! The sleeping lock with the host's threads. `granule-loom` has every order.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::RwSem;
use super::rwsem::{BRIEF_SHIFT, WRITER, Want};
use crate::sync::WOKEN_AT_ONCE;
use crate::sync::{IrqLock, rank};

const WAITING: u64 = 1 << 62;
/// The bits of CPU 0 and of CPU 15.
const FIRST: u64 = 1 << BRIEF_SHIFT;
const LAST: u64 = 1 << (BRIEF_SHIFT + 15);

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
    let sem = RwSem::new(rank::REQUESTS, 7);
    {
        let (first, second) = (sem.read(), sem.try_read().unwrap());
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

/// Each state of the word: what a reader, and a writer on CPU 0, make of it.
#[test]
fn the_word_says_what_may_be_taken() {
    for (word, read, written) in [
        (0, Some(1), Some(WRITER | FIRST)),
        (1, Some(2), None),
        (WAITING - 1 - (0xffff << BRIEF_SHIFT) - 1, Some((1 << BRIEF_SHIFT) - 1), None),
        (FIRST, Some(FIRST | 1), Some(WRITER | FIRST)),
        (LAST, Some(LAST | 1), Some(WRITER | FIRST)),
        (FIRST | LAST | 2, Some(FIRST | LAST | 3), None),
        (WRITER, None, None),
        (WRITER | FIRST, None, None),
        (WAITING, None, None),
        (WAITING | 1, None, None),
        (WAITING | WRITER | LAST, None, None),
    ] {
        for (want, expected) in [(Want::Read, read), (Want::Write, written)] {
            let sem = RwSem::new(rank::REQUESTS, ());
            sem.word.store(word, Ordering::Relaxed);
            assert_eq!(sem.try_take(want, FIRST), expected.map(|_| word), "{want:?} of {word:#x}");
            assert_eq!(sem.word.load(Ordering::Relaxed), expected.unwrap_or(word), "{want:?} of {word:#x}");
        }
    }
}

/// Each release: the last one hands the lock on, which finds an empty queue here, and clears the mark of one.
#[test]
fn a_release_takes_its_share_and_the_last_one_looks_at_the_queue() {
    for (word, held, left) in [
        (1, 1, 0),
        (3, 1, 2),
        (LAST | 1, 1, LAST),
        (WRITER | FIRST, WRITER, FIRST),
        (WAITING | 2, 1, WAITING | 1),
        (WAITING | 1, 1, 0),
        (WAITING | LAST | 1, 1, LAST),
        (WAITING | WRITER | FIRST, WRITER, FIRST),
    ] {
        let sem = RwSem::new(rank::REQUESTS, ());
        sem.word.store(word, Ordering::Relaxed);
        sem.release(held);
        assert_eq!(sem.word.load(Ordering::Relaxed), left, "{held:#x} of {word:#x}");
    }
}

/// More readers than a release wakes: those that it has woken wake the others.
#[test]
fn all_readers_that_wait_come_in_together() {
    const READERS: usize = 3 * WOKEN_AT_ONCE + 2;
    let (sem, together) = (RwSem::new(rank::REQUESTS, 0), Barrier::new(READERS));
    let arrived = AtomicU32::new(0);
    let mut writer = sem.write();
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                arrived.fetch_add(1, Ordering::Relaxed);
                let reader = sem.read();
                // All have it, or this waits for ever.
                together.wait();
                assert_eq!(*reader, 1);
            });
        }
        while arrived.load(Ordering::Relaxed) < READERS as u32 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(5));
        *writer = 1;
        drop(writer);
    });
    assert!(is_free_for(&sem, Want::Write), "nothing is left of them");
}

/// Two words that only writers change, always together.
#[test]
fn writers_and_readers_in_any_order_see_whole_values() {
    const ROUNDS: u64 = 2000;
    let sem = RwSem::new(rank::REQUESTS, (0u64, 0u64));
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
    let sem = RwSem::new(rank::REQUESTS, ());
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

/// Whether `acquire`, on a thread that holds nothing else, is refused by the check of the order.
#[cfg(debug_assertions)]
#[track_caller]
fn assert_order(is_refused: bool, acquire: impl FnOnce() + Send) {
    let panicked = std::thread::scope(|scope| scope.spawn(acquire).join().is_err());
    assert_eq!(panicked, is_refused);
}

#[cfg(debug_assertions)]
#[test]
fn sleeping_locks_are_acquired_in_their_order() {
    let [areas, second, third] = [(); 3].map(|()| RwSem::new(rank::AREAS, ()));
    let (heap, object) = (RwSem::new(rank::PROGRAM_HEAP, ()), RwSem::new(rank::OBJECT, ()));
    assert_order(false, || drop((heap.read(), areas.write(), object.read())));
    assert_order(true, || drop((areas.read(), heap.read())));
    assert_order(true, || drop((object.write().downgrade(), areas.write())));
    assert_order(true, || drop((heap.read(), heap.read())));
    // Two of this rank, and no third.
    assert_order(false, || drop((areas.write(), second.write(), object.read())));
    assert_order(true, || drop((areas.write(), second.write(), third.read())));
    // Released in any order, and acquired again.
    assert_order(false, || {
        let (first, above) = (areas.write(), second.read());
        drop(first);
        drop(above);
        drop((heap.write(), areas.read()));
    });
    // A try does not wait, and is known afterwards.
    assert_order(false, || drop((object.read(), areas.try_read())));
    assert_order(true, || {
        let _object = object.try_read();
        drop(heap.read());
    });
}

/// The ranks are the thread's: another one, which runs while it sleeps, has its own.
#[cfg(debug_assertions)]
#[test]
fn ranks_of_sleeping_locks_follow_the_thread() {
    let (heap, areas) = (RwSem::new(rank::PROGRAM_HEAP, ()), RwSem::new(rank::AREAS, ()));
    let held = areas.write();
    assert_order(false, || drop(heap.read()));
    drop(held);
}

#[cfg(debug_assertions)]
#[test]
fn a_sleeping_lock_comes_before_every_spinning_one() {
    let (spinning, areas) = (IrqLock::<_, { rank::WAIT }>::new(()), RwSem::new(rank::AREAS, ()));
    assert_order(false, || drop((areas.read(), spinning.lock())));
    assert_order(true, || drop((spinning.lock(), areas.read())));
    assert_order(false, || drop((spinning.lock(), areas.try_read())));
}
