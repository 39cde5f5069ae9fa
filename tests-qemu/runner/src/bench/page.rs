//! docs/BENCHMARKS.md: its tables are written from docs/BENCHMARKS.json, so that the page has what was measured.

use anyhow::{Context, Result};

use super::bars::Bar;
use super::fit::Fit;
use super::reference::Run;
use super::scale::rows::{Definition, What};
use super::scale::{BOUNDED_AT, CPUS, judge};
use super::table::{PEERS, peer};
use super::tlb::TlbRow;
use super::{Measured, Row};

/// The line before the tables.
const BEGIN: &str = "<!-- from here on written by ./x bench --update -->\n";
/// The line after them.
const END: &str = "<!-- up to here -->\n";

/// The page with the tables of `run` in place of those that it has.
///
/// # Errors
/// When the page has no marks for their place.
pub fn with_tables(page: &str, run: &Run) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page has no beginning of the tables")?;
    let (_, after) = rest.split_once(END).context("the page has no end of the tables")?;
    let (bounded, unbounded) = (bounded(run), unbounded(run));
    let (lines_moved, picture, filled) = (lines_moved(run), picture(run), filled(run));
    Ok(format!("{before}{BEGIN}\n{bounded}\n{unbounded}\n{lines_moved}\n{picture}\n{filled}\n{END}{after}"))
}

/// Rows that have bounds, and what others take.
fn bounded(run: &Run) -> String {
    let mut text = format!("| row | must | reached | | DSB / ISB / TLBI | Linux 7.2.13 | {} |\n", PEERS.join(" | "));
    text.push_str(&format!("|---|---|---|---|---|---|{}\n", "---|".repeat(PEERS.len())));
    let rows = run.machines().flat_map(|measured| measured.rows.iter().map(move |row| (measured, row)));
    for (measured, row) in rows {
        let Some(bar) = Bar::on(&measured.machine, &row.name) else { continue };
        let machine = if measured.machine == run.first.machine { "" } else { &format!(", `{}`", measured.machine) };
        let verdict = if bar.is_met(row) { "met" } else { "**missed**" };
        let peers = PEERS.map(|name| peer(name, row, measured).map_or_else(|| "–".into(), line));
        let linux = bar.linux().map_or_else(|| "–".into(), |linux| linux.to_string());
        text.push_str(&format!(
            "| `{}`{machine} | ≤ {bar} | {} | {verdict} | {} | {linux} | {} |\n",
            row.name,
            line(row),
            barriers(row),
            peers.join(" | ")
        ));
    }
    text
}

/// The rest, with a column for each machine.
fn unbounded(run: &Run) -> String {
    let machines: Vec<&Measured> = run.machines().collect();
    let names: Vec<String> = machines.iter().map(|measured| format!("`{}`", measured.machine)).collect();
    let mut text = format!("| row | N counts | {} |\n|---|---|{}\n", names.join(" | "), "---|".repeat(machines.len()));
    let of_a_peer = |row: &Row| PEERS.iter().any(|peer| row.name.split('/').next() == Some(peer));
    let rows = machines.iter().flat_map(|measured| measured.rows.iter().map(move |row| (*measured, row)));
    let mut shown = std::collections::HashSet::new();
    for (measured, row) in rows.filter(|(_, row)| !of_a_peer(row)) {
        // A row goes by the first machine that has it.
        if !shown.insert(&row.name) || Bar::on(&measured.machine, &row.name).is_some() {
            continue;
        }
        let cells = machines
            .iter()
            .map(|measured| measured.rows.iter().find(|same| same.name == row.name).map_or_else(|| "–".into(), line));
        text.push_str(&format!("| `{}` | {}s | {} |\n", row.name, row.unit, cells.collect::<Vec<_>>().join(" | ")));
    }
    text
}

/// The suite `scale`: a column for each number of CPUs.
fn lines_moved(run: &Run) -> String {
    let cpus = CPUS.map(|cpus| cpus.to_string()).join(" | ");
    let mut text =
        format!("| cache lines moved, by CPUs | {cpus} | must, {BOUNDED_AT} | | Linux 7.2.13, {BOUNDED_AT} |\n");
    text.push_str(&format!("|---|{}---|---|---|\n", "---|".repeat(CPUS.len())));
    for row in &run.scale {
        let Some(definition) = Definition::of(&row.name) else { continue };
        let shown = |cost: Option<f64>| cost.map_or_else(|| "–".into(), |cost| judge::number(cost, definition.what));
        let points = CPUS.map(|cpus| shown(row.at(cpus))).join(" | ");
        let must = definition.must.map_or_else(|| "–".into(), |must| format!("≤ {must}"));
        let verdict = judge::verdict(row);
        let verdict = if verdict == "missed" { "**missed**" } else { verdict };
        text.push_str(&format!("| `{}` | {points} | {must} | {verdict} | {} |\n", row.name, shown(definition.linux)));
    }
    text
}

