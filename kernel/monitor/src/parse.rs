//! Words of a monitor line, and what they mean: numbers, addresses, keywords.
//!
//! Nothing here guesses. A word that is not exactly what a command takes is an [`ArgumentError`] that holds the word,
//! what it was to be, and what would have been allowed; nothing here panics, whatever is typed.
//!
//! | form | means |
//! |---|---|
//! | `4096` `4_096` `0x1000` `4K` `0x1K` | a number; `K`, `M`, `G` are the binary ones, `_` stands between digits |
//! | `0xffff800100001000` | an address |
//! | `$` | the address that the last `vmalloc` or `vmap` returned: a script cannot know it |
//! | `$+0x1000` `$+4K-8` | sums of those, without blanks |

use core::fmt;
use core::ops::RangeInclusive;
use core::str::SplitAsciiWhitespace;

use granule_arch::addr::VirtAddr;

use granule::suggest::suggest;

/// Why a word is no number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NumberError {
    /// Nothing where a number was to be: no digits at all, or none after `0x`, `+` or `-`.
    #[error("a digit is missing")]
    NoDigits,
    /// A character that is no digit of the number's base.
    #[error("unexpected `{0}`; numbers are decimal or 0x hexadecimal, `_` between digits, K, M or G at the end")]
    NotADigit(char),
    /// Hexadecimal digits without `0x`.
    #[error("hexadecimal numbers start with 0x")]
    NoPrefix,
    /// More than 64 bits.
    #[error("it does not fit 64 bits")]
    TooLarge,
    /// `$` before anything was allocated.
    #[error("$ is the address of the last vmalloc, and there was none")]
    NothingAllocated,
}

/// Parses one number: decimal or `0x` hexadecimal, `_` between digits, a binary suffix `K`, `M` or `G` of either case.
pub(super) fn number(word: &str) -> Result<u64, NumberError> {
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K' | b'k') => (&word[..word.len() - 1], 10),
        Some(b'M' | b'm') => (&word[..word.len() - 1], 20),
        Some(b'G' | b'g') => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    let prefixed = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let base = if prefixed.is_some() { 16 } else { 10 };
    let value = whole(prefixed.unwrap_or(digits), base).map_err(|error| {
        let hexadecimal = base == 10 && whole(digits, 16).is_ok();
        if error != NumberError::TooLarge && hexadecimal { NumberError::NoPrefix } else { error }
    })?;
    value.checked_mul(1 << shift).ok_or(NumberError::TooLarge)
}

/// The digits of a number in `base`, nothing else but underscores between them.
fn whole(digits: &str, base: u32) -> Result<u64, NumberError> {
    let mut value = 0_u64;
    let mut between = false;
    for character in digits.chars() {
        if character == '_' && between {
            between = false;
            continue;
        }
        let digit = character.to_digit(base).ok_or(NumberError::NotADigit(character))?;
        value = value
            .checked_mul(u64::from(base))
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(NumberError::TooLarge)?;
        between = true;
    }
    if between { Ok(value) } else { Err(NumberError::NoDigits) }
}

/// Parses a sum of numbers and `$`, which is `last`. Wraps nowhere: a sum that leaves 64 bits is an error.
pub(super) fn sum(word: &str, last: Option<VirtAddr>) -> Result<u64, NumberError> {
    let mut total = 0_u64;
    let mut rest = word;
    let mut sign = '+';
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let term = match &rest[..end] {
            "$" => last.ok_or(NumberError::NothingAllocated)?.0,
            term => number(term)?,
        };
        total =
            if sign == '+' { total.checked_add(term) } else { total.checked_sub(term) }.ok_or(NumberError::TooLarge)?;
        let Some(next) = rest[end..].chars().next() else { return Ok(total) };
        sign = next;
        rest = &rest[end + 1..];
    }
}

