//! PCIe hosts: their windows, interrupts, SMMUs, and the reach of their devices.

use super::*;

#[test]
fn qemu_virts_pcie_host() {
    let platform = parse(&Machine::default());
    assert_eq!(platform.its, Some(Its { registers: range(0x808_0000, 0x80a_0000) }));
    let host = platform.pcie.unwrap();
    assert_eq!((host.buses, host.coherent), ((0, 255), true));
    assert_eq!(host.bus(255), Some(range(0x40_1ff0_0000, 0x40_2000_0000)));
    let window = |kind, bus, start, end| Window { kind, prefetchable: false, bus, cpu: range(start, end) };
    let windows = [
        window(WindowKind::Io, 0, 0x3eff_0000, 0x3f00_0000),
        window(WindowKind::Memory32, 0x1000_0000, 0x1000_0000, 0x3eff_0000),
        window(WindowKind::Memory64, 0x80_0000_0000, 0x80_0000_0000, 0x100_0000_0000),
    ];
    assert_eq!(host.windows.as_deref(), Some(&windows[..]));
    assert_eq!(host.streams.find(0x0108), Some(MappedId { phandle: 0x8004, id: 0x0108 }));
    assert_eq!(platform.smmus[0].phandle, Some(0x8004));
    assert_eq!(host.devices.find(0xffff).map(|device| device.id), Some(0xffff));
    // Only the two lowest bits of the device count; each device begins one pin further.
    let line = |requester, pin| host.lines.find(requester, pin).map(|line| (line.intid, line.trigger));
    assert_eq!(line(0x00 << 3, 1), Some((35, Trigger::Level)));
    assert_eq!(line(0x01 << 3, 1), Some((36, Trigger::Level)));
    assert_eq!(line(0x05 << 3, 2), Some((37, Trigger::Level)));
    assert_eq!(line(0x01 << 3, 3), None);
}

/// The host with one property changed.
fn host(property: &'static str, value: &[u8]) -> Option<Pcie> {
    parse(&Machine { broken: (property, value.to_vec()), ..Machine::default() }).pcie
}

#[test]
fn maps_of_identifiers_have_ranges_masks_and_other_controllers() {
    let find = |map: &[u32], requester| host("iommu-map", &cells(map)).unwrap().streams.find(requester);
    let two = [0, 0x8004, 0x100, 0x10, 0x1000, 0x8004, 0x2000, 0x100];
    let of = |phandle, id| Some(MappedId { phandle, id });
    assert_eq!(find(&two, 0x000f), of(0x8004, 0x10f));
    assert_eq!(find(&two, 0x0010), None);
    assert_eq!(find(&two, 0x1001), of(0x8004, 0x2001));
    assert_eq!(find(&[0, 0x8003, 0, 0x1_0000], 8), of(0x8003, 8), "of what is no SMMU: refused, not let through");
    assert_eq!(find(&[0, 0x8004, 0, 8, 8, 0x8005, 0, 8], 9), of(0x8005, 1), "each function has its own");
    assert_eq!(find(&[], 8), None);
    let without_its = parse(&Machine { gic: gic_v2, ..Machine::default() });
    assert_eq!((without_its.its, without_its.pcie.unwrap().devices.find(8)), (None, None));
}

