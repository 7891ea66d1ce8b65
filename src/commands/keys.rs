//! Passphrases: from files that are named, or asked for on the terminal.

use std::path::PathBuf;

use anyhow::Result;

use crate::disk::layout::{DiskLayout, Luks, Partition};
use crate::failure::{refused, usage};
use crate::run::Keys;
use crate::sys::secret::Secret;
use crate::sys::terminal;

/// Reads the passphrases that files hold, each for something that the layout encrypts.
pub fn read(files: &[(String, PathBuf)], disk: &DiskLayout) -> Result<Keys> {
    let names: Vec<&str> = encrypted(disk).map(|luks| luks.name.as_str()).collect();
    let mut keys = Keys::new();
    for (name, file) in files {
        if !names.contains(&name.as_str()) {
            let known = if names.is_empty() {
                "nothing is".to_owned()
            } else {
                format!("it is {}", names.join(", "))
            };
            return Err(usage(format!("nothing in the layout is encrypted as {name}; {known}")));
        }
        let key = Secret::read(file).map_err(|error| usage(format!("{error:#}")))?;
        if let Some(fault) = key.fault() {
            return Err(usage(format!("the passphrase in {} {fault}", file.display())));
        }
        if keys.insert(name.clone(), key).is_some() {
            return Err(usage(format!("two passphrases are named for {name}; leave one out")));
        }
    }
    Ok(keys)
}

/// Asks for the passphrases that are still missing, each twice.
pub fn complete(keys: &mut Keys, disk: &DiskLayout) -> Result<()> {
    while let Some(luks) = missing(keys, disk) {
        if !terminal::is_there() {
            return Err(refused(format!(
                "{0} is encrypted, and there is no terminal to ask for its passphrase on; name a file that holds it with --disk-encryption-key {0}=FILE",
                luks.name
            )));
        }
        let key = terminal::ask_secret(&format!("Passphrase for the encrypted {}:", luks.name))?;
        if let Some(fault) = key.fault() {
            return Err(refused(format!("the passphrase {fault}; nothing was changed")));
        }
        if terminal::ask_secret("Once more:")?.bytes() != key.bytes() {
            return Err(refused("the two passphrases differ; nothing was changed"));
        }
        keys.insert(luks.name.clone(), key);
    }
    Ok(())
}

fn missing<'a>(keys: &Keys, disk: &'a DiskLayout) -> Option<&'a Luks> {
    encrypted(disk).find(|luks| !keys.contains_key(&luks.name))
}

fn encrypted(disk: &DiskLayout) -> impl Iterator<Item = &Luks> {
    disk.partitions.iter().filter_map(Partition::luks)
}
