"""What the benchmarks have in common: results, how they are compared and drawn, and what is said
meanwhile. No figure is asserted here."""

import importlib.machinery
import importlib.util
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import xml.dom.minidom

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
RECORDED = sorted(RESULTS.glob("*.json"))
sys.path.insert(0, str(BENCHMARKS))
import figures  # noqa: E402
import pictures  # noqa: E402


def script(name):
    loader = importlib.machinery.SourceFileLoader(f"benchmark_{name}", str(BENCHMARKS / name))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


compare = script("compare")


def run_compare(*arguments):
    return subprocess.run([BENCHMARKS / "compare", *map(str, arguments)], capture_output=True,
                          text=True, check=False)


def verdicts(text):
    """{figure: verdict} of compare's table."""
    return {line.split("  ")[0]: line.split("  ")[-1]
            for line in text.partition("medians")[2].splitlines()[1:]}


def write_result(path, more_is_better=(), **of):
    path.write_text(json.dumps({"benchmark": "made-up", "host": {"kind": "none"}, "binaries": {},
                                "figures": of, "more_is_better": list(more_is_better)}))
    return path


def noisy(seed, runs=20, middle=10.0):
    return [random.Random(seed * 1000 + i).lognormvariate(0, 0.05) * middle for i in range(runs)]


# The bounds of a ratio


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (3, 2), (4, 4), (6, 3)])
def test_the_distribution_of_ranks_is_that_of_all_orders(n, m):
    counts = [0] * (n * m + 1)
    for places in itertools.combinations(range(n + m), n):
        counts[sum(place - i for i, place in enumerate(places))] += 1
    assert compare.orderings(n, m) == counts


def test_bounds_hold_as_often_as_they_say():
    """Of 400 pairs of the same distribution at 90 %, 40 may miss; a broken bound misses far more,
    or, if it is too wide, none."""
    missed = 0
    for seed in range(400):
        _, (low, high) = compare.compare(noisy(seed, 8), noisy(seed + 5000, 8), 0.9)
        missed += not low <= 1 <= high
    assert 15 <= missed <= 65


def test_the_bounds_of_many_runs_go_on_from_those_of_few():
    exact, normal = compare.left_out(50, 50, 0.01), compare.left_out(50, 51, 0.01)
    assert abs(normal * 50 * 50 / (50 * 51) - exact) < 20


def test_too_few_runs_have_no_bounds():
    assert compare.compare([1, 1, 1, 1], [2, 2, 2, 2])[1] is None
    assert compare.compare([1] * 5, [2] * 5) == (2, (2, 2))


# The verdict


def test_two_of_the_same_show_no_difference(tmp_path):
    a = write_result(tmp_path / "a.json", mayfly={"t, ms": noisy(1), "u, ms": [5.0] * 5})
    b = write_result(tmp_path / "b.json", mayfly={"t, ms": noisy(2), "u, ms": [5.0] * 5})
    done = run_compare(a, b)
    assert done.returncode == 0, done.stderr
    found = verdicts(done.stdout)
    assert found["t, ms"].startswith("no difference seen; at most ")
    assert found["u, ms"] == "no difference"


def test_a_shift_is_said_on_its_side(tmp_path):
    a = write_result(tmp_path / "a.json", ["rate"], mayfly={"t, ms": noisy(1), "rate": noisy(3)})
    b = write_result(tmp_path / "b.json", ["rate"], mayfly={
        "t, ms": noisy(2, middle=11.5), "rate": noisy(4, middle=11.5)})
    assert verdicts(run_compare(a, b).stdout) == {"t, ms": "B is worse", "rate": "B is better"}
    assert verdicts(run_compare(b, a).stdout) == {"t, ms": "B is better", "rate": "B is worse"}


def test_a_shift_within_the_margin_is_none(tmp_path):
    a = write_result(tmp_path / "a.json", mayfly={"n": [100.0] * 6})
    b = write_result(tmp_path / "b.json", mayfly={"n": [100.5] * 6})
    assert verdicts(run_compare(a, b).stdout) == {"n": "no difference"}
    assert verdicts(run_compare("--margin", "0.1", a, b).stdout) == {"n": "B is worse"}


