//! `set_direct_map_*`: what each call makes of a page, and what it leaves to the invalidation that follows.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::bits;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_pgtable::host::Operation;
use granule_pgtable::{Change, Flush, Lazy, PageRange};

use super::super::KernelSpace;
use super::super::policy::SplitMode;
use super::super::record::record;
use super::super::set_memory::{SetMemoryError, Validity};
use super::PAGE;
use super::split::linear;
use crate::mm::layout;
use crate::platform::features::branch;

const FRAME: PhysAddr = PhysAddr(0x1d_7000);
const MANAGED: &[u16] = &[branch::DIRECT_MAP];

/// The leaf that shows the frame, without address and contiguity.
fn leaf(space: &KernelSpace, frame: PhysAddr) -> u64 {
    let found = space.tables().translate(layout::linear(frame)).unwrap();
    found.descriptor.0 & !(bits::ADDRESS | bits::CONTIGUOUS | bits::TABLE)
}

/// The operations of `work` other than writes.
fn issued(work: impl FnOnce()) -> Vec<Operation> {
    let stream = record(work);
    assert!(!stream.is_empty());
    stream.into_iter().filter(|operation| !matches!(operation, Operation::Write { .. })).collect()
}

#[test]
fn a_page_goes_and_comes_back_without_any_invalidation() {
    let (space, _, _) = linear(SplitMode::Lock);
    host::with(MANAGED, || {
        let neighbours = [FRAME - PAGE, FRAME + PAGE].map(|frame| (frame, leaf(space, frame)));
        let before = leaf(space, FRAME);
        // The first time it is in a block, whose table is linked after its contents.
        let first = issued(|| space.set_direct_map_invalid_noflush(FRAME).unwrap());
        assert!(first.iter().all(|operation| *operation == Operation::DmbIshst), "{first:?}");
        assert!(!space.kernel_page_present(FRAME));
        // Its table may be collapsed concurrently, so the walk is announced.
        let barriers = granule_arch::recorded::record(|| space.set_direct_map_invalid_noflush(FRAME).unwrap());
        assert_eq!(barriers.first(), Some(&"dmb_ish"));
        let valid = [Operation::DsbIshst, Operation::Isb];
        assert_eq!(issued(|| space.set_direct_map_default_noflush(FRAME).unwrap()), valid);
        assert!(space.kernel_page_present(FRAME));
        assert_eq!(leaf(space, FRAME), before);
        assert_eq!(issued(|| space.set_direct_map_invalid_noflush(FRAME).unwrap()), []);
        assert_eq!(issued(|| space.set_direct_map_valid_noflush(FRAME, 1, Validity::Valid).unwrap()), valid);
        assert_eq!(issued(|| space.set_direct_map_valid_noflush(FRAME, 40, Validity::Invalid).unwrap()).len(), 1);
        space.set_direct_map_valid_noflush(FRAME, 40, Validity::Valid).unwrap();
        assert_eq!(leaf(space, FRAME), before);
        for (frame, leaf_before) in neighbours {
            assert_eq!(leaf(space, frame), leaf_before);
        }
    });
}

/// As an area or the image makes it, in which the frame may be executable.
#[test]
fn what_is_read_only_stays_so_whatever_is_called() {
    let (space, _, _) = linear(SplitMode::Lockless);
    host::with(MANAGED, || {
        let page = layout::linear(FRAME);
        let (lazy, range) = (Lazy::new(&space.mmu), PageRange::new(page, PAGE).unwrap());
        let update = |change| space.update_linear(&lazy, range, change).map(Flush::defer);
        update(Change::READ_ONLY).unwrap();
        let read_only = leaf(space, FRAME);
        assert!(read_only & bits::PXN != 0 && read_only & bits::RDONLY != 0);
        let refused = Err(SetMemoryError::ReadOnly(page));
        for validity in [Validity::Valid, Validity::Invalid] {
            space.set_direct_map_valid_noflush(FRAME, 1, validity).unwrap();
            let before = leaf(space, FRAME);
            assert_eq!(space.set_direct_map_default_noflush(FRAME), refused);
            assert_eq!(update(Change::READ_WRITE), refused);
            assert_eq!(update(Change::EXECUTABLE), Err(SetMemoryError::NeverExecutable(page)));
            // With a writable neighbour, too, which stays as it is.
            let both = PageRange::new(page - PAGE, 2 * PAGE).unwrap();
            assert_eq!(space.update_linear(&lazy, both, Change::READ_WRITE).map(Flush::defer), refused);
            assert_eq!(leaf(space, FRAME), before);
        }
        for validity in [Validity::Invalid, Validity::Valid] {
            space.set_memory_valid(page, 1, validity).unwrap();
        }
        assert_eq!(leaf(space, FRAME), read_only);
    });
}

