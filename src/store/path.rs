//! Store paths: `/nix/store/<32 nix32 characters>-<name>`, parsed once.
//!
//! Source: `src/libstore/path.cc` of Nix.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where every store lives, seen from its own root.
pub const STORE_DIR: &str = "/nix/store";

/// The digits of nix32, in order: no e, o, t, u.
pub const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

pub const HASH_LENGTH: usize = 32;
const NAME_LIMIT: usize = 211;

/// The name of a store object, without the directory: `<hash>-<name>`.
///
/// Clones share the text: a closure names each of its paths as often as others refer to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(Arc<str>);

/// A text that is no store path.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a store path; it should look like /nix/store/<hash>-<name>")]
pub struct StorePathError(String);

impl StorePath {
    /// Parses an absolute store path. What lies below a store object is refused.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        text.strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|base| Self::from_base_name(base).ok())
            .ok_or_else(|| StorePathError(text.to_owned()))
    }

    /// Parses `<hash>-<name>`.
    pub fn from_base_name(base: &str) -> Result<Self, StorePathError> {
        let valid = match base.split_at_checked(HASH_LENGTH) {
            Some((hash, rest)) => {
                hash.bytes().all(|b| NIX32.contains(&b)) && rest.strip_prefix('-').is_some_and(is_name)
            }
            None => false,
        };
        if valid { Ok(StorePath(base.into())) } else { Err(StorePathError(base.to_owned())) }
    }

    /// Returns the store object that `path`, seen from its root, is or lies in.
    pub fn containing(path: &Path) -> Option<Self> {
        let rest = path.strip_prefix(STORE_DIR).ok()?;
        Self::from_base_name(rest.components().next()?.as_os_str().to_str()?).ok()
    }

    /// Returns `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// Returns the 32 characters that references are found by.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LENGTH]
    }

    /// Returns what follows the hash, such as `coreutils-9.5`.
    pub fn name(&self) -> &str {
        &self.0[HASH_LENGTH + 1..]
    }

    /// Returns where the object is when its root is mounted at `root`.
    pub fn in_root(&self, root: &Path) -> PathBuf {
        root.join("nix/store").join(&*self.0)
    }
}

fn is_name(name: &str) -> bool {
    let dots = matches!(name, "." | "..") || name.starts_with(".-") || name.starts_with("..-");
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b);
    !name.is_empty() && name.len() <= NAME_LIMIT && !dots && name.bytes().all(allowed)
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.0)
    }
}

impl TryFrom<String> for StorePath {
    type Error = StorePathError;
    fn try_from(text: String) -> Result<Self, StorePathError> {
        Self::parse(&text)
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> String {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj";

    #[test]
    fn store_paths_are_parsed_once_and_print_as_they_were() {
        let text = format!("/nix/store/{HASH}-bash-5.2+p1_x?=");
        let path = StorePath::parse(&text).unwrap();
        assert_eq!(path.to_string(), text);
        assert_eq!((path.hash_part(), path.name()), (HASH, "bash-5.2+p1_x?="));
        assert_eq!(path.in_root(Path::new("/mnt")), Path::new(&format!("/mnt{text}")));
        assert_eq!(StorePath::containing(Path::new(&format!("{text}/bin/sh"))), Some(path));
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        let long = "x".repeat(NAME_LIMIT + 1);
        for base in [
            "",
            "x",
            HASH,
            &format!("{HASH}-"),
            &format!("{HASH}-."),
            &format!("{HASH}-.."),
            &format!("{HASH}-.-x"),
            &format!("{HASH}-a/b"),
            &format!("{HASH}-a b"),
            &format!("{HASH}-ä"),
            &format!("{HASH}-{long}"),
            &format!("{}-x", HASH.replace('0', "e")),
            &format!("{}-x", HASH.to_uppercase()),
            "äääääääääääääääää-x",
        ] {
            assert!(StorePath::from_base_name(base).is_err(), "{base}");
            assert!(StorePath::parse(&format!("/nix/store/{base}")).is_err(), "{base}");
        }
        assert!(StorePath::parse(&format!("/gnu/store/{HASH}-x")).is_err());
    }
}
