//! The monitor: a person, or a script, and the machine.
//!
//! A line is a command and its words; what is printed can be pasted back. Commands stand in one file per story, each
//! with the table of its own; [`STORIES`] is all of them. They are here and nowhere else because nothing in the kernel
//! may depend on the monitor.
//!
//! A script must be able to fail, so each line has an outcome ([`Failure`]), and the status with which `poweroff` ends
//! the machine's exit status tells whether all were as expected. A line that starts with `!` expects the machine or the
//! kernel to refuse: `! poke $ 1` fails if the store went through, and without the `!` if it did not. A line that is
//! *wrong* — an unknown command, a bad argument — fails either way, or a misspelt expectation would always hold. `#`
//! starts a comment.

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

mod accounts;
mod devices;
mod line;
mod machine;
mod memory;
mod metal;
mod parse;
mod processes;
mod smmu;
mod tables;
mod transfers;

use core::fmt::{self, Write};

use granule_arch::addr::VirtAddr;
use granule_pgtable::{Extent, Finding, LeafTotals, PageRange, Size, Step};
use linkme::distributed_slice;
use thiserror::Error;

use accounts::plural;
use granule::bootargs::{self, PARAMETERS, Parameter};
use granule::chip::power::Status;
use granule::chip::{console, timer};
use granule::devices::disk::SectorError;
use granule::devices::edu::EduError;
use granule::devices::nvme::NvmeError;
use granule::devices::slot::{BindRefused, StartError};
use granule::devices::virtio::requests::RequestError;
use granule::devices::virtio_blk::BlkError;
use granule::iommu::DmaError;
use granule::linux::errno::Errno;
use granule::linux::file::initrd::ArchiveError;
use granule::linux::process::signal::Signal;
use granule::linux::process::stack::Words;
use granule::linux::process::status::{ExecError, ProcessEnd, Summary};
use granule::mm::kernel::collapse::CollapseError;
use granule::mm::kernel::set_memory::SetMemoryError;
use granule::mm::kernel::vmalloc::VmallocError;
use granule::mm::notifier::SubscribeError;
use granule::mm::space::{Area, Moved, Unmovable};
use granule::mm::tag_storage::TagStorageStats;
use granule::smp;
use granule::suggest::suggest;
use granule::trap::probe::ProbeFault;
use line::{Echo, Editor, Input, Line};
use memory::{AccessWidth, Permission};
use parse::{Args, ArgumentError, DidYouMean};

const PROMPT: &str = "granule> ";

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static SCRIPT: Parameter = Parameter {
    name: "script",
    help: "the monitor's lines come from a script: echoed whole, without escape sequences",
    check: bootargs::flag,
};

/// Runs the prompt on the console until the machine is turned off.
pub fn run() -> ! {
    let echo = if bootargs::is_set("script") { Echo::Lines } else { Echo::Keys };
    let mut editor = Editor::new(PROMPT, echo);
    let (mut screen, mut subject) = (metal::Screen, metal::Metal::default());
    let mut session = Session::new(&mut screen, &mut subject);
    session.banner();
    session.boot_instructions = timer::instructions();
    loop {
        granule::stretches::mark_record();
        match read_line(&mut editor, session.screen) {
            Some(line) => session.execute(&line),
            None => session.fail(format_args!("error: a line has at most {} characters", line::LINE)),
        }
    }
}

/// The next line; `None` for one that is too long.
fn read_line(editor: &mut Editor, screen: &mut dyn Write) -> Option<Line> {
    // A script's session is a log, in which nothing is erased.
    let shown = editor.erases().then(console::EditedLine::begin);
    editor.prompt(screen);
    loop {
        let Some(byte) = shown.as_ref().map_or_else(|| Some(console::read_byte()), console::EditedLine::read_byte)
        else {
            editor.redraw(screen);
            continue;
        };
        match editor.feed(byte, screen, &complete) {
            Input::Pending => {}
            Input::Line(line) => return Some(line),
            Input::TooLong => return None,
        }
    }
}

