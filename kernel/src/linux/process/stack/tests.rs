use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use granule_abi::Errno;
use granule_abi::process::{AT_EXECFN, AT_PAGESZ, AT_PLATFORM, AT_RANDOM};
use proptest::prelude::*;

use super::{STRING, StackMemory, StringCounts, Strings, Words, argument_space};

const TOP: u64 = 0xffff_ffff_f000;
const SIZE: usize = 8 << 20;
const PATH: &[u8] = b"/bin/hello";

/// A stack that ends at [`TOP`].
struct Stack<'a>(&'a mut Vec<u8>);

impl Stack<'_> {
    fn offset(address: u64) -> usize {
        SIZE - (TOP - address) as usize
    }
}

impl StackMemory for Stack<'_> {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = Self::offset(address);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let at = Self::offset(address);
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
        Ok(())
    }
}

/// Reads a stack as a program does.
struct Reader<'a> {
    bytes: &'a [u8],
    sp: u64,
}

impl Reader<'_> {
    fn bytes(&self, address: u64) -> &[u8] {
        &self.bytes[Stack::offset(address)..]
    }

    fn quad(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.bytes(self.sp + 8 * index as u64)[..8].try_into().unwrap())
    }

    fn string(&self, address: u64) -> String {
        let bytes = self.bytes(address);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }

    /// The strings of the array at this word, and the word after its zero.
    fn strings(&self, mut at: usize) -> (Vec<String>, usize) {
        let mut strings = Vec::new();
        while self.quad(at) != 0 {
            strings.extend([self.string(self.quad(at))]);
            at += 1;
        }
        (strings, at + 1)
    }
}

fn build(stack: &mut Vec<u8>, arguments: &[&str], environment: &[&str]) -> Result<u64, Errno> {
    stack.clear();
    stack.resize(SIZE, 0);
    let counts = StringCounts { arguments: arguments.len(), environment: environment.len() };
    let mut strings = Strings::new(Stack(stack), TOP, SIZE as u64, counts)?;
    strings.add(PATH)?;
    for word in environment.iter().rev().chain(arguments.iter().rev()) {
        strings.add_with(word.len() + 1, |at, to| {
            to.copy_from_slice(&word.as_bytes()[at..at + to.len()]);
            Ok(())
        })?;
    }
    strings.finish(PATH, &[(AT_PAGESZ, 4096)], *b"sixteen bytes...", 0)
}

fn check(arguments: &[&str], environment: &[&str]) {
    let mut stack = Vec::new();
    let sp = build(&mut stack, arguments, environment).unwrap();
    let reader = Reader { bytes: &stack, sp };
    assert_eq!(sp % 16, 0);
    assert_eq!(stack[SIZE - 8..], [0; 8]);
    let (found, at) = reader.strings(1);
    assert_eq!(reader.quad(0), found.len() as u64);
    assert_eq!(found, if arguments.is_empty() { &[""] } else { arguments });
    let (found, mut at) = reader.strings(at);
    assert_eq!(found, environment);
    let mut auxiliary = BTreeMap::new();
    while reader.quad(at) != 0 {
        auxiliary.extend([(reader.quad(at), reader.quad(at + 1))]);
        at += 2;
    }
    assert_eq!(reader.quad(at + 1), 0);
    assert_eq!(auxiliary[&AT_PAGESZ], 4096);
    assert_eq!(reader.bytes(auxiliary[&AT_RANDOM])[..16], *b"sixteen bytes...");
    assert_eq!(reader.string(auxiliary[&AT_PLATFORM]), "aarch64");
    assert_eq!(reader.string(auxiliary[&AT_EXECFN]), "/bin/hello");
}

#[test]
fn a_program_finds_what_it_was_given() {
    check(&[], &[]);
    check(&[], &["HOME=/"]);
    for extra in (0..20).chain(500..530) {
        let long = "x".repeat(extra);
        check(&["hello", &long, ""], &["HOME=/", "A="]);
    }
}

#[test]
fn what_is_below_the_strings_is_moved_as_a_whole() {
    let built = |below: u64| {
        let mut stack = vec![0; SIZE];
        let counts = StringCounts { arguments: 1, environment: 0 };
        let mut strings = Strings::new(Stack(&mut stack), TOP, SIZE as u64, counts).unwrap();
        strings.add(PATH).unwrap();
        strings.add(b"hello").unwrap();
        let sp = strings.finish(PATH, &[], *b"sixteen bytes...", below).unwrap();
        let reader = Reader { bytes: &stack, sp };
        assert_eq!((reader.strings(1).0, reader.quad(6)), (vec!["hello".into()], AT_PLATFORM));
        assert_eq!(reader.string(reader.quad(7)), "aarch64");
        [sp, reader.quad(1), reader.quad(5), reader.quad(7), reader.quad(9)]
    };
    let [sp, hello, random, platform, path] = built(0);
    for below in [16, 2048, 4080] {
        assert_eq!(built(below), [sp - below, hello, random - below, platform - below, path]);
    }
}

