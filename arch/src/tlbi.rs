//! TLB maintenance instructions, their operands, and the fewest of them that cover a range.
//!
//! Arm ARM C5.5 (instructions and operands), D8.16 (what they do), FEAT_TTL and FEAT_TLBIRANGE. The rules that bugs
//! were made of:
//! - the address goes into the operand shifted by 12, whatever the granule; in a *range* operand shifted by the
//!   granule;
//! - bits of a sign-extended address must not reach the fields above it: a wrong TTL may invalidate nothing;
//! - only operations that EL1 may issue are here, and the inner-shareable ones reach the other CPUs.
//!
//! No barrier is issued: before them, the stores must be complete; after them, a DSB on the same CPU completes them.
//! Range operations are written as `SYS`, so that assembling needs no target feature; issuing them needs
//! FEAT_TLBIRANGE. On the host they are recorded (module `recorded`) alone.

#![allow(unsafe_code, reason = "issues TLBI instructions")]

use core::num::NonZeroU8;

use crate::addr::VirtAddr;

/// A translation granule, with the number that TTL and TG fields know it by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Granule {
    /// 4 KiB.
    Size4K = 1,
    /// 16 KiB.
    Size16K = 2,
    /// 64 KiB.
    Size64K = 3,
}

impl Granule {
    /// log2 of the bytes in a page.
    pub const fn page_shift(self) -> u32 {
        10 + 2 * self as u32
    }

    /// Entries in a table.
    const fn entries(self) -> u64 {
        1 << (self.page_shift() - 3)
    }
}

/// Where a leaf is certain to be: lets a TLB look in fewer places. Having one proves a level from 1 to 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelHint(NonZeroU8);

impl LevelHint {
    /// A hint for `level`; `None` for level 0, which the encodings keep for something else, and beyond 3.
    ///
    /// It must be certain: an invalidation with a wrong hint may do nothing.
    pub const fn new(level: u8) -> Option<Self> {
        match NonZeroU8::new(level) {
            Some(number) if level <= 3 => Some(Self(number)),
            _ => None,
        }
    }

    /// The level, 1 to 3.
    pub const fn level(self) -> u8 {
        self.0.get()
    }
}

/// The right to invalidate what TLBs hold of an address space by its ASID.
///
/// Devices may translate through the same tables, so an invalidation by ASID has a second half: the notification of the
/// secondary TLBs. A kernel has one module that does both, which makes this value and keeps it private; without it
/// no [`Asid`] can be had, and so no operation of one.
#[derive(Clone, Copy, Debug)]
pub struct UserTlbToken(());

impl UserTlbToken {
    /// The token.
    ///
    /// # Safety
    /// Where a device may translate through the tables of an ASID, every invalidation that this token allows is
    /// followed by one of the device's TLB, complete before a frame that lost its mapping is free.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// The ASID of a user space, in an invalidation: 0 to 65,535, as far as the CPU has bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Asid(u16);

impl Asid {
    /// `number`, for the holder of the token.
    pub const fn new(number: u16, _: UserTlbToken) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The operand of an operation on one address: ASID 63:48, TTL 47:44, VA\[55:12\] 43:0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct AddressOperand(u64);

impl AddressOperand {
    /// `address`, in every ASID: for `vaae1…` and `vaale1…`. `hint` has the leaf's level with FEAT_TTL, or nothing.
    pub const fn new(address: VirtAddr, hint: Option<(Granule, LevelHint)>) -> Self {
        Self::with_asid(address, Asid(0), hint)
    }

    /// `address` in `asid`: for `vae1…` and `vale1…`.
    pub const fn with_asid(address: VirtAddr, asid: Asid, hint: Option<(Granule, LevelHint)>) -> Self {
        let ttl = match hint {
            Some((granule, level)) => (granule as u64) << 2 | level.level() as u64,
            None => 0,
        };
        // The mask cuts the sign extension off, which would be read as a TTL.
        Self((asid.0 as u64) << 48 | ttl << 44 | (address.0 >> 12) & ((1 << 44) - 1))
    }

