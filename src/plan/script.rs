//! The plan as a shell script: every value of `templates/plan.sh.tera`, quoted.
//!
//! The script does with standard tools what [`crate::run`] does. A [`Plan`] does not list the closure,
//! so that it stays small on the wire; here the closure comes beside it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{DiskStep, Plan, Step};
use crate::boot::loader::{self, Kind, Loader, TargetDisk, TargetPartition, link_name};
use crate::disk::layout::{Content, DiskLayout, Format};
use crate::disk::luks;
use crate::disk::places::Bind;
use crate::disk::table::{Slot, Table};
use crate::disk::{format, mount};
use crate::size::Bytes;
use crate::store::PathInfo;
use crate::store::closure::Closure;
use crate::store::path::StorePath;
use crate::sys::namespace;
use crate::sys::shell::quote;
use crate::system::{claim, identity, profile};

// `addpart` counts in these whatever the disk's own are.
const ADDPART_SECTOR: u64 = 512;

/// The values of the script. A `String` is a shell word unless its field says otherwise.
#[derive(Serialize)]
pub struct Script {
    version: &'static str,
    /// Comment lines: the plan as it prints.
    plan: Vec<String>,
    system: String,
    from: String,
    /// As people call it.
    target: String,
    /// In bytes, of the closure.
    space: u64,
    /// `PATH` in the fence.
    inner_path: &'static str,
    /// What it is typed by; empty if nobody is asked.
    name: String,
    /// What a person should know who is asked.
    notes: Vec<String>,
    /// Programs that must be there.
    programs: BTreeSet<String>,
    disk: Option<DiskValues>,
    steps: Vec<Titled>,
    /// Text: base names of store paths, references first.
    paths: Vec<String>,
    /// Text: what `nix-store --load-db` reads.
    registration: String,
}

#[derive(Serialize)]
struct DiskValues {
    image: bool,
    new: bool,
    size: u64,
    sector_size: u64,
    /// Kinds of file systems that are mounted.
    kinds: BTreeSet<&'static str>,
    /// Where its file systems are mounted, below the root.
    points: Vec<String>,
    /// Whole MiB at which something is wiped, from the start of the disk.
    edges: Vec<u64>,
    parts: Vec<Part>,
    /// The program that encrypts and opens; none if nothing is encrypted.
    cryptsetup: Option<String>,
    loader: LoaderValues,
}

#[derive(Serialize)]
struct Part {
    number: u32,
    /// In sectors of 512 bytes.
    start: u64,
    size: u64,
    names: Names,
    /// What the fence calls the opened one, where it is encrypted.
    opened: Option<Vec<String>>,
}

/// What the fence calls a device besides the kernel's name, below `/dev`.
#[derive(Default, Serialize)]
struct Names {
    nodes: Vec<String>,
    links: Vec<String>,
}

#[derive(Serialize)]
struct LoaderValues {
    /// Of the whole disk.
    names: Names,
    efi_variables: bool,
    esp: Option<String>,
    needs_esp: bool,
    boot_code: bool,
    /// Where the words that tell of the system must be found afterwards: patterns, and the words.
    evidence: Vec<String>,
    words: String,
}

/// A step under its title.
#[derive(Serialize)]
struct Titled {
    number: usize,
    /// A comment.
    comment: String,
    title: String,
    act: Act,
}

#[derive(Serialize)]
#[serde(tag = "is", rename_all = "camelCase")]
enum Act {
    Claim { note: String },
    Prepare { directories: Vec<Directory> },
    Copy,
    Register,
    ExtraFiles { from: String },
    Profile { directories: Vec<String> },
    Finish { note: String },
    CreateImage,
    Partition,
    Encrypt { partition: u32, words: String },
    Format { partition: u32, command: String, alone: bool, subvolumes: Vec<String> },
    Mount { tmpfs: bool, mounts: Vec<MountValues>, binds: Vec<BindValues> },
    WriteTable { table: Vec<String> },
    InstallLoader,
    Release,
}

