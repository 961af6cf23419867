"""The hf engine and the trainer on a tiny random model of every causal architecture that transformers ships."""

from __future__ import annotations

import pytest
import transformers

from helpers import zoo, zoo_outcome

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("quiet_transformers"),
]


@pytest.mark.parametrize("kind", zoo.ARCHITECTURES)
def test_texts_equal_generate_or_the_model_is_refused(kind):
    """Alone, padded, beside longer prompts and fanned out. The page names what is refused or cannot be built."""
    outcome = zoo_outcome.outcome(kind)  # asserts that nothing differs
    if zoo_outcome.documented_version() == transformers.__version__:
        assert zoo_outcome.documented()[kind] == outcome


def test_the_page_names_every_architecture():
    if zoo_outcome.documented_version() != transformers.__version__:
        pytest.skip("the page was made with another version of transformers")
    assert set(zoo_outcome.documented()) == set(zoo.ARCHITECTURES)
