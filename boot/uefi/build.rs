//! The build script of the stub: how it is linked. `./x build` makes a PE/COFF file of it and of the kernel.

/// Linked at 0, with relocations that `./x build` turns into those of PE/COFF: the firmware applies them.
const LINK_ARGUMENTS: [&str; 6] =
    ["-pie", "--no-dynamic-linker", "-ztext", "-znorelro", "-zmax-page-size=4096", "--orphan-handling=error"];

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/uefi.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    for argument in LINK_ARGUMENTS {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
