"""--hf_hub_log_args of lm-eval: what reaches the hub is the rendered prompt, the answer, and no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.fake_hub import fake_hub

pytestmark = pytest.mark.long
TOKEN = "hf_" + "kept" * 8


def test_results_and_samples_reach_the_hub_with_rendered_prompts_and_answers(tiny: str, tmp_path: Path):
    upload = "hub_results_org=me,details_repo_name=details,results_repo_name=results,public_repo=True"
    upload += f",push_results_to_hub=True,push_samples_to_hub=True,token={TOKEN}"
    model = f"pretrained={tiny},dtype=float32,k=2,layers=1,draft_max_tokens=8,final_max_tokens=8"
    words = ["--model", "aft", "--model_args", model, "--tasks", "aft_demo", "--limit", "2", "--apply_chat_template"]
    words += ["--output_path", str(tmp_path / "out"), "--log_samples", "--hf_hub_log_args", upload]
    command = [sys.executable, "-m", "lm_eval_aft", *words]
    with fake_hub() as hub:
        # huggingface_hub reads its settings once, so the run needs a process of its own.
        own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    (samples,) = (content for path, content in hub.files.items() if "details/" in path and "samples_" in path)
    rows = [json.loads(line) for line in samples.splitlines()]
    assert {row["doc_id"] for row in rows} == {0, 1}
    for row in rows:
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        assert row["doc"]["question"] in prompt
        assert not prompt.startswith("{")
        assert [[type(text) for text in each] for each in row["resps"]] == [[str]]
    (results,) = (content for path, content in hub.files.items() if path.startswith("me/results/"))
    assert json.loads(results)["config"]["aft"]["k"] == 2
    assert "me/details/README.md" in hub.files
