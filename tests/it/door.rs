//! The rescue's own SSH server, asked by the real OpenSSH client and by those who are up to no good.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nixos_install_via::ssh::server::{self, Door, Timeouts};
use nixos_install_via::ssh::{KeyPair, fingerprint, public_of};
use nixos_install_via::sys::clock::Monotonic;
use nixos_install_via::sys::secret::Secret;
use nixos_install_via::system::rescue::Visits;

use crate::doorway::{Doorway, LONG, PATIENT, hash, keygen, noise};
use crate::env::{TestEnv, ssh_word, text, tool};
use crate::wait;

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const LARGE: u64 = 64 * MIB;
// Two packets of each kind, a window and a half, and what the allocator keeps: far from LARGE.
const MORE: u64 = 16 * MIB;

const KINDS: [&[&str]; 11] = [
    &["-t", "ed25519"],
    &["-t", "ecdsa", "-b", "256"],
    &["-t", "ecdsa", "-b", "384"],
    &["-t", "ecdsa", "-b", "521"],
    &["-t", "rsa", "-b", "2048"],
    &["-t", "rsa", "-b", "4096"],
    // As distributions made them ten years ago.
    &["-t", "rsa", "-b", "2048", "-m", "PEM"],
    &["-t", "ecdsa", "-b", "256", "-m", "PEM"],
    &["-t", "ecdsa", "-b", "521", "-m", "PEM"],
    &["-t", "rsa", "-b", "2048", "-m", "PKCS8"],
    &["-t", "ecdsa", "-b", "384", "-m", "PKCS8"],
];

/// No dead man.
fn nobody() -> Arc<Visits> {
    Visits::new(LONG, Arc::new(Monotonic))
}

#[test]
fn the_right_key_opens_a_door_that_is_known_by_any_kind_of_host_key() {
    for kind in KINDS {
        let doorway = Doorway::known_by(kind);
        let ran = doorway.say("hello\n");
        assert!(ran.code() == Some(0) && ran.stdout == "hello\n", "{kind:?}: {ran}");
        // As the old machine's key was known.
        let host = doorway.env.path("host");
        let public = tool("ssh-keygen", &["-y", "-f", text(&host)]);
        assert_eq!(public_of(&fs::read_to_string(&host).unwrap()).as_deref(), Some(public.trim()));
    }
}

#[test]
fn a_host_key_that_cannot_be_used_is_told() {
    let env = TestEnv::new();
    keygen(&env.path("dsa"), &["-t", "dsa"]);
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "secret", "-f", text(&env.path("encrypted"))]);
    tool(
        "ssh-keygen",
        &["-q", "-t", "rsa", "-m", "PEM", "-N", "secret", "-f", text(&env.path("encrypted-pem"))],
    );
    let mut texts: Vec<String> = ["dsa", "encrypted", "encrypted-pem", "dsa.pub"]
        .map(|name| fs::read_to_string(env.path(name)).unwrap())
        .into();
    texts.push(String::new());
    texts.push("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n".into());
    for key in &texts {
        assert_eq!(public_of(key), None, "{key}");
    }
    let open = |host_keys, authorized: &str| {
        let door = Door { host_keys, authorized: authorized.to_owned(), timeouts: PATIENT };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        server::open(&door, vec![listener], nobody(), |_, _| 0).unwrap_err()
    };
    let useless = texts.iter().map(|key| Secret::new(key.clone().into_bytes())).collect();
    let told = open(useless, "").to_string();
    assert!(told.starts_with("none of the 6 host keys can be used"), "{told}");
    let usable = KeyPair::generate("").unwrap();
    for line in ["", "no key", "ssh-ed25519 AAAA", &format!("{0}\n{0}", usable.public)] {
        let told = format!("{:#}", open(vec![Secret::new(usable.private.bytes().to_vec())], line));
        assert!(told.starts_with("reading the key that opens the door: "), "{told}");
    }
}

