//! A line through points, by least squares of the relative error: a point of 400 instructions counts as much as one of
//! 40,000.

use std::fmt;

/// `fixed + slope * size`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fit {
    /// At size 0.
    pub fixed: f64,
    /// For each unit.
    pub slope: f64,
    /// The largest relative error of a point.
    pub max_error: f64,
}

impl Fit {
    /// The line of these sizes and instructions. One point, or none, has no slope.
    pub fn of(points: &[(u32, u32)]) -> Self {
        // The sum of ((fixed + slope * n - y) / y)^2 is least where both its derivatives are zero: two linear
        // equations.
        let (mut w, mut wn, mut wnn, mut wy, mut wny) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(n, y) in points {
            let (n, y) = (f64::from(n), f64::from(y.max(1)));
            let weight = 1.0 / (y * y);
            w += weight;
            wn += weight * n;
            wnn += weight * n * n;
            wy += weight * y;
            wny += weight * n * y;
        }
        let determinant = w * wnn - wn * wn;
        let (fixed, slope) = if points.len() < 2 || determinant <= 0.0 {
            (points.first().map_or(0.0, |(_, y)| f64::from(*y)), 0.0)
        } else {
            ((wy * wnn - wny * wn) / determinant, (wny * w - wy * wn) / determinant)
        };
        let line = Self { fixed, slope, max_error: 0.0 };
        let error = |&(n, y): &(u32, u32)| (line.at(n) / f64::from(y.max(1)) - 1.0).abs();
        Self { max_error: points.iter().map(error).fold(0.0, f64::max), ..line }
    }

    /// The line at that size.
    pub fn at(&self, size: u32) -> f64 {
        self.fixed + self.slope * f64::from(size)
    }
}

/// `250 + 5.1 N`: as many digits of the slope as are significant, and none where it is flat.
impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slope.abs() < 0.0005 {
            return write!(f, "{:.0}", self.fixed);
        }
        let digits = if self.slope < 1.0 { 3 } else { 1 };
        write!(f, "{:.0} + {:.digits$} N", self.fixed, self.slope)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::Fit;

    #[test]
    fn a_flat_line_has_no_slope() {
        assert_eq!(Fit::of(&[(1, 155), (8, 155), (64, 155), (4096, 155)]).to_string(), "155");
        assert_eq!(Fit::of(&[(1, 202), (10, 220)]).to_string(), "200 + 2.0 N");
    }

    #[test]
    fn linux_numbers_give_linux_fit() {
        // The row `vmalloc alloc` of the reference, whose fit is 1499 + 95.9 N within 2 %.
        let fit = Fit::of(&[
            (1, 1557),
            (8, 2304),
            (16, 3096),
            (64, 7781),
            (512, 50_015),
            (4096, 392_064),
            (32_768, 3_116_817),
        ]);
        assert_eq!((fit.fixed.round() as u32, fit.slope.round() as u32), (1499, 96), "{fit:?}");
        assert!(fit.max_error < 0.025, "{fit:?}");
    }

    #[test]
    fn few_points_have_no_slope() {
        assert_eq!(Fit::of(&[]), Fit { fixed: 0.0, slope: 0.0, max_error: 0.0 });
        assert_eq!(Fit::of(&[(1, 70)]), Fit { fixed: 70.0, slope: 0.0, max_error: 0.0 });
        assert_eq!(Fit::of(&[(4, 70), (4, 70)]), Fit { fixed: 70.0, slope: 0.0, max_error: 0.0 });
    }

    proptest! {
        #[test]
        fn a_line_is_found_exactly(fixed in 1u32..100_000, slope in 0u32..1000) {
            let points = [1, 8, 16, 64, 512, 4096].map(|n| (n, fixed + slope * n));
            let fit = Fit::of(&points);
            prop_assert!((fit.fixed - f64::from(fixed)).abs() < 0.01, "{fit:?}");
            prop_assert!((fit.slope - f64::from(slope)).abs() < 0.01, "{fit:?}");
            prop_assert!(fit.max_error < 1e-6, "{fit:?}");
        }
    }
}
