//! A machine to deploy to that has a kernel, a boot loader and a disk: QEMU, for what namespaces cannot show.
//!
//! Above all the power can be cut: what the guest had not flushed is lost.

use std::path::{Path, PathBuf};

use crate::env::{BINARY, TestEnv, text, tool};
use crate::link::{Link, free_port};
use crate::login::Login;
use crate::machine::deployment;
use crate::mounted_root::assert_undamaged;
use crate::source::{Firmware, Source};
use crate::vm::{self, BOOT, Start, Vm};

// Enough for one of these systems, so that three of them fit beside whatever else is tested.
const MEMORY: u32 = 512;

pub struct DiskMachine {
    env: TestEnv,
    image: PathBuf,
}

impl DiskMachine {
    /// A machine with the first system of the family on its disk, off.
    pub fn new() -> DiskMachine {
        let (env, system) = (TestEnv::new(), deployment("a"));
        let work = env.path("");
        let source =
            Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::UefiLoader, &work);
        DiskMachine { image: source.image, env }
    }

    /// Nothing is wrong with its store, by the word of real Nix. The machine is off.
    #[track_caller]
    pub fn assert_undamaged(&self) {
        assert_undamaged(&self.env, &self.image);
    }

    /// Another machine, whose disk is what this one's is now.
    pub fn twin(&self) -> DiskMachine {
        let env = TestEnv::new();
        let image = env.path("twin.img");
        // Its holes stay holes.
        tool("cp", &["--sparse=auto", "--reflink=auto", text(&self.image), text(&image)]);
        DiskMachine { image, env }
    }

    /// Boots what its boot loader's menu says, and waits until it can be logged in to. `Vm::kill` cuts its power.
    #[track_caller]
    pub fn start(&self) -> (Vm, Login) {
        let port = free_port();
        let mut vm = vm::Machine::new(Start::Uefi).memory(MEMORY).disk(&self.image).ssh(port).start();
        vm.wait_shell(BOOT);
        vm.long_sh(BOOT, "systemctl is-system-running --wait");
        // As after a day: no power cut takes the host key, or leaves it empty.
        let host_key = vm.sh("sync; cat /etc/ssh/ssh_host_ed25519_key.pub");
        let login = Login::new(Link::to_port(port), &host_key, &self.env.path(""));
        (vm, login)
    }
}
