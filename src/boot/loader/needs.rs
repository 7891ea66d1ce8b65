//! Needs: the files outside the store that a boot loader's installer reads.
//!
//! A new root has none of them by itself, and without them the installer fails when the disk is written already.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::recognise::{self, Text};
use crate::store::path::{STORE_DIR, StorePath};
use crate::sys::inside;

/// A file or directory that must be in the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    pub path: PathBuf,
    /// What reads it.
    pub by: String,
}

/// Finds what the installer of `system`'s boot loader reads from outside the store.
pub fn needs(root: &Path, system: &StorePath) -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    for toplevel in toplevels(root, system)? {
        let script = toplevel.join("append-initrd-secrets");
        // Without it the initrd is taken as it is.
        let Ok(text) = inside::read(root, &script, recognise::TEXT_LIMIT) else { continue };
        needs.extend(of_secrets(&String::from_utf8_lossy(&text)));
    }
    needs.extend(recognise::installer_texts(root, system)?.iter().flat_map(of_lanzaboote));
    let mut known = Vec::new();
    needs.retain(|need| {
        let is_new = !known.contains(&need.path);
        known.push(need.path.clone());
        is_new
    });
    Ok(needs)
}

/// Returns the places of the system and of its specialisations, each of which boots by itself.
pub fn toplevels(root: &Path, system: &StorePath) -> Result<Vec<PathBuf>> {
    let top = PathBuf::from(system.to_string());
    let mut all = vec![top.clone()];
    let children = top.join("specialisation");
    if let Ok(dir) = inside::open(root, &children, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        let dir = inside::path_of(&dir).context("finding the specialisations")?;
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let name = entry.with_context(|| format!("listing {}", dir.display()))?.file_name();
            all.push(children.join(name));
        }
    }
    Ok(all)
}

/// Reads NixOS's `append-initrd-secrets`: each secret is copied by `cp -a SOURCE DESTINATION`.
fn of_secrets(script: &str) -> Vec<Need> {
    let need = |line: &str| {
        let source = words(line.trim().strip_prefix("cp -a ")?).into_iter().next()?;
        outside_store(&source, "the system's append-initrd-secrets")
    };
    script.lines().filter_map(need).collect()
}

/// Reads lanzaboote's hook: the keys that it signs with are options of `lzbt install`.
fn of_lanzaboote(text: &Text) -> Vec<Need> {
    if !text.text.contains("lzbt") {
        return Vec::new();
    }
    let words = words(&text.text);
    // Without keys it signs nothing then.
    if words.iter().any(|word| word == "--allow-unsigned") {
        return Vec::new();
    }
    let pairs = words.iter().zip(words.iter().skip(1));
    pairs
        .filter(|(option, _)| matches!(option.as_str(), "--public-key" | "--private-key"))
        .filter_map(|(_, key)| outside_store(key, "lanzaboote"))
        .collect()
}

fn outside_store(path: &str, by: &str) -> Option<Need> {
    let path = Path::new(path);
    // What the shell puts together cannot be known here.
    let is_plain =
        path.is_absolute() && !path.starts_with(STORE_DIR) && !path.to_string_lossy().contains('$');
    is_plain.then(|| Need { path: path.to_owned(), by: by.to_owned() })
}

/// Splits a script's text into words as a shell does, as far as that is done without expanding anything.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(needs: Vec<Need>) -> Vec<String> {
        needs.into_iter().map(|need| need.path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn secrets_are_what_is_copied_from_outside_the_store() {
        let script = r#"
            tmp=$(mktemp -d ${TMPDIR:-/tmp}/initrd-secrets.XXXXXXXXXX)
            mkdir -p $(dirname "$tmp/.initrd-secrets//etc/ssh/ssh_host_ed25519_key")
            cp -a /etc/secrets/initrd/ssh_host_ed25519_key "$tmp/.initrd-secrets//etc/ssh/ssh_host_ed25519_key"
            cp -a '/persist/with blank' "$tmp/.initrd-secrets//x"
            cp -a /nix/store/0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-key "$tmp/.initrd-secrets//y"
            cp -a $tmp/other "$tmp/z"
            (cd "$tmp" && find . -mindepth 1 -print0 | cpio -o) | gzip >> "$1"
        "#;
        let expected = ["/etc/secrets/initrd/ssh_host_ed25519_key", "/persist/with blank"];
        assert_eq!(paths(of_secrets(script)), expected);
        assert_eq!(of_secrets("exit 0\n"), []);
    }

    #[test]
    fn lanzabootes_keys_are_options_of_its_hook() {
        let hook = "#!/bin/sh\n/nix/store/l-lzbt/bin/lzbt install \\\n  --public-key /var/lib/sbctl/keys/db/db.pem \\\n  \
                    --private-key '/var/lib/sbctl/keys/db/db.key' \\\n  /boot \\\n  /nix/var/nix/profiles/system-*-link\n";
        let text = |text: &str| Text { path: "hook".to_owned(), text: text.to_owned() };
        let expected = ["/var/lib/sbctl/keys/db/db.pem", "/var/lib/sbctl/keys/db/db.key"];
        assert_eq!(paths(of_lanzaboote(&text(hook))), expected);
        assert_eq!(of_lanzaboote(&text(&hook.replace("install", "install --allow-unsigned"))), []);
        assert_eq!(of_lanzaboote(&text("sign --private-key /etc/key")), []);
    }

    #[test]
    fn words_are_a_shells() {
        for (text, expected) in [
            ("a 'b c' \"d \\\" e\" f\\ g", &["a", "b c", "d \" e", "f g"][..]),
            ("a\\\n b", &["a", "b"]),
            ("''", &[""]),
            ("/x\"/y z\"", &["/x/y z"]),
            ("", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }
}
