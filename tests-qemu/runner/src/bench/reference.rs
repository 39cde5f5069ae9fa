//! The run that is checked in, and what grew since.
//!
//! Another compiler makes other code, so instructions are compared only where `rustc -vV` prints the same. Barriers and
//! TLBIs are the sources', whatever compiles them; so are rows and sizes, none of which may vanish.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::bars::Bar;
use super::scale::{ScaleRow, lines};
use super::tlb::TlbRow;
use super::{Measured, Row};

/// More than this is growth. The optimiser inlines by the order of symbols, which follows from hashes: the same source, in
/// another directory or beside a change of something else, is an instruction of 85 longer or shorter.
const TOLERANCE: f64 = 0.02;

/// The extent of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All rows on all machines: each row of the reference must be there.
    Whole,
    /// Those that were asked for.
    Part,
}

/// A run: what `./x bench --json` prints, and what docs/BENCHMARKS.json holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The first machine's rows, at the top: there is most often one.
    #[serde(flatten)]
    pub first: Measured,
    /// Rows of further machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Measured>,
    /// Rows of the suite [`scale`](mod@super::scale), on the first machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scale: Vec<ScaleRow>,
    /// Rows of the suite [`tlb`](mod@super::tlb).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tlb: Vec<TlbRow>,
    /// The output of the compiler's `rustc -vV`.
    pub rustc: String,
}

impl Run {
    /// A run of some machines, in this order; `None` if there is none.
    pub fn new(mut machines: Vec<Measured>, rustc: String) -> Option<Self> {
        let also = machines.split_off(1.min(machines.len()));
        Some(Self { first: machines.pop()?, also, scale: Vec::new(), tlb: Vec::new(), rustc })
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = &Measured> {
        std::iter::once(&self.first).chain(&self.also)
    }

    /// Reads a run.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("not a run of ./x bench --json")
    }

    /// Writes a run: a line for each row, so that a change of one is a change of one line.
    ///
    /// # Errors
    /// None that a run could cause.
    pub fn to_json(&self) -> Result<String> {
        let mut text = format!("{{{}", machine(&self.first)?);
        if !self.also.is_empty() {
            let also: Vec<String> =
                self.also.iter().map(|measured| Ok(format!("{{{}}}", machine(measured)?))).collect::<Result<_>>()?;
            text.push_str(&format!(",\n\"also\":[{}]", also.join(",\n")));
        }
        if !self.scale.is_empty() {
            text.push_str(&format!(",\n\"scale\":[\n{}\n]", lines(&self.scale)?));
        }
        if !self.tlb.is_empty() {
            text.push_str(&format!(",\n\"tlb\":[\n{}\n]", lines(&self.tlb)?));
        }
        text.push_str(&format!(",\n\"rustc\":{}}}\n", serde_json::to_string(&self.rustc)?));
        Ok(text)
    }

    fn row(&self, machine: &str, name: &str) -> Option<&Row> {
        let measured = self.machines().find(|measured| measured.machine == machine)?;
        measured.rows.iter().find(|row| row.name == name)
    }

    /// Why the instructions of the two cannot be compared, if they cannot.
    pub fn differs_in_compiler(&self, reference: &Self) -> Option<String> {
        let name = |run: &Self| run.rustc.lines().next().unwrap_or("nothing that is known").to_owned();
        (self.rustc != reference.rustc).then(|| {
            let (here, there) = (name(self), name(reference));
            format!("the reference was compiled by {there}, this by {here}, and other compilers make other code")
        })
    }

    /// The counts that have grown since `reference`, and the rows of it that this run lacks; empty: none.
    pub fn grown_since(&self, reference: &Self, scope: Scope) -> Vec<String> {
        let same_compiler = self.differs_in_compiler(reference).is_none();
        let mut grown = Vec::new();
        for measured in self.machines() {
            for row in &measured.rows {
                let place = format!("{} on {}", row.name, measured.machine);
                match reference.row(&measured.machine, &row.name) {
                    None => grown.push(format!("{place}: not in the reference")),
                    Some(before) => {
                        if same_compiler {
                            grown.extend(growth(&place, before, row));
                        }
                        grown.extend(vanished(&place, before, row));
                        grown.extend(more_barriers(&place, before, row));
                    }
                }
            }
        }
        for measured in reference.machines().filter(|_| scope == Scope::Whole) {
            let gone = measured.rows.iter().filter(|row| self.row(&measured.machine, &row.name).is_none());
            grown.extend(gone.map(|row| format!("{} on {}: not measured any more", row.name, measured.machine)));
        }
        grown
    }

