//! The harness finds a device, a barrier and a lock that fail, and each fix that is taken away.

use super::*;

/// The first meeting of two calls, on any page, that goes wrong.
fn found(mut harness: Harness, [first, second]: [&str; 2]) -> Option<String> {
    let call = |name| CALLS.iter().position(|call| call.name == name).unwrap();
    let (first, second) = (call(first), call(second));
    (0..harness.kind.pages().0.len()).find_map(|page| {
        let pair = (first, second, page, true);
        let moments = match harness.orders(pair) {
            Ok(orders) => orders[0].moments,
            Err(wrong) => return Some(wrong),
        };
        let when = |first| When { grain: Grain::Operations, first, second: None };
        (0..moments).find_map(|first| harness.try_one(pair, when(first)).err())
    })
}

#[test]
fn a_deaf_device_is_found() {
    let harness = || Harness::new(kind("forked"), 0);
    for pair in [["MADV_DONTNEED", "load"], ["mprotect to read, a page", "store"], ["exec or exit", "load"]] {
        for notified in [[Notified::Nothing, Notified::ByEvents], [Notified::WithTlbs, Notified::Nothing]] {
            let wrong = found(Harness { notified, ..harness() }, pair).expect("nothing is found");
            assert!(wrong.contains("notified Nothing"), "{wrong}");
        }
        assert_eq!(found(harness(), pair), None);
    }
}

/// New pages, a copy, and pages that move: each is found where no barrier counts.
#[test]
fn an_entry_without_a_barrier_is_found() {
    let calls = [
        ("private", "MADV_POPULATE_WRITE"),
        ("forked", "store"),
        ("private_file", "store"),
        ("private", "migration"),
        ("file", "migration"),
        ("blocks", "migration"),
        ("blocks_shared", "migration"),
    ];
    let is_missed = |&(name, call): &(&str, &str)| {
        let harness = Harness::new(kind(name), 0);
        let call = CALLS.iter().find(|row| row.name == call).unwrap();
        let is_found = |page| harness.incomplete(call, page, |_| false).is_some();
        !host::with(harness.kind.branches, || (0..4).any(is_found))
    };
    let missed: Vec<_> = calls.iter().filter(|call| is_missed(call)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// Each takes a fix away: a switch of the lab, the memory and the two calls that show it, and what is wrong then.
const WITHOUT_A_FIX: [(lab::Lab, &str, [&str; 2], &str); 5] = [
    (lab::NO_UPGRADE_EVENT, "forked", ["a child ends", "store"], "a device notified ByEvents has"),
    (lab::STALE_COW, "forked", ["store", "load"], "a device notified WithTlbs has"),
    (lab::ANSWER_AT_GLIMPSE, "sigbus", ["store", "load"], "the second answers Err(Unusable)"),
    (lab::ANSWER_AT_GLIMPSE, "forked", ["store", "mincore"], "the second answers Ok(0)"),
    (lab::GUARD_IN_TWO, "private", ["MADV_GUARD_INSTALL", "fork"], "(space, page, moved) (1, "),
];

#[test]
fn a_switch_of_the_lab_is_found() {
    for (lab, name, pair, expected) in WITHOUT_A_FIX {
        let kind = kind(name);
        let sites: Vec<u16> = kind.branches.iter().copied().chain(lab.sites()).collect();
        let wrong = host::with(&sites, || found(Harness::new(kind, 0), pair));
        assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains(expected)), "lab={}: {wrong:?}", lab.name);
        assert_eq!(host::with(kind.branches, || found(Harness::new(kind, 0), pair)), None);
    }
}

#[test]
fn every_switch_with_a_meeting_for_a_witness_is_found() {
    let names = |labs: &[lab::Lab]| -> BTreeSet<&str> {
        labs.iter().filter(|lab| lab.witness == lab::Witness::Meeting).map(|lab| lab.name).collect()
    };
    let bindings = crate::iommu::tests::meeting::WITHOUT_A_FIX.map(|(lab, ..)| lab);
    let shown: Vec<lab::Lab> = WITHOUT_A_FIX.iter().map(|&(lab, ..)| lab).chain(bindings).collect();
    assert_eq!(names(lab::all()), names(&shown));
}

/// Calls that need the lock of a table over several steps fail where the lock excludes nothing: an answer of a look
/// beside a copy (SIGBUS, absent), and a guard beside the zap of its page.
#[test]
fn a_lock_that_excludes_nothing_is_found() {
    for (name, pair, expected) in [
        ("sigbus", ["store", "load"], "the second answers Err(Unusable)"),
        ("forked", ["store", "mincore"], "the second answers Ok(0)"),
        ("private", ["MADV_GUARD_INSTALL", "store"], "frames were in use before"),
    ] {
        let harness = || Harness::new(kind(name), 0);
        let wrong = found(Harness { breaks_in: true, ..harness() }, pair).expect("nothing is found");
        assert!(wrong.contains(expected), "{wrong}");
        assert_eq!(found(harness(), pair), None);
    }
}

/// No store comes between the page that a pager brings and its protection.
#[test]
fn a_copy_that_is_protected_is_so_from_the_first_store_on() {
    for second in ["store", "load", "device writes", "punch hole", "migration", "UFFDIO_COPY", "write to the file"] {
        let harness = Harness::new(kind("protected_file"), 0);
        assert_eq!(found(harness, ["UFFDIO_COPY, protected", second]), None);
    }
}

/// Where a pager serves first accesses, a page that the object gets or loses during a fault is mapped unasked by none.
#[test]
fn no_fault_maps_a_page_that_a_pager_was_not_asked_about() {
    for kind_of_memory in ["protected_file", "minor_file"] {
        for first in ["load", "store", "device reads", "kernel copies out, without a pager"] {
            for second in ["punch hole", "write to the file", "ftruncate, longer", "migration"] {
                let harness = Harness::new(kind(kind_of_memory), 0);
                assert_eq!(found(harness, [first, second]), None, "{kind_of_memory}: {first}, {second}");
            }
        }
    }
}
