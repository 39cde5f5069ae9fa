//! The tree of files: nodes, and the names that directories have for them (Linux: `mm/shmem.c`, `fs/libfs.c`).
//!
//! A node is a directory, a file, a symbolic link or a device. All names of all directories are in two orders, under one
//! lock: by directory and name, for lookups, and by directory and place, for readers of a directory. A place is never
//! used again, so a reader meets each name that stays once, though others are added and removed concurrently.
//!
//! A name holds its node, and a directory holds the one above it, also when it was removed: `..` leads there still. A
//! node ends with its last name and its last user; its contents end with it.
//!
//! Steps that can fail come before the lock; names and nodes are dropped after it.

#![allow(unsafe_code, reason = "intrusive nodes")]

use alloc::vec::Vec;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::file::{S_IFDIR, S_IFMT};
use granule_arch::addr::PAGE_SIZE;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, UnsafeRef};

use super::device::{DeviceNumber, KernelDevice};
use crate::bytes;
use crate::linux::errno::Errno;
use crate::mm::counted::{Counted, Inner};
use crate::mm::frame::FrameAllocator;
use crate::mm::frame_limit::{FrameLimit, FrameShare};
use crate::mm::paged::PagedBytes;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::sched::{RwSem, relax};
use crate::sync::{IrqLock, rank};

/// Bytes of the longest name (`NAME_MAX`).
pub const NAME: usize = 255;
/// A node that is made in a directory gets its group.
const S_ISGID: u32 = 0o2000;
/// Bytes that a directory counts for each of its names, `.` and `..` too (`BOGO_DIRENT_SIZE`).
const NAME_SIZE: u64 = 20;

/// A node and its owners: names, open files, working directories.
pub type NodeRef<C> = Counted<Node<C>>;

/// Where nodes and names are kept.
pub struct Pools<C: 'static> {
    frames: &'static FrameAllocator,
    nodes: Pool<Inner<Node<C>>>,
    names: Pool<Name<C>>,
}

impl<C> Pools<C> {
    /// Empty.
    pub const fn new(frames: &'static FrameAllocator) -> Self {
        Self { frames, nodes: Pool::new(frames), names: Pool::new(frames) }
    }

    /// Nodes, and names.
    pub fn stats(&self) -> [PoolStats; 2] {
        [self.nodes.stats(), self.names.stats()]
    }
}

/// A file, a directory, or another thing that has names.
pub struct Node<C: 'static> {
    /// No other of its device has it.
    pub number: u64,
    /// The device that it is on.
    pub device: u64,
    /// The kind, with the contents.
    pub kind: NodeKind<C>,
    state: IrqLock<NodeState<C>, { rank::NODE }>,
}

/// The kind of a node.
pub enum NodeKind<C> {
    /// A directory.
    Directory,
    /// A regular file.
    File(C),
    /// A symbolic link.
    Link(LinkTarget),
    /// The console.
    Console,
    /// A device whose registers are mapped.
    Device(DeviceNumber),
    /// A device that is the kernel's alone.
    Kernel(KernelDevice),
    /// Where `/proc` begins.
    Proc,
    /// A device, a pipe, ... of an archive, of which there is none here.
    Other,
}

/// The target of a symbolic link: a short one is in the node, as most are.
pub enum LinkTarget {
    /// At most [`SHORT`] bytes.
    Short(heapless::Vec<u8, SHORT>),
    /// In a frame of its own.
    Long(PagedBytes, FrameShare),
}

/// Bytes of a target in its node.
const SHORT: usize = 60;

impl Deref for LinkTarget {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes, _) => bytes,
        }
    }
}

/// A moment: seconds since 1970, and nanoseconds after them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment {
    /// Before 1970 negative.
    pub seconds: i64,
    /// Below 10⁹.
    pub nanoseconds: u32,
}

impl Moment {
    /// A number of nanoseconds after the start of 1970.
    pub const fn at(nanoseconds: u64) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self { seconds: (nanoseconds / SECOND) as i64, nanoseconds: (nanoseconds % SECOND) as u32 }
    }
}

