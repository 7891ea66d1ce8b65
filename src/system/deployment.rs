//! What is asked of a machine that gets a new system, and what comes of it, as plain data.

use serde::{Deserialize, Serialize};

use crate::store::path::StorePath;

/// What shall become of a system that the machine has in its store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub system: StorePath,
    pub action: Action,
    /// Whether the machine goes back to what it ran before, if the new system fails or nobody confirms.
    pub rollback: bool,
    /// How long the machine waits for a confirmation, in seconds.
    pub confirm_timeout: u32,
    /// How long the activation may take, in seconds.
    pub activation_timeout: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Run it now, and from the next boot on.
    Switch,
    /// Run it from the next boot on.
    Boot,
    /// Run it now, until the next boot.
    Test,
    /// Tell what running it would change.
    DryActivate,
}

impl Action {
    /// Tells whether the running machine changes, so that it may become unreachable.
    pub fn activates(self) -> bool {
        matches!(self, Action::Switch | Action::Test)
    }

    /// Tells whether the system becomes a generation of the profile.
    pub fn keeps(self) -> bool {
        matches!(self, Action::Switch | Action::Boot)
    }
}

/// How a deployment stands where it does not go on by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// The system runs, and the machine waits for a confirmation.
    Unconfirmed,
    Done,
    /// The machine is what it was before, for this reason.
    RolledBack {
        reason: String,
    },
    /// The machine is as the reason says.
    Failed {
        reason: String,
    },
    /// The system itself refused to be activated, and nothing was changed.
    Refused {
        reason: String,
    },
}
