//! ACPI's tables like QEMU's, like those of boards, and broken ones: the machine that the kernel reads from them.

use granule::platform::{
    Conduit, ControllerDescription, CpuNode, EnableMethod, Interrupt, MessageFrame, Pcie, PhysicalMemory, Platform,
    PlatformError, Psci, PsciFunctions, Redistributors, RegisterWidth, SysconWrite, TableError, Trigger, Uart,
    UartKind, UartLayout,
};
use granule_arch::addr::{PhysAddr, PhysRange};
use granule_runner::acpi::{self, Gic, Smmu, Virt};
use proptest::prelude::*;
use proptest::sample::Index;

/// Where the tables lie: beyond all memory of the machine.
const AT: u64 = 0xf_0000_0ff8;

/// Memory that holds these bytes from [`AT`] on, and nothing elsewhere.
struct Firmware(Vec<u8>);

impl PhysicalMemory for Firmware {
    fn bytes(&mut self, range: PhysRange) -> Option<&[u8]> {
        let start = usize::try_from(range.start().0.checked_sub(AT)?).ok()?;
        self.0.get(start..)?.get(..usize::try_from(range.size()).ok()?)
    }
}

fn range(start: u64, bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr(start), bytes).unwrap()
}

fn machine() -> Virt {
    Virt { cpus: 4, gic: Gic::V3, smmus: Vec::new() }
}

/// A loader's tree with these boot arguments.
fn tree(bootargs: &str) -> Vec<u8> {
    acpi::loaders_tree((0x4000_0000, 0x8000_0000), bootargs, AT).unwrap()
}

/// The platform by a loader's tree and what lies at [`AT`].
fn read(memory: Vec<u8>) -> Result<Platform, PlatformError> {
    read_on(0, memory)
}

/// As [`read`], by the CPU with this affinity.
fn read_on(boot: u64, memory: Vec<u8>) -> Result<Platform, PlatformError> {
    let mut platform = Platform::parse(&tree("loglevel=info")).unwrap();
    platform.read_tables(&mut Firmware(memory), boot).map(|()| platform)
}

/// The platform with one of the tables changed, or taken away.
fn with(machine: &Virt, signature: &[u8; 4], change: impl Fn(&mut Vec<u8>)) -> Result<Platform, PlatformError> {
    let mut tables = acpi::virt(machine);
    for table in tables.iter_mut().filter(|table| table.starts_with(signature)) {
        change(table);
    }
    tables.retain(|table| !table.is_empty());
    read(acpi::laid_out(&tables, AT))
}

/// As [`with`], the checksum right again.
fn with_bytes(signature: &[u8; 4], at: usize, bytes: &[u8]) -> Result<Platform, PlatformError> {
    with(&machine(), signature, |table| {
        table[at..at + bytes.len()].copy_from_slice(bytes);
        acpi::seal(table);
    })
}

fn error<T>(table: &'static str, error: TableError) -> Result<T, PlatformError> {
    Err(PlatformError::Table { table, error })
}

fn pl011() -> Uart {
    let interrupt = Some(Interrupt { intid: 33, trigger: Trigger::Level });
    Uart { interrupt, ..Uart::at(UartKind::Pl011, PhysAddr(0x900_0000), UartKind::Pl011.usual_layout()).unwrap() }
}

fn redistributors(regions: &[PhysRange]) -> ControllerDescription {
    let redistributors = Redistributors { regions: regions.iter().copied().collect(), stride: None };
    ControllerDescription::V3 { distributor: range(0x800_0000, 0x1_0000), redistributors }
}