/// The commands, story by story.
const STORIES: &[&[Command]] = &[
    memory::COMMANDS,
    tables::COMMANDS,
    processes::COMMANDS,
    accounts::COMMANDS,
    devices::COMMANDS,
    smmu::COMMANDS,
    transfers::COMMANDS,
    machine::COMMANDS,
];

/// One command.
struct Command {
    /// The word that is typed.
    name: &'static str,
    /// The words that follow the name: capitals stand for values, `|` for a choice, brackets for what may be left out.
    words: &'static str,
    /// Its effect, in a line.
    help: &'static str,
    run: for<'a> fn(&mut Session<'_>, Args<'a>) -> Result<(), Failure<'a>>,
    /// Offers the keywords, or names that the kernel knows, that may stand at this place among the words, 0 being the
    /// first.
    complete: fn(place: usize, take: &mut dyn FnMut(&'static str)),
}

impl Command {
    fn all() -> impl Iterator<Item = &'static Self> {
        STORIES.iter().copied().flatten()
    }

    fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|command| command.name == name)
    }

    /// Characters of the usage line: the name, and the words if there are any.
    const fn usage_length(&self) -> usize {
        self.name.len() + if self.words.is_empty() { 0 } else { 1 + self.words.len() }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = if self.words.is_empty() { "" } else { " " };
        write!(f, "{}{blank}{}", self.name, self.words)
    }
}

