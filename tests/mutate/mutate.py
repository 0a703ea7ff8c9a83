#!/usr/bin/python3
"""Changes one line of the product at a time and says which changes no unit test notices.

Each mutant is built in a copy of the tree, and so are the tests that link its file, which run until
one fails: first as the compiler makes them, then, where none has, with the sanitizers. A mutant
whose object is the original's, or another mutant's, to the byte is none; one that is known to be
equivalent stands in tests/mutate/equivalent with the reason. What runs has a process, mount, IPC
and network namespace of its own, as a mutant may call anything. A survivor is printed with the line
before and after: a test is missing, or the reason in tests/mutate/equivalent. Exit code 1 when
there are any.
"""

import argparse
import collections
import hashlib
import os
import pathlib
import queue
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIES = ROOT / "build" / "mutate"
EQUIVALENT = ROOT / "tests" / "mutate" / "equivalent"
BUILDS = {"plain": ["-DCMAKE_C_FLAGS=-O2 -w"],
          "sanitize": ["-DCMAKE_C_FLAGS=-O1 -g1 -w", "-DMAYFLY_SANITIZE=ON"]}
# Of shared memory, too: its names have the process's number in them, the same in each namespace. The
# shell stays, as the first process: Criterion does not know what to do with others' orphans.
APART = ["unshare", *["--map-root-user"] * (os.geteuid() != 0), "--pid", "--fork", "--kill-child",
         "--mount-proc", "--ipc", "--net", "sh", "-c",
         "mount -t tmpfs none /dev/shm && rm -rf tmp && mkdir tmp && mount --bind tmp /tmp && "
         '"$@"; exit $?', "sh"]
SECONDS = 120 # of a test: what takes longer hangs
PROCESSOR_SECONDS = 20
LEAK = b"SUMMARY: AddressSanitizer" # of a worker of Criterion's, which does not make it a failure

# What is put for what. Operators stand between spaces: clang-format sees to it. That -1 is another
# negative number is seen by nobody who keeps to our rules; nor is where between -1 and 3 a
# descriptor begins to be one.
SWAPS = [(r" < ", [" <= "]), (r" <= ", [" < "]), (r" > ", [" >= "]), (r" >= ", [" > "]),
         (r" == ", [" != "]), (r" != ", [" == "]), (r" && ", [" || "]), (r" \|\| ", [" && "]),
         (r" \+ ", [" - "]), (r" - ", [" + "]), (r" \* ", [" / "]), (r" / ", [" * "]),
         (r" % ", [" / "]), (r" \+= ", [" -= ", " = "]), (r" -= ", [" += "]), (r" \| ", [" & "]),
         (r" & ", [" | "]), (r" \|= ", [" &= ", " = "]), (r" &= ", [" |= ", " = "]),
         (r" << ", [" >> "]), (r" >> ", [" << "]), (r"\+\+", ["--"]), (r"--", ["++"]),
         (r"!(?=[\w(])", [""]), (r"~(?=[\w(])", [""]), (r"\btrue\b", ["false"]),
         (r"\bfalse\b", ["true"]), (r"\bif \((?=.*\)( \{)?$)", ["if (0 && ", "if (1 || "]),
         (r"\bcontinue;", ["break;"]), (r"\bbreak;", [";"]), (r"\breturn -1;", ["return 0;"])]
