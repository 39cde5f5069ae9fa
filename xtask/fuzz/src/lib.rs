//! `./x fuzz`: system calls that are guided by the blocks of the kernel that they reach, in the image that ships.
//!
//! First the programs of the target tests run ([`sessions`]), then the inputs of the corpus, then rounds of inputs that
//! are mutated from it. Each round is one boot, each input a line of its script or a few; an input that reaches a block
//! that none before it reached joins the corpus, `build/fuzz/corpus`. An input that fails is reduced to a script for
//! `./x run --script`. With one CPU (all but `--cpus`) instructions are counted, so that runs differ only by when QEMU
//! delivers what is typed.

#![forbid(unsafe_code)]

mod blocks;
mod files;
mod input;
mod report;
mod sessions;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use granule_audit::image::Image;
use granule_audit::sources::Sources;
use granule_image::compile::{self, Built};
use granule_runner::blocks::{Played, play, repeatable};
use granule_runner::machine::{self, Machine};
use granule_runner::serial::Limit;
use granule_runner::session;
use granule_tools::{Profile, Tools};
use granule_user::random::Random;

use blocks::{Blocks, Reached};
use input::Input;
use sessions::Session;

/// The inputs to play, how many, and the machine.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Draws the inputs; without it a fresh one, which is printed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many calls the inputs make, besides those of the corpus; 0: none
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    calls: u64,
    /// Machine of tests-qemu/machines.toml: with one CPU and 128 MiB, its instructions counted
    #[arg(long, short, value_name = "MACHINE", default_value = "default", value_parser = granule_tools::machine_names())]
    machine: String,
    /// All CPUs and all memory of the machine: threads race, and runs differ
    #[arg(long)]
    cpus: bool,
    /// Begin with the corpus of the sources, tests-qemu/fuzz/corpus, not with that of an earlier run
    #[arg(long)]
    fresh: bool,
}

/// Inputs of one boot.
const ROUND: usize = 16;
/// Of the machine, for a session, and for an input: QEMU's own seconds.
const SESSION_LIMIT: u64 = 400;
const INPUT_LIMIT: u64 = 30;
/// Boots that may be spent on making a failure smaller.
const REDUCTIONS: u32 = 60;

/// The run so far.
struct Fuzzer<'a> {
    machine: Machine,
    built: &'a Built,
    blocks: &'a Blocks,
    /// By the programs, and by the inputs.
    by_programs: Reached,
    by_inputs: Reached,
    /// Inputs, and what each reached.
    corpus: Vec<(Input, Reached)>,
    failures: Vec<PathBuf>,
    directory: PathBuf,
}

/// Fuzzes and reports.
///
/// # Errors
/// When an input fails the kernel, or nothing can be built or booted.
pub fn run(options: &Options, tools: &Tools) -> Result<()> {
    let built = compile::build(tools, Profile::Release)?;
    let elf = fs::read(&built.kernel.elf).context("cannot read the kernel's ELF")?;
    let sources = Sources::new(&tools.root);
    let blocks = Blocks::of(&Image::read(&elf, &tools.root)?, &sources)?;
    let machine = machine::named(&options.machine)?;
    let machine = if options.cpus { machine } else { repeatable(&machine) };
    let directory = tools.build_directory().join("fuzz");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let seed = options.seed.unwrap_or_else(session::fresh_seed);
    println!("seed {seed}: `./x fuzz --seed {seed}` draws the same inputs from the same corpus");
    let kept = directory.join("corpus");
    let corpus = match fs::read_to_string(&kept) {
        Ok(text) if !options.fresh => text,
        _ => fs::read_to_string(tools.root.join("tests-qemu/fuzz/corpus"))
            .context("cannot read tests-qemu/fuzz/corpus")?,
    };
    let mut fuzzer = Fuzzer {
        machine,
        built: &built,
        blocks: &blocks,
        by_programs: Reached::default(),
        by_inputs: Reached::default(),
        corpus: Vec::new(),
        failures: Vec::new(),
        directory,
    };
    fuzzer.programs()?;
    for round in parse(&corpus)?.chunks(ROUND) {
        fuzzer.round(round)?;
    }
    println!("the corpus: {} inputs, {} blocks", fuzzer.corpus.len(), fuzzer.by_inputs.count());
    fuzzer.fuzz(&mut Random(seed), options.calls)?;
    let text = |inputs: &mut dyn Iterator<Item = &Input>| inputs.map(|input| format!("{input}\n")).collect::<String>();
    fs::write(&kept, text(&mut fuzzer.corpus.iter().map(|(input, _)| input)))
        .with_context(|| format!("cannot write {}", kept.display()))?;
    let needed = kept.with_file_name("corpus-needed");
    fs::write(&needed, text(&mut fuzzer.needed().into_iter()))
        .with_context(|| format!("cannot write {}", needed.display()))?;
    report::print(&fuzzer, &report::reasons(&tools.root)?)?;
    if !fuzzer.failures.is_empty() {
        let scripts: Vec<String> = fuzzer.failures.iter().map(|path| path.display().to_string()).collect();
        bail!("inputs failed; `./x run --script` repeats each:\n  {}", scripts.join("\n  "));
    }
    Ok(())
}

