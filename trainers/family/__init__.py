"""The recipe of the bundled checkpoints: a base trained from scratch on ``aft_arith``, and its SFT and AFT trainings.

    python -m trainers.family base     OUT     tokenizer, prompt template, and the base's weights
    python -m trainers.family rows     OUT     the base's drafts of new problems, and the rows of all four trainings
    python -m trainers.family train    OUT     sft, aft, aft-no-drafts and aft-pseudo, as ``aft train`` does them
    python -m trainers.family ship     OUT     base, sft and aft into the package

``make checkpoints`` runs the four commands. They use a GPU if there is one; ``CUDA_VISIBLE_DEVICES=`` hides it. The
modules in the order of the recipe are ``settings``, ``documents``, ``pretrain``, ``rows`` and ``__main__``.
docs/lab-notes describes earlier recipes and why they failed.
"""
