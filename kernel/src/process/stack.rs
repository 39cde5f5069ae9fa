//! What a new program finds on its stack: argc, argv, envp and the auxiliary vector, and behind them the strings.
//!
//! ```text
//!   SP ->  argc
//!          argv[0] ... argv[argc - 1], 0
//!          envp[0] ..., 0
//!          auxiliary vector: pairs, AT_NULL last
//!          (up to 15 bytes of nothing)
//!          16 random bytes, "aarch64"
//!          the strings of argv and envp, the program's path
//!   top -> (8 bytes of zero)
//! ```
//! As Linux lays it out (`create_elf_tables`), in a buffer here; who calls copies it to where it belongs.

use alloc::vec::Vec;

use granule_abi::Errno;
use granule_abi::process::{AT_EXECFN, AT_NULL, AT_PLATFORM, AT_RANDOM};

/// Bytes that the strings of a program may have together.
pub const STRINGS: usize = 128 << 10;
/// Arguments, and variables of the environment, that a program may have.
pub const WORDS: usize = 4096;

const PLATFORM: &[u8] = b"aarch64\0";
const RANDOM: usize = 16;
/// SP is a multiple of this at a program's first instruction.
const ALIGN: usize = 16;
/// What is left free at the top.
const TOP: usize = 8;

/// The words that a program starts with. They are copies: the program before may be gone when they are used.
#[derive(Debug, Default)]
pub struct Words {
    /// Argument after argument, then the environment, then the path: each with a final zero.
    strings: Vec<u8>,
    arguments: usize,
    environment: usize,
}

impl Words {
    /// No words.
    pub const fn new() -> Self {
        Self { strings: Vec::new(), arguments: 0, environment: 0 }
    }

    /// Adds an argument. All of them come before the environment.
    ///
    /// # Errors
    /// `E2BIG`, `ENOMEM`.
    pub fn argument(&mut self, word: &[u8]) -> Result<(), Errno> {
        debug_assert_eq!(self.environment, 0, "arguments come first");
        self.push(word)?;
        self.arguments += 1;
        Ok(())
    }

    /// Adds a variable of the environment.
    ///
    /// # Errors
    /// `E2BIG`, `ENOMEM`.
    pub fn variable(&mut self, word: &[u8]) -> Result<(), Errno> {
        self.push(word)?;
        self.environment += 1;
        Ok(())
    }

    /// How many arguments.
    pub const fn arguments(&self) -> usize {
        self.arguments
    }

    /// Bytes that may still be added, the final zero included.
    pub const fn room(&self) -> usize {
        STRINGS - self.strings.len()
    }

    fn push(&mut self, word: &[u8]) -> Result<(), Errno> {
        if word.len() >= self.room() || self.arguments + self.environment == WORDS {
            return Err(Errno::E2BIG);
        }
        self.strings.try_reserve(word.len() + 1).map_err(|_| Errno::ENOMEM)?;
        self.strings.extend_from_slice(word);
        self.strings.extend_from_slice(&[0]);
        Ok(())
    }
}

