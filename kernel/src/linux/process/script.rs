//! Scripts: files whose first line, `#!`, names the program that runs them, and an argument for it.
//!
//! The line is read as Linux reads it (`fs/binfmt_script.c`), by the byte: blanks are spaces and tabs, what follows the
//! path is one argument however many words it has, and of a file no more than its first 256 bytes are looked at.

use core::ops::Deref;

use heapless::Vec;

use super::status::{ExecError, PathError};
use crate::linux::errno::Errno;

/// Bytes of a file that are looked at (`BINPRM_BUF_SIZE`).
pub const LOOKED_AT: usize = 256;
/// Scripts that may run each other, and one more, which is looked at before it is refused.
const MOST: usize = 5 + 1;

/// The interpreter that a script names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interpreter<'a> {
    /// The path of the program that runs it; perhaps empty.
    pub path: &'a [u8],
    /// Its argument.
    pub argument: Option<&'a [u8]>,
}

const fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// From the first byte on that is no blank.
fn without_blanks(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(bytes.iter().position(|byte| !is_blank(byte))?..)
}

impl<'a> Interpreter<'a> {
    /// The interpreter that a file names in its line `#!`; `None` where it has no such line, or names nothing.
    pub fn of(contents: &'a [u8]) -> Option<Self> {
        let looked_at = contents.get(..LOOKED_AT);
        let text = looked_at.unwrap_or(contents).strip_prefix(b"#!")?;
        let line = match text.iter().position(|byte| matches!(byte, b'\n' | 0)) {
            Some(end) if text.get(end) == Some(&b'\n') => without_trailing_blanks(text.get(..end)?),
            // Linux finds zeros after a file's end, and no line continues after one: its blanks belong to it.
            Some(end) => return Some(Self::in_line(without_blanks(text.get(..end)?).unwrap_or_default(), Some(&[]))),
            None if looked_at.is_none() => {
                return Some(Self::in_line(without_blanks(text).unwrap_or_default(), Some(&[])));
            }
            // A path that is cut off could be another program's.
            None if without_blanks(text)?.iter().any(is_blank) => without_trailing_blanks(text.split_last()?.1),
            None => return None,
        };
        Some(Self::in_line(without_blanks(line)?, None))
    }

    /// The interpreter in a line that begins with no blank. Where blanks alone follow the path, its argument is `empty`.
    fn in_line(line: &'a [u8], empty: Option<&'a [u8]>) -> Self {
        let (path, rest) = line.split_at(line.iter().position(is_blank).unwrap_or(line.len()));
        Self { path, argument: without_blanks(rest).or(empty.filter(|_| !rest.is_empty())) }
    }
}

fn without_trailing_blanks(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or_default()
}

