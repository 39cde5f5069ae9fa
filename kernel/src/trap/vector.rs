//! The sixteen vectors, by their numbers.

use core::fmt;

/// Which of the sixteen vectors was taken (Arm ARM D1.4.1): 4 × [`Origin`] + [`ExceptionKind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vector {
    pub(super) origin: Origin,
    pub(super) kind: ExceptionKind,
}

/// Where the CPU was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// EL1 on SP_EL0, which the kernel never uses.
    El1t,
    /// The kernel.
    El1h,
    /// EL0, AArch64.
    El0,
    /// EL0, AArch32, which the kernel never enters.
    El0A32,
}

/// The kind of exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExceptionKind {
    Synchronous,
    Irq,
    Fiq,
    SError,
}

impl Vector {
    /// The vector with this number, of which only the low four bits count.
    pub(super) const fn from_number(number: u64) -> Self {
        let origin = match number >> 2 & 0b11 {
            0 => Origin::El1t,
            1 => Origin::El1h,
            2 => Origin::El0,
            _ => Origin::El0A32,
        };
        let kind = match number & 0b11 {
            0 => ExceptionKind::Synchronous,
            1 => ExceptionKind::Irq,
            2 => ExceptionKind::Fiq,
            _ => ExceptionKind::SError,
        };
        Self { origin, kind }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::El1t => "EL1 on SP_EL0",
            Self::El1h => "EL1",
            Self::El0 => "EL0",
            Self::El0A32 => "EL0 in AArch32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_numbered_as_the_architecture_lays_them_out() {
        assert_eq!(Vector::from_number(4), Vector { origin: Origin::El1h, kind: ExceptionKind::Synchronous });
        assert_eq!(Vector::from_number(5), Vector { origin: Origin::El1h, kind: ExceptionKind::Irq });
        assert_eq!(Vector::from_number(11), Vector { origin: Origin::El0, kind: ExceptionKind::SError });
        assert_eq!(Vector::from_number(16 + 4), Vector::from_number(4));
    }
}