/// The attributes that a stat shows of a node, beside its contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// The kind of file, and its permissions.
    pub mode: u32,
    /// The owner.
    pub user: u32,
    /// The owner's group.
    pub group: u32,
    /// The last access.
    pub accessed: Moment,
    /// The last change of the contents.
    pub modified: Moment,
    /// The last change of anything.
    pub changed: Moment,
}

impl Attributes {
    /// Root's, of one moment.
    pub const fn new(mode: u32, now: Moment) -> Self {
        Self { mode, user: 0, group: 0, accessed: now, modified: now, changed: now }
    }
}

struct NodeState<C: 'static> {
    attributes: Attributes,
    /// How many names; of a directory 2 and its directories, or 0 when it was removed.
    links: u32,
    /// Without a name it may get one: it is new, or was made for that.
    may_be_named: bool,
    /// The names in a directory.
    names: u64,
    /// The directory above a directory, and its place there.
    parent: Option<NodeRef<C>>,
    place: u64,
}

impl<C> Node<C> {
    /// Whether it is a directory.
    pub const fn is_directory(&self) -> bool {
        matches!(self.kind, NodeKind::Directory | NodeKind::Proc)
    }

    /// The attributes now, and the number of links.
    pub fn attributes(&self) -> (Attributes, u32) {
        let state = self.state.lock();
        (state.attributes, state.links)
    }

    /// Those of what is made in this directory: where it has `S_ISGID`, of its group, and directories have that too.
    pub fn attributes_in(&self, mode: u32, now: Moment) -> Attributes {
        let (own, _) = self.attributes();
        if own.mode & S_ISGID == 0 {
            return Attributes::new(mode, now);
        }
        let inherited = if mode & S_IFMT == S_IFDIR { S_ISGID } else { 0 };
        Attributes { group: own.group, ..Attributes::new(mode | inherited, now) }
    }

    /// Has `change` change the attributes.
    pub fn change(&self, change: impl FnOnce(&mut Attributes)) {
        change(&mut self.state.lock().attributes);
    }

    /// Its contents were changed now.
    pub fn note_change(&self, now: Moment) {
        self.change(|attributes| (attributes.modified, attributes.changed) = (now, now));
    }

    /// Without a name it never gets one.
    pub fn forbid_names(&self) {
        self.state.lock().may_be_named = false;
    }

