"""The command line, as a user meets it: what it makes, what it says, how it ends."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
import yaml

from pbe_fast import evaluate as evaluation
from pbe_fast.data import Manifest, write_shards
from pbe_fast.data.signs import sign_names, signs
from pbe_fast.models import ModelSpec, create_model, load_model, save_model
from pipelines import cli
from pipelines.cli import app
from tests._backdoorbench import (
    attack_content,
    clean_shards,
    labels_in_order,
    preact_weights,
    write_result,
)
from tests._command import Run

CLASSES, SIZE = 3, 16


def _folder(root: Path, split: str, per_class: int) -> Path:
    """An image folder of drawn signs."""
    names = sign_names(CLASSES)
    for sample in signs(num_classes=CLASSES, per_class=per_class, size=SIZE, seed=0, split=split):
        path = root / split / names[sample.label] / f"{sample.key.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
    return root / split


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test``: image folders; ``clean``: shards; ``model.safetensors``."""
    root = tmp_path_factory.mktemp("cli")
    _folder(root, "train", 20)
    _folder(root, "test", 8)
    write_shards(
        signs(num_classes=CLASSES, per_class=8, size=SIZE, seed=0, split="test"),
        root / "clean",
        classes=sign_names(CLASSES),
    )
    torch.manual_seed(0)
    spec = ModelSpec("builtin:preact_resnet18", CLASSES, SIZE, {"width": 2})
    save_model(create_model(spec), root / "model.safetensors")
    return root


TINY = [
    "data.image_size=16", "precision=float32", "batch_size=16", "eval_batch_size=30",
]  # fmt: skip


