//! Holds a run against the one that is checked in, and shows it.
//!
//! Most bounds are not reached yet. So a bound that is missed is shown, and fails nothing; what fails is a row that grew.

use super::rows::{Definition, What};
use super::{BOUNDED_AT, ScaleRow};
use crate::bench::table::columns;

/// More than this part of what it was is growth.
const TOLERANCE: f64 = 0.02;
/// So much more never is: frames and objects that lie otherwise, after a change of something else, share other lines.
const SLACK: f64 = 0.25;
/// As [`TOLERANCE`] and [`SLACK`], with all CPUs at once, where such a change makes them meet at other moments.
const LOOSE_TOLERANCE: f64 = 0.1;
const LOOSE_SLACK: f64 = 0.5;

/// Lines of a page. Which of its lines other CPUs still hold follows from where frames lie: so where contents move at all,
/// any change may move all of them.
const PAGE: f64 = 64.0;

/// The most that a row may have that had `before`.
fn limit(name: &str, before: f64) -> f64 {
    let row = Definition::of(name);
    if before > 0.0 && row.is_some_and(|row| row.what == What::Contents) {
        return PAGE;
    }
    let is_loose = row.is_none_or(|row| row.part.is_loose());
    let (tolerance, slack) = if is_loose { (LOOSE_TOLERANCE, LOOSE_SLACK) } else { (TOLERANCE, SLACK) };
    before * (1.0 + tolerance) + slack
}

/// Points of `now` that are more than in the reference, or that it has not.
pub fn grown(now: &[ScaleRow], reference: &[ScaleRow]) -> Vec<String> {
    let mut grown = Vec::new();
    for row in now {
        let name = &row.name;
        let Some(before) = reference.iter().find(|before| before.name == *name) else {
            grown.push(format!("{name}: not in the reference"));
            continue;
        };
        for &(cpus, cost) in &row.points {
            match before.at(cpus) {
                None => grown.push(format!("{name}: {cpus} CPUs are not in the reference")),
                Some(was) if cost > limit(name, was) => {
                    grown.push(format!("{name}: {cost} with {cpus} CPUs, {was} in the reference"));
                }
                Some(_) => {}
            }
        }
    }
    grown
}

/// Whether the row keeps its bound; `None`: it has none, or was not measured there.
pub fn is_met(row: &ScaleRow) -> Option<bool> {
    Some(row.at(BOUNDED_AT)? <= Definition::of(&row.name)?.must?)
}

/// The rows as a table to read.
pub fn table(rows: &[ScaleRow]) -> String {
    let cpus: Vec<u32> = rows.first().map_or_else(Vec::new, |row| row.points.iter().map(|(cpus, _)| *cpus).collect());
    let mut lines = vec![vec!["row".to_owned()]];
    lines[0].extend(cpus.iter().map(ToString::to_string));
    lines[0].extend(["must", "", "Linux"].map(str::to_owned));
    lines.extend(rows.iter().map(|row| cells(row, &cpus)));
    columns(&format!("cache lines that an operation moves, by CPUs; must and Linux: of {BOUNDED_AT}"), &lines)
}

fn cells(row: &ScaleRow, cpus: &[u32]) -> Vec<String> {
    let definition = Definition::of(&row.name);
    let what = definition.map_or(What::Lines, |row| row.what);
    let shown = |cost: Option<f64>| cost.map_or_else(|| "-".into(), |cost| number(cost, what));
    let mut cells = vec![row.name.clone()];
    cells.extend(cpus.iter().map(|cpus| shown(row.at(*cpus))));
    cells.push(definition.and_then(|row| row.must).map_or_else(String::new, |must| must.to_string()));
    cells.push(verdict(row).into());
    cells.push(shown(definition.and_then(|row| row.linux)));
    cells
}

/// Lines with two digits, instructions as whole numbers.
pub(in crate::bench) fn number(cost: f64, what: What) -> String {
    if what == What::Instructions { format!("{cost:.0}") } else { format!("{cost:.2}") }
}

/// Whether the bound is met, in a word; nothing where there is none.
pub(in crate::bench) fn verdict(row: &ScaleRow) -> &'static str {
    match is_met(row) {
        Some(true) => "met",
        Some(false) => "missed",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::{ScaleRow, grown, is_met, table};

    fn row(name: &str, points: &[(u32, f64)]) -> ScaleRow {
        ScaleRow { name: name.into(), unit: "cpus".into(), points: points.to_vec() }
    }

    #[test]
    fn a_little_more_is_not_growth_and_more_is() {
        let before = [row("scale/mprotect/own", &[(1, 0.0), (8, 4.25)]), row("scale/loose/mmap", &[(8, 70.0)])];
        let now = |own: f64, loose: f64| {
            grown(&[row("scale/mprotect/own", &[(1, 0.0), (8, own)]), row("scale/loose/mmap", &[(8, loose)])], &before)
        };
        assert_eq!(now(4.25, 70.0), [""; 0]);
        assert_eq!(now(4.58, 77.5), [""; 0]);
        assert_eq!(now(0.0, 0.0), [""; 0]);
        assert_eq!(now(4.6, 70.0), ["scale/mprotect/own: 4.6 with 8 CPUs, 4.25 in the reference"]);
        assert_eq!(now(4.25, 77.6), ["scale/loose/mmap: 77.6 with 8 CPUs, 70 in the reference"]);
        let contents = |before, now| {
            let row = |cost| [row("scale/write_fault/big_contents", &[(8, cost)])];
            grown(&row(now), &row(before)).len()
        };
        assert_eq!((contents(8.75, 64.0), contents(8.75, 64.1)), (0, 1));
        assert_eq!((contents(0.0, 0.25), contents(0.0, 0.26)), (0, 1));
        let other = grown(&[row("scale/vfree/own", &[(8, 0.0)]), row("scale/mprotect/own", &[(16, 0.0)])], &before);
        assert_eq!(
            other,
            ["scale/vfree/own: not in the reference", "scale/mprotect/own: 16 CPUs are not in the reference"]
        );
    }

    #[test]
    fn bounds_are_judged_with_eight_cpus() {
        let own = |at_eight| row("scale/mprotect/own", &[(8, at_eight), (16, 100.0)]);
        assert_eq!((is_met(&own(1.0)), is_met(&own(1.01))), (Some(true), Some(false)));
        assert_eq!(is_met(&row("scale/mprotect/own", &[(4, 0.0)])), None);
        assert_eq!(is_met(&row("scale/loose/mmap/instructions", &[(8, 0.0)])), None);
        let text = table(&[own(4.25), row("scale/loose/mmap/instructions", &[(8, 2954.04), (16, 7.0)])]);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let words: Vec<String> = line("scale/mprotect").split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["scale/mprotect/own", "4.25", "100.00", "1", "missed", "8.00"]);
        assert!(line("scale/loose").contains(" 2954  "), "{text}");
    }
}
