"""Dream one image: python examples/one_picture.py IN OUT [SETTING=VALUE ...]."""

import sys

from PIL import Image

from dreamcore import dream


def main(source: str, result: str, *settings: str) -> None:
    """Dream the image in the file `source`, and write the dream to the file `result`."""
    given = dict(setting.split("=", 1) for setting in settings)  # such as layers=blocks.3 seed=7
    with Image.open(source) as image:
        dreamt = dream(image, **given)
    dreamt.image.save(result)
    for layer, score in dreamt.scores.items():
        print(f"{layer}: {score.before:.2f} to {score.after:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
