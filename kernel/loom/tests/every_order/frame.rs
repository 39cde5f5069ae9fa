//! Records of frames, the kernel's own source: the last of a frame's holders frees it, once, and uses it after all that
//! the others did with it. And a CPU's magazine of free frames, which an interrupt handler uses in between.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use granule_loom::mm::frame::{CpuMagazine, Frame, FreeError};
use granule_loom::sync::interrupts;
use granule_loom::{Omitted, Watched, omit};

use crate::{assert_caught, threads};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// A frame, and its contents, which loom watches.
#[derive(Default)]
struct Page {
    record: Frame,
    contents: Watched<u32>,
    /// How often it was freed, or got its first tags. Not one of loom's: it orders nothing.
    freed: AtomicUsize,
}

impl Page {
    /// The stores of the frame's next owner.
    fn reuse(&self) {
        self.contents.write(0);
        self.freed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// A holder looks at it, and drops its hold as many are dropped.
    fn drop_of_many(&self) {
        self.contents.read();
        if self.record.drop_hold().unwrap() {
            self.reuse();
        }
    }

    /// As [`Self::drop_of_many`], for a hold that is dropped alone.
    fn drop_one(&self) {
        self.contents.read();
        if self.record.put() {
            // Alone with it from here on.
            self.contents.write(1);
            self.record.free().unwrap();
            self.reuse();
        }
    }

    /// A holder adds another, and both drop their hold.
    fn share_and_drop(&self) {
        self.record.share();
        self.drop_of_many();
        self.drop_one();
    }

    /// A holder writes to it in place where it is the only one, as after a fork, and drops its hold.
    fn write_alone(&self) {
        if self.record.references() == 1 {
            self.contents.write(1);
        }
        self.drop_one();
    }
}

/// Three holders at once.
fn held_by_three(omitted: Omitted, holders: [fn(&Page); 3]) {
    threads(move || {
        let page = Arc::new(Page::default());
        page.record.hand_out();
        page.record.share();
        page.record.share();
        let spawn = |holder: fn(&Page)| {
            let page = Arc::clone(&page);
            loom::thread::spawn(move || {
                omit(omitted);
                holder(&page);
            })
        };
        let others = [holders[1], holders[2]].map(spawn);
        omit(omitted);
        holders[0](&page);
        omit(Omitted::Nothing);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(page.freed.load(std::sync::atomic::Ordering::Relaxed), 1, "it was not freed once");
        assert_eq!(page.record.references(), 0);
    });
}

#[test]
fn the_last_of_three_holders_frees_it_once() {
    held_by_three(Omitted::Nothing, [Page::drop_of_many; 3]);
    held_by_three(Omitted::Nothing, [Page::drop_one; 3]);
    held_by_three(Omitted::Nothing, [Page::drop_one, Page::drop_of_many, Page::drop_one]);
}

#[test]
fn a_holder_that_comes_while_others_go_keeps_it() {
    held_by_three(Omitted::Nothing, [Page::share_and_drop, Page::drop_of_many, Page::drop_one]);
}

#[test]
fn a_holder_that_finds_itself_alone_writes_behind_the_reads_of_the_others() {
    held_by_three(Omitted::Nothing, [Page::write_alone, Page::drop_of_many, Page::drop_of_many]);
    held_by_three(Omitted::Nothing, [Page::write_alone, Page::write_alone, Page::drop_one]);
}

#[test]
fn counts_that_order_nothing_are_caught() {
    let ways: [[fn(&Page); 3]; 3] =
        [[Page::drop_of_many; 3], [Page::drop_one; 3], [Page::write_alone, Page::drop_one, Page::drop_one]];
    for holders in ways {
        assert_caught(RACE, || held_by_three(Omitted::Order, holders));
    }
}

#[test]
fn a_count_that_is_not_changed_in_one_step_is_caught() {
    assert_caught("it was not freed once", || held_by_three(Omitted::AtomicExchange, [Page::drop_of_many; 3]));
}

/// Two CPUs map a frame as checked at once, and the program of each looks at its tags, which are the contents here.
fn tagged_by_two(omitted: Omitted) {
    threads(move || {
        let page = Arc::new(Page::default());
        page.record.hand_out();
        page.record.share();
        let map = move |page: &Page| {
            omit(omitted);
            page.record.tag_once(|| page.reuse());
            omit(Omitted::Nothing);
            page.contents.read();
        };
        let other = Arc::clone(&page);
        let mapper = loom::thread::spawn(move || map(&other));
        map(&page);
        mapper.join().unwrap();
        assert_eq!(page.freed.load(std::sync::atomic::Ordering::Relaxed), 1, "tags were not zeroed once");
    });
}

#[test]
fn a_frame_gets_its_first_tags_once_and_before_any_program_has_it() {
    tagged_by_two(Omitted::Nothing);
}

#[test]
fn first_tags_without_an_order_or_a_claim_are_caught() {
    assert_caught(RACE, || tagged_by_two(Omitted::Order));
    assert_caught(RACE, || tagged_by_two(Omitted::AtomicSet));
}

/// Two CPUs free a frame that one of them does not own.
#[test]
fn of_two_frees_at_once_one_is_refused() {
    threads(|| {
        let page = Arc::new(Page::default());
        page.record.hand_out();
        let other = Arc::clone(&page);
        let frees = loom::thread::spawn(move || other.record.free());
        let mut results = [page.record.free(), frees.join().unwrap()];
        results.sort_by_key(Result::is_err);
        assert_eq!(results, [Ok(()), Err(FreeError::DoubleFree)]);
    });
}

/// A CPU takes two frames and gives one back, and a handler that comes after so many accesses takes one and gives back
/// another. Whether it came.
fn interrupted(omitted: Omitted, accesses: usize) -> bool {
    let came = Arc::new(AtomicBool::new(false));
    let comes = Arc::clone(&came);
    threads(move || {
        let (magazine, taken) = (Arc::new(CpuMagazine::default()), Arc::new(Mutex::new(Vec::new())));
        assert!((1..4).all(|frame| magazine.give(frame)));
        omit(omitted);
        let (own, takes) = (Arc::clone(&magazine), Arc::clone(&taken));
        interrupts::interrupt_after(accesses, move || {
            takes.lock().unwrap().extend(own.take());
            assert!(own.give(4));
        });
        let [first, second] = [(), ()].map(|()| magazine.take().expect("there are enough"));
        assert!(magazine.give(first));
        comes.store(!interrupts::cancel(), std::sync::atomic::Ordering::Relaxed);
        omit(Omitted::Nothing);
        if !comes.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        let mut frames = taken.lock().unwrap().clone();
        frames.push(second);
        frames.extend(std::iter::from_fn(|| magazine.take()));
        assert_eq!(frames.len(), 4, "a frame was lost, or handed out twice: {frames:?}");
        assert_eq!(BTreeSet::from_iter(frames), BTreeSet::from([1, 2, 3, 4]));
    });
    came.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_handler_that_uses_the_magazine_at_any_access_takes_no_frame_twice() {
    let points = (1..).take_while(|&accesses| interrupted(Omitted::Nothing, accesses)).count();
    assert!(points > 9, "only {points} accesses were interrupted");
}

#[test]
fn a_magazine_that_is_used_with_interrupts_on_is_caught() {
    let all = || (1..).take_while(|&accesses| interrupted(Omitted::Masks, accesses)).for_each(drop);
    assert_caught(if cfg!(debug_assertions) { "two CPUs use one CPU number" } else { "frame" }, all);
}
