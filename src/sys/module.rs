//! Kernel modules: handed to the running kernel.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod;

/// Loads a module, which is not compressed, without parameters. One that is loaded already stays.
///
/// What its code depends on must have been loaded before. A failure need not be the end: a module
/// for a processor or a card that is not there refuses to be loaded.
pub fn insert(contents: &[u8], name: &str) -> Result<()> {
    match kmod::init_module(contents, c"") {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("loading the module {name}{}", meaning(error))),
    }
}

fn meaning(error: Errno) -> &'static str {
    match error {
        Errno::ENOEXEC => ", which must be one of the running kernel's own modules",
        Errno::ENOENT => ", which needs others that must be loaded before",
        Errno::ENODEV => ", which finds no hardware that it drives",
        Errno::EPERM => ", which takes root and a kernel that is not locked down",
        Errno::EKEYREJECTED | Errno::ENOKEY => ", which must be signed with a key that the kernel trusts",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_not_loaded() {
        let said = format!("{:#}", insert(b"no module", "example").unwrap_err());
        assert!(said.starts_with("loading the module example"), "{said}");
    }
}
