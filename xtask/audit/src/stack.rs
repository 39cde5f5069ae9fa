//! `./x audit stack`: the most stack that each entry into the kernel can use.
//!
//! A function's depth at a call is read from its instructions: what they subtract from SP on the way there. The chain of
//! calls that uses most is that of an entry, of a fault that an access of a program's memory takes inside it, and of an
//! interrupt on top. A cycle of calls has no bound of its own: `xtask/audit/stack.toml` gives it one, or the audit fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Result, bail, ensure};
use granule_image::code::{Flow, flow, stack_growth};
use serde::Deserialize;

use super::image::{Function, Image};
use super::reach::{Graph, fitting, panic_functions};

/// `xtask/audit/stack.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Bytes of a stack: no chain has more with the messages that its functions write.
    pub(super) stack: i64,
    /// The most bytes of a chain, but for an interrupt and messages. An interrupt has the rest.
    pub(super) most: i64,
    /// The function that writes a message, which any function may call.
    pub(super) message: String,
    /// Where stacks begin.
    #[serde(rename = "entry")]
    pub(super) entries: Vec<Entry>,
    /// The handler of the kernel's own exceptions, which runs on the stack of what was interrupted.
    pub(super) handler: String,
    /// Patterns of the functions that access a program's memory.
    pub(super) accesses: Vec<String>,
    /// The function that the handler calls for a fault of theirs, which may sleep. For other faults it calls none.
    pub(super) fault: String,
    /// The function that an interrupt of the kernel calls, on any stack.
    pub(super) interrupt: String,
    /// Calls that a chain has once at most.
    #[serde(default)]
    pub(super) cut: Vec<Cut>,
    /// Calls that functions never lead to, although a callee may. In this order: each counts for those that follow.
    #[serde(default)]
    pub(super) under: Vec<Under>,
    /// Cycles that end.
    #[serde(default)]
    pub(super) recursion: Vec<Recursion>,
}

/// Where stacks begin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The function.
    pub(super) function: String,
    /// The most bytes of its chain, where they are not those of all.
    pub(super) most: Option<i64>,
    /// Why it may have more.
    #[serde(default)]
    pub(super) reason: String,
}

/// Calls of a chain that it has once at most, or never.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cut {
    /// Pattern of the caller.
    pub(super) from: String,
    /// Pattern of the function that is called.
    pub(super) to: String,
    /// Whether a chain may have one such call, rather than none.
    pub(super) once: bool,
    /// Why there are no more.
    pub(super) reason: String,
}

/// Calls that these functions never lead to, although a callee may.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Under {
    /// Patterns of the functions.
    pub(super) functions: Vec<String>,
    /// Patterns of what is not called in a chain from them.
    pub(super) never: Vec<String>,
    /// Why not.
    pub(super) reason: String,
}

/// A cycle that ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recursion {
    /// Patterns that fit each function of the cycle.
    pub(super) functions: Vec<String>,
    /// How many frames of the cycle are on a stack at most, each counted as the largest of them.
    pub(super) most: i64,
    /// Why there are no more.
    pub(super) reason: String,
}

/// The use of the stack by one function.
#[derive(Default)]
struct Frame {
    /// The deepest that the function itself gets, in bytes.
    own: i64,
    /// Calls: the depth there, and the function.
    calls: Vec<(i64, usize)>,
    /// As `calls`, for calls that a chain has once at most.
    once: Vec<(i64, usize)>,
}

/// A chain of calls: the bytes that it uses, and what it goes to next.
#[derive(Clone, Copy, Default)]
struct Chain {
    bytes: i64,
    next: Option<(i64, usize)>,
    /// The call to `next` is one that a chain has once.
    is_once: bool,
    /// Bytes of the other frames of its cycle.
    cycle: i64,
}

