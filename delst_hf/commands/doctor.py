"""The checks of `delst doctor`. Each library is imported in a process of its own, because a broken one can crash Python."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..record import without_secrets

PACKAGES = ("delst-hf", "torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "numpy")
# Optional libraries: what each is for, and how it is installed.
OPTIONAL = {
    "torchvision": ("timm", "not needed without it"),
    "timm": ("backbones of timm", "pip install timm (with the torchvision that fits your torch)"),
    "openslide": ("slides of scanners", "pip install 'delst-hf[openslide]'"),
    "peft": ("--lora", "pip install 'delst-hf[lora]'"),
}
MIN_FREE_GB = 5.0
NO_TOKEN = "none"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        found: What was found.
        fix: What to do; None where nothing needs fixing.
    """

    name: str
    found: str
    fix: str | None = None


def examine(backbone: str | None = None, model: str | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        backbone: Id of a backbone to check access to.
        model: Checkpoint folder to check: its checksums, its weights, and whether it loads.
    """
    hub = _hub()
    findings = [*_versions(), _device(), *_optional_libraries(), *hub]
    if backbone is not None:
        # A second failure of the same cause would say nothing new, and its retries take a minute.
        unusable = next((one for one in hub if one.fix is not None and one.found != NO_TOKEN), None)
        if unusable is not None and not Path(backbone).is_dir():
            findings.append(Finding("backbone", f"{backbone} not checked: see {unusable.name}"))
        else:
            findings.append(_backbone(backbone))
    return [*findings, *([] if model is None else [_checkpoint(model)]), *_disks()]


def _checkpoint(folder: str) -> Finding:
    """Check that a checkpoint matches its checksums, loads, and holds finite weights."""
    from ..errors import explain
    from ..hub.checkpoint_folder import check_finite_weights, checkpoint_class
    from ..hub.checksums import CHECKSUMS, check_checksums, weights_fingerprint
    from ..hub.publish import check_checkpoint
    from ..model.configuration_delst import DelstConfig
    from ..model.processing_delst import DelstProcessor

    try:
        check_checkpoint(folder)
        check_checksums(folder)
        check_finite_weights(Path(folder))
        checkpoint_class(DelstConfig.from_pretrained(folder)).from_pretrained(folder)
        genes = len(DelstProcessor.from_pretrained(folder).feature_extractor.vocabulary)
    except Exception as error:  # whatever reading a damaged file raises
        return Finding("model", f"{folder} cannot be used", explain(error))
    compared = "checksums match" if (Path(folder) / CHECKSUMS).is_file() else f"loads; no {CHECKSUMS} to compare with"
    return Finding("model", f"{folder}, {compared}: {genes} genes, weights {weights_fingerprint(folder)}")


def _versions() -> list[Finding]:
    found = [Finding("python", f"{platform.python_version()}, {platform.platform()}")]
    for name in PACKAGES:
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "not installed", f"pip install {name}"))
    return found


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("device", f"{', '.join(names)} (torch built for CUDA {torch.version.cuda})")
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    found = f"no GPU (torch built for {kind}), {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Finding(
            "device", found, "there is an NVIDIA driver, but torch is a CPU build: install the CUDA build of torch"
        )
    return Finding("device", found)


def _optional_libraries() -> list[Finding]:
    """Import each optional library in a process of its own, all at once; one that is installed must import."""
    code = "import sys, importlib; print(getattr(importlib.import_module(sys.argv[1]), '__version__', 'present'))"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in OPTIONAL
    }
    findings = []
    for name, process in running.items():
        purpose, how = OPTIONAL[name]
        try:
            output, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()[0], "its import did not end within 120 s"
        last = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {process.returncode}"
        if process.returncode == 0:
            findings.append(Finding(name, output.strip()))
        elif f"No module named '{name}'" in last:
            findings.append(Finding(name, f"not installed; for {purpose}: {how}"))
        else:
            cure = "uninstall it, or install the build that fits your torch: it breaks transformers too"
            fix = cure if name == "torchvision" else f"{how}, or uninstall it"
            findings.append(Finding(name, f"installed, but does not import: {last}", fix))
    return findings


def _hub() -> list[Finding]:
    """Check whether the Hub answers, and which account the token belongs to."""
    from huggingface_hub import constants, get_session, get_token

    endpoint = without_secrets(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", "HF_HUB_OFFLINE=1: only local folders and the cache are used")]
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=10)
    except Exception as error:  # whatever the HTTP library of the client raises
        return [_unreachable(endpoint, without_secrets(f"{type(error).__name__}: {error}"))]
    # Without a token the Hub answers 401; any other answer comes from a proxy or another server.
    if response.status_code not in ((200, 401) if token else (401,)):
        return [_unreachable(endpoint, f"status {response.status_code}, which is not the Hub's")]
    reached = Finding("hub", f"{endpoint} answers")
    if token is None:
        fix = "`hf auth login`, for pushing and for gated backbones; public models need none"
        return [reached, Finding("token", NO_TOKEN, fix)]
    if response.status_code == 401:
        fix = "log in again with `hf auth login`, or unset HF_TOKEN"
        return [reached, Finding("token", "not valid on the Hub", fix)]
    return [reached, Finding("token", f"of the account {response.json()['name']}")]


def _unreachable(endpoint: str, reason: str) -> Finding:
    fix = "check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT; or work offline with local folders and HF_HUB_OFFLINE=1"
    return Finding("hub", f"{endpoint} does not answer as it should ({reason})", fix)


def _backbone(name: str) -> Finding:
    """Check that the configuration of a backbone can be read; a gated backbone allows it only to accounts with access."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    label = "backbone"
    if Path(name).is_dir():
        there = (Path(name) / "config.json").is_file()
        return Finding(
            label, f"{name}, a folder", None if there else "it holds no config.json: give the folder of a model"
        )
    try:
        validate_repo_id(name)
    except HFValidationError:
        return Finding(
            label, f"{name} is neither a folder nor an id of the Hub", "give USER/NAME, or an existing folder"
        )
    if constants.HF_HUB_OFFLINE:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        fix = None if cached else "offline and not in the cache: unset HF_HUB_OFFLINE once, or copy its folder here"
        return Finding(label, f"{name}, {'in the cache' if cached else 'not in the cache'}", fix)
    page = without_secrets(f"{constants.ENDPOINT}/{name}")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except GatedRepoError:
        fix = f"request access at {page}, with the account of your token; or use a local copy (vision_path=FOLDER)"
        return Finding(label, f"{name} is gated, and your account has no access", fix)
    except RepositoryNotFoundError:
        return Finding(label, f"{name} is not on the Hub, or private", "check the id, and log in if it is private")
    except EntryNotFoundError:
        return Finding(
            label,
            f"{name} has no config.json",
            "it is not a model of transformers: use its converted form, or a folder",
        )
    except Exception as error:  # whatever the HTTP library of the client raises
        return _unreachable(page, f"{type(error).__name__}: {error}".splitlines()[0])
    return Finding(label, f"{name} can be read")


def _disks() -> list[Finding]:
    """Check for free space where models, datasets and temporary files go."""
    import tempfile

    from huggingface_hub import constants

    findings = []
    places = (("cache", constants.HF_HUB_CACHE, "HF_HOME"), ("temporary files", tempfile.gettempdir(), "TMPDIR"))
    for name, place, variable in places:
        folder = Path(place)
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 1e9
        fix = None
        if free < MIN_FREE_GB:
            fix = f"only {free:.1f} GB are free: clear some (`hf cache ls`), or set {variable}"
        elif not os.access(folder, os.W_OK):
            fix = f"not writable: set {variable} to a folder of yours"
        findings.append(Finding(name, f"{place}, {free:.0f} GB free", fix))
    return findings
