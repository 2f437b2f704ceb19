"""Configurations: what is wrong is named, what is right survives writing and reading."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.config import (
    DataConfig,
    ModelConfig,
    PbeConfig,
    PoisonConfig,
    PurifyConfig,
    TrainConfig,
    dump_config,
    load_config,
)
from pbe_fast.errors import ConfigError

KINDS: list[Any] = [PoisonConfig, TrainConfig, PurifyConfig]


def _message(kind: Any, *settings_: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, file, settings_)
    return str(caught.value)


def _file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# keys


@pytest.mark.parametrize(
    ("kind", "key", "meant"),
    [
        (PurifyConfig, "pbe.learning_rate", "pbe.lr"),
        (PurifyConfig, "aft.learning_rate", "aft.lr"),
        (TrainConfig, "learning_rate", "lr"),
        (PurifyConfig, "adversary.eps", "adversary.eps_255"),
        (PurifyConfig, "adversary.epsilon", "adversary.eps_255"),
        (PurifyConfig, "adversary.eps255", "adversary.eps_255"),
        (PurifyConfig, "data.images_size", "data.image_size"),
        (PurifyConfig, "image_size", "data.image_size"),
        (PurifyConfig, "lr", "aft.lr or pbe.lr or sieve.lr"),
        (PurifyConfig, "sed", "seed"),
        (PurifyConfig, "modle", "model"),
        (PurifyConfig, "checkpoint", "model.checkpoint"),
        (TrainConfig, "epoch", "epochs"),
        (PoisonConfig, "poison_rate", "rate"),
        (PoisonConfig, "amplitude", "amplitude_255"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    kind: Any, key: str, meant: str
) -> None:
    message = _message(kind, f"{key}=1")
    assert message == f"configuration: unknown key {key}; did you mean {meant}?"


def test_a_key_that_is_near_to_nothing_gets_no_advice() -> None:
    assert _message(PurifyConfig, "zzzz=1") == "configuration: unknown key zzzz."


def test_all_faults_are_named_at_once_with_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "sed: 1\npbe:\n  lr: fast\n  rounds: 3\n")
    message = _message(PurifyConfig, file=path)
    assert message.startswith(f"{path}: ")
    for part in ("unknown key sed", "pbe.lr = 'fast'", "unknown key pbe.rounds"):
        assert part in message


@pytest.mark.parametrize(
    ("text", "where"),
    [("pbe:\n  lr: 1\n  lr: 2\n", "'lr' stands twice"), ("seed: 1\nseed: 1\n", "line 2")],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, where: str) -> None:
    assert where in _message(PurifyConfig, file=_file(tmp_path, text))


# values


@pytest.mark.parametrize(
    ("setting", "get"),
    [
        ("pbe.lr=0.005", lambda c: c.pbe.lr == 0.005),
        ("pbe.lr=5e-3", lambda c: c.pbe.lr == 0.005),
        ("pbe.lr=1", lambda c: c.pbe.lr == 1.0),
        ("adversary.step_255=null", lambda c: c.adversary.step_255 is None),
        ("adversary.random_start=yes", lambda c: c.adversary.random_start is True),
        ("pbe.keep=[0.3, 0.6]", lambda c: c.pbe.keep == (0.3, 0.6)),
        ("pbe.keep=[]", lambda c: c.pbe.keep == ()),
        ("data.workers=null", lambda c: c.data.workers is None),
        ("data.train=a/b=c", lambda c: c.data.train == Path("a/b=c")),
        ("model.options.width=16", lambda c: c.model.options == {"width": 16}),
        ("model.options.drop=1e-1", lambda c: c.model.options == {"drop": 0.1}),
        ("model.options.act=relu", lambda c: c.model.options == {"act": "relu"}),
        ("model.options.bias=true", lambda c: c.model.options["bias"] is True),
        ("model={name: timm:x, mean: [0, 0.5, 1]}", lambda c: c.model.mean == (0, 0.5, 1)),
        ("device=cuda:1", lambda c: c.device == "cuda:1"),
    ],
)
def test_settings_are_yaml(setting: str, get: Any) -> None:
    assert get(load_config(PurifyConfig, None, [setting]))


def test_options_keep_their_kinds() -> None:
    config = load_config(PurifyConfig, None, ["model.options={a: 1, b: 1.0, c: true, d: '1'}"])
    assert [type(v) for v in config.model.options.values()] == [int, float, bool, str]


@pytest.mark.parametrize("setting", ["seed", "=1", "", "pbe.lr"])
def test_a_setting_without_a_value_says_how_to_write_it(setting: str) -> None:
    message = _message(PurifyConfig, setting)
    assert repr(setting) in message
    assert "pbe.lr=0.005" in message


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("pbe.lr=fast", "pbe.lr = 'fast'"),
        ("pbe.lr=", "pbe.lr = None"),
        ("pbe.lr=0", "pbe.lr = 0"),
        ("pbe.lr=-1", "greater than 0"),
        ("pbe.lr=.nan", "finite"),
        ("pbe.lr=.inf", "finite"),
        ("pbe.lr=true", "pbe.lr = True: true or false makes no sense"),
        ("adversary.steps=yes", "adversary.steps = True"),
        ("adversary.steps=1.5", "adversary.steps = 1.5"),
        ("pbe.keep=0.5", "pbe.keep = 0.5"),
        ("pbe.keep=[0.5, 2]", "pbe.keep.1 = 2"),
        ("pbe.keep=[0]", "pbe.keep.0 = 0"),
        ("pbe=3", "pbe = 3"),
        ("aft.batch_size=1", "aft.batch_size = 1"),
        ("method=magic", "'auto', 'aft', 'pbe' or 'sieve'"),
        ("seed=-1", "seed = -1"),
        ("seed=18446744073709551616", "seed = 18446744073709551616"),
        ("model.mean=[1, 2]", "model.mean"),
        ("model.options=3", "model.options = 3"),
        ("model.options.width=[1]", "model.options.width = [1]: give a finite number, a text"),
        ("model.options.width=.inf", "model.options.width = inf"),
        ("data.flip=maybe", "data.flip = 'maybe'"),
        ("data.train=5", "data.train = 5"),
        ("device=3", "device = 3"),
        ("seed.x=3", "seed"),
    ],
)
def test_a_wrong_value_is_named(setting: str, where: str) -> None:
    message = _message(PurifyConfig, setting)
    assert where in message
    assert len(message.splitlines()) == 1


def test_a_value_where_a_group_is_expected_is_refused() -> None:
    assert "pbe is a value, not a group" in _message(PurifyConfig, "pbe=3", "pbe.lr=0.1")


def test_values_of_any_size_are_shown_short(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    message = _message(PurifyConfig, file=_file(tmp_path, "\n".join([*bomb, "pbe: *a19"])))
    assert len(message) < 3000
    assert len(_message(PurifyConfig, f"pbe.lr={'x' * 10**6}")) < 1000
    assert len(_message(PurifyConfig, "x" * 10**6)) < 1000


# where values come from


def test_the_file_then_settings_then_values(tmp_path: Path) -> None:
    path = _file(tmp_path, "seed: 1\npbe: {lr: 0.1, epochs: 7}\ndata: {image_size: 16}\n")
    config = load_config(
        PurifyConfig,
        path,
        ["seed=2", "pbe.lr=0.2", "seed=3", "data.image_size=24"],
        {"seed": 4, "data.image_size": None, "model.options.width": 8, "device": None},
    )
    assert (config.seed, config.pbe.lr, config.pbe.epochs) == (4, 0.2, 7)
    assert config.data.image_size == 24  # None is an option that was not given
    assert config.model.options == {"width": 8}
    assert config.device == "auto"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "---\n"):
        assert load_config(PurifyConfig, _file(tmp_path, text)) == PurifyConfig()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a\n- b\n", "a mapping of keys to values"),
        ("just text", "a mapping of keys to values"),
        ("a: [1", "cannot be read as YAML"),
        ("a: b: c", "cannot be read as YAML"),
        ("seed: 2024-99-99", "cannot be read as YAML"),
        ("[" * 1000, "cannot be read as YAML"),
        ("a: 1\n---\nb: 2\n", "cannot be read as YAML"),
        ("{[1]: 2}", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = _file(tmp_path, text)
    message = _message(PurifyConfig, file=path)
    assert str(path) in message
    assert what in message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert (
        _message(PurifyConfig, file=missing) == f"{missing}: there is no such configuration file."
    )
    assert str(tmp_path) in _message(PurifyConfig, file=tmp_path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00seed")
    assert "cannot be read as YAML" in _message(PurifyConfig, file=binary)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['{0}']",
        "!!python/object/new:os.mkdir ['{0}']",
        "!!python/object/apply:subprocess.check_call [[mkdir, '{0}']]",
        "!!python/name:os.mkdir",
        "!!python/module:antigravity",
        "!!python/tuple [1, 2]",
    ],
)
def test_yaml_runs_nothing(tmp_path: Path, tag: str) -> None:
    canary = tmp_path / "canary"
    text = tag.format(canary)
    path = _file(tmp_path, f"seed: {text}\n")
    assert "python" in _message(PurifyConfig, file=path)
    assert "python" in _message(PurifyConfig, f"seed={text}")
    assert not canary.exists()


# writing


def test_defaults_survive_writing_and_reading(tmp_path: Path) -> None:
    for kind in KINDS:
        text = dump_config(kind())
        assert load_config(kind, _file(tmp_path, text)) == kind()
        assert yaml.safe_load(text).keys() == kind.model_fields.keys()


# But for what begins like the address of a source, such as ``a:``, which is refused.
PATHS = st.one_of(
    st.none(),
    st.text("ab/ .:#'\"\\éß-", min_size=1, max_size=12)
    .filter(lambda text: not re.match(r"[ab]+[ab.-]*:", text))
    .map(Path),
)
SCALARS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != 0),
    st.booleans(),
    st.text(max_size=8).filter(lambda t: t.isprintable()),
    st.sampled_from(["1e-3", "yes", "null", "~", "1_000", "0x10", "12:30", "", "- a"]),
)


@settings(deadline=None, max_examples=60)
@given(
    options=st.dictionaries(st.sampled_from(["width", "drop", "a", "b"]), SCALARS),
    train=PATHS,
    keep=st.lists(st.floats(0, 1, exclude_min=True), max_size=4),
    lr=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_configuration_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory,
    options: dict[str, Any],
    train: Path | None,
    keep: list[float],
    lr: float,
    seed: int,
) -> None:
    config = PurifyConfig(
        model=ModelConfig(name="timm:x", options=options, mean=(0.1, 0.2, 0.3)),
        data=DataConfig(train=train),
        pbe=PbeConfig(keep=tuple(keep), lr=lr),
        seed=seed,
    )
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    text = dump_config(config)
    path.write_text(text, encoding="utf-8")
    again = load_config(PurifyConfig, path)
    assert again == config
    assert {k: type(v) for k, v in again.model.options.items()} == {
        k: type(v) for k, v in options.items()
    }
    assert dump_config(again) == text


def test_equal_configurations_give_equal_text() -> None:
    first = load_config(
        PurifyConfig, None, ["model.options.a=1", "model.options.b=2", "data.train=x/"]
    )
    second = load_config(
        PurifyConfig, None, ["data.train=x", "model.options.b=2", "model.options.a=1"]
    )
    assert first == second
    assert dump_config(first) == dump_config(second)
    other = load_config(PurifyConfig, None, ["data.train=y"])
    assert dump_config(other) != dump_config(first)


def test_a_configuration_cannot_be_changed() -> None:
    config = PurifyConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]  # that is the test


def test_the_defaults_are_those_of_the_paper() -> None:
    config = PurifyConfig()
    adversary, aft, pbe = config.adversary, config.aft, config.pbe
    assert (adversary.norm, adversary.eps_255, adversary.step_255) == ("linf", 6, None)
    assert (adversary.steps, adversary.random_start) == (7, False)
    assert (aft.epochs, aft.adversarial_epochs, aft.batch_size) == (20, 3, 128)
    assert (aft.lr, aft.momentum, aft.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (pbe.initial_fraction, pbe.keep) == (0.05, (0.2, 0.5, 0.7))
    assert (pbe.epochs, pbe.adversarial_batches, pbe.batch_size) == (10, 30, 128)
    assert PoisonConfig().rate == 0.1
