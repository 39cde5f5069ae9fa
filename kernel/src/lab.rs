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

/// What can see that a fix is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// The CPU, real or emulated: a test on the target.
    Target,
    /// The model machine alone: an emulated CPU completes everything at once and hides it.
    Model,
    /// The recorded stream of operations alone: it is a matter of what was issued before what.
    Stream,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Target => "target",
            Self::Model => "model",
            Self::Stream => "stream",
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
    /// What goes wrong with it, in a line.
    pub effect: &'static str,
    /// What sees it.
    pub witness: Witness,
}

impl Lab {
    /// Identifiers of the branch sites that it takes.
    #[cfg(not(target_os = "none"))]
    pub const fn sites(&self) -> [u16; 2] {
        [self.identifier, ANY]
    }
}

/// No TLB invalidation after a change of permissions.
pub const SKIP_TLBI: Lab = Lab {
    identifier: FIRST_LAB,
    name: "skip-tlbi",
    effect: "no TLB is invalidated: an old permission, or mapping, outlives the call",
    witness: Witness::Target,
};

/// TLB invalidation on the calling CPU only.
pub const LOCAL_TLBI: Lab = Lab {
    identifier: FIRST_LAB + 1,
    name: "local-tlbi",
    effect: "TLBs are invalidated on the calling CPU only: an old permission, or mapping, outlives the call on the others",
    witness: Witness::Target,
};

/// A leaf that breaks W^X.
pub const WX_LEAF: Lab = Lab {
    identifier: FIRST_LAB + 2,
    name: "wx-leaf",
    effect: "vmalloc maps the first page of an area writable and executable: the audit must find it",
    witness: Witness::Target,
};

/// TLB invalidation of all pages but the last.
pub const SHORT_TLBI: Lab = Lab {
    identifier: FIRST_LAB + 3,
    name: "short-tlbi",
    effect: "an invalidation ends a page early: the old permission of the last page outlives the call",
    witness: Witness::Target,
};

/// No DSB between the stores and the invalidation.
pub const SKIP_DSB_BEFORE_TLBI: Lab = Lab {
    identifier: FIRST_LAB + 4,
    name: "skip-dsb-before-tlbi",
    effect: "no DSB before an invalidation: a walk right after it may bring the old entry back",
    witness: Witness::Model,
};

/// No DSB after the invalidation.
pub const SKIP_DSB_AFTER_TLBI: Lab = Lab {
    identifier: FIRST_LAB + 5,
    name: "skip-dsb-after-tlbi",
    effect: "no DSB after an invalidation: it may still be under way when the call returns",
    witness: Witness::Model,
};

/// No ISB after the invalidation.
pub const SKIP_ISB: Lab = Lab {
    identifier: FIRST_LAB + 6,
    name: "skip-isb",
    effect: "no ISB at the end of a change: this CPU may use what it translated ahead",
    witness: Witness::Model,
};

/// No cache maintenance for new code.
pub const SKIP_ICACHE: Lab = Lab {
    identifier: FIRST_LAB + 7,
    name: "skip-icache",
    effect: "no cache maintenance where pages become executable: their old contents may run",
    witness: Witness::Stream,
};

/// Tables are freed at once, without invalidation or a wait.
pub const EARLY_TABLE_FREE: Lab = Lab {
    identifier: FIRST_LAB + 8,
    name: "early-table-free",
    effect: "empty tables are freed without invalidation, and under the walks of other CPUs",
    witness: Witness::Target,
};

/// Splits of one leaf by several CPUs are not kept apart.
pub const PLAIN_SPLIT: Lab = Lab {
    identifier: FIRST_LAB + 9,
    name: "plain-split",
    effect: "leaves are split by plain loads and stores and without a lock: a neighbour's change of permission is lost",
    witness: Witness::Target,
};

/// The alias of read-only memory stays writable.
pub const NO_ALIAS: Lab = Lab {
    identifier: FIRST_LAB + 10,
    name: "no-alias",
    effect: "set_memory_ro leaves the alias alone: what is read-only can be written by its linear address",
    witness: Witness::Target,
};

/// No event of an upgrade.
pub const NO_UPGRADE_EVENT: Lab = Lab {
    identifier: FIRST_LAB + 11,
    name: "no-upgrade-event",
    effect: "no event when a user page becomes writable or young: a mirror of the page keeps the old permission",
    witness: Witness::Target,
};

/// The event of an upgrade under the lock of the table.
pub const NOTIFY_BEFORE_UNLOCK: Lab = Lab {
    identifier: FIRST_LAB + 12,
    name: "notify-before-unlock",
    effect: "the event of an upgrade comes under the lock of the page table: a subscriber that sleeps or walks hangs",
    witness: Witness::Target,
};

/// No invalidation between the old page and its copy.
pub const STALE_COW: Lab = Lab {
    identifier: FIRST_LAB + 13,
    name: "stale-cow",
    effect: "no TLB is invalidated where a page is copied on write: other CPUs use the old page",
    witness: Witness::Target,
};

