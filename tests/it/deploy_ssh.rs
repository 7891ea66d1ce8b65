//! Running machines get another system over SSH, and go back by themselves if it is no good.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use crate::env::{Ran, TestEnv, ssh_word, text};
use crate::login::{Login, key};
use crate::machine::{Machine, closure, deployment};
use crate::wait;

/// The words of a deployment of the system `name` to a machine.
pub fn words(login: &Login, name: &str, more: &[&str]) -> Vec<String> {
    let system = deployment(name);
    let mut words = vec!["deploy-via-ssh".to_owned(), "--from".to_owned()];
    words.push(system.root.to_str().expect("test paths are plain").to_owned());
    words.extend(["--system".to_owned(), system.toplevel]);
    words.extend(login.ssh_options().into_iter().flat_map(|option| ["--ssh-option".to_owned(), option]));
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words.push("root@127.0.0.1".to_owned());
    words
}

pub fn deploy(machine: &Machine, name: &str, more: &[&str]) -> Ran {
    TestEnv::new().run(words(machine.login(), name, more))
}

/// Deploys the system `name` to several machines by one command.
pub fn deploy_to_all(logins: &[&Login], name: &str, more: &[&str]) -> Ran {
    let (env, system) = (TestEnv::new(), deployment(name));
    let list = logins.iter().map(|login| format!("{:?} = {:?}\n", login.address(), system.toplevel));
    fs::write(env.path("hosts.toml"), list.collect::<String>()).unwrap();
    let known: Vec<String> = logins.iter().map(|login| ssh_word(login.known_hosts())).collect();
    let options =
        [format!("IdentityFile={}", ssh_word(&key())), format!("UserKnownHostsFile={}", known.join(" "))];
    let mut words = vec!["deploy-via-ssh", "--hosts", "hosts.toml", "--from", text(&system.root)];
    words.extend(options.iter().flat_map(|option| ["--ssh-option", option]));
    words.extend(more);
    env.run(words)
}

/// The system that a machine runs, its profile's, and the one that it boots.
fn state(machine: &Machine) -> [String; 2] {
    let told = machine.run("readlink /run/current-system; readlink -f /nix/var/nix/profiles/system");
    let mut lines = told.lines().map(str::to_owned);
    [lines.next().unwrap(), lines.next().unwrap()]
}

#[track_caller]
fn assert_has(machine: &Machine, running: &str, profile: &str) {
    assert_eq!(state(machine), [deployment(running).toplevel, deployment(profile).toplevel]);
    assert_undamaged(0, &machine.run("nix-store --verify --check-contents 2>&1"));
}

/// Nothing is wrong with a store of which `nix-store --verify --check-contents` says this, and ends like this.
#[track_caller]
pub fn assert_undamaged(status: i32, words: &str) {
    let damaged = ["modified", "disappeared", "missing", "error"].iter().any(|word| words.contains(word));
    assert!(status == 0 && !damaged, "{status}: {words}");
}

#[test]
fn a_machine_gets_a_system_and_the_first_one_again() {
    let machine = Machine::booted();
    deploy(&machine, "b", &[]).ok().stderr_has("runs nixos-system");
    assert_has(&machine, "b", "b");
    assert_eq!(machine.run("cat /run/greeting"), "second");
    // Only what was missing came.
    let own = machine.run("ls /nix/store | wc -l");
    let union: std::collections::BTreeSet<String> = closure("a").into_iter().chain(closure("b")).collect();
    assert_eq!(own.trim(), union.len().to_string());
    let (sent, _) = machine.login().link.bytes();
    deploy(&machine, "b", &[]).ok().stderr_has("already");
    let again = machine.login().link.bytes().0 - sent;
    assert!(again < 64 << 10, "{again} bytes to do nothing");
    deploy(&machine, "a", &[]).ok();
    assert_has(&machine, "a", "a");
    machine.reboot();
    assert_has(&machine, "a", "a");
}