/// The inputs of a corpus: a line each, `#` begins a comment.
fn parse(text: &str) -> Result<Vec<Input>> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::parse).collect()
}

impl Fuzzer<'_> {
    /// The sessions that every run begins with: what they reach is counted apart.
    fn programs(&mut self) -> Result<()> {
        let image = &self.built.kernel.image;
        for session in sessions::all(&self.machine, image, &self.directory)? {
            let Session { machine, initrd, lines, .. } = &session;
            let played = play(machine, image, initrd.as_deref(), lines, Limit::work(SESSION_LIMIT))?;
            let wrong = session.wrong(played.wrong);
            if !wrong.is_empty() {
                bail!("a session on {} fails: {wrong:?}\n{}", machine.name, played.session);
            }
            for executed in &played.records {
                self.by_programs.add(&Reached::new(self.blocks, executed));
            }
            println!("{}: {} lines, {} blocks", machine.name, lines.len(), self.by_programs.count());
        }
        Ok(())
    }

    fn play(&self, lines: &[String], seconds: u64) -> Result<Played> {
        play(&self.machine, &self.built.kernel.image, None, lines, Limit::work(seconds))
    }

    /// Plays mutated inputs until they made so many calls.
    fn fuzz(&mut self, random: &mut Random, calls: u64) -> Result<()> {
        let mut made = 0;
        while made < calls {
            let inputs: Vec<Input> = (0..ROUND).map(|_| self.draw(random)).collect();
            made += inputs.iter().map(Input::calls).sum::<u64>();
            self.round(&inputs)?;
            println!(
                "{made} calls: {} inputs in the corpus, {} blocks, {} with the programs",
                self.corpus.len(),
                self.by_inputs.count(),
                self.reached().count()
            );
        }
        Ok(())
    }

    fn draw(&self, random: &mut Random) -> Input {
        if self.corpus.is_empty() || random.below(4) == 0 {
            return Input::draw(random);
        }
        let [one, other] = [(); 2].map(|()| &self.corpus[random.below(self.corpus.len())].0);
        one.mutate(other, random)
    }

    /// Plays inputs in one boot; those that reach something new join the corpus.
    fn round(&mut self, inputs: &[Input]) -> Result<()> {
        let seconds = INPUT_LIMIT * inputs.len() as u64;
        // The number of a process is known in a boot's first line alone.
        let (bound, others): (Vec<&Input>, Vec<&Input>) = inputs.iter().partition(|input| input.needs_number());
        let mut boots: Vec<Vec<&Input>> = bound.into_iter().map(|input| vec![input]).collect();
        match boots.first_mut() {
            Some(first) => first.extend(others),
            None => boots.push(others),
        }
        for inputs in boots {
            let lines: Vec<String> = inputs.iter().flat_map(|input| input.commands(FIRST_PROCESS)).collect();
            let played = self.play(&lines, seconds)?;
            let mut records = played.records.iter().skip(1);
            for input in &inputs {
                let executed = records.by_ref().take(input.commands(FIRST_PROCESS).len()).flatten();
                let reached = Reached::new(self.blocks, executed);
                if self.by_inputs.lacks(&reached) {
                    self.by_inputs.add(&reached);
                    self.corpus.push(((*input).clone(), reached));
                }
            }
            if !played.wrong.is_empty() {
                self.failed(&inputs, &played)?;
            }
        }
        Ok(())
    }

    /// Inputs that reach, with the programs, all that was reached: each time the one that adds most.
    fn needed(&self) -> Vec<&Input> {
        let (mut reached, mut needed) = (self.by_programs.clone(), Vec::new());
        loop {
            let adds = |of: &Reached| {
                let mut with = reached.clone();
                with.add(of);
                with.count() - reached.count()
            };
            match self.corpus.iter().map(|(input, of)| (adds(of), input, of)).max_by_key(|(adds, ..)| *adds) {
                Some((1.., input, of)) => {
                    needed.push(input);
                    reached.add(of);
                }
                _ => return needed,
            }
        }
    }

    /// The blocks that the programs and the inputs reached.
    fn reached(&self) -> Reached {
        let mut all = self.by_programs.clone();
        all.add(&self.by_inputs);
        all
    }

    /// Writes the shortest script that still fails.
    fn failed(&mut self, inputs: &[&Input], played: &Played) -> Result<()> {
        println!("failed: {}", played.wrong.join("; "));
        let inputs: Vec<Input> = inputs.iter().map(|input| (*input).clone()).collect();
        let (mut wrong, mut session) = (played.wrong.clone(), played.session.clone());
        let inputs = reduce(inputs, REDUCTIONS, |candidate| {
            let lines: Vec<String> = candidate.iter().flat_map(|input| input.commands(FIRST_PROCESS)).collect();
            let played = self.play(&lines, INPUT_LIMIT * candidate.len() as u64)?;
            let fails = !played.wrong.is_empty();
            if fails {
                (wrong, session) = (played.wrong, played.session);
            }
            Ok(fails)
        })?;
        let script = self.directory.join(format!("failure-{}.gran", self.failures.len()));
        fs::write(&script, failure(&self.machine, &inputs, &wrong))?;
        fs::write(script.with_extension("log"), session)?;
        println!("reduced: {}", script.display());
        self.failures.push(script);
        Ok(())
    }
}