#[derive(Serialize)]
struct Directory {
    path: String,
    /// Octal.
    mode: String,
    group: u32,
}

#[derive(Serialize)]
struct MountValues {
    partition: u32,
    kind: &'static str,
    options: String,
    /// Made on the way, parents first.
    directories: Vec<Directory>,
    point: String,
    /// Octal; none where a file system keeps no modes.
    mode: Option<String>,
}

#[derive(Serialize)]
struct BindValues {
    /// Made on the way to both, parents first.
    directories: Vec<Directory>,
    from: String,
    to: String,
}

/// Turns a plan and the closure it is about into a script. Relative paths are taken from `here`.
pub fn script(plan: &Plan, closure: &Closure, here: &Path) -> Result<Script> {
    let disk = disk_values(plan)?;
    let asks = disk.as_ref().is_some_and(|disk| !disk.new);
    let name = plan.target.file_name().unwrap_or(plan.target.as_os_str());
    let mut steps = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        let title = format!("{}. {step}", number + 1);
        let act = act(plan, step, here)?;
        steps.push(Titled { number: number + 1, comment: comment(&title), title: quote(&title), act });
    }
    Ok(Script {
        version: env!("CARGO_PKG_VERSION"),
        plan: plan.to_string().lines().map(comment).collect(),
        system: quote(&plan.system.to_string()),
        from: path(&here.join(&plan.from))?,
        target: path(&here.join(&plan.target))?,
        space: plan.closure.space.0,
        inner_path: namespace::PATH,
        name: if asks { path(Path::new(name))? } else { String::new() },
        notes: plan.notes.iter().map(|note| quote(&format!("note: {note}"))).collect(),
        programs: programs(plan)?,
        disk,
        steps,
        paths: closure.paths.iter().map(|info| info.path.base_name().to_owned()).collect(),
        registration: closure.paths.iter().map(registration).collect(),
    })
}

fn path(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| {
        format!("writing {} into a script: it is not UTF-8; use another name", path.display())
    })?;
    Ok(quote(text))
}

/// Makes a text harmless after `# `: one line, whatever is in it.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// Returns what `nix-store --load-db` reads about a path.
fn registration(info: &PathInfo) -> String {
    let hash = info.nar_hash.to_string();
    let hash = hash.strip_prefix("sha256:").unwrap_or(&hash);
    // A database may hold any text there, and a line of its own could end the here-document.
    let deriver = info.deriver.as_deref().filter(|deriver| StorePath::parse(deriver).is_ok());
    let mut text = format!(
        "{}\n{hash}\n{}\n{}\n{}\n",
        info.path,
        info.nar_size.0,
        deriver.unwrap_or_default(),
        info.references.len()
    );
    for reference in &info.references {
        text.push_str(&format!("{reference}\n"));
    }
    text
}

/// Returns the programs that the script calls, each as a word. One that is missing could pass for a test that
/// found nothing, so this list is complete.
fn programs(plan: &Plan) -> Result<BTreeSet<String>> {
    let mut names = vec!["cat", "chmod", "chown", "cp", "dirname", "grep", "id", "ln", "mkdir", "mktemp"];
    names.extend(["mount", "mountpoint", "nix-store", "readlink", "rm", "rmdir", "sed", "sh", "sync"]);
    names.extend(["umount", "unshare", "xargs"]);
    let mut tools = BTreeSet::new();
    for step in &plan.steps {
        match step {
            Step::ExtraFiles { .. } => names.extend(["find", "tar"]),
            Step::Claim { .. } => names.extend(["df", "flock", "mv", "tail"]),
            Step::Disk(DiskStep::CreateImage { .. }) => names.extend(["mv", "truncate"]),
            Step::Disk(DiskStep::Partition { .. }) => {
                names.extend(["addpart", "blkid", "blockdev", "chroot", "cmp", "cp", "dd", "env", "flock"]);
                names.extend(["losetup", "lsblk", "mknod", "mv", "partx", "setpriv", "sfdisk", "sleep"]);
                names.extend(["stat", "tail", "tr", "wipefs"]);
            }
            Step::Disk(DiskStep::Format { content, tools: found, .. }) => {
                for tool in found.values() {
                    tools.insert(path(tool)?);
                }
                if !content.subvolumes().is_empty() {
                    names.push("btrfs");
                }
            }
            _ => {}
        }
    }
    tools.extend(names.into_iter().map(str::to_owned));
    Ok(tools)
}

