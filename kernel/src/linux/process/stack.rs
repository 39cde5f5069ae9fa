//! The first stack of a program: argc, argv, envp and the auxiliary vector, and above them the strings.
//!
//! ```text
//!   SP ->  argc
//!          argv[0] ... argv[argc - 1], 0
//!          envp[0] ..., 0
//!          auxiliary vector: pairs, AT_NULL last
//!          (up to 15 bytes of nothing)
//!          16 random bytes, "aarch64"
//!          (up to a page of nothing)
//!          the strings of argv and envp, the program's path
//!   top -> (8 bytes of zero)
//! ```
//! The layout (`create_elf_tables`) and the order (`do_execveat_common`) are Linux's: the path, the environment and the
//! arguments, each list from its last string to its first, are copied to the new stack as they are read; the vectors
//! are written after all strings. So the kernel keeps no copy: the only memory is the new program's.

use alloc::vec::Vec;

use granule_abi::Errno;
use granule_abi::process::{AT_EXECFN, AT_NULL, AT_PLATFORM, AT_RANDOM};

/// Bytes that one string may have, its final zero included (`MAX_ARG_STRLEN`).
pub const STRING: usize = 128 << 10;

const PLATFORM: &[u8] = b"aarch64\0";
const RANDOM: u64 = 16;
/// SP is a multiple of this at a program's first instruction.
const ALIGN: u64 = 16;
/// Bytes that stay free at the top.
const TOP: u64 = 8;
/// Bytes of a pointer.
const POINTER: u64 = 8;
/// Bytes that are read or written at once.
const PIECE: usize = 512;

/// The most bytes of the strings and the pointers to them, on a stack that may grow to `stack_limit` bytes: a quarter
/// of it, at most three quarters of 8 MiB, and 128 KiB in any case (`bprm_stack_limits`).
pub const fn argument_space(stack_limit: u64) -> u64 {
    const MOST: u64 = (8 << 20) / 4 * 3;
    const LEAST: u64 = 128 << 10;
    let quarter = stack_limit / 4;
    if quarter < LEAST {
        LEAST
    } else if quarter > MOST {
        MOST
    } else {
        quarter
    }
}

/// The most pointers that an argument list can have: the bound for a count of them.
pub const fn most_pointers(stack_limit: u64) -> usize {
    (argument_space(stack_limit) / POINTER) as usize
}

/// The memory in which a stack is built.
pub trait StackMemory {
    /// Writes at an address.
    ///
    /// # Errors
    /// `ENOMEM`, `EFAULT`.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Reads back what was written.
    ///
    /// # Errors
    /// As for [`Self::write`].
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno>;
}

/// The numbers of strings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringCounts {
    /// Of `argv`.
    pub arguments: usize,
    /// Of `envp`.
    pub environment: usize,
}

/// The strings of a new stack. They are added from the last one to the first, downwards from the top.
#[derive(Debug)]
pub struct Strings<M> {
    memory: M,
    counts: StringCounts,
    /// The lowest byte so far, and the lowest that there may be.
    start: u64,
    lowest: u64,
    end: u64,
    /// The bytes from `start` on that are not written yet: the last `gathered` of the buffer.
    buffer: [u8; PIECE],
    gathered: usize,
}

impl<M: StackMemory> Strings<M> {
    /// No strings yet, below `top`, of which `stack_limit` bytes may be used by the stack.
    ///
    /// # Errors
    /// `E2BIG`: the pointers alone are too many.
    pub fn new(memory: M, top: u64, stack_limit: u64, counts: StringCounts) -> Result<Self, Errno> {
        // An empty list of arguments gets an empty string.
        let pointers = counts.arguments.max(1).checked_add(counts.environment).ok_or(Errno::E2BIG)? as u64;
        let pointers = pointers.checked_mul(POINTER).ok_or(Errno::E2BIG)?;
        let room = argument_space(stack_limit).checked_sub(pointers).filter(|&room| room != 0).ok_or(Errno::E2BIG)?;
        let end = top.checked_sub(TOP).ok_or(Errno::E2BIG)?;
        let lowest = end.checked_sub(room).ok_or(Errno::E2BIG)?;
        Ok(Self { memory, counts, start: end, lowest, end, buffer: [0; PIECE], gathered: 0 })
    }

