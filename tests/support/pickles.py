"""A pickle that runs code when it is loaded."""

import os


class RunsCode:
    """Its pickle makes the folder that the environment variable `PICKLE_FOLDER` names."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["PICKLE_FOLDER"],)