#[test]
fn each_way_changes_what_it_says_and_no_more() {
    let machine = Machine::booted();
    let before = state(&machine);
    let paths = machine.run("ls /nix/store");
    deploy(&machine, "b", &["--dry-run"]).ok().stdout_has("Send 4 of").stdout_has("Reach the machine anew");
    deploy(&machine, "b", &["--plan", "json"]).ok().stdout_has("\"step\": \"keep\"");
    assert_eq!((state(&machine), machine.run("ls /nix/store")), (before.clone(), paths));

    deploy(&machine, "b", &["--copy-only"]).ok().stderr_has("in its store");
    assert_eq!(state(&machine), before);
    deploy(&machine, "b", &["--dry-activate"])
        .ok()
        .stderr_has("would stop the following units: greeter.service");
    assert_eq!(state(&machine), before);

    deploy(&machine, "b", &["--test"]).ok();
    assert_has(&machine, "b", "a");
    machine.reboot();
    assert_has(&machine, "a", "a");

    deploy(&machine, "b", &["--boot"]).ok();
    assert_has(&machine, "a", "b");
    machine.reboot();
    assert_has(&machine, "b", "b");

    let boot_id = machine.run("cat /proc/sys/kernel/random/boot_id");
    deploy(&machine, "a", &["--reboot"]).ok().stderr_has("was restarted and runs");
    assert_ne!(machine.run("cat /proc/sys/kernel/random/boot_id"), boot_id);
    assert_has(&machine, "a", "a");
}

#[test]
fn a_system_that_fails_is_taken_back_at_once() {
    let machine = Machine::booted();
    // Nor does its own check bar the way back of the system that ran.
    refuses(&machine, "a");
    for (name, words) in [("failing-unit", "failed"), ("failing-activation", "status 2")] {
        let ran = deploy(&machine, name, &[]).ended_with(4).says_a_sentence();
        ran.stderr_has("was rolled back to").stderr_has(words);
        assert_has(&machine, "a", "a");
        // What failed is kept for study.
        let kept = machine.run("readlink /nix/var/nix/profiles/system-*-link");
        assert!(kept.contains(&deployment(name).toplevel), "{kept}");
    }
    machine.reboot();
    assert_has(&machine, "a", "a");
    // Who wants to look at it as it is says so.
    deploy(&machine, "failing-unit", &["--no-rollback"]).failed().stderr_has("left as it is");
    assert_eq!(state(&machine)[0], deployment("failing-unit").toplevel);
}

/// Lets the pre-switch checks of a system refuse.
fn refuses(machine: &Machine, name: &str) {
    let toplevel = deployment(name).toplevel;
    let name = toplevel.rsplit('/').next().unwrap();
    machine.run(&format!("mkdir -p /run/refuses && touch /run/refuses/{name}"));
}

#[test]
fn a_system_that_refuses_itself_changes_nothing() {
    let machine = Machine::booted();
    refuses(&machine, "b");
    for (name, words) in [
        ("new-bus", "critical components differ: dbus-implementation (dbus, now broker)"),
        ("b", "the pre-switch checks of"),
        ("b", "told to refuse"),
        ("new-init", "nothing was changed"),
    ] {
        let ran = deploy(&machine, name, &[]).refused().says_a_sentence();
        ran.stderr_has(words).stderr_has("--boot --reboot");
        assert_has(&machine, "a", "a");
    }
    deploy(&machine, "new-bus", &["--dry-run"]).refused();
    deploy(&machine, "new-bus", &["--boot"]).ok();
    assert_has(&machine, "a", "new-bus");
    machine.reboot();
    assert_has(&machine, "new-bus", "new-bus");
}

#[test]
fn a_machine_that_can_no_longer_be_reached_comes_back_by_itself() {
    let machine = Machine::booted();
    refuses(&machine, "a");
    let ran = deploy(&machine, "broken-network", &["--confirm-timeout", "8"]);
    ran.ended_with(4).stderr_has("nobody reached the machine within 8 s");
    assert!(machine.login().lets_in());
    assert_has(&machine, "a", "a");
    machine.reboot();
    assert_has(&machine, "a", "a");
}

