"""Compose a configuration from groups and ``key=value`` arguments."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from ercfusion._core.errors import ConfigError, did_you_mean, first_line
from ercfusion._core.schemas.reading import read_yaml, setting_error
from ercfusion.config.architectures import ARCHITECTURES, check_model, complete_model, store_architectures
from ercfusion.config.choices import CHOICES
from ercfusion.config.corpora import CORPORA, check_corpus, complete_corpus, store_corpora
from ercfusion.config.missing import canonical_laws
from ercfusion.config.missing_laws import LAWS
from ercfusion.config.overrides import (
    checked_value,
    flatten,
    from_file,
    leaves,
    naming,
    origin_of,
    override_text,
    parse,
    shown,
)
from ercfusion.config.sections import SECTIONS
from ercfusion.config.settings import defaults_of, names_of, without_defaults
from ercfusion.config.terms import TERMS

T = TypeVar("T")

CONFIG_MODULE = "ercfusion.conf"

_DEFAULT_CHOICES = {
    "training": "default",
    "objective": "default",
    "missing": "none",
    "trainer": "auto",
    "task": "recognition",
    "recipe": "none",
}
"""The choice of each group that changes nothing."""

_WEIGHT = 0.1
"""Weight of a loss term chosen by ``objective=NAME``."""

MOST_RUNS = 10_000  # combinations of a multirun
_RANGE = "Give a value, or key=a,b,c with -m; python -m ercfusion.sweep searches ranges."

_BASES: dict[tuple[str, tuple[str, ...], bool, tuple[str, ...]], _Base] = {}
"""Cache of :meth:`Composer._base`: composing takes 0.1 s."""

_GROUPS: dict[tuple[str, ...], dict[str, list[str]]] = {}
"""Cache of the package's groups, by the registered names."""


class _Base(NamedTuple):
    """The configuration of chosen groups (read only), its settings by dotted key, the names of model and corpus, and
    the names of the loss terms with a weight in the files.
    """

    composed: Any
    flat: dict[str, Any]
    preset: dict[str, Any]
    weighted: frozenset[str]


