"""What the action plugin of the same name does on the control node, as ansible-doc shows it."""

DOCUMENTATION = r"""
module: deploy
short_description: Make a running NixOS machine run another system
description:
  - Sends what the machine lacks of a NixOS system, activates it and reaches the machine anew. A machine that cannot be
    reached then, or on which the system fails, goes back to what it ran before, by itself.
  - It runs C(deploy-via-ssh) on the control node, with the way to the machine that Ansible itself would take. The machine
    needs no Python, so set C(gather_facts) to false for a play that does nothing else.
  - Keys or an agent open the connection; a password for ssh is not passed on, one for sudo is. Host keys are always
    checked, also where C(host_key_checking) is switched off.
options:
  system:
    description: The system, a toplevel store path or a link to one, on the control node.
    type: path
    required: true
  action:
    description:
      - V(switch) runs the system now and from the next boot on, V(boot) from the next boot on, V(test) until the next boot.
      - V(dry-activate) copies it and tells what running it would change, V(copy) only copies it.
    type: str
    choices: [switch, boot, test, dry-activate, copy]
    default: switch
  reboot:
    description: Restart the machine into the system, and look what it runs then.
    type: bool
    default: false
  rollback:
    description: Whether the machine goes back by itself.
    type: bool
    default: true
  confirm_timeout:
    description: How many seconds a machine waits to be reached anew before it goes back. 60 if it is not given.
    type: int
  activation_timeout:
    description: How many seconds the activation may take. 600 if it is not given.
    type: int
  force:
    description: Deploy also the system of another host, or for another processor.
    type: bool
    default: false
  substitute:
    description: Let the machine first take what its own binary caches have.
    type: bool
    default: false
  delta:
    description: Whether to send only what differs from older store paths.
    type: bool
    default: true
  command:
    description: The program C(nixos-install-via) on the control node.
    type: path
    default: nixos-install-via
  from:
    description: Root whose store and database the system is read from. V(/) if it is not given.
    type: path
attributes:
  check_mode:
    description: A dry run. The machine is looked at and not changed.
    support: full
  diff_mode:
    description: The generation, the running and the booted system before and after, and the packages that differ.
    support: full
author:
  - The authors of nixos-install-via
"""

EXAMPLES = r"""
- name: Every machine gets its own system
  hosts: all
  gather_facts: false
  serial: 2
  tasks:
    - name: Deploy
      nixos_install_via.fleet.deploy:
        system: "{{ systems[inventory_hostname] }}"

- name: A new kernel, and a restart into it
  nixos_install_via.fleet.deploy:
    system: ./result
    action: boot
    reboot: true
"""

RETURN = r"""
rc:
  description: What deploy-via-ssh ended with. 0 deployed, 1 failed, 2 wrong usage, 3 refused, 4 rolled back, 5 unknown.
  type: int
  returned: always
msg:
  description: What came of it, in a sentence.
  type: str
  returned: always
rolled_back:
  description: Whether the machine has gone back to what it ran before.
  type: bool
  returned: always
events:
  description: What happened, as C(--progress json) tells it, without the bytes on their way.
  type: list
  elements: dict
  returned: always
system:
  description: The store path of the system.
  type: str
  returned: when it came to a connection
before:
  description: What the machine was, C(running), C(booted), C(generation), C(profile), C(inStore) and C(bootId).
  type: dict
  returned: when it came to a connection; null if nobody could look
after:
  description: The same, afterwards.
  type: dict
  returned: when it came to a connection; null in check mode, and if nobody could look
packages:
  description: How the system differs from the one that ran before, as C(name) and the versions C(before) and C(after).
  type: list
  elements: dict
  returned: when it came to a connection; null if the control node does not have the system that ran before
plan:
  description: What would be done.
  type: dict
  returned: in check mode
"""
