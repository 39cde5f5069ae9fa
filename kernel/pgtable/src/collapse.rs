//! Collapsing: a table whose entries are what a larger leaf says becomes that leaf, or a table with contiguous groups,
//! while it is in use.
//!
//! The reverse of [`crate::split`], for ranges that are alike again: pages to groups and to a 2 MiB block, blocks to
//! groups and to 1 GiB. Arm ARM D8.17.1 and FEAT_BBM level 2, as there: every address translates as before at any
//! moment, so nothing is broken. Owners change their entries by plain loads and stores, in interrupts too, and none of
//! them may lose a store, or wait. So the table is replaced in four steps, and none of these waits for a lock:
//!
//! 1. **Mark** the descriptor that links the table ([`bits::COLLAPSING`], compare-exchange), where its entries are alike.
//!    Then a grace period ([`Grace`]): every walk that was announced before has ended.
//! 2. **Look again.** Where all entries are still alike: compare-exchange of the marked descriptor to the block, or to
//!    a new table that has the contiguous bits. The mark stays.
//! 3. **Invalidate** walk caches (DSB ISHST; TLBI, all levels; DSB ISH), and take the mark away. Then a grace period.
//! 4. **Free** the table, with all of its leaves valid: the TLBI by one address is enough for that
//!    ([`Invalidation::unlinked_at`]).
//!
//! A group is not made in its own table: its sixteen entries cannot get the bit in one step, and between two of them an
//! owner would find a group that is half one.
//!
//! # Why no store is lost
//! A walk that may store is announced, and takes away each mark that it finds on its way down before it stores (a walk
//! that only reads leaves marks alone). Take an owner that stores to an entry, and its last read of the descriptor that
//! links the entry's table:
//!
//! ```text
//!     it read no mark    a mark that came later waits for the end of this walk before step 2, which then sees the store
//!     it took one away   step 2 of that mark fails in its compare-exchange; for a later mark, see above
//!     it read a block    step 2 was first: the owner changes the block, or splits it
//! ```
//! So the owner always wins, and waits for nothing.
//!
//! Looking again is half of the work. It is left out for blocks where no walk can have stored since the first look: when
//! all walk words are even, and their values before that look and after the mark are equal.
//!
//! # Why no walk cache brings an old entry back
//! Between steps 2 and 3 a walk cache may hold the old table, whose entries are those of before. An owner that changes
//! the block then, and invalidates its leaf alone, would leave the way open to what was: after its return a CPU could
//! still write what is read-only. The mark says so after step 2: walk caches may have another table for this
//! entry. An owner that finds it, on a block or on a table, invalidates them itself before it takes the mark away
//! (in [`crate::cursor`]), and then nothing that walks cannot see its change. It cannot tell the two uses of the mark apart, and
//! does the same for both.
//!
//! # Where CPUs cannot hold both sizes
//! There all other CPUs are stopped for step 2, none of them inside a walk ([`Collapser::replace_stopped`]). Nothing is
//! stored concurrently, so no mark is needed, nor a grace period; break-before-make replaces the link, and invalidates
//! everything. A group is made in its own table. Each stop makes one table, or a few groups: interrupts wait for it.
//!
//! # One collapser
//! There is one for each tree, kept apart from the tree's [`crate::Reclaimer`] by its caller. Of two, one could come to
//! its second step under the mark of the other, without having waited for the walks that this one waits for.

use core::ops::Range;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::announce::{Grace, WalkWord};
use crate::cursor::Cursor;
use crate::flush::Invalidation;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Stores, Table, Tlb};
use crate::range::PageRange;
use crate::reclaim::Progress;
use crate::source::TableSource;
use crate::tables::PageTables;

/// Tables that are replaced in one round. The next ones wait for the next.
const ROUND: usize = 16;

/// Groups that are made in one stop, at most.
const GROUPS: usize = 4;

/// How owners learn that an entry's table is about to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// By marks, as described in [`crate::collapse`].
    Marks,
    /// They do not run during the replacement: [`Collapser::replace_stopped`] comes between [`Collapser::mark`] and
    /// [`Collapser::advance`]. For CPUs that cannot hold leaves of two sizes.
    Stopped,
    /// Not at all, and no walk is waited for: for machines that show what is lost.
    None,
}

