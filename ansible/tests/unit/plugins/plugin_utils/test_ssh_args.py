"""Run by `python3 -m unittest`, with plugins/plugin_utils in PYTHONPATH."""

import unittest

from ssh_args import NotTaken, translate


class Translating(unittest.TestCase):
    def test_what_ssh_takes_is_said_in_words_of_deploy_via_ssh(self):
        for text, words in [
            (None, []),
            ("", []),
            # What Ansible says where nobody says anything.
            ("-C -o ControlMaster=auto -o ControlPersist=60s", []),
            ("-oControlPath=/tmp/x -o 'controlpersist 60s'", []),
            ("-o ConnectTimeout=5", ["--ssh-option", "ConnectTimeout=5"]),
            ("-oConnectTimeout=5", ["--ssh-option", "ConnectTimeout=5"]),
            (
                "-o ProxyCommand=\"ssh -W %h:%p -q gate\"",
                ["--ssh-option", "ProxyCommand=ssh -W %h:%p -q gate"],
            ),
            ("-J gate -vvv", ["-J", "gate"]),
            ("-F conf -i key -p 2222", ["-F", "conf", "-i", "key", "-p", "2222"]),
            ("-l deployer -4", ["--ssh-option", "User=deployer", "--ssh-option", "AddressFamily=inet"]),
        ]:
            with self.subTest(text=text):
                self.assertEqual(translate(text), words)

    def test_what_it_has_no_word_for_is_named(self):
        for text, named in [("-S path", "-S"), ("-o", "-o"), ("web1", "web1"), ("-Cq", "-Cq")]:
            with self.subTest(text=text):
                with self.assertRaisesRegex(NotTaken, named):
                    translate(text)


if __name__ == "__main__":
    unittest.main()
