"""Every engine has what the Engine protocol requires."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.fake_server import FakeServer
from lm_eval_aft.core.engine import Engine, HostArgs, Processes, Scorer, SingleProcess
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.engines.registry import ENGINES, load_engine


def members(protocol: Any) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.fixture
def engines(tiny_engine):
    server = FakeServer()
    api = load_engine("api", {"base_url": server.url, "model": "m"}, HostArgs())
    yield {"hf": tiny_engine, "api": api, "scripted": load_engine("scripted", {}, HostArgs())}
    server.close()


def test_engines_have_every_member_of_the_protocols(engines):
    assert len(members(Engine)) > 9
    for engine in engines.values():
        assert members(Engine) <= set(dir(engine))
        assert members(Processes) <= set(dir(engine.processes))
        assert engine.scorer is None or members(Scorer) <= set(dir(engine.scorer))
    assert {name for name, engine in engines.items() if engine.scorer is not None} == {"hf"}
    assert set(engines) == set(ENGINES) - {"vllm"}


def test_a_single_process_gathers_its_own_objects():
    processes = SingleProcess()
    assert (processes.rank, processes.world_size) == (0, 1)
    assert processes.gather_object("x") == ["x"]
    assert processes.all_gather("x") == "x"
    assert processes.barrier() is None


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(ConfigError, match="engine=scriptd is unknown: did you mean scripted"):
        load_engine("scriptd", {}, HostArgs())
    with pytest.raises(ConfigError, match="engine=zzz is unknown: use one of hf, vllm, api, scripted"):
        load_engine("zzz", {}, HostArgs())
