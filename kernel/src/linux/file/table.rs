//! Descriptors: the numbers under which programs have open files.
//!
//! The first 64 are in the table itself, others in 64 nodes of 256 leaves of 64, each made when it is needed.
//!
//! **A fork copies nothing.** Parent and child have the same table until one of them changes a descriptor: what changes
//! a table that others have copies it first. Threads, and processes made with `CLONE_FILES`, have the same [`Files`].
//!
//! A lookup reads for a moment only: while no descriptor changes, threads write nothing that they share.

#![allow(unsafe_code, reason = "descriptors are found under a guard for a moment")]

use granule_arch::addr::PAGE_SIZE;
use granule_arch::speculation::{get_mut_nospec, get_nospec};

use super::locks::LockOwner;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::sched::{RwSem, enlarge_shortage, relax};
use crate::smp::this_cpu;
use crate::sync::rank;

/// Descriptors are below it (Linux's `fs.nr_open`).
pub const MOST: usize = 1 << 20;
/// Descriptors of a leaf.
pub const LEAF: usize = 64;
const NODE: usize = 256;
const ROOT: usize = MOST / LEAF / NODE;

/// An open file, as a table has it.
pub trait Filed: Clone {
    /// Whether both are one open file.
    fn is(&self, other: &Self) -> bool;

    /// Whether it holds so much that counts of memory look at it. For ever the same.
    fn has_memory(&self) -> bool;

    /// The subject of its locks by `fcntl`.
    fn subject(&self) -> u64;
}

/// The effect of an exec on a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExec {
    /// It stays open.
    Keep,
    /// It is closed.
    Close,
}

impl OnExec {
    /// As the bit for it in the flags of a call requests: [`Close`](Self::Close) where it is set.
    pub const fn requested(bit: u32) -> Self {
        if bit == 0 { Self::Keep } else { Self::Close }
    }
}

/// 64 descriptors.
#[derive(Clone)]
pub struct Leaf<F> {
    files: [Option<F>; LEAF],
    /// A bit for each descriptor that an exec closes.
    close_on_exec: u64,
    /// For each whose file [has memory](Filed::has_memory).
    with_memory: u64,
}

type Node<F> = [Option<PoolBox<Leaf<F>>>; NODE];

impl<F> Leaf<F> {
    const EMPTY: Self = Self { files: [const { None }; LEAF], close_on_exec: 0, with_memory: 0 };

    /// The first free place from `from` on.
    fn free(&self, from: usize) -> Option<usize> {
        (from..LEAF).find(|&place| self.files.get(place).is_some_and(Option::is_none))
    }

    /// Removes what an exec closes.
    fn exec(&mut self) {
        for (place, file) in self.files.iter_mut().enumerate() {
            if self.close_on_exec >> place & 1 != 0 {
                *file = None;
            }
        }
        self.with_memory &= !self.close_on_exec;
        self.close_on_exec = 0;
    }
}

/// An answer of [`Files::peek`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peek {
    /// A thread changes a descriptor: to be tried again.
    Busy,
    /// A leaf.
    Leaf {
        /// How many files it has.
        files: usize,
        /// Bytes of locks, which the first leaf counts for the table.
        locks: usize,
        /// The number of the next one.
        next: usize,
    },
    /// No leaf with this number or a larger one.
    End,
}

/// Where tables are.
pub struct Pools<F: 'static> {
    files: Pool<Inner<Files<F>>>,
    tables: Pool<Inner<Table<F>>>,
    leaves: Pool<Leaf<F>>,
    nodes: Pool<Node<F>>,
}

impl<F> Pools<F> {
    /// Empty ones.
    pub const fn new(frames: &'static FrameAllocator) -> Self {
        Self {
            files: Pool::new(frames),
            tables: Pool::new(frames),
            leaves: Pool::new(frames),
            nodes: Pool::new(frames),
        }
    }

    /// Tables and their parts.
    pub fn stats(&self) -> PoolStats {
        let all = [self.files.stats(), self.tables.stats(), self.leaves.stats(), self.nodes.stats()];
        let objects = all.iter().map(|pool| pool.objects).sum();
        PoolStats { objects, frames: all.iter().map(|pool| pool.frames).sum() }
    }
}

/// Open files by their descriptors.
pub struct Table<F: 'static> {
    low: Leaf<F>,
    /// The first leaf of the first node is not used.
    high: [Option<PoolBox<Node<F>>>; ROOT],
    /// No descriptor below it is free.
    next: usize,
}

impl<F: Filed> Table<F> {
    /// Without a descriptor.
    pub const EMPTY: Self = Self { low: Leaf::EMPTY, high: [const { None }; ROOT], next: 0 };

