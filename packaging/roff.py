"""Text as man(7) wants it."""

import re

SPECIAL = {"\\": r"\e", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}


def escape(text):
    text = "".join(SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.M)


def literal(text):
    """What is to be typed: its hyphens and quotes stay those of ASCII."""
    return escape(text).replace("-", r"\-").replace("'", r"\(aq")


def bold(text):
    return rf"\fB{literal(text)}\fR"


def italic(text):
    return rf"\fI{literal(text)}\fR"


def inline(text):
    """A paragraph of Markdown: `code`, **strong**, [links](...)."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    parts = re.split(r"(`[^`]*`|\*\*[^*]*\*\*)", text)
    return "".join(bold(p.strip("`*")) if i % 2 else escape(p) for i, p in enumerate(parts))


def markdown(text, heading=".SS"):
    """Paragraphs, lists and headings. An item's lines after the first are indented."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("#"):
            out.append(f"{heading} {inline(block.lstrip('# '))}")
            continue
        first, *items = re.split(r"^- ", block, flags=re.M)
        if first.strip():
            out += [".PP", inline(first)]
        for item in items:
            out += [r".IP \(bu 2", inline(item)]
    return "\n".join(out)


def item(tag, text):
    """A paragraph with a tag; text is roff."""
    return f".TP\n{tag}\n{text}"
