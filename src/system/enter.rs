//! Running a command or a shell of the system that is in a directory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::profile;
use crate::store::path::StorePath;
use crate::sys::inside;
use crate::sys::namespace::{self, Fence, Network, Output, Preparation};

// A host name is at most 64 bytes.
const HOSTNAME_LIMIT: u64 = 256;
// The longest that Nix knows has 20.
const PLATFORM_LIMIT: u64 = 256;

/// Why a directory cannot be entered.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum EnterError {
    #[error("{0} holds no NixOS system (there is no etc/NIXOS); make one with `install-to-dir {0}`")]
    NotNixos(String),
    #[error("{0} has no system profile; an interrupted install-to-dir is completed by running it again")]
    NoProfile(String),
    #[error("the system that {0} has as its profile, {1}, is not in its store; run install-to-dir again")]
    NoSystem(String, StorePath),
}

/// Activates the system in `root` and runs `command` in it, or a login shell. Returns its exit status.
///
/// The command has the host's network, and mounts, processes and a host name of its own. It ends
/// with this process.
pub fn enter(root: &Path, command: Option<Vec<OsString>>) -> Result<i32> {
    let (fence, words) = prepare(root, command)?;
    let mut command: Command = fence.command(&words[0], &words[1..]);
    namespace::leave_terminal_signals_to_the_program()?;
    let status = command.status().with_context(|| format!("entering {}", root.display()))?;
    Ok(namespace::exit_code(status))
}

fn prepare(root: &Path, command: Option<Vec<OsString>>) -> Result<(Fence, Vec<OsString>), EnterError> {
    let system = system(root)?;
    let fence = Fence {
        network: Network::Host,
        resolv_conf: true,
        hostname: hostname(root, &system),
        before: activation(root, &system, Output::ShowFailure),
        interactive: true,
        ..Fence::around(root)
    };
    let words = command.filter(|words| !words.is_empty()).unwrap_or_else(|| login_shell(root, &system));
    Ok((fence, words))
}

/// Returns the system that the root at `root` has as its profile.
pub fn system(root: &Path) -> Result<StorePath, EnterError> {
    let name = || root.display().to_string();
    if !inside::exists(root, Path::new("etc/NIXOS")) {
        return Err(EnterError::NotNixos(name()));
    }
    let system = profile::current(root).ok_or_else(|| EnterError::NoProfile(name()))?;
    match system.in_root(root).exists() {
        true => Ok(system),
        false => Err(EnterError::NoSystem(name(), system)),
    }
}

/// Returns what nixos-enter runs before anything else: activation, then systemd's temporary files.
pub fn activation(root: &Path, system: &StorePath, output: Output) -> Vec<Preparation> {
    let activate = format!("{system}/activate");
    let tmpfiles = format!("{system}/sw/bin/systemd-tmpfiles");
    let mut programs = Vec::new();
    if inside::exists(root, Path::new(&activate)) {
        let locales = format!("{system}/sw/lib/locale/locale-archive");
        let environment = vec![("IN_NIXOS_ENTER".into(), "1".into()), ("LOCALE_ARCHIVE".into(), locales)];
        programs.push(Preparation { words: vec![activate], environment, output });
    }
    if inside::exists(root, Path::new(&tmpfiles)) {
        let words = [&tmpfiles, "--create", "--remove", "-E"].map(str::to_owned).to_vec();
        programs.push(Preparation { words, environment: Vec::new(), output: Output::Drop });
    }
    programs
}

/// Returns the host name that a system of the root has in its configuration.
pub fn hostname(root: &Path, system: &StorePath) -> Option<String> {
    let path = PathBuf::from(format!("{system}/etc/hostname"));
    let text = String::from_utf8(inside::read(root, &path, HOSTNAME_LIMIT).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty() && name.len() <= 64)
}

