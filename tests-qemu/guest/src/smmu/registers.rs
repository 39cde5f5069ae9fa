//! Registers that a process has mapped, as a device sees them that shares its addresses. A frame stands for them: what the
//! device reads and writes there is compared.

#![allow(unsafe_code, reason = "looks at a frame of its own by the linear map")]

use granule::devices::slot::Driver;
use granule::kernel;
use granule::mm::counted::Counted;
use granule::mm::space::{Access, FaultError, MapRequest, MappedFile, Object, Sharing, Terms, handle_fault};
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;

use super::{DELIVERED, PAGE, READ_WRITE, Rig, START, pages, refused};
use crate::harness::{Test, target_test};

/// Where the registers are mapped: beside the rig's memory.
const AT: VirtAddr = VirtAddr(START.0 + 16 * PAGE);

/// A frame that stands for registers, until this is dropped.
struct Registers {
    frame: PhysAddr,
    object: Counted<Object>,
}

impl Registers {
    /// Registers with this in their first word, mapped by the rig's space.
    fn new(t: &mut Test, rig: &Rig, value: u64) -> Option<Self> {
        let cpu = this_cpu();
        let object = t
            .ok("a frame", kernel().frames.alloc_zeroed(cpu))
            .map(|frame| (frame, kernel().spaces.create_registers(cpu, frame)));
        let (frame, object) = object?;
        let this = Self { frame, object: t.ok("registers", object)? };
        this.put(value);
        let request = MapRequest { sharing: Sharing::Shared, ..pages(AT, 1) };
        let file = Some(MappedFile { object: &this.object, first_page: 0, may_write: true });
        t.ok("mapped", rig.space.mmap_within(cpu, &request, &Terms { file, ..Terms::NONE }, &|| false))?;
        Some(this)
    }

    fn word(&self) -> *mut u64 {
        kernel().frames.linear().address(self.frame).as_ptr()
    }

    fn put(&self, value: u64) {
        // SAFETY: the frame is this test's, and in the linear map.
        unsafe { self.word().write_volatile(value) };
    }

    fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.word().read_volatile() }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        self.object.revoke(this_cpu());
        kernel().frames.free(this_cpu(), self.frame);
    }
}

target_test!(a_device_writes_to_registers_as_soon_as_the_cpu_could, needs("smmuv3 virtio-blk"));
fn a_device_writes_to_registers_as_soon_as_the_cpu_could(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
    let Some(registers) = Registers::new(t, &rig, 7) else { return };
    t.equal("the device reads them", rig.device_load(AT), Ok(7));
    t.check("read-only", !rig.entry(AT).may_be_written());
    t.ok("a store of the CPU's", handle_fault(&rig.space, this_cpu(), AT, Access::Write));
    t.equal("it writes to registers, at once", rig.device_store(AT, DELIVERED), Ok(1));
    t.equal("it has arrived", registers.get(), DELIVERED);
    t.ok("read-only", rig.space.mprotect(AT, PAGE, Protection::READ));
    t.equal("it does not write", rig.device_store(AT, DELIVERED + 1), refused(FaultError::NotAllowed));
    t.ok("writable", rig.space.mprotect(AT, PAGE, READ_WRITE));
    t.check("by its own fault", rig.device_store(AT, DELIVERED + 1).is_ok_and(|tries| tries > 1));
    t.equal("it has arrived", registers.get(), DELIVERED + 1);
}

target_test!(a_device_does_not_reach_registers_that_were_revoked, needs("smmuv3 virtio-blk"));
fn a_device_does_not_reach_registers_that_were_revoked(t: &mut Test) {
    let cpu = this_cpu();
    for is_unmapped in [false, true] {
        let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
        let Some(registers) = Registers::new(t, &rig, 7) else { return };
        t.check("the device writes to them", rig.device_store(AT, DELIVERED).is_ok());
        let why = if is_unmapped {
            t.ok("unmapped", rig.space.munmap(cpu, AT, PAGE));
            FaultError::NotMapped
        } else {
            registers.object.revoke(cpu);
            FaultError::Unusable
        };
        registers.put(9);
        t.equal("registers that are gone", rig.device_store(AT, DELIVERED), refused(why));
        t.equal("they are as they were", registers.get(), 9);
        t.ok("the disk is unbound", rig.disk.unbind(cpu));
    }
}
