//! The way of ssh's questions to the person: ssh starts a program for each, and that program is us.
//!
//! The program ([`main`], this binary under [`NAME`]) passes the question on through a socket in a
//! directory that only its user can enter. The near end puts it, or knows the answer already.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::questions::{Inquiry, Manner, shown};
use crate::sys::terminal;

/// What the binary is called when it is to ask.
pub const NAME: &str = "nixos-install-via-askpass";

const SOCKET_VARIABLE: &str = "NIXOS_INSTALL_VIA_ASKPASS";
// ssh tells by it that a question wants yes or no, or no answer at all.
const HINT_VARIABLE: &str = "SSH_ASKPASS_PROMPT";
// A host key with its picture has half a kilobyte.
const QUESTION_LIMIT: u64 = 8 << 10;
// What ssh reads of an answer.
const ANSWER_LIMIT: u64 = 1 << 10;
const ANSWERED: u8 = b'+';
const PREFIX: &str = "nixos-install-via-";
// What tempfile puts behind a prefix.
const RANDOM_LENGTH: usize = 6;
// The kernel's, without the zero at its end.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where one connection's ssh is heard. Dropped, it is no longer.
pub struct Desk {
    dir: TempDir,
    closed: Arc<AtomicBool>,
}

impl Desk {
    /// Opens a desk whose questions go to `inquiry`; `program` is this binary.
    pub fn open(inquiry: Arc<Inquiry>, program: &Path) -> Result<Desk> {
        // Only its owner enters: tempfile makes it so.
        let dir =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(directory_for_socket(&std::env::temp_dir()));
        let dir = dir.context("making a directory for ssh's questions")?;
        symlink(program, dir.path().join(NAME)).context("naming the program for ssh's questions")?;
        let listener = UnixListener::bind(dir.path().join("socket"))
            .with_context(|| format!("listening in {}", dir.path().display()))?;
        let closed = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&closed);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let inquiry = Arc::clone(&inquiry);
                // One that asks nothing back waits for its end, and another may ask meanwhile.
                thread::spawn(move || stream.and_then(|stream| attend(stream, &inquiry)));
            }
        });
        Ok(Desk { dir, closed })
    }

    /// Lets a client ask here.
    pub fn serve(&self, client: &mut Command) {
        client.env("SSH_ASKPASS", self.dir.path().join(NAME));
        client.env("SSH_ASKPASS_REQUIRE", "force");
        client.env(SOCKET_VARIABLE, self.dir.path().join("socket"));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread up; if that fails, it waits for nobody until we end.
        drop(UnixStream::connect(self.dir.path().join("socket")));
    }
}

/// Returns the directory for temporary files, or the usual one where the path of a socket below it would be too long.
fn directory_for_socket(temporary: &Path) -> &Path {
    let longest = temporary.as_os_str().len() + "/".len() + PREFIX.len() + RANDOM_LENGTH + "/socket".len();
    if longest <= SOCKET_PATH_LIMIT { temporary } else { Path::new("/tmp") }
}

