"""Looks: named settings of Dreamgrid itself, beside the published presets. `docs/looks.md` shows images of each.

A look does not choose the network. On the bundled network it excites the layers that it was tuned on. On any other
network it excites the layers at the same depth, as a preset does.
"""

from typing import Literal

from dreamcore.presets import AS_PUBLISHED, Preset

__all__ = ["LOOK", "LOOKS", "LookName"]

LookName = Literal["creatures", "filigree", "ripple", "architecture", "subtle", "neon"]
"""The names of `LOOKS`."""
LOOK = "A look: settings tuned for one style; settings given explicitly override it."
"""Description of the field `look`."""

_TUNED_ON = "efficientnet_lite0"
_BUILDINGS = "logits:442,483,497,538,663,668,698,873"
"""ImageNet's classes of bell cotes, castles, churches, domes, monasteries, mosques, palaces and triumphal arches."""

LOOKS: dict[LookName, Preset] = {
    # Faces and fur, large. Takes about 1.7 times as long as the default.
    "creatures": Preset(
        model=_TUNED_ON,
        layers="blocks.4+blocks.5=0.5",
        depths="63%+87%=0.5",
        settings={"octaves": 8, "steps": 16, "step_size": 0.008, "calm": 0.04},
    ),
    # Engraved lines that keep the photograph.
    "filigree": Preset(
        model=_TUNED_ON,
        layers="blocks.2+blocks.3=0.3",
        depths="30%+41%=0.3",
        settings={"octaves": 5, "step_size": 0.006, "jitter": 16},
    ),
    # Carved waves and round eyes.
    "ripple": Preset(
        model=_TUNED_ON,
        layers="blocks.3+blocks.4=0.3",
        depths="41%+63%=0.3",
        settings={"octaves": 8, "octave_scale": 1.3, "step_size": 0.006, "color": 0.85, "soft_clip": 0.25},
    ),
    # Arches, windows and domes. The classes are those of ImageNet.
    "architecture": Preset(
        model=_TUNED_ON,
        layers=f"blocks.5+blocks.6+{_BUILDINGS}=0.2",
        depths=f"87%+95%+{_BUILDINGS}=0.2",
        settings={"steps": 16, "calm": 0.03},
    ),
    # The photograph stays recognizable, with details that show only at a second look.
    "subtle": Preset(
        model=_TUNED_ON,
        layers="blocks.3=0.3+blocks.4+blocks.5=0.5",
        depths="41%=0.3+63%+87%=0.5",
        settings={"octaves": 4, "steps": 8, "step_size": 0.006, "keep_colors": 1.0, "calm": 0.15},
    ),
    # Strong colors, as Dreamgrid 0.1 dreamt by default.
    "neon": Preset(
        model=_TUNED_ON,
        layers="blocks.4",
        depths="63%",
        settings={**AS_PUBLISHED, "step_size": 0.008},
    ),
}
"""The looks by name."""
