//! Whether the heap's memory has tags, and how the kernel's accesses are checked: `heap.tags=`.

use granule_arch::features::Mte;
use granule_arch::tag_check::TagCheck;
use linkme::distributed_slice;
use thiserror::Error;

use crate::bootargs::{self, PARAMETERS, Parameter, Refused};

/// A request of the boot argument that the CPUs cannot meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
enum Denied {
    #[error("heap.tags: a CPU has no tags in memory (FEAT_MTE2), so nothing is checked")]
    NoTags,
    #[error("heap.tags=asymm: a CPU has no asymmetric checks (FEAT_MTE3), so all are synchronous")]
    NoAsymmetric,
}

/// The checks by the boot argument, synchronous without one, as far as `mte`, the least of all CPUs, has them. A
/// request beyond them is a warning.
pub fn decide(mte: Mte) -> TagCheck {
    let (checks, denied) = possible(bootargs::get("heap.tags").and_then(parse), mte);
    if let Some(denied) = denied {
        crate::log::warn!("{denied}");
    }
    checks
}

fn possible(asked: Option<TagCheck>, mte: Mte) -> (TagCheck, Option<Denied>) {
    match (asked, mte) {
        (None | Some(TagCheck::Off), Mte::None | Mte::Instructions) => (TagCheck::Off, None),
        (Some(_), Mte::None | Mte::Instructions) => (TagCheck::Off, Some(Denied::NoTags)),
        (Some(TagCheck::Asymmetric), Mte::Tags) => (TagCheck::Synchronous, Some(Denied::NoAsymmetric)),
        (asked, _) => (asked.unwrap_or(TagCheck::Synchronous), None),
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static HEAP_TAGS: Parameter = Parameter {
    name: "heap.tags",
    help: "heap.tags=off|sync|async|asymm: tags of the heap's memory, and how the kernel's accesses are checked",
    check: |value| parse(value).map(drop).ok_or_else(|| Refused::because("off, sync, async or asymm")),
};

fn parse(value: &str) -> Option<TagCheck> {
    match value {
        "off" => Some(TagCheck::Off),
        "sync" => Some(TagCheck::Synchronous),
        "async" => Some(TagCheck::Asynchronous),
        "asymm" => Some(TagCheck::Asymmetric),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cpus_lack_is_refused_or_replaced() {
        use TagCheck::{Asymmetric, Asynchronous, Off, Synchronous};
        for (asked, mte, expected) in [
            (None, Mte::None, (Off, None)),
            (None, Mte::Tags, (Synchronous, None)),
            (Some(Off), Mte::Instructions, (Off, None)),
            (Some(Off), Mte::Asymmetric, (Off, None)),
            (Some(Synchronous), Mte::Instructions, (Off, Some(Denied::NoTags))),
            (Some(Asynchronous), Mte::Tags, (Asynchronous, None)),
            (Some(Asymmetric), Mte::Tags, (Synchronous, Some(Denied::NoAsymmetric))),
            (Some(Asymmetric), Mte::Asymmetric, (Asymmetric, None)),
        ] {
            assert_eq!(possible(asked, mte), expected, "{asked:?} on {mte:?}");
        }
    }

    #[test]
    fn other_words_are_bad_values() {
        for value in ["off", "sync", "async", "asymm"] {
            assert_eq!((HEAP_TAGS.check)(value), Ok(()));
        }
        assert!((HEAP_TAGS.check)("on").is_err() && (HEAP_TAGS.check)("").is_err());
    }
}
