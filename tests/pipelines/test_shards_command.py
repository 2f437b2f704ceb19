"""``pbe-fast shards``: the commands print what is there and refuse what makes no sense."""

import io
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from pbe_fast.data.converters import cifar10
from pbe_fast.data.manifest import MANIFEST_NAME, Manifest
from pbe_fast.errors import ConfigError, PbeError, ShardError
from pipelines.shards import _bytes, app

_root = typer.Typer()
_root.add_typer(app, name="shards")


def _run(*arguments: object) -> Result:
    """Run ``pbe-fast shards ...``; what is raised passes through, as the program's main sees it."""
    result = CliRunner().invoke(_root, ["shards", *map(str, arguments)], env={"COLUMNS": "160"})
    if isinstance(result.exception, PbeError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes with 2, 3 and 5 images."""
    folder = tmp_path / "images"
    for name, count in {"ant": 2, "bee": 3, "cow": 5}.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(_png(i))
    return folder


@pytest.fixture
def shards(tmp_path: Path, images: Path) -> Path:
    folder = tmp_path / "shards"
    assert _run("convert", "image-folder", images, folder, "--shard-size", "5KB").exit_code == 0
    return folder


def _cells(output: str) -> dict[str, str]:
    """The two-column summary table."""
    rows = [line.strip("│ \n").split("│") for line in output.splitlines() if "│" in line]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


@pytest.mark.parametrize("command", ["convert", "index", "verify", "info"])
def test_help_has_an_example(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert f"pbe-fast shards {command} " in result.output


def test_convert_an_image_folder(tmp_path: Path, images: Path) -> None:
    result = _run("convert", "image-folder", images, tmp_path / "out")
    assert result.exit_code == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.classes == ("ant", "bee", "cow")
    assert np.bincount(manifest.labels).tolist() == [2, 3, 5]
    cells = _cells(result.output)
    assert (cells["samples"], cells["classes"], cells["shards"]) == ("10", "3", "1")
    assert cells["bytes"] == f"{manifest.shards[0].bytes:,}"
    assert float(cells["seconds"]) >= 0
    assert "images/s" in cells


def test_shard_size_and_prefix(tmp_path: Path, images: Path) -> None:
    _run("convert", "image-folder", images, tmp_path / "out", "--shard-size", "1", "--prefix", "p")
    names = [shard.name for shard in Manifest.load(tmp_path / "out").shards]
    assert len(names) > 1
    assert names[0] == "p-000000.tar"


def test_overwrite_must_be_said(images: Path, shards: Path) -> None:
    with pytest.raises(ShardError, match="not empty"):
        _run("convert", "image-folder", images, shards)
    (images / "ant" / "9.png").write_bytes(_png(9))
    _run("convert", "image-folder", images, shards, "--overwrite")
    assert len(Manifest.load(shards)) == 11


def test_classes_of_another_set(tmp_path: Path, shards: Path) -> None:
    other = tmp_path / "other"
    (other / "cow").mkdir(parents=True)
    (other / "cow" / "1.png").write_bytes(_png(1))
    for n, origin in enumerate((shards, shards / MANIFEST_NAME)):
        out = tmp_path / f"out{n}"
        _run("convert", "image-folder", other, out, "--classes-from", origin)
        manifest = Manifest.load(out)
        assert manifest.classes == ("ant", "bee", "cow")
        assert manifest.labels.tolist() == [2]
    (other / "cow").rename(other / "dog")
    with pytest.raises(ShardError, match="'dog' is not among"):
        _run("convert", "image-folder", other, tmp_path / "x", "--classes-from", shards)


def test_convert_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_RECORDS", 2)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(bytes(2 * 3073))
    names = [f"class{k}" for k in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(names))
    _run("convert", "cifar10", folder, tmp_path / "out", "--split", "test")
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.classes == tuple(names)
    assert manifest.shards[0].name == "test-000000.tar"
    with pytest.raises(ConfigError, match="whose order is fixed"):
        _run("convert", "cifar10", folder, tmp_path / "x", "--split", "test",
             "--classes-from", _other_set(tmp_path))  # fmt: skip


def _other_set(tmp_path: Path) -> Path:
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "one" / "a" / "1.png").write_bytes(_png(1))
    _run("convert", "image-folder", tmp_path / "one", tmp_path / "one-shards")
    return tmp_path / "one-shards"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10", "SOURCE", "OUT"], "needs --split"),
        (["gtsrb", "SOURCE", "OUT"], "needs --split"),
        (["gtsrb", "SOURCE", "OUT", "--split", "train", "--crop-roi"], "no GTSRB images"),
        (["image-folder", "SOURCE", "OUT", "--split", "test"], "--split is for cifar10 and gtsrb"),
        (["image-folder", "SOURCE", "OUT", "--crop-roi"], "--crop-roi is for gtsrb"),
        (["image-folder", "SOURCE", "OUT", "--shard-size", "0"], "--shard-size"),
        (["image-folder", "SOURCE", "OUT", "--prefix", "../x"], "prefix"),
        (["image-folder", "SOURCE", "OUT", "--classes-from", "OUT"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    tmp_path: Path, images: Path, arguments: list[str], message: str
) -> None:
    places = {"SOURCE": str(images), "OUT": str(tmp_path / "out")}
    with pytest.raises(PbeError, match=message):
        _run("convert", *[places.get(argument, argument) for argument in arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_unknown_formats_and_splits_are_usage_errors(tmp_path: Path) -> None:
    assert _run("convert", "imagenet", tmp_path, tmp_path / "out").exit_code == 2
    assert _run("convert", "gtsrb", tmp_path, tmp_path / "o", "--split", "val").exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("256MB", 256_000_000), ("256 MiB", 268_435_456), ("1gb", 10**9), ("77", 77), ("5B", 5)],
)
def test_sizes(text: str, expected: int) -> None:
    assert _bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1.5GB", "1XB", "0MB", "9" * 40])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="256MB"):
        _bytes(text)


def test_index_makes_the_manifest_again(shards: Path) -> None:
    before = Manifest.load(shards)
    (shards / MANIFEST_NAME).unlink()
    result = _run("index", shards, "--num-classes", "7")
    assert _cells(result.output)["samples"] == "10"
    after = Manifest.load(shards)
    assert after.num_classes == 7
    assert after.shards == before.shards
    np.testing.assert_array_equal(after.offsets, before.offsets)
    with pytest.raises(ShardError, match="label 2"):
        _run("index", shards, "--num-classes", "2")


def test_verify_intact(shards: Path) -> None:
    result = _run("verify", shards)
    assert result.exit_code == 0
    assert "10 samples, intact" in result.output


def test_verify_lists_damage_with_exit_code_1(shards: Path) -> None:
    manifest = Manifest.load(shards)
    assert len(manifest.shards) > 1
    first, last = manifest.shard_path(0), manifest.shard_path(len(manifest.shards) - 1)
    content = bytearray(first.read_bytes())
    content[int(manifest.offsets[0]) + 20] ^= 1
    first.write_bytes(content)
    quick = _run("verify", shards, "--no-digests")
    assert quick.exit_code == 0
    assert "contents were not read" in quick.output
    last.unlink()
    result = _run("verify", shards)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert any(first.name in line and "SHA-256" in line for line in lines)
    assert any(last.name in line and "missing" in line for line in lines)
    assert lines[-1].endswith("damaged, 2 problems.")


def test_info_shows_classes_with_counts(shards: Path) -> None:
    output = _run("info", shards).output
    assert _cells(output)["samples"] == "10"
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines()]
    assert ["2", "cow", "5", "50.0 %"] in rows
    short = _run("info", shards, "--limit", "1").output
    assert "cow" not in short
    assert "2 more classes" in short
    assert "cow" in _run("info", shards, "--limit", "0").output


def test_names_cannot_steer_the_terminal(tmp_path: Path, images: Path) -> None:
    (images / "ant").rename(images / "[red]\x1b[2Jant")
    _run("convert", "image-folder", images, tmp_path / "out")
    output = _run("info", tmp_path / "out").output
    assert "\x1b[2J" not in output
    assert r"[red]\x1b[2Jant" in output


@pytest.mark.parametrize("command", ["verify", "info"])
def test_missing_manifests_say_what_to_do(tmp_path: Path, command: str) -> None:
    with pytest.raises(ShardError, match="pbe-fast shards index"):
        _run(command, tmp_path)
