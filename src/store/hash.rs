//! The SHA-256 of a NAR, as the Nix database writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The SHA-256 of a store object's NAR. Prints as `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NarHash(pub [u8; 32]);

/// A text that is no hash.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a NAR hash; it should be sha256: and 64 hex digits")]
pub struct NarHashError(String);

impl FromStr for NarHash {
    type Err = NarHashError;

    fn from_str(text: &str) -> Result<Self, NarHashError> {
        let error = || NarHashError(text.to_owned());
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(NarHash(hash))
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for NarHash {
    type Error = NarHashError;
    fn try_from(text: String) -> Result<Self, NarHashError> {
        text.parse()
    }
}

impl From<NarHash> for String {
    fn from(hash: NarHash) -> String {
        hash.to_string()
    }
}
