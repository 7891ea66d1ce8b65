//! Sizes in bytes: how people write them and how we print them.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Prints as `3.2 GiB`; arithmetic saturates, for a size never wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A text that is no size.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a size; write a number with K, M, G or T (powers of 1024), such as 512M or 8G")]
pub struct SizeError(String);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Bytes {
    pub const fn kib(n: u64) -> Self {
        Bytes(n << 10)
    }

    pub const fn mib(n: u64) -> Self {
        Bytes(n << 20)
    }

    pub const fn gib(n: u64) -> Self {
        Bytes(n << 30)
    }

    /// Returns the size rounded up to a whole multiple of `unit`.
    pub const fn round_up(self, unit: Bytes) -> Self {
        Bytes(self.0.div_ceil(unit.0).saturating_mul(unit.0))
    }

    /// Returns the size rounded down to a whole multiple of `unit`.
    pub const fn round_down(self, unit: Bytes) -> Self {
        Bytes(self.0 / unit.0 * unit.0)
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    /// Parses `512M`, `8G`, `1.5 GiB` or a plain number of bytes. Units are powers of 1024.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text.trim()[digits.len()..].to_ascii_uppercase();
        let shift = match unit.as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(error()),
        };
        let digits = digits.trim_end();
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Bytes).ok_or_else(error);
        }
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let value: f64 = digits.parse().ok().filter(|_| plain && shift > 0).ok_or_else(error)?;
        let bytes = value * (1_u64 << shift) as f64;
        if bytes < u64::MAX as f64 { Ok(Bytes(bytes as u64)) } else { Err(error()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift > 0).unwrap_or(("B", 0));
        let text = match shift {
            0 => format!("{} B", self.0),
            _ => {
                let value = self.0 as f64 / (1_u64 << shift) as f64;
                let text = format!("{value:.1}");
                format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
            }
        };
        f.pad(&text)
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Bytes;
    fn sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;
    fn mul(self, factor: u64) -> Bytes {
        Bytes(self.0.saturating_mul(factor))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(sizes: I) -> Bytes {
        sizes.fold(Bytes(0), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("8G", 8 << 30),
            ("1.5GiB", 3 << 29),
            ("2 TiB", 2 << 40),
            ("64k", 64 << 10),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "G", "-1", "1e3M", "ten", "5X", "1.5", "99999999999T", "100%", "inf G"] {
            let error = text.parse::<Bytes>().expect_err(text).to_string();
            assert!(error.contains("such as 512M"), "{error}");
        }
    }

    #[test]
    fn sizes_print_with_one_decimal() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3_435_973_836, "3.2 GiB"), (1 << 40, "1 TiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
