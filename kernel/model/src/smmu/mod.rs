//! The SMMU of the host: registers, queues, tables and caches as the architecture lets them be, at once.
//!
//! A driver that runs on it ([`SmmuModel::platform`]) is watched store by store. For each word of memory the model
//! knows what it was; for each stream, since when its configuration may be cached; and it holds every translation that
//! could be walked to since the last invalidation that covers it and was completed by a CMD_SYNC. So it has an answer
//! to what *may* become of a transaction ([`SmmuModel::outcomes`]), and asserts that it is what the tables in memory
//! give ([`SmmuModel::audit`]).
//!
//! - commands have the effect of their bits, read as they were before where no barrier ordered them before CMDQ_PROD
//! - entries of eight words are seen as any mixture of what each word was
//! - memory that is given up must be out of reach ([`SmmuModel::freed`])
//! - an SMMU that does not see the CPUs' caches reads what was cleaned last
//! - event records arrive when the driver's barrier makes sure of it, not before
//! - registers that must not be written, orders of reset that let a transaction through, indices that run over
//!
//! Violations wait to be taken ([`SmmuModel::violations`]); a model that is dropped with violations that were
//! not taken panics. Each rule has a test that breaks it: by [`SmmuModel::leave_out`], [`SmmuModel::lose_barrier`],
//! [`SmmuModel::lose_clean`] and [`SmmuModel::rewrite_commands`].
//!
//! - what devices translate ahead and keep (ATS), and CMD_ATC_INV for it
//! - tables that lead to themselves, and runs without end: a verdict, and no hang
//!
//! It decodes by shifts of its own and shares no layout with the driver. Not modelled: stage 2, substreams, stalls.

mod ats;
mod command;
mod config;
mod event;
mod hardware;
mod memory;
mod platform;
mod registers;
mod state;
mod tlb;
mod transaction;
mod view;
mod violation;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use granule_arch::addr::PhysAddr;
use granule_smmuv3::{DmaMemory, Step as DriverStep};

use crate::machine::lock;
use memory::Arena;
use registers::Registers;
use state::State;

pub use config::{Context, Entry, ReadAs, Regime, Stage1, Tables};
pub use hardware::{Hardware, Overflow, Pace};
pub use memory::{Elsewhere, Word};
pub use platform::ModelPlatform;
pub use violation::{SmmuRule, SmmuViolation};

/// When something happened: the number of an operation.
pub type Time = u64;

/// The command that the SMMU executes in place of another, or none.
pub type Rewrite = fn([u64; 2]) -> Option<[u64; 2]>;

/// A barrier of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier {
    /// DMB OSHST.
    Store,
    /// DMB OSHLD.
    Load,
}

/// An operation of the driver, a device or the SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A register was read.
    Read {
        /// Where.
        offset: usize,
        /// The value that was found.
        value: u64,
    },
    /// A register was written.
    Write {
        /// Where.
        offset: usize,
        /// The value that was stored.
        value: u64,
    },
    /// A CPU stored to memory.
    Store {
        /// Where.
        address: u64,
        /// The value that was stored.
        value: u64,
    },
    /// A CPU's barrier.
    Barrier(Barrier),
    /// A CPU cleaned memory.
    Clean {
        /// From here.
        address: u64,
        /// So much.
        bytes: u64,
    },
    /// The SMMU took a command.
    Command([u64; 2]),
    /// The SMMU wrote an event.
    Event([u64; 4]),
    /// A device's transaction.
    Transaction {
        /// Of this stream.
        stream: u32,
        /// At this address.
        address: u64,
        /// Which wanted this.
        access: Access,
        /// And came to this.
        outcome: Outcome,
    },
    /// Memory was given up.
    Freed {
        /// From here.
        address: u64,
        /// So much.
        bytes: u64,
    },
}

/// An operation and its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Its number.
    pub time: Time,
    /// The operation.
    pub operation: Operation,
}

/// The kind of a transaction's access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
    /// It is privileged.
    pub privileged: bool,
}

impl Access {
    /// A device's read.
    pub const READ: Self = Self { write: false, execute: false, privileged: false };
    /// A device's write.
    pub const WRITE: Self = Self { write: true, ..Self::READ };
    /// As [`Self::WRITE`], privileged.
    pub const PRIVILEGED_WRITE: Self = Self { privileged: true, ..Self::WRITE };
}

/// An outcome of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It reaches this physical address.
    Reaches(u64),
    /// It does not, and leaves an event of this number, if any.
    Refused {
        /// The number.
        event: Option<u8>,
    },
}

