//! A machine's rows as a table to read.

use std::fmt::Write;

use super::bars::Bar;
use super::fit::Fit;
use super::{Measured, Row};

/// Crates that are measured beside Granule, by the first part of their rows' names.
pub(super) const PEERS: [&str; 2] = ["aarch64-paging", "page_table_multiarch"];

/// The table, with a line for each row: points, fit, barriers; what it must be; how many times as much others take, at
/// the least and the largest size.
pub fn table(measured: &Measured) -> String {
    let mut lines = vec![header()];
    lines.extend(measured.rows.iter().map(|row| cells(row, measured)));
    // A column that is empty here is left out.
    let has_values = |column: &usize| lines[1..].iter().any(|line| !line[*column].is_empty());
    let shown: Vec<usize> = (0..lines[0].len()).filter(has_values).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("{}, 1 CPU: instructions of a call\n", measured.machine);
    for line in &lines {
        let mut printed = String::new();
        for &column in &shown {
            let cell = &line[column];
            // Names and remarks to the left, numbers to the right.
            let gap = " ".repeat(width(column) - cell.chars().count());
            let left = column == 0 || column >= FIRST_REMARK;
            printed.push_str(&if left { format!("{cell}{gap}  ") } else { format!("{gap}{cell}  ") });
        }
        let _ = writeln!(text, "{}", printed.trim_end());
    }
    text
}

/// A title, and lines of as many cells each, in columns: names to the left, numbers to the right.
pub(super) fn columns(title: &str, lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("{title}\n");
    for line in lines {
        let mut printed = format!("{:<1$}", line[0], width(0));
        for (column, cell) in line.iter().enumerate().skip(1) {
            let _ = write!(printed, "  {cell:>0$}", width(column));
        }
        let _ = writeln!(text, "{}", printed.trim_end());
    }
    text
}

/// From this column on there are words.
const FIRST_REMARK: usize = 6;

fn header() -> Vec<String> {
    let words = ["row", "least", "largest", "fixed + each", "error", "DSB/ISB/TLBI", "must", "", "Linux"];
    words.iter().chain(&PEERS).map(|word| (*word).to_owned()).collect()
}

fn cells(row: &Row, measured: &Measured) -> Vec<String> {
    let fit = Fit::of(&row.points);
    let point = |point: Option<&(u32, u32)>| point.map_or_else(String::new, |(n, taken)| format!("{n}: {taken}"));
    let count = |count: Option<u32>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let bar = Bar::on(&measured.machine, &row.name);
    let verdict = bar.map_or("", |bar| if bar.is_met(row) { "met" } else { "missed" });
    let linux = bar.and_then(Bar::linux).map_or_else(String::new, |linux| times(row, |size| Some(linux.at(size))));
    let mut cells = vec![
        row.name.clone(),
        point(row.points.first()),
        if row.points.len() > 1 { point(row.points.last()) } else { String::new() },
        if row.points.len() > 1 { fit.to_string() } else { String::new() },
        format!("{:.1} %", fit.max_error * 100.0),
        format!("{}/{}/{}", count(row.dsb), count(row.isb), count(row.tlbi)),
        bar.map_or_else(String::new, Bar::to_string),
        verdict.into(),
        linux,
    ];
    let ratio = |same: &Row| times(row, |size| same.at(size).map(f64::from));
    cells.extend(PEERS.map(|name| peer(name, row, measured).map_or_else(String::new, ratio)));
    cells
}

/// How many times as much `other` takes, at the least and the largest size.
fn times(row: &Row, other: impl Fn(u32) -> Option<f64>) -> String {
    let ratio = |point: Option<&(u32, u32)>| point.and_then(|&(n, taken)| Some(other(n)? / f64::from(taken.max(1))));
    match (ratio(row.points.first()), ratio(row.points.last())) {
        (Some(first), Some(last)) if row.points.len() > 1 => format!("{first:.1}x to {last:.1}x"),
        (Some(only), _) => format!("{only:.1}x"),
        _ => String::new(),
    }
}

/// A peer's row of the same operation in the same boot.
pub(super) fn peer<'a>(peer: &str, row: &Row, measured: &'a Measured) -> Option<&'a Row> {
    let operation = row.name.split('/').next().unwrap_or_default();
    let [whole, short] = [row.name.as_str(), operation].map(|name| format!("{peer}/{name}"));
    measured.rows.iter().find(|other| other.name == whole || other.name == short)
}

#[cfg(test)]
mod tests {
    use super::super::trace::Barriers;
    use super::{Measured, Row, table};

    fn measured(machine: &str) -> Measured {
        let row = |name: &str, taken: [u32; 2]| {
            let barriers = vec![Barriers { dsb: 2, isb: 1, tlbi: 1 }; 2];
            Row::new(name, "page", vec![(1, taken[0]), (512, taken[1])], barriers)
        };
        let rows = vec![
            row("set_memory_ro/no_alias", [200, 3600]),
            row("set_memory_x", [300, 3600]),
            row("aarch64-paging/set_memory_ro", [2000, 54_000]),
        ];
        Measured { machine: machine.into(), rows }
    }

    #[test]
    fn bounds_and_ratios_are_shown() {
        let text = table(&measured("default"));
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("set_memory_ro/no_alias ").contains("250 + 7 N  met "), "{text}");
        assert!(line("set_memory_ro/no_alias ").contains("  10.0x to 15.0x"), "{text}");
        assert!(line("set_memory_ro/no_alias ").contains("18.9x to 6.8x"), "{text}");
        assert!(line("set_memory_x ").contains("missed"), "{text}");
        assert!(line("aarch64-paging/").ends_with("2/1/1"), "{text}");
    }

    #[test]
    fn other_machines_have_other_bounds() {
        assert!(!table(&measured("a72")).contains("met"));
        let mut faults = measured("a72");
        faults.rows.push(Row::new("anon_write_fault", "page", vec![(1, 700)], Vec::new()));
        assert!(table(&faults).contains("750 N  met"), "{}", table(&faults));
    }
}
