//! `generate`: what a system gets while it is built, and its scripts under hostile callers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::{Ran, TestEnv, fixture, sh_word, text, tool};

const COMMANDS: [&str; 5] =
    ["install-to-disk", "install-to-dir", "install-via-ssh", "deploy-to-dir", "deploy-via-ssh"];
const MANIFEST: &str = "{ \"version\": 1, \"bootLoader\": \"grub\" }\n";

/// A toplevel with a name to trip over, and a program that prints its arguments, a NUL after each.
fn world() -> (TestEnv, PathBuf, PathBuf) {
    let env = TestEnv::new();
    let toplevel = env.path("it's a $(touch x) \"top\nlevel\"");
    let program = env.path("-the program");
    fs::create_dir(&toplevel).unwrap();
    fs::write(&program, "#!/bin/sh\nprintf '%s\\0' \"$@\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(env.path("manifest.json"), MANIFEST).unwrap();
    (env, toplevel, program)
}

fn generate(env: &TestEnv, toplevel: &Path, shell: &Path, binary: &Path) -> Ran {
    let words = ["--toplevel", text(toplevel), "--shell", text(shell), "--binary", text(binary)];
    env.run(["generate", "--manifest", "manifest.json"].iter().chain(&words))
}

#[test]
fn a_script_hands_on_every_argument_as_it_is_without_help_of_its_environment() {
    let (env, toplevel, program) = world();
    let elsewhere = env.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // Behind #! there may be no blank.
    let plain = tempfile::tempdir_in("/tmp").unwrap();
    let busybox = plain.path().join("sh");
    symlink("/bin/busybox", &busybox).unwrap();
    let arguments = ["$(touch x)", "`touch x`", "two  words", "new\nline\n", "-rf", "--", "", "'", "\"", "*"];
    for (round, shell) in [Path::new("/bin/sh"), Path::new("/bin/bash"), &busybox].into_iter().enumerate() {
        // Again each time: what an earlier run left is replaced.
        generate(&env, &toplevel, shell, &program).ok();
        for command in COMMANDS {
            let script = toplevel.join("bin").join(command);
            let link = env.path(&format!("link-{round}-{command}"));
            symlink(&script, &link).unwrap();
            for called in [&script, &link] {
                let mut run = Command::new(called);
                run.args(arguments).env_clear().current_dir(&elsewhere).stdin(Stdio::null());
                let output = run.output().unwrap();
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
                let printed = String::from_utf8(output.stdout).unwrap();
                let handed_on: Vec<&str> = printed.split_terminator('\0').collect();
                let expected = [&[command, "--default-system", text(&toplevel)], &arguments[..]].concat();
                assert_eq!(handed_on, expected, "{} with {}", called.display(), shell.display());
            }
        }
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "something was run");
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let (env, _, _) = world();
    let toplevel = env.path("toplevel");
    fs::create_dir(&toplevel).unwrap();
    generate(&env, &toplevel, Path::new("/bin/sh"), Path::new("/bin/sh")).ok();
    for command in COMMANDS {
        tool("shellcheck", &[text(&toplevel.join("bin").join(command))]);
    }
}

#[test]
fn a_system_gets_its_manifest_and_its_commands_and_keeps_what_it_has() {
    let (env, toplevel, program) = world();
    fs::create_dir(toplevel.join("bin")).unwrap();
    fs::write(toplevel.join("bin/switch-to-configuration"), "own").unwrap();
    generate(&env, &toplevel, Path::new("/bin/sh"), &program).ok();

    let mode = |name: &str| fs::metadata(toplevel.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(fs::read_to_string(toplevel.join("install-via/manifest.json")).unwrap(), MANIFEST);
    assert_eq!(mode("install-via/manifest.json"), 0o444);
    for command in COMMANDS {
        assert_eq!(mode(&format!("bin/{command}")), 0o555);
    }
    assert_eq!(fs::read_to_string(toplevel.join("bin/switch-to-configuration")).unwrap(), "own");
    assert_eq!(fs::read_dir(toplevel.join("bin")).unwrap().count(), 1 + COMMANDS.len());
    assert_eq!(fs::read_dir(toplevel.join("install-via")).unwrap().count(), 1);
}

#[test]
fn bad_input_is_told_in_a_sentence_and_nothing_is_written() {
    let (env, toplevel, program) = world();
    let (sh, absent) = (Path::new("/bin/sh"), env.path("absent"));
    let spaced = env.path("a shell");
    symlink("/bin/sh", &spaced).unwrap();
    for (toplevel, shell, binary, words) in [
        (Path::new("top"), sh, &*program, "--toplevel \"top\" is not absolute"),
        (&absent, sh, &program, "is no directory"),
        (&toplevel, Path::new("sh"), &program, "--shell \"sh\" is not absolute"),
        (&toplevel, &absent, &program, "is no file"),
        (&toplevel, &spaced, &program, "cannot stand behind #!"),
        (&toplevel, sh, Path::new("nixos-install-via"), "--binary \"nixos-install-via\" is not absolute"),
        (&toplevel, sh, &env.path(""), "is no file"),
    ] {
        generate(&env, toplevel, shell, binary).misused().says_a_sentence().stderr_has(words);
    }
    for (manifest, words) in [
        (r#"{"version":1,"layout":{"disks":{"main":"#, "not whole JSON"),
        (r#"{"version":9}"#, "has version 9"),
        (r#"{"version":1,"espMountPoint":"boot"}"#, "espMountPoint"),
        (r#"{"version":1,"layout":{"disks":{"main":{"partitions":[]}}}}"#, "layout"),
    ] {
        fs::write(env.path("manifest.json"), manifest).unwrap();
        generate(&env, &toplevel, sh, &program).misused().says_a_sentence().stderr_has(words);
    }
    fs::remove_file(env.path("manifest.json")).unwrap();
    generate(&env, &toplevel, sh, &program).misused().says_a_sentence().stderr_has("manifest.json");
    assert_eq!(fs::read_dir(&toplevel).unwrap().count(), 0, "something was written");
}

#[test]
fn a_system_s_own_script_installs_that_system_unless_another_is_named() {
    let env = TestEnv::new();
    // Built in this machine's store, so that its interpreter is there.
    let (own, other) = (fixture("bios").toplevel, fixture("uefi").toplevel);
    let plan = |options: &[&str]| {
        let mut script = Command::new(format!("{own}/bin/install-to-dir"));
        script.env_clear().current_dir(env.path("")).args(["--dry-run", "copy"]).args(options);
        Ran::new(format!("{script:?}"), script.output().unwrap())
    };
    plan(&[]).ok().stdout_has(&own);
    plan(&["--system", &other]).ok().stdout_has(&other);
}

#[test]
fn there_is_a_manual_page_for_each_command_that_the_help_shows() {
    let env = TestEnv::new();
    env.run(["man", "pages/man8"]).ok();
    let entries = fs::read_dir(env.path("pages/man8")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let program = |command: &str| format!("nixos-install-via-{command}.8");
    let mut expected: Vec<String> = [
        "completions",
        "deploy-to-dir",
        "deploy-via-ssh",
        "install-via-ssh",
        "enter",
        "install-to-dir",
        "install-to-disk",
        "verify",
    ]
    .map(program)
    .into_iter()
    .chain(["nixos-install-via.8".to_owned()])
    .chain(COMMANDS.map(|command| format!("{command}.8")))
    .collect();
    expected.sort();
    assert_eq!(names, expected);

    let page = |name: &str| fs::read_to_string(env.path("pages/man8").join(name)).unwrap();
    for command in COMMANDS {
        let target = program(command);
        assert_eq!(page(&format!("{command}.8")), format!(".so man8/{target}\n"));
        let title = format!(".TH nixos-install-via-{command} 8 \" \" \"nixos-install-via ");
        assert!(page(&target).contains(&title), "{}", page(&target));
        assert!(!page(&target).contains("default\\-system"), "hidden options are for scripts");
    }
}

#[test]
fn a_shell_completes_the_program_and_each_command_by_its_own_name() {
    let env = TestEnv::new();
    for (command, words, option) in [
        ("nixos-install-via", vec![], "install-to-disk"),
        ("install-to-disk", vec!["install-to-disk"], "--layout"),
        ("install-to-dir", vec!["install-to-dir"], "--extra-files"),
        ("deploy-to-dir", vec!["deploy-to-dir"], "--keep"),
        ("install-via-ssh", vec!["install-via-ssh"], "--rescue-timeout"),
        ("deploy-via-ssh", vec!["deploy-via-ssh"], "--hosts"),
    ] {
        let script = env.run(["completions", "bash"].into_iter().chain(words)).ok().stdout;
        fs::write(env.path("completion"), script).unwrap();
        let completed = tool(
            "bash",
            &[
                "-euc",
                &format!(
                    "source {0}; f=$(complete -p {command} | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
                    COMP_WORDS=({command} '{1}') COMP_CWORD=1 COMPREPLY=()
                    $f {command} '{1}' {command}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                    sh_word(text(&env.path("completion"))),
                    &option[..5],
                ),
            ],
        );
        assert!(completed.lines().any(|line| line.trim() == option), "{command}: {completed}");
    }
    let package =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("module/package.nix")).unwrap();
    let list = package.split_once("commands = [").and_then(|(_, rest)| rest.split_once(']')).unwrap().0;
    let listed: Vec<&str> = list.split_whitespace().map(|word| word.trim_matches('"')).collect();
    assert_eq!(listed, COMMANDS, "what the package links");
}
