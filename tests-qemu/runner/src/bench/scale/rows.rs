//! Which windows make a row, what it must be, and what Linux has.

use anyhow::{Context, Result, bail, ensure};
use granule_protocol::ScaleWindow as Window;

use super::boot::{Counts, Part};
use super::{ScaleRow, UNIT};

/// The count of its windows that a row is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Lines that moved, but for contents of pages that are zeroed.
    Lines,
    /// Lines of pages that are zeroed.
    Contents,
    /// Instructions.
    Instructions,
    /// Events that the guest counted: waits for the split lock, or retries without it.
    Events,
}

/// An instruction that moved a line.
#[derive(Clone, PartialEq, Debug)]
pub struct Move<'a> {
    /// `load`, `store` or `contents`.
    pub kind: &'a str,
    /// The line's physical address.
    pub line: u64,
    /// The instruction's address, as it ran.
    pub pc: u64,
    /// How often, in an operation.
    pub times: f64,
}

/// A row's definition.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// The boot that measures it.
    pub part: Part,
    /// The count of the windows that makes its points.
    pub what: What,
    /// Windows, and how many of each are an operation.
    windows: &'static [(Window, u32)],
    /// Its bound with [`BOUNDED_AT`](super::BOUNDED_AT) CPUs, where it has one.
    pub must: Option<f64>,
    /// The cost of Linux 7.2.13's operation with so many CPUs, counted alike.
    pub linux: Option<f64>,
}

const fn lines(
    name: &'static str,
    part: Part,
    windows: &'static [(Window, u32)],
    must: f64,
    linux: Option<f64>,
) -> Definition {
    Definition { name, part, what: What::Lines, windows, must: Some(must), linux }
}

const fn instructions(
    name: &'static str,
    windows: &'static [(Window, u32)],
    must: Option<f64>,
    linux: f64,
) -> Definition {
    Definition { name, part: Part::Loose, what: What::Instructions, windows, must, linux: Some(linux) }
}

const fn contents(name: &'static str, windows: &'static [(Window, u32)]) -> Definition {
    Definition { name, part: Part::Program, what: What::Contents, windows, must: Some(0.0), linux: Some(0.0) }
}

/// Of splits, which have no bound: what is compared is one with the lock and one without.
const fn split(name: &'static str, part: Part, what: What, windows: &'static [(Window, u32)]) -> Definition {
    Definition { name, part, what, windows, must: None, linux: None }
}

use Part::{Kernel, Loose, LooseSplitLock, LooseSplitLockless, Program, SplitLock, SplitLockless};
use What::{Events, Instructions, Lines};
use Window::{
    DontneedOwn, FaultBig, FaultOneArea, FaultOwn, FaultProcess, MmapAny, MmapOwn, MprotectOwn, MunmapAny, MunmapOwn,
    SetMemory, SmmuInvalidate, SplitBlock, SplitGroup, SplitOneGroup, TouchAny, TouchOwn, Vfree, Vmalloc,
};

