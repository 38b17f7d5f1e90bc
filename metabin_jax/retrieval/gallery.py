"""A gallery that grows: one SQLite file of images, their labels and their features, all of one net."""

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.manifest import Files
from metabin_jax.evaluation.distances import distance_blocks
from metabin_jax.retrieval.features import Features, check_made_by, check_same_model
from metabin_jax.retrieval.listing import Listed
from metabin_jax.runtime.errors import UserError

SUFFIX = ".db"
APPLICATION, VERSION = 0x6D657461, 1  # "meta": tells our files from other SQLite files
PATIENCE = 60  # seconds to wait for another process that writes
# Start of SQLite's name of an error -> what to say; the file is not to blame.
FAULTS = {
    "SQLITE_FULL": "cannot grow, because the disk is full: what was added before is kept",
    "SQLITE_BUSY": f"is locked by another process, for {PATIENCE} seconds now: try again when that is done",
    "SQLITE_READONLY": "may not be written: change its permissions",
    "SQLITE_CANTOPEN": "cannot be opened: change its permissions, or those of its folder",
    "SQLITE_IOERR": "cannot be read or written: check the disk",
}
SCHEMA = """
CREATE TABLE IF NOT EXISTS model (made_by TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS image (
    path TEXT PRIMARY KEY, pid TEXT NOT NULL, camid INTEGER NOT NULL, domain TEXT NOT NULL,
    bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, feature BLOB NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID
"""

# A label that an image has stays; an unknown one is filled in.
FILLED = "pid = iif(pid = '', {0}, pid), camid = iif(camid < 0, {1}, camid), domain = iif(domain = '', {2}, domain)"
# Of an image that is added again.
REPLACED = ", ".join(
    [f"{column} = excluded.{column}" for column in ("bytes", "mtime_ns", "feature", "crc")]
    + [FILLED.format("excluded.pid", "excluded.camid", "excluded.domain")]
)

Stamp = tuple[int, int]  # bytes and time of modification (ns) of an image file
UNKNOWN: Stamp = (0, 0)


class Named(NamedTuple):
    """An identity of a gallery, and the similarity of its most similar image to a query."""

    pid: str
    domain: str
    similarity: float


