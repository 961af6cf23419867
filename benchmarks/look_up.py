"""In-context copying: how exactly does a base of the family repeat an answer that its prompt holds?

The script writes new documents of two kinds: with unrelated problems, and with problems of the same numbers. For each
kind it reports the loss (nats a token) of an answer at its first occurrence and when it is repeated, and the mean
probability of repeating a whole answer word for word.

Usage: python benchmarks/look_up.py FAMILY/base [--out DIR]
"""

from __future__ import annotations

import random

import torch
from common import parser, write
from transformers import AutoModelForCausalLM

from lm_eval_aft.bundled import arith
from trainers.family.documents import document, make_tokenizer
from trainers.family.pretrain import answer_losses
from trainers.family.settings import FamilyConfig, Stage

DOCUMENTS = 150


@torch.inference_mode()
def main() -> None:
    """Measure one base and print the figures as JSON."""
    options = parser(__doc__)
    options.add_argument("base", help="Folder of the base checkpoint.")
    args = options.parse_args()
    config, vocabulary = FamilyConfig(), make_tokenizer().get_vocab()
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).eval()
    figures = {}
    for name, shared_numbers_share in (("unrelated", 0.0), ("same numbers", 1.0)):
        rng, stream = random.Random(5), arith.problems("validation", 99)
        stage = Stage(1, 0.0, mismatched_share=0.3, shared_numbers_share=shared_numbers_share)
        texts = [document(config, stage, stream, rng) for _ in range(DOCUMENTS)]
        first, repeated = answer_losses(model, vocabulary, texts, config)  # each (documents, answers, tokens)
        figures[name] = {
            "told": first.mean().item(),
            "repeated": repeated.mean().item(),
            "word_for_word": (-repeated.sum(-1)).exp().mean().item(),
        }
    write("look-up", figures, args.out)


if __name__ == "__main__":
    main()
