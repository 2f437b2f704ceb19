"""The house stands as it was drawn: imports run one way, and nothing runs what it reads."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "pbe_fast", "pipelines")
MAY_IMPORT = {
    "kernels": {"kernels", "torch", "triton"},
    "pbe_fast": None,
    "pipelines": None,
}
MAY_NOT_IMPORT = {
    "kernels": set(),
    "pbe_fast": {"pipelines", "bench", "tests", "ray"},
    "pipelines": {"bench", "tests"},
}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


FILES = [path for package in PACKAGES for path in _files(package)]
INITS = [path for path in FILES if path.name == "__init__.py"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imported(tree: ast.AST) -> Iterator[str]:
    """The full names of imported modules and names, with those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func) in _DYNAMIC:
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


_DYNAMIC = {"__import__", "importlib.import_module", "import_module"}


def _dotted(node: ast.AST) -> str:
    """``os.path.join`` of such an expression; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def _wrong_imports(package: str, source: str) -> list[str]:
    wrong = []
    for name in _imported(ast.parse(source)):
        top = name.split(".")[0]
        allowed = MAY_IMPORT[package]
        foreign = allowed is not None and top not in allowed | sys.stdlib_module_names
        if not top or foreign or top in MAY_NOT_IMPORT[package]:
            wrong.append(name)
    return wrong


# Modules and functions that run, or let run, what is read from a file or given as text.
_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
            "subprocess", "pty", "commands"}  # fmt: skip
_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.hub.load",
          "yaml.unsafe_load", "yaml.full_load"}  # fmt: skip
_PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")


def _dangers(source: str) -> list[str]:
    tree = ast.parse(source)
    wrong = [name for name in _imported(tree) if name.split(".")[0] in _MODULES]
    wrong += [
        name
        for name in _imported(tree)
        if name in ("os.system", "os.popen") or name.startswith(_PREFIXES)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _dotted(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        if called in _CALLS or called.startswith(_PREFIXES):
            wrong.append(called)
        if called == "torch.load" and not _is(keywords.get("weights_only"), True):
            wrong.append("torch.load without weights_only=True")
        if called.split(".")[-1] in ("load", "fromfile", "loadtxt") and _is(
            keywords.get("allow_pickle"), True
        ):
            wrong.append(f"{called} with allow_pickle")
        if called in ("yaml.load", "yaml.load_all") and "Loader" not in keywords:
            wrong.append(f"{called} without a loader")
        if "shell" in keywords and not _is(keywords["shell"], False):
            wrong.append(f"{called} with shell")
    return wrong


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_there_is_something_to_look_at() -> None:
    for package in PACKAGES:
        assert _files(package)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert _wrong_imports(package, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("kernels", "import numpy"),
        ("kernels", "from pbe_fast.data import loader"),
        ("pbe_fast", "def f():\n    from pipelines.cli import main"),
        ("pbe_fast", "import ray.data"),
        ("pbe_fast", "import importlib\nimportlib.import_module('ray')"),
        ("pbe_fast", "from . import data"),
        ("pipelines", "import tests.conftest"),
        ("pipelines", "if True:\n    import bench"),
    ],
)
def test_the_look_at_imports_is_not_blind(package: str, source: str) -> None:
    assert len(_wrong_imports(package, source)) == 1


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert _dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import subprocess as s",
        "from os import system",
        "import os\nos.system('ls')",
        "os.execv('ls', [])",
        "eval('1')",
        "exec('1')",
        "run('ls', shell=True)",
        "run('ls', shell=flag)",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=flag)",
        "numpy.load('x', allow_pickle=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "__import__('pickle')",
    ],
)
def test_the_look_for_dangers_is_not_blind(source: str) -> None:
    assert len(_dangers(source)) == 1


@pytest.mark.parametrize(
    "source", ["model.eval()", "torch.load('x', weights_only=True)", "loader.exec_module(m)"]
)
def test_the_look_for_dangers_leaves_what_is_harmless(source: str) -> None:
    assert _dangers(source) == []


@pytest.mark.parametrize("path", INITS, ids=_name)
def test_packages_hand_on_names_that_exist(path: Path) -> None:
    module = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    names = module.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", INITS, ids=_name)
def test_packages_do_nothing_but_hand_on_names(path: Path) -> None:
    others = [
        ast.unparse(node)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" in ast.unparse(node))
    ]
    assert others == []


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=_name)
def test_modules_say_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(listed) == 1
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        else:
            defined |= {
                name.id
                for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    assert set(listed[0]) <= defined


_ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "pipelines", "bench", "tests"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import kernels, pbe_fast, pbe_fast.data, pbe_fast.data.signs, pbe_fast.data.converters
try:
    import ray
except ImportError:
    print("fine", sorted({"ray", "pipelines", "bench", "tests"} & set(sys.modules)))
"""


def test_the_library_imports_without_ray_and_without_the_jobs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _ALONE], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (result.stdout, result.stderr) == ("fine []\n", "")


_LOADED = """
import sys
from pathlib import Path
from pbe_fast.models import ModelSpec, create_model, load_model, save_model
path = Path(sys.argv[1])
save_model(create_model(ModelSpec("builtin:preact_resnet18", 3, 16, {"width": 4})), path)
load_model(path)
print("torch._dynamo" in sys.modules)
"""


def test_loading_a_model_does_not_import_the_compiler(tmp_path: Path) -> None:
    """It takes seconds and 100 MB, of every driver."""
    result = subprocess.run(
        [sys.executable, "-c", _LOADED, str(tmp_path / "model.safetensors")],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_kernels_alone_bring_nothing_of_the_library() -> None:
    code = "import sys, kernels; print(sorted(m for m in sys.modules if m.startswith('pbe_fast')))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