#[test]
fn a_gicv2m_takes_messages_where_there_is_no_its() {
    fn frame(tree: &mut TreeBuilder, phandle: u32, more: &[(&'static str, u32)]) {
        tree.node("v2m@8020000", |tree| {
            tree.property("phandle", &cells(&[phandle]));
            tree.property("reg", &cells(&[0, 0x802_0000, 0, 0x1000]));
            tree.property("compatible", &text(&["arm,gic-v2m-frame"]));
            more.iter().for_each(|(name, value)| tree.property(name, &cells(&[*value])));
        });
    }
    let frame_of = |platform: &Platform| platform.message_frame.map(|frame| (frame.registers, frame.interrupts));
    let registers = range(0x802_0000, 0x802_1000);
    let more = |tree: &mut TreeBuilder| frame(tree, 0x8003, &[]);
    let by_register = parse(&Machine { gic: gic_v2, more, ..Machine::default() });
    assert_eq!(frame_of(&by_register), Some((registers, None)));
    assert_eq!(by_register.pcie.as_ref().unwrap().devices.find(8), Some(MappedId { phandle: 0x8003, id: 8 }));
    assert!(by_register.memory_and_registers().any(|range| range == registers), "no device is put there");
    let more = |tree: &mut TreeBuilder| frame(tree, 0x8003, &[("arm,msi-base-spi", 100), ("arm,msi-num-spis", 7)]);
    let by_tree = parse(&Machine { gic: gic_v2, more, ..Machine::default() });
    assert_eq!(frame_of(&by_tree), Some((registers, Some((100, 7)))));
    let more = |tree: &mut TreeBuilder| frame(tree, 0x8003, &[("arm,msi-base-spi", 100), ("arm,msi-num-spis", 0)]);
    let half = parse(&Machine { gic: gic_v2, more, ..Machine::default() });
    assert_eq!(frame_of(&half), Some((registers, None)), "both or none");
    // A GICv3 has its ITS, and the frame that the map refers to is none of its.
    let beside = parse(&Machine {
        more: |tree| frame(tree, 0x8005, &[]),
        broken: ("msi-map", cells(&[0, 0x8005, 0, 0x1_0000])),
        ..Machine::default()
    });
    assert!(beside.its.is_some() && beside.message_frame.is_none());
    assert_eq!(beside.pcie.unwrap().devices.find(8), None);
}

/// A tree with another SMMU, or several, whose properties are `properties`.
fn smmus(more: fn(&mut TreeBuilder)) -> heapless::Vec<Smmu, MAX_SMMUS> {
    parse(&Machine { more, ..Machine::default() }).smmus
}

fn smmu(tree: &mut TreeBuilder, phandle: u32, interrupts: &[u32], reg: &[u32]) {
    tree.node(&format!("iommu@{phandle:x}"), |tree| {
        tree.property("phandle", &cells(&[phandle]));
        tree.property("interrupt-names", &text(&["gerror", "eventq"]));
        tree.property("interrupts", &cells(interrupts));
        tree.property("reg", &cells(reg));
        tree.property("compatible", &text(&["arm,mmu-700", "arm,smmu-v3"]));
    });
}

#[test]
fn an_smmu_is_kept_without_the_interrupts_that_make_no_sense() {
    const REG: [u32; 4] = [0, 0x905_0000, 0, 0x2_0000];
    let lines = |smmu: &Smmu| [smmu.global_error, smmu.event_queue].map(|line| line.map(|line| line.intid));
    let found = smmus(|tree| smmu(tree, 0x8010, &[7, 80, 1, 0, 81, 1], &REG));
    assert_eq!(lines(&found[1]), [None, Some(113)], "one kind is unknown");
    let found = smmus(|tree| smmu(tree, 0x8010, &[0, 80, 1, 0, 988, 1], &REG));
    assert_eq!(lines(&found[1]), [Some(112), None], "one number is too large");
    let found = smmus(|tree| smmu(tree, 0x8010, &[0, 80, 1, 0], &REG));
    assert_eq!(lines(&found[1]), [None; 2], "not three cells each");
    let found = smmus(|tree| smmu(tree, 0x8010, &[0, 80, 1], &REG));
    assert_eq!(lines(&found[1]), [Some(112), None], "fewer than names");
}

#[test]
fn of_two_properties_of_one_name_the_first_counts() {
    let twice = |tree: &mut TreeBuilder| {
        tree.node("smmu@9050000", |tree| {
            for registers in [0x905_0000, 0x906_0000] {
                tree.property("reg", &cells(&[0, registers, 0, 0x2_0000]));
            }
            tree.property("compatible", &text(&["arm,smmu-v3"]));
        });
    };
    assert_eq!(smmus(twice)[1].registers, range(0x905_0000, 0x907_0000));
}

/// As Linux's `of_dma_is_coherent`.
#[test]
fn coherence_is_a_nodes_own_or_that_of_the_bus_it_is_on() {
    let coherent = |more| smmus(more)[1].coherent;
    const REG: [u32; 4] = [0, 0x905_0000, 0, 0x2_0000];
    fn on_bus(tree: &mut TreeBuilder, names: &[&'static str]) {
        tree.node("soc", |tree| {
            tree.property("#address-cells", &cells(&[2]));
            tree.property("#size-cells", &cells(&[2]));
            tree.property("ranges", &[]);
            tree.property("dma-coherent", &[]);
            tree.node("bus", |tree| {
                tree.property("#address-cells", &cells(&[2]));
                tree.property("#size-cells", &cells(&[2]));
                tree.property("ranges", &[]);
                names.iter().for_each(|name| tree.property(name, &[]));
                smmu(tree, 0x8010, &[], &REG);
            });
        });
    }
    assert!(!coherent(|tree| smmu(tree, 0x8010, &[], &REG)), "no node has anything");
    assert!(coherent(|tree| on_bus(tree, &[])));
    assert!(!coherent(|tree| on_bus(tree, &["dma-noncoherent"])));
    assert!(coherent(|tree| on_bus(tree, &["dma-coherent", "dma-noncoherent"])));
}

#[test]
fn every_smmu_is_found_and_one_that_makes_no_sense_keeps_its_functions_from_memory() {
    let found = smmus(|tree| smmu(tree, 0x8010, &[], &[0, 0x1_0000, 0, 0x2_0000]));
    let places = |smmus: &[Smmu]| smmus.iter().map(|smmu| (smmu.phandle, smmu.registers.start().0)).collect::<Vec<_>>();
    assert_eq!(places(&found), [(Some(0x8004), 0x905_0000), (Some(0x8010), 0x1_0000)]);
    // No registers: it is left out, and the map still leads to it.
    let map = cells(&[0, 0x8010, 0, 0x1_0000]);
    let broken: fn(&mut TreeBuilder) = |tree| smmu(tree, 0x8010, &[], &[0, 0x1_0000]);
    let platform = parse(&Machine { broken: ("iommu-map", map), more: broken, ..Machine::default() });
    assert_eq!(places(&platform.smmus), [(Some(0x8004), 0x905_0000)]);
    assert_eq!(platform.pcie.unwrap().streams.find(8), Some(MappedId { phandle: 0x8010, id: 8 }));
    let many: fn(&mut TreeBuilder) = |tree| {
        (0..MAX_SMMUS as u32).for_each(|at| smmu(tree, 0x8010 + at, &[], &[0, at << 20, 0, 0x2_0000]));
    };
    assert_eq!(smmus(many).len(), MAX_SMMUS, "the last is left out");
}

/// Windows of a host with these entries of `ranges`: first cell, bus, size. The CPU has them from 0x20_0000_0000 on.
fn windows(ranges: &[(u32, u64, u64)]) -> Vec<(WindowKind, bool, u64, u64)> {
    let split = |value: u64| [(value >> 32) as u32, value as u32];
    let entry = |(space, bus, size)| [&[space][..], &split(bus), &[0x20, 0], &split(size)].concat();
    let ranges: Vec<u32> = ranges.iter().copied().flat_map(entry).collect();
    let windows = host("ranges", &cells(&ranges)).unwrap().windows.unwrap();
    assert!(windows.iter().all(|window| window.cpu.start() == PhysAddr(0x20_0000_0000)));
    windows.iter().map(|window| (window.kind, window.prefetchable, window.bus, window.cpu.size())).collect()
}

/// As in the trees of Juno, Morello, LS1028A, i.MX 94 and RK3399.
#[test]
fn a_window_is_of_the_kind_that_its_addresses_have() {
    use WindowKind::{Io, Memory32, Memory64};
    const GIB: u64 = 1 << 30;
    let kinds =
        |ranges: &[(u32, u64, u64)]| windows(ranges).iter().map(|window| (window.0, window.1)).collect::<Vec<_>>();
    let morello =
        [(0x100_0000, 0, 0x80_0000), (0x200_0000, 0x6000_0000, 0xf00_0000), (0x4200_0000, 36 * GIB, 127 * GIB)];
    assert_eq!(kinds(&morello), [(Io, false), (Memory32, false), (Memory64, true)]);
    let ls1028a = [0x8200_0000, 0xc200_0000, 0x8200_0000, 0xc200_0000, 0x8200_0000, 0xc200_0000, 0x8200_0000];
    let ls1028a = ls1028a.iter().zip(0..).map(|(&space, at)| (space, 0x1_f800_0000 + (at << 20), 1 << 20));
    let above = windows(&ls1028a.collect::<Vec<_>>());
    assert_eq!(above.len(), 7);
    assert!(
        above
            .iter()
            .zip(0..)
            .all(|(window, at)| *window == (Memory64, at & 1 == 1, 0x1_f800_0000 + (at << 20), 1 << 20))
    );
    assert_eq!(kinds(&[(0x8300_0000, 0xfa00_0000, 0x1e0_0000)]), [(Memory32, false)], "called 64 bits");
    assert_eq!(kinds(&[(0x4300_0000, 0xfa00_0000, 0x1e0_0000)]), [(Memory64, true)], "32 bits may not be read ahead");
    assert_eq!(kinds(&[(0x200_0000, 4 * GIB - 0x1000, 0x1000)]), [(Memory32, false)]);
    assert_eq!(kinds(&[(0x200_0000, 4 * GIB - 0x1000, 0x1001)]), [(Memory64, false)]);
}

#[test]
fn a_window_that_makes_no_sense_or_has_no_room_is_left_out_alone() {
    let good = (0x200_0000, 0x1000_0000, 0x1000);
    let configuration = (0, 0, 0x1000);
    for bad in [(0x200_0000, 0, 0), (0x300_0000, u64::MAX, 2), (0x300_0000, 0, u64::MAX)] {
        assert_eq!(windows(&[bad, configuration, good]), windows(&[good]), "{bad:x?}");
    }
    let many = (0..9).map(|at| (0x200_0000, at << 12, 0x1000)).collect::<Vec<_>>();
    assert_eq!(windows(&many), windows(&many[..8]));
    assert_eq!(windows(&many[..8]).len(), 8);
}

/// A memory piece of a host's `dma-ranges`.
fn dma_piece(bus: u64, cpu: u64, size: u64) -> [u32; 7] {
    let [bus, cpu, size] = [bus, cpu, size].map(|value| [(value >> 32) as u32, value as u32]);
    [0x4300_0000, bus[0], bus[1], cpu[0], cpu[1], size[0], size[1]]
}

/// The end of the devices' reach with these pieces, from an address on.
fn dma_reach(pieces: &[[u32; 7]], first: u64, unchanged: bool) -> Option<u64> {
    host("dma-ranges", &cells(&pieces.concat())).unwrap().dma_reach(first, unchanged)
}

#[test]
fn devices_reach_what_the_host_bridge_passes_on() {
    const LAST: u64 = u64::MAX - 1;
    assert_eq!(parse(&Machine::default()).pcie.unwrap().dma_reach(0, true), Some(LAST), "without any all is passed on");
    assert_eq!(dma_reach(&[], 0, true), Some(LAST), "and with an empty one");
    let memory = dma_piece(0x4000_0000, 0x4000_0000, 0x4000_0000);
    assert_eq!(dma_reach(&[memory], 0, false), None);
    assert_eq!(dma_reach(&[memory], 0x4000_0000, true), Some(0x7fff_ffff));
    assert_eq!(dma_reach(&[memory], 0x7fff_ffff, true), Some(0x7fff_ffff));
    assert_eq!(dma_reach(&[memory], 0x8000_0000, true), None);
    // In any order, one after the other.
    let behind = dma_piece(0x8000_0000, 0x8000_0000, 0x1000);
    assert_eq!(dma_reach(&[behind, memory], 0x4000_0000, true), Some(0x8000_0fff));
    // Elsewhere: an SMMU would see the bus's address.
    let moved = dma_piece(0, 0x4000_0000, 0x1000_0000);
    assert_eq!([false, true].map(|unchanged| dma_reach(&[moved], 0, unchanged)), [Some(0xfff_ffff), None]);
    // Ports are no memory, and pieces without bytes none.
    let mut ports = dma_piece(0, 0, 0x1000);
    ports[0] = 0x100_0000;
    assert_eq!(dma_reach(&[ports, dma_piece(0, 0, 0)], 0, false), None);
    for value in [cells(&memory[..6]), cells(&dma_piece(0, 0, 1).repeat(9))] {
        assert_eq!(host("dma-ranges", &value), None);
    }
}

/// A host bridge on a bus that passes on these addresses of its own: bus, CPU, size, two cells each.
#[test]
fn buses_on_the_way_up_have_dma_ranges_too() {
    let reach = |bus: &[u32], own: Option<[u32; 7]>, first, unchanged| {
        let soc = |tree: &mut TreeBuilder| {
            tree.node("soc", |tree| {
                tree.property("#address-cells", &cells(&[2]));
                tree.property("#size-cells", &cells(&[2]));
                tree.property("ranges", &[]);
                tree.property("dma-ranges", &cells(bus));
                tree.node("pcie@4010000000", |tree| {
                    virt_pcie().iter().for_each(|(name, value)| tree.property(name, value));
                    own.iter().for_each(|piece| tree.property("dma-ranges", &cells(piece)));
                });
            });
        };
        let tree = virt_with(&Machine::default(), &soc, &|_| {});
        Platform::parse(&tree).unwrap().pcie.and_then(|host| host.dma_reach(first, unchanged))
    };
    let everything = dma_piece(0, 0, 1 << 40);
    assert_eq!(reach(&[], None, 0, true), Some(u64::MAX - 1));
    assert_eq!(reach(&[0, 0, 0, 0, 1, 0], None, 0, true), Some(0xffff_ffff), "as far as the bus goes");
    assert_eq!(reach(&[0, 0, 0, 0, 1, 0], Some(everything), 0, true), Some(0xffff_ffff));
    // The bus moves what the bridge has moved already.
    let up = dma_piece(0, 0x4000_0000, 0x2000);
    assert_eq!(reach(&[0, 0x4000_1000, 0, 0x1000, 0, 0x1000], Some(up), 0x1000, true), Some(0x1fff));
    assert_eq!(reach(&[0, 0x4000_1000, 0, 0x1000, 0, 0x1000], Some(up), 0, false), None);
    assert_eq!(reach(&[0, 0x8000_0000, 0, 0x8000_0000, 0, 0x1000], Some(up), 0, false), None, "past each other");
    let over = dma_piece(!0xfff, 0, 1 << 32);
    assert_eq!(
        reach(&[0, 0x8000_0000, 0, 0x8000_0000, 0, 0x1000], Some(over), 0, false),
        None,
        "over the last address"
    );
    assert_eq!(reach(&[0, 0, 0], None, 0, true), Some(u64::MAX - 1), "of the bridge behind: this one is left out");
}

#[test]
fn a_host_whose_node_makes_no_sense_is_left_out() {
    let ecam = cells(&[0x40, 0x1000_0000, 0, 0x10_0000]);
    assert_eq!(host("reg", &ecam).unwrap().buses, (0, 0), "as many buses as there is configuration space");
    assert_eq!(host("bus-range", &cells(&[4, 8])).unwrap().bus(4).unwrap().start(), PhysAddr(0x40_1000_0000));
    assert_eq!(host("ranges", &[]).unwrap().windows.as_deref(), Some(&[][..]));
    for (property, value) in [
        ("bus-range", cells(&[8, 4])),
        ("bus-range", cells(&[0, 256])),
        ("bus-range", vec![0, 0]),
        ("reg", cells(&[0x40, 0x1000_0000, 0, 0xf_ffff])),
        ("reg", cells(&[0x40, 0x1000_0000, 0])),
        ("#address-cells", cells(&[2])),
        ("ranges", cells(&[0x200_0000, 0, 0x1000_0000])),
        ("iommu-map", cells(&[0, 0x8004, 0])),
        ("iommu-map", cells(&[0, 0x8004, !0, 2])),
        ("iommu-map", cells(&[!0, 0x8004, 0, 2])),
    ] {
        assert_eq!(host(property, &value), None, "{property} = {value:x?}");
    }
}

#[test]
fn a_host_is_used_without_messages_and_lines_that_make_no_sense() {
    for (property, value) in [
        ("msi-map", cells(&[0, 0x8003, !0, 0x1_0000])),
        ("msi-map", cells(&[0, 0x8003, 0, 1].repeat(17))),
        ("interrupt-map", cells(&[0, 0, 0, 1, 0x8002, 0, 0, 0, 3])),
        ("interrupt-map", cells(&[0, 0, 0, 1, 0x8002, 0, 0, 7, 3, 4])),
        ("interrupt-map-mask", cells(&[0, 0, 0])),
    ] {
        let host = host(property, &value).unwrap();
        let has = (host.devices.find(0).is_some(), host.lines.find(0, 1).is_some());
        assert_eq!(has, (property != "msi-map", property == "msi-map"), "{property} = {value:x?}");
    }
    let line = |device: u32| [device << 11, 0, 0, 1, 0x8002, 0, 0, 0, device, 4];
    let map = cells(&(0..31).flat_map(line).chain(line(2)).chain(line(3)).collect::<Vec<_>>());
    assert!(host("interrupt-map", &map).unwrap().lines.find(0, 1).is_some(), "more than there is room for");
    // Of an unknown controller the length of an entry is unknown.
    let cut = cells(&[0, 0, 0, 1, 0x8002, 0, 0, 0, 3, 4, 0x800, 0, 0, 1, 0x77, 5]);
    let lines = host("interrupt-map", &cut).unwrap().lines;
    assert_eq!((lines.find(0, 1).map(|line| line.intid), lines.find(8, 1)), (Some(35), None));
}
