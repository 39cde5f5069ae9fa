//! Boards, as far as QEMU has models of them. With Debian's device trees the kernel speaks on the port that they name and
//! on no other, runs all CPUs and ends; images of `./x image` (granule-disk) start as a board starts them: by Debian's
//! U-Boot, from a disk.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use granule_disk::board::{Board, Parts};
use granule_disk::layout::{self, Existing};
use granule_host_tests::built;
use granule_host_tests::session::Session;
use granule_runner::debian::{Apt, files, has_debians_tools, newest_trees, output};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};

/// Past the harness: `./x test` reports the test as skipped, with this reason.
fn skip_without_debians_tools(what: &str) -> bool {
    let is_skipped = !has_debians_tools();
    if is_skipped {
        let _ = writeln!(std::io::stderr(), "@skipped no apt-get and dpkg-deb here, for {what}");
    }
    is_skipped
}

/// A model of QEMU's, with all CPUs that the tree has.
fn model(machine: &str, cpu: &str, memory: &str) -> Machine {
    let [machine, cpu, memory] = [machine, cpu, memory].map(str::to_owned);
    Machine { machine, cpu, memory, smp: 4, ..machine::named("a53").unwrap() }
}

/// Boots a model with a tree of Debian's; its console is the model's second port where `is_second`. All CPUs run, a
/// program does, and the machine ends; the other port stays silent.
fn boots_to_its_end(machine: &Machine, tree: &str, is_second: bool) {
    if skip_without_debians_tools("device trees") {
        return;
    }
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (trees, _) = newest_trees(&scratch.join("device-trees")).expect("the package can be taken");
    let tree = files(&trees, "dtb").into_iter().find(|path| path.ends_with(tree)).expect("the package has the tree");
    let kernel = built("granule.img");
    let extra: Vec<OsString> = vec![
        "-dtb".into(),
        tree.into(),
        "-kernel".into(),
        (&kernel).into(),
        "-initrd".into(),
        initrd_of(&kernel).into(),
        "-append".into(),
        "script".into(),
    ];
    let other = scratch.join(format!("{}.first-port", machine.machine));
    let serial = if is_second { Serial::SecondPipes(other.clone()) } else { Serial::Pipes };
    let mut session = Session::of(&Qemu::without_kernel(machine, serial, Reset::Ends, &extra)).unwrap();
    session.prompt().unwrap();
    let cpus = session.command("cpus").unwrap();
    let run = cpus.lines().filter(|line| line.starts_with("cpu ") && line.ends_with(" runs")).count();
    assert_eq!(run, machine.smp as usize, "{cpus}");
    let memory = session.command("mem").unwrap();
    assert!(memory.contains("free"), "{memory}");
    let hello = session.command("run hello").unwrap();
    assert!(hello.contains("hello from process"), "{hello}");
    assert_eq!(session.power_off().unwrap(), Some(0));
    if is_second {
        assert_eq!(fs::read_to_string(&other).unwrap(), "", "the first port is another device's");
        fs::remove_file(other).unwrap();
    }
}

/// A GICv2 and a Cadence UART; PSCI of QEMU's own.
#[test]
fn a_zcu102_runs_by_debians_tree() {
    boots_to_its_end(&model("xlnx-zcu102", "cortex-a53", "2G"), "xilinx/zynqmp-zcu102-rev1.0.dtb", false);
}

/// A GICv3; the console is the second of the i.MX's UARTs.
#[test]
fn an_imx8mp_runs_by_debians_tree() {
    boots_to_its_end(&model("imx8mp-evk", "cortex-a53", "2G"), "freescale/imx8mp-evk.dtb", true);
}

/// A spin table, a mini UART, and a watchdog that ends the machine. The first port is Bluetooth's.
#[test]
fn a_raspberry_pi_4_runs_by_debians_tree() {
    boots_to_its_end(&model("raspi4b", "cortex-a72", "2G"), "broadcom/bcm2711-rpi-4-b.dtb", true);
}

/// No GIC: the BCM2836's interrupt controllers.
#[test]
fn a_raspberry_pi_3_runs_by_debians_tree() {
    boots_to_its_end(&model("raspi3b", "cortex-a53", "1G"), "broadcom/bcm2837-rpi-3-b.dtb", true);
}

/// U-Boot for `virt`, of Debian's newest package on the first day that it was wanted.
fn u_boot() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("u-boot");
    let loader = directory.join("u-boot-qemu/usr/lib/u-boot/qemu_arm64/u-boot.bin");
    if !loader.is_file() {
        let apt = Apt::new(directory.clone())?;
        output(apt.command("apt-get").args(["-qq", "update"]))?;
        apt.take("u-boot-qemu", &directory.join("u-boot-qemu"))?;
    }
    Ok(loader)
}

#[test]
fn an_image_boots_by_u_boot_on_virt() {
    if skip_without_debians_tools("U-Boot") {
        return;
    }
    let loader = u_boot().expect("the package can be taken");
    let kernel = built("granule.img");
    let initrd = initrd_of(&kernel);
    let parts = Parts { kernel: &kernel, initrd: &initrd, tree: None, firmware: None, append: "script semihosting" };
    let image = layout::image(&Board::Generic.files(&parts).unwrap()).unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generic.img");
    layout::write(&path, &image, Existing::Replaced).unwrap();
    let extra = [
        "-bios".into(),
        loader.into(),
        "-drive".into(),
        format!("if=none,id=card,format=raw,snapshot=on,file={}", path.display()).into(),
        "-device".into(),
        "virtio-blk-pci,drive=card,romfile=".into(),
    ];
    let machine = machine::named("a53").unwrap();
    let qemu = Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &extra);
    let mut session = Session::of(&qemu).unwrap();
    session.wait_for("/granule.img").unwrap();
    let banner = session.prompt().unwrap();
    assert!(banner.contains("entered at EL1"), "{banner}");
    let hello = session.command("run hello").unwrap();
    assert!(hello.contains("hello from process"), "{hello}");
    assert_eq!(session.power_off().unwrap(), Some(0));
    fs::remove_file(path).unwrap();
}
