//! Words of a POSIX shell.

/// Quotes a word for a POSIX shell. Options are not the shell's business: a word that may start with a
/// dash stands behind its option or after `--`.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_quoted_word_is_the_same_word_to_the_shell() {
        for word in [
            "plain",
            "",
            "two  words",
            "it's",
            "''",
            "new\nline\n",
            "$HOME `id` $(id)",
            "-leading",
            "--",
            "back\\slash",
            "\"",
            "*",
            "~",
            "#",
            "!",
            "a;b",
            "größe",
            "tab\t",
        ] {
            let script = format!("printf '%s.' {}", quote(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{word}."), "{script}");
        }
        for plain in ["plain", "/dev/sda1", "-leading", "uuid=6e0a"] {
            assert_eq!(quote(plain), plain);
        }
    }
}
