//! The audit of tests-qemu/guest/src/planted.rs, in the image of the tests as it was built last; and those of layers and
//! of unused items.

use std::path::Path;

use granule_tools::root;

use super::image::Image;
use super::layers::{Import, Layer, Layers, Upward};
use super::reach::{Graph, Reached, reach};
use super::sources::Sources;
use super::stack;
use super::tables::{Call, Calls, Panic, Panics, Root, Source};
use super::unused::{Keep, Kept, Reader};
use super::{judge, reason};

const FILE: &str = "tests-qemu/guest/src/planted.rs";

fn call(targets: &[&str]) -> Call {
    let at = Source { file: FILE.into(), function: "root".into(), ..Source::default() };
    Call { at, within: None, targets: targets.iter().map(|&name| name.into()).collect(), reason: "a test".into() }
}

fn follow(calls: Vec<Call>) -> Result<Reached, anyhow::Error> {
    let elf = std::fs::read(root().join("build/granule-tests.elf")).expect("`./x build` comes first");
    let image = Image::read(&elf, &root())?;
    let roots = vec![Root { functions: vec!["granule_tests::tests::planted::root".into()], what: "a test".into() }];
    let calls = Calls { roots, calls };
    reach(&image, &calls, &Sources::new(&root()))
}

/// The functions with panics that are found in the file.
fn found(reached: &Reached) -> Vec<&str> {
    reached.sites.keys().filter(|source| source.file == FILE).map(|source| source.function.as_str()).collect()
}

#[test]
fn a_panic_behind_calls_pointers_and_vtables_is_found() {
    let targets = ["granule_tests::tests::planted::by_*", "<granule_tests::tests::planted::Plant as *>::act"];
    let reached = follow(vec![call(&targets)]).unwrap();
    assert_eq!(found(&reached), ["act", "by_pointer", "by_table", "inlined", "is_called"]);
    assert!(reached.unlisted.is_empty());
    let site = |function: &str| reached.sites.iter().find(|(source, _)| source.function == function).unwrap();
    let (source, site) = site("is_called");
    assert_eq!((source.text.as_str(), site.kind.as_str()), ("black_box([1, 2, 3])[number]", "panic_bounds_check"));
    let names = ["root", "calls", "is_called"].map(|name| format!("granule_tests::tests::planted::{name}"));
    assert_eq!(site.chain, names);
}

#[test]
fn a_call_that_is_not_listed_reaches_every_function_whose_address_is_taken() {
    let reached = follow(Vec::new()).unwrap();
    assert_eq!(found(&reached), ["act", "by_pointer", "by_table", "inlined", "is_called", "not_called"]);
    assert!(reached.unlisted.keys().any(|source| source.file == FILE && source.function == "root"));
}

#[test]
fn what_is_not_listed_or_gone_fails() {
    let reached = follow(vec![call(&["granule_tests::tests::planted::by_table"])]).unwrap();
    assert_eq!(found(&reached), ["by_table", "inlined", "is_called"]);
    let entry = |source: &Source| Panic { at: source.clone(), reason: "a test".into() };
    let mut panics = Panics { panics: reached.sites.keys().map(entry).collect() };
    assert!(judge(&reached, &panics, Path::new("")).is_ok());
    assert!(reached.sites.keys().all(|source| reason(&panics, source).is_some()));

    let last = panics.panics.pop().unwrap();
    let error = judge(&reached, &panics, Path::new("")).unwrap_err();
    assert!(error.to_string().contains("have no reason"), "{error}");

    let gone = Source { text: "it was here".into(), ..last.at.clone() };
    panics.panics.extend([last, Panic { at: gone, reason: "a test".into() }]);
    let error = judge(&reached, &panics, Path::new("")).unwrap_err();
    assert!(error.to_string().contains("it was here"), "{error}");
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let reached = follow(vec![call(&["granule_tests::tests::planted::misspelt"])]).unwrap();
    assert!(matches!(&reached.misnamed[..], [one] if one.contains("misspelt")));
}

/// The audit of the planted functions' stacks: with this bound, and these lines of the table.
fn audited(most: i64, calls: Vec<Call>, rows: &str) -> Result<(), String> {
    audited_with([1 << 14, most], "by_table", calls, rows)
}

