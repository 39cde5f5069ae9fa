//! Device trees that QEMU would not make by itself: large ones, reservations in great number, devices that say too
//! little.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use granule_host_tests::session::Session;
use granule_host_tests::{built, log, own_file};
use granule_runner::gdb::Socket;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};

/// Tokens of the structure block (Devicetree Specification v0.4, 5.4.1).
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A machine without much in its tree.
fn machine() -> Machine {
    machine::named("el2").unwrap()
}

/// The tree that QEMU makes for [`machine`].
fn tree(name: &str) -> Vec<u8> {
    tree_of(machine(), name)
}

fn tree_of(mut machine: Machine, name: &str) -> Vec<u8> {
    let file = file(name);
    machine.machine += &format!(",dumpdtb={}", file.display());
    let dump = Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, "", &[]).command().output();
    assert!(dump.unwrap().status.success());
    fs::read(file).unwrap()
}

fn file(name: &str) -> PathBuf {
    own_file(env!("CARGO_TARGET_TMPDIR"), &format!("{name}.dtb"))
}

/// Starts the machine with this tree in place of its own.
fn boot(name: &str, tree: &[u8]) -> Session {
    boot_of(&machine(), name, tree)
}

fn boot_of(machine: &Machine, name: &str, tree: &[u8]) -> Session {
    fs::write(file(name), tree).unwrap();
    let extra: [OsString; 2] = ["-dtb".into(), file(name).into()];
    Session::start(machine, &built("granule.img"), "", &extra).unwrap()
}

/// The word at this offset.
fn word(tree: &[u8], at: usize) -> usize {
    u32::from_be_bytes(tree[at..at + 4].try_into().unwrap()) as usize
}

/// Makes the tree `size` bytes long, most of them room at its end.
fn resize(tree: &mut Vec<u8>, size: u32) {
    tree[4..8].copy_from_slice(&size.to_be_bytes());
    tree.resize(size as usize, 0);
}

