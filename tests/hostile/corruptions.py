"""Ways to damage a file: in its bytes, in its JSON, in the header of its tensors.

A corruption is a function ``(random, bytes) -> bytes``. Some leave a file as valid as it was.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

Corruption = Callable[[Random, bytes], bytes]

_TOKEN = "@raw@"  # stands for text that no JSON writer would write

# -- bytes -----------------------------------------------------------------------------------------


def truncated(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def extended(random: Random, data: bytes) -> bytes:
    return data + random.choice((b"\0", b"}", b" {}", b"\n\n", random.randbytes(64), data))


def flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut_out(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + data[start + random.randrange(1, 40) :]


def repeated(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data))
    end = start + random.randrange(1, 40)
    return data[:end] + data[start:end] * random.choice((1, 1, 1000)) + data[end:]


def inserted(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    inserts = (b"\0", b'"', b"[", b"{", b"}", b",", b"\xff\xfe", b"\\ud800", b"1e999", b"-")
    return data[:place] + random.choice(inserts) + data[place:]


def replaced(random: Random, data: bytes) -> bytes:
    """Something else altogether."""
    return random.choice(
        (
            b"",
            b"\0" * 8,
            b"null",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b'"' + b"a" * 3_000_000,
            b"9" * 100_000,
            b"\x80\x04cos\nsystem\n(S'true'\ntR.",
            b"PK\x03\x04" + random.randbytes(200),
            b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
            data.decode("latin1").encode("utf-16"),
            random.randbytes(random.randrange(1, 2000)),
        )
    )


# -- JSON ------------------------------------------------------------------------------------------

_NAMES = (
    "",
    "../../../tmp/escaped",
    "/etc/passwd",
    "..\\..\\x",
    "C:\\x",
    "a\0b",
    "__class__.__init__.__globals__",
    "__import__('os').system('true')",
    "conv.forward.__globals__",
    "builtins.eval",
    "builtins.getattr",
    "fxprune.new_object",
    "ops.aten.from_file.default",
    "%s%n{0.__class__}",
    "\ud800",
    "x" * 100_000,
    "kept",
    "\N{RIGHT-TO-LEFT OVERRIDE}json",
)


def _value(random: Random, old: Any) -> Any:
    """Something that should not stand where `old` stands."""
    raw = ("NaN", "-Infinity", "1e999", "-0", "1" * 5000, "[" * 5000 + "]" * 5000, "01", "")
    values = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 0.5, 1e300, "", [], {}, [[]]]
    values += [[old], {"a": old}, [old, old], str(old), list(range(100_000)), *_NAMES]
    values += [_TOKEN + text for text in raw]
    if isinstance(old, (int, float)) and abs(old) < 1e6:
        values += [old + 1, old - 1, -old, float(old), old * 10**6]
    if isinstance(old, list) and old:
        values += [old[::-1], [*old, old[-1]], [*old, 10**9], [-1, *old], old[1:], old[:1]]
        values += [[*old, None], [float(v) if type(v) is int else v for v in old]]
    return random.choice(values)


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, inner in list(items):
        yield value, key
        yield from _spots(inner)


def change_document(random: Random, document: Any) -> str:
    """The text of a document with one thing wrong in it. The document is used up."""
    container, key = random.choice(list(_spots(document)) or [([0], 0)])
    action = random.choice(("value", "value", "value", "drop", "rename", "twice", "more"))
    raw: dict[str, str] = {}
    if action == "drop":
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        container[random.choice((*_NAMES, str(key) + " ", str(key).upper()))] = container.pop(key)
    elif action == "twice" and isinstance(container, dict):
        container[_TOKEN] = container[key]
        raw[json.dumps(_TOKEN)] = json.dumps(key)
    elif action == "more" and isinstance(container, dict):
        container[random.choice(_NAMES)] = container[key]
    else:
        container[key] = _value(random, container[key])
        if isinstance(container[key], str) and container[key].startswith(_TOKEN):
            raw[json.dumps(container[key])] = container[key].removeprefix(_TOKEN)
    text = json.dumps(document)
    for token, stands_for in raw.items():
        text = text.replace(token, stands_for)
    return text


def in_document(random: Random, data: bytes) -> bytes:
    return change_document(random, json.loads(data)).encode()


def in_graph(random: Random, data: bytes) -> bytes:
    """A change in the described graph: its modules, attributes and nodes."""
    document = json.loads(data)
    token = "@graph@"
    text = change_document(random, document["graph"])
    return json.dumps({**document, "graph": token}).replace(f'"{token}"', text).encode()


# -- safetensors -----------------------------------------------------------------------------------


def split_tensors(data: bytes) -> tuple[Any, bytes]:
    """The header and the body of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_tensors(header: str, body: bytes) -> bytes:
    """A safetensors file of a header and a body."""
    return struct.pack("<Q", len(header.encode())) + header.encode() + body


def in_header(random: Random, data: bytes) -> bytes:
    header, body = split_tensors(data)
    return join_tensors(change_document(random, header), body)


def header_length(random: Random, data: bytes) -> bytes:
    length = random.choice((0, 1, 7, len(data), 10**8, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", length) + data[8:]


def one_tensor(random: Random, data: bytes) -> bytes:
    """Another shape, type or place for one tensor, its bytes adjusted or not."""
    header, body = split_tensors(data)
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    begin, end = entry["data_offsets"]
    change = random.choice(("shape", "dtype", "offsets", "rank", "huge", "empty"))
    if change == "shape":
        entry["shape"] = entry["shape"][::-1] if len(entry["shape"]) > 1 else [*entry["shape"], 1]
    elif change == "dtype":
        types = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F4 C64 I64 I32 I8 U64 U16 U8 BOOL X".split()
        entry["dtype"] = random.choice(types)
    elif change == "offsets":
        shift = random.choice((-4, 4, -begin, len(body), 2**40))
        entry["data_offsets"] = [max(begin + shift, 0), max(end + shift, 0)]
    elif change == "rank":
        entry["shape"] = [1] * random.choice((65, 1000, 100_000)) + entry["shape"]
    elif change == "huge":
        entry["shape"] = [2 ** random.choice((20, 31, 40, 62, 63))] * random.choice((1, 2, 4))
    else:
        entry["shape"] = [0, *entry["shape"]]
    return join_tensors(json.dumps(header), body)


def swapped_tensors(random: Random, data: bytes) -> bytes:
    """Two tensors under each other's names."""
    header, body = split_tensors(data)
    first, second = random.sample([name for name in header if name != "__metadata__"], 2)
    header[first], header[second] = header[second], header[first]
    return join_tensors(json.dumps(header), body)


_BYTES: Mapping[str, Corruption] = {
    corruption.__name__: corruption
    for corruption in (truncated, extended, flipped, cut_out, repeated, inserted, replaced)
}
JSON_FILE: Mapping[str, Corruption] = MappingProxyType({**_BYTES, "in_document": in_document})
GRAPH_FILE: Mapping[str, Corruption] = MappingProxyType(
    {"in_document": in_document, "in_graph": in_graph}
)
TENSOR_FILE: Mapping[str, Corruption] = MappingProxyType(
    {
        **_BYTES,
        "in_header": in_header,
        "header_length": header_length,
        "one_tensor": one_tensor,
        "swapped_tensors": swapped_tensors,
    }
)
