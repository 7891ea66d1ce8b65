//! The command line: words in, one command out, an exit code at the end.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::commands::{self, generate::ENTRIES, rescue};
use crate::failure::Failure;
use crate::progress::{Json, Lines, Manner, Progress, Silent, Terminal};
use crate::size::Bytes;
use crate::ssh::{Address, ClientOption, askpass};
use crate::sys::{interrupt, namespace, terminal};
use crate::system::activate;

/// Install this NixOS system elsewhere, from its own store paths
///
/// Nothing is evaluated, built or downloaded: what runs here is what arrives there, and every byte is
/// checked against the Nix database while it is copied.
#[derive(Parser)]
#[command(name = NAME, version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const NAME: &str = "nixos-install-via";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for safety.";
const INSTALL_VIA_SSH_EXIT_CODES: &str = "Exit codes: 0 the machine runs the system, 1 failed, 2 wrong usage, \
3 refused for safety, 5 state unknown.";
const DEPLOY_EXIT_CODES: &str = "Exit codes: 0 deployed, 1 failed, 2 wrong usage, 3 refused for safety, \
4 rolled back, 5 state unknown; of several machines the highest.";

#[derive(Subcommand)]
enum Command {
    /// Install a bootable clone of the system on a disk, a USB stick or an image file
    #[command(after_help = EXIT_CODES)]
    InstallToDisk(InstallToDisk),
    /// Clone or back up the system into a directory
    #[command(after_help = EXIT_CODES)]
    InstallToDir(InstallToDir),
    /// Replace what runs on a machine, whatever Linux it is, by the system
    #[command(after_help = INSTALL_VIA_SSH_EXIT_CODES)]
    InstallViaSsh(InstallViaSsh),
    /// Bring a directory made by install-to-dir to the system: copy what is missing, as a new generation
    #[command(after_help = EXIT_CODES)]
    DeployToDir(DeployToDir),
    /// Update running NixOS machines to the system, with a way back
    #[command(after_help = DEPLOY_EXIT_CODES)]
    DeployViaSsh(DeployViaSsh),
    /// Run a command, or a shell, of the system in a directory, or boot it as a container
    Enter(Enter),
    /// Re-hash every valid store path of a root against its database
    Verify(Verify),
    /// Print completions for a shell
    Completions(Completions),
    // For those who build systems and packages, not for those who run them.
    /// Put the commands and the manifest into a system that is being built
    #[command(hide = true, after_help = EXIT_CODES)]
    Generate(Generate),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(Man),
    /// Answer what another machine asks, on stdin and stdout
    #[command(hide = true)]
    Serve(Serve),
    /// Perform a deployment that has begun; systemd runs it
    #[command(hide = true)]
    Activate(Deployed),
    /// Take a deployment back that has not ended in time; systemd runs it
    #[command(hide = true)]
    Rollback(Deployed),
}

/// What all ways to bring a system elsewhere have in common.
#[derive(Args)]
pub struct Common {
    /// System to install: a toplevel store path, or a link to one [default: the one this command belongs to]
    #[arg(long, value_name = "PATH")]
    pub system: Option<PathBuf>,
    /// What the entry script of a system says: the system it is part of
    #[arg(long, value_name = "PATH", hide = true)]
    pub default_system: Option<PathBuf>,
    /// Root whose store and database the system is read from
    #[arg(long, value_name = "ROOT", default_value = "/")]
    pub from: PathBuf,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print the plan in this form and stop
    #[arg(long, value_name = "FORM")]
    pub plan: Option<PlanForm>,
    #[command(flatten)]
    pub progress: ProgressArg,
}

/// Whether a person is asked before it happens.
#[derive(Args)]
pub struct Yes {
    /// Do it without asking
    #[arg(long)]
    pub yes: bool,
}

impl Common {
    /// Returns the form the plan is wanted in, if only the plan is wanted.
    pub fn only_plan(&self) -> Option<PlanForm> {
        self.plan.or(self.dry_run.then_some(PlanForm::Text))
    }
}

#[derive(Args)]
pub struct ProgressArg {
    /// How to tell what happens
    #[arg(long = "progress", value_name = "HOW", default_value = "auto")]
    how: ProgressForm,
}

impl ProgressArg {
    /// Tells whether events are data on stdout.
    pub fn is_on_stdout(&self) -> bool {
        matches!(self.how, ProgressForm::Json)
    }

    /// Returns the printer that was asked for.
    pub fn printer(&self) -> Box<dyn Progress> {
        match self.how {
            ProgressForm::Json => Box::new(Json),
            ProgressForm::None => Box::new(Silent),
            ProgressForm::Auto if std::io::stderr().is_terminal() => Box::new(Terminal::new()),
            ProgressForm::Auto => Box::new(Lines::new()),
        }
    }

