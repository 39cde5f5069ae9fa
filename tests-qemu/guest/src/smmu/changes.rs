//! Accesses of a device after a change that takes something away: a copy, a protection, a page, a whole space.

use core::sync::atomic::{AtomicU64, Ordering};

use granule::devices::slot::Driver;
use granule::iommu::iommu;
use granule::kernel;
use granule::mm::counted::Counted;
use granule::mm::notifier::{Event, Range, Subscriber, Subscription};
use granule::mm::space::{Access, FaultError, MapRequest, MappedFile, Object, Seals, Sharing, SpaceRef, Terms, Used};
use granule::sched::spawn_kernel;
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;
use spin::mutex::SpinMutex;

use super::{
    DELIVERED, FILE_WORD, PAGE, READ_WRITE, Rig, START, map_answer, pages, refused, rig_with_a_file_of_the_initrd,
    space,
};
use crate::harness::{Test, target_test, wait_until};

/// A rig whose first page holds `value`, as the device has read.
fn rig_with(t: &mut Test, value: u64) -> Option<Rig> {
    let rig = Rig::new(t, 4, Sharing::Private)?;
    rig.store(t, START, value);
    t.equal("the device reads it", rig.device_load(START), Ok(value));
    Some(rig)
}

target_test!(a_device_sees_the_copy_of_a_page_after_a_fork, needs("smmuv3 virtio-blk"));
fn a_device_sees_the_copy_of_a_page_after_a_fork(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    let cpu = this_cpu();
    let Some(child) = t.ok("a child", rig.space.fork(cpu)) else { return };
    t.equal("the device reads what both have", rig.device_load(START), Ok(1));
    rig.store(t, START, 2);
    t.equal("the device reads the copy", rig.device_load(START), Ok(2));
    // The other way round: the device's own store makes the copy.
    let Some(second) = t.ok("another child", rig.space.fork(cpu)) else { return };
    t.equal("the device reads what both have", rig.device_load(START), Ok(2));
    t.equal("it writes, once it has a copy", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("the parent's", rig.load(START), DELIVERED);
    for (child, value) in [(&child, 1), (&second, 2)] {
        let mut bytes = [0; 8];
        t.ok("a child's page", child.read_bytes(cpu, START, &mut bytes));
        t.equal("is as it was", u64::from_le_bytes(bytes), value);
    }
}

target_test!(a_device_does_not_write_what_became_read_only, needs("smmuv3 virtio-blk"));
fn a_device_does_not_write_what_became_read_only(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    t.equal("the device writes", rig.device_store(START, DELIVERED), Ok(1));
    t.ok("read-only", rig.space.mprotect(START, 4 * PAGE, Protection::READ));
    t.equal("it does not write", rig.device_store(START, DELIVERED + 1), refused(FaultError::NotAllowed));
    t.equal("what is there", rig.load(START), DELIVERED);
    t.equal("it reads", rig.device_load(START), Ok(DELIVERED));
    t.ok("writable again", rig.space.mprotect(START, 4 * PAGE, READ_WRITE));
    t.equal("it writes, at once", rig.device_store(START, DELIVERED + 2), Ok(1));
    t.equal("what is there", rig.load(START), DELIVERED + 2);
}

target_test!(a_device_does_not_reach_what_was_unmapped, needs("smmuv3 virtio-blk"));
fn a_device_does_not_reach_what_was_unmapped(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    t.ok("unmapped", rig.space.munmap(this_cpu(), START, PAGE));
    t.equal("gone", rig.device_load(START), refused(FaultError::NotMapped));
    t.equal("what is beside it is there", rig.device_load(START + PAGE), Ok(0));
    t.equal("unmapped with its table", rig.space.munmap(this_cpu(), START, 4 * PAGE), Ok(()));
    t.equal("gone", rig.device_load(START + PAGE), refused(FaultError::NotMapped));
}

target_test!(a_device_finds_zeros_where_pages_were_given_up, needs("smmuv3 virtio-blk"));
fn a_device_finds_zeros_where_pages_were_given_up(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    t.ok("given up", rig.space.madvise_dontneed(this_cpu(), START, PAGE));
    t.equal("zeros", rig.device_load(START), Ok(0));
    // The page of zeros is shared: a store gets a page of its own.
    t.equal("a page of its own", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("what is there", rig.load(START), DELIVERED);
}

target_test!(a_device_does_not_reach_a_guard, needs("smmuv3 virtio-blk"));
fn a_device_does_not_reach_a_guard(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    let cpu = this_cpu();
    t.ok("a guard", rig.space.madvise_guard(cpu, START, PAGE, &|| false));
    t.equal("it does not read", rig.device_load(START), refused(FaultError::Guard));
    t.equal("nor write", rig.device_store(START, DELIVERED), refused(FaultError::Guard));
    t.equal("beside it", rig.device_load(START + PAGE), Ok(0));
    t.ok("no guard", rig.space.madvise_unguard(START, PAGE));
    t.equal("zeros", rig.device_load(START), Ok(0));
    t.equal("a page of its own", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("what is there", rig.load(START), DELIVERED);
    t.ok("populated", rig.space.madvise_populate(cpu, START + PAGE, PAGE, Access::Write, &|| false));
    t.equal("at once", rig.device_store(START + PAGE, DELIVERED), Ok(1));
}

target_test!(a_device_finds_zeros_where_a_hole_was_punched, needs("smmuv3 virtio-blk"));
fn a_device_finds_zeros_where_a_hole_was_punched(t: &mut Test) {
    let Some((rig, file)) = rig_with_a_file(t) else { return };
    t.ok("punched", file.punch_hole(this_cpu(), 0, PAGE));
    t.equal("zeros", rig.device_load(START), Ok(0));
    t.equal("what is beside it", rig.device_load(START + PAGE), Ok(2));
    // It was only read.
    t.equal("it writes to the new page", rig.device_store(START, DELIVERED), Ok(2));
    t.equal("what is there", rig.load(START), DELIVERED);
    // madvise_remove punches a hole by an address: the space that the device shares is not the caller's.
    t.ok("removed", rig.space.madvise_remove(this_cpu(), START, 2 * PAGE));
    t.equal("zeros", rig.device_load(START + PAGE), Ok(0));
}

target_test!(a_device_reads_a_file_whose_page_was_given_back, needs("smmuv3 virtio-blk"));
fn a_device_reads_a_file_whose_page_was_given_back(t: &mut Test) {
    let Some((rig, file)) = rig_with_a_file_of_the_initrd(t) else { return };
    let frame = rig.physical(START);
    let pass = || kernel().spaces.reclaim(this_cpu(), usize::MAX, Used::Age, &|| false);
    t.equal("it was used", (pass(), rig.entry(START).is_young()), (0, false));
    t.check("it is given back", pass() != 0);
    t.equal("the file has no page", file.pages(), 0);
    t.check("nor has the process", !rig.entry(START).is_valid());
    t.equal("the device reads the file", rig.device_word(START, 1), Ok(FILE_WORD));
    t.equal("from a page of its own", rig.entry(START).is_valid(), true);
    t.check("which is there since then", rig.physical(START) != frame || file.pages() == 1);
}

target_test!(a_device_does_not_reach_what_its_file_has_lost, needs("smmuv3 virtio-blk"));
fn a_device_does_not_reach_what_its_file_has_lost(t: &mut Test) {
    let Some((rig, file)) = rig_with_a_file(t) else { return };
    t.ok("shorter", file.truncate(this_cpu(), PAGE));
    t.equal("behind the end", rig.device_load(START + PAGE), refused(FaultError::Unusable));
    t.equal("nor written", rig.device_store(START + PAGE, DELIVERED), refused(FaultError::Unusable));
    t.equal("what is left", rig.device_load(START), Ok(1));
    t.ok("longer", file.truncate(this_cpu(), 4 * PAGE));
    t.equal("zeros", rig.device_load(START + PAGE), Ok(0));
    // A copy goes with the file's end too, and stays where a hole is punched.
    let copied = MappedFile { object: &file, first_page: 0, may_write: true };
    let request = MapRequest { sharing: Sharing::Private, ..pages(COPIED, 4) };
    let terms = Terms { file: Some(copied), ..Terms::NONE };
    t.ok("private", rig.space.mmap_within(this_cpu(), &request, &terms, &|| false));
    rig.store(t, COPIED + PAGE, 7);
    t.equal("the copy", rig.device_load(COPIED + PAGE), Ok(7));
    t.ok("punched", file.punch_hole(this_cpu(), 0, 4 * PAGE));
    t.equal("the copy", rig.device_load(COPIED + PAGE), Ok(7));
    t.ok("empty", file.truncate(this_cpu(), 0));
    t.equal("no copy", rig.device_load(COPIED + PAGE), refused(FaultError::Unusable));
}

/// Where a file is mapped for a second time.
const COPIED: VirtAddr = VirtAddr(0x80_0000);

/// A rig whose pages are those of a file of four: the first two hold their numbers, as the device has read.
fn rig_with_a_file(t: &mut Test) -> Option<(Rig, Counted<Object>)> {
    let cpu = this_cpu();
    let file = t.ok("a file", kernel().spaces.create_object(cpu, 4 * PAGE, Some(&[]), Seals(0)))?;
    let space = t.ok("a space", kernel().spaces.create(cpu))?;
    let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
    let request = MapRequest { sharing: Sharing::Shared, ..pages(START, 4) };
    t.ok("mapped", space.mmap_within(cpu, &request, &terms, &|| false))?;
    map_answer(t, &space)?;
    let rig = Rig::bound_to(t, space)?;
    for (page, value) in [(START, 1), (START + PAGE, 2)] {
        rig.store(t, page, value);
        t.equal("the device reads it", rig.device_load(page), Ok(value));
    }
    Some((rig, file))
}

target_test!(a_device_sees_the_space_that_it_was_bound_to_last, needs("smmuv3 virtio-blk"));
fn a_device_sees_the_space_that_it_was_bound_to_last(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    let cpu = this_cpu();
    t.ok("unbound", rig.disk.unbind(cpu));
    // Its own tables show it nothing there.
    t.equal("nothing of the space", rig.device_load(START), refused(FaultError::NotMapped));
    let Some(other) = space(t, 4, Sharing::Private) else { return };
    t.ok("a store", other.write_bytes(cpu, START, &2_u64.to_le_bytes()));
    let Some(second) = Rig::bound_to(t, other) else { return };
    t.equal("the other space", second.device_load(START), Ok(2));
    t.check("bound once", rig.disk.bind(cpu, &rig.space).is_err());
    drop(second);
    t.ok("bound again", rig.disk.bind(cpu, &rig.space));
    t.equal("the first space", rig.device_load(START), Ok(1));
}

/// The ASID under which the SMMU has the binding of this stream.
fn asid_of(stream: Option<u32>) -> Option<u16> {
    let mut found = None;
    iommu()?.for_each_device(|device| {
        if Some(device.stream) == stream {
            found = device.bound;
        }
    });
    found
}

target_test!(a_reused_asid_has_no_translation_of_its_last_space, needs("smmuv3 virtio-blk"), limit(60));
fn a_reused_asid_has_no_translation_of_its_last_space(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    let (cpu, stream) = (this_cpu(), rig.disk.device().dma().stream());
    let asid = asid_of(stream);
    t.check("it has a number", asid.is_some());
    t.ok("unbound", rig.disk.unbind(cpu));
    let Some(other) = space(t, 4, Sharing::Private) else { return };
    t.ok("a store", other.write_bytes(cpu, START, &2_u64.to_le_bytes()));
    // Numbers are handed out in turn: at some time it is this one's again.
    for _ in 0..=u16::MAX {
        t.ok("bound", rig.disk.bind(cpu, &other));
        if asid_of(stream) == asid {
            break;
        }
        t.ok("unbound", rig.disk.unbind(cpu));
    }
    t.equal("the same number", asid_of(stream), asid);
    let second = Rig { disk: rig.disk, space: other };
    t.equal("the other space", second.device_load(START), Ok(2));
}

/// Stores to a page that was just replaced, before the change is over, and has the device read it.
struct Between {
    calls: AtomicU64,
}

/// The rig of [`Between`].
static RIG: SpinMutex<Option<Rig>> = SpinMutex::new(None);
/// The value that the device has read there; 0 before.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// A thread of its own: the one that changes the page has the areas, and a device's requests are acquired before these.
extern "C" fn look(_: usize) {
    let seen = RIG.lock().as_ref().and_then(|rig| rig.device_load(START).ok());
    SEEN.store(seen.unwrap_or(u64::MAX), Ordering::Release);
}

impl Subscriber for Between {
    fn invalidate_range_end(&self, range: &Range) {
        if range.event != Event::Clear || range.start != START {
            return;
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let store = |rig: &Rig| rig.space.write_bytes(this_cpu(), START, &3_u64.to_le_bytes()).is_ok();
        if RIG.lock().as_ref().is_some_and(store) && spawn_kernel(this_cpu(), "look", look, 0).is_ok() {
            wait_until(|| SEEN.load(Ordering::Acquire) != 0);
        }
    }
}

target_test!(a_device_does_not_see_the_old_page_beside_the_new_one, needs("smmuv3 virtio-blk"));
fn a_device_does_not_see_the_old_page_beside_the_new_one(t: &mut Test) {
    let Some(rig) = rig_with(t, 1) else { return };
    let Some(child) = t.ok("a child", rig.space.fork(this_cpu())) else { return };
    t.equal("the device reads what both have", rig.device_load(START), Ok(1));
    let space = rig.space.clone();
    *RIG.lock() = Some(rig);
    let between = Between { calls: AtomicU64::new(0) };
    // Told before the SMMU is.
    type Joined = Subscription<Between, SpaceRef>;
    let Some(between) = t.ok("to join", Joined::new(space.clone(), between, 1)) else { return };
    let first = first_frame(&space);
    t.ok("a store", space.write_bytes(this_cpu(), START, &2_u64.to_le_bytes()));
    t.check("the page was replaced", first_frame(&space) != first);
    t.equal("looks", between.calls.load(Ordering::Relaxed), 1);
    t.equal("what the device read of what was stored in between", SEEN.swap(0, Ordering::Relaxed), 3);
    drop(between);
    let rig = RIG.lock().take();
    drop((rig, child));
}

/// The frame of the first page.
fn first_frame(space: &SpaceRef) -> Option<PhysAddr> {
    space.tables().translate(START).map(|found| found.descriptor.address())
}