/// One of the fixed words that a command takes, and what the command makes of it.
pub(super) type Keyword<T> = (&'static str, T);

/// Why the words of a line are not what its command takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ArgumentError<'a> {
    /// The line ended before this argument.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A word after the last argument.
    #[error("`{0}` is one argument too many")]
    Extra(&'a str),
    /// A word that is no number.
    #[error("{name}: `{word}` is no number: {error}")]
    Number {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The word that was typed.
        word: &'a str,
        /// Why it is no number.
        error: NumberError,
    },
    /// A number outside what the command takes.
    #[error("{name}: {value} is out of range, {first} to {last} is allowed")]
    OutOfRange {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The number that was typed.
        value: u64,
        /// The lowest number allowed.
        first: u64,
        /// The highest number allowed.
        last: u64,
    },
    /// A number that does not fit the access it is for.
    #[error("{name}: {value:#x} does not fit {bytes} bytes")]
    TooWide {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The number that was typed.
        value: u64,
        /// Bytes that are accessed.
        bytes: u32,
    },
    /// A count that goes past the last address.
    #[error("{name}: that many from {start} on run past the last address")]
    Wraps {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The first address.
        start: VirtAddr,
    },
    /// A range that ends where it starts, or before.
    #[error("{name}: the range ends at {end}, which is not above its start {start}")]
    Backwards {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The start.
        start: VirtAddr,
        /// The end that was typed.
        end: VirtAddr,
    },
    /// A word that is none of the keywords.
    #[error("{name}: `{word}` is none of {allowed}{}", DidYouMean(*.nearest))]
    Keyword {
        /// The argument, as the usage line calls it.
        name: &'static str,
        /// The word that was typed.
        word: &'a str,
        /// The keywords, as the usage line writes them.
        allowed: &'static str,
        /// The keyword that was probably meant.
        nearest: Option<&'static str>,
    },
}

/// ` (did you mean …?)`, or nothing where no name is near.
pub(super) struct DidYouMean<'a>(pub(super) Option<&'a str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(f, "; did you mean `{name}`?"))
    }
}

/// The words after a command's name. Each method takes the next one; [`Args::finish`] makes sure that none is left.
#[derive(Clone)]
pub(super) struct Args<'a> {
    words: SplitAsciiWhitespace<'a>,
    last: Option<VirtAddr>,
}

impl<'a> Args<'a> {
    /// The words of `line`, in which `$` is `last`.
    pub(super) fn new(line: &'a str, last: Option<VirtAddr>) -> Self {
        Self { words: line.split_ascii_whitespace(), last }
    }

