//! `--hosts FILE`: which machine gets which system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::commands::system_at;
use crate::failure::usage;
use crate::ssh::Address;
use crate::store::path::StorePath;

/// Reads a file of addresses and systems: JSON if it begins with `{`, else TOML.
pub fn read(file: &Path, from: &Path) -> Result<Vec<(Address, StorePath)>> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| usage(format!("reading {shown}: {error}")))?;
    let hosts = parse(&text).map_err(|error| usage(format!("{shown}: {error}")))?;
    hosts.into_iter().map(|(address, system)| Ok((address, system_at(from, Path::new(&system))?))).collect()
}

fn parse(text: &str) -> Result<Vec<(Address, String)>, String> {
    let hosts: BTreeMap<String, String> = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?
    };
    if hosts.is_empty() {
        return Err("it names no machine; write lines such as web1 = \"/nix/store/…\"".to_owned());
    }
    let address = |(host, system): (String, String)| {
        Ok((host.parse().map_err(|error: crate::ssh::AddressError| error.to_string())?, system))
    };
    hosts.into_iter().map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let toml = "# the fleet\nweb1 = \"/a\"\n\"root@web2\" = '/b'\n";
        let json = r#" {"web1": "/a", "root@web2": "/b"}"#;
        let told = |text: &str| -> Vec<(String, String)> {
            parse(text).unwrap().into_iter().map(|(address, system)| (address.to_string(), system)).collect()
        };
        assert_eq!(told(toml), told(json));
        assert_eq!(told(toml), [("root@web2".into(), "/b".into()), ("web1".into(), "/a".into())]);
        for bad in [
            "",
            "{}",
            "{",
            "web1",
            "web1 = 7",
            "[web1]\nsystem = '/a'",
            "\"-oX=y\" = '/a'",
            "web1='/a'\nweb1='/b'",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
