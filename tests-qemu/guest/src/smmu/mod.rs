//! Devices that use a process's addresses: what they see after each change of its tables.
//!
//! The device is a disk. It reads memory to write a sector, and writes memory to read one; so each access is seen by
//! data, and **data alone is compared: its status reports success either way**.
//!
//! A translation that is not cached cannot be stale. So each test first has the device *read* the page and checks the
//! answer: an access that is refused is not cached, and a test without that look would pass with everything broken.

mod account;
mod blocks;
mod changes;
mod commands;
mod dirty;
mod ends;
mod migrate;
mod random;
mod registers;
pub(crate) mod shortage;

use granule::devices::disk::SECTOR;
use granule::devices::edu::edu;
use granule::devices::slot::{BindRefused, Driver};
use granule::devices::virtio::requests::RequestError;
use granule::devices::virtio_blk::{BlkError, VirtioBlk, blk};
use granule::iommu::{BindError, DmaAddress};
use granule::kernel;
use granule::mm::counted::Counted;
use granule::mm::space::{
    Access, FaultError, MapRequest, MappedFile, Object, Placement, Populate, Seals, Sharing, SpaceRef, Terms,
    handle_fault,
};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};

use crate::harness::{Test, target_test};

const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);
/// The first page of a test's memory.
pub(crate) const START: VirtAddr = VirtAddr(0x40_0000);
/// A page for the contents that the device has read; in an area of its own, which does not change.
const ANSWER: VirtAddr = VirtAddr(0x200_0000);
/// A sector that the device writes with what it reads from memory.
const WRITTEN: u64 = 2048;
/// Sectors from here on have their initial contents: each of their words is their number. No test of a boot writes
/// them.
pub(crate) const DELIVERED: u64 = 4096;

/// A disk that uses the addresses of a space.
pub(crate) struct Rig {
    pub(crate) disk: &'static VirtioBlk,
    pub(crate) space: SpaceRef,
}

/// `pages` private pages from `start` on.
fn pages(start: VirtAddr, pages: u64) -> MapRequest {
    MapRequest {
        placement: Placement::Fixed(start),
        bytes: pages * PAGE,
        protection: READ_WRITE,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    }
}

/// A space with `pages` pages at [`START`], of which none is there yet.
pub(crate) fn space(t: &mut Test, count: u64, sharing: Sharing) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    t.ok("its pages", space.mmap(this_cpu(), &MapRequest { sharing, ..pages(START, count) }))?;
    map_answer(t, &space)?;
    Some(space)
}

/// Maps [`ANSWER`]. Shared: no fork takes it from the device. Written, so that it is dirty.
fn map_answer(t: &mut Test, space: &SpaceRef) -> Option<()> {
    let answer = MapRequest { sharing: Sharing::Shared, ..pages(ANSWER, 1) };
    t.ok("a page for answers", space.mmap(this_cpu(), &answer))?;
    t.ok("it is there", space.write_bytes(this_cpu(), ANSWER, &[0]))
}

impl Rig {
    /// A disk that is bound to a space with `count` pages at [`START`].
    pub(crate) fn new(t: &mut Test, count: u64, sharing: Sharing) -> Option<Self> {
        let space = space(t, count, sharing)?;
        Self::bound_to(t, space)
    }

    pub(crate) fn bound_to(t: &mut Test, space: SpaceRef) -> Option<Self> {
        let disk = t.ok("a disk", blk(this_cpu(), 0))?;
        t.ok("bound", disk.bind(this_cpu(), &space))?;
        Some(Self { disk, space })
    }

    /// The CPU's store to the first word of a page.
    pub(crate) fn store(&self, t: &mut Test, page: VirtAddr, value: u64) {
        t.ok("a store", self.space.write_bytes(this_cpu(), page, &value.to_le_bytes()));
    }

    /// The word that the CPU reads at the beginning of a page.
    pub(crate) fn load(&self, page: VirtAddr) -> u64 {
        let mut bytes = [0; 8];
        let read = self.space.read_bytes(this_cpu(), page, &mut bytes);
        read.map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
    }

