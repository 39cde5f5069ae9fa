//! The lab: each bug that this kernel exists to avoid can be switched on at boot, to be seen.
//!
//! `lab=skip-tlbi,wx-leaf` takes a fix away. A switch is asked for where the fix is, by [`is_on!`], and costs a NOP
//! there (`granule_arch::alternative`): the sites are patched once, before the other CPUs run.
//! **Rule: each switch has a test that shows the failure with the fix away and its absence with it**; one that nothing
//! can show is not in the list.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::alternative::{FIRST_LAB, IDENTIFIERS};
use linkme::distributed_slice;
use thiserror::Error;

use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::suggest::suggest;

/// The kind of test that can see that a fix is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// The CPU, real or emulated: a test on the target.
    Target,
    /// The model machine alone: an emulated CPU completes everything at once and hides it.
    Model,
    /// The recorded stream of operations alone: it is a matter of what was issued before what.
    Stream,
    /// Two calls that meet at each moment of each other, on the host (`mm::space::tests::pairs`): on a target the moment
    /// is a few instructions long.
    Meeting,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Target => "target",
            Self::Model => "model",
            Self::Stream => "stream",
            Self::Meeting => "meeting",
        })
    }
}

/// A fix that can be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lab {
    /// Of its branch sites, see `granule_arch::alternative`.
    pub identifier: u16,
    /// As it stands in `lab=`.
    pub name: &'static str,
    /// The failure that the switch causes, in a line.
    pub effect: &'static str,
    /// The kind of test that sees the failure.
    pub witness: Witness,
}

impl Lab {
    /// Identifiers of the branch sites that it takes.
    #[cfg(not(target_os = "none"))]
    pub const fn sites(&self) -> [u16; 2] {
        [self.identifier, ANY]
    }
}

/// Defines the switches. The place of one in the list is the number of its branch sites, and its bit in [`Switches`].
macro_rules! switches {
    ($($name:ident $text:literal $witness:ident $effect:literal;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "places in the list")]
        enum Place { $($name),* }
        $(
            #[doc = $effect]
            pub const $name: Lab = Lab {
                identifier: FIRST_LAB + Place::$name as u16,
                name: $text,
                effect: $effect,
                witness: Witness::$witness,
            };
        )*
        const ALL: &[Lab] = &[$($name),*];
    };
}

