//! `./x build`: the kernel and the test image, each as ELF and as arm64 Image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::tools::{Profile, Tools, run};
use crate::{image, symbols};

/// The largest kernel image that is let through, in bytes.
pub(crate) const IMAGE_LIMIT: usize = 1 << 20;

/// What was built, in `build/`.
#[derive(Debug)]
pub(crate) struct Built {
    /// The kernel.
    pub(crate) kernel: Program,
    /// The kernel with the tests in place of the monitor.
    pub(crate) tests: Program,
}

/// What [`build_benches`] built.
#[derive(Debug)]
pub(crate) struct Benches {
    /// The kernel.
    pub(crate) kernel: Program,
    /// The kernel with the benches in place of the monitor.
    pub(crate) benches: Program,
}

/// One program in both forms.
#[derive(Debug)]
pub(crate) struct Program {
    /// With symbols and debug information; for gdb and the list of tests.
    pub(crate) elf: PathBuf,
    /// What boots.
    pub(crate) image: PathBuf,
}

/// Builds both programs.
///
/// # Errors
/// When the compiler fails, or a finished image breaks a rule.
pub(crate) fn build(tools: &Tools, profile: Profile) -> Result<Built> {
    let [kernel, tests] = programs(tools, profile, [("granule-boot", "granule"), ("granule-tests", "granule-tests")])?;
    if profile == Profile::Release {
        let size = fs::metadata(&kernel.image)?.len() as usize;
        ensure!(size <= IMAGE_LIMIT, "{} has {size} bytes, more than {IMAGE_LIMIT}", kernel.image.display());
    }
    Ok(Built { kernel, tests })
}

/// Builds the bench image and the kernel, for whose boot there is a row: the code that is shipped.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_benches(tools: &Tools) -> Result<Benches> {
    let [kernel, benches] =
        programs(tools, Profile::Release, [("granule-boot", "granule"), ("granule-bench", "granule-bench")])?;
    Ok(Benches { kernel, benches })
}

/// Compiles programs, each by the names of its package and its binary, and finishes them.
fn programs(tools: &Tools, profile: Profile, names: [(&str, &str); 2]) -> Result<[Program; 2]> {
    let mut cargo = tools.target_cargo("build", "target", &names.map(|(package, _)| package));
    cargo.args(["--bins", "--profile", profile.name()]);
    run(&mut cargo, "building for the target")?;
    fs::create_dir_all(tools.build_directory()).context("cannot make build/")?;
    let output = tools.target_output(profile);
    let [first, second] = names.map(|(_, name)| finish(&output.join(name), &tools.build_directory().join(name)));
    Ok([first?, second?])
}

/// From what the linker wrote to what boots: the symbol table goes in, the rules are checked, the Image comes out.
fn finish(linked: &Path, stem: &Path) -> Result<Program> {
    let program = Program { elf: stem.with_extension("elf"), image: stem.with_extension("img") };
    let mut elf = fs::read(linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let what = || linked.display().to_string();
    image::check_permissions(&elf).with_context(what)?;
    symbols::fill(&mut elf).with_context(what)?;
    let flat = image::flatten(&elf).with_context(what)?;
    write(&program.elf, &elf)?;
    write(&program.image, &flat)?;
    Ok(program)
}

/// Writes a file where it differs, so that its time tells when it last changed. By way of a second name: a machine that is
/// booting from the old one keeps it whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
