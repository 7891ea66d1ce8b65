//! A real Debian is reached over odd networks, and over the same in its rescue, after a real jump.
//!
//! Three networks of this machine's own lead there, each a namespace: a person's home, an office with a
//! jump host, and the router that the machine's only wire ends at.

use std::fs;

use crate::debian::{ALIAS, Debian, Firmware, Hardware, UP, key};
use crate::env::{Ran, System, TestEnv, fixture, ssh_word, text};
use crate::space::Space;
use crate::sshd::Sshd;
use crate::vm::LONG;
use crate::wires::Wire;

const OFFICE: &str = "198.51.100.1";
// Behind a router that is in no network of theirs.
const BY_VLAN: &str = "100.64.0.77";
const BY_TUNNEL: &str = "100.64.0.78";
const BY_IPV6: &str = "2001:db8:2::77";
const VLAN: u16 = 5;

/// The networks between a person and the machine; dropped from the ends to the middle.
struct Networks {
    wire: Wire,
    jump_host: Sshd,
    home: Space,
    office: Space,
    router: Space,
}

impl Networks {
    fn new() -> Networks {
        let [home, office, router] = ["home", "office", "router"].map(Space::new);
        join((&home, "home"), (&office, "office"));
        join((&office, "office"), (&router, "router"));
        let wire = Wire::to(&router, "wire");
        home.ip("address add 198.51.100.2/24 dev office");
        office.ip(&format!("address add {OFFICE}/24 dev home"));
        office.ip("address add 203.0.113.2/24 dev router");
        office.ip("address add 2001:db8:1::2/64 dev router nodad");
        office.ip("route add default via 203.0.113.1");
        office.ip("-6 route add default via 2001:db8:1::1");
        router.ip("address add 203.0.113.1/24 dev office");
        router.ip("address add 2001:db8:1::1/64 dev office nodad");
        router.ip("address add 192.0.2.1/32 dev wire");
        router.ip("address add fe80::1/64 dev wire nodad");
        for address in [BY_VLAN, BY_TUNNEL, BY_IPV6] {
            router.ip(&format!("route add {address} dev wire"));
        }
        router.inside(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{switch}"), "1").expect("root may route");
            }
        });
        let jump_host = office.inside(|| Sshd::start_at(OFFICE, ""));
        Networks { wire, jump_host, home, office, router }
    }
}

/// Lays a cable between two namespaces; each end is called after what it leads to.
fn join(near: (&Space, &str), far: (&Space, &str)) {
    let ends = format!("link add {} type veth peer name {} netns {}", far.1, near.1, far.0.name());
    near.0.ip(&ends);
    near.0.ip(&format!("link set {} up", far.1));
    far.0.ip(&format!("link set {} up", near.1));
}

struct Story {
    env: TestEnv,
    system: System,
    debian: Debian,
    networks: Networks,
}

impl Story {
    fn new() -> Story {
        let networks = Networks::new();
        let debian = Hardware::new(Firmware::Bios, 256).wire(networks.wire.netdev()).start();
        let story = Story { env: TestEnv::new(), system: fixture("bios"), debian, networks };
        let (there, known_hosts) = (&story.networks.jump_host, story.debian.login.known_hosts());
        let config = format!(
            "Host office\n    HostName {OFFICE}\n    Port {}\n    User sh-root\n    IdentityFile {}\n    UserKnownHostsFile {}\n\
             Host * !office\n    User root\n    IdentityFile {}\n    UserKnownHostsFile {}\n    HostKeyAlias {ALIAS}\n    \
             GlobalKnownHostsFile {}\n    StrictHostKeyChecking yes\n    IdentitiesOnly yes\n",
            there.port,
            ssh_word(&there.env.path("id")),
            ssh_word(&there.env.path("known_hosts")),
            ssh_word(&key()),
            ssh_word(known_hosts),
            ssh_word(&known_hosts.with_extension("global")),
        );
        fs::write(story.env.path("config"), config).unwrap();
        story
    }

    /// Gives the machine another network; `$card` is its card.
    fn set_up(&mut self, script: &str) {
        let vm = self.debian.vm();
        vm.wait_shell(LONG);
        vm.sh(&format!(
            "set -e
            systemctl stop systemd-networkd.socket systemd-networkd
            card=$(ls /sys/class/net | grep -v lo)
            ip address flush dev $card scope global
            {script}"
        ));
    }

    /// Runs the command in one of the networks.
    fn run(&self, from: &Space, more: &[&str]) -> Ran {
        self.ran(from, self.system.words("install-via-ssh", &[&["-F", "config"], more].concat()))
    }

