//! The files of a board's volume: what its firmware reads first, what U-Boot reads, and what both load.
//!
//! U-Boot looks for `/extlinux/extlinux.conf` (U-Boot, doc/develop/distro.rst), the Raspberry Pi's firmware for
//! `/config.txt`, where `/cmdline.txt` has the boot arguments (Raspberry Pi documentation, config.txt, "Boot options").
//! The Pi's firmware is its vendor's, from a folder. UEFI starts `/EFI/BOOT/BOOTAA64.EFI` (UEFI 3.5.1.1), which
//! is the kernel; its stub (`boot/uefi`) reads the other files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dtoolkit::fdt::Fdt;

use crate::layout::{File, Table};

/// The names on the volume.
const KERNEL: &str = "granule.img";
const APPLICATION: &str = "EFI/BOOT/BOOTAA64.EFI";
const INITRD: &str = "initrd.cpio";
const TREE: &str = "board.dtb";
const EXTLINUX: &str = "extlinux/extlinux.conf";
const CONFIG: &str = "config.txt";
const CMDLINE: &str = "cmdline.txt";

/// Where the Raspberry Pi's vendor has the files of its firmware, and the device trees that it passes on.
const RASPBERRY_PI: &str = "https://github.com/raspberrypi/firmware/blob/master/boot";
/// The largest device tree that an arm64 kernel is given, in bytes (Linux, Documentation/arch/arm64/booting.rst).
const LARGEST_TREE: usize = 2 << 20;
/// Most bytes of boot arguments that the kernel, and its EFI stub, take.
const MAX_BOOTARGS: usize = 2048;

/// A board, by what it reads from the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Board {
    /// Any whose U-Boot is elsewhere, such as in its flash memory.
    Generic,
    /// Raspberry Pi 3: the firmware is on the card.
    Rpi3,
    /// Raspberry Pi 4: the second half of the firmware is on the card.
    Rpi4,
    /// Raspberry Pi 5: the firmware is in its flash memory, the device tree on the card.
    Rpi5,
    /// Any that has UEFI, which also has the device tree or ACPI's tables.
    Uefi,
}

/// The files of an image.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The kernel, an arm64 Image.
    pub kernel: &'a Path,
    /// The initrd, if there is to be one.
    pub initrd: Option<&'a Path>,
    /// A device tree, in place of the one that the firmware or U-Boot has.
    pub tree: Option<&'a Path>,
    /// The folder that has the vendor's files.
    pub firmware: Option<&'a Path>,
    /// Boot arguments, in one line.
    pub append: &'a str,
}

impl Board {
    /// All boards.
    pub const ALL: [Self; 5] = [Self::Generic, Self::Rpi3, Self::Rpi4, Self::Rpi5, Self::Uefi];

