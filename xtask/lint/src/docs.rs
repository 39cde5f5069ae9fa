//! Rules of the documentation: reasons for dependencies, links that resolve, sizes, names that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use granule_suite::host::WITHOUT_EXAMPLES;
use granule_tools::{TARGET_PACKAGES, TRIPLE, files, root};

const README: &str = include_str!("../../../README.md");
const ARCHITECTURE: &str = include_str!("../../../docs/ARCHITECTURE.md");
const BENCHMARKS: &str = include_str!("../../../docs/BENCHMARKS.md");
const DEPENDENCIES: &str = include_str!("../../../docs/DEPENDENCIES.md");
const TESTING: &str = include_str!("../../../docs/TESTING.md");

/// The pages of the reference, one after the other.
fn reference() -> String {
    files(&root().join("docs/ref"), "md").unwrap().iter().map(|page| fs::read_to_string(page).unwrap()).collect()
}

fn manifest(path: &Path) -> toml::Table {
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The folders of the workspace's members.
fn members() -> Vec<PathBuf> {
    let root = root();
    let workspace = manifest(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| root.join(member.as_str().unwrap())).collect()
}

/// The direct dependencies of a manifest that are not of this workspace, of all kinds and platforms.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let platforms = targets.into_iter().flat_map(|targets| targets.values().filter_map(toml::Value::as_table));
    std::iter::once(manifest)
        .chain(platforms)
        .flat_map(|table| KINDS.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flat_map(|table| table.keys().cloned())
        .filter(|name| !name.starts_with("granule"))
        .collect()
}

/// The names in code style that begin the rows of a page's tables.
fn rows(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn each_direct_dependency_has_its_reason_and_each_reason_its_dependency() {
    let named: BTreeSet<String> =
        members().iter().flat_map(|member| dependencies(&manifest(&member.join("Cargo.toml")))).collect();
    assert!(named.len() > 20, "{named:?}");
    assert_eq!(named, rows(DEPENDENCIES));
    let all: BTreeSet<String> = manifest(&root().join("Cargo.toml"))["workspace"]["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .filter(|name| !name.starts_with("granule"))
        .cloned()
        .collect();
    assert_eq!(named, all, "the workspace's list has what no crate uses");
}

#[test]
fn each_direct_dependency_occurs_in_the_sources_of_its_crate() {
    let members = members();
    let mut unused = Vec::new();
    for member in &members {
        let sources = files(member, "rs").unwrap();
        // Members may lie in each other's folders.
        let inner = |path: &PathBuf| {
            members.iter().any(|other| other != member && other.starts_with(member) && path.starts_with(other))
        };
        let own: Vec<&PathBuf> = sources.iter().filter(|path| !inner(path)).collect();
        let mut text: String = own.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        // Files of another crate that this one compiles once more.
        for path in own {
            let source = fs::read_to_string(path).unwrap();
            let named = source.split("#[path = \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
            text.extend(named.filter_map(|named| fs::read_to_string(path.parent()?.join(named)).ok()));
        }
        for name in dependencies(&manifest(&member.join("Cargo.toml"))) {
            let path = name.replace('-', "_");
            if ![format!("{path}::"), format!("use {path};"), format!("{path} as ")]
                .iter()
                .any(|form| text.contains(form))
            {
                unused.push(format!("{}: {name}", member.display()));
            }
        }
    }
    assert!(unused.is_empty(), "{unused:#?}");
}

/// The names that a page's headings have in links.
fn sections(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|letter| letter.is_alphanumeric() || *letter == '-').collect()
    };
    headings.map(name).collect()
}

#[test]
fn links_between_pages_resolve() {
    let pages = files(&root(), "md").unwrap();
    assert!(pages.len() > 15, "{pages:?}");
    let mut broken = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let named = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let is_page = named.extension().is_some_and(|extension| extension == "md");
            let has_section =
                || section.is_empty() || !is_page || sections(&fs::read_to_string(&named).unwrap()).contains(section);
            if !(file.starts_with("http") || named.exists() && has_section()) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn pages_keep_their_size() {
    for (name, page, lines) in [("README", README, 90), ("ARCHITECTURE", ARCHITECTURE, 200), ("TESTING", TESTING, 340)]
    {
        assert!(page.lines().count() <= lines, "{name}.md has more than {lines} lines");
        let long: Vec<&str> = page.lines().filter(|line| line.chars().count() > 100).collect();
        assert!(long.is_empty(), "{name}.md has lines of more than 100 columns: {long:#?}");
    }
}

#[test]
fn each_crate_has_a_readme() {
    let without: Vec<PathBuf> = members().into_iter().filter(|member| !member.join("README.md").exists()).collect();
    assert!(without.is_empty(), "{without:?}");
}

/// An example in one of these would never be compiled.
#[test]
fn packages_whose_examples_are_not_run_have_none() {
    let name = |member: &PathBuf| manifest(&member.join("Cargo.toml"))["package"]["name"].as_str().unwrap().to_owned();
    let left_out = members().into_iter().filter(|member| WITHOUT_EXAMPLES.contains(&name(member).as_str()));
    let left_out: Vec<PathBuf> = left_out.collect();
    assert_eq!(left_out.len(), WITHOUT_EXAMPLES.len(), "{left_out:?}");
    for file in left_out.iter().flat_map(|member| files(&member.join("src"), "rs").unwrap()) {
        assert_eq!(examples(&fs::read_to_string(&file).unwrap()), Vec::<String>::new(), "{}", file.display());
    }
    let fences =
        "/// ```text\n/// a\n/// ```\n//! ```no_run\n//! b();\n//! ```\n    /// ```\n    /// c();\n    /// ```\n";
    assert_eq!(examples(fences), ["no_run", ""], "the test finds them");
}

/// The words after the opening fences of the examples that rustdoc would compile.
fn examples(source: &str) -> Vec<String> {
    let fences = source.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?.trim_start().strip_prefix("```")
    });
    // Each second one closes.
    fences.step_by(2).filter(|kind| *kind != "text").map(str::to_owned).collect()
}

/// The row beside Linux is the one that was measured.
#[test]
fn the_readme_quotes_the_bench_table() {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = |page: &str| page.lines().find(|line| line.starts_with("| `set_memory_ro` |")).map(cells).unwrap();
    let mut measured = row(BENCHMARKS);
    // The README leaves out the bound, and whether it is met.
    measured.remove(4);
    measured.remove(2);
    assert_eq!(row(README), measured);
}

/// Where the reference compares rows, its numbers are the measured ones.
#[test]
fn the_reference_quotes_the_bench_tables() {
    const OWN: &str = "scale/loose/split_group/own/";
    const ONE: &str = "scale/loose/split_group/one/";
    const BLOCK: &str = "scale/loose/split_block/";
    let cell = |row: &str, column: usize| {
        let begin = format!("| `{row}` |");
        let line = BENCHMARKS.lines().find(|line| line.starts_with(&begin)).unwrap_or_else(|| panic!("no row {row}"));
        let text = line.split('|').nth(column).unwrap().trim();
        // Thousands are set apart in text.
        match text.split_at_checked(text.len().saturating_sub(3)) {
            Some((thousands, rest)) if !text.contains('.') && !thousands.is_empty() => format!("{thousands},{rest}"),
            _ => text.to_owned(),
        }
    };
    let call = |row: &str| cell(row, 3);
    let of_8_cpus = |row: &str, end: &str| cell(&format!("{row}{end}"), 5);
    let lines = |row: &str| format!("{} against {}", of_8_cpus(row, "lock"), of_8_cpus(row, "lockless"));
    let instructions = |row: &str| {
        format!("{} against {}", of_8_cpus(row, "lockless/instructions"), of_8_cpus(row, "lock/instructions"))
    };
    let waits = |row: &str| of_8_cpus(row, "lock/waits");
    let text = reference().split_whitespace().collect::<Vec<_>>().join(" ");
    for sentence in [
        format!("{} instructions for a page of a group that has to be dissolved", call("split_group")),
        format!("be dissolved, {} without the lock", call("split_group/lockless")),
        format!("and {} against {} for a block of", call("split_block"), call("split_block/lockless")),
        format!("its own: {} in a call", lines("scale/split_group/own/").replace(" against", " lines against")),
        format!("poll it: {} for a group of each CPU's own", lines(OWN)),
        format!("{} for one group, {} for one block", lines(ONE), lines(BLOCK)),
        format!("more instructions: {}, {}, and {}", instructions(OWN), instructions(ONE), instructions(BLOCK)),
        format!("({} retries in a call)", of_8_cpus(BLOCK, "lockless/retries")),
        format!("With it {}, {} and {} of the calls wait", waits(OWN), waits(ONE), waits(BLOCK)),
    ] {
        assert!(text.contains(&sentence), "docs/ref does not have what was measured: {sentence}");
    }
}

#[test]
fn the_reference_has_each_machine() {
    let (machines, reference) = (granule_runner::machine::all().unwrap(), reference());
    let missing: Vec<&str> = machines
        .iter()
        .map(|machine| machine.name.as_str())
        .filter(|name| !reference.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The page has the sizes of now, give or take what others change at the same time: five per cent, and its rounding.
#[test]
fn the_architecture_has_the_sizes_of_the_parts() {
    let count = granule_audit::size::count(&root()).unwrap();
    let sizes = count.parts.iter().map(|(part, size)| (*part, size.code));
    let sizes: Vec<(&str, usize)> = sizes.chain([("tests", count.part("sum").unwrap().tests)]).collect();
    let (_, rest) = ARCHITECTURE.split_once("lines of code (`./x audit size`):").unwrap();
    let paragraph = rest.split("\n\n").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let stated: Vec<(&str, f64)> = paragraph
        .split([',', '(', ')'])
        .filter_map(|piece| piece.trim().trim_end_matches('.').rsplit_once(' '))
        .map(|(part, thousands)| (part, thousands.parse().unwrap()))
        .collect();
    assert!(stated.len() > 15, "{stated:?}");
    let wrong = stated.iter().filter(|(part, thousands)| {
        let (_, code) = sizes.iter().find(|(name, _)| name == part).unwrap_or_else(|| panic!("no part {part}"));
        let code = *code as f64 / 1000.0;
        (code - thousands).abs() > code * 0.05 + 0.1
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "ARCHITECTURE.md has {wrong:?}, `./x audit size` {sizes:?}");
}

/// A page that names a module or file of this repository names one that exists.
#[test]
fn paths_in_the_pages_exist() {
    let (mut missing, reference) = (BTreeMap::new(), reference());
    for (name, page) in [("ARCHITECTURE", ARCHITECTURE), ("docs/ref", &reference), ("TESTING", TESTING)] {
        // Paths are relative to the root or to one of these.
        let bases = ["", "kernel/src", "kernel/model", "kernel/loom/tests", "tests-qemu", "tests-qemu/guest/src"];
        for path in page.split('`').skip(1).step_by(2).filter(|text| text.ends_with(".rs") || text.ends_with(".toml")) {
            if !bases.iter().any(|base| root().join(base).join(path).exists()) {
                missing.insert(path, name);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// rust-analyzer shows the packages that run on the target, as `./x build` compiles them.
#[test]
fn the_editor_checks_what_runs_on_the_target() {
    let settings: serde_json::Value = serde_json::from_str(include_str!("../../../.vscode/settings.json")).unwrap();
    for key in ["rust-analyzer.check.overrideCommand", "rust-analyzer.cargo.buildScripts.overrideCommand"] {
        let words: Vec<&str> = settings[key].as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
        let packages: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]).collect();
        assert_eq!(packages, TARGET_PACKAGES, "{key}");
        assert!(words.contains(&TRIPLE), "{key}");
    }
}

/// STYLE.md has the reason and what stands for each instead.
#[test]
fn comments_and_pages_use_the_fields_words() {
    const NOT_USED: [&[&str]; 10] = [
        &["whoever"],
        &["nobody"],
        &["somebody"],
        &["hears"],
        &["is", "told"],
        &["are", "told"],
        &["was", "told"],
        &["not", "to", "be"],
        &["lets", "go"],
        &["let", "go", "of"],
    ];
    let mut found = Vec::new();
    for extension in ["rs", "S", "c", "md", "toml", "ld"] {
        let paths = files(&root(), extension).unwrap();
        // STYLE.md names what is not used, and this file does.
        for path in paths.iter().filter(|path| !path.ends_with("STYLE.md") && !path.ends_with("xtask/lint/src/docs.rs"))
        {
            let text = fs::read_to_string(path).unwrap();
            let prose = |line| match extension {
                "rs" | "S" | "c" => str::split_once(line, "//").map_or("", |(_, comment)| comment),
                "toml" | "ld" => str::split_once(line, '#').map_or("", |(_, comment)| comment),
                _ => line,
            };
            let words: Vec<(usize, String)> = text
                .lines()
                .enumerate()
                .flat_map(|(number, line)| {
                    prose(line).split(|c: char| !c.is_alphanumeric()).map(move |word| (number, word))
                })
                .filter(|(_, word)| !word.is_empty())
                .map(|(number, word)| (number + 1, word.to_lowercase()))
                .collect();
            for phrase in NOT_USED {
                let here = words.windows(phrase.len()).filter(|window| {
                    let near = window.last().unwrap().0 - window[0].0 <= 1;
                    near && window.iter().map(|(_, word)| word.as_str()).eq(phrase.iter().copied())
                });
                found.extend(here.map(|window| format!("{}:{}: {}", path.display(), window[0].0, phrase.join(" "))));
            }
        }
    }
    assert!(found.is_empty(), "{} of them: {found:#?}", found.len());
}
