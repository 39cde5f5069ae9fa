//! The suite `scale`: how many cache lines an operation moves between CPUs, on machines of 1 to 16.
//!
//! QEMU's plugin `tests-qemu/plugin/lines.c` counts; [`boot`] boots the bench image with it and gathers what it counted,
//! [`rows`] defines a row by its windows, and [`judge`] compares it with the run that is checked in.

pub mod boot;
pub mod judge;
pub mod rows;

use serde::{Deserialize, Serialize};

/// The suite's name, and how the names of its rows begin.
pub const SUITE: &str = "scale";
/// CPUs of the machines.
pub const CPUS: [u32; 5] = [1, 2, 4, 8, 16];
/// CPUs of the machine for which rows are bounded, and whose numbers of Linux are known.
pub const BOUNDED_AT: u32 = 8;
/// The unit of rows.
const UNIT: &str = "cpus";

/// A row: what one operation costs, on machines with more and more CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleRow {
    /// The operation.
    pub name: String,
    /// The unit that a point's first number counts.
    pub unit: String,
    /// CPUs, and lines or instructions of an operation.
    pub points: Vec<(u32, f64)>,
}

impl ScaleRow {
    /// The cost of an operation with so many CPUs, if that was measured.
    pub fn at(&self, cpus: u32) -> Option<f64> {
        self.points.iter().find(|(number, _)| *number == cpus).map(|(_, cost)| *cost)
    }
}

/// A run of the suite, as `./x bench scale --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleRun {
    /// The machine's name in machines.toml.
    pub machine: String,
    /// In the order of [`rows::ROWS`].
    pub rows: Vec<ScaleRow>,
    /// The output of the compiler's `rustc -vV`.
    pub rustc: String,
}

impl ScaleRun {
    /// Writes a run: a line for each row.
    ///
    /// # Errors
    /// None that a run could cause.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let (machine, rustc) = (serde_json::to_string(&self.machine)?, serde_json::to_string(&self.rustc)?);
        Ok(format!("{{\"machine\":{machine},\"rows\":[\n{}\n],\n\"rustc\":{rustc}}}\n", lines(&self.rows)?))
    }
}

/// Rows, a line for each.
pub(super) fn lines(rows: &[impl Serialize]) -> serde_json::Result<String> {
    let rows: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(rows.join(",\n"))
}
