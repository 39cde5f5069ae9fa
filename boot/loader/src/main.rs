//! The loader on a card: a kernel comes over the serial line, by `./x boot --serial`, and is entered in the loader's
//! place.
//!
//! The conversation is that of the tests over a wire ([`granule_protocol`]): the loader asks until a load begins,
//! answers each request, and asks again after a silence or a line that arrived damaged. Nothing is entered that is not
//! whole.

#![cfg_attr(target_os = "none", no_std, no_main)]

/// On the host the image is nothing: it is built for the target alone.
#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod loaded;
#[cfg(target_os = "none")]
mod serve;
