#!/usr/bin/env python3
"""What a run of the tests was like, by its JUnit file: report.py JUNIT STORIES

Lists what was flaky, which is to say failed and then passed, with the last words of each attempt. Writes to STORIES what each
test promises, which is its name, a line each.
"""

import sys
import xml.etree.ElementTree as ElementTree

LAST_LINES = 15


def last_words(failure):
    text = "\n".join(failure.itertext())
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-LAST_LINES:]


def main(junit, stories):
    cases = [case for suite in ElementTree.parse(junit).getroot() for case in suite.iter("testcase")]
    with open(stories, "w", encoding="utf-8") as file:
        for case in sorted(cases, key=lambda case: (case.get("classname"), case.get("name"))):
            place, _, name = case.get("name").rpartition("::")
            promise = name.replace("_", " ")
            file.write(f"{float(case.get('time')):8.1f} s  {place}: {promise}\n")

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
