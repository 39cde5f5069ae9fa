//! The words of each wrapper of an instruction, against a table that was written from the Arm ARM.
//!
//! The host records wrappers by their names and QEMU completes everything at once, so neither shows that a wrapper issues
//! another instruction than its name says. The test image has a function `word_NAME` around each
//! (tests-qemu/guest/src/words.rs); what the compiler made of it is in the ELF.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};

/// How the functions' names begin.
const PREFIX: &str = "word_";

/// Of each function the words of the system instruction class (Arm ARM C4.1.93) and of exclusive and ordered accesses
/// (C4.1.94), in order, registers left out. Encodings: DSB, DMB, ISB, the hints and accesses C6.2, TLBI, DC, IC and AT
/// C5.3 to C5.5 and C5.6, system registers D24.
const WORDS: [(&str, &[u32]); 67] = [
    // DSB: CRm 10 ISHST, 11 ISH, 7 NSH, 15 SY.
    ("dsb_ishst", &[0xd503_3a80]),
    ("dsb_ish", &[0xd503_3b80]),
    ("dsb_nsh", &[0xd503_3780]),
    ("dsb_sy", &[0xd503_3f80]),
    // DMB: CRm 10 ISHST, 11 ISH, 2 OSHST, 1 OSHLD, 3 OSH.
    ("dmb_ishst", &[0xd503_3aa0]),
    ("dmb_ish", &[0xd503_3ba0]),
    ("dmb_oshst", &[0xd503_32a0]),
    ("dmb_oshld", &[0xd503_31a0]),
    ("dmb_osh", &[0xd503_33a0]),
    ("isb", &[0xd503_3fc0]),
    // TLBI: CRm 3 inner shareable, 7 this CPU; 2 the same as 3 for ranges. op2 0 VMALL, 1 VA, 2 ASID, 3 VAA, 5 VAL,
    // 7 VAAL.
    ("execute_vmalle1is", &[0xd508_8300]),
    ("execute_vmalle1", &[0xd508_8700]),
    ("execute_vaae1is", &[0xd508_8360]),
    ("execute_vaale1is", &[0xd508_83e0]),
    ("execute_vaae1", &[0xd508_8760]),
    ("execute_vaale1", &[0xd508_87e0]),
    ("execute_aside1is", &[0xd508_8340]),
    ("execute_vae1is", &[0xd508_8320]),
    ("execute_vale1is", &[0xd508_83a0]),
    ("execute_vale1", &[0xd508_87a0]),
    ("execute_rvaae1is", &[0xd508_8260]),
    ("execute_rvaale1is", &[0xd508_82e0]),
    ("execute_rvae1is", &[0xd508_8220]),
    ("execute_rvale1is", &[0xd508_82a0]),
    // MRS CTR_EL0, DC, DSB SY.
    ("clean_to_memory", &[0xd53b_0020, 0xd50b_7a20, 0xd503_3f80]),
    ("clean_and_invalidate_to_memory", &[0xd53b_0020, 0xd50b_7e20, 0xd503_3f80]),
    // DSB SY, MRS CTR_EL0, DC, DSB SY.
    ("invalidate_to_memory", &[0xd503_3f80, 0xd53b_0020, 0xd508_7620, 0xd503_3f80]),
    // MRS CTR_EL0, DC IGVAC, DSB SY.
    ("invalidate_tags_to_memory", &[0xd53b_0020, 0xd508_7660, 0xd503_3f80]),
    ("clean_to_unification", &[0xd50b_7b20]),
    ("invalidate_instructions", &[0xd50b_7520]),
    ("invalidate_all_instructions", &[0xd508_7100]),
    // MRS DAIF, MSR DAIFSet, #15; DSB ISHST, TLBI VMALLE1IS, DSB ISH, for an erratum both once more; DSB ISHST, ISB, MSR
    // DAIF: D8.17.1.
    (
        "break_before_make",
        &[
            0xd53b_4220,
            0xd503_4fc0,
            0xd503_3a80,
            0xd508_8300,
            0xd503_3b80,
            0xd508_8300,
            0xd503_3b80,
            0xd503_3a80,
            0xd503_3fc0,
            0xd51b_4220,
        ],
    ),
    // MRS DAIF, MSR DAIFSet, #15; STLR, LDAR, WFE; ISB, MSR DAIF.
    ("park", &[0xd53b_4220, 0xd503_4fc0, 0x889f_fc00, 0x88df_fc00, 0xd503_2040, 0xd503_3fc0, 0xd51b_4220]),
    // DC CVAU, DSB ISH, IC IVAU, DSB ISH, ISB: B2.7.4.2.
    ("sync_code", &[0xd50b_7b20, 0xd503_3b80, 0xd50b_7520, 0xd503_3b80, 0xd503_3fc0]),
    // MRS PAR_EL1, AT S1E1R, ISB, MRS PAR_EL1, MSR PAR_EL1.
    ("read_at_el1", &[0xd538_7400, 0xd508_7800, 0xd503_3fc0, 0xd538_7400, 0xd518_7400]),
    ("relax", &[0xd503_2020]),
    ("wfe", &[0xd503_2040]),
    ("sev", &[0xd503_2080]),
    ("wfi", &[0xd503_2060]),
    // MRS DAIF, MSR DAIFSet, #3 (I and F).
    ("mask", &[0xd53b_4220, 0xd503_43c0]),
    ("restore", &[0xd51b_4220]),
    ("enable", &[0xd503_43e0]),
    ("state", &[0xd53b_4220]),
    ("rndr", &[0xd53b_2400]),
    // MRS CNTVCT_EL0.
    ("count_unordered", &[0xd53b_e040]),
    ("count", &[0xd503_3fc0, 0xd53b_e040]),
    // MRS CNTFRQ_EL0.
    ("own_frequency", &[0xd53b_e000]),
    // MSR CNTV_CVAL_EL0, MSR CNTV_CTL_EL0, ISB.
    ("set_deadline", &[0xd51b_e340, 0xd51b_e320, 0xd503_3fc0]),
    ("stop", &[0xd51b_e320, 0xd503_3fc0]),
    ("dczid_el0", &[0xd53b_00e0]),
    ("pmceid0_el0", &[0xd53b_9cc0]),
    // The word of a CPU's walks: LDXR and STXR, LDAR, STLR, DMB ISH.
    ("walk_make_odd", &[0xc85f_7c00, 0xc800_7c00]),
    ("walk_load_acquire", &[0xc8df_fc00]),
    ("walk_store_release", &[0xc89f_fc00]),
    ("walk_full_barrier", &[0xd503_3ba0]),
    // The instructions of page tables on a machine; MRS CTR_EL0 comes before maintenance by lines.
    ("mmu_dmb_ishst", &[0xd503_3aa0]),
    ("mmu_dsb_ishst", &[0xd503_3a80]),
    ("mmu_dsb_ish", &[0xd503_3b80]),
    ("mmu_dsb_nsh", &[0xd503_3780]),
    ("mmu_isb", &[0xd503_3fc0]),
    // DSB ISH; where an erratum asks for it, TLBI VALE1IS, DSB ISH.
    ("mmu_complete_tlbi", &[0xd503_3b80, 0xd508_83a0, 0xd503_3b80]),
    ("mmu_clean_code", &[0xd53b_0020, 0xd50b_7b20]),
    ("mmu_invalidate_code", &[0xd53b_0020, 0xd50b_7520]),
    ("mmu_invalidate_all_code", &[0xd508_7100]),
    // TLBI VMALLE1, DSB NSH, ISB, MSR SCTLR_EL1, ISB, IC IALLU, DSB NSH, ISB.
    (
        "turn_on",
        &[0xd508_8700, 0xd503_3780, 0xd503_3fc0, 0xd518_1000, 0xd503_3fc0, 0xd508_7500, 0xd503_3780, 0xd503_3fc0],
    ),
    // The barriers of the SMMU's queues.
    ("port_dmb_oshst", &[0xd503_32a0]),
    ("port_dmb_oshld", &[0xd503_31a0]),
];