/// No cache maintenance for new code of programs.
pub const SKIP_ICACHE_USER: Lab = Lab {
    identifier: FIRST_LAB + 14,
    name: "skip-icache-user",
    effect: "no cache maintenance where user pages become executable: their old contents may run",
    witness: Witness::Stream,
};

/// The SMMU is not invalidated.
pub const NO_SECONDARY_TLB: Lab = Lab {
    identifier: FIRST_LAB + 15,
    name: "no-secondary-tlb",
    effect: "the SMMU is not invalidated with the CPUs' TLBs: a device keeps the old translation",
    witness: Witness::Target,
};

/// A device's fault is taken for spurious.
pub const DEVICE_DBM_SPURIOUS: Lab = Lab {
    identifier: FIRST_LAB + 16,
    name: "device-dbm-spurious",
    effect: "a device's fault at an entry that a CPU could use counts as spurious: it recurs for ever",
    witness: Witness::Target,
};

/// The SMMU is invalidated under the wrong ASID.
pub const WRONG_ASID: Lab = Lab {
    identifier: FIRST_LAB + 17,
    name: "wrong-asid",
    effect: "the SMMU is invalidated under another ASID: a device keeps the old translation",
    witness: Witness::Target,
};

/// No CMD_CFGI after a change of configuration.
pub const NO_CFGI: Lab = Lab {
    identifier: FIRST_LAB + 18,
    name: "no-cfgi",
    effect: "no CMD_CFGI after a stream changes: a device keeps its old tables",
    witness: Witness::Target,
};

/// An ASID is reused, not flushed.
pub const BIND_WITHOUT_FLUSH: Lab = Lab {
    identifier: FIRST_LAB + 19,
    name: "bind-without-flush",
    effect: "an ASID of the SMMU is bound again without a flush: a device reaches pages of the process before",
    witness: Witness::Target,
};

/// Replaced pages are not invalidated under the lock.
pub const START_END_ONLY: Lab = Lab {
    identifier: FIRST_LAB + 20,
    name: "start-end-only",
    effect: "with smmu.notify=events replaced pages are invalidated at the end only: a device reads the page before the copy",
    witness: Witness::Target,
};

/// No CMD_SYNC behind commands.
pub const SKIP_SYNC: Lab = Lab {
    identifier: FIRST_LAB + 21,
    name: "skip-sync",
    effect: "no CMD_SYNC: the call returns before the SMMU has completed its invalidation",
    witness: Witness::Stream,
};

/// CMD_SYNC is not waited for.
pub const FREE_BEFORE_SYNC: Lab = Lab {
    identifier: FIRST_LAB + 22,
    name: "free-before-sync",
    effect: "CMD_SYNC is not waited for: a frame is free while a device may still reach it",
    witness: Witness::Stream,
};

/// No barrier between commands and their index.
pub const NO_DMB_BEFORE_PROD: Lab = Lab {
    identifier: FIRST_LAB + 23,
    name: "no-dmb-before-prod",
    effect: "no DMB before CMDQ_PROD: the SMMU may fetch slots that are not written yet",
    witness: Witness::Stream,
};

/// A device's own completion counts.
pub const TRUST_COMPLETION: Lab = Lab {
    identifier: FIRST_LAB + 24,
    name: "trust-completion",
    effect: "a virtio request is complete when the device reports it: data that the SMMU refused is lost",
    witness: Witness::Target,
};

const ALL: [Lab; 25] = [
    SKIP_TLBI,
    LOCAL_TLBI,
    WX_LEAF,
    SHORT_TLBI,
    SKIP_DSB_BEFORE_TLBI,
    SKIP_DSB_AFTER_TLBI,
    SKIP_ISB,
    SKIP_ICACHE,
    EARLY_TABLE_FREE,
    PLAIN_SPLIT,
    NO_ALIAS,
    NO_UPGRADE_EVENT,
    NOTIFY_BEFORE_UNLOCK,
    STALE_COW,
    SKIP_ICACHE_USER,
    NO_SECONDARY_TLB,
    DEVICE_DBM_SPURIOUS,
    WRONG_ASID,
    NO_CFGI,
    BIND_WITHOUT_FLUSH,
    START_END_ONLY,
    SKIP_SYNC,
    FREE_BEFORE_SYNC,
    NO_DMB_BEFORE_PROD,
    TRUST_COMPLETION,
];

/// Identifier of the branch that is taken while any switch is on: where several sites would stand in a row in a hot
/// path, one leads to them.
pub const ANY: u16 = FIRST_LAB + 63;

// The set below is a word, and a switch's place in it is its place in the list.
const _: () = {
    let mut index = 0;
    while index < ALL.len() {
        assert!(ALL[index].identifier == FIRST_LAB + index as u16);
        index += 1;
    }
    assert!(ALL.len() <= 63 && (ANY as usize) < IDENTIFIERS as usize);
};

/// Every switch, in the order of the listing.
pub fn all() -> &'static [Lab] {
    &ALL
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
/// What is asked for is in force once the branch sites are patched by it.
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
        for lab in &ALL {
            assert!(lab.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", lab.name);
        }
    }
}
