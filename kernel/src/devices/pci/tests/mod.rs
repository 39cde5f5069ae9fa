//! The walk over devices in memory: honest ones in every arrangement, and some that lie.

use std::boxed::Box;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use granule_arch::addr::{PAGE, PhysAddr, PhysRange, VirtAddr};
use pci_types::PciAddress;
use proptest::prelude::*;

use self::model::{ModelBus, ModelKind, ModelNode, Plan, Want};
use super::bar;
use super::config::ConfigSpace;
use super::enumerate::Walk;
use super::{Bar, Claim, Function, Host, MmioRegion, NotIsolated, PciError};
use crate::platform::{IdMap, InterruptLines, Pcie, Window, WindowKind, Windows};

mod enabled;
mod interrupt;
mod model;

/// The windows of the host: below 4 GiB the CPU sees it elsewhere than the bus does.
const LOW: Range<u64> = 0x1000_0000..0x2000_0000;
const LOW_CPU: u64 = 0x5000_0000;
const HIGH: Range<u64> = 0x80_0000_0000..0x90_0000_0000;

fn host(config: impl ConfigSpace + 'static, last_bus: u8, low: Range<u64>) -> &'static Host {
    host_with(config, last_bus, low, [false, false])
}

/// As [`host`], with windows that may be prefetchable.
fn host_with(
    config: impl ConfigSpace + 'static,
    last_bus: u8,
    low: Range<u64>,
    prefetchable: [bool; 2],
) -> &'static Host {
    host_between(config, last_bus, low, HIGH, prefetchable)
}

/// As [`host_with`], with another window above.
fn host_between(
    config: impl ConfigSpace + 'static,
    last_bus: u8,
    low: Range<u64>,
    high: Range<u64>,
    prefetchable: [bool; 2],
) -> &'static Host {
    let window = |kind, bus: &Range<u64>, cpu: u64| Window {
        kind,
        prefetchable: prefetchable[usize::from(kind == WindowKind::Memory64)],
        bus: bus.start,
        cpu: PhysRange::from_size(PhysAddr(cpu), bus.end - bus.start).unwrap(),
    };
    let windows = [window(WindowKind::Memory32, &low, LOW_CPU), window(WindowKind::Memory64, &high, HIGH.start)];
    host_of(config, last_bus, Some(windows.into_iter().collect()), IdMap::default())
}

fn host_of(
    config: impl ConfigSpace + 'static,
    last_bus: u8,
    windows: Option<Windows>,
    streams: IdMap,
) -> &'static Host {
    let description = Pcie {
        ecam: PhysRange::from_size(PhysAddr(0), 256 << 20).unwrap(),
        buses: (0, last_bus),
        windows,
        streams,
        devices: IdMap::default(),
        lines: InterruptLines::default(),
        dma: heapless::Vec::new(),
        coherent: true,
    };
    let (config, description) = (Box::leak(Box::new(config)), Box::leak(Box::new(description)));
    Box::leak(Box::new(Host { config, description, taken: Vec::new() }))
}

fn walk(host: &'static Host) -> std::vec::Vec<Function> {
    Walk::new(host, &mut |_| true).run().unwrap()
}

struct Shared(&'static ModelBus);

impl ConfigSpace for Shared {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.0.read32(function, offset)
    }
    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.0.write32(function, offset, value);
    }
    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.0.write16(function, offset, value);
    }
    fn rest(&self, time: Duration) {
        self.0.rest(time);
    }
}

/// Plans of a host, and its last bus; the model is looked at after the walk.
fn walk_model(plans: &[Plan], last_bus: u8, low: Range<u64>) -> (std::vec::Vec<Function>, &'static ModelBus) {
    let model: &'static ModelBus = Box::leak(Box::new(ModelBus::new(plans)));
    (walk(host(Shared(model), last_bus, low)), model)
}

/// A function that is claimed.
pub(in super::super) fn claimed() -> Claim {
    let (functions, _) = walk_model(&[endpoint(&[memory(16)])], 255, LOW);
    functions.leak()[0].claim("test").unwrap()
}

fn memory(bits: u32) -> Want {
    Want::Memory { bits, wide: false, prefetchable: false }
}