/// Returns what a system of the root runs on, such as `x86_64-linux`.
pub fn platform(root: &Path, system: &StorePath) -> Option<String> {
    let path = PathBuf::from(format!("{system}/system"));
    let text = String::from_utf8(inside::read(root, &path, PLATFORM_LIMIT).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

fn login_shell(root: &Path, system: &StorePath) -> Vec<OsString> {
    let shells = [format!("{system}/sw/bin/bash"), format!("{system}/sw/bin/sh")];
    let found = shells.into_iter().find(|shell| inside::exists(root, Path::new(shell)));
    match found {
        Some(shell) if shell.ends_with("bash") => vec![shell.into(), "--login".into()],
        found => vec![found.unwrap_or_else(|| "/bin/sh".into()).into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::testing;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Stdio;

    fn box_system() -> StorePath {
        StorePath::from_base_name("0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-nixos-system-box-25.05").unwrap()
    }

    fn root_with_system(activate: &str) -> tempfile::TempDir {
        let root = testing::root();
        let toplevel = box_system().in_root(root.path());
        fs::create_dir_all(toplevel.join("sw/bin")).unwrap();
        fs::create_dir_all(toplevel.join("etc")).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/NIXOS"), "").unwrap();
        fs::write(toplevel.join("etc/hostname"), "box\n").unwrap();
        fs::write(toplevel.join("activate"), format!("#!/bin/busybox sh\n{activate}\n")).unwrap();
        fs::set_permissions(toplevel.join("activate"), fs::Permissions::from_mode(0o555)).unwrap();
        symlink("/bin/busybox", toplevel.join("sw/bin/sh")).unwrap();
        profile::set(root.path(), &box_system()).unwrap();
        root
    }

    fn run(root: &Path, script: &str) -> (String, String, i32) {
        let words = ["/bin/busybox", "sh", "-c", script].map(OsString::from).to_vec();
        let (fence, words) = prepare(root, Some(words)).unwrap();
        let output = fence.command(&words[0], &words[1..]).stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), namespace::exit_code(output.status))
    }

    #[test]
    fn a_command_runs_in_the_activated_system_and_nothing_else_is_printed() {
        let root = root_with_system(
            "echo setting up /etc...; /bin/busybox ln -sfn ${0%/activate} /run/current-system; \
             echo $IN_NIXOS_ENTER $LOCALE_ARCHIVE > /etc/activated",
        );
        let (stdout, stderr, code) = run(
            root.path(),
            "b=/bin/busybox; $b cat /etc/activated; $b readlink /run/current-system; $b hostname; exit 5",
        );
        let system = box_system();
        assert_eq!(stdout, format!("1 {system}/sw/lib/locale/locale-archive\n{system}\nbox\n"));
        assert_eq!((stderr.as_str(), code), ("", 5));
    }

    #[test]
    fn a_failed_activation_is_told_and_the_command_runs() {
        let root = root_with_system("echo snippet users failed; exit 1");
        let (stdout, stderr, code) = run(root.path(), "echo here");
        assert_eq!((stdout.as_str(), code), ("here\n", 0));
        assert_eq!(
            stderr,
            format!("warning: {}/activate ended with 1\n    snippet users failed\n", box_system())
        );
    }

    #[test]
    fn without_a_command_there_is_a_login_shell() {
        let root = root_with_system("");
        assert_eq!(
            login_shell(root.path(), &box_system()),
            [OsString::from(format!("{}/sw/bin/sh", box_system()))]
        );
        let bash = format!("{}/sw/bin/bash", box_system());
        symlink("/bin/busybox", root.path().join(&bash[1..])).unwrap();
        assert_eq!(login_shell(root.path(), &box_system()), [OsString::from(bash), "--login".into()]);
        let (_, words) = prepare(root.path(), Some(Vec::new())).unwrap();
        assert_eq!(words.len(), 2);
    }

    #[test]
    fn a_directory_without_a_system_is_refused_with_what_to_do() {
        let root = root_with_system("");
        let name = root.path().display().to_string();
        let refused = || prepare(root.path(), None).unwrap_err();
        fs::remove_dir_all(box_system().in_root(root.path())).unwrap();
        assert_eq!(refused(), EnterError::NoSystem(name.clone(), box_system()));
        fs::remove_file(root.path().join("nix/var/nix/profiles/system")).unwrap();
        assert_eq!(refused(), EnterError::NoProfile(name.clone()));
        fs::remove_file(root.path().join("etc/NIXOS")).unwrap();
        assert_eq!(refused(), EnterError::NotNixos(name));
    }
}
