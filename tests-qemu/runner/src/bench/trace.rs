//! Barriers and invalidations, counted from outside: QEMU logs each executed instruction of the kinds that are looked
//! for.
//!
//! The kernel counts nothing for it, so it costs nothing, and code of other crates is seen as well. QEMU is made to
//! translate instructions one at a time and to log the executed ones at a list of addresses: those at which the image
//! has such an instruction, or one of the two markers between which a bench measures.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, SectionKind};

/// `hint #96`.
const BEGIN: u32 = 0xd503_2c1f;
/// `hint #97`.
const END: u32 = 0xd503_2c3f;

/// The barriers and TLBIs that a call issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Barriers {
    /// DSBs, whatever their domain.
    pub dsb: u32,
    /// ISBs.
    pub isb: u32,
    /// TLBIs, single, by range, or everything.
    pub tlbi: u32,
}

/// An instruction that is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Begin,
    End,
    Dsb,
    Isb,
    Tlbi,
}

impl Kind {
    /// The kind of a word of A64 code (Arm ARM C4.1.96), if it is looked for.
    fn of(word: u32) -> Option<Self> {
        match word {
            BEGIN => Some(Self::Begin),
            END => Some(Self::End),
            // CRm is the domain; the second is DSB nXS.
            _ if word & 0xffff_f0ff == 0xd503_309f || word & 0xffff_f3ff == 0xd503_323f => Some(Self::Dsb),
            _ if word & 0xffff_f0ff == 0xd503_30df => Some(Self::Isb),
            // SYS with CRn 8, or 9 for the nXS forms: op1, CRm, op2 and the register give which.
            _ if word & 0xfff8_e000 == 0xd508_8000 => Some(Self::Tlbi),
            _ => None,
        }
    }
}

/// Where an image has such instructions.
#[derive(Clone, Debug, Default)]
pub struct Sites(BTreeMap<u64, Kind>);

impl Sites {
    /// Those of some ELFs, each at addresses of its own.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(elfs: &[&Path]) -> Result<Self> {
        let mut sites = Self::default();
        for elf in elfs {
            let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
            let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
            for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
                sites.add(section.address(), section.data()?);
            }
        }
        Ok(sites)
    }

    fn add(&mut self, start: u64, code: &[u8]) {
        let words = code.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        self.0.extend((start..).step_by(4).zip(words).filter_map(|(at, word)| Some((at, Kind::of(word)?))));
    }

    /// The argument of QEMU's `-dfilter`.
    pub fn filter(&self) -> String {
        let ranges: Vec<String> = self.0.keys().map(|address| format!("{address:#x}+4")).collect();
        ranges.join(",")
    }

    /// The windows of QEMU's log, in the order in which they were measured.
    ///
    /// # Errors
    /// When the markers do not alternate, or the log is not of this image.
    pub fn windows(&self, log: &str) -> Result<Vec<Barriers>> {
        let mut windows = Vec::new();
        let mut open: Option<Barriers> = None;
        let mut lines = log.lines().peekable();
        while let Some(line) = lines.next() {
            // An interrupt of the emulator's own came first: the block did not run, and is in the log again.
            if lines.next_if(|next| next.starts_with(STOPPED)).is_some() {
                continue;
            }
            let Some(address) = executed(line) else { bail!("not a line of `-d exec`: {line}") };
            let kind =
                self.0.get(&address).with_context(|| format!("{address:#x} is none of the addresses asked for"))?;
            match (kind, &mut open) {
                (Kind::Begin, None) => open = Some(Barriers::default()),
                (Kind::End, Some(window)) => {
                    windows.push(*window);
                    open = None;
                }
                (Kind::Begin | Kind::End, _) => bail!("the markers do not alternate at {address:#x}"),
                (Kind::Dsb, Some(window)) => window.dsb += 1,
                (Kind::Isb, Some(window)) => window.isb += 1,
                (Kind::Tlbi, Some(window)) => window.tlbi += 1,
                (Kind::Dsb | Kind::Isb | Kind::Tlbi, None) => {}
            }
        }
        Ok(windows)
    }
}

