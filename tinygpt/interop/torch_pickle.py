"""Read the pickle inside a PyTorch file without executing anything.

A pickle is a program for a small stack machine, and two of its instructions let it run any function of Python: GLOBAL
names an object, REDUCE calls it. `pickle.load` and any Unpickler execute such a program. Here `pickletools.genops`
only lists the instructions, and this file interprets the few that `torch.save` writes for a dictionary of tensors:
plain values, lists, tuples, dictionaries, and the names in `ADMITTED` (torch_tensors.py), none of which is ever
imported or called. A tensor becomes a `Tensor`, a description of where its numbers are. Everything else raises
`Refused`, which names it.

No instruction builds more than its own bytes contain, and the number of instructions is limited, so a forged file costs
about a second at most. A value may contain itself; nothing here or in torch_file.py follows values recursively.

Source: the opcodes are described in Python's Lib/pickletools.py, the calls in torch/_utils.py and
torch/serialization.py.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

from .torch_tensors import ADMITTED, DICTIONARY, MAKE, STORAGES, Name, Refused, Storage, are_counts

LONGEST = 1 << 24  # bytes of a pickle; that of the largest GPT-2 has 100,000
_MOST_OPCODES, _MOST_BITS = 250_000, 128


def unpickle(content: bytes, begin: int = 0) -> tuple[Any, int]:
    """The value of the pickle in `content` that begins at `begin`, and where it ends. Raises Refused."""
    file = io.BytesIO(content)
    file.seek(begin)
    machine = _Machine()
    for number, (name, argument, position) in enumerate(_opcodes(file)):
        if number == _MOST_OPCODES:
            raise Refused(f"its pickle has more than {_MOST_OPCODES} instructions, which no file of a model needs")
        if name == "STOP":
            break
        do = _INSTRUCTIONS.get(name)
        if do is None:
            raise Refused(f"its pickle has the instruction {name} at byte {position}, which no file of a model needs")
        try:
            do(machine, argument)
        except IndexError:
            raise Refused(f"its pickle is damaged: {name} at byte {position} finds nothing to work on") from None
    if len(machine.stack) != 1 or machine.outer:
        raise Refused("its pickle is damaged: it does not end in one value")
    return machine.stack[0], file.tell()


def _opcodes(file: io.BytesIO) -> Iterator[tuple[str, Any, int]]:
    """The instructions, each with its argument and position. Raises Refused where they can't be read."""
    found = pickletools.genops(file)
    while True:
        try:
            opcode, argument, position = next(found)
        except StopIteration:
            return
        except Exception as error:  # pickletools promises no kind: ValueError, UnicodeError, OverflowError ...
            raise Refused(f"its pickle is damaged or cut short ({str(error)[:100]})") from error
        yield opcode.name, argument, position or 0


class _Machine:
    """The stack machine. outer: the stacks around this one, as MARK left them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > _MOST_BITS:  # Python does not even print one of 4,300 digits
            raise Refused(f"its pickle has a number of {value.bit_length()} bits, which no file of a model needs")
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last MARK."""
        found, self.stack = self.stack, self.outer.pop()
        return found

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    # Containers ---------------------------------------------------------------------------------------

    def dictionary(self, _: Any) -> None:
        values = self.pop_mark()
        self.push({})
        self._set(values)

    def set_item(self, _: Any) -> None:
        self._set(self.pop(2))

    def set_items(self, _: Any) -> None:
        self._set(self.pop_mark())

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise Refused(f"its pickle is damaged: it puts {len(values)} keys and values into {_kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None)):
                raise Refused(f"its pickle has a dictionary whose key is {_kind(key)}, not text or a number")
            target[key] = value

    def append(self, _: Any) -> None:
        self._extend(self.pop(1))

    def appends(self, _: Any) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise Refused(f"its pickle is damaged: it appends to {_kind(target)}")
        target.extend(values)

    # The memo -----------------------------------------------------------------------------------------

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"its pickle is damaged: it refers to value {index}, which it has not made")
        self.push(self.memo[index])

    # What a pickle could execute ------------------------------------------------------------------------

    def name(self, argument: str) -> None:
        """argument: module and name, separated by a space."""
        full = ".".join(argument.split(" ", 1))
        if full not in ADMITTED:
            raise Refused(
                f"its pickle names {full[:80]}, and only tensors, dictionaries and plain values are admitted: a pickle "
                "can run any code that it names"
            )
        self.push(Name(full))

    def name_on_stack(self, _: Any) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise Refused(f"its pickle is damaged: it names an object by {_kind(module)} and {_kind(name)}")
        self.name(f"{module} {name}")

    def persistent(self, _: Any) -> None:
        """A storage: ("storage", its type, its key, the device, the number of elements)."""
        (found,) = self.pop(1)
        values = list(found) if type(found) is tuple else []
        if len(values) == 6 and values[5] is None:  # the format before PyTorch 1.6
            del values[5]
        if len(values) != 5 or values[0] != "storage" or type(values[1]) is not Name:
            raise Refused("its pickle is damaged: it refers to stored numbers in a form that PyTorch does not write")
        code = STORAGES.get(values[1].name)
        if code is None or type(values[2]) is not str or not are_counts((values[4],)):
            raise Refused("its pickle is damaged: stored numbers lack a type, a key or a size")
        self.push(Storage(values[2], code, values[4]))

    def call(self, _: Any) -> None:
        """What the call of an admitted name would make."""
        called, arguments = self.pop(2)
        if type(called) is not Name or type(arguments) is not tuple:
            raise Refused(f"its pickle calls {_kind(called)}, and only tensors and dictionaries are admitted")
        make = MAKE.get(called.name) if called.name != DICTIONARY else _dictionary
        if make is None:
            raise Refused(f"its pickle calls {called.name}, which holds the numbers of tensors and is not called")
        self.push(make(arguments))

    def build(self, _: Any) -> None:
        """The attributes of a dictionary: `_metadata` of a state_dict, versions that don't concern its tensors."""
        target, _ = self.pop(2)
        if type(target) is not dict:
            raise Refused(f"its pickle sets attributes of {_kind(target)}, and only those of dictionaries are admitted")
        self.push(target)


def _dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict(), or OrderedDict([[key, value], ...]), as Python 2 wrote it."""
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise Refused("its pickle is damaged: it makes a dictionary from something else than pairs")
    machine = _Machine()
    machine.push({})
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise Refused("its pickle is damaged: it makes a dictionary from something else than pairs")
        machine._set(list(pair))
    found: dict[Any, Any] = machine.stack[0]
    return found


def _kind(value: Any) -> str:
    """What an error message calls a value, which may contain itself and can't be printed."""
    return value.name if isinstance(value, Name) else f"a value of type {type(value).__name__.lstrip('_')}"


def _nothing(machine: _Machine, argument: Any) -> None:
    """PROTO and FRAME say how to read the bytes, which genops handles."""


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING",
        ),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _Machine.dictionary,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}  # fmt: skip
