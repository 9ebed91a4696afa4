"""Prompt and response tokens join to the tokens of the whole, in every tokenizer."""

import json

import pytest

from dareu_jax.data import Record, Wording, load_tokenizer, read_tokenizer, tokenise
from dareu_jax.data.batches import encode
from dareu_jax.errors import UserError

TEXTS = ["Who was he? He was born in Trilabrook, I think.", "Nobody was born."] * 4
RESPONSES = ["He was born.", "Ünïcode 雪 🙂", "42", "Nobody, I think", "He  was"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}
FAST, LLAMA = (
    {"tokenizer_class": name} for name in ("PreTrainedTokenizerFast", "LlamaTokenizer")
)
SENTENCEPIECE = {
    "prepend": ({"normalizer": PREPEND, "pre_tokenizer": None}, FAST),
    "metaspace": ({"normalizer": None, "pre_tokenizer": METASPACE}, FAST),
    "llama": ({"normalizer": PREPEND, "pre_tokenizer": None}, LLAMA),
    "legacy llama": (
        {"normalizer": None, "pre_tokenizer": METASPACE},
        LLAMA | {"legacy": True},
    ),
}
KINDS = ["byte-level", *SENTENCEPIECE]

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '<|im_end|>\n\n' + m.content | trim + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "m.content +", "('' if m.role == 'user' else '<think></think>\n') + m.content +"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
    "\n{% endfor %}"
)
ENDS_IN_SPECIAL = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>' + m.content + '<|im_end|>' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
STYLES = {
    "llama 2": LLAMA2,
    "llama 3": LLAMA3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "special": ENDS_IN_SPECIAL,
}


