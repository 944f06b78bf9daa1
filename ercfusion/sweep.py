"""``python -m ercfusion.sweep``: search a model's settings on dev, and train the best ones with new seeds."""

from __future__ import annotations

import sys
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.cli import run_command
from ercfusion.config.compose import Composer
from ercfusion.config.hints import resume_command
from ercfusion.config.overrides import expand_protocol
from ercfusion.config.settings import fields_in
from ercfusion.grammar import Command, Flag, Key, Typed, settings_lines
from ercfusion.search.config import compose_sweep
from ercfusion.search.storage import VARIABLE, has_password
from ercfusion.training.processes import leave_launcher


def _tables(composer: Composer) -> list[tuple[str, list[str]]]:
    """The settings of the section ``sweep``, for the help."""
    return [("Settings of the search (all settings of train are accepted too):", settings_lines(fields_in("sweep")))]


COMMAND = Command(
    "sweep",
    "Search the settings of a model on dev, then train the best ones with new seeds",
    (
        ("model=concat data=demo sweep.trials=8", "8 trials on the generated corpus demo"),
        ("model=cogmen data=meld data.raw=DIR", "50 trials, in parallel on all cores"),
        ("model=cogmen model.dropout=0.3", "a setting with a value is not searched"),
        ("'optimizer.lr=tag(log,interval(1e-4,1e-2))'", "your own range, logarithmic"),
        ("model.layers=0,1,2 'model.past=range(1,9,2)'", "your own choices, and steps 1, 3, 5, 7"),
        ("'sweep.only=[optimizer.lr,model.dropout]'", "search only these two"),
        ("resume=DIR", "resume an interrupted sweep"),
        ("resume=DIR sweep.trials=80", "increase the number of trials to 80"),
        ("sweep.name=NAME sweep.storage=URL", "on several machines: one search together"),
    ),
    usage=("[model=NAME] [data=NAME] [sweep.key=value ...] [key=value ...] [flags]",),
    keys=(Key("settings", "read settings from a YAML file, such as best.yaml; they are searched too", "file"),),
    flags=(Flag("cfg", "print all settings and the search space, and stop"),),
    config="sweep",
    groups=("model", "data", "space"),
    bare=True,
    tables=_tables,
    notes="""
The last line printed is the sweep's folder, a new one in outputs/sweep: trials, table, pictures, best.yaml and the runs
with new seeds. Report these runs: the score of the best trial is optimistic. Train with the best settings:
train settings=DIR/best.yaml seed=1.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    leave_launcher()  # several sweeps started by srun share the study, not a process group
    composer = typed.composer
    if "cfg" not in typed.flags and any(argument.startswith("resume=") for argument in typed.settings):
        return _resume(typed)

    file = composer.settings(typed.keys["settings"]) if "settings" in typed.keys else []
    arguments = [part for argument in typed.settings for part in expand_protocol(argument)]
    config = compose_sweep(composer, file, arguments)
    if "cfg" in typed.flags:
        from omegaconf import OmegaConf

        config.pop("typed")
        print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
        return 0
    from ercfusion.search.run import begin

    return _carry_on(begin(config, [*file, *arguments], list(typed.words)))


def _resume(typed: Typed) -> int:
    from ercfusion.search.run import CHANGEABLE, reopen

    arguments = typed.settings
    if others := [key for key in typed.keys if key != "imports"]:
        raise ConfigError(f"resume= continues with the settings of the sweep. Remove {others[0]}=")
    known = [f"sweep.{key}" for key in CHANGEABLE]
    for argument in arguments:
        key = argument.partition("=")[0]
        if key not in (*known, "resume", "imports"):
            hint = did_you_mean(key, known) if key.startswith("sweep.") else f"Change only {', '.join(known)}."
            raise ConfigError(
                f"resume= continues with the settings of the sweep; {argument!r} cannot be changed now. {hint}"
            )
    config = typed.composer.compose(arguments)
    given = {argument.partition("=")[0].removeprefix("sweep.") for argument in arguments}
    changes = {key: config["sweep"][key] for key in CHANGEABLE if key in given}
    return _carry_on(reopen(config["resume"], changes, typed.keys.get("imports", [])), rerun_asked="rerun" in changes)


def _carry_on(plan: Any, *, rerun_asked: bool = False) -> int:
    from ercfusion.search.results import report
    from ercfusion.search.run import run_sweep

    try:
        summary = run_sweep(plan, rerun_asked=rerun_asked)
    except KeyboardInterrupt:
        again = resume_command("interrupted sweep", "sweep", plan.folder)
        needs = f" (with {VARIABLE}=URL)" if plan.storage is not None and has_password(plan.storage) else ""
        print(f"\ninterrupted; continue with: {again}{needs}", file=sys.stderr)
        raise
    print(report(summary))
    print(plan.folder, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
