//! The files that this program writes, as templates: `templates/`, one typed function each.
//!
//! In a shell script every `{{ value }}` comes out quoted, unless the template says `safe` of it.

use anyhow::{Context as _, Result};
use serde::Serialize;
use tera::{Context, Tera};

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
    render("entry.sh", include_str!("../templates/entry.sh.tera"), values)
}

fn render(name: &str, template: &str, values: &impl Serialize) -> Result<String> {
    let mut tera = Tera::new();
    tera.set_escape_fn(|text, out| out.write_all(quote(text).as_bytes()));
    tera.autoescape_on([".sh"]);
    let mut text = || {
        tera.add_raw_template(name, template)?;
        tera.render(name, &Context::from_serialize(values)?)
    };
    text().with_context(|| format!("rendering {name}"))
}

/// Returns a text as one word of a POSIX shell, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [&str; 11] = [
        "",
        "plain",
        "two  words ",
        "it's",
        "''",
        "\"double\" \\ back",
        "new\nline\n",
        "-n",
        "--help",
        "$(touch x) `touch x` $HOME *",
        "{{ shell }} ünïcode",
    ];

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in HOSTILE {
            let script = format!("printf %s {}", quote(&format!("<{text}>")));
            let output = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("<{text}>"));
        }
    }

    #[test]
    fn every_value_of_a_script_is_one_word() {
        for text in HOSTILE {
            let script =
                entry(&Entry { shell: "/bin/sh", binary: text, command: "c", toplevel: text }).unwrap();
            let (first, rest) = script.split_once('\n').unwrap();
            assert_eq!(first, "#!/bin/sh");
            let word = quote(text);
            assert!(rest.ends_with(&format!("\nexec {word} 'c' --default-system {word} \"$@\"\n")), "{rest}");
        }
    }
}