switches! {
    SKIP_TLBI "skip-tlbi" Target
        "no TLB is invalidated: an old permission, or mapping, outlives the call";
    LOCAL_TLBI "local-tlbi" Target
        "TLBs are invalidated on the calling CPU only: an old permission, or mapping, outlives the call on the others";
    WX_LEAF "wx-leaf" Target
        "vmalloc maps the first page of an area writable and executable: the audit must find it";
    SHORT_TLBI "short-tlbi" Target
        "an invalidation ends a page early: the old permission of the last page outlives the call";
    SKIP_DSB_BEFORE_TLBI "skip-dsb-before-tlbi" Model
        "no DSB before an invalidation: a walk right after it may bring the old entry back";
    SKIP_DSB_AFTER_TLBI "skip-dsb-after-tlbi" Model
        "no DSB after an invalidation: it may still be under way when the call returns";
    SKIP_ISB "skip-isb" Model
        "no ISB at the end of a change: this CPU may use what it translated ahead";
    SKIP_ICACHE "skip-icache" Stream
        "no cache maintenance where pages become executable: their old contents may run";
    EARLY_TABLE_FREE "early-table-free" Target
        "empty tables are freed without invalidation, and under the walks of other CPUs";
    PURGE_NO_FLUSH "purge-no-flush" Target
        "freed areas are not invalidated before their frames are free: a TLB leads to the next owner";
    PLAIN_SPLIT "plain-split" Target
        "leaves are split by plain loads and stores and without a lock: a neighbour's change of permission is lost";
    COLLAPSE_NO_MARK "collapse-no-mark" Target
        "tables are collapsed without a mark and without waiting for walks: a change in between is lost";
    BBM_NO_PARK "bbm-no-park" Target
        "leaves are replaced break-before-make with no CPU stopped: one that is at work there takes a fault";
    NO_ALIAS "no-alias" Target
        "set_memory_ro leaves the alias alone: what is read-only can be written by its linear address";
    NO_UPGRADE_EVENT "no-upgrade-event" Target
        "no event when a user page becomes writable or young: a mirror of the page keeps the old permission";
    NOTIFY_BEFORE_UNLOCK "notify-before-unlock" Target
        "the event of an upgrade comes under the lock of the page table: a subscriber that sleeps or walks hangs";
    STALE_COW "stale-cow" Target
        "no TLB is invalidated where a page is copied on write: other CPUs use the old page";
    ANSWER_AT_GLIMPSE "answer-at-glimpse" Meeting
        "an answer comes from an entry whose table is not locked: SIGBUS for a page that is copied, or \"absent\"";
    GUARD_IN_TWO "guard-in-two" Meeting
        "a page is zapped, the locks are dropped, and the guard follows: a child has neither the page nor the guard";
    SKIP_ICACHE_USER "skip-icache-user" Stream
        "no cache maintenance where user pages become executable: their old contents may run";
    NO_ZERO_TAGS "no-zero-tags" Target
        "a page that becomes checked keeps the tags that its frame had before";
    RESERVE_AT_MPROTECT "reserve-at-mprotect" Target
        "mprotect(PROT_MTE) reserves tag storage for each mapped page, used or not, where that takes no migration";
    NO_REPLAY_LIMIT "no-replay-limit" Target
        "a fault that finds no tag storage is replayed for ever: a long pin hangs the thread";
    SKIP_RECHECK "skip-recheck" Target
        "an entry is not compared again when its tag storage is reserved: a page that was discarded comes back";
    EARLY_UNPIN "early-unpin" Model
        "a page is unpinned before its entry is compared again: its next life is made valid without tag storage";
    DROP_MARKER_ALWAYS "drop-marker-always" Target
        "a write-protected page that is zapped leaves no marker: the next write to it is not reported";
    NO_MARKER_ON_RECLAIM "no-marker-on-reclaim" Target
        "a write-protected page of a file that is reclaimed leaves no marker: the next write to it is not reported";
    MARKER_ON_ANON "marker-on-anon" Target
        "a write-protected anonymous page that is discarded leaves a marker: a write to the new page is reported";
    NO_SECONDARY_TLB "no-secondary-tlb" Target
        "the SMMU is not invalidated with the CPUs' TLBs: a device keeps the old translation";
    DEVICE_DBM_SPURIOUS "device-dbm-spurious" Target
        "a device's fault at an entry that a CPU could use counts as spurious: it recurs for ever";
    TRUST_HW_DIRTY "trust-hw-dirty" Target
        "an entry that a CPU's hardware made writable counts as written already: a device keeps the read-only one";
    WRONG_ASID "wrong-asid" Target
        "the SMMU is invalidated under another ASID: a device keeps the old translation";
    NO_CFGI "no-cfgi" Target
        "no CMD_CFGI after a stream changes: a device keeps its old tables";
    BIND_WITHOUT_FLUSH "bind-without-flush" Target
        "an ASID of the SMMU is bound again without a flush: a device reaches pages of the process before";
    BIND_IN_TWO "bind-in-two" Meeting
        "a device joins a space, the lock is dropped, and its stream follows: it may walk the tables of a space that ended";
    START_END_ONLY "start-end-only" Target
        "with smmu.notify=events replaced pages are invalidated at the end only: a device reads the page before the copy";
    SKIP_SYNC "skip-sync" Stream
        "no CMD_SYNC: the call returns before the SMMU has completed its invalidation";
    FREE_BEFORE_SYNC "free-before-sync" Stream
        "CMD_SYNC is not waited for: a frame is free while a device may still reach it";
    NO_DMB_BEFORE_PROD "no-dmb-before-prod" Stream
        "no DMB before CMDQ_PROD: the SMMU may fetch slots that are not written yet";
    NOTIFY_AT_BATCH_FLUSH "notify-at-batch-flush" Target
        "devices are notified of a batch at its end, for the space that runs: one that lost pages keeps the old translation";
    TRUST_COMPLETION "trust-completion" Target
        "a virtio request is complete when the device reports it: data that the SMMU refused is lost";
    KFENCE_UAF "kfence-uaf" Target
        "the timer's interrupt reads an object of the guarded heap that it has freed: the report must name it";
    KFENCE_OOB "kfence-oob" Target
        "the timer's interrupt reads beyond an object of the guarded heap: the report must name it";
}

/// Identifier of the branch that is taken while any switch is on: where several sites would stand in a row in a hot
/// path, one leads to them.
pub const ANY: u16 = FIRST_LAB + 63;

// The set below is a word.
const _: () = assert!(ALL.len() <= 63 && (ANY as usize) < IDENTIFIERS as usize);

