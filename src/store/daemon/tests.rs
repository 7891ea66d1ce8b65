//! A client against daemons that follow a script: what they say, how they lie, when they go.

use std::cell::RefCell;
use std::io::Read;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::size::Bytes;

const LAST: u64 = 0x616c_7473;
const NEXT: u64 = 0x6f6c_6d67;
const ERROR: u64 = 0x6378_7470;

type Heard = Rc<RefCell<Vec<String>>>;

fn path(letter: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-x", letter.repeat(32))).unwrap()
}

fn info(letter: &str, size: u64) -> PathInfo {
    PathInfo {
        path: path(letter),
        nar_hash: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
        nar_size: Bytes(size),
        references: vec![],
        deriver: None,
        registration_time: 7,
        ultimate: false,
        signatures: None,
        content_address: None,
        outputs: vec![],
    }
}

fn reply() -> Encoder {
    Encoder::default()
}

fn said(text: &str) -> Encoder {
    reply().number(ERROR).string("Error").number(0).string("Error").string(text).number(0).number(0)
}

fn send(stream: &mut UnixStream, bytes: Encoder) {
    stream.write_all(&bytes.0).unwrap();
}

fn expect(stream: &mut UnixStream, bytes: Encoder) {
    let mut came = vec![0; bytes.0.len()];
    stream.read_exact(&mut came).unwrap();
    assert_eq!(came, bytes.0);
}

fn greet(stream: &mut UnixStream) {
    expect(stream, reply().number(0x6e69_7863).number(0x125));
    send(stream, reply().number(0x6478_696f).number(0x122));
    expect(stream, reply().number(0).number(0));
    send(stream, reply().string("2.8.0").number(LAST));
}

/// Lets `client` speak with a daemon that does what `script` says.
fn with_daemon<T>(
    script: impl FnOnce(&mut UnixStream) + Send,
    client: impl FnOnce(Result<Daemon>, Heard) -> T,
) -> T {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || script(&mut theirs));
        let heard = Heard::default();
        let hearing = heard.clone();
        let input = ours.try_clone().unwrap();
        let hear = move |line: &str| hearing.borrow_mut().push(line.to_owned());
        client(Daemon::over(input.into(), ours.into(), hear), heard)
    })
}

fn kind(error: &anyhow::Error) -> DaemonError {
    error.downcast_ref::<DaemonError>().unwrap_or_else(|| panic!("{error:#}")).clone()
}

#[test]
fn the_smaller_version_counts_and_tells_what_a_greeting_holds() {
    let first = |theirs: u64| reply().number(0x6478_696f).number(theirs);
    for (theirs, rest, expected) in [
        (0x120, reply(), Greeting { minor: 32, version: None, trust: Trust::Unknown }),
        (
            0x122,
            reply().string("2.8"),
            Greeting { minor: 34, version: Some("2.8".into()), trust: Trust::Unknown },
        ),
        (
            0x123,
            reply().string("2.18").number(1),
            Greeting { minor: 35, version: Some("2.18".into()), trust: Trust::Trusted },
        ),
        (
            0x127,
            reply().string("2.34\x1b").number(2),
            Greeting { minor: 37, version: Some(r"2.34\u{1b}".into()), trust: Trust::NotTrusted },
        ),
    ] {
        let script = move |stream: &mut UnixStream| {
            send(stream, first(theirs));
            send(stream, rest);
            send(stream, reply().number(NEXT).string("welcome\n").number(LAST));
            expect(stream, reply().number(0x6e69_7863).number(0x125).number(0).number(0));
        };
        with_daemon(script, |daemon, heard| {
            assert_eq!(*daemon.unwrap().greeting(), expected);
            assert_eq!(*heard.borrow(), ["welcome"]);
        });
    }
}

#[test]
fn what_is_too_old_or_no_daemon_is_told_in_a_sentence() {
    for (answer, expected) in [
        (reply().number(0x6478_696f).number(0x11f), DaemonError::Version { major: 1, minor: 31 }),
        (reply().number(0x6478_696f).number(0x220), DaemonError::Version { major: 2, minor: 32 }),
        (Encoder(b"HTTP/1.1 400 Bad Request".to_vec()), DaemonError::NoDaemon),
        (reply().number(0x6478_696f), DaemonError::HungUp),
    ] {
        let script = |stream: &mut UnixStream| {
            send(stream, answer);
            // What we say is read, or the connection would be reset.
            expect(stream, reply().number(0x6e69_7863).number(0x125));
        };
        with_daemon(script, |daemon, _| assert_eq!(kind(&daemon.err().unwrap()), expected));
    }
}