#[test]
fn another_machine_s_system_is_refused() {
    let machine = Machine::booted();
    let ran = deploy(&machine, "other-host", &[]).refused().says_a_sentence();
    ran.stderr_has("runs the system of fixture-deploy and this one is of").stderr_has("--force");
    assert_has(&machine, "a", "a");
    deploy(&machine, "other-host", &["--force"]).ok();
    assert_has(&machine, "other-host", "other-host");
}

#[test]
fn wherever_the_near_end_dies_the_machine_has_one_system_or_the_other() {
    let machine = Machine::booted();
    // A line of the log, after which the power of the near end fails; and what the machine then runs.
    for (line, more) in
        [("\"step\"", &[][..]), ("\"start\"", &[]), ("activating", &["--confirm-timeout", "5"])]
    {
        let env = TestEnv::new();
        let mut command = env.command(words(machine.login(), "b", &[&["--progress", "json"], more].concat()));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for said in lines.map_while(Result::ok) {
            if said.contains(line) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What has begun goes on, and is taken back.
        wait::until("no unit of a deployment is left", || {
            let units = machine.run("systemctl list-units --all --plain --no-legend 'nixos-install-via-*'");
            units.trim().is_empty().then_some(())
        });
        assert_has(&machine, "a", "a");
    }
    deploy(&machine, "b", &[]).ok();
    assert_has(&machine, "b", "b");
}

#[test]
fn a_slow_link_that_breaks_in_between_loses_nothing() {
    let machine = Machine::booted();
    let link = &machine.login().link;
    link.shape(Duration::from_millis(100), Some(200 << 10));
    let env = TestEnv::new();
    let mut child = env.start(words(machine.login(), "b", &[]));
    let (begin, _) = link.bytes();
    wait::until("some of it is sent", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        (link.bytes().0 >= begin + (300 << 10)).then_some(())
    });
    link.cut();
    child.kill().unwrap();
    child.wait().unwrap();
    link.mend();
    deploy(&machine, "b", &[]).ok();
    assert_has(&machine, "b", "b");
}

#[test]
fn a_damaged_path_on_either_side_is_found() {
    let machine = Machine::booted();
    let (a, b) = (deployment("a"), deployment("b"));
    // A root of our own, for the family's is everybody's.
    let env = TestEnv::new();
    let source = env.path("source");
    let (family, root) = (b.root.to_str().unwrap(), source.to_str().unwrap());
    env.run(["install-to-dir", "--yes", "--from", family, "--system", &b.toplevel, root]).ok();
    let file = source.join(&b.toplevel[1..]).join("activate");
    let text = fs::read_to_string(&file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, text.replacen("setting", "SETTING", 1)).unwrap();
    let deploy = |more: &[&str]| {
        let mut words = words(machine.login(), "b", more);
        words[2] = root.to_owned();
        env.run(words)
    };
    let ran = deploy(&["--copy-only"]).failed().says_a_sentence();
    ran.stderr_has(&format!("{} is damaged on this side", b.toplevel));
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o555)).unwrap();

    // What the machine has of the older system is what the newer one is made from.
    let old = format!("{}/activate", a.toplevel);
    let bent = "mount -o remount,rw,bind /nix/store; chmod u+w $f; sed -i s/setting/SETTING/ $f; sed s/SETTING/setting/ $f > /run/good";
    machine.run(&format!("f={old}; {bent}"));
    deploy(&["--copy-only"]).ok();
    let good = format!("cat /run/good > {old}; chmod 555 {old}; touch -d @1 {old} {}", a.toplevel);
    machine.run(&good);
    self::deploy(&machine, "b", &[]).ok();
    assert_has(&machine, "b", "b");
}

#[test]
fn a_garbage_collection_meanwhile_takes_nothing_that_comes() {
    let machine = Machine::booted();
    machine.run("systemd-run --quiet --unit=collector sh -c 'while :; do nix-store --gc; done'");
    let machine = &machine;
    for name in ["b", "a", "b"] {
        deploy(machine, name, &[]).ok();
        machine.run("rm -f $(ls -d /nix/var/nix/profiles/system-*-link | grep -vF $(readlink /nix/var/nix/profiles/system))");
    }
    machine.run("systemctl stop collector");
    assert_has(machine, "b", "b");
}

