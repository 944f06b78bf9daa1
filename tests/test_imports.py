"""What is loaded by which import, looked at in interpreters of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("pytorch_lightning", "lightning", "hydra", "omegaconf", "pandas", "pyarrow", "torch_geometric")
EXTRAS = ("sentence_transformers", "opensmile", "feat", "mamba_ssm", "optuna", "tensorboard")


def run(program: str) -> Any:
    """The JSON that ``program`` prints last, run by a fresh interpreter."""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_layers_and_models_need_torch_only() -> None:
    program = """
import json, sys
import ercfusion.layers, ercfusion.models
from ercfusion.batch.inputs import InputSpec
built = []
for name in ercfusion.models.ARCHITECTURES:
    model = ercfusion.models.build_architecture(name, InputSpec({"text": 12, "audio": 7, "visual": 5}))
    built.append(type(model).__name__)
ours = sorted(name for name in sys.modules if name.startswith("ercfusion"))
print(json.dumps({"built": built, "ours": ours, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
    found = run(program)
    assert len(found["built"]) >= 4
    assert "torch" in found["modules"]
    loaded = [name for name in HEAVY if name in found["modules"]]
    assert not loaded, f"building the architectures loads {', '.join(loaded)}"
    # Kernels wait until they are used.
    assert not [name for name in found["ours"] if "triton" in name]


SLOW = ("torch._dynamo", "torch._inductor", "triton", "sympy", "torchmetrics", "sklearn", "scipy", "matplotlib")


def test_layers_load_no_compiler_and_no_tables() -> None:
    """The parts that other projects import: torch and numpy, nothing that takes seconds or many megabytes."""
    found = run(
        "import json, sys, ercfusion.layers, ercfusion.models, ercfusion.losses, ercfusion.data\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not [name for name in (*HEAVY, *SLOW, *EXTRAS) if name in found]


def test_the_data_package_needs_no_table_reader() -> None:
    found = run("import json, sys, ercfusion.data; print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in HEAVY if name in found]


BLOCKED = f"""
import importlib, json, pkgutil, sys

class Refuse:
    tried = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            self.tried.append(name)
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
"""


def test_the_blocker_blocks() -> None:
    program = f"""{BLOCKED}
refused = []
for name in {EXTRAS!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        refused.append(error.name)
print(json.dumps(refused))
"""
    assert run(program) == list(EXTRAS)


@pytest.mark.slow
def test_every_module_can_be_imported_without_the_extras() -> None:
    program = f"""{BLOCKED}
import ercfusion
names = [module.name for module in pkgutil.walk_packages(ercfusion.__path__, "ercfusion.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps({{"names": names, "loaded": [name for name in {EXTRAS!r} if name in sys.modules]}}))
"""
    found = run(program)
    assert {"ercfusion.models.cogmen", "ercfusion.tasks.recognizer", "ercfusion.testing.check"} <= set(found["names"])
    assert not found["loaded"]
