//! Linux's own tests of userfaultfd, built from its source as they are, run as programs of the initrd.
//! docs/ref/userfault.md has the cases that they skip, and the reasons.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use granule_host_tests::archive::Archive;
use granule_host_tests::{built, skip};
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};
use granule_runner::script;
use granule_runner::serial::Limit;

const PROGRAMS: [&str; 3] = ["uffd-unit-tests", "uffd-stress", "uffd-wp-mremap"];
/// Minutes of work for each CPU, where most of a test is the copying and comparing of pages.
const LIMIT: Limit = Limit::work(900);
/// The status of the script where the source or the compiler is missing.
const CANNOT_BE_HAD: i32 = 77;

/// The cases that `uffd-unit-tests` passes; of each the others are of hugetlbfs.
const PASSED: [&str; 31] = [
    "UFFDIO_API (with syscall)",
    "UFFDIO_API (with /dev/userfaultfd)",
    "zeropage on anon",
    "zeropage on shmem",
    "zeropage on shmem-private",
    "move on anon",
    "move-pmd on anon",
    "move-pmd-split on anon",
    "wp-fork on anon",
    "wp-fork on shmem",
    "wp-fork on shmem-private",
    "wp-fork-with-event on anon",
    "wp-fork-with-event on shmem",
    "wp-fork-with-event on shmem-private",
    "wp-unpopulated on anon",
    "sigbus on anon",
    "sigbus on shmem",
    "sigbus on shmem-private",
    "sigbus-wp on anon",
    "sigbus-wp on shmem",
    "sigbus-wp on shmem-private",
    "events on anon",
    "events on shmem",
    "events on shmem-private",
    "events-wp on anon",
    "events-wp on shmem",
    "events-wp on shmem-private",
    "poison on anon",
    "poison on shmem",
    "poison on shmem-private",
    "mmap-changing on shmem",
];

/// The reasons for which it skips a test.
const SKIPPED: [&str; 4] = [
    "(not enough HugeTLB pages)",
    "(feature missing)",
    "(Possibly CONFIG_GUP_TEST missing or unprivileged)",
    "(MADV_COLLAPSE failed)",
];

/// The folder where Linux's tests were built, with a list of them; `None`: they cannot be had, and the running test is
/// skipped.
pub(super) fn built_tests() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../linux/build-selftests.sh");
    let output = Command::new(script).arg(&folder).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(CANNOT_BE_HAD) {
        skip(printed.lines().last().unwrap_or_default());
        return None;
    }
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    Some(folder)
}

/// Packs the programs that were built in `folder` beside a copy of the kernel, whose path is returned.
fn pack(folder: &Path) -> PathBuf {
    let mut archive = Archive::default();
    for program in PROGRAMS {
        archive.file(program, &fs::read(folder.join("programs/mm").join(program)).unwrap());
    }
    let kernel = folder.join("granule.img");
    fs::copy(built("granule.img"), &kernel).unwrap();
    fs::write(initrd_of(&kernel), archive.end()).unwrap();
    kernel
}

/// The results that a program has printed (Test Anything Protocol): those that passed, and the reasons of those that it
/// skipped.
fn results(session: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut passed, mut skipped) = (Vec::new(), Vec::new());
    for line in session.lines() {
        let Some((_, result)) = line.strip_prefix("ok ").and_then(|rest| rest.split_once(' ')) else { continue };
        match result.strip_prefix("# SKIP ") {
            Some(reason) => skipped.push(reason),
            None => passed.push(result),
        }
    }
    (passed, skipped)
}

#[test]
#[ignore = "fetches Linux's source and takes five minutes: ./x test --long"]
fn linux_s_own_tests_of_userfaultfd_pass() {
    let Some(folder) = built_tests() else { return };
    let kernel = pack(&folder);
    let machine = machine::named("default").unwrap();
    let run = |line: &str| {
        let qemu = Qemu::new(&machine, &kernel, Serial::Pipes, Reset::Ends, script::BOOTARGS, &[]);
        let mut session = Vec::new();
        let wrong = script::run(&qemu, &script::commands(line), LIMIT, &mut session).unwrap();
        let session = String::from_utf8_lossy(&session).replace('\r', "");
        assert!(wrong.is_empty() && !session.contains("not ok "), "{line}: {wrong:?}\n{session}");
        session
    };

    let session = run("run uffd-unit-tests");
    let (passed, skipped) = results(&session);
    assert_eq!(passed, PASSED, "{session}");
    for test in skipped {
        assert!(SKIPPED.iter().any(|reason| test.ends_with(reason)), "{test}\n{session}");
    }

    for kind in ["anon", "shmem", "shmem-private"] {
        let session = run(&format!("run uffd-stress {kind} 20 16"));
        assert_eq!(results(&session), (vec![format!("uffd-stress {kind}").as_str()], vec![]), "{session}");
    }

    let session = run("run uffd-wp-mremap");
    let (passed, skipped) = results(&session);
    // There is no swap.
    assert_eq!((passed.len(), skipped), (2, vec!["MADV_PAGEOUT did not work, is swap enabled?"; 2]), "{session}");
}