    /// The rows that miss their bounds.
    pub fn missed(&self) -> Vec<String> {
        let bars = |measured: &Measured, row: &Row| -> Option<String> {
            let bar = Bar::on(&measured.machine, &row.name)?;
            (!bar.is_met(row)).then(|| format!("{} on {}: misses its bound, {bar}", row.name, measured.machine))
        };
        self.machines().flat_map(|measured| measured.rows.iter().filter_map(|row| bars(measured, row))).collect()
    }
}

/// A machine's part of the JSON, without its braces.
fn machine(measured: &Measured) -> Result<String> {
    let rows: Vec<String> = measured.rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(format!("\"machine\":{},\"rows\":[\n{}\n]", serde_json::to_string(&measured.machine)?, rows.join(",\n")))
}

fn growth(place: &str, before: &Row, now: &Row) -> Vec<String> {
    let mut grown = Vec::new();
    for &(size, taken) in &now.points {
        match before.at(size) {
            None => grown.push(format!("{place}: size {size} is not in the reference")),
            Some(was) if f64::from(taken) > f64::from(was) * (1.0 + TOLERANCE) => {
                grown.push(format!("{place}: {taken} instructions at size {size}, {was} in the reference"));
            }
            Some(_) => {}
        }
    }
    grown
}

/// Sizes that were measured once.
fn vanished(place: &str, before: &Row, now: &Row) -> Vec<String> {
    let gone = before.points.iter().filter(|(size, _)| now.at(*size).is_none());
    gone.map(|(size, _)| format!("{place}: size {size} is not measured any more")).collect()
}

