//! The part of A64 that the audit decodes: where control goes, and which addresses are formed.
//!
//! A dozen encodings of the Arm ARM (C4.1), decoded here: a disassembler would name every operand of every instruction,
//! and the audit would still have to tell what each writes.

/// Where control goes after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// On to the next instruction.
    Next,
    /// BL.
    Call(u64),
    /// BLR.
    CallRegister,
    /// B.
    Jump(u64),
    /// B.cond, CBZ, CBNZ, TBZ, TBNZ: there, or on.
    Branch(u64),
    /// BR.
    JumpRegister(u8),
    /// RET, ERET.
    Return,
    /// BRK or UDF: what stands for code that is never reached, and for `abort`.
    Trap,
}

/// The instructions after an ERET: a NOP, which is SB where it is patched in, DSB NSH, ISB.
pub const BARRIERS: [u32; 3] = [0xd503_201f, 0xd503_379f, 0xd503_3fdf];

/// The one function that runs at EL2, by its path.
pub const AT_EL2: &str = "granule_arch::el2::drop_to_el1";

/// Whether a symbol is that of [`AT_EL2`].
pub fn is_at_el2(symbol: &str) -> bool {
    format!("{:#}", rustc_demangle::demangle(symbol)) == AT_EL2
}

/// Decodes the control flow of the instruction `word` at `at`.
pub fn flow(word: u32, at: u64) -> Flow {
    let target = |shift: u32, bits: u32| {
        let field = i64::from(word >> shift) << (64 - bits) >> (64 - bits);
        at.wrapping_add_signed(field * 4)
    };
    match word {
        _ if word & 0xfc00_0000 == 0x9400_0000 => Flow::Call(target(0, 26)),
        _ if word & 0xfc00_0000 == 0x1400_0000 => Flow::Jump(target(0, 26)),
        _ if word & 0xff00_0000 == 0x5400_0000 => Flow::Branch(target(5, 19)),
        _ if word & 0x7e00_0000 == 0x3400_0000 => Flow::Branch(target(5, 19)),
        _ if word & 0x7e00_0000 == 0x3600_0000 => Flow::Branch(target(5, 14)),
        _ if word & 0xffff_fc1f == 0xd63f_0000 => Flow::CallRegister,
        _ if word & 0xffff_fc1f == 0xd61f_0000 => Flow::JumpRegister((word >> 5 & 31) as u8),
        _ if word & 0xffff_fc1f == 0xd65f_0000 || word == 0xd69f_03e0 => Flow::Return,
        _ if word & 0xffe0_001f == 0xd420_0000 || word >> 16 == 0 => Flow::Trap,
        _ => Flow::Next,
    }
}

/// Bytes by which an instruction moves SP down; negative where it moves it up. `None` where it sets SP in a way that is
/// not read here.
pub fn stack_growth(word: u32) -> Option<i64> {
    let is_sp = |register: u32| register & 31 == 31;
    let signed = |value: u32, bits: u32| i64::from(value) << (64 - bits) >> (64 - bits);
    let (rd, rn) = (word, word >> 5);
    match word {
        // ADD, SUB (immediate) of SP, 64 bits: without flags, so that register 31 is SP.
        _ if word & 0xbf80_0000 == 0x9100_0000 && is_sp(rd) => {
            let shift = if word & 1 << 22 != 0 { 12 } else { 0 };
            let value = i64::from(word >> 10 & 0xfff) << shift;
            is_sp(rn).then_some(if word & 1 << 30 != 0 { value } else { -value })
        }
        // STP, LDP, post- and pre-indexed by SP: of registers of 4 or 8 bytes, of vectors of 4 to 16.
        _ if word & 0x3a80_0000 == 0x2880_0000 && is_sp(rn) => {
            let scale = if word & 1 << 26 != 0 { 2 + (word >> 30) } else { 2 + (word >> 31) };
            Some(-(signed(word >> 15 & 0x7f, 7) << scale))
        }
        // STR, LDR, post- and pre-indexed by SP.
        _ if word & 0x3b20_0400 == 0x3800_0400 && is_sp(rn) => Some(-signed(word >> 12 & 0x1ff, 9)),
        // AND (immediate) to SP: a frame with an alignment of its own. ADD, SUB (extended register) to SP.
        _ if word & 0xff80_0000 == 0x9200_0000 && is_sp(rd) => None,
        _ if word & 0xbfe0_0000 == 0x8b20_0000 && is_sp(rd) => None,
        _ => Some(0),
    }
}

