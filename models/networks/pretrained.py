"""timm's own weights of a backbone: their name with the tag, and their file in the caches that timm uses.

A file in the cache of the Hugging Face hub (HF_HOME, HF_HUB_CACHE) is taken as it is, without asking the hub for a newer
one. What is missing is downloaded once; HF_HUB_OFFLINE, HF_ENDPOINT and the proxies of the environment count, as everywhere.
"""

from __future__ import annotations

import difflib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models._hub import download_cached_file

from models.errors import ConfigError, WeightsMismatch
from models.networks.backbones import unknown_backbone

log = logging.getLogger(__name__)
FILES = ("model.safetensors", "pytorch_model.bin")  # in a repository of the hub, in the order in which timm takes them
TIMEOUT_S = 10.0  # until the hub answers at all; it is asked once
FROM_SCRATCH = '--weights ""'


def settings_of(name: str) -> PretrainedCfg:
    """timm's description of the weights that a backbone's name stands for, with or without a tag.

    Raises:
        ConfigError: timm has no such backbone, or no such weights of it.
    """
    if not timm.is_model(name):
        raise unknown_backbone(name, timm.list_models())
    with suppress(RuntimeError):  # no such tag
        found = get_pretrained_cfg(name)
        if found and found.has_weights:
            return found
    known = timm.list_models(pretrained=True)
    own = [each for each in known if each.split(".")[0] == name.split(".")[0]]
    near = own or difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    raise ConfigError(
        f"members.backbone: timm {timm.__version__} has no weights of {name!r}; take {', '.join(near)}, name a file with "
        f"members.weights, or start from random weights with {FROM_SCRATCH}"
    )


def full_name(settings: PretrainedCfg) -> str:
    """Name of a backbone with the tag of its weights."""
    return f"{settings.architecture}.{settings.tag}" if settings.tag else str(settings.architecture)


def origin(settings: PretrainedCfg) -> str:
    """Repository of the hub that has the weights, or their URL."""
    return str(settings.hf_hub_id or settings.url)


def weights_file(name: str) -> Path:
    """The file of timm's weights of a backbone on this machine, downloaded if it is not in the cache.

    Raises:
        ConfigError: timm has no such backbone or weights.
        WeightsMismatch: they are neither in the cache nor can they be downloaded; the message says why, and the ways out.
    """
    settings = settings_of(name)
    try:
        return _from_hub(settings) if settings.hf_hub_id else _from_url(settings)
    except Exception as error:  # the client of the hub raises those of several libraries
        raise _not_available(settings, error) from None


def _from_hub(settings: PretrainedCfg) -> Path:
    repository, _, revision = str(settings.hf_hub_id).partition("@")
    files = (settings.hf_hub_filename,) if settings.hf_hub_filename else FILES
    for file in files:
        if isinstance(cached := try_to_load_from_cache(repository, file, revision=revision or None), str):
            return Path(cached)
    for file in files:
        with suppress(RemoteEntryNotFoundError):
            # The download itself would try again for a minute or two before it tells that there is no network.
            size = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision or None), timeout=TIMEOUT_S).size
            log.info(
                "downloading %s of %s (%.0f MB, licence %s)", file, repository, (size or 0) / 1e6, licence_of(settings)
            )
            return Path(hf_hub_download(repository, file, revision=revision or None))
    raise FileNotFoundError(f"{repository} has none of the files {', '.join(files)}")


def _from_url(settings: PretrainedCfg) -> Path:
    with _timeout(TIMEOUT_S):
        return Path(download_cached_file(settings.url or ""))  # into TORCH_HOME


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Ends a read of a socket that has no timeout of its own, as those of torch.hub."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def licence_of(settings: PretrainedCfg) -> str:
    """Licence of the weights, as timm states it, or "unknown"."""
    return settings.license or "unknown"


def _not_available(settings: PretrainedCfg, error: Exception) -> WeightsMismatch:
    """The error about weights that are neither on this machine nor within reach, with the ways out."""
    if settings.hf_hub_id:
        repository = settings.hf_hub_id.partition("@")[0]
        cache = Path(constants.HF_HUB_CACHE)
        elsewhere = f"run `hf download {repository}` where there is a network and copy models--{repository.replace('/', '--')} here"
    else:
        cache = Path(timm.models._hub.get_cache_dir())
        elsewhere = f"download {settings.url} where there is a network and copy it here"
    offline = isinstance(error, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE forbids a download" if offline else f"a download failed ({_first_line(error)})"
    return WeightsMismatch(
        f"members.weights: timm's weights of {full_name(settings)} are not in {cache}, and {reason}; {elsewhere}, name a file "
        f"with --weights FILE, or start from random weights with {FROM_SCRATCH}"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip(" .;") for line in str(error).splitlines() if line.strip()), type(error).__name__)