    /// Bytes of a directory or a link.
    pub fn size(&self) -> u64 {
        match &self.kind {
            NodeKind::Directory => (self.state.lock().names + 2) * NAME_SIZE,
            NodeKind::Link(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Whether it is a directory that was removed.
    pub fn is_removed(&self) -> bool {
        self.state.lock().links == 0
    }

    fn parent(&self) -> Option<NodeRef<C>> {
        self.state.lock().parent.clone()
    }

    fn add_links(&self, more: i32) {
        let mut state = self.state.lock();
        state.links = state.links.wrapping_add_signed(more);
    }
}

impl<C> Drop for Node<C> {
    fn drop(&mut self) {
        // Not by recursion: directories that were removed may be a long chain.
        let mut next = self.state.lock().parent.take();
        while let Some(mut parent) = next {
            relax();
            next = Counted::get_mut(&mut parent).and_then(|parent| parent.state.lock().parent.take());
        }
    }
}

/// A name of a directory.
struct Name<C: 'static> {
    by_name: RBTreeAtomicLink,
    by_place: RBTreeAtomicLink,
    /// The directory's number.
    directory: u64,
    place: u64,
    bytes: heapless::Vec<u8, NAME>,
    node: NodeRef<C>,
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Name, RBTreeAtomicLink, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) ByName<C> = UnsafeRef<Name<C>>: Name<C> { by_name => RBTreeAtomicLink } where C: 'static);
    intrusive_adapter!(pub(super) ByPlace<C> = UnsafeRef<Name<C>>: Name<C> { by_place => RBTreeAtomicLink } where C: 'static);
}
use adapters::{ByName, ByPlace};

impl<'a, C> KeyAdapter<'a> for ByName<C> {
    type Key = (u64, &'a [u8]);
    fn get_key(&self, name: &'a Name<C>) -> Self::Key {
        (name.directory, &name.bytes)
    }
}

impl<'a, C> KeyAdapter<'a> for ByPlace<C> {
    type Key = (u64, u64);
    fn get_key(&self, name: &'a Name<C>) -> Self::Key {
        (name.directory, name.place)
    }
}

/// All names.
struct Names<C: 'static> {
    by_name: RBTree<ByName<C>>,
    by_place: RBTree<ByPlace<C>>,
    /// The place of the next name; the first two are those of `.` and `..`.
    next_place: u64,
}

// SAFETY: names are reached through the lock only, on whichever CPU holds it.
unsafe impl<C: Send + Sync> Send for Names<C> {}
// SAFETY: as above.
unsafe impl<C: Send + Sync> Sync for Names<C> {}

impl<C> Names<C> {
    fn find<'n>(&'n self, directory: &Node<C>, name: &'n [u8]) -> Option<&'n Name<C>> {
        let found = self.by_name.lower_bound(Bound::Included(&(directory.number, name))).get()?;
        (found.directory == directory.number && found.bytes == name).then_some(found)
    }

    /// The first name at a place of a directory, or after it.
    fn at(&self, directory: &Node<C>, place: u64) -> Option<&Name<C>> {
        let found = self.by_place.lower_bound(Bound::Included(&(directory.number, place))).get()?;
        (found.directory == directory.number).then_some(found)
    }

    /// Adds a name, in `directory`, of its node, whose links have it already.
    fn insert(&mut self, mut name: PoolBox<Name<C>>, directory: &NodeRef<C>, now: Moment) {
        name.place = self.next_place;
        self.next_place += 1;
        {
            let mut state = name.node.state.lock();
            if name.node.is_directory() {
                (state.parent, state.place) = (Some(directory.clone()), name.place);
            }
            state.attributes.changed = now;
        }
        count(directory, 1, &name.node, now);
        let name = name.into_ref();
        self.by_place.insert(name.clone());
        self.by_name.insert(name);
    }

    /// Takes a name of `directory` that there is. The links of its node still have it: it gets another, or loses one.
    fn take(&mut self, directory: &Node<C>, name: &[u8], now: Moment) -> Option<PoolBox<Name<C>>> {
        let found: *const Name<C> = self.find(directory, name)?;
        // SAFETY: it was just found in the tree.
        let taken = unsafe { self.by_name.cursor_mut_from_ptr(found) }.remove()?;
        // SAFETY: what is in one tree is in the other.
        let _ = unsafe { self.by_place.cursor_mut_from_ptr(found) }.remove();
        // SAFETY: no tree has it any more, and the lock is held for writing.
        let taken = unsafe { PoolBox::from_ref(taken) };
        count(directory, -1, &taken.node, now);
        {
            let mut state = taken.node.state.lock();
            state.may_be_named = false;
            state.attributes.changed = now;
        }
        Some(taken)
    }

    /// Whether `node` is `directory`, or above it.
    fn is_above(node: &NodeRef<C>, directory: &NodeRef<C>) -> bool {
        let mut here = Some(directory.clone());
        while let Some(place) = here {
            if place.is(node) {
                return true;
            }
            relax();
            here = place.parent();
        }
        false
    }
}

/// A directory has one name more or less, of `node`.
fn count<C>(directory: &Node<C>, more: i64, node: &Node<C>, now: Moment) {
    let mut state = directory.state.lock();
    state.names = state.names.wrapping_add_signed(more);
    if node.is_directory() {
        state.links = state.links.wrapping_add_signed(more as i32);
    }
    (state.attributes.modified, state.attributes.changed) = (now, now);
}

/// The kind of node that a removal takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Anything but a directory.
    File,
    /// An empty directory.
    Directory,
}

/// The way of a rename where the new name is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renaming {
    /// The node that had it loses it.
    Replace,
    /// It fails.
    NoReplace,
    /// The two names change their nodes.
    Exchange,
}

/// A name in a directory, and whether a slash follows it: then it is a directory's.
pub struct NameIn<'a, C: 'static> {
    /// The directory.
    pub directory: &'a NodeRef<C>,
    /// The name.
    pub name: &'a [u8],
    /// Whether a slash follows it.
    pub slash: bool,
}

impl<C> Clone for NameIn<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for NameIn<'_, C> {}

/// A name that a reader of a directory meets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Where the reader goes on: after it.
    pub place: u64,
    /// The node's number.
    pub number: u64,
    /// The node's kind: the bits of [`S_IFMT`].
    pub kind: u32,
    /// The name.
    pub name: heapless::Vec<u8, NAME>,
}

