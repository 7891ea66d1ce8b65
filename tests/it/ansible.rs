//! The Ansible collection, run by the real Ansible: the inventory and the playbook are those of `docs/fleet.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::env::{BINARY, Ran, TestEnv, sh_word, ssh_word, text, tool};
use crate::fleet::block;
use crate::link::free_port;
use crate::login::key;
use crate::machine::{Machine, deployment};
use crate::sshd::{PASSWORD, Sshd};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// What the recorder wrote of one machine.
struct Told {
    host: String,
    how: String,
    result: Value,
}

/// A control node: a directory with the collection, the playbook and an inventory.
struct Control {
    env: TestEnv,
}

impl Control {
    fn new() -> Control {
        let env = TestEnv::new();
        let control = Control { env };
        fs::write(control.path("deploy.yml"), block("yaml")).unwrap();
        // The program as a control node has it in its PATH, but for the root that all systems of these tests lie in.
        fs::create_dir(control.path("bin")).unwrap();
        let root = deployment("a").root;
        let [binary, root] = [BINARY, text(&root)].map(sh_word);
        let program = format!("#!/bin/sh\nexec {binary} \"$@\" --from {root}\n");
        fs::write(control.path("bin/nixos-install-via"), program).unwrap();
        tool("chmod", &["+x", text(&control.path("bin/nixos-install-via"))]);
        let collection = Path::new(REPOSITORY).join("ansible");
        control.tool("ansible-galaxy", &["collection", "build", text(&collection)]);
        let packed = "nixos_install_via-fleet-0.1.0.tar.gz";
        control.tool("ansible-galaxy", &["collection", "install", packed, "--offline", "--pre"]);
        control
    }

    fn path(&self, name: &str) -> PathBuf {
        self.env.path(name)
    }

    fn command(&self, name: &str) -> Command {
        let bin = Path::new(REPOSITORY).join("build/ansible/bin");
        assert!(bin.join(name).exists(), "run `make build/ansible/installed` first");
        let mut command = Command::new(bin.join(name));
        let path = format!("{}:{}", text(&self.path("bin")), std::env::var("PATH").unwrap());
        command.current_dir(self.path("")).stdin(Stdio::null()).env("PATH", path);
        command.env("HOME", self.path("")).env("LC_ALL", "C.UTF-8").env("ANSIBLE_NOCOLOR", "1");
        command.env("ANSIBLE_CALLBACK_PLUGINS", Path::new(REPOSITORY).join("tests/ansible/callbacks"));
        command.env("ANSIBLE_CALLBACKS_ENABLED", "recorder").env("RECORD", self.path("record"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn tool(&self, name: &str, words: &[&str]) -> String {
        let output = self.command(name).args(words).output().expect("it was installed");
        Ran::new(name.to_owned(), output).ok().stdout
    }

    /// Plays `deploy.yml` with this inventory: each machine, and the system that it is to get.
    fn play(&self, hosts: &[(&Host, &str)], words: &[&str]) -> (Ran, Vec<Told>) {
        let mut inventory = String::from("[web]\n");
        for (host, name) in hosts {
            let Host { line, more } = host;
            writeln!(inventory, "{line} system={} {more}", deployment(name).toplevel).unwrap();
        }
        fs::write(self.path("fleet.ini"), inventory).unwrap();
        fs::remove_file(self.path("record")).ok();
        let mut command = self.command("ansible-playbook");
        command.args(["-i", "fleet.ini", "deploy.yml"]).args(words);
        let output = command.output().expect("it was installed");
        let ran = Ran::new(format!("{command:?}"), output);
        let record = fs::read_to_string(self.path("record")).unwrap_or_default();
        let told = record.lines().map(|line| {
            let line: Value = serde_json::from_str(line).expect("the recorder writes JSON");
            let word = |name: &str| line[name].as_str().expect("it is a word").to_owned();
            Told { host: word("host"), how: word("how"), result: line["result"].clone() }
        });
        (ran, told.collect())
    }
}

/// A machine as a line of an inventory.
struct Host {
    line: String,
    /// What counts more than all before it.
    more: String,
}

impl Host {
    fn of(name: &str, machine: &Machine) -> Host {
        let options = machine.login().ssh_options();
        let options: Vec<String> = options
            .iter()
            .filter(|option| option.contains("KnownHosts"))
            .map(|option| format!("-o {}", sh_word(option)))
            .collect();
        Host::new(name, machine.login().link.port(), &options.join(" "))
    }

    fn new(name: &str, port: u16, options: &str) -> Host {
        Host {
            line: format!(
                "{name} ansible_host=127.0.0.1 ansible_port={port} ansible_user=root \
                 ansible_ssh_private_key_file={} ansible_ssh_common_args={}",
                sh_word(text(&key())),
                sh_word(&format!("-o IdentitiesOnly=yes {options}"))
            ),
            more: String::new(),
        }
    }
}

/// What each machine came to, in the order of their names.
#[track_caller]
fn assert_told(ran: &Ran, told: &[Told], expected: &[(&str, &str, bool)]) {
    let mut seen: Vec<(&str, &str, bool)> = told
        .iter()
        .map(|told| (told.host.as_str(), told.how.as_str(), told.result["changed"] == true))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, expected, "{ran}");
}

fn of<'a>(told: &'a [Told], host: &str) -> &'a Value {
    &told.iter().find(|told| told.host == host).expect("it was told of").result
}

