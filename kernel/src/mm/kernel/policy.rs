//! The policy for changes of live mappings: as the boot arguments wish, and as far as the CPUs can be trusted with it.
//!
//! It is decided at two times. When the linear map is made only the boot CPU is known, and it chooses the leaves: by
//! pages where single pages will change and no leaf may be split while CPUs are at work. When all CPUs are known, the
//! rest is decided for good. Should a CPU that came later not be trusted with what the first one has chosen, the linear
//! map is split to pages ([`Wishes::splits_to_pages`]); without memory for the tables it stays as it is, and aliases are
//! left alone, with a warning.
//!
//! Hot paths take a patched branch ([`Policy::takes`]); the rest reads [`super::KernelSpace::policy`].

use core::fmt;

use granule_pgtable::Leaves;
use linkme::distributed_slice;

use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::platform::features::branch;

/// How live leaves are split that a change covers in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitMode {
    /// Under a lock of its own.
    Lock,
    /// By atomic steps.
    Lockless,
    /// Break-before-make, with all other CPUs parked: where the caller can wait for that.
    StopMachine,
    /// Not at all: the change is refused.
    Refuse,
}

/// Whether read-only memory is writable by other addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rodata {
    /// No: the alias in the linear map is read-only as well.
    On,
    /// By the alias; that of the image excepted, which is always read-only.
    NoAlias,
    /// Everybody: the image's constants are writable too. Its text never is.
    Off,
}

impl SplitMode {
    /// Whether a leaf can be split while CPUs are at work there, from any context.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Lock | Self::Lockless)
    }
}

type Names<T> = [(&'static str, T)];
const AREA_LEAVES: &Names<Leaves> = &[("largest", Leaves::Largest), ("pages", Leaves::Pages)];
const SPLIT_MODES: &Names<SplitMode> = &[
    ("lock", SplitMode::Lock),
    ("lockless", SplitMode::Lockless),
    ("stop-machine", SplitMode::StopMachine),
    ("refuse", SplitMode::Refuse),
];
const RODATA: &Names<Rodata> = &[("on", Rodata::On), ("noalias", Rodata::NoAlias), ("off", Rodata::Off)];
const SWITCH: &Names<bool> = &[("on", true), ("off", false)];

fn named<T: Copy>(names: &Names<T>, word: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == word).map(|&(_, value)| value)
}

fn name_of<T: PartialEq>(names: &Names<T>, wanted: &T) -> &'static str {
    names.iter().find(|(_, value)| value == wanted).map_or("", |(name, _)| name)
}

impl fmt::Display for SplitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(SPLIT_MODES, self))
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static SPLIT: Parameter = Parameter {
    name: "split",
    help: "split=lock|lockless|stop-machine|refuse: how live leaves are split that a change covers in part",
    check: |value| {
        let refused = || Refused::because("lock, lockless, stop-machine or refuse");
        named(SPLIT_MODES, value).map(drop).ok_or_else(refused)
    },
};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static RODATA_ARGUMENT: Parameter = Parameter {
    name: "rodata",
    help: "rodata=on|noalias|off: aliases of read-only memory are read-only, or stay writable; off: constants too",
    check: |value| named(RODATA, value).map(drop).ok_or_else(|| Refused::because("on, noalias or off")),
};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static DEBUG_PAGEALLOC: Parameter = Parameter {
    name: "debug_pagealloc",
    help: "debug_pagealloc=on|off: unmap free frames from the linear map",
    check: |value| named(SWITCH, value).map(drop).ok_or_else(|| Refused::because("on or off")),
};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static VMALLOC: Parameter = Parameter {
    name: "vmalloc",
    help: "vmalloc=largest|pages: areas are mapped by the largest leaves that fit, or by pages alone",
    check: |value| named(AREA_LEAVES, value).map(drop).ok_or_else(|| Refused::because("largest or pages")),
};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static LAZY: Parameter = Parameter {
    name: "vmalloc.lazy",
    help: "vmalloc.lazy=PAGES: pages of freed areas that wait for one invalidation, for each CPU",
    check: |value| bootargs::number(value, MOST_LAZY_PAGES).map(drop),
};

/// The most pages of `vmalloc.lazy=`: a gigabyte.
const MOST_LAZY_PAGES: usize = 1 << 18;
/// The default of `vmalloc.lazy=`, which a part of all memory limits further: 4 MiB.
const USUAL_LAZY_PAGES: usize = 1 << 10;
/// Divisor of all memory for the limit of pages that wait, for each CPU.
const LAZY_PART: usize = 512;

