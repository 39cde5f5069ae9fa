//! Initrds for the fuzzer's sessions: ELF files with one thing wrong or unusual, odd paths, and archives that break off.

use granule_image::initrd::Archive;

const PROGRAM: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

// Offsets in `program()`: fields of the ELF header, and of its two program headers.
const CLASS: usize = 4;
const DATA: usize = 5;
const VERSION: usize = 6;
const TYPE: usize = 16;
const MACHINE: usize = 18;
const ENTRY: usize = 24;
const HEADERS: usize = 32;
const HEADER_SIZE: usize = 54;
const HEADER_COUNT: usize = 56;
const FIRST: usize = 64;
const SECOND: usize = 120;
const CODE: usize = 176;
// Offsets in a program header.
const KIND: usize = 0;
const FLAGS: usize = 4;
const OFFSET: usize = 8;
const ADDRESS: usize = 16;
const IN_FILE: usize = 32;
const IN_MEMORY: usize = 40;

/// `ET_DYN`, `PT_LOAD`, ...
const ANYWHERE: u64 = 3;
const LOAD: u64 = 1;
const DYNAMIC: u64 = 2;
const INTERPRETER: u64 = 3;
const NOTE: u64 = 4;
const STACK: u64 = 0x6474_e551;

// Offsets in an entry of an archive.
const FILE_SIZE: usize = 54;
const NAME_SIZE: usize = 94;
const NAME: usize = 110;

/// Where the program is linked, and a page behind it.
const BASE: u64 = 0x40_0000;
const BEHIND: u64 = 0x40_2000;

/// A change of the program: bytes of the field, its offset, the value.
type Change = (usize, usize, u64);

/// Programs that run: what the kernel must accept.
const GOOD: [(&str, &[Change]); 7] = [
    ("plain", &[]),
    ("executable-stack", &[(4, SECOND + FLAGS, 7)]),
    ("note", &[(4, SECOND + KIND, NOTE)]),
    ("zeros", &[(4, SECOND + KIND, LOAD), (8, SECOND + ADDRESS, BEHIND + 8), (8, SECOND + IN_MEMORY, 0x3000)]),
    (
        "write-only",
        &[
            (4, SECOND + KIND, LOAD),
            (4, SECOND + FLAGS, 2),
            (8, SECOND + ADDRESS, BEHIND),
            (8, SECOND + IN_FILE, 16),
            (8, SECOND + IN_MEMORY, 16),
        ],
    ),
    ("empty-segment", &[(4, SECOND + KIND, LOAD)]),
    ("anywhere", &[(2, TYPE, ANYWHERE), (8, FIRST + ADDRESS, 0), (8, ENTRY, CODE as u64)]),
];

