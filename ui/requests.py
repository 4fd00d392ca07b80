"""What a program may ask: the arguments of each endpoint with type, range, default and meaning, and the one sentence
that refuses any other value.

The page asks in the same words where it does the same, so a chat and a check are judged in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from upq.compare import MOST_TOKENS
from upq.config import (
    DEFAULT_METHOD,
    METHODS,
    PRECISIONS,
    PRESETS,
    SUITES,
    PrecisionName,
)
from upq.decode import DECODING_RANGES, Decoding
from upq.errors import UserError, shown
from upq.export import FORMATS
from upq.store import MOST_KEPT, NAME_CHARACTERS, NOTE_CHARACTERS, SEARCH_CHARACTERS

R = TypeVar("R", bound="Request")
QuantizedName = Literal["INT4", "INT2"]
#: The largest whole number that SQLite and a seed take.
LARGEST = 2**63 - 1
#: The longest message or system prompt, the longest settings, and the longest path that Linux takes. Characters.
MAX_MESSAGE, MAX_SETTINGS, MAX_PATH = 20_000, 20_000, 4096
#: More prompts, chunks or questions per subject than any suite has.
MAX_AMOUNT = 10_000


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _said(message: str) -> str:
    """The message without outer blanks."""
    if not (message := message.strip()):
        raise UserError("empty_message", "The message is empty.", "Write something to answer.")
    return message


def _between(low: float, high: float, meaning: str) -> Any:
    return Field(ge=low, le=high, allow_inf_nan=False, description=meaning)


def _drawn(setting: str, meaning: str) -> Any:
    low, high = DECODING_RANGES[setting]
    return _between(low, high, meaning)


def _text(longest: int, meaning: str) -> Any:
    return Field(max_length=longest, description=meaning)


def _one_of(choices: Sequence[str], meaning: str) -> Any:
    """A name out of choices, which the config that it goes into compares it with."""
    return Field(description=meaning, json_schema_extra={"enum": list(choices)})


class Request(BaseModel):
    """The arguments of an endpoint, in their order. The docstring of a subclass says what the endpoint does."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="forbid")

    @classmethod
    def of(cls: type[R], values: Mapping[str, Any]) -> R:
        """Read arguments by name; missing ones take their defaults. Raises UserError("bad_argument")."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
        raise UserError("bad_argument", cls._refusal(str(first["loc"][0]), first["type"], values))

    @classmethod
    def at(cls: type[R], values: Sequence[Any]) -> R:
        """Read arguments by place, as `of` does."""
        names = list(cls.model_fields)
        if len(values) > len(names):
            raise UserError(
                "bad_argument", f"Too many values, {len(values)}; expected {_list(names)}."
            )
        return cls.of(dict(zip(names, values, strict=False)))

    @classmethod
    def expected(cls, name: str) -> str:
        """Say which values an argument takes."""
        return _words(cls.model_json_schema()["properties"][name])

    @classmethod
    def _refusal(cls, name: str, kind: str, values: Mapping[str, Any]) -> str:
        if kind == "extra_forbidden":
            return f"There is no argument {shown(name)}; expected {_list(list(cls.model_fields))}."
        if kind == "missing":
            return f"{name} is missing; expected {cls.expected(name)}."
        found = f"is {shown(values[name])}"
        if kind == "string_too_long":
            found = f"has {len(values[name]):,} characters"
        if kind == "string_unicode":
            found = "holds half of a character (a lone surrogate)"
        return f"{name} {found}; expected {cls.expected(name)}."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _words(schema: Mapping[str, Any]) -> str:
    """Say in words which values a JSON schema allows. Whatever a request takes is bounded."""
    if "enum" in schema:
        return f"one of {_list(schema['enum'])}"
    if schema["type"] == "array":
        return f"a list of {_list(schema['items']['enum'])}"
    if schema["type"] == "string":
        return f"text of at most {schema['maxLength']:,} characters"
    number = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{number} from {schema['minimum']} to {schema['maximum']}"


class StartRun(Request):
    """Queue a quantization run."""

    model: Annotated[
        str, _text(MAX_PATH, "`bundled`, a Hugging Face hub id, a local folder or a GGUF file")
    ] = "bundled"
    method: Annotated[str, _one_of(METHODS, "how the model is quantized")] = DEFAULT_METHOD
    preset: Annotated[str, _one_of(PRESETS, "how much is done for it")] = "quick"
    settings_json: Annotated[
        str,
        _text(MAX_SETTINGS, 'JSON object of dotted settings, e.g. {"int2.distill.tokens": 4000}'),
    ] = "{}"
    name: Annotated[str, _text(NAME_CHARACTERS, "what to call the run")] = ""
    note: Annotated[str, _text(NOTE_CHARACTERS, "what to remember of it, some lines")] = ""


class OfRun(Request):
    """What is asked of a run."""

    run_id: Annotated[int, _between(0, LARGEST, "the number of the run"), BeforeValidator(_whole)]


class RunStatus(OfRun):
    """State, progress, errors, artifacts and measurements of a run."""


class CancelRun(OfRun):
    """Ask a run to stop; its checkpoint is kept. Returns a sentence."""


class ResumeRun(OfRun):
    """Queue a failed, cancelled or interrupted run again. Returns a sentence."""


class ListRuns(Request):
    """The newest 100 runs, newest first."""


class Votes(OfRun):
    """What the blind votes on a run say, pair by pair; share, low and high are of the first among the decided votes."""


class Question(Request):
    """What is said to a model, and how its answer is drawn."""

    message: Annotated[str, _text(MAX_MESSAGE, "what the user says"), AfterValidator(_said)]
    system: Annotated[str, _text(MAX_MESSAGE, "system prompt; empty for the model's default")] = ""
    max_tokens: Annotated[
        int, _drawn("max_new_tokens", "longest answer, tokens"), BeforeValidator(_whole)
    ] = 256
    temperature: Annotated[float, _drawn("temperature", "0 is greedy")] = 0.0
    top_p: Annotated[float, _drawn("top_p", "nucleus share; 1 keeps every token")] = 1.0
    seed: Annotated[int, _drawn("seed", "seed of the sampling"), BeforeValidator(_whole)] = 0
    repetition_penalty: Annotated[
        float, _drawn("repetition_penalty", "above 1 repeats less; 1 is off")
    ] = 1.0

    @property
    def decoding(self) -> Decoding:
        """How the answer is drawn."""
        return Decoding(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
        )


class ListConversations(Request):
    """The conversations that are kept, newest first: how many there are in all, and the first of them."""

    search: Annotated[
        str, _text(SEARCH_CHARACTERS, "only those whose title, questions or answers hold this")
    ] = ""
    limit: Annotated[
        int, _between(1, MOST_KEPT, "conversations at most"), BeforeValidator(_whole)
    ] = 50


class OneConversation(Request):
    """A kept conversation: its models, and each question with its settings and the answers of the precisions."""

    conversation: Annotated[
        int, _between(1, LARGEST, "the number of the conversation"), BeforeValidator(_whole)
    ]


class OfModel(OfRun):
    """What is asked of one precision of a run."""

    precision: Annotated[PrecisionName, Field(description="which model of the run answers")]


class Chat(Question, OfModel):
    """Stream the answer of one precision of a run (0: the bundled model) to one message."""


class Compare(Question, OfRun):
    """Let the models of a run read one of their answers to a message, token by token, and judge what it asks for."""

    max_tokens: Annotated[
        int, _between(1, MOST_TOKENS, "longest answer, tokens"), BeforeValidator(_whole)
    ] = 256
    answer_of: Annotated[PrecisionName, Field(description="whose answer all of them read")] = "FP16"
    precisions: Annotated[
        list[PrecisionName],
        Field(
            description="which models read it; FP16 always does, those that are not there do not"
        ),
    ] = list(PRECISIONS)


class ListExports(OfRun):
    """The formats in which a model of a run can leave: what each would make of it, or why it cannot hold it."""

    precision: Annotated[QuantizedName, Field(description="which model of the run")]


class MakeExport(ListExports):
    """Make the files of a model in a format, if they are not there yet, and tell where they are and how to use them."""

    format: Annotated[
        str,
        _one_of([form.key for form in FORMATS], "its key in `list_exports`"),
    ]


class RunChecks(OfRun):
    """Queue a check of a run (0: of the bundled FP16 model); `run_status` tells when it is done."""

    suite: Annotated[str, _one_of(SUITES, "what the models are asked")] = "builtin"
    path: Annotated[
        str,
        _text(
            MAX_PATH,
            "a local file of the suite; empty: the folder that UPQ_DATA names, else the hub",
        ),
    ] = ""
    amount: Annotated[
        int,
        _between(
            0,
            MAX_AMOUNT,
            "prompts at most; of `mmlu` questions per subject, of `wikitext2` chunks; 0: all",
        ),
        BeforeValidator(_whole),
    ] = 60
    max_tokens: Annotated[
        int, _drawn("max_new_tokens", "longest answer, tokens"), BeforeValidator(_whole)
    ] = 256
    precisions: Annotated[
        list[PrecisionName],
        Field(description="which models take part; those that the run has not are left out"),
    ] = list(PRECISIONS)
    seed: Annotated[
        int,
        _between(
            0, LARGEST, "seed of the questions of MMLU and of the verdicts that draw at random"
        ),
        BeforeValidator(_whole),
    ] = 0
