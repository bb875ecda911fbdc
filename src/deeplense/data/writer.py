"""Write a large set piece by piece so that a killed job goes on where it stopped and rewrites nothing that is complete.

writer = ShardWriter(out, num=9000, shard_size=1024, header={"preset": "common-test", "seed": 1})
for shard in writer.missing():
    writer.write(shard, make(writer.rows(shard)))
writer.finish()
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deeplense.data import card, shards
from deeplense.data.files import replacing, write_json, write_text
from deeplense.data.schema import LensSet
from deeplense.errors import DataError, RunError

logger = logging.getLogger(__name__)

FINISHED = "dataset.json"
# Shards have a folder of their own: pandas and pyarrow take every file of a folder for Parquet.
DATA = "data"
UNFINISHED = "unfinished.json"


class _Writer(ABC):
    """What both formats share: the claim on the folder, the shards that are missing, the end.

    Args:
        out: folder to write to; made if it does not exist.
        num: images in the whole set.
        shard_size: images in a shard; the last one may hold fewer.
        header: how the set is made (preset, fidelity, seed ...), in plain JSON values; decides what may be continued.

    Raises:
        RunError: the folder holds something else, or a set made with other settings.
    """

    format: str

    def __init__(self, out: Path | str, num: int, shard_size: int, header: Mapping[str, Any]) -> None:
        if num < 1 or shard_size < 1:
            raise DataError(f"num={num}, shard_size={shard_size} are out of range; allowed: 1 and more")
        self.out, self.num, self.shard_size = Path(out).expanduser(), num, shard_size
        settings = {**header, "format": self.format, "num": num, "shard_size": shard_size}
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it will read back: tuples are lists
        self._claim()

    @property
    def num_shards(self) -> int:
        return -(-self.num // self.shard_size)

    @property
    def is_finished(self) -> bool:
        return (self.out / FINISHED).exists()

    def rows(self, shard: int) -> range:
        """The numbers of the images in a shard."""
        if not 0 <= shard < self.num_shards:
            raise DataError(f"shard {shard} does not exist; allowed: 0 to {self.num_shards - 1}")
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num))

    def missing(self) -> list[int]:
        """The numbers of the shards that are not complete."""
        return [shard for shard in range(self.num_shards) if not self._has(shard)]

    def write(self, shard: int, lens_set: LensSet) -> None:
        """Write a shard, in one step.

        Raises:
            DataError: the number of images is not that of the shard, or one of them cannot be stored.
            RunError: the disk is full, or the folder cannot be written.
        """
        if len(lens_set) != len(self.rows(shard)):
            raise DataError(f"shard {shard} takes {len(self.rows(shard))} images, not {len(lens_set)}")
        self._write(shard, lens_set)

    def finish(self) -> None:
        """Write the dataset card and dataset.json, which make the set complete; a finished set is left as it is.

        Raises:
            RunError: shards are missing.
        """
        if self.is_finished:
            return
        if missing := self.missing():
            raise RunError(f"{self.out} lacks {len(missing)} of {self.num_shards} shards: run the same command again")
        self._finish()
        (self.out / UNFINISHED).unlink(missing_ok=True)

    def _claim(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            entries = [entry.name for entry in self.out.iterdir() if entry.suffix != ".tmp"]
        except OSError as error:
            raise RunError(f"{self.out} cannot be a folder to write to: {error.strerror}; choose another") from error
        if not entries:
            write_json(self.out / UNFINISHED, {"settings": self._settings})
            return
        if (there := read_settings(self.out)) is None:
            raise RunError(f"{self.out} is not empty ({sorted(entries)[0]} ...): choose another folder or empty it")
        keys = sorted(self._settings.keys() | there.keys())
        differ = [key for key in keys if self._settings.get(key) != there.get(key)]
        if differ:
            was = ", ".join(f"{key}={there.get(key)!r}" for key in differ)
            now = ", ".join(f"{key}={self._settings.get(key)!r}" for key in differ)
            raise RunError(f"{self.out} holds a set made with {was}, not {now}: choose another folder or delete it")

    @abstractmethod
    def _has(self, shard: int) -> bool: ...

    @abstractmethod
    def _write(self, shard: int, lens_set: LensSet) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...


class ShardWriter(_Writer):
    """Parquet shards `data/part-00000.parquet` ..., then README.md (the dataset card) and dataset.json."""

    format = "parquet"

    def _path(self, shard: int) -> Path:
        return self.out / DATA / f"part-{shard:05d}.parquet"

    def _has(self, shard: int) -> bool:
        return shards.num_rows(self._path(shard)) == len(self.rows(shard))

    def _write(self, shard: int, lens_set: LensSet) -> None:
        (self.out / DATA).mkdir(exist_ok=True)
        shards.write_shard(self._path(shard), lens_set)

    def _finish(self) -> None:
        paths = [self._path(shard) for shard in range(self.num_shards)]
        common = shards.read_common(paths[0])
        for path in paths:
            other = shards.read_common(path)
            if differ := [key for key in common if key != "provenance" and common[key] != other.get(key)]:
                raise DataError(f"{path} differs from the first shard in {', '.join(differ)}: delete it and run again")
        described = [_describe(path) for path in paths]
        write_text(self.out / "README.md", card.dataset_card(paths, common, self._settings))
        write_json(self.out / FINISHED, {"settings": self._settings, **common, "shards": described})


class NpyWriter(_Writer):
    """The DeepLense layout: `<class>/<name>.npy`, float32 (C, H, W), without labels `<name>.npy`.

    The original sets are float64 of the same shape; float32 is what every reader turns them into, in half the space.
    The parameters of shard k, if there are any, go to `truth-0000k.parquet` with the columns name and label.
    """

    format = "npy"

    def _has(self, shard: int) -> bool:
        return self.is_finished or shard in self._done()

    def _done(self) -> list[int]:
        return load_record(self.out / UNFINISHED).get("done", [])

    def _write(self, shard: int, lens_set: LensSet) -> None:
        paths = [self.out / path for path in _npy_paths(lens_set)]
        for folder in {path.parent for path in paths}:
            folder.mkdir(exist_ok=True)
        for path, image in zip(paths, lens_set.images, strict=True):
            with replacing(path, is_durable=False) as temporary, temporary.open("wb") as file:
                np.save(file, image, allow_pickle=False)
        if lens_set.params is not None:
            shards.write_truth(self.out / f"truth-{shard:05d}.parquet", lens_set)
        done = sorted({*self._done(), shard})
        write_json(self.out / UNFINISHED, {"settings": self._settings, "done": done})

    def _finish(self) -> None:
        write_json(self.out / FINISHED, {"settings": self._settings})


def read_settings(folder: Path) -> dict[str, Any] | None:
    """How the set in a folder is, or is being, made; None if no set of ours is there."""
    for name in (FINISHED, UNFINISHED):
        if (folder / name).exists():
            return load_record(folder / name).get("settings")
    return None


def load_record(path: Path) -> dict[str, Any]:
    """A JSON file as a dictionary; raises DataError if it is damaged."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; delete the folder and make it again") from error


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": f"{DATA}/{path.name}",
        "rows": shards.num_rows(path),
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


def _npy_paths(lens_set: LensSet) -> list[str]:
    """Where each image goes, relative to the folder; only the last part of its name counts.

    Raises:
        DataError: two images would share a file, or a class name cannot be a folder's name.
    """
    if odd := [name for name in lens_set.classes if not _is_plain(name)]:
        raise DataError(f"class {odd[0]!r} cannot be the name of a folder; rename it")
    stems = [PurePosixPath(name.replace("\0", "")).name.removesuffix(".npy") or "image" for name in lens_set.name]
    folders = [""] * len(stems) if lens_set.label is None else [f"{lens_set.classes[k]}/" for k in lens_set.label]
    paths = [f"{folder}{stem}.npy" for folder, stem in zip(folders, stems, strict=True)]
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise DataError(f"{times} images would be written to {path}; give them different names")
    return paths


def _is_plain(name: str) -> bool:
    """Whether a class name stays inside its folder when it becomes a folder name."""
    return bool(name) and name[0] != "." and not set(name) & set("/\\\0")