impl Handshake {
    const fn mark(self) -> u64 {
        match self {
            Self::Marks => bits::COLLAPSING,
            Self::Stopped | Self::None => 0,
        }
    }

    /// Tables in a round.
    const fn round(self) -> usize {
        match self {
            Self::Stopped => 1,
            Self::Marks | Self::None => ROUND,
        }
    }
}

/// The work of one collapse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collapse<G: Geometry> {
    /// A table that translates any of it becomes a block as a whole, and gets contiguous groups where the range touches
    /// them.
    pub range: PageRange<G>,
    /// No leaf with any of these bits becomes a block: only contiguous groups, whose split takes no table.
    pub never_blocks: u64,
    /// [`Handshake::Marks`], where all CPUs can hold leaves of two sizes; else [`Handshake::Stopped`].
    pub handshake: Handshake,
}

/// Counts of collapsed tables and groups, by the level of the leaves that were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collapses {
    /// Tables that became a block.
    pub blocks: [u64; LAST_LEVEL as usize + 1],
    /// Tables that got contiguous groups.
    pub groups: [u64; LAST_LEVEL as usize + 1],
    /// Tables that were marked and stay, because an owner came by, or there was no memory for another.
    pub cancelled: u64,
}

impl Collapses {
    /// None.
    pub const NONE: Self = Self { blocks: [0; 4], groups: [0; 4], cancelled: 0 };

    /// The counts since `earlier`, an older value of the same collapser's.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let less = |now: [u64; 4], then: [u64; 4]| core::array::from_fn(|level| now[level] - then[level]);
        Self {
            blocks: less(self.blocks, earlier.blocks),
            groups: less(self.groups, earlier.groups),
            cancelled: self.cancelled - earlier.cancelled,
        }
    }

    /// With what another call has collapsed.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let sum = |these: [u64; 4], those: [u64; 4]| core::array::from_fn(|level| these[level] + those[level]);
        Self {
            blocks: sum(self.blocks, other.blocks),
            groups: sum(self.groups, other.groups),
            cancelled: self.cancelled + other.cancelled,
        }
    }

    /// How many tables were replaced.
    pub fn replaced(&self) -> u64 {
        self.blocks.iter().chain(&self.groups).sum()
    }
}

/// The collapse of one tree's tables, on a machine of up to `CPUS` CPUs.
#[derive(Debug)]
pub struct Collapser<G: Geometry, const CPUS: usize> {
    /// The collapse that is under way.
    pass: Option<Pass<G>>,
    stage: Stage,
    /// The walks that the stage waits for.
    grace: Grace<CPUS>,
    /// The tables that step 4 frees.
    replaced: Replaced,
    done: Collapses,
}

/// A pass over a range.
#[derive(Clone, Copy, Debug)]
struct Pass<G: Geometry> {
    what: Collapse<G>,
    /// Where the next round begins; `None` at the end.
    from: Option<VirtAddr>,
    /// Tables of this level and above it are looked at.
    level: u8,
    /// The lowest level of tables that were replaced: those above may be alike now, and another pass follows.
    replaced: Option<u8>,
    /// The sum of all walk words at some moment before the next look.
    before: Option<u64>,
}

/// How far the tables of a round have come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Step 1 is next.
    Unmarked,
    /// Step 2 is next, for the tables that are marked from the address on, and for how many.
    Marked(First, usize, Look),
    /// Step 4 is next.
    Replaced,
}

/// Where a round begins.
#[derive(Clone, Copy, Debug)]
struct First {
    /// At which address the first table was visited.
    at: VirtAddr,
    /// Its level.
    level: u8,
}

/// Tables that are no longer linked, with the first address of each. Their entries stay what they were until no walk
/// can read them.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    tables: [(VirtAddr, PhysAddr); ROUND],
    count: usize,
    /// The lowest level of any.
    lowest: Option<u8>,
}

impl Replaced {
    const NONE: Self = Self { tables: [(VirtAddr(0), PhysAddr(0)); ROUND], count: 0, lowest: None };

