"""Run the grid of the study, as far as it has not run before; then write its table and page."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.datasets.table import DATASETS
from pipeline.eeg_encoders.table import caveats_of
from pipeline.errors import InputError
from pipeline.files import replacing, sha256
from pipeline.images.embeddings import read_about
from pipeline.images.models.table import find_model, has_last_block_alone
from pipeline.params import Params, read_params
from pipeline.preprocess.recordings import read_caveats, read_modality
from pipeline.report.study_page import write_study_page
from pipeline.report.study_pictures import draw_study_pictures
from pipeline.study.people import RecordingKey, StudyRecording, find_study_recordings
from pipeline.study.summary import summarise
from pipeline.study.trials import cache_of, plan_study, run_study
from stages import SECOND, run, show, write_json
from stages.names import check_study


def main(
    params: Path,
    eeg: Path,
    embeddings: Path,
    table: Path,
    metrics: Path,
    pictures: Path,
    page: Path,
    second: Annotated[Path | None, typer.Option(help=SECOND)] = None,
) -> str:
    p = read_params(params)
    check_study(p)

    datasets: dict[RecordingKey, str] = {"first": p.dataset, "second": p.across.dataset}
    folders: dict[RecordingKey, Path | None] = {"first": eeg, "second": second}
    recordings = find_study_recordings(p.study, datasets, folders)
    kinds = kinds_of(p.study.backbones)
    trials = plan_study(p.study, p.seed, recordings, p.across, kinds)
    answers, failures = run_study(trials, recordings.values(), embeddings, p.train, p.runs)

    caches = {cache_of(embeddings, trial) for trial in trials}
    facts = describe(p, caches, recordings.values())
    summary, frame = summarise(answers, failures, facts, p.evaluate, p.seed)
    with replacing(table) as temporary:
        frame.to_csv(temporary, index=False)
    # As a reader of the file gets it: so the page can be made again from the files alone.
    summary = write_json(metrics, summary)

    pictures.mkdir(parents=True, exist_ok=True)
    write_study_page(
        page,
        summary=summary,
        table=frame,
        pictures=draw_study_pictures(pictures, summary, frame),
        settings={
            "study": p.study.model_dump(),
            "across": p.across.model_dump(include={"dataset", "subjects", "models"}),
            "train": p.train.model_dump(),
            "evaluate": p.evaluate.model_dump(),
        },
        reproduce="dvc repro study/dvc.yaml",
        hashes={str(path): sha256(path) for path in (table, metrics)},
    )
    print_study(summary)

    # Only now: the table and the page hold what did run, and say what did not.
    if failures:
        raise InputError(
            f"{len(failures)} of {len(trials)} runs are missing from {table}, as told above: mend "
            "what made them fail and run this again, which runs only them"
        )
    return f"{table}, {metrics}, {page}"


def kinds_of(backbones: Sequence[str]) -> dict[str, dict[str, bool]]:
    """The kinds of alignment of each backbone, and whether each has the block `last` alone."""
    kinds = {}
    for backbone in backbones:
        loads = find_model(backbone).aligned
        kinds[backbone] = {kind: has_last_block_alone(load) for kind, load in loads.items()}
    return kinds


def describe(
    p: Params, caches: Iterable[Path], recordings: Collection[StudyRecording]
) -> dict[str, Any]:
    """What a summary says of the data behind it."""
    names = [recording.dataset for recording in recordings]
    datasets = [DATASETS[name] for name in names]
    planted = [dataset.planted.get(p.sample.truth, "") for dataset in datasets]
    paths = [file.path for recording in recordings for file in recording.eeg.values()]
    caveats_of_images = {read_about(cache)[0].get("caveat") for cache in caches}
    modality = read_modality(paths[0])  # all subjects have the same channels
    facts: dict[str, Any] = {} if modality == "EEG" else {"modality": modality}
    return facts | {
        "dataset": " and ".join(names),
        "synthetic": any(dataset.synthetic for dataset in datasets),
        "selected_on": p.train.select_on,
        "control": p.train.control,
        "planted": " ".join(dict.fromkeys(filter(None, planted))),
        "caveats": [
            *dict.fromkeys(caveat for dataset in datasets for caveat in dataset.caveats),
            *(caveat for name in p.study.eeg_encoders for caveat in caveats_of(name)),
            *sorted(caveat for caveat in caveats_of_images if caveat),
            # A caveat may be of one subject alone, such as its bad channels. Each is said once.
            *dict.fromkeys(caveat for path in paths for caveat in read_caveats(path)),
        ],
    }


def print_study(summary: dict[str, Any]) -> None:
    """Print a table of the cells, and the answer."""
    several = len(summary["datasets"]) > 1
    # A figure that a cell does not have is an empty field.
    rows = [
        {
            "backbone": cell["backbone"],
            "alignment": cell["alignment"],
            "block": cell["block"],
            "EEG encoder": cell["eeg_encoder"],
            "protocol": cell["protocol"],
            **name_columns(cell, several),
            "unaligned": cell["unaligned"].get("top1_acc", ""),
            "aligned": cell["aligned"].get("top1_acc", ""),
            "difference": cell["difference"]["top1_acc"]["mean"] if cell["difference"] else "",
            "p (Holm)": cell["p_holm"] if cell["p_holm"] is not None else "",
            "verdict": cell["verdict"],
        }
        for cell in summary["cells"]
    ]

    show(f"top-1 in each cell, of {summary['n_runs']} runs", rows)
    print(summary["answer"])


def name_columns(cell: Mapping[str, Any], several: bool) -> dict[str, str]:
    """The columns that say who trained and who was tested, where the study has `several`."""
    if not several:
        return {}
    return {"trained on": cell["trained_dataset"], "tested on": cell["tested_dataset"]}


if __name__ == "__main__":
    run(main)
