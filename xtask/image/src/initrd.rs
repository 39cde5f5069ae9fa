//! The initrd: the programs of `user/`, in a cpio archive of the "new ASCII" form (cpio(5); Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Of each program only what is loaded goes in: symbols and debug information stay in cargo's output, for gdb.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cpio::newc;
use object::elf::{FileHeader64, PT_LOAD, SymbolSection};
use object::pod::bytes_of;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, U16, U64};

/// A regular file that everybody may read and execute.
const PROGRAM_MODE: u32 = 0o100_755;
/// A regular file without permission to execute it, for programs that try.
const PLAIN: (&str, u32, &[u8]) = ("plain", 0o100_644, b"a file that may not be executed\n");

/// Packs the programs whose sources lie in `sources`, as `output` has them, and the files in `scripts`.
///
/// # Errors
/// When one is not there, or is no program.
pub(crate) fn pack(sources: &Path, scripts: &Path, output: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in &names(sources)? {
        let path = output.join(name);
        let elf = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(name, PROGRAM_MODE, &loaded(&elf).with_context(|| path.display().to_string())?);
    }
    for (name, path) in entries(scripts)? {
        let contents = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.add(&name, PROGRAM_MODE, &contents);
    }
    let (name, mode, contents) = PLAIN;
    archive.add(name, mode, contents);
    Ok(archive.finish())
}

/// The programs whose sources lie in `sources`, sorted.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn names(sources: &Path) -> Result<Vec<String>> {
    let is_source = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    Ok(entries(sources)?.into_iter().filter(|(_, path)| is_source(path)).map(|(name, _)| name).collect())
}

/// The files in `folder`, each with its name but for the extension, sorted.
///
/// # Errors
/// When it cannot be read.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) {
            files.push((name.to_owned(), path));
        }
    }
    files.sort();
    Ok(files)
}

/// The file up to the last byte that is loaded, with a header that knows of no sections.
fn loaded(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let loads = header.program_headers(endian, elf)?.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
    // Zeros alone may have any offset.
    let loads = loads.filter(|segment| segment.p_filesz(endian) != 0);
    let end = loads.map(|segment| segment.p_offset(endian) + segment.p_filesz(endian)).max();
    let end = usize::try_from(end.context("nothing to load")?)?;
    ensure!(end <= elf.len(), "a segment ends behind the file");
    let mut header = *header;
    header.e_shoff = U64::new(endian, 0);
    header.e_shnum = U16::new(endian, 0);
    header.e_shstrndx = U16::new(endian, SymbolSection(0));
    let mut bytes = elf[..end].to_vec();
    bytes[..size_of_val(&header)].copy_from_slice(bytes_of(&header));
    Ok(bytes)
}

/// A cpio archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    /// Adds a file.
    pub fn add(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.files += 1;
        let header = newc::Builder::new(name).ino(self.files).mode(mode).nlink(1);
        let mut entry = header.write(&mut self.bytes, contents.len() as u32);
        entry.write_all(contents).and_then(|()| entry.finish()).expect("a vector takes what is written");
    }

    /// The archive, with the files of another one behind its own.
    pub fn before(self, other: &[u8]) -> Vec<u8> {
        [&self.bytes, other].concat()
    }

    /// The archive, with the entry that ends it.
    pub fn finish(self) -> Vec<u8> {
        newc::trailer(self.bytes).expect("a vector takes what is written")
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// As GNU cpio writes `printf abcde >f; echo f | cpio -o -H newc`.
    #[test]
    fn an_archive_is_laid_out_as_cpio_has_it() {
        let mut archive = Archive::default();
        archive.add("f", 0o100_644, b"abcde");
        let bytes = archive.finish();
        let text = str::from_utf8(&bytes).unwrap();
        assert!(text.starts_with("07070100000001000081a40000000000000000000000010000000000000005"), "{text:?}");
        assert_eq!(&text[94..126], "0000000200000000f\0abcde\0\0\x00070701");
        assert_eq!(text.len() % 4, 0);
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
