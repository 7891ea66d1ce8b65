//! The stories of [`crate::network`] in a machine whose kernel has every kind of links: Debian's, with bonds and VLANs.
//!
//! The machine has this test's own binary, `ip` and busybox, in an initrd.

use std::path::Path;

use crate::env::{TestEnv, fixture};
use crate::initrd::Initrd;
use crate::network::COMPLETE;
use crate::vm::LONG;

const MODULES: [&str; 5] = ["bonding", "8021q", "veth", "dummy", "bridge"];
const ENDED: &str = "the stories ended with";

#[test]
fn bonds_and_vlans_under_a_kernel_that_has_them() {
    let env = TestEnv::new();
    let ip = Path::new("/sbin/ip").canonicalize().expect("iproute2 is installed");
    let initrd = Initrd::new(&fixture("uefi"), env.path(""))
        .modules(&MODULES)
        .program("stories", &std::env::current_exe().unwrap())
        .program("ip", &ip);
    let script = format!(
        "export {COMPLETE}=1
        stories network:: --test-threads=1 --nocapture
        echo {ENDED} $?.
        poweroff -f\n"
    );
    let machine = initrd.machine(&script).start();
    machine.wait_serial(ENDED, LONG);
    machine.wait_off(LONG);
    let serial = machine.serial();
    assert!(serial.contains(&format!("{ENDED} 0.")), "{serial}");
    assert!(!serial.contains("left out"), "{serial}");
    for story in ["a_vlan", "a_bond_of_which_one_card_works"] {
        assert!(serial.contains(&format!("network::{story} ... ok")), "{serial}");
    }
}
