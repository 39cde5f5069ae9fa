//! A machine for loom: the page-table algorithms in every order in which a few CPUs can run them.
//!
//! [loom] runs a closure again and again, once for each interleaving of its threads and for each value that a load may
//! return by the C11 memory model. The cells belong to [`Mmu`], so the code under test is the kernel's own; the
//! geometry is [`Tiny`], two levels of four entries. `cargo test -p granule-loom` runs it all: this crate alone uses
//! loom, so no `--cfg loom` is needed.
//!
//! # The stand-ins
//! | metal | here |
//! |---|---|
//! | load, with the address dependency after it | load with acquire: C11 has no dependencies that can be relied on |
//! | store, compare-exchange, bit-clear | relaxed (what a failed or successful one read: acquire, as for a load) |
//! | DMB ISHST, DSB ISHST | release fence |
//! | DSB ISH | sequentially consistent fence |
//! | what TLBs hold | a set for all CPUs, for tests that look pages up in hardware's place ([`Cpu::access`]) |
//! | a CPU that has a stale walk cache | nothing: that is the model machine's part |
//!
//! # The kernel's own files
//! The notifier chain ([`notifier`]), tokens, run queues, wait queues, timeouts and the lock whose waiters sleep
//! ([`sched`]), much of memory management beside the page tables ([`mm`]), the order of interrupts with memory ([`chip`]),
//! the interrupts of devices that threads wait for ([`devices`]), bindings of devices to spaces with their faults
//! ([`iommu`]), the count of tasks ([`linux`]), and calls of other CPUs and their parking ([`remote`]) are the kernel's
//! files, compiled here once more: what they name by `crate::sync`, `crate::smp`, `crate::chip` and so on is in this
//! crate. The chain runs with no table or with one entry, what sleeps on threads with a lock and a condition for their run
//! queue or on the kernel's run queues ([`Sleeper`]). The command queue of an SMMU is generic over its platform ([`Smmu`]);
//! it runs with a thread that consumes it, or with nothing that does and a clock that runs out. So are the page tables and
//! the TLBIs that a change issues, by their operands.
//!
//! Loom cannot show one thing: a load never takes its value from a store that is later in the same order (no load
//! buffering). The release of the even word is therefore seen through what a mapper stores, not through what a
//! walker reads.
//!
//! The machine's own bookkeeping (which frames are free, what TLBs hold) is in plain `std` types, which loom does not see:
//! it makes no order between CPUs that the kernel would not have. The tests named `canary` would fail if it did.
//!
//! # Rule: a checker is believed only when it is seen to fail
//! [`Without`] and [`Omitted`] take one step away; each
//! property has a twin that runs without a step and must be caught.

pub mod chip;
pub mod devices;
pub mod iommu;
pub mod linux;
pub mod mm;
pub mod notifier;
pub mod remote;
pub mod sched;
mod smmu;
pub mod smp;
pub mod sync;
mod tlb;

use std::sync::Mutex;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, bits};
use granule_arch::tlbi::Instruction;
use granule_pgtable::{
    Announced, Collapse, Collapser, Entries, Execution, Feature, Geometry, Handshake, Invalidation, Lazy, Leaf, Leaves,
    Mmu, PageRange, PageTables, Progress, Reclaimer, Serialise, Shape, Stores, Table, TableSource, Tiny, Tlb, WalkWord,
    WholeLeaves,
};
use loom::cell::UnsafeCell;
use loom::sync::atomic::fence;
pub use sched::Sleeper;
pub use smmu::{Consumer, Smmu};
use sync::atomic::{AtomicU64, Ordering};
pub use sync::atomic::{Omitted, omit};
use tlb::Tlbs;

/// A replacement for `alloc`: memory is never given back, so that a call of a subscriber that has left does
/// not read what was freed.
#[allow(unsafe_code, reason = "keeps the signature of `dealloc`")]
#[allow(clippy::module_inception, reason = "the path is `crate::alloc::alloc`")]
mod alloc {
    pub(crate) mod alloc {
        pub(crate) use std::alloc::{Layout, alloc};

        pub(crate) unsafe fn dealloc(_: *mut u8, _: Layout) {}
    }

    pub(crate) mod collections {
        pub(crate) use std::collections::BTreeSet;
    }
}

/// The part of the kernel's `platform` that its files name here.
mod platform {
    pub(crate) use granule::platform::features;
}

/// A replacement for the kernel's `stretches`.
mod stretches {
    pub(crate) fn mark_point() {}
}

