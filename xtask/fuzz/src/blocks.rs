//! The blocks of the kernel's image: what there is to reach.
//!
//! A block is a sequence of instructions with one entry, by the image's own branches; a call does not end one. It counts
//! for the part of the kernel that its source is in: of the lines that are inlined at its first instruction the innermost
//! that is not the toolchain's. Blocks from which every way leads to a panic do not count: `./x audit panics` has those.
//!
//! A function that is inlined in many places has many copies of its blocks, most of them in ways that differ in nothing
//! else. They count once: a place in the source has as many blocks as the copy with the most, and of these as many are
//! reached as in the copy with the most that are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::Result;
use granule_audit::image::{Image, LINKED, Line, containing};
use granule_audit::reach;
use granule_audit::sources::{Sources, is_toolchain};
use granule_audit::tables::Source;
use granule_image::code::{Flow, flow};

/// Parts of the kernel that are counted, by how the names of their files begin.
pub(crate) const PARTS: [(&str, &str); 3] = [
    ("syscall", "kernel/src/linux/syscall/"),
    ("process", "kernel/src/linux/process/"),
    ("mm/space", "kernel/src/mm/space/"),
];

/// A place in the source of one of the [`PARTS`], at which blocks begin.
#[derive(Debug)]
pub(crate) struct Place {
    /// Index in [`PARTS`].
    pub(crate) part: usize,
    pub(crate) line: Line,
    /// Its line as tables name it: file, function, text.
    pub(crate) source: Source,
    /// The blocks of each copy, by their index in [`Blocks`].
    copies: Vec<Vec<usize>>,
}

/// All blocks of the [`PARTS`].
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Of the first instruction of each, from the image's start, in order.
    offsets: Vec<u64>,
    /// In the order of files, lines and columns.
    pub(crate) places: Vec<Place>,
}

impl Blocks {
    /// Finds them in an image.
    ///
    /// # Errors
    /// When the debug information cannot be read.
    pub(crate) fn of(image: &Image<'_>, sources: &Sources) -> Result<Self> {
        let panics = reach::panic_functions(image);
        let mut offsets = Vec::new();
        let mut places: BTreeMap<Line, BTreeMap<Copy, Vec<usize>>> = BTreeMap::new();
        // By address, as the functions are.
        for (index, function) in image.functions.iter().enumerate() {
            let code: Vec<(u64, u32)> = image.instructions(function).collect();
            let target = |to: u64| containing(&image.functions, to);
            let after = |to: u64| match target(to) {
                Some(to) if panics.contains(&to) => After::Panic,
                Some(to) if !image.functions[to].does.returns => After::Nothing,
                _ => After::Return,
            };
            for span in spans(&code, after) {
                let Some((line, callers)) = place(image, span.clone())? else { continue };
                places.entry(line).or_default().entry((index, callers)).or_default().push(offsets.len());
                offsets.push(span.start - LINKED);
            }
        }
        let place = |(line, copies): (Line, BTreeMap<Copy, Vec<usize>>)| {
            let part = part(&line)?;
            let source = sources.of_place(&line, &[]);
            Some(Place { part, line, source, copies: copies.into_values().collect() })
        };
        Ok(Self { offsets, places: places.into_iter().filter_map(place).collect() })
    }

    /// How many there are, copies included.
    pub(crate) fn count(&self) -> usize {
        self.offsets.len()
    }
}

