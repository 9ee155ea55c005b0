"""Dream a grid of settings and draw one sheet of it: python examples/grid_with_sheet.py IN SHEET [MAX_PIXELS]."""

import sys

from PIL import Image, ImageDraw

from dreamcore import Grid, dream

LAYERS, SCALES = ("blocks.2", "blocks.4", "blocks.5"), (1.2, 1.4, 1.8)
LINE = 14  # height of the text below each dream, in pixels


def main(source: str, result: str, max_pixels: str = "90000") -> None:
    """Dream the image in `source` at three layers and three octave scales, and write a sheet to `result`."""
    grid = Grid(layers=LAYERS, octave_scale=SCALES).expand(max_pixels=int(max_pixels))
    with Image.open(source) as image:
        dreams = [dream(image, settings=settings).image for settings in grid]
    width, height = dreams[0].width, dreams[0].height + LINE
    sheet = Image.new("RGB", (width * len(SCALES), height * len(LAYERS)))
    for number, (settings, dreamt) in enumerate(zip(grid, dreams, strict=True)):
        row, column = divmod(number, len(SCALES))
        sheet.paste(dreamt, (column * width, row * height))
        text = f"{settings.layers[0].name}, scale {settings.octave_scale}"
        ImageDraw.Draw(sheet).text((column * width + 2, (row + 1) * height - LINE), text)
    sheet.save(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