#[test]
fn the_kernels_own_words_are_arguments() {
    for given in [&[][..], &[""], &["a"], &["", ""], &["run", "", "it"]] {
        let mut words = Words::new();
        given.iter().for_each(|word| words.argument(word.as_bytes()).unwrap());
        let mut stack = vec![0; SIZE];
        let mut strings = Strings::new(Stack(&mut stack), TOP, SIZE as u64, words.counts()).unwrap();
        strings.add(PATH).unwrap();
        words.add_to(&mut strings).unwrap();
        let sp = strings.finish(PATH, &[], [0; 16], 0).unwrap();
        let found = Reader { bytes: &stack, sp }.strings(1).0;
        assert_eq!(found, if given.is_empty() { &[""] } else { given });
    }
}

/// In memory where strings are longer than a piece, and where an argument is missing.
#[test]
fn an_interpreter_comes_before_the_script_whose_name_the_path_replaces() {
    let long = "x".repeat(700);
    for given in [&[][..], &["name"], &["name", "one", ""], &[&long, &long]] {
        let mut stack = vec![0; SIZE];
        let counts = StringCounts { arguments: given.len(), environment: 0 };
        let mut strings = Strings::new(Stack(&mut stack), TOP, SIZE as u64, counts).unwrap();
        strings.add(PATH).unwrap();
        given.iter().rev().for_each(|word| strings.add(word.as_bytes()).unwrap());
        strings.interpret(PATH, Some(b"an argument"), b"first").unwrap();
        strings.interpret(b"first", None, long.as_bytes()).unwrap();
        let sp = strings.finish(PATH, &[], [0; 16], 0).unwrap();
        let reader = Reader { bytes: &stack, sp };
        let mut expected = vec![long.as_str(), "first", "an argument", "/bin/hello"];
        expected.extend(given.iter().skip(1));
        assert_eq!(reader.strings(1).0, expected);
        assert_eq!(reader.quad(0), expected.len() as u64);
    }
}

#[test]
fn the_limits_are_linuxs() {
    assert_eq!(argument_space(0), 128 << 10);
    assert_eq!(argument_space(8 << 20), 2 << 20);
    assert_eq!(argument_space(u64::MAX), 6 << 20);
    let mut stack = Vec::new();
    let mut result = |words: &[&str]| build(&mut stack, words, &[]).map(drop);
    let long = "x".repeat(STRING - 1);
    assert_eq!(result(&[&long]), Ok(()));
    assert_eq!(result(&[&"x".repeat(STRING)]), Err(Errno::E2BIG));
    // Fifteen and one that fills up, with a pointer each and the path.
    let mut words = vec![long.as_str(); 16];
    let room = (2 << 20) - 16 * 8 - PATH.len() - 1 - 15 * STRING;
    let (fits, too_long) = ("y".repeat(room - 1), "y".repeat(room));
    words[15] = &fits;
    assert_eq!(result(&words), Ok(()));
    words[15] = &too_long;
    assert_eq!(result(&words), Err(Errno::E2BIG));
    assert_eq!(result(&vec![""; (2 << 20) / 8]), Err(Errno::E2BIG));
    assert_eq!(result(&vec![""; 200_000]), Ok(()));
    assert_eq!(Words::new().argument(&vec![b'x'; STRING]), Err(Errno::E2BIG));
}

#[test]
fn a_string_that_changes_meanwhile_spoils_itself_alone() {
    for (byte, expected) in [(b'x', ["xxx", "xxx"]), (0, ["", ""])] {
        let mut stack = vec![0; SIZE];
        let counts = StringCounts { arguments: 2, environment: 0 };
        let mut strings = Strings::new(Stack(&mut stack), TOP, SIZE as u64, counts).unwrap();
        strings.add(PATH).unwrap();
        for _ in 0..2 {
            // Without its zero, or with more of them.
            strings
                .add_with(4, |_, to| {
                    to.fill(byte);
                    Ok(())
                })
                .unwrap();
        }
        let sp = strings.finish(PATH, &[], [0; 16], 0).unwrap();
        let reader = Reader { bytes: &stack, sp };
        assert_eq!((reader.quad(0), reader.strings(1).0), (2, expected.map(String::from).to_vec()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_words_arrive(
        arguments in prop::collection::vec("[a-z]{0,700}", 0..20),
        environment in prop::collection::vec("[A-Z]{0,700}", 0..20),
    ) {
        let words = |words: &[String]| words.iter().map(|word| word.to_owned()).collect::<Vec<_>>();
        let (arguments, environment) = (words(&arguments), words(&environment));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
        check(&arguments, &environment);
    }
}
