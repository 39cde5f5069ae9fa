//! Which commands invalidate a range of addresses: the fewest that cover its pages and no other.
//!
//! With range invalidation (IDR3.RIL) a command covers `(NUM + 1) << SCALE` pages, NUM up to 31, from any page on. That is
//! every number of pages whose highest and lowest one bits are at most five apart. The largest such number that
//! a range has room for is more than half of it: so two commands of that length, one that begins where the range
//! begins and one that ends where it ends, cover it. **No range needs more than two.** Without, there is a command for
//! each page, and from [`MOST_PAGES`] on one for the whole ASID.

use granule_arch::addr::{PAGE_SHIFT, VirtAddr};
use granule_arch::tlbi::Granule;

use crate::{Command, Features, Scope, Span};

/// Without range invalidation: pages from which on everything in the ASID goes instead. A command costs this CPU some 25
/// instructions and the SMMU a fetch; what is lost by the whole ASID are walks, of which a device that uses few
/// pages makes few.
pub const MOST_PAGES: u64 = 64;

/// Pages that are more than any table maps: everything.
const EVERYTHING: u64 = 1 << 35;

/// How the SMMU invalidates ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// By range commands.
    Ranges,
    /// By one command for each page.
    Pages,
}

impl By {
    /// What `features` allow.
    pub(crate) const fn of(features: &Features) -> Self {
        if features.range_invalidation { Self::Ranges } else { Self::Pages }
    }
}

/// What is to be told of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    asid: u16,
    scope: Scope,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// No page is in the range.
    Nothing,
    /// Everything in the ASID.
    Asid,
    /// A span at each of two pages, which are one where there is one command.
    Spans { span: Span, first: VirtAddr, second: VirtAddr },
    /// So many pages one by one.
    Pages { first: VirtAddr, count: u64 },
}

impl Plan {
    /// For the pages that have a byte in `start..end`.
    #[inline(always)]
    pub(crate) fn new(by: By, asid: u16, start: VirtAddr, end: VirtAddr, scope: Scope) -> Self {
        Self { asid, scope, form: Form::new(by, start, end) }
    }

    /// How many commands it is, the CMD_SYNC not counted.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        match self.form {
            Form::Nothing => 0,
            Form::Asid => 1,
            Form::Spans { first, second, .. } => 1 + usize::from(first != second),
            Form::Pages { count, .. } => count as usize,
        }
    }

    /// Each of them.
    #[inline(always)]
    pub(crate) fn command(&self, index: usize) -> Command {
        let Self { asid, scope, form } = *self;
        match form {
            Form::Nothing => Command::SYNC,
            Form::Asid => Command::tlbi_nh_asid(asid),
            Form::Spans { span, first, second } => {
                let at = if index == 0 { first } else { second };
                Command::tlbi_nh_va_range(asid, at, span, Granule::Size4K, None, scope)
            }
            Form::Pages { first, .. } => Command::tlbi_nh_va(asid, first + ((index as u64) << PAGE_SHIFT), scope),
        }
    }
}

impl Form {
    #[inline(always)]
    fn new(by: By, start: VirtAddr, end: VirtAddr) -> Self {
        if start >= end {
            return Self::Nothing;
        }
        let (first, last) = (start.0 >> PAGE_SHIFT, (end.0 - 1) >> PAGE_SHIFT);
        let (first_page, pages) = (VirtAddr(first << PAGE_SHIFT), last - first + 1);
        match by {
            _ if pages >= EVERYTHING => Self::Asid,
            By::Ranges => {
                let span = Span::largest(pages);
                let second = first_page + ((pages - span.pages()) << PAGE_SHIFT);
                Self::Spans { span, first: first_page, second }
            }
            By::Pages if pages > MOST_PAGES => Self::Asid,
            By::Pages => Self::Pages { first: first_page, count: pages },
        }
    }
}
