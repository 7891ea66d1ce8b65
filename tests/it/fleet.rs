//! Several machines at once, and what `docs/fleet.md` says of them.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::env::{Ran, TestEnv, ssh_word, text};
use crate::link::free_port;
use crate::login::key;
use crate::machine::{Machine, deployment};

const FLEET: &str = include_str!("../../docs/fleet.md");

/// The block of `docs/fleet.md` in this language; of several the first.
pub fn block(language: &str) -> &'static str {
    let rest = FLEET.split(&format!("```{language}\n")).nth(1).expect("there is such a block");
    rest.split("```").next().expect("it ends")
}

/// Runs a command with the systems and the keys of these tests.
fn run(env: &TestEnv, known_hosts: &[&Machine], words: &[&str]) -> Ran {
    let files: Vec<String> =
        known_hosts.iter().map(|machine| ssh_word(machine.login().known_hosts())).collect();
    let from = deployment("a").root;
    let known = format!("UserKnownHostsFile={}", files.join(" "));
    let key = key();
    let ours = [
        "--from",
        text(&from),
        "-i",
        text(&key),
        "--ssh-option",
        &known,
        "--ssh-option",
        "IdentitiesOnly=yes",
    ];
    env.run([&words[..1], &ours, &words[1..]].concat())
}

/// The last event of each machine, and the names of all events.
fn told(ran: &Ran) -> (BTreeMap<String, Value>, Vec<String>) {
    let events: Vec<Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let mut last = BTreeMap::new();
    for event in &events {
        let host = event["host"].as_str().expect("each names its machine").to_owned();
        // The last one is the last one.
        let earlier: Option<Value> = last.insert(host, event.clone());
        assert!(earlier.is_none_or(|earlier| earlier["event"] != "ended"), "{ran}");
    }
    assert!(last.values().all(|event| event["event"] == "ended"), "{ran}");
    (last, events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn the_commands_for_fleets_do_what_is_said() {
    let env = TestEnv::new();
    let machines = [Machine::booted(), Machine::booted()];
    let [web1, web2] = machines.each_ref().map(|machine| machine.login().address());
    let dead = format!("ssh://root@127.0.0.1:{}", free_port());
    let (a, b, failing) =
        (deployment("a").toplevel, deployment("b").toplevel, deployment("failing-unit").toplevel);
    let fleet = |system: &str| {
        let lines = [(&web1, b.as_str()), (&web2, system), (&dead, &b)];
        let lines: Vec<String> =
            lines.iter().map(|(host, system)| format!("{host:?} = {system:?}\n")).collect();
        fs::write(env.path("fleet.toml"), lines.concat()).unwrap();
    };
    let run = |words: &[&str]| run(&env, &machines.each_ref(), words);
    let running = || machines.each_ref().map(|machine| machine.run("readlink /run/current-system"));
    let lines = FLEET.lines().filter_map(|line| line.strip_prefix("nixos-install-via "));
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let [looking, deploying] = lines.as_slice() else { panic!("two commands, not {lines:?}") };

    fleet(&failing);
    let looked = run(looking).failed().stdout_has("Send ").stderr_has("looked at").stderr_has("error: ");
    assert!(looked.stderr.contains(&dead), "{looked}");
    assert_eq!(running(), [a.clone(), a.clone()]);

    // As a program sees it.
    let to_program = |words: &[&str]| run(&[words, &["--progress", "json"]].concat());
    let ran = to_program(looking).failed();
    let (last, names) = told(&ran);
    assert_eq!(names.iter().filter(|name| *name == "plan").count(), 2, "{ran}");
    assert_eq!((&last[&web1]["changed"], &last[&web1]["code"]), (&json!(false), &json!(0)));

    let ran = to_program(deploying).ended_with(4);
    let (last, names) = told(&ran);
    for name in &names {
        assert!(FLEET.contains(&format!("| `{name}` |")), "{name} is not told of");
    }
    let seen = |host: &str| ["code", "reached", "changed"].map(|field| &last[host][field]);
    assert_eq!(seen(&web1), [&json!(0), &json!(true), &json!(true)]);
    assert_eq!(seen(&web2), [&json!(4), &json!(true), &json!(true)]);
    assert_eq!(seen(&dead), [&json!(1), &json!(false), &json!(false)]);
    assert_eq!(last[&web1]["after"]["running"], b);
    assert_eq!(last[&web2]["after"]["running"], a);
    let packages = last[&web1]["packages"].as_array().expect("the first system is here too");
    assert!(
        packages.contains(&json!({"name": "greeter-first", "before": [""], "after": []})),
        "{packages:?}"
    );
    assert_eq!(last[&dead]["before"], Value::Null);
    for field in
        last[&web1].as_object().unwrap().keys().chain(last[&web1]["after"].as_object().unwrap().keys())
    {
        assert!(FLEET.contains(&format!("`{field}`")), "{field} is not told of");
    }
    assert_eq!(running(), [b.clone(), a.clone()]);

    // As people see it: one is left alone, and one gets what it can run.
    fleet(&b);
    let ran = run(deploying).failed();
    // The table comes last, and its rows may have more lines behind them.
    let row = |host: &str| ran.stderr.lines().rfind(|line| line.starts_with(host)).expect("each has a row");
    assert!(row(&web1).ends_with("already"), "{ran}");
    assert!(row(&dead).contains("  error: "), "{ran}");
    assert_eq!(running(), [b.clone(), b]);

    // The first that fails is the last that is begun.
    let stopped =
        run(&["deploy-via-ssh", "--jobs", "1", "--fail-fast", "--system", &a, &dead, &web1]).failed();
    assert!(stopped.stderr.contains("not begun"), "{stopped}");
    // A single machine is told of in the same way.
    let (last, _) = told(&to_program(&["deploy-via-ssh", "--system", &a, &web1]).ok());
    assert_eq!(last[&web1]["changed"], true);
}
