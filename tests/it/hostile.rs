//! An end that lies is refused by the other, whatever the order, and leaves nothing behind.

use std::io::{self, Cursor, Write};
use std::path::Path;
use std::sync::Mutex;

use anyhow::Result;
use nixos_install_via::facts::HostFacts;
use nixos_install_via::progress::{Event, Progress, Silent};
use nixos_install_via::size::Bytes;
use nixos_install_via::store::hash::{Hashing, NarHash};
use nixos_install_via::store::path::StorePath;
use nixos_install_via::store::{PathInfo, db, delta};
use nixos_install_via::sys::pack;
use nixos_install_via::system::deployment::{Action, Deployment, Ended};
use nixos_install_via::wire::VERSION;
use nixos_install_via::wire::client::Client;
use nixos_install_via::wire::frame::{Reader, Writer};
use nixos_install_via::wire::message::{Answer, Ask};
use nixos_install_via::wire::server::{self, Place};
use tempfile::TempDir;

use crate::env::text;

fn path(letter: char) -> StorePath {
    StorePath::from_base_name(&format!("{}-x", letter.to_string().repeat(32))).unwrap()
}

fn info(letter: char, references: &str) -> PathInfo {
    PathInfo {
        path: path(letter),
        nar_hash: NarHash([0; 32]),
        nar_size: Bytes(120),
        references: references.chars().map(path).collect(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: None,
        content_address: None,
        outputs: Vec::new(),
    }
}

/// The archive of a file with these contents.
fn nar(contents: &[u8]) -> Vec<u8> {
    let word = |bytes: &[u8]| {
        let padding = bytes.len().wrapping_neg() % 8;
        [&(bytes.len() as u64).to_le_bytes()[..], bytes, &[0; 8][..padding]].concat()
    };
    ["nix-archive-1", "(", "type", "regular", "contents"]
        .map(|text| word(text.as_bytes()))
        .into_iter()
        .chain([word(contents), word(b")")])
        .flatten()
        .collect()
}

fn hash(bytes: &[u8]) -> NarHash {
    let mut hashing = Hashing::new(io::sink());
    hashing.write_all(bytes).unwrap();
    hashing.finish().0
}

/// A delta without a base, as the near end makes it.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let number = |number: usize| {
        [number as u8 | 0x80, (number >> 7) as u8 | 0x80, (number >> 14) as u8 | 0x80, (number >> 21) as u8]
    };
    let mut made = vec![delta::VERSION];
    for part in bytes.chunks(4 << 20) {
        let frame = pack::pack(part, &[], 3).unwrap();
        made.extend([&[3][..], &number(part.len()), &[0, 0], &number(frame.len()), &frame].concat());
    }
    made.push(0);
    made
}

/// Something a near end says.
enum Say {
    Ask(Ask),
    Data(Vec<u8>),
    End,
}

fn nar_of(index: u32) -> Say {
    Say::Ask(Ask::Nar { index, base: None })
}

/// Says all this to a far end that has been greeted and told to look at `root`, and returns what it
/// answers to that, and how it ends.
fn serve(root: &Path, says: Vec<Say>) -> (Vec<Answer>, Result<()>) {
    let mut said = Vec::new();
    let mut writer = Writer(&mut said);
    writer.message(&Ask::Hello { version: VERSION }).unwrap();
    writer.message(&Ask::Look { root: text(root).to_owned(), system: path('f') }).unwrap();
    for say in says {
        match say {
            Say::Ask(ask) => writer.message(&ask).unwrap(),
            Say::Data(bytes) => writer.data(&bytes).unwrap(),
            Say::End => writer.end().unwrap(),
        }
    }
    let mut answers = Vec::new();
    let served = server::serve(Place::Deployments, &said[..], &mut answers);
    let mut reader = Reader(&answers[..]);
    let answers: Vec<Answer> = std::iter::from_fn(|| reader.message().unwrap()).collect();
    assert!(matches!(answers[..2], [Answer::Hello { .. }, Answer::Facts(_)]), "{answers:?}");
    (answers[2..].to_vec(), served)
}