/// The wishes of the boot arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wishes {
    split: Option<SplitMode>,
    /// Whether constants are writable.
    pub rodata: Rodata,
    debug_pagealloc: bool,
    area_leaves: Option<Leaves>,
    lazy_pages: Option<usize>,
}

impl Wishes {
    /// Reads the boot arguments. One that is missing or makes no sense has its default; their check has warned.
    pub fn read() -> Self {
        Self::from(bootargs::get)
    }

    fn from<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            split: get("split").and_then(|word| named(SPLIT_MODES, word)),
            rodata: get("rodata").and_then(|word| named(RODATA, word)).unwrap_or(Rodata::On),
            debug_pagealloc: get("debug_pagealloc").and_then(|word| named(SWITCH, word)).unwrap_or(false),
            area_leaves: get("vmalloc").and_then(|word| named(AREA_LEAVES, word)),
            lazy_pages: get("vmalloc.lazy").and_then(|pages| bootargs::number(pages, MOST_LAZY_PAGES).ok()),
        }
    }

    /// How leaves are split where live leaves may change size, or not.
    fn split(&self, trusted: bool) -> SplitMode {
        match self.split {
            Some(asked) if trusted || !asked.is_live() => asked,
            None if trusted => SplitMode::Lock,
            _ => SplitMode::StopMachine,
        }
    }

    /// The leaves of the linear map, on a boot CPU that is trusted with changes of size or not. Its pages change from
    /// contexts that cannot park other CPUs, so they are pages where that would be needed. Free frames come and go one by
    /// one from any context, which may have no memory for tables; so debug_pagealloc takes pages anyway.
    pub fn linear_leaves(&self, trusted: bool) -> Leaves {
        let single_pages_change = self.rodata == Rodata::On && !self.split(trusted).is_live();
        if self.debug_pagealloc || single_pages_change { Leaves::Pages } else { Leaves::Largest }
    }

    /// Pages that may wait for their invalidation, for each CPU, in a machine with `frames`. With debug_pagealloc none: what
    /// is freed is to fault at once.
    fn lazy_pages(&self, frames: usize) -> u64 {
        let usual = (frames / LAZY_PART).min(USUAL_LAZY_PAGES);
        if self.debug_pagealloc { 0 } else { self.lazy_pages.unwrap_or(usual) as u64 }
    }

    /// Whether the linear map, made for a boot CPU that is trusted or not, has to be split to pages now that all CPUs are.
    pub fn splits_to_pages(&self, boot_cpu: bool, all: bool) -> bool {
        self.linear_leaves(boot_cpu) == Leaves::Largest && self.linear_leaves(all) == Leaves::Pages
    }
}

/// The policy in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How live leaves are split.
    pub split: SplitMode,
    /// Whether the alias in the linear map becomes read-only, and writable again, with the pages of an area.
    pub alias: bool,
    /// Whether permissions in the linear map are managed; where not, `set_direct_map_*` succeed and do nothing.
    pub direct_map: bool,
    /// Whether free frames are taken out of the linear map.
    pub debug_pagealloc: bool,
    /// The leaves of areas. Any page of an area may change alone, so they are pages where no leaf is ever split.
    pub area_leaves: Leaves,
    /// Pages of areas that were freed and may wait for one invalidation, in each part of the vmalloc window; 0: none.
    pub lazy_pages: u64,
}

/// A wish that cannot be granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// The boot CPU was trusted, and another one is not.
    #[error(
        "a CPU is not trusted with live size changes, and there is no memory to make the linear map of pages: the alias of \
         read-only memory stays writable (rodata=noalias)"
    )]
    Alias,
    /// Splitting was asked for by name.
    #[error(
        "split={0}: the CPUs are not trusted with live size changes, so leaves are split with all other CPUs parked \
         (split=stop-machine; see `features`)"
    )]
    Split(SplitMode),
    /// Large leaves of areas were asked for by name.
    #[error("vmalloc=largest: leaves are not split here, so areas are made of pages (see `features`)")]
    AreaLeaves,
}

impl Policy {
    /// Before it is decided: nothing is changed that takes a decision.
    pub const UNDECIDED: Self = Self {
        split: SplitMode::Refuse,
        alias: false,
        direct_map: false,
        debug_pagealloc: false,
        area_leaves: Leaves::Pages,
        lazy_pages: 0,
    };

