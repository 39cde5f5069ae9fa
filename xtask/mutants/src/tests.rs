//! Each rule by what it makes of a few lines; verdicts and resuming by a crate of a few lines and its tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use granule_tools::Tools;

use super::draw::{self, Mutant, Source};
use super::host::Host;
use super::kept::{self, Kept};
use super::known::{self, Known};
use super::record::{Records, Verdict};
use super::rules::{self, Rule};
use super::tree::Tree;
use super::{Session, placed, record};

/// Code that is evaluated at compile time cannot print that it was reached.
#[test]
fn constants_take_no_probe() {
    let source = "const A: bool = { 1 < 1 }; static B: bool = { 1 < 1 }; const fn f() -> bool { 1 < 1 } \
                  fn g() { const { 1 < 1 }; 2 < 2 } static C: fn() -> bool = || { 2 < 2 };";
    let changes = rules::changes(source).unwrap();
    assert!(changes.iter().any(|change| change.block.is_none()) && changes.iter().any(|change| change.block.is_some()));
    for change in changes {
        let digit = source[change.range.start..].chars().find(char::is_ascii_digit);
        assert_eq!(change.block.is_some(), digit == Some('2'), "{change:?}");
    }
}

/// All bodies that a rule makes of the body of a function.
fn bodies(rule: Rule, body: &str) -> Vec<String> {
    let source = format!("fn f() {{{body}}}");
    let whole = sources(rule, &source);
    whole.into_iter().map(|text| text["fn f() {".len()..text.len() - 1].to_owned()).collect()
}

/// All sources that a rule makes of a source.
fn sources(rule: Rule, source: &str) -> Vec<String> {
    let mutants = draw::of(Source { path: "a.rs".into(), text: source.into() }).unwrap();
    mutants.iter().filter(|mutant| mutant.change.rule == rule).map(Mutant::text).collect()
}