/// As [`audited`], with a stack of so many bytes, and with the function that writes messages.
fn audited_with([stack, most]: [i64; 2], message: &str, calls: Vec<Call>, rows: &str) -> Result<(), String> {
    let elf = std::fs::read(root().join("build/granule-tests.elf")).expect("`./x build` comes first");
    let image = Image::read(&elf, &root()).unwrap();
    let limits = format!(
        "stack = {stack}\nmost = {most}\nmessage = \"granule_tests::tests::planted::{message}\"\n
         handler = \"granule_tests::tests::planted::by_pointer\"\naccesses = []\n
         fault = \"granule_tests::tests::planted::by_pointer\"\ninterrupt = \"granule_tests::tests::planted::by_pointer\"\n
         [[entry]]\nfunction = \"granule_tests::tests::planted::root\"\n{rows}"
    );
    let calls = Calls { roots: Vec::new(), calls };
    let sources = Sources::new(&root());
    let audited = stack::audit(&image, &Graph::new(&image, &calls, &sources), &toml::from_str(&limits).unwrap(), false);
    audited.map_err(|error| error.to_string())
}

#[test]
fn a_chain_is_as_deep_as_its_frames_and_a_call_that_is_not_listed_fails() {
    let calls =
        || vec![call(&["granule_tests::tests::planted::by_*", "<granule_tests::tests::planted::Plant as *>::act"])];
    assert_eq!(audited(4096, calls(), ""), Ok(()));
    // `root`, `calls` and `is_called` have frames: each saves the link register at least.
    let error = audited(47, calls(), "").unwrap_err();
    // The bound, and then the chain, each function behind what calls it.
    let lines: Vec<&str> = error.lines().collect();
    assert!(
        lines[1].starts_with("granule_tests::tests::planted::root: ") && lines[1].ends_with(" bytes of 47"),
        "{error}"
    );
    let chain = ["root", "calls", "is_called"].map(|name| format!(" granule_tests::tests::planted::{name}"));
    assert!(lines[2..].iter().zip(&chain).all(|(line, name)| line.ends_with(name)), "{error}");
    let mut sums = lines[2..].iter().map(|line| line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap());
    assert!(sums.clone().is_sorted() && sums.next_back() > Some(47), "{error}");
    assert_eq!(audited(47, calls(), "most = 4096\nreason = \"a test\""), Ok(()));
    assert!(audited(47, calls(), "most = 4096").unwrap_err().contains("without a reason"));
    assert!(audited(4096, Vec::new(), "").unwrap_err().contains("without an entry in calls.toml"));
}

#[test]
fn a_chain_has_room_for_the_messages_of_its_functions() {
    let calls =
        || vec![call(&["granule_tests::tests::planted::by_*", "<granule_tests::tests::planted::Plant as *>::act"])];
    // The longest chain goes through `calls`, whose bytes are the same if it is what writes messages.
    let with_messages = |message| {
        let error = audited_with([32, 4096], message, calls(), "").unwrap_err();
        assert!(!error.contains("granule_tests::tests::planted::root: "), "without messages it has room: {error}");
        error.lines().find(|line| line.contains("planted::root with messages: ")).unwrap().to_owned()
    };
    assert_eq!(with_messages("calls"), with_messages("by_table"));
    // An interrupt has what the bound of chains leaves.
    assert!(audited_with([4096, 4096], "by_table", calls(), "").unwrap_err().contains("an interrupt: "));
}

#[test]
fn a_cycle_without_a_bound_and_a_cut_without_a_call_fail() {
    let back = || vec![call(&["granule_tests::tests::planted::root", "granule_tests::tests::planted::by_table"])];
    assert!(audited(4096, back(), "").unwrap_err().contains("cycles of calls without a bound"));
    let recursion =
        |most: i64| format!("[[recursion]]\nfunctions = [\"granule_tests::*\"]\nmost = {most}\nreason = \"a test\"\n");
    assert_eq!(audited(4096, back(), &recursion(2)), Ok(()));
    assert!(audited(4096, back(), &recursion(1000)).unwrap_err().contains("granule_tests::tests::planted::root: "));
    let cut = |to: &str, once: bool| {
        let functions =
            format!("from = \"granule_tests::tests::planted::root\"\nto = \"granule_tests::tests::planted::{to}\"");
        format!("[[cut]]\n{functions}\nonce = {once}\nreason = \"a test\"\n")
    };
    assert_eq!(audited(4096, back(), &cut("root", false)), Ok(()));
    assert_eq!(audited(4096, back(), &cut("root", true)), Ok(()));
    let error = audited(4096, back(), &(cut("root", true) + &cut("not_called", true))).unwrap_err();
    assert!(error.contains("no call from"), "{error}");
}

