//! From a login shell to the running program: the near end of `templates/far.sh`.
//!
//! What the login shell has to understand is one simple command. It starts sh, which takes a script
//! of known length from stdin. From then on the script speaks, in lines that begin with a mark
//! that only this connection knows, and the near end answers; never unasked, so that a program
//! that reads ahead cannot swallow what is meant for the next.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, Read, Write};

use anyhow::{Context, Error, anyhow};
use uuid::Uuid;

use super::FarBinary;
use super::talk::{Answer, End, Talk};
use crate::failure::refused;
use crate::size::Bytes;
use crate::sys::secret::Secret;
use crate::sys::shell::quote;

const SCRIPT: &str = include_str!("../../templates/far.sh");
// Three passwords, the last of them twice, the script again, the program, and its beginning.
const TURNS: usize = 7;
const PIECE: usize = 64 << 10;

pub struct Bootstrap<'a> {
    binary: &'a FarBinary,
    mark: String,
    script: String,
}

impl<'a> Bootstrap<'a> {
    pub fn new(binary: &'a FarBinary, sudo: bool, words: &[&str]) -> Bootstrap<'a> {
        let random = || Uuid::new_v4().simple().to_string();
        let mark = random();
        let sum = binary.sha256.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a String takes everything");
            hex
        });
        let store = binary.store_path.as_deref().and_then(|path| path.to_str()).unwrap_or("");
        // Not to be guessed either: the directory may be made where everybody may make one.
        let name = format!("nixos-install-via.{}", random());
        let size = binary.size.to_string();
        let sudo = if sudo { "sudo" } else { "" };
        let told = [&mark, &binary.machine, &size, &sum, store, &name, sudo];
        let words: Vec<String> = told.iter().chain(words).map(|word| quote(word)).collect();
        // In braces, so that a script that is cut off is not run in part.
        let script = format!("{{\nset -- {}\n{SCRIPT}}}\n", words.join(" "));
        Bootstrap { binary, mark, script }
    }

    /// Returns the command for the login shell, which may be fish or csh: nothing stands in it that
    /// some shell reads differently within its single quotes.
    pub fn remote(&self) -> String {
        let length = self.script.len();
        // NixOS keeps a sudo that works in the first place, and everything else in the second.
        format!(
            "exec /bin/sh -c 'PATH=/run/wrappers/bin:$PATH:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin; \
             length={length}; eval \"$(head -c $length 2>/dev/null || dd bs=1 count=$length 2>/dev/null)\"'"
        )
    }

    /// Answers the script until it runs the program.
    pub fn converse(
        &self,
        input: &mut impl Write,
        output: &mut impl BufRead,
        password: &dyn Fn() -> Option<Secret>,
    ) -> Result<(), End> {
        let mut talk = Talk::new(output, &self.mark);
        // Whoever does not read has said why, or has ended: either is heard below.
        let mut send = |bytes: &[u8]| input.write_all(bytes).and_then(|()| input.flush()).is_ok();
        let mut places = Vec::new();
        let mut typed = None;
        let mut turns = 0;
        send(self.script.as_bytes());
        loop {
            let answer = talk.next()?;
            turns += usize::from(!matches!(answer, Answer::Place(_)));
            match answer {
                excessive if turns > TURNS => return Err(End::Told(self.refusal(excessive, &places))),
                Answer::Run => return Ok(()),
                Answer::Root => send_line(&mut send, typed.as_ref()),
                Answer::Again => drop(send(self.script.as_bytes())),
                Answer::Password | Answer::Wrong => {
                    let answer = password().context(
                        "sudo wants a password there, and there is no terminal to ask for it on; \
                         name a file that holds it with --sudo-password-file, or log in as root",
                    )?;
                    send_line(&mut send, Some(&answer));
                    typed = Some(answer);
                }
                Answer::Place(place) => places.push(place),
                Answer::Send => self.send_program(&mut send)?,
                refusal => return Err(End::Told(self.refusal(refusal, &places))),
            }
        }
    }

    fn send_program(&self, send: &mut impl FnMut(&[u8]) -> bool) -> Result<(), Error> {
        let name = self.binary.file.display();
        let mut file = File::open(&self.binary.file).with_context(|| format!("opening {name}"))?;
        let mut rest = self.binary.size;
        let mut piece = vec![0; PIECE];
        while rest > 0 {
            let wanted = piece.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let count = file.read(&mut piece[..wanted]).with_context(|| format!("reading {name}"))?;
            if count == 0 {
                return Err(anyhow!("{name} became shorter while it was sent; run the command again"));
            }
            if !send(&piece[..count]) {
                break;
            }
            rest -= count as u64;
        }
        Ok(())
    }

    fn refusal(&self, answer: Answer, places: &[String]) -> Error {
        let machine = &self.binary.machine;
        match answer {
            Answer::Alien { machine: there, system } if system == "Linux" => refused(format!(
                "the machine is of type {there} and the system is built for {machine}; choose a system that is built for it"
            )),
            Answer::Alien { system, .. } => {
                refused(format!("the machine runs {system:?} and not Linux; choose another machine"))
            }
            Answer::Unprivileged(user) => {
                refused(format!("{user} is not root there; log in as root@HOST, or become root with --sudo"))
            }
            Answer::NoSudo => anyhow!("there is no sudo on the machine; log in as root@HOST"),
            Answer::Denied => anyhow!(
                "sudo took none of three passwords; log in as root@HOST, or see whether the account may use sudo"
            ),
            Answer::Nowhere => anyhow!(
                "nowhere on the machine is a place for a program of {}: {}; free one of them",
                Bytes(self.binary.size),
                places.join(", ")
            ),
            Answer::Short => anyhow!("the program did not arrive whole; is a disk full there?"),
            Answer::Changed => anyhow!("the program arrived with another SHA-256 than it was sent with"),
            _ => anyhow!("the machine goes on asking, where this program would run by now; do not trust it"),
        }
    }
}