/// How QEMU begins the line about a block that it has logged and then not run.
const STOPPED: &str = "Stopped execution of TB chain before ";

/// The address in `Trace 0: 0x7ff87401d580 [0010c004/ffff8000800020d8/00000141/ff022201] `.
fn executed(line: &str) -> Option<u64> {
    let (_, state) = line.strip_prefix("Trace ")?.split_once('[')?;
    u64::from_str_radix(state.split('/').nth(1)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::{Barriers, Kind, Sites};

    /// As the assembler writes them.
    const WORDS: [(u32, Option<Kind>); 16] = [
        (0xd503_2c1f, Some(Kind::Begin)), // hint #96
        (0xd503_2c3f, Some(Kind::End)),   // hint #97
        (0xd503_3b9f, Some(Kind::Dsb)),   // dsb ish
        (0xd503_3a9f, Some(Kind::Dsb)),   // dsb ishst
        (0xd503_3f9f, Some(Kind::Dsb)),   // dsb sy
        (0xd503_3fdf, Some(Kind::Isb)),   // isb
        (0xd508_831f, Some(Kind::Tlbi)),  // tlbi vmalle1is
        (0xd508_83e0, Some(Kind::Tlbi)),  // tlbi vaale1is, x0
        (0xd508_82e1, Some(Kind::Tlbi)),  // tlbi rvaale1is, x1
        (0xd50c_83df, Some(Kind::Tlbi)),  // tlbi vmalls12e1is
        (0xd508_93e0, Some(Kind::Tlbi)),  // tlbi vaale1isnxs, x0
        (0xd503_3abf, None),              // dmb ishst
        (0xd503_201f, None),              // nop
        (0xd50b_7420, None),              // dc zva, x0
        (0xd508_7800, None),              // at s1e1r, x0
        (0xd65f_03c0, None),              // ret
    ];

    #[test]
    fn instructions_are_told_apart() {
        for (word, kind) in WORDS {
            assert_eq!(Kind::of(word), kind, "{word:#x}");
        }
    }

    fn sites() -> Sites {
        let code: Vec<u8> = WORDS.iter().flat_map(|(word, _)| word.to_le_bytes()).collect();
        let mut sites = Sites::default();
        sites.add(0x1000, &code);
        sites
    }

    /// QEMU's log for the words at these places.
    fn log(places: &[u64]) -> String {
        places
            .iter()
            .map(|place| format!("Trace 0: 0x7f00 [0010c004/{:016x}/00000141/ff022201] \n", 0x1000 + 4 * place))
            .collect()
    }

    #[test]
    fn only_what_is_between_the_markers_counts() {
        let windows = sites().windows(&log(&[2, 0, 3, 6, 2, 5, 1, 5, 0, 1])).unwrap();
        assert_eq!(windows, [Barriers { dsb: 2, isb: 1, tlbi: 1 }, Barriers::default()]);
    }

    #[test]
    fn a_block_that_did_not_run_counts_once() {
        let stopped = "Stopped execution of TB chain before 0x7f00 [0000000000001008] \n";
        let text = format!("{}{stopped}{}", log(&[0, 2]), log(&[2, 1]));
        assert_eq!(sites().windows(&text).unwrap(), [Barriers { dsb: 1, isb: 0, tlbi: 0 }]);
    }

    #[test]
    fn a_log_that_makes_no_sense_is_refused() {
        assert!(sites().windows(&log(&[0, 0])).is_err());
        assert!(sites().windows(&log(&[1])).is_err());
        assert!(sites().windows(&log(&[12])).is_err());
        assert!(sites().windows("qemu: something else\n").is_err());
    }

    #[test]
    fn the_filter_names_each_address() {
        assert!(sites().filter().starts_with("0x1000+4,0x1004+4,0x1008+4"));
    }
}
