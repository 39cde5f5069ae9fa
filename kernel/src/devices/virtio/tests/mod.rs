//! - `rings`: the queue against a device that keeps the rules, in any order, and against one that does not
//! - `registers`: how a device is brought up, and what is refused
//! - `faults`: requests whose data does not arrive at first

mod faults;
mod registers;
mod rings;
