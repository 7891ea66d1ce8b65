//! The files that this program writes, as templates: `templates/`, one typed function each.
//!
//! The values of a shell script come quoted, by whoever knows what is one word of it.

use anyhow::{Context as _, Result};
use serde::Serialize;
use tera::{Context, Tera};

use crate::plan::Script;
use crate::sys::shell::quote;

/// The values of `templates/entry.sh.tera`: a command of a system, in that system's `bin/`.
#[derive(Serialize)]
pub struct Entry<'a> {
    /// The interpreter: a path that may stand unquoted behind `#!`.
    pub shell: &'a str,
    pub binary: &'a str,
    pub command: &'a str,
    pub toplevel: &'a str,
}

/// Returns the script that starts a command.
pub fn entry(values: &Entry<'_>) -> Result<String> {
    let (binary, toplevel) = (&quote(values.binary), &quote(values.toplevel));
    render("entry.sh", include_str!("../templates/entry.sh.tera"), &Entry { binary, toplevel, ..*values })
}

/// Returns a plan as a shell script.
pub fn plan(script: &Script) -> Result<String> {
    render("plan.sh", include_str!("../templates/plan.sh.tera"), script)
}

fn render(name: &str, template: &str, values: &impl Serialize) -> Result<String> {
    let mut tera = Tera::new();
    let mut text = || {
        tera.add_raw_template(name, template)?;
        tera.render(name, &Context::from_serialize(values)?)
    };
    text().with_context(|| format!("rendering {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_script_is_one_word() {
        for text in
            ["", "two  words ", "it's", "new\nline\n", "--help", "$(touch x) *", "{{ shell }} ünïcode"]
        {
            let script =
                entry(&Entry { shell: "/bin/sh", binary: text, command: "c", toplevel: text }).unwrap();
            let (first, rest) = script.split_once('\n').unwrap();
            assert_eq!(first, "#!/bin/sh");
            let word = quote(text);
            assert!(rest.ends_with(&format!("\nexec {word} c --default-system {word} \"$@\"\n")), "{rest}");
        }
    }
}
