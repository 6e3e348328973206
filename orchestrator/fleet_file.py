"""Reads a fleet file, or says what is wrong with it: each fault on one line, with its line in the file and its path.

The text is untrusted. It is read as a stream of YAML events and never as objects: no tags, bounded size, depth and
aliases, no key twice, and none of YAML 1.1's guesses (`no` as false, `010` as eight, `12:30` as a number): where one
would guess, the reader asks for quotes. What passes is validated by the fleet's own model.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.domain import fleet as model
from orchestrator.domain.fleet import Fleet
from orchestrator.errors import BadInput

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
# Above what 10,000 servers with a domain, an id and three pools take, and far below what a bomb of aliases wants.
MAX_NODES = 300_000
MAX_SERVERS = 10_000
MAX_FAULTS = 20
NEXT = "mend the file; nothing was created"

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,19}\.[0-9]{0,19}|\.[0-9]{1,19}|[0-9]{1,19}(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?")
_GUESSED = (
    (re.compile(r"(?i:yes|no|on|off)"), "YAML reads {0} as true or false"),
    (re.compile(r"(?i:[-+]?\.inf|\.nan)"), "{0} is no number that can be used"),
    (re.compile(r"[-+]?0[0-9_]+|[-+]?0[ob][0-9_]+"), "YAML reads {0} as an octal or binary number"),
    (re.compile(r"[-+]?0x[0-9a-fA-F_]+"), "YAML reads {0} as a hexadecimal number"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"), "YAML reads {0} as a number to base 60"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?"), "YAML reads {0} as a date"),
    (re.compile(r"[-+]?[0-9]{20,}|[-+]?[0-9][0-9_]*_[0-9_]*"), "{0} is no number that can be used"),
)


@dataclass(frozen=True, slots=True)
class _Scalar:
    line: int
    value: str
    plain: bool

    @property
    def size(self) -> int:
        """Aliases multiply long texts as well: each hundred characters count as a value."""
        return 1 + len(self.value) // 100


@dataclass(slots=True)
class _List:
    line: int
    items: list[_Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class _Mapping:
    line: int
    items: dict[str, _Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)
    size: int = 1
    key: str | None = None


_Node = _Scalar | _List | _Mapping


def load(path: str | Path) -> Fleet:
    """The fleet that this file describes. Raises `BadInput` with every fault, or why it cannot be read."""
    return read(text_of(path), name=Path(path).name)


def text_of(path: str | Path) -> str:
    """The file's text. Raises `BadInput` if it is missing, no file, too large or not UTF-8."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput("there is no such file", place=str(path), next="check the path") from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", place=str(path), next="name the file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(
            f"cannot be read: {reason}", place=str(path), next="check the path and its permissions"
        ) from None
    return text_from(raw, name=path.name)


