"""What decides a result: everything that ran is followed, and nothing that computes nothing counts."""

import ast
import importlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline import provenance
from pipeline.evaluate.scoring import score
from pipeline.images.embedder import embed_images
from pipeline.images.embeddings import read_embeddings
from pipeline.images.models.table import IMAGE_MODELS
from pipeline.images.stand_ins.dreamsim import make_checkpoint
from pipeline.params import read_params
from pipeline.preprocess.recordings import read_split
from pipeline.train.model import load_model
from pipeline.train.runs import train_all
from tests.eeg_weights import publish
from tests.tiny import make_prepared, quick_recipe

ROOT = Path(__file__).parents[1]
CHOSEN = {"DATASETS": ["sample"], "EEG_ENCODERS": ["nice"], "IMAGE_MODELS": ["synclr_vitb16"]}
OF_DATASET = {"download", "weights", "preprocess", "evaluate", "report", "study"}
PROGRAMS = ["download", "weights", "preprocess", "embed", "train", "evaluate", "explain"]
PROGRAMS += ["report", "study"]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project's code, which may be edited."""
    for package in ("pipeline", "stages"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    forget_code()
    yield tmp_path
    forget_code()


def forget_code() -> None:
    """Have all files read again. What was read holds a million objects."""
    for name in ("_read", "_cached_uses", "_file_of", "_hash_of_meaning"):
        getattr(provenance, name).cache_clear()


def records(copy: Path, **chosen: list[str]) -> dict[str, dict[str, str]]:
    """Of each stage, as the code is now."""
    forget_code()
    programs = {name: copy / f"stages/{name}.py" for name in PROGRAMS}
    return {
        name: provenance.code_of(program, CHOSEN | chosen) for name, program in programs.items()
    }


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, str]]:
    """The records of the code as it is, in whichever folder it lies."""
    return records(ROOT)


