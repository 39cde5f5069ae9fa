//! Pages of the kernel above all that programs may map.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, MemoryType, bits};

use super::super::range::{RESERVED_END, RESERVED_START, USER_END};
use super::super::{Access, FaultError, Space, handle_fault};
use super::{PAGE, Rig, areas, private};
use crate::mm::notifier::Subscription;
use crate::mm::notifier::recording::{Notified, Recording};
use crate::mm::space::{MapRequest, Placement, SpaceRef};

/// Registers, which have no frame record.
const DOORBELL: PhysAddr = PhysAddr(0x0809_0000);

fn entry(space: &Space, page: VirtAddr) -> Descriptor {
    space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

fn show(rig: &Rig, space: &Space, page: VirtAddr) {
    let shown = space.between_changes(|pages| pages.show(&rig.cpu, page, DOORBELL, MemoryType::DeviceNGnRE));
    assert_eq!(shown, Some(Ok(())));
}

fn hide(rig: &Rig, space: &Space, page: VirtAddr) {
    space.between_changes(|pages| pages.hide(&rig.cpu, page)).unwrap();
}

#[test]
fn a_reserved_page_is_the_kernels_and_no_area() {
    let rig = Rig::new(4);
    let space = rig.space();
    let used = rig.used();
    show(&rig, &space, RESERVED_START);
    let shown = entry(&space, RESERVED_START);
    assert_eq!(shown.address(), DOORBELL);
    assert_eq!(shown.memory_index(), MemoryType::DeviceNGnRE as u8);
    assert!(shown.is_valid() && shown.is_writable() && shown.is_special());
    let never = bits::UXN | bits::PXN | bits::NG | bits::AF;
    assert_eq!(shown.0 & (bits::USER | never), never, "not for EL0, not global, nothing to execute, nothing to set");

    assert!(areas(&space).is_empty());
    for access in [Access::Read, Access::Write, Access::Execute] {
        assert_eq!(handle_fault(&space, &rig.cpu, RESERVED_START, access), Err(FaultError::NotMapped));
    }
    assert!(space.read_bytes(&rig.cpu, RESERVED_START, &mut [0]).is_err());
    let fixed = MapRequest { placement: Placement::Fixed(RESERVED_START), ..private(1) };
    assert!(space.mmap(&rig.cpu, &fixed).is_err());
    // As of any range without areas: nothing is unmapped.
    assert_eq!(space.munmap(&rig.cpu, RESERVED_START, PAGE), Ok(()));
    assert_eq!(entry(&space, RESERVED_START), shown);

    hide(&rig, &space, RESERVED_START);
    assert_eq!(entry(&space, RESERVED_START), Descriptor::EMPTY);
    assert_eq!((rig.used(), space.table_frames()), (used, 1), "its tables are free");
}

#[test]
fn sharers_of_the_tables_are_notified_that_a_reserved_page_is_unmapped() {
    let rig = Rig::new(4);
    let space = rig.space();
    show(&rig, &space, RESERVED_END - PAGE);
    let listener = Subscription::<_, SpaceRef>::new(space.clone(), Recording::default(), 0).unwrap();
    hide(&rig, &space, RESERVED_END - PAGE);
    let notified: Vec<_> = listener.take().iter().map(|call| (call.notified, call.range)).collect();
    assert!(notified.contains(&(Notified::SecondaryTlbs, (RESERVED_END.0 - PAGE, RESERVED_END.0))), "{notified:?}");
}

#[test]
fn a_child_does_not_have_it_and_a_space_that_ends_leaves_its_frame_alone() {
    let rig = Rig::new(4);
    let used = rig.used();
    let space = rig.space();
    let frame = rig.frames.alloc_zeroed(&rig.cpu).unwrap();
    let shown = space.between_changes(|pages| pages.show(&rig.cpu, RESERVED_START, frame, MemoryType::Normal));
    assert_eq!(shown, Some(Ok(())));
    show(&rig, &space, RESERVED_START + PAGE);
    let top = MapRequest { placement: Placement::Fixed(USER_END - PAGE), ..private(1) };
    space.mmap(&rig.cpu, &top).unwrap();
    rig.write(&space, USER_END - PAGE, 1);
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(entry(&child, RESERVED_START), Descriptor::EMPTY);
    assert!(entry(&child, USER_END - PAGE).is_valid());
    drop((space, child));
    assert_eq!(rig.used(), used + 1, "the caller still owns the frame");
    rig.frames.free(&rig.cpu, frame);
}

/// The tables above a reserved page are needed while it is there, whatever programs unmap beside it; and no longer.
#[test]
fn programs_cannot_unmap_the_tables_of_a_reserved_page() {
    let rig = Rig::new(4);
    let space = rig.space();
    for reserved in [true, false] {
        if reserved {
            show(&rig, &space, RESERVED_START);
        }
        let top = MapRequest { placement: Placement::Fixed(USER_END - PAGE), ..private(1) };
        space.mmap(&rig.cpu, &top).unwrap();
        rig.write(&space, USER_END - PAGE, 1);
        space.munmap(&rig.cpu, USER_END - PAGE, PAGE).unwrap();
        if reserved {
            assert!(entry(&space, RESERVED_START).is_valid());
            hide(&rig, &space, RESERVED_START);
        }
        assert_eq!(space.table_frames(), 1);
    }
}