    fn leaf(&self, number: usize) -> Option<&Leaf<F>> {
        if number == 0 {
            return Some(&self.low);
        }
        get_nospec(&self.high, number / NODE)?.as_ref()?[number % NODE].as_deref()
    }

    fn leaf_mut(&mut self, number: usize) -> Option<&mut Leaf<F>> {
        if number == 0 {
            return Some(&mut self.low);
        }
        get_mut_nospec(&mut self.high, number / NODE)?.as_mut()?[number % NODE].as_deref_mut()
    }

    /// The leaf with this number, which is made if there is none.
    #[inline(never)]
    fn ensure_leaf(&mut self, pools: &'static Pools<F>, number: usize) -> Result<&mut Leaf<F>, OutOfMemory> {
        if number == 0 {
            return Ok(&mut self.low);
        }
        let node = match get_mut_nospec(&mut self.high, number / NODE).ok_or(OutOfMemory)? {
            Some(node) => node,
            none => none.insert(pools.nodes.try_new_with(|| [const { None }; NODE])?),
        };
        match &mut node[number % NODE] {
            Some(leaf) => Ok(leaf),
            none => Ok(none.insert(pools.leaves.try_new_with(|| Leaf::EMPTY)?)),
        }
    }

    /// The file of a descriptor, and the effect of an exec on it.
    fn get(&self, descriptor: usize) -> Option<(&F, OnExec)> {
        let (leaf, place) = (self.leaf(descriptor / LEAF)?, descriptor % LEAF);
        let on_exec = if leaf.close_on_exec >> place & 1 != 0 { OnExec::Close } else { OnExec::Keep };
        leaf.files[place].as_ref().map(|file| (file, on_exec))
    }

    /// The lowest free descriptor from `from` on and below `end`.
    #[inline(never)]
    fn lowest_free(&self, from: usize, end: usize) -> Option<usize> {
        let mut from = from.max(self.next);
        while from < end {
            let free = self.leaf(from / LEAF).map_or(Some(from % LEAF), |leaf| leaf.free(from % LEAF));
            if let Some(free) = free.map(|place| from / LEAF * LEAF + place) {
                return (free < end).then_some(free);
            }
            from = (from / LEAF + 1) * LEAF;
            relax();
        }
        None
    }

    /// Gives a descriptor a file, in place of the one that it may have, which it returns.
    #[inline(never)]
    fn set(
        &mut self,
        pools: &'static Pools<F>,
        descriptor: usize,
        file: F,
        on_exec: OnExec,
    ) -> Result<Option<F>, OutOfMemory> {
        let leaf = self.ensure_leaf(pools, descriptor / LEAF)?;
        let place = descriptor % LEAF;
        let with = |bits: u64, bit: bool| bits & !(1 << place) | u64::from(bit) << place;
        leaf.close_on_exec = with(leaf.close_on_exec, on_exec == OnExec::Close);
        leaf.with_memory = with(leaf.with_memory, file.has_memory());
        let before = leaf.files[place].replace(file);
        if self.next == descriptor {
            self.next += 1;
        }
        Ok(before)
    }

    fn take(&mut self, descriptor: usize) -> Option<F> {
        let (leaf, place) = (self.leaf_mut(descriptor / LEAF)?, descriptor % LEAF);
        leaf.close_on_exec &= !(1 << place);
        leaf.with_memory &= !(1 << place);
        let file = leaf.files[place].take()?;
        self.next = self.next.min(descriptor);
        Some(file)
    }

    /// Another table with the same files. Made in its place: it is a KiB, of a stack of 16.
    #[inline(never)]
    fn copy(&self, pools: &'static Pools<F>) -> Result<Counted<Self>, OutOfMemory> {
        let mut copied = Counted::try_new_with(&pools.tables, || Self::EMPTY)?;
        let copy = Counted::get_mut(&mut copied).ok_or(OutOfMemory)?;
        copy.low.clone_from(&self.low);
        copy.next = self.next;
        let mut bytes = 0;
        for (first, node) in self.nodes() {
            for (number, leaf) in (first..).zip(node) {
                if let Some(leaf) = leaf {
                    let new = copy.ensure_leaf(pools, number);
                    // The copy is dropped. With one more frame than there was it would fail again.
                    new.inspect_err(|_| enlarge_shortage(this_cpu(), bytes / PAGE_SIZE))?.clone_from(leaf);
                    bytes += size_of::<Leaf<F>>();
                }
                relax();
            }
        }
        Ok(copied)
    }

