//! Sizes as people write them: `512`, `64K`, `2G`, `1.5T`. Units are powers of 1024.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// NBD and the records of a volume count in these.
const SECTOR: u64 = 512;

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// The size of a volume in bytes: positive, a multiple of 512, below 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeSize(u64);

/// Why a size was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error("`{0}` is not a size; write bytes or a number with K, M, G, T or P, as in 64K or 1.5T")]
    Syntax(String),
    /// Nothing.
    #[error("the size is 0")]
    Zero,
    /// Not whole sectors.
    #[error("{0} bytes are not a multiple of 512")]
    Unaligned(u64),
    /// A fraction that does not give whole bytes.
    #[error("`{0}` is not a whole number of bytes")]
    Fraction(String),
    /// Beyond what an NBD client can address.
    #[error("`{0}` is larger than a volume can be (8 EiB less one sector)")]
    TooLarge(String),
}

impl VolumeSize {
    /// Takes a number of bytes.
    ///
    /// # Errors
    /// Zero, not a multiple of 512, or 2^63 and more.
    pub fn new(bytes: u64) -> Result<Self, SizeError> {
        if bytes == 0 {
            return Err(SizeError::Zero);
        }
        if bytes > i64::MAX as u64 {
            return Err(SizeError::TooLarge(bytes.to_string()));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(SizeError::Unaligned(bytes));
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for VolumeSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::new(parse_bytes(text)?)
    }
}

impl fmt::Display for VolumeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&human(self.0))
    }
}

/// Reads a number of bytes: digits, an optional fraction, an optional unit (`K`, `KB`, `KiB` and
/// so on, in either case).
///
/// # Errors
/// Not of that form, not whole bytes, or beyond 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.chars().take(40).collect());
    let upper = text.trim().to_ascii_uppercase();
    let split = upper.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(upper.len());
    let (number, unit) = upper.split_at(split);
    let shift = unit_shift(unit).ok_or_else(syntax)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let has_point = number.contains('.');
    if whole.is_empty() || (has_point && fraction.is_empty()) || fraction.contains('.') {
        return Err(syntax());
    }
    // Whole arithmetic: a float would round large sizes to something nobody wrote.
    let too_large = || SizeError::TooLarge(text.trim().chars().take(40).collect());
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 18 {
        return Err(SizeError::Fraction(text.trim().chars().take(40).collect()));
    }
    let whole = u128::from(whole.parse::<u64>().map_err(|_| too_large())?) << shift;
    let part: u128 =
        if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| syntax())? };
    let (part, scale) = (part << shift, 10u128.pow(fraction.len() as u32));
    if !part.is_multiple_of(scale) {
        return Err(SizeError::Fraction(text.trim().to_owned()));
    }
    u64::try_from(whole + part / scale).map_err(|_| too_large())
}

fn unit_shift(unit: &str) -> Option<u32> {
    if unit.is_empty() || unit == "B" {
        return Some(0);
    }
    let mut letters = unit.chars();
    let first = letters.next()?;
    let (_, shift) = UNITS.iter().find(|(letter, _)| *letter == first)?;
    matches!(letters.as_str(), "" | "B" | "IB").then_some(*shift)
}

/// A number of bytes for people: exact where it is a whole number of a unit, else with one digit
/// after the point.
pub fn human(bytes: u64) -> String {
    for (letter, shift) in UNITS.iter().rev() {
        let unit = 1u64 << shift;
        if bytes < unit {
            continue;
        }
        if bytes.is_multiple_of(unit) {
            return format!("{} {letter}iB", bytes / unit);
        }
        let tenths = (u128::from(bytes) * 10) >> shift;
        return format!("{}.{} {letter}iB", tenths / 10, tenths % 10);
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_in_every_documented_form() {
        let cases = [
            ("512", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("2gb", 2 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("1.50M", 3 << 19),
            (" 8M ", 8 << 20),
            ("1024B", 1024),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<VolumeSize>().map(VolumeSize::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        let fails = |text: &str| text.parse::<VolumeSize>().expect_err(text);
        assert_eq!(fails("0"), SizeError::Zero);
        assert_eq!(fails("0G"), SizeError::Zero);
        assert_eq!(fails("513"), SizeError::Unaligned(513));
        assert_eq!(fails("1.25K"), SizeError::Unaligned(1280));
        assert_eq!(fails("1.3K"), SizeError::Fraction("1.3K".into()));
        for text in ["", "G", ".5G", "1.G", "1..5G", "-1", "2X", "2GG", "2 G", "1e9", "0x10", "∞"]
        {
            assert!(matches!(fails(text), SizeError::Syntax(_)), "{text}: {:?}", fails(text));
        }
        for text in ["8192P", "16384P", "99999999999999999999", "9223372036854775808"] {
            assert!(matches!(fails(text), SizeError::TooLarge(_)), "{text}: {:?}", fails(text));
        }
        assert!("9223372036854775296".parse::<VolumeSize>().is_ok());
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(512), "512 B");
        assert_eq!(human(2 << 30), "2 GiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human((1 << 30) + 512), "1.0 GiB");
        assert_eq!(human(u64::MAX), "16383.9 PiB");
    }
}
