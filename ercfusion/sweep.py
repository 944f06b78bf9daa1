"""``python -m ercfusion.sweep``: search the settings of a model on dev, and train the winner on fresh seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion._core.hints import resume_command
from ercfusion._core.overrides import expand_protocol
from ercfusion.cli import listed, run_command, split_flags
from ercfusion.config.compose import Composer

HELP = """\
Search the settings of a model: many trials, scored on dev alone; then train the winner on fresh seeds.

usage: python -m ercfusion.sweep [model=NAME] [data=NAME] [sweep.key=value ...] [key=value ...] [flags]

examples
  python -m ercfusion.sweep model=concat data=demo sweep.trials=8         a first try, on the embedded corpus
  python -m ercfusion.sweep model=cogmen data=meld data.raw=DIR           50 trials in as many processes as cores
  python -m ercfusion.sweep model=cogmen model.dropout=0.3                a setting with a value is not searched
  python -m ercfusion.sweep 'optimizer.lr=tag(log,interval(1e-4,1e-2))'   a range of your own (quotes for the shell)
  python -m ercfusion.sweep model.layers=0,1,2 'model.past=range(1,9,2)'  choices, and steps: 1, 3, 5, 7
  python -m ercfusion.sweep 'sweep.only=[optimizer.lr,model.dropout]'     search these two and leave the others
  python -m ercfusion.sweep resume=DIR                                    go on with an interrupted sweep
  python -m ercfusion.sweep resume=DIR sweep.trials=80                    30 more
  python -m ercfusion.sweep sweep.name=NAME sweep.storage=URL ...         the same on every machine: search together
  python -m ercfusion.train --settings DIR/best.yaml seed=1               train with what was found

models      {models}
corpora     {corpora}
spaces      {spaces}
            (chosen by the model; space=NAME takes another)

the section sweep (beside all settings of python -m ercfusion.train)
{settings}

flags
  --help, -h         this text
  --cfg              print the configuration and the space that would be used, and stop
  --settings FILE    settings to begin with, as best.yaml has them; they are searched nevertheless
  --config-dir DIR   also look for configuration groups in DIR (DIR/space/mine.yaml makes space=mine)

A sweep writes a folder below outputs/sweep/ (output=DIR, or run=DIR for exactly that one): the trials, a table and
pictures of them, best.yaml, and complete runs of the winner. Its path is the last line printed. The score of the best
trial is optimistic, as the best of many always is; the fresh seeds are what to report.
"""

# One line each; docs/sweeps.md says more.
SETTINGS = {
    "trials": "trials in all, over all machines",
    "workers": "processes on this machine",
    "metric": "dev score to search for",
    "sampler": "tpe or random",
    "pruner": "median, hyperband or none",
    "startup": "trials before the median pruner begins",
    "warmup": "epochs before a trial may be pruned",
    "seed": "of the choice of settings",
    "only": "search these settings of the space only",
    "storage": "database URL or journal:FILE, for several machines",
    "name": "sweeps of one name and storage search together",
    "rerun": "fresh seeds for the winner",
    "timeout": "hours after which no trial is begun",
}


def help_text(composer: Composer) -> str:
    """The text of ``--help``, with the models, corpora, spaces and settings that exist."""
    groups = composer.groups()
    defaults = composer.compose(["model=concat"])["sweep"]
    shown = {name: "null" if value is None else str(value) for name, value in defaults.items()}
    return HELP.format(
        models=listed(groups["model"], 12),
        corpora=listed(groups["data"], 12),
        spaces=listed(groups.get("space", []), 12),
        settings="\n".join(f"  {f'sweep.{name}={shown[name]}':<22}{text}" for name, text in SETTINGS.items()),
    )


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h", "--cfg"], ["--settings", "--config-dir"])
    composer = Composer("sweep", flags.get("--config-dir"))
    if "--help" in flags or "-h" in flags:
        print(help_text(composer), end="")
        return 0
    from ercfusion.training.processes import stand_alone

    stand_alone()  # srun may start several sweeps: they search together through the study
    resumed = [argument for argument in arguments if argument.startswith("resume=")]
    if resumed and "--cfg" not in flags:
        return _resume(composer, arguments, flags)
    from ercfusion.search.config import compose_sweep

    entries = composer.settings(flags["--settings"]) if "--settings" in flags else []
    arguments = [part for argument in arguments for part in expand_protocol(argument)]
    config = compose_sweep(composer, entries, arguments)
    if "--cfg" in flags:
        from omegaconf import OmegaConf

        config.pop("typed")
        print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
        return 0
    from ercfusion.search.run import begin

    return _carry_on(begin(config, [*entries, *arguments], argv))


def _resume(composer: Composer, arguments: Sequence[str], flags: dict[str, Any]) -> int:
    from ercfusion.search.run import CHANGEABLE, reopen

    if flags:
        raise ConfigError(f"resume= goes on with the settings of the sweep; {next(iter(flags))} does not go with it")
    known = [f"sweep.{key}" for key in CHANGEABLE]
    for argument in arguments:
        key = argument.partition("=")[0]
        if key not in (*known, "resume", "imports"):
            hint = did_you_mean(key, known) if key.startswith("sweep.") else f"Only {', '.join(known)} can be."
            raise ConfigError(
                f"resume= goes on with the settings of the sweep; {argument!r} cannot be changed now. {hint}"
            )
    config = composer.compose(arguments)
    typed = {argument.partition("=")[0].removeprefix("sweep.") for argument in arguments}
    changes = {key: config["sweep"][key] for key in CHANGEABLE if key in typed}
    named = config["imports"] if "imports" in typed else []
    return _carry_on(reopen(config["resume"], changes, named), rerun_asked="rerun" in changes)


def _carry_on(plan: Any, *, rerun_asked: bool = False) -> int:
    from ercfusion.search.results import report
    from ercfusion.search.run import carry_on
    from ercfusion.search.storage import VARIABLE, has_password

    try:
        summary = carry_on(plan, rerun_asked=rerun_asked)
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
