//! An image onto a real block device: a loop device, where this machine has them and the test is root.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use granule_disk::device::{Fixed, System, numbers};
use granule_disk::flash::{flash, open_device, open_image};
use granule_disk::layout::{self, Existing, File, Table};

/// A loop device over a file, with the partitions of its table, taken down at the end.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    /// Over the file `name`, which begins with `contents` and has so many bytes more, of zeros.
    fn new(name: &str, contents: &[u8], room: u64) -> Result<Self, String> {
        let file = std::env::temp_dir().join(format!("granule-loop-{name}-{}", std::process::id()));
        let created = fs::write(&file, contents).and_then(|()| fs::File::options().write(true).open(&file));
        let sized = created.and_then(|created| created.set_len(contents.len() as u64 + room));
        sized.map_err(|error| error.to_string())?;
        let made = run("losetup", &["--find", "--show", "--partscan"], &file);
        // Dropped, it removes the file.
        let found = Self { device: made.clone().unwrap_or_default().into(), file };
        made.map(|_| found)
    }

    /// A folder with the file system of `volume`, which is this device or a partition of it, and is made here.
    fn mount(&self, volume: &Path) -> Result<Mounted, String> {
        run("mkfs.ext4", &["-q", "-F"], volume)?;
        let folder = self.file.with_extension("mounted");
        // As the system shows it: without links.
        let folder = fs::create_dir(&folder).and_then(|()| folder.canonicalize());
        let mounted = Mounted(folder.map_err(|error| error.to_string())?);
        run("mount", &[&volume.to_string_lossy()], &mounted.0)?;
        Ok(mounted)
    }
}

/// Runs a program of the system, and returns what it prints, or why it failed.
fn run(program: &str, arguments: &[&str], last: &Path) -> Result<String, String> {
    let ended = Command::new(program).args(arguments).arg(last).output();
    let ended = ended.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if ended.status.success() { Ok(text(&ended.stdout)) } else { Err(format!("{program}: {}", text(&ended.stderr))) }
}

/// Past the harness: `./x test` reports the test as skipped, with this reason.
fn or_skip<T>(made: Result<T, String>) -> Option<T> {
    made.inspect_err(|reason| drop(writeln!(std::io::stderr(), "@skipped no loop device here: {reason}"))).ok()
}

/// A mounted file system, unmounted at the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // It may not have come to that.
        let _ = run("umount", &["--quiet"], &self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.device.is_absolute() {
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        }
        let _ = fs::remove_file(&self.file);
    }
}

fn image() -> Vec<u8> {
    layout::image(Table::Mbr, &[File { path: "a".into(), contents: vec![7; 100_000] }]).unwrap()
}

#[test]
fn an_image_is_flashed_onto_a_loop_device() {
    let image = image();
    let bytes = image.len() as u64 + (1 << 20);
    let Some(target) = or_skip(Loop::new("flash", &[], bytes)) else { return };
    let system = System::at(Path::new("/"));
    let numbers = numbers(&target.device).unwrap();
    let refused = system.disk(&numbers, Fixed::Refused).unwrap_err().to_string();
    assert!(refused.contains("--force-fixed"), "{refused}");
    let disk = system.disk(&numbers, Fixed::Allowed).unwrap();
    assert_eq!(disk.bytes, bytes);
    let source = target.file.with_extension("img");
    layout::write(&source, &image, Existing::Replaced).unwrap();
    let (mut opened, size) = open_image(&source).unwrap();
    let mut device = open_device(&target.device).unwrap();
    let second = format!("{:#}", open_device(&target.device).unwrap_err());
    assert!(second.contains("it is in use"), "{second}");
    flash(&mut opened, size, &mut device, &mut |_, _| {}).unwrap();
    drop(device);
    assert!(fs::read(&target.device).unwrap()[..image.len()] == image[..]);
    fs::remove_file(source).unwrap();
}

/// Refused as a disk that is in use, whether it may be fixed or not; and by the operating system, should the look at it
/// have come too early.
#[track_caller]
fn assert_refused(target: &Loop, volume: &Path, mounted: &Mounted) {
    let [name, volume] = [&*target.device, volume].map(|path| path.file_name().unwrap().to_string_lossy());
    let system = System::at(Path::new("/"));
    let numbers = numbers(&target.device).unwrap();
    for fixed in [Fixed::Refused, Fixed::Allowed] {
        let refused = system.disk(&numbers, fixed).unwrap_err().to_string();
        assert_eq!(refused, format!("{volume} is mounted on {}: unmount it first", mounted.0.display()), "{name}");
    }
    let opened = format!("{:#}", open_device(&target.device).unwrap_err());
    assert!(opened.contains("it is in use"), "{opened}");
}

#[test]
fn a_disk_that_is_mounted_is_refused() {
    let Some(target) = or_skip(Loop::new("whole", &[], 8 << 20)) else { return };
    let Some(mounted) = or_skip(target.mount(&target.device)) else { return };
    assert_refused(&target, &target.device, &mounted);
    drop(mounted);
    let numbers = numbers(&target.device).unwrap();
    assert!(System::at(Path::new("/")).disk(&numbers, Fixed::Allowed).is_ok());
    open_device(&target.device).unwrap();
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused() {
    let Some(target) = or_skip(Loop::new("part", &image(), 0)) else { return };
    let volume = PathBuf::from(format!("{}p1", target.device.display()));
    let found = if volume.exists() { Ok(()) } else { Err(format!("no partition {}", volume.display())) };
    let Some(mounted) = or_skip(found.and_then(|()| target.mount(&volume))) else { return };
    assert_refused(&target, &volume, &mounted);
}
