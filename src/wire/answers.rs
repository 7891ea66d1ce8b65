//! What the far end says, heard by a thread of its own: it may say something at any time.
//!
//! What waits to be heard is bounded, and what reaches a terminal or a sentence cannot steer it: texts
//! are cut and shown without control characters before they wait.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::frame::{Reader, WireError};
use super::message::Answer;
use crate::facts::HostFacts;
use crate::failure::refused;
use crate::progress::{Event, Progress, printable};
use crate::system::deployment::Ended;

// A far end that talks faster than it is heard has to wait.
const WAITING: usize = 256;
// How long to wait for its last words when it no longer listens.
const LAST_WORDS: Duration = Duration::from_secs(5);
// A line of a program, or a sentence.
const TEXT_LIMIT: usize = 4096;
// The name of a program, of a machine or of a kind of machine.
const NAME_LIMIT: usize = 128;
const HASH_BYTES: usize = 32;
const OUT_OF_PLACE: WireError = WireError::Garbled("an answer is out of place");

/// The answers that have come and were not heard.
pub struct Answers {
    waiting: Receiver<Result<Answer>>,
    /// Whether one of them is a list, which may be long; there is never more than one.
    list: Arc<AtomicBool>,
}

impl Answers {
    /// Listens to `input` until it ends.
    pub fn of(input: impl Read + Send + 'static) -> Answers {
        let (sender, waiting) = sync_channel(WAITING);
        let list = Arc::new(AtomicBool::new(false));
        let waits = list.clone();
        std::thread::spawn(move || {
            let mut reader = Reader(input);
            loop {
                let answer = reader.message::<Answer>().and_then(|answer| answer.map(tamed).transpose());
                let answer = match answer.transpose() {
                    Some(Ok(Answer::Missing { .. } | Answer::Wanted { .. }))
                        if waits.swap(true, Ordering::SeqCst) =>
                    {
                        Err(OUT_OF_PLACE.into())
                    }
                    Some(answer) => answer,
                    None => return,
                };
                let last = answer.is_err();
                if sender.send(answer).is_err() || last {
                    return;
                }
            }
        });
        Answers { waiting, list }
    }

    fn heard(&self, answer: Result<Answer>) -> Result<Answer> {
        if let Ok(Answer::Missing { .. } | Answer::Wanted { .. }) = answer {
            self.list.store(false, Ordering::SeqCst);
        }
        answer
    }

    /// Waits for the next answer.
    pub fn wait(&self) -> Result<Answer> {
        self.heard(self.waiting.recv().map_err(|_| WireError::HungUp)?)
    }

    /// Waits for the next answer, so long at the most.
    pub fn wait_for(&self, limit: Duration) -> Result<Option<Answer>> {
        match self.waiting.recv_timeout(limit) {
            Ok(answer) => self.heard(answer).map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(WireError::HungUp.into()),
        }
    }

    /// Returns the next answer, if one is there.
    pub fn there(&self) -> Result<Option<Answer>> {
        match self.waiting.try_recv() {
            Ok(answer) => self.heard(answer).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(WireError::HungUp.into()),
        }
    }

    /// Returns why the far end no longer listens, if it has said so, or else `error`.
    pub fn instead_of(&self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<WireError>() != Some(&WireError::HungUp) {
            return error;
        }
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match self.wait_for(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(Answer::Failed { text, refused })) => return failed(text, refused),
                Ok(Some(_)) => (),
                Ok(None) | Err(_) => return error,
            }
        }
    }
}

/// Passes on what the far end says beside its answers. An answer that nobody waits for is an error.
pub fn overhear(answer: Answer, progress: &dyn Progress) -> Result<()> {
    match answer {
        Answer::Output { program, line } => progress.event(Event::Output { program, line }),
        Answer::Warning { text } => progress.event(Event::Warning { text }),
        Answer::Failed { text, refused } => return Err(failed(text, refused)),
        _ => bail!(OUT_OF_PLACE),
    }
    Ok(())
}

fn failed(text: String, is_refusal: bool) -> anyhow::Error {
    if is_refusal { refused(text) } else { anyhow!("{text}") }
}

/// Returns an answer that is short and can be shown, whoever gave it.
fn tamed(answer: Answer) -> Result<Answer> {
    Ok(match answer {
        Answer::Hello { program, .. } if program.len() > HASH_BYTES => {
            bail!(WireError::Garbled("a hash is too long"))
        }
        Answer::Started { token } if !is_token(&token) => {
            bail!(WireError::Garbled("the name of a deployment has an unknown form"))
        }
        Answer::Facts(facts) => Answer::Facts(Box::new(HostFacts {
            machine: shown(&facts.machine, NAME_LIMIT),
            boot_id: shown(&facts.boot_id, NAME_LIMIT),
            hostname: facts.hostname.map(|name| shown(&name, NAME_LIMIT)),
            platform: facts.platform.map(|name| shown(&name, NAME_LIMIT)),
            inhibitors: facts.inhibitors.map(|inhibitors| {
                let pair =
                    |(name, value): (String, String)| (shown(&name, NAME_LIMIT), shown(&value, NAME_LIMIT));
                inhibitors.into_iter().map(pair).collect()
            }),
            ..*facts
        })),
        Answer::Target(facts) => Answer::Target(Box::new(all_shown(&*facts)?)),
        // The line is shown by who shows events, whose other lines come from programs here.
        Answer::Output { program, line } => {
            Answer::Output { program: shown(&program, NAME_LIMIT), line: cut(&line, TEXT_LIMIT) }
        }
        Answer::Warning { text } => Answer::Warning { text: shown(&text, TEXT_LIMIT) },
        Answer::Failed { text, refused } => Answer::Failed { text: shown(&text, TEXT_LIMIT), refused },
        Answer::Ended(Ended::RolledBack { reason }) => {
            Answer::Ended(Ended::RolledBack { reason: shown(&reason, TEXT_LIMIT) })
        }
        Answer::Ended(Ended::Refused { reason }) => {
            Answer::Ended(Ended::Refused { reason: shown(&reason, TEXT_LIMIT) })
        }
        Answer::Ended(Ended::Failed { reason }) => {
            Answer::Ended(Ended::Failed { reason: shown(&reason, TEXT_LIMIT) })
        }
        other => other,
    })
}

// It is sent back over a new connection, and could be part of a file's or a unit's name.
fn is_token(text: &str) -> bool {
    (1..=NAME_LIMIT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns facts in which each text can be shown.
fn all_shown<T: Serialize + DeserializeOwned>(facts: &T) -> Result<T> {
    fn tame(value: &mut Value) {
        match value {
            Value::String(text) => *text = shown(text, TEXT_LIMIT),
            Value::Array(all) => all.iter_mut().for_each(tame),
            Value::Object(fields) => fields.values_mut().for_each(tame),
            Value::Null | Value::Bool(_) | Value::Number(_) => (),
        }
    }
    let mut value = serde_json::to_value(facts).map_err(|_| WireError::Garbled("facts are of no use"))?;
    tame(&mut value);
    Ok(serde_json::from_value(value).map_err(|_| WireError::Garbled("facts are of no use"))?)
}

fn shown(text: &str, limit: usize) -> String {
    printable(&cut(text, limit))
}

fn cut(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}
