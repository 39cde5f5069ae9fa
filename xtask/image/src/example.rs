//! Checks of the example on the metal (`examples/metal`), in its finished code.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::code::{Flow, flow, is_at_el2};

/// Where the program is entered. The first function that it calls returns with the MMU on.
const ENTRY: &str = "_start";

/// Refuses a program that has an exclusive or atomic access before the MMU is on: those are constrained unpredictable
/// then, and QEMU does not show it. Calls by a pointer are not followed: panics make them.
///
/// # Errors
/// Names the function and the address. Also where the MMU is not switched on by what the entry calls first.
pub(crate) fn check_mmu_off(elf: &[u8]) -> Result<()> {
    let file = ElfFile64::<LittleEndian>::parse(elf)?;
    let text = file.section_by_name(".text").context("there is no .text")?;
    let functions = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0)
        .map(|symbol| Ok((symbol.address(), symbol.address() + symbol.size(), symbol.name()?)))
        .collect::<Result<_>>()?;
    Program { start: text.address(), text: text.data()?, functions }.check()
}

/// A program's code.
struct Program<'a> {
    /// The address of `text`.
    start: u64,
    text: &'a [u8],
    /// First address, end, and name of each function.
    functions: Vec<(u64, u64, &'a str)>,
}

impl Program<'_> {
    fn check(&self) -> Result<()> {
        let entry = self.functions.iter().find(|(.., name)| *name == ENTRY);
        let &(from, to, _) = entry.with_context(|| format!("there is no function `{ENTRY}`"))?;
        let mut first = None;
        for at in (from..to).step_by(4) {
            if let Flow::Call(target) = self.step(ENTRY, at)?.1 {
                first = Some(target);
                break;
            }
        }
        let first = self.function_at(first.with_context(|| format!("`{ENTRY}` calls nothing"))?);
        let mut left = vec![first.context("what the entry calls is no function")?];
        let mut seen: BTreeSet<u64> = left.iter().map(|function| function.0).collect();
        let mut is_switched_on = false;
        while let Some(&(from, to, name)) = left.pop() {
            for at in (from..to).step_by(4) {
                let (word, flow) = self.step(name, at)?;
                // MSR SCTLR_EL1; on the way from EL2 it is switched off.
                is_switched_on |= word & !0x1f == 0xd518_1000 && !is_at_el2(name);
                if let Flow::Call(target) | Flow::Jump(target) | Flow::Branch(target) = flow {
                    left.extend(self.function_at(target).filter(|function| seen.insert(function.0)));
                }
            }
        }
        ensure!(is_switched_on, "what `{ENTRY}` calls first does not switch the MMU on");
        Ok(())
    }

    fn function_at(&self, address: u64) -> Option<&(u64, u64, &str)> {
        self.functions.iter().find(|function| (function.0..function.1).contains(&address))
    }

    /// The instruction at `at`, which is in the function `name`.
    fn step(&self, name: &str, at: u64) -> Result<(u32, Flow)> {
        let offset = usize::try_from(at - self.start)?;
        let word = self.text.get(offset..offset + 4).context("a function outside of .text")?;
        let word = u32::from_le_bytes(word.try_into()?);
        ensure!(!is_exclusive(word), "{name} runs with the MMU off and has an exclusive or atomic access at {at:#x}");
        Ok((word, flow(word, at)))
    }
}

/// Exclusive loads and stores and compare-and-swap (Arm ARM C4.1.94, load/store exclusive, but for LDAR, STLR and their
/// kin), and atomic memory operations.
fn is_exclusive(word: u32) -> bool {
    let ordered = word & 0x3fa0_0000 == 0x0880_0000;
    let exclusive = word & 0x3f00_0000 == 0x0800_0000 && !ordered;
    let atomic = word & 0x3b20_0c00 == 0x3820_0000;
    exclusive || atomic
}

#[cfg(test)]
mod tests {
    use super::{Program, is_exclusive};

    /// The check's verdict on a program at 0x1000: the entry, which calls `first` and goes on in `after`; and `called`,
    /// to which both may go.
    fn verdict(entry: [u32; 2], first: [u32; 3], called: [u32; 2]) -> Result<(), String> {
        let after = 0xc85f_7c20; // ldxr x0, [x1]
        let words = [entry[0], entry[1], first[0], first[1], first[2], called[0], called[1], after];
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let functions = vec![
            (0x1000, 0x1008, "_start"),
            (0x1008, 0x1014, "first"),
            (0x1014, 0x101c, "called"),
            (0x101c, 0x1020, "after"),
        ];
        Program { start: 0x1000, text: &text, functions }.check().map_err(|error| error.to_string())
    }

    #[test]
    fn all_that_runs_before_the_mmu_is_on_is_looked_at_and_nothing_else() {
        const ENTRY: [u32; 2] = [0x9400_0002, 0x1400_0006]; // bl first; b after
        const FIRST: [u32; 3] = [0x9400_0003, 0xd518_1000, 0xd65f_03c0]; // bl called; msr sctlr_el1, x0; ret
        const CALLED: [u32; 2] = [0xf940_0020, 0xd65f_03c0]; // ldr x0, [x1]; ret
        const SWP: u32 = 0xf820_8041;
        assert_eq!(verdict(ENTRY, FIRST, CALLED), Ok(()));
        for (entry, first, called, reason) in [
            ([SWP, 0x9400_0001], FIRST, CALLED, "_start runs with the MMU off"),
            (ENTRY, [0x9400_0003, SWP, 0xd518_1000], CALLED, "first runs with the MMU off"),
            (ENTRY, FIRST, [SWP, 0xd65f_03c0], "called runs with the MMU off"),
            ([0x1400_0002, 0x1400_0006], FIRST, CALLED, "calls nothing"),
            (ENTRY, [0x9400_0003, 0xd503_201f, 0xd65f_03c0], CALLED, "does not switch the MMU on"),
        ] {
            let found = verdict(entry, first, called).unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }

    #[test]
    fn accesses_that_need_normal_memory_are_told_from_plain_ones() {
        for word in [
            0xc85f_7c20, // ldxr x0, [x1]
            0xc802_7c20, // stxr w2, x0, [x1]
            0xc85f_fc20, // ldaxr x0, [x1]
            0xc87f_0440, // ldxp x0, x1, [x2]
            0xc8a0_7c41, // cas x0, x1, [x2]
            0x4820_7c82, // casp x0, x1, x2, x3, [x4]
            0xf820_0041, // ldadd x0, x1, [x2]
            0xf820_8041, // swp x0, x1, [x2]
        ] {
            assert!(is_exclusive(word), "{word:#x}");
        }
        for word in [
            0xf940_0020, // ldr x0, [x1]
            0xf900_0020, // str x0, [x1]
            0xf862_6820, // ldr x0, [x1, x2]
            0xa940_0440, // ldp x0, x1, [x2]
            0xc8df_fc20, // ldar x0, [x1]
            0xc89f_fc20, // stlr x0, [x1]
            0xd503_3f9f, // dsb sy
        ] {
            assert!(!is_exclusive(word), "{word:#x}");
        }
    }
}
