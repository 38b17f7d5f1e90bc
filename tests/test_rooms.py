"""The house: which room may import which, that no modules import each other in a circle, and what each room says."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "metabin_jax"
METHOD = {"algorithm", "learner", "losses", "norm", "schedules"}
# From the top down. A room may import itself and rooms of lower rows; `data` and the method are beside each other.
ROWS = (
    {"__main__"},
    {"cli"},
    {"report", "export", "plan"},
    {"retrieval"},
    {"training"},
    {"models", "baselines", "evaluation"},
    {"method", "data"},
    {"runtime"},
)
ROW_OF = {room: number for number, row in enumerate(ROWS) for room in row}
TOOLS = {"report", "export", "plan"}
READS_CONFIGS = {"training", "cli"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package's own file has the package's name, "" for the root."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return "method" if first in METHOD else first


def imports(source: str, known: set[str], late: bool = True) -> set[str]:
    """The modules of this package that a source imports; late: within functions too."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree)) if late else [n for top in tree.body for n in _outside_functions(top)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metabin_jax":
            base = node.module.removeprefix("metabin_jax").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in known else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("metabin_jax.") for a in node.names if a.name.startswith("metabin_jax.")}
    return found - {""}


def _outside_functions(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return []
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in _outside_functions(child))]


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a higher row, and of another tool."""
    wrong = []
    for module, targets in graph.items():
        for target in targets:
            own, other = room_of(module), room_of(target)
            if own == other or not module:
                continue
            beside = ROW_OF[own] == ROW_OF[other]
            if ROW_OF[own] > ROW_OF[other] or (beside and own in TOOLS):
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, [] if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    for module in graph:
        if found := visit(module, []):
            return found
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: imports(path.read_text(encoding="utf-8"), set(known)) for module, path in known.items()}


def test_no_arrow_goes_up(graph):
    assert arrows_up(graph) == []
    assert arrows_up({**graph, "evaluation.metrics": {"report.page"}}) == ["evaluation.metrics imports report.page"]
    assert arrows_up({**graph, "plan.run": {"export.run"}}) == ["plan.run imports export.run"]


def test_no_circle(graph):
    assert circle(graph) == []
    planted = {**graph, "data.records": {"data.dataset"}}
    assert set(circle(planted)) >= {"data.records", "data.dataset"}


def test_the_method_imports_nothing_else_of_ours(graph):
    for module in METHOD:
        assert graph[module] <= METHOD | {"runtime.platforms"}, module


def test_imports_inside_functions_count():
    late = "def f():\n    from metabin_jax.report import page\n"
    assert imports(late, {"report.page"}) == {"report.page"}
    assert imports(late, {"report.page"}, late=False) == set()


def test_only_training_and_the_command_line_read_configs():
    readers = {
        room_of(module) for module, path in modules().items() if "ml_collections" in path.read_text(encoding="utf-8")
    }
    assert readers <= READS_CONFIGS


def test_every_room_says_what_lives_there_and_what_may_not():
    for module, path in modules().items():
        if path.name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert docstring.count(". ") + docstring.count(".\n") + docstring.endswith(".") >= 2, module


def test_files_stay_small():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert {module: count for module, count in lines.items() if count > 300} == {}
    core = {"method", "baselines", "models", "data", "evaluation", "training"}
    beside = ("models.weights", "data.sets", "data.layouts", "data.synthetic", "data.pedestrian")
    in_core = sum(n for module, n in lines.items() if room_of(module) in core and not module.startswith(beside))
    assert sum(lines.values()) <= 13180
    assert in_core <= 5740
