"""Artifacts in the database: tensors and files as content-addressed blobs in parts of 16 MiB.

A blob's digest is the sha256 over the sha256 digests of its parts, so one pass over the bytes
checks both. INT4 and INT2 of one run share what is equal (embeddings, norms, tokenizer) by digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database

from upq.artifact import Artifact
from upq.errors import UserError
from upq.store.connections import Connections

if TYPE_CHECKING:
    import torch

PART_BYTES = 16 * 2**20


class DamagedBlob(Exception):
    """A blob's bytes are not what was stored; the message says which part and how."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRow:
    """An artifact without its tensors. manifest_text: its manifest as JSON, which takes long to read."""

    id: int
    run_id: int
    precision: str
    manifest_text: str
    size_bytes: int
    bits_per_weight: float
    created_at: float

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the artifact says of itself: docs/format.md."""
        return json.loads(self.manifest_text)


@dataclass(frozen=True)
class Blob:
    """Bytes and what they are addressed by. part_digests: sha256 in hexadecimal, one per part."""

    data: memoryview
    part_digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        return root_digest(self.part_digests)


def make_blob(data: memoryview) -> Blob:
    """Hash `data`, a view of single bytes; no copy is made."""
    starts = range(0, len(data), PART_BYTES)
    return Blob(data, tuple(_sha256(data[start : start + PART_BYTES]) for start in starts))


def root_digest(part_digests: tuple[str, ...]) -> str:
    """The digest of a blob with these parts."""
    return _sha256(b"".join(bytes.fromhex(digest) for digest in part_digests))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements as bytes, in row order, whatever its dtype (NumPy has no bfloat16)."""
    import torch  # noqa: PLC0415  takes seconds, and most of the store works without

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def bytes_tensor(data: bytearray, dtype_name: str, shape: list[int]) -> torch.Tensor:
    """The reverse of tensor_bytes; the tensor owns `data`."""
    import torch  # noqa: PLC0415  as above

    dtype = getattr(torch, dtype_name)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


@dataclass(frozen=True)
class Prepared:
    """An artifact that is hashed and ready to insert, so that the write lock is held briefly."""

    artifact: Artifact
    tensors: dict[str, Blob]
    files: dict[str, Blob]


def prepare(artifact: Artifact) -> Prepared:
    """Hash every tensor and file of an artifact."""
    tensors = {name: make_blob(tensor_bytes(t)) for name, t in artifact.tensors.items()}
    files = {name: make_blob(memoryview(data)) for name, data in artifact.files.items()}
    return Prepared(artifact, tensors, files)


def insert(db: Database, run_id: int, prepared: Prepared, created_at: float) -> None:
    """Insert an artifact inside the caller's transaction; a no-op if the run has that precision."""
    artifact = prepared.artifact
    cursor = db.execute(
        "INSERT INTO artifacts (run_id, precision, manifest, size_bytes, bits_per_weight,"
        " created_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            run_id,
            artifact.precision,
            json.dumps(artifact.manifest, sort_keys=True),
            artifact.size_bytes,
            artifact.manifest["bits_per_weight"],
            created_at,
        ],
    )
    if cursor.rowcount == 0:
        return
    for name, blob in prepared.tensors.items():
        _insert_blob(db, blob)
        tensor = artifact.tensors[name]
        dtype, shape = str(tensor.dtype).removeprefix("torch."), json.dumps(list(tensor.shape))
        db.execute(
            "INSERT INTO artifact_tensors VALUES (?, ?, ?, ?, ?)",
            [cursor.lastrowid, name, dtype, shape, blob.digest],
        )
    for name, blob in prepared.files.items():
        _insert_blob(db, blob)
        db.execute(
            "INSERT INTO artifact_files VALUES (?, ?, ?)", [cursor.lastrowid, name, blob.digest]
        )


def _insert_blob(db: Database, blob: Blob) -> None:
    cursor = db.execute(
        "INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO NOTHING", [blob.digest, len(blob.data)]
    )
    if cursor.rowcount == 0:
        return
    for position, digest in enumerate(blob.part_digests):
        data = blob.data[position * PART_BYTES : (position + 1) * PART_BYTES]
        db.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", [blob.digest, position, digest, data])


def rows(db: Database, run_id: int | None) -> list[ArtifactRow]:
    """The artifacts of a run, or of all runs."""
    found = db.query(
        "SELECT id, run_id, precision, manifest AS manifest_text, size_bytes, bits_per_weight, created_at"
        " FROM artifacts WHERE run_id = coalesce(?, run_id) ORDER BY id",
        [run_id],
    )
    return [ArtifactRow(**row) for row in found]


