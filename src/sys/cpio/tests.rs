use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::*;

fn small() -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    archive.dir("dev", 0o755).unwrap();
    archive.device("/dev/console", 0o600, 5, 1).unwrap();
    archive.file("/init", 0o755, 5, &b"hello"[..]).unwrap();
    archive.file("a/b/c/empty", 0o400, 0, io::empty()).unwrap();
    archive.file("a/b/four", 0o644, 4, &b"four"[..]).unwrap();
    archive.dir("a/secret", 0o700).unwrap();
    archive.dir("a/b", 0o710).unwrap();
    archive.symlink("a/link", "../init").unwrap();
    archive.finish().unwrap()
}

/// Runs the real cpio over `input` in `dir`, as often as there are archives.
fn cpio(dir: &Path, archives: usize, options: &str, input: &[u8]) -> String {
    fs::write(dir.join(".archive"), input).unwrap();
    let line = format!("cpio --quiet {options};").repeat(archives);
    let output = Command::new("sh")
        .args(["-ec", &line])
        .current_dir(dir)
        .stdin(fs::File::open(dir.join(".archive")).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_entries_give_the_same_bytes() {
    let archive = small();
    assert_eq!(archive, small());
    assert_eq!(archive.len() % 512, 0);
    // The first header, field by field, as the kernel's buffer-format.rst has them.
    let fields = ["00000001", "000041ed", "00000000", "00000000", "00000002", "00000001", "00000000"];
    let rest = ["00000000", "00000000", "00000000", "00000000", "00000004", "00000000"];
    let header = format!("070701{}{}dev\0\0\0", fields.concat(), rest.concat());
    assert_eq!(&archive[..116], header.as_bytes());
    assert_eq!(
        Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "802de8cc60ddfc7d6ca67fdb81663ac3de285023fe6cb85af918ec35269088ab"
    );
}

#[test]
fn cpio_reads_what_is_written_and_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    let names = cpio(dir.path(), 1, "-it", &small());
    let wanted = [
        "dev",
        "dev/console",
        "init",
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/empty",
        "a/b/four",
        "a/secret",
        "a/b",
        "a/link",
    ];
    assert_eq!(names.lines().collect::<Vec<_>>(), wanted);
    cpio(dir.path(), 1, "-id", &small());
    let look = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap();
    for (name, mode) in
        [("init", 0o755), ("a/b/c/empty", 0o400), ("a", 0o755), ("a/secret", 0o700), ("a/b", 0o710)]
    {
        assert_eq!(look(name).mode() & 0o7777, mode, "{name}");
    }
    assert_eq!(fs::read(dir.path().join("init")).unwrap(), b"hello");
    assert_eq!(fs::read(dir.path().join("a/b/four")).unwrap(), b"four");
    assert_eq!(look("a/b/c/empty").len(), 0);
    assert_eq!(fs::read_link(dir.path().join("a/link")).unwrap(), Path::new("../init"));
    let console = look("dev/console");
    assert!(console.file_type().is_char_device());
    assert_eq!(console.rdev(), nix::libc::makedev(5, 1));
}

#[test]
fn archives_may_follow_each_other_and_the_last_word_counts() {
    let mut second = Archive::new(small());
    second.file("init", 0o700, 6, &b"second"[..]).unwrap();
    second.file("new/file", 0o644, 1, &b"x"[..]).unwrap();
    let both = second.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    cpio(dir.path(), 2, "-idu", &both);
    assert_eq!(fs::read(dir.path().join("init")).unwrap(), b"second");
    assert_eq!(fs::read(dir.path().join("a/b/four")).unwrap(), b"four");
    assert_eq!(fs::read(dir.path().join("new/file")).unwrap(), b"x");
}

#[test]
fn what_would_not_come_out_as_told_is_refused() {
    type Add = fn(&mut Archive<Vec<u8>>) -> Result<()>;
    let refused = |add: Add| {
        let mut archive = Archive::new(Vec::new());
        archive.file("taken", 0o644, 0, io::empty()).unwrap();
        format!("{:#}", add(&mut archive).unwrap_err())
    };
    let table: [(&str, Add); 11] = [
        ("already", |archive| archive.file("/taken", 0o644, 0, io::empty())),
        ("already", |archive| archive.dir("taken", 0o755)),
        ("no directory", |archive| archive.file("taken/below", 0o644, 0, io::empty())),
        ("no path", |archive| archive.file("a/../b", 0o644, 0, io::empty())),
        ("no path", |archive| archive.dir("/", 0o755)),
        ("no path", |archive| archive.file("TRAILER!!!", 0o644, 0, io::empty())),
        ("no path", |archive| archive.file("a\0b", 0o644, 0, io::empty())),
        ("impossible target", |archive| archive.symlink("link", "")),
        ("changed while", |archive| archive.file("short", 0o644, 4, &b"abc"[..])),
        ("changed while", |archive| archive.file("long", 0o644, 2, &b"abc"[..])),
        ("below 4 GiB", |archive| archive.file("huge", 0o644, 1 << 32, io::empty())),
    ];
    for (wanted, add) in table {
        let said = refused(add);
        assert!(said.contains(wanted), "{said}");
    }
}
