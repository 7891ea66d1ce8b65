//! Patterns of aliases, as fnmatch(3) reads them for modprobe.

/// Tells whether a text matches a pattern of `*`, `?`, `[a-f]`, `[!a-f]` and `\`.
///
/// Takes at most the product of both lengths in steps: the text comes from a machine that is not
/// trusted.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    // Where to go on when all after the last star fits nowhere yet: behind it, one byte later.
    let mut retry = None;
    loop {
        let fits = match pattern.get(at) {
            None if from == text.len() => return true,
            None => None,
            Some(b'*') => {
                at += 1;
                retry = Some((at, from));
                continue;
            }
            Some(_) => text.get(from).and_then(|&byte| one(&pattern[at..], byte)),
        };
        match (fits, retry) {
            (Some(length), _) => (at, from) = (at + length, from + 1),
            (None, Some((behind, start))) if start < text.len() => {
                retry = Some((behind, start + 1));
                (at, from) = (behind, start + 1);
            }
            (None, _) => return false,
        }
    }
}

/// Matches one byte, and returns the length of the pattern's part that did.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern {
        [b'?', ..] => Some(1),
        [b'\\', ref rest @ ..] => (rest.first() == Some(&byte)).then_some(2),
        [b'[', ref rest @ ..] => match bracket(rest, byte) {
            Some((true, length)) => Some(1 + length),
            Some((false, _)) => None,
            // One that is never closed stands for itself.
            None => (byte == b'[').then_some(1),
        },
        [literal, ..] => (literal == byte).then_some(1),
        [] => None,
    }
}

/// Matches a byte against what follows a `[`, and returns the length up to and with its `]`.
fn bracket(inside: &[u8], byte: u8) -> Option<(bool, usize)> {
    let inverted = matches!(inside.first(), Some(b'!' | b'^'));
    let start = usize::from(inverted);
    let mut found = false;
    let mut at = start;
    loop {
        match *inside.get(at..)? {
            [b']', ..] if at > start => return Some((found != inverted, at + 1)),
            [low, b'-', high, ..] if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            [single, ..] => {
                found |= single == byte;
                at += 1;
            }
            [] => return None,
        }
    }
}

/// Returns a name or a pattern as it is compared: `-` and `_` are the same, but not within brackets.
pub fn normal(text: &str) -> String {
    let mut depth = 0_u32;
    text.chars()
        .map(|char| {
            match char {
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                '-' if depth == 0 => return '_',
                _ => {}
            }
            char
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn texts_match_as_the_c_library_says() {
        let patterns = [
            "",
            "*",
            "**",
            "?",
            "a",
            "a*",
            "*a",
            "*a*b*",
            "a?c",
            "[ab]",
            "[!ab]",
            "[^ab]",
            "[a-c]x",
            "[]a]",
            "[!]a]",
            "[a",
            "[-a]",
            "[a-]",
            "\\*",
            "\\",
            "a\\?b",
            "*[0-9A-Fa-f]*",
            "?*?",
            "*abab",
            "usb:v*p*d*ic08isc06*",
            "pci:v00001AF4d*sv*sd*bc*sc*i*",
            "dmi:*:[bs]vnD[Ee][Ll][Ll]*:*",
            "d0[0-2]*",
            "[0-9]",
            "*.*",
            "a/b*",
        ];
        let texts = [
            "",
            "a",
            "b",
            "c",
            "ab",
            "abc",
            "ax",
            "cx",
            "dx",
            "]",
            "[a",
            "[",
            "-",
            "*",
            "\\",
            "a?b",
            "a*b",
            "a.b",
            "aababab",
            "usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00",
            "usb:v0781p5581d0100ic08isc05",
            "pci:v00001AF4d00001042sv00001AF4sd00001042bc01sc80i00",
            "pci:v00008086d00001042sv1sd1bc01sc80i00",
            "dmi:bvnX:svnDELL:pn",
            "dmi:bvnX:svnHP:pn",
            "d0150",
            "d0350",
            ".hidden",
            "a/b/c",
            "x9y",
        ];
        for pattern in patterns {
            for text in texts {
                let (c_pattern, c_text) = (CString::new(pattern).unwrap(), CString::new(text).unwrap());
                // SAFETY: both are C strings that outlive the call.
                let status = unsafe { nix::libc::fnmatch(c_pattern.as_ptr(), c_text.as_ptr(), 0) };
                assert_eq!(matches(pattern, text), status == 0, "{pattern:?} on {text:?}");
            }
        }
    }

    #[test]
    fn a_hostile_text_does_not_take_forever() {
        let text = "a".repeat(1024);
        assert!(!matches(&"*a".repeat(500).replace("*a*a", "*aa*a"), &format!("{text}b")));
    }

    #[test]
    fn dashes_are_underscores_outside_of_brackets() {
        for (text, wanted) in [
            ("xen-blkfront", "xen_blkfront"),
            ("scsi:t-0x00*", "scsi:t_0x00*"),
            ("usb:d0[0-2]-x", "usb:d0[0-2]_x"),
            ("a]-b", "a]_b"),
        ] {
            assert_eq!(normal(text), wanted);
        }
    }
}
