//! The sequence of CSDB.

/// `$index` if it is below the operand, 0 otherwise: in what is speculated too.
macro_rules! masked {
    ($index:expr, $size:expr, $($operand:tt)*) => {{
        let masked: usize;
        // SAFETY: a comparison and a selection.
        unsafe {
            core::arch::asm!(
                "cmp {index}, {size}",
                "csel {masked}, {index}, xzr, lo",
                "hint #20",
                index = in(reg) $index, size = $($operand)*, masked = out(reg) masked,
                options(pure, nomem, nostack)
            );
        }
        masked
    }};
}
pub(crate) use masked;
