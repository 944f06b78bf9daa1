"""``python -m ercfusion.sweep``: search the settings of a model on dev, and train the winner on fresh seeds."""

from __future__ import annotations

import sys
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.cli import run_command
from ercfusion.config.compose import Composer
from ercfusion.config.hints import resume_command
from ercfusion.config.overrides import expand_protocol
from ercfusion.config.settings import fields_in
from ercfusion.grammar import Command, Flag, Key, Typed, columns
from ercfusion.search.config import compose_sweep
from ercfusion.search.storage import VARIABLE, has_password
from ercfusion.training.processes import leave_launcher


def _tables(composer: Composer) -> list[tuple[str, list[str]]]:
    """The settings of the section ``sweep``, for the help."""
    rows = [
        (f"{key}={'null' if field.default is None else field.default}", field.known.meaning.replace("`", ""))
        for key, field in fields_in("sweep").items()
    ]
    return [("the section sweep (in addition to all settings of train)", [columns(rows)])]


COMMAND = Command(
    "sweep",
    "Search the settings of a model: many trials, scored on dev only; then train the winner on fresh seeds",
    (
        ("model=concat data=demo sweep.trials=8", "a first try, on the embedded corpus"),
        ("model=cogmen data=meld data.raw=DIR", "50 trials in as many processes as cores"),
        ("model=cogmen model.dropout=0.3", "a setting with a value is not searched"),
        ("'optimizer.lr=tag(log,interval(1e-4,1e-2))'", "a range of your own (quotes for the shell)"),
        ("model.layers=0,1,2 'model.past=range(1,9,2)'", "choices, and steps: 1, 3, 5, 7"),
        ("'sweep.only=[optimizer.lr,model.dropout]'", "search these two and leave the others"),
        ("resume=DIR", "go on with an interrupted sweep"),
        ("resume=DIR sweep.trials=80", "30 more"),
        ("sweep.name=NAME sweep.storage=URL", "the same on every machine: search together"),
    ),
    usage=("[model=NAME] [data=NAME] [sweep.key=value ...] [key=value ...] [flags]",),
    keys=(Key("settings", "settings to begin with, as in best.yaml; they are searched nevertheless", "file"),),
    flags=(Flag("cfg", "print the configuration and the space that would be used, and stop"),),
    config="sweep",
    groups=("model", "data", "space"),
    bare=True,
    tables=_tables,
    notes="""
The space is that of the model's architecture; space=NAME takes another. Train with what was found:
train settings=DIR/best.yaml seed=1.

A sweep writes a folder below outputs/sweep/ (output=DIR, or run=DIR for exactly that one): the trials, a table and
pictures of them, best.yaml, and complete runs of the winner. Its path is the last line printed. The score of the best
trial is optimistic, as the best of many always is; the fresh seeds are what to report.
""",
)


def main(argv: list[str]) -> int:
    """The command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    leave_launcher()  # srun may start several sweeps: they search together through the study
    composer = typed.composer
    if "cfg" not in typed.flags and any(argument.startswith("resume=") for argument in typed.settings):
        return _resume(typed)

    entries = composer.settings(typed.keys["settings"]) if "settings" in typed.keys else []
    arguments = [part for argument in typed.settings for part in expand_protocol(argument)]
    config = compose_sweep(composer, entries, arguments)
    if "cfg" in typed.flags:
        from omegaconf import OmegaConf

        config.pop("typed")
        print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
        return 0
    from ercfusion.search.run import begin

    return _carry_on(begin(config, [*entries, *arguments], list(typed.words)))


def _resume(typed: Typed) -> int:
    from ercfusion.search.run import CHANGEABLE, reopen

    arguments = typed.settings
    if others := [key for key in typed.keys if key != "imports"]:
        raise ConfigError(f"resume= goes on with the settings of the sweep; {others[0]}= does not go with it")
    known = [f"sweep.{key}" for key in CHANGEABLE]
    for argument in arguments:
        key = argument.partition("=")[0]
        if key not in (*known, "resume", "imports"):
            hint = did_you_mean(key, known) if key.startswith("sweep.") else f"Only {', '.join(known)} can be."
            raise ConfigError(
                f"resume= goes on with the settings of the sweep; {argument!r} cannot be changed now. {hint}"
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
