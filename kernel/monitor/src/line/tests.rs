//! The line editor, seen as a person sees it: keys in, a terminal's screen out.

extern crate std;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::{ProptestConfig, any, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

use super::{COLUMNS, Echo, Editor, Input, LINE};

const PROMPT: &str = "granule> ";

/// A terminal that shows the editor's output: rows of characters, and the cursor in the last one.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: Vec<char>,
    column: usize,
    bells: usize,
}

impl Screen {
    fn show(&mut self, output: &str) {
        let mut characters = output.chars();
        while let Some(character) = characters.next() {
            match character {
                '\x07' => self.bells += 1,
                '\r' => self.column = 0,
                '\n' => {
                    self.rows.push(core::mem::take(&mut self.row));
                    self.column = 0;
                }
                '\x1b' => {
                    assert_eq!(characters.next(), Some('['));
                    self.control(&mut characters);
                }
                shown => {
                    assert!((' '..='~').contains(&shown), "{shown:?} on the screen");
                    if self.column == self.row.len() {
                        self.row.push(shown);
                    } else {
                        self.row[self.column] = shown;
                    }
                    self.column += 1;
                    assert!(self.column < COLUMNS, "the cursor ran into the last column");
                }
            }
        }
    }

    fn control(&mut self, characters: &mut core::str::Chars<'_>) {
        let mut parameter = 0;
        for character in characters.by_ref() {
            match character {
                digit if digit.is_ascii_digit() => parameter = parameter * 10 + digit as usize - '0' as usize,
                'D' => {
                    assert!(parameter >= 1, "a parameter of 0 moves by one");
                    self.column = self.column.checked_sub(parameter).expect("left of the first column");
                    return;
                }
                'K' => {
                    self.row.truncate(self.column);
                    return;
                }
                'J' => {
                    self.rows.clear();
                    self.row.clear();
                    return;
                }
                'H' => {
                    self.column = 0;
                    return;
                }
                other => panic!("terminals need not know CSI {other}"),
            }
        }
    }

    fn row(&self) -> String {
        self.row.iter().collect()
    }
}

