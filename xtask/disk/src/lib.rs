//! Disk images that boards boot from, and the way of an image onto a card.
//!
//! In the order of a boot: [`board`] has the files that a board's firmware and its loader look for, [`layout`] puts
//! them into a FAT32 volume behind an MBR, [`device`] finds the disk of a device file and refuses those that this system
//! uses, and [`flash`] writes an image there, reads it back and compares.

#![forbid(unsafe_code)]

pub mod board;
pub mod device;
pub mod flash;
pub mod layout;
