//! What the two ends say to each other. The grammar is told in [`super`].
//!
//! The order of variants and of fields is the format: new ones go to the end, and [`super::VERSION`] grows.
//! `golden/messages.txt` holds each message as it is sent.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::frame::MESSAGE_LIMIT;
use crate::facts::HostFacts;
use crate::facts::target::TargetFacts;
use crate::store::PathInfo;
use crate::store::hash::NarHash;
use crate::store::path::{HASH_LENGTH, STORE_DIR, StorePath};
use crate::sys::secret::Secret;
use crate::system::deployment::{Deployment, Ended};

/// Said by the near end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    Hello {
        version: u32,
    },
    /// What are you, and is this system valid in the root there?
    Look {
        root: String,
        system: StorePath,
    },
    /// Which of these do you lack, once your own caches have been asked for them if they shall be, and
    /// what have you that they may be made from?
    Missing {
        paths: Vec<StorePath>,
        substitute: bool,
    },
    /// Take these, each after all it refers to. Their NARs follow.
    Receive {
        paths: Vec<PathInfo>,
    },
    /// The data that follow are a delta to this one of them, counted from 0.
    Nar {
        index: u32,
        base: Option<StorePath>,
    },
    /// From here on again: what came since the delta that could not be used is to be forgotten.
    Again,
    /// That was the last.
    End,
    /// Make the system that was received the machine's.
    Deploy(Deployment),
    /// The machine can still be reached.
    Confirm {
        token: String,
    },
    /// Restart the machine.
    Reboot,
    /// What is this machine, that is to run another system? Paths may be sent into its memory then.
    Examine,
    /// Start this kernel with this initrd, in the place of all that runs. Both follow, the kernel first; to the
    /// initrd the far end adds itself, and the machine's host keys.
    Jump {
        command_line: String,
    },
    /// Perform this plan, on the disk that it names.
    Install(Installation),
}

/// A system that is to be put onto a disk of the far end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Installation {
    /// The plan, as JSON.
    pub plan: String,
    /// The closure, each path after all it refers to.
    pub paths: Vec<PathInfo>,
    /// The passphrases of encrypted partitions, by the names that the system opens them as.
    pub keys: Vec<(String, Secret)>,
    /// A private host key for the new system and its public line, if it is to have a new one.
    pub host_key: Option<(Secret, String)>,
}

/// Said by the far end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Hello {
        version: u32,
        program: Vec<u8>,
    },
    Facts(Box<HostFacts>),
    /// Which of the paths asked about are missing, counted from 0, and older ones of the same packages.
    Missing {
        #[serde(deserialize_with = "positions")]
        paths: Vec<u32>,
        similar: Vec<Similar>,
    },
    /// The delta to this path made something else; it has to come whole, behind all from `from` on.
    Unusable {
        index: u32,
        from: u32,
    },
    Received,
    /// A program of the far end said something.
    Output {
        program: String,
        line: String,
    },
    Warning {
        text: String,
    },
    /// What makes the system the machine's has begun, and can be asked about by this name.
    Started {
        token: String,
    },
    Ended(Ended),
    /// The machine is about to restart.
    Restarting,
    /// What was asked for could not be done; this is the last thing said.
    Failed {
        text: String,
        refused: bool,
    },
    Target(Box<TargetFacts>),
    /// All that runs is about to end.
    Jumping,
    /// The step of the plan with this number, counted from 0, begins.
    Begins {
        step: u32,
    },
    /// Of the closure these are still missing on the disk, counted from 0. They are to be sent now.
    Wanted {
        #[serde(deserialize_with = "positions")]
        paths: Vec<u32>,
    },
    /// The person's own files are to be sent now, as a tar archive.
    WantsExtraFiles,
    Installed,
}

/// A path that is valid at the far end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similar {
    pub path: StorePath,
    pub nar_hash: NarHash,
}

// More paths than fit into a message nobody asks about. All else takes little more room than in a
// message; a position there takes one byte.
const POSITIONS_LIMIT: usize = MESSAGE_LIMIT / (STORE_DIR.len() + HASH_LENGTH + "/-x".len());

fn positions<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
    struct Positions;
    impl<'de> Visitor<'de> for Positions {
        type Value = Vec<u32>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "at most {POSITIONS_LIMIT} positions")
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut all: S) -> Result<Vec<u32>, S::Error> {
            let mut positions = Vec::new();
            while let Some(position) = all.next_element()? {
                if positions.len() == POSITIONS_LIMIT {
                    return Err(S::Error::invalid_length(POSITIONS_LIMIT + 1, &self));
                }
                positions.push(position);
            }
            Ok(positions)
        }
    }
    from.deserialize_seq(Positions)
}
