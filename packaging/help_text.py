"""What a program's --help says, which is printed from its table of options."""

import collections
import re
import subprocess

# sub-command, or "": Command(what it does, its options)
Command = collections.namedtuple("Command", "text options")
Option = collections.namedtuple("Option", "name value help")
Help = collections.namedtuple("Help", "name usage commands end")

# Two blanks end what is before the help, as argparse and options_print() have it.
OPTION = re.compile(r"  (?:-h, )?(--[a-z-]+)(?: (\S+))?(?: {2,}(.*))?")


def read_paragraph(lines):
    """(its text, its options); a line that is indented further goes on with an option's help."""
    text, options = [], []
    for line in lines:
        if match := OPTION.fullmatch(line):
            options.append(Option(match[1], match[2], match[3] or ""))
        elif options and line.startswith(" " * 10):
            last = options[-1]
            options[-1] = last._replace(help=f"{last.help} {line.strip()}".strip())
        else:
            text.append(line)
    return text, options


def read(path):
    name = path.rsplit("/", 1)[-1]
    text = subprocess.run([path, "--help"], check=True, capture_output=True, text=True).stdout
    usage, commands, end = [], {}, ""
    for paragraph in text.rstrip("\n").split("\n\n"):
        words, options = read_paragraph(paragraph.splitlines())
        if options:
            match = re.fullmatch(rf"{name} (.*): (.*)", words[0]) if words else None
            command = match[1] if match else ""
            commands[command] = Command(match[2] if match else "", options)
            if command:
                usage.append(" ".join([name, command, *(f"{o.name} {o.value}" for o in options)]))
        elif words[0].startswith("usage: "):
            usage += [re.sub(r"^usage: ", "", line.strip()) for line in words]
        elif commands:
            end = " ".join(words)
    assert commands, f"{path} --help lists no options"
    return Help(name, usage, commands, end)


def choices(option):
    """The values that an option may have, where its table lists them: text|json."""
    return option.value.split("|") if "|" in (option.value or "") else []


def takes_file(option):
    return "PATH" in (option.value or "")
