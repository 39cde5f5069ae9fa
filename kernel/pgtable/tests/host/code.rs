//! New code is made visible to fetches before an entry makes it executable, by what CTR_EL0 leaves to do.
//!
//! QEMU fetches what was stored, whatever was left out: the recorded stream is the only witness. Streams are compared
//! whole, so nothing in them can be missing, too much, or in another order.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_pgtable::host::{CacheOperation, Caches, HostMachine, Operation};
use granule_pgtable::{Change, Granule4K, Lazy, PageRange, Shape, WholeLeaves};

use crate::{BASE, DATA, KIB, MIB, map, range};

/// One step of a stream, with the entries left out: how many were written one after the other, and what came between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Writes(usize),
    Order,
    Complete,
    Clean(VirtAddr, u64),
    Invalidate(VirtAddr, u64),
    InvalidateAll,
    /// DSB ISHST; TLBI; DSB ISH; ISB.
    Flush,
    /// DSB ISHST; TLBI of one page; DSB ISH.
    Forget(AddressOperand),
    /// DSB ISHST; ISB.
    Publish,
}

use Step::{Clean, Complete, Flush, Forget, Invalidate, InvalidateAll, Order, Publish, Writes};

fn steps(mut stream: &[Operation<Granule4K>]) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((first, rest)) = stream.split_first() {
        let (step, taken) = match first {
            Operation::Write { .. } => {
                let is_write = |operation: &&Operation<_>| matches!(operation, Operation::Write { .. });
                let writes = stream.iter().take_while(is_write).count();
                (Writes(writes), writes)
            }
            Operation::DmbIshst => (Order, 1),
            Operation::DsbIsh => (Complete, 1),
            Operation::DsbIshst => match rest {
                [Operation::Isb, ..] => (Publish, 2),
                [Operation::Invalidate(_), Operation::DsbIsh, Operation::Isb, ..] => (Flush, 4),
                [Operation::Tlbi(Instruction::Vaale1is(operand)), Operation::DsbIsh, ..] => (Forget(*operand), 3),
                other => panic!("DSB ISHST, and then {other:?}"),
            },
            Operation::Cache(CacheOperation::Clean { start, bytes }) => (Clean(*start, *bytes), 1),
            Operation::Cache(CacheOperation::Invalidate { start, bytes }) => (Invalidate(*start, *bytes), 1),
            Operation::Cache(CacheOperation::InvalidateAll) => (InvalidateAll, 1),
            other => panic!("{other:?} out of place"),
        };
        steps.push(step);
        stream = &stream[taken..];
    }
    steps
}

/// A machine with `pages` pages of read-only data at [`BASE`] in frames from 1 MiB on.
fn machine(idc: bool, dic: bool, pages: u64) -> (HostMachine, PageRange) {
    let machine = HostMachine::new(8).with_caches(Caches { idc, dic });
    let whole = range(BASE, pages * 4 * KIB);
    map(&machine, whole, MIB, DATA, Shape::PAGES).unwrap();
    update(&machine, whole, Change::READ_ONLY);
    (machine, whole)
}

fn update(machine: &HostMachine, range: PageRange, change: Change) -> Vec<Step> {
    let stream = machine.record(|| {
        let lazy = Lazy::new(machine.mmu());
        let flush = machine.page_tables().update(&lazy, range, change, WholeLeaves).unwrap();
        lazy.invalidate(machine.tlb(), [flush]);
    });
    steps(&stream)
}

fn page(index: u64) -> VirtAddr {
    BASE + index * 4 * KIB
}

#[test]
fn pages_are_cleaned_and_dropped_before_they_become_executable() {
    let (machine, whole) = machine(false, false, 2);
    let cleans = [0, 1].map(|index| Clean(page(index), 4 * KIB));
    let expected = [cleans[0], cleans[1], Complete, Invalidate(page(0), 8 * KIB), Complete, Writes(2), Flush];
    assert_eq!(update(&machine, whole, Change::EXECUTABLE), expected);
    // Nothing becomes executable that was not.
    assert_eq!(update(&machine, whole, Change::EXECUTABLE), []);
    assert_eq!(update(&machine, whole, Change::NO_EXECUTE), [Writes(2), Flush]);
}

