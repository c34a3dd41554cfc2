"""What a line of the caller does with the value of ``clutch << step``, read from its bytecode.

``clutch << a, b`` is a tuple, made and thrown away, and ``b`` is no step. Nothing but the code
itself shows that.
"""

from __future__ import annotations

import dis
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType

FAR = 100
"""How many instructions are read behind a ``<<``."""


def loses(frame: FrameType) -> bool:
    """Whether *frame*, in the middle of ``<<``, puts its value into a tuple that nobody keeps.

    A tuple whose other members are ``<<`` themselves loses nothing.
    """
    try:
        return _loses(frame.f_code, frame.f_lasti)
    except (IndexError, ValueError):  # code that dis cannot read
        return False


@lru_cache(maxsize=1024)
def _loses(code: CodeType, offset: int) -> bool:
    behind = (each for each in dis.get_instructions(code) if each.offset > offset)
    above = 0  # how many values lie on that of ``<<``
    shifts = False
    for instruction in islice(behind, FAR):
        name, argument = instruction.opname, instruction.arg
        if name == "CACHE":
            continue
        if name == "BUILD_TUPLE" and argument == above + 1 > 1:
            following = next((each for each in behind if each.opname != "CACHE"), None)
            return following is not None and following.opname == "POP_TOP" and not shifts
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            return False
        shifts = shifts or name == "BINARY_LSHIFT" or instruction.argrepr == "<<"
        has_argument = instruction.opcode >= dis.HAVE_ARGUMENT
        above += dis.stack_effect(instruction.opcode, argument if has_argument else None)
        if above < 0:
            return False
    return False