fn layers(upward: &[(&str, &str)]) -> Layers {
    let layer = |name: &str, never: &[&str]| Layer {
        name: name.into(),
        modules: vec![name.into()],
        never: never.iter().map(|&name| name.into()).collect(),
    };
    Layers {
        source: String::new(),
        layers: vec![layer("low", &[]), layer("beside", &[]), layer("high", &["beside"])],
        upward: upward.iter().map(|&(from, to)| Upward::new(from, to, "a test")).collect(),
        most_upward: 1,
        most_in_circle: 3,
    }
}

/// Items stand for their files, those of inline modules too, and a file that imports itself is no circle.
#[test]
fn circles_are_found_between_files() {
    let files = ["", "a", "a::b", "c", "d", "e"].map(String::from).into();
    let imports = [
        ("a", "c::Item"),
        ("c", "a::b::f"),
        ("a::b::inline", "a::Item"),
        ("d", "e"),
        ("e", "kernel"),
        ("", "d::f"),
        ("c", "d"),
        ("c", "c::g"),
    ]
    .map(|(from, to)| Import { from: from.into(), to: to.into() })
    .into();
    let circles = super::circles::circles(&files, &imports);
    assert_eq!(circles, [["", "d", "e"], ["a", "a::b", "c"]]);
    let judged =
        |circles: &[Vec<&str>]| super::layers::judge_circles(&layers(&[]), circles).map_err(|error| error.to_string());
    assert_eq!(judged(&circles), Ok(()));
    assert!(
        judged(&[vec!["a", "b", "c", "d"]]).unwrap_err().contains("a circle of 4 files, at most 3 may be in one: a b")
    );
    assert!(judged(&[]).unwrap_err().contains("allows circles of 3 files, and the largest has 1"));
}

fn judged(layers: &Layers, imports: &[(&str, &str)]) -> Result<(), String> {
    let imports = imports.iter().map(|&(from, to)| Import { from: from.into(), to: to.into() }).collect();
    super::layers::judge(layers, &imports).map_err(|error| error.to_string())
}

#[test]
fn an_import_that_goes_up_fails_unless_it_is_listed() {
    let up = [("low::a", "high::b::C")];
    assert_eq!(judged(&layers(&[]), &[("high::b", "low::a::D"), ("high::b", "high::c")]), Ok(()));
    assert!(judged(&layers(&[]), &up).unwrap_err().contains("low::a (low) imports high::b::C (high)"));
    assert_eq!(judged(&layers(&up), &up), Ok(()));
    assert!(judged(&layers(&up), &[]).unwrap_err().contains("an import that is gone"));
    assert!(judged(&layers(&[up[0], up[0]]), &up).unwrap_err().contains("at most 1 may"));
    assert!(judged(&layers(&[]), &[("high", "beside::x")]).unwrap_err().contains("imports beside::x (beside)"));
    assert!(judged(&layers(&[]), &[("new", "low")]).unwrap_err().contains("no layer for new"));
    assert!(judged(&layers(&[]), &[("lower", "low")]).unwrap_err().contains("no layer for lower"));
}