def load(connections: Connections, run_id: int, precision: str) -> Artifact:
    """Read an artifact and check every byte against its digest.

    Each part is read by itself, so a long load keeps no writer waiting.
    Raises UserError("artifact_not_found") or UserError("artifact_damaged").
    """
    with connections.read() as db:
        row = next((row for row in rows(db, run_id) if row.precision == precision), None)
        if row is None:
            raise _not_found(run_id, precision)
        try:
            tensors = {
                item["name"]: bytes_tensor(
                    _read_named(db, "tensor", item), item["dtype"], json.loads(item["shape"])
                )
                for item in _contents(db, row.id)
            }
            files = {
                item["name"]: bytes(_read_named(db, "file", item))
                for item in _file_contents(db, row.id)
            }
        except DamagedBlob as damage:
            if all(other.id != row.id for other in rows(db, run_id)):
                raise _not_found(run_id, precision) from None  # deleted while it was being read
            raise UserError(
                "artifact_damaged",
                f"The {precision} artifact of run {run_id} cannot be read: {damage}.",
                "Delete the run and quantize again, or restore a backup of the data folder.",
            ) from damage
    return Artifact(
        precision=row.precision,
        manifest=row.manifest,
        tensors=tensors,
        files=files,
    )


def _not_found(run_id: int, precision: str) -> UserError:
    return UserError(
        "artifact_not_found",
        f"Run {run_id} has no {precision} artifact.",
        "Choose a run that is done, or wait for this one.",
    )


def _contents(db: Database, artifact_id: int) -> list[dict[str, Any]]:
    return list(
        db.query(
            "SELECT * FROM artifact_tensors WHERE artifact_id = ? ORDER BY rowid", [artifact_id]
        )
    )


def _file_contents(db: Database, artifact_id: int) -> list[dict[str, Any]]:
    return list(
        db.query("SELECT * FROM artifact_files WHERE artifact_id = ? ORDER BY rowid", [artifact_id])
    )


def _read_named(db: Database, kind: str, item: dict[str, Any]) -> bytearray:
    try:
        return read_blob(db, item["blob_digest"])
    except DamagedBlob as damage:
        raise DamagedBlob(f"{kind} {item['name']}, {damage}") from None


def read_blob(db: Database, digest: str) -> bytearray:
    """The bytes of a blob, each part checked. Raises DamagedBlob."""
    data, start = bytearray(_blob_size(db, digest)), 0
    for _, part in read_parts(db, digest):
        data[start : start + len(part)] = part
        start += len(part)
    return data


def read_parts(db: Database, digest: str) -> Iterator[tuple[str, bytes]]:
    """(sha256, bytes) of a blob's parts in order, each checked, and in the end all together. Raises DamagedBlob."""
    size = _blob_size(db, digest)
    count = -(-size // PART_BYTES)
    digests = []
    for position in range(count):
        where = f"part {position + 1} of {count} of blob {digest}"
        sha256, data = _read_part(db, digest, position, where)
        if len(data) != min(PART_BYTES, size - position * PART_BYTES):
            raise DamagedBlob(f"{where} has {len(data)} bytes")
        digests.append(sha256)
        yield sha256, data
    if root_digest(tuple(digests)) != digest:
        raise DamagedBlob(f"the parts of blob {digest} are not the ones that it was stored with")


def _blob_size(db: Database, digest: str) -> int:
    found = list(db.query("SELECT size_bytes FROM blobs WHERE digest = ?", [digest]))
    if not found:
        raise DamagedBlob(f"blob {digest} is missing")
    return found[0]["size_bytes"]


def _read_part(db: Database, digest: str, position: int, where: str) -> tuple[str, bytes]:
    """(sha256, bytes) of a part. where: it, in words."""
    found = list(
        db.query(
            "SELECT sha256, data FROM parts WHERE blob_digest = ? AND position = ?",
            [digest, position],
        )
    )
    if not found:
        raise DamagedBlob(f"{where} is missing")
    data, expected = found[0]["data"], found[0]["sha256"]
    sha256 = _sha256(data)
    if sha256 != expected:
        raise DamagedBlob(f"{where} is damaged: its sha256 is {sha256}, expected {expected}")
    return sha256, data


def remove_unused_blobs(db: Database) -> None:
    """Remove the blobs that no artifact refers to, inside the caller's transaction."""
    db.execute(
        "DELETE FROM blobs WHERE NOT EXISTS"
        " (SELECT 1 FROM artifact_tensors WHERE blob_digest = digest)"
        " AND NOT EXISTS (SELECT 1 FROM artifact_files WHERE blob_digest = digest)"
    )


def problems(db: Database) -> list[str]:
    """One line per damaged, incomplete or unused blob."""
    found = []
    for row in list(db.query("SELECT digest FROM blobs ORDER BY digest")):
        try:
            read_blob(db, row["digest"])
        except DamagedBlob as damage:
            found.append(f"Artifact data: {damage}.")
    unused = db.query(
        "SELECT digest FROM blobs WHERE digest NOT IN (SELECT blob_digest FROM artifact_tensors"
        " UNION SELECT blob_digest FROM artifact_files)"
    )
    return found + [f"Blob {row['digest']} belongs to no artifact." for row in list(unused)]


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
