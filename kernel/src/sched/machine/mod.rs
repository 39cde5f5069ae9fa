//! Threads on the machine: what runs on each CPU, and how it comes to run. On the host `host.rs` stands for it.

mod fp;
mod queue;
mod start;
mod switch;
mod tag_check;
mod thread;
mod timeout;

pub(crate) use fp::first_use as first_use_of_fp;
pub(super) use queue::running;
pub(crate) use queue::{PerCpu, give_way};
pub use queue::{SLICE, park, relax, yield_now};
pub use start::{Stacks, Surroundings, idle, init, init_cpu, trim};
pub use switch::{asid_generation, exit, set_space};
pub(crate) use tag_check::{collect_tag_faults, deliver_with_checks};
#[cfg(debug_assertions)]
pub(super) use thread::with_held_ranks;
pub use thread::{
    NewThread, NewUserThread, Thread, ThreadId, ThreadRef, UserEntry, Work, current, kept_frames, report_move,
    spawn_kernel, spawn_service, thread_count, uninterruptible,
};
pub(crate) use thread::{
    enlarge_shortage, is_interrupted, is_killed, note_replay, note_shortage, program_number, runs_program,
    take_replays, with_context,
};
pub use timeout::{poll_until, sleep_until};
pub(crate) use timeout::{sleep_briefly, sleep_through, with_timeout};