/// What is to be written, and where.
#[derive(Debug)]
pub struct Image {
    /// Where the first byte goes: SP.
    pub pointer: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Image {
    /// The stack that ends at `top`, for a program with this path. `auxiliary` has the pairs that do not point into the
    /// stack.
    ///
    /// # Errors
    /// `E2BIG`, `ENOMEM`.
    #[inline(never)]
    pub fn new(
        top: u64,
        mut words: Words,
        path: &[u8],
        auxiliary: &[(u64, u64)],
        random: [u8; RANDOM],
    ) -> Result<Self, Errno> {
        let path_at = words.strings.len();
        words.push(path)?;
        let pairs = auxiliary.len() + 4;
        let vectors = 8 * (1 + words.arguments + 1 + words.environment + 1 + 2 * pairs);
        let size = (vectors + RANDOM + PLATFORM.len() + words.strings.len() + TOP).next_multiple_of(ALIGN);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(size, 0);

        let pointer = top - size as u64;
        let strings_at = size - TOP - words.strings.len();
        let random_at = strings_at - PLATFORM.len() - RANDOM;
        let address = |offset: usize| pointer + offset as u64;
        bytes[strings_at..size - TOP].copy_from_slice(&words.strings);
        bytes[random_at..random_at + RANDOM].copy_from_slice(&random);
        bytes[random_at + RANDOM..strings_at].copy_from_slice(PLATFORM);

        let mut place = bytes.chunks_exact_mut(8);
        let mut put = |value: u64| {
            if let Some(place) = place.next() {
                place.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(words.arguments as u64);
        let mut at = strings_at;
        let mut strings = words.strings.split_inclusive(|&byte| byte == 0);
        for count in [words.arguments, words.environment] {
            for string in strings.by_ref().take(count) {
                put(address(at));
                at += string.len();
            }
            put(0);
        }
        let own = [
            (AT_RANDOM, address(random_at)),
            (AT_PLATFORM, address(random_at + RANDOM)),
            (AT_EXECFN, address(strings_at + path_at)),
            (AT_NULL, 0),
        ];
        for (key, value) in auxiliary.iter().copied().chain(own) {
            put(key);
            put(value);
        }
        Ok(Self { pointer, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::string::String;
    use std::vec::Vec;

    use granule_abi::Errno;
    use granule_abi::process::{AT_EXECFN, AT_PAGESZ, AT_PLATFORM, AT_RANDOM};

    use super::{Image, STRINGS, WORDS, Words};

    /// Reads an image as a program does.
    struct Reader<'a>(&'a Image);

    impl Reader<'_> {
        fn bytes(&self, address: u64) -> &[u8] {
            &self.0.bytes[(address - self.0.pointer) as usize..]
        }

        fn quad(&self, index: usize) -> u64 {
            u64::from_le_bytes(self.0.bytes[8 * index..8 * index + 8].try_into().unwrap())
        }

        fn string(&self, address: u64) -> String {
            let bytes = self.bytes(address);
            let end = bytes.iter().position(|&byte| byte == 0).unwrap();
            String::from_utf8(bytes[..end].to_vec()).unwrap()
        }

        /// The strings of the array at this word, and the word behind its zero.
        fn strings(&self, mut at: usize) -> (Vec<String>, usize) {
            let mut strings = Vec::new();
            while self.quad(at) != 0 {
                strings.extend([self.string(self.quad(at))]);
                at += 1;
            }
            (strings, at + 1)
        }
    }

    fn words(arguments: &[&str], environment: &[&str]) -> Words {
        let mut words = Words::new();
        arguments.iter().for_each(|word| words.argument(word.as_bytes()).unwrap());
        environment.iter().for_each(|word| words.variable(word.as_bytes()).unwrap());
        words
    }

    #[test]
    fn a_program_finds_what_it_was_given() {
        let top = 0xffff_ffff_f000;
        let random = *b"sixteen bytes...";
        for extra in 0..20 {
            let long = "x".repeat(extra);
            let given = words(&["hello", &long, ""], &["HOME=/", "A="]);
            let image = Image::new(top, given, b"/bin/hello", &[(AT_PAGESZ, 4096)], random).unwrap();
            assert_eq!(image.pointer % 16, 0);
            assert_eq!(image.pointer + image.bytes.len() as u64, top);
            assert_eq!(image.bytes[image.bytes.len() - 8..], [0; 8]);
            let reader = Reader(&image);
            assert_eq!(reader.quad(0), 3);
            let (arguments, at) = reader.strings(1);
            assert_eq!(arguments, ["hello", &long, ""]);
            let (environment, mut at) = reader.strings(at);
            assert_eq!(environment, ["HOME=/", "A="]);
            let mut auxiliary = BTreeMap::new();
            while reader.quad(at) != 0 {
                auxiliary.extend([(reader.quad(at), reader.quad(at + 1))]);
                at += 2;
            }
            assert_eq!(reader.quad(at + 1), 0);
            assert_eq!(auxiliary[&AT_PAGESZ], 4096);
            assert_eq!(reader.bytes(auxiliary[&AT_RANDOM])[..16], random);
            assert_eq!(reader.string(auxiliary[&AT_PLATFORM]), "aarch64");
            assert_eq!(reader.string(auxiliary[&AT_EXECFN]), "/bin/hello");
        }
    }

    #[test]
    fn too_many_words_are_refused() {
        let mut words = Words::new();
        assert_eq!(words.argument(&[b'x'; STRINGS]), Err(Errno::E2BIG));
        words.argument(&[b'x'; STRINGS - 1]).unwrap();
        assert_eq!((words.room(), words.argument(b"")), (0, Err(Errno::E2BIG)));
        let mut words = Words::new();
        (0..WORDS).for_each(|_| words.argument(b"").unwrap());
        assert_eq!(words.variable(b""), Err(Errno::E2BIG));
        assert_eq!(words.arguments(), WORDS);
    }
}
