//! Every way in: Image and ELF, EL1 and EL2 with and without VHE, other addresses, other sizes, and device trees that
//! are no good.

use std::ffi::OsString;
use std::process::Stdio;

use granule_host_tests::session::Session;
use granule_host_tests::{built, log, ptdump};
use granule_runner::bench::BOOT;
use granule_runner::bench::bars::Bar;
use granule_runner::gdb::{Gdb, Socket};
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial};

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

/// Boots to the prompt with a banner that has `expected` in it and no warning before it; as many CPUs run as it says, and
/// a program does where the image is one that QEMU hands an initrd. Then it ends.
#[track_caller]
fn assert_boots(machine: &str, image: &str, extra: &[&str], expected: &str) {
    assert_boots_with(machine, image, "", extra, expected);
}

#[track_caller]
fn assert_boots_with(machine: &str, image: &str, append: &str, extra: &[&str], expected: &str) {
    let machine = machine::named(machine).unwrap();
    let mut session = Session::start(&machine, &built(image), append, &words(extra)).unwrap();
    let banner = session.prompt().unwrap();
    assert!(banner.contains(expected) && !banner.contains("warning"), "not {expected:?}: {banner}");
    session.assert_cpus(cpus_of(&banner));
    if image.ends_with(".img") {
        session.assert_program();
    }
    session.assert_ends();
}

