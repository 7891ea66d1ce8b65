//! One connection, from the first byte to the last: what it may ask for, which is little.

use std::sync::Arc;

use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Error, Pty};
use tokio::runtime;
use tokio::task::spawn_blocking;

use super::House;
use super::pipe::{Inbox, Input, Output};
use crate::system::rescue::Visit;

/// The only command there is.
const COMMAND: &[u8] = b"serve";
// What a shell would return for a program that was killed.
const ABORTED: u32 = 128 + 6;

pub struct Guest {
    house: Arc<House>,
    place: u64,
    /// Somebody who has shown the key is there.
    visit: Option<Visit>,
    /// The one channel that was opened.
    channel: Option<ChannelId>,
    /// What the session that runs on it reads.
    inbox: Option<Arc<Inbox>>,
}

impl Guest {
    pub fn new(house: Arc<House>, place: u64) -> Self {
        Guest { house, place, visit: None, channel: None, inbox: None }
    }

    fn knows(&self, key: &russh::keys::PublicKey) -> Auth {
        if key.key_data() == self.house.authorized.key_data() { Auth::Accept } else { Auth::reject() }
    }

    fn inbox_of(&self, channel: ChannelId) -> Option<&Arc<Inbox>> {
        self.inbox.as_ref().filter(|_| self.channel == Some(channel))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.house.hall.leave(self.place);
        if let Some(inbox) = &self.inbox {
            inbox.cut();
        }
    }
}

/// Runs a session to its end, and says how it ended.
async fn run(house: Arc<House>, inbox: Arc<Inbox>, connection: Handle, channel: ChannelId) {
    let input = Input(Arc::clone(&inbox));
    let output =
        Output { runtime: runtime::Handle::current(), connection: connection.clone(), channel, inbox };
    let session = move || (house.session)(Box::new(input), Box::new(output));
    let status = spawn_blocking(session).await.map_or(ABORTED, |status| status as u32);
    // Who is gone does not hear it.
    let _ = connection.exit_status_request(channel, status).await;
    let _ = connection.eof(channel).await;
    let _ = connection.close(channel).await;
}

impl Handler for Guest {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        Ok(self.knows(offer.public_key))
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(self.knows(key.public_key))
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Error> {
        self.house.hall.leave(self.place);
        self.visit = Some(self.house.visits.arrive());
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        // An answer that is not given is a refusal.
        if self.channel.is_none() {
            self.channel = Some(channel.id());
            reply.accept().await;
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        if command != COMMAND || self.inbox.is_some() {
            return session.channel_failure(channel);
        }
        let inbox = Arc::<Inbox>::default();
        self.inbox = Some(Arc::clone(&inbox));
        tokio::spawn(run(Arc::clone(&self.house), inbox, session.handle(), channel));
        session.channel_success(channel)
    }

    fn adjust_window(&mut self, channel: ChannelId, current: u32) -> u32 {
        self.inbox_of(channel).map_or(current, |inbox| inbox.window())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Error> {
        let Some(inbox) = self.inbox_of(channel) else { return Ok(()) };
        if !inbox.put(data) {
            return Err(Error::Inconsistent);
        }
        inbox.pause(data.len()).await;
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(inbox) = self.inbox_of(channel) {
            inbox.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Error> {
        if let Some(inbox) = self.inbox_of(channel) {
            inbox.cut();
        }
        Ok(())
    }

    // The package leaves these without an answer, and the client would wait for one.

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
}
