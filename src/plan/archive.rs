//! How a root with the system in it is written as one archive.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Plan, Purpose, Step, Summary, Wishes};
use crate::failure::{refused, usage};
use crate::size::Bytes;
use crate::store::path::StorePath;

/// Where an archive goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Archive {
    /// To stdout, packed with zstd.
    Stdout,
    /// Into a file that is not there yet.
    File { path: PathBuf, packed: bool },
}

impl Archive {
    /// Reads it from a command line: `-`, or a file whose name tells its form.
    pub fn parse(text: &Path) -> Result<Archive> {
        let name = text.to_string_lossy();
        let packed = name.ends_with(".tar.zst");
        match &*name {
            "-" => Ok(Archive::Stdout),
            _ if packed || name.ends_with(".tar") => Ok(Archive::File { path: text.to_owned(), packed }),
            _ => Err(usage(format!(
                "the archive {name} is neither a .tar.zst nor a .tar; choose a name that ends so, or - for stdout"
            ))),
        }
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Archive::Stdout => f.write_str("stdout"),
            Archive::File { path, .. } => path.display().fmt(f),
        }
    }
}

/// One thing to do for an archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum ArchiveStep {
    /// Make all but the store's contents, in memory.
    Skeleton { system: StorePath, paths: usize },
    /// Write all of it and the store's contents.
    Write { archive: Archive, paths: usize, bytes: Bytes },
    /// Give the file its name.
    Publish { archive: Archive },
}

impl fmt::Display for ArchiveStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveStep::Skeleton { system, paths } => write!(
                f,
                "Make the directories, the profile and sbin/init of a root with {}, and its database of {paths} \
                 store paths, in memory",
                system.name()
            ),
            ArchiveStep::Write { archive, paths, bytes } => {
                write!(f, "Write and check {paths} store paths, {bytes}, into ")?;
                match archive {
                    Archive::Stdout => f.write_str("an archive on stdout"),
                    Archive::File { .. } => f.write_str("an archive without a name"),
                }
            }
            ArchiveStep::Publish { archive } => write!(f, "Write everything out, and call it {archive}"),
        }
    }
}

/// Decides how a root is archived, where `free` bytes are left for a file.
pub fn install_to_archive(
    wishes: &Wishes,
    archive: &Archive,
    free: Option<Bytes>,
    closure: Summary,
) -> Result<Plan> {
    // How small a packed one gets shows when it is written.
    let plain = matches!(archive, Archive::File { packed: false, .. });
    if let Some(free) = free.filter(|&free| plain && free < closure.bytes) {
        return Err(refused(format!(
            "there are {free} free for {archive}, and the system needs {}; make room, or write a .tar.zst",
            closure.bytes
        )));
    }
    let (system, paths) = (wishes.system.clone(), closure.paths);
    let mut steps = vec![Step::Archive(ArchiveStep::Skeleton { system: system.clone(), paths })];
    steps.extend(wishes.extra_files.iter().map(|from| Step::ExtraFiles { from: from.clone() }));
    steps.push(Step::Archive(ArchiveStep::Write { archive: archive.clone(), paths, bytes: closure.bytes }));
    let target = match archive {
        Archive::Stdout => PathBuf::from("-"),
        Archive::File { path, .. } => {
            steps.push(Step::Archive(ArchiveStep::Publish { archive: archive.clone() }));
            path.clone()
        }
    };
    Ok(Plan {
        purpose: Purpose::Archive,
        from: wishes.from.clone(),
        target,
        closure,
        before: Vec::new(),
        after: vec![format!(
            "an archive of a root that holds {}; LXC and Proxmox take it as a template, tar -xpf unpacks it",
            system.name()
        )],
        notes: Vec::new(),
        steps,
        system,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(archive: &Archive, extra: bool, free: Bytes) -> Result<Vec<String>> {
        let system = StorePath::from_base_name(&format!("{}-nixos-x", "a".repeat(32))).unwrap();
        let extra_files = extra.then(|| "/extra".into());
        let wishes = Wishes { system, from: "/".into(), extra_files };
        let closure = Summary { paths: 12, bytes: Bytes::mib(34), space: Bytes::mib(40) };
        let plan = install_to_archive(&wishes, archive, Some(free), closure)?;
        Ok(plan.steps.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_name_tells_the_form() {
        for (name, form) in [
            ("-", Some(Archive::Stdout)),
            ("x.tar", Some(Archive::File { path: "x.tar".into(), packed: false })),
            ("/a/x.tar.zst", Some(Archive::File { path: "/a/x.tar.zst".into(), packed: true })),
            ("x.tar.gz", None),
            ("x.zst", None),
            ("x", None),
        ] {
            assert_eq!(Archive::parse(Path::new(name)).ok(), form, "{name}");
        }
    }

    #[test]
    fn a_file_gets_its_name_at_the_end_and_extra_files_come_before_the_writing() {
        let file = Archive::parse(Path::new("/x.tar.zst")).unwrap();
        let steps = decide(&file, true, Bytes(0)).unwrap();
        assert_eq!(steps[1], "Copy the extra files of /extra");
        assert_eq!(
            steps[2..],
            [
                "Write and check 12 store paths, 34 MiB, into an archive without a name",
                "Write everything out, and call it /x.tar.zst"
            ]
        );
        let steps = decide(&Archive::Stdout, false, Bytes(0)).unwrap();
        assert_eq!(steps[1..], ["Write and check 12 store paths, 34 MiB, into an archive on stdout"]);
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_numbers() {
        let file = Archive::parse(Path::new("/x.tar")).unwrap();
        let error = decide(&file, false, Bytes::mib(33)).unwrap_err().to_string();
        assert!(error.contains("33 MiB free") && error.contains("needs 34 MiB"), "{error}");
        decide(&file, false, Bytes::mib(34)).unwrap();
    }
}
