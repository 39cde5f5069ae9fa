//! The run that is checked in, and what grew since.
//!
//! Another compiler makes other code, so numbers are compared only where `rustc -vV` prints the same.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Measured, Row};

/// More than this is growth.
const TOLERANCE: f64 = 0.01;

/// A run: what `./x bench --json` prints, and what docs/BENCHMARKS.json holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The first machine's rows, at the top: there is most often one.
    #[serde(flatten)]
    pub first: Measured,
    /// Rows of further machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Measured>,
    /// What `rustc -vV` prints of the compiler.
    pub rustc: String,
}

impl Run {
    /// A run of some machines, in this order; `None` if there is none.
    pub fn new(mut machines: Vec<Measured>, rustc: String) -> Option<Self> {
        let also = machines.split_off(1.min(machines.len()));
        Some(Self { first: machines.pop()?, also, rustc })
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
        text.push_str(&format!(",\n\"rustc\":{}}}\n", serde_json::to_string(&self.rustc)?));
        Ok(text)
    }

    fn row(&self, machine: &str, name: &str) -> Option<&Row> {
        let measured = self.machines().find(|measured| measured.machine == machine)?;
        measured.rows.iter().find(|row| row.name == name)
    }

    /// What this run took more of than `reference`; empty: nothing.
    ///
    /// # Errors
    /// Why the two cannot be compared.
    pub fn grown_since(&self, reference: &Self) -> Result<Vec<String>, String> {
        if self.rustc != reference.rustc {
            let (here, there) = (self.rustc.lines().next(), reference.rustc.lines().next());
            return Err(format!(
                "the reference was compiled by {}, this by {}, and other compilers make other code",
                there.unwrap_or("nothing that is known"),
                here.unwrap_or("nothing that is known")
            ));
        }
        let mut grown = Vec::new();
        for measured in self.machines() {
            for row in &measured.rows {
                let place = format!("{} on {}", row.name, measured.machine);
                match reference.row(&measured.machine, &row.name) {
                    None => grown.push(format!("{place}: not in the reference")),
                    Some(before) => grown.extend(growth(&place, before, row)),
                }
            }
        }
        Ok(grown)
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
    for (what, was, is) in [("DSB", before.dsb, now.dsb), ("ISB", before.isb, now.isb), ("TLBI", before.tlbi, now.tlbi)]
    {
        if let (Some(was), Some(is)) = (was, is)
            && is > was
        {
            grown.push(format!("{place}: {is} {what} a call, {was} in the reference"));
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::super::trace::Barriers;
    use super::{Measured, Row, Run};

    fn run(points: &[(u32, u32)], tlbi: u32) -> Run {
        let barriers = vec![Barriers { dsb: 2, isb: 1, tlbi }; points.len()];
        let row = |name: &str| Row::new(name, "page", points.to_vec(), barriers.clone());
        let measured = |machine: &str| Measured { machine: machine.into(), rows: vec![row("a"), row("b/c")] };
        Run::new(vec![measured("default"), measured("a72")], "rustc 1.95.0\nhost: x".into()).unwrap()
    }

    #[test]
    fn the_same_has_not_grown_and_less_has_not_either() {
        let before = run(&[(1, 400), (512, 4000)], 1);
        assert_eq!(before.grown_since(&before), Ok(vec![]));
        assert_eq!(run(&[(1, 404), (512, 4040)], 1).grown_since(&before), Ok(vec![]));
        assert_eq!(run(&[(1, 300), (512, 10)], 0).grown_since(&before), Ok(vec![]));
    }

    #[test]
    fn one_percent_more_at_one_size_is_growth() {
        let before = run(&[(1, 400), (512, 4000)], 1);
        let grown = run(&[(1, 405), (512, 4000)], 1).grown_since(&before).unwrap();
        assert_eq!(grown[0], "a on default: 405 instructions at size 1, 400 in the reference");
        assert_eq!(grown.len(), 4, "{grown:?}");
        assert_eq!(run(&[(1, 400), (512, 4041)], 1).grown_since(&before).unwrap().len(), 4);
    }

    #[test]
    fn a_barrier_more_a_row_more_and_a_size_more_are_growth() {
        let before = run(&[(1, 400)], 1);
        assert!(run(&[(1, 400)], 2).grown_since(&before).unwrap()[0].contains("2 TLBI a call, 1 in the reference"));
        assert!(run(&[(1, 400), (2, 1)], 1).grown_since(&before).unwrap()[0].contains("size 2"));
        let mut fewer = before.clone();
        fewer.also.clear();
        assert!(before.grown_since(&fewer).unwrap()[0].contains("a on a72: not in the reference"));
    }

    #[test]
    fn another_compiler_is_not_compared() {
        let before = run(&[(1, 400)], 1);
        let now = Run { rustc: "rustc 1.96.0".into(), ..run(&[(1, 500)], 1) };
        let why = now.grown_since(&before).unwrap_err();
        assert!(why.contains("rustc 1.95.0, this by rustc 1.96.0"), "{why}");
    }

    #[test]
    fn json_is_as_it_is_promised_and_is_read_back() {
        let run = run(&[(1, 400), (512, 4000)], 1);
        let text = run.to_json().unwrap();
        let mut wanted = Run::from_json(&text).unwrap();
        for (measured, read) in [(&run.first, &mut wanted.first), (&run.also[0], &mut wanted.also[0])] {
            for (row, read) in measured.rows.iter().zip(&mut read.rows) {
                // What each point issued is not in the file.
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
        assert!(Run::from_json("{}").is_err());
    }
}
