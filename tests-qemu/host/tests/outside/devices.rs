//! Devices by the monitor: data that they move, and a process's own memory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use granule_host_tests::built;
use granule_runner::blocks::{self, Executed};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;
use granule_runner::serial::Limit;
use object::{Object, ObjectSymbol};

const LIMIT: Limit = Limit::work(60);

/// Runs lines at the monitor: what went wrong, and the session.
fn run(machine: &Machine, text: &str) -> (Vec<String>, String) {
    run_with(machine, "", &[], text)
}

/// As [`run`], with more boot arguments, and more arguments for QEMU.
fn run_with(machine: &Machine, bootargs: &str, extra: &[OsString], text: &str) -> (Vec<String>, String) {
    let bootargs = format!("{} {bootargs}", script::BOOTARGS);
    let qemu = Qemu::new(machine, &built("granule.img"), Serial::Pipes, Reset::Ends, bootargs.trim(), extra);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(text), LIMIT, &mut session).unwrap();
    (wrong, String::from_utf8_lossy(&session).replace('\r', ""))
}

/// The lines of these that the machine has devices for.
fn lines(machine: &Machine) -> String {
    let has = |name| machine.has(name);
    let mut lines = String::from("vmalloc 2\n");
    for (disk, name) in [("virtio-blk", "blk"), ("virtio-blk", "blk blk"), ("nvme", "blk nvme")] {
        lines += &if has(disk) {
            format!(
                "{name} read 5 $ 8K\npeek $ = 5\npeek $+4088 = 12\npeek $+8184 = 20\n\
                 poke $ 0x1234\n{name} write 40 $\n{name} read 40 $+4K\npeek $+4K = 0x1234\n\
                 poke $ 0x77\n! {name} write 40 $ 4600\n{name} read 40 $+4K\npeek $+4K = 0x1234\n\
                 ! {name} write 8184 $ 8K\n{name} read 8184 $+4K\npeek $+4K = 8184\n\
                 ! {name} read 8192 $\n! {name} read 0 $ 100\n! {name} read 0 $+8K\n! {name} read 0 $+4K 8K\n"
            )
        } else {
            format!("! {name} read 5 $\n")
        };
    }
    if has("virtio-rng") {
        lines += "poke $ 0\npoke $+8 0x77\nrng $ 8\npeek $+8 = 0x77\n! peek $ = 0\nset_memory ro $ 1\n! rng $ 8\nset_memory rw $ 1\n";
    } else {
        lines += "! rng $ 8\n";
    }
    if has("edu") {
        lines += "poke $ 0xfeed\ndma copy $ $+4K+16 8\npeek $+4K+16 = 0xfeed\n! dma copy $ 0xffff000000000000 8\n";
    } else {
        lines += "! dma copy $ $ 8\n";
    }
    lines
}

/// Devices that are no PCI functions, on GICv2 and GICv3, and behind the caches or not: without `dma-coherent` the tree
/// would be another one, which `device_trees` has.
#[test]
fn virtio_devices_that_are_no_functions_move_data() {
    for name in ["mmio", "mmio-gicv3"] {
        let machine = machine::named(name).unwrap();
        let text = format!("{}lspci\n", lines(&machine));
        let (wrong, session) = run(&machine, &text);
        assert!(wrong.is_empty(), "{name}: {wrong:?}\n{session}");
        for kind in ["1af4:1042, interrupt ", "1af4:1044, interrupt "] {
            let line = session.lines().find(|line| line.starts_with("virtio device at 0x") && line.contains(kind));
            assert!(line.is_some_and(|line| line.contains(", in use by ")), "{name}, {kind}:\n{session}");
        }
    }
}

/// QEMU's devices are legacy ones unless told otherwise, and the empty places beside them are of that version too.
#[test]
fn a_legacy_virtio_device_is_refused_by_its_version() {
    let legacy: [OsString; 2] = ["-device".into(), "virtio-rng-device".into()];
    let machine = Machine { devices: Vec::new(), ..machine::named("a53").unwrap() };
    let (wrong, session) = run_with(&machine, "", &legacy, "vmalloc 1\n! rng $ 8\nlog\n");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let warnings: Vec<&str> = session.lines().filter(|line| line.contains("virtio device at ")).collect();
    let expected =
        "version 1, a legacy device, is not driven; version 2 is (QEMU: -global virtio-mmio.force-legacy=false)";
    assert!(!warnings.is_empty() && warnings.iter().all(|line| line.contains(expected)), "{session}");
    assert!(session.contains("the machine has no rng of number 0"), "{session}");
}

#[test]
fn each_machines_devices_move_data_and_what_it_does_not_have_is_refused() {
    for machine in machine::all().unwrap().into_iter().filter(|machine| !machine.is_variant()) {
        let (wrong, session) = run(&machine, &lines(&machine));
        assert!(wrong.is_empty(), "{}: {wrong:?}\n{session}", machine.name);
    }
}

#[test]
fn a_disk_is_given_a_processs_memory_and_nothing_else() {
    for disk in ["blk", "nvme"] {
        bound_to_a_process(disk);
    }
}

