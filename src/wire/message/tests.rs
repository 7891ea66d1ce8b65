//! Each message: there and back, and the same bytes as ever.

use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::facts::target;
use crate::size::Bytes;
use crate::system::deployment::Action;
use crate::wire::frame::{Frame, Reader, Writer, decode};

// One line a message: whose it is, which it is, and its bytes in hex. Also what the fuzzers begin with.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/golden/messages.txt");

fn path(letter: char, name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", letter.to_string().repeat(32))).unwrap()
}

fn infos() -> Vec<PathInfo> {
    let glibc = PathInfo {
        path: path('a', "glibc-2.38"),
        nar_hash: NarHash([0xab; 32]),
        nar_size: Bytes(300),
        references: vec![path('a', "glibc-2.38")],
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: None,
        content_address: None,
        outputs: Vec::new(),
    };
    let drv = PathInfo {
        path: path('b', "bash-5.2.drv"),
        nar_size: Bytes(u64::from(u32::MAX) + 1),
        references: vec![path('a', "glibc-2.38")],
        deriver: Some(path('c', "bash-5.2.drv").to_string()),
        registration_time: -1,
        ultimate: true,
        signatures: Some("key:c2ln other:c2ln".to_owned()),
        content_address: Some("text:sha256:0c5m".to_owned()),
        outputs: vec![("out".to_owned(), path('d', "bash-5.2"))],
        ..glibc.clone()
    };
    vec![glibc, drv]
}

fn deployment(action: Action) -> Ask {
    let system = path('f', "nixos-system-web-24.05");
    Ask::Deploy(Deployment {
        system,
        action,
        rollback: action.activates(),
        confirm_timeout: 60,
        activation_timeout: 600,
    })
}

/// Each question, each of its shapes once.
fn asks() -> Vec<Ask> {
    let system = path('f', "nixos-system-web-24.05");
    let asks = vec![
        Ask::Hello { version: crate::wire::VERSION },
        Ask::Look { root: "/mnt/ä".to_owned(), system: system.clone() },
        Ask::Missing { paths: vec![path('a', "glibc-2.38"), system], substitute: true },
        Ask::Receive { paths: infos() },
        Ask::Nar { index: 300, base: None },
        Ask::Nar { index: 0, base: Some(path('a', "glibc-2.37")) },
        Ask::Again,
        Ask::End,
        deployment(Action::Switch),
        deployment(Action::Boot),
        deployment(Action::Test),
        deployment(Action::DryActivate),
        Ask::Confirm { token: "00112233445566778899aabbccddeeff".to_owned() },
        Ask::Reboot,
        Ask::Examine,
        Ask::Jump { command_line: "console=ttyS0".to_owned() },
        Ask::Install(Installation {
            plan: "{}".to_owned(),
            paths: infos(),
            keys: vec![("root".to_owned(), Secret::new(b"secret".to_vec()))],
            host_key: Some((Secret::new(b"private".to_vec()), "ssh-ed25519 AAAA".to_owned())),
        }),
        Ask::Install(Installation { plan: String::new(), paths: vec![], keys: vec![], host_key: None }),
    ];
    // Of a variant that is added here, a sample belongs above.
    let number = |ask: &Ask| match ask {
        Ask::Hello { .. } => 0,
        Ask::Look { .. } => 1,
        Ask::Missing { .. } => 2,
        Ask::Receive { .. } => 3,
        Ask::Nar { .. } => 4,
        Ask::Again => 5,
        Ask::End => 6,
        Ask::Deploy(_) => 7,
        Ask::Confirm { .. } => 8,
        Ask::Reboot => 9,
        Ask::Examine => 10,
        Ask::Jump { .. } => 11,
        Ask::Install(_) => 12,
    };
    assert!(asks.iter().map(number).collect::<BTreeSet<_>>().into_iter().eq(0..13));
    asks
}

