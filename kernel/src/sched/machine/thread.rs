//! The state of a thread.

#![allow(unsafe_code, reason = "threads and waiters in intrusive lists, under the lock of their queue")]

use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::mem::{ManuallyDrop, offset_of};
use core::ops::Deref;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::VirtAddr;
use granule_arch::esr::Access;
use granule_arch::interrupts;
use intrusive_collections::LinkedListLink;
use spin::Once;

use super::fp::FpArea;
use super::start::{NewStack, surroundings};
use super::{queue, switch};
use crate::mm::OutOfMemory;
use crate::mm::context::Context;
use crate::mm::pool::{Pool, PoolBox};
use crate::sched::replays::{ReplayCount, Replays};
use crate::sched::tag_check::TagChecks;
use crate::sched::token::Token;
use crate::smp::{self, Cpu, CpuId, CpuSet, this_cpu};
#[cfg(debug_assertions)]
use crate::sync::rank::HeldRanks;
use crate::trap::frame::TrapFrame;

/// The number of a thread, never used twice.
pub type ThreadId = u32;

/// The functions for a user thread's exceptions. They run in its kernel half, on its own stack, with interrupts
/// on, and may sleep.
pub struct UserEntry {
    /// SVC. The function puts the call's result into the frame.
    pub syscall: extern "C" fn(&mut TrapFrame, &Thread),
    /// An instruction or data abort; the frame has its kind and address. Returns whether it was served.
    pub fault: extern "C" fn(&mut TrapFrame, &Thread) -> bool,
    /// Every other synchronous exception, and an abort that was not served; the frame has its kind.
    pub exception: fn(&mut TrapFrame, &Thread),
    /// A mismatch of tags at EL0 was recorded, by hardware that reports it late ([`TagFaults`](crate::sched::TagFaults)).
    pub late_tag_fault: fn(&Thread),
    /// [`Thread::raise`] was called for [`Work::SIGNAL`]: the last thing before EL0 is entered.
    pub signal: fn(&mut TrapFrame, &Thread),
    /// A thread that [asked](Thread::set_reports_moves) for it has come to a CPU, perhaps the one that it was on: before EL0
    /// is entered there.
    pub moved: fn(&mut TrapFrame, &Thread),
    /// The kernel, working for the thread, could not access an address of EL0. Whether the access is to be tried again;
    /// else it fails with EFAULT.
    pub resolve: fn(&Thread, VirtAddr, Access) -> bool,
    /// Whether its program ends, or it leaves that: it waits for no other program any more.
    pub is_killed: fn(&Thread) -> bool,
    /// The number by which programs know it.
    pub number: fn(&Thread) -> u32,
}

/// The work of a thread before it enters EL0: bits of its work word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work(pub(super) u32);

impl Work {
    /// Let another thread run.
    pub(super) const RESCHEDULE: Self = Self(1);
    /// Call [`UserEntry::signal`].
    pub const SIGNAL: Self = Self(2);
    /// Call [`UserEntry::late_tag_fault`].
    pub(crate) const TAG_FAULT: Self = Self(4);
    /// Call [`UserEntry::moved`].
    pub const MOVED: Self = Self(8);
    /// Look whether it may enter EL0 on this CPU.
    pub(super) const PLACE: Self = Self(16);
}

