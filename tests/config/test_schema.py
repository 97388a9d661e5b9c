"""The config loader: what merges, what is refused and with which words, and that what is saved reads back equal."""

import dataclasses
import os
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.reading import CustomFunction, Overlay, Sections, config_diff, dotted_keys, to_dict
from mmeureka_jax.config.schema import Config, RandomModelConfig
from mmeureka_jax.config.yaml_text import dump_yaml
from mmeureka_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, *overrides) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


def test_defaults_without_a_file():
    assert load_config(None) == Config()


def test_chain_of_bases_merges_key_by_key(write):
    write(
        "shared/root.yaml",
        "steps: 5\nrl: {loss: cpgd, filter: {lower: 0.2, upper: 0.7}}\noptimizer: {frozen: [a, b]}\n",
    )
    write("middle.yaml", "base: shared/root.yaml\nrl:\n  group_size: 4\n  filter:\n    upper: 0.8\n")
    config = load_config(
        write("leaf.yaml", "base: middle.yaml\nsteps: 7\noptimizer: {frozen: []}\n"), ["rl.group_size=16"]
    )
    assert (config.steps, config.rl.loss, config.rl.group_size) == (7, "cpgd", 16)
    assert (config.rl.filter.lower, config.rl.filter.upper) == (0.2, 0.8)
    assert config.optimizer.frozen == ()  # lists are replaced
    assert config.rl.kl_estimator == Config().rl.kl_estimator


def test_empty_file_is_the_defaults(write):
    assert load_config(write("a.yaml", "# nothing\n")) == Config()


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("optimizer.learning_rate=1e-5", "optimizer.learning_rate", 1e-5),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("optimizer.eps=.5e-3", "optimizer.eps", 0.0005),
        ("steps=1e3", "steps", 1000),
        ("steps=010", "steps", 10),
        ("rl.ratio_cap=3", "rl.ratio_cap", 3.0),
        ("rl.ratio_cap=null", "rl.ratio_cap", None),
        ("data.prompt_buckets=[256, 512]", "data.prompt_buckets", (256, 512)),
        ("optimizer.frozen=[]", "optimizer.frozen", ()),
        ("rl.filter.enabled=false", "rl.filter.enabled", False),
        ("model.random={}", "model.random", RandomModelConfig()),
        ("model.random.seed=3", "model.random", RandomModelConfig(seed=3)),
        ("run_dir=2024", "run_dir", "2024"),
        ("run_dir=runs/a=b", "run_dir", "runs/a=b"),
        ("run_dir=no", "run_dir", "no"),
        ("data.train=tfds:shapes/mixed@test[:128]", "data.train", "tfds:shapes/mixed@test[:128]"),
        ("data.train=*.parquet", "data.train", "*.parquet"),
        ("data.train=a: b", "data.train", "a: b"),
        ("data.validation=", "data.validation", None),
        ('data.validation="null"', "data.validation", "null"),
        ("reward.custom=rules.py:score", "reward.custom", "rules.py:score"),
    ],
)
def test_override_values(override, key, value):
    got = load_config(None, [override])
    for part in key.split("."):
        got = getattr(got, part)
    assert got == value and type(got) is type(value)


