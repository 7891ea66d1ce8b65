//! A module tree for tests: an excerpt of Debian's kernel 6.1 for amd64.

use super::{Texts, Tree};

/// Returns the texts as depmod left them; records of the last one end with a newline in place of a NUL.
pub fn texts() -> Texts<'static> {
    Texts {
        dep: include_str!("excerpt/modules.dep"),
        alias: include_str!("excerpt/modules.alias"),
        softdep: include_str!("excerpt/modules.softdep"),
        builtin: include_str!("excerpt/modules.builtin"),
        builtin_modinfo: include_bytes!("excerpt/modules.builtin.modinfo"),
    }
}

pub fn tree() -> Tree {
    let records: Vec<u8> =
        texts().builtin_modinfo.iter().map(|&byte| if byte == b'\n' { 0 } else { byte }).collect();
    Tree::parse(Texts { builtin_modinfo: &records, ..texts() })
}

/// Returns the names of modules in the files of a loading order.
pub fn names(paths: &[String]) -> Vec<String> {
    paths.iter().map(|path| super::name_of(path)).collect()
}
