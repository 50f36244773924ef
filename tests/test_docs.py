"""What README, CONTRIBUTING and docs/ tell people to type works: commands, parameters, files, links; and the tree.

Commands are parsed as make, DVC and the stages parse them, and not run. test_preparation runs the lines for MNE.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from dvc.cli.parser import get_main_parser
from dvc.utils.hydra import apply_overrides
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.images.embeddings import write_embeddings
from pipeline.params import read_params
from pipeline.sections import Runs
from pipeline.train.runs import train_all
from stages.compare import assignments
from stages.names import check_names
from tests.test_contract import code_files
from tests.tiny import make_prepared, quick_recipe

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))]
MAKEFILE = Path("Makefile").read_text()
PARAMS = yaml.safe_load(Path("params.yaml").read_text())
STAGES = set(yaml.safe_load(Path("dvc.yaml").read_text())["stages"]) | {"study/dvc.yaml"}
STAGES |= {
    f"study/dvc.yaml:{stage}"
    for stage in yaml.safe_load(Path("study/dvc.yaml").read_text())["stages"]
}
FOLDERS = "pipeline|stages|tests|benchmarks|params|reference|docs"
SECTIONS = "|".join(key for key, value in PARAMS.items() if isinstance(value, dict))


class WrongDocs(Exception):
    pass


def require(truth: object, problem: str) -> None:
    if not truth:
        raise WrongDocs(problem)


def parse(text: str) -> list[Token]:
    """The tokens, those within a line of text too."""
    blocks = MarkdownIt().enable("table").parse(text)
    return [token for block in blocks for token in (block, *(block.children or ()))]


def commands(tokens: list[Token]) -> Iterator[str]:
    """What a shell is given: blocks that are indented or marked sh, and commands within the text."""
    for token in tokens:
        if token.type == "code_block" or (token.type == "fence" and token.info == "sh"):
            yield from filter(None, token.content.replace("\\\n", " ").splitlines())
        elif token.type == "code_inline" and token.content.startswith("-S "):
            yield f"dvc exp run {token.content}"
        elif token.type == "code_inline" and re.match(
            "(make|dvc|python|pip|source) ", token.content
        ):
            yield token.content


def check_command(command: str, folder: Path) -> None:
    """An error where it would be refused; values of parameters are tried on a copy of params.yaml in `folder`."""
    command = re.sub(r"\$\(cat (\S+)\)", lambda found: Path(found[1]).read_text(), command)
    match shlex.split(command, comments=True):
        case ["dvc", *words]:
            parsed, unknown = get_main_parser().parse_known_args(words)
            require(not unknown, f"dvc knows no {unknown}")
            targets = getattr(parsed, "targets", None) or []
            require(set(targets) <= STAGES, f"not all of {targets} are stages")
            check_values(getattr(parsed, "set_param", None) or [], folder)
        case ["make", *words]:
            for word in words:
                name, is_variable, value = word.partition("=")
                known = (
                    f"$({name})" in MAKEFILE
                    if is_variable
                    else re.search(rf"^{name}:.*## ", MAKEFILE, re.M)
                )
                require(known, f"the Makefile knows no {name}")
                if is_variable:
                    check_values(
                        [f"train.seeds={value}"] if name == "SEEDS" else assignments(value), folder
                    )
        case ["python", "-m", module, *words]:
            require(importlib.util.find_spec(module), f"there is no module {module}")
            if module.startswith("stages."):
                app = typer.Typer()
                app.command()(importlib.import_module(module).main)
                given = typer.main.get_command(app).make_context(module, words).params.values()
                for value in given:
                    check_values(assignments(value) if "=" in str(value) else [], folder)
        case ["pip", "install", "-e", project, "-c", constraints]:
            extras = set(re.findall(r"\w+", project))
            there = tomllib.loads(Path("pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
            require(extras <= set(there), f"pyproject.toml lacks one of the extras {extras}")
            require(Path(constraints).is_file(), f"there is no {constraints}")
        case ["source", ".venv/bin/activate"]:
            pass
        case _:
            raise WrongDocs(f"this test knows no command such as {command}")


def check_values(assignments: list[str], folder: Path) -> None:
    """As `dvc exp run -S` sets them and a stage reads them."""
    shutil.copy("params.yaml", folder)
    apply_overrides(folder / "params.yaml", assignments)
    check_names(read_params(folder / "params.yaml"))


def check_name(code: str) -> None:
    """A parameter or a file of the project that is named within the text."""
    if re.fullmatch(rf"({SECTIONS})\.\w+", code):
        section, key = code.split(".")
        require(key in PARAMS[section], f"params.yaml has no {code}")
    if re.fullmatch(rf"({FOLDERS})/[\w./-]*", code):
        require(Path(code).exists(), f"there is no {code}")


def check_block(token: Token) -> None:
    """Of a language that this test knows; Python compiles, and YAML is read."""
    require(
        token.info in ("sh", "python", "text", "yaml"),
        f"this test knows no blocks of {token.info or 'no language'}",
    )
    if token.info == "yaml":
        yaml.safe_load(token.content)
    if token.info == "python":
        compile(token.content, "documentation", "exec")


def check_link(link: str, page: Path) -> None:
    """To another file or a heading of it."""
    path, _, anchor = link.partition("#")
    if "://" in link:
        return
    target = page.parent / path if path else page
    require(target.exists(), f"there is no {target}")
    require(
        not anchor or anchor in anchors(target.read_text()), f"{target} has no heading {anchor}"
    )


def anchors(text: str) -> set[str]:
    tokens = parse(text)
    titles = [
        after.content
        for token, after in zip(tokens, tokens[1:], strict=False)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def check_page(text: str, page: Path, folder: Path) -> None:
    tokens = parse(text)
    for command in commands(tokens):
        try:
            check_command(command, folder)
        except Exception as error:
            error.add_note(f"in {page}: {command}")
            raise
    for token in tokens:
        if token.type == "link_open":
            check_link(str(token.attrs["href"]), page)
        elif token.type == "code_inline":
            check_name(token.content)
        elif token.type == "fence":
            check_block(token)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_says_works(page: Path, tmp_path: Path) -> None:
    check_page(page.read_text(), page, tmp_path)


def test_the_commands_are_found() -> None:
    found = {command.split()[0] for page in PAGES for command in commands(parse(page.read_text()))}
    assert found == {"make", "dvc", "python", "pip", "source"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("    make repor\n", "the Makefile knows no repor"),
        ("`make compare SEED=5`", "the Makefile knows no SEED"),
        ("`make compare SEEDS=five`", "train.seeds is 'five'"),
        ("`make compare BASELINE=encoder=tuned`", "encoder is 'tuned'"),
        ("```sh\ndvc exp rn\n```", "parser error"),
        ("```sh\ndvc exp run --alow-missing\n```", "dvc knows no .'--alow-missing'."),
        ("```sh\ndvc pull \\\n  embedd\n```", "not all of .'embedd'. are stages"),
        ("`-S train.epoch=5`", "Invalid `--set-param` value"),
        ("`-S train.epochs=many`", "train.epochs is 'many'"),
        ("`-S dataset=things-eeg3`", "dataset is 'things-eeg3'"),
        ("`-S train.eeg_encoder=nise`", "train.eeg_encoder is 'nise'"),
        ("    dvc exp run $(cat params/papers)\n", "params/papers"),
        ("`python -m benchmarks.seed`", "there is no module benchmarks.seed"),
        ("`python -m stages.compare --base encoder=aligned`", "No such option: --base"),
        ("`python -m stages.compare --other train.blok=1`", "Invalid `--set-param` value"),
        ("`pip install -e '.[brain]' -c constraints.txt`", "lacks one of the extras {'brain'}"),
        ("    rm -rf data\n", "knows no command such as rm"),
        ("`train.epoch`", "params.yaml has no train.epoch"),
        ("`pipeline/eeg_encoders/nise.py`", "there is no pipeline/eeg_encoders/nise.py"),
        ("```\nmake test\n```", "knows no blocks of no language"),
        ("```python\nimport =\n```", "invalid syntax"),
        ("[seeds](docs/protocol.md)", "there is no docs/protocol.md"),
        ("[seeds](docs/protocols.md#seed)", "docs/protocols.md has no heading seed"),
    ],
)
def test_what_is_misspelt_is_found(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=problem):
        check_page(text, Path("README.md"), tmp_path)


def marked_parts(path: Path) -> list[str]:
    """The code between two marks, `# --8<-- [start:name]` and `# --8<-- [end:name]`."""
    mark = r"^# --8<-- \[start:(.+)\]\n(.*?)^# --8<-- \[end:\1\]$"
    return [part.strip() for _, part in re.findall(mark, path.read_text(), re.M | re.S)]


def test_the_code_of_the_recipes_is_the_code_that_is_tested() -> None:
    """A block of the page is the imports, and then the code of one recipe, to the letter."""
    tested = [
        part
        for name in ("test_recipes_dataset", "test_recipes")
        for part in marked_parts(Path(f"tests/{name}.py"))
    ]
    shown = [
        token.content
        for token in parse(Path("docs/adding.md").read_text())
        if token.type == "fence" and token.info == "python"
    ]
    assert len(tested) == len(shown) == 4
    for part, block in zip(tested, shown, strict=True):
        imports, found, rest = block.partition(part)
        assert found and not rest.strip()
        assert all(line.startswith(("import ", "from ")) for line in imports.split("\n") if line)


def run_code(page: str) -> dict[str, Any]:
    """Run the Python of a page from top to bottom; returns what it has defined."""
    names: dict[str, Any] = {}
    for token in parse(Path(page).read_text()):
        if token.type == "fence" and token.info == "python":
            exec(token.content, names)
    return names


def make_project(folder: Path, params: Path) -> None:
    """What the stages leave behind, small: raw and prepared EEG, embeddings and a trained model."""
    data = folder / "data"
    image_ids = make_prepared(data)
    values = np.random.default_rng(0).standard_normal((len(image_ids), 20), np.float32)
    (data / "embeddings").mkdir()
    cache = data / "embeddings/unaligned.h5"
    block = ("last", values, {"feature": "CLS token"})
    write_embeddings(cache, image_ids[::-1], [block], {"backbone": "random"})

    placement = Runs(where="local", workers=1)
    train_all(data / "eeg", cache, data / "model", quick_recipe(), 42, placement)

    (data / "fetched").mkdir()
    (data / "fetched/eeg").symlink_to(data / "raw")
    (data / "fetched/image_metadata").symlink_to(data / "image_metadata.npy")
    shutil.copy(params, folder)


def test_the_code_for_python_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pages, on tiny data; the figure is that of numpy, and each response has its own image."""
    monkeypatch.setenv("ALIGNED_EEG_CACHE", str(tmp_path / "cache"))
    make_project(tmp_path, Path("params.yaml"))
    pages = [Path(f"docs/{name}.md").absolute() for name in ("api", "interfaces")]
    monkeypatch.chdir(tmp_path)
    names, classes = (run_code(str(page)) for page in pages)

    cache, test = names["embeddings"], names["test"]
    for image_id, embedding in zip(test.image_ids, names["test_embeddings"], strict=True):
        [row] = np.flatnonzero(cache.image_ids == image_id)
        assert np.array_equal(cache.values[row], embedding)

    eeg_side, image_side = (
        side.detach().numpy() for side in names["model"](*names["test_tensors"])
    )
    is_found = (eeg_side @ image_side.T).argmax(1) == np.arange(len(test.image_ids))
    assert names["metrics"]["top1_acc"] == is_found.mean()
    assert names["notes"]["tested_on"] == ["sub-01", "sub-02"]
    assert classes["chunk"].shape[2] == len(classes["raw"].layout.ch_names)
    assert classes["last"].shape == classes["after_first"].shape == (1, 192)


def test_the_code_points_at_pages_and_headings_that_there_are() -> None:
    texts = [
        path.read_text()
        for path in (*code_files("pipeline", "stages", "benchmarks"), Path("params.yaml"))
    ]
    pointers = re.findall(r"(docs/[\w-]+\.md)(?:, ([A-Z][a-z]+))?", "\n".join(texts))
    assert pointers
    for page, heading in pointers:
        check_link(f"{page}#{heading.lower()}", Path("README.md"))


@pytest.mark.long
def test_the_site_builds_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    subprocess.run(build, check=True, capture_output=True)
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert pages.keys() == {
        "404.html",
        *(path.with_suffix(".html").name for path in Path("docs").glob("*.md")),
    }
    loaded = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)"""
    )
    assert {name: loaded.findall(text) for name, text in pages.items() if loaded.search(text)} == {}
    assert "def load_aligned" in re.sub("<[^>]+>", "", pages["adding.html"])