#[test]
fn a_key_that_is_made_is_what_ssh_keygen_would_have_made() {
    let env = TestEnv::new();
    let pair = KeyPair::generate("made for a run").unwrap();
    let file = env.path("key");
    fs::write(&file, pair.private.bytes()).unwrap();
    tool("chmod", &["600", text(&file)]);
    fs::write(env.path("key.pub"), format!("{}\n", pair.public)).unwrap();
    assert!(pair.public.starts_with("ssh-ed25519 ") && pair.public.ends_with(" made for a run"));
    assert_eq!(tool("ssh-keygen", &["-y", "-f", text(&file)]).trim(), pair.public);
    for kind in [&["-t", "ed25519"][..], &["-t", "ecdsa"], &["-t", "rsa"]] {
        let other = env.path(kind[1]);
        keygen(&other, kind);
        let public = fs::read_to_string(other.with_extension("pub")).unwrap();
        let listed = tool("ssh-keygen", &["-l", "-f", text(&other)]);
        assert_eq!(listed.split_whitespace().nth(1).unwrap(), fingerprint(&public).unwrap());
    }
    let listed = tool("ssh-keygen", &["-l", "-f", text(&file)]);
    assert_eq!(listed.split_whitespace().nth(1).unwrap(), fingerprint(&pair.public).unwrap());
    assert_ne!(pair.public, KeyPair::generate("made for a run").unwrap().public);
    assert!(fingerprint("ssh-ed25519").is_err());
}

#[test]
fn a_key_that_is_made_opens_and_is_known() {
    let env = TestEnv::new();
    let (client, host) = (KeyPair::generate("run").unwrap(), KeyPair::generate("").unwrap());
    let file = env.path("id");
    fs::write(&file, client.private.bytes()).unwrap();
    tool("chmod", &["600", text(&file)]);
    let door = Door { host_keys: vec![host.private], authorized: client.public, timeouts: PATIENT };
    let listeners = ["[::1]:0", "127.0.0.1:0"].map(|address| std::net::TcpListener::bind(address).unwrap());
    let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
    thread::spawn(move || {
        let said = |_, mut output: Box<dyn Write + Send>| output.write_all(b"here\n").map_or(1, |()| 7);
        server::open(&door, listeners.into(), nobody(), said).unwrap_err()
    });
    for (address, port) in [("::1", ports[0]), ("127.0.0.1", ports[1])] {
        let known = env.path("known");
        fs::write(&known, format!("[{address}]:{port} {}\n", host.public)).unwrap();
        let output = Command::new("ssh")
            .args(["-F", "none", "-i", text(&file), "-p", &port.to_string()])
            .args([
                "-o",
                &format!("UserKnownHostsFile={}", ssh_word(&known)),
                "-o",
                "StrictHostKeyChecking=yes",
            ])
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-l", "anyone", address, "serve"])
            .output()
            .unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"here\n"[..]), "{output:?}");
    }
}

