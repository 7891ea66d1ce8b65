//! Several machines at once: what happens on each, a line a machine.

use std::io::Write;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Event, Lines, Progress};
use crate::sys::terminal;

/// How to tell what happens on several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Terminal,
    Lines,
    Json,
    Silent,
}

/// What tells of all of them.
pub struct Hosts {
    manner: Manner,
    bars: MultiProgress,
    width: usize,
}

impl Hosts {
    pub fn new<'a>(manner: Manner, names: impl Iterator<Item = &'a str>) -> Hosts {
        let bars = MultiProgress::with_draw_target(target());
        Hosts { manner, bars, width: names.map(|name| name.chars().count()).max().unwrap_or(0) }
    }

    /// Returns what tells of one machine.
    pub fn of<'a>(&'a self, name: &'a str) -> OfHost<'a> {
        let bar = (self.manner == Manner::Terminal).then(|| {
            let bar = self.bars.add(ProgressBar::no_length());
            bar.set_style(style(WAITS));
            bar.set_prefix(format!("{name:width$}", width = self.width));
            bar.set_message("waiting");
            bar
        });
        OfHost { hosts: self, name, bar, lines: Lines::of(name), said: Mutex::new(false) }
    }

    /// Tells on stderr how all ended, in a table in which nothing is cut off.
    pub fn table<'a>(&self, rows: impl Iterator<Item = (&'a str, String)>) {
        // The bars have cut off what did not fit.
        let _ = self.bars.clear();
        for (name, text) in rows {
            terminal::tell(row(name, &text, self.width));
        }
    }

    /// Asks something on the terminal while no bar is there. What the bars tell of goes on meanwhile.
    pub fn aside<T>(&self, ask: impl FnOnce() -> T) -> T {
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        let answer = ask();
        self.bars.set_draw_target(target());
        answer
    }

    /// Prints lines between the bars, on stderr.
    pub fn say(&self, text: &str) {
        self.bars.suspend(|| terminal::tell(text));
    }
}

const WAITS: &str = "{prefix}  {wide_msg}";
const COPIES: &str = "{prefix}  {bar:28} {bytes:>10} of {total_bytes}, {bytes_per_sec}, {eta} left";

fn target() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr_with_hz(8)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("it is a template").progress_chars("━╸ ")
}

/// What tells of one machine among others.
pub struct OfHost<'a> {
    hosts: &'a Hosts,
    name: &'a str,
    bar: Option<ProgressBar>,
    lines: Lines,
    /// Whether the bar tells how it ended.
    said: Mutex<bool>,
}

impl OfHost<'_> {
    /// Tells how it ended, in words or as the last event, and leaves it there.
    pub fn over(&self, words: &str, last: &impl Serialize) {
        *self.said() = true;
        if let Some(bar) = &self.bar {
            bar.set_style(style(WAITS));
            bar.finish_with_message(super::printable(words.lines().next().unwrap_or_default()));
        } else if self.hosts.manner == Manner::Json {
            self.print(last);
        }
    }

    fn print(&self, event: &impl Serialize) {
        let line = json(self.name, event);
        // Nobody listening is no reason to stop in the middle of a deployment.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    fn said(&self) -> std::sync::MutexGuard<'_, bool> {
        self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn on_bar(&self, bar: &ProgressBar, event: &Event) {
        match event {
            Event::Start { total } => {
                bar.set_style(style(COPIES));
                bar.reset();
                bar.set_length(total.0);
            }
            Event::Advance { bytes } => bar.inc(bytes.0),
            Event::Finish => bar.set_style(style(WAITS)),
            Event::Step { title, .. } => {
                bar.set_style(style(WAITS));
                bar.set_message(title.clone());
            }
            Event::Output { line, .. } => bar.set_message(super::printable(line)),
            Event::Warning { text } => {
                self.hosts.say(&format!("{}: warning: {text}", self.name));
            }
            Event::Plan { .. } => {}
            Event::Done { text } => bar.set_message(text.clone()),
        }
    }
}

impl Progress for OfHost<'_> {
    fn event(&self, event: Event) {
        match (self.hosts.manner, &self.bar) {
            (Manner::Terminal, Some(bar)) => self.on_bar(bar, &event),
            (Manner::Terminal | Manner::Silent, _) => {}
            (Manner::Lines, _) => self.lines.event(event),
            (Manner::Json, _) => self.print(&event),
        }
    }
}

impl Drop for OfHost<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !*self.said()) {
            bar.finish_and_clear();
        }
    }
}

/// Returns a row of the table: the name once, and further lines below the first.
fn row(name: &str, text: &str, width: usize) -> String {
    let rest = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ").or(rest.strip_prefix(' ')));
    let lines: Vec<String> = rest.unwrap_or(text).lines().map(super::printable).collect();
    let margin = format!("\n{:width$}  ", "");
    format!("{name:width$}  {}", lines.join(&margin))
}

/// Returns an event as a line, with the machine before all else.
fn json(name: &str, event: &impl Serialize) -> String {
    let mut fields = Map::from_iter([("host".to_owned(), Value::from(name))]);
    match serde_json::to_value(event) {
        Ok(Value::Object(event)) => fields.extend(event),
        _ => unreachable!("an event is an object"),
    }
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_name_once_and_all_lines() {
        for (text, expected) in [
            ("web1 runs it", "web1   runs it"),
            ("web1: it is full", "web1   it is full"),
            ("web10 runs it", "web1   web10 runs it"),
            ("error: no\n    ssh: \x1b[2J", "web1   error: no\n           ssh: \\u{1b}[2J"),
            ("", "web1   "),
        ] {
            assert_eq!(row("web1", text, 5), expected);
        }
    }

    #[test]
    fn a_line_of_json_names_its_machine() {
        let event = Event::Warning { text: "x".into() };
        let expected = serde_json::json!({"host": "web1", "event": "warning", "text": "x"});
        assert_eq!(serde_json::from_str::<Value>(&json("web1", &event)).unwrap(), expected);
    }
}
