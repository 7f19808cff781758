"""Translates nvcc's PTX to C++ that runs on the emulator's fibers: translate.py kernels.ptx kernels.cpp SYMBOL.

A register becomes a variable that holds its bits. An instruction becomes a call of the function of the same name in
semantics.h, with its types as template arguments: `mad.lo.s32 %r1, %r2, %r3, 4` is `r1 = mad_lo<s32>(r2, r3, 4)`. An
instruction that the tables below do not list ends the translation with a message that names it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from parse import SIZES, Brace, Instruction, Kernel, Label, Location, Module, PtxError, Registers, Variable, parse
from parse import split_operands as split

WORDS = {1: "std::uint8_t", 2: "std::uint16_t", 4: "std::uint32_t", 8: "std::uint64_t"}

I16_64 = "u16 s16 u32 s32 u64 s64"
B16_64 = "b16 b32 b64"
FLOATS = "f32 f64"
HALVES = "f16 f16x2"

# The functions of semantics.h that take their operands' bits and return the result's: types they are covered for.
# Modifiers that belong to the name are joined to it; rounding, .ftz and .sat are apart.
PLAIN: dict[str, str] = {
    "add": f"{I16_64} {FLOATS} {HALVES}",
    "sub": f"{I16_64} {FLOATS} {HALVES}",
    "mul": f"{FLOATS} {HALVES}",
    "fma": f"{FLOATS} {HALVES}",
    "mad": "f32 f64",
    "div": f"{I16_64} {FLOATS}",
    "rem": I16_64,
    "mul_lo": I16_64,
    "mul_hi": I16_64,
    "mad_lo": I16_64,
    "mad_hi": I16_64,
    "mul_wide": "u16 s16 u32 s32",
    "mad_wide": "u16 s16 u32 s32",
    "mul24_lo": "u32 s32",
    "mad24_lo": "u32 s32",
    "sad": I16_64,
    "min": f"{I16_64} {FLOATS} {HALVES}",
    "max": f"{I16_64} {FLOATS} {HALVES}",
    "min_NaN": f"f32 {HALVES}",
    "max_NaN": f"f32 {HALVES}",
    "abs": f"s16 s32 s64 {FLOATS} {HALVES}",
    "neg": f"s16 s32 s64 {FLOATS} {HALVES}",
    "and": f"pred {B16_64}",
    "or": f"pred {B16_64}",
    "xor": f"pred {B16_64}",
    "not": f"pred {B16_64}",
    "cnot": B16_64,
    "shl": B16_64,
    "shr": f"{B16_64} {I16_64}",
    "shf_l_wrap": "b32",
    "shf_l_clamp": "b32",
    "shf_r_wrap": "b32",
    "shf_r_clamp": "b32",
    "bfe": "u32 s32 u64 s64",
    "bfi": "b32 b64",
    "bfind": "u32 s32 u64 s64",
    "bfind_shiftamt": "u32 s32 u64 s64",
    "brev": "b32 b64",
    "popc": "b32 b64",
    "clz": "b32 b64",
    "prmt": "b32",
    "lop3": "b32",
    "szext_wrap": "u32 s32",
    "szext_clamp": "u32 s32",
    "selp": f"{B16_64} {I16_64} {FLOATS}",
    "sqrt": FLOATS,
    "rcp": FLOATS,
    "copysign": FLOATS,
    # Approximations: here the nearest value, on the GPU another within the documented error.
    "rsqrt": FLOATS,
    "sin": "f32",
    "cos": "f32",
    "lg2": "f32",
    "ex2": f"f32 {HALVES}",
    "tanh": f"f32 {HALVES}",
}

COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"}
COMPARISONS |= {"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"}
ROUNDINGS = {"rn": "nearest", "rz": "zero", "rm": "down", "rp": "up"}
INTEGER_ROUNDINGS = {"rni": "nearest", "rzi": "zero", "rmi": "down", "rpi": "up"}
ATOMICS = {
    "add": "u32 s32 u64 f32 f64",
    "min": "u32 s32 u64 s64",
    "max": "u32 s32 u64 s64",
    "exch": "b32 b64",
    "cas": "b32 b64",
    "and": "b32 b64",
    "or": "b32 b64",
    "xor": "b32 b64",
    "inc": "u32",
    "dec": "u32",
}
SHUFFLES = {"idx": "shuffle_index", "up": "shuffle_up", "down": "shuffle_down", "bfly": "shuffle_xor"}
# Said of an access or a branch, and of no consequence here.
HINTS = {"nc", "volatile", "uni", "relaxed", "weak", "acquire", "release", "acq_rel", "gpu", "cta", "sys", "cluster"}
HINTS |= {"L1", "L2", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "approx", "full"}

SPECIAL = {
    f"%{ptx}.{axis}": f"{cuda}.{axis}"
    for ptx, cuda in (("tid", "threadIdx"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim"))
    for axis in "xyz"
}
SPECIAL |= {
    "%laneid": "cuda_on_cpu::lane()",
    "%warpid": "(cuda_on_cpu::thread_number() / 32)",
    "%lanemask_eq": "(1u << cuda_on_cpu::lane())",
    "%lanemask_lt": "((1u << cuda_on_cpu::lane()) - 1)",
    "%lanemask_le": "((2u << cuda_on_cpu::lane()) - 1)",
    "%lanemask_gt": "~((2u << cuda_on_cpu::lane()) - 1)",
    "%lanemask_ge": "~((1u << cuda_on_cpu::lane()) - 1)",
    "%total_smem_size": "static_cast<std::uint32_t>(cuda_on_cpu::dynamic_shared_bytes())",
    "%dynamic_smem_size": "static_cast<std::uint32_t>(cuda_on_cpu::dynamic_shared_bytes() - kStaticSharedBytes)",
    "WARP_SZ": "32u",
}


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Opcode:
    """An opcode in parts: `cvt.rni.ftz.s32.f32` is cvt with rounding, ftz and types ["s32", "f32"]."""

    def __init__(self, text: str) -> None:
        parts = [part for part in re.sub(r"\.L[12]::[\w:]+", "", text).split(".") if part]
        self.name = parts[0]
        rest = parts[1:]
        self.types: list[str] = []
        while rest and rest[-1] in SIZES:
            self.types.insert(0, rest.pop())
        self.ftz = "ftz" in rest
        self.sat = "sat" in rest
        rounding = [ROUNDINGS[part] for part in rest if part in ROUNDINGS]
        self.rounding = rounding[0] if rounding else "nearest"
        integer = [INTEGER_ROUNDINGS[part] for part in rest if part in INTEGER_ROUNDINGS]
        self.integer_rounding = integer[0] if integer else ""
        self.modifiers = [
            part
            for part in rest
            if part not in HINTS and part not in ("ftz", "sat") and part not in (*ROUNDINGS, *INTEGER_ROUNDINGS)
        ]


class KernelTranslator:
    """One kernel's C++ function."""

    def __init__(self, kernel: Kernel, module: Module) -> None:
        self.kernel = kernel
        self.module_names = {v.name for v in module.variables if v.space in ("global", "const")}
        self.parameters = {p.name: p.offset for p in kernel.parameters}
        self.types: dict[str, str] = {}
        self.local_names: set[str] = set()
        self.lines: list[str] = []
        self.places: list[Location] = []
        self.place = Location("?", 1)
        self.shared, self.static_shared_bytes = self._lay_out_shared(module)
        self.pointers = self._pointer_parameters()

    def _lay_out_shared(self, module: Module) -> tuple[dict[str, int], int]:
        """Offsets of shared variables: the kernel's, the module's that it names, then those of the launch's size."""
        named = {
            word for s in self.kernel.statements if isinstance(s, Instruction) for word in re.findall(r"[\w$]+", s.text)
        }
        own = [s for s in self.kernel.statements if isinstance(s, Variable) and s.space == "shared"]
        outer = [v for v in module.variables if v.space == "shared" and v.name in named]
        offsets: dict[str, int] = {}
        end = 0
        for variable in (v for v in own + outer if v.count is not None):
            end = -(-end // variable.align) * variable.align
            offsets[variable.name] = end
            end += variable.size
        end = -(-end // 16) * 16
        offsets |= {v.name: end for v in outer if v.count is None}
        return offsets, end

    def _pointer_parameters(self) -> list[int]:
        """Offsets of parameters, or of their members, that the kernel takes for global addresses."""
        loaded: dict[str, int] = {}
        pointers: set[int] = set()
        for statement in self.kernel.statements:
            if not isinstance(statement, Instruction):
                continue
            if (
                statement.opcode == "ld.param.u64"
                and (place := self._parameter_place(statement.operands[1])) is not None
            ):
                loaded[statement.operands[0]] = place
            if statement.opcode == "cvta.to.global.u64" and statement.operands[1] in loaded:
                pointers.add(loaded[statement.operands[1]])
        return sorted(pointers)

    def _parameter_place(self, operand: str) -> int | None:
        match = re.fullmatch(r"\[([\w$]+)(?:\+(\d+))?\]", operand)
        if not match or match[1] not in self.parameters:
            return None
        return self.parameters[match[1]] + int(match[2] or 0)

    # Operands

    def value(self, operand: str) -> str:
        """The C++ expression of a register, a special register, an immediate or a variable's address."""
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand.startswith("!"):
            return f"!{self.value(operand[1:])}"
        name = operand.lstrip("%")
        if name in self.types:
            return f"r_{name}"
        if operand.startswith("%"):
            raise PtxError(f"the special register {operand} is not covered")
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            return f"0x{match[1]}u" if match[1] else f"0x{match[2]}ull"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            number = int(operand.rstrip("U"), 0)
            return str(number) if -(2**31) <= number < 2**31 else f"{number & (2**64 - 1)}ull"
        if operand in ("true", "false"):
            return operand
        if operand in self.shared:
            return f"{self.shared[operand]}u"
        if operand in self.parameters:  # to be indexed
            return f"{self.parameters[operand]}ull"
        if operand in self.local_names or operand in self.module_names:
            return f"reinterpret_cast<std::uint64_t>({variable_name(operand)})"
        raise PtxError(f"the operand {operand} is not covered")

    def address(self, operand: str, space: str) -> str:
        """The C++ expression of `[base+offset]`, as a char pointer."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not match:
            raise PtxError(f"the address {operand} is not covered")
        base, offset = match[1], int(match[2] or "0", 0)
        if space == "param" and base in self.parameters:
            return f"parameters + {self.parameters[base] + offset}"
        where = f"{self.value(base)} + ({offset})" if offset else self.value(base)
        if space == "param":
            return f"parameters + ({where})"
        if space == "shared":
            return f"shared + static_cast<std::uint32_t>({where})"
        return f"reinterpret_cast<char*>({where})"

    # Statements

    def translate(self) -> str:
        for statement in self.kernel.statements:
            try:
                self._statement(statement)
            except PtxError as error:
                raise PtxError(f"{self.place.file}:{self.place.line}: {error}") from None
        return self._function()

    def _statement(self, statement: object) -> None:
        match statement:
            case Brace(text):
                self.lines.append(text)
            case Label(name):
                self.lines.append(f"{label_name(name)}: ;")
            case Location():
                self.place = statement
            case Registers(kind, names):
                self.types |= dict.fromkeys(names, kind)
                word = "bool" if kind == "pred" else WORDS[SIZES[kind]]
                poison = "false" if kind == "pred" else f"static_cast<{word}>(kUnset)"
                self.lines.append(f"{word} " + ", ".join(f"r_{name} = {poison}" for name in names) + ";")
            case Variable(space="local"):
                self.local_names.add(statement.name)
                size = f"{statement.size}"
                self.lines.append(f"alignas({max(16, statement.align)}) char {variable_name(statement.name)}[{size}];")
            case Instruction():
                self._guarded(statement)

    def _guarded(self, instruction: Instruction) -> None:
        number = len(self.places)
        self.places.append(self.place)
        guard = f"if ({self.value(instruction.guard)}) " if instruction.guard else ""
        try:
            code = self._instruction(instruction, number)
        except (KeyError, IndexError, ValueError):
            raise PtxError(f'the instruction "{instruction.text}" is not covered') from None
        self.lines.append(f"#line {self.place.line} {c_string(self.place.file)}")
        self.lines.append(f"{guard}{{ PTX_EXECUTED({number}) {code} }}")

    def _instruction(self, instruction: Instruction, number: int) -> str:
        opcode, operands = Opcode(instruction.opcode), instruction.operands
        special = getattr(self, f"op_{opcode.name}", None)
        if special:
            return str(special(opcode, operands, number))
        return self._plain(opcode, operands)

    def _plain(self, opcode: Opcode, operands: list[str]) -> str:
        name = "_".join([opcode.name, *opcode.modifiers])
        kind = opcode.types[-1]
        if kind not in PLAIN[name].split():
            raise KeyError(kind)
        arguments = [self.value(operand) for operand in operands[1:]]
        floating = kind.startswith("f")
        if opcode.ftz:
            arguments = [f"flush<{kind}>({argument})" for argument in arguments]
        template = kind if opcode.rounding == "nearest" else f"{kind}, Rounding::{opcode.rounding}"
        result = f"{name}_<{template}>({', '.join(arguments)})"
        if opcode.sat:
            result = f"saturate<{kind}>({result})" if floating else f"{name}_saturated<{kind}>({', '.join(arguments)})"
        if opcode.ftz:
            result = f"flush<{kind}>({result})"
        return f"{self.value(operands[0])} = {result};"

    # Control

    def op_bra(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return f"goto {label_name(operands[0])};"

    def op_ret(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return "return;"

    op_exit = op_ret

    def op_trap(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return 'cuda_on_cpu::fail("the kernel trapped");'

    def _site(self, number: int) -> str:
        return f"site_of(kCode, {number})"

    def op_bar(self, opcode: Opcode, operands: list[str], number: int) -> str:
        """bar.sync 0; bar.red.popc.u32 %r1, 0, %p1; bar.red.or.pred %p2, 0, %p1; bar.warp.sync mask."""
        modifiers = [part for part in opcode.modifiers if part != "aligned"]
        if modifiers == ["warp", "sync"]:
            mask = self.value(operands[0])
            return f"cuda_on_cpu::warp_operation({self._site(number)}, WarpOperation::sync, {mask}, 0);"
        if modifiers == ["sync"] and operands == ["0"]:
            return f"cuda_on_cpu::barrier({self._site(number)});"
        if modifiers[0] == "red" and operands[1] == "0":
            vote = {"popc": "count", "and": "all", "or": "any"}[modifiers[1]]
            result, predicate = self.value(operands[0]), self.value(operands[-1])
            return f"{result} = cuda_on_cpu::barrier({self._site(number)}, BlockVote::{vote}, {predicate});"
        raise KeyError(opcode.name)

    op_barrier = op_bar

    def op_membar(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return "cuda_on_cpu::fence();"

    op_fence = op_membar

    def op_shfl(self, opcode: Opcode, operands: list[str], number: int) -> str:
        result, _, predicate = operands[0].partition("|")
        value, offset, clamp, mask = (self.value(operand) for operand in operands[1:])
        operation = f"WarpOperation::{SHUFFLES[opcode.modifiers[1]]}"
        arguments = f"{self._site(number)}, {operation}, {mask}, {value}, {offset}, {clamp}"
        call = f"cuda_on_cpu::warp_operation({arguments})"
        taken = f" {self.value(predicate)} = shuffled.in_range;" if predicate else ""
        return (
            f"const auto shuffled = {call}; {self.value(result)} = static_cast<std::uint32_t>(shuffled.value);{taken}"
        )

    def op_vote(self, opcode: Opcode, operands: list[str], number: int) -> str:
        mode = opcode.modifiers[1]
        result, predicate, mask = (self.value(operand) for operand in operands)
        operation = {"ballot": "ballot", "any": "ballot", "all": "all"}[mode]
        call = (
            f"cuda_on_cpu::warp_operation({self._site(number)}, WarpOperation::{operation}, {mask}, {predicate}).value"
        )
        return f"{result} = {call}{'' if mode == 'ballot' else ' != 0'};"

    def op_activemask(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return f"{self.value(operands[0])} = cuda_on_cpu::active_mask();"

    # Memory

    def _access(self, opcode: Opcode, memory: str, registers: str, number: int, function: str) -> tuple[str, list[str]]:
        """The call's beginning, up to the address, and the registers' expressions."""
        spaces = {"param", "global", "shared", "local", "const"}
        space = next((part for part in opcode.modifiers if part in spaces), "generic")
        vector = next((int(part[1:]) for part in opcode.modifiers if re.fullmatch(r"v[248]", part)), 1)
        known = spaces | {"v2", "v4", "v8"}
        if unknown := [part for part in opcode.modifiers if part not in known]:
            raise KeyError(unknown[0])
        names = split(registers.strip("{}"))
        if len(names) != vector:
            raise ValueError(registers)
        template = f"{function}<{opcode.types[-1]}, {vector}, {space_name(space)}>"
        return f"{template}(kCode, {number}, {self.address(memory, space)}", names

    def op_ld(self, opcode: Opcode, operands: list[str], number: int) -> str:
        call, names = self._access(opcode, operands[1], operands[0], number, "load")
        extend = f"extend<{opcode.types[-1]}>"
        takes = [f"{self.value(n)} = {extend}(loaded[{i}]);" for i, n in enumerate(names) if n != "_"]
        return f"const auto loaded = {call}); {' '.join(takes)}"

    op_ldu = op_ld

    def op_st(self, opcode: Opcode, operands: list[str], number: int) -> str:
        call, names = self._access(opcode, operands[0], operands[1], number, "store")
        word = WORDS[SIZES[opcode.types[-1]]]
        values = ", ".join(f"static_cast<{word}>({self.value(n)})" for n in names)
        return f"{call}, {{{values}}});"

    def op_atom(self, opcode: Opcode, operands: list[str], number: int) -> str:
        operation = next(part for part in opcode.modifiers if part in ATOMICS)
        kind = opcode.types[-1]
        if kind not in ATOMICS[operation].split():
            raise KeyError(kind)
        space = next((part for part in opcode.modifiers if part in ("global", "shared")), "generic")
        values = ", ".join(self.value(operand) for operand in operands[2:])
        address = self.address(operands[1], space)
        call = f"atom_{operation}<{kind}, {space_name(space)}>(kCode, {number}, {address}, {values});"
        return call if operands[0] == "_" else f"{self.value(operands[0])} = {call}"

    def op_red(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return self.op_atom(opcode, ["_", *operands], number)

    def op_prefetch(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return ""

    def op_prefetchu(self, opcode: Opcode, operands: list[str], number: int) -> str:
        return ""

    def op_cvta(self, opcode: Opcode, operands: list[str], number: int) -> str:
        result, source = self.value(operands[0]), self.value(operands[1])
        if "shared" in opcode.modifiers:
            window = "reinterpret_cast<std::uint64_t>(shared)"
            return (
                f"{result} = {source} - {window};" if "to" in opcode.modifiers else f"{result} = {source} + {window};"
            )
        return f"{result} = {source};"

    # Data

    def op_mov(self, opcode: Opcode, operands: list[str], number: int) -> str:
        result, source = operands
        if not (result.startswith("{") or source.startswith("{")):
            return f"{self.value(result)} = {self.value(source)};"
        pieces = split((result if result.startswith("{") else source).strip("{}"))
        bits = SIZES[opcode.types[-1]] * 8 // len(pieces)
        if result.startswith("{"):
            whole = f"const std::uint64_t whole = {self.value(source)};"
            parts = [f"{self.value(p)} = whole >> {i * bits};" for i, p in enumerate(pieces) if p != "_"]
            return f"{whole} {' '.join(parts)}"
        word = WORDS[bits // 8]
        parts = [f"std::uint64_t{{static_cast<{word}>({self.value(p)})}} << {i * bits}" for i, p in enumerate(pieces)]
        return f"{self.value(result)} = {' | '.join(parts)};"

    def op_setp(self, opcode: Opcode, operands: list[str], number: int) -> str:
        """setp.lt.s32 p|q, a, b; setp.lt.and.s32 p|q, a, b, c."""
        comparison, *logic = opcode.modifiers
        kind = opcode.types[-1]
        compared = self._compare(opcode, comparison, kind, operands[1], operands[2])
        result, _, other = operands[0].partition("|")
        if kind == "f16x2":  # one predicate a half
            first, second = "compared & 1", "compared >> 1 & 1"
        else:
            first, second = "compared", "!compared"
        if logic:
            joined = {"and": "&", "or": "|", "xor": "^"}[logic[0]]
            last = self.value(operands[3])
            first, second = f"({first}) {joined} {last}", f"({second}) {joined} {last}"
        # Both are computed before either is written: a result may also be an operand.
        code = f"const auto compared = {compared}; const bool first = {first}, second = {second};"
        written = [(result, "first"), (other, "second")]
        return code + "".join(f" {self.value(name)} = {value};" for name, value in written if name not in ("", "_"))

    def _compare(self, opcode: Opcode, comparison: str, kind: str, a: str, b: str) -> str:
        if comparison not in COMPARISONS or kind not in f"{B16_64} {I16_64} {FLOATS} {HALVES}".split():
            raise KeyError(comparison)
        left, right = self.value(a), self.value(b)
        if opcode.ftz:
            left, right = f"flush<{kind}>({left})", f"flush<{kind}>({right})"
        return f"compare<{kind}, Comparison::{comparison}_>({left}, {right})"

    def op_set(self, opcode: Opcode, operands: list[str], number: int) -> str:
        """set.lt.u32.f32 d, a, b: all ones or zero; set.lt.f32.f32: one or zero."""
        (comparison,) = opcode.modifiers
        to, kind = opcode.types
        compared = self._compare(opcode, comparison, kind, operands[1], operands[2])
        if (kind == "f16x2") != (to == "f16x2" or kind == "f16x2"):
            raise KeyError(to)
        return f"{self.value(operands[0])} = truth<{to}, {kind}>({compared});"

    def op_cvt(self, opcode: Opcode, operands: list[str], number: int) -> str:
        if opcode.modifiers:
            raise KeyError(opcode.modifiers[0])
        to, source = opcode.types
        covered = f"u8 s8 {I16_64} {FLOATS} f16".split()
        if (to, source) == ("f16x2", "f32"):
            high, low = (self.value(operand) for operand in operands[1:])
            return f"{self.value(operands[0])} = pack_halves({high}, {low});"
        if to not in covered or source not in covered:
            raise KeyError(to)
        value = self.value(operands[1])
        if opcode.ftz and source == "f32":
            value = f"flush<f32>({value})"
        integer = opcode.integer_rounding
        rounding = f"Rounding::{integer or opcode.rounding}"
        flags = f"{str(bool(integer)).lower()}, {str(opcode.sat).lower()}"
        converted = f"convert<{to}, {source}, {rounding}, {flags}>({value})"
        if opcode.ftz and to == "f32":
            converted = f"flush<f32>({converted})"
        return f"{self.value(operands[0])} = extend<{to}>({converted});"

    def op_dp4a(self, opcode: Opcode, operands: list[str], number: int) -> str:
        a, b, c = (self.value(operand) for operand in operands[1:])
        return f"{self.value(operands[0])} = dp4a_<{', '.join(opcode.types)}>({a}, {b}, {c});"

    def op_dp2a(self, opcode: Opcode, operands: list[str], number: int) -> str:
        a, b, c = (self.value(operand) for operand in operands[1:])
        half = {"lo": 0, "hi": 1}[opcode.modifiers[0]]
        return f"{self.value(operands[0])} = dp2a_<{', '.join(opcode.types)}, {half}>({a}, {b}, {c});"

    def _function(self) -> str:
        k = self.kernel
        places = ", ".join(f"{{{c_string(p.file)}, {p.line}}}" for p in self.places)
        parameters = ", ".join(f"{{{p.offset}, {p.size}}}" for p in k.parameters)
        pointers = ", ".join(str(offset) for offset in self.pointers)
        body = "\n".join(self.lines)
        return f"""
namespace kernel_{symbol(k.name)} {{

constexpr std::size_t kStaticSharedBytes = {self.static_shared_bytes};
const std::vector<Place> kPlaces = {{{places}}};
extern const KernelCode kCode;

void run(const char* parameters) {{
char* const shared = static_cast<char*>(cuda_on_cpu::dynamic_shared());
{body}
}}

const KernelCode kCode = {{{c_string(k.name)}, run, {{{parameters}}}, {{{pointers}}}, {k.parameter_bytes},
    kStaticSharedBytes, {k.max_threads}, kPlaces}};
const Registration kRegistration(kCode);

}}  // namespace kernel_{symbol(k.name)}
"""


def symbol(name: str) -> str:
    return name.replace("$", "_S_")


def label_name(name: str) -> str:
    return "label_" + symbol(name)


def variable_name(name: str) -> str:
    return "variable_" + symbol(name)


def space_name(space: str) -> str:
    return "Space::constant" if space == "const" else f"Space::{space}"


def module_variable(variable: Variable) -> str:
    """A .global or .const array, with its initial values."""
    word = WORDS[SIZES[variable.type]]
    values = variable.values.strip("{} ")
    numbers = [number(value, variable.type) for value in split(values)] if values else []
    alignment = max(variable.align, SIZES[variable.type])
    initial = ", ".join(numbers)
    name = variable_name(variable.name)
    declaration = f"alignas({alignment}) {word} {name}[{variable.count or 1}] = {{{initial}}};"
    return f"{declaration}\nconst VariableRegistration registration_of_{name}({name}, sizeof {name});"


def number(text: str, kind: str) -> str:
    if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
        return f"0x{match[1]}ull"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return f"static_cast<{WORDS[SIZES[kind]]}>({int(text.rstrip('U'), 0) & (2**64 - 1)}ull)"
    raise PtxError(f"the initial value {text} is not covered")


def translate(text: str, anchor: str) -> str:
    """C++ of a .ptx file's text. `anchor` is a symbol that it defines, for the linker to ask for."""
    module = parse(text)
    globals_ = [module_variable(v) for v in module.variables if v.space in ("global", "const")]
    kernels = [KernelTranslator(kernel, module).translate() for kernel in module.kernels]
    head = '#include "semantics.h"\n\nnamespace {\n\nusing namespace ptx;\n\n'
    tail = f'\n}}  // namespace\n\nextern "C" const char {anchor} = 0;\n'
    return head + "\n".join(globals_) + "\n" + "".join(kernels) + tail


def main() -> None:
    source, target, anchor = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    try:
        target.write_text(translate(source.read_text(), anchor))
    except PtxError as error:
        sys.exit(f"{source}: {error}")


if __name__ == "__main__":
    main()