    /// The word that the device reads at the beginning of a page.
    pub(crate) fn device_load(&self, page: VirtAddr) -> Result<u64, BlkError> {
        self.disk.write(WRITTEN, DmaAddress(page.0), SECTOR)?;
        self.disk.read(WRITTEN, DmaAddress(ANSWER.0), SECTOR)?;
        Ok(self.load(ANSWER))
    }

    /// The word at `index` of what the device reads there.
    pub(crate) fn device_word(&self, page: VirtAddr, index: u64) -> Result<u64, BlkError> {
        self.device_load(page)?;
        Ok(self.load(ANSWER + 8 * index))
    }

    /// The device stores a number, a sector's, to the first words of a page; how often it had to try.
    pub(crate) fn device_store(&self, page: VirtAddr, number: u64) -> Result<u32, BlkError> {
        Ok(self.disk.read(number, DmaAddress(page.0), SECTOR)?.tries)
    }

    /// The entry of a page.
    pub(crate) fn entry(&self, page: VirtAddr) -> Descriptor {
        self.space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
    }

    /// The memory that a page is.
    pub(crate) fn physical(&self, page: VirtAddr) -> PhysAddr {
        self.entry(page).address()
    }

    /// Makes the first page read-only although its area is not, with `value` in it and one reference to its frame, as
    /// after a fork whose child has exited; then the device reads it.
    pub(crate) fn read_only_page(&self, t: &mut Test, value: u64) {
        self.store(t, START, value);
        drop(t.ok("a child", self.space.fork(this_cpu())));
        t.check("the page is read-only", self.entry(START).is_valid() && !self.entry(START).may_be_written());
        t.equal("the device reads it", self.device_load(START), Ok(value));
    }
}

/// The second word of the file of [`rig_with_a_file_of_the_initrd`].
pub(crate) const FILE_WORD: u64 = u64::from_le_bytes(*b"the file");

/// A rig whose first page is that of a file that can be obtained again, as the device has read.
pub(crate) fn rig_with_a_file_of_the_initrd(t: &mut Test) -> Option<(Rig, Counted<Object>)> {
    static CONTENTS: [u8; 16] = *b"a word, the file";
    let cpu = this_cpu();
    let size = CONTENTS.len() as u64;
    let file = t.ok("a file", kernel().spaces.create_object(cpu, size, Some(&CONTENTS), Seals(0)))?;
    let space = t.ok("a space", kernel().spaces.create(cpu))?;
    let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: false }), ..Terms::NONE };
    let request = MapRequest { sharing: Sharing::Shared, protection: Protection::READ, ..pages(START, 1) };
    t.ok("mapped", space.mmap_within(cpu, &request, &terms, &|| false))?;
    map_answer(t, &space)?;
    let rig = Rig::bound_to(t, space)?;
    t.equal("the device reads it", rig.device_word(START, 1), Ok(FILE_WORD));
    Some((rig, file))
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It was, but for a test that has done so itself.
        let _ = self.disk.unbind(this_cpu());
    }
}

/// A transfer that is not allowed.
fn refused<T>(why: FaultError) -> Result<T, BlkError> {
    Err(BlkError::Request(RequestError::Fault(why)))
}

target_test!(a_bound_device_reaches_what_the_process_has, needs("smmuv3 virtio-blk"));
fn a_bound_device_reaches_what_the_process_has(t: &mut Test) {
    let Some(rig) = Rig::new(t, 4, Sharing::Private) else { return };
    let arrivals = rig.disk.device().arrivals();
    let (arrived, missed) = (arrivals.count(), arrivals.missed());
    for page in [START, START + 3 * PAGE] {
        rig.store(t, page, page.0);
        t.equal("the device reads", rig.device_load(page), Ok(page.0));
        t.equal("the device writes, at once", rig.device_store(page, DELIVERED), Ok(1));
        t.equal("the CPU reads", rig.load(page), DELIVERED);
    }
    // An untouched page: the device's fault makes it, as the CPU's would.
    t.equal("zeros", rig.device_load(START + PAGE), Ok(0));
    t.equal("once more than at once", rig.device_store(START + 2 * PAGE, DELIVERED + 1), Ok(2));
    t.equal("the CPU reads", rig.load(START + 2 * PAGE), DELIVERED + 1);
    t.equal("behind the area", rig.device_load(START + 4 * PAGE), refused(FaultError::NotMapped));
    // Its messages are translated by the same tables.
    t.check("interrupts", arrivals.count() > arrived);
    t.equal("interrupts that are missing", arrivals.missed(), missed);
}

