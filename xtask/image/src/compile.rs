//! `./x build`: the kernel, the images of tests, benches and the loader, each as ELF and as arm64 Image; and the
//! programs for EL0 in an initrd, which every machine that boots one of the images gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use granule_runner::{identity, qemu};
use granule_tools::{Profile, Tools, run};

use crate::{example, image, initrd, pe, symbols, words};

/// The largest kernel image that is let through, in bytes: one block.
pub const IMAGE_LIMIT: usize = 2 << 20;

/// Packages of what runs before a kernel, the EFI stub and the loader: built by themselves, since the features that
/// they want of crates, such as trees that are written, stay out of the kernel.
pub const BEFORE_KERNELS: [&str; 2] = ["granule-uefi", LOADER];
/// The program of the EFI stub.
const STUB: &str = "efi-stub";
/// The loader.
const LOADER: &str = "granule-loader";
/// The kernel with the tests.
const TESTS: &str = "granule-tests";
/// The sources of the programs for EL0.
const PROGRAMS: &str = "user/src/bin";
/// Scripts for them.
const SCRIPTS: &str = "user/scripts";

/// Plugins of QEMU: what counts instructions of stretches, and what records executed blocks.
const PLUGINS: [&str; 2] = ["stretches", "blocks"];
/// The plugin that counts cache lines, for the benches of the suite `scale` alone.
const LINES: &str = "lines";
/// The one that models a TLB, for those of the suite `tlb`.
const TLB: &str = "tlb";
/// Their sources, and the header that all include.
const PLUGIN_SOURCES: &str = "tests-qemu/plugin";

/// The step that fails where the sources do not compile for the target.
pub const TARGET_BUILD: &str = "building for the target";

/// The programs that were built, in `build/`.
#[derive(Debug)]
pub struct Built {
    /// The kernel.
    pub kernel: Program,
    /// The kernel with the tests in place of the monitor.
    pub tests: Program,
    /// The kernel with measurements in place of the monitor.
    pub benches: Program,
    /// The loader, which takes a kernel over a serial line.
    pub loader: Program,
    /// The example on the metal, as ELF: nothing else boots it.
    pub example: PathBuf,
    /// The program that measures at EL0, as ELF with its sections.
    pub bench_program: PathBuf,
    /// The programs for EL0.
    pub initrd: PathBuf,
    /// The plugin of QEMU that counts cache lines, where it can be built.
    pub lines: Option<PathBuf>,
    /// The one that models a TLB, where it can be built.
    pub tlb: Option<PathBuf>,
}

/// One program in both forms.
#[derive(Debug)]
pub struct Program {
    /// With symbols and debug information; for gdb and the list of tests.
    pub elf: PathBuf,
    /// The image that boots.
    pub image: PathBuf,
}

/// Builds all programs.
///
/// # Errors
/// When the compiler fails, or a finished image breaks a rule.
pub fn build(tools: &Tools, profile: Profile) -> Result<Built> {
    let mut cargo = tools.target_cargo("build", "target");
    cargo.args(["--bins", "--profile", profile.name()]);
    run(&mut cargo, TARGET_BUILD)?;
    fs::create_dir_all(tools.build_directory()).context("cannot make build/")?;
    let output = tools.target_output(profile);
    let program = |name: &str, stub| finish(&output.join(name), &tools.build_directory().join(name), stub);
    let stub = build_before_kernels(tools, profile)?;
    let (kernel, loader) = (program("granule", Some(&stub))?, program(LOADER, Some(&stub))?);
    let archive = pack(tools, &kernel, profile)?;
    let bench_program = tools.build_directory().join("bench.elf");
    write(&bench_program, &fs::read(output.join("bench")).context("cannot read the program `bench`")?)?;
    let example = tools.build_directory().join("metal.elf");
    let linked = fs::read(output.join("metal")).context("cannot read the example `metal`")?;
    image::check_permissions(&linked)?;
    image::check_tlbis(&linked)?;
    example::check_mmu_off(&linked)?;
    write(&example, &linked)?;
    let (tests, benches) = (program(TESTS, None)?, program("granule-bench", None)?);
    check_words(&tests, profile)?;
    PLUGINS.iter().try_for_each(|name| build_plugin(tools, name).map(drop))?;
    let optional = |name, suite| {
        let plugin = build_plugin(tools, name);
        plugin.inspect_err(|error| eprintln!("x: {error:#}: `./x bench {suite}` is skipped")).ok()
    };
    let (lines, tlb) = (optional(LINES, "scale"), optional(TLB, "tlb"));
    let built = Built { kernel, tests, benches, loader, example, bench_program, initrd: archive, lines, tlb };
    if profile == Profile::Release {
        let size = fs::metadata(&built.kernel.image)?.len() as usize;
        ensure!(size <= IMAGE_LIMIT, "{} has {size} bytes, more than {IMAGE_LIMIT}", built.kernel.image.display());
    }
    Ok(built)
}