/// Files that are no programs, with one thing wrong each.
const BAD: [(&str, &[Change]); 29] = [
    ("magic", &[(1, 0, 0)]),
    ("class", &[(1, CLASS, 1)]),
    ("class-unknown", &[(1, CLASS, 9)]),
    ("data", &[(1, DATA, 2)]),
    ("version", &[(1, VERSION, 0)]),
    ("machine", &[(2, MACHINE, 62)]),
    ("type", &[(2, TYPE, 1)]),
    ("no-headers", &[(2, HEADER_COUNT, 0)]),
    ("header-size", &[(2, HEADER_SIZE, 55)]),
    ("headers-outside", &[(8, HEADERS, 4096)]),
    ("headers-wrap", &[(8, HEADERS, u64::MAX)]),
    ("interpreter", &[(4, SECOND + KIND, INTERPRETER)]),
    ("nothing-to-load", &[(4, FIRST + KIND, NOTE)]),
    ("more-in-file", &[(8, FIRST + IN_MEMORY, 1)]),
    ("wraps", &[(8, FIRST + IN_MEMORY, u64::MAX)]),
    ("too-high", &[(8, FIRST + ADDRESS, 1 << 48)]),
    ("misaligned", &[(8, FIRST + OFFSET, 1)]),
    ("outside", &[(8, FIRST + OFFSET, 4096)]),
    ("outside-wraps", &[(8, FIRST + OFFSET, u64::MAX - 4095)]),
    ("entry", &[(8, ENTRY, 0x1000)]),
    ("entry-before", &[(8, ENTRY, BASE - 1)]),
    ("not-code", &[(4, FIRST + FLAGS, 6)]),
    ("library", &[(2, TYPE, ANYWHERE), (4, SECOND + KIND, DYNAMIC), (8, ENTRY, 0)]),
    ("overlap", &[(4, SECOND + KIND, LOAD), (8, SECOND + ADDRESS, BASE + 16), (8, SECOND + IN_MEMORY, 16)]),
    ("before", &[(4, SECOND + KIND, LOAD), (8, SECOND + ADDRESS, 0x1000), (8, SECOND + IN_MEMORY, 16)]),
    ("too-large", &[(2, TYPE, ANYWHERE), (8, FIRST + ADDRESS, 0), (8, FIRST + IN_MEMORY, 0x6000_0000_0000)]),
    ("at-zero", &[(8, FIRST + ADDRESS, 0), (8, ENTRY, CODE as u64)]),
    ("huge-segment-anywhere", &[(2, TYPE, ANYWHERE), (8, FIRST + ADDRESS, u64::MAX - 4095)]),
    ("huge-file", &[(8, FIRST + IN_FILE, u64::MAX), (8, FIRST + IN_MEMORY, u64::MAX)]),
];

