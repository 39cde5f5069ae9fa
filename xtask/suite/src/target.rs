//! The tests on the target: each machine runs all of its tests in as few boots as it can, a board over a wire.

use std::cell::Cell;
use std::collections::BTreeMap;

use anyhow::Result;
use granule_image::compile::Program;
use granule_runner::identity;
use granule_runner::judge::{Boot, Verdict};
use granule_runner::list::{self, Skip, Test};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu;
use granule_runner::report::Status;
use granule_runner::serial::Port;
use granule_runner::session::{self, Plan};
use granule_runner::wire::Wired;

use super::list::List;

/// The memory of QEMU beside the machine's memory that is touched.
const QEMU_MIB: u64 = 200;

/// Seconds of CPU time that a long test may have, for each CPU, to be one that takes turns: the others are for `--long`.
const IN_TURN: u32 = 1000;

/// Adds the tests of an image on each machine.
pub(super) fn add(list: &mut List<'_>, image: &Program) -> Result<()> {
    let tests: Vec<Test> = list::read(&image.elf)?.into_iter().filter(|test| !test.selftest).collect();
    let mut machines = machine::all()?;
    machines.retain(|machine| list.options.machine.is_empty() || list.options.machine.contains(&machine.name));
    let long = machines.iter().flat_map(|machine| {
        let here = tests.iter().filter(|test| machine.is_for(&test.name) && test.limit <= IN_TURN);
        here.filter(|test| test.skipped_on(machine, false) == Some(Skip::Long)).map(|test| name(machine, test))
    });
    let turn = list.long_in_turn(long, "target");
    for machine in machines {
        let memory_mib = machine.touched_mib() + QEMU_MIB;
        let (image, seed) = (image.image.clone(), list.seed);
        let plan = Plan {
            machine: machine.clone(),
            image,
            seed,
            bootargs: String::new(),
            extra: Vec::new(),
            qemu: qemu::program(),
        };
        add_machine(list, &machine, memory_mib, &tests, turn.as_deref(), move |left| session::boot(&plan, left));
    }
    Ok(())
}

/// Adds the tests of an image on a board, which runs that image.
pub(super) fn add_board(list: &mut List<'_>, image: &Program, wire: &super::Wire) -> Result<()> {
    let tests = list::read(&image.elf)?;
    let (Some(port), Some(board)) = (&wire.serial, &wire.board) else { return Ok(()) };
    let board = machine::board(board)?;
    // A wrong name is to be noticed at once. With a reset the port may come with it.
    if wire.reset.is_none() && !list.options.list {
        Port::open(port, board.baud)?;
    }
    let (identity, seed) = (identity::read(&image.elf)?, list.seed);
    let wired = Wired { board, port: port.clone(), reset: wire.reset.clone(), identity, seed };
    let tests: Vec<Test> = tests.into_iter().filter(|test| !test.selftest).collect();
    let machine = wired.board.machine.clone();
    add_machine(list, &machine, 0, &tests, None, move |left| wired.boot(left));
    Ok(())
}

/// A test's name on a machine.
fn name(machine: &Machine, test: &Test) -> String {
    format!("{}::{}", machine.name, test.name)
}

/// One machine's share, with the long test whose turn it is. `boot` boots it for the tests that are left.
fn add_machine(
    list: &mut List<'_>,
    machine: &Machine,
    memory_mib: u64,
    tests: &[Test],
    turn: Option<&str>,
    boot: impl Fn(&[&Test]) -> Boot + Send + 'static,
) {
    let (mut mine, mut verdicts) = (Vec::new(), BTreeMap::new());
    for test in tests.iter().filter(|test| machine.is_for(&test.name)) {
        let long = list.options.long || turn == Some(&name(machine, test));
        match test.skipped_on(machine, long) {
            None => {
                if let Some(sender) = list.test(&machine.name, &test.name) {
                    verdicts.insert(test.index, sender);
                    mine.push(test.clone());
                }
            }
            Some(Skip::Lacks(feature)) => {
                list.skip(&machine.name, &test.name, &format!("{} has no {feature}", machine.name));
            }
            Some(Skip::OtherMachine(other)) => list.skip(&machine.name, &test.name, &format!("for {other} only")),
            Some(Skip::Long) => list.skip(&machine.name, &test.name, "long"),
        }
    }
    let fail_fast = list.options.fail_fast;
    list.job(&machine.name, memory_mib, move || {
        let is_over = Cell::new(false);
        session::run(
            &mine,
            |left| (!is_over.get()).then(|| boot(left)),
            |test, outcome| {
                let status = match outcome.verdict {
                    Verdict::Passed(_) => Status::Passed,
                    Verdict::Failed(why) => Status::Failed(why),
                };
                is_over.set(is_over.get() || fail_fast && matches!(status, Status::Failed(_)));
                if let Some(verdict) = verdicts.get(&test.index) {
                    // The trial waits for the outcome; it is gone only if the whole run is.
                    let _ = verdict.send((status, outcome.output, outcome.time));
                }
            },
        );
    });
}
