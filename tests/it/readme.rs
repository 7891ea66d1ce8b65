//! What the README tells people to type is typed here.

use crate::deploy_ssh;
use crate::env::{TestEnv, fixture};
use crate::machine::Machine;

const README: &str = include_str!("../../README.md");

/// The commands of the README's shell blocks that call the binary, without `sudo` and comments.
fn commands() -> Vec<Vec<&'static str>> {
    let blocks = README.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest));
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap_or(line).trim());
    let plain = lines.map(|line| line.strip_prefix("sudo ").unwrap_or(line));
    let ours = plain.filter_map(|line| line.strip_prefix("nixos-install-via "));
    ours.map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn the_readme_s_commands_do_what_it_says() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let dir = env.path("laptop");
    let image = env.image("sdb", 3072);
    let machine = Machine::booted();
    let mut ran = 0;
    for words in commands() {
        let words: Vec<&str> = words
            .iter()
            .map(|word| match *word {
                "/backup/laptop" => dir.to_str().unwrap(),
                "/dev/sdb" => image.to_str().unwrap(),
                word => word,
            })
            .collect();
        // Where its output goes is the shell's business.
        let words: Vec<&str> = words.into_iter().filter(|word| !word.starts_with('>')).collect();
        let ran_now = match words[0] {
            "install-to-dir" | "deploy-to-dir" => env.run(system.words(words[0], &words[1..])),
            // A container is no machine to replace, and is told so.
            "install-via-ssh" => {
                let mut words = deploy_ssh::words(machine.login(), "b", &words[1..words.len() - 1]);
                words[0] = "install-via-ssh".to_owned();
                env.run(words).ended_with(3).stderr_has("is a container");
                ran += 1;
                continue;
            }
            "deploy-via-ssh" => deploy_ssh::deploy(&machine, "b", &words[1..words.len() - 1]),
            // What it would do is all that this machine, which may lack vfat, can show of it.
            "install-to-disk" => env.run(system.words(words[0], &[&["--dry-run"], &words[1..]].concat())),
            _ => env.run(&words),
        };
        let done = ran_now.ok();
        if words[0] == "enter" {
            assert_eq!(done.stdout.trim(), "fixture-uefi");
        }
        ran += 1;
    }
    assert_eq!(ran, 12);
}

#[test]
fn the_commands_at_a_glance_are_those_that_there_are() {
    let help = TestEnv::new().run(["--help"]).ok().stdout;
    let section = README.split("\n## The commands at a glance\n").nth(1).expect("it has the section");
    let section = section.split("\n### ").next().unwrap();
    let table: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    for line in &table {
        let name = line.split([' ', '`']).next().unwrap();
        assert!(help.contains(&format!("  {name} ")), "{name}");
    }
    assert_eq!(table.len(), 9);
}