/// The configuration by which transactions of a stream are treated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum View {
    /// The SMMU is off, and refuses them.
    OffAborts,
    /// The SMMU is off, and lets them pass.
    OffPasses,
    /// The stream table has no entry.
    NoStream,
    /// By the entry, which does not translate.
    Entry(Entry),
    /// They are translated. Where the context is does not matter, and is 0 here.
    Translate {
        /// By the entry.
        stage1: Stage1,
        /// By the context.
        context: Context,
    },
}

/// The part that a model and its platforms share.
pub(crate) struct Shared {
    pub(crate) arena: Arc<Arena>,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.look();
        state
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the model SMMU")
    }
}

/// An SMMU.
#[derive(Debug)]
pub struct SmmuModel {
    shared: Arc<Shared>,
}

/// Memory for tables and queues.
const BYTES: usize = 4 << 20;

impl SmmuModel {
    /// One as it comes out of reset, which lets transactions pass.
    pub fn new(hardware: Hardware) -> Self {
        Self::with_registers(
            hardware,
            Registers::out_of_reset(0x5a5a_5a5a),
            Arena::new(BYTES, None, hardware.sees_caches()),
        )
    }

    /// One whose tables and queues are in memory that a test brings: `elsewhere` finds the word at a physical address.
    ///
    /// Stores there are not seen one by one, but all that came since whenever anything is asked of the SMMU, by a CPU
    /// or by the test: what an entry was for a moment in between is not known, and orders of stores are not judged.
    ///
    /// # Safety
    /// The words that `elsewhere` finds live as long as the model, and are shared by atomic accesses alone, or by
    /// others that do not run at the same time.
    #[expect(unsafe_code, reason = "vouching for memory")]
    pub unsafe fn over(hardware: Hardware, elsewhere: Elsewhere) -> Self {
        Self::with_registers(
            hardware,
            Registers::out_of_reset(0x5a5a_5a5a),
            Arena::new(0, Some(elsewhere), hardware.sees_caches()),
        )
    }

    /// One that another kernel used before, translates, and has stopped at a command.
    pub fn in_use(hardware: Hardware) -> Self {
        Self::with_registers(hardware, Registers::in_use(), Arena::new(BYTES, None, hardware.sees_caches()))
    }

    fn with_registers(hardware: Hardware, registers: Registers, arena: Arena) -> Self {
        let arena = Arc::new(arena);
        let state = Mutex::new(State::new(hardware, registers, Arc::clone(&arena)));
        let shared = Arc::new(Shared { arena, state });
        shared.arena.belongs_to(&shared);
        Self { shared }
    }

    /// A driver's way to it.
    pub fn platform(&self) -> ModelPlatform {
        ModelPlatform::new(Arc::clone(&self.shared))
    }

    /// Memory for tables that the SMMU reads: zero, and seen by it. The CPUs have it in their caches.
    ///
    /// # Panics
    /// Where there is no more.
    pub fn allocate(&self, bytes: usize) -> DmaMemory {
        let memory = self.platform().take(bytes, bytes.next_power_of_two());
        memory.expect("the model's memory is large enough")
    }

    /// The word at `address`, for a CPU to store to.
    ///
    /// # Panics
    /// Where it is not memory of this model.
    pub fn word(&self, address: PhysAddr) -> &Word {
        self.shared.arena.word(self.shared.arena.index(address.0).expect("an address of the model's memory"))
    }

    /// `count` more allocations succeed.
    pub fn limit_allocations(&self, count: usize) {
        self.state().allocations_left = count;
    }

    /// Bytes of memory that are given out.
    pub fn memory_in_use(&self) -> usize {
        self.state().allocated.values().map(|words| words * 8).sum()
    }

    /// A device is there: what `stream` leads to may be fetched and kept from now on.
    pub fn add_device(&self, stream: u32) {
        self.state().add_device(stream);
    }

    /// Everything that transactions of `stream` may be treated as.
    pub fn views(&self, stream: u32) -> BTreeSet<View> {
        self.state().views(stream)
    }

    /// Everything that transactions of `stream` may be treated as at some moment of `work`: looked at after each store
    /// to memory and each command.
    pub fn views_during(&self, stream: u32, work: impl FnOnce()) -> BTreeSet<View> {
        self.state().spied = Some((stream, BTreeSet::new()));
        work();
        self.state().spied.take().expect("nobody else spies").1
    }

    /// Where the stream table has the entry of `stream`.
    ///
    /// # Panics
    /// Where it has none.
    pub fn stream_entry(&self, stream: u32) -> PhysAddr {
        self.state().place_of_entry(stream).expect("the table has an entry for the stream")
    }

