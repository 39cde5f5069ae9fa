//! Commands that transfer data by a device: disks, a source of random numbers, edu's DMA engine; and commands that bind
//! a device to a process.
//!
//! While a device is bound, addresses are its process's, and its accesses fault and are served as the process's own.
//! Otherwise they are the kernel's, and each page is mapped for the device during its transfer.

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};

use super::accounts::plural;
use super::parse::{Args, ArgumentError, Keyword};
use super::processes::process;
use super::{Command, Failure, Refusal, Session, no_keywords};
use granule::devices::disk::{self, MAX_BYTES, SECTOR};
use granule::devices::edu::{Edu, MEMORY_BYTES, edu};
use granule::devices::nvme::{Nvme, nvme};
use granule::devices::slot::Driver;
use granule::devices::virtio_blk::{VirtioBlk, blk};
use granule::devices::virtio_rng::{VirtioRng, rng};
use granule::iommu::{Direction, DmaAddress, DmaDevice};
use granule::linux::process;
use granule::smp::{Cpu, this_cpu};
use granule::try_kernel;

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
        words: "[DISK] read|write SECTOR ADDR [BYTES]",
        help: "read a disk into memory, or write it; 512 bytes of blk by default",
        run: transfer_sectors,
        complete: |place, take| {
            if place == 0 {
                DEVICES.iter().filter(|(_, (kind, _))| kind.is_disk()).for_each(|(keyword, _)| take(keyword));
            }
            if place <= 1 {
                DIRECTIONS.iter().for_each(|(keyword, _)| take(keyword));
            }
        },
    },
    Command {
        name: "rng",
        words: "ADDR BYTES",
        help: "fill memory from the random number device",
        run: fill_with_random,
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

#[derive(Clone, Copy)]
enum DeviceKind {
    Edu,
    Rng,
    Blk,
    Nvme,
}

impl DeviceKind {
    fn is_disk(self) -> bool {
        matches!(self, Self::Blk | Self::Nvme)
    }
}

const ALLOWED: &str = "edu|rng|blk|nvme, perhaps with a number";

/// Each device by its kind and its number among those of its kind.
const DEVICES: &[Keyword<(DeviceKind, usize)>] = &[
    (Edu::NAME, (DeviceKind::Edu, 0)),
    (VirtioRng::NAME, (DeviceKind::Rng, 0)),
    (VirtioBlk::NAME, (DeviceKind::Blk, 0)),
    (Nvme::NAME, (DeviceKind::Nvme, 0)),
    ("edu1", (DeviceKind::Edu, 1)),
    ("rng1", (DeviceKind::Rng, 1)),
    ("blk1", (DeviceKind::Blk, 1)),
    ("blk2", (DeviceKind::Blk, 2)),
    ("blk3", (DeviceKind::Blk, 3)),
    ("nvme1", (DeviceKind::Nvme, 1)),
];

fn keywords(take: &mut dyn FnMut(&'static str)) {
    DEVICES.iter().for_each(|(keyword, _)| take(keyword));
}

/// As memory sees a disk's transfers.
const DIRECTIONS: &[Keyword<Direction>] = &[("read", Direction::FromDevice), ("write", Direction::ToDevice)];

/// Any device, for `bind`.
trait Bindable {
    fn bind_to(&self, process: u32) -> Result<(), Refusal>;
    fn end_binding(&self) -> Result<(), Refusal>;
}

impl<T: Driver> Bindable for T {
    fn bind_to(&self, process: u32) -> Result<(), Refusal> {
        let space = process::space_of(process).ok_or(Refusal::NoProcess(process))?;
        Ok(self.bind(this_cpu(), &space)?)
    }

    fn end_binding(&self) -> Result<(), Refusal> {
        Ok(self.unbind(this_cpu())?)
    }
}

fn device((kind, index): (DeviceKind, usize)) -> Result<&'static dyn Bindable, Refusal> {
    let cpu = this_cpu();
    Ok(match kind {
        DeviceKind::Edu => edu(cpu, index)?,
        DeviceKind::Rng => rng(cpu, index)?,
        DeviceKind::Blk => blk(cpu, index)?,
        DeviceKind::Nvme => nvme(cpu, index)?,
    })
}

/// Any disk, for `blk`.
trait Disk {
    fn dma(&self) -> &DmaDevice;
    fn sectors(&self) -> u64;
    /// Reads or writes sectors; returns how many tries that took.
    fn transfer(&self, direction: Direction, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, Refusal>;
}

impl Disk for VirtioBlk {
    fn dma(&self) -> &DmaDevice {
        self.device().dma()
    }

    fn sectors(&self) -> u64 {
        self.sectors()
    }

    fn transfer(&self, direction: Direction, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, Refusal> {
        let done = match direction {
            Direction::ToDevice => self.write(sector, address, bytes)?,
            _ => self.read(sector, address, bytes)?,
        };
        Ok(done.tries)
    }
}

impl Disk for Nvme {
    fn dma(&self) -> &DmaDevice {
        self.dma()
    }

    fn sectors(&self) -> u64 {
        self.identity().sectors
    }

    fn transfer(&self, direction: Direction, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, Refusal> {
        Ok(match direction {
            Direction::ToDevice => self.write(sector, address, bytes)?,
            _ => self.read(sector, address, bytes)?,
        })
    }
}

fn bind<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    let named = args.keyword("DEVICE", ALLOWED, DEVICES)?;
    args.finish()?;
    device(named)?.bind_to(id)?;
    writeln!(session, "addresses are those of process {id}");
    Ok(())
}

fn unbind<'a>(_: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let named = args.keyword("DEVICE", ALLOWED, DEVICES)?;
    args.finish()?;
    Ok(device(named)?.end_binding()?)
}

fn transfer_sectors<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let (kind, index) = args.optional_keyword(DEVICES).unwrap_or((DeviceKind::Blk, 0));
    if !kind.is_disk() {
        return Err(Refusal::NoDisk.into());
    }
    let direction = args.keyword("read|write", "read|write", DIRECTIONS)?;
    let sector = args.value("SECTOR")?;
    let start = args.address("ADDR")?;
    let bytes = if args.is_empty() { u64::from(SECTOR) } else { args.number("BYTES", 1..=MAX_BYTES.into())? };
    wraps("BYTES", start, bytes)?;
    args.finish()?;
    let disk: &dyn Disk = match kind {
        DeviceKind::Nvme => nvme(this_cpu(), index).map_err(Refusal::Start)?,
        _ => blk(this_cpu(), index).map_err(Refusal::Start)?,
    };
    // Of the whole transfer: of its pieces, those before the one that is refused would be written.
    disk::check(sector, bytes as u32, disk.sectors()).map_err(Refusal::Sectors)?;
    let mut next = sector;
    let tries = each_piece(disk.dma(), start, bytes, direction, &mut |address, piece| {
        let piece = piece as u32;
        let tries = disk.transfer(direction, next, address, piece)?;
        next += u64::from(piece / SECTOR);
        Ok(tries)
    })?;
    report(session, bytes, tries);
    Ok(())
}

fn fill_with_random<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
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
        return transfer(DmaAddress::of_pointer(start).ok_or(Refusal::NoMemory(start))?, bytes);
    }
    let (cpu, end) = (this_cpu(), start + bytes);
    let (mut at, mut sum) = (start, 0);
    while at < end {
        let piece = (PAGE - at.0 % PAGE).min(end - at);
        sum += mapped(cpu, device, at, piece, direction, transfer)?;
        at = at + piece;
    }
    Ok(sum)
}

/// Maps a piece of a kernel page for the device while `transfer` runs.
fn mapped(
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

/// The physical address of the kernel's page at `at`: memory, and writable if the device is to write it.
fn physical(at: VirtAddr, direction: Direction) -> Option<PhysAddr> {
    let kernel = try_kernel()?;
    let found = kernel.space.tables().translate(at).filter(|found| found.valid)?;
    let may_be = direction == Direction::ToDevice || found.descriptor.is_writable();
    let is_memory = kernel.platform.memory.iter().any(|bank| bank.contains(found.physical));
    (may_be && is_memory).then_some(found.physical)
}
