//! Devices of a machine, most on its PCI Express: machines.toml names them, QEMU wants them at length.
//!
//! A name that stands here for more is followed by options or by nothing; any other is QEMU's own, as after its
//! `-device`. The disks of all machines have the same contents ([`sector`]), and nothing that a machine writes to them
//! stays: each boot finds them as they were, and several machines may have them at once.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::tree;

/// Names, and what QEMU calls these devices, with the options that they cannot do without here: the SMMU in front of
/// virtio devices too, no ROMs, which distributions package apart, and no end to edu's addresses.
const SHORT: [(&str, &str); 6] = [
    ("edu", "edu,dma_mask=0xffffffffffffffff"),
    ("virtio-rng", "virtio-rng-pci,iommu_platform=on,disable-legacy=on,romfile="),
    ("virtio-blk", "virtio-blk-pci,iommu_platform=on,disable-legacy=on,romfile="),
    ("virtio-rng-mmio", "virtio-rng-device"),
    ("virtio-blk-mmio", "virtio-blk-device"),
    ("nvme", "nvme,serial=granule"),
];
/// No register has how many bits of an address edu puts out: a boot argument does, for the options above.
const EDU_BOOTARGS: &str = "edu.dma_bits=64";
/// Those of them that want a disk.
const WITH_DISK: [&str; 3] = ["virtio-blk", "virtio-blk-mmio", "nvme"];
/// How the name ends of a device that is on no PCI Express, but at a place that the device tree has.
const IN_MEMORY: &str = "-mmio";
/// These places have legacy devices else.
const MODERN: [&str; 2] = ["-global", "virtio-mmio.force-legacy=false"];

/// Bytes of a sector, and how many a disk has.
pub const SECTOR: usize = 512;
/// Sectors of a disk: 4 MiB.
pub const SECTORS: u64 = 8192;

/// The contents of a sector: its number, little-endian, in each of its words of eight bytes.
pub fn sector(number: u64) -> [u8; SECTOR] {
    let mut contents = [0; SECTOR];
    contents.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    contents
}

/// A device's name in the list, without its options.
pub fn name(device: &str) -> &str {
    device.split_once(',').map_or(device, |(name, _)| name)
}

/// The device as its users know it, wherever it is: its name without options and place.
pub fn kind(device: &str) -> &str {
    name(device).trim_end_matches(IN_MEMORY)
}

/// Whether it is on no PCI Express.
pub fn is_in_memory(device: &str) -> bool {
    name(device).ends_with(IN_MEMORY)
}

/// The names of those on PCI Express, with commas between them.
pub(crate) fn on_pci(devices: &[String]) -> String {
    devices.iter().filter(|device| !is_in_memory(device)).map(|device| name(device)).collect::<Vec<_>>().join(",")
}

/// QEMU's arguments for these devices; `disk` is where the contents of their disks are.
pub(crate) fn arguments(devices: &[String], disk: &Path) -> Vec<OsString> {
    let mut arguments = Vec::new();
    if devices.iter().any(|device| is_in_memory(device)) {
        arguments.extend(MODERN.map(OsString::from));
    }
    for (index, device) in devices.iter().enumerate() {
        let name = name(device);
        let options = &device[name.len()..];
        let mut long = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long).to_owned();
        if WITH_DISK.contains(&name) {
            let mut drive = OsString::from(format!("if=none,id=disk{index},format=raw,snapshot=on,file="));
            // A comma in a value is written twice.
            drive.push(disk.display().to_string().replace(',', ",,"));
            arguments.extend(["-drive".into(), drive]);
            long += &format!(",drive=disk{index}");
        }
        arguments.extend(["-device".into(), format!("{long}{options}").into()]);
    }
    arguments
}

/// The boot arguments that a kernel needs to drive these devices.
pub(crate) fn bootargs(devices: &[String]) -> &'static str {
    if devices.iter().any(|device| name(device) == "edu") { EDU_BOOTARGS } else { "" }
}

/// Where the disk's contents are for machines that run `kernel`.
pub fn disk_of(kernel: &Path) -> PathBuf {
    kernel.with_file_name("disk.img")
}

/// Makes sure that the contents are there, if one of these devices wants them.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn make_disk(devices: &[String], disk: &Path) -> io::Result<()> {
    let wanted = devices.iter().any(|device| WITH_DISK.contains(&name(device)));
    let size = SECTOR as u64 * SECTORS;
    if !wanted || fs::metadata(disk).is_ok_and(|found| found.len() == size) {
        return Ok(());
    }
    // Another thread or process may write it too: both write the same.
    let unfinished = tree::unfinished(disk);
    fs::write(&unfinished, (0..SECTORS).flat_map(sector).collect::<Vec<u8>>())?;
    fs::rename(unfinished, disk)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{SECTOR, SECTORS, arguments, kind, make_disk, name, sector};

    #[test]
    fn short_names_get_what_they_need_and_others_are_left_alone() {
        let devices = ["virtio-blk", "virtio-rng,bus=port", "pcie-root-port,id=port"].map(String::from);
        let line = arguments(&devices, Path::new("/a,b/disk.img")).join(" ".as_ref());
        assert_eq!(
            line.to_str().unwrap(),
            "-drive if=none,id=disk0,format=raw,snapshot=on,file=/a,,b/disk.img \
             -device virtio-blk-pci,iommu_platform=on,disable-legacy=on,romfile=,drive=disk0 \
             -device virtio-rng-pci,iommu_platform=on,disable-legacy=on,romfile=,bus=port \
             -device pcie-root-port,id=port"
        );
        assert_eq!(devices.each_ref().map(|device| name(device)), ["virtio-blk", "virtio-rng", "pcie-root-port"]);
        let line = arguments(&["virtio-rng-mmio".into()], Path::new("")).join(" ".as_ref());
        assert_eq!(line.to_str().unwrap(), "-global virtio-mmio.force-legacy=false -device virtio-rng-device");
        assert_eq!(["virtio-rng-mmio", "nvme,bus=b"].map(kind), ["virtio-rng", "nvme"]);
    }

    #[test]
    fn a_disk_is_whole_whichever_machines_are_started_at_once() {
        let folder = std::env::temp_dir().join(format!("granule-disk-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        for round in 0..8 {
            let disk = folder.join(format!("{round}.img"));
            std::thread::scope(|scope| {
                let make = || {
                    make_disk(&["nvme".into()], &disk).unwrap();
                    assert_eq!(fs::metadata(&disk).unwrap().len(), SECTOR as u64 * SECTORS);
                };
                (0..4).for_each(|_| drop(scope.spawn(make)));
            });
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_sector_is_its_number() {
        assert!(sector(0x1234).chunks(8).all(|word| word == [0x34, 0x12, 0, 0, 0, 0, 0, 0]));
    }
}
