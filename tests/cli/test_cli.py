"""The command group ``aft``: it imports commands late and prints each error of ours as one sentence."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lm_eval_aft import __version__, cli
from lm_eval_aft.cli.lazy import Command
from lm_eval_aft.core.errors import ConfigError


@click.command()
@click.argument("word")
def echo(word: str) -> None:
    """Repeat a word."""
    if word == "bad":
        raise ConfigError("word=bad: give another word")
    click.echo(f"echo {word}")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, Command]:
    """A table of one good command and two that cannot be loaded, and commands of other packages."""
    table = {
        "echo": Command(f"{__name__}:echo", "Repeat a word."),
        "lost": Command("lm_eval_aft_no_such_module:command", "Its module is missing."),
        "wrong": Command(f"{__name__}:pytest", "Its target is no command."),
    }
    joined = [
        EntryPoint("gone", "lm_eval_aft_no_such_module:command", cli.COMMAND_GROUP),
        EntryPoint("joined", f"{__name__}:echo", cli.COMMAND_GROUP),
        EntryPoint("echo", "somewhere.else:echo", cli.COMMAND_GROUP),
    ]
    monkeypatch.setattr(cli.aft, "table", table)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda *, group: joined if group == cli.COMMAND_GROUP else []
    )
    return table


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    out, err = capfd.readouterr()
    return stopped.value.code, out, err


@pytest.mark.usefixtures("commands")
class TestLazyGroup:
    def test_help_lists_every_command_and_imports_none_of_the_table(self) -> None:
        result = CliRunner().invoke(cli.aft, ["--help"])
        assert result.exit_code == 0, result.output
        listed = result.output.partition("Commands:\n")[2].splitlines()
        assert [line.split(maxsplit=1) for line in listed] == [
            ["echo", "Repeat a word."],
            ["gone", "(from lm_eval_aft_no_such_module, which cannot be loaded)"],
            ["joined", "Repeat a word."],
            ["lost", "Its module is missing."],
            ["wrong", "Its target is no command."],
        ]

    @pytest.mark.parametrize("name", ["echo", "joined"])
    def test_a_command_runs(self, capfd: pytest.CaptureFixture[str], name: str) -> None:
        assert run(capfd, name, "hello") == (0, "echo hello\n", "")

    def test_an_error_of_ours_is_one_sentence_and_code_2(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(capfd, "echo", "bad") == (2, "", "error: word=bad: give another word\n")

    def test_what_is_missing_is_named(self, capfd: pytest.CaptureFixture[str]) -> None:
        code, out, err = run(capfd, "lost")
        assert (code, out) == (2, "")
        assert err.startswith(
            "error: the command 'lost' cannot be loaded (No module named 'lm_eval_aft_no_such_module')"
        )
        assert len(err.splitlines()) == 1

    def test_a_target_that_is_no_command_is_named(self, capfd: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(capfd, "wrong")
        assert code == 2
        assert "test_cli:pytest, which is not a click command" in err

    def test_an_unknown_command_is_a_usage_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(capfd, "ecco")
        assert code == 2
        assert "No such command 'ecco'" in err

    def test_an_error_of_others_is_not_hidden(self, commands: dict[str, Command]) -> None:
        @click.command()
        def broken() -> None:
            raise ZeroDivisionError

        cli.aft.add_command(broken)
        try:
            with pytest.raises(ZeroDivisionError):
                cli.main(["broken"])
        finally:
            cli.aft.commands.pop("broken")


def test_every_command_of_the_table_can_be_loaded() -> None:
    for name, command in cli.COMMANDS.items():
        loaded = cli.aft.get_command(click.Context(cli.aft), name)
        assert loaded is not None
        assert loaded.name == name
        assert command.short_help.endswith(".")


@pytest.mark.parametrize("group", [[], ["data"], ["cache"], ["judge"], ["template"]])
def test_no_line_of_a_list_of_commands_is_cut(group: list[str]) -> None:
    result = CliRunner().invoke(cli.aft, [*group, "--help"])
    assert result.exit_code == 0
    listed = result.output.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed
    assert "(from " not in listed


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version") == (0, f"lm_eval_aft, version {__version__}\n", "")


def test_help_of_the_installed_script_needs_neither_torch_nor_lm_eval() -> None:
    script = Path(sys.executable).with_name("aft")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: aft [OPTIONS] COMMAND")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "lm_eval", "transformers", "numpy", "datasets", "scipy"}
