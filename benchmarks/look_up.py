"""How exactly a base of the family repeats an answer that stands before it, on new documents.

For documents of unrelated problems and of problems with the same numbers: nats a token of answers told first and of
those repeated, and the mean probability of repeating a whole answer word for word.

Usage: python benchmarks/look_up.py FAMILY/base [--out DIR]
"""

from __future__ import annotations

import argparse
import random

import torch
from common import write
from transformers import AutoModelForCausalLM

from lm_eval_aft.bundled import arith
from trainers.family.documents import document, make_tokenizer
from trainers.family.pretrain import answer_losses
from trainers.family.settings import FamilyConfig, Stage

DOCUMENTS = 150


@torch.inference_mode()
def main() -> None:
    """Measure one base and print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--out")
    args = parser.parse_args()
    config, known = FamilyConfig(), make_tokenizer().get_vocab()
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).eval()
    figures = {}
    for name, shared_numbers_share in (("unrelated", 0.0), ("same numbers", 1.0)):
        rng, stream = random.Random(5), arith.problems("validation", 99)
        stage = Stage(1, 0.0, mismatched_share=0.3, shared_numbers_share=shared_numbers_share)
        texts = [document(config, stage, stream, rng) for _ in range(DOCUMENTS)]
        told, repeated = answer_losses(model, known, texts, config)  # (documents, answers, tokens) each
        figures[name] = {
            "told": told.mean().item(),
            "repeated": repeated.mean().item(),
            "word_for_word": (-repeated.sum(-1)).exp().mean().item(),
        }
    write("look-up", figures, args.out)


if __name__ == "__main__":
    main()
