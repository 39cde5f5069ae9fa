//! The instructions that call the firmware.

use smccc::error::success_or_error_32;

use crate::psci::{Conduit, Error};

/// A function of PSCI by its name.
macro_rules! call {
    ($conduit:expr, $function:ident($($argument:expr),*)) => {
        match $conduit {
            Conduit::Hvc => smccc::psci::$function::<smccc::Hvc>($($argument),*),
            Conduit::Smc => smccc::psci::$function::<smccc::Smc>($($argument),*),
        }
    };
}
pub(crate) use call;

/// A function of PSCI by its number.
pub(crate) fn call_by_number(conduit: Conduit, function: u32, some: [u64; 2]) -> Result<(), Error> {
    let mut arguments = [0; 17];
    arguments[..2].copy_from_slice(&some);
    let answer = match conduit {
        Conduit::Hvc => smccc::hvc64(function, arguments)[0],
        Conduit::Smc => smccc::smc64(function, arguments)[0],
    };
    // A function of 32 bits need not have set the upper half, and no error needs it.
    success_or_error_32(answer as u32)
}
