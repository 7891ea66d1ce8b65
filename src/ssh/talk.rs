//! What a machine says before the program runs there: answers, out of all that a login shell may print.
//!
//! It is not trusted: of bounded length, read line by line, and shown only as [`printable`] text.

use std::io::{BufRead, Take};

use anyhow::{Error, anyhow};

use crate::progress::printable;

// All that is said until the program runs, banners of the login shell included.
const LIMIT: u64 = 64 << 10;
// What an error quotes of such a banner.
const EXCERPT: usize = 300;

/// What the script says, in the order of its text.
#[derive(Debug, PartialEq)]
pub enum Answer {
    NoSudo,
    Password,
    Wrong,
    Denied,
    /// A place was tried in vain.
    Place(String),
    Nowhere,
    Alien {
        machine: String,
        system: String,
    },
    Unprivileged(String),
    Send,
    Short,
    Changed,
    /// The password was right, and sudo reads it once more.
    Root,
    /// Root's shell wants the script.
    Again,
    Run,
}

impl Answer {
    /// Reads what stands behind a mark.
    fn parse(words: &str) -> Option<Answer> {
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        Some(match (word, rest) {
            ("no-sudo", "") => Answer::NoSudo,
            ("password", "") => Answer::Password,
            ("wrong", "") => Answer::Wrong,
            ("denied", "") => Answer::Denied,
            ("place", rest) => {
                let (fault, place) = rest.split_once(' ')?;
                let fault = match fault {
                    "unwritable" => "cannot be written",
                    "full" => "has too little room",
                    "noexec" => "lets no program run (noexec)",
                    _ => return None,
                };
                Answer::Place(format!("{} {fault}", printable(place)))
            }
            ("nowhere", "") => Answer::Nowhere,
            ("alien", rest) => {
                let (machine, system) = rest.split_once(' ')?;
                Answer::Alien { machine: printable(machine), system: printable(system) }
            }
            ("unprivileged", user) => Answer::Unprivileged(printable(user)),
            ("send", "") => Answer::Send,
            ("broken", "short") => Answer::Short,
            ("broken", "changed") => Answer::Changed,
            ("root", "") => Answer::Root,
            ("again", "") => Answer::Again,
            ("run", "") => Answer::Run,
            _ => return None,
        })
    }
}

/// Why the program does not run.
#[derive(Debug)]
pub enum End {
    /// For a reason that is told.
    Told(Error),
    /// The streams ended, and ssh knows why. Before the script spoke, something else may have.
    Cut { said: String },
}

impl End {
    /// Returns the error, with what ssh says where that is to be told.
    pub fn told(self, broken: impl FnOnce() -> Error) -> Error {
        match self {
            End::Told(error) => error,
            End::Cut { said } if said.is_empty() => broken(),
            End::Cut { said } => broken().context(format!(
                "the login shell runs no command; log in to an account with an ordinary shell; it said \"{said}\""
            )),
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Told(error)
    }
}

/// What is heard of the script, out of all that is said.
pub struct Talk<'a, R> {
    output: Take<R>,
    mark: &'a str,
    /// What was said before the script spoke for the first time.
    said: Option<String>,
}

impl<'a, R: BufRead> Talk<'a, R> {
    pub fn new(output: R, mark: &'a str) -> Talk<'a, R> {
        Talk { output: output.take(LIMIT), mark, said: Some(String::new()) }
    }

    /// Returns the next answer, once it has come.
    pub fn next(&mut self) -> Result<Answer, End> {
        loop {
            let mut bytes = Vec::new();
            // A stream that fails has ended.
            let _ = self.output.read_until(b'\n', &mut bytes);
            let whole = bytes.ends_with(b"\n");
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\r', '\n']);
            let words = line.strip_prefix(self.mark).and_then(|rest| rest.strip_prefix(' '));
            if let Some(words) = words.filter(|_| whole) {
                self.said = None;
                return Answer::parse(words).ok_or_else(|| {
                    End::Told(anyhow!("the machine answered in a way nobody expects: {}", excerpt(words)))
                });
            }
            if let Some(said) = self.said.as_mut().filter(|said| said.len() < EXCERPT) {
                said.push_str(line);
                said.push(' ');
            }
            if !whole {
                let said = excerpt(self.said.as_deref().unwrap_or_default().trim());
                return Err(if self.output.limit() > 0 {
                    End::Cut { said }
                } else {
                    End::Told(anyhow!(
                        "the login shell talks without an end; make its start-up files silent; it said \"{said}\""
                    ))
                });
            }
        }
    }
}

fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(EXCERPT).collect();
    printable(&start) + if chars.next().is_some() { "…" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_of_those_that_the_script_gives() {
        let place = |text: &str| Some(Answer::Place(text.to_owned()));
        for (words, answer) in [
            ("run", Some(Answer::Run)),
            ("run fast", None),
            ("password", Some(Answer::Password)),
            ("place noexec /run", place("/run lets no program run (noexec)")),
            ("place full /my\x1b disk", place("/my\\u{1b} disk has too little room")),
            ("place", None),
            ("place crowded /run", None),
            (
                "alien aarch64 Linux",
                Some(Answer::Alien { machine: "aarch64".into(), system: "Linux".into() }),
            ),
            ("alien aarch64", None),
            ("broken heart", None),
            ("", None),
        ] {
            assert_eq!(Answer::parse(words), answer, "{words}");
        }
    }

    #[test]
    fn an_answer_is_heard_behind_any_banner_and_not_without_its_mark() {
        let said = "Welcome\nno end of line\r\nxyz run\n \nMARKrun\nMARK send\n\nMARK run\n";
        let mut talk = Talk::new(said.as_bytes(), "MARK");
        for answer in [Answer::Send, Answer::Run] {
            assert_eq!(talk.next().unwrap(), answer);
        }
        assert!(matches!(talk.next(), Err(End::Cut { said }) if said.is_empty()));
    }
}
