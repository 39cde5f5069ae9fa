//! Which disk a device file names, and whether an image may go there, by Linux's sysfs and procfs.
//!
//! A disk with its partitions, and all that is stacked on these (volumes of LVM, encrypted ones, RAIDs: `holders` in
//! sysfs), is refused where one of them is mounted, swapped to, or in use. It may be written to if its medium can be
//! taken out, else on demand only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::layout::SECTOR;

/// Where a system has what it runs from.
const OF_THE_SYSTEM: [&str; 8] = ["/", "/usr", "/var", "/home", "/boot", "/boot/efi", "/boot/firmware", "/efi"];

/// Whether a disk that cannot be taken out may be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fixed {
    /// It may not.
    Refused,
    /// It may.
    Allowed,
}

/// A disk that an image may be written to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// The name that the kernel gave it, such as `sdb`.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The name that its vendor gave it, or nothing.
    pub model: String,
}

/// The numbers of a block device, as sysfs writes them: `8:16`.
///
/// # Errors
/// When the file is missing, or is something else.
pub fn numbers(device: &Path) -> Result<String> {
    numbers_of(&fs::metadata(device).with_context(|| format!("cannot find {}", device.display()))?, device)
}

/// Those of a device that was found under this name.
///
/// # Errors
/// When it is none.
pub fn numbers_of(found: &fs::Metadata, device: &Path) -> Result<String> {
    ensure!(found.file_type().is_block_device(), "{} is no block device, such as /dev/sdb", device.display());
    let number = found.rdev();
    Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
}

/// A system's view of its disks.
#[derive(Debug)]
pub struct System {
    sys: PathBuf,
    proc: PathBuf,
}

impl System {
    /// The system that has its `/sys` and `/proc` in this folder: `/` is this one.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { sys: root.join("sys"), proc: root.join("proc") }
    }

    /// The disk of those numbers.
    ///
    /// # Errors
    /// When it may not be written to, and why; when sysfs or procfs cannot be read.
    pub fn disk(&self, numbers: &str, fixed: Fixed) -> Result<Disk> {
        let link = self.sys.join("dev/block").join(numbers);
        let folder = fs::canonicalize(&link)
            .with_context(|| format!("{} leads to no disk: that takes Linux's sysfs", link.display()))?;
        let name = name(&folder);
        if folder.join("partition").exists() {
            bail!(
                "{name} is a partition: an image goes to the whole disk, {}",
                folder.parent().map(self::name).unwrap_or_default()
            );
        }
        self.check_unused(&name, &folder)?;
        let property = |path: &str| fs::read_to_string(folder.join(path)).map(|text| text.trim().to_owned()).ok();
        ensure!(property("ro").as_deref() != Some("1"), "{name} is read-only: is it locked by its switch?");
        // Slots of the board itself are fixed to Linux, whatever is in them: only the card says that it is one.
        let is_removable =
            property("removable").as_deref() == Some("1") || property("device/type").as_deref() == Some("SD");
        ensure!(
            is_removable || fixed == Fixed::Allowed,
            "{name} is not removable, so it may be a disk of this computer; --force-fixed writes to it all the same"
        );
        let sectors = property("size").and_then(|size| size.parse::<u64>().ok()).unwrap_or_default();
        ensure!(sectors != 0, "{name} has no medium");
        let model = property("device/model").or_else(|| property("device/name")).unwrap_or_default();
        Ok(Disk { name, bytes: sectors * SECTOR as u64, model })
    }

    /// Refuses a disk that is in use, as a whole or in part.
    fn check_unused(&self, name: &str, folder: &Path) -> Result<()> {
        // Numbers and name of the disk, its partitions, and what is stacked on them.
        let mut members = BTreeMap::new();
        let mut holders = Vec::new();
        self.collect(folder, &mut members, &mut holders)?;
        let is_member = |numbers: &str, source: &str| {
            let by_number = members.get(numbers);
            // Btrfs has numbers of its own.
            by_number
                .or_else(|| members.values().find(|name| source.strip_prefix("/dev/") == Some(name.as_str())))
                .cloned()
        };
        let read = |path: &str| {
            let path = self.proc.join(path);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut mounted = Vec::new();
        // proc_pid_mountinfo(5): `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELDS] - TYPE SOURCE OPTIONS`.
        for line in read("self/mountinfo")?.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = before.split(' ').collect();
            let (Some(numbers), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
            mounted.extend(
                is_member(numbers, after.split(' ').nth(1).unwrap_or_default())
                    .map(|member| (member, (*point).to_owned())),
            );
        }
        if let Some((member, point)) = mounted.iter().find(|(_, point)| OF_THE_SYSTEM.contains(&point.as_str())) {
            bail!("{name} is a disk of this system: {member} is mounted on {point}");
        }
        for line in read("swaps")?.lines().skip(1) {
            let file = line.split_whitespace().next().unwrap_or_default();
            if let Some(member) = is_member("", file) {
                bail!("{name} is a disk of this system: it swaps to {member}");
            }
        }
        if let Some((member, point)) = mounted.first() {
            bail!("{member} is mounted on {point}: unmount it first");
        }
        if let Some((member, holder)) = holders.first() {
            bail!("{member} is in use by {holder}: take that down first");
        }
        Ok(())
    }

    /// Adds a disk or partition, its own partitions, and what is stacked on each.
    fn collect(
        &self,
        folder: &Path,
        members: &mut BTreeMap<String, String>,
        holders: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let numbers =
            fs::read_to_string(folder.join("dev")).with_context(|| format!("cannot read {}/dev", folder.display()))?;
        if members.insert(numbers.trim().to_owned(), name(folder)).is_some() {
            return Ok(());
        }
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten() {
            if entry.path().join("partition").exists() {
                self.collect(&entry.path(), members, holders)?;
            }
        }
        for entry in fs::read_dir(folder.join("holders")).into_iter().flatten().flatten() {
            let holder =
                fs::canonicalize(entry.path()).with_context(|| format!("cannot follow {}", entry.path().display()))?;
            holders.push((name(folder), name(&holder)));
            self.collect(&holder, members, holders)?;
        }
        Ok(())
    }
}

