//! What can go wrong between us and a daemon.

use crate::store::path::StorePath;

/// Why a daemon did not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DaemonError {
    /// It refused or failed, and said why; it goes on listening unless it said so while we were sending.
    #[error("the Nix daemon said: {0}")]
    Said(String),
    #[error("the Nix daemon hung up; its log may tell why (journalctl --unit nix-daemon)")]
    HungUp,
    #[error("what answers is no Nix daemon")]
    NoDaemon,
    #[error(
        "the Nix daemon speaks version {major}.{minor} of its protocol and 1.32 is needed; \
         upgrade Nix there to 2.4 or newer"
    )]
    Version { major: u64, minor: u64 },
    /// It is broken, or something else that answers in its place.
    #[error("the Nix daemon does not keep to its protocol: {0}")]
    Garbled(&'static str),
    #[error("the connection to the Nix daemon failed: {0}")]
    Failed(String),
    #[error("the NAR of {path} is not {expected} bytes long, as is written of it")]
    Size { path: StorePath, expected: u64 },
}
