//! An image onto a device: write, flush, drop what is cached of the device, read back, compare.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;

use crate::layout::SECTOR;

/// Bytes that are written or compared at a time.
const PIECE: usize = 1 << 20;
/// The end of an MBR.
const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// The step that is in progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Bytes go to the device.
    Write,
    /// They come back.
    Compare,
}

/// Opens an image; its size in bytes.
///
/// # Errors
/// When it cannot be read, or no disk image begins so.
pub fn open_image(path: &Path) -> Result<(File, u64)> {
    let what = || format!("cannot read the image {}", path.display());
    let mut image = File::open(path).with_context(what)?;
    let found = image.metadata().with_context(what)?;
    ensure!(found.is_file(), "{} is no regular file", path.display());
    let (mut first, mut size) = ([0; SECTOR], found.len());
    if size < SECTOR as u64 {
        size = 0;
    } else {
        image.read_exact(&mut first).with_context(what)?;
    }
    let is_image = size != 0 && size.is_multiple_of(SECTOR as u64) && first.ends_with(&MBR_SIGNATURE);
    ensure!(is_image, "{} is no disk image: it lacks an MBR, or is no whole number of sectors", path.display());
    image.seek(SeekFrom::Start(0)).with_context(what)?;
    Ok((image, size))
}

/// Opens a device for [`flash`]. The operating system refuses this where a file system or another driver has the
/// device, or one of its partitions, whatever [`crate::device`] has seen.
///
/// # Errors
/// When it cannot be opened.
pub fn open_device(path: &Path) -> Result<File> {
    // For a block device O_EXCL without O_CREAT is exclusive use (open(2)).
    let exclusive = i32::try_from(OFlags::EXCL.bits())?;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
    opened.map_err(|error| {
        let reason = match error.kind() {
            ErrorKind::ResourceBusy => "it is in use",
            ErrorKind::PermissionDenied => "that needs root, or membership in the group of the device file",
            _ => "the operating system refuses it",
        };
        anyhow::Error::new(error).context(format!("cannot open {} for writing: {reason}", path.display()))
    })
}

/// Writes an image of `size` bytes to the start of a device, and compares what the device then has. `progress` is
/// called with the bytes that a step has done.
///
/// # Errors
/// When a write or a read fails, or the device returns other bytes: it has a part of the image then.
pub fn flash(image: &mut File, size: u64, device: &mut File, progress: &mut dyn FnMut(Step, u64)) -> Result<()> {
    write(image, size, device, &mut |done| progress(Step::Write, done))?;
    device.sync_all().context("the device did not take all of the image")?;
    forget(device, size)?;
    compare(image, size, device, &mut |done| progress(Step::Compare, done))
}

/// Drops what the operating system has cached, so that the device itself is read.
fn forget(device: &File, size: u64) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(device, 0, std::num::NonZeroU64::new(size), rustix::fs::Advice::DontNeed)
        .context("cannot drop what is cached of the device")?;
    let _ = (device, size);
    Ok(())
}

/// Copies `size` bytes from the start of one to the start of the other.
fn write(
    image: &mut (impl Read + Seek),
    size: u64,
    device: &mut (impl Write + Seek),
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    image.seek(SeekFrom::Start(0))?;
    device.seek(SeekFrom::Start(0))?;
    pieces(image, size, progress, |at, piece| {
        device.write_all(piece).with_context(|| format!("cannot write to the device at byte {at}"))
    })
}

/// Compares `size` bytes at the start of both.
fn compare(
    image: &mut (impl Read + Seek),
    size: u64,
    device: &mut (impl Read + Seek),
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    image.seek(SeekFrom::Start(0))?;
    device.seek(SeekFrom::Start(0))?;
    let mut found = vec![0; PIECE];
    pieces(image, size, progress, |at, piece| {
        let found = &mut found[..piece.len()];
        device.read_exact(found).with_context(|| format!("cannot read the device back at byte {at}"))?;
        let differs = piece.iter().zip(found.iter()).position(|(written, found)| written != found);
        if let Some(offset) = differs {
            bail!(
                "the device returns {:#04x} for {:#04x} at byte {}: it is worn out, or larger by its name than it is",
                found[offset],
                piece[offset],
                at + offset as u64
            );
        }
        Ok(())
    })
}

