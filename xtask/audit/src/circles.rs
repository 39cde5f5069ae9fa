//! Circles of files: each imports the others, itself or by way of files between.

use std::collections::BTreeSet;
use std::iter;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::layers::Import;

/// The module that a path's last name is in; the crate's root is the last one, and is empty.
fn parent(path: &str) -> Option<&str> {
    (!path.is_empty()).then(|| path.rsplit_once("::").map_or("", |(parent, _)| parent))
}

/// The circles that `imports` close between `files`, the paths of the modules with a file of their own: the largest
/// first, each sorted.
pub(super) fn circles<'a>(files: &'a BTreeSet<String>, imports: &BTreeSet<Import>) -> Vec<Vec<&'a str>> {
    let file_of = |path: &str| iter::successors(Some(path), |path| parent(path)).find_map(|path| files.get(path));
    let ends =
        imports.iter().filter_map(|import| Some((file_of(&import.from)?.as_str(), file_of(&import.to)?.as_str())));
    let graph: DiGraphMap<&str, ()> = ends.filter(|(from, to)| from != to).collect();
    let mut circles: Vec<_> = tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1).collect();
    circles.iter_mut().for_each(|circle| circle.sort_unstable());
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}