    /// Decides for good: all CPUs are `trusted` with live size changes or not, the linear map is made of `linear`, and there
    /// are `frames` in all.
    pub fn decide(wishes: Wishes, trusted: bool, linear: Leaves, frames: usize) -> (Self, Option<Denied>) {
        let split = wishes.split(trusted);
        let can_change_pages = linear == Leaves::Pages || split.is_live();
        let alias = wishes.rodata == Rodata::On;
        // A single page is then a leaf, or can be made one: no call is refused half-way through an owner's pages.
        let direct_map = (alias || wishes.debug_pagealloc) && can_change_pages;
        let denied = match wishes.split {
            _ if alias && !can_change_pages => Some(Denied::Alias),
            Some(asked) if asked != split => Some(Denied::Split(asked)),
            _ if split == SplitMode::Refuse && wishes.area_leaves == Some(Leaves::Largest) => Some(Denied::AreaLeaves),
            _ => None,
        };
        let alias = alias && can_change_pages;
        let wished = wishes.area_leaves.unwrap_or(Leaves::Largest);
        let area_leaves = if split == SplitMode::Refuse { Leaves::Pages } else { wished };
        let (debug_pagealloc, lazy_pages) = (wishes.debug_pagealloc, wishes.lazy_pages(frames));
        (Self { split, alias, direct_map, debug_pagealloc, area_leaves, lazy_pages }, denied)
    }

    /// Whether the branch sites with this identifier, one of [`branch`], are to be taken; `false` for any other.
    pub fn takes(&self, identifier: u16) -> bool {
        match identifier {
            branch::ALIAS => self.alias,
            branch::DIRECT_MAP => self.direct_map,
            branch::DEBUG_PAGEALLOC => self.debug_pagealloc,
            branch::LAZY_UNMAP => self.lazy_pages != 0,
            _ => false,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        let (alias, pagealloc) = (on(self.alias), on(self.debug_pagealloc));
        let leaves = name_of(AREA_LEAVES, &self.area_leaves);
        write!(
            f,
            "split={}, vmalloc={leaves}, vmalloc.lazy={}, alias of read-only memory {alias}, debug_pagealloc {pagealloc}",
            self.split, self.lazy_pages
        )
    }
}

#[cfg(test)]
mod tests {
    use granule_pgtable::Leaves;

    use super::{Denied, Policy, SplitMode, Wishes, branch};

    /// 256 MiB.
    const FRAMES: usize = 1 << 16;

    fn wishes(arguments: &'static str) -> Wishes {
        Wishes::from(|key| {
            arguments.split(' ').filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key).map(|it| it.1)
        })
    }

    /// The leaves that the boot CPU alone chooses for the linear map, and the policy that all CPUs then decide.
    fn decide(arguments: &'static str, boot_cpu: bool, all: bool) -> (Leaves, Policy, Option<Denied>) {
        let leaves = wishes(arguments).linear_leaves(boot_cpu);
        let (policy, denied) = Policy::decide(wishes(arguments), all, leaves, FRAMES);
        (leaves, policy, denied)
    }

    #[test]
    fn trusted_cpus_split_large_leaves_under_the_lock_unless_told_otherwise() {
        for (arguments, split) in
            [("", SplitMode::Lock), ("split=lockless", SplitMode::Lockless), ("split=sideways", SplitMode::Lock)]
        {
            let (leaves, policy, denied) = decide(arguments, true, true);
            assert_eq!((leaves, policy.split, denied), (Leaves::Largest, split, None), "{arguments}");
            assert!(policy.alias && policy.direct_map && !policy.debug_pagealloc);
        }
    }

    #[test]
    fn where_nothing_is_split_live_the_linear_map_is_made_of_pages_if_single_pages_change() {
        const STOP: SplitMode = SplitMode::StopMachine;
        for (arguments, trusted, split) in [
            ("", false, STOP),
            ("split=stop-machine", false, STOP),
            ("split=stop-machine", true, STOP),
            ("split=refuse", true, SplitMode::Refuse),
            ("split=refuse", false, SplitMode::Refuse),
        ] {
            let (leaves, policy, denied) = decide(arguments, trusted, trusted);
            assert_eq!((leaves, policy.split, denied), (Leaves::Pages, split, None), "{arguments}");
            assert!(policy.alias && policy.direct_map);
        }
        for (arguments, split) in
            [("rodata=noalias", STOP), ("rodata=off", STOP), ("rodata=noalias split=refuse", SplitMode::Refuse)]
        {
            let (leaves, policy, denied) = decide(arguments, false, false);
            assert_eq!((leaves, policy.split, denied), (Leaves::Largest, split, None), "{arguments}");
            assert!(!policy.alias && !policy.direct_map);
        }
    }

