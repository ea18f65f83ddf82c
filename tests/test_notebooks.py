"""The notebooks are the source: keep them small, ordered and readable."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.joinpath("nbs").glob("[0-9]*.ipynb"), key=lambda path: path.name)
MAX_CELL_LINES, MAX_OUTPUT_KB, MAX_FIGURES = 60, 400, 12
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|Users|tmp|work|var/folders)/")


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook, with its directives (`#| export`) taken off the code."""

    kind: str
    source: str
    outputs: list

    @property
    def directives(self) -> list[str]:
        return re.findall(r"^#\|\s*(.+?)\s*$", self.source, re.M)

    @property
    def exported(self) -> bool:
        return self.kind == "code" and any(d.split()[0] in ("export", "exporti", "exports") for d in self.directives)

    @property
    def tree(self) -> ast.Module:
        return ast.parse("" if self.kind != "code" else re.sub(r"^\s*[%!].*$", "pass", self.source, flags=re.M))

    def nodes(self, *kinds: type) -> list:
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    def figures(self) -> int:
        return sum("image/png" in out.get("data", {}) or "image/svg+xml" in out.get("data", {}) for out in self.outputs)


def read(path: Path) -> list[Cell]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [Cell(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in cells]


def module(path: Path) -> str | None:
    """What the notebook exports to; None for a tutorial."""
    found = (d for cell in read(path) for d in cell.directives if d.startswith("default_exp "))
    return next((d.split()[1] for d in found), None)


def used_modules(cell: Cell) -> set[str]:
    """The modules of spectra_nn that a cell imports."""
    used = {alias.name for node in cell.nodes(ast.Import) for alias in node.names}
    for node in cell.nodes(ast.ImportFrom):
        used |= {f"spectra_nn.{alias.name}" for alias in node.names} if node.module == "spectra_nn" else {node.module or ""}
    return {name.split(".")[1] for name in used if name.startswith("spectra_nn.")}


def public_functions(path: Path) -> list[tuple[Cell, ast.FunctionDef, bool]]:
    """Exported functions and the methods of exported classes, private ones left out; True for methods."""
    found = []
    for cell in read(path):
        for node in cell.tree.body if cell.exported else ():
            owner = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
            for item in node.body if owner else [node]:
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    found.append((cell, item, owner))
    return found


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_opens_with_title_and_summary(path):
    first = read(path)[0]
    assert first.kind == "markdown" and re.match(r"# .+\n\n> .+", first.source), "start with '# Title', a blank line, '> One sentence.'"


@each_notebook
def test_exported_cells_are_small_and_plain(path):
    for cell in filter(lambda cell: cell.exported, read(path)):
        start = cell.source[:80]
        assert cell.source.count("\n") < MAX_CELL_LINES, f"split this cell:\n{start}"
        assert not re.search(r"^\s*[%!]", cell.source, re.M), f"a magic in an exported cell:\n{start}"
        assert not cell.nodes(ast.Assert), f"an assert is for notebooks and tests; raise an error that helps:\n{start}"
        definitions = [node for node in cell.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        public = [node.name for node in definitions if not node.name.startswith("_")]
        assert len(public) <= 1, f"one function or one small class per cell, not {public}"
        names = {getattr(d, "id", getattr(d, "attr", "")) for node in definitions for d in node.decorator_list}
        assert "patch" not in names, f"@patch hides the method from readers and tools:\n{start}"
        bare = [node for node in cell.nodes(ast.ExceptHandler) if node.type is None]
        assert not bare, f"name the exception that you expect:\n{start}"


@each_notebook
def test_imports_are_explicit_and_alone(path):
    """The docs build runs every cell that holds an import, so such a cell may hold nothing else."""
    for cell in read(path):
        start = cell.source[:80]
        for node in cell.nodes(ast.ImportFrom):
            assert node.names[0].name != "*", f"import names, not everything:\n{start}"
            assert node.level == 0, f"import absolutely, from spectra_nn.…:\n{start}"
        imports = [node for node in cell.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        hidden = not cell.exported and cell.nodes(ast.Import, ast.ImportFrom)  # in an if, a try or a function
        assert not (imports or hidden) or len(imports) == len(cell.tree.body), f"split imports from other code:\n{start}"


@each_notebook
def test_annotations_are_known_where_they_are_used(path):
    """The docs build shows a function where it is defined, and looks its annotations up: a class that only a later cell defines is not there."""
    cells = [cell for cell in read(path) if cell.exported]
    home = {node.name: k for k, cell in enumerate(cells) for node in cell.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    for k, cell in enumerate(cells):
        public = [node for node in cell.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")]
        shown = [part for node in public for part in ([node] if isinstance(node, ast.FunctionDef) else node.body)]
        for node in shown:
            if isinstance(node, ast.AnnAssign):  # a field of a record
                said, name = [node.annotation], ast.unparse(node.target)
            elif isinstance(node, ast.FunctionDef) and (node in public or node.name == "__init__"):
                said, name = [node.returns, *(a.annotation for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])], node.name
            else:
                continue
            used = {word.id for part in said if part is not None for word in ast.walk(part) if isinstance(word, ast.Name)}
            later = sorted(word for word in used if home.get(word, -1) > k)
            assert not later, f"{name} names {', '.join(later)}, defined further down: move it up"


@each_notebook
def test_public_functions_say_what_they_take(path):
    for cell, function, method in public_functions(path):
        assert ast.get_docstring(function), f"{function.name} has no docstring"
        lines = cell.source.splitlines()
        numpydoc = "Parameters\n" in (ast.get_docstring(function) or "")
        arguments = [a for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
        for arg in () if method else arguments:
            assert arg.annotation, f"{function.name}: argument {arg.arg} has no type"
            said = numpydoc or re.search(r"#\s*\S", lines[arg.lineno - 1])
            assert said, f"{function.name}: say beside {arg.arg} its shape, meaning and unit (docments)"
        assert function.returns or method, f"{function.name} has no return type"


@each_notebook
def test_reads_as_a_text(path):
    cells = read(path)
    n_exported = sum(cell.exported and not isinstance((cell.tree.body or [None])[0], (ast.Import, ast.ImportFrom)) for cell in cells)
    prose = [cell.source for cell in cells if cell.kind == "markdown"]
    assert len(prose) >= 0.6 * n_exported, f"{len(prose)} text cells for {n_exported} exported: say why before you define"
    words = sum(len(text.split()) for text in prose)
    assert words >= 12 * n_exported, f"{words} words for {n_exported} exported cells"
    n_examples = sum(cell.kind == "code" and not cell.exported and bool(cell.tree.body) for cell in cells)
    assert n_examples >= 0.5 * n_exported, f"{n_examples} example or test cells for {n_exported} exported"


@each_notebook
def test_figures(path):
    count = sum(cell.figures() for cell in read(path))
    plots = [name for _, node, _ in public_functions(path) if (name := node.name).startswith("plot")]
    assert count or not plots, f"{path.name} exports {plots} and shows no figure"
    assert count <= MAX_FIGURES, f"{count} figures"


@each_notebook
def test_stored_outputs(path):
    """Readers of the site see what is stored: small, without errors, the same on every machine."""
    cells = read(path)
    kilobytes = sum(len(json.dumps(cell.outputs)) for cell in cells) / 1000
    assert kilobytes < MAX_OUTPUT_KB, f"{kilobytes:.0f} kB of outputs"
    for cell in cells:
        assert not MACHINE_PATH.search(cell.source), f"a path of one machine:\n{cell.source[:80]}"
        for output in cell.outputs:
            assert output["output_type"] != "error", f"a stored error:\n{cell.source[:80]}"
            texts = {kind: "".join(text) for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
            shown = "".join(output.get("text", [])) + "".join(texts.values())
            assert not MACHINE_PATH.search(shown), f"a path of one machine in the output of:\n{cell.source[:80]}"


@each_notebook
def test_directives_come_first(path):
    for cell in filter(lambda cell: cell.kind == "code" and cell.directives, read(path)):
        assert cell.source.startswith("#|"), f"directives belong on the first lines:\n{cell.source[:80]}"


def test_imports_follow_the_numbers():
    """A notebook uses only modules exported by notebooks before it (and, in its examples, its own)."""
    seen: set[str] = set()
    known = {module(path) for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        used = set().union(*map(used_modules, read(path))) & known
        later = used - seen - {module(path)}
        assert not later, f"{path.name} imports {sorted(later)}, exported later"
        seen.add(module(path))


def test_every_module_has_its_notebook():
    headers = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("spectra_nn/*.py") if path.stem not in ("__init__", "__main__", "_modidx")}
    assert set(headers) == {name for path in NOTEBOOKS if (name := module(path))}
    for name, text in headers.items():
        assert "# AUTOGENERATED! DO NOT EDIT!" in text, f"{name}.py was written by hand"


def test_sidebar_lists_every_notebook_in_order():
    config = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- (\S+\.ipynb)", config)
    assert listed == ["index.ipynb", *(path.name for path in NOTEBOOKS)]
    assert (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml" or (ROOT / "nbs" / "_quarto.yml").read_text() == config
