//! Places of virtio devices that are no PCI functions: interrupts, the SMMU in front of each, and what makes no sense.

use super::*;
use crate::platform::{VirtioMmio, dma_reach};

/// The properties of a place, beside its kind.
type Properties<'a> = &'a [(&'a str, Vec<u8>)];

/// A place as QEMU's virt has them.
fn place(tree: &mut TreeBuilder, number: u32, properties: Properties<'_>) {
    let registers = 0xa00_0000 + 0x200 * number;
    tree.node(&format!("virtio_mmio@{registers:x}"), |tree| {
        let own = [("interrupts", cells(&[0, 16 + number, 1])), ("reg", cells(&[0, registers, 0, 0x200]))];
        for (name, value) in &own {
            let value = properties.iter().find(|(other, _)| other == name).map_or(value, |(_, value)| value);
            tree.property(name, value);
        }
        properties.iter().filter(|(name, _)| own.iter().all(|(other, _)| other != name)).for_each(|(name, value)| {
            tree.property(name, value);
        });
        tree.property("compatible", &text(&["virtio,mmio"]));
    });
}

/// The machine with these nodes in front of all others: what they refer to comes after them.
fn with(nodes: &dyn Fn(&mut TreeBuilder)) -> Platform {
    Platform::parse(&virt_with(&Machine::default(), nodes, &|_| {})).unwrap()
}

/// The place that has these properties, if it makes sense.
fn one(properties: Properties<'_>) -> Option<VirtioMmio> {
    let platform = with(&|tree| place(tree, 3, properties));
    assert!(platform.virtio.len() <= 1 && platform.pcie.is_some(), "no harm to others");
    platform.virtio.first().copied()
}

#[test]
fn each_place_has_its_registers_and_its_interrupt() {
    let platform = with(&|tree| (0..32).for_each(|number| place(tree, number, &[("dma-coherent", Vec::new())])));
    assert_eq!(platform.virtio.len(), 32);
    let VirtioMmio { registers, interrupt, stream, coherent, dma } = platform.virtio[31];
    assert_eq!((registers, stream, coherent), (range(0xa00_3e00, 0xa00_4000), None, true));
    assert_eq!(interrupt, Some(Interrupt { intid: 79, trigger: Trigger::Edge }));
    assert_eq!(dma_reach(&[dma], 0, true), Some(u64::MAX - 1));
    assert_eq!(platform.virtio_registers(), [range(0xa00_0000, 0xa00_4000)], "mapped in one piece");
    assert!(
        platform.memory_and_registers().any(|range| range.contains(PhysAddr(0xa00_0000))),
        "no function is put there"
    );
}

#[test]
fn pieces_of_registers_are_joined_in_any_order() {
    let at = |page: u32| [("reg", cells(&[0, 0xa00_0000 + page * 0x1000 + 0x200, 0, 0x200]))];
    let platform = with(&|tree| [5, 9, 4, 6, 8].into_iter().for_each(|page| place(tree, page, &at(page))));
    assert_eq!(platform.virtio_registers(), [range(0xa00_4000, 0xa00_7000), range(0xa00_8000, 0xa00_a000)]);
    let platform = with(&|tree| [4, 6, 5].into_iter().for_each(|page| place(tree, page, &at(page))));
    assert_eq!(platform.virtio_registers(), [range(0xa00_4000, 0xa00_7000)], "the last closes the gap");
}

#[test]
fn registers_are_one_places() {
    let other = [("reg", cells(&[0, 0xa00_0780, 0, 0x200]))];
    let platform = with(&|tree| {
        place(tree, 3, &[]);
        place(tree, 4, &other);
        place(tree, 5, &[]);
    });
    let starts = platform.virtio.iter().map(|place| place.registers.start().0);
    assert_eq!(starts.collect::<std::vec::Vec<_>>(), [0xa00_0600, 0xa00_0a00]);
}

#[test]
fn a_level_is_one_and_a_device_without_an_interrupt_is_polled() {
    let interrupt = |cells_of: &[u32]| one(&[("interrupts", cells(cells_of))]).unwrap().interrupt;
    assert_eq!(interrupt(&[0, 5, 4]), Some(Interrupt { intid: 37, trigger: Trigger::Level }));
    assert_eq!(interrupt(&[]), None);
    assert_eq!(interrupt(&[0, 5, 4, 0, 6, 4]).map(|interrupt| interrupt.intid), Some(37), "the first");
    assert_eq!(interrupt(&[0, 5, 4, 0, 6]), None, "no whole number of lines");
    assert_eq!(interrupt(&[1, 5, 4]), None, "private to each CPU");
    assert_eq!(interrupt(&[0, 988, 4]), None, "too large");
    let extended = one(&[("interrupts-extended", cells(&[0x8002, 0, 7, 4]))]).unwrap().interrupt;
    assert_eq!(extended.map(|interrupt| interrupt.intid), Some(39));
    assert_eq!(one(&[("interrupt-parent", cells(&[0x8004]))]).unwrap().interrupt, None, "another's");
}

#[test]
fn an_smmu_in_front_of_a_device_knows_it_by_its_stream() {
    let stream = |iommus: &[u32]| one(&[("iommus", cells(iommus))]).map(|place| place.stream);
    let of = |phandle, id| Some(Some(MappedId { phandle, id }));
    assert_eq!(one(&[]).unwrap().stream, None);
    assert_eq!(stream(&[0x8004, 0x77]), of(0x8004, 0x77));
    assert_eq!(stream(&[0x8004, !0]), of(0x8004, !0), "whether there is such a stream only the SMMU knows");
    assert_eq!(stream(&[0x8003, 0]), of(0x8003, 0), "of what is no SMMU: refused, not let through");
    // Of other IOMMUs, or of several streams: there is an IOMMU, so the device must not seem to have none.
    for iommus in [&[][..], &[0x8004], &[0x8004, 1, 2], &[0x8004, 1, 0x8004, 2]] {
        assert_eq!(stream(iommus), None, "{iommus:?}");
    }
    assert_eq!(one(&[("iommus", vec![0x80; 7])]), None);
}

#[test]
fn a_device_sees_the_caches_where_its_node_or_its_bus_says_so() {
    let on_bus = |bus: &str, properties: Properties<'_>| {
        let platform = with(&|tree| {
            tree.node("soc", |tree| {
                tree.property("#address-cells", &cells(&[2]));
                tree.property("#size-cells", &cells(&[2]));
                tree.property("ranges", &[]);
                tree.property(bus, &[]);
                place(tree, 0, properties);
            });
        });
        platform.virtio[0].coherent
    };
    let non = [("dma-noncoherent", Vec::new())];
    assert_eq!([on_bus("none", &[]), on_bus("dma-coherent", &[]), on_bus("dma-coherent", &non)], [false, true, false]);
    assert!(!one(&[]).unwrap().coherent);
}

#[test]
fn a_device_reaches_what_its_bus_passes_on() {
    let reach = |dma: &[u32]| {
        let platform = with(&|tree| {
            tree.node("soc", |tree| {
                tree.property("#address-cells", &cells(&[2]));
                tree.property("#size-cells", &cells(&[2]));
                tree.property("ranges", &[]);
                tree.property("dma-ranges", &cells(dma));
                place(tree, 0, &[]);
            });
        });
        platform.virtio.first().map(|place| dma_reach(&[place.dma], 0, true))
    };
    assert_eq!(reach(&[]), Some(Some(u64::MAX - 1)));
    assert_eq!(reach(&[0, 0, 0, 0, 1, 0]), Some(Some(0xffff_ffff)));
    assert_eq!(reach(&[0, 0, 0, 0x4000_0000, 1, 0]), Some(None), "moved");
    assert_eq!(reach(&[0, 0, 0, 0, 0, 0x1000, 0, 0x2000, 0, 0x2000, 0, 0x1000]), None, "in two pieces");
    assert_eq!(reach(&[0, 0, 0]), None);
}

#[test]
fn a_place_that_makes_no_sense_is_left_out() {
    let reg = |reg: &[u32]| one(&[("reg", cells(reg))]);
    assert!(reg(&[0, 0xa00_0000, 0, 0x100]).is_some());
    for bad in [
        &[0, 0xa00_0000, 0, 0xfc][..],
        &[0, 0xa00_0002, 0, 0x200],
        &[0, 0xa00_0000, 0, 0],
        &[0, 0xa00_0000, 0],
        &[!0, !0, 0, 0x200],
    ] {
        assert_eq!(reg(bad), None, "{bad:x?}");
    }
    assert_eq!(one(&[("status", text(&["disabled"]))]), None);
    let many = with(&|tree| (0..40).for_each(|number| place(tree, number, &[])));
    assert_eq!((many.virtio.len(), many.virtio[31].interrupt.map(|interrupt| interrupt.intid)), (32, Some(79)));
}