def _set(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


# the whole way


def test_from_images_to_a_purified_model_and_its_report(
    world: Path, tmp_path: Path, run: Run
) -> None:
    shards, bad = tmp_path / "shards", tmp_path / "bad"
    for split in ("train", "test"):
        ended = run("shards", "convert", "image-folder", world / split, shards / split)
        assert ended.code == 0, ended.err
    assert run("shards", "verify", shards / "train").code == 0

    ended = run("poison", shards / "train", bad, "--attack", "badnets", "--target", 1,
                "--image-size", SIZE, "--rate", 0.2)  # fmt: skip
    assert ended.code == 0, ended.err
    assert "60 samples in" in ended.out
    assert sorted(path.name for path in bad.iterdir()) == [
        "attack.safetensors", "manifest.parquet", "poisoned-000000.tar", "truth.parquet",
    ]  # fmt: skip

    infected = tmp_path / "infected"
    measured = ["--test", shards / "test", "--attack", bad / "attack.safetensors"]
    ended = run("train", "--data", bad, *measured, "--width", 2, "--epochs", 2, "--device", "cpu",
                "--out", infected, *_set(*TINY))  # fmt: skip
    assert ended.code == 0, ended.err
    assert f"Weights: {infected / 'model.safetensors'}" in ended.out.replace("\n", " ")
    assert load_model(infected / "model.safetensors").spec.options == {"width": 2}

    ended = run("evaluate", infected / "model.safetensors", *measured[1:2], *measured[2:],
                "--device", "cpu", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)  # nothing but JSON on the output stream
    written = json.loads((infected / "metrics.json").read_text())
    assert result == {**written["test"], "images": 24}

    for method in ("aft", "sieve"):
        out = tmp_path / method
        clean = ["--clean", shards / "test"] if method == "aft" else []
        command = [
            "purify", infected / "model.safetensors", "--data", bad, *clean, *measured,
            "--truth", bad / "truth.parquet", "--device", "cpu", "--seed", 5, "--out", out,
            *_set(
                "data.image_size=16", "precision=float32", "adversary.steps=1",
                "eval_batch_size=30", "aft.epochs=2", "aft.batch_size=16", "sieve.epochs=1",
                "sieve.batch_size=16", "sieve.initial_epochs=2",
            ),
        ]  # fmt: skip
        ended = run(*command)
        assert ended.code == 0, ended.err
        assert ended.err == ""
        for name in ("purified.safetensors", "suspects.parquet", "report.html"):
            assert str(out / name) in ended.out.replace("\n", "")
        _check_run(out, method, Manifest.load(bad))

        before = _files(out)
        again = run(*command)
        assert again.code == 0, again.err
        assert "is finished already" in again.out
        assert _files(out) == before

        (out / "report.html").unlink()
        assert run("report", out).code == 0
        assert (out / "report.html").read_bytes() == before["report.html"]

    refused = run(*command, "--set", "sieve.lr=0.5")
    assert refused.code == 2
    assert "sieve.lr was 0.05, now 0.5" in refused.err


def test_a_backdoorbench_result_is_purified_and_handed_back(tmp_path: Path, run: Run) -> None:
    labels = labels_in_order(clean_shards(tmp_path / "clean"))
    folder = tmp_path / "record" / "badnet_0_1"
    write_result(folder, attack_content(folder, labels, preact_weights()))
    out = tmp_path / "pure"
    command = [
        "purify", "--backdoorbench", folder, "--data", tmp_path / "clean", "--device", "cpu",
        "--out", out, "--method", "pbe",
        *_set(
            "precision=float32", "memory_format=contiguous", "adversary.steps=1",
            "adversary.fold=false", "pbe.epochs=1",
            "pbe.batch_size=8", "pbe.initial_fraction=0.4", "pbe.adversarial_batches=1",
            "pbe.keep=[0.5]", "pbe.lr=0.0001",
        ),
    ]  # fmt: skip
    ended = run(*command)
    assert ended.code == 0, ended.err
    said = ended.out.replace("\n", "")
    assert str(out / "defense_result.pt") in said
    purified, triggered = out / "purified.safetensors", out / "backdoorbench" / "triggered"
    assert f"pbe-fast evaluate {purified} {triggered}" in said
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["suspects"]["poisoned"] == 6  # the truth was taken from the result
    content = torch.load(out / "defense_result.pt", weights_only=True)
    assert (content["model_name"], content["num_classes"]) == ("preactresnet18", CLASSES)
    given, weights = preact_weights(), load_model(purified).net.state_dict()
    assert list(content["model"]) == list(given)
    assert not torch.equal(content["model"]["linear.weight"], given["linear.weight"])
    assert torch.equal(content["model"]["linear.weight"], weights["linear.weight"])

    ended = run("evaluate", purified, triggered, "--device", "cpu", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"] == 16

    before = _files(out)
    again = run(*command)
    assert again.code == 0, again.err
    assert "is finished already" in again.out
    assert _files(out) == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["model.pt", "--data", "clean"], "MODEL: --backdoorbench tells that"),
        (["--data", "clean", "--model", "timm:resnet18"], "--model: --backdoorbench tells that"),
        (["--data", "clean", "--image-size", "32"], "--image-size: --backdoorbench tells"),
        ([], "needs images"),
        (["--data", "clean"], "attack_result.pt: there is no such file"),
    ],
)
def test_contradictions_about_a_backdoorbench_result_are_named(
    tmp_path: Path, run: Run, words: list[str], complaint: str
) -> None:
    ended = run("purify", "--backdoorbench", tmp_path / "no", "--out", tmp_path / "o", *words)
    assert ended.code == 2
    assert complaint in ended.err
    assert not (tmp_path / "o").exists()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _check_run(out: Path, method: str, manifest: Manifest) -> None:
    """What DESIGN says that a run directory holds."""
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "purified.safetensors", "metrics.json", "metrics.jsonl",
        "suspects.parquet", "thumbnails.json", "report.html", "figures", "log.txt",
        "tensorboard", ".lock",
    }  # fmt: skip
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["method"] == method
    assert (config["device"], config["precision"], config["seed"]) == ("cpu", "float32", 5)
    assert config["data"]["image_size"] == SIZE

    purified = load_model(out / "purified.safetensors")
    assert (purified.spec.name, purified.spec.num_classes) == ("builtin:preact_resnet18", CLASSES)

    metrics = json.loads((out / "metrics.json").read_text())
    for model in ("infected", "purified"):
        assert 0 <= metrics[model]["acc"] <= 1
        assert 0 <= metrics[model]["asr"] <= 1
    assert 0 <= metrics["suspects"]["auroc"] <= 1
    assert (metrics["suspects"]["count"], metrics["suspects"]["poisoned"]) == (60, 12)
    assert metrics["seconds"].keys() == metrics["images_per_second"].keys()
    assert {"finetune_adversarial", "score"} <= metrics["seconds"].keys()
    assert all(seconds > 0 for seconds in metrics["seconds"].values())
    assert all(rate > 0 for rate in metrics["images_per_second"].values())
    assert (metrics["device"], metrics["seed"], metrics["method"]) == ("cpu", 5, method)
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metrics["quarantined"] == 0

    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"step", "evaluation"}
    assert all({"round", "epoch"} <= event.keys() for event in events)

    suspects = pq.read_table(out / "suspects.parquet")
    assert suspects.column_names == ["key", "shard", "label", "score", "rank", "poisoned"]
    assert suspects["rank"].to_pylist() == list(range(len(manifest)))
    scores = suspects["score"].to_numpy()
    assert (np.diff(scores) >= 0).all()  # the most suspicious first
    assert (np.abs(scores) <= 1 + 1e-6).all()
    rows = {key: i for i, key in enumerate(manifest.keys.to_pylist())}
    assert sorted(suspects["key"].to_pylist()) == sorted(rows)
    for key, shard, label in zip(
        *(suspects[name].to_pylist() for name in ("key", "shard", "label")), strict=True
    ):
        row = rows[key]
        assert shard == manifest.shards[int(manifest.shard_index[row])].name
        assert label == manifest.labels[row]
    assert sum(suspects["poisoned"].to_pylist()) == 12

    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    log = (out / "log.txt").read_text()
    assert f"INFO {method} on cpu in float32" in log
    assert "INFO finished" in log


