//! PCI Express: the functions are those that machines.toml promises, each with addresses of its own.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::interrupt::{self, InterruptHandler};
use granule::chip::message;
use granule::devices::pci::{self, BarKind, Function, Id, InterruptVector, MmioRegion, PciError};
use granule::iommu::{self, DmaMask};
use granule::smp::{Cpu, this_cpu};
use granule::sync::{IrqLock, rank};
use granule_arch::addr::PhysRange;

use crate::harness::{Promised, Test, delay, device, has, is_device, patience, target_test};

/// The bridge from the CPUs to the first bus, which every machine with PCI Express has.
const HOST_BRIDGE: Id = Id { vendor: 0x1b36, device: 0x0008 };

target_test!(enumeration_finds_what_machines_toml_promises, needs("pcie"));
fn enumeration_finds_what_machines_toml_promises(t: &mut Test) {
    let promised = Promised::devices();
    t.equal("host bridges", pci::functions().iter().filter(|function| function.id() == HOST_BRIDGE).count(), 1);
    for name in promised.names() {
        t.check(name, device(name).is_some());
        let found = pci::functions().iter().filter(|function| is_device(name, function)).count();
        t.equal(name, found, promised.names().filter(|other| *other == name).count());
    }
    t.equal("functions", pci::functions().len(), 1 + promised.names().count());
    let addresses = || pci::functions().iter().map(Function::address);
    for address in addresses() {
        t.equal("functions with this address", addresses().filter(|other| *other == address).count(), 1);
    }
}

/// All addresses that were given out.
fn ranges() -> impl Iterator<Item = (&'static Function, PhysRange)> {
    let of = |function: &'static Function| function.bars().filter_map(move |(_, bar)| Some((function, bar.range?)));
    pci::functions().iter().flat_map(of)
}

target_test!(registers_have_addresses_and_no_two_overlap, needs("pcie"));
fn registers_have_addresses_and_no_two_overlap(t: &mut Test) {
    let wanted =
        pci::functions().iter().map(|function| function.bars().filter(|(_, bar)| bar.kind != BarKind::Io).count());
    t.equal("registers with addresses", ranges().count(), wanted.sum());
    let windows = || granule::kernel().platform.pcie.iter().flat_map(|host| host.windows.iter().flatten());
    for function in pci::functions() {
        for (index, bar) in function.bars().filter(|(_, bar)| bar.kind != BarKind::Io) {
            let Some(range) = t.ok("addresses", bar.range.ok_or((function.address(), index))) else { continue };
            t.equal("size", range.size(), bar.size);
            t.check("a multiple of its size", range.start().is_aligned(bar.size));
            let inside = |window: PhysRange| window.start() <= range.start() && range.end() <= window.end();
            t.check("inside a window of the host", windows().any(|window| inside(window.cpu)));
        }
    }
    for (index, (_, range)) in ranges().enumerate() {
        let others = ranges().enumerate().filter(|(other, _)| *other != index);
        t.check("in no other range", others.map(|(_, other)| other.1).all(|other| !other.overlaps(range)));
    }
}

target_test!(bridges_forward_what_is_behind_them_and_nothing_else, needs("pcie"));
fn bridges_forward_what_is_behind_them_and_nothing_else(t: &mut Test) {
    let promised = Promised::devices();
    let is_bridge = |name: &&str| ["pcie-root-port", "pcie-pci-bridge", "pci-bridge"].contains(name);
    let bridges = pci::functions().iter().filter(|function| function.bridge().is_some());
    t.equal("bridges", bridges.count(), promised.names().filter(is_bridge).count());
    for bridge in pci::functions() {
        let Some(buses) = bridge.bridge() else { continue };
        t.check("numbers go up", bridge.address().bus() < buses.secondary && buses.secondary <= buses.subordinate);
        let is_behind = |function: &Function| (buses.secondary..=buses.subordinate).contains(&function.address().bus());
        for (function, range) in ranges() {
            let forwards = |window: Option<PhysRange>| window.is_some_and(|window| window.overlaps(range));
            let forwarded = forwards(bridge.window()) || forwards(bridge.prefetchable_window());
            t.equal("forwarded if it is behind", forwarded, is_behind(function));
        }
    }
}

target_test!(a_function_has_one_driver_at_a_time, needs("pcie"));
fn a_function_has_one_driver_at_a_time(t: &mut Test) {
    let Some(function) = pci::functions().iter().find(|function| function.owner().is_none()) else {
        t.check("a function without a driver", false);
        return;
    };
    let claim = t.ok("claimed", function.claim("the first"));
    t.equal("its owner", function.owner(), Some("the first"));
    let refused = function.claim("the second").map(|_| ());
    t.equal("claimed twice", refused, Err(PciError::Claimed(function.address(), "the first")));
    drop(claim);
    t.equal("its owner", function.owner(), None);
    t.ok("claimed again", function.claim("the second"));
}