#[test]
fn tables_like_those_of_virt_are_a_machine_like_virt() {
    let platform = read(acpi::laid_out(&acpi::virt(&machine()), AT)).unwrap();
    assert_eq!(platform.memory, [range(0x4000_0000, 0x8000_0000)], "the tree's");
    assert_eq!(platform.bootargs, "loglevel=info");
    assert_eq!(platform.rsdp, Some(PhysAddr(AT)));
    assert_eq!(platform.cpus.len(), 4);
    assert_eq!(platform.cpus[3], CpuNode { mpidr: 3, enable_method: EnableMethod::Psci });
    assert_eq!(platform.psci, Some(Psci { conduit: Conduit::Hvc, functions: PsciFunctions::Standard }));
    let reset = SysconWrite { register: range(0x903_0400, 1), is_big_endian: false, mask: 0xff, value: 0x42 };
    assert_eq!(platform.power.reset, Some(reset));
    assert_eq!(platform.interrupt_controller, redistributors(&[range(0x80a_0000, 0xf6_0000)]));
    assert_eq!(platform.its.unwrap().registers, range(0x808_0000, 0x2_0000));
    assert_eq!(platform.timer, Interrupt { intid: 27, trigger: Trigger::Level });
    assert_eq!(platform.uart, Some(pl011()));
}

#[test]
fn a_gic_is_of_version_2_or_has_a_redistributor_for_each_cpu() {
    let platform = |gic| read(acpi::laid_out(&acpi::virt(&Virt { gic, ..machine() }), AT)).unwrap();
    let (distributor, cpu_interface) = (range(0x800_0000, 0x1000), range(0x801_0000, 0x2000));
    assert_eq!(platform(Gic::V2).interrupt_controller, ControllerDescription::V2 { distributor, cpu_interface });
    let frames = [0, 1, 2, 3].map(|cpu| range(0x80a_0000 + cpu * 0x2_0000, 0x2_0000));
    assert_eq!(platform(Gic::V3ByCpu).interrupt_controller, redistributors(&frames));
    // The version is the last but three of the distributor's 24 bytes, which are the first of the list.
    let by_hardware = with_bytes(b"APIC", 44 + 20, &[0]).unwrap();
    assert_eq!(by_hardware.interrupt_controller, redistributors(&[range(0x80a_0000, 0xf6_0000)]));
    assert_eq!(with_bytes(b"APIC", 44 + 20, &[5]).map(drop), error("MADT", TableError::Bad("version of the GIC")));
}

/// It takes the messages of all functions: no table says of which.
#[test]
fn a_gicv2m_takes_messages_where_there_is_no_its() {
    let machine = Virt { gic: Gic::V2, ..machine() };
    let platform = read(acpi::laid_out(&acpi::virt(&machine), AT)).unwrap();
    let registers = range(0x802_0000, 0x1000);
    assert_eq!(platform.message_frame, Some(MessageFrame { registers, interrupts: Some((80, 64)) }));
    assert_eq!((platform.its, platform.pcie.unwrap().devices.find(0x108).map(|id| id.id)), (None, Some(0x108)));
    // Its flags are the last word but one: neither number counts now.
    let own = with(&machine, b"APIC", |table| {
        let flags = table.len() - 8;
        table[flags] = 0;
        table[9] = table[9].wrapping_add(1);
    });
    assert_eq!(own.unwrap().message_frame, Some(MessageFrame { registers, interrupts: None }));
}

#[test]
fn without_the_tables_a_loaders_tree_is_no_machine() {
    let off = Platform::parse(&tree("acpi=off")).map(drop).unwrap_err();
    assert_eq!(off.to_string(), "device tree: /cpus has no cpu");
}

#[test]
fn without_one_of_the_tables_the_rest_is_read_or_the_reason_is_an_error() {
    let without = |signature| with(&machine(), signature, Vec::clear);
    assert_eq!(without(b"APIC").map(drop), error("MADT", TableError::Missing));
    assert_eq!(without(b"GTDT").map(drop), error("GTDT", TableError::Missing));
    assert_eq!(without(b"SPCR").unwrap().uart, None);
    let platform = without(b"FACP").unwrap();
    assert_eq!((platform.psci, platform.cpus[1].enable_method), (None, EnableMethod::Unknown));
    assert_eq!(platform.uart, Some(pl011()));
}

