//! Boards, as far as QEMU has models of them. With Debian's device trees the kernel speaks on the port that they name and
//! on no other, runs all CPUs and ends; images of `./x image` (granule-disk) start as a board starts them: by Debian's
//! U-Boot, from a disk.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use granule_disk::board::{Board, Parts};
use granule_disk::layout::{self, Existing};
use granule_host_tests::session::Session;
use granule_host_tests::{board, built, newest_qemu_or_skip, own_file, ptdump, skip_without_debians_tools};
use granule_runner::debian::{ARM64, Apt, Release, files, newest_trees, output};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};

/// Where tests keep files.
fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Boots the model of a board of boards.toml, of the usual QEMU or of another.
fn boots(board: &machine::Board, qemu: Option<&Path>) -> Session {
    let model = board::model(board, &built("granule.img"), "script", scratch());
    let model = if let Some(program) = qemu { model.by(program) } else { model };
    let mut session = Session::of(&model).unwrap();
    session.assert_runs(board.cpus);
    session
}

/// Boots a model, which ends; where the console is its second port, the first stays silent.
fn boots_to_its_end(name: &str, qemu: Option<&Path>) {
    if skip_without_debians_tools("device trees") {
        return;
    }
    let board = machine::board(name).unwrap();
    boots(&board, qemu).assert_ends();
    if board.model.is_some_and(|model| model.port == 2) {
        let other = board::first_port(&board.machine, scratch());
        assert_eq!(fs::read_to_string(&other).unwrap(), "", "the first port is another device's");
        fs::remove_file(other).unwrap();
    }
}

/// Boots a model without firmware, which nothing turns off.
fn boots_and_stops(name: &str) {
    let mut session = boots(&machine::board(name).unwrap(), None);
    session.send("poweroff\n");
    session.wait_for("nothing turns this machine off").unwrap();
}

/// A GICv2 and a Cadence UART; PSCI of QEMU's own.
#[test]
fn a_zcu102_runs_by_debians_tree() {
    boots_to_its_end("zcu102", None);
}

/// A GICv3; the console is the second of the i.MX's UARTs.
#[test]
fn an_imx8mp_runs_by_debians_tree() {
    boots_to_its_end("imx8mp-evk", None);
}

/// A spin table, a mini UART, and a watchdog that ends the machine. The first port is Bluetooth's.
#[test]
fn a_raspberry_pi_4_runs_by_debians_tree() {
    boots_to_its_end("raspi4b", None);
}

/// No GIC: the BCM2836's interrupt controllers.
#[test]
fn a_raspberry_pi_3_runs_by_debians_tree() {
    boots_to_its_end("raspi3b", None);
}

/// A GICv3 and a PL011 at EL2; two of the model's four CPUs are those of the real-time processor.
#[test]
fn a_versal_runs_by_the_models_tree() {
    boots_to_its_end("versal", None);
}

/// A GICv2 and a 16550 with registers four bytes apart, by a tree and with a spin table of the tests' own.
#[test]
fn an_npcm845_runs_without_firmware() {
    boots_and_stops("npcm845-evb");
}

/// A GICv3, and a 16550 whose interrupt comes by a controller without a driver: it is polled.
#[test]
fn an_ast2700_runs_without_firmware() {
    boots_and_stops("ast2700-evb");
}

/// A GICv3, an SBSA UART, and memory above 1 TiB.
#[test]
fn an_sbsa_reference_machine_runs_without_firmware() {
    boots_and_stops("sbsa-ref");
}

/// A GICv3 at EL2; a model that QEMU 10.0 does not have.
#[test]
#[ignore = "fetches Debian's newest QEMU: ./x test --long"]
fn an_imx8mm_runs_by_debians_tree_and_newest_qemu() {
    if let Some(qemu) = newest_qemu_or_skip(scratch()) {
        boots_to_its_end("imx8mm-evk", Some(&qemu));
    }
}