#[test]
fn nothing_but_the_key_and_the_command_is_let_in() {
    let doorway = Doorway::open();
    keygen(&doorway.env.path("other"), &["-t", "ed25519"]);
    // A certificate over the right key, from somebody.
    fs::copy(doorway.env.path("id"), doorway.env.path("signed")).unwrap();
    fs::copy(doorway.env.path("id.pub"), doorway.env.path("signed.pub")).unwrap();
    let (ca, signed) = (doorway.env.path("other"), doorway.env.path("signed.pub"));
    tool("ssh-keygen", &["-q", "-s", text(&ca), "-I", "me", "-n", "x", text(&signed)]);
    let certificate = format!("CertificateFile={}", ssh_word(&doorway.env.path("signed-cert.pub")));

    let here = "x@127.0.0.1";
    let denied = "Permission denied (publickey).";
    let no_key = ["-o", "PubkeyAuthentication=no", here, "serve"];
    for (key, words, told) in [
        ("other", &[here, "serve"][..], denied),
        ("id", &no_key, denied),
        (
            "id",
            &[&["-o", "PreferredAuthentications=password", "-o", "BatchMode=no"][..], &no_key].concat(),
            denied,
        ),
        ("other", &["-o", &certificate, here, "serve"], denied),
        ("id", &[here], "shell request failed on channel 0"),
        ("id", &["-tt", here], "PTY allocation request failed on channel 0"),
        ("id", &[here, "sh"], "exec request failed on channel 0"),
        ("id", &[here, "serve "], "exec request failed on channel 0"),
        ("id", &[here, "serve; sh"], "exec request failed on channel 0"),
        ("id", &["-s", here, "sftp"], "subsystem request failed on channel 0"),
        ("id", &["-W", "127.0.0.1:22", here], "stdio forwarding failed"),
        (
            "id",
            &["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", here, "serve"],
            "remote port forwarding failed",
        ),
        (
            "id",
            &["-o", "ExitOnForwardFailure=yes", "-R", "/tmp/none:127.0.0.1:22", here, "serve"],
            "remote port forwarding failed",
        ),
    ] {
        let ran = doorway.run(doorway.client_with(key, words), "hello\n");
        assert!(ran.code() == Some(255) && ran.stdout.is_empty(), "{ran}");
        assert!(ran.stderr.contains(told), "no {told:?} in {ran}");
    }

    // Tried beside the session, they are refused, and it goes on.
    let mut client = doorway.client(&["-v", "-A", "-o", "SendEnv=LC_ALL", here, "serve"]);
    client.env("SSH_AUTH_SOCK", "/nowhere");
    let ran = doorway.run(client, "hello\n");
    assert!(ran.code() == Some(0) && ran.stdout == "hello\n", "{ran}");
    let mut client = doorway.client(&["-v", "-X", here, "serve"]);
    client.env("DISPLAY", "127.0.0.1:7");
    let ran = doorway.run(client, "hello\n");
    assert!(ran.stdout == "hello\n", "{ran}");
    // A terminal is not given, whoever asks for one.
    let ran = doorway.run(doorway.client(&["-tt", here, "serve"]), "hello\n");
    assert!(ran.stderr.contains("PTY allocation request failed"), "{ran}");

    // A connection has one session, now and later.
    let path = text(&doorway.env.path("master")).to_owned();
    let master = ["-M", "-S", &path, here, "serve"];
    let mut session = doorway.start(doorway.client(&master), "echo");
    doorway.wait_for("master");
    let second = doorway.run(doorway.client(&["-S", &path, here, "serve"]), "hello\n");
    // The client then makes a connection of its own.
    assert!(second.stderr.contains("Session open refused by peer"), "{second}");
    drop(session.stdin.take());
    assert!(session.wait().unwrap().success());

    // What a forwarded port leads to is nothing.
    for forward in ["-L", "-D"] {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = format!("{free}:127.0.0.1:{}", doorway.port);
        let target = if forward == "-L" { target } else { free.to_string() };
        let mut session = doorway.start(doorway.client(&[forward, &target, here, "serve"]), "echo");
        let mut stream = wait::until("the client listens", || {
            assert!(session.try_wait().unwrap().is_none(), "the client has ended");
            TcpStream::connect(("127.0.0.1", free)).ok()
        });
        // A SOCKS 5 client that wants to go to the door itself; to a forwarded port it is noise.
        stream.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 22]).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.windows(4).any(|window| window == b"SSH-"), "{answer:?}");
        drop(session.stdin.take());
        assert!(session.wait().unwrap().success());
    }
    // The one who is to come in still does.
    doorway.say("hello\n").ok().stdout_has("hello");
}

#[test]
fn a_door_that_is_another_one_is_noticed() {
    let doorway = Doorway::open();
    keygen(&doorway.env.path("other"), &["-t", "ed25519"]);
    doorway.knows(&doorway.env.path("other.pub"));
    let ran = doorway.say("hello\n");
    assert!(ran.code() == Some(255) && ran.stderr.contains("Host key verification failed."), "{ran}");
}

#[test]
fn exit_statuses_arrive() {
    let doorway = Doorway::open();
    for status in [0, 1, 7, 255] {
        assert_eq!(doorway.say(&format!("exit {status}\n")).code(), Some(status));
    }
}

/// Sends noise from a thread of its own, and returns what the session says of it.
fn send(session: &mut Child, count: u64) -> String {
    begin_to_send(session, count);
    hash(session.stdout.take().unwrap())
}

