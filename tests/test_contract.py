"""params.yaml, dvc.yaml, the code and its tree say the same: no key unread, no dependency forgotten.

Whoever adds something and forgets a place gets a sentence that names it: `make check` runs this file.
"""

import ast
import functools
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml
from markdown_it import MarkdownIt

from pipeline.params import Params, keys, read_params
from pipeline.provenance import TABLES

# The stages of both pipelines: `weights` is one of dvc.yaml, `study/weights` one of study/dvc.yaml
STAGES = {
    f"{folder}{name}": stage
    for folder in ("", "study/")
    for name, stage in yaml.safe_load(Path(f"{folder}dvc.yaml").read_text())["stages"].items()
}
EACH = {
    name: stage.get("foreach", {}) for name, stage in STAGES.items()
}  # the members of a stage by their keys
STAGES = {name: stage.get("do", stage) for name, stage in STAGES.items()}
VALUES = yaml.safe_load(Path("params.yaml").read_text())
UNTRACKED_PATHS = {
    "report": {
        "data/fetched/images"
    },  # read if images are to be shown; what changes there changes deps
    # what users leave there is noticed where something is about to be fetched
    "download": {"data/raw"},
    "download_second": {"data/raw"},
    "human": {"data/raw"},
    "weights": {"data/weights"},
    "study/weights": {"data/weights"},
}
# they only tell when to look again
RECORDS = [*STAGES["own_files"]["outs"], *STAGES["code"]["outs"]]
UNTRACKED_KEYS = {
    "download.accept_alljoined_licence",
    "preprocess.workers",
    "runs.where",
    "runs.workers",
}  # change no byte of the result


def require_none(forgotten: Iterable[object], sentence: str) -> None:
    """Fail with the sentence alone, whose {} is what was forgotten."""
    names = ", ".join(sorted(map(str, forgotten)))
    if names:
        pytest.fail(sentence.format(names), pytrace=False)


def file_of(name: str) -> str:
    """The file that has this stage."""
    return "study/dvc.yaml" if name.startswith("study/") else "dvc.yaml"


def program(name: str) -> Path:
    """The file that a stage runs."""
    [module] = re.findall(r"-m stages[.](\w+)", STAGES[name]["cmd"])
    return Path(f"stages/{module}.py")


def read_by(path: Path) -> set[str]:
    """The keys that a stage reads as p.<key> or p.<section>.<key>; a section as a whole counts for all its keys."""
    text = path.read_text().replace("read_params(params)", "p")
    found = set(re.findall(r"\bp\.([a-z_]+(?:\.[a-z_]+)?)", text))
    sections = {name for name, value in VALUES.items() if isinstance(value, dict)}
    tops = {name if name in keys(Params) else name.split(".")[0] for name in found}
    return {key for key in keys(Params) if key in tops or (key.split(".")[0] in tops & sections)}


def declared(stage: dict) -> set[str]:
    listed = set(stage.get("params", []))
    return {key for key in keys(Params) if key in listed or key.split(".")[0] in listed}


def flat(values: dict, prefix: str = "") -> set[str]:
    return set().union(
        *(flat(v, f"{k}.") if isinstance(v, dict) else {prefix + k} for k, v in values.items())
    )


def test_params_yaml_has_the_typed_keys_and_each_a_comment():
    require_none(keys(Params) - flat(VALUES), "add {} to params.yaml, with a value")
    require_none(
        flat(VALUES) - keys(Params),
        "add {} to the class of its section in pipeline/sections.py, with its type",
    )

    without_comment = []
    lines = Path("params.yaml").read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if re.match(r" *[a-z_]+: *\S|  [a-z_]+:$", line):
            named = f"  # {line.split(':')[0].strip()}: "  # lists stand under one comment
            is_named = any(other.startswith(named) for other in lines)
            if not before.lstrip().startswith("#") and not is_named:
                without_comment.append(line.strip())
    require_none(
        without_comment,
        "add a comment above {} in params.yaml: its unit, its meaning and its source",
    )


