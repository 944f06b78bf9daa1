"""Every configuration file composes, and none has drifted from the code it configures."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import ercfusion
from ercfusion._core.errors import ConfigError
from ercfusion._core.registry import import_modules
from ercfusion.config.choices import CHOICES
from ercfusion.config.compose import Composer
from ercfusion.config.corpora import CORPORA
from ercfusion.config.sections import SECTIONS
from ercfusion.config.settings import check_settings, defaults_of, fields_in, flat, names_of
from ercfusion.models import ARCHITECTURES, architecture_options
from ercfusion.search.config import compose_sweep
from ercfusion.sweep import main as sweep
from ercfusion.train import main as train
from ercfusion.training.module import OPTIMIZERS, SCHEDULERS

PACKAGE = Path(ercfusion.__file__).parent
CONF = PACKAGE / "conf"

QUICK = (
    *("data.options.train=8", "data.options.dev=4", "data.options.test=4", "training.max_epochs=1"),
    *("training.pictures=false", "training.bootstrap=20", "training.threads=1"),
)

OWN = '''
from typing import Literal
import torch
from ercfusion.models import Architecture, Capabilities, Encoded, register
from ercfusion.models.options import Count


class FlatSum(Architecture):
    """The sum of all features.

    Args:
        inputs: Modalities and widths.
        width: Width of the output.
        form: What is summed.
    """

    capabilities = Capabilities(contextual=False, causal=True)
    search_space = {"model.width": {"low": 1, "high": 8}, "optimizer.lr": {"low": 1e-4, "high": 1e-2}}

    def __init__(self, inputs, *, width: Count = 2, form: Literal["plain", "squared"] = "plain"):
        super().__init__(inputs)
        self.hidden_size = width
        self.linear = torch.nn.Linear(sum(inputs.widths.values()), width)

    def forward(self, batch):
        return Encoded(self.linear(torch.cat([batch.values(name) for name in self.inputs.widths], 1)))


register("flat_sum", "my_own_models:FlatSum")
'''


def names(group: str) -> list[str]:
    return Composer("train").groups()[group] if group in ("model", "data") else files(group)


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def content(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict), path
    return loaded


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer("train")


# All pairs take a minute: in the default run every preset and every corpus is in one pair.
@pytest.mark.parametrize(
    ("model", "corpora"),
    [
        *(
            pytest.param(model, names("data")[number % len(names("data")) :][:1], id=model)
            for number, model in enumerate(names("model"))
        ),
        *(pytest.param(model, names("data"), id=f"{model}-all", marks=pytest.mark.slow) for model in names("model")),
    ],
)
def test_every_model_composes_with_every_corpus(model: str, corpora: list[str], composer: Composer) -> None:
    for data in corpora:
        config = composer.compose([f"model={model}", f"data={data}"])
        assert config["preset"] == {"model": model, "data": data}
        assert config["data"]["name"] == data
        assert config["model"]["name"] in ARCHITECTURES
        assert set(config) == {*fields_in(""), *SECTIONS, *CHOICES, "model", "preset"} - {"sweep", "recipe", "missing"}


@pytest.mark.parametrize("model", names("model"))
def test_a_preset_has_exactly_the_options_of_its_architecture(model: str, composer: Composer) -> None:
    preset = composer.compose([f"model={model}"])["model"]
    options = architecture_options(preset.pop("name"))
    assert set(preset) == set(options)
    for name, value in preset.items():
        default = options[name]
        if default is not None and value is not None:
            assert type(value) is type(default), name


@pytest.mark.parametrize("model", files("model"))
def test_a_preset_lists_only_what_differs(model: str, composer: Composer) -> None:
    """What equals the default of the constructor is not said again; a file that says nothing does not exist."""
    preset = composer.compose([f"model={model}"])["model"]
    said = content(CONF / "model" / f"{model}.yaml")
    own = set(said["model"]) - {"name"}
    options = architecture_options(preset["name"])
    assert not [name for name in own if preset[name] == options[name]]
    assert own or set(said) - {"model"} or "# - chosen: " in (CONF / "model" / f"{model}.yaml").read_text()


def test_wrong_options_of_a_model_are_refused_before_anything_is_loaded(composer: Composer, tmp_path: Path) -> None:
    for value, message in (
        ("norm=group", r"model\.norm must be one of layer, batch; found 'group' \(model 'cogmen'\)"),
        ("layers=-1", r"model\.layers must be from 0 to 1024, found -1"),
        ("dropout=1.5", r"model\.dropout must be from 0 to 1, found 1\.5"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            composer.compose(["model=cogmen", f"model.{value}"])
    (tmp_path / "best.yaml").write_text("model: cogmen\nmodel.norm: group\n")
    with pytest.raises(ConfigError, match=r"best\.yaml.*: model\.norm must be one of"):
        composer.compose(composer.settings(str(tmp_path / "best.yaml")))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\nmodel:\n  name: cogmen\n  hiden: 3\n")
    with pytest.raises(ConfigError, match=r"model 'cogmen' has no setting 'hiden'\. Did you mean 'hidden'\?"):
        Composer("train", str(tmp_path)).compose(["model=mine"])


def test_an_architecture_in_a_folder_needs_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name is a preset with the defaults of its options, is trained, and a sweep finds its space."""
    (tmp_path / "my_own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(ARCHITECTURES)
    try:
        import_modules(["my_own_models"])
        config = Composer("train").compose(["model=flat_sum", "model.width=4"])
        assert config["preset"]["model"] == "flat_sum"
        assert config["model"] == {"name": "flat_sum", "width": 4, "form": "plain"}
        with pytest.raises(ConfigError, match=r"model\.form must be one of plain, squared; found 'cubed'"):
            Composer("train").compose(["model=flat_sum", "model.form=cubed"])
        swept = compose_sweep(Composer("sweep"), [], ["model=flat_sum"])
        assert swept["space"] == {"model.width": {"low": 1, "high": 8}, "optimizer.lr": {"low": 1e-4, "high": 1e-2}}
        other = compose_sweep(Composer("sweep"), [], ["model=concat", "space=flat_sum"])
        assert other["space"] == {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}
        words = ["imports=[my_own_models]", "model=flat_sum", "model.width=3"]
        assert train([*words, *QUICK, f"run={tmp_path / 'run'}"]) == 0
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        assert saved["model"] == {"name": "flat_sum", "width": 3, "form": "plain"}
        capsys.readouterr()
        assert sweep(["imports=[my_own_models]", "model=flat_sum", "--cfg"]) == 0
        assert list(yaml.safe_load(capsys.readouterr().out)["space"]) == ["model.width", "optimizer.lr"]
    finally:
        ARCHITECTURES.clear()
        ARCHITECTURES.update(before)
        sys.modules.pop("my_own_models", None)
    assert "flat_sum" not in Composer("train").groups()["model"]


def test_names_of_models_are_known_without_torch() -> None:
    code = "import sys; from ercfusion.config.compose import Composer; "
    code += "print(Composer().groups()['model']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cogmen_released" in done.stdout


def test_every_architecture_and_every_corpus_is_a_choice(composer: Composer) -> None:
    assert set(ARCHITECTURES) <= set(names("model"))
    assert set(CORPORA) == set(names("data"))
    for name in ARCHITECTURES:
        assert composer.compose([f"model={name}"])["model"]["name"] == name
    for name in CORPORA:
        assert composer.compose([f"data={name}"])["data"]["name"] == name


def test_every_optimizer_and_schedule_is_a_choice(composer: Composer) -> None:
    assert set(names_of("optimizer")) == set(OPTIMIZERS)
    assert set(names_of("scheduler")) == set(SCHEDULERS)
    for group in CHOICES:
        assert composer.groups()[group] == sorted(names_of(group))
        for name in names_of(group):
            assert composer.compose([f"{group}={name}"])[group] == defaults_of(group, name)


def test_every_choice_composes_to_settings_in_their_ranges(composer: Composer) -> None:
    for group in ("objective", "optimizer", "scheduler", "curriculum", "missing", "trainer", "task", "recipe"):
        for name in composer.groups()[group]:
            check_settings(composer.compose([f"{group}={name}"]))


def test_no_choice_repeats_a_default() -> None:
    for path in sorted(CONF.glob("*/*.yaml")):
        found, group = content(path), path.parent.name
        chosen = {
            key.removeprefix("override /"): str(value)
            for entry in found.get("defaults", [])
            if isinstance(entry, dict)
            for key, value in entry.items()
        }
        if "@package _global_" not in path.read_text():
            chosen[group], found = str(found.get("name")), {group: found}
        for section in ({*SECTIONS, *CHOICES} & set(found)) - {"sweep"}:
            name = chosen.get(section) if section in CHOICES else None
            defaults = flat(defaults_of(section, name), f"{section}.")
            own = flat(found[section], f"{section}.")
            repeated = [key for key in own if key in defaults and repeats(own[key], defaults[key])]
            assert set(repeated) <= {"data.name"}, path


def repeats(value: Any, default: Any) -> bool:
    """Whether a file says the default; YAML 1.1 reads 1e-3 as a text."""
    if isinstance(default, float) and isinstance(value, str):
        return float(value) == default
    return type(value) is type(default) and bool(value == default)


def test_numbers_are_numbers(composer: Composer) -> None:
    """YAML reads 1e-6 as a text, a trap of which the composer must be free."""
    for name in names_of("optimizer"):
        found = composer.compose([f"optimizer={name}"])["optimizer"]
        found.pop("name")
        assert found
        assert not [key for key, value in found.items() if isinstance(value, str)], found


def test_tuned_files_are_named_after_what_they_tune(composer: Composer) -> None:
    models, corpora = set(names("model")), set(names("data"))
    for path in (CONF / "tuned").glob("*.yaml"):
        pairs = {(model, data) for model in models for data in corpora if path.stem == f"{model}-{data}"}
        assert len(pairs) == 1, path
        model, data = pairs.pop()
        tuned = composer.compose([f"model={model}", f"data={data}"])
        for section, values in content(path).items():
            for key, value in values.items() if isinstance(values, dict) else []:
                assert str(tuned[section][key]) == str(value) or tuned[section][key] == pytest.approx(float(value))


def test_a_tuned_file_is_used_for_its_pair_alone(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "concat-demo.yaml").write_text("# @package _global_\noptimizer:\n  lr: 0.125\n")
    composer = Composer("train", str(tmp_path))
    assert composer.compose(["model=concat"])["optimizer"]["lr"] == 0.125
    assert composer.compose(["model=concat", "optimizer.lr=0.5"])["optimizer"]["lr"] == 0.5
    assert composer.compose(["model=cogmen"])["optimizer"]["lr"] != 0.125
    assert composer.compose(["model=concat", "data=mosi"])["optimizer"]["lr"] != 0.125


def test_the_wheel_forgets_no_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    listed = setup["options"]["packages"].split()
    assert len(listed) == len(set(listed))
    found = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    mapped = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert found == set(listed) - set(mapped)
    for name, folder in mapped.items():
        assert name in listed
        assert (PACKAGE.parent / folder).is_dir()
    # Without an __init__.py a folder is left out of the wheel's checks, and of some tools' searches.
    for name in found:
        assert (PACKAGE.parent / Path(*name.split(".")) / "__init__.py").is_file(), name


def test_the_wheel_forgets_no_configuration() -> None:
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    patterns = [part.strip() for part in setup["options.package_data"]["ercfusion.conf"].split(",")]
    matched = {path for pattern in patterns for path in CONF.glob(pattern)}
    assert matched == set(CONF.rglob("*.yaml"))
    assert (PACKAGE / "py.typed").is_file()


def test_optimisers_of_the_released_forms(composer: Composer) -> None:
    """The scripts' AdamW adds 1e-6; their Adam with weight decay decays biases as well."""
    for model in ("dagerc_released", "lsdgnn_released"):
        assert composer.compose([f"model={model}"])["optimizer"]["eps"] == 1e-6, model
    for model in ("dialoguernn_released", "mmgcn_released", "lmf_released"):
        assert composer.compose([f"model={model}"])["optimizer"]["decay_all"] is True, model
    assert composer.compose(["model=cogmen"])["optimizer"]["decay_all"] is False


def test_released_forms_of_graph_models(composer: Composer) -> None:
    dialoguegcn, mmgcn, lmf = (
        composer.compose([f"model={name}_released"])["model"] for name in ("dialoguegcn", "mmgcn", "lmf")
    )
    assert (dialoguegcn["nodal_bias"], dialoguegcn["context_dropout"], dialoguegcn["initial"]) == (
        True,
        False,
        "released",
    )
    assert (mmgcn["speaker_std"], mmgcn["residual_dropout"]) == (1.0, True)
    assert lmf["initial"] == "released"
