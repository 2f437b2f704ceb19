"""Configurations of the jobs. Typed; unknown keys are refused.

A configuration is data at the edge: it is checked whole, kept with the result, and taken
apart before anything runs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pbe_fast._config_errors import explain, short
from pbe_fast._location import location
from pbe_fast._yaml import YAML_ERRORS, dump_yaml, parse_yaml
from pbe_fast.errors import ConfigError

__all__ = [
    "AdversaryConfig",
    "AftConfig",
    "DataConfig",
    "DeviceConfig",
    "FeaturesConfig",
    "JobConfig",
    "MineConfig",
    "ModelConfig",
    "PbeConfig",
    "PoisonConfig",
    "ProbeConfig",
    "PurifyConfig",
    "ScanConfig",
    "SgdConfig",
    "SieveConfig",
    "TrainConfig",
    "load_config",
]

Fraction = float


def _location(value: object) -> object:
    if not isinstance(value, str | Path):
        raise ValueError("give a local path, http://, https:// or s3://")
    return location(value)


# Of shards: a Path on local disk, a str for an address, which a Path would lose a slash of.
ShardPlace = Annotated[Path | str, BeforeValidator(_location)]
_MAX_SEED = 2**63 - 1  # torch takes no larger one


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads ``steps: yes`` as true, which would pass as the number 1."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("true or false makes no sense here")
        return value


class ModelConfig(_Strict):
    """Which architecture, and where its weights are."""

    name: str = Field("", description="builtin:NAME, timm:NAME, torchvision:NAME, FILE.py:factory")
    options: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="passed to the model, such as width: 16"
    )
    checkpoint: Path | None = Field(None, description="the model's weights")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @field_validator("options")
    @classmethod
    def _in_one_order(
        cls, options: dict[str, int | float | str | bool]
    ) -> dict[str, int | float | str | bool]:
        """Equal configurations give equal text."""
        return dict(sorted(options.items()))


class DataConfig(_Strict):
    """The shards and how images are read."""

    train: ShardPlace | None = Field(
        None, description="the training shards, perhaps poisoned: a path, http(s):// or s3://"
    )
    clean: ShardPlace | None = Field(None, description="shards with correct labels and no poison")
    clean_fraction: Fraction = Field(1.0, gt=0, le=1, description="random share of clean taken")
    mined: ShardPlace | None = Field(
        None,
        description="adversarial examples of clean (AFT) or train, from pbe-fast mine",
    )
    test: ShardPlace | None = Field(None, description="clean test shards, for ACC and ASR")
    attack: Path | None = Field(None, description="attack.safetensors, for ASR")
    truth: Path | None = Field(None, description="truth.parquet, for the suspects' AUROC")
    image_size: int = Field(32, ge=1, le=4096, description="side in pixels")
    augment: Literal["auto", "none", "crop_rotate", "resized_crop"] = Field(
        "auto", description="auto: crop_rotate up to 64 pixels, else resized_crop"
    )
    flip: bool = Field(False, description="mirror half of the training images")
    workers: int | None = Field(None, ge=0, description="decoding processes; null chooses")
    check_digests: bool = Field(
        True, description="compare every local shard's SHA-256 at the start"
    )
    cache_dir: Path | None = Field(
        None, description="where bytes of remote shards are kept; null: the user's cache folder"
    )
    cache_bytes: int | None = Field(
        None, ge=0, description="of disk for that; 0: none, null: 50 GB or half of what is free"
    )
    quarantine_budget: Fraction = Field(
        0.001, ge=0, le=1, description="share of images that may be undecodable"
    )


class AdversaryConfig(_Strict):
    """PGD (DESIGN section 2); lengths in 1/255 of the pixel range."""

    norm: Literal["linf", "l2"] = "linf"
    eps_255: float = Field(6.0, gt=0)
    step_255: float | None = Field(None, gt=0, description="null: eps / 5")
    steps: int = Field(7, ge=1)
    random_start: bool = False
    mode: Literal["exact", "retire"] = Field(
        "exact", description="exact: all steps for every image; retire: done ones leave the batch"
    )
    margin: float = Field(0.5, ge=0, description="retire: of logits, by which a done one is wrong")
    fold: bool = Field(True, description="fold batch norm into the convolutions of the mined copy")
    compile: bool = Field(True, description="CUDA: torch.compile and CUDA graphs for mining")


class SgdConfig(_Strict):
    """Stochastic gradient descent with momentum."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.001, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)