/// A replacement for the kernel's `log`: it writes nothing.
mod log {
    macro_rules! write_nothing {
        ($($message:tt)*) => {
            _ = format_args!($($message)*)
        };
    }
    pub(crate) use {write_nothing as debug, write_nothing as error, write_nothing as warn};
}

/// A replacement for the kernel's `lab`: no switch is on.
mod lab {
    macro_rules! is_on {
        ($lab:ident) => {
            false
        };
    }
    pub(crate) use is_on;
}

/// Memory whose users loom watches: it reports an access that is not ordered before or after another.
#[derive(Default)]
pub struct Watched<T>(UnsafeCell<T>);

#[allow(unsafe_code, reason = "shares what loom watches")]
// SAFETY: loom stops at an access that races.
unsafe impl<T: Send> Sync for Watched<T> {}

#[allow(unsafe_code, reason = "accesses what loom watches")]
impl<T: Copy> Watched<T> {
    /// Writes it.
    pub fn write(&self, value: T) {
        // SAFETY: loom stops at an access from elsewhere.
        self.0.with_mut(|own| unsafe { *own = value });
    }

    /// Reads it.
    pub fn read(&self) -> T {
        // SAFETY: loom stops at a write from elsewhere.
        self.0.with(|own| unsafe { *own })
    }
}

/// The CPUs of the machine, each with a walk word.
pub const CPUS: usize = 3;
/// Entries in each table of [`Tiny`].
const ENTRIES: usize = 4;
/// The target of page 0; the target of page `n` is `n` pages above.
const TARGET: u64 = 0x4000_0000;
/// The address in each entry of a reused frame, for a walker that takes the frame for a table.
const POISON: u64 = 0xdead_f000_0000 & bits::ADDRESS;

/// A step that the machine leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    /// All steps are taken.
    Nothing,
    /// The DMB ISHST before a table is linked.
    DmbIshst,
    /// The DSB ISH between a change and a look at the walk words, or at the end of an invalidation.
    DsbIsh,
    /// Compare-exchange in one step: a load and a store.
    AtomicExchange,
    /// Bit-clear in one step: a load and a store.
    AtomicClear,
    /// Marks of tables that are leaving: only CPU 0, which reclaims, sees them; a collapse makes none.
    Marks,
    /// Bulk changes that keep to the caller's entries: they write the other half of each pair as well, as they read it.
    OwnEntries,
    /// The announcement of walks: no reclaimer reads the words.
    Grace,
    /// The full barrier after the word becomes odd.
    WalkBarrier,
    /// The release when the word becomes even.
    WalkRelease,
}

/// The machine: a root table, frames for more, and a walk word for each CPU.
pub struct Machine {
    frames: Vec<[AtomicU64; ENTRIES]>,
    /// Free frames.
    free: Mutex<Vec<PhysAddr>>,
    /// The reclaim of its tables, with how many it has freed. They never become tables again: a frame that goes from
    /// CPU to CPU is put in order by the frame allocator, which is not here.
    reclaim: Mutex<(Reclaimer<Tiny, CPUS>, usize)>,
    collapse: loom::sync::Mutex<Collapser<Tiny, CPUS>>,
    words: [CpuWord; CPUS],
    tlbs: Tlbs,
    /// How often each CPU has emptied its own TLB.
    emptied: [std::sync::atomic::AtomicUsize; CPUS],
    /// The lock that serialises splits, where they are serialised.
    split_lock: loom::sync::Mutex<()>,
    without: Without,
}

impl Machine {
    /// A machine with `frames` frames for tables, full of what their last owner left in them.
    pub fn new(frames: usize, without: Without) -> Self {
        let frame = |value| std::array::from_fn(|_| AtomicU64::new(value));
        Self {
            frames: std::iter::once(frame(0)).chain((0..frames).map(|_| frame(poison().0))).collect(),
            free: Mutex::new((1..=frames).rev().map(address).collect()),
            reclaim: Mutex::new((Reclaimer::new(), 0)),
            collapse: loom::sync::Mutex::new(Collapser::new()),
            words: std::array::from_fn(|_| CpuWord { value: AtomicU64::new(0), without }),
            tlbs: Tlbs::default(),
            emptied: Default::default(),
            split_lock: loom::sync::Mutex::new(()),
            without,
        }
    }

