//! Where the parts of a program lie in its space: at random, by as many bits as Linux has for arm64, or always alike.
//!
//! ```text
//!   0x40_0000 ...                       segments of a program that has its own addresses
//!   0xaaaa_aaaa_a000 + program ...      segments of one that lies anywhere, or below by its alignment
//!   (end of the segments) + heap ...    the heap
//!   ... - mappings                      what the kernel chooses, below the room for the stack to grow
//!   ... 0xffff_ffdf_e000 - stack        the stack, which grows as far as its limit goes
//!   0xffff_ffdf_e000 - stack            two instructions, for handlers that name no way back
//! ```
//! Linux's numbers: `mmap_rnd_bits` (18 by default) for programs and mappings, `STACK_RND_MASK` for the stack and
//! `arch_align_stack` within its page, `arch_randomize_brk` for the heap. Two processes that know their own addresses
//! know none of another's; a fork has its parent's, an exec draws new ones.

use granule_abi::process::ADDR_NO_RANDOMIZE;
use granule_arch::addr::{PAGE, VirtAddr};
use linkme::distributed_slice;

use crate::bootargs::{self, PARAMETERS, Parameter};
use crate::mm::space::USER_END;

/// Pages among which each part is moved: 18 bits.
const PAGES: u64 = 1 << 18;
/// Steps of SP's alignment in a page: 8 bits.
const STEPS: u64 = PAGE / SP_ALIGN;
const SP_ALIGN: u64 = 16;

/// The base of position-independent programs: two thirds of the space up, as on Linux.
const ANYWHERE: u64 = 0xaaaa_aaaa_a000;
/// The highest end of a stack. Nothing above it is free but what its randomness leaves.
const STACK_TOP: u64 = USER_END.0 - 0x2000;
/// Bytes of a stack while a program is loaded.
pub const STACK_SIZE: u64 = 8 << 20;
/// Programs end here or below: it is no matter of chance whether one can be loaded.
pub const PROGRAM_LIMIT: u64 = STACK_TOP - (PAGES - 1) * PAGE - STACK_SIZE;

/// By how many bytes each part is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// A position-independent program, upwards.
    program: u64,
    /// The heap, upwards from the program's end.
    heap: u64,
    /// Mappings whose addresses the kernel chooses, downwards.
    mappings: u64,
    /// The stack, downwards.
    stack: u64,
    /// SP in the stack, downwards.
    pointer: u64,
}

impl Layout {
    /// The layout of every program with `norandmaps`, and of those whose personality has [`ADDR_NO_RANDOMIZE`].
    const FIXED: Self = Self { program: 0, heap: 0, mappings: 0, stack: 0, pointer: 0 };

    /// The layout of a new program of a thread with this personality, by random numbers.
    pub fn of(personality: u32, numbers: [u32; 5]) -> Self {
        if personality & ADDR_NO_RANDOMIZE != 0 || bootargs::is_set(NORANDMAPS.name) {
            Self::FIXED
        } else {
            Self::random(numbers)
        }
    }

    fn random(numbers: [u32; 5]) -> Self {
        let [program, heap, mappings, stack, pointer] = numbers.map(u64::from);
        Self {
            program: program % PAGES * PAGE,
            heap: heap % PAGES * PAGE,
            mappings: mappings % PAGES * PAGE,
            stack: stack % PAGES * PAGE,
            pointer: pointer % STEPS * SP_ALIGN,
        }
    }

    /// Where a position-independent program begins.
    pub const fn program(&self) -> u64 {
        ANYWHERE + self.program
    }

    /// Where the heap begins, after a program's `end`.
    pub const fn heap(&self, end: u64) -> u64 {
        end + self.heap
    }

    /// Bytes below the room for the stack that the kernel does not choose either.
    pub const fn below_stack(&self) -> u64 {
        self.mappings
    }

    /// The end of the stack.
    pub const fn stack_top(&self) -> u64 {
        STACK_TOP - self.stack
    }

    /// The return address of handlers without one of their own (`SA_RESTORER`).
    pub const fn trampoline(&self) -> VirtAddr {
        VirtAddr(self.stack_top())
    }

    /// Bytes that stay free between the strings of the stack and what is below them.
    pub const fn below_strings(&self) -> u64 {
        self.pointer
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static NORANDMAPS: Parameter = Parameter {
    name: "norandmaps",
    help: "programs lie at the same addresses in every process",
    check: bootargs::flag,
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ADDR_NO_RANDOMIZE, Layout, PAGE, PAGES, PROGRAM_LIMIT, STACK_SIZE};
    use crate::mm::space::USER_END;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_layout_that_is_not_random_is_always_the_same() {
        for personality in [ADDR_NO_RANDOMIZE, u32::MAX] {
            assert_eq!(Layout::of(personality, [u32::MAX; 5]), Layout::FIXED);
        }
        let (fixed, end) = (Layout::FIXED, 0x41_0000);
        assert_eq!((fixed.program(), fixed.heap(end), fixed.stack_top()), (0xaaaa_aaaa_a000, end, 0xffff_ffdf_e000));
        assert_eq!((fixed.below_stack(), fixed.below_strings()), (0, 0));
        assert_eq!(Layout::of(!ADDR_NO_RANDOMIZE, [0; 5]), fixed, "the other extreme of what is random");
    }

    #[test]
    fn each_number_moves_one_part_by_all_its_bits() {
        let parts = |layout: Layout| {
            [layout.program, layout.heap, layout.mappings, layout.stack, layout.pointer].map(|bytes| bytes as usize)
        };
        for part in 0..5 {
            let (bits, unit) = if part == 4 { (8, 16) } else { (18, PAGE as usize) };
            for bit in 0..32 {
                let mut numbers = [0; 5];
                numbers[part] = 1 << bit;
                let mut wanted = [0; 5];
                wanted[part] = if bit < bits { unit << bit } else { 0 };
                assert_eq!(parts(Layout::of(0, numbers)), wanted, "part {part}, bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn parts_stay_apart_and_in_the_space(numbers: [u32; 5], ones in any::<[bool; 5]>()) {
            // Extremes as often as anything in between.
            let numbers = [0, 1, 2, 3, 4].map(|part: usize| if ones[part] { u32::MAX } else { numbers[part] });
            let layout = Layout::of(0, numbers);
            let top = layout.stack_top();
            prop_assert!(top.is_multiple_of(PAGE) && top + PAGE < USER_END.0, "the stack and the trampoline");
            prop_assert!(top - STACK_SIZE >= PROGRAM_LIMIT);
            prop_assert!(layout.program().is_multiple_of(PAGE) && layout.below_stack().is_multiple_of(PAGE));
            prop_assert!(layout.below_strings().is_multiple_of(16) && layout.below_strings() < PAGE);
            prop_assert!((0xaaaa_aaaa_a000..0xaaaa_aaaa_a000 + GIB).contains(&layout.program()));
            prop_assert!(layout.below_stack() < GIB && layout.heap(0) < GIB);
        }
    }

    #[test]
    fn the_highest_numbers_are_a_page_below_a_gigabyte() {
        let most = Layout::of(0, [u32::MAX; 5]);
        assert_eq!(PAGES * PAGE, GIB);
        assert_eq!(most.stack_top(), PROGRAM_LIMIT + STACK_SIZE);
        assert_eq!((most.program, most.heap, most.mappings), (GIB - PAGE, GIB - PAGE, GIB - PAGE));
        assert_eq!(most.below_strings(), PAGE - 16);
    }
}