/// MSR TTBR0_EL1, and ISB.
const SET_TTBR0: u32 = 0xd518_2000;
const ISB: u32 = 0xd503_3fc0;
/// NOP, which the compiler may put anywhere, to align a loop for one.
const NOP: u32 = 0xd503_201f;

/// Refuses a test image in which a wrapper issues other instructions than the table has for its name, or in which a write
/// of TTBR0_EL1 has no ISB behind it: what the kernel accesses at addresses of EL0 next would go by the other tables
/// (Arm ARM B2.6.2).
///
/// # Errors
/// Names those that differ, those that are on one side only, and where the ISB is missing.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let mut wrong = differences(&read(elf)?);
    let file: ElfFile64<'_> = ElfFile64::parse(elf)?;
    // The boot code writes it with the MMU off, in a section of its own.
    let text = file.section_by_name(".text").context("the image has no .text")?;
    wrong.extend(unsynchronized(text.address(), &words_of(text.data()?))?);
    ensure!(wrong.is_empty(), "instructions are not what their names say:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// The writes of TTBR0_EL1 without an ISB as the next instruction, in code that lies at `start`.
///
/// # Errors
/// When there is no such write at all: then it has another form than is looked for here.
fn unsynchronized(start: u64, code: &[u32]) -> Result<Vec<String>> {
    let mut writes = code.iter().enumerate().filter(|(_, word)| **word & !0x1f == SET_TTBR0).peekable();
    ensure!(writes.peek().is_some(), "the image never writes TTBR0_EL1");
    let is_followed = |at: &usize| code.get(at + 1).is_some_and(|word| word & !0x1f == ISB);
    let wrong = writes.map(|(at, _)| at).filter(|at| !is_followed(at));
    Ok(wrong.map(|at| format!("no ISB follows the write of TTBR0_EL1 at {:#x}", start + 4 * at as u64)).collect())
}

/// The instructions in `bytes`.
fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn differences(found: &BTreeMap<String, Vec<u32>>) -> Vec<String> {
    let compare = |&(name, wanted): &(&str, &[u32])| match found.get(name) {
        None => Some(format!("the image has no function {PREFIX}{name}")),
        Some(found) if found != wanted => Some(format!("{name} issues {found:08x?}, and must issue {wanted:08x?}")),
        Some(_) => None,
    };
    let unlisted = found.keys().filter(|name| !WORDS.iter().any(|(listed, _)| name == listed));
    let unlisted = unlisted.map(|name| format!("xtask/image/src/words.rs has no words for {PREFIX}{name}"));
    WORDS.iter().filter_map(compare).chain(unlisted).collect()
}

/// The functions by their names, with their system instructions.
fn read(elf: &[u8]) -> Result<BTreeMap<String, Vec<u32>>> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf)?;
    // The compiler may make one function of two that are alike, which then have one address and two names.
    let code = |address: u64| -> Result<Vec<u32>> {
        let size = file.symbols().filter(|symbol| symbol.address() == address).map(|symbol| symbol.size()).max();
        let section = file.sections().find(|section| {
            let start = section.address();
            start != 0 && (start..start + section.size()).contains(&address)
        });
        let bytes = section.and_then(|section| section.data_range(address, size.unwrap_or(0)).ok().flatten());
        let bytes = bytes.with_context(|| format!("there is no code at {address:#x}"))?;
        Ok(words_of(bytes))
    };
    let mut found = BTreeMap::new();
    for symbol in file.symbols() {
        if let Some(name) = symbol.name()?.strip_prefix(PREFIX) {
            let words = system_words(symbol.address(), &code, 3).with_context(|| name.to_owned())?;
            found.insert(name.to_owned(), words);
        }
    }
    Ok(found)
}