    /// Returns the manner that was asked for, to tell of several machines.
    pub fn manner(&self) -> Manner {
        match self.how {
            ProgressForm::Json => Manner::Json,
            ProgressForm::None => Manner::Silent,
            ProgressForm::Auto if std::io::stderr().is_terminal() => Manner::Terminal,
            ProgressForm::Auto => Manner::Lines,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ProgressForm {
    /// Bars on a terminal, whole lines elsewhere
    Auto,
    /// Each event as a line of JSON on stdout
    Json,
    /// Nothing
    None,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum PlanForm {
    /// For people
    Text,
    /// For programs
    Json,
    /// A POSIX shell script that does the same with standard tools, to read or to run as root
    Script,
}

#[derive(Args)]
pub struct InstallToDisk {
    /// Disk, such as /dev/sdb, or image file; all that is on it is lost
    #[arg(value_name = "DISK|IMAGE")]
    pub disk: PathBuf,
    /// Layout of the disk, a JSON file [default: the system's own]
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// Create IMAGE, this large, such as 8G
    #[arg(long, value_name = "SIZE")]
    pub image_size: Option<Bytes>,
    /// Let the boot loader change this machine's EFI boot entries
    #[arg(long)]
    pub efi_variables: bool,
    /// Encrypt what the system opens as NAME with the passphrase in FILE, byte for byte, rather than ask for it
    #[arg(long, value_name = "NAME=FILE", value_parser = name_and_file)]
    pub disk_encryption_key: Vec<(String, PathBuf)>,
    #[command(flatten)]
    pub extra: ExtraFiles,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub yes: Yes,
}

fn name_and_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => {
            Err("write what the system opens and the file of its passphrase, such as root=/run/key"
                .to_owned())
        }
    }
}

#[derive(Args)]
pub struct InstallToDir {
    /// Directory: absent, empty, or left by an earlier run
    #[arg(required_unless_present = "archive")]
    pub dir: Option<PathBuf>,
    /// Write the root as an archive instead, a .tar.zst or .tar, or - for a .tar.zst on stdout
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub archive: Option<PathBuf>,
    #[command(flatten)]
    pub extra: ExtraFiles,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub yes: Yes,
}

/// What a new root can be given besides the system.
#[derive(Args)]
pub struct ExtraFiles {
    /// Directory whose files are copied over the installed root, with their owners and modes
    #[arg(long, value_name = "DIR")]
    pub extra_files: Option<PathBuf>,
}

#[derive(Args)]
pub struct DeployToDir {
    /// Directory made by install-to-dir
    pub dir: PathBuf,
    /// Keep the newest N generations, and remove the older ones and all that nothing leads to any more
    #[arg(long, value_name = "N")]
    pub keep: Option<NonZeroUsize>,
    /// Deploy also the system of another host, or for another processor, than the one that is there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub yes: Yes,
}

#[derive(Args)]
pub struct DeployViaSsh {
    /// Machines, as ssh knows them: [USER@]HOST or ssh://[USER@]HOST[:PORT]
    #[arg(value_name = "HOST", required_unless_present = "hosts")]
    pub host: Vec<Address>,
    /// Machines and the system of each: a TOML or JSON file of lines such as web1 = "/nix/store/…"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "system"])]
    pub hosts: Option<PathBuf>,
    /// Make it what the next boot starts, and change nothing now
    #[arg(long, group = "action")]
    pub boot: bool,
    /// Run it until the next boot
    #[arg(long, group = "action")]
    pub test: bool,
    /// Copy it and tell what running it would change
    #[arg(long, group = "action")]
    pub dry_activate: bool,
    /// Copy it, and no more
    #[arg(long, group = "action")]
    pub copy_only: bool,
    /// Restart the machine into it, and look what it runs then
    #[arg(long, conflicts_with_all = ["test", "dry_activate", "copy_only"])]
    pub reboot: bool,
    /// Deploy also the system of another host, or for another processor
    #[arg(long)]
    pub force: bool,
    /// Leave a machine as it is when the system fails there or makes it unreachable
    #[arg(long)]
    pub no_rollback: bool,
    /// How long a machine waits to be reached anew before it goes back
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(5..=3600))]
    pub confirm_timeout: u32,
    /// How long the activation may take
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(u32).range(5..=86400))]
    pub activation_timeout: u32,
    /// How many machines at a time
    #[arg(long, value_name = "N", default_value = "8")]
    pub jobs: NonZeroUsize,
    /// Begin with no further machine once one has failed
    #[arg(long)]
    pub fail_fast: bool,
    /// Send what is missing whole, and not what differs from older store paths
    #[arg(long)]
    pub no_delta: bool,
    /// Let the machine first take what its own binary caches have
    #[arg(long)]
    pub substitute: bool,
    /// Root of the machine to copy into, such as a mounted disk
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    #[command(flatten)]
    pub ssh: Ssh,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct InstallViaSsh {
    /// Machine, as ssh knows it: [USER@]HOST or ssh://[USER@]HOST[:PORT]; all that is on its disk is lost
    #[arg(value_name = "HOST")]
    pub host: Address,
    /// Disk of the machine, by the name or the serial that it has there, or as NAME=/dev/… [default: the only one]
    #[arg(long, value_name = "DISK")]
    pub disk: Option<String>,
    /// Layout of the disk, a JSON file [default: the system's own]
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// Encrypt what the system opens as NAME with the passphrase in FILE, byte for byte, rather than ask for it
    #[arg(long, value_name = "NAME=FILE", value_parser = name_and_file)]
    pub disk_encryption_key: Vec<(String, PathBuf)>,
    #[command(flatten)]
    pub extra: ExtraFiles,
    /// Host keys of the machine once it runs the system [default: keep, or new where it runs from memory]
    #[arg(long, value_name = "WHICH")]
    pub host_keys: Option<HostKeysWish>,
    /// Take only these of the phases, in their order
    #[arg(long, value_name = "PHASES", value_delimiter = ',', default_value = "kexec,disk,install,reboot")]
    phases: Vec<Phase>,
    /// Start the rescue, and no more
    #[arg(long, conflicts_with_all = ["phases", "no_reboot"])]
    kexec_only: bool,
    /// Leave the machine as it is when the system is on its disk
    #[arg(long)]
    no_reboot: bool,
    /// Go on with what was begun, in the rescue that waits there
    #[arg(long, conflicts_with_all = ["disk", "layout", "kexec_only", "dry_run", "plan", "hardware_report", "system"])]
    pub resume: bool,
    /// How long the rescue waits for us before the machine goes back to what it was
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u32).range(30..=86400))]
    pub rescue_timeout: u32,
    /// How long the machine may need to restart and answer as the system
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = clap::value_parser!(u32).range(5..=86400))]
    pub wait_timeout: u32,
    /// Do not wait until the machine answers as the system
    #[arg(long)]
    pub no_wait: bool,
    /// Write what is found out of the machine into a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub hardware_report: Option<PathBuf>,
    #[command(flatten)]
    pub ssh: Ssh,
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub yes: Yes,
}

