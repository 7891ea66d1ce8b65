use super::{db::PathInfo,path::StorePath}; use crate::progress::Progress; use std::path::Path; use anyhow::Result; use std::collections::BTreeMap;
pub fn closure(_: &Path, _: &StorePath, _: &dyn Progress) -> Result<BTreeMap<StorePath, PathInfo>> { todo!() }