/// A tree.
pub struct Tree<C: 'static> {
    pools: &'static Pools<C>,
    names: RwSem<Names<C>>,
    root: NodeRef<C>,
    clock: fn() -> Moment,
    /// The most nodes.
    most: usize,
    /// Of the frames of long targets.
    limit: &'static FrameLimit,
    next_number: AtomicU64,
}

/// The device of the tree's nodes.
pub const DEVICE: u64 = 2;
/// The places of `.` and `..` are before all others.
const FIRST_PLACE: u64 = 2;

impl<C> Tree<C> {
    /// A root without names, for up to `most` nodes, whose long targets of links count in `limit`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(
        pools: &'static Pools<C>,
        most: usize,
        limit: &'static FrameLimit,
        clock: fn() -> Moment,
    ) -> Result<Self, Errno> {
        let attributes = Attributes::new(S_IFDIR | 0o755, clock());
        let root = node(pools, (DEVICE, 1), NodeKind::Directory, attributes)?;
        root.add_links(2);
        let names =
            Names { by_name: RBTree::new(ByName::NEW), by_place: RBTree::new(ByPlace::NEW), next_place: FIRST_PLACE };
        let names = RwSem::new(rank::NAMES, names);
        Ok(Self { pools, names, root, clock, most, limit, next_number: AtomicU64::new(2) })
    }

    /// Its root.
    pub const fn root(&self) -> &NodeRef<C> {
        &self.root
    }

    /// Nodes that there are, and that there may be. As on Linux, each further name of a file counts as a node.
    pub fn nodes(&self) -> (usize, usize) {
        let [nodes, names] = self.pools.stats();
        // The root has no name.
        (nodes.objects.max(names.objects + 1), self.most)
    }

    /// Has `visit` see the node of each name: a node as often as it has names.
    pub fn for_each_name(&self, visit: impl FnMut(&NodeRef<C>)) {
        self.names.read().by_place.iter().map(|name| &name.node).for_each(visit);
    }

    /// The time by its clock.
    pub fn now(&self) -> Moment {
        (self.clock)()
    }

    /// A node without a name.
    ///
    /// # Errors
    /// `ENOSPC`: there are as many as there may be. `ENOMEM`.
    pub fn node(&self, kind: NodeKind<C>, attributes: Attributes) -> Result<NodeRef<C>, Errno> {
        let (nodes, most) = self.nodes();
        if nodes >= most {
            return Err(Errno::ENOSPC);
        }
        // Relaxed: the numbers differ, and order nothing.
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        node(self.pools, (DEVICE, number), kind, attributes)
    }

    /// A symbolic link without a name.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; those of [`Self::node`].
    pub fn symbolic_link(&self, target: &[u8], attributes: Attributes) -> Result<NodeRef<C>, Errno> {
        let target = match heapless::Vec::from_slice(target) {
            Ok(short) => LinkTarget::Short(short),
            Err(_) if target.len() >= PAGE_SIZE => return Err(Errno::ENAMETOOLONG),
            Err(_) => {
                let share = FrameShare::new(Some(self.limit));
                if !share.take(1) {
                    return Err(Errno::ENOSPC);
                }
                let mut bytes = PagedBytes::zeros(self.pools.frames, target.len())?;
                bytes.iter_mut().zip(target).for_each(|(place, byte)| *place = *byte);
                LinkTarget::Long(bytes, share)
            }
        };
        self.node(NodeKind::Link(target), attributes)
    }

    /// The node with a name in a directory.
    pub fn find(&self, directory: &Node<C>, name: &[u8]) -> Option<NodeRef<C>> {
        self.names.read().find(directory, name).map(|found| found.node.clone())
    }

    /// The directory above one: of the root itself.
    pub fn parent(&self, directory: &Node<C>) -> NodeRef<C> {
        directory.parent().unwrap_or_else(|| self.root.clone())
    }

    /// Gives a node a name.
    ///
    /// # Errors
    /// `EEXIST`; `ENOENT`: the directory was removed, or the node's last name was. `ENOSPC`, `ENOMEM`.
    pub fn link(&self, directory: &NodeRef<C>, name: &[u8], node: &NodeRef<C>) -> Result<(), Errno> {
        let name = self.name(name, directory, node)?;
        let (nodes, most) = self.nodes();
        let mut names = self.names.write();
        if names.find(directory, &name.bytes).is_some() {
            return Err(Errno::EEXIST);
        }
        let has_gone = |node: &Node<C>| {
            let state = node.state.lock();
            state.links == 0 && !state.may_be_named
        };
        if directory.is_removed() || has_gone(node) {
            return Err(Errno::ENOENT);
        }
        if nodes > most {
            return Err(Errno::ENOSPC);
        }
        node.add_links(if node.is_directory() { 2 } else { 1 });
        names.insert(name, directory, self.now());
        Ok(())
    }

    /// Removes a name.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EBUSY`: something else begins there.
    pub fn unlink(&self, NameIn { directory, name, slash }: NameIn<'_, C>, removal: Removal) -> Result<(), Errno> {
        let taken = {
            let mut names = self.names.write();
            let node = &names.find(directory, name).ok_or(Errno::ENOENT)?.node;
            match removal {
                Removal::File if node.is_directory() => return Err(Errno::EISDIR),
                Removal::File if slash => return Err(Errno::ENOTDIR),
                Removal::Directory if !node.is_directory() => return Err(Errno::ENOTDIR),
                _ => check_removable(&names, node)?,
            }
            let taken = names.take(directory, name, self.now());
            if let Some(taken) = &taken {
                lose_link(&taken.node);
            }
            taken
        };
        drop(taken);
        Ok(())
    }

    /// Gives a node another name in place of one, in the order of checks of Linux's `do_renameat2` and `vfs_rename`.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTDIR`, `EISDIR`, `ENOTEMPTY`; `EINVAL`: a directory would be below itself; `EBUSY`:
    /// something else begins there; `ENOMEM`. Nothing is changed.
    pub fn rename(&self, from: NameIn<'_, C>, to: NameIn<'_, C>, renaming: Renaming) -> Result<(), Errno> {
        let mut fresh = self.name(to.name, to.directory, &self.root)?;
        let mut names = self.names.write();
        let old = names.find(from.directory, from.name).ok_or(Errno::ENOENT)?.node.clone();
        let new = names.find(to.directory, to.name).map(|found| found.node.clone());
        check_rename((from, &old), (to, new.as_ref()), renaming)?;
        if new.as_ref().is_some_and(|new| new.is(&old)) {
            return Ok(());
        }
        match &new {
            Some(_) if renaming == Renaming::Exchange => {}
            Some(new) => {
                match (old.is_directory(), new.is_directory()) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    _ => {}
                }
                check_removable(&names, new)?;
            }
            None if to.directory.is_removed() => return Err(Errno::ENOENT),
            None => {}
        }
        if [Some(&old), new.as_ref()].into_iter().flatten().any(|node| matches!(node.kind, NodeKind::Proc)) {
            return Err(Errno::EBUSY);
        }
        let now = self.now();
        let mut taken = names.take(from.directory, from.name, now);
        let replaced = names.take(to.directory, to.name, now);
        fresh.node = old;
        names.insert(fresh, to.directory, now);
        match (renaming, &replaced, taken.take()) {
            (Renaming::Exchange, Some(replaced), Some(mut name)) => {
                name.node = replaced.node.clone();
                names.insert(name, from.directory, now);
            }
            (_, _, name) => {
                taken = name;
                replaced.iter().for_each(|replaced| lose_link(&replaced.node));
            }
        }
        drop(names);
        drop((taken, replaced));
        Ok(())
    }

    /// The first name of a directory at a place or after it, of those that were given names.
    pub fn next(&self, directory: &Node<C>, place: u64) -> Option<Listed> {
        let names = self.names.read();
        let found = names.at(directory, place.max(FIRST_PLACE))?;
        let (Attributes { mode, .. }, _) = found.node.attributes();
        let (number, name) = (found.node.number, found.bytes.clone());
        Some(Listed { place: found.place + 1, number, kind: mode & S_IFMT, name })
    }

    /// The path of a directory from the root on.
    ///
    /// # Errors
    /// `ENOENT`: it was removed. `ENAMETOOLONG`: with its final zero it is longer than a page. `ENOMEM`.
    pub fn path(&self, directory: &NodeRef<C>) -> Result<Vec<u8>, Errno> {
        let names = self.names.read();
        let (mut path, mut here) = (Vec::new(), directory.clone());
        while !here.is(&self.root) {
            let (parent, place) = {
                let state = here.state.lock();
                (state.parent.clone().filter(|_| state.links != 0).ok_or(Errno::ENOENT)?, state.place)
            };
            let name = names.at(&parent, place).ok_or(Errno::ENOENT)?;
            let mut backwards = name.bytes.clone();
            backwards.reverse();
            bytes::append(&mut path, &backwards)?;
            bytes::append(&mut path, b"/")?;
            if path.len() >= PAGE_SIZE {
                return Err(Errno::ENAMETOOLONG);
            }
            here = parent;
        }
        if path.is_empty() {
            bytes::append(&mut path, b"/")?;
        }
        path.reverse();
        Ok(path)
    }

    fn name(&self, name: &[u8], directory: &Node<C>, node: &NodeRef<C>) -> Result<PoolBox<Name<C>>, Errno> {
        let bytes = heapless::Vec::from_slice(name).map_err(|_| Errno::ENAMETOOLONG)?;
        Ok(self.pools.names.try_new_with(|| Name {
            by_name: RBTreeAtomicLink::new(),
            by_place: RBTreeAtomicLink::new(),
            directory: directory.number,
            place: 0,
            bytes,
            node: node.clone(),
        })?)
    }
}

