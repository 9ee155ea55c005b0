"""Every address in S3: how one is parsed, and where a destination keeps what.

    DEST/images/<source key>/<label>-<result_id>.<suffix>    the dreams
    DEST/thumbs/<source key>/<label>-<result_id>.webp        a thumbnail of each dream
    DEST/manifest/run=<run_id>/shard-<number>.parquet        one part of the manifest for each shard
    DEST/manifest/run=<run_id>/shards-<first>-<last>.parquet the merged parts of consecutive shards
    DEST/frames/<source key>/<result_id>/                    the frames of a movie that is not finished
    DEST/favourites/<time>-<random>.parquet                  marks of dreams
    DEST/favourites/merged-<generation>-<random>.parquet     merged marks of dreams
    DEST/sheets/<source key>.jpg                             contact sheets
    DEST/gallery/                                            a static gallery, written by `gallery --export`
    DEST/_runs/active.json                                   which run is unfinished
    DEST/_runs/compaction.json                               exists while parts are merged
    DEST/_runs/<run_id>/                                     the record of a run: job, plan, index, success
    DEST/_runs/<run_id>/started/                             hints: which shards processes have begun
    DEST/_runs/prune.json                                    which prune has begun to delete dreams
    DEST/_runs/pruned/<id>.parquet                           which dreams a prune deleted

`DEST` always ends with a slash.
"""

import re
from urllib.parse import quote

from dreamcore.settings import DreamSettings, digest
from dreamcore.targets import layers_label

__all__ = [
    "FOLDERS",
    "active_uri",
    "check_uri",
    "compaction_uri",
    "favourites_folder",
    "folder_uri",
    "frames_folder",
    "gallery_folder",
    "images_folder",
    "index_uri",
    "is_movie",
    "is_result_id",
    "job_uri",
    "manifest_folder",
    "marks_generation",
    "marks_uri",
    "merged_marks_uri",
    "parse_uri",
    "part_uri",
    "plan_uri",
    "prune_uri",
    "pruned_folder",
    "pruned_uri",
    "result_id_of",
    "result_name",
    "result_place",
    "run_folder",
    "run_id_of_part",
    "runs_folder",
    "safe_name",
    "shards_of_part",
    "sheet_names",
    "sheet_uri",
    "sheets_folder",
    "started_folder",
    "success_uri",
    "thumb_uri",
    "thumbs_folder",
]

FOLDERS = ("images", "thumbs", "frames", "manifest", "favourites", "sheets", "gallery", "_runs")
"""The folders of a destination."""

MAX_KEY_BYTES = 800
"""Of a source's name in a key. S3 allows 1,024 bytes in all, and the destination needs some of them."""
MAX_PART_BYTES = 200
"""Between two slashes. Some stores allow 255."""
MAX_LABEL = 60
"""Characters of the readable label in the name of a dream."""
_ACCESS_POINT = (
    r"arn:[^/:]+:(?:s3|s3-object-lambda):[^/:]*:\d{12}:accesspoint[/:][^/:]+"
    r"|arn:[^/:]+:s3-outposts:[^/:]*:\d{12}:outpost[/:][^/:]+[/:]accesspoint[/:][^/:]+"
)
"""The ARN of an access point, which takes the place of a bucket. AWS writes its last parts with slashes or colons."""
_PATH = re.compile(rf"({_ACCESS_POINT}|(?!arn:)[^/]+)(?:/(.*))?", re.DOTALL)

_UNSAFE_IN_LABEL = re.compile(r"[^\w.,=+@-]", re.ASCII)
_PART = re.compile(r"/(?:shard-(\d+)|shards-(\d+)-(\d+))\.parquet$", re.ASCII)
_MARKS = re.compile(r"/(?:\d{8}T\d{6}Z|merged-(\d+)-\d{8}T\d{6}Z)-[0-9a-f]{16}\.parquet$", re.ASCII)
_RESULT_ID = re.compile("[0-9a-f]{16}")
_RESULT = re.compile(r"[^/]*-([0-9a-f]{16})\.[a-z]+4?$")
_MOVIE = ".mp4"


