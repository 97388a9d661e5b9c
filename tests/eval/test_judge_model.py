"""A judge model beside the rules: asked once for each content, its part of the score counted, never there by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import free_port, mmeureka, read_rows, write_rows
from helpers.releases import known_release, write_json
from helpers.served_judge import served_judge

from mmeureka_jax.evaluation import ask, judge_function, judge_server
from mmeureka_jax.evaluation import benchmark as benchmark_module
from mmeureka_jax.evaluation.judge_server import PROMPT, read_verdict
from mmeureka_jax.report.answer_browser import read_element
from mmeureka_jax.rewards import workers

ROWS = [
    {"id": str(index), "question": f"Which is {index}?", "answer": "ABCD"[index % 4], "subject": subject, "image": None}
    for index, subject in enumerate(("math", "math", "physics", "biology"))
]
FINE = "<think>fine</think>"  # what the judge looks for
# Two answers to each row: right by all, by the model alone, by the rules alone, nothing to judge. The first two answers
# are one content.
RESPONSES = [
    *(FINE + "<answer>A</answer>", FINE + "<answer>A</answer>"),
    *(FINE + "<answer>none of them</answer>", "<answer>none of them</answer>"),
    *("<answer>C</answer>", FINE + "<answer>C</answer>"),
    *(" ", "<answer>it is \ud800</answer>"),
]
ANSWERS = [{"id": str(number // 2), "response": text} for number, text in enumerate(RESPONSES)]
MODEL = [1, 1, 1, 0, 0, 1, 0, 0]
CONTENTS = 6  # that are asked about
KEY = "sk-not-a-key-0123456789"


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(judge_server, "WAITS", (0.01, 0.02))
    with served_judge(lambda prompt: "Yes." if FINE in prompt else "**No**") as served:
        yield served


@pytest.fixture
def command(tmp_path, monkeypatch, shared_reward_workers):
    """Runs `mmeureka eval judge` on answers to the rows above."""
    for module in (ask, judge_function):
        monkeypatch.setattr(module, "RewardWorkers", workers.RewardWorkers)  # the shared ones
    release = write_json(tmp_path / "mmk12.json", ROWS)
    monkeypatch.setattr(benchmark_module, "open_benchmark", lambda name: known_release("mmk12", ROWS))

    def run(answers, *options, output="out"):
        file = write_rows(tmp_path / "answers.jsonl", answers)
        given = ["--benchmark", f"mmk12={release}", "--answers", file, "--output", tmp_path / output, *options]
        return mmeureka("eval", "judge", *given)

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def results_in(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["benchmarks"]["mmk12"]


def test_each_content_is_asked_once(command, judge, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(ANSWERS) == 0
    without = files_of(out)
    assert judge.count == 0 and set(without) == {"mmk12.jsonl", "results.json", "eval.html"}
    assert not any(b'"model"' in without[name] for name in ("mmk12.jsonl", "results.json"))
    given = ("--judge-model", judge.address, "--judge-model-name", "wise")
    assert command(ANSWERS, *given) == 0
    said = capsys.readouterr()
    assert "model 50.0% (12.5 points of it by the judge model alone)" in said.out
    assert f"{CONTENTS} verdicts to ask for, 0 are in" in said.err
    assert judge.count == CONTENTS
    for path, headers, body in judge.requests:
        assert (path, headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
        assert (body["model"], body["temperature"]) == ("wise", 0)
    asked = {request[2]["messages"][0]["content"] for request in judge.requests}
    texts = [text.replace("\ud800", "?") for text in RESPONSES]
    contents = [(f"Which is {number // 2}?", "AABBCCDD"[number], text) for number, text in enumerate(texts)]
    assert asked == {PROMPT.format(question=q, answer=a, response=r) for q, a, r in contents if r.strip()}
    written = files_of(out)
    assert not any(KEY.encode() in content for content in written.values()) and KEY not in said.out + said.err

    assert command(ANSWERS, *given) == 0
    assert files_of(out) == written and judge.count == CONTENTS
    assert command(ANSWERS) == 0
    assert files_of(out) == without | {"judge_model.jsonl": written["judge_model.jsonl"]}
    changed = [*ANSWERS[:-1], {"id": "3", "response": "another"}]
    assert command(changed, *given) == 0 and judge.count == CONTENTS + 1
    assert command(ANSWERS, *given[:-1], "wiser") == 0 and judge.count == 2 * CONTENTS + 1
    lines = (out / "judge_model.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == judge.count
    (out / "judge_model.jsonl").write_bytes(b"".join(lines[1:])[:-7])  # one verdict is gone, and one is torn
    assert command(ANSWERS, *given) == command(ANSWERS, *given[:-1], "wiser") == 0
    assert (judge.count, len(read_rows(out / "judge_model.jsonl"))) == (2 * CONTENTS + 3, 2 * CONTENTS + 1)


def test_figures_equal_a_plain_recount(command, judge, tmp_path):
    given = ("--judge-model", judge.address + "/", "--judge-model-name", "wise")
    assert command(ANSWERS, output="without") == command(ANSWERS, *given) == 0
    rows = read_rows(tmp_path / "out" / "mmk12.jsonl")
    assert [row.pop("model") for row in rows] == MODEL
    assert rows == read_rows(tmp_path / "without" / "mmk12.jsonl")
    before = results_in(tmp_path / "without")
    results = results_in(tmp_path / "out")
    assert {key: results[key] for key in ("official", "ours", "count", "failed", "unparsed")}.items() <= before.items()
    assert results["model"] == sum(MODEL) / 8 and results["several"]["model"]["pass_at_k"]["2"] == 3 / 4
    low, high = results["intervals"]["model"]
    assert low < results["model"] < high
    counted = {value: own["model"] for value, own in results["breakdowns"]["subject"].items()}
    assert counted == {"math": 3 / 4, "physics": 1 / 2, "biology": 0}
    found = [(row["official"], row["ours"], model) for row, model in zip(rows, MODEL, strict=True)]
    assert results["judge_model"] == {"alone": found.count((0, 0, 1)) / 8, "turned_down": found.count((1, 1, 0)) / 8}
    assert results["disagreements"] == sum(len(set(verdicts)) > 1 for verdicts in found) > before["disagreements"]
    settings = results["settings"]
    described = {"model": "wise", "address": judge.address, "prompt": PROMPT}
    assert settings.pop("judges") == before["settings"].pop("judges") | {"model": described}
    assert settings == before["settings"]
    page = (tmp_path / "out" / "eval.html").read_text()
    assert [row[-1] for row in read_element(page, "data")["benchmarks"][0]["answers"]] == MODEL
    assert 'by model</th><td class="number">50.0</td>' in page and "official / ours / model, 4 problems" in page
    assert "official=wrong&amp;ours=wrong&amp;model=right" in page and "judge model alone 12.5" in page


def test_answers_that_are_there_are_judged(command, judge, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_rows(out / "mmk12.answers.jsonl", ANSWERS)
    given = ["eval", "--judge-only", "--benchmark", f"mmk12={tmp_path / 'mmk12.json'}", "--output", out]
    (out / "mmk12.settings.json").write_text('{"model": "m", "judges": {"official": "x", "ours": "y"}}')
    assert mmeureka(*given, "--judge-model", judge.address, "--judge-model-name", "wise") == 0
    settings = results_in(out)["settings"]
    assert set(settings) == {"model", "judges"} and set(settings["judges"]) == {"official", "ours", "model"}
    assert mmeureka(*given) == 0
    assert results_in(out)["settings"]["judges"] == {"official": "x", "ours": "y"} and judge.count == CONTENTS


def test_a_busy_server_is_asked_again(command, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_server, "TIMEOUT", 1.0)
    monkeypatch.setattr(judge_server, "THREADS", 1)
    judge.failures = [(500, {}, "down"), (429, {"Retry-After": "0"}, "busy")]
    judge.delays = [0, 0, 0, 1.5]
    assert command(ANSWERS, "--judge-model", judge.address, "--judge-model-name", "wise") == 0
    assert judge.count == CONTENTS + 3
    assert [row["model"] for row in read_rows(tmp_path / "out" / "mmk12.jsonl")] == MODEL


SERVER_ERROR = (503, {}, "<h1>overloaded</h1>")
FAILURES = {
    "401": ([(401, {}, json.dumps({"error": {"message": f"wrong:\n{KEY}"}}))], "status 401: wrong: [the key] (its", 1),
    "404": ([(404, {}, '{"detail": "no such model"}')], 'HTTP status 404: {"detail": "no such model"}', 1),
    "redirect": ([(302, {"Location": "/elsewhere"}, "")], "a redirect is not followed", 1),
    "no json": ([(200, {}, "<html>welcome</html>")], "its reply is no chat completion: '<html>welcome</html>'", 1),
    "away": ([SERVER_ERROR] * 3, "HTTP status 503: <h1>overloaded</h1>, at 3 attempts", 3),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_fails_ends_the_command(failure, command, judge, tmp_path, capsys, monkeypatch):
    failures, message, attempts = FAILURES[failure]
    monkeypatch.setattr(judge_server, "THREADS", 1)
    judge.failures = list(failures)
    given = ("--judge-model", judge.address, "--judge-model-name", "wise")
    assert command(ANSWERS, *given) == 2
    said = capsys.readouterr().err
    assert f"no verdict on {CONTENTS} of {CONTENTS} answers: {judge.address}: " in said and message in said
    assert judge.count == attempts and KEY not in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"judge_model.jsonl"}


def test_what_is_neither_yes_nor_no_is_said(command, judge, tmp_path, capsys):
    given = ("--judge-model", judge.address, "--judge-model-name", "wise")
    says = judge.says
    judge.says = lambda prompt: "maybe" if "none of them" in prompt else says(prompt)
    assert command(ANSWERS, *given) == 2
    said = capsys.readouterr().err
    assert f"no verdict on 2 of {CONTENTS} answers: the judge model was asked for Yes or No and said 'maybe'" in said
    assert "the same command goes on from there" in said
    assert judge.count == CONTENTS and not (tmp_path / "out" / "results.json").exists()
    judge.says = says
    judge.failures = [(400, {}, "too long")]  # about one question: the other is asked
    assert command(ANSWERS, *given) == 2 and judge.count == CONTENTS + 2
    assert "no verdict on 1 of 6 answers" in (said := capsys.readouterr().err) and "400: too long" in said
    assert command(ANSWERS, *given) == 0 and judge.count == CONTENTS + 3
    assert [row["model"] for row in read_rows(tmp_path / "out" / "mmk12.jsonl")] == MODEL
    away = f"http://127.0.0.1:{free_port()}"
    assert command(ANSWERS, "--judge-model", away, "--judge-model-name", "wise") == 2
    assert f"{away}: no answer (" in capsys.readouterr().err
    (tmp_path / "out" / "judge_model.jsonl").write_text('{"key": "k", "verdict": 2}\n')
    assert command(ANSWERS, *given) == 2
    assert "judge_model.jsonl:1: it is no verdict of a judge model" in capsys.readouterr().err


def test_a_model_that_cannot_judge_is_not_asked_everything(command, judge, capsys, monkeypatch):
    monkeypatch.setattr(judge_server, "THREADS", 1)
    judge.says = lambda prompt: "maybe"
    many = [{"id": row["id"], "response": str(number)} for row in ROWS for number in range(50)]
    assert command(many, "--judge-model", judge.address, "--judge-model-name", "wise") == 2
    assert judge.count < 100 and "no verdict on 200 of 200 answers" in capsys.readouterr().err


SAYS = {"Yes": True, " yes.\n": True, "**No**": False, "<think>yes or no?</think>\nNo, it differs": False}


@pytest.mark.parametrize("text", [*SAYS, "maybe", "", "Yesterday", "Not", "<think>yes", "The answer is Yes"])
def test_a_verdict_is_the_first_word(text):
    reply = read_verdict(text)
    assert reply.verdict is SAYS.get(text)
    assert text in reply.text or repr(text) in reply.text


FUNCTION = """
from pathlib import Path