/// A thread. It is reached through a [`ThreadRef`], and by the thread itself.
///
/// The cells belong to the CPU that runs the thread; while it does not run, to the CPU whose queue's lock is held.
#[repr(C)]
pub struct Thread {
    /// SP where it was switched away from.
    pub(super) sp: Cell<u64>,
    /// Bits of [`Work`]; others set them. The way out to EL0 looks at it, in assembly.
    pub(super) work: AtomicU32,
    /// Whether it sleeps.
    pub(super) state: Token,
    /// [`UserEntry::syscall`], for the assembly that calls it, or what calls that ([`TagChecks`]); never called in a
    /// kernel thread.
    pub(super) syscall: Cell<extern "C" fn(&mut TrapFrame, &Thread)>,
    /// [`UserEntry::fault`], likewise.
    pub(super) fault: Cell<extern "C" fn(&mut TrapFrame, &Thread) -> bool>,
    /// Whether it runs at EL0, and what its exceptions do then.
    pub entry: Option<&'static UserEntry>,
    /// In its CPU's run queue.
    pub(super) link: LinkedListLink,
    /// Its place among those that wait for its CPU: the smaller, the earlier.
    pub(super) arrival: Cell<u64>,
    /// Its CPU: see the rule in [`super`].
    pub(super) home: AtomicU32,
    /// See [`Self::set_cpus`]: bits of a [`CpuSet`].
    cpus: AtomicU32,
    references: AtomicU32,
    id: ThreadId,
    name: &'static str,
    /// Top of its kernel stack.
    pub(super) stack_top: Cell<u64>,
    /// TPIDR_EL0 while it does not run.
    pub(super) tls: Cell<u64>,
    /// Its space at EL0. None once it has ended, so it is not dropped with the thread: the last reference to a
    /// thread may go at the end of a switch, on whatever stack comes next.
    pub(super) space: UnsafeCell<ManuallyDrop<Option<Context>>>,
    pub(super) fp: FpArea,
    pub(super) time: CpuTime,
    /// See [`NewUserThread::task`].
    task: AtomicPtr<()>,
    /// See [`Self::is_uninterruptible`].
    is_uninterruptible: AtomicBool,
    /// See [`Self::works_for_program`].
    works_for_program: AtomicBool,
    /// See [`Self::set_tagged_addresses`].
    tagged_addresses: AtomicBool,
    /// See [`Self::set_reports_moves`].
    pub(super) reports_moves: AtomicBool,
    /// See [`Self::set_tag_checks`].
    pub(super) tag_checks: Cell<TagChecks>,
    /// Frames that a request of its own was for which failed for want of them; 0 for none since the last look.
    shortage: AtomicUsize,
    replays: ReplayCount,
    /// Of the sleeping locks that it holds.
    #[cfg(debug_assertions)]
    held_ranks: HeldRanks,
}

// SAFETY: see the type: one CPU at a time may access the cells, and the queue's lock is between them.
unsafe impl Sync for Thread {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Thread {}

/// How long a user thread has had a CPU, in counts of the timer.
///
/// One word, so that others may read it at any time: the sum, with [`Self::STOPPED`], while the thread does not run, else
/// the count at which the sum would have been 0.
#[derive(Debug)]
pub(super) struct CpuTime(AtomicU64);

impl CpuTime {
    /// Counts do not come so far.
    const STOPPED: u64 = 1 << 63;

    const fn new() -> Self {
        Self(AtomicU64::new(Self::STOPPED))
    }

    /// The thread gets a CPU.
    #[inline(always)]
    pub(super) fn start(&self, now: u64) {
        let sum = self.0.load(Ordering::Relaxed) & !Self::STOPPED;
        self.0.store(now.wrapping_sub(sum) & !Self::STOPPED, Ordering::Relaxed);
    }

    /// The thread leaves its CPU.
    #[inline(always)]
    pub(super) fn stop(&self, now: u64) {
        self.0.store(now.wrapping_sub(self.0.load(Ordering::Relaxed)) | Self::STOPPED, Ordering::Relaxed);
    }