# mistakes: exit code 2, one message, no traceback


@pytest.fixture
def mistakes(world: Path, tmp_path: Path) -> dict[str, object]:
    """Things that are wrong, by name."""
    hostile = tmp_path / "hostile.pt"
    # Protocol 0: calls os.mkdir(canary) when it is unpickled.
    hostile.write_bytes(f"cos\nmkdir\n(V{tmp_path / 'canary'}\ntR.".encode())
    zipped = tmp_path / "zipped.pt"
    content = io.BytesIO()
    torch.save({"a": _Hostile(str(tmp_path / "canary"))}, content)
    zipped.write_bytes(content.getvalue())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (world / "clean").iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    shard = Manifest.load(damaged).shard_path(0)
    flipped = bytearray(shard.read_bytes())
    flipped[3000] ^= 1
    shard.write_bytes(flipped)
    other = tmp_path / "other.safetensors"
    save_model(create_model(ModelSpec("builtin:preact_resnet18", 5, SIZE, {"width": 2})), other)
    (tmp_path / "bad.yaml").write_text("pbe: {lr: !!python/name:os.system x}")
    (tmp_path / "list.yaml").write_text("- 1")
    return {
        "CLEAN": world / "clean", "MODEL": world / "model.safetensors", "HOSTILE": hostile,
        "ZIPPED": zipped, "PHOTOS": tmp_path / "photos", "DAMAGED": damaged, "OTHER": other,
        "YAML": tmp_path / "bad.yaml", "LIST": tmp_path / "list.yaml", "OUT": tmp_path / "out",
        "MISSING": tmp_path / "missing", "TMP": tmp_path,
    }  # fmt: skip


class _Hostile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


PURIFY = "purify MODEL --data CLEAN --out OUT --image-size 16"
TRAIN = "train --data CLEAN --out OUT --image-size 16 --width 2"

