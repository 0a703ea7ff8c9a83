"""The links of the documents to files and sections of the repository."""

import os
import re

from blocks import ROOT, anchor

LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def without_blocks(document):
    return re.sub(r"^ *```.*?^ *```$", "", (ROOT / document).read_text(), flags=re.M | re.S)


def prose(document):
    """Without blocks and code, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`",
                  without_blocks(document))


def links(document):
    """Each as (the link, the path it leads to in the repository, the section or '')."""
    for target in LINK.findall(prose(document)):
        if not re.match(r"[a-z]+:", target):
            path, _, section = target.partition("#")
            place = os.path.join(os.path.dirname(document), path) if path else document
            yield target, os.path.normpath(place), section


def anchors(document):
    """What a heading is called; the second of a name has a number."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", without_blocks(document), re.M):
        name, count = anchor(heading), 0
        while (name if not count else f"{name}-{count}") in found:
            count += 1
        found.append(name if not count else f"{name}-{count}")
    return found