#[test]
fn what_is_left_to_do_is_one_invalidation() {
    let (space, _, _) = linear(SplitMode::Lock);
    // Also where the TLBs take a level there is none: another CPU may have split what they hold.
    host::with(&[branch::DIRECT_MAP, branch::TLB_LEVEL], || {
        let range = PageRange::new(layout::linear(FRAME), 2 * PAGE).unwrap();
        let tlbi = |page: VirtAddr| Operation::Tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        let (first, second) = (range.start(), range.start() + PAGE);
        // A full DSB first: another CPU may have changed the entries, and only this one orders what was read of that.
        let expected = [Operation::DsbIsh, tlbi(first), tlbi(second), Operation::DsbIsh, Operation::Isb];
        assert_eq!(issued(|| space.flush_kernel_range(range)), expected);
    });
}

#[test]
fn what_a_noflush_call_has_made_invalid_is_invalidated_by_who_relies_on_it() {
    let (space, _, _) = linear(SplitMode::Lock);
    host::with(MANAGED, || {
        let page = layout::linear(FRAME);
        let tlbi = Operation::Tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        space.set_direct_map_invalid_noflush(FRAME).unwrap();
        // Nothing changes in the tables; any TLB may still have the page.
        let stream = issued(|| space.set_memory_valid(page, 1, Validity::Invalid).unwrap());
        assert_eq!(stream, [Operation::DsbIshst, tlbi, Operation::DsbIsh, Operation::Isb]);
    });
}

#[test]
fn where_the_linear_map_is_not_managed_nothing_is_done() {
    let (space, _, _) = linear(SplitMode::Refuse);
    type Call = fn(&KernelSpace) -> Result<(), SetMemoryError>;
    host::with(&[], || {
        let calls: [Call; 3] = [
            |space| space.set_direct_map_invalid_noflush(FRAME),
            |space| space.set_direct_map_default_noflush(FRAME),
            |space| space.set_direct_map_valid_noflush(FRAME, 5, Validity::Invalid),
        ];
        for call in calls {
            assert_eq!(record(|| assert_eq!(call(space), Ok(()))), []);
        }
        assert!(space.kernel_page_present(FRAME));
    });
}

#[test]
fn what_is_no_frame_is_refused() {
    let (space, _, _) = linear(SplitMode::Lock);
    host::with(MANAGED, || {
        let refused = |frame: u64, pages| space.set_direct_map_valid_noflush(PhysAddr(frame), pages, Validity::Invalid);
        assert!(matches!(refused(0x123, 1), Err(SetMemoryError::Range(_))));
        let end = layout::LINEAR_SIZE;
        assert_eq!(refused(end, 1), Err(SetMemoryError::Hole(layout::LINEAR_BASE + end)));
        assert_eq!(refused(end - PAGE, 2), Err(SetMemoryError::Hole(layout::LINEAR_BASE + (end - PAGE))));
        assert!(matches!(refused(u64::MAX - 0xfff, 1), Err(SetMemoryError::Hole(_) | SetMemoryError::Range(_))));
        // Not memory here.
        assert!(matches!(refused(1 << 40, 1), Err(SetMemoryError::Hole(_))));
        assert!(!space.kernel_page_present(PhysAddr(1 << 40)) && !space.kernel_page_present(PhysAddr(end)));
        // Nothing is nowhere.
        assert_eq!(refused(end, 0), Ok(()));
    });
}
