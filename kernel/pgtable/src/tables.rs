//! A tree of tables. The operations are in files of their own, each of which adds its own to
//! [`PageTables`]; this one is below all of them.

use crate::mmu::{Mmu, Table};

/// A tree of tables as one CPU sees it: a root and that CPU's [`Mmu`].
///
/// Two words, made anew where it is needed; the tree belongs to the code that vouched for the root.
pub struct PageTables<'a, M: Mmu> {
    mmu: &'a M,
    root: Table<M::Geometry>,
}

impl<M: Mmu> Clone for PageTables<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mmu> Copy for PageTables<'_, M> {}

impl<'a, M: Mmu> PageTables<'a, M> {
    /// The tree under `root`, as the CPU of `mmu` sees it.
    #[inline(always)]
    pub const fn new(mmu: &'a M, root: Table<M::Geometry>) -> Self {
        Self { mmu, root }
    }

    /// Where the root table is.
    pub const fn root(&self) -> Table<M::Geometry> {
        self.root
    }

    /// The CPU that looks.
    #[inline(always)]
    pub const fn mmu(&self) -> &'a M {
        self.mmu
    }
}
