//! The far end gets to run, on a real sshd: through any login shell, from wherever it may, as root.

use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Result;
use nixos_install_via::failure::Failure;
use nixos_install_via::ssh::{self, Ask, Far, FarBinary, Manner, Questions, Settings};
use nixos_install_via::sys::secret::Secret;
use sha2::Digest;

use crate::env::{BINARY, TestEnv, sh_word, ssh_word, text, tool};
use crate::sshd::{PASSWORD, Sshd};

// Says who it is and what it was told, and then everything that it is told.
const PROGRAM: &str = "#!/bin/sh\nprintf 'warming\\033[2J up\\n' >&2\necho \"$(id -un) $0 $*\"\nexec cat\n";
const SIZE: usize = 300_000;

/// Makes a program to send, as large as a small one.
fn program(env: &TestEnv) -> FarBinary {
    let mut contents = PROGRAM.as_bytes().to_vec();
    contents.resize(SIZE, b'#');
    let file = env.path("program");
    fs::write(&file, &contents).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    FarBinary {
        file,
        size: SIZE as u64,
        sha256: sha2::Sha256::digest(&contents).into(),
        store_path: None,
        machine: tool("uname", &["-m"]),
    }
}

fn nobody() -> Questions {
    Questions::asking(PathBuf::new(), None)
}

fn start(sshd: &Sshd, account: &str, settings: &Settings, binary: &FarBinary) -> Result<Far> {
    ssh::start(&sshd.address(account), settings, binary, &["serve", "two  words"], &nobody(), |_| ())
}

/// The exit code that an error leads to, and its words.
#[track_caller]
fn failure(far: Result<Far>) -> (i32, String) {
    let error = far.err().expect("this far end should not run");
    (error.downcast_ref::<Failure>().map_or(1, Failure::exit_code), format!("{error:#}"))
}

/// Talks with a far end to its end, and returns how it introduced itself.
#[track_caller]
fn talk(mut far: Far) -> String {
    let mut line = String::new();
    far.output.read_line(&mut line).unwrap();
    // Every byte, many times, with marks and ends of lines in bad places.
    let bytes: Vec<u8> =
        (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let Far { mut input, mut output, connection } = far;
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&bytes).unwrap();
            drop(input);
        });
        output.read_to_end(&mut back).unwrap();
    });
    assert!(back == bytes, "{} of {} bytes came back, or others", back.len(), bytes.len());
    connection.finish().unwrap();
    line.trim_end().to_owned()
}

/// Tells where the program was put, of what it said of itself.
#[track_caller]
fn place(line: &str) -> &str {
    let (start, dir) = line.split_once(" serve two  words --remove ").unwrap_or_else(|| panic!("{line}"));
    assert_eq!(start, format!("root {dir}/nixos-install-via"));
    Path::new(dir).parent().unwrap().to_str().unwrap()
}

#[test]
fn any_login_shell_starts_the_far_end_however_it_greets() {
    let sshd = Sshd::start(
        r#"
        greeting='printf "Welcome to\nthis machine "'
        echo "$greeting" >/home/bash-root/.bashrc
        echo "$greeting" >/home/tcsh-root/.tcshrc
        echo "$greeting" >/home/zsh-root/.zshenv
        mkdir -p /home/fish-root/.config/fish
        echo "$greeting" >/home/fish-root/.config/fish/config.fish
        "#,
    );
    let binary = program(&sshd.env);
    for account in ["root", "sh-root", "bash-root", "fish-root", "tcsh-root", "zsh-root", "busybox-root"] {
        let far = start(&sshd, account, &sshd.settings(), &binary);
        let far = far.unwrap_or_else(|error| panic!("{account}: {error:#}\n{}", sshd.log()));
        assert_eq!(place(&talk(far)), "/run", "{account}");
    }
    sshd.assert_tidy();

    let (code, words) = failure(start(&sshd, "nologin-root", &sshd.settings(), &binary));
    assert!(code == 1 && words.contains("it said \"This account is currently not available.\""), "{words}");
    let (code, words) = failure(start(&sshd, "endless-root", &sshd.settings(), &binary));
    assert!(code == 1 && words.contains("talks without an end"), "{words}");
}

