"""The report of synthetic runs: all in one well-formed file, nothing of a model's text taken for markup."""

import html
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import TrackingConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.report.chart_groups import CHART_GROUPS, metrics_of_parts_off
from mmeureka_jax.report.charts import draw_charts
from mmeureka_jax.report.page import write_report
from mmeureka_jax.runs.rollout_samples import ResponseSample, RolloutSample
from mmeureka_jax.runs.tracking import Tracker

NO_TENSORBOARD = TrackingConfig(tensorboard=False)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;</div></article>"


def dots(count: int, rng: np.random.Generator) -> bytes:
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    for x, y in rng.integers(8, 100, (count, 2)):
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill="#2060a0")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rl_row(step: int, steps: int, rng: np.random.Generator) -> dict[str, float]:
    """Metrics of a run that learns as the demo does: accuracy and response length rise together."""
    done = step / steps
    skill = 0.07 + 0.6 / (1 + math.exp(-10 * (done - 0.45)))

    def noisy(value: float, relative: float = 0.08) -> float:
        return float(value * (1 + relative * rng.standard_normal()))

    row = {
        "reward/total": noisy(skill + 0.48),
        "reward/accuracy": noisy(skill),
        "reward/format": min(1.0, noisy(0.97, 0.01)),
        "reward/repetition": 0.0,
        "reward/failures": 0.004 * (rng.random() < 0.1),
        "response/length": noisy(14 + 40 * skill, 0.04),
        "response/truncated": abs(noisy(0.01, 0.5)),
        "loss/total": noisy(-0.02, 0.8),
        "loss/policy": noisy(-0.02, 0.8),
        "loss/drift": noisy(0.0004, 0.3),
        "policy/clip_fraction_low": abs(noisy(0.006, 0.4)),
        "policy/clip_fraction_high": abs(noisy(0.009, 0.4)),
        "policy/ratio_max": 1 + abs(noisy(0.8, 0.4)),
        "policy/entropy": noisy(0.9 - 0.5 * done),
        "policy/drift": abs(noisy(0.002, 0.4)),
        "policy/sampler_gap_mean": abs(noisy(2e-7, 0.3)),
        "policy/sampler_gap_max": abs(noisy(6e-6, 0.3)),
        "optimizer/grad_norm": noisy(0.8, 0.3),
        "optimizer/learning_rate": 1e-4 * min(1, step / 3) * (0.55 + 0.45 * math.cos(math.pi * done)),
        "optimizer/skipped": 0,
        "filter/kept": 0.5 + 0.2 * skill,
        "filter/too_easy": 0.3 * skill,
        "filter/too_hard": 0.5 - 0.5 * skill,
        "time/step": noisy(1.9),
        "time/rollout": noisy(0.7),
        "time/reward": noisy(0.12),
        "time/update": noisy(0.9),
        "time/rollout_tokens_per_s": noisy(9500),
        "time/update_tokens_per_s": noisy(21000),
        "time/compiles": 3 if step == 1 else 0,
    }
    if step % 10 == 0:
        row |= {"validation/accuracy": noisy(skill + 0.03, 0.02), "validation/response_length": 15 + 40 * skill}
        row |= {"time/validation": noisy(1.5), "time/checkpoint": noisy(0.3)}
    return row


