"""The page "troubleshooting": every error message of the package, read from its code.

A message is the text of a call that makes an error. Values are named by the expression that stands for them:
``f"{path}: {len(rows)} rows"`` is shown as *path*: *rows* rows. Functions that pass their arguments on into a message
are followed to their callers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from docs.computed.registry import ROOT, register_built

PACKAGE = ROOT / "ercfusion"
PYTHON = ("ops", "layers", "losses", "metrics")
"""Packages that raise ValueError and TypeError for users of Python."""
SUBJECTS = {
    "Settings and commands": ("config", "tasks", "_core", "commands"),
    "Corpora": ("data",),
    "Feature packs": ("data.pack", "data.storage", "data.store", "data.features", "data.bound", "data.usable"),
    "Features from recordings and texts": ("features",),
    "Feature pickles": ("features.imports",),
    "Models": ("models", "batch", "testing"),
    "Training, runs and records": ("training", "records", "fitting", "plots"),
    "Sweeps": ("search",),
    "Tables": ("tables",),
    "Layers, operators, losses and metrics": PYTHON,
}
"""Heading to the packages and modules whose messages are below it; the longest name decides."""
VERBS = re.compile(
    "(?:If [^,]*, |To [^,]*, )?(?:"
    "Add|Allow|Begin|Build|Check|Choose|Close|Compare|Continue|Convert|Copy|Correct|Create|Delete|Derive|Download|Drop|Edit|"
    "Export|Extract|Fill|Fit|Free|Get|Give|Increase|Install|Keep|Label|Leave|List|Load|Look|Lower|Make|Mark|Measure|Move|"
    "Name|Omit|Open|Pass|Put|Raise|Read|Record|Reduce|Register|Remove|Rename|Repeat|Replace|Report|Reproduce|Resume|"
    "Restore|Run|Say|Score|Select|Set|Shorten|Sort|Split|Start|State|Switch|Take|Train|Try|Turn|Type|Unpack|Update|"
    r"Upgrade|Use|Wait|Write)\b",
)
"""What a sentence with advice begins with."""
_PASSED = ("advice", "message", "problem", "reason", "remedy", "text", "words", "why", "what")
# After a colon or semicolon, advice begins with one of these verbs, which are not nouns.
_CLAUSE = r"(?:use|get|give|choose|install|add|remove|take|copy|repeat|check|convert|delete|rename|train) "
_END = re.compile(rf"(?<=[.?!}}])\s+(?=[A-Z`{{])|(?<=[:;])\s+(?={_CLAUSE}|Did you)")


@dataclass(frozen=True)
class Message:
    """An error message.

    Args:
        error: The name of its class.
        module: Dotted, without the package.
        line: Of the call.
        text: With values in braces.
    """

    error: str
    module: str
    line: int
    text: str

    @property
    def sentences(self) -> list[str]:
        """Its sentences."""
        return _END.split(" ".join(self.text.split()))

    @property
    def advice(self) -> list[str]:
        """The sentences that say what to do."""
        return [each for each in self.sentences if is_advice(each)]

    @property
    def what_to_do(self) -> str:
        """The advice as one text; the page cannot show what is decided when the message is made."""
        words = " ".join(each for each in self.advice if each not in ("{advice}", "{remedy}"))
        return words or "The message says it."

    @property
    def problem(self) -> str:
        """The other sentences."""
        return " ".join(each for each in self.sentences if not is_advice(each))

    @property
    def subject(self) -> str:
        """The heading that it is listed under."""
        fitting = [
            (len(name), heading)
            for heading, names in SUBJECTS.items()
            for name in names
            if f"{self.module}.".startswith(f"{name}.")
        ]
        return max(fitting)[1] if fitting else "Settings and commands"


def is_advice(sentence: str) -> bool:
    """Whether a sentence begins with a verb of :data:`VERBS`, or is one of ``did_you_mean``."""
    return bool(VERBS.match(sentence) or re.match(_CLAUSE, sentence)) or sentence.startswith(
        ("Did you mean", "{advice}", "{remedy}")
    )


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, without the package's."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def error_names() -> frozenset[str]:
    """ErcfusionError and all classes derived from it."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {"ErcfusionError"}
    while more := {one.name for one in classes if {ast.unparse(base) for base in one.bases} & names} - names:
        names |= more
    return frozenset(names)