#[test]
fn barriers_are_dropped_and_weakened() {
    assert_eq!(bodies(Rule::Barrier, "mmu.dsb_ish();"), ["();", "mmu.dsb_ishst();", "mmu.dsb_nsh();"]);
    assert_eq!(bodies(Rule::Barrier, "a::isb();"), ["();"]);
    assert_eq!(bodies(Rule::Barrier, "mmu.complete_tlbi();"), ["();", "mmu.dsb_nsh();"]);
    assert_eq!(bodies(Rule::Barrier, "fence(Ordering::SeqCst);"), ["();"]);
    let made = sources(Rule::Barrier, "barrier!(dsb_ish, dsb, ISH);");
    assert_eq!(made, ["barrier!(dsb_ish, dsb, ISHST);"]);
    let assembly = bodies(Rule::Barrier, r#"asm!("dsb ish", "tlbi vmalle1is", "isb");"#);
    let expected = [
        r#"asm!("dsb ishst", "tlbi vmalle1is", "isb");"#,
        r#"asm!("nop", "tlbi vmalle1is", "isb");"#,
        r#"asm!("dsb ish", "tlbi vmalle1is", "nop");"#,
    ];
    assert_eq!(assembly, expected);
}

#[test]
fn invalidations_are_dropped_and_narrowed() {
    assert_eq!(bodies(Rule::Tlbi, "vae1is(a);"), ["vae1(a);", "vale1is(a);", "();"]);
    let value = bodies(Rule::Tlbi, "mmu.tlbi(Instruction::Vaae1is(a));");
    assert_eq!(value, ["();", "mmu.tlbi(Instruction::Vaae1(a));", "mmu.tlbi(Instruction::Vaale1is(a));"]);
    assert_eq!(bodies(Rule::Tlbi, "Tables::Unlinked"), ["Tables::Kept"]);
    let word = sources(Rule::Tlbi, r#"tlbi!(vae1is, "sys #0, c8, c3, #1, {}");"#);
    let expected = [r#"tlbi!(vae1is, "sys #0, c8, c7, #1, {}");"#, r#"tlbi!(vae1is, "sys #0, c8, c3, #5, {}");"#];
    assert_eq!(word, expected);
}

#[test]
fn orderings_are_relaxed() {
    assert_eq!(bodies(Rule::Ordering, "a.load(Ordering::Acquire)"), ["a.load(Ordering::Relaxed)"]);
    let both = bodies(Rule::Ordering, "a.swap(1, Ordering::AcqRel)");
    assert_eq!(both, ["a.swap(1, Ordering::Acquire)", "a.swap(1, Ordering::Release)"]);
    assert_eq!(bodies(Rule::Ordering, "fence(Ordering::SeqCst)"), ["fence(Ordering::AcqRel)"]);
    assert_eq!(bodies(Rule::Ordering, "fence(Ordering::Release); a.load(Ordering::Relaxed)"), [""; 0]);
}

#[test]
fn conditions_are_negated() {
    assert_eq!(bodies(Rule::Condition, "if a() {}"), ["if !a() {}"]);
    assert_eq!(bodies(Rule::Condition, "if a == b {}"), ["if !(a == b) {}"]);
    assert_eq!(bodies(Rule::Condition, "a && b"), ["a || b"]);
    assert_eq!(bodies(Rule::Condition, "if let Some(a) = b && a {}"), [""; 0]);
    assert_eq!(bodies(Rule::Condition, "match a { b if c => d, _ => e }"), ["match a { b if !c => d, _ => e }"]);
}

#[test]
fn bounds_are_moved_by_one() {
    assert_eq!(bodies(Rule::Bound, "a < b"), ["a <= b"]);
    assert_eq!(bodies(Rule::Bound, "a >= b"), ["a > b"]);
    assert_eq!(bodies(Rule::Bound, "a - 1"), ["a - 0"]);
    assert_eq!(bodies(Rule::Bound, "a + 1u64"), ["a + 0u64"]);
    assert_eq!(bodies(Rule::Bound, "for a in b..c {}"), ["for a in b..c - 1 {}"]);
    assert_eq!(bodies(Rule::Bound, "for a in b..=c {}"), ["for a in b..c {}"]);
}

#[test]
fn operands_are_narrowed() {
    assert_eq!(bodies(Rule::Operand, "a & 0xff"), ["a & 0x7f"]);
    assert_eq!(bodies(Rule::Operand, "a << 48"), ["a << 47"]);
    assert_eq!(bodies(Rule::Operand, "a >> 12"), ["a >> 13"]);
    assert_eq!(bodies(Rule::Operand, "a.div_ceil(b)"), ["(a / b)"]);
    assert_eq!(bodies(Rule::Operand, "a.max(b)"), ["a.min(b)"]);
}

#[test]
fn neighbours_are_exchanged() {
    assert_eq!(bodies(Rule::Exchange, "a(b);\n// Then.\nb = c;"), ["b = c;\n// Then.\na(b);"]);
    assert_eq!(bodies(Rule::Exchange, "a(); let b = 1; c();"), [""; 0]);
    assert_eq!(bodies(Rule::Exchange, "a += b; c = a;"), ["c = a; a += b;"]);
    assert_eq!(bodies(Rule::Exchange, "self.a += b; self.c -= b;"), [""; 0]);
    // The second names a place that the first may change; or one orders by its name.
    assert_eq!(bodies(Rule::Exchange, "a.push(1); b(a);"), ["b(a); a.push(1);"]);
    assert_eq!(bodies(Rule::Exchange, "self.a.push(1); self.b(2);"), ["self.b(2); self.a.push(1);"]);
    assert_eq!(bodies(Rule::Exchange, "f(&mut a.b); a.b.c = 1;"), ["a.b.c = 1; f(&mut a.b);"]);
    assert_eq!(bodies(Rule::Exchange, "a.unmap(); b();"), ["b(); a.unmap();"]);
    assert_eq!(bodies(Rule::Exchange, "a.b.load(); c.d.store(1);"), ["c.d.store(1); a.b.load();"]);
    assert_eq!(bodies(Rule::Exchange, "mmu.dsb_ishst(); a.b = c;"), ["a.b = c; mmu.dsb_ishst();"]);
    assert_eq!(bodies(Rule::Exchange, "unsafe { a() }; b();"), ["b(); unsafe { a() };"]);
    assert_eq!(bodies(Rule::Exchange, "(a.b, c) = (1, 2); d = a.b;"), ["d = a.b; (a.b, c) = (1, 2);"]);
    assert_eq!(bodies(Rule::Exchange, "a.b.store(1, Relaxed); c.store(1, Release);").len(), 1);
    assert_eq!(bodies(Rule::Exchange, "a.store(1, Relaxed); a.store(2, Relaxed);").len(), 1);
    for fields in
        ["a.store(1, Relaxed); b.fetch_sub(2, Relaxed);", "a.modify(B); a.modify(C);", "a.put(1, b); a.put(2, c);"]
    {
        assert_eq!(bodies(Rule::Exchange, fields), [""; 0], "{fields}");
    }
    for independent in [
        "self.a.push(1); self.b.push(2);",
        "a(1); b(2);",
        "a.push(1); b.c = d;",
        "ab.push(1); a.c(2);",
        "self.free = 0; self.used = 0;",
        "self.free(a); relax();",
        "a.b.store(1, Relaxed); c.d.store(&raw const *a, Relaxed);",
        "(self.free, self.used) = (0, 1); self.broken = false;",
    ] {
        assert_eq!(bodies(Rule::Exchange, independent), [""; 0], "{independent}");
    }
}

#[test]
fn calls_counts_and_undos_are_left_out() {
    assert_eq!(bodies(Rule::Omission, "a.b();"), [""]);
    assert_eq!(bodies(Rule::Omission, "*a += 1; c?;"), [" c?;"]);
    assert_eq!(bodies(Rule::Omission, "self.undo(\na,\n)?;\n"), ["\n\n\n"]);
    // The value of a block and the changes of other rules stay.
    assert_eq!(bodies(Rule::Omission, "mmu.isb(); drop(a); b()"), [""; 0]);
}

#[test]
fn guards_are_dropped_early() {
    let made = bodies(Rule::EarlyDrop, "let mut a = b.lock(); a.c(); d(); e()");
    assert_eq!(made, ["let mut a = b.lock(); a.c(); drop(a); d(); e()"]);
    assert_eq!(bodies(Rule::EarlyDrop, "let _a = b(); c()"), ["let _a = b(); drop(_a); c()"]);
    assert_eq!(bodies(Rule::EarlyDrop, "let a = b.lock(); c(a)"), [""; 0]);
    assert_eq!(bodies(Rule::EarlyDrop, "let a = b.lock(); a.c(); drop(a); d()"), [""; 0]);
    // Nothing is called behind it that could miss it.
    assert_eq!(bodies(Rule::EarlyDrop, "let a = b.lock(); let c = a.c(); Ok(c.map(PhysAddr))"), [""; 0]);
    assert_eq!(bodies(Rule::EarlyDrop, "let a = b.lock(); let c = a.c(); c.is_some()"), [""; 0]);
    assert_eq!(bodies(Rule::EarlyDrop, "let a = b.lock(); a.c(); debug_assert!(d); E::new(F::G(h))"), [""; 0]);
}

#[test]
fn tests_doubles_and_messages_are_left_alone() {
    let untouched = [
        "#[cfg(test)] mod tests { fn f() { a(); } }",
        "#[test] fn f() { a(); }",
        "#[cfg(not(target_os = \"none\"))] fn f() { a(); }",
        "impl fmt::Display for A { fn fmt(&self) { a(); } }",
        "fn f() { #[cfg(not(target_os = \"none\"))] a(); }",
        "fn f() { #[cfg(debug_assertions)] a(); }",
        "fn f() { debug_assert!(a < b); if cfg!(debug_assertions) { a(); } }",
        "fn f() { if a < b { warn!(\"c\"); } }",
        "fn f(out: &mut dyn fmt::Write) { a(); }",
        "fn f() { if lab::is_on!(A) { b(); } else if !lab::is_on!(C) {} }",
        "fn f() { match a { _ if lab::is_on!(B) => c(), _ => d } }",
        "const A: [u32; 2] = [1 << 2, 3 & 7]; static B: &[bool] = &[1 < 2];",
    ];
    for source in untouched {
        assert_eq!(rules::changes(source).unwrap(), [], "{source}");
    }
    assert_eq!(rules::changes("#[cfg(target_os = \"none\")] fn f() { a(); }").unwrap().len(), 1);
}

/// A call is left out in the branch without the lab, and in no other.
#[test]
fn code_beside_the_lab_is_broken() {
    assert_eq!(
        bodies(Rule::Omission, "if lab::is_on!(A) { b(); } else { c(); }"),
        ["if lab::is_on!(A) { b(); } else {  }"]
    );
    assert_eq!(
        bodies(Rule::Omission, "if !lab::is_on!(A) { b(); } else { c(); }"),
        ["if !lab::is_on!(A) {  } else { c(); }"]
    );
    assert_eq!(bodies(Rule::Omission, "if lab::is_on!(A) || b { c(); }"), ["if lab::is_on!(A) || b {  }"]);
    assert_eq!(bodies(Rule::Condition, "if d && !lab::is_on!(A) { }"), [""; 0]);
}

/// A deadline or a capacity holds as well with one more.
#[test]
fn times_and_capacities_have_no_bounds() {
    assert_eq!(bodies(Rule::Bound, "now() < self.deadline; Some(until) >= a; a.len() > b.capacity()"), [""; 0]);
    assert_eq!(bodies(Rule::Bound, "unknown < a"), ["unknown <= a"]);
    assert_eq!(bodies(Rule::Bound, "Vec::with_capacity(a + 1)"), [""; 0]);
    assert_eq!(bodies(Rule::Operand, "a.try_reserve(b.max(c))?;"), [""; 0]);
}

#[test]
fn a_patch_is_what_git_applies() {
    let text = "fn f() {\n    a();\n    b(1);\n    c();\n    d();\n    e()\n}\n";
    let mutants = draw::of(Source { path: "src/a.rs".into(), text: text.into() }).unwrap();
    let mutant = mutants.iter().find(|mutant| mutant.change.rule == Rule::Omission && mutant.line() == 3).unwrap();
    assert_eq!(mutant.place(), "src/a.rs:3");
    let expected = "--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1,6 +1,6 @@\n fn f() {\n     a();\n-    b(1);\n+    \n     c();\n     \
                    d();\n     e()\n";
    assert_eq!(mutant.patch(), expected);
}

#[test]
fn a_seed_repeats_its_order_and_another_file_does_not_change_it() {
    let of = |path: &str| {
        let text = "fn f() { a(); if b { c(e); d(e); } if e < 1 { g() } }";
        draw::of(Source { path: path.into(), text: text.into() }).unwrap()
    };
    let names = |mutants: Vec<Mutant>| -> Vec<String> { mutants.into_iter().map(|mutant| mutant.id).collect() };
    let one = names(draw::order(of("arch/src/a.rs"), 1));
    assert_eq!(one, names(draw::order(of("arch/src/a.rs"), 1)));
    assert_ne!(one, names(draw::order(of("arch/src/a.rs"), 2)));
    let mut two = names(draw::order([of("arch/src/a.rs"), of("kernel/src/mm/b.rs")].concat(), 1));
    assert_eq!(two.len(), 2 * one.len());
    two.retain(|name| one.contains(name));
    assert_eq!(two.len(), one.len());
    // Rules take turns: the first of them are all different.
    let first: Vec<Rule> =
        draw::order(of("arch/src/a.rs"), 1).iter().map(|mutant| mutant.change.rule).take(4).collect();
    let distinct: BTreeSet<Rule> = first.iter().copied().collect();
    assert_eq!(distinct.len(), 4, "{first:?}");
}

/// A git repository with one crate, in the place of an area of the kernel.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("granule-mutants-{name}-{}", std::process::id()));
        let fake = Self(root);
        let package = "[package]\nname = \"granule-arch\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\npath = \"arch/src/lib.rs\"\n";
        fake.write("Cargo.toml", package);
        fake.write("Cargo.lock", "version = 4\n[[package]]\nname = \"granule-arch\"\nversion = \"0.1.0\"\n");
        fake.write(".gitignore", "/target/\n");
        fake.write("arch/src/lib.rs", LIBRARY);
        assert!(Command::new("git").args(["init", "-q"]).current_dir(&fake.0).status().unwrap().success());
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn mutants(&self) -> Vec<Mutant> {
        let text = fs::read_to_string(self.0.join("arch/src/lib.rs")).unwrap();
        draw::order(draw::of(Source { path: "arch/src/lib.rs".into(), text }).unwrap(), 0)
    }

    /// The verdicts of all mutants, by the number of the line and the rule; only those of `Records` without a `Host`.
    fn run(&self) -> Vec<(usize, &'static str, Verdict)> {
        self.run_some(self.mutants().len())
    }

    /// The verdicts of so many.
    fn run_some(&self, count: usize) -> Vec<(usize, &'static str, Verdict)> {
        let tools = Tools::for_tests(&self.0);
        let tree = Tree::copy(&self.0, &self.0.join("target/mutants/tree")).unwrap();
        let here = tools.at(&tree.root);
        let mutants = self.mutants();
        let records =
            Records::open(&self.0.join("target/mutants/0"), &tree.hash, record::HOST, Kept::default()).unwrap();
        let host = Host { tools: &here, tree: &tree, seed: 0, count, packages: |_| &["granule-arch"] };
        let mut session = Session { count, known: None, records, host, on_host: true, target: None, baseline: None };
        let mut verdicts: Vec<_> = session
            .run(&mutants)
            .unwrap()
            .into_iter()
            .map(|(mutant, verdict)| (mutant.line(), mutant.change.rule.name(), verdict))
            .collect();
        verdicts.sort_by_key(|(line, rule, _)| (*line, *rule));
        verdicts
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A test sees `seen`; none calls `unseen`; one calls `ignored` and forgets to compare; one waits for `waited`.
const LIBRARY: &str = "\
pub fn seen(a: u32) -> u32 { a + 1 }
pub fn unseen(a: u32) -> u32 { a + 1 }
pub fn ignored(a: u32) -> u32 { a + 1 }
pub fn waited(a: u32) -> u32 { a + 1 }
#[cfg(test)]
mod tests {
    #[test]
    fn compares() { assert_eq!(super::seen(1), 2); }
    #[test]
    fn forgets() { super::ignored(1); }
    #[test]
    fn crashes() { if super::waited(1) != 2 { std::process::abort() } }
}
";

#[test]
fn a_verdict_is_that_of_the_tests_that_reach_the_place_and_is_kept() {
    let fake = Fake::new("verdict");
    let killed = |by: &str| Verdict::Killed(by.into());
    let verdicts = fake.run();
    assert_eq!(verdicts.len(), 4);
    assert_eq!(verdicts[0], (1, "bound", killed("granule_arch::tests::compares")));
    assert_eq!(verdicts[1], (2, "bound", Verdict::Survived));
    assert_eq!(verdicts[2], (3, "bound", Verdict::Survived));
    assert!(
        matches!(&verdicts[3].2, Verdict::Killed(by) if by.starts_with("a crash of granule_arch::tests::crashes")),
        "{verdicts:?}"
    );

    // The place that no test reaches needs no build: its mutant is not tried on the host.
    let text = fs::read_to_string(fake.0.join("target/mutants/0/reach.json")).unwrap();
    let reached = fake.mutants().into_iter().map(|mutant| (mutant.line(), text.matches(&mutant.id).count()));
    // Each name stands among those that have a probe and a copy, and once for the test that reaches it.
    let reached: std::collections::BTreeMap<usize, usize> = reached.collect();
    assert_eq!(reached.into_values().collect::<Vec<_>>(), [3, 2, 3, 3]);

    // The user's own tree was only read.
    assert_eq!(fs::read_to_string(fake.0.join("arch/src/lib.rs")).unwrap(), LIBRARY);

    // A second run takes the verdicts as they are, even without anything to build.
    let tree = fake.0.join("target/mutants/tree/target");
    fs::remove_dir_all(&tree).unwrap();
    assert_eq!(fake.run(), verdicts);
    assert!(!tree.exists());

    // A mutant that survived on the host has not survived on the target.
    let hash = Tree::copy(&fake.0, &fake.0.join("target/mutants/tree")).unwrap().hash;
    let known = |tests| {
        let records = Records::open(&fake.0.join("target/mutants/0"), &hash, tests, Kept::default()).unwrap();
        fake.mutants().iter().filter(|mutant| records.find(mutant).is_some()).count()
    };
    assert_eq!([record::HOST, record::TARGET, record::ALL].map(known), [4, 2, 2]);
    fs::remove_dir_all(fake.0.join("target/mutants/tree")).unwrap();

    // With a test more, only what had survived is tried again.
    let more = LIBRARY.replace("super::ignored(1);", "assert_eq!(super::ignored(1), 2);");
    fake.write("arch/src/lib.rs", &more);
    let again = fake.run();
    assert_eq!(again[2].2, killed("granule_arch::tests::forgets"));
    assert_eq!((&again[0], &again[1]), (&verdicts[0], &verdicts[1]));
}

/// Blocks in blocks, two mutants in one block, and one whose change reaches beyond its block, which has a probe alone.
#[test]
fn many_mutants_are_in_one_source_whose_lines_keep_their_numbers() {
    let text = "fn f(a: u32) -> u32 {\n    // First.\n    if g(a) { h(a + 1); }\n    a - 1 // Then.\n}\nfn g() {}\n";
    let source = || Source { path: "a.rs".into(), text: text.into() };
    let mut mutants = draw::of(source()).unwrap();
    let beyond = text.find("a - 1").unwrap()..text.find("g() {}").unwrap();
    mutants.push(draw::by_hand(source(), beyond, "1 }\nfn ").unwrap());
    let all: Vec<&Mutant> = mutants.iter().collect();
    let names: BTreeSet<String> = mutants.iter().map(|mutant| mutant.id.clone()).collect();
    let placed = placed::place(text, &all, &names, &names, Path::new("/chosen"));
    syn::parse_file(&placed.text).unwrap();
    assert_eq!(placed.text.lines().count(), text.lines().count(), "{}", placed.text);
    for (line, part) in [(1, "// First."), (3, "// Then."), (5, "fn g() {}")] {
        assert!(placed.text.lines().nth(line).is_some_and(|found| found.contains(part)), "{}", placed.text);
    }
    let copies: Vec<&str> = (0..placed.text.len()).filter_map(|byte| placed.copy_at(byte)).collect();
    let copied: BTreeSet<&str> = copies.into_iter().collect();
    assert_eq!(copied.len(), mutants.len() - 1, "{}", placed.text);
    assert!(!copied.contains(mutants.last().unwrap().id.as_str()));
    assert!(mutants.iter().all(|mutant| placed.text.contains(&format!("@reached {}", mutant.id))));
}

/// A few are built alone, and the nearest tests run before it is known what the others reach.
#[test]
fn the_verdicts_of_few_mutants_are_those_of_many() {
    let fake = Fake::new("few");
    for verdict in fake.run_some(1) {
        assert!(fake.run().contains(&verdict), "{verdict:?}");
    }
    assert!(fake.0.join("target/mutants/0/granule_arch.sound").exists());
}

/// The copy that does not compile is left out of the build of all, and its mutant is built alone.
#[test]
fn a_copy_that_does_not_compile_leaves_the_others_in_place() {
    let fake = Fake::new("copies");
    let library = "pub fn f(c: u32) -> u32 { let a: u32; a = c; a + 1 - 1 + 1 }\n#[cfg(test)] #[test] fn t() { assert_eq!(f(1), 2); }\n";
    fake.write("arch/src/lib.rs", library);
    let verdicts = fake.run();
    assert_eq!(verdicts.len(), 4, "{verdicts:?}");
    assert!(verdicts[..3].iter().all(|(.., verdict)| *verdict == Verdict::Killed("granule_arch::t".into())));
    assert!(matches!(&verdicts[3].2, Verdict::Invalid(why) if why.contains("isn't initialized")), "{verdicts:?}");
    let text = fs::read_to_string(fake.0.join("target/mutants/0/reach.json")).unwrap();
    // Each has a probe that the test reaches, and one has a copy besides.
    let names = |mutant: Mutant| (mutant.change.rule.name(), text.matches(&mutant.id).count());
    let mut names: Vec<_> = fake.mutants().into_iter().map(names).collect();
    names.sort_unstable();
    assert_eq!(names, [("bound", 3), ("bound", 3), ("bound", 3), ("omission", 2)]);
}

#[test]
fn a_test_that_fails_without_the_mutant_says_nothing_of_it() {
    let fake = Fake::new("failing");
    let library = "pub fn f(a: u32) -> u32 { a + 1 }\n#[cfg(test)]\nmod tests {\n\
                   #[test] fn fails() { assert_eq!(super::f(1), 7); }\n#[test] fn passes() { super::f(1); }\n}\n";
    fake.write("arch/src/lib.rs", library);
    assert_eq!(fake.run(), [(1, "bound", Verdict::Survived)]);
}

/// On another machine there is nothing but the file: what has died is not tried again, unless its lines have changed.
#[test]
fn what_has_died_goes_with_the_sources() {
    let fake = Fake::new("kept");
    let mutants = fake.mutants();
    let names = mutants.iter().map(|mutant| mutant.id.clone()).collect();
    let died = |by: &str| Verdict::Killed(by.to_owned());
    let results = [
        (mutants[0].clone(), died("a check of /tree/build/an.img:\tit\ndiffers")),
        (mutants[1].clone(), Verdict::Survived),
        (mutants[2].clone(), died("a test")),
    ];
    let mut kept = Kept::default();
    kept.update(&results, Path::new("/tree"), &names);
    fs::create_dir_all(fake.0.join("docs")).unwrap();
    kept.write(&fake.0).unwrap();
    let read = Kept::read(&fake.0).unwrap();
    assert_eq!(read, kept);

    let records = Records::open(&fake.0.join("target/mutants/1"), "another tree", record::ALL, read.clone()).unwrap();
    let found: Vec<_> = mutants.iter().map(|mutant| records.find(mutant)).collect();
    assert_eq!(found, [Some(died("a check of build/an.img: it differs")), None, Some(died("a test")), None]);

    fake.write("arch/src/lib.rs", &LIBRARY.replace("a + 1", "a + 2 - 1"));
    let changed = fake.mutants();
    assert!(changed.iter().all(|mutant| records.find(mutant).is_none()));
    kept.update(&[], Path::new("/tree"), &changed.iter().map(|mutant| mutant.id.clone()).collect());
    assert_eq!(kept, Kept::default());

    fake.write(kept::FILE, "a\tb\tc\n");
    let error = Kept::read(&fake.0).unwrap_err().to_string();
    assert!(error.contains("is not name, file, rule, by"), "{error}");
}

#[test]
fn what_does_not_compile_is_no_mutant_and_the_report_has_the_survivors() {
    let fake = Fake::new("report");
    fake.write("arch/src/lib.rs", "pub fn f(a: &str) -> u32 { let b = a.len(); b as u32 }\npub fn g() { f(\"\"); }\n");
    let mutants = fake.mutants();
    assert_eq!(mutants.len(), 1);
    let killed = (mutants[0].clone(), Verdict::Killed("a test".into()));
    let survived = (mutants[0].clone(), Verdict::Survived);
    let invalid = (mutants[0].clone(), Verdict::Invalid("an error".into()));
    let text = record::report(&[killed, survived, invalid]);
    assert!(text.contains("survived: omission arch/src/lib.rs:2"), "{text}");
    assert!(text.contains("-pub fn g() { f(\"\"); }"), "{text}");
    assert!(text.contains("mutants: 1 of 2 died, 1 survived (50 %), 0 explained"), "{text}");

    let wrong = "pub fn f(a: bool, b: bool) -> usize { [0; 3 - 1].len() + usize::from(a && b) }\n\
                 const N: usize = 3 - 1; const _: [u8; 2] = [0; N];\n#[cfg(test)] #[test] fn t() { f(true, true); }\n";
    fake.write("arch/src/lib.rs", wrong);
    let verdicts = fake.run();
    assert!(
        verdicts.iter().any(|(line, rule, verdict)| {
            (*line, *rule) == (2, "bound")
                && matches!(verdict, Verdict::Invalid(why) if why.contains("mismatched types"))
        }),
        "{verdicts:?}"
    );
}

#[test]
fn every_area_has_mutants_and_a_wrong_path_is_an_error() {
    let root = &granule_tools::root();
    let all = draw::all(root, None).unwrap();
    for area in &super::table::AREAS {
        let count = all.iter().filter(|mutant| Path::new(&mutant.source.path).starts_with(area.path)).count();
        assert!(count > 100, "{}", area.path);
        for package in area.host {
            let folder = ["arch", "kernel", "kernel/pgtable", "kernel/smmuv3", "kernel/model", "kernel/loom"]
                .into_iter()
                .find(|folder| {
                    let manifest = fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap();
                    manifest.contains(&format!("name = \"{package}\""))
                });
            assert!(folder.is_some(), "{package}");
        }
    }
    let error = draw::all(root, Some("docs")).unwrap_err().to_string();
    assert!(error.starts_with("no mutant at \"docs\""), "{error}");
    let line = draw::all(root, Some("arch/src/barrier.rs:25")).unwrap();
    assert!(line.iter().all(|mutant| mutant.line() == 25) && !line.is_empty(), "{line:?}");
}

/// A row that no longer fits fails here, and not first when mutants are drawn.
#[test]
fn every_row_of_the_table_fits_a_mutant_of_today() {
    let root = &granule_tools::root();
    let known = Known::read(root).unwrap();
    for mutant in known.explained(root).unwrap() {
        assert!(known.reason(&mutant).is_some_and(|reason| !reason.is_empty()), "{}", mutant.place());
    }
    let listed = known.listed(root).unwrap();
    assert!(listed.iter().all(|mutant| mutant.text() != mutant.source.text), "a row that changes nothing");
}

#[test]
fn rows_explain_survivors_and_list_mutants_and_stale_ones_fail() {
    let fake = Fake::new("known");
    let table = |rows: &str| {
        fake.write(known::TABLE, rows);
        Known::read(&fake.0).unwrap()
    };
    let row = |kind: &str, from: &str, rest: &str| {
        format!("[[{kind}]]\nfile = \"arch/src/lib.rs\"\nfrom = '{from}'\n{rest}\n")
    };
    let from = "pub fn unseen(a: u32) -> u32 { a + 1 }";
    let harmless = row("harmless", from, "to = 'pub fn unseen(a: u32) -> u32 { a + 0u32 }'\nreason = 'no test'");
    let harmless = harmless.replace("0u32", "0");
    let known = table(&harmless);
    let explained = known.explained(&fake.0).unwrap();
    assert_eq!(explained.iter().map(|mutant| mutant.line()).collect::<Vec<_>>(), [2]);
    let reasons: Vec<_> = fake.mutants().iter().filter_map(|mutant| known.reason(mutant).map(str::to_owned)).collect();
    assert_eq!(reasons, ["no test"]);
    let error = table(&harmless.replace("a + 0", "a + 2")).explained(&fake.0).unwrap_err().to_string();
    assert!(error.contains("no mutant of arch/src/lib.rs makes"), "{error}");

    let listed = |rows: &str| table(rows).listed(&fake.0);
    let lines = |what: &str| format!("a + {what} }}\\npub fn waited");
    let by_hand = row("listed", &lines("1"), &format!("to = '{}'\nwhat = ''", lines("2"))).replace('\'', "\"");
    let by_hand = listed(&by_hand).unwrap();
    let text = LIBRARY.replace("ignored(a: u32) -> u32 { a + 1", "ignored(a: u32) -> u32 { a + 2");
    assert_eq!((by_hand.len(), by_hand[0].text()), (1, text));
    let block = by_hand[0].change.block.clone();
    assert!(block.is_some_and(|block| LIBRARY[..block.start].ends_with("ignored(a: u32) -> u32 {")));
    let by_rule = listed(&row("listed", "fn waited(a: u32) -> u32 { a + 1 }", "what = ''")).unwrap();
    assert_eq!(by_rule.iter().map(|mutant| mutant.line()).collect::<Vec<_>>(), [4]);
    let error = listed(&row("listed", "a + 1", "what = ''")).unwrap_err().to_string();
    assert!(error.contains("4 times"), "{error}");
}

/// With `--long`: ten mutants of the whole kernel, on the host and on the target.
#[test]
#[ignore = "takes half an hour: ./x test --long"]
fn ten_mutants_get_their_verdict_and_most_die() {
    let root = &granule_tools::root();
    let output = Command::new(root.join("x")).args(["mutants", "--seed", "1", "--count", "10"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let died: Option<usize> =
        text.lines().find_map(|line| line.strip_prefix("mutants: ")?.split_once(" of 10 died")?.0.parse().ok());
    assert!(died.is_some_and(|died| died >= 7), "{text}");
}