#[test]
fn the_program_is_put_where_it_fits_and_may_run() {
    let binary_of = |sshd: &Sshd| program(&sshd.env);
    let noexec = "mount -o remount,noexec";
    let tiny = "mount -t tmpfs -o size=100k,mode=755 tmpfs";

    let sshd = Sshd::start(&format!(
        "{noexec} /run; {tiny} /root; chattr +i /var/tmp 2>/dev/null || mount -o remount,ro /var/tmp"
    ));
    let far = start(&sshd, "root", &sshd.settings(), &binary_of(&sshd)).unwrap();
    assert_eq!(place(&talk(far)), "/tmp");
    sshd.assert_tidy();
    drop(sshd);

    let sshd = Sshd::start(&format!(
        "{noexec} /run; {tiny} /root; mount -o remount,ro /var/tmp; {noexec} /tmp; {tiny} /dev/shm"
    ));
    let (code, words) = failure(start(&sshd, "root", &sshd.settings(), &binary_of(&sshd)));
    assert_eq!(code, 1);
    let told = "nowhere on the machine is a place for a program of 293 KiB: /run lets no program run (noexec), \
                /root has too little room, /var/tmp cannot be written, /tmp lets no program run (noexec), \
                /dev/shm has too little room; free one of them";
    assert!(words.ends_with(told), "{words}");
    sshd.assert_tidy();
}

#[test]
fn a_program_that_is_there_is_not_sent() {
    let world = TestEnv::new();
    let there = program(&world);
    let copy = "mkdir /run/store; cp program /run/store/it; cp /bin/false /run/store/other";
    let sshd = Sshd::start_in(world, "127.0.0.1", copy);
    // What could not even be opened was not sent.
    let gone =
        FarBinary { file: "/nowhere".into(), store_path: Some("/run/store/it".into()), ..there.clone() };
    let line = talk(start(&sshd, "root", &sshd.settings(), &gone).unwrap());
    assert_eq!(line, "root /run/store/it serve two  words");

    for other in ["/run/store/other", "/run/store/absent", "/run/keys"] {
        let binary = FarBinary { store_path: Some(other.into()), ..there.clone() };
        assert_eq!(place(&talk(start(&sshd, "root", &sshd.settings(), &binary).unwrap())), "/run", "{other}");
    }
    let changed = FarBinary { sha256: [0; 32], ..there.clone() };
    let (_, words) = failure(start(&sshd, "root", &sshd.settings(), &changed));
    assert!(words.contains("the program arrived with another SHA-256"), "{words}");
    let shorter = FarBinary { size: SIZE as u64 + 1, ..there };
    let (_, words) = failure(start(&sshd, "root", &sshd.settings(), &shorter));
    assert!(words.contains("became shorter while it was sent"), "{words}");
    sshd.assert_tidy();
}

#[test]
fn a_machine_that_lacks_tools_does_without() {
    let sshd =
        Sshd::start("for tool in head sha256sum mktemp; do mount --bind /run/keys /usr/bin/$tool; done");
    let binary = program(&sshd.env);
    assert_eq!(place(&talk(start(&sshd, "root", &sshd.settings(), &binary).unwrap())), "/run");
    sshd.assert_tidy();
}

#[test]
fn whatever_sh_is_it_runs_the_script_and_tidies_up() {
    for shell in ["/bin/bash", "/bin/busybox"] {
        let sshd = Sshd::start(&format!("mount --bind {shell} /bin/dash"));
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(size(&sshd.path("/usr/bin/dash")), size(Path::new(shell)), "sh is another shell");
        let binary = program(&sshd.env);
        assert_eq!(place(&talk(start(&sshd, "root", &sshd.settings(), &binary).unwrap())), "/run", "{shell}");
        let questions = answering(&Arc::default(), |_, _| PASSWORD.to_owned());
        let sudo = Settings { sudo: true, ..sshd.settings() };
        let words = ["serve", "two  words"];
        let far = ssh::start(&sshd.address("asked"), &sudo, &binary, &words, &questions, |_| ());
        assert_eq!(place(&talk(far.unwrap())), "/run", "{shell}");
        let (_, words) = failure(start(&sshd, "root", &short_breathed(&sshd), &binary));
        assert!(words.contains("the program did not arrive whole"), "{shell}: {words}");
        sshd.assert_tidy();
    }
}

#[test]
fn a_disk_that_fills_up_in_the_middle_is_told() {
    // There was room when it was looked for, and nobody reads on when there is none.
    let sshd = Sshd::start(
        r##"
        cat >/run/head <<'END'
#!/bin/sh
case $(readlink /proc/$$/fd/1) in */nixos-install-via) exit 1 ;; esac
exec /bin/busybox head "$@"
END
        chmod 755 /run/head; mount --bind /run/head /usr/bin/head
        "##,
    );
    let mut binary = program(&sshd.env);
    let large = 16 << 20;
    fs::File::options().write(true).open(&binary.file).unwrap().set_len(large).unwrap();
    binary.size = large;
    let (code, words) = failure(start(&sshd, "root", &sshd.settings(), &binary));
    assert!(code == 1 && words.contains("did not arrive whole; is a disk full there?"), "{words}");
    sshd.assert_tidy();
}

