//! A source with many mutants in it: in the innermost block around each one's place a probe, which prints its name, and a
//! copy of the block that has the change, which runs in its stead where the mutant is the chosen one.
//!
//! So one build tells which tests reach which mutants, and judges those mutants too. Its lines keep their numbers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use proc_macro2::TokenStream;

use super::draw::Mutant;

/// The text that a probe prints before the mutant's name.
const MARK: &str = "@reached ";

/// A source as the compiler gets it.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) text: String,
    /// The bytes of each copy and its braces, with its mutant's name.
    copies: Vec<(Range<usize>, String)>,
}

impl Placed {
    /// The mutant in whose copy a byte is.
    pub(super) fn copy_at(&self, byte: usize) -> Option<&str> {
        self.copies.iter().find(|(range, _)| range.contains(&byte)).map(|(_, id)| id.as_str())
    }
}

/// A file with those of its mutants that are `probed`, and copies for those that are `copied`. The process runs the copy
/// of the mutant that `chosen` names.
pub(super) fn place(
    text: &str,
    mutants: &[&Mutant],
    probed: &BTreeSet<String>,
    copied: &BTreeSet<String>,
    chosen: &Path,
) -> Placed {
    let mut begins: Vec<(Range<usize>, &Mutant, Option<String>)> = mutants
        .iter()
        .filter(|mutant| probed.contains(&mutant.id))
        .filter_map(|mutant| {
            let block = mutant.change.block.clone()?;
            let copy = copied.contains(&mutant.id).then(|| copy(text, &block, mutant)).flatten();
            Some((block, *mutant, copy))
        })
        .collect();
    // Within a block, probes stand before the first copy.
    begins.sort_by_key(|(block, _, copy)| (block.start, copy.is_some()));
    let with_copy = begins.iter().filter(|(.., copy)| copy.is_some());
    let mut ends: Vec<usize> = with_copy.map(|(block, ..)| block.end).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut placed = Placed { text: String::new(), copies: Vec::new() };
    let (mut from, mut ends) = (0, ends.into_iter().peekable());
    let mut advance = |placed: &mut Placed, to: usize| {
        while let Some(end) = ends.next_if(|&end| end < to) {
            placed.text += &text[from..end];
            placed.text.push('}');
            from = end;
        }
        placed.text += &text[from..to];
        from = to;
    };
    let mut begins = begins.into_iter().peekable();
    while let Some((block, mutant, copy)) = begins.next() {
        advance(&mut placed, block.start);
        let probe = probe(&mutant.id, chosen);
        let Some(copy) = copy else {
            placed.text += &format!(" let _ = {probe};");
            continue;
        };
        placed.text += &format!(" if {probe} ");
        let begin = placed.text.len();
        placed.text += &format!("{{{copy}}}");
        placed.copies.push((begin..placed.text.len(), mutant.id.clone()));
        let is_last = begins.peek().is_none_or(|(next, ..)| next.start != block.start);
        placed.text += if is_last { " else {" } else { " else" };
    }
    advance(&mut placed, text.len());
    placed
}

/// A block's statements with the change, in one line and without comments; none where the change reaches beyond it.
fn copy(text: &str, block: &Range<usize>, mutant: &Mutant) -> Option<String> {
    let Range { start, end } = mutant.change.range;
    let within = block.start <= start && end <= block.end;
    let changed =
        within.then(|| format!("{}{}{}", &text[block.start..start], mutant.change.replacement, &text[end..block.end]));
    Some(changed?.parse::<TokenStream>().ok()?.to_string().replace('\n', " "))
}

/// Whether `id` is chosen; says so once that it was reached. It takes no memory, since it may be where there is none or
/// where another allocator serves, and writes its line in one piece.
fn probe(id: &str, chosen: &Path) -> String {
    format!(
        "{{ extern crate std as probe_std; \
         use probe_std::{{fs::File, io::{{Read, Write, stderr}}, sync::atomic::{{AtomicU8, Ordering}}}}; \
         static STATE: AtomicU8 = AtomicU8::new(0); if STATE.load(Ordering::Relaxed) == 0 {{ \
         let mut name = [0; {}]; let is_read = File::open({chosen:?}).is_ok_and(|mut file| \
         Read::read(&mut file, &mut name).is_ok()); \
         let is_first = STATE.swap(1 + (is_read && name == *b{id:?}) as u8, Ordering::Relaxed) == 0; \
         if is_first {{ let _ = Write::write_all(&mut stderr(), b\"\\n{MARK}{id}\\n\"); }} }} \
         STATE.load(Ordering::Relaxed) == 2 }}",
        id.len(),
    )
}

/// The mutants whose probes printed something.
pub(super) fn marks(output: &str) -> BTreeSet<String> {
    output.lines().filter_map(|line| line.strip_prefix(MARK)).map(str::to_owned).collect()
}