#[track_caller]
fn assert_refused(says: Vec<Say>, words: &str) {
    let root = TempDir::new().unwrap();
    db::register(root.path(), &[info('0', ""), info('1', "0")], 7).unwrap();
    let (answers, served) = serve(root.path(), says);
    let error = format!("{:#}", served.expect_err(words));
    assert!(error.contains(words), "{error}; not {words}");
    let Some(Answer::Failed { text, refused: false }) = answers.last() else { panic!("{answers:?}") };
    assert_eq!(*text, error);
    assert!(!answers.contains(&Answer::Received));
    // What it knew it still knows, and no more; and nothing is left half done.
    let database = db::Database::open(root.path()).unwrap().unwrap();
    assert_eq!(database.all().unwrap(), [path('0'), path('1')]);
    assert_eq!(
        database.info(&path('0')).unwrap().unwrap(),
        PathInfo { registration_time: 7, ..info('0', "") }
    );
    let store = root.path().join("nix/store");
    let left = store.read_dir().map_or(0, |entries| entries.count());
    assert_eq!(left, 0, "{words}");
}

fn receive(paths: &[PathInfo]) -> Say {
    Say::Ask(Ask::Receive { paths: paths.to_vec() })
}

#[test]
fn a_near_end_out_of_order_is_refused() {
    let two = || receive(&[info('a', ""), info('b', "")]);
    let deployment = Deployment {
        system: path('f'),
        action: Action::Switch,
        rollback: true,
        confirm_timeout: u32::MAX,
        activation_timeout: u32::MAX,
    };
    let confirm = |token: &str| Say::Ask(Ask::Confirm { token: token.to_owned() });
    for (says, words) in [
        (vec![Say::Ask(Ask::Hello { version: VERSION })], "a question is out of place"),
        (vec![nar_of(0)], "a question is out of place"),
        (vec![Say::Ask(Ask::Again)], "a question is out of place"),
        (vec![Say::Ask(Ask::End)], "a question is out of place"),
        (vec![Say::Data(b"x".to_vec())], "data come where a message should"),
        (vec![Say::End], "data come where a message should"),
        (vec![Say::Ask(Ask::Deploy(deployment))], "only the running system can be replaced"),
        (vec![confirm("")], "knows nothing of this deployment"),
        (vec![confirm("../../../../etc")], "knows nothing of this deployment"),
        (vec![confirm(&"0".repeat(32))], "knows nothing of this deployment"),
        (vec![two(), Say::Ask(Ask::Reboot)], "a question comes amid paths"),
        (vec![two(), Say::Ask(Ask::Again)], "a question comes amid paths"),
        (vec![two(), Say::Ask(Ask::End)], "it ends before the last path"),
        (vec![two(), Say::Data(b"x".to_vec())], "data come where a message should"),
        (vec![two(), nar_of(1)], "a path comes too early"),
        (vec![two(), nar_of(2)], "a path comes that was not announced"),
        (vec![two(), nar_of(u32::MAX)], "a path comes that was not announced"),
        (vec![two(), nar_of(0), Say::Ask(Ask::End)], "a message comes amid data"),
        (vec![two(), nar_of(0), Say::Data(b"x".to_vec())], "cut off"),
        (vec![two()], "cut off"),
    ] {
        assert_refused(says, words);
    }
}