/// A client that ends in the middle of the program.
fn short_breathed(sshd: &Sshd) -> Settings {
    let client = sshd.env.path("short-breathed");
    fs::write(&client, "#!/bin/sh\ndd bs=1 count=150000 2>/dev/null | ssh \"$@\"\n").unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    Settings { client, ..sshd.settings() }
}

#[test]
fn an_end_of_the_program_is_told_as_it_was() {
    let sshd = Sshd::start("");
    let mut binary = program(&sshd.env);
    for (script, told) in [
        (
            "#!/bin/sh\necho out of paper >&2; exit 7\n",
            "the far end ended with exit status: 7\n    out of paper",
        ),
        // It was sent, and cannot be run.
        ("#!/nowhere/sh\n", "the far end ended with exit status: 127\n"),
        ("#!/bin/sh\n", ""),
    ] {
        fs::write(&binary.file, script).unwrap();
        (binary.size, binary.sha256) = (script.len() as u64, sha2::Sha256::digest(script).into());
        let ended = start(&sshd, "root", &sshd.settings(), &binary).unwrap().finish();
        let words = ended.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(words.starts_with(told) && words.is_empty() == told.is_empty(), "{words}");
    }
    sshd.assert_tidy();
}

#[test]
fn a_machine_of_another_kind_is_refused_before_anything_is_sent() {
    let sshd = Sshd::start("");
    let binary = FarBinary { file: "/nowhere".into(), machine: "riscv64".into(), ..program(&sshd.env) };
    let (code, words) = failure(start(&sshd, "root", &sshd.settings(), &binary));
    let told =
        format!("the machine is of type {} and the system is built for riscv64", tool("uname", &["-m"]));
    assert!(code == 3 && words.contains(&told), "{words}");
}

#[test]
fn other_accounts_become_root_by_sudo() {
    let sshd = Sshd::start("");
    let binary = program(&sshd.env);
    let sudo = Settings { sudo: true, ..sshd.settings() };
    let (code, words) = failure(start(&sshd, "free", &sshd.settings(), &binary));
    assert!(
        code == 3
            && words.ends_with("free is not root there; log in as root@HOST, or become root with --sudo")
    );
    let far = start(&sshd, "free", &sudo, &binary).unwrap();
    assert_eq!(place(&talk(far)), "/run");

    let (code, words) = failure(start(&sshd, "asked", &sudo, &binary));
    assert!(code == 1 && words.contains("there is no terminal to ask for it on"), "{words}");

    // Known beforehand, nobody is asked.
    let password = Some(Arc::new(Secret::new(PASSWORD.as_bytes().to_vec())));
    let far = start(&sshd, "asked", &Settings { sudo_password: password, ..sudo.clone() }, &binary);
    assert_eq!(place(&talk(far.unwrap())), "/run");

    // Wrong once, then right; and the next connection need not ask.
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answers = ["wrong", PASSWORD];
    let questions = answering(&asked, move |number, _| answers[number].to_owned());
    for _ in 0..2 {
        let far =
            ssh::start(&sshd.address("asked"), &sudo, &binary, &["serve", "two  words"], &questions, |_| ());
        assert_eq!(place(&talk(far.unwrap())), "/run");
    }
    let question = "Password for sudo on asked@127.0.0.1:";
    assert_eq!(*asked.lock().unwrap(), [question, question]);

    // Three are wrong; and one that may not use sudo at all is told so by sudo.
    for (account, reason) in
        [("asked", "incorrect password"), ("nobody-special", "is not in the sudoers file")]
    {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let right = account == "nobody-special";
        let questions = answering(&asked, move |_, _| if right { PASSWORD } else { "wrong" }.to_owned());
        let heard = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&heard);
        let far = ssh::start(&sshd.address(account), &sudo, &binary, &["serve"], &questions, move |line| {
            *lines.lock().unwrap() += line;
        });
        let (_, words) = failure(far);
        assert!(words.contains("sudo took none of three passwords"), "{words}");
        assert_eq!(asked.lock().unwrap().len(), 3);
        assert!(heard.lock().unwrap().contains(reason), "{}", heard.lock().unwrap());
    }
    sshd.assert_tidy();

    let sshd = Sshd::start("mount --bind /run/keys /usr/bin/sudo");
    let (_, words) = failure(start(&sshd, "free", &Settings { sudo: true, ..sshd.settings() }, &binary));
    assert!(words.contains("there is no sudo on the machine"), "{words}");
}

