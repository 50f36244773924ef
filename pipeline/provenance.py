"""Which code decides a result: a hash for each file of the project that computes it.

A cached result is used again only if the code that made it has not changed. To know that, we start
at a program (or a module) and follow every name that it uses: functions, classes and values, from
file to file, as long as they belong to this project.

- Only what computes counts. Comments, docstrings, blank lines, type hints and the texts of errors
  do not, so that a corrected sentence does not make a result outdated.
- Of a table (EEG encoders, image models, datasets) only the chosen entries count. A new entry does
  not change the results of the entries that exist.

The files are read as syntax trees (the module `ast`) and not imported, because the import of some
libraries takes seconds.
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

# Name of a table: its file. A table is a dictionary.
TABLES = {
    "DATASETS": "pipeline/datasets/table.py",
    "EEG_ENCODERS": "pipeline/eeg_encoders/table.py",
    "IMAGE_MODELS": "pipeline/images/models/table.py",
}

# Name of a table: the names of the chosen entries, such as {"EEG_ENCODERS": ["nice"]}
Chosen = Mapping[str, Collection[str]]

# A file and a name that is defined in it; None in place of the name means the whole file.
_Target = tuple[Path, str | None]

# Fields of a syntax node that compute nothing, or that differ between versions of Python
WITHOUT_EFFECT = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}

# In Python 3.11 ast.parse may fail in two threads at once (SystemError: recursion depth).
_parsing = threading.Lock()


def code_of(program: Path, chosen: Chosen) -> dict[str, str]:
    """A hash for each file that a program uses, by its path in the project's folder.

    All entries count of a table that `chosen` does not name.

    Some files only say where and how work is done, so that no result depends on them: the files
    directly in `pipeline` but for `retrieval.py`, those of `pipeline/compute` but for `devices.py`
    (it sets the precision), `stages/__init__.py` and `stages/names.py`.
    """
    return _hashes([(program.resolve(), None)], chosen)


def code_hash(code: str, packages: Sequence[str], chosen: Chosen) -> str:
    """One hash for all code that a module uses; `code` is the module's `__file__`.

    The `chosen` entries of tables count too, and the installed versions of `packages`.
    """
    entries = [(ROOT / TABLES[table], table) for table in chosen]
    hashes = _hashes([(Path(code), None), *entries], chosen)
    versions = [_version(name) for name in packages]
    return fingerprint(hashes, versions)


def _hashes(start: Sequence[_Target], chosen: Chosen) -> dict[str, str]:
    """A hash for each file that is used from these targets on."""
    used = follow(start, chosen)
    return {str(path.relative_to(ROOT)): _hash(path, used[path], chosen) for path in sorted(used)}


def follow(start: Sequence[_Target], chosen: Chosen) -> dict[Path, set[ast.stmt]]:
    """The statements of each file that are used from these targets on, directly or indirectly."""
    used: dict[Path, set[ast.stmt]] = {}
    to_visit = list(start)
    reached = set(to_visit)

    while to_visit:
        path, name = to_visit.pop()
        module = _read(path)
        # What defines no name (`SETTINGS |= ...`) runs at each import, so it is always used.
        statements = module.always + (module.all if name is None else module.binds.get(name, []))
        used.setdefault(path, set()).update(statements)

        # A target is visited once: functions may call each other in a circle.
        for statement in statements:
            new = set(_uses(statement, module, chosen)) - reached
            reached |= new
            to_visit += new

    return used


def fingerprint(*decided_by: object) -> str:
    """A hash of data that JSON can hold: 32 hexadecimal digits."""
    return _digest(decided_by)


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Module:
    """A file of the project as top-level statements."""

    path: Path
    all: list[ast.stmt]
    always: list[ast.stmt]  # run by every import, and define no name
    binds: Mapping[str, list[ast.stmt]]  # by the name that they define


@functools.cache
def _read(path: Path) -> _Module:
    with _parsing:
        tree = ast.parse(path.read_text())

    statements: list[ast.stmt] = []
    for statement in tree.body:
        statements += _split_import(statement)

    binds: dict[str, list[ast.stmt]] = {}
    always = []
    for statement in statements:
        names = _names_bound_by(statement)
        for name in names:
            binds.setdefault(name, []).append(statement)
        if not names and not _is_text(statement) and not _is_guard(statement):
            always.append(statement)
    return _Module(path, statements, always, binds)


def _split_import(statement: ast.stmt) -> list[ast.stmt]:
    """`from x import a, b` as two statements, because code that uses a need not use b."""
    if isinstance(statement, ast.ImportFrom):
        return [
            ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names
        ]
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    return [statement]


def _names_bound_by(statement: ast.stmt) -> list[str]:
    """The names that a statement defines: of functions, classes, imports and variables."""
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
    return []  # no name, as in `SETTINGS |= ...`


def _is_guard(statement: ast.stmt) -> bool:
    """Whether this is `if __name__ == "__main__"` or `if TYPE_CHECKING`: no result needs them."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id in ("__name__", "TYPE_CHECKING")
        for node in ast.walk(statement.test)
    )


def _uses(statement: ast.stmt, module: _Module, chosen: Chosen) -> Iterable[_Target]:
    """What a statement uses of this project."""
    node = _keep_chosen_entries(statement, chosen)
    # Only a table depends on `chosen`; what other statements use is found once in a process.
    if node is statement:
        return _cached_uses(statement, module.path)
    return _find_uses(node, module)