fn wide(bits: u32, prefetchable: bool) -> Want {
    Want::Memory { bits, wide: true, prefetchable }
}

fn endpoint(wants: &[Want]) -> Plan {
    Plan {
        kind: ModelKind::Endpoint,
        wants: wants.to_vec(),
        prefetchable: false,
        left_bus: 0,
        acs: None,
        behind: Vec::new(),
    }
}

fn bridge(kind: ModelKind, behind: Vec<Plan>) -> Plan {
    Plan { kind, wants: Vec::new(), prefetchable: true, left_bus: 0, acs: None, behind }
}

/// Checks the result of a walk over honest devices, by the registers alone.
fn check(bus: &[ModelNode], number: u64, windows: &[Range<u64>], functions: &[Function]) -> Result<(), TestCaseError> {
    let overlap = |a: &Range<u64>, b: &Range<u64>| a.start.max(b.start) < a.end.min(b.end);
    let mut taken: std::vec::Vec<Range<u64>> = Vec::new();
    for (device, node) in bus.iter().enumerate() {
        let here = |function: &&Function| {
            let address = function.address();
            (u64::from(address.bus()), usize::from(address.device())) == (number, device)
        };
        let Some(function) = functions.iter().find(here) else {
            prop_assert!(false, "device {} of bus {} was not found", device, number);
            continue;
        };
        prop_assert_eq!(function.bars().count(), node.wants.len());
        let mut has_all = true;
        for &(register, want) in &node.wants {
            let Want::Memory { bits, .. } = want else { continue };
            let bar = function.bar(register).unwrap();
            prop_assert_eq!(bar.size, 1 << bits);
            let Some(range) = bar.range else {
                has_all = false;
                continue;
            };
            let decoded = node.decoded(register, want);
            prop_assert_eq!(range.size(), decoded.end - decoded.start);
            let seen = if decoded.start < 1 << 32 { decoded.start - LOW.start + LOW_CPU } else { decoded.start };
            prop_assert_eq!(range.start().0, seen);
            prop_assert!(decoded.start.is_multiple_of(bar.size));
            let inside = |window: &Range<u64>| window.start <= decoded.start && decoded.end <= window.end;
            prop_assert!(
                windows.iter().any(inside),
                "{:x?} of bus {} is not forwarded: {:x?}",
                decoded,
                number,
                windows
            );
            taken.push(decoded);
        }
        prop_assert_eq!(node.decodes_memory(), has_all || node.is_bridge());
        prop_assert!(node.wrong.is_empty(), "device {} of bus {}: {:?}", device, number, node.wrong);
        if node.is_bridge() {
            let forwards = node.forwards().map(|window| window.start..window.end.max(window.start));
            if let Some(buses) = function.bridge() {
                prop_assert_eq!(u64::from(buses.secondary)..u64::from(buses.subordinate) + 1, node.buses());
                prop_assert!(node.buses().start > number);
                // The addresses that it forwards and that every bridge above it forwards.
                let through: std::vec::Vec<Range<u64>> = forwards
                    .iter()
                    .flat_map(|inner| {
                        windows.iter().map(|outer| inner.start.max(outer.start)..inner.end.min(outer.end))
                    })
                    .collect();
                check(&node.behind, node.buses().start, &through, functions)?;
            } else {
                prop_assert!(forwards.iter().all(Range::is_empty), "closed, and forwards {:x?}", forwards);
            }
            taken.extend(forwards.into_iter().filter(|window| !window.is_empty()));
        }
    }
    for (index, range) in taken.iter().enumerate() {
        prop_assert!(
            taken[..index].iter().all(|other| !overlap(other, range)),
            "{:x?} twice on bus {}: {:x?}",
            range,
            number,
            taken
        );
    }
    Ok(())
}

fn count(plans: &[Plan]) -> usize {
    plans.iter().map(|plan| 1 + count(&plan.behind)).sum()
}