/// The number of CPUs in a banner.
fn cpus_of(banner: &str) -> u32 {
    let line = banner.lines().find(|line| line.starts_with("Granule "));
    let count = line.and_then(|line| line.split_once(" CPU")?.0.rsplit(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("no number of CPUs in {banner}"))
}

#[test]
fn elf_boots_and_finds_the_tree_at_the_start_of_memory() {
    assert_boots("default", "granule.elf", &[], ": 4 CPUs, 2G of memory, entered at EL1,");
}

#[test]
fn entered_at_el2_with_and_without_vhe() {
    assert_boots("el2", "granule.img", &[], "entered at EL2");
    // cortex-a72 has no VHE; ELF, so that x0 is 0 at EL2 too.
    assert_boots("el2", "granule.img", &["-cpu", "cortex-a72"], "2 CPUs, 1G of memory, entered at EL2");
    assert_boots("el2", "granule.elf", &["-cpu", "cortex-a72"], "2 CPUs, 1G of memory, entered at EL2");
}

/// QEMU hands the port what is typed before the kernel has turned it on.
#[test]
fn keys_pressed_before_the_boot_do_not_end_it() {
    for _ in 0..3 {
        let machine = machine::named("a53").unwrap();
        let mut session = Session::start(&machine, &built("granule.img"), "", &[]).unwrap();
        session.send("mem\nmem\nmem\n");
        session.prompt().unwrap();
        // The port may lose the first byte, with which its FIFO was full before it was turned on; what follows is
        // whole.
        session.wait_for("\nheap ").unwrap();
    }
}

#[test]
fn one_cpu_and_sixteen_and_as_many_as_gicv2_has() {
    assert_boots("default", "granule.img", &["-smp", "1"], ": 1 CPU,");
    assert_boots("default", "granule.img", &["-smp", "16"], ": 16 CPUs,");
    assert_boots("a53", "granule.img", &["-smp", "8"], ": 8 CPUs,");
}

#[test]
fn no_more_cpus_than_the_boot_arguments_allow() {
    assert_boots_with("default", "granule.img", "maxcpus=1", &[], ": 1 CPU,");
    assert_boots_with("default", "granule.img", "maxcpus=3", &[], ": 3 CPUs,");
}

#[test]
fn little_memory_and_much() {
    assert_boots("a53", "granule.img", &["-m", "64M"], "64M of memory");
    assert_boots("default", "granule.img", &["-m", "12G"], "12G of memory");
}

/// The boot arguments promise semihosting that does not exist: the machine powers off all the same, and prints why.
#[test]
fn power_off_without_the_semihosting_that_was_promised() {
    let machine = machine::named("a53").unwrap();
    let extra = words(&["-semihosting-config", "enable=off"]);
    let mut session = Session::start(&machine, &built("granule.img"), "", &extra).unwrap();
    session.prompt().unwrap();
    session.send("poweroff\n");
    session.wait_for("kernel panic on CPU 0: undefined instruction").unwrap();
    assert_eq!(session.power_off().unwrap(), Some(0));
}

/// Instructions from the entry to the prompt, as `uptime` prints them.
fn instructions_to_the_prompt() -> u64 {
    let counted = words(&["-smp", "1", "-m", "1G", "-icount", "shift=0,sleep=off"]);
    let machine = machine::named("default").unwrap();
    let mut session = Session::start(&machine, &built("granule.img"), "", &counted).unwrap();
    session.prompt().unwrap();
    let uptime = session.command("uptime").unwrap();
    let count = uptime.split_once("boot to prompt: ").and_then(|(_, rest)| rest.split_whitespace().next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {uptime:?}"))
}

/// The bound of docs/BENCHMARKS.md, and a tenth more: the compiler and QEMU, whose device tree is read, need not be the
/// reference's. Linux, lean, takes 40.8 million on the same machine.
#[test]
fn the_prompt_is_no_more_instructions_away_than_its_bound() {
    let count = instructions_to_the_prompt();
    let bound = u64::from(Bar::on("default", BOOT).unwrap().fixed);
    assert!((100_000..=bound + bound / 10).contains(&count), "{count} instructions, and the bound is {bound}");
}

/// `-kernel` has one address only, and one exception level; a loader device puts the Image anywhere, and the first CPU
/// at its start, as it comes out of reset.
fn loaded_at(address: &str) -> Vec<OsString> {
    let image = built("granule.img");
    let file = format!("loader,file={},addr={address},force-raw=on", image.display());
    words(&["-device", &file, "-device", &format!("loader,addr={address},cpu-num=0")])
}

/// Loaded where no loader of QEMU's would: the kernel finds out where it is, at a multiple of 2 MiB, of 64 KiB or of
/// 4 KiB.
#[test]
fn boots_at_any_page() {
    for address in ["0x40400000", "0x52c00000", "0x7fa00000", "0x40210000", "0x40281000"] {
        let mut machine = machine::named("default").unwrap();
        machine.memory = "1G".into();
        let qemu = Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &loaded_at(address));
        let mut session = Session::of(&qemu).unwrap();
        session.prompt().unwrap_or_else(|error| panic!("at {address}: {error}"));
        session.assert_cpus(machine.smp);
        session.assert_ends();
    }
}

/// A machine before its first instruction, the address of its device tree, and the front of that: QEMU leaves room after
/// it.
fn before_the_entry(socket: &Socket) -> (Session, Gdb, u64, Vec<u8>) {
    let mut extra = vec![OsString::from("-S")];
    extra.extend(socket.arguments());
    let machine = machine::named("el2").unwrap();
    let session = Session::start(&machine, &built("granule.img"), "", &extra).unwrap();
    let mut gdb = Gdb::connect(socket).unwrap();
    // QEMU enters an Image by a few instructions at the start of memory; the tree's address is the literal after them.
    let literal = gdb.physical(0x4000_0018, 8).unwrap();
    let tree = u64::from_le_bytes(literal.try_into().unwrap());
    let header = gdb.physical(tree, 8).unwrap();
    assert_eq!(header[..4], [0xd0, 0x0d, 0xfe, 0xed], "no device tree at {tree:#x}");
    let size = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
    let bytes = gdb.physical(tree, size.min(64 << 10)).unwrap();
    (session, gdb, tree, bytes)
}

/// Changes the device tree in memory before the first instruction, and returns what the kernel prints about it.
fn with_tree(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let socket = Socket::new();
    let (mut session, mut gdb, tree, mut bytes) = before_the_entry(&socket);
    change(&mut bytes);
    gdb.write_physical(tree, &bytes).unwrap();
    gdb.detach().unwrap();
    session.wait_for("boot failed: ").unwrap();
    session.wait_for("\n").unwrap()
}

/// By QEMU's `-seed` its tree has the same seed again. Other CPUs find the place too.
#[test]
fn the_trees_seed_places_the_image() {
    const LINKED: u64 = 0xffff_8000_8000_0000;
    let place = |append: &str, extra: &[&str]| {
        let machine = machine::named("el2").unwrap();
        let mut session = Session::start(&machine, &built("granule.img"), append, &words(extra)).unwrap();
        let banner = session.prompt().unwrap();
        assert!(banner.contains("2 CPUs") && !banner.contains("warning"), "{append} {extra:?}: {banner}");
        ptdump::text(&session.command("ptdump").unwrap()).unwrap()
    };
    let [first, again, other] = ["1", "1", "2"].map(|seed| place("", &["-seed", seed]));
    assert_eq!(first, again);
    assert_ne!(first, other);
    for place in [first, other] {
        assert!(place > LINKED && place < LINKED + (1 << 30) && place.is_multiple_of(2 << 20), "{place:#x}");
    }
    assert_eq!(place("nokaslr", &["-seed", "1"]), LINKED);
    assert_eq!(place("", &["-machine", "dtb-randomness=off"]), LINKED);
}

/// As in Linux: what reads the tree later does not learn the place.
#[test]
fn the_trees_seed_is_zeroed() {
    let socket = Socket::new();
    let (mut session, gdb, tree, bytes) = before_the_entry(&socket);
    let strings = u32::from_be_bytes(*bytes[12..].first_chunk().unwrap()) as usize;
    let name = bytes[strings..].windows(11).position(|name| name == b"kaslr-seed\0").unwrap();
    // The property's token, length and name, and the seed (Devicetree Specification v0.4, 5.4.1).
    let property = [3, 8, name as u32].map(u32::to_be_bytes).concat();
    let seed = bytes.windows(12).position(|words| words == property).unwrap() + 12;
    assert_ne!(bytes[seed..seed + 8], [0; 8]);
    gdb.detach().unwrap();
    session.prompt().unwrap();
    let after = Gdb::connect(&socket).unwrap().physical(tree, bytes.len()).unwrap();
    assert_eq!(after[seed..seed + 8], [0; 8]);
    assert!(after[..seed] == bytes[..seed] && after[seed + 8..] == bytes[seed + 8..], "nothing else has changed");
}

/// Where no tree names a console, no address is written: on a Raspberry Pi 4, whose loader gives no tree, there is
/// memory where QEMU's virt machine has its serial port. The message goes to semihosting.
#[test]
fn nothing_is_written_where_no_device_tree_names_a_console() {
    let mut machine = machine::named("a72").unwrap();
    machine.machine = "raspi4b".into();
    (machine.smp, machine.memory) = (4, "2G".into());
    machine.devices.clear();
    let qemu = Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, "", &[]);
    let ended = qemu.command().stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("boot failed: no device tree: x0 was 0x100"), "{said}");
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(1), b"".as_slice()));
}

