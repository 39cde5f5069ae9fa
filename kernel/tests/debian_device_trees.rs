//! Every device tree of the newest arm64 kernel image package of Debian can be read.
//!
//! A tree may lack the memory, which boot loaders put in, or a GIC: the parser says so last, having read the rest.
//!
//! The package is taken when the test runs, from the mirror that this machine's own package sources name, into lists and
//! a cache of the test's own: the system's stay as they are. Where it cannot be had, the test fails; on a system without
//! Debian's tools it is skipped. It keeps what it took under the target directory, by the package's version, so that a
//! mirror is asked for the trees once, and for the newest version once a day.
//!
//! `GRANULE_DEVICE_TREES` may name a directory with other trees, which is then read in its place.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use granule::platform::{Platform, PlatformError};

/// How long the newest package is taken to be so.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a command prints; an error that has its words where it fails.
fn output(command: &mut Command) -> Result<String, String> {
    let out = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// apt with lists, cache and sources of the test's own, for arm64.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: PathBuf) -> Result<Self, String> {
        let targets = output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)\t$(RELEASE)"]))?;
        let release = fs::read_to_string("/etc/os-release").map_err(|error| format!("/etc/os-release: {error}"))?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
        let mirror = targets.lines().filter_map(|line| line.split_once('\t')).find(|(_, suite)| *suite == codename);
        let (mirror, _) = mirror.ok_or_else(|| format!("no package source of {codename:?}"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part)).map_err(|error| error.to_string())?;
        }
        let sources = format!("deb [signed-by={keyring} arch=arm64] {mirror} sid main\n");
        fs::write(directory.join("sources.list"), sources).map_err(|error| error.to_string())?;
        Ok(Self { directory })
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={}", at("lists")),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=arm64".into(),
            "APT::Architectures=arm64".into(),
            // The test may run as root in a directory that apt's own user cannot reach.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// The packages with these names that `package` depends on.
    fn depends(&self, package: &str) -> Result<Vec<String>, String> {
        let lines = output(self.command("apt-cache").args(["depends", package]))?;
        let names = lines.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.filter(|name| name.starts_with("linux-")).map(str::to_owned).collect())
    }

    /// Bytes to download.
    fn size(&self, package: &str) -> Result<u64, String> {
        let lines = output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let size = lines.lines().find_map(|line| line.strip_prefix("Size: "));
        size.and_then(|size| size.parse().ok()).ok_or_else(|| format!("{package} has no size"))
    }

    /// Downloads a package and takes its device trees out; how many there are now.
    fn take_trees(&self, package: &str, to: &Path) -> Result<usize, String> {
        output(self.command("apt-get").args(["-qq", "download", package]))?;
        let archive = files(&self.directory, "deb").into_iter().find(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{package}_")))
        });
        let archive = archive.ok_or_else(|| format!("apt-get did not download {package}"))?;
        fs::create_dir_all(to).map_err(|error| error.to_string())?;
        output(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(to))?;
        fs::remove_file(archive).map_err(|error| error.to_string())?;
        Ok(files(to, "dtb").len())
    }
}

/// All files below a directory whose names end in `.extension`.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|ending| ending == extension) {
            found.push(path);
        }
    }
    found
}

/// The newest package's trees, and its name.
fn newest_trees() -> Result<(PathBuf, String), String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device-trees");
    let newest = directory.join("newest");
    if let Some(image) = known(&newest) {
        return Ok((directory.join(&image), image));
    }
    let apt = Apt::new(directory.clone())?;
    output(apt.command("apt-get").args(["-qq", "update"]))?;
    let image = apt.depends("linux-image-arm64")?.into_iter().find(|name| name.starts_with("linux-image-"));
    let image = image.ok_or("linux-image-arm64 depends on no kernel image")?;
    let (kept, done) = (directory.join(&image), directory.join(format!("{image}.complete")));
    if !done.exists() {
        // The trees have moved from package to package: the smallest one first.
        let mut packages = apt.depends(&image)?;
        packages.push(image.clone());
        let mut sized = BTreeMap::new();
        for package in packages.into_iter().filter(|package| package.ends_with("-arm64")) {
            sized.insert(apt.size(&package)?, package);
        }
        for package in sized.values() {
            if apt.take_trees(package, &kept)? > 0 {
                break;
            }
        }
        fs::write(&done, "").map_err(|error| error.to_string())?;
    }
    fs::write(newest, &image).map_err(|error| error.to_string())?;
    Ok((kept, image))
}

/// The name in a file of less than a day ago: lists are not read again for it.
fn known(newest: &Path) -> Option<String> {
    let written = fs::metadata(newest).and_then(|metadata| metadata.modified()).ok()?;
    let is_new = written.elapsed().is_ok_and(|age| age < DAY);
    is_new.then(|| fs::read_to_string(newest).ok())?
}

/// Whether packages of Debian's can be fetched and unpacked.
fn has_debians_tools() -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
}

#[test]
fn every_device_tree_of_debians_newest_arm64_kernel_is_read() {
    let (directory, package) = match env::var_os("GRANULE_DEVICE_TREES") {
        Some(directory) => (PathBuf::from(directory), "GRANULE_DEVICE_TREES".into()),
        None if !has_debians_tools() => {
            // Past the harness: `./x test` reports the test as skipped, with this reason.
            let _ =
                writeln!(io::stderr(), "@skipped no apt-get and dpkg-deb here: GRANULE_DEVICE_TREES names a folder");
            return;
        }
        None => newest_trees().expect("the package can be taken"),
    };
    let trees = files(&directory, "dtb");
    assert!(trees.len() > 500, "{package} has {} device trees", trees.len());
    let (mut refused, mut without) = (Vec::new(), BTreeMap::<String, usize>::new());
    for path in &trees {
        let blob = fs::read(path).unwrap();
        match Platform::parse(&blob) {
            Ok(_) => {}
            Err(error @ PlatformError::Missing { .. }) => *without.entry(error.to_string()).or_default() += 1,
            Err(error) => refused.push(format!("{}: {error}", path.display())),
        }
    }
    println!("{package}: {} device trees, {} refused", trees.len(), refused.len());
    println!("read, and no machine to boot on: {without:?}");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    // What a tree may lack: memory, which boot loaders put in, and an interrupt controller that there is a driver for.
    let no_memory = without.remove("device tree: /memory has no reg").unwrap_or(0);
    let no_driver = without
        .remove("device tree: / has no arm,gic-400, arm,gic-v3 or brcm,bcm2836-l1-intc interrupt controller")
        .unwrap_or(0);
    assert!(without.is_empty(), "{without:?}");
    assert!(no_memory < trees.len() * 2 / 3 && no_driver < trees.len() / 50);
}
