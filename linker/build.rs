//! The build script of the images, `granule`, `granule-tests` and `granule-bench`: how they are linked.
//!
//! The options of code generation (`-Crelocation-model=pie`, frame pointers) are on the command line that `./x` writes,
//! because they concern every crate; this script is about the last step alone.

use std::path::{Path, PathBuf};

/// A position-independent executable that relocates itself.
const LINK_ARGUMENTS: [&str; 9] = [
    "-pie",
    "--no-dynamic-linker",
    // Relative relocations in their packed form, which entry.S applies; and none in text.
    "--pack-dyn-relocs=relr",
    "-ztext",
    // The script lays out the read-only parts itself.
    "-znorelro",
    "-zmax-page-size=4096",
    // linkme's slices are referred to by their __start_ symbols only.
    "-znostart-stop-gc",
    // A section that the script does not know would land between two permissions.
    "--orphan-handling=error",
    // Which references the linker resolved: xtask refuses those that reach no further than 1 MiB.
    "--emit-relocs",
];

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = script();
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for argument in LINK_ARGUMENTS {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=--defsym=SYMBOLS_SIZE={}", symbols_size());
}

/// Bytes of the image that the names of its functions may take. The kernel itself cuts what is longer; the checked
/// build inlines little and has nearly twice as many functions, and the tests look for whole names.
fn symbols_size() -> usize {
    let tests = std::env::var("CARGO_PKG_NAME").is_ok_and(|name| name == "granule-tests");
    let checked = std::env::var_os("CARGO_CFG_DEBUG_ASSERTIONS").is_some();
    if tests || checked { 160 << 10 } else { 28 << 10 }
}

/// `linker/granule.ld`, in whichever directory above the package it is.
fn script() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    Path::new(&package)
        .ancestors()
        .map(|directory| directory.join("linker/granule.ld"))
        .find(|script| script.is_file())
        .expect("linker/granule.ld lies in the workspace")
}
