//! The near end of a conversation.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::VERSION;
use super::answers::{Answers, overhear};
use super::frame::{DATA_LIMIT, WireError, Writer, is_cut};
use super::message::{Answer, Ask, Installation, Similar};
use super::parcels::Parcels;
use super::sending::{self, Item};
use crate::facts::HostFacts;
use crate::facts::target::TargetFacts;
use crate::plan::Plan;
use crate::progress::{Event, Progress, Silent};
use crate::store::PathInfo;
use crate::store::path::StorePath;
use crate::sys::bundle;
use crate::system::deployment::{Deployment, Ended};

// A far end says something at once, or not at all; but it may be started by a slow disk over a slow link.
const GREETING: Duration = Duration::from_secs(60);
// Only to gather small frames into packets.
const BUFFER: usize = 64 << 10;

/// A far end that is listening.
pub struct Client {
    writer: Writer<BufWriter<Box<dyn Write + Send>>>,
    answers: Answers,
}

/// What of a closure a far end lacks.
pub struct Lack {
    /// Positions of the missing paths, ascending.
    pub paths: Vec<usize>,
    pub similar: Vec<Similar>,
}

impl Client {
    /// Greets the far end, which has to be the program of this SHA-256 where one is given.
    pub fn greet(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        program: Option<[u8; 32]>,
    ) -> Result<Client> {
        let writer = Writer(BufWriter::with_capacity(BUFFER, Box::new(output) as Box<dyn Write + Send>));
        let mut client = Client { writer, answers: Answers::of(input) };
        let greeted = client.said(&Ask::Hello { version: VERSION }).and_then(|()| client.greeted(program));
        match greeted {
            Ok(()) => Ok(client),
            Err(error) => Err(client.answers.instead_of(error)),
        }
    }

    fn greeted(&self, program: Option<[u8; 32]>) -> Result<()> {
        match self.answers.wait_for(GREETING)? {
            Some(Answer::Hello { version, .. }) if version != VERSION => bail!(WireError::Version(version)),
            Some(Answer::Hello { program: theirs, .. }) => match program {
                Some(ours) if ours[..] != theirs[..] => {
                    bail!("the program that answers is not the one that was sent; is somebody in between?")
                }
                _ => Ok(()),
            },
            Some(_) => bail!(WireError::Garbled("it does not say hello")),
            None => bail!("the other machine has said nothing for {} seconds", GREETING.as_secs()),
        }
    }

    /// Looks at the machine, and at whether `system` is valid in the root there.
    pub fn look(&mut self, root: &str, system: &StorePath) -> Result<HostFacts> {
        let question = Ask::Look { root: root.to_owned(), system: system.clone() };
        self.ask(&question, &Silent, |answer| match answer {
            Answer::Facts(facts) => Heard::All(*facts),
            other => Heard::Other(other),
        })
    }

    /// Asks which of `paths` are missing. With `substitute` the far end's own caches are asked before.
    pub fn missing(
        &mut self,
        paths: Vec<StorePath>,
        substitute: bool,
        progress: &dyn Progress,
    ) -> Result<Lack> {
        let count = paths.len();
        let question = Ask::Missing { paths, substitute };
        let (paths, similar) = self.ask(&question, progress, |answer| match answer {
            Answer::Missing { paths, similar } => Heard::All((paths, similar)),
            other => Heard::Other(other),
        })?;
        let paths: Vec<usize> = paths.into_iter().map(|index| index as usize).collect();
        if !paths.is_sorted_by(|a, b| a < b) || paths.last().is_some_and(|&last| last >= count) {
            bail!(WireError::Garbled("it lacks what nobody asked about"));
        }
        Ok(Lack { paths, similar })
    }

    /// Sends paths, each after all it refers to, and returns when they are valid there.
    pub fn send(&mut self, items: Vec<Item>, parcels: &Parcels, progress: &dyn Progress) -> Result<()> {
        let infos = items.iter().map(|item| item.info.clone()).collect();
        self.said(&Ask::Receive { paths: infos })
            .and_then(|()| sending::send(items, parcels, &mut self.writer, &self.answers, progress))
            .map_err(|error| self.answers.instead_of(error))
    }

    /// Makes a system that is there the machine's. `started` hears by which name to ask about it.
    pub fn deploy(
        &mut self,
        deployment: &Deployment,
        started: &mut dyn FnMut(String),
        progress: &dyn Progress,
    ) -> Result<Ended> {
        let question = Ask::Deploy(deployment.clone());
        self.ask(&question, progress, |answer| match answer {
            Answer::Ended(ended) => Heard::All(ended),
            Answer::Started { token } => {
                started(token);
                Heard::Part
            }
            other => Heard::Other(other),
        })
    }

    /// Says that the machine can be reached, and returns what came of the deployment.
    pub fn confirm(&mut self, token: &str, progress: &dyn Progress) -> Result<Ended> {
        self.ask(&Ask::Confirm { token: token.to_owned() }, progress, |answer| match answer {
            Answer::Ended(ended) => Heard::All(ended),
            other => Heard::Other(other),
        })
    }

    /// Restarts the machine, and tells whether it said so: a restart may be what cuts a link.
    pub fn reboot(&mut self) -> Result<bool> {
        let answered = self.ask(&Ask::Reboot, &Silent, |answer| match answer {
            Answer::Restarting => Heard::All(true),
            other => Heard::Other(other),
        });
        answered.or_else(|error| if is_cut(&error) { Ok(false) } else { Err(error) })
    }