@functools.cache
def _cached_uses(statement: ast.stmt, path: Path) -> tuple[_Target, ...]:
    return tuple(_find_uses(statement, _read(path)))


def _find_uses(statement: ast.AST, module: _Module) -> Iterator[_Target]:
    names: set[str] = set()
    attributes: set[tuple[str, str | None]] = set()  # (name, attribute) of `name.attribute`
    names_in_attributes: set[ast.Name] = set()

    # The node of an attribute comes before the node of the name in it.
    for node in _walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add((node.value.id, node.attr))
            names_in_attributes.add(node.value)
        elif isinstance(node, ast.Name) and node not in names_in_attributes:
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom) and node is not statement:
            # An import within a function
            for single_import in _split_import(node):
                target = _imported_target(single_import)
                if target:
                    yield target

    # An imported name is used. Of an imported module only the attributes that are used count.
    if isinstance(statement, ast.Import | ast.ImportFrom):
        target = _imported_target(statement)
        if target and target[1]:
            yield target

    # A name is defined here or imported. Of an imported module only `attribute` is used.
    for name, attribute in attributes | {(name, None) for name in names}:
        if name in module.binds:
            yield module.path, name
        for file in _modules_called(name, module):
            yield file, attribute


def _modules_called(name: str, module: _Module) -> list[Path]:
    """The files of this project that are imported as a whole under this name."""
    targets = [_imported_target(statement) for statement in module.binds.get(name, [])]
    return [target[0] for target in targets if target and target[1] is None]


def _imported_target(statement: ast.stmt) -> _Target | None:
    """What the import of one name gets from this project; None if it is from a library."""
    match statement:
        case ast.ImportFrom(module=str(module), names=[alias]):
            file = _file_of(f"{module}.{alias.name}")
            if file:
                return file, None
            parent = _file_of(module)
            return (parent, alias.name) if parent else None
        case ast.Import(names=[alias]):
            file = _file_of(alias.name)
            return (file, None) if file else None
    return None


@functools.cache
def _file_of(module: str) -> Path | None:
    """The file of a module of this project that can change a result; None for any other module."""
    package, *names = module.split(".")

    # The modules that `code_of` names: they say only where and how work is done.
    if module != "pipeline.retrieval" and package == "pipeline" and len(names) == 1:
        return None
    if module == "stages.names" or (names[:1] == ["compute"] and names[1:] != ["devices"]):
        return None

    path = ROOT.joinpath(package, *names).with_suffix(".py")
    return path if path.is_file() else None


def _keep_chosen_entries(statement: ast.stmt, chosen: Chosen) -> ast.AST:
    """The statement itself; in place of a table only the entries that are chosen."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(
        statement.value, ast.Dict
    ):
        return statement
    [table, *_] = _names_bound_by(statement)
    if table not in TABLES or table not in chosen:
        return statement

    keys = [ast.literal_eval(key) for key in statement.value.keys if key]
    entries = dict(zip(keys, statement.value.values, strict=True))
    # A choice may have no entry: models of timm are made by their name.
    return ast.List([entries[name] for name in sorted(chosen[table]) if name in entries])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all nodes in it that compute, each before those in it."""
    to_visit = [node]
    while to_visit:
        node = to_visit.pop()
        yield node
        for _, value in _fields(node):
            for child in value if isinstance(value, list) else [value]:
                # What is used to raise an error is not followed: it computes no result.
                if isinstance(child, ast.AST) and not isinstance(child, ast.Raise):
                    to_visit.append(child)


def _fields(node: ast.AST) -> list[tuple[str, object]]:
    """The fields of a node that compute, by name.

    An empty field counts as none: newer versions of Python have more fields.
    """
    fields = []
    for name in node._fields:
        if name not in WITHOUT_EFFECT:
            value = getattr(node, name, None)
            if value is not None and value != []:
                fields.append((name, value))
    return fields


def _hash(path: Path, used: set[ast.stmt], chosen: Chosen) -> str:
    """The hash of the statements of a file that are used, in the order of the file."""
    hashes = []
    for statement in _read(path).all:
        if statement in used:
            node = _keep_chosen_entries(statement, chosen)
            if not _is_text(node):
                hashes.append(_hash_of_meaning(node))
    return _digest(hashes)


@functools.cache
def _hash_of_meaning(statement: ast.AST) -> str:
    return _digest(_meaning(statement))


def _meaning(node: object) -> object:
    """A node as plain data, without what computes nothing.

    The data is the same in every version of Python. The texts of `ast.dump` and `ast.unparse`
    are not: with another Python all results would seem to be outdated.
    """
    match node:
        case list():
            return [_meaning(child) for child in node if not _is_text(child)]
        case ast.arg(arg=name):
            return name
        case ast.Raise(exc=ast.expr() as error):  # the text of an error computes nothing
            return ["Raise", [_meaning(kind) for kind in _kinds(error)]]
        case ast.AST():
            meanings = {name: _meaning(value) for name, value in _fields(node)}
            return [type(node).__name__, meanings]
    return repr(node)


def _kinds(error: ast.expr) -> list[ast.expr]:
    """What is raised, without its text.

    Of `fault(path) or InputError("...")` that is `fault` and `InputError`.
    """
    match error:
        case ast.Call(func=kind):
            return [kind]
        case ast.BoolOp(values=values):
            return [kind for value in values for kind in _kinds(value)]
    return [error]


def _is_text(node: object) -> bool:
    """Whether this is a docstring, or another text that is a statement."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _version(package: str) -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