    fn sum(&self, now: impl FnOnce() -> u64) -> u64 {
        let word = self.0.load(Ordering::Relaxed);
        let sum = if word & Self::STOPPED == 0 { now().wrapping_sub(word) } else { word };
        sum & !Self::STOPPED
    }
}

extern "C" fn never<T>(_: &mut TrapFrame, thread: &Thread) -> T {
    panic!("an exception from EL0 of {thread:?}, which does not run there");
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);
/// The threads that were made; those of [`queue`] were always there.
static THREADS: Once<Pool<Thread>> = Once::new();

/// See [`thread_count`].
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Thread {
    /// A thread without a stack, an entry, or a space.
    pub(super) const fn new(id: ThreadId, name: &'static str) -> Self {
        Self {
            sp: Cell::new(0),
            work: AtomicU32::new(0),
            state: Token::new(),
            syscall: Cell::new(never),
            fault: Cell::new(never),
            entry: None,
            link: LinkedListLink::new(),
            arrival: Cell::new(0),
            home: AtomicU32::new(0),
            cpus: AtomicU32::new(u32::MAX),
            references: AtomicU32::new(1),
            id,
            name,
            stack_top: Cell::new(0),
            tls: Cell::new(0),
            space: UnsafeCell::new(ManuallyDrop::new(None)),
            fp: FpArea::new(),
            time: CpuTime::new(),
            task: AtomicPtr::new(null_mut()),
            is_uninterruptible: AtomicBool::new(false),
            works_for_program: AtomicBool::new(false),
            tagged_addresses: AtomicBool::new(false),
            reports_moves: AtomicBool::new(false),
            tag_checks: Cell::new(TagChecks::NONE),
            shortage: AtomicUsize::new(0),
            replays: ReplayCount::new(),
            #[cfg(debug_assertions)]
            held_ranks: HeldRanks::new(),
        }
    }

    /// How long it has had a CPU, at EL0 and in the kernel, in counts of the timer. For user threads.
    pub fn cpu_time(&self) -> u64 {
        self.time.sum(granule_arch::timer::count)
    }

    /// Whether its system calls accept addresses with a tag in the top byte: Linux's tagged address ABI, off at first,
    /// inherited by the threads that it makes.
    pub fn set_tagged_addresses(&self, accepted: bool) {
        self.tagged_addresses.store(accepted, Ordering::Relaxed);
    }

    /// Whether [`UserEntry::moved`] is called, from the next entry to EL0 on. For the running thread, or one that has not
    /// run.
    pub fn set_reports_moves(&self, reports: bool) {
        self.reports_moves.store(reports, Ordering::Relaxed);
        if reports {
            self.raise_own(Work::MOVED);
        }
    }

    /// Has the running thread, or one that comes to this CPU, do `work` before it enters EL0.
    pub(super) fn raise_own(&self, work: Work) {
        self.work.fetch_or(work.0, Ordering::Relaxed);
    }

    /// The value that [`Self::set_tagged_addresses`] set last.
    pub fn has_tagged_addresses(&self) -> bool {
        self.tagged_addresses.load(Ordering::Relaxed)
    }

    /// The value of [`NewUserThread::task`] at its creation.
    pub fn task(&self) -> *mut () {
        self.task.load(Ordering::Relaxed)
    }

    /// The CPU that it runs on, or ran on last.
    pub fn home(&self) -> CpuId {
        CpuId(self.home.load(Ordering::Relaxed))
    }

    /// The CPUs that it may run on at EL0.
    pub fn online_cpus(&self) -> CpuSet {
        CpuSet::from_bits(self.cpus.load(Ordering::Relaxed) & smp::online().bits())
    }

    /// Whether there is a CPU that it may not run on at EL0.
    pub(super) fn is_bound(&self) -> bool {
        self.online_cpus() != smp::online()
    }

    /// Lets it run at EL0 on these CPUs alone, one of which is online: from its next entry on, which is soon if it is
    /// there. Threads that it makes inherit them.
    pub fn set_cpus(&self, cpus: CpuSet) {
        self.cpus.store(cpus.bits(), Ordering::Relaxed);
        self.raise(Work::PLACE);
    }

    /// Whether it sleeps. For reports: the answer may be old when it arrives.
    pub fn is_parked(&self) -> bool {
        self.state.is_parked()
    }

    /// Whether it sleeps in a wait that no signal ends, or only one that kills. As old as [`Self::is_parked`].
    pub fn is_uninterruptible(&self) -> bool {
        self.is_uninterruptible.load(Ordering::Relaxed)
    }

    /// Ends the thread's `park`, or the next one if it is in none. Stores that the caller made before are seen there.
    pub fn unpark(&self) {
        self.state.leave(|| queue::wake(self));
    }

    /// Has the thread do `work` before it enters EL0 the next time: soon, if it is there. It is not woken.
    pub fn raise(&self, work: Work) {
        self.work.fetch_or(work.0, Ordering::SeqCst);
        queue::interrupt(self);
    }

    /// Whether there is `work` to do: for a sleeper that it wakes.
    pub fn has(&self, work: Work) -> bool {
        self.work.load(Ordering::Acquire) & work.0 != 0
    }

    /// Takes back `work` that was raised: for the running thread, which looks then whether there is something to do.
    pub fn lower(&self, work: Work) {
        self.work.fetch_and(!work.0, Ordering::Acquire);
    }

    /// Has its requests for memory stop at the kernel's reserve, as a program's do. For the running thread.
    pub fn set_works_for_program(&self) {
        let masked = interrupts::mask();
        self.works_for_program.store(true, Ordering::Relaxed);
        this_cpu().reserve().set_for_program(true);
        interrupts::restore(masked);
    }

    /// Whether it works for a program: the kernel's own threads do not, but for those that serve programs' memory to
    /// devices.
    pub(super) fn works_for_program(&self) -> bool {
        self.works_for_program.load(Ordering::Relaxed)
    }

    /// How many frames a request of the running thread was for which failed for want of them, if one did since the last
    /// call.
    pub fn take_shortage(&self) -> Option<usize> {
        let wanted = self.shortage.load(Ordering::Relaxed);
        self.shortage.store(0, Ordering::Relaxed);
        (wanted != 0).then_some(wanted)
    }

    /// Whether [`Self::take_shortage`] would return a shortage.
    pub fn is_short(&self) -> bool {
        self.shortage.load(Ordering::Relaxed) != 0
    }

    /// Where [`UserEntry::syscall`] is, for `trap/user.S`.
    pub(crate) const SYSCALL: usize = offset_of!(Self, syscall);
    /// Where [`UserEntry::fault`] is, for `trap/user.S`.
    pub(crate) const FAULT: usize = offset_of!(Self, fault);
    /// Where the work word is, for `trap/user.S`.
    pub(crate) const WORK: usize = offset_of!(Self, work);

    /// The next work before EL0 is entered. This clears its bit, but for the turn of other threads, whose code clears
    /// its own.
    pub(crate) fn next_work(&self) -> Option<Work> {
        let work = self.work.load(Ordering::Acquire);
        if work & (Work::RESCHEDULE.0 | Work::PLACE.0) != 0 {
            return Some(Work::RESCHEDULE);
        }
        if work & Work::TAG_FAULT.0 != 0 {
            self.work.fetch_and(!Work::TAG_FAULT.0, Ordering::Relaxed);
            return Some(Work::TAG_FAULT);
        }
        if work & Work::SIGNAL.0 != 0 {
            self.lower(Work::SIGNAL);
            return Some(Work::SIGNAL);
        }
        (work != 0).then(|| {
            self.work.fetch_and(!Work::MOVED.0, Ordering::Relaxed);
            Work::MOVED
        })
    }

    /// The registers with which it entered the kernel from EL0: at the top of its kernel stack.
    pub(super) fn frame(&self) -> *mut TrapFrame {
        (self.stack_top.get() as usize - size_of::<TrapFrame>()) as *mut TrapFrame
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} ({})", self.id, self.name)
    }
}