NUMBER = re.compile(r"(?<![\w.-])(0x[0-9a-fA-F]+|\d+)(?=[uUlL]*\b)(?!\.)")
STATEMENT = re.compile(r"^( +)([a-z_]\w*(\(|->|\.|\[| [-+|&^]?= |\+\+|--).*|\*.* = .*);$")
QUIET = re.compile(r'\bBUG_ON\(.*|\b\w*fd (<|>=) 0\b|"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'|//.*|/\*.*?\*/|/\*.*$|^\s*#\s*include.*')

Mutant = collections.namedtuple("Mutant", "file line before after")


def blanked(text):
    """The lines, with spaces for what is a comment, a text, or a check of what can't be."""
    inside = False
    for line in text.splitlines():
        if inside:
            end = line.find("*/")
            inside, skip = end < 0, len(line) if end < 0 else end + 2
            line = " " * skip + line[skip:]
        code = QUIET.sub(lambda m: " " * len(m.group()), line)
        inside = inside or (line.rfind("/*") > line.rfind("*/") and "/*" not in code)
        yield code


def changes(line, code):
    """All that becomes of a line; `code` is its text that may be changed."""
    for pattern, others in SWAPS:
        for match in re.finditer(pattern, code):
            for other in others:
                closing = line
                if other.startswith("if ("): # the condition is all to the line's last bracket
                    end = code.rindex(")")
                    closing = line[:end] + ")" + line[end:]
                    other += "("
                yield closing[:match.start()] + other + closing[match.end():]
    for match in NUMBER.finditer(code):
        text = match.group()
        value = int(text, 8 if text[0] == "0" and text.isdigit() else 0)
        for other in {value + 1, value - 1} if value else {1}:
            yield line[:match.start()] + str(other) + line[match.end():]
    match = STATEMENT.match(code)
    if match:
        yield match.group(1) + ";"


def mutants_of(file, first=1, last=10 ** 9):
    lines = (ROOT / file).read_text().splitlines()
    for i, code in enumerate(blanked((ROOT / file).read_text())):
        if first <= i + 1 <= last:
            for after in dict.fromkeys(changes(lines[i], code)):
                if after != lines[i]:
                    yield Mutant(file, i + 1, lines[i], after)


def read_equivalent():
    """{(file, before, after)}, without the lines' indentation."""
    known, file, before = set(), None, None
    for line in EQUIVALENT.read_text().splitlines():
        if line[:2] == "- ":
            before = line[2:]
        elif line[:2] == "+ ":
            known.add((file, before, line[2:]))
        elif line and not line.startswith((" ", "#")):
            file = line
    return known


def is_known(mutant, known):
    return (mutant.file, mutant.before.strip(), mutant.after.strip()) in known


def limit():
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Copy:
    """Of the tree, with a build of each kind. Files that are as they were stay untouched, so that
    only what has changed since the last run is built."""

    def __init__(self, number):
        self.path = COPIES / str(number)
        self.objects, self.tests = {}, {} # of each file: what it is compiled to, and what links it

    def run(self, *command, **more):
        return subprocess.run(command, cwd=self.path, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)

    def must(self, *command):
        done = self.run(*command)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout.decode()[-4000:]}")
        return done.stdout.decode()

    def sync(self):
        listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT,
                                check=True, stdout=subprocess.PIPE, text=True).stdout
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, self.path / name
            if source.is_file() and not (target.is_file() and
                                         target.read_bytes() == source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode)

    def configure(self):
        """What is needed of the builds is built when it is needed."""
        self.sync()
        for kind, flags in BUILDS.items():
            self.must("cmake", "-G", "Ninja", "-B", kind, "-DCMAKE_BUILD_TYPE=None",
                      "-DCMAKE_C_COMPILER=gcc", *flags)

    def find_tests(self):
        """Which of them link a file's object, by the names of functions: no two files share one."""
        def names(*args):
            found = self.must("nm", "--defined-only", *args)
            return {line.split()[2] for line in found.splitlines()
                    if len(line.split()) == 3 and line.split()[1] in "tT"}
        tests = [path.stem for path in sorted((ROOT / "tests/unit").rglob("*_test.c"))]
        self.must("ninja", "-C", "plain", *(f"tests/{test}" for test in tests))
        linked = {test: names(self.path / "plain/tests" / test) for test in tests}
        for line in self.must("ninja", "-C", "plain", "-t", "targets", "all").splitlines():
            match = re.match(
                r"(CMakeFiles/[\w-]+\.dir/((?:vmm|virtio|mmds|api|jailer)/.*\.c)\.o):", line)
            if match:
                target, file = match.groups()
                self.objects[file], stem = target, pathlib.Path(file).stem
                if stem == "main": # in no test
                    self.tests[file] = []
                    continue
                own = names(self.path / "plain" / target)
                self.tests[file] = sorted((t for t in linked if own & linked[t]),
                                          key=lambda t: (not t.startswith(stem), t))

    def object_of(self, file):
        """A hash, or None where it does not compile."""
        if self.run("ninja", "-C", "plain", self.objects[file]).returncode:
            return None
        return hashlib.sha256((self.path / "plain" / self.objects[file]).read_bytes()).digest()

    def passes(self, kind, test):
        if self.run("ninja", "-C", kind, f"tests/{test}").returncode:
            return False
        return self.ends_well([f"{kind}/tests/{test}"], SECONDS, limit,
                              LSAN_OPTIONS=f"suppressions={ROOT}/tests/leaks.supp")

    def ends_well(self, command, seconds, before_exec=None, **environment):
        process = subprocess.Popen([*APART, *command], cwd=self.path, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True, preexec_fn=before_exec,
                                   env={**os.environ, **environment})
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) # and with its first process the namespace
            process.communicate()
            return False
        return process.returncode == 0 and LEAK not in text

    def survives_integration(self, arguments):
        """The tests of the real binary, those that `arguments` of pytest select."""
        if self.run("cmake", "--build", "plain").returncode:
            return False
        return self.ends_well([sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider",
                               *arguments.split()], 20 * SECONDS,
                              MAYFLY=str(self.path / "plain/mayfly"))


