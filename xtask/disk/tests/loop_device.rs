//! An image onto a real block device: a loop device, where this machine has them and the test is root.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use granule_disk::device::{Fixed, System, numbers};
use granule_disk::flash::{flash, open_device, open_image};
use granule_disk::layout::{self, Existing, File, Table};

/// A loop device over a file of zeros, taken down at the end.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    fn new(bytes: u64) -> Result<Self, String> {
        let file = std::env::temp_dir().join(format!("granule-loop-{}", std::process::id()));
        fs::File::create(&file).and_then(|created| created.set_len(bytes)).map_err(|error| error.to_string())?;
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let made = made.map_err(|error| format!("losetup: {error}"))?;
        let device = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let made = if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) };
        // Dropped, it removes the file.
        let found = Self { device, file };
        made.map(|()| found)
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

#[test]
fn an_image_is_flashed_onto_a_loop_device() {
    let image = layout::image(Table::Mbr, &[File { path: "a".into(), contents: vec![7; 100_000] }]).unwrap();
    let bytes = image.len() as u64 + (1 << 20);
    let target = match Loop::new(bytes) {
        Ok(target) => target,
        Err(reason) => {
            // Past the harness: `./x test` reports the test as skipped, with this reason.
            let _ = writeln!(std::io::stderr(), "@skipped no loop device here: {}", reason.trim());
            return;
        }
    };
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
