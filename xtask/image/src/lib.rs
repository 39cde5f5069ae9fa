//! `./x build`: the kernel, the image of the tests and that of the benches, from their sources to what boots; and the
//! checks that each image must pass.
//!
//! [`compile`] runs the compiler and puts the parts together: `image` makes an arm64 Image of an ELF file, [`symbols`]
//! fills its symbol table, `pe` makes an EFI application of it, [`initrd`] packs the programs for EL0. `words` and
//! `example` check instructions; [`code`] decodes those that move control.

#![forbid(unsafe_code)]

pub mod code;
pub mod compile;
mod example;
mod image;
pub mod initrd;
mod pe;
pub mod symbols;
mod words;
