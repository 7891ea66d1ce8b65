//! What happens while a command runs, as events.
//!
//! Every long job takes a [`Progress`]. The terminal, the JSON-lines printer and (later) the wire
//! are three ways to look at the same events.

use std::fmt;

use serde::Serialize;

use crate::size::Bytes;

/// One thing that happened. Its JSON form is a line of `--progress json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// A step of the plan begins: the `number`-th of `of`, in words.
    Step { number: usize, of: usize, title: String },
    /// A job of known size begins inside the step.
    Start { total: Bytes },
    /// So many more bytes of that job are done.
    Advance { bytes: Bytes },
    /// That job is over.
    Finish,
    /// A program we run said something.
    Output { program: String, line: String },
    /// Something the person should know, now and at the end.
    Warning { text: String },
    /// The command did what it was asked to, in one sentence.
    Done { text: String },
}

/// Takes events from any thread.
pub trait Progress: Sync {
    fn event(&self, event: Event);

    fn advance(&self, bytes: u64) {
        self.event(Event::Advance { bytes: Bytes(bytes) });
    }

    fn warn(&self, text: impl fmt::Display)
    where
        Self: Sized,
    {
        self.event(Event::Warning { text: text.to_string() });
    }
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}