fn wants() -> impl Strategy<Value = std::vec::Vec<Want>> {
    let want = prop_oneof![
        (2_u32..8).prop_map(Want::Io),
        (4_u32..29, any::<bool>(), any::<bool>()).prop_map(|(bits, wide, prefetchable)| Want::Memory {
            bits,
            wide,
            prefetchable
        }),
        (29_u32..33, any::<bool>()).prop_map(|(bits, prefetchable)| Want::Memory { bits, wide: true, prefetchable }),
    ];
    prop::collection::vec(want, 0..5)
}

fn plans() -> impl Strategy<Value = std::vec::Vec<Plan>> {
    let leaf = wants().prop_map(|wants| endpoint(&wants));
    let node = leaf.prop_recursive(4, 24, 4, |inner| {
        let kind =
            prop_oneof![Just(ModelKind::RootPort), Just(ModelKind::ToConventional), Just(ModelKind::Conventional)];
        (kind, wants(), any::<bool>(), prop::collection::vec(inner, 0..4)).prop_map(
            |(kind, wants, prefetchable, mut behind)| {
                // A link has one device.
                if kind == ModelKind::RootPort {
                    behind.truncate(1);
                }
                Plan { kind, wants, prefetchable, left_bus: 1, acs: None, behind }
            },
        )
    });
    prop::collection::vec(node, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_there_is_found_and_gets_what_fits(plans in plans()) {
        let (functions, model) = walk_model(&plans, 255, LOW);
        prop_assert_eq!(functions.len(), count(&plans));
        check(&model.0.lock().unwrap(), 0, &[LOW, HIGH], &functions)?;
    }

    #[test]
    fn the_same_where_little_fits(plans in plans(), pages in 1_u64..64) {
        let (functions, model) = walk_model(&plans, 255, LOW.start..LOW.start + pages * 0x5_0000);
        check(&model.0.lock().unwrap(), 0, &[LOW, HIGH], &functions)?;
    }

    /// The walk is the firmware, and then the kernel, which does not know the windows.
    #[test]
    fn numbers_and_addresses_stay_where_the_windows_are_not_known(plans in plans()) {
        let (given, model) = walk_model(&plans, 255, LOW);
        let kept = walk(host_of(Shared(model), 255, None, IdMap::default()));
        prop_assert_eq!(kept.len(), given.len());
        for (given, kept) in given.iter().zip(&kept) {
            prop_assert_eq!((given.address(), given.bridge()), (kept.address(), kept.bridge()));
            // Where it is below 4 GiB on the bus.
            let low = |range: PhysRange| range.start().0.wrapping_sub(LOW_CPU) < LOW.end - LOW.start;
            let bus = |range: PhysRange| range.start().0 - if low(range) { LOW_CPU - LOW.start } else { 0 };
            for ((_, given), (_, kept)) in given.bars().zip(kept.bars()) {
                prop_assert_eq!((given.kind, given.size), (kept.kind, kept.size));
                prop_assert_eq!(given.range.map(bus), kept.range.map(|range| range.start().0));
            }
        }
        for node in model.0.lock().unwrap().iter() {
            prop_assert!(node.wrong.is_empty(), "{:?}", node.wrong);
        }
    }

    /// Each word that is read is another number; what was written does not matter.
    #[test]
    fn configuration_space_that_says_anything_ends_the_walk_somewhere(seed: u64, often in 0_u32..4, is_known: bool) {
        let liar = Liar { state: AtomicU64::new(seed), often };
        let functions = walk(if is_known { host(liar, 3, LOW) } else { host_of(liar, 3, None, IdMap::default()) });
        prop_assert!(functions.len() <= 4 * 256);
        for function in functions.iter().take(32) {
            prop_assert!(function.capabilities().count() <= 48);
            let _ = (function.window(), function.prefetchable_window(), function.line());
        }
        for (index, range) in all_ranges(&functions) {
            let mut others = all_ranges(&functions).filter(|(other, _)| *other != index);
            prop_assert!(others.all(|(_, other)| !other.overlaps(range)), "{:?} twice", range);
        }
    }
}

fn all_ranges(functions: &[Function]) -> impl Iterator<Item = (usize, PhysRange)> {
    functions.iter().flat_map(Function::bars).filter_map(|(_, bar): (usize, Bar)| bar.range).enumerate()
}

/// Two endpoints on bus 0, and one on a root bus of its own that no bridge leads to.
struct TwoRoots([ModelBus; 2]);

impl TwoRoots {
    fn of(&self, function: PciAddress) -> Option<(&ModelBus, PciAddress)> {
        let root = [0, 8].iter().position(|bus| *bus == function.bus())?;
        Some((&self.0[root], PciAddress::new(0, 0, function.device(), function.function())))
    }
}

impl ConfigSpace for TwoRoots {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.of(function).map_or(!0, |(bus, function)| bus.read32(function, offset))
    }
    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.of(function).unwrap().0.write32(self.of(function).unwrap().1, offset, value);
    }
    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.of(function).unwrap().0.write16(self.of(function).unwrap().1, offset, value);
    }
    fn rest(&self, time: Duration) {
        self.0.iter().for_each(|bus| bus.rest(time));
    }
}