/// The tree with these nodes, as tokens, at the end of its root, and with these names of properties after its own.
fn with_nodes(tree: &[u8], nodes: &[u8], names: &[u8]) -> Vec<u8> {
    let [structure, strings] = [8, 12].map(|at| word(tree, at));
    let [strings_size, structure_size] = [32, 36].map(|at| word(tree, at));
    // Header and reservations lie in front.
    let mut new = tree[..structure].to_vec();
    let set =
        |new: &mut Vec<u8>, at: usize, value: usize| new[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    // Without the last two tokens: the root's end, and the end of all.
    new.extend_from_slice(&tree[structure..structure + structure_size - 8]);
    new.extend_from_slice(nodes);
    new.extend([END_NODE, END].map(u32::to_be_bytes).concat());
    let (structure_end, strings_at) = (new.len() - structure, new.len());
    new.extend_from_slice(&tree[strings..strings + strings_size]);
    new.extend_from_slice(names);
    set(&mut new, 12, strings_at);
    set(&mut new, 32, strings_size + names.len());
    set(&mut new, 36, structure_end);
    let size = new.len() as u32;
    resize(&mut new, size);
    new
}

/// `/reserved-memory` with a page that must not be mapped in each of `places`.
fn with_hidden_pages(tree: &[u8], places: impl Iterator<Item = u64>) -> Vec<u8> {
    const NAMES: &[u8] = b"#address-cells\0#size-cells\0ranges\0reg\0no-map\0";
    let name = |name: &str| {
        let at = NAMES.windows(name.len() + 1).position(|window| window == [name.as_bytes(), b"\0"].concat()).unwrap();
        (word(tree, 32) + at) as u32
    };
    let mut nodes = Vec::new();
    let mut push = |words: &[u32]| nodes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    let text = |four: &[u8; 4]| u32::from_be_bytes(*four);
    push(&[BEGIN_NODE, text(b"rese"), text(b"rved"), text(b"-mem"), text(b"ory\0")]);
    push(&[PROPERTY, 4, name("#address-cells"), 2, PROPERTY, 4, name("#size-cells"), 2, PROPERTY, 0, name("ranges")]);
    for place in places {
        push(&[BEGIN_NODE, text(b"page"), 0, PROPERTY, 16, name("reg")]);
        push(&[(place >> 32) as u32, place as u32, 0, 0x1000, PROPERTY, 0, name("no-map"), END_NODE]);
    }
    push(&[END_NODE]);
    with_nodes(tree, &nodes, NAMES)
}

#[test]
fn almost_two_mebibytes_are_read_and_more_is_a_message() {
    // QEMU doubles a tree that it is given, and adds 10,000 bytes.
    let mut tree = tree("large");
    resize(&mut tree, 1_030_000);
    boot("large", &tree).prompt().unwrap();
    resize(&mut tree, 1_060_000);
    boot("larger", &tree).wait_for("boot failed: the device tree at").unwrap();
}

/// Each cuts a block, so each costs two tables: more in all than the image has room for.
#[test]
fn many_pages_that_must_not_be_mapped_leave_a_linear_map_around_them() {
    let places: Vec<u64> = (0..40).map(|index| 0x4900_0000 + index * 0x123_4000).collect();
    let mut session = boot("hidden", &with_hidden_pages(&tree("hidden"), places.iter().copied()));
    session.prompt().unwrap();
    let linear = 0xffff_0000_0000_0000u64;
    for place in places {
        let [before, at, behind] =
            [place - 8, place, place + 0x1000].map(|address| format!("peek {:#x}", linear + address));
        assert!(session.command(&before).unwrap().starts_with("0x"), "{before}");
        assert!(session.command(&at).unwrap().starts_with("fault: translation fault"), "{at}");
        assert!(session.command(&behind).unwrap().starts_with("0x"), "{behind}");
    }
}

/// Where the value of a node's property lies; its token, length and name are the twelve bytes before.
fn value(tree: &[u8], node: &str, property: &str) -> std::ops::Range<usize> {
    let find = |from: usize, wanted: &[u8]| {
        from + tree[from..]
            .windows(wanted.len())
            .position(|window| window == wanted)
            .unwrap_or_else(|| panic!("{node}"))
    };
    let strings = word(tree, 12);
    let name = find(strings, format!("\0{property}\0").as_bytes()) + 1 - strings;
    let mut at = find(word(tree, 8), format!("{node}\0").as_bytes());
    at = at.next_multiple_of(4);
    while [at, at + 8].map(|at| word(tree, at)) != [PROPERTY as usize, name] {
        at += 4;
    }
    at + 12..at + 12 + word(tree, at + 4)
}

#[test]
fn a_console_without_an_interrupt_is_polled() {
    let mut tree = tree("polled");
    resize(&mut tree, 64 << 10);
    remove(&mut tree, "pl011@9000000", "interrupts");
    let mut session = boot("polled", &tree);
    session.prompt().unwrap();
    assert!(session.command("mem").unwrap().contains("frames"));
}

/// Takes a property from its node.
fn remove(tree: &mut [u8], node: &str, property: &str) {
    let value = value(tree, node, property);
    for word in tree[value.start - 12..value.end.next_multiple_of(4)].chunks_exact_mut(4) {
        word.copy_from_slice(&NOP.to_be_bytes());
    }
}

/// Starts a machine whose tree names no console; returns its log, from memory, once `text` is in it.
fn log_without_a_console(name: &str, text: &str, change: impl FnOnce(&mut [u8])) -> String {
    let mut tree = tree(name);
    resize(&mut tree, 64 << 10);
    remove(&mut tree, "chosen", "stdout-path");
    remove(&mut tree, "aliases", "serial0");
    change(&mut tree);
    fs::write(file(name), tree).unwrap();
    let socket = Socket::new();
    // The machine of a boot that failed stays.
    let mut extra: Vec<OsString> = ["-semihosting-config", "enable=off", "-dtb"].map(Into::into).to_vec();
    extra.push(file(name).into());
    extra.extend(socket.arguments());
    let qemu = Qemu::new(&machine(), &built("granule.img"), Serial::Pipes, Reset::Ends, "loglevel=debug", &extra);
    let _session = Session::of(&qemu).unwrap();
    log::wait_for(&socket, log::IMAGE, text).unwrap()
}

#[test]
fn without_a_console_the_log_is_in_memory() {
    let log = log_without_a_console("silent", "on PCI Express\n", |_| {});
    assert!(log.starts_with("[ ") && log.contains("] no SMMU: devices reach all memory\n"), "{log}");
}

#[test]
fn without_a_console_the_log_in_memory_ends_with_what_stopped_the_boot() {
    let log = log_without_a_console("failed", " interrupt controller\n", |tree| {
        let compatible = b"arm,gic-v3\0";
        let at = tree.windows(compatible.len()).position(|window| window == compatible).unwrap();
        tree[at] = b'x';
    });
    let says = "/ has no arm,gic-400, arm,gic-v3 or brcm,bcm2836-l1-intc interrupt controller";
    assert_eq!(log, format!("boot failed: device tree: {says}\n"));
}

/// Boots with the last word of a property changed, to one CPU of two and with a warning that contains `says`.
#[track_caller]
fn assert_leaves_a_cpu_out(name: &str, node: &str, property: &str, last: u32, says: &str) {
    let mut tree = tree(name);
    resize(&mut tree, 64 << 10);
    let end = value(&tree, node, property).end;
    tree[end - 4..end].copy_from_slice(&last.to_be_bytes());
    let banner = boot(name, &tree).prompt().unwrap();
    assert!(banner.contains(says) && banner.contains(": 1 CPU,"), "{banner}");
}

#[test]
fn a_cpu_that_does_not_start_is_left_out() {
    assert_leaves_a_cpu_out("absent", "cpu@1", "reg", 0x77, "warning: CPU 1 (0x77) not started: PSCI");
    assert_leaves_a_cpu_out(
        "unknown",
        "cpu@1",
        "enable-method",
        0,
        "warning: CPU 1 (0x1) not started: the device tree",
    );
}

/// The redistributors' region is as large as that of one CPU.
#[test]
fn a_cpu_that_the_interrupt_controller_does_not_know_is_left_out() {
    assert_leaves_a_cpu_out("unheard", "intc@8000000", "reg", 0x2_0000, "no interface for CPU 0x1");
}

/// Boots with the tree changed; returns the output of the boot and of `lspci`.
fn boot_changed(name: &str, change: impl FnOnce(&mut [u8])) -> [String; 2] {
    let mut tree = tree(name);
    resize(&mut tree, 64 << 10);
    change(&mut tree);
    let mut session = boot(name, &tree);
    [session.prompt().unwrap(), session.command("lspci").unwrap()]
}

#[test]
fn a_machine_without_pci_express_boots_and_reports_it() {
    let [_, listed] = boot_changed("no-pcie", |tree| {
        let host = b"pci-host-ecam-generic";
        let at = tree.windows(host.len()).position(|window| window == host).unwrap();
        tree[at] = b'x';
    });
    assert!(listed.contains("this machine has no PCI Express"), "{listed}");
    let [banner, listed] = boot_changed("bad-pcie", |tree| {
        let range = value(tree, "pcie@10000000", "bus-range");
        tree[range].fill(0xff);
    });
    assert!(banner.contains("warning: device tree: pcie@10000000: bad bus-range; it is left out"), "{banner}");
    assert!(listed.contains("this machine has no PCI Express"), "{listed}");
}

#[test]
fn a_host_bridge_is_used_without_the_window_that_makes_no_sense() {
    let [banner, listed] = boot_changed("bad-window", |tree| {
        // The last window wraps.
        let end = value(tree, "pcie@10000000", "ranges").end;
        tree[end - 8..end].fill(0xff);
    });
    let says = "warning: device tree: pcie@10000000: 1 windows make no sense, or are more than 8: left out";
    assert!(banner.contains(says), "{banner}");
    assert!(!listed.contains("this machine has no PCI Express"), "{listed}");
}

#[test]
fn a_host_bridge_whose_map_leads_nowhere_has_functions_that_send_no_messages() {
    let [_, listed] = boot_changed("no-msi", |tree| {
        let map = value(tree, "pcie@10000000", "msi-map");
        tree[map][4..8].fill(0x77);
    });
    assert!(listed.contains("1b36:0008") && !listed.contains("DeviceID"), "{listed}");
}

/// Boots the machine with tag storage, with a property of the region changed; what the boot prints, and the session.
fn boot_with_region(name: &str, property: &str, change: impl FnOnce(&mut [u8])) -> (String, Session) {
    let machine = machine::named("mte").unwrap();
    let mut tree = tree_of(machine.clone(), name);
    resize(&mut tree, 64 << 10);
    let value = value(&tree, "tag-storage@bc000000", property);
    change(&mut tree[value]);
    let mut session = boot_of(&machine, name, &tree);
    (session.prompt().unwrap(), session)
}

const REGION: &str = "tag storage: 0xbc000000..0xc0000000, in blocks of 4 KiB, of 0x40000000..0xc0000000";

#[test]
fn tag_storage_is_found_and_logged() {
    let (banner, mut session) = boot_with_region("tags", "reg", |_| {});
    assert!(!banner.contains("warning") && !banner.contains("tag storage"), "{banner}");
    let log = session.command("log").unwrap();
    assert!(log.contains(REGION), "{log}");
}

#[test]
fn tag_storage_that_makes_no_sense_stays_reserved() {
    let (banner, mut session) = boot_with_region("odd-tags", "block-size", |value| value.fill(0));
    let says =
        "tag storage tag-storage@bc000000: `block-size` must be one cell, of 1 to 0x200000 bytes; it stays reserved";
    assert!(banner.contains(&format!("warning: device tree: {says}")), "{banner}");
    let log = session.command("log").unwrap();
    assert!(!log.contains("in blocks of"), "{log}");
    let memory = session.command("mem").unwrap();
    assert!(memory.lines().any(|line| line.starts_with("reserved") && line.contains("bc000000")), "{memory}");
}

/// The loader would have put the image where the firmware has tags.
#[test]
fn tag_storage_with_the_kernels_image_in_it_stays_reserved() {
    let (banner, _) = boot_with_region("image-tags", "reg", |value| value[4..8].copy_from_slice(&[0x40, 0, 0, 0]));
    let says = "tag storage 0x40000000..0x44000000 must not overlap the kernel's image, 0x40200000..";
    assert!(banner.contains(says) && banner.contains("2G of memory"), "{banner}");
}

/// Boots a machine with an SMMU, with the tree changed; what the boot prints, and the session.
fn boot_with_smmu(name: &str, change: impl FnOnce(&mut [u8])) -> (String, Session) {
    boot_on("default", name, change)
}

/// As [`boot_with_smmu`], of any machine.
fn boot_on(machine: &str, name: &str, change: impl FnOnce(&mut [u8])) -> (String, Session) {
    let machine = machine::named(machine).unwrap();
    let mut tree = tree_of(machine.clone(), name);
    resize(&mut tree, 64 << 10);
    change(&mut tree);
    let mut session = boot_of(&machine, name, &tree);
    (session.prompt().unwrap(), session)
}

/// A sector of `disk` comes to a new page, which is `$` then.
#[track_caller]
fn reads_the_disk(session: &mut Session, disk: &str) {
    session.command("vmalloc 1").unwrap();
    session.command(&format!("blk {disk} read 5 $")).unwrap();
    let read = session.command("peek $").unwrap();
    assert!(read.contains("0x0000000000000005"), "{read}");
}

#[test]
fn an_smmu_with_an_interrupt_that_makes_no_sense_is_in_front_of_its_devices() {
    let (banner, mut session) = boot_with_smmu("odd-smmu", |tree| {
        // The kind of the first of them, the event queue's.
        let interrupts = value(tree, "smmuv3@9050000", "interrupts");
        tree[interrupts.start + 3] = 7;
    });
    assert!(banner.contains("no interrupt for event queue: polled"), "{banner}");
    reads_the_disk(&mut session, "blk");
    let dump = session.command("smmu dump").unwrap();
    assert!(dump.contains("own tables: asid"), "the disk is translated: {dump}");
}

/// Takes `dma-coherent` from the node, and from the root, of which the node would inherit it.
fn make_uncached(tree: &mut [u8], node: &str) {
    for node in ["", node] {
        remove(tree, node, "dma-coherent");
    }
}

/// QEMU's devices see all memory in one way, so this shows that they work by Non-cacheable rings, and what is refused.
fn devices_work_without_caches(machine: &str, disk: &str, name: &str) {
    let (banner, mut session) = boot_on(machine, name, |tree| {
        make_uncached(tree, "pcie@10000000");
    });
    assert!(!banner.contains("warning"), "{banner}");
    reads_the_disk(&mut session, disk);
    let part = session.command("rng $ 8").unwrap();
    assert!(part.contains("memory that it writes is whole lines of 128 bytes"), "{part}");
    let whole = session.command("rng $ 128").unwrap();
    assert!(!whole.contains("error") && !whole.contains("lines"), "{whole}");
}

#[test]
fn devices_that_do_not_see_the_caches_work_behind_an_smmu() {
    devices_work_without_caches("default", "blk", "uncached-devices");
}

#[test]
fn devices_that_do_not_see_the_caches_work_without_an_smmu() {
    devices_work_without_caches("a72", "nvme", "uncached-alone");
}

/// QEMU's SMMU sees all memory in one way, so this shows the path, and that the disk works on it; `granule_model` shows
/// what a missing clean does.
#[test]
fn an_smmu_that_does_not_see_the_caches_translates_for_devices_and_for_no_process() {
    let (banner, mut session) = boot_with_smmu("uncached-smmu", |tree| {
        make_uncached(tree, "smmuv3@9050000");
    });
    assert!(
        banner.contains("cannot be bound to processes: the SMMU does not see what is in the CPUs' caches"),
        "{banner}"
    );
    reads_the_disk(&mut session, "blk");
    let dump = session.command("smmu dump").unwrap();
    assert!(dump.contains("own tables: asid"), "the disk is translated: {dump}");
    assert!(dump.contains("2-level") && !dump.contains(" coherent"), "{dump}");
}

/// Its devices would have any memory, if they were taken for devices without an SMMU.
#[test]
fn devices_behind_an_smmu_that_is_not_driven_are_refused() {
    let (_, mut session) = boot_with_smmu("other-smmu", |tree| {
        let compatible = b"arm,smmu-v3";
        let at = tree.windows(compatible.len()).position(|window| window == compatible).unwrap();
        tree[at] = b'x';
    });
    session.command("vmalloc 1").unwrap();
    let refused = session.command("blk read 5 $").unwrap();
    assert!(refused.contains("the SMMU in front of the device") && refused.contains("is not driven"), "{refused}");
}

/// The tree of `machine` with the address of the `index`-th range of a node's registers changed.
fn tree_with_registers(machine: &Machine, name: &str, node: &str, (index, address): (usize, u64)) -> Vec<u8> {
    let mut tree = tree_of(machine.clone(), name);
    resize(&mut tree, 64 << 10);
    let at = value(&tree, node, "reg").start + 16 * index;
    tree[at..at + 8].copy_from_slice(&address.to_be_bytes());
    tree
}

/// No device of QEMU's `virt` is there, and an access is an external abort.
const HOLE: u64 = 0xb00_0000;

#[test]
fn registers_that_abort_leave_a_device_out() {
    let machine = machine::named("default").unwrap();
    let boot = |name: &str, node: &str, place| {
        let mut session = boot_of(&machine, name, &tree_with_registers(&machine, name, node, place));
        let banner = session.prompt().unwrap_or_else(|error| panic!("{name}: {error}"));
        (session, banner)
    };
    let (mut session, banner) = boot("ecam-hole", "pcie@10000000", (0, HOLE));
    assert!(banner.contains("PCI: no configuration space at 0xb000000: synchronous external abort"), "{banner}");
    assert!(!session.command("lspci").unwrap().contains("1b36"));

    let (mut session, banner) = boot("smmu-hole", "smmuv3@9050000", (0, HOLE));
    assert!(banner.contains("smmu: nothing answers at its registers: synchronous external abort"), "{banner}");
    session.command("vmalloc 1").unwrap();
    assert!(session.command("rng $ 8").unwrap().contains("is not driven, so the device gets no memory"));

    // Without messages a device is polled, or has a pin.
    for (name, place) in [("its-hole", HOLE), ("its-memory", 0x4800_0000)] {
        let (mut session, _) = boot(name, "its@8080000", (0, place));
        session.command("vmalloc 1").unwrap();
        let answer = session.command("rng $ 8").unwrap();
        assert!(!answer.contains("error") && !answer.contains("fault"), "{name}: {answer}");
    }
}

#[test]
fn an_interrupt_controller_that_does_not_answer_is_a_message() {
    let machine = machine();
    for (name, index, message) in [
        (
            "gicd-hole",
            0,
            "interrupt controller: the interrupt controller at 0xb000000 does not answer: synchronous external abort",
        ),
        ("gicr-hole", 1, "interrupt controller: no redistributors at 0xb000000: synchronous external abort"),
    ] {
        let tree = tree_with_registers(&machine, name, "intc@8000000", (index, HOLE));
        let mut session = boot_of(&machine, name, &tree);
        session.wait_for(message).unwrap_or_else(|error| panic!("{name}: {error}"));
        session.prompt().unwrap_or_else(|error| panic!("{name}: {error}"));
        // No interrupt wakes the thread that polls for input.
        for _ in 0..2 {
            let answer = session.command("uptime").unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(answer.starts_with("up "), "{name}: {answer}");
        }
    }
}

/// Boots with another node for the first place of a virtio device, which has this property and no interrupt; what the
/// first uses of the device print.
fn use_device(machine: &str, name: &str, property: &str, cells: impl FnOnce(&[u8]) -> Vec<u32>) -> String {
    let mut machine = machine::named(machine).unwrap();
    machine.devices = vec!["virtio-rng-mmio,bus=virtio-mmio-bus.0".into()];
    let mut tree = tree_of(machine.clone(), name);
    let cells = cells(&tree);
    let (own, place) = (b"virtio_mmio@a000000\0", [0, 0xa00_0000, 0, 0x200_u32]);
    let find = |from: usize, wanted: &[u8]| {
        from + tree[from..].windows(wanted.len()).position(|window| window == wanted).unwrap()
    };
    let strings = word(&tree, 12);
    let names = [b"compatible\0".as_slice(), b"reg\0"].map(|name| (find(strings, name) - strings) as u32);
    let compatible = find(find(word(&tree, 8), own), b"virtio,mmio\0");
    tree[compatible] = b'x';
    let mut nodes: Vec<u32> = vec![BEGIN_NODE, u32::from_be_bytes(*b"dev\0")];
    nodes.extend([PROPERTY, 12, names[0]].into_iter().chain(text_words(b"virtio,mmio\0")));
    nodes.extend([PROPERTY, 16, names[1]].into_iter().chain(place));
    nodes.extend([PROPERTY, 4 * cells.len() as u32, word(&tree, 32) as u32].into_iter().chain(cells));
    nodes.push(END_NODE);
    let nodes: Vec<u8> = nodes.into_iter().flat_map(u32::to_be_bytes).collect();
    let mut tree = with_nodes(&tree, &nodes, format!("{property}\0").as_bytes());
    let size = tree.len() as u32 + (64 << 10);
    resize(&mut tree, size);
    let mut session = boot_of(&machine, name, &tree);
    let banner = session.prompt().unwrap();
    let area = session.command("vmalloc 1").unwrap();
    let used = ["rng $ 8", "rng $ 128"].map(|line| session.command(line).unwrap());
    format!("{banner}{area}{}", used.concat())
}

fn text_words(text: &[u8]) -> impl Iterator<Item = u32> {
    text.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap()))
}

