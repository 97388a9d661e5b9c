"""The config loader: what merges, what is refused and with which words, and that what is saved reads back equal."""

import dataclasses
import os
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.reading import CustomFunction, Overlay, config_diff, dotted_keys, to_dict
from mmeureka_jax.config.schema import Config, RandomModelConfig
from mmeureka_jax.config.yaml_text import dump_yaml
from mmeureka_jax.errors import UserError
from mmeureka_jax.setup.checks import validate_config


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


VALID = ("model.random={}",)


def problems_of(*overrides, command="train") -> list[str]:
    try:
        validate_config(load_config(None, [*VALID, *overrides]), command=command)
    except UserError as error:
        return str(error).splitlines()
    return []


def test_default_recipe_with_a_model_is_valid():
    assert problems_of("seed=2147483647") == problems_of() == [] and problems_of(command="sft") == []


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["model.checkpoint=a"], ["exactly one", "both are"]),
        (["model.random=null"], ["exactly one", "neither is"]),
        (["model.random.num_heads=10"], ["model.random.hidden_size"]),
        (["model.random.num_kv_heads=4"], ["num_heads (6)", "num_kv_heads (4)"]),
        (["model.random.num_kv_heads=0"], ["num_kv_heads must be positive"]),
        (["model.random.vision_num_heads=5"], ["vision_hidden_size"]),
        (["model.random.vision_full_attention_blocks=[4]"], ["0 to 3"]),
        (["model.random.family=qwen2_vl"], ["vision_intermediate_size (256)", "multiple of vision_hidden_size (96)"]),
        (["rl.prompts_per_update=24"], ["(24)", "(128)", "must divide"]),
        (["rl.micro_batches=3"], ["rl.micro_batches (3)", "rl.prompts_per_update (16)"]),
        (["rl.group_size=1"], ["rl.group_size", "at least 2"]),
        (["rl.filter.lower=0.9", "rl.filter.upper=0.1"], ["lower <= upper"]),
        (["rl.filter.upper=1.5"], ["lower <= upper"]),
        (["rl.filter.lower=.nan"], ["rl.filter.lower must be finite; got nan"]),
        (["rl.clip_epsilon_low=1"], ["rl.clip_epsilon_low", "below 1"]),
        (["rl.ratio_cap=0.5"], ["rl.ratio_cap"]),
        (["rl.advantage=rloo", "rl.group_size=1"], ["rl.group_size", "rloo", "reinforce_pp and gae work with one"]),
        (["rl.advantage=reinforce_pp", "rl.adora_weight=0.1"], ["rl.adora_weight", "use reinforce_baseline"]),
        (["rl.group_size=4", "rl.filter.lower=0.3", "rl.filter.upper=0.4"], ["keeps no group of 4", "0.3 to 0.4"]),
        (["rl.advantage=reinforce_pp", "rl.group_size=1"], ["keeps no group of 1", "rl.filter.enabled=false"]),
        (["rl.kl_coefficient=0.1", "rl.kl_target=0.1", "rl.kl_horizon=100"], ["rl.kl_horizon (100)", "(1024)"]),
        (["rl.advantage=gae"], ["rl.advantage gae needs a critic", "rl.critic.kind to head", "or model"]),
        (["rl.critic.kind=head"], ["rl.critic.kind is head", "rl.advantage grpo reads no critic"]),
        (["rl.critic.kind=heads"], ["rl.critic.kind must be one of none, head, model", "did you mean head?"]),
        (["rl.advantage=gae", "rl.critic.kind=head", "rl.adora_weight=0.1"], ["rl.adora_weight", "gae"]),
        (
            ["rl.advantage=gae", "rl.critic.kind=model", "rl.critic.trunk_coefficient=0.5"],
            ["rl.critic.trunk_coefficient is of kind head"],
        ),
        (["rl.advantage=gae", "rl.critic.kind=head", "rl.critic.gamma=1.5"], ["rl.critic.gamma", "between 0 and 1"]),
        (["optimizer.ema_decay=1"], ["optimizer.ema_decay", "between 0 and 1, or null"]),
        (["rl.loss=cpgd", "rl.ratio_cap=3"], ["rl.ratio_cap is a setting of rl.loss ppo_clip"]),
        (["rl.loss=pg", "rl.clip_start=0.5"], ["rl.clip_start is a setting of rl.loss cpg, cpgd"]),
        (["rl.loss=gspo", "rl.clip_epsilon_high=0.2"], ["rl.loss gspo", "at most 0.1", "3e-4"]),
        (["rl.kl_place=reward"], ["rl.kl_place", "rl.kl_coefficient above 0"]),
        (["rl.kl_target=0.1"], ["rl.kl_target", "rl.kl_coefficient above 0"]),
        (["rl.importance_cap=0"], ["rl.importance_cap", "positive or null"]),
        (["rl.loss=cpg", "rl.clip_start=1.5"], ["rl.clip_start", "between 0 and 1"]),
        (["rl.advantage=gropo"], ["rl.advantage must be one of grpo, dr_grpo", "did you mean grpo?"]),
        (["rl.loss=cpgdd"], ["rl.loss must be one of ppo_clip, ppo_clip_drift, cpgd", "did you mean cpgd?"]),
        (["rl.loss=3"], ["path/to/file.py:function; got '3'"]),
        (["reward.overlong_buffer=2000"], ["reward.overlong_buffer (2000)", "sampler.max_new_tokens (1024)"]),
        (["data.train=''"], ["data.train is empty"]),
        (["run_dir=' '"], ["run_dir is empty"]),
        (["run_dir='a '"], ["run_dir begins or ends with white space: 'a '"]),
        (["model.lora={adapters: ''}"], ["model.lora.adapters is empty"]),
        (["run_dir=~/a"], ["run_dir: ~/a: ~ is a shell's word for a home folder"]),
        (["data.root='~'"], ["data.root: ~: ~ is"]),
        (["stages=[{steps: 1}]", "run_dir=~b"], ["run_dir: ~b: ~ is"]),
        (["data.difficulty_upper=0.9"], ["need data.difficulty"]),
        (["data.difficulty=a.jsonl", "data.difficulty_lower=2"], ["0 <= difficulty_lower"]),
        (["stages=[{steps: 0}]"], ["stage 1: steps must be positive"]),
        (["stages=[{steps: 1}, {rl: {los: pg}}]"], ["stage 2: unknown key 'rl.los'", "'rl.loss'"]),
        (["stages=[{steps: 1}, {data: {train: ''}}]"], ["stage 2: data.train is empty"]),
        (["stages=[{steps: 1}, {model: {checkpoint: a}}]"], ["stage 2", "starts from the policy of stage 1"]),
        (
            ["stages=[{steps: 1}, {model: {lora: {adapters: a}}}]"],
            ["stage 2: it starts from the policy of stage 1, in float32; take its model.lora.adapters out"],
        ),
        (["stages=[{run_dir: a}]"], ["stage 1: run_dir cannot be set for a stage"]),
        (["stages=[1]"], ["stages must be a list of sections"]),
        (["data.prompt_buckets=[512,256,1024]"], ["ascending"]),
        (["data.prompt_buckets=[256,512]"], ["data.max_prompt_tokens (1024)"]),
        (["rl.packing=1"], ["rl.packing", "below 1"]),
        (["sft.packing=-0.1"], ["sft.packing", "0 or more"]),
        (["data.min_pixels=1000000"], ["data.min_pixels", "data.max_pixels"]),
        (["sampler.temperature=0"], ["sampler.temperature"]),
        (["sampler.temperature=-1"], ["sampler.temperature"]),
        (["sampler.top_p=0"], ["sampler.top_p"]),
        (["sampler.top_p=1.1"], ["sampler.top_p"]),
        (["optimizer.learning_rate=0"], ["optimizer.learning_rate"]),
        (["optimizer.learning_rate=.nan"], ["optimizer.learning_rate"]),
        (["optimizer.b2=1"], ["optimizer.b2"]),
        (["optimizer.warmup_fraction=2"], ["optimizer.warmup_fraction"]),
        (["reward.custom_weight=1"], ["reward.custom"]),
        (["reward.custom=rules.py"], ["path/to/file.py:function"]),
        (["reward.format_weight=.inf"], ["reward.format_weight", "finite"]),
        (["steps=0"], ["steps must be positive"]),
        (["seed=-1"], ["seed must be 0 or more"]),
        ([f"run_dir=runs/{'é' * 150}/x"], ["run_dir: the name of a folder is longer than 255 bytes"]),
        (["seed=2147483648"], ["seed must be at most 2,147,483,647"]),
        (["seed=-3e9"], ["seed must be at least -2,147,483,647"]),
        (["steps=1e30"], ["steps must be at most 2,147,483,647; got 1000000000000000019884624838656"]),
        (["steps=1" + "0" * 400], ["steps must be at most 2,147,483,647; got a number of 1329 bits"]),
        (["rl.group_size=1e12"], ["rl.group_size must be at most 1,048,576"]),
        (["rl.group_size=1e6"], ["rl.prompts_per_rollout x rl.group_size x (", "at most 2,147,483,647"]),
        (["steps=2e9"], ["steps x rl.epochs_per_rollout x", "at most 2,147,483,647"]),
        (["tracking.validation_batch=1048576"], ["tracking.validation_batch x ("]),
        (["data.prompt_buckets=[1024,3000000000]"], ["data.prompt_buckets must be at most"]),
        (["data.workers=1e6"], ["data.workers must be at most 1,024"]),
        (["reward.workers=1e6"], ["reward.workers must be at most 1,024"]),
        (["reward.time_limit=1e30"], ["reward.time_limit must be at most 86,400; got 1e+30"]),
        (["data.max_pixels=1e12"], ["data.max_pixels must be at most 268,435,456"]),
        (["optimizer.learning_rate=.inf"], ["optimizer.learning_rate must be finite; got inf"]),
        (["optimizer.learning_rate=1e200"], ["optimizer.learning_rate must be at most"]),
        (["model.random.num_layers=1e12"], ["model.random.num_layers must be at most"]),
        (["model.random.num_layers=1e9"], ["model.random has about", "such models are small"]),
        (["model.random.hidden_size=12e6"], ["model.random has about", "such models are small"]),
        (["model.random.tile_size=30"], ["model.random.tile_size must be a multiple of 28"]),
        (["model.random.seed=-1"], ["model.random.seed"]),
        (["mesh.data=-1"], ["mesh"]),
        (["mesh.tensor=0"], ["mesh"]),
        (["checkpoint.keep=0"], ["checkpoint.keep"]),
    ],
)
def test_validate_names_the_one_problem(overrides, words):
    problems = problems_of(*overrides)
    assert len(problems) == 1 and all(word in problems[0] for word in words), problems


def test_validate_lists_every_problem_at_once():
    assert len(problems_of("steps=0", "rl.group_size=1", "sampler.top_p=2", "mesh.tensor=-2")) == 4


def test_gradients_may_be_left_as_long_as_they_are():
    assert problems_of("optimizer.max_grad_norm=.inf") == []


def test_sft_checks_its_own_sections():
    assert problems_of("sft.problems_per_step=1e6", "sft.max_response_tokens=9000", command="sft")[0].startswith(
        "sft.problems_per_step x (data.max_prompt_tokens + sft.max_response_tokens) = 10,024,000,000"
    )
    assert problems_of("rl.group_size=1", "sampler.temperature=0", command="sft") == []
    assert "sft.problems_per_step" in problems_of("sft.micro_batches=7", command="sft")[0]