    fn push<G: Geometry>(&mut self, start: VirtAddr, table: Table<G>) {
        if let Some(free) = self.tables.get_mut(self.count) {
            *free = (start, table.address());
            self.count += 1;
            self.lowest = self.lowest.max(Some(table.level()));
        }
    }

    const fn clear(&mut self) {
        (self.count, self.lowest) = (0, None);
    }

    fn iter(&self) -> impl Iterator<Item = (VirtAddr, PhysAddr)> {
        self.tables.into_iter().take(self.count)
    }
}

impl<G: Geometry, const CPUS: usize> Default for Collapser<G, CPUS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<G: Geometry, const CPUS: usize> Collapser<G, CPUS> {
    /// Nothing to do yet.
    pub const fn new() -> Self {
        Self { pass: None, stage: Stage::Unmarked, grace: Grace::OVER, replaced: Replaced::NONE, done: Collapses::NONE }
    }

    /// Whether [`Collapser::start`] may be called.
    pub const fn is_idle(&self) -> bool {
        self.pass.is_none()
    }

    /// The counts since the collapser was made.
    pub const fn done(&self) -> Collapses {
        self.done
    }

    /// Has the next [`Collapser::mark`] begin with `what`. Not before an earlier range is done ([`Collapser::is_idle`]):
    /// then nothing is done.
    ///
    /// From then on, until this one is done, every walk that maps, changes or unmaps anything that the tables of the range
    /// translate, which may be more than the range, is an announced one; it has a splitter whose
    /// [`LIVE_SPLITS`](crate::Splitter::LIVE_SPLITS) is set.
    pub const fn start(&mut self, what: Collapse<G>) {
        if self.is_idle() {
            let from = Some(what.range.start());
            self.pass = Some(Pass { what, from, level: LAST_LEVEL, replaced: None, before: None });
        }
    }

