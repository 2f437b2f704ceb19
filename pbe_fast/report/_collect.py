"""What the page of a run is to show of other runs, read from these runs' directories."""

import base64
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from pbe_fast._yaml import YAML_ERRORS, parse_yaml
from pbe_fast.analysis.predictions import PREDICTIONS_NAME, read_predictions
from pbe_fast.data.decode import decode_rgb
from pbe_fast.errors import ImageError, RunDirectoryError
from pbe_fast.report._extras import (
    EXTRAS_NAME,
    MAX_SIDE,
    MOST_BYTES,
    MOST_PICTURES,
    MOST_SCANS,
    KeptFeatures,
    KeptPicture,
    KeptScan,
    as_bytes,
    read_extras,
)
from pbe_fast.report._run import Count, Metrics, Record, read_config_text
from pbe_fast.report._scan_map import side_by_side
from pbe_fast.thumbnails import png_bytes

__all__ = ["collect_extras"]

_FEATURES_NAME = "features.json"
_JSON_BYTES = 16 * 2**20
_PICTURE_BYTES = 32 * 2**20
_PICTURE_PIXELS = 16_000_000
_PICTURE = re.compile(r"(?P<kind>similarity|maps)(?:-(?P<index>[0-9]{1,4}))?(?:-[\w.-]+)?")


_Cosine = Annotated[float, Field(ge=-1.001, le=1.001, allow_inf_nan=False)]  # as it is rounded


class _Near(Record):
    to_triggered: dict[str, _Cosine] = Field(default_factory=dict)


class _Claims(Record):
    layer: str
    images: Count
    similar: _Near


class _Features(Record):
    """``features.json``, as far as it is needed here."""

    pictures: tuple[str, ...]
    picture_labels: dict[str, str] = Field(default_factory=dict)  # none in older runs
    claims: tuple[_Claims, ...] = ()


def collect_extras(
    run_dir: Path, metrics: Metrics, scans: Sequence[Path], features: Path | None
) -> bytes:
    """The new content of ``extras.json``: what is given, and of the other kind what there was.

    Args:
        metrics: of ``run_dir``.
        scans, features: run directories of ``pbe-fast scan`` and ``pbe-fast features``; none of
            a kind leaves the kept ones as they are.

    Raises:
        RunDirectoryError: one of them is missing, damaged or something else.
    """
    kept = read_extras(run_dir).kept
    if scans:
        kept = kept.model_copy(update={"scans": _scans(run_dir, metrics, scans)})
    if features is not None:
        kept = kept.model_copy(update={"features": _features(run_dir, metrics, features)})
    content = as_bytes(kept)
    if len(content) > MOST_BYTES:
        raise RunDirectoryError(
            f"{run_dir / EXTRAS_NAME}: would have {len(content):,} bytes, and at most "
            f"{MOST_BYTES:,} are kept. Give a features run with fewer pictures."
        )
    return content


def _scans(run_dir: Path, metrics: Metrics, scans: Sequence[Path]) -> tuple[KeptScan, ...]:
    if len(scans) > MOST_SCANS:
        raise RunDirectoryError(
            f"{len(scans)} scans are given, and a page shows at most {MOST_SCANS}."
        )
    for scan in scans:
        kind = Metrics.load(scan).kind
        if kind != "scan":
            raise RunDirectoryError(
                f"{scan}: is no run of 'pbe-fast scan'{f' but of {kind!r}' if kind else ''}. Give "
                "the folder that a scan wrote to."
            )
    found = [read_predictions(scan / PREDICTIONS_NAME) for scan in scans]
    return tuple(
        KeptScan(
            run=scan.resolve().name,
            model=_model_words(run_dir, metrics, scan),
            map=drawn,
        )
        for scan, drawn in zip(scans, side_by_side(found), strict=True)
    )


def _features(run_dir: Path, metrics: Metrics, features: Path) -> KeptFeatures:
    found = _read_features(features)
    # How alike features are comes before single images.
    names = sorted(found.pictures, key=lambda name: name.startswith("maps"))
    return KeptFeatures(
        run=features.resolve().name,
        model=_model_words(run_dir, metrics, features),
        pictures=tuple(_picture(features, found, name) for name in names[:MOST_PICTURES]),
        left_out=max(0, len(names) - MOST_PICTURES),
    )