#[test]
fn what_cannot_be_is_not_announced() {
    for (paths, words) in [
        (vec![info('a', ""), info('a', "")], "announced twice"),
        (vec![info('a', "b"), info('b', "")], "comes before what it refers to"),
        (vec![info('a', "0a"), info('b', "c")], "refers to one that is not valid"),
        (vec![PathInfo { nar_size: Bytes(u64::MAX), ..info('a', "") }], "impossible size"),
        (vec![PathInfo { nar_size: Bytes(0), ..info('a', "") }], "impossible size"),
        (vec![PathInfo { deriver: Some("../x".into()), ..info('a', "") }], "impossible deriver"),
        (vec![PathInfo { signatures: Some("\x1b[2J".into()), ..info('a', "") }], "not text"),
    ] {
        assert_refused(vec![receive(&paths), Say::Ask(Ask::End)], words);
    }
}

#[test]
fn bytes_that_are_something_else_leave_nothing() {
    let good = nar(b"hello");
    let honest = PathInfo { nar_size: Bytes(good.len() as u64), nar_hash: hash(&good), ..info('a', "01a") };
    let sent = |info: &PathInfo, base: Option<StorePath>, data: Vec<u8>| {
        vec![
            receive(std::slice::from_ref(info)),
            Say::Ask(Ask::Nar { index: 0, base }),
            Say::Data(data),
            Say::End,
            Say::Ask(Ask::End),
        ]
    };
    let huge = PathInfo { nar_size: Bytes(1 << 50), ..honest.clone() };
    let zeros = nar(&vec![0; 16 << 20]);
    let bomb = packed(&zeros);
    assert!(bomb.len() < 4 << 10);
    let truthful_bomb = PathInfo { nar_size: Bytes(zeros.len() as u64), ..honest.clone() };
    let raw = |bytes: &[u8]| [&[1][..], bytes].concat();
    for (info, base, data, words) in [
        (&honest, Some(path('c')), packed(&good), "based on a path that was not offered"),
        (&honest, Some(path('0')), packed(&good), "based on a path that was not offered"),
        (&honest, None, b"".to_vec(), "ends too early"),
        (&honest, None, b"\x09".to_vec(), "has version 9"),
        (&honest, None, b"\x01\x09".to_vec(), "unknown kind"),
        (&honest, None, packed(b"no archive"), "more or less than"),
        (&honest, None, packed(&nar(b"olleh")), "is damaged: its NAR has"),
        (&honest, None, bomb.clone(), "more or less than"),
        (&truthful_bomb, None, bomb.clone(), "is damaged: its NAR has"),
        (&huge, None, bomb, "more or less than"),
        // A copy of what there is not, and lengths without an end.
        (&honest, None, raw(&[1, 5, 0]), "needs a base"),
        (
            &honest,
            None,
            raw(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            "more or less than",
        ),
        (&huge, None, raw(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), "too long"),
        (&huge, None, raw(&[3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]), "too long"),
        (&huge, None, raw(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), "too large"),
    ] {
        assert_refused(sent(info, base, data), words);
    }
}

#[test]
fn what_is_valid_is_not_replaced() {
    let root = TempDir::new().unwrap();
    let (old, new) = (nar(b"as it was"), nar(b"as it is"));
    let of = |letter, nar: &[u8]| PathInfo {
        nar_size: Bytes(nar.len() as u64),
        nar_hash: hash(nar),
        ..info(letter, "")
    };
    let sent = |info: &PathInfo, nar: &[u8]| {
        vec![
            receive(std::slice::from_ref(info)),
            nar_of(0),
            Say::Data(packed(nar)),
            Say::End,
            Say::Ask(Ask::End),
        ]
    };
    serve(root.path(), sent(&of('a', &old), &old)).1.unwrap();
    let look = || {
        let info = db::Database::open(root.path()).unwrap().unwrap().info(&path('a')).unwrap().unwrap();
        (info.nar_hash, std::fs::read_to_string(path('a').in_root(root.path())).unwrap())
    };
    let before = look();
    assert_eq!(before, (hash(&old), "as it was".to_owned()));
    let (answers, served) = serve(root.path(), sent(&of('a', &new), &new));
    served.unwrap();
    assert_eq!(answers, [Answer::Received]);
    assert_eq!(look(), before);
}

#[test]
fn roots_and_texts_of_any_kind_are_refused_in_few_words() {
    let hello = |ask: Ask| {
        let mut said = Vec::new();
        let mut writer = Writer(&mut said);
        writer.message(&Ask::Hello { version: VERSION }).unwrap();
        writer.message(&ask).unwrap();
        let mut answers = Vec::new();
        let error = server::serve(Place::Deployments, &said[..], &mut answers).expect_err("it is refused");
        assert!(answers.len() < 10_000, "{} bytes of answers", answers.len());
        format!("{error:#}")
    };
    let look = |root: &str| hello(Ask::Look { root: root.to_owned(), system: path('f') });
    for (root, words) in [
        ("", "no absolute path"),
        ("mnt", "no absolute path"),
        ("../mnt", "no absolute path"),
        ("/mnt\0", "no absolute path"),
        (&"/x".repeat(7 << 20), "no absolute path"),
        ("/dev/null", "is no directory there"),
        ("/nowhere/at/all", "is no directory there"),
    ] {
        let error = look(root);
        assert!(error.contains(words), "{error}");
    }
    for ask in [Ask::Missing { paths: vec![], substitute: false }, Ask::Receive { paths: vec![] }] {
        assert!(hello(ask).contains("out of place"));
    }
}

/// A near end that has greeted a far end, which will say all this whatever it is asked.
fn near_end(answers: &[Answer]) -> Client {
    let mut said = Vec::new();
    let mut writer = Writer(&mut said);
    writer.message(&Answer::Hello { version: VERSION, program: vec![7; 32] }).unwrap();
    answers.iter().for_each(|answer| writer.message(answer).unwrap());
    Client::greet(Cursor::new(said), io::sink(), Some([7; 32])).unwrap()
}

fn facts() -> HostFacts {
    HostFacts {
        nixos: true,
        machine: "x86_64".into(),
        boot_id: "1".into(),
        running: None,
        booted: None,
        profile: None,
        hostname: Some("web".into()),
        platform: None,
        free: Bytes(u64::MAX),
        valid: false,
        inhibitors: Default::default(),
    }
}

fn deployment() -> Deployment {
    Deployment {
        system: path('f'),
        action: Action::Test,
        rollback: true,
        confirm_timeout: 1,
        activation_timeout: 1,
    }
}

#[test]
fn a_far_end_out_of_order_is_refused() {
    let started = |token: &str| Answer::Started { token: token.to_owned() };
    let missing = |paths: &[u32]| Answer::Missing { paths: paths.to_vec(), similar: vec![] };
    let hello = Answer::Hello { version: VERSION, program: vec![] };
    let odd = "an answer is out of place";
    let all = [
        hello,
        Answer::Facts(Box::new(facts())),
        missing(&[0]),
        Answer::Unusable { index: 0, from: 0 },
        Answer::Received,
        started("00"),
        Answer::Ended(Ended::Done),
        Answer::Restarting,
    ];
    let refused =
        |answer: &Answer, right: fn(&Answer) -> bool, ask: &dyn Fn(&mut Client) -> Result<()>| match ask(
            &mut near_end(std::slice::from_ref(answer)),
        ) {
            Ok(()) => assert!(right(answer), "{answer:?}"),
            Err(error) => assert!(!right(answer) && error.to_string().contains(odd), "{answer:?}: {error:#}"),
        };
    for answer in &all {
        refused(answer, |answer| matches!(answer, Answer::Facts(_)), &|client| {
            client.look("/", &path('f')).map(drop)
        });
        refused(answer, |answer| matches!(answer, Answer::Missing { .. }), &|client| {
            client.missing(vec![path('f')], false, &Silent).map(drop)
        });
        refused(answer, |answer| matches!(answer, Answer::Restarting), &|client| client.reboot().map(drop));
        refused(answer, |answer| matches!(answer, Answer::Ended(_)), &|client| {
            client.confirm("00", &Silent).map(drop)
        });
    }
    for (answers, words) in [
        (vec![started("00"), Answer::Received], odd),
        (vec![started("")], "has an unknown form"),
        (vec![started("../../x")], "has an unknown form"),
        (vec![started("00\n")], "has an unknown form"),
        (vec![started(&"0".repeat(1000))], "has an unknown form"),
        (vec![started("00")], "cut off"),
    ] {
        let error = near_end(&answers).deploy(&deployment(), &mut |_| (), &Silent).unwrap_err();
        assert!(error.to_string().contains(words), "{error:#}");
    }
    for positions in [&[2][..], &[1, 0], &[0, 0], &[0, 1, 1], &[u32::MAX]] {
        let error = near_end(&[missing(positions)]).missing(vec![path('a'), path('b')], false, &Silent);
        assert!(error.err().unwrap().to_string().contains("lacks what nobody asked about"), "{positions:?}");
    }
}

#[test]
fn a_link_that_is_cut_at_a_restart_may_be_the_restart() {
    let no = || Answer::Failed { text: "not now".into(), refused: true };
    for (answers, says) in
        [(vec![Answer::Restarting], Ok(true)), (vec![], Ok(false)), (vec![no()], Err("not now".to_owned()))]
    {
        assert_eq!(near_end(&answers).reboot().map_err(|error| error.to_string()), says);
    }
}

/// Keeps what was told.
#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl Progress for Told {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

#[test]
fn what_a_far_end_says_is_short_and_steers_no_terminal() {
    let evil = || "\x1b]0;x\x07\r\n\u{202e}".repeat(100_000);
    let is_tame = |text: &str| {
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text}");
        assert!(text.contains(r"\u{1b}]0;x\u{7}\r\n\u{202e}"), "{text}");
    };
    let lying = HostFacts {
        machine: evil(),
        boot_id: evil(),
        hostname: Some(evil()),
        platform: Some(evil()),
        ..facts()
    };
    let heard = near_end(&[Answer::Facts(Box::new(lying))]).look("/", &path('f')).unwrap();
    for text in [heard.machine, heard.boot_id, heard.hostname.unwrap(), heard.platform.unwrap()] {
        is_tame(&text);
        assert!(text.len() < 4096);
    }
    for ended in [
        Ended::Failed { reason: evil() },
        Ended::RolledBack { reason: evil() },
        Ended::Refused { reason: evil() },
    ] {
        match near_end(&[Answer::Ended(ended)]).confirm("00", &Silent).unwrap() {
            Ended::Failed { reason } | Ended::RolledBack { reason } | Ended::Refused { reason } => {
                is_tame(&reason)
            }
            other => panic!("{other:?}"),
        }
    }
    for refused in [false, true] {
        let error = near_end(&[Answer::Failed { text: evil(), refused }]).reboot().unwrap_err();
        is_tame(&error.to_string());
    }
    let told = Told::default();
    let answers = [
        Answer::Output { program: evil(), line: evil() },
        Answer::Warning { text: evil() },
        Answer::Ended(Ended::Done),
    ];
    near_end(&answers).confirm("00", &told).unwrap();
    match &told.0.into_inner().unwrap()[..] {
        [Event::Output { program, line }, Event::Warning { text }] => {
            is_tame(program);
            is_tame(text);
            // Shown by who prints it, as are the lines of programs here.
            assert!(line.len() < 64 << 10);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_far_end_that_only_talks_is_left_in_the_end() {
    // It hangs up without an answer, after more than can wait.
    let talk: Vec<Answer> = (0..1000).map(|number| Answer::Warning { text: number.to_string() }).collect();
    let told = Told::default();
    let error = near_end(&talk).confirm("00", &told).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error:#}");
    assert_eq!(told.0.into_inner().unwrap().len(), 1000);
}