def parse_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`. The key may hold any character, or be empty.

    The bucket may be the ARN of an access point, such as
    `s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/NAME/PREFIX/`.

    Raises:
        ValueError: `uri` is not an S3 address.
    """
    scheme, _, path = uri.partition("://")
    match = _PATH.fullmatch(path)
    if scheme != "s3" or not match:
        example = "s3://ACCESS_POINT_ARN/PREFIX/" if path.startswith("arn:") else "s3://BUCKET/PREFIX/"
        raise ValueError(f"{uri!r} is not an S3 address: write {example}")
    return match[1], match[2] or ""


def check_uri(uri: str) -> str:
    """Return `uri`; raise ValueError if it is not an S3 address."""
    parse_uri(uri)
    return uri


def folder_uri(uri: str) -> str:
    """Return the address of a folder, with exactly one slash at its end, so that `out` never matches `out2`.

    Raises:
        ValueError: `uri` is not an S3 address.
    """
    parse_uri(uri)
    return uri.rstrip("/") + "/"


def images_folder(destination: str) -> str:
    """Return the folder of the dreams."""
    return f"{destination}images/"


def result_name(source_name: str, settings: DreamSettings, result_id: str) -> str:
    """Return the key of a dream below the destination: `images/<source>/<label>-<result_id>.<suffix>`.

    The label is for people: it has an underscore for each character that a file system or a shell may refuse. Only
    `result_id` identifies the dream. Dreamgrid 0.1 wrote other labels.
    """
    suffix = _MOVIE if settings.movie else f".{settings.output.format}"
    label = f"{layers_label(settings.layers)}-{settings.octaves}x{settings.steps}"
    name = f"{_UNSAFE_IN_LABEL.sub('_', label)[:MAX_LABEL]}-{result_id}{suffix}"
    return f"images/{safe_name(source_name)}/{name}"


def result_id_of(uri: str) -> str | None:
    """Return the `result_id` in the address of a dream; None if the address has none."""
    found = _RESULT.search(uri)
    return found[1] if found else None


def is_movie(uri: str) -> bool:
    """Return whether the dream at an address is a movie."""
    return uri.endswith(_MOVIE)


def is_result_id(text: str) -> bool:
    """Return whether a text has the form of a `result_id`."""
    return _RESULT_ID.fullmatch(text) is not None


def result_place(uri: str) -> str:
    """Return the folder and the `result_id` of a dream: equal for all labels that its file name may have."""
    return f"{uri.rpartition('/')[0]}/{result_id_of(uri) or uri}"


def thumbs_folder(destination: str) -> str:
    """Return the folder of the thumbnails."""
    return f"{destination}thumbs/"


def thumb_uri(destination: str, result_uri: str) -> str:
    """Return the address of the thumbnail of a dream: below `thumbs/`, with the suffix of WebP.

    Example:
        >>> thumb_uri("s3://b/d/", "s3://b/d/images/cat.jpg/blocks.4-6x10-0123456789abcdef.png")
        's3://b/d/thumbs/cat.jpg/blocks.4-6x10-0123456789abcdef.webp'
    """
    images = images_folder(destination)
    # The rows of a destination that was copied name the dreams of the original.
    name = result_uri.removeprefix(images) if result_uri.startswith(images) else f"{digest(result_uri)}.png"
    folder, slash, file = name.rpartition("/")
    return f"{thumbs_folder(destination)}{folder}{slash}{file.rpartition('.')[0] or file}.webp"


def frames_folder(destination: str, result_uri: str | None = None) -> str:
    """Return the folder of the frames of unfinished movies, of all or of one.

    Example:
        >>> frames_folder("s3://b/d/", "s3://b/d/images/cat.jpg/blocks.4-3x1-0123456789abcdef.mp4")
        's3://b/d/frames/cat.jpg/0123456789abcdef/'
    """
    folder, images = f"{destination}frames/", images_folder(destination)
    if result_uri is None:
        return folder
    # The rows of a destination that was copied name the movies of the original.
    is_ours = result_uri.startswith(images)
    return f"{folder}{result_place(result_uri).removeprefix(images) if is_ours else digest(result_uri)}/"


def manifest_folder(destination: str, run_id: str | None = None) -> str:
    """Return the folder of the manifest's parts, of all runs or of one."""
    return f"{destination}manifest/" + (f"run={run_id}/" if run_id else "")


def part_uri(destination: str, run_id: str, shard: int, last: int | None = None) -> str:
    """Return the address of a part of the manifest. A shard is finished when a part with its rows exists.

    Args:
        destination: folder of the results.
        run_id: the run that wrote the rows.
        shard: number of the shard; for a merged part, of its first shard.
        last: number of the last shard of a merged part; None for the part of one shard.
    """
    # "shard-" sorts before "shards-". `flows.destination.parts.list_all_parts` relies on this order.
    name = f"shard-{shard:06d}" if last is None else f"shards-{shard:06d}-{last:06d}"
    return f"{manifest_folder(destination, run_id)}{name}.parquet"


def run_id_of_part(uri: str) -> str:
    """Return the run of a part from the part's address."""
    return uri.rpartition("/run=")[2].partition("/")[0]


def shards_of_part(uri: str) -> range:
    """Return the numbers of the shards whose rows a part has, from the part's address; empty if it names none."""
    found = _PART.search(uri)
    if not found:
        return range(0)
    first = int(found[1] or found[2])
    return range(first, int(found[3] or first) + 1)


def favourites_folder(destination: str) -> str:
    """Return the folder of the marks of dreams."""
    return f"{destination}favourites/"


def marks_uri(destination: str, name: str) -> str:
    """Return the address of marks that are added together. `name` is their time and random digits."""
    return f"{favourites_folder(destination)}{name}.parquet"


def merged_marks_uri(destination: str, generation: int, name: str) -> str:
    """Return the address of merged marks. It sorts after all addresses of lower generations."""
    return f"{favourites_folder(destination)}merged-{generation:09d}-{name}.parquet"


def marks_generation(uri: str) -> int | None:
    """Return how often the marks at an address were merged, from 0; None if it is no address of marks."""
    found = _MARKS.search(uri)
    return int(found[1] or 0) if found else None


def sheets_folder(destination: str) -> str:
    """Return the folder of the contact sheets."""
    return f"{destination}sheets/"


def sheet_uri(destination: str, name: str, page: int) -> str:
    """Return the address of one page of the contact sheet of the photograph with this safe name."""
    # Safe names never contain %2D, so a page of one photograph cannot be the sheet of another.
    suffix = f"%2D{page}" if page > 1 else ""
    return f"{sheets_folder(destination)}{name}{suffix}.jpg"


def sheet_names(destination: str, uri: str) -> list[str]:
    """Return the safe names that the photograph of a contact sheet may have, from the address of one page.

    There are two if the name ends like the number of a page, as a shortened name may.
    """
    name = uri.removeprefix(sheets_folder(destination)).removesuffix(".jpg")
    first, _, page = name.rpartition("%2D")
    return [name, first] if first and page.isdecimal() else [name]


def gallery_folder(destination: str) -> str:
    """Return the folder of the static gallery."""
    return f"{destination}gallery/"


def runs_folder(destination: str) -> str:
    """Return the folder of the records of all runs."""
    return f"{destination}_runs/"


def run_folder(destination: str, run_id: str) -> str:
    """Return the folder of the record of one run."""
    return f"{runs_folder(destination)}{run_id}/"


def job_uri(destination: str, run_id: str) -> str:
    """Return the address of the job of a run, with every point of its grid."""
    return f"{run_folder(destination, run_id)}job.json"


def plan_uri(destination: str, run_id: str) -> str:
    """Return the address of the frozen plan of a run."""
    return f"{run_folder(destination, run_id)}plan.parquet"


def index_uri(destination: str, run_id: str) -> str:
    """Return the address of the summary of a run's parts."""
    return f"{run_folder(destination, run_id)}index.parquet"


def started_folder(destination: str, run_id: str) -> str:
    """Return the folder of the hints of a run."""
    return f"{run_folder(destination, run_id)}started/"


def success_uri(destination: str, run_id: str) -> str:
    """Return the address of the report of a finished run."""
    return f"{run_folder(destination, run_id)}success.json"


def active_uri(destination: str) -> str:
    """Return the address of the mark that names the unfinished run."""
    return f"{runs_folder(destination)}active.json"


def compaction_uri(destination: str) -> str:
    """Return the address of the mark that exists while parts of the manifest are merged."""
    return f"{runs_folder(destination)}compaction.json"


def prune_uri(destination: str) -> str:
    """Return the address of the mark that names the unfinished prune."""
    return f"{runs_folder(destination)}prune.json"


def pruned_folder(destination: str) -> str:
    """Return the folder of the records of prunes."""
    return f"{runs_folder(destination)}pruned/"


def pruned_uri(destination: str, prune_id: str) -> str:
    """Return the address of the record of one prune."""
    return f"{pruned_folder(destination)}{prune_id}.parquet"


def safe_name(name: str) -> str:
    """Return `name` as part of a key that every store keeps distinct.

    Path steps (`.`, `..`, empty parts), control characters, `%` and backslashes are percent-encoded, and long names
    are shortened with a digest at the end.
    """
    # Some stores treat a backslash as a slash.
    encoded = "".join(quote(c) if c in "%\\" or not c.isprintable() else c for c in name)
    return _shorten("/".join(_shorten(_safe_part(part), MAX_PART_BYTES) for part in encoded.split("/")), MAX_KEY_BYTES)


def _safe_part(part: str) -> str:
    # No name is encoded to %20 or %2D, because spaces and hyphens stay as they are.
    return "%2E" * len(part) if part in (".", "..") else part or "%20"


def _shorten(name: str, max_bytes: int) -> str:
    """Return `name`, or its beginning and a digest of the whole if it has more than `max_bytes` bytes."""
    data = name.encode()
    return name if len(data) <= max_bytes else data[: max_bytes - 100].decode(errors="ignore") + "%2D" + digest(name)
