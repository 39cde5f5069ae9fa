//! Entries that the CPU's hardware makes writable (TCR_EL1.HD): no TLBI follows, so the SMMU keeps the read-only entry
//! until its device faults.

use granule::kernel;
use granule::mm::space::{Access, MapRequest, Sharing, handle_fault};
use granule::platform::errata::DirtyState;
use granule::smp::this_cpu;
use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;

use super::{DELIVERED, PAGE, Rig, map_answer, pages};
use crate::harness::{Test, target_test};
use crate::user;

/// The test's pages, beside those of the programs of [`user`].
const CLEAN: VirtAddr = VirtAddr(0x80_0000);
/// How many.
const PAGES: u64 = 4;

/// A disk that is bound to a space with a program and [`PAGES`] shared pages from [`CLEAN`] on, which are writable and
/// clean; the disk has read each.
fn rig(t: &mut Test) -> Option<Rig> {
    t.equal("dirty state", kernel().features().dirty_state, DirtyState::Hardware);
    let space = user::make_space(t)?;
    let shared = MapRequest { sharing: Sharing::Shared, ..pages(CLEAN, PAGES) };
    t.ok("shared pages", space.mmap(this_cpu(), &shared))?;
    map_answer(t, &space)?;
    let rig = Rig::bound_to(t, space)?;
    for page in (0..PAGES).map(|page| CLEAN + page * PAGE) {
        t.ok("read", handle_fault(&rig.space, this_cpu(), page, Access::Read));
        let entry = rig.entry(page);
        t.check("the entry is writable and clean", entry.may_be_written() && !entry.is_writable());
        t.equal("the device reads it", rig.device_load(page), Ok(0));
    }
    Some(rig)
}

/// EL0 stores to `page`, and the hardware alone changes its entry: DIRTY is the software's.
fn store(t: &mut Test, rig: &Rig, page: VirtAddr) {
    let clean = rig.entry(page);
    user::store(t, &rig.space, page);
    t.equal("it has arrived", rig.load(page), page.0);
    t.equal("what the store changed in the entry", rig.entry(page).0 ^ clean.0, bits::RDONLY);
}

target_test!(what_the_hardware_made_writable_is_written_by_a_device, needs("smmuv3 virtio-blk hafdbs"), limit(60));
fn what_the_hardware_made_writable_is_written_by_a_device(t: &mut Test) {
    let Some(rig) = rig(t) else { return };
    for (page, number) in (0..PAGES).map(|page| CLEAN + page * PAGE).zip(DELIVERED..) {
        store(t, &rig, page);
        t.equal("the device reads it", rig.device_load(page), Ok(page.0));
        t.equal("the first retry", rig.device_store(page, number), Ok(2));
        t.equal("it has arrived", rig.load(page), number);
        t.equal("from then on at once", rig.device_store(page, number + 1), Ok(1));
        t.equal("it has arrived", rig.load(page), number + 1);
    }
}
