# SPDX-License-Identifier: Apache-2.0
"""The structure itself under test: the numbers of CONTRIBUTING.md, read from the source with `ast`."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import idlora
from idlora import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "idlora"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OWN_CODE = [path for folder in ("src", "tests", "tools", "benchmarks", ".ci") for path in (ROOT / folder).rglob("*.py")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = [f"idlora.{layer}" for layer in PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_MEDIAN_FUNCTION_LINES = 12
MAX_PARAMETERS = 7

# Functions that need more parameters than the bar, with the reason.
MANY_PARAMETERS = {
    "idlora.cli.evaluate.evaluate": "each is an option of the command",
    "idlora.cli.miniature.train": "each is an option of the command",
    "idlora.cli.pairs.pairs": "each is an option of the command",
    "idlora.cli.precompute.precompute": "each is an option of the command",
}

# Where files of others are read that exist as pickles alone: as tensors, never as programs.
READS_PICKLED_TENSORS = {"idlora.evaluation.judges.weights", "idlora.training.latents.published"}

# Dataclasses that change while they work, with the reason; every other one is a frozen record.
MUTABLE = {
    "idlora.training.identity.journal.Tally": "gathers losses until the next line of the log",
    "idlora.training.miniature.loop.Trainer": "keeps the state of an optimiser",
}

PUBLIC = [
    "Cancelled",
    "DeviceMemoryError",
    "IDLoraError",
    "IDLoraPipeline",
    "InputError",
    "MediaError",
    "OutputError",
    "Prompt",
    "SettingsError",
    "TrainingError",
    "WeightsError",
    "__version__",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def functions_of(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, Function)]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it runs; blocks for the type checker alone do not count."""
    for node in _running(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module or ""


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def layer_of(module: str) -> int | None:
    """Return the height of a module's layer, 0 the lowest, or None for the package's own front."""
    for height, layer in enumerate(reversed(LAYERS)):
        if module == layer or module.startswith(f"{layer}."):
            return height
    return None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    height = layer_of(module_of(path))
    if height is None:
        assert path == PACKAGE / "__init__.py", f"{name_of(path)} stands in no layer of the contract in pyproject.toml"
        return
    own = LAYERS[len(LAYERS) - 1 - height]
    for module in imports_of(path):
        target = layer_of(module)
        if target is not None and not f"{module}.".startswith(f"{own}."):
            assert target < height, f"{name_of(path)} imports {module}, which stands above it"


def test_the_contract_names_the_layers_of_the_design() -> None:
    names = ["cli", "mining", "evaluation", "training", "pipeline", "data", "networks", "core", "files", "errors"]
    assert [f"idlora.{name}" for name in names] == LAYERS


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_the_mathematics_knows_torch_alone(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imports_of(path)}
    assert roots <= {"torch", "idlora", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", OWN_CODE, ids=name_of)
def test_a_file_says_its_licence_and_what_stands_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, f"{name_of(path)} has no docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_docstrings_are_short(path: Path) -> None:
    assert len((ast.get_docstring(tree_of(path)) or "").splitlines()) <= 5


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_fit_on_a_screen_and_take_few_parameters(path: Path) -> None:
    for function in functions_of(path):
        assert _length(function) <= MAX_FUNCTION_LINES, f"{function.name} is {_length(function)} lines long"
        place = f"{module_of(path)}.{function.name}"
        assert _num_parameters(function) <= MAX_PARAMETERS or place in MANY_PARAMETERS, place


def test_most_functions_are_short() -> None:
    lengths = [_length(function) for path in SOURCES for function in functions_of(path)]
    assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES


def test_no_exception_outlives_its_reason() -> None:
    places = {f"{module_of(path)}.{function.name}": function for path in SOURCES for function in functions_of(path)}
    assert all(_num_parameters(places[place]) > MAX_PARAMETERS for place in MANY_PARAMETERS)


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _num_parameters(function: Function) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_is_described(path: Path) -> None:
    missing = list(_undescribed(tree_of(path)))
    assert not missing, f"{name_of(path)}: {missing} lack a docstring"


def _undescribed(parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        inherited = isinstance(parent, ast.ClassDef) and node.name == "forward"
        if not ast.get_docstring(node) and not inherited:
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from _undescribed(node)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_records_are_frozen(path: Path) -> None:
    classes = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    changing = {f"{module_of(path)}.{node.name}" for node in classes if _is_changing_record(node)}
    assert changing == {place for place in MUTABLE if place.rpartition(".")[0] == module_of(path)}


def _is_changing_record(node: ast.ClassDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(text.startswith("dataclass") and "frozen=True" not in text for text in decorators)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_command_line_prints_and_nobody_touches_the_search_path(path: Path) -> None:
    nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    if module_of(path) in READS_PICKLED_TENSORS:
        nodes = [node for node in nodes if "weights_only=True" not in map(ast.unparse, node.keywords)]
    calls = [ast.unparse(node.func) for node in nodes]
    assert "cli" in path.relative_to(PACKAGE).parts or "print" not in calls
    assert not [call for call in calls if call.startswith(("sys.path", "pickle.", "torch.load", "eval", "exec"))]


@pytest.mark.parametrize("path", OWN_CODE, ids=name_of)
def test_no_path_of_one_machine_and_no_unfinished_business(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\"'](/home|/root|/work|/mnt|/Users|/opt|/tmp|[A-Z]:\\)", text)
    assert not re.search(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", text)


def test_only_attach_and_detach_slice_reference_tokens() -> None:
    sliced = re.compile(r"\[[^\]\n]*num_reference[^\]\n]*:|\[[^\]\n]*:[^\]\n]*num_reference[^\]\n]*\]")
    lines = [(path, line) for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines()]
    places = {module_of(path) for path, line in lines if sliced.search(line) and "bias" not in line}
    assert places == {"idlora.core.reference"}


def test_the_public_names_are_these_and_each_can_be_had() -> None:
    assert sorted(idlora.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(idlora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        _ = idlora.Absent


def test_every_error_is_exported() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(idlora.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, idlora; print(*(sys.modules.keys() & {'torch', 'numpy', 'av', 'diffusers', 'transformers'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_changelog_begins_with_this_version_and_goes_back_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [tuple(map(int, found)) for found in re.findall(r"^## (\d+)\.(\d+)\.(\d+)", text, re.MULTILINE)]
    assert ".".join(map(str, versions[0])) == idlora.__version__
    assert all(newer > older for newer, older in pairwise(versions))


def test_dependencies_are_ranges_and_the_constraint_lies_within() -> None:
    names = [re.split(r"[<>=!~\[]", text)[0] for text in PROJECT["project"]["dependencies"]]
    assert not [text for text in PROJECT["project"]["dependencies"] if "==" in text]
    assert not {"torchvision", "torchaudio", "webrtcvad", "pyworld"} & set(names)
    assert re.search(r"^torch==\d", (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_what_ships_with_the_package_is_small_and_safe() -> None:
    assets = [path for path in (PACKAGE / "data").rglob("*") if path.is_file() and path.suffix != ".py"]
    weights = [path for path in (PACKAGE / "weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in assets if path.suffix != ".pyc") < 5e6
    assert sum(path.stat().st_size for path in weights) < 40e6
    assert {path.suffix for path in weights} <= {".safetensors", ".json", ".md", ".model", ".txt"}


def test_the_tree_of_contributing_names_every_module() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("src/idlora/\n")[1].split("\ntests/")[0]
    named = sorted(re.findall(r"\w+\.py\b", tree))
    there = sorted(path.name for path in SOURCES if path.name != "__init__.py")
    assert named == there