#[test]
fn a_refusal_is_told_and_the_conversation_goes_on() {
    let script = |stream: &mut UnixStream| {
        greet(stream);
        expect(stream, reply().number(1).string(&path("a").to_string()));
        send(stream, reply().number(NEXT).string("looking\n"));
        send(stream, said("not\n\x1b[35;1mtoday\x1b[0m\x07"));
        expect(stream, reply().number(1).string(&path("b").to_string()));
        send(stream, reply().number(LAST).number(1));
    };
    with_daemon(script, |daemon, heard| {
        let mut daemon = daemon.unwrap();
        let error = daemon.is_valid_path(&path("a")).unwrap_err();
        assert_eq!(kind(&error), DaemonError::Said(r"not today\u{7}".into()));
        assert!(daemon.is_valid_path(&path("b")).unwrap());
        assert_eq!(*heard.borrow(), ["looking"]);
    });
}

#[test]
fn each_temporary_root_has_its_answer_even_after_a_refusal() {
    let script = |stream: &mut UnixStream| {
        greet(stream);
        for (letter, answer) in
            [("a", reply().number(LAST).number(1)), ("b", said("no")), ("c", reply().number(LAST).number(1))]
        {
            expect(stream, reply().number(11).string(&path(letter).to_string()));
            send(stream, answer);
        }
        expect(stream, reply().number(1).string(&path("b").to_string()));
        send(stream, reply().number(LAST).number(0));
    };
    with_daemon(script, |daemon, _| {
        let mut daemon = daemon.unwrap();
        let error = daemon.add_temp_roots(&[path("a"), path("b"), path("c")]).unwrap_err();
        assert_eq!(kind(&error), DaemonError::Said("no".into()));
        assert!(!daemon.is_valid_path(&path("b")).unwrap());
    });
}

#[test]
fn answers_that_lie_end_the_conversation_with_a_sentence() {
    let done = || reply().number(LAST);
    let query: fn(&mut Daemon) -> Result<()> =
        |daemon| daemon.query_valid_paths(&[path("a")], Substitute::No).map(drop);
    let look: fn(&mut Daemon) -> Result<()> = |daemon| daemon.query_path_info(&path("a")).map(drop);
    for (ask, answer) in [
        (query, done().number(2)),
        (query, done().number(u64::MAX)),
        (query, done().number(1).string(&path("b").to_string())),
        (query, done().number(1).string("/etc/passwd")),
        (query, reply().number(NEXT).number(1 << 40)),
        (query, reply().number(3)),
        (look, done().number(1).string("").string("no hash")),
        (look, done().number(1).string("").string(&"ab".repeat(32)).number(1 << 50)),
        (look, done().number(1).number(1 << 62)),
    ] {
        let script = |stream: &mut UnixStream| {
            greet(stream);
            send(stream, answer);
            let _ = stream.read_to_end(&mut Vec::new());
        };
        with_daemon(script, |daemon, _| {
            let mut daemon = daemon.unwrap();
            let error = kind(&ask(&mut daemon).unwrap_err());
            assert!(matches!(error, DaemonError::Garbled(_)), "{error}");
            assert_eq!(kind(&daemon.is_valid_path(&path("a")).unwrap_err()), error, "it stays broken");
        });
    }
}

#[test]
fn a_message_without_end_is_not_hoarded() {
    let script = |stream: &mut UnixStream| {
        greet(stream);
        // One error with as many traces as it takes.
        send(
            stream,
            reply().number(ERROR).string("Error").number(0).string("Error").string("x").number(0).number(999),
        );
        let trace = reply().number(0).string(&"t".repeat(60_000));
        while stream.write_all(&trace.0).is_ok() {}
    };
    with_daemon(script, |daemon, _| {
        let error = daemon.unwrap().is_valid_path(&path("a")).unwrap_err();
        assert_eq!(kind(&error), DaemonError::Garbled("a message has no end"));
    });
}

#[test]
fn a_daemon_that_hangs_up_is_told_wherever_it_does() {
    let whole = reply().number(NEXT).string("line").number(LAST).number(1).0;
    for end in 0..whole.len() {
        let script = |stream: &mut UnixStream| {
            greet(stream);
            expect(stream, reply().number(1).string(&path("a").to_string()));
            stream.write_all(&whole[..end]).unwrap();
        };
        with_daemon(script, |daemon, _| {
            assert_eq!(kind(&daemon.unwrap().is_valid_path(&path("a")).unwrap_err()), DaemonError::HungUp);
        });
    }
}

// Answers what comes before the stream: no path is valid.
fn until_stream(stream: &mut UnixStream, letters: &[&str]) {
    greet(stream);
    let paths = || letters.iter().map(|letter| path(letter).to_string());
    for path in paths() {
        expect(stream, reply().number(11).string(&path));
        send(stream, reply().number(LAST).number(1));
    }
    expect(stream, reply().number(31).strings(paths()).number(0));
    send(stream, reply().number(LAST).number(0));
    expect(stream, reply().number(44).number(0).number(1));
}