    /// One of its CPUs.
    pub fn cpu(&self, number: usize) -> Cpu<'_> {
        Cpu { machine: self, number }
    }

    /// Frames that are tables, the root not counted.
    pub fn tables(&self) -> usize {
        self.frames.len() - 1 - self.free.lock().unwrap().len() - self.reclaim.lock().unwrap().1
    }

    fn cells(&self, frame: PhysAddr) -> &[AtomicU64; ENTRIES] {
        &self.frames[(frame.0 >> Tiny::PAGE_SHIFT) as usize - 1]
    }
}

fn address(frame: usize) -> PhysAddr {
    PhysAddr((frame as u64 + 1) << Tiny::PAGE_SHIFT)
}

/// A valid leaf that no CPU has mapped.
fn poison() -> Descriptor {
    Descriptor::page(PhysAddr(POISON), Attributes::kernel_data(MemoryType::Normal))
}

/// The pages from `first` on, `count` of them.
pub fn pages(first: u64, count: usize) -> PageRange<Tiny> {
    PageRange::from_pages(VirtAddr(first << Tiny::PAGE_SHIFT), count).unwrap()
}

/// One CPU of a [`Machine`].
#[derive(Clone, Copy)]
pub struct Cpu<'m> {
    machine: &'m Machine,
    number: usize,
}