    /// Adds the string that ends before the last one that was added. `bytes` are without its final zero.
    ///
    /// # Errors
    /// `E2BIG`, and those of the memory.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.reserve(bytes.len().checked_add(1).ok_or(Errno::E2BIG)?)?;
        self.prepend(&[0])?;
        self.prepend(bytes)
    }

    /// Adds a string of `length` bytes, its final zero included, which `read` copies piece by piece, by the piece's
    /// offset in the string. The last byte is zero, whatever `read` copies.
    ///
    /// # Errors
    /// `E2BIG`, and those of `read` and of the memory.
    pub fn add_with(
        &mut self,
        length: usize,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.reserve(length)?;
        self.prepend(&[0])?;
        let mut left = length.saturating_sub(1);
        let mut piece = [0; PIECE];
        while left != 0 {
            let bytes = left.min(PIECE);
            left -= bytes;
            let Some(piece) = piece.get_mut(..bytes) else { break };
            read(left, piece)?;
            self.prepend(piece)?;
        }
        Ok(())
    }

    /// Has `interpreter` run the program that the arguments are for, which is the script `path`: it and its `argument` come
    /// first, and the path in place of the script's own name for itself.
    ///
    /// # Errors
    /// As [`Self::add`].
    #[inline(never)]
    pub fn interpret(&mut self, path: &[u8], argument: Option<&[u8]>, interpreter: &[u8]) -> Result<(), Errno> {
        self.name_program()?;
        self.flush()?;
        let mut scan = Scan::of(self.start, self.end);
        scan.skip(&mut self.memory)?;
        self.start = scan.at;
        self.add(path)?;
        for word in argument.into_iter().chain([interpreter]) {
            self.add(word)?;
            self.counts.arguments += 1;
        }
        Ok(())
    }

    /// Adds a first argument, if there is none: programs may rely on it (CVE-2021-4034).
    fn name_program(&mut self) -> Result<(), Errno> {
        if self.counts.arguments == 0 {
            self.add(b"")?;
            self.counts.arguments = 1;
        }
        Ok(())
    }

    /// Whether a string of this length may be added.
    fn reserve(&self, length: usize) -> Result<(), Errno> {
        let fits = self.start.checked_sub(length as u64).is_some_and(|start| start >= self.lowest);
        if length <= STRING && fits { Ok(()) } else { Err(Errno::E2BIG) }
    }

    /// Adds bytes below the others.
    fn prepend(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            if self.gathered == PIECE {
                self.flush()?;
            }
            let free = PIECE - self.gathered;
            let (rest, now) = bytes.split_at(bytes.len().saturating_sub(free));
            let place = self.buffer.get_mut(free - now.len()..free).ok_or(Errno::E2BIG)?;
            place.copy_from_slice(now);
            self.gathered += now.len();
            self.start -= now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let gathered = self.buffer.get(PIECE - self.gathered..).unwrap_or_default();
        self.memory.write(self.start, gathered)?;
        self.gathered = 0;
        Ok(())
    }

    /// Writes the vectors, for the program whose path was the first string, `below` bytes below the strings, less than
    /// a page; returns SP. `auxiliary` has the pairs that do not point into the stack.
    ///
    /// # Errors
    /// Those of the memory; `E2BIG`.
    #[inline(never)]
    pub fn finish(
        &mut self,
        path: &[u8],
        auxiliary: &[(u64, u64)],
        random: [u8; RANDOM as usize],
        below: u64,
    ) -> Result<u64, Errno> {
        self.name_program()?;
        self.flush()?;
        let StringCounts { arguments, environment } = self.counts;
        let random_at = self.start - below - PLATFORM.len() as u64 - RANDOM;
        self.memory.write(random_at, &random)?;
        self.memory.write(random_at + RANDOM, PLATFORM)?;
        let own = [
            (AT_RANDOM, random_at),
            (AT_PLATFORM, random_at + RANDOM),
            (AT_EXECFN, self.end - path.len() as u64 - 1),
            (AT_NULL, 0),
        ];
        let words = 3 + arguments + environment + 2 * (auxiliary.len() + own.len());
        let pointer = (random_at - POINTER * words as u64) & !(ALIGN - 1);

        let mut vectors = Vectors { at: pointer, words: heapless::Vec::new() };
        let mut scan = Scan::of(self.start, self.end);
        vectors.put(&mut self.memory, arguments as u64)?;
        for count in [arguments, environment] {
            for _ in 0..count {
                vectors.put(&mut self.memory, scan.at)?;
                scan.skip(&mut self.memory)?;
            }
            vectors.put(&mut self.memory, 0)?;
        }
        for (key, value) in auxiliary.iter().copied().chain(own) {
            vectors.put(&mut self.memory, key)?;
            vectors.put(&mut self.memory, value)?;
        }
        vectors.flush(&mut self.memory)?;
        Ok(pointer)
    }
}

