//! Where the answers to random calls differ from Linux's, and may: `docs/DIFFERENCES.md` is this list.

/// A difference that stays.
#[derive(Debug)]
pub struct Difference {
    /// A name for it.
    pub name: &'static str,
    /// How a line begins after its step's number: the call, or the time of a look.
    pub call: &'static str,
    /// Parts of the line on Linux, one of which is there.
    pub linux: &'static [&'static str],
    /// Parts of the line here, one of which is there.
    pub here: &'static [&'static str],
    /// Why it stays.
    pub reason: &'static str,
}

impl Difference {
    /// Whether the two lines, Linux's first, are an example of it.
    #[must_use]
    pub fn is(&self, [linux, here]: &[String; 2]) -> bool {
        let begins = |line: &str| {
            let call = line.trim_start_matches(|sign: char| sign.is_ascii_digit()).trim_start();
            call.starts_with(self.call)
        };
        let has = |line: &str, parts: &[&str]| begins(line) && parts.iter().any(|part| line.contains(part));
        has(linux, self.linux) && has(here, self.here)
    }
}

/// All of them.
pub const DIFFERENCES: [Difference; 1] = [Difference {
    name: "areas that are one here and two on Linux",
    call: "mremap(",
    linux: &[": EFAULT"],
    here: &[": page ", ": elsewhere", ": ENOMEM", ": EINVAL"],
    reason: "Private anonymous areas that touch and are alike are one, also where pages were moved or written before; \
             Linux may keep two, by the order of faults, and refuses a range over both.",
}];

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::DIFFERENCES;

    const PAGE: &str = include_str!("../../../docs/DIFFERENCES.md");

    #[test]
    fn the_page_is_the_list() {
        let mut table = String::from("| difference | call | on Linux | here | why it stays |\n|---|---|---|---|---|\n");
        for known in &DIFFERENCES {
            let any =
                |parts: &[&str]| parts.iter().map(|part| format!("`{}`", part.trim())).collect::<Vec<_>>().join(", ");
            let (linux, here) = (any(known.linux), any(known.here));
            writeln!(table, "| {} | `{}` | {linux} | {here} | {} |", known.name, known.call, known.reason).unwrap();
        }
        let shown = PAGE.split_once("\n| difference").map(|(_, rest)| format!("| difference{rest}"));
        assert_eq!(shown.as_deref(), Some(&*table), "docs/DIFFERENCES.md has another table than this:\n{table}");
    }

    #[test]
    fn a_difference_is_known_by_both_lines() {
        let lines = |linux: &str, here: &str| DIFFERENCES[0].is(&[linux.to_owned(), here.to_owned()]);
        assert!(lines("21 mremap(0x1, 0x2): EFAULT", "21 mremap(0x1, 0x2): page 7"));
        assert!(!lines("21 mremap(0x1, 0x2): page 7", "21 mremap(0x1, 0x2): EFAULT"));
        assert!(!lines("21 munmap(0x1, 0x2): EFAULT", "21 munmap(0x1, 0x2): page 7"));
    }
}