#[test]
fn what_becomes_code_in_one_call_is_read_only_first() {
    let to_code = |machine: &HostMachine, whole| {
        let stream = machine.record(|| {
            let lazy = Lazy::new(machine.mmu());
            let (tables, tlb) = (machine.page_tables(), machine.tlb());
            let read_only = |change, splitter: &mut WholeLeaves| {
                lazy.invalidate(tlb, [tables.update(&lazy, whole, change, splitter)?]);
                Ok(())
            };
            tables.update_to_code(&lazy, tlb, whole, 0, &mut WholeLeaves, read_only).unwrap();
        });
        steps(&stream)
    };
    let (machine, whole) = machine(false, false, 2);
    let cleans = [0, 1].map(|index| Clean(page(index), 4 * KIB));
    let executable = [cleans[0], cleans[1], Complete, Invalidate(page(0), 8 * KIB), Complete, Writes(2), Flush];
    assert_eq!(to_code(&machine, whole), executable, "it is read-only");
    assert_eq!(to_code(&machine, whole), []);
    update(&machine, whole, Change::NO_EXECUTE);
    update(&machine, whole, Change::READ_WRITE);
    let expected: Vec<Step> = [Writes(2), Flush].into_iter().chain(executable).collect();
    assert_eq!(to_code(&machine, whole), expected);
}

#[test]
fn what_the_caches_do_themselves_is_left_to_them() {
    let clean = Clean(page(0), 4 * KIB);
    let drop = Invalidate(page(0), 4 * KIB);
    for (idc, dic, expected) in [
        (true, true, &[Order, Writes(1), Flush][..]),
        (true, false, &[Complete, drop, Complete, Writes(1), Flush]),
        (false, true, &[clean, Complete, Writes(1), Flush]),
        (false, false, &[clean, Complete, drop, Complete, Writes(1), Flush]),
    ] {
        let (machine, whole) = machine(idc, dic, 1);
        assert_eq!(update(&machine, whole, Change::EXECUTABLE), expected, "IDC {idc}, DIC {dic}");
    }
}

#[test]
fn beyond_what_is_worth_naming_all_is_dropped() {
    for (pages, dropped) in [(8, Invalidate(page(0), 32 * KIB)), (9, InvalidateAll)] {
        let (machine, whole) = machine(true, false, pages);
        let expected = [Complete, dropped, Complete, Writes(pages as usize), Flush];
        assert_eq!(update(&machine, whole, Change::EXECUTABLE), expected);
    }
}

#[test]
fn code_that_is_not_valid_is_made_visible_when_it_becomes_valid() {
    let (machine, whole) = machine(false, false, 2);
    update(&machine, whole, Change::INVALID);
    // It cannot run yet, and there is no mapping to clean it by.
    assert_eq!(update(&machine, whole, Change::EXECUTABLE), [Writes(2), Flush]);
    // Nor need there be another mapping of the memory that is valid: it is cleaned by its own address, where it is valid
    // for that and not executable, and no TLB knows of it afterwards.
    let cleaned = |index| {
        let forget = Forget(AddressOperand::new(page(index), None));
        [Writes(1), Publish, Clean(page(index), 4 * KIB), Writes(1), forget]
    };
    let rest = [Complete, InvalidateAll, Complete, Writes(2), Publish];
    let expected: Vec<Step> = cleaned(0).into_iter().chain(cleaned(1)).chain(rest).collect();
    assert_eq!(update(&machine, whole, Change::VALID), expected);
}

#[test]
fn what_is_valid_to_be_cleaned_is_neither_writable_nor_executable() {
    let (machine, whole) = machine(false, false, 1);
    update(&machine, whole, Change::INVALID);
    update(&machine, whole, Change::EXECUTABLE);
    let stream = machine.record(|| {
        let lazy = Lazy::new(machine.mmu());
        machine.page_tables().update(&lazy, whole, Change::VALID, WholeLeaves).unwrap().defer();
    });
    let writes: Vec<_> = stream
        .iter()
        .filter_map(|operation| match operation {
            Operation::Write { new, .. } => Some((new.is_valid(), new.is_writable(), new.is_executable())),
            _ => None,
        })
        .collect();
    assert_eq!(writes, [(true, false, false), (false, false, true), (true, false, true)]);
    let last = machine.page_tables().translate(page(0)).unwrap();
    assert!(last.descriptor.0 & (bits::PRESENT_INVALID | bits::CONTIGUOUS) == 0);
}

#[test]
fn data_that_becomes_valid_needs_no_maintenance() {
    let (machine, whole) = machine(false, false, 2);
    update(&machine, whole, Change::INVALID);
    assert_eq!(update(&machine, whole, Change::VALID), [Writes(2), Publish]);
}

#[test]
fn only_the_pages_that_become_executable_are_cleaned() {
    let (machine, whole) = machine(false, false, 4);
    update(&machine, range(BASE + 4 * KIB, 4 * KIB), Change::EXECUTABLE);
    update(&machine, range(BASE + 12 * KIB, 4 * KIB), Change::INVALID);
    let cleans = [0, 2].map(|index| Clean(page(index), 4 * KIB));
    // One page of the range is not mapped, so none is named to the instruction caches.
    let expected = [cleans[0], cleans[1], Complete, InvalidateAll, Complete, Writes(3), Flush];
    assert_eq!(update(&machine, whole, Change::EXECUTABLE), expected);
}