    /// Step 1, for the next few tables: marks those that could be larger leaves. The longer the caller waits then before
    /// it calls [`Collapser::advance`], the longer no owner may have come by for them to be collapsed.
    ///
    /// `words` gives each CPU's walk word by number: those of all CPUs that may walk this tree.
    ///
    /// # Safety
    /// Of all methods that change the tree:
    /// 1. It is the one collapser of this tree alone; the tree's [`crate::Reclaimer`] does not advance concurrently.
    /// 2. Walks are as [`Collapser::start`] demands, and `words` gives the word of each CPU that may walk.
    /// 3. With [`Handshake::Marks`] every CPU and device that uses the tree can hold leaves of two sizes.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn mark<'w, M: Stores<Geometry = G>, W: WalkWord + 'w>(
        &mut self,
        tables: &PageTables<'_, M>,
        words: impl Fn(usize) -> Option<&'w W>,
    ) {
        let Stage::Unmarked = self.stage else { return };
        while let Some(pass) = &mut self.pass {
            let Some(from) = pass.from else {
                // Larger leaves below may have made those above alike.
                match pass.replaced.take() {
                    Some(level) if level > G::FIRST_LEVEL + 1 => {
                        (pass.from, pass.level) = (Some(pass.what.range.start()), level - 1);
                    }
                    _ => self.pass = None,
                }
                continue;
            };
            let Collapse { range, never_blocks, handshake } = pass.what;
            let before = *pass.before.get_or_insert_with(|| Grace::<CPUS>::begin(&words).sum());
            let (mut marked, mut are_blocks, mut first) = (0, true, First { at: from, level: LAST_LEVEL });
            pass.from = for_each_table(tables, range, from, pass.level, |mmu, found| {
                if let Some(larger) = larger(mmu, &found, never_blocks) {
                    if marked == 0 {
                        first = First { at: found.at, level: found.table.level() };
                    }
                    let entry = Descriptor(found.descriptor.0 | handshake.mark());
                    let is_marked = handshake.mark() == 0 || put(mmu, &found, entry);
                    marked += usize::from(is_marked);
                    are_blocks &= matches!(larger, Larger::Block(_));
                }
                marked < handshake.round()
            });
            if marked != 0 {
                // The marks before the words, and a store before a load takes a full barrier.
                tables.mmu().dsb_ish();
                self.grace = Grace::begin(&words);
                let is_known = are_blocks && self.grace.saw_none_since(before);
                self.stage = Stage::Marked(first, marked, if is_known { Look::First } else { Look::All });
                return;
            }
        }
    }

    /// Step 2 of [`Handshake::Stopped`], for what [`Collapser::mark`] has found: with all other CPUs stopped, none inside a
    /// walk, and outside of any walk of this CPU's. Afterwards they go on, and [`Collapser::advance`] frees what was
    /// replaced.
    ///
    /// # Safety
    /// 1. As [`Self::mark`].
    /// 2. Until it returns no other CPU runs, and no CPU, this one among them, is inside a walk of the tree.
    /// 3. Nothing that this CPU accesses during the call is mapped by entries that are replaced, but by the second
    ///    mapping of [`crate::Stores::break_before_make`].
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn replace_stopped<M: Stores<Geometry = G>>(&mut self, tables: &PageTables<'_, M>) {
        let (Some(pass), Stage::Marked(First { at, level }, ..)) = (&mut self.pass, self.stage) else { return };
        let (Collapse { range, never_blocks, .. }, done, replaced) = (pass.what, &mut self.done, &mut self.replaced);
        // Only the addresses of that table are looked at: it may be another one by now, or gone.
        let span = M::Geometry::entry_size(level - 1) - 1;
        let (start, last) = (range.start().max(VirtAddr(at.0 & !span)), range.last().min(VirtAddr(at.0 | span)));
        let Ok(range) = PageRange::new(start, last.0 - start.0 + 1) else { return };
        let (mut goes_on, mut is_seen) = (false, false);
        for_each_table(tables, range, at, pass.level, |mmu, found| {
            let level = found.table.level();
            is_seen = true;
            match larger(mmu, &found, never_blocks) {
                Some(Larger::Block(block)) => {
                    mmu.break_before_make(core::slice::from_ref(found.cell), block, 0);
                    done.blocks[level as usize - 1] += 1;
                    replaced.push(found.start, found.table);
                }
                Some(Larger::Groups) => {
                    let (touched, size) = (&mmu.table(found.table)[found.touched()], M::Geometry::entry_size(level));
                    let mut groups = touched.chunks(M::Geometry::group_entries(level));
                    let mut groups = groups.by_ref().filter(|group| is_group::<M>(mmu, group, level));
                    for group in groups.by_ref().take(GROUPS) {
                        let first = mmu.load(&group[0]);
                        mmu.break_before_make(group, Descriptor(first.0 | bits::CONTIGUOUS), size);
                    }
                    goes_on = groups.next().is_some();
                    done.groups[level as usize] += u64::from(!goes_on);
                }
                None => done.cancelled += 1,
            }
            false
        });
        done.cancelled += u64::from(!is_seen);
        if goes_on {
            pass.from = Some(at);
        }
        pass.before = None;
        pass.replaced = pass.replaced.max(replaced.lowest);
        self.grace = Grace::OVER;
        self.stage = if replaced.count == 0 { Stage::Unmarked } else { Stage::Replaced };
    }

    /// Steps 2 to 4 for what is marked, as far as can be without waiting. [`Progress::Done`]: [`Collapser::mark`] is next,
    /// or nothing.
    ///
    /// Tables for groups come from `source`; `free` takes those that were replaced, of which no walk has a copy any more,
    /// with the entries that they had. `words` as for [`Collapser::mark`]. Not inside a walk of this CPU's own, which would
    /// be waited for like any other's.
    ///
    /// # Safety
    /// 1. As [`Self::mark`].
    /// 2. `tlb` invalidates for every CPU, and every device, that uses the tree.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn advance<'w, M: Stores<Geometry = G>, W: WalkWord + 'w>(
        &mut self,
        tables: &PageTables<'_, M>,
        tlb: &impl Tlb<M>,
        words: impl Fn(usize) -> Option<&'w W>,
        source: &mut impl TableSource,
        mut free: impl FnMut(PhysAddr),
    ) -> Progress {
        let mmu = tables.mmu();
        loop {
            let Some(pass) = &mut self.pass else { return Progress::Done };
            if !self.grace.is_over(&words) && pass.what.handshake != Handshake::None {
                return Progress::Waiting;
            }
            match self.stage {
                Stage::Unmarked => return Progress::Done,
                // Not replaced, so it stays.
                Stage::Marked(..) if pass.what.handshake == Handshake::Stopped => {
                    self.done.cancelled += 1;
                    self.stage = Stage::Unmarked;
                }
                Stage::Marked(from, marked, look) => {
                    let replaced = &mut self.replaced;
                    replace(tables, pass, from.at, look, source, &mut self.done, replaced);
                    self.done.cancelled += marked.saturating_sub(replaced.count) as u64;
                    pass.before = None;
                    self.stage = Stage::Unmarked;
                    if replaced.count != 0 {
                        pass.replaced = pass.replaced.max(replaced.lowest);
                        // Ends with a DSB ISH: the words are read after the new descriptors.
                        tlb.invalidate(mmu, replaced.iter().map(|(start, _)| Invalidation::unlinked_at(start)));
                        replaced.iter().for_each(|(start, _)| take_mark_away(tables, start));
                        self.grace = Grace::begin(&words);
                        pass.before = Some(self.grace.sum());
                        self.stage = Stage::Replaced;
                    }
                }
                Stage::Replaced => {
                    self.replaced.iter().map(|(_, table)| table).for_each(&mut free);
                    self.replaced.clear();
                    self.stage = Stage::Unmarked;
                }
            }
        }
    }
}