    /// Its name in commands.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Rpi3 => "rpi3",
            Self::Rpi4 => "rpi4",
            Self::Rpi5 => "rpi5",
            Self::Uefi => "uefi",
        }
    }

    /// The board of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|board| board.name() == name);
        found.with_context(|| format!("there is no board `{name}`; it may be one of {names}"))
    }

    /// The partition table that its firmware reads.
    #[must_use]
    pub fn table(self) -> Table {
        if self == Self::Uefi { Table::Gpt } else { Table::Mbr }
    }

    /// The vendor's files, and its device trees, of which the firmware takes that of the board that it runs on.
    const fn firmware(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Generic | Self::Uefi => (&[], &[]),
            Self::Rpi3 => {
                (&["bootcode.bin", "start.elf", "fixup.dat"], &["bcm2710-rpi-3-b.dtb", "bcm2710-rpi-3-b-plus.dtb"])
            }
            Self::Rpi4 => (&["start4.elf", "fixup4.dat"], &["bcm2711-rpi-4-b.dtb"]),
            Self::Rpi5 => (&[], &["bcm2712-rpi-5-b.dtb", "bcm2712d0-rpi-5-b.dtb"]),
        }
    }

    /// The files of the volume.
    ///
    /// # Errors
    /// Names the part that is missing, or is not what it must be; of the vendor's files each that is missing, and where
    /// its vendor has it.
    pub fn files(self, parts: &Parts<'_>) -> Result<Vec<File>> {
        check_line(parts.append)?;
        let has_firmware = matches!(self, Self::Rpi3 | Self::Rpi4 | Self::Rpi5);
        ensure!(
            has_firmware || parts.firmware.is_none(),
            "the board `{}` has its firmware elsewhere: leave --firmware out",
            self.name()
        );
        let kernel = if self == Self::Uefi { APPLICATION } else { KERNEL };
        let mut files = vec![File { path: kernel.into(), contents: read(parts.kernel, "the kernel")? }];
        if let Some(initrd) = parts.initrd {
            files.push(File { path: INITRD.into(), contents: read(initrd, "the initrd")? });
        }
        if self == Self::Uefi {
            ensure!(parts.tree.is_none(), "UEFI has the device tree of its board: leave --dtb out");
            let append = parts.append.trim();
            files.extend((!append.is_empty()).then(|| File { path: CMDLINE.into(), contents: append.into() }));
            return Ok(files);
        }
        if let Some(tree) = parts.tree {
            files.push(File { path: TREE.into(), contents: device_tree(tree)? });
        }
        files.push(File { path: EXTLINUX.into(), contents: extlinux(parts).into() });
        if has_firmware {
            files.push(File { path: CONFIG.into(), contents: config(parts).into() });
            files.push(File { path: CMDLINE.into(), contents: format!("{}\n", parts.append).into() });
            files.extend(self.vendors(parts)?);
        }
        Ok(files)
    }

    /// The vendor's files, without its device trees where there is another.
    fn vendors(self, parts: &Parts<'_>) -> Result<Vec<File>> {
        let (firmware, trees) = self.firmware();
        let trees: &[&str] = if parts.tree.is_some() { &[] } else { trees };
        let (mut files, mut missing) = (Vec::new(), String::new());
        for &name in firmware.iter().chain(trees) {
            let path = parts.firmware.map(|folder| folder.join(name));
            match path.filter(|path| path.is_file()) {
                Some(path) => files.push(File { path: name.into(), contents: read(&path, "a file of the firmware")? }),
                None => write!(missing, "\n  {name}: {RASPBERRY_PI}/{name}")?,
            }
        }
        if !missing.is_empty() {
            let place = parts.firmware.map_or_else(
                || "no --firmware DIR is given".into(),
                |folder| format!("{} lacks files", folder.display()),
            );
            bail!("{}: {place}; its vendor has the files that are missing:{missing}", self.name());
        }
        Ok(files)
    }
}

/// Refuses boot arguments that would end their line, that U-Boot would replace (it takes `${` for a variable), or that
/// are longer than the kernel takes them.
fn check_line(append: &str) -> Result<()> {
    let bad = append.chars().find(|char| !matches!(char, ' '..='~') || *char == '$');
    ensure!(
        bad.is_none(),
        "--append has {:?}; allowed are printable ASCII characters but `$`",
        bad.unwrap_or_default()
    );
    let bytes = append.trim().len();
    ensure!(bytes <= MAX_BOOTARGS, "--append has {bytes} bytes; the kernel takes {MAX_BOOTARGS} at most");
    Ok(())
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    let contents = fs::read(path).with_context(|| format!("cannot read {what}, {}", path.display()))?;
    ensure!(!contents.is_empty(), "{what}, {}, is empty", path.display());
    Ok(contents)
}

fn device_tree(path: &Path) -> Result<Vec<u8>> {
    let contents = read(path, "the device tree")?;
    let bytes = contents.len();
    ensure!(bytes <= LARGEST_TREE, "{} has {bytes} bytes; a device tree has {LARGEST_TREE} at most", path.display());
    Fdt::new(&contents).with_context(|| format!("{} is no device tree blob", path.display()))?;
    Ok(contents)
}

/// U-Boot's menu of one entry, which it boots without waiting.
fn extlinux(parts: &Parts<'_>) -> String {
    let initrd = line_if(parts.initrd.is_some(), format_args!("    initrd /{INITRD}\n"));
    let fdt = line_if(parts.tree.is_some(), format_args!("    fdt /{TREE}\n"));
    let append = line_if(!parts.append.trim().is_empty(), format_args!("    append {}\n", parts.append));
    format!("default granule\nlabel granule\n    linux /{KERNEL}\n{initrd}{fdt}{append}")
}

/// The Raspberry Pi's `config.txt`. `enable_uart` also keeps the core clock, and so the mini UART's, as it is.
fn config(parts: &Parts<'_>) -> String {
    let initrd = line_if(parts.initrd.is_some(), format_args!("initramfs {INITRD} followkernel\n"));
    let tree = line_if(parts.tree.is_some(), format_args!("device_tree={TREE}\n"));
    format!("arm_64bit=1\nenable_uart=1\nkernel={KERNEL}\n{initrd}cmdline={CMDLINE}\n{tree}")
}

