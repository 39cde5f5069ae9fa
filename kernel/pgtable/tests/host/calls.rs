//! Calls at random places, in one window that holds every leaf size.
//!
//! The tests of the model machine draw the same calls.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Attributes;
use granule_pgtable::{Change, Geometry, PageRange};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use crate::{DATA, RODATA, TEXT};

/// One call. Places and sizes are in units of a leaf size, so that alignment happens as often as misalignment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Map { place: Place, physical: u64, attributes: usize, pages: bool, tables: usize },
    Unmap(Place),
    Update(Place, usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) unit: usize,
    pub(crate) start: u64,
    pub(crate) count: u64,
    /// Pages added at the start, and at the end.
    pub(crate) ragged: (u64, u64),
}

pub(crate) const ATTRIBUTES: [Attributes; 3] = [DATA, RODATA, TEXT];
pub(crate) const CHANGES: [Change; 6] =
    [Change::READ_ONLY, Change::READ_WRITE, Change::EXECUTABLE, Change::NO_EXECUTE, Change::VALID, Change::INVALID];

pub(crate) fn units<G: Geometry>() -> [u64; 4] {
    [G::PAGE_SIZE, G::group_size(3), G::entry_size(2), G::group_size(2)]
}

/// Twice the largest group, across the boundary of a table of level 2 where there is one.
pub(crate) fn window<G: Geometry>() -> PageRange<G> {
    let size = (2 * G::group_size(2)).min(1 << G::VA_BITS);
    let boundary = if G::FIRST_LEVEL < 2 { G::entry_size(1) } else { size / 2 };
    PageRange::new(VirtAddr(boundary - size / 2), size).unwrap()
}

impl Place {
    pub(crate) fn range<G: Geometry>(self) -> Option<PageRange<G>> {
        let window = window::<G>();
        let unit = units::<G>()[self.unit];
        let places = window.size() / unit;
        // Small units near the middle of the window, where the others meet.
        let start = (places / 2).saturating_sub(4) + self.start % places.min(8);
        let start = window.start().0 + start * unit + self.ragged.0 * G::PAGE_SIZE;
        let size = (self.count * unit + self.ragged.1 * G::PAGE_SIZE).saturating_sub(self.ragged.0 * G::PAGE_SIZE);
        let size = size.min((window.start().0 + window.size()).saturating_sub(start));
        PageRange::new(VirtAddr(start), size).ok()
    }
}

pub(crate) fn place() -> impl Strategy<Value = Place> {
    let ragged = prop_oneof![3 => Just((0, 0)), 1 => (0_u64..3, 0_u64..3)];
    (0_usize..4, 0_u64..8, 1_u64..4, ragged).prop_map(|(unit, start, count, ragged)| Place {
        unit,
        start,
        count,
        ragged,
    })
}

pub(crate) fn call() -> impl Strategy<Value = Call> {
    let tables = prop_oneof![1 => 0_usize..4, 4 => Just(usize::MAX)];
    let map = (place(), 0_u64..64, 0_usize..3, any::<bool>(), tables).prop_map(
        |(place, physical, attributes, pages, tables)| Call::Map { place, physical, attributes, pages, tables },
    );
    prop_oneof![
        3 => map,
        1 => place().prop_map(Call::Unmap),
        4 => (place(), 0..CHANGES.len()).prop_map(|(place, change)| Call::Update(place, change)),
    ]
}