#[test]
fn a_machine_starts_from_any_directory() {
    // The first is hidden by a mount of the machine's own, the second has what separates words and begins quotations.
    let outer = tempfile::tempdir_in("/tmp").unwrap();
    let odd = tempfile::Builder::new().prefix("it's  \"odd\", ünd $x; ").tempdir_in(outer.path()).unwrap();
    for place in [outer.path(), odd.path()] {
        let sshd = Sshd::start_in(TestEnv::new_in(place), "127.0.0.1", "test -e host");
        let binary = program(&sshd.env);
        let sudo = Settings { sudo: true, ..sshd.settings() };
        let far = start(&sshd, "free", &sudo, &binary);
        let far = far.unwrap_or_else(|error| panic!("{}: {error:#}\n{}", place.display(), sshd.log()));
        assert_eq!(self::place(&talk(far)), "/run");
        sshd.assert_tidy();
    }
}

/// Somebody who answers by the number of the question and its text, and notes what was asked.
fn answering(
    asked: &Arc<Mutex<Vec<String>>>,
    answer: impl Fn(usize, &str) -> String + Send + Sync + 'static,
) -> Questions {
    let asked = Arc::clone(asked);
    let ask: Box<Ask> = Box::new(move |question: &str, _: Manner| {
        let mut asked = asked.lock().unwrap();
        asked.push(question.to_owned());
        Ok(Secret::new(answer(asked.len() - 1, question).into_bytes()))
    });
    Questions::asking(BINARY.into(), Some(ask))
}

#[test]
fn ssh_asks_through_us_and_a_password_only_once() {
    let sshd = Sshd::start("");
    let binary = program(&sshd.env);
    let known = format!("UserKnownHostsFile={}", ssh_word(&sshd.env.path("new_hosts")));
    let options = [&known, "GlobalKnownHostsFile=/etc/ssh/none", "UpdateHostKeys=no"];
    let settings = Settings {
        port: Some(sshd.port),
        options: options.map(|option| option.parse().unwrap()).into(),
        ..Settings::default()
    };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let wrong_first = Mutex::new(true);
    let questions = answering(&asked, move |_, question| {
        if question.contains("(yes/no") {
            return "yes".to_owned();
        }
        let wrong = std::mem::replace(&mut *wrong_first.lock().unwrap(), false);
        if wrong { "wrong" } else { PASSWORD }.to_owned()
    });
    // Two at a time, and then another one.
    let connect = || {
        let address = sshd.address("keyless-root");
        ssh::start(&address, &settings, &binary, &["serve", "two  words"], &questions, |_| ()).unwrap()
    };
    assert_eq!(place(&talk(connect())), "/run");
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(place(&talk(connect())), "/run"));
        }
    });
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[0].contains("can't be established") && asked[0].contains("(yes/no"), "{asked:?}");
    assert_eq!(asked[1], "keyless-root@127.0.0.1's password: ");
    assert_eq!(asked[2], asked[1]);
}