#[test]
fn what_is_not_sound_is_left_out_or_stops_the_boot() {
    let checksum = with(&machine(), b"APIC", |table| table[50] ^= 1).map(drop);
    assert_eq!(checksum, error("MADT", TableError::Checksum));
    assert_eq!(with(&machine(), b"SPCR", |table| table[50] ^= 1).unwrap().uart, None);
    for (length, expected) in [(0, TableError::Length(0)), (35, TableError::Length(35))] {
        assert_eq!(with_bytes(b"GTDT", 4, &u32::to_le_bytes(length)).map(drop), error("GTDT", expected));
    }
    let long = with_bytes(b"GTDT", 4, &u32::MAX.to_le_bytes()).map(drop).unwrap_err().to_string();
    assert!(long.starts_with("ACPI: GTDT: no memory answers at "), "{long}");
    assert_eq!(read(Vec::new()).map(drop), error("RSDP", TableError::NoMemory(range(AT, 36))));
    let mut memory = acpi::laid_out(&acpi::virt(&machine()), AT);
    memory[3] ^= 1;
    assert_eq!(read(memory.clone()).map(drop), error("RSDP", TableError::Signature(PhysAddr(AT))));
    memory[3] ^= 1;
    memory[30] ^= 1;
    assert_eq!(read(memory).map(drop), error("RSDP", TableError::Checksum));
    let elsewhere = acpi::rsdp(0xffff_ffff_ffff_fff0);
    let wraps = TableError::Wraps(PhysAddr(0xffff_ffff_ffff_fff0), 36);
    assert_eq!(read(elsewhere).map(drop), error("XSDT", wraps));
}

#[test]
fn of_two_cpus_with_one_mpidr_one_is_used_and_a_disabled_one_is_not() {
    // Behind the distributor's 24 bytes: a CPU's 80, with flags at 12 and MPIDR at 68.
    let cpu = |number: usize, at: usize| 44 + 24 + 80 * number + at;
    let mpidrs = |platform: Platform| platform.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>();
    assert_eq!(mpidrs(with_bytes(b"APIC", cpu(2, 68), &[1]).unwrap()), [0, 1, 3]);
    let disabled = with_bytes(b"APIC", cpu(1, 12), &[0]).unwrap();
    assert_eq!((disabled.cpus_left_out, disabled.cpus_unused), (0, 1), "it may have a redistributor");
    assert_eq!(mpidrs(disabled), [0, 2, 3]);
    // A structure of no bytes ends the list.
    let none = error("MADT", TableError::Bad("GIC: no redistributors"));
    assert_eq!(with_bytes(b"APIC", cpu(2, 1), &[0]).map(drop), none, "they are behind it");
    let many =
        |boot, gic| read_on(boot, acpi::laid_out(&acpi::virt(&Virt { cpus: 20, gic, ..machine() }), AT)).unwrap();
    let platform = many(0, Gic::V3);
    assert_eq!((platform.cpus.len(), platform.cpus_left_out), (16, 4));
    let platform = many(18 | 1 << 31, Gic::V3ByCpu);
    let numbers: Vec<u64> = (0..15).chain([18]).collect();
    let frames: Vec<PhysRange> = numbers.iter().map(|cpu| range(0x80a_0000 + cpu * 0x2_0000, 0x2_0000)).collect();
    assert_eq!(platform.interrupt_controller, redistributors(&frames), "the boot CPU's too");
    assert_eq!((platform.cpus_left_out, mpidrs(platform)), (4, numbers));
}

#[test]
fn the_timers_interrupt_is_private() {
    for (intid, is_private) in [(15, false), (16, true), (31, true), (32, false)] {
        let timer = with_bytes(b"GTDT", 64, &u32::to_le_bytes(intid)).map(|platform| platform.timer.intid);
        let refused = error("GTDT", TableError::Bad("interrupt of the EL1 virtual timer"));
        assert_eq!(timer, if is_private { Ok(intid) } else { refused });
    }
}