MISTAKES = [
    ("evaluate MODEL MISSING", "MISSING"),
    ("evaluate MISSING CLEAN", "MISSING"),
    ("evaluate MODEL DAMAGED", "SHA-256"),
    ("evaluate HOSTILE CLEAN --model builtin:preact_resnet18", "HOSTILE"),
    ("evaluate ZIPPED CLEAN --model builtin:preact_resnet18", "ZIPPED"),
    ("evaluate OTHER CLEAN", "5 classes"),
    ("evaluate MODEL CLEAN --width 4", "--width"),
    ("evaluate MODEL CLEAN --model builtin:preact_resnet18 --width 4", "does not fit the model"),
    ("evaluate MODEL CLEAN --model builtin:resnet", "builtin:resnet"),
    ("evaluate MODEL CLEAN --attack MISSING", "MISSING"),
    ("evaluate MODEL CLEAN --device tpu", "tpu"),
    (f"{PURIFY} --set pbe.learning_rate=1", "did you mean pbe.lr?"),
    (f"{PURIFY} --set pbe.lr=fast", "pbe.lr = 'fast'"),
    (f"{PURIFY} --set pbe.lr", "key=value"),
    (f"{PURIFY} --method aft", "data.clean"),
    (f"{PURIFY} --config MISSING", "MISSING"),
    (f"{PURIFY} --config YAML", "YAML"),
    (f"{PURIFY} --config LIST", "LIST"),
    (f"{PURIFY} --truth MISSING", "MISSING"),
    (f"{PURIFY} --test CLEAN --attack MISSING", "MISSING"),
    ("purify HOSTILE --data CLEAN --out OUT --model builtin:preact_resnet18", "HOSTILE"),
    ("purify OTHER --data CLEAN --out OUT --image-size 16", "5 classes"),
    ("purify MODEL --data CLEAN --out PHOTOS", "a.jpg"),
    ("purify MODEL --data MISSING --out OUT", "MISSING"),
    (f"{TRAIN} --model builtin:nothing", "builtin:nothing"),
    (f"{TRAIN} --model nothing", "timm:NAME"),
    (f"{TRAIN} --model MISSING.py:make", "MISSING.py"),
    (f"{TRAIN} --set epoch=3", "did you mean epochs?"),
    (f"{TRAIN} --attack MISSING", "MISSING"),
    (f"{TRAIN} --device nothing", "nothing"),
    ("train --out OUT", "data.train"),
    ("poison MISSING OUT", "MISSING"),
    ("poison CLEAN OUT --attack nothing", "'badnets', 'blend'"),
    ("poison CLEAN OUT --target 7 --image-size 16", "7"),
    ("poison CLEAN OUT --rate 0.0001 --image-size 16", "rate"),
    ("poison CLEAN PHOTOS --image-size 16", "PHOTOS"),
    ("poison CLEAN OUT --attack blend --set picture=MISSING", "MISSING"),
    ("report MISSING", "MISSING"),
    ("report PHOTOS", "metrics.json"),
    ("shards info MISSING", "shards index"),
]


@pytest.mark.parametrize(("command", "named"), MISTAKES)
def test_a_mistake_is_named_and_the_exit_code_is_2(
    mistakes: dict[str, object], run: Run, command: str, named: str
) -> None:
    for word, value in mistakes.items():
        command = command.replace(word, str(value))
        named = named.replace(word, str(value))
    ended = run(*command.split())
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert named in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert not Path(str(mistakes["TMP"]), "canary").exists()