/// A file of Debian's newest package on the first day that it was wanted. Tests that want the same wait.
fn file_of(package: &str, path: &str) -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package);
    let file = directory.join(package).join(path);
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let lock = fs::File::create(directory.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if !file.is_file() {
        let apt = Apt::new(directory.clone(), ARM64, Release::Unstable)?;
        output(apt.command("apt-get").args(["-qq", "update"]))?;
        apt.take(package, &directory.join(package))?;
    }
    Ok(file)
}

/// U-Boot for `virt`.
fn u_boot() -> PathBuf {
    file_of("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin").expect("the package can be taken")
}

/// EDK2 for `virt`.
fn edk2() -> PathBuf {
    file_of("qemu-efi-aarch64", "usr/share/qemu-efi-aarch64/QEMU_EFI.fd").expect("the package can be taken")
}

/// An image of `./x image` in a file of that name.
fn disk(board: Board, append: &str, name: &str) -> PathBuf {
    let kernel = built("granule.img");
    let initrd = initrd_of(&kernel);
    let parts = Parts { kernel: &kernel, initrd: Some(&initrd), tree: None, firmware: None, append };
    let image = layout::image(board.table(), &board.files(&parts).unwrap()).unwrap();
    let path = own_file(env!("CARGO_TARGET_TMPDIR"), name);
    layout::write(&path, &image, Existing::Replaced).unwrap();
    path
}

/// A machine that firmware starts from a disk.
fn from_disk(machine: &Machine, firmware: &Path, disk: &Path, more: &[&str]) -> Session {
    let mut extra: Vec<OsString> = vec![
        "-bios".into(),
        firmware.into(),
        "-drive".into(),
        format!("if=none,id=card,format=raw,snapshot=on,file={}", disk.display()).into(),
        "-device".into(),
        "virtio-blk-pci,drive=card,romfile=".into(),
    ];
    extra.extend(more.iter().map(Into::into));
    Session::of(&Qemu::without_kernel(machine, Serial::Pipes, Reset::Ends, &extra)).unwrap()
}

/// A machine that firmware has started from a disk runs on all CPUs, runs a program of the initrd, and `look`; then it
/// ends. Returns the output up to the prompt.
fn runs_from(
    machine: &Machine,
    firmware: &Path,
    disk: &Path,
    more: &[&str],
    loads: &str,
    look: impl FnOnce(&mut Session),
) -> String {
    let mut session = from_disk(machine, firmware, disk, more);
    session.wait_for(loads).unwrap();
    let banner = session.assert_runs(machine.smp);
    look(&mut session);
    session.assert_ends();
    banner
}

#[test]
fn an_image_boots_by_u_boot_on_virt() {
    if skip_without_debians_tools("U-Boot") {
        return;
    }
    let path = disk(Board::Generic, "script semihosting", "generic.img");
    let banner = runs_from(&machine::named("a53").unwrap(), &u_boot(), &path, &[], "/granule.img", |_| {});
    assert!(banner.contains("entered at EL1"), "{banner}");
    fs::remove_file(path).unwrap();
}

/// U-Boot where the Raspberry Pi's firmware starts the kernel, and the image as its card. The other CPUs wait for U-Boot at
/// full speed.
#[test]
#[ignore = "takes half a minute of CPU time: ./x test --long"]
fn an_image_boots_by_u_boot_on_a_raspberry_pi_4() {
    if skip_without_debians_tools("U-Boot") {
        return;
    }
    let board = machine::board("raspi4b").unwrap();
    let path = disk(Board::Generic, "script", "rpi4.img");
    // The model takes a card whose size is a power of two.
    fs::File::options().write(true).open(&path).unwrap().set_len(128 << 20).unwrap();
    let card = format!("if=sd,format=raw,snapshot=on,file={}", path.display());
    let u_boot = file_of("u-boot-rpi", "usr/lib/u-boot/rpi_4/u-boot.bin").expect("the package can be taken");
    let (trees, _) = newest_trees(&scratch().join("device-trees")).expect("the package can be taken");
    let tree = files(&trees, "dtb").into_iter().find(|path| path.ends_with("broadcom/bcm2711-rpi-4-b.dtb"));
    let extra: [OsString; 8] = [
        "-audio".into(),
        "none".into(),
        "-kernel".into(),
        u_boot.into(),
        "-dtb".into(),
        tree.unwrap().into(),
        "-drive".into(),
        card.into(),
    ];
    let first_port = own_file(scratch(), "rpi4-u-boot.first-port");
    let serial = Serial::SecondPipes(first_port.clone());
    let mut session = Session::of(&Qemu::without_kernel(&board.machine, serial, Reset::Ends, &extra)).unwrap();
    session.wait_for("/granule.img").unwrap();
    let by_u_boot = fs::read_to_string(&first_port).unwrap();
    session.assert_runs(board.cpus);
    session.assert_ends();
    // U-Boot begins there, before it has read the tree; the kernel prints nothing.
    assert_eq!(fs::read_to_string(&first_port).unwrap(), by_u_boot);
    fs::remove_file(first_port).unwrap();
    fs::remove_file(path).unwrap();
}

