use crate::{progress::Progress,size::Bytes}; use std::path::Path; use anyhow::Result;
pub struct Verified { pub paths: usize, pub bytes: Bytes, pub damaged: Vec<String> }
pub fn root(_: &Path, _: &dyn Progress) -> Result<Verified> { todo!() }
