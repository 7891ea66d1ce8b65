//! Versions in their order, as the UAPI group's Version Format Specification has it
//! (<https://uapi-group.org/specifications/specs/version_format_specification/>), which systemd-boot sorts its entries by.

use std::cmp::Ordering;

/// Compares two versions; the newer one is the greater.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        let relevant = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte);
        let skip = |text: &[u8]| text.iter().position(relevant).unwrap_or(text.len());
        one = &one[skip(one)..];
        other = &other[skip(other)..];
        // A tilde makes a version older than the one without, which ends here.
        for mark in [b'~', 0, b'-', b'^', b'.'] {
            let has = |text: &[u8]| text.first().copied().unwrap_or(0) == mark;
            match (has(one), has(other)) {
                (false, false) => {}
                (true, true) if mark == 0 => return Ordering::Equal,
                (true, true) => (one, other) = (&one[1..], &other[1..]),
                (has, _) => return if has { Ordering::Less } else { Ordering::Greater },
            }
        }
        let numbers = [one, other].map(|text| text.first().is_some_and(u8::is_ascii_digit));
        let part = |text: &[u8]| {
            let is_part = |byte: &u8| match numbers.contains(&true) {
                true => byte.is_ascii_digit(),
                false => byte.is_ascii_alphabetic(),
            };
            text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len())
        };
        let (left, rest_of_one) = one.split_at(part(one));
        let (right, rest_of_other) = other.split_at(part(other));
        let order = match numbers.contains(&true) {
            true => {
                let plain = |text: &[u8]| {
                    let zeros = text.iter().take_while(|byte| **byte == b'0').count();
                    (text.len() - zeros, text[zeros..].to_vec())
                };
                // A number is newer than letters.
                left.is_empty().cmp(&right.is_empty()).reverse().then_with(|| plain(left).cmp(&plain(right)))
            }
            false => left.cmp(right),
        };
        if order != Ordering::Equal {
            return order;
        }
        (one, other) = (rest_of_one, rest_of_other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_the_order_of_the_specification() {
        // The specification's own list; each is older than the next.
        let sorted = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (at, one) in sorted.iter().enumerate() {
            for other in &sorted[at + 1..] {
                assert_eq!(compare(one, other), Ordering::Less, "{one} {other}");
                assert_eq!(compare(other, one), Ordering::Greater, "{other} {one}");
            }
            assert_eq!(compare(one, one), Ordering::Equal);
        }
        for (one, other, expected) in [
            ("B", "a", Ordering::Less),
            ("a", "1", Ordering::Less),
            ("1", "", Ordering::Greater),
            ("1~rc1", "1", Ordering::Less),
            ("1^post", "1", Ordering::Greater),
            ("1-2", "1.2", Ordering::Less),
            ("01", "1", Ordering::Equal),
            ("1_2", "1 2", Ordering::Equal),
            (
                "Generation 10 25.11, built on 2026-01-01",
                "Generation 9 25.11, built on 2026-02-01",
                Ordering::Greater,
            ),
            ("nixos-generation-10.conf", "nixos-generation-9.conf", Ordering::Greater),
        ] {
            assert_eq!(compare(one, other), expected, "{one} {other}");
        }
    }
}
