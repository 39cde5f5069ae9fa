//! Every legal combination of what an entry can be, through every change of it.

extern crate std;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{Markers, Migration, MigrationAccess, NonPresent, Protection};
use crate::addr::PhysAddr;
use crate::descriptor::{Attributes, Descriptor, Kind, LevelEntries, MemoryType, bits};

/// Written down a second time, from `pgtable-prot.h` and `pgtable.h` of Linux.
#[test]
fn bits_are_where_linux_has_them() {
    let expected = [
        (bits::DIRTY, 55),
        (bits::SPECIAL, 56),
        (bits::UFFD_WP, 58),
        (bits::PROT_NONE, 58),
        (bits::FAULT_ON_ACCESS, 60),
        (bits::SWAP_UFFD_WP, 3),
    ];
    for (mask, position) in expected {
        assert_eq!(mask, 1 << position);
    }
    // PAGE_SHARED of a page of tagged memory at index 3, clean.
    let shared = Attributes::user(MemoryType::NormalTagged, Protection::READ.and(Protection::WRITE));
    assert_eq!(Descriptor::page(PhysAddr(0x4020_0000), shared).0, 0x0068_0000_4020_0fcf);
}

fn protection() -> impl Strategy<Value = Protection> {
    (0_u8..32).prop_map(|bits| Protection::from_bits(bits).unwrap())
}

/// A present leaf of any history.
fn leaf() -> impl Strategy<Value = Descriptor> {
    (protection(), any::<[bool; 5]>(), 0_u64..1 << 36).prop_map(|(protection, what, frame)| {
        let [old, dirty, special, uffd_wp, waits] = what;
        let mut leaf = Descriptor::page(PhysAddr(frame << 12), Attributes::user(MemoryType::Normal, protection));
        if old {
            leaf = leaf.old();
        }
        if dirty {
            leaf = leaf.dirty();
        }
        if special {
            leaf = leaf.special();
        }
        if uffd_wp {
            leaf = leaf.uffd_wp();
        }
        if waits {
            leaf = leaf.fault_on_access();
        }
        leaf
    })
}

/// The fields that no change of permissions may touch.
fn kept(leaf: Descriptor) -> (PhysAddr, [bool; 5]) {
    let what = [leaf.is_young(), leaf.is_dirty(), leaf.is_special(), leaf.is_uffd_wp(), leaf.is_fault_on_access()];
    (leaf.address(), what)
}

fn migration() -> impl Strategy<Value = Migration> {
    let access =
        prop_oneof![Just(MigrationAccess::Read), Just(MigrationAccess::ReadExclusive), Just(MigrationAccess::Write)];
    (0_u64..1 << 36, access, any::<[bool; 3]>()).prop_map(|(frame, access, [young, dirty, uffd_wp])| Migration {
        from: PhysAddr(frame << 12),
        access,
        young,
        dirty,
        uffd_wp,
    })
}

proptest! {
    #[test]
    fn a_change_of_protection_keeps_what_it_is_not_about(leaf in leaf(), through: [u8; 3]) {
        let attributes = |bits: u8| {
            Attributes::user(MemoryType::Normal, Protection::from_bits(bits % 32).unwrap())
        };
        let mut changed = leaf;
        for bits in through {
            changed = changed.modified(attributes(bits));
            // Whether an access is waited for is for what stores the entry to decide anew.
            assert_eq!((kept(changed).0, &kept(changed).1[..4]), (kept(leaf).0, &kept(leaf).1[..4]));
            assert!(!changed.is_fault_on_access());
            assert_eq!(changed.kind(LevelEntries::Pages), Kind::Leaf);
            let none = bits & 7 == 0;
            assert_eq!(changed.0 >> 50 & 1, u64::from(bits >> 4 & 1), "GP");
            assert_eq!(changed.is_inaccessible(), none);
            assert_eq!(changed.is_valid(), !changed.is_inaccessible());
            if !none {
                let may_write = bits & 2 != 0 && !leaf.is_uffd_wp();
                assert_eq!(changed.may_be_written(), may_write);
                assert_eq!(changed.is_user_executable(), bits & 4 != 0);
            }
        }
        // EL1 never executes it, and the hardware lets no store through that the software has not seen.
        assert!(!changed.is_executable());
        assert!(!changed.is_writable() || changed.is_dirty() && changed.may_be_written());
        assert_eq!(changed.modified(attributes(through[2])), changed, "once is enough");
    }

    #[test]
    fn what_waits_for_an_access_is_the_same_after_it(leaf in leaf()) {
        let accessible = leaf.accessible();
        assert!(accessible.is_valid());
        assert_eq!(accessible.inaccessible().accessible(), accessible);
        let waits = accessible.fault_on_access();
        assert_eq!(kept(waits).1[..4], kept(accessible).1[..4]);
        assert!(waits.is_fault_on_access() && !waits.may_be_written());
    }

    #[test]
    fn write_protection_forgets_no_store(leaf in leaf()) {
        let protected = leaf.write_protected();
        assert_eq!(kept(protected), kept(leaf));
        assert!(!protected.may_be_written() && !protected.is_writable());
        // And back: written before, so the hardware lets the next store through; else that one is noted as well.
        assert_eq!(protected.writable().is_writable(), leaf.is_dirty());
        assert!(!leaf.clean().is_dirty());
        assert!(!leaf.clean().is_writable());
    }

    #[test]
    fn a_mark_of_userfaultfd_comes_and_goes_alone(leaf in leaf()) {
        let marked = leaf.uffd_wp();
        assert!(marked.is_uffd_wp() && !marked.may_be_written());
        assert_eq!(marked.without_uffd_wp(), leaf.without_uffd_wp().write_protected());
    }

    #[test]
    fn entries_that_are_not_present_are_told_apart(migration in migration(), markers in 1_u8..8) {
        let moving = Descriptor::from(migration);
        assert_eq!(moving.non_present(), NonPresent::Migration(migration));
        assert_eq!(moving.is_uffd_wp(), migration.uffd_wp);
        let marker = Descriptor::from(Markers(markers));
        assert_eq!(marker.non_present(), NonPresent::Marker(Markers(markers)));
        for entry in [moving, marker, Descriptor::EMPTY] {
            assert!(!entry.is_present() && !entry.is_inaccessible());
            for entries in [LevelEntries::Tables, LevelEntries::TablesAndBlocks, LevelEntries::Pages] {
                assert_eq!(entry.kind(entries), Kind::None);
            }
        }
    }
}

#[test]
fn what_has_no_encoding_is_not_taken_for_empty() {
    assert_eq!(Descriptor::EMPTY.non_present(), NonPresent::Empty);
    assert_eq!(Descriptor(bits::UNLINKED).non_present(), NonPresent::Empty);
    for damaged in [1 << 12, 1 << 3, 1 << 6, 25 << 6 | 1 << 2 | 2 << 6, 31 << 6 | 1 << 20, 1 << 63] {
        assert_eq!(Descriptor(damaged).non_present(), NonPresent::Unknown, "{damaged:#x}");
    }
}
