//! Boots of a machine that ACPI's tables describe: `virt` with a loader's tree, and with tables in its second flash,
//! which is no memory of the kernel's.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use granule_host_tests::session::Session;
use granule_host_tests::{built, own_file};
use granule_runner::acpi::{self, Gic, Virt};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};

/// Where the tables are: across the end of a page of the flash.
const AT: u64 = 0x0400_0ff8;

fn file(name: &str) -> PathBuf {
    own_file(env!("CARGO_TARGET_TMPDIR"), name)
}

/// Starts a machine with this tree, and with `memory` at [`AT`].
fn start(machine: &Machine, name: &str, append: &str, tree: &[u8], memory: &[u8]) -> Session {
    let [tree_file, tables] = ["dtb", "tables"].map(|kind| file(&format!("{name}.{kind}")));
    fs::write(&tree_file, tree).unwrap();
    fs::write(&tables, memory).unwrap();
    let loader = format!("loader,file={},addr={AT:#x},force-raw=on", tables.display());
    let extra: [OsString; 4] = ["-dtb".into(), tree_file.into(), "-device".into(), loader.into()];
    Session::start(machine, &built("granule.img"), append, &extra).unwrap()
}

/// The tree of a loader. QEMU replaces memory and boot arguments.
fn loaders_tree() -> Vec<u8> {
    acpi::loaders_tree((0x4000_0000, 0x4000_0000), "", AT).unwrap()
}

fn tables(gic: Gic, cpus: u32) -> Vec<u8> {
    acpi::laid_out(&acpi::virt(&Virt { cpus, gic, smmus: Vec::new() }), AT)
}

/// The prompt on the console that SPCR names, all CPUs, and an end by PSCI.
#[track_caller]
fn assert_boots(mut session: Session, cpus: u32) {
    let banner = session.assert_runs(cpus);
    assert!(banner.contains(&format!(": {cpus} CPU")) && !banner.contains("warning"), "{banner}");
    session.assert_ends();
}

#[test]
fn tables_alone_bring_a_machine_to_the_prompt_with_all_cpus() {
    for (name, gic, cpus) in [("v1", Gic::V3, 2), ("v1", Gic::V3ByCpu, 2), ("a72", Gic::V2, 3)] {
        // No firmware has given devices addresses.
        let machine = Machine { devices: Vec::new(), ..machine::named(name).unwrap() };
        assert_boots(start(&machine, &format!("{name}-{gic:?}"), "", &loaders_tree(), &tables(gic, cpus)), cpus);
    }
}

/// The tables have one CPU less.
#[test]
fn a_whole_tree_is_preferred_unless_acpi_is_forced() {
    let mut machine = machine::named("v1").unwrap();
    let dump = file("whole.dtb");
    machine.machine += &format!(",dumpdtb={}", dump.display());
    let qemu = Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, "", &[]).command().output();
    assert!(qemu.unwrap().status.success());
    let (tree, memory) = (acpi::with_tables(&fs::read(dump).unwrap(), AT).unwrap(), tables(Gic::V3, 1));
    let machine = machine::named("v1").unwrap();
    assert_boots(start(&machine, "preferred", "", &tree, &memory), 2);
    assert_boots(start(&machine, "forced", "acpi=force", &tree, &memory), 1);
    assert_boots(start(&machine, "off", "acpi=off", &tree, &memory), 2);
}

/// Each boot ends with this message.
#[track_caller]
fn assert_fails(name: &str, append: &str, memory: &[u8], message: &str) {
    let append = format!("earlycon=pl011,0x9000000 {append}");
    let mut session = start(&machine::named("v1").unwrap(), name, &append, &loaders_tree(), memory);
    session.wait_for(&format!("boot failed: {message}")).unwrap();
}

#[test]
fn tables_that_make_no_sense_end_the_boot_with_the_reason() {
    let memory = tables(Gic::V3, 2);
    assert_fails("off", "acpi=off", &memory, "device tree: /cpus has no cpu");
    let mut cut = memory.clone();
    cut[40] ^= 1;
    cut[0] = 0;
    assert_fails("signature", "", &cut, "ACPI: RSDP: it does not lie at 0x4000ff8");
    assert_fails("nowhere", "", &acpi::rsdp(0x1_0000_0000_0000 - 64), "ACPI: XSDT: no memory answers at ");
    assert_fails("nothing", "", &acpi::rsdp(0x30_0000_0000), "ACPI: XSDT: no memory answers at ");
    assert_fails("empty", "", &acpi::laid_out(&[], AT), "ACPI: MADT: there is none");
}