/// Prints the worst chain of each entry if `verbose`, and fails where one is above the bound or is not known.
///
/// # Errors
/// A chain that is too long, with all of it; a cycle without a bound, or a call by a pointer without an entry in the table.
pub(super) fn audit(image: &Image<'_>, graph: &Graph<'_, '_>, limits: &Limits, verbose: bool) -> Result<()> {
    let one = |pattern: &str| match fitting(image, 0..image.functions.len(), pattern)[..] {
        [one] => Ok(one),
        ref found => bail!("`{pattern}` of stack.toml means {} functions", found.len()),
    };
    let entries = limits.entries.iter().map(|entry| one(&entry.function)).collect::<Result<Vec<_>>>()?;
    let (fault, interrupt) = (one(&limits.fault)?, one(&limits.interrupt)?);
    let saved = saved(image, one("exception_entry")?) + depths(image, &image.functions[one(&limits.handler)?]).0;
    let message = one(&limits.message)?;
    let handlers = Handlers { saved, fault, interrupt };
    let mut messages = Stack::default();
    messages.read(image, graph, limits, handlers, &[message], &[])?;
    messages.add_up(image, limits)?;
    messages.add_up(image, limits)?;
    let of_message = messages.chains[&message].bytes;
    let with_message = |bytes: i64, verbose: bool| -> Result<Stack> {
        let mut stack =
            Stack { known: BTreeMap::from([(message, bytes)]), cut: messages.cut.clone(), ..Stack::default() };
        stack.read_unders(image, graph, limits, handlers, verbose)?;
        stack.read(image, graph, limits, handlers, &entries, &[])?;
        stack.check(limits)?;
        stack.add_up(image, limits)?;
        stack.add_up(image, limits)?;
        Ok(stack)
    };
    let (stack, loud) = (with_message(0, verbose)?, with_message(of_message, false)?);
    let of_interrupt = saved + stack.chains[&interrupt].bytes;
    let mut too_deep = Vec::new();
    let mut judge = |name: &str, bytes: i64, most: i64, chain: String| {
        let text = format!("{name}: {bytes} bytes of {most}{chain}");
        if bytes > most {
            too_deep.push(text);
        } else if verbose {
            println!("{text}");
        }
    };
    judge("a message", of_message, limits.stack, messages.chain(image, message, 0));
    judge("an interrupt", of_interrupt, limits.stack - limits.most, stack.chain(image, interrupt, saved));
    for (entry, index) in limits.entries.iter().zip(&entries) {
        let (bytes, most) = (stack.chains[index].bytes, entry.most.unwrap_or(limits.most));
        let has_reason = most <= limits.most || !entry.reason.trim().is_empty();
        ensure!(has_reason, "stack.toml: {} may use {most} bytes, without a reason", entry.function);
        judge(&entry.function, bytes, most, stack.chain(image, *index, 0));
        let name = format!("{} with messages", entry.function);
        judge(&name, loud.chains[index].bytes, limits.stack, loud.chain(image, *index, 0));
    }
    let worst = |stack: &Stack| entries.iter().map(|entry| stack.chains[entry].bytes).max().unwrap_or(0);
    println!(
        "the longest chain uses {} bytes of a stack, with messages {}; an interrupt {of_interrupt}, a message {of_message}",
        worst(&stack),
        worst(&loud)
    );
    ensure!(too_deep.is_empty(), "bytes of a stack that may be used, and the bound:\n{}", too_deep.join("\n"));
    Ok(())
}

/// The handlers that run on top of any function: their bytes, and the functions that a fault and an interrupt call.
#[derive(Clone, Copy)]
struct Handlers {
    saved: i64,
    fault: usize,
    interrupt: usize,
}

/// All that is reached from the entries.
#[derive(Default)]
struct Stack {
    frames: BTreeMap<usize, Frame>,
    /// Bytes of functions whose chains are known already.
    known: BTreeMap<usize, i64>,
    /// Cuts that were met.
    cut: BTreeSet<usize>,
    chains: BTreeMap<usize, Chain>,
    /// Those without the calls that a chain has once at most.
    without: BTreeMap<usize, Chain>,
}

impl Stack {
    /// Adds up what the functions of the table's `under` use, which is known from then on.
    fn read_unders(
        &mut self,
        image: &Image<'_>,
        graph: &Graph<'_, '_>,
        limits: &Limits,
        handlers: Handlers,
        verbose: bool,
    ) -> Result<()> {
        for under in &limits.under {
            ensure!(!under.reason.trim().is_empty(), "stack.toml: {:?} have no reason", under.functions);
            for pattern in &under.functions {
                let functions = fitting(image, 0..image.functions.len(), pattern);
                ensure!(!functions.is_empty(), "`{pattern}` of stack.toml means no function");
                let mut inside = Stack { known: self.known.clone(), ..Stack::default() };
                inside.read(image, graph, limits, handlers, &functions, &under.never)?;
                inside.add_up(image, limits)?;
                inside.add_up(image, limits)?;
                for index in functions.iter().filter(|_| verbose) {
                    let name = &image.functions[*index].names[0];
                    println!("{name}: {} bytes{}", inside.chains[index].bytes, inside.chain(image, *index, 0));
                }
                self.known.extend(functions.iter().map(|index| (*index, inside.chains[index].bytes)));
            }
        }
        Ok(())
    }

