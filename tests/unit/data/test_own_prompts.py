"""Prompts that the teacher writes itself: where they begin, which are kept, and that they are written once."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHATML, SPECIAL_TOKENS, chatting
from tests.support.helpers import RecordingContext, Stop, stop_after, tiny_config
from upq import data
from upq.data import Example, dataset
from upq.data.own_prompts import new_prompts, normalised, prompt_of, user_turn
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids

ROLES = ["system", "user", "assistant"]
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endfor %}"
)
END = SPECIAL_TOKENS.index("<|im_end|>")
DEFAULT_SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n"


def words_tokenizer() -> PreTrainedTokenizerFast:
    """As many tokens as the tiny model has, each of them a word."""
    words = [*SPECIAL_TOKENS, *ROLES, *(f"word{number}" for number in range(253))]
    backend = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, "<|endoftext|>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return chatting(backend)


@pytest.fixture
def worded(tiny: LoadedModel) -> LoadedModel:
    """The tiny model writing words, which every 20 tokens or so it ends."""
    tiny.model.generation_config.eos_token_id = [END, *range(250, 262)]
    return replace(tiny, tokenizer=words_tokenizer())


def decoded(worded: LoadedModel, made: list[Example]) -> list[str]:
    """The rendered prompts of examples."""
    return [str(worded.tokenizer.decode(list(one.ids[: one.counted_from]))) for one in made]


def written(worded: LoadedModel, context: RecordingContext, count: int, folder: Path) -> list[str]:
    """The prompts of the training examples, those of the source first."""
    config = tiny_config(folder, data__own_prompts=count, data__sequence_tokens=160)
    made = data.build(config, worded, context)
    return decoded(worded, made.train)


def test_a_user_turn_begins_and_ends_where_the_template_says(tiny: LoadedModel) -> None:
    tokenizer = tiny.tokenizer
    turn = user_turn(tokenizer)
    assert tokenizer.decode(list(turn.header)) == "<|im_start|>user\n"
    assert turn.ends == {END}
    assert turn.end_text == ""
    for template, header, end_text in (
        (f"{{{{ '{DEFAULT_SYSTEM}' }}}}{CHATML}", f"{DEFAULT_SYSTEM}<|im_start|>user\n", ""),
        (LLAMA2, "<|im_start|>[INST]", "[/INST]"),
    ):
        tokenizer.chat_template = template
        turn = user_turn(tokenizer)
        assert tokenizer.decode(list(turn.header)) == header
        assert turn.end_text == end_text


@pytest.mark.parametrize("before", ["", "{{ bos_token }}"])
def test_a_template_without_a_user_header_is_refused(tiny: LoadedModel, before: str) -> None:
    tiny.tokenizer.chat_template = before + "{{ messages[0]['content'] }}{{ eos_token }}"
    with pytest.raises(UserError) as caught:
        user_turn(tiny.tokenizer)
    assert caught.value.code == "no_user_header"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Why is it so?<|im_end|>", "Why is it so?"),
        ("  Why is\nit so?\n<|im_end|>", "Why is\nit so?"),
        ("为什么天是蓝的<|im_end|>", "为什么天是蓝的"),
        ("Why is it so?", ""),
        ("Why me?<|im_end|>", ""),
        ("<|im_end|>", ""),
        ("row row row your boat row row row row<|im_end|>", ""),
        ("Why is <|im_start|>it so?<|im_end|>", ""),
        ("Why is it \ufffd so?<|im_end|>", ""),
    ],
)
def test_only_a_complete_prompt_of_some_words_is_kept(
    tiny: LoadedModel, text: str, prompt: str
) -> None:
    tokenizer = tiny.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert prompt_of(tokenizer, user_turn(tokenizer), ids, {END}) == prompt


def test_a_turn_that_ends_with_text_is_cut_there(tiny: LoadedModel) -> None:
    tiny.tokenizer.chat_template = LLAMA2
    turn = user_turn(tiny.tokenizer)
    for text, prompt in (("Why is it so? [/INST] Because", "Why is it so?"), ("Why is it so?", "")):
        ids = tiny.tokenizer(text, add_special_tokens=False).input_ids
        assert prompt_of(tiny.tokenizer, turn, ids, set()) == prompt


def test_prompts_that_differ_in_case_and_signs_are_kept_once_and_known_ones_never() -> None:
    texts = ["Why is it?", "why is IT", "", "How are you?", "And then what?", "One more please"]
    asked: list[tuple[range, int]] = []

    def draw(numbers: range, kept: int) -> list[str]:
        asked.append((numbers, kept))
        return [texts[number % len(texts)] for number in numbers]

    assert new_prompts(2, 3, ["How are you"], draw) == ["Why is it?", "And then what?"]
    assert asked == [(range(3), 0), (range(3, 6), 1)]
    assert new_prompts(9, 6, ["How are you"], draw) == [texts[0], texts[4], texts[5]]
    assert asked[-1][0].stop == 90
    with pytest.raises(UserError) as caught:
        new_prompts(9, 6, texts, draw)
    assert caught.value.code == "no_own_prompts"
    assert new_prompts(0, 6, texts, draw) == []


def test_own_prompts_are_answered_beside_those_of_the_source_and_written_once(
    worded: LoadedModel, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = RecordingContext(tmp_path)
    prompts = written(worded, context, 7, tiny_model_dir)
    own = prompts[6:]
    assert len(own) == 7
    pattern = r"<\|im_start\|> user( \w+){3,} <\|im_end\|> <\|im_start\|> assistant"
    assert all(re.fullmatch(pattern, one) for one in own)
    assert len(set(map(normalised, own))) == 7
    assert prompts[:6] == written(worded, RecordingContext(tmp_path), 0, tiny_model_dir)
    assert "data: the FP16 model wrote 7 prompts of 7" in context.lines
    [(_, total)] = context.stages
    assert total == 3 + 6 + 2 * 7 == context.steps[-1][1]
    steps = [step for _, step in context.steps]
    assert steps == sorted(steps)

    monkeypatch.setattr(dataset, "answers", lambda *_, **__: pytest.fail("generated again"))
    assert written(worded, context, 7, tiny_model_dir) == prompts


def test_more_own_prompts_begin_with_the_same_and_another_seed_gives_others(
    worded: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    few = written(worded, RecordingContext(tmp_path), 4, tiny_model_dir)
    many = written(worded, RecordingContext(tmp_path), 30, tiny_model_dir)
    assert many[: len(few)] == few
    config = tiny_config(tiny_model_dir, data__own_prompts=4, seed=1)
    made = data.build(config, worded, RecordingContext(tmp_path)).train
    assert not set(few[6:]) & set(decoded(worded, made)[6:])


def test_an_own_prompt_is_never_a_held_out_one(
    worded: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    own = written(worded, RecordingContext(tmp_path), 4, tiny_model_dir)[6:]
    held_out = re.findall(r"user (.*) <\|im_end\|>", own[0])[0].upper() + "?"
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "{held_out}"}}\n{{"prompt": "word1 word2 word3"}}\n')
    config = tiny_config(
        tiny_model_dir, data__own_prompts=4, data__sequence_tokens=160,
        data__source="file", data__path=str(path), data__held_out=1,
    )  # fmt: skip
    made = data.build(config, worded, RecordingContext(tmp_path))
    trained = decoded(worded, made.train)
    assert own[0] not in trained
    assert own[1] in trained


def test_a_cancel_is_seen_while_the_teacher_writes_prompts_and_whole_batches_stay(
    worded: LoadedModel, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "ANSWER_BATCH", 8)
    whole = RecordingContext(tmp_path)
    prompts = written(worded, whole, 20, tiny_model_dir)
    stopped = RecordingContext(tmp_path, stop_after(200))
    with pytest.raises(Stop):
        written(worded, stopped, 20, tiny_model_dir)
    assert 2 < len(stopped.saved_answers) < len(whole.saved_answers)
    stopped.stop = lambda: None
    assert written(worded, stopped, 20, tiny_model_dir) == prompts
    assert stopped.saved_answers == whole.saved_answers


def test_a_run_that_trains_on_nothing_writes_no_prompts(
    worded: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    context = RecordingContext(tmp_path)
    data.build(tiny_config(tiny_model_dir, "rtn", data__own_prompts=4), worded, context)
    assert len(context.saved_answers) == 1, "the held-out batch"


def test_chat_ids_of_an_own_prompt_begin_with_the_header(bundled: LoadedModel) -> None:
    header = user_turn(bundled.tokenizer).header
    asked = chat_ids(bundled.tokenizer, [{"role": "user", "content": "Why is it so?"}])
    assert tuple(asked[: len(header)]) == header
    assert len(header) > 20, "with the default system prompt"
