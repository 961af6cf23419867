"""aft_config.json: how a checkpoint was trained.

Trainers write the file beside the weights. Evaluation reads it and uses the prompts of the training.
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
from lm_eval_aft.core.files import atomic_write, read_bytes
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.log import log
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.prompts import Template

FILE = "aft_config.json"


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The contents of aft_config.json.

    Attributes:
        template: Source text of the prompt template of the training.
        template_sha256: Digest of the template.
        k: Drafts per example in training, or None if the number varied.
        base_model: The checkpoint that the training started from.
        base_revision: Revision of that checkpoint, or "".
        mask_policy: Tokens that the loss covered.
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
        """Write the file into a checkpoint folder. Its presence means that the folder is complete."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        with atomic_write(Path(folder, FILE)) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CheckpointConfig:
        """Read a file.

        Raises:
            ConfigError: If the file is not an aft_config.json, or states another digest than its template has.
        """
        try:
            row = parse_json(read_bytes(path))
            config = cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})
            if not isinstance(config.template, str) or not isinstance(config.template_sha256, str):
                raise TypeError("template and template_sha256 must be texts")
            config.template.encode()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): correct it, or remove it to use template=.") from error
        digest = Template(config.template, str(path)).digest
        if digest != config.template_sha256:
            raise ConfigError(
                f"{path} states template_sha256 {config.template_sha256[:12]} but its template has {digest[:12]}: "
                "train again, or remove the file to use template=."
            )
        return config


def choose_template(config: AFTConfig, engine_args: dict[str, Any]) -> Template:
    """The template to use: the checkpoint's, or that of ``template=``, or the default template.

    Raises:
        ConfigError: If the checkpoint and ``template=`` differ and ``template_override`` is not set.
        TemplateError: If a template cannot be loaded.
    """
    requested = Template.load(config.template)
    # With engine=api the name of the model is a server's; it is not a checkpoint.
    path = None if config.engine == "api" else _find(engine_args)
    if path is None:
        return requested
    trained = Template(CheckpointConfig.load(path).template, str(path))
    if config.template is None or trained.digest == requested.digest:
        return trained
    if not config.template_override:
        raise ConfigError(
            f"template={config.template} ({requested.digest[:12]}) is not what the checkpoint was trained with "
            f"({trained.digest[:12]}, in {path}): leave template out, or add template_override=true."
        )
    log.warning("Using template=%s although the checkpoint was trained with another.", config.template)
    return requested


def _find(engine_args: dict[str, Any]) -> Path | None:
    """aft_config.json of the adapter, or of the base model: in a local folder, the hub's cache or the hub."""
    within = str(engine_args.get("subfolder") or "")
    if within:
        check_path("subfolder=", within)
    for key in ("peft", "lora_local_path", "pretrained"):
        name = engine_args.get(key)
        if isinstance(name, str):
            # engine=vllm expands this path, and no other.
            name = os.path.expanduser(name) if key == "lora_local_path" else name
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
    # There is no such file, or no hub. If the checkpoint itself is missing, the loader says so.
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None