    /// Reads the functions that the entries reach.
    fn read(
        &mut self,
        image: &Image<'_>,
        graph: &Graph<'_, '_>,
        limits: &Limits,
        handlers: Handlers,
        entries: &[usize],
        never: &[String],
    ) -> Result<()> {
        // A panic's report has the rest of the stack for itself.
        let panics = panic_functions(image);
        let fits = |index: usize, pattern: &str| {
            image.functions[index].names.iter().any(|name| super::tables::matches(pattern, name))
        };
        let Handlers { saved, fault, interrupt } = handlers;
        let mut next = [entries, &[fault, interrupt]].concat();
        let mut unlisted = Vec::new();
        while let Some(index) = next.pop() {
            if self.frames.contains_key(&index) {
                continue;
            }
            let function = &image.functions[index];
            if let Some(bytes) = self.known.get(&index) {
                self.frames.insert(index, Frame { own: *bytes, ..Frame::default() });
                continue;
            }
            let (own, depths) = depths(image, function);
            let mut frame = Frame { own, ..Frame::default() };
            let (sites, missing) = graph.called_by(index)?;
            unlisted.extend(
                missing.into_iter().map(|(source, line)| format!("{}:{} {}", line.file, line.line, source.text)),
            );
            for (at, targets) in sites {
                let depth = depths.get(&at).copied().unwrap_or(own);
                let is_called = |to: &usize| !panics.contains(to) && !never.iter().any(|pattern| fits(*to, pattern));
                for to in targets.into_iter().filter(is_called) {
                    let cut = limits.cut.iter().position(|cut| fits(index, &cut.from) && fits(to, &cut.to));
                    match cut {
                        Some(cut) => {
                            self.cut.insert(cut);
                            frame.once.extend(limits.cut[cut].once.then_some((depth, to)));
                        }
                        None => frame.calls.push((depth, to)),
                    }
                }
            }
            let accesses = limits.accesses.iter().any(|pattern| fits(index, pattern));
            for at in image.may_fault.range(function.start..function.end) {
                let depth = depths.get(at).copied().unwrap_or(own) + saved;
                frame.own = frame.own.max(depth);
                frame.calls.extend(accesses.then_some((depth, fault)));
            }
            frame.calls.sort_unstable();
            frame.calls.dedup();
            next.extend(frame.calls.iter().chain(&frame.once).map(|(_, to)| *to));
            self.frames.insert(index, frame);
        }
        ensure!(unlisted.is_empty(), "calls by a pointer without an entry in calls.toml:\n  {}", unlisted.join("\n  "));
        Ok(())
    }

    /// Refuses rows of the table that mean nothing.
    fn check(&self, limits: &Limits) -> Result<()> {
        for (index, cut) in limits.cut.iter().enumerate() {
            ensure!(!cut.reason.trim().is_empty(), "stack.toml: the cut at {} has no reason", cut.to);
            ensure!(self.cut.contains(&index), "stack.toml: no call from {} to {}", cut.from, cut.to);
        }
        Ok(())
    }

