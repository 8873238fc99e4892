"""`expunge env`."""

from __future__ import annotations

import os

from expunge.cli.output import Json, print_facts, print_json


def env(json: Json = False) -> None:
    """Print versions, devices and folders."""
    from expunge.config.packaged import recipes_folder
    from expunge.runs.cache import cache_root
    from expunge.runs.manifest import installed_versions

    facts = {
        **installed_versions(),
        **_devices(),
        "cpus": str(os.cpu_count()),
        "cache": str(cache_root()),
        "recipes": str(recipes_folder()),
    }
    if json:
        print_json(facts)
        return
    print_facts(list(facts.items()))


def _devices() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"device": f"torch cannot be imported: {error}"}
    found = {"threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {**found, "device": "cuda: " + ", ".join(names)}
    return {**found, "device": "mps" if torch.backends.mps.is_available() else "cpu"}
