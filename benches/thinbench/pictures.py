"""The table as pictures: one SVG for each group of rows, bars with the range of what was measured."""

import matplotlib

matplotlib.use("svg")
# Figures of the same run give the same bytes, and text stays text.
matplotlib.rcParams.update({"svg.hashsalt": "thinmap", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot  # noqa: E402  # pylint: disable=wrong-import-position

OURS, THEIRS = "#1f6f5c", "#b9c2c7"
PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 4.2, 2.2, 3


def draw(results, directory):
    """Writes the pictures; their paths."""
    groups = {}
    for result in results:
        if any(figure.values for figure in result.figures):
            groups.setdefault(result.row.name.partition("-")[0], []).append(result)
    return [_group(name, members, directory) for name, members in groups.items()]


def _group(name, results, directory):
    columns = min(COLUMNS, len(results))
    rows = -(-len(results) // columns)
    size = (PANEL_WIDTH * columns, PANEL_HEIGHT * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    panels = [panel for line in axes for panel in line]
    for panel, result in zip(panels, results):
        _panel(panel, result)
    for panel in panels[len(results) :]:
        panel.set_visible(False)
    path = directory / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _panel(panel, result):
    shown = [figure for figure in reversed(result.figures) if figure.values]
    names = [figure.side for figure in shown]
    medians = [figure.median for figure in shown]
    below = [figure.median - min(figure.values) for figure in shown]
    above = [max(figure.values) - figure.median for figure in shown]
    colours = [OURS if figure is result.judged else THEIRS for figure in shown]
    panel.barh(names, medians, color=colours, xerr=(below, above), error_kw={"lw": 0.8, "capsize": 2})
    better = "more" if result.row.unit[1] else "less"
    panel.set_title(result.row.name, fontsize=9, loc="left")
    panel.set_xlabel(f"{result.row.unit[0]} ({better} is better)", fontsize=8)
    panel.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
