//! Whether an activation has done what it should: by what is there, and by what it says of itself.

use std::collections::BTreeSet;

use crate::store::path::StorePath;

/// What is wrong with an activation that is over.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Flaw {
    #[error("the machine still runs {0} (switch-to-configuration ended with status {1})")]
    NotRunning(String, i32),
    #[error("the machine cannot run it without a restart; deploy it with --boot --reboot")]
    NeedsReboot,
    #[error("the activation failed (switch-to-configuration ended with status {0}){1}")]
    Status(i32, Failed),
    #[error("switch-to-configuration was killed")]
    Killed,
    #[error("it runs, and left failed units behind{0}")]
    Units(Failed),
}

/// Units that failed.
#[derive(Debug, PartialEq)]
pub struct Failed(Vec<String>);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            units => write!(f, ": {}", units.join(", ")),
        }
    }
}

// What switch-to-configuration ends with where the new init cannot take over from the old one.
const NEEDS_REBOOT: i32 = 100;

/// Judges by the status, by the system that runs and by units that failed since.
pub fn activation(
    wanted: &StorePath,
    status: Option<i32>,
    running: Option<&StorePath>,
    failed: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let units = || Failed(failed.iter().cloned().collect());
    let name = || running.map_or("nothing".to_owned(), |system| system.name().to_owned());
    Err(match status {
        None => Flaw::Killed,
        Some(NEEDS_REBOOT) => Flaw::NeedsReboot,
        // A status of 0 can be an old errno that was 0 by chance.
        Some(status) if running != Some(wanted) => Flaw::NotRunning(name(), status),
        Some(0) if failed.is_empty() => return Ok(()),
        Some(0) => Flaw::Units(units()),
        Some(status) => Flaw::Status(status, units()),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_what_is_there_and_not_only_what_is_said() {
        let system = |letter: char| {
            StorePath::from_base_name(&format!("{}-nixos-{letter}", letter.to_string().repeat(32))).unwrap()
        };
        let (new, old) = (system('b'), system('a'));
        for (status, running, failed, words) in [
            (Some(0), Some(&new), &[][..], None),
            (Some(0), Some(&old), &[], Some("the machine still runs nixos-a (")),
            (Some(0), None, &[], Some("the machine still runs nothing (")),
            (Some(11), Some(&old), &[], Some("ended with status 11)")),
            (Some(4), Some(&new), &["x.service", "y.service"], Some("status 4): x.service, y.service")),
            (Some(2), Some(&new), &[], Some("status 2)")),
            (Some(0), Some(&new), &["x.service"], Some("left failed units behind: x.service")),
            (Some(100), Some(&old), &[], Some("--boot --reboot")),
            (None, Some(&new), &[], Some("was killed")),
        ] {
            let failed = failed.iter().map(|unit| (*unit).to_owned()).collect();
            let verdict = activation(&new, status, running, &failed);
            match words {
                None => verdict.unwrap(),
                Some(words) => {
                    let error = verdict.unwrap_err().to_string();
                    assert!(error.contains(words), "{error}");
                }
            }
        }
    }
}