    /// As the instruction takes it.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// Pages that one range operation covers: `(NUM + 1) << (5 × SCALE + 1)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    scale: u8,
    num: u8,
}

impl Span {
    /// The most pages of one range operation: NUM 31, SCALE 3.
    pub const MAX_PAGES: u64 = 32 << 16;

    /// SCALE, 0 to 3.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// NUM, 0 to 31.
    pub const fn num(self) -> u8 {
        self.num
    }

    /// Pages covered, 2 to [`Self::MAX_PAGES`].
    pub const fn pages(self) -> u64 {
        (self.num as u64 + 1) << Self::shift(self.scale)
    }

    const fn shift(scale: u8) -> u32 {
        5 * scale as u32 + 1
    }

    /// The largest span that is not longer than `pages`, which is 2 to [`Self::MAX_PAGES`], and its pages.
    const fn largest(pages: u64) -> (Self, u64) {
        debug_assert!(pages >= 2 && pages <= Self::MAX_PAGES);
        // SCALE 1 from 2^6 pages on, 2 from 2^11, 3 from 2^16; the remainder is always below one unit of that scale.
        let scale = if pages < 1 << 6 {
            0
        } else if pages < 1 << 11 {
            1
        } else if pages < 1 << 16 {
            2
        } else {
            3
        };
        let units = pages >> Self::shift(scale);
        (Self { scale, num: (units - 1) as u8 }, units << Self::shift(scale))
    }
}

/// The operand of a range operation: ASID 63:48, TG 47:46, SCALE 45:44, NUM 43:39, TTL 38:37, BaseADDR 36:0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct RangeOperand(u64);

impl RangeOperand {
    /// `span` from `base` on, in every ASID. `hint` has the leaves' level, or nothing.
    pub const fn new(base: VirtAddr, granule: Granule, span: Span, hint: Option<LevelHint>) -> Self {
        Self::with_asid(base, granule, span, Asid(0), hint)
    }

    /// `span` from `base` on, in `asid`.
    pub const fn with_asid(base: VirtAddr, granule: Granule, span: Span, asid: Asid, hint: Option<LevelHint>) -> Self {
        let ttl = match hint {
            Some(level) => level.level() as u64,
            None => 0,
        };
        Self(
            (asid.0 as u64) << 48
                | (granule as u64) << 46
                | (span.scale as u64) << 44
                | (span.num as u64) << 39
                | ttl << 37
                | (base.0 >> granule.page_shift()) & ((1 << 37) - 1),
        )
    }

    /// As the instruction takes it.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// Whether range operations may be used: FEAT_TLBIRANGE on every CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeSupport {
    /// One address at a time.
    No,
    /// Range operations too.
    Yes,
}

/// One operation of a [`Plan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Everything: the range is longer than what is worth naming.
    Everything,
    /// The page at this address.
    Page(VirtAddr),
    /// These pages from this address on.
    Pages(VirtAddr, Span),
}

/// The fewest operations that cover a range exactly: an iterator over [`Operation`]s.
///
/// With range operations at most one of each SCALE, the largest first, and one for an odd last page. Without, one for
/// each page. Past 2^21 pages, or as many single pages as a table has entries, it is one [`Operation::Everything`].
#[derive(Clone, Debug)]
pub struct Plan {
    next: VirtAddr,
    pages: u64,
    page_shift: u32,
    range: RangeSupport,
    everything: bool,
}

impl Plan {
    /// For the `pages` pages from `start` on.
    #[inline]
    pub const fn new(start: VirtAddr, pages: u64, granule: Granule, range: RangeSupport) -> Self {
        let everything = match range {
            RangeSupport::Yes => pages > Span::MAX_PAGES,
            RangeSupport::No => pages >= granule.entries(),
        };
        Self { next: start, pages, page_shift: granule.page_shift(), range, everything }
    }
}

impl Iterator for Plan {
    type Item = Operation;

