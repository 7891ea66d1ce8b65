//! The installation itself: tools into the machine's memory, then the plan, and again after a cut link.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Story;
use super::state::State;
use crate::commands::remote::Reached;
use crate::facts::target::RunsFrom;
use crate::plan::Step;
use crate::progress::Event;
use crate::run::Keys;
use crate::store::PathInfo;
use crate::wire::client::Supplies;
use crate::wire::frame::is_cut;
use crate::wire::message::Installation;
use crate::wire::sending::Item;

// How long a link may be away before we no longer wait for it. The rescue does.
const AWAY: Duration = Duration::from_secs(600);

impl Story<'_> {
    /// Puts the system onto the machine's disk. The machine still runs what it ran, or its rescue.
    pub(super) fn install(&self, mut reached: Reached, state: &mut State, keys: Keys) -> Result<Reached> {
        let facts = reached.client.examine().with_context(|| self.name())?;
        let in_rescue = facts.runs_from == RunsFrom::Rescue;
        let mut deadline = Instant::now() + AWAY;
        loop {
            let begun = Instant::now();
            let error = match self.install_once(&mut reached, state, &keys) {
                Ok(()) => return Ok(reached),
                Err(error) => error,
            };
            if !in_rescue || !is_cut(&error) {
                return Err(error.context(self.stopped(in_rescue)));
            }
            let text = format!("{}: {error:#}; reaching it anew", self.name());
            self.progress.event(Event::Warning { text });
            if begun.elapsed() > AWAY {
                deadline = Instant::now() + AWAY;
            }
            drop(reached);
            let left = deadline.saturating_duration_since(Instant::now());
            reached = self.reach_rescue_within(state, left).with_context(|| self.stopped(true))?;
            // Its store in memory is asked about anew.
            reached.client.examine().with_context(|| self.name())?;
        }
    }

    fn stopped(&self, in_rescue: bool) -> String {
        let host = self.name();
        match in_rescue {
            true => format!(
                "installing onto {host}, which waits in its rescue (install-via-ssh --resume {host} goes on)"
            ),
            false => format!("installing onto {host} (the same command again starts over)"),
        }
    }

    fn install_once(&self, reached: &mut Reached, state: &State, keys: &Keys) -> Result<()> {
        let (plan, first) = state.plan.at_far_end();
        self.begins(state, first.saturating_sub(1));
        self.send_tools(reached, state)?;
        let paths = &self.prepared.closure.paths;
        let asked = Installation {
            plan: serde_json::to_string(&plan).context("writing the plan")?,
            paths: paths.clone(),
            keys: keys.iter().map(|(name, key)| (name.clone(), key.clone())).collect(),
            host_key: state.new_host_key(),
        };
        let supplies = Supplies {
            plan: &state.plan,
            first,
            paths,
            parcels: &self.parcels,
            extra_files: extra_files(state),
        };
        reached.client.install(asked, &supplies, self.progress)
    }

    /// Sends what the steps on the disk need, unless the machine has it.
    fn send_tools(&self, reached: &mut Reached, state: &State) -> Result<()> {
        let known: BTreeMap<_, _> =
            self.prepared.closure.paths.iter().map(|info| (&info.path, info)).collect();
        let tools: Vec<PathInfo> = state
            .tool_paths()
            .iter()
            .filter_map(|path| known.get(path).map(|info| (*info).clone()))
            .collect();
        let names = tools.iter().map(|info| info.path.clone()).collect();
        let lack = reached.client.missing(names, false, self.progress)?;
        let items: Vec<Item> =
            lack.paths.iter().map(|&index| Item { info: tools[index].clone(), base: None }).collect();
        if items.is_empty() {
            return Ok(());
        }
        self.progress.event(Event::Start { total: items.iter().map(|item| item.info.nar_size).sum() });
        let sent = reached.client.send(items, &self.parcels, self.progress);
        self.progress.event(Event::Finish);
        sent
    }
}

fn extra_files(state: &State) -> Option<&std::path::Path> {
    state.plan.steps.iter().find_map(|step| match step {
        Step::ExtraFiles { from } => Some(from.as_path()),
        _ => None,
    })
}