    /// The most that each function uses with what it calls, from the last called to the first.
    fn add_up(&mut self, image: &Image<'_>, limits: &Limits) -> Result<()> {
        let mut unbounded = Vec::new();
        self.without = std::mem::take(&mut self.chains);
        for component in components(&self.frames) {
            let within = |to: &usize| component.binary_search(to).is_ok();
            // Jumps that have given back the frame, such as the way round a loop of assembly, cost nothing.
            let grows = component
                .iter()
                .any(|index| self.frames[index].calls.iter().any(|(depth, to)| *depth > 0 && within(to)));
            let mut extra = 0;
            if grows {
                let names = |index: &usize| image.functions[*index].names.iter();
                let known = limits.recursion.iter().position(|recursion| {
                    component.iter().all(|index| {
                        recursion
                            .functions
                            .iter()
                            .any(|pattern| names(index).any(|n| super::tables::matches(pattern, n)))
                    })
                });
                let largest = component.iter().map(|index| self.frames[index].own).max().unwrap_or(0);
                match known {
                    Some(known) => {
                        extra = largest * (limits.recursion[known].most - 1);
                    }
                    None => unbounded.push(self.cycle(image, &component)),
                }
            }
            // The largest chain that leaves the cycle, from any of its functions: all of them have it.
            for index in &component {
                let chain = self.chain_out(*index, &component);
                self.chains.insert(*index, chain);
            }
            if component.len() > 1 || grows {
                let deepest = *component.iter().max_by_key(|index| self.chains[index].bytes).expect("it is not empty");
                let bytes = self.chains[&deepest].bytes + extra;
                for index in &component {
                    let chain = self.chains[&deepest];
                    self.chains.insert(*index, Chain { bytes, cycle: extra, ..chain });
                }
            }
        }
        ensure!(
            unbounded.is_empty(),
            "cycles of calls without a bound in stack.toml:\n    {}",
            unbounded.join("\n\n    ")
        );
        for recursion in &limits.recursion {
            ensure!(!recursion.reason.trim().is_empty(), "stack.toml: {:?} has no reason", recursion.functions);
        }
        Ok(())
    }

    /// The largest chain from a function that leaves its component at once.
    fn chain_out(&self, index: usize, component: &[usize]) -> Chain {
        let frame = &self.frames[&index];
        let calls = frame.calls.iter().filter(|(_, to)| component.binary_search(to).is_err());
        let own = Chain { bytes: frame.own, ..Chain::default() };
        let once = frame.once.iter().filter_map(|&(depth, to)| Some((depth, to, self.without.get(&to)?.bytes, true)));
        calls
            .map(|&(depth, to)| (depth, to, self.chains[&to].bytes, false))
            .chain(once)
            .map(|(depth, to, bytes, is_once)| Chain {
                bytes: depth + bytes,
                next: Some((depth, to)),
                is_once,
                cycle: 0,
            })
            .fold(own, |most, chain| if chain.bytes > most.bytes { chain } else { most })
    }

    /// A shortest cycle through the first call within a component that uses stack, as text.
    fn cycle(&self, image: &Image<'_>, component: &[usize]) -> String {
        let within = |to: &usize| component.binary_search(to).is_ok();
        let growing = component.iter().find_map(|index| {
            let mut calls = self.frames[index].calls.iter();
            calls.find(|(depth, to)| *depth > 0 && within(to)).map(|(_, to)| (*index, *to))
        });
        let Some((end, begin)) = growing else { return String::new() };
        let mut from = BTreeMap::from([(begin, None)]);
        let mut next = VecDeque::from([begin]);
        while let Some(index) = next.pop_front().filter(|_| !from.contains_key(&end)) {
            for (_, to) in self.frames[&index].calls.iter().filter(|(_, to)| within(to)) {
                from.entry(*to).or_insert_with(|| {
                    next.push_back(*to);
                    Some(index)
                });
            }
        }
        let way = std::iter::successors(Some(end), |at| from.get(at).copied().flatten());
        let mut names: Vec<String> = way.map(|index| image.functions[index].names.join(" = ")).collect();
        if component.len() <= 8 {
            names = component.iter().map(|index| image.functions[*index].names.join(" = ")).collect();
        }
        format!("{} functions:\n    {}", component.len(), names.join("\n    "))
    }

    /// A chain as lines: each function, the bytes of its frame up to the call, and the sum, which begins with `sum`.
    fn chain(&self, image: &Image<'_>, from: usize, mut sum: i64) -> String {
        let (mut at, mut chains, mut lines) = (from, &self.chains, String::new());
        loop {
            let chain = chains[&at];
            chains = if chain.is_once { &self.without } else { chains };
            let bytes = chain.next.map_or(chain.bytes, |(depth, _)| depth + chain.cycle);
            sum += bytes;
            lines += &format!("\n  {bytes:6} {sum:6}  {}", image.functions[at].names[0]);
            let Some((_, to)) = chain.next else { return lines };
            at = to;
        }
    }
}