/// The table as a picture: a row's lines with more and more CPUs, and Linux's, by powers of two.
fn picture(run: &Run) -> String {
    let rows = run.scale.iter().filter_map(|row| Some((row, Definition::of(&row.name)?)));
    let rows: Vec<_> = rows.filter(|(_, definition)| matches!(definition.what, What::Lines | What::Contents)).collect();
    let width = rows.iter().map(|(row, _)| row.name.len()).max().unwrap_or(0);
    let bounds: Vec<String> = STEPS.iter().zip(1..).map(|(step, power)| format!("{step} < {}", 1 << power)).collect();
    let mut text = format!("```\ncache lines moved: · none, {}\n", bounds.join(", "));
    text.push_str(&format!(
        "{:<width$}  with {} CPUs; Linux with {BOUNDED_AT}\n",
        "",
        CPUS.map(|n| n.to_string()).join(", ")
    ));
    for (row, definition) in rows {
        let bars: String = CPUS.iter().map(|cpus| row.at(*cpus).map_or(' ', step)).collect();
        let linux = definition.linux.map_or(' ', step);
        text.push_str(format!("{:<width$}  {bars}   {linux}", row.name).trim_end());
        text.push('\n');
    }
    text.push_str("```\n");
    text
}

/// The suite `tlb`.
fn filled(run: &Run) -> String {
    let mut text = String::from("| 2 MiB | reads | entries filled | descriptors read | with a walk cache |\n");
    text.push_str("|---|---:|---:|---:|---:|\n");
    for row in &run.tlb {
        let TlbRow { name, accesses, entries, descriptors, descriptors_cached } = row;
        text.push_str(&format!("| `{name}` | {accesses} | {entries} | {descriptors} | {descriptors_cached} |\n"));
    }
    text
}

/// How many lines a cell of the picture stands for: fewer than 2, 4, 8 and so on.
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The cell of so many lines.
fn step(lines: f64) -> char {
    if lines == 0.0 {
        return '·';
    }
    let fits = (1..).zip(STEPS).find(|(power, _)| lines < f64::from(1_u32 << power));
    fits.map_or(STEPS[STEPS.len() - 1], |(_, step)| step)
}

/// The fit, or the one point that there is.
fn line(row: &Row) -> String {
    match row.points[..] {
        [(_, only)] => only.to_string(),
        _ => Fit::of(&row.points).to_string(),
    }
}

fn barriers(row: &Row) -> String {
    match (row.dsb, row.isb, row.tlbi) {
        (Some(dsb), Some(isb), Some(tlbi)) => format!("{dsb} / {isb} / {tlbi}"),
        _ => "–".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::Run;
    use super::with_tables;

    const PAGE: &str = include_str!("../../../../docs/BENCHMARKS.md");
    const REFERENCE: &str = include_str!("../../../../docs/BENCHMARKS.json");

    #[test]
    fn the_page_shows_what_is_in_the_reference() {
        let wanted = with_tables(PAGE, &Run::from_json(REFERENCE).unwrap()).unwrap();
        assert!(PAGE == wanted, "run ./x bench --update; docs/BENCHMARKS.md is not but should be:\n{wanted}");
    }

    #[test]
    fn a_step_of_the_picture_is_twice_the_last() {
        let steps = [0.0, 0.05, 1.99, 2.0, 3.0, 127.9, 128.0, 1000.0].map(super::step);
        assert_eq!(steps, ['·', '▁', '▁', '▂', '▂', '▇', '█', '█']);
    }

    #[test]
    fn other_numbers_make_another_page() {
        let mut run = Run::from_json(REFERENCE).unwrap();
        run.first.rows[0].points[0].1 += 1000;
        assert!(with_tables(PAGE, &run).unwrap() != PAGE);
        let mut run = Run::from_json(REFERENCE).unwrap();
        run.scale[0].points[3].1 += 0.01;
        assert!(with_tables(PAGE, &run).unwrap() != PAGE);
        let mut run = Run::from_json(REFERENCE).unwrap();
        run.tlb[0].entries += 1;
        assert!(with_tables(PAGE, &run).unwrap() != PAGE);
        assert!(with_tables("no tables here", &run).is_err());
    }
}
