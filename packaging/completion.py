"""Completion for bash and zsh, of the tables of options."""

import re

from help_text import choices, takes_file

ALSO = {"mayfly": "firecracker", "mayfly-jailer": "jailer"}  # the names that drop-ins have


def names(help_):
    return [help_.name, *([ALSO[help_.name]] if help_.name in ALSO else [])]


def function(name):
    return "_" + re.sub(r"[^a-z]", "_", name)


def bash_cases(options):
    """Branches for the word before, whose value is completed; the last one completes options."""
    by_action = {}
    for option in options:
        if option.value:
            words = " ".join(choices(option))
            action = f'compgen -W "{words}"' if words else "compgen -f" if takes_file(option) else ":"
            by_action.setdefault(action, []).append(option.name)
    lines = [f'    {" | ".join(found)}) action=({action}) ;;' for action, found in by_action.items()]
    everything = " ".join(option.name for option in options)
    return [*lines, f'    *) action=(compgen -W "{everything}") ;;']


def by_group(help_):
    """{the first word of a sub-command: those that follow it}."""
    found = {}
    for command in help_.commands:
        group, name = command.split()[:2]
        found.setdefault(group, []).append(name)
    return found


def bash_choice(help_):
    """How a program's options are found: by its sub-commands, if it has some."""
    if "" in help_.commands:
        return ['case $before in', *bash_cases(help_.commands[""].options), "    esac"]
    groups = by_group(help_)
    lines = ['case "$COMP_CWORD ${COMP_WORDS[1]}" in',
             f'    "1 "*) action=(compgen -W "{" ".join(groups)} --help --version") ;;']
    lines += [f'    "2 {group}") action=(compgen -W "{" ".join(commands)}") ;;'
              for group, commands in groups.items()]
    lines += ["    *)", '        case ${COMP_WORDS[*]:1:2} in']
    for command, (_, options) in help_.commands.items():
        lines.append(f'        "{command}")')
        lines += ['            case $before in', *(" " * 8 + line for line in bash_cases(options)),
                  "            esac", "            ;;"]
    return [*lines, "        esac", "        ;;", "    esac"]


def bash(helps):
    out = ["# Completion for bash, made of the options' tables: packaging/completion.py", ""]
    for help_ in helps:
        first, *rest = bash_choice(help_)
        out += [f"{function(help_.name)}() {{", "    local word=$2 before=$3 action=(:) at"]
        if help_.name == "mayfly-jailer":  # hands on what follows --
            out += ['    for ((at = 1; at < COMP_CWORD; at++)); do',
                    '        [ "${COMP_WORDS[at]}" != -- ] || { _mayfly "$@"; return; }', "    done"]
        out += [f"    {first}", *rest,
                '    mapfile -t COMPREPLY < <("${action[@]}" -- "$word")', "}",
                f"complete -o filenames -F {function(help_.name)} {' '.join(names(help_))}", ""]
    return "\n".join(out)


def zsh_spec(option):
    def quote(text):
        return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", r"'\''")
    spec = f"{option.name}[{quote(option.help)}]"
    if option.value:
        words = " ".join(choices(option))
        action = f"({words})" if words else "_files" if takes_file(option) else " "
        spec += f":{quote(option.value)}:{action}"
    return f"'*{spec}'" if "repeat" in option.help else f"'{spec}'"


def zsh_arguments(options, indent):
    return [indent + "_arguments -S \\",
            *(f"{indent}    {zsh_spec(option)} \\" for option in options[:-1]),
            f"{indent}    {zsh_spec(options[-1])}"]


def zsh_commands(help_):
    out = ["    case $CURRENT in"]
    groups = by_group(help_)
    out.append(f"    2) compadd -- {' '.join(groups)} --help --version ;;")
    out += ["    3)", "        case $words[2] in"]
    out += [f"        {group}) compadd -- {' '.join(commands)} ;;"
            for group, commands in groups.items()]
    out += ["        esac", "        ;;", "    *)", '        case "$words[2] $words[3]" in']
    for command, (_, options) in help_.commands.items():
        out += [f"        '{command}')", "            shift 2 words", "            ((CURRENT -= 2))",
                *zsh_arguments(options, " " * 12), "            ;;"]
    return [*out, "        esac", "        ;;", "    esac"]


def zsh(helps):
    out = ["#compdef " + " ".join(name for help_ in helps for name in names(help_)),
           "# Completion for zsh, made of the options' tables: packaging/completion.py", ""]
    for help_ in helps:
        out.append(f"{function(help_.name)}_words() {{")
        if help_.name == "mayfly-jailer":  # hands on what follows --
            out += ["    local at=${words[(i)--]}", "    if ((at < CURRENT)); then",
                    '        words=(mayfly "${(@)words[at + 1,-1]}")', "        ((CURRENT -= at - 1))",
                    "        _mayfly_words", "        return", "    fi"]
        out += zsh_arguments(help_.commands[""].options, "    ") if "" in help_.commands \
            else zsh_commands(help_)
        out += ["}", ""]
    out.append("case $service in")
    out += [f"{'|'.join(names(help_))}) {function(help_.name)}_words ;;" for help_ in helps]
    return "\n".join([*out, "esac", ""])
