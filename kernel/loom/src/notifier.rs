//! The kernel's own notifier chain.

pub use granule::mm::notifier::{Event, Range, Subscriber};

#[path = "../../src/mm/notifier/chain.rs"]
mod chain;

pub use chain::{NotifierChain, Section, SubscribeError, Subscription};