fn send_line(send: &mut impl FnMut(&[u8]) -> bool, line: Option<&Secret>) {
    // One piece, but without a copy that would be left behind.
    let line = line.map_or(&b""[..], Secret::bytes);
    let _ = send(line) && send(b"\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    fn binary() -> FarBinary {
        let store_path = Some("/nix/store/it's here/bin/x".into());
        FarBinary {
            file: "/nowhere".into(),
            size: 6 << 20,
            sha256: [0xab; 32],
            store_path,
            machine: "x86_64".into(),
        }
    }

    /// Returns what is sent, and how it ends, when a machine says all this. `MARK` is the mark.
    fn told(said: &str, password: Option<&str>) -> (String, Result<(), End>) {
        let binary = binary();
        let bootstrap = Bootstrap::new(&binary, true, &["serve", "two words"]);
        let said = said.replace("MARK", &bootstrap.mark);
        let mut input = Vec::new();
        let password = || password.map(|text| Secret::new(text.as_bytes().to_vec()));
        let end = bootstrap.converse(&mut input, &mut said.as_bytes(), &password);
        assert!(input.starts_with(bootstrap.script.as_bytes()));
        let sent = String::from_utf8(input[bootstrap.script.len()..].to_vec()).unwrap();
        (sent.replace(&bootstrap.script, "SCRIPT"), end)
    }

    #[test]
    fn the_command_for_the_login_shell_is_the_same_to_every_shell() {
        let binary = binary();
        let bootstrap = Bootstrap::new(&binary, true, &["serve"]);
        let remote = bootstrap.remote();
        let inner = remote.strip_prefix("exec /bin/sh -c '").unwrap().strip_suffix('\'').unwrap();
        assert!(!inner.contains(['\n', '!', '\\', '\'']), "{remote}");
        assert!(
            !remote.contains(&bootstrap.mark),
            "others see the command line, and the mark is not for them"
        );
        assert!(bootstrap.script.contains(r"'/nix/store/it'\''s here/bin/x'"), "{}", bootstrap.script);
        assert!(bootstrap.script.contains(&format!(" {} ", "ab".repeat(32))), "{}", bootstrap.script);
    }

    #[test]
    fn the_streams_are_handed_over_where_the_program_begins() {
        let binary = binary();
        let bootstrap = Bootstrap::new(&binary, false, &["serve"]);
        let said = format!("Welcome!\nno end of line\n{} run\n\0raw bytes\n", bootstrap.mark);
        let mut output = said.as_bytes();
        bootstrap.converse(&mut Vec::new(), &mut output, &|| None).unwrap();
        assert_eq!(output, b"\0raw bytes\n");
    }

    #[test]
    fn passwords_are_sent_when_they_are_asked_for_and_so_is_the_script() {
        for (said, sent) in [
            ("\nMARK run\n", ""),
            ("MARK run\r\n", ""),
            ("\nMARK password\n\nMARK root\nlecture\nMARK again\nMARK run\n", "secret\nsecret\nSCRIPT"),
            ("\nMARK password\n\nMARK wrong\n\nMARK root\nMARK run\n", "secret\nsecret\nsecret\n"),
        ] {
            let (input, end) = told(said, Some("secret"));
            assert!(end.is_ok(), "{said:?}: {end:?}");
            assert_eq!(input, sent, "{said:?}");
        }
    }

    #[test]
    fn a_machine_that_goes_on_asking_is_left() {
        let (input, end) = told(&"MARK password\n".repeat(20), Some("secret"));
        assert_eq!(input, "secret\n".repeat(TURNS));
        assert!(
            end.unwrap_err().told(|| anyhow!("gone")).to_string().starts_with("the machine goes on asking")
        );
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_answer() {
        assert!(matches!(told("MARK run", None).1, Err(End::Cut { .. })));
    }

    #[test]
    fn whatever_a_machine_says_ends_in_a_sentence() {
        let endless = "x".repeat(70 << 10);
        let lines = "yes\n".repeat(40 << 10);
        for (said, refused, sentence) in [
            (
                "MARK alien aarch64 Linux\n",
                true,
                "the machine is of type aarch64 and the system is built for x86_64; choose a system that is built for it",
            ),
            (
                "MARK alien arm64 Darwin\n",
                true,
                "the machine runs \"Darwin\" and not Linux; choose another machine",
            ),
            (
                "MARK unprivileged \x1b[2Jme\n",
                true,
                "\\u{1b}[2Jme is not root there; log in as root@HOST, or become root with --sudo",
            ),
            ("MARK no-sudo\n", false, "there is no sudo on the machine; log in as root@HOST"),
            (
                "MARK password\n",
                false,
                "sudo wants a password there, and there is no terminal to ask for it on; name a file that holds it with --sudo-password-file, or log in as root",
            ),
            (
                "MARK denied\n",
                false,
                "sudo took none of three passwords; log in as root@HOST, or see whether the account may use sudo",
            ),
            (
                "MARK place noexec /run\nMARK place full /var/tmp\nMARK place unwritable /my tmp\nMARK nowhere\n",
                false,
                "nowhere on the machine is a place for a program of 6 MiB: /run lets no program run (noexec), \
                 /var/tmp has too little room, /my tmp cannot be written; free one of them",
            ),
            ("MARK send\n", false, "opening /nowhere"),
            ("MARK broken short\n", false, "the program did not arrive whole; is a disk full there?"),
            (
                "MARK broken changed\n",
                false,
                "the program arrived with another SHA-256 than it was sent with",
            ),
            ("MARK dance \x1b[2J\n", false, "the machine answered in a way nobody expects: dance \\u{1b}[2J"),
            ("MARK place\n", false, "the machine answered in a way nobody expects: place"),
            ("", false, "CUT"),
            ("MARK place full /tmp\n", false, "CUT"),
            ("This account is \x07locked.\n", false, "CUT Said \"This account is \\u{7}locked.\""),
            (
                &endless,
                false,
                "the login shell talks without an end; make its start-up files silent; it said \"xxx",
            ),
            (
                &lines,
                false,
                "the login shell talks without an end; make its start-up files silent; it said \"yes yes",
            ),
        ] {
            let end = told(said, None).1.unwrap_err();
            let mark_in = |text: &str| text.split("it said ").last().unwrap_or("").to_owned();
            let text = match &end {
                End::Cut { said } if said.is_empty() => "CUT".to_owned(),
                End::Cut { .. } => format!("CUT Said {}", mark_in(&end.told(|| anyhow!("gone")).to_string())),
                End::Told(error) => {
                    let code = error.downcast_ref::<Failure>().map(Failure::exit_code);
                    assert_eq!(code, refused.then_some(3), "{error:#}");
                    error.to_string()
                }
            };
            // Of what has no end the beginning is quoted.
            if sentence.contains("without an end") {
                assert!(text.starts_with(sentence) && text.len() < 600, "{text}");
            } else {
                assert_eq!(text, sentence);
            }
        }
    }
}