/// Known values of the general-purpose registers while a function is read from its first instruction to its last:
/// constants that ADR, ADRP, ADD and loads of constant pointers make.
///
/// A value stays known past a label, so that an address that is used in another block is still seen there. This rule
/// may add an address too many, never one too few.
#[derive(Default)]
pub struct Registers {
    values: [Option<u64>; 32],
    /// Written by an ADD of two registers: what a BR to it leaves is a `match` within the function.
    computed: [bool; 32],
}

impl Registers {
    /// Whether a BR to this register goes by a table of offsets in the same function, and is no call.
    pub fn is_table_jump(&self, register: u8) -> bool {
        self.computed[usize::from(register)]
    }

    /// Follows one instruction; the address that it formed, if it did. `load` gives the pointer that lies at an address
    /// of constant memory.
    pub fn step(&mut self, word: u32, at: u64, load: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let (rd, rn, rm) = ((word & 31) as usize, (word >> 5 & 31) as usize, (word >> 16 & 31) as usize);
        let adr = i64::from(word >> 5 & 0x7_ffff) << 45 >> 43 | i64::from(word >> 29 & 3);
        match word {
            // ADR, ADRP.
            _ if word & 0x9f00_0000 == 0x1000_0000 => self.set(rd, Some(at.wrapping_add_signed(adr))),
            _ if word & 0x9f00_0000 == 0x9000_0000 => {
                self.set(rd, Some((at & !0xfff).wrapping_add_signed(adr << 12)));
                None
            }
            // ADD (immediate), 64 bits.
            _ if word & 0xff80_0000 == 0x9100_0000 => {
                let shift = if word & 1 << 22 != 0 { 12 } else { 0 };
                let value = self.values[rn].map(|base| base.wrapping_add(u64::from(word >> 10 & 0xfff) << shift));
                self.set(rd, value)
            }
            // LDR (immediate, unsigned offset), 64 bits.
            _ if word & 0xffc0_0000 == 0xf940_0000 => {
                let value = self.values[rn].and_then(|base| load(base + u64::from(word >> 10 & 0xfff) * 8));
                self.set(rd, value)
            }
            // MOV (register), 64 bits.
            _ if word & 0xffe0_ffe0 == 0xaa00_03e0 => {
                self.set(rd, self.values[rm]);
                None
            }
            // ADD (shifted or extended register), 64 bits.
            _ if word & 0xff00_0000 == 0x8b00_0000 => {
                self.set(rd, None);
                self.computed[rd] = true;
                None
            }
            // BL, BLR: registers that a callee need not keep.
            _ if word & 0xfc00_0000 == 0x9400_0000 || word & 0xffff_fc1f == 0xd63f_0000 => {
                (0..=18).chain([30]).for_each(|register| _ = self.set(register, None));
                None
            }
            _ => {
                for register in written(word).into_iter().flatten() {
                    self.set(register, None);
                }
                None
            }
        }
    }

    fn set(&mut self, register: usize, value: Option<u64>) -> Option<u64> {
        // 31 is XZR or SP, neither of which holds an address of the image.
        let value = value.filter(|_| register != 31);
        (self.values[register], self.computed[register]) = (value, false);
        value
    }
}