#[test]
fn a_console_has_the_registers_that_its_kind_has() {
    let console = |kind: u8, access: u8| with_bytes(b"SPCR", 36, &[kind, 0, 0, 0, 0, 32, 0, access]).unwrap().uart;
    let layout = |kind, access| console(kind, access).map(|uart| (uart.kind, uart.layout));
    let of = |shift, width| UartLayout { shift, width };
    assert_eq!(layout(0x12, 3), Some((UartKind::Ns16550, of(2, RegisterWidth::Word))));
    assert_eq!(layout(0x00, 1), Some((UartKind::Ns16550, of(0, RegisterWidth::Byte))));
    assert_eq!(layout(0x0e, 3).map(|(kind, _)| kind), Some(UartKind::Sbsa));
    assert_eq!(console(0x15, 3), None, "one that has no driver");
    assert_eq!(with_bytes(b"SPCR", 44, &[0; 8]).unwrap().uart, None, "redirected to none");
    assert_eq!(with_bytes(b"SPCR", 40, &[1]).unwrap().uart, None, "an I/O port");
    assert_eq!(with_bytes(b"SPCR", 64, &[0x12, 0x0a, 0xf4, 0x1a]).unwrap().uart, None, "a PCI function");
    assert_eq!(with_bytes(b"SPCR", 64, &[0; 4]).unwrap().uart, Some(pl011()), "no vendor's");
    assert_eq!(with_bytes(b"SPCR", 52, &[0]).unwrap().uart, Some(Uart { interrupt: None, ..pl011() }));
}

#[test]
fn a_reset_register_that_is_no_memory_is_left_out() {
    assert_eq!(with_bytes(b"FACP", 116, &[1]).unwrap().power.reset, None);
    assert_eq!(with_bytes(b"FACP", 112, &[0; 4]).unwrap().power.reset, None);
    let smc = with_bytes(b"FACP", 129, &[1]).unwrap();
    assert_eq!(smc.psci.map(|psci| psci.conduit), Some(Conduit::Smc));
}

/// An SMMU for root bus 0 and its buses up to 7, and one for a root bus that begins at number 8.
fn two_smmus() -> Virt {
    let smmu = |registers, lines, requesters| Smmu { registers, lines, requesters };
    let smmus = vec![smmu(0x905_0000, 106, (0, 0x7ff)), smmu(0xa00_0000, 110, (0x800, 0x8ff))];
    Virt { smmus, ..machine() }
}

#[test]
fn a_host_bridge_without_an_smmu_sends_its_messages_to_the_its() {
    let host = read(acpi::laid_out(&acpi::virt(&machine()), AT)).unwrap().pcie.unwrap();
    assert_eq!((host.buses, host.coherent, host.windows.as_deref()), ((0, 255), true, None));
    assert_eq!(host.bus(255), Some(range(0x40_1ff0_0000, 1 << 20)));
    assert_eq!(host.streams.find(0x100), None);
    assert_eq!(host.devices.find(0xffff).map(|device| device.id), Some(0xffff));
    assert_eq!(host.dma_reach(0, true), Some(u64::MAX - 1));
}

#[test]
fn two_smmus_have_the_functions_of_two_root_buses() {
    let platform = read(acpi::laid_out(&acpi::virt(&two_smmus()), AT)).unwrap();
    let [first, second] = &platform.smmus[..] else { panic!("there are two") };
    assert_eq!((first.registers, second.registers), (range(0x905_0000, 0x2_0000), range(0xa00_0000, 0x2_0000)));
    let edge = |intid| Some(Interrupt { intid, trigger: Trigger::Edge });
    let lines = [second.event_queue, second.priority_queue, second.global_error, second.command_sync];
    assert_eq!(lines, [110, 111, 112, 113].map(edge));
    let host = platform.pcie.unwrap();
    let stream = |requester| host.streams.find(requester).map(|stream| (Some(stream.phandle), stream.id));
    assert_eq!(stream(0x0108), Some((first.phandle, 0x0108)));
    assert_eq!(stream(0x0808), Some((second.phandle, 0x0808)));
    assert_eq!(stream(0x0900), None, "behind neither");
    assert_ne!(first.phandle, second.phandle);
    for requester in [0, 0x7ff, 0x800, 0x900, 0xffff] {
        assert_eq!(host.devices.find(requester).map(|device| device.id), Some(requester.into()));
    }
}

