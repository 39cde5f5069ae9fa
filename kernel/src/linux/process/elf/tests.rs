//! Files that are programs, and files that are not quite.

use proptest::prelude::*;
use std::vec::Vec;

use super::{Position, Program, ProgramError, SegmentAccess};

const LIMIT: u64 = 1 << 48;
const FILE: usize = 0x3000;

/// A program header: type, flags, offset, address, bytes in the file, bytes in memory.
type Header = (u32, u32, u64, u64, u64, u64);

/// Where the second segment's alignment is in a file of [`elf`].
const SECOND_ALIGNMENT: usize = 64 + 56 + 48;

/// Text at 0x400000, data at 0x402000 with zeros after it.
const HEADERS: [Header; 3] =
    [(1, 5, 0, 0x40_0000, 0x1000, 0x1000), (1, 6, 0x1800, 0x40_2800, 0x400, 0x4000), (0x6474_e551, 6, 0, 0, 0, 0)];

fn elf(headers: &[Header]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 183].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([0x40_0100_u64, 64, 0].iter().flat_map(|quad| quad.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, headers.len() as u16, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    assert_eq!(file.len(), 64);
    for &(kind, flags, offset, address, in_file, in_memory) in headers {
        file.extend([kind, flags].iter().flat_map(|word| word.to_le_bytes()));
        let quads = [offset, address, address, in_file, in_memory, 0x1000];
        file.extend(quads.iter().flat_map(|quad| quad.to_le_bytes()));
    }
    file.resize(FILE.max(file.len()), 0xaa);
    file
}

/// The result for [`HEADERS`] with one of them changed.
fn changed(index: usize, change: impl Fn(&mut Header)) -> Result<(), ProgramError> {
    let mut headers = HEADERS;
    change(&mut headers[index]);
    Program::parse(&elf(&headers), LIMIT).map(drop)
}

/// The result for a file with one byte changed.
fn patched(at: usize, value: u8) -> Result<(), ProgramError> {
    let mut file = elf(&HEADERS);
    file[at] = value;
    Program::parse(&file, LIMIT).map(drop)
}

#[test]
fn a_static_program_is_what_its_headers_say() {
    let file = elf(&HEADERS);
    let program = Program::parse(&file, LIMIT).unwrap();
    assert_eq!((program.entry, program.position, program.executable_stack), (0x40_0100, Position::Fixed, false));
    assert_eq!((program.headers, program.header_count), (0x40_0040, 3), "in the first segment");
    assert_eq!((program.start(), program.end()), (0x40_0000, 0x40_7000));
    let segments: Vec<_> = program.segments().collect();
    let [text, data] = &segments[..] else { panic!("{segments:?}") };
    assert_eq!((text.start(), text.end()), (0x40_0000, 0x40_1000));
    assert_eq!(text.access, SegmentAccess { read: true, write: false, execute: true });
    assert_eq!((data.start(), data.end(), data.in_file), (0x40_2000, 0x40_7000, 0x400));
    assert_eq!(data.access, SegmentAccess { read: true, write: true, execute: false });
    let limit = 0x40_2800 + 0x4000;
    assert!(Program::parse(&file, limit).is_ok());
    assert_eq!(Program::parse(&file, limit - 1).map(drop), Err(ProgramError::BadSize(0x40_2800)));
}

#[test]
fn a_position_independent_program_lies_anywhere() {
    let mut headers = HEADERS;
    headers[0].3 = 0;
    headers[1].3 = 0x2800;
    let mut file = elf(&headers);
    file[16] = 3;
    file[24..32].copy_from_slice(&0x100_u64.to_le_bytes());
    let program = Program::parse(&file, LIMIT).unwrap();
    assert_eq!((program.position, program.headers, program.start()), (Position::Anywhere, 0x40, 0));
}

#[test]
fn zeros_alone_lie_anywhere_in_the_file() {
    // As linkers write it for a program whose variables are all zero: the offset is after the end of the file.
    for offset in [0x1ffe8, 0, 7, FILE as u64, u64::MAX] {
        let mut headers = HEADERS;
        headers[1] = (1, 6, offset, 0x41_ffe8, 0, 0x9_0000);
        let file = elf(&headers);
        let program = Program::parse(&file, LIMIT).unwrap();
        let zeros = program.segments().nth(1).unwrap();
        assert_eq!((zeros.start(), zeros.end(), zeros.in_file), (0x41_f000, 0x4b_0000, 0));
        assert_eq!(program.headers, 0x40_0040);
    }
}

/// A program that lies anywhere, linked at `address`.
fn linked_at(address: u64) -> Vec<u8> {
    let mut headers = HEADERS;
    headers[0].3 = address;
    headers[1].3 = address + 0x2800;
    headers[2] = (6, 4, 0, u64::MAX, 0, 0);
    let mut file = elf(&headers);
    file[16] = 3;
    file[24..32].copy_from_slice(&(address + 0x100).to_le_bytes());
    file
}

#[test]
fn a_program_linked_above_its_place_goes_down_to_it() {
    const ANYWHERE: u64 = 0xaaaa_aaaa_a000;
    for address in [0, 0x1000, ANYWHERE, ANYWHERE + 0x1000, LIMIT - 0x10_0000] {
        let file = linked_at(address);
        let program = Program::parse(&file, LIMIT).unwrap();
        let base = program.base(ANYWHERE, LIMIT).unwrap();
        assert_eq!(program.start().wrapping_add(base), ANYWHERE, "linked at {address:#x}");
        assert_eq!(program.entry.wrapping_add(base), ANYWHERE + 0x100);
        assert_eq!(program.headers.wrapping_add(base), ANYWHERE + 0x40, "whatever PT_PHDR has");
        assert_eq!(program.base(LIMIT - 0x1000, LIMIT), Err(ProgramError::BadSize(address)));
        assert_eq!(program.base(u64::MAX - 0xfff, LIMIT), Err(ProgramError::BadSize(address)));
    }
    assert_eq!(Program::parse(&elf(&HEADERS), LIMIT).unwrap().base(ANYWHERE, LIMIT), Ok(0));
}

/// As Linux has it: the first page is at a multiple, and what is no power of two is no alignment.
#[test]
fn a_program_begins_at_a_multiple_of_its_largest_alignment() {
    const ANYWHERE: u64 = 0xaaaa_aaaa_a000;
    for (alignment, start) in [
        (0, ANYWHERE),
        (1, ANYWHERE),
        (0x1000, ANYWHERE),
        (0x1_0000, 0xaaaa_aaaa_0000),
        (0x20_0000, 0xaaaa_aaa0_0000),
        (0x60_0000, ANYWHERE),
        (1 << 47, 1 << 47),
        (1 << 63, 0),
    ] {
        for address in [0, 0x3_1000] {
            let mut file = linked_at(address);
            file[SECOND_ALIGNMENT..SECOND_ALIGNMENT + 8].copy_from_slice(&u64::to_le_bytes(alignment));
            let program = Program::parse(&file, LIMIT).unwrap();
            let base = program.base(ANYWHERE, LIMIT).unwrap();
            assert_eq!(program.start().wrapping_add(base), start, "{alignment:#x}");
        }
    }
    let mut fixed = elf(&HEADERS);
    fixed[SECOND_ALIGNMENT..SECOND_ALIGNMENT + 8].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    assert_eq!(Program::parse(&fixed, LIMIT).unwrap().base(ANYWHERE, LIMIT), Ok(0), "its addresses are its own");
}

/// Linux takes 1,170 program headers, 64 KiB, and each may be of a segment.
#[test]
fn as_many_segments_are_loaded_as_linux_loads() {
    let headers = |count: u64| {
        let more = (1..count).map(|index| (1, 6, 0x1800, 0x40_1800 + index * 0x1000, 0x10, 0x10));
        Vec::from_iter([HEADERS[0]].into_iter().chain(more))
    };
    let parse = |count| {
        let mut file = elf(&headers(count));
        file.resize(0x2_0000, 0);
        Program::parse(&file, LIMIT).map(|program| program.segments().count())
    };
    for count in [1, 8, 9, 12, 1170] {
        assert_eq!(parse(count), Ok(count as usize));
    }
    assert_eq!(parse(1171), Err(ProgramError::BadHeaders));
}

#[test]
fn other_files_are_refused_with_words() {
    assert_eq!(Program::parse(b"", LIMIT).map(drop), Err(ProgramError::NotElf));
    assert_eq!(Program::parse(b"#!/bin/sh\necho hello\n", LIMIT).map(drop), Err(ProgramError::NotElf));
    assert_eq!(Program::parse(&elf(&HEADERS)[..63], LIMIT).map(drop), Err(ProgramError::NotElf));
    assert_eq!(patched(4, 1), Err(ProgramError::OtherMachine), "32 bits");
    assert_eq!(patched(5, 2), Err(ProgramError::OtherMachine), "big-endian");
    assert_eq!(patched(18, 62), Err(ProgramError::OtherMachine), "x86-64");
    assert_eq!(patched(16, 1), Err(ProgramError::NotExecutable(1)), "an object file");
    assert_eq!(patched(54, 32), Err(ProgramError::BadHeaders), "headers of another size");
    assert_eq!(patched(56, 0), Err(ProgramError::BadHeaders), "no headers");
    assert_eq!(patched(57, 0xff), Err(ProgramError::BadHeaders), "more headers than the file has");
    assert_eq!(patched(39, 0x80), Err(ProgramError::BadHeaders), "headers far away");
    assert!(ProgramError::Library.to_string().contains("shared library"));
}

#[test]
fn segments_that_cannot_be_mapped_are_refused() {
    assert_eq!(changed(2, |header| header.0 = 3), Ok(()), "it asks for a dynamic linker");
    assert_eq!(changed(0, |header| header.1 = 6), Err(ProgramError::BadEntry(0x40_0100)), "the entry in data");
    assert_eq!(changed(0, |header| header.5 = 0x10), Err(ProgramError::BadSize(0x40_0000)), "less than in the file");
    assert_eq!(changed(1, |header| header.5 = u64::MAX), Err(ProgramError::BadSize(0x40_2800)), "it wraps");
    assert_eq!(changed(1, |header| header.5 = LIMIT), Err(ProgramError::BadSize(0x40_2800)), "into the kernel");
    assert_eq!(changed(1, |header| header.4 = 0x4000), Err(ProgramError::CutOff(0x40_2800)));
    assert_eq!(changed(1, |header| header.2 = u64::MAX - 0x7ff), Err(ProgramError::CutOff(0x40_2800)));
    assert_eq!(changed(1, |header| header.3 = 0x40_2900), Err(ProgramError::Misaligned(0x40_2900)));
    assert_eq!(changed(1, |header| header.3 = 0x40_0800), Err(ProgramError::Overlap(0x40_0800)), "in one page");
    assert_eq!(changed(1, |header| header.3 = 0x30_0800), Err(ProgramError::Overlap(0x30_0800)), "out of order");
    let none = HEADERS.map(|header| (4, header.1, 0, 0, 0, 0));
    assert_eq!(Program::parse(&elf(&none), LIMIT).map(drop), Err(ProgramError::Empty));
}

#[test]
fn an_executable_stack_is_asked_for_by_its_header() {
    let mut headers = HEADERS;
    headers[2].1 = 7;
    assert!(Program::parse(&elf(&headers), LIMIT).unwrap().executable_stack);
}

proptest! {
    /// With any bytes in the file: no panic, and a program that is accepted can be mapped.
    #[test]
    fn what_is_accepted_can_be_mapped(changes in prop::collection::vec((0..232_usize, any::<u8>()), 0..6)) {
        let mut file = elf(&HEADERS);
        for (at, value) in changes {
            file[at] = value;
        }
        if let Ok(program) = Program::parse(&file, LIMIT) {
            let mut end = 0;
            for segment in program.segments() {
                prop_assert!(segment.start() >= end && segment.end() <= LIMIT && segment.start() < segment.end());
                prop_assert!(segment.in_file <= segment.size);
                end = segment.end();
            }
            if let Ok(base) = program.base(0xaaaa_aaaa_a000, LIMIT) {
                prop_assert!(program.end().wrapping_add(base) <= LIMIT);
            }
        }
    }
}

/// The result for a program with these bytes as its properties; whether its code was made for guarded pages.
fn with_properties(note: &[u8], bytes: u64) -> Result<bool, ProgramError> {
    const AT: usize = 0x2000;
    let headers = [HEADERS[0], HEADERS[1], (0x6474_e553, 4, AT as u64, 0x40_2000, bytes, bytes)];
    let mut file = elf(&headers);
    file[AT..AT + note.len()].copy_from_slice(note);
    Program::parse(&file, LIMIT).and_then(|program| program.accepts_guards(&file))
}

/// A note of properties: numbers, and the bytes of each.
fn note(properties: &[(u32, &[u8])]) -> Vec<u8> {
    let mut values = Vec::new();
    for (number, bytes) in properties {
        values.extend([*number, bytes.len() as u32].iter().flat_map(|word| word.to_le_bytes()));
        values.extend_from_slice(bytes);
        values.resize(values.len().next_multiple_of(8), 0);
    }
    let mut note: Vec<u8> = [4, values.len() as u32, 5].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    note.extend_from_slice(b"GNU\0");
    note.extend(values);
    note
}

#[test]
fn properties_are_read_as_linux_reads_them() {
    let read = |note: &[u8]| with_properties(note, note.len() as u64);
    let bti: (u32, &[u8]) = (0xc000_0000, &[1, 0, 0, 0]);
    assert_eq!(read(&note(&[bti])), Ok(true));
    assert_eq!(read(&note(&[(0xc000_0000, &[3, 0, 0, 0])])), Ok(true), "with PAC");
    assert_eq!(read(&note(&[(0xc000_0000, &[2, 0, 0, 0])])), Ok(false), "PAC alone");
    assert_eq!(read(&note(&[(1, &[0; 12]), bti, (0xc000_0001, &[])])), Ok(true), "between others");
    assert_eq!(read(&note(&[])), Ok(false), "none");
    for (wrong, properties) in
        [("a size", &[(0xc000_0000, &[1, 0, 0, 0, 0, 0, 0, 0][..])][..]), ("no size", &[(0xc000_0000, &[][..])][..])]
    {
        assert_eq!(read(&note(properties)), Err(ProgramError::BadPropertyNote), "{wrong}");
    }
    assert_eq!(read(&note(&[(2, &[]), (1, &[])])), Err(ProgramError::BadPropertyNote), "in another order");
    assert_eq!(read(&note(&[bti, bti])), Err(ProgramError::BadPropertyNote), "twice");
    let whole = note(&[bti]);
    for bytes in 0..whole.len() as u64 {
        let short = if bytes < 16 { ProgramError::CutOffPropertyNote } else { ProgramError::BadPropertyNote };
        assert_eq!(with_properties(&whole, bytes), Err(short), "{bytes} bytes");
    }
    for at in [0, 8, 12, 13, 15] {
        let mut other = whole.clone();
        other[at] ^= 0x10;
        assert_eq!(read(&other), Err(ProgramError::BadPropertyNote), "another byte {at}");
    }
    for descriptor in [4, 12, 24] {
        let mut other = whole.clone();
        other[4] = descriptor;
        assert_eq!(read(&other), Err(ProgramError::BadPropertyNote), "{descriptor} bytes of properties");
    }
    assert_eq!(with_properties(&whole, 1025), Err(ProgramError::BadPropertyNote), "too long");
    // A file that ends in the segment, behind the note, at it, and in its name.
    for (end, expected) in
        [(32, Ok(true)), (24, Err(ProgramError::BadPropertyNote)), (15, Err(ProgramError::CutOffPropertyNote))]
    {
        let headers = [HEADERS[0], HEADERS[1], (0x6474_e553, 4, 0x3000, 0x40_2000, 64, 64)];
        let mut file = elf(&headers);
        file.extend_from_slice(&whole[..end]);
        assert_eq!(
            Program::parse(&file, LIMIT).and_then(|program| program.accepts_guards(&file)),
            expected,
            "{end} bytes"
        );
    }
}