/// The general-purpose registers that an instruction writes, but for those of [`Registers::step`]; by the groups of the
/// Arm ARM (C4.1): data processing, then loads.
fn written(word: u32) -> [Option<usize>; 2] {
    let (rt, rt2) = ((word & 31) as usize, (word >> 10 & 31) as usize);
    let is_load = word & 1 << 22 != 0;
    match word >> 25 & 15 {
        0b1000 | 0b1001 => [Some(rt), None],
        // CCMP and CCMN write flags alone.
        0b0101 | 0b1101 if word & 0x1fe0_0000 != 0x1a40_0000 => [Some(rt), None],
        // MRS and SYSL.
        0b1010 | 0b1011 if word & 0xffe0_0000 == 0xd520_0000 => [Some(rt), None],
        0b0100 | 0b1100 => match word >> 27 & 7 {
            // LDP, LDNP.
            0b101 if is_load => [Some(rt), Some(rt2)],
            // LDR (literal); LDXR and the like.
            0b011 => [Some(rt), None],
            0b001 if is_load => [Some(rt), None],
            // LDR, LDUR, and atomic operations, which return the old value.
            0b111 if word >> 22 & 3 != 0 || word & 0x0020_0c00 == 0x0020_0000 => [Some(rt), None],
            _ => [None, None],
        },
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_decoded() {
        let at = 0xffff_8000_8000_1000;
        assert_eq!(flow(0x9400_0002, at), Flow::Call(at + 8));
        assert_eq!(flow(0x97ff_ffff, at), Flow::Call(at - 4));
        assert_eq!(flow(0x17ff_fffe, at), Flow::Jump(at - 8));
        assert_eq!(flow(0x5400_0041, at), Flow::Branch(at + 8)); // b.ne
        assert_eq!(flow(0xb4ff_ffe0, at), Flow::Branch(at - 4)); // cbz x0
        assert_eq!(flow(0x3777_ffc1, at), Flow::Branch(at - 8)); // tbnz w1, #14
        assert_eq!(flow(0xd63f_0100, at), Flow::CallRegister);
        assert_eq!(flow(0xd61f_0060, at), Flow::JumpRegister(3));
        assert_eq!(flow(0xd65f_03c0, at), Flow::Return);
        assert_eq!(flow(0xd420_0020, at), Flow::Trap);
        assert_eq!(flow(0xd503_201f, at), Flow::Next);
    }

    #[test]
    fn moves_of_the_stack_pointer_are_decoded() {
        for (word, growth) in [
            (0xd101_03ff, Some(64)),   // sub sp, sp, #64
            (0xd140_07ff, Some(4096)), // sub sp, sp, #1, lsl #12
            (0x9101_03ff, Some(-64)),  // add sp, sp, #64
            (0xa9bf_7bfd, Some(16)),   // stp x29, x30, [sp, #-16]!
            (0xa8c1_7bfd, Some(-16)),  // ldp x29, x30, [sp], #16
            (0xf81f_0ffe, Some(16)),   // str x30, [sp, #-16]!
            (0xf841_07fe, Some(-16)),  // ldr x30, [sp], #16
            (0xa901_7bfd, Some(0)),    // stp x29, x30, [sp, #16]
            (0x9100_43fd, Some(0)),    // add x29, sp, #16
            (0xeb1f_001f, Some(0)),    // cmp x0, xzr
            (0xf100_041f, Some(0)),    // cmp x0, #1
            (0x9100_03bf, None),       // mov sp, x29
            (0x927a_e53f, None),       // and sp, x9, #0xffffffffffffffc0
            (0x8b20_63ff, None),       // add sp, sp, x0
        ] {
            assert_eq!(stack_growth(word), growth, "{word:#x}");
        }
    }

    #[test]
    fn addresses_are_followed_through_registers() {
        let mut registers = Registers::default();
        let at = 0xffff_8000_8000_1234;
        let mut step = |word| registers.step(word, at, |address| Some(address + 0x100));
        assert_eq!(step(0xd000_0008), None); // adrp x8, +2 pages
        assert_eq!(step(0xaa08_03e2), None); // mov x2, x8
        assert_eq!(step(0x9100_4042), Some(0xffff_8000_8000_3010)); // add x2, x2, #16
        assert_eq!(step(0xf940_0908), Some(0xffff_8000_8000_3110)); // ldr x8, [x8, #16]
        assert_eq!(step(0xf900_0002), None); // str x2, [x0] leaves x2
        assert_eq!(step(0x9100_2043), Some(0xffff_8000_8000_3018)); // add x3, x2, #8
        assert_eq!(step(0xa940_0c02), None); // ldp x2, x3, [x0]
        assert_eq!(step(0x9100_2043), None); // add x3, x2, #8
        assert_eq!(step(0x1000_0020), Some(at + 4)); // adr x0, +4
        assert_eq!(step(0x8b0b_094a), None); // add x10, x10, x11, lsl #2
        assert!(registers.is_table_jump(10) && !registers.is_table_jump(11));
    }
}
