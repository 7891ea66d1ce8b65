//! The command line of the user's own OpenSSH client.
//!
//! Its configuration, keys, agent and known hosts are the user's, and so is what they say. Set
//! here is only what makes a connection a plain pipe of its own, as scp does; and a check of host
//! keys that is on stays on.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;

use super::address::Address;
use crate::sys::command;
use crate::sys::secret::Secret;

/// How the client is called.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The client: a path, or a name that is looked up.
    pub client: PathBuf,
    /// Its configuration, where that is not the user's usual one.
    pub config: Option<PathBuf>,
    /// Port of every address that has none of its own.
    pub port: Option<u16>,
    pub identity: Vec<PathBuf>,
    pub jump: Option<String>,
    pub options: Vec<ClientOption>,
    /// Whether another account than root becomes root by sudo.
    pub sudo: bool,
    /// What sudo hears first where it asks for a password.
    pub sudo_password: Option<Arc<Secret>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            client: "ssh".into(),
            config: None,
            port: None,
            identity: Vec::new(),
            jump: None,
            options: Vec::new(),
            sudo: false,
            sudo_password: None,
        }
    }
}

/// An option as a line of `ssh_config` has it, `Keyword=value` or `Keyword value`, which leaves the
/// check of host keys on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOption(String);

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    #[error("{0:?} is no option of ssh; write it as ssh_config has it, such as ConnectTimeout=10")]
    NoOption(String),
    #[error(
        "{0:?} switches off the check of host keys, and whoever stands in between would be trusted with a whole system; \
         put the host's key into known_hosts (ssh-keyscan HOST prints it), or use StrictHostKeyChecking=accept-new"
    )]
    Unchecked(String),
}

impl FromStr for ClientOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<ClientOption, OptionError> {
        let blank = |c: char| c.is_whitespace() || c == '=';
        let (keyword, value) = text.trim_start().split_once(blank).unwrap_or((text, ""));
        let value = value.trim_start_matches(blank).trim_end();
        let plain = !keyword.is_empty() && keyword.chars().all(|c| c.is_ascii_alphanumeric());
        if !plain || value.is_empty() || text.chars().any(char::is_control) {
            return Err(OptionError::NoOption(text.to_owned()));
        }
        let values = value.split_whitespace().map(|word| word.replace('"', "").to_ascii_lowercase());
        let checked = match keyword.to_ascii_lowercase().as_str() {
            "stricthostkeychecking" => {
                values.clone().all(|word| ["yes", "true", "ask", "accept-new"].contains(&word.as_str()))
            }
            "userknownhostsfile" | "globalknownhostsfile" => {
                !values.clone().any(|word| ["/dev/null", "none"].contains(&word.as_str()))
            }
            "nohostauthenticationforlocalhost" => {
                values.clone().all(|word| ["no", "false"].contains(&word.as_str()))
            }
            _ => true,
        };
        if checked { Ok(ClientOption(text.to_owned())) } else { Err(OptionError::Unchecked(text.to_owned())) }
    }
}

impl ClientOption {
    fn is(&self, keyword: &str) -> bool {
        let text = self.0.trim_start();
        text.get(..keyword.len()).is_some_and(|start| start.eq_ignore_ascii_case(keyword))
            && text[keyword.len()..].starts_with(|c: char| c.is_whitespace() || c == '=')
    }
}

// The first value of an option counts, and these come first.
const OURS: [&str; 8] = [
    // A second connection is to prove that there can be one.
    "ControlMaster=no",
    "ControlPath=none",
    // Of the host in the user's configuration, but not for a pipe.
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    // A cut link is found out in under a minute.
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    // Nor does one wait for ever for a machine that takes the call and says nothing.
    "ConnectTimeout=30",
];
// Those that the user may have an opinion on.
const YIELDING: [&str; 3] = ["ServerAliveInterval", "ServerAliveCountMax", "ConnectTimeout"];

