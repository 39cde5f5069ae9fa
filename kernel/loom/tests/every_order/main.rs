//! Every order in which a few CPUs can run the page-table algorithms, on the smallest tables there are.
//!
//! Each property comes with twins that lack one step ([`granule_loom::Without`]) and must be seen to fail: a checker
//! that cannot fail proves nothing.

mod acknowledge;
mod arrivals;
mod asid;
mod bound;
mod canary;
mod collapse;
mod command_queue;
mod counted;
mod family;
mod frame;
mod guarded;
mod interrupt;
mod leaving;
mod look;
mod map;
mod objects;
mod park;
mod parts;
mod poll;
mod purge;
mod quota;
mod reclaim;
mod remedies;
mod remote;
mod reverse_map;
mod run_queue;
mod rwsem;
mod scarcity;
mod split;
mod tag_storage;
mod timeout;
mod upgrade;
mod userfault;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use granule_loom::{Cpu, Machine};

/// Runs `cpus` on the CPUs of a machine, in every order with at most three preemptions, and `after` when all have
/// ended. `before` runs first, alone, on CPU 0.
fn every_order<const N: usize>(
    machine: fn() -> Machine,
    before: fn(Cpu<'_>),
    cpus: [fn(Cpu<'_>); N],
    after: fn(&Machine),
) {
    orders(3, machine, before, cpus, after);
}

/// As [`every_order`], with at most so many preemptions, for CPUs that have more to do.
fn orders<const N: usize>(
    preemptions: usize,
    machine: fn() -> Machine,
    before: fn(Cpu<'_>),
    cpus: [fn(Cpu<'_>); N],
    after: fn(&Machine),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        let machine = Arc::new(machine());
        before(machine.cpu(0));
        // CPU 0 is loom's first thread, so that no more threads than CPUs have to be put in order.
        let others: Vec<_> = (1..N)
            .map(|number| {
                let machine = Arc::clone(&machine);
                loom::thread::spawn(move || cpus[number](machine.cpu(number)))
            })
            .collect();
        cpus[0](machine.cpu(0));
        others.into_iter().for_each(|other| other.join().unwrap());
        after(&machine);
    });
}

/// Runs `model`, which makes its threads itself, in every order with at most three preemptions.
fn threads(model: impl Fn() + Send + Sync + 'static) {
    threads_with(3, model);
}

/// As [`threads`], with at most so many preemptions.
fn threads_with(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Runs what must be caught: it has to panic, with `message`, in one of the orders.
#[track_caller]
fn assert_caught(message: &str, orders: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(orders)).expect_err("nothing was noticed in any order");
    let found = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let found = found.unwrap_or("a panic without words");
    assert!(found.contains(message), "caught for another reason: {found}");
}

/// A machine that lacks one step, as a function for [`every_order`].
macro_rules! without {
    ($step:ident, $frames:expr) => {
        || granule_loom::Machine::new($frames, granule_loom::Without::$step)
    };
}
pub(crate) use without;

/// A property as two tests: in each run with so many preemptions, with which its twins are caught, in a long one with one
/// more.
macro_rules! short_and_long {
    ($preemptions:expr, $property:ident, $short:ident, $long:ident) => {
        #[test]
        fn $short() {
            $property($preemptions);
        }

        #[test]
        #[ignore = "takes minutes: ./x test --long"]
        fn $long() {
            $property($preemptions + 1);
        }
    };
}
pub(crate) use short_and_long;

/// Nothing to do.
fn nothing(_: Cpu<'_>) {}
