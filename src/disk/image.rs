//! Images: regular files that hold a whole disk, reached through a loop device and its partitions.
//!
//! The partitions' nodes are the loop device's own, as on a disk: GRUB finds the disk of a partition
//! by them, and what is written through one is seen through the other. A new image grows under a
//! temporary name and is renamed when it is whole.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc;

use super::contents;
use super::device;
use super::table::Table;
use crate::size::Bytes;
use crate::sys::growing::Growing;
use crate::sys::ioctl;

// Another process may take the free loop device before we do.
const ATTACH_TRIES: usize = 64;

/// A loop device, detached by the kernel when its last user closes it; its partitions go with it.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    name: String,
    file: File,
}

impl Loop {
    /// Attaches the first `size` bytes of a file.
    pub fn attach(file: &File, size: Bytes) -> Result<Loop> {
        let read_write = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).clone();
        let control = read_write().open("/dev/loop-control").context("opening /dev/loop-control")?;
        for _ in 0..ATTACH_TRIES {
            let number = ioctl::free_loop(&control).context("looking for a free loop device")?;
            let name = format!("loop{number}");
            let path = Path::new("/dev").join(&name);
            let device = match read_write().open(&path) {
                Ok(device) => device,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
                    let number = libc::makedev(7, number);
                    let _ = nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFBLK, mode, number);
                    read_write().open(&path).with_context(|| format!("opening {}", path.display()))?
                }
                Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
            };
            match ioctl::attach_loop(&device, file, size) {
                Ok(()) => return Ok(Loop { path, name, file: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("attaching {}", path.display())),
            }
        }
        bail!("every loop device was taken by somebody else, {ATTACH_TRIES} times; try again")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Writes everything out and lets go.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("writing out {}", self.path.display()))
    }
}

/// An image file opened for an installation, locked against another one.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: Held,
    pub size: Bytes,
}

#[derive(Debug)]
enum Held {
    /// It has no name yet.
    New(Growing),
    /// It was there, and is overwritten in place.
    There(File),
}

/// Images have the sectors most disks have.
pub const SECTOR_SIZE: u64 = 512;

impl Image {
    /// Makes a sparse image under a temporary name beside `path`.
    pub fn create(path: &Path, size: Bytes) -> Result<Image> {
        let mut growing = Growing::new(path)?;
        growing
            .file()
            .set_len(size.0)
            .with_context(|| format!("making {}", growing.temporary().display()))?;
        Ok(Image { path: path.to_owned(), file: Held::New(growing), size })
    }

    /// Opens an image that is there; it is overwritten in place.
    pub fn open(path: &Path) -> Result<Image> {
        let opening = || format!("opening {}", path.display());
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(opening)?;
        if file.try_lock().is_err() {
            bail!("{} is being written by another installation; wait for its end", path.display());
        }
        let size = Bytes(file.metadata().with_context(opening)?.len());
        Ok(Image { path: path.to_owned(), file: Held::There(file), size })
    }

    pub fn file(&mut self) -> &mut File {
        match &mut self.file {
            Held::New(growing) => growing.file(),
            Held::There(file) => file,
        }
    }

    /// Erases the old contents and returns a device for the whole and the node of each partition that
    /// `table` will have.
    pub fn partition(&mut self, table: &Table) -> Result<(Loop, Vec<PathBuf>)> {
        let size = self.size;
        contents::wipe_disk(self.file(), size, SECTOR_SIZE, &table.slots)
            .with_context(|| format!("wiping {}", self.path.display()))?;
        let whole = Loop::attach(self.file(), size.round_down(Bytes(SECTOR_SIZE)))?;
        let nodes = device::nodes(&whole.file, &whole.name, table)?;
        Ok((whole, nodes))
    }