/// All rows, in the order of reports.
pub const ROWS: [Definition; 40] = [
    lines("scale/write_fault/own", Program, &[(FaultOwn, 1)], 0.05, Some(0.18)),
    lines("scale/write_fault/one_area", Program, &[(FaultOneArea, 1)], 1.1, Some(3.19)),
    lines("scale/write_fault/big", Program, &[(FaultBig, 1)], 0.1, Some(0.52)),
    contents("scale/write_fault/big_contents", &[(FaultBig, 1)]),
    lines("scale/write_fault/processes", Program, &[(FaultProcess, 1)], 0.1, Some(0.42)),
    contents("scale/write_fault/processes_contents", &[(FaultProcess, 1)]),
    lines("scale/dontneed/own", Program, &[(DontneedOwn, 1)], 0.05, Some(3.69)),
    lines("scale/mprotect/own", Program, &[(MprotectOwn, 1)], 1.0, Some(8.0)),
    lines("scale/map_touch_unmap/own", Program, &[(MmapOwn, 1), (TouchOwn, 16), (MunmapOwn, 1)], 10.0, Some(43.0)),
    lines("scale/map_touch_unmap/any", Program, &[(MmapAny, 1), (TouchAny, 16), (MunmapAny, 1)], 12.0, Some(111.7)),
    lines("scale/set_memory/own", Kernel, &[(SetMemory, 1)], 0.5, None),
    lines("scale/vmalloc/own", Kernel, &[(Vmalloc, 1)], 4.0, None),
    lines("scale/vfree/own", Kernel, &[(Vfree, 1)], 4.0, None),
    lines("scale/smmu_invalidate/own", Kernel, &[(SmmuInvalidate, 1)], 5.0, None),
    split("scale/split_group/own/lock", SplitLock, Lines, &[(SplitGroup, 1)]),
    split("scale/split_group/own/lockless", SplitLockless, Lines, &[(SplitGroup, 1)]),
    lines("scale/loose/write_fault", Loose, &[(TouchOwn, 1)], 1.0, Some(1.9)),
    instructions("scale/loose/write_fault/instructions", &[(TouchOwn, 1)], Some(400.0), 2045.0),
    lines("scale/loose/mmap", Loose, &[(MmapOwn, 1)], 12.0, Some(34.0)),
    instructions("scale/loose/mmap/instructions", &[(MmapOwn, 1)], None, 7466.0),
    lines("scale/loose/munmap", Loose, &[(MunmapOwn, 1)], 12.0, Some(59.0)),
    instructions("scale/loose/munmap/instructions", &[(MunmapOwn, 1)], None, 19300.0),
    lines("scale/loose/mprotect", Loose, &[(MprotectOwn, 1)], 4.0, Some(32.0)),
    instructions("scale/loose/mprotect/instructions", &[(MprotectOwn, 1)], None, 8594.0),
    split("scale/loose/split_block/lock", LooseSplitLock, Lines, &[(SplitBlock, 1)]),
    split("scale/loose/split_block/lockless", LooseSplitLockless, Lines, &[(SplitBlock, 1)]),
    split("scale/loose/split_block/lock/instructions", LooseSplitLock, Instructions, &[(SplitBlock, 1)]),
    split("scale/loose/split_block/lockless/instructions", LooseSplitLockless, Instructions, &[(SplitBlock, 1)]),
    split("scale/loose/split_block/lock/waits", LooseSplitLock, Events, &[(SplitBlock, 1)]),
    split("scale/loose/split_block/lockless/retries", LooseSplitLockless, Events, &[(SplitBlock, 1)]),
    split("scale/loose/split_group/own/lock", LooseSplitLock, Lines, &[(SplitGroup, 1)]),
    split("scale/loose/split_group/own/lockless", LooseSplitLockless, Lines, &[(SplitGroup, 1)]),
    split("scale/loose/split_group/own/lock/instructions", LooseSplitLock, Instructions, &[(SplitGroup, 1)]),
    split("scale/loose/split_group/own/lockless/instructions", LooseSplitLockless, Instructions, &[(SplitGroup, 1)]),
    split("scale/loose/split_group/own/lock/waits", LooseSplitLock, Events, &[(SplitGroup, 1)]),
    split("scale/loose/split_group/one/lock", LooseSplitLock, Lines, &[(SplitOneGroup, 1)]),
    split("scale/loose/split_group/one/lockless", LooseSplitLockless, Lines, &[(SplitOneGroup, 1)]),
    split("scale/loose/split_group/one/lock/instructions", LooseSplitLock, Instructions, &[(SplitOneGroup, 1)]),
    split("scale/loose/split_group/one/lockless/instructions", LooseSplitLockless, Instructions, &[(SplitOneGroup, 1)]),
    split("scale/loose/split_group/one/lock/waits", LooseSplitLock, Events, &[(SplitOneGroup, 1)]),
];

