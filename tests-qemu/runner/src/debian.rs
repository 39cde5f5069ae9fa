//! Packages of Debian's, taken when a test runs: from the mirror that this machine's own package sources name, into lists
//! and a cache of the test's own. The system's stay as they are. apt checks signatures and hashes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a command, and returns its output.
///
/// # Errors
/// Has the command's words where it fails.
pub fn output(command: &mut Command) -> Result<String, String> {
    let out = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// The architecture of the boards.
pub const ARM64: &str = "arm64";

/// A release of Debian's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// The newest packages.
    Unstable,
    /// This system's own, whose packages stay as they are.
    Own,
}

/// apt with lists, cache and sources of the test's own, for one architecture.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
    architecture: String,
}

impl Apt {
    /// apt in a directory, which is made, for an architecture in Debian's words and a release.
    ///
    /// # Errors
    /// When this system names no mirror, or the directory cannot be written.
    pub fn new(directory: PathBuf, architecture: &str, release: Release) -> Result<Self, String> {
        let targets = output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)\t$(RELEASE)"]))?;
        let system = fs::read_to_string("/etc/os-release").map_err(|error| format!("/etc/os-release: {error}"))?;
        let codename = system.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
        let mirror = targets.lines().filter_map(|line| line.split_once('\t')).find(|(_, suite)| *suite == codename);
        let (mirror, _) = mirror.ok_or_else(|| format!("no package source of {codename:?}"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part)).map_err(|error| error.to_string())?;
        }
        let suite = if release == Release::Own { codename } else { "sid" };
        let sources = format!("deb [signed-by={keyring} arch={architecture}] {mirror} {suite} main\n");
        fs::write(directory.join("sources.list"), sources).map_err(|error| error.to_string())?;
        Ok(Self { directory, architecture: architecture.to_owned() })
    }

    /// A command of apt's.
    pub fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State={}", self.directory.display()),
            format!("Dir::State::lists={}", at("lists")),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", at("cache")),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            // The test may run as root in a directory that apt's own user cannot reach.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// The packages of Linux's that `package` depends on.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn depends(&self, package: &str) -> Result<Vec<String>, String> {
        let lines = output(self.command("apt-cache").args(["depends", package]))?;
        let names = lines.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.filter(|name| name.starts_with("linux-")).map(str::to_owned).collect())
    }

    /// A field of the package's control data, such as `Version`.
    fn field(&self, package: &str, name: &str) -> Result<String, String> {
        let lines = output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let value = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(str::to_owned).ok_or_else(|| format!("{package} has no {name}"))
    }

    /// Bytes to download.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn size(&self, package: &str) -> Result<u64, String> {
        self.field(package, "Size")?.parse().map_err(|error| format!("the size of {package}: {error}"))
    }

    /// Downloads a package and unpacks it.
    ///
    /// # Errors
    /// When there is none, or it cannot be unpacked.
    pub fn take(&self, package: &str, to: &Path) -> Result<(), String> {
        output(self.command("apt-get").args(["-qq", "download", package]))?;
        let archive = files(&self.directory, "deb").into_iter().find(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{package}_")))
        });
        unpack(&archive.ok_or_else(|| format!("apt-get did not download {package}"))?, to)
    }

    /// Downloads a package and all that it depends on, and unpacks them into one folder.
    ///
    /// # Errors
    /// When the suite lacks one of them, or one cannot be unpacked.
    pub fn take_with_dependencies(&self, package: &str, to: &Path) -> Result<(), String> {
        let mut download = self.command("apt-get");
        // Nothing is installed: the lock of the system's dpkg is not wanted.
        download.args(["-o", "Debug::NoLocking=1", "-qq", "--yes", "--download-only", "--no-install-recommends"]);
        output(download.args(["install", package]))?;
        let archives = files(&self.directory.join("cache/archives"), "deb");
        archives.iter().try_for_each(|archive| unpack(archive, to))
    }
}

/// Unpacks an archive, which is removed.
fn unpack(archive: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|error| error.to_string())?;
    output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(to))?;
    fs::remove_file(archive).map_err(|error| error.to_string())
}

