//! Tables of calls: each path with each call, of each kind of file that it may lead to.

use granule_user::prelude::*;

use super::{call, mkdir, open, stat, symlink, unlink};

/// Paths in a directory that [`prepare`] fills.
const PATHS: [&CStr; 40] = [
    c"f", c"h", c"d", c"n", c"n/f", c"n/d", c"l", c"k", c"x", c"o", c"q", c"f/", c"d/", c"d//", c"n/", c"q/", c"k/", c"l/",
    c"x/", c"o/", c".", c"..", c"n/.", c"n/..", c"n/d/..", c"/", c"//", c"", c"f/x", c"f/.", c"q/x", c"l/x", c"k/f",
    c"k/q", c"./d", c"y", c"z", c"/proc", c"/proc/self/maps", LONG,
];
const LONG: &CStr = c"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

/// A file with two names, directories, and links: to a file, to a directory, to nothing, to itself, to what is not there
/// and would be, and to a name with a slash.
fn prepare() {
    for path in [c"n/f", c"n/d/e", c"n/q", c"f", c"h", c"l", c"k", c"x", c"o", c"y", c"z", c"q", c"r", c"d/e", LONG] {
        if unlink(path, 0) == Err(EISDIR) {
            let _ = unlink(path, AT_REMOVEDIR);
        }
    }
    for path in [c"n/d", c"d/d", c"d/n/d", c"d/n", c"n/n", c"d/f", c"d", c"n"] {
        if unlink(path, AT_REMOVEDIR) == Err(ENOTDIR) {
            let _ = unlink(path, 0);
        }
    }
    let made = open(c"f", O_RDWR | O_CREAT).expect("a file");
    let _ = call(WRITE, [made, c"text".as_ptr() as u64, 4]);
    let _ = call(CLOSE, [made]);
    let _ = super::link(c"f", c"h");
    let _ = (mkdir(c"d"), mkdir(c"n"), mkdir(c"n/d"));
    let _ = open(c"n/f", O_RDWR | O_CREAT).map(|file| call(CLOSE, [file]));
    let _ = (symlink(c"f", c"l"), symlink(c"n", c"k"), symlink(c"q", c"x"), symlink(c"o", c"o"));
    let _ = (symlink(c"n/q", c"y"), symlink(c"d/", c"z"));
}

/// A sum of many numbers.
#[derive(Clone, Copy)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    }

    /// Adds what the tree is.
    fn add_tree(&mut self) {
        for path in [
            c"f", c"h", c"d", c"n", c"n/f", c"n/d", c"l", c"k", c"x", c"o", c"q", c"y", c"z", c"n/q", c"n/x", c"d/f", c"d/d",
            c"d/n", c"r",
        ] {
            match stat(path) {
                Ok(stat) => {
                    self.add(u64::from(stat.st_mode) << 32 | u64::from(stat.st_nlink));
                    self.add(stat.st_size as u64);
                }
                Err(error) => self.add(error as u64),
            }
        }
    }
}

/// Makes a call of a table, and adds its answer and its effect.
struct Table {
    prints: bool,
    is_fresh: bool,
    sum: Sum,
}

impl Table {
    fn ask(&mut self, make: impl FnOnce() -> Result<u64, Errno>) {
        if !self.is_fresh {
            prepare();
        }
        let answer = make();
        self.is_fresh = answer.is_err();
        self.sum.add(answer.map_or_else(|error| error as u64, |_| 0));
        let before = self.sum.0;
        if answer.is_ok() {
            self.sum.0 = 0;
            self.sum.add_tree();
        }
        if self.prints {
            match answer {
                Ok(_) => println!("  Ok {:x}", self.sum.0),
                Err(error) => println!("  {}", error.name()),
            }
        }
        let after = self.sum.0;
        self.sum.0 = before;
        self.sum.add(after);
    }
}

/// Asks one row of a table for each path; compares the sums.
fn rows(name: &str, prints: bool, linux: &[u64], mut row: impl FnMut(&mut Table, &CStr)) {
    for (index, path) in PATHS.into_iter().enumerate() {
        let mut table = Table { prints, is_fresh: false, sum: Sum(0) };
        if prints {
            println!("{name} {index} {}", path.to_str().unwrap_or_default());
        }
        row(&mut table, path);
        let sum = table.sum.0 as u32;
        if prints {
            println!("= {sum:#010x}");
        } else {
            equal((name, path), u64::from(sum), linux.get(index).copied().unwrap_or_default());
        }
    }
}

