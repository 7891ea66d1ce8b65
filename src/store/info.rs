//! What a database knows about a store path.

use serde::{Deserialize, Serialize};

use super::hash::NarHash;
use super::path::StorePath;
use crate::size::Bytes;

/// One row of the database's ValidPaths, with what refers to it from the other tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    pub path: StorePath,
    pub nar_hash: NarHash,
    pub nar_size: Bytes,
    /// Sorted; the path itself is among them if it refers to itself.
    pub references: Vec<StorePath>,
    pub deriver: Option<String>,
    pub registration_time: i64,
    /// Built here, or as trusted as if it were.
    pub ultimate: bool,
    pub signatures: Option<String>,
    pub content_address: Option<String>,
    /// Of a derivation: output names and their paths.
    pub outputs: Vec<(String, StorePath)>,
}
