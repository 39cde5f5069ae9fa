//! What must hold of the example on the metal (`examples/metal`), in its finished code.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::audit::code::{Flow, flow};

/// What runs with the MMU off, by a part of its name.
const MMU_OFF: &str = "build_tables";

/// Refuses a program that, from [`MMU_OFF`] on, has an exclusive or atomic access: with the MMU off those are
/// constrained unpredictable, and QEMU does not show it. Calls by a pointer are not followed: panics make them.
///
/// # Errors
/// Names the function and the address.
pub(crate) fn check_mmu_off(elf: &[u8]) -> Result<()> {
    let file = ElfFile64::<LittleEndian>::parse(elf)?;
    let text = file.section_by_name(".text").context("there is no .text")?;
    let (start, bytes) = (text.address(), text.data()?);
    let functions: Vec<(u64, u64, &str)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0)
        .map(|symbol| Ok((symbol.address(), symbol.address() + symbol.size(), symbol.name()?)))
        .collect::<Result<_>>()?;
    let mut left: Vec<_> = functions.iter().filter(|(.., name)| name.contains(MMU_OFF)).collect();
    ensure!(!left.is_empty(), "there is no function `{MMU_OFF}`");
    let mut seen: BTreeSet<u64> = left.iter().map(|function| function.0).collect();
    while let Some(&(from, to, name)) = left.pop() {
        for at in (from..to).step_by(4) {
            let offset = usize::try_from(at - start)?;
            let word = bytes.get(offset..offset + 4).context("a function outside of .text")?;
            let word = u32::from_le_bytes(word.try_into()?);
            if is_exclusive(word) {
                bail!("{name} runs with the MMU off and has an exclusive or atomic access at {at:#x}");
            }
            if let Flow::Call(target) | Flow::Jump(target) | Flow::Branch(target) = flow(word, at) {
                let entered = functions.iter().find(|function| (function.0..function.1).contains(&target));
                left.extend(entered.filter(|function| seen.insert(function.0)));
            }
        }
    }
    Ok(())
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
    use super::is_exclusive;

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