/// Bytes that the vectors of the kernel's own exceptions have subtracted from SP at the jump to `exception_entry`.
fn saved(image: &Image<'_>, entry: usize) -> i64 {
    let is_vectors = |function: &&Function| function.names.iter().any(|name| name == "exception_vectors");
    let of_jumps = image.functions.iter().filter(is_vectors).flat_map(|function| {
        let (_, depths) = depths(image, function);
        let jumps = function.does.calls.iter().filter(|(_, to)| *to == entry);
        jumps.map(move |(at, _)| depths.get(at).copied().unwrap_or(0)).collect::<Vec<_>>()
    });
    of_jumps.max().unwrap_or(0)
}

/// How far below its value at the entry SP is, at the deepest and before each instruction.
///
/// Branches take the depth along. Code that is reached by a table alone has that of the body, the deepest so far.
fn depths(image: &Image<'_>, function: &Function) -> (i64, BTreeMap<u64, i64>) {
    let mut depths: BTreeMap<u64, i64> = BTreeMap::new();
    let (mut depth, mut deepest, mut goes_on) = (0, 0, true);
    let (mut frame_pointer, mut unaligned) = (0, 0);
    for (at, word) in image.instructions(function) {
        if !goes_on {
            // Assembly has the next vector there.
            depth = depths.get(&at).copied().unwrap_or(if function.is_sized { deepest } else { 0 });
        }
        depths.insert(at, depth);
        match stack_growth(word) {
            Some(growth) => depth += growth,
            // AND (immediate): the alignment of the frame, and what lies between.
            None if word & 0xff80_0000 == 0x9200_0000 => depth = unaligned + (1 << (64 - (word >> 16 & 63))) - 16,
            // From x29.
            None if word >> 5 & 31 == 29 => {
                depth = frame_pointer + if word & 1 << 30 != 0 { 1 } else { -1 } * i64::from(word >> 10 & 0xfff)
            }
            None => {}
        }
        let immediate = i64::from(word >> 10 & 0xfff);
        match word & 0xffc0_03ff {
            // ADD x29, SP; SUB x9, SP.
            0x9100_03fd => frame_pointer = depth - immediate,
            0xd100_03e9 => unaligned = depth + immediate,
            0xd140_03e9 => unaligned = depth + (immediate << 12),
            _ => {}
        }
        deepest = deepest.max(depth);
        let flow = flow(word, at);
        if let Flow::Branch(to) | Flow::Jump(to) = flow
            && to > at
        {
            depths.entry(to).or_insert(depth);
        }
        goes_on = !matches!(flow, Flow::Jump(_) | Flow::JumpRegister(_) | Flow::Return | Flow::Trap);
    }
    (deepest, depths)
}

/// Groups of functions that call each other, in the order in which what is called comes first; each sorted.
/// (Tarjan's algorithm, without recursion.)
fn components(frames: &BTreeMap<usize, Frame>) -> Vec<Vec<usize>> {
    struct Visit {
        number: usize,
        low: usize,
        is_open: bool,
    }
    let mut visits: BTreeMap<usize, Visit> = BTreeMap::new();
    let (mut open, mut found) = (Vec::new(), Vec::new());
    for &root in frames.keys() {
        if visits.contains_key(&root) {
            continue;
        }
        let mut path: Vec<(usize, usize)> = vec![(root, 0)];
        while let Some((index, step)) = path.pop() {
            if step == 0 {
                let number = visits.len();
                visits.insert(index, Visit { number, low: number, is_open: true });
                open.push(index);
            }
            let calls = &frames[&index].calls;
            if let Some(&(_, before)) = step.checked_sub(1).and_then(|before| calls.get(before)) {
                let low = visits[&before].low;
                let is_open = visits[&before].is_open;
                let visit = visits.get_mut(&index).expect("it was begun");
                if is_open {
                    visit.low = visit.low.min(low);
                }
            }
            if let Some(&(_, to)) = calls.get(step) {
                path.push((index, step + 1));
                if !visits.contains_key(&to) {
                    path.push((to, 0));
                }
                continue;
            }
            let Visit { number, low, .. } = visits[&index];
            if number == low {
                let at = open.iter().position(|open| *open == index).expect("it is open");
                let mut component = open.split_off(at);
                component.iter().for_each(|index| visits.get_mut(index).expect("it was begun").is_open = false);
                component.sort_unstable();
                found.push(component);
            }
        }
    }
    found
}
