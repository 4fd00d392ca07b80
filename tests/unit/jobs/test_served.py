"""Models are loaded once, kept a few at a time, and know their size."""

from pathlib import Path

import pytest

from tests.support.grids import GRIDS
from tests.support.helpers import tiny_config
from upq.artifact import assembly
from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs import Models
from upq.jobs import served as serve
from upq.jobs.served import KEPT
from upq.models import LoadedModel, chat_ids, plan_layers
from upq.models import load as load_model
from upq.store import Store


def stored_run(store: Store, loaded: LoadedModel, folder: Path) -> int:
    """A run with both artifacts, rounded to nearest."""
    config = tiny_config(folder)
    run_id = store.enqueue(config)
    run = store.claim("cpu@here:1", 1, 60.0)
    assert run is not None
    for name, grid in GRIDS.items():
        packed = {}
        for one in plan_layers(loaded.model, 32):
            weight = loaded.model.get_parameter(f"{one.name}.weight")
            packed[one.name] = grid.pack(weight, *grid.fit(weight, 32))
        store.lease(run).save_artifact(assembly.build(name, packed, loaded, config))
    store.lease(run).finish("done")
    return run_id


def test_each_precision_is_loaded_once_and_knows_its_size(
    store: Store, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    run_id = stored_run(store, tiny, tiny_model_dir)
    models = Models(store)
    served = {
        name: models.get(run_id, name, str(tiny_model_dir)) for name in ("FP16", "INT4", "INT2")
    }
    for name, one in served.items():
        assert models.get(run_id, name, str(tiny_model_dir)) is one
        assert one.precision == name
        assert one.memory_bytes > 0
        assert one.load_s > 0
        assert one.device == "cpu"
    assert [one.bits_per_weight for one in served.values()] == [16.0, 4.5, 2.5]
    assert served["FP16"].size_bytes == 2 * tiny.info.parameters
    (kept,) = [one for one in store.artifacts(run_id) if one.precision == "INT2"]
    assert served["INT2"].size_bytes == kept.size_bytes
    memory = [one.memory_bytes for one in served.values()]
    assert memory == sorted(memory, reverse=True)
    assert "INT2" in served["INT2"].backend
    assert "INT" not in served["FP16"].backend


def test_the_one_asked_for_least_recently_makes_room(
    store: Store, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    source = str(tiny_model_dir)
    models, first = Models(store), stored_run(store, tiny, tiny_model_dir)
    kept = [models.get(first, name, source) for name in ("FP16", "INT4", "INT2")]
    runs = [stored_run(store, tiny, tiny_model_dir) for _ in range(KEPT - 2)]
    models.get(None, "FP16", source)
    for run in runs:
        models.get(run, "INT4", source)
    assert models.get(first, "FP16", source) is kept[0], "used since"
    assert models.get(first, "INT4", source) is not kept[1], "dropped"


def test_what_does_not_exist_is_refused(store: Store, tiny_model_dir: Path) -> None:
    models = Models(store)
    for run_id, code in ((None, "artifact_not_found"), (7, "run_not_found")):
        with pytest.raises(UserError) as caught:
            models.get(run_id, "INT2", str(tiny_model_dir))
        assert caught.value.code == code


def test_a_model_of_a_deleted_run_is_not_there_though_it_is_in_memory(
    store: Store, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    models, run_id = Models(store), stored_run(store, tiny, tiny_model_dir)
    models.get(run_id, "INT2", "")
    store.delete(run_id)
    with pytest.raises(UserError) as caught:
        models.get(run_id, "INT2", "")
    assert caught.value.code == "run_not_found"


def test_the_reference_of_a_run_is_the_revision_that_it_quantized(
    store: Store, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def load(source: str, *, revision: str | None = None) -> LoadedModel:
        asked.append(revision)
        return load_model(source)

    monkeypatch.setattr(serve.loading, "load", load)
    source = str(tiny_model_dir)
    old = store.enqueue(tiny_config(tiny_model_dir, model__revision="v1"))
    new = store.enqueue(tiny_config(tiny_model_dir))
    models = Models(store)
    first = models.get(old, "FP16", source)
    assert models.get(new, "FP16", source) is not first
    assert models.get(None, "FP16", source) is models.get(new, "FP16", source)
    assert asked == ["v1", None]


def test_an_answer_is_held_for_the_next_turn_and_nothing_that_nobody_reads_takes_its_place(
    store: Store, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    run_id = stored_run(store, tiny, tiny_model_dir)
    served = Models(store).get(run_id, "INT4", str(tiny_model_dir))
    asked, decoding = [{"role": "user", "content": "Hello"}], Decoding(max_new_tokens=8)
    *_, last = served.answer(asked, decoding)
    held = [*chat_ids(tiny.tokenizer, asked), *last.ids[:-1]]
    list(served.write([{"role": "user", "content": "Bye"}], decoding))
    assert served.time_alone(lambda: False) is not None
    with served.reader() as reader:
        assert reader.held == held
