//! Switch inhibitors: what of a running system must not be exchanged under it.
//!
//! NixOS writes them into the toplevel (`switch-inhibitors`, a JSON object of strings; nixpkgs' `system.switch.inhibitors`),
//! and its pre-switch check compares those that both systems have. Looked at beforehand, nothing is begun in vain.

use std::collections::BTreeMap;
use std::path::Path;

use crate::store::path::StorePath;
use crate::sys::inside;

const LIMIT: u64 = 64 << 10;

pub type Inhibitors = BTreeMap<String, String>;

/// Reads the inhibitors of a system in the root; one without any, or of an older NixOS, inhibits nothing.
pub fn read(root: &Path, system: &StorePath) -> Inhibitors {
    let path = Path::new(&system.to_string()).join("switch-inhibitors");
    inside::read(root, &path, LIMIT).map_or_else(|_| Inhibitors::new(), |text| parse(&text))
}

/// What is no object of strings is taken for an empty one, as NixOS's own check takes it.
fn parse(text: &[u8]) -> Inhibitors {
    serde_json::from_slice(text).unwrap_or_default()
}

/// Says what differs of those that both have: `dbus-implementation (dbus, now broker)`.
pub fn changes(old: &Inhibitors, new: &Inhibitors) -> Vec<String> {
    let both = old.iter().filter_map(|(name, old)| Some((name, old, new.get(name)?)));
    both.filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name} ({old}, now {new})"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_systems_have_inhibits() {
        for (old, new, expected) in [
            (
                r#"{"dbus-implementation":"dbus"}"#,
                r#"{"dbus-implementation":"broker"}"#,
                "dbus-implementation (dbus, now broker)",
            ),
            (r#"{"a":"1","b":"2"}"#, r#"{"a":"1","b":"3","c":"4"}"#, "b (2, now 3)"),
            (r#"{"a":"1"}"#, r#"{"a":"1"}"#, ""),
            (r#"{"a":"1"}"#, r#"{"b":"2"}"#, ""),
            ("{}", r#"{"b":"2"}"#, ""),
            ("no JSON", r#"{"b":"2"}"#, ""),
            (r#"{"a":1}"#, r#"{"a":"2"}"#, ""),
        ] {
            let told = changes(&parse(old.as_bytes()), &parse(new.as_bytes()));
            assert_eq!(told.join(", "), expected, "{old} {new}");
        }
    }
}