/// The smallest inputs that still fail, of those that are found in so many tries.
fn reduce(
    mut inputs: Vec<Input>,
    mut tries: u32,
    mut fails: impl FnMut(&[Input]) -> Result<bool>,
) -> Result<Vec<Input>> {
    'smaller: loop {
        for candidate in smaller(&inputs) {
            if tries == 0 {
                break 'smaller;
            }
            tries -= 1;
            if fails(&candidate)? {
                inputs = candidate;
                continue 'smaller;
            }
        }
        break;
    }
    Ok(inputs)
}

/// The number of the first process of a boot.
const FIRST_PROCESS: u32 = 1;

/// Inputs of a boot that failed, with less in it: the last half, without one of them, or with a smaller one.
fn smaller(inputs: &[Input]) -> Vec<Vec<Input>> {
    let mut found = Vec::new();
    if inputs.len() > 1 {
        found.push(inputs[inputs.len() / 2..].to_vec());
        found.push(inputs[..inputs.len() / 2].to_vec());
        found.extend((0..inputs.len()).map(|at| [&inputs[..at], &inputs[at + 1..]].concat()));
    }
    for (at, input) in inputs.iter().enumerate() {
        let with = |input| [&inputs[..at], &[input], &inputs[at + 1..]].concat();
        found.extend(input.smaller().into_iter().map(with));
    }
    found
}

/// The script of a failure.
fn failure(machine: &Machine, inputs: &[Input], wrong: &[String]) -> String {
    let mut text = format!("# {}, -smp {} -m {}", machine.name, machine.smp, machine.memory);
    text.extend(wrong.iter().map(|line| format!("\n# {line}")));
    for line in inputs.iter().flat_map(|input| input.commands(FIRST_PROCESS)) {
        text.push('\n');
        text.push_str(&line);
    }
    text.push('\n');
    text
}

/// A file beside the sources.
fn table(root: &Path) -> PathBuf {
    root.join("tests-qemu/fuzz/unreached.toml")
}