/// The last part of a path.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A system of stand-ins: `sda` with `sda1`, a card `mmcblk0` with `mmcblk0p1`, and `dm-0` on nothing.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let fake = Self(std::env::temp_dir().join(format!("granule-device-{name}-{}", std::process::id())));
            for (path, numbers) in
                [("sda", "8:0"), ("sda/sda1", "8:1"), ("mmc", "179:0"), ("mmc/mmcp1", "179:1"), ("dm-0", "254:0")]
            {
                fake.has(&format!("sys/devices/{path}/dev"), &format!("{numbers}\n"));
                fs::create_dir_all(fake.0.join("sys/dev/block")).unwrap();
                symlink(fake.0.join("sys/devices").join(path), fake.0.join("sys/dev/block").join(numbers)).unwrap();
            }
            for partition in ["sda/sda1", "mmc/mmcp1"] {
                fake.has(&format!("sys/devices/{partition}/partition"), "1");
            }
            for disk in ["sda", "mmc"] {
                fake.has(&format!("sys/devices/{disk}/size"), "2048\n");
                fake.has(&format!("sys/devices/{disk}/ro"), "0\n");
            }
            fake.has("sys/devices/sda/removable", "1\n");
            fake.has("sys/devices/sda/device/model", "Reader  \n");
            fake.has("sys/devices/mmc/removable", "0\n");
            fake.has("sys/devices/mmc/device/type", "SD\n");
            fake.has("proc/swaps", "Filename Type Size\n");
            fake.mounts("9:9", "/", "/dev/other");
            fake
        }

        fn has(&self, path: &str, contents: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }

        fn mounts(&self, numbers: &str, point: &str, source: &str) {
            let line = format!("22 1 {numbers} / {point} rw,relatime shared:1 - ext4 {source} rw\n");
            self.has("proc/self/mountinfo", &line);
        }

        fn disk(&self, numbers: &str) -> Result<Disk> {
            System::at(&self.0).disk(numbers, Fixed::Refused)
        }

        /// Why a disk is refused.
        fn refusal(&self, numbers: &str) -> String {
            format!("{:#}", self.disk(numbers).unwrap_err())
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn removable_disks_and_cards_that_nothing_uses_are_let_through() {
        let fake = Fake::new("free");
        let disk = Disk { name: "sda".into(), bytes: 1 << 20, model: "Reader".into() };
        assert_eq!(fake.disk("8:0").unwrap(), disk);
        assert_eq!(fake.disk("179:0").unwrap().name, "mmc");
    }

    #[test]
    fn what_is_fixed_is_refused_unless_that_is_allowed() {
        let fake = Fake::new("fixed");
        fake.has("sys/devices/sda/removable", "0");
        assert!(fake.refusal("8:0").contains("sda is not removable"));
        fake.has("sys/devices/mmc/device/type", "MMC");
        assert!(fake.refusal("179:0").contains("mmc is not removable"));
        let allowed = System::at(&fake.0);
        assert_eq!(allowed.disk("8:0", Fixed::Allowed).unwrap().name, "sda");
        // A disk in use is refused all the same.
        fake.mounts("8:1", "/mnt", "/dev/sda1");
        assert!(allowed.disk("8:0", Fixed::Allowed).is_err());
    }

    #[test]
    fn mounted_disks_and_those_of_the_system_are_refused() {
        let fake = Fake::new("mounted");
        for numbers in ["8:0", "8:1"] {
            fake.mounts(numbers, "/media/card", "/dev/x");
            assert!(fake.refusal("8:0").contains("is mounted on /media/card: unmount it"), "{numbers}");
            assert!(fake.disk("179:0").is_ok());
        }
        // Btrfs: by the name of the source alone.
        fake.mounts("0:31", "/media/card", "/dev/sda1");
        assert!(fake.refusal("8:0").contains("sda1 is mounted"));
        for point in OF_THE_SYSTEM {
            fake.mounts("8:1", point, "/dev/root");
            assert!(
                fake.refusal("8:0").contains(&format!("a disk of this system: sda1 is mounted on {point}")),
                "{point}"
            );
        }
        fake.mounts("9:9", "/", "/dev/other");
        fake.has("proc/swaps", "Filename Type Size\n/dev/sda1 partition 100\n");
        assert!(fake.refusal("8:0").contains("it swaps to sda1"));
    }

    #[test]
    fn disks_below_other_devices_are_refused() {
        let fake = Fake::new("stacked");
        let holders = fake.0.join("sys/devices/sda/sda1/holders");
        fs::create_dir_all(&holders).unwrap();
        symlink(fake.0.join("sys/devices/dm-0"), holders.join("dm-0")).unwrap();
        assert!(fake.refusal("8:0").contains("sda1 is in use by dm-0"));
        fake.mounts("254:0", "/", "/dev/mapper/root");
        assert!(fake.refusal("8:0").contains("a disk of this system: dm-0 is mounted on /"));
    }

    #[test]
    fn what_cannot_be_written_to_is_refused() {
        let fake = Fake::new("other");
        assert!(fake.refusal("8:1").contains("sda1 is a partition: an image goes to the whole disk, sda"));
        assert!(fake.refusal("7:7").contains("leads to no disk"));
        fake.has("sys/devices/sda/ro", "1");
        assert!(fake.refusal("8:0").contains("read-only"));
        fake.has("sys/devices/mmc/size", "0");
        assert!(fake.refusal("179:0").contains("has no medium"));
        fs::remove_file(fake.0.join("proc/self/mountinfo")).unwrap();
        assert!(fake.refusal("8:0").contains("cannot read"), "what is mounted is not known");
        for path in ["/dev/null", "/"] {
            let refused = numbers(Path::new(path)).unwrap_err().to_string();
            assert!(refused.contains("is no block device"), "{refused}");
        }
        assert!(numbers(Path::new("/dev/none-such")).unwrap_err().to_string().contains("cannot find"));
    }
}