/// IORT of an ITS group at 48, an SMMU that maps StreamIDs from 0x100 on to it, and a root complex with these mappings.
fn with_mappings(smmu: [u64; 5], root: &[[u64; 5]]) -> Result<Platform, PlatformError> {
    let lines = [(0, 4); 4];
    let registers = [(0x905_0000, 8), (0, 4), (0, 4), (0, 8), (0, 4)];
    let nodes = [
        acpi::node(0, &[(1, 4), (0, 4)], &[]),
        acpi::node(4, &[&registers[..], &lines, &[(0, 4), (0, 4)]].concat(), &[smmu]),
        acpi::node(2, &[(0, 8), (0, 4), (0, 4), (40, 1), (0, 3)], root),
    ];
    let mut tables = acpi::virt(&machine());
    tables.retain(|table| !table.starts_with(b"IORT"));
    tables.push(acpi::iort_of(&nodes));
    read(acpi::laid_out(&tables, AT))
}

/// IORT of root complexes of segment 0: revision, whether coherent, bits of addresses.
fn with_roots(roots: &[(u8, u64, u64)]) -> Pcie {
    let nodes = roots.iter().map(|&(revision, coherent, bits)| {
        let mut node = acpi::node(2, &[(coherent, 8), (0, 4), (0, 4), (bits, 1), (0, 3)], &[]);
        node[3] = revision;
        node
    });
    let mut tables = acpi::virt(&machine());
    tables.retain(|table| !table.starts_with(b"IORT"));
    tables.push(acpi::iort_of(&nodes.collect::<Vec<_>>()));
    read(acpi::laid_out(&tables, AT)).unwrap().pcie.unwrap()
}

#[test]
fn of_several_root_complexes_the_least_counts() {
    let host = |roots: &[_]| {
        let host = with_roots(roots);
        (host.coherent, host.dma_reach(0, true))
    };
    let all = Some(u64::MAX - 1);
    assert_eq!(host(&[(1, 1, 64)]), (true, all));
    assert_eq!(host(&[(1, 1, 40), (1, 1, 64), (1, 1, 44)]), (true, Some((1 << 40) - 1)));
    assert_eq!(host(&[(1, 1, 44), (1, 1, 40)]), (true, Some((1 << 40) - 1)));
    assert_eq!(host(&[(1, 0, 64), (1, 1, 64)]), (false, all));
    assert_eq!(host(&[(0, 1, 32)]), (true, all), "the field is of revision 1");
}

#[test]
fn of_two_smmus_with_the_same_registers_one_is_used() {
    let mut two = two_smmus();
    two.smmus[1].registers = two.smmus[0].registers + 0x1_0000;
    let platform = read(acpi::laid_out(&acpi::virt(&two), AT)).unwrap();
    let host = platform.pcie.unwrap();
    let stream = |requester| host.streams.find(requester).map(|stream| Some(stream.phandle));
    assert_eq!(platform.smmus.iter().map(|smmu| smmu.phandle).collect::<Vec<_>>(), [stream(0).unwrap()]);
    assert_ne!(stream(0x800).unwrap(), platform.smmus[0].phandle, "behind one that is not used");
}

/// The offset of the SMMU's node.
const SMMU: u64 = 48 + 24;

#[test]
fn ids_go_from_the_root_complex_through_the_smmu_to_the_its() {
    let host = with_mappings([0x100, 0x80, 0x4000, 48, 0], &[[0, 0x100, 0xc0, SMMU, 0], [0x800, 1, 7, 48, 0]]);
    let host = host.unwrap().pcie.unwrap();
    assert_eq!(host.streams.find(0x3f).map(|stream| stream.id), Some(0xff));
    let device = |requester| host.devices.find(requester).map(|device| device.id);
    assert_eq!((device(0x3f), device(0x40), device(0xbf), device(0xc0)), (None, Some(0x4000), Some(0x407f), None));
    assert_eq!((device(0x800), device(0x801)), (Some(7), None));
    assert!(!host.coherent);
    assert_eq!(host.dma_reach(0, true), Some((1 << 40) - 1));
}

