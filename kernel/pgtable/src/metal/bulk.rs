//! Table entries in bulk, two at a time: most of the work of every `set_memory_*`.
//!
//! LDP and STP of 64-bit registers at an address that is a multiple of 8 are two single-copy atomic accesses, in no
//! order between them (Arm ARM B2.2.1); an entry has 8 bytes, so no table walk sees half of one, and it does not matter
//! where in a table a run begins. LLVM does not make pairs of atomic accesses, so these are written out: sixteen
//! entries a turn, and what is left over by the bits of its number.
//!
//! | an entry costs | instructions |
//! |---|---|
//! | [`survey`] | 2.5 (half a load, an AND, an OR), and 2 a turn |
//! | [`flip`] | 2 (half a load, an exclusive OR, half a store), and 2 a turn |
//! | [`fill`] | 1.5 (an addition, half a store), and 2 a turn |
//! | [`filled`] | 2.6 (half a load, a comparison, an addition, a branch for eight), and 2 a turn |
//!
//! On the host a run is dealt with by the defaults of [`Mmu`](crate::Mmu); a test on the target compares the
//! two.

#![allow(unsafe_code, reason = "entries of tables in pairs, in assembly")]

use super::Cell;
use crate::mmu::Survey;

/// The assembly that goes through `left` entries: `$pair` deals with two and moves on, `$single` with one, `$turn` with
/// sixteen.
macro_rules! run {
    ($pair:expr, $single:expr) => {
        run!(eight!($pair); $pair, $single)
    };
    ($($turn:expr),+; $pair:expr, $single:expr) => {
        concat!(
            "subs {left}, {left}, #16\n b.lo 3f\n",
            "2:\n",
            $($turn,)+
            "subs {left}, {left}, #16\n b.hs 2b\n",
            // Below zero now, but its low four bits are those of the number that is left.
            "3: tbz {left}, #3, 4f\n",
            four!($pair),
            "4: tbz {left}, #2, 5f\n",
            two!($pair),
            "5: tbz {left}, #1, 6f\n",
            $pair,
            "6: tbz {left}, #0, 7f\n",
            $single,
            "7:"
        )
    };
}
macro_rules! two {
    ($text:expr) => {
        concat!($text, $text)
    };
}
macro_rules! four {
    ($text:expr) => {
        concat!(two!($text), two!($text))
    };
}
macro_rules! eight {
    ($text:expr) => {
        concat!(four!($text), four!($text))
    };
}

/// Compares a pair with what [`fill`] stores there, where `$first` compares the first of the two: alone, or with the
/// condition that an earlier pair is so. Goes on to the next.
macro_rules! compare {
    ($first:literal) => {
        concat!(
            "ldp {a}, {b}, [{at}], #16\n",
            $first,
            "ccmp {b}, {second}, #0, eq
             add {first}, {first}, {two_steps}
             add {second}, {second}, {two_steps}
            "
        )
    };
}
/// Eight entries: all are compared before it branches.
macro_rules! compare_eight {
    () => {
        concat!(
            compare!("cmp {a}, {first}\n"),
            compare!("ccmp {a}, {first}, #0, eq\n"),
            compare!("ccmp {a}, {first}, #0, eq\n"),
            compare!("ccmp {a}, {first}, #0, eq\n"),
            "b.ne 10f\n"
        )
    };
}

/// The bits that all entries of `run` have, and those that any of them has.
#[inline]
pub(super) fn survey(run: &[Cell]) -> Survey {
    let Survey { mut all, mut any } = Survey::NOTHING;
    // SAFETY: reads the entries of `run` and nothing else, each once and whole, as relaxed atomic loads would.
    unsafe {
        core::arch::asm!(
            run!(
                "ldp {a}, {b}, [{at}], #16
                 and {all}, {all}, {a}
                 orr {any}, {any}, {a}
                 and {all}, {all}, {b}
                 orr {any}, {any}, {b}
                ",
                "ldr {a}, [{at}]
                 and {all}, {all}, {a}
                 orr {any}, {any}, {a}
                "
            ),
            at = inout(reg) run.as_ptr() => _,
            left = inout(reg) run.len() => _,
            all = inout(reg) all,
            any = inout(reg) any,
            a = out(reg) _,
            b = out(reg) _,
            options(readonly, nostack)
        );
    }
    Survey { all, any }
}

