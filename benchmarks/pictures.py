"""The benchmarks' pictures, each as SVG and as PNG: what colours, axes and legends look like.

Drawn by matplotlib; where it is missing there are no pictures, and a word that says so. The colours
are those of Okabe and Ito, which tell apart for colour-blind readers too; segments have white borders
besides. Two drawings of the same results are the same files, byte for byte, with the same matplotlib.
"""
import statistics, sys

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#999999"]
WIDTH_IN = 8.6
POINTS_MIN = 20  # a distribution of fewer would be read as more than it is
STYLE = {"svg.hashsalt": "mayfly", "svg.fonttype": "none", "font.family": "sans-serif",
         "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid.axis": "x", "axes.axisbelow": True, "grid.color": "#dddddd",
         "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold",
         "legend.frameon": False, "axes.formatter.useoffset": False}


def is_dark(colour):
    red, green, blue = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.59 * green + 0.11 * blue < 140


def short(value):
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def with_matplotlib(draw):
    """Makes of draw(pyplot, path, ...) a function of (path, ...) that returns the files' names."""
    def drawn(path, *arguments, **more):
        try:
            import matplotlib
        except ImportError:
            print("no pictures: python3-matplotlib is missing", file=sys.stderr)
            return []
        matplotlib.use("Agg")
        from matplotlib import pyplot
        with pyplot.rc_context(STYLE):
            figure = draw(pyplot, *arguments, **more)
            for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                figure.savefig(f"{path}.{ending}", metadata=metadata, dpi=100,
                               bbox_inches="tight", pad_inches=0.12)
            pyplot.close(figure)
        return [f"{path}.svg", f"{path}.png"]
    return drawn


def panels(pyplot, heights):
    """So many below each other, in inches; they share the axis of what is measured."""
    figure, axes = pyplot.subplots(len(heights), 1, squeeze=False, sharex=True,
                                   figsize=(WIDTH_IN, sum(heights) + 0.9),
                                   gridspec_kw={"height_ratios": heights})
    for axis in axes[:, 0]:
        axis.grid(True, axis="x")
        axis.tick_params(axis="y", length=0)
    return figure, list(axes[:, 0])


def finish(figure, axis, unit):
    """The axis's name, and below it the legend in one row or two."""
    axis.set_xlabel(unit)
    axis.set_xlim(left=0)
    names = axis.get_legend_handles_labels()[1]
    if len(names) > 1:
        height_in = axis.get_position().height * figure.get_figheight()
        axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.42 / height_in),
                    ncol=3 if len(names) > 4 else len(names), columnspacing=1.5,
                    handlelength=1.0, handleheight=1.0)
    return figure


def stack(axis, rows, height, longest, with_shares):
    """Bars of segments: {row: {segment: value}}; the same segments are the same colours."""
    names = list({name: None for row in rows.values() for name in row})
    for n, name in enumerate(names):
        lefts = [sum(v for k, v in row.items() if names.index(k) < n) for row in rows.values()]
        widths = [row.get(name, 0) for row in rows.values()]
        colour = COLOURS[n % len(COLOURS)]
        if height == 1.0:  # one shape for all, without borders
            axis.fill_betweenx(range(len(rows)), lefts, [*map(sum, zip(lefts, widths))], step="mid",
                               color=colour, label=name, linewidth=0)
            continue
        axis.barh(range(len(rows)), widths, left=lefts, height=height, color=colour, label=name,
                  edgecolor="white", linewidth=0.6)
        for y, (left, width, row) in enumerate(zip(lefts, widths, rows.values())):
            if with_shares and width > 0.045 * longest:
                axis.text(left + width / 2, y, f"{width / sum(row.values()):.0%}", ha="center",
                          va="center", fontsize=9, color="white" if is_dark(colour) else "black")
    axis.set_ylim(len(rows) - 0.4, -0.6)


@with_matplotlib
def stacked(pyplot, title, unit, rows, with_shares=False, totals=None):
    """A bar of segments for each row, and its sum, or what is given instead: the median of sums is
    not the sum of medians."""
    totals = totals or {name: sum(row.values()) for name, row in rows.items()}
    figure, (axis,) = panels(pyplot, [0.36 * len(rows)])
    longest = max(sum(row.values()) for row in rows.values())
    stack(axis, rows, 0.72, longest, with_shares)
    for y, (name, row) in enumerate(rows.items()):
        axis.text(sum(row.values()) + 0.008 * longest, y, short(totals[name]), va="center")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_title(title)
    axis.set_xlim(right=longest * 1.08)
    return finish(figure, axis, unit)


@with_matplotlib
def many_stacked(pyplot, unit, groups):
    """A panel for each group {title: [{segment: value}]}, of so many thin bars."""
    figure, axes = panels(pyplot, [2.2] * len(groups))
    for axis, (title, rows) in zip(axes, groups.items()):
        stack(axis, dict(enumerate(rows)), 1.0, None, False)
        axis.set_title(title)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    return finish(figure, axes[-1], unit)


@with_matplotlib
def bars(pyplot, title, unit, rows):
    """For each row a bar of each name: {row: {name: value}}."""
    names = list({name: None for row in rows.values() for name in row})
    thick = 0.8 / len(names)
    figure, (axis,) = panels(pyplot, [(0.12 + 0.2 * len(names)) * len(rows)])
    longest = max(value for row in rows.values() for value in row.values())
    for n, name in enumerate(names):
        ys = [y + (n - (len(names) - 1) / 2) * thick for y in range(len(rows))]
        values = [row.get(name) for row in rows.values()]
        axis.barh(ys, [v or 0 for v in values], height=thick * 0.92, label=name,
                  color=COLOURS[n % len(COLOURS)])
        for y, value in zip(ys, values):
            if value is not None:
                axis.text(value + 0.008 * longest, y, short(value), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.set_xlim(right=longest * 1.08)
    axis.set_title(title)
    return finish(figure, axis, unit)


@with_matplotlib
def dots(pyplot, title, unit, rows):
    """Each value a dot, the median a line."""
    figure, (axis,) = panels(pyplot, [0.5 * len(rows)])
    for n, (name, values) in enumerate(rows.items()):
        ys = [n + (i * 7 % 20 - 9.5) / 32 for i in range(len(values))]
        axis.plot(values, ys, "o", color=COLOURS[n % len(COLOURS)], alpha=0.5, markersize=4)
        axis.plot([statistics.median(values)] * 2, [n - 0.4, n + 0.4], color="black", linewidth=1.5)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(title)
    return finish(figure, axis, unit)


def distribution(path, title, unit, rows):
    """As dots, if there are enough of them to be one."""
    if min(map(len, rows.values())) < POINTS_MIN:
        return []
    return dots(path, title, unit, rows)


@with_matplotlib
def lines(pyplot, title, x_name, unit, series, logarithmic=True):
    """{name: [(x, y)]}."""
    figure, (axis,) = panels(pyplot, [3.4])
    axis.grid(True, axis="y")
    for n, (name, points) in enumerate(series.items()):
        axis.plot(*zip(*points), marker="osD^vP"[n % 6], markersize=4, label=name,
                  color=COLOURS[n % len(COLOURS)])
    if logarithmic:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(pyplot.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    xs = sorted({x for points in series.values() for x, _ in points})
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.minorticks_off()
    axis.set_ylabel(unit)
    axis.set_title(title)
    axis.set_xlabel(x_name)
    axis.legend(ncol=2)
    return figure
