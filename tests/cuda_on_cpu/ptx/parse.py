"""Reads the PTX that nvcc emits into modules, kernels and statements. It knows syntax; translate.py knows meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b128": 16}
SIZES |= {f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (16, 32, 64)}
SIZES |= {"f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8}


class PtxError(Exception):
    """The PTX holds something that the translation does not cover."""


@dataclass(frozen=True)
class Instruction:
    """`@!%p1 add.s32 %r1, %r2, 3;`: guard "!%p1", opcode "add.s32", operands ["%r1", "%r2", "3"]."""

    guard: str
    opcode: str
    operands: list[str]
    text: str


@dataclass(frozen=True)
class Label:
    """The target of branches."""

    name: str


@dataclass(frozen=True)
class Brace:
    """The beginning or the end of a scope."""

    text: str


@dataclass(frozen=True)
class Location:
    """What follows comes from this line of the source."""

    file: str
    line: int


@dataclass(frozen=True)
class Registers:
    """Registers of one type: names without %."""

    type: str
    names: list[str]


@dataclass(frozen=True)
class Variable:
    """Memory: of a block (.shared), of a thread (.local), or of the module (.global, .const)."""

    space: str
    name: str
    type: str
    count: int | None  # None: the launch tells (extern shared memory)
    align: int
    values: str  # the initialiser's text, or ""

    @property
    def size(self) -> int:
        return SIZES[self.type] * (self.count or 0)


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter and its place among the parameters' bytes."""

    name: str
    offset: int
    size: int


Statement = Instruction | Label | Brace | Location | Registers | Variable


@dataclass
class Kernel:
    """An .entry."""

    name: str
    parameters: list[Parameter]
    max_threads: int
    statements: list[Statement] = field(default_factory=list)

    @property
    def parameter_bytes(self) -> int:
        last = self.parameters[-1] if self.parameters else Parameter("", 0, 0)
        return last.offset + last.size


@dataclass
class Module:
    """All of a .ptx file."""

    variables: list[Variable]
    kernels: list[Kernel]


def split_operands(text: str) -> list[str]:
    """Splits at commas outside braces and brackets."""
    operands, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            operands.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*operands, last] if last else operands


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


_VARIABLE = re.compile(
    r"(?P<linkage>(?:\.(?:extern|visible|weak|common)\s+)*)\.(?P<space>shared|local|global|const)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<array>\[(?P<count>\d*)\])?"
    r"(?:\s*=\s*(?P<values>.*))?$",
    re.DOTALL,
)


def _variable(text: str) -> Variable | None:
    match = _VARIABLE.match(text)
    if not match:
        return None
    count = int(match["count"]) if match["count"] else (None if match["array"] else 1)
    align = int(match["align"] or SIZES[match["type"]])
    return Variable(match["space"], match["name"], match["type"], count, align, (match["values"] or "").strip())


def _parameters(text: str) -> list[Parameter]:
    parameters, offset = [], 0
    for declaration in split_operands(text):
        match = re.match(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\b.*\s)?([\w$]+)(?:\[(\d+)\])?$", declaration
        )
        if not match:
            raise PtxError(f"a parameter that is not covered: {declaration}")
        align, kind, name, count = match.groups()
        size = SIZES[kind] * int(count or 1)
        offset = _round_up(offset, int(align or SIZES[kind]))
        parameters.append(Parameter(name, offset, size))
        offset += size
    return parameters


def _registers(text: str) -> Registers:
    match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text)
    if not match:
        raise PtxError(f"a register declaration that is not covered: {text}")
    names: list[str] = []
    for declared in split_operands(match[2]):
        name, count = re.fullmatch(r"%?([\w$]+)(?:<(\d+)>)?", declared).groups()  # type: ignore[union-attr]
        names += [f"{name}{i}" for i in range(int(count))] if count else [name]
    return Registers(match[1], names)


def _instruction(text: str) -> Instruction:
    match = re.match(r"(?:@(!?%[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text)
    if not match:
        raise PtxError(f"a statement that is not covered: {text}")
    return Instruction(match[1] or "", match[2], split_operands(match[3]), text)


_LOCATION = re.compile(r"\.loc\s+(\d+ \d+ \d+)(?:,[^\n]*inlined_at\s+(\d+ \d+ \d+))?[^\n]*")
# NVIDIA's own headers: what stands there is told of the line that calls it.
_TOOLKIT_HEADER = re.compile(r"/include/(crt/)?(sm_\d+|cuda_|device_|math_|common_|vector_)\w*\.hp?p?$")


class _Body:
    """The statements between a kernel's outermost braces."""

    def __init__(self, text: str, files: dict[str, str]) -> None:
        self._text = text
        self._files = files
        self._inlined_at: dict[str, str] = {}

    def _location(self, match: re.Match[str]) -> Location:
        place, caller = match.groups()
        if caller:
            self._inlined_at[place] = caller
        while True:
            number, line, _ = place.split()
            file = self._files.get(number, "?")
            if not _TOOLKIT_HEADER.search(file) or place not in self._inlined_at:
                return Location(file, max(1, int(line)))
            place = self._inlined_at[place]

    def statements(self) -> list[Statement]:
        text, position, result = self._text, 0, list[Statement]()
        while position < len(text):
            if text[position].isspace():
                position += 1
            elif text[position] in "{}":
                result.append(Brace(text[position]))
                position += 1
            elif match := re.compile(r"([\w$]+):(?!:)").match(text, position):
                result.append(Label(match[1]))
                position = match.end()
            elif match := _LOCATION.match(text, position):
                result.append(self._location(match))
                position = match.end()
            else:
                end = text.index(";", position)
                self._declaration_or_instruction(" ".join(text[position:end].split()), result)
                position = end + 1
        return result

    @staticmethod
    def _declaration_or_instruction(text: str, result: list[Statement]) -> None:
        if text.startswith(".reg"):
            result.append(_registers(text))
        elif text.startswith(".pragma"):
            return
        elif text.startswith("."):
            variable = _variable(text)
            if not variable:
                raise PtxError(f"a directive that is not covered: {text}")
            result.append(variable)
        else:
            result.append(_instruction(text))


def _matching_brace(text: str, start: int) -> int:
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[start], 0)
        start += 1
    return start


def _max_threads(directives: str) -> int:
    match = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", directives)
    if not match:
        return 1024
    threads = 1
    for extent in match[1].split(","):
        threads *= int(extent)
    return threads


def parse(text: str) -> Module:
    """Raises PtxError on syntax that nvcc is not known to emit for kernels."""
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text))
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    if function := re.search(r"\.func\b[^\n;{]*?([\w$]+)\s*\(", text):
        raise PtxError(f"the call of a function, {function[1]}: make it __forceinline__")
    kernels, outside, position = [], "", 0
    for match in re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text):
        end = _matching_brace(text, match.end())
        kernel = Kernel(match[1], _parameters(match[2]), _max_threads(match[3]))
        kernel.statements = _Body(text[match.end() : end - 1], files).statements()
        kernels.append(kernel)
        outside += text[position : match.start()]
        position = end
    outside += text[position:]
    declarations = re.findall(r"(?:\.(?:extern|visible|weak|common)\s+)*\.(?:shared|global|const)\b[^;]*;", outside)
    variables = [_variable(declaration.rstrip(";").strip()) for declaration in declarations]
    return Module([variable for variable in variables if variable], kernels)
