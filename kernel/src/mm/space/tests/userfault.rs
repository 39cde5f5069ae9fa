//! Pages that a pager serves, and what stays write-protected.

use super::*;
use crate::mm::counted::Counted;
use crate::mm::space::{Content, Enrolment, FaultError, Features, FillError, Userfaultfd};

const BOTH: Enrolment = Enrolment { missing: true, write_protected: true };

fn pager(space: &SpaceRef, features: u64) -> Counted<Userfaultfd> {
    let pager = Userfaultfd::new(space, false, 0).unwrap();
    pager.agree(Features(features)).unwrap();
    pager
}

#[test]
fn what_is_missing_is_asked_for() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 4);
    let pager = pager(&space, Features::ALL.0);
    Userfaultfd::register(&pager, &rig.cpu, start, 4 * PAGE, BOTH).unwrap();
    assert_eq!(handle_fault(&space, &rig.cpu, start, Access::Read), Err(FaultError::Userfault));
    assert_eq!(pager.fill(&rig.cpu, &space, start, PAGE, Content::Zeros), (PAGE, Ok(())));
    assert_eq!(pager.fill(&rig.cpu, &space, start, PAGE, Content::Zeros), (0, Err(FillError::Exists)));
    assert_eq!(handle_fault(&space, &rig.cpu, start + PAGE, Access::Write), Err(FaultError::Userfault));
    pager.close();
}