fn act(plan: &Plan, step: &Step, here: &Path) -> Result<Act> {
    Ok(match step {
        Step::Claim { .. } => {
            Act::Claim { note: quote(&claim::note(claim::State::Installing, &plan.system)) }
        }
        Step::Finish { .. } => {
            Act::Finish { note: quote(&claim::note(claim::State::Complete, &plan.system)) }
        }
        Step::Prepare => Act::Prepare {
            directories: identity::directories()
                .map(|(path, mode, group)| directory(path, mode, group))
                .collect(),
        },
        Step::Copy { .. } => Act::Copy,
        Step::Register { .. } => Act::Register,
        Step::ExtraFiles { from } => Act::ExtraFiles { from: path(&here.join(from))? },
        Step::Profile { .. } => {
            Act::Profile { directories: profile::DIRECTORIES.map(|path| quote(&format!("/{path}"))).to_vec() }
        }
        Step::Disk(step) => disk_act(plan, step)?,
        Step::Deploy(step) => bail!("writing a script: it cannot {step}"),
        Step::Remote(step) => bail!("writing a script: it cannot {step}"),
        Step::Archive(step) => bail!("writing a script: it cannot {step}"),
    })
}

fn directory(path: &str, mode: u32, group: u32) -> Directory {
    let path = quote(&format!("/{}", path.trim_start_matches('/')));
    Directory { path, mode: format!("{mode:o}"), group }
}

fn disk_act(plan: &Plan, step: &DiskStep) -> Result<Act> {
    Ok(match step {
        DiskStep::CreateImage { .. } => Act::CreateImage,
        DiskStep::Partition { .. } => Act::Partition,
        DiskStep::Encrypt { partition, luks, .. } => {
            let words: Vec<String> = luks::format_words(luks).iter().map(|word| quote(word)).collect();
            Act::Encrypt { partition: *partition, words: words.join(" ") }
        }
        DiskStep::Format { partition, content, tools, .. } => {
            let table = table(plan).context("formatting a partition of no table")?;
            let slot = &table.slots[*partition as usize - 1];
            let mut words = format::command(content, slot.size, table.sector_size);
            let tool = tools.get(&words[0]).with_context(|| format!("finding the tool {}", words[0]))?;
            let tool = path(tool)?;
            let words: Vec<String> = words.drain(1..).map(|word| quote(&word)).collect();
            Act::Format {
                partition: *partition,
                command: [vec![tool], words].concat().join(" "),
                alone: content.format() == Some(Format::Btrfs) && content.uuid().is_some(),
                subvolumes: content.subvolumes().into_iter().map(quote).collect(),
            }
        }
        DiskStep::Mount { layout, binds: wanted } => {
            let (tmpfs, mounts) = mounts(layout);
            Act::Mount { tmpfs, mounts, binds: binds(wanted)? }
        }
        DiskStep::WriteTable { .. } => {
            Act::WriteTable { table: sfdisk(table(plan).context("writing no table")?)? }
        }
        DiskStep::InstallLoader { .. } => Act::InstallLoader,
        DiskStep::Release { .. } => Act::Release,
    })
}

