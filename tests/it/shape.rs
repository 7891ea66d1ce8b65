//! The shape of the source: who may know whom, and where each outside package enters.

use std::fs;
use std::path::{Path, PathBuf};

// Each knows those that stand before it, and itself.
const LAYERS: [&[&str]; 9] = [
    &["sys", "size", "progress", "failure"],
    &["store", "disk"],
    &["boot", "system"],
    &["facts", "manifest"],
    &["plan", "probe"],
    &["run", "templates"],
    &["wire"],
    &["ssh"],
    &["commands", "cli"],
];
// The nouns, which know nothing of each other but what a store path is.
const NOUNS: [&str; 4] = ["store", "disk", "boot", "system"];
// What decides is the same every time: it asks no file system, process, clock or chance.
const DECIDERS: &[&str] = &[
    "facts.rs",
    "facts/",
    "size.rs",
    "plan.rs",
    "plan/disk.rs",
    "plan/archive.rs",
    "plan/deploy.rs",
    "plan/drivers.rs",
    "plan/network",
    "plan/replace.rs",
    "plan/remote.rs",
    "sys/netlink/entry.rs",
    "sys/netlink/message.rs",
    "system/activate/judge.rs",
    "system/deployment.rs",
    "system/modules",
    "boot/kexec/bzimage.rs",
    "boot/kexec/handover",
    "boot/kexec/memory",
    "boot/kexec/trampoline.rs",
    "disk/layout",
    "disk/luks/memory.rs",
    "disk/derive.rs",
    "disk/names.rs",
    "disk/picture.rs",
];
// Keys are made on this side, and the server runs on the other; roots and other directories are archived apart.
const PACKAGES: &[(&str, &[&str])] = &[
    ("gpt::", &["disk/table.rs"]),
    ("indicatif::", &["progress"]),
    ("lzma_rust2::", &["sys/unpack.rs"]),
    ("mimalloc::", &["main.rs"]),
    ("postcard::", &["wire/frame.rs"]),
    ("rusqlite::", &["store/db.rs"]),
    ("russh::", &["ssh/keys.rs", "ssh/server"]),
    ("tokio::", &["ssh/server"]),
    ("tera::", &["templates.rs"]),
    ("clap_complete::", &["cli.rs"]),
    ("tar::", &["store/tarball.rs", "sys/bundle.rs"]),
    ("toml::", &["commands/deploy_via_ssh/hosts_file.rs"]),
    ("zstd::", &["sys/pack.rs"]),
];

#[test]
fn imports_point_down_and_packages_have_their_doors() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in files(&source) {
        let name = file.strip_prefix(&source).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        // Tests make worlds of whatever they need, and a comment may name anything.
        let code = text.split("#[cfg(test)]").next().unwrap().lines();
        let text: String = code.filter(|line| !line.trim_start().starts_with("//")).collect();
        let own = name.split(['/', '.']).next().unwrap();
        let rank = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
        for (module, rest) in text.split("crate::").skip(1).map(head) {
            let (Some(mine), Some(theirs)) = (rank(own), rank(module)) else { continue };
            let foreign = NOUNS.contains(&own) && NOUNS.contains(&module) && own != module;
            if theirs > mine || (foreign && !(module == "store" && rest.starts_with("::path"))) {
                wrong.push(format!("{name} knows {module}"));
            }
        }
        let decides = DECIDERS.iter().any(|decider| name.starts_with(decider));
        for word in ["std::fs", "std::process", "std::time", "File::open", "new_v4", "rand::"] {
            if decides && text.contains(word) {
                wrong.push(format!("{name} decides, and has {word}"));
            }
        }
        for (package, doors) in PACKAGES {
            if text.contains(package) && !doors.iter().any(|door| name.starts_with(door)) {
                wrong.push(format!("{name} has {package}, which enters by {}", doors.join(" and ")));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Splits a path behind its first word.
fn head(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).collect()
}