def test_an_experiment_of_dvc_leaves_params_yaml_as_it_is(tmp_path):
    """It writes the file anew: what it would write otherwise (a long line, a comment after a list) shows as changed."""
    shutil.copy("params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["encoder=unaligned"])
    assert (tmp_path / "params.yaml").read_text() == Path("params.yaml").read_text()


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("own_files", "code")])
def test_a_stage_depends_on_the_record_of_its_code(name):
    """Otherwise DVC would not see that the code has changed; of the study, on that of its own choices."""
    folder = "data/code/study" if name.startswith("study/") else "data/code"
    record = f"{folder}/{program(name).stem}.json"
    deps = STAGES[name]["deps"]
    require_none({record} - {*deps}, f"add {{}} to `deps` of the stage {name}, in {file_of(name)}")
    require_none(
        {record} - {*STAGES["code"]["outs"]}, "add {} to `outs` of the stage code, in dvc.yaml"
    )
    assert [dep for dep in deps if dep.startswith("data/code/")] == [record]
    assert not [dep for dep in deps if dep.endswith(".py")]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_a_dictionary_by_the_names_that_are_chosen(table):
    """`pipeline.provenance` reads it without importing it."""
    tree = ast.parse(Path(TABLES[table]).read_text())
    [values] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(node).startswith(table)
    ]
    assert isinstance(values, ast.Dict) and all(
        isinstance(ast.literal_eval(key), str) for key in values.keys
    )


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_run_by_the_name_that_every_python_has(name):
    """Many machines have no `python`, and .venv has both: without activation a stage is to tell what is missing."""
    assert STAGES[name]["cmd"].startswith("python3 -m stages.")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_parameters_it_reads(name):
    own = program(name)
    others = re.findall(
        r"\b(\w+)[.]main\(", own.read_text()
    )  # of another stage, which reads params.yaml too
    read = set().union(
        *(read_by(path) for path in (own, *(Path(f"stages/{other}.py") for other in others)))
    )
    params = f"`params` of the stage {name}, in {file_of(name)}"
    require_none(
        read - UNTRACKED_KEYS - declared(STAGES[name]), f"add {{}} to {params}: {own} reads it"
    )
    require_none(
        declared(STAGES[name]) - read, f"take {{}} out of {params}: {own} does not read it"
    )
    assert not declared(STAGES[name]) & UNTRACKED_KEYS


def test_every_key_is_read_by_a_stage():
    tracked = set().union(*(declared(stage) for stage in STAGES.values()))
    require_none(
        keys(Params) - tracked - UNTRACKED_KEYS,
        "no stage reads {}: read it as p.<key>, and add it to `params` of that stage in dvc.yaml",
    )
    assert tracked <= keys(Params)


def filled_in(stage: dict, key: str, item: dict[str, str]) -> dict:
    """One member of a stage, as DVC makes it of foreach."""
    text = json.dumps(stage).replace("${key}", key)
    for name, value in item.items():
        text = text.replace(f"${{item.{name}}}", value)
    return json.loads(text)


def test_the_unaligned_cache_depends_on_no_alignment_and_the_aligned_one_on_it():
    made = {key: filled_in(STAGES["embed"], key, item) for key, item in EACH["embed"].items()}
    assert made.keys() == {"unaligned", "aligned"}
    assert "alignment" not in str(made["unaligned"]) and "${alignment}" in made["aligned"]["cmd"]
    caches = {key: stage["outs"] for key, stage in made.items()}
    assert caches["unaligned"][0] in made["aligned"]["deps"]
    assert not {path for paths in caches.values() for path in paths} & set(
        made["unaligned"]["deps"]
    )


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_a_command_is_declared(name):
    """A file that a command names and DVC does not know would be read stale or left behind."""
    stages = [filled_in(STAGES[name], key, item) for key, item in EACH[name].items()] or [
        STAGES[name]
    ]
    listed = [
        p if isinstance(p, str) else next(iter(p))
        for stage in stages
        for key in ("deps", "outs", "metrics")
        for p in stage.get(key, ())
    ]
    commands = [
        stage["cmd"].replace("${encoder}", encoder)
        for stage in stages
        for encoder in ("unaligned", "aligned")
    ]
    declared_paths = [*listed, *UNTRACKED_PATHS.get(name, ())]
    undeclared = {
        word
        for word in " ".join(commands).split()
        if "/" in word
        and not any(word == path or word.startswith(f"{path}/") for path in declared_paths)
    }
    require_none(
        undeclared,
        f"add {{}} to `deps`, `outs` or `metrics` of the stage {name}, in {file_of(name)}: its "
        "command names it",
    )
    for path in listed:
        assert (
            path.endswith((".html", "card.md"))
            or path in RECORDS
            or any(path in command for command in commands)
        )


