"""Summarise a manifest with pandas: python examples/read_manifest.py s3://BUCKET/PREFIX/manifest, or a local folder.

pandas is not installed with Dreamgrid: python -m pip install pandas
"""

import sys

import pyarrow.dataset


def main(manifest: str) -> None:
    """Print how many dreams each network and layer has, their mean rise in score, and why others failed."""
    rows = pyarrow.dataset.dataset(manifest, partitioning="hive").to_table().to_pandas()
    done = rows[rows["status"] == "done"].copy()
    done["layers"] = ["+".join(layer["name"] for layer in layers) for layers in done["layers"]]
    done["rise"] = done["score_after"] - done["score_before"]
    print(done.groupby(["model", "layers"])["rise"].agg(["count", "mean"]).to_string())
    failed = rows[rows["status"] != "done"]
    print(failed["error_kind"].value_counts().to_string() if len(failed) else "no failures")


if __name__ == "__main__":
    main(*sys.argv[1:])