fn more_barriers(place: &str, before: &Row, now: &Row) -> Vec<String> {
    let mut grown = Vec::new();
    for (what, was, is) in [("DSB", before.dsb, now.dsb), ("ISB", before.isb, now.isb), ("TLBI", before.tlbi, now.tlbi)]
    {
        match (was, is) {
            (Some(was), Some(is)) if is > was => {
                grown.push(format!("{place}: {is} {what} a call, {was} in the reference"));
            }
            (Some(was), None) => grown.push(format!("{place}: no number of {what}, {was} in the reference")),
            _ => {}
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::super::trace::Barriers;
    use super::{Measured, Row, Run, ScaleRow, Scope, TlbRow};

    fn run(points: &[(u32, u32)], tlbi: u32) -> Run {
        let barriers = vec![Barriers { dsb: 2, isb: 1, tlbi }; points.len()];
        let row = |name: &str| Row::new(name, "page", points.to_vec(), barriers.clone());
        let measured = |machine: &str| Measured { machine: machine.into(), rows: vec![row("a"), row("b/c")] };
        Run::new(vec![measured("default"), measured("a72")], "rustc 1.95.0\nhost: x".into()).unwrap()
    }

    #[test]
    fn the_same_has_not_grown_and_less_has_not_either() {
        let before = run(&[(1, 400), (512, 4000)], 1);
        assert_eq!(before.grown_since(&before, Scope::Whole), [""; 0]);
        assert_eq!(run(&[(1, 408), (512, 4080)], 1).grown_since(&before, Scope::Whole), [""; 0]);
        assert_eq!(run(&[(1, 300), (512, 10)], 0).grown_since(&before, Scope::Whole), [""; 0]);
    }

    #[test]
    fn two_percent_more_at_one_size_are_growth() {
        let before = run(&[(1, 400), (512, 4000)], 1);
        let grown = run(&[(1, 409), (512, 4000)], 1).grown_since(&before, Scope::Part);
        assert_eq!(grown[0], "a on default: 409 instructions at size 1, 400 in the reference");
        assert_eq!(grown.len(), 4, "{grown:?}");
        assert_eq!(run(&[(1, 400), (512, 4081)], 1).grown_since(&before, Scope::Part).len(), 4);
    }

    #[test]
    fn a_barrier_more_a_row_more_and_a_size_more_are_growth() {
        let before = run(&[(1, 400)], 1);
        let grown = |run: &Run, before: &Run| run.grown_since(before, Scope::Part);
        assert!(grown(&run(&[(1, 400)], 2), &before)[0].contains("2 TLBI a call, 1 in the reference"));
        assert!(grown(&run(&[(1, 400), (2, 1)], 1), &before)[0].contains("size 2"));
        let mut fewer = before.clone();
        fewer.also.clear();
        assert!(grown(&before, &fewer)[0].contains("a on a72: not in the reference"));
    }

    #[test]
    fn what_is_not_measured_any_more_is_noticed() {
        let before = run(&[(1, 400), (512, 4000)], 1);
        let fewer_sizes = run(&[(1, 400)], 1).grown_since(&before, Scope::Part);
        assert_eq!(fewer_sizes.len(), 4, "{fewer_sizes:?}");
        assert_eq!(fewer_sizes[0], "a on default: size 512 is not measured any more");
        let mut fewer_rows = before.clone();
        fewer_rows.also[0].rows.pop();
        assert_eq!(fewer_rows.grown_since(&before, Scope::Whole), ["b/c on a72: not measured any more"]);
        assert_eq!(fewer_rows.grown_since(&before, Scope::Part), [""; 0]);
    }

    #[test]
    fn of_another_compiler_instructions_are_not_compared_and_barriers_are() {
        let before = run(&[(1, 400)], 1);
        let now = Run { rustc: "rustc 1.96.0".into(), ..run(&[(1, 500)], 1) };
        let why = now.differs_in_compiler(&before).unwrap();
        assert!(why.contains("rustc 1.95.0, this by rustc 1.96.0"), "{why}");
        assert_eq!(now.grown_since(&before, Scope::Whole), [""; 0]);
        let now = Run { rustc: "rustc 1.96.0".into(), ..run(&[(1, 500)], 2) };
        assert_eq!(now.grown_since(&before, Scope::Whole).len(), 4);
    }

    #[test]
    fn a_bound_that_is_missed_is_named() {
        let barriers = vec![Barriers { dsb: 2, isb: 1, tlbi: 1 }];
        let run = |taken| {
            let row = Row::new("set_memory_x", "page", vec![(1, taken)], barriers.clone());
            Run::new(vec![Measured { machine: "default".into(), rows: vec![row] }], String::new()).unwrap()
        };
        assert_eq!(run(257).missed(), [""; 0]);
        assert_eq!(run(258).missed(), ["set_memory_x on default: misses its bound, 250 + 7 N"]);
    }

    #[test]
    fn json_is_as_it_is_promised_and_is_read_back() {
        let row = ScaleRow { name: "scale/x".into(), unit: "cpus".into(), points: vec![(1, 0.0), (2, 2.25)] };
        let tlb = TlbRow { name: "tlb/x".into(), accesses: 8, entries: 2, descriptors: 6, descriptors_cached: 4 };
        let run = Run { scale: vec![row], tlb: vec![tlb], ..run(&[(1, 400), (512, 4000)], 1) };
        let text = run.to_json().unwrap();
        let mut wanted = Run::from_json(&text).unwrap();
        for (measured, read) in [(&run.first, &mut wanted.first), (&run.also[0], &mut wanted.also[0])] {
            for (row, read) in measured.rows.iter().zip(&mut read.rows) {
                // The file does not have the barriers of each point.
                assert!(read.barriers.is_empty());
                read.barriers.clone_from(&row.barriers);
            }
        }
        assert_eq!(wanted, run);
        let start = concat!(
            "{\"machine\":\"default\",\"rows\":[\n",
            "{\"name\":\"a\",\"unit\":\"page\",\"fixed\":392.95,\"slope\":7.045,\"points\":[[1,400],[512,4000]],",
            "\"dsb\":2,\"isb\":1,\"tlbi\":1},\n"
        );
        assert!(text.starts_with(start), "{text}");
        let row = "\"scale\":[\n{\"name\":\"scale/x\",\"unit\":\"cpus\",\"points\":[[1,0.0],[2,2.25]]}\n],\n";
        assert!(text.contains(row), "{text}");
        let row = concat!(
            "\"tlb\":[\n{\"name\":\"tlb/x\",\"accesses\":8,\"entries\":2,\"descriptors\":6,",
            "\"descriptors_cached\":4}\n],\n"
        );
        assert!(text.contains(row), "{text}");
        assert!(Run::from_json("{}").is_err());
    }
}