/// Flips the bits of `mask` in each entry of `run`.
#[inline]
pub(super) fn flip(run: &[Cell], mask: u64) {
    // SAFETY: reads and writes the entries of `run` and nothing else, each once and whole, as relaxed atomic accesses
    // would; atomics may be written through a shared reference.
    unsafe {
        core::arch::asm!(
            run!(
                "ldp {a}, {b}, [{at}]
                 eor {a}, {a}, {mask}
                 eor {b}, {b}, {mask}
                 stp {a}, {b}, [{at}], #16
                ",
                "ldr {a}, [{at}]
                 eor {a}, {a}, {mask}
                 str {a}, [{at}]
                "
            ),
            at = inout(reg) run.as_ptr() => _,
            left = inout(reg) run.len() => _,
            mask = in(reg) mask,
            a = out(reg) _,
            b = out(reg) _,
            options(nostack)
        );
    }
}

/// Stores `first` to the first entry of `run`, and to each further one what is `step` more.
#[inline]
pub(super) fn fill(run: &[Cell], first: u64, step: u64) {
    // SAFETY: writes the entries of `run` and nothing else, each once and whole, as relaxed atomic stores would;
    // atomics may be written through a shared reference.
    unsafe {
        core::arch::asm!(
            run!(
                "stp {a}, {b}, [{at}], #16
                 add {a}, {a}, {two_steps}
                 add {b}, {b}, {two_steps}
                ",
                "str {a}, [{at}]
                "
            ),
            at = inout(reg) run.as_ptr() => _,
            left = inout(reg) run.len() => _,
            a = inout(reg) first => _,
            b = inout(reg) first.wrapping_add(step) => _,
            two_steps = in(reg) step.wrapping_mul(2),
            options(nostack)
        );
    }
}

/// How many entries at the start of `run` are `first`, and each further one `step` more.
#[inline]
pub(super) fn filled(run: &[Cell], first: u64, step: u64) -> usize {
    let end: *const Cell;
    // SAFETY: reads entries of `run` and nothing else, each whole, as relaxed atomic loads would.
    unsafe {
        core::arch::asm!(
            concat!(
                run!(
                    compare_eight!(), compare_eight!();
                    "ldp {a}, {b}, [{at}], #16
                     cmp {a}, {first}
                     ccmp {b}, {second}, #0, eq
                     b.ne 8f
                     add {first}, {first}, {two_steps}
                     add {second}, {second}, {two_steps}
                    ",
                    "add {at}, {at}, #16
                     b 8f
                    "
                ),
                "b 9f
                 // One of these eight is different: once more, pair by pair.
                 10: sub {at}, {at}, #64
                 sub {first}, {first}, {two_steps}, lsl #2
                 sub {second}, {second}, {two_steps}, lsl #2
                 mov {left}, #8
                 b 3b
                 // The first entry of the last pair may go on, or the single one.
                 8: ldr {a}, [{at}, #-16]!
                 cmp {a}, {first}
                 b.ne 9f
                 add {at}, {at}, #8
                 9:"
            ),
            at = inout(reg) run.as_ptr() => end,
            left = inout(reg) run.len() => _,
            first = inout(reg) first => _,
            second = inout(reg) first.wrapping_add(step) => _,
            two_steps = in(reg) step.wrapping_mul(2),
            a = out(reg) _,
            b = out(reg) _,
            options(readonly, nostack)
        );
    }
    (end.addr() - run.as_ptr().addr()) / size_of::<Cell>()
}