def test_what_can_t_be_divided_is_said(tmp_path):
    a = write_result(tmp_path / "a.json", mayfly={"n": [0] * 6, "m": [0] * 6, "few": [1.0]})
    b = write_result(tmp_path / "b.json", mayfly={"n": [1] * 6, "m": [0] * 6, "few": [2.0]})
    assert verdicts(run_compare(a, b).stdout) == {
        "n": "no ratio: some are 0", "m": "no difference", "few": "too few runs"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_a_recorded_result_does_not_differ_from_itself(path):
    done = run_compare(path, path)
    assert done.returncode == 0, done.stderr
    found = verdicts(done.stdout)
    assert found
    for figure, verdict in found.items():
        assert verdict.startswith(("no difference", "too few runs")), figure


def test_recorded_vmms_are_told_apart():
    done = run_compare(f"{RESULTS}/boot.json:mayfly", f"{RESULTS}/boot.json:firecracker")
    assert verdicts(done.stdout)["exec to ready, 10^6 instructions"] == "B is worse"
    assert "A: mayfly" in done.stdout and "B: firecracker" in done.stdout


@pytest.mark.parametrize("text, said", [
    (None, "No such file"), ("{", "a.json"), ("[]", 'no "figures"'), ('{"figures": 1}', 'no "figures"'),
    ('{"benchmark": "b", "figures": {"other": {}}}', "no mayfly; it has other"),
    ('{"benchmark": "b", "figures": {"mayfly": {"x": [1]}}}', "is of b, "),
])
def test_what_is_no_result_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    good = write_result(tmp_path / "good.json", mayfly={"t": [1.0]})
    done = run_compare(f"{tmp_path}/a.json:mayfly", good)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_files_without_a_common_figure_are_refused(tmp_path):
    a = write_result(tmp_path / "a.json", mayfly={"t, ms": [1.0]})
    b = write_result(tmp_path / "b.json", mayfly={"t, 10^6 instructions": [1.0]})
    assert "no figure in common" in run_compare(a, b).stderr


# Compare for yourself


def survey_of(directory):
    return subprocess.run([BENCHMARKS / "survey", "--table", str(directory)], capture_output=True,
                          text=True, check=True).stdout


def test_the_survey_s_table_of_the_recorded_results_is_the_one_in_the_page():
    recorded, page = survey_of(RESULTS), (BENCHMARKS / "README.md").read_text()
    shown = re.findall(r"^\| .* (?:mayfly is \w+|no difference.*) \|$", page, re.M)
    assert len(shown) >= 5
    assert not [line for line in shown if line not in recorded.splitlines()]
    assert "same everywhere" in recorded and "busy" not in recorded


@pytest.mark.parametrize("kind, load, said", [("bare metal", 0.1, []), ("bare metal", 3, ["busy"]),
                                              ("a virtual machine", 0, ["No bare metal"])])
def test_the_survey_says_what_its_times_are_worth(tmp_path, kind, load, said):
    path = write_result(tmp_path / "start.json", mayfly={"t, ms": noisy(1), "ours, ms": [1.0]},
                        peer={"t, ms": noisy(2, middle=20.0)})
    data = json.loads(path.read_text())
    data |= {"benchmark": "start", "host": {"kind": kind, "processor": "x", "processors": 4,
                                            "kernel": "6", "load": [load, load]}}
    path.write_text(json.dumps(data))
    text = survey_of(tmp_path)
    assert re.search(r"^\| t, ms \| .* \| mayfly is better \|$", text, re.M)
    assert "ours, ms" not in text
    assert [words for words in ("busy", "No bare metal") if words in text] == said


# What is left, and what is said


def test_a_result_has_its_host_and_its_binaries(tmp_path):
    results = figures.Results("made-up", {"mayfly": os.environ.get("MAYFLY", sys.executable)})
    results.add("mayfly", "t, ms", 1.0, 2.0)
    results.add_all("mayfly", {"t, ms": 3.0, "u, ms": 1.0})
    results.add("mayfly", "rate", 5, more_is_better=True)
    results.write(f"{tmp_path}/new/r", kernel="k")
    data = figures.read(f"{tmp_path}/new/r.json")
    assert data["figures"]["mayfly"] == {"t, ms": [1.0, 2.0, 3.0], "u, ms": [1.0], "rate": [5]}
    assert data["more_is_better"] == ["rate"] and data["kernel"] == "k"
    assert {"processor", "processors", "kind", "kernel", "load"} == set(data["host"])
    assert len(data["host"]["load"]) == 2
    assert re.fullmatch("[0-9a-f]{64}", data["binaries"]["mayfly"]["sha256"])
    assert data["binaries"]["mayfly"]["version"]
    assert figures.medians(data)["mayfly"]["t, ms"] == 2.0
    assert "2.00 (1.00)" in figures.table(data)[1] and "5.00 (5.00)" in figures.table(data)[3]


@pytest.mark.parametrize("flags, kind", [
    ("fpu", "no hardware"), ("fpu hypervisor", "no hardware"), ("fpu vmx", "bare metal"),
    ("svm hypervisor", "a virtual machine")])
def test_the_kind_of_host_is_told_by_its_processor(monkeypatch, flags, kind):
    monkeypatch.setattr(figures, "first_line", lambda *_: flags)
    assert figures.kind_of_host().startswith(kind)


def test_progress_through_a_pipe_is_lines():
    """Also that of a script whose guests say something only now and then."""
    code = ("import argparse, importlib.machinery as m, importlib.util as u\n"
            f"l = m.SourceFileLoader('boot', {str(BENCHMARKS / 'boot')!r})\n"
            "boot = u.module_from_spec(u.spec_from_loader('boot', l)); l.exec_module(boot)\n"
            "print(boot.watch(['printf', 'x\\nboot mayfly 1\\nboot qemu 2\\nboot mayfly 3\\n'],\n"
            "                 argparse.Namespace(runs=1)))\n")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=BENCHMARKS, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(BENCHMARKS)}, check=True)
    assert done.stderr == ("mayfly: boot 1 of 1\nqemu: boot 1 of 1\n"
                           "mayfly: boot 2, of those at once\n")
    assert done.stdout.startswith("(0, 'x\\nboot mayfly 1")