/// A thread, counted: it is not freed before the last of these is dropped and it has ended.
pub struct ThreadRef(NonNull<Thread>);

// SAFETY: gives shared access alone, to what may be shared.
unsafe impl Send for ThreadRef {}
// SAFETY: as above.
unsafe impl Sync for ThreadRef {}

impl ThreadRef {
    /// One more reference.
    pub(super) fn to(thread: &Thread) -> Self {
        thread.references.fetch_add(1, Ordering::Relaxed);
        Self(NonNull::from(thread))
    }

    /// The reference that a thread has to itself, as a pointer, until it ends.
    pub(super) fn into_raw(self) -> NonNull<Thread> {
        let thread = self.0;
        core::mem::forget(self);
        thread
    }

    /// # Safety
    /// `thread` came from [`Self::into_raw`], and is used once.
    pub(super) unsafe fn from_raw(thread: NonNull<Thread>) -> Self {
        Self(thread)
    }
}

impl Deref for ThreadRef {
    type Target = Thread;
    fn deref(&self) -> &Thread {
        // SAFETY: counted.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for ThreadRef {
    fn clone(&self) -> Self {
        Self::to(self)
    }
}

impl fmt::Debug for ThreadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Drop for ThreadRef {
    fn drop(&mut self) {
        // Release: what this holder did comes before; acquire, by the last: it comes after what all did.
        if self.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: the last reference, so the thread is not shared; threads that are dropped came from the pool,
            // since the others keep the reference that they were made with.
            drop(unsafe { PoolBox::from_raw(self.0) });
            // Last: a reader of the new count finds all that was the thread's free.
            COUNT.fetch_sub(1, Ordering::Release);
        }
    }
}

