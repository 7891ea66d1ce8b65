//! Programs: started by full path, with their words kept for the error.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

// Enough for a tool's complaint, short enough for one screen.
const STDERR_LINES: usize = 12;

/// Returns a command for `program` that is killed when the thread that started it ends.
///
/// So nothing goes on writing to a disk after we are gone, whatever ended us.
pub fn new(program: impl AsRef<OsStr>) -> Command {
    ended_by(program, Signal::SIGKILL)
}

/// Returns a command for `program` that is sent `signal` when the thread that started it ends.
pub fn ended_by(program: impl AsRef<OsStr>, signal: Signal) -> Command {
    let mut command = Command::new(program);
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(move || Ok(nix::sys::prctl::set_pdeathsig(signal)?));
    }
    command
}

/// Runs a program to its end and returns what it printed on stdout.
///
/// A status other than 0 is an error that holds the command line, the status and the last lines
/// of stderr.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {line}"))?;
    check(&line, &output)?;
    Ok(output.stdout)
}

/// Like [`output`], with `input` on the program's stdin.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        // A program that ends early closes the pipe; its status tells more than the broken pipe.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    })
    .with_context(|| format!("waiting for {line}"))?;
    check(&line, &output)?;
    Ok(output.stdout)
}

/// Runs a program and hands each line of its stdout and stderr to `line` as it comes.
pub fn stream(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    let line = command_line(command);
    let mut tail = std::collections::VecDeque::new();
    let status = stream_status(command, |text| {
        each(text);
        tail.push_back(text.to_owned());
        if tail.len() > STDERR_LINES {
            tail.pop_front();
        }
    })?;
    if !status.success() {
        bail!("{line} ended with {status}{}", indented(tail.iter().map(String::as_str)));
    }
    Ok(())
}

/// Like [`stream`], for a caller that judges the status itself.
pub fn stream_status(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let line = command_line(command);
    let (mut reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("copying a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    // The command keeps the write ends until it is told to forget them.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer).with_context(|| format!("reading from {line}"))?;
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = pending
            .iter()
            .position(|&b| b == b'\n')
            .or((count == 0 && !pending.is_empty()).then_some(pending.len()))
        {
            let text: Vec<u8> = pending.drain(..(end + 1).min(pending.len())).collect();
            let text = String::from_utf8_lossy(&text).trim_end().to_owned();
            each(&text);
        }
        if count == 0 {
            break;
        }
    }
    child.wait().with_context(|| format!("waiting for {line}"))
}

/// Returns the program called `name` in the first of `directories` that has it.
pub fn find(name: &str, directories: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    directories.into_iter().map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn check(line: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let tail = &lines[lines.len().saturating_sub(STDERR_LINES)..];
    bail!("{line} ended with {}{}", output.status, indented(tail.iter().copied()))
}

fn indented<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("\n    {line}")).collect()
}

fn command_line(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain =
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b));
        if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_program_is_named_with_its_status_and_last_words() {
        let error = output(&mut sh("echo no room >&2; exit 3")).unwrap_err().to_string();
        assert_eq!(error, "/bin/sh -c 'echo no room >&2; exit 3' ended with exit status: 3\n    no room");
    }

    #[test]
    fn input_reaches_the_program_and_output_comes_back() {
        let big = vec![b'x'; 1 << 20];
        assert_eq!(output_with_input(&mut Command::new("/bin/cat"), &big).unwrap(), big);
        assert!(output_with_input(&mut sh("exit 0"), &big).is_ok());
    }

    #[test]
    fn lines_come_as_they_are_printed_and_the_last_one_needs_no_newline() {
        let mut lines = Vec::new();
        stream(&mut sh("echo one; echo two >&2; printf three"), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        let error = stream(&mut sh("echo broken; exit 1"), |_| ()).unwrap_err().to_string();
        assert!(error.ends_with("exit status: 1\n    broken"), "{error}");
    }
}
