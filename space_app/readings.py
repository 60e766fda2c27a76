"""What each part says about a motion beside the truth, and the same in words."""

from __future__ import annotations

from dataclasses import dataclass

from controls import Choice, Control
from probe import Probe
from walk import PARTS, Walk

FOLLOWS = 0.7  # R2 from which a part follows a transformation
CANNOT_TELL = 0.3  # R2 below which it cannot tell
_NEAR, _ROUGH = 0.1, 0.2  # shares of the slider's range that count as near the truth, and as roughly right
_DIFFER = 0.2  # difference in R2 from which the parts differ


@dataclass(frozen=True)
class Reading:
    """One slider: its true value, and by part what the part says, its R2 and its mean error on test scenes, all in the
    slider's units."""

    control: Control
    true: float
    said: dict[str, float]
    r2: dict[str, float]
    error: dict[str, float]

    def off(self, part: str) -> float:
        return abs(self.said[part] - self.true)

    def sentence(self, part: str) -> str:
        """In words: follows, roughly follows, misses or cannot tell."""
        if self.r2[part] < CANNOT_TELL:
            return "cannot tell"
        share = self.off(part) / (self.control.high - self.control.low)
        word = "follows" if share <= _NEAR else "roughly follows" if share <= _ROUGH else "misses"
        return f"{word}: off by {self.control.text(self.off(part))}"


def read(choice: Choice, walk: Walk, probe: Probe, black: bool = False) -> list[Reading]:
    """One reading for each slider of a trained transformation, at the end of the walk; none for another one."""
    if not choice.trained:
        return []
    said = {part: choice.values(probe.read(part, walk.pooled[part], black)[-1]) for part in PARTS}
    true = choice.values(walk.parameters)
    return [
        Reading(
            control=control,
            true=true[control.name],
            said={part: said[part][control.name] for part in PARTS},
            r2={part: probe.r2_of(part, index, black) for part in PARTS},
            error={part: _shown_error(control, probe.error_of(part, index, black)) for part in PARTS},
        )
        for index, control in choice.controls.items()
    ]


def _shown_error(control: Control, error: float) -> float:
    """An error of a parameter in the slider's units, near the value that changes nothing."""
    return abs(control.unit.show(error) - control.neutral)


def verdict(choice: Choice, readings: list[Reading]) -> str:
    """What the parts do on this transformation, by their R2 on test scenes."""
    r2 = {part: sum(reading.r2[part] for reading in readings) / len(readings) for part in PARTS}
    what = " + ".join(reading.control.label.lower() for reading in readings) if len(readings) < 4 else "this change"
    words = {part: _word(value) for part, value in r2.items()}
    difference = r2["equivariant"] - r2["invariant"]
    if abs(difference) < _DIFFER:
        same = f"both {words['equivariant'].replace('follows', 'follow')}"
        both = same if words["equivariant"] == words["invariant"] else "about the same"
        return f"The two parts of this model do not differ here: {both}."
    first = (
        f"The equivariant part {words['equivariant']} the {what}"
        if words["equivariant"] != "cannot tell"
        else (f"The equivariant part cannot tell the {what}")
    )
    second = f"the invariant part {words['invariant']}" + (" it" if words["invariant"] != "cannot tell" else "")
    if difference < 0:
        return f"{first}; {second}. This model's parts are the wrong way around here."
    return f"{first}. {second[0].upper()}{second[1:]}."


def _word(r2: float) -> str:
    if r2 < CANNOT_TELL:
        return "cannot tell"
    return "follows" if r2 >= FOLLOWS else "roughly follows"
