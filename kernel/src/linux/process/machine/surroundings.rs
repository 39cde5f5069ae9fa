//! Where a process is: the directory that its paths begin in, and the permissions that its new files do not get
//! (Linux's `fs_struct`).
//!
//! A process has none until it changes one of them or shares them: then it is at the root, with 022.

use spin::Once;

use crate::kernel;
use crate::linux::file::files::FilePlace;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::sync::{IrqLock, rank};

static POOL: Once<Pool<Inner<Surroundings>>> = Once::new();

/// Those of tasks that share them.
pub struct Surroundings(IrqLock<Own, { rank::NODE }>);

#[derive(Clone)]
struct Own {
    /// None: the root.
    directory: Option<FilePlace>,
    umask: u32,
}

impl Surroundings {
    /// The root, and 022.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    #[cold]
    #[inline(never)]
    pub fn new() -> Result<Counted<Self>, OutOfMemory> {
        Self::of(Own { directory: None, umask: 0o022 })
    }

    fn of(own: Own) -> Result<Counted<Self>, OutOfMemory> {
        Counted::try_new(POOL.call_once(|| Pool::new(kernel().frames)), Self(IrqLock::new(own)))
    }

    /// Others that are now the same.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    #[cold]
    #[inline(never)]
    pub fn copy(&self) -> Result<Counted<Self>, OutOfMemory> {
        let own = self.0.lock().clone();
        Self::of(own)
    }

    /// The directory; none for the root.
    pub fn directory(&self) -> Option<FilePlace> {
        self.0.lock().directory.clone()
    }

    /// Changes the directory.
    pub fn enter(&self, directory: FilePlace) {
        let before = self.0.lock().directory.replace(directory);
        drop(before);
    }

    /// The permissions that new files do not get.
    pub fn umask(&self) -> u32 {
        self.0.lock().umask
    }

    /// Changes them; returns those before.
    pub fn set_umask(&self, umask: u32) -> u32 {
        core::mem::replace(&mut self.0.lock().umask, umask)
    }
}

/// Those of a process, until it ends: one that waits to be collected is nowhere.
pub struct OfProcess(IrqLock<Option<Counted<Surroundings>>, { rank::NODE }>);

impl OfProcess {
    /// These.
    pub const fn new(own: Counted<Surroundings>) -> Self {
        Self(IrqLock::new(Some(own)))
    }

    /// An owner's share of them.
    pub fn get(&self) -> Option<Counted<Surroundings>> {
        self.0.lock().clone()
    }

    /// The process has ended.
    pub fn leave(&self) {
        let before = self.0.lock().take();
        drop(before);
    }
}

/// Surroundings.
pub fn pool_stats() -> PoolStats {
    POOL.get().map_or_else(PoolStats::default, Pool::stats)
}
