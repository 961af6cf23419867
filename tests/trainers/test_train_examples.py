"""Training examples: the exact token ids of prompts and targets, and batches of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.tiny_models import CHATML, NO_SYSTEM, tiny_tokenizer
from helpers.training_rows import ask, make_encoder
from helpers.training_runs import SHORT
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ChatError, ConfigError, TemplateError
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Chat, Message
from trainers.fitting.batching import Collator, LengthGroupedSampler
from trainers.fitting.examples import MASK, Encoder, Example
from trainers.fitting.model import load_tokenizer
from trainers.rows.samples import Sample
from trainers.train import run_training


def test_exact_ids_and_labels_of_an_example_without_drafts():
    example, cut = make_encoder().encode(Sample(ask("hi"), (), "yo", "here"))
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    y, o, end = (tokenizer.convert_tokens_to_ids(token) for token in ("y", "o", "<|im_end|>"))
    assert list(example.token_ids) == [*prompt, y, o, end]
    assert example.labels == [MASK] * len(prompt) + [y, o, end]
    assert not cut


@pytest.mark.parametrize("chat_template", [CHATML, NO_SYSTEM, None])
def test_training_prompts_are_inference_prompts(chat_template):
    encoder = make_encoder(chat_template=chat_template)
    # An engine makes its renderer from the saved tokenizer in the same way.
    renderer = TokenizerRenderer(encoder.renderer.tokenizer)
    chat, drafts = Chat((Message("system", "Be brief."), Message("user", "What is 2 + 2?"))), ("4, surely.", "It is 5.")
    for sample, prompt in (
        (Sample(chat, drafts, "4", ""), aggregate_prompt(encoder.template, renderer, chat, drafts, 2000, final=True)),
        (Sample(chat, (), "4", ""), draft_prompt(encoder.template, renderer, chat, 2000, final=True)),
    ):
        example, _ = encoder.encode(sample)
        assert example.token_ids[: example.prompt_tokens] == prompt.prompt.token_ids
        assert example.labels[example.prompt_tokens :] == [*renderer.tokenizer.encode("4"), encoder.end_id]


def test_the_engine_asks_what_was_trained(config, tmp_path):
    """The prompt ids of the hf engine for a saved checkpoint are the prompt ids of the training example."""
    from lm_eval_aft.core.prompts import aggregate_prompt
    from lm_eval_aft.core.records import Chat, Message
    from lm_eval_aft.engines.hf.engine import HFEngine
    from trainers.fitting.examples import Encoder
    from trainers.rows.samples import Sample

    run_training("aft", replace(config, lora_rank=0, max_steps=1))
    engine = HFEngine.load({"pretrained": config.output, "dtype": "float32"}, HostArgs("auto", None, "cpu"))
    chat, drafts = Chat((Message("user", "3 + 1?"),)), ("3", "4")
    prompt = aggregate_prompt(Template(SHORT, ""), engine.renderer, chat, drafts, 500, final=True)
    encoder = Encoder(load_tokenizer(config), Template(SHORT, ""), 500)
    example, _ = encoder.encode(Sample(chat, drafts, "4", ""))
    assert example.token_ids[: example.prompt_tokens] == prompt.prompt.token_ids


def test_a_tokenizer_without_chat_template_gets_one_that_ends_turns():
    encoder = make_encoder(chat_template=None)
    assert encoder.renderer.render(ask("hi")) == "### User\nhi\n\n### Assistant\n"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = encoder.renderer.tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "### User\nhi\n\n### Assistant\nyo<|im_end|>\n\n"
    assert encoder.renderer.turn_end_ids == {encoder.end_id}


def test_white_space_that_a_chat_template_puts_before_answers_is_learnt():
    bracket = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}"
        "{% if not (continue_final_message is defined and continue_final_message) %}<|im_end|>{% endif %}"
        "{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    example, _ = make_encoder(chat_template=bracket).encode(Sample(ask("hi"), (), "yo", "here"))
    assert list(example.token_ids) == tiny_tokenizer().encode("[hi] yo<|im_end|>")


def test_drafts_are_cut_to_fit_and_targets_never():
    sample = Sample(ask("hi"), ("a" * 300, "b" * 300), "c" * 200, "here")
    tight = make_encoder(max_length=1100)
    example, cut = tight.encode(sample)
    assert cut
    assert len(example.token_ids) <= 1100
    assert len(example.token_ids) - example.prompt_tokens == 201
    short = Sample(ask("hi"), (), "yo", "here")
    encoded = make_encoder(max_length=150).encode_all([sample, short])
    assert (len(encoded.examples), encoded.too_long, encoded.cut) == (1, 1, 0)
    with pytest.raises(ConfigError, match="none of the 1 examples fits max_length=150: raise max_length"):
        make_encoder(max_length=150).encode_all([sample])


def test_targets_that_cannot_be_learnt_are_refused():
    with pytest.raises(ConfigError, match="the target of here has no tokens: every token would be masked"):
        make_encoder().encode(Sample(ask("hi"), (), " ", "here"))
    with pytest.raises(ConfigError, match="the target of here holds a control token"):
        make_encoder().encode(Sample(ask("hi"), (), "yo<|im_end|>no", "here"))


def test_templates_that_drop_the_drafts_or_the_question_are_refused():
    silent = Template("{% block draft %}{% endblock %}{% block aggregate %}Do better.{% endblock %}", "silent.j2")
    with pytest.raises(TemplateError, match=r"silent.j2 and the tokenizer's chat template does not show the drafts"):
        make_encoder(template=silent)
    deaf = "{% for m in messages %}{% if m['role'] != 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="does not show the user message"):
        make_encoder(chat_template=deaf)


def test_a_row_that_the_chat_template_refuses_is_named():
    alternating = "{% if messages | length > 4 %}{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML
    encoder = make_encoder(chat_template=alternating)
    chat = Chat(tuple(Message("user", text) for text in "abcde"))
    with pytest.raises(ChatError, match=r"d row 7 is refused by the model's chat template .*roles must alternate"):
        encoder.encode_all([Sample(ask("hi"), (), "yo", "d row 6"), Sample(chat, (), "yo", "d row 7")])


def test_a_tokenizer_without_end_is_refused():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token: set its eos_token"):
        Encoder(tokenizer, Template.load(None), 100)


def test_a_batch_holds_the_labels_from_the_first_target_on():
    examples = [Example((5, 6, 7, 8, 9), 3), Example((5, 6, 7), 2)]
    batch = Collator(0, trims_logits=True)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]]
    # Logits begin at position 1, which predicts the first target.
    assert batch["logits_to_keep"] == 4
    assert batch["labels"].tolist() == [[MASK, MASK, 8, 9], [MASK, 7, MASK, MASK]]
    whole = Collator(0, trims_logits=False)(examples)
    assert whole["labels"].tolist() == [[MASK, MASK, MASK, 8, 9], [MASK, MASK, 7, MASK, MASK]]
    assert "logits_to_keep" not in whole


def test_neighbours_have_similar_lengths_but_batches_come_in_any_order():
    lengths = [(7 * n) % 400 for n in range(403)]
    sampler = LengthGroupedSampler(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(403))
    batches = [[lengths[i] for i in order[s : s + 4]] for s in range(0, 400, 4)]
    assert max(max(batch) - min(batch) for batch in batches) < 60
    firsts = [batch[0] for batch in batches[:50]]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))
    sampler.set_epoch(1)
    assert list(sampler) != order