impl<C> Drop for Tree<C> {
    fn drop(&mut self) {
        let mut all = {
            let mut names = self.names.write();
            names.by_place.fast_clear();
            names.by_name.take()
        };
        while let Some(name) = all.front_mut().remove() {
            // SAFETY: no tree has it any more.
            drop(unsafe { PoolBox::from_ref(name) });
        }
    }
}

/// A node of a device without a name.
///
/// # Errors
/// `ENOMEM`.
pub fn node<C>(
    pools: &'static Pools<C>,
    (device, number): (u64, u64),
    kind: NodeKind<C>,
    attributes: Attributes,
) -> Result<NodeRef<C>, Errno> {
    let state = NodeState { attributes, links: 0, may_be_named: true, names: 0, parent: None, place: 0 };
    Ok(Counted::try_new_with(&pools.nodes, || Node { number, device, kind, state: IrqLock::new(state) })?)
}

/// A node has lost a name; a directory has no links then.
fn lose_link<C>(node: &Node<C>) {
    let mut state = node.state.lock();
    state.links = if node.is_directory() { 0 } else { state.links.saturating_sub(1) };
}

/// Checks that a directory may lose its last name.
fn check_removable<C>(names: &Names<C>, node: &Node<C>) -> Result<(), Errno> {
    match node.kind {
        NodeKind::Proc => Err(Errno::EBUSY),
        _ if names.at(node, 0).is_some() => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

/// The checks of a rename before those of the node that is replaced.
fn check_rename<C>(
    (from, old): (NameIn<'_, C>, &NodeRef<C>),
    (to, new): (NameIn<'_, C>, Option<&NodeRef<C>>),
    renaming: Renaming,
) -> Result<(), Errno> {
    let exchanges = renaming == Renaming::Exchange;
    match new {
        Some(_) if renaming == Renaming::NoReplace => return Err(Errno::EEXIST),
        None if exchanges => return Err(Errno::ENOENT),
        _ => {}
    }
    let moves = !from.directory.is(to.directory);
    let is_above = |node: &NodeRef<C>, directory| moves && node.is_directory() && Names::is_above(node, directory);
    if is_above(old, to.directory) {
        return Err(Errno::EINVAL);
    }
    if new.is_some_and(|new| is_above(new, from.directory)) {
        return Err(if exchanges { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    // A slash follows the name of a directory alone; of two that are exchanged, each is for its own.
    let is_directory = |node: &NodeRef<C>| node.is_directory();
    let has_slash_wrongly = if exchanges {
        from.slash && !old.is_directory() || to.slash && !new.is_some_and(is_directory)
    } else {
        (from.slash || to.slash) && !old.is_directory()
    };
    if has_slash_wrongly { Err(Errno::ENOTDIR) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the host has memory")]
mod tests;