/// Calls `take` with each piece of the image and where it begins.
fn pieces(
    image: &mut impl Read,
    size: u64,
    progress: &mut dyn FnMut(u64),
    mut take: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < size {
        let bytes = (size - done).min(PIECE as u64) as usize;
        let piece = &mut piece[..bytes];
        image.read_exact(piece).with_context(|| format!("cannot read the image at byte {done}"))?;
        take(done, piece)?;
        done += bytes as u64;
        progress(done);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::PathBuf;

    use super::*;

    const SIZE: usize = 2 * PIECE + SECTOR;

    fn image() -> Vec<u8> {
        let mut image: Vec<u8> = (0..SIZE).map(|at| (at / 11) as u8).collect();
        image[510..512].copy_from_slice(&MBR_SIGNATURE);
        image
    }

    fn file(name: &str, contents: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("granule-flash-{name}-{}", std::process::id()));
        std::fs::write(&path, contents).unwrap();
        path
    }

    #[test]
    fn an_image_is_written_and_what_follows_it_stays() {
        let (source, target) = (file("source", &image()), file("target", &vec![0xee; SIZE + 9]));
        let (mut opened, size) = open_image(&source).unwrap();
        let mut device = open_device(&target).unwrap();
        let mut steps = Vec::new();
        flash(&mut opened, size, &mut device, &mut |step, done| steps.push((step, done))).unwrap();
        let found = std::fs::read(&target).unwrap();
        assert!(found[..SIZE] == image() && found[SIZE..] == [0xee; 9]);
        let (one, two, all) = (PIECE as u64, 2 * PIECE as u64, SIZE as u64);
        let [write, compare] = [Step::Write, Step::Compare].map(|step| [one, two, all].map(|done| (step, done)));
        assert_eq!(steps, [write, compare].concat());
        for path in [source, target] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_device_that_returns_other_bytes_is_found_out() {
        let (mut original, size) = (Cursor::new(image()), SIZE as u64);
        for at in [0, PIECE - 1, PIECE, SIZE - 1] {
            let mut device = image();
            device[at] ^= 1;
            let refused = compare(&mut original, size, &mut Cursor::new(device), &mut |_| {}).unwrap_err().to_string();
            assert!(refused.contains(&format!(" at byte {at}:")), "{refused}");
        }
        compare(&mut original, size, &mut Cursor::new(image()), &mut |_| {}).unwrap();
        let short = &image()[..SIZE - 1];
        let refused = compare(&mut original, size, &mut Cursor::new(short), &mut |_| {}).unwrap_err().to_string();
        assert!(refused.contains("cannot read the device back"), "{refused}");
        let mut small = [0; PIECE];
        let refused = write(&mut original, size, &mut Cursor::new(&mut small[..]), &mut |_| {}).unwrap_err();
        assert!(refused.to_string().contains("cannot write to the device at byte 1048576"), "{refused}");
    }

    #[test]
    fn what_is_no_disk_image_is_refused() {
        let without = {
            let mut image = image();
            image[511] = 0;
            image
        };
        for (name, contents) in
            [("empty", &[][..]), ("short", &image()[..511]), ("odd", &image()[..600]), ("none", &without[..])]
        {
            let path = file(name, contents);
            let refused = open_image(&path).unwrap_err().to_string();
            assert!(refused.contains("is no disk image"), "{name}: {refused}");
            std::fs::remove_file(path).unwrap();
        }
        assert!(open_image(Path::new("/dev/null")).unwrap_err().to_string().contains("is no regular file"));
        assert!(open_image(Path::new("/none")).unwrap_err().to_string().contains("cannot read the image"));
    }
}