class AftConfig(SgdConfig):
    """Adversarial fine-tuning with a clean set."""

    epochs: int = Field(20, ge=1)
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine falls to zero over the epochs"
    )
    adversarial_epochs: int = Field(3, ge=0, description="first epochs, every batch adversarial")


class PbeConfig(SgdConfig):
    """Progressive Backdoor Erasing without a clean set."""

    lr: float = Field(0.01, gt=0)
    initial_fraction: Fraction = Field(0.05, gt=0, le=1, description="random first subset")
    keep: tuple[Annotated[Fraction, Field(gt=0, le=1)], ...] = Field(
        (0.2, 0.5, 0.7), description="share of the training set in rounds 1, 2, 3"
    )
    epochs: int = Field(10, ge=1, description="of each round")
    adversarial_batches: int = Field(30, ge=0, description="of rounds after the first")


class SieveConfig(SgdConfig):
    """Sieve: progressive erasing after a split of the classes, without a clean set."""

    lr: float = Field(0.05, gt=0, description="at the start of a round; falls to zero by a cosine")
    epochs: int = Field(4, ge=1, description="of each round after the first")
    initial_fraction: Fraction = Field(
        0.2, gt=0, le=1, description="of each class, of what is beyond suspicion, in round 0"
    )
    initial_epochs: int = Field(5, ge=1, description="of round 0")
    initial_lr: float = Field(0.1, gt=0, description="of round 0")
    adversarial_epochs: int = Field(1, ge=0, description="first epochs of round 0")
    more_rounds: int = Field(
        2,
        ge=0,
        description="at most, while suspects get their labels or a poisoned class is not learned",
    )
    split: bool = Field(True, description="false, for comparison: a random first subset")
    relabel: bool = Field(True, description="train suspects with the purified model's labels")
    second_look: bool = Field(
        True, description="look again at classes that seemed whole, with a partly purified model"
    )
    witnesses: bool = Field(
        True, description="where a trigger leads to every label, judge image by image"
    )


class DeviceConfig(_Strict):
    """What all jobs that run a model on data have in common."""

    data: DataConfig = DataConfig()
    seed: int = Field(0, ge=0, le=_MAX_SEED)
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto measures")
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="auto measures"
    )


class JobConfig(DeviceConfig):
    """What training and purifying have in common."""

    eval_batch_size: int = Field(512, ge=1)
    curve_samples: int = Field(2000, ge=0, description="test images for the curves; 0: no curves")
    checkpoint_seconds: float = Field(30.0, ge=0, description="at most this much work is lost")


class PurifyConfig(JobConfig):
    """``pbe-fast purify``."""

    method: Literal["auto", "aft", "pbe", "sieve"] = Field(
        "auto", description="auto: aft where data.clean is given, else sieve"
    )
    model: ModelConfig = ModelConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    aft: AftConfig = AftConfig()
    pbe: PbeConfig = PbeConfig()
    sieve: SieveConfig = SieveConfig()


class MineConfig(DeviceConfig):
    """``pbe-fast mine``; of ``data``, the set that is mined is ``train``."""

    model: ModelConfig = ModelConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    batch_size: int = Field(256, ge=1, description="images mined at once")
    seed: int = Field(0, ge=0, le=_MAX_SEED, description="of random starts")


class ProbeConfig(_Strict):
    """Which adversarial examples a scan looks at: L-inf PGD, steps of eps / 5."""

    eps_255: tuple[Annotated[float, Field(gt=0, le=255)], ...] = Field(
        (2.0, 8.0, 16.0), min_length=1, description="sizes of the perturbations, in 1/255; rising"
    )
    steps: int = Field(7, ge=1, description="gradient steps at each of them")
    per_class: int | None = Field(
        50, ge=1, description="random images of each class; null: all of them"
    )

    @field_validator("eps_255")
    @classmethod
    def _rising(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if any(small >= large for small, large in pairwise(eps)):
            raise ValueError("give each size once, the smallest first")
        return eps


class ScanConfig(DeviceConfig):
    """``pbe-fast scan``; of ``data``, the images are ``train``."""

    model: ModelConfig = ModelConfig()
    scan: ProbeConfig = ProbeConfig()
    split: bool = Field(
        True, description="look for labels that are two kinds of images; false where all are clean"
    )
    batch_size: int = Field(256, ge=1, description="images worked on at once")
    seed: int = Field(0, ge=0, le=_MAX_SEED, description="of the choice of images")


class FeaturesConfig(DeviceConfig):
    """``pbe-fast features``; of ``data``, the images are ``test`` and the trigger ``attack``."""

    model: ModelConfig = ModelConfig()
    benign: Path | None = Field(
        None, description="weights of a benign model of the same architecture, as the control"
    )
    adversary: AdversaryConfig = AdversaryConfig()
    layers: tuple[str, ...] = Field(
        ("penultimate",), min_length=1, description="names of the network's modules, or penultimate"
    )
    images: int = Field(500, ge=2, description="random ones that are measured, or all")
    top_share: Fraction = Field(
        0.1, gt=0, lt=1, description="share of a layer's neurons that are the strongest"
    )
    keys: tuple[str, ...] = Field((), description="images that are drawn")
    pictures: int = Field(2, ge=0, description="how many are drawn where no keys are given")
    map_layer: str | None = Field(
        None, description="layer of the feature maps; null: the deepest that is 7 pixels wide"
    )
    channels: int = Field(6, ge=1, le=12, description="feature maps in a picture")
    batch_size: int = Field(64, ge=1)
    seed: int = Field(0, ge=0, le=_MAX_SEED, description="of the choice of images")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="auto measures"
    )