    /// The next word, whatever it is.
    pub(super) fn word(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    /// The next word as a number of any size; `name` is what the usage line calls it.
    pub(super) fn value(&mut self, name: &'static str) -> Result<u64, ArgumentError<'a>> {
        let word = self.words.next().ok_or(ArgumentError::Missing(name))?;
        sum(word, self.last).map_err(|error| ArgumentError::Number { name, word, error })
    }

    /// The next word as an address. Whether anything is there is for the memory system to say.
    pub(super) fn address(&mut self, name: &'static str) -> Result<VirtAddr, ArgumentError<'a>> {
        self.value(name).map(VirtAddr)
    }

    /// The next word as an address, if there is one that is no option.
    pub(super) fn optional_address(&mut self, name: &'static str) -> Result<Option<VirtAddr>, ArgumentError<'a>> {
        let word = self.words.clone().next();
        if word.is_none_or(|word| word.starts_with("--")) { Ok(None) } else { self.address(name).map(Some) }
    }

    /// The next word as a number in `allowed`.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ArgumentError<'a>> {
        let value = self.value(name)?;
        if allowed.contains(&value) {
            return Ok(value);
        }
        Err(ArgumentError::OutOfRange { name, value, first: *allowed.start(), last: *allowed.end() })
    }

    /// The next word as one of `keywords`; `allowed` is how the usage line writes them.
    pub(super) fn keyword<T: Copy>(
        &mut self,
        name: &'static str,
        allowed: &'static str,
        keywords: &[Keyword<T>],
    ) -> Result<T, ArgumentError<'a>> {
        let word = self.words.next().ok_or(ArgumentError::Missing(name))?;
        lookup(word, keywords).ok_or_else(|| {
            let nearest = suggest(word, keywords.iter().map(|(keyword, _)| *keyword));
            ArgumentError::Keyword { name, word, allowed, nearest }
        })
    }

    /// Takes the next word if it is one of `keywords`, and leaves it where it is not.
    pub(super) fn optional_keyword<T: Copy>(&mut self, keywords: &[Keyword<T>]) -> Option<T> {
        let mut ahead = self.words.clone();
        let found = lookup(ahead.next()?, keywords)?;
        self.words = ahead;
        Some(found)
    }

    /// Whether no word is left.
    pub(super) fn is_empty(&self) -> bool {
        self.words.clone().next().is_none()
    }

    /// Refuses words that the command did not take.
    pub(super) fn finish(mut self) -> Result<(), ArgumentError<'a>> {
        self.words.next().map_or(Ok(()), |word| Err(ArgumentError::Extra(word)))
    }
}

fn lookup<T: Copy>(word: &str, keywords: &[Keyword<T>]) -> Option<T> {
    keywords.iter().find(|(keyword, _)| *keyword == word).map(|(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;
    use std::string::ToString;

    use granule_arch::addr::VirtAddr;
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::{Args, ArgumentError, NumberError, number, sum};

    #[test]
    fn numbers_in_each_form() {
        for (word, value) in [
            ("0", 0),
            ("4096", 4096),
            ("4_096", 4096),
            ("0x1000", 0x1000),
            ("0XFfFf_8001_0000_1000", 0xffff_8001_0000_1000),
            ("4K", 4096),
            ("2m", 2 << 20),
            ("1G", 1 << 30),
            ("0x10K", 0x4000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(number(word), Ok(value), "{word}");
        }
    }

    #[test]
    fn what_is_no_number_says_why() {
        for (word, error) in [
            ("", NumberError::NoDigits),
            ("0x", NumberError::NoDigits),
            ("K", NumberError::NoDigits),
            ("1_", NumberError::NoDigits),
            ("_1", NumberError::NotADigit('_')),
            ("1__0", NumberError::NotADigit('_')),
            ("12z", NumberError::NotADigit('z')),
            ("0xfz", NumberError::NotADigit('z')),
            ("ffff8000", NumberError::NoPrefix),
            ("-1", NumberError::NotADigit('-')),
            ("18446744073709551616", NumberError::TooLarge),
            ("0x1_0000_0000_0000_0000", NumberError::TooLarge),
            ("17179869184G", NumberError::TooLarge),
        ] {
            assert_eq!(number(word), Err(error), "{word}");
        }
    }

    #[test]
    fn sums_of_the_last_allocation() {
        let last = Some(VirtAddr(0xffff_8001_0000_1000));
        assert_eq!(sum("$", last), Ok(0xffff_8001_0000_1000));
        assert_eq!(sum("$+4K-8", last), Ok(0xffff_8001_0000_1ff8));
        assert_eq!(sum("1+2-3", None), Ok(0));
        assert_eq!(sum("$", None), Err(NumberError::NothingAllocated));
        assert_eq!(sum("1-2", None), Err(NumberError::TooLarge));
        assert_eq!(sum("0xffffffffffffffff+1", None), Err(NumberError::TooLarge));
        for word in ["$+", "+1", "-1", "1++1", "$$", ""] {
            assert!(sum(word, last).is_err(), "{word}");
        }
    }

    #[test]
    fn errors_name_the_argument_and_what_is_allowed() {
        let keywords = [("ro", 1), ("rw", 2), ("valid", 3)];
        let mut args = Args::new("valdi 99 0xzz", None);
        assert_eq!(
            args.keyword("CHANGE", "ro|rw|valid", &keywords).unwrap_err().to_string(),
            "CHANGE: `valdi` is none of ro|rw|valid; did you mean `valid`?"
        );
        assert_eq!(
            args.number("PAGES", 1..=16).unwrap_err().to_string(),
            "PAGES: 99 is out of range, 1 to 16 is allowed"
        );
        assert!(args.address("ADDR").unwrap_err().to_string().starts_with("ADDR: `0xzz` is no number: unexpected `z`"));
        assert_eq!(args.address("ADDR"), Err(ArgumentError::Missing("ADDR")));
        assert_eq!(Args::new("a b", None).finish(), Err(ArgumentError::Extra("a")));
    }

    #[test]
    fn an_optional_keyword_is_taken_only_if_it_is_one() {
        let mut args = Args::new("w 5", None);
        assert_eq!(args.optional_keyword(&[("b", 1), ("w", 4)]), Some(4));
        assert_eq!(args.optional_keyword(&[("b", 1), ("w", 4)]), None);
        assert_eq!(args.value("COUNT"), Ok(5));
        assert_eq!(args.finish(), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_printed_can_be_pasted_back(value: u64) {
            assert_eq!(number(&format!("{value}")), Ok(value));
            assert_eq!(number(&format!("{value:#x}")), Ok(value));
            assert_eq!(number(&format!("{value:#018x}")), Ok(value));
            assert_eq!(sum(&format!("{}", VirtAddr(value)), None), Ok(value));
        }

        #[test]
        fn any_words_give_a_value_or_an_error(line in "\\PC*", last in any::<Option<u64>>()) {
            let mut args = Args::new(&line, last.map(VirtAddr));
            while !args.is_empty() {
                let _ = args.value("X").map_err(|error| error.to_string());
            }
        }

        #[test]
        fn any_sum_gives_a_value_or_an_error(word in "[$+0-9a-fxXKMG_-]{0,24}", last in any::<Option<u64>>()) {
            let _ = sum(&word, last.map(VirtAddr));
        }
    }
}