@pytest.mark.parametrize("recipe", sorted(Path("params").iterdir()), ids=lambda path: path.name)
def test_a_published_recipe_is_read_as_dvc_writes_and_tracks_it(recipe, tmp_path):
    words = recipe.read_text().split()
    assert set(words[::2]) == {"-S"}

    values = written_by_dvc(tmp_path, words[1::2])
    for assignment in words[1::2]:
        key, text = assignment.split("=")
        value = functools.reduce(dict.__getitem__, key.split("."), values)
        as_text = str(value).lower().replace("'", "").replace(" ", "")
        assert as_text == text or value == float(text)


def written_by_dvc(folder: Path, assignments: list[str]) -> dict:
    """The values that a stage reads after `dvc exp run -S`; those that DVC tracks are the same."""
    path = Path(shutil.copy("params.yaml", folder))
    apply_overrides(path, assignments)
    written = path.read_text()

    values = read_params(path).model_dump()
    assert values == load_yaml(path)
    apply_overrides(path, ["encoder=unaligned"])
    assert path.read_text() == written
    return values


def float_keys() -> dict[str, str]:
    """Each key that takes a number which need not be whole, and how it is written."""
    found = {}
    for section, model in Params.model_json_schema()["$defs"].items():
        for name, of_key in model["properties"].items():
            for option in of_key.get("anyOf", [of_key]):
                if "number" in (option.get("type"), option.get("items", {}).get("type")):
                    key = f"{section.lower()}.{name}"
                    found[key] = "[{},0.5]" if option["type"] == "array" else "{}"
    return found


@pytest.mark.parametrize("text", ["1e-5", "5e-05", "0.00001", "1E-5", "2.5e-7"])
def test_a_small_number_is_read_as_dvc_writes_and_tracks_it(text, tmp_path):
    forms = float_keys()
    assert (
        {"train.learning_rate", "train.gradient_clip", "train.betas", "evaluate.window"}
        < set(forms)
        <= keys(Params)
    )

    values = written_by_dvc(tmp_path, [f"{key}={form.format(text)}" for key, form in forms.items()])
    for key, form in forms.items():
        value = functools.reduce(dict.__getitem__, key.split("."), values)
        assert value == ([float(text), 0.5] if "[" in form else float(text))


def files_of_tree(text: str) -> set[Path]:
    """The files that the tree of a page names; a line is indented more than its folder's."""
    tokens = MarkdownIt().parse(text)
    [tree] = [token.content for token in tokens if (token.type, token.info) == ("fence", "text")]

    files, folders = set(), {}
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = {depth: folder for depth, folder in folders.items() if depth < indent}
        for name in re.match(r"(?:[\w.]+(?:/|\.\w+)(?:, )?)*", line.lstrip())[0].split(", "):
            path = Path(*folders.values(), name)
            if name.endswith("/"):
                folders[indent] = name
            elif name:
                files.add(path)
    return files


def code_files(*folders: str) -> set[Path]:
    paths = [path for folder in folders for path in Path(folder).rglob("*")]
    return {
        path for path in paths if path.suffix in (".py", ".html") and path.name != "__init__.py"
    }


def test_the_tree_names_every_file_of_the_library_and_the_stages():
    page = Path("docs/architecture.md")
    text = page.read_text()
    named = {path for path in files_of_tree(text) if path.parts[0] in ("pipeline", "stages")}
    exist = code_files("pipeline", "stages")
    require_none(exist - named, f"add {{}} to the tree of {page}")
    require_none(named - exist, f"take {{}} out of the tree of {page}: no such file")

    changed = files_of_tree(text.replace("charts.py", "chart.py"))
    assert changed ^ files_of_tree(text) == {
        Path("pipeline/report/charts.py"),
        Path("pipeline/report/chart.py"),
    }
