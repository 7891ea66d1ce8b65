//! The real Nix, asked about roots other than the running one. It has the last word.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

// Root without build users, and nothing from the network.
pub const CONFIG: &str =
    "build-users-group =\nexperimental-features = nix-command\nsubstituters =\nsandbox = false\n";

/// Nix's name for the store of a root, in which other characters than these mean something or might.
pub fn store(root: &Path) -> String {
    let path = root.to_str().expect("test paths are plain");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    format!("local?root={}", path.bytes().map(encode).collect::<String>())
}

fn nix(program: &str, root: Option<&Path>, words: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.env("NIX_CONFIG", CONFIG).env("NIX_REMOTE", "").env("LC_ALL", "C");
    if let Some(root) = root {
        command.arg("--store").arg(store(root));
    }
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {program}: {error}"));
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("Nix takes its input");
    child.wait_with_output().expect("Nix ends")
}

#[track_caller]
fn said(program: &str, root: Option<&Path>, words: &[&str], input: &str) -> String {
    let output = nix(program, root, words, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?} ended with {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives an object the modes and times that Nix gives.
pub fn canonicalise(object: &Path) {
    let script = r#"
        find "$1" -type d -exec chmod 555 {} +
        find "$1" -type f -perm /100 -exec chmod 555 {} +
        find "$1" -type f ! -perm /100 -exec chmod 444 {} +
        find "$1" -depth -exec touch --no-dereference --date=@1 {} +"#;
    let status = Command::new("sh").args(["-euc", script, "sh"]).arg(object).status();
    assert!(status.expect("there is a shell").success());
}

/// Registers an object with the hash that Nix finds.
pub fn register(root: &Path, path: &str, object: &Path, references: &[String]) {
    let object = object.to_str().expect("test paths are plain");
    let hash = said("nix-hash", None, &["--type", "sha256", object], "");
    let size = nix("nix-store", None, &["--dump", object], "").stdout.len();
    let mut text = format!("{path}\n{}\n{size}\n\n{}\n", hash.trim(), references.len());
    for reference in references {
        text.push_str(reference);
        text.push('\n');
    }
    load(root, &text);
}

/// Registers what a text in the form of `nix-store --dump-db` tells of.
pub fn load(root: &Path, text: &str) {
    said("nix-store", Some(root), &["--load-db"], text);
}

/// Every valid path of the root has the contents that the database tells of.
#[track_caller]
pub fn assert_clean(root: &Path) {
    let output = nix("nix-store", Some(root), &["--verify", "--check-contents"], "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let complaints = stderr
        .lines()
        .filter(|line| {
            !line.starts_with("reading the Nix store")
                && !line.starts_with("checking ")
                && !line.contains("build-users-group")
        })
        .collect::<Vec<_>>();
    assert!(output.status.success() && complaints.is_empty(), "nix-store --verify: {stderr}");
}

/// The closure of a path, sorted.
#[track_caller]
pub fn closure(root: &Path, path: &str) -> Vec<String> {
    let mut paths: Vec<String> = said("nix-store", Some(root), &["--query", "--requisites", path], "")
        .lines()
        .map(String::from)
        .collect();
    paths.sort();
    paths
}

/// Everything that the database holds about the closure of a path, except when it was registered.
#[track_caller]
pub fn registration(root: &Path, path: &str) -> (String, serde_json::Value) {
    let paths = closure(root, path);
    let words: Vec<&str> = ["--dump-db"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let dump = said("nix-store", Some(root), &words, "");
    let json = said("nix", Some(root), &["path-info", "--recursive", "--json", path], "");
    let mut json: serde_json::Value = serde_json::from_str(&json).expect("Nix prints JSON");
    for info in json.as_array_mut().expect("a list of paths") {
        info.as_object_mut().expect("a path's information").remove("registrationTime");
    }
    (dump, json)
}

pub fn is_valid(root: &Path, path: &str) -> bool {
    nix("nix-store", Some(root), &["--check-validity", path], "").status.success()
}

/// Lets files of the same contents share them.
#[track_caller]
pub fn optimise(root: &Path) {
    said("nix-store", Some(root), &["--optimise"], "");
}

/// Deletes what nothing refers to.
#[track_caller]
pub fn collect_garbage(root: &Path) {
    said("nix-store", Some(root), &["--gc"], "");
}

/// What a garbage collection would delete, sorted.
#[track_caller]
pub fn garbage(root: &Path) -> Vec<String> {
    let printed = said("nix-store", Some(root), &["--gc", "--print-dead"], "");
    let mut paths: Vec<String> = printed.lines().map(String::from).collect();
    paths.sort();
    paths
}

/// Collects garbage again and again, until the value is dropped.
pub struct Collector(std::process::Child);

impl Collector {
    pub fn start(root: &Path) -> Collector {
        let script = r#"while :; do nix-store --store "$1" --gc || :; sleep 0.0$2; done"#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(store(root))
            .arg("3")
            .env("NIX_CONFIG", CONFIG)
            .env("NIX_REMOTE", "");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Collector(command.spawn().expect("there is a shell"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        Command::new("kill").args(["--", &format!("-{}", self.0.id())]).status().ok();
        self.0.wait().ok();
    }
}

/// What lies in the store directory, sorted, without Nix's own bookkeeping.
pub fn objects(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("nix/store")).expect("the store can be read");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("the store can be read").file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".links")
        .map(|name| format!("/nix/store/{name}"))
        .collect();
    names.sort();
    names
}