/// The end of step 3 for the entry that translates `address`, unless an owner was faster.
fn take_mark_away<M: Stores>(tables: &PageTables<'_, M>, address: VirtAddr) {
    let (mut place, mmu) = (Cursor::at_root(tables), tables.mmu());
    loop {
        let cell = place.cell(address);
        let entry = mmu.load(cell);
        // A table above has its mark, or none, for itself: of this round, and no walk cache has its old one any more.
        if entry.is_valid() && entry.0 & bits::COLLAPSING != 0 {
            let _ = mmu.compare_exchange(cell, entry, Descriptor(entry.0 & !bits::COLLAPSING));
        }
        if place.level() == LAST_LEVEL || place.follow(entry).is_err() {
            return;
        }
    }
}

/// Step 2, for the tables that are marked from `from` on.
fn replace<M: Stores>(
    tables: &PageTables<'_, M>,
    pass: &Pass<M::Geometry>,
    from: VirtAddr,
    look: Look,
    source: &mut impl TableSource,
    done: &mut Collapses,
    replaced: &mut Replaced,
) {
    let Collapse { range, never_blocks, handshake } = pass.what;
    let mark = handshake.mark();
    // The marked part of the range ends where the next round begins.
    let end = pass.from;
    for_each_table(tables, range, from, pass.level, |mmu, found| {
        if end.is_some_and(|end| found.start.max(from) >= end) {
            return false;
        }
        if found.descriptor.0 & mark != mark {
            return true;
        }
        let level = found.table.level();
        let larger = match look {
            Look::All => larger(mmu, &found, never_blocks),
            Look::First => Some(Larger::Block(as_block(mmu, &found))),
        };
        let (counts, level) = match larger {
            Some(Larger::Block(block)) if put(mmu, &found, Descriptor(block.0 | mark)) => (&mut done.blocks, level - 1),
            Some(Larger::Groups) if put_groups(mmu, &found, source) => (&mut done.groups, level),
            _ => {
                // An owner stored here, or there is no memory for a table: the table stays.
                let unmarked = Descriptor(found.descriptor.0 & !bits::COLLAPSING);
                let _ = mmu.compare_exchange(found.cell, found.descriptor, unmarked);
                return true;
            }
        };
        counts[level as usize] += 1;
        replaced.push(found.start, found.table);
        replaced.count < ROUND
    });
}

/// Puts `new` where `found` is linked, if that is so still.
fn put<M: Stores>(mmu: &M, found: &Found<'_, M>, new: Descriptor) -> bool {
    mmu.compare_exchange(found.cell, found.descriptor, new).is_ok()
}

