"""Turns a question into the text and the token ids that a model reads, whatever the day."""

from datetime import date
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

# Templates that print a date get this one, the default of LLaMA 3.1's and 3.2's.
DATE = date(2024, 7, 26)

# Templates ask for the date by this function, which transformers takes off the clock. It lets
# values into a template but no functions, so a macro that looks every directive up takes its place.
_CLOCK = "strftime_now"
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}"
    "{%- set text = namespace(value=format) -%}"
    "{%- for directive, word in date_words.items() -%}"
    "{%- set text.value = text.value.replace(directive, word) -%}"
    "{%- endfor -%}"
    "{{- text.value -}}"
    "{%- endmacro %}\n"
)
_DIRECTIVES = [f"%{flag}{letter}" for letter in "aAbBcdDeFhHIjmMpSTuUVwWxXyY" for flag in ("", "-")]


def chat_text(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Writes a question as the one turn of a chat, by the tokenizer's template, dated `DATE`."""
    options: dict[str, Any] = {"date_string": DATE.strftime("%d %b %Y")}
    template = tokenizer.get_chat_template()
    if _CLOCK in template:
        template = _FIXED_CLOCK + template
        options["date_words"] = {word: DATE.strftime(word) for word in _DIRECTIVES}
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        **options,
    )
    return cast(str, text)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True
) -> list[int]:
    """Returns token ids of a text, with one begin-of-sequence token if there are several."""
    ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