impl Definition {
    /// The row of that name.
    pub fn of(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name == name)
    }

    /// The cost of an operation by these counts; `None`: its windows are not all there.
    pub fn cost(&self, counts: &Counts) -> Option<f64> {
        let cost = |&(window, times): &(Window, u32)| {
            let count = counts.get(window)?;
            let total = match self.what {
                What::Lines => count.loads + count.stores,
                What::Contents => count.contents,
                What::Instructions => count.instructions,
                What::Events => count.events,
            };
            Some(f64::from(times) * total as f64 / count.operations as f64)
        };
        let sum: Option<f64> = self.windows.iter().map(cost).sum();
        sum.map(|cost| (cost * 100.0).round() / 100.0)
    }

    /// The instructions that moved the row's lines, each so often as in an operation; `moves` is the plugin's file.
    ///
    /// # Errors
    /// When the row is of no lines, or the file is not the plugin's.
    pub fn moves<'a>(&self, counts: &Counts, moves: &'a str) -> Result<Vec<Move<'a>>> {
        ensure!(matches!(self.what, What::Lines | What::Contents), "{} counts no lines", self.name);
        let mut found = Vec::new();
        for text in moves.lines() {
            let [window, kind, line, pc, times] = *text.split(' ').collect::<Vec<_>>() else {
                bail!("not a line of the plugin: {text}");
            };
            let address = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
            let window: u64 = window.parse()?;
            let own = self.windows.iter().find(|(own, _)| *own as u64 == window);
            let Some(&(window, weight)) = own.filter(|_| (kind == "contents") == (self.what == What::Contents)) else {
                continue;
            };
            let operations = counts.get(window).context("a window that was not counted")?.operations as f64;
            let times = f64::from(weight) * times.parse::<u32>().map(f64::from)? / operations;
            found.push(Move { kind, line: address(line)?, pc: address(pc)?, times });
        }
        Ok(found)
    }

    /// The row, of machines with so many CPUs each, as far as they had its windows.
    pub fn row(&self, measured: &[(u32, Part, Counts)]) -> ScaleRow {
        let own = measured.iter().filter(|(_, part, _)| *part == self.part);
        let points = own.filter_map(|(cpus, _, counts)| Some((*cpus, self.cost(counts)?))).collect();
        ScaleRow { name: self.name.into(), unit: UNIT.into(), points }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Definition, Move, Part, ROWS, Window};

    #[test]
    fn a_row_sums_its_windows_by_operation() {
        let text = format!(
            "{} 8 800 4 12 80 0 4 0\n{} 128 12800 0 256 0 2 2 0\n{} 8 160 8 8 0 2 2 0\n{} 8 99 0 0 0 0 0 6\n",
            Window::MmapOwn as u8,
            Window::TouchOwn as u8,
            Window::MunmapOwn as u8,
            Window::SplitBlock as u8
        );
        let counts = Counts::parse(&text).unwrap();
        let whole = Definition::of("scale/map_touch_unmap/own").unwrap();
        // 16 / 8, 16 times 256 / 128, 16 / 8.
        assert_eq!(whole.cost(&counts), Some(36.0));
        assert_eq!(Definition::of("scale/loose/mmap/instructions").unwrap().cost(&counts), Some(100.0));
        assert_eq!(Definition::of("scale/loose/split_block/lock/waits").unwrap().cost(&counts), Some(0.75));
        assert_eq!(Definition::of("scale/mprotect/own").unwrap().cost(&counts), None);
        let row = whole.row(&[(2, Part::Program, counts.clone()), (2, Part::Loose, counts)]);
        assert_eq!(row.points, [(2, 36.0)]);
    }

    #[test]
    fn moves_are_those_of_the_row_by_operation() {
        let counts = Counts::parse(&format!("{} 8 800 4 12 80 0 4 0", Window::FaultBig as u8)).unwrap();
        let number = Window::FaultBig as u8;
        let text = format!("{number} store 0x40 0x1000 4\n{number} contents 0x80 0x2000 8\n1 load 0x40 0x3000 9\n");
        let moves = |name| Definition::of(name).unwrap().moves(&counts, &text);
        let [lines, contents] =
            ["scale/write_fault/big", "scale/write_fault/big_contents"].map(|name| moves(name).unwrap());
        assert_eq!(lines, [Move { kind: "store", line: 0x40, pc: 0x1000, times: 0.5 }]);
        assert_eq!(contents, [Move { kind: "contents", line: 0x80, pc: 0x2000, times: 1.0 }]);
        assert!(moves("scale/loose/mmap/instructions").is_err());
        assert!(moves("scale/loose/split_block/lock/waits").is_err());
        assert!(Definition::of("scale/write_fault/big").unwrap().moves(&counts, "1 2").is_err());
    }

    #[test]
    fn names_are_different_and_each_has_something_to_compare_with() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
            let twin = row.name.replace("/lock", "/lockless").replace("/waits", "/retries");
            let is_compared = [twin, row.name.replace("/lockless", "/lock").replace("/retries", "/waits")]
                .iter()
                .any(|twin| twin != row.name && Definition::of(twin).is_some());
            // Without the lock groups are dissolved without a retry.
            let is_zero = row.name.ends_with("/lock/waits");
            assert!(row.must.is_some() || row.linux.is_some() || is_compared || is_zero, "{}", row.name);
        }
    }
}