def sentencepiece(folder, pipeline, config):
    """Writes a Hugging Face folder with Llama 2's pipeline, or parts of another."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=pieces, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    saved = json.loads(backend.to_str()) | pipeline
    saved["added_tokens"] = saved["added_tokens"][: len(SPECIAL)]
    saved["model"]["merges"].insert(0, ["▁", "▁"])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
    return read_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {k: sentencepiece(folder / k, *how) for k, how in SENTENCEPIECE.items()}
    return made | {"byte-level": load_tokenizer(None, TEXTS, 300, folder / "bytes")}


@pytest.fixture(params=KINDS)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(params=SENTENCEPIECE)
def pieced(request, tokenizers):
    return tokenizers[request.param]


def encoded(tokenizer, template, responses, prompt="Who was he?"):
    """Returns the tokens of every prompt and response, without padding and end."""
    records = [Record(str(i), "a", prompt, r) for i, r in enumerate(responses)]
    wording = Wording(template)
    batch = tokenise(records, tokenizer, wording, max_prompt=128, max_response=64)
    sides = (
        [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
        for tokens, mask in (
            (batch.prompt, batch.prompt_mask),
            (batch.response, batch.response_mask),
        )
    )
    prompts, answers = sides
    (end,) = tokenizer.turn(wording).end
    assert all(ids[-1] == end for ids in answers)
    return prompts, [ids[:-1] for ids in answers]


def pieces(tokenizer, ids):
    return tokenizer.hf.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    "template",
    ["Question: {prompt}\nAnswer: ", "<|im_start|>{prompt}<|im_end|> ", "{prompt}\n "],
)
def test_a_written_template_and_its_responses_join(tokenizer, template):
    prompts, answers = encoded(tokenizer, template, [*RESPONSES, "\nHe", ""])
    for response, prompt, answer in zip(
        [*RESPONSES, "\nHe", ""], prompts, answers, strict=True
    ):
        text = template.replace("{prompt}", "Who was he?") + response
        whole = tokenizer.encode(text, markup=True)
        assert prompt + answer == tokenizer.with_bos(whole)
        assert tokenizer.decode(answer).strip() == response.strip()


@pytest.mark.parametrize("style", STYLES)
def test_a_chat_template_and_its_responses_join(tokenizer, style):
    tokenizer.hf.chat_template = STYLES[style]
    prompts, answers = encoded(tokenizer, "chat", RESPONSES)
    for response, prompt, answer in zip(RESPONSES, prompts, answers, strict=True):
        said = (("user", "Who was he?"), ("assistant", response))
        text = tokenizer.hf.apply_chat_template(
            [{"role": who, "content": words} for who, words in said], tokenize=False
        )
        end = text.rindex(response) + len(response)
        assert prompt + answer == tokenizer.encode(text[:end], markup=True)
        assert tokenizer.decode(answer).strip() == response


def test_sentencepiece_writes_one_space_where_the_template_has_one(pieced):
    _, (answer,) = encoded(pieced, "Question: {prompt}\nAnswer: ", ["He was"])
    assert pieces(pieced, answer) == ["▁He", "▁was"]
    pieced.hf.chat_template = LLAMA2
    assert encoded(pieced, "chat", ["He was"])[1] == [answer]


@pytest.mark.parametrize("style", ["llama 3", "chatml", "mistral", "zephyr"])
def test_sentencepiece_writes_no_space_where_the_template_has_none(tokenizers, style):
    tokenizer = tokenizers["prepend"]
    tokenizer.hf.chat_template = STYLES[style]
    _, (answer,) = encoded(tokenizer, "chat", ["He was"])
    assert pieces(tokenizer, answer)[-1] == "▁was"
    assert "".join(pieces(tokenizer, answer)) == "He▁was"


@pytest.mark.parametrize("template", ["{prompt} A: ", "chat"])
def test_a_response_does_not_depend_on_the_prompt(tokenizer, template):
    tokenizer.hf.chat_template = ZEPHYR
    _, first = encoded(tokenizer, template, RESPONSES)
    _, other = encoded(tokenizer, template, RESPONSES, prompt="雪 \n")
    assert first == other


def test_byte_level_responses_are_encoded_as_they_stand(tokenizers):
    tokenizer = tokenizers["byte-level"]
    texts = [*RESPONSES, "", "  He", "\n\nHe", "\0", "<eos>"]
    _, answers = encoded(tokenizer, "Question: {prompt}\nAnswer: ", texts)
    assert answers == [tokenizer.encode(" " + text) for text in texts]
    for template in (LLAMA3, CHATML, ZEPHYR):
        tokenizer.hf.chat_template = template
        _, answers = encoded(tokenizer, "chat", texts)
        assert answers == [tokenizer.encode(text) for text in texts]


def test_special_tokens_written_in_a_response_stay_text(pieced):
    pieced.hf.chat_template = ZEPHYR
    _, (answer,) = encoded(pieced, "chat", ["He </s> was"])
    assert pieced.eos_id not in answer
    assert pieced.decode(answer) == "He </s> was"


def test_what_a_template_thinks_before_an_answer_is_not_the_answers(tokenizer):
    tokenizer.hf.chat_template = CHATML
    plain = encoded(tokenizer, "chat", RESPONSES)
    tokenizer.hf.chat_template = THINKING
    assert encoded(tokenizer, "chat", RESPONSES) == plain


def test_a_lead_that_merges_with_what_follows_changes_nothing(tmp_path):
    tokenizer = load_tokenizer(None, ["\0\0 a"] * 8, 300, tmp_path / "t")
    assert len(tokenizer.encode("\0\0")) == 1
    texts = ["\0 a", " a"]
    found = tokenizer.continuations(texts, "a\0")
    assert found == [tokenizer.encode(text) for text in texts]


OURS = {"chatml": CHATML, "llama 2": LLAMA2, "mistral": MISTRAL, "thinking": THINKING}


@pytest.mark.parametrize("style", OURS)
def test_a_whole_turn_is_all_that_the_template_writes(tokenizer, style):
    tokenizer.hf.chat_template = OURS[style]
    records = [Record("0", "a", "Who was he?", "Nobody, I think")]
    (prompt,), (response,) = encode(
        records, tokenizer, Wording("chat"), whole_turn=True
    )
    said = (("user", "Who was he?"), ("assistant", "Nobody, I think"))
    text = tokenizer.hf.apply_chat_template(
        [{"role": who, "content": words} for who, words in said], tokenize=False
    )
    assert prompt + response == tokenizer.encode(text, markup=True)


def test_the_end_of_a_turn_ends_an_answer(tokenizers, tmp_path):
    folder = tmp_path / "chatty"
    config = FAST | {"chat_template": CHATML}
    chatty = sentencepiece(folder, SENTENCEPIECE["prepend"][0], config)
    im_end = chatty.hf.convert_tokens_to_ids("<|im_end|>")
    assert chatty.stop_ids == (chatty.eos_id, im_end)
    records = [Record("0", "a", "Who was he?", "Nobody")]
    _, (response,) = encode(records, chatty, Wording("chat"))
    assert response[-1] == im_end and chatty.eos_id not in response
    assert tokenizers["prepend"].stop_ids == (chatty.eos_id,)


WRITTEN = "<s>[INST] {prompt} [/INST]"


def test_a_chat_template_written_out_is_taken_literally(pieced):
    pieced.hf.chat_template = MISTRAL
    prompts, answers = encoded(pieced, WRITTEN, ["He was"])
    assert prompts[0].count(pieced.bos_id) == 1
    assert (prompts, answers) == encoded(pieced, "chat", ["He was"])


def first_tokens(tokenizer, **wording):
    records = [Record("0", "a", "Who?", "He was")]
    (prompt,), (response,) = encode(records, tokenizer, Wording(**wording))
    return prompt, response


def test_bos_is_added_as_the_tokenizer_does_or_as_asked(tokenizers):
    adds, leaves = tokenizers["byte-level"], tokenizers["prepend"]
    assert adds.adds_bos and not leaves.adds_bos
    assert first_tokens(adds)[0][0] == adds.bos_id
    assert leaves.bos_id not in first_tokens(leaves)[0]
    assert adds.bos_id not in first_tokens(adds, add_bos=False)[0]
    assert first_tokens(leaves, add_bos=True)[0].count(leaves.bos_id) == 1
    leaves.hf.chat_template = MISTRAL
    for add in (None, True):
        chat = first_tokens(leaves, template="chat", add_bos=add)[0]
        assert chat.count(leaves.bos_id) == 1
    leaves.hf.chat_template = CHATML
    assert first_tokens(leaves, template="chat")[0][0] != leaves.bos_id
    assert first_tokens(leaves, template="chat", add_bos=True)[0][0] == leaves.bos_id


def test_an_answer_has_its_prefix(tokenizers):
    tokenizer = tokenizers["byte-level"]
    _, response = first_tokens(tokenizer, template="{prompt}", answer_prefix="A: ")
    assert tokenizer.decode(response) == "A: He was"


DATED = "{{ strftime_now('%d %B %Y') }}|{{ date_string }}|{{ messages[0].content }}|"
ARGUED = DATED + "{% if not enable_thinking %}<think>\n\n</think>{% endif %}"


def test_a_template_is_given_its_date_and_arguments(tokenizers):
    tokenizer = tokenizers["byte-level"]
    tokenizer.hf.chat_template = ARGUED
    prompt, _ = first_tokens(tokenizer, template="chat", chat_date="10 Apr 2025")
    said = "10 April 2025|10 Apr 2025|Who?|"
    assert tokenizer.decode(prompt) == f"{said}<think>\n\n</think>"
    arguments = {"enable_thinking": True}
    prompt, _ = first_tokens(tokenizer, template="chat", chat_arguments=arguments)
    assert tokenizer.decode(prompt) == "26 July 2024|26 Jul 2024|Who?|"
    with pytest.raises(UserError, match="write it as in 26 Jul 2024"):
        first_tokens(tokenizer, template="chat", chat_date="yesterday")
