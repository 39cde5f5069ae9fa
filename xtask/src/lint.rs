//! `./x lint`, `./x fmt` and `./x doc`: all without a warning.

use std::process::Command;

use anyhow::Result;

use crate::audit;
use crate::licences;
use crate::tools::{Tools, run};

/// clippy for host and target, rustfmt, the syntax of the shell scripts, layers, unused items, licences and sources of
/// dependencies, and the audit of panics.
///
/// # Errors
/// When one of them finds something.
pub(crate) fn lint(tools: &Tools) -> Result<()> {
    println!("rustfmt");
    run(tools.format().arg("--check"), "rustfmt --check (./x fmt puts it right)")?;
    println!("clippy for the host");
    let mut host = tools.host_cargo("clippy", "clippy");
    run(host.args(["--workspace", "--all-targets", "--", "-D", "warnings"]), "clippy for the host")?;
    println!("clippy for the target");
    let mut target = tools.target_cargo("clippy", "clippy");
    run(target.args(["--lib", "--bins", "--", "-D", "warnings"]), "clippy for the target")?;
    println!("shell syntax");
    for (shell, script) in [("sh", "x"), ("bash", ".ci/run")] {
        run(Command::new(shell).arg("-n").arg(tools.root.join(script)), &format!("{shell} -n {script}"))?;
    }
    println!("layers, unused items");
    audit::check_sources(tools)?;
    println!("licences and sources of dependencies");
    licences::check(tools)?;
    println!("panics that can be reached");
    audit::check(tools)
}

/// Formats every source file.
///
/// # Errors
/// When one cannot be parsed.
pub(crate) fn format(tools: &Tools) -> Result<()> {
    run(&mut tools.format(), "rustfmt")
}

/// The documentation of every library: of what runs on the target as it is there, of the rest as it is on the host.
///
/// # Errors
/// When rustdoc warns, as of a broken link.
pub(crate) fn document(tools: &Tools) -> Result<()> {
    // Private items too: who reads this works on the code, and the head comments refer to them.
    const FLAGS: [&str; 5] = [
        "--lib",
        "--no-deps",
        "--document-private-items",
        "--config",
        r#"build.rustdocflags=["-Dwarnings", "-Arustdoc::private_intra_doc_links"]"#,
    ];
    run(tools.target_cargo("doc", "doc").args(FLAGS), "rustdoc for the target")?;
    let mut host = tools.host_cargo("doc", "doc");
    run(host.args(["--package", "granule-runner"]).args(FLAGS), "rustdoc for the host")?;
    println!("{}", tools.target_directory("doc").display());
    Ok(())
}
