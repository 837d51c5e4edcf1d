"""A folder that all processes of a cluster see as a store of objects.

Python takes `s3a://bucket/…` for `$BUCKETS/bucket/…` where this file's folder
is on its path, and Spark does by `SPARK_SETTINGS`. No directory is renamed, and
`$BUCKETS/opened` tells which process opened what.
"""

import os

from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem

FOLDER = os.environ["BUCKETS"]
# Hadoop's own way to let one file system stand for another.
SPARK_SETTINGS = f"""
spark.hadoop.fs.s3a.impl \
org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme
spark.hadoop.fs.viewfs.overload.scheme.target.file.impl \
org.apache.hadoop.fs.LocalFileSystem
spark.hadoop.fs.viewfs.mounttable.bucket.link./within \
file://{FOLDER}/bucket/within
"""


class Buckets(LocalFileSystem):
    """`s3a://`, in a folder."""

    protocol = ("s3a",)

    def __init__(self, **kwargs):
        super().__init__(auto_mkdir=True, **kwargs)

    @classmethod
    def _strip_protocol(cls, path):
        address = os.fspath(path)
        if address.startswith("s3a://"):
            address = address.removeprefix("s3a://")
            if not address.startswith(FOLDER):
                address = f"{FOLDER}/{address}"
        return address.rstrip("/")

    def mv(self, path1, path2, **kwargs):
        if self.isdir(path1):
            raise OSError(f"a store cannot rename {path1}")
        super().mv(path1, path2, **kwargs)

    def open(self, path, mode="rb", **kwargs):
        with open(f"{FOLDER}/opened", "a") as file:
            file.write(f"{os.getpid()} {path}\n")
        return super().open(path, mode, **kwargs)


register_implementation("s3a", Buckets, clobber=True)