fn mounts(layout: &DiskLayout) -> (bool, Vec<MountValues>) {
    let entries = layout.mounts();
    let tmpfs = !entries.iter().any(|entry| entry.mountpoint == "/");
    let values = |entry: &crate::disk::layout::MountEntry| {
        let mut options = entry.options.to_vec();
        options.extend(entry.subvolume.map(|path| format!("subvol={path}")));
        let point = entry.mountpoint;
        MountValues {
            partition: entry.partition as u32 + 1,
            kind: entry.format.name(),
            options: quote(&mount::data(entry.format.name(), &options)),
            directories: mount::way(point)
                .into_iter()
                .map(|at| directory(&at, mount::mode(&at), 0))
                .collect(),
            point: self::point(point),
            mode: (entry.format != Format::Vfat).then(|| format!("{:o}", mount::mode(point))),
        }
    };
    (tmpfs, entries.iter().map(values).collect())
}

fn binds(binds: &[Bind]) -> Result<Vec<BindValues>> {
    let values = |bind: &Bind| {
        let [from, to] =
            [&bind.from, &bind.to].map(|path| path.to_str().context("reading a bind that is no text"));
        let (from, to) = (from?, to?);
        let way = mount::way(from).into_iter().chain(mount::way(to));
        let directories = way.map(|at| directory(&at, mount::mode(&at), 0)).collect();
        Ok(BindValues { directories, from: point(from), to: point(to) })
    };
    binds.iter().map(values).collect()
}

/// Returns a mount point as it stands behind the root's own path: nothing at all for `/`.
fn point(path: &str) -> String {
    let path = path.trim_end_matches('/');
    if path.is_empty() { String::new() } else { quote(path) }
}

fn table(plan: &Plan) -> Option<&Table> {
    plan.steps.iter().find_map(|step| match step {
        Step::Disk(DiskStep::Partition { table, .. }) => Some(table),
        _ => None,
    })
}