fn bound_to_a_process(disk: &str) {
    // The program's first bytes are an ELF header's, in a page that may be executed, and read.
    let text = format!(
        "run spin &\n\
         bind 1 {disk}\n\
         smmu dump\n\
         blk {disk} write 100 0x400000\n\
         ! blk {disk} read 100 0x400000\n\
         ! blk {disk} read 100 0x10000\n\
         smmu events\n\
         ! bind 1 {disk}\n\
         unbind {disk}\n\
         ! unbind {disk}\n\
         ! bind 99 {disk}\n\
         vmalloc 1\n\
         blk {disk} read 100 $\n\
         peek $ w = 0x464c457f\n\
         bind 1 {disk}\n\
         kill 1\n\
         ! wait 1\n\
         ! blk {disk} read 5 0x400000\n\
         unbind {disk}\n\
         blk {disk} read 5 $\n\
         peek $ = 5"
    );
    let (wrong, session) = run(&machine::named("default").unwrap(), &text);
    assert!(wrong.is_empty(), "{disk}: {wrong:?}\n{session}");
    assert!(session.contains("bound: asid "), "{session}");
    for refusal in [
        "the device's access failed: not allowed there",
        "the device's access failed: nothing is mapped there",
        "the device is bound already",
        "the device is not bound",
        "there is no process 99, or it has ended",
        "the device is bound to a process that has ended",
    ] {
        assert!(session.contains(&format!("refused: {refusal} (as expected)")), "{disk}, {refusal}:\n{session}");
    }
    assert!(session.contains("F_TRANSLATION: nothing is mapped, write at 0x10"), "{disk}: {session}");
}

/// QEMU's `edu` cuts addresses to 28 bits by default, and reports success.
#[test]
fn a_device_that_reaches_less_than_memory_is_refused_or_its_transfer_fails() {
    let copy = "vmalloc 2\npoke $ 0x1234\n! dma copy $ $+4K 512\npeek $+4K = 0\n";
    let edu: [OsString; 2] = ["-device".into(), "edu".into()];
    let with_smmu = Machine { devices: Vec::new(), ..machine::named("default").unwrap() };
    let without = Machine { devices: Vec::new(), ..machine::named("a53").unwrap() };
    for (machine, bootargs, refusal) in [
        (&with_smmu, "", "the device reaches addresses up to 0xfffffff, and 0x"),
        (&without, "", "the device reaches addresses up to 0xfffffff, and 0x"),
        // It reaches less than the boot argument promises: the SMMU refuses it where no transfer is.
        (&with_smmu, "edu.dma_bits=64", "the device's access failed: nothing is mapped there"),
    ] {
        let (wrong, session) = run_with(machine, bootargs, &edu, copy);
        assert!(wrong.is_empty() && session.contains(refusal), "{bootargs}: {wrong:?}\n{session}");
    }
}

/// The functions of the kernel's modules `of`, by their mangled names, of which instructions were executed.
fn functions(executed: &Executed, of: &[&str]) -> BTreeSet<String> {
    let elf = fs::read(built("granule.elf")).unwrap();
    let file = object::File::parse(&*elf).unwrap();
    let start = file.symbols().find(|symbol| symbol.name() == Ok("__image_start")).unwrap().address();
    // A module's name is a path's part with its length before it, or, of an implementation, between dots.
    let named = |path: &str| {
        let parts: Vec<&str> = path.split("::").collect();
        let lengths: String = parts.iter().map(|part| format!("{}{part}", part.len())).collect();
        [format!("7granule{lengths}"), format!("granule..{}..", parts.join(".."))]
    };
    let names: Vec<String> = of.iter().copied().flat_map(named).collect();
    let is_executed = |from: u64, to: u64| executed.iter().any(|range| from < range.end && range.start < to);
    file.symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.address() >= start)
        .filter(|symbol| {
            let offset = symbol.address() - start;
            is_executed(offset, offset + symbol.size())
        })
        .filter_map(|symbol| symbol.name().ok().map(str::to_owned))
        .filter(|name| names.iter().any(|part| name.contains(part)))
        .collect()
}

/// A table has what was found: on a machine without devices no function of a driver is executed for a program or a
/// command, nor by a thread or a timer. The description of the machine is not read again either.
#[test]
fn a_driver_without_its_device_runs_at_the_boot_alone() {
    const DRIVERS: [&str; 8] = [
        "platform::devices",
        "platform::tree",
        "devices",
        "chip::uart",
        "chip::bcm2836",
        "chip::bcm2835_pm",
        "chip::syscon",
        "chip::gicv2m",
    ];
    // Without RNDR, and without bytes of the loader's: random numbers would be a device's.
    for name in ["default", "a53"] {
        let mut machine = blocks::repeatable(&machine::named(name).unwrap());
        machine.devices.clear();
        // The first path makes the tree of files, which asks for devices.
        let lines = ["run hello", "mem", "cpus", "run hello", "uptime"].map(str::to_owned);
        let played = blocks::play(&machine, &built("granule.img"), None, &lines, LIMIT).unwrap();
        assert!(played.wrong.is_empty(), "{:?}\n{}", played.wrong, played.session);
        let [boot, after @ ..] = &played.records[..] else { panic!("nothing was recorded") };
        assert_eq!(after.len(), lines.len());
        let (lines, after) = (&lines[1..], &after[1..]);
        assert!(functions(boot, &["devices"]).iter().any(|function| function.contains("pci")), "the boot has none");
        for (line, executed) in lines.iter().zip(after) {
            assert!(!functions(executed, &["chip"]).is_empty(), "{line}: nothing is seen");
            assert_eq!(functions(executed, &DRIVERS), BTreeSet::new(), "{name}: {line}");
        }
    }
}
