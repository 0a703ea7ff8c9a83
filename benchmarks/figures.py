"""What the benchmarks have in common: how far they are, what they leave, and on what host.

A result is one JSON file, in one form for all of them, so that benchmarks/compare reads any two:

    {"benchmark": "start",
     "host": {"processor": ..., "processors": 2, "kind": ..., "kernel": ..., "load": [before, after]},
     "binaries": {"mayfly": {"version": ..., "sha256": ...}},
     "figures": {"mayfly": {"exec to API, wall ms": [1.2, 1.3, ...]}},
     "more_is_better": ["starts a second, 8 at once"]}

A figure's name ends with its unit; of what is not in "more_is_better", less is better. A benchmark
may add members of its own.
"""
import hashlib, importlib.machinery, importlib.util, json, os, re, statistics, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build", "release")


def load(name):
    """Another benchmark, of which this one takes something, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, f"{ROOT}/benchmarks/{name}")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def progress(text):
    """One line that changes on a terminal; lines of their own through a pipe. "" ends it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def first_line(path, pattern, otherwise="unknown"):
    with open(path, encoding="utf-8") as file:
        found = re.search(pattern, file.read(), re.M)
    return found[1].strip() if found else otherwise


def kind_of_host():
    """What a wall-clock figure of this host is worth."""
    flags = first_line("/proc/cpuinfo", r"^flags\s*:(.*)$", "").split()
    if not {"vmx", "svm"} & set(flags):
        return "no hardware virtualisation: KVM emulates what a guest runs in ring 0"
    if "hypervisor" in flags:
        return "a virtual machine with nested virtualisation"
    return "bare metal"


def host():
    return {"processor": first_line("/proc/cpuinfo", r"^model name\s*:(.*)$"),
            "processors": len(os.sched_getaffinity(0)), "kind": kind_of_host(),
            "kernel": os.uname().release, "load": [round(os.getloadavg()[0], 1)]}


def binary(path):
    """Which one it is, as far as it says so itself."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace",
                          stdin=subprocess.DEVNULL, check=False).stdout.splitlines() or [""]
    ours = [line for line in said if line.startswith("mayfly ")]
    return {"version": (ours or said)[0].strip(), "sha256": digest}


class Results:
    """Begun before the first run, so that the load of the host is the one that it had then."""

    def __init__(self, benchmark, binaries):
        self.data = {"benchmark": benchmark, "host": host(),
                     "binaries": {name: binary(path) for name, path in binaries.items()},
                     "figures": {}, "more_is_better": []}

    def add(self, name, figure, *values, more_is_better=False):
        self.data["figures"].setdefault(name, {}).setdefault(figure, []).extend(values)
        if more_is_better and figure not in self.data["more_is_better"]:
            self.data["more_is_better"].append(figure)

    def add_all(self, name, figures):
        for figure, value in figures.items():
            self.add(name, figure, value)

    def write(self, path, **more):
        """path: without the ending. The data that a picture is drawn of."""
        self.data["host"]["load"].append(round(os.getloadavg()[0], 1))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.json", "w", encoding="utf-8") as file:
            json.dump(self.data | more, file, indent=1)
            file.write("\n")
        return self.data | more


def read(path):
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("figures"), dict):
        raise ValueError(f"{path}: not a result of a benchmark: it has no \"figures\"")
    return data


def arguments(parser):
    """With what all that draw have."""
    parser.add_argument("--output", default=os.path.join(BUILD, "benchmarks"),
                        help="directory for the results")
    parser.add_argument("--draw", metavar="FILE", help="only draw what a file of results holds")
    return parser.parse_args()


def drawn_only(options, draw):
    """Whether it was that, and done."""
    if options.draw:
        print(*draw(read(options.draw), options.draw.removesuffix(".json")), sep="\n")
    return bool(options.draw)


def medians(data):
    """{VMM: {figure: median}}."""
    return {name: {figure: statistics.median(values) for figure, values in figures.items()}
            for name, figures in data["figures"].items()}


def table(data, reference=None, names=None):
    """Lines: the median and the best of each figure, and its ratio to the reference's."""
    names = list(data["figures"]) if names is None else names
    figures = {figure: None for name in names for figure in data["figures"][name]}
    wide = max(map(len, figures)) + 2
    lines = [f"{'median (best)':{wide}}" + "".join(f"{name:>29}" for name in names)]
    for figure in figures:
        best = max if figure in data["more_is_better"] else min
        of = {name: data["figures"][name].get(figure) for name in names}
        base = statistics.median(of[reference]) if of.get(reference) else None
        line = f"{figure:{wide}}"
        for name, values in of.items():
            cell = f"{statistics.median(values):.2f} ({best(values):.2f})" if values else "-"
            ratio = f"{statistics.median(values) / base:7.2f}" if values and base else ""
            line += f"{cell:>22}{ratio if name != reference else '':7}"
        lines.append(line)
    return lines
