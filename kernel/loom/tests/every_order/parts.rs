//! The parts of a space's areas, the kernel's own source, in every order: what locks a page finds its number, whatever is
//! divided and joined concurrently, no two change it at once, and no thread waits for ever.

use std::sync::Arc;

use granule_loom::mm::space::Pages;
use granule_loom::sync::rank;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, short_and_long, threads_with};

const NOTHING: [Omitted; 2] = [Omitted::Nothing; 2];

/// Two threads at once, each without a step, on pages that `before` has divided; what the numbers of the pages add up to.
fn at_once(preemptions: usize, omitted: [Omitted; 2], before: fn(&Pages), others: [fn(&Pages); 2], sum: u32) {
    const PAGES: u64 = 4;
    threads_with(preemptions, move || {
        let pages = Arc::new(Pages::new(PAGES));
        before(&pages);
        let [other, own] = others;
        let thread = {
            let pages = Arc::clone(&pages);
            loom::thread::spawn(move || {
                omit(omitted[0]);
                other(&pages);
            })
        };
        omit(omitted[1]);
        own(&pages);
        thread.join().unwrap();
        omit(Omitted::Nothing);
        assert_eq!((0..PAGES).map(|page| pages.read(page)).sum::<u32>(), sum);
    });
}

fn whole(_: &Pages) {}

fn divided(pages: &Pages) {
    pages.divide(2);
}

fn in_three(pages: &Pages) {
    pages.divide(1);
    pages.divide(2);
}

fn found_while_divided(preemptions: usize) {
    at_once(preemptions, NOTHING, whole, [|pages| pages.divide(2), |pages| pages.add(3)], 1);
    at_once(preemptions, NOTHING, whole, [|pages| pages.divide(2), |pages| _ = pages.look(3)], 0);
}

short_and_long!(
    1,
    found_while_divided,
    a_page_is_found_while_its_part_is_divided,
    a_page_is_found_with_two_preemptions
);

fn found_while_joined(preemptions: usize) {
    at_once(preemptions, NOTHING, divided, [|pages| pages.add_to_all(1, 2), |pages| pages.add(3)], 3);
    at_once(preemptions, NOTHING, divided, [|pages| pages.add_to_all(1, 2), |pages| _ = pages.look(2)], 2);
}

short_and_long!(
    1,
    found_while_joined,
    a_page_is_found_while_its_part_is_joined,
    a_page_is_found_in_what_is_joined_with_two
);

fn joined_beside_others(preemptions: usize) {
    at_once(preemptions, NOTHING, in_three, [|pages| pages.add_to_all(1, 2), |pages| pages.add_to_all(0, 1)], 4);
    at_once(preemptions, NOTHING, divided, [|pages| pages.add_to_all(1, 2), |pages| pages.divide(1)], 2);
    at_once(
        preemptions,
        NOTHING,
        |pages| pages.divide(3),
        [|pages| pages.add_to_all(2, 3), |pages| pages.divide(1)],
        2,
    );
}

short_and_long!(
    1,
    joined_beside_others,
    parts_are_joined_while_others_are_divided_and_joined,
    parts_are_joined_with_two_preemptions
);

fn used_again(preemptions: usize) {
    let again = |pages: &Pages| {
        pages.add_to_all(1, 2);
        pages.divide(1);
    };
    at_once(preemptions, NOTHING, divided, [again, |pages| pages.add(2)], 3);
}

short_and_long!(
    1,
    used_again,
    a_part_is_used_again_while_others_come_to_it_late,
    a_part_is_used_again_with_two_preemptions
);

#[test]
fn without_its_lock_the_index_is_lost() {
    let both = [Omitted::Lock(rank::PARTS); 2];
    assert_caught("", move || {
        at_once(1, both, divided, [|pages| pages.divide(3), |pages| pages.divide(1)], 0);
    });
}

#[test]
fn what_joins_parts_finds_the_next_one_under_the_lock() {
    let joins = [Omitted::Lock(rank::PARTS), Omitted::Nothing];
    let in_three = |pages: &Pages| {
        pages.divide(2);
        pages.divide(3);
    };
    assert_caught("", move || {
        at_once(1, joins, in_three, [|pages| pages.add_to_all(2, 3), |pages| pages.divide(1)], 2);
    });
}