    /// The nodes that there are, with the number of the first leaf of each.
    fn nodes(&self) -> impl Iterator<Item = (usize, &Node<F>)> {
        (0..).step_by(NODE).zip(&self.high).filter_map(|(first, node)| Some((first, &**node.as_ref()?)))
    }

    /// The leaf with this number, or the next one that there is, with its number. Looks at no more than all nodes and the
    /// leaves of one.
    fn leaf_from(&self, number: usize) -> Option<(usize, &Leaf<F>)> {
        if number == 0 {
            return Some((0, &self.low));
        }
        let behind = self.nodes().skip_while(|(first, _)| first + NODE <= number);
        let mut leaves = behind.flat_map(|(first, node)| (first..).zip(node).skip(number.saturating_sub(first)));
        leaves.find_map(|(number, leaf)| Some((number, &**leaf.as_ref()?)))
    }

    fn has_close_on_exec(&self) -> bool {
        let has_one = |leaf: &Leaf<F>| {
            relax();
            leaf.close_on_exec != 0
        };
        self.low.close_on_exec != 0 || self.nodes().any(|(_, node)| node.iter().flatten().any(|leaf| has_one(leaf)))
    }

    /// Takes away the locks of `owner` on what an exec closes.
    fn release_at_exec(&self, owner: &LockOwner) {
        let high = self.nodes().flat_map(|(_, node)| node.iter().flatten().map(|leaf| &**leaf));
        for leaf in core::iter::once(&self.low).chain(high) {
            let closed = |&(place, _): &(usize, _)| leaf.close_on_exec >> place & 1 != 0;
            for (_, file) in leaf.files.iter().enumerate().filter(closed) {
                file.iter().for_each(|file| owner.release(file.subject()));
            }
            relax();
        }
    }

    /// Closes what an exec closes.
    fn exec(&mut self) {
        self.low.exec();
        for leaf in self.high.iter_mut().flatten().flat_map(|node| node.iter_mut().flatten()) {
            leaf.exec();
            relax();
        }
        self.next = 0;
    }
}

impl<F> Drop for Table<F> {
    fn drop(&mut self) {
        for leaf in self.high.iter_mut().flatten().flat_map(|node| node.iter_mut()) {
            *leaf = None;
            relax();
        }
    }
}

/// The descriptors of tasks that share them.
pub struct Files<F: 'static> {
    pools: &'static Pools<F>,
    held: RwSem<Held<F>>,
}

enum Held<F: 'static> {
    /// The owner of locks, which end before their files may; and a table, which the [`Files`] of others may have too, each
    /// until it changes it.
    Table(LockOwner, Counted<Table<F>>),
    /// The files that are shared with another process.
    Shared(Counted<Files<F>>),
    /// Nothing any more: its last task is gone.
    Gone,
}

/// The files of an exec's program: see [`Files::prepare_exec`].
pub struct ExecFiles<F: 'static> {
    /// The table at that time. The count keeps it as it is: a change would copy it.
    before: Counted<Table<F>>,
    after: Counted<Table<F>>,
}