    #[inline]
    fn next(&mut self) -> Option<Operation> {
        if self.pages == 0 {
            return None;
        }
        if self.everything {
            self.pages = 0;
            return Some(Operation::Everything);
        }
        let start = self.next;
        let (operation, pages) = if self.pages == 1 || self.range == RangeSupport::No {
            (Operation::Page(start), 1)
        } else {
            let (span, pages) = Span::largest(self.pages);
            (Operation::Pages(start, span), pages)
        };
        self.pages -= pages;
        // The last page may be the last of the address space.
        self.next = VirtAddr(start.0.wrapping_add(pages << self.page_shift));
        Some(operation)
    }
}

/// A TLBI of the EL1&0 regime with its operand, as a value: an instruction for a machine, be it the metal or a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// TLBI VMALLE1IS: everything of EL1&0, on all CPUs.
    Vmalle1is,
    /// TLBI VMALLE1: everything of EL1&0, on this CPU.
    Vmalle1,
    /// TLBI VAAE1IS: an address in every ASID, every level, on all CPUs.
    Vaae1is(AddressOperand),
    /// TLBI VAALE1IS: an address in every ASID, the last level, on all CPUs.
    Vaale1is(AddressOperand),
    /// TLBI VAAE1: an address in every ASID, every level, on this CPU.
    Vaae1(AddressOperand),
    /// TLBI VAALE1: an address in every ASID, the last level, on this CPU.
    Vaale1(AddressOperand),
    /// TLBI ASIDE1IS: everything of one ASID, on all CPUs.
    Aside1is(Asid),
    /// TLBI VAE1IS: an address of one ASID, every level, on all CPUs.
    Vae1is(AddressOperand),
    /// TLBI VALE1IS: an address of one ASID, the last level, on all CPUs; also the least that some errata ask to be
    /// repeated.
    Vale1is(AddressOperand),
    /// TLBI VALE1: an address of one ASID, the last level, on this CPU.
    Vale1(AddressOperand),
    /// TLBI RVAAE1IS: a range in every ASID, every level, on all CPUs.
    Rvaae1is(RangeOperand),
    /// TLBI RVAALE1IS: a range in every ASID, the last level, on all CPUs.
    Rvaale1is(RangeOperand),
    /// TLBI RVAE1IS: a range of one ASID, every level, on all CPUs.
    Rvae1is(RangeOperand),
    /// TLBI RVALE1IS: a range of one ASID, the last level, on all CPUs.
    Rvale1is(RangeOperand),
}