/// Hears one question out and answers it, or closes without an answer.
fn attend(mut stream: UnixStream, inquiry: &Inquiry) -> io::Result<()> {
    let mut input = BufReader::new((&stream).take(QUESTION_LIMIT));
    let (hint, question) = (&part(&mut input)?, &part(&mut input)?);
    match Kind::of(hint, question) {
        Kind::Notice => {
            terminal::tell(shown(question));
            // Until ssh ends the program.
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
        Kind::Confirm => match inquiry.answer(&format!("{question} (yes/no)"), Manner::Visible) {
            Some(answer) if [&b"yes"[..], b"y"].contains(&answer.bytes()) => stream.write_all(&[ANSWERED]),
            _ => Ok(()),
        },
        Kind::Question(manner) => match inquiry.answer(question, manner) {
            Some(answer) => {
                stream.write_all(&[ANSWERED])?;
                stream.write_all(answer.bytes())
            }
            None => Ok(()),
        },
    }
}

/// Reads up to the next NUL, which no word of a command line holds.
fn part(input: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    input.read_until(0, &mut bytes)?;
    bytes.pop_if(|last| *last == 0);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// Something to be told, such as to touch a key.
    Notice,
    /// Something to be allowed.
    Confirm,
    Question(Manner),
}

impl Kind {
    fn of(hint: &str, question: &str) -> Kind {
        let words = question.to_lowercase();
        match hint {
            "none" => Kind::Notice,
            "confirm" => Kind::Confirm,
            // ssh gives no hint where it wants "yes" in letters.
            _ if words.contains("(yes/no") || words.contains("type 'yes'") => Kind::Question(Manner::Visible),
            _ if words.contains("password") || words.contains("passphrase") => {
                Kind::Question(Manner::Password)
            }
            _ => Kind::Question(Manner::Code),
        }
    }
}

/// Asks ssh's question, the first word of the command line, and prints the answer. Returns the
/// exit code: 1 means that there is none.
pub fn main() -> i32 {
    let question = std::env::args().nth(1).unwrap_or_default();
    let hint = std::env::var(HINT_VARIABLE).unwrap_or_default();
    match std::env::var_os(SOCKET_VARIABLE).map(|socket| pass_on(Path::new(&socket), &hint, &question)) {
        Some(Ok(true)) => 0,
        _ => 1,
    }
}

fn pass_on(socket: &Path, hint: &str, question: &str) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{hint}\0{question}\0").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    let [ANSWERED, line @ ..] = answer.as_slice() else { return Ok(false) };
    let mut stdout = io::stdout().lock();
    stdout.write_all(line)?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::questions::{Ask, Questions};
    use super::*;
    use crate::sys::secret::Secret;

    #[test]
    fn ssh_asks_for_more_than_passwords() {
        for (hint, question, kind) in [
            ("", "root@web1's password: ", Kind::Question(Manner::Password)),
            ("", "Enter passphrase for key '/home/me/.ssh/id_ed25519': ", Kind::Question(Manner::Password)),
            ("", "(root@web1) Verification code: ", Kind::Question(Manner::Code)),
            ("", "Enter PIN for ED25519-SK key /k: ", Kind::Question(Manner::Code)),
            (
                "",
                "The authenticity of host 'web1' can't be established.\n\
                 Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
                Kind::Question(Manner::Visible),
            ),
            ("", "Please type 'yes', 'no' or the fingerprint: ", Kind::Question(Manner::Visible)),
            ("confirm", "Allow use of key /k?", Kind::Confirm),
            ("none", "Confirm user presence for key ED25519-SK", Kind::Notice),
        ] {
            assert_eq!(Kind::of(hint, question), kind, "{question}");
        }
    }

    #[test]
    fn a_socket_has_a_short_path_wherever_temporary_files_are() {
        let (short, long) = (Path::new("/var/tmp"), PathBuf::from(format!("/{}", "t".repeat(90))));
        for (temporary, expected) in [(short, short), (&long, Path::new("/tmp"))] {
            assert_eq!(directory_for_socket(temporary), expected);
        }
        // The longest that is left as it is can be listened in.
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let fits = |length: usize| dir.path().join("t".repeat(length));
        let length =
            (1..).take_while(|&length| directory_for_socket(&fits(length)) == fits(length)).last().unwrap();
        std::fs::create_dir(fits(length)).unwrap();
        let inner = tempfile::Builder::new().prefix(PREFIX).tempdir_in(fits(length)).unwrap();
        UnixListener::bind(inner.path().join("socket")).unwrap();
    }

    /// Returns what a program that asks this is answered, and lets go when it has been.
    fn asked(hint: &str, question: &str, typed: &'static str) -> Vec<u8> {
        let ask: Box<Ask> = Box::new(move |_, _| Ok(Secret::new(typed.as_bytes().to_vec())));
        let inquiry = Questions::asking("".into(), Some(ask)).of_connection();
        let (near, mut far) = UnixStream::pair().unwrap();
        let desk = thread::spawn(move || attend(near, &inquiry));
        far.write_all(format!("{hint}\0{question}\0").as_bytes()).unwrap();
        if hint == "none" {
            far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let early = far.read(&mut [0]).unwrap_err();
            assert_eq!(early.kind(), io::ErrorKind::WouldBlock, "it is told until ssh ends the program");
            far.shutdown(Shutdown::Write).unwrap();
            far.set_read_timeout(None).unwrap();
        }
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).unwrap();
        desk.join().unwrap().unwrap();
        answer
    }

    #[test]
    fn an_answer_is_marked_as_one_and_a_refusal_is_silence() {
        for (hint, question, typed, answer) in [
            ("", "root@web1's password: ", "secret", "+secret"),
            ("", "root@web1's password: ", "", "+"),
            ("confirm", "Allow use of key /k?", "yes", "+"),
            ("confirm", "Allow use of key /k?", "no", ""),
            ("confirm", "Allow use of key /k?", "", ""),
            ("none", "Confirm user presence for key ED25519-SK", "", ""),
        ] {
            assert_eq!(asked(hint, question, typed), answer.as_bytes(), "{question}");
        }
    }
}
