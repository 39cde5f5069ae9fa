//! The files that there are: the tree, which the first path that is walked makes of the initrd.
//!
//! Beside what the archives have it has `/dev` with the console and the devices, `/dev/shm`, `/proc` and `/tmp`.

use granule_abi::file::{S_IFCHR, S_IFDIR};
use spin::Once;

use super::contents::FileContents;
use super::device::{DeviceNumber, KernelDevice};
use super::initrd;
use super::tree::{Attributes, Moment, Node, NodeKind, NodeRef, Pools, Tree};
use super::walk::{self, Follow, Found, IsProcess, Place};
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::frame_limit::FrameLimit;
use crate::mm::pool::PoolStats;

/// A node of the tree, or of a memory file.
pub type FileNode = Node<FileContents>;
/// A node and its owners.
pub type FileNodeRef = NodeRef<FileContents>;
/// Something that a path leads to.
pub type FilePlace = Place<FileContents>;

static POOLS: Once<Pools<FileContents>> = Once::new();
static UNNAMED: Once<Pools<FileContents>> = Once::new();
static LIMIT: Once<FrameLimit> = Once::new();
static TREE: Once<Tree<FileContents>> = Once::new();

/// Where nodes and names are kept.
fn pools() -> &'static Pools<FileContents> {
    POOLS.call_once(|| Pools::new(kernel().frames))
}

/// Where the nodes of memory files are kept, which the tree does not count.
pub fn memory_files() -> &'static Pools<FileContents> {
    UNNAMED.call_once(|| Pools::new(kernel().frames))
}

/// The frames of all files but memory files: up to half of them, as the pages alone on Linux.
pub fn limit() -> &'static FrameLimit {
    LIMIT.call_once(|| FrameLimit::new(kernel().frames.total() / 2))
}

/// Nodes, names, and memory files.
pub fn pool_stats() -> [(&'static str, PoolStats); 3] {
    let stats = |pools: &Once<Pools<FileContents>>| pools.get().map_or_else(Default::default, Pools::stats);
    let ([nodes, names], [memory_files, _]) = (stats(&POOLS), stats(&UNNAMED));
    [("files", nodes), ("names of files", names), ("memory files", memory_files)]
}

/// The time for files.
pub fn now() -> Moment {
    Moment::at(uptime_nanoseconds())
}

/// The tree.
///
/// # Errors
/// `ENOMEM`.
#[inline(never)]
pub fn tree() -> Result<&'static Tree<FileContents>, Errno> {
    if let Some(tree) = TREE.get() {
        return Ok(tree);
    }
    // As on Linux, as many nodes as half of the pages.
    let new = Tree::new(pools(), kernel().frames.total() / 2, limit(), now)?;
    if let Some(Err(error)) = without("entries", initrd::unpack(&new, initrd::archive()))? {
        crate::log::warn!("{error}");
    }
    populate(&new)?;
    // Where another thread was faster, its tree stays.
    Ok(TREE.call_once(|| new))
}

/// The nodes that were added to the tree. It goes on without what the archives leave no room for: only with more memory
/// may that change.
fn without<T>(name: &str, added: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match added {
        Err(Errno::ENOMEM) => Err(Errno::ENOMEM),
        Err(error) => {
            crate::log::warn!("the files are without {name} because of the initrd: {error}");
            Ok(None)
        }
        Ok(added) => Ok(Some(added)),
    }
}

/// Adds what the kernel has beside the archives.
fn populate(tree: &Tree<FileContents>) -> Result<(), Errno> {
    let root = tree.root();
    let directory = |above: &FileNodeRef, name: &[u8], mode: u32, kind| {
        if let Some(found) = tree.find(above, name).filter(|found| found.is_directory()) {
            return Ok(found);
        }
        initrd::put(tree, above, name, kind, Attributes::new(S_IFDIR | mode, tree.now()))
    };
    let proc = Attributes::new(S_IFDIR | 0o555, tree.now());
    without("/tmp", directory(root, b"tmp", 0o1777, NodeKind::Directory))?;
    without("/proc", initrd::put(tree, root, b"proc", NodeKind::Proc, proc))?;
    let Some(devices) = without("/dev", directory(root, b"dev", 0o755, NodeKind::Directory))? else { return Ok(()) };
    without("/dev/shm", directory(&devices, b"shm", 0o1777, NodeKind::Directory))?;
    let device = |name: &[u8], mode, kind| {
        let attributes = Attributes::new(S_IFCHR | mode, tree.now());
        without("a device", initrd::put(tree, &devices, name, kind, attributes)).map(drop)
    };
    device(b"console", 0o600, NodeKind::Console)?;
    for (name, mode, of_kernel) in KernelDevice::ALL {
        device(name.as_bytes(), mode, NodeKind::Kernel(of_kernel))?;
    }
    DeviceNumber::for_each(|name, number| device(name, 0o600, NodeKind::Device(number)))
}

/// Goes where a path leads, from `base`, a directory, or the root.
///
/// # Errors
/// Those of [`walk::walk`].
pub fn walk(
    base: Option<FilePlace>,
    path: &[u8],
    follow: Follow,
    is_process: IsProcess,
) -> Result<Found<FileContents>, Errno> {
    let tree = tree()?;
    walk::walk(tree, base.unwrap_or_else(|| Place::Node(tree.root().clone())), path, follow, is_process)
}