impl Instruction {
    /// Issues it. With a constant variant this is the one instruction.
    #[inline(always)]
    pub fn execute(self) {
        /// The instruction of this name. On the host it is recorded.
        macro_rules! tlbi {
            ($name:literal, $instruction:literal $(, $operand:expr)?) => {{
                #[cfg(target_os = "none")]
                // SAFETY: forgetting cached translations changes no translation; what they must agree with is the page
                // tables' business. No `nomem`: the compiler must not move stores to tables across it.
                unsafe {
                    core::arch::asm!($instruction, $(in(reg) $operand,)? options(nostack, preserves_flags));
                }
                #[cfg(not(target_os = "none"))]
                {
                    $(let _ = $operand;)?
                    crate::recorded::note($name);
                }
            }};
        }
        match self {
            Self::Vmalle1is => tlbi!("vmalle1is", "sys #0, c8, c3, #0, xzr"),
            Self::Vmalle1 => tlbi!("vmalle1", "sys #0, c8, c7, #0, xzr"),
            Self::Vaae1is(operand) => tlbi!("vaae1is", "sys #0, c8, c3, #3, {}", operand.0),
            Self::Vaale1is(operand) => tlbi!("vaale1is", "sys #0, c8, c3, #7, {}", operand.0),
            Self::Vaae1(operand) => tlbi!("vaae1", "sys #0, c8, c7, #3, {}", operand.0),
            Self::Vaale1(operand) => tlbi!("vaale1", "sys #0, c8, c7, #7, {}", operand.0),
            Self::Aside1is(asid) => tlbi!("aside1is", "sys #0, c8, c3, #2, {}", u64::from(asid.0) << 48),
            Self::Vae1is(operand) => tlbi!("vae1is", "sys #0, c8, c3, #1, {}", operand.0),
            Self::Vale1is(operand) => tlbi!("vale1is", "sys #0, c8, c3, #5, {}", operand.0),
            Self::Vale1(operand) => tlbi!("vale1", "sys #0, c8, c7, #5, {}", operand.0),
            Self::Rvaae1is(operand) => tlbi!("rvaae1is", "sys #0, c8, c2, #3, {}", operand.0),
            Self::Rvaale1is(operand) => tlbi!("rvaale1is", "sys #0, c8, c2, #7, {}", operand.0),
            Self::Rvae1is(operand) => tlbi!("rvae1is", "sys #0, c8, c2, #1, {}", operand.0),
            Self::Rvale1is(operand) => tlbi!("rvale1is", "sys #0, c8, c2, #5, {}", operand.0),
        }
    }
}

