//! Measures: boots the bench image, gathers what it counted, fits lines, compares.
//!
//! In the order of a run: [`list`](mod@list) reads the rows from the image's ELF; [`boot`] boots it under `-icount` and
//! takes the points; [`trace`] finds the barriers and invalidations of each in a second boot, whose points must be the
//! same to the instruction; [`net`] computes further rows; [`fit`] draws a line through them; [`table`] prints them
//! beside what they must be ([`bars`]); [`reference`](mod@reference) compares with the run that is checked in, and
//! [`page`] shows that one in docs/BENCHMARKS.md. [`scale`](mod@scale) and [`tlb`](mod@tlb) are apart: cache lines on
//! several CPUs, and what leaves of different sizes cost a TLB; plugins of QEMU count these ([`counted`](mod@counted)).
//! [`wire`](mod@wire) asks a board, which counts what its CPU can.

pub mod bars;
pub mod boot;
pub mod counted;
pub mod fit;
pub mod list;
pub mod net;
pub mod page;
pub mod reference;
pub mod scale;
pub mod table;
pub mod tlb;
pub mod trace;
pub mod wire;

use serde::{Deserialize, Serialize};

use fit::Fit;
use trace::Barriers;

/// The row of the kernel's own boot, which no image of benches can measure.
pub const BOOT: &str = "boot";
/// The size at which a row's barriers are given.
const BARRIERS_AT: u32 = 512;

/// The measurements of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Its name in machines.toml.
    pub machine: String,
    /// In the order in which they ran.
    pub rows: Vec<Row>,
}

/// A row: one operation at one or more sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The operation, and its variant or whose it is.
    pub name: String,
    /// The unit that a size counts.
    pub unit: String,
    /// Instructions of a call of size 0, by the fit.
    pub fixed: f64,
    /// Instructions for each unit more.
    pub slope: f64,
    /// Sizes and instructions.
    pub points: Vec<(u32, u32)>,
    /// DSBs of a call at 512 units, or at the largest size where there is no such point; `None`: not counted.
    pub dsb: Option<u32>,
    /// ISBs of that call.
    pub isb: Option<u32>,
    /// TLBIs of that call.
    pub tlbi: Option<u32>,
    /// The barriers and TLBIs of every point; not part of the report.
    #[serde(skip)]
    pub barriers: Vec<Barriers>,
}

impl Row {
    /// A row of these points; `barriers` has as many elements, or none.
    pub fn new(name: &str, unit: &str, points: Vec<(u32, u32)>, barriers: Vec<Barriers>) -> Self {
        let Fit { fixed, slope, .. } = Fit::of(&points);
        let place = points.iter().position(|(size, _)| *size == BARRIERS_AT).unwrap_or(points.len().saturating_sub(1));
        let at = barriers.get(place).copied();
        let hundredth = |value: f64| (value * 100.0).round() / 100.0;
        Self {
            name: name.into(),
            unit: unit.into(),
            fixed: hundredth(fixed),
            // A slope by the byte is a fraction of an instruction.
            slope: (slope * 10_000.0).round() / 10_000.0,
            points,
            dsb: at.map(|at| at.dsb),
            isb: at.map(|at| at.isb),
            tlbi: at.map(|at| at.tlbi),
            barriers,
        }
    }

    /// The instructions that a call of that size took, if it was measured.
    pub fn at(&self, size: u32) -> Option<u32> {
        self.points.iter().find(|(n, _)| *n == size).map(|(_, instructions)| *instructions)
    }
}
