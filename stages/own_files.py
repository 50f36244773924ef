"""Look at the user's own files, before any other stage runs.

DVC does not see the files outside of the project that the parameters name. So their names, sizes
and times are written into a record that other stages depend on. A corrected file is then used, and
an unchanged file is not read again.

DVC also empties the outputs of a stage before it runs. A file of the user that lies there would be
lost, so this ends the run.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import files_below
from pipeline.params import read_params
from stages import run, write_json
from stages.outputs import find_foreign_files

# A record for each use: another file of weights must not fetch the dataset again.
DATA_FILES = (".zip", ".npy", ".fif", ".edf", ".csv")
HUMAN_FILES = (".txt", ".csv", ".tsv")
WEIGHT_FILES = (".zip", ".npz", ".pth", ".pt", ".bin", ".safetensors")
ANY_FILES = ("",)


def main(
    params: Path,
    dataset_record: Path,
    human_record: Path,
    weights_record: Path,
    eeg_weights_record: Path,
    recordings_record: Path,
    pictures_record: Path,
) -> str:
    p = read_params(params)
    # First of all: a stage after this one would delete them.
    refuse_to_delete(find_foreign_files(Path.cwd()))

    own_copy = p.download.own_copy
    own_data = {
        "own_copy": look(own_copy, DATA_FILES),
        "things_images": look(p.download.things_images, ANY_FILES),
    }
    own_weights = {
        "own_copy": look(own_copy, WEIGHT_FILES),
        "weights_file": look(p.download.weights_file, ANY_FILES),
        "features_file": look_at_features(p.download.features_file),
        "features_file_aligned": look_at_features(p.download.features_file_aligned),
    }
    write_json(dataset_record, own_data)
    write_json(human_record, {"own_copy": look(own_copy, HUMAN_FILES)})
    write_json(weights_record, own_weights)
    write_json(eeg_weights_record, {"eeg_weights": look(p.train.eeg_weights, ANY_FILES)})
    own_recordings = {
        "eeg": look(p.own.eeg, ANY_FILES),
        "split": look(p.own.split, ANY_FILES),  # none where it names no file
    }
    write_json(recordings_record, own_recordings)
    write_json(pictures_record, {"images": look(p.own.images, ANY_FILES)})
    return ""


def look(setting: str, endings: Sequence[str]) -> str:
    """A hash of the names, sizes and times of a file, or of the files below a folder.

    Only files with one of these endings count, and no content is read. `setting` is the value of a
    parameter. Where it names nothing that exists, the answer is "none".
    """
    path = Path(setting).expanduser()
    if setting == "none" or not path.exists():  # the stage that needs the file says what is wrong
        return "none"

    names: Iterable[str] = [str(path)] if path.is_file() else files_below(path)
    paths = [Path(name) for name in names if name.lower().endswith(tuple(endings))]

    facts = []
    for file in sorted(paths):
        if file.is_file():
            status = file.stat()
            facts.append((str(file.relative_to(path)), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def look_at_features(setting: str) -> list[str]:
    """The same of a file of features, and of the CSV file beside it that may hold its names."""
    path = Path(setting)
    names = path.parent / f"{path.stem}.csv"
    return [look(setting, ANY_FILES), "none" if setting == "none" else look(str(names), ANY_FILES)]


def refuse_to_delete(foreign: Sequence[tuple[Path, Path]]) -> None:
    """Raises InputError if there are files that no stage has made: (file, its output)."""
    if not foreign:
        return

    path, output = foreign[0]
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    raise InputError(
        f"{path}{more}: no stage has made it as it is now, and it would be deleted, since {output} "
        "is emptied before it is written: move it to a folder outside of the outputs, or delete "
        "it if it is a damaged file of a stage; published files are found there by "
        "download.own_copy"
    )


if __name__ == "__main__":
    run(main)