/// `virt` with more options.
fn virt(options: &str) -> Machine {
    let machine = machine::named("a53").unwrap();
    Machine { machine: format!("{}{options}", machine.machine), ..machine }
}

/// The kernel as an application of UEFI: its stub reads initrd and boot arguments from the disk.
fn boots_by_uefi(firmware: &Path, options: &str, more: &[&str], loads: &str, name: &str) -> String {
    let path = disk(Board::Uefi, "script semihosting", name);
    let banner = runs_from(&virt(options), firmware, &path, more, loads, |session| {
        let text = ptdump::text(&session.command("ptdump").unwrap()).unwrap();
        assert_ne!(text, 0xffff_8000_8000_0000, "the kernel is where it is linked");
    });
    fs::remove_file(path).unwrap();
    banner
}

#[test]
fn an_image_boots_by_edk2_on_virt_at_el1() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let banner = boots_by_uefi(&edk2(), ",acpi=off", &[], "BdsDxe: starting", "edk2-el1.img");
    assert!(banner.contains("entered at EL1"), "{banner}");
}

/// With random numbers: the kernel goes anywhere.
#[test]
fn an_image_boots_by_edk2_on_virt_at_el2_with_random_numbers() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let more = ["-device", "virtio-rng-pci,romfile="];
    let banner = boots_by_uefi(&edk2(), ",acpi=off,virtualization=on", &more, "BdsDxe: starting", "edk2-el2.img");
    assert!(banner.contains("entered at EL2"), "{banner}");
}

/// QEMU's tree has a seed: the kernel lies anywhere, in memory and in its address space.
#[test]
fn an_image_boots_by_u_boots_uefi_on_virt() {
    if skip_without_debians_tools("U-Boot") {
        return;
    }
    let banner = boots_by_uefi(&u_boot(), "", &[], "Booting: virtio", "u-boot-efi.img");
    assert!(banner.contains("entered at EL1"), "{banner}");
}

/// EDK2 tells what a stub returns, and continues.
#[test]
fn an_initrd_that_is_missing_is_named_on_the_firmwares_console() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let path = disk(Board::Uefi, "initrd=/none.cpio", "edk2-error.img");
    let mut session = from_disk(&virt(",acpi=off"), &edk2(), &path, &[]);
    session.wait_for("granule: cannot read \\none.cpio: ").unwrap();
    session.wait_for("Not Found").unwrap();
    drop(session);
    fs::remove_file(path).unwrap();
}

