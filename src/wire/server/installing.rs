//! An installation at the far end: the plan comes from the near end, and so does what fills the disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Place, Server, receive};
use crate::failure::refused;
use crate::plan::{DiskStep, HostKeys, Plan, RemoteStep, Step};
use crate::progress::{Event, Progress, Silent};
use crate::run::{self, Supply};
use crate::store::PathInfo;
use crate::store::copy;
use crate::store::db::{self, Database};
use crate::store::path::{STORE_DIR, StorePath};
use crate::sys::secret::Secret;
use crate::sys::{bundle, own_mounts, power};
use crate::system::host_keys::{self, HostKey};
use crate::system::rescue;
use crate::system::{etc, extra_files};
use crate::wire::frame::{Incoming, Reader, WireError, Writer};
use crate::wire::message::{Answer, Ask, Installation};
use crate::wire::receiving::Store;

// What the new host key is called, as sshd looks for it.
const NEW_KEY: &str = "ssh_host_ed25519_key";
// Where the extra files lie until they are put in their places.
const EXTRA: &str = ".install-via-extra";

// The connection before may be dead, and its end is noticed within a minute.
const TAKEOVER: Duration = Duration::from_secs(90);
const GLANCE: Duration = Duration::from_millis(200);

/// What the rescue keeps from one connection to the next.
pub struct Rescue {
    begun: Mutex<Option<run::Installation>>,
    /// Whether the disk is neither what it was nor what it shall be.
    half_written: AtomicBool,
    touched: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl Rescue {
    /// `touched` hears when the disk is about to be changed; if it fails, the disk is not.
    /// `half_written` tells that an earlier process has begun to change it.
    pub fn new(half_written: bool, touched: impl Fn() -> Result<()> + Send + Sync + 'static) -> Rescue {
        let half_written = AtomicBool::new(half_written);
        Rescue { begun: Mutex::new(None), half_written, touched: Box::new(touched) }
    }

    /// Returns what has arrived on the disk: whoever goes on needs none of it in memory.
    pub fn on_disk(&self) -> Result<BTreeSet<StorePath>> {
        let begun = take_over(&self.begun)?;
        begun.as_ref().and_then(run::Installation::root).map_or_else(|| Ok(BTreeSet::new()), valid)
    }

    /// Refuses a restart into what would not boot.
    pub fn can_reboot(&self) -> Result<()> {
        match self.half_written.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(refused(
                "the system is not on the disk yet, which would not boot; install-via-ssh --resume without --phases completes it",
            )),
        }
    }

    /// Restarts the machine, once all that is open has been let go.
    pub fn reboot(&self) -> Result<()> {
        if let Ok(mut begun) = self.begun.try_lock() {
            *begun = None;
        }
        power::restart()
    }
}

/// Waits until the connection before has let go of what was begun.
fn take_over(begun: &Mutex<Option<run::Installation>>) -> Result<MutexGuard<'_, Option<run::Installation>>> {
    let deadline = Instant::now() + TAKEOVER;
    loop {
        match begun.try_lock() {
            Ok(begun) => return Ok(begun),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(GLANCE),
            Err(TryLockError::WouldBlock) => {
                return Err(refused("another near end is installing there; wait until it ends"));
            }
        }
    }
}

impl<R: Read, W: Write + Send> Server<'_, R, W> {
    /// Performs a plan, or what is left of it.
    pub(super) fn install(&mut self, asked: Installation) -> Result<()> {
        let Installation { plan, paths, keys, host_key } = asked;
        let plan = read_plan(&plan)?;
        let (alone, place) = (Mutex::new(None), self.place);
        let begun = match place {
            Place::Deployments => bail!("this end takes no system that replaces what runs"),
            Place::Machine => {
                own_mounts::make()?;
                &alone
            }
            Place::Rescue(rescue) => &rescue.begun,
        };
        let mut begun = take_over(begun)?;
        if begun.as_ref().is_none_or(|begun| !is_same(begun.plan(), &plan)) {
            // First of all, what the plan before has open is let go.
            *begun = None;
            *begun = Some(run::Installation::new(plan.clone()));
        }
        let installation = begun.as_mut().expect("it was made above");
        if let Place::Rescue(rescue) = place {
            (rescue.touched)()?;
            rescue.half_written.store(true, Ordering::Relaxed);
        }
        let output = &Mutex::new(&mut self.output);
        let mut far = FromWire {
            system: &plan.system,
            paths: &paths,
            host_keys: host_keys(&plan, place, host_key)?,
            in_rescue: matches!(place, Place::Rescue(_)),
            input: &mut self.input,
            output,
        };
        let performed = installation.perform(&mut far, &keys.into_iter().collect(), &Told(output));
        if performed.is_err() && !installation.goes_on() {
            *begun = None;
        }
        performed?;
        if let Place::Rescue(rescue) = place {
            rescue.half_written.store(false, Ordering::Relaxed);
        }
        // What is complete is kept: whoever asks again, because this answer got lost, hears it again.
        self.output.message(&Answer::Installed)
    }
}

