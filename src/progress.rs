//! What happens while a command runs, as events.
//!
//! Every long job takes a [`Progress`]. The terminal, the JSON-lines printer and (later) the wire
//! are three ways to look at the same events.

mod hosts;

use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::size::Bytes;
use crate::sys::terminal;
pub use hosts::{Hosts, Manner, OfHost};

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
    /// Something the person should know.
    Warning { text: String },
    /// What would be done, where only that is wanted.
    Plan { plan: Value },
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

/// Bars and words on a terminal, on stderr.
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    pub fn new() -> Self {
        Terminal { bar: Mutex::new(None) }
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn say(&self, text: &str) {
        match &*self.bar() {
            Some(bar) => bar.suspend(|| terminal::tell(text)),
            None => terminal::tell(text),
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

const BAR: &str = "      {bar:28} {bytes:>10} of {total_bytes}, {bytes_per_sec}, {eta} left";

impl Progress for Terminal {
    fn event(&self, event: Event) {
        match event {
            Event::Start { total } => {
                let style =
                    ProgressStyle::with_template(BAR).expect("BAR is a template").progress_chars("━╸ ");
                let target = ProgressDrawTarget::stderr_with_hz(8);
                *self.bar() = Some(ProgressBar::with_draw_target(Some(total.0), target).with_style(style));
            }
            Event::Advance { bytes } => {
                if let Some(bar) = &*self.bar() {
                    bar.inc(bytes.0);
                }
            }
            Event::Finish => {
                if let Some(bar) = self.bar().take() {
                    bar.finish_and_clear();
                }
            }
            other => {
                if let Some(text) = other.words() {
                    self.say(&text);
                }
            }
        }
    }
}

/// Whole lines on stderr, for logs.
pub struct Lines {
    /// Stands before each line: the machine that it tells of, if there are several.
    prefix: String,
    job: Mutex<Option<Job>>,
}

struct Job {
    total: Bytes,
    done: Bytes,
    started: Instant,
    told: Instant,
}

// Often enough to see that it goes on, seldom enough to read the log afterwards.
const TELL_EVERY: Duration = Duration::from_secs(10);

impl Lines {
    pub fn new() -> Self {
        Lines { prefix: String::new(), job: Mutex::new(None) }
    }

    fn of(machine: &str) -> Self {
        Lines { prefix: format!("{machine}: "), ..Lines::new() }
    }

    fn say(&self, text: &str) {
        terminal::tell(format_args!("{}{text}", self.prefix));
    }

    fn job(&self) -> std::sync::MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Job {
    fn words(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = Bytes((self.done.0 as f64 / seconds) as u64);
        format!("      {} of {} in {seconds:.1} s, {rate}/s", self.done, self.total)
    }
}

impl Progress for Lines {
    fn event(&self, event: Event) {
        match event {
            Event::Start { total } => {
                let now = Instant::now();
                *self.job() = Some(Job { total, done: Bytes(0), started: now, told: now });
            }
            Event::Advance { bytes } => {
                if let Some(job) = &mut *self.job() {
                    job.done += bytes;
                    if job.told.elapsed() >= TELL_EVERY {
                        job.told = Instant::now();
                        self.say(&job.words());
                    }
                }
            }
            Event::Finish => {
                if let Some(job) = self.job().take() {
                    self.say(&job.words());
                }
            }
            other => {
                if let Some(text) = other.words() {
                    self.say(&text);
                }
            }
        }
    }
}

/// Each event as a line of JSON on stdout.
pub struct Json;

impl Progress for Json {
    fn event(&self, event: Event) {
        let line = serde_json::to_string(&event).expect("an event is plain data");
        // Nobody listening is no reason to stop in the middle of a disk.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

impl Event {
    fn words(&self) -> Option<String> {
        match self {
            Event::Step { number, of, title } => Some(format!("[{number}/{of}] {title}")),
            Event::Output { program, line } => Some(format!("      {program}: {}", printable(line))),
            Event::Warning { text } => Some(format!("warning: {text}")),
            Event::Done { text } => Some(text.clone()),
            Event::Start { .. } | Event::Advance { .. } | Event::Finish | Event::Plan { .. } => None,
        }
    }
}

/// Returns `text` with what would steer a terminal shown instead of sent to it.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if steers(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

// Besides control characters: those that cannot be seen, break a line or turn around what follows.
fn steers(c: char) -> bool {
    let unseen = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}'];
    c.is_control() || c == '\u{feff}' || unseen.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_lines_with_a_name_and_plain_numbers() {
        let event = Event::Advance { bytes: Bytes::kib(1) };
        assert_eq!(serde_json::to_string(&event).unwrap(), r#"{"event":"advance","bytes":1024}"#);
        let event = Event::Step { number: 1, of: 9, title: "Wiping /dev/sdb".into() };
        let line = r#"{"event":"step","number":1,"of":9,"title":"Wiping /dev/sdb"}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), line);
    }

    #[test]
    fn what_a_program_says_cannot_steer_the_terminal() {
        let event = Event::Output { program: "mkfs".into(), line: "\x1b[2Jgone\ttab".into() };
        assert_eq!(event.words().unwrap(), r"      mkfs: \u{1b}[2Jgone\ttab");
        let turned = "a\u{202e}b\u{2028}c\u{feff}\u{85}";
        assert_eq!(printable(turned), r"a\u{202e}b\u{2028}c\u{feff}\u{85}");
        assert_eq!(printable("Grüße, 東京 – 1/2…"), "Grüße, 東京 – 1/2…");
    }
}
