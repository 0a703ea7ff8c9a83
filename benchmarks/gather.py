#!/usr/bin/python3
"""Makes a result, its table and its picture of the lines "result VMM VALUE FIGURE" of a shell script.

usage: gather.py BENCHMARK REFERENCE MAYFLY OUTPUT TITLE <LINES
"""
import re, sys

import figures, pictures


def draw(data, path, reference, title):
    of = figures.medians(data)
    rows = {figure: {name: of[name][figure] / value for name in of}
            for figure, value in of[reference].items()}
    return pictures.bars(path, title, f"of {reference}'s", rows)


def main():
    benchmark, reference, mayfly, output, title = sys.argv[1:]
    results = figures.Results(benchmark, {"mayfly": mayfly})
    for name, value, figure in re.findall(r"^result (\S+) (\S+) (.*?)\r?$", sys.stdin.read(), re.M):
        results.add(name, figure, float(value))
    if not results.data["figures"]:
        sys.exit(f"benchmarks/{benchmark}: no run came to its end")
    path = f"{output}/{benchmark}"
    data = results.write(path)
    print("\n".join(figures.table(data, reference)))
    print("results:", f"{path}.json", *draw(data, path, reference, title))


if __name__ == "__main__":
    main()
