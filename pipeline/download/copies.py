"""Published files that the user brought along: looked for by their names, before any server is asked."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.download.transfer import GB, NewVersion, Remote, WrongFile, check_file, new_version
from pipeline.errors import InputError
from pipeline.files import check_folders, files_below, replacing


@dataclass(frozen=True)
class Copies:
    """The files below a folder, by name."""

    folder: Path
    files: Mapping[str, tuple[Path, ...]]

    def find(self, name: str, published_path: str = "") -> tuple[Path, ...]:
        """The files of this name, or at the end of whose path stands that of the published file."""
        paths = self.files.get(name, ())
        if published_path:
            last_name = published_path.rpartition("/")[2]
            ending = f"/{published_path}"
            paths += tuple(
                path for path in self.files.get(last_name, ()) if str(path).endswith(ending)
            )
        return tuple(dict.fromkeys(paths))


def open_copies(setting: str) -> Copies | None:
    """What `download.own_copy` names, None for none. InputError if it is no folder that can be read."""
    if setting == "none":
        return None

    folder = Path(setting).expanduser()
    if (
        not folder.is_absolute() or not folder.is_dir()
    ):  # an experiment of DVC runs in another working directory
        raise InputError(
            f"download.own_copy is {setting!r}: expected the full path of a folder with published files, or none"
        )
    return find_copies(folder)


def find_copies(folder: Path) -> Copies:
    """All files below a folder; links are followed."""
    files: dict[str, tuple[Path, ...]] = {}
    for path in map(Path, files_below(folder)):
        if path.is_file():
            files[path.name] = (*files.get(path.name, ()), path)
    return Copies(folder, files)


def choose_copy(paths: tuple[Path, ...], expected_size: int | None) -> Path:
    """The one copy that can be meant. InputError if there are several."""
    if expected_size is not None and len(paths) > 1:
        paths = tuple(path for path in paths if path.stat().st_size == expected_size) or paths
    if len({path.resolve() for path in paths}) > 1:
        raise InputError(
            f"download.own_copy holds {len(paths)} files of the same name: {', '.join(map(str, paths))}; "
            "leave there only the one of this dataset, or name its folder"
        )
    return paths[0]


def take_copies(wanted: Mapping[Path, tuple[Path, Remote]], copies: Copies) -> None:
    """Put own files in place, each checked as a download is: {place: (own file, what it should be)}.

    A file of this user on the same disk gets a second name (a hard link) and becomes read-only, as all of DVC's files;
    any other one is copied. InputError for a file that is not the published one.
    """
    links = {place for place, (path, _) in wanted.items() if _can_link(path, place)}
    sizes = {place: path.stat().st_size for place, (path, _) in wanted.items()}
    needs: Counter[Path] = Counter()
    for place in wanted:
        needs[place.parent] += 0 if place in links else sizes[place]
    check_folders(needs)

    print(
        f"From {copies.folder}: {len(wanted)} file(s), {sum(sizes.values()) / GB:.3f} GB, "
        f"{len(links)} of them as links",
        flush=True,
    )
    for place, (path, remote) in tqdm(wanted.items(), desc="own copy", unit="file", disable=None):
        _check(path, remote)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place in links:
            place.unlink(missing_ok=True)
            os.link(path.resolve(), place)
        else:
            with replacing(place) as temporary:
                shutil.copyfile(path, temporary)
                _check(temporary, remote)


def _check(path: Path, remote: Remote) -> None:
    try:
        check_file(path, remote)
    except NewVersion as problem:
        raise InputError(new_version(path, problem)) from problem
    except WrongFile as problem:
        raise InputError(
            f"{path}: is not the published file {remote.name}: {problem}; copy it again, or take it away to have it "
            "fetched"
        ) from problem


def _can_link(path: Path, place: Path) -> bool:
    folder = next(parent for parent in place.absolute().parents if parent.is_dir())
    status = path.stat()
    return status.st_dev == folder.stat().st_dev and status.st_uid == os.getuid()
