//! A subscriber that prints its calls: `notify trace` in the monitor.

use granule_arch::addr::VirtAddr;

use super::{Range, Subscriber};

/// Prints every call, with the name of the space. It takes no lock but the console's, so it may be called anywhere.
#[derive(Debug)]
pub struct Trace {
    /// The name at the start of each line: the number of the process.
    pub name: u32,
}

/// Called before the others, so that its line stands before what they print.
pub const PRIORITY: i32 = i32::MAX;

impl Subscriber for Trace {
    fn invalidate_range_start(&self, range: &Range) {
        crate::println!("notify {}: start {} {:?}..{:?}", self.name, range.event, range.start, range.end);
    }

    fn invalidate_range_end(&self, range: &Range) {
        crate::println!("notify {}: end   {} {:?}..{:?}", self.name, range.event, range.start, range.end);
    }

    fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        crate::println!("notify {}: range {start:?}..{end:?}", self.name);
    }

    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        crate::println!("notify {}: tlbs  {start:?}..{end:?}", self.name);
    }

    fn release(&self) {
        crate::println!("notify {}: release", self.name);
    }
}