pub(crate) fn all(prints: bool) {
    rows("rename", prints, &RENAMES, renames);
    rows("open", prints, &OPENS, opens);
    rows("other", prints, &OTHERS, others);
    prepare();
    for path in [c"n/f", c"f", c"h", c"l", c"k", c"x", c"o", c"y", c"z"] {
        equal(path, unlink(path, 0), Ok(0));
    }
    for path in [c"n/d", c"n", c"d"] {
        equal(path, unlink(path, AT_REMOVEDIR), Ok(0));
    }
}

fn renames(table: &mut Table, path: &CStr) {
    for flags in 0..4 {
        for new in PATHS {
            table.ask(|| super::rename(path, new, flags));
        }
    }
}

fn opens(table: &mut Table, path: &CStr) {
    const BITS: [u32; 7] = [O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_TMPFILE & !O_DIRECTORY];
    for access in [O_RDONLY, O_WRONLY, O_RDWR] {
        for set in 0..1 << BITS.len() {
            let chosen = BITS.iter().enumerate().filter(|(bit, _)| set >> bit & 1 != 0);
            let flags = chosen.fold(access, |flags, (_, bit)| flags | bit);
            let mut of_file = 0;
            table.ask(|| {
                let file = open(path, flags)?;
                of_file = call(FCNTL, [file, F_GETFL.into(), 0]).unwrap_or(77) << 32 | u64::from(super::fstat(file).st_mode);
                // Another open changes nothing.
                call(CLOSE, [file])
            });
            table.sum.add(of_file);
        }
    }
}

fn others(table: &mut Table, path: &CStr) {
    let at = path.as_ptr() as u64;
    let (mut stat, mut words) = (Stat::default(), [0_u64; 32]);
    let to = words.as_mut_ptr() as u64;
    table.ask(|| mkdir(path));
    table.ask(|| unlink(path, 0));
    table.ask(|| unlink(path, AT_REMOVEDIR));
    table.ask(|| unlink(path, 1));
    table.ask(|| symlink(c"f", path));
    table.ask(|| symlink(path, c"r"));
    for flags in [0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW] {
        table.ask(|| call(LINKAT, [HERE, at, HERE, c"r".as_ptr() as u64, flags.into()]));
        table.ask(|| call(LINKAT, [HERE, c"f".as_ptr() as u64, HERE, at, flags.into()]));
        table.ask(|| call(NEWFSTATAT, [HERE, at, &raw mut stat as u64, flags.into()]));
        table.ask(|| call(STATX, [HERE, at, flags.into(), STATX_BASIC_STATS.into(), to]));
        table.ask(|| call(FCHOWNAT, [HERE, at, 0, 0, flags.into()]));
        table.ask(|| call(UTIMENSAT, [HERE, at, 0, flags.into()]));
        for mode in 0..9 {
            table.ask(|| call(FACCESSAT2, [HERE, at, mode, flags.into()]));
        }
    }
    for mode in 0..9 {
        table.ask(|| call(FACCESSAT, [HERE, at, mode]));
    }
    table.ask(|| call(READLINKAT, [HERE, at, to, 256]));
    table.ask(|| call(READLINKAT, [HERE, at, to, 0]));
    if !path.to_bytes().starts_with(b"/") {
        table.ask(|| call(FCHMODAT, [HERE, at, 0o750]));
    }
    table.ask(|| call(TRUNCATE, [at, 2]));
    table.ask(|| call(TRUNCATE, [at, u64::MAX]));
    table.ask(|| call(STATFS, [at, to]));
    table.ask(|| {
        let moved = super::go(path);
        let _ = super::go(c"/tmp/names");
        moved
    });
    table.ask(|| call(RENAMEAT, [77, at, HERE, c"r".as_ptr() as u64]));
    table.ask(|| call(MKDIRAT, [77, at, 0o777]));
}

const RENAMES: [u64; 40] = [0; 40];
const OPENS: [u64; 40] = [0; 40];
const OTHERS: [u64; 40] = [0; 40];