/// How long the newest package is taken to be so.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The name of what `directory` keeps. `take` is asked for it once a day, with new lists, and takes what is not there;
/// others that want the same wait.
fn newest(
    directory: &Path,
    architecture: &str,
    take: impl FnOnce(&Apt) -> Result<String, String>,
) -> Result<String, String> {
    let text = |error: std::io::Error| format!("{}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(text)?;
    let _lock = locked(&directory.join("lock"))?;
    let newest = directory.join("newest");
    if let Some(name) = known(&newest) {
        return Ok(name);
    }
    let apt = Apt::new(directory.to_owned(), architecture, Release::Unstable)?;
    output(apt.command("apt-get").args(["-qq", "update"]))?;
    let name = take(&apt)?;
    fs::write(newest, &name).map_err(text)?;
    Ok(name)
}

/// Fills the folder `kept` once: a file beside it says that it is whole. Others that want the same wait.
fn once(kept: &Path, fill: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let beside = |ending: &str| PathBuf::from(format!("{}.{ending}", kept.display()));
    let done = beside("complete");
    let _lock = locked(&beside("lock"))?;
    if !done.exists() {
        fill()?;
        fs::write(&done, "").map_err(|error| format!("{}: {error}", done.display()))?;
    }
    Ok(())
}

/// A lock that other processes wait for, until it is dropped: a file, which is made.
fn locked(path: &Path) -> Result<fs::File, String> {
    let text = |error: std::io::Error| format!("{}: {error}", path.display());
    let lock = fs::File::create(path).map_err(text)?;
    lock.lock().map_err(text)?;
    Ok(lock)
}

/// The folder with the device trees of Debian's newest kernel for arm64, and the package's name. `directory` keeps them
/// for a day; others that want them there wait.
///
/// # Errors
/// When the package cannot be taken.
pub fn newest_trees(directory: &Path) -> Result<(PathBuf, String), String> {
    of_newest_linux(directory, |path| path.extension().is_some_and(|ending| ending == "dtb"))
}

/// The image of that kernel, and the package's name; kept as [`newest_trees`] does, in a directory of its own.
///
/// # Errors
/// When the package cannot be taken.
pub fn newest_kernel(directory: &Path) -> Result<(PathBuf, String), String> {
    let is_image = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let (kept, package) = of_newest_linux(directory, is_image)?;
    let image = files_that(&kept, is_image).pop().ok_or_else(|| format!("{package} has no image of a kernel"))?;
    Ok((image, package))
}

/// The shell for arm64 that needs no library; kept beside what [`newest_kernel`] keeps, which comes first.
///
/// # Errors
/// When the package cannot be taken.
pub fn shell(directory: &Path) -> Result<PathBuf, String> {
    let kept = directory.join("busybox-static");
    once(&kept, || Apt::new(directory.to_owned(), ARM64, Release::Unstable)?.take("busybox-static", &kept))?;
    let is_shell = |path: &Path| path.file_name().is_some_and(|name| name == "busybox");
    files_that(&kept, is_shell).pop().ok_or_else(|| "busybox-static has no busybox".into())
}

/// Calls `fill` with a folder that has these packages of this system's release for arm64, and all that they depend on, for
/// what is to be made of them in `kept`, once. The folder is removed.
///
/// # Errors
/// When a package cannot be taken, and those of `fill`.
pub fn once_of_packages(
    kept: &Path,
    packages: &[&str],
    fill: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    once(kept, || {
        let folder = PathBuf::from(format!("{}.packages", kept.display()));
        let apt = Apt::new(folder.clone(), ARM64, Release::Own)?;
        output(apt.command("apt-get").args(["-qq", "update"]))?;
        let root = folder.join("root");
        packages.iter().try_for_each(|package| apt.take_with_dependencies(package, &root))?;
        fill(&root)?;
        fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))
    })
}

/// The folder with the packages of Debian's newest kernel for arm64 that were unpacked until one had a file that is
/// wanted, and the kernel's name.
fn of_newest_linux(directory: &Path, is_wanted: impl Fn(&Path) -> bool + Copy) -> Result<(PathBuf, String), String> {
    let image = newest(directory, ARM64, |apt| {
        let image = apt.depends("linux-image-arm64")?.into_iter().find(|name| name.starts_with("linux-image-"));
        let image = image.ok_or("linux-image-arm64 depends on no kernel image")?;
        let kept = directory.join(&image);
        once(&kept, || take_until(apt, &image, &kept, is_wanted))?;
        Ok(image)
    })?;
    Ok((directory.join(&image), image))
}

/// Files have moved from package to package of a kernel: the smallest one first.
fn take_until(apt: &Apt, image: &str, kept: &Path, is_wanted: impl Fn(&Path) -> bool + Copy) -> Result<(), String> {
    let mut packages = apt.depends(image)?;
    packages.push(image.to_owned());
    let mut sized = BTreeMap::new();
    for package in packages.into_iter().filter(|package| package.ends_with("-arm64")) {
        sized.insert(apt.size(&package)?, package);
    }
    for package in sized.values() {
        apt.take(package, kept)?;
        if !files_that(kept, is_wanted).is_empty() {
            break;
        }
    }
    Ok(())
}

