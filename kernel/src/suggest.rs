//! The name that a mistyped word was probably meant to be.
//!
//! Boot arguments, lab switches and monitor commands are all looked up in short tables of names; a word that is in
//! none of them gets an error that names the nearest one. The distance is the number of letters to insert, delete,
//! change or swap with a neighbour (optimal string alignment). A name further away than a third of its letters is
//! not offered: a wrong guess is worse than none.

/// No name in any table is longer; a longer word is near to none of them.
const LONGEST: usize = 32;

/// Returns the name nearest to `word`, the first of several equally near; `None` where none is near enough to be
/// what was meant.
pub fn suggest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .filter_map(|name| Some((distance(word.as_bytes(), name.as_bytes())?, name)))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1) && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits from `a` to `b`, letters of either case being the same; `None` where one of them is too long to be a name.
fn distance(a: &[u8], b: &[u8]) -> Option<usize> {
    if a.len() > LONGEST || b.len() > LONGEST {
        return None;
    }
    // Three rows of the table of distances between prefixes: a swap of neighbours looks back two rows.
    let mut before = [0; LONGEST + 1];
    let mut above: [usize; LONGEST + 1] = core::array::from_fn(|column| column);
    for (i, x) in a.iter().enumerate() {
        let mut row = [0; LONGEST + 1];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = above[j] + usize::from(!x.eq_ignore_ascii_case(y));
            row[j + 1] = change.min(above[j + 1] + 1).min(row[j] + 1);
            let one_back = i.checked_sub(1).zip(j.checked_sub(1));
            let letters = one_back.and_then(|(i, j)| Some((a.get(i)?, b.get(j)?, before.get(j)?)));
            if let Some((x_before, y_before, distance)) = letters
                && x_before.eq_ignore_ascii_case(y)
                && y_before.eq_ignore_ascii_case(x)
            {
                row[j + 1] = row[j + 1].min(distance + 1);
            }
        }
        before = above;
        above = row;
    }
    Some(above[b.len()])
}

#[cfg(test)]
mod tests {
    use super::{distance, suggest};

    const NAMES: [&str; 5] = ["vmalloc", "vfree", "peek", "poke", "set_memory"];

    #[test]
    fn one_slip_finds_the_name() {
        for (slip, meant) in [
            ("vmaloc", "vmalloc"),
            ("vfere", "vfree"),
            ("Peek", "peek"),
            ("pokee", "poke"),
            ("set-memory", "set_memory"),
        ] {
            assert_eq!(suggest(slip, NAMES), Some(meant), "{slip}");
        }
    }

    #[test]
    fn a_word_that_is_nothing_alike_gets_no_guess() {
        for word in ["", "x", "ls", "mmap", "a word that is longer than any name in the tables"] {
            assert_eq!(suggest(word, NAMES), None, "{word}");
        }
    }

    #[test]
    fn every_letter_of_a_name_changed_is_not_a_slip() {
        assert_eq!(suggest("z", ["b", "h", "w", "q"]), None);
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("abcd", "acbd", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), Some(edits), "{a} {b}");
        }
    }
}