    #[test]
    fn debug_pagealloc_takes_pages_and_manages_the_linear_map_whoever_is_trusted() {
        for trusted in [false, true] {
            let (leaves, policy, denied) = decide("debug_pagealloc=on rodata=off", trusted, trusted);
            assert_eq!((leaves, denied), (Leaves::Pages, None));
            assert!(policy.debug_pagealloc && policy.direct_map && !policy.alias);
        }
    }

    #[test]
    fn the_linear_map_is_split_to_pages_where_a_cpu_comes_that_is_not_trusted() {
        for (arguments, boot_cpu, all, splits) in [
            ("", true, false, true),
            ("split=lock", true, false, true),
            ("", true, true, false),
            ("", false, false, false),
            // Made of pages already, or no page of it changes.
            ("split=refuse", true, false, false),
            ("split=stop-machine", true, false, false),
            ("debug_pagealloc=on", true, false, false),
            ("rodata=noalias", true, false, false),
        ] {
            assert_eq!(wishes(arguments).splits_to_pages(boot_cpu, all), splits, "{arguments}");
        }
        let (policy, denied) = Policy::decide(wishes(""), false, Leaves::Pages, FRAMES);
        assert_eq!((policy.split, policy.alias, policy.direct_map, denied), (SplitMode::StopMachine, true, true, None));
    }

    #[test]
    fn a_cpu_that_is_not_trusted_and_comes_late_leaves_aliases_alone_without_memory_for_tables() {
        let (leaves, policy, denied) = decide("split=lockless", true, false);
        assert_eq!((leaves, policy.split, denied), (Leaves::Largest, SplitMode::StopMachine, Some(Denied::Alias)));
        assert!(!policy.alias && !policy.direct_map, "a page of the linear map cannot change alone");
        let (_, policy, denied) = decide("split=lockless debug_pagealloc=on", true, false);
        assert_eq!((policy.alias, denied), (true, Some(Denied::Split(SplitMode::Lockless))));
    }

    #[test]
    fn areas_have_large_leaves_where_these_can_be_split() {
        for (arguments, trusted, leaves) in [
            ("", true, Leaves::Largest),
            ("vmalloc=pages", true, Leaves::Pages),
            ("", false, Leaves::Largest),
            ("split=refuse", true, Leaves::Pages),
            ("vmalloc=largest split=refuse", false, Leaves::Pages),
        ] {
            let (_, policy, denied) = decide(arguments, trusted, trusted);
            let is_denied = leaves == Leaves::Pages && arguments.contains("vmalloc=largest");
            assert_eq!((policy.area_leaves, denied), (leaves, is_denied.then_some(Denied::AreaLeaves)), "{arguments}");
        }
    }

    #[test]
    fn asking_for_a_split_by_name_is_not_trust() {
        let (_, policy, denied) = decide("split=lock", false, false);
        assert_eq!((policy.split, denied), (SplitMode::StopMachine, Some(Denied::Split(SplitMode::Lock))));
    }

    #[test]
    fn freed_areas_wait_up_to_a_part_of_the_memory_and_not_at_all_where_faults_are_wanted() {
        for (arguments, frames, pages) in [
            ("", FRAMES, 128),
            ("", 1 << 14, 32),
            ("", 1 << 22, 1024),
            ("vmalloc.lazy=0", FRAMES, 0),
            ("vmalloc.lazy=5000", FRAMES, 5000),
            ("vmalloc.lazy=262145", FRAMES, 128),
            ("vmalloc.lazy=many", FRAMES, 128),
            ("vmalloc.lazy=5000 debug_pagealloc=on", FRAMES, 0),
        ] {
            let (policy, _) = Policy::decide(wishes(arguments), true, Leaves::Largest, frames);
            assert_eq!((policy.lazy_pages, policy.takes(branch::LAZY_UNMAP)), (pages, pages != 0), "{arguments}");
        }
    }
}