impl InstallViaSsh {
    /// Returns what is to be done.
    pub fn phases(&self) -> Vec<Phase> {
        if self.kexec_only {
            return vec![Phase::Kexec];
        }
        self.phases.iter().copied().filter(|phase| !self.no_reboot || *phase != Phase::Reboot).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Jump into the rescue
    Kexec,
    /// Lay out the disk and make its file systems
    Disk,
    /// Put the system onto it
    Install,
    /// Restart, and look whether the machine runs the system
    Reboot,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HostKeysWish {
    /// Those that it has
    Keep,
    /// A new one, which is printed
    New,
}

/// How machines are reached.
#[derive(Args)]
pub struct Ssh {
    /// Configuration of ssh, in the place of the usual one
    #[arg(short = 'F', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Port of ssh on the machine
    #[arg(short = 'p', value_name = "PORT")]
    pub port: Option<u16>,
    /// Private key
    #[arg(short = 'i', value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Machine to go through, as with ssh -J
    #[arg(short = 'J', value_name = "HOST")]
    pub jump: Option<String>,
    /// Option of ssh, as in its configuration, such as ConnectTimeout=10
    #[arg(long = "ssh-option", value_name = "OPTION")]
    pub options: Vec<ClientOption>,
    /// Become root by sudo where the account is another one
    #[arg(long)]
    pub sudo: bool,
    /// File that holds the password for sudo, such as a pipe [default: it is asked for]
    #[arg(long, value_name = "FILE", requires = "sudo")]
    pub sudo_password_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Serve {
    /// Directory that held this program, to be removed
    #[arg(long, value_name = "DIR")]
    pub remove: Option<PathBuf>,
}

#[derive(Args)]
pub struct Deployed {
    /// The name of the deployment
    pub token: String,
}

#[derive(Args)]
pub struct Enter {
    /// Directory that holds a system
    pub dir: PathBuf,
    /// Boot the system as a container, through systemd-nspawn, until it powers off
    #[arg(long)]
    pub boot: bool,
    /// Let the booted system use this machine's network, rather than have none
    #[arg(long, requires = "boot")]
    pub host_network: bool,
    /// Command and its arguments [default: a login shell]; with --boot, options for systemd-nspawn
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args)]
pub struct Verify {
    /// Directory that holds nix/store and nix/var/nix
    pub root: PathBuf,
    #[command(flatten)]
    pub progress: ProgressArg,
}

#[derive(Args)]
pub struct Completions {
    shell: clap_complete::Shell,
    /// Command that a system has by a name of its own [default: the whole program]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(ENTRIES))]
    command: Option<String>,
}

#[derive(Args)]
pub struct Generate {
    /// Toplevel that is being built; the scripts name it as it is said here
    #[arg(long, value_name = "DIR")]
    pub toplevel: PathBuf,
    /// What there is to know about the system, a JSON file
    #[arg(long, value_name = "FILE")]
    pub manifest: PathBuf,
    /// Shell that runs the scripts, such as /nix/store/…/bin/sh
    #[arg(long, value_name = "PATH")]
    pub shell: PathBuf,
    /// This program, as the scripts shall start it
    #[arg(long, value_name = "PATH")]
    pub binary: PathBuf,
}

#[derive(Args)]
pub struct Man {
    /// Directory of section 8, such as share/man/man8
    pub dir: PathBuf,
}

/// Returns the whole command line, with all that is derived from it.
pub fn description() -> clap::Command {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    program
}

/// Runs the command that the process was started with and returns its exit code.
pub fn main() -> i32 {
    let words: Vec<OsString> = std::env::args_os().collect();
    if rescue::is_it() {
        rescue::main();
    }
    if rescue::door::is_it(words.first().map(OsString::as_os_str)) {
        rescue::door::main();
    }
    if words.get(1).is_some_and(|word| word == namespace::WORD) {
        namespace::fence_main(words.into_iter().skip(2));
    }
    if called(&words).is_some_and(|name| name == askpass::NAME) {
        return askpass::main();
    }
    let cli = Cli::parse_from(dispatch(words));
    let result = interrupt::listen().and_then(|()| perform(cli.command));
    match result {
        Ok(code) => code,
        Err(error) => {
            terminal::tell(format_args!("error: {error:#}"));
            error.downcast_ref::<Failure>().map_or(1, Failure::exit_code)
        }
    }
}

fn perform(command: Command) -> Result<i32> {
    match command {
        Command::InstallToDisk(args) => commands::install_to_disk::run(&args).map(|()| 0),
        Command::InstallToDir(args) => commands::install_to_dir::run(&args).map(|()| 0),
        Command::DeployToDir(args) => commands::deploy_to_dir::run(&args).map(|()| 0),
        Command::DeployViaSsh(args) => commands::deploy_via_ssh::run(&args),
        Command::InstallViaSsh(args) => commands::install_via_ssh::run(&args).map(|()| 0),
        Command::Serve(args) => commands::serve::run(&args).map(|()| 0),
        Command::Activate(args) => activate::perform(&args.token).map(|()| 0),
        Command::Rollback(args) => activate::give_up(&args.token).map(|()| 0),
        Command::Enter(args) => commands::enter::run(&args),
        Command::Verify(args) => commands::verify::run(&args).map(|()| 0),
        Command::Generate(args) => commands::generate::run(&args).map(|()| 0),
        Command::Man(args) => commands::man::run(&args).map(|()| 0),
        Command::Completions(args) => {
            let name = args.command.as_deref().unwrap_or(NAME);
            let mut command = match Cli::command().find_subcommand(name) {
                Some(command) => command.clone().bin_name(name),
                None => Cli::command(),
            };
            clap_complete::generate(args.shell, &mut command, name, &mut std::io::stdout());
            Ok(0)
        }
    }
}

/// Puts the subcommand first when the binary is called by a subcommand's name.
fn dispatch(mut words: Vec<OsString>) -> Vec<OsString> {
    let known = |name: &OsString| Cli::command().get_subcommands().any(|sub| sub.get_name() == name);
    if let Some(name) = called(&words).filter(known) {
        words.insert(1, name);
    }
    words
}

/// Returns the name that the binary is called by.
fn called(words: &[OsString]) -> Option<OsString> {
    words.first().and_then(|word| Path::new(word).file_name()).map(OsString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_name_it_is_called_by_chooses_the_command() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, dispatched) in [
            (
                "/run/current-system/bin/install-to-disk /dev/sdb",
                "/run/current-system/bin/install-to-disk install-to-disk /dev/sdb",
            ),
            ("install-to-dir", "install-to-dir install-to-dir"),
            ("./nixos-install-via install-to-dir x", "./nixos-install-via install-to-dir x"),
            ("sh install-to-dir", "sh install-to-dir"),
        ] {
            assert_eq!(dispatch(words(line)), words(dispatched));
        }
    }
}
