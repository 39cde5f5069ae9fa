//! The tools that `./x` found, and the cargo command lines that use them.
//!
//! Everything that changes what is built stands here, on a command line: nothing of the kind is in `.cargo/config.toml`
//! or the environment. [`bounded`] runs a command within bounds of CPU time and memory.

#![forbid(unsafe_code)]

pub mod bounded;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use granule_runner::{machine, usage};
use wait4::Wait4;

/// The suite that the compiler's time and memory are counted for.
pub const BUILDING: &str = "building";
/// The target that the kernel is built for.
pub const TRIPLE: &str = "aarch64-unknown-none-softfloat";
/// Frame pointers, for backtraces; position independent, because the kernel relocates itself.
const TARGET_FLAGS: &str = r#"["-Cforce-frame-pointers=yes", "-Crelocation-model=pie"]"#;
/// The packages that run on the target.
pub const TARGET_PACKAGES: [&str; 13] = [
    "granule-abi",
    "granule-arch",
    "granule-pgtable",
    "granule-smmuv3",
    "granule",
    "granule-monitor",
    "granule-boot",
    "granule-metal",
    "granule-protocol",
    "granule-tests",
    "granule-peers",
    "granule-bench",
    "granule-user",
];

/// Where a toolchain comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Toolchain {
    /// rustup: the target's `core` is in the sysroot.
    Rustup,
    /// The distribution: `core` is built from its sources.
    Distro,
}

/// How the kernel is compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// The kernel that is shipped and measured.
    Release,
    /// As [`Self::Release`], with every check switched on.
    Checked,
    /// As [`Self::Release`], compiled again in parts.
    Incremental,
}

impl Profile {
    /// cargo's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Checked => "checked",
            Self::Incremental => "incremental",
        }
    }
}

/// All files below a folder whose names end in `extension`, without what was built and hidden folders.
///
/// # Errors
/// When a folder cannot be read.
pub fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "build" {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The source tree that this was compiled in: for tests, which `./x` need not have started.
pub fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // From `xtask/tools`.
    path.pop();
    path.pop();
    path
}

/// One toolchain, for everything that this invocation does.
#[derive(Debug)]
pub struct Tools {
    /// The source tree.
    pub root: PathBuf,
    toolchain: Toolchain,
    bin: PathBuf,
    linker: String,
}

