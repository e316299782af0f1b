//! Arithmetic in GF(2^16) as the library represents it: addition is XOR, multiplication goes
//! through its tables of logarithms.

use reed_solomon_simd::engine::GF_MODULUS;
use reed_solomon_simd::engine::tables::get_exp_log;

pub(super) fn mul(a: u16, b: u16) -> u16 {
    if a == 0 || b == 0 {
        return 0;
    }
    let tables = get_exp_log();
    let sum = u32::from(tables.log[usize::from(a)]) + u32::from(tables.log[usize::from(b)]);
    tables.exp[(sum % u32::from(GF_MODULUS)) as usize]
}

/// `1 / a`, for `a` not zero.
fn inverse(a: u16) -> u16 {
    let tables = get_exp_log();
    let log = tables.log[usize::from(a)] % GF_MODULUS;
    tables.exp[usize::from((GF_MODULUS - log) % GF_MODULUS)]
}

/// Inverts a square matrix by Gauss-Jordan elimination; `None` if it is singular.
pub(super) fn invert(mut m: Vec<Vec<u16>>) -> Option<Vec<Vec<u16>>> {
    let size = m.len();
    let mut out: Vec<Vec<u16>> =
        (0..size).map(|i| (0..size).map(|j| u16::from(i == j)).collect()).collect();
    for column in 0..size {
        let pivot = (column..size).find(|row| m[*row][column] != 0)?;
        m.swap(column, pivot);
        out.swap(column, pivot);
        let scale = inverse(m[column][column]);
        for value in m[column].iter_mut().chain(&mut out[column]) {
            *value = mul(*value, scale);
        }
        for row in (0..size).filter(|row| *row != column) {
            let factor = m[row][column];
            for j in 0..size {
                m[row][j] ^= mul(factor, m[column][j]);
                out[row][j] ^= mul(factor, out[column][j]);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_its_inverse() {
        for a in 1..=u16::MAX {
            assert_eq!(mul(a, inverse(a)), 1, "{a}");
            assert_eq!(mul(a, 1), a);
        }
        assert_eq!((mul(0, 5), mul(5, 0)), (0, 0));
    }

    #[test]
    fn multiplication_is_distributive_and_associative() {
        let mut x = 1u64;
        let mut draw = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as u16
        };
        for _ in 0..100_000 {
            let (a, b, c) = (draw(), draw(), draw());
            assert_eq!(mul(a, b ^ c), mul(a, b) ^ mul(a, c));
            assert_eq!(mul(a, mul(b, c)), mul(mul(a, b), c));
        }
    }

    #[test]
    fn singular_matrices_are_told() {
        assert_eq!(invert(vec![vec![3, 5], vec![3, 5]]), None);
        assert_eq!(invert(vec![vec![0, 2], vec![1, 0]]).map(|m| m[0].clone()), Some(vec![0, 1]));
    }
}
