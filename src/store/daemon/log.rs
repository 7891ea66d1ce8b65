//! What a daemon says while it works, before it answers.

use super::wire::{Decoder, Stop};

const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const NEXT: u64 = 0x6f6c_6d67;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;
const READ: u64 = 0x6461_7461;
const WRITE: u64 = 0x6461_7416;

/// The longest text in a message; longer ones are meant to hurt.
pub const TEXT_LIMIT: u64 = 1 << 20;
const FIELDS_LIMIT: u64 = 256;
const TRACES_LIMIT: u64 = 1000;
// What a person reads of it.
const SHOWN: usize = 2000;

/// One message of a working daemon.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The work is done, and the answer follows.
    Last,
    /// The work has failed, and no answer follows.
    Error(String),
    Lines(Vec<String>),
    /// What it counts for a progress bar.
    Activity,
}

impl Message {
    pub fn read(from: &mut Decoder) -> Result<Message, Stop> {
        match from.number()? {
            LAST => Ok(Message::Last),
            NEXT => Ok(Message::Lines(lines(from.string(TEXT_LIMIT)?))),
            ERROR => error(from),
            START_ACTIVITY => {
                // Its id, level and type.
                (0..3).try_for_each(|_| from.number().map(drop))?;
                from.string(TEXT_LIMIT)?;
                fields(from)?;
                let _parent = from.number()?;
                Ok(Message::Activity)
            }
            STOP_ACTIVITY => from.number().map(|_id| Message::Activity),
            RESULT => {
                let (_id, _type) = (from.number()?, from.number()?);
                fields(from)?;
                Ok(Message::Activity)
            }
            // Only operations that we do not use ask the client for data or send it some.
            READ | WRITE => Err(Stop::Garbled("it moves data that nobody asked for")),
            _ => Err(Stop::Garbled("a message is unknown")),
        }
    }
}

// The structured form, which every daemon we speak to uses.
fn error(from: &mut Decoder) -> Result<Message, Stop> {
    const ODD: Stop = Stop::Garbled("an error has an unknown form");
    if from.string(TEXT_LIMIT)? != b"Error" {
        return Err(ODD);
    }
    let _level = from.number()?;
    let _name = from.string(TEXT_LIMIT)?;
    let text = lines(from.string(TEXT_LIMIT)?).join(" ");
    // A position in a source file was never sent.
    if from.number()? != 0 {
        return Err(ODD);
    }
    for _ in 0..from.count(TRACES_LIMIT)? {
        if from.number()? != 0 {
            return Err(ODD);
        }
        from.string(TEXT_LIMIT)?;
    }
    Ok(Message::Error(text))
}

fn fields(from: &mut Decoder) -> Result<(), Stop> {
    for _ in 0..from.count(FIELDS_LIMIT)? {
        match from.number()? {
            0 => drop(from.number()?),
            1 => drop(from.string(TEXT_LIMIT)?),
            _ => return Err(Stop::Garbled("a field has an unknown type")),
        }
    }
    Ok(())
}

/// Returns the lines of a text for a terminal: a bounded part, uncoloured, with control characters shown.
pub fn lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]);
    let lines = text.lines().map(|line| crate::progress::printable(uncoloured(line).trim()));
    lines.filter(|line| !line.is_empty()).collect()
}

// Nix colours the names in its messages.
fn uncoloured(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        let end = after.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(after.len());
        match after[end..].strip_prefix('m') {
            Some(after) => {
                plain.push_str(before);
                rest = after;
            }
            None => {
                plain.push_str(&rest[..before.len() + 2]);
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::super::wire::Encoder;
    use super::*;

    #[test]
    fn each_message_is_read_whole_and_only_whole() {
        let error = || Encoder::operation(ERROR).string("Error").number(0).string("Error");
        for (bytes, message) in [
            (Encoder::operation(LAST), Message::Last),
            (
                Encoder::operation(NEXT).string("one\n\x1b[31;1mtwo\x1b[0m \x1b[2J\n"),
                Message::Lines(vec!["one".into(), r"two \u{1b}[2J".into()]),
            ),
            (
                error().string("hash mismatch;\n  got: x").number(0).number(1).number(0).string("while"),
                Message::Error("hash mismatch; got: x".into()),
            ),
            (error().string("no").number(0).number(0), Message::Error("no".into())),
            (
                Encoder::operation(START_ACTIVITY)
                    .number(9)
                    .number(3)
                    .number(100)
                    .string("copying")
                    .number(2)
                    .number(0)
                    .number(5)
                    .number(1)
                    .string("field")
                    .number(0),
                Message::Activity,
            ),
            (Encoder::operation(STOP_ACTIVITY).number(9), Message::Activity),
            (
                Encoder::operation(RESULT).number(9).number(105).number(1).number(0).number(4),
                Message::Activity,
            ),
        ] {
            let mut decoder = Decoder::new(&bytes.0);
            assert_eq!(Message::read(&mut decoder), Ok(message));
            assert_eq!(decoder.consumed(), bytes.0.len());
            for end in 0..bytes.0.len() {
                assert_eq!(Message::read(&mut Decoder::new(&bytes.0[..end])), Err(Stop::Short));
            }
        }
    }

    #[test]
    fn what_no_daemon_says_is_refused() {
        for bytes in [
            Encoder::operation(1),
            Encoder::operation(READ).number(8),
            Encoder::operation(WRITE).string("x"),
            Encoder::operation(NEXT).number(TEXT_LIMIT + 1),
            Encoder::operation(ERROR).string("old form").number(1),
            Encoder::operation(RESULT).number(1).number(1).number(u64::MAX),
            Encoder::operation(RESULT).number(1).number(1).number(1).number(2),
        ] {
            assert!(matches!(Message::read(&mut Decoder::new(&bytes.0)), Err(Stop::Garbled(_))));
        }
    }

    #[test]
    fn long_texts_are_cut_and_odd_ones_shown() {
        assert_eq!(lines("x".repeat(1 << 20).as_bytes()).concat().len(), SHOWN);
        assert_eq!(lines(b"\xff\x1b[\x1b[3"), ["\u{fffd}\\u{1b}[\\u{1b}[3"]);
    }
}