/// A device that is no function has the stream of its node. QEMU's own have no SMMU in front of them, so one that is in
/// a tree is seen by what is refused.
#[test]
fn a_virtio_device_behind_an_smmu_has_the_stream_of_its_node() {
    /// In place of the SMMU's phandle.
    const SMMU: u32 = 0;
    let cases: [(&str, &[u32], &[&str]); 4] = [
        ("stream", &[SMMU, 0x77], &["the device offers no ACCESS_PLATFORM"]),
        ("far", &[SMMU, !0], &["stream 0xffffffff is none of this SMMU's"]),
        ("phandle", &[0x7777, 0x77], &["the SMMU in front of the device (phandle 0x7777) is not driven"]),
        ("cells", &[SMMU], &["dev: bad iommus; it is left out", "the machine has no rng of number 0"]),
    ];
    for (name, iommus, all) in cases {
        let said = use_device("default", name, "iommus", |tree| {
            let smmu = word(tree, value(tree, "smmuv3@9050000", "phandle").start) as u32;
            iommus.iter().map(|&cell| if cell == SMMU { smmu } else { cell }).collect()
        });
        assert!(all.iter().all(|says| said.contains(says)), "{name}:\n{said}");
    }
}

/// Its node has no `interrupts`: it is polled. Its rings are in memory that no cache has.
#[test]
fn a_virtio_device_that_does_not_see_the_caches_is_driven() {
    let said = use_device("a72", "uncached", "dma-noncoherent", |_| Vec::new());
    assert!(
        said.contains("virtio device at 0xa000000: no interrupt: the device tree has none; it is polled"),
        "{said}"
    );
    assert!(said.contains("whole lines of 128 bytes"), "8 bytes are less than it may write: {said}");
    assert!(said.contains("128 bytes, in 1 transfer"), "{said}");
}
