"""What it costs to score answers: one by one, many by reward workers, and many of which some never come back.

    python -m benchmarks.rewards --answers 1000 --hanging 0.1 --workers 2

Three measurements, on answers that are all distinct:
  one answer, in this process: the median and the 99th percentile.
  `--answers` by RewardWorkers: none of which hangs (`plain_s`), and a part of which, `--hanging`, hangs (`hanging_s`),
    in turn. The time limit passes once if any runs into it, so the ratio is (hanging_s - time limit) / plain_s.
    Which expressions hang depends on the accuracy rule: ours refuses them at once, `--accuracy upstream` runs into all
    limits. `timeouts` says how many of `hanging` did, by kind in `timeouts_by_kind`.
  the functions that read whole responses, in the training process: seconds for nasty responses of a megabyte over those
    for a quarter of it; 4 where time grows with the length, 16 where it grows with its square.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from benchmarks.common import positive
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.rewards import accuracy, upstream
from mmeureka_jax.rewards.answers.extraction import answer_text
from mmeureka_jax.rewards.base import RewardRequest, RewardResult
from mmeureka_jax.rewards.rules.format import follows_format
from mmeureka_jax.rewards.rules.repetition import repetition_penalty
from mmeureka_jax.rewards.workers import RewardWorkers

# Gold answers and answers, right and wrong. `#n` and `#m` are numbers that differ from answer to answer; `#2n` is twice
# `#n`.
PAIRS = (
    ("#n", "#n"), ("#n", "#m"), ("#n", "$#n$"), ("#n.5", "#n.50"), ("#n", r"\boxed{#n}"), ("-#n", "$-#n$"),
    ("#n,000", "#n000"), (r"#n\%", "#n%"), (r"\frac{#n}{#m}", "#n/#m"), (r"\frac{#n}{#m}", r"$\frac{#2n}{#2m}$"),
    (r"\frac{#n}{#m}", r"\dfrac{#m}{#n}"), (r"-\frac{#n}{7}", r"$-\frac{#n}{7}$"), (r"#n\sqrt{3}", r"$#n \sqrt{3}$"),
    (r"\sqrt{#n}", r"$\sqrt{#n}$"), (r"#n+\sqrt{2}", r"$\sqrt{2}+#n$"),
    (r"\frac{\sqrt{3}}{#n}", r"$\frac{\sqrt{3}}{#m}$"), (r"#n\sqrt{5}-1", "#n√5-1"), (r"#n\pi", "#nπ"),
    (r"\frac{#n\pi}{3}", r"$\frac{#n}{3}\pi$"), ("#n cm", "#n cm"), ("#n cm", "#n"), ("#n cm", "$#n$ centimeters"),
    ("#n cm^{2}", r"$#n\text{ cm}^2$"), ("#n m/s", "#m m/s"), ("#n°", r"$#n^{\circ}$"),
    ("#n", "The area is $#n$ square units."), ("(#n,#m)", "$(#n, #m)$"), ("[#n,#m]", "[#n, #m)"),
    (r"(-\infty,#n)", r"$(-\infty, #n)$"), ("x>#n", "$x > #n$"), (r"#n<x\leq #m", r"$#n < x \le #m$"),
    ("#n or #m", "#m, #n"), ("x=#n", "$#n$"), ("y=#nx+#m", "$y = #nx + #m$"), ("#nx^{2}-#m", "$#nx^2 - #m$"),
    ("x^{2}+#nx", "$x(x+#n)$"), ("2^{#n}", "$2^{#n}$"), (r"\{#n,#m\}", r"$\{#m,#n\}$"), (r"\pm #n", "#n or -#n"),
    (r"\log_{2} #n", r"$\log_2 #n$"), ("A", "A. #n"), ("B", "C. #n"), ("C", "The answer is C, #n"),
    ("trapezoid #n", "Trapezoid #n."), ("increasing", "decreasing by #n"),
)  # fmt: skip
# Expressions on which SymPy hangs, for many different reasons: a guard may know some of them.
HANGING = (
    "9^{9^{9^{#n}}}",
    "(10^{9}+#n)!",
    r"\prod_{k=1}^{10^{9}} (k+#n)",
    r"\binom{10^{9}+#n}{10^{8}}",
    "(x+y+z+w+1)^{#n}",
    r"\left(\frac{1+\sqrt{5}}{2}\right)^{100000+#n}",
    r"\sum_{k=1}^{100000+#n} \frac{1}{k}",
    r"\prod_{k=1}^{1000000+#n} \left(1+\frac{1}{k^2}\right)",
    r"\int \sqrt{\tan(x^{2}+#n)} dx",
    r"\int_0^1\int_0^1 e^{x^{#n} y^{2}} dx dy",
)
LENGTHS = (250_000, 1_000_000)  # characters
NASTY: dict[str, Callable[[int], str]] = {
    "braces": lambda n: "{" * n,
    "closed braces": lambda n: "{" * (n // 2) + "}" * (n // 2),
    "boxes": lambda n: r"\boxed{" * (n // 7),
    "tags": lambda n: "<answer>" * (n // 8),
    "closing tags": lambda n: "</answer>" * (n // 9),
    "thoughts": lambda n: "<think>" * (n // 7),
    "spaces": lambda n: " " * n,
    "spaces in tags": lambda n: f"<think>{' ' * (n // 2)}</think><answer>{' ' * (n // 2)}</answer>",
    "line breaks": lambda n: "\n" * n,
    "one long line": lambda n: "the sum is 12 and so " * (n // 21),
    "one word": lambda n: "a" * n,
    "digits": lambda n: "7" * n,
    "dollars": lambda n: "$" * n,
}  # fmt: skip


def fill(text: str, number: int) -> str:
    """The text with numbers in place of `#n` and `#m`; no two numbers give the same text."""
    values = {"n": 2 * number + 11, "m": 3 * number + 17}
    return re.sub(r"#(2?)([nm])", lambda match: str(int(match[1] or 1) * values[match[2]]), text)


def honest_pairs(count: int, first: int) -> list[tuple[str, str]]:
    """`count` pairs of a gold answer and an answer, with numbers from `first` on."""
    kinds = (PAIRS[i % len(PAIRS)] for i in range(count))
    return [(fill(gold, first + i), fill(answer, first + i)) for i, (gold, answer) in enumerate(kinds)]


def as_request(gold: str, answer: str) -> RewardRequest:
    return RewardRequest(f"<think>So it must be so.</think><answer>{answer}</answer>", gold)


def time_one_by_one(count: int) -> dict[str, float]:
    """Seconds of single answers, without workers."""
    for gold, answer in honest_pairs(len(PAIRS), 0):
        accuracy.accuracy(as_request(gold, answer).response, gold, "instruct")
    seconds = []
    for gold, answer in honest_pairs(count, 1_000):
        response = as_request(gold, answer).response
        start = time.perf_counter()
        accuracy.accuracy(response, gold, "instruct")
        seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds)
    return {
        "one_median_ms": round(1e3 * statistics.median(seconds), 2),
        "one_p99_ms": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 2),
        "one_max_ms": round(1e3 * ordered[-1], 2),
    }


def mixed_requests(count: int, hanging: int, first: int) -> tuple[list[RewardRequest], dict[int, str]]:
    """`count` requests, and the places of the `hanging` ones, evenly spread among them, with their kinds."""
    requests = [as_request(gold, answer) for gold, answer in honest_pairs(count, first)]
    places = {}
    for i in range(hanging):
        place = i * count // hanging
        places[place] = HANGING[i % len(HANGING)]
        requests[place] = as_request("5", f"${fill(places[place], first + i)}$")
    return requests, places


def time_workers(args: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds for many answers, with and without some that hang."""
    hanging = round(args.hanging * args.answers)
    seconds: dict[str, list[float]] = {"plain": [], "hanging": []}
    timeouts: Counter[str] = Counter()
    honest_failures = 0
    failures = 0
    config = RewardConfig(accuracy=args.accuracy, workers=args.workers, time_limit=args.time_limit)
    with RewardWorkers(config) as rewards:
        rewards.validate()
        rewards.score([as_request(*pair) for pair in honest_pairs(2 * len(PAIRS), 500)])
        for number in range(2 * args.repeats):
            name = ("plain", "hanging")[number % 2]
            requests, places = mixed_requests(args.answers, hanging * (number % 2), 1_000 + 5_000 * number)
            start = time.perf_counter()
            results = rewards.score(requests)
            seconds[name].append(time.perf_counter() - start)
            failed = {place for place, result in enumerate(results) if result.failure is not None}
            failures += len(failed)
            honest_failures += len(failed - places.keys())
            timeouts.update(kind for place, kind in places.items() if timed_out(results[place]))
    plain_s = statistics.median(seconds["plain"])
    hanging_s = statistics.median(seconds["hanging"])
    return {
        "ratio": round((hanging_s - (args.time_limit if timeouts else 0.0)) / plain_s, 3),
        "plain_s": round(plain_s, 3),
        "hanging_s": round(hanging_s, 3),
        "hanging": hanging,
        "timeouts": sum(timeouts.values()) // args.repeats,
        "timeouts_by_kind": dict(timeouts),
        "failures": failures,
        "honest_failures": honest_failures,
        "all": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
    }