/// Builds the EFI stub and the loader; returns the stub.
fn build_before_kernels(tools: &Tools, profile: Profile) -> Result<Vec<u8>> {
    let mut cargo = tools.target_cargo_of("build", "target", &BEFORE_KERNELS);
    cargo.args(["--bin", STUB, "--bin", LOADER, "--profile", profile.name()]);
    run(&mut cargo, TARGET_BUILD)?;
    let linked = tools.target_output(profile).join(STUB);
    let stub = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    image::check_permissions(&stub).with_context(|| linked.display().to_string())?;
    Ok(stub)
}

/// Builds the image of the tests alone, with the programs that it runs.
///
/// # Errors
/// When the compiler fails, or a finished image breaks a rule.
pub fn build_tests(tools: &Tools, profile: Profile) -> Result<Program> {
    let mut cargo = tools.target_cargo("build", "target");
    cargo.args(["--bin", TESTS, "--profile", profile.name()]);
    for name in initrd::names(&tools.root.join(PROGRAMS))? {
        cargo.args(["--bin", &name]);
    }
    run(&mut cargo, TARGET_BUILD)?;
    fs::create_dir_all(tools.build_directory()).context("cannot make build/")?;
    let tests = finish(&tools.target_output(profile).join(TESTS), &tools.build_directory().join(TESTS), None)?;
    check_words(&tests, profile)?;
    pack(tools, &tests, profile)?;
    Ok(tests)
}

/// Compares the wrappers of instructions in the image of the tests with the table of their words.
fn check_words(tests: &Program, profile: Profile) -> Result<()> {
    // The checked build calls what reports an overflow, which issues instructions of its own.
    if profile != Profile::Checked {
        words::check(&fs::read(&tests.elf)?).with_context(|| tests.elf.display().to_string())?;
    }
    Ok(())
}

/// Packs the programs for EL0 into the initrd that a machine gets which boots `image`.
fn pack(tools: &Tools, image: &Program, profile: Profile) -> Result<PathBuf> {
    let archive = qemu::initrd_of(&image.image);
    write(
        &archive,
        &initrd::pack(&tools.root.join(PROGRAMS), &tools.root.join(SCRIPTS), &tools.target_output(profile))?,
    )?;
    Ok(archive)
}

/// Builds a plugin of QEMU, for the host: `build/NAME.so`.
fn build_plugin(tools: &Tools, name: &str) -> Result<PathBuf> {
    let folder = tools.root.join(PLUGIN_SOURCES);
    let source = folder.join(format!("{name}.c"));
    let plugin = tools.build_directory().join(format!("{name}.so"));
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let is_older = |source: &Path, built| time(source).is_ok_and(|changed| changed < built);
    let sources = [source.clone(), folder.join("plugin.h"), folder.join("qemu.h")];
    if time(&plugin).is_ok_and(|built| sources.iter().all(|source| is_older(source, built))) {
        return Ok(plugin);
    }
    // A machine may have the old one mapped: it keeps that.
    let fresh = plugin.with_extension(format!("new{}", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]);
    // QEMU has the functions that it calls.
    if cfg!(target_os = "macos") {
        compiler.args(["-undefined", "dynamic_lookup"]);
    }
    run(compiler.arg("-o").arg(&fresh).arg(&source), "building a plugin of QEMU")?;
    fs::rename(&fresh, &plugin).with_context(|| format!("cannot write {}", plugin.display()))?;
    Ok(plugin)
}

/// From what the linker wrote to what boots: the symbol table goes in, the rules are checked, the Image comes out, with
/// the EFI stub where there is one.
fn finish(linked: &Path, stem: &Path, stub: Option<&Vec<u8>>) -> Result<Program> {
    let program = Program { elf: stem.with_extension("elf"), image: stem.with_extension("img") };
    let mut elf = fs::read(linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let what = || linked.display().to_string();
    image::check_permissions(&elf).with_context(what)?;
    image::check_tlbis(&elf).with_context(what)?;
    image::check_short_references(&elf).with_context(what)?;
    symbols::fill(&mut elf).with_context(what)?;
    let mut flat = image::flatten(&elf).with_context(what)?;
    if identity::write(&mut elf, &flat).with_context(what)? {
        flat = image::flatten(&elf).with_context(what)?;
    }
    if let Some(stub) = stub {
        flat = pe::application(&flat, stub).with_context(what)?;
    }
    write(&program.elf, &elf)?;
    write(&program.image, &flat)?;
    Ok(program)
}

/// Writes a file where it differs, so that its time tells when it last changed. By way of a second name: a machine that
/// is booting from the old one keeps it whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
