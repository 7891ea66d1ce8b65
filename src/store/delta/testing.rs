//! Store paths in short for the tables of the tests beside this file.

use crate::size::Bytes;
use crate::store::PathInfo;
use crate::store::hash::NarHash;
use crate::store::path::{HASH_LENGTH, StorePath};

/// Returns the store path `1-name`: its hash part is its first digit, with others behind it.
pub fn path(short: &str) -> StorePath {
    let (digit, name) = short.split_once('-').unwrap();
    let hash = format!("{digit}{}", &"9a8b7c6d5f4g3h2i1j0k9l8m7n6p5q4r"[1..]);
    assert_eq!(hash.len(), HASH_LENGTH);
    StorePath::from_base_name(&format!("{hash}-{name}")).unwrap()
}

/// Returns what a database may know of `1-name=SIZE`.
pub fn info(short: &str) -> PathInfo {
    let (short, size) = short.split_once('=').unwrap_or((short, "100"));
    PathInfo {
        path: path(short),
        nar_hash: NarHash([0; 32]),
        nar_size: Bytes(size.parse().unwrap()),
        references: Vec::new(),
        deriver: None,
        registration_time: 0,
        ultimate: true,
        signatures: None,
        content_address: None,
        outputs: Vec::new(),
    }
}