target_test!(a_device_writes_as_soon_as_the_cpu_could, needs("smmuv3 virtio-blk"));
fn a_device_writes_as_soon_as_the_cpu_could(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
    rig.read_only_page(t, 7);
    let before = rig.physical(START);
    rig.store(t, START, 8);
    t.check("the entry was upgraded in place", rig.entry(START).is_writable() && rig.physical(START) == before);
    t.equal("the device writes, at once", rig.device_store(START, DELIVERED), Ok(1));
    t.equal("it has arrived", rig.load(START), DELIVERED);
}

target_test!(a_device_upgrades_a_page_by_its_fault, needs("smmuv3 virtio-blk"));
fn a_device_upgrades_a_page_by_its_fault(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
    rig.read_only_page(t, 7);
    let before = rig.physical(START);
    t.equal("the first retry", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("it has arrived", rig.load(START), DELIVERED);
    t.check("in place", rig.physical(START) == before);
}

target_test!(every_device_is_notified_of_its_own_process, needs("smmuv3 virtio-blk edu"), limit(30));
fn every_device_is_notified_of_its_own_process(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    // Its rings would be the disk's to write, and the other way round.
    t.equal("a second device", device.bind(this_cpu(), &rig.space), Err(BindRefused::Bind(BindError::SpaceInUse)));
    let Some(space) = space(t, 1, Sharing::Private) else { return };
    let Some(()) = t.ok("bound", device.bind(this_cpu(), &space)) else { return };
    // Its pages are looked at by the CPU alone.
    let other = Rig { disk: rig.disk, space };
    rig.read_only_page(t, 7);
    other.store(t, START, 7);
    drop(t.ok("a child", other.space.fork(this_cpu())));
    t.check("the page is read-only", !other.entry(START).may_be_written());
    let at = DmaAddress(START.0);
    t.equal("edu reads it", device.copy_in(at, 0, 8), Ok(1));
    rig.store(t, START, 8);
    other.store(t, START, 8);
    t.equal("edu writes, at once", device.copy_out(0, at, 8), Ok(1));
    t.equal("it has arrived", other.load(START), 7);
    t.equal("the disk writes, at once", rig.device_store(START, DELIVERED), Ok(1));
    t.equal("it has arrived", rig.load(START), DELIVERED);
    t.ok("unbound", device.unbind(this_cpu()));
    t.ok("the other process's", other.disk.unbind(this_cpu()));
    t.ok("a space is bound again", device.bind(this_cpu(), &rig.space));
    t.ok("unbound", device.unbind(this_cpu()));
}

/// A page of a shared area that was read and not written: the CPU may write it, and the hardware would note that by
/// itself. The SMMU notes nothing, and takes it for read-only.
fn writable_clean_page(t: &mut Test, rig: &Rig) {
    t.ok("read", handle_fault(&rig.space, this_cpu(), START, Access::Read));
    let entry = rig.entry(START);
    t.check("the entry is writable and clean", entry.may_be_written() && !entry.is_writable());
    t.equal("the device reads it", rig.device_load(START), Ok(0));
}

target_test!(a_clean_page_that_may_be_written_is_written_by_a_device, needs("smmuv3 virtio-blk"));
fn a_clean_page_that_may_be_written_is_written_by_a_device(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Shared) else { return };
    writable_clean_page(t, &rig);
    t.equal("the first retry", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("it has arrived", rig.load(START), DELIVERED);
    t.check("the entry is dirty", rig.entry(START).is_writable());
}
