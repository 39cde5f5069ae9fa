//! Two kernels that run the same programs: Linux, the newest that Debian has for arm64, as it was built, and this one.
//!
//! Linux's first process is a shell that takes the lines of the monitor, so one script drives both.

use std::fs;
use std::path::{Path, PathBuf};

use granule_host_tests::archive::Archive;
use granule_host_tests::{built, own_file, skip_without_debians_tools};
use granule_runner::debian::{newest_kernel, shell};
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};
use granule_runner::script::{self, PROMPT};
use granule_runner::serial::Limit;

const LIMIT: Limit = Limit::work(300);

/// Linux's first process.
const INIT: &str = "#!/busybox sh
export PATH=/
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
/busybox stty -echo < /dev/console
while printf 'granule> '; read -r command words; do
    echo \"$command $words\"
    case $command in
    run) /$words || echo \"error: exited with $?\" ;;
    poweroff) /busybox poweroff -f ;;
    esac
done
";

/// Both kernels, which run the same programs.
pub(super) struct Kernels {
    linux: PathBuf,
    here: PathBuf,
    /// The name of Linux's package.
    pub(super) package: String,
}

/// A kernel's answer to each line that it was given, and what went wrong then.
pub(super) struct Session {
    pub(super) printed: Vec<String>,
    pub(super) wrong: Vec<String>,
}

impl Kernels {
    /// Both, whose initrds have the files of `more` too. `None`: this host cannot have Linux, and the running test is
    /// skipped.
    pub(super) fn new(more: &[u8]) -> Option<Self> {
        if skip_without_debians_tools("Debian's newest kernel") {
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("against-linux");
        // Each test has initrds of its own, beside the kernels.
        let own = folder.join(own_file("", "folder"));
        let (kernel, package) = newest_kernel(&folder).expect("the package can be taken");
        let mut both = Archive::default();
        both.file("busybox", &fs::read(shell(&folder).expect("the package can be taken")).expect("a shell"));
        let mut first = Archive::default();
        first.console();
        for name in ["dev", "proc"] {
            first.directory(name);
        }
        first.file("init", INIT.as_bytes());
        let put = |name: &str, kernel: PathBuf, more: &[&[u8]]| {
            fs::create_dir_all(own.join(name)).expect("room");
            let image = own.join(name).join("kernel.img");
            let mut initrd = fs::read(initrd_of(&built("granule.img"))).expect("the initrd");
            initrd.extend(more.concat());
            fs::write(initrd_of(&image), initrd).and_then(|()| fs::copy(kernel, &image)).expect("room");
            image
        };
        let both = both.end();
        let linux = put("linux", kernel, &[more, &both, &first.end()]);
        let here = put("granule", built("granule.img"), &[more, &both]);
        Some(Self { linux, here, package })
    }

    /// The text that each of the lines has printed: on Linux, and here.
    pub(super) fn run(&self, lines: &[String]) -> [Vec<String>; 2] {
        self.sessions().map(|run| {
            let Session { printed, wrong } = run(lines, LIMIT);
            assert!(wrong.is_empty() && printed.len() == lines.len(), "{wrong:?}\n{printed:?}");
            printed
        })
    }

    /// Runs lines on Linux, and here.
    pub(super) fn sessions(&self) -> [impl Fn(&[String], Limit) -> Session; 2] {
        [(&self.linux, "console=ttyAMA0 quiet loglevel=1 panic=-1"), (&self.here, script::BOOTARGS)]
            .map(|(kernel, bootargs)| move |lines: &[String], limit| session(kernel, bootargs, lines, limit))
    }
}

/// A session on the machine that runs `kernel`.
fn session(kernel: &Path, bootargs: &str, lines: &[String], limit: Limit) -> Session {
    let mut machine = machine::named("default").unwrap();
    // Programs expect addresses of 48 bits: with FEAT_LPA2 this Linux has 52.
    machine.cpu.push_str(",lpa2=off");
    machine.memory = "2G".into();
    let qemu = Qemu::new(&machine, kernel, Serial::Pipes, Reset::Ends, bootargs, &[]);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(&lines.join("\n")), limit, &mut session).unwrap();
    let session = String::from_utf8_lossy(&session).replace('\r', "");
    let printed = session.split(PROMPT).skip(1).take(lines.len()).map(str::to_owned).collect();
    Session { printed, wrong }
}
