//! The conversation with a daemon: a request, what it says while it works, its answer.

use super::DaemonError;
use super::channel::Channel;
use super::log::{Message, TEXT_LIMIT};
use super::wire::{Decoder, Encoder, Stop};

const HELLO: u64 = 0x6e69_7863;
const HELLO_BACK: u64 = 0x6478_696f;

// 1.37 is the last version before features are negotiated, and none of them is for us.
const OUR_MINOR: u64 = 37;
// AddMultipleToStore came with it, in Nix 2.4.
const OLDEST_MINOR: u64 = 32;
const TELLS_VERSION: u64 = 33;
const TELLS_TRUST: u64 = 35;

// A message holds at most some such texts; what is still incomplete by then never ends.
const UNREAD_LIMIT: usize = 4 * TEXT_LIMIT as usize;

/// Whether a daemon does for us what only trusted users may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Trusted,
    NotTrusted,
    /// Older than Nix 2.15, it does not say.
    Unknown,
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The second part of the protocol version spoken; the first is 1.
    pub minor: u64,
    /// Of Nix. Daemons older than 2.7 do not say.
    pub version: Option<String>,
    pub trust: Trust,
}

pub struct Link<'a> {
    channel: Channel,
    heard: Box<dyn FnMut(&str) + 'a>,
    // Why the two sides no longer agree on where a message begins.
    broken: Option<DaemonError>,
}

impl<'a> Link<'a> {
    pub fn new(channel: Channel, heard: Box<dyn FnMut(&str) + 'a>) -> Self {
        Link { channel, heard, broken: None }
    }

    /// Agrees with the daemon on a version; the smaller one counts.
    pub fn greet(&mut self) -> Result<Greeting, DaemonError> {
        let hello = Encoder::operation(HELLO).number(1 << 8 | OUR_MINOR);
        self.send_unheard(&hello.0)?;
        if self.read(|from| from.number())? != HELLO_BACK {
            return Err(self.breaks(DaemonError::NoDaemon));
        }
        let version = self.read(|from| from.number())?;
        let (major, minor) = (version >> 8, version & 0xff);
        if major != 1 || minor < OLDEST_MINOR {
            return Err(self.breaks(DaemonError::Version { major, minor }));
        }
        let minor = minor.min(OUR_MINOR);
        // No processor to run on and no space to reserve; both are relics.
        self.send_unheard(&Encoder::default().number(0).number(0).0)?;
        let mut version = None;
        if minor >= TELLS_VERSION {
            version = Some(self.read(|from| from.text().map(crate::progress::printable))?);
        }
        let mut trust = Trust::Unknown;
        if minor >= TELLS_TRUST {
            trust = self.read(|from| match from.number()? {
                0 => Ok(Trust::Unknown),
                1 => Ok(Trust::Trusted),
                2 => Ok(Trust::NotTrusted),
                _ => Err(Stop::Garbled("it trusts in an unknown way")),
            })?;
        }
        self.listen()?;
        Ok(Greeting { minor, version, trust })
    }

    /// Asks and waits until the answer is about to come.
    pub fn request(&mut self, request: Encoder) -> Result<(), DaemonError> {
        self.send(&request.0)?;
        self.listen()
    }

    /// Sends, while what the daemon says meanwhile is heard. An error of the daemon ends the conversation.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        self.unbroken()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.channel.exchange(rest);
            self.overhear().map_err(|error| self.breaks(error))?;
            rest = &rest[sent.map_err(|error| self.breaks(error))?..];
        }
        Ok(())
    }

    /// Sends, and leaves what comes meanwhile for later: in a greeting there are no messages, and
    /// of several requests the first answers come before the last one is sent.
    pub fn send_unheard(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        self.unbroken()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.channel.exchange(rest).map_err(|error| self.breaks(error))?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    fn overhear(&mut self) -> Result<(), DaemonError> {
        loop {
            match self.parse(Message::read) {
                Ok(Message::Lines(lines)) => lines.iter().for_each(|line| (self.heard)(line)),
                Ok(Message::Activity) => (),
                Ok(Message::Error(text)) => return Err(DaemonError::Said(text)),
                Ok(Message::Last) => return Err(DaemonError::Garbled("it answers before it was asked")),
                Err(Stop::Short) => return Ok(()),
                Err(Stop::Garbled(what)) => return Err(DaemonError::Garbled(what)),
            }
        }
    }

    /// Hears the daemon out until it is done.
    pub fn listen(&mut self) -> Result<(), DaemonError> {
        loop {
            match self.read(Message::read)? {
                Message::Lines(lines) => lines.iter().for_each(|line| (self.heard)(line)),
                Message::Activity => (),
                Message::Error(text) => return Err(DaemonError::Said(text)),
                Message::Last => return Ok(()),
            }
        }
    }

    /// Waits for a part of an answer.
    pub fn read<T>(&mut self, part: impl Fn(&mut Decoder) -> Result<T, Stop>) -> Result<T, DaemonError> {
        self.unbroken()?;
        loop {
            match self.parse(&part) {
                Ok(read) => return Ok(read),
                Err(Stop::Garbled(what)) => return Err(self.breaks(DaemonError::Garbled(what))),
                Err(Stop::Short) => self.channel.receive().map_err(|error| self.breaks(error))?,
            }
        }
    }

    fn parse<T>(&mut self, part: impl Fn(&mut Decoder) -> Result<T, Stop>) -> Result<T, Stop> {
        let mut decoder = Decoder::new(self.channel.unread());
        match part(&mut decoder) {
            Ok(read) => {
                let consumed = decoder.consumed();
                self.channel.consume(consumed);
                Ok(read)
            }
            Err(Stop::Short) if self.channel.unread().len() > UNREAD_LIMIT => {
                Err(Stop::Garbled("a message has no end"))
            }
            Err(stop) => Err(stop),
        }
    }

    fn unbroken(&self) -> Result<(), DaemonError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn breaks(&mut self, error: DaemonError) -> DaemonError {
        self.broken = Some(error.clone());
        error
    }
}