    /// Gives the whole image its name. Its loop device must be finished.
    pub fn finish(self) -> Result<()> {
        let shown = self.path.display();
        match self.file {
            Held::New(growing) => growing.publish(&format!(
                "somebody made {shown} meanwhile, and a new image replaces nothing; remove it, or choose another name"
            )),
            Held::There(file) => file.sync_all().with_context(|| format!("syncing {shown}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::device::Disk;
    use crate::disk::layout::{self, Architecture};
    use crate::disk::table::{self, Ids};
    use crate::disk::{format, mount};
    use crate::wait;
    use nix::mount::MsFlags;
    use nix::sched::{CloneFlags, unshare};
    use std::fs;
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::fs::FileExt;
    use std::process::{Command, Stdio};

    const LAYOUT: &str = r#"{"disks": {"main": {"partitions": [
        {"name": "ESP", "type": "esp", "size": "40M", "content": {"type": "filesystem", "format": "vfat", "label": "ESP"}},
        {"name": "swap", "type": "swap", "size": "8M", "content": {"type": "swap", "label": "swap"}},
        {"name": "srv", "type": "srv", "size": "300M", "content": {"type": "filesystem", "format": "xfs", "mountpoint": "/home/xfs"}},
        {"name": "boot", "type": "linux", "size": "16M", "content": {"type": "filesystem", "format": "ext4", "mountpoint": "/tmp"}},
        {"name": "root", "type": "root", "size": "100%", "content": {"type": "btrfs", "label": "pool", "subvolumes": [
            {"path": "@/nested/home", "mountpoint": "/home"}, {"path": "@", "mountpoint": "/", "options": ["compress=zstd", "x-other"]}]}}]}}}"#;

