//! Which functions can be reached from the roots, and which panics are in them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Result, ensure};

use super::image::{Function, Image, Line};
use super::sources::Sources;
use super::tables::{Calls, Source, matches};

/// Patterns of functions that a panic ends in: what they do is the report, and nothing after it. And of those that panic
/// where memory runs out, so that each call of one is listed and not their own panic, which is the same for all.
const ENDS: [&str; 8] = [
    "core::panicking::*",
    "__rustc::rust_begin_unwind",
    "granule::panic::target::die",
    "alloc::alloc::handle_alloc_error",
    "alloc::raw_vec::handle_error",
    "alloc::raw_vec::capacity_overflow",
    "alloc::raw_vec::*::do_reserve_and_handle",
    "alloc::raw_vec::*::grow_one",
];

/// Calls between functions: those that the code names, and those by a pointer as the table has them.
pub(crate) struct Graph<'a, 'i> {
    image: &'a Image<'i>,
    calls: &'a Calls,
    sources: &'a Sources,
    /// For each entry of the table, the functions that its patterns mean.
    targets: Vec<BTreeSet<usize>>,
    /// Targets in the table that mean no function.
    misnamed: Vec<String>,
}

/// Where a function calls, each with the functions that it may call there.
pub(crate) type Sites = Vec<(u64, BTreeSet<usize>)>;

impl<'a, 'i> Graph<'a, 'i> {
    pub(crate) fn new(image: &'a Image<'i>, calls: &'a Calls, sources: &'a Sources) -> Self {
        let (targets, misnamed) = targets(image, calls);
        Self { image, calls, sources, targets, misnamed }
    }

    /// The calls of a function; and those by a pointer that no entry of the table fits, each of which may reach every
    /// function whose address is taken.
    ///
    /// # Errors
    /// When the debug information cannot be read.
    pub(crate) fn called_by(&self, index: usize) -> Result<(Sites, Vec<(Source, Line)>)> {
        let function = &self.image.functions[index];
        let mut sites: Sites = function.does.calls.iter().map(|(at, to)| (*at, BTreeSet::from([*to]))).collect();
        let mut unlisted = Vec::new();
        for at in &function.does.pointer_calls {
            let mut found = self.sources.of_instruction(self.image, function, *at)?;
            if let Some(entry) = self.calls.calls.iter().position(|call| call.fits(&function.names, &found)) {
                sites.push((*at, self.targets[entry].clone()));
            } else {
                unlisted.extend(found.pop());
                sites.push((*at, self.image.taken.clone()));
            }
        }
        Ok((sites, unlisted))
    }
}

/// The panics and calls that the roots reach.
#[derive(Debug)]
pub(crate) struct Reached {
    /// The panics, each once, by source.
    pub(crate) sites: BTreeMap<Source, Site>,
    /// Calls by a pointer that no entry of the table fits, with the way there.
    pub(crate) unlisted: BTreeMap<Source, (Line, Vec<String>)>,
    /// Targets in the table that mean no function.
    pub(crate) misnamed: Vec<String>,
    /// How many functions are reached.
    pub(crate) functions: usize,
    /// How many panics the image has, reached or not.
    pub(crate) places: usize,
}

/// A panic that can be reached.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) line: Line,
    /// The kind of panic, by the function that is called.
    pub(crate) kind: String,
    /// The shortest way there: a root first, the function with the panic in it last.
    pub(crate) chain: Vec<String>,
}

/// Follows all calls from the roots.
///
/// # Errors
/// When a pattern fits nothing, or the debug information cannot be read.
pub(crate) fn reach(image: &Image<'_>, calls: &Calls, sources: &Sources) -> Result<Reached> {
    let panics = panic_functions(image);
    let graph = Graph::new(image, calls, sources);
    let mut from: BTreeMap<usize, Option<usize>> = BTreeMap::new();
    let mut next = VecDeque::new();
    for root in roots(image, calls)? {
        from.entry(root).or_insert_with(|| {
            next.push_back(root);
            None
        });
    }
    let mut reached = Reached {
        sites: BTreeMap::new(),
        unlisted: BTreeMap::new(),
        misnamed: graph.misnamed.clone(),
        functions: 0,
        places: image.places.len(),
    };
    while let Some(index) = next.pop_front() {
        let (sites, unlisted) = graph.called_by(index)?;
        for (source, line) in unlisted {
            reached.unlisted.entry(source).or_insert_with(|| (line, chain(image, &from, index)));
        }
        let called: BTreeSet<usize> = sites.into_iter().flat_map(|(_, targets)| targets).collect();
        for to in called.into_iter().filter(|to| !panics.contains(to)) {
            from.entry(to).or_insert_with(|| {
                next.push_back(to);
                Some(index)
            });
        }
    }
    reached.functions = from.len();
    for index in from.keys() {
        for (source, line, kind) in sites(image, *index, &panics, sources)? {
            let chain = || chain(image, &from, *index);
            let shorter = |site: &Site| site.chain.len() <= chain().len();
            if !reached.sites.get(&source).is_some_and(shorter) {
                reached.sites.insert(source, Site { line, kind, chain: chain() });
            }
        }
    }
    Ok(reached)
}