def _read_features(features: Path) -> _Features:
    path = features / _FEATURES_NAME
    advice = "Give the folder that 'pbe-fast features' wrote to, of a run that has finished."
    if not features.is_dir():
        raise RunDirectoryError(f"{features}: there is no such run directory. {advice}")
    try:
        found = _Features.model_validate(json.loads(_bytes(path, _JSON_BYTES)))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: there is no such file. {advice}") from None
    except (OSError, RecursionError, ValidationError, ValueError) as error:
        why = (
            f"{error.error_count()} keys are wrong" if isinstance(error, ValidationError) else error
        )
        raise RunDirectoryError(
            f"{path}: is not what a features run writes ({why}). {advice}"
        ) from (None)
    for name in found.pictures:
        if not _PICTURE.fullmatch(name):  # it becomes part of a path
            raise RunDirectoryError(
                f"{path}: names a picture {name!r}, as no features run does. {advice}"
            )
    return found


def _picture(features: Path, found: _Features, name: str) -> KeptPicture:
    path = features / f"{name}.png"
    try:
        pixels = decode_rgb(_bytes(path, _PICTURE_BYTES), max_pixels=_PICTURE_PIXELS)
    except (OSError, ImageError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunDirectoryError(
            f"{path}: is no picture of a features run ({why}). Delete metrics.json beside it and "
            "give the same 'pbe-fast features' command, which draws it anew."
        ) from None
    caption = _caption(found, name)
    return KeptPicture(
        name=name,
        alt=found.picture_labels.get(name) or caption,
        caption=caption,
        png=base64.b64encode(png_bytes(pixels, MAX_SIDE)).decode(),
    )


def _caption(found: _Features, name: str) -> str:
    """What is seen in a picture."""
    match = _PICTURE.fullmatch(name)
    if match is None or match["kind"] == "maps":
        return (
            "Rows: one image as it is, with the trigger, and as adversarial examples. Columns: the "
            "image, what was added to it, and feature maps."
        )
    index = int(match["index"] or 0)
    if index >= len(found.claims):
        return "How alike the features of adversarial examples and of triggered images are."
    claims = found.claims[index]
    text = f"How alike features are at layer {claims.layer}"
    names = {
        "adversarial": "the adversarial example",
        "benign_adversarial": "a benign model’s",
        "clean": "the clean image",
    }
    near = claims.similar.to_triggered
    means = [f"{near[key]:.3f} for {words}" for key, words in names.items() if key in near]
    if not means:
        return f"{text}. The trigger works on none of the images."
    return (
        f"{text}. Mean cosine to the triggered image, over {claims.images:,} images on which the "
        f"trigger works: {', '.join(means)}."
    )


def _model_words(run_dir: Path, metrics: Metrics, other: Path) -> str:
    """Which model another run was about, as seen from this one."""
    checkpoint = _checkpoint(other)
    if checkpoint is None:
        return "Model not known"
    known = {"Trained model": str(run_dir / "model.safetensors")}
    if metrics.is_purification:
        known = {"Purified model": str(run_dir / "purified.safetensors")}
        if (given := _checkpoint(run_dir)) is not None:
            known["Infected model"] = given
    for words, place in known.items():
        if os.path.realpath(place) == os.path.realpath(checkpoint):
            return words
    return f"Model {'/'.join(Path(checkpoint).parts[-2:])}"


def _checkpoint(run_dir: Path) -> str | None:
    """The weights that a run was given; None where its configuration does not say."""
    text = read_config_text(run_dir)
    if text is None or "<<" in text:  # merged keys, which no run writes, can grow without end
        return None
    try:
        content = parse_yaml(text)
    except YAML_ERRORS:
        return None
    model = content.get("model") if isinstance(content, dict) else None
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    if not isinstance(checkpoint, str) or not checkpoint.isprintable():
        return None  # also without what no path can hold
    return checkpoint or None


def _bytes(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return content