impl Tools {
    /// Takes what `./x` put into the environment.
    ///
    /// # Errors
    /// When it is not there.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set: start this through ./x, which finds the tools"))
        };
        Ok(Self {
            root: variable("GRANULE_ROOT")?.into(),
            toolchain: match variable("GRANULE_TOOLCHAIN")?.as_str() {
                "rustup" => Toolchain::Rustup,
                "distro" => Toolchain::Distro,
                other => bail!("GRANULE_TOOLCHAIN is `{other}`; it may be rustup or distro"),
            },
            bin: variable("GRANULE_BIN")?.into(),
            linker: variable("GRANULE_LINKER")?,
        })
    }

    /// This toolchain for another tree.
    pub fn at(&self, root: &Path) -> Self {
        Self { root: root.to_owned(), bin: self.bin.clone(), linker: self.linker.clone(), ..*self }
    }

    /// The toolchain that has compiled this, for a tree of a test's.
    pub fn for_tests(root: &Path) -> Self {
        let cargo = PathBuf::from(env!("CARGO"));
        let bin = cargo.parent().map(Path::to_owned).unwrap_or_default();
        Self { root: root.to_owned(), toolchain: Toolchain::Rustup, bin, linker: String::new() }
    }

    /// Where finished images go.
    pub fn build_directory(&self) -> PathBuf {
        self.root.join("build")
    }

    /// cargo's target directory for a purpose: one for each toolchain, so that neither throws the other's work away.
    pub fn target_directory(&self, purpose: &str) -> PathBuf {
        let toolchain = if self.toolchain == Toolchain::Rustup { "rustup" } else { "distro" };
        self.root.join("target").join(toolchain).join(purpose)
    }

    /// Where cargo leaves the target's programs.
    pub fn target_output(&self, profile: Profile) -> PathBuf {
        self.target_directory("target").join(TRIPLE).join(profile.name())
    }

    /// The compiler.
    pub fn rustc(&self) -> PathBuf {
        self.bin.join("rustc")
    }

    /// A cargo call for the host.
    pub fn host_cargo(&self, subcommand: &str, purpose: &str) -> Command {
        let mut command = self.cargo(subcommand);
        command.args(["--locked", "--target-dir"]).arg(self.target_directory(purpose));
        command
    }

    /// A cargo call for the target, over the packages that run there.
    pub fn target_cargo(&self, subcommand: &str, purpose: &str) -> Command {
        self.target_cargo_of(subcommand, purpose, &TARGET_PACKAGES)
    }

    /// As [`Self::target_cargo`], over some of the packages: features that are asked for reach no other.
    pub fn target_cargo_of(&self, subcommand: &str, purpose: &str, packages: &[&str]) -> Command {
        let mut command = self.host_cargo(subcommand, purpose);
        command.args(["--target", TRIPLE]);
        command.arg("--config").arg(format!("target.{TRIPLE}.rustflags={TARGET_FLAGS}"));
        command.arg("--config").arg(format!("target.{TRIPLE}.linker={:?}", self.linker));
        for package in packages {
            command.args(["--package", package]);
        }
        if self.toolchain == Toolchain::Distro {
            // The distribution's compiler is a stable one; building `core` with it wants the one unstable option.
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
        command
    }

    /// The platforms that something is compiled for: the target and the host.
    ///
    /// # Errors
    /// When the compiler cannot be run.
    pub fn platforms(&self) -> Result<[String; 2]> {
        let output = Command::new(self.rustc()).arg("-vV").output().context("cannot run rustc")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV has no host")?;
        Ok([TRIPLE.to_owned(), host.to_owned()])
    }

    /// `cargo metadata`: all packages that are compiled for `platform`.
    pub fn metadata(&self, platform: &str) -> Command {
        let mut command = self.cargo("metadata");
        command.args(["--format-version=1", "--locked", "--filter-platform", platform]);
        command
    }

    /// `cargo fmt` over the workspace.
    pub fn format(&self) -> Command {
        let mut command = self.cargo("fmt");
        command.env("RUSTFMT", self.bin.join("rustfmt")).arg("--all");
        command
    }

    /// A cargo subcommand by its absolute path: cargo itself would look for it in PATH, where rustup's proxies may
    /// stand.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let external = matches!(subcommand, "clippy" | "fmt");
        let cargo = self.bin.join("cargo");
        let program = if external { self.bin.join(format!("cargo-{subcommand}")) } else { cargo.clone() };
        let mut command = Command::new(program);
        command.arg(subcommand).current_dir(&self.root).env("CARGO", cargo);
        command.env("RUSTC", self.rustc()).env("RUSTDOC", self.bin.join("rustdoc"));
        command
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run or does not succeed: the message names `what`.
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    let program = Path::new(command.get_program()).display().to_string();
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let ended = child.wait4().with_context(|| format!("cannot wait for {program}"))?;
    usage::add(BUILDING, begin, ended.rusage.utime + ended.rusage.stime, ended.rusage.maxrss);
    let status = ended.status;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

/// The machines of the tests, as values that clap checks and suggests.
pub fn machine_names() -> PossibleValuesParser {
    let machines = machine::all().unwrap_or_default();
    PossibleValuesParser::new(machines.into_iter().map(|machine| machine.name))
}

/// The boards, likewise.
pub fn board_names() -> PossibleValuesParser {
    let boards = machine::boards().unwrap_or_default();
    PossibleValuesParser::new(boards.into_iter().map(|board| board.machine.name))
}