def text_from(raw: bytes, *, name: str) -> str:
    """These bytes as text. Raises `BadInput` if they are too many or not UTF-8; `name` as in `read`."""
    if len(raw) > MAX_BYTES:
        raise _bad("is larger than 1 MiB", name=name)
    for mark, encoding in ((b"\xef\xbb\xbf", "a byte order mark"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if raw.startswith(mark):
            raise _bad(f"begins with {encoding}: save it as plain UTF-8", name=name, line=1)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _bad(f"byte 0x{raw[error.start]:02x} is not UTF-8: save it as UTF-8", name=name, line=line) from None


def read(text: str, *, name: str, put: Mapping[str, Any] | None = None) -> Fleet:
    """The fleet that this text describes; `name` is what the file is called in messages. `put`: values for places such
    as `target.size.disk`, instead of what the text says there. Raises `BadInput`."""
    root = _tree(text, name)
    data = _plain(root, (), name)
    for place, value in (put or {}).items():
        _put_at(data, place, value, root, name)
    servers = data.get("servers")
    if isinstance(servers, list) and len(servers) > MAX_SERVERS:
        place = _place(root, ("servers",), name)
        many = f"{len(servers):,} servers; {MAX_SERVERS:,} are the most"
        raise BadInput(many, place=place, next=NEXT, faults=[("/servers", many)])
    return _valid(Fleet, data, root, name)


def read_as(kind: type[M], text: str, *, name: str) -> M:
    """Another kind of file, read as strictly as a fleet file is. Raises `BadInput`."""
    root = _tree(text, name)
    return _valid(kind, _plain(root, (), name), root, name)


def _valid(kind: type[M], data: Any, root: _Mapping, name: str) -> M:
    try:
        return kind.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        raise _told(list(_faults(error, root, data, name, kind))) from None


def _put_at(data: Any, place: str, value: Any, root: _Mapping, name: str) -> None:
    *path, last = place.split(".")
    for n, part in enumerate(path):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            inside = tuple(path[: n + 1])
            raise _bad(f"has nothing inside it that could be put at {place}", name, _line(root, inside), inside)
    data[last] = value


def knows(place: str) -> bool:
    """Whether a fleet file can say something there."""
    path = tuple(place.split("."))
    known = _keys_at(path[:-1], Fleet)
    return not known or path[-1] in known


def place_of(text: str, path: Path_, *, name: str) -> str:
    """Where that part of a readable file stands, as `fleet.yaml:12: target.size.disk`."""
    return _place(_tree(text, name), path, name)


# -- from text to a tree with line numbers ----------------------------------------------------------------------------


def _tree(text: str, name: str) -> _Mapping:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _bad("holds characters that are not Unicode text", name=name) from None
    if size > MAX_BYTES:
        raise _bad("is larger than 1 MiB", name=name)
    if text.startswith("\ufeff"):
        raise _bad("begins with a byte order mark: save it as plain UTF-8", name=name, line=1)
    if "\x00" in text:
        raise _bad("holds a NUL byte", name=name, line=text.count("\n", 0, text.index("\x00")) + 1)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = _compose(yaml.parse(text, Loader=loader), name)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        raise _bad("holds a control character", name=name, line=line) from None
    except yaml.YAMLError as error:
        raise _bad(f"is no YAML: {_one_line(str(error))}", name=name) from None
    if root is None:
        raise _bad("is empty", name=name)
    if not isinstance(root, _Mapping):
        raise _bad("must be keys and values, beginning with `version: 1`", name=name, line=root.line)
    return root


def _not_yaml(error: yaml.MarkedYAMLError, text: str, name: str) -> BadInput:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    lines = text.splitlines()
    if line and any(re.match(r" *\t", at) for at in lines[max(0, line - 2) : line]):
        return _bad("a tab in the indentation: YAML wants spaces", name=name, line=line)
    problem = _one_line(error.problem or error.context or "it cannot be read")
    if "undefined alias" in problem:
        problem = "an alias (*name) has no anchor (&name) before it"
    return _bad(f"is no YAML: {problem}", name=name, line=line)


def _compose(events: Iterator[Any], name: str) -> _Node | None:
    """The tree of the only document. Depth and the number of nodes, aliases written out, are bounded on the way."""
    stack: list[_List | _Mapping] = []
    anchors: dict[str, _Node | None] = {}
    opened: list[str | None] = []
    root: _Node | None = None
    documents = 0
    total = 0
    for event in events:
        node: _Node
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise _bad("a second document begins here: one fleet a file", name=name, line=line)
                continue
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                node, anchor = stack.pop(), opened.pop()
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                _no_tag(event, name, line)
                if len(stack) >= MAX_DEPTH:
                    raise _bad(f"is nested deeper than {MAX_DEPTH} levels", name=name, line=line)
                if event.anchor:
                    anchors[event.anchor] = None
                stack.append(_List(line) if isinstance(event, yaml.SequenceStartEvent) else _Mapping(line))
                opened.append(event.anchor)
                continue
            case yaml.AliasEvent():
                node, anchor = _anchored(str(event.anchor), anchors, name, line), None
            case yaml.ScalarEvent():
                _no_tag(event, name, line)
                node, anchor = _Scalar(line, event.value, not event.style), event.anchor
            case _:
                continue
        if anchor:
            anchors[anchor] = node
        total += node.size if isinstance(event, (yaml.AliasEvent, yaml.ScalarEvent)) else 1
        if total > MAX_NODES:
            raise _bad(f"holds more than {MAX_NODES:,} values, its aliases written out", name=name, line=line)
        if not stack:
            root = node
        else:
            _put(stack[-1], node, name, line)
    return root


def _anchored(alias: str, anchors: Mapping[str, _Node | None], name: str, line: int) -> _Node:
    node = anchors.get(alias)
    if node is None:
        why = "is part of itself" if alias in anchors else "has no anchor (&name) before it"
        raise _bad(f"the alias *{_cut(alias)} {why}", name=name, line=line)
    return node


def _no_tag(event: Any, name: str, line: int) -> None:
    if event.tag is not None:
        raise _bad(f"the tag {_quoted(event.tag)} is refused: write plain values", name=name, line=line)


def _put(parent: _List | _Mapping, node: _Node, name: str, line: int) -> None:
    if isinstance(parent, _List):
        parent.items.append(node)
    elif parent.key is None:
        parent.key = _key(node, parent, name, line)
        parent.key_lines[parent.key] = line
        return
    else:
        parent.items[parent.key] = node
        parent.key = None
    parent.size += node.size


def _key(node: _Node, parent: _Mapping, name: str, line: int) -> str:
    if not isinstance(node, _Scalar):
        raise _bad("a key must be text, not a list or a mapping", name=name, line=line)
    key = node.value
    if node.plain and key == "<<":
        raise _bad("merging by << is not supported: write the keys out", name=name, line=line)
    if node.plain and not isinstance(_resolved(node, name, what="a key: "), str):
        raise _bad(f"the key {_quoted(key)} must be text: put it in quotes", name=name, line=line)
    if key in parent.key_lines:
        first = parent.key_lines[key]
        raise _bad(f"the key {_quoted(key)} is there twice, first in line {first}", name=name, line=line)
    return key


def _resolved(node: _Scalar, name: str, *, what: str = "", path: Path_ = ()) -> str | int | float | bool | None:
    """A plain word's value. What YAML 1.1 would guess at is asked for in quotes instead."""
    word = node.value
    if not node.plain:
        return word
    if word in ("", "~", "null", "Null", "NULL"):
        return None
    if word in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return word.lower() == "true"
    if _INT.fullmatch(word):
        return int(word)
    for pattern, told in _GUESSED:
        if pattern.fullmatch(word):
            why = told.format(_quoted(word))
            raise _bad(f'{what}{why}: put it in quotes, "{_cut(word)}", if text is meant', name, node.line, path)
    if _FLOAT.fullmatch(word):
        number = float(word)
        if not math.isfinite(number):
            raise _bad(f"{_quoted(word)} is no number that can be used", name, node.line, path)
        return number
    return word


def _plain(node: _Node, path: Path_, name: str) -> Any:
    """The tree as plain data."""
    match node:
        case _Scalar():
            return _resolved(node, name, path=path)
        case _List():
            return [_plain(item, (*path, index), name) for index, item in enumerate(node.items)]
        case _Mapping():
            return {key: _plain(value, (*path, key), name) for key, value in node.items.items()}


# -- from faults of the model to lines for a person -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fault:
    line: int
    place: str
    message: str
    path: Path_ = ()


def _told(faults: Sequence[_Fault]) -> BadInput:
    unique = sorted(dict.fromkeys(faults), key=lambda fault: fault.line)
    lines = [f"{fault.place}: {fault.message}" for fault in unique[1:MAX_FAULTS]]
    if len(unique) > MAX_FAULTS:
        lines.append(f"and {len(unique) - MAX_FAULTS} more")
    first = unique[0]
    single = [(_pointer(fault.path), fault.message) for fault in unique[:MAX_FAULTS]]
    return BadInput("\n".join([first.message, *lines]), place=first.place, next=NEXT, faults=single)


def _faults(error: ValidationError, root: _Mapping, data: Any, name: str, kind: type[BaseModel]) -> Iterator[_Fault]:
    for found in error.errors(include_url=False, include_context=True):
        path, branch = _path_in(found["loc"], data, missing=found["type"] == "missing")
        if (branch and not _meant(branch, path, data)) or _counted_wrong(found):
            continue
        message = _message(found, path, kind, branched=bool(branch))
        path, message = _inner_place(path, message, data)
        yield _Fault(_line(root, path), _place(root, path, name), message, path)


def _counted_wrong(found: Mapping[str, Any]) -> bool:
    """A list whose items are all wrong is reported as too short as well, though it is not."""
    return found["type"] == "too_short" and bool(len(found["input"]) >= found["ctx"]["min_length"])


def _path_in(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> tuple[Path_, str]:
    """Where in the data this is, and the branch of a union that the validator tried there, if any."""
    path: list[str | int] = []
    branch = ""
    at = data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        inner = _inside(at, part)
        if inner is _ABSENT and not (last and missing and isinstance(at, dict)):
            branch = branch or str(part)
            continue
        at = inner
        path.append(part)
    return tuple(path), branch


_ABSENT = object()


def _inside(at: Any, part: str | int) -> Any:
    if isinstance(at, dict):
        return at.get(part, _ABSENT)
    if isinstance(at, list) and isinstance(part, int) and part < len(at):
        return at[part]
    return _ABSENT


_STATE_KEYS = {"SyncHook": ("sync", "timeout", "env"), "Acknowledged": ("acknowledged",)}


def _meant(branch: str, path: Path_, data: Any) -> bool:
    """A union reports every branch. For `state` only the branch that its keys point to is of interest."""
    if not path or path[0] != "state":
        return True
    state = data["state"]
    pointed = [b for b, keys in _STATE_KEYS.items() if isinstance(state, dict) and any(key in state for key in keys)]
    return branch in pointed if pointed else path == ("state",)


_STATE = "say why cloning is safe: `stateless`, a hook (`sync: [command, {old}, {new}]`), or `acknowledged: why`"
_BRANCHED = {
    "state": _STATE,
    "before_swap": 'wants a count such as 2, or a share such as "5%"',
}


def _message(found: Mapping[str, Any], path: Path_, of: type[BaseModel], *, branched: bool) -> str:
    kind, context, value = found["type"], found.get("ctx", {}), found.get("input")
    key = str(path[-1]) if path else ""
    if path == ("state",) and kind != "extra_forbidden":
        return _STATE
    if branched and key in _BRANCHED:
        return _BRANCHED[key]
    if branched and "settings" in path:
        return "wants a line of text or a whole number"
    shown = "" if {"headers", "settings", "body"} & set(path) else f", not {_quoted(value)}"
    match kind:
        case "missing":
            return _STATE if path == ("state",) else "is missing"
        case "extra_forbidden":
            return _unknown(key, path, of)
        case "string_type" if isinstance(value, (int, float)):
            return f'wants text: put it in quotes, "{_cut(json.dumps(value))}"'
        case "string_type":
            return f"wants text{shown}"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"wants a whole number{shown}"
        case "float_type" | "float_parsing":
            return f"wants a number{shown}"
        case "bool_type" | "bool_parsing":
            return f"wants true or false{shown}"
        case "tuple_type" | "list_type":
            return f"wants a list{shown}"
        case "dict_type" | "mapping_type" | "model_type" | "model_attributes_type":
            return f"wants keys and values{shown}"
        case "string_pattern_mismatch":
            return f"{_ALLOWED.get(context['pattern'], 'is not allowed here')}{shown}"
        case "literal_error":
            return f"wants {str(context['expected']).replace(chr(39), '')}{shown}"
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}{shown}"
        case "greater_than":
            return f"must be more than {_number(context['gt'])}{shown}"
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}{shown}"
        case "less_than":
            return f"must be less than {_number(context['lt'])}{shown}"
        case "too_short":
            return f"needs at least {context['min_length']}, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']}, has {context['actual_length'] or 'more'}"
        case "string_too_short":
            return f"needs at least {context['min_length']} characters{shown}"
        case "string_too_long":
            return f"takes at most {context['max_length']} characters"
        case "value_error":
            return _one_line(str(context.get("error", found["msg"])))
    return _one_line(found["msg"]).removeprefix("Input ").removeprefix("Value error, ")


def _number(value: Any) -> str:
    return f"{value:,.15g}" if isinstance(value, float) else f"{value:,}"


_ABOUT: Mapping[str, Path_] = {
    "the waves ": ("rollout", "waves"),
    "some servers have a domain": ("servers",),
}


def _inner_place(path: Path_, message: str, data: Any) -> tuple[Path_, str]:
    """Checks across fields name their place in their text (`servers[3]: ...`): it becomes the place."""
    about = next((about for words, about in _ABOUT.items() if not path and message.startswith(words)), None)
    if about:
        return about, message
    match = re.match(r"((?:[a-z_]+(?:\[\d+\])*\.?)+): ", message)
    if not match:
        return path, message
    inner: list[str | int] = []
    for word in re.findall(r"[a-z_]+|\d+", match[1]):
        inner.append(int(word) if word.isdigit() else word)
    at = data
    for part in (*path, *inner):
        at = _inside(at, part)
        if at is _ABSENT:
            return path, message
    return (*path, *inner), message[match.end() :]


def _unknown(key: str, path: Path_, of: type[BaseModel]) -> str:
    known = _keys_at(path[:-1], of)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"; did you mean {_quoted(close[0])}?" if close else f"; known here: {', '.join(known)}" if known else ""
    return f"unknown key {_quoted(key)}{hint}"


def _keys_at(path: Path_, of: type[BaseModel]) -> list[str]:
    """The keys that the model knows there."""
    models: list[type[BaseModel]] = [of]
    for part in path:
        found: list[type[BaseModel]] = []
        for each in models:
            if isinstance(part, str) and part in each.model_fields:
                found += _models_in(each.model_fields[part].annotation)
        # A place in a list, or a name in a mapping such as `pools`, leads to the same models.
        models = found or models
    return sorted({name for each in models for name in each.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _pattern_in(metadata: Sequence[Any]) -> str:
    return next(str(part.pattern) for part in metadata if getattr(part, "pattern", None))


def _pattern_of(annotated: Any) -> str:
    return _pattern_in(annotated.__metadata__[0].metadata)


_ALLOWED = {
    _pattern_of(model.Name): "takes lower-case letters, digits, dots and dashes, at most 63",
    _pattern_of(model.Ident): "takes letters, digits and _ . : - inside, at most 128",
    _pattern_of(model.Word): "takes letters, digits, _ and -, at most 64",
    _pattern_of(model.Line): "takes one line without control characters",
    _pattern_of(model.InnerPath): "takes a path of at most 500 characters, without control characters",
    _pattern_in(model.SmokeRequest.model_fields["url"].metadata): "takes a URL such as https://shop.example/healthz",
}


def _line(root: _Mapping, path: Path_) -> int:
    """The line where this part, or the nearest part around it that is there, begins."""
    line, at = root.line, root
    node: _Node = at
    for part in path:
        if isinstance(node, _Mapping) and part in node.items:
            line = node.key_lines[str(part)]
            node = node.items[str(part)]
        elif isinstance(node, _List) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            line = node.line
        else:
            break
    return line


def _place(root: _Mapping, path: Path_, name: str) -> str:
    return _at(name, _line(root, path), path)


def _at(name: str, line: int | None, path: Path_ = ()) -> str:
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" if _WORD.fullmatch(part) else f"[{_quoted(part)}]"
        for part in path
    ).removeprefix(".")
    return f"{name}{f':{line}' if line else ''}{f': {where}' if where else ''}"


_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _bad(message: str, name: str, line: int | None = None, path: Path_ = ()) -> BadInput:
    return BadInput(message, place=_at(name, line, path), next=NEXT, faults=[(_pointer(path), message)])


def _pointer(path: Path_) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _quoted(value: object) -> str:
    """For a message: printable, on one line, and not too long."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"'{_cut(value)}'"
    return _cut(json.dumps(value))


def _cut(word: str) -> str:
    word = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word[:61])
    return word if len(word) <= 60 else f"{word[:59]}…"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