    /// Goes on with what was begun.
    fn resume(&self, from: &Space, more: &[&str]) -> Ran {
        let root = text(&self.system.root);
        let words = [&["install-via-ssh", "--resume", "--from", root, "-F", "config"], more].concat();
        self.ran(from, words.into_iter().map(String::from).collect())
    }

    fn ran(&self, from: &Space, words: Vec<String>) -> Ran {
        let mut command = self.env.command(words);
        command.env("XDG_STATE_HOME", self.env.path("state"));
        from.inside(|| Ran::of(&mut command))
    }

    /// Debian is back, by another boot than this one.
    #[track_caller]
    fn is_back(&mut self, boot: &str) {
        self.debian.wait_for(UP, LONG);
        self.debian.vm().wait_shell(LONG);
        assert_ne!(self.boot_id(), boot);
    }

    #[track_caller]
    fn boot_id(&mut self) -> String {
        self.debian.vm().sh("cat /proc/sys/kernel/random/boot_id")
    }
}

#[test]
fn a_debian_is_reached_by_a_vlan_behind_a_jump_host_or_by_ipv6_alone_and_so_is_its_rescue() {
    let mut story = Story::new();

    // An address of its own, a gateway that is in no network of the card's, and a near end behind both.
    story.networks.wire.tag(Some(VLAN));
    story.set_up(&format!(
        "ip link add link $card name $card.{VLAN} type vlan id {VLAN}
        ip link set $card.{VLAN} up
        ip address add {BY_VLAN}/32 dev $card.{VLAN}
        ip route add 192.0.2.1 dev $card.{VLAN} scope link
        ip route add default via 192.0.2.1 dev $card.{VLAN} onlink
        ip tuntap add name tunnel mode tun
        ip link set tunnel up
        ip address add {BY_TUNNEL}/32 dev tunnel"
    ));
    let Networks { home, router, .. } = &story.networks;
    router.answers(BY_VLAN);
    let alone = story.run(home, &[BY_VLAN, "--dry-run"]);
    alone.ended_with(1).stderr_has("ssh could not connect").says_a_sentence();
    let refused = story.run(home, &["-J", "office", BY_TUNNEL, "--dry-run"]);
    refused.refused().stderr_has("reached through tunnel, a tunnel of some program").says_a_sentence();
    let boot = story.boot_id();
    let short = ["-J", "office", BY_VLAN, "--kexec-only", "--rescue-timeout", "60"];
    story.run(&story.networks.home, &short).ok().stderr_has("is in the rescue");
    for said in [&format!("{BY_VLAN}/32 on "), "default via 192.0.2.1 dev ", "nobody has come"] {
        story.debian.wait_for(said, LONG);
    }
    story.is_back(&boot);

    // Without a single address of version 4; somebody comes back, and has seen enough.
    story.networks.wire.tag(None);
    let by_ipv6 = format!(
        "ip address add {BY_IPV6}/128 dev $card nodad
        ip -6 route add default via fe80::1 dev $card"
    );
    story.set_up(&by_ipv6);
    story.networks.router.answers(BY_IPV6);
    let boot = story.boot_id();
    let office = &story.networks.office;
    let plan = story.run(office, &[BY_IPV6, "--kexec-only", "--dry-run"]).ok();
    plan.stdout_has("Jump into the rescue").stdout_has("now only step 1 is done");
    story.run(office, &[BY_IPV6, "--kexec-only"]).ok().stderr_has("is in the rescue");
    let leave = [BY_IPV6, "--phases", "reboot"];
    story.resume(office, &leave).ok().stderr_has("restarts");
    story.resume(office, &leave).misused().stderr_has("nothing was begun");
    for said in [&format!("{BY_IPV6}/128 on "), "default via fe80::1 dev "] {
        story.debian.wait_for(said, LONG);
    }
    story.is_back(&boot);

    // The kernel can be told to start no other one; from either there is no way back but a restart.
    story.set_up(&by_ipv6);
    story.networks.router.answers(BY_IPV6);
    for (script, words) in [
        ("echo integrity >/sys/kernel/security/lockdown", "is locked down (integrity)"),
        ("echo 1 >/proc/sys/kernel/kexec_load_disabled", "kernel.kexec_load_disabled"),
    ] {
        story.debian.vm().sh(script);
        let refused = story.run(&story.networks.office, &[BY_IPV6]).refused();
        refused.stderr_has(words).says_a_sentence();
    }
}
