//! The suite `smmu`: what it costs to invalidate an SMMU's TLB, and to map memory for a device.
//!
//! The streams are of no device: commands and tables are the same.

#![allow(unsafe_code, reason = "calls functions of the kernel whose contracts the bench keeps")]

use granule::iommu::{Direction, DmaDevice, Port, iommu};
use granule::mm::space::SpaceRef;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};

use crate::harness::{Bench, bench};

const START: VirtAddr = VirtAddr(0x10_0010_0000);
/// Bus 255, device 31, function 7.
const STREAM: u32 = 0xffff;
/// Memory that every machine has, of which only the address matters.
const SOMEWHERE: PhysAddr = PhysAddr(0x4000_0000);
/// The sizes of a row whose unit is the page.
const PAGES: [u64; 5] = [1, 8, 64, 512, 4096];

fn device() -> DmaDevice {
    iommu().expect("an SMMU").attach(this_cpu(), STREAM).expect("a stream without a device")
}

fn space() -> SpaceRef {
    granule::kernel().spaces.create(this_cpu()).expect("memory for a space")
}

// In a boot of its own: it takes the SMMU from its driver.
bench!(probe, "smmu:smmu_probe", "SMMU", bootargs("smmu.notify=tlb"));
fn probe(bench: &mut Bench<'_>) {
    let kernel = granule::kernel();
    let registers = kernel.platform.smmus.first().expect("an SMMU").registers;
    let registers = kernel.space.map_device(this_cpu(), registers).expect("addresses");
    // SAFETY: mapped for ever; nothing is attached, and no row of this boot uses the SMMU otherwise.
    let take = |()| granule::iommu::probe(unsafe { Port::new(registers, kernel.frames) });
    bench.point(1, || (), take, |probed| assert!(probed.is_ok()));
}

// The call that a bound device's subscriber gets, with the chain around it. By the form for freed pages,
// which anybody may call; the other one is the same to the instruction.
bench!(notify, "smmu:notify_secondary_tlbs", "page", bootargs("smmu.notify=events"));
fn notify(bench: &mut Bench<'_>) {
    let (device, space) = (device(), space());
    device.bind(this_cpu(), &space).expect("an SMMU that fits");
    notify_of(bench, &space, &PAGES);
    device.unbind(this_cpu());
}

// Numbers of pages that no single command covers.
bench!(notify_two, "smmu:notify_secondary_tlbs/two_commands", "page", bootargs("smmu.notify=events"));
fn notify_two(bench: &mut Bench<'_>) {
    let (device, space) = (device(), space());
    device.bind(this_cpu(), &space).expect("an SMMU that fits");
    notify_of(bench, &space, &[33, 511, 4095]);
    device.unbind(this_cpu());
}

/// Measures the call for ranges of so many pages.
fn notify_of(bench: &mut Bench<'_>, space: &SpaceRef, sizes: &[u64]) {
    for &pages in sizes {
        let call = |()| space.notifiers().invalidate_range(START, START + pages * PAGE);
        bench.point(pages, || (), call, drop);
    }
}

bench!(notify_none, "smmu:notify_secondary_tlbs/none", "call");
fn notify_none(bench: &mut Bench<'_>) {
    let space = space();
    bench.point(1, || (), |()| space.notifiers().invalidate_range(START, START + PAGE), drop);
}

// The first of a device's transfers makes the tables; what is measured comes after it.
bench!(dma_map, "smmu:dma_map", "page");
fn dma_map(bench: &mut Bench<'_>) {
    let device = device();
    let cpu = this_cpu();
    let map = |()| device.map(cpu, SOMEWHERE, PAGE_SIZE, Direction::Both).expect("addresses");
    bench.point(1, || (), map, |address| device.unmap(cpu, address, PAGE_SIZE));
}

bench!(dma_unmap, "smmu:dma_unmap", "page");
fn dma_unmap(bench: &mut Bench<'_>) {
    let device = device();
    let cpu = this_cpu();
    let map = || device.map(cpu, SOMEWHERE, PAGE_SIZE, Direction::Both).expect("addresses");
    bench.point(1, map, |address| device.unmap(cpu, address, PAGE_SIZE), drop);
}

bench!(domain_map, "smmu:domain_map", "page");
fn domain_map(bench: &mut Bench<'_>) {
    let device = device();
    let cpu = this_cpu();
    for pages in PAGES {
        let bytes = (pages * PAGE) as usize;
        let map = |()| device.map(cpu, SOMEWHERE, bytes, Direction::Both).expect("addresses");
        bench.point(pages, || (), map, |address| device.unmap(cpu, address, bytes));
    }
}

bench!(domain_unmap, "smmu:domain_unmap", "page");
fn domain_unmap(bench: &mut Bench<'_>) {
    let device = device();
    let cpu = this_cpu();
    for pages in PAGES {
        let bytes = (pages * PAGE) as usize;
        let map = || device.map(cpu, SOMEWHERE, bytes, Direction::Both).expect("addresses");
        bench.point(pages, map, |address| device.unmap(cpu, address, bytes), drop);
    }
}