/// Sends noise from a thread of its own, and returns where the thread counts it.
fn begin_to_send(session: &mut Child, count: u64) -> Arc<AtomicU64> {
    let mut input = session.stdin.take().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    thread::spawn(move || {
        let mut noise = noise(count);
        let mut buffer = vec![0; 1 << 16];
        while let length @ 1.. = noise.read(&mut buffer).unwrap() {
            // A session that ends before it has read all is tested elsewhere.
            if input.write_all(&buffer[..length]).is_err() {
                return;
            }
            counted.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    sent
}

#[test]
fn what_is_sent_arrives_whole_in_little_memory() {
    let doorway = Doorway::open();
    doorway.say("hello\n").ok();
    let before = doorway.memory();
    let sum = hash(noise(LARGE));
    // As it is, and with new keys every 16 MiB; with each cipher that there is.
    for options in [
        &["-o", "RekeyLimit=16M"][..],
        &["-c", "chacha20-poly1305@openssh.com"],
        &["-c", "aes256-gcm@openssh.com"],
        &["-c", "aes256-ctr", "-m", "hmac-sha2-256-etm@openssh.com"],
    ] {
        let client = || doorway.client(&[options, &["x@127.0.0.1", "serve"]].concat());
        let mut session = doorway.start(client(), "hash");
        let start = Instant::now();
        let said = send(&mut session, LARGE);
        assert!(session.wait().unwrap().success());
        let into = LARGE as f64 / start.elapsed().as_secs_f64() / 1e6;
        assert_eq!(said, hash(format!("{sum}\n").as_bytes()), "{options:?}");
        let mut session = doorway.start(client(), &format!("give {LARGE}"));
        let start = Instant::now();
        assert_eq!(hash(session.stdout.take().unwrap()), sum, "{options:?}");
        let out = LARGE as f64 / start.elapsed().as_secs_f64() / 1e6;
        assert!(session.wait().unwrap().success());
        // Both at once, through a session that reads nothing while it writes.
        let mut session = doorway.start(client(), "echo");
        assert_eq!(send(&mut session, LARGE), sum, "{options:?}");
        assert!(session.wait().unwrap().success());
        println!("{options:?}: {into:.0} MB/s into the door, {out:.0} MB/s out of it");
    }
    let more = doorway.memory() - before;
    println!("{} KiB more than before", more >> 10);
    assert!(more < MORE, "{} KiB more than before", more >> 10);
}

#[test]
fn a_session_that_reads_nothing_for_a_while_holds_up_nothing_but_its_input() {
    let doorway = Doorway::open();
    doorway.say("hello\n").ok();
    let before = doorway.memory();
    let (here, master) = ("x@127.0.0.1", text(&doorway.env.path("master")).to_owned());
    let client = doorway.client(&["-M", "-S", &master, here, "serve"]);
    let mut session = doorway.start(client, "hash-later");
    doorway.wait_for("master");
    let sent = begin_to_send(&mut session, LARGE);
    // What the client asks is answered, until it gets rid of nothing more and beyond.
    let mut stuck = 0;
    while stuck < 3 {
        let sent_before = sent.load(Ordering::Relaxed);
        // It does not go on to a connection of its own.
        let second = doorway.client(&["-S", &master, "-o", "ProxyCommand=false", here, "serve"]);
        let told = doorway.run(second, "hello\n");
        assert!(told.stderr.contains("Session open refused by peer"), "{told}");
        let sent_after = sent.load(Ordering::Relaxed);
        stuck = if sent_after == sent_before && sent_after > 0 { stuck + 1 } else { 0 };
        assert!(sent_after < LARGE, "what nobody reads was taken");
    }
    fs::write(doorway.env.path("begin"), "").unwrap();
    let said = hash(session.stdout.take().unwrap());
    assert_eq!(said, hash(format!("{}\n", hash(noise(LARGE))).as_bytes()));
    assert!(session.wait().unwrap().success());
    let more = doorway.memory() - before;
    assert!(more < MORE, "{} KiB more than before", more >> 10);
}

#[test]
fn a_client_that_reads_nothing_for_a_while_holds_up_the_session() {
    let doorway = Doorway::open();
    doorway.say("hello\n").ok();
    let before = doorway.memory();
    let mut session = doorway.start(doorway.client(&["x@127.0.0.1", "serve"]), &format!("give {LARGE}"));
    let mut some = [0; MIB as usize];
    session.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    // Others come and go meanwhile, which takes as long as all of it would.
    for _ in 0..3 {
        doorway.say("hello\n").ok();
        assert!(!doorway.has("given"), "what nobody reads was taken");
    }
    let more = doorway.memory() - before;
    assert!(more < MORE, "{} KiB more than before", more >> 10);
    let all = (&some[..]).chain(session.stdout.take().unwrap());
    assert_eq!(hash(all), hash(noise(LARGE)));
    doorway.wait_for("given");
    assert!(session.wait().unwrap().success());
}

#[test]
fn a_session_that_ends_before_all_is_read_ends_the_connection() {
    let doorway = Doorway::open();
    let mut session = doorway.start(doorway.client(&["x@127.0.0.1", "serve"]), "ignore");
    send(&mut session, LARGE);
    assert!(session.wait().unwrap().success());
}

/// Returns whether the other end has not hung up, and reads what it has said.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return false,
            Ok(_) => (),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn those_who_say_nothing_keep_nobody_out_and_are_sent_away() {
    let doorway = Doorway::in_standing_time();
    let patience = Timeouts::default().login;
    let before = doorway.memory();
    let mut silent: Vec<TcpStream> = (0..50).map(|_| doorway.connect()).collect();
    // One that goes on to talk of keys, and never to the point.
    silent[49].write_all(b"SSH-2.0-slow\r\n").unwrap();
    doorway.say("hello\n").ok().stdout_has("hello");
    // The last ones may stay for as long as anybody, but no longer.
    let mut last = silent.split_off(48);
    doorway.pass(patience - SECOND);
    doorway.say("hello\n").ok().stdout_has("hello");
    assert!(last.iter_mut().all(is_open), "the door has hung up too early");
    doorway.pass(SECOND);
    for stream in &mut last {
        wait::until("the door hangs up", || (!is_open(stream)).then_some(()));
    }
    assert!(doorway.memory() - before < MORE);
    doorway.say("hello\n").ok().stdout_has("hello");
}

#[test]
fn noise_at_the_door_is_borne() {
    let doorway = Doorway::open();
    let before = doorway.memory();
    let greeting = b"SSH-2.0-noise\r\n";
    let mut random = Vec::new();
    noise(MIB).read_to_end(&mut random).unwrap();
    for start in 0..40 {
        for (greeting, head) in [
            (&b""[..], &b""[..]),
            (greeting, b""),
            // A packet of 4 GiB, one of nothing, and one whose padding is all there is.
            (greeting, b"\xff\xff\xff\xff"),
            (greeting, b"\0\0\0\0"),
            (greeting, b"\0\0\0\x0c\xff"),
            (greeting, b"\0\x04\0\0\x04\x14"),
            (b"GET / HTTP/1.0\r\n\r\n", b""),
        ] {
            let mut stream = doorway.connect();
            // It may hang up at any time.
            let noise = &random[start * 1000..][..start * 1500];
            let _ = stream.write_all(greeting).and_then(|()| stream.write_all(head));
            let _ = stream.write_all(noise);
        }
    }
    doorway.say("hello\n").ok().stdout_has("hello");
    let more = doorway.memory() - before;
    assert!(more < MORE, "{} KiB more than before", more >> 10);
}

#[test]
fn the_time_of_the_dead_man_begins_when_the_client_is_gone() {
    let timeout = Duration::from_secs(300);
    let doorway = Doorway::with_dead_man(timeout);
    let mut session = doorway.start(doorway.client(&["x@127.0.0.1", "serve"]), "note");
    doorway.wait_for("started");
    doorway.pass(2 * timeout);
    assert!(!doorway.has("rebooted"), "somebody was there");
    session.kill().unwrap();
    session.wait().unwrap();
    doorway.wait_for("ended");
    doorway.wait_for("broken");
    doorway.pass(timeout - SECOND);
    assert!(!doorway.has("rebooted"), "somebody was there just before");
    doorway.pass(SECOND);
    doorway.wait_for("rebooted");
}

#[test]
fn a_client_that_answers_no_more_is_noticed_within_a_minute() {
    let doorway = Doorway::in_standing_time();
    let client = || doorway.client(&["x@127.0.0.1", "serve"]);
    let silent = doorway.start(client(), "note");
    let mut full = doorway.start(client(), "pour");
    let mut alive = doorway.start(client(), "echo");
    let mut echoes = || {
        alive.stdin.as_mut().unwrap().write_all(b"there?").unwrap();
        alive.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    };
    doorway.wait_for("started");
    full.stdout.as_mut().unwrap().read_exact(&mut [0; 4096]).unwrap();
    echoes();
    // The connections stand, and nobody is there; one of them is full to the brim.
    tool("kill", &["-STOP", &silent.id().to_string(), &full.id().to_string()]);
    for seconds in [15, 15, 15, 14] {
        doorway.pass(seconds * SECOND);
        echoes();
        assert!(!doorway.has("ended"), "it could still answer");
    }
    doorway.pass(SECOND);
    doorway.wait_for("ended");
    doorway.wait_for("broken");
    echoes();
    // What was on its way when the other one stopped was taken off the line a little later.
    wait::until("the full line is given up", || {
        doorway.pass(SECOND);
        doorway.has("dry").then_some(())
    });
    for mut client in [silent, full, alive] {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn whoever_only_knocks_does_not_count_for_the_dead_man() {
    let timeout = Duration::from_secs(300);
    let doorway = Doorway::with_dead_man(timeout);
    doorway.pass(timeout - SECOND);
    let _knocking = doorway.connect();
    keygen(&doorway.env.path("other"), &["-t", "ed25519"]);
    let wrong = doorway.client_with("other", &["x@127.0.0.1", "serve"]);
    assert_eq!(doorway.run(wrong, "hello\n").code(), Some(255));
    assert!(!doorway.has("rebooted"));
    doorway.pass(SECOND);
    doorway.wait_for("rebooted");
}
