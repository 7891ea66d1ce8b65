//! A machine that answers.

use anyhow::Result;

use crate::ssh::{self, Address, Connection, Far, FarBinary, Questions, Settings};
use crate::wire::client::Client;

/// A far end, and the connection that it is at the end of.
pub struct Reached {
    pub client: Client,
    connection: Connection,
}

impl Reached {
    /// Logs in, starts the far end there and greets it.
    pub fn start(
        address: &Address,
        settings: &Settings,
        far: &FarBinary,
        questions: &Questions,
        heard: impl Fn(&str) + Send + 'static,
    ) -> Result<Reached> {
        let found = ssh::start(address, settings, far, &["serve"], questions, heard)?;
        Reached::greet(address, found, far)
    }

    /// Logs in to a rescue, where the far end is what answers, and greets it.
    pub fn rescue(
        address: &Address,
        settings: &Settings,
        far: &FarBinary,
        questions: &Questions,
    ) -> Result<Reached> {
        Reached::greet(address, ssh::reach(address, settings, "serve", questions)?, far)
    }

    fn greet(address: &Address, found: Far, far: &FarBinary) -> Result<Reached> {
        let Far { input, output, connection } = found;
        match Client::greet(output, input, Some(far.sha256)) {
            Ok(client) => Ok(Reached { client, connection }),
            Err(error) => Err(connection.broken().context(format!("{address}: {error:#}"))),
        }
    }

    /// Hangs up.
    pub fn leave(self) -> Result<()> {
        drop(self.client);
        self.connection.finish()
    }
}