fn running(machine: &Machine) -> String {
    machine.run("readlink /run/current-system")
}

#[test]
fn a_play_changes_what_it_says_and_a_dead_machine_fails_alone() {
    let control = Control::new();
    let machines = [Machine::booted(), Machine::booted()];
    let (a, b) = (deployment("a").toplevel, deployment("b").toplevel);
    let [web1, web2] = [Host::of("web1", &machines[0]), Host::of("web2", &machines[1])];
    let dead = Host::new("dead", free_port(), "");
    let state = |machine: &Machine| {
        machine.run("ls /nix/store; ls -l /nix/var/nix/profiles/system* /run/current-system")
    };

    // Looking changes nothing, and says what would.
    let before = machines.each_ref().map(state);
    let hosts = [(&web1, "b"), (&dead, "b"), (&web2, "failing-unit")];
    let (ran, told) = control.play(&hosts, &["--check", "--diff"]);
    assert_told(&ran, &told, &[("dead", "unreachable", false), ("web1", "ok", true), ("web2", "ok", true)]);
    let steps = of(&told, "web1")["plan"]["steps"].as_array().expect("the plan has steps");
    assert_eq!(steps.first().expect("there is something to do")["step"], "send");
    ran.ended_with(4)
        .stdout_has(&format!("-running: {a}\n"))
        .stdout_has(&format!("+running: {b}\n"))
        .stdout_has("-greeter-first\n+greeter-second\n");
    assert_eq!(machines.each_ref().map(state), before);

    // Of the second batch the only machine goes back by itself.
    let (ran, told) = control.play(&hosts, &["--diff"]);
    assert_told(
        &ran,
        &told,
        &[("dead", "unreachable", false), ("web1", "ok", true), ("web2", "failed", true)],
    );
    ran.stdout_has(&format!("+generation 2: {b}\n"));
    let result = of(&told, "web1");
    assert_eq!((&result["rc"], &result["rolled_back"]), (&json!(0), &json!(false)));
    assert_eq!((&result["before"]["running"], &result["after"]["running"]), (&json!(a), &json!(b)));
    let events = result["events"].as_array().expect("they are a list");
    let events: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert!(events.contains(&"step") && !events.contains(&"advance"), "{events:?}");
    assert_eq!(events.last(), Some(&"ended"));
    let result = of(&told, "web2");
    assert_eq!((&result["rc"], &result["rolled_back"]), (&json!(4), &json!(true)));
    assert!(result["msg"].as_str().unwrap().contains("was rolled back"), "{result}");
    assert_eq!(machines.each_ref().map(running), [b.clone(), a.clone()]);

    // Again: one has it already. One at a time, the play ends with the first that fails.
    let (ran, told) = control.play(&[(&web1, "b"), (&dead, "b"), (&web2, "b")], &["-e", "at_a_time=1"]);
    assert_told(&ran, &told, &[("dead", "unreachable", false), ("web1", "ok", false)]);
    assert_eq!(running(&machines[1]), a);

    // All at a time, the others go on.
    let (ran, told) = control.play(&[(&dead, "b"), (&web1, "b"), (&web2, "b")], &["-e", "at_a_time=100%"]);
    assert_told(&ran, &told, &[("dead", "unreachable", false), ("web1", "ok", false), ("web2", "ok", true)]);
    assert_eq!(machines.each_ref().map(running), [b.clone(), b]);
}

