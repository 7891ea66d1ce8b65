//! `install-to-disk DISK|IMAGE`: a bootable clone of the system.

use anyhow::{Context, Result};

use super::disk_wishes::{Look, Place};
use super::{confirm, keys, print_plan, require_root, system};
use crate::cli::{InstallToDisk, PlanForm};
use crate::disk::layout::DiskLayout;
use crate::facts::{DiskFacts, DiskKind};
use crate::failure::{refused, usage};
use crate::plan::{self, Plan, Summary, Wishes};
use crate::probe;
use crate::progress::Event;
use crate::run::{self, Source};
use crate::store::{closure, copy};
use crate::sys::{interrupt, own_mounts};
use crate::system::etc::Etc;
use crate::system::extra_files;

pub fn run(args: &InstallToDisk) -> Result<()> {
    require_root()?;
    let common = &args.common;
    let progress = common.progress.printer();
    let wishes = Wishes {
        system: system(common)?,
        from: common.from.clone(),
        extra_files: args.extra.extra_files.clone(),
    };
    args.extra.extra_files.as_deref().map_or(Ok(()), extra_files::check)?;
    let facts = look(args)?;
    let here = Place::Here { efi_variables: args.efi_variables };
    let look = Look::new(&wishes, args.layout.as_deref())?;
    if common.only_plan() == Some(PlanForm::Script)
        && wishes.extra_files.is_some()
        && look.etc != Etc::Directory
    {
        return Err(refused(
            "a script does not know the overlay of this system's /etc; leave out --extra-files",
        ));
    }
    let mut disk_wishes = look.wishes(&facts, &here)?;
    disk_wishes.seen = probe::seen(&facts)?;
    let closure = closure::read(&wishes.from, &wishes.system, &*progress)?;
    let summary = Summary {
        paths: closure.paths.len(),
        bytes: closure.size(),
        space: copy::space_needed(&closure.paths, &wishes.from)?,
    };
    let plan = plan::install_to_disk(&wishes, &disk_wishes, &facts, summary)?;
    let mut keys = keys::read(&args.disk_encryption_key, &disk_wishes.layout)?;
    if let Some(form) = common.only_plan() {
        return print_plan(&plan, &closure, form);
    }
    if !args.yes.yes && facts.kind != DiskKind::NewImage {
        ask(&plan, &facts)?;
    }
    mountable(&disk_wishes.layout)?;
    keys::complete(&mut keys, &disk_wishes.layout)?;
    own_mounts::make()?;
    let shown = facts.path.display();
    // A new image gets its name when it is whole.
    let left = if facts.kind == DiskKind::NewImage { "was not made" } else { "does not boot now" };
    interrupt::say(format!("{shown} {left}: run the same command again to start over"));
    let source = Source { root: wishes.from.clone(), closure };
    run::perform(&plan, &source, &keys, &*progress).with_context(|| {
        format!("installing onto {shown}, which {left} (run the same command again to start over)")
    })?;
    let text = format!("{shown} boots {}", wishes.system.name());
    progress.event(Event::Done { text });
    Ok(())
}

fn mountable(disk: &DiskLayout) -> Result<()> {
    if let Some(partition) = disk.partitions.iter().find(|partition| partition.luks().is_some())
        && !probe::can_encrypt()
    {
        return Err(refused(format!(
            "the kernel of this machine has no dm-crypt, which the encrypted partition {} needs; load its module, or install from elsewhere",
            partition.name
        )));
    }
    let mounts = disk.mounts();
    let Some(mount) = mounts.iter().find(|mount| !probe::can_mount(mount.format.name())) else {
        return Ok(());
    };
    let (kind, point) = (mount.format.name(), mount.mountpoint);
    Err(refused(format!(
        "the kernel of this machine cannot mount {kind}, which {point} needs; load its module, or install from elsewhere"
    )))
}

/// Looks at the disk, and at the size of an image that is to be made.
fn look(args: &InstallToDisk) -> Result<DiskFacts> {
    let mut facts = probe::disk(&args.disk)?;
    match (facts.kind, args.image_size) {
        (DiskKind::NewImage, Some(size)) => facts.size = size,
        (DiskKind::NewImage, None) => {
            let shown = args.disk.display();
            return Err(usage(format!(
                "{shown} does not exist; for a new image file say its --image-size, such as 8G"
            )));
        }
        (_, Some(_)) => {
            let shown = args.disk.display();
            return Err(usage(format!("{shown} is there already; --image-size is for a new image file")));
        }
        (_, None) => {}
    }
    Ok(facts)
}

fn ask(plan: &Plan, facts: &DiskFacts) -> Result<()> {
    let path = facts.path.to_string_lossy().into_owned();
    let name = facts.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut answers = vec![path.as_str(), name.as_str()];
    answers.extend(facts.serial.as_deref());
    let serial = if facts.serial.is_some() { " or its serial" } else { "" };
    confirm(plan, &format!("All that is on it will be lost. Type {name}{serial} to go on:"), &answers)
}