/// A program that exits with 0: a header, two program headers, three instructions; all of it is loaded.
fn program(changes: &[Change]) -> Vec<u8> {
    const SIZE: usize = CODE + 12;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(CODE, 0);
    for word in [0xd280_0bc8_u32, 0xd280_0000, 0xd400_0001] {
        bytes.extend(word.to_le_bytes());
    }
    let first = [
        (2, TYPE, 2),
        (2, MACHINE, 183),
        (8, ENTRY, BASE + CODE as u64),
        (8, HEADERS, FIRST as u64),
        (2, HEADER_SIZE, 56),
        (2, HEADER_COUNT, 2),
        (4, FIRST + KIND, LOAD),
        (4, FIRST + FLAGS, 5),
        (8, FIRST + ADDRESS, BASE),
        (8, FIRST + IN_FILE, SIZE as u64),
        (8, FIRST + IN_MEMORY, SIZE as u64),
        (4, SECOND + KIND, STACK),
        (4, SECOND + FLAGS, 6),
    ];
    for &(size, at, value) in first.iter().chain(changes) {
        bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    bytes
}

/// Program headers of an executable at most: 64 KiB of them, as `load_elf_binary` in Linux's `fs/binfmt_elf.c` reads.
const MAX_HEADERS: u16 = (65_536 / 56) as u16;

/// A program with `count` segments, each in a page of its own. Its headers are in none of them.
fn segments(count: u16) -> Vec<u8> {
    let mut bytes = program(&[(8, HEADERS, (CODE + 12) as u64), (2, HEADER_COUNT, count.into())]);
    for index in 0..u64::from(count) {
        let mut header = bytes[FIRST..SECOND].to_vec();
        header[ADDRESS..ADDRESS + 8].copy_from_slice(&(BASE + index * 0x1000).to_le_bytes());
        bytes.extend(header);
    }
    bytes
}

/// Lines with odd paths, of what is there and of what is not.
const ODD_PATHS: [&str; 18] = [
    "run /deep/er/many",
    "run ./deep//er/.././er/plain",
    "run ../odd/plain",
    "run dotted",
    "run /rooted",
    "! run deep",
    "! run deep/er/",
    "! run deep/e",
    "! run odd",
    "! run odd/",
    "run link",
    "! run link/x",
    "! run odd/plain/x",
    "! run odd/plain/",
    "run exec odd/plain",
    "! run exec odd/magic",
    "! run exec odd/at-zero",
    "run exec link",
];

/// Initrds, and what is typed at the monitor of a machine that has each. `own` is that of the image.
pub(super) fn initrds(own: &[u8]) -> Vec<(Vec<u8>, Vec<String>)> {
    let mut odd = Archive::default();
    let mut lines = vec!["ls".to_owned()];
    odd.add("odd", DIRECTORY, &[]);
    odd.add("link", LINK, b"odd/plain");
    for (name, changes) in GOOD {
        odd.add(&format!("odd/{name}"), PROGRAM, &program(changes));
        lines.push(format!("run odd/{name}"));
    }
    let bad = BAD.map(|(name, changes)| (name, program(changes)));
    let short = [("empty", 0), ("no-identification", 15), ("no-header", 63)];
    let short = short.map(|(name, bytes)| (name, program(&[])[..bytes].to_vec()));
    for (name, contents) in bad.into_iter().chain(short).chain([("segments", segments(MAX_HEADERS + 1))]) {
        odd.add(&format!("odd/{name}"), PROGRAM, &contents);
        lines.push(format!("! run odd/{name}"));
    }
    // SUB SP, SP, #1 and LDR X0, [SP]: a fault of its own class.
    odd.add("odd/stack-pointer", PROGRAM, &program(&[(4, CODE, 0xd100_07ff), (4, CODE + 4, 0xf940_03e0)]));
    lines.push("! run odd/stack-pointer".to_owned());
    odd.add("./dotted", PROGRAM, &program(&[]));
    odd.add("//./rooted", PROGRAM, &program(&[]));
    odd.add("deep/er/plain", PROGRAM, &program(&[]));
    odd.add("deep/er/many", PROGRAM, &segments(MAX_HEADERS));
    lines.extend(ODD_PATHS.map(str::to_owned));
    let mut all = vec![(odd.before(own), lines)];
    // Programs run, and what comes behind them is broken.
    let broken =
        |archive: Vec<u8>| (archive, ["! ls", "! run nosuch", "! run exec nosuch"].map(str::to_owned).to_vec());
    let trailer = own.windows(10).rposition(|name| name == b"TRAILER!!!").map_or(0, |name| name - NAME);
    let behind = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut last = Archive::default();
        last.add("last", PROGRAM, b"contents");
        let mut entry = last.finish();
        change(&mut entry);
        broken([&own[..trailer], &entry].concat())
    };
    all.push(behind(&|entry| entry.truncate(20)));
    all.push(behind(&|entry| entry[5] = b'3'));
    all.push(behind(&|entry| entry[FILE_SIZE] = b'+'));
    all.push(behind(&|entry| entry[FILE_SIZE] = b'f'));
    all.push(behind(&|entry| entry[NAME_SIZE] = b'f'));
    all.push(behind(&|entry| entry[NAME] = 0xff));
    all.push(behind(&|entry| entry[NAME + 4] = b'x'));
    all
}

#[cfg(test)]
mod tests {
    use super::{BAD, GOOD, initrds, program};
    use std::collections::BTreeSet;

    #[test]
    fn each_file_differs_from_the_program_that_runs() {
        let mut seen = BTreeSet::new();
        for (name, changes) in GOOD.iter().chain(&BAD) {
            assert!(seen.insert(program(changes)), "{name} is like another");
        }
    }

    #[test]
    fn the_images_own_programs_come_behind_the_odd_ones() {
        let mut own = granule_image::initrd::Archive::default();
        own.add("own", super::PROGRAM, b"own");
        let own = own.finish();
        let all = initrds(&own);
        let has = |archive: &[u8], name: &str| archive.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(all.iter().all(|(archive, lines)| has(archive, "own\0") && !lines.is_empty()));
        assert!(has(&all[0].0, "odd/magic\0") && all[0].0.ends_with(&own));
        assert!(all[1..].iter().all(|(archive, _)| archive.len() < own.len() + 300));
    }
}