/// The panics in one function: each place whose address it forms; each call of a panic function where it forms none,
/// so that the place came from elsewhere; each trap.
fn sites(
    image: &Image<'_>,
    index: usize,
    panics: &BTreeSet<usize>,
    sources: &Sources,
) -> Result<Vec<(Source, Line, String)>> {
    let function = &image.functions[index];
    let mut sites = Vec::new();
    for (at, place) in &function.does.places {
        let line = &image.places[place];
        if sources.is_log(line) {
            continue;
        }
        let call = function.does.calls.iter().filter(|(call, to)| call > at && panics.contains(to)).min();
        let kind = call.map_or("panic", |(_, to)| kind(&image.functions[*to]));
        sites.push((sources.of_place(line, &image.frames(*at)?), line.clone(), kind.to_owned()));
    }
    for (at, to) in &function.does.calls {
        let called = &image.functions[*to];
        let name = kind(called);
        // Those that have their own place.
        let has_place = name == "die" || called.names.iter().any(|name| name.starts_with("alloc::"));
        if panics.contains(to) && (has_place || function.does.places.is_empty()) {
            let found = sources.of_instruction(image, function, *at)?.pop();
            sites.extend(found.map(|(source, line)| (source, line, name.to_owned())));
        }
    }
    for at in &function.does.traps {
        let found = sources.of_instruction(image, function, *at)?.pop();
        sites.extend(found.map(|(source, line)| (source, line, "trap".to_owned())));
    }
    Ok(sites)
}

/// The last part of a panic function's name.
fn kind(function: &Function) -> &str {
    let name = &function.names[0];
    name.rsplit("::").next().unwrap_or(name)
}

/// The functions that do nothing but panic in their caller's name: [`ENDS`], and those of the toolchain that call one,
/// have no place of their own and do not return.
pub fn panic_functions(image: &Image<'_>) -> BTreeSet<usize> {
    let named = |function: &Function, test: &dyn Fn(&str) -> bool| function.names.iter().any(|name| test(name));
    let all = || image.functions.iter().enumerate();
    let mut panics: BTreeSet<usize> = all()
        .filter(|(_, function)| named(function, &|name| ENDS.iter().any(|pattern| matches(pattern, name))))
        .map(|(index, _)| index)
        .collect();
    loop {
        let more: Vec<usize> = all()
            .filter(|(index, function)| {
                !panics.contains(index)
                    && named(function, &|name| name.starts_with("core::") || name.starts_with("alloc::"))
                    && !function.does.returns
                    && function.does.places.is_empty()
                    && function.does.calls.iter().any(|(_, to)| panics.contains(to))
            })
            .map(|(index, _)| index)
            .collect();
        if more.is_empty() {
            return panics;
        }
        panics.extend(more);
    }
}

/// The functions to begin at.
pub(crate) fn roots(image: &Image<'_>, calls: &Calls) -> Result<Vec<usize>> {
    let mut roots = Vec::new();
    for pattern in calls.roots.iter().flat_map(|root| &root.functions) {
        let found = fitting(image, 0..image.functions.len(), pattern);
        ensure!(!found.is_empty(), "no function of the image is called `{pattern}`, which is to be a root");
        roots.extend(found);
    }
    Ok(roots)
}

/// For each entry of the table of calls, the functions that its patterns mean; and the patterns that mean none.
fn targets(image: &Image<'_>, calls: &Calls) -> (Vec<BTreeSet<usize>>, Vec<String>) {
    let (mut targets, mut misnamed) = (Vec::new(), Vec::new());
    for call in &calls.calls {
        let mut reached = BTreeSet::new();
        for pattern in &call.targets {
            let found = match pattern.strip_prefix("section ") {
                Some(section) => image.pointed_to.get(section).into_iter().flatten().copied().collect(),
                None => fitting(image, image.taken.iter().copied(), pattern),
            };
            if found.is_empty() {
                misnamed.push(format!("{pattern} of {} {}: {}", call.at.file, call.at.function, call.at.text));
            }
            reached.extend(found);
        }
        targets.push(reached);
    }
    (targets, misnamed)
}

pub(crate) fn fitting(image: &Image<'_>, among: impl IntoIterator<Item = usize>, pattern: &str) -> Vec<usize> {
    let fits = |index: &usize| image.functions[*index].names.iter().any(|name| matches(pattern, name));
    among.into_iter().filter(fits).collect()
}

/// The functions on the way from a root to `index`.
fn chain(image: &Image<'_>, from: &BTreeMap<usize, Option<usize>>, index: usize) -> Vec<String> {
    let way = std::iter::successors(Some(index), |at| from.get(at).copied().flatten());
    let mut names: Vec<String> = way.map(|at| image.functions[at].names[0].clone()).collect();
    names.reverse();
    names
}
