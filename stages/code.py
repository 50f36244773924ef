"""Which code decides each stage's result, for DVC: a stage depends on its record instead of on files of code.

A record changes where something changes that the stage computes with. It does not where a sentence is corrected, nor
where an EEG encoder, an image model or a dataset is added that the parameters do not choose.
"""

from pathlib import Path

from pipeline.params import Params, read_params
from pipeline.provenance import Chosen, code_of
from stages import run, write_json


def main(params: Path, records: list[Path]) -> str:
    """`records` are named after the stages' files, and those of the study lie in a folder of that name."""
    p = read_params(params)
    for record in records:
        program = Path(__file__).with_name(f"{record.stem}.py")
        write_json(record, code_of(program, chosen_by(p, record.parent.name == "study")))
    return ""


def chosen_by(p: Params, of_study: bool) -> Chosen:
    """The entries of the tables that the parameters choose, for the pipeline or for the study."""
    return {
        "DATASETS": [p.dataset],
        "EEG_ENCODERS": p.study.eeg_encoders if of_study else [p.train.eeg_encoder],
        "IMAGE_MODELS": p.study.backbones if of_study else [p.backbone],
    }


if __name__ == "__main__":
    run(main)