/// Each answer, each of its shapes once.
fn answers() -> Vec<Answer> {
    let facts = HostFacts {
        nixos: true,
        machine: "x86_64".to_owned(),
        boot_id: "6f4e2a3c-0f55-4a54-8d9b-2d9f9e0a7c11".to_owned(),
        running: Some(path('f', "nixos-system-web-24.05")),
        booted: None,
        profile: Some((7, path('f', "nixos-system-web-24.05"))),
        hostname: Some("web".to_owned()),
        platform: Some("x86_64-linux".to_owned()),
        free: Bytes::gib(3),
        valid: true,
        inhibitors: [[("dbus-implementation".to_owned(), "dbus".to_owned())].into(), [].into()],
    };
    let bare = HostFacts {
        nixos: false,
        running: None,
        profile: None,
        hostname: None,
        platform: None,
        valid: false,
        ..facts.clone()
    };
    let similar = Similar { path: path('a', "glibc-2.37"), nar_hash: NarHash([0xcd; 32]) };
    let answers = vec![
        Answer::Hello { version: crate::wire::VERSION, program: vec![0xef; 32] },
        Answer::Facts(Box::new(facts)),
        Answer::Facts(Box::new(bare)),
        Answer::Missing { paths: vec![0, 127, 128, 70_000], similar: vec![similar] },
        Answer::Unusable { index: 300, from: 2 },
        Answer::Received,
        Answer::Output { program: "switch-to-configuration".to_owned(), line: "reloading…".to_owned() },
        Answer::Warning { text: "slow".to_owned() },
        Answer::Started { token: "00112233445566778899aabbccddeeff".to_owned() },
        Answer::Ended(Ended::Unconfirmed),
        Answer::Ended(Ended::Done),
        Answer::Ended(Ended::RolledBack { reason: "nobody came".to_owned() }),
        Answer::Ended(Ended::Failed { reason: "it is broken".to_owned() }),
        Answer::Ended(Ended::Refused { reason: "it is inhibited".to_owned() }),
        Answer::Restarting,
        Answer::Failed { text: "no room".to_owned(), refused: true },
        Answer::Target(Box::new(target::tests::facts())),
        Answer::Jumping,
        Answer::Begins { step: 3 },
        Answer::Wanted { paths: vec![0, 127, 70_000] },
        Answer::WantsExtraFiles,
        Answer::Installed,
    ];
    let number = |answer: &Answer| match answer {
        Answer::Hello { .. } => 0,
        Answer::Facts(_) => 1,
        Answer::Missing { .. } => 2,
        Answer::Unusable { .. } => 3,
        Answer::Received => 4,
        Answer::Output { .. } => 5,
        Answer::Warning { .. } => 6,
        Answer::Started { .. } => 7,
        Answer::Ended(_) => 8,
        Answer::Restarting => 9,
        Answer::Failed { .. } => 10,
        Answer::Target(_) => 11,
        Answer::Jumping => 12,
        Answer::Begins { .. } => 13,
        Answer::Wanted { .. } => 14,
        Answer::WantsExtraFiles => 15,
        Answer::Installed => 16,
    };
    assert!(answers.iter().map(number).collect::<BTreeSet<_>>().into_iter().eq(0..17));
    answers
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer(&mut bytes).message(message).unwrap();
    match Reader(&bytes[..]).frame().unwrap() {
        Some(Frame::Message(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn lines(whose: &str, messages: &[impl Serialize + std::fmt::Debug]) -> String {
    let line = |message| {
        let name = format!("{message:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        let hex: String = encode(message).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{whose} {name} {hex}\n")
    };
    messages.iter().map(line).collect()
}

#[test]
fn each_message_arrives_as_it_was_sent() {
    for ask in asks() {
        assert_eq!(decode::<Ask>(&encode(&ask)).unwrap(), ask);
    }
    for answer in answers() {
        assert_eq!(decode::<Answer>(&encode(&answer)).unwrap(), answer);
    }
}

#[test]
fn no_part_of_a_message_is_a_message() {
    for bytes in asks().iter().map(encode) {
        assert!((0..bytes.len()).all(|end| decode::<Ask>(&bytes[..end]).is_err()));
    }
    for bytes in answers().iter().map(encode) {
        assert!((0..bytes.len()).all(|end| decode::<Answer>(&bytes[..end]).is_err()));
    }
}

#[test]
fn the_form_of_a_message_does_not_change() {
    let now = lines("ask", &asks()) + &lines("answer", &answers());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(GOLDEN, &now).unwrap();
    }
    for (now, before) in now.lines().zip(fs::read_to_string(GOLDEN).unwrap().lines()) {
        assert_eq!(now, before, "{CHANGED}");
    }
    assert!(now == fs::read_to_string(GOLDEN).unwrap(), "{CHANGED}");
}

const CHANGED: &str = "a message has another form than programs out there know: let wire::VERSION grow, then \
     run UPDATE_GOLDEN=1 cargo test --lib wire::message";