impl<'m> Cpu<'m> {
    /// Its walk word.
    pub fn word(&self) -> &'m CpuWord {
        &self.machine.words[self.number]
    }

    /// How often it has emptied its TLB.
    pub fn emptied(&self) -> usize {
        self.machine.emptied[self.number].load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Announces a walk.
    pub fn announce(&self) -> Announced<'m, CpuWord> {
        Announced::begin(self.word())
    }

    /// The tables as it sees them. A caller that changes or reads them announces that.
    #[allow(unsafe_code, reason = "keeps the contracts of the kernel's unsafe traits on loom's types")]
    pub fn tables(&self) -> PageTables<'_, Self> {
        // SAFETY: frame 0 is zero at first, never free, and there as long as the machine.
        PageTables::new(self, unsafe { Table::root(address(0)) })
    }

    /// Maps `page` to the memory that is its own, in an announced walk.
    pub fn map(&self, page: u64) {
        let _walk = self.announce();
        self.map_quietly(page);
    }

    /// As [`Self::map`], in a walk that is not announced.
    pub fn map_quietly(&self, page: u64) {
        let (lazy, data) = (Lazy::new(self), Attributes::kernel_data(MemoryType::Normal));
        let to = PhysAddr(TARGET + (page << Tiny::PAGE_SHIFT));
        self.tables().map(&lazy, pages(page, 1), to, data, Shape::PAGES, &mut { *self }).expect("the page is free");
    }

    /// Unmaps `page`, in an announced walk.
    pub fn unmap(&self, page: u64) {
        let _walk = self.announce();
        self.tables().unmap(&Lazy::new(self), &NoTlb, pages(page, 1), WholeLeaves, |_| {}).expect("pages only");
    }

    /// Makes `count` pages from `first` on present-invalid, in an announced walk.
    pub fn unmap_lazily(&self, first: u64, count: usize) {
        let _walk = self.announce();
        assert_eq!(self.tables().unmap_lazily(pages(first, count), bits::RDONLY, 0), Ok(true));
    }

    /// Hands out what [`Self::unmap_lazily`] has left there, in an announced walk: each leaf with its own
    /// memory.
    pub fn release(&self, first: u64, count: usize) {
        let _walk = self.announce();
        self.release_quietly(first, count);
    }

    /// As [`Self::release`], in a walk that is not announced.
    #[allow(unsafe_code, reason = "releases what has no memory")]
    pub fn release_quietly(&self, first: u64, count: usize) {
        let mut next = first;
        let released = |leaf: Leaf| {
            assert_eq!(leaf.physical, PhysAddr(TARGET + (next << Tiny::PAGE_SHIFT)), "page {next} was lost");
            next += leaf.size >> Tiny::PAGE_SHIFT;
        };
        // SAFETY: frames are numbers, which a test looks for.
        unsafe { self.tables().release_unmapped(pages(first, count), released) };
        assert_eq!(next, first + count as u64, "page {next} was lost");
    }

    /// Looks `page` up in an announced walk, and whether it is mapped. A mapped page translates to its own memory, in
    /// every order of the CPUs.
    pub fn look(&self, page: u64) -> bool {
        let _walk = self.announce();
        self.look_quietly(page)
    }

    /// As [`Self::look`], in a walk that is not announced.
    pub fn look_quietly(&self, page: u64) -> bool {
        let found = self.tables().translate(VirtAddr(page << Tiny::PAGE_SHIFT));
        if let Some(found) = found {
            let own = PhysAddr(TARGET + (page << Tiny::PAGE_SHIFT));
            assert_eq!(found.physical, own, "page {page} was read in a table that is none any more, or not yet");
        }
        found.is_some()
    }

    /// Maps the pages from `first` on, `count` of them, by the largest leaves that there are.
    pub fn map_largest(&self, first: u64, count: usize) {
        let (lazy, data) = (Lazy::new(self), Attributes::kernel_data(MemoryType::Normal));
        let to = PhysAddr(TARGET + (first << Tiny::PAGE_SHIFT));
        let largest = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };
        self.tables().map(&lazy, pages(first, count), to, data, largest, &mut { *self }).expect("the pages are free");
    }

    /// The lock around splits.
    pub fn split_lock(&self) -> SplitLock<'m> {
        SplitLock(&self.machine.split_lock)
    }

    /// Takes the reclaim of empty tables as far as it goes without waiting. Each freed table has another owner at
    /// once. One CPU does this.
    #[allow(unsafe_code, reason = "the one reclaimer of the tree, or a test that shows what is lost")]
    pub fn reclaim(&self) -> Progress {
        let (reclaimer, freed) = &mut *self.machine.reclaim.lock().unwrap();
        if reclaimer.is_idle() {
            reclaimer.start(pages(0, ENTRIES));
        }
        let free = |table| {
            for cell in self.machine.cells(table) {
                cell.store(poison().0, Ordering::Relaxed);
            }
            *freed += 1;
        };
        // SAFETY: tables are words of the machine; what comes too early is poison that a walk reads.
        unsafe { reclaimer.advance(&self.tables(), &NoTlb, |number| self.word_of(number), free) }
    }

    /// Takes the collapse of all tables as far as it goes without waiting, unless another CPU does that at this moment.
    /// A table that is replaced has another owner at once.
    #[allow(unsafe_code, reason = "the one collapser of the tree, or a test that shows what is lost")]
    pub fn collapse(&self) {
        let Ok(mut collapser) = self.machine.collapse.try_lock() else { return };
        if collapser.is_idle() {
            let range = pages(0, ENTRIES * ENTRIES);
            let handshake = if self.machine.without == Without::Marks { Handshake::None } else { Handshake::Marks };
            collapser.start(Collapse { range, never_blocks: 0, handshake });
        }
        let words = |number: usize| self.word_of(number);
        let free = |table| {
            for cell in self.machine.cells(table) {
                cell.store(poison().0, Ordering::Relaxed);
            }
            self.machine.reclaim.lock().unwrap().1 += 1;
        };
        loop {
            // SAFETY: as for `reclaim`.
            let progress = unsafe {
                collapser.mark(&self.tables(), words);
                collapser.advance(&self.tables(), &NoTlb, words, &mut { *self }, free)
            };
            if collapser.is_idle() || progress == Progress::Waiting {
                return;
            }
        }
    }

    /// A CPU's walk word, for what waits for walks.
    fn word_of(&self, number: usize) -> Option<&'m CpuWord> {
        self.machine.words.get(number).filter(|_| self.machine.without != Without::Grace)
    }
}