def test_after_a_mistake_the_same_folder_can_be_used(world: Path, tmp_path: Path, run: Run) -> None:
    command = ["train", "--data", world / "clean", "--out", tmp_path / "out", "--device", "cpu",
               "--epochs", 1, *_set(*TINY)]  # fmt: skip
    assert run(*command, "--model", "builtin:nothing").code == 2
    assert "builtin:nothing" in (tmp_path / "out" / "log.txt").read_text()
    ended = run(*command, "--width", 2)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "--out"),
        (["nothing"], "nothing"),
        (["purify", "x", "--nothing", "--out", "y"], "--nothing"),
        (["poison", "a", "b", "--rate", "much"], "--rate"),
    ],
)
def test_a_wrong_use_is_explained(run: Run, arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert said in ended.err
    assert "--help" in ended.err
    assert "Traceback" not in ended.err


def test_names_in_messages_cannot_steer_the_terminal(run: Run) -> None:
    ended = run("report", "bad\x1b[2J\x07name")
    assert ended.code == 2
    assert "\x1b" not in ended.err
    assert r"bad\x1b[2J\x07name" in ended.err


def test_damage_that_was_looked_for_is_exit_code_1(mistakes: dict[str, object], run: Run) -> None:
    ended = run("shards", "verify", mistakes["DAMAGED"])
    assert ended.code == 1
    assert "SHA-256" in ended.out


# the machine, the user's hand, and our bugs


def _train_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "train", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/out/x"), 1, "/out/x: No space left on device."),
        (OSError("odd"), 1, "error: odd."),
        (PermissionError(13, "Permission denied", "/out"), 1, "/out: Permission denied."),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 1, "eval_batch_size"),
        (KeyboardInterrupt(), 1, "The same command goes on from the last saved state."),
    ],
)
def test_failures_of_the_machine_get_a_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    _train_that(monkeypatch, error)
    ended = run("train", "--out", "x")
    assert ended.code == code
    assert said in ended.err.replace("\n", " ")
    assert "Traceback" not in ended.err


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _train_that(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run("train", "--out", "x")


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "report", str(tmp_path / "missing")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path / 'missing'}: there is no such run")
    assert len(result.stderr.splitlines()) == 1


# help


def _commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with its docstring."""
    yield path, str(getattr(command, "help", ""))
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_all_commands_are_looked_at() -> None:
    names = {" ".join(path) for path in COMMANDS}
    assert {"", "demo", "poison", "train", "purify", "evaluate", "report", "shards",
            "shards convert", "shards verify"} <= names  # fmt: skip


@pytest.mark.parametrize("path", [p for p in COMMANDS if p != ("shards",)], ids=" ".join)
def test_help_has_an_example_that_can_be_copied(run: Run, path: tuple[str, ...]) -> None:
    ended = run(*path, "--help")
    assert ended.code == 0
    lines = [line.strip() for line in ended.out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line in ("Example:", "Examples:"))
    shown = lines[start + 1 : lines.index("", start)]
    assert shown[0].startswith(" ".join(("pbe-fast", *path)))
    examples = COMMANDS[path].partition("\b\n")[2].splitlines()[1:]
    assert shown == [line.strip() for line in examples if line.strip()]  # no line is broken
    # A line that another one follows ends in a backslash, or is a command of its own.
    for line, following in pairwise(shown):
        assert line.endswith("\\") != following.startswith("pbe-fast ")


def test_examples_use_options_that_exist(run: Run) -> None:
    for path, text in COMMANDS.items():
        words = text.partition("\b\n")[2].split()
        options = {word for word in words if word.startswith("--")}
        if options and path:
            shown = run(*path, "--help").out
            assert [option for option in options if option not in shown] == []


def test_version(run: Run) -> None:
    ended = run("--version")
    assert ended.code == 0
    assert ended.out.startswith("pbe-fast 0.")
    assert f"torch {torch.__version__.partition('+')[0]}" in ended.out


def test_no_arguments_show_the_help(run: Run) -> None:
    ended = run()
    assert "Usage: pbe-fast" in ended.out + ended.err
    assert "purify" in ended.out + ended.err


# evaluate


def test_evaluate_takes_the_size_of_the_model(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    evaluate = evaluation.evaluate

    def noting(model: Any, data: Any, *rest: Any, **options: Any) -> object:
        sizes.append(data.size)
        return evaluate(model, data, *rest, **options)

    monkeypatch.setattr(evaluation, "evaluate", noting)
    command = ["evaluate", world / "model.safetensors", world / "clean", "--device", "cpu"]
    ended = run(*command)
    assert ended.code == 0, ended.err
    assert "ACC" in ended.out
    assert "24" in ended.out
    run(*command, "--image-size", 24)
    run(*command, "--model", "builtin:preact_resnet18", "--width", 2)
    assert sizes == [SIZE, 24, 32]