#[test]
fn a_root_bus_that_no_bridge_leads_to_is_found_where_a_range_of_requester_ids_begins() {
    let found = |firsts: &[u32]| {
        let mut streams = IdMap::new(!0);
        firsts.iter().for_each(|&first| streams.add(first, 0x100, 1, first).unwrap());
        let roots = [&[endpoint(&[]), endpoint(&[])][..], &[endpoint(&[])]].map(ModelBus::new);
        let functions = walk(host_of(TwoRoots(roots), 9, None, streams));
        functions.iter().map(|function| function.address().bus()).collect::<std::vec::Vec<_>>()
    };
    assert_eq!(found(&[0]), [0, 0]);
    assert_eq!(found(&[0, 0x100, 0x800, 0x900, 0xa00, 0x1_0000]), [0, 0, 8]);
}

/// The functions that a walk finds which keeps what an earlier one has set, and `change` changed.
fn kept(plans: &[Plan], streams: IdMap, change: impl Fn(&mut [ModelNode])) -> std::vec::Vec<(u8, u8)> {
    let (_, model) = walk_model(plans, 255, LOW);
    change(&mut model.0.lock().unwrap());
    let functions = walk(host_of(Shared(model), 255, None, streams));
    functions.iter().map(|function| (function.address().bus(), function.address().device())).collect()
}

#[test]
fn a_bridge_has_buses_of_its_parent_that_no_neighbour_has() {
    let port = || bridge(ModelKind::RootPort, vec![endpoint(&[])]);
    let nested = [bridge(ModelKind::RootPort, vec![port()]), port()];
    let whole = [(0, 0), (1, 0), (2, 0), (0, 1), (3, 0)];
    assert_eq!(kept(&nested, IdMap::default(), |_| ()), whole);
    let inner = |buses| kept(&nested, IdMap::default(), move |bus| bus[0].behind[0].set(0x18, buses));
    assert_eq!(inner(0x0002_0201), whole);
    let without = [(0, 0), (1, 0), (0, 1), (3, 0)];
    // Its neighbour's, one more than its parent has, its parent's own, from the end to the begin.
    for buses in [0x0003_0301, 0x0005_0501, 0x0003_0201, 0x0001_0101, 0x0001_0201, 0] {
        assert_eq!(inner(buses), without, "{buses:#x}");
    }
    let outer = |buses| kept(&[port(), port(), port()], IdMap::default(), move |bus| bus[1].set(0x18, buses));
    assert_eq!(outer(0x0002_0200), [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (3, 0)]);
    assert_eq!(outer(0x0003_0200), [(0, 0), (1, 0), (0, 1), (0, 2)], "the third has bus 3 too");
    let none = [(0, 0), (0, 1), (0, 2)];
    assert_eq!(outer(0x0003_0100), none, "both neighbours' too");
}

