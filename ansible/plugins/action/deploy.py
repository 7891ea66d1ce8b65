"""Runs deploy-via-ssh on the control node, for the machine that the task is about.

Nothing runs on the machine but what deploy-via-ssh starts there, so it needs no Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.nixos_install_via.fleet.plugins.plugin_utils.ssh_args import NotTaken, translate

display = Display()

ARGUMENTS = dict(
    system=dict(type="path", required=True),
    action=dict(type="str", default="switch", choices=["switch", "boot", "test", "dry-activate", "copy"]),
    reboot=dict(type="bool", default=False),
    rollback=dict(type="bool", default=True),
    confirm_timeout=dict(type="int"),
    activation_timeout=dict(type="int"),
    force=dict(type="bool", default=False),
    substitute=dict(type="bool", default=False),
    delta=dict(type="bool", default=True),
    command=dict(type="path", default="nixos-install-via"),
    **{"from": dict(type="path")},
)

ACTIONS = {
    "switch": [],
    "boot": ["--boot"],
    "test": ["--test"],
    "dry-activate": ["--dry-activate"],
    "copy": ["--copy-only"],
}

ROLLED_BACK = 4

# A pipe as the program that inherits it can open it.
PASSWORD = "/dev/fd/%d"


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        self.inherited = []
        _validated, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        words = [args["command"], "deploy-via-ssh", "--progress", "json"]
        words += wishes(args) + self.way()
        if self._task.check_mode:
            words.append("--dry-run")
        display.vvv(" ".join(words), host=self.name())
        result.update(self.told(words))
        if self._task.diff and result.get("before"):
            result["diff"] = difference(args, result)
        if result["changed"] and not self._task.check_mode:
            # A connection that Ansible keeps may lead to a machine that has another network now.
            self._connection.reset()
        return result

    def name(self):
        return self._connection.get_option("host")

    def way(self):
        """Return the words that lead to the machine: what Ansible itself would say to ssh."""
        connection = self._connection
        if connection.ansible_name not in ("ssh", "ansible.builtin.ssh"):
            raise AnsibleActionFail(
                "a system is deployed over ssh, and this machine's connection is %s; leave out delegate_to, or set "
                "ansible_connection to ssh" % connection.ansible_name
            )
        words = []
        try:
            for option in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
                words += translate(connection.get_option(option))
        except NotTaken as error:
            raise AnsibleActionFail("%s: %s" % (option, error)) from error
        if connection.get_option("port"):
            words += ["-p", str(connection.get_option("port"))]
        if connection.get_option("private_key_file"):
            words += ["-i", connection.get_option("private_key_file")]
        # A playbook is nobody to ask. The first value of an option counts, so these come last.
        words += ["--ssh-option", "BatchMode=yes"]
        words += ["--ssh-option", "ConnectTimeout=%s" % connection.get_option("timeout")]
        become = connection.become
        if become:
            if become.name.rpartition(".")[2] != "sudo" or become.get_option("become_user") not in (None, "root"):
                raise AnsibleActionFail(
                    "only root may deploy, and deploy-via-ssh becomes root by sudo; set become_method to sudo and "
                    "become_user to root"
                )
            words.append("--sudo")
            if become.get_option("become_pass"):
                words += ["--sudo-password-file", PASSWORD % self.password(become.get_option("become_pass"))]
        user = connection.get_option("remote_user")
        return words + [("%s@%s" % (user, self.name())) if user else self.name()]

    def password(self, text):
        """Return the number of a pipe that holds a password; it stands in no file and on no command line."""
        reader, writer = os.pipe()
        with open(writer, "wb") as pipe:
            pipe.write(text.encode())
        self.inherited.append(reader)
        return reader

    def told(self, words):
        """Run the words and return what they tell, as a task's result."""
        with tempfile.TemporaryFile() as stderr:
            try:
                # Without a terminal, so that nothing asks there for a password beside other machines.
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                    pass_fds=self.inherited,
                )
            except OSError as error:
                raise AnsibleActionFail(
                    "starting %s: %s; name the program by command" % (words[0], error.strerror)
                ) from error
            finally:
                for descriptor in self.inherited:
                    os.close(descriptor)
            with process:
                events = [event for event in map(json.loads, process.stdout) if self.hears(event)]
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
        return outcome(process.returncode, events, said)

    def hears(self, event):
        """Show an event to who wants to see much, and tell whether it is worth keeping."""
        if event["event"] == "step":
            display.v("[%s/%s] %s" % (event["number"], event["of"], event["title"]), host=self.name())
        elif event["event"] == "output":
            display.vv("%s: %s" % (event["program"], event["line"]), host=self.name())
        elif event["event"] == "warning":
            display.warning("%s: %s" % (self.name(), event["text"]))
        return event["event"] != "advance"


def wishes(args):
    words = ["--system", args["system"]] + ACTIONS[args["action"]]
    for name in ("reboot", "force", "substitute"):
        words += ["--" + name] if args[name] else []
    for name in ("rollback", "delta"):
        words += [] if args[name] else ["--no-" + name]
    for name in ("confirm_timeout", "activation_timeout"):
        words += ["--" + name.replace("_", "-"), str(args[name])] if args[name] is not None else []
    return words + (["--from", args["from"]] if args["from"] else [])


def outcome(code, events, said):
    """Return a task's result for how a run has ended."""
    plan = next((event["plan"] for event in events if event["event"] == "plan"), None)
    last = next((event for event in events if event["event"] == "ended"), None)
    result = dict(rc=code, failed=code != 0, rolled_back=code == ROLLED_BACK, events=events, changed=False)
    if last is None:
        # It did not come to that: a word of the command line is wrong, or the system is.
        result["msg"] = said or "deploy-via-ssh ended with %s and said nothing" % code
        return result
    result.update(msg=last["text"], changed=last["changed"])
    result.update((key, last[key]) for key in ("system", "before", "after", "packages"))
    if plan is not None:
        steps = plan["steps"]
        result.update(plan=plan, changed=any(step["step"] != "dryActivate" for step in steps))
        result["msg"] = "; ".join(plan["notes"]) if not steps else "it would be changed"
    if code != 0 and not last["reached"]:
        # Ansible counts what says both as failed.
        result.update(unreachable=True, failed=False)
    return result


def difference(args, result):
    """Return the generations before and after as Ansible shows them with --diff."""
    before, after = result["before"], result["after"] or foreseen(args, result)
    difference = dict(
        before_header="before", after_header="after", before=generations(before), after=generations(after)
    )
    # Of what was only copied, or taken back, nobody gets to see the packages.
    if result["system"] in (after["running"], after["profile"]):
        for side in ("before", "after"):
            difference[side] += packages(result["packages"], side)
    return difference


def foreseen(args, result):
    """Return what a machine will be, if all goes well."""
    after, system = dict(result["before"]), result["system"]
    action, reboot = args["action"], args["reboot"]
    if action in ("switch", "boot") and after["profile"] != system:
        after.update(profile=system, generation=None)
    if action in ("switch", "test") or reboot:
        after["running"] = system
    if reboot:
        after["booted"] = system
    return after


def packages(changes, side):
    lines = [
        "%s %s" % (change["name"], ", ".join(change[side]))
        for change in changes or []
        if change[side]
    ]
    return "".join(line.rstrip() + "\n" for line in lines)


def generations(state):
    lines = [
        "generation %s: %s" % (state["generation"] or "to come", state["profile"]),
        "running: %s" % state["running"],
        "booted: %s" % state["booted"],
    ]
    return "\n".join(lines) + "\n"