#[test]
fn a_host_bridge_whose_iort_makes_no_sense_is_left_out() {
    let all = [0, 0x1_0000, 0, 48, 0];
    let pcie = |smmu, root: &[[u64; 5]]| with_mappings(smmu, root).unwrap().pcie;
    assert!(pcie(all, &[[0, 0x100, 0, SMMU, 0]]).is_some());
    assert_eq!(pcie(all, &[[0, 0x100, 0, SMMU, 1]]), None, "one ID for all functions");
    assert_eq!(pcie(all, &[[0, 0x100, 0, 48, 1]]), None, "one ID for all messages");
    let own = pcie([0, 0x1_0000, 0, 48, 1], &[[0, 0x100, 0, SMMU, 0]]).unwrap();
    assert!(own.streams.find(0).is_some() && own.devices.find(0).is_none(), "the ID of the SMMU's own messages");
    assert_eq!(pcie(all, &[[0, 1, 0, 48, 0]; 257]), None, "more than are looked at");
    for node in [0, 47, 49, SMMU + 0x1000, u64::from(u32::MAX)] {
        assert_eq!(pcie(all, &[[0, 0x100, 0, node, 0]]), None, "{node:#x}");
    }
    let itself = SMMU + 16 + 52 + 20;
    assert_eq!(pcie(all, &[[0, 0x100, 0, itself, 0]]), None, "the root complex takes no IDs");
    assert_eq!(pcie(all, &[[0xffff_ffff, 2, 0, SMMU, 0]]), None, "IDs wrap");
    assert_eq!(pcie(all, &[all; 17]), None, "more than there is room for");
    assert_eq!(with_bytes(b"IORT", 36, &u32::MAX.to_le_bytes()).unwrap().pcie, None, "many nodes, and bytes of two");
    let platform = with(&machine(), b"IORT", |table| table[40] ^= 4).unwrap();
    assert_eq!((platform.pcie, platform.smmus.len()), (None, 0), "a wrong checksum");
    let without = with(&machine(), b"IORT", Vec::clear).unwrap().pcie.unwrap();
    assert_eq!((without.streams.find(0), without.devices.find(0)), (None, None));
    assert_eq!(with_bytes(b"MCFG", 44, &[1]).unwrap().pcie, None, "an address that is no bus's");
    assert_eq!(with_bytes(b"MCFG", 54, &[255, 0]).unwrap().pcie, None, "buses from 255 to 0");
}

/// Bytes of the tables that are changed: where, and to which value.
fn changes() -> impl Strategy<Value = Vec<(Index, u64, u8)>> {
    let value = prop_oneof![0_u64..40, any::<u64>(), Just(u64::MAX), (0_u32..64).prop_map(|bit| 1 << bit)];
    prop::collection::vec((any::<Index>(), value, 1_u8..9), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Reading the tables ends, with an error or with a machine, whatever they hold.
    #[test]
    fn tables_that_say_nonsense_are_an_error_or_a_machine(
        gic in prop_oneof![Just(Gic::V2), Just(Gic::V3), Just(Gic::V3ByCpu)],
        changes in changes(), is_sealed: bool, kept in any::<Index>()
    ) {
        let mut tables = acpi::virt(&Virt { gic, ..two_smmus() });
        for (place, value, bytes) in changes {
            let table = place.index(tables.len());
            let table = &mut tables[table];
            let at = place.index(table.len());
            let end = table.len().min(at + usize::from(bytes));
            table[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            if is_sealed {
                acpi::seal(table);
            }
        }
        let mut memory = acpi::laid_out(&tables, AT);
        if !is_sealed {
            memory.truncate(kept.index(memory.len() + 1));
        }
        if let Ok(platform) = read(memory) {
            prop_assert!(!platform.cpus.is_empty());
            prop_assert!((16..1020).contains(&platform.timer.intid));
            let mut mpidrs: Vec<u64> = platform.cpus.iter().map(|cpu| cpu.mpidr).collect();
            mpidrs.sort_unstable();
            prop_assert!(mpidrs.windows(2).all(|two| two[0] < two[1]));
            if let Some(host) = platform.pcie {
                prop_assert!(host.bus(host.buses.0).is_some() && host.bus(host.buses.1).is_some());
            }
        }
    }
}