/// A thread that does not run yet. Where this is dropped it never will, and its stack is freed.
pub struct NewThread {
    // First: a reader of the count that the last reference changes finds the stack free.
    stack: NewStack,
    space: Option<Context>,
    thread: ThreadRef,
}

impl NewThread {
    /// A reference for others to keep, whether it will run or not.
    pub fn to_ref(&self) -> ThreadRef {
        self.thread.clone()
    }

    /// Lets a user thread run: on a CPU that idles, or after others on this one.
    pub fn start(self) -> ThreadRef {
        let thread = self.begin();
        queue::start(thread.clone());
        thread
    }

    /// It has its stack and its space until it ends.
    fn begin(self) -> ThreadRef {
        self.stack.keep();
        // SAFETY: it is in no queue yet, so no CPU's; there was none before.
        unsafe { self.thread.space.get().write(ManuallyDrop::new(self.space)) };
        self.thread
    }
}

impl Deref for NewThread {
    type Target = Thread;
    fn deref(&self) -> &Thread {
        &self.thread
    }
}

/// The running thread.
///
/// Having one proves that the code runs in that thread, so that the thread is there.
#[derive(Clone, Copy)]
pub struct Current(NonNull<Thread>);

impl Current {
    /// A reference for others to keep.
    pub fn to_ref(self) -> ThreadRef {
        ThreadRef::to(&self)
    }
}

impl Deref for Current {
    type Target = Thread;
    fn deref(&self) -> &Thread {
        // SAFETY: a running thread is not freed, and the value does not leave it (it is not `Send`).
        unsafe { self.0.as_ref() }
    }
}

/// The running thread.
///
/// # Panics
/// Before [`super::init_cpu`] on this CPU.
#[inline(always)]
pub fn current() -> Current {
    let current = this_cpu().sched().current.load(Ordering::Relaxed);
    Current(NonNull::new(current).expect("threads exist once memory is set up"))
}

/// Waits for what no signal ends, or only one that kills: state `D` of the running thread, as in Linux.
pub fn uninterruptible<T>(wait: impl FnOnce() -> T) -> T {
    let thread = current();
    thread.is_uninterruptible.store(true, Ordering::Relaxed);
    let outcome = wait();
    thread.is_uninterruptible.store(false, Ordering::Relaxed);
    outcome
}

/// Whether a program's thread runs on this CPU, which may sleep for a fault of its own. A thread for devices
/// has faults of several programs.
pub(crate) fn runs_program(cpu: &Cpu) -> bool {
    working(cpu).is_some_and(|thread| !thread.task.load(Ordering::Relaxed).is_null())
}

