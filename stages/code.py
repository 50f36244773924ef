"""Write a record of the code behind each stage. In dvc.yaml a stage depends on its record.

A record changes where code changes that the stage computes with. It does not change where prose is
corrected, or where an EEG encoder, image model or dataset is added that the parameters do not use.
"""

from pathlib import Path

from pipeline.params import Params, read_params
from pipeline.provenance import code_of
from stages import run, write_json


def main(params: Path, records: list[Path]) -> str:
    """`records` have the names of the stages' files; the study's lie in a folder `study`."""
    p = read_params(params)
    for record in records:
        # The record data/code/train.json is of the program stages/train.py.
        program = Path(__file__).with_name(f"{record.stem}.py")
        chosen = chosen_by(p, record.parent.name == "study")
        if record.stem == "baseline":  # of ridge, whatever is trained
            chosen |= {"EEG_ENCODERS": ["ridge"]}
        if record.stem in ("evaluate", "report", "study"):  # they can be of both recordings
            chosen |= {"DATASETS": [p.dataset, p.across.dataset]}
        if record.stem.endswith("_second"):  # none has no code
            chosen |= {"DATASETS": [p.across.dataset]}
        write_json(record, code_of(program, chosen))
    return ""


def chosen_by(p: Params, of_study: bool) -> dict[str, list[str]]:
    """The entries of the tables that the parameters choose, for the pipeline or for the study."""
    return {
        "DATASETS": [p.dataset],
        # The study has grids where the pipeline has one name.
        "EEG_ENCODERS": p.study.eeg_encoders if of_study else [p.train.eeg_encoder],
        "IMAGE_MODELS": p.study.backbones if of_study else [p.backbone],
    }


if __name__ == "__main__":
    run(main)