#[test]
fn a_bus_that_answers_without_the_bridge_is_another_roots() {
    let mut streams = IdMap::new(!0);
    [0x100, 0x800].iter().for_each(|&first| streams.add(first, 0x100, 1, first).unwrap());
    let port = bridge(ModelKind::RootPort, vec![endpoint(&[])]);
    assert_eq!(
        kept(core::slice::from_ref(&port), streams.clone(), |_| ()),
        [(0, 0), (1, 0)],
        "a range may begin behind a bridge"
    );
    let roots = [&[Plan { left_bus: 8, ..port }][..], &[endpoint(&[])]].map(ModelBus::new);
    let functions = walk(host_of(TwoRoots(roots), 9, None, streams));
    let found: std::vec::Vec<_> = functions.iter().map(|function| (function.address().bus(), function.leak)).collect();
    assert_eq!(found, [(0, None), (8, None)]);
    assert_eq!(functions[0].bridge(), None);
}

#[test]
fn an_address_that_is_another_devices_is_not_kept() {
    let (given, model) = walk_model(&[endpoint(&[memory(16), memory(12)]), endpoint(&[memory(12)])], 255, LOW);
    let at = |function: usize, bar: usize| {
        let range = given[function].bar(bar).unwrap().range.unwrap();
        PhysRange::from_size(PhysAddr(range.start().0 - LOW_CPU + LOW.start), range.size()).unwrap()
    };
    let host = host_of(Shared(model), 255, None, IdMap::default());
    let taken = vec![PhysRange::from_size(at(0, 0).start() + 0xf000, PAGE).unwrap()];
    let functions = walk(Box::leak(Box::new(Host { taken, ..*host })));
    let kept = |function: usize, bar: usize| functions[function].bar(bar).unwrap().range;
    assert_eq!((kept(0, 0), kept(0, 1), kept(1, 0)), (None, Some(at(0, 1)), Some(at(1, 0))));
    let bus = model.0.lock().unwrap();
    assert_eq!((bus[0].decodes_memory(), bus[1].decodes_memory()), (false, true));
}

/// Random words; of four, `often` are ones that lead on: there is a bridge, there is a capability.
struct Liar {
    state: AtomicU64,
    often: u32,
}

impl ConfigSpace for Liar {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let old = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (old ^ old >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = (mixed ^ mixed >> 31) as u32;
        match (offset, (word >> 8) % 4 < self.often) {
            // Few devices, or the list is long.
            (0, _) if function.function() > 1 && word & 7 != 0 => !0,
            (0x0c, true) => 0x0001_0000,
            (0x34 | 0x40.., true) => word & 0xff_ff00ff | 0x4000,
            _ => word,
        }
    }
    fn write32(&self, _: PciAddress, _: u16, _: u32) {}
    fn write16(&self, _: PciAddress, _: u16, _: u16) {}
}

/// Each of its registers is the lower one of two.
struct AllWide;

impl ConfigSpace for AllWide {
    fn read32(&self, _: PciAddress, offset: u16) -> u32 {
        assert!((0x10..0x28).contains(&offset), "{offset:#x} is no base address register");
        0xffff_f004
    }
    fn write32(&self, function: PciAddress, offset: u16, _: u32) {
        self.read32(function, offset);
    }
    fn write16(&self, function: PciAddress, offset: u16, _: u16) {
        self.read32(function, offset);
    }
}

#[test]
fn the_last_register_has_none_for_the_upper_half_of_an_address() {
    let sizes = |count| {
        [count - 2, count - 1].map(|index| bar::size(&AllWide, PciAddress::new(0, 0, 0, 0), index, count).is_some())
    };
    assert_eq!([sizes(bar::COUNT), sizes(2)], [[true, false]; 2]);
}

#[test]
fn no_room_is_said_of_the_register_and_the_function_decodes_nothing() {
    let plans = [endpoint(&[memory(12), memory(29)]), endpoint(&[memory(20)])];
    let (functions, model) = walk_model(&plans, 255, LOW);
    let [large, small] = functions.try_into().ok().unwrap();
    assert_eq!(large.bar(1).unwrap().range, None);
    assert!(small.bar(0).unwrap().range.is_some());
    let bus = model.0.lock().unwrap();
    assert_eq!([&bus[0], &bus[1]].map(ModelNode::decodes_memory), [false, true]);
    drop(bus);
    let large = Box::leak(Box::new(large));
    let claim = large.claim("a test").unwrap();
    assert_eq!(claim.bar(2), Err(PciError::NoBar { function: claim.address(), index: 2 }));
    assert_eq!(claim.bar(usize::MAX).unwrap_err(), PciError::NoBar { function: claim.address(), index: usize::MAX });
}

