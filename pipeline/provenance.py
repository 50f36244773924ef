"""Which code decides a result, as a hash for each module that the result runs through.

From a program on, all is followed that it uses: functions, classes and values of this project, by their names. What
computes counts, and nothing else: comments, docstrings, blank lines, type hints and the texts of errors do not, so that
a corrected sentence makes nothing anew. Of a table (the EEG encoders, the image models, the datasets) only the entries
count that were chosen: another entry changes no result of those that are there.

The files are read and not imported, which takes a second less for each library.
"""

import ast
import functools
import hashlib
import json
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = {  # dictionaries, each in a module of its own
    "DATASETS": "pipeline/datasets/table.py",
    "EEG_ENCODERS": "pipeline/eeg_encoders/table.py",
    "IMAGE_MODELS": "pipeline/images/models/table.py",
}
Chosen = Mapping[str, Collection[str]]  # the entries of each table
_Place = tuple[Path, str | None]  # a file, and a name that it binds or None for all of it
# Fields of a node that compute nothing, or that differ between versions of Python.
WITHOUT_EFFECT = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}
# Two threads in ast.parse at once may fail in Python 3.11 (SystemError: recursion depth)
_parsing = threading.Lock()


def code_of(program: Path, chosen: Chosen) -> dict[str, str]:
    """A hash for each module that a program runs through, by its path below the project's folder.

    `chosen` names the entries of the tables, {"EEG_ENCODERS": ["nice"]}; of a table that it lacks all entries count.
    The files directly in `pipeline`, those in `pipeline/compute`, `stages/__init__.py` and `stages/names.py` say where
    and how work is done: no result depends on them, but for `retrieval.py`, and `devices.py`, which sets the precision.
    """
    return _hashes([(program.resolve(), None)], chosen)


def code_hash(code: str, packages: Sequence[str], chosen: Chosen) -> str:
    """Of the module whose `__file__` is given, the entries that it is handed, and the versions of these packages."""
    entries = [(ROOT / TABLES[table], table) for table in chosen]
    return fingerprint(
        _hashes([(Path(code), None), *entries], chosen), [_version(name) for name in packages]
    )


def _hashes(start: Sequence[_Place], chosen: Chosen) -> dict[str, str]:
    used = follow(start, chosen)
    return {str(path.relative_to(ROOT)): _hash(path, used[path], chosen) for path in sorted(used)}


def follow(start: Sequence[_Place], chosen: Chosen) -> dict[Path, set[ast.stmt]]:
    """The statements of each file that are used, directly or through another one, from some places on."""
    used: dict[Path, set[ast.stmt]] = {}
    waiting = list(start)
    seen = set(waiting)
    while waiting:
        path, name = waiting.pop()
        module = _read(path)
        statements = module.always + (module.all if name is None else module.binds.get(name, []))
        used.setdefault(path, set()).update(statements)
        for statement in statements:
            new = set(_uses(statement, module, chosen)) - seen
            seen |= new
            waiting += new

    return used


def fingerprint(*decided_by: object) -> str:
    """32 hexadecimal digits for plain data."""
    return _digest(decided_by)


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Module:
    """The statements of a file: all of them, those that run whatever is used of it, and those that bind each name."""

    path: Path
    all: list[ast.stmt]
    always: list[ast.stmt]
    binds: Mapping[str, list[ast.stmt]]


@functools.cache
def _read(path: Path) -> _Module:
    with _parsing:
        tree = ast.parse(path.read_text())

    binds: dict[str, list[ast.stmt]] = {}
    always = []
    statements = [each for statement in tree.body for each in _one_import_each(statement)]
    for statement in statements:
        names = _names_bound_by(statement)
        for name in names:
            binds.setdefault(name, []).append(statement)
        if not names and not _is_text(statement) and not _is_guard(statement):
            always.append(statement)
    return _Module(path, statements, always, binds)


def _one_import_each(statement: ast.stmt) -> list[ast.stmt]:
    """`from x import a, b` as two statements: who uses a does not use b."""
    if isinstance(statement, ast.ImportFrom):
        return [
            ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names
        ]
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    return [statement]