class Run:
    def __init__(self, options):
        self.options, self.known = options, read_equivalent()
        self.lock, self.mutants = threading.Lock(), queue.SimpleQueue()
        self.seen = collections.defaultdict(set) # the objects of a file
        self.killers = collections.defaultdict(list) # a file's tests, by their last success
        self.counts = collections.defaultdict(collections.Counter)
        self.finders = collections.Counter()
        self.survivors, self.deadline = [], None

    def verdict(self, copy, mutant):
        if is_known(mutant, self.known):
            return "equivalent"
        new = copy.object_of(mutant.file)
        if new is None:
            return "invalid"
        with self.lock:
            if new in self.seen[mutant.file]:
                return "same"
            self.seen[mutant.file].add(new)
            tests = list(self.killers[mutant.file])
        for kind in BUILDS:
            for test in tests:
                if not copy.passes(kind, test):
                    with self.lock:
                        order = self.killers[mutant.file]
                        order.insert(0, order.pop(order.index(test)))
                        self.finders[test] += 1
                    return "caught"
        if self.options.integration and not copy.survives_integration(self.options.integration):
            return "caught"
        return "survived"

    def work(self, copy):
        while time.monotonic() < self.deadline:
            try:
                mutant = self.mutants.get_nowait()
            except queue.Empty:
                return
            path = copy.path / mutant.file
            text = path.read_bytes()
            lines = text.decode().splitlines(keepends=True)
            lines[mutant.line - 1] = mutant.after + "\n"
            try:
                path.write_text("".join(lines))
                found = self.verdict(copy, mutant)
            finally:
                path.write_bytes(text)
            with self.lock:
                self.counts[mutant.file][found] += 1
                if found == "survived":
                    self.survivors.append(mutant)
                    print(f"{mutant.file}:{mutant.line}\n- {mutant.before.strip()}\n"
                          f"+ {mutant.after.strip()}", flush=True)

    def prepare(self, mutants):
        copies = [Copy(i) for i in range(self.options.jobs)]
        for copy in copies:
            copy.configure()
        first = copies[0]
        first.find_tests()
        for copy in copies:
            copy.objects = first.objects
        for file in sorted({m.file for m in mutants}):
            self.seen[file].add(first.object_of(file))
            self.killers[file] = first.tests[file]
        for test in sorted({test for tests in self.killers.values() for test in tests}):
            if not all(first.passes(kind, test) for kind in BUILDS):
                sys.exit(f"mutate: {test} fails without a mutant")
        return copies

    def run(self, mutants):
        copies = self.prepare(mutants)
        for mutant in mutants:
            self.mutants.put(mutant)
        self.deadline = time.monotonic() + self.options.seconds
        threads = [threading.Thread(target=self.work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def report(self):
        rows = [*sorted(self.counts.items()),
                ("all", sum(self.counts.values(), collections.Counter()))]
        for file, counts in rows:
            judged = counts["caught"] + counts["survived"]
            share = f" ({100 * counts['caught'] / judged:.1f} %)" if judged else ""
            print(f"{file}: {counts['caught']} of {judged} caught{share}; besides "
                  f"{counts['equivalent']} known as equivalent, {counts['same']} the same code, "
                  f"{counts['invalid']} no C")
        print("found by", ", ".join(f"{t} ({n})" for t, n in self.finders.most_common()))
        if self.mutants.qsize():
            print(f"{self.mutants.qsize()} were not tried in {self.options.seconds:.0f} s")
        return 1 if self.survivors else 0


def chosen(arguments):
    """The mutants of FILE, FILE:LINE and FILE:FIRST-LAST, or of all files."""
    if not arguments:
        arguments = [str(p.relative_to(ROOT)) for d in ("vmm", "virtio", "mmds", "api", "jailer")
                     for p in sorted((ROOT / d).rglob("*.c"))]
    for argument in arguments:
        file, _, lines = argument.partition(":")
        if not (ROOT / file).is_file():
            sys.exit(f"mutate: there is no {file}")
        first, _, last = lines.partition("-")
        yield from mutants_of(file, int(first or 1), int(last or first or 10 ** 9))


def main():
    parser = argparse.ArgumentParser(prog="./devtool mutate")
    parser.add_argument("files", nargs="*", metavar="FILE[:LINE[-LINE]]",
                        help="whose lines are changed (all of the product)")
    parser.add_argument("--seconds", type=float, default=600,
                        help="no mutant begins later (600); builds are not counted")
    parser.add_argument("--sample", type=int, help="so many, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw and of the order (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="at once, each in a copy of the tree")
    parser.add_argument("--integration", metavar="ARGUMENTS",
                        help="of pytest, to which go those that no unit test notices, for example "
                        "'tests/integration/test_api.py -k drives'")
    options = parser.parse_args()
    mutants = list(chosen(options.files))
    random.Random(options.seed).shuffle(mutants)
    run = Run(options)
    run.run(mutants[:options.sample])
    return run.report()


if __name__ == "__main__":
    sys.exit(main())