    /// Runs `test` in a mount namespace of its own, whose mounts end with it.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("tests that mount need root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            test();
        };
        std::thread::spawn(body).join().unwrap();
    }

    fn tools() -> format::Tools {
        let names = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "mkswap"];
        let find = |name: &str| crate::sys::command::find(name, ["/usr/sbin", "/sbin"].map(PathBuf::from));
        names
            .iter()
            .map(|&name| (name.to_owned(), find(name).expect("make test installs the tools")))
            .collect()
    }

    /// Makes and mounts everything, writes a file into each mount, and returns the loop devices used.
    fn fill(disk: &layout::DiskLayout, table: &Table, devices: &[PathBuf], dir: &Path) {
        let scratch = dir.join("scratch");
        let root = dir.join("root");
        fs::create_dir_all(&scratch).unwrap();
        fs::create_dir_all(&root).unwrap();
        for (index, partition) in disk.partitions.iter().enumerate() {
            let content = partition.content.as_ref().unwrap();
            format::make(&tools(), content, &devices[index], table.slots[index].size, 512).unwrap();
            mount::make_subvolumes(content, &devices[index], &scratch).unwrap();
        }
        let mounts = mount::layout(disk, devices, &[], &root).unwrap();
        for point in ["", "home", "home/xfs", "tmp"] {
            fs::write(root.join(point).join("file"), point).unwrap();
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(mountinfo.contains("compress=zstd"), "{mountinfo}");
        mounts.finish().unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    fn attached(path: &Path) -> bool {
        let file = |name: &Path| fs::read_to_string(name.join("loop/backing_file")).unwrap_or_default();
        let path = path.to_str().unwrap();
        fs::read_dir("/sys/class/block").unwrap().flatten().any(|entry| file(&entry.path()).contains(path))
    }

    /// Waits: a program that another test is starting has our open files until its exec.
    #[track_caller]
    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        wait::until(what, || is_so().then_some(()));
    }

    #[track_caller]
    fn assert_detached(dir: &Path) {
        wait_until("nothing is attached", || !attached(dir));
    }

    /// The partitions of a loop device are no more, or it is somebody else's by now.
    #[track_caller]
    fn assert_gone(whole: &Path, nodes: &[PathBuf]) {
        let taken = Path::new("/sys/class/block").join(whole.file_name().unwrap()).join("loop");
        wait_until("no partition is left", || nodes.iter().all(|node| !node.exists()) || taken.exists());
    }

    fn table_for(image: &Image) -> Table {
        let layout = layout::parse(LAYOUT).unwrap();
        let disk = layout.disk().unwrap().1;
        table::plan(disk, Architecture::X86_64, image.size, SECTOR_SIZE, &Ids::random(5)).unwrap()
    }

    #[test]
    fn each_partition_is_where_the_table_says_and_parallel_runs_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let run = |name: String| {
            let mut image = Image::create(&dir.path().join(&name), Bytes::gib(1)).unwrap();
            let table = table_for(&image);
            let (whole, nodes) = image.partition(&table).unwrap();
            let words = |slot: &table::Slot| format!("{:>64}", format!("{name} {}", slot.name));
            for (slot, node) in table.slots.iter().zip(&nodes) {
                let device = OpenOptions::new().write(true).open(node).unwrap();
                device.write_all_at(words(slot).as_bytes(), 0).unwrap();
                device.sync_all().unwrap();
            }
            for slot in &table.slots {
                let mut found = [0; 64];
                image.file().read_exact_at(&mut found, slot.start.0).unwrap();
                assert_eq!(String::from_utf8_lossy(&found), words(slot));
            }
            let path = whole.path().to_owned();
            whole.finish().unwrap();
            (path, nodes)
        };
        let runs = |name: &str| (0..5).map(|round| run(format!("{name}{round}"))).collect::<Vec<_>>();
        let used = std::thread::scope(|scope| {
            let running = ["a", "b", "c", "d"].map(|name| scope.spawn(move || runs(name)));
            running.map(|thread| thread.join().unwrap())
        });
        assert_detached(dir.path());
        used.iter().flatten().for_each(|(path, nodes)| assert_gone(path, nodes));
    }

    const KILLED: &str = "IMAGE_OF_THE_KILLED";

    /// The process that the next test kills: it holds an image with a mounted partition.
    #[test]
    fn holding_an_image() {
        let Some(path) = std::env::var_os(KILLED).map(PathBuf::from) else { return };
        in_namespace(move || {
            let mut image = Image::create(&path, Bytes::gib(1)).unwrap();
            let table = table_for(&image);
            let (whole, nodes) = image.partition(&table).unwrap();
            let content = r#"{"type": "filesystem", "format": "ext4"}"#;
            let content: layout::Content = serde_json::from_str(content).unwrap();
            format::make(&tools(), &content, &nodes[4], table.slots[4].size, 512).unwrap();
            let point = path.with_file_name("mounted");
            fs::create_dir(&point).unwrap();
            let _mount = mount::Mount::new(&nodes[4], &point, "ext4", &[]).unwrap();
            println!("\nholding {} {}", whole.path().display(), nodes[4].display());
            let _ = std::io::stdin().read(&mut [0]);
        });
    }

    #[test]
    fn nothing_stays_attached_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = Command::new(std::env::current_exe().unwrap());
        holder.args(["--exact", "--nocapture", "disk::image::tests::holding_an_image"]);
        holder.env(KILLED, dir.path().join("disk.img")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
        let held = lines.into_iter().find(|line| line.starts_with("holding ")).expect("it holds an image");
        let held: Vec<PathBuf> = held.split(' ').skip(1).map(PathBuf::from).collect();
        assert!(attached(dir.path()));
        assert!(held[1].exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_detached(dir.path());
        assert_gone(&held[0], &held[1..]);
    }

    #[test]
    fn an_image_is_made_filled_and_published_and_nothing_stays_attached() {
        in_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk.img");
            let layout = layout::parse(LAYOUT).unwrap();
            let disk = layout.disk().unwrap().1;
            let mut image = Image::create(&path, Bytes::gib(1)).unwrap();
            let error = Image::create(&path, Bytes::gib(1)).unwrap_err().to_string();
            assert!(error.contains("is being written by another run of this command"), "{error}");
            let table =
                table::plan(disk, Architecture::X86_64, image.size, SECTOR_SIZE, &Ids::random(5)).unwrap();
            let (mut whole, devices) = image.partition(&table).unwrap();
            fill(disk, &table, &devices, dir.path());
            assert!(!path.exists());
            let mut growing = File::open(dir.path().join(".disk.img.part")).unwrap();
            let early = contents::look(&mut growing, Bytes::gib(1), 512).unwrap();
            assert!(early.partitions.is_empty() && early.table == contents::TableKind::None, "{early:?}");
            table::write(whole.file(), &table).unwrap();
            whole.finish().unwrap();
            image.finish().unwrap();
            assert!(path.exists());
            let mut file = File::open(&path).unwrap();
            let found = contents::look(&mut file, Bytes::gib(1), 512).unwrap();
            let kinds: Vec<String> = found.partitions.into_iter().map(|p| p.content.unwrap().kind).collect();
            assert_eq!(kinds, ["vfat", "swap", "xfs", "ext4", "btrfs"]);
            assert_detached(dir.path());
            // Sparse: only what was written takes room.
            use std::os::unix::fs::MetadataExt;
            assert!(file.metadata().unwrap().blocks() * 512 < 300 << 20);
        });
    }

    #[test]
    fn a_loop_device_is_a_disk_too_and_one_in_use_is_refused() {
        in_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk.img");
            File::create_new(&path).unwrap().set_len(1 << 30).unwrap();
            // Unlike ours, one attached by hand has no partitions.
            let mut attach = Command::new("losetup");
            let made = attach.args(["--find", "--show"]).arg(&path).output().unwrap();
            let target = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
            let layout = layout::parse(LAYOUT).unwrap();
            let disk_layout = layout.disk().unwrap().1;
            let disk = Disk::open(&target).unwrap();
            let table =
                table::plan(disk_layout, Architecture::X86_64, disk.size, disk.sector_size, &Ids::random(5))
                    .unwrap();
            let (shared, devices) = disk.partition(&table).unwrap();
            fill(disk_layout, &table, &devices, dir.path());
            drop(shared);
            assert!(Command::new("losetup").arg("--detach").arg(&target).status().unwrap().success());
            assert_detached(dir.path());
            assert_gone(&target, &devices);
            let error = Disk::open(Path::new("/dev/null")).unwrap_err();
            assert!(error.to_string().contains("no block device"), "{error}");
        });
    }

    #[test]
    fn an_early_return_leaves_nothing_attached_and_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        for _ in 0..2 {
            let mut image = wait::until("nobody has the lock", || Image::create(&path, Bytes::gib(1)).ok());
            let table = table_for(&image);
            drop(image.partition(&table).unwrap());
            assert!(!path.exists());
        }
        assert_detached(dir.path());
    }

    #[test]
    fn a_clone_takes_the_uuid_of_a_mounted_original() {
        in_namespace(|| {
            let uuid = uuid::Uuid::new_v4().to_string();
            for format in ["btrfs", "xfs", "ext4"] {
                let dir = tempfile::tempdir().unwrap();
                let text = format!(r#"{{"type": "filesystem", "format": "{format}", "uuid": "{uuid}"}}"#);
                let content: layout::Content = serde_json::from_str(&text).unwrap();
                let made: Vec<(Loop, mount::Mount)> = ["original", "clone"]
                    .iter()
                    .map(|name| {
                        let file = File::create_new(dir.path().join(name)).unwrap();
                        file.set_len(320 << 20).unwrap();
                        let file =
                            OpenOptions::new().read(true).write(true).open(dir.path().join(name)).unwrap();
                        let device = Loop::attach(&file, Bytes::mib(320)).unwrap();
                        format::make(&tools(), &content, device.path(), Bytes::mib(320), 512).unwrap();
                        let point = dir.path().join(format!("at-{name}"));
                        fs::create_dir(&point).unwrap();
                        let mount = mount::Mount::new(device.path(), &point, format, &[]).unwrap();
                        fs::write(point.join("name"), name).unwrap();
                        (device, mount)
                    })
                    .collect();
                for (device, mount) in made {
                    mount.finish().unwrap();
                    device.finish().unwrap();
                }
                assert_detached(dir.path());
            }
        });
    }
}