class Composer:
    """Composes configurations from groups and ``key=value`` arguments.

    Args:
        root: Root configuration: ``train`` or ``sweep``.
        config_dir: A user's folder of additional groups.
    """

    def __init__(self, root: str = "train", config_dir: str | None = None) -> None:
        self.root = root
        self.config_dir = config_dir
        if config_dir is not None and not os.path.isdir(config_dir):
            raise ConfigError(f"config_dir={config_dir} is not a folder. Give a folder with configuration groups.")

    def groups(self) -> dict[str, list[str]]:
        """The choices of every group."""
        # Only the package's files are cached: a user's may change between calls.
        known = (*ARCHITECTURES, *CORPORA, *TERMS)
        if self.config_dir is None and known in _GROUPS:
            return {name: list(choices) for name, choices in _GROUPS[known].items()}
        loader = self._loader()
        names = [name for name in loader.list_groups("") if name != "hydra"]
        groups = {name: sorted(loader.get_group_options(name)) for name in names}
        if self.config_dir is None:
            _GROUPS[known] = {name: list(choices) for name, choices in groups.items()}
        return groups

    def compose(self, overrides: Sequence[str], *, options: bool = True) -> dict[str, Any]:
        """The resolved configuration as plain containers; ``preset`` contains the choices of ``model`` and ``data``.

        Args:
            overrides: Arguments as typed.
            options: False omits the model's options, so that no model is imported.

        Raises:
            ConfigError: Not ``key=value``, an unknown key or choice, or a wrong type.
        """
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            base, values = self._known(overrides, options)
            composed = copy.deepcopy(base.composed)
            # Hydra itself would read all files again.
            ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), composed)
            config = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{first_line(error).rstrip('.')}. Correct the settings.") from error
        assert isinstance(config, dict)
        if "data" in config:
            self._check(check_corpus, config["data"], overrides)
        if "missing" in config:
            config["missing"] = self._check(canonical_laws, config["missing"], overrides)
        if options:
            self._check(check_model, config["model"], overrides)
        resolved = {"preset": dict(base.preset), **without_defaults({str(key): value for key, value in config.items()})}
        if options and "recipe" in resolved:
            from ercfusion.config.stages import stage_configs  # schemas are slow to import

            stage_configs(resolved)  # a mistake in a later stage is an error now
        return resolved

    def _check(
        self, check: Callable[[Mapping[str, Any]], T], section: Mapping[str, Any], overrides: Sequence[str]
    ) -> T:
        try:
            return check(section)
        except ConfigError as error:
            key = str(error).partition(" ")[0]
            origins = [origin_of(text) for text in overrides if text.partition("=")[0] == key]
            raise setting_error(origins[-1] if origins else "", str(error)) from error

    def choice(self, group: str, name: str) -> dict[str, Any]:
        """The content of one choice of a group, unchanged."""
        from omegaconf import OmegaConf

        composed, _ = self._composed(f"{group}/{name}", ())
        complete_model(composed)
        content = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(content, dict)
        section: dict[str, Any] = content[group]
        return section

    def settings(self, path: str) -> list[str]:
        """The content of a settings file (``settings=``) as arguments with their origin."""
        loaded = read_yaml(path, error=ConfigError, advice="Correct the file.", floats=True)
        if not isinstance(loaded, dict):
            raise ConfigError(f"settings={path} is not a mapping. Write one setting per line, such as `model: cogmen`.")
        return self.entries(loaded, f"{path}: ")

    def entries(self, loaded: Mapping[str, Any], origin: str = "") -> list[str]:
        """Settings by name, nested or dotted, as arguments; ``origin`` is the prefix of messages about them."""
        groups, arguments = self.groups(), []
        for key, value in ((str(name), value) for name, value in loaded.items()):
            if key in groups and isinstance(value, str):
                arguments.append(from_file(f"{key}={value}", origin))
                continue
            values = leaves(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
            arguments += [from_file(override_text(name, leaf), origin) for name, leaf in values]
        # Groups first: single settings change their values.
        return sorted(arguments, key=lambda argument: argument.partition("=")[0] not in groups)

    def split_ranges(self, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Ordinary arguments, and those in sweep syntax by key (``a=1,2``, ``a=interval(1,2)``)."""
        plain: list[str] = []
        ranges: dict[str, Any] = {}
        for argument, parsed in zip(overrides, parse(overrides), strict=True):
            ranges.pop(str(parsed.key_or_group), None)  # the last argument wins
            if parsed.is_sweep_override():
                plain = [text for text in plain if text.partition("=")[0].lstrip("+") != parsed.key_or_group]
                ranges[str(parsed.key_or_group)] = parsed
            else:
                plain.append(argument)
        return plain, ranges

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The values of ordinary arguments by key; the last one wins."""
        return {str(parsed.key_or_group): parsed.value() for parsed in parse(overrides)}

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """All combinations of a multirun: ``seed=0,1 model=concat,cogmen`` returns four lists."""
        from hydra.errors import HydraException

        choices, count = [], 1
        for argument, parsed in zip(overrides, parse(overrides, several=True), strict=True):
            if not parsed.is_sweep_override():
                choices.append([argument])
                continue
            if parsed.is_interval_sweep():
                raise ConfigError(f"{shown(argument)} is a range. {_RANGE}")
            key = parsed.get_key_element()
            try:
                values = [
                    _unescaped(str(value)) for value in itertools.islice(parsed.sweep_string_iterator(), MOST_RUNS + 1)
                ]
            except (HydraException, MemoryError) as error:
                raise ConfigError(f"{shown(argument)} is not a list of values. Write key=a,b,c.") from error
            count *= len(values)
            if count > MOST_RUNS:
                raise ConfigError(f"{shown(argument)}: more than {MOST_RUNS:,} combinations. Give fewer values.")
            choices.append([f"{key}={value}" for value in values])
        return [list(combination) for combination in itertools.product(*choices)]

    def _known(self, overrides: Sequence[str], options: bool) -> tuple[_Base, list[str]]:
        """The configuration of the chosen groups, and the settings that change it."""
        groups = self.groups()
        parsed = [(item, str(item.input_line), origin_of(text)) for text, item in zip(overrides, parse(overrides))]
        chosen: list[str] = []
        values: list[tuple[Any, str, str]] = []
        for item, line, origin in parsed:
            key = item.key_or_group
            if item.is_delete() or item.is_sweep_override():
                problem, advice = "has several values", "Add -m to run them all."
                if item.is_delete():
                    problem, advice = "deletes a setting", "Remove this argument."
                elif item.is_interval_sweep():
                    problem, advice = "is a range", _RANGE
                raise setting_error(origin, f"{shown(line)} {problem}. {advice}")
            if key not in groups:
                values.append((item, line, origin))
            elif item.value() not in groups[key]:
                text = str(item.value())
                law = key == "missing" and text.partition(":")[0] in LAWS
                advice = f"Write missing.train={text}." if law else did_you_mean(text, groups[key])
                raise setting_error(origin, f"{shown(line)}: no such choice of {key}. {advice}")
            else:
                chosen = [text for text in chosen if text.partition("=")[0] != key] + [line]  # the last one wins
        base = self._base(self.root, tuple(chosen), options=False)
        if options:
            # Check names before the slow import of the model.
            for item, line, origin in values:
                if item.key_or_group not in base.flat and not item.key_or_group.startswith("model."):
                    with naming(origin):
                        checked_value(item, line, base.flat, groups)
            base = self._base(self.root, tuple(chosen))
        changes: list[str] = []
        for item, line, origin in values:
            with naming(origin):
                changes.append(checked_value(item, line, base.flat, groups))
        return base, changes

    def _base(self, root: str, chosen: tuple[str, ...], *, options: bool = True) -> _Base:
        """The configuration of the chosen groups."""
        key = (root, chosen, options, tuple(TERMS))
        if self.config_dir is None and key in _BASES:
            return _BASES[key]
        from omegaconf import OmegaConf

        if options:
            plain = self._base(root, chosen, options=False)
            composed, preset, weighted = copy.deepcopy(plain.composed), plain.preset, plain.weighted
            complete_model(composed, weighted)
        else:
            composed, preset = self._composed(root, chosen)
            weighted = frozenset(OmegaConf.select(composed, "objective.weights") or ())
            for group, choice in (line.split("=", 1) for line in chosen):
                # A typed choice overrides a preset.
                if group in CHOICES:
                    OmegaConf.update(composed, group, self.choice(group, choice), merge=False, force_add=True)
            composed = _completed(composed)
            complete_corpus(composed)
        base = _Base(composed, flatten(composed), preset, weighted)
        if self.config_dir is None:
            _BASES[key] = base
        return base

    def _composed(self, root: str, chosen: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
        """The configuration of the chosen groups from files only, and the names of model and corpus."""
        from omegaconf import open_dict

        with self._initialized() as compose:
            composed = compose(root, list(chosen), return_hydra_config=True)
        choices = composed.hydra.runtime.choices
        with open_dict(composed):
            del composed["hydra"]
        return composed, {name: choices[name] for name in ("model", "data") if name in choices}

    def _initialized(self) -> Any:
        from hydra import compose, initialize_config_module
        from hydra.core.global_hydra import GlobalHydra

        @contextmanager
        def session() -> Iterator[Callable[..., Any]]:
            GlobalHydra.instance().clear()
            _store_choices(self.config_dir)
            extra = [f"hydra.searchpath=[file://{os.path.abspath(self.config_dir)}]"] if self.config_dir else []
            with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
                yield lambda root, overrides, **options: compose(root, [*overrides, *extra], **options)

        return session()

    def _loader(self) -> Any:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.utils import create_config_search_path

        _store_choices(self.config_dir)
        path = create_config_search_path(f"pkg://{CONFIG_MODULE}")
        if self.config_dir:
            path.append("user", f"file://{os.path.abspath(self.config_dir)}")
        return ConfigLoaderImpl(path)


def _unescaped(value: str) -> str:
    """A value of a multirun as it was typed: Hydra escapes the colon of ``rate:0.5``, which needs no escape."""
    return value if "'" in value or '"' in value else value.replace("\\:", ":")


def _completed(composed: Any) -> Any:
    """Add the default of every setting absent from the files."""
    from omegaconf import OmegaConf

    sections = [section for section in (*SECTIONS, *CHOICES) if section != "sweep" or "sweep" in composed]
    defaults = defaults_of("")
    for section in sections:
        defaults[section] = defaults_of(section, OmegaConf.select(composed, f"{section}.name"))
    completed = OmegaConf.merge(OmegaConf.create(defaults), composed)
    OmegaConf.set_struct(completed, True)
    return completed


def _store_choices(config_dir: str | None) -> None:
    """Register the choices without a file in Hydra; their defaults are added later."""
    from hydra.core.config_store import ConfigStore

    store_architectures(config_dir)
    store_corpora(config_dir)

    store = ConfigStore.instance()
    store.repo.pop("objective", None)  # terms that are no longer registered
    for name in TERMS:
        store.store(name=name, node={"weights": {name: _WEIGHT}}, group="objective")
    for section in CHOICES:
        for name in names_of(section):
            store.store(name=name, node={"name": name}, group=section)
    for section, name in _DEFAULT_CHOICES.items():
        store.store(name=name, node={}, group=section)