impl Place {
    /// Its blocks, copies counted once.
    pub(crate) fn blocks(&self) -> usize {
        self.copies.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Of these, those that were reached.
    pub(crate) fn reached(&self, reached: &Reached) -> usize {
        let in_copy = |copy: &Vec<usize>| copy.iter().filter(|block| reached.0.contains(block)).count();
        self.copies.iter().map(in_copy).max().unwrap_or(0)
    }

    /// The addresses of the blocks that were not reached, in the largest copy: for a disassembler.
    pub(crate) fn missing(&self, blocks: &Blocks, reached: &Reached) -> Vec<u64> {
        let copy = self.copies.iter().max_by_key(|copy| copy.len()).into_iter().flatten();
        copy.filter(|block| !reached.0.contains(block)).map(|&block| LINKED + blocks.offsets[block]).collect()
    }
}

/// The identity of a copy of a block: the function of the image, and the calls in it that were inlined.
type Copy = (usize, Vec<Line>);

fn part(line: &Line) -> Option<usize> {
    PARTS.iter().position(|(_, begin)| line.file.starts_with(begin))
}

/// The place of a block of one of the [`PARTS`], and the calls that were inlined around it. It is that of the first
/// instruction that has one: what the compiler merged has none.
fn place(image: &Image<'_>, span: Range<u64>) -> Result<Option<(Line, Vec<Line>)>> {
    for at in span.step_by(4) {
        let mut lines =
            image.frames(at)?.into_iter().map(|frame| frame.line).skip_while(|line| is_toolchain(&line.file));
        match lines.next() {
            Some(line) if line.line != 0 => return Ok(part(&line).map(|_| (line, lines.collect()))),
            _ => {}
        }
    }
    Ok(None)
}

/// The end of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    Return,
    /// It does something that has no end.
    Nothing,
    Panic,
}

/// The ways on from the last instruction of a block.
#[derive(Default)]
struct Ways {
    /// Blocks of the same function.
    inside: Vec<u64>,
    /// To the caller, or to a function that goes on.
    leaves: bool,
}

/// The blocks of one function, without those that only lead to a panic. `after` tells of calls.
fn spans(code: &[(u64, u32)], after: impl Fn(u64) -> After) -> Vec<Range<u64>> {
    let (Some((start, _)), Some((last, _))) = (code.first(), code.last()) else { return Vec::new() };
    let function = *start..last + 4;
    let inside = |target: &u64| function.contains(target);
    let mut starts = BTreeSet::from([function.start]);
    let mut ways: BTreeMap<u64, Ways> = BTreeMap::new();
    for &(at, word) in code {
        let next = at + 4;
        let out = |to: u64| Ways { inside: Vec::new(), leaves: after(to) != After::Panic };
        let way = match flow(word, at) {
            Flow::Next | Flow::CallRegister => None,
            Flow::Call(to) => (after(to) != After::Return).then(|| out(to)),
            Flow::Jump(to) if inside(&to) => Some(Ways { inside: vec![to], leaves: false }),
            Flow::Jump(to) => Some(out(to)),
            Flow::Branch(to) if inside(&to) => Some(Ways { inside: vec![to, next], leaves: false }),
            Flow::Branch(to) => Some(Ways { inside: vec![next], ..out(to) }),
            Flow::JumpRegister(_) | Flow::Return => Some(Ways { inside: Vec::new(), leaves: true }),
            Flow::Trap => Some(Ways::default()),
        };
        if let Some(way) = way {
            starts.extend(way.inside.iter().chain([&next]).filter(|target| inside(target)));
            ways.insert(at, way);
        }
    }
    let ends: Vec<u64> = starts.iter().skip(1).copied().chain([function.end]).collect();
    let spans: Vec<Range<u64>> = starts.into_iter().zip(ends).map(|(start, end)| start..end).collect();
    // From the last to the first, until nothing changes: a block goes on if one of its ways does.
    let mut goes_on: BTreeSet<u64> = BTreeSet::new();
    loop {
        let before = goes_on.len();
        for span in spans.iter().rev() {
            let on = match ways.get(&(span.end - 4)) {
                Some(way) => way.leaves || way.inside.iter().any(|to| goes_on.contains(to)),
                None => span.end == function.end || goes_on.contains(&span.end),
            };
            if on {
                goes_on.insert(span.start);
            }
        }
        if goes_on.len() == before {
            break;
        }
    }
    spans.into_iter().filter(|span| goes_on.contains(&span.start)).collect()
}