#[test]
fn a_person_is_asked_on_the_terminal() {
    let sshd = Sshd::start("");
    program(&sshd.env);
    let me = std::env::current_exe().unwrap();
    let line = format!("{} --exact ssh::the_person_s_end --ignored --nocapture", sh_word(text(&me)));
    let mut script = Command::new("timeout")
        .args(["120", "script", "-qefc", &line, "/dev/null"])
        .current_dir(sshd.env.path(""))
        .env("SSHD_PORT", sshd.port.to_string())
        .env_remove("SSH_ASKPASS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = script.stdin.take().unwrap();
    let mut screen = script.stdout.take().unwrap();
    let mut seen = String::new();
    for (prompt, typed) in
        [("(yes/no/[fingerprint])? ", "yes"), ("'s password: ", "wrong"), ("'s password: ", PASSWORD)]
    {
        let mut new = String::new();
        while !new.contains(prompt) {
            let mut bytes = [0; 1024];
            let count = screen.read(&mut bytes).unwrap();
            new += &String::from_utf8_lossy(&bytes[..count]);
            assert!(count > 0, "no {prompt:?} in {seen}{new}");
        }
        seen += &new;
        writeln!(keyboard, "{typed}").unwrap();
    }
    screen.read_to_string(&mut seen).unwrap();
    assert!(script.wait().unwrap().success(), "{seen}");
    assert!(seen.contains("ED25519 key fingerprint is SHA256:"), "{seen}");
    // Two connections, the second one without a question.
    assert_eq!(seen.matches("(yes/no/").count(), 1, "{seen}");
    assert_eq!(seen.matches("password: ").count(), 2, "{seen}");
    assert!(seen.contains("yes") && !seen.contains(PASSWORD) && !seen.contains("wrong"), "{seen}");
}

#[test]
#[ignore = "it is the other end of a_person_is_asked_on_the_terminal, which runs it with a terminal"]
fn the_person_s_end() {
    let port = std::env::var("SSHD_PORT").expect("the other end sets it");
    let dir = std::env::current_dir().unwrap();
    let known = format!("UserKnownHostsFile={}", ssh_word(&dir.join("new_hosts")));
    let options = [&known, "GlobalKnownHostsFile=/etc/ssh/none"].map(|option| option.parse().unwrap());
    let settings = Settings { options: options.into(), ..Settings::default() };
    let contents = fs::read(dir.join("program")).unwrap();
    let binary = FarBinary {
        file: dir.join("program"),
        size: contents.len() as u64,
        sha256: sha2::Sha256::digest(&contents).into(),
        store_path: None,
        machine: tool("uname", &["-m"]),
    };
    let questions = Questions::on_terminal(BINARY.into(), |ask| ask());
    let address = format!("ssh://keyless-root@127.0.0.1:{port}").parse().unwrap();
    for _ in 0..2 {
        let far = ssh::start(&address, &settings, &binary, &["serve", "two  words"], &questions, |_| ());
        assert_eq!(place(&talk(far.unwrap_or_else(|error| panic!("{error:#}")))), "/run");
    }
}

#[test]
fn what_ssh_says_is_told() {
    let sshd = Sshd::start("");
    let binary = program(&sshd.env);
    let plain = sshd.settings();
    let with_hosts = |name: &str, contents: &str| {
        let file = sshd.env.path(name);
        fs::write(&file, contents).unwrap();
        let known = format!("UserKnownHostsFile={}", ssh_word(&file));
        let mut settings = sshd.settings();
        settings.options.insert(0, known.parse().unwrap());
        settings
    };
    let other = fs::read_to_string(sshd.env.path("id.pub")).unwrap();
    let changed = with_hosts("changed", &format!("[127.0.0.1]:{} {other}", sshd.port));
    let unknown = with_hosts("unknown", "");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (settings, account, reason) in [
        (changed, "root", "Host key verification failed."),
        (unknown, "root", "Host key verification failed."),
        (Settings { port: Some(free), ..plain.clone() }, "root", "Connection refused"),
        (plain.clone(), "keyless-root", "Permission denied"),
        (Settings { client: "/nowhere/ssh".into(), ..plain.clone() }, "root", "starting /nowhere/ssh"),
    ] {
        let (code, words) = failure(start(&sshd, account, &settings, &binary));
        assert!(code == 1 && words.contains(reason), "{words}");
        assert!(words.starts_with(&format!("starting the far end on {account}@127.0.0.1: ")), "{words}");
    }

    let heard = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&heard);
    let far = ssh::start(
        &sshd.address("root"),
        &plain,
        &binary,
        &["serve", "two  words"],
        &nobody(),
        move |line| {
            lines.lock().unwrap().push(line.to_owned());
        },
    );
    talk(far.unwrap());
    assert_eq!(*heard.lock().unwrap(), ["warming\\u{1b}[2J up"]);
}

#[test]
fn a_link_that_breaks_is_noticed_and_leaves_nothing_there() {
    let mut sshd = Sshd::start("");
    let binary = program(&sshd.env);

    let (_, words) = failure(start(&sshd, "root", &short_breathed(&sshd), &binary));
    assert!(words.contains("the program did not arrive whole"), "{words}");
    sshd.assert_tidy();

    // One that is dropped is gone on both sides.
    let far = start(&sshd, "root", &sshd.settings(), &binary).unwrap();
    assert_eq!(sshd.leftovers().len(), 1);
    drop(far);
    sshd.assert_tidy();

    let mut far = start(&sshd, "root", &sshd.settings(), &binary).unwrap();
    let mut line = String::new();
    far.output.read_line(&mut line).unwrap();
    sshd.die();
    assert_eq!(far.output.read(&mut [0]).unwrap_or(0), 0);
    let words = far.connection.broken().to_string();
    assert!(words.starts_with("ssh could not connect, or lost the connection\n"), "{words}");
}
