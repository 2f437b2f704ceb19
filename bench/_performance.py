"""The generated tables and the plot of docs/performance.md, from the kept JSON."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from bench._tables import table

__all__ = ["BLOCKS", "plot"]

RESULTS = Path(__file__).parent / "results"
RATES = ("contender", ">images/s (quartiles)")
TITLES = {
    "resnet18_32": "ResNet-18, 32x32",
    "resnet50_224": "ResNet-50, 224x224",
    "model-benign": "PreActResNet-18 of width 16, GTSRB, 32x32",
}


def _content(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _missing(what: str) -> str:
    return f"Not measured yet: {what}."


def _machine(content: dict[str, Any]) -> str:
    versions = content["versions"]
    threads = content.get("threads")
    place = content.get("gpu") or f"{content['processor']}, {threads} thread{'s' * (threads != 1)}"
    return f"On: {place}; torch {versions['torch']}. `{content['command']}`"


def _rate(row: dict[str, Any]) -> str:
    return (
        f"{row['images_per_second']:,.1f} "
        f"({row['lower_quartile']:,.1f} to {row['upper_quartile']:,.1f})"
    )


def pgd_table(file: str, device: str, limit: bool = True) -> Callable[[], str]:
    """PGD-7 against the peers."""

    def made() -> str:
        content = _content(file)
        if content is None:
            return _missing(f"PGD on {device.upper()}")
        lines = [_machine(content)]
        for name, result in content["models"].items():
            rows = result["contenders"]
            base = rows["torchattacks"]["images_per_second"]
            lines += [
                "",
                f"**{TITLES.get(name, name)}**, accuracy {100 * result['accuracy']:.1f} %, "
                f"{result['images']} images, batch {result['batch']}:",
                "",
                table(
                    [*RATES, ">against torchattacks", ">success rate"],
                    (
                        [title, _rate(row), f"{row['images_per_second'] / base:.2f}x",
                         f"{100 * row['attack_success_rate']:.2f}"]
                        for title, row in sorted(
                            rows.items(), key=lambda pair: -float(pair[1]["images_per_second"])
                        )
                    ),
                ),
            ]  # fmt: skip
            lines += ["", _limit(result, device)] if limit else []
        return "\n".join(lines)

    return made


def _limit(result: dict[str, Any], device: str) -> str:
    """How near mode exact is to what the processor can compute."""
    arithmetic, rows = result["arithmetic"], result["contenders"]
    unit, scale = ("TFLOP/s", 1e12) if device == "cuda" else ("GFLOP/s", 1e9)

    def rate(title: str) -> str:
        flops = arithmetic["flop_per_image"] * rows[title]["images_per_second"]
        return f"{flops / scale:,.0f} {unit}"

    products = " and ".join(
        f"{arithmetic[f'matmul_{dtype}_flops'] / scale:,.0f} in {dtype}"
        for dtype in ("bfloat16", "float32")
    )
    return (
        f"PGD-7 takes {arithmetic['flop_per_image'] / 1e9:,.1f} GFLOP an image: *exact* runs at "
        f"{rate('ours, exact')}, torchattacks at {rate('torchattacks')}; a large matrix product "
        f"on the same device runs at {products}."
    )


def epoch_table(device: str) -> Callable[[], str]:
    """One AFT epoch against the plain loop."""

    def made() -> str:
        content = _content(f"aft_epoch_{device}")
        if content is None:
            return _missing(f"the AFT epoch on {device.upper()}")
        rows = content["contenders"]
        base = rows["plain"]["images_per_second"]
        lines = [
            [title, _rate(row), f"{row['images_per_second'] / base:.2f}x"]
            for title, row in rows.items()
        ]
        return f"{_machine(content)}\n\n{table([*RATES, '>against the plain loop'], lines)}"

    return made


def loading_table() -> str:
    """Shards to batches on one core."""
    content = _content("loading")
    if content is None:
        return _missing("loading")
    lines = [_machine(content)]
    for name, result in content["kinds"].items():
        rows = result["contenders"]
        base = rows["bare decoder"]["images_per_second"]
        lines += [
            "",
            f"To {name}x{name}, {result['images']:,} images:",
            "",
            table(
                ["contender", ">images/s on one core (quartiles)", ">of the bare decoder"],
                (
                    [title, _rate(row), f"{100 * row['images_per_second'] / base:.0f} %"]
                    for title, row in rows.items()
                ),
            ),
        ]
        parts = result["microseconds_per_image"]
        shown = ", ".join(f"{part} {value:,.1f}" for part, value in parts.items())
        lines += ["", f"Microseconds an image of *ours*: {shown}."]
    return "\n".join(lines)


def sizes_table(device: str) -> Callable[[], str]:
    """Cost against batch size."""

    def made() -> str:
        content = _content(f"sizes_{device}")
        if content is None:
            return _missing(f"batch sizes on {device.upper()}")
        lines = []
        for size, row in content["batches"].items():
            if "not_tried" in row:
                lines.append([size, "–", row["not_tried"]])
            else:
                peak = f"{row['peak_bytes'] / 2**20:,.0f}"
                lines.append([size, f"{row['images_per_second']:,.1f}", peak])
        heads = [">batch", ">images/s, one step", ">peak MiB"]
        return f"{_machine(content)}\n\n{table(heads, lines)}"

    return made


def kernels_table() -> str:
    """Kernels against their twins and the copy bandwidth."""
    content = _content("kernels_cuda")
    if content is None:
        return _missing("the kernels' bandwidth on CUDA")
    lines = [
        [title, f"{row['kernel_us']:,.1f}", f"{row['twin_us'] / row['kernel_us']:.1f}x slower",
         f"{row['gb_per_second']:,.0f}", f"{100 * row['share_of_copy']:.0f} %"]
        for title, row in content["kernels"].items()
    ]  # fmt: skip
    about = f"A copy of 1 GiB: {content['copy_gb_per_second']:,.0f} GB/s."
    heads = ["kernel", ">microseconds", ">twin", ">GB/s", ">of the copy"]
    return f"{_machine(content)}\n\n{about}\n\n{table(heads, lines)}"


def bookkeeping_table() -> str:
    """What the driver costs."""
    content = _content("bookkeeping")
    if content is None:
        return _missing("the driver's bookkeeping")
    lines = [
        [*(f"{row[key]:,}" for key in ("samples", "shards")),
         *(f"{row[key]:.0f}" for key in ("seconds", "of_scoring", "driver_cpu_seconds")),
         *(f"{row[key]:,.0f}" for key in ("driver_mib", "driver_mib_of_files"))]
        for row in content["runs"]
    ]  # fmt: skip
    heads = [">samples", ">shards", ">whole job, s", ">of it scoring, s", ">driver's CPU, s"]
    return f"{_machine(content)}\n\n{table([*heads, '>peak MiB', '>of it libraries'], lines)}"


def decisions_table() -> str:
    """What Sieve's decisions cost."""
    content = _content("decisions")
    if content is None:
        return _missing("Sieve's decisions")
    heads = [">images", ">classes", "trigger", ">split, s", *(f">round {i}, s" for i in range(3))]
    lines = [
        [*(f"{row[key]:,}" for key in ("samples", "classes")), row["mode"].replace("_", "-"),
         *(f"{value:,.0f}" for value in row["seconds"].values()),
         f"{sum(row['core_seconds'].values()):,.0f}", f"{row['activations_mib']:,.0f}",
         f"{row['mib']:,.0f}"]
        for row in content["runs"]
    ]  # fmt: skip
    heads += [">all, s of a core", ">activations, MiB", ">peak MiB"]
    return f"{_machine(content)}\n\n{table(heads, lines)}"


