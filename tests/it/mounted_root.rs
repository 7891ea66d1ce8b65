//! The root of a machine's disk while the machine is off, mounted here: what takes half a minute in an emulator takes a second.

use std::path::Path;

use serde_json::Value;

use crate::env::{Loop, Mounted, TestEnv, fixture, text, tool};
use crate::real_nix;

const SECTOR: u64 = 512;

/// The largest partition of a disk image, until the value goes.
pub struct MountedRoot {
    // In this order: what is mounted goes before what it is mounted from.
    mounted: Mounted,
    _device: Loop,
}

impl MountedRoot {
    /// Mounts it as the machine's next boot would, which plays the journal back.
    #[track_caller]
    pub fn of(env: &TestEnv, image: &Path) -> MountedRoot {
        let table: Value =
            serde_json::from_str(&tool("sfdisk", &["--json", text(image)])).expect("sfdisk prints JSON");
        let partitions = table["partitiontable"]["partitions"].as_array().expect("the disk has partitions");
        let number =
            |partition: &Value, key: &str| partition[key].as_u64().expect("sfdisk counts in sectors");
        let root = partitions.iter().max_by_key(|partition| number(partition, "size"));
        let root = root.expect("the disk has a partition");
        let [offset, size] = ["start", "size"].map(|key| (number(root, key) * SECTOR).to_string());
        let device = Loop::new(image, &["--offset", &offset, "--sizelimit", &size]);
        let name = image.file_name().expect("an image has a name").to_string_lossy();
        let mounted = Mounted::new(&[device.name()], env.path(&format!("root-of-{name}")));
        MountedRoot { mounted, _device: device }
    }

    pub fn path(&self) -> &Path {
        &self.mounted.0
    }
}

/// Real Nix is content with all that the store of a machine that is off has on its disk.
#[track_caller]
pub fn assert_undamaged(env: &TestEnv, image: &Path) {
    real_nix::assert_clean(MountedRoot::of(env, image).path());
}

/// The store and its database are those of a fixture and nothing else, and real Nix is content with them.
#[track_caller]
pub fn assert_is_the_fixture(env: &TestEnv, image: &Path, variant: &str) {
    let system = fixture(variant);
    let mounted = MountedRoot::of(env, image);
    let root = mounted.path();
    let store = root.join("nix/store");
    assert_eq!(tool("stat", &["--format", "%a %u %g", text(&store)]), "1775 0 30000");
    let closure = real_nix::closure(&system.root, &system.toplevel);
    assert_eq!(real_nix::objects(root), closure, "the store directory");
    assert_eq!(real_nix::closure(root, &system.toplevel), closure);
    let wrong = "-mindepth 1 -path ./.links -prune -o ( ! -uid 0 -o ! -gid 0 -o -newermt @1 -o -type d ! -perm 555 \
                 -o -type f ! -perm 444 ! -perm 555 ) -print";
    let find: Vec<&str> =
        ["-C", text(&store), "find", "."].into_iter().chain(wrong.split_whitespace()).collect();
    let wrong = tool("env", &find);
    assert_eq!(wrong, "", "these are not as Nix has them");
    real_nix::assert_clean(root);
}