/// Returns the table as sfdisk reads it, line by line.
fn sfdisk(table: &Table) -> Result<Vec<String>> {
    // Right behind the table, as the binary has it; sfdisk would leave a MiB.
    let first = 2 + 128 * 128 / table.sector_size;
    let mut lines = vec![
        "label: gpt".to_owned(),
        format!("label-id: {:X}", table.disk_uuid.hyphenated()),
        "unit: sectors".to_owned(),
        format!("first-lba: {first}"),
        String::new(),
    ];
    for slot in &table.slots {
        let mut line = format!(
            "{} : start={}, size={}, type={:X}, uuid={:X}, name=\"{}\"",
            slot.number,
            slot.start.0 / table.sector_size,
            slot.size.0 / table.sector_size,
            slot.type_uuid.hyphenated(),
            slot.uuid.hyphenated(),
            sfdisk_name(&slot.name),
        );
        let attributes = attributes(slot)?;
        if !attributes.is_empty() {
            line.push_str(&format!(", attrs=\"{}\"", attributes.join(",")));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Writes what means something to sfdisk as it writes it itself: `\x22` for a quotation mark.
fn sfdisk_name(name: &str) -> String {
    let odd = |c: char| c.is_ascii() && !(c.is_ascii_alphanumeric() || " +-.:=@_".contains(c));
    name.chars().map(|c| if odd(c) { format!("\\x{:02x}", c as u32) } else { c.to_string() }).collect()
}

fn attributes(slot: &Slot) -> Result<Vec<String>> {
    let set = (0..64).filter(|bit| slot.attributes >> bit & 1 == 1);
    set.map(|bit| match bit {
        0 => Ok("RequiredPartition".to_owned()),
        1 => Ok("NoBlockIOProtocol".to_owned()),
        2 => Ok("LegacyBIOSBootable".to_owned()),
        48.. => Ok(format!("GUID:{bit}")),
        _ => bail!(
            "writing a script: sfdisk cannot set the reserved attribute {bit} of partition {}; leave it out of the layout",
            slot.name
        ),
    })
    .collect()
}

fn disk_values(plan: &Plan) -> Result<Option<DiskValues>> {
    let mut values = None;
    let mut new = false;
    let (mut contents, mut encrypted, mut cryptsetup) = (Vec::new(), BTreeSet::new(), None);
    let mut points = Vec::new();
    let mut kinds = BTreeSet::new();
    for step in &plan.steps {
        match step {
            Step::Disk(DiskStep::CreateImage { .. }) => new = true,
            Step::Disk(DiskStep::Partition { image, table, .. }) => values = Some((*image, table)),
            Step::Disk(DiskStep::Encrypt { partition, tools, .. }) => {
                encrypted.insert(*partition);
                let tool =
                    tools.get(luks::TOOL).with_context(|| format!("finding the tool {}", luks::TOOL))?;
                cryptsetup = Some(path(tool)?);
            }
            Step::Disk(DiskStep::Format { partition, content, .. }) => contents.push((*partition, content)),
            Step::Disk(DiskStep::Mount { layout, .. }) => {
                points = layout.mounts().iter().map(|entry| point(entry.mountpoint)).collect();
                kinds = layout.mounts().iter().map(|entry| entry.format.name()).collect();
            }
            Step::Disk(DiskStep::InstallLoader { loader, esp, efi_variables }) => {
                let (image, table) = values.context("installing a boot loader on no disk")?;
                let (disk_names, parts) = names(table, &contents, &encrypted, loader);
                return Ok(Some(DiskValues {
                    image,
                    new,
                    size: table.disk_size.0,
                    sector_size: table.sector_size,
                    kinds,
                    points,
                    edges: edges(table),
                    parts,
                    cryptsetup,
                    loader: loader_values(plan, loader, esp.as_deref(), *efi_variables, disk_names)?,
                }));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Returns the MiB at both ends of the disk and of each partition. All begin and end at whole ones, but
/// the disk may end with a part of one, which is wiped by its own rule.
fn edges(table: &Table) -> Vec<u64> {
    let mib = Bytes::mib(1).0;
    let ends =
        table.slots.iter().flat_map(|slot| [slot.start.0 / mib, (slot.start.0 + slot.size.0) / mib - 1]);
    let edges: BTreeSet<u64> = [0].into_iter().chain(ends).collect();
    edges.into_iter().collect()
}

/// Returns the names of the disk and of its partitions in the fence, without those that the kernel gives.
fn names(
    table: &Table,
    contents: &[(u32, &Content)],
    encrypted: &BTreeSet<u32>,
    loader: &Loader,
) -> (Names, Vec<Part>) {
    // No kernel has such names; the real ones are known when the script runs.
    const UNKNOWN: char = '?';
    let label = |number: u32| {
        let content = contents.iter().find(|(of, _)| *of == number);
        content.and_then(|(_, content)| content.label()).map(|label| link_name("label", label))
    };
    let partition = |slot: &Slot| {
        let mut links =
            vec![link_name("partuuid", &slot.uuid.to_string()), link_name("partlabel", &slot.name)];
        links.extend(label(slot.number).filter(|_| !encrypted.contains(&slot.number)));
        TargetPartition {
            number: slot.number,
            name: format!("{UNKNOWN}{}", slot.number),
            rdev: slot.number.into(),
            links,
        }
    };
    let disk = TargetDisk {
        name: UNKNOWN.to_string(),
        rdev: 0,
        partitions: table.slots.iter().map(partition).collect(),
    };
    let mut nodes = loader::device_nodes(&[disk], &loader.baked_devices).into_iter().map(|node| {
        let known = node.names.into_iter().filter(|name| !name.contains(UNKNOWN));
        let (links, nodes) = known.map(|name| quote(&name)).partition(|name| name.contains('/'));
        Names { nodes, links }
    });
    let disk_names = nodes.next().unwrap_or_default();
    let parts = table.slots.iter().zip(nodes).map(|(slot, names)| Part {
        number: slot.number,
        start: slot.start.0 / ADDPART_SECTOR,
        size: slot.size.0 / ADDPART_SECTOR,
        names,
        opened: encrypted
            .contains(&slot.number)
            .then(|| label(slot.number).iter().map(|label| quote(label)).collect()),
    });
    (disk_names, parts.collect())
}

fn loader_values(
    plan: &Plan,
    loader: &Loader,
    esp: Option<&Path>,
    efi_variables: bool,
    names: Names,
) -> Result<LoaderValues> {
    let system = &plan.system;
    let init = format!("init={system}/init");
    let place = |path: &Path| {
        Ok::<_, anyhow::Error>(
            path.to_str().context("the boot mount point is not UTF-8")?.trim_end_matches('/').to_owned(),
        )
    };
    let boot = loader.boot_mount_point.as_deref().map(place).transpose()?;
    let own_esp = esp.or(loader.esp_mount_point.as_deref()).map(place).transpose()?;
    let or_boot = |place: &Option<String>| place.clone().unwrap_or_else(|| "/boot".to_owned());
    let (files, words) = match loader.kind {
        Kind::SystemdBoot => {
            let boot = boot.unwrap_or_else(|| or_boot(&own_esp));
            (vec![(boot, "/loader/entries/*.conf")], init)
        }
        Kind::Lanzaboote => (vec![(or_boot(&own_esp), "/EFI/Linux/*.efi")], init),
        Kind::GrubBios | Kind::GrubEfi | Kind::GrubBoth | Kind::GrubMenu => {
            (vec![(or_boot(&boot), "/grub/grub.cfg")], init)
        }
        Kind::Limine => {
            let places = BTreeSet::from([or_boot(&own_esp), "/boot".to_owned()]);
            (places.into_iter().map(|place| (place, "/limine/limine.conf")).collect(), system.to_string())
        }
        Kind::Extlinux => (vec![("/boot".to_owned(), "/extlinux/extlinux.conf")], init),
        Kind::External | Kind::None | Kind::NoSwitch => (Vec::new(), init),
    };
    Ok(LoaderValues {
        names,
        efi_variables,
        esp: esp.map(path).transpose()?,
        needs_esp: loader.kind.needs_esp(),
        boot_code: loader.kind.needs_bios_partition(),
        evidence: files.iter().map(|(place, name)| format!("{}{name}", quote(place))).collect(),
        words: quote(&words),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_one_line() {
        assert_eq!(comment("a\nrm -rf /\r\u{b}x "), "a\u{fffd}rm -rf /\u{fffd}\u{fffd}x");
    }

    #[test]
    fn a_deriver_that_is_none_is_left_out_of_the_registration() {
        let path = StorePath::from_base_name(&format!("{}-a", "a".repeat(32))).unwrap();
        let info = |deriver: &str| PathInfo {
            path: path.clone(),
            nar_hash: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            nar_size: Bytes(120),
            references: vec![path.clone()],
            deriver: Some(deriver.to_owned()),
            registration_time: 7,
            ultimate: true,
            signatures: None,
            content_address: None,
            outputs: Vec::new(),
        };
        let drv = format!("{path}.drv");
        for (deriver, written) in [(drv.as_str(), drv.as_str()), ("x\nEND", "")] {
            let lines = format!("{path}\n{}\n120\n{written}\n1\n{path}\n", "ab".repeat(32));
            assert_eq!(registration(&info(deriver)), lines);
        }
    }

    #[test]
    fn sfdisk_gets_names_and_attributes_in_its_own_spelling() {
        assert_eq!(sfdisk_name("a \"b\" $c, größe"), "a \\x22b\\x22 \\x24c\\x2c größe");
        let slot = |attributes| Slot {
            number: 1,
            start: Bytes::mib(1),
            size: Bytes::mib(1),
            type_uuid: uuid::Uuid::nil(),
            uuid: uuid::Uuid::nil(),
            name: "x".to_owned(),
            attributes,
        };
        assert_eq!(attributes(&slot(1 << 59 | 4)).unwrap(), ["LegacyBIOSBootable", "GUID:59"]);
        let error = attributes(&slot(1 << 5)).unwrap_err().to_string();
        assert!(error.contains("attribute 5"), "{error}");
    }
}