fn offer(line: &str, take: &mut dyn FnMut(&'static str)) {
    let words: &[&'static str] = match line {
        "" => &["peek", "poke", "poweroff", "set_memory", "stats"],
        "set_memory " => &["ro", "rw", "rox"],
        _ => &[],
    };
    words.iter().for_each(|word| take(word));
}

/// A person at a terminal: what was typed, the lines that came of it, and the screen.
struct Terminal {
    editor: Editor,
    screen: Screen,
    output: String,
    lines: Vec<Input>,
}

impl Terminal {
    fn new(echo: Echo) -> Self {
        let editor = Editor::new(PROMPT, echo);
        let mut terminal = Self { editor, screen: Screen::default(), output: String::new(), lines: Vec::new() };
        terminal.prompt();
        terminal
    }

    fn prompt(&mut self) {
        let mut output = String::new();
        self.editor.prompt(&mut output);
        self.show(&output);
    }

    fn show(&mut self, output: &str) {
        self.output.push_str(output);
        // A script's session goes to a log, which has no last column.
        if self.editor.echo == Echo::Keys {
            self.screen.show(output);
        }
    }

    fn feed(&mut self, byte: u8) {
        let mut output = String::new();
        let input = self.editor.feed(byte, &mut output, &offer);
        self.show(&output);
        if input != Input::Pending {
            self.lines.push(input);
            self.prompt();
        }
    }

    fn type_keys(mut self, keys: &str) -> Self {
        keys.bytes().for_each(|byte| self.feed(byte));
        self
    }

    #[track_caller]
    fn shows(self, line: &str, cursor: usize) -> Self {
        assert_eq!(self.screen.row(), format!("{PROMPT}{line}"));
        assert_eq!(self.screen.column, PROMPT.len() + cursor);
        self
    }

    #[track_caller]
    fn finished(&self, lines: &[&str]) {
        let finished: Vec<String> = self
            .lines
            .iter()
            .map(|input| match input {
                Input::Line(line) => line.to_string(),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(finished, lines);
    }
}

fn terminal() -> Terminal {
    Terminal::new(Echo::Keys)
}

const LEFT: &str = "\x1b[D";
const RIGHT: &str = "\x1b[C";
const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const DELETE: &str = "\x1b[3~";

#[test]
fn a_line_is_what_was_typed() {
    terminal().type_keys("peek 0x1000\r").shows("", 0).finished(&["peek 0x1000"]);
}

#[test]
fn each_form_of_line_end_ends_one_line() {
    terminal().type_keys("a\rb\nc\r\nd\r\r").finished(&["a", "b", "c", "d", ""]);
}

#[test]
fn editing_inside_the_line() {
    let terminal = terminal().type_keys("pok $").type_keys(LEFT).type_keys(LEFT).type_keys("e").shows("poke $", 4);
    let terminal = terminal.type_keys("\x01").shows("poke $", 0).type_keys(DELETE).type_keys("P").shows("Poke $", 1);
    let terminal = terminal.type_keys("\x05 12").type_keys("\x7f\x08").shows("Poke $ ", 7).type_keys(RIGHT);
    assert_eq!(terminal.screen.bells, 1, "right of the end");
    terminal.type_keys("5\r").finished(&["Poke $ 5"]);
}

#[test]
fn home_and_end_in_each_terminals_words() {
    for (home, end) in [("\x1b[H", "\x1b[F"), ("\x1b[1~", "\x1b[4~"), ("\x1b[7~", "\x1b[8~"), ("\x1bOH", "\x1bOF")] {
        terminal().type_keys("bc").type_keys(home).type_keys("a").type_keys(end).type_keys("d").shows("abcd", 4);
    }
}

#[test]
fn removing_words_and_ends() {
    terminal().type_keys("set_memory ro  0x1000  \x17").shows("set_memory ro  ", 15);
    terminal().type_keys("abc def\x02\x02\x02\x15").shows("def", 0);
    terminal().type_keys("abc def\x02\x02\x02\x0b").shows("abc ", 4);
    terminal().type_keys("abc\x03def").shows("def", 3).type_keys("\r").finished(&["def"]);
    terminal().type_keys("x\rabc\x0c").shows("abc", 3);
}

#[test]
fn keys_that_do_nothing_ring_and_change_nothing() {
    let nothing =
        terminal().type_keys("\x7f\x17\x15\x0b\x04\x02\x06").type_keys(UP).type_keys(DOWN).type_keys("\x00\x1d");
    assert_eq!(nothing.screen.bells, 10, "each of them but left");
    nothing.shows("", 0);
}

#[test]
fn older_lines_come_back_and_the_draft_is_kept() {
    let terminal = terminal().type_keys("one\rtwo\rtwo\r  \rdraft");
    let terminal = terminal.type_keys(UP).shows("two", 3).type_keys(UP).shows("one", 3).type_keys(UP).shows("one", 3);
    let terminal = terminal.type_keys(DOWN).shows("two", 3).type_keys(DOWN).shows("draft", 5);
    terminal.type_keys(UP).type_keys(UP).type_keys("!\r").finished(&["one", "two", "two", "  ", "one!"]);
}

#[test]
fn history_keeps_the_newest() {
    let mut terminal = terminal();
    for line in 0..40 {
        terminal = terminal.type_keys(&format!("line{line}\r"));
    }
    terminal = terminal.type_keys(UP).shows("line39", 6);
    for _ in 0..15 {
        terminal = terminal.type_keys(UP);
    }
    terminal.shows("line24", 6).type_keys(UP).shows("line24", 6);
}

#[test]
fn completion_goes_as_far_as_the_names_agree() {
    terminal()
        .type_keys("s")
        .type_keys("et\t")
        .shows("set_memory ", 11)
        .type_keys("rox\t")
        .shows("set_memory rox ", 15);
    let terminal = terminal().type_keys("po\t");
    assert_eq!(terminal.screen.rows.last().map(|row| row.iter().collect()), Some("poke  poweroff  ".to_string()));
    let terminal = terminal.shows("po", 2).type_keys("zz\t").shows("pozz", 4);
    assert_eq!(terminal.screen.bells, 1, "nothing starts like that");
}

#[test]
fn completion_leaves_what_stands_after_the_cursor() {
    terminal().type_keys(" $").type_keys("\x01pee\t").shows("peek  $", 5);
}

#[test]
fn a_long_line_scrolls_and_a_longer_one_rings() {
    let long: String = ('a'..='z').cycle().take(LINE).collect();
    let window = COLUMNS - 1 - PROMPT.len();
    let terminal = terminal().type_keys(&long).shows(&long[LINE - window..], window);
    let terminal = terminal.type_keys("x").shows(&long[LINE - window..], window);
    assert_eq!(terminal.screen.bells, 1);
    terminal.type_keys("\x01").shows(&long[..window], 0).type_keys("\r").finished(&[&long]);
}

#[test]
fn a_script_is_echoed_line_by_line_without_escapes() {
    let terminal = Terminal::new(Echo::Lines).type_keys("mem\nset_memory\tro\r\n\n");
    assert_eq!(terminal.output, "granule> mem\ngranule> set_memory ro\ngranule> \ngranule> ");
    terminal.finished(&["mem", "set_memory ro", ""]);
}

#[test]
fn a_script_line_that_does_not_fit_is_refused_whole() {
    let long = "x".repeat(LINE + 1);
    let terminal = Terminal::new(Echo::Lines).type_keys(&long).type_keys("\nnext\n");
    terminal.finished(&["TooLong", "next"]);
}

#[test]
fn damaged_bytes_in_a_script_do_not_vanish() {
    let mut terminal = Terminal::new(Echo::Lines);
    b"me\x1bm\xff\n".iter().for_each(|byte| terminal.feed(*byte));
    terminal.finished(&["me?m?"]);
}

#[test]
fn a_line_is_drawn_again_below_the_output_of_others() {
    let mut terminal = terminal().type_keys("peek 0x1").type_keys(LEFT);
    // As the console erases it.
    terminal.show("\r\x1b[K[1.5] warning\n");
    let mut output = String::new();
    terminal.editor.redraw(&mut output);
    terminal.show(&output);
    assert!(terminal.editor.erases() && !Terminal::new(Echo::Lines).editor.erases());
    let terminal = terminal.shows("peek 0x1", 7);
    assert_eq!(terminal.screen.rows.last().map(|row| row.iter().collect()), Some("[1.5] warning".to_string()));
    terminal.type_keys("2\r").finished(&["peek 0x21"]);
}

#[test]
fn a_line_that_fills_the_screen_is_started_over_without_a_mark() {
    let window = COLUMNS - 1 - PROMPT.len();
    for length in window - 3..window + 3 {
        // The screen asserts that nothing reaches its last column.
        let terminal = terminal().type_keys(&"x".repeat(length)).type_keys("\x03");
        assert_eq!(terminal.screen.rows[0].ends_with(&['^', 'C']), length + 2 <= window, "{length}");
    }
}

/// Keys as a person's hands would find them, and bytes as a broken line would.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        4 => (b' '..=b'~').prop_map(|byte| std::vec![byte]),
        2 => prop_oneof![Just(LEFT), Just(RIGHT), Just(UP), Just(DOWN), Just(DELETE), Just("\t"), Just("po\t"), Just("\r")]
            .prop_map(|key| key.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| std::vec![byte]),
    ];
    proptest::collection::vec(key, 0..300).prop_map(|keys| keys.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_screen_shows_the_line_and_the_cursor(keys in keys()) {
        let mut terminal = terminal();
        for byte in keys {
            terminal.feed(byte);
            let editor = &terminal.editor;
            let start = editor.cursor.saturating_sub(editor.window());
            let end = editor.text.len().min(start + editor.window());
            assert_eq!(terminal.screen.row(), format!("{PROMPT}{}", &editor.text()[start..end]));
            assert_eq!(terminal.screen.column, PROMPT.len() + editor.cursor - start);
        }
    }

    #[test]
    fn a_script_gives_each_line_once(lines in proptest::collection::vec("[ -~]{0,160}", 0..8)) {
        let mut terminal = Terminal::new(Echo::Lines);
        lines.iter().for_each(|line| line.bytes().chain(*b"\r\n").for_each(|byte| terminal.feed(byte)));
        terminal.finished(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