/// Every way to write an import is read: by `use`, in code, in a macro, from a nested module or of one; and none for tests
/// alone.
#[test]
fn imports_are_found_however_they_are_written() {
    let directory = std::env::temp_dir().join(format!("granule-layers-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("a")).unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.join(file), text).unwrap();
    write("lib.rs", "mod a; #[cfg(test)] mod tests; fn root() { crate::b::free() }");
    write(
        "a.rs",
        "use crate::{b::{self, C}, d::*}; mod inner { fn f() { super::super::e::g(); h!(x, crate::i::j()); } }
         mod k; pub use k::O; #[cfg(test)] mod tests { use crate::never::X; } /// See [`crate::never`].
         pub(in crate::a) struct S(crate::l::M);",
    );
    write("a/k.rs", "use super::inner::N; use granule_abi::Errno;");
    let found: Vec<(String, String)> = super::layers::imports(&directory)
        .unwrap()
        .imports
        .into_iter()
        .map(|import| (import.from, import.to))
        .collect();
    std::fs::remove_dir_all(&directory).unwrap();
    let expected = [
        ("", "b::free"),
        ("a", "a::k::O"),
        ("a", "b"),
        ("a", "b::C"),
        ("a", "d"),
        ("a", "l::M"),
        ("a::inner", "e::g"),
        ("a::inner", "i::j"),
        ("a::k", "a::inner::N"),
        ("a::k", "granule_abi::Errno"),
    ];
    assert_eq!(found, expected.map(|(from, to)| (from.to_owned(), to.to_owned())));
}

/// The public items of `text` without a use in it.
fn unused(text: &str) -> Vec<String> {
    let mut reader = Reader::default();
    reader.module.push("crate".into());
    syn::visit::Visit::visit_file(&mut reader, &syn::parse_file(text).unwrap());
    reader.unused().into_iter().collect()
}

#[test]
fn a_public_item_that_only_tests_or_itself_name_is_unused() {
    for (text, expected) in [
        ("pub fn f() { f() } pub(crate) const C: u8 = 1; fn private() {}", vec!["C", "f"]),
        ("mod m { pub fn f() {} } #[cfg(test)] mod tests { fn t() { super::m::f() } #[test] fn u() {} }", vec!["m::f"]),
        ("pub fn f() {} #[cfg(not(target_os = \"none\"))] fn host() { f() }", vec!["f"]),
        ("pub struct S; impl S { pub fn new() -> Self { S } pub const K: u8 = 2; }", vec!["S", "S::K", "S::new"]),
        ("pub use m::f; mod m { pub fn f() {} }", vec!["m::f"]),
        // A field, a variable and a definition elsewhere are no calls of a method.
        ("impl S { pub fn len(&self) {} } fn g(s: S) { let len = s.len; len }", vec!["S::len"]),
        ("pub fn f() {} #[doc = \"f()\"] fn g() {} pub(in crate::a) fn h() {}", vec!["f"]),
    ] {
        let expected: Vec<String> = expected.iter().map(|name| format!("crate::{name}")).collect();
        assert_eq!(unused(text), expected, "{text}");
    }
}

#[test]
fn a_use_is_found_however_it_is_written() {
    for text in [
        "pub fn f() {} fn g() { f() }",
        "pub fn f() {} use self::f as h;",
        "impl S { pub fn m(&self) {} } fn g(s: S) { s.m() }",
        "impl S { pub fn m(&self) {} } fn g() { each(S::m) }",
        "impl S { pub fn m(&self) {} } pub(super) fn m(s: S) { s.m() }",
        "impl S { pub const K: u8 = 2; } fn g() -> u8 { S::K }",
        "pub const C: u8 = 1; fn g() { print!(\"{C}\") }",
        "pub const C: u8 = 1; #[error(\"{C:#x}\")] struct E;",
        "pub fn f() {} asm!(\"bl {0}\", sym f);",
        "impl S { pub fn m(&self) {} } fn g(s: S) { check!(s.m()) }",
        "pub trait T {} impl T for u8 {}",
        "#[unsafe(no_mangle)] pub fn entry() {}",
    ] {
        assert_eq!(unused(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn unused_items_and_their_table_agree() {
    let keep = |item: &str, reason: &str| Keep { items: vec![item.into()], reason: reason.into() };
    let judge = |entries: Vec<Keep>| {
        let unused = ["a::f".to_owned(), "b::g".to_owned()].into();
        Kept { entries }.judge(&unused).map_err(|error| error.to_string())
    };
    assert_eq!(judge(vec![keep("a::*", "a test"), keep("b::g", "a test")]), Ok(()));
    assert!(judge(vec![keep("a::*", "a test")]).unwrap_err().contains("b::g"));
    assert!(judge(vec![keep("*", "a test"), keep("c", "a test")]).unwrap_err().contains("c fits no unused item"));
    assert!(judge(vec![keep("*", " ")]).unwrap_err().contains("has no reason"));
}