/// Has the thread that an interrupt of this CPU came to [move](Thread::set_reports_moves), if it asked for that.
pub fn report_move(cpu: &Cpu) {
    // SAFETY: null before there are threads; what runs is not freed.
    let thread = unsafe { cpu.sched().current.load(Ordering::Relaxed).as_ref() };
    if let Some(thread) = thread.filter(|thread| thread.reports_moves.load(Ordering::Relaxed)) {
        thread.raise_own(Work::MOVED);
    }
}

/// Whether the running thread has a signal to deliver.
pub(crate) fn is_interrupted() -> bool {
    current().has(Work::SIGNAL)
}

/// Whether the program of the running thread ends. Kernel threads have none.
pub(crate) fn is_killed() -> bool {
    let thread = current();
    thread.entry.is_some_and(|entry| (entry.is_killed)(&thread))
}

/// The number by which programs know the running thread; 0 for a kernel thread.
pub(crate) fn program_number() -> u32 {
    let thread = current();
    thread.entry.map_or(0, |entry| (entry.number)(&thread))
}

/// Notes in the running thread that a request for `frames` frames failed for want of them.
pub(crate) fn note_shortage(cpu: &Cpu, frames: usize) {
    if let Some(thread) = working(cpu) {
        thread.shortage.store(frames, Ordering::Relaxed);
    }
}

/// Counts one more replay of a fault of the running thread on `page`; returns how many there were in a row.
pub(crate) fn note_replay(cpu: &Cpu, page: VirtAddr) -> u32 {
    working(cpu).map_or(1, |thread| thread.replays.note(cpu.id, page))
}

/// Ends that count: the fault was served; `None` where there was none for `page`.
#[inline(always)]
pub(crate) fn take_replays(cpu: &Cpu, page: impl FnOnce() -> VirtAddr) -> Option<Replays> {
    let thread = working(cpu).filter(|thread| thread.replays.is_begun())?;
    thread.replays.take(cpu.id, page())
}

/// A call of the running thread has failed, and gives `frames` frames back that it had taken: if it failed for want of
/// others, it was for all of them.
pub(crate) fn enlarge_shortage(cpu: &Cpu, frames: usize) {
    if let Some(thread) = working(cpu)
        && thread.is_short()
    {
        let wanted = thread.shortage.load(Ordering::Relaxed).saturating_add(frames);
        thread.shortage.store(wanted, Ordering::Relaxed);
    }
}

/// Has `look` look at the ranks of the sleeping locks that the running thread holds; before there are threads, nothing.
#[cfg(debug_assertions)]
pub(in crate::sched) fn with_held_ranks(look: impl FnOnce(&HeldRanks)) {
    if let Some(thread) = working(this_cpu()) {
        look(&thread.held_ranks);
    }
}

/// The thread that runs on this CPU, if it is not interrupted.
fn working(cpu: &Cpu) -> Option<&Thread> {
    let current = cpu.sched().current.load(Ordering::Relaxed);
    // SAFETY: null before there are threads; else the thread that runs here, which is not freed concurrently.
    let thread = unsafe { current.as_ref() };
    thread.filter(|_| !cpu.trap().is_in_handler())
}

/// Calls `look` with the context of the running thread, which stays the same; `None` for the kernel's own
/// threads, and in a handler of an interrupt.
pub(crate) fn with_context<T>(look: impl FnOnce(&Context) -> Option<T>) -> Option<T> {
    let thread = working(this_cpu())?;
    // SAFETY: only the thread itself changes its space, and it runs this.
    look(unsafe { &*thread.space.get() }.as_ref()?)
}

/// The initial state of a user thread.
pub struct NewUserThread<'a> {
    /// Its name.
    pub name: &'static str,
    /// The functions for its exceptions.
    pub entry: &'static UserEntry,
    /// Its registers at EL0.
    pub frame: &'a TrapFrame,
    /// TPIDR_EL0.
    pub tls: u64,
    /// Its space.
    pub space: Context,
    /// The registers of floating point; none: all zero.
    pub fp: Option<&'a crate::sched::fp_state::FpState>,
    /// A value of the maker's, to be found again by [`Thread::task`].
    pub task: *mut (),
}

