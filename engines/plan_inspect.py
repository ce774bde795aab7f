"""Plans in words, for `riskstream model inspect`: provenance, state, and what their runtime says of them."""

import os
from pathlib import Path
from typing import Any

import msgspec

from engines import plans, repository
from engines.errors import BuildError, ExtraError, RepositoryError
from engines.plans import NEVER_RUN, Judged, Makings, Provenance
from engines.tensorrt_module import message_log, module_of


def inspect(path: Path, makings: Makings) -> dict[str, Any]:
    """A plan in words, as a load of its model would find it.

    Args:
        path: of the plan.
        makings: of its model.

    Returns:
        "plan", "state" (`current`, or what it is instead and why), "engine": {"loaded", "note", "layers"},
        and the provenance where that can be read.
    """
    return _content(path, plans.judge(path, makings))


def inspect_file(path: Path, models: Path) -> dict[str, Any]:
    """As `inspect`, of the model that the plan's provenance names, where `models` has it.

    Raises:
        BuildError: there is no such plan.
    """
    if not os.path.lexists(path):
        raise BuildError(f"no plan at {path}; `riskstream model build` makes one")
    judged = plans.judge(path, None)
    if judged.state != "unknown" or judged.provenance is None:
        return _content(path, judged)
    key = judged.provenance.key
    try:
        config = repository.read_config(models, key.model, key.version)
    except RepositoryError as error:
        return _content(path, judged._replace(why=str(error)))
    return inspect(path, Makings(models, config))


def _content(path: Path, judged: Judged) -> dict[str, Any]:
    state = judged.state if judged.state == "current" else f"{judged.state}: {judged.why}"
    if judged.state in ("stale", "damaged"):
        state += f"; {plans.ANEW}"
    content: dict[str, Any] = {"plan": str(path), "state": state}
    if judged.state == "damaged" or judged.provenance is None:
        note = "not handed to its runtime, for it is not what was built"
        content["engine"] = {"loaded": False, "note": note, "layers": None}
    else:
        content["engine"] = _loaded(plans.read_plan(path), judged.provenance)
    return content | (msgspec.to_builtins(judged.provenance) if judged.provenance else {})


def _loaded(plan: bytes, provenance: Provenance) -> dict[str, Any]:
    """What the runtime says of a plan. Without a GPU's driver it loads none, and returns None for it."""
    about: dict[str, Any] = {"loaded": False, "layers": None}
    build = "tensors and profiles are those of the network when it was built"
    try:
        module = module_of(provenance.key.backend)
    except ExtraError as error:
        return about | {"note": f"{error}; {build}"}
    log = message_log(module)
    engine = module.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        why = log.messages[0] if log.messages else "it gives no reason"
        return about | {"note": f"{NEVER_RUN} here: {module.__name__} cannot load it ({why}); {build}"}
    shown = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return {"loaded": True, "note": "loaded by its runtime", "layers": msgspec.json.decode(shown)}
