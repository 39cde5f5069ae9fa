//! Which rows there are: read from the bench image's ELF, before anything boots.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use granule_protocol::{BENCH_MAGIC, BENCH_RECORD_BYTES, BENCH_SECTION, BenchRecord, text};
use object::{Object, ObjectSection};

/// The machine of rows that name no other.
pub const DEFAULT: &str = "default";
/// The row that shows that nothing else ran.
pub const NULL: &str = "null";

/// A row that can be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bench {
    /// Its record's place in the image; what frames call it.
    pub index: u32,
    /// The suite that the row belongs to, if to one.
    pub suite: Option<String>,
    /// The operation.
    pub name: String,
    /// The unit that a size counts.
    pub unit: String,
    /// The machine that it belongs to.
    pub on: String,
    /// Machines that it belongs to besides.
    pub also: Vec<String>,
    /// Boot arguments with which it is measured.
    pub bootargs: String,
}

impl Bench {
    /// Whether it belongs to that machine.
    pub fn is_of(&self, machine: &str) -> bool {
        self.on == machine || self.also.iter().any(|also| also == machine)
    }
}

/// The rows that `./x bench word` selects: those of the suite that is called so, or those whose names contain the word.
pub fn asked_for(rows: &[Bench], word: &str) -> impl Fn(&Bench) -> bool {
    let is_suite = rows.iter().any(|row| row.suite.as_deref() == Some(word));
    move |row| if is_suite { row.suite.as_deref() == Some(word) } else { row.name.contains(word) }
}

/// All rows of an image, [`NULL`] among them.
///
/// # Errors
/// When the ELF cannot be read, a record is damaged, two rows have one name, or [`NULL`] is missing.
pub fn read(elf: &Path) -> Result<Vec<Bench>> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
    let section = file
        .section_by_name(BENCH_SECTION)
        .with_context(|| format!("{} has no section {BENCH_SECTION}: not a bench image", elf.display()))?;
    parse(section.data()?).with_context(|| elf.display().to_string())
}

fn parse(section: &[u8]) -> Result<Vec<Bench>> {
    let whole = section.len().is_multiple_of(BENCH_RECORD_BYTES);
    ensure!(whole, "{BENCH_SECTION} is {} bytes, not whole records", section.len());
    let benches: Vec<Bench> =
        section.chunks_exact(BENCH_RECORD_BYTES).zip(0..).map(|(record, i)| one(i, record)).collect::<Result<_>>()?;
    for (i, bench) in benches.iter().enumerate() {
        ensure!(!benches[..i].iter().any(|other| other.name == bench.name), "two rows are called {}", bench.name);
    }
    ensure!(
        benches.iter().any(|bench| bench.name == NULL),
        "there is no row {NULL}: nothing shows that nothing else ran"
    );
    Ok(benches)
}

fn one(index: u32, record: &[u8]) -> Result<Bench> {
    type Layout = BenchRecord<u64>;
    let field = |at: usize, bytes: usize| {
        text(&record[at..at + bytes]).map(str::to_owned).with_context(|| format!("record {index} has a damaged text"))
    };
    let magic = std::mem::offset_of!(Layout, magic);
    ensure!(record[magic..magic + 4] == BENCH_MAGIC.to_le_bytes(), "record {index} has no magic number");
    let on = field(std::mem::offset_of!(Layout, on), granule_protocol::BENCH_WORD_BYTES)?;
    let also = field(std::mem::offset_of!(Layout, also), granule_protocol::BENCH_WORD_BYTES)?;
    let name = field(std::mem::offset_of!(Layout, name), granule_protocol::BENCH_NAME_BYTES)?;
    let (suite, name) = name.split_once(':').map_or((None, name.as_str()), |(suite, name)| (Some(suite), name));
    Ok(Bench {
        index,
        suite: suite.map(str::to_owned),
        name: name.to_owned(),
        unit: field(std::mem::offset_of!(Layout, unit), granule_protocol::BENCH_WORD_BYTES)?,
        on: if on.is_empty() { DEFAULT.to_owned() } else { on },
        also: also.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        bootargs: field(std::mem::offset_of!(Layout, bootargs), granule_protocol::BENCH_BOOTARGS_BYTES)?,
    })
}

#[cfg(test)]
mod tests {
    use granule_protocol::BenchRecord;

    /// The bytes of a record, as they lie in an ELF.
    fn bytes(name: &str) -> Vec<u8> {
        let record = BenchRecord::new(0u64, name, "page").also("a72 n2").bootargs("a=b");
        let mut bytes = record.magic.to_le_bytes().to_vec();
        bytes.extend([0; 12]);
        for field in [&record.name[..], &record.unit, &record.on, &record.also, &record.bootargs] {
            bytes.extend_from_slice(field);
        }
        bytes
    }

    #[test]
    fn records_are_read() {
        let rows = super::parse(&[bytes("null"), bytes("memory/zero")].concat()).unwrap();
        assert_eq!((rows[1].index, rows[1].name.as_str(), rows[1].unit.as_str()), (1, "memory/zero", "page"));
        assert_eq!(rows[1].bootargs, "a=b");
        let is_of = ["default", "a72", "n2", "mte"].map(|machine| rows[1].is_of(machine));
        assert_eq!(is_of, [true, true, true, false]);
    }

    #[test]
    fn rows_are_asked_for_by_their_suite_or_a_part_of_their_names() {
        let rows = super::parse(&["null", "space/mmap", "mm:fork", "mm:mmap"].map(bytes).concat()).unwrap();
        let asked = |word| {
            let is = super::asked_for(&rows, word);
            rows.iter().filter(|row| is(row)).map(|row| row.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(asked("mm"), ["fork", "mmap"]);
        assert_eq!(asked("mma"), ["space/mmap", "mmap"]);
        assert_eq!(asked("").len(), 4);
    }

    #[test]
    fn damaged_lists_are_refused() {
        let reason = |section: &[u8]| super::parse(section).unwrap_err().to_string();
        assert!(reason(&[0; 100]).contains("not whole records"));
        assert!(reason(&[0; 160]).contains("no magic number"));
        assert!(reason(&bytes("x")).contains("no row null"));
        assert!(reason(&[bytes("null"), bytes("x"), bytes("x")].concat()).contains("two rows"));
    }
}
