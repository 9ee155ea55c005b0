"""Write the sheets of docs/atlas from the pictures in the folder ATLAS: `python docs/make_atlas.py ATLAS`.

`dreamgrid atlas --out ATLAS` draws the pictures. The sheets here are smaller, so that the repository stays small.
"""

import sys
from pathlib import Path

from dreamcore.settings import BUNDLED
from flows.pictures.atlas import draw_sheets
from flows.pictures.atlas_pictures import finished_layers, plan_atlas

FOLDER = Path(__file__).with_name("atlas")
SIDE = 72
"""Side of a picture in pixels."""
MAX_BYTES = 300_000


def main(atlas: Path) -> None:
    """Write one sheet for each main layer of the bundled network, in the best quality that `MAX_BYTES` allow."""
    planned = plan_atlas(BUNDLED, None, atlas)
    names = [each.layer.name for each in planned]
    for layer in finished_layers(planned[0]):
        if layer.layer.name in names:
            sheets = (draw_sheets(layer, SIDE, quality)[0] for quality in range(85, 0, -5))
            data = next(sheet for sheet in sheets if len(sheet) <= MAX_BYTES)
            FOLDER.joinpath(f"{layer.layer.name}.webp").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