/// Replaces `count` table entries from `entries` on, break-before-make (Arm ARM D8.17.1): by `first` and, for each further
/// one, `step` more. `repeats`: for CPUs whose completed invalidation may have left one out.
///
/// Between the break and the make there is no access to memory but to the entries, and no exception is taken: what the
/// entries map may be this CPU's stack, or the tables.
///
/// # Safety
/// `entries` are table entries, writable by this address; neither the address nor the code of this function is mapped by
/// what they map. No other CPU uses what they map before this returns.
#[cfg(target_os = "none")]
pub unsafe fn break_before_make(entries: *mut u64, count: usize, first: u64, step: u64, repeats: bool) {
    // SAFETY: stores to the entries alone, by the caller's word.
    unsafe {
        core::arch::asm!(
            "mrs {daif}, daif",
            "msr daifset, #15",
            "mov {left}, {count}",
            "2: sub {left}, {left}, #1",
            "str xzr, [{entries}, {left}, lsl #3]",
            "cbnz {left}, 2b",
            "dsb ishst",
            "tlbi vmalle1is",
            "dsb ish",
            "cbz {repeats:w}, 3f",
            "tlbi vmalle1is",
            "dsb ish",
            "3: str {descriptor}, [{entries}], #8",
            "add {descriptor}, {descriptor}, {step}",
            "sub {count}, {count}, #1",
            "cbnz {count}, 3b",
            "dsb ishst",
            "isb",
            "msr daif, {daif}",
            daif = out(reg) _,
            left = out(reg) _,
            entries = inout(reg) entries => _,
            count = inout(reg) count => _,
            step = in(reg) step,
            repeats = in(reg) u32::from(repeats),
            descriptor = inout(reg) first => _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{
        AddressOperand, Asid, Granule, Instruction, LevelHint, Operation, Plan, RangeOperand, RangeSupport, Span,
    };
    use crate::addr::VirtAddr;
    use crate::recorded;
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
    use std::vec;
    use std::vec::Vec;

    const GRANULES: [Granule; 3] = [Granule::Size4K, Granule::Size16K, Granule::Size64K];

    /// A plan in short: `(scale, num)` of range operations, `None` for a single page.
    fn spans(pages: u64) -> Vec<Option<(u8, u8)>> {
        Plan::new(VirtAddr(0xffff_8000_0000_0000), pages, Granule::Size4K, RangeSupport::Yes)
            .map(|operation| match operation {
                Operation::Page(_) => None,
                Operation::Pages(_, span) => Some((span.scale(), span.num())),
                Operation::Everything => panic!("{pages} pages are not everything"),
            })
            .collect()
    }

    /// As a value it is the instruction of its name, and no other. The words of each are compared in the image of the tests.
    #[test]
    fn each_instruction_issues_itself() {
        let page = AddressOperand::new(VirtAddr(0x1000), None);
        let Operation::Pages(start, span) =
            Plan::new(VirtAddr(0), 2, Granule::Size4K, RangeSupport::Yes).next().unwrap()
        else {
            panic!("two pages are a range")
        };
        let range = RangeOperand::new(start, Granule::Size4K, span, None);
        for instruction in [
            Instruction::Vmalle1is,
            Instruction::Vmalle1,
            Instruction::Vaae1is(page),
            Instruction::Vaale1is(page),
            Instruction::Vaae1(page),
            Instruction::Vaale1(page),
            Instruction::Aside1is(Asid(1)),
            Instruction::Vae1is(page),
            Instruction::Vale1is(page),
            Instruction::Vale1(page),
            Instruction::Rvaae1is(range),
            Instruction::Rvaale1is(range),
            Instruction::Rvae1is(range),
            Instruction::Rvale1is(range),
        ] {
            let shown = std::format!("{instruction:?}").to_lowercase();
            let name = shown.split('(').next().unwrap();
            assert_eq!(recorded::record(|| instruction.execute()), [name]);
        }
    }

    #[test]
    fn plans_are_those_of_the_vectors() {
        assert_eq!(spans(1), [None]);
        assert_eq!(spans(2), [Some((0, 0))]);
        assert_eq!(spans(3), [Some((0, 0)), None]);
        assert_eq!(spans(63), [Some((0, 30)), None]);
        assert_eq!(spans(64), [Some((1, 0))]);
        assert_eq!(spans(1 << 21), [Some((3, 31))]);
        // The worst case: one of each scale and the odd page.
        assert_eq!(
            spans((1 << 16) + (1 << 11) + (1 << 6) + 3),
            [Some((3, 0)), Some((2, 0)), Some((1, 0)), Some((0, 0)), None]
        );
    }

    #[test]
    fn past_the_threshold_it_is_everything() {
        let plan = |pages, granule, range| Plan::new(VirtAddr(0), pages, granule, range).collect::<Vec<_>>();
        assert_eq!(plan((1 << 21) + 1, Granule::Size4K, RangeSupport::Yes), [Operation::Everything]);
        for (granule, limit) in GRANULES.into_iter().zip([512, 2048, 8192]) {
            assert_eq!(plan(limit, granule, RangeSupport::No), [Operation::Everything]);
            assert_eq!(plan(limit - 1, granule, RangeSupport::No).len() as u64, limit - 1);
        }
        assert_eq!(plan(0, Granule::Size4K, RangeSupport::Yes), []);
    }

    #[test]
    fn no_cover_has_fewer_operations() {
        const PAGES: usize = 5000;
        let mut sizes = vec![1];
        for scale in 0..3 {
            sizes.extend((0..32).map(|num| usize::try_from(Span { scale, num }.pages()).unwrap()));
        }
        let mut fewest = vec![0; PAGES + 1];
        for pages in 1..=PAGES {
            let before = sizes.iter().filter(|&&size| size <= pages).map(|&size| fewest[pages - size]);
            fewest[pages] = before.min().unwrap() + 1;
            assert_eq!(spans(pages as u64).len(), fewest[pages], "{pages} pages");
        }
    }

    fn granule() -> impl Strategy<Value = Granule> {
        prop_oneof![Just(Granule::Size4K), Just(Granule::Size16K), Just(Granule::Size64K)]
    }

    /// A page-aligned canonical address of either half.
    fn page(granule: Granule, address: u64, upper: bool) -> VirtAddr {
        let low = address & ((1 << 48) - 1) & !((1 << granule.page_shift()) - 1);
        VirtAddr(if upper { low | !((1 << 48) - 1) } else { low })
    }

    proptest! {
        #[test]
        fn a_plan_covers_its_range_exactly(
            granule in granule(), address: u64, upper: bool, pages in 1_u64..3_000_000, ranges: bool,
        ) {
            let start = page(granule, address, upper);
            let range = if ranges { RangeSupport::Yes } else { RangeSupport::No };
            let mut next = start;
            let mut left = pages;
            for operation in Plan::new(start, pages, granule, range) {
                let (at, covered) = match operation {
                    Operation::Everything => {
                        assert_eq!(left, pages);
                        assert!(pages >= granule.entries());
                        (next, left)
                    }
                    Operation::Page(at) => (at, 1),
                    Operation::Pages(at, span) => (at, span.pages()),
                };
                assert_eq!(at, next);
                left -= covered;
                next = VirtAddr(next.0.wrapping_add(covered << granule.page_shift()));
            }
            assert_eq!(left, 0);
        }

        /// aarch64-paging 0.12.3, lk #386: sign extension spilled into TTL, and nothing was invalidated.
        #[test]
        fn an_address_operand_holds_nothing_of_the_sign_extension(
            granule in granule(), address: u64, upper: bool, asid: u16,
        ) {
            let address = page(granule, address, upper);
            let operand = AddressOperand::with_asid(address, Asid(asid), None).bits();
            assert_eq!(operand >> 44 & 0xf, 0);
            assert_eq!(operand >> 48, u64::from(asid));
            // Zephyr #115708: the shift is 12 for every granule.
            assert_eq!(operand & ((1 << 44) - 1), address.0 << 8 >> 20);
        }

        /// NVIDIA/NV-Kernels #113: every field of a range operand is where it belongs, for each granule.
        #[test]
        fn a_range_operand_has_its_fields(
            granule in granule(), address: u64, upper: bool, asid: u16, scale in 0_u8..4, num in 0_u8..32, level in 0_u8..5,
        ) {
            let base = page(granule, address, upper);
            let operand = RangeOperand::with_asid(base, granule, Span { scale, num }, Asid(asid), LevelHint::new(level)).bits();
            let field = |high: u32, low: u32| operand << (63 - high) >> (63 - high + low);
            assert_eq!(field(63, 48), u64::from(asid));
            assert_eq!(field(47, 46), granule as u64);
            assert_eq!(field(45, 44), u64::from(scale));
            assert_eq!(field(43, 39), u64::from(num));
            assert_eq!(field(38, 37), if level < 4 { u64::from(level) } else { 0 });
            assert_eq!(field(36, 0), base.0 >> granule.page_shift() & ((1 << 37) - 1));
        }

        #[test]
        fn the_largest_span_leaves_less_than_itself(pages in 2_u64..=Span::MAX_PAGES, seed in any::<u8>()) {
            let pages = if seed == 0 { Span::MAX_PAGES } else { pages };
            let (span, covered) = Span::largest(pages);
            assert_eq!(covered, span.pages());
            assert!(span.num() < 32 && span.scale() < 4);
            assert!(span.pages() <= pages);
            assert!(pages - span.pages() < 1 << Span::shift(span.scale()));
        }
    }

    #[test]
    fn a_hint_names_granule_and_level() {
        let hint = |level| LevelHint::new(level).map(|level| (Granule::Size4K, level));
        let ttl = |level| AddressOperand::new(VirtAddr(0x1000), hint(level)).bits() >> 44;
        assert_eq!([0, 1, 2, 3, 4].map(ttl), [0, 0b0101, 0b0110, 0b0111, 0]);
        let hint = Some((Granule::Size64K, LevelHint::new(3).unwrap()));
        assert_eq!(AddressOperand::new(VirtAddr(0), hint).bits(), 0b1111 << 44);
    }
}
