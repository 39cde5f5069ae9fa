//! An initrd that a test makes (cpio, newc), with the programs of packages and the libraries that they want.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cpio::newc;
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;

/// Entries, of which a later one with a name replaces an earlier one.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds a directory, with those that it is in.
    pub fn directory(&mut self, name: &str) {
        for (at, _) in name.match_indices('/').chain([(name.len(), "")]) {
            self.entries.entry(name[..at].to_owned()).or_insert((DIRECTORY, Vec::new()));
        }
    }

    /// Adds a file that may be executed, with the directories that it is in.
    pub fn file(&mut self, name: &str, bytes: &[u8]) {
        self.add(name, FILE, bytes);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.add(name, LINK, target.as_bytes());
    }

    /// Adds the device that Linux's first process wants.
    pub fn console(&mut self) {
        self.add("dev/console", CONSOLE, &[]);
    }

    fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.directory(folder);
        }
        self.entries.insert(name.to_owned(), (mode, bytes.to_vec()));
    }

    /// The archive's bytes.
    ///
    /// # Panics
    /// When a file is larger than the format can say.
    #[must_use]
    pub fn end(self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (name, (mode, bytes))) in (1..).zip(&self.entries) {
            let header = newc::Builder::new(name).ino(number).mode(*mode).nlink(1).rdev_major(5).rdev_minor(1);
            let mut entry = header.write(&mut archive, u32::try_from(bytes.len()).expect("a small file"));
            entry.write_all(bytes).and_then(|()| entry.finish()).expect("memory");
        }
        newc::trailer(archive).expect("memory")
    }

    /// Adds files and folders of unpacked packages, under their own paths, and the libraries that the programs among them
    /// want.
    ///
    /// # Errors
    /// Names what is not there.
    pub fn from_packages(&mut self, root: &Path, paths: &[&str]) -> Result<(), String> {
        let mut libraries = BTreeMap::new();
        for folder in ["lib", "usr/lib"] {
            visit(&root.join(folder), &mut |path| {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                // The first, in the order of paths, is the one for all.
                if name.contains(".so") {
                    libraries.entry(name).or_insert_with(|| path.to_owned());
                }
            })?;
        }
        let mut waiting = Vec::new();
        for path in paths {
            let before = waiting.len();
            visit(&root.join(path), &mut |path| waiting.push(path.to_owned()))?;
            if waiting.len() == before {
                return Err(format!("{} has no {path}", root.display()));
            }
        }
        let mut wanted = BTreeSet::new();
        while let Some(path) = waiting.pop() {
            let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.strip_prefix(root).map_err(|error| error.to_string())?;
            let found = |library: &str| libraries.get(library).ok_or_else(|| format!("no package has {library}"));
            let (linker, needed) = needed(&bytes);
            if let Some(linker) = linker.filter(|linker| wanted.insert(linker.clone())) {
                let path = found(linker.rsplit('/').next().unwrap_or_default())?;
                self.file(&merged(&linker), &fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?);
            }
            for library in needed {
                if wanted.insert(library.clone()) {
                    waiting.push(found(&library)?.clone());
                }
            }
            self.file(&merged(&name.to_string_lossy()), &bytes);
        }
        Ok(())
    }
}

/// A path below `usr`, where releases before have it in the root.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let is_beside = ["bin/", "lib/", "sbin/"].iter().any(|folder| path.starts_with(folder));
    format!("{}{path}", if is_beside { "usr/" } else { "" })
}

/// Calls `found` with a file, or those below a folder, in the order of their paths; links are followed. Nothing there is
/// no file.
fn visit(path: &Path, found: &mut dyn FnMut(&Path)) -> Result<(), String> {
    let text = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path)
            .map_err(text)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(text)?;
        entries.sort();
        return entries.iter().try_for_each(|entry| visit(entry, found));
    }
    if path.is_file() {
        found(path);
    }
    Ok(())
}

/// The path of the dynamic linker that a program asks for, and the names of the libraries that it, or a library, does.
fn needed(bytes: &[u8]) -> (Option<String>, Vec<String>) {
    let (mut linker, mut names) = (None, Vec::new());
    let Ok(file) = ElfFile64::<Endianness>::parse(bytes) else { return (linker, names) };
    let (header, endian) = (file.elf_header(), file.endian());
    let Ok(headers) = header.program_headers(endian, bytes) else { return (linker, names) };
    for program in headers {
        if let Ok(Some(path)) = program.interpreter(endian, bytes) {
            linker = Some(String::from_utf8_lossy(path).into_owned());
        }
    }
    let Ok(sections) = header.sections(endian, bytes) else { return (linker, names) };
    if let Ok(Some((dynamic, index))) = sections.dynamic(endian, bytes) {
        let strings = sections.strings(endian, bytes, index).unwrap_or_default();
        let asked = dynamic.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED);
        names.extend(
            asked
                .filter_map(|entry| entry.string(endian, strings).ok())
                .map(|name| String::from_utf8_lossy(name).into_owned()),
        );
    }
    (linker, names)
}
