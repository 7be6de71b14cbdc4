"""What a run has shown: ratios, verdicts, and the table as Markdown and JSON."""

import json
from dataclasses import dataclass


@dataclass
class Verdict:
    """One demand of a row beside what was measured. `met` is None when a side has no figure."""

    row: str
    peer: str
    wanted: str
    found: str
    met: object


@dataclass
class Result:
    """A measured row."""

    row: object
    figures: list

    @property
    def judged(self):
        return self.figures[0]

    def ratio(self, figure):
        """How much better the judged side is than this one: above 1 is better, whatever the unit."""
        ours, theirs = self.judged.median, figure.median
        if not ours or not theirs:
            return None
        return ours / theirs if self.row.unit[1] else theirs / ours

    def verdicts(self):
        found = {figure.side: figure for figure in self.figures}
        result = []
        for must in self.row.must:
            ratio = self.ratio(found[must.peer])
            met = None if ratio is None else ratio >= must.ratio
            result.append(Verdict(self.row.name, must.peer, f"{must.ratio:.2f}x", _times(ratio), met))
        limit = getattr(self.row, "under_ms", 0)
        if limit:
            median = self.judged.median
            met = None if median is None else median < limit
            shown = "-" if median is None else f"{median:.3g} ms"
            result.append(Verdict(self.row.name, "", f"under {limit:g} ms", shown, met))
        return result

    def as_dict(self):
        sides = [{**figure.as_dict(), "ratio": self.ratio(figure)} for figure in self.figures]
        return {
            "row": self.row.name,
            "load": self.row.title,
            "unit": self.row.unit[0],
            "sides": sides,
            "verdicts": [vars(verdict) for verdict in self.verdicts()],
        }


def write_json(path, environment, effort, results):
    content = {
        "environment": environment,
        "effort": vars(effort),
        "rows": [result.as_dict() for result in results],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(environment, effort, results, pictures):
    """The whole report."""
    lines = ["# Measured", ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in environment.items()]
    lines += [
        "",
        f"Medians of {effort.repeats}, sides by turns; timed jobs {effort.seconds:g} s on {effort.volume >> 20} MiB; listed jobs "
        f"{effort.requests} requests. Ratio: how much better the row's first side is than the side in that line. Spread: from the least to the most, in "
        "parts of the median. Server: its processor time for each request (not the kernel's own threads). Clients: processor time of fio, "
        "in % of one processor: near 100 for each client, the client is the limit.",
        "",
    ]
    if effort.repeats < 5:
        lines += ["**Fewer than five repeats: a look, not a measurement.**", ""]
    lines += _verdict_table(results)
    for picture in pictures:
        lines += [f"![{picture.stem}]({picture.name})", ""]
    lines += ["## All rows", ""]
    lines += ["| row | side | median | spread | ratio | server µs | clients |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for result in results:
        lines += [_line(result, figure) for figure in result.figures]
    lines += ["", "## Loads", "", "| row | load |", "| --- | --- |"]
    lines += [f"| {result.row.name} | {result.row.title} |" for result in results]
    lines += _sides_table(results)
    failed = [(r.row.name, f.side, f.error) for r in results for f in r.figures if f.error]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {row}, {side}: {error}" for row, side, error in failed]
    return "\n".join(lines) + "\n"


def _verdict_table(results):
    verdicts = [verdict for result in results for verdict in result.verdicts()]
    if not verdicts:
        return []
    lines = ["## What must be shown", "", "| row | beside | at least | found | |", "| --- | --- | --- | --- | --- |"]
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines += [f"| {v.row} | {v.peer} | {v.wanted} | {v.found} | {words[v.met]} |" for v in verdicts]
    return [*lines, ""]


def _sides_table(results):
    words = {figure.side: figure.words for result in results for figure in result.figures if figure.words}
    if not words:
        return []
    return ["", "## Sides", "", "| side | set up as |", "| --- | --- |", *(f"| {s} | {w} |" for s, w in words.items())]


def _line(result, figure):
    if figure.error:
        return f"| {result.row.name} | {figure.side} | failed | | | | |"
    unit = result.row.unit[0]
    spread = "-" if figure.spread is None else f"{figure.spread * 100:.0f} %"
    server, clients = _middle(figure.server_us, "{:.1f}"), _middle(figure.client_cpu, "{:.0f} %")
    ratio = "" if figure is result.judged else _times(result.ratio(figure))
    return f"| {result.row.name} | {figure.side} | {_short(figure.median)} {unit} | {spread} | {ratio} | {server} | {clients} |"


def _middle(values, form):
    if not values:
        return ""
    return form.format(sorted(values)[len(values) // 2])


def _times(ratio):
    return "-" if ratio is None else f"{ratio:.2f}x"


def _short(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
