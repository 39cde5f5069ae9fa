//! The threads of the machine: all that [`super`] has of them, and `host` has as much of it as the host's tests need.

pub(crate) use super::fp::first_use as first_use_of_fp;
pub(super) use super::queue::running;
pub(crate) use super::queue::{PerCpu, give_way};
pub use super::queue::{park, relax, yield_now};
pub use super::start::{Stacks, Surroundings, idle, init, init_cpu, trim};
pub use super::switch::{asid_generation, exit, set_space};
pub(crate) use super::tag_check::{collect_tag_faults, deliver_with_checks};
#[cfg(debug_assertions)]
pub(super) use super::thread::with_held_ranks;
pub use super::thread::{
    NewThread, NewUserThread, Thread, ThreadId, ThreadRef, UserEntry, Work, current, kept_frames, spawn_kernel,
    spawn_service, thread_count,
};
pub(crate) use super::thread::{
    enlarge_shortage, is_interrupted, is_killed, note_replay, note_shortage, program_number, runs_program,
    take_replays, with_context,
};
pub use super::timeout::{poll_until, sleep_until};
pub(crate) use super::timeout::{sleep_briefly, sleep_through, with_timeout};
