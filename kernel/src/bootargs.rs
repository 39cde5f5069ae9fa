//! Boot arguments: `key` or `key=value`, separated by blanks, from `/chosen` `bootargs`.
//!
//! The reader of a key registers it in [`PARAMETERS`], with a line of help and a check of its value, next to the code
//! that reads it. [`check`] then finds what has no reader: an unknown key or a bad value is a warning with the nearest
//! known one, and the boot continues, since a kernel that stops at a typing error cannot be given the right word.
//!
//! Where a key is given twice, the last one counts, as in Linux.

use core::fmt::{self, Write};

use linkme::distributed_slice;
use spin::Once;

use crate::suggest::suggest;

/// Every key that has a reader.
#[distributed_slice]
pub static PARAMETERS: [Parameter];

/// A key and the values that may follow it.
#[derive(Clone, Copy)]
pub struct Parameter {
    /// The key, at most 32 letters.
    pub name: &'static str,
    /// One line for `help`.
    pub help: &'static str,
    /// Whether the value will do; the value is empty where the key stands alone.
    pub check: fn(&str) -> Result<(), Refused>,
}

/// Why a value will not do, in words that follow "bad value:".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused(heapless::String<112>);

impl Refused {
    /// The reason, cut off after 112 bytes.
    pub fn because(reason: impl fmt::Display) -> Self {
        let mut text = heapless::String::new();
        // A reason that does not fit is cut off; its beginning is enough.
        let _ = write!(text, "{reason}");
        Self(text)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A [`Parameter::check`] for keys that stand alone.
///
/// # Errors
/// There is a value.
pub fn flag(value: &str) -> Result<(), Refused> {
    if value.is_empty() { Ok(()) } else { Err(Refused::because("it takes no value")) }
}

/// A [`Parameter::check`] for numbers up to `most`.
///
/// # Errors
/// It is none of these.
pub fn number(value: &str, most: usize) -> Result<usize, Refused> {
    let number = value.parse::<usize>().ok();
    number.filter(|number| *number <= most).ok_or_else(|| Refused::because(format_args!("0 to {most}")))
}

static ARGUMENTS: Once<&'static str> = Once::new();

/// Sets the arguments. Only the first call counts.
pub fn init(arguments: &'static str) {
    ARGUMENTS.call_once(|| arguments);
}

/// The value of `key`; empty where it stands alone, `None` where it was not given.
pub fn get(key: &str) -> Option<&'static str> {
    find(ARGUMENTS.get()?, key)
}

/// The value of a boot argument that is a number up to `most`, if it is given and makes sense.
pub fn get_number(key: &str, most: usize) -> Option<usize> {
    number(get(key)?, most).ok()
}

/// Whether `key` was given.
pub fn is_set(key: &str) -> bool {
    get(key).is_some()
}

/// Finds the arguments without a reader or with a bad value: one call of `warn` for each.
pub fn check(mut warn: impl FnMut(fmt::Arguments<'_>)) {
    if let Some(arguments) = ARGUMENTS.get() {
        check_against(arguments, &PARAMETERS, &mut warn);
    }
}

/// The words, as key and value.
fn words(arguments: &str) -> impl DoubleEndedIterator<Item = (&str, &str)> {
    arguments.split_ascii_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")))
}

/// As [`get`], of these arguments.
pub(crate) fn find<'a>(arguments: &'a str, key: &str) -> Option<&'a str> {
    words(arguments).rev().find_map(|(name, value)| (name == key).then_some(value))
}

fn check_against(arguments: &str, known: &[Parameter], warn: &mut dyn FnMut(fmt::Arguments<'_>)) {
    for (key, value) in words(arguments) {
        match known.iter().find(|parameter| parameter.name == key) {
            Some(parameter) => {
                if let Err(reason) = (parameter.check)(value) {
                    warn(format_args!("boot argument {key}: bad value {value:?}: {reason}"));
                }
            }
            None => match suggest(key, known.iter().map(|parameter| parameter.name)) {
                Some(name) => warn(format_args!("boot argument {key} is unknown; did you mean {name}?")),
                None => warn(format_args!("boot argument {key} is unknown")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::{Parameter, Refused, check_against, find, flag};

    const KNOWN: [Parameter; 2] = [
        Parameter { name: "script", help: "", check: flag },
        Parameter {
            name: "maxcpus",
            help: "",
            check: |value| value.parse::<u32>().map(drop).map_err(Refused::because),
        },
    ];

    fn warnings(arguments: &str) -> Vec<String> {
        let mut said = Vec::new();
        check_against(arguments, &KNOWN, &mut |line| said.extend([line.to_string()]));
        said
    }

    #[test]
    fn a_key_stands_alone_or_with_a_value_and_the_last_one_counts() {
        let arguments = "  script maxcpus=2\tlab=a,b=c maxcpus=3 ";
        assert_eq!(find(arguments, "script"), Some(""));
        assert_eq!(find(arguments, "maxcpus"), Some("3"));
        assert_eq!(find(arguments, "lab"), Some("a,b=c"));
        assert_eq!(find(arguments, "cpus"), None);
        assert_eq!(find("", "script"), None);
    }

    #[test]
    fn what_is_known_and_good_is_accepted_in_silence() {
        assert!(warnings("script maxcpus=16").is_empty());
        assert!(warnings("").is_empty());
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest() {
        assert_eq!(warnings("maxcpu=2"), ["boot argument maxcpu is unknown; did you mean maxcpus?"]);
        assert_eq!(warnings("console=ttyAMA0"), ["boot argument console is unknown"]);
    }

    #[test]
    fn a_bad_value_is_named_with_the_reason() {
        assert_eq!(warnings("script=yes"), ["boot argument script: bad value \"yes\": it takes no value"]);
        assert_eq!(
            warnings("maxcpus=many"),
            ["boot argument maxcpus: bad value \"many\": invalid digit found in string"]
        );
    }
}