/// Words that are not written yet.
struct Vectors {
    /// The address of the first of them.
    at: u64,
    words: heapless::Vec<u8, PIECE>,
}

impl Vectors {
    fn put(&mut self, memory: &mut impl StackMemory, word: u64) -> Result<(), Errno> {
        if self.words.is_full() {
            self.flush(memory)?;
        }
        self.words.extend_from_slice(&word.to_le_bytes()).map_err(|_| Errno::E2BIG)
    }

    fn flush(&mut self, memory: &mut impl StackMemory) -> Result<(), Errno> {
        memory.write(self.at, &self.words)?;
        self.at += self.words.len() as u64;
        self.words.clear();
        Ok(())
    }
}

/// Iterates over strings in memory.
struct Scan {
    /// Where the next string begins, and where all of them end.
    at: u64,
    end: u64,
    /// The bytes that were read from `at - used` on.
    buffer: [u8; PIECE],
    have: usize,
    used: usize,
}

impl Scan {
    const fn of(start: u64, end: u64) -> Self {
        Self { at: start, end, buffer: [0; PIECE], have: 0, used: 0 }
    }

    /// Advances to the next string, or to the end.
    fn skip(&mut self, memory: &mut impl StackMemory) -> Result<(), Errno> {
        loop {
            let rest = self.buffer.get(self.used..self.have).unwrap_or_default();
            let length = rest.iter().position(|&byte| byte == 0).map(|zero| zero + 1);
            let step = length.unwrap_or(rest.len());
            self.used += step;
            self.at += step as u64;
            if length.is_some() || self.at >= self.end {
                return Ok(());
            }
            self.have = (self.end - self.at).min(PIECE as u64) as usize;
            self.used = 0;
            memory.read(self.at, self.buffer.get_mut(..self.have).unwrap_or_default())?;
        }
    }
}

/// The words of a program that the kernel starts.
#[derive(Debug, Default)]
pub struct Words {
    /// Argument after argument, each with a final zero.
    strings: Vec<u8>,
    arguments: usize,
}

impl Words {
    /// No words.
    pub const fn new() -> Self {
        Self { strings: Vec::new(), arguments: 0 }
    }

    /// Adds an argument.
    ///
    /// # Errors
    /// `E2BIG`, `ENOMEM`.
    pub fn argument(&mut self, word: &[u8]) -> Result<(), Errno> {
        if word.len() >= STRING.saturating_sub(self.strings.len()) {
            return Err(Errno::E2BIG);
        }
        self.strings.try_reserve(word.len() + 1).map_err(|_| Errno::ENOMEM)?;
        self.strings.extend_from_slice(word);
        self.strings.extend_from_slice(&[0]);
        self.arguments += 1;
        Ok(())
    }

    /// Their number.
    pub const fn counts(&self) -> StringCounts {
        StringCounts { arguments: self.arguments, environment: 0 }
    }

    /// Adds all of them to a stack.
    ///
    /// # Errors
    /// Those of [`Strings::add`].
    pub fn add_to<M: StackMemory>(&self, strings: &mut Strings<M>) -> Result<(), Errno> {
        let words = self.strings.strip_suffix(&[0]).unwrap_or_default();
        let words = words.rsplit(|&byte| byte == 0).take(self.arguments);
        words.into_iter().try_for_each(|word| strings.add(word))
    }
}

#[cfg(test)]
mod tests;