/// Puts a new table there, which is as the one that was found, with a contiguous bit for each group that can have it.
#[allow(unsafe_code, reason = "gives back what it has taken")]
fn put_groups<M: Stores>(mmu: &M, found: &Found<'_, M>, source: &mut impl TableSource) -> bool {
    let Some(address) = source.take() else { return false };
    let level = found.table.level();
    let (old, new) = (mmu.table(found.table), mmu.table(Table::new(address, level)));
    let (entries, touched) = (M::Geometry::group_entries(level), found.touched());
    for (index, (from, to)) in old.chunks(entries).zip(new.chunks(entries)).enumerate() {
        let is_group = touched.contains(&(index * entries)) && is_group::<M>(mmu, from, level);
        let contiguous = if is_group { bits::CONTIGUOUS } else { 0 };
        for (from, to) in from.iter().zip(to) {
            mmu.store(to, Descriptor(mmu.load(from).0 | contiguous));
        }
    }
    // A walk that follows the descriptor finds the table filled.
    mmu.dmb_ishst();
    let linked = put(mmu, found, Descriptor(found.descriptor.0 & !bits::ADDRESS | address.0));
    if !linked {
        mmu.fill(new, Descriptor::EMPTY, 0);
        // SAFETY: it was taken above, is not linked, and is empty again.
        unsafe { source.give_back(address) };
    }
    linked
}

/// A larger form that a table can take.
enum Larger {
    /// This block.
    Block(Descriptor),
    /// A table with more contiguous groups.
    Groups,
}

/// Which entries are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// All of them.
    All,
    /// The first: all were what a block says, and nothing was stored since.
    First,
}

/// The larger form that `found` can take, by its entries as they are now; `None` where it is the largest already.
fn larger<M: Mmu>(mmu: &M, found: &Found<'_, M>, never_blocks: u64) -> Option<Larger> {
    let (cells, level) = (mmu.table(found.table), found.table.level());
    if !M::Geometry::has_leaves(level) {
        return None;
    }
    if let Some(block) = block(mmu, found, cells).filter(|block| block.0 & never_blocks == 0) {
        return Some(Larger::Block(block));
    }
    let entries = M::Geometry::group_entries(level);
    let mut groups = cells[found.touched()].chunks(entries);
    (entries > 1 && groups.any(|group| is_group::<M>(mmu, group, level))).then_some(Larger::Groups)
}

/// The block that translates as all of `cells`, if there is one.
fn block<M: Mmu>(mmu: &M, found: &Found<'_, M>, cells: &[M::Cell]) -> Option<Descriptor> {
    let level = found.table.level();
    let (above, size) = (level - 1, M::Geometry::entry_size(level));
    let first = mmu.load(&cells[0]);
    let is_leaf = first.is_valid() && first.kind(M::Geometry::level_entries(level)) == Kind::Leaf;
    let is_aligned = first.address().0 & (M::Geometry::entry_size(above) - 1) == 0;
    // A prohibition in the table's link would be lost, unless one above or the leaf has it too.
    let forbidden = found.descriptor.0 & !found.inherited;
    let is_lost = forbidden & bits::PXNTABLE != 0 || (forbidden & bits::UXNTABLE != 0 && first.0 & bits::UXN == 0);
    if !M::Geometry::has_leaves(above) || !is_leaf || !is_aligned || is_lost {
        return None;
    }
    let is_alike = mmu.filled(cells, first, size) == cells.len() || {
        let entries = M::Geometry::group_entries(level);
        cells.chunks(entries).enumerate().all(|(index, group)| {
            // Contiguous or not, the whole group; or not all of a split is seen.
            let expected = first.0 & !bits::CONTIGUOUS | mmu.load(&group[0]).0 & bits::CONTIGUOUS;
            let expected = Descriptor(expected + (index * entries) as u64 * size);
            mmu.filled(group, expected, size) == entries
        })
    };
    is_alike.then(|| as_block(mmu, found))
}

/// The block that translates as all of `found`, whose entries are alike.
fn as_block<M: Mmu>(mmu: &M, found: &Found<'_, M>) -> Descriptor {
    let page = if found.table.level() == LAST_LEVEL { bits::TABLE } else { 0 };
    Descriptor(mmu.load(&mmu.table(found.table)[0]).0 & !(bits::CONTIGUOUS | page))
}

