//! Packages of Debian's, taken when a test runs: from the mirror that this machine's own package sources name, into lists
//! and a cache of the test's own. The system's stay as they are.

use std::collections::BTreeMap;
use std::fs;
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

/// apt with lists, cache and sources of the test's own, for arm64.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// apt in a directory, which is made.
    ///
    /// # Errors
    /// When this system names no mirror, or the directory cannot be written.
    pub fn new(directory: PathBuf) -> Result<Self, String> {
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

    /// A command of apt's.
    pub fn command(&self, program: &str) -> Command {
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

    /// The packages of Linux's that `package` depends on.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn depends(&self, package: &str) -> Result<Vec<String>, String> {
        let lines = output(self.command("apt-cache").args(["depends", package]))?;
        let names = lines.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.filter(|name| name.starts_with("linux-")).map(str::to_owned).collect())
    }

    /// Bytes to download.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn size(&self, package: &str) -> Result<u64, String> {
        let lines = output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let size = lines.lines().find_map(|line| line.strip_prefix("Size: "));
        size.and_then(|size| size.parse().ok()).ok_or_else(|| format!("{package} has no size"))
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
        let archive = archive.ok_or_else(|| format!("apt-get did not download {package}"))?;
        fs::create_dir_all(to).map_err(|error| error.to_string())?;
        output(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(to))?;
        fs::remove_file(archive).map_err(|error| error.to_string())
    }
}

/// How long the newest package is taken to be so.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The folder with the device trees of Debian's newest kernel for arm64, and the package's name. `directory` keeps them
/// for a day; others that want them there wait.
///
/// # Errors
/// When the package cannot be taken.
pub fn newest_trees(directory: &Path) -> Result<(PathBuf, String), String> {
    let text = |error: std::io::Error| format!("{}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(text)?;
    let lock = fs::File::create(directory.join("lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let newest = directory.join("newest");
    if let Some(image) = known(&newest) {
        return Ok((directory.join(&image), image));
    }
    let apt = Apt::new(directory.to_owned())?;
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
            apt.take(package, &kept)?;
            if !files(&kept, "dtb").is_empty() {
                break;
            }
        }
        fs::write(&done, "").map_err(text)?;
    }
    fs::write(newest, &image).map_err(text)?;
    Ok((kept, image))
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

/// Whether packages of Debian's can be fetched and unpacked.
#[must_use]
pub fn has_debians_tools() -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
}