/// EL3 is the firmware's: the loader's mistake is in the log, which is in memory, as there is nothing else yet.
#[test]
fn entered_at_el3_the_log_in_memory_tells_it() {
    for (name, address, image) in [("default", "0x40200000", 0x4020_0000), ("a72", "0x52c00000", 0x52c0_0000)] {
        let mut machine = machine::named(name).unwrap();
        machine.machine += ",secure=on";
        let socket = Socket::new();
        let mut extra = loaded_at(address);
        extra.extend(socket.arguments());
        let qemu = Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &extra);
        let _session = Session::of(&qemu).unwrap();
        let log = log::wait_for(&socket, image, "\n").unwrap();
        assert_eq!(log, "boot failed: entered at EL3; the loader must enter at EL2 or EL1\n", "{name}");
    }
}

/// An address without a device is a warning, and the console comes with the kernel mappings.
#[test]
fn earlycon_names_the_early_console() {
    assert_boots_with("el2", "granule.img", "earlycon=pl011,0x9000000", &[], "2 CPUs");
    let start = |append: &str| {
        let machine = machine::named("el2").unwrap();
        Session::start(&machine, &built("granule.img"), append, &[]).unwrap().prompt().unwrap()
    };
    let banner = start("earlycon=pl011,0x3000000000");
    assert!(banner.contains("warning: console: no registers at 0x3000000000: "), "{banner}");
    // virt's memory begins there: the port of the device tree is used.
    let banner = start("earlycon=pl011,0x40080000");
    assert!(banner.contains("console: 0x40080000 is memory"), "{banner}");
    let banner = start("earlycon=pl011,0xf000000000000000");
    assert!(banner.contains("are at no address that tables can hold"), "{banner}");
    let banner = start("earlycon=uart8250,0x9000000");
    assert!(banner.contains("boot argument earlycon: bad value"), "{banner}");
}

#[test]
fn a_missing_tree_is_a_message() {
    let said = with_tree(|tree| tree.fill(0));
    assert!(said.contains("device tree"), "{said}");
}

#[test]
fn a_truncated_tree_is_a_message() {
    let said = with_tree(|tree| tree[0x40..].fill(0));
    assert!(said.contains("device tree"), "{said}");
    // A header that promises less than the blocks that it lists.
    let said = with_tree(|tree| tree[4..8].copy_from_slice(&0x50u32.to_be_bytes()));
    assert!(said.contains("device tree"), "{said}");
}

#[test]
fn a_corrupt_tree_is_a_message() {
    let said = with_tree(|tree| tree[8..12].copy_from_slice(&0x00ff_fff1u32.to_be_bytes()));
    assert!(said.contains("device tree"), "{said}");
}

/// Boots each of these CPUs alone, and runs a program.
fn boots_on(machine: &str, cpus: &[&str]) {
    for cpu in cpus {
        assert_boots(machine, "granule.img", &["-smp", "1", "-m", "512M", "-cpu", cpu], ": 1 CPU, 512M of memory");
    }
}

/// CPUs of Arm's and Fujitsu's that no machine of machines.toml has, and QEMU's own without what it has beside them.
#[test]
fn cpus_of_every_generation_boot() {
    let cpus = ["cortex-a35", "cortex-a55", "cortex-a57", "cortex-a76", "cortex-a710", "a64fx"];
    boots_on("a72", &cpus[..3]);
    boots_on("v1", &cpus[3..]);
    boots_on("v1", &["max,lpa2=off,pauth=off,sve=off,sme=off,pmu=off"]);
}

/// At EL1 and EL2, and each feature of QEMU's own CPU away by itself.
#[test]
#[ignore = "takes half a minute: ./x test --long"]
fn cpus_of_every_generation_boot_at_both_levels() {
    let cpus = ["cortex-a35", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a710"];
    let servers = ["neoverse-n1", "neoverse-n2", "neoverse-v1", "a64fx", "max"];
    let without = ["max,lpa2=off", "max,pauth=off", "max,sve=off", "max,sme=off", "max,sve=off,sme=off", "max,pmu=off"];
    for machine in ["v1", "el2"] {
        for cpus in [&cpus[..], &servers, &without] {
            boots_on(machine, cpus);
        }
    }
}