/// Whether `group`, a naturally aligned run of entries, could have the contiguous bit and has it not.
fn is_group<M: Mmu>(mmu: &M, group: &[M::Cell], level: u8) -> bool {
    let first = mmu.load(&group[0]);
    first.is_valid()
        && !first.is_contiguous()
        && first.kind(M::Geometry::level_entries(level)) == Kind::Leaf
        && first.address().0 & (M::Geometry::group_size(level) - 1) == 0
        && mmu.filled(group, first, M::Geometry::entry_size(level)) == group.len()
}

/// A table.
struct Found<'t, M: Mmu> {
    /// Where it is linked.
    cell: &'t M::Cell,
    /// How.
    descriptor: Descriptor,
    table: Table<M::Geometry>,
    /// The first address that it translates.
    start: VirtAddr,
    /// The address at which it is visited: not before that, where it has other tables in front.
    at: VirtAddr,
    /// The bits that any table descriptor above that one has.
    inherited: u64,
    /// The range to collapse.
    range: PageRange<M::Geometry>,
}

impl<M: Mmu> Found<'_, M> {
    /// The entries that the range touches, and what is in a group with them.
    fn touched(&self) -> Range<usize> {
        let level = self.table.level();
        let group = M::Geometry::group_entries(level);
        let last = VirtAddr(self.start.0 | (M::Geometry::entry_size(level - 1) - 1));
        let from = M::Geometry::index(self.start.max(self.range.start()), level);
        let to = M::Geometry::index(last.min(self.range.last()), level);
        from & !(group - 1)..(to | (group - 1)) + 1
    }
}

/// Visits the tables of level `lowest` and above that translate any of `range` from `from` on and have leaves, until
/// `visit` returns false; never the root. Returns where it continues, or `None` at the end.
///
/// Only the one collapser and the one reclaimer unlink tables, so for these nothing vanishes on the way; for others the
/// walk must be announced.
fn for_each_table<'t, M: Mmu>(
    tables: &PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    from: VirtAddr,
    lowest: u8,
    mut visit: impl FnMut(&'t M, Found<'t, M>) -> bool,
) -> Option<VirtAddr> {
    let mmu = tables.mmu();
    // The last visited table that has others below it: it is visited once, at its first entry that is no table.
    let mut visited = None;
    let mut address = from;
    loop {
        let (mut place, mut link) = (Cursor::at_root(tables), None);
        let entry = loop {
            let cell = place.cell(address);
            let (descriptor, inherited) = (mmu.load(cell), place.inherited);
            if place.level() == lowest || place.follow(descriptor).is_err() {
                break descriptor;
            }
            link = Some((cell, descriptor, inherited));
        };
        let (table, level) = (place.table(), place.level());
        let mut goes_on = true;
        if let Some((cell, descriptor, inherited)) = link
            && (level == lowest || entry.is_valid())
        {
            let start = address.align_down(M::Geometry::entry_size(level - 1));
            let is_new = level == lowest || visited.replace((level, start)) != Some((level, start));
            goes_on = !is_new || visit(mmu, Found { cell, descriptor, table, start, at: address, inherited, range });
        }
        let size = M::Geometry::entry_size(level.min(lowest - 1));
        let last = VirtAddr(address.0 | (size - 1));
        if last >= range.last() {
            return None;
        }
        address = last + 1;
        if !goes_on {
            return Some(address);
        }
    }
}

/// Calls `each` for every leaf, by its first address and its bytes, that tables of `range` could be instead, or get as
/// contiguous groups: what one pass of a collapse would make.
pub(crate) fn for_each_larger<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    mut each: impl FnMut(VirtAddr, u64),
) {
    for_each_table(tables, range, range.start(), LAST_LEVEL, |mmu, found| {
        let (level, cells) = (found.table.level(), mmu.table(found.table));
        match larger(mmu, &found, 0) {
            Some(Larger::Block(_)) => each(found.start, M::Geometry::entry_size(level - 1)),
            Some(Larger::Groups) => {
                let (entries, size) = (M::Geometry::group_entries(level), M::Geometry::group_size(level));
                for first in found.touched().step_by(entries) {
                    if is_group::<M>(mmu, &cells[first..first + entries], level) {
                        each(found.start + ((first as u64) << M::Geometry::shift(level)), size);
                    }
                }
            }
            None => {}
        }
        true
    });
}