/// Without a device tree: a device is behind a second root bus and, by IORT, behind the SMMU.
#[test]
fn an_image_boots_by_edk2_with_acpis_tables_alone() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let path = disk(Board::Uefi, "script semihosting", "edk2-acpi.img");
    let machine = machine::named("v1").unwrap();
    let machine =
        Machine { machine: format!("{},acpi=on,iommu=smmuv3", machine.machine), devices: Vec::new(), ..machine };
    let mut more = Vec::new();
    for device in ["pxb-pcie,id=second,bus_nr=8,bus=pcie.0", "pcie-root-port,id=behind,bus=second", "edu,bus=behind"] {
        more.extend(["-device", device]);
    }
    let banner = runs_from(&machine, &edk2(), &path, &more, "BdsDxe: starting", |session| {
        let functions = session.command("lspci").unwrap();
        let edu = functions.lines().find(|line| line.contains(" 1234:11e8 ")).expect("edu is found");
        assert!(edu.starts_with("0000:09:00.0") && edu.ends_with("StreamID 0x900, DeviceID 0x900"), "{functions}");
    });
    assert!(banner.contains("2 CPUs") && !banner.contains("warning"), "{banner}");
    fs::remove_file(path).unwrap();
}

/// `virt` with ACPI and these devices, and the kernel without a disk: QEMU hands the files to EDK2.
fn by_edk2_without_a_disk(devices: &[&str], append: &str) -> Qemu {
    let machine = machine::named("v1").unwrap();
    let devices = devices.iter().map(|device| (*device).into()).collect();
    let machine = Machine { machine: format!("{},acpi=on", machine.machine), devices, ..machine };
    let append = format!("script semihosting {append}");
    let extra = ["-bios".into(), edk2().into()];
    Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, &append, &extra)
}

/// EDK2 has the arguments as load options alone: there are neither a file nor a device tree that could have them.
#[test]
fn edk2_hands_over_arguments_as_load_options() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let mut session = Session::of(&by_edk2_without_a_disk(&[], "maxcpus=1")).unwrap();
    let banner = session.assert_runs(1);
    assert!(banner.contains(": 1 CPU,") && !banner.contains("warning"), "{banner}");
    session.assert_ends();
}

/// QEMU hands over an initrd with a kernel that is none: EDK2 starts the one on the disk, and has the initrd at the vendor
/// media path. The disk has none under the name that the arguments give.
#[test]
fn edk2_hands_over_an_initrd_at_its_vendor_media_path() {
    if skip_without_debians_tools("EDK2") {
        return;
    }
    let path = disk(Board::Uefi, "script semihosting initrd=/none.cpio", "edk2-initrd.img");
    let initrd = initrd_of(&built("granule.img")).display().to_string();
    let more = ["-kernel", &initrd, "-initrd", &initrd];
    runs_from(&virt(",acpi=off"), &edk2(), &path, &more, "BdsDxe: starting", |_| {});
    fs::remove_file(path).unwrap();
}

/// By IORT, each of two root buses is behind an SMMU of its own, which has the streams of that bus alone.
#[test]
#[ignore = "fetches Debian's newest QEMU: ./x test --long"]
fn two_root_buses_are_behind_two_smmus_by_acpis_tables() {
    let Some(qemu) = newest_qemu_or_skip(scratch()) else { return };
    let devices = [
        "pxb-pcie,id=second,bus_nr=8,bus=pcie.0",
        "pcie-root-port,id=behind,bus=second",
        "arm-smmuv3,primary-bus=pcie.0",
        "arm-smmuv3,primary-bus=second",
        "nvme,bus=pcie.0,addr=5",
        "nvme,bus=behind",
    ];
    let mut session = Session::of(&by_edk2_without_a_disk(&devices, "").by(&qemu)).unwrap();
    session.assert_runs(2);
    session.command("vmalloc 1").unwrap();
    for (disk, sector) in [("nvme", 5), ("nvme1", 4711)] {
        let read = session.command(&format!("blk {disk} read {sector} $")).unwrap();
        let found = session.command(&format!("peek $ q = {sector}")).unwrap();
        assert!(!read.contains("error") && !found.contains("error"), "{disk}: {read}{found}");
    }
    let dump = session.command("smmu dump").unwrap();
    let (first, second) = dump.split_once("SMMU 1:").expect("there are two SMMUs");
    for (smmu, own, other) in [(first, "0x0028", "0x0900"), (second, "0x0900", "0x0028")] {
        let has = |stream: &str| smmu.contains(&format!("stream {stream}  translate"));
        assert!(has(own) && !has(other), "{dump}");
    }
    session.assert_ends();
}
