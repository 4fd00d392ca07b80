"""An answer that follows each type of instruction, one that does not, and the reason that is given for it."""

from __future__ import annotations

from typing import Any

from upq.evaluation.ifeval import CheckPrompt

ENGLISH = "The weather was lovely this morning and the children walked to the river."
GERMAN = "Heute Morgen war das Wetter schön und die Kinder gingen langsam zum Fluss."
#: Instruction type -> (arguments, answer that follows, answer that does not, the latter's reason)
EXAMPLES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "A big STORM is here.",
        "a STORM is here.",
        "found 1 word in capital letters, expected at least 2",
    ),
    "change_case:english_capital": (
        {},
        ENGLISH.upper(),
        ENGLISH.upper() + " yes",
        "found 3 small letters, expected English in capital letters only",
    ),
    "change_case:english_lowercase": (
        {},
        ENGLISH.lower(),
        ENGLISH,
        "found 1 capital letter, expected English in small letters only",
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Name a bird."},
        "name a bird. A robin.",
        "A robin.",
        "found 'A robin.' at the start, expected 'Name a bird.'",
    ),
    "combination:two_responses": (
        {},
        "Rex\n******\nBello",
        "Rex ****** Rex",
        "found the same answer twice, expected 2 different ones separated by ******",
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "Dear [name], meet me at [place].",
        "Dear [name], meet me.",
        "found 1 placeholder, expected at least 2",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        "Yours, Ann\n\nP.S. Call me.",
        "Yours, Ann\n\nPS Call me.",
        "found no postscript, expected one starting with 'P.S.'",
    ),
    "detectable_format:constrained_response": (
        {},
        "My answer is yes.",
        "Yes.",
        "found 'Yes.', expected one of 'My answer is yes.', 'My answer is no.', "
        "'My answer is maybe.'",
    ),
    "detectable_format:json_format": (
        {},
        '```json\n{"name": "Ann"}\n```',
        '{"name": Ann}',
        "found invalid JSON (Expecting value at line 1 column 10), expected nothing but valid JSON",
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nBoil water.\nSection 2\nAdd tea.",
        "Section 1\nBoil water.",
        "found 1 section, expected at least 2 marked 'Section 1' and so on",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        "* apple\n- pear",
        "* apple\n* pear\n* plum",
        "found 3 bullets, expected 2",
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "The *sea* is *blue*.",
        "The *sea* is blue.",
        "found 1 highlighted part, expected at least 2",
    ),
    "detectable_format:title": (
        {},
        "<<Moon>>\nIt shines.",
        "<<>>\nIt shines.",
        "found no title, expected one in double angular brackets, <<like this>>",
    ),
    "keywords:existence": (
        {"keywords": ["apple", "basket"]},
        "An Apple in a basket.",
        "An apple.",
        "found no 'basket', expected all of 'apple', 'basket'",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["dog", "cat"]},
        "Dogs bark.",
        "A Dog barks.",
        "found 'dog', expected none of 'cat', 'dog'",
    ),
    "keywords:frequency": (
        {"keyword": "good", "frequency": 2, "relation": "less than"},
        "A good meal.",
        "Good, good meal.",
        "found 'good' 2 times, expected less than 2",
    ),
    "keywords:letter_frequency": (
        {"letter": "z", "let_frequency": 3, "let_relation": "at least"},
        "Zebras zigzag.",
        "Zebras zip.",
        "found the letter 'z' 2 times, expected at least 3",
    ),
    "language:response_language": (
        {"language": "de"},
        GERMAN,
        ENGLISH,
        "found English, expected German",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        "It rains.\n\nHowever, it is warm.",
        "It rains.\n\nIt is warm.",
        "found 2 paragraphs, paragraph 2 starting with 'It', "
        "expected 2, paragraph 2 starting with 'however'",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "Waves.\n***\nDepths.",
        "Waves.\n\nDepths.",
        "found 1 paragraph, expected 2 divided by ***",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"},
        "It rains. We stay.",
        "It rains.",
        "found 1 sentence, expected at least 2",
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "less than"},
        "A place apart.",
        "A place for books.",
        "found 4 words, expected less than 4",
    ),
    "punctuation:no_comma": (
        {},
        "It is warm and dry.",
        "Warm, dry, calm.",
        "found 2 commas, expected none",
    ),
    "startend:end_checker": (
        {"end_phrase": "Enjoy your meal!"},
        "Boil it. Enjoy your meal!",
        "Enjoy your meal! Bye.",
        "found 'Enjoy your meal! Bye.' at the end, expected 'Enjoy your meal!'",
    ),
    "startend:quotation": (
        {},
        '"Ahoy!"',
        '"Ahoy!',
        "found '\"' at the start and '!' at the end, expected one \" at each",
    ),
}


def prompt_with(*instructions: tuple[str, dict[str, Any]], key: int = 1) -> CheckPrompt:
    return CheckPrompt(
        key=key,
        prompt="Say something.",
        instruction_ids=tuple(instruction_id for instruction_id, _ in instructions),
        kwargs=tuple(kwargs for _, kwargs in instructions),
    )
