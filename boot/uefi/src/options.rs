//! Boot arguments: from the load options, or a file's.

use alloc::string::{String, ToString as _};

use thiserror::Error;

/// Most bytes of boot arguments, as in the kernel.
pub const MAX_BOOTARGS: usize = 2048;
/// The initrd where no argument names one.
pub const INITRD: &str = "\\initrd.cpio";
/// The file that has the boot arguments where the load options have none.
pub const CMDLINE: &str = "\\cmdline.txt";

/// Why there are no boot arguments.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OptionsError {
    /// An odd number of bytes without a zero in front, or half of a surrogate pair.
    #[error("the load options are no UTF-16")]
    NotUtf16,
    /// Longer than what the kernel takes.
    #[error("{0} bytes of boot arguments, more than {MAX_BOOTARGS}")]
    TooLong(usize),
}

/// The stub's own arguments, and the kernel's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arguments {
    /// For the kernel.
    pub kernel: String,
    /// The value of `initrd=`, as a path of the firmware's.
    pub initrd: Option<String>,
    /// `nokaslr`: places are not random.
    pub is_fixed: bool,
}

/// The text in the load options: UTF-16, up to the first zero. A shell puts the name of the program in front, a boot
/// manager does not: a first word that ends in `.efi` is left out (UEFI 9.1.2, `LoadOptions`).
///
/// # Errors
/// The bytes are no UTF-16.
pub fn decode(options: &[u8]) -> Result<String, OptionsError> {
    let (units, rest) = options.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let is_whole = rest.is_empty() || units.clone().any(|unit| unit == 0);
    let text: Result<String, _> = char::decode_utf16(units.take_while(|unit| *unit != 0)).collect();
    let text = text.ok().filter(|_| is_whole).ok_or(OptionsError::NotUtf16)?;
    let text = text.trim();
    let (first, others) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let is_program = first.len() >= 4 && first.as_bytes()[first.len() - 4..].eq_ignore_ascii_case(b".efi");
    Ok(if is_program { others.trim() } else { text }.to_string())
}

impl Arguments {
    /// Takes the stub's own words out.
    ///
    /// # Errors
    /// The kernel's arguments are too long.
    pub fn new(text: &str) -> Result<Self, OptionsError> {
        let (mut arguments, mut bytes) = (Self::default(), 0);
        for word in text.split_ascii_whitespace() {
            if let Some(path) = word.strip_prefix("initrd=") {
                arguments.initrd = Some(path_of(path));
                continue;
            }
            arguments.is_fixed |= word == "nokaslr";
            let space = if bytes == 0 { "" } else { " " };
            bytes += space.len() + word.len();
            if bytes <= MAX_BOOTARGS {
                arguments.kernel.push_str(space);
                arguments.kernel.push_str(word);
            }
        }
        if bytes > MAX_BOOTARGS { Err(OptionsError::TooLong(bytes)) } else { Ok(arguments) }
    }
}

/// From the root of the volume, with the firmware's separator.
fn path_of(path: &str) -> String {
    let path = path.replace('/', "\\");
    if path.starts_with('\\') { path } else { alloc::format!("\\{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn options_end_at_a_zero_and_a_programs_name_is_left_out() {
        for (options, text) in [
            ("", ""),
            ("script maxcpus=2\0garbage", "script maxcpus=2"),
            ("FS0:\\EFI\\BOOT\\BOOTAA64.EFI  script \0", "script"),
            ("granule.efi", ""),
            (" script=a.efix b.efi", "script=a.efix b.efi"),
            ("ä.efi ö", "ö"),
        ] {
            assert_eq!(decode(&utf16(options)).unwrap(), text, "{options:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_utf_16_are_refused() {
        assert_eq!(decode(&[b'a', 0, b'b']), Err(OptionsError::NotUtf16));
        assert_eq!(decode(&[0x00, 0xd8, b'a', 0]), Err(OptionsError::NotUtf16));
    }

    #[test]
    fn what_is_behind_the_zero_is_no_text() {
        for behind in [&[7][..], &[0x00, 0xd8], &[0x00, 0xd8, 9]] {
            assert_eq!(decode(&[&utf16("script\0"), behind].concat()).as_deref(), Ok("script"), "{behind:?}");
        }
    }

    #[test]
    fn the_stubs_own_words_do_not_reach_the_kernel() {
        let arguments = Arguments::new(" script initrd=boot/a.cpio  nokaslr x=initrd=b ").unwrap();
        assert_eq!(arguments.kernel, "script nokaslr x=initrd=b");
        assert_eq!(arguments.initrd.as_deref(), Some("\\boot\\a.cpio"));
        assert!(arguments.is_fixed);
        assert_eq!(Arguments::new("").unwrap(), Arguments::default());
        assert_eq!(Arguments::new("initrd=\\a").unwrap().initrd.as_deref(), Some("\\a"));
    }

    #[test]
    fn arguments_are_as_long_as_the_kernel_takes_them() {
        assert_eq!(MAX_BOOTARGS, granule::platform::MAX_BOOTARGS);
        assert!(Arguments::new(&"a".repeat(MAX_BOOTARGS)).is_ok());
        let long = Arguments::new(&"a".repeat(MAX_BOOTARGS + 1));
        assert_eq!(long, Err(OptionsError::TooLong(MAX_BOOTARGS + 1)));
    }
}