impl NewUserThread<'_> {
    /// Makes the thread; it runs when it is started.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays taken.
    pub fn create(self, cpu: &Cpu) -> Result<NewThread, OutOfMemory> {
        let mut thread = Thread::new(NEXT_ID.fetch_add(1, Ordering::Relaxed), self.name);
        thread.entry = Some(self.entry);
        let maker = current();
        thread.syscall = Cell::new(self.entry.syscall);
        thread.fault = Cell::new(self.entry.fault);
        thread.works_for_program = AtomicBool::new(true);
        thread.tagged_addresses = AtomicBool::new(maker.has_tagged_addresses());
        thread.cpus = AtomicU32::new(maker.cpus.load(Ordering::Relaxed));
        thread.tls = Cell::new(self.tls);
        thread.task = AtomicPtr::new(self.task);
        if let Some(fp) = self.fp {
            thread.fp.set(fp);
        }
        let mut thread = allocate(cpu, thread)?;
        thread.space = Some(self.space);
        // SAFETY: the top of a stack that is not in use yet.
        unsafe { thread.frame().copy_from_nonoverlapping(self.frame, 1) };
        switch::prepare_user(&thread);
        // Last: across the calls before, the word would be kept in memory.
        let checks = current().tag_checks();
        if checks != TagChecks::NONE {
            thread.adopt(self.entry, checks);
        }
        Ok(thread)
    }
}

/// Starts a kernel thread on `cpu` that runs `function` to its end.
///
/// # Errors
/// [`OutOfMemory`]; nothing stays taken.
pub fn spawn_kernel(
    cpu: &'static Cpu,
    name: &'static str,
    function: extern "C" fn(usize),
    argument: usize,
) -> Result<ThreadRef, OutOfMemory> {
    // Its stack is of this CPU's frames, wherever it will run.
    let thread = allocate(this_cpu(), Thread::new(NEXT_ID.fetch_add(1, Ordering::Relaxed), name))?;
    thread.home.store(cpu.id.0, Ordering::Relaxed);
    switch::prepare_kernel(&thread, function, argument);
    let thread = thread.begin();
    queue::start_kernel(cpu, thread.clone());
    Ok(thread)
}

/// [`spawn_kernel`] for a thread that never ends: the kernel's own, which [`thread_count`] leaves out.
///
/// # Errors
/// [`OutOfMemory`]; nothing stays taken.
pub fn spawn_service(
    cpu: &'static Cpu,
    name: &'static str,
    function: extern "C" fn(usize) -> !,
) -> Result<ThreadRef, OutOfMemory> {
    extern "C" fn run(function: usize) {
        // SAFETY: the argument is the function that `spawn_service` was given.
        unsafe { core::mem::transmute::<usize, extern "C" fn(usize) -> !>(function)(0) }
    }
    let thread = spawn_kernel(cpu, name, run, function as usize)?;
    COUNT.fetch_sub(1, Ordering::Relaxed);
    Ok(thread)
}

/// Gives a thread its place, and its stack.
fn allocate(cpu: &Cpu, thread: Thread) -> Result<NewThread, OutOfMemory> {
    let stack = NewStack::take(cpu)?;
    thread.stack_top.set(stack.top().0);
    let thread = THREADS.call_once(|| Pool::new(surroundings().frames)).try_new(thread)?;
    COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(NewThread { stack, space: None, thread: ThreadRef(thread.into_raw()) })
}

/// Threads that were made and are still there, with anything that is theirs. Those that never end are not counted.
pub fn thread_count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// Frames that threads keep: for accounts of frames by owner.
pub fn kept_frames() -> usize {
    THREADS.get().map_or(0, |threads| threads.stats().frames)
}
