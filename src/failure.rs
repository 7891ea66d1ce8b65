//! Failures that end the process with a code of their own.

/// A failure whose exit code says more than 1.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something in the request is not usable as it is.
    #[error("{0}")]
    Usage(String),
    /// The request would endanger data.
    #[error("{0}")]
    Refused(String),
    /// A machine is what it was before, for the system that it should get has failed.
    #[error("{0}")]
    RolledBack(String),
    /// Nobody knows what a machine is now.
    #[error("{0}")]
    Unknown(String),
}

impl Failure {
    /// Returns what the process ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Refused(_) => 3,
            Failure::RolledBack(_) => 4,
            Failure::Unknown(_) => 5,
        }
    }
}

/// Returns a refusal for safety.
pub fn refused(sentence: impl Into<String>) -> anyhow::Error {
    Failure::Refused(sentence.into()).into()
}

/// Returns an error about the request itself.
pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
    Failure::Usage(sentence.into()).into()
}