    /// The view of a stream's transactions by the tables in memory.
    pub fn view_now(&self, stream: u32) -> View {
        self.state().view_now(stream)
    }

    /// Everything that a transaction may come to. Nothing happens.
    pub fn outcomes(&self, stream: u32, address: u64, access: Access) -> BTreeSet<Outcome> {
        self.state().outcomes(stream, address, access)
    }

    /// The outcome of a transaction that its device calls translated already. Nothing happens.
    pub fn translated(&self, stream: u32, address: u64) -> Outcome {
        self.state().translated(stream, address)
    }

    /// A transaction. Where several outcomes are possible it is that of the tables in memory, or, after
    /// [`SmmuModel::prefer_old`], another.
    pub fn transact(&self, stream: u32, address: u64, access: Access) -> Outcome {
        self.state().transact(stream, address, access)
    }

    /// Transactions use what the SMMU has kept, wherever it may have kept something.
    pub fn prefer_old(&self) {
        self.state().prefers_old = true;
    }

    /// The tables in memory alone decide what becomes of a transaction of `stream` to `address`.
    pub fn audit(&self, stream: u32, address: u64) {
        self.state().audit(stream, address);
    }

    /// `bytes` at `address` get another use: no translation may lead there.
    pub fn freed(&self, address: PhysAddr, bytes: u64) {
        self.state().freed(address.0, bytes);
    }

    /// The SMMU writes `record` into its event queue.
    pub fn raise_event(&self, record: [u64; 4]) {
        self.state().record(record);
    }

    /// Events of transactions come late: those before a CMD_SYNC are in the queue when it completes, and not earlier.
    pub fn delay_events(&self) {
        self.state().delays_events = true;
    }

    /// EVENTQ_PROD is `value`, whatever was recorded.
    pub fn corrupt_event_prod(&self, value: u32) {
        self.state().registers.event_prod = value;
    }

    /// The SMMU takes at most `most` commands.
    pub fn consume(&self, most: u32) {
        self.state().consume(most);
    }

    /// The SMMU takes no more commands, or does again.
    pub fn answer(&self, answers: bool) {
        self.state().answers = answers;
    }

    /// The next `count` times that the SMMU reads the command queue it gets no answer.
    pub fn fail_fetches(&self, count: usize) {
        self.state().failing_fetches = count;
    }

    /// Takes commands at another pace from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.state().hardware.pace = pace;
    }

    /// The driver leaves `step` out.
    pub fn leave_out(&self, step: DriverStep) {
        self.state().left_out.push(step);
    }

    /// The `nth` barrier of this kind from now on, from 0, is not there.
    pub fn lose_barrier(&self, barrier: Barrier, nth: usize) {
        self.state().lost_barriers.push((barrier, nth));
    }

    /// The `nth` clean from now on, from 0, is not there.
    pub fn lose_clean(&self, nth: usize) {
        self.state().lost_clean = Some(nth);
    }

    /// Whether that clean has come.
    pub fn has_lost_clean(&self) -> bool {
        self.state().lost_clean.is_none()
    }

    /// Each command that the SMMU takes is what `rewrite` makes of it: another, or none.
    pub fn rewrite_commands(&self, rewrite: Rewrite) {
        self.state().rewrite = Some(rewrite);
    }

    /// The operations of the driver, devices and the SMMU during `work`.
    pub fn record(&self, work: impl FnOnce()) -> Vec<Operation> {
        let before = self.state().recorded.len();
        work();
        self.state().recorded[before..].iter().map(|recorded| recorded.operation).collect()
    }

    /// Forgets what was recorded: for long runs.
    pub fn forget(&self) {
        self.state().recorded.clear();
    }

    /// Takes the driver's reports.
    pub fn reports(&self) -> Vec<String> {
        std::mem::take(&mut self.state().reports)
    }

    /// Takes what went wrong so far.
    pub fn violations(&self) -> Vec<SmmuViolation> {
        std::mem::take(&mut self.state().violations)
    }

    /// Asserts that nothing went wrong so far.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{}", texts(&violations));
    }

    /// Asserts that something did, takes it all and returns the first.
    #[track_caller]
    pub fn expect_violation(&self) -> SmmuViolation {
        self.violations().into_iter().next().expect("the model saw nothing wrong")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for SmmuModel {
    fn drop(&mut self) {
        let violations = self.violations();
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("the model was dropped with violations that were not taken:\n{}", texts(&violations));
        }
    }
}

fn texts(violations: &[SmmuViolation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
