//! The build script of the programs: how they are linked. `linker/build.rs` is its counterpart for the images.

/// A static program at a fixed address, its parts on pages of their own.
const LINK_ARGUMENTS: [&str; 4] = ["-e_start", "--image-base=0x400000", "-zmax-page-size=4096", "-znognustack"];

/// The programs that run wherever they are loaded. The last setting of the image base counts.
const ANYWHERE: [&str; 2] = ["pie", "layout"];
const PIE_ARGUMENTS: [&str; 4] = ["-pie", "--no-dynamic-linker", "--pack-dyn-relocs=relr", "--image-base=0"];

/// The program whose code is in guarded pages: it has the property that it is made for these (lld: force-bti).
const GUARDED: (&str, &str) = ("guarded", "-zforce-bti");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    for argument in LINK_ARGUMENTS {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    let (program, argument) = GUARDED;
    println!("cargo::rustc-link-arg-bin={program}={argument}");
    for program in ANYWHERE {
        for argument in PIE_ARGUMENTS {
            println!("cargo::rustc-link-arg-bin={program}={argument}");
        }
    }
}
