"""From what users write for one cast, ``"e5m2"`` or a table, to an ``OperandCast``, and back. Imports no torch.

Without ``scaling`` the format decides: a block format brings its own, a float format with the range of FP32 needs none,
any other is scaled by the tensor's current amax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.errors import AltgradError, nearest, unknown
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.plugins import Choice, Plugins
from altgrad_core.recipes.recipe import NamedCast, OperandCast, OptimizerStateCasts, refuse_format
from altgrad_core.spelling import shown
from altgrad_core.structure import Collector, Problem, StructureError, choose, structure, unstructure

HOW = {"rounding": Rounding, "saturation": Saturation, "random_bits": int}
CAST_KEYS = ("format", "scaling", *HOW)


def cast_table(cast: OperandCast) -> dict[str, Any]:
    """Return the long form of a cast."""
    return {
        "format": cast.format,
        "rounding": cast.rounding,
        **({"random_bits": cast.random_bits} if cast.rounding == "stochastic" else {}),
        "saturation": cast.saturation,
        "scaling": {"kind": cast.scaling.kind, **unstructure(cast.scaling.options)},
    }


def state_table(casts: OptimizerStateCasts) -> dict[str, Any]:
    """Return the long form of the casts of the optimizer's tensors."""
    every = {} if casts.every is None else cast_table(casts.every)
    return every | {named.state: cast_table(named.cast) for named in casts.named}


@attrs.frozen
class CastResolver:
    """Makes casts of what users write; ``AltgradError`` with every problem and its key path otherwise."""

    plugins: Plugins

    def format_name(self, name: str) -> str:
        """Return the format's own name; raises ``AltgradError`` when there is no such format."""
        extension = self.plugins.find("format", name)
        return extension.name if extension is not None else get_format(name).name

    def default_scaling(self, format: str) -> Choice:
        """Return the scaling of a cast that names none."""
        found = self._format(format)
        if isinstance(found, BlockFormat):
            return choose(self.plugins, "scaling", found.scaling_kind)
        wide = isinstance(found, FloatFormat) and found.max_finite >= 2.0**127
        return choose(self.plugins, "scaling", "none" if wide else "current")

    def how(self, table: Mapping[str, Any], collector: Collector) -> dict[str, Any]:
        """Return what the table says on scaling, rounding, saturation and random bits."""
        found: dict[str, Any] = {}
        if "scaling" in table:
            with collector.at("scaling"):
                found["scaling"] = choose(self.plugins, "scaling", table["scaling"])
        for key, hint in HOW.items():
            if key in table:
                with collector.at(key):
                    found[key] = structure(table[key], hint)  # type: ignore[arg-type]
        if not 1 <= found.get("random_bits", 1) <= 32:
            collector.add(("random_bits",), f"expected 1 to 32, got {found.pop('random_bits')}")
        return found

    def cast(self, spec: Any, base: OperandCast | None, how: Mapping[str, Any]) -> OperandCast | None:
        """Return the cast that ``spec`` means: ``base`` with its changes.

        ``how`` holds where ``spec`` says nothing else. None when there is neither ``spec`` nor ``base``.
        """
        if spec is None and base is None:
            return None
        if spec is not None and not isinstance(spec, str | Mapping):
            refuse_format(spec)
            raise StructureError([Problem((), f"expected the name of a format or a table, got {shown(spec)}")])
        own: Mapping[str, Any] = {} if spec is None else {"format": spec} if isinstance(spec, str) else spec
        collector, said = Collector(), {}
        for key in own:
            if key not in CAST_KEYS:
                collector.add((key,), unknown("key", str(key), CAST_KEYS))
        said = self.how(own, collector)
        if "format" in own:
            with collector.at(*(() if isinstance(spec, str) else ("format",))):
                refuse_format(own["format"])
                said["format"] = self.format_name(structure(own["format"], str))
        elif base is None:
            collector.add(("format",), "missing; it has no default")
        collector.check()
        values = {} if base is None else {field: getattr(base, field) for field in CAST_KEYS}
        if base is not None and "format" in said and self._goes_with_format(base):
            del values["scaling"]  # a format that needs scaling may replace one that does not
        values |= {**how, **said}
        values.setdefault("scaling", self.default_scaling(values["format"]))
        self._check_scaling(values["format"], values["scaling"], ("scaling",) if "scaling" in said else ())
        if values.get("rounding") != "stochastic":
            if "random_bits" in said:
                raise StructureError([Problem(("random_bits",), _NOT_STOCHASTIC)])
            values.pop("random_bits", None)
        return OperandCast(**values)

    def optimizer_state(self, spec: Any, base: OptimizerStateCasts | None) -> OptimizerStateCasts | None:
        """Return the casts of the optimizer's tensors: a cast for all, and one for each further key of a table."""
        if spec is None:
            return base
        if not isinstance(spec, Mapping):
            return OptimizerStateCasts(every=self.cast(spec, None if base is None else base.every, {}))
        base = base or OptimizerStateCasts()
        every = {key: value for key, value in spec.items() if key in CAST_KEYS}
        before = {named.state: named.cast for named in base.named}
        collector, named = Collector(), []
        how = self.how(every, collector)
        for state in dict.fromkeys([*before, *(key for key in spec if key not in CAST_KEYS)]):
            if near := nearest(state, CAST_KEYS):
                collector.add((state,), f"Unknown key '{state}'.{near} Other keys name a tensor of the optimizer.")
                continue
            with collector.at(state):
                cast = self.cast(spec.get(state), before.get(state), how)
                assert cast is not None
                named.append(NamedCast(state=state, cast=cast))
        rest = base.every
        if "format" in spec or rest is not None or not named:
            with collector.at():
                rest = self.cast(every, rest, {}) if not collector.problems else None
        elif "random_bits" in how and all(each.cast.rounding != "stochastic" for each in named):
            collector.add(("random_bits",), _NOT_STOCHASTIC)
        collector.check()
        return OptimizerStateCasts(every=rest, named=tuple(named))

    def _format(self, name: str) -> Format:
        extension = self.plugins.find("format", name)
        return get_format(name if extension is None else extension.value)

    def _goes_with_format(self, cast: OperandCast) -> bool:
        """Tell whether the cast's scaling is its format's own rather than somebody's choice."""
        block = isinstance(self._format(cast.format), BlockFormat)
        return block or cast.scaling == self.default_scaling(cast.format)

    def _check_scaling(self, name: str, scaling: Choice, where: tuple[str, ...]) -> None:
        format = self._format(name)
        if isinstance(format, BlockFormat) and scaling.kind != format.scaling_kind:
            message = (
                f"the block format '{name}' has scales of its own, kind '{format.scaling_kind}', so '{scaling.kind}' "
                f"cannot choose them; leave scaling out, or cast to its elements' format '{format.element.name}'"
            )
            raise StructureError([Problem(where, message)])


_NOT_STOCHASTIC = 'has no effect, because the rounding is not stochastic; add rounding = "stochastic" or leave it out'


def check_random_bits(how: Mapping[str, Any], casts: list[OperandCast]) -> None:
    """Refuse random bits that hold for several casts none of which rounds stochastically."""
    if "random_bits" in how and all(cast.rounding != "stochastic" for cast in casts):
        raise AltgradError(_NOT_STOCHASTIC)
