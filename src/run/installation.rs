//! An installation that outlives who asked for it: what was begun is kept, and goes on where it stopped.

use std::path::Path;

use anyhow::Result;

use super::{Keys, Made, Supply, begin, take};
use crate::failure::refused;
use crate::plan::{Plan, Step};
use crate::progress::Progress;

/// A plan of which so much is done. Dropping it unmounts and closes what it has open.
pub struct Installation {
    plan: Plan,
    next: usize,
    made: Made,
    /// What its partitions were encrypted with.
    keys: Keys,
}

impl Installation {
    pub fn new(plan: Plan) -> Installation {
        Installation { plan, next: 0, made: Made::default(), keys: Keys::new() }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns where the root of the new system is mounted, if it is.
    pub fn root(&self) -> Option<&Path> {
        self.made.root.as_deref()
    }

    /// Tells whether nothing of it is done.
    pub fn is_new(&self) -> bool {
        self.next == 0
    }

    /// Tells whether the step that is due may be taken again, whatever became of it before: what fills
    /// a root looks at what is there already.
    pub fn goes_on(&self) -> bool {
        let is_repeatable = |step: &Step| {
            matches!(
                step,
                Step::Prepare | Step::Copy { .. } | Step::Register { .. } | Step::ExtraFiles { .. }
            )
        };
        self.plan.steps.get(self.next).is_none_or(is_repeatable)
    }

    /// Takes the steps that are left and stops at the first that fails, which stays due.
    ///
    /// Refuses other passphrases than those that it was begun with: whoever gives one would not get in with it.
    pub fn perform(&mut self, supply: &mut dyn Supply, keys: &Keys, progress: &dyn Progress) -> Result<()> {
        for (name, key) in keys {
            if self.keys.entry(name.clone()).or_insert_with(|| key.clone()) != key {
                return Err(refused(format!(
                    "{name} is encrypted by now, with another passphrase; give the one that this installation was begun with"
                )));
            }
        }
        while let Some(step) = self.plan.steps.get(self.next) {
            begin(&self.plan, self.next, progress);
            take(step, supply, keys, &mut self.made, progress)?;
            self.next += 1;
        }
        Ok(())
    }
}