def test_later_override_wins_and_null_clears_a_section(write):
    path = write("a.yaml", "model: {random: {seed: 4}}\n")
    assert load_config(path, ["steps=3", "steps=4"]).steps == 4
    assert load_config(path, ["model.random=null"]).model.random is None
    assert load_config(path, ["model.random=null", "model.random.num_layers=2"]).model.random == RandomModelConfig(
        num_layers=2
    )


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("rl.los", "rl.loss"),
        ("learning_rate", "optimizer.learning_rate"),
        ("rl.learning_rate", "optimizer.learning_rate"),
        ("rl.filter.uper", "rl.filter.upper"),
        ("sampler.temprature", "sampler.temperature"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    message = refusal(None, f"{key}=1")
    assert (
        f"override '{key}=1'" in message
        and f"unknown key '{key}'" in message
        and f"nearest key is '{nearest}'" in message
    )


def test_all_mistakes_of_a_file_with_their_lines(write):
    base = write("base.yaml", "steps: 3\nrl:\n  los: cpgd\n")
    path = write(
        "a.yaml",
        "base: base.yaml\nrl:\n  kl_place: rewards\n  group_size: 2.5\nmodel:\n  random: 7\noptimizer:\n"
        "  frozen: vision\ndata:\n  shuffle: 1\n  root: [a]\nsampler:\n",
    )
    lines = refusal(path).splitlines()
    expected = [
        (f"{base}:3", "'rl.los'", "'rl.loss'"),
        (f"{path}:3", "rl.kl_place must be one of loss, reward; got 'rewards' (did you mean reward?)"),
        (f"{path}:4", "rl.group_size must be an integer; got 2.5"),
        (f"{path}:6", "model.random must be a section"),
        (f"{path}:8", "optimizer.frozen must be a list of texts", "got 'vision'"),
        (f"{path}:10", "data.shuffle must be true or false; got 1"),
        (f"{path}:11", "data.root must be text or null", 'got ["a"]'),
        (f"{path}:12", "sampler must be a section", "got null"),
    ]
    assert len(lines) == len(expected)
    for parts in expected:
        assert any(all(part in line for part in parts) for line in lines), parts


@pytest.mark.parametrize(
    "override",
    ["steps=true", "steps=.inf", "steps=.nan", "optimizer.b1=true", "data.prompt_buckets=3", "data.prompt_buckets=[a]"],
)
def test_wrong_types(override):
    assert override.partition("=")[0] in refusal(None, override)


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("rl:\n  loss: [a\nx: 1\n", 3, "not valid YAML"),
        ("steps: 1\n\tseed: 2\n", 2, "not valid YAML"),
        ("steps: 1\nsteps: 2\n", 2, "'steps' is given twice"),
        ("- steps\n", 1, "`key: value` lines"),
        ("steps: 1\n---\nsteps: 2\n", 2, "not valid YAML"),
        ("3: 4\n", 1, "keys are names"),
        ("base: [a.yaml]\n", 1, "path of one config file"),
        ("base: [a.yaml]\n", 1, "path of one config file"),
        ('base: "a\\0b.yaml"\n', 1, "one with control characters"),
        *(
            (f"steps: 1\nrun_dir: {tag} {value}\n", 2, f"the tag {tag} is not read")
            for tag, value in {
                "!!python/object/apply:os.getcwd": "[]",
                "!!python/object/new:os.system": "['touch RUN']",
                "!own": "a",
                "!!python/name:os.system": "''",
                "!!binary": "aGVsbG8=",
                "!!timestamp": "2024-01-01",
                "!!set": "{a}",
                "!!omap": "[a: b]",
                "!!pairs": "[a: b]",
                "!!str": "[a]",
                "!!map": "a",
            }.items()
        ),
        ("steps: !!int many\n", 1, "'many' is no int"),
        ("steps: !!bool many\n", 1, "'many' is no bool"),
        (f"steps: {'9' * 5000}\n", 1, "is no int"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "keys are names; got 'a sequence'"),
        ("a: 1\n? {b: c}\n: 2\n", 2, "keys are names; got 'a mapping'"),
        ("null: 2\n", 1, "keys are names; got null"),
        ("true: 2\n", 1, "keys are names; got true"),
        ("rl: {loss: cpgd}\nrl: {loss: pg}\n", 2, "'rl' is given twice"),
        ("rl: &x\n  filter: *x\n", 1, "does an anchor repeat itself"),
        ("rl: &x [*x]\n", 1, "does an anchor repeat itself"),
        (
            "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else '1'] * 9)}]\n" for i in range(9)),
            1,
            "10000 values",
        ),
        (
            "".join(
                f"l{i}: &l{i} {{a: {f'*l{i - 1}' if i else '1'}, b: {f'*l{i - 1}' if i else '1'}}}\n" for i in range(19)
            ),
            1,
            "10000 values",
        ),
        (f"a: {'[' * 20_000}\n", 1, "20 levels deep"),
        (f"a: {'{b: ' * 9_000}\n", 1, "20 levels deep"),
        (f"a:\n{'- ' * 30_000}\n", 2, "20 levels deep"),
        (f"a: [{'1, ' * 30_000}]\n", 1, "10000 values"),
        ('a: "\\U00110000"\n', 1, "not valid YAML"),
        ("rl.group_size: 4\n", 1, "write group_size in the section rl, as in rl: {group_size: ...}"),
        ("rl:\n  filter.lower: 0.1\n", 2, "write lower in the section rl.filter, as in rl: {filter: {lower: ...}}"),
        ('run_dir: "\\ud800"\n', 1, "run_dir must be text; got one with control characters"),
        ('data: {train: "a\\0b"}\n', 1, "data.train must be text; got one with control characters"),
        ('run_dir: "a\\nb"\n', 1, "run_dir must be text; got one with control characters, line ends"),
        ("rl:\n  <<: {group_size: 4}\n", 2, "merge keys of YAML are not read"),
        (f"steps: {'9' * 5000}\n", 1, "value has 5000 digits"),
        ('optimizer: {frozen: ["\\ud800"]}\n', 1, "optimizer.frozen must be a list of texts"),
        (f"run_dir: {'a' * 5000}\n", 1, "longer than 4096 characters"),
        (f"optimizer: {{learning_rate: {'9' * 400}}}\n", 1, "optimizer.learning_rate must be a number"),
        ("run_dir: 2024-01-01T00:00:00\nsteps: 2024-01-01\n", 2, "steps must be an integer; got '2024-01-01'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_yaml_names_the_line(write, text, line, words):
    path = write("bad.yaml", text)
    message = refusal(path)
    assert (
        message.startswith(f"{path}:{line}: ") or line == 1 and message.startswith(f"{path}: ")
    ) and words in message
    assert len(message.splitlines()) == 1 and len(message) < 600


@pytest.mark.parametrize("value", ["3", "[]", "x"])
def test_no_override_covers_what_is_no_section(write, value):
    path = write("bad.yaml", f"data: {value}\n")
    assert refusal(path, "data.train=a.jsonl").startswith(f"{path}:1: data must be a section")


def test_missing_and_unreadable_files(write, tmp_path):
    assert "no such config file" in refusal(tmp_path / "none.yaml")
    path = write("a.yaml", "base: gone.yaml\n")
    assert "gone.yaml" in refusal(path) and str(path) in refusal(path)
    (tmp_path / "latin.yaml").write_bytes("run_dir: caf\xe9\n".encode("latin-1"))
    assert "UTF-8" in refusal(tmp_path / "latin.yaml")
    (tmp_path / "utf16.yaml").write_bytes("steps: 3\n".encode("utf-16"))
    assert "UTF-8" in refusal(tmp_path / "utf16.yaml")
    assert "cannot read" in refusal(tmp_path)
    assert "cannot read" in refusal(tmp_path / ("a" * 300))
    assert "not a regular file" in refusal(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in refusal(write("b.yaml", "base: pipe.yaml\n"))
    assert "too large" in refusal(write("long.yaml", "# long\n" * 50_000))
    (tmp_path / "round.yaml").symlink_to(tmp_path / "round.yaml")
    assert "leads back to itself" in refusal(tmp_path / "round.yaml")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "bom.yaml").write_bytes("steps: 3\n".encode("utf-8-sig"))
    assert load_config(tmp_path / "bom.yaml").steps == 3


def test_many_unknown_keys_end_at_once(write):
    message = refusal(write("many.yaml", "".join(f"key{i}: 1\n" for i in range(4000))))
    assert message.count("unknown key") == 50 and message.endswith("and perhaps more")


def test_base_cycle(write):
    path = write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    assert "circle" in refusal(path)


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_override_without_key_or_value(override):
    assert "expected KEY=VALUE" in refusal(None, override)


def values_of(annotation) -> st.SearchStrategy:
    """Values of one field's annotation."""
    if dataclasses.is_dataclass(annotation):
        return trees(annotation)
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if arguments:
        return st.one_of([values_of(a) for a in arguments])
    return {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs", "Cc"]))
        | st.sampled_from(["1e-5", "null", "~", "yes", "0x10", "a: b", "- a", "1_0", ".inf", "é #"]),
        type(None): st.none(),
        CustomFunction: st.sampled_from(["a.py:f", "é/b c.py:g"]),
        Sections: st.dictionaries(
            st.sampled_from(["a", "b c"]), st.dictionaries(st.just("weight"), st.integers()), max_size=2
        ),
        Overlay: st.dictionaries(st.sampled_from(["steps", "rl"]), st.integers() | st.just({"loss": "pg"}), max_size=2),
    }[annotation]


def trees(cls) -> st.SearchStrategy:
    return st.builds(cls, **{name: values_of(t) for name, t in typing.get_type_hints(cls).items()})


@settings(max_examples=60, deadline=None)
@given(config=trees(Config))
def test_saved_config_reads_back_equal(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_save_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_config(Config(), tmp_path / "file" / "config.yaml")


def test_dump_is_one_key_a_line():
    assert "\n  prompt_buckets: []\n" in dump_yaml(to_dict(Config()))


def test_dotted_keys_name_every_field():
    keys = set(dotted_keys(Config))
    assert {"rl", "rl.filter", "rl.filter.lower", "model.random.seed", "steps"} <= keys


def test_config_diff():
    old = to_dict(Config())
    new = to_dict(load_config(None, ["rl.loss=cpgd", "rl.ratio_cap=3", "data.prompt_buckets=[1024]"]))
    assert config_diff(old, old) == []
    assert config_diff(old, new) == [
        "data.prompt_buckets: [] -> [1024]",
        "rl.loss: ppo_clip -> cpgd",
        "rl.ratio_cap: null -> 3.0",
    ]
    assert config_diff({"a": {"b": 1}}, {"a": {"c": None}}) == ["a.b: 1 -> (absent)", "a.c: (absent) -> null"]
