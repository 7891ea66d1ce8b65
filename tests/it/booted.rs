//! `enter --boot`: a directory boots through systemd-nspawn, where no systemd is around it.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::env::{TestEnv, fixture, small_system, text};
use crate::wait;

struct Booted {
    child: Child,
    console: std::path::PathBuf,
}

impl Booted {
    fn start(env: &TestEnv, dir: &Path, name: &str) -> Booted {
        let console = env.path(&format!("console-{name}"));
        let machine = format!("--machine=it-{}-{name}", std::process::id());
        let mut command = env.command(["enter", "--boot", text(dir), "--", &machine]);
        let out = File::create(&console).unwrap();
        command.stderr(out.try_clone().unwrap()).stdout(out);
        Booted { child: command.spawn().unwrap(), console }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        wait::until(&format!("the console says {text:?}"), || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}, no {text:?} in {}", self.said());
            self.said().contains(text).then_some(())
        });
    }

    /// Runs a command of the booted system in it.
    fn run(&self, words: &[&str]) -> String {
        let child_of = |pid: String| {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            children.split_whitespace().next().expect("it runs").to_owned()
        };
        let init = child_of(child_of(self.child.id().to_string()));
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "--"])
            .args(words)
            .stdin(Stdio::null());
        String::from_utf8_lossy(&command.output().unwrap().stdout).trim().to_owned()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_directory_boots_to_its_end_and_takes_no_deployment_meanwhile() {
    let env = TestEnv::new();
    let (system, dir) = (fixture("uefi"), env.path("dir"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    let mut booted = Booted::start(&env, &dir, "whole");
    booted.wait_for("login:");
    let systemctl = "/run/current-system/sw/bin/systemctl";
    assert_eq!(booted.run(&[systemctl, "is-active", "multi-user.target"]), "active");
    assert_eq!(booted.run(&["/run/current-system/sw/bin/readlink", "/run/booted-system"]), system.toplevel);
    let links = booted.run(&["/run/current-system/sw/bin/ls", "/sys/class/net"]);
    assert!(
        links.split_whitespace().all(|link| link != "eth0"),
        "it has the network of this machine: {links}"
    );
    for command in ["deploy-to-dir", "install-to-dir"] {
        let ran = env.run(system.words(command, &[text(&dir)])).failed();
        ran.says_a_sentence().stderr_has("booted as a container");
    }
    env.run(["enter", "--boot", text(&dir)]).failed().says_a_sentence().stderr_has("power it off");
    booted.run(&[systemctl, "--no-block", "poweroff"]);
    let status = booted.child.wait().unwrap();
    assert!(status.success(), "{status}: {}", booted.said());
    env.run(system.words("deploy-to-dir", &[text(&dir)])).ok().stderr_has("nothing to do");
    env.run(["verify", text(&dir)]).ok();
}

#[test]
fn what_cannot_be_booted_is_told_in_a_sentence() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("dir"));
    fs::create_dir(&dir).unwrap();
    env.run(["enter", "--boot", text(&dir)]).failed().says_a_sentence().stderr_has("install-to-dir");
    fs::remove_dir(&dir).unwrap();
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    let mut without = env.command(["enter", "--boot", text(&dir)]);
    let output = without.env("PATH", "/nowhere").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("there is no systemd-nspawn"), "{said}");
    env.run(["enter", "--host-network", text(&dir)]).misused();
}
