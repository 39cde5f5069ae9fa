//! Tests of the script `./x` on systems that it is not running on: a PATH and a tree of stand-ins.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use granule_tools::{TRIPLE, root};

/// The utilities that the script itself needs, and every system has.
const UTILITIES: [&str; 13] =
    ["awk", "cat", "dirname", "env", "find", "grep", "head", "id", "mktemp", "readlink", "rm", "sed", "sh"];

/// A tree with the script alone, and a PATH beside it.
struct System {
    folder: PathBuf,
}

impl System {
    /// One that has the utilities and a package manager of that name, which does nothing.
    fn with(name: &str, manager: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("granule-{name}-{manager}-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::copy(root().join("x"), folder.join("x")).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for utility in UTILITIES {
            let found = std::env::split_paths(&path).map(|folder| folder.join(utility)).find(|file| file.exists());
            symlink(found.unwrap(), folder.join("bin").join(utility)).unwrap();
        }
        let system = Self { folder };
        system.program(&format!("bin/{manager}"), "exit 1");
        system
    }

    /// Puts a shell script into it.
    fn program(&self, path: &str, script: &str) -> PathBuf {
        let file = self.folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// A toolchain of rustup's, and what it has built.
    fn has_rustup(&self) {
        let rustc = self.program("rust/bin/rustc", "echo 'rustc 1.95.0 (a stand-in)'");
        self.program("bin/rustup", &format!("echo {}", rustc.display()));
        self.program("rust/bin/cargo", "exit 0");
        self.program(&format!("rust/lib/rustlib/{TRIPLE}/lib/libcore-0.rlib"), "");
        self.program("rust/lib/rustlib/host/bin/rust-lld", "");
        self.program("target/rustup/host/debug/xtask", r#"echo "$GRANULE_TOOLCHAIN, $GRANULE_QEMU, $*""#);
    }

    /// A QEMU of that version; its path.
    fn has_qemu(&self, path: &str, version: &str) -> PathBuf {
        self.program(path, &format!("echo 'QEMU emulator version {version} (a stand-in)'"))
    }

    /// Runs the script: whether it succeeds, and all that it prints.
    fn x(&self, variables: &[(&str, &Path)]) -> (bool, String) {
        let mut command = Command::new(self.folder.join("x"));
        command.args(["run", "--machine", "a53"]).env_clear().envs(variables.iter().copied());
        // Certificates are not what is tried.
        command.env("PATH", self.folder.join("bin")).env("HOME", &self.folder).env("SSL_CERT_FILE", "/dev/null");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Each missing tool is named with the system's own command, and nothing more than rustup, a C compiler and QEMU is needed.
#[test]
fn systems_without_apt_run_or_name_their_own_command() {
    for (manager, rustup, compiler, qemu) in [
        ("dnf", "dnf install rustup", "dnf install gcc", "dnf install qemu-system-aarch64"),
        ("pacman", "pacman -S rustup", "pacman -S gcc", "pacman -S qemu-system-aarch64"),
        ("zypper", "zypper install rustup", "zypper install gcc", "zypper install qemu-arm"),
        ("apk", "apk add rustup", "apk add gcc musl-dev", "apk add qemu-system-aarch64"),
        ("brew", "brew install rustup", "xcode-select --install", "brew install qemu"),
        ("unknown", "https://sh.rustup.rs", "package manager, for gcc", "package manager, for qemu-system-aarch64"),
    ] {
        let system = System::with("bare", manager);
        let fails_with = |command: &str| {
            let (success, text) = system.x(&[]);
            assert!(!success && text.contains(command), "{manager} lacks {command:?}: {text}");
            assert!(!text.contains("apt-get") && !text.contains("not found"), "{manager}: {text}");
        };
        fails_with(rustup);
        system.has_rustup();
        fails_with(compiler);
        system.program("bin/cc", "exit 1");
        fails_with(qemu);
        system.has_qemu("bin/qemu-system-aarch64", "9.2.4");
        fails_with(qemu);
        let found = system.has_qemu("bin/qemu-system-aarch64", "11.1.3");
        assert_eq!(system.x(&[]), (true, format!("rustup, {}, run --machine a53\n", found.display())), "{manager}");
    }
}

#[test]
fn another_qemu_is_chosen_by_a_variable() {
    let system = System::with("another", "dnf");
    system.has_rustup();
    system.program("bin/cc", "exit 1");
    let old = system.has_qemu("bin/qemu-system-aarch64", "9.2.4");
    let new = system.has_qemu("newest/qemu-system-aarch64", "11.1.3");
    let (success, text) = system.x(&[("GRANULE_QEMU", &new)]);
    assert!(success && text.contains(&*new.to_string_lossy()), "{text}");
    let (success, text) = system.x(&[("GRANULE_QEMU", &old)]);
    assert!(!success && text.contains("no QEMU of 10.0 or newer"), "{text}");
}

/// cargo that is quiet passes on no verdicts of tests.
#[test]
fn variables_that_alter_what_tools_print_are_taken_away() {
    let system = System::with("quiet", "dnf");
    system.has_rustup();
    system.program("bin/cc", "exit 1");
    system.has_qemu("bin/qemu-system-aarch64", "11.1.3");
    system.program("target/rustup/host/debug/xtask", "env");
    let (success, text) =
        system.x(&[("CARGO_TERM_QUIET", Path::new("true")), ("CARGO_TERM_COLOR", Path::new("never"))]);
    assert!(success && text.contains("CARGO_TERM_COLOR=never") && !text.contains("CARGO_TERM_QUIET"), "{text}");
}

#[test]
fn output_without_a_reader_ends_the_program_quietly() {
    let mut command = Command::new(root().join("x"));
    command.args(["mutants", "--list", "--count", "1000000"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(141), ""));
}