#[test]
fn a_function_with_an_unknown_header_decodes_nothing() {
    let model = ModelBus::new(&[endpoint(&[memory(12)])]);
    model.0.lock().unwrap()[0].set(0x0c, 0x0002_0000);
    let host = host(model, 255, LOW);
    let [function] = walk(host).try_into().ok().unwrap();
    assert_eq!(function.bars().count(), 0);
    assert_eq!(function.read_config16(0x04).unwrap() & 0b111, 0);
}

/// Of the last mebibyte, which begins inside the window: its end is beyond all numbers.
#[test]
fn a_bridge_may_forward_the_end_of_all_addresses() {
    let end = u64::MAX - 0xffff;
    let plans = [bridge(ModelKind::RootPort, vec![endpoint(&[wide(19, true); 3])])];
    let low = LOW.start + 0x1000..LOW.start + 0x2000;
    let functions = walk(host_between(ModelBus::new(&plans), 255, low, end - (2 << 20)..end, [false, false]));
    assert!([0, 2, 4].iter().all(|&index| functions[1].bar(index).unwrap().range.is_some()));
    assert_eq!(functions[0].prefetchable_window().unwrap().size(), 2 << 20);
}

#[test]
fn what_is_too_large_for_the_low_window_goes_above_if_it_may() {
    let large = [wide(30, true), wide(30, false)];
    let plans = [
        endpoint(&large),
        bridge(ModelKind::RootPort, vec![endpoint(&large)]),
        bridge(ModelKind::Conventional, vec![endpoint(&large)]),
        Plan { prefetchable: false, ..bridge(ModelKind::RootPort, vec![endpoint(&large)]) },
    ];
    let (functions, _) = walk_model(&plans, 255, LOW);
    let high: std::vec::Vec<_> = functions
        .iter()
        .filter(|function| function.bridge().is_none())
        .map(|function| [0, 2].map(|index| function.bar(index).unwrap().range.is_some()))
        .collect();
    // A conventional bridge may read ahead, and one without the window forwards nothing there.
    assert_eq!(high, [[true, true], [true, true], [true, false], [false, false]]);
}

#[test]
fn what_reads_have_effects_on_is_in_no_window_that_may_read_ahead() {
    let wants = [memory(12), wide(30, true), wide(30, false)];
    let ranges = |prefetchable| {
        let functions = walk(host_with(ModelBus::new(&[endpoint(&wants)]), 255, LOW, prefetchable));
        [0, 1, 3].map(|index| functions[0].bar(index).unwrap().range.map(|range| range.start().0 >= HIGH.start))
    };
    assert_eq!(ranges([false, false]), [Some(false), Some(true), Some(true)]);
    assert_eq!(ranges([false, true]), [Some(false), Some(true), None]);
    assert_eq!(ranges([true, true]), [None, Some(true), None]);
}

#[test]
fn requesters_and_pins_behind_bridges_are_those_of_the_bridges() {
    let device = || endpoint(&[]);
    let plans = [
        device(),
        bridge(ModelKind::RootPort, vec![device()]),
        bridge(ModelKind::ToConventional, vec![device(), bridge(ModelKind::Conventional, vec![device(), device()])]),
        bridge(ModelKind::Conventional, vec![device(), device()]),
    ];
    let (functions, _) = walk_model(&plans, 255, LOW);
    let seen: std::vec::Vec<_> = functions
        .iter()
        .map(|function| (function.address.bus(), function.address.device(), function.requester, function.pin.unwrap()))
        .collect();
    // Each has pin A, 1. A pin is turned by the device's number wherever it crosses a bridge.
    assert_eq!(
        seen,
        [
            (0, 0, 0x0000, (0x0000, 1)),
            (0, 1, 0x0008, (0x0008, 1)),
            (1, 0, 0x0100, (0x0008, 1)),
            (0, 2, 0x0010, (0x0010, 1)),
            (2, 0, 0x0200, (0x0010, 1)),
            (2, 1, 0x0200, (0x0010, 2)),
            (3, 0, 0x0200, (0x0010, 2)),
            (3, 1, 0x0200, (0x0010, 3)),
            (0, 3, 0x0018, (0x0018, 1)),
            (4, 0, 0x0018, (0x0018, 1)),
            (4, 1, 0x0018, (0x0018, 2)),
        ]
    );
}

