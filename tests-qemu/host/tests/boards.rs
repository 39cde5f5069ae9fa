//! Images of `./x image` (granule-disk) start as a board starts them: by Debian's U-Boot, from a disk.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use granule_disk::board::{Board, Parts};
use granule_disk::layout::{self, Existing};
use granule_host_tests::built;
use granule_host_tests::session::Session;
use granule_runner::debian::{Apt, has_debians_tools, output};
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};

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
    if !has_debians_tools() {
        // Past the harness: `./x test` reports the test as skipped, with this reason.
        let _ = writeln!(std::io::stderr(), "@skipped no apt-get and dpkg-deb here, for U-Boot");
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
