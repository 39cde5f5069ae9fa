//! The record of one bench, 160 bytes in section `linkme_BENCHES` of the bench image: like a test's, fixed in size and
//! with its text inside, so that the host knows the rows before anything boots.

use crate::record::padded;

/// The section that holds the records, one after the other.
pub const BENCH_SECTION: &str = "linkme_BENCHES";
/// `GBEN`, as it lies in memory.
pub const BENCH_MAGIC: u32 = u32::from_le_bytes(*b"GBEN");

/// Room for a row's name, NUL included.
pub const BENCH_NAME_BYTES: usize = 64;
/// Room for a unit or machines' names, NUL included.
pub const BENCH_WORD_BYTES: usize = 16;
/// Room for boot arguments, NUL included.
pub const BENCH_BOOTARGS_BYTES: usize = 32;
/// The size of a record.
pub const BENCH_RECORD_BYTES: usize = 160;

/// Repetitions of each point, of which the least counts. The first fills what later ones find filled.
pub const REPETITIONS: u32 = 3;
/// Turns of the loop by which a program at EL0 shows that nothing else ran.
pub const NULL_TURNS: u32 = 250_000;

/// Windows that a program at EL0 measures for a row of `points` points: those of each point, and before them as many of
/// nothing, whose cost is subtracted, and of a loop of [`NULL_TURNS`].
pub const fn windows_at_el0(points: u32) -> u32 {
    (points + 2) * REPETITIONS
}

/// The unit of a row over a wire: the request's seed has its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BenchCounter {
    /// Instructions that were retired, by the PMU.
    Instructions,
    /// Cycles of the CPU, by the PMU.
    Cycles,
    /// Ticks of the virtual counter, where there is no PMU.
    Ticks,
}

impl BenchCounter {
    /// All of them, the most exact first.
    pub const ALL: [Self; 3] = [Self::Instructions, Self::Cycles, Self::Ticks];

    /// The event of the PMU (Arm ARM D12.11): INST_RETIRED, CPU_CYCLES.
    pub const fn event(self) -> Option<u64> {
        match self {
            Self::Instructions => Some(0x08),
            Self::Cycles => Some(0x11),
            Self::Ticks => None,
        }
    }

    /// Its number in a request.
    pub fn number(self) -> u64 {
        self.event().unwrap_or(0)
    }

    /// The one of that number.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|counter| counter.number() == number)
    }
}

/// One bench. `F` is a function pointer in the guest and eight bytes without meaning on the host.
#[repr(C)]
#[derive(Debug)]
pub struct BenchRecord<F> {
    /// [`BENCH_MAGIC`].
    pub magic: u32,
    /// 0.
    pub reserved: u32,
    /// The function that measures the row.
    pub function: F,
    /// The row's name: the operation, `/`, its variant; or another crate's name, `/`, the operation. Before a colon may
    /// stand the name of the suite that the row belongs to.
    pub name: [u8; BENCH_NAME_BYTES],
    /// The unit of a size: `page`, `byte`.
    pub unit: [u8; BENCH_WORD_BYTES],
    /// The machine that the row belongs to; empty: `default`.
    pub on: [u8; BENCH_WORD_BYTES],
    /// Machines that it belongs to besides, separated by spaces; empty: none.
    pub also: [u8; BENCH_WORD_BYTES],
    /// Boot arguments with which the row is measured, apart from rows with others.
    pub bootargs: [u8; BENCH_BOOTARGS_BYTES],
}

const _: () = assert!(size_of::<BenchRecord<u64>>() == BENCH_RECORD_BYTES);

/// A record is made in a constant, so a panic here is an error of compilation.
impl<F> BenchRecord<F> {
    /// A record of the row `name`, whose sizes count `unit`s.
    ///
    /// # Panics
    /// When the texts have no room.
    pub const fn new(function: F, name: &str, unit: &str) -> Self {
        Self {
            magic: BENCH_MAGIC,
            reserved: 0,
            function,
            name: padded(name),
            unit: padded(unit),
            on: [0; BENCH_WORD_BYTES],
            also: [0; BENCH_WORD_BYTES],
            bootargs: [0; BENCH_BOOTARGS_BYTES],
        }
    }

    /// The row belongs to `machine`, not to `default`, which lacks what it measures.
    ///
    /// # Panics
    /// When the name has no room.
    pub const fn on(mut self, machine: &str) -> Self {
        self.on = padded(machine);
        self
    }

    /// The row also belongs to `machines`, separated by spaces, which do the same otherwise.
    ///
    /// # Panics
    /// When the names have no room.
    pub const fn also(mut self, machines: &str) -> Self {
        self.also = padded(machines);
        self
    }

    /// The row is of a kernel that was booted with these arguments.
    ///
    /// # Panics
    /// When they have no room.
    pub const fn bootargs(mut self, arguments: &str) -> Self {
        self.bootargs = padded(arguments);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::BenchRecord;
    use crate::text;

    #[test]
    fn a_record_says_what_it_was_made_of() {
        let record = BenchRecord::new(0u64, "memory/zero", "page").on("mte").also("a72 n2").bootargs("rodata=off");
        assert_eq!((text(&record.name), text(&record.on)), (Some("memory/zero"), Some("mte")));
        assert_eq!(text(&record.bootargs), Some("rodata=off"));
        assert_eq!((text(&record.unit), text(&record.also)), (Some("page"), Some("a72 n2")));
    }
}