#[test]
fn a_list_of_capabilities_ends_wherever_it_leads() {
    let (functions, model) = walk_model(&[endpoint(&[])], 255, LOW);
    let count = |first: u32, entries: &[(usize, u32)]| {
        let mut bus = model.0.lock().unwrap();
        bus[0].set(0x34, first);
        entries.iter().for_each(|&(offset, value)| bus[0].set(offset, value));
        drop(bus);
        functions[0].capabilities().count()
    };
    assert_eq!(count(0x40, &[(0x40, 0x0000_5009), (0x50, 0x0000_0005)]), 2);
    assert_eq!(count(0x40, &[(0x40, 0x0000_4009)]), 48, "round and round");
    assert_eq!(count(0x40, &[(0x40, 0x0000_4000)]), 0, "the same, where the crate looks for what is none");
    assert_eq!(count(0x40, &[(0x40, 0x0000_5300), (0x50, 0x0000_4009)]), 0, "not aligned");
    assert_eq!(count(0xfc, &[(0xfc, 0x0000_0011)]), 1, "the table of MSI-X is beyond the end");
    assert_eq!(count(0, &[]), 0);
}

#[test]
fn bridges_nest_eight_deep_and_take_no_more_buses_than_there_are() {
    let nested = |depth| {
        (0..depth).fold(vec![endpoint(&[memory(12)])], |behind, _| vec![bridge(ModelKind::Conventional, behind)])
    };
    for (depth, last_bus, found) in [(8, 255, 9), (9, 255, 9), (3, 2, 3), (5, 0, 1)] {
        let (functions, _) = walk_model(&nested(depth), last_bus, LOW);
        assert_eq!(functions.len(), found, "{depth} deep, {last_bus} buses");
        let closed = functions.iter().filter(|function| function.bridge().is_none()).count();
        assert_eq!(closed, 1, "the endpoint, or the last bridge");
    }
}

#[test]
fn a_bridge_has_no_driver_and_a_function_has_one() {
    let plans = [endpoint(&[memory(12)]), bridge(ModelKind::RootPort, vec![])];
    let (functions, model) = walk_model(&plans, 255, LOW);
    let functions = functions.leak();
    assert_eq!(functions[1].claim("a").map(drop), Err(PciError::Bridge(functions[1].address())));
    let claim = functions[0].claim("a").unwrap();
    assert_eq!(functions[0].claim("b").map(drop), Err(PciError::Claimed(claim.address(), "a")));
    claim.set_bus_master(true);
    let command = || model.read32(functions[0].address(), 4) & 0x406;
    assert_eq!(command(), 0x406, "memory, bus master, no pin");
    assert_eq!(claim.write_config32(2, 0), Err(PciError::BadOffset(2, 4)));
    assert_eq!(claim.write_config16(4096, 0), Err(PciError::BadOffset(4096, 2)));
    assert_eq!(claim.read_config16(2), Ok(0x5678));
    assert_eq!(claim.read_config16(1), Err(PciError::BadOffset(1, 2)));
    drop(claim);
    assert_eq!((command(), functions[0].owner()), (0x402, None));
}

/// Source Validation, Request Redirect, Completion Redirect, Upstream Forwarding.
const ACS: u16 = 0b1_1101;

fn each_node(bus: &[ModelNode], look: &mut dyn FnMut(&ModelNode)) {
    for node in bus {
        look(node);
        each_node(&node.behind, look);
    }
}

/// A boot loader that has used the machine leaves every bridge with the bus number that it gave it, or the same one.
#[test]
fn bridges_that_firmware_gave_one_bus_are_closed_before_the_walk_goes_behind_them() {
    let port = |left_bus, behind| Plan { left_bus, ..bridge(ModelKind::RootPort, behind) };
    let plans = [
        port(1, vec![endpoint(&[memory(16)])]),
        port(1, vec![endpoint(&[memory(12)])]),
        port(2, vec![endpoint(&[memory(12)])]),
    ];
    // The model panics where two bridges answer for one bus.
    let (functions, _) = walk_model(&plans, 255, LOW);
    assert_eq!(functions.len(), 6);
}

