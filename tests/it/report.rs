//! What a run of the tests says at its end.

use std::fs;
use std::path::Path;

use crate::env::{TestEnv, text, tool};

// As cargo-nextest writes it.
const JUNIT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3">
  <testsuite name="it" tests="3">
    <testcase name="qemu::clone::a_clone_boots" classname="it" time="61.25">
      <flakyFailure time="0.2" message="panicked" type="exit code 101">thread 'x' panicked at a.rs:1:2:
no shell &lt;here&gt;
stack backtrace:
   0: begin
             at a.rs:1
        <system-err>   14.0 s, 13.2 of them computing: until it said "login:"
thread 'x' panicked at a.rs:1:2:
   0: begin
---- the machine's last words ----
Kernel panic
</system-err></flakyFailure>
    </testcase>
    <testcase name="dir::what_fails" classname="it" time="1"><failure type="exit code 101">fails</failure></testcase>
    <testcase name="dir::what_passes" classname="it" time="2"/>
  </testsuite>
</testsuites>"#;

#[test]
fn what_failed_and_then_passed_is_named_with_its_last_words() {
    let env = TestEnv::new();
    let (junit, stories) = (env.path("junit.xml"), env.path("stories.txt"));
    fs::write(&junit, JUNIT).unwrap();
    let report = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report.py");
    let said = tool("python3", &[text(&report), text(&junit), text(&stories)]);
    let words = [
        "  attempt 1:",
        "    thread 'x' panicked at a.rs:1:2:",
        "    no shell <here>",
        "       14.0 s, 13.2 of them computing: until it said \"login:\"",
        "    ---- the machine's last words ----",
        "    Kernel panic",
    ];
    let first = format!("flaky: 1 of 3 tests; what each promises: {}", text(&stories));
    assert_eq!(
        said,
        [&first, "", "qemu::clone::a_clone_boots passed at attempt 2", &words.join("\n")].join("\n")
    );
    let promises = [
        "     1.0 s  dir: what fails",
        "     2.0 s  dir: what passes",
        "    61.2 s  qemu::clone: a clone boots\n",
    ];
    assert_eq!(fs::read_to_string(&stories).unwrap(), promises.join("\n"));

    // Nothing that passed at once, and nothing that never passed.
    fs::write(&junit, JUNIT.replace("flakyFailure", "rerunFailure")).unwrap();
    let said = tool("python3", &[text(&report), text(&junit), text(&stories)]);
    assert_eq!(said.split(';').next(), Some("flaky: none of 3 tests"));
}
