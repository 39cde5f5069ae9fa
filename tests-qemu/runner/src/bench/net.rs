//! Rows that end in `/net`: what an operation takes without what others measure alone.
//!
//! They are computed, not measured: each point is that of the operation less those of the same size of the rows that
//! are subtracted. Their barriers are not counted.

use super::Row;
use super::list::Bench;

/// A row that is computed.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// The operation, whose row is measured.
    pub row: &'static str,
    /// The rows that are subtracted: each is done once for each unit.
    pub less: &'static [&'static str],
}

/// The row of the call that zeroes a page's tags.
const CLEAR_TAGS: &str = "memory/clear_tags";

/// All of them.
const ROWS: [Net; 3] = [
    Net { row: "fault_on_access/reserved", less: &[CLEAR_TAGS] },
    Net { row: "fault_on_access/free_block", less: &[CLEAR_TAGS] },
    Net { row: "migrate_page/tagged", less: &["migrate_page"] },
];

/// Whether the row `name` is subtracted from one for which `is_chosen` holds.
pub fn is_subtracted(name: &str, all: &[Bench], is_chosen: impl Fn(&Bench) -> bool) -> bool {
    let of = |net: &Net| all.iter().any(|bench| bench.name == net.row && is_chosen(bench));
    ROWS.iter().any(|net| net.less.contains(&name) && of(net))
}

/// Puts after each row of a machine the one that is computed from it, where all that takes was measured.
pub fn add(rows: &mut Vec<Row>) {
    for net in ROWS {
        let Some(at) = rows.iter().position(|row| row.name == net.row) else { continue };
        if let Some(row) = net.of(rows) {
            rows.insert(at + 1, row);
        }
    }
}

impl Net {
    fn of(&self, rows: &[Row]) -> Option<Row> {
        let named = |name: &str| rows.iter().find(|row| row.name == name);
        let whole = named(self.row)?;
        let less = self.less.iter().map(|name| named(name)).collect::<Option<Vec<_>>>()?;
        let left = |&(size, taken): &(u32, u32)| {
            let subtracted: u32 = less.iter().map(|row| row.at(size)).sum::<Option<u32>>()?;
            Some((size, taken.saturating_sub(subtracted)))
        };
        let points: Vec<_> = whole.points.iter().filter_map(left).collect();
        (!points.is_empty()).then(|| Row::new(&format!("{}/net", whole.name), &whole.unit, points, Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::DEFAULT;
    use super::{Bench, Row, add, is_subtracted};

    fn row(name: &str, points: &[(u32, u32)]) -> Row {
        Row::new(name, "page", points.to_vec(), Vec::new())
    }

    #[test]
    fn points_of_the_same_size_are_subtracted() {
        let mut rows = vec![
            row("fault_on_access/free_block", &[(1, 1000), (8, 8000), (64, 64_000)]),
            row("memory/invalidate_block", &[(1, 150), (8, 1200)]),
        ];
        add(&mut rows);
        assert_eq!(rows.len(), 2, "the row that is subtracted is missing");
        rows.push(row("memory/clear_tags", &[(1, 50), (8, 400)]));
        add(&mut rows);
        assert_eq!((rows.len(), rows[1].name.as_str()), (4, "fault_on_access/free_block/net"));
        assert_eq!(rows[1].points, [(1, 950), (8, 7600)]);
    }

    #[test]
    fn what_is_subtracted_is_measured_with_the_row() {
        let bench = |name: &str| Bench {
            index: 0,
            suite: None,
            name: name.into(),
            unit: "page".into(),
            on: DEFAULT.into(),
            also: Vec::new(),
            bootargs: String::new(),
        };
        let all = ["migrate_page", "migrate_page/tagged", "fork"].map(bench);
        let is = |name: &str, chosen: &str| is_subtracted(name, &all, |bench| bench.name == chosen);
        assert!(is("migrate_page", "migrate_page/tagged"));
        assert!(!is("migrate_page", "fork") && !is("fork", "migrate_page/tagged"));
    }
}
