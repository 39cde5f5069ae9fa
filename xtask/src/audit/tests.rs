//! The audit of tests-qemu/guest/src/planted.rs, in the image of the tests as it was built last.

use std::path::{Path, PathBuf};

use super::image::Image;
use super::reach::{Reached, reach};
use super::sources::Sources;
use super::tables::{Call, Calls, Panic, Panics, Root, Source};
use super::{judge, reason};

const FILE: &str = "tests-qemu/guest/src/planted.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn call(targets: &[&str]) -> Call {
    let at = Source { file: FILE.into(), function: "root".into(), ..Source::default() };
    Call { at, within: None, targets: targets.iter().map(|&name| name.into()).collect(), reason: "a test".into() }
}

fn follow(calls: Vec<Call>) -> Result<Reached, anyhow::Error> {
    let elf = std::fs::read(root().join("build/granule-tests.elf")).expect("`./x build` comes first");
    let image = Image::read(&elf, &root())?;
    let roots = vec![Root { functions: vec!["granule_tests::planted::root".into()], what: "a test".into() }];
    let calls = Calls { roots, calls };
    reach(&image, &calls, &Sources::new(&root()))
}

/// The functions with panics that are found in the file.
fn found(reached: &Reached) -> Vec<&str> {
    reached.sites.keys().filter(|source| source.file == FILE).map(|source| source.function.as_str()).collect()
}

#[test]
fn a_panic_behind_calls_pointers_and_vtables_is_found() {
    let targets = ["granule_tests::planted::by_*", "<granule_tests::planted::Plant as *>::act"];
    let reached = follow(vec![call(&targets)]).unwrap();
    assert_eq!(found(&reached), ["act", "by_pointer", "by_table", "inlined", "is_called"]);
    assert!(reached.unlisted.is_empty());
    let site = |function: &str| reached.sites.iter().find(|(source, _)| source.function == function).unwrap();
    let (source, site) = site("is_called");
    assert_eq!((source.text.as_str(), site.kind.as_str()), ("black_box([1, 2, 3])[number]", "panic_bounds_check"));
    let names = ["root", "calls", "is_called"].map(|name| format!("granule_tests::planted::{name}"));
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
    let reached = follow(vec![call(&["granule_tests::planted::by_table"])]).unwrap();
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
    let reached = follow(vec![call(&["granule_tests::planted::misspelt"])]).unwrap();
    assert!(matches!(&reached.misnamed[..], [one] if one.contains("misspelt")));
}
