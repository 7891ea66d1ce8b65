//! Secrets: passphrases in memory, which nothing prints and whose bytes do not outlive them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

// What cryptsetup reads of a key file at the most.
const LIMIT: usize = 8 << 20;

/// Bytes that are forgotten when they are dropped.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>")]
pub struct Secret(Vec<u8>);

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Secret {
        Secret::new(bytes)
    }
}

/// Keeps the memory of this process out of cores, and others of its user from looking into it.
fn leave_no_core() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Where the kernel hands cores to a program, a limit of their size does not count, and the other does. What
        // fails here makes nothing worse than it was.
        let _ = nix::sys::prctl::set_dumpable(false);
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    });
}

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        leave_no_core();
        Secret(bytes)
    }

    /// Reads a file to its end; it may be a pipe.
    pub fn read(path: &Path) -> Result<Self> {
        let context = || format!("reading the key in {}", path.display());
        let mut file = File::open(path).with_context(context)?;
        // Of one piece from the beginning: growing would leave copies behind.
        let mut secret = Secret::new(vec![0; LIMIT + 1]);
        let mut length = 0;
        while let count @ 1.. = file.read(&mut secret.0[length..]).with_context(context)? {
            length += count;
        }
        secret.0.truncate(length);
        Ok(secret)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells why this is no passphrase, in words that follow its name.
    pub fn fault(&self) -> Option<&'static str> {
        let is_a_line = |text: &[u8]| !text.is_empty() && !text.iter().any(u8::is_ascii_control);
        match self.0.as_slice() {
            [] => Some("is empty; write a passphrase"),
            bytes if bytes.len() > LIMIT => Some("is larger than the 8 MiB that cryptsetup reads"),
            [line @ .., b'\n'] if is_a_line(line) => Some(
                "ends with a newline, which nobody can type at boot; write it without, as printf %s does",
            ),
            _ => None,
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // What is about to be freed may be left as it was, for all the compiler knows.
        std::hint::black_box(&self.0);
        compiler_fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_core_once_there_is_a_secret() {
        use nix::sys::resource::{Resource, getrlimit};
        let secret: Secret = serde_json::from_str("[1,2]").unwrap();
        assert_eq!(secret.bytes(), [1, 2]);
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }

    #[test]
    fn a_passphrase_is_something_that_can_be_typed_or_a_key_that_need_not_be() {
        for (bytes, fault) in [
            (&b"correct horse"[..], None),
            (b"", Some("is empty")),
            (b"correct horse\n", Some("ends with a newline")),
            (b"first\nsecond\n", None),
            (b"\x00\x01random\n", None),
            (b"\n", None),
        ] {
            let told = Secret::new(bytes.to_vec()).fault();
            assert_eq!(
                told.map(|told| fault.is_some_and(|fault| told.starts_with(fault))),
                fault.map(|_| true)
            );
        }
    }

    #[test]
    fn a_secret_is_read_whole_and_printed_never() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "poison").unwrap();
        let secret = Secret::read(file.path()).unwrap();
        assert_eq!(secret.bytes(), b"poison");
        assert!(!format!("{secret:?}").contains("poison"));
        let error = Secret::read(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "reading the key in /nowhere");
    }
}