def rollouts_at(step: int, steps: int, rng: np.random.Generator, group_size: int) -> list[RolloutSample]:
    samples = []
    for index in range(3):
        count = int(rng.integers(2, 9))
        responses = []
        for _ in range(group_size):
            right = rng.random() < 0.1 + 0.7 * step / steps
            answer = count if right else count + 1
            thought = " ".join(f"dot {i + 1} at row {i * 7 % 5};" for i in range(count)) if right else "looks like"
            text = f"<think>{thought} so {answer}</think><answer>${answer}$</answer>"
            parts = {"accuracy": float(right), "format": 1.0, "repetition": 0.0}
            responses.append(ResponseSample(text, right + 0.5, parts, len(text) // 3, "stop"))
        unfinished = ResponseSample(
            "<think>one, two, one, two, one", 0.0, {"accuracy": 0.0, "format": 0.0}, 64, "length"
        )
        question = "How many dots are in the picture?"
        picture = dots(count, rng)
        samples.append(RolloutSample(f"dots-{step}-{index}", question, [picture], str(count), [*responses, unfinished]))
    return samples


def write_run(run_dir, steps=60, every=10, group_size=4):
    rng = np.random.default_rng(0)
    tracker = Tracker(run_dir, NO_TENSORBOARD)
    for step in range(1, steps + 1):
        tracker.log_metrics(step, rl_row(step, steps, rng))
        if step == 1 or step % every == 0:
            tracker.log_rollouts(step, rollouts_at(step, steps, rng, group_size))
    tracker.close()
    config = load_config(None, ["model.random={}", "rl.loss=cpgd", "data.validation=no", f"steps={steps}"])
    save_config(config, run_dir / "config.yaml")
    metadata = {"config": {"steps": 1}, "packages": {"jax": "0.10.2"}, "data": {"train": {"fingerprint": "ab12"}}}
    (run_dir / "metadata.json").write_text(json.dumps(metadata))
    return run_dir


class Page(HTMLParser):
    """The elements of a page, checked to be opened and closed in order, and its text."""

    VOID = {"meta", "img", "link", "br", "use", "path"}

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def rl_report(tmp_path_factory):
    run_dir = write_run(tmp_path_factory.mktemp("runs") / "cpgd")
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


def test_is_self_contained_and_small(rl_report):
    page = Page(rl_report)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a.get("href") or a.get("xlink:href") for _, a in page.elements if "href" in a or "xlink:href" in a]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    assert set(re.findall(r"url\(#(.*?)\)", rl_report)) <= set(ids)
    assert len(rl_report) < 800_000


def test_headline_numbers(tmp_path):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    for step, accuracy in ((0, 0.1), (1, None), (2, 0.6), (3, 0.5)):
        row = {"time/step": 100.0, "response/length": 10.0 + step, "time/rollout_tokens_per_s": 1234.0}
        tracker.log_metrics(step, row if accuracy is None else row | {"validation/accuracy": accuracy})
    text = Page(write_report(tmp_path).read_text()).text
    assert "Validation accuracy 10 → 50 % best 60 % at step 2" in text
    assert "Response length 10 → 13" in text
    assert (
        "Steps 3 100 s each" in text and "Time 6 min 40 s" in text and "Tokens per second 1.23k rollout, median" in text
    )


def test_every_curve_is_there_with_a_text_alternative(rl_report):
    page = Page(rl_report)
    alternatives = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert len(alternatives) == len(page.all("svg")) == len(page.all("figure"))
    titles = [re.match(r"Chart of (.*) by step", alternative)[1] for alternative in alternatives]
    expected = {"Validation accuracy", "Rewards", "Response length", "Divergence", "Clipped tokens", "Entropy"}
    expected |= {"Log-prob gap, sampler to trainer", "Gradient norm and learning rate", "Online filter", "Throughput"}
    assert expected | {"Time of a step", "Compiled programs"} <= set(titles)
    assert "Imitation loss" not in titles
    [length] = [a for a in alternatives if a.startswith("Chart of Response length")]
    assert "sampled, in tokens: first" in length and "truncated at the limit" in length


def test_rollouts_early_and_late(rl_report):
    text = Page(rl_report).text
    assert "First logged step: 1" in text and "Last logged step: 60" in text and "Step 30" in text
    assert "stopped at the length limit" in text and "dots-60-2" in text and "How many dots" in text
    assert text.count("gold answer") == 7 * 3
    assert "Outside the tags <think>one, two, one, two, one" in text  # a thought that never ended is not set apart
    assert re.search(r"Thought dot 1 at row 0; .*? Answer \d", text)


def test_configuration_and_metadata(rl_report):
    page = Page(rl_report)
    assert "prompts_per_rollout 128" in page.text and "loss cpgd" in page.text
    assert "validation no" in page.text  # text that YAML 1.1 would read as false
    assert "packages.jax 0.10.2" in page.text and "data.train.fingerprint ab12" in page.text
    changed = re.findall(r"<tr class=changed><th scope='row'>(.*?)</th>", rl_report)
    assert sorted(changed) == ["loss", "steps", "validation"]


def test_untrusted_text_is_escaped(tmp_path):
    run_dir = tmp_path / "<b>run"
    tracker = Tracker(run_dir, NO_TENSORBOARD)
    tracker.log_metrics(1, {EVIL: 1.0, "x": 2.0})
    response = ResponseSample(f"<think>{EVIL}</think>{EVIL}<answer>{EVIL}</answer>", 1.0, {EVIL: 1.0}, 3, EVIL)
    tracker.log_rollouts(1, [RolloutSample(EVIL, EVIL, [], EVIL, [response])])
    save_config(load_config(None, [f"data.train={EVIL}"]), run_dir / "config.yaml")
    (run_dir / "metadata.json").write_text(json.dumps({EVIL: [EVIL]}))
    source = write_report(run_dir).read_text()
    page = Page(source)
    assert not page.all("script") and not page.all("img") and not page.all("b run")
    assert "<script" not in source and 'onerror=alert(2)>"' not in source
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert source.count(html.escape(EVIL)) >= 10
    assert "default-src 'none'" in source


def test_sft_run(tmp_path):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    for step in range(1, 50):
        tracker.log_metrics(step, {"sft/loss": 3 / step, "optimizer/grad_norm": 1.0, "time/step": 0.4})
    page = Page(write_report(tmp_path).read_text())
    titles = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert [title.split(" by step")[0] for title in titles] == [
        "Chart of Imitation loss",
        "Chart of Gradient norm and learning rate",
    ]
    assert "Imitation loss" in page.text and "supervised fine-tuning" in page.text
    assert "Rollouts" not in page.text and "Configuration" not in page.text


@pytest.mark.parametrize("values", [[1.0], [math.nan], [math.inf, 1.0, -math.inf], [0.0, 0.0], [1e90, 1e-90], [5, 5]])
def test_awkward_values(tmp_path, values):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    for step, value in enumerate(values):
        row = dict.fromkeys(
            ["sft/loss", "policy/sampler_gap_max", "filter/kept", "time/step", "validation/accuracy"], value
        )
        tracker.log_metrics(step, row)
    Page(write_report(tmp_path).read_text())


def test_long_run_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    rows = [json.dumps({"step": step} | rl_row(step, 1500, rng)) for step in range(1, 1501)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert write_report(tmp_path).stat().st_size < 800_000


def test_many_logged_steps_are_counted_not_all_shown(tmp_path):
    write_run(tmp_path, steps=20, every=1, group_size=1)
    text = Page(write_report(tmp_path).read_text()).text
    assert "First logged step: 1" in text and "Last logged step: 20" in text
    assert "12 more logged steps are in rollouts/" in text


def test_unreadable_picture_is_named(tmp_path):
    write_run(tmp_path, steps=1, every=1)
    for path in (tmp_path / "rollouts" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    assert "cannot be read" in write_report(tmp_path).read_text()


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match="no metrics here"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x')
    with pytest.raises(UserError, match="no step was logged yet"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"metadata\.json: cannot be read"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_every_chart_can_be_drawn():
    """Whatever algorithm a run has: with a value of each metric that a chart knows."""
    charts = [chart for group in CHART_GROUPS.values() for chart in group]
    names = {name for chart in charts for panel in chart.panels for name in panel.series}
    rows = [{"step": step, **dict.fromkeys(names, 0.1 * step)} for step in (1, 2, 3)]
    assert "critic/explained_variance" in names
    drawn = draw_charts(rows)
    assert {group: len(figures) for group, figures in drawn.items()} == {g: len(c) for g, c in CHART_GROUPS.items()}


def titles(figures: dict[str, list[str]]) -> set[str]:
    return {re.search("<h4>(.*?)</h4>", figure)[1] for group in figures.values() for figure in group}


def legends(figures: dict[str, list[str]]) -> str:
    return " ".join(re.findall("<figcaption>(.*?)</figcaption>", str(figures)))


STILL = {"filter/kept": 1.0, "filter/too_easy": 0.0, "filter/rounds": 1.0, "filter/buffer": 0.0, "reward/format": 0.0}
STILL |= {"policy/kl_reference": 0.0, "critic/explained_variance": 0.0, "validation/accuracy": 0.0}


@pytest.mark.parametrize(
    ("overrides", "charts"),
    [
        (["rl.filter.enabled=false"], {"Validation accuracy"}),
        (["rl.filter.enabled=true"], {"Validation accuracy", "Online filter", "Filter buffer"}),
        (["rl.filter.enabled=false", "rl.critic.kind=head"], {"Validation accuracy", "Critic"}),
    ],
)
def test_parts_that_are_off_have_no_chart(overrides, charts):
    config = to_dict(load_config(None, ["model.random={}", *overrides]))
    rows = [{"step": step} | STILL for step in (1, 2, 3)]
    assert titles(draw_charts(rows, metrics_of_parts_off(config))) == charts


def test_what_moves_is_drawn_although_it_does_not_count():
    config = to_dict(load_config(None, ["reward.repetition_weight=0", "model.random={}"]))
    rows = [{"step": step, "reward/total": 0.5, "reward/repetition": -0.1 * step} for step in (1, 2, 3)]
    assert "repetition" in legends(draw_charts(rows, metrics_of_parts_off(config)))
    assert metrics_of_parts_off({}) == metrics_of_parts_off({"reward": None, "rl": []}) == frozenset()


@pytest.mark.parametrize("metric", ["validation/accuracy", "reward/pass_at_2", "response/truncated", "filter/kept"])
def test_shares_are_drawn_in_percent_of_a_whole(metric):
    ((figure,),) = draw_charts([{"step": step, metric: 0.1 * step} for step in (1, 2)]).values()
    ticks = re.findall(r">(\d+)%</text>", figure)
    assert ticks[0] == "0" and ticks[-1] == "100" and "<b>20&thinsp;%</b>" in figure


def test_the_numbers_of_an_axis_are_whole():
    ((figure,),) = draw_charts([{"step": step, "loss/total": 0.003 * step} for step in range(5)]).values()
    ticks = re.findall(r">(0\.\d+)</text>", figure)
    assert len(ticks) == len(set(ticks)) > 2


def test_every_colour_has_a_dark_shade(rl_report):
    style, body = rl_report.split("</style>", 1)
    assert not re.findall(r"(?:fill|stroke|background|color): ?#(?!fff)[0-9a-f]{6}", body)
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = [set(re.findall(r"--([\w-]+):", part)) for part in (light, dark)]
    assert names[0] == names[1] >= set(re.findall(r"var\(--([\w-]+)\)", rl_report))


def test_formulas_are_drawn_in_questions_answers_and_responses(tmp_path):
    tracker = Tracker(tmp_path, NO_TENSORBOARD)
    tracker.log_metrics(1, {"x": 1.0})
    response = ResponseSample(r"<think>$\sqrt{3}$</think><answer>$x$</answer>", 1.0, {}, 3, "stop")
    tracker.log_rollouts(1, [RolloutSample("a", r"What is \(x\)?", [], r"\frac{1}{2}", [response])])
    source = write_report(tmp_path).read_text()
    assert Page(source) and len(re.findall("<math", source)) == 4
    assert re.search("gold answer</span><b>.*?<mfrac>", source)


def test_reasons_of_failures_are_a_table_and_stand_at_their_responses(tmp_path):
    run_dir = write_run(tmp_path, steps=5, every=5)
    assert "Failures" not in write_report(run_dir).read_text()
    tracker = Tracker(run_dir, NO_TENSORBOARD, resume_step=5)
    tracker.log_metrics(6, {"reward/failures": 0.75})
    reasons = [f"KeyError: '{EVIL}' (rule.py:3)", "KeyError: 'b' (rule.py:3)", "timeout after 5 s", None]
    responses = [
        ResponseSample("5", 0.0, {"custom": 0.0}, 3, "stop", {"custom": reason} if reason else {}) for reason in reasons
    ]
    tracker.log_rollouts(6, [RolloutSample("p", "q", [], "5", responses)])
    tracker.close()
    page = Page(write_report(run_dir).read_text())
    words = " ".join(" ".join(page.words).split())
    assert "rule reason, for example share first step" in words
    assert re.search(r"custom KeyError: '<script>.*\(rule.py:3\) \S+ % 6 custom timeout after 5 s \S+ % 6", words)
    assert words.count("custom: timeout after 5 s") == 1