def test_no_benchmark_has_a_progress_of_its_own():
    for path in BENCHMARKS.iterdir():
        if path.is_file() and path.name != "figures.py":
            assert "\\r{" not in path.read_text(errors="replace").replace("\\r\\033", ""), path.name


# Pictures


def test_colours_differ_in_lightness_or_are_okabe_and_ito_s():
    assert pictures.COLOURS[:7] == ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7",
                                    "#F0E442"]
    for path in BENCHMARKS.iterdir():
        if path.is_file() and path.name != "pictures.py":
            assert not re.search(r"#[0-9a-fA-F]{6}\b|<svg", path.read_text(errors="replace")), \
                f"{path.name} draws by itself"


def test_a_distribution_needs_points(tmp_path):
    few = {"a": [1.0] * 30, "b": [1.0] * (pictures.POINTS_MIN - 1)}
    assert pictures.distribution(f"{tmp_path}/p", "t", "ms", few) == []
    assert not list(tmp_path.iterdir())


def draw_all(directory):
    """One of each kind."""
    rows = {"one & two": {"a": 1.0, "b": 2.5}, "three": {"a": 0.5}}
    return [*pictures.stacked(f"{directory}/stacked", "t", "ms", rows, with_shares=True),
            *pictures.many_stacked(f"{directory}/many", "ms", {"x": list(rows.values()) * 9}),
            *pictures.bars(f"{directory}/bars", "t", "ms", rows),
            *pictures.lines(f"{directory}/lines", "t", "depth", "us", {"a": [(1, 2), (8, 1)]}),
            *pictures.distribution(f"{directory}/dots", "t", "ms", {"a": noisy(1, 25)})]


def test_pictures_are_svg_and_png_and_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib", reason="NO PICTURE WAS DRAWN: python3-matplotlib is missing")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawn = draw_all(tmp_path / name)
        assert len(drawn) == 10
    for path in map(pathlib.Path, drawn):
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name
        if path.suffix == ".svg":
            xml.dom.minidom.parse(str(path))
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_word_and_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_all(tmp_path) == []
    assert "python3-matplotlib is missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