// SAFETY: (1) a table's cells are its frame's, atomics all; (2) loads acquire; (3) the barriers are the fences of the
// table in the crate's documentation, unless a test takes one away to see that it is missed; (4) so too for bulk
// changes.
#[allow(unsafe_code, reason = "keeps the contract of `Mmu`")]
unsafe impl Mmu for Cpu<'_> {
    type Geometry = Tiny;
    type Cell = AtomicU64;

    fn table(&self, table: Table<Tiny>) -> &[AtomicU64] {
        self.machine.cells(table.address())
    }

    fn load(&self, cell: &AtomicU64) -> Descriptor {
        let is_hidden = self.machine.without == Without::Marks && self.number != 0;
        let hidden = if is_hidden { bits::RECLAIM_MARK } else { 0 };
        Descriptor(cell.load(Ordering::Acquire) & !hidden)
    }

    unsafe fn write(&self, cell: &AtomicU64, descriptor: Descriptor) {
        cell.store(descriptor.0, Ordering::Relaxed);
    }

    unsafe fn exchange(&self, cell: &AtomicU64, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        if self.machine.without == Without::AtomicExchange {
            let found = self.load(cell);
            if found != current {
                return Err(found);
            }
            self.store(cell, new);
            return Ok(());
        }
        let result = cell.compare_exchange(current.0, new.0, Ordering::Acquire, Ordering::Acquire);
        result.map(drop).map_err(Descriptor)
    }

    unsafe fn clear(&self, cell: &AtomicU64, mask: u64) -> Descriptor {
        if self.machine.without == Without::AtomicClear {
            let found = self.load(cell);
            self.store(cell, Descriptor(found.0 & !mask));
            return found;
        }
        Descriptor(cell.fetch_and(!mask, Ordering::Acquire))
    }

    unsafe fn flip_run(&self, run: &[AtomicU64], flip: u64) {
        let flip_one = |cell| self.store(cell, Descriptor(self.load(cell).0 ^ flip));
        if self.machine.without != Without::OwnEntries {
            return run.iter().for_each(flip_one);
        }
        for cell in run {
            let frame =
                self.machine.frames.iter().find(|frame| frame.as_ptr_range().contains(&std::ptr::from_ref(cell)));
            let frame = frame.expect("a cell lies in a frame");
            let index = frame.iter().position(|other| std::ptr::eq(other, cell)).expect("that one");
            let other = &frame[index ^ 1];
            let found = self.load(other);
            flip_one(cell);
            self.store(other, found);
        }
    }

    fn tlbi(&self, instruction: Instruction) {
        self.machine.tlbs.invalidate(instruction);
        if instruction == Instruction::Vmalle1 {
            self.machine.emptied[self.number].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn dmb_ishst(&self) {
        if self.machine.without != Without::DmbIshst {
            fence(Ordering::Release);
        }
    }

    fn dsb_ishst(&self) {
        fence(Ordering::Release);
    }

    fn dsb_ish(&self) {
        if self.machine.without != Without::DsbIsh {
            fence(Ordering::SeqCst);
        }
    }

    /// For the CPU itself: it orders nothing with others.
    fn dsb_nsh(&self) {}

    fn isb(&self) {}

    /// All: so the end of a section pays no barrier that would order what the code under test does not, and a range takes
    /// few invalidations, with hints.
    fn has(&self, _: Feature) -> bool {
        true
    }
}

// SAFETY: the tests change what they own; entries map no memory.
#[allow(unsafe_code, reason = "keeps the contract of `Stores`")]
unsafe impl Stores for Cpu<'_> {}

// SAFETY: a frame is in `free` or has one user; the taker zeroes it by stores of its own, as the kernel does, and so
// does the CPU that gives one back.
#[allow(unsafe_code, reason = "keeps the contract of `TableSource`")]
unsafe impl TableSource for Cpu<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = self.machine.free.lock().unwrap().pop()?;
        for cell in self.machine.cells(table) {
            cell.store(0, Ordering::Relaxed);
        }
        Some(table)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.machine.free.lock().unwrap().push(table);
    }
}

/// The machine's lock around splits.
pub struct SplitLock<'m>(&'m loom::sync::Mutex<()>);

// SAFETY: every split that takes one takes the same lock.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for SplitLock<'_> {
    type Section<'a>
        = loom::sync::MutexGuard<'a, ()>
    where
        Self: 'a;

    fn entries(&self) -> Entries {
        Entries::Alone
    }

    fn begin(&self) -> Self::Section<'_> {
        self.0.lock().unwrap()
    }
}

/// No TLB, for tests in which none holds anything: only the barriers of an invalidation are left.
pub struct NoTlb;

impl Tlb<Cpu<'_>> for NoTlb {
    fn issue(&self, _: &Cpu<'_>, _: &Invalidation<Tiny>) {}
}

/// A CPU's walk word.
pub struct CpuWord {
    value: AtomicU64,
    without: Without,
}

impl WalkWord for CpuWord {
    fn make_odd(&self) -> u64 {
        self.value.fetch_or(1, Ordering::Relaxed)
    }

    fn load_acquire(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    fn store_release(&self, value: u64) {
        let order = if self.without == Without::WalkRelease { Ordering::Relaxed } else { Ordering::Release };
        self.value.store(value, order);
    }

    fn full_barrier(&self) {
        sync::interrupts::point();
        if self.without != Without::WalkBarrier {
            sync::atomic::fence(Ordering::SeqCst);
        }
    }
}
