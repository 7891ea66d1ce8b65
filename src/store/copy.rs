use super::db::PathInfo; use crate::{progress::Progress,size::Bytes}; use std::path::Path; use anyhow::Result;
pub fn closure(_: &[PathInfo], _: &Path, _: &Path, _: &dyn Progress) -> Result<()> { todo!() }
pub fn space_needed(_: &[PathInfo], _: &Path) -> Result<Bytes> { todo!() }
