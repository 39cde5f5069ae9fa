//! Commands that have devices do something: a disk, a source of random numbers, edu's DMA; and binding them to
//! processes.
//!
//! While a device is bound, addresses are its process's, and pages come and go under it as under the process's own
//! accesses. Otherwise they are the kernel's, and each page is shown to the device for the time of its transfer.

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::accounts::plural;
use super::parse::{Args, ArgumentError, Keyword};
use super::processes::process;
use super::{Command, Failure, Refusal, Session, no_keywords};
use crate::devices::edu::{Edu, MEMORY_BYTES, edu};
use crate::devices::slot::Driver;
use crate::devices::virtio_blk::{MAX_BYTES, SECTOR, VirtioBlk, blk};
use crate::devices::virtio_rng::{VirtioRng, rng};
use crate::iommu::{Direction, DmaAddress, DmaDevice};
use crate::linux::process;
use crate::smp::{Cpu, this_cpu};
use crate::try_kernel;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "bind",
        words: "PID DEVICE",
        help: "give a device the addresses of a process",
        run: bind,
        complete: |place, take| {
            if place == 1 {
                keywords(take);
            }
        },
    },
    Command {
        name: "unbind",
        words: "DEVICE",
        help: "end a device's binding",
        run: unbind,
        complete: |place, take| {
            if place == 0 {
                keywords(take);
            }
        },
    },
    Command {
        name: "blk",
        words: "read|write SECTOR ADDR [BYTES]",
        help: "read the disk into memory, or write it; 512 bytes by default",
        run: disk,
        complete: |place, take| {
            if place == 0 {
                TRANSFERS.iter().for_each(|(keyword, _)| take(keyword));
            }
        },
    },
    Command {
        name: "rng",
        words: "ADDR BYTES",
        help: "fill memory from the random number device",
        run: random,
        complete: no_keywords,
    },
    Command {
        name: "dma",
        words: "copy FROM TO BYTES",
        help: "copy memory by the DMA engine of edu",
        run: dma,
        complete: |place, take| {
            if place == 0 {
                take("copy");
            }
        },
    },
];

/// A kind of device, as it is typed.
#[derive(Clone, Copy)]
enum Kind {
    Edu,
    Rng,
    Blk,
}

const ALLOWED: &str = "edu|rng|blk, perhaps with a number";

const DEVICES: &[Keyword<(Kind, usize)>] = &[
    (Edu::NAME, (Kind::Edu, 0)),
    (VirtioRng::NAME, (Kind::Rng, 0)),
    (VirtioBlk::NAME, (Kind::Blk, 0)),
    ("edu1", (Kind::Edu, 1)),
    ("rng1", (Kind::Rng, 1)),
    ("blk1", (Kind::Blk, 1)),
    ("blk2", (Kind::Blk, 2)),
    ("blk3", (Kind::Blk, 3)),
];

fn keywords(take: &mut dyn FnMut(&'static str)) {
    DEVICES.iter().for_each(|(keyword, _)| take(keyword));
}

#[derive(Clone, Copy)]
enum Transfer {
    Read,
    Write,
}

const TRANSFERS: &[Keyword<Transfer>] = &[("read", Transfer::Read), ("write", Transfer::Write)];

/// Runs `work` with the device that was named.
fn with_device(
    device: (Kind, usize),
    work: &mut dyn FnMut(&dyn Bindable) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let (cpu, (kind, index)) = (this_cpu(), device);
    match kind {
        Kind::Edu => work(edu(cpu, index)?),
        Kind::Rng => work(rng(cpu, index)?),
        Kind::Blk => work(blk(cpu, index)?),
    }
}

/// What the monitor does with any device.
trait Bindable {
    fn bind_to(&self, process: u32) -> Result<(), Refusal>;
    fn let_go(&self) -> Result<(), Refusal>;
}

impl<T: Driver> Bindable for T {
    fn bind_to(&self, process: u32) -> Result<(), Refusal> {
        let space = process::space_of(process).ok_or(Refusal::NoProcess(process))?;
        Ok(self.bind(this_cpu(), &space)?)
    }

    fn let_go(&self) -> Result<(), Refusal> {
        Ok(self.unbind(this_cpu())?)
    }
}

fn bind<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    let device = args.keyword("DEVICE", ALLOWED, DEVICES)?;
    args.finish()?;
    with_device(device, &mut |device| device.bind_to(id))?;
    writeln!(session, "addresses are those of process {id}");
    Ok(())
}

fn unbind<'a>(_: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let device = args.keyword("DEVICE", ALLOWED, DEVICES)?;
    args.finish()?;
    Ok(with_device(device, &mut |device| device.let_go())?)
}