def _names_bound_by(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=[alias]) | ast.ImportFrom(names=[alias]):
            return [alias.asname or alias.name.partition(".")[0]]
        case ast.Assign(targets=targets):
            nodes = [node for target in targets for node in ast.walk(target)]
            return [node.id for node in nodes if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_guard(statement: ast.stmt) -> bool:
    """Whether this is `if __name__ == "__main__"` or `if TYPE_CHECKING`, which decide no result."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id in ("__name__", "TYPE_CHECKING")
        for node in ast.walk(statement.test)
    )


def _uses(statement: ast.stmt, module: _Module, chosen: Chosen) -> Iterable[_Place]:
    """What of this project a statement uses: (file, the name that it binds), or (file, None) for all of a file."""
    node = _without_other_entries(statement, chosen)
    return _cached_uses(statement, module.path) if node is statement else _find_uses(node, module)


@functools.cache
def _cached_uses(statement: ast.stmt, path: Path) -> tuple[_Place, ...]:
    return tuple(_find_uses(statement, _read(path)))


def _find_uses(statement: ast.AST, module: _Module) -> Iterator[_Place]:
    names: set[str] = set()
    attributes: set[tuple[str, str | None]] = set()  # of `name.attribute`
    with_attribute: set[ast.Name] = set()
    for node in _walk(statement):  # an attribute comes before the name in it
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add((node.value.id, node.attr))
            with_attribute.add(node.value)
        elif isinstance(node, ast.Name) and node not in with_attribute:
            names.add(node.id)
        elif (
            isinstance(node, ast.Import | ast.ImportFrom) and node is not statement
        ):  # within a function
            yield from (target for each in _one_import_each(node) if (target := _target(each)))

    if isinstance(statement, ast.Import | ast.ImportFrom):
        target = _target(statement)
        if target and target[1]:  # of a module as a whole, only the attributes that are used count
            yield target
    for name, attribute in attributes | {(name, None) for name in names}:
        if name in module.binds:
            yield module.path, name
        for file in _modules_called(name, module):
            yield file, attribute


def _modules_called(name: str, module: _Module) -> list[Path]:
    """The files of this project that a name stands for in a module, by an import of the whole file."""
    targets = [_target(each) for each in module.binds.get(name, [])]
    return [target[0] for target in targets if target and target[1] is None]


def _target(statement: ast.stmt) -> _Place | None:
    """The file of this project, and the name in it, that an import of one name is about; the name is None for a file.

    None where it is about a library.
    """
    match statement:
        case ast.ImportFrom(module=str(module), names=[alias]):
            file = _file_of(f"{module}.{alias.name}")
            within = _file_of(module)
            return (file, None) if file else (within, alias.name) if within else None
        case ast.Import(names=[alias]):
            file = _file_of(alias.name)
            return (file, None) if file else None
    return None


def _file_of(module: str) -> Path | None:
    """The file of a module that can change a result; None for any other."""
    package, *names = module.split(".")
    if module != "pipeline.retrieval" and package == "pipeline" and len(names) == 1:
        return None
    if module == "stages.names" or (names[:1] == ["compute"] and names[1:] != ["devices"]):
        return None
    path = ROOT.joinpath(package, *names).with_suffix(".py")
    return path if path.is_file() else None


def _without_other_entries(statement: ast.stmt, chosen: Chosen) -> ast.AST:
    """The statement; where it is a table, the entries that were chosen."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(
        statement.value, ast.Dict
    ):
        return statement
    [table, *_] = _names_bound_by(statement)
    if table not in TABLES or table not in chosen:
        return statement

    keys = [ast.literal_eval(key) for key in statement.value.keys if key]
    entries = dict(zip(keys, statement.value.values, strict=True))
    # Not every choice has an entry: timm's models are made when they are asked for
    return ast.List([entries[name] for name in sorted(chosen[table]) if name in entries])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that compute."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in WITHOUT_EFFECT:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise):
                yield from _walk(child)


def _hash(path: Path, used: set[ast.stmt], chosen: Chosen) -> str:
    """Of the statements that are used of a file, in its order."""
    statements = [_without_other_entries(each, chosen) for each in _read(path).all if each in used]
    return _digest([_cached_meaning(each) for each in statements if not _is_text(each)])


@functools.cache
def _cached_meaning(statement: ast.AST) -> object:
    return _meaning(statement)


def _meaning(node: object) -> object:
    """A node as plain data, without what computes nothing; the same in every version of Python.

    `ast.dump` and `ast.unparse` are not: they change with Python, and a result would seem to be of other code.
    """
    match node:
        case list():
            return [_meaning(each) for each in node if not _is_text(each)]
        case ast.arg(arg=name):
            return name
        case ast.Raise(exc=ast.expr() as error):  # its text computes nothing
            return ["Raise", [_meaning(kind) for kind in _kinds(error)]]
        case ast.AST():
            fields = {
                name: value for name, value in ast.iter_fields(node) if name not in WITHOUT_EFFECT
            }
            meanings = {
                name: _meaning(value)
                for name, value in fields.items()
                if value is not None and value != []
            }
            return [type(node).__name__, meanings]
    return repr(node)


def _kinds(error: ast.expr) -> list[ast.expr]:
    """What is raised, without its text: of `fault(path) or InputError("...")` it is `fault` and `InputError`."""
    match error:
        case ast.Call(func=kind):
            return [kind]
        case ast.BoolOp(values=values):
            return [kind for value in values for kind in _kinds(value)]
    return [error]


def _is_text(node: object) -> bool:
    """Whether this is a docstring, or another text that stands by itself."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
