//! Features and devices of this machine by machines.toml or boards.toml, from the boot arguments or the runner's hello.

use granule::bootargs;
use granule::sync::{IrqLock, rank};

/// A list of names, comma separated: longer than that of any machine or board, and short enough for the stack.
type Names = heapless::String<512>;

/// Features and devices, as the hello of a conversation has them.
static OF_THE_HELLO: IrqLock<[Names; 2], { rank::DEVICE }> = IrqLock::new([Names::new(), Names::new()]);

/// The names of the machine's features, or of its devices.
pub(crate) struct Promised(Names);

impl Promised {
    /// Features, by the names of [`KNOWN`](super::KNOWN).
    pub(crate) fn features() -> Self {
        Self::of("test.features", 0)
    }

    /// Devices on PCI Express.
    pub(crate) fn devices() -> Self {
        Self::of("test.devices", 1)
    }

    fn of(argument: &str, place: usize) -> Self {
        match bootargs::get(argument) {
            // A list without room is empty: then what the machine has is not promised, and the test fails.
            Some(list) => Self(list.try_into().unwrap_or_default()),
            None => Self(OF_THE_HELLO.lock()[place].clone()),
        }
    }

    /// The names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|name| !name.is_empty())
    }
}

/// Notes what a conversation's hello has.
pub(super) fn note(lists: [&str; 2]) {
    *OF_THE_HELLO.lock() = lists.map(|list| list.try_into().unwrap_or_default());
}
