//! What a session reads and writes: two plain streams, with a connection behind them.
//!
//! The client may send as much as its window allows, and the SSH package opens that again whenever
//! half of it is used up, read or not. So [`Inbox::window`] is what it shall be opened to: while too
//! much waits to be read, to two bytes. The client then sends these two and stops, each time as
//! soon as it may, and the answers to everything else it says are not held up.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use russh::ChannelId;
use russh::server::Handle;
use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::timeout;

/// What a client may send before it is told to go on: enough for 50 MB/s over a way of 20 ms.
pub const WINDOW: u32 = 2 << 20;
// A window is opened again when less than half is left: one of two when it is used up, one of one never.
const TRICKLE: u32 = 2;
// While more than this waits, the window stays all but shut.
const PLENTY: usize = 1 << 20;
// What can come nevertheless: one window, and the half of it that was opened just before. The rest
// is for what trickles in within half a day. A client that sends more keeps to no window.
const LIMIT: usize = PLENTY + 2 * WINDOW as usize;
// How often a shut window lets two bytes in: rarely enough to cost nothing.
const TRICKLE_INTERVAL: Duration = Duration::from_millis(100);
// What goes into one message to the connection, and what small packets are gathered to.
const PIECE: usize = 64 << 10;
// Below this, what each piece costs by itself would count.
const SMALL: usize = 4 << 10;

/// What a client has sent and the session has not read yet.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    /// For the session: there is something to read, or never again.
    news: Condvar,
    /// For the connection: there is less to read.
    room: Notify,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece is read.
    start: usize,
    /// How many bytes are to be read.
    length: usize,
    ended: bool,
    /// Nobody hears what is written.
    gone: bool,
    /// Nobody will read on.
    ignored: bool,
}

impl Inbox {
    /// Takes what has come. `false` tells that the client does not keep to its window.
    pub fn put(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if !state.ignored && !state.ended && !bytes.is_empty() {
            match state.pieces.back_mut() {
                Some(last) if bytes.len() < SMALL && last.len() < PIECE => last.extend(bytes),
                _ => state.pieces.push_back(bytes.to_vec()),
            }
            state.length += bytes.len();
            self.news.notify_all();
        }
        state.length <= LIMIT
    }

    /// No more will come.
    pub fn end(&self) {
        self.state().ended = true;
        self.news.notify_all();
    }

    /// No more will come, and nothing gets back.
    pub fn cut(&self) {
        self.state().gone = true;
        self.end();
    }

    /// What the window is to be opened to the next time.
    pub fn window(&self) -> u32 {
        if self.is_full() { TRICKLE } else { WINDOW }
    }

    /// Waits a little after `count` bytes have trickled in through a shut window.
    pub async fn pause(&self, count: usize) {
        if count <= TRICKLE as usize && self.is_full() {
            // Whichever comes first.
            let _ = timeout(TRICKLE_INTERVAL, self.room.notified()).await;
        }
    }

    fn is_full(&self) -> bool {
        self.state().length > PLENTY
    }

    // Nothing in it is ever half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let waits = |state: &mut State| state.length == 0 && !state.ended;
        let state = self.news.wait_while(self.state(), waits);
        let mut state = state.unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut count = 0;
        while let Some(piece) = state.pieces.front().filter(|_| count < buffer.len()) {
            let rest = &piece[state.start..];
            let length = rest.len().min(buffer.len() - count);
            buffer[count..count + length].copy_from_slice(&rest[..length]);
            let read = length == rest.len();
            count += length;
            state.start += length;
            if read {
                state.pieces.pop_front();
                state.start = 0;
            }
        }
        let was_full = state.length > PLENTY;
        state.length -= count;
        if was_full && state.length <= PLENTY {
            self.room.notify_one();
        }
        count
    }
}

/// The reading end of an inbox.
pub struct Input(pub Arc<Inbox>);

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(if buffer.is_empty() { 0 } else { self.0.read(buffer) })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.ignored, state.length, state.start) = (true, 0, 0);
        state.pieces = VecDeque::new();
        self.0.room.notify_one();
    }
}

/// What a session says. It may be used where nothing asynchronous is going on, and only there.
pub struct Output {
    pub runtime: runtime::Handle,
    pub connection: Handle,
    pub channel: ChannelId,
    pub inbox: Arc<Inbox>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        if piece.is_empty() {
            return Ok(0);
        }
        if self.inbox.state().gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        // Waits for as long as there is no room in the client's window.
        let sent = self.runtime.block_on(self.connection.data(self.channel, piece.to_vec()));
        sent.map(|()| piece.len()).map_err(|_| ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing is kept back: the connection sends what it has at once.
        Ok(())
    }
}
