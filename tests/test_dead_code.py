"""Whatever the product defines is used by the product, not by tests only.

Definitions are told apart by their module, so that a dead twin of a live function is found.
Methods are told apart by their names only.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("mrmodel", "flows", "infra", "benchmarks")
# Other files that name functions: entry points, deployments, pages with examples, templates.
TEXTS = ("*.toml", "*.yaml", "README.md", "docs/**/*.md", "infra/**/*.yaml", "mrmodel/**/*.j2")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Any other decorator hands the function to somebody who calls it: click, Prefect, pydantic.
PLAIN_DECORATORS = {
    "abstractmethod",
    "cache",
    "cached_property",
    "classmethod",
    "contextmanager",
    "dataclass",
    "lru_cache",
    "property",
    "runtime_checkable",
    "staticmethod",
}
CALLED_BY_OTHERS = {
    "mrmodel.cli.main.LazyGroup.*": "click",
    "mrmodel.evaluate.run.evaluate": "people, from Python: metrics of rows by a protocol's name",
    "mrmodel.convert.encoders.*Reader.*": "pickle.Unpickler",
    "mrmodel.convert.safe_unpickle._InertUnpickler.*": "pickle.Unpickler",
    "mrmodel.convert.safe_unpickle._StandIn._ignore": "pickle.Unpickler",
    "mrmodel.tracking.pyfunc_model.MomentSearch.load_context": "MLflow",
    "mrmodel.tracking.mlflow_events.EventHandler._handle_*": "getattr in the same class",
    "mrmodel.tune.storage._JournalLock.acquire": "Optuna",
}


def module_of(path: Path) -> str:
    """Dotted name of a Python file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in CODE
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression that is only that."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names_in(node: ast.AST) -> Counter[str]:
    """Names that are read, and attributes as ``.name``, with how often."""
    found: Counter[str] = Counter()
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
            found[one.id] += 1
        elif isinstance(one, ast.Attribute):
            found[f".{one.attr}"] += 1
    return found


def reached_from(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what a module imports, reaches through a module, or has as a string."""
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for one in node.names:
                imported[one.asname or one.name] = f"{source}{one.name}"
                yield f"{source}{one.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = dotted(node).partition(".")
            yield f"{imported.get(head, head)}.{rest}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace(":", ".")  # an import path, as in `components.py`


def reached_from_text(text: str) -> Iterator[str]:
    """Dotted names and method calls in a file that is no Python."""
    for name in re.findall(r"\w+(?:[.:]\w+)+", text):
        yield name.replace(":", ".")
    for name in re.findall(r"\.\w+\(", text):
        yield name.rstrip("(")
    for module, names in re.findall(r"from ([\w.]+) import ([\w, ]+)", text):
        yield from (f"{module}.{name}" for name in re.split(r"\W+", names))


def is_handed_over(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator gives it to somebody, or the language calls it."""
    called = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    others = {dotted(one).rpartition(".")[2] for one in called} - PLAIN_DECORATORS
    return bool(others) or node.name.startswith("__")


def unused() -> Iterator[str]:
    """Dotted names of functions, classes and methods that only they themselves, or tests, use."""
    reached = set(chain.from_iterable(map(reached_from, MODULES.values())))
    for path in chain.from_iterable(map(ROOT.glob, TEXTS)):
        reached |= set(reached_from_text(path.read_text(encoding="utf-8")))
    names = {module: names_in(tree) for module, tree in MODULES.items()}
    everywhere = sum(names.values(), Counter())
    for module, tree in MODULES.items():
        for node in tree.body:
            if not isinstance(node, DEFINITIONS):
                continue
            name = f"{module}.{node.name}"
            elsewhere_here = names[module][node.name] > names_in(node)[node.name]
            if not (is_handed_over(node) or elsewhere_here or name in reached):
                yield name
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, DEFINITIONS) and not is_handed_over(method):
                    short = f".{method.name}"
                    if everywhere[short] <= names_in(method)[short] and short not in reached:
                        yield f"{name}{short}"


def test_nothing_is_used_by_tests_only() -> None:
    found = list(unused())
    assert [one for one in found if not any(fnmatchcase(one, p) for p in CALLED_BY_OTHERS)] == []
    # An entry that has become useless goes.
    assert [p for p in CALLED_BY_OTHERS if not any(fnmatchcase(one, p) for one in found)] == []
