//! On the host there is no firmware: nothing is supported.

use crate::psci::{Conduit, Error};

/// A function of PSCI by its name.
macro_rules! call {
    ($conduit:expr, $function:ident($($argument:expr),*)) => {{
        let _ = ($conduit, $($argument),*);
        Err(Error::NotSupported)
    }};
}
pub(crate) use call;

/// A function of PSCI by its number.
pub(crate) fn call_by_number(_: Conduit, _: u32, _: [u64; 2]) -> Result<(), Error> {
    Err(Error::NotSupported)
}
