#!/usr/bin/env python3
"""What a run of the tests was like, by its JUnit file: report.py JUNIT STORIES

Lists what was flaky, which is to say failed and then passed, with the last words of each attempt. Writes to STORIES what each
test promises, which is its name, a line each.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

REASON_LINES = 6
LAST_LINES = 10
BACKTRACE = re.compile(r"stack backtrace:|\s*\d+: |\s+at |note: ")


def lines(text):
    kept = (line.rstrip() for line in (text or "").splitlines())
    return [line for line in kept if line and not BACKTRACE.match(line)]


def last_words(failure):
    reason = lines(failure.text)[:REASON_LINES]
    said = [line for line in lines(failure.findtext("system-err")) if line not in reason]
    return reason + said[-LAST_LINES:]


def promise(case):
    place, _, name = case.get("name").rpartition("::")
    return f"{float(case.get('time')):8.1f} s  {place}: {name.replace('_', ' ')}"


def main(junit, stories):
    cases = [case for suite in ElementTree.parse(junit).getroot() for case in suite.iter("testcase")]
    cases.sort(key=lambda case: (case.get("classname"), case.get("name")))
    with open(stories, "w", encoding="utf-8") as file:
        file.writelines(promise(case) + "\n" for case in cases)

    flaky = [(case, case.findall("flakyFailure") + case.findall("flakyError")) for case in cases]
    flaky = [(case, failures) for case, failures in flaky if failures]
    print(f"flaky: {len(flaky) or 'none'} of {len(cases)} tests; what each promises: {stories}")
    for case, failures in flaky:
        print(f"\n{case.get('name')} passed at attempt {len(failures) + 1}")
        for attempt, failure in enumerate(failures, 1):
            print(f"  attempt {attempt}:")
            for line in last_words(failure):
                print(f"    {line}")


if __name__ == "__main__":
    main(*sys.argv[1:])
