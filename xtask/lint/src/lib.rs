//! `./x lint`, `./x fmt`, `./x doc` and `./x package`: all without a warning. Tests compare the pages with the sources.

#![forbid(unsafe_code)]

#[cfg(test)]
mod docs;
mod licences;
mod names;
#[cfg(test)]
mod registers;
mod sentences;
#[cfg(test)]
mod tour;

use std::fs;
use std::process::Command;

use anyhow::Result;
use granule_image::compile::BEFORE_KERNELS;
use granule_tools::{TRIPLE, Tools, run};

/// clippy for host and target, rustfmt, the syntax of the shell scripts, beginnings of sentences, names in backticks,
/// layers, sizes, unused items, licences and sources of dependencies, and the audits of panics and stacks.
///
/// # Errors
/// When one of them finds something.
pub fn lint(tools: &Tools) -> Result<()> {
    println!("rustfmt");
    run(tools.format().arg("--check"), "rustfmt --check (./x fmt puts it right)")?;
    println!("clippy for the host");
    let mut host = tools.host_cargo("clippy", "clippy");
    // Not all targets: a library of which the tests are switched off would be compiled as a test too.
    host.args(["--workspace", "--lib", "--bins", "--tests", "--examples", "--", "-D", "warnings"]);
    run(&mut host, "clippy for the host")?;
    println!("clippy for the target");
    for mut target in
        [tools.target_cargo("clippy", "clippy"), tools.target_cargo_of("clippy", "clippy", &BEFORE_KERNELS)]
    {
        run(target.args(["--lib", "--bins", "--", "-D", "warnings"]), "clippy for the target")?;
    }
    println!("shell syntax");
    for (shell, script) in [("sh", "x"), ("bash", ".ci/run")] {
        run(Command::new(shell).arg("-n").arg(tools.root.join(script)), &format!("{shell} -n {script}"))?;
    }
    println!("sentences, names");
    sentences::check(tools)?;
    names::check(tools)?;
    println!("layers, sizes, unused items");
    granule_audit::check_sources(tools)?;
    println!("licences and sources of dependencies");
    licences::check(tools)?;
    println!("panics that can be reached, stacks");
    granule_audit::check(tools)
}

/// Formats every source file.
///
/// # Errors
/// When one cannot be parsed.
pub fn format(tools: &Tools) -> Result<()> {
    run(&mut tools.format(), "rustfmt")
}

/// The libraries of the tools, which run on the host alone.
const TOOLS: [&str; 9] = [
    "granule-audit",
    "granule-disk",
    "granule-fuzz",
    "granule-image",
    "granule-lint",
    "granule-mutants",
    "granule-runner",
    "granule-suite",
    "granule-tools",
];

/// The documentation of every library: of what runs on the target as it is there, of the rest as it is on the host.
///
/// # Errors
/// When rustdoc warns, as of a broken link.
pub fn document(tools: &Tools) -> Result<()> {
    // Private items too: these pages are for work on the code, and the head comments refer to them.
    const FLAGS: [&str; 5] = [
        "--lib",
        "--no-deps",
        "--document-private-items",
        "--config",
        r#"build.rustdocflags=["-Dwarnings", "-Arustdoc::private_intra_doc_links"]"#,
    ];
    run(tools.target_cargo("doc", "doc").args(FLAGS), "rustdoc for the target")?;
    let mut host = tools.host_cargo("doc", "doc");
    host.args(TOOLS.iter().flat_map(|package| ["-p", package]));
    run(host.args(FLAGS), "rustdoc for the host")?;
    println!("{}", tools.target_directory("doc").display());
    Ok(())
}

/// The public items of every library, target's and host's, in one folder, so that they have one list and one search.
/// Opens them in the browser, where there is one.
///
/// # Errors
/// When rustdoc warns, or the folder cannot be made.
pub fn document_public(tools: &Tools) -> Result<()> {
    const FLAGS: [&str; 4] = [
        "--lib",
        "--no-deps",
        "--config",
        r#"build.rustdocflags=["-Dwarnings", "-Arustdoc::private_intra_doc_links"]"#,
    ];
    let output = tools.target_directory("doc");
    let target = output.join(TRIPLE).join("doc");
    // The pages with private items are under the same names; and the host's crates go where the target's are.
    for folder in [&target, &output.join("doc")] {
        if folder.is_symlink() {
            fs::remove_file(folder)?;
        } else if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    fs::create_dir_all(&target)?;
    std::os::unix::fs::symlink(&target, output.join("doc"))?;
    run(tools.target_cargo("doc", "doc").args(FLAGS), "rustdoc for the target")?;
    let mut host = tools.host_cargo("doc", "doc");
    host.args(TOOLS.iter().chain(&["granule-model"]).flat_map(|package| ["-p", package]));
    run(host.args(FLAGS), "rustdoc for the host")?;
    let page = target.join("granule_pgtable/index.html");
    println!("{}", page.display());
    if let Err(error) = open::that_detached(&page) {
        println!("not opened in a browser: {error}");
    }
    Ok(())
}

/// Packages the libraries for other kernels, and compiles each from its package, for the host.
///
/// As members of a workspace of their own: from a registry, cargo would take what an earlier call left there, because the
/// version is the same.
///
/// # Errors
/// When one cannot be packaged, or does not compile.
pub fn package(tools: &Tools) -> Result<()> {
    const PACKAGES: [&str; 4] = ["granule-arch", "granule-pgtable", "granule-smmuv3", "granule-model"];
    let mut cargo = tools.host_cargo("package", "host");
    cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    run(cargo.args(["--allow-dirty", "--offline", "--no-verify"]), "cargo package")?;
    let workspace = tools.target_directory("package");
    if workspace.exists() {
        fs::remove_dir_all(&workspace)?;
    }
    fs::create_dir_all(&workspace)?;
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"granule-*\"]\n[patch.crates-io]\n");
    for package in PACKAGES {
        let folder = format!("{package}-{}", env!("CARGO_PKG_VERSION"));
        let archive = tools.target_directory("host").join("package").join(format!("{folder}.crate"));
        // Of now: cargo gives all files in a package one date, by which it would call what it compiled before fresh.
        run(Command::new("tar").arg("-xmzf").arg(archive).arg("-C").arg(&workspace), "unpacking")?;
        manifest += &format!("{package} = {{ path = \"{folder}\" }}\n");
    }
    fs::write(workspace.join("Cargo.toml"), manifest)?;
    // The lock file keeps the versions of others' crates.
    fs::copy(tools.root.join("Cargo.lock"), workspace.join("Cargo.lock"))?;
    let mut cargo = tools.cargo("build");
    cargo.args(["--offline", "--manifest-path"]).arg(workspace.join("Cargo.toml"));
    run(cargo.arg("--target-dir").arg(tools.target_directory("host")), "compiling the packages")
}
