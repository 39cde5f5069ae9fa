//! Tables of calls: each path with each call, of each kind of file that it may lead to.

use granule_user::prelude::*;

use super::{call, mkdir, open, stat, symlink, unlink};

/// Paths in a directory that [`prepare`] fills.
const PATHS: [&CStr; 40] = [
    c"f",
    c"h",
    c"d",
    c"n",
    c"n/f",
    c"n/d",
    c"l",
    c"k",
    c"x",
    c"o",
    c"q",
    c"f/",
    c"d/",
    c"d//",
    c"n/",
    c"q/",
    c"k/",
    c"l/",
    c"x/",
    c"o/",
    c".",
    c"..",
    c"n/.",
    c"n/..",
    c"n/d/..",
    c"/",
    c"//",
    c"",
    c"f/x",
    c"f/.",
    c"q/x",
    c"l/x",
    c"k/f",
    c"k/q",
    c"./d",
    c"y",
    c"z",
    c"/proc",
    c"/proc/self/maps",
    LONG,
];
const LONG: &CStr = c"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

/// Removes all that the working directory has.
fn clear() {
    let own = open(c".", O_RDONLY).expect("the directory");
    let listed = super::list(own, 4096, |name| {
        let mut room = [0; 256];
        room[..name.len()].copy_from_slice(name);
        let name = CStr::from_bytes_until_nul(&room).expect("a name");
        if !matches!(name.to_bytes(), b"." | b"..") && unlink(name, 0) == Err(EISDIR) {
            equal("entered", super::go(name), Ok(0));
            clear();
            equal("left", (super::go(c".."), unlink(name, AT_REMOVEDIR)), (Ok(0), Ok(0)));
        }
    });
    equal("cleared", (listed, call(CLOSE, [own])), (Ok(0), Ok(0)));
}

/// A file with two names, directories, and links: to a file, to a directory, to nothing, to itself, to what is not there
/// and would be, and to a name with a slash.
fn prepare() {
    clear();
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
            c"f", c"h", c"d", c"n", c"n/f", c"n/d", c"l", c"k", c"x", c"o", c"q", c"y", c"z", c"n/q", c"n/x", c"d/f",
            c"d/d", c"d/n", c"r",
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
        let mut tree = Sum(0);
        if answer.is_ok() {
            tree.add_tree();
            self.sum.add(tree.0);
        }
        if self.prints {
            match answer {
                Ok(_) => println!("  Ok {:x}", tree.0),
                Err(error) => println!("  {}", error.name()),
            }
        }
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
    clear();
}

fn is_from_root(path: &CStr) -> bool {
    path.to_bytes().starts_with(b"/")
}

fn renames(table: &mut Table, path: &CStr) {
    // The root may be on another file system.
    for flags in (0..4).filter(|_| !is_from_root(path)) {
        for new in PATHS.into_iter().filter(|new| !is_from_root(new)) {
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
                of_file = call(FCNTL, [file, F_GETFL.into(), 0]).unwrap_or(77) << 32
                    | u64::from(super::fstat(file).st_mode & S_IFMT);
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
        if !is_from_root(path) {
            table.ask(|| call(LINKAT, [HERE, at, HERE, c"r".as_ptr() as u64, flags.into()]));
        }
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
    if !is_from_root(path) {
        table.ask(|| call(RENAMEAT, [HERE, at, HERE, c"r".as_ptr() as u64]));
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
    if !is_from_root(path) {
        table.ask(|| call(RENAMEAT, [77, at, HERE, c"r".as_ptr() as u64]));
    }
    table.ask(|| call(MKDIRAT, [77, at, 0o777]));
}

/// The sums of each path's answers on Linux 7.2.13.
const RENAMES: [u64; 40] = [
    0xb0de_72c9,
    0x1541_2c77,
    0xd4d8_0d8c,
    0xa21e_a684,
    0xbbdd_7b72,
    0xf94c_177b,
    0xb964_c65b,
    0x94c8_0fd5,
    0xef0c_77a5,
    0xe592_df4b,
    0x401c_7b41,
    0x4464_7771,
    0xd4d8_0d8c,
    0xd4d8_0d8c,
    0xa21e_a684,
    0x401c_7b41,
    0x4464_7771,
    0x4464_7771,
    0x4464_7771,
    0x4464_7771,
    0xc745_9341,
    0xc745_9341,
    0xc745_9341,
    0xc745_9341,
    0xc745_9341,
    0x0000_0000,
    0x0000_0000,
    0x17ff_f813,
    0x8a4c_6433,
    0x8a4c_6433,
    0x17ff_f813,
    0x8a4c_6433,
    0xbbdd_7b72,
    0x401c_7b41,
    0xd4d8_0d8c,
    0xb289_9323,
    0x255b_467e,
    0x0000_0000,
    0x0000_0000,
    0x1462_ca44,
];
const OPENS: [u64; 40] = [
    0xf84d_7ed3,
    0xf84d_7ed3,
    0x1134_bce7,
    0x1134_bce7,
    0x6052_6a75,
    0x1134_bce7,
    0x3fe5_52ff,
    0x31ad_c040,
    0xc544_3bb9,
    0xd688_141d,
    0x9515_f675,
    0x1d4f_e5ab,
    0x243f_9580,
    0x243f_9580,
    0x243f_9580,
    0x735d_d5e2,
    0x243f_9580,
    0x1d4f_e5ab,
    0x735d_d5e2,
    0xa7fe_a7d6,
    0x1134_bce7,
    0x1134_bce7,
    0x1134_bce7,
    0x1134_bce7,
    0x1134_bce7,
    0x1134_bce7,
    0x1134_bce7,
    0xffa1_d9a5,
    0xa8e7_3fc2,
    0xa8e7_3fc2,
    0xffa1_d9a5,
    0xa8e7_3fc2,
    0x6052_6a75,
    0xda94_eeb2,
    0x1134_bce7,
    0xe82a_600b,
    0x31ad_c040,
    0xa3f7_ab67,
    0x6052_6a75,
    0x8107_76c7,
];
const OTHERS: [u64; 40] = [
    0x1c7c_8a64,
    0x2c3b_c2f8,
    0x1e7d_220d,
    0x5ca0_3bad,
    0x7282_273c,
    0x913a_24ae,
    0xeafe_009e,
    0x0fb6_054c,
    0xd923_d892,
    0x359a_5622,
    0xc75b_ee12,
    0xf3ee_03de,
    0x3253_6f5f,
    0x13a6_8498,
    0xbc3d_7e12,
    0xf5dc_4b33,
    0x9be9_fe58,
    0xf3ee_03de,
    0x5d74_f67f,
    0xa72d_e466,
    0xd640_77ab,
    0xb225_f352,
    0xf2bd_058f,
    0x5635_cdcb,
    0x5836_c29b,
    0xaebc_a834,
    0xdb8c_d3d2,
    0x5cd7_06d3,
    0xbb2c_ed13,
    0xbb2c_ed13,
    0xe975_f624,
    0xbb2c_ed13,
    0x7282_273c,
    0xcc0c_8fc4,
    0x13a6_8498,
    0xf933_e5ae,
    0x7870_3088,
    0xb690_9833,
    0x1d0f_ced7,
    0x45a5_ff81,
];