#[test]
fn what_firmware_left_on_is_off() {
    let plans = [endpoint(&[memory(16)]), bridge(ModelKind::RootPort, vec![endpoint(&[wide(16, true)])])];
    let before = ModelBus::new(&plans);
    each_node(&before.0.lock().unwrap(), &mut |node| assert_eq!(node.is_on().len(), 8 + usize::from(node.is_bridge())));
    let (_, model) = walk_model(&plans, 255, LOW);
    each_node(&model.0.lock().unwrap(), &mut |node| assert_eq!((node.is_on(), &*node.wrong), (vec![], &[][..])));
}

/// Which functions are isolated, by their order in the walk, bridges left out.
fn isolated(plans: &[Plan]) -> std::vec::Vec<Result<(), NotIsolated>> {
    let (functions, _) = walk_model(plans, 255, LOW);
    let functions = Box::leak(functions.into_boxed_slice());
    let endpoints = || functions.iter().filter(|function| function.bridge().is_none());
    endpoints()
        .map(|function| function.isolation_among(endpoints().filter(|other| other.address() != function.address())))
        .collect()
}

#[test]
fn a_single_function_on_the_hosts_own_bus_is_isolated() {
    assert_eq!(isolated(&[endpoint(&[]), endpoint(&[])]), [Ok(()), Ok(())]);
}

#[test]
fn behind_a_port_acs_decides() {
    let port = |acs, behind| Plan { acs, ..bridge(ModelKind::RootPort, behind) };
    assert_eq!(isolated(&[port(Some(ACS), vec![endpoint(&[])])]), [Ok(())]);
    // A control that the capability does not offer is wired to on.
    assert_eq!(isolated(&[port(Some(ACS & !1), vec![endpoint(&[])])]), [Ok(())]);
    let [Err(NotIsolated::Port(_, at))] = isolated(&[port(None, vec![endpoint(&[])])])[..] else { panic!() };
    assert_eq!((at.bus(), at.device()), (0, 0));
    // The first port on the way decides for all behind it.
    let nested = port(None, vec![port(Some(ACS), vec![endpoint(&[])])]);
    assert!(matches!(isolated(&[nested])[..], [Err(NotIsolated::Port(..))]));
}

#[test]
fn functions_behind_a_conventional_bus_are_one_to_the_host() {
    let bus = |devices: usize| bridge(ModelKind::ToConventional, vec![endpoint(&[]); devices]);
    assert_eq!(isolated(&[bus(1)]), [Ok(())]);
    assert!(matches!(isolated(&[bus(2)])[..], [Err(NotIsolated::SameRequester(..)), Err(_)]));
    let nested =
        bridge(ModelKind::ToConventional, vec![endpoint(&[]), bridge(ModelKind::Conventional, vec![endpoint(&[])])]);
    assert!(matches!(isolated(&[nested])[..], [Err(NotIsolated::SameRequester(..)), Err(_)]));
}

/// A function stays its driver's for as long as the driver has registers of it.
#[test]
#[allow(unsafe_code, reason = "registers of devices, mapped by the claim of a function")]
fn registers_outlive_a_claim_and_the_function_is_no_other_drivers_meanwhile() {
    let (functions, _) = walk_model(&[endpoint(&[memory(16)])], 255, LOW);
    let function = &Box::leak(functions.into_boxed_slice())[0];
    let claim = function.claim("one").unwrap();
    // SAFETY: never accessed.
    let region = unsafe { MmioRegion::of(claim.function(), VirtAddr(0x1000), 0x1000) };
    let part = region.part(0x10, 0x10).unwrap();
    drop(claim);
    assert_eq!(function.owner(), Some("one"));
    drop(region);
    assert!(matches!(function.claim("two"), Err(PciError::Claimed(_, "one"))));
    drop(part);
    assert!(function.claim("two").is_ok());
}