@dataclass(frozen=True)
class Function:
    """A function of the package, and where it is."""

    module: str
    node: ast.FunctionDef

    @property
    def is_method(self) -> bool:
        """Whether it is called on an object."""
        arguments = self.node.args.args
        return bool(arguments) and arguments[0].arg in ("self", "cls")

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters but ``self``."""
        arguments = self.node.args
        return [
            one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if one.arg != "self"
        ]

    def defaults(self) -> dict[str, str]:
        """Parameters whose default is a text."""
        arguments = self.node.args
        ordered = [*arguments.posonlyargs, *arguments.args]
        pairs = [
            *zip(reversed(ordered), reversed(arguments.defaults)),
            *zip(arguments.kwonlyargs, arguments.kw_defaults),
        ]
        return {
            one.arg: value.value
            for one, value in pairs
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        }

    def constants(self) -> dict[str, str]:
        """Local names that are given one text, and no other value."""
        return constants(self)


@cache
def constants(function: Function) -> dict[str, str]:
    """See :meth:`Function.constants`."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function.node):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    return {
        name: rendered(results[0], {})
        for name, results in values.items()
        if len(results) == 1 and _is_text(results[0]) and name not in function.parameters
    }


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


@cache
def functions() -> dict[str, list[Function]]:
    """The functions and methods of the package by name."""
    result: dict[str, list[Function]] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                result.setdefault(node.name, []).append(Function(module, node))
    return result


@cache
def texts_of(module: str) -> dict[str, str]:
    """The constants of a module that are texts, imported ones too."""
    texts: dict[str, str] = {}
    for node in trees()[module].body:
        if isinstance(node, ast.ImportFrom) and (source := (node.module or "").removeprefix("ercfusion.")) in trees():
            texts |= {each.asname or each.name: texts_of(source).get(each.name, "") for each in node.names}
        elif isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts))
            texts |= {
                name.id: rendered(text, {}) for name, text in pairs if isinstance(name, ast.Name) and _is_text(text)
            }
    return {name: text for name, text in texts.items() if text}


def rendered(node: ast.expr, values: Mapping[str, str]) -> str:
    """The text of an expression, with braces around the names of what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(rendered(part, values) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return rendered(node.value, values)
    if isinstance(node, ast.IfExp):
        return max(rendered(node.body, values), rendered(node.orelse, values), key=len)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_text(node):
        return rendered(node.left, values) + rendered(node.right, values)
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.Call):
        name = name_of(node.func)
        if isinstance(node.func, ast.Attribute) and name in ("strip", "rstrip", "lstrip", "removesuffix", "capitalize"):
            return rendered(node.func.value, values)
        if name == "did_you_mean":
            return "Did you mean {name}?"
        (one,) = functions().get(name, [None]) if len(functions().get(name, ())) == 1 else [None]
        if one is not None:
            returns = [each for each in ast.walk(one.node) if isinstance(each, ast.Return) and each.value is not None]
            if len(returns) == 1 and returns[0].value is not None and _is_text(returns[0].value):
                return rendered(returns[0].value, {**texts_of(one.module), **bound(one, node, values)})
    return "{" + label(node) + "}"


def label(node: ast.expr) -> str:
    """A name for the value of an expression."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        general = node.attr in ("name", "shape", "__name__") and label(node.value) != "self"
        return label(node.value) if general else node.attr.strip("_")
    if isinstance(node, ast.Subscript):
        key = node.slice
        return str(key.value) if isinstance(key, ast.Constant) and isinstance(key.value, str) else label(node.value)
    if isinstance(node, ast.Call):
        if node.args:
            return label(node.args[0])
        return label(node.func.value) if isinstance(node.func, ast.Attribute) else name_of(node.func)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            return label(child)
    return "value"


def name_of(function: ast.expr) -> str:
    """The last part of the name of what is called."""
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def bound(function: Function, call: ast.Call, values: Mapping[str, str]) -> dict[str, str]:
    """The texts that a call gives to the parameters of a function."""
    given = dict(zip(function.parameters, (rendered(each, values) for each in call.args)))
    given |= {each.arg: rendered(each.value, values) for each in call.keywords if each.arg}
    return {**function.defaults(), **given}