fn disk<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let what = args.keyword("read|write", "read|write", TRANSFERS)?;
    let sector = args.value("SECTOR")?;
    let start = args.address("ADDR")?;
    let bytes = if args.is_empty() { u64::from(SECTOR) } else { args.number("BYTES", 1..=MAX_BYTES.into())? };
    wraps("BYTES", start, bytes)?;
    args.finish()?;
    let disk = blk(this_cpu(), 0).map_err(Refusal::Start)?;
    let dma = disk.device().dma();
    let mut next = sector;
    let tries = each_piece(dma, start, bytes, what.direction(), &mut |address, piece| {
        let piece = piece as u32;
        let done = match what {
            Transfer::Read => disk.read(next, address, piece)?,
            Transfer::Write => disk.write(next, address, piece)?,
        };
        next += u64::from(piece / SECTOR);
        Ok(done.tries)
    })?;
    report(session, bytes, tries);
    Ok(())
}

impl Transfer {
    /// The same, as memory sees it.
    fn direction(self) -> Direction {
        match self {
            Self::Read => Direction::FromDevice,
            Self::Write => Direction::ToDevice,
        }
    }
}

fn random<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let start = args.address("ADDR")?;
    let bytes = args.number("BYTES", 1..=MAX_BYTES.into())?;
    wraps("BYTES", start, bytes)?;
    args.finish()?;
    let source = rng(this_cpu(), 0).map_err(Refusal::Start)?;
    let tries = each_piece(source.device().dma(), start, bytes, Direction::FromDevice, &mut |address, piece| {
        Ok(source.fill(address, piece as u32)?)
    })?;
    report(session, bytes, tries);
    Ok(())
}

fn dma<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    args.keyword("copy", "copy", &[("copy", ())])?;
    let (from, to) = (args.address("FROM")?, args.address("TO")?);
    let bytes = args.number("BYTES", 1..=MEMORY_BYTES)?;
    wraps("BYTES", from, bytes)?;
    wraps("BYTES", to, bytes)?;
    args.finish()?;
    let device = edu(this_cpu(), 0).map_err(Refusal::Start)?;
    let mut offset = 0;
    let tries_in = each_piece(device.dma(), from, bytes, Direction::ToDevice, &mut |address, piece| {
        let tries = device.copy_in(address, offset, piece)?;
        offset += piece;
        Ok(tries)
    })?;
    offset = 0;
    let tries_out = each_piece(device.dma(), to, bytes, Direction::FromDevice, &mut |address, piece| {
        let tries = device.copy_out(offset, address, piece)?;
        offset += piece;
        Ok(tries)
    })?;
    report(session, bytes, tries_in + tries_out);
    Ok(())
}

fn report(session: &mut Session<'_>, bytes: u64, tries: u32) {
    writeln!(session, "{bytes} byte{}, in {tries} transfer{}", plural(bytes), plural(tries.into()));
}

fn wraps<'a>(name: &'static str, start: VirtAddr, bytes: u64) -> Result<(), ArgumentError<'a>> {
    start.checked_add(bytes).map(|_| ()).ok_or(ArgumentError::Wraps { name, start })
}

/// Calls `transfer` with each piece of the range, as the device knows it: all of it if it is bound, page by page if not.
/// Returns the sum of what it returns.
fn each_piece(
    device: &DmaDevice,
    start: VirtAddr,
    bytes: u64,
    direction: Direction,
    transfer: &mut dyn FnMut(DmaAddress, u64) -> Result<u32, Refusal>,
) -> Result<u32, Refusal> {
    if device.is_bound() {
        return transfer(DmaAddress::of_pointer(start), bytes);
    }
    let (cpu, end) = (this_cpu(), start + bytes);
    let (mut at, mut sum) = (start, 0);
    while at < end {
        let piece = (PAGE_SIZE as u64 - at.0 % PAGE_SIZE as u64).min(end - at);
        sum += shown(cpu, device, at, piece, direction, transfer)?;
        at = at + piece;
    }
    Ok(sum)
}

/// Shows the device a piece of a page of the kernel's while `transfer` runs.
fn shown(
    cpu: &Cpu,
    device: &DmaDevice,
    at: VirtAddr,
    bytes: u64,
    direction: Direction,
    transfer: &mut dyn FnMut(DmaAddress, u64) -> Result<u32, Refusal>,
) -> Result<u32, Refusal> {
    let physical = physical(at, direction).ok_or(Refusal::NoMemory(at))?;
    let address = device.map(cpu, physical, bytes as usize, direction)?;
    let result = transfer(address, bytes);
    device.unmap(cpu, address, bytes as usize);
    result
}

/// Where the kernel's page at `at` is, if there is one that may be written, or need not be; and if it is memory.
fn physical(at: VirtAddr, direction: Direction) -> Option<PhysAddr> {
    let kernel = try_kernel()?;
    let found = kernel.space.tables().translate(at)?;
    let may_be = direction == Direction::ToDevice || found.descriptor.is_writable();
    let is_memory = kernel.platform.memory.iter().any(|bank| bank.contains(found.physical));
    (may_be && is_memory).then_some(found.physical)
}