/// The scripts from `file` on, each named by the one before, and the first file after them that is none, or why there
/// is none. Each script has an [interpreter](Interpreter::of).
#[inline(never)]
pub fn resolve<F: Deref<Target = [u8]>>(
    mut file: F,
    open: impl Fn(&[u8]) -> Result<F, ExecError>,
) -> (Vec<F, MOST>, Result<F, ExecError>) {
    let mut scripts = Vec::new();
    while let Some(interpreter) = Interpreter::of(&file) {
        // An empty path is the root on Linux, which may not be executed.
        let is_empty = interpreter.path.is_empty();
        let opened = if is_empty { Err(PathError::NotExecutable.into()) } else { open(interpreter.path) };
        _ = scripts.push(file);
        file = match opened {
            Err(error) => return (scripts, Err(error)),
            Ok(_) if scripts.is_full() => return (scripts, Err(Errno::ELOOP.into())),
            Ok(file) => file,
        };
    }
    (scripts, Ok(file))
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::{Deref, ExecError, Interpreter, PathError, resolve};
    use crate::linux::errno::Errno;

    /// Path and argument, in brackets.
    fn named(contents: &[u8]) -> Option<String> {
        let Interpreter { path, argument } = Interpreter::of(contents)?;
        let words = core::iter::once(path).chain(argument);
        Some(words.map(|word| std::format!("[{}]", word.escape_ascii())).collect())
    }

    /// Each was asked on Linux 7.2.13.
    #[test]
    fn a_first_line_is_read_as_on_linux() {
        for (contents, expected) in [
            ("#!/i\n", Some("[/i]")),
            ("#!/i one\n", Some("[/i][one]")),
            ("#!/i one two  three\n", Some("[/i][one two  three]")),
            ("#! \t /i \t a b \t \n", Some("[/i][a b]")),
            ("#!/i   \n", Some("[/i]")),
            ("#!i\n", Some("[i]")),
            ("#!/i", Some("[/i]")),
            ("#!/i x y", Some("[/i][x y]")),
            ("#!/i x ", Some("[/i][x ]")),
            ("#!/i ", Some("[/i][]")),
            ("#!/i\nx #!/nothere\n", Some("[/i]")),
            ("#!/i\r\n", Some("[/i\\r]")),
            ("#!/i a\r\n", Some("[/i][a\\r]")),
            ("#!/i a\0b c\n", Some("[/i][a]")),
            ("#!/i\0 a\n", Some("[/i]")),
            ("#!", Some("[]")),
            ("#!   ", Some("[]")),
            ("#!\n", None),
            ("#!   \n", None),
            ("", None),
            ("#", None),
            (" #!/i\n", None),
            ("hello\n", None),
            ("\u{7f}ELF", None),
        ] {
            assert_eq!(named(contents.as_bytes()).as_deref(), expected, "{contents:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_off_but_in_its_path() {
        let argument = |count: usize, end: &str| std::format!("#!/i {}{end}", "x".repeat(count));
        for (count, end, kept) in
            [(249, "\n", 249), (250, "\n", 250), (251, "\n", 250), (300, "\n", 250), (250, "", 250), (251, "", 250)]
        {
            let expected = std::format!("[/i][{}]", "x".repeat(kept));
            assert_eq!(named(argument(count, end).as_bytes()), Some(expected), "{count} {end:?}");
        }
        for (blanks, behind, expected) in [
            (250, "/i\n", Some("[/i]")),
            (251, "/i x\n", Some("[/i]")),
            (252, "/i", None),
            (252, "/i\n", None),
            (253, "/i\n", None),
            (254, "", None),
            (300, "/i\n", None),
        ] {
            let contents = std::format!("#!{}{behind}", " ".repeat(blanks));
            assert_eq!(named(contents.as_bytes()).as_deref(), expected, "{blanks} {behind:?}");
        }
        assert_eq!(named(std::format!("#!/{}\n", "p".repeat(300)).as_bytes()), None);
    }

    const FILES: [(&str, &str); 9] = [
        ("program", "ELF"),
        ("1", "#!program\n"),
        ("2", "#!1 a\n"),
        ("3", "#!2\n"),
        ("4", "#!3\n"),
        ("5", "#!4\n"),
        ("6", "#!5\n"),
        ("7", "#!nosuch\n"),
        ("8", "#!\0"),
    ];

    /// A file, by its number.
    #[derive(Debug)]
    struct Numbered(usize);

    impl Deref for Numbered {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            FILES[self.0].1.as_bytes()
        }
    }

    fn find(path: &[u8]) -> Result<Numbered, ExecError> {
        let found = FILES.iter().position(|(name, _)| name.as_bytes() == path);
        Ok(Numbered(found.ok_or(PathError::NotFound)?))
    }

    #[test]
    fn five_scripts_may_run_each_other() {
        let resolved = |name: &str| {
            let (scripts, file) = resolve(find(name.as_bytes()).unwrap(), find);
            let path = |script: &Numbered| Interpreter::of(script).unwrap().path.to_vec();
            let paths: Vec<String> =
                scripts.iter().map(|script| String::from_utf8_lossy(&path(script)).to_string()).collect();
            (paths.join(" "), file.map(|file| FILES[file.0].0).map_err(|error| error.errno()))
        };
        assert_eq!(resolved("program"), (String::new(), Ok("program")));
        assert_eq!(resolved("2"), ("1 program".to_string(), Ok("program")));
        assert_eq!(resolved("5"), ("4 3 2 1 program".to_string(), Ok("program")));
        assert_eq!(resolved("6"), ("5 4 3 2 1 program".to_string(), Err(Errno::ELOOP)));
        assert_eq!(resolved("7"), ("nosuch".to_string(), Err(Errno::ENOENT)));
        assert_eq!(resolved("8"), (String::new(), Err(Errno::EACCES)));
    }
}