/// Registers of edu that matter here (QEMU, docs/specs/edu): which interrupts are raised, to raise some, to lower them.
const RAISED: u64 = 0x24;
const RAISE: u64 = 0x60;
const LOWER: u64 = 0x64;

/// Counts what arrives, and lowers it.
struct Counter {
    registers: IrqLock<Option<MmioRegion>, { rank::DEVICE }>,
    arrived: AtomicU32,
    value: AtomicU32,
}

impl InterruptHandler for Counter {
    fn interrupt(&self, _: &Cpu, vector: u16) {
        if let Some(registers) = self.registers.lock().as_ref() {
            let raised = registers.read32(RAISED);
            registers.write32(LOWER, raised);
            self.value.store(raised | u32::from(vector) << 16, Ordering::Relaxed);
        }
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }
}

static COUNTER: Counter =
    Counter { registers: IrqLock::new(None), arrived: AtomicU32::new(0), value: AtomicU32::new(0) };

/// Waits until the interrupt has arrived `count` times; false where it does not in a second.
fn arrives(count: u32) -> bool {
    let patience = patience();
    while COUNTER.arrived.load(Ordering::Relaxed) != count && !patience.has_passed() {
        granule_arch::wait::relax();
    }
    COUNTER.arrived.load(Ordering::Relaxed) == count
}

target_test!(edu_interrupts_by_message_or_pin, needs("edu"));
fn edu_interrupts_by_message_or_pin(t: &mut Test) {
    let (kernel, cpu) = (granule::kernel(), this_cpu());
    let id = device("edu");
    // One that no driver has taken: the machines have one more than there are drivers' in any test.
    let is_free = |function: &&Function| Some(function.id()) == id && function.owner().is_none();
    let Some(function) = pci::functions().iter().find(is_free) else {
        t.check("edu", false);
        return;
    };
    let Some(edu) = t.ok("claimed", function.claim("the test")) else { return };
    let Some(registers) = t.ok("mapped", edu.map_bar(&kernel.space, cpu, 0)) else { return };
    *COUNTER.registers.lock() = edu.map_bar(&kernel.space, cpu, 0).ok();
    t.equal("edu's identification", registers.read32(0) & 0xffff, 0x00ed);
    edu.set_bus_master(true);
    t.equal("vectors", edu.vectors(), 1);
    // Its messages are translated as everything that it does: they must be shown their doorbell.
    let Some(dma) = t.ok("attached", iommu::attach(cpu, edu.stream_id(), DmaMask::ALL)) else { return };
    let address = message::doorbell(kernel.platform).map(|doorbell| dma.message_address(cpu, doorbell)).transpose();
    let Some(address) = t.ok("shown the doorbell", address) else { return };
    let doorbell = address.map(|address| address.0);
    let none = edu.set_interrupt(kernel, cpu, 1, &COUNTER, doorbell);
    t.equal("beyond", none, Err(PciError::NoVector { function: edu.address(), vector: 1, count: 1 }));
    let vector = t.ok("connected", edu.set_interrupt(kernel, cpu, 0, &COUNTER, doorbell));
    let by_message = matches!(vector, Some(InterruptVector::Msi { .. }));
    t.equal("by a message where something takes it", by_message, has("msi") == Some(true));
    let again = edu.set_interrupt(kernel, cpu, 0, &COUNTER, doorbell);
    t.equal("again", again, Err(PciError::VectorInUse(edu.address(), 0)));

    let lost = interrupt::lost();
    for count in 1..20 {
        registers.write32(RAISE, count);
        t.check("it arrives", arrives(count));
        t.equal("with what was raised", COUNTER.value.load(Ordering::Relaxed), count);
    }
    t.equal("none was lost", interrupt::lost(), lost);

    drop(edu);
    registers.write32(RAISE, 1);
    delay(Duration::from_millis(2));
    t.equal("none once the function is given back", COUNTER.arrived.swap(0, Ordering::Relaxed), 19);
    registers.write32(LOWER, !0);
    t.equal("still the driver's", function.owner(), Some("the test"));
    // Dropped without the lock: a region takes its function's.
    let counters = COUNTER.registers.lock().take();
    drop((counters, registers));
    t.equal("and now no driver's", function.owner(), None);
}