/// Debian's package with QEMU for arm64, and the program in it.
const QEMU: [&str; 2] = ["qemu-system-arm", "qemu-system-aarch64"];

/// The newest QEMU that Debian has for this host: a program that takes QEMU's options, such as `GRANULE_QEMU` names.
/// Nothing is installed: it runs with the loader and libraries of its own suite, which are newer than the host's.
/// `directory` keeps it for a day.
///
/// # Errors
/// Why this host cannot have it or run it.
pub fn newest_qemu(directory: &Path) -> Result<PathBuf, String> {
    if !has_debians_tools() {
        return Err("no apt-get and dpkg-deb here, for Debian's newest QEMU".into());
    }
    let host = output(Command::new("dpkg").arg("--print-architecture"))?;
    let version = newest(directory, host.trim(), |apt| {
        let version = apt.field(QEMU[0], "Version")?;
        // The epoch's colon would end a path of libraries.
        let version = version.split_once(':').map_or(&*version, |(_, version)| version).to_owned();
        let kept = directory.join(&version);
        once(&kept, || {
            apt.take_with_dependencies(QEMU[0], &kept)?;
            wrap(&kept)
        })?;
        Ok(version)
    })?;
    Ok(directory.join(version).join(QEMU[1]))
}

/// Writes the program that runs an unpacked QEMU, and tries it.
fn wrap(kept: &Path) -> Result<(), String> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_loader =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-linux"));
    let (libraries, loader) = entries(&kept.join("usr/lib"))
        .find_map(|folder| Some((folder.clone(), entries(&folder).find(is_loader)?)))
        .ok_or("no dynamic loader is among the libraries")?;
    let [libraries, loader, program, data] =
        [libraries, loader, kept.join("usr/bin").join(QEMU[1]), kept.join("usr/share/qemu")]
            .map(|path| path.display().to_string());
    let script = format!("#!/bin/sh\nexec '{loader}' --library-path '{libraries}' '{program}' -L '{data}' \"$@\"\n");
    let wrapper = kept.join(QEMU[1]);
    let text = |error: std::io::Error| format!("{}: {error}", wrapper.display());
    fs::write(&wrapper, script).map_err(text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).map_err(text)?;
    output(Command::new(&wrapper).arg("--version")).map(drop)
}

/// The name in a file of less than a day ago: lists are not read again for it.
fn known(newest: &Path) -> Option<String> {
    let written = fs::metadata(newest).and_then(|metadata| metadata.modified()).ok()?;
    let is_new = written.elapsed().is_ok_and(|age| age < DAY);
    is_new.then(|| fs::read_to_string(newest).ok())?
}

/// All files below a directory whose names end in `.extension`.
#[must_use]
pub fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    files_that(directory, |path| path.extension().is_some_and(|ending| ending == extension))
}

/// All files below a directory that are wanted.
fn files_that(directory: &Path, is_wanted: impl Fn(&Path) -> bool + Copy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_that(&path, is_wanted));
        } else if is_wanted(&path) {
            found.push(path);
        }
    }
    found
}

/// Whether packages of Debian's can be fetched and unpacked.
#[must_use]
pub fn has_debians_tools() -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::{output, wrap};

    /// A loader that prints its words.
    #[test]
    fn an_unpacked_qemu_runs_by_its_own_loader_and_libraries() {
        let kept = std::env::temp_dir().join(format!("granule wrap {}", std::process::id()));
        let libraries = kept.join("usr/lib/some-linux-gnu");
        let loader = libraries.join("ld-linux-some.so.1");
        fs::create_dir_all(&libraries).unwrap();
        fs::create_dir_all(kept.join("usr/lib/qemu")).unwrap();
        assert_eq!(wrap(&kept).unwrap_err(), "no dynamic loader is among the libraries");
        fs::write(&loader, "#!/bin/sh\nprintf '%s,' \"$@\"").unwrap();
        fs::set_permissions(&loader, fs::Permissions::from_mode(0o755)).unwrap();
        wrap(&kept).unwrap();
        let words = output(Command::new(kept.join("qemu-system-aarch64")).args(["-append", "a b"])).unwrap();
        let [libraries, kept_at] = [&libraries, &kept].map(|path| path.display().to_string());
        let program = format!("{kept_at}/usr/bin/qemu-system-aarch64,-L,{kept_at}/usr/share/qemu");
        assert_eq!(words, format!("--library-path,{libraries},{program},-append,a b,"));
        fs::write(&loader, "#!/bin/sh\nexit 1").unwrap();
        assert!(wrap(&kept).is_err(), "one that does not run is none");
        fs::remove_dir_all(kept).unwrap();
    }
}
