//! What the NixOS module wrote about the system: `$toplevel/install-via/manifest.json`.
//!
//! A system without the module has no manifest; then the layout is derived and the tools are looked
//! for in the system's own `sw`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::disk::layout::Layout;

/// The only version there is.
const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    /// The layout of the system's disk; absent where it is to be derived.
    #[serde(default)]
    pub layout: Option<Layout>,
    /// Programs by name, such as `mkfs.ext4`, as absolute paths in the store.
    #[serde(default)]
    pub tools: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Parses a manifest. A version we do not know is refused before anything else is looked at.
pub fn parse(text: &str) -> Result<Manifest> {
    let Versioned { version } = serde_json::from_str(text).context("reading the version of the manifest")?;
    if version != VERSION {
        bail!(
            "the manifest has version {version} and this program reads version {VERSION}; \
             use the program that the system itself carries"
        );
    }
    let manifest: Manifest = serde_json::from_str(text).context("reading the manifest")?;
    if let Some((name, path)) = manifest.tools.iter().find(|(_, path)| !path.starts_with("/nix/store")) {
        bail!("the manifest's tool {name} is {}, which is no store path", path.display());
    }
    Ok(manifest)
}

/// Reads the manifest of a toplevel, if it has one.
pub fn read(toplevel: &Path) -> Result<Option<Manifest>> {
    let path = toplevel.join("install-via/manifest.json");
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text).with_context(|| format!("reading {}", path.display())).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_may_say_nothing_but_its_version() {
        assert_eq!(parse(r#"{"version":1}"#).unwrap(), Manifest { version: 1, ..Manifest::default() });
    }

    #[test]
    fn what_we_do_not_know_is_refused() {
        for (text, words) in [
            ("", "reading the version"),
            (r#"{"version":2,"future":true}"#, "has version 2"),
            (r#"{"version":"1"}"#, "reading the version"),
            (r#"{"version":1,"colour":"red"}"#, "reading the manifest"),
            (r#"{"version":1,"tools":{"mkfs.ext4":"/bin/mkfs"}}"#, "no store path"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
