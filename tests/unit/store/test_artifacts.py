"""Artifacts come back bit for bit, share what is equal, and damage is named by part and digest."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from upq.artifact import Artifact
from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store
from upq.store.artifacts import PART_BYTES

DATABASE = "upq.db"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / DATABASE)
    yield opened
    opened.close()


def saved(store: Store, *artifacts: Artifact) -> int:
    """The id of a done run with these artifacts."""
    run_id = store.enqueue(RunConfig())
    run = store.claim("w", 1, 30.0)
    assert run is not None
    lease = store.lease(run)
    for artifact in artifacts:
        lease.save_artifact(artifact)
    lease.finish("done")
    return run_id


def artifact(
    tensors: dict[str, torch.Tensor], precision: Literal["INT4", "INT2"] = "INT4"
) -> Artifact:
    manifest = {"format_version": 1, "bits_per_weight": 4.25, "method": "upq"}
    return Artifact(precision, manifest, tensors, {"config.json": b'{"a": 1}', "empty": b""})


def raw(tmp_path: Path, sql: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    rows = connection.execute(sql, values).fetchall()
    connection.close()
    return rows


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


ALL_BYTES = torch.arange(256, dtype=torch.uint8)
TENSORS = {
    "bfloat16 with NaN payloads": torch.arange(-4096, 4096, dtype=torch.int16).view(torch.bfloat16),
    "float16": torch.tensor([[0.1, -0.0], [torch.inf, torch.nan]], dtype=torch.float16),
    "float32": torch.randn(3, 5, 7),
    "uint8": ALL_BYTES.reshape(16, 16),
    "int8": ALL_BYTES.view(torch.int8),
    "int64": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "0-d": torch.tensor(3.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4, dtype=torch.bfloat16),
    "transposed": torch.arange(12).reshape(3, 4).t(),
    "view with an offset": torch.arange(100)[17:29],
    "parameter": torch.nn.Parameter(torch.randn(4)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_for_bit(store: Store, name: str) -> None:
    tensor = TENSORS[name]
    loaded = store.load_artifact(saved(store, artifact({name: tensor})), "INT4").tensors[name]
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert bits(loaded) == bits(tensor.detach())


def test_an_artifact_comes_back_with_manifest_files_and_order(store: Store) -> None:
    tensors = {"z": torch.ones(2), "a": torch.zeros(3)}
    original = artifact(tensors)
    run_id = saved(store, original)
    loaded = store.load_artifact(run_id, "INT4")
    assert (loaded.precision, loaded.manifest) == ("INT4", original.manifest)
    assert loaded.files == original.files
    assert list(loaded.tensors) == ["z", "a"]
    (row,) = store.artifacts(run_id)
    assert (row.size_bytes, row.bits_per_weight) == (original.size_bytes, 4.25)
    assert store.doctor() == []


def test_a_loaded_tensor_may_be_changed_without_changing_the_store(store: Store) -> None:
    run_id = saved(store, artifact({"w": torch.zeros(4)}))
    store.load_artifact(run_id, "INT4").tensors["w"].add_(1)
    assert store.load_artifact(run_id, "INT4").tensors["w"].sum() == 0


def big_tensor() -> torch.Tensor:
    return torch.arange((2 * PART_BYTES + 1000) // 4, dtype=torch.int32)


def test_a_large_tensor_is_stored_in_parts_of_16_mib(store: Store, tmp_path: Path) -> None:
    tensor = big_tensor()
    run_id = saved(store, artifact({"w": tensor}))
    sizes = raw(tmp_path, "SELECT length(data) FROM parts ORDER BY length(data) DESC LIMIT 3")
    assert [size for (size,) in sizes] == [
        PART_BYTES,
        PART_BYTES,
        tensor.numel() * 4 - 2 * PART_BYTES,
    ]
    assert torch.equal(store.load_artifact(run_id, "INT4").tensors["w"], tensor)


def test_equal_tensors_and_files_are_stored_once(store: Store, tmp_path: Path) -> None:
    embedding = torch.randn(64, 32).bfloat16()
    four = artifact({"embedding": embedding, "codes": torch.zeros(8, dtype=torch.uint8)})
    two = artifact(
        {"embedding": embedding.clone(), "codes": torch.ones(8, dtype=torch.uint8)}, "INT2"
    )
    run_id = saved(store, four, two)
    assert raw(tmp_path, "SELECT count(*) FROM blobs") == [(5,)]  # embedding, 2 codes, 2 files
    for original in (four, two):
        loaded = store.load_artifact(run_id, original.precision)
        assert all(torch.equal(loaded.tensors[k], v) for k, v in original.tensors.items())


def test_deleting_a_run_keeps_what_another_run_shares(store: Store, tmp_path: Path) -> None:
    shared, own = torch.ones(10), torch.zeros(10)
    first = saved(store, artifact({"shared": shared, "own": own}))
    second = saved(store, artifact({"shared": shared}))
    store.delete(first)
    assert torch.equal(store.load_artifact(second, "INT4").tensors["shared"], shared)
    assert store.doctor() == []
    store.delete(second)
    assert raw(tmp_path, "SELECT (SELECT count(*) FROM blobs), (SELECT count(*) FROM parts)") == [
        (0, 0)
    ]


def test_saving_a_precision_again_changes_nothing(store: Store) -> None:
    run_id = saved(store, artifact({"w": torch.zeros(2)}), artifact({"w": torch.ones(2)}))
    assert store.load_artifact(run_id, "INT4").tensors["w"].sum() == 0
    assert store.doctor() == []


def test_an_absent_artifact_is_a_user_error(store: Store) -> None:
    run_id = saved(store, artifact({"w": torch.zeros(2)}))
    for ask in ((run_id, "INT2"), (99, "INT4")):
        with pytest.raises(UserError) as caught:
            store.load_artifact(*ask)
        assert caught.value.code == "artifact_not_found"


def damaged_message(store: Store, run_id: int) -> str:
    with pytest.raises(UserError) as caught:
        store.load_artifact(run_id, "INT4")
    assert caught.value.code == "artifact_damaged"
    assert len(store.doctor()) == 1
    assert store.doctor()[0].startswith("Artifact data: ")
    return caught.value.message


def test_a_flipped_bit_is_named_by_tensor_part_and_digest(store: Store, tmp_path: Path) -> None:
    run_id = saved(store, artifact({"w": big_tensor()}))
    ((digest, sha256, data),) = raw(
        tmp_path, "SELECT blob_digest, sha256, data FROM parts WHERE position = 1"
    )
    flipped = bytearray(data)
    flipped[12345] ^= 4
    raw(tmp_path, "UPDATE parts SET data = ? WHERE position = 1", flipped)
    message = damaged_message(store, run_id)
    assert f"tensor w, part 2 of 3 of blob {digest} is damaged" in message
    assert f"expected {sha256}" in message


def test_a_missing_part_is_named_by_tensor_and_digest(store: Store, tmp_path: Path) -> None:
    run_id = saved(store, artifact({"w": big_tensor()}))
    ((digest,),) = raw(tmp_path, "SELECT blob_digest FROM parts WHERE position = 2")
    raw(tmp_path, "DELETE FROM parts WHERE position = 2")
    message = damaged_message(store, run_id)
    assert f"tensor w, part 3 of 3 of blob {digest} is missing" in message


def test_a_part_that_was_exchanged_with_its_own_digest_is_noticed(
    store: Store, tmp_path: Path
) -> None:
    run_id = saved(store, artifact({"a": torch.zeros(3), "b": torch.ones(3)}))
    one, other = raw(
        tmp_path, "SELECT blob_digest, sha256, data FROM parts WHERE length(data) = 12"
    )
    raw(
        tmp_path,
        "UPDATE parts SET sha256 = ?, data = ? WHERE blob_digest = ?",
        other[1],
        other[2],
        one[0],
    )
    assert f"the parts of blob {one[0]} are not the ones" in damaged_message(store, run_id)


def test_doctor_reports_a_blob_without_an_artifact_and_a_dangling_row(
    store: Store, tmp_path: Path
) -> None:
    saved(store, artifact({"w": torch.zeros(2)}))
    raw(tmp_path, "INSERT INTO blobs VALUES ('abc', 0)")
    raw(tmp_path, "INSERT INTO log (run_id, at, line) VALUES (77, 0, 'x')")
    problems = "\n".join(store.doctor())
    assert "abc belongs to no artifact" in problems
    assert "Table log, row 1 refers to nothing" in problems
