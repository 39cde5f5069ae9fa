//! Nothing of the host's is speculated.

/// `$index` if it is below the operand, 0 otherwise.
macro_rules! masked {
    ($index:expr, $size:expr, $($operand:tt)*) => {
        if $index < $size { $index } else { 0 }
    };
}
pub(crate) use masked;