/// Every switch, in the order of the listing.
pub fn all() -> &'static [Lab] {
    ALL
}

/// Whether a switch, or [`ANY`], is on, where the fix is: a patched branch.
macro_rules! is_on {
    (ANY) => {
        granule_arch::patched_branch!($crate::lab::ANY)
    };
    ($lab:ident) => {
        granule_arch::patched_branch!($crate::lab::$lab.identifier)
    };
}
#[allow(unused_imports, reason = "each switch has its site in the file that has the fix")]
pub(crate) use is_on;

/// A set of switches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Switches(u64);

impl Switches {
    /// Whether `lab` is in it.
    pub fn contains(self, lab: &Lab) -> bool {
        self.has(lab.identifier)
    }

    /// Whether the branch sites with this identifier are to be taken; `false` for identifiers that are not of the lab.
    pub fn has(self, identifier: u16) -> bool {
        if identifier == ANY {
            return self.0 != 0;
        }
        identifier.checked_sub(FIRST_LAB).is_some_and(|index| index < 64 && self.0 >> index & 1 != 0)
    }
}

/// A word in `lab=` that is no switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LabError<'a> {
    /// It looks like one.
    #[error("{word} is no switch of the lab; did you mean {nearest}?")]
    Mistyped {
        /// The word.
        word: &'a str,
        /// The switch whose name is nearest.
        nearest: &'static str,
    },
    /// It looks like none.
    #[error("{0} is no switch of the lab; `lab` lists them")]
    Unknown(&'a str),
}

/// The switches in a list of names with commas between; an empty list has none.
///
/// # Errors
/// Names the first word that is no switch.
pub fn parse(list: &str) -> Result<Switches, LabError<'_>> {
    let mut switches = Switches::default();
    for word in list.split(',').filter(|word| !word.is_empty()) {
        let Some(lab) = ALL.iter().find(|lab| lab.name == word) else {
            return Err(match suggest(word, ALL.iter().map(|lab| lab.name)) {
                Some(nearest) => LabError::Mistyped { word, nearest },
                None => LabError::Unknown(word),
            });
        };
        switches.0 |= 1 << (lab.identifier - FIRST_LAB);
    }
    Ok(switches)
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static LAB: Parameter = Parameter {
    name: "lab",
    help: "lab=NAME,...: switch fixes off, to see the bugs; `lab` in the monitor lists them",
    check: |list| parse(list).map(drop).map_err(Refused::because),
};

/// The switches of this boot, for [`active`]: what runs asks its patched branches instead.
static ACTIVE: AtomicU64 = AtomicU64::new(0);

/// Reads `lab=`. A list with a word that is no switch switches nothing on: half an experiment shows nothing. (The
/// check of the boot arguments has warned by then.)
///
/// The switches take effect when the branch sites are patched.
pub fn init() -> Switches {
    let switches = bootargs::get("lab").and_then(|list| parse(list).ok()).unwrap_or_default();
    ACTIVE.store(switches.0, Ordering::Relaxed);
    switches
}

/// The switches of this boot, for listings.
pub fn active() -> Switches {
    Switches(ACTIVE.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::{ALL, LOCAL_TLBI, LabError, SKIP_TLBI, Switches, WX_LEAF, parse};

    #[test]
    fn a_list_switches_on_what_it_names() {
        let switches = parse("wx-leaf,skip-tlbi").unwrap();
        assert!(switches.contains(&WX_LEAF) && switches.contains(&SKIP_TLBI) && !switches.contains(&LOCAL_TLBI));
        assert_eq!(parse(""), Ok(Switches::default()));
    }

    #[test]
    fn identifiers_of_features_are_in_no_set() {
        let all = Switches(u64::MAX);
        assert!(!all.has(0) && !all.has(63) && all.has(64) && all.has(127) && !all.has(128));
    }

    #[test]
    fn a_mistyped_switch_is_named_with_the_nearest() {
        let error = parse("wx-leaf,skip-tbli").unwrap_err();
        assert_eq!(error, LabError::Mistyped { word: "skip-tbli", nearest: "skip-tlbi" });
        assert_eq!(error.to_string(), "skip-tbli is no switch of the lab; did you mean skip-tlbi?");
        assert_eq!(parse("breakfast"), Err(LabError::Unknown("breakfast")));
    }

    #[test]
    fn names_can_stand_in_a_list() {
        for lab in ALL {
            assert!(lab.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", lab.name);
        }
    }
}