/// Reads a plan that is meant for a disk of this machine.
fn read_plan(text: &str) -> Result<Plan> {
    let plan: Plan =
        serde_json::from_str(text).map_err(|_| WireError::Garbled("the plan has an unknown form"))?;
    let is_for_far_end = |step: &Step| match step {
        Step::Disk(DiskStep::CreateImage { .. } | DiskStep::Partition { image: true, .. }) => false,
        Step::Disk(_)
        | Step::Prepare
        | Step::Copy { .. }
        | Step::ExtraFiles { .. }
        | Step::Profile { .. } => true,
        Step::Remote(step) => matches!(step, RemoteStep::HostKeys { .. }),
        _ => false,
    };
    match plan.steps.iter().all(is_for_far_end) {
        true => Ok(plan),
        false => bail!(WireError::Garbled("the plan has steps for another end")),
    }
}

fn is_same(one: &Plan, other: &Plan) -> bool {
    let text = |plan: &Plan| serde_json::to_string(plan).ok();
    text(one) == text(other)
}

/// Returns the host keys that the plan gives to the new system.
fn host_keys(plan: &Plan, place: Place, new: Option<(Secret, String)>) -> Result<Vec<HostKey>> {
    let which = plan.steps.iter().find_map(|step| match step {
        Step::Remote(RemoteStep::HostKeys { which }) => Some(*which),
        _ => None,
    });
    match (which, new) {
        (None, _) => Ok(Vec::new()),
        (Some(HostKeys::Keep), _) => match place {
            Place::Rescue(_) => host_keys::read_in(&Path::new("/").join(rescue::HOST_KEYS)),
            _ => host_keys::read(Path::new("/")),
        },
        (Some(HostKeys::New), Some((private, public))) => {
            Ok(vec![HostKey { name: NEW_KEY.to_owned(), private, public: Some(public) }])
        }
        (Some(HostKeys::New), None) => bail!(WireError::Garbled("the new host key is missing")),
    }
}

/// The near end, as what an installation is fed by.
struct FromWire<'a, 'w, R, W> {
    system: &'a StorePath,
    paths: &'a [PathInfo],
    host_keys: Vec<HostKey>,
    in_rescue: bool,
    input: &'a mut Reader<R>,
    output: &'a Mutex<&'w mut Writer<W>>,
}

impl<R: Read, W: Write> FromWire<'_, '_, R, W> {
    fn say(&self, answer: &Answer) -> Result<()> {
        lock(self.output).message(answer)
    }

    /// Moves what is in memory, such as the tools of the steps before, to the disk.
    fn move_from_memory(&self, there: &BTreeSet<StorePath>, root: &Path) -> Result<()> {
        let memory = Path::new("/");
        let Some(database) = Database::open(memory)? else { return Ok(()) };
        let here: BTreeSet<StorePath> = database.all()?.into_iter().collect();
        let is_moved = |info: &&PathInfo| here.contains(&info.path) && !there.contains(&info.path);
        let moved: Vec<PathInfo> = self.paths.iter().filter(is_moved).cloned().collect();
        copy::closure(&moved, memory, root, &Silent)?;
        db::register(root, &moved, run::now())?;
        drop(database);
        if self.in_rescue {
            // All of the machine's memory is for the rest. What still runs from there keeps its file.
            for dir in [&STORE_DIR[1..], "nix/var"] {
                let dir = memory.join(dir);
                fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            }
        }
        Ok(())
    }
}

fn valid(root: &Path) -> Result<BTreeSet<StorePath>> {
    Ok(Database::open(root)?.map(|database| database.all()).transpose()?.into_iter().flatten().collect())
}

impl<R: Read, W: Write> Supply for FromWire<'_, '_, R, W> {
    fn system(&self) -> &StorePath {
        self.system
    }

    fn copy(&mut self, root: &Path, _: &dyn Progress) -> Result<()> {
        self.move_from_memory(&valid(root)?, root)?;
        let there = valid(root)?;
        let wanted = (0..).zip(self.paths).filter(|(_, info)| !there.contains(&info.path));
        let paths: Vec<u32> = wanted.map(|(index, _)| index).collect();
        let is_whole = paths.is_empty();
        self.say(&Answer::Wanted { paths })?;
        if is_whole {
            return Ok(());
        }
        match self.input.message()? {
            Some(Ask::Receive { paths }) => {
                receive(&mut Store::direct(root), &paths, self.input, &mut lock(self.output))
            }
            Some(_) => bail!(WireError::Garbled("a question comes where paths should")),
            None => bail!(WireError::HungUp),
        }
    }