impl<F: Filed> Files<F> {
    /// With `file` as the standard input, output and error output.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(pools: &'static Pools<F>, file: &F) -> Result<Self, OutOfMemory> {
        let mut table = Table::EMPTY;
        for descriptor in 0..3 {
            table.set(pools, descriptor, file.clone(), OnExec::Keep)?;
        }
        Ok(Self::of(pools, Held::Table(LockOwner::new(), Counted::try_new(&pools.tables, table)?)))
    }

    const fn of(pools: &'static Pools<F>, held: Held<F>) -> Self {
        Self { pools, held: RwSem::new(rank::OPEN_FILES, held) }
    }

    /// The file of a descriptor.
    pub fn get(&self, descriptor: u32) -> Option<F> {
        self.get_with_on_exec(descriptor).map(|(file, _)| file)
    }

    /// As [`Self::get`], and the effect of an exec on it.
    #[inline(always)]
    pub fn get_with_on_exec(&self, descriptor: u32) -> Option<(F, OnExec)> {
        let found = |table: &Table<F>| table.get(descriptor as usize).map(|(file, on_exec)| (file.clone(), on_exec));
        {
            // SAFETY: it is the CPU that this runs on, and finding a file and counting it sleeps for nothing and takes no
            // other lock.
            let held = unsafe { self.held.read_briefly(this_cpu()) };
            match &*held {
                Held::Table(_, table) => return found(table),
                Held::Gone => return None,
                Held::Shared(_) => {}
            }
        }
        self.look(|_, table| found(table))
    }

    /// Has `look` look at the files [with memory](Filed::has_memory) of the leaf with this number, or of the next one that
    /// there is. Sleeps never: under spinning locks before the rank `WAIT` as well, if `look` does.
    pub fn peek(&self, number: usize, look: &mut impl FnMut(&F)) -> Peek {
        match self.held.try_read().as_deref() {
            None => Peek::Busy,
            Some(Held::Table(owner, table)) => match table.leaf_from(number) {
                Some((found, leaf)) => {
                    let mut left = leaf.with_memory;
                    while left != 0 {
                        leaf.files[left.trailing_zeros() as usize].iter().for_each(&mut *look);
                        left &= left - 1;
                    }
                    let locks = if number == 0 { owner.footprint() } else { 0 };
                    Peek::Leaf { files: leaf.files.iter().flatten().count(), locks, next: found + 1 }
                }
                None => Peek::End,
            },
            Some(Held::Shared(files)) => files.peek(number, look),
            Some(Held::Gone) => Peek::End,
        }
    }

    /// Whether a descriptor below `end` is free, as [`Self::add`] takes one.
    pub fn has_room(&self, end: u64) -> bool {
        self.look(|_, table| table.lowest_free(0, bounded(end)).is_some())
    }

    /// Has `lock` set locks of this table on a file, while `descriptor` is one of it and is not closed; `None` where it is
    /// another's, or none.
    pub fn lock<R>(&self, descriptor: u32, file: &F, lock: impl FnOnce(&LockOwner) -> R) -> Option<R> {
        self.look(|owner, table| {
            let is_open = table.get(descriptor as usize).is_some_and(|(found, _)| found.is(file));
            is_open.then(|| lock(owner))
        })
    }

    /// The result of `look` at the table and its owner of locks; the default where there is none any more.
    fn look<R: Default>(&self, look: impl FnOnce(&LockOwner, &Counted<Table<F>>) -> R) -> R {
        match &*self.held.read() {
            Held::Table(owner, table) => look(owner, table),
            Held::Shared(files) => files.look(look),
            Held::Gone => R::default(),
        }
    }

    /// Gives `file` the lowest free descriptor from `from` on and below `end`.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`.
    pub fn add(&self, file: F, from: u32, end: u64, on_exec: OnExec) -> Result<u32, Errno> {
        self.change(|_, table, pools| {
            let free = table.lowest_free(from as usize, bounded(end)).ok_or(Errno::EMFILE)?;
            table.set(pools, free, file, on_exec)?;
            Ok(free as u32)
        })
    }

    /// Gives the descriptor `new`, which is below [`MOST`], the file of `old`, in place of its own.
    ///
    /// # Errors
    /// `EBADF`: there is no `old`. `ENOMEM`.
    pub fn duplicate(&self, old: u32, new: u32, on_exec: OnExec) -> Result<(), Errno> {
        let before = self.change(|owner, table, pools| {
            let (file, _) = table.get(old as usize).ok_or(Errno::EBADF)?;
            let file = file.clone();
            let before = table.set(pools, new as usize, file, on_exec)?;
            before.iter().for_each(|before| owner.release(before.subject()));
            Ok(before)
        });
        before.map(drop)
    }

    /// Removes a descriptor; returns its file.
    ///
    /// # Errors
    /// `EBADF`, `ENOMEM`.
    pub fn close(&self, descriptor: u32) -> Result<F, Errno> {
        self.look(|_, table| table.get(descriptor as usize).map(drop)).ok_or(Errno::EBADF)?;
        self.change(|owner, table, _| {
            let file = table.take(descriptor as usize).ok_or(Errno::EBADF)?;
            owner.release(file.subject());
            Ok(file)
        })
    }

    /// Takes back a descriptor that was given to `file` for a call that has failed since, if another thread has not closed it
    /// or had it for another file by now.
    pub fn take_back(&self, descriptor: u32, file: &F) {
        let taken = self.change(|owner, table, _| {
            let is_same = table.get(descriptor as usize).is_some_and(|(found, _)| found.is(file));
            let taken = is_same.then(|| table.take(descriptor as usize)).flatten().ok_or(Errno::EBADF)?;
            owner.release(taken.subject());
            Ok(taken)
        });
        drop(taken);
    }

    /// Sets the effect of an exec on a descriptor.
    ///
    /// # Errors
    /// `EBADF`, `ENOMEM`.
    pub fn set_on_exec(&self, descriptor: u32, on_exec: OnExec) -> Result<(), Errno> {
        let before = self.look(|_, table| table.get(descriptor as usize).map(|(_, on_exec)| on_exec));
        if before.ok_or(Errno::EBADF)? == on_exec {
            return Ok(());
        }
        self.change(|_, table, _| {
            let leaf = table.leaf_mut(descriptor as usize / LEAF).ok_or(Errno::EBADF)?;
            let bit = 1 << (descriptor as usize % LEAF);
            match on_exec {
                OnExec::Close => leaf.close_on_exec |= bit,
                OnExec::Keep => leaf.close_on_exec &= !bit,
            }
            Ok(())
        })
    }

    /// Has `change` change a table that is not another's.
    fn change<R>(
        &self,
        change: impl FnOnce(&LockOwner, &mut Table<F>, &'static Pools<F>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        loop {
            let shared = self.shared();
            let files = shared.as_deref().unwrap_or(self);
            let mut held = files.held.write();
            // Not where it became shared concurrently.
            if !matches!(*held, Held::Shared(_)) {
                let (owner, table) = own(files.pools, &mut held)?;
                return change(owner, table, files.pools);
            }
        }
    }

    /// The files that are shared with another process, if they are.
    #[inline(never)]
    fn shared(&self) -> Option<Counted<Self>> {
        if let Held::Shared(files) = &*self.held.read() { Some(files.clone()) } else { None }
    }

    /// Others that are now what these are, and change apart from them.
    pub fn fork(&self) -> Self {
        Self::of(self.pools, self.table().map_or(Held::Gone, |table| Held::Table(LockOwner::new(), table)))
    }

    /// Becomes the same as `others`: what is changed in one of them is changed in both.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is changed.
    pub fn share(&self, others: &Self) -> Result<(), OutOfMemory> {
        self.hold(others.shared_by_all()?);
        Ok(())
    }

    /// Drops its old contents after the lock is released.
    #[inline(never)]
    fn hold(&self, new: Held<F>) {
        let before = core::mem::replace(&mut *self.held.write(), new);
        drop(before);
    }

    fn shared_by_all(&self) -> Result<Held<F>, OutOfMemory> {
        let mut held = self.held.write();
        if let Held::Table(owner, table) = &*held {
            let files = Self::of(self.pools, Held::Table(LockOwner::new(), table.clone())).counted()?;
            files.look(|new, _| owner.move_to(new));
            *held = Held::Shared(files);
        }
        Ok(if let Held::Shared(files) = &*held { Held::Shared(files.clone()) } else { Held::Gone })
    }

    /// Moves it into the pools, for several owners.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn counted(self) -> Result<Counted<Self>, OutOfMemory> {
        Counted::try_new(&self.pools.files, self)
    }

    #[inline(never)]
    fn table(&self) -> Option<Counted<Table<F>>> {
        self.look(|_, table| Some(table.clone()))
    }

    /// Prepares what can fail of an exec: the files that its program will have.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn prepare_exec(&self) -> Result<ExecFiles<F>, OutOfMemory> {
        let before = self.table().ok_or(OutOfMemory)?;
        let mut after = before.clone();
        if before.has_close_on_exec() {
            after = before.copy(self.pools)?;
            Counted::get_mut(&mut after).ok_or(OutOfMemory)?.exec();
        }
        Ok(ExecFiles { before, after })
    }

    /// Whether these are still what `prepared` was made of.
    pub fn is_as_prepared(&self, prepared: &ExecFiles<F>) -> bool {
        self.look(|_, table| table.is(&prepared.before))
    }

    /// Becomes what was prepared, shared with no other. Locks stay on files that stay open, unless they were of a table that
    /// was shared.
    pub fn exec(&self, ExecFiles { before, after }: ExecFiles<F>) {
        if let Held::Table(owner, table) = &mut *self.held.write() {
            before.release_at_exec(owner);
            // Not the last owner of that table: `before` is one.
            *table = after;
            return;
        }
        self.hold(Held::Table(LockOwner::new(), after));
    }

    /// Closes all, for the last task.
    pub fn clear(&self) {
        self.hold(Held::Gone);
    }
}

/// A limit of descriptors as an index.
fn bounded(end: u64) -> usize {
    end.min(MOST as u64) as usize
}

/// The table, copied if others have it too.
#[inline(never)]
fn own<'h, F: Filed>(
    pools: &'static Pools<F>,
    held: &'h mut Held<F>,
) -> Result<(&'h LockOwner, &'h mut Table<F>), Errno> {
    let Held::Table(owner, table) = held else { return Err(Errno::EBADF) };
    if Counted::get_mut(table).is_none() {
        *table = table.copy(pools)?;
    }
    Ok((owner, Counted::get_mut(table).ok_or(Errno::ENOMEM)?))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the host has memory")]
mod tests;