/// The instructions of these classes of a function in the order of the text, with those of what it calls, in their place; a loop
/// that was unrolled counts once.
fn system_words(start: u64, code: &impl Fn(u64) -> Result<Vec<u32>>, depth: u32) -> Result<Vec<u32>> {
    let words = code(start)?;
    let end = start + 4 * words.len() as u64;
    let mut found = Vec::new();
    for (address, word) in (start..).step_by(4).zip(words) {
        // Exceptions and PSTATE, barriers, hints, SYS, MSR and MRS: bits 31:22 are 1101010100.
        if word >> 22 == 0b11_0101_0100 && word != NOP {
            // Those with Rt have a register of the compiler's choice.
            found.push(word & !0x1f);
        }
        // Exclusives, load-acquire and store-release, without Rt and Rn; of a store-exclusive (o2 and L are 0), without Rs.
        if word >> 24 & 0x3f == 0b00_1000 {
            let status = if word >> 22 & 0b11 == 0 { 0x1f_0000 } else { 0 };
            found.push(word & !(status | 0x3ff));
        }
        // B and BL, out of the function.
        if word >> 26 & 0x1f == 0b00101 {
            let target = address.wrapping_add_signed(i64::from((word << 6) as i32 >> 6) * 4);
            if !(start..end).contains(&target) && depth > 0 {
                found.extend(system_words(target, code, depth - 1)?);
            }
        }
    }
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{WORDS, differences, system_words, unsynchronized};

    /// The names of wrappers in a source of granule-arch: what stands first in a use of one of its macros.
    fn wrappers(source: &str, macros: &str) -> Vec<String> {
        let file = granule_tools::root().join("arch/src").join(source);
        let text = std::fs::read_to_string(&file).unwrap();
        let opening = format!("\n{macros}!(\n");
        let uses = text.split(opening.as_str()).skip(1);
        let first = |use_: &str| {
            let line = use_.lines().map(str::trim).find(|line| !line.starts_with("///"))?;
            Some(line.split(['(', ',']).next()?.trim().to_owned())
        };
        uses.filter_map(first).collect()
    }

    fn is_listed(name: &str) -> bool {
        WORDS.iter().any(|(listed, _)| *listed == name)
    }

    #[test]
    fn each_wrapper_has_its_words() {
        let mut count = 0;
        for (source, macros) in
            [("barrier.rs", "barrier"), ("wait.rs", "hint"), ("cache.rs", "by_address"), ("cache.rs", "by_line")]
        {
            for name in wrappers(source, macros) {
                assert!(is_listed(&name), "xtask/image/src/words.rs lacks {name} of {source}");
                count += 1;
            }
        }
        let read = |source| std::fs::read_to_string(granule_tools::root().join("arch/src").join(source)).unwrap();
        for name in read("cache.rs").split("\npub unsafe fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            assert!(is_listed(name), "xtask/image/src/words.rs lacks {name} of cache.rs");
            count += 1;
        }
        let tlbi = read("tlbi.rs");
        for name in tlbi.split("tlbi!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(is_listed(&format!("execute_{name}")), "xtask/image/src/words.rs lacks {name} of tlbi.rs");
            count += 1;
        }
        assert!(count > 30, "the sources have another form: {count} wrappers");
    }

    #[test]
    fn another_word_and_a_function_on_one_side_only_are_found() {
        let mut found: BTreeMap<String, Vec<u32>> =
            WORDS.iter().map(|(name, words)| ((*name).to_owned(), words.to_vec())).collect();
        assert_eq!(differences(&found), [""; 0]);
        // DSB ISHST for DSB ISH; TLBI RVALE1 for RVALE1IS.
        found.insert("dsb_ish".into(), vec![0xd503_3a80]);
        found.insert("execute_rvale1is".into(), vec![0xd508_86a0]);
        found.remove("isb");
        found.insert("other".into(), vec![]);
        let wrong = differences(&found);
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert_eq!(wrong[0], "dsb_ish issues [d5033a80], and must issue [d5033b80]");
    }

    #[test]
    fn a_write_of_the_tables_register_needs_its_isb() {
        // msr TTBR0_EL1, x8; isb; ldr x0, [x1]
        let good = [0xd518_2008, 0xd503_3fdf, 0xf940_0020];
        assert_eq!(unsynchronized(0x1000, &good).unwrap(), [""; 0]);
        let bad = [0xd503_3fdf, 0xd518_2008, 0xf940_0020];
        assert_eq!(unsynchronized(0x1000, &bad).unwrap(), ["no ISB follows the write of TTBR0_EL1 at 0x1004"]);
        assert!(unsynchronized(0x1000, &[0xf940_0020]).is_err());
    }

    #[test]
    fn calls_are_followed_and_loops_count_once() {
        let code = |address| {
            Ok(match address {
                // dsb ish; nop; bl +0xffc; isb; ret
                0x1000 => vec![0xd503_3b9f, 0xd503_201f, 0x9400_03fe, 0xd503_3fdf, 0xd65f_03c0],
                // tlbi vae1is, x3, twice; a branch to itself; ret
                0x2000 => vec![0xd508_8323, 0xd508_8324, 0x1400_0000, 0xd65f_03c0],
                _ => anyhow::bail!("{address:#x}"),
            })
        };
        assert_eq!(system_words(0x1000, &code, 3).unwrap(), [0xd503_3b80, 0xd508_8320, 0xd503_3fc0]);
    }
}
