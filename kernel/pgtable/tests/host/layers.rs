//! The files of the crate, lowest first: none imports one above it.

use std::fs;
use std::path::Path;

const ORDER: [&str; 25] = [
    "error",
    "geometry",
    "permission",
    "source",
    "announce",
    "range",
    "flush",
    "mmu",
    "lazy",
    "stale",
    "table_list",
    "tables",
    "cursor",
    "visit",
    "walk",
    "code",
    "split",
    "look",
    "update",
    "unmap",
    "reclaim",
    "map",
    "cells",
    "dump",
    "host",
];

#[test]
fn no_file_imports_one_above_it() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<String> = fs::read_dir(&sources)
        .unwrap()
        .filter_map(|file| file.unwrap().file_name().to_str().unwrap().strip_suffix(".rs").map(str::to_owned))
        .filter(|file| file != "lib")
        .collect();
    files.sort_unstable_by_key(|file| ORDER.iter().position(|name| name == file));
    assert_eq!(files, ORDER, "each file has its place");
    let mut imports = 0;
    for (place, file) in ORDER.iter().enumerate() {
        let text = fs::read_to_string(sources.join(file).with_extension("rs")).unwrap();
        for import in text.lines().filter_map(|line| line.trim_start().strip_prefix("use crate::")) {
            let module = import.split([':', ';']).next().unwrap();
            // What the crate root exports comes from below.
            let module = if module == "Error" { "error" } else { module };
            let below = ORDER.iter().position(|name| *name == module);
            assert!(below.is_some_and(|below| below < place), "{file} imports {module}, which is above it");
            imports += 1;
        }
    }
    assert!(imports > 50, "{imports}");
}
