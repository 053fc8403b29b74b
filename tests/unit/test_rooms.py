"""The house rules: who may import whom, and that each stage's deps are the modules that it really imports."""

import ast
from pathlib import Path

import pytest
import yaml

from ganops.training.run import NUMERIC_MODULES

ROOT = Path(__file__).parents[2]
FLOORS = {"ops": 1, "images": 1, "networks": 2, "metrics": 2, "evaluation": 3, "explore": 3, "training": 3, "report": 3}
NO_NUMBERS = {
    "ganops",
    "ganops.config",
    "ganops.config_base",
    "ganops.config_tools",
    "ganops.config_train",
    "ganops.entry",
    "ganops.errors",
    "ganops.launch",
}
# These write files, lines and pictures, or find a run to continue; what they do reaches no weight.
TRAINING_WITHOUT_NUMBERS = {
    "ganops.files",
    "ganops.networks.snapshot",
    "ganops.networks.table",
    "ganops.ops._build",
    "ganops.ops.kernels",
    "ganops.protocols",
    "ganops.training.job",
    "ganops.training.log",
    "ganops.training.measure",
    "ganops.training.memory",
    "ganops.training.origin",
    "ganops.training.pictures",
    "ganops.training.run",
    "ganops.training.saver",
    "ganops.training.tick",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def module_path(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(path: Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                is_ours = deeper.startswith("ganops") and module_path(deeper).exists()
                found.add(deeper if is_ours else str(node.module))
    return {name for name in found if name.split(".")[0] in {"ganops", "stages"}}


def all_imports(path: Path, not_through: str = "-") -> set[str]:
    """Modules that running a file imports, also through others (but not through those that hold no numbers)."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for name in imports_of(waiting.pop()) - seen:
            seen.add(name)
            if name not in NO_NUMBERS and not name.startswith(not_through):
                waiting.append(module_path(name))
    return seen


LIBRARY = sorted((ROOT / "ganops").rglob("*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(ROOT / "ganops").parts[0]
    floor = FLOORS.get(room, 0)
    for name in imports_of(path):
        assert not name.startswith("stages"), f"{module_name(path)} imports {name}"
        other = name.split(".")[1] if "." in name else name
        if other != room:
            assert FLOORS.get(other, 0) < floor or (floor == 0 and FLOORS.get(other, 0) == 0), (
                f"{module_name(path)} imports {name}"
            )


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.name == "__init__.py"], ids=module_name)
def test_init_holds_a_docstring_only(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("stage", ["digits", "prepare", "stats", "train", "sample", "fid", "report"])
def test_deps_are_what_is_imported(stage: str) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    # What training measures carries the digest of the code that measures it: neither that nor what only it needs counts.
    imported = all_imports(ROOT / "stages" / f"{stage}.py", "ganops.metrics" if stage == "train" else "-") - NO_NUMBERS
    needed = {module_path(name) for name in imported if stage != "train" or not name.startswith("ganops.metrics")}
    covered, listed = set(), [ROOT / dep for dep in deps if dep.split("/")[0] in {"ganops", "stages"}]
    for dep in listed:
        files = {dep} if dep.suffix else set(dep.rglob("*.py"))
        used = {path for path in files if path in needed or path == ROOT / "stages" / f"{stage}.py"}
        assert used, f"{stage} lists {dep.relative_to(ROOT)} but does not import it"
        covered |= files
    missing = {path for path in needed - covered if path.name != "__init__.py"}
    assert not missing, f"{stage} does not list {sorted(str(path.relative_to(ROOT)) for path in missing)}"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.name)
def test_stages_are_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_every_module_of_training_is_classified() -> None:
    imported = all_imports(ROOT / "stages" / "train.py", "ganops.metrics") - NO_NUMBERS
    modules = {
        name for name in imported if module_path(name).name != "__init__.py" and not name.startswith("ganops.metrics")
    }
    assert modules - TRAINING_WITHOUT_NUMBERS == set(NUMERIC_MODULES)


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_modules_are_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