def judge(question, answer, response):
    if "none" in response and Path(__file__).with_name("odd").exists():
        return "yes"
    assert question.startswith("Which is ") and answer in "ABCD"
    return "fine" in response
"""


def test_a_function_of_the_users_own(command, tmp_path, capsys):
    file = tmp_path / "wise.py"
    file.write_text(FUNCTION)
    (tmp_path / "odd").touch()
    assert command(ANSWERS, "--judge-model", f"{file}:judge") == 2
    said = capsys.readouterr().err
    assert (
        f"no verdict on 2 of {CONTENTS} answers: judge of {file} failed: TypeError: the function returned str" in said
    )
    assert "expected True or False (wise.py:4)" in said
    (tmp_path / "odd").unlink()
    kept = len(read_rows(tmp_path / "out" / "judge_model.jsonl"))
    assert command(ANSWERS, "--judge-model", f"{file}:judge") == 0
    assert f"2 verdicts to ask for, {kept} are in" in capsys.readouterr().err
    assert [row["model"] for row in read_rows(tmp_path / "out" / "mmk12.jsonl")] == MODEL
    described = results_in(tmp_path / "out")["settings"]["judges"]["model"]
    assert (described["file"], described["function"], len(described["sha256"])) == ("wise.py", "judge", 64)


def test_evaluations_by_one_judge_model_are_compared(command, judge, tmp_path, capsys):
    given = ("--judge-model", judge.address, "--judge-model-name")
    better = [{**row, "response": FINE + row["response"]} for row in ANSWERS]
    assert command(ANSWERS, *given, "wise", output="a") == command(better, *given, "wise", output="b") == 0
    assert command(better, *given, "wiser", output="c") == 0
    page = tmp_path / "page.html"
    shown = {}
    for second in "bc":
        capsys.readouterr()
        assert mmeureka("eval", "compare", tmp_path / "a", tmp_path / second, "--output", page) == 0
        (benchmark,) = read_element(page.read_text(), "data")["benchmarks"]
        shown[second] = (capsys.readouterr().out, page.read_text(), benchmark)
    out, text, benchmark = shown["b"]
    assert "mmk12, model: 50.0% and 100.0%, difference +50.0%" in out and "3 better, 0 worse" in out
    assert "change=better-model" in text and [problem[5][2] for problem in benchmark["problems"]] == [0, 1, 1, 1]
    out, text, benchmark = shown["c"]
    assert "mmk12, model" not in out and "better-model" not in text and "judges.model.model" in text
    assert {len(problem[5]) for problem in benchmark["problems"]} == {2}
    assert {len(row) for row in benchmark["answers"]} == {9}


ADDRESS = "http://127.0.0.1:9/v1"
NAMED = ("--judge-model-name", "wise")
REFUSED = [
    (NAMED, "--judge-model-name is for --judge-model with the address"),
    (("--judge-model", ADDRESS), "give the model there too, with --judge-model-name NAME"),
    (("--judge-model", "wise.py:judge", *NAMED), "--judge-model-name is for an address"),
    (("--judge-model", "wise.py:judge"), "there is no file"),
    (("--judge-model", "gpt-4o"), "neither FILE.py:FUNCTION nor an address"),
    (("--judge-model", f"{ADDRESS}/chat/completions", *NAMED), "without /chat/completions"),
    (("--judge-model", "http://me:secret@127.0.0.1:9/v1", *NAMED), "without user, ? and #"),
    (("--judge-model", f"{ADDRESS}?key=secret", *NAMED), "without user, ? and #"),
    (("--judge-model", "https:///v1", *NAMED), "is no address such as"),
    (("--judge-model", "http://127.0.0.1:port/v1", *NAMED), "is no address such as"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_a_judge_that_cannot_be_is_refused(options, message, command, tmp_path, capsys):
    assert command(ANSWERS, *options) == 2
    said = capsys.readouterr().err
    assert message in said and "secret" not in said
    assert not (tmp_path / "out").exists()


def test_a_judge_is_for_benchmarks(tmp_path, capsys):
    given = ("--model", "m", "--data", "d.jsonl", "--output", tmp_path / "out")
    assert mmeureka("eval", *given, "--judge-model", ADDRESS, *NAMED) == 2
    assert "--judge-model is for --benchmark and --suite" in capsys.readouterr().err
