//! What a program hears of one machine when all is over: what it was, and what it is.

use std::cell::RefCell;

use serde::Serialize;

use crate::facts::HostFacts;
use crate::store::difference::Change;
use crate::store::path::StorePath;

/// Filled in while a story is told, from what the machine itself says.
#[derive(Default)]
pub struct Record(RefCell<Notes>);

#[derive(Clone, Default)]
struct Notes {
    reached: bool,
    begun: bool,
    before: Option<State>,
    after: Option<State>,
    packages: Option<Vec<Change>>,
}

/// What of a machine a deployment may change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    running: Option<StorePath>,
    booted: Option<StorePath>,
    generation: Option<u64>,
    profile: Option<StorePath>,
    /// Whether the wanted system is valid in its store.
    in_store: bool,
    boot_id: String,
}

/// The last event about a machine.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "ended")]
pub struct Last<'a> {
    pub text: &'a str,
    /// What a process of its own would end with; none if it was not begun.
    pub code: Option<i32>,
    #[serde(flatten)]
    pub details: Details,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Details {
    system: StorePath,
    reached: bool,
    changed: bool,
    before: Option<State>,
    after: Option<State>,
    /// How the wanted system differs from the one that ran before, where that one is known here.
    packages: Option<Vec<Change>>,
}

impl Record {
    /// Notes that a connection is there.
    pub fn reached(&self) {
        self.0.borrow_mut().reached = true;
    }

    /// Notes what the machine was before anything was done.
    pub fn before(&self, facts: &HostFacts) {
        self.0.borrow_mut().before = Some(State::of(facts));
    }

    /// Notes how the wanted system differs from the one that runs.
    pub fn packages(&self, changes: Vec<Change>) {
        self.0.borrow_mut().packages = Some(changes);
    }

    /// Notes that from now on the machine may be another one.
    pub fn begun(&self) {
        self.0.borrow_mut().begun = true;
    }

    /// Notes what the machine is in the end.
    pub fn after(&self, facts: &HostFacts) {
        self.0.borrow_mut().after = Some(State::of(facts));
    }

    /// Returns what there is to tell of the machine that was to get `system`.
    pub fn details(&self, system: &StorePath) -> Details {
        let Notes { reached, begun, before, after, packages } = self.0.borrow().clone();
        // Where nobody could look again, what was begun counts as a change.
        let changed = match (&before, &after) {
            (Some(before), Some(after)) => before != after,
            _ => begun,
        };
        Details { system: system.clone(), reached, changed, before, after, packages }
    }
}

impl State {
    fn of(facts: &HostFacts) -> State {
        let (generation, profile) = facts.profile.clone().unzip();
        State {
            running: facts.running.clone(),
            booted: facts.booted.clone(),
            generation,
            profile,
            in_store: facts.valid,
            boot_id: facts.boot_id.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Bytes;

    fn system(letter: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-nixos-{letter}", letter.repeat(32))).unwrap()
    }

    fn facts() -> HostFacts {
        HostFacts {
            nixos: true,
            machine: "x86_64".into(),
            boot_id: "1".into(),
            running: Some(system("a")),
            booted: Some(system("a")),
            profile: Some((7, system("a"))),
            hostname: None,
            platform: None,
            free: Bytes::gib(1),
            valid: false,
            inhibitors: Default::default(),
        }
    }

    fn changed(before: Option<HostFacts>, begun: bool, after: Option<HostFacts>) -> bool {
        let record = Record::default();
        before.iter().for_each(|facts| record.before(facts));
        begun.then(|| record.begun());
        after.iter().for_each(|facts| record.after(facts));
        record.details(&system("b")).changed
    }

    #[test]
    fn changed_is_what_differs_afterwards() {
        let fuller = HostFacts { free: Bytes::mib(1), ..facts() };
        assert!(!changed(Some(facts()), true, Some(fuller)));
        for after in [
            HostFacts { valid: true, ..facts() },
            HostFacts { running: Some(system("b")), ..facts() },
            HostFacts { profile: Some((8, system("a"))), ..facts() },
            HostFacts { boot_id: "2".into(), ..facts() },
        ] {
            assert!(changed(Some(facts()), true, Some(after)));
        }
        // Nobody could look again.
        assert!(changed(Some(facts()), true, None));
        assert!(!changed(Some(facts()), false, None));
        assert!(!changed(None, false, None));
    }

    #[test]
    fn the_last_event_is_plain_data() {
        let record = Record::default();
        record.reached();
        record.before(&facts());
        let expected = serde_json::json!({
            "event": "ended", "text": "x", "code": null, "system": system("b"), "reached": true, "changed": false, "after": null, "packages": null,
            "before": {
                "running": system("a"), "booted": system("a"), "generation": 7, "profile": system("a"),
                "inStore": false, "bootId": "1",
            },
        });
        let last = Last { text: "x", code: None, details: record.details(&system("b")) };
        assert_eq!(serde_json::to_value(last).unwrap(), expected);
    }
}