def timed_out(result: RewardResult) -> bool:
    return result.failure is not None and "timeout" in result.failure


def readers() -> dict[str, Callable[[str], Any]]:
    """The functions that read whole responses."""
    formats = get_args(get_type_hints(RewardConfig)["format"])
    return {
        **{f"answer, {form}": functools.partial(answer_text, form=form) for form in ("instruct", "boxed")},
        **{rule: functools.partial(upstream.extract, form=form) for rule, form in upstream.FORMS.items()},
        **{f"format, {style}": functools.partial(follows_format, style=style) for style in formats},
        "repetition": functools.partial(repetition_penalty, ngram=RewardConfig.repetition_ngram),
    }


def time_readers() -> dict[str, Any]:
    """How much longer four times the text takes, for the worst pair of reader and text."""
    rows = {}
    for name, read in readers().items():
        for kind, make in NASTY.items():
            short, long = (best_of_two(read, make(length)) for length in LENGTHS)
            # Less than a hundredth of a second is only noise.
            rows[f"{name}: {kind}"] = {"s": round(long, 4), "growth": round(max(long, 0.01) / max(short, 0.01), 2)}
    worst = max(rows, key=lambda row: rows[row]["growth"])
    slowest = max(rows, key=lambda row: rows[row]["s"])
    return {
        "reader_growth": rows[worst]["growth"],
        "reader_worst": worst,
        "reader_slowest_s": rows[slowest]["s"],
        "reader_slowest": slowest,
    }


def best_of_two(read: Callable[[str], Any], text: str) -> float:
    """Seconds of this process's CPU time, to which other processes on the machine add nothing."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        read(text)
        seconds.append(time.process_time() - start)
    return min(seconds)


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rewards",
        description="Scoring of answers, some of which hang.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--accuracy",
        choices=("instruct", *upstream.FORMS),
        default="instruct",
        help="as reward.accuracy; upstream's rules refuse nothing, so that what hangs does",
    )
    parser.add_argument("--answers", type=positive, default=1000)
    parser.add_argument("--hanging", type=fraction, default=0.1, help="the part of them that hangs")
    parser.add_argument("--workers", type=positive, default=RewardConfig.workers, help="as reward.workers")
    parser.add_argument("--time-limit", type=float, default=RewardConfig.time_limit, help="as reward.time_limit")
    parser.add_argument("--repeats", type=positive, default=1, help="of both runs, in turn")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    load = os.getloadavg()[0]
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    figures = {**time_workers(args), **time_one_by_one(args.answers), **time_readers()}
    print(json.dumps({**figures, "options": vars(args), "cores": os.cpu_count(), "load_before": round(load, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