def made(call: ast.Call, values: Mapping[str, str], kinds: frozenset[str]) -> tuple[str, str] | None:
    """(class, text) of the error that a call makes; None for another call."""
    name = name_of(call.func)
    if name in kinds and call.args:
        return name, rendered(call.args[-1] if name == "CorpusFormatError" else call.args[0], values)
    if name == "failure" and len(call.args) > 2:
        parts = [rendered(each, values) for each in call.args[2:]]
        parts += [rendered(each.value, values) for each in call.keywords if each.arg == "advice"]
        text = "{path}" + parts[0] + "".join(f". {part}" for part in parts[1:] if part)
        return rendered(call.args[0], {}).strip("{}"), text
    return None


@cache
def messages() -> list[Message]:
    """Every message of the package."""
    result: list[Message] = []
    passing: set[tuple[str, str]] = set()  # functions whose callers are followed
    for module in trees():
        kinds = error_names() | ({"ValueError", "TypeError"} if module.split(".")[0] in PYTHON else set())
        for function, call in calls(module):
            makes = name_of(call.func) in kinds or name_of(call.func) == "failure"
            if not makes or (function is not None and function.node.name == "failure"):
                continue
            values = {**texts_of(module), **(function.constants() if function else {})}
            error = made(call, values, kinds)
            if error is None:
                continue
            handed = [] if function is None else [one for one in _PASSED if one in function.parameters]
            if function is not None and any("{" + one + "}" in error[1] for one in handed):
                if (module, function.node.name) not in passing:
                    passing.add((module, function.node.name))
                    result += followed(function, kinds)
            elif re.search(r"[A-Za-z]{2}", re.sub(r"\{.*?\}", "", error[1])):
                result.append(Message(error[0], module, call.lineno, error[1]))
    return sorted(set(result), key=lambda one: (one.module, one.line))


@cache
def calls(module: str) -> list[tuple[Function | None, ast.Call]]:
    """Every call of a module with the function that it is in."""

    def walk(node: ast.AST, function: Function | None) -> Iterator[tuple[Function | None, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield function, child
            yield from walk(child, Function(module, child) if isinstance(child, ast.FunctionDef) else function)

    return list(walk(trees()[module], None))


def followed(function: Function, kinds: frozenset[str]) -> list[Message]:
    """The messages that the callers of a function hand to it."""
    name, result = function.node.name, []
    anywhere = len(functions()[name]) == 1 and not name.startswith("_")
    for module in trees() if anywhere else [function.module]:
        for caller, call in calls(module):
            if (
                isinstance(call.func, ast.Attribute) != function.is_method
                or name_of(call.func) != name
                or (caller is not None and caller.node.name == name)
            ):
                continue
            values = {**texts_of(module), **(caller.constants() if caller else {})}
            own = {**texts_of(function.module), **function.constants(), **bound(function, call, values)}
            for inner, node in calls(function.module):
                error = made(node, own, kinds) if inner is not None and inner.node is function.node else None
                if error is not None:
                    result.append(Message(error[0], module, call.lineno, error[1]))
    return result


def shown(text: str) -> str:
    """A message in Markdown: values in italics, code as it is, everything else without marks."""
    parts = re.split(r"(`[^`]*`|\{.*?\})", text.replace("}{", "} {"))
    for index, part in enumerate(parts):
        if part.startswith("{"):
            parts[index] = f"*{part.strip('{}').replace('_', ' ')}*"
        elif not part.startswith("`"):
            parts[index] = re.sub(r"([\\*_<>\[\]|$#~])", r"\\\1", part)
        else:
            parts[index] = part.replace("|", "\\|")
    return "".join(parts)


def message_tables() -> list[str]:
    """One heading per subject, with one row per message. Messages of values only are omitted."""
    lines: list[str] = []
    results = [one for one in messages() if re.search("[A-Za-z]{3}", re.sub(r"\{.*?\}", "", one.problem))]
    for heading in SUBJECTS:
        rows = {(one.problem, one.what_to_do) for one in results if one.subject == heading}
        lines += [f"## {heading}", "", "| message | what to do |", "|---|---|"]
        lines += [f"| {shown(problem)} | {shown(advice)} |" for problem, advice in sorted(rows)]
        lines += [""]
    return lines


def without_advice() -> list[str]:
    """The place and text of every message to users that does not say what to do, nor passes another one on."""
    return [
        f"ercfusion/{one.module.replace('.', '/')}.py:{one.line}: {one.text}"
        for one in messages()
        if not one.advice and one.error not in ("ValueError", "TypeError") and not re.search(r"\{error\}\.?$", one.text)
    ]


register_built("messages", "docs/troubleshooting.md", message_tables)