#[test]
fn a_machine_that_vanishes_for_good_is_told_so() {
    let machine = Machine::booted();
    let env = TestEnv::new();
    let limits = ["--confirm-timeout", "5", "--activation-timeout", "5"];
    let patience = ["--ssh-option", "ServerAliveInterval=1", "--ssh-option", "ConnectTimeout=5"];
    let more = [&["--progress", "json"][..], &limits, &patience].concat();
    let mut command = env.command(words(machine.login(), "b", &more));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for said in lines.map_while(Result::ok) {
        if said.contains("activating the configuration") {
            machine.login().link.cut();
        }
    }
    let ran = Ran::new(format!("{command:?}"), child.wait_with_output().unwrap());
    ran.ended_with(5).stderr_has("readlink /run/current-system` tells");
    // Nobody confirmed, so it went back.
    assert_has(&machine, "a", "a");
}

#[test]
fn several_machines_at_once_and_one_of_them_dead() {
    let machines = [Machine::booted(), Machine::booted(), Machine::booted()];
    machines[1].login().link.cut();
    let logins = machines.each_ref().map(Machine::login);
    let hosts = logins.map(Login::address);
    let patience = ["--ssh-option", "ConnectTimeout=3"];
    let run = |more: &[&str]| deploy_to_all(&logins, "b", &[&patience, more].concat());
    let ran = run(&["--progress", "json"]).failed();
    let ended: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .filter(|event: &serde_json::Value| event["event"] == "ended")
        .collect();
    let mut codes: Vec<(&str, i64)> = ended
        .iter()
        .map(|event| (event["host"].as_str().unwrap(), event["code"].as_i64().unwrap()))
        .collect();
    // They end in any order.
    codes.sort_unstable();
    let mut expected = [(hosts[0].as_str(), 0), (hosts[1].as_str(), 1), (hosts[2].as_str(), 0)];
    expected.sort_unstable();
    assert_eq!(codes, expected);
    for number in [0, 2] {
        assert_has(&machines[number], "b", "b");
    }
    assert_has(&machines[1], "a", "a");
    machines[1].login().link.mend();
    run(&["--jobs", "2"]).ok().stderr_has("already").stderr_has("runs nixos-system");
    assert_has(&machines[1], "b", "b");
}

#[test]
fn a_machine_takes_first_what_its_own_caches_have() {
    let machine = Machine::booted();
    let ours = closure("a");
    let greeter = closure("b").into_iter().find(|path| path.contains("greeter") && !ours.contains(path));
    let greeter = greeter.expect("b has another greeter");
    deploy(&machine, "b", &["--copy-only"]).ok();
    machine.run(&format!("nix copy --to file:///var/cache/binary {greeter}; nix-store --gc"));
    let daemon = r#"mkdir -p /run/systemd/system/nix-daemon.service.d
        cat >/run/systemd/system/nix-daemon.service.d/cache.conf <<'END'
[Service]
Environment="NIX_CONFIG=substituters = file://CACHE\nrequire-sigs = false"
END
        systemctl daemon-reload; systemctl restart nix-daemon.service"#;
    for (cache, own, sent) in [
        ("/var/cache/binary", "", 4),
        ("/nowhere", "--substitute", 4),
        ("/var/cache/binary", "--substitute", 3),
    ] {
        machine.run(&daemon.replace("CACHE", cache));
        let more: Vec<&str> = ["--copy-only", own].into_iter().filter(|word| !word.is_empty()).collect();
        deploy(&machine, "b", &more).ok().stderr_has(&format!("Send {sent} of"));
        machine.run(&format!("nix-store --check-validity {greeter}"));
        if sent == 4 {
            machine.run("nix-store --gc");
        }
    }
    deploy(&machine, "b", &["--substitute"]).ok();
    assert_has(&machine, "b", "b");
}
