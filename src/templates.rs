//! Templates: each is embedded and has one function, whose argument's fields are its values.
//!
//! This file alone knows tera.

use anyhow::{Context as _, Result};
use serde::Serialize;
use tera::{Context, Tera};

use crate::plan::Script;

/// Returns a plan as a shell script.
pub fn plan_sh(script: &Script) -> Result<String> {
    render("plan.sh", include_str!("../templates/plan.sh.tera"), script)
}

fn render(name: &str, template: &str, values: &impl Serialize) -> Result<String> {
    // No escaping: what a script needs is quoted already, by whoever knows what it is.
    Context::from_serialize(values)
        .and_then(|context| Tera::one_off(template, &context, false))
        .with_context(|| format!("filling in the template of {name}"))
}