/// A command whose words are all values has no keyword to offer.
fn no_keywords(_place: usize, _take: &mut dyn FnMut(&'static str)) {}

/// Why a line failed.
#[derive(Debug, Error)]
enum Failure<'a> {
    /// There is no such command.
    #[error("there is no command `{0}`{near}; `help` lists them", near = DidYouMean(nearest_command(.0)))]
    Unknown(&'a str),
    /// The words are not what the command takes.
    #[error("{0}")]
    Argument(ArgumentError<'a>),
    /// The request cannot be granted; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The machine refused an access.
    #[error(transparent)]
    Fault(#[from] ProbeFault),
}

// By hand: `#[from]` makes it a source, which must not borrow the line.
impl<'a> From<ArgumentError<'a>> for Failure<'a> {
    fn from(error: ArgumentError<'a>) -> Self {
        Self::Argument(error)
    }
}

/// Why a well-formed request is refused.
#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Vmalloc(#[from] VmallocError),
    #[error(transparent)]
    SetMemory(#[from] SetMemoryError),
    #[error(transparent)]
    Collapse(#[from] CollapseError),
    #[error(transparent)]
    Range(#[from] granule_pgtable::Error),
    /// `peek … = VALUE`, and another value is there.
    #[error("{address} holds {found:#x}, not {expected:#x}")]
    OtherValue { address: VirtAddr, found: u64, expected: u64 },
    /// Each process has a lower half of its own, and the kernel has none.
    #[error("{0} is below the kernel's half: say whose with a PID before it")]
    LowerHalf(VirtAddr),
    /// Above a process's addresses there are none, or the kernel's.
    #[error("{0} is no address of a process's")]
    NotUser(VirtAddr),
    #[error(transparent)]
    Exec(ExecError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Errno(Errno),
    #[error("there is no process {0}, or it has ended")]
    NoProcess(u32),
    /// It ran, and not to its satisfaction.
    #[error("process {id} {status}")]
    Ended { id: u32, status: ProcessEnd },
    #[error(transparent)]
    Unmovable(#[from] Unmovable),
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    #[error("no more than {0} processes can be traced at a time")]
    ManyTraces(usize),
    #[error("no more than {0} areas of vmap can be kept at a time")]
    ManyAreas(usize),
    #[error("this machine has no SMMU that can be used")]
    NoSmmu,
    #[error("no tag storage: memory has no tags, because a CPU is without FEAT_MTE2")]
    NoTags,
    #[error("no tag storage: the device tree describes no region that can be used")]
    NoTagStorage,
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Bind(#[from] BindRefused),
    #[error(transparent)]
    Sectors(#[from] SectorError),
    #[error(transparent)]
    Blk(#[from] BlkError),
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    #[error("a disk is needed: blk or nvme, perhaps with a number")]
    NoDisk,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Edu(#[from] EduError),
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// For a device: no memory there, or read-only memory that it is to write.
    #[error("{0} is no memory of the kernel's that a device could have for this")]
    NoMemory(VirtAddr),
    /// Where the monitor's own tests run.
    #[error("there is no kernel")]
    NoKernel,
}

fn nearest_command(name: &str) -> Option<&'static str> {
    suggest(name, Command::all().map(|command| command.name))
}

/// The half of the addresses: the kernel's upper one, or a process's lower one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Half {
    Kernel,
    Process(u32),
}

/// One row of a dump.
enum Row<'a> {
    Extent(&'a Extent),
    Finding(&'a Finding),
}

/// The subject of a session: the machine, or in the host's tests a model of it.
trait Subject {
    /// Maps this many fresh pages; returns the address of the first.
    fn vmalloc(&mut self, pages: u64) -> Result<VirtAddr, VmallocError>;
    /// Takes back what [`vmalloc`](Self::vmalloc) returned.
    fn vfree(&mut self, start: VirtAddr) -> Result<(), VmallocError>;
    /// Maps this many fresh pages so many times in a row; returns the address of the first.
    fn vmap(&mut self, pages: u64, copies: u64) -> Result<VirtAddr, Refusal>;
    /// Unmaps what [`vmap`](Self::vmap) returned, and frees the pages.
    fn vunmap(&mut self, start: VirtAddr) -> Result<(), VmallocError>;
    /// Changes what may be done with this many pages.
    fn set_memory(&mut self, permission: Permission, start: VirtAddr, pages: u64) -> Result<(), SetMemoryError>;
    /// Reads at any address.
    fn read(&self, address: VirtAddr, width: AccessWidth) -> Result<u64, ProbeFault>;
    /// Writes at any address, for instruction fetches to see.
    fn write(&mut self, address: VirtAddr, width: AccessWidth, value: u64) -> Result<(), ProbeFault>;
    /// Calls the code at any address.
    fn execute(&mut self, address: VirtAddr) -> Result<(), ProbeFault>;
    /// The walk for an address, one call for each level. `None`: there is no such process.
    fn walk(&self, whose: Half, address: VirtAddr, step: &mut dyn FnMut(&Step)) -> Option<()>;
    /// The mappings of a range, then the findings there. `None`: there is no such process.
    fn dump(&self, whose: Half, range: PageRange, row: &mut dyn FnMut(Row<'_>)) -> Option<LeafTotals>;
    /// Starts a program; returns its process's number.
    fn start(&mut self, file: &str, words: Words) -> Result<u32, ExecError>;
    /// The archive of the programs.
    fn programs(&self) -> &'static [u8];
    /// Waits for the end of a process that was started here; Ctrl-C on the console sends SIGINT to it and its
    /// descendants, a second one SIGKILL. `None`: there is no such process.
    fn wait(&mut self, process: u32) -> Option<ProcessEnd>;
    /// Sends a process a signal.
    fn kill(&mut self, process: u32, signal: Signal) -> Result<(), Errno>;
    /// Calls `each` for every process.
    fn processes(&self, each: &mut dyn FnMut(&Summary));
    /// Calls `each` for every area of a process. `None`: there is no such process.
    fn areas(&self, process: u32, each: &mut dyn FnMut(&Area)) -> Option<()>;
    /// Moves the page or block that a process has at an address to other frames.
    fn migrate(&mut self, process: u32, address: VirtAddr) -> Result<Moved, Refusal>;
    /// Begins or ends printing the events of a process's notifiers; returns which.
    fn trace(&mut self, process: u32) -> Result<bool, Refusal>;
    /// The cost of the use of tag storage.
    fn tag_storage(&self) -> Result<TagStorageStats, Refusal>;
    /// Ends the machine with a status.
    fn power_off(&mut self, status: Status);
    /// Starts the machine anew.
    fn reset(&mut self);
}

/// The expected outcome of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expectation {
    Success,
    /// The line started with `!`.
    Refusal,
}

/// One session at the prompt.
struct Session<'s> {
    screen: &'s mut dyn Write,
    subject: &'s mut dyn Subject,
    /// Lines that did not end as expected.
    failures: u32,
    /// The address that the last `vmalloc` or `vmap` returned: `$`.
    allocated: Option<VirtAddr>,
    /// Instructions that the boot CPU had retired when the first prompt was about to appear.
    boot_instructions: Option<u64>,
}

impl<'s> Session<'s> {
    fn new(screen: &'s mut dyn Write, subject: &'s mut dyn Subject) -> Self {
        Self { screen, subject, failures: 0, allocated: None, boot_instructions: None }
    }

    /// One line: what booted, and on what.
    fn banner(&mut self) {
        write!(self, "Granule {}", env!("CARGO_PKG_VERSION"));
        if let Some(kernel) = granule::try_kernel() {
            let bytes = kernel.platform.memory.iter().map(|bank| bank.size()).sum();
            let (cpus, level) = (smp::online().len(), kernel.boot.entry_level);
            write!(self, ": {cpus} CPU{}, {} of memory, entered at EL{level}", plural(cpus as u64), Size(bytes));
            if !kernel.platform.model.is_empty() {
                write!(self, ", {}", kernel.platform.model);
            }
        }
        writeln!(self, "; `help` lists the commands");
    }

    /// Makes `write!` and `writeln!` print to the screen. A console cannot fail, so neither has a result.
    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) {
        let _ = self.screen.write_fmt(arguments);
        // Some commands print thousands of lines.
        granule::sched::relax();
    }

    /// Prints what went wrong with a line, and counts it.
    fn fail(&mut self, what: fmt::Arguments<'_>) {
        self.failures += 1;
        writeln!(self, "{what}");
    }

    /// Executes `line`; prints and counts a result that the line does not expect.
    fn execute(&mut self, line: &str) {
        let line = line.split('#').next().unwrap_or_default().trim_ascii();
        let (expectation, line) = match line.strip_prefix('!') {
            Some(rest) => (Expectation::Refusal, rest),
            None if line.is_empty() => return,
            None => (Expectation::Success, line),
        };
        match (self.run(line), expectation) {
            (Ok(()), Expectation::Success) => {}
            (Ok(()), Expectation::Refusal) => {
                self.fail(format_args!("error: a refusal was expected, but the line succeeded"));
            }
            (Err(Failure::Refused(reason)), Expectation::Refusal) => {
                writeln!(self, "refused: {reason} (as expected)");
            }
            (Err(Failure::Fault(fault)), Expectation::Refusal) => writeln!(self, "fault: {fault} (as expected)"),
            (Err(Failure::Fault(fault)), Expectation::Success) => self.fail(format_args!("fault: {fault}")),
            (Err(failure), _) => {
                self.fail(format_args!("error: {failure}"));
                if let (Failure::Argument(_), Some(command)) = (failure, command_of(line)) {
                    writeln!(self, "usage: {command}");
                }
            }
        }
    }

    fn run<'a>(&mut self, line: &'a str) -> Result<(), Failure<'a>> {
        let mut args = Args::new(line, self.allocated);
        let name = args.word().unwrap_or_default();
        let command = Command::named(name).ok_or(Failure::Unknown(name))?;
        (command.run)(self, args)
    }
}

fn command_of(line: &str) -> Option<&'static Command> {
    Command::named(line.split_ascii_whitespace().next()?)
}

/// Offers what may follow `line`: a command's name, or a keyword of the command that it starts with.
fn complete(line: &str, take: &mut dyn FnMut(&'static str)) {
    let line = line.trim_ascii_start();
    let line = line.strip_prefix('!').unwrap_or(line);
    match (command_of(line), line.split_ascii_whitespace().count()) {
        (_, 0) => Command::all().for_each(|command| take(command.name)),
        (Some(command), words) => (command.complete)(words - 1, take),
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests;
