//! Support for tests that drive a machine from outside: finished images, and a machine at its prompt.
//!
//! The tests are in `tests/outside/`. They need what `./x build` leaves in `build/`, so `./x test` is how they are run; a
//! `cargo test` of one's own works after a build.

#![forbid(unsafe_code)]

pub mod archive;
mod bare;
pub mod board;
pub mod guest;
pub mod leaves;
pub mod log;
pub mod ptdump;
pub mod session;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use granule_runner::debian::{has_debians_tools, newest_qemu};

/// A finished image of `./x build`, such as `granule.img`.
///
/// # Panics
/// When it is not there: a test that quietly passed without it would lie.
pub fn built(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../build").join(name);
    assert!(path.is_file(), "{} is missing: run ./x build first, or the tests by ./x test", path.display());
    path
}

/// A file in `folder`, mostly `env!("CARGO_TARGET_TMPDIR")`, that is the running test's alone, whichever tests run beside
/// it: the name of the test is in the file's, before `name`. To be asked on the thread that the test was started on.
pub fn own_file(folder: impl AsRef<Path>, name: &str) -> PathBuf {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default().replace(':', "-");
    folder.as_ref().join(format!("{test}.{name}"))
}

/// Reports the running test as skipped, for this reason: past the harness, to `./x test`.
pub fn skip(reason: &str) {
    // One line; without standard error nothing is reported.
    let _ = writeln!(std::io::stderr(), "@skipped {}", reason.trim().replace('\n', "; "));
}

/// Whether the running test is skipped because this host cannot take `what` from Debian's packages.
pub fn skip_without_debians_tools(what: &str) -> bool {
    let is_skipped = !has_debians_tools();
    if is_skipped {
        skip(&format!("no apt-get and dpkg-deb here, for {what}"));
    }
    is_skipped
}

/// The newest QEMU that Debian has; `None`: this host cannot have it, and the running test is skipped. `scratch` keeps
/// it.
pub fn newest_qemu_or_skip(scratch: &Path) -> Option<PathBuf> {
    newest_qemu(&scratch.join("newest-qemu")).inspect_err(|reason| skip(reason)).ok()
}