def changed(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


class Reworded(ast.NodeTransformer):
    """Other docstrings, texts of errors and type hints."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant("Corrected."))
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        calls = [child for child in ast.walk(node) if isinstance(child, ast.Call)]
        for call in calls:
            if getattr(call.func, "id", "") in ("InputError", "_NotListed", "WrongFile"):
                call.args = [ast.Constant("corrected")]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = ast.Constant("Any") if node.annotation else None
        return node


def test_prose_changes_nothing(before: dict, copy: Path) -> None:
    """Docstrings, comments, hints, error texts and the layout of the lines, in every file."""
    for path in copy.rglob("*.py"):
        tree = ast.fix_missing_locations(Reworded().visit(ast.parse(path.read_text())))
        path.write_text(f"# A comment.\n\n{ast.unparse(tree)}\n")
    assert changed(before, records(copy)) == set()


def test_another_eeg_encoder_changes_nothing_of_those_that_are_there(
    before: dict, copy: Path
) -> None:
    shutil.copy(copy / "pipeline/eeg_encoders/nice.py", copy / "pipeline/eeg_encoders/mine.py")
    edit(
        copy / "pipeline/eeg_encoders/table.py",
        '    "nice": Nice,\n',
        '    "nice": Nice,\n    "mine": Mine,\n',
    )
    edit(
        copy / "pipeline/eeg_encoders/table.py",
        "from pipeline.eeg_encoders.nice import Nice, NiceRecipe\n",
        "from pipeline.eeg_encoders.mine import Nice as Mine\n"
        "from pipeline.eeg_encoders.nice import Nice, NiceRecipe\n",
    )
    assert changed(before, records(copy)) == set()

    of_mine = records(copy, EEG_ENCODERS=["mine"])
    assert "pipeline/eeg_encoders/mine.py" in of_mine["train"]
    assert "pipeline/eeg_encoders/nice.py" not in of_mine["train"]


def test_another_image_model_or_dataset_changes_nothing_of_those_that_are_there(
    before: dict, copy: Path
) -> None:
    shutil.copy(
        copy / "pipeline/images/models/dreamsim.py", copy / "pipeline/images/models/mine.py"
    )
    models = copy / "pipeline/images/models/table.py"
    edit(
        models,
        "from pipeline.images.models import dreamsim,",
        "from pipeline.images.models import mine, dreamsim,",
    )
    edit(models, '    "ensemble": ', '    "mine": mine.make("mine"),\n    "ensemble": ')

    shutil.copy(copy / "pipeline/datasets/things_meg.py", copy / "pipeline/datasets/mine.py")
    datasets = copy / "pipeline/datasets/table.py"
    edit(
        datasets,
        "from pipeline.datasets import (\n",
        "from pipeline.datasets import (\n    mine,\n",
    )
    edit(
        datasets,
        "DATASETS: ",
        "MINE = Dataset(source=sources.MINE, find_subjects=mine.find_subjects)\n\nDATASETS: ",
    )
    edit(datasets, '    "things-meg": ', '    "mine": MINE,\n    "things-meg": ')
    edit(copy / "pipeline/datasets/sources.py", "THINGS_MEG = ", "MINE = 3\nTHINGS_MEG = ")
    assert changed(before, records(copy)) == set()
    assert "pipeline/datasets/mine.py" in records(copy, DATASETS=["mine"])["preprocess"]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "pipeline/eeg_encoders/nice.py",
            "n_filters: int = 40",
            "n_filters: int = 41",
            {"train", "evaluate", "explain", "study"},
        ),
        ("pipeline/train/measures.py", "N_PROBES = 256", "N_PROBES = 255", {"train", "study"}),
        ("pipeline/datasets/table.py", "synthetic=True", "synthetic=False", OF_DATASET),
        ("pipeline/images/health.py", "AGREEMENT = 0.99", "AGREEMENT = 0.98", {"embed"}),
        ("pipeline/eeg_encoders/atm.py", "def forward", "n_heads = 7\n\n    def forward", set()),
    ],
)
def test_what_computes_changes_only_what_uses_it(
    before: dict, copy: Path, file: str, old: str, new: str, expected: set[str]
) -> None:
    path = copy / file
    path.write_text(path.read_text().replace(old, new))
    assert changed(before, records(copy)) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 0", "x = False"),
        ("x = 0", "x = ''"),
        ("raise ValueError('a')", "raise KeyError('a')"),
        ("helper.double(x)", "helper.half(x)"),
        ("x: int = 1", "x: int = 2"),
        ("for", "while x or"),
    ],
)
def test_a_change_of_what_is_computed_shows(copy: Path, old: str, new: str) -> None:
    program = copy / "stages/mine.py"
    (copy / "pipeline/preprocess/helper.py").write_text(
        "def double(x): return 2 * x\ndef half(x): return x / 2\n"
    )
    text = (
        "from pipeline.preprocess import helper\nx = 0\n\ndef main(x: int = 1):\n    for _ in [x]:\n"
        "        raise ValueError('a')\n    return helper.double(x)\n"
    )
    program.write_text(text)
    before = provenance.code_of(program, CHOSEN)
    assert old in text
    program.write_text(text.replace(old, new).replace("while x or _ in", "while x or 1 in"))
    forget_code()
    assert provenance.code_of(program, CHOSEN) != before


def test_a_module_that_is_handed_on_counts_as_a_whole(copy: Path) -> None:
    helper, program = copy / "pipeline/preprocess/helper.py", copy / "stages/mine.py"
    helper.write_text("def double(x): return 2 * x\ndef half(x): return x / 2\n")
    program.write_text("from pipeline.preprocess import helper\nprint(vars(helper))\n")
    before = provenance.code_of(program, CHOSEN)
    helper.write_text("def double(x): return 2 * x\ndef half(x): return x / 3\n")
    forget_code()
    assert provenance.code_of(program, CHOSEN) != before


def test_a_package_itself_holds_no_code() -> None:
    """What stands in an `__init__.py` of the library is not followed."""
    for path in (ROOT / "pipeline").glob("*/__init__.py"):
        assert all(provenance._is_text(statement) for statement in ast.parse(path.read_text()).body)


# What really runs: Python tells each function that it enters.


def functions_that_ran(work: Callable[[], object]) -> set[tuple[Path, int]]:
    """(file of this project, first line) of each function and class body that ran."""
    entered = set()

    def note(frame, event: str, _: object) -> None:
        if event == "call":
            entered.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    places = [
        (Path(name), line) for name, line in entered if name.startswith(str(ROOT / "pipeline"))
    ]
    return {(path, line) for path, line in places if decides_results(path)}


def decides_results(path: Path) -> bool:
    """Whether a file of the library says more than where and how work is done."""
    if path.name in ("retrieval.py", "devices.py"):
        return True
    return path.parent not in (ROOT / "pipeline", ROOT / "pipeline/compute")


def lines_that_count(start: list[tuple[Path, str | None]], chosen: dict) -> dict[Path, set[int]]:
    """The lines of the statements whose meaning is hashed."""
    lines: dict[Path, set[int]] = {}
    for path, statements in provenance.follow(start, chosen).items():
        for each in (each for each in statements if hasattr(each, "lineno")):
            decorators = [node.lineno for node in getattr(each, "decorator_list", [])]
            first = min([each.lineno, *decorators])
            lines.setdefault(path, set()).update(range(first, each.end_lineno + 1))
    return lines


def assert_all_is_followed(ran: set[tuple[Path, int]], counted: dict[Path, set[int]]) -> None:
    assert len(ran) > 10
    missed = {(path.name, line) for path, line in ran if line not in counted.get(path, set())}
    assert not missed


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("eeg_encoder", ["nice", "nice-recipe", "atm-s", "cbramod"])
def test_all_that_runs_in_training_and_scoring_is_followed(
    data: Path, tmp_path: Path, eeg_encoder: str
) -> None:
    changes = {"eeg_encoder": eeg_encoder, "device": "cpu"}
    if eeg_encoder == "cbramod":
        pytest.importorskip("braindecode", reason="braindecode is not installed")
        importlib.import_module("braindecode.models")  # here: it is slow where each call is noted
        changes["eeg_weights"] = str(publish(eeg_encoder, tmp_path / "weights"))
    parameters, p = quick_recipe(**changes), read_params(Path("params.yaml"))

    def train() -> None:
        train_all(data / "eeg", data / "embeddings.h5", tmp_path / "model", parameters, 0, p.runs)

    def evaluate() -> None:
        models = [
            load_model(folder) for folder in (tmp_path / "model").iterdir() if folder.is_dir()
        ]
        cache = read_embeddings(data / "embeddings.h5", "last", "original", "original")
        files = sorted((data / "eeg").glob("*.h5"))
        score(
            [read_split(path, "test", average=False) for path in files],
            models,
            cache,
            p.evaluate,
            0,
        )

    chosen = CHOSEN | {"EEG_ENCODERS": [eeg_encoder]}
    for name, work in {"train": train, "evaluate": evaluate}.items():
        counted = lines_that_count([(ROOT / f"stages/{name}.py", None)], chosen)
        assert_all_is_followed(functions_that_ran(work), counted)


@pytest.mark.usefixtures("cache")
def test_all_that_runs_in_making_and_embedding_the_sample_is_followed(
    tmp_path: Path,
) -> None:
    p = read_params(Path("params.yaml"))
    make_checkpoint("synclr_vitb16", tmp_path / "weights", embed_dim=64)
    ran = functions_that_ran(lambda: make_prepared(tmp_path))
    counted = lines_that_count(
        [(ROOT / f"stages/{name}.py", None) for name in ("download", "preprocess")], CHOSEN
    )
    assert_all_is_followed(ran, counted)

    def embed() -> None:
        embed_images(
            tmp_path / "images.csv",
            tmp_path / "images",
            IMAGE_MODELS["synclr_vitb16"].aligned["dreamsim"],
            tmp_path / "weights/dreamsim_synclr_vitb16_checkpoint.zip",
            tmp_path / "aligned.h5",
            {"backbone": "synclr_vitb16", "encoder": "aligned", "alignment": "dreamsim"},
            p.embed.model_copy(update={"device": "cpu"}),
            torch.device("cpu"),
        )

    start = [
        (ROOT / "pipeline/images/embedder.py", None),
        (ROOT / "pipeline/images/models/table.py", "IMAGE_MODELS"),
    ]
    assert_all_is_followed(functions_that_ran(embed), lines_that_count(start, CHOSEN))
