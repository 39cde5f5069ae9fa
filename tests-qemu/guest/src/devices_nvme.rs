//! An NVMe disk: what it reads and writes, in the kernel's memory and in a process's.

use granule::devices::disk::{SECTOR, SectorError};
use granule::devices::nvme::{NvmeError, nvme};
use granule::devices::pci::InterruptVector;
use granule::devices::slot::{BindRefused, Driver};
use granule::iommu::{BindError, DmaAddress};
use granule::mm::space::FaultError;
use granule::smp::this_cpu;
use granule_arch::descriptor::Protection;

use crate::devices::{Buffer, wrong_words as wrong};
use crate::devices_bound::{Bound, PAGE, START, at, fill, map, page, space, wrong_words};
use crate::harness::{Test, has, target_test};

target_test!(nvme_identifies_itself_and_reads_its_contents, needs("nvme"));
fn nvme_identifies_itself_and_reads_its_contents(t: &mut Test) {
    let Some(disk) = t.ok("a disk", nvme(this_cpu(), 0)) else { return };
    t.equal("serial number", disk.identity().serial(), "granule");
    t.equal("sectors", disk.identity().sectors, 8192);
    t.equal("a message", matches!(disk.vector(), Some(InterruptVector::MsiX { .. })), has("msi") == Some(true));
    let before = (disk.arrivals().count(), disk.arrivals().missed());
    for (sector, order, commands) in [(3, 0, 1), (5000, 2, 2), (8192 - 8, 0, 1)] {
        let Some(mut buffer) = Buffer::new(t, disk.dma(), order, !0) else { return };
        t.equal("read", disk.read(sector, buffer.address, buffer.bytes()), Ok(commands));
        t.equal("words that differ", wrong(buffer.words(), sector), 0);
    }
    if has("msi") == Some(true) {
        t.check("interrupts", disk.arrivals().count() >= before.0 + 4);
        t.equal("interrupts that are missing", disk.arrivals().missed(), before.1);
    }
}

target_test!(nvme_holds_what_is_written, needs("nvme"));
fn nvme_holds_what_is_written(t: &mut Test) {
    let Some(disk) = t.ok("a disk", nvme(this_cpu(), 0)) else { return };
    let (Some(mut out), Some(mut back)) = (Buffer::new(t, disk.dma(), 2, 0), Buffer::new(t, disk.dma(), 2, 0)) else {
        return;
    };
    for (sector, offset, bytes) in
        [(700, 0, PAGE), (800, PAGE - 512, 1024), (900, 4, 3 * PAGE), (1000, PAGE - 4, PAGE + 512)]
    {
        out.words().fill_with(|| t.random());
        back.words().fill(0);
        let (from, to) = (DmaAddress(out.address.0 + offset), DmaAddress(back.address.0 + offset));
        t.ok("written", disk.write(sector, from, bytes as u32));
        t.ok("read", disk.read(sector, to, bytes as u32));
        // In halves of words: addresses may be so.
        let range = offset as usize / 4..(offset + bytes) as usize / 4;
        let half = |words: &[u64], at: usize| (words[at / 2] >> (32 * (at % 2))) as u32;
        let differ = range.clone().filter(|&at| half(out.words(), at) != half(back.words(), at)).count();
        t.equal("words that differ", differ, 0);
        t.check("nothing before", range.start == 0 || half(back.words(), range.start - 1) == 0);
        t.equal("nothing behind", half(back.words(), range.end), 0);
        let sectors = bytes / u64::from(SECTOR);
        t.ok("what follows", disk.read(sector + sectors, back.address, SECTOR));
        t.equal("is as it was", wrong(&back.words()[..64], sector + sectors), 0);
    }
}

target_test!(nvme_refuses_what_it_does_not_have, needs("nvme"));
fn nvme_refuses_what_it_does_not_have(t: &mut Test) {
    let Some(disk) = t.ok("a disk", nvme(this_cpu(), 0)) else { return };
    let Some(buffer) = Buffer::new(t, disk.dma(), 0, 0) else { return };
    let (sectors, bytes) = (8192, PAGE as u32);
    for sector in [8192, 8192 - 7, u64::MAX] {
        let refused = Err(NvmeError::Sectors(SectorError::OutOfRange { sector, bytes, sectors }));
        t.equal("beyond", disk.read(sector, buffer.address, bytes), refused);
    }
    for bytes in [0, 100, (1 << 20) + 512] {
        t.equal("size", disk.write(0, buffer.address, bytes), Err(NvmeError::Sectors(SectorError::Size(bytes))));
    }
    for address in [buffer.address.0 + 2, u64::MAX - 511] {
        t.check("address", disk.read(0, DmaAddress(address), SECTOR).is_err());
    }
}

target_test!(nvme_is_given_a_processs_memory_and_nothing_else, needs("smmuv3 nvme"), limit(30));
fn nvme_is_given_a_processs_memory_and_nothing_else(t: &mut Test) {
    let Some(disk) = t.ok("a disk", nvme(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 8) else { return };
    let constant = START + 16 * PAGE;
    map(t, &space, constant, 1, Protection::READ);
    let Some(bound) = Bound::new(t, disk, &space) else { return };
    // None of the pages is there yet, and then all are.
    for (sector, tries) in [(64, 5..=64), (128, 4..=4)] {
        let done = t.ok("read", disk.read(sector, at(START), 8 * PAGE as u32));
        t.equal("words that differ", wrong_words(&space, START, 8, sector), 0);
        t.check("tries", tries.contains(&done.unwrap_or(0)));
    }
    fill(t, &space, START, Test::random);
    t.ok("written", disk.write(2000, at(START), PAGE as u32));
    t.ok("read", disk.read(2000, at(START + PAGE), PAGE as u32));
    t.check("the same", page(&space, START) == page(&space, START + PAGE));
    let (read_only, nothing) = (NvmeError::Fault(FaultError::NotAllowed), NvmeError::Fault(FaultError::NotMapped));
    t.equal("read-only", disk.read(64, at(constant), SECTOR), Err(read_only));
    t.equal("nothing", disk.write(3000, at(START + 8 * PAGE), SECTOR), Err(nothing));
    t.ok("and still", disk.read(64, at(START), SECTOR));
    let again = Err(BindRefused::Bind(BindError::Bound));
    t.equal("bound twice", disk.bind(this_cpu(), &space), again);
    drop(space);
    t.equal("of a process that has ended", disk.read(64, at(START), SECTOR), Err(NvmeError::Ended));
    drop(bound);
    let Some(mut buffer) = Buffer::new(t, disk.dma(), 0, !0) else { return };
    t.ok("read", disk.read(64, buffer.address, PAGE as u32));
    t.equal("words that differ", wrong(buffer.words(), 64), 0);
}
