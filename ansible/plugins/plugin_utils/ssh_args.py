"""What Ansible's connection variables say about ssh, as arguments of deploy-via-ssh.

Decides only: strings in, words out.
"""

from __future__ import annotations

import shlex

# Flags of ssh that take a value and mean the same to deploy-via-ssh.
TAKEN = {"-o": "--ssh-option", "-i": "-i", "-J": "-J", "-F": "-F", "-p": "-p"}

# Flags of ssh that are an option of its configuration.
OPTIONS = {
    "-4": "AddressFamily=inet",
    "-6": "AddressFamily=inet6",
    "-A": "ForwardAgent=yes",
    "-a": "ForwardAgent=no",
}

# What is sent is compressed already, and how much ssh says is not the playbook's business.
DROPPED = {"-C", "-q", "-v", "-vv", "-vvv", "-T", "-x"}

# A deployment is confirmed by a connection of its own, so none may be shared.
OWN_CONNECTION = ("controlmaster", "controlpath", "controlpersist")


class NotTaken(Exception):
    """An argument that deploy-via-ssh has no word for."""


def translate(text):
    """Return the arguments of deploy-via-ssh for what ssh_args and its kin hold."""
    words = iter(shlex.split(text or ""))
    result = []
    for word in words:
        flag, value = word[:2], word[2:]
        if word in DROPPED:
            continue
        if word in OPTIONS:
            result += ["--ssh-option", OPTIONS[word]]
        elif flag == "-l" or flag in TAKEN:
            value = value or next(words, None)
            if value is None:
                raise NotTaken("%s of ssh wants a value" % flag)
            if flag == "-l":
                flag, value = "-o", "User=" + value
            if not (flag == "-o" and keyword(value) in OWN_CONNECTION):
                result += [TAKEN[flag], value]
        else:
            raise NotTaken(
                "deploy-via-ssh has no word for %s in ssh's arguments; write it as -o KEYWORD=VALUE" % word
            )
    return result


def keyword(option):
    """Return the keyword of a line of ssh_config, in lower case."""
    return option.replace("=", " ").split(None, 1)[0].lower() if option.strip(" =") else ""
