//! One file a command: look, decide, act. Here is what they share.

mod archive;
pub mod deploy_to_dir;
pub mod deploy_via_ssh;
mod disk_wishes;
pub mod enter;
pub mod generate;
pub mod install_to_dir;
pub mod install_to_disk;
pub mod install_via_ssh;
mod keys;
pub mod man;
mod remote;
pub mod rescue;
pub mod serve;
pub mod verify;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cli::{Common, PlanForm};
use crate::failure::{refused, usage};
use crate::plan::{self, Plan};
use crate::store::closure::Closure;
use crate::store::path::StorePath;
use crate::sys::terminal;
use crate::templates;

fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("installing changes owners and mounts, which only root may; run the command again with sudo")
}

/// Prints the plan, alone on stdout.
fn print_plan(plan: &Plan, closure: &Closure, form: PlanForm) -> Result<()> {
    let text = match form {
        PlanForm::Text => plan.to_string(),
        PlanForm::Json => serde_json::to_string_pretty(plan).context("writing the plan as JSON")? + "\n",
        PlanForm::Script => {
            let here = std::env::current_dir().context("finding the working directory")?;
            templates::plan(&plan::script(plan, closure, &here)?)?
        }
    };
    std::io::stdout().write_all(text.as_bytes()).context("printing the plan")
}

/// Shows the plan and asks for one of `answers` to be typed. Without a terminal it refuses.
fn confirm(plan: &Plan, question: &str, answers: &[&str]) -> Result<()> {
    terminal::tell_part(plan);
    if !std::io::stdin().is_terminal() {
        return Err(refused(
            "there is no terminal to ask on; read the plan with --dry-run, then run the command with --yes",
        ));
    }
    terminal::tell_part(format_args!("\n{question} "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    if answers.contains(&answer.trim()) {
        return Ok(());
    }
    Err(refused("that is not what was asked for; nothing was changed"))
}

/// Returns the system that was named, or else the one this command belongs to.
fn system(common: &Common) -> Result<StorePath> {
    let from = common.from.as_path();
    let path = match common.system.as_deref() {
        Some(path) if path.is_absolute() => path.to_owned(),
        Some(path) if from == Path::new("/") => {
            std::path::absolute(path).with_context(|| format!("finding {}", path.display()))?
        }
        Some(path) => {
            return Err(usage(format!(
                "{} is not absolute; name the system as ROOT sees it",
                path.display()
            )));
        }
        None => default_system(common)?,
    };
    system_at(from, &path)
}

/// Returns the system that `path`, as the root `from` sees it, leads to.
fn system_at(from: &Path, path: &Path) -> Result<StorePath> {
    let system = resolve(from, path)?;
    let toplevel = system.in_root(from);
    if !toplevel.join("init").exists() && fs::symlink_metadata(toplevel.join("init")).is_err() {
        return Err(usage(format!(
            "{system} is not a NixOS system, for it has no init; name one with --system"
        )));
    }
    Ok(system)
}

fn default_system(common: &Common) -> Result<PathBuf> {
    if common.from != Path::new("/") {
        return Ok(PathBuf::from("/nix/var/nix/profiles/system"));
    }
    if let Some(own) = &common.default_system {
        return Ok(own.clone());
    }
    let running = Path::new("/run/current-system");
    if running.exists() {
        return Ok(running.to_owned());
    }
    Err(usage(
        "this machine runs no NixOS; name the system to install with --system, and its root with --from",
    ))
}

// As many links in a row as the kernel follows.
const LINK_LIMIT: usize = 40;

/// Follows links as they look from inside `root`, until a store object.
fn resolve(root: &Path, path: &Path) -> Result<StorePath> {
    let mut path = path.to_owned();
    for _ in 0..LINK_LIMIT {
        if let Some(object) =
            StorePath::containing(&path).filter(|object| path == Path::new(&object.to_string()))
        {
            return Ok(object);
        }
        let here = root.join(path.strip_prefix("/").unwrap_or(&path));
        let Ok(target) = fs::read_link(&here) else {
            // A link may also stand higher up in the path.
            let whole = if root == Path::new("/") { fs::canonicalize(&here).ok() } else { None };
            match whole.filter(|whole| *whole != path) {
                Some(whole) => {
                    path = whole;
                    continue;
                }
                None => break,
            }
        };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    let seen = if root == Path::new("/") { String::new() } else { format!(", seen from {}", root.display()) };
    Err(usage(format!(
        "{}{seen} leads to no store path; name a system such as /run/current-system",
        path.display()
    )))
}