/// A line that a file has where there is what it is about.
fn line_if(has: bool, line: std::fmt::Arguments<'_>) -> String {
    if has { line.to_string() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// An empty tree: header, an empty map of reservations, and a root without a property (Devicetree Specification
    /// v0.4, 5.2 to 5.4).
    fn tree() -> Vec<u8> {
        let words: [u32; 18] = [0xd00d_feed, 72, 56, 72, 40, 17, 16, 0, 0, 16, 0, 0, 0, 0, 1, 0, 2, 9];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// A folder with a kernel, an initrd, a tree and a file that is none.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("granule-board-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let folder = Self(folder);
            folder.has("kernel", b"Image");
            folder.has("initrd", b"programs");
            folder.has("tree", &tree());
            folder.has("none", b"no tree");
            folder
        }

        fn has(&self, name: &str, contents: &[u8]) -> PathBuf {
            fs::write(self.0.join(name), contents).unwrap();
            self.0.join(name)
        }

        /// The files for a board with that tree, and with the folder's firmware.
        fn files(&self, board: Board, tree: Option<&str>, append: &str) -> Result<Vec<File>> {
            let firmware = (!matches!(board, Board::Generic | Board::Uefi)).then_some(self.0.as_path());
            let tree = tree.map(|name| self.0.join(name));
            let (kernel, initrd) = (&self.0.join("kernel"), Some(self.0.join("initrd")));
            board.files(&Parts { kernel, initrd: initrd.as_deref(), tree: tree.as_deref(), firmware, append })
        }

        fn refusal(&self, board: Board, tree: Option<&str>, append: &str) -> String {
            format!("{:#}", self.files(board, tree, append).unwrap_err())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn text<'a>(files: &'a [File], path: &str) -> &'a str {
        let file = files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}"));
        str::from_utf8(&file.contents).unwrap()
    }

    fn paths(files: &[File]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn a_generic_volume_is_for_u_boot_alone() {
        let folder = Folder::new("generic");
        let files = folder.files(Board::Generic, None, "").unwrap();
        assert_eq!(paths(&files), ["granule.img", "initrd.cpio", "extlinux/extlinux.conf"]);
        let menu = "default granule\nlabel granule\n    linux /granule.img\n    initrd /initrd.cpio\n";
        assert_eq!(text(&files, "extlinux/extlinux.conf"), menu);
        assert_eq!((text(&files, "granule.img"), text(&files, "initrd.cpio")), ("Image", "programs"));
        let files = folder.files(Board::Generic, Some("tree"), "script maxcpus=1").unwrap();
        let menu = format!("{menu}    fdt /board.dtb\n    append script maxcpus=1\n");
        assert_eq!(text(&files, "extlinux/extlinux.conf"), menu);
        assert_eq!(files.iter().find(|file| file.path == "board.dtb").unwrap().contents, tree());
        let parts =
            Parts { kernel: &folder.0.join("kernel"), initrd: None, tree: None, firmware: Some(&folder.0), append: "" };
        for board in [Board::Generic, Board::Uefi] {
            let refused = board.files(&parts).unwrap_err().to_string();
            assert!(refused.contains("leave --firmware out"), "{refused}");
        }
    }

    #[test]
    fn a_volume_for_uefi_has_the_application_and_what_its_stub_reads() {
        let folder = Folder::new("uefi");
        let files = folder.files(Board::Uefi, None, " ").unwrap();
        assert_eq!(paths(&files), ["EFI/BOOT/BOOTAA64.EFI", "initrd.cpio"]);
        assert_eq!(text(&files, "EFI/BOOT/BOOTAA64.EFI"), "Image");
        let files = folder.files(Board::Uefi, None, "script maxcpus=1").unwrap();
        assert_eq!(text(&files, "cmdline.txt"), "script maxcpus=1");
        assert!(folder.refusal(Board::Uefi, Some("tree"), "").contains("leave --dtb out"));
        let tables = Board::ALL.map(Board::table);
        assert_eq!(tables, [Table::Mbr, Table::Mbr, Table::Mbr, Table::Mbr, Table::Gpt]);
    }

    /// The loader has no programs.
    #[test]
    fn a_volume_without_an_initrd_names_none() {
        let folder = Folder::new("loader");
        let kernel = &folder.0.join("kernel");
        let parts = Parts { kernel, initrd: None, tree: None, firmware: None, append: "" };
        let files = Board::Generic.files(&parts).unwrap();
        assert_eq!(paths(&files), ["granule.img", "extlinux/extlinux.conf"]);
        assert_eq!(text(&files, "extlinux/extlinux.conf"), "default granule\nlabel granule\n    linux /granule.img\n");
        assert_eq!(config(&parts), "arm_64bit=1\nenable_uart=1\nkernel=granule.img\ncmdline=cmdline.txt\n");
        assert_eq!(paths(&Board::Uefi.files(&parts).unwrap()), ["EFI/BOOT/BOOTAA64.EFI"]);
    }

    #[test]
    fn each_missing_file_of_the_firmware_is_named_with_its_vendors_place() {
        let folder = Folder::new("firmware");
        let boards: [(Board, &[&str]); 3] = [
            (
                Board::Rpi3,
                &["bootcode.bin", "start.elf", "fixup.dat", "bcm2710-rpi-3-b.dtb", "bcm2710-rpi-3-b-plus.dtb"][..],
            ),
            (Board::Rpi4, &["start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"]),
            (Board::Rpi5, &["bcm2712-rpi-5-b.dtb", "bcm2712d0-rpi-5-b.dtb"]),
        ];
        for (board, needed) in boards {
            for (index, name) in needed.iter().enumerate() {
                let refused = folder.refusal(board, None, "");
                let place =
                    |name: &str| format!("\n  {name}: https://github.com/raspberrypi/firmware/blob/master/boot/{name}");
                assert!(needed[index..].iter().all(|name| refused.contains(&place(name))), "{refused}");
                assert!(!needed[..index].iter().any(|name| refused.contains(&place(name))), "{refused}");
                folder.has(name, name.as_bytes());
            }
            let files = folder.files(board, None, "count").unwrap();
            assert!(needed.iter().all(|name| text(&files, name) == *name), "{:?}", paths(&files));
            assert!(paths(&files).contains(&"extlinux/extlinux.conf"));
            assert_eq!(text(&files, "cmdline.txt"), "count\n");
            let config = "arm_64bit=1\nenable_uart=1\nkernel=granule.img\ninitramfs initrd.cpio followkernel\n\
                          cmdline=cmdline.txt\n";
            assert_eq!(text(&files, "config.txt"), config);
            let files = folder.files(board, Some("tree"), "").unwrap();
            assert_eq!(text(&files, "config.txt"), format!("{config}device_tree=board.dtb\n"));
            let vendors_tree = paths(&files).into_iter().find(|path| path.starts_with("bcm"));
            assert_eq!(vendors_tree, None, "a tree of one's own is in its place");
        }
        let kernel = &folder.0.join("kernel");
        let parts = Parts { kernel, initrd: None, tree: None, firmware: None, append: "" };
        let without = Board::Rpi4.files(&parts).unwrap_err();
        assert!(without.to_string().starts_with("rpi4: no --firmware DIR is given"), "{without}");
    }

    #[test]
    fn parts_that_are_missing_or_something_else_are_refused() {
        let folder = Folder::new("parts");
        let refused = |tree, append| folder.refusal(Board::Generic, tree, append);
        assert!(refused(Some("none"), "").contains("none is no device tree blob"));
        assert!(refused(Some("missing"), "").contains("cannot read the device tree"));
        folder.has("none", &vec![0; LARGEST_TREE + 1]);
        assert!(refused(Some("none"), "").contains("2097152 at most"));
        for append in ["a\nlinux /other", "${bootargs}", "é"] {
            assert!(refused(None, append).contains("--append has"), "{append:?}");
        }
        let long = "a".repeat(MAX_BOOTARGS + 1);
        assert!(folder.refusal(Board::Generic, None, &long).contains("has 2049 bytes"));
        assert!(folder.files(Board::Uefi, None, &format!(" {} ", "a".repeat(MAX_BOOTARGS))).is_ok());
        let stub = include_str!("../../../boot/uefi/src/options.rs");
        assert!(stub.contains(&format!("const MAX_BOOTARGS: usize = {MAX_BOOTARGS};")));
        folder.has("initrd", b"");
        assert!(refused(None, "").contains("is empty"));
        fs::remove_file(folder.0.join("initrd")).unwrap();
        assert!(refused(None, "").contains("cannot read the initrd"));
        fs::remove_file(folder.0.join("kernel")).unwrap();
        assert!(refused(None, "").contains("cannot read the kernel"));
    }

    #[test]
    fn boards_have_their_names() {
        for board in Board::ALL {
            assert_eq!(Board::named(board.name()).unwrap(), board);
        }
        let refused = Board::named("rpi6").unwrap_err().to_string();
        assert!(refused.contains("generic, rpi3, rpi4, rpi5, uefi"), "{refused}");
    }
}