fn unframe(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut length = [0; 8];
        stream.read_exact(&mut length).unwrap();
        let length = u64::from_le_bytes(length) as usize;
        assert!(length <= 64 << 10);
        if length == 0 {
            return all;
        }
        let start = all.len();
        all.resize(start + length, 0);
        stream.read_exact(&mut all[start..]).unwrap();
    }
}

#[test]
fn the_stream_holds_what_nix_expects_while_the_daemon_talks() {
    let infos = [info("a", 3), info("b", 300_000), info("c", 0)];
    let bytes = |info: &PathInfo| vec![info.path.hash_part().as_bytes()[0]; info.nar_size.0 as usize];
    let mut expected = reply().number(3);
    for info in &infos {
        expected = expected.info(info);
        expected.0.extend(bytes(info));
    }
    let script = |stream: &mut UnixStream| {
        until_stream(stream, &["a", "b", "c"]);
        // More than the pipes hold, before it begins to read.
        for number in 0..20_000 {
            send(stream, reply().number(NEXT).string(&format!("line {number}\n")));
        }
        assert!(unframe(stream) == expected.0);
        send(stream, reply().number(LAST));
    };
    with_daemon(script, |daemon, heard| {
        let mut nar = |info: &PathInfo, sink: &mut dyn Write| Ok(sink.write_all(&bytes(info))?);
        let added = daemon.unwrap().add_multiple_to_store(&infos, Signatures::Waive, &mut nar).unwrap();
        assert_eq!(added, 3);
        assert_eq!(heard.borrow().len(), 20_000);
        assert_eq!(heard.borrow()[19_999], "line 19999");
    });
}

#[test]
fn an_error_in_the_middle_of_megabytes_is_heard_at_once() {
    // It goes on reading, does not read any more, or has gone.
    for way in ["reads on", "stalls", "goes"] {
        let (stalled, end) = mpsc::channel::<()>();
        let script = move |stream: &mut UnixStream| {
            until_stream(stream, &["a"]);
            stream.read_exact(&mut [0; 200_000]).unwrap();
            send(stream, said("no space left on device"));
            match way {
                "reads on" => drop(stream.read_to_end(&mut Vec::new())),
                "stalls" => drop(end.recv()),
                _ => (),
            }
        };
        with_daemon(script, |daemon, _| {
            let mut daemon = daemon.unwrap();
            let mut written = 0;
            let mut nar = |_: &PathInfo, sink: &mut dyn Write| -> Result<()> {
                while written < 1 << 40 {
                    written += sink.write(&[7; 10_000])? as u64;
                }
                Ok(())
            };
            let error = daemon.add_multiple_to_store(&[info("a", 1 << 40)], Signatures::Waive, &mut nar);
            let error = kind(&error.unwrap_err());
            match way {
                // The reset that follows may swallow the daemon's last words.
                "goes" => assert!(matches!(&error, DaemonError::Said(_) | DaemonError::HungUp), "{error}"),
                _ => assert_eq!(error, DaemonError::Said("no space left on device".into()), "{way}"),
            }
            assert!(daemon.is_valid_path(&path("a")).is_err(), "nobody knows where the next message begins");
            drop(stalled);
        });
    }
}

#[test]
fn a_source_that_fails_ends_the_stream_and_not_the_conversation() {
    let short = |_: &PathInfo, sink: &mut dyn Write| Ok(sink.write_all(&[7; 99_999])?);
    let long = |_: &PathInfo, sink: &mut dyn Write| Ok(sink.write_all(&[7; 100_001])?);
    let failing = |_: &PathInfo, sink: &mut dyn Write| {
        sink.write_all(&[7; 70_000])?;
        anyhow::bail!("the disk is broken")
    };
    let cases: [(&str, &mut NarSource); 3] = [
        ("is not 100000 bytes long", &mut { short }),
        ("is not 100000 bytes long", &mut { long }),
        ("the disk is broken", &mut { failing }),
    ];
    for (words, nar) in cases {
        let script = |stream: &mut UnixStream| {
            until_stream(stream, &["a"]);
            unframe(stream);
            send(stream, said("unexpected end-of-file"));
            expect(stream, reply().number(1).string(&path("a").to_string()));
            send(stream, reply().number(LAST).number(0));
        };
        with_daemon(script, |daemon, _| {
            let mut daemon = daemon.unwrap();
            let error = daemon.add_multiple_to_store(&[info("a", 100_000)], Signatures::Waive, nar);
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(words), "{error}");
            assert!(error.contains(&path("a").to_string()), "{error}");
            assert!(!daemon.is_valid_path(&path("a")).unwrap());
        });
    }
}
