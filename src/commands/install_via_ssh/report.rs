//! What was found out of a machine, for those who add its drivers to their system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::Story;
use super::kernel::KernelFiles;
use super::look::Decided;
use crate::facts::target::TargetFacts;
use crate::failure::usage;
use crate::plan::{self, Undriven};

/// The report, which is JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    facts: &'a TargetFacts,
    /// The modules that the rescue would load, in this order; none where no rescue can be.
    modules: Vec<&'a str>,
    /// What the system has no driver for, needed or not.
    undriven: Vec<String>,
    /// Why the machine cannot get the system, if it cannot.
    refused: Option<String>,
}

impl Story<'_> {
    /// Writes a report, whether the machine can get the system or not.
    pub(super) fn report(&self, facts: &TargetFacts, decided: &Result<Decided>, file: &Path) -> Result<()> {
        let tree = KernelFiles::of(&self.args.common.from, &self.system)?.tree()?;
        let mut undriven = plan::undriven(&facts.hardware, &tree);
        let asked_for = decided.iter().flat_map(|decided| &decided.undriven);
        for other in asked_for {
            if !undriven.contains(other) {
                undriven.push(other.clone());
            }
        }
        let modules = decided.iter().flat_map(|decided| &decided.modules).map(|(name, _)| name.as_str());
        let refused = match decided {
            Ok(decided) => decided.check().err().map(|error| format!("{error:#}")),
            Err(error) => Some(format!("{error:#}")),
        };
        let undriven = undriven.iter().map(Undriven::to_string).collect();
        let report = Report { facts, modules: modules.collect(), undriven, refused };
        let text = serde_json::to_string_pretty(&report).context("writing the report as JSON")? + "\n";
        fs::write(file, text).map_err(|error| usage(format!("writing {}: {error}", file.display())))
    }
}