class TrainModelConfig(ModelConfig):
    """As :class:`ModelConfig`, with an architecture to fall back on."""

    name: str = "builtin:preact_resnet18"
    checkpoint: Path | None = Field(None, description="weights to begin with; null: random ones")


class TrainConfig(JobConfig, SgdConfig):
    """``pbe-fast train``."""

    model: TrainModelConfig = TrainModelConfig()
    epochs: int = Field(15, ge=1)
    lr: float = Field(0.1, gt=0)


class PoisonConfig(_Strict):
    """``pbe-fast poison``."""

    attack: Literal["badnets", "blend", "sig", "wanet", "input_aware"] = "badnets"
    mode: Literal["all_to_one", "all_to_all"] = "all_to_one"
    target: int = Field(0, ge=0)
    rate: Fraction = Field(
        0.1, gt=0, le=1, description="of the training set; clean_label: of the target class"
    )
    clean_label: bool = False
    image_size: int = Field(32, ge=1, le=4096, description="side in pixels")
    patch_size: int = Field(0, ge=0, description="badnets; 0: 3/32 of the image")
    picture: str = Field("kitten", description="blend: kitten, dog, or an image file")
    alpha: float = Field(0.2, gt=0, le=1, description="blend")
    amplitude_255: float = Field(20.0, gt=0, le=255, description="sig")
    frequency: float = Field(6.0, gt=0, description="sig")
    k: int = Field(4, ge=2, le=64, description="wanet: control grid")
    strength: float = Field(0.5, gt=0, description="wanet")
    generator_steps: int = Field(1500, ge=1, description="input_aware: training steps")
    generator_images: int = Field(20000, ge=6, description="input_aware: images trained on")
    seed: int = Field(0, ge=0, le=_MAX_SEED)
    device: str = "auto"
    shard_bytes: int = Field(256 * 2**20, ge=1024)


ConfigT = TypeVar("ConfigT", bound=_Strict)


def load_config(
    kind: type[ConfigT],
    file: Path | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> ConfigT:
    """A configuration from a YAML file, then ``key=value`` settings, then dotted values.

    Args:
        kind: which job's configuration.
        file: YAML; a mapping with the job's keys, perhaps only some of them.
        settings: such as ``["pbe.lr=0.005", "model.options.width=16"]``; values are YAML.
        values: dotted keys to values, from command line options; None values are skipped.

    Raises:
        ConfigError: a key is unknown (the nearest known one is named) or a value impossible.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_yaml(file)
    for setting in settings:
        shown = short(setting)
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {shown}: write it as key=value, such as pbe.lr=0.005.")
        try:
            value = parse_yaml(text)
        except YAML_ERRORS as error:
            raise ConfigError(f"--set {shown}: the value is no YAML ({error}).") from error
        _put(tree, key, value)
    for key, value in (values or {}).items():
        if value is not None:
            _put(tree, key, value)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(kind, error, file)) from error


def dump_config(config: BaseModel) -> str:
    """A configuration as YAML; equal configurations give equal text."""
    return dump_yaml(config.model_dump(mode="json"))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: there is no such configuration file.") from error
    except (OSError, *YAML_ERRORS) as error:
        raise ConfigError(f"{file}: cannot be read as YAML ({error}).") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: a configuration is a mapping of keys to values.")
    return tree


def _put(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a group of keys.")
        tree = child
    tree[last] = value
