"""Questions and answers as the tokens that open-unlearning counts."""

import types

from dareu_jax.data import Wording, load_tokenizer
from dareu_jax.evaluation.suites.measure import Reading, encoded

CHATML = (
    "{% for m in messages %}<eos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<eos>assistant\n{% endif %}"
)


def test_what_a_template_writes_behind_an_answer_is_part_of_it(tmp_path):
    tokenizer = load_tokenizer(
        None, ["Who was he? He was born."] * 4, 300, tmp_path / "t"
    )
    tokenizer.hf.chat_template = CHATML
    model = types.SimpleNamespace(tokenizer=tokenizer)
    reading = Reading(Wording("chat"))
    (prompt,), (answer,) = encoded(model, reading, [("Who was he?", "He was born")])
    said = [("user", "Who was he?"), ("assistant", "He was born")]
    whole = tokenizer.hf.apply_chat_template(
        [{"role": who, "content": text} for who, text in said], tokenize=False
    )
    assert prompt + answer == tokenizer.encode(whole, markup=True)
    assert answer[-2:] == [tokenizer.eos_id, *tokenizer.encode("\n")]