/// Blocks by their index in [`Blocks`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached(BTreeSet<usize>);

impl Reached {
    /// The blocks whose first instruction was executed.
    pub(crate) fn new<'a>(blocks: &Blocks, executed: impl IntoIterator<Item = &'a Range<u64>>) -> Self {
        let from = |offset: u64| blocks.offsets.partition_point(|block| *block < offset);
        Self(executed.into_iter().flat_map(|range| from(range.start)..from(range.end)).collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether `other` has blocks that are not here.
    pub(crate) fn lacks(&self, other: &Self) -> bool {
        !other.0.is_subset(&self.0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of these instructions at 0x1000; what is at 0x2000 panics, and what is at 0x3000 does not return.
    fn blocks(words: &[u32]) -> Vec<(u64, u64)> {
        let code: Vec<(u64, u32)> = (0x1000..).step_by(4).zip(words.iter().copied()).collect();
        let after = |to| match to {
            0x2000 => After::Panic,
            0x3000 => After::Nothing,
            _ => After::Return,
        };
        spans(&code, after).into_iter().map(|span| (span.start, span.end)).collect()
    }

    const NOP: u32 = 0xd503_201f;
    const RET: u32 = 0xd65f_03c0;

    /// BL from the instruction with this index.
    const fn call(index: u32, to: u32) -> u32 {
        0x9400_0000 | ((to - 0x1000 - 4 * index) / 4)
    }

    /// CBZ X0 so many instructions on.
    const fn branch(by: u32) -> u32 {
        0xb400_0000 | by << 5
    }

    #[test]
    fn blocks_begin_behind_branches_and_where_these_lead_but_not_behind_calls() {
        assert_eq!(blocks(&[NOP, call(1, 0x4000), NOP, RET]), [(0x1000, 0x1010)]);
        assert_eq!(blocks(&[branch(3), NOP, NOP, NOP, RET]), [(0x1000, 0x1004), (0x1004, 0x100c), (0x100c, 0x1014)]);
    }

    #[test]
    fn blocks_that_only_lead_to_a_panic_do_not_count() {
        // To a panic directly, by the next block, and by a trap; not so where one way goes on.
        assert_eq!(blocks(&[branch(2), RET, call(2, 0x2000)]), [(0x1000, 0x1004), (0x1004, 0x1008)]);
        assert_eq!(blocks(&[branch(2), RET, branch(1), call(3, 0x2000)]), [(0x1000, 0x1004), (0x1004, 0x1008)]);
        assert_eq!(blocks(&[branch(2), RET, 0xd420_0020]), [(0x1000, 0x1004), (0x1004, 0x1008)]);
        assert_eq!(blocks(&[branch(2), call(1, 0x2000), branch(0x100), NOP, RET]).len(), 3);
        // A call that does not return is not a panic.
        assert_eq!(blocks(&[branch(2), RET, call(2, 0x3000)]).len(), 3);
    }

    #[test]
    fn a_block_is_reached_by_its_first_instruction_and_copies_count_once() {
        let blocks = Blocks { offsets: vec![0x10, 0x20, 0x30, 0x40], places: Vec::new() };
        let reached = Reached::new(&blocks, &[0x14..0x24, 0x40..0x44]);
        assert_eq!(reached, Reached(BTreeSet::from([1, 3])));
        assert!(
            Reached::new(&blocks, std::iter::once(&(0x20..0x24))).lacks(&reached)
                && !reached.lacks(&Reached(BTreeSet::from([3])))
        );
        let place =
            Place { part: 0, line: Line::new("", 1, 1), source: Source::default(), copies: vec![vec![0, 1], vec![2]] };
        assert_eq!((place.blocks(), place.reached(&reached)), (2, 1));
        assert_eq!(place.reached(&Reached(BTreeSet::from([0, 2]))), 1);
    }
}