#[test]
fn what_cannot_be_is_said_before_a_connection_is_made() {
    let control = Control::new();
    let port = free_port();
    for (more, words) in [
        ("ansible_connection=local", "a system is deployed over ssh, and this machine's connection is"),
        ("ansible_become=true ansible_become_user=nobody", "only root may deploy"),
        ("ansible_ssh_extra_args='-S /run/x'", "ssh_extra_args: deploy-via-ssh has no word for -S"),
        ("ansible_ssh_extra_args='-o StrictHostKeyChecking=no'", "switches off the check of host keys"),
        ("system=/nix/store/none", "/nix/store/none"),
    ] {
        let host = Host { more: more.to_owned(), ..Host::new("web1", port, "") };
        let (ran, told) = control.play(&[(&host, "b")], &[]);
        assert_told(&ran, &told, &[("web1", "failed", false)]);
        let message = of(&told, "web1")["msg"].as_str().expect("there is a sentence").to_owned();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn becoming_root_takes_sudo_and_its_password() {
    let control = Control::new();
    let sshd = Sshd::start("");
    for (account, password, words) in [
        ("free", "", "127.0.0.1 does not run NixOS"),
        ("asked", PASSWORD, "127.0.0.1 does not run NixOS"),
        ("asked", "wrong", "sudo wants a password there"),
        ("asked", "", "sudo wants a password there"),
    ] {
        let known = format!("UserKnownHostsFile={}", ssh_word(&sshd.env.path("known_hosts")));
        let known = format!("-o {}", sh_word(&known));
        let mut host = Host::new("web1", sshd.port, &known);
        host.more = format!(
            "ansible_user={account} ansible_become=true ansible_become_password='{password}' \
             ansible_ssh_private_key_file={}",
            sh_word(text(&sshd.env.path("id")))
        );
        let (ran, told) = control.play(&[(&host, "b")], &[]);
        let message = of(&told, "web1")["msg"].as_str().expect("there is a sentence");
        assert!(message.contains(words), "{message}");
        // It stands nowhere.
        assert!(!format!("{ran}").contains(PASSWORD), "{ran}");
    }
}

#[test]
fn its_arguments_and_its_documentation_are_as_ansible_wants_them() {
    let control = Control::new();
    let doc = control.tool("ansible-doc", &["--json", "nixos_install_via.fleet.deploy"]);
    let doc: Value = serde_json::from_str(&doc).expect("it is JSON");
    let doc = &doc["nixos_install_via.fleet.deploy"]["doc"]["options"];
    // The action plugin checks what the documentation says.
    let script = "import json, sys
from ansible_collections.nixos_install_via.fleet.plugins.action.deploy import ARGUMENTS
print(json.dumps(ARGUMENTS))";
    let mut python = control.command("python3");
    let collections = control.path(".ansible/collections");
    let output = python.args(["-B", "-c", script]).env("PYTHONPATH", collections).output().unwrap();
    let arguments = Ran::new("python3".to_owned(), output).ok().stdout;
    let arguments: Value = serde_json::from_str(&arguments).expect("it is JSON");
    let names =
        |value: &Value| value.as_object().expect("it is an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(doc), names(&arguments));
    for name in names(doc) {
        for field in ["type", "default", "choices", "required"] {
            let (told, is) = (&doc[&name][field], &arguments[&name][field]);
            // What is not said is false.
            let same = told == is || (told == &Value::Bool(false) && is.is_null());
            assert!(same, "{name}: {field} is {is}, and said to be {told}");
        }
    }
    let mut unit = control.command("python3");
    let plugins = Path::new(REPOSITORY).join("ansible/plugins/plugin_utils");
    let tests = Path::new(REPOSITORY).join("ansible/tests/unit/plugins/plugin_utils");
    unit.args(["-B", "-m", "unittest", "discover", text(&tests)]).env("PYTHONPATH", plugins);
    Ran::new("unittest".to_owned(), unit.output().unwrap()).ok();
}