class Gallery(contextlib.AbstractContextManager):
    """An open file. Use as a context. Several processes may add at the same time; each change is whole or not there."""

    def __init__(self, path: str | Path, made_by: dict[str, Any] | None = None):
        """made_by: as in `Features`; makes the file if there is none. Without it the file must exist.

        Raises FileNotFoundError, or UserError for a file that is damaged, of another kind, or of another model. Every
        method raises UserError if the file cannot be read or written.
        """
        self.path = Path(path).expanduser()
        if made_by is None and not self.path.is_file():
            raise FileNotFoundError(f"the gallery {self.path} does not exist: metabin gallery add makes one.")
        with self._explained():
            self._file = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            self.made_by = self._begin(made_by)
        except UserError:
            self._file.close()
            raise

    def _begin(self, made_by: dict[str, Any] | None) -> dict[str, Any]:
        """Checks the file, or makes it; what its features are made by."""
        with self._change() as file:
            empty = not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty and made_by is not None:
                for statement in SCHEMA.split(";"):
                    file.execute(statement)
                file.execute("INSERT INTO model VALUES (?)", [json.dumps(made_by)])
                file.execute(f"PRAGMA application_id = {APPLICATION}")
                file.execute(f"PRAGMA user_version = {VERSION}")
            marks = [file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if marks != [APPLICATION, VERSION] or file.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError(f"application and version are {marks}")
            file.execute("SELECT path, pid, camid, domain, bytes, mtime_ns, feature, crc FROM image LIMIT 1")
            text, *_ = file.execute("SELECT made_by FROM model").fetchone() or ("",)
        try:
            check_made_by(own := json.loads(text))
        except ValueError as error:
            raise UserError(f"{self.path} is damaged: it does not say which model it is of.") from error
        if made_by is not None:
            advice = "use that one, or another gallery"
            check_same_model(made_by, "--model", own, f"the one of {self.path}", advice)
        return own

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _explained(self):
        """Turns an error of SQLite into a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            damaged = f"is damaged or no gallery of metabin gallery ({error})"
            fault = next((words for start, words in FAULTS.items() if name.startswith(start)), damaged)
            raise UserError(f"{self.path} {fault}.") from error

    @contextlib.contextmanager
    def _change(self):
        """A transaction that writes, or nothing after an error."""
        with self._explained():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:  # a full disk has ended it
                    self._file.execute("ROLLBACK")
                raise

    def _rows(self, query: str) -> list[tuple]:
        with self._explained():
            return self._file.execute(query).fetchall()

    def __len__(self) -> int:
        return self._rows("SELECT count(*) FROM image")[0][0]

    def identities(self) -> dict[str, str]:
        """The pid of each image that is there, by its path."""
        return dict(self._rows("SELECT path, pid FROM image"))

    def stamps(self) -> dict[str, Stamp]:
        """Of each image that is there, by its path."""
        rows = self._rows("SELECT path, bytes, mtime_ns FROM image")
        return {path: (size, mtime) for path, size, mtime in rows}

    def add(self, batches: Iterable[Features], stamps: dict[str, Stamp]) -> int:
        """Adds images, each batch whole or not at all; returns how many. stamps: of each image's file.

        An image that is there gets the new feature and keeps the labels it has.
        """
        count = 0
        for batch in batches:
            columns = (batch.path, batch.pid, batch.camid, batch.domain)
            rows = zip(*(column.tolist() for column in columns), batch.feature.astype("<f4"), strict=True)
            with self._change() as file:
                file.executemany(
                    f"INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET {REPLACED}",
                    [
                        (*labels, *stamps[labels[0]], blob := feature.tobytes(), zlib.crc32(blob))
                        for *labels, feature in rows
                    ],
                )
            count += len(batch)
        return count

    def label_unknown(self, images: Sequence[Listed]) -> int:
        """Sets labels that are known of images that are there and lack them; returns how many images changed."""
        lacks = "(pid = '' AND ?2 <> '') OR (camid < 0 AND ?3 >= 0) OR (domain = '' AND ?4 <> '')"
        with self._change() as file:
            return file.executemany(
                f"UPDATE image SET {FILLED.format('?2', '?3', '?4')} WHERE path = ?1 AND ({lacks})", images
            ).rowcount

    def label(self, images: Sequence[Listed]) -> int:
        """Sets the labels that are known of images that are there; returns how many images are."""
        values = [(i.pid, i.pid, i.camid, i.camid, i.domain, i.domain, i.path) for i in images]
        with self._change() as file:
            return file.executemany(
                "UPDATE image SET pid = iif(? = '', pid, ?), camid = iif(? < 0, camid, ?),"
                " domain = iif(? = '', domain, ?) WHERE path = ?",
                values,
            ).rowcount

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Removes images, and all images below a folder; returns how many. The files stay."""
        count = 0
        with self._change() as file:
            for path in map(Files().absolute, paths):
                below = path.rstrip(os.sep) + os.sep
                query = "DELETE FROM image WHERE path = ? OR substr(path, 1, ?) = ?"
                count += file.execute(query, [path, len(below), below]).rowcount
        return count

    def features(self) -> Features:
        """Everything, in the order of the paths. Raises UserError for a feature that is damaged."""
        rows = self._rows("SELECT path, pid, camid, domain, CAST(feature AS BLOB), crc FROM image ORDER BY path")
        path, pid, camid, domain, blobs, sums = zip(*rows, strict=True) if rows else ((),) * 6
        if len({len(blob) for blob in blobs}) > 1 or any(zlib.crc32(b) != s for b, s in zip(blobs, sums, strict=True)):
            raise UserError(f"{self.path} is damaged: a feature is not what was written.")
        width = len(blobs[0]) // 4 if blobs else 0
        feature_ND = np.frombuffer(b"".join(blobs), "<f4").reshape(len(rows), width)
        texts = (np.array(column, np.str_) for column in (path, pid, domain))
        paths, pids, domains = texts
        return Features(paths, feature_ND, pids, np.array(camid, np.int64), domains, self.made_by)


class Identities:
    """The labelled images of a gallery by identity, for questions about who is on a picture."""

    def __init__(self, gallery: Features):
        """Raises UserError if no image is labelled."""
        labelled = np.flatnonzero(gallery.pid != "")
        if not len(labelled):
            raise UserError("no image of the gallery has an identity: metabin gallery label gives them one.")
        keys = np.stack([gallery.domain[labelled], gallery.pid[labelled]])
        self._names, of_row = np.unique(keys, axis=1, return_inverse=True)
        order = np.argsort(of_row, kind="stable")
        self._first = np.searchsorted(of_row[order], np.arange(self._names.shape[1]))
        self._feature_GD = gallery.feature[labelled[order]]

    def nearest(self, query_QD: NDArray[np.float32]) -> list[list[Named]]:
        """The most similar identity of each query and the runner-up, if there is one."""
        found = []
        for _, distance_BG in distance_blocks(query_QD, self._feature_GD):
            best_BI = 1 - np.minimum.reduceat(distance_BG, self._first, axis=1)
            for best_I in best_BI:
                two = np.argsort(-best_I, kind="stable")[:2]
                names = zip(*self._names[:, two].tolist(), best_I[two].tolist(), strict=True)
                found.append([Named(pid, domain, min(similarity, 1.0)) for domain, pid, similarity in names])
        return found


def stamp(path: str, before: str | Path | None = None) -> Stamp:
    """Of an image file; UNKNOWN if it cannot be read, or was changed after the file `before`."""
    try:
        found = os.stat(path)
    except OSError:
        return UNKNOWN
    is_later = before is not None and found.st_mtime_ns > os.stat(before).st_mtime_ns
    return UNKNOWN if is_later else (found.st_size, found.st_mtime_ns)
