//! A device is bound and unbound while the space ends, and while its faults are served.

use granule_loom::iommu::{BindError, Iommu, Resolution};
use granule_loom::mm::space::SpaceRef;
use granule_loom::sync::rank;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads};

/// Runs `work`, for a new device, and frees it.
fn with_device(work: impl FnOnce(&'static Iommu)) {
    let iommu = Iommu::new();
    work(iommu);
    iommu.assert_unbound();
    #[allow(unsafe_code, reason = "gives back what a binding borrows for ever")]
    // SAFETY: its threads and bindings have ended.
    unsafe {
        iommu.drop_leaked();
    }
}

/// A device is bound while the space ends.
fn bind_while_it_ends(omitted: Omitted) {
    threads(move || {
        with_device(|iommu| {
            let space = SpaceRef::new();
            let ending = space.clone();
            let ends = loom::thread::spawn(move || ending.release(iommu));
            omit(omitted);
            let bound = iommu.bind_device(&space);
            omit(Omitted::Nothing);
            ends.join().unwrap();
            space.assert_not_walked(iommu);
            match bound {
                Ok(()) => iommu.unbind_device(),
                Err(error) => assert_eq!((error, space.is_claimed()), (BindError::Ended, false)),
            }
        });
    });
}

#[test]
fn a_device_is_bound_before_the_end_which_cuts_it_off_or_refused() {
    bind_while_it_ends(Omitted::Nothing);
}

#[test]
fn a_context_that_is_in_force_behind_the_end_is_caught() {
    assert_caught("a device walks tables that are freed", || bind_while_it_ends(Omitted::AreasLock));
}

/// A bound device is unbound while the space ends.
fn unbind_while_it_ends(omitted: Omitted) {
    threads(move || {
        with_device(|iommu| {
            let space = SpaceRef::new();
            iommu.bind_device(&space).expect("no other device is bound");
            let ending = space.clone();
            let ends = loom::thread::spawn(move || ending.release(iommu));
            omit(omitted);
            iommu.unbind_device();
            omit(Omitted::Nothing);
            ends.join().unwrap();
        });
    });
}

#[test]
fn a_device_is_unbound_before_the_end_or_cut_off_and_then_unbound() {
    unbind_while_it_ends(Omitted::Nothing);
}

#[test]
fn a_context_that_is_in_force_without_its_binding_is_caught() {
    assert_caught("a device walks tables that are freed", || unbind_while_it_ends(Omitted::StreamFirst));
}

/// The driver completes a transfer that was refused while the thread that serves faults drains the same event.
fn complete_while_served(omitted: Omitted) {
    threads(move || {
        with_device(|iommu| {
            let space = SpaceRef::new();
            iommu.bind_device(&space).expect("no other device is bound");
            iommu.refuse();
            let serves = loom::thread::spawn(move || {
                omit(omitted);
                iommu.serve_events();
            });
            omit(omitted);
            let resolution = iommu.complete();
            omit(Omitted::Nothing);
            serves.join().unwrap();
            assert_eq!((resolution, iommu.events()), (Resolution::Resolved, 1), "its fault is lost, or comes twice");
            assert_eq!(iommu.complete(), Resolution::NoFault, "its fault comes twice");
            iommu.unbind_device();
        });
    });
}

#[test]
fn a_fault_is_reported_once_and_to_the_transfer_that_met_it() {
    complete_while_served(Omitted::Nothing);
}

#[test]
fn an_event_that_two_cpus_drain_is_caught() {
    assert_caught("its fault", || complete_while_served(Omitted::Lock(rank::EVENTS)));
}

/// A device that was refused by its own tables is bound while the thread that serves faults runs.
fn bind_while_served(omitted: Omitted) {
    threads(move || {
        with_device(|iommu| {
            let space = SpaceRef::new();
            iommu.refuse();
            let serves = loom::thread::spawn(move || iommu.serve_events());
            omit(omitted);
            iommu.bind_device(&space).expect("no other device is bound");
            omit(Omitted::Nothing);
            serves.join().unwrap();
            assert_eq!(space.served(), 0, "a fault of before");
            assert_eq!(iommu.complete(), Resolution::NoFault, "a fault of before");
            iommu.unbind_device();
        });
    });
}

#[test]
fn a_fault_of_a_devices_own_tables_is_not_the_spaces() {
    bind_while_served(Omitted::Nothing);
}

#[test]
fn a_space_that_serves_what_was_met_before_it_is_caught() {
    assert_caught("a fault of before", || bind_while_served(Omitted::StateLock));
}
