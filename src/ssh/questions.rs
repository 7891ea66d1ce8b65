//! What a client or a far end wants to know of the person: asked on the terminal, a password once.
//!
//! A deployment opens several connections, to one host after another and to many at a time. They
//! all ask here, one at a time, and a password that was typed for one is there for the next.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;

use crate::progress::printable;
use crate::sys::secret::Secret;
use crate::sys::terminal;

/// The answers of one person, for all connections of a process.
#[derive(Clone)]
pub struct Questions {
    shared: Arc<Shared>,
}

struct Shared {
    program: PathBuf,
    ask: Option<Box<Ask>>,
    // Held while somebody types: the same question from elsewhere waits for the answer.
    remembered: Mutex<HashMap<String, Remembered>>,
}

/// Puts one question and returns the answer.
pub type Ask = dyn Fn(&str, Manner) -> Result<Secret> + Send + Sync;

struct Remembered {
    answer: Secret,
    /// Grows with every answer to the same question, so that a connection knows a newer one.
    edition: u64,
}

/// How a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The answer is not shown, and remembered.
    Password,
    /// The answer is not shown, and good for one time only.
    Code,
    /// The answer is shown, and asked for again each time.
    Visible,
}

impl Questions {
    /// Asks on the terminal; if there is none, nothing is asked and nothing answered. `program` is
    /// this program, as ssh can start it to ask; `aside` keeps others away from the terminal while it runs what it is given.
    pub fn on_terminal(
        program: PathBuf,
        aside: impl Fn(&dyn Fn() -> Result<Secret>) -> Result<Secret> + Send + Sync + 'static,
    ) -> Questions {
        let ask = move |question: &str, manner: Manner| aside(&|| on_terminal(question, manner));
        Questions::asking(program, terminal::is_there().then(|| Box::new(ask) as Box<Ask>))
    }

    /// Asks by `ask`, if there is somebody to ask.
    pub fn asking(program: PathBuf, ask: Option<Box<Ask>>) -> Questions {
        Questions { shared: Arc::new(Shared { program, ask, remembered: Mutex::default() }) }
    }

    pub fn program(&self) -> &Path {
        &self.shared.program
    }

    /// Tells whether somebody is there to answer.
    pub fn are_answered(&self) -> bool {
        self.shared.ask.is_some()
    }

    /// Returns the questions of one connection.
    pub fn of_connection(&self) -> Inquiry {
        Inquiry { shared: Arc::clone(&self.shared), given: Mutex::default() }
    }
}

/// What one connection asks. An answer that it asks for again was wrong.
pub struct Inquiry {
    shared: Arc<Shared>,
    given: Mutex<HashMap<String, u64>>,
}

impl Inquiry {
    /// Returns a password, unless there is nobody who types one.
    pub fn password(&self, question: &str) -> Option<Secret> {
        self.answer(question, Manner::Password)
    }

    /// Returns the answer, unless there is nobody who gives one.
    pub fn answer(&self, question: &str, manner: Manner) -> Option<Secret> {
        let ask = self.shared.ask.as_ref()?;
        let mut remembered = lock(&self.shared.remembered);
        if manner != Manner::Password {
            return ask(question, manner).ok();
        }
        let mut given = lock(&self.given);
        let known = remembered.get(question);
        let edition = known.map_or(0, |known| known.edition);
        if let Some(known) = known.filter(|_| given.get(question) != Some(&edition)) {
            given.insert(question.to_owned(), edition);
            return Some(Secret::new(known.answer.bytes().to_vec()));
        }
        let answer = ask(question, manner).ok()?;
        let copy = Secret::new(answer.bytes().to_vec());
        remembered.insert(question.to_owned(), Remembered { answer: copy, edition: edition + 1 });
        given.insert(question.to_owned(), edition + 1);
        Some(answer)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn on_terminal(question: &str, manner: Manner) -> Result<Secret> {
    let question = shown(question);
    match manner {
        Manner::Visible => terminal::ask(&question).map(|line| Secret::new(line.into_bytes())),
        Manner::Password | Manner::Code => terminal::ask_secret(&question),
    }
}

/// Returns a question of somebody else's as it may stand on a terminal: its lines, and nothing that steers.
pub fn shown(question: &str) -> String {
    question.trim_end().lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the number of the question, and notes what was asked.
    fn counting() -> (Questions, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        let ask = move |question: &str, _: Manner| {
            let mut notes = lock(&notes);
            notes.push(question.to_owned());
            Ok(Secret::new(notes.len().to_string().into_bytes()))
        };
        (Questions::asking(PathBuf::new(), Some(Box::new(ask))), asked)
    }

    #[test]
    fn a_password_is_asked_once_and_again_only_if_it_was_wrong() {
        let (questions, asked) = counting();
        let (first, second) = (questions.of_connection(), questions.of_connection());
        let answer = |inquiry: &Inquiry, question: &str| {
            String::from_utf8(inquiry.answer(question, Manner::Password).unwrap().bytes().to_vec()).unwrap()
        };
        assert_eq!(answer(&first, "web1's password:"), "1");
        assert_eq!(answer(&second, "web1's password:"), "1");
        assert_eq!(answer(&first, "web2's password:"), "2");
        // The first one was wrong. The second connection learns of the correction without asking.
        assert_eq!(answer(&first, "web1's password:"), "3");
        assert_eq!(answer(&second, "web1's password:"), "3");
        assert_eq!(answer(&second, "web1's password:"), "4");
        assert_eq!(answer(&questions.of_connection(), "web1's password:"), "4");
        assert_eq!(lock(&asked).len(), 4);
    }

    #[test]
    fn what_is_no_password_is_asked_each_time() {
        let (questions, asked) = counting();
        let inquiry = questions.of_connection();
        for manner in [Manner::Visible, Manner::Visible, Manner::Code, Manner::Code] {
            inquiry.answer("Are you sure?", manner).unwrap();
        }
        assert_eq!(lock(&asked).len(), 4);
    }

    #[test]
    fn without_a_person_there_is_no_answer() {
        let questions = Questions::asking(PathBuf::new(), None);
        assert!(!questions.are_answered());
        assert!(questions.of_connection().answer("password:", Manner::Password).is_none());
    }

    #[test]
    fn a_question_keeps_its_lines_and_loses_what_steers_a_terminal() {
        assert_eq!(shown("The key is\r\n\u{1b}[2Jnew.\nSure? "), "The key is\n\\u{1b}[2Jnew.\nSure?");
    }
}
