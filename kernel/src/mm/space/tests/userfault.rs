//! Pages that a pager serves, and what stays write-protected.

mod marks;
mod minor;
mod moved;
mod random;
mod waits;

use super::*;
use crate::mm::counted::Counted;
use crate::mm::space::scan::{Scan, ScanRequest};
use crate::mm::space::{Content, Enrolment, FaultError, Features, FillError, Mark, Reason, Userfaultfd};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const BOTH: Enrolment = Enrolment { missing: true, minor: false, write_protected: true };
const WP: Enrolment = Enrolment { missing: false, minor: false, write_protected: true };

fn pager(space: &SpaceRef, features: u64) -> Counted<Userfaultfd> {
    let pager = Userfaultfd::new(space, false, 0).unwrap();
    pager.agree(Features(features)).unwrap();
    pager
}

/// Makes `access` to `page` until that is permitted, or an error.
fn access(space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> Result<(), FaultError> {
    for _ in 0..8 {
        handle_fault(space, cpu, page, access)?;
        let found = space.tables().translate(page);
        if found.is_some_and(|found| Space::permits_entry(found.descriptor, access)) {
            return Ok(());
        }
    }
    panic!("an access of {page} faults for ever");
}

/// A request for the pages that have all of the categories `required`, which protects them.
fn wanted(required: u64) -> ScanRequest {
    ScanRequest {
        inverted: 0,
        required,
        any: 0,
        returned: u64::MAX,
        protects: true,
        is_strict: false,
        has_regions: true,
    }
}

/// The pages that a scan finds of so many, which have all categories of `required`; it protects what was written.
fn scanned(space: &Space, cpu: &Cpu, (start, pages): (VirtAddr, u64), required: u64) -> Vec<(VirtAddr, u64)> {
    let mut scan = Scan::new(wanted(required), start, start + pages * PAGE, u64::MAX, u64::MAX);
    let mut found = Vec::new();
    while !scan.is_done() {
        space.scan(cpu, &mut scan).unwrap();
        for region in scan.regions() {
            found.extend(
                (region.start.0..region.end.0).step_by(PAGE as usize).map(|at| (VirtAddr(at), region.categories)),
            );
        }
        assert!(scan.stored());
    }
    found
}

fn store(space: &Space, cpu: &Cpu, page: VirtAddr) -> Result<(), FaultError> {
    access(space, cpu, page, Access::Write)
}

#[test]
fn what_is_missing_is_asked_for() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 4);
    let pager = pager(&space, Features::ALL.0);
    Userfaultfd::register(&pager, &rig.cpu, start, 4 * PAGE, BOTH).unwrap();
    assert_eq!(handle_fault(&space, &rig.cpu, start, Access::Read), Err(FaultError::Userfault));
    assert_eq!(pager.fill(&rig.cpu, Some(&space), start, PAGE, Content::Zeros), (PAGE, Ok(())));
    assert_eq!(pager.fill(&rig.cpu, Some(&space), start, PAGE, Content::Zeros), (0, Err(FillError::Exists)));
    assert_eq!(handle_fault(&space, &rig.cpu, start + PAGE, Access::Write), Err(FaultError::Userfault));
    pager.close();
}
