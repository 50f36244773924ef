"""Published files that the user already has, found by name before any server is asked."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.disks import GB
from pipeline.download.remote import NewVersion, Remote, WrongFile, check_file, new_version
from pipeline.errors import InputError
from pipeline.files import check_folders, files_below, replacing


@dataclass(frozen=True)
class Copies:
    """All files below a folder, by name. Several files may have the same name."""

    folder: Path
    files: Mapping[str, tuple[Path, ...]]

    def find(self, name: str, published_path: str = "") -> tuple[Path, ...]:
        """The files of this name, and those whose path ends with `published_path`."""
        paths = self.files.get(name, ())
        if published_path:
            published_name = published_path.rpartition("/")[2]
            ending = f"/{published_path}"
            paths += tuple(
                path for path in self.files.get(published_name, ()) if str(path).endswith(ending)
            )
        return tuple(dict.fromkeys(paths))


def open_copies(setting: str) -> Copies | None:
    """The files below the folder that `download.own_copy` names; None if it names none.

    Raises InputError if there is no such folder, or if it cannot be listed.
    """
    if setting == "none":
        return None

    # `dvc exp run` works in another folder, so a relative path would lead elsewhere.
    folder = Path(setting).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise InputError(
            f"download.own_copy is {setting!r}: expected the full path of a folder with published "
            "files, or none"
        )
    return find_copies(folder)


def find_copies(folder: Path) -> Copies:
    """All files below a folder; links are followed. InputError if a folder cannot be listed."""
    files: dict[str, tuple[Path, ...]] = {}
    for path in map(Path, files_below(folder)):
        if path.is_file():
            files[path.name] = (*files.get(path.name, ()), path)
    return Copies(folder, files)


def choose_copy(paths: tuple[Path, ...], expected_size: int | None) -> Path:
    """The one file among those that may be a published one; the size in bytes decides, if known.

    Raises InputError if several files are left.
    """
    if expected_size is not None and len(paths) > 1:
        # If none has this size, all stay: the error must name them.
        paths = tuple(path for path in paths if path.stat().st_size == expected_size) or paths

    # Several links to one file are one copy.
    if len({path.resolve() for path in paths}) > 1:
        same_name = len({path.name for path in paths}) == 1
        which = "of the same name" if same_name else "where one is published"
        raise InputError(
            f"download.own_copy holds {len(paths)} files {which}: "
            f"{', '.join(map(str, paths))}; leave there only the one of this dataset, or name its "
            "folder"
        )
    return paths[0]


def take_copies(targets: Mapping[Path, tuple[Path, Remote]], copies: Copies) -> None:
    """Put files of the user at their targets, and check each as a download is checked.

    `targets` maps a path to the user's file that goes there and to what was published of it. If
    that file belongs to this user and is on the same disk, the target becomes a hard link, and DVC
    will make both read-only. Any other file is copied.

    Raises InputError for a file that is not the published one, or if a disk is too small.
    """
    links = {target for target, (path, _) in targets.items() if _can_link(path, target)}
    sizes = {target: path.stat().st_size for target, (path, _) in targets.items()}

    # A link takes no room.
    needs: Counter[Path] = Counter()
    for target in targets:
        needs[target.parent] += 0 if target in links else sizes[target]
    check_folders(needs)

    print(
        f"From {copies.folder}: {len(targets)} file(s), {sum(sizes.values()) / GB:.3f} GB, "
        f"{len(links)} of them as links",
        flush=True,
    )

    for target, (path, remote) in tqdm(targets.items(), desc="own copy", unit="file", disable=None):
        _check(path, remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target in links:
            target.unlink(missing_ok=True)  # os.link does not overwrite
            os.link(path.resolve(), target)
        else:
            with replacing(target) as temporary:
                shutil.copyfile(path, temporary)
                # Again, because a copy may be damaged on the way.
                _check(temporary, remote)


def _check(path: Path, remote: Remote) -> None:
    """InputError if this is not the published file."""
    try:
        check_file(path, remote)
    except NewVersion as problem:
        raise InputError(new_version(path, problem)) from problem
    except WrongFile as problem:
        raise InputError(
            f"{path}: is not the published file {remote.name}: {problem}; copy it again, or take "
            "it away to have it fetched"
        ) from problem


def _can_link(path: Path, target: Path) -> bool:
    """Whether the file belongs to this user and is on the disk of `target`."""
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    status = path.stat()
    return status.st_dev == folder.stat().st_dev and status.st_uid == os.getuid()