def scaling_table(device: str) -> Callable[[], str]:
    """Throughput by the number of workers."""

    def made() -> str:
        content = _content(f"scaling_{device}")
        if content is None:
            return _missing(f"scaling on {device.upper()}")
        base = content["runs"][0]
        titles = {"scoring": "scoring", "finetuning": "AFT", "apart": "the same steps apart"}
        parts = [part for part in titles if part in base]
        lines = []
        for row in content["runs"]:
            pairs = [[f"{row[part]:,.1f}", f"{row[part] / base[part]:.2f}x"] for part in parts]
            lines.append([row["workers"], *chain(*pairs)])
        heads = chain(*([f">{titles[part]}, images/s", ">"] for part in parts))
        return f"{_machine(content)}\n\n{table(['>workers', *heads], lines)}"

    return made


BLOCKS: dict[str, Callable[[], str]] = {
    "pgd-cpu": pgd_table("pgd_cpu", "cpu"),
    "pgd-gtsrb": pgd_table("pgd_gtsrb_cpu", "cpu", limit=False),
    "pgd-cuda": pgd_table("pgd_cuda", "cuda"),
    "epoch-cpu": epoch_table("cpu"),
    "epoch-cuda": epoch_table("cuda"),
    "loading": loading_table,
    "sizes-cpu": sizes_table("cpu"),
    "sizes-cuda": sizes_table("cuda"),
    "kernels": kernels_table,
    "bookkeeping": bookkeeping_table,
    "decisions": decisions_table,
    "scaling-cpu": scaling_table("cpu"),
    "scaling-cuda": scaling_table("cuda"),
}


def plot(path: Path) -> None:
    """PGD-7 images per second of every contender, a panel for each model and device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (f"{TITLES[name]}, {'CPU' if device == 'cpu' else content['gpu']}", result["contenders"])
        for device, file in (("cpu", "pgd_cpu"), ("cpu", "pgd_gtsrb_cpu"), ("cuda", "pgd_cuda"))
        if (content := _content(file)) is not None
        for name, result in content["models"].items()
    ]
    if not panels:
        return
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7, 2.6 * len(panels)), layout="constrained", squeeze=False
    )
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        names = sorted(rows, key=lambda name: float(rows[name]["images_per_second"]))
        rates = [rows[name]["images_per_second"] for name in names]
        spread = [
            [rows[n]["images_per_second"] - rows[n]["lower_quartile"] for n in names],
            [rows[n]["upper_quartile"] - rows[n]["images_per_second"] for n in names],
        ]
        colours = ["#1f6f8b" if name.startswith("ours") else "#b0b7bf" for name in names]
        bars = axis.barh(names, rates, xerr=spread, color=colours, ecolor="#444444")
        axis.bar_label(bars, labels=[f" {rate:,.1f}" for rate in rates], padding=4)
        axis.set_title(title, loc="left")
        axis.set_xlabel("images per second (median, quartiles)")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
