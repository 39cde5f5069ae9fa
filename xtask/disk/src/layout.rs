//! One FAT32 volume behind an MBR or a GPT.
//!
//! The partition starts at 1 MiB, where erase blocks of cards begin, and is active: U-Boot looks for `extlinux.conf` on
//! the active partition, and on the first one if none is. Its type is 0x0c (FAT32 with LBA), which the firmware of the
//! Raspberry Pi 3 wants. In a GPT it is the EFI system partition (UEFI 5.3, 13.3). Equal files make equal images:
//! there is no time and no random number in one.

use std::fs;
use std::io::{Cursor, ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::{PartRecord, ProtectiveMBR};
use gpt::partition::Partition;
use gpt::partition_types::EFI;

const MIB: usize = 1 << 20;
/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// Where the partition starts.
const START: usize = MIB;
/// The smallest volume, in bytes: FAT32 has 65,525 clusters at least, of a sector each.
const SMALLEST: usize = 64 * MIB;
/// Room beside the files: directories, the last cluster of each file, and files that are added by hand.
const ROOM: usize = 4 * MIB;
const ACTIVE: u8 = 0x80;
const FAT32_LBA: u8 = 0x0c;
/// Names the volume and the disk.
const LABEL: [u8; 11] = *b"GRANULE    ";
const SIGNATURE: [u8; 4] = *b"GRAN";
/// Room for the second copy of a GPT, behind the volume.
const BACKUP: usize = MIB;
/// Name the disk and the partition in a GPT.
const GUIDS: [&str; 2] = ["6772616e-756c-4500-8000-000000000000", "6772616e-756c-4500-8000-000000000001"];

/// A file of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Its path from the root, with `/` between folders.
    pub path: String,
    /// Its bytes.
    pub contents: Vec<u8>,
}

/// The kind of a partition table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Four entries in the first sector.
    Mbr,
    /// At the start and the end of the disk, with a protective MBR.
    Gpt,
}

/// The fate of a file that has an image's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It stays, and the image is refused.
    Kept,
    /// The image replaces it.
    Replaced,
}

/// The bytes of a disk that has these files.
///
/// # Errors
/// When FAT cannot have them: 4 GiB or more in one, a bad name, more than the 2 TiB of an MBR.
pub fn image(table: Table, files: &[File]) -> Result<Vec<u8>> {
    let contents: usize = files.iter().map(|file| file.contents.len()).sum();
    let volume = volume_bytes(contents);
    let mut image = vec![0; START + volume];
    fill(&mut image[START..], files).context("cannot make the FAT volume")?;
    match table {
        Table::Mbr => write_mbr(&mut image, volume)?,
        Table::Gpt => {
            image.resize(START + volume + BACKUP, 0);
            write_gpt(&mut image, volume).context("cannot make the GPT")?;
        }
    }
    Ok(image)
}

fn write_mbr(image: &mut [u8], volume: usize) -> Result<()> {
    let partition = PartRecord {
        boot_indicator: ACTIVE,
        os_type: FAT32_LBA,
        lb_start: u32::try_from(START / SECTOR)?,
        lb_size: u32::try_from(volume / SECTOR).context("the files are too large for an MBR")?,
        ..PartRecord::zero()
    };
    let mut mbr = ProtectiveMBR::new();
    mbr.set_disk_signature(SIGNATURE);
    mbr.set_partition(0, partition);
    image[..SECTOR].copy_from_slice(&mbr.to_bytes());
    Ok(())
}

fn write_gpt(image: &mut [u8], volume: usize) -> Result<()> {
    let sectors = u32::try_from(image.len() / SECTOR - 1).unwrap_or(u32::MAX);
    let mut mbr = ProtectiveMBR::with_lb_size(sectors);
    mbr.set_disk_signature(SIGNATURE);
    image[..SECTOR].copy_from_slice(&mbr.to_bytes());
    let [disk, partition] = GUIDS;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut gpt = config.create_from_device(Cursor::new(image), Some(disk.parse()?))?;
    let partition = Partition {
        part_type_guid: EFI,
        part_guid: partition.parse()?,
        first_lba: (START / SECTOR) as u64,
        last_lba: ((START + volume) / SECTOR - 1) as u64,
        flags: 0,
        name: "GRANULE".into(),
    };
    gpt.update_partitions([(1, partition)].into())?;
    gpt.write()?;
    Ok(())
}

/// The size of a volume for so many bytes of files.
fn volume_bytes(contents: usize) -> usize {
    // An eighth for the tables: they take 8 bytes for each cluster, of a sector at least.
    (contents + contents / 8 + ROOM).next_multiple_of(MIB).max(SMALLEST)
}

/// Formats a volume and writes the files.
fn fill(volume: &mut [u8], files: &[File]) -> Result<()> {
    let mut volume = Cursor::new(volume);
    let id = u32::from_le_bytes(SIGNATURE);
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_label(LABEL).volume_id(id);
    format_volume(&mut volume, options)?;
    let system = FileSystem::new(&mut volume, FsOptions::new())?;
    for File { path, contents } in files {
        let mut folder = system.root_dir();
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_some() {
                folder = folder.create_dir(name).with_context(|| path.clone())?;
            } else {
                folder.create_file(name)?.write_all(contents).with_context(|| path.clone())?;
            }
        }
    }
    system.unmount()?;
    Ok(())
}

/// Refuses a file name for an image before the work that it takes.
///
/// # Errors
/// When something else is there, or a file that is to be kept.
pub fn check_output(path: &Path, existing: Existing) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            bail!("{} is no regular file: `./x flash` writes an image to a device", path.display())
        }
        Ok(_) => ensure!(existing == Existing::Replaced, "{} exists; --force replaces it", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    Ok(())
}

