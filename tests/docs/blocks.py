"""The fenced blocks of the documents, and what stands about each in a comment before it.

A block without a word behind its fence is commands, run as printed; one of ```json is parsed, one
of ```diff applied. A comment that readers don't see, on the line before the fence, says what else is
to be known:

    <!-- not run: REASON -->       it can't be run by the test
    <!-- stays: CONDITION -->      its last command stays in the foreground, in a terminal of its own;
                                   it is there when the command CONDITION succeeds
    <!-- output -->                what the block before prints, but for its numbers
    <!-- tree -->                  the repository's folders and files, each with a word about it

and, anywhere in a document, <!-- after: FILE.md#section --> says that what follows goes on from the
end of that section of that document.
"""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARKERS = {"not run": True, "stays": True, "output": False, "tree": False} # each: says more?
COMMENT = re.compile(r"<!-- (?P<kind>[a-z ]+?)(?:: (?P<text>.*?))? -->")


@dataclasses.dataclass
class Block:
    """kind: run, json, diff, or its marker's; text: of that; section: the heading's anchor."""
    document: str
    line: int
    section: str
    kind: str
    text: str
    content: str

    def __str__(self):
        return f"{self.document}:{self.line}"


def documents():
    """All of the repository's."""
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.md")]
    return sorted(str(p) for p in found if p.parts[0] not in ("build", ".cache"))


def anchor(heading):
    """The name that forges and mkdocs give to a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def marker(line, where):
    match = COMMENT.fullmatch(line.strip())
    if not match:
        return None, ""
    kind, text = match["kind"], match["text"] or ""
    if kind == "after":
        return None, ""
    assert kind in MARKERS, f"{where}: there is no marker {kind!r}"
    assert bool(text) == MARKERS[kind], f"{where}: {kind} must say more, or less"
    return kind, text


def classify(info, kind, text, where):
    """What becomes of a block, by the word behind its fence and the marker before it."""
    kinds = {"": "run", "sh": "run", "json": "json", "diff": "diff"}
    assert kind or info in kinds, f"{where}: a block of {info!r} needs a marker"
    return kind or kinds[info], text


def parse(document, text=None):
    """Blocks and, as blocks of the kind `after`, what they go on from, in order."""
    lines = (text if text is not None else (ROOT / document).read_text()).splitlines()
    found, section, number = [], "", 0
    while number < len(lines):
        line, where = lines[number], f"{document}:{number + 1}"
        fence = re.match(r" *```(\w*)$", line)
        after = re.fullmatch(r"<!-- after: (.*) -->", line.strip())
        if fence:
            kind, words = marker(lines[number - 1], where) if number else (None, "")
            ends = (n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            end = next(ends, None)
            assert end, f"{where}: the block has no end"
            kind, words = classify(fence[1], kind, words, where)
            content = "\n".join(lines[number + 1:end]) + "\n"
            found.append(Block(document, number + 1, section, kind, words, content))
            number = end
        elif after:
            found.append(Block(document, number + 1, section, "after", after[1], ""))
        elif line.startswith("#"):
            section = anchor(line.lstrip("# "))
        number += 1
    return found


def in_order(document, section=None):
    """The blocks of a document, or of one section, with those that they go on from before them."""
    for block in parse(document):
        if section not in (None, block.section):
            continue
        if block.kind == "after":
            name, _, part = block.text.partition("#")
            if name == document and section is None:
                continue # it has been read
            before = list(in_order(name, part))
            assert before, f"{block}: {block.text} has no block"
            yield from before
        else:
            yield block
