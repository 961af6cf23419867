"""aft_config.json: what a checkpoint says about how it was trained.

Trainers write it beside the weights; ``model`` reads it, so that a checkpoint is evaluated with the prompts it knows.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.bundled import locate
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write
from lm_eval_aft.core.log import log
from lm_eval_aft.core.prompts import Template

FILE = "aft_config.json"


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The contents of aft_config.json.

    Attributes:
        template: Source text of the prompt template used in training.
        template_sha256: Its digest.
        k: Drafts per example in training; None where they varied.
        base_model: What was trained further.
        base_revision: Its revision, or "".
        mask_policy: Which tokens the loss covered.
        data_digest: SHA-256 of the training data.
    """

    template: str
    template_sha256: str
    k: int | None = None
    base_model: str = ""
    base_revision: str = ""
    mask_policy: str = ""
    data_digest: str = ""

    def save(self, folder: str | Path) -> None:
        """Write the file into a checkpoint folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        with atomic_write(Path(folder, FILE)) as partial:  # that it is there says that the folder is complete
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CheckpointConfig:
        """Read a file.

        Raises:
            ConfigError: If it is not such a file, or its template does not have the digest it states.
        """
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            config = cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})
            if not isinstance(config.template, str) or not isinstance(config.template_sha256, str):
                raise TypeError("template and template_sha256 must be texts")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): mend it, or remove it to use template=.") from error
        digest = Template(config.template, str(path)).digest
        if digest != config.template_sha256:
            raise ConfigError(
                f"{path} states template_sha256 {config.template_sha256[:12]} but its template has {digest[:12]}: "
                "train again, or remove the file to use template=."
            )
        return config


def choose_template(config: AFTConfig, engine_args: dict[str, Any]) -> Template:
    """The template to use: the checkpoint's, else the one asked for, else ours.

    Raises:
        ConfigError: If the checkpoint names another than ``template=`` and ``template_override`` is not set.
        TemplateError: If a template cannot be loaded.
    """
    asked = Template.load(config.template)
    path = None if config.engine == "api" else _find(engine_args)  # a server's model name is no checkpoint here
    if path is None:
        return asked
    trained = Template(CheckpointConfig.load(path).template, str(path))
    if config.template is None or trained.digest == asked.digest:
        return trained
    if not config.template_override:
        raise ConfigError(
            f"template={config.template} ({asked.digest[:12]}) is not what the checkpoint was trained with "
            f"({trained.digest[:12]}, in {path}): leave template out, or add template_override=true."
        )
    log.warning("Using template=%s although the checkpoint was trained with another.", config.template)
    return asked


def _find(engine_args: dict[str, Any]) -> Path | None:
    """aft_config.json of the adapter, else of the base; local folders, else the hub's cache or the hub."""
    within = str(engine_args.get("subfolder") or "")
    for key in ("peft", "lora_local_path", "pretrained"):
        name = engine_args.get(key)
        if isinstance(name, str):
            name = os.path.expanduser(name) if key == "lora_local_path" else name  # as engine=vllm does
            name, file = locate(name), str(Path(within, FILE)) if key == "pretrained" else FILE
            path = Path(name, file) if Path(name).is_dir() else _from_hub(name, file, engine_args.get("revision"))
            if path is not None and path.is_file():
                return path
    return None


def _from_hub(name: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None  # no such file or no hub: the loader will say so if the checkpoint itself is missing