/// Writes an image: whole, or not at all. Its zeros take no room where the file system can leave them out.
///
/// # Errors
/// As [`check_output`], and when it cannot be written; what was there before is there still.
pub fn write(path: &Path, image: &[u8], existing: Existing) -> Result<()> {
    check_output(path, existing)?;
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    // A file of that name is another's, and a link may lead anywhere.
    let file = fs::File::create_new(&fresh).with_context(|| format!("cannot write {}", path.display()))?;
    let written = write_sparsely(file, image).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // The error is that of the write.
        let _ = fs::remove_file(&fresh);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_sparsely(mut file: fs::File, image: &[u8]) -> std::io::Result<()> {
    for (index, piece) in image.chunks(MIB).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start((index * MIB) as u64))?;
            file.write_all(piece)?;
        }
    }
    file.set_len(image.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// The files of an image, as the crates read them.
    fn read_back(image: &[u8]) -> Vec<File> {
        let mut volume = image[START..].to_vec();
        let system = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
        let (mut folders, mut files) = (vec![(String::new(), system.root_dir())], Vec::new());
        while let Some((path, folder)) = folders.pop() {
            for entry in folder.iter().map(Result::unwrap).filter(|entry| !entry.file_name().starts_with('.')) {
                let path = format!("{path}{}", entry.file_name());
                if entry.is_dir() {
                    folders.push((format!("{path}/"), entry.to_dir()));
                } else {
                    let mut contents = Vec::new();
                    entry.to_file().read_to_end(&mut contents).unwrap();
                    files.push(File { path, contents });
                }
            }
        }
        files
    }

    fn file(path: &str, bytes: usize) -> File {
        File { path: path.into(), contents: (0..bytes).map(|at| (at / 7) as u8).collect() }
    }

    #[test]
    fn every_file_is_read_back_with_its_bytes() {
        let files = vec![file("granule.img", 1_500_001), file("config.txt", 40), file("extlinux/extlinux.conf", 513)];
        for table in [Table::Mbr, Table::Gpt] {
            let made = image(table, &files).unwrap();
            assert_eq!(read_back(&made), files);
            assert!(made == image(table, &files).unwrap(), "equal files make equal images");
        }
    }

    #[test]
    fn a_gpt_has_one_efi_system_partition_with_the_volume() {
        let made = image(Table::Gpt, &[file("EFI/BOOT/BOOTAA64.EFI", 100)]).unwrap();
        assert_eq!(made.len(), 66 << 20);
        let mbr = ProtectiveMBR::from_bytes(&made[..SECTOR], LogicalBlockSize::Lb512).unwrap();
        let first = mbr.partition(0).unwrap();
        assert_eq!((first.os_type, first.lb_start, first.lb_size), (0xee, 1, (66 << 11) - 1));
        // Either header alone describes the disk.
        for damaged in [None, Some(1), Some((66 << 11) - 1)] {
            let mut made = made.clone();
            if let Some(sector) = damaged {
                made[sector * SECTOR..][..SECTOR].fill(0);
            }
            let config = GptConfig::new().only_valid_headers(false).logical_block_size(LogicalBlockSize::Lb512);
            let gpt = config.open_from_device(Cursor::new(&mut made[..])).unwrap();
            let partitions: Vec<_> = gpt.partitions().values().collect();
            let [only] = partitions[..] else { panic!("{partitions:?}") };
            assert_eq!((&only.part_type_guid, only.first_lba, only.last_lba), (&EFI, 2048, 2048 + (64 << 11) - 1));
        }
    }

    #[test]
    fn the_one_partition_is_active_fat32_from_one_mebibyte_to_the_end() {
        let made = image(Table::Mbr, &[]).unwrap();
        assert_eq!(made.len(), 65 << 20);
        let mbr = ProtectiveMBR::from_bytes(&made[..SECTOR], LogicalBlockSize::Lb512).unwrap();
        let first = mbr.partition(0).unwrap();
        assert_eq!((first.boot_indicator, first.os_type, first.lb_start, first.lb_size), (0x80, 0x0c, 2048, 131_072));
        assert!((1..4).all(|index| mbr.partition(index) == Some(PartRecord::zero())));
        let mut volume = made[1 << 20..].to_vec();
        let system = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
        assert_eq!((system.fat_type(), system.volume_label()), (FatType::Fat32, "GRANULE".into()));
    }

    #[test]
    fn the_volume_grows_with_the_files() {
        for (contents, volume) in [(0, 64), (53, 64), (54, 65), (80, 94), (800, 904)] {
            assert_eq!(volume_bytes(contents << 20), volume << 20, "{contents}");
        }
    }

    #[test]
    fn an_output_is_written_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("granule-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("card.img");
        let image = [vec![1; MIB], vec![0; MIB + 512]].concat();
        write(&path, &image, Existing::Kept).unwrap();
        assert!(fs::read(&path).unwrap() == image);
        let refused = |path: &Path, existing| write(path, &[2], existing).unwrap_err().to_string();
        assert!(refused(&path, Existing::Kept).contains("card.img exists; --force replaces it"));
        assert!(fs::read(&path).unwrap() == image, "what was there is there still");
        write(&path, &[2; 512], Existing::Replaced).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [2; 512]);
        for other in [Path::new("/dev/null"), &folder] {
            assert!(refused(other, Existing::Replaced).contains("is no regular file"), "{}", other.display());
        }
        // The first cannot be made, the second not be renamed.
        for other in ["none/card.img", "none/."] {
            assert!(refused(&folder.join(other), Existing::Kept).contains("cannot write"), "{other}");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
        fs::remove_dir_all(folder).unwrap();
    }
}
