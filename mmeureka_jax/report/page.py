"""`report.html` of a run: headline numbers, curves, rollouts and configuration in one file that needs no other.

Everything that a model, a data set or a config wrote is escaped, and the page's content policy allows no scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from mmeureka_jax.config.reading import known_part, to_dict
from mmeureka_jax.config.schema import Config, ModelConfig, RandomModelConfig
from mmeureka_jax.config.yaml_text import read_yaml
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import read_json, write_atomic
from mmeureka_jax.formats.rgb import as_rgb
from mmeureka_jax.process.console import plural
from mmeureka_jax.report.calibration import draw_calibration
from mmeureka_jax.report.chart_groups import metrics_of_parts_off
from mmeureka_jax.report.charts import Rows, draw_charts, format_number, series_of
from mmeureka_jax.report.failures import draw_failures, failures_of
from mmeureka_jax.report.formulas import answer_to_html, text_to_html
from mmeureka_jax.report.thumbnails import to_data_uri
from mmeureka_jax.runs.tracking import ROLLOUTS_FOLDER, picture_of, read_metrics, read_rollouts

REPORT_FILE = "report.html"
MAX_STEPS_SHOWN = 8  # logged steps of rollouts in the report, the first and the last among them
RESPONSES_SHOWN = 2  # per group; the others fold out

_OPENING = re.compile(r"<(think|step|answer)>")
_TAG_NAMES = (("think", "thought", "Thought"), ("step", "thought", "Step"), ("answer", "answer", "Answer"))  # and style


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into the folder of a run, finished or not, and returns its path.

    Reads `metrics.jsonl`, and those of `config.yaml`, `metadata.json` and `rollouts/` that exist.

    Raises:
        UserError: no such run, no metrics in it, a file that cannot be read, or the report cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder; give the folder of a run (`run_dir` of its config)")
    rows = read_metrics(run_dir)
    if not rows:
        raise UserError(f"{run_dir / 'metrics.jsonl'}: no step was logged yet; let the run finish a step")
    config = _read_config(run_dir)
    metadata = _read_metadata(run_dir)

    sections = {
        "Curves": _curves(rows, config),
        "Failures": draw_failures(read_rollouts(run_dir)),
        "Rollouts": _rollouts(run_dir),
        "Configuration": _configuration(config) + _facts("Metadata", metadata),
        "Metrics": _metrics_table(rows),
    }
    sections = {title: body for title, body in sections.items() if body}
    template = Template((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(_title(run_dir)),
        subtitle=escape(_subtitle(config, rows)),
        tiles="".join(_tiles(rows)),
        nav="".join(f'<a href="#{title.lower()}">{title}</a>' for title in sections),
        sections="".join(f'<h2 id="{title.lower()}">{title}</h2>{body}' for title, body in sections.items()),
        footer=f"Run folder: {escape(str(run_dir.resolve()))}. The curves are those of metrics.jsonl.",
    )
    path = run_dir / REPORT_FILE
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Headline.


def _title(run_dir: Path) -> str:
    resolved = run_dir.resolve()
    return f"{resolved.parent.name}/{resolved.name}".lstrip("/")


def _subtitle(config: Mapping[str, Any], rows: Rows) -> str:
    model, data, rl = (config.get(section) or {} for section in ("model", "data", "rl"))
    parts = [model.get("checkpoint") or ("random initialisation" if model.get("random") else None), data.get("train")]
    if len(series_of(rows, "sft/loss")[0]):
        parts.append("supervised fine-tuning")
    elif len(series_of(rows, "prm/loss")[0]):
        parts.append("process reward model")
    elif rl:
        parts.append(f"advantage {rl.get('advantage')}, loss {rl.get('loss')}")
        parts.append(f"{rl.get('prompts_per_rollout')} prompts × {rl.get('group_size')} responses a step")
    return " · ".join(str(part) for part in parts if part)


def _tiles(rows: Rows) -> Iterable[str]:
    """The headline numbers that the rows have."""

    def tile(name: str, value: str, note: str = "") -> str:
        return f'<div class="tile"><div class="name">{name}</div><div class="value">{value}</div>' + (
            f'<div class="note">{note}</div></div>'
        )

    def change(first: float, last: float, unit: str = "") -> str:
        return f"<small>{format_number(first)} →</small> {format_number(last)}{unit}"

    steps, accuracy = series_of(rows, "validation/accuracy")
    if len(steps):
        percent = np.round(accuracy * 100, 1)
        best = int(np.argmax(percent))
        note = f"best {format_number(percent[best])}&thinsp;% at step {steps[best]:.0f}"
        yield tile("Validation accuracy", change(percent[0], percent[-1], "&thinsp;%"), note)
    for metric, name, note in (
        ("reward/total", "Reward", "mean per response"),
        ("response/length", "Response length", "tokens, mean"),
        ("sft/loss", "Imitation loss", "nats per token"),
        ("prm/loss", "Loss of the labels", "nats per step label"),
    ):
        _, values = series_of(rows, metric)
        if len(values):
            few = max(1, len(values) // 20)  # the mean of a few steps: a single one is noise
            yield tile(name, change(_round(values[:few].mean()), _round(values[-few:].mean())), note)
    _, seconds = series_of(rows, "time/step")
    each = f"{format_number(_round(seconds.mean()))} s each" if len(seconds) else ""
    yield tile("Steps", f"{int(rows[-1]['step']):,}", each)
    if len(seconds):
        yield tile("Time", _duration(seconds.sum()), "sum of the steps")
    speeds = {
        part: np.median(values)
        for part in ("rollout", "update")
        if len(values := series_of(rows, f"time/{part}_tokens_per_s")[1])
    }
    if speeds:
        numbers = " <small>/</small> ".join(
            f"{format_number(_round(speed / 1000))}k" if speed >= 1000 else format_number(_round(speed))
            for speed in speeds.values()
        )
        yield tile("Tokens per second", numbers, f"{' / '.join(speeds)}, median")


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}&thinsp;h {minutes:02d}&thinsp;min"
    return f"{minutes}&thinsp;min {seconds:02d}&thinsp;s" if minutes else f"{seconds}&thinsp;s"


# ---------------------------------------------------------------------------------------------------------------------
# Curves and tables.


def _curves(rows: Rows, config: Mapping[str, Any]) -> str:
    drawn = draw_charts(rows, metrics_of_parts_off(config))
    if (calibration := draw_calibration(rows)) is not None:
        drawn["Learning"] = [*drawn.get("Learning", []), calibration]
    groups = "".join(f'<h3>{name}</h3><div class="charts">{"".join(figures)}</div>' for name, figures in drawn.items())
    hint = "Numbers beside the names are the last values. Faint lines are single steps, strong ones a moving average."
    return groups and f'<p class="hint">{hint}</p>{groups}'


def _metrics_table(rows: Rows) -> str:
    """First, last, lowest, highest and mean value of every metric that was logged."""
    body = []
    for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
        values = np.array([row[name] for row in rows if name in row and isinstance(row[name], int | float)], float)
        finite = values[np.isfinite(values)]
        if len(finite):
            numbers = [format_number(x) for x in (finite[0], finite[-1], finite.min(), finite.max(), finite.mean())]
        else:
            numbers = ["–"] * 5
        cells = [*numbers, str(len(values)), str(len(values) - len(finite) or "")]
        body.append(
            f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td class=number>{c}</td>' for c in cells)}</tr>"
        )
    head = "".join(
        f"<th scope='col' class=number>{name}</th>"
        for name in ("first", "last", "lowest", "highest", "mean", "rows", "not finite")
    )
    return (
        f'<details class="box"><summary>Every metric<span>{len(body)} of them, {len(rows)} rows</span></summary>'
        f"<table><thead><tr><th scope='col'>metric</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></details>"
    )


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    default = dict(_flatten(to_dict(Config(model=ModelConfig(random=RandomModelConfig())))))
    groups: dict[str, list[str]] = {}
    changed = 0
    for key, value in _flatten(config):
        section, _, name = key.partition(".")
        kind = "" if key in default and default[key] == value else " class=changed"
        changed += bool(kind)
        row = f"<tr{kind}><th scope='row'>{escape(name or section)}</th><td>{_cell(value)}</td></tr>"
        groups.setdefault(section if name else "run", []).append(row)
    tables = "".join(
        f"<table><caption>{escape(name)}</caption>{''.join(body)}</table>" for name, body in groups.items()
    )
    return (
        f'<details class="box"><summary>Resolved configuration<span>{changed} values differ from the defaults</span>'
        f'</summary><p class="hint"><b>●</b> differs from the default</p><div class="tables">{tables}</div></details>'
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    """A nested mapping as a folded table; the config has a table of its own."""
    body = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td>{_cell(value)}</td></tr>"
        for key, value in _flatten({k: v for k, v in facts.items() if k != "config"})
    )
    return f'<details class="box"><summary>{title}</summary><table>{body}</table></details>' if body else ""


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cell(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts.


def _rollouts(run_dir: Path) -> str:
    """The first and the last logged step side by side, and some steps in between, folded."""
    steps = [(step, groups) for step, groups in read_rollouts(run_dir) if groups]
    if not steps:
        return ""
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(len(steps), MAX_STEPS_SHOWN))})
    shown = [steps[i] for i in chosen]
    left_out = len(steps) - len(shown)
    ends = shown[:1] + shown[1:][-1:]
    columns = "".join(
        f'<section><div class="stephead"><b>{"First" if i == 0 else "Last"} logged step: {step}</b>'
        f"<span>{_summary(groups)}</span></div>{_cards(run_dir, groups)}</section>"
        for i, (step, groups) in enumerate(ends)
    )
    between = "".join(
        f'<details class="box"><summary>Step {step}<span>{_summary(groups)}</span></summary>'
        f"{_cards(run_dir, groups)}</details>"
        for step, groups in shown[1:-1]
    )
    hint = f'<p class="hint">{left_out} more logged steps are in {ROLLOUTS_FOLDER}/.</p>' if left_out else ""
    return f'<div class="compare">{columns}</div>{"<h3>In between</h3>" if between else ""}{between}{hint}'


def _summary(groups: Sequence[Mapping[str, Any]]) -> str:
    responses = [response for group in groups for response in group["responses"]]
    if not responses:
        return plural(len(groups), "problem")
    mean = {key: format_number(_round(np.mean([r[key] for r in responses]))) for key in ("reward", "length")}
    return f"{plural(len(groups), 'problem')}, mean reward {mean['reward']}, {mean['length']} tokens"


def _cards(run_dir: Path, groups: Sequence[Mapping[str, Any]]) -> str:
    return f'<div class="cards">{"".join(_card(run_dir, group) for group in groups)}</div>'


def _card(run_dir: Path, group: Mapping[str, Any]) -> str:
    pictures = "".join(
        f"<i>{escape(name[:100])}: not a picture of this run</i>" if path is None else _picture(path)
        for name in group["images"]
        for path in [picture_of(run_dir, name)]
    )
    pictures = f'<div class="pictures">{pictures}</div>' if pictures else ""
    responses = list(enumerate(group["responses"], start=1))
    by_reward = sorted(responses, key=lambda item: -item[1]["reward"])
    shown = by_reward if len(responses) <= RESPONSES_SHOWN else [by_reward[0], by_reward[-1]]  # the best and the worst
    hidden = [item for item in responses if item not in shown]
    more = (
        f'<details class="more"><summary>{plural(len(hidden), "more response")}</summary>'
        f"{''.join(_response(n, response) for n, response in hidden)}</details>"
        if hidden
        else ""
    )
    return (
        f'<article class="card"><div class="problem">{pictures}<div class="ask">'
        f'<div class="id">{escape(str(group["problem_id"]))}</div>'
        f'<div class="text">{text_to_html(str(group["question"]))}</div>'
        f'<div class="gold"><span>gold answer</span><b>{answer_to_html(str(group["answer"]))}</b></div></div></div>'
        f"{''.join(_response(n, response) for n, response in shown)}{more}</article>"
    )


def _response(number: int, response: Mapping[str, Any]) -> str:
    parts = response["parts"]
    chips = [f'<span class="chip">reward {format_number(response["reward"])}</span>']
    for name, value in parts.items():
        kind = "good" if value > 0 else "bad" if value < 0 or name in ("accuracy", "format") else ""
        chips.append(f'<span class="chip {kind}">{escape(name)} {format_number(value)}</span>')
    chips.append(f"<span>{response['length']:,} tokens</span>")
    if response["finish_reason"] != "stop":
        chips.append(f'<span class="chip bad">{escape(_reason(response["finish_reason"]))}</span>')
    chips += [
        f'<span class="chip bad">{escape(f"{rule}: {why}")}</span>' for rule, why in failures_of(response).items()
    ]
    verdict = "" if "accuracy" not in parts else "right" if parts["accuracy"] > 0 else "wrong"
    blocks = [_block(part) for part in _parts(response["text"]) if part.strip()]
    return (
        f'<div class="response {verdict}">'
        f'<div class="scores"><span class="n">Response {number}</span>{"".join(chips)}</div>'
        f"{''.join(blocks) or '<div class=plain><i>empty</i></div>'}</div>"
    )


def _reason(finish_reason: str) -> str:
    return "stopped at the length limit" if finish_reason == "length" else finish_reason


def _parts(text: str) -> list[str]:
    """A response cut at its thoughts, steps and answers, in one pass: a policy may have learnt to repeat tags."""
    parts = []
    position = 0
    unclosed = set()
    for opening in _OPENING.finditer(text):
        name = opening[1]
        if opening.start() < position or name in unclosed:
            continue
        close = text.find(f"</{name}>", opening.end())
        if close < 0:
            unclosed.add(name)
            continue
        end = close + len(f"</{name}>")
        parts += [text[position : opening.start()], text[opening.start() : end]]
        position = end
    return [*parts, text[position:]]


def _block(text: str) -> str:
    """A part of a response: a thought, a step, an answer, or what is outside the tags."""
    kind = "plain"
    name = "Outside the tags"
    inner = text
    for tag, tag_kind, tag_name in _TAG_NAMES:
        if text.startswith(f"<{tag}>") and text.endswith(f"</{tag}>"):
            kind = tag_kind
            name = tag_name
            inner = text[len(tag) + 2 : -len(tag) - 3]
    shown = text_to_html(inner.strip())
    return f'<div class="{kind}"><span class="tag">{name}</span><div class="text">{shown}</div></div>'


def _picture(path: Path) -> str:
    """An inline picture, scaled down; a small one is shown enlarged, pixel by pixel."""
    try:
        with Image.open(path) as opened:
            picture = as_rgb(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"<i>{escape(path.name)}: cannot be read</i>"
    kind = " class=small" if max(picture.size) < 130 else ""
    alternative = f"picture of the problem, {picture.width} by {picture.height} pixels"
    return f'<img{kind} alt="{alternative}" src="{to_data_uri(picture)}">'


# ---------------------------------------------------------------------------------------------------------------------
# Files of the run.


def _read_config(run_dir: Path) -> Mapping[str, Any]:
    path = run_dir / "config.yaml"
    if not path.exists():
        return {}
    tree = read_yaml(path)
    # Not load_config: runs of earlier versions have reports too.
    known_part(Config, tree, f"{path}")
    return tree


def _read_metadata(run_dir: Path) -> Mapping[str, Any]:
    path = run_dir / "metadata.json"
    if not path.exists():
        return {}
    return read_json(path)
