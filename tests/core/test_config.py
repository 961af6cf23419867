"""Model arguments: what is taken, coerced and refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_eval_aft.core.arguments import mapping
from lm_eval_aft.core.config import AFTConfig, refuse_unknown, samplings
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.secrets import is_secret

BAD = [
    ("k", 0, "k=0 is not allowed: k must be a whole number of at least 1"),
    ("k", 2.5, "whole number"),
    ("k", True, "whole number"),
    ("k", float("inf"), "whole number"),
    ("k", "none", "whole number"),
    ("k", "five", "whole number"),
    ("k", [5], "whole number"),
    ("layers", -1.0, "layers=-1.0 is not allowed"),
    ("layers", float("nan"), "whole number"),
    ("temperature", -1.0, "at least 0"),
    ("temperature", "hot", "at least 0"),
    ("top_p", 2, "at most 1"),
    ("top_p", 0, "above 0"),
    ("top_k", 0, "at least 1"),
    ("draft_max_tokens", 0, "at least 1"),
    ("draft_max_tokens", "none", "at least 1"),
    ("final_top_p", 1.5, "at most 1"),
    ("max_gen_toks", 0.5, "whole number"),
    ("seed", -1, "at least 0"),
    ("seed", 2**63, "below"),
    ("template", "none", "a text"),
    ("template", 7, "a text"),
    ("template_override", "maybe", "true or false"),
    ("record", "", "a text"),
    ("draft_until", [3], "list of texts"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values_are_one_sentence(name, value, message):
    with pytest.raises(ConfigError) as caught:
        AFTConfig.split({name: value})
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{name}=")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"k": 3.0}, "k", 3),
        ({"k": "3"}, "k", 3),
        ({"max_gen_toks": 1000.0}, "max_gen_toks", 1000),
        ({"temperature": 0}, "temperature", 0.0),
        # Logits divided by so small a number are no numbers.
        ({"temperature": 1e-39}, "temperature", 0.0),
        ({"temperature": "9e-7"}, "temperature", 0.0),
        ({"temperature": 1e-6}, "temperature", 1e-6),
        ({"final_temperature": 1e-300}, "final_temperature", 0.0),
        ({"top_k": "none"}, "top_k", None),
        ({"seed": "none"}, "seed", None),
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"cache": "NONE"}, "cache", "none"),
        ({"template_override": "true"}, "template_override", True),
        ({"draft_until": "\n\n"}, "draft_until", ("\n\n",)),
        ({"k": None}, "k", 5),
    ],
)
def test_command_line_types_are_coerced(given, name, expected):
    value = getattr(AFTConfig.split(given)[0], name)
    assert value == expected
    assert type(value) is type(expected)


def test_large_seeds_keep_every_digit():
    assert AFTConfig.split({"seed": "9007199254740993"})[0].seed == 9007199254740993  # 2**53 + 1: no float on the way


def test_other_arguments_are_handed_back():
    config, rest = AFTConfig.split({"k": 2, "layers": 0, "pretrained": "x", "dtype": "bfloat16"})
    assert config.generations == 1
    assert rest == {"pretrained": "x", "dtype": "bfloat16"}


@pytest.mark.parametrize(("k", "layers", "count"), [(5, 2, 11), (5, 1, 6), (1, 3, 4), (5, 0, 1)])
def test_generations(k, layers, count):
    assert AFTConfig(k=k, layers=layers).generations == count


def test_tokens_of_a_text_are_no_secrets():
    secrets = ("api_key", "hf_token", "token", "JUDGE_TOKEN", "password")
    assert all(is_secret(name) for name in secrets)
    assert not any(is_secret(name) for name in ("think_end_token", "add_bos_token", "tokenizer", "keep"))


def test_a_dictionary_may_come_as_its_json_text():
    assert mapping("extra_body", '{"a": 1}') == mapping("extra_body", {"a": 1}) == {"a": 1}
    with pytest.raises(ConfigError, match="extra_body must be a dictionary"):
        mapping("extra_body", "[1]")


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="did you mean layers"):
        refuse_unknown({"layer": 2}, {"pretrained"}, "hf")
    with pytest.raises(ConfigError, match="did you mean pretrained"):
        refuse_unknown({"pretraind": "x"}, {"pretrained"}, "hf")
    with pytest.raises(ConfigError, match=r"docs/reference/arguments\.md"):
        refuse_unknown({"zzz": 1}, {"pretrained"}, "hf")


def test_a_key_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        refuse_unknown({"api_key": "sk-secret"}, {"pretrained"}, "hf")
    assert "sk-secret" not in str(caught.value)


class TestSamplings:
    def test_task_settings_reach_the_last_layer_only(self):
        drafts, final = samplings(AFTConfig(), {"do_sample": False, "temperature": 0.0, "until": ["Q:"]})
        assert (drafts.temperature, final.temperature) == (0.7, 0.0)
        assert drafts.until == final.until == ()  # stop strings cut the final text, they never stop generation

    def test_a_silent_task_leaves_the_drafts_settings(self):
        drafts, final = samplings(AFTConfig(temperature=0.9, top_p=0.8, top_k=20), {})
        assert final == drafts

    def test_explicit_final_arguments_beat_the_task(self):
        config = AFTConfig(final_temperature=0.3, final_top_p=1.0, final_max_tokens=7)
        _, final = samplings(config, {"do_sample": False, "temperature": 0.0, "top_p": 0.5, "max_gen_toks": 99})
        assert (final.temperature, final.top_p, final.max_tokens) == (0.3, 1.0, 7)

    def test_a_temperature_too_small_to_divide_by_is_greedy(self):
        drafts, final = samplings(AFTConfig(temperature=1e-39), {"temperature": 1e-7})
        assert (drafts.temperature, final.temperature) == (0.0, 0.0)

    def test_do_sample_true_without_temperature_uses_the_drafts(self):
        assert samplings(AFTConfig(), {"do_sample": True, "temperature": 0.0})[1].temperature == 0.7

    @pytest.mark.parametrize("alias", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
    def test_the_tasks_bound_bounds_answer_and_drafts(self, alias):
        drafts, final = samplings(AFTConfig(), {alias: 64})
        assert (drafts.max_tokens, final.max_tokens) == (64, 64)
        drafts, final = samplings(AFTConfig(draft_max_tokens=32), {alias: 64})
        assert (drafts.max_tokens, final.max_tokens) == (32, 64)

    def test_bad_task_settings_are_refused(self):
        with pytest.raises(ConfigError, match="temperature=-1"):
            samplings(AFTConfig(), {"temperature": -1})


ARGS = [
    ("k=0", "k=0 is not allowed"),
    ("layers=-1", "layers=-1.0 is not allowed"),
    ("layer=2", "did you mean layers?"),
    ("draft_max_tokens=0", "draft_max_tokens=0"),
    ("k=none", "k=none"),
    ("engine=hff", "did you mean hf?"),
]


@pytest.mark.parametrize(("args", "message"), ARGS)
def test_the_model_refuses_before_anything_is_loaded(args, message, tmp_path):
    from lm_eval._cli.utils import key_val_to_dict

    from lm_eval_aft.model import AFTLM

    with pytest.raises(ConfigError) as caught:
        AFTLM(**key_val_to_dict(f"pretrained={tmp_path},{args}"))  # an empty folder: loading it would fail otherwise
    assert message in str(caught.value)


@pytest.mark.parametrize(("args", "message"), [ARGS[0], ARGS[2]])
@pytest.mark.parametrize("module", ["lm_eval_aft", "lm_eval"])
def test_the_command_lines_say_one_sentence_and_exit_2(warm, module, args, message, tmp_path):
    # One of each module starts as users start it.
    python = [sys.executable] if (args, message) == ARGS[0] else warm.command
    command = [*python, "-m", module, "--model", "aft", "--model_args", f"pretrained={tmp_path},{args}"]
    done = subprocess.run([*command, "--tasks", "gsm8k"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