    /// Looks at the machine as one that is to run another system. Paths that are missing may then be sent
    /// into its memory.
    pub fn examine(&mut self) -> Result<TargetFacts> {
        self.ask(&Ask::Examine, &Silent, |answer| match answer {
            Answer::Target(facts) => Heard::All(*facts),
            other => Heard::Other(other),
        })
    }

    /// Makes the machine start a kernel with an initrd, and returns when it is about to.
    pub fn jump(
        &mut self,
        command_line: &str,
        kernel: &mut dyn Read,
        initrd: &mut dyn Read,
        progress: &dyn Progress,
    ) -> Result<()> {
        let question = Ask::Jump { command_line: command_line.to_owned() };
        let mut sent = || {
            self.writer.message(&question)?;
            send_data(&mut self.writer, kernel, progress)?;
            send_data(&mut self.writer, initrd, progress)?;
            self.writer.0.flush().context("sending")
        };
        if let Err(error) = sent() {
            return Err(self.answers.instead_of(error));
        }
        self.hear(progress, |answer| match answer {
            Answer::Jumping => Heard::All(()),
            other => Heard::Other(other),
        })
    }

    /// Performs a plan on the machine's disk, and sends what it asks for on the way.
    pub fn install(
        &mut self,
        installation: Installation,
        supplies: &Supplies,
        progress: &dyn Progress,
    ) -> Result<()> {
        let steps = supplies.plan.steps.len();
        self.said(&Ask::Install(installation)).map_err(|error| self.answers.instead_of(error))?;
        loop {
            match self.answers.wait()? {
                Answer::Installed => return Ok(()),
                Answer::Begins { step } => {
                    let step = supplies.first + step as usize;
                    let Some(title) = supplies.plan.steps.get(step).map(ToString::to_string) else {
                        bail!(WireError::Garbled("it begins with a step that the plan has not"));
                    };
                    progress.event(Event::Step { number: step + 1, of: steps, title });
                }
                Answer::Wanted { paths } if paths.is_empty() => (),
                Answer::Wanted { paths } => {
                    let info = |index: u32| supplies.paths.get(index as usize).cloned();
                    let wanted: Option<Vec<PathInfo>> = paths.into_iter().map(info).collect();
                    let Some(wanted) = wanted else {
                        bail!(WireError::Garbled("it wants what nobody offers"))
                    };
                    progress.event(Event::Start { total: wanted.iter().map(|info| info.nar_size).sum() });
                    let items = wanted.into_iter().map(|info| Item { info, base: None }).collect();
                    let sent = self.send(items, supplies.parcels, progress);
                    progress.event(Event::Finish);
                    sent?;
                }
                Answer::WantsExtraFiles => {
                    let Some(dir) = supplies.extra_files else {
                        bail!(WireError::Garbled("it wants extra files, and there are none"))
                    };
                    let packed = bundle::pack(dir, Data(&mut self.writer));
                    let sent = packed.and_then(|()| self.writer.end());
                    let sent = sent.and_then(|()| self.writer.0.flush().context("sending"));
                    sent.map_err(|error| self.answers.instead_of(error))?;
                }
                other => overhear(other, progress)?,
            }
        }
    }

    fn said(&mut self, question: &Ask) -> Result<()> {
        self.writer.message(question)
    }

    /// Asks, passes on what is said meanwhile, and returns the answer.
    fn ask<T>(
        &mut self,
        question: &Ask,
        progress: &dyn Progress,
        hear: impl FnMut(Answer) -> Heard<T>,
    ) -> Result<T> {
        let said = self.writer.message(question).context("speaking to the other machine");
        said.map_err(|error| self.answers.instead_of(error))?;
        self.hear(progress, hear)
    }

    /// Passes on what is said, until it is the answer.
    fn hear<T>(&self, progress: &dyn Progress, mut hear: impl FnMut(Answer) -> Heard<T>) -> Result<T> {
        let mut answered = || loop {
            match hear(self.answers.wait()?) {
                Heard::All(answer) => return Ok(answer),
                Heard::Part => (),
                Heard::Other(other) => overhear(other, progress)?,
            }
        };
        answered().map_err(|error| self.answers.instead_of(error))
    }
}

/// What an installation may ask for.
pub struct Supplies<'a> {
    /// The whole plan, and the number of its first step that the far end takes.
    pub plan: &'a Plan,
    pub first: usize,
    /// The closure, as it was announced.
    pub paths: &'a [PathInfo],
    pub parcels: &'a Parcels,
    pub extra_files: Option<&'a Path>,
}

/// Sends all of `data`, to their end.
fn send_data(writer: &mut Writer<impl Write>, data: &mut dyn Read, progress: &dyn Progress) -> Result<()> {
    let mut buffer = vec![0; DATA_LIMIT];
    loop {
        match data.read(&mut buffer).context("reading what is to be sent")? {
            0 => return writer.end(),
            count => {
                writer.data(&buffer[..count])?;
                progress.advance(count as u64);
            }
        }
    }
}

/// What is written here is sent as data.
struct Data<'a, W>(&'a mut Writer<W>);

impl<W: Write> Write for Data<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(DATA_LIMIT);
        self.0.data(&bytes[..count]).map_err(io::Error::other)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.0.flush()
    }
}

/// What something that was said is to a question.
enum Heard<T> {
    /// The answer.
    All(T),
    /// Not yet the answer.
    Part,
    Other(Answer),
}

/// Returns the text of a root as it crosses the wire.
pub fn root_text(root: &Path) -> Result<String> {
    root.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", root.display()))
}