    /// Paths are registered as they come.
    fn register(&mut self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn extra_files(&mut self, _: &Path, root: &Path) -> Result<()> {
        self.say(&Answer::WantsExtraFiles)?;
        // They come whole before one of them is in its place. A run that was cut off left some.
        let whole = root.join(EXTRA);
        match fs::remove_dir_all(&whole) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&whole),
        }
        .with_context(|| format!("making {}", whole.display()))?;
        let mut data = Incoming::new(self.input);
        bundle::unpack(&mut data, &whole)?;
        data.finish()?;
        extra_files::copy(&whole, root, etc::of(root, self.system))?;
        fs::remove_dir_all(&whole).with_context(|| format!("removing {}", whole.display()))
    }

    fn host_keys(&mut self, root: &Path) -> Result<()> {
        host_keys::install(root, &self.host_keys, etc::of(root, self.system))
    }
}

/// Tells the near end what happens. If nobody hears it, the installation goes on all the same, until it
/// needs something.
struct Told<'a, 'w, W>(&'a Mutex<&'w mut Writer<W>>);

impl<W: Write + Send> Progress for Told<'_, '_, W> {
    fn event(&self, event: Event) {
        let answer = match event {
            Event::Step { number, .. } => Answer::Begins { step: number as u32 - 1 },
            Event::Output { program, line } => Answer::Output { program, line },
            Event::Warning { text } => Answer::Warning { text },
            _ => return,
        };
        let _ = lock(self.0).message(&answer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Purpose, Summary};
    use crate::size::Bytes;

    fn plan(steps: Vec<Step>) -> Plan {
        Plan {
            purpose: Purpose::Install,
            system: StorePath::from_base_name("0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-nixos-system-x").unwrap(),
            from: "/".into(),
            target: "web1:/dev/vda".into(),
            closure: Summary { paths: 1, bytes: Bytes(1), space: Bytes(1) },
            before: vec![],
            after: vec![],
            notes: vec![],
            steps,
        }
    }

    fn keys(which: HostKeys) -> Step {
        Step::Remote(RemoteStep::HostKeys { which })
    }

    #[test]
    fn a_plan_is_taken_if_all_of_it_is_for_a_disk_of_this_end() {
        let dir = || "/dev/vda".into();
        for (step, is_taken) in [
            (Step::Prepare, true),
            (Step::Copy { paths: 1, bytes: Bytes(1) }, true),
            (Step::Disk(DiskStep::WriteTable { disk: dir() }), true),
            (keys(HostKeys::Keep), true),
            (Step::Disk(DiskStep::CreateImage { path: dir(), size: Bytes(1) }), false),
            (Step::Claim { dir: dir() }, false),
            (Step::Finish { dir: dir() }, false),
            (Step::Remote(RemoteStep::Reboot), false),
        ] {
            let plan = plan(vec![Step::Prepare, step]);
            let text = serde_json::to_string(&plan).unwrap();
            let read = read_plan(&text);
            assert_eq!(read.is_ok(), is_taken, "{text}");
            assert!(read.is_ok_and(|read| is_same(&read, &plan)) == is_taken);
        }
        assert!(read_plan("{}").is_err());
    }

    #[test]
    fn a_new_host_key_is_the_one_that_came() {
        let new = || Some((Secret::new(b"private".to_vec()), "ssh-ed25519 AAAA".to_owned()));
        let named = |which, key| host_keys(&plan(vec![keys(which)]), Place::Machine, key);
        let [key] = &named(HostKeys::New, new()).unwrap()[..] else { panic!("there is one") };
        assert_eq!((key.name.as_str(), key.private.bytes()), (NEW_KEY, &b"private"[..]));
        assert!(named(HostKeys::New, None).is_err());
        assert!(host_keys(&plan(vec![]), Place::Machine, new()).unwrap().is_empty());
    }

    #[test]
    fn an_end_that_deploys_neither_jumps_nor_installs() {
        let installation = || Installation {
            plan: serde_json::to_string(&plan(vec![])).unwrap(),
            paths: vec![],
            keys: vec![],
            host_key: None,
        };
        for ask in [Ask::Install(installation()), Ask::Jump { command_line: String::new() }] {
            let mut said = Vec::new();
            let mut writer = Writer(&mut said);
            writer.message(&Ask::Hello { version: crate::wire::VERSION }).unwrap();
            writer.message(&ask).unwrap();
            assert!(super::super::serve(Place::Deployments, &said[..], std::io::sink()).is_err());
        }
    }
}
