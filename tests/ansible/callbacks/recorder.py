"""Writes what came of each task on each machine as a line of JSON into the file that RECORD names."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: notification
short_description: A line of JSON for each result
description: For tests, which read what a playbook says to people as little as they can.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorder"

    def record(self, how, result):
        line = dict(host=result._host.get_name(), how=how, result=result._result)
        with open(os.environ["RECORD"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        self.record("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.record("failed", result)

    def v2_runner_on_unreachable(self, result):
        self.record("unreachable", result)
