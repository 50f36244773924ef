"""params.yaml, dvc.yaml and the code say the same: no key unread, no dependency forgotten."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from pydantic import BaseModel

from pipeline.params import Params
from pipeline.unfinished import ROOT, imported

# The stages of both pipelines: `weights` is one of dvc.yaml, `study/weights` one of study/dvc.yaml
STAGES = {
    f"{folder}{name}": stage
    for folder in ("", "study/")
    for name, stage in yaml.safe_load(Path(f"{folder}dvc.yaml").read_text())["stages"].items()
}
EACH = {name: stage.get("foreach", {}) for name, stage in STAGES.items()}  # the members of a stage by their keys
STAGES = {name: stage.get("do", stage) for name, stage in STAGES.items()}
VALUES = yaml.safe_load(Path("params.yaml").read_text())
# no computation; values are tracked key by key
UNTRACKED_MODULES = [
    ROOT / f"pipeline/{name}.py"
    for name in ("errors", "files", "machine", "params", "sections", "tables", "unfinished", "workers")
]
UNTRACKED_PATHS = {"report": {"data/raw/images"}}  # read if images are to be shown; what changes there changes deps
UNTRACKED_KEYS = {"preprocess.workers", "runs.where", "runs.workers"}  # change no byte of the result


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found |= keys(field.annotation, f"{name}.") if nested else {prefix + name}
    return found


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
    return set().union(*(flat(v, f"{k}.") if isinstance(v, dict) else {prefix + k} for k, v in values.items()))


def test_params_yaml_has_the_typed_keys_and_each_a_comment():
    assert flat(VALUES) == keys(Params)
    lines = Path("params.yaml").read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if re.match(r" *[a-z_]+: *\S|  [a-z_]+:$", line):
            named = f"  # {line.split(':')[0].strip()}: "  # lists stand under one comment
            assert before.lstrip().startswith("#") or any(other.startswith(named) for other in lines), line


def test_an_experiment_of_dvc_leaves_params_yaml_as_it_is(tmp_path):
    """It writes the file anew: what it would write otherwise (a long line, a comment after a list) shows as changed."""
    shutil.copy("params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["encoder=unaligned"])
    assert (tmp_path / "params.yaml").read_text() == Path("params.yaml").read_text()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_it_imports(name):
    listed = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    programs = {program(name)} | {
        Path(f"stages/{other}.py") for other in re.findall(r"from stages[.](\w+) import", program(name).read_text())
    }
    modules = set().union(*(imported(ROOT / path, UNTRACKED_MODULES) for path in programs))
    assert listed == {str(path) for path in programs} | {str(path.relative_to(ROOT)) for path in modules}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_parameters_it_reads(name):
    assert declared(STAGES[name]) == read_by(program(name)) - UNTRACKED_KEYS


def test_every_key_is_read_by_a_stage():
    tracked = set().union(*(declared(stage) for stage in STAGES.values()))
    assert tracked | UNTRACKED_KEYS == keys(Params)


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
    assert not {path for paths in caches.values() for path in paths} & set(made["unaligned"]["deps"])


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_a_command_is_declared(name):
    """A file that a command names and DVC does not know would be read stale or left behind."""
    stages = [filled_in(STAGES[name], key, item) for key, item in EACH[name].items()] or [STAGES[name]]
    listed = [
        p if isinstance(p, str) else next(iter(p))
        for stage in stages
        for key in ("deps", "outs", "metrics")
        for p in stage.get(key, [])
    ]
    commands = [stage["cmd"].replace("${encoder}", encoder) for stage in stages for encoder in ("unaligned", "aligned")]
    for word in " ".join(commands).split():
        if "/" in word:
            assert word in listed + list(UNTRACKED_PATHS.get(name, ()))
    for path in listed:
        assert path.endswith((".py", ".html")) or any(path in command for command in commands)


@pytest.mark.parametrize("recipe", sorted(Path("params").iterdir()), ids=lambda path: path.name)
def test_a_published_recipe_sets_keys_that_there_are(recipe):
    values = yaml.safe_load(Path("params.yaml").read_text())
    words = recipe.read_text().split()
    assert set(words[::2]) == {"-S"}
    for assignment in words[1::2]:
        key, value = assignment.split("=")
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = yaml.safe_load(value)
    Params.model_validate(values)