/// Returns the client, about to run `remote` in the login shell of a host.
pub fn command(address: &Address, settings: &Settings, remote: &str) -> Command {
    let mut ssh = command::new(&settings.client);
    ssh.args(["-T", "-e", "none"]);
    if let Some(file) = &settings.config {
        ssh.arg("-F").arg(file);
    }
    if let Some(port) = address.port.or(settings.port) {
        ssh.arg("-p").arg(port.to_string());
    }
    for file in &settings.identity {
        ssh.arg("-i").arg(file);
    }
    if let Some(jump) = &settings.jump {
        ssh.arg("-J").arg(jump);
    }
    let given = |ours: &&str| YIELDING.iter().any(|word| ours.starts_with(word) && user_gave(settings, word));
    for option in OURS.iter().filter(|ours| !given(ours)) {
        ssh.arg("-o").arg(option);
    }
    for option in &settings.options {
        ssh.arg("-o").arg(&option.0);
    }
    if let Some(user) = &address.user {
        ssh.arg("-l").arg(user);
    }
    ssh.args(["--", &address.host, remote]);
    ssh
}

fn user_gave(settings: &Settings, keyword: &str) -> bool {
    settings.options.iter().any(|option| option.is(keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(address: &str, settings: &Settings) -> String {
        let ssh = command(&address.parse().unwrap(), settings, "exec sh");
        let words = std::iter::once(ssh.get_program()).chain(ssh.get_args());
        words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    const PLAIN: &str = "-o ControlMaster=no -o ControlPath=none -o ClearAllForwardings=yes -o PermitLocalCommand=no \
                         -o RemoteCommand=none";
    const ALIVE: &str = "-o ServerAliveInterval=15 -o ServerAliveCountMax=3 -o ConnectTimeout=30";

    #[test]
    fn what_the_user_said_stands_on_the_command_line() {
        assert_eq!(
            line("web1", &Settings::default()),
            format!("ssh -T -e none {PLAIN} {ALIVE} -- web1 exec sh")
        );
        let settings = Settings {
            client: "/nix/store/x-openssh/bin/ssh".into(),
            config: Some("fleet.conf".into()),
            port: Some(2222),
            identity: vec!["key".into(), "other".into()],
            jump: Some("me@gate".into()),
            options: ["serveraliveinterval 5", "BatchMode=yes"].map(|text| text.parse().unwrap()).into(),
            sudo: true,
            sudo_password: None,
        };
        let more = format!(
            "{PLAIN} -o ServerAliveCountMax=3 -o ConnectTimeout=30 -o serveraliveinterval 5 -o BatchMode=yes -l root -- web1 exec sh"
        );
        for (address, port) in [("root@web1", 2222), ("ssh://root@web1:22", 22)] {
            assert_eq!(
                line(address, &settings),
                format!(
                    "/nix/store/x-openssh/bin/ssh -T -e none -F fleet.conf -p {port} -i key -i other -J me@gate {more}"
                )
            );
        }
    }

    #[test]
    fn the_check_of_host_keys_stays_on() {
        for (text, good) in [
            ("StrictHostKeyChecking=yes", true),
            ("StrictHostKeyChecking accept-new", true),
            ("StrictHostKeyChecking=no", false),
            ("stricthostkeychecking = OFF", false),
            ("StrictHostKeyChecking \"no\"", false),
            ("  StrictHostKeyChecking\tfalse", false),
            ("StrictHostKeyChecking=n\"o\"", false),
            ("UserKnownHostsFile=/home/me/hosts", true),
            ("UserKnownHostsFile=/dev/null", false),
            ("UserKnownHostsFile none", false),
            ("GlobalKnownHostsFile \"/dev/null\"", false),
            ("userknownhostsfile=a /dev/null", false),
            ("NoHostAuthenticationForLocalhost=yes", false),
            ("ConnectTimeout=10", true),
        ] {
            let parsed = text.parse::<ClientOption>();
            let expected =
                if good { Ok(ClientOption(text.into())) } else { Err(OptionError::Unchecked(text.into())) };
            let tabless = !text.contains('\t');
            assert_eq!(parsed, if tabless { expected } else { Err(OptionError::NoOption(text.into())) });
        }
        for text in ["", "=", "BatchMode", "BatchMode=", "a\nStrictHostKeyChecking=no", "-v x", "a-b=c"] {
            assert_eq!(text.parse::<ClientOption>(), Err(OptionError::NoOption(text.into())), "{text:?}");
        }
    }
}
